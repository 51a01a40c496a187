//! Modules that no plugin needs any more are deleted.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use kube::{Api, ResourceExt};
use scaleup_api::plugin::{CLUSTER_MODULES, WasmModule, WasmPluginSpec, WasmPluginStatus, module_digest};

use crate::base::calls;
use crate::context::Context;

/// How often it is looked for them.
const PERIOD: Duration = Duration::from_secs(300);
/// How long one that was fetched stays without a plugin: its plugin's status may not be written yet.
const FETCHED_S: i64 = 3600;
/// How long one that was uploaded waits for its plugin.
const UPLOADED_S: i64 = 24 * 3600;

/// Digests that a plugin needs.
fn needs(spec: &WasmPluginSpec, status: Option<&WasmPluginStatus>) -> Vec<String> {
    let versions = status.into_iter().flat_map(|s| [&s.active, &s.candidate, &s.previous]).flatten();
    let mut all: Vec<String> = versions.map(|version| version.digest.clone()).collect();
    all.extend(spec.source.blob.clone());
    all
}

/// Whether a module that no plugin needs is old enough to go.
fn is_over(module: &WasmModule, now: Timestamp) -> bool {
    let age = module.creation_timestamp().map_or(0, |created| now.as_second() - created.0.as_second());
    age > if module.spec.origin.as_deref() == Some("Fetch") { FETCHED_S } else { UPLOADED_S }
}

fn garbage(cx: &Context, now: Timestamp) -> Vec<(String, String, String)> {
    let informers = &cx.informers;
    let mut needed: HashSet<(String, String)> = HashSet::new();
    for plugin in informers.wasm_plugins.list() {
        let namespace = plugin.namespace().unwrap_or_default();
        needed.extend(needs(&plugin.spec, plugin.status.as_ref()).into_iter().map(|one| (namespace.clone(), one)));
    }
    for plugin in informers.cluster_wasm_plugins.list() {
        let all = needs(&plugin.spec, plugin.status.as_ref()).into_iter();
        needed.extend(all.map(|one| (CLUSTER_MODULES.to_owned(), one)));
    }
    let modules = informers.wasm_modules.list();
    let unneeded = modules.iter().filter(|module| is_over(module, now)).filter(|module| {
        let digest = module_digest(&module.name_any()).unwrap_or_default().to_owned();
        !needed.contains(&(module.namespace().unwrap_or_default(), digest))
    });
    unneeded.map(|one| (one.namespace().unwrap_or_default(), one.name_any(), one.uid().unwrap_or_default())).collect()
}

/// Until shutdown.
pub async fn run(cx: &Context) {
    loop {
        tokio::select! {
            () = cx.shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
        for (namespace, name, uid) in garbage(cx, Timestamp::now()) {
            let api: Api<WasmModule> = Api::namespaced(cx.client.clone(), &namespace);
            let done = calls::call("delete WasmModule", &name, api.delete(&name, &calls::delete_uid(&uid))).await;
            match calls::gone_is_fine(done.map(drop)) {
                Ok(()) => tracing::info!(namespace, name, "deleted a module that no plugin needs"),
                Err(error) => tracing::debug!(namespace, name, %error, "a module that no plugin needs stays for now"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use scaleup_api::plugin::{ModuleSource, PluginVersion};

    use super::*;

    #[test]
    fn every_version_needs_its_module() {
        let version = |digest: &str| Some(PluginVersion { digest: digest.into(), ..PluginVersion::default() });
        let status = WasmPluginStatus { active: version("a"), previous: version("b"), ..WasmPluginStatus::default() };
        let source = ModuleSource { blob: Some("c".into()), ..ModuleSource::default() };
        let spec = WasmPluginSpec { source, ..WasmPluginSpec::default() };
        assert_eq!(needs(&spec, Some(&status)), ["a", "b", "c"]);
        let mut module = WasmModule::default();
        module.metadata.creation_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::from_second(0).unwrap()));
        assert!(!is_over(&module, Timestamp::from_second(FETCHED_S + 1).unwrap()), "uploads wait a day");
        module.spec.origin = Some("Fetch".into());
        assert!(is_over(&module, Timestamp::from_second(FETCHED_S + 1).unwrap()));
    }
}
