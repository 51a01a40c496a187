//! Nodes that fall silent become Unknown, are tainted, and at last lose their pods (upstream's
//! `pkg/controller/nodelifecycle`).
//!
//! Only notes and taints; the taint eviction controller deletes. While our own watch of Leases is broken, nobody's
//! silence counts.

mod plan;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, ResourceExt};
use parking_lot::Mutex;
use scaleup_api::well_known::NAMESPACE_NODE_LEASE;
use serde_json::json;
use tokio::time::Instant;

use self::plan::{Health, Pace};
use crate::base::calls::{self, Error};
use crate::base::events::{Recorder, Severity};
use crate::base::key::Key;
use crate::base::queue::Queue;
use crate::base::worker::{self, Outcome, Reconcile};
use crate::context::{BY_NODE, Context};

/// Pods marked at once.
const CONCURRENCY: usize = 16;

/// Subscribes and works until shutdown.
pub fn start(cx: Context) -> BoxFuture<'static, ()> {
    let queue: Arc<Queue<Key>> = cx.queue("node_lifecycle_controller");
    cx.informers.nodes.feed(&queue, |change| change.latest());
    let controller = Controller {
        recorder: cx.recorder.for_component("node-controller"),
        cx: cx.clone(),
        queue: queue.clone(),
        state: Mutex::default(),
    };
    async move {
        let i = cx.informers.clone();
        let caches = async { tokio::join!(i.nodes.synced(), i.node_leases.synced(), i.pods.synced()) };
        if cx.ready(caches).await {
            queue.add(Key::default());
            worker::run("nodelifecycle", queue, Arc::new(controller), cx.config.workers, cx.shutdown).await;
        }
    }
    .boxed()
}

#[derive(Default)]
struct State {
    health: HashMap<String, Health>,
    /// Unready nodes whose turn to be evicted has come.
    granted: HashSet<String>,
    /// Whether everything is down.
    all_down: bool,
    pace: Pace,
}

struct Controller {
    cx: Context,
    recorder: Recorder,
    queue: Arc<Queue<Key>>,
    state: Mutex<State>,
}

#[async_trait]
impl Reconcile for Controller {
    type Key = Key;

    /// The empty key is the regular look at all nodes; others name a node.
    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        if *key == Key::default() {
            self.look_at_all();
            return Ok(Outcome::After(self.cx.config.node_monitor_period.max(Duration::from_millis(10))));
        }
        let Some(node) = self.cx.informers.nodes.get(key) else {
            self.forget(key);
            return Ok(Outcome::Done);
        };
        let node = self.check_health(&node).await?;
        self.sync_taints(&node).await?;
        self.mark_pods(&node).await?;
        Ok(Outcome::Done)
    }
}

impl Controller {
    /// Decides whose turn it is, and wakes every node.
    fn look_at_all(&self) {
        let nodes = self.cx.informers.nodes.list();
        let now = Instant::now();
        let mut state = self.state.lock();
        let state = &mut *state;
        let rates = plan::rates(&nodes, &self.cx.config);
        if rates.is_none() != state.all_down {
            state.all_down = rates.is_none();
            tracing::warn!(all_down = state.all_down, "disruption of all zones changed; evictions follow");
        }
        for node in &nodes {
            let name = node.name_any();
            if plan::is_ready(node) || rates.is_none() {
                state.granted.remove(&name);
            } else if let Some(rates) = &rates
                && !state.granted.contains(&name)
            {
                let zone = plan::zone(node);
                let rate = rates.get(&zone).copied().unwrap_or(0.0);
                if state.pace.take(zone, rate, now) {
                    state.granted.insert(name);
                }
            }
            self.queue.add(Key::of(node.as_ref()));
        }
    }

    fn forget(&self, key: &Key) {
        let mut state = self.state.lock();
        state.granted.remove(&key.name);
        state.health.remove(&key.name);
    }

    /// How long the node has been silent while we were listening.
    fn silence(&self, node: &Node) -> Duration {
        let name = node.name_any();
        let lease = self.cx.informers.node_leases.get(&Key::new(NAMESPACE_NODE_LEASE, name.clone()));
        let now = Instant::now();
        let mut state = self.state.lock();
        let old = state.health.get(&name);
        if old.is_none() {
            let text = format!("Node {name} event: Registered Node {name} in Controller");
            self.recorder.event(node, Severity::Normal, "RegisteredNode", text);
        }
        let health = plan::observe(old, node, lease.as_deref(), now);
        let heard = health.heard;
        state.health.insert(name, health);
        match self.cx.informers.node_leases.healthy_since() {
            Some(listening) => now - heard.max(listening),
            None => Duration::ZERO,
        }
    }

    /// Writes the conditions of a silent node; returns the node as it is then.
    async fn check_health(&self, node: &Arc<Node>) -> Result<Arc<Node>, Error> {
        let silence = self.silence(node);
        let Some(conditions) = plan::conditions(node, silence, &self.cx.config, &scaleup_api::time::now()) else {
            return Ok(node.clone());
        };
        let patch = json!({
            "metadata": {"uid": node.uid(), "resourceVersion": node.metadata.resource_version},
            "status": {"conditions": conditions},
        });
        let (name, api) = (node.name_any(), Api::<Node>::all(self.cx.client.clone()));
        let updated = calls::merge_status("patch Node status", &api, &name, &patch).await?;
        if plan::is_ready(node) {
            let text = format!("Node {name} status is now: NodeNotReady");
            self.recorder.event(node.as_ref(), Severity::Normal, "NodeNotReady", text);
        }
        Ok(Arc::new(updated))
    }

    async fn sync_taints(&self, node: &Node) -> Result<(), Error> {
        let name = node.name_any();
        let may_evict = {
            let state = self.state.lock();
            if state.all_down { None } else { Some(state.granted.contains(&name)) }
        };
        let Some(taints) = plan::taints(node, may_evict, &scaleup_api::time::now()) else { return Ok(()) };
        let patch = json!({
            "metadata": {"uid": node.uid(), "resourceVersion": node.metadata.resource_version},
            "spec": {"taints": taints},
        });
        let api = Api::<Node>::all(self.cx.client.clone());
        calls::gone_is_fine(calls::merge("patch Node", &api, &name, &patch).await)
    }

    /// Pods of a node that is not ready are not ready either, whoever last said so.
    async fn mark_pods(&self, node: &Node) -> Result<(), Error> {
        let pods = plan::pods_to_mark(node, self.cx.informers.pods.indexed(BY_NODE, &node.name_any()));
        let mut results = Vec::new();
        for chunk in pods.chunks(CONCURRENCY) {
            results.extend(join_all(chunk.iter().map(|pod| self.mark_pod(pod))).await);
        }
        calls::all(results)
    }

    async fn mark_pod(&self, pod: &Pod) -> Result<(), Error> {
        let mut conditions = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        for condition in conditions.iter_mut().filter(|c| c.type_ == "Ready") {
            condition.status = "False".into();
            condition.last_transition_time = Some(scaleup_api::time::now());
        }
        let patch = json!({
            "metadata": {"uid": pod.uid(), "resourceVersion": pod.metadata.resource_version},
            "status": {"conditions": conditions},
        });
        let key = Key::of(pod);
        let api: Api<Pod> = Api::namespaced(self.cx.client.clone(), &key.namespace);
        calls::gone_is_fine(calls::merge_status("patch Pod status", &api, &key.name, &patch).await)?;
        self.recorder.event(pod, Severity::Warning, "NodeNotReady", "Node is not ready".into());
        Ok(())
    }
}
