//! Pod: initial status on create, and the very few fields that an update may change.

use k8s_openapi::api::core::v1::{Container, Pod, PodAffinityTerm, PodCondition, PodSpec, PodStatus, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use super::field::{self, Errors, Path};
use super::pod_template::{self, Holder, defaults, qos};
use super::{pod_gates, pod_status};
use crate::error::FieldError;
use crate::registry::{RuleContext, Rules, SelectableField};

/// What field selectors may name.
pub const SELECTABLE: &[SelectableField] = &[
    SelectableField { path: "spec.nodeName", get: |pod| field::text_at(pod, "/spec/nodeName") },
    SelectableField { path: "spec.restartPolicy", get: |pod| field::text_at(pod, "/spec/restartPolicy") },
    SelectableField { path: "spec.schedulerName", get: |pod| field::text_at(pod, "/spec/schedulerName") },
    SelectableField { path: "spec.serviceAccountName", get: |pod| field::text_at(pod, "/spec/serviceAccountName") },
    SelectableField {
        path: "spec.hostNetwork",
        get: |pod| (field::text_at(pod, "/spec/hostNetwork") == "true").to_string(),
    },
    SelectableField { path: "status.phase", get: |pod| field::text_at(pod, "/status/phase") },
    SelectableField { path: "status.podIP", get: |pod| field::text_at(pod, "/status/podIP") },
    SelectableField { path: "status.nominatedNodeName", get: |pod| field::text_at(pod, "/status/nominatedNodeName") },
];

const UPDATABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Rules of Pods.
pub struct PodRules;

impl Rules for PodRules {
    type Object = Pod;

    fn default(&self, object: &mut Pod) {
        defaults::pod(object);
    }

    fn prepare_create(&self, object: &mut Pod, _: &RuleContext<'_>) {
        // Admission may have added limits since the body was defaulted, and they count for the class.
        defaults::pod(object);
        let labels = object.metadata.labels.clone().unwrap_or_default();
        let Some(spec) = &mut object.spec else { return };
        let mut status = PodStatus {
            phase: Some("Pending".into()),
            qos_class: Some(qos::class(spec).into()),
            ..PodStatus::default()
        };
        if !field::list(&spec.scheduling_gates).is_empty() {
            status.conditions = Some(vec![PodCondition {
                type_: "PodScheduled".into(),
                status: "False".into(),
                reason: Some("SchedulingGated".into()),
                message: Some("Scheduling is blocked due to non-empty scheduling gates".into()),
                ..PodCondition::default()
            }]);
        }
        object.status = Some(status);
        apply_label_keys(spec, &labels);
    }

    fn prepare_update(&self, object: &mut Pod, old: &Pod, cx: &RuleContext<'_>) {
        if cx.subresource == Some("status")
            && let Some(status) = &mut object.status
            && field::text(&status.qos_class).is_empty()
        {
            status.qos_class = old.status.as_ref().and_then(|s| s.qos_class.clone());
        }
    }

    fn validate(&self, object: &Pod, cx: &RuleContext<'_>, errors: &mut Errors) {
        if cx.subresource == Some("status") {
            return;
        }
        let annotations_at = Path::new("metadata.annotations");
        let annotations = object.metadata.annotations.as_ref();
        pod_template::annotations(&annotations_at, annotations, errors);
        let path = Path::new("spec");
        let Some(spec) = &object.spec else { return };
        if let Some(value) = annotations.and_then(|a| a.get(MIRROR))
            && field::text(&spec.node_name).is_empty()
        {
            let why = "must set spec.nodeName if mirror pod annotation is set";
            errors.push(FieldError::invalid(annotations_at.key(MIRROR), value.as_str(), why));
        }
        pod_template::validate(&path, spec, Holder::Pod, errors);
        pod_template::containers_only_for_pod(&path, spec, errors);
    }

    fn validate_update(&self, object: &Pod, old: &Pod, cx: &RuleContext<'_>, errors: &mut Errors) {
        if cx.subresource == Some("status") {
            pod_status::validate_update(object, old, errors);
            return;
        }
        validate_mirror_annotation(object, old, errors);
        if let (Some(new), Some(old)) = (&object.spec, &old.spec) {
            validate_spec_update(&Path::new("spec"), new, old, errors);
        }
    }

    /// Pods that run nowhere any more, or never did, have nothing to be graceful about.
    fn grace_period_s(&self, object: &Pod, requested: Option<i64>) -> Option<i64> {
        let spec = object.spec.as_ref();
        let unscheduled = spec.is_none_or(|s| field::text(&s.node_name).is_empty());
        if unscheduled || scaleup_api::pods::is_terminal(object) {
            return Some(0);
        }
        let period = requested.or_else(|| spec.and_then(|s| s.termination_grace_period_seconds)).unwrap_or(0);
        Some(if period < 0 { 1 } else { period })
    }

    fn warnings(&self, object: &Pod) -> Vec<String> {
        object.spec.as_ref().map(|s| pod_template::warnings(&Path::new("spec"), s)).unwrap_or_default()
    }
}

/// `matchLabelKeys` and `mismatchLabelKeys` of affinity terms become requirements on the pod's own label values.
fn apply_label_keys(spec: &mut PodSpec, labels: &std::collections::BTreeMap<String, String>) {
    let mut apply = |term: &mut PodAffinityTerm| {
        let Some(selector) = &mut term.label_selector else { return };
        for (keys, operator) in [(&term.match_label_keys, "In"), (&term.mismatch_label_keys, "NotIn")] {
            for key in field::list(keys) {
                if let Some(value) = labels.get(key) {
                    require(selector, key, operator, value);
                }
            }
        }
    };
    let Some(affinity) = &mut spec.affinity else { return };
    if let Some(pods) = &mut affinity.pod_affinity {
        pods.required_during_scheduling_ignored_during_execution.iter_mut().flatten().for_each(&mut apply);
        let preferred = pods.preferred_during_scheduling_ignored_during_execution.iter_mut().flatten();
        preferred.for_each(|w| apply(&mut w.pod_affinity_term));
    }
    if let Some(pods) = &mut affinity.pod_anti_affinity {
        pods.required_during_scheduling_ignored_during_execution.iter_mut().flatten().for_each(&mut apply);
        let preferred = pods.preferred_during_scheduling_ignored_during_execution.iter_mut().flatten();
        preferred.for_each(|w| apply(&mut w.pod_affinity_term));
    }
}

fn require(selector: &mut LabelSelector, key: &str, operator: &str, value: &str) {
    selector.match_expressions.get_or_insert_default().push(LabelSelectorRequirement {
        key: key.into(),
        operator: operator.into(),
        values: Some(vec![value.into()]),
    });
}

fn validate_mirror_annotation(object: &Pod, old: &Pod, errors: &mut Errors) {
    let get = |pod: &Pod| pod.metadata.annotations.as_ref().and_then(|a| a.get(MIRROR).cloned());
    let why = match (get(object), get(old)) {
        (new, old) if new == old => return,
        (_, None) => "may not add mirror pod annotation",
        (_, Some(_)) => "may not remove or update mirror pod annotation",
    };
    errors.push(FieldError::forbidden(Path::new("metadata.annotations").key(MIRROR), why));
}

/// `ValidatePodUpdate`: what may change is checked and then set back, and the rest must be the same.
fn validate_spec_update(path: &Path<'_>, new: &PodSpec, old: &PodSpec, errors: &mut Errors) {
    let init = (field::list(&new.init_containers), field::list(&old.init_containers));
    for (name, new, old) in
        [("containers", &new.containers[..], &old.containers[..]), ("initContainers", init.0, init.1)]
    {
        if new.len() != old.len() {
            errors.push(FieldError::forbidden(path.child(name), "pod updates may not add or remove containers"));
            return;
        }
    }
    validate_deadline(path, new.active_deadline_seconds, old.active_deadline_seconds, errors);
    let tolerations = (field::list(&new.tolerations), field::list(&old.tolerations));
    validate_tolerations(&path.child("tolerations"), tolerations.0, tolerations.1, errors);
    pod_gates::validate_gates(path, new, old, errors);
    if new == old {
        return;
    }
    let mut munged = new.clone();
    restore_images(&mut munged.containers, &old.containers);
    restore_images(munged.init_containers.as_deref_mut().unwrap_or_default(), init.1);
    munged.active_deadline_seconds = old.active_deadline_seconds;
    munged.scheduling_gates.clone_from(&old.scheduling_gates);
    munged.tolerations.clone_from(&old.tolerations);
    let was_negative = old.termination_grace_period_seconds.is_some_and(|s| s < 0);
    if was_negative && munged.termination_grace_period_seconds == Some(1) {
        munged.termination_grace_period_seconds = old.termination_grace_period_seconds;
    }
    if !field::list(&old.scheduling_gates).is_empty() {
        pod_gates::allow_tightening(path, &mut munged, old, errors);
    }
    if !field::same(&munged, old) {
        let changed = field::changed_fields("spec", &munged, old).join(", ");
        errors.push(FieldError::forbidden(path, format!("{UPDATABLE}\nchanged: {changed}")));
    }
}

fn restore_images(new: &mut [Container], old: &[Container]) {
    for (new, old) in new.iter_mut().zip(old) {
        new.image.clone_from(&old.image);
    }
}

fn validate_deadline(path: &Path<'_>, new: Option<i64>, old: Option<i64>, errors: &mut Errors) {
    let at = path.child("activeDeadlineSeconds");
    match (new, old) {
        (Some(new), Some(old)) if new > old => {
            errors.push(FieldError::invalid(at, new, "must be less than or equal to previous value"));
        }
        (None, Some(_)) => {
            let null = serde_json::Value::Null;
            errors.push(FieldError::invalid(at, null, "must not update from a positive integer to nil value"));
        }
        _ => {}
    }
}

/// Every old toleration is still there, but for its seconds.
fn validate_tolerations(path: &Path<'_>, new: &[Toleration], old: &[Toleration], errors: &mut Errors) {
    let without_seconds = |t: &Toleration| Toleration { toleration_seconds: None, ..t.clone() };
    let kept = |old: &Toleration| {
        let old = without_seconds(old);
        new.iter().any(|t| field::same(&without_seconds(t), &old))
    };
    if !old.iter().all(kept) {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden(path, why));
    }
}

#[cfg(test)]
#[path = "pod_tests.rs"]
mod tests;
