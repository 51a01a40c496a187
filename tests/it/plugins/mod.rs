//! Plugins through the real API: hostile modules, rollouts and ways back, and modules that outlive processes.
//!
//! They decide about ConfigMaps with a label of their own, each in a namespace of its own.

mod cluster;
mod hostile;
mod lifecycle;
mod records;
mod server;
mod sources;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libtest_mimic::Trial;
use scaleup_plugins::World;
use scaleup_plugins::testing::Guest;
use scaleup_tests::cluster::Cluster;
use scaleup_tests::eventually;
use scaleup_tests::http::{Answer, Api};
use serde_json::{Value, json};

use crate::{Cx, trials};

use cluster::{of_the_cluster_about_pods, of_the_cluster_about_requests, of_the_cluster_about_writes};
use hostile::{
    a_trap_now_and_then_costs_those_writes_alone, modules_that_are_no_good_say_so,
    plugins_that_misbehave_hurt_nobody_else,
};
use lifecycle::{
    a_bad_version_is_taken_back, a_process_goes_back_by_itself, modules_survive_a_restart_and_reach_other_processes,
    new_versions_are_tried_first, sources_can_change, the_same_life_on_etcd, what_is_uploaded_is_used,
};
use records::decisions_of_other_processes_can_be_had;
use sources::{
    failed_fetches_are_tried_again, modules_come_from_registries, modules_come_over_https,
    plugins_that_are_kept_in_secrets, signatures_are_checked,
};

/// All tests of this module.
pub fn tests(cx: &Cx) -> Vec<Trial> {
    trials![
        cx,
        "plugins",
        modules_that_are_no_good_say_so,
        plugins_that_misbehave_hurt_nobody_else,
        a_trap_now_and_then_costs_those_writes_alone,
        new_versions_are_tried_first,
        a_bad_version_is_taken_back,
        a_process_goes_back_by_itself,
        sources_can_change,
        what_is_uploaded_is_used,
        modules_survive_a_restart_and_reach_other_processes,
        the_same_life_on_etcd,
        modules_come_over_https,
        failed_fetches_are_tried_again,
        modules_come_from_registries,
        plugins_that_are_kept_in_secrets,
        signatures_are_checked,
        of_the_cluster_about_writes,
        of_the_cluster_about_requests,
        of_the_cluster_about_pods,
        decisions_of_other_processes_can_be_had,
    ]
}

/// A module of the world `admission` that decides so.
fn admission(decision: &str) -> Guest {
    Guest::new(World::Admission, decision)
}

fn allow() -> Guest {
    admission("(i32.const 1024)")
}

/// Denies everything with these words.
fn deny(words: &str) -> Guest {
    let decision = format!(
        "(i32.store8 (i32.const 1024) (i32.const 1)) (i32.store (i32.const 1028) (i32.const 2048))
         (i32.store (i32.const 1032) (i32.const {})) (i32.const 1024)",
        words.len()
    );
    admission(&decision).extra(&format!("(data (i32.const 2048) \"{words}\")"))
}

fn trap() -> Guest {
    admission("unreachable")
}

/// A plugin of a namespace, or of the cluster if that is empty; `more` is merged into the specification.
pub fn manifest(namespace: &str, name: &str, world: World, module: &[u8], more: &Value) -> Value {
    let kind = if namespace.is_empty() { "ClusterWasmPlugin" } else { "WasmPlugin" };
    let mut object = json!({
        "apiVersion": "policy.scaleup.dev/v1", "kind": kind, "metadata": {"name": name},
        "spec": {"world": world.name(), "source": {"inline": STANDARD.encode(module)}},
    });
    if !namespace.is_empty() {
        object["metadata"]["namespace"] = namespace.into();
    }
    for (field, value) in more.as_object().into_iter().flatten() {
        object["spec"][field] = value.clone();
    }
    object
}

/// Where a plugin of a namespace is in the API, or one of the cluster if that is empty.
pub fn path(namespace: &str, name: &str) -> String {
    match namespace {
        "" => format!("/apis/policy.scaleup.dev/v1/clusterwasmplugins/{name}"),
        _ => format!("/apis/policy.scaleup.dev/v1/namespaces/{namespace}/wasmplugins/{name}"),
    }
}

/// Creates a plugin, or replaces its specification.
pub async fn apply(api: &Api, manifest: &Value) -> Result<()> {
    let text = |field: &str| manifest["metadata"][field].as_str().unwrap_or_default();
    let path = path(text("namespace"), text("name"));
    if api.get(&path).await?.status.is_success() {
        // Without a resource version: somebody writes the status meanwhile.
        return api.put(&path, manifest).await?.ok().map(drop);
    }
    let collection = path.rsplit_once('/').context("a path")?.0;
    api.post(collection, manifest).await?.ok().map(drop)
}

/// Waits until what a plugin's specification asks for decides at every process that reports on it; its status. With a number, until it is that version:
/// a source may change without the specification.
pub async fn decides(api: &Api, namespace: &str, name: &str, number: Option<u64>) -> Result<Value> {
    let path = path(namespace, name);
    eventually("the version decides", || async {
        let plugin = api.get(&path).await?.ok()?;
        let (active, holders) = (&plugin["status"]["active"], plugin["status"]["holders"].as_object());
        let asked_for = active["generation"] == plugin["metadata"]["generation"];
        let right = number.is_none_or(|number| active["number"] == number);
        let loaded =
            holders.is_some_and(|all| !all.is_empty() && all.values().all(|one| one["active"] == active["number"]));
        ensure!(active.is_object() && asked_for && right && loaded, "{path}: {:#}", plugin["status"]);
        Ok(Some(plugin["status"].clone()))
    })
    .await
}

/// A namespace and the plugins in it.
struct Lab<'a> {
    api: Api,
    namespace: &'a str,
}

impl<'a> Lab<'a> {
    async fn new(cluster: &Cluster, namespace: &'a str) -> Result<Self> {
        cluster.kubectl().namespace(namespace).await?;
        Ok(Self { api: cluster.api()?, namespace })
    }

    /// A plugin that is asked about ConfigMaps with the label `plugin` of its name; `more` is merged into the specification.
    fn manifest(&self, name: &str, module: &[u8], more: &Value) -> Value {
        let mut spec = json!({"admission": {
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "resources": ["configmaps"]}],
            "objectSelector": {"matchLabels": {"plugin": name}}}});
        for (field, value) in more.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        manifest(self.namespace, name, World::Admission, module, &spec)
    }

    /// Creates the plugin, or replaces its specification.
    async fn apply(&self, name: &str, module: &[u8], more: &Value) -> Result<()> {
        apply(&self.api, &self.manifest(name, module, more)).await
    }

    async fn status(&self, name: &str) -> Result<Value> {
        Ok(self.api.get(&path(self.namespace, name)).await?.ok()?["status"].clone())
    }

    /// Waits for a status.
    async fn until(&self, name: &str, what: &str, good: impl Fn(&Value) -> bool) -> Result<Value> {
        let good = &good;
        eventually(what, || async {
            let status = self.status(name).await?;
            ensure!(good(&status), "{name}: {status:#}");
            Ok(Some(status))
        })
        .await
    }

    /// Waits until this version decides.
    async fn decides(&self, name: &str, number: u64) -> Result<Value> {
        decides(&self.api, self.namespace, name, Some(number)).await
    }

    /// Creates a ConfigMap that the plugin is asked about, without keeping it.
    async fn ask(&self, name: &str) -> Result<Answer> {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "asked-", "labels": {"plugin": name}}});
        self.api.post(&format!("/api/v1/namespaces/{}/configmaps?dryRun=All", self.namespace), &object).await
    }
}

/// A condition's status, reason and message.
fn condition<'v>(status: &'v Value, kind: &str) -> (&'v str, &'v str, &'v str) {
    let found = status["conditions"].as_array().and_then(|all| all.iter().find(|one| one["type"] == kind));
    let text = |field: &str| found.and_then(|one| one[field].as_str()).unwrap_or_default();
    (text("status"), text("reason"), text("message"))
}
