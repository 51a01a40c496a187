//! Where modules come from: web servers and registries of the test's own, Secrets, uploads; digests and signatures that are right, wrong and missing.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::StatusCode;
use http::header::WWW_AUTHENTICATE;
use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData, SigningKey};
use scaleup_plugins::Digest;
use scaleup_tests::eventually;
use serde_json::{Value, json};

use super::server::{Asked, Authority, Reply, Server, body, redirect, status, with};
use super::{Lab, allow, condition, deny};
use crate::Cx;

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

/// A specification's part that asks for a module at an address.
fn at(server: &Server, path: &str, authority: &Authority, sha256: &str) -> Value {
    json!({"source": {"https": {"url": server.url(path), "caBundle": authority.pem()}}, "sha256": sha256})
}

/// A Secret with one key.
async fn secret(lab: &Lab<'_>, name: &str, kind: &str, key: &str, value: &[u8]) -> Result<()> {
    let data = json!({key: STANDARD.encode(value)});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": kind, "data": data});
    lab.api.post(&format!("/api/v1/namespaces/{}/secrets", lab.namespace), &secret).await?.ok().map(drop)
}

/// Waits until a step is not done for this reason and with these words in its message, and checks that the plugin fails closed.
async fn until_refused(lab: &Lab<'_>, name: &str, kind: &str, reason: &str, words: &str) -> Result<()> {
    lab.until(name, "the step is not done", |status| {
        let (state, found, message) = condition(status, kind);
        state == "False" && found == reason && message.contains(words) && status["holders"].is_object()
    })
    .await?;
    let answer = lab.ask(name).await?;
    ensure!(answer.status == 500, "{name} does not fail closed: {} {}", answer.status, answer.text);
    Ok(())
}

/// Whether what the plugin is asked about is denied with these words.
async fn denies(lab: &Lab<'_>, name: &str, words: &str) -> Result<()> {
    let answer = lab.ask(name).await?;
    ensure!(answer.status == 403 && answer.message().contains(words), "{name}: {} {}", answer.status, answer.text);
    Ok(())
}

pub async fn modules_come_over_https(cx: Cx) -> Result<()> {
    let lab = Lab::new(cx.fake().await?, "plugins-https").await?;
    let authority = Authority::new()?;
    let module: Bytes = deny("over https").component().into();
    let sum = sha256(&module);
    let late = AtomicUsize::new(0);
    let served = module.clone();
    let server = Server::start(Some(&authority), move |asked| match asked.path.as_str() {
        "/m.wasm" if asked.authorization == "Bearer sesame" => body(served.clone()),
        "/m.wasm" => status(StatusCode::UNAUTHORIZED),
        "/open.wasm" => body(served.clone()),
        "/moved" => redirect("/m.wasm"),
        "/round" => redirect("/round"),
        "/clear" => redirect("http://localhost:1/m.wasm"),
        // At first something else is there.
        "/late" if late.fetch_add(1, Relaxed) == 0 => body("something else"),
        "/late" => body(served.clone()),
        _ => status(StatusCode::NOT_FOUND),
    })
    .await?;
    secret(&lab, "token", "Opaque", "token", b"sesame\n").await?;
    let plain = |path: &str| at(&server, path, &authority, &sum);
    let with_token = |path: &str| {
        let mut spec = plain(path);
        spec["source"]["https"]["tokenSecret"] = json!({"name": "token"});
        spec
    };
    // With a token, through a redirection.
    lab.apply("moved", &[], &with_token("/moved")).await?;
    lab.decides("moved", 1).await?;
    denies(&lab, "moved", "over https").await?;
    ensure!(server.times("/moved").len() == 1 && server.times("/m.wasm").len() == 1, "fetched more than once");

    let mut stranger = plain("/open.wasm");
    stranger["source"]["https"]["caBundle"] = json!(Authority::new()?.pem());
    let mut large = plain("/open.wasm");
    large["limits"] = json!({"moduleSize": "100"});
    let nobody =
        json!({"source": {"https": {"url": "https://localhost:1/m.wasm", "caBundle": authority.pem()}}, "sha256": sum});
    let refused = [
        ("round", plain("/round"), "too many redirections"),
        ("clear", plain("/clear"), "a redirection to something else than HTTPS"),
        ("missing", plain("/nowhere"), "404"),
        ("no-token", plain("/m.wasm"), "401"),
        ("stranger", stranger, "certificate"),
        ("large", large, "more than 100 bytes"),
        ("nobody", nobody, "refused"),
    ];
    for (name, spec, _) in &refused {
        lab.apply(name, &[], spec).await?;
    }
    for (name, _, words) in &refused {
        until_refused(&lab, name, "Fetched", "FetchFailed", words).await?;
    }
    // What its author wants instead is done.
    let mut open = plain("/nowhere");
    open["failurePolicy"] = json!({"fetch": "BuiltIn"});
    lab.apply("missing", &[], &open).await?;
    eventually("the failure policy is followed", || async {
        Ok(lab.ask("missing").await?.status.is_success().then_some(()))
    })
    .await?;

    // Other bytes than were meant are never used; the right ones are, as soon as they are there.
    lab.apply("wrong", &[], &at(&server, "/open.wasm", &authority, &"0".repeat(64))).await?;
    until_refused(&lab, "wrong", "Verified", "DigestMismatch", &sum).await?;
    lab.apply("late", &[], &plain("/late")).await?;
    lab.until("late", "other bytes are refused", |status| condition(status, "Verified").1 == "DigestMismatch").await?;
    lab.decides("late", 1).await?;
    denies(&lab, "late", "over https").await?;

    // A version that cannot be fetched does not replace the one that decides.
    lab.apply("moved", &[], &plain("/nowhere")).await?;
    lab.until("moved", "it says what is missing", |status| {
        condition(status, "Fetched").2.contains("404") && condition(status, "Active").0 == "True"
    })
    .await?;
    denies(&lab, "moved", "over https").await
}

pub async fn failed_fetches_are_tried_again(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let lab = Lab::new(cluster, "plugins-retried").await?;
    let authority = Authority::new()?;
    let module: Bytes = deny("at last").component().into();
    let sum = sha256(&module);
    let asked = AtomicUsize::new(0);
    let server = Server::start(Some(&authority), move |_| match asked.fetch_add(1, Relaxed) {
        0..3 => status(StatusCode::SERVICE_UNAVAILABLE),
        _ => body(module.clone()),
    })
    .await?;
    lab.apply("p", &[], &at(&server, "/m.wasm", &authority, &sum)).await?;
    until_refused(&lab, "p", "Fetched", "FetchFailed", "503").await?;
    // As long as it does not decide, nothing gets past it.
    let asking = async {
        loop {
            let answer = lab.ask("p").await?;
            if answer.status == 403 {
                return Ok(answer);
            }
            ensure!(answer.status == 500, "{} {}", answer.status, answer.text);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let answer = tokio::time::timeout(scaleup_tests::PATIENCE, asking).await.context("it never decides")??;
    ensure!(answer.message().contains("at last"), "{}", answer.text);
    let status = lab.decides("p", 1).await?;
    ensure!(condition(&status, "Fetched").0 == "True", "{status:#}");
    // With growing pauses, whatever else wakes the controller: 1, 2 and 4 s.
    let times = server.times("/m.wasm");
    ensure!(times.len() == 4, "{} attempts", times.len());
    let pauses: Vec<Duration> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (pause, least) in pauses.iter().zip([1, 2, 4]) {
        ensure!(*pause >= Duration::from_millis(least * 1000 - 50), "{pauses:?}");
    }
    let events = eventually("an event says so", || async {
        let events = cluster.kubectl().ok(&format!("-n {} get events", lab.namespace)).await?;
        Ok(events.contains("FetchFailed").then_some(events))
    })
    .await?;
    ensure!(events.contains("Warning") && events.contains("503"), "{events}");
    Ok(())
}

/// A registry with one repository whose tags are `1.0`, and `damaged` whose blob is not what the manifest says. Its blobs are elsewhere.
struct Registry {
    registry: Server,
    /// It must never see a credential that is the registry's.
    elsewhere: Server,
    manifest: Bytes,
}

const USER: &str = "robot";
const PASSWORD: &str = "pass:word";

fn basic() -> String {
    format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")))
}

impl Registry {
    async fn start(authority: Option<&Authority>, module: &Bytes) -> Result<Self> {
        let (sum, served) = (sha256(module), module.clone());
        let good = format!("/blobs/sha256:{sum}");
        let elsewhere = Server::start(authority, move |asked| match asked.path.as_str() {
            _ if !asked.authorization.is_empty() => status(StatusCode::BAD_REQUEST),
            path if path == good => body(served.clone()),
            _ => body("something else"),
        })
        .await?;
        let layer =
            |kind: &str, digest: &str| json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": 1});
        let manifest = |digest: &str| -> Bytes {
            let config = layer("application/vnd.wasm.config.v0+json", &sha256(b"{}"));
            let layers = [layer("text/plain", &sha256(b"a readme")), layer("application/wasm", digest)];
            json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": layers})
                .to_string()
                .into()
        };
        let (one, damaged) = (manifest(&sum), manifest(&sha256(b"not what is there")));
        let (base, first) = (elsewhere.url(""), one.clone());
        let registry = Server::start(authority, move |asked| {
            if asked.path == "/token" {
                return token(asked);
            }
            let Some((repository, what)) = asked.path.strip_prefix("/v2/team/").and_then(|path| path.split_once('/'))
            else {
                return status(StatusCode::NOT_FOUND);
            };
            let (leave, challenge) = match repository {
                "plugin" => ("Bearer of-the-registry".to_owned(), challenge(&asked.host)),
                _ => (basic(), r#"Basic realm="it""#.to_owned()),
            };
            if asked.authorization != leave {
                return with(status(StatusCode::UNAUTHORIZED), WWW_AUTHENTICATE, &challenge);
            }
            match what {
                "manifests/damaged" => body(damaged.clone()),
                "manifests/1.0" => body(one.clone()),
                what if what.starts_with("manifests/sha256:") => body(one.clone()),
                what if what.starts_with("blobs/") => redirect(&format!("{base}/{what}")),
                _ => status(StatusCode::NOT_FOUND),
            }
        })
        .await?;
        Ok(Self { registry, elsewhere, manifest: first })
    }
}

fn challenge(host: &str) -> String {
    format!(r#"Bearer realm="https://{host}/token",service="it",scope="repository:team/plugin:pull""#)
}

fn token(asked: &Asked) -> Reply {
    let scope = asked.query == "service=it&scope=repository%3Ateam%2Fplugin%3Apull";
    if asked.authorization != basic() || !scope {
        return status(StatusCode::UNAUTHORIZED);
    }
    body(json!({"token": "of-the-registry"}).to_string())
}

pub async fn modules_come_from_registries(cx: Cx) -> Result<()> {
    let lab = Lab::new(cx.fake().await?, "plugins-oci").await?;
    let authority = Authority::new()?;
    let module: Bytes = deny("from a registry").component().into();
    let sum = sha256(&module);
    let Registry { registry, elsewhere, manifest } = Registry::start(Some(&authority), &module).await?;
    let login = json!({"auths": {registry.host(): {"username": USER, "password": PASSWORD}}}).to_string();
    secret(&lab, "login", "kubernetes.io/dockerconfigjson", ".dockerconfigjson", login.as_bytes()).await?;
    let anonymous = |repository: &str, reference: &str, sum: &str| {
        let reference = format!("{}/team/{repository}{reference}", registry.host());
        json!({"source": {"oci": {"reference": reference, "caBundle": authority.pem()}}, "sha256": sum})
    };
    let known = |repository: &str, reference: &str, sum: &str| {
        let mut spec = anonymous(repository, reference, sum);
        spec["source"]["oci"]["pullSecret"] = json!({"name": "login"});
        spec
    };
    let by_digest = format!("@sha256:{}", sha256(&manifest));
    // By tag and by digest; a token that the registry sends for, and a password.
    for (name, spec) in [
        ("tag", known("plugin", ":1.0", &sum)),
        ("digest", known("plugin", &by_digest, &sum)),
        ("password", known("basic", ":1.0", &sum)),
    ] {
        lab.apply(name, &[], &spec).await?;
        lab.decides(name, 1).await?;
        denies(&lab, name, "from a registry").await?;
    }
    ensure!(elsewhere.times(&format!("/blobs/sha256:{sum}")).len() == 3, "each fetched it once");
    let other = format!("@sha256:{}", "0".repeat(64));
    let damaged = sha256(b"not what is there");
    let refused = [
        ("wrong", known("plugin", ":1.0", &"0".repeat(64)), "Verified", "DigestMismatch", sum.as_str()),
        ("damaged", known("plugin", ":damaged", &damaged), "Verified", "DigestMismatch", damaged.as_str()),
        ("manifest", known("plugin", &other, &sum), "Fetched", "FetchFailed", "not the one that the reference names"),
        ("no-tag", known("plugin", ":2.0", &sum), "Fetched", "FetchFailed", "404"),
        ("no-token", anonymous("plugin", ":1.0", &sum), "Fetched", "FetchFailed", "401"),
        ("no-password", anonymous("basic", ":1.0", &sum), "Fetched", "FetchFailed", "give spec.source.oci.pullSecret"),
    ];
    for (name, spec, ..) in &refused {
        lab.apply(name, &[], spec).await?;
    }
    for (name, _, kind, reason, words) in &refused {
        until_refused(&lab, name, kind, reason, words).await?;
    }
    // A registry that is away stops nothing that runs.
    drop((registry, elsewhere));
    denies(&lab, "tag", "from a registry").await?;

    // In clear text, where somebody says so.
    let clear = Registry::start(None, &module).await?;
    let login = json!({"auths": {clear.registry.host(): {"auth": STANDARD.encode(format!("{USER}:{PASSWORD}"))}}});
    secret(&lab, "clear", "kubernetes.io/dockerconfigjson", ".dockerconfigjson", login.to_string().as_bytes()).await?;
    let source = json!({"oci": {"reference": format!("{}/team/basic:1.0", clear.registry.host()), "plainHttp": true,
        "pullSecret": {"name": "clear"}}});
    lab.apply("clear", &[], &json!({"source": source, "sha256": sum})).await?;
    lab.decides("clear", 1).await?;
    denies(&lab, "clear", "from a registry").await
}

/// What a plugin's specification says of a signature.
fn signature(key: &KeyPair, value: &[u8]) -> Value {
    json!({"signature": {"publicKey": STANDARD.encode(key.der_bytes()), "value": STANDARD.encode(value)}})
}

pub async fn signatures_are_checked(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let lab = Lab::new(cluster, "plugins-signed").await?;
    let (key, other) = (KeyPair::generate_for(&PKCS_ED25519)?, KeyPair::generate_for(&PKCS_ED25519)?);
    let module = deny("signed").component();
    let (of_module, of_else) = (key.sign(&module)?, key.sign(b"something else")?);
    let right = signature(&key, &of_module);
    lab.apply("right", &module, &right).await?;
    let status = lab.decides("right", 1).await?;
    ensure!(condition(&status, "Verified").2.contains("digest and signature are right"), "{status:#}");
    denies(&lab, "right", "signed").await?;
    for (name, wrong) in [("bytes", signature(&key, &of_else)), ("key", signature(&other, &of_module))] {
        lab.apply(name, &module, &wrong).await?;
        until_refused(&lab, name, "Verified", "SignatureInvalid", "not this key's for this module").await?;
    }
    eventually("an event says so", || async {
        let events = cluster.kubectl().ok(&format!("-n {} get events", lab.namespace)).await?;
        Ok(events.contains("VerificationFailed").then_some(()))
    })
    .await?;
    // A key without a signature is a mistake, not a plugin that need not be signed.
    let missing = json!({"signature": {"publicKey": right["signature"]["publicKey"]}});
    let answer = lab.api.post(&collection(&lab), &lab.manifest("missing", &module, &missing)).await?;
    ensure!(answer.status == 422 && answer.message().contains("spec.signature.value"), "{}", answer.text);
    // A module that is not signed never replaces one that is.
    lab.apply("right", &allow().component(), &right).await?;
    let status = lab.until("right", "it is refused", |status| condition(status, "Verified").0 == "False").await?;
    ensure!(condition(&status, "Active").1 == "PreviousVersion", "{status:#}");
    denies(&lab, "right", "signed").await
}

fn collection(lab: &Lab<'_>) -> String {
    format!("/apis/policy.scaleup.dev/v1/namespaces/{}/wasmplugins", lab.namespace)
}

pub async fn plugins_that_are_kept_in_secrets(cx: Cx) -> Result<()> {
    let lab = Lab::new(cx.fake().await?, "plugins-secret").await?;
    let source = json!({"source": {"secretRef": {"name": "module", "key": "m.wasm"}}});
    lab.apply("p", &[], &source).await?;
    until_refused(&lab, "p", "Fetched", "FetchFailed", "Secret plugins-secret/module").await?;
    secret(&lab, "module", "Opaque", "other", b"").await?;
    until_refused(&lab, "p", "Fetched", "FetchFailed", "it has no key \"m.wasm\"").await?;
    let path = format!("/api/v1/namespaces/{}/secrets/module", lab.namespace);
    let change = async |words: &str| {
        let data = json!({"m.wasm": STANDARD.encode(deny(words).component())});
        lab.api.patch(&path, "merge", &json!({"data": data})).await?.ok()
    };
    for (number, words) in [(1, "first"), (2, "second")] {
        change(words).await?;
        lab.decides("p", number).await?;
        denies(&lab, "p", words).await?;
    }
    Ok(())
}
