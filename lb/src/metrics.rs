//! Prometheus families of the load balancer, merged from the threads' counters when scraped.
//!
//! Cardinality is bounded: one label set per Service (at most [`MAX_SERVICES`]) and code class; endpoints and pods are
//! not labels.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::hub::Hub;
use crate::snapshot::ServiceKey;
use crate::stats::{CODE_CLASSES, DURATION_BUCKETS, ServiceTotals};

/// Services that get label sets of their own; the ones after them (by name) are not exposed.
const MAX_SERVICES: usize = 10_000;

/// Registers the families with the platform's registry.
pub(crate) fn register(registry: &mut Registry, hub: Arc<Hub>) {
    registry.register_collector(Box::new(LbCollector { hub }));
}

#[derive(Debug)]
struct LbCollector {
    hub: Arc<Hub>,
}

/// One row per counter family: name, help, value.
type Family = (&'static str, &'static str, fn(&ServiceTotals) -> u64);

const COUNTERS: [Family; 6] = [
    ("lb_bytes_in", "Payload bytes received from clients.", |t| t.bytes_in),
    ("lb_bytes_out", "Payload bytes sent to clients.", |t| t.bytes_out),
    ("lb_retries", "Requests sent again after a failed attempt.", |t| t.retries),
    ("lb_upstream_connect_failures", "Failed attempts to connect to an endpoint.", |t| t.connect_failures),
    ("lb_upstream_connections_opened", "Connections opened to endpoints.", |t| t.upstream_opened),
    ("lb_upstream_connections_reused", "Requests that used a pooled connection.", |t| t.upstream_reused),
];

impl Collector for LbCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let mut totals = self.hub.totals();
        totals.truncate(MAX_SERVICES);
        encode_requests(&mut encoder, &totals)?;
        encode_durations(&mut encoder, &totals)?;
        for (name, help, value) in COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (key, totals) in &totals {
                ConstCounter::new(value(totals)).encode(family.encode_family(&labels(key))?)?;
            }
        }
        let name = "lb_active_connections";
        let mut family = encoder.encode_descriptor(name, "Client connections open now.", None, MetricType::Gauge)?;
        for (key, totals) in &totals {
            let active = i64::try_from(totals.active_connections).unwrap_or(0);
            ConstGauge::new(active).encode(family.encode_family(&labels(key))?)?;
        }
        let in_flight = self.hub.endpoints().iter().map(|(_, count)| i64::try_from(*count).unwrap_or(0)).sum::<i64>();
        let help = "Requests and TCP connections that endpoints are serving now.";
        let family = encoder.encode_descriptor("lb_in_flight", help, None, MetricType::Gauge)?;
        ConstGauge::new(in_flight).encode(family)
    }
}

fn labels(key: &ServiceKey) -> [(&'static str, &str); 2] {
    [("service", &key.name), ("namespace", &key.namespace)]
}

fn encode_requests(encoder: &mut DescriptorEncoder<'_>, totals: &[(ServiceKey, ServiceTotals)]) -> fmt::Result {
    let help = "Finished requests by class of their status code.";
    let mut family = encoder.encode_descriptor("lb_requests", help, None, MetricType::Counter)?;
    for (key, totals) in totals {
        for (class, count) in CODE_CLASSES.iter().zip(totals.codes).filter(|(_, count)| *count > 0) {
            let [service, namespace] = labels(key);
            ConstCounter::new(count).encode(family.encode_family(&[service, namespace, ("code", class)])?)?;
        }
    }
    Ok(())
}

fn encode_durations(encoder: &mut DescriptorEncoder<'_>, totals: &[(ServiceKey, ServiceTotals)]) -> fmt::Result {
    let help = "Seconds from the request head to the end of the response.";
    let mut family = encoder.encode_descriptor("lb_request_duration_seconds", help, None, MetricType::Histogram)?;
    for (key, totals) in totals {
        let bounds = DURATION_BUCKETS.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(totals.durations).collect();
        let sum = totals.duration_ns as f64 / 1e9;
        let count = totals.durations.iter().sum();
        family.encode_family(&labels(key))?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{PlanConfig, plan};
    use serde_json::json;

    #[test]
    fn families_are_exposed_with_their_names() {
        let hub = Arc::new(Hub::new(1));
        let service = json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"type": "LoadBalancer", "ports": [{"port": 80, "name": "http"}]},
        });
        let service = serde_json::from_value(service).expect("a Service");
        hub.publish(plan(&[service], &[], &PlanConfig::default()));
        let mut registry = Registry::default();
        register(&mut registry, hub.clone());
        let key = crate::hub::PortKey {
            service: ServiceKey::new("shop", "web"),
            port: 80,
            protocol: crate::snapshot::Protocol::Tcp,
            view: crate::hub::View::Outside,
        };
        let backend = hub.cell(&key).expect("a backend").load_full();
        backend.stats.shard(0).record(200, std::time::Duration::from_millis(3));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        for expected in [
            "lb_requests_total{service=\"web\",namespace=\"shop\",code=\"2xx\"} 1",
            "lb_request_duration_seconds_count{service=\"web\",namespace=\"shop\"} 1",
            "lb_request_duration_seconds_bucket{le=\"0.0025\",service=\"web\",namespace=\"shop\"} 0",
            "lb_request_duration_seconds_bucket{le=\"+Inf\",service=\"web\",namespace=\"shop\"} 1",
            "lb_active_connections{service=\"web\",namespace=\"shop\"} 0",
            "lb_upstream_connections_reused_total{service=\"web\",namespace=\"shop\"} 0",
            "lb_in_flight 0",
        ] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
    }
}
