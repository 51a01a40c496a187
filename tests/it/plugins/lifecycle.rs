//! Versions that follow each other, and modules that outlive processes.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use scaleup_plugins::World;
use scaleup_plugins::testing::{Guest, by_name};
use scaleup_tests::cluster::{Cluster, Options, binary, issued};
use scaleup_tests::eventually;
use serde_json::json;

use super::server::{Authority, Server, body};
use super::sources::sha256;
use super::{Lab, allow, apply, condition, deny, manifest, path, trap};
use crate::Cx;
use crate::roles::{Processes, start_etcd};

/// Runs `scaleup plugin …` against the instance; standard output.
pub async fn tool(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let mut command = tokio::process::Command::new(binary());
    command.arg("plugin").args(arguments).env("KUBECONFIG", cluster.kubeconfig()).stdin(Stdio::null());
    let output = command.output().await?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "scaleup plugin {arguments:?}: {error}");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

pub async fn new_versions_are_tried_first(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let lab = Lab::new(cluster, "plugins-rollout").await?;
    let rollout = json!({"rollout": {"maxErrorPercent": 50, "shadow": {"decisions": 10}, "canary": [{"percent": 50, "decisions": 20}]}});
    lab.apply("p", &allow().component(), &rollout).await?;
    lab.decides("p", 1).await?;
    lab.apply("p", &deny("version two").component(), &rollout).await?;
    lab.until("p", "the new version is in the shadow", |status| {
        let mut holders = status["holders"].as_object().into_iter().flatten();
        status["candidate"]["phase"] == "Shadow" && holders.all(|(_, one)| one["candidate"] == 2)
    })
    .await?;
    ensure!(condition(&lab.status("p").await?, "Active").1 == "RollingOut");
    for _ in 0..10 {
        ensure!(lab.ask("p").await?.status.is_success(), "in the shadow nothing is decided");
    }
    lab.until("p", "the new version is a canary", |status| status["candidate"]["phase"] == "Canary").await?;
    let (mut allowed, mut denied) = (0, 0);
    while lab.status("p").await?["candidate"].is_object() {
        match lab.ask("p").await?.status.as_u16() {
            403 => denied += 1,
            _ => allowed += 1,
        }
        ensure!(allowed + denied < 5_000, "the canary does not end");
    }
    ensure!(allowed > 0 && denied >= 15, "{allowed} were allowed, {denied} denied");
    lab.decides("p", 2).await?;
    let answer = lab.ask("p").await?;
    ensure!(answer.status == 403 && answer.message().contains("version two"), "{}", answer.text);
    // Back, at once, though there is a rollout.
    tool(cluster, &["rollback", "p", "-n", lab.namespace]).await?;
    let status = lab.decides("p", 1).await?;
    ensure!(status["previous"]["number"] == 2 && status["candidate"].is_null(), "{status:#}");
    ensure!(lab.ask("p").await?.status.is_success());
    let shown = tool(cluster, &["status", "p", "-n", lab.namespace]).await?;
    ensure!(shown.contains("version 1") && shown.contains("previous"), "{shown}");
    let table = cluster.kubectl().ok(&format!("-n {} get wp p", lab.namespace)).await?;
    ensure!(table.contains("WORLD") && table.contains("admission") && table.contains("Active"), "{table}");
    Ok(())
}

pub async fn a_bad_version_is_taken_back(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let lab = Lab::new(cluster, "plugins-taken-back").await?;
    lab.apply("p", &allow().component(), &json!({})).await?;
    lab.decides("p", 1).await?;
    lab.apply("p", &trap().component(), &json!({})).await?;
    let status = lab.until("p", "the version that traps is taken back", |status| {
        // Whoever asks finds out.
        status["active"]["number"] == 1 && condition(status, "Active").1 == "RolledBack"
    });
    let asking = async {
        loop {
            // Its outcome depends on the moment.
            let _ = lab.ask("p").await;
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let status = tokio::select! { status = status => status?, () = asking => unreachable!() };
    ensure!(condition(&status, "Active").2.contains("version 2 was taken back"), "{status:#}");
    ensure!(status["latest"]["rejected"] == "RolledBack", "{status:#}");
    ensure!(lab.ask("p").await?.status.is_success());
    let events = eventually("an event says so", || async {
        let events = cluster.kubectl().ok(&format!("-n {} get events", lab.namespace)).await?;
        Ok(events.contains("RolledBack").then_some(events))
    })
    .await?;
    ensure!(events.contains("Warning"), "{events}");
    Ok(())
}

pub async fn a_process_goes_back_by_itself(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let lab = Lab::new(cluster, "plugins-fell-back").await?;
    // The first one is good for writes of most names, and traps for those that begin with t.
    lab.apply("p", &by_name::admission().component(), &json!({})).await?;
    lab.decides("p", 1).await?;
    lab.apply("p", &deny("version two").component(), &json!({})).await?;
    lab.decides("p", 2).await?;
    // What somebody has gone back to is not taken back for them everywhere.
    tool(cluster, &["rollback", "p", "-n", lab.namespace]).await?;
    lab.decides("p", 1).await?;
    let trapping =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "traps", "labels": {"plugin": "p"}}});
    let path = format!("/api/v1/namespaces/{}/configmaps?dryRun=All", lab.namespace);
    for turn in 0..5 {
        let answer = lab.api.post(&path, &trapping).await?;
        ensure!(answer.status == 500, "turn {turn}: {} {}", answer.status, answer.text);
    }
    // The process has gone back, and everybody can see it.
    ensure!(lab.api.post(&path, &trapping).await?.message().contains("version two"));
    let status = lab.until("p", "the status says so", |status| condition(status, "Active").1 == "FellBack").await?;
    let (state, _, message) = condition(&status, "Active");
    let (name, holder) = status["holders"].as_object().and_then(|all| all.iter().next()).context("a holder")?;
    ensure!(state == "True" && status["active"]["number"] == 1 && status["candidate"].is_null(), "{status:#}");
    ensure!(holder["active"] == 2 && holder["tripped"] == 1, "{status:#}");
    ensure!(message.contains(&format!("at {name}, where version 2 decides")), "{message}");
    let events = eventually("an event says so", || async {
        let events = cluster.kubectl().ok(&format!("-n {} get events", lab.namespace)).await?;
        Ok(events.contains("FellBack").then_some(events))
    })
    .await?;
    ensure!(events.contains("Warning"), "{events}");
    // Another version ends it.
    lab.apply("p", &deny("version three").component(), &json!({})).await?;
    let status = lab.decides("p", 3).await?;
    ensure!(
        condition(&status, "Active").1 == "Active" && lab.ask("p").await?.message().contains("version three"),
        "{status:#}"
    );
    Ok(())
}

pub async fn sources_can_change(cx: Cx) -> Result<()> {
    let lab = Lab::new(cx.fake().await?, "plugins-sources").await?;
    let config_maps = format!("/api/v1/namespaces/{}/configmaps", lab.namespace);
    let map = |module: &[u8]| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "module"}, "binaryData": {"m.wasm": STANDARD.encode(module)}});
    let source = json!({"source": {"configMapRef": {"name": "module", "key": "m.wasm"}}});
    lab.apply("p", &[], &source).await?;
    let status = lab.until("p", "it says what is missing", |status| condition(status, "Fetched").0 == "False").await?;
    ensure!(condition(&status, "Fetched").2.contains("module"), "{status:#}");
    ensure!(lab.ask("p").await?.status == 500, "fails closed until it is there");
    lab.api.post(&config_maps, &map(&allow().component())).await?.ok()?;
    lab.decides("p", 1).await?;
    ensure!(lab.ask("p").await?.status.is_success());
    lab.api.put(&format!("{config_maps}/module"), &map(&deny("changed").component())).await?.ok()?;
    lab.decides("p", 2).await?;
    ensure!(lab.ask("p").await?.message().contains("changed"));
    lab.api.delete(&format!("{config_maps}/module"), &json!({})).await?.ok()?;
    lab.until("p", "it says what is missing", |status| condition(status, "Fetched").0 == "False").await?;
    ensure!(lab.ask("p").await?.message().contains("changed"), "what was good stays");
    Ok(())
}

pub async fn what_is_uploaded_is_used(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let lab = Lab::new(cluster, "plugins-uploaded").await?;
    let dir = tempfile::tempdir()?;
    let (module, manifest) = (dir.path().join("m.wasm"), dir.path().join("p.yaml"));
    let bytes = deny("uploaded").component();
    std::fs::write(&module, &bytes)?;
    let mut object = lab.manifest("p", b"", &json!({}));
    object["metadata"]["namespace"] = json!(lab.namespace);
    std::fs::write(&manifest, object.to_string())?;
    let (module, manifest) = (module.to_str().context("a path")?, manifest.to_str().context("a path")?);
    let digest = tool(cluster, &["push", module, "-n", lab.namespace]).await?;
    let path = format!("/apis/policy.scaleup.dev/v1/namespaces/{}/wasmmodules/sha256-{digest}", lab.namespace);
    ensure!(lab.api.get(&path).await?.ok()?["status"]["size"] == bytes.len());
    let content = lab.api.client.get(format!("{}{path}/content", lab.api.base)).send().await?.bytes().await?;
    ensure!(content == bytes, "{} bytes instead of {}", content.len(), bytes.len());
    // Another content than the name's is refused, whatever its size.
    let other = lab.api.client.put(format!("{}{path}/content", lab.api.base)).body(vec![0; 3 << 20]).send().await?;
    ensure!(other.status() == 400, "{}", other.status());
    let large = lab.api.client.put(format!("{}{path}/content", lab.api.base)).body(vec![0; 33 << 20]).send().await;
    ensure!(large.is_err() || large.is_ok_and(|answer| answer.status() == 413));
    tool(cluster, &["apply", module, "-f", manifest]).await?;
    lab.decides("p", 1).await?;
    ensure!(lab.ask("p").await?.message().contains("uploaded"));
    Ok(())
}

pub async fn modules_survive_a_restart_and_reach_other_processes(_: Cx) -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    {
        let lab = Lab::new(&cluster, "plugins-restart").await?;
        // Larger than one piece of the store.
        let filler = format!("(data (i32.const 131072) \"{}\")", "x".repeat(3 << 20));
        let large = deny("still here").pages(64).extra(&format!("(data (i32.const 2048) \"still here\") {filler}"));
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "none"}});
        lab.api.post(&format!("/api/v1/namespaces/{}/configmaps", lab.namespace), &map).await?.ok()?;
        let dir = tempfile::tempdir()?;
        let (module, manifest) = (dir.path().join("m.wasm"), dir.path().join("p.yaml"));
        std::fs::write(&module, large.component())?;
        std::fs::write(&manifest, lab.manifest("p", b"", &json!({})).to_string())?;
        let (module, manifest) = (module.to_str().context("a path")?, manifest.to_str().context("a path")?);
        tool(&cluster, &["apply", module, "-f", manifest, "-n", lab.namespace]).await?;
        lab.decides("p", 1).await?;
    }
    cluster.stop().await?;
    std::fs::remove_dir_all(cluster.dir.path().join("plugins")).context("the cache of compiled code")?;
    cluster.launch().await?;
    cluster.wait_ready().await?;
    let lab = Lab { api: cluster.api()?, namespace: "plugins-restart" };
    eventually("it decides again", || async { Ok(lab.ask("p").await?.message().contains("still here").then_some(())) })
        .await?;
    another_process(&cluster, &lab).await
}

/// A scheduler of its own, over HTTPS, loads what it needs.
async fn another_process(cluster: &Cluster, lab: &Lab<'_>) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = issued(cluster.dir.path(), &format!("https://127.0.0.1:{}", cluster.port), &["scheduler"])?;
    let kubeconfig = dir.path().join("scheduler");
    std::fs::write(&kubeconfig, config)?;
    let module = Guest::new(World::Scheduling, "(i32.const 1024)").component();
    apply(&lab.api, &manifest(lab.namespace, "s", World::Scheduling, &module, &json!({}))).await?;
    let mut scheduler = Command::new(binary())
        .args(["scheduler", "--kubeconfig"])
        .arg(&kubeconfig)
        .arg("--plugin-cache")
        .arg(dir.path().join("cache"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let loaded = lab
        .until("s", "the other process has it, too", |status| {
            let holders = status["holders"].as_object().into_iter().flatten();
            holders.filter(|(name, one)| name.starts_with("scheduler/") && one["active"] == 1).count() == 1
        })
        .await;
    let _ = scheduler.kill();
    let _ = scheduler.wait();
    loaded.map(drop)
}

pub async fn the_same_life_on_etcd(_: Cx) -> Result<()> {
    let home = tempfile::tempdir()?;
    let mut processes = Processes::default();
    let etcd = start_etcd(&mut processes, home.path())?;
    // An authority that the whole machine is told to trust, not this plugin alone.
    let authority = Authority::new()?;
    let trusted = home.path().join("trusted.pem");
    std::fs::write(&trusted, authority.pem())?;
    let first = deny("from the web").component();
    let served = first.clone();
    let server = Server::start(Some(&authority), move |_| body(served.clone())).await?;
    let mut cluster = Cluster::start(Options {
        store: format!("etcd://127.0.0.1:{etcd}"),
        env: vec![("SSL_CERT_FILE", trusted.to_string_lossy().into_owned())],
        ..Options::default()
    })
    .await?;
    {
        let lab = Lab::new(&cluster, "plugins-etcd").await?;
        let source = json!({"source": {"https": {"url": server.url("/m.wasm")}}, "sha256": sha256(&first)});
        lab.apply("p", &[], &source).await?;
        lab.decides("p", 1).await?;
        ensure!(lab.ask("p").await?.message().contains("from the web"));
        // A larger one than an entry of etcd may be, tried first.
        let filler = format!("(data (i32.const 131072) \"{}\")", "x".repeat(3 << 20));
        let large = deny("uploaded").pages(64).extra(&format!("(data (i32.const 2048) \"uploaded\") {filler}"));
        let (module, file) = (home.path().join("m.wasm"), home.path().join("p.yaml"));
        std::fs::write(&module, large.component())?;
        let rollout = json!({"rollout": {"shadow": {"decisions": 10}, "canary": [{"percent": 50, "decisions": 5}]}});
        std::fs::write(&file, lab.manifest("p", b"", &rollout).to_string())?;
        tool(&cluster, &["apply", &module.to_string_lossy(), "-f", &file.to_string_lossy()]).await?;
        lab.until("p", "the new version is tried", |status| status["candidate"]["number"] == 2).await?;
        while lab.status("p").await?["candidate"].is_object() {
            ensure!(lab.ask("p").await?.status == 403, "both versions deny");
        }
        lab.decides("p", 2).await?;
        ensure!(lab.ask("p").await?.message().contains("uploaded"));
        // One that is no good changes nothing.
        lab.apply("p", b"junk", &json!({})).await?;
        lab.until("p", "the bad version is refused", |status| {
            condition(status, "Compiled").0 == "False" && condition(status, "Active").1 == "PreviousVersion"
        })
        .await?;
        ensure!(lab.ask("p").await?.message().contains("uploaded"));
    }
    cluster.kill().await?;
    cluster.launch().await?;
    let lab = Lab { api: cluster.api()?, namespace: "plugins-etcd" };
    eventually("it decides again", || async { Ok(lab.ask("p").await?.message().contains("uploaded").then_some(())) })
        .await?;
    // Back, without the server that it came from.
    drop(server);
    tool(&cluster, &["rollback", "p", "-n", lab.namespace]).await?;
    lab.decides("p", 1).await?;
    ensure!(lab.ask("p").await?.message().contains("from the web"));
    lab.api.delete(&path(lab.namespace, "p"), &json!({})).await?.ok()?;
    eventually("nobody is asked any more", || async { Ok(lab.ask("p").await?.status.is_success().then_some(())) }).await
}
