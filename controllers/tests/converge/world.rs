//! An API server, the controllers, and a node that runs whatever it is given.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Binding, Namespace, Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, ObjectList, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Client, Resource, ResourceExt};
use scaleup_apiserver::user::UserInfo;
use scaleup_apiserver::{ApiServer, Server, ServerConfig};
use scaleup_controllers::{Config, Metrics};
use scaleup_store::memory::MemoryStore;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::faults::Faulty;

/// Everything must have happened by then, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(60);
/// Namespace of the tests.
pub const NS: &str = "shop";

/// One cluster.
pub struct World {
    pub server: Arc<Server>,
    /// An administrator, whose calls do not fail.
    pub admin: Client,
    pub stop: CancellationToken,
    tasks: JoinSet<()>,
    _dir: tempfile::TempDir,
}

/// A configuration that does not make tests wait.
pub fn config() -> Config {
    Config {
        ca_pem: "PEM".into(),
        discovery_period: Duration::from_secs(2),
        resync_period: Duration::from_secs(5),
        pod_gc_period: Duration::from_millis(200),
        pod_gc_quarantine: Duration::from_millis(300),
        ..Config::default()
    }
}

impl World {
    /// A server alone.
    pub async fn bare() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = ServerConfig { data_dir: dir.path().into(), audit: false, ..ServerConfig::default() };
        let server = ApiServer::build(config, Arc::new(MemoryStore::new())).unwrap();
        server.ready().await;
        let admin = UserInfo::system("kubernetes-admin", &["system:masters"]);
        let admin = Client::new(server.in_process(admin), "default");
        Self { server, admin, stop: CancellationToken::new(), tasks: JoinSet::new(), _dir: dir }
    }

    /// A server with controllers, node `n1` and namespace [`NS`].
    pub async fn new(config: Config) -> Self {
        let mut world = Self::bare().await;
        world.add_controllers(config, None);
        world.add_node("n1");
        let namespace = json!({"metadata": {"name": NS}});
        world.create::<Namespace>(Api::all(world.admin.clone()), namespace).await;
        world
    }

    /// Starts the controllers; with a seed, one in five of their calls fails.
    pub fn add_controllers(&mut self, config: Config, seed: Option<u64>) {
        let user = UserInfo::system("system:kube-controller-manager", &[]);
        let service = self.server.in_process(user);
        let client = match seed {
            Some(seed) => Client::new(Faulty::new(service, seed), "default"),
            None => Client::new(service, "default"),
        };
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            scaleup_controllers::run(client, config, Metrics::unregistered(), stop).await.unwrap();
        });
    }

    /// Starts a node.
    pub fn add_node(&mut self, name: &'static str) -> CancellationToken {
        let stop = self.stop.child_token();
        let (client, token) = (self.admin.clone(), stop.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = run_node(client, name) => {}
            }
        });
        stop
    }

    /// Stops everything and waits for it.
    pub async fn end(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        self.server.stop();
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.admin.clone(), NS)
    }

    pub async fn create<K>(&self, api: Api<K>, value: Value) -> K
    where
        K: DeserializeOwned + serde::Serialize + Clone + Debug,
    {
        let object: K = serde_json::from_value(value).unwrap();
        api.create(&PostParams::default(), &object).await.unwrap()
    }

    pub async fn list<K>(&self, selector: &str) -> Vec<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope> + DeserializeOwned + Clone + Debug,
    {
        let list: ObjectList<K> = self.api::<K>().list(&ListParams::default().labels(selector)).await.unwrap();
        list.items
    }

    pub async fn patch<K>(&self, name: &str, patch: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope> + DeserializeOwned + Clone + Debug,
    {
        self.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap()
    }

    /// Names of pods that are ready and not going, with their image.
    pub async fn ready_pods(&self) -> BTreeMap<String, String> {
        let pods = self.list::<Pod>("app=web").await;
        let ready = pods.into_iter().filter(|p| scaleup_api::pods::is_active(p) && scaleup_api::pods::is_ready(p));
        ready.map(|p| (p.name_any(), p.spec.unwrap().containers[0].image.clone().unwrap())).collect()
    }

    /// Waits until `replicas` pods of `image` are all there is, and the Deployment says so.
    pub async fn rolled_out(&self, replicas: usize, image: &str) {
        eventually(&format!("{replicas} ready pods of {image}"), || async {
            let d = self.api::<Deployment>().get("web").await.ok()?;
            let status = d.status.clone().unwrap_or_default();
            let n = i32::try_from(replicas).unwrap();
            let counts = [status.replicas, status.updated_replicas, status.available_replicas];
            let settled = counts.iter().all(|c| c.unwrap_or(0) == n);
            let observed = status.observed_generation == d.metadata.generation;
            let pods = self.list::<Pod>("app=web").await;
            let right = self.ready_pods().await.values().all(|i| i == image);
            (settled && observed && right && pods.len() == replicas).then_some(())
        })
        .await;
    }

    /// ReplicaSets by their revision.
    pub async fn revisions(&self) -> BTreeMap<String, ReplicaSet> {
        let sets = self.list::<ReplicaSet>("app=web").await;
        let revision = |s: &ReplicaSet| s.annotations()["deployment.kubernetes.io/revision"].clone();
        sets.into_iter().map(|s| (revision(&s), s)).collect()
    }
}

/// A Deployment `web` of `replicas` pods.
pub fn deployment(replicas: i32, image: &str) -> Value {
    json!({
        "metadata": {"name": "web", "namespace": NS},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"terminationGracePeriodSeconds": 0, "containers": [
                    {"name": "c", "image": image, "ports": [{"name": "http", "containerPort": 8080}]}
                ]},
            },
        },
    })
}

/// Polls until `probe` answers; panics with `what` if it never does.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut probe: impl FnMut() -> F) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "not within {} s: {what}", PATIENCE.as_secs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A node that reports, renews its Lease, takes pods without a node, and runs them at once.
pub async fn run_node(client: Client, name: &'static str) {
    let node = json!({"metadata": {"name": name}});
    let _ =
        Api::<Node>::all(client.clone()).create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await;
    tokio::join!(heartbeats(client.clone(), name), pods(client, name));
}

async fn heartbeats(client: Client, name: &str) {
    let nodes: Api<Node> = Api::all(client.clone());
    let leases: Api<k8s_openapi::api::coordination::v1::Lease> = Api::namespaced(client, "kube-node-lease");
    loop {
        let now = scaleup_api::time::now();
        let condition = json!({
            "type": "Ready", "status": "True", "reason": "KubeletReady",
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        });
        let patch = json!({"status": {"conditions": [condition]}});
        if !nodes.get(name).await.is_ok_and(|n| ready(&n)) {
            let _ = nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        }
        let lease = json!({"metadata": {"name": name}, "spec": {
            "holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": scaleup_api::time::now_micro(),
        }});
        if leases.patch(name, &PatchParams::default(), &Patch::Merge(&lease)).await.is_err() {
            let _ = leases.create(&PostParams::default(), &serde_json::from_value(lease).unwrap()).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Whether a node says that it is ready.
pub fn ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

async fn pods(client: Client, name: &'static str) {
    let mut stream = std::pin::pin!(watcher::watcher(Api::<Pod>::all(client.clone()), watcher::Config::default()));
    let mut address = 1;
    while let Some(event) = stream.next().await {
        let Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) = event else { continue };
        let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap());
        let node = pod.spec.as_ref().and_then(|s| s.node_name.clone());
        if node.is_none() && pod.metadata.deletion_timestamp.is_none() {
            let binding = json!({"metadata": {"name": pod.name_any()}, "target": {"kind": "Node", "name": name}});
            let binding: Binding = serde_json::from_value(binding).unwrap();
            let _: Result<Value, _> =
                api.create_subresource("binding", &pod.name_any(), &PostParams::default(), &binding).await;
        } else if node.as_deref() != Some(name) {
            continue;
        } else if pod.metadata.deletion_timestamp.is_some() {
            let _ = api.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await;
        } else if !scaleup_api::pods::is_ready(&pod) {
            address += 1;
            let condition = json!({"type": "Ready", "status": "True", "lastTransitionTime": scaleup_api::time::now()});
            let patch = json!({"status": {
                "phase": "Running", "conditions": [condition],
                "podIP": format!("10.244.{}.{}", address / 250, address % 250 + 1),
                "podIPs": [{"ip": format!("10.244.{}.{}", address / 250, address % 250 + 1)}],
            }});
            let _ = api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await;
        }
    }
}
