//! What a controller is started with: client, shared caches, recorder, configuration.

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use scaleup_api::gateway::Gateway;
use scaleup_api::owner::controller_of;
use scaleup_api::plugin::{ClusterWasmPlugin, WasmModule, WasmPlugin};
use scaleup_api::well_known::NAMESPACE_NODE_LEASE;
use tokio_util::sync::CancellationToken;

use crate::acme::MANAGED_LABEL;
use crate::base::events::Recorder;
use crate::base::informer::{Indexer, Informer};
use crate::base::key::Key;
use crate::base::metrics::Metrics;
use crate::base::queue::Queue;
use crate::base::worker::{self, Reconcile};
use crate::config::Config;
use crate::rootca::CONFIG_MAP_NAME;

/// Index: objects by the UID of their controller.
pub const BY_OWNER: &str = "owner";
/// Index: objects without a controller, by namespace.
pub const ORPHANS: &str = "orphans";
/// Index: pods by `spec.nodeName`; the empty value finds those without a node.
pub const BY_NODE: &str = "node";

fn by_owner<K: Resource>(object: &K) -> Vec<String> {
    controller_of(object.meta()).map(|r| r.uid.clone()).into_iter().collect()
}

fn orphans<K: Resource>(object: &K) -> Vec<String> {
    let orphan = controller_of(object.meta()).is_none();
    object.meta().namespace.clone().filter(|_| orphan).into_iter().collect()
}

fn by_node(pod: &Pod) -> Vec<String> {
    vec![pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default()]
}

/// One watch per kind. A controller that needs another kind adds a field, and a row in [`Informers::run`].
pub struct Informers {
    pub pods: Arc<Informer<Pod>>,
    pub replica_sets: Arc<Informer<ReplicaSet>>,
    pub deployments: Arc<Informer<Deployment>>,
    pub services: Arc<Informer<Service>>,
    pub endpoints: Arc<Informer<Endpoints>>,
    pub endpoint_slices: Arc<Informer<EndpointSlice>>,
    pub nodes: Arc<Informer<Node>>,
    pub node_leases: Arc<Informer<Lease>>,
    pub namespaces: Arc<Informer<Namespace>>,
    pub service_accounts: Arc<Informer<ServiceAccount>>,
    /// Only those named `kube-root-ca.crt`.
    pub root_cas: Arc<Informer<ConfigMap>>,
    pub cluster_roles: Arc<Informer<ClusterRole>>,
    /// Watched only if ACME is configured, as the next two.
    pub ingresses: Arc<Informer<Ingress>>,
    pub gateways: Arc<Informer<Gateway>>,
    /// Secrets that ACME made.
    pub acme_secrets: Arc<Informer<Secret>>,
    /// Watched only if there is a stager, as the next two.
    pub wasm_plugins: Arc<Informer<WasmPlugin>>,
    pub cluster_wasm_plugins: Arc<Informer<ClusterWasmPlugin>>,
    pub wasm_modules: Arc<Informer<WasmModule>>,
}

impl Informers {
    /// Empty caches.
    pub fn new() -> Self {
        Self {
            pods: Arc::new(Informer::new(&[
                (BY_OWNER, by_owner as Indexer<Pod>),
                (ORPHANS, orphans as Indexer<Pod>),
                (BY_NODE, by_node as Indexer<Pod>),
            ])),
            replica_sets: Arc::new(Informer::new(&[
                (BY_OWNER, by_owner as Indexer<ReplicaSet>),
                (ORPHANS, orphans as Indexer<ReplicaSet>),
            ])),
            deployments: Arc::new(Informer::new(&[])),
            services: Arc::new(Informer::new(&[])),
            endpoints: Arc::new(Informer::new(&[])),
            endpoint_slices: Arc::new(Informer::new(&[])),
            nodes: Arc::new(Informer::new(&[])),
            node_leases: Arc::new(Informer::new(&[])),
            namespaces: Arc::new(Informer::new(&[])),
            service_accounts: Arc::new(Informer::new(&[])),
            root_cas: Arc::new(Informer::new(&[])),
            cluster_roles: Arc::new(Informer::new(&[])),
            ingresses: Arc::new(Informer::new(&[])),
            gateways: Arc::new(Informer::new(&[])),
            acme_secrets: Arc::new(Informer::new(&[])),
            wasm_plugins: Arc::new(Informer::new(&[])),
            cluster_wasm_plugins: Arc::new(Informer::new(&[])),
            wasm_modules: Arc::new(Informer::new(&[])),
        }
    }

    /// Watches everything until `shutdown`; `acme`: also what certificates by ACME need; `plugins`: also these and their modules.
    pub async fn run(&self, client: &Client, acme: bool, plugins: bool, shutdown: &CancellationToken) {
        let named = watcher::Config::default().fields(&format!("metadata.name={CONFIG_MAP_NAME}"));
        let leases = Api::namespaced(client.clone(), NAMESPACE_NODE_LEASE);
        let mut watches: Vec<BoxFuture<'_, ()>> = vec![
            watch_all(&self.pods, client, shutdown),
            watch_all(&self.replica_sets, client, shutdown),
            watch_all(&self.deployments, client, shutdown),
            watch_all(&self.services, client, shutdown),
            watch_all(&self.endpoints, client, shutdown),
            watch_all(&self.endpoint_slices, client, shutdown),
            watch_all(&self.nodes, client, shutdown),
            self.node_leases.run(leases, watcher::Config::default(), shutdown.clone()).boxed(),
            watch_all(&self.namespaces, client, shutdown),
            watch_all(&self.service_accounts, client, shutdown),
            self.root_cas.run(Api::all(client.clone()), named, shutdown.clone()).boxed(),
            watch_all(&self.cluster_roles, client, shutdown),
        ];
        if acme {
            let ours = watcher::Config::default().labels(MANAGED_LABEL);
            watches.push(watch_all(&self.ingresses, client, shutdown));
            watches.push(watch_all(&self.gateways, client, shutdown));
            watches.push(self.acme_secrets.run(Api::all(client.clone()), ours, shutdown.clone()).boxed());
        }
        if plugins {
            watches.push(watch_all(&self.wasm_plugins, client, shutdown));
            watches.push(watch_all(&self.cluster_wasm_plugins, client, shutdown));
            watches.push(watch_all(&self.wasm_modules, client, shutdown));
        }
        let mut running: futures::stream::FuturesUnordered<_> = watches.into_iter().collect();
        while running.next().await.is_some() {}
    }
}

impl Default for Informers {
    fn default() -> Self {
        Self::new()
    }
}

fn watch_all<'a, K>(informer: &'a Informer<K>, client: &Client, shutdown: &CancellationToken) -> BoxFuture<'a, ()>
where
    K: Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    informer.run(Api::all(client.clone()), watcher::Config::default(), shutdown.clone()).boxed()
}

/// Everything a controller's start function gets. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// The API.
    pub client: Client,
    /// Configuration.
    pub config: Arc<Config>,
    /// Shared caches.
    pub informers: Arc<Informers>,
    /// Events; take one for your component.
    pub recorder: Recorder,
    /// Queue metrics.
    pub metrics: Metrics,
    /// Cancelled when everything must stop.
    pub shutdown: CancellationToken,
}

impl Context {
    /// A work queue with metrics under `name`.
    pub fn queue<K: crate::base::queue::QueueKey>(&self, name: &'static str) -> Arc<Queue<K>> {
        Arc::new(Queue::new(self.metrics.queue(name)))
    }

    /// Once the `caches` are filled, runs workers over `queue` until shutdown, and puts all keys of `primary` into it at
    /// the start and every resync period.
    pub fn work<R, K>(
        self,
        name: &'static str,
        queue: Arc<Queue<Key>>,
        reconciler: R,
        primary: &Arc<Informer<K>>,
        caches: impl Future<Output: Send> + Send + 'static,
    ) -> BoxFuture<'static, ()>
    where
        R: Reconcile<Key = Key>,
        K: Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    {
        let primary = primary.clone();
        async move {
            if !self.ready(caches).await {
                return;
            }
            let (period, shutdown) = (self.config.resync_period, self.shutdown.clone());
            let resync = worker::resync(queue.clone(), period, move || primary.keys(), shutdown.clone());
            let workers = worker::run(name, queue, Arc::new(reconciler), self.config.workers, shutdown);
            tokio::join!(resync, workers);
        }
        .boxed()
    }

    /// Waits for the caches, or for shutdown: whether to go on.
    pub async fn ready(&self, caches: impl Future) -> bool {
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => false,
            _ = caches => true,
        }
    }
}
