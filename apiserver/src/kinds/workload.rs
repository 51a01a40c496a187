//! What the specifications and statuses of Deployments and ReplicaSets have in common.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::field::{self, Errors, Path};
use crate::error::FieldError;

/// A selector that must say something.
pub(super) fn validate_selector(at: &Path<'_>, selector: &LabelSelector, errors: &mut Errors) {
    if field::selector_is_empty(selector) {
        errors.push(FieldError::required(at, ""));
    }
    field::label_selector(errors, at, Some(selector));
}

/// Counts in a status: none is negative, none exceeds `total`.
pub(super) fn validate_counts(path: &Path<'_>, total: i32, counts: &[(&str, Option<i32>)], errors: &mut Errors) {
    for (name, count) in counts {
        let at = path.child(name);
        field::non_negative(errors, &at, *count);
        if let Some(count) = count.filter(|c| *c > total) {
            errors.push(FieldError::invalid(at, count, "cannot be greater than status.replicas"));
        }
    }
}

/// What is available is ready.
pub(super) fn validate_available(path: &Path<'_>, available: Option<i32>, ready: Option<i32>, errors: &mut Errors) {
    let available = available.unwrap_or(0);
    if available > ready.unwrap_or(0) {
        let at = path.child("availableReplicas");
        errors.push(FieldError::invalid(at, available, "cannot be greater than readyReplicas"));
    }
}
