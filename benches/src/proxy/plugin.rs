//! HTTP/1.1 with and without a routing plugin, through the same load balancer to the same backends: rate, CPU and p99.

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use scaleup_plugins::testing::least_in_flight;
use scaleup_tests::cluster::{Cluster, Options};
use scaleup_tests::eventually;
use scaleup_tests::http::Api;
use serde_json::json;

use super::l7::{Measured, ROUNDS, wrk};
use super::publish;
use crate::figure;
use crate::peers::Peer;

/// Backends; the plugin looks at all of them for each request.
const BACKENDS: usize = 3;

/// The whole comparison.
pub async fn all(quick: bool) -> Result<()> {
    let (seconds, rounds) = if quick { (1, 1) } else { (4, ROUNDS) };
    let cluster = Cluster::start(Options::default()).await?;
    let (api, pid) = (cluster.api()?, cluster.pid().context("pid")?);
    let mut backends = Vec::new();
    for _ in 0..BACKENDS {
        backends.push(Peer::nginx_backend(&[b'x'; 1024]).await?);
    }
    let ports: Vec<u16> = backends.iter().map(|backend| backend.port).collect();
    let (off, on) =
        (publish(&api, "plugin-off", "http", &ports).await?, publish(&api, "plugin-on", "http", &ports).await?);
    bind(&api, on).await?;
    let mut best: [Option<Measured>; 2] = [None, None];
    for _ in 0..rounds {
        for (slot, port) in best.iter_mut().zip([off, on]) {
            let measured = wrk(port, &[pid], seconds).await?;
            if slot.as_ref().is_none_or(|b| measured.cpu_us < b.cpu_us) {
                *slot = Some(measured);
            }
        }
    }
    let [Some(off), Some(on)] = best else { bail!("nothing measured") };
    figure::against("plugin_proxy_rate", on.rate, "1/s", "without", off.rate);
    figure::against("plugin_proxy_cpu", on.cpu_us, "us/request", "without", off.cpu_us);
    figure::against("plugin_proxy_p99", on.p99_ms, "ms", "without", off.p99_ms);
    Ok(())
}

/// Makes a plugin choose for the Service `plugin-on`, and waits until it does.
async fn bind(api: &Api, port: u16) -> Result<()> {
    let plugin = json!({"apiVersion": "policy.scaleup.dev/v1", "kind": "WasmPlugin", "metadata": {"name": "least"},
        "spec": {"world": "routing", "source": {"inline": BASE64_STANDARD.encode(least_in_flight().component())}}});
    api.post("/apis/policy.scaleup.dev/v1/namespaces/default/wasmplugins", &plugin).await?.ok()?;
    let policy = json!({"apiVersion": "traffic.scaleup.dev/v1", "kind": "TrafficPolicy", "metadata": {"name": "least"},
        "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "plugin-on"}], "policyRef": {"name": "least"}}});
    api.post("/apis/traffic.scaleup.dev/v1/namespaces/default/trafficpolicies", &policy).await?.ok()?;
    eventually("the plugin decides", || async {
        reqwest::get(format!("http://127.0.0.1:{port}/")).await?;
        let metrics = api.get("/metrics").await?.text;
        let decided = |line: &str| line.starts_with("lb_plugin_decisions_total{") && line.contains("decision=\"pick\"");
        Ok(metrics.lines().any(decided).then_some(()))
    })
    .await
}
