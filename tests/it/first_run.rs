//! What goes wrong on a first run: each with a message that says what to do, none with a stack trace.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use scaleup_tests::cluster::{Cluster, Options, binary, free_port};
use scaleup_tests::docker::{demo_image, docker};
use scaleup_tests::eventually;
use serde_json::json;

use crate::{Cx, trials};

/// All tests of this module.
pub fn tests(cx: &Cx) -> Vec<Trial> {
    trials![
        cx,
        "first_run",
        port_taken,
        data_dir_in_use,
        data_dir_not_writable,
        damaged_store,
        disk_full,
        docker_absent,
        image_that_cannot_be_pulled,
        restart_keeps_containers,
        stop_pods_stops_them,
        banner_says_what_to_do,
        bad_options,
        clock_far_off,
    ]
}

/// Runs `scaleup up` with arguments and expects it to end with a message.
fn refused(args: &[&str], says: &[&str]) -> Result<()> {
    let mut child = Command::new(binary())
        .arg("up")
        .args(["--runtime", "fake", "--no-nftables"])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    for _ in 0..1_000 {
        if child.try_wait()?.is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    let output = child.wait_with_output()?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(!output.status.success(), "{args:?} was accepted:\n{text}");
    for part in says {
        ensure!(text.contains(part), "{args:?} does not say {part:?}:\n{text}");
    }
    ensure!(!text.contains("panicked") && !text.contains("stack backtrace"), "a stack trace:\n{text}");
    Ok(())
}

async fn port_taken(_: Cx) -> Result<()> {
    let taken = std::net::TcpListener::bind(("127.0.0.1", free_port()?))?;
    let (dir, address) = (tempfile::tempdir()?, taken.local_addr()?.to_string());
    refused(&["--data-dir", &dir.path().display().to_string(), "--listen", &address], &["is taken", "--listen"])
}

async fn data_dir_in_use(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let dir = cluster.dir.path().display().to_string();
    let pid = cluster.pid().unwrap_or_default().to_string();
    refused(&["--data-dir", &dir, "--listen", &format!("127.0.0.1:{}", free_port()?)], &["in use", &pid, "--data-dir"])
}

async fn data_dir_not_writable(_: Cx) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    refused(&["--data-dir", &file.path().display().to_string()], &["--data-dir"])?;
    refused(&["--data-dir", "/proc/scaleup"], &["/proc/scaleup", "--data-dir"])
}

async fn damaged_store(_: Cx) -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    cluster.stop().await?;
    let store = std::fs::read_dir(cluster.dir.path())?
        .filter_map(Result::ok)
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "redb" || e == "db"))
        .ok_or_else(|| anyhow::anyhow!("no store file"))?;
    std::fs::write(&store, b"this is not a store, and it is long enough to be looked at".repeat(1_000))?;
    let dir = cluster.dir.path().display().to_string();
    refused(
        &["--data-dir", &dir, "--listen", &format!("127.0.0.1:{}", free_port()?)],
        &["damaged", &store.display().to_string()],
    )
}

/// A data directory on a small tmpfs that runs full: writes are refused with a message, and work again when space returns.
async fn disk_full(_: Cx) -> Result<()> {
    let mount = tempfile::tempdir()?;
    let at = mount.path().display().to_string();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m", "tmpfs", &at]).status()?;
    ensure!(mounted.success(), "mounting a tmpfs needs root");
    let outcome = on_a_small_disk(mount.path()).await;
    let _ = Command::new("umount").args(["-l", &at]).status();
    outcome
}

async fn on_a_small_disk(mount: &std::path::Path) -> Result<()> {
    let dir = mount.join("data");
    let port = free_port()?;
    let mut child = Command::new(binary())
        .args(["up", "--runtime", "fake", "--no-nftables", "--service-cidr", "10.95.0.0/16", "--data-dir"])
        .arg(&dir)
        .args(["--listen", &format!("127.0.0.1:{port}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let outcome = fill_and_free(mount, &dir).await;
    let _ = child.kill();
    let _ = child.wait();
    outcome
}

async fn fill_and_free(mount: &std::path::Path, dir: &std::path::Path) -> Result<()> {
    let api = eventually("ready", || async {
        let api = scaleup_tests::http::Api::from_kubeconfig(&dir.join("kubeconfig"))?;
        Ok(api.get("/readyz").await?.status.is_success().then_some(api))
    })
    .await?;
    let ballast = mount.join("ballast");
    let filled = Command::new("dd")
        .args(["if=/dev/zero", "bs=64k"])
        .arg(format!("of={}", ballast.display()))
        .stderr(Stdio::null())
        .status()?;
    ensure!(!filled.success(), "the disk did not run full");
    let map = |i: usize| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("m{i}")}, "data": {"a": "x".repeat(900_000)}});
    let mut refusal = None;
    for i in 0..40 {
        let answer = api.post("/api/v1/namespaces/default/configmaps", &map(i)).await?;
        if !answer.status.is_success() {
            refusal = Some(answer);
            break;
        }
    }
    let refusal = refusal.ok_or_else(|| anyhow::anyhow!("writes go on, on a full disk"))?;
    ensure!(refusal.message().contains("space"), "{}", refusal.text);
    ensure!(api.get("/api/v1/namespaces/default").await?.status.is_success(), "reads go on");
    std::fs::remove_file(&ballast)?;
    eventually("writes work again", || async {
        Ok(api.post("/api/v1/namespaces/default/configmaps", &map(99)).await?.status.is_success().then_some(()))
    })
    .await
}

async fn docker_absent(_: Cx) -> Result<()> {
    let socket = tempfile::tempdir()?.path().join("docker.sock");
    let path = socket.display().to_string();
    let cluster = Cluster::start(Options {
        runtime: "docker",
        extra: vec!["--docker-socket".into(), path],
        ..Options::default()
    })
    .await?;
    let kubectl = cluster.kubectl();
    let ready = |node: serde_json::Value| {
        node["items"][0]["status"]["conditions"]
            .as_array()
            .and_then(|c| c.iter().find(|c| c["type"] == "Ready").cloned())
            .unwrap_or_default()
    };
    eventually("the node says why", || async {
        let condition = ready(kubectl.json("get nodes").await?);
        let message = condition["message"].as_str().unwrap_or_default().to_lowercase();
        Ok((condition["status"] == "False" && message.contains("docker")).then_some(()))
    })
    .await?;
    // Everything else works.
    kubectl.ok("create configmap a --from-literal=b=c").await?;
    // Docker returns: the socket appears.
    std::fs::create_dir_all(socket.parent().unwrap_or(std::path::Path::new("/")))?;
    std::os::unix::fs::symlink("/var/run/docker.sock", &socket)?;
    eventually("the node recovers", || async {
        Ok((ready(kubectl.json("get nodes").await?)["status"] == "True").then_some(()))
    })
    .await?;
    std::fs::remove_dir_all(socket.parent().unwrap_or(std::path::Path::new("/nonexistent")))?;
    Ok(())
}

async fn image_that_cannot_be_pulled(cx: Cx) -> Result<()> {
    let kubectl = cx.docker().await?.kubectl();
    kubectl.ok("create namespace pull").await?;
    kubectl.ok("-n pull run nope --image=127.0.0.1:1/no/such/image:v1").await?;
    kubectl.ok("-n pull run never --image=no-such-image-here:v1 --image-pull-policy=Never").await?;
    let reason = |name: &'static str| {
        let kubectl = kubectl.clone();
        async move {
            let pod = kubectl.json(&format!("-n pull get pod {name}")).await?;
            Ok::<_, anyhow::Error>(
                pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
            )
        }
    };
    eventually("ErrImagePull or ImagePullBackOff", || async {
        Ok(["ErrImagePull", "ImagePullBackOff"].contains(&reason("nope").await?.as_str()).then_some(()))
    })
    .await?;
    eventually("ImagePullBackOff", || async { Ok((reason("nope").await? == "ImagePullBackOff").then_some(())) })
        .await?;
    eventually("ErrImageNeverPull", || async { Ok((reason("never").await? == "ErrImageNeverPull").then_some(())) })
        .await?;
    let events = kubectl.ok("-n pull get events").await?;
    for part in ["Pulling", "Failed to pull image", "ErrImagePull", "BackOff"] {
        ensure!(events.contains(part), "{part} is missing in\n{events}");
    }
    kubectl.ok("delete namespace pull --timeout=60s").await?;
    Ok(())
}

async fn started_at(kubectl: &scaleup_tests::kubectl::Kubectl) -> Result<String> {
    let pod = kubectl.json("get pod keeper").await?;
    Ok(pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"].as_str().unwrap_or_default().to_owned())
}

async fn keeper(cluster: &Cluster) -> Result<String> {
    let (kubectl, image) = (cluster.kubectl(), demo_image("v1")?);
    eventually("the service account", || async { Ok(kubectl.ok("get serviceaccount default").await.ok()) }).await?;
    kubectl.ok(&format!("run keeper --image={image}")).await?;
    kubectl.ok("wait --for=condition=Ready pod/keeper --timeout=60s").await?;
    started_at(&kubectl).await
}

async fn restart_keeps_containers(_: Cx) -> Result<()> {
    let mut cluster = Cluster::start(Options { runtime: "docker", ..Options::default() }).await?;
    let before = keeper(&cluster).await?;
    let ids = scaleup_tests::docker::containers_of(&cluster.node, false)?;
    cluster.stop().await?;
    ensure!(scaleup_tests::docker::containers_of(&cluster.node, false)? == ids, "containers stay up");
    cluster.launch().await?;
    let kubectl = cluster.kubectl();
    kubectl.ok("wait --for=condition=Ready pod/keeper --timeout=60s").await?;
    ensure!(started_at(&kubectl).await? == before, "the container was restarted");
    ensure!(scaleup_tests::docker::containers_of(&cluster.node, false)? == ids, "the same containers");
    // What happens while the platform is away is found on return.
    cluster.stop().await?;
    let label = "{{index .Config.Labels \"io.kubernetes.container.name\"}}";
    let own = |id: &&String| docker(&["inspect", "-f", label, id]).is_ok_and(|name| name == "keeper");
    docker(&["kill", ids.iter().find(own).context("the pod's container")?])?;
    cluster.launch().await?;
    eventually("the container is started again", || async {
        let pod = kubectl.json("get pod keeper").await?;
        Ok((pod["status"]["containerStatuses"][0]["restartCount"] == 1).then_some(()))
    })
    .await
}

async fn stop_pods_stops_them(_: Cx) -> Result<()> {
    let mut cluster =
        Cluster::start(Options { runtime: "docker", extra: vec!["--stop-pods".into()], ..Options::default() }).await?;
    keeper(&cluster).await?;
    cluster.stop().await?;
    let left = scaleup_tests::docker::containers_of(&cluster.node, false)?;
    ensure!(left.is_empty(), "still running: {left:?}");
    Ok(())
}

async fn banner_says_what_to_do(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let log = cluster.log();
    for part in [
        &format!("https://127.0.0.1:{}", cluster.port),
        &cluster.kubeconfig().display().to_string(),
        "export KUBECONFIG=",
        "kubectl",
        "oad balancer",
    ] {
        ensure!(log.contains(part), "{part} is missing in\n{log}");
    }
    Ok(())
}

/// A clock that was never set, as on a board without a battery: refused before certificates are made of it.
async fn clock_far_off(_: Cx) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let output = Command::new("faketime")
        .arg("2001-01-01 00:00:00")
        .arg(binary())
        .args([
            "up",
            "--runtime",
            "fake",
            "--no-nftables",
            "--listen",
            &format!("127.0.0.1:{}", free_port()?),
            "--data-dir",
        ])
        .arg(dir.path())
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && text.contains("clock") && text.contains("set it"), "{text}");
    ensure!(!dir.path().join("pki").exists(), "certificates were made with a wrong clock");
    Ok(())
}

async fn bad_options(_: Cx) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let dir = dir.path().display().to_string();
    let at = format!("127.0.0.1:{}", free_port()?);
    for (args, says) in [
        (["--service-cidr", "nonsense"], "service-cidr"),
        (["--service-cidr", "10.96.0.0/31"], "service-cidr"),
        (["--node-port-range", "5-1"], "node-port-range"),
        (["--store", "redis"], "store"),
        (["--listen", "nowhere"], "listen"),
        (["--listen", "203.0.113.7:6443"], "--listen"),
        (["--pod-cidr-pool", "10.244.0.0/30"], "pod-cidr-pool"),
        (["--node-name", "Not_A_Name"], "node-name"),
        (["--node-labels", "no-value"], "node-labels"),
        (["--config", "/no/such/file"], "/no/such/file"),
    ] {
        let mut all = vec!["--data-dir", dir.as_str()];
        if args[0] != "--listen" {
            all.extend(["--listen", at.as_str()]);
        }
        all.extend(args);
        refused(&all, &[says])?;
    }
    Ok(())
}
