//! Metrics of the process itself, under the names that Prometheus' clients use everywhere, and serving a role's metrics alone.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

/// `/proc/self/stat` counts CPU time in these per second (`USER_HZ`, fixed in the ABI).
const TICKS_PER_S: f64 = 100.0;

#[derive(Debug)]
struct Process;

/// CPU seconds and resident bytes of this process.
fn usage() -> Option<(f64, i64, i64)> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    let pages: i64 = fields.get(21)?.parse().ok()?;
    let files = std::fs::read_dir("/proc/self/fd").ok()?.count();
    let page = i64::try_from(rustix::param::page_size()).ok()?;
    Some((ticks / TICKS_PER_S, pages.saturating_mul(page), i64::try_from(files).ok()?))
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some((cpu, resident, files)) = usage() else { return Ok(()) };
        let counter = ConstCounter::new(cpu);
        let metric = encoder.encode_descriptor("process_cpu_seconds", "CPU time used", None, counter.metric_type())?;
        counter.encode(metric)?;
        for (name, help, value) in [
            ("process_resident_memory_bytes", "Resident memory", resident),
            ("process_open_fds", "Open file descriptors", files),
        ] {
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}

/// Adds the process' own metrics.
pub fn register(registry: &mut Registry) {
    registry.register_collector(Box::new(Process));
}

/// A registry that holds the process' own metrics.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    register(&mut registry);
    registry
}

/// Serves `/metrics`, `/healthz` and `more` of a role that runs alone, until `shutdown`.
pub async fn serve_metrics(
    listen: SocketAddr,
    registry: Arc<Registry>,
    more: axum::Router,
    shutdown: CancellationToken,
) -> Result<()> {
    let listener = crate::preflight::bind(listen).await?;
    let text = move || {
        let mut out = String::new();
        // Writing into a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut out, &registry);
        ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], out)
    };
    let app = more
        .route("/metrics", axum::routing::get(async move || text()))
        .route("/healthz", axum::routing::get(async || "ok"));
    axum::serve(listener, app).with_graceful_shutdown(shutdown.cancelled_owned()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_reports_itself() {
        let mut out = String::new();
        prometheus_client::encoding::text::encode(&mut out, &registry()).unwrap();
        for name in ["process_cpu_seconds_total ", "process_resident_memory_bytes ", "process_open_fds "] {
            let value = out.lines().find_map(|l| l.strip_prefix(name)).unwrap().parse::<f64>().unwrap();
            assert!(value >= 0.0, "{name}{value}");
        }
    }
}
