//! What kubectl 1.32 sends in protobuf has the effect of the JSON of the same command. `kubectl.json` holds both: bodies as they
//! were on the wire, and what `--dry-run=client -o json` prints (written by hand for commands without it).

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::*;
use crate::schema::protobuf::tests::{body, bytes, int, message};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const SERVICE_ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const NODE_PORT: &str = "/spec/ports/0/nodePort";

#[derive(Deserialize)]
struct Sent {
    command: String,
    path: String,
    protobuf: String,
    json: Value,
}

/// Takes out what differs from one request to the next.
fn forget_the_moment(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for field in ["uid", "creationTimestamp", "clusterIP", "clusterIPs", "token", "expirationTimestamp"] {
                map.remove(field);
            }
            map.values_mut().for_each(forget_the_moment);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_the_moment),
        _ => {}
    }
}

#[tokio::test]
async fn kubectls_bodies_mean_the_same_in_protobuf_and_json() {
    let api = Api::start().await;
    api.post(SERVICE_ACCOUNTS, &json!({"metadata": {"name": "sa"}})).await.is(201);
    let sent: Vec<Sent> = serde_json::from_str(include_str!("kubectl.json")).unwrap();
    for Sent { command, path, protobuf, json } in sent {
        // Here a service account of this name is needed for its token.
        let path = if path == SERVICE_ACCOUNTS { path.replace("default", "kube-system") } else { path };
        let wanted = json.pointer(NODE_PORT).cloned();
        let uri = format!("{path}?dryRun=All&fieldValidation=Strict");
        let mut one = api.send(Method::POST, &uri, PROTOBUF, BASE64_STANDARD.decode(protobuf).unwrap()).await;
        assert_eq!((one.status.as_u16(), one.warnings.len()), (201, 0), "{command}: {}", one.body);
        let mut other = api.post(&uri, &json).await.is(201);
        for answer in [&mut one.body, &mut other.body] {
            forget_the_moment(answer);
            let port = answer.pointer_mut(NODE_PORT).map(Value::take);
            assert!(wanted.is_none() || port == wanted, "{command}: {port:?}");
        }
        assert_eq!(one.body, other.body, "{command}");
    }
}

#[tokio::test]
async fn newer_fields_are_unknown_fields_and_unknown_numbers_are_errors() {
    let api = Api::start().await;
    api.post(SERVICE_ACCOUNTS, &json!({"metadata": {"name": "default"}})).await.is(201);
    let pod = |more: Vec<u8>| {
        let container = message(2, &[bytes(1, "c"), bytes(2, "busybox")]);
        body("v1", "Pod", &[message(1, &[bytes(1, "p")]), message(2, &[container, more])])
    };
    let post = |mode: &str, body: Vec<u8>| {
        let (api, uri) = (&api, format!("{PODS}?dryRun=All&fieldValidation={mode}"));
        async move { api.send(Method::POST, &uri, PROTOBUF, body).await }
    };
    let newer = || pod(bytes(41, "elsewhere"));
    post("Strict", newer()).await.says(400, r#"unknown field "spec.hostnameOverride""#);
    let warned = post("Warn", newer()).await.is(201);
    assert_eq!(warned.warnings, [r#"299 - "unknown field \"spec.hostnameOverride\"""#]);
    assert_eq!(post("Ignore", newer()).await.is(201).warnings.len(), 0);
    post("Ignore", pod(bytes(999, "x"))).await.says(400, "spec: io.k8s.api.core.v1.PodSpec has no field number 999");
    post("Ignore", pod(int(1, 5))).await.says(400, "spec.volumes[0]: the protobuf wire type is wrong");
    let map = body("v1", "ConfigMap", &[message(1, &[bytes(1, "a")])]);
    post("Ignore", map).await.says(400, "ConfigMap in version \"v1\" cannot be handled as a Pod");
    post("Ignore", b"{}".to_vec()).await.says(400, "must be of type Pod");
}

#[tokio::test]
async fn updates_and_delete_options() {
    let api = Api::start().await;
    api.post(CONFIGMAPS, &config_map("a", "1")).await.is(201);
    let uri = format!("{CONFIGMAPS}/a");
    let data = |value: &str| message(2, &[bytes(1, "k"), bytes(2, value)]);
    let changed = body("v1", "ConfigMap", &[message(1, &[bytes(1, "a"), bytes(2, "")]), data("2")]);
    // Parameters of the media type and its case do not matter.
    let kind = "application/vnd.Kubernetes.protobuf; charset=utf-8";
    let updated = api.send(Method::PUT, &uri, kind, changed).await.is(200);
    assert_eq!((&updated.body["data"], &updated.body["metadata"]["labels"]), (&json!({"k": "2"}), &Value::Null));
    let options = |uid: &str| {
        let fields = [int(1, 0), message(2, &[bytes(1, uid)]), bytes(4, "Orphan")];
        body("apps/v1", "DeleteOptions", &fields)
    };
    api.send(Method::DELETE, &uri, PROTOBUF, options("other")).await.says(409, "UID in precondition: other");
    let uid = updated.body["metadata"]["uid"].as_str().unwrap();
    api.send(Method::DELETE, &uri, PROTOBUF, body("v1", "Pod", &[])).await.is(400);
    api.send(Method::DELETE, &uri, PROTOBUF, options(uid)).await.is(200);
    // The garbage collector takes the finalizer away.
    let left = api.get(&uri).await.is(200);
    assert_eq!(left.body["metadata"]["finalizers"], json!(["orphan"]));
}
