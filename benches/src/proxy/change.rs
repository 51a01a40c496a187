//! From a change of an EndpointSlice or an HTTPRoute to its effect on the wire, under load: how long, and what it costs in errors.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use scaleup_tests::cluster::{Cluster, Options, free_port};
use scaleup_tests::eventually;
use scaleup_tests::http::Api;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{GATEWAYS, SLICES, own_address, publish, slice, write_all};
use crate::figure;
use crate::peers::Peer;

/// Connections that send one request after another meanwhile.
const LOAD: usize = 16;
/// Longest wait for an effect.
const PATIENCE: Duration = Duration::from_secs(5);

/// Other routes that the changed one is among.
const OTHER_ROUTES: usize = 1_000;
const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/default/httproutes";

/// A Service that moves back and forth between two endpoints, and a route that moves between two Services.
pub async fn all(quick: bool) -> Result<()> {
    let (changes, others) = if quick { (10, 10) } else { (200, OTHER_ROUTES) };
    let cluster = Cluster::start(Options::default()).await?;
    let (api, address) = (cluster.api()?, own_address()?);
    let backends = [Peer::nginx_backend(b"0").await?, Peer::nginx_backend(b"1").await?];
    let ports = [backends[0].port, backends[1].port];
    let port = publish(&api, "change", "http", &ports[..1]).await?;
    let endpoint = |target: usize| (format!("{SLICES}/change-0"), slice("change", 0, "http", &address, ports[target]));
    measure("proxy_change", &api, port, changes, endpoint).await?;

    let services = [publish(&api, "to0", "http", &ports[..1]).await?, publish(&api, "to1", "http", &ports[1..]).await?];
    let port = free_port()?;
    let gateway = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "change"},
        "spec": {"gatewayClassName": "scaleup", "listeners": [{"name": "http", "port": port, "protocol": "HTTP"}]}});
    api.post(GATEWAYS, &gateway).await?.ok()?;
    let route = |name: &str, path: &str, target: usize| {
        let rule = json!({"matches": [{"path": {"type": "PathPrefix", "value": path}}],
            "backendRefs": [{"name": format!("to{target}"), "port": services[target]}]});
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": name},
            "spec": {"parentRefs": [{"name": "change"}], "rules": [rule]}})
    };
    write_all(&api, ROUTES, 0..others, |number| route(&format!("r{number}"), &format!("/r{number}"), 0)).await?;
    api.post(ROUTES, &route("change", "/", 0)).await?.ok()?;
    eventually("the route is served", || async {
        let Ok(mut connection) = Connection::open(port).await else { return Ok(None) };
        Ok(connection.get().await.ok())
    })
    .await?;
    let moved = |target: usize| (format!("{ROUTES}/change"), route("change", "/", target));
    measure("proxy_route_change", &api, port, changes, moved).await
}

/// Writes what `change` gives for target 1, 0, 1… and asks the port, under load, until the target answers.
async fn measure(
    figures: &str,
    api: &Api,
    port: u16,
    changes: usize,
    change: impl Fn(usize) -> (String, Value),
) -> Result<()> {
    let (stop, served, failed) =
        (Arc::new(AtomicBool::new(false)), Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let mut load = tokio::task::JoinSet::new();
    for _ in 0..LOAD {
        let (stop, served, failed) = (stop.clone(), served.clone(), failed.clone());
        load.spawn(async move {
            let mut connection = Connection::open(port).await;
            while !stop.load(Relaxed) {
                match &mut connection {
                    Ok(open) => match open.get().await {
                        Ok(_) => {
                            served.fetch_add(1, Relaxed);
                            continue;
                        }
                        Err(_) => failed.fetch_add(1, Relaxed),
                    },
                    Err(_) => failed.fetch_add(1, Relaxed),
                };
                connection = Connection::open(port).await;
            }
        });
    }
    let mut probe = Connection::open(port).await?;
    let (mut took, mut after_write) = (Vec::new(), Vec::new());
    for number in 1..=changes {
        let target = number % 2;
        let (path, body) = change(target);
        let start = Instant::now();
        let written = tokio::spawn({
            let api = api.clone();
            async move {
                api.put(&path, &body).await?.ok()?;
                anyhow::Ok(Instant::now())
            }
        });
        // Effect: the first request that the new endpoint answers.
        while probe.get().await? != b'0' + target as u8 {
            ensure!(start.elapsed() < PATIENCE, "change {number} had no effect");
        }
        let effect = Instant::now();
        took.push(effect - start);
        after_write.push(effect.saturating_duration_since(written.await??));
        ensure!(probe.get().await? == b'0' + target as u8, "the old endpoint answered after the new one");
    }
    stop.store(true, Relaxed);
    while load.join_next().await.is_some() {}
    took.sort_unstable();
    figure::print(&format!("{figures}_p50"), figure::quantile_ms(&took, 0.5), "ms");
    figure::print(&format!("{figures}_p99"), figure::quantile_ms(&took, 0.99), "ms");
    after_write.sort_unstable();
    // The rest is the API's durable write; an effect may well precede its answer.
    figure::print(&format!("{figures}_after_write_p99"), figure::quantile_ms(&after_write, 0.99), "ms");
    figure::print(&format!("{figures}_requests"), served.load(Relaxed) as f64, "requests meanwhile");
    figure::print(&format!("{figures}_errors"), failed.load(Relaxed) as f64, "requests failed");
    Ok(())
}

/// A keep-alive connection that asks for one byte.
struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(port: u16) -> Result<Self> {
        Ok(Self { stream: TcpStream::connect(("127.0.0.1", port)).await?, buffer: vec![0; 4096] })
    }

    /// The one byte of the answer's body.
    async fn get(&mut self) -> Result<u8> {
        self.stream.write_all(b"GET / HTTP/1.1\r\nhost: change\r\n\r\n").await?;
        let mut filled = 0;
        loop {
            let read = self.stream.read(&mut self.buffer[filled..]).await?;
            filled += read;
            let answer = &self.buffer[..filled];
            if read == 0 {
                bail!("closed");
            }
            let Some(head) = answer.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
            ensure!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(answer));
            if filled > head + 4 {
                return answer.last().copied().context("empty");
            }
        }
    }
}
