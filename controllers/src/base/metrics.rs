//! Work-queue metrics with upstream's names (`workqueue_*`), one family for all controllers.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// `{name="deployment"}`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabels {
    name: &'static str,
}

/// Ten buckets from 100 ns times ten, as upstream's.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(1e-7, 10.0, 10))
}

/// All metrics of this crate.
#[derive(Clone)]
pub struct Metrics {
    depth: Family<QueueLabels, Gauge>,
    adds: Family<QueueLabels, Counter>,
    retries: Family<QueueLabels, Counter>,
    queue_duration: Family<QueueLabels, Histogram, fn() -> Histogram>,
    work_duration: Family<QueueLabels, Histogram, fn() -> Histogram>,
    leader: Family<QueueLabels, Gauge>,
}

impl Metrics {
    /// Registers every metric; once per registry.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::unregistered();
        registry.register("workqueue_depth", "Current depth of workqueue", metrics.depth.clone());
        registry.register("workqueue_adds", "Total number of adds handled by workqueue", metrics.adds.clone());
        registry.register("workqueue_retries", "Total number of retries handled by workqueue", metrics.retries.clone());
        registry.register(
            "workqueue_queue_duration_seconds",
            "How long in seconds an item stays in workqueue before being requested",
            metrics.queue_duration.clone(),
        );
        registry.register(
            "workqueue_work_duration_seconds",
            "How long in seconds processing an item from workqueue takes",
            metrics.work_duration.clone(),
        );
        registry.register(
            "leader_election_master_status",
            "Gauge of if the reporting system is master of the relevant lease, 0 indicates backup, 1 indicates master",
            metrics.leader.clone(),
        );
        metrics
    }
    /// Metrics that nobody reads.
    pub fn unregistered() -> Self {
        Self {
            depth: Family::default(),
            adds: Family::default(),
            retries: Family::default(),
            queue_duration: Family::new_with_constructor(seconds),
            work_duration: Family::new_with_constructor(seconds),
            leader: Family::default(),
        }
    }
    /// The gauge of one leader election.
    pub fn leader(&self, name: &'static str) -> Gauge {
        self.leader.get_or_create_owned(&QueueLabels { name })
    }
    /// The metrics of one queue.
    pub fn queue(&self, name: &'static str) -> QueueMetrics {
        let labels = QueueLabels { name };
        QueueMetrics {
            depth: self.depth.get_or_create_owned(&labels),
            adds: self.adds.get_or_create_owned(&labels),
            retries: self.retries.get_or_create_owned(&labels),
            queue_duration: self.queue_duration.get_or_create_owned(&labels),
            work_duration: self.work_duration.get_or_create_owned(&labels),
        }
    }
}

/// Metrics of one queue.
#[derive(Clone)]
pub struct QueueMetrics {
    /// Keys that are ready to be worked on.
    pub depth: Gauge,
    /// Keys added.
    pub adds: Counter,
    /// Keys added again after a failure.
    pub retries: Counter,
    /// Seconds from add to get.
    pub queue_duration: Histogram,
    /// Seconds from get to done.
    pub work_duration: Histogram,
}
