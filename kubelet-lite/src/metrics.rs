//! The agent's own figures, named as upstream's kubelet names them.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Cheap to clone; clones count together.
#[derive(Clone, Default)]
pub struct Metrics {
    /// `kubelet_started_containers_total`
    pub containers_started: Counter,
    /// `kubelet_started_pods_total`
    pub sandboxes_started: Counter,
    /// `kubelet_running_containers`
    pub running_containers: Gauge,
    /// `kubelet_running_pods`
    pub running_pods: Gauge,
}

impl Metrics {
    /// Registers them.
    pub fn register(&self, registry: &mut Registry) {
        // The exporter appends `_total` to counters.
        registry.register("kubelet_started_containers", "Containers started", self.containers_started.clone());
        registry.register("kubelet_started_pods", "Pod sandboxes started", self.sandboxes_started.clone());
        registry.register("kubelet_running_containers", "Containers running", self.running_containers.clone());
        registry.register("kubelet_running_pods", "Pods that have a worker", self.running_pods.clone());
    }
}
