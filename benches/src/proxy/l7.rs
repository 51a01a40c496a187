//! HTTP/1.1 requests: rate, p99 and CPU per request, for answers of 1 KiB and 64 KiB; connections reused.

use anyhow::{Context, Result, bail};
use scaleup_tests::cluster::{Cluster, Options};
use serde_json::Value;
use tokio::process::Command;

use super::{own_address, publish};
use crate::figure;
use crate::peers::Peer;

/// Connections that wrk keeps open.
const CONNECTIONS: usize = 64;
/// Rounds; the three take turns, so that a slow spell of the machine hits all. The one with the least CPU counts.
pub const ROUNDS: usize = 5;

/// What wrk saw, and what it cost the proxy.
pub struct Measured {
    pub rate: f64,
    pub p99_ms: f64,
    pub cpu_us: f64,
}

/// The whole comparison.
pub async fn all(quick: bool) -> Result<()> {
    let (seconds, rounds) = if quick { (1, 1) } else { (4, ROUNDS) };
    let cluster = Cluster::start(Options::default()).await?;
    let (api, pid) = (cluster.api()?, cluster.pid().context("pid")?);
    for (name, body_bytes) in [("h1-1k", 1024), ("h1-64k", 65_536)] {
        let body = vec![b'x'; body_bytes];
        let backends = [Peer::nginx_backend(&body).await?, Peer::nginx_backend(&body).await?];
        let address = own_address()?;
        let upstreams: Vec<String> = backends.iter().map(|b| format!("{address}:{}", b.port)).collect();
        let (nginx, haproxy) = (Peer::nginx_proxy(&upstreams).await?, Peer::haproxy(&upstreams).await?);
        let port = publish(&api, name, "http", &backends.iter().map(|b| b.port).collect::<Vec<_>>()).await?;
        let mut best: [Option<Measured>; 3] = [None, None, None];
        for _ in 0..rounds {
            let targets = [(port, vec![pid]), (nginx.port, nginx.pids()?), (haproxy.port, haproxy.pids()?)];
            for (slot, (port, pids)) in best.iter_mut().zip(targets) {
                let measured = wrk(port, &pids, seconds).await?;
                if slot.as_ref().is_none_or(|b| measured.cpu_us < b.cpu_us) {
                    *slot = Some(measured);
                }
            }
        }
        let [Some(ours), Some(nginx), Some(haproxy)] = best else { bail!("nothing measured") };
        let name = name.replace('-', "_");
        for (peer, theirs) in [("nginx", &nginx), ("haproxy", &haproxy)] {
            figure::against(&format!("proxy_{name}_rate"), ours.rate, "1/s", peer, theirs.rate);
            figure::against(&format!("proxy_{name}_cpu"), ours.cpu_us, "us/request", peer, theirs.cpu_us);
            figure::against(&format!("proxy_{name}_p99"), ours.p99_ms, "ms", peer, theirs.p99_ms);
        }
    }
    figure::print("proxy_h1_connection_reuse", super::reuse(&api.get("/metrics").await?.text), "%");
    Ok(())
}

/// Measures the proxy on a port, whose processes these are.
pub async fn wrk(port: u16, pids: &[u32], seconds: u64) -> Result<Measured> {
    let dir = tempfile::tempdir()?;
    let script = dir.path().join("report.lua");
    let report = "done = function(s, l, r) io.write(string.format('JSON {\"n\":%d,\"us\":%d,\"p99\":%d,\"bad\":%d}\\n', \
                  s.requests, s.duration, l:percentile(99), s.errors.status + s.errors.read + s.errors.write + s.errors.connect + s.errors.timeout)) end";
    std::fs::write(&script, report)?;
    let before = figure::cpu_of(pids)?;
    let output = Command::new("wrk")
        .args(["-t1", &format!("-c{CONNECTIONS}"), &format!("-d{seconds}s"), "-s"])
        .arg(&script)
        .arg(format!("http://127.0.0.1:{port}/"))
        .output()
        .await?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|l| l.strip_prefix("JSON ")).with_context(|| text.to_string())?;
    let result: Value = serde_json::from_str(line)?;
    let number = |key: &str| result[key].as_f64().unwrap_or_default();
    if number("bad") > 0.0 || number("n") < 1.0 {
        bail!("port {port}: {result}");
    }
    let cpu_us = (figure::cpu_of(pids)? - before) * 1e6 / number("n");
    Ok(Measured { rate: number("n") * 1e6 / number("us"), p99_ms: number("p99") / 1e3, cpu_us })
}
