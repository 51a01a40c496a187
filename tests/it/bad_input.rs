//! Malformed requests, as one table: each gets the right 4xx `Status`, none a 5xx, and nothing is written.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use reqwest::Method;
use scaleup_tests::http::Api;
use serde_json::{Value, json};

use crate::{Cx, trials};

/// All tests of this module.
pub fn tests(cx: &Cx) -> Vec<Trial> {
    trials![cx, "bad_input", malformed_requests, malformed_heads, bad_credentials]
}

/// One request and what must be answered.
struct Case {
    name: &'static str,
    method: Method,
    path: String,
    content: &'static str,
    body: Vec<u8>,
    code: u16,
    /// Part of the message or of a cause's field.
    says: &'static str,
}

const JSON: &str = "application/json";
const MAPS: &str = "/api/v1/namespaces/bad-input/configmaps";
const PODS: &str = "/api/v1/namespaces/bad-input/pods";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/bad-input/deployments";

fn post(name: &'static str, path: &str, body: &Value, code: u16, says: &'static str) -> Case {
    Case {
        name,
        method: Method::POST,
        path: path.into(),
        content: JSON,
        body: body.to_string().into_bytes(),
        code,
        says,
    }
}

fn raw(name: &'static str, path: &str, body: impl Into<Vec<u8>>, code: u16, says: &'static str) -> Case {
    Case { name, method: Method::POST, path: path.into(), content: JSON, body: body.into(), code, says }
}

fn get(name: &'static str, path: &str, code: u16, says: &'static str) -> Case {
    Case { name, method: Method::GET, path: path.into(), content: "", body: Vec::new(), code, says }
}

fn patch(name: &'static str, content: &'static str, body: impl Into<Vec<u8>>, code: u16, says: &'static str) -> Case {
    Case { name, method: Method::PATCH, path: format!("{MAPS}/victim"), content, body: body.into(), code, says }
}

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}})
}

fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap_or(("", pointer));
    match (object.pointer_mut(parent), key.parse::<usize>()) {
        (Some(Value::Array(items)), Ok(index)) => items[index] = value,
        (Some(parent), _) => parent[key] = value,
        (None, _) => {}
    }
    object
}

fn pod() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

fn deployment() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

fn service(ports: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": ports}})
}

fn bodies() -> Vec<Case> {
    let deep = format!("{}1{}", "[".repeat(5_000), "]".repeat(5_000));
    vec![
        raw("empty body", MAPS, "", 400, ""),
        raw("not JSON", MAPS, "{", 400, ""),
        raw("JSON null", MAPS, "null", 400, ""),
        raw("JSON array", MAPS, "[]", 400, ""),
        raw("JSON string", MAPS, "\"x\"", 400, ""),
        raw("two documents", MAPS, "{} {}", 400, ""),
        raw(
            "invalid UTF-8",
            MAPS,
            b"{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"data\":{\"a\":\"\xff\"}}".to_vec(),
            400,
            "",
        ),
        raw("deep nesting", MAPS, format!("{{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"x\":{deep}}}"), 400, ""),
        raw("wrong kind", MAPS, r#"{"apiVersion":"v1","kind":"Secret","metadata":{"name":"x"}}"#, 400, ""),
        raw("wrong apiVersion", MAPS, r#"{"apiVersion":"v2","kind":"ConfigMap","metadata":{"name":"x"}}"#, 400, ""),
        post("wrong type of a field", MAPS, &with(map("x"), "/data", json!([])), 400, ""),
        post("number for a string", MAPS, &with(map("x"), "/data/a", json!(1)), 400, ""),
        post("string for an integer", DEPLOYMENTS, &with(deployment(), "/spec/replicas", json!("three")), 400, ""),
        post("fraction for an integer", DEPLOYMENTS, &with(deployment(), "/spec/replicas", json!(1.5)), 400, ""),
        post("integer overflow", DEPLOYMENTS, &with(deployment(), "/spec/replicas", json!(1u64 << 40)), 400, ""),
        post("labels of a wrong type", MAPS, &with(map("x"), "/metadata/labels", json!({"a": 1})), 400, ""),
        post("metadata of a wrong type", MAPS, &with(map("x"), "/metadata", json!("x")), 400, ""),
        raw("oversized body", MAPS, vec![b' '; 4 << 20], 413, ""),
        raw(
            "duplicate key, strict",
            &format!("{MAPS}?fieldValidation=Strict"),
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"},"data":{"a":"1","a":"2"}}"#,
            400,
            "duplicate field",
        ),
        raw(
            "unknown field, strict",
            &format!("{MAPS}?fieldValidation=Strict"),
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"},"dta":{}}"#,
            400,
            "unknown field",
        ),
    ]
}

fn objects() -> Vec<Case> {
    let bad_name = |name: &str| with(map("x"), "/metadata/name", json!(name));
    vec![
        post("no name", MAPS, &with(map("x"), "/metadata", json!({})), 422, "metadata.name"),
        post("upper-case name", MAPS, &bad_name("Upper"), 422, "metadata.name"),
        post("path traversal in the name", MAPS, &bad_name("../../secrets/x"), 422, "metadata.name"),
        post("slash in the name", MAPS, &bad_name("a/b"), 422, "metadata.name"),
        post("NUL in the name", MAPS, &bad_name("a\u{0}b"), 422, "metadata.name"),
        post("name too long", MAPS, &bad_name(&"a".repeat(254)), 422, "metadata.name"),
        post("bad label key", MAPS, &with(map("x"), "/metadata/labels", json!({"-bad": "x"})), 422, "metadata.labels"),
        post("bad label value", MAPS, &with(map("x"), "/metadata/labels", json!({"a": "b c"})), 422, "metadata.labels"),
        post(
            "annotations too large",
            MAPS,
            &with(map("x"), "/metadata/annotations", json!({"a": "x".repeat(300_000)})),
            422,
            "metadata.annotations",
        ),
        post("namespace mismatch", MAPS, &with(map("x"), "/metadata/namespace", json!("other")), 400, "namespace"),
        post(
            "namespace missing",
            "/api/v1/namespaces/no-such-namespace/configmaps",
            &map("x"),
            404,
            "no-such-namespace",
        ),
        post("bad config key", MAPS, &with(map("x"), "/data", json!({"a/b": "x"})), 422, "data[a/b]"),
        post("ConfigMap too large", MAPS, &with(map("x"), "/data", json!({"a": "x".repeat(1_200_000)})), 422, ""),
        post(
            "owner without uid",
            MAPS,
            &with(map("x"), "/metadata/ownerReferences", json!([{"apiVersion": "v1", "kind": "Pod", "name": "p"}])),
            422,
            "metadata.ownerReferences",
        ),
        post(
            "bad finalizer",
            MAPS,
            &with(map("x"), "/metadata/finalizers", json!(["bad finalizer!"])),
            422,
            "metadata.finalizers",
        ),
        post(
            "resourceVersion on create",
            MAPS,
            &with(map("x"), "/metadata/resourceVersion", json!("5")),
            400,
            "resourceVersion",
        ),
        post("pod without containers", PODS, &with(pod(), "/spec/containers", json!([])), 422, "spec.containers"),
        post(
            "pod without spec",
            PODS,
            &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}),
            422,
            "spec.containers",
        ),
        post(
            "container without image",
            PODS,
            &with(pod(), "/spec/containers/0", json!({"name": "c"})),
            422,
            "spec.containers[0].image",
        ),
        post(
            "container name twice",
            PODS,
            &with(pod(), "/spec/containers", json!([{"name": "c", "image": "i"}, {"name": "c", "image": "i"}])),
            422,
            "spec.containers[1].name",
        ),
        post(
            "bad quantity",
            PODS,
            &with(pod(), "/spec/containers/0/resources", json!({"limits": {"cpu": "lots"}})),
            422,
            "",
        ),
        post(
            "request above limit",
            PODS,
            &with(pod(), "/spec/containers/0/resources", json!({"limits": {"cpu": "1"}, "requests": {"cpu": "2"}})),
            422,
            "requests",
        ),
        post(
            "bad restart policy",
            PODS,
            &with(pod(), "/spec/restartPolicy", json!("Sometimes")),
            422,
            "spec.restartPolicy",
        ),
        post(
            "bad container port",
            PODS,
            &with(pod(), "/spec/containers/0/ports", json!([{"containerPort": 70_000}])),
            422,
            "containerPort",
        ),
        post(
            "unknown volume",
            PODS,
            &with(pod(), "/spec/containers/0/volumeMounts", json!([{"name": "v", "mountPath": "/v"}])),
            422,
            "volumeMounts[0].name",
        ),
        post(
            "probe without a handler",
            PODS,
            &with(pod(), "/spec/containers/0/readinessProbe", json!({"periodSeconds": 1})),
            422,
            "readinessProbe",
        ),
        post(
            "persistent volume claim",
            PODS,
            &with(pod(), "/spec/volumes", json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}])),
            422,
            "spec.volumes[0]",
        ),
        post(
            "unknown priority class",
            PODS,
            &with(pod(), "/spec/priorityClassName", json!("no-such-class")),
            403,
            "no-such-class",
        ),
        post(
            "selector does not match the template",
            DEPLOYMENTS,
            &with(deployment(), "/spec/selector", json!({"matchLabels": {"x": "y"}})),
            422,
            "spec.template.metadata.labels",
        ),
        post(
            "deployment without selector",
            DEPLOYMENTS,
            &with(deployment(), "/spec/selector", json!(null)),
            422,
            "spec.selector",
        ),
        post("negative replicas", DEPLOYMENTS, &with(deployment(), "/spec/replicas", json!(-1)), 422, "spec.replicas"),
        post(
            "bad strategy",
            DEPLOYMENTS,
            &with(deployment(), "/spec/strategy", json!({"type": "Magic"})),
            422,
            "spec.strategy",
        ),
        post("service without ports", "/api/v1/namespaces/bad-input/services", &service(json!([])), 422, "spec.ports"),
        post(
            "service port out of range",
            "/api/v1/namespaces/bad-input/services",
            &service(json!([{"port": 0}])),
            422,
            "spec.ports[0].port",
        ),
        post(
            "role that binds nothing",
            "/apis/rbac.authorization.k8s.io/v1/namespaces/bad-input/rolebindings",
            &json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "x"}}),
            422,
            "roleRef",
        ),
    ]
}

fn requests() -> Vec<Case> {
    let content = |name, content, code| Case { name, content, ..post(name, MAPS, &map("x"), code, "") };
    vec![
        get("unknown resource", "/api/v1/namespaces/bad-input/widgets", 404, ""),
        get("unknown group", "/apis/no.such.group/v1/things", 404, ""),
        get("unknown subresource", &format!("{PODS}/p/nonsense"), 404, ""),
        get("encoded traversal", "/api/v1/namespaces/bad-input/configmaps/..%2f..%2fsecrets", 404, ""),
        get("encoded NUL", "/api/v1/namespaces/bad-input/configmaps/a%00b", 404, ""),
        get("bad label selector", &format!("{MAPS}?labelSelector=a%20b"), 400, "unable to parse"),
        get("bad set selector", &format!("{MAPS}?labelSelector=a+in+(b"), 400, ""),
        get("bad field selector", &format!("{MAPS}?fieldSelector=nonsense"), 400, ""),
        get(
            "unknown field label",
            &format!("{MAPS}?fieldSelector=spec.nonsense%3Dx"),
            400,
            "field label not supported",
        ),
        get("bad resourceVersion", &format!("{MAPS}?resourceVersion=abc"), 400, ""),
        get("negative resourceVersion", &format!("{MAPS}?resourceVersion=-1"), 400, ""),
        get("resourceVersionMatch alone", &format!("{MAPS}?resourceVersionMatch=Exact"), 422, "resourceVersionMatch"),
        get("bad limit", &format!("{MAPS}?limit=many"), 400, ""),
        get("bad continue", &format!("{MAPS}?limit=1&continue=%21%21"), 400, "continue"),
        get("bad watch resourceVersion", &format!("{MAPS}?watch=1&resourceVersion=x"), 400, ""),
        get("bad timeout", &format!("{MAPS}?watch=1&timeoutSeconds=soon"), 400, ""),
        get("not there", &format!("{MAPS}/nothing"), 404, "not found"),
        post("bad dryRun", &format!("{MAPS}?dryRun=maybe"), &map("x"), 422, "dryRun"),
        post("bad fieldValidation", &format!("{MAPS}?fieldValidation=Maybe"), &map("x"), 422, "fieldValidation"),
        post("post to an object", &format!("{MAPS}/x"), &map("x"), 405, ""),
        content("plain text", "text/plain", 415),
        content("no such content type", "application/x-nonsense", 415),
        content("JSON that claims to be protobuf", "application/vnd.kubernetes.protobuf", 400),
        content("CBOR", "application/cbor", 415),
        patch("server-side apply", "application/apply-patch+yaml", "{}", 415, "server-side"),
        patch("unknown patch type", JSON, "{}", 415, ""),
        patch("JSON patch that is no list", "application/json-patch+json", "{}", 400, ""),
        patch(
            "JSON patch to nowhere",
            "application/json-patch+json",
            r#"[{"op":"replace","path":"/no/where","value":1}]"#,
            422,
            "",
        ),
        patch(
            "failed test of a JSON patch",
            "application/json-patch+json",
            r#"[{"op":"test","path":"/data/a","value":"z"}]"#,
            422,
            "",
        ),
        patch("merge patch that is no object", "application/merge-patch+json", "[]", 400, ""),
        patch("merge patch to a wrong type", "application/merge-patch+json", r#"{"data":{"a":{"b":1}}}"#, 400, ""),
        patch("patch of the name", "application/merge-patch+json", r#"{"metadata":{"name":"other"}}"#, 400, "name"),
        patch("patch of the uid", "application/merge-patch+json", r#"{"metadata":{"uid":"other"}}"#, 409, ""),
        patch(
            "patch with an old resourceVersion",
            "application/merge-patch+json",
            r#"{"metadata":{"resourceVersion":"1"},"data":{"a":"x"}}"#,
            409,
            "modified",
        ),
    ]
}

async fn send(api: &Api, case: &Case) -> Result<()> {
    let mut request = api.request(case.method.clone(), &case.path);
    if !case.content.is_empty() {
        request = request.header("content-type", case.content).body(case.body.clone());
    }
    let answer = api.send(request).await.with_context(|| case.name.to_string())?;
    let status = answer.json();
    let shown: String = answer.text.chars().take(600).collect();
    ensure!(
        answer.status.as_u16() == case.code,
        "{}: expected {}, got {}: {shown}",
        case.name,
        case.code,
        answer.status
    );
    ensure!(status["kind"] == "Status" && status["status"] == "Failure", "{}: no Status: {shown}", case.name);
    ensure!(status["code"] == case.code, "{}: code in the body: {shown}", case.name);
    ensure!(status["reason"].as_str().is_some_and(|r| !r.is_empty()), "{}: no reason: {shown}", case.name);
    ensure!(status["message"].as_str().is_some_and(|m| !m.is_empty()), "{}: no message: {shown}", case.name);
    ensure!(status.to_string().contains(case.says), "{}: does not say {:?}: {shown}", case.name, case.says);
    Ok(())
}

async fn malformed_requests(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let api = cluster.api()?;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "bad-input"}});
    api.post("/api/v1/namespaces", &namespace).await?.ok()?;
    api.post(MAPS, &map("victim")).await?.ok()?;
    let names = || async {
        let mut all = Vec::new();
        for path in [
            MAPS,
            PODS,
            DEPLOYMENTS,
            "/api/v1/namespaces/bad-input/services",
            "/apis/rbac.authorization.k8s.io/v1/namespaces/bad-input/rolebindings",
        ] {
            for item in api.get(path).await?.ok()?["items"].as_array().cloned().unwrap_or_default() {
                let meta = &item["metadata"];
                all.push(format!(
                    "{} {}",
                    meta["name"],
                    if path == MAPS { &meta["resourceVersion"] } else { &Value::Null }
                ));
            }
        }
        anyhow::Ok(all)
    };
    // The namespace's own objects (root CA) come from controllers; wait for them, so that they do not count as written.
    scaleup_tests::eventually("kube-root-ca.crt", || async {
        Ok(api.get(&format!("{MAPS}/kube-root-ca.crt")).await?.status.is_success().then_some(()))
    })
    .await?;
    let before = names().await?;
    let cases: Vec<Case> = [bodies(), objects(), requests()].into_iter().flatten().collect();
    ensure!(cases.len() >= 60, "{} cases", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        if let Err(e) = send(&api, case).await {
            wrong.push(format!("{e:#}"));
        }
    }
    ensure!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    let after = names().await?;
    ensure!(before == after, "something was written: {before:?} {after:?}");
    ensure!(!cluster.log().contains("panicked"), "a panic is in the log");
    Ok(())
}

/// Requests that no HTTP client would send, byte by byte over plain TLS.
async fn malformed_heads(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let api = cluster.anonymous()?;
    for (name, path) in [
        ("very long path", format!("/api/v1/{}", "x".repeat(20_000))),
        ("very long query", format!("/version?{}", "x".repeat(20_000))),
        ("bad percent encoding", "/api/v1/namespaces/%zz".to_owned()),
        ("double slash", "//api//v1".to_owned()),
    ] {
        let answer = api.get(&path).await.with_context(|| name.to_string())?;
        ensure!(answer.status.is_client_error() || answer.status.is_success(), "{name}: {}", answer.status);
        ensure!(name != "bad percent encoding" || answer.status.is_client_error(), "{name}: {}", answer.status);
    }
    let mut request = api.request(Method::GET, "/version");
    for i in 0..90 {
        request = request.header(format!("x-filler-{i}"), "x".repeat(200));
    }
    let answer = api.send(request).await?;
    ensure!(answer.status.is_client_error() || answer.status.is_success(), "many headers: {}", answer.status);
    ensure!(api.get("/livez").await?.status.is_success(), "the server is gone");
    Ok(())
}

async fn bad_credentials(cx: Cx) -> Result<()> {
    use base64::Engine;
    let cluster = cx.fake().await?;
    let b64 = |v: Value| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(v.to_string());
    let claims = b64(
        json!({"iss": "https://kubernetes.default.svc.cluster.local", "sub": "system:serviceaccount:kube-system:default", "aud": ["https://kubernetes.default.svc.cluster.local"], "exp": 4_000_000_000u64}),
    );
    let good = cluster.kubectl().ok("create token default").await?;
    let good = good.trim();
    let (head, rest) = good.split_once('.').context("token")?;
    let (_, signature) = rest.split_once('.').context("token")?;
    let tokens = [
        ("garbage", "garbage".to_owned()),
        ("two dots", "a.b.c".to_owned()),
        ("alg none", format!("{}.{claims}.", b64(json!({"alg": "none", "typ": "JWT"})))),
        ("alg none with the signature", format!("{}.{claims}.{signature}", b64(json!({"alg": "none"})))),
        ("foreign claims", format!("{head}.{claims}.{signature}")),
        ("symmetric", format!("{}.{claims}.{signature}", b64(json!({"alg": "HS256", "typ": "JWT"})))),
        ("unknown key", format!("{}.{claims}.{signature}", b64(json!({"alg": "ES256", "kid": "nobody"})))),
        ("cut short", good[..good.len() - 10].to_owned()),
        ("very long", "a".repeat(12_000)),
        (
            "a key id that is a path",
            format!("{}.{claims}.{signature}", b64(json!({"alg": "ES256", "kid": "../../etc/passwd"}))),
        ),
    ];
    for (name, token) in tokens {
        let answer =
            cluster.api()?.with_token(&token)?.get("/api/v1/namespaces").await.with_context(|| name.to_string())?;
        ensure!(
            answer.status == 401 || (name == "very long" && answer.status == 431),
            "{name}: {} {}",
            answer.status,
            answer.text
        );
        ensure!(answer.status != 401 || answer.reason() == "Unauthorized", "{name}: {}", answer.text);
    }
    // The same token, untouched, is known: it may do little, but it is somebody.
    let answer = cluster.api()?.with_token(good)?.get("/api/v1/namespaces").await?;
    ensure!(
        answer.status == 403 && answer.message().contains("system:serviceaccount:default:default"),
        "{}",
        answer.text
    );
    Ok(())
}
