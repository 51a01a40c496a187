//! Prometheus families of the load balancer, merged from the threads' counters when scraped.
//!
//! Cardinality is bounded: label sets per Service, route rule, image and listener, each at most so many; endpoints, pods, paths and
//! clients are never labels. `docs/metrics.md` lists every family; a test compares it with what is registered.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::hub::{Hub, SiteKey};
use crate::observe::{ObserverTotals, Observers};
use crate::plugin::{GenerationTotals, Ruling};
use crate::snapshot::Protocol;
use crate::stats::{
    CODE_CLASSES, DURATION_BUCKETS, Durations, ListenerTotals, PROTOCOLS, RequestTotals, ServiceTotals,
};

/// Services that get label sets of their own; the ones after them (by name) are not exposed.
const MAX_SERVICES: usize = 10_000;
/// Likewise rules of routes.
const MAX_RULES: usize = 10_000;
/// Likewise plugins.
const MAX_PLUGINS: usize = 2_000;
/// Likewise listeners.
const MAX_LISTENERS: usize = 2_000;

/// Registers the families with the platform's registry.
pub(crate) fn register(registry: &mut Registry, hub: Arc<Hub>, observers: Arc<Observers>) {
    registry.register_collector(Box::new(LbCollector { hub, observers }));
}

#[derive(Debug)]
struct LbCollector {
    hub: Arc<Hub>,
    observers: Arc<Observers>,
}

/// A family of one number per label set: name, help, value.
type Family<T> = (&'static str, &'static str, fn(&T) -> u64);

const COUNTERS: [Family<ServiceTotals>; 9] = [
    ("lb_bytes_in", "Payload bytes received from clients.", |t| t.bytes_in),
    ("lb_bytes_out", "Payload bytes sent to clients.", |t| t.bytes_out),
    ("lb_retries", "Requests sent again after a failed attempt.", |t| t.retries),
    ("lb_upstream_connect_failures", "Failed attempts to connect to an endpoint.", |t| t.connect_failures),
    ("lb_upstream_connections_opened", "Connections opened to endpoints.", |t| t.upstream_opened),
    ("lb_upstream_connections_reused", "Requests that used a pooled connection.", |t| t.upstream_reused),
    ("lb_rate_limited", "Requests refused by a rate limit.", |t| t.rate_limited),
    ("lb_overloaded", "Requests refused because too much was in flight.", |t| t.overloaded),
    ("lb_ejections", "Times an endpoint was ejected because it failed.", |t| t.ejections),
];

const GAUGES: [Family<ServiceTotals>; 2] = [
    ("lb_active_connections", "Client connections open now.", |t| t.active_connections),
    ("lb_queue_depth", "Requests waiting in the Service's queue now.", |t| t.queue_depth),
];

/// A histogram family: name, help, value.
type Histogram<T> = (&'static str, &'static str, fn(&T) -> &Durations);

const HISTOGRAMS: [Histogram<ServiceTotals>; 3] = [
    ("lb_request_duration_seconds", "Seconds from the request head to the end of the response.", |t| &t.durations),
    ("lb_upstream_connect_seconds", "Seconds that connecting to an endpoint took.", |t| &t.connects),
    ("lb_queue_wait_seconds", "Seconds that requests waited in the Service's queue.", |t| &t.queue_waits),
];

const ROUTE_COUNTERS: [Family<RequestTotals>; 3] = [
    ("lb_route_bytes_in", "Payload bytes received for the rule.", |t| t.bytes_in),
    ("lb_route_bytes_out", "Payload bytes sent for the rule.", |t| t.bytes_out),
    ("lb_route_retries", "The rule's requests sent again after a failed attempt.", |t| t.retries),
];

const IMAGE_COUNTERS: [Family<RequestTotals>; 2] = [
    ("lb_image_bytes_in", "Payload bytes received for pods of the image.", |t| t.bytes_in),
    ("lb_image_bytes_out", "Payload bytes sent by pods of the image.", |t| t.bytes_out),
];

const LISTENER_COUNTERS: [Family<ListenerTotals>; 2] = [
    ("lb_listener_connections", "Connections accepted.", |t| t.accepted),
    ("lb_listener_connections_refused", "Connections turned away because there were too many.", |t| t.refused),
];

const LISTENER_GAUGES: [Family<ListenerTotals>; 1] =
    [("lb_listener_active_connections", "Connections open now.", |t| t.active)];

const OBSERVERS: [Family<ObserverTotals>; 4] = [
    ("lb_access_log_lines", "Lines written to the access log.", |t| t.lines),
    ("lb_access_log_dropped", "Lines of the access log that were lost because it was too slow.", |t| t.lines_dropped),
    ("lb_spans_exported", "Spans that the collector took.", |t| t.spans),
    ("lb_spans_dropped", "Spans that were lost because the collector was away or too slow.", |t| t.spans_dropped),
];

/// A label set as the encoder takes it, borrowed from [`Row`]s.
type Labels<'a> = Vec<(&'static str, &'a str)>;

/// Label values and what is counted under them.
type Row<T> = (Vec<(&'static str, String)>, T);

impl Collector for LbCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let encoder = &mut encoder;
        let services = self.services();
        requests(encoder, "lb_requests", "Finished requests by class of their status code.", &services, |t| &t.codes)?;
        histograms(encoder, &HISTOGRAMS, &services)?;
        counters(encoder, &COUNTERS, &services)?;
        gauges(encoder, &GAUGES, &services)?;

        let routes = self.routes();
        let help = "Finished requests of a route's rule by class of their status code.";
        requests(encoder, "lb_route_requests", help, &routes, |t| &t.codes)?;
        let help = "Seconds from the request head to the end of the response, by rule.";
        histograms(encoder, &[("lb_route_request_duration_seconds", help, |t: &RequestTotals| &t.durations)], &routes)?;
        counters(encoder, &ROUTE_COUNTERS, &routes)?;

        let images = self.hub.images().into_iter();
        let images: Vec<Row<RequestTotals>> =
            images.map(|(image, t)| (vec![("image", image.to_string())], t)).collect();
        let help = "Finished requests of pods of an image by class of their status code.";
        requests(encoder, "lb_image_requests", help, &images, |t| &t.codes)?;
        let help = "Seconds from the request head to the end of the response, by image.";
        histograms(encoder, &[("lb_image_request_duration_seconds", help, |t: &RequestTotals| &t.durations)], &images)?;
        counters(encoder, &IMAGE_COUNTERS, &images)?;

        self.encode_plugins(encoder)?;
        self.encode_listeners(encoder)?;
        self.encode_process(encoder)
    }
}

impl LbCollector {
    fn services(&self) -> Vec<Row<ServiceTotals>> {
        let totals = self.hub.totals().into_iter().take(MAX_SERVICES);
        totals
            .map(|(key, totals)| {
                (vec![("service", key.name.to_string()), ("namespace", key.namespace.to_string())], totals)
            })
            .collect()
    }

    fn routes(&self) -> Vec<Row<RequestTotals>> {
        let routes = self.hub.routes().into_iter().take(MAX_RULES);
        routes
            .map(|(id, totals)| {
                let labels = vec![
                    ("kind", id.kind.to_owned()),
                    ("namespace", id.namespace.to_string()),
                    ("route", id.name.to_string()),
                    ("rule", id.rule.to_string()),
                ];
                (labels, totals)
            })
            .collect()
    }

    fn encode_plugins(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let plugins = self.hub.plugin_totals().into_iter().take(MAX_PLUGINS);
        let rows: Vec<Row<GenerationTotals>> = plugins
            .flat_map(|(key, generations)| {
                generations.into_iter().map(move |(generation, totals)| {
                    let generation = generation.map(|number| number.to_string()).unwrap_or_default();
                    (vec![("plugin", key.to_string()), ("generation", generation)], totals)
                })
            })
            .collect();
        let help = "Decisions of routing plugins about attempts of requests.";
        split(encoder, "lb_plugin_decisions", help, &rows, "decision", |totals| {
            Ruling::ALL.map(|ruling| (ruling.name(), totals[ruling as usize]))
        })
    }

    fn encode_listeners(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let listeners = self.hub.listeners().into_iter().take(MAX_LISTENERS);
        let listeners: Vec<Row<ListenerTotals>> =
            listeners.map(|(key, totals)| (vec![("listener", listener_name(&key))], totals)).collect();
        counters(encoder, &LISTENER_COUNTERS, &listeners)?;
        gauges(encoder, &LISTENER_GAUGES, &listeners)?;
        let help = "TLS handshakes by how they ended.";
        split(encoder, "lb_listener_tls_handshakes", help, &listeners, "result", |t| {
            [("ok", t.tls_ok), ("failed", t.tls_failed)]
        })?;
        let help = "Connections by what is spoken on them.";
        split(encoder, "lb_listener_protocol_connections", help, &listeners, "protocol", |t| {
            [0, 1, 2].map(|index| (PROTOCOLS[index], t.spoken[index]))
        })?;
        let help = "Requests that no route matched, or that were refused before one was looked for, by class of their status code.";
        requests(encoder, "lb_listener_unrouted_requests", help, &listeners, |t| &t.unrouted)
    }

    fn encode_process(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let in_flight = self.hub.endpoints().iter().map(|(_, count)| *count).fold(0, u64::wrapping_add);
        let help = "Requests and TCP connections that endpoints are serving now.";
        gauges(encoder, &[("lb_in_flight", help, |t| *t)], &[(Vec::new(), in_flight)])?;
        let config = [(Vec::new(), self.hub.config_stats.totals())];
        let help = "Seconds that taking over a new configuration took; its count is that of configurations.";
        let effect = "Seconds from an event of the API to its effect on traffic.";
        let families: [Histogram<(Durations, Durations)>; 2] =
            [("lb_config_publish_seconds", help, |t| &t.0), ("lb_config_effect_seconds", effect, |t| &t.1)];
        histograms(encoder, &families, &config)?;
        let observed = [(Vec::new(), self.observers.totals())];
        counters(encoder, &OBSERVERS, &observed)
    }
}

/// A listener as a label value.
pub(crate) fn listener_name(key: &SiteKey) -> String {
    let protocol = |protocol| match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    };
    match key {
        SiteKey::Listener(port) => format!("{}/{}", port.port, protocol(port.protocol)),
        SiteKey::Service(key) => format!("Service {} {}/{}", key.service, key.port, protocol(key.protocol)),
    }
}

fn borrowed<'a>(labels: &'a [(&'static str, String)]) -> Labels<'a> {
    labels.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

/// The only row, if it has no labels.
fn unlabelled<T>(rows: &[Row<T>]) -> Option<&T> {
    match rows {
        [(labels, totals)] if labels.is_empty() => Some(totals),
        _ => None,
    }
}

fn counters<T>(encoder: &mut DescriptorEncoder<'_>, families: &[Family<T>], rows: &[Row<T>]) -> fmt::Result {
    for (name, help, value) in families {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        if let Some(totals) = unlabelled(rows) {
            ConstCounter::new(value(totals)).encode(family)?;
            continue;
        }
        for (labels, totals) in rows {
            ConstCounter::new(value(totals)).encode(family.encode_family(&borrowed(labels).as_slice())?)?;
        }
    }
    Ok(())
}

fn gauges<T>(encoder: &mut DescriptorEncoder<'_>, families: &[Family<T>], rows: &[Row<T>]) -> fmt::Result {
    for (name, help, value) in families {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        if let Some(totals) = unlabelled(rows) {
            ConstGauge::new(i64::try_from(value(totals)).unwrap_or(0)).encode(family)?;
            continue;
        }
        for (labels, totals) in rows {
            let value = i64::try_from(value(totals)).unwrap_or(0);
            ConstGauge::new(value).encode(family.encode_family(&borrowed(labels).as_slice())?)?;
        }
    }
    Ok(())
}

/// One number per label set and value of another label.
fn split<T, const N: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: &[Row<T>],
    label: &'static str,
    values: impl Fn(&T) -> [(&'static str, u64); N],
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, totals) in rows {
        for (value, count) in values(totals).into_iter().filter(|(_, count)| *count > 0) {
            let mut labels = borrowed(labels);
            labels.push((label, value));
            ConstCounter::new(count).encode(family.encode_family(&labels.as_slice())?)?;
        }
    }
    Ok(())
}

fn requests<T>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: &[Row<T>],
    codes: impl Fn(&T) -> &[u64; 6],
) -> fmt::Result {
    split(encoder, name, help, rows, "code", |totals| {
        let counts = codes(totals);
        [0, 1, 2, 3, 4, 5].map(|index| (CODE_CLASSES[index], counts[index]))
    })
}

/// Those without any observation are left out: nineteen lines each would say nothing.
fn histograms<T>(encoder: &mut DescriptorEncoder<'_>, families: &[Histogram<T>], rows: &[Row<T>]) -> fmt::Result {
    for (name, help, value) in families {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, totals) in rows {
            let durations = value(totals);
            let count = durations.count();
            if count == 0 {
                continue;
            }
            let bounds = DURATION_BUCKETS.iter().copied().chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(durations.buckets).collect();
            let sum = durations.sum_ns as f64 / 1e9;
            if labels.is_empty() {
                family.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
                continue;
            }
            let labels = borrowed(labels);
            family.encode_family(&labels.as_slice())?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{PlanConfig, ServiceKey, plan};
    use serde_json::json;
    use std::collections::BTreeMap;

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
        register(&mut registry, hub.clone(), Arc::default());
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

    /// The families that a text declares: name to type and help.
    fn declared(text: &str) -> BTreeMap<String, (String, String)> {
        let mut families: BTreeMap<String, (String, String)> = BTreeMap::new();
        for line in text.lines() {
            if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
                families.entry(name.to_owned()).or_default().1 = help.to_owned();
            } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                families.entry(name.to_owned()).or_default().0 = kind.to_owned();
            }
        }
        families
    }

    #[test]
    fn the_documentation_lists_exactly_what_is_registered() {
        let mut registry = Registry::default();
        register(&mut registry, Arc::new(Hub::new(1)), Arc::default());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        let registered = declared(&text);
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        let document = std::fs::read_to_string(path).expect("docs/metrics.md");
        let mut documented = BTreeMap::new();
        for row in document.lines().filter(|line| line.starts_with("| `lb_")) {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            let [name, kind, help] = cells[..] else { panic!("three cells: {row}") };
            documented.insert(name.trim_matches('`').to_owned(), (kind.to_owned(), help.to_owned()));
        }
        for (name, (kind, help)) in &registered {
            let row = format!("| `{name}` | {kind} | {help} |");
            assert_eq!(
                documented.get(name),
                Some(&(kind.clone(), help.clone())),
                "docs/metrics.md needs the row\n{row}"
            );
        }
        let gone: Vec<&String> = documented.keys().filter(|name| !registered.contains_key(*name)).collect();
        assert!(gone.is_empty(), "docs/metrics.md lists what is not registered: {gone:?}");
    }
}
