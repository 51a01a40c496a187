//! What is told about the plugins that policies and Services name. Pure.
//!
//! Whether a plugin exists is the same for all load balancers, whether its module is there is not: as long as one has it, the others leave
//! the condition as it is.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::jiff::Timestamp;
use scaleup_plugins::{PluginKey, Registry, World};
use serde_json::{Value, json};

use super::conditions::Conditions;
use super::plan::annotated_plugin;
use super::references::Fault;

/// Condition of a Service whose annotation names a plugin.
const OF_SERVICES: &str = "traffic.scaleup.dev/PolicyResolved";
const RESOLVED: &str = "ResolvedRefs";

/// As people know it.
fn name(key: &PluginKey) -> String {
    let kind = if key.namespace.is_empty() { "ClusterWasmPlugin" } else { "WasmPlugin" };
    format!("{kind} {key}")
}

/// What is the matter with a plugin of the world `routing`; `None`: it can be asked.
fn fault(plugins: &Registry, key: &PluginKey) -> Option<Fault> {
    let slot = plugins.slot(key, World::Routing);
    if !slot.policy.is_absent() {
        return None;
    }
    let name = name(key);
    if !slot.is_known() {
        return Some(Fault::new("PluginNotFound", format!("there is no {name} of the world routing")));
    }
    let why = slot.policy.generations().absent.message.clone();
    Some(Fault::new("PluginNotLoaded", format!("{name} cannot decide yet: {why}")))
}

/// Adds the condition `type_` about a plugin.
fn add(conditions: &mut Conditions<'_>, type_: &str, plugins: &Registry, key: &PluginKey) {
    let (generation, name) = (Some(conditions.generation()), name(key));
    let elsewhere = conditions.current(type_).is_some_and(|current| {
        current.status == "True" && current.observed_generation == generation && current.message == name
    });
    match fault(plugins, key).filter(|fault| fault.reason != "PluginNotLoaded" || !elsewhere) {
        Some(fault) => conditions.add(type_, false, fault.reason, &fault.message),
        None => conditions.add(type_, true, RESOLVED, &name),
    }
}

/// `ResolvedRefs` of a TrafficPolicy that names a plugin.
pub(super) fn resolved(conditions: &mut Conditions<'_>, plugins: &Registry, key: &PluginKey) {
    add(conditions, RESOLVED, plugins, key);
}

/// The status of a Service, as far as its annotation is concerned; `None` if it says so already.
pub(super) fn of_service(service: &Service, plugins: &Registry, now: Timestamp) -> Option<Value> {
    let current = service.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let named = annotated_plugin(service);
    if named.is_none() && current.iter().all(|condition| condition.type_ != OF_SERVICES) {
        return None;
    }
    let mut conditions = Conditions::new(current, service.metadata.generation.unwrap_or_default(), now);
    match &named {
        Some(Ok(plugin)) => add(&mut conditions, OF_SERVICES, plugins, &plugin.key),
        Some(Err(message)) => conditions.add(OF_SERVICES, false, "Invalid", message),
        None => {}
    }
    let conditions = conditions.finish(&[OF_SERVICES]);
    (conditions != current).then(|| json!({"conditions": conditions}))
}
