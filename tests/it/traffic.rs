//! Routes from objects to the wire, under load: configuration changes, hand-overs to a new process, endpoints that die, slow clients.
//!
//! Endpoints are small servers of the test's own, named in EndpointSlices of Services without selectors: no containers are needed.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use scaleup_tests::cluster::{Cluster, Options, free_port};
use scaleup_tests::http::Api;
use scaleup_tests::{eventually, full_drill};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::path::ConstantLoad;
use crate::{Cx, trials};

/// All tests of this module.
pub(crate) fn tests(cx: &Cx) -> Vec<Trial> {
    trials![
        cx,
        "traffic",
        drill_configuration_changes_lose_nothing,
        drill_handovers_lose_nothing,
        drill_killed_endpoints_lose_no_get,
        drill_slow_clients_hold_nobody_up,
    ]
}

/// This machine's own address: endpoints may not be on loopback.
fn own_address() -> Result<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // Nothing is sent: connecting only chooses the source address.
    socket.connect((Ipv4Addr::new(198, 51, 100, 1), 9))?;
    match socket.local_addr()? {
        SocketAddr::V4(addr) => Ok(*addr.ip()),
        SocketAddr::V6(_) => anyhow::bail!("an IPv4 address is needed"),
    }
}

/// An HTTP server that answers every request with its name.
pub(crate) struct Endpoint {
    pub addr: SocketAddr,
    stop: CancellationToken,
    pub served: Arc<AtomicU64>,
}

impl Endpoint {
    pub async fn start(name: &str) -> Result<Self> {
        let listener = TcpListener::bind((own_address()?, 0)).await?;
        let (addr, stop, served) = (listener.local_addr()?, CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        let answer: Arc<[u8]> =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len()).into_bytes().into();
        let (stopped, count) = (stop.clone(), served.clone());
        tokio::spawn(async move {
            loop {
                let stream = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = stopped.cancelled() => return,
                };
                let Ok((stream, _)) = stream else { return };
                let (stopped, count, answer) = (stopped.clone(), count.clone(), answer.clone());
                tokio::spawn(async move {
                    // As when a process is killed: connections end, whatever they are doing.
                    stopped.run_until_cancelled(serve(stream, &answer, &count)).await
                });
            }
        });
        Ok(Self { addr, stop, served })
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Requests without bodies, one after the other.
async fn serve(mut stream: TcpStream, answer: &[u8], count: &AtomicU64) -> std::io::Result<()> {
    let mut received = Vec::new();
    loop {
        if stream.read_buf(&mut received).await? == 0 {
            return Ok(());
        }
        while let Some(end) = received.windows(4).position(|w| w == b"\r\n\r\n") {
            received.drain(..end + 4);
            count.fetch_add(1, Relaxed);
            stream.write_all(answer).await?;
        }
    }
}

/// A Service without a selector and its EndpointSlice.
pub(crate) async fn put_service(
    api: &Api,
    namespace: &str,
    name: &str,
    spec: Value,
    endpoints: &[SocketAddr],
) -> Result<()> {
    let mut service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"name": "http", "port": 80}]}});
    if let (Some(all), Some(extra)) = (service["spec"].as_object_mut(), spec.as_object()) {
        all.extend(extra.clone());
    }
    api.post(&format!("/api/v1/namespaces/{namespace}/services"), &service).await?.ok()?;
    put_slice(api, namespace, name, endpoints, true).await
}

fn slice(service: &str, endpoints: &[SocketAddr]) -> Value {
    let ready: Vec<Value> = endpoints
        .iter()
        .map(|addr| json!({"addresses": [addr.ip().to_string()], "conditions": {"ready": true}}))
        .collect();
    // One port per slice: the endpoints of one slice share it.
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"labels": {"kubernetes.io/service-name": service}}, "endpoints": ready,
        "ports": [{"name": "http", "port": endpoints.first().map_or(1, |addr| i32::from(addr.port())), "protocol": "TCP"}],
    })
}

/// One EndpointSlice per endpoint, since each has a port of its own.
async fn put_slice(api: &Api, namespace: &str, service: &str, endpoints: &[SocketAddr], new: bool) -> Result<()> {
    let path = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
    for addr in endpoints {
        let name = format!("{service}-{}", addr.port());
        let mut object = slice(service, &[*addr]);
        object["metadata"]["name"] = name.clone().into();
        if new {
            api.post(&path, &object).await?.ok()?;
        } else {
            let answer = api.post(&path, &object).await?;
            ensure!(answer.status.is_success() || answer.status == 409, "{}", answer.text);
        }
    }
    Ok(())
}

async fn drop_slice(api: &Api, namespace: &str, service: &str, addr: SocketAddr) -> Result<()> {
    let path = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices/{service}-{}", addr.port());
    api.delete(&path, &Value::Null).await?.ok().map(drop)
}

pub(crate) async fn make_namespace(api: &Api, name: &str) -> Result<()> {
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    api.post("/api/v1/namespaces", &object).await?.ok().map(drop)
}

pub(crate) const GATEWAY: &str = "/apis/gateway.networking.k8s.io/v1/namespaces";

pub(crate) async fn put_gateway(api: &Api, namespace: &str, port: u16) -> Result<()> {
    let gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "g"},
        "spec": {"gatewayClassName": "scaleup", "listeners": [{"name": "http", "port": port, "protocol": "HTTP"}]},
    });
    api.post(&format!("{GATEWAY}/{namespace}/gateways"), &gateway).await?.ok().map(drop)
}

pub(crate) fn route(backends: &Value, filters: &Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "r"},
        "spec": {"parentRefs": [{"name": "g"}], "rules": [{"filters": filters, "backendRefs": backends}]},
    })
}

pub(crate) async fn ask(port: u16) -> Result<String> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).pool_max_idle_per_host(0).build()?;
    Ok(client.get(format!("http://127.0.0.1:{port}/")).send().await?.error_for_status()?.text().await?)
}

async fn finish(what: &str, rounds: usize, load: ConstantLoad) -> Result<()> {
    let (sent, failures) = load.finish().await?;
    println!("{what}: {rounds} rounds, {sent} requests, {} failed", failures.len());
    ensure!(failures.is_empty(), "{} of {sent}: {:?}", failures.len(), &failures[..failures.len().min(3)]);
    ensure!(sent > rounds, "only {sent} requests were sent");
    Ok(())
}

async fn drill_configuration_changes_lose_nothing(cx: Cx) -> Result<()> {
    let rounds = if full_drill() { 100 } else { 30 };
    let api = cx.fake().await?.api()?;
    let (a, b, c) = (Endpoint::start("a").await?, Endpoint::start("b").await?, Endpoint::start("c").await?);
    make_namespace(&api, "changes").await?;
    put_service(&api, "changes", "one", json!({}), &[a.addr, b.addr]).await?;
    put_service(&api, "changes", "two", json!({}), &[c.addr]).await?;
    let port = free_port()?;
    put_gateway(&api, "changes", port).await?;
    let routes = format!("{GATEWAY}/changes/httproutes");
    let one = json!([{"name": "one", "port": 80}]);
    api.post(&routes, &route(&one, &json!([]))).await?.ok()?;
    eventually("the route is served", || async { Ok(ask(port).await.ok()) }).await?;
    let load = ConstantLoad::start(port, 200)?;
    for round in 0..rounds {
        // A route's backends, its filters, a Service's endpoints, a policy, another listener: each in turn.
        match round % 5 {
            0 => {
                let both = json!([{"name": "one", "port": 80, "weight": 1}, {"name": "two", "port": 80, "weight": 1}]);
                api.patch(&format!("{routes}/r"), "merge", &json!({"spec": route(&both, &json!([]))["spec"]}))
                    .await?
                    .ok()?;
            }
            1 => {
                let edit = json!([{"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [{"name": "x-round", "value": round.to_string()}]}}]);
                api.patch(&format!("{routes}/r"), "merge", &json!({"spec": route(&one, &edit)["spec"]})).await?.ok()?;
            }
            2 => drop_slice(&api, "changes", "one", b.addr).await?,
            3 => put_slice(&api, "changes", "one", &[b.addr], false).await?,
            _ => {
                let policy = json!({"apiVersion": "traffic.scaleup.dev/v1", "kind": "TrafficPolicy", "metadata": {"name": format!("p{round}")},
                    "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "one"}], "loadBalancing": {"algorithm": "LeastRequest"}}});
                api.post("/apis/traffic.scaleup.dev/v1/namespaces/changes/trafficpolicies", &policy).await?.ok()?;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(a.served.load(Relaxed) > 0 && c.served.load(Relaxed) > 0, "changes took effect");
    finish("configuration changes", rounds, load).await
}

async fn drill_handovers_lose_nothing(_: Cx) -> Result<()> {
    let rounds = if full_drill() { 10 } else { 3 };
    let mut cluster = Cluster::start(Options::default()).await?;
    let api = cluster.api()?;
    let (a, b) = (Endpoint::start("a").await?, Endpoint::start("b").await?);
    make_namespace(&api, "handover").await?;
    put_service(&api, "handover", "one", json!({}), &[a.addr, b.addr]).await?;
    let port = free_port()?;
    put_gateway(&api, "handover", port).await?;
    let own = free_port()?;
    let spec = json!({"type": "LoadBalancer", "ports": [{"name": "http", "port": own, "targetPort": 80}]});
    put_service(&api, "handover", "own", spec, &[a.addr]).await?;
    api.post(&format!("{GATEWAY}/handover/httproutes"), &route(&json!([{"name": "one", "port": 80}]), &json!([])))
        .await?
        .ok()?;
    for port in [port, own] {
        eventually("it is served", || async { Ok(ask(port).await.ok()) }).await?;
    }
    // Over kept connections, and with a connection for each request.
    let kept = ConstantLoad::start(port, 100)?;
    let stop = CancellationToken::new();
    let fresh_load = tokio::spawn(fresh_connections(own, stop.clone()));
    for _ in 0..rounds {
        cluster.replace().await?;
        eventually("the new process serves the routes", || async { Ok(ask(port).await.ok()) }).await?;
    }
    stop.cancel();
    let (sent, failed) = fresh_load.await??;
    println!("hand-overs: {rounds} rounds, {sent} new connections, {failed} failed");
    ensure!(failed == 0 && sent > rounds, "{failed} of {sent} new connections failed");
    finish("hand-overs, kept connections", rounds, kept).await
}

/// A connection per request, one after the other; how many, and how many failed.
pub(crate) async fn fresh_connections(port: u16, stop: CancellationToken) -> Result<(usize, usize)> {
    let (mut sent, mut failed) = (0, 0);
    while !stop.is_cancelled() {
        sent += 1;
        if let Err(error) = ask(port).await {
            println!("a new connection failed: {error:#}");
            failed += 1;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok((sent, failed))
}

async fn drill_killed_endpoints_lose_no_get(cx: Cx) -> Result<()> {
    let rounds = if full_drill() { 20 } else { 5 };
    let api = cx.fake().await?.api()?;
    make_namespace(&api, "kills").await?;
    let mut endpoints = Vec::new();
    for i in 0..3 {
        endpoints.push(Endpoint::start(&format!("e{i}")).await?);
    }
    let addresses: Vec<SocketAddr> = endpoints.iter().map(|endpoint| endpoint.addr).collect();
    put_service(&api, "kills", "one", json!({}), &addresses).await?;
    let port = free_port()?;
    put_gateway(&api, "kills", port).await?;
    api.post(&format!("{GATEWAY}/kills/httproutes"), &route(&json!([{"name": "one", "port": 80}]), &json!([])))
        .await?
        .ok()?;
    eventually("it is served", || async { Ok(ask(port).await.ok()) }).await?;
    let load = ConstantLoad::start(port, 200)?;
    for round in 0..rounds {
        // It dies first, and leaves the EndpointSlice later, as when a node is lost; a new one comes.
        let dead = endpoints.remove(0);
        let addr = dead.addr;
        drop(dead);
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop_slice(&api, "kills", "one", addr).await?;
        let next = Endpoint::start(&format!("n{round}")).await?;
        put_slice(&api, "kills", "one", &[next.addr], false).await?;
        endpoints.push(next);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    finish("endpoint kills", rounds, load).await
}

/// The 99th percentile of `count` requests, one after the other.
async fn p99(port: u16, count: usize) -> Result<Duration> {
    let client = reqwest::Client::new();
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        client.get(format!("http://127.0.0.1:{port}/")).send().await?.error_for_status()?.bytes().await?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    times.get(count * 99 / 100).copied().context("no requests")
}

async fn drill_slow_clients_hold_nobody_up(cx: Cx) -> Result<()> {
    let slow = if full_drill() { 1_000 } else { 300 };
    let api = cx.fake().await?.api()?;
    make_namespace(&api, "slow").await?;
    let endpoint = Endpoint::start("e").await?;
    let port = free_port()?;
    let spec = json!({"type": "LoadBalancer", "ports": [{"name": "http", "port": port, "targetPort": 80}]});
    put_service(&api, "slow", "one", spec, &[endpoint.addr]).await?;
    eventually("it is served", || async { Ok(ask(port).await.ok()) }).await?;
    let before = p99(port, 1_000).await?;
    let mut clients = Vec::new();
    for i in 0..slow {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(format!("GET /{i} HTTP/1.1\r\nhost: a\r\n").as_bytes()).await?;
        clients.push(stream);
    }
    let dripping = tokio::spawn(async move {
        // A header byte now and then keeps each of them busy.
        for _ in 0..1_000 {
            for stream in &mut clients {
                let _ = stream.write_all(b"x").await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let during = p99(port, 1_000).await?;
    dripping.abort();
    println!("slowloris: {slow} slow clients, others' p99 {before:?} before and {during:?} meanwhile");
    // Latency is a benchmark's business; here only that nobody waits for a slow client's turn.
    ensure!(during < before * 2 + Duration::from_millis(250), "p99 {during:?}, {before:?} without slow clients");
    let served = endpoint.served.load(Relaxed);
    ensure!(served >= 2_000, "only {served} requests were served");
    Ok(())
}
