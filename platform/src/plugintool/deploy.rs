//! `scaleup plugin push`, `apply`, `rollback`, `status`: plugins of a cluster, through its API.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, ResourceExt};
use scaleup_api::plugin::{
    CLUSTER_MODULES, GROUP, MAX_MODULE_BYTES, PluginVersion, WasmModule, WasmPluginSpec, WasmPluginStatus, module_name,
};
use scaleup_plugins::Digest;
use serde_json::{Value, json};

use super::local;
use super::manifest::{self, Manifest};
use crate::cli::{ApplyArgs, NameArgs, OutputFormat, PushArgs, TargetArgs};
use crate::user::{client, print};

/// Largest answer to an upload.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// Plugins of either kind, and where their modules are.
struct Target {
    client: Client,
    api: Api<DynamicObject>,
    kind: &'static str,
    modules: String,
}

impl Target {
    async fn of(args: &TargetArgs) -> Result<Self> {
        let client = client(&args.user).await?;
        let namespace = args.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
        let kind = if args.cluster { "ClusterWasmPlugin" } else { "WasmPlugin" };
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(GROUP, "v1", kind));
        let (api, modules) = if args.cluster {
            (Api::all_with(client.clone(), &resource), CLUSTER_MODULES.to_owned())
        } else {
            (Api::namespaced_with(client.clone(), &namespace, &resource), namespace)
        };
        Ok(Self { client, api, kind, modules })
    }

    /// Uploads a module, if it is not there already; its SHA-256.
    async fn push(&self, bytes: Vec<u8>) -> Result<String> {
        let digest = Digest::of(&bytes).to_string();
        let (api, name): (Api<WasmModule>, _) =
            (Api::namespaced(self.client.clone(), &self.modules), module_name(&digest));
        let known = api.get_opt(&name).await?;
        if known.as_ref().is_some_and(|known| known.status.as_ref().is_some_and(|status| status.size.is_some())) {
            return Ok(digest);
        }
        if known.is_none() {
            let mut module = WasmModule::default();
            module.metadata.name = Some(name.clone());
            match api.create(&PostParams::default(), &module).await {
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
                other => drop(other.context("the module cannot be created")?),
            }
        }
        let path = format!("/apis/{GROUP}/v1/namespaces/{}/wasmmodules/{name}/content", self.modules);
        let request = http::Request::put(path).body(kube::client::Body::from(bytes))?;
        let response = self.client.send(request).await.context("the module cannot be uploaded")?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        let answer: Bytes = answer.map_err(|error| anyhow::anyhow!("the answer cannot be read: {error}"))?.to_bytes();
        if !status.is_success() {
            let said: Value = serde_json::from_slice(&answer).unwrap_or_default();
            bail!("the module is not accepted: {}", said["message"].as_str().unwrap_or(status.as_str()));
        }
        Ok(digest)
    }

    async fn get(&self, name: &str) -> Result<(DynamicObject, WasmPluginSpec, WasmPluginStatus)> {
        let object = self.api.get(name).await.with_context(|| format!("{} {name}", self.kind))?;
        let spec = serde_json::from_value(object.data["spec"].clone()).context("its specification cannot be read")?;
        let status = object.data.get("status").cloned().unwrap_or_else(|| json!({}));
        Ok((object, spec, serde_json::from_value(status).context("its status cannot be read")?))
    }
}

/// Uploads a module and prints its SHA-256.
pub async fn push(args: &PushArgs) -> Result<ExitCode> {
    let bytes = local::read(&args.file, MAX_MODULE_BYTES)?;
    print(&Target::of(&args.target).await?.push(bytes).await?)?;
    Ok(ExitCode::SUCCESS)
}

/// Uploads a module and makes a plugin use it.
pub async fn apply(args: &ApplyArgs) -> Result<ExitCode> {
    let Manifest { object: mut manifest, cluster, mut spec } = manifest::read(&args.manifest)?;
    let mut target = args.target.clone();
    if cluster {
        target.cluster = true;
    } else if target.cluster {
        bail!("{}: expected a ClusterWasmPlugin because of --cluster, found a WasmPlugin", args.manifest.display());
    } else {
        let namespace = manifest["metadata"]["namespace"].as_str();
        target.namespace = target.namespace.or(namespace.map(str::to_owned));
    }
    let name = manifest["metadata"]["name"].as_str().context("the manifest has no metadata.name")?.to_owned();
    let target = Target::of(&target).await?;
    let digest = target.push(local::read(&args.file, MAX_MODULE_BYTES)?).await?;
    spec["source"] = json!({"blob": digest});
    spec["sha256"] = json!(digest);
    manifest["spec"] = spec;
    if let Some(metadata) = manifest["metadata"].as_object_mut() {
        metadata.remove("namespace");
    }
    let existing = target.api.get_opt(&name).await?;
    if let Some(existing) = &existing {
        manifest["metadata"]["resourceVersion"] = json!(existing.resource_version());
        let object = serde_json::from_value(manifest).context("the manifest is not an object")?;
        target.api.replace(&name, &PostParams::default(), &object).await?;
    } else {
        let object = serde_json::from_value(manifest).context("the manifest is not an object")?;
        target.api.create(&PostParams::default(), &object).await?;
    }
    let what = if existing.is_some() { "configured" } else { "created" };
    print(&format!("{} {name} {what}, module sha256:{digest}", target.kind))?;
    Ok(ExitCode::SUCCESS)
}

/// The change of the specification that asks for an earlier version again.
fn restored(previous: &PluginVersion) -> Value {
    let source = json!({"blob": previous.digest, "inline": null, "configMapRef": null, "secretRef": null, "oci": null, "https": null});
    json!([
        {"op": "add", "path": "/spec/source", "value": without_nulls(source)},
        {"op": "add", "path": "/spec/sha256", "value": previous.digest},
        {"op": "add", "path": "/spec/config", "value": previous.config},
        {"op": "add", "path": "/spec/limits", "value": previous.limits},
        {"op": "add", "path": "/spec/failurePolicy", "value": previous.failure_policy},
        {"op": "add", "path": "/spec/signature", "value": previous.signature},
    ])
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(members) => members.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        other => other,
    }
}

/// Makes the specification ask for the version before again: it decides at once, without a rollout.
pub async fn rollback(args: &NameArgs) -> Result<ExitCode> {
    let target = Target::of(&args.target).await?;
    let (object, _, status) = target.get(&args.name).await?;
    // What is only being tried goes back to what decides.
    let to = if status.candidate.is_some() { status.active.as_ref() } else { status.previous.as_ref() };
    let Some(to) = to else { bail!("{} {} has no version before the one that decides", target.kind, args.name) };
    let mut operations = restored(to);
    if let Some(list) = operations.as_array_mut() {
        let version = object.resource_version();
        list.insert(0, json!({"op": "test", "path": "/metadata/resourceVersion", "value": version}));
    }
    let patch = serde_json::from_value(operations).context("the change cannot be expressed")?;
    target.api.patch(&args.name, &PatchParams::default(), &Patch::<()>::Json(patch)).await?;
    print(&format!("{} {} goes back to version {} (sha256:{})", target.kind, args.name, to.number, to.digest))?;
    Ok(ExitCode::SUCCESS)
}

fn version(role: &str, version: Option<&PluginVersion>) -> Option<String> {
    let version = version?;
    let percent = version.percent.map(|percent| format!(" {percent}%")).unwrap_or_default();
    Some(format!("{role:<10}version {}, sha256:{}, {}{percent}", version.number, version.digest, version.phase))
}

fn text(name: &str, spec: &WasmPluginSpec, status: &WasmPluginStatus) -> String {
    let mut lines = vec![format!("{:<10}{name}, world {}", "plugin", spec.world)];
    let versions = [("active", &status.active), ("candidate", &status.candidate), ("previous", &status.previous)];
    lines.extend(versions.into_iter().filter_map(|(role, one)| version(role, one.as_ref())));
    if let Some(totals) = &status.totals {
        let errors: Vec<String> = totals.errors.iter().map(|(class, count)| format!("{count} {class}")).collect();
        let errors = if errors.is_empty() { "no errors".to_owned() } else { errors.join(", ") };
        let ms = |nanos: i64| nanos as f64 / 1e6;
        let (p50, p99) = (ms(totals.p50_nanos), ms(totals.p99_nanos));
        lines.push(format!("{:<10}{}, {errors}, p50 {p50:.3} ms, p99 {p99:.3} ms", "decisions", totals.decisions));
    }
    for condition in &status.conditions {
        let (kind, state) = (&condition.type_, &condition.status);
        lines.push(format!("{kind:<10}{state} ({}): {}", condition.reason, condition.message));
    }
    for (name, holder) in &status.holders {
        let active = holder.active.map_or_else(|| "none".to_owned(), |number| number.to_string());
        lines.push(format!("{:<10}{name}: version {active}, {} {}", "holder", holder.state, holder.message));
    }
    lines.join("\n")
}

/// Prints what is known of a plugin.
pub async fn status(args: &NameArgs) -> Result<ExitCode> {
    let target = Target::of(&args.target).await?;
    let (object, spec, status) = target.get(&args.name).await?;
    match args.output {
        OutputFormat::Json => print(&serde_json::to_string_pretty(&object)?)?,
        OutputFormat::Table => print(&text(&args.name, &spec, &status))?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn going_back_asks_for_the_stored_module() {
        let digest = "ab".repeat(32);
        let previous =
            PluginVersion { digest: digest.clone(), config: Some(json!({"a": 1})), ..PluginVersion::default() };
        let change = restored(&previous);
        assert_eq!(change[0]["value"], json!({"blob": digest}));
        assert_eq!((&change[2]["value"], &change[3]["value"]), (&json!({"a": 1}), &Value::Null));
    }
}
