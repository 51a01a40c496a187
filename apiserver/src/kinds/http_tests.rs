//! The kinds through the router, in process over the memory store: what needs hooks, handlers or the whole pipeline.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::body::Body;
use http::{Method, Request};
use http_body_util::BodyExt;
use scaleup_store::Store;
use scaleup_store::memory::MemoryStore;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::field::test::{contains, yaml};
use crate::server::{InProcess, ServerConfig};
use crate::testing::TestServer;
use crate::user::UserInfo;

const SERVICES: &str = "/api/v1/namespaces/default/services";
const PODS: &str = "/api/v1/namespaces/default/pods";

struct Api {
    test: TestServer,
    admin: InProcess,
}

impl Api {
    async fn start(store: Arc<dyn Store>, exclusive_store: bool) -> Self {
        let test = TestServer::start(ServerConfig { exclusive_store, ..ServerConfig::default() }, store).await;
        let admin = test.server.in_process(UserInfo::system("admin", &["system:masters"]));
        Self { test, admin }
    }

    /// One server, with the account that the service account controller would have made for pods.
    async fn alone() -> Self {
        let api = Self::start(Arc::new(MemoryStore::new()), true).await;
        api.post("/api/v1/namespaces/default/serviceaccounts", "{metadata: {name: default}}", 201).await;
        api
    }

    /// Status and body of a request.
    async fn send(&self, method: Method, uri: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = Request::builder().method(method).uri(uri).header("content-type", "application/json");
        let response = self.admin.clone().oneshot(request.body(body).expect("a request")).await;
        let response = response.expect("infallible");
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.expect("a body").to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    #[track_caller]
    fn expect(&self, (status, body): (u16, Value), expected: u16) -> Value {
        assert_eq!(status, expected, "{body}");
        body
    }

    async fn post(&self, uri: &str, text: &str, expected: u16) -> Value {
        let answer = self.send(Method::POST, uri, &yaml(text)).await;
        self.expect(answer, expected)
    }

    async fn get(&self, uri: &str, expected: u16) -> Value {
        let answer = self.send(Method::GET, uri, &Value::Null).await;
        self.expect(answer, expected)
    }

    async fn delete(&self, uri: &str) {
        let answer = self.send(Method::DELETE, uri, &Value::Null).await;
        self.expect(answer, 200);
    }

    async fn claims(&self) -> usize {
        let request = scaleup_store::ListRequest { prefix: "/ranges/", ..Default::default() };
        self.test.server.store.list(request).await.expect("the store works").items.len()
    }
}

fn node_port(service: &Value) -> i64 {
    service["spec"]["ports"][0]["nodePort"].as_i64().expect("a node port")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_never_hand_out_one_address_twice() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let servers = [Api::start(store.clone(), false).await, Api::start(store, false).await];
    let creates = (0..60).map(|i| {
        let text = format!("{{metadata: {{name: s{i}}}, spec: {{type: NodePort, ports: [{{port: 80}}]}}}}");
        let api = &servers[i % 2];
        async move { api.post(SERVICES, &text, 201).await }
    });
    let services = futures::future::join_all(creates).await;
    let ips: BTreeSet<String> = services.iter().map(|s| s["spec"]["clusterIP"].to_string()).collect();
    let ports: BTreeSet<i64> = services.iter().map(node_port).collect();
    assert_eq!((ips.len(), ports.len()), (60, 60));
    let claims = servers[0].claims().await;
    assert!(claims >= 120, "{claims}");
    for i in 0..60 {
        servers[(i + 1) % 2].delete(&format!("{SERVICES}/s{i}")).await;
    }
    assert_eq!(servers[0].claims().await, claims - 120, "deleting gives everything back");
}

#[tokio::test]
async fn refused_and_dry_services_keep_nothing() {
    let api = Api::alone().await;
    super::service::repair(&api.test.server).await.expect("the store works");
    let before = api.claims().await;
    api.post(SERVICES, "{metadata: {name: Bad_}, spec: {type: NodePort, ports: [{port: 80}]}}", 422).await;
    api.post(&format!("{SERVICES}?dryRun=All"), "{metadata: {name: dry}, spec: {ports: [{port: 80}]}}", 201).await;
    assert_eq!(api.claims().await, before);
    let first = api.post(SERVICES, "{metadata: {name: a}, spec: {type: NodePort, ports: [{port: 80}]}}", 201).await;
    let taken = format!(
        "{{metadata: {{name: b}}, spec: {{type: NodePort, ports: [{{port: 80, nodePort: {}}}]}}}}",
        node_port(&first)
    );
    let refused = api.post(SERVICES, &taken, 422).await;
    contains(&refused["details"], &json!({"causes": [{"field": "spec.ports[0].nodePort"}]}));
    assert!(refused["message"].as_str().is_some_and(|m| m.ends_with("provided port is already allocated")));
    api.post(SERVICES, "{metadata: {name: a}, spec: {type: NodePort, ports: [{port: 80}]}}", 409).await;
    assert_eq!(api.claims().await, before + 2, "only what is stored is claimed");
    let kubernetes = api.get(&format!("{SERVICES}/kubernetes"), 200).await;
    assert_eq!(kubernetes["spec"]["clusterIP"], "10.96.0.1");
    api.post(SERVICES, "{metadata: {name: c}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}", 422).await;
}

#[tokio::test]
async fn a_put_without_the_allocated_values_keeps_them() {
    let api = Api::alone().await;
    let spec = "{metadata: {name: a}, spec: {type: LoadBalancer, ports: [{port: 80}]}}";
    let created = api.post(SERVICES, spec, 201).await;
    let uri = format!("{SERVICES}/a");
    let put = api.send(Method::PUT, &uri, &yaml(&spec.replace("port: 80", "port: 81"))).await;
    let put = api.expect(put, 200);
    assert_eq!(put["spec"]["clusterIP"], created["spec"]["clusterIP"]);
    assert_eq!(node_port(&put), node_port(&created));
    let plain = "{metadata: {name: a}, spec: {type: ClusterIP, ports: [{port: 81}]}}";
    let put = api.send(Method::PUT, &uri, &yaml(plain)).await;
    let put = api.expect(put, 200);
    assert_eq!(put["spec"]["ports"][0].get("nodePort"), None);
    let number = node_port(&created);
    let reuse =
        format!("{{metadata: {{name: b}}, spec: {{type: NodePort, ports: [{{port: 80, nodePort: {number}}}]}}}}");
    api.post(SERVICES, &reuse, 201).await;
}

const POD: &str = "{metadata: {name: a}, spec: {containers: [{name: c, image: nginx}]}}";

#[tokio::test]
async fn pods_are_bound_once() {
    let api = Api::alone().await;
    api.post(PODS, POD, 201).await;
    let uri = format!("{PODS}/a/binding");
    let binding = "{apiVersion: v1, kind: Binding, metadata: {name: a}, target: {kind: Node, name: n1}}";
    api.post(&format!("{uri}?dryRun=All"), binding, 201).await;
    let status = api.post(&uri, binding, 201).await;
    contains(&status, &json!({"kind": "Status", "status": "Success", "code": 201}));
    let pod = api.get(&format!("{PODS}/a"), 200).await;
    contains(
        &pod,
        &json!({"spec": {"nodeName": "n1"}, "status": {"conditions": [{"type": "PodScheduled", "status": "True"}]}}),
    );
    let again = api.post(&uri, binding, 409).await;
    assert_eq!(
        again["message"],
        "Operation cannot be fulfilled on pods/binding \"a\": pod a is already assigned to node \"n1\""
    );
    api.post(&format!("{PODS}/none/binding"), &binding.replace("name: a", "name: none"), 404).await;
    api.post(&format!("{PODS}/none/binding"), binding, 400).await;
    api.post(&uri, "{kind: Pod}", 400).await;
    api.post(&uri, "{target: {}}", 422).await;
}

#[tokio::test]
async fn eviction_deletes() {
    let api = Api::alone().await;
    api.post(PODS, POD, 201).await;
    let uri = format!("{PODS}/a/eviction");
    let eviction = |options: &str| {
        format!("{{apiVersion: policy/v1, kind: Eviction, metadata: {{name: a}}, deleteOptions: {options}}}")
    };
    api.post(&uri, &eviction("{dryRun: [All]}"), 201).await;
    api.post(&uri, &eviction("{preconditions: {uid: other}}"), 409).await;
    api.post(&uri, &eviction("{propagationPolicy: Never}"), 422).await;
    api.get(&format!("{PODS}/a"), 200).await;
    api.post(&uri, &eviction("{gracePeriodSeconds: 5}"), 201).await;
    api.get(&format!("{PODS}/a"), 404).await;
    api.post(&uri, &eviction("{}"), 404).await;
}

#[tokio::test]
async fn events_are_one_kind_in_two_groups() {
    let api = Api::alone().await;
    let uri = "/apis/events.k8s.io/v1/namespaces/default/events";
    let event = "{metadata: {name: e}, regarding: {kind: Pod, name: a, namespace: default}, eventTime: '2024-01-01T00:00:00.000000Z', type: Normal, reason: Started, action: Starting, note: hi, reportingController: kubelet, reportingInstance: n1}";
    api.post(uri, event, 201).await;
    let core = api.get("/api/v1/namespaces/default/events/e", 200).await;
    contains(
        &core,
        &json!({"apiVersion": "v1", "involvedObject": {"name": "a"}, "message": "hi", "reportingComponent": "kubelet"}),
    );
    for (uri, selector) in
        [(uri, "regarding.name%3Da,reason%3DStarted"), ("/api/v1/events", "involvedObject.name%3Da,source%3Dkubelet")]
    {
        let list = api.get(&format!("{uri}?fieldSelector={selector}"), 200).await;
        assert_eq!(list["items"].as_array().map(Vec::len), Some(1), "{uri}");
    }
}

/// Writing back what was read changes nothing, so that controllers which do it do not feed themselves.
#[tokio::test]
async fn a_write_of_what_is_stored_is_no_write() {
    let api = Api::alone().await;
    let template = "selector: {matchLabels: {app: a}}, template: {metadata: {labels: {app: a}}, spec: {volumes: [{name: v, configMap: {name: c}}], containers: [{name: c, image: nginx, resources: {limits: {cpu: 0.5}}, livenessProbe: {httpGet: {port: 80}}}]}}";
    let samples = [
        ("/api/v1/namespaces", "{metadata: {name: a}}".to_owned()),
        ("/api/v1/nodes", "{metadata: {name: a}, spec: {podCIDR: 10.0.0.0/24}}".into()),
        (PODS, POD.into()),
        (SERVICES, "{metadata: {name: a}, spec: {type: LoadBalancer, ports: [{port: 80}]}}".into()),
        (SERVICES, "{metadata: {name: b}, spec: {clusterIP: None}}".into()),
        ("/api/v1/namespaces/default/configmaps", "{metadata: {name: a}, data: {a: b}}".into()),
        ("/api/v1/namespaces/default/secrets", "{metadata: {name: a}, stringData: {a: b}}".into()),
        ("/api/v1/namespaces/default/serviceaccounts", "{metadata: {name: a}}".into()),
        (
            "/api/v1/namespaces/default/endpoints",
            "{metadata: {name: a}, subsets: [{addresses: [{ip: 10.0.0.1}], ports: [{port: 1}]}]}".into(),
        ),
        ("/api/v1/namespaces/default/events", "{metadata: {name: a}, involvedObject: {namespace: default}}".into()),
        ("/apis/apps/v1/namespaces/default/deployments", format!("{{metadata: {{name: a}}, spec: {{{template}}}}}")),
        ("/apis/apps/v1/namespaces/default/replicasets", format!("{{metadata: {{name: a}}, spec: {{{template}}}}}")),
        (
            "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
            "{metadata: {name: a}, addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}], ports: [{port: 1}]}".into(),
        ),
        (
            "/apis/coordination.k8s.io/v1/namespaces/default/leases",
            "{metadata: {name: a}, spec: {leaseDurationSeconds: 1}}".into(),
        ),
        ("/apis/scheduling.k8s.io/v1/priorityclasses", "{metadata: {name: a}, value: 1}".into()),
        (
            "/apis/rbac.authorization.k8s.io/v1/clusterroles",
            "{metadata: {name: 'a:b'}, rules: [{apiGroups: [''], resources: [pods], verbs: [get]}]}".into(),
        ),
        ("/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles", "{metadata: {name: 'a:b'}}".into()),
        (
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            "{metadata: {name: a}, roleRef: {kind: ClusterRole, name: view}, subjects: [{kind: User, name: u}]}".into(),
        ),
        (
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings",
            "{metadata: {name: a}, roleRef: {kind: Role, name: a}}".into(),
        ),
    ];
    for (uri, text) in samples {
        let created = api.post(uri, &text, 201).await;
        let name = created["metadata"]["name"].as_str().expect("a name").replace(':', "%3A");
        let read = api.get(&format!("{uri}/{name}"), 200).await;
        assert_eq!(read, created, "{uri}");
        let written = api.send(Method::PUT, &format!("{uri}/{name}"), &read).await;
        let written = api.expect(written, 200);
        assert_eq!(written, read, "{uri}");
    }
}
