//! What an operator may decide about the controllers; defaults are upstream's.

use std::sync::Arc;
use std::time::Duration;

/// Configuration of all controllers.
#[derive(Clone, Debug)]
pub struct Config {
    /// PEM bundle that `kube-root-ca.crt` carries in every namespace; empty: no ConfigMap is published.
    pub ca_pem: String,
    /// Whether to stand for election through a Lease, so that several instances may run.
    pub leader_elect: bool,
    /// Who we are in the election; unique among instances.
    pub identity: String,
    /// Concurrent reconciles per controller.
    pub workers: usize,
    /// How often every object is looked at without a reason.
    pub resync_period: Duration,
    /// How often nodes are looked at.
    pub node_monitor_period: Duration,
    /// How long a node may be silent before its conditions become Unknown.
    pub node_monitor_grace_period: Duration,
    /// The same for a node that has never reported.
    pub node_startup_grace_period: Duration,
    /// Nodes per second whose pods are evicted, in a healthy zone.
    pub node_eviction_rate_per_second: f64,
    /// Nodes per second in a large zone of which `unhealthy_zone_threshold` is not ready; none in a small one.
    pub secondary_node_eviction_rate_per_second: f64,
    /// A zone with more nodes is large.
    pub large_cluster_size_threshold: usize,
    /// Part of a zone's nodes that makes it unhealthy.
    pub unhealthy_zone_threshold: f64,
    /// Terminated pods to keep; 0: all.
    pub terminated_pod_gc_threshold: usize,
    /// How often pods are garbage collected.
    pub pod_gc_period: Duration,
    /// How long a node must be missing before its pods are deleted.
    pub pod_gc_quarantine: Duration,
    /// Where pod subnets are taken from; `None`: Nodes get none from here (upstream's `--allocate-node-cidrs=false`).
    pub pod_network: Option<crate::nodeipam::Config>,
    /// Certificates by ACME; none if absent.
    pub acme: Option<crate::acme::Config>,
    /// What compiles and probes plugins; nothing is done about them if absent.
    pub plugins: Option<Arc<dyn crate::plugins::Stager>>,
    /// How often the garbage collector asks which kinds there are.
    pub discovery_period: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ca_pem: String::new(),
            leader_elect: false,
            identity: "scaleup-controllers".into(),
            workers: 5,
            resync_period: Duration::from_secs(600),
            node_monitor_period: Duration::from_secs(5),
            node_monitor_grace_period: Duration::from_secs(40),
            node_startup_grace_period: Duration::from_secs(60),
            node_eviction_rate_per_second: 0.1,
            secondary_node_eviction_rate_per_second: 0.01,
            large_cluster_size_threshold: 50,
            unhealthy_zone_threshold: 0.55,
            terminated_pod_gc_threshold: 12_500,
            pod_gc_period: Duration::from_secs(20),
            pod_gc_quarantine: Duration::from_secs(40),
            pod_network: None,
            acme: None,
            plugins: None,
            discovery_period: Duration::from_secs(30),
        }
    }
}
