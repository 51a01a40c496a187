//! The API server: creates, gets, lists, updates, deletes, watch fan-out; and etcd asked directly.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use scaleup_tests::cluster::{Cluster, Options};
use serde_json::json;

use crate::figure;
use crate::load::{self, Call, Target};
use crate::peers::Peer;

/// Payload of each ConfigMap, as in the peers' figures.
const PAYLOAD_BYTES: usize = 1024;
const MAPS: &str = "/api/v1/namespaces/bench/configmaps";

fn config_map(name: &str, extra: &str) -> Bytes {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "bench", "labels": {"app": "load"}},
        "data": {"payload": "x".repeat(PAYLOAD_BYTES), "extra": extra}});
    Bytes::from(object.to_string())
}

async fn start() -> Result<(Cluster, Target)> {
    let cluster = Cluster::start(Options::default()).await?;
    let target = Target::new(&cluster)?;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "bench"}});
    cluster.api()?.post("/api/v1/namespaces", &namespace).await?.ok()?;
    Ok((cluster, target))
}

fn create(prefix: &'static str) -> impl Fn(usize) -> Call {
    move |i| Call { method: Method::POST, path: MAPS.into(), body: config_map(&format!("{prefix}-{i}"), "") }
}

/// Rates, latencies and CPU of each verb over TLS, on the embedded store.
pub async fn all(quick: bool) -> Result<()> {
    let scale = if quick { 20 } else { 1 };
    let (cluster, target) = start().await?;
    for connections in [1, 16, 64] {
        let prefix = match connections {
            1 => "one",
            16 => "sixteen",
            _ => "many",
        };
        let total = if connections == 1 { 2_000 } else { 20_000 } / scale;
        load::run(&target, connections, total, create(prefix)).await?.print(&format!("create_{connections}"));
    }
    let get = |_| Call { method: Method::GET, path: format!("{MAPS}/one-0"), body: Bytes::new() };
    load::run(&target, 16, 100_000 / scale, get).await?.print("get_16");
    let update = move |i: usize| Call {
        method: Method::PUT,
        path: format!("{MAPS}/many-{}", i % (20_000 / scale)),
        body: config_map(&format!("many-{}", i % (20_000 / scale)), &i.to_string()),
    };
    load::run(&target, 16, 20_000 / scale, update).await?.print("update_16");
    let delete = |i| Call { method: Method::DELETE, path: format!("{MAPS}/sixteen-{i}"), body: Bytes::new() };
    load::run(&target, 16, 20_000 / scale, delete).await?.print("delete_16");
    let drop_many = |i| Call { method: Method::DELETE, path: format!("{MAPS}/many-{i}"), body: Bytes::new() };
    load::run(&target, 64, 20_000 / scale, drop_many).await?;
    // 2,000 objects are left: those of the single connection.
    let list = |_| Call { method: Method::GET, path: MAPS.into(), body: Bytes::new() };
    load::run(&target, 4, 1_000 / scale, list).await?.print("list_2000");
    figure::print("rss_after_load", figure::rss_mib(cluster.pid().context("pid")?)?, "MiB");
    Ok(())
}

/// The same durable writes, etcd alone, through its client.
pub async fn etcd_direct(quick: bool) -> Result<()> {
    let etcd = Peer::etcd().await?;
    for connections in [1usize, 64] {
        let total = if connections == 1 { 2_000 } else { 20_000 } / if quick { 20 } else { 1 };
        let client = Client::connect([format!("127.0.0.1:{}", etcd.port)], None).await?;
        let start = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for worker in 0..connections {
            let mut client = client.clone();
            tasks.spawn(async move {
                let mut latencies = Vec::new();
                for i in 0..total / connections {
                    let key = format!("/registry/configmaps/bench/{connections}-{worker}-{i}");
                    let absent = Compare::mod_revision(key.clone(), CompareOp::Equal, 0);
                    let put = TxnOp::put(key.clone(), config_map(&key, "").to_vec(), None);
                    let begin = Instant::now();
                    let answer = client.txn(Txn::new().when([absent]).and_then([put])).await?;
                    ensure!(answer.succeeded(), "{key} was there");
                    latencies.push(begin.elapsed());
                }
                anyhow::Ok(latencies)
            });
        }
        let mut latencies = Vec::new();
        while let Some(done) = tasks.join_next().await {
            latencies.extend(done??);
        }
        let wall = start.elapsed().as_secs_f64();
        latencies.sort_unstable();
        figure::print(&format!("etcd_create_{connections}_rate"), latencies.len() as f64 / wall, "1/s");
        figure::print(&format!("etcd_create_{connections}_p99"), figure::quantile_ms(&latencies, 0.99), "ms");
    }
    Ok(())
}

/// One write to many watchers: from the write's request to each watcher's event.
pub async fn watch_fan_out(quick: bool) -> Result<()> {
    let (watchers, writes) = if quick { (50, 5) } else { (1_000, 100) };
    let (cluster, target) = start().await?;
    let pid = cluster.pid().context("pid")?;
    let before = figure::rss_mib(pid)?;
    let (sender, mut received) = tokio::sync::mpsc::unbounded_channel::<(usize, Instant)>();
    let mut connected = tokio::task::JoinSet::new();
    for _ in 0..watchers {
        let (target, sender) = (target.clone(), sender.clone());
        connected.spawn(async move {
            let mut connection = target.connect().await?;
            let request = Request::get(format!("{MAPS}?watch=1&resourceVersion=0"))
                .header("host", "localhost")
                .body(Full::default())?;
            let response = connection.send_request(request).await?;
            ensure!(response.status().is_success(), "watch: {}", response.status());
            tokio::spawn(read_events(connection, response.into_body(), sender));
            anyhow::Ok(())
        });
        if connected.len() >= 32 {
            connected.join_next().await.context("join")???;
        }
    }
    while let Some(done) = connected.join_next().await {
        done??;
    }
    figure::print("watch_idle_memory", (figure::rss_mib(pid)? - before) * 1024.0 / f64::from(watchers), "KiB/watcher");
    let mut writer = target.connect().await?;
    let starts = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut all = Vec::new();
    let begin = Instant::now();
    for i in 0..writes {
        let body = config_map(&format!("w-{i}"), "");
        let start = Instant::now();
        if let Ok(mut starts) = starts.lock() {
            starts.push(start);
        }
        load::call(&mut writer, &Call { method: Method::POST, path: MAPS.into(), body }).await?;
        for _ in 0..watchers {
            let (_, at) =
                tokio::time::timeout(Duration::from_secs(30), received.recv()).await?.context("watchers ended")?;
            all.push(at.duration_since(start));
        }
    }
    let wall = begin.elapsed().as_secs_f64();
    all.sort_unstable();
    figure::print("watch_events", all.len() as f64 / wall, "1/s");
    figure::print("watch_p50", figure::quantile_ms(&all, 0.5), "ms");
    figure::print("watch_p99", figure::quantile_ms(&all, 0.99), "ms");
    Ok(())
}

async fn read_events(
    connection: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
    mut body: hyper::body::Incoming,
    sender: tokio::sync::mpsc::UnboundedSender<(usize, Instant)>,
) {
    while let Some(Ok(frame)) = body.frame().await {
        let at = Instant::now();
        let events = frame.data_ref().map_or(0, |d| d.windows(18).filter(|w| *w == b"{\"type\":\"ADDED\",\"o").count());
        for i in 0..events {
            if sender.send((i, at)).is_err() {
                return;
            }
        }
    }
    drop(connection);
}
