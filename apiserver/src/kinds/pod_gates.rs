//! Updates of Pods under scheduling gates: gates only go away, and placement may only become narrower.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, NodeAffinity, NodeSelectorRequirement, NodeSelectorTerm, PodSpec};

use super::field::{self, Errors, Path};
use crate::error::FieldError;

/// No gate is added.
pub(super) fn validate_gates(path: &Path<'_>, new: &PodSpec, old: &PodSpec, errors: &mut Errors) {
    let path = path.child("schedulingGates");
    let old = field::list(&old.scheduling_gates);
    for (i, gate) in field::list(&new.scheduling_gates).iter().enumerate() {
        if !old.iter().any(|g| g.name == gate.name) {
            let why = format!("only deletion is allowed, but found new scheduling gate '{}'", gate.name);
            errors.push(FieldError::forbidden(path.index(i).child("name"), why));
        }
    }
}

/// Checks what a gated pod may change beside, and sets it back in `munged` so that the rest can be compared.
pub(super) fn allow_tightening(path: &Path<'_>, munged: &mut PodSpec, old: &PodSpec, errors: &mut Errors) {
    let empty = BTreeMap::new();
    let (new_labels, old_labels) =
        (munged.node_selector.as_ref().unwrap_or(&empty), old.node_selector.as_ref().unwrap_or(&empty));
    if old_labels.iter().any(|(key, value)| new_labels.get(key) != Some(value)) {
        let why = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        errors.push(FieldError::invalid(path.child("nodeSelector"), field::value_of(new_labels), why));
    }
    munged.node_selector.clone_from(&old.node_selector);

    let old_affinity = old.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let new_affinity = munged.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let at = path.child("affinity");
    validate_terms(&at.child("nodeAffinity"), required(new_affinity), required(old_affinity), errors);
    let restored = old_affinity.cloned();
    match &mut munged.affinity {
        Some(affinity) => affinity.node_affinity = restored,
        None if restored.is_some() => {
            munged.affinity = Some(Affinity { node_affinity: restored, ..Affinity::default() });
        }
        None => {}
    }
}

fn required(affinity: Option<&NodeAffinity>) -> &[NodeSelectorTerm] {
    let selector = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selector.map_or(&[], |s| &s.node_selector_terms)
}

fn validate_terms(path: &Path<'_>, new: &[NodeSelectorTerm], old: &[NodeSelectorTerm], errors: &mut Errors) {
    let at = path.child("requiredDuringSchedulingIgnoredDuringExecution");
    let at = at.child("nodeSelectorTerms");
    if old.is_empty() {
        return;
    }
    if new.len() != old.len() {
        let why = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        errors.push(FieldError::invalid(at, field::value_of(&new), why));
        return;
    }
    for (i, (new, old)) in new.iter().zip(old).enumerate() {
        let old_lists = (field::list(&old.match_expressions), field::list(&old.match_fields));
        let new_lists = (field::list(&new.match_expressions), field::list(&new.match_fields));
        // An empty term matches nothing: adding to it would widen.
        let widened = old_lists.0.is_empty() && old_lists.1.is_empty() && *new_lists.0 != *old_lists.0
            || old_lists.0.is_empty() && old_lists.1.is_empty() && *new_lists.1 != *old_lists.1;
        if widened || !starts_with(new_lists.0, old_lists.0) || !starts_with(new_lists.1, old_lists.1) {
            let why = "only additions are allowed (no mutations or deletions)";
            errors.push(FieldError::invalid(at.index(i), field::value_of(new), why));
        }
    }
}

fn starts_with(new: &[NodeSelectorRequirement], old: &[NodeSelectorRequirement]) -> bool {
    new.len() >= old.len() && new.iter().zip(old).all(|(new, old)| field::same(new, old))
}
