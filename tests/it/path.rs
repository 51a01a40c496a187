//! The path that everything else hangs on: `kubectl apply -f examples/web/` and the app answers through the load balancer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use scaleup_tests::cluster::{Cluster, free_port, root};
use scaleup_tests::docker::{demo_image, docker};
use scaleup_tests::eventually;
use scaleup_tests::kubectl::Kubectl;
use tokio::task::JoinHandle;

use crate::{Cx, trials};

/// All tests of this module.
pub fn tests(cx: &Cx) -> Vec<Trial> {
    trials![
        cx,
        "path",
        example_with_new_kubectl,
        example_with_old_kubectl,
        docker_kill_comes_back,
        drill_rolling_updates_lose_nothing
    ]
}

/// The example's manifests in a namespace and on a port of their own.
fn manifests(namespace: &str, port: u16) -> Result<String> {
    let mut all = String::new();
    let mut files: Vec<_> = std::fs::read_dir(root().join("examples/web"))?.collect::<Result<Vec<_>, _>>()?;
    files.sort_by_key(std::fs::DirEntry::path);
    for file in files.into_iter().filter(|f| f.path().extension().is_some_and(|e| e == "yaml")) {
        all.push_str("---\n");
        all.push_str(&std::fs::read_to_string(file.path())?);
    }
    let own = all.replace("namespace: web", &format!("namespace: {namespace}")).replace("8088", &port.to_string());
    // The first document is the Namespace itself.
    Ok(own.replacen("name: web", &format!("name: {namespace}"), 1))
}

/// Deploys the example; the load balancer's port once the app answers there.
pub async fn deploy(kubectl: &Kubectl, namespace: &str) -> Result<u16> {
    demo_image("v1")?;
    demo_image("v2")?;
    let port = free_port()?;
    kubectl.apply(&manifests(namespace, port)?).await?;
    kubectl.ok(&format!("-n {namespace} rollout status deployment/web --timeout=60s")).await?;
    eventually("the load balancer answers", || async { Ok(ask(port).await.ok()) }).await?;
    Ok(port)
}

/// One request; the body.
pub async fn ask(port: u16) -> Result<String> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).pool_max_idle_per_host(0).build()?;
    Ok(client.get(format!("http://127.0.0.1:{port}/")).send().await?.error_for_status()?.text().await?)
}

/// The pod that answered: `hello from POD, version …`.
fn answered_by(body: &str) -> String {
    body.split_whitespace().nth(2).unwrap_or_default().trim_end_matches(',').to_owned()
}

async fn example(cluster: &Cluster, kubectl: &Kubectl, namespace: &str) -> Result<()> {
    let k = |line: &str| {
        let line = format!("-n {namespace} {line}");
        async move { kubectl.ok(&line).await }
    };
    let port = deploy(kubectl, namespace).await?;
    let body = ask(port).await?;
    ensure!(
        body.contains("version v1, greeting welcome, secret of 15 bytes, file says configured by a file"),
        "{body}"
    );

    let mut hits = BTreeMap::<String, usize>::new();
    for _ in 0..30 {
        *hits.entry(answered_by(&ask(port).await?)).or_default() += 1;
    }
    ensure!(hits.len() == 3, "replicas in turn: {hits:?}");

    let all = k("get all -o wide").await?;
    for part in [
        "pod/web-",
        "service/web",
        "deployment.apps/web",
        "replicaset.apps/web-",
        "LoadBalancer",
        "Running",
        "3/3",
        &cluster.node,
    ] {
        ensure!(all.contains(part), "{part} is missing in\n{all}");
    }
    let described = k("describe deployment web").await?;
    for part in [
        "3 desired | 3 updated | 3 total | 3 available",
        "ScalingReplicaSet",
        "NewReplicaSetAvailable",
        "RollingUpdate",
    ] {
        ensure!(described.contains(part), "{part} is missing in\n{described}");
    }
    let described = k("describe pods").await?;
    for part in ["Scheduled", "Started", "Ready             True", "/etc/web from config (ro)", "secret"] {
        ensure!(described.contains(part), "{part} is missing in\n{described}");
    }
    k("describe service web").await?;
    kubectl.ok("describe nodes").await?;
    ensure!(k("logs deployment/web").await?.contains("serving on port 8080"), "logs");
    followed_log(kubectl, namespace, port).await?;

    k("scale deployment web --replicas=5").await?;
    k("rollout status deployment/web --timeout=60s").await?;
    ensure!(k("get deployment web").await?.contains("5/5"), "scaled");
    k("scale deployment web --replicas=3").await?;

    k("set image deployment/web web=scaleup-demo/web:v2").await?;
    k("rollout status deployment/web --timeout=60s").await?;
    eventually("only v2 answers", || async { Ok(ask(port).await?.contains("version v2").then_some(())) }).await?;
    ensure!(
        k("rollout history deployment/web").await?.lines().filter(|l| l.starts_with(char::is_numeric)).count() == 2,
        "history"
    );
    k("rollout undo deployment/web").await?;
    k("rollout status deployment/web --timeout=60s").await?;
    eventually("v1 again", || async { Ok(ask(port).await?.contains("version v1").then_some(())) }).await?;

    k("delete service web").await?;
    eventually("the port is closed", || async { Ok(ask(port).await.is_err().then_some(())) }).await?;
    kubectl.ok(&format!("delete namespace {namespace} --timeout=60s")).await?;
    let left = docker(&["ps", "-aq", "--filter", &format!("label=io.kubernetes.pod.namespace={namespace}")])?;
    ensure!(left.is_empty(), "containers are left: {left}");
    Ok(())
}

/// `logs -f` shows a line that is written after it started.
async fn followed_log(kubectl: &Kubectl, namespace: &str, port: u16) -> Result<()> {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let pod = answered_by(&ask(port).await?);
    let mut command = kubectl.command();
    let mut child = command.args(["-n", namespace, "logs", "-f", &pod, "--tail=1"]).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
    lines.next_line().await?;
    let asking = tokio::spawn(async move {
        for _ in 0..6 {
            ask(port).await?;
        }
        anyhow::Ok(())
    });
    let line = tokio::time::timeout(Duration::from_secs(20), lines.next_line())
        .await
        .context("no new line with logs -f")??;
    asking.await??;
    ensure!(line.is_some_and(|l| l.contains("response:200")), "an access line");
    child.kill().await?;
    Ok(())
}

async fn example_with_new_kubectl(cx: Cx) -> Result<()> {
    let cluster = cx.docker().await?;
    example(cluster, &cluster.kubectl(), "web-new").await
}

async fn example_with_old_kubectl(cx: Cx) -> Result<()> {
    let cluster = cx.docker().await?;
    example(cluster, &cluster.old_kubectl(), "web-old").await
}

async fn docker_kill_comes_back(cx: Cx) -> Result<()> {
    let cluster = cx.docker().await?;
    let kubectl = cluster.kubectl();
    deploy(&kubectl, "web-kill").await?;
    let pods = kubectl.json("-n web-kill get pods").await?;
    let pod = &pods["items"][0];
    let (name, id) = (
        pod["metadata"]["name"].as_str().context("name")?,
        pod["status"]["containerStatuses"][0]["containerID"].as_str().context("id")?,
    );
    let id = id.trim_start_matches("docker://");
    let find = |pods: serde_json::Value| pods["status"]["containerStatuses"][0].clone();
    for round in 1..=2 {
        let current = find(kubectl.json(&format!("-n web-kill get pod {name}")).await?);
        let id = current["containerID"].as_str().unwrap_or(id).trim_start_matches("docker://").to_owned();
        docker(&["kill", &id])?;
        eventually("restarted", || async {
            let status = find(kubectl.json(&format!("-n web-kill get pod {name}")).await?);
            Ok((status["restartCount"] == round && status["ready"] == true).then_some(()))
        })
        .await?;
    }
    let status = find(kubectl.json(&format!("-n web-kill get pod {name}")).await?);
    ensure!(status["lastState"]["terminated"]["exitCode"] == 137, "{status}");
    let events = kubectl.ok(&format!("-n web-kill get events --field-selector involvedObject.name={name}")).await?;
    // The second restart waits: the first backoff is ten seconds, as upstream.
    ensure!(events.contains("BackOff") && events.contains("Started"), "{events}");
    kubectl.ok("delete namespace web-kill --timeout=60s").await?;
    Ok(())
}

/// Sends requests at a constant rate, whatever the answers' latency is.
pub struct ConstantLoad {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    task: JoinHandle<Result<Vec<String>>>,
}

impl ConstantLoad {
    /// `rate` requests per second against the port.
    pub fn start(port: u16, rate: u32) -> Result<Self> {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
        let (stopped, count) = (stop.clone(), sent.clone());
        let task = tokio::spawn(async move {
            let mut failures = Vec::new();
            let mut running = tokio::task::JoinSet::new();
            let mut tick = tokio::time::interval(Duration::from_secs(1) / rate);
            while !stopped.load(Ordering::Relaxed) {
                tick.tick().await;
                count.fetch_add(1, Ordering::Relaxed);
                let request = client.get(format!("http://127.0.0.1:{port}/"));
                running.spawn(async move { request.send().await?.error_for_status()?.text().await });
                while let Some(done) = running.try_join_next() {
                    failures.extend(done?.err().map(|e| format!("{e:?}")));
                }
            }
            while let Some(done) = running.join_next().await {
                failures.extend(done?.err().map(|e| format!("{e:?}")));
            }
            Ok(failures)
        });
        Ok(Self { stop, sent, task })
    }

    /// Stops; how many were sent, and what failed.
    pub async fn finish(self) -> Result<(usize, Vec<String>)> {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.task.await??;
        Ok((self.sent.load(Ordering::Relaxed), failures))
    }
}

async fn drill_rolling_updates_lose_nothing(cx: Cx) -> Result<()> {
    let rounds = if scaleup_tests::full_drill() { 10 } else { 2 };
    let cluster = cx.docker().await?;
    let kubectl = cluster.kubectl();
    let port = deploy(&kubectl, "web-roll").await?;
    let load = ConstantLoad::start(port, 200)?;
    let mut seen = BTreeSet::new();
    for round in 0..rounds {
        kubectl.ok("-n web-roll scale deployment web --replicas=5").await?;
        kubectl.ok("-n web-roll rollout status deployment/web --timeout=90s").await?;
        kubectl.ok("-n web-roll scale deployment web --replicas=3").await?;
        let version = if round % 2 == 0 { "v2" } else { "v1" };
        kubectl.ok(&format!("-n web-roll set image deployment/web web=scaleup-demo/web:{version}")).await?;
        kubectl.ok("-n web-roll rollout status deployment/web --timeout=90s").await?;
        seen.insert(version);
    }
    // Those that the last update ends are still draining.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (sent, failures) = load.finish().await?;
    println!(
        "rolling updates: {rounds} rounds of scale up, scale down and update, {sent} requests, {} failed",
        failures.len()
    );
    ensure!(
        failures.is_empty(),
        "{} of {sent} requests failed: {:?}",
        failures.len(),
        &failures[..failures.len().min(3)]
    );
    ensure!(sent > rounds * 200, "only {sent} requests were sent");
    kubectl.ok("delete namespace web-roll --timeout=60s").await?;
    Ok(())
}
