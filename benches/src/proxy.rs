//! The load balancer beside nginx and HAProxy: same backends, same client (wrk), same run.

use anyhow::{Context, Result, bail};
use scaleup_tests::cluster::{Cluster, Options};
use scaleup_tests::eventually;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::figure;
use crate::peers::Peer;

/// Connections that wrk keeps open.
const CONNECTIONS: usize = 64;

struct Measured {
    rate: f64,
    p99_ms: f64,
    cpu_us: f64,
}

/// This machine's own address: backends may not be on loopback, as endpoints must not.
fn own_address() -> Result<String> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // TEST-NET-3; connecting a datagram socket only looks the route up.
    socket.connect("203.0.113.1:9")?;
    Ok(socket.local_addr()?.ip().to_string())
}

/// HTTP/1.1 requests per second, p99 and CPU per request, 1 KiB and 64 KiB answers.
pub async fn all(quick: bool) -> Result<()> {
    let seconds = if quick { 1 } else { 8 };
    let cluster = Cluster::start(Options::default()).await?;
    let pid = cluster.pid().context("pid")?;
    for (name, body_bytes) in [("h1_1k", 1024), ("h1_64k", 65_536 - 1024)] {
        let backends = [Peer::nginx_backend(body_bytes).await?, Peer::nginx_backend(body_bytes).await?];
        let address = own_address()?;
        let upstreams: Vec<String> = backends.iter().map(|b| format!("{address}:{}", b.port)).collect();
        let (nginx, haproxy) = (Peer::nginx_proxy(&upstreams).await?, Peer::haproxy(&upstreams).await?);
        let port = publish(&cluster, name, &address, &backends.iter().map(|b| b.port).collect::<Vec<_>>()).await?;
        // Interleaved twice, so that a slow spell of the machine hits all three; the better run of each counts.
        let mut best: [Option<Measured>; 3] = [None, None, None];
        for _ in 0..2 {
            let targets = [(port, vec![pid]), (nginx.port, nginx.pids()?), (haproxy.port, haproxy.pids()?)];
            for (slot, (port, pids)) in best.iter_mut().zip(targets) {
                let measured = wrk(port, &pids, seconds).await?;
                if slot.as_ref().is_none_or(|b| measured.cpu_us < b.cpu_us) {
                    *slot = Some(measured);
                }
            }
        }
        let [Some(ours), Some(nginx), Some(haproxy)] = best else { bail!("nothing measured") };
        for (peer, theirs) in [("nginx", &nginx), ("haproxy", &haproxy)] {
            figure::against(&format!("proxy_{name}_rate"), ours.rate, "1/s", peer, theirs.rate);
            figure::against(&format!("proxy_{name}_cpu"), ours.cpu_us, "us/request", peer, theirs.cpu_us);
            figure::against(&format!("proxy_{name}_p99"), ours.p99_ms, "ms", peer, theirs.p99_ms);
        }
    }
    Ok(())
}

/// A Service without selector over the backends; its port once it answers.
async fn publish(cluster: &Cluster, name: &str, address: &str, ports: &[u16]) -> Result<u16> {
    let api = cluster.api()?;
    let name = name.replace('_', "-");
    let port = scaleup_tests::cluster::free_port()?;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"type": "LoadBalancer", "ports": [{"name": "http", "port": port, "targetPort": 80}]}});
    api.post("/api/v1/namespaces/default/services", &service).await?.ok()?;
    for (i, backend) in ports.iter().enumerate() {
        let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("{name}-{i}"), "labels": {"kubernetes.io/service-name": name}},
            "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
            "ports": [{"name": "http", "port": backend, "protocol": "TCP"}]});
        api.post("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &slice).await?.ok()?;
    }
    let client = &api.client;
    eventually("the load balancer answers", || async {
        let answer = client.get(format!("http://127.0.0.1:{port}/")).send().await?;
        Ok(answer.status().is_success().then_some(()))
    })
    .await?;
    Ok(port)
}

async fn wrk(port: u16, pids: &[u32], seconds: u64) -> Result<Measured> {
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
