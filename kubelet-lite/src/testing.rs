//! What tests share: an image without a registry.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::runtime::docker::DEFAULT_SOCKET;

/// Imports a static busybox as an image, once; `None` where no Docker answers or no busybox is installed (then the tests that
/// need them have nothing to say).
pub async fn docker_image() -> Option<String> {
    const NAME: &str = "scaleup-test/busybox:1";
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| Path::new(p).exists())?;
    if !Path::new(DEFAULT_SOCKET).exists() {
        return None;
    }
    tokio::task::spawn_blocking(move || {
        let quiet = |command: &mut Command| {
            command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
        };
        if quiet(Command::new("docker").args(["image", "inspect", NAME])) {
            return Some(NAME.to_owned());
        }
        let dir = tempfile::tempdir().ok()?;
        let bin = dir.path().join("bin");
        std::fs::create_dir_all(&bin).ok()?;
        std::fs::create_dir_all(dir.path().join("tmp")).ok()?;
        std::fs::copy(busybox, bin.join("busybox")).ok()?;
        std::os::unix::fs::symlink("busybox", bin.join("sh")).ok()?;
        for applet in ["sleep", "cat", "echo", "wget", "httpd", "nc", "stat", "hostname", "touch", "env", "id"] {
            std::os::unix::fs::symlink("busybox", bin.join(applet)).ok()?;
        }
        let mut tar =
            Command::new("tar").arg("-C").arg(dir.path()).args(["-c", "."]).stdout(Stdio::piped()).spawn().ok()?;
        let done =
            quiet(Command::new("docker").args(["import", "-c", "CMD [\"sh\"]", "-", NAME]).stdin(tar.stdout.take()?));
        tar.wait().ok()?;
        done.then(|| NAME.to_owned())
    })
    .await
    .ok()?
}

/// An API server of one map: objects by path, merge patches, preconditions. Enough for the agent's writes.
pub mod api {
    use std::collections::BTreeMap;
    use std::convert::Infallible;
    use std::sync::Arc;

    use bytes::Bytes;
    use http::{Method, Request, Response};
    use http_body_util::{BodyExt, Full};
    use kube::client::Body;
    use parking_lot::Mutex;
    use serde_json::{Value, json};

    /// The map; clones share it.
    #[derive(Clone, Default)]
    pub struct Api {
        objects: Arc<Mutex<BTreeMap<String, Value>>>,
        revision: Arc<std::sync::atomic::AtomicU64>,
    }

    impl Api {
        /// A client of it.
        pub fn client(&self) -> kube::Client {
            let api = self.clone();
            let service = tower::service_fn(move |request: Request<Body>| {
                let api = api.clone();
                async move { Ok::<_, Infallible>(api.answer(request).await) }
            });
            kube::Client::new(service, "default")
        }

        /// Stores an object at `/api/v1/namespaces/…`.
        pub fn put(&self, path: &str, mut object: Value) -> Value {
            let revision = 1 + self.revision.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            object["metadata"]["resourceVersion"] = json!(revision.to_string());
            self.objects.lock().insert(path.to_owned(), object.clone());
            object
        }

        /// What is stored there.
        pub fn get(&self, path: &str) -> Option<Value> {
            self.objects.lock().get(path).cloned()
        }

        /// Messages of all events with that reason.
        pub fn events(&self, reason: &str) -> Vec<String> {
            let objects = self.objects.lock();
            let events = objects.iter().filter(|(path, _)| path.contains("/events/")).map(|(_, event)| event);
            let text = |event: &Value| event["message"].as_str().unwrap_or_default().to_owned();
            events.filter(|e| e["reason"] == reason).map(text).collect()
        }

        async fn answer(&self, request: Request<Body>) -> Response<Full<Bytes>> {
            let method = request.method().clone();
            let path = request.uri().path().to_owned();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
            let (code, answer) = self.act(&method, &path, &body);
            Response::builder().status(code).body(Full::new(Bytes::from(answer.to_string()))).unwrap()
        }

        fn act(&self, method: &Method, path: &str, body: &Value) -> (u16, Value) {
            let refusal = |code: u16, reason: &str| {
                let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                                     "reason": reason, "message": reason, "code": code });
                (code, status)
            };
            let key = path.strip_suffix("/status").unwrap_or(path);
            let current = self.get(key);
            match *method {
                Method::POST => {
                    let name = body["metadata"]["name"].as_str().unwrap_or("unnamed");
                    (201, self.put(&format!("{path}/{name}"), body.clone()))
                }
                Method::GET => current.map_or_else(|| refusal(404, "NotFound"), |found| (200, found)),
                Method::PATCH => {
                    let Some(mut found) = current else { return refusal(404, "NotFound") };
                    let wanted = &body["metadata"]["resourceVersion"];
                    if !wanted.is_null() && *wanted != found["metadata"]["resourceVersion"] {
                        return refusal(409, "Conflict");
                    }
                    merge(&mut found, body);
                    (200, self.put(key, found))
                }
                Method::DELETE => {
                    let Some(found) = current else { return refusal(404, "NotFound") };
                    let wanted = &body["preconditions"]["uid"];
                    if !wanted.is_null() && *wanted != found["metadata"]["uid"] {
                        return refusal(409, "Conflict");
                    }
                    self.objects.lock().remove(key);
                    (200, found)
                }
                _ => refusal(405, "MethodNotAllowed"),
            }
        }
    }

    /// RFC 7386.
    fn merge(target: &mut Value, patch: &Value) {
        let Some(patch) = patch.as_object() else {
            *target = patch.clone();
            return;
        };
        if !target.is_object() {
            *target = json!({});
        }
        for (name, value) in patch {
            if value.is_null() {
                target.as_object_mut().unwrap().remove(name);
            } else {
                merge(&mut target[name.as_str()], value);
            }
        }
    }
}
