//! Decisions that are recorded in one process and asked for in another: those of a scheduler and a load balancer that run alone, and the API server's.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use scaleup_plugins::World;
use scaleup_plugins::testing::by_name;
use scaleup_plugins::testing::routing::picks;
use scaleup_tests::cluster::{binary, free_port};
use scaleup_tests::eventually;
use scaleup_tests::http::Api;
use scaleup_tests::kubectl::Kubectl;
use serde_json::{Value, json};

use super::{apply, decides, manifest, path};
use crate::Cx;
use crate::roles::{Apart, Processes};
use crate::traffic::{Endpoint, ask, put_service};

const NS: &str = "recorded";

/// `scaleup plugin …`: its exit code and what it prints.
async fn tool(kubeconfig: &Path, arguments: &[&str]) -> Result<(i32, String)> {
    let mut command = tokio::process::Command::new(binary());
    command.arg("plugin").args(arguments).env("KUBECONFIG", kubeconfig).stdin(Stdio::null());
    let output = command.output().await?;
    Ok((output.status.code().unwrap_or(-1), String::from_utf8(output.stdout)? + &String::from_utf8(output.stderr)?))
}

/// Waits until so many decisions of the plugin can be had; they, as JSON lines.
async fn recorded(apart: &Apart, name: &str, least: usize) -> Result<String> {
    eventually("the decisions can be had", || async {
        let (code, text) = tool(&apart.kubeconfig(), &["records", name, "-n", NS]).await?;
        ensure!(code == 0 && text.lines().count() >= least, "{code}: {text}");
        Ok(Some(text))
    })
    .await
}

pub async fn decisions_of_other_processes_can_be_had(_: Cx) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("scaleup-it-").tempdir()?;
    let apart = Apart::start(dir, Processes::default(), "embedded", "fake").await?;
    apart.told(can_be_had(&apart).await)
}

async fn can_be_had(apart: &Apart) -> Result<()> {
    let (api, kubectl) = (&apart.api, Kubectl::new(Kubectl::NEW, &apart.kubeconfig()));
    kubectl.namespace(NS).await?;
    let recording = json!({"recording": {"samplePercent": 100, "plainHeaders": ["x-plain"]}});
    let mut admission = recording.clone();
    admission["admission"] =
        json!({"rules": [{"operations": ["CREATE"], "apiGroups": [""], "resources": ["configmaps"]}]});
    let router = picks(0).component();
    for (name, world, module, more) in [
        ("route", World::Routing, &router, &recording),
        ("place", World::Scheduling, &by_name::scheduling().component(), &recording),
        ("admit", World::Admission, &by_name::admission().component(), &admission),
    ] {
        apply(api, &manifest(NS, name, world, module, more)).await?;
        decides(api, NS, name, Some(1)).await?;
    }
    // The load balancer's, in the order in which they were taken.
    let endpoint = Endpoint::start("a").await?;
    let port = free_port()?;
    let spec = json!({"type": "LoadBalancer", "ports": [{"name": "http", "port": port, "targetPort": 80}]});
    put_service(api, NS, "web", spec, &[endpoint.addr]).await?;
    let annotation = json!({"metadata": {"annotations": {"traffic.scaleup.dev/policy": "route"}}});
    api.patch(&format!("/api/v1/namespaces/{NS}/services/web"), "merge", &annotation).await?.ok()?;
    eventually("it is served", || async { Ok(ask(port).await.ok()) }).await?;
    recorded(apart, "route", 1).await?;
    for _ in 0..25 {
        ask(port).await?;
    }
    let text = recorded(apart, "route", 26).await?;
    let records: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("a record")?;
    for record in &records {
        ensure!(record["world"] == "routing" && record["plugin"] == format!("{NS}/route"), "{record}");
        ensure!(record["answer"] == json!({"pick": 0}) && record["input"]["request"]["path"] == "/", "{record}");
    }
    ensure!(records.is_sorted_by_key(|record| record["timeMs"].as_u64()), "they are out of order");
    // They are what replay takes.
    let file = |name: &str| apart.dir.path().join(name);
    let (lines, module) = (file("records.jsonl"), file("m.wasm"));
    std::fs::write(&lines, &text)?;
    let (lines, shown) = (lines.to_string_lossy().into_owned(), module.to_string_lossy().into_owned());
    for (component, code, words) in [(&router, 0, "0 changed"), (&picks(1).component(), 1, "0 unchanged")] {
        std::fs::write(&module, component)?;
        let (found, said) = tool(&apart.kubeconfig(), &["replay", &shown, "--records", &lines]).await?;
        ensure!(found == code && said.contains(words), "{found}: {said}");
    }
    // The scheduler's, and those of the process in which the API server is.
    let pod = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "registry.example/app:v1"}]}})
    };
    for name in ["a", "b", "c"] {
        api.post(&format!("/api/v1/namespaces/{NS}/pods"), &pod(name)).await?.ok()?;
    }
    let text = recorded(apart, "place", 3).await?;
    ensure!(text.lines().all(|line| line.contains(r#""world":"scheduling""#)), "{text}");
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "allowed"}});
    api.post(&format!("/api/v1/namespaces/{NS}/configmaps"), &map).await?.ok()?;
    ensure!(recorded(apart, "admit", 1).await?.contains("allowed"));

    only_what_is_asked_for_is_taken(apart, &records[0]).await?;
    // What nobody wants any more is forgotten, also when it is wanted again.
    for recording in [Value::Null, json!({"samplePercent": 1})] {
        api.patch(&path(NS, "route"), "merge", &json!({"spec": {"recording": recording}})).await?.ok()?;
        eventually("the records are gone", || async {
            let (code, text) = tool(&apart.kubeconfig(), &["records", "route", "-n", NS]).await?;
            Ok((code == 0 && text.is_empty()).then_some(()))
        })
        .await?;
    }
    Ok(())
}

/// What the load balancer's identity may hand in.
async fn only_what_is_asked_for_is_taken(apart: &Apart, record: &Value) -> Result<()> {
    let lb = Api::from_kubeconfig(&apart.issue("another-lb", &["lb"])?)?;
    let post = async |api: &Api, plugin: &str, body: String| {
        let request = api.request(reqwest::Method::POST, &format!("/plugins/records?plugin={plugin}"));
        api.send(request.body(body)).await
    };
    let name = format!("{NS}/route");
    for (plugin, body, status, words) in [
        (name.as_str(), "nonsense".to_owned(), 400, "line 1: no record"),
        (&format!("{NS}/place"), record.to_string(), 400, "expected one of recorded/place of the world scheduling"),
        ("nobody", record.to_string(), 404, "there is no plugin"),
        ("", record.to_string(), 400, "say which plugin"),
    ] {
        let answer = post(&lb, plugin, body).await?;
        ensure!(answer.status == status && answer.message().contains(words), "{plugin}: {}", answer.text);
    }
    // The connection may end before all of it was sent.
    let large = post(&lb, &name, "x".repeat(9 << 20)).await;
    ensure!(large.is_err() || large.is_ok_and(|answer| answer.status == 413), "it is too large");
    let answer = post(&lb, &name, record.to_string()).await?;
    ensure!(answer.status == 204, "{} {}", answer.status, answer.text);
    // It hands in and does not read; others do neither.
    ensure!(lb.get(&format!("/plugins/records?plugin={name}")).await?.status == 403);
    let nobody = apart.api.without_credentials()?;
    ensure!([401, 403].contains(&post(&nobody, &name, record.to_string()).await?.status.as_u16()));
    Ok(())
}
