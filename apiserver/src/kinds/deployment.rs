//! Deployment (apps/v1).

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::field::{self, Errors, Path};
use super::{pod_template, workload};
use crate::error::FieldError;
use crate::registry::{RuleContext, Rules};

const REVISION_HISTORY_LIMIT: i32 = 10;
const PROGRESS_DEADLINE_S: i32 = 600;
/// Of `maxSurge` and `maxUnavailable`.
const ROLLING_STEP: &str = "25%";

/// Rules of Deployments.
pub struct DeploymentRules;

impl Rules for DeploymentRules {
    type Object = Deployment;

    fn default(&self, object: &mut Deployment) {
        let spec = object.spec.get_or_insert_default();
        spec.replicas.get_or_insert(1);
        spec.revision_history_limit.get_or_insert(REVISION_HISTORY_LIMIT);
        spec.progress_deadline_seconds.get_or_insert(PROGRESS_DEADLINE_S);
        let strategy = spec.strategy.get_or_insert_default();
        if field::text(&strategy.type_).is_empty() {
            strategy.type_ = Some("RollingUpdate".into());
        }
        if strategy.type_.as_deref() == Some("RollingUpdate") {
            let rolling = strategy.rolling_update.get_or_insert_default();
            let step = || IntOrString::String(ROLLING_STEP.into());
            rolling.max_surge.get_or_insert_with(step);
            rolling.max_unavailable.get_or_insert_with(step);
        }
        pod_template::defaults::template(&mut spec.template);
    }

    fn validate(&self, object: &Deployment, cx: &RuleContext<'_>, errors: &mut Errors) {
        if cx.subresource == Some("status") {
            validate_status(object, errors);
        } else if let Some(spec) = &object.spec {
            validate_spec(&Path::new("spec"), spec, errors);
        }
    }

    fn validate_update(&self, object: &Deployment, old: &Deployment, _: &RuleContext<'_>, errors: &mut Errors) {
        if let (Some(new), Some(old)) = (&object.spec, &old.spec) {
            field::immutable(errors, &Path::new("spec.selector"), &new.selector, &old.selector);
        }
    }

    fn warnings(&self, object: &Deployment) -> Vec<String> {
        let spec = object.spec.as_ref().and_then(|s| s.template.spec.as_ref());
        spec.map(|s| pod_template::warnings(&Path::new("spec.template.spec"), s)).unwrap_or_default()
    }
}

fn validate_spec(path: &Path<'_>, spec: &DeploymentSpec, errors: &mut Errors) {
    field::non_negative(errors, &path.child("replicas"), spec.replicas);
    let selector_at = path.child("selector");
    workload::validate_selector(&selector_at, &spec.selector, errors);
    let template_at = path.child("template");
    pod_template::validate_template(&template_at, &spec.template, &spec.selector, &selector_at, errors);
    if let Some(strategy) = &spec.strategy {
        validate_strategy(&path.child("strategy"), strategy, errors);
    }
    field::non_negative(errors, &path.child("minReadySeconds"), spec.min_ready_seconds);
    field::non_negative(errors, &path.child("revisionHistoryLimit"), spec.revision_history_limit);
    if let Some(deadline) = spec.progress_deadline_seconds {
        let at = path.child("progressDeadlineSeconds");
        field::non_negative(errors, &at, Some(deadline));
        if deadline <= spec.min_ready_seconds.unwrap_or(0) {
            errors.push(FieldError::invalid(at, deadline, "must be greater than minReadySeconds"));
        }
    }
}

fn validate_strategy(path: &Path<'_>, strategy: &DeploymentStrategy, errors: &mut Errors) {
    let kind = field::text(&strategy.type_);
    let at = path.child("rollingUpdate");
    match (kind, &strategy.rolling_update) {
        ("Recreate", Some(_)) => {
            errors.push(FieldError::forbidden(at, "may not be specified when strategy `type` is 'Recreate'"));
        }
        ("Recreate", None) => {}
        ("RollingUpdate", rolling) => {
            let zero = IntOrString::Int(0);
            let (surge, unavailable) = rolling
                .as_ref()
                .map(|r| (r.max_surge.as_ref(), r.max_unavailable.as_ref()))
                .map_or((&zero, &zero), |(s, u)| (s.unwrap_or(&zero), u.unwrap_or(&zero)));
            let unavailable_at = at.child("maxUnavailable");
            let (_, percent) = positive_int_or_percent(&unavailable_at, unavailable, errors);
            let (surge_is_zero, _) = positive_int_or_percent(&at.child("maxSurge"), surge, errors);
            if is_zero(unavailable) && surge_is_zero {
                let value = field::int_or_string(unavailable);
                errors.push(FieldError::invalid(unavailable_at, value, "may not be 0 when `maxSurge` is 0"));
            }
            if percent.is_some_and(|p| p > 100) {
                let value = field::int_or_string(unavailable);
                errors.push(FieldError::invalid(unavailable_at, value, "must not be greater than 100%"));
            }
        }
        (other, _) => errors.push(FieldError::not_supported(path, other, &["Recreate", "RollingUpdate"])),
    }
}

fn percent(value: &IntOrString) -> Option<u64> {
    let IntOrString::String(text) = value else { return None };
    let digits = text.strip_suffix('%').filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()))?;
    // A number too long for a u64 is a percentage all the same, just far too large.
    Some(digits.parse().unwrap_or(u64::MAX))
}

fn is_zero(value: &IntOrString) -> bool {
    matches!(value, IntOrString::Int(0)) || percent(value) == Some(0)
}

/// Whether it is zero, and the percentage if it is one.
fn positive_int_or_percent(path: &Path<'_>, value: &IntOrString, errors: &mut Errors) -> (bool, Option<u64>) {
    let percent = percent(value);
    match value {
        IntOrString::Int(number) => field::non_negative(errors, path, Some(*number)),
        IntOrString::String(text) if percent.is_none() => {
            let why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
            errors.push(FieldError::invalid(path, text.as_str(), why));
        }
        IntOrString::String(_) => {}
    }
    (is_zero(value), percent)
}

fn validate_status(object: &Deployment, errors: &mut Errors) {
    let Some(status) = &object.status else { return };
    let path = Path::new("status");
    field::non_negative(errors, &path.child("observedGeneration"), status.observed_generation);
    let counts = [
        ("replicas", status.replicas),
        ("updatedReplicas", status.updated_replicas),
        ("readyReplicas", status.ready_replicas),
        ("availableReplicas", status.available_replicas),
    ];
    workload::validate_counts(&path, status.replicas.unwrap_or(0), &counts, errors);
    field::non_negative(errors, &path.child("unavailableReplicas"), status.unavailable_replicas);
    workload::validate_available(&path, status.available_replicas, status.ready_replicas, errors);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::field::test::*;
    use super::*;
    use crate::registry::{AnyRules, Typed};

    const WEB: &str = "
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: 'nginx:1'}]}
";

    #[test]
    fn defaults_are_upstreams() {
        let stored = create(DeploymentRules, WEB).expect("valid");
        contains(
            &stored,
            &json!({"spec": {
                "replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
                "template": {"spec": {
                    "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler",
                    "securityContext": {}, "terminationGracePeriodSeconds": 30,
                    "containers": [{
                        "imagePullPolicy": "IfNotPresent", "resources": {},
                        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                    }],
                }},
            }}),
        );
        // Only Pods have this one: templates must compare equal to what was applied.
        assert!(stored.pointer("/spec/template/spec/enableServiceLinks").is_none());
        let again = Typed(DeploymentRules).decode(stored.clone()).expect("decodes").object;
        assert_eq!(again, stored, "defaulting is idempotent");
    }

    #[test]
    fn mistakes_are_all_reported() {
        refused(
            DeploymentRules,
            "{metadata: {name: web}}",
            &[
                "spec.selector: Required value",
                "spec.template.metadata.labels: Invalid value: `selector` does not match template `labels`",
                "spec.template.spec.containers: Required value",
            ],
        );
        refused(
            DeploymentRules,
            "
metadata: {name: web}
spec:
  replicas: -1
  minReadySeconds: 10
  progressDeadlineSeconds: 10
  revisionHistoryLimit: -2
  strategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 0%}}
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: other}}
    spec: {restartPolicy: Never, activeDeadlineSeconds: 1, containers: [{name: web, image: a}]}
",
            &[
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                "spec.template.metadata.labels: Invalid value: {\"app\":\"other\"}: `selector` does not match template `labels`",
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
                "spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in ReplicaSet is not Supported",
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0",
                "spec.revisionHistoryLimit: Invalid value: -2: must be greater than or equal to 0",
                "spec.progressDeadlineSeconds: Invalid value: 10: must be greater than minReadySeconds",
            ],
        );
    }

    #[test]
    fn strategies() {
        let check = |strategy: &str, expected: &[&str]| {
            let text = WEB.replace("spec:\n  selector", &format!("spec:\n  strategy: {strategy}\n  selector"));
            if expected.is_empty() {
                assert!(create(DeploymentRules, &text).is_ok(), "{strategy}");
            } else {
                refused(DeploymentRules, &text, expected);
            }
        };
        check("{type: Recreate}", &[]);
        check("{rollingUpdate: {maxSurge: 200%, maxUnavailable: 0}}", &[]);
        let both = "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'";
        check("{type: Recreate, rollingUpdate: {}}", &[both]);
        let kind = "spec.strategy: Unsupported value: \"Canary\": supported values: \"Recreate\", \"RollingUpdate\"";
        check("{type: Canary}", &[kind]);
        check(
            "{rollingUpdate: {maxSurge: two, maxUnavailable: 101%}}",
            &[
                "spec.strategy.rollingUpdate.maxSurge: Invalid value: \"two\": a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%",
            ],
        );
        assert_eq!(percent(&IntOrString::String("99999999999999999999999%".into())), Some(u64::MAX));
    }

    #[test]
    fn the_selector_stays() {
        let other = WEB.replace("app: web", "app: api");
        same_messages(
            update(|| DeploymentRules, WEB, &other),
            &["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"api\"}}: field is immutable"],
        );
        assert!(update(|| DeploymentRules, WEB, &WEB.replace("nginx:1", "nginx:2")).is_ok());
    }

    #[test]
    fn status_counts_make_sense() {
        let old = create(DeploymentRules, WEB).expect("valid");
        let mut new = old.clone();
        new["status"] = json!({"replicas": 1, "readyReplicas": 0, "availableReplicas": 1, "updatedReplicas": -1});
        let cx = RuleContext { subresource: Some("status"), ..cx() };
        let errors = Typed(DeploymentRules).update(new, &old, &cx).expect_err("refused");
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "status.updatedReplicas: Invalid value: -1: must be greater than or equal to 0",
                "status.availableReplicas: Invalid value: 1: cannot be greater than readyReplicas",
            ]
        );
    }
}
