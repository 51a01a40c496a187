//! Scheduling: profiles that a plugin makes, reasons, and what happens when it fails.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use scaleup_plugins::World;
use scaleup_plugins::testing::{Guest, by_name};
use scaleup_tests::eventually;
use scaleup_tests::kubectl::Kubectl;
use serde_json::{Value, json};

use super::activate;
use crate::plugins::{manifest, path};
use crate::{Cx, trials};

pub fn tests(cx: &Cx) -> Vec<Trial> {
    trials![
        cx,
        "policy::scheduling",
        a_plugin_makes_a_profile,
        a_hostile_plugin_blocks_nobody,
        a_trap_now_and_then_costs_those_pods_time,
    ]
}

fn pod(name: &str, scheduler: &str) -> String {
    let containers = json!([{"name": "c", "image": "registry.example/app:v1"}]);
    let spec = json!({"schedulerName": scheduler, "containers": containers, "terminationGracePeriodSeconds": 0});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}).to_string()
}

async fn node_of(kubectl: &Kubectl, namespace: &str, pod: &str) -> Result<()> {
    eventually(&format!("a node for {pod}"), || async {
        let pod = kubectl.json(&format!("-n {namespace} get pod {pod}")).await?;
        Ok(pod["spec"]["nodeName"].is_string().then_some(()))
    })
    .await
}

async fn said(kubectl: &Kubectl, namespace: &str, pod: &str, text: &str) -> Result<()> {
    eventually(&format!("the event {text:?} on {pod}"), || async {
        let events =
            kubectl.json(&format!("-n {namespace} get events --field-selector involvedObject.name={pod}")).await?;
        let said = events["items"].as_array().into_iter().flatten().any(|event| {
            event["reason"] == "FailedScheduling" && event["message"].as_str().is_some_and(|said| said.contains(text))
        });
        anyhow::ensure!(said, "{}", events["items"]);
        Ok(Some(()))
    })
    .await
}

async fn a_plugin_makes_a_profile(cx: Cx) -> Result<()> {
    const NS: &str = "policy-profile";
    let cluster = cx.fake().await?;
    let kubectl = cluster.kubectl();
    kubectl.namespace(NS).await?;
    kubectl.apply_in(NS, &pod("early", "it-gpu")).await?;
    kubectl.apply_in(NS, &pod("reference", "default-scheduler")).await?;
    node_of(&kubectl, NS, "reference").await?;
    let early = kubectl.json(&format!("-n {NS} get pod early")).await?;
    ensure!(early["spec"]["nodeName"] == Value::Null, "nobody schedules for this name yet: {early}");
    let binding = json!({"scheduling": {"schedulerNames": ["it-gpu"], "weight": 5}});
    activate(cluster, &manifest("", "it-gpu", World::Scheduling, &by_name::scheduling().component(), &binding)).await?;
    node_of(&kubectl, NS, "early").await?;
    kubectl.apply_in(NS, &pod("rejected", "it-gpu")).await?;
    let text = r#" plugin "it-gpu": no free GPU."#;
    said(&kubectl, NS, "rejected", text).await?;
    let condition = kubectl.json(&format!("-n {NS} get pod rejected")).await?["status"]["conditions"][0].clone();
    ensure!(condition["reason"] == "Unschedulable", "{condition}");
    ensure!(condition["message"].as_str().is_some_and(|m| m.starts_with("0/") && m.ends_with(text)), "{condition}");
    // Pods of other schedulers are none of its business.
    kubectl.apply_in(NS, &pod("regular", "default-scheduler")).await?;
    node_of(&kubectl, NS, "regular").await?;
    kubectl.ok("delete clusterwasmplugin it-gpu").await.map(drop)
}

async fn a_hostile_plugin_blocks_nobody(cx: Cx) -> Result<()> {
    const NS: &str = "policy-hostile-pods";
    let cluster = cx.fake().await?;
    let kubectl = cluster.kubectl();
    kubectl.namespace(NS).await?;
    kubectl.namespace("policy-neighbour").await?;
    let refuse = json!({"failurePolicy": {"timeout": "Refuse", "invalidOutput": "BuiltIn"}});
    activate(cluster, &manifest(NS, "hostile", World::Scheduling, &by_name::scheduling().component(), &refuse)).await?;
    kubectl.apply_in(NS, &pod("loop", "default-scheduler")).await?;
    let text = format!(r#"plugin "{NS}/hostile" gave no answer: timeout: "#);
    said(&kubectl, NS, "loop", &text).await?;
    // An answer that is none: the built-in plugins decide.
    kubectl.apply_in(NS, &pod("x-nonsense", "default-scheduler")).await?;
    node_of(&kubectl, NS, "x-nonsense").await?;
    kubectl.apply_in("policy-neighbour", &pod("l-neighbour", "default-scheduler")).await?;
    node_of(&kubectl, "policy-neighbour", "l-neighbour").await?;
    // The pod that waits goes on when the plugin is gone.
    kubectl.ok(&format!("-n {NS} delete wasmplugin hostile")).await?;
    node_of(&kubectl, NS, "loop").await
}

/// Traps in every second call of an instance, and leaves all nodes to the built-in scores otherwise.
fn traps_every_second_call() -> Guest {
    Guest::new(
        World::Scheduling,
        "(if (i32.eqz (i32.rem_u (global.get $calls) (i32.const 2))) (then unreachable))
         (i32.store (i32.const 1024) (i32.const 2048))
         (i32.store offset=4 (i32.const 1024) (i32.load offset=76 (local.get $in)))
         (i32.const 1024)",
    )
}

async fn a_trap_now_and_then_costs_those_pods_time(cx: Cx) -> Result<()> {
    const CLOSED: &str = "policy-nth-closed";
    const OPEN: &str = "policy-nth-open";
    const GOOD: &str = "policy-nth-good";
    let cluster = cx.fake().await?;
    let (kubectl, api) = (cluster.kubectl(), cluster.api()?);
    let module = traps_every_second_call().component();
    for (namespace, module, more) in [
        (CLOSED, &module, json!({"failurePolicy": {"trap": "Refuse"}})),
        (OPEN, &module, json!({"failurePolicy": {"trap": "BuiltIn"}})),
        (GOOD, &by_name::scheduling().component(), json!({})),
    ] {
        kubectl.namespace(namespace).await?;
        activate(cluster, &manifest(namespace, "p", World::Scheduling, module, &more)).await?;
    }
    for turn in 0..4 {
        for namespace in [CLOSED, OPEN] {
            let name = format!("pod-{turn}");
            kubectl.apply_in(namespace, &pod(&name, "default-scheduler")).await?;
            // Where failures refuse, a pod waits for its next turn.
            node_of(&kubectl, namespace, &name).await?;
        }
    }
    let said = async |namespace: &str| {
        let events = kubectl.json(&format!("-n {namespace} get events")).await?;
        let wanted = format!("plugin \"{namespace}/p\" gave no answer: trap: ");
        let said = |event: &Value| {
            event["reason"] == "FailedScheduling"
                && event["message"].as_str().is_some_and(|text| text.contains(&wanted))
        };
        Ok::<_, anyhow::Error>(events["items"].as_array().into_iter().flatten().any(said))
    };
    eventually("a pod was told that it waits, and why", || async { Ok(said(CLOSED).await?.then_some(())) }).await?;
    ensure!(!said(OPEN).await?, "no pod waits where the built-in scores decide");
    for namespace in [CLOSED, OPEN] {
        eventually("its failures are counted", || async {
            let totals = api.get(&path(namespace, "p")).await?.ok()?["status"]["totals"].clone();
            ensure!(totals["errors"]["trap"].as_u64() >= Some(2), "{namespace}: {totals}");
            Ok(Some(()))
        })
        .await?;
    }
    // Another plugin decides meanwhile.
    kubectl.apply_in(GOOD, &pod("rejected", "default-scheduler")).await?;
    self::said(&kubectl, GOOD, "rejected", "no free GPU").await?;
    ensure!(api.get("/readyz").await?.status.is_success(), "the host is not well");
    for namespace in [CLOSED, OPEN, GOOD] {
        kubectl.ok(&format!("-n {namespace} delete wasmplugin p")).await?;
    }
    Ok(())
}
