//! `/metrics`, `/metrics/resource` and `/stats/summary`: the agent's own figures, and what containers use, as upstream names
//! them. Measured when asked; nothing is sampled in the background.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde_json::{Value, json};

use super::Refusal;
use crate::agent::Agent;
use crate::node::machine;
use crate::runtime::{Kind, PodRef, Stats};

/// Containers measured at a time.
const PARALLEL: usize = 8;

/// The agent's own.
pub async fn metrics(State(agent): State<Arc<Agent>>) -> Response {
    let mut registry = prometheus_client::registry::Registry::default();
    agent.metrics.register(&mut registry);
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _written = prometheus_client::encoding::text::encode(&mut text, &registry);
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
}

/// What one pod uses.
#[derive(Default)]
struct PodUse {
    sandbox: Stats,
    containers: BTreeMap<String, Stats>,
}

async fn measure(agent: &Agent) -> Result<BTreeMap<PodRef, PodUse>, Refusal> {
    let running = agent.runtime.list().await?.into_iter().filter(|l| l.running);
    let measured = futures::stream::iter(running.map(|item| async {
        let stats = agent.runtime.stats(&item.id).await.ok()?;
        Some((item, stats))
    }));
    let measured: Vec<_> = measured.buffer_unordered(PARALLEL).filter_map(futures::future::ready).collect().await;
    let mut pods: BTreeMap<PodRef, PodUse> = BTreeMap::new();
    for (item, stats) in measured {
        let pod = pods.entry(item.pod).or_default();
        match item.kind {
            Kind::Sandbox => pod.sandbox = stats,
            Kind::Container => {
                pod.containers.insert(item.name, stats);
            }
        }
    }
    Ok(pods)
}

impl PodUse {
    fn total(&self) -> Stats {
        self.containers.values().fold(self.sandbox, |sum, one| Stats {
            cpu_ns: sum.cpu_ns.saturating_add(one.cpu_ns),
            memory_working_set_bytes: sum.memory_working_set_bytes.saturating_add(one.memory_working_set_bytes),
            memory_usage_bytes: sum.memory_usage_bytes.saturating_add(one.memory_usage_bytes),
            ..sum
        })
    }
}

/// Nanoseconds as seconds.
fn seconds(ns: u64) -> String {
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

/// Prometheus text (`kubelet/metrics/collectors/resource_metrics.go`).
pub async fn resource(State(agent): State<Arc<Agent>>) -> Result<Response, Refusal> {
    let pods = measure(&agent).await?;
    let (node_cpu, node_memory) = machine::usage();
    let text = render(&pods, node_cpu, node_memory);
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

fn render(pods: &BTreeMap<PodRef, PodUse>, node_cpu: f64, node_memory: u64) -> String {
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, lines: Vec<(String, String)>| {
        // Writing to a string cannot fail.
        let _written = writeln!(out, "# HELP {name} [STABLE] {help}\n# TYPE {name} {kind}");
        for (labels, value) in lines {
            let _written = writeln!(out, "{name}{labels} {value}");
        }
    };
    let of_pod = |pod: &PodRef| format!("{{namespace=\"{}\",pod=\"{}\"}}", pod.namespace, pod.name);
    let each_container = |value: fn(&Stats) -> String| -> Vec<(String, String)> {
        let line = |pod: &PodRef, name: &str, stats: &Stats| {
            let labels = format!("{{container=\"{name}\",namespace=\"{}\",pod=\"{}\"}}", pod.namespace, pod.name);
            (labels, value(stats))
        };
        pods.iter().flat_map(|(pod, usage)| usage.containers.iter().map(move |(n, s)| line(pod, n, s))).collect()
    };
    let each_pod = |value: fn(&PodUse) -> String| -> Vec<(String, String)> {
        pods.iter().map(|(pod, usage)| (of_pod(pod), value(usage))).collect()
    };
    family(
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
        each_container(|s| seconds(s.cpu_ns)),
    );
    family(
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set of the container in bytes",
        each_container(|s| s.memory_working_set_bytes.to_string()),
    );
    family(
        "pod_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the pod in core-seconds",
        each_pod(|p| seconds(p.total().cpu_ns)),
    );
    family(
        "pod_memory_working_set_bytes",
        "gauge",
        "Current working set of the pod in bytes",
        each_pod(|p| p.total().memory_working_set_bytes.to_string()),
    );
    family(
        "container_network_receive_bytes_total",
        "counter",
        "Cumulative count of bytes received",
        each_pod(|p| p.sandbox.rx_bytes.to_string()),
    );
    family(
        "container_network_transmit_bytes_total",
        "counter",
        "Cumulative count of bytes transmitted",
        each_pod(|p| p.sandbox.tx_bytes.to_string()),
    );
    family(
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
        vec![(String::new(), format!("{node_cpu:.2}"))],
    );
    family(
        "node_memory_working_set_bytes",
        "gauge",
        "Current working set of the node in bytes",
        vec![(String::new(), node_memory.to_string())],
    );
    family(
        "resource_scrape_error",
        "gauge",
        "1 if there was an error while getting container metrics, 0 otherwise",
        vec![(String::new(), "0".into())],
    );
    out
}

/// `stats/v1alpha1` Summary, the parts that are known.
pub async fn summary(State(agent): State<Arc<Agent>>) -> Result<Response, Refusal> {
    let pods = measure(&agent).await?;
    let now = crate::pod::status::time(agent.clock.now());
    let usage = |stats: &Stats| {
        json!({
            "cpu": { "time": now, "usageCoreNanoSeconds": stats.cpu_ns },
            "memory": { "time": now, "usageBytes": stats.memory_usage_bytes,
                        "workingSetBytes": stats.memory_working_set_bytes },
        })
    };
    let pod_entry = |(pod, used): (&PodRef, &PodUse)| -> Value {
        let containers: Vec<Value> = used
            .containers
            .iter()
            .map(|(name, stats)| {
                let mut entry = usage(stats);
                entry["name"] = json!(name);
                entry
            })
            .collect();
        let mut entry = usage(&used.total());
        entry["podRef"] = json!({ "name": pod.name, "namespace": pod.namespace, "uid": pod.uid });
        entry["containers"] = json!(containers);
        entry["network"] =
            json!({ "time": now, "name": "eth0", "rxBytes": used.sandbox.rx_bytes, "txBytes": used.sandbox.tx_bytes });
        entry
    };
    let (node_cpu, node_memory) = machine::usage();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds since boot, never negative")]
    let node_cpu_ns = (node_cpu * 1e9) as u64;
    let node = json!({
        "nodeName": agent.config.node_name,
        "cpu": { "time": now, "usageCoreNanoSeconds": node_cpu_ns },
        "memory": { "time": now, "workingSetBytes": node_memory },
    });
    let pods: Vec<Value> = pods.iter().map(pod_entry).collect();
    Ok(axum::Json(json!({ "node": node, "pods": pods })).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_named_as_upstreams() {
        let stats = |cpu_ns| Stats { cpu_ns, memory_working_set_bytes: 5, rx_bytes: 7, ..Stats::default() };
        let pod = PodRef { uid: "u".into(), name: "p".into(), namespace: "n".into() };
        let used = PodUse { sandbox: stats(1), containers: [("c".to_owned(), stats(1_500_000_000))].into() };
        let text = render(&[(pod, used)].into(), 12.5, 99);
        for line in [
            "container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\",pod=\"p\"} 1.500000000",
            "container_memory_working_set_bytes{container=\"c\",namespace=\"n\",pod=\"p\"} 5",
            "pod_cpu_usage_seconds_total{namespace=\"n\",pod=\"p\"} 1.500000001",
            "pod_memory_working_set_bytes{namespace=\"n\",pod=\"p\"} 10",
            "container_network_receive_bytes_total{namespace=\"n\",pod=\"p\"} 7",
            "node_cpu_usage_seconds_total 12.50",
            "node_memory_working_set_bytes 99",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }
}
