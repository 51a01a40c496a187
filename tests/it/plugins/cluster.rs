//! ClusterWasmPlugins of the three worlds that are asked, bound as they can be: they decide in the namespaces that they are for, and nowhere else.

use anyhow::{Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use scaleup_plugins::World;
use scaleup_plugins::testing::by_name;
use scaleup_plugins::testing::routing::rejects;
use scaleup_tests::cluster::{Cluster, free_port};
use scaleup_tests::eventually;
use serde_json::{Value, json};

use super::lifecycle::tool;
use super::{Lab, apply, condition, decides, deny, manifest, path};
use crate::Cx;
use crate::traffic::{Endpoint, ask, put_service};

/// Only in namespaces with this label.
fn of_label(label: &str) -> Value {
    json!({"matchLabels": {label: "yes"}})
}

/// Two namespaces, the first with the label.
async fn namespaces<'a>(cluster: &Cluster, first: &'a str, second: &'a str, label: &str) -> Result<[Lab<'a>; 2]> {
    let labs = [Lab::new(cluster, first).await?, Lab::new(cluster, second).await?];
    cluster.kubectl().ok(&format!("label namespace {first} {label}=yes")).await?;
    Ok(labs)
}

/// Takes the plugin away again: it is everybody's.
async fn remove(lab: &Lab<'_>, name: &str) -> Result<()> {
    lab.api.delete(&path("", name), &Value::Null).await?.ok().map(drop)
}

pub async fn of_the_cluster_about_writes(cx: Cx) -> Result<()> {
    const NAME: &str = "it-cluster-writes";
    let cluster = cx.fake().await?;
    let [lab, other] = namespaces(cluster, "plugins-cluster-a", "plugins-cluster-b", NAME).await?;
    let plugin = |source: Value| {
        let binding = json!({"source": source, "admission": {
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "resources": ["configmaps"]}],
            "namespaceSelector": of_label(NAME), "objectSelector": {"matchLabels": {"plugin": NAME}}}});
        manifest("", NAME, World::Admission, &[], &binding)
    };
    // Out of a Secret of a namespace that it names; without the name it is refused.
    let data = json!({"m.wasm": STANDARD.encode(deny("out of a secret").component())});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "module"}, "data": data});
    lab.api.post(&format!("/api/v1/namespaces/{}/secrets", other.namespace), &secret).await?.ok()?;
    let nowhere = plugin(json!({"secretRef": {"name": "module", "key": "m.wasm"}}));
    let answer = lab.api.post("/apis/policy.scaleup.dev/v1/clusterwasmplugins", &nowhere).await?;
    ensure!(answer.status == 422 && answer.message().contains("spec.source.secretRef.namespace"), "{}", answer.text);
    apply(&lab.api, &plugin(json!({"secretRef": {"namespace": other.namespace, "name": "module", "key": "m.wasm"}})))
        .await?;
    decides(&lab.api, "", NAME, Some(1)).await?;
    let answer = lab.ask(NAME).await?;
    ensure!(answer.status == 403 && answer.message().contains("out of a secret"), "{}", answer.text);
    ensure!(other.ask(NAME).await?.status.is_success(), "it decides about a namespace that it is not for");
    // Uploaded, for the cluster; and back.
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("m.wasm");
    std::fs::write(&file, deny("uploaded").component())?;
    let digest = tool(cluster, &["push", &file.to_string_lossy(), "--cluster"]).await?;
    apply(&lab.api, &plugin(json!({"blob": digest}))).await?;
    decides(&lab.api, "", NAME, Some(2)).await?;
    ensure!(lab.ask(NAME).await?.message().contains("uploaded"));
    tool(cluster, &["rollback", NAME, "--cluster"]).await?;
    let status = decides(&lab.api, "", NAME, Some(1)).await?;
    ensure!(condition(&status, "Active").1 == "Active" && status["previous"]["number"] == 2, "{status:#}");
    ensure!(lab.ask(NAME).await?.message().contains("out of a secret"));
    remove(&lab, NAME).await?;
    eventually("nobody is asked any more", || async { Ok(lab.ask(NAME).await?.status.is_success().then_some(())) })
        .await
}

pub async fn of_the_cluster_about_requests(cx: Cx) -> Result<()> {
    const NAME: &str = "it-cluster-requests";
    let lab = Lab::new(cx.fake().await?, "plugins-cluster-route").await?;
    let endpoint = Endpoint::start("a").await?;
    let ports = [free_port()?, free_port()?];
    for (name, port) in [("by-policy", ports[0]), ("by-annotation", ports[1])] {
        let spec = json!({"type": "LoadBalancer", "ports": [{"name": "http", "port": port, "targetPort": 80}]});
        put_service(&lab.api, lab.namespace, name, spec, &[endpoint.addr]).await?;
        eventually("it is served", || async { Ok(ask(port).await.ok()) }).await?;
    }
    apply(&lab.api, &manifest("", NAME, World::Routing, &rejects(418, "x-plugin", "p").component(), &json!({})))
        .await?;
    decides(&lab.api, "", NAME, Some(1)).await?;
    let policy = json!({"apiVersion": "traffic.scaleup.dev/v1", "kind": "TrafficPolicy", "metadata": {"name": "p"},
        "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "by-policy"}],
                 "policyRef": {"kind": "ClusterWasmPlugin", "name": NAME}}});
    let policies = format!("/apis/traffic.scaleup.dev/v1/namespaces/{}/trafficpolicies", lab.namespace);
    lab.api.post(&policies, &policy).await?.ok()?;
    let annotations =
        json!({"metadata": {"annotations": {"traffic.scaleup.dev/policy": format!("ClusterWasmPlugin/{NAME}")}}});
    let service = format!("/api/v1/namespaces/{}/services/by-annotation", lab.namespace);
    lab.api.patch(&service, "merge", &annotations).await?.ok()?;
    for port in ports {
        eventually("the plugin decides", || async {
            Ok((reqwest::get(format!("http://127.0.0.1:{port}/")).await?.status().as_u16() == 418).then_some(()))
        })
        .await?;
    }
    remove(&lab, NAME).await
}

pub async fn of_the_cluster_about_pods(cx: Cx) -> Result<()> {
    const NAME: &str = "it-cluster-pods";
    let cluster = cx.fake().await?;
    let [lab, other] = namespaces(cluster, "plugins-cluster-c", "plugins-cluster-d", NAME).await?;
    let binding = json!({"scheduling": {"namespaceSelector": of_label(NAME)}});
    apply(&lab.api, &manifest("", NAME, World::Scheduling, &by_name::scheduling().component(), &binding)).await?;
    decides(&lab.api, "", NAME, Some(1)).await?;
    // It rejects every node for pods of this name.
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "rejected"},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "registry.example/app:v1"}]}});
    for lab in [&lab, &other] {
        lab.api.post(&format!("/api/v1/namespaces/{}/pods", lab.namespace), &pod).await?.ok()?;
    }
    let get =
        async |lab: &Lab<'_>| lab.api.get(&format!("/api/v1/namespaces/{}/pods/rejected", lab.namespace)).await?.ok();
    eventually("the pod of the other namespace has a node", || async {
        Ok(get(&other).await?["spec"]["nodeName"].is_string().then_some(()))
    })
    .await?;
    eventually("the pod's condition names the plugin", || async {
        let pod = get(&lab).await?;
        let said = &pod["status"]["conditions"][0]["message"];
        let words = format!("plugin \"{NAME}\": no free GPU");
        ensure!(said.as_str().is_some_and(|said| said.contains(&words)), "{}", pod["status"]);
        Ok(Some(()))
    })
    .await?;
    remove(&lab, NAME).await?;
    eventually("the pod has a node when the plugin is gone", || async {
        Ok(get(&lab).await?["spec"]["nodeName"].is_string().then_some(()))
    })
    .await
}
