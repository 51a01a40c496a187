//! The scheduler's loop against an API in a few lines: watches, bindings, conditions and events over a real `kube::Client`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use kube::client::Body;
use parking_lot::Mutex;
use scaleup_scheduler::{Config, Error, build, run};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<(&'static str, String), Value>,
    watches: Vec<(&'static str, mpsc::UnboundedSender<Bytes>)>,
    events: Vec<Value>,
    conditions: Vec<(String, Value)>,
    bindings: Vec<(String, String)>,
    /// Requests that are answered with 503 before things work.
    outages: usize,
    /// Bindings that are answered with 500.
    bad_bindings: usize,
}

/// As much of an API server as the scheduler needs.
#[derive(Clone, Default)]
struct Api(Arc<Mutex<State>>);

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

fn answer(status: StatusCode, value: &Value) -> Answer {
    let body = http_body_util::Full::new(Bytes::from(value.to_string())).boxed_unsync();
    Response::builder().status(status).header("content-type", "application/json").body(body).unwrap()
}

fn failure(code: u16, reason: &str) -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason, "reason": reason, "code": code});
    answer(StatusCode::from_u16(code).unwrap(), &status)
}

impl Api {
    fn put(&self, kind: &'static str, mut object: Value) {
        let mut state = self.0.lock();
        state.revision += 1;
        object["metadata"]["resourceVersion"] = state.revision.to_string().into();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let known = state.objects.insert((kind, name), object.clone()).is_some();
        state.notify(kind, if known { "MODIFIED" } else { "ADDED" }, &object);
    }

    fn delete(&self, kind: &'static str, name: &str) {
        let mut state = self.0.lock();
        let object = state.objects.remove(&(kind, name.to_owned())).unwrap();
        state.notify(kind, "DELETED", &object);
    }

    fn pod(&self, name: &str, cpu: &str) {
        let containers = json!([{"name": "c", "resources": {"requests": {"cpu": cpu}}}]);
        self.put(
            "pods",
            json!({
                "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}")},
                "spec": {"schedulerName": "default-scheduler", "containers": containers},
            }),
        );
    }

    fn node(&self, name: &str, cpu: &str) {
        self.put(
            "nodes",
            json!({
                "metadata": {"name": name},
                "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"}},
            }),
        );
    }

    fn serve(&self, request: Request<Vec<u8>>) -> Answer {
        let mut state = self.0.lock();
        if state.outages > 0 {
            state.outages -= 1;
            return failure(503, "ServiceUnavailable");
        }
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let body = || serde_json::from_slice::<Value>(request.body()).unwrap();
        match (request.method(), parts.as_slice()) {
            (&Method::GET, ["api", "v1", kind] | ["apis", "policy.scaleup.dev", "v1", kind]) => {
                let known = ["pods", "nodes", "namespaces", "wasmplugins", "clusterwasmplugins"];
                let kind = known.into_iter().find(|known| known == kind).unwrap();
                if request.uri().query().unwrap_or_default().contains("watch=") {
                    state.watch(kind)
                } else {
                    state.list(kind)
                }
            }
            (&Method::POST, ["api", "v1", "namespaces", _, "pods", name, "binding"]) => state.bind(name, &body()),
            (&Method::PATCH, ["api", "v1", "namespaces", _, "pods", name, "status"]) => {
                state.conditions.push(((*name).to_owned(), body()["status"]["conditions"][0].clone()));
                answer(StatusCode::OK, &state.objects[&("pods", (*name).to_owned())])
            }
            (&Method::POST, ["apis", "events.k8s.io", "v1", "namespaces", "ns", "events"]) => {
                state.events.push(body());
                answer(StatusCode::CREATED, &body())
            }
            (&Method::PATCH, ["apis", "events.k8s.io", "v1", "namespaces", "ns", "events", name]) => {
                let event = state.events.iter_mut().find(|event| event["metadata"]["name"] == **name).unwrap();
                event["series"] = body()["series"].clone();
                answer(StatusCode::OK, event)
            }
            (method, _) => panic!("unexpected {method} {path}"),
        }
    }

    /// Waits until something holds.
    async fn until<T>(&self, what: &str, condition: impl Fn(&State) -> Option<T>) -> T {
        for _ in 0..PATIENCE.as_millis() / 20 {
            if let Some(value) = condition(&self.0.lock()) {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{what} did not happen");
    }

    async fn bound(&self, pod: &str) -> String {
        let node = |state: &State| state.bindings.iter().find(|(bound, _)| bound == pod).map(|(_, node)| node.clone());
        self.until(&format!("binding of {pod}"), node).await
    }

    async fn event(&self, pod: &str, reason: &str) -> Value {
        let event = |state: &State| {
            let about = |event: &&Value| event["regarding"]["name"] == pod && event["reason"] == reason;
            state.events.iter().find(about).cloned()
        };
        self.until(&format!("event {reason} of {pod}"), event).await
    }
}

impl State {
    fn notify(&mut self, kind: &'static str, change: &str, object: &Value) {
        let line = Bytes::from(format!("{}\n", json!({"type": change, "object": object})));
        self.watches.retain(|(watched, sender)| *watched != kind || sender.send(line.clone()).is_ok());
    }

    fn list(&self, kind: &'static str) -> Answer {
        let items: Vec<&Value> =
            self.objects.iter().filter(|((of, _), _)| *of == kind).map(|(_, value)| value).collect();
        let metadata = json!({"resourceVersion": self.revision.to_string()});
        answer(StatusCode::OK, &json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}))
    }

    fn watch(&mut self, kind: &'static str) -> Answer {
        let (sender, mut lines) = mpsc::unbounded_channel();
        self.watches.push((kind, sender));
        let frames = futures::stream::poll_fn(move |context| lines.poll_recv(context));
        let frames = frames.map(|line| Ok(hyper::body::Frame::data(line)));
        Response::new(http_body_util::StreamBody::new(frames).boxed_unsync())
    }

    fn bind(&mut self, name: &str, binding: &Value) -> Answer {
        if self.bad_bindings > 0 {
            self.bad_bindings -= 1;
            return failure(500, "InternalError");
        }
        let Some(pod) = self.objects.get_mut(&("pods", name.to_owned())) else { return failure(404, "NotFound") };
        assert_eq!(pod["metadata"]["uid"], binding["metadata"]["uid"]);
        pod["spec"]["nodeName"] = binding["target"]["name"].clone();
        let pod = pod.clone();
        self.bindings.push((name.to_owned(), binding["target"]["name"].as_str().unwrap().to_owned()));
        self.notify("pods", "MODIFIED", &pod);
        answer(StatusCode::CREATED, &json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
    }
}

struct Running {
    api: Api,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

fn start(api: &Api) -> Running {
    let served = api.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let api = served.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes().to_vec();
            Ok::<_, Infallible>(api.serve(Request::from_parts(head, body)))
        }
    });
    let client = kube::Client::new(service, "default");
    let metrics = build(&mut prometheus_client::registry::Registry::default());
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(run(client, Config::default(), metrics, shutdown.clone()));
    Running { api: api.clone(), shutdown, task }
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test]
async fn pods_get_nodes_and_users_hear_of_it() {
    let api = Api::default();
    api.node("n1", "2");
    api.pod("early", "1");
    let running = start(&api);
    assert_eq!(api.bound("early").await, "n1");
    api.pod("late", "500m");
    assert_eq!(api.bound("late").await, "n1");
    let event = api.event("late", "Scheduled").await;
    assert_eq!(event["note"], "Successfully assigned ns/late to n1");
    assert_eq!((&event["type"], &event["action"]), (&json!("Normal"), &json!("Binding")));
    assert_eq!(event["reportingController"], "default-scheduler");
    running.stop().await;
}

#[tokio::test]
async fn hopeless_pods_say_why_and_get_the_next_chance() {
    let api = Api::default();
    api.node("n1", "2");
    let running = start(&api);
    api.pod("big", "3");
    let event = api.event("big", "FailedScheduling").await;
    let message = "0/1 nodes are available: 1 Insufficient cpu.";
    assert_eq!((&event["note"], &event["type"]), (&json!(message), &json!("Warning")));
    let condition = api.until("condition", |state| state.conditions.first().cloned()).await;
    assert_eq!(condition.0, "big");
    assert_eq!(condition.1["type"], "PodScheduled");
    assert_eq!((&condition.1["status"], &condition.1["reason"]), (&json!("False"), &json!("Unschedulable")));
    assert_eq!(condition.1["message"], message);

    api.pod("small", "1");
    assert_eq!(api.bound("small").await, "n1", "the hopeless one is in nobody's way");
    api.node("n2", "4");
    assert_eq!(api.bound("big").await, "n2");
    running.stop().await;
}

#[tokio::test]
async fn room_that_is_freed_is_used() {
    let api = Api::default();
    api.node("n1", "2");
    let running = start(&api);
    api.pod("first", "2");
    api.bound("first").await;
    api.pod("second", "2");
    api.event("second", "FailedScheduling").await;
    running.api.delete("pods", "first");
    assert_eq!(api.bound("second").await, "n1");
    running.stop().await;
}

#[tokio::test]
async fn an_api_that_is_away_is_waited_for() {
    let api = Api::default();
    api.0.lock().outages = 6;
    api.node("n1", "2");
    api.pod("p", "1");
    let running = start(&api);
    assert_eq!(api.bound("p").await, "n1");
    running.stop().await;
}

#[tokio::test]
async fn a_failed_binding_is_tried_again() {
    let api = Api::default();
    api.0.lock().bad_bindings = 1;
    api.node("n1", "2");
    api.pod("p", "2");
    let running = start(&api);
    assert_eq!(api.bound("p").await, "n1");
    running.stop().await;
}

#[tokio::test]
async fn many_pods_fill_many_nodes() {
    const NODES: usize = 20;
    const PODS: usize = 400;
    let api = Api::default();
    (0..NODES).for_each(|index| api.node(&format!("n{index}"), "4"));
    (0..PODS).for_each(|index| api.pod(&format!("p{index}"), "200m"));
    let running = start(&api);
    api.until("all bindings", |state| (state.bindings.len() == PODS).then_some(())).await;
    let mut by_node: BTreeMap<String, usize> = BTreeMap::new();
    for (_, node) in &api.0.lock().bindings {
        *by_node.entry(node.clone()).or_default() += 1;
    }
    assert!(by_node.len() == NODES && by_node.values().all(|count| *count == PODS / NODES), "{by_node:?}");
    running.stop().await;
}

#[tokio::test]
async fn it_stops_without_an_api() {
    let api = Api::default();
    api.0.lock().outages = usize::MAX;
    let running = start(&api);
    tokio::time::sleep(Duration::from_millis(50)).await;
    running.stop().await;
}
