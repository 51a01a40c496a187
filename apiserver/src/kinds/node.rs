//! Node: taints, pod ranges and resource amounts.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Node, NodeSpec, Taint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use scaleup_api::names;

use super::field::{self, Errors, Path};
use super::pod_template::resources;
use super::pod_template::scheduling::TAINT_EFFECTS;
use crate::error::{FieldError, FieldErrorKind};
use crate::registry::{RuleContext, Rules, SelectableField};

/// What field selectors may name.
pub const SELECTABLE: &[SelectableField] = &[SelectableField {
    path: "spec.unschedulable",
    get: |node| (field::text_at(node, "/spec/unschedulable") == "true").to_string(),
}];

const POD_CIDR_CHANGED: &str = "node updates may not change podCIDR except from \"\" to valid";

/// Rules of Nodes.
pub struct NodeRules;

impl Rules for NodeRules {
    type Object = Node;

    fn default(&self, object: &mut Node) {
        let spec = object.spec.get_or_insert_default();
        // The two spellings of one fact, kept in step as upstream's conversion does.
        if field::list(&spec.pod_cidrs).is_empty()
            && let Some(cidr) = spec.pod_cidr.clone().filter(|c| !c.is_empty())
        {
            spec.pod_cidrs = Some(vec![cidr]);
        } else if let Some(first) = spec.pod_cidrs.as_ref().and_then(|c| c.first()) {
            spec.pod_cidr = Some(first.clone());
        }
        let status = object.status.get_or_insert_default();
        resources::canonical(&mut status.capacity);
        resources::canonical(&mut status.allocatable);
        if status.allocatable.is_none() {
            status.allocatable.clone_from(&status.capacity);
        }
    }

    fn validate(&self, object: &Node, _: &RuleContext<'_>, errors: &mut Errors) {
        if let Some(spec) = &object.spec {
            validate_spec(spec, errors);
        }
        let Some(status) = &object.status else { return };
        for (name, amounts) in [("capacity", &status.capacity), ("allocatable", &status.allocatable)] {
            validate_amounts(&Path::new("status").child(name), amounts.as_ref(), errors);
        }
        let mut seen = BTreeSet::new();
        for (i, address) in field::list(&status.addresses).iter().enumerate() {
            if !seen.insert((&address.type_, &address.address)) {
                let at = Path::new("status.addresses");
                errors.push(FieldError::duplicate(at.index(i), field::value_of(address)));
            }
        }
    }

    fn validate_update(&self, object: &Node, old: &Node, _: &RuleContext<'_>, errors: &mut Errors) {
        let empty = NodeSpec::default();
        let (new, old) = (object.spec.as_ref().unwrap_or(&empty), old.spec.as_ref().unwrap_or(&empty));
        if !field::list(&old.pod_cidrs).is_empty() && new.pod_cidrs != old.pod_cidrs {
            errors.push(FieldError::forbidden("spec.podCIDRs", POD_CIDR_CHANGED));
        }
        let (new_id, old_id) = (field::text(&new.provider_id), field::text(&old.provider_id));
        if !old_id.is_empty() && new_id != old_id {
            let why = "node updates may not change providerID except from \"\" to valid";
            errors.push(FieldError::forbidden("spec.providerID", why));
        }
        if field::text(&new.external_id) != field::text(&old.external_id) {
            errors.push(FieldError::forbidden("spec.externalID", "may not be updated"));
        }
    }
}

fn validate_spec(spec: &NodeSpec, errors: &mut Errors) {
    validate_taints(&Path::new("metadata.taints"), field::list(&spec.taints), errors);
    let at = Path::new("spec.podCIDRs");
    let cidrs = field::list(&spec.pod_cidrs);
    for (i, cidr) in cidrs.iter().enumerate() {
        field::format(errors, &at.index(i), cidr, field::cidr);
    }
    let v6 = cidrs.iter().filter(|c| c.contains(':')).count();
    if v6 > 1 || cidrs.len() - v6 > 1 {
        let why = "may specify no more than one CIDR for each IP family";
        errors.push(FieldError::invalid(at, field::value_of(&spec.pod_cidrs), why));
    }
    if spec.config_source.is_some() {
        let why = "dynamic kubelet configuration was removed from Kubernetes; remove the field";
        errors.push(FieldError::forbidden("spec.configSource", why));
    }
}

fn validate_taints(path: &Path<'_>, taints: &[Taint], errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (i, taint) in taints.iter().enumerate() {
        let at = path.index(i);
        field::format(errors, &at.child("key"), &taint.key, names::qualified_name);
        field::format(errors, &at.child("value"), field::text(&taint.value), names::label_value);
        field::one_of(errors, &at.child("effect"), &taint.effect, TAINT_EFFECTS);
        if !seen.insert((&taint.effect, &taint.key)) {
            let why = "taints must be unique by key and effect pair";
            errors.push(FieldError::new(at, FieldErrorKind::Duplicate, field::value_of(taint), why));
        }
    }
}

fn validate_amounts(path: &Path<'_>, amounts: Option<&BTreeMap<String, Quantity>>, errors: &mut Errors) {
    for (name, amount) in amounts.into_iter().flatten() {
        resources::validate_amount(&path.child(name), name, amount, errors);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::field::test::*;
    use super::*;

    #[test]
    fn ranges_and_amounts_are_kept_in_step() {
        let stored = create(
            NodeRules,
            "{metadata: {name: n1}, spec: {podCIDR: 10.244.1.0/24}, status: {capacity: {cpu: 2000m, memory: 1024Ki}}}",
        );
        contains(
            &stored.expect("valid"),
            &json!({
                "spec": {"podCIDRs": ["10.244.1.0/24"]},
                "status": {"capacity": {"cpu": "2", "memory": "1Mi"}, "allocatable": {"cpu": "2"}},
            }),
        );
    }

    #[test]
    fn mistakes_are_all_reported() {
        refused(
            NodeRules,
            "{metadata: {name: n1}, spec: {podCIDRs: [10.0.0.0/24, nope], taints: [{key: a, effect: NoSchedule}, {key: a, effect: NoSchedule}, {key: b, effect: Run}]}, status: {capacity: {pods: '-1', cpu: lots}}}",
            &[
                "spec.podCIDRs[1]: Invalid value: \"nope\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                "spec.podCIDRs: Invalid value: [\"10.0.0.0/24\",\"nope\"]: may specify no more than one CIDR for each IP family",
                "metadata.taints[1]: Duplicate value: {\"effect\":\"NoSchedule\",\"key\":\"a\"}: taints must be unique by key and effect pair",
                "metadata.taints[2].effect: Unsupported value: \"Run\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
                "status.capacity.pods: Invalid value: \"-1\": must be greater than or equal to 0",
                "status.capacity.cpu: Invalid value: \"lots\": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
                "status.allocatable.pods: Invalid value: \"-1\": must be greater than or equal to 0",
                "status.allocatable.cpu: Invalid value: \"lots\": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ],
        );
    }

    #[test]
    fn what_was_assigned_stays() {
        let old = "{metadata: {name: n1}, spec: {podCIDR: 10.0.0.0/24, providerID: a}}";
        assert!(
            update(
                || NodeRules,
                old,
                "{metadata: {name: n1}, spec: {podCIDR: 10.0.0.0/24, providerID: a, unschedulable: true}}"
            )
            .is_ok()
        );
        same_messages(
            update(|| NodeRules, old, "{metadata: {name: n1}, spec: {podCIDR: 10.0.1.0/24, providerID: b}}"),
            &[
                "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid",
                "spec.providerID: Forbidden: node updates may not change providerID except from \"\" to valid",
            ],
        );
    }
}
