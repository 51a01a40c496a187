//! The scheduler's metrics, with upstream's names.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::plugins::DEFAULT_SCHEDULER;
use crate::queue::Counts;

/// `{queue="active"}`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabels {
    queue: &'static str,
}

/// `{result="scheduled", profile="default-scheduler"}`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttemptLabels {
    result: &'static str,
    profile: &'static str,
}

/// Value of the label `result`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// The pod has a node.
    Scheduled,
    /// No node will do.
    Unschedulable,
    /// The binding failed.
    Error,
}

impl Attempt {
    fn label(self) -> &'static str {
        match self {
            Attempt::Scheduled => "scheduled",
            Attempt::Unschedulable => "unschedulable",
            Attempt::Error => "error",
        }
    }
}

/// Upstream's buckets: fifteen from a millisecond, doubling.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// All metrics of this crate.
#[derive(Clone)]
pub struct Metrics {
    attempts: Family<AttemptLabels, Counter>,
    attempt_duration: Family<AttemptLabels, Histogram, fn() -> Histogram>,
    algorithm_duration: Histogram,
    pending: Family<QueueLabels, Gauge>,
    dropped_reports: Counter,
}

impl Metrics {
    /// Registers every metric; once per registry.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::unregistered();
        registry.register(
            "scheduler_schedule_attempts",
            "Number of attempts to schedule pods, by the result",
            metrics.attempts.clone(),
        );
        registry.register(
            "scheduler_scheduling_attempt_duration_seconds",
            "Scheduling attempt latency in seconds (scheduling algorithm + binding)",
            metrics.attempt_duration.clone(),
        );
        registry.register(
            "scheduler_scheduling_algorithm_duration_seconds",
            "Scheduling algorithm latency in seconds",
            metrics.algorithm_duration.clone(),
        );
        registry.register(
            "scheduler_pending_pods",
            "Number of pending pods, by the queue type",
            metrics.pending.clone(),
        );
        registry.register(
            "scaleup_scheduler_dropped_reports",
            "Events and conditions that were not written because too many waited",
            metrics.dropped_reports.clone(),
        );
        metrics
    }

    /// Metrics that nobody reads.
    pub fn unregistered() -> Self {
        Self {
            attempts: Family::default(),
            attempt_duration: Family::new_with_constructor(seconds),
            algorithm_duration: seconds(),
            pending: Family::default(),
            dropped_reports: Counter::default(),
        }
    }

    pub(crate) fn attempt(&self, result: Attempt, took: Duration) {
        let labels = AttemptLabels { result: result.label(), profile: DEFAULT_SCHEDULER };
        self.attempts.get_or_create(&labels).inc();
        self.attempt_duration.get_or_create(&labels).observe(took.as_secs_f64());
    }

    pub(crate) fn algorithm(&self, took: Duration) {
        self.algorithm_duration.observe(took.as_secs_f64());
    }

    pub(crate) fn dropped_report(&self) {
        self.dropped_reports.inc();
    }

    pub(crate) fn pending(&self, counts: Counts) {
        let queues = [
            ("active", counts.active),
            ("backoff", counts.backoff),
            ("unschedulable", counts.unschedulable),
            ("gated", counts.gated),
        ];
        for (queue, count) in queues {
            self.pending.get_or_create(&QueueLabels { queue }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn names_are_upstreams() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.attempt(Attempt::Scheduled, Duration::from_millis(3));
        metrics.pending(Counts { active: 2, ..Counts::default() });
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "scheduler_schedule_attempts_total{result=\"scheduled\",profile=\"default-scheduler\"} 1",
            "scheduler_pending_pods{queue=\"active\"} 2",
            "scheduler_scheduling_attempt_duration_seconds_count{result=\"scheduled\",profile=\"default-scheduler\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
