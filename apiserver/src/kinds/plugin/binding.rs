//! `spec.admission` and `spec.scheduling`: what a plugin is asked about. Each is for its own world only.

use scaleup_api::names;
use scaleup_api::plugin::{AdmissionBinding, AdmissionRule, SchedulingBinding, WasmPluginSpec};

use super::super::custom::{count, length, range};
use super::super::field::{self, Errors, Path};
use crate::error::FieldError;

const MAX_RULES: usize = 64;
const MAX_ITEMS: usize = 64;
const MAX_ITEM_BYTES: usize = 253;
const OPERATIONS: &[&str] = &["*", "CREATE", "DELETE", "UPDATE"];

pub fn bindings(errors: &mut Errors, at: &Path<'_>, spec: &WasmPluginSpec, namespaced: bool) {
    let world = spec.world.as_str();
    for (member, set) in [("admission", spec.admission.is_some()), ("scheduling", spec.scheduling.is_some())] {
        if set && world != member {
            let why = format!("may only be specified when `world` is '{member}'");
            errors.push(FieldError::forbidden(at.child(member), why));
        }
    }
    match &spec.admission {
        Some(binding) => admission(errors, &at.child("admission"), binding),
        None if world == "admission" => {
            errors.push(FieldError::required(at.child("admission"), "which writes it is asked about"));
        }
        None => {}
    }
    match &spec.scheduling {
        Some(binding) => scheduling(errors, &at.child("scheduling"), binding, namespaced),
        None if world == "scheduling" && !namespaced => {
            errors.push(FieldError::required(at.child("scheduling"), "which pods it is asked about"));
        }
        None => {}
    }
}

fn admission(errors: &mut Errors, at: &Path<'_>, binding: &AdmissionBinding) {
    field::label_selector(errors, &at.child("namespaceSelector"), binding.namespace_selector.as_ref());
    field::label_selector(errors, &at.child("objectSelector"), binding.object_selector.as_ref());
    let list = at.child("rules");
    if !count(errors, &list, binding.rules.len(), 1, MAX_RULES) {
        binding.rules.iter().enumerate().for_each(|(i, one)| rule(errors, &list.index(i), one));
    }
}

fn rule(errors: &mut Errors, at: &Path<'_>, rule: &AdmissionRule) {
    let AdmissionRule { operations, api_groups, api_versions, resources } = rule;
    let list = at.child("operations");
    if !count(errors, &list, operations.len(), 1, OPERATIONS.len()) {
        let all = operations.iter().enumerate();
        all.for_each(|(i, one)| field::one_of(errors, &list.index(i), one, OPERATIONS));
    }
    for (member, items, least) in
        [("apiGroups", api_groups, 1), ("apiVersions", api_versions, 0), ("resources", resources, 1)]
    {
        let list = at.child(member);
        if count(errors, &list, items.len(), least, MAX_ITEMS) {
            continue;
        }
        for (i, item) in items.iter().enumerate() {
            let at = list.index(i);
            length(errors, &at, item, MAX_ITEM_BYTES);
            if item.is_empty() && member != "apiGroups" {
                errors.push(FieldError::required(at, ""));
            }
            if items.len() > 1 && item == "*" {
                let why = "if '*' is present, must not specify other items";
                errors.push(FieldError::invalid(at, item.as_str(), why));
            }
        }
    }
}

fn scheduling(errors: &mut Errors, at: &Path<'_>, binding: &SchedulingBinding, namespaced: bool) {
    let SchedulingBinding { scheduler_names, namespace_selector, weight, node_labels } = binding;
    range(errors, &at.child("weight"), *weight, 1, 100);
    field::label_selector(errors, &at.child("namespaceSelector"), namespace_selector.as_ref());
    let list = at.child("schedulerNames");
    if namespaced {
        let why = "only for a ClusterWasmPlugin: a WasmPlugin is asked about the pods of its namespace";
        if !scheduler_names.is_empty() {
            errors.push(FieldError::forbidden(list, why));
        }
        if namespace_selector.is_some() {
            errors.push(FieldError::forbidden(at.child("namespaceSelector"), why));
        }
    } else if scheduler_names.is_empty() && namespace_selector.is_none() {
        errors.push(FieldError::required(at, "at least one of schedulerNames and namespaceSelector"));
    }
    let keys = at.child("nodeLabels");
    if !count(errors, &keys, node_labels.len(), 0, scaleup_plugins::scheduling::MAX_LABEL_KEYS) {
        let all = node_labels.iter().enumerate();
        all.for_each(|(i, key)| field::required_format(errors, &keys.index(i), key, names::qualified_name));
    }
    if !count(errors, &list, scheduler_names.len(), 0, MAX_ITEMS) {
        let all = scheduler_names.iter().enumerate();
        all.for_each(|(i, name)| field::required_format(errors, &list.index(i), name, names::dns1123_subdomain));
    }
}
