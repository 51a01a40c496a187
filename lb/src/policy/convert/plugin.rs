//! Which plugin a policy asks for.

use std::sync::Arc;

use scaleup_api::names::dns1123_subdomain;
use scaleup_api::traffic::{MAX_POLICY_HEADERS, PolicyRef};
use scaleup_plugins::PluginKey;

use super::super::PluginRef;
use super::values::{at_most, check, header};

/// Longest name of an object.
const MAX_NAME_BYTES: usize = 253;
/// Before the name of a cluster's plugin in an annotation.
const CLUSTER: &str = "ClusterWasmPlugin/";

fn key(field: &str, namespace: &str, kind: &str, name: &str) -> Result<PluginKey, String> {
    check(name.len() <= MAX_NAME_BYTES && dns1123_subdomain(name).is_ok(), || {
        format!("{field}: {name:?} is not the name of a plugin")
    })?;
    match kind {
        "" | "WasmPlugin" => Ok(PluginKey::namespaced(namespace, name)),
        "ClusterWasmPlugin" => Ok(PluginKey::cluster(name)),
        other => Err(format!("{field}: kind {other:?} is neither WasmPlugin nor ClusterWasmPlugin")),
    }
}

/// From `policyRef` of a policy in this namespace.
pub(super) fn of(namespace: &str, reference: &PolicyRef) -> Result<PluginRef, String> {
    let key = key("policyRef", namespace, &reference.kind, &reference.name)?;
    at_most("policyRef.headers", reference.headers.len(), MAX_POLICY_HEADERS)?;
    let mut headers: Vec<Arc<str>> = Vec::new();
    for name in &reference.headers {
        let name = header("policyRef.headers", name)?;
        if !headers.contains(&name) {
            headers.push(name);
        }
    }
    Ok(PluginRef { key, headers: headers.into(), whole_rule: false })
}

/// From the annotation of a Service in this namespace: the name of a WasmPlugin, or `ClusterWasmPlugin/name`.
pub(crate) fn annotated(namespace: &str, value: &str) -> Result<PluginRef, String> {
    let (kind, name) = match value.strip_prefix(CLUSTER) {
        Some(name) => ("ClusterWasmPlugin", name),
        None => ("WasmPlugin", value),
    };
    let key = key(scaleup_api::well_known::ANNOTATION_ROUTING_POLICY, namespace, kind, name)?;
    Ok(PluginRef { key, headers: Box::default(), whole_rule: false })
}
