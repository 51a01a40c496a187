//! The API server over TLS on the embedded store: creates beside etcd asked directly; gets, lists, updates, deletes.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};
use http::Method;
use scaleup_tests::cluster::{Cluster, Options};
use serde_json::json;

use crate::figure;
use crate::load::{self, Call, Report, Target};
use crate::peers::Peer;

/// Payload of each ConfigMap, as in the peers' figures.
const PAYLOAD_BYTES: usize = 1024;
/// Where the ConfigMaps are.
pub const MAPS: &str = "/api/v1/namespaces/bench/configmaps";
/// Ours and etcd take turns this often, and all turns count: a slow spell of the disk hits both.
const TURNS: usize = 10;

/// A ConfigMap of about 1 KB.
pub fn config_map(name: &str, extra: &str) -> Bytes {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "bench", "labels": {"app": "load"}},
        "data": {"payload": "x".repeat(PAYLOAD_BYTES), "extra": extra}});
    Bytes::from(object.to_string())
}

/// A cluster with the namespace that the load goes to.
pub async fn start(options: Options) -> Result<(Cluster, Target)> {
    let cluster = Cluster::start(options).await?;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "bench"}});
    cluster.api()?.post("/api/v1/namespaces", &namespace).await?.ok()?;
    let target = Target::new(&cluster)?;
    Ok((cluster, target))
}

/// Creates ConfigMaps `{prefix}-0`, `{prefix}-1` and so on.
pub fn create(prefix: String) -> impl Fn(usize) -> Call {
    move |i| Call { method: Method::POST, path: MAPS.into(), body: config_map(&format!("{prefix}-{i}"), "") }
}

/// Deletes them.
pub fn delete(prefix: String) -> impl Fn(usize) -> Call {
    move |i| Call { method: Method::DELETE, path: format!("{MAPS}/{prefix}-{i}"), body: Bytes::new() }
}

/// Durable creates at 1, 16 and 64 connections, beside etcd asked directly on the same disk.
pub async fn creates(quick: bool) -> Result<()> {
    let (_cluster, target) = start(Options::default()).await?;
    let etcd = Peer::etcd().await?;
    for connections in [1, 16, 64] {
        let each_turn = if connections == 1 { 300 } else { 3_000 } / if quick { 20 } else { 1 };
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for turn in 0..TURNS {
            let prefix = format!("c{connections}-{turn}");
            ours.push(load::run(&target, connections, each_turn, create(prefix.clone())).await?);
            theirs.push(etcd_creates(&etcd, connections, each_turn, &prefix).await?);
        }
        Report::pooled(ours).against(&format!("create_{connections}"), "etcd direct", &Report::pooled(theirs));
    }
    Ok(())
}

/// The same durable writes, etcd alone, through its client.
async fn etcd_creates(etcd: &Peer, connections: usize, total: usize, prefix: &str) -> Result<Report> {
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(Client::connect([format!("127.0.0.1:{}", etcd.port)], None).await?);
    }
    let (cpu, start) = (figure::cpu_of(&etcd.pids()?)?, Instant::now());
    let mut tasks = tokio::task::JoinSet::new();
    for (worker, mut client) in clients.into_iter().enumerate() {
        let prefix = prefix.to_owned();
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            for i in 0..total / connections {
                let key = format!("/registry/configmaps/bench/{prefix}-{worker}-{i}");
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
    let mut latencies: Vec<Duration> = Vec::new();
    while let Some(done) = tasks.join_next().await {
        latencies.extend(done??);
    }
    let wall_s = start.elapsed().as_secs_f64();
    Ok(Report::new(latencies, wall_s, figure::cpu_of(&etcd.pids()?)? - cpu))
}

/// Gets, updates, deletes and lists.
pub async fn verbs(quick: bool) -> Result<()> {
    let scale = if quick { 20 } else { 1 };
    let (listed, written) = (2_000 / scale, 20_000 / scale);
    let (_cluster, target) = start(Options::default()).await?;
    load::run(&target, 16, listed, create("listed".into())).await?;
    let get = |_| Call { method: Method::GET, path: format!("{MAPS}/listed-0"), body: Bytes::new() };
    load::run(&target, 16, 100_000 / scale, get).await?.print("get_16");
    let list = |_| Call { method: Method::GET, path: MAPS.into(), body: Bytes::new() };
    load::run(&target, 4, 2_000 / scale, list).await?.print("list_2000");
    load::run(&target, 64, written, create("w".into())).await?;
    let update = move |i: usize| {
        let body = config_map(&format!("w-{i}"), &i.to_string());
        Call { method: Method::PUT, path: format!("{MAPS}/w-{i}"), body }
    };
    load::run(&target, 16, written, update).await?.print("update_16");
    load::run(&target, 16, written, delete("w".into())).await?.print("delete_16");
    Ok(())
}
