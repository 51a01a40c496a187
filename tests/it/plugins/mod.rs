//! Plugins through the real API: hostile modules, rollouts and ways back, and modules that outlive processes.
//!
//! They decide about ConfigMaps with a label of their own, each in a namespace of its own.

mod hostile;
mod lifecycle;

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

use hostile::{modules_that_are_no_good_say_so, plugins_that_misbehave_hurt_nobody_else};
use lifecycle::{
    a_bad_version_is_taken_back, modules_survive_a_restart_and_reach_other_processes, new_versions_are_tried_first,
    sources_can_change, what_is_uploaded_is_used,
};

/// All tests of this module.
pub fn tests(cx: &Cx) -> Vec<Trial> {
    trials![
        cx,
        "plugins",
        modules_that_are_no_good_say_so,
        plugins_that_misbehave_hurt_nobody_else,
        new_versions_are_tried_first,
        a_bad_version_is_taken_back,
        sources_can_change,
        what_is_uploaded_is_used,
        modules_survive_a_restart_and_reach_other_processes,
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

    fn path(&self, name: &str) -> String {
        format!("/apis/policy.scaleup.dev/v1/namespaces/{}/wasmplugins/{name}", self.namespace)
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
        let (manifest, path) = (self.manifest(name, module, more), self.path(name));
        if self.api.get(&path).await?.status.is_success() {
            // Without a resource version: somebody writes the status meanwhile.
            return self.api.put(&path, &manifest).await?.ok().map(drop);
        }
        let collection = path.rsplit_once('/').context("a path")?.0.to_owned();
        self.api.post(&collection, &manifest).await?.ok().map(drop)
    }

    async fn status(&self, name: &str) -> Result<Value> {
        Ok(self.api.get(&self.path(name)).await?.ok()?["status"].clone())
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

    /// Waits until the version decides at the API server.
    async fn decides(&self, name: &str, number: u64) -> Result<Value> {
        self.until(name, "the version decides", |status| {
            let holders = status["holders"].as_object();
            status["active"]["number"] == number
                && holders.is_some_and(|all| !all.is_empty() && all.values().all(|one| one["active"] == number))
        })
        .await
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
