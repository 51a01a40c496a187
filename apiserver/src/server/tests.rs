//! The router, in process, over the memory store: every verb and the rules that hold for all kinds.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use scaleup_store::memory::MemoryStore;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::user::UserInfo;

/// A server of its own for one test, and its admin.
struct Api {
    server: Arc<Server>,
    admin: InProcess,
    dir: PathBuf,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.server.stop();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

struct Answer {
    status: StatusCode,
    warnings: Vec<String>,
    body: Value,
}

impl Answer {
    fn version(&self) -> u64 {
        self.body["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
    }
    fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }
    #[track_caller]
    fn is(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        self
    }
    #[track_caller]
    fn says(self, status: u16, text: &str) -> Self {
        assert!(self.message().contains(text), "{:?} is not in {:?}", text, self.message());
        self.is(status)
    }
}

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const CONFIGMAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

impl Api {
    async fn start() -> Self {
        let dir = std::env::temp_dir().join(format!("scaleup-server-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&dir).unwrap();
        let config = ServerConfig { data_dir: dir.clone(), ..ServerConfig::default() };
        let server = ApiServer::build(config, Arc::new(MemoryStore::new())).unwrap();
        tokio::time::timeout(Duration::from_secs(20), server.ready()).await.unwrap();
        let admin = server.in_process(UserInfo::system("admin", &["system:masters"]));
        Self { server, admin, dir }
    }

    async fn raw(&self, method: Method, uri: &str, kind: &str, body: impl Into<Body>) -> Response<Body> {
        let request = Request::builder().method(method).uri(uri).header("content-type", kind);
        self.admin.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap()
    }

    async fn send(&self, method: Method, uri: &str, kind: &str, body: impl Into<Body>) -> Answer {
        let response = self.raw(method, uri, kind, body).await;
        let status = response.status();
        let warnings = response.headers().get_all("warning").iter();
        let warnings = warnings.map(|v| v.to_str().unwrap().to_owned()).collect();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let text = || Value::from(String::from_utf8_lossy(&bytes).into_owned());
        Answer { status, warnings, body: serde_json::from_slice(&bytes).unwrap_or_else(|_| text()) }
    }

    async fn get(&self, uri: &str) -> Answer {
        self.send(Method::GET, uri, JSON, Body::empty()).await
    }
    async fn post(&self, uri: &str, body: &Value) -> Answer {
        self.send(Method::POST, uri, JSON, body.to_string()).await
    }
    async fn put(&self, uri: &str, body: &Value) -> Answer {
        self.send(Method::PUT, uri, JSON, body.to_string()).await
    }
    async fn patch(&self, uri: &str, kind: &str, body: &Value) -> Answer {
        self.send(Method::PATCH, uri, kind, body.to_string()).await
    }
    async fn delete(&self, uri: &str, options: &Value) -> Answer {
        self.send(Method::DELETE, uri, JSON, if options.is_null() { String::new() } else { options.to_string() }).await
    }

    async fn watch(&self, uri: &str) -> Events {
        let response = self.raw(Method::GET, uri, JSON, Body::empty()).await;
        assert_eq!(response.status(), 200);
        Events { body: response.into_body(), buffer: Vec::new() }
    }
}

/// A watch's events.
struct Events {
    body: Body,
    buffer: Vec<u8>,
}

impl Events {
    /// The next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(Duration::from_secs(10), self.body.frame()).await.expect("an event");
            self.buffer.extend_from_slice(&frame?.unwrap().into_data().unwrap());
        }
    }
    /// Type and name of the next event.
    async fn seen(&mut self) -> (String, String) {
        let event = self.next().await.unwrap();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
    #[track_caller]
    fn pair(kind: &str, name: &str) -> (String, String) {
        (kind.to_owned(), name.to_owned())
    }
}

fn config_map(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"l": value}},
        "data": {"k": value}})
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "busybox"}]}})
}

#[tokio::test]
async fn create_get_list_update_delete() {
    let api = Api::start().await;
    let created = api.post(CONFIGMAPS, &config_map("a", "1")).await.is(201);
    let meta = &created.body["metadata"];
    assert!(meta["uid"].is_string() && meta["creationTimestamp"].is_string());
    assert_eq!(meta["namespace"], "default");
    let got = api.get(&format!("{CONFIGMAPS}/a")).await.is(200);
    assert_eq!(got.body, created.body);
    let list = api.get(CONFIGMAPS).await.is(200);
    assert_eq!(list.body["kind"], "ConfigMapList");
    assert!(list.body["items"].as_array().unwrap().contains(&created.body));
    assert!(list.version() >= created.version());

    api.post(CONFIGMAPS, &config_map("a", "1")).await.says(409, r#"configmaps "a" already exists"#);
    let mut changed = created.body.clone();
    changed["data"]["k"] = json!("2");
    let updated = api.put(&format!("{CONFIGMAPS}/a"), &changed).await.is(200);
    assert!(updated.version() > created.version());
    assert_eq!(updated.body["metadata"]["uid"], created.body["metadata"]["uid"]);
    api.put(&format!("{CONFIGMAPS}/a"), &changed).await.says(409, "the object has been modified; please apply");
    api.put(&format!("{CONFIGMAPS}/b"), &config_map("b", "1")).await.says(404, r#"configmaps "b" not found"#);

    let deleted = api.delete(&format!("{CONFIGMAPS}/a"), &Value::Null).await.is(200);
    assert_eq!((&deleted.body["kind"], &deleted.body["status"]), (&json!("Status"), &json!("Success")));
    api.get(&format!("{CONFIGMAPS}/a")).await.says(404, r#"configmaps "a" not found"#);
}

#[tokio::test]
async fn unconditional_and_no_op_updates() {
    let api = Api::start().await;
    let created = api.post(CONFIGMAPS, &config_map("a", "1")).await.is(201);
    let same = api.put(&format!("{CONFIGMAPS}/a"), &config_map("a", "1")).await.is(200);
    assert_eq!(same.version(), created.version());
    let same = api.patch(&format!("{CONFIGMAPS}/a"), MERGE, &json!({"data": {"k": "1"}})).await.is(200);
    assert_eq!(same.version(), created.version());
    let other = api.put(&format!("{CONFIGMAPS}/a"), &config_map("a", "2")).await.is(200);
    assert!(other.version() > created.version());
}

#[tokio::test]
async fn identity_mismatches() {
    let api = Api::start().await;
    let created = api.post(CONFIGMAPS, &config_map("a", "1")).await.is(201).body;
    let with = |field: &str, value: &str| {
        let mut object = created.clone();
        object["metadata"][field] = json!(value);
        object["metadata"].as_object_mut().unwrap().remove("resourceVersion");
        object
    };
    let uri = format!("{CONFIGMAPS}/a");
    api.put(&uri, &with("name", "b"))
        .await
        .says(400, "the name of the object (b) does not match the name on the URL (a)");
    api.put(&uri, &with("namespace", "x")).await.says(400, "the namespace of the object (x) does not match");
    api.put(&uri, &with("uid", "x")).await.says(409, "Precondition failed: UID in precondition: x");
    api.put(&uri, &with("creationTimestamp", "2001-01-01T00:00:00Z")).await.says(422, "field is immutable");
    let mut elsewhere = config_map("b", "1");
    elsewhere["metadata"]["namespace"] = json!("kube-system");
    api.post(CONFIGMAPS, &elsewhere).await.says(400, "does not match the namespace sent on the request");
    api.post(CONFIGMAPS, &pod("b")).await.says(400, "cannot be handled as a ConfigMap");
    let mut version = config_map("b", "1");
    version["apiVersion"] = json!("v2");
    api.post(CONFIGMAPS, &version).await.says(400, "does not match the expected API version (v1)");
    let mut numbered = config_map("b", "1");
    numbered["metadata"]["resourceVersion"] = json!("5");
    api.post(CONFIGMAPS, &numbered).await.says(400, "resourceVersion should not be set on objects to be created");
    api.post("/api/v1/configmaps", &config_map("b", "1")).await.is(405);
}

#[tokio::test]
async fn generated_names() {
    let api = Api::start().await;
    let mut object = config_map("", "1");
    object["metadata"] = json!({"generateName": "gen-"});
    let one = api.post(CONFIGMAPS, &object).await.is(201);
    let two = api.post(CONFIGMAPS, &object).await.is(201);
    let name = one.body["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("gen-") && name.len() == 9);
    assert_ne!(one.body["metadata"]["name"], two.body["metadata"]["name"]);
    object["metadata"] = json!({});
    api.post(CONFIGMAPS, &object).await.says(422, "name or generateName is required");
}

#[tokio::test]
async fn field_validation() {
    let api = Api::start().await;
    let odd = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"NAME"},"data":{"k":"1","k":"2"},"foo":{}}"#;
    let send = |name: &str, mode: &str| {
        let uri = format!("{CONFIGMAPS}?fieldValidation={mode}");
        let body = odd.replace("NAME", name);
        let api = &api;
        async move { api.send(Method::POST, &uri, JSON, body).await }
    };
    let strict = send("a", "Strict").await;
    strict.says(400, r#"strict decoding error: duplicate field "data.k", unknown field "foo""#);
    let warned = send("b", "").await.is(201);
    assert_eq!(warned.warnings, [r#"299 - "duplicate field \"data.k\"""#, r#"299 - "unknown field \"foo\"""#]);
    let ignored = send("c", "Ignore").await.is(201);
    assert_eq!((ignored.warnings.len(), &ignored.body["data"]["k"]), (0, &json!("2")));
    send("d", "Sometimes").await.is(422);
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: y\ndata:\n  k: v\n";
    let created = api.send(Method::POST, CONFIGMAPS, "application/yaml", yaml).await.is(201);
    assert_eq!(created.body["data"]["k"], "v");
    api.send(Method::POST, CONFIGMAPS, "application/vnd.kubernetes.protobuf", "k8s\0").await.is(400);
    api.send(Method::POST, CONFIGMAPS, "application/cbor", "{}").await.is(415);
    api.send(Method::POST, CONFIGMAPS, JSON, "{").await.says(400, "must be of type ConfigMap");
    api.send(Method::POST, CONFIGMAPS, JSON, "[]").await.is(400);
    api.send(Method::POST, CONFIGMAPS, JSON, vec![b' '; (3 << 20) + 1]).await.is(413);
}

#[tokio::test]
async fn dry_runs_change_nothing() {
    let api = Api::start().await;
    let answer = api.post(&format!("{CONFIGMAPS}?dryRun=All"), &config_map("a", "1")).await.is(201);
    assert!(answer.body["metadata"]["uid"].is_string());
    api.get(&format!("{CONFIGMAPS}/a")).await.is(404);
    api.post(&format!("{CONFIGMAPS}?dryRun=Yes"), &config_map("a", "1")).await.is(422);
    let created = api.post(CONFIGMAPS, &config_map("a", "1")).await.is(201);
    let uri = format!("{CONFIGMAPS}/a?dryRun=All");
    let answer = api.put(&uri, &config_map("a", "2")).await.is(200);
    assert_eq!(answer.body["data"]["k"], "2");
    api.delete(&uri, &Value::Null).await.is(200);
    assert_eq!(api.get(&format!("{CONFIGMAPS}/a")).await.body, created.body);
    api.post(&format!("{CONFIGMAPS}?dryRun=All"), &config_map("a", "1")).await.is(409);
}

#[tokio::test]
async fn patches() {
    let api = Api::start().await;
    api.post(CONFIGMAPS, &config_map("a", "1")).await.is(201);
    let uri = format!("{CONFIGMAPS}/a");
    let merged = api.patch(&uri, MERGE, &json!({"data": {"k": null, "n": "2"}})).await.is(200);
    assert_eq!(merged.body["data"], json!({"n": "2"}));
    let ops = json!([{"op": "replace", "path": "/data/n", "value": "3"}]);
    let patched = api.patch(&uri, "application/json-patch+json", &ops).await.is(200);
    assert_eq!(patched.body["data"]["n"], "3");
    let strategic = "application/strategic-merge-patch+json";
    let patched = api.patch(&uri, strategic, &json!({"metadata": {"labels": {"x": "y"}}})).await.is(200);
    assert_eq!(patched.body["metadata"]["labels"], json!({"l": "1", "x": "y"}));
    api.patch(&uri, "application/apply-patch+yaml", &json!({})).await.says(415, "--server-side=false");
    api.patch(&uri, "application/json", &json!({})).await.says(415, "application/merge-patch+json");
    api.patch(&uri, MERGE, &json!({"metadata": {"name": "b"}})).await.is(400);
    api.patch(&uri, MERGE, &json!({"metadata": {"resourceVersion": "1"}})).await.is(409);
    api.patch(&format!("{uri}?fieldValidation=Strict"), MERGE, &json!({"foo": 1}))
        .await
        .says(400, "unknown field \"foo\"");
    api.patch(&format!("{CONFIGMAPS}/none"), MERGE, &json!({})).await.is(404);
}

#[tokio::test]
async fn status_is_a_part_of_its_own() {
    let api = Api::start().await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}}, "status": {"replicas": 9}});
    let created = api.post(deployments, &deployment).await.is(201);
    assert_eq!(created.body["metadata"]["generation"], 1);
    let uri = format!("{deployments}/d");
    let patched = api
        .patch(&format!("{uri}/status"), MERGE, &json!({"status": {"replicas": 2}, "spec": {"replicas": 7}}))
        .await
        .is(200);
    assert_eq!((&patched.body["status"]["replicas"], &patched.body["spec"]["replicas"]), (&json!(2), &json!(1)));
    assert_eq!(patched.body["metadata"]["generation"], 1);
    let patched = api.patch(&uri, MERGE, &json!({"status": {"replicas": 5}, "spec": {"replicas": 3}})).await.is(200);
    assert_eq!((&patched.body["status"]["replicas"], &patched.body["spec"]["replicas"]), (&json!(2), &json!(3)));
    assert_eq!(patched.body["metadata"]["generation"], 2);
    let labelled = api.patch(&uri, MERGE, &json!({"metadata": {"labels": {"x": "y"}}})).await.is(200);
    assert_eq!(labelled.body["metadata"]["generation"], 2);

    let scale = api.get(&format!("{uri}/scale")).await.is(200);
    assert_eq!((&scale.body["spec"]["replicas"], &scale.body["status"]["selector"]), (&json!(3), &json!("a=b")));
    let mut wanted = scale.body.clone();
    wanted["spec"]["replicas"] = json!(4);
    api.put(&format!("{uri}/scale"), &wanted).await.is(200);
    api.put(&format!("{uri}/scale"), &wanted).await.is(409);
    let scaled = api.patch(&format!("{uri}/scale"), MERGE, &json!({"spec": {"replicas": 5}})).await.is(200);
    assert_eq!(scaled.body["spec"]["replicas"], 5);
    assert_eq!(api.get(&uri).await.body["metadata"]["generation"], 4);
    api.patch(&format!("{uri}/scale"), MERGE, &json!({"spec": {"replicas": -1}})).await.is(422);
    api.get(&format!("{uri}/nothing")).await.is(404);
}

#[tokio::test]
async fn lists_select_and_continue() {
    let api = Api::start().await;
    for (i, name) in ["a", "b", "c", "d", "e"].iter().enumerate() {
        api.post(CONFIGMAPS, &config_map(name, if i % 2 == 0 { "even" } else { "odd" })).await.is(201);
    }
    let names = |answer: &Answer| -> Vec<String> {
        let items = answer.body["items"].as_array().unwrap().iter();
        items.map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()).filter(|n| n.len() == 1).collect()
    };
    let odd = api.get(&format!("{CONFIGMAPS}?labelSelector=l%3Dodd")).await.is(200);
    assert_eq!(names(&odd), ["b", "d"]);
    let one = api.get(&format!("{CONFIGMAPS}?fieldSelector=metadata.name%3Dc")).await.is(200);
    assert_eq!(names(&one), ["c"]);
    api.get(&format!("{CONFIGMAPS}?fieldSelector=spec.x%3Dc")).await.says(400, "field label not supported: spec.x");

    // Pages show the state of the first page, even after changes.
    let selector = "labelSelector=l";
    let first = api.get(&format!("{CONFIGMAPS}?{selector}&limit=2")).await.is(200);
    assert_eq!(names(&first), ["a", "b"]);
    assert!(first.body["metadata"]["remainingItemCount"].is_null());
    api.delete(&format!("{CONFIGMAPS}/c"), &Value::Null).await.is(200);
    api.post(CONFIGMAPS, &config_map("f", "odd")).await.is(201);
    let token = first.body["metadata"]["continue"].as_str().unwrap();
    let second = api.get(&format!("{CONFIGMAPS}?{selector}&limit=2&continue={token}")).await.is(200);
    assert_eq!((names(&second), second.version()), (vec!["c".to_owned(), "d".to_owned()], first.version()));
    let token = second.body["metadata"]["continue"].as_str().unwrap().to_owned();
    let third = api.get(&format!("{CONFIGMAPS}?{selector}&limit=2&continue={token}")).await.is(200);
    assert_eq!(names(&third), ["e"]);
    assert!(third.body["metadata"]["continue"].is_null());

    let now = api.get(CONFIGMAPS).await.version();
    api.server.store.compact(now).await.unwrap();
    api.get(&format!("{CONFIGMAPS}?{selector}&limit=2&continue={token}")).await.says(410, "must start a new list");
    api.get(&format!("{CONFIGMAPS}?resourceVersion=1&resourceVersionMatch=Exact")).await.is(410);
    let total = api.get(&format!("{CONFIGMAPS}?limit=1")).await.is(200);
    assert!(total.body["metadata"]["remainingItemCount"].as_u64().unwrap() >= 4);
    api.get(&format!("{CONFIGMAPS}?continue=bad")).await.says(400, "invalid continue token");
}

#[tokio::test]
async fn resource_versions_of_lists() {
    let api = Api::start().await;
    let a = api.post(CONFIGMAPS, &config_map("a", "1")).await.is(201).version();
    api.post(CONFIGMAPS, &config_map("b", "1")).await.is(201);
    let count = |answer: Answer| answer.is(200).body["items"].as_array().unwrap().len();
    let exact =
        count(api.get(&format!("{CONFIGMAPS}?labelSelector=l&resourceVersion={a}&resourceVersionMatch=Exact")).await);
    let newer = count(
        api.get(&format!("{CONFIGMAPS}?labelSelector=l&resourceVersion={a}&resourceVersionMatch=NotOlderThan")).await,
    );
    let any = count(api.get(&format!("{CONFIGMAPS}?labelSelector=l&resourceVersion=0")).await);
    assert_eq!((exact, newer, any), (1, 2, 2));
    let future = api.get(&format!("{CONFIGMAPS}?resourceVersion=99999")).await;
    assert_eq!(future.body["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    future.says(504, "Too large resource version: 99999");
    api.get(&format!("{CONFIGMAPS}?resourceVersion=abc")).await.is(400);
}

#[tokio::test]
async fn watches() {
    let api = Api::start().await;
    let a = api.post(CONFIGMAPS, &config_map("a", "1")).await.is(201).version();
    let mut from = api.watch(&format!("{CONFIGMAPS}?watch=1&resourceVersion={a}")).await;
    let mut ones = api.watch(&format!("{CONFIGMAPS}?watch=1&labelSelector=l%3D1")).await;
    let mut single =
        api.watch(&format!("{CONFIGMAPS}?watch=1&fieldSelector=metadata.name%3Db&resourceVersion={a}")).await;
    assert_eq!(ones.seen().await, Events::pair("ADDED", "a"));
    api.post(CONFIGMAPS, &config_map("b", "2")).await.is(201);
    api.put(&format!("{CONFIGMAPS}/b"), &config_map("b", "1")).await.is(200);
    api.put(&format!("{CONFIGMAPS}/a"), &config_map("a", "2")).await.is(200);
    let gone = api.delete(&format!("{CONFIGMAPS}/b"), &Value::Null).await;
    assert_eq!(gone.status, 200);
    for expected in [("ADDED", "b"), ("MODIFIED", "b"), ("MODIFIED", "a"), ("DELETED", "b")] {
        assert_eq!(from.seen().await, Events::pair(expected.0, expected.1));
    }
    for expected in [("ADDED", "b"), ("DELETED", "a"), ("DELETED", "b")] {
        assert_eq!(ones.seen().await, Events::pair(expected.0, expected.1));
    }
    for expected in [("ADDED", "b"), ("MODIFIED", "b"), ("DELETED", "b")] {
        assert_eq!(single.seen().await, Events::pair(expected.0, expected.1));
    }
    api.server.stop();
    assert_eq!(from.next().await, None);
}

#[tokio::test]
async fn watch_bookmarks_and_ends() {
    let api = Api::start().await;
    api.post(CONFIGMAPS, &config_map("a", "1")).await.is(201);
    let initial =
        "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&labelSelector=l";
    let mut events = api.watch(&format!("{CONFIGMAPS}?{initial}&timeoutSeconds=1")).await;
    assert_eq!(events.seen().await, Events::pair("ADDED", "a"));
    let bookmark = events.next().await.unwrap();
    assert_eq!((&bookmark["type"], &bookmark["object"]["kind"]), (&json!("BOOKMARK"), &json!("ConfigMap")));
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let last = events.next().await.unwrap();
    assert_eq!(last["type"], "BOOKMARK");
    assert_eq!(events.next().await, None);

    let mut old = api.watch(&format!("{CONFIGMAPS}?watch=1&resourceVersion=99999")).await;
    let error = old.next().await.unwrap();
    assert_eq!((&error["type"], &error["object"]["code"]), (&json!("ERROR"), &json!(504)));
    assert_eq!(old.next().await, None);
    api.get(&format!("{CONFIGMAPS}?watch=1&resourceVersionMatch=Exact")).await.is(422);
}

#[tokio::test]
async fn pods_are_deleted_with_grace() {
    let api = Api::start().await;
    api.post("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "default"}})).await;
    let created = api.post(PODS, &pod("p")).await.is(201);
    assert_eq!(created.body["status"]["phase"], "Pending");
    // Not on a node yet: nothing to wait for.
    api.delete(&format!("{PODS}/p"), &Value::Null).await.is(200);
    api.get(&format!("{PODS}/p")).await.is(404);

    let mut bound = pod("q");
    bound["spec"]["nodeName"] = json!("n1");
    api.post(PODS, &bound).await.is(201);
    let uri = format!("{PODS}/q");
    let marked = api.delete(&uri, &Value::Null).await.is(200);
    assert_eq!(marked.body["metadata"]["deletionGracePeriodSeconds"], 30);
    assert!(marked.body["metadata"]["deletionTimestamp"].is_string());
    let longer = api.delete(&uri, &json!({"gracePeriodSeconds": 60})).await.is(200);
    assert_eq!(longer.body["metadata"]["deletionGracePeriodSeconds"], 30);
    let shorter = api.delete(&uri, &json!({"gracePeriodSeconds": 5})).await.is(200);
    assert_eq!(shorter.body["metadata"]["deletionGracePeriodSeconds"], 5);
    api.delete(&uri, &json!({"gracePeriodSeconds": 0})).await.is(200);
    api.get(&uri).await.is(404);
}

#[tokio::test]
async fn finalizers_hold_objects() {
    let api = Api::start().await;
    let mut held = config_map("a", "1");
    held["metadata"]["finalizers"] = json!(["x.io/hold"]);
    api.post(CONFIGMAPS, &held).await.is(201);
    let uri = format!("{CONFIGMAPS}/a");
    let marked = api.delete(&uri, &json!({"propagationPolicy": "Foreground"})).await.is(200);
    assert_eq!(marked.body["metadata"]["finalizers"], json!(["x.io/hold", "foregroundDeletion"]));
    let again = api.delete(&uri, &Value::Null).await.is(200);
    assert_eq!(again.version(), marked.version());
    api.patch(&uri, MERGE, &json!({"metadata": {"finalizers": ["y.io/new"]}})).await.says(422, "no new finalizers");
    api.patch(&uri, MERGE, &json!({"metadata": {"finalizers": ["foregroundDeletion"]}})).await.is(200);
    let mut events =
        api.watch(&format!("{CONFIGMAPS}?watch=1&fieldSelector=metadata.name%3Da&resourceVersion=0")).await;
    assert_eq!(events.seen().await, Events::pair("ADDED", "a"));
    api.patch(&uri, MERGE, &json!({"metadata": {"finalizers": null}})).await.is(200);
    assert_eq!(events.seen().await, Events::pair("DELETED", "a"));
    api.get(&uri).await.is(404);
}

#[tokio::test]
async fn delete_preconditions_and_options() {
    let api = Api::start().await;
    let created = api.post(CONFIGMAPS, &config_map("a", "1")).await.is(201);
    let uri = format!("{CONFIGMAPS}/a");
    api.delete(&uri, &json!({"preconditions": {"uid": "x"}})).await.says(409, "UID in precondition: x");
    api.delete(&uri, &json!({"preconditions": {"resourceVersion": "1"}}))
        .await
        .says(409, "ResourceVersion in precondition");
    api.delete(&uri, &json!({"propagationPolicy": "Maybe"})).await.is(422);
    api.delete(&uri, &json!({"kind": "Pod"})).await.is(400);
    api.send(Method::DELETE, &uri, JSON, "[1]").await.is(400);
    let uid = created.body["metadata"]["uid"].clone();
    api.delete(&uri, &json!({"preconditions": {"uid": uid}})).await.is(200);
    api.delete(&uri, &Value::Null).await.is(404);
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let api = Api::start().await;
    for (name, label) in [("a", "1"), ("b", "1"), ("c", "2")] {
        api.post(CONFIGMAPS, &config_map(name, label)).await.is(201);
    }
    let deleted = api.delete(&format!("{CONFIGMAPS}?labelSelector=l%3D1"), &Value::Null).await.is(200);
    assert_eq!(deleted.body["items"].as_array().unwrap().len(), 2);
    let left = api.get(&format!("{CONFIGMAPS}?labelSelector=l")).await;
    assert_eq!(left.body["items"][0]["metadata"]["name"], "c");
    assert_eq!(left.body["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn namespaces_end_through_finalize() {
    let api = Api::start().await;
    let created = api.post("/api/v1/namespaces", &json!({"metadata": {"name": "n"}})).await.is(201);
    assert_eq!(created.body["spec"]["finalizers"], json!(["kubernetes"]));
    let marked = api.delete("/api/v1/namespaces/n", &Value::Null).await.is(200);
    assert_eq!(marked.body["status"]["phase"], "Terminating");
    let mut done = marked.body.clone();
    done["spec"]["finalizers"] = json!([]);
    api.put("/api/v1/namespaces/n/finalize", &done).await.is(200);
    api.get("/api/v1/namespaces/n").await.is(404);
}

#[tokio::test]
async fn aliases_share_storage() {
    let api = Api::start().await;
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "reason": "R", "message": "m",
        "type": "Normal", "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "source": {"component": "c"}, "firstTimestamp": "2024-01-01T00:00:00Z", "lastTimestamp": "2024-01-01T00:00:00Z"});
    api.post("/api/v1/namespaces/default/events", &event).await.is(201);
    let other = api.get("/apis/events.k8s.io/v1/namespaces/default/events/e").await.is(200);
    assert_eq!(
        (&other.body["apiVersion"], &other.body["regarding"]["name"]),
        (&json!("events.k8s.io/v1"), &json!("p"))
    );
    assert!(other.body["metadata"]["resourceVersion"].is_string());
    let list = api.get("/apis/events.k8s.io/v1/events?fieldSelector=regarding.name%3Dp").await.is(200);
    assert_eq!(list.body["items"][0]["note"], "m");
}

#[tokio::test]
async fn views_of_objects() {
    let api = Api::start().await;
    api.post(CONFIGMAPS, &config_map("a", "1")).await.is(201);
    let as_kind = |uri: String, accept: &'static str| {
        let request = Request::builder().uri(uri).header("accept", accept).body(Body::empty()).unwrap();
        let service = api.admin.clone();
        async move {
            let response = service.oneshot(request).await.unwrap();
            let status = response.status();
            (status, response.into_body().collect().await.unwrap().to_bytes())
        }
    };
    let uri = format!("{CONFIGMAPS}?fieldSelector=metadata.name%3Da");
    let (_, table) = as_kind(uri.clone(), "application/json;as=Table;v=v1;g=meta.k8s.io").await;
    let table: Value = serde_json::from_slice(&table).unwrap();
    assert_eq!((&table["kind"], &table["rows"][0]["cells"][0]), (&json!("Table"), &json!("a")));
    let (_, partial) = as_kind(uri.clone(), "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io").await;
    let partial: Value = serde_json::from_slice(&partial).unwrap();
    assert_eq!(partial["items"][0]["metadata"]["name"], "a");
    assert!(partial["items"][0]["data"].is_null());
    let (_, yaml) = as_kind(format!("{CONFIGMAPS}/a"), "application/yaml").await;
    assert!(std::str::from_utf8(&yaml).unwrap().contains("kind: ConfigMap"));
    let (_, pretty) = as_kind(format!("{CONFIGMAPS}/a?pretty=true"), "application/json").await;
    assert!(pretty.starts_with(b"{\n"));
    let (status, _) = as_kind(format!("{CONFIGMAPS}/a"), "application/vnd.kubernetes.protobuf").await;
    assert_eq!(status, 406);
}

#[tokio::test]
async fn bootstrap_made_a_cluster() {
    let api = Api::start().await;
    for path in [
        "/api/v1/namespaces/kube-system",
        "/api/v1/namespaces/kube-node-lease",
        "/api/v1/namespaces/default/services/kubernetes",
        "/apis/scheduling.k8s.io/v1/priorityclasses/system-node-critical",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/cluster-admin",
    ] {
        api.get(path).await.is(200);
    }
    let service = api.get("/api/v1/namespaces/default/services/kubernetes").await;
    assert_eq!(service.body["spec"]["clusterIP"], "10.96.0.1");
    // A second round changes nothing.
    let before = api.get("/api/v1/namespaces").await.version();
    bootstrap::run_once(&api.server).await.unwrap();
    assert_eq!(api.get("/api/v1/namespaces").await.version(), before);
}

#[tokio::test]
async fn health_discovery_and_unknown_paths() {
    let api = Api::start().await;
    assert_eq!(api.get("/readyz").await.is(200).body, json!("ok"));
    assert!(api.get("/readyz?verbose").await.is(200).body.as_str().unwrap().contains("[+]informer-sync ok"));
    api.get("/livez/ping").await.is(200);
    api.get("/livez/nothing").await.is(404);
    assert_eq!(api.get("/version").await.is(200).body["major"], "1");
    api.get("/api").await.is(200);
    api.get("/apis/apps/v1").await.is(200);
    assert!(api.get("/metrics").await.is(200).body.as_str().unwrap().contains("apiserver_request_total"));
    for path in [
        "/nothing",
        "/apis/none.io",
        "/apis/none.io/v1/things",
        "/api/v1/things",
        "/api/v1/namespaces/..%2f/pods",
        "/api/v1/namespaces/%2e%2e/pods",
        "/api/v1//pods",
        "/api/v1/pods/a",
        "/api/v1/namespaces/a/nodes",
        "/api/v1/nodes/%00",
    ] {
        api.get(path).await.says(404, "the server could not find the requested resource");
    }
    api.send(Method::OPTIONS, CONFIGMAPS, JSON, Body::empty()).await.is(405);
    api.post("/version", &json!({})).await.is(405);
}

#[tokio::test]
async fn strangers_see_health_and_version_only() {
    let api = Api::start().await;
    let ask = |path: &str| {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        api.server.router().oneshot(request)
    };
    for path in ["/livez", "/readyz", "/healthz", "/version"] {
        assert_eq!(ask(path).await.unwrap().status(), 200, "{path}");
    }
    for path in ["/metrics", "/api", "/apis", "/openapi/v2", CONFIGMAPS, "/nothing", "/livezz"] {
        assert_eq!(ask(path).await.unwrap().status(), 403, "{path}");
    }
}

#[tokio::test]
async fn writes_of_many_clients_all_count() {
    let api = Arc::new(Api::start().await);
    api.post(CONFIGMAPS, &config_map("a", "0")).await.is(201);
    let writers = (0..8).map(|i| {
        let api = api.clone();
        async move {
            let patch = json!({"data": {format!("k{i}"): "v"}});
            api.patch(&format!("{CONFIGMAPS}/a"), MERGE, &patch).await.is(200);
        }
    });
    futures::stream::iter(writers).buffer_unordered(8).collect::<Vec<()>>().await;
    assert_eq!(api.get(&format!("{CONFIGMAPS}/a")).await.body["data"].as_object().unwrap().len(), 9);
}
