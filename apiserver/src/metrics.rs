//! The API server's own metrics, under upstream's names.
//!
//! Labels come from the registry's rows, never from a path: no client can make new time series.

use std::borrow::Cow;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Upstream's buckets of `apiserver_request_duration_seconds`.
const DURATION_BUCKETS_S: [f64; 22] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    60.0,
];

/// Labels of one kind of request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// `GET`, `LIST`, `WATCH`, `POST`, `PUT`, `PATCH`, `DELETE`, `DELETECOLLECTION`.
    pub verb: &'static str,
    /// API group.
    pub group: Cow<'static, str>,
    /// Plural; empty for anything that is not a resource of ours.
    pub resource: Cow<'static, str>,
    /// Subresource; for other paths their first segment.
    pub subresource: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CountLabels {
    verb: &'static str,
    group: Cow<'static, str>,
    resource: Cow<'static, str>,
    subresource: &'static str,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InFlightLabels {
    request_kind: &'static str,
}

/// The metrics and the registry that `/metrics` shows. In one process every role registers here.
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<CountLabels, Counter>,
    durations: Family<RequestLabels, Histogram>,
    in_flight: Family<InFlightLabels, Gauge>,
    long_running: Gauge,
    /// Requests answered 429 because too many were in flight.
    pub rejected: Counter,
    /// Audit events that were lost because the queue was full or the disk refused.
    pub audit_errors: Counter,
    /// Panics that were caught.
    pub panics: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Mutex::new(Registry::default()),
            requests: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS_S)),
            in_flight: Family::default(),
            long_running: Gauge::default(),
            rejected: Counter::default(),
            audit_errors: Counter::default(),
            panics: Counter::default(),
        };
        metrics.with_registry(|registry| metrics.register(registry));
        metrics
    }
}

impl Metrics {
    fn register(&self, registry: &mut Registry) {
        registry.register("apiserver_request", "Requests by verb, resource and code", self.requests.clone());
        registry.register(
            "apiserver_request_duration_seconds",
            "Time to answer, long-running requests left out",
            self.durations.clone(),
        );
        registry.register("apiserver_current_inflight_requests", "Requests being served", self.in_flight.clone());
        registry.register(
            "apiserver_longrunning_requests",
            "Watches and streams being served",
            self.long_running.clone(),
        );
        registry.register(
            "apiserver_dropped_requests",
            "Requests answered 429 because too many were in flight",
            self.rejected.clone(),
        );
        registry.register("apiserver_audit_error", "Audit events that were lost", self.audit_errors.clone());
        registry.register("apiserver_handler_panics", "Panics caught while answering", self.panics.clone());
    }

    /// Access to the registry, for other parts of the process to register theirs.
    pub fn with_registry<T>(&self, f: impl FnOnce(&mut Registry) -> T) -> T {
        f(&mut self.registry.lock())
    }

    /// The exposition text.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        // Writing to a String fails only if a metric's encoder does; what was written by then is served.
        if prometheus_client::encoding::text::encode(&mut out, &self.registry.lock()).is_err() {
            out.push_str("# EOF\n");
        }
        out
    }

    /// Counts an answered request.
    pub fn answered(&self, labels: &RequestLabels, code: u16, took: Option<Duration>) {
        let RequestLabels { verb, group, resource, subresource } = labels.clone();
        self.requests.get_or_create(&CountLabels { verb, group, resource, subresource, code }).inc();
        if let Some(took) = took {
            self.durations.get_or_create(labels).observe(took.as_secs_f64());
        }
    }

    /// Counts a request as being served until the guard is dropped.
    pub fn in_flight(&self, mutating: bool) -> InFlight {
        let request_kind = if mutating { "mutating" } else { "readOnly" };
        InFlight::new(self.in_flight.get_or_create_owned(&InFlightLabels { request_kind }))
    }

    /// The same for a long-running one.
    pub fn long_running(&self) -> InFlight {
        InFlight::new(self.long_running.clone())
    }
}

/// Counts down when dropped.
pub struct InFlight(Gauge);

impl InFlight {
    fn new(gauge: Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_upstreams() {
        let metrics = Metrics::default();
        let labels =
            RequestLabels { verb: "LIST", group: "apps".into(), resource: "deployments".into(), subresource: "" };
        metrics.answered(&labels, 200, Some(Duration::from_millis(3)));
        let guard = metrics.in_flight(true);
        let text = metrics.encode();
        drop(guard);
        let line =
            r#"apiserver_request_total{verb="LIST",group="apps",resource="deployments",subresource="",code="200"} 1"#;
        assert!(text.contains(line), "{text}");
        assert!(text.contains("apiserver_request_duration_seconds_bucket"));
        assert!(text.contains(r#"apiserver_current_inflight_requests{request_kind="mutating"} 1"#));
        assert!(metrics.encode().contains(r#"apiserver_current_inflight_requests{request_kind="mutating"} 0"#));
    }
}
