//! Admission: denials, patches, warnings, what plugins see, what happens when they fail.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use scaleup_plugins::World;
use scaleup_plugins::testing::by_name;
use scaleup_tests::cluster::Cluster;
use scaleup_tests::eventually;
use serde_json::{Value, json};

use super::activate;
use crate::plugins::manifest;
use crate::{Cx, trials};

pub fn tests(cx: &Cx) -> Vec<Trial> {
    trials![
        cx,
        "policy::admission",
        denials_patches_and_warnings,
        plugins_see_what_is_written,
        patches_are_checked_like_writes,
        hostile_plugins_hurt_only_those_they_are_bound_to,
        nobody_is_locked_out,
    ]
}

/// Bound to ConfigMaps with this label.
fn bound(namespace: &str, name: &str, mode: &str, more: &Value) -> Value {
    let mut spec = json!({"admission": {
        "rules": [{"operations": ["*"], "apiGroups": [""], "resources": ["configmaps"]}],
        "objectSelector": {"matchLabels": {"mode": mode}},
    }});
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more.clone()) {
        spec.extend(more);
    }
    manifest(namespace, name, World::Admission, &by_name::admission().component(), &spec)
}

fn map(name: &str, mode: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"mode": mode}}, "data": {"k": "v"}})
}

fn maps(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/configmaps")
}

/// A namespace with a plugin `guard` for ConfigMaps with the label `mode: guarded`.
async fn guarded<'a>(cx: &'a Cx, namespace: &str) -> Result<&'a Cluster> {
    let cluster = cx.fake().await?;
    cluster.kubectl().namespace(namespace).await?;
    activate(cluster, &bound(namespace, "guard", "guarded", &json!({}))).await?;
    Ok(cluster)
}

async fn denials_patches_and_warnings(cx: Cx) -> Result<()> {
    const NS: &str = "policy-basic";
    let cluster = guarded(&cx, NS).await?;
    let (kubectl, api) = (cluster.kubectl(), cluster.api()?);
    let create = ["-n", NS, "create", "-f", "-"];
    let denied = kubectl.run_with(&create, &map("denied", "guarded").to_string()).await?;
    let wanted = format!(
        "Error from server (Forbidden): error when creating \"STDIN\": admission plugin \"{NS}/guard\" denied the request: no thanks"
    );
    ensure!(denied.code != 0 && denied.stderr.contains(&wanted), "{denied:?}");
    let answer = api.post(&maps(NS), &map("denied", "guarded")).await?.json();
    let cause = json!([{"reason": "FieldValueForbidden", "field": "data.k", "message": "not like this"}]);
    ensure!(answer["code"] == 403 && answer["reason"] == "Forbidden", "{answer}");
    ensure!(answer["details"]["causes"] == cause && answer["details"]["kind"] == "configmaps", "{answer}");
    ensure!(api.get(&format!("{}/denied", maps(NS))).await?.status == 404, "it is stored all the same");
    // Only what is bound is decided about.
    api.post(&maps(NS), &map("denied", "free")).await?.ok()?;

    let patched = api.post(&maps(NS), &map("patched", "guarded")).await?.ok()?;
    ensure!(patched["metadata"]["labels"] == json!({"tier": "gold"}), "{patched}");
    let dry = api.post(&format!("{}?dryRun=All", maps(NS)), &map("pdry", "guarded")).await?.ok()?;
    ensure!(dry["metadata"]["labels"] == json!({"tier": "gold"}), "{dry}");
    ensure!(api.get(&format!("{}/pdry", maps(NS))).await?.status == 404, "a dry run is stored");

    let warned = kubectl.run_with(&create, &map("warned", "guarded").to_string()).await?;
    ensure!(warned.code == 0 && warned.stderr.matches("Warning: mind the gap").count() == 1, "{warned:?}");

    // The audit log says who decided what.
    let log = cluster.dir.path().join("audit.log");
    eventually("the audit event", || async {
        let text = std::fs::read_to_string(&log)?;
        let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let of = |name: &str, events: Vec<Value>| {
            let mut found = events.into_iter().filter(|event| {
                event["objectRef"]["namespace"] == NS && event["annotations"].to_string().contains(name)
            });
            found.next()
        };
        let events: Vec<Value> = events.collect();
        let Some(denied) = of("deny", events.clone()) else { return Ok(None) };
        let Some(patched) = of("patch", events) else { return Ok(None) };
        let note: Value = serde_json::from_str(
            patched["annotations"]["mutation.plugin.policy.scaleup.dev/round_0_index_0"].as_str().context("no note")?,
        )?;
        ensure!(note["mutated"] == true && note["plugin"] == format!("{NS}/guard"), "{note}");
        ensure!(denied["responseStatus"]["code"] == 403, "{denied}");
        Ok(Some(()))
    })
    .await?;
    let metrics = api.get("/metrics").await?.text;
    let line = format!("scaleup_admission_decisions_total{{plugin=\"{NS}/guard\",type=\"admit\",decision=\"deny\"}}");
    ensure!(metrics.contains(&line), "{line} is not in the metrics");
    Ok(())
}

async fn plugins_see_what_is_written(cx: Cx) -> Result<()> {
    const NS: &str = "policy-sight";
    let cluster = guarded(&cx, NS).await?;
    let (kubectl, api) = (cluster.kubectl(), cluster.api()?);
    // The old object: there is none on a create.
    api.post(&maps(NS), &map("old", "guarded")).await?.ok()?;
    let refused = kubectl.fails(&format!("-n {NS} label configmap old a=b")).await?;
    ensure!(refused.contains("denied the request: no thanks"), "{refused}");
    let merge = "merge";
    let path = format!("{}/old", maps(NS));
    let answer = api.patch(&path, merge, &json!({"metadata": {"labels": {"mode": "free"}}})).await?;
    ensure!(answer.status == 403, "selected by the old object's labels: {}", answer.text);
    // Deletions, also of collections.
    api.post(&maps(NS), &map("kept", "guarded")).await?.ok()?;
    let refused = kubectl.fails(&format!("-n {NS} delete configmap kept")).await?;
    ensure!(refused.contains("denied the request"), "{refused}");
    let all = api.delete(&format!("{}?labelSelector=mode%3Dguarded", maps(NS)), &Value::Null).await?;
    ensure!(all.status == 403, "{}", all.text);
    ensure!(api.get(&format!("{}/kept", maps(NS))).await?.status == 200, "it is gone");
    // Dry runs.
    api.post(&maps(NS), &map("yes", "guarded")).await?.ok()?;
    let dry = api.post(&format!("{}?dryRun=All", maps(NS)), &map("yet", "guarded")).await?;
    ensure!(dry.status == 403, "{}", dry.text);
    // A patch changes an object on its way, too.
    api.post(&maps(NS), &map("put", "free")).await?.ok()?;
    let put = api.put(&format!("{}/put", maps(NS)), &map("put", "guarded")).await?.ok()?;
    ensure!(put["metadata"]["labels"] == json!({"tier": "gold"}), "{put}");
    Ok(())
}

async fn patches_are_checked_like_writes(cx: Cx) -> Result<()> {
    const NS: &str = "policy-patches";
    let cluster = cx.fake().await?;
    let (kubectl, api) = (cluster.kubectl(), cluster.api()?);
    kubectl.namespace(NS).await?;
    let open = json!({"failurePolicy": {"invalidOutput": "BuiltIn"}});
    activate(cluster, &bound(NS, "strict", "strict", &json!({}))).await?;
    activate(cluster, &bound(NS, "lenient", "lenient", &open)).await?;
    for (name, why) in [("identity", "its patch changes metadata.uid"), ("spec", "unknown field")] {
        let answer = api.post(&maps(NS), &map(name, "strict")).await?;
        let message = answer.message();
        ensure!(answer.status == 500 && answer.reason() == "InternalError", "{}", answer.text);
        let start =
            format!("Internal error occurred: failed calling admission plugin \"{NS}/strict\": invalid_output: ");
        ensure!(message.starts_with(&start) && message.contains(why), "{message}");
        let stored = api.post(&maps(NS), &map(name, "lenient")).await?.ok()?;
        ensure!(stored["metadata"]["labels"] == json!({"mode": "lenient"}), "{stored}");
    }
    Ok(())
}

async fn hostile_plugins_hurt_only_those_they_are_bound_to(cx: Cx) -> Result<()> {
    const NS: &str = "policy-hostile";
    let cluster = cx.fake().await?;
    let (kubectl, api) = (cluster.kubectl(), cluster.api()?);
    kubectl.namespace(NS).await?;
    let modes = [
        ("trap", "trap: deciding: "),
        ("loop", "timeout: deciding: its fuel is used up"),
        ("grow", "trap: deciding: "),
        ("huge", "invalid_output: "),
        ("utf", "invalid_output: "),
    ];
    for (mode, why) in modes {
        activate(cluster, &bound(NS, mode, mode, &json!({}))).await?;
        let refused = api.post(&maps(NS), &map(mode, mode)).await?;
        let start = format!("Internal error occurred: failed calling admission plugin \"{NS}/{mode}\": {why}");
        ensure!(refused.status == 500 && refused.message().starts_with(&start), "{}", refused.text);
        // The same plugin goes on deciding about others.
        let other = format!("{mode}-free").replacen(&mode[..1], "a", 1);
        api.post(&maps(NS), &map(&other, mode)).await?.ok()?;
    }
    // Many at once: nobody else notices.
    let bad = (0..40).map(|i| {
        let api = &api;
        async move { api.post(&maps(NS), &map(&format!("loop-{i}"), "loop")).await }
    });
    let good = async {
        let began = std::time::Instant::now();
        for i in 0..20 {
            api.post(&maps(NS), &map(&format!("good-{i}"), "free")).await?.ok()?;
        }
        Ok::<_, anyhow::Error>(began.elapsed())
    };
    let (refused, took) = tokio::join!(futures::future::join_all(bad), good);
    let took = took?;
    for answer in refused {
        let answer = answer?;
        ensure!(answer.status == 500, "{}", answer.text);
    }
    ensure!(took < std::time::Duration::from_secs(20), "other writes took {took:?}");
    // Where the failure policy is to go on, the write goes on.
    let open = json!({"failurePolicy": {"trap": "BuiltIn"}});
    activate(cluster, &bound(NS, "open", "open", &open)).await?;
    api.post(&maps(NS), &map("to-open", "open")).await?.ok()?;
    Ok(())
}

async fn nobody_is_locked_out(cx: Cx) -> Result<()> {
    const NS: &str = "policy-lockout";
    let cluster = cx.fake().await?;
    let (kubectl, api) = (cluster.kubectl(), cluster.api()?);
    kubectl.namespace(NS).await?;
    kubectl.ok(&format!("label namespace {NS} locked=yes")).await?;
    // It is bound to everything in the namespace and can never be loaded.
    let mut broken = manifest(
        "",
        "lockout",
        World::Admission,
        &by_name::admission().component(),
        &json!({"admission": {
            "rules": [{"operations": ["*"], "apiGroups": ["*"], "resources": ["*/*"]}],
            "namespaceSelector": {"matchLabels": {"locked": "yes"}},
        }}),
    );
    broken["spec"]["source"]["inline"] = "bm90IHdhc20=".into();
    kubectl.apply(&broken.to_string()).await?;
    let refused = eventually("writes are refused", || async {
        let answer = api.post(&maps(NS), &map("free", "free")).await?;
        Ok((answer.status == 500).then_some(answer))
    })
    .await?;
    ensure!(refused.message().contains("failed calling admission plugin \"lockout\": "), "{}", refused.text);
    // Plugins can be changed and deleted all the same, those of the namespace too.
    activate(cluster, &bound(NS, "other", "guarded", &json!({}))).await?;
    kubectl.ok("delete clusterwasmplugin lockout").await?;
    eventually("writes are possible again", || async {
        Ok((api.post(&maps(NS), &map("again", "free")).await?.status == 201).then_some(()))
    })
    .await
}
