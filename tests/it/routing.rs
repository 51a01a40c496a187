//! Routing plugins through the real API: reloads under load, rollouts, rollback, and modules that mean harm.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use libtest_mimic::Trial;
use scaleup_plugins::World;
use scaleup_plugins::testing::Guest;
use scaleup_plugins::testing::routing::{loops, picks, rejects, traps_every};
use scaleup_tests::cluster::{Cluster, Options, binary, free_port};
use scaleup_tests::http::Api;
use scaleup_tests::{eventually, full_drill};
use serde_json::{Value, json};

use crate::path::ConstantLoad;
use crate::plugins::{apply, decides, manifest, path};
use crate::traffic::{Endpoint, ask, make_namespace, put_service};
use crate::{Cx, trials};

/// All tests of this module.
pub fn tests(cx: &Cx) -> Vec<Trial> {
    trials![
        cx,
        "routing",
        drill_reloads_lose_nothing,
        a_binding_waits_for_its_module,
        shadow_canary_and_rollback,
        hostile_modules_harm_nobody_else,
    ]
}

fn inline(guest: &Guest) -> Value {
    json!({"inline": BASE64_STANDARD.encode(guest.component())})
}

async fn put_plugin(api: &Api, namespace: &str, name: &str, guest: &Guest, more: Value) -> Result<()> {
    apply(api, &manifest(namespace, name, World::Routing, &guest.component(), &more)).await
}

async fn change_plugin(api: &Api, namespace: &str, name: &str, spec: Value) -> Result<()> {
    api.patch(&path(namespace, name), "merge", &json!({"spec": spec})).await?.ok().map(drop)
}

async fn plugin(api: &Api, namespace: &str, name: &str) -> Result<Value> {
    api.get(&path(namespace, name)).await?.ok()
}

/// Binds the plugin to a Service by a TrafficPolicy.
async fn bind(api: &Api, namespace: &str, service: &str, name: &str) -> Result<()> {
    let policy = json!({"apiVersion": "traffic.scaleup.dev/v1", "kind": "TrafficPolicy", "metadata": {"name": service},
        "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": service}], "policyRef": {"name": name},
                 "loadBalancing": {"algorithm": "RoundRobin"}}});
    let path = format!("/apis/traffic.scaleup.dev/v1/namespaces/{namespace}/trafficpolicies");
    api.post(&path, &policy).await?.ok().map(drop)
}

/// A Service on a port of its own; the port once it serves.
async fn serve(api: &Api, namespace: &str, name: &str, endpoints: &[&Endpoint]) -> Result<u16> {
    let port = free_port()?;
    let spec = json!({"type": "LoadBalancer", "ports": [{"name": "http", "port": port, "targetPort": 80}]});
    let addresses: Vec<SocketAddr> = endpoints.iter().map(|endpoint| endpoint.addr).collect();
    put_service(api, namespace, name, spec, &addresses).await?;
    eventually("it is served", || async { Ok(ask(port).await.ok()) }).await?;
    Ok(port)
}

/// Two endpoints in the order in which plugins see them: that of their addresses.
async fn two() -> Result<[Endpoint; 2]> {
    let (first, second) = (Endpoint::start("a").await?, Endpoint::start("b").await?);
    Ok(if first.addr < second.addr { [first, second] } else { [second, first] })
}

/// Lines of the access log about a Service.
fn lines(path: &Path, service: &str) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(path)?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(lines.filter(|line| line["service"] == service).collect())
}

async fn drill_reloads_lose_nothing(_: Cx) -> Result<()> {
    let rounds = if full_drill() { 100 } else { 8 };
    let log = tempfile::tempdir()?;
    let path = log.path().join("access.log");
    let log_flags = [
        "--lb-access-log".to_owned(),
        path.display().to_string(),
        "--lb-access-log-max-mib".to_owned(),
        "2000".to_owned(),
    ];
    let cluster = Cluster::start(Options { extra: log_flags.into(), ..Options::default() }).await?;
    let (api, endpoints) = (cluster.api()?, two().await?);
    make_namespace(&api, "reload").await?;
    put_plugin(&api, "reload", "p", &picks(0), json!({})).await?;
    decides(&api, "reload", "p", None).await?;
    let port = serve(&api, "reload", "web", &[&endpoints[0], &endpoints[1]]).await?;
    bind(&api, "reload", "web", "p").await?;
    eventually("the module decides", || async {
        ask(port).await?;
        Ok(lines(&path, "reload/web")?.last().is_some_and(|line| line["plugin"] == "reload/p").then_some(()))
    })
    .await?;
    // Lines are written a moment after their requests.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let bound = lines(&path, "reload/web")?.len();
    let load = ConstantLoad::start(port, if full_drill() { 1_000 } else { 300 })?;
    for round in 1..=rounds {
        // A configuration of its own makes each a new version; without it, every second one would be a way back.
        let spec = json!({"source": inline(&picks((round % 2) as u32)), "config": {"round": round}});
        change_plugin(&api, "reload", "p", spec).await?;
        decides(&api, "reload", "p", None).await?;
    }
    let (sent, failures) = load.finish().await?;
    println!("reloads: {rounds} rounds, {sent} requests, {} failed", failures.len());
    ensure!(failures.is_empty(), "{} of {sent}: {:?}", failures.len(), &failures[..failures.len().min(3)]);
    let told = eventually("all requests are in the log", || async {
        let lines = lines(&path, "reload/web")?;
        Ok((lines.len() >= bound + sent).then_some(lines))
    })
    .await?;
    exactly_one_generation(&told[bound..], &endpoints, rounds)
}

/// Each request was decided once, by a generation whose endpoint it went to.
fn exactly_one_generation(lines: &[Value], endpoints: &[Endpoint; 2], rounds: usize) -> Result<()> {
    let mut seen: BTreeMap<u64, usize> = BTreeMap::new();
    let mut wanted: BTreeMap<u64, String> = BTreeMap::new();
    for line in lines {
        let generation = line["plugin_generation"].as_u64().with_context(|| format!("no generation: {line}"))?;
        ensure!(line["plugin_decision"] == "pick" && line["attempts"] == 1 && line["plugin"] == "reload/p", "{line}");
        let upstream = line["upstream"].as_str().unwrap_or_default().to_owned();
        let known = wanted.entry(generation).or_insert_with(|| upstream.clone());
        ensure!(*known == upstream, "generation {generation} picks one endpoint, here it is another: {line}");
        *seen.entry(generation).or_default() += 1;
    }
    // Generations follow each other by turns, one per change.
    let picks: Vec<&String> = wanted.values().collect();
    let numbers: Vec<&u64> = wanted.keys().collect();
    for (at, pair) in picks.windows(2).enumerate() {
        let odd = (numbers[at + 1] - numbers[at]) % 2 == 1;
        ensure!((pair[0] != pair[1]) == odd, "generations {numbers:?} picked {picks:?}");
    }
    ensure!(
        wanted.values().all(|addr| endpoints.iter().any(|endpoint| endpoint.addr.to_string() == *addr)),
        "{wanted:?}"
    );
    println!("reloads: {} of {} generations decided about {} requests", seen.len(), rounds + 1, lines.len());
    ensure!(seen.len() * 2 > rounds, "most generations came to decide: {seen:?}");
    Ok(())
}

async fn a_binding_waits_for_its_module(cx: Cx) -> Result<()> {
    let (api, endpoints) = (cx.fake().await?.api()?, two().await?);
    make_namespace(&api, "waits").await?;
    let port = serve(&api, "waits", "web", &[&endpoints[0], &endpoints[1]]).await?;
    let load = ConstantLoad::start(port, 100)?;
    bind(&api, "waits", "web", "p").await?;
    let policies = "/apis/traffic.scaleup.dev/v1/namespaces/waits/trafficpolicies/web";
    let resolved = async |status: &str, reason: &str| {
        eventually("the policy says what became of its plugin", || async {
            let policy = api.get(policies).await?.ok()?;
            let conditions = policy["status"]["ancestors"][0]["conditions"].as_array().cloned().unwrap_or_default();
            let is = |kind: &str, status: &str, reason: &str| {
                conditions.iter().any(|c| c["type"] == kind && c["status"] == status && c["reason"] == reason)
            };
            Ok((is("ResolvedRefs", status, reason) && is("Accepted", "True", "Accepted")).then_some(()))
        })
        .await
    };
    resolved("False", "PluginNotFound").await?;
    // Without the module nothing has changed for anybody.
    let (sent, failures) = load.finish().await?;
    ensure!(failures.is_empty() && sent > 10, "{sent}: {failures:?}");
    put_plugin(&api, "waits", "p", &rejects(418, "x-plugin", "p"), json!({})).await?;
    resolved("True", "ResolvedRefs").await?;
    let refused = async || -> Result<bool> {
        Ok(reqwest::get(format!("http://127.0.0.1:{port}/")).await?.status().as_u16() == 418)
    };
    eventually("the plugin decides", || async { Ok::<_, anyhow::Error>(refused().await?.then_some(())) }).await?;
    // By the Service's annotation, without a policy.
    api.delete(policies, &Value::Null).await?.ok()?;
    eventually("the plugin is gone", || async { Ok(ask(port).await.ok()) }).await?;
    let service = "/api/v1/namespaces/waits/services/web";
    let annotated = |name: &str| json!({"metadata": {"annotations": {"traffic.scaleup.dev/policy": name}}});
    let answer = api.patch(service, "merge", &annotated("no/such")).await?;
    ensure!(answer.status == 422 && answer.text.contains("must be the name of a WasmPlugin"), "{}", answer.text);
    api.patch(service, "merge", &annotated("p")).await?.ok()?;
    eventually("the plugin decides", || async { Ok::<_, anyhow::Error>(refused().await?.then_some(())) }).await?;
    eventually("the Service says so", || async {
        let service = api.get(service).await?.ok()?;
        let conditions = service["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let is = |c: &Value| c["type"] == "traffic.scaleup.dev/PolicyResolved" && c["status"] == "True";
        Ok(conditions.iter().any(is).then_some(()))
    })
    .await
}

/// How many of `count` requests went to the second endpoint.
async fn to_second(port: u16, endpoints: &[Endpoint; 2], count: u64) -> Result<u64> {
    let before = endpoints[1].served.load(Relaxed);
    for _ in 0..count {
        ask(port).await?;
    }
    Ok(endpoints[1].served.load(Relaxed) - before)
}

async fn shadow_canary_and_rollback(cx: Cx) -> Result<()> {
    let (cluster, endpoints) = (cx.fake().await?, two().await?);
    let api = cluster.api()?;
    make_namespace(&api, "rollout").await?;
    put_plugin(&api, "rollout", "p", &picks(0), json!({})).await?;
    decides(&api, "rollout", "p", None).await?;
    let port = serve(&api, "rollout", "web", &[&endpoints[0], &endpoints[1]]).await?;
    bind(&api, "rollout", "web", "p").await?;
    eventually("the plugin decides", || async { Ok((to_second(port, &endpoints, 10).await? == 0).then_some(())) })
        .await?;
    let phase = async |phase: &str| {
        eventually("the candidate is in its phase", || async {
            let plugin = plugin(&api, "rollout", "p").await?;
            let candidate = &plugin["status"]["candidate"];
            Ok((candidate["phase"] == phase).then_some(candidate.clone()))
        })
        .await
    };
    // In the shadow it is asked and not followed.
    let rollout = json!({"shadow": {"duration": "1h"}, "canary": [{"percent": 30, "duration": "1h"}]});
    change_plugin(&api, "rollout", "p", json!({"source": inline(&picks(1)), "rollout": rollout})).await?;
    phase("Shadow").await?;
    ensure!(to_second(port, &endpoints, 50).await? == 0, "a candidate in the shadow was followed");
    // Then it has its share.
    change_plugin(&api, "rollout", "p", json!({"rollout": {"shadow": null}})).await?;
    let candidate = phase("Canary").await?;
    ensure!(candidate["percent"] == 30, "{candidate}");
    eventually("three in ten go to the candidate's endpoint", || async {
        let second = to_second(port, &endpoints, 100).await?;
        Ok((second == 30).then_some(()))
    })
    .await?;
    // Then it decides alone, and a step takes it back.
    change_plugin(&api, "rollout", "p", json!({"rollout": null})).await?;
    eventually("it decides", || async { Ok((to_second(port, &endpoints, 10).await? == 10).then_some(())) }).await?;
    let mut rollback = tokio::process::Command::new(binary());
    rollback.args(["plugin", "rollback", "-n", "rollout", "p"]).env("KUBECONFIG", cluster.kubeconfig());
    let output = rollback.output().await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    eventually("the one before decides", || async { Ok((to_second(port, &endpoints, 10).await? == 0).then_some(())) })
        .await
}

async fn hostile_modules_harm_nobody_else(cx: Cx) -> Result<()> {
    let (api, endpoints) = (cx.fake().await?.api()?, two().await?);
    make_namespace(&api, "hostile").await?;
    let bystander = serve(&api, "hostile", "bystander", &[&endpoints[1]]).await?;
    let load = ConstantLoad::start(bystander, 200)?;
    // And a plugin that is well.
    let beside = serve(&api, "hostile", "beside", &[&endpoints[1]]).await?;
    put_plugin(&api, "hostile", "beside", &rejects(418, "x-plugin", "p"), json!({})).await?;
    decides(&api, "hostile", "beside", None).await?;
    bind(&api, "hostile", "beside", "beside").await?;
    let ask = async |port: u16| -> Result<u16> {
        Ok(reqwest::get(format!("http://127.0.0.1:{port}/")).await?.status().as_u16())
    };
    eventually("the plugin decides", || async { Ok((ask(beside).await? == 418).then_some(())) }).await?;
    let refuse = json!({"failurePolicy": {"trap": "Refuse", "timeout": "Refuse", "invalidOutput": "Refuse"}});
    let modules: [(&str, Guest, &str); 3] =
        [("outside", picks(7), "invalid_output"), ("loop", loops(), "timeout"), ("nth", traps_every(3), "trap")];
    for (name, guest, class) in modules {
        for (mode, more) in [("refuse", refuse.clone()), ("builtin", json!({}))] {
            let plugin = format!("{name}-{mode}");
            let port = serve(&api, "hostile", &plugin, &[&endpoints[0]]).await?;
            put_plugin(&api, "hostile", &plugin, &guest, more).await?;
            decides(&api, "hostile", &plugin, None).await?;
            bind(&api, "hostile", &plugin, &plugin).await?;
            if mode == "refuse" {
                eventually("its failures refuse requests", || async { Ok((ask(port).await? == 503).then_some(())) })
                    .await?;
            }
            let mut refused = 0;
            for _ in 0..30 {
                match ask(port).await? {
                    200 => {}
                    503 => refused += 1,
                    other => anyhow::bail!("{plugin}: {other}"),
                }
            }
            let expected =
                if mode == "builtin" { refused == 0 } else { refused == 30 || (class == "trap" && refused > 0) };
            ensure!(expected, "{plugin}: {refused} of 30 requests were refused");
            ensure!(ask(beside).await? == 418, "another plugin does not decide any more beside {plugin}");
            eventually("its status says what happened", || async {
                ask(port).await?;
                let status = self::plugin(&api, "hostile", &plugin).await?["status"].clone();
                ensure!(status["totals"]["errors"][class].as_u64() > Some(0), "{plugin}: {status:#}");
                Ok(Some(()))
            })
            .await?;
        }
    }
    let (sent, failures) = load.finish().await?;
    ensure!(failures.is_empty() && sent > 100, "{} of {sent}: {:?}", failures.len(), failures.first());
    Ok(())
}
