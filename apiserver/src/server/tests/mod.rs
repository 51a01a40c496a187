//! The router, in process, over the memory store: every verb and the rules that hold for all kinds.

mod deletion;
mod protobuf;
mod reads;
mod surface;
mod writes;

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
