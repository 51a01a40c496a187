//! Starting the platform, its memory at rest, and starting a pod beside `docker run`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use scaleup_tests::cluster::{Cluster, Options};
use scaleup_tests::docker::{demo_image, docker};
use scaleup_tests::eventually;
use serde_json::json;

use crate::figure;

/// Memory is read after this much quiet.
const REST: Duration = Duration::from_secs(5);

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Seconds from exec to `/readyz`, first start and restart; memory at rest.
pub async fn start(quick: bool) -> Result<()> {
    let begin = Instant::now();
    let mut cluster = Cluster::start(Options::default()).await?;
    figure::print("first_start", begin.elapsed().as_secs_f64(), "s");
    let mut restarts = Vec::new();
    for _ in 0..if quick { 1 } else { 5 } {
        cluster.stop().await?;
        let begin = Instant::now();
        cluster.launch().await?;
        restarts.push(begin.elapsed().as_secs_f64());
    }
    figure::print("restart", median(restarts), "s");
    tokio::time::sleep(REST).await;
    figure::print("rss_idle", figure::rss_mib(cluster.pid().context("pid")?)?, "MiB");
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
