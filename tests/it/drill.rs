//! `kill -9` of the platform under write load: no acknowledged write is lost, and it is back at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use scaleup_tests::cluster::{Cluster, Options};
use scaleup_tests::docker::containers_of;
use scaleup_tests::http::Api;
use scaleup_tests::{eventually, full_drill};
use serde_json::json;

use crate::{Cx, trials};

/// All tests of this module.
pub fn tests(cx: &Cx) -> Vec<Trial> {
    trials![cx, "drill", drill_kill_nine_under_load]
}

/// Writers at once.
const WRITERS: usize = 8;
/// A kill comes after so many acknowledged writes of a round: counted, not timed, so that a busy machine proves as much.
const WRITES_PER_ROUND: usize = 40;
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// What was acknowledged: the newest value and revision per object.
type Acknowledged = Arc<Mutex<BTreeMap<String, (u64, u64)>>>;

async fn write_until_it_dies(api: Api, writer: usize, round: usize, acknowledged: Acknowledged) {
    for i in 0u64.. {
        // Half of the writes are creates, half update the object just made.
        let name = format!("w{writer}-r{round}-{}", i / 2);
        let body =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"n": i.to_string()}});
        let answer =
            if i % 2 == 0 { api.post(MAPS, &body).await } else { api.put(&format!("{MAPS}/{name}"), &body).await };
        let Ok(answer) = answer else { return };
        if !answer.status.is_success() {
            return;
        }
        let revision = answer.json()["metadata"]["resourceVersion"].as_str().and_then(|r| r.parse().ok()).unwrap_or(0);
        if let Ok(mut all) = acknowledged.lock() {
            all.insert(name, (i, revision));
        }
    }
}

async fn check(api: &Api, acknowledged: &Acknowledged) -> Result<u64> {
    let list = api.get(MAPS).await?.ok()?;
    let revision: u64 = list["metadata"]["resourceVersion"].as_str().context("resourceVersion")?.parse()?;
    let mut found = BTreeMap::new();
    for item in list["items"].as_array().context("items")? {
        let name = item["metadata"]["name"].as_str().context("name")?;
        let n: u64 = item["data"]["n"].as_str().and_then(|n| n.parse().ok()).unwrap_or_default();
        let at: u64 = item["metadata"]["resourceVersion"].as_str().context("resourceVersion")?.parse()?;
        found.insert(name.to_owned(), (n, at));
    }
    let all = acknowledged.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
    for (name, (n, at)) in all.iter() {
        let (now, revised) = found.get(name).with_context(|| format!("{name} was acknowledged at {at} and is gone"))?;
        // A write whose answer was cut off may be there too; an older one may not.
        ensure!(now >= n && revised >= at, "{name}: acknowledged {n} at {at}, found {now} at {revised}");
        ensure!(revision >= *at, "the store went back to {revision}, {name} was written at {at}");
    }
    Ok(revision)
}

async fn drill_kill_nine_under_load(_: Cx) -> Result<()> {
    let rounds = if full_drill() { 50 } else { 6 };
    let mut cluster = Cluster::start(Options { runtime: "docker", ..Options::default() }).await?;
    let kubectl = cluster.kubectl();
    super::path::deploy(&kubectl, "web").await?;
    let before = containers_of(&cluster.node, false)?;
    ensure!(before.len() >= 6, "three pods are six containers: {before:?}");
    let acknowledged = Acknowledged::default();
    let (mut ready, mut last) = (Vec::new(), 0);
    for round in 0..rounds {
        let api = cluster.api()?;
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            writers.spawn(write_until_it_dies(api.clone(), writer, round, acknowledged.clone()));
        }
        eventually("enough writes are acknowledged", || async {
            let now = acknowledged
                .lock()
                .map_err(|_| anyhow::anyhow!("poisoned"))?
                .values()
                .filter(|(_, at)| *at > last)
                .count();
            Ok((now >= WRITES_PER_ROUND).then_some(()))
        })
        .await?;
        cluster.kill().await?;
        let start = Instant::now();
        cluster.launch().await?;
        ready.push(start.elapsed());
        writers.join_all().await;
        let revision = check(&cluster.api()?, &acknowledged).await?;
        ensure!(revision >= last, "revisions went back from {last} to {revision}");
        last = revision;
    }
    ready.sort_unstable();
    let writes = acknowledged.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.len();
    ensure!(writes >= rounds * WRITES_PER_ROUND, "only {writes} objects were acknowledged");
    // The agent reattaches: the same containers, none restarted.
    let kubectl = cluster.kubectl();
    kubectl.ok("-n web rollout status deployment/web --timeout=60s").await?;
    let after = containers_of(&cluster.node, false)?;
    ensure!(before == after, "containers changed: {before:?} {after:?}");
    let restarts =
        kubectl.ok("-n web get pods -o jsonpath={.items[*].status.containerStatuses[*].restartCount}").await?;
    ensure!(restarts.split_whitespace().all(|n| n == "0"), "restarts: {restarts}");
    println!(
        "kill -9: {rounds} rounds, {writes} objects acknowledged, 0 lost; ready again in {:?} (median), {:?} (worst)",
        ready[ready.len() / 2],
        ready[ready.len() - 1]
    );
    Ok(())
}
