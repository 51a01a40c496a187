//! Certificates by ACME from Pebble, the CA that Let's Encrypt tests clients with: an Ingress asks, the load balancer answers the challenge,
//! and serves with what was issued.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use scaleup_tests::cluster::{Cluster, Options, free_port};
use scaleup_tests::eventually;
use serde_json::{Value, json};

use crate::{Cx, trials};

/// All tests of this module.
pub fn tests(cx: &Cx) -> Vec<Trial> {
    trials![cx, "acme", certificates_are_issued_and_served, refusals_are_told]
}

/// A CA, and a name server for it that sends every name here.
struct Pebble {
    ca: Child,
    names: Child,
    dir: tempfile::TempDir,
    directory: String,
}

impl Drop for Pebble {
    fn drop(&mut self) {
        for child in [&mut self.ca, &mut self.names] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Pebble {
    /// It looks for challenges at `http_port` of 127.0.0.1.
    async fn start(http_port: u16) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let (listen, management, dns) = (free_port()?, free_port()?, free_port()?);
        let key = rcgen::KeyPair::generate()?;
        let params = rcgen::CertificateParams::new(vec!["localhost".into()])?;
        let certificate = params.self_signed(&key)?;
        std::fs::write(dir.path().join("ca.pem"), certificate.pem())?;
        std::fs::write(dir.path().join("key.pem"), key.serialize_pem())?;
        let config = json!({"pebble": {
            "listenAddress": format!("127.0.0.1:{listen}"), "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": dir.path().join("ca.pem"), "privateKey": dir.path().join("key.pem"),
            "httpPort": http_port, "tlsPort": 1, "ocspResponderURL": "", "externalAccountBindingRequired": false,
        }});
        let path = dir.path().join("config.json");
        std::fs::write(&path, config.to_string())?;
        let log = std::fs::File::create(dir.path().join("log"))?;
        let names = Command::new("pebble-challtestsrv")
            .args(["-management", "", "-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", ""])
            .args(["-defaultIPv4", "127.0.0.1", "-dns01", &format!("127.0.0.1:{dns}")])
            .stdout(Stdio::null())
            .stderr(log.try_clone()?)
            .spawn()
            .context("pebble-challtestsrv; run scripts/setup test")?;
        let ca = Command::new("pebble")
            .arg("-config")
            .arg(&path)
            .args(["-dnsserver", &format!("127.0.0.1:{dns}")])
            // Without waiting at random before it looks, and without refusing nonces now and then.
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_WFE_NONCEREJECT", "0")
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let pebble = Self { ca, names, dir, directory: format!("https://localhost:{listen}/dir") };
        let client = reqwest::Client::builder().tls_danger_accept_invalid_certs(true).build()?;
        eventually("Pebble answers", || async {
            Ok(client.get(&pebble.directory).send().await?.status().is_success().then_some(()))
        })
        .await?;
        Ok(pebble)
    }

    async fn cluster(&self, http: u16, https: u16) -> Result<Cluster> {
        let ca = self.dir.path().join("ca.pem").to_string_lossy().into_owned();
        let extra = [
            "--acme-email",
            "ops@example.com",
            "--acme-directory",
            &self.directory,
            "--acme-ca-file",
            &ca,
            "--lb-http-port",
            &http.to_string(),
            "--lb-https-port",
            &https.to_string(),
        ];
        Cluster::start(Options { extra: extra.map(str::to_owned).to_vec(), ..Options::default() }).await
    }
}

fn ingress(name: &str, host: &str, secret: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"name": name, "namespace": "default", "annotations": {"scaleup.dev/acme": "true"}},
        "spec": {"tls": [{"hosts": [host], "secretName": secret}], "rules": [{"host": host, "http": {"paths": [
            {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "nobody", "port": {"number": 80}}}}]}}]},
    })
}

async fn certificates_are_issued_and_served(_: Cx) -> Result<()> {
    let (http, https) = (free_port()?, free_port()?);
    let pebble = Pebble::start(http).await?;
    let cluster = pebble.cluster(http, https).await?;
    let kubectl = cluster.kubectl();
    kubectl.apply(&ingress("shop", "shop.example", "shop-tls").to_string()).await?;
    let secret = eventually("a certificate", || async { Ok(kubectl.json("get secret shop-tls").await.ok()) }).await?;
    ensure!(
        secret["type"] == "kubernetes.io/tls" && secret["metadata"]["labels"]["scaleup.dev/acme"] == "managed",
        "{secret}"
    );
    // The handshake shows it: nobody else signed for that name.
    let client = reqwest::Client::builder()
        .tls_danger_accept_invalid_certs(true)
        .tls_info(true)
        .resolve("shop.example", ([127, 0, 0, 1], https).into())
        .build()?;
    eventually("it is served", || async {
        let answer = client.get(format!("https://shop.example:{https}/")).send().await?;
        let info = answer.extensions().get::<reqwest::tls::TlsInfo>().and_then(|info| info.peer_certificate());
        let der = info.unwrap_or_default().to_vec();
        let found = |text: &str| der.windows(text.len()).any(|window| window == text.as_bytes());
        // The Service does not exist, which is not what this is about.
        Ok((answer.status() == 500 && found("shop.example") && found("Pebble Intermediate CA")).then_some(()))
    })
    .await?;
    let events =
        kubectl.ok("get events --field-selector reason=CertificateIssued -o jsonpath={.items[*].message}").await?;
    ensure!(events.contains("Secret shop-tls has a new certificate for shop.example"), "{events}");
    let challenges = kubectl.json("-n kube-system get configmap scaleup-acme-challenges").await?;
    ensure!(
        challenges["data"].as_object().is_none_or(serde_json::Map::is_empty),
        "answered challenges are gone: {challenges}"
    );
    Ok(())
}

async fn refusals_are_told(_: Cx) -> Result<()> {
    let (http, https) = (free_port()?, free_port()?);
    // Where the CA looks, nobody answers.
    let pebble = Pebble::start(free_port()?).await?;
    let cluster = pebble.cluster(http, https).await?;
    let kubectl = cluster.kubectl();
    kubectl.ok("create secret generic taken --from-literal=a=b").await?;
    kubectl.apply(&ingress("unreachable", "a.example", "a-tls").to_string()).await?;
    kubectl.apply(&ingress("wild", "*.b.example", "b-tls").to_string()).await?;
    kubectl.apply(&ingress("foreign", "c.example", "taken").to_string()).await?;
    for (reason, part) in [
        ("CertificateFailed", "a.example"),
        ("AcmeRefused", "HTTP-01 cannot prove wildcard names"),
        ("AcmeSecretTaken", "was not made by ACME and is left alone"),
    ] {
        eventually(reason, || async {
            let selector = format!("get events --field-selector reason={reason} -o jsonpath={{.items[*].message}}");
            let events = kubectl.ok(&selector).await?;
            ensure!(events.contains(part), "{events}");
            Ok(Some(()))
        })
        .await?;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    for secret in ["a-tls", "b-tls"] {
        ensure!(kubectl.fails(&format!("get secret {secret}")).await?.contains("not found"), "{secret}");
    }
    ensure!(kubectl.json("get secret taken").await?["data"]["tls.crt"].is_null(), "what others made stays as it is");
    Ok(())
}
