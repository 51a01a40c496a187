//! Pod specs, as Pods have them and as templates carry them: defaults and validation in one place for both.
//!
//! [`defaults`] fills what upstream's `SetDefaults_PodSpec` fills; [`spec`] and its siblings check; [`unsupported`] is the
//! one list of what the node agent and the scheduler do not do yet, refused with a reason instead of being ignored.

mod containers;
pub(super) mod defaults;
mod probes;
pub(super) mod qos;
pub(super) mod resources;
pub(super) mod scheduling;
mod security;
mod spec;
mod unsupported;
mod volumes;
mod warnings;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as K8sLabelSelector;
use scaleup_api::selector::LabelSelector;

pub(super) use spec::{annotations, containers_only_for_pod, validate};
pub(super) use warnings::warnings;

use super::field::{self, Errors, Path};
use crate::error::FieldError;

/// Whether a spec is a Pod's own or part of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// A Pod.
    Pod,
    /// Something that makes Pods.
    Template,
}

/// `ValidatePodTemplateSpecForReplicaSet`: the template is valid, lives as long as its owner, and its owner selects it.
pub(super) fn validate_template(
    path: &Path<'_>,
    template: &PodTemplateSpec,
    selector: &K8sLabelSelector,
    selector_at: &Path<'_>,
    errors: &mut Errors,
) {
    let empty = BTreeMap::new();
    let metadata = template.metadata.as_ref();
    let labels = metadata.and_then(|m| m.labels.as_ref());
    match LabelSelector::from_k8s(selector) {
        Ok(parsed) if !parsed.matches(labels.unwrap_or(&empty)) || field::selector_is_empty(selector) => {
            let at = path.child("metadata");
            let why = "`selector` does not match template `labels`";
            errors.push(FieldError::invalid(at.child("labels"), field::value_of(&labels), why));
        }
        Ok(_) => {}
        Err(_) => errors.push(FieldError::invalid(selector_at, field::value_of(selector), "invalid label selector")),
    }
    field::labels(errors, &path.child("labels"), labels);
    let annotations_at = path.child("annotations");
    let given = metadata.and_then(|m| m.annotations.as_ref());
    field::annotations(errors, &annotations_at, given);
    annotations(&annotations_at, given, errors);
    let spec_at = path.child("spec");
    let Some(spec) = &template.spec else {
        errors.push(FieldError::required(spec_at.child("containers"), ""));
        return;
    };
    validate(&spec_at, spec, Holder::Template, errors);
    let restart = field::text(&spec.restart_policy);
    if restart != "Always" {
        errors.push(FieldError::not_supported(spec_at.child("restartPolicy"), restart, &["Always"]));
    }
    if spec.active_deadline_seconds.is_some() {
        let why = "activeDeadlineSeconds in ReplicaSet is not Supported";
        errors.push(FieldError::forbidden(spec_at.child("activeDeadlineSeconds"), why));
    }
}
