//! ReplicaSet (apps/v1).

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec};

use super::field::{self, Errors, Path};
use super::{pod_template, workload};
use crate::error::FieldError;
use crate::registry::{RuleContext, Rules, SelectableField};

/// What field selectors may name.
pub const SELECTABLE: &[SelectableField] = &[SelectableField {
    path: "status.replicas",
    get: |set| Some(field::text_at(set, "/status/replicas")).filter(|n| !n.is_empty()).unwrap_or_else(|| "0".into()),
}];

/// Rules of ReplicaSets.
pub struct ReplicaSetRules;

impl Rules for ReplicaSetRules {
    type Object = ReplicaSet;

    fn default(&self, object: &mut ReplicaSet) {
        let spec = object.spec.get_or_insert_default();
        spec.replicas.get_or_insert(1);
        if let Some(template) = &mut spec.template {
            pod_template::defaults::template(template);
        }
    }

    fn validate(&self, object: &ReplicaSet, cx: &RuleContext<'_>, errors: &mut Errors) {
        if cx.subresource == Some("status") {
            validate_status(object, errors);
        } else if let Some(spec) = &object.spec {
            validate_spec(&Path::new("spec"), spec, errors);
        }
    }

    fn validate_update(&self, object: &ReplicaSet, old: &ReplicaSet, _: &RuleContext<'_>, errors: &mut Errors) {
        if let (Some(new), Some(old)) = (&object.spec, &old.spec) {
            field::immutable(errors, &Path::new("spec.selector"), &new.selector, &old.selector);
        }
    }

    fn warnings(&self, object: &ReplicaSet) -> Vec<String> {
        let template = object.spec.as_ref().and_then(|s| s.template.as_ref());
        let spec = template.and_then(|t| t.spec.as_ref());
        spec.map(|s| pod_template::warnings(&Path::new("spec.template.spec"), s)).unwrap_or_default()
    }
}

fn validate_spec(path: &Path<'_>, spec: &ReplicaSetSpec, errors: &mut Errors) {
    field::non_negative(errors, &path.child("replicas"), spec.replicas);
    field::non_negative(errors, &path.child("minReadySeconds"), spec.min_ready_seconds);
    let selector_at = path.child("selector");
    workload::validate_selector(&selector_at, &spec.selector, errors);
    let template_at = path.child("template");
    match &spec.template {
        Some(template) => {
            pod_template::validate_template(&template_at, template, &spec.selector, &selector_at, errors);
        }
        None => errors.push(FieldError::required(template_at, "")),
    }
}

fn validate_status(object: &ReplicaSet, errors: &mut Errors) {
    let Some(status) = &object.status else { return };
    let path = Path::new("status");
    field::non_negative(errors, &path.child("observedGeneration"), status.observed_generation);
    let counts = [
        ("replicas", Some(status.replicas)),
        ("fullyLabeledReplicas", status.fully_labeled_replicas),
        ("readyReplicas", status.ready_replicas),
        ("availableReplicas", status.available_replicas),
    ];
    workload::validate_counts(&path, status.replicas, &counts, errors);
    workload::validate_available(&path, status.available_replicas, status.ready_replicas, errors);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::field::test::*;
    use super::*;

    const WEB: &str = "
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: nginx}]}}
";

    #[test]
    fn defaults_and_selectable_field() {
        let stored = create(ReplicaSetRules, WEB).expect("valid");
        contains(&stored, &json!({"spec": {"replicas": 1, "template": {"spec": {"dnsPolicy": "ClusterFirst"}}}}));
        assert_eq!((SELECTABLE[0].get)(&stored), "0");
        assert_eq!((SELECTABLE[0].get)(&json!({"status": {"replicas": 3}})), "3");
    }

    #[test]
    fn mistakes_are_all_reported() {
        refused(
            ReplicaSetRules,
            "{metadata: {name: web}, spec: {replicas: -1, minReadySeconds: -1, selector: {matchExpressions: [{key: a, operator: Like, values: [b]}]}}}",
            &[
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                "spec.minReadySeconds: Invalid value: -1: must be greater than or equal to 0",
                "spec.selector.matchExpressions[0].operator: Invalid value: \"Like\": not a valid selector operator",
                "spec.template: Required value",
            ],
        );
        refused(
            ReplicaSetRules,
            &WEB.replace("containers: [{name: web, image: nginx}]", "containers: []"),
            &["spec.template.spec.containers: Required value"],
        );
    }

    #[test]
    fn the_selector_stays() {
        same_messages(
            update(|| ReplicaSetRules, WEB, &WEB.replace("app: web", "app: api")),
            &["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"api\"}}: field is immutable"],
        );
    }
}
