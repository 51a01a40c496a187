//! Where a pod may run: affinity, tolerations, topology spread.

use k8s_openapi::api::core::v1::{
    Affinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm, Toleration,
    TopologySpreadConstraint, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use scaleup_api::names;

use super::super::field::{self, Errors, Path};
use crate::error::FieldError;

/// Effects of taints.
pub const TAINT_EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const NOT_AN_OPERATOR: &str = "not a valid selector operator";
const IN_BOTH: &str = "exists in both matchLabelKeys and labelSelector";
const NEEDS_SELECTOR: &str = "must not be specified when labelSelector is not set";

/// `validateAffinity`
pub fn validate_affinity(path: &Path<'_>, affinity: &Affinity, errors: &mut Errors) {
    if let Some(node) = &affinity.node_affinity {
        let at = path.child("nodeAffinity");
        if let Some(selector) = &node.required_during_scheduling_ignored_during_execution {
            validate_node_selector(&at.child(REQUIRED), selector, errors);
        }
        let at = at.child(PREFERRED);
        let terms = field::list(&node.preferred_during_scheduling_ignored_during_execution);
        for (i, term) in terms.iter().enumerate() {
            let at = at.index(i);
            validate_weight(&at, term.weight, errors);
            // Upstream lets a preference hold any value: it is only a preference.
            validate_node_term(&at.child("preference"), &term.preference, false, errors);
        }
    }
    if let Some(pods) = &affinity.pod_affinity {
        let required = field::list(&pods.required_during_scheduling_ignored_during_execution);
        let preferred = field::list(&pods.preferred_during_scheduling_ignored_during_execution);
        validate_pod_terms(&path.child("podAffinity"), required, preferred, errors);
    }
    if let Some(pods) = &affinity.pod_anti_affinity {
        let required = field::list(&pods.required_during_scheduling_ignored_during_execution);
        let preferred = field::list(&pods.preferred_during_scheduling_ignored_during_execution);
        validate_pod_terms(&path.child("podAntiAffinity"), required, preferred, errors);
    }
}

fn validate_weight(at: &Path<'_>, weight: i32, errors: &mut Errors) {
    if !(1..=100).contains(&weight) {
        errors.push(FieldError::invalid(at.child("weight"), weight, "must be in the range 1-100"));
    }
}

fn validate_node_selector(path: &Path<'_>, selector: &NodeSelector, errors: &mut Errors) {
    let at = path.child("nodeSelectorTerms");
    if selector.node_selector_terms.is_empty() {
        errors.push(FieldError::required(at, "must have at least one node selector term"));
    }
    for (i, term) in selector.node_selector_terms.iter().enumerate() {
        validate_node_term(&at.index(i), term, true, errors);
    }
}

fn validate_node_term(path: &Path<'_>, term: &NodeSelectorTerm, check_values: bool, errors: &mut Errors) {
    let at = path.child("matchExpressions");
    for (i, requirement) in field::list(&term.match_expressions).iter().enumerate() {
        validate_node_requirement(&at.index(i), requirement, check_values, errors);
    }
    let at = path.child("matchFields");
    for (i, requirement) in field::list(&term.match_fields).iter().enumerate() {
        validate_field_requirement(&at.index(i), requirement, errors);
    }
}

fn validate_node_requirement(
    at: &Path<'_>,
    requirement: &NodeSelectorRequirement,
    check_values: bool,
    errors: &mut Errors,
) {
    let values = field::list(&requirement.values);
    let values_at = at.child("values");
    match requirement.operator.as_str() {
        "In" | "NotIn" if values.is_empty() => {
            errors.push(FieldError::required(values_at, "must be specified when `operator` is 'In' or 'NotIn'"))
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::forbidden(
            values_at,
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
        )),
        "Gt" | "Lt" if values.len() != 1 => errors
            .push(FieldError::required(values_at, "must be specified single value when `operator` is 'Lt' or 'Gt'")),
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => errors.push(FieldError::invalid(at.child("operator"), other, NOT_AN_OPERATOR)),
    }
    field::format(errors, &at.child("key"), &requirement.key, names::qualified_name);
    for (i, value) in values.iter().enumerate().filter(|_| check_values) {
        field::format(errors, &values_at.index(i), value, names::label_value);
    }
}

fn validate_field_requirement(at: &Path<'_>, requirement: &NodeSelectorRequirement, errors: &mut Errors) {
    let values = field::list(&requirement.values);
    match requirement.operator.as_str() {
        "In" | "NotIn" if values.len() != 1 => errors.push(FieldError::required(
            at.child("values"),
            "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
        )),
        "In" | "NotIn" => {}
        other => errors.push(FieldError::invalid(at.child("operator"), other, NOT_AN_OPERATOR)),
    }
    if requirement.key != "metadata.name" {
        let why = "not a valid field selector key";
        errors.push(FieldError::invalid(at.child("key"), requirement.key.as_str(), why));
        return;
    }
    let values_at = at.child("values");
    for (i, value) in values.iter().enumerate() {
        field::format(errors, &values_at.index(i), value, names::dns1123_subdomain);
    }
}

fn validate_pod_terms(
    path: &Path<'_>,
    required: &[PodAffinityTerm],
    preferred: &[WeightedPodAffinityTerm],
    errors: &mut Errors,
) {
    let at = path.child(REQUIRED);
    for (i, term) in required.iter().enumerate() {
        validate_pod_term(&at.index(i), term, errors);
    }
    let at = path.child(PREFERRED);
    for (i, weighted) in preferred.iter().enumerate() {
        let at = at.index(i);
        validate_weight(&at, weighted.weight, errors);
        validate_pod_term(&at.child("podAffinityTerm"), &weighted.pod_affinity_term, errors);
    }
}

fn validate_pod_term(at: &Path<'_>, term: &PodAffinityTerm, errors: &mut Errors) {
    field::label_selector(errors, &at.child("labelSelector"), term.label_selector.as_ref());
    field::label_selector(errors, &at.child("namespaceSelector"), term.namespace_selector.as_ref());
    for name in field::list(&term.namespaces) {
        field::format(errors, &at.child("namespace"), name, names::dns1123_label);
    }
    let (matching, mismatching) = (field::list(&term.match_label_keys), field::list(&term.mismatch_label_keys));
    validate_label_keys(&at.child("matchLabelKeys"), matching, term.label_selector.as_ref(), errors);
    validate_label_keys(&at.child("mismatchLabelKeys"), mismatching, term.label_selector.as_ref(), errors);
    for (i, key) in matching.iter().enumerate().filter(|(_, key)| mismatching.contains(key)) {
        let at = at.child("matchLabelKeys");
        let why = "exists in both matchLabelKeys and mismatchLabelKeys";
        errors.push(FieldError::invalid(at.index(i), key.as_str(), why));
    }
    if term.topology_key.is_empty() {
        errors.push(FieldError::required(at.child("topologyKey"), "can not be empty"));
    }
    field::format(errors, &at.child("topologyKey"), &term.topology_key, names::qualified_name);
}

fn validate_label_keys(at: &Path<'_>, keys: &[String], selector: Option<&LabelSelector>, errors: &mut Errors) {
    if keys.is_empty() {
        return;
    }
    if selector.is_none() {
        errors.push(FieldError::forbidden(at, NEEDS_SELECTOR));
        return;
    }
    for (i, key) in keys.iter().enumerate() {
        field::format(errors, &at.index(i), key, names::qualified_name);
    }
}

/// `ValidateTolerations`
pub fn validate_tolerations(path: &Path<'_>, tolerations: &[Toleration], errors: &mut Errors) {
    for (i, toleration) in tolerations.iter().enumerate() {
        let at = path.index(i);
        let (key, operator) = (field::text(&toleration.key), field::text(&toleration.operator));
        let (value, effect) = (field::text(&toleration.value), field::text(&toleration.effect));
        if !key.is_empty() {
            field::format(errors, &at.child("key"), key, names::qualified_name);
        } else if operator != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(at.child("operator"), operator, why));
        }
        if toleration.toleration_seconds.is_some() && effect != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(at.child("effect"), effect, why));
        }
        match operator {
            "Equal" | "" => field::format(errors, &at.child("operator"), value, names::label_value),
            "Exists" if !value.is_empty() => {
                let why = "value must be empty when `operator` is 'Exists'";
                errors.push(FieldError::invalid(at.child("operator"), value, why));
            }
            "Exists" => {}
            other => {
                errors.push(FieldError::not_supported(at.child("operator"), other, &["Equal", "Exists"]));
            }
        }
        if !effect.is_empty() && !TAINT_EFFECTS.contains(&effect) {
            errors.push(FieldError::not_supported(at.child("effect"), effect, TAINT_EFFECTS));
        }
    }
}

/// `validateTopologySpreadConstraints`
pub fn validate_spread(path: &Path<'_>, constraints: &[TopologySpreadConstraint], errors: &mut Errors) {
    let positive = "must be greater than zero";
    for (i, constraint) in constraints.iter().enumerate() {
        let at = path.index(i);
        if constraint.max_skew <= 0 {
            errors.push(FieldError::invalid(at.child("maxSkew"), constraint.max_skew, positive));
        }
        if constraint.topology_key.is_empty() {
            errors.push(FieldError::required(at.child("topologyKey"), "can not be empty"));
        }
        let action = constraint.when_unsatisfiable.as_str();
        let actions = &["DoNotSchedule", "ScheduleAnyway"];
        if !actions.contains(&action) {
            errors.push(FieldError::not_supported(at.child("whenUnsatisfiable"), action, actions));
        }
        let same = |other: &&TopologySpreadConstraint| {
            other.topology_key == constraint.topology_key && other.when_unsatisfiable == action
        };
        if constraints[i + 1..].iter().find(same).is_some() {
            let value = format!("{{{}, {action}}}", constraint.topology_key);
            errors.push(FieldError::duplicate(at.child("{topologyKey, whenUnsatisfiable}"), value));
        }
        if let Some(domains) = constraint.min_domains {
            let at = at.child("minDomains");
            if domains <= 0 {
                errors.push(FieldError::invalid(at, domains, positive));
            }
            if action != "DoNotSchedule" {
                let why = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                errors.push(FieldError::invalid(at, domains, why));
            }
        }
        for (name, policy) in [
            ("nodeAffinityPolicy", &constraint.node_affinity_policy),
            ("nodeTaintsPolicy", &constraint.node_taints_policy),
        ] {
            field::optional_one_of(errors, &at.child(name), policy, &["Honor", "Ignore"]);
        }
        validate_spread_keys(&at, constraint, errors);
        field::label_selector(errors, &at.child("labelSelector"), constraint.label_selector.as_ref());
    }
}

fn validate_spread_keys(path: &Path<'_>, constraint: &TopologySpreadConstraint, errors: &mut Errors) {
    let keys = field::list(&constraint.match_label_keys);
    let at = path.child("matchLabelKeys");
    let Some(selector) = &constraint.label_selector else {
        if !keys.is_empty() {
            errors.push(FieldError::forbidden(at, NEEDS_SELECTOR));
        }
        return;
    };
    let selected = |key: &String| {
        selector.match_labels.as_ref().is_some_and(|l| l.contains_key(key))
            || field::list(&selector.match_expressions).iter().any(|e| &e.key == key)
    };
    for (i, key) in keys.iter().enumerate() {
        field::format(errors, &at.index(i), key, names::qualified_name);
        if selected(key) {
            errors.push(FieldError::invalid(at.index(i), key.as_str(), IN_BOTH));
        }
    }
}
