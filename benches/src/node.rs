//! Starting the platform, its memory at rest, and starting a pod beside `docker run`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use scaleup_tests::cluster::{Cluster, Options};
use scaleup_tests::docker::{demo_image, docker};
use scaleup_tests::eventually;
use serde_json::json;

use crate::load::{self, Target};
use crate::{api, figure};

/// Memory is read after this much quiet.
const REST: Duration = Duration::from_secs(5);
/// After this the watch cache has forgotten what happened.
const FORGOTTEN: Duration = Duration::from_secs(150);

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Seconds from exec to `/readyz`, first start and restart; memory at rest with the Docker runtime.
pub async fn start(quick: bool) -> Result<()> {
    let begin = Instant::now();
    let options = Options { runtime: "docker", ..Options::default() };
    let mut cluster = Cluster::start(options).await?;
    figure::print("ready_first_start", begin.elapsed().as_secs_f64(), "s");
    let mut restarts = Vec::new();
    for _ in 0..if quick { 1 } else { 5 } {
        restarts.push(restart(&mut cluster).await?);
    }
    figure::print("ready_restart", median(restarts), "s");
    tokio::time::sleep(REST).await;
    figure::print("rss_idle", figure::rss_mib(cluster.pid().context("pid")?)?, "MiB");
    Ok(())
}

async fn restart(cluster: &mut Cluster) -> Result<f64> {
    cluster.stop().await?;
    let begin = Instant::now();
    cluster.launch().await?;
    Ok(begin.elapsed().as_secs_f64())
}

/// 100,000 ConfigMaps of 1 KB: memory per object, seconds from exec to `/readyz`, and memory once they are gone.
pub async fn hundred_thousand(quick: bool) -> Result<()> {
    let (objects, forgotten) = if quick { (2_000, Duration::from_secs(5)) } else { (100_000, FORGOTTEN) };
    let (mut cluster, target) = api::start(Options::default()).await?;
    tokio::time::sleep(REST).await;
    let empty = figure::rss_mib(cluster.pid().context("pid")?)?;
    load::run(&target, 64, objects, api::create("o".into())).await?;
    figure::print("rss_100k_after_creates", figure::rss_mib(cluster.pid().context("pid")?)?, "MiB");
    figure::print("ready_restart_100k", restart(&mut cluster).await?, "s");
    tokio::time::sleep(REST).await;
    let full = figure::rss_mib(cluster.pid().context("pid")?)?;
    figure::print("rss_per_object", (full - empty) * 1024.0 / objects as f64, "KiB");
    let target = Target::new(&cluster)?;
    load::run(&target, 64, objects, api::delete("o".into())).await?;
    tokio::time::sleep(forgotten).await;
    figure::print("rss_after_deletes", figure::rss_mib(cluster.pid().context("pid")?)?, "MiB");
    Ok(())
}

/// From `create` of a pod to its Running status, beside `docker run` of the same image.
pub async fn pod_start(quick: bool) -> Result<()> {
    let rounds = if quick { 2 } else { 10 };
    let image = demo_image("v1")?;
    let cluster = Cluster::start(Options { runtime: "docker", ..Options::default() }).await?;
    let api = cluster.api()?;
    eventually("the node is ready", || async {
        let nodes = api.get("/api/v1/nodes").await?.ok()?;
        let conditions = nodes["items"][0]["status"]["conditions"].as_array().cloned().unwrap_or_default();
        Ok(conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True").then_some(()))
    })
    .await?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for i in 0..rounds {
        let begin = Instant::now();
        let name = format!("scaleup-bench-{}-{i}", std::process::id());
        docker(&["run", "-d", "--name", &name, &image, "sleep", "60"])?;
        theirs.push(begin.elapsed().as_secs_f64());
        docker(&["rm", "-f", &name])?;
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("p{i}")}, "spec": {"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": image, "command": ["sleep", "60"]}]}});
        let begin = Instant::now();
        api.post("/api/v1/namespaces/default/pods", &pod).await?.ok()?;
        eventually("the pod runs", || async {
            let pod = api.get(&format!("/api/v1/namespaces/default/pods/p{i}")).await?.ok()?;
            Ok((pod["status"]["phase"] == "Running").then_some(()))
        })
        .await?;
        ours.push(begin.elapsed().as_secs_f64());
        api.delete(&format!("/api/v1/namespaces/default/pods/p{i}"), &serde_json::Value::Null).await?;
    }
    figure::against("pod_running", median(ours), "s", "docker run", median(theirs));
    Ok(())
}
