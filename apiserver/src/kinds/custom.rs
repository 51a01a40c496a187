//! Rules of the kinds that `scaleup-api` declares (Gateway API, TrafficPolicy): what custom resources are upstream.
//!
//! A kind's versions share their types, so rules belong to the type of the spec and of the status, and are told the version.
//! As with a CRD that has a status subresource, writes of an object check its spec and writes of its status check the status.

use std::marker::PhantomData;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use scaleup_api::kind::Object;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::field::{self, Errors, Path};
use crate::error::FieldError;
use crate::registry::{RuleContext, Rules};

/// Most conditions of one status.
const MAX_CONDITIONS: usize = 8;
const MAX_REASON_BYTES: usize = 1024;
const MAX_MESSAGE_BYTES: usize = 32_768;
const MAX_TYPE_BYTES: usize = 316;

/// Defaults and validation of a spec.
pub trait SpecRules {
    /// Fills defaults.
    fn fill(&mut self) {}
    /// Validates; `version` is the one that the object is written in.
    fn validate(&self, version: &str, at: &Path<'_>, errors: &mut Errors);
    /// Validates what depends on whether the object is in a namespace.
    fn validate_scope(&self, namespaced: bool, at: &Path<'_>, errors: &mut Errors) {
        let _ = (namespaced, at, errors);
    }
    /// Validates a change.
    fn validate_update(&self, old: &Self, at: &Path<'_>, errors: &mut Errors) {
        let _ = (old, at, errors);
    }
}

/// Defaults and validation of a status.
pub trait StatusRules: Sized {
    /// The status of a new object.
    fn initial() -> Option<Self> {
        None
    }
    /// Fills defaults.
    fn fill(&mut self) {}
    /// Validates.
    fn validate(&self, at: &Path<'_>, errors: &mut Errors) {
        let _ = (at, errors);
    }
}

impl StatusRules for () {}

/// Rules of the kind `T`.
pub struct CustomRules<T>(PhantomData<fn() -> T>);

impl<T> CustomRules<T> {
    /// Stateless.
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T> Default for CustomRules<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Rules for CustomRules<T>
where
    T: Object<Spec: SpecRules, Status: StatusRules> + Serialize + DeserializeOwned + Send + 'static,
{
    type Object = T;

    fn default(&self, object: &mut T) {
        let (spec, status) = object.parts_mut();
        spec.fill();
        if let Some(status) = status {
            status.fill();
        }
    }

    fn prepare_create(&self, object: &mut T, _: &RuleContext<'_>) {
        object.set_status(T::Status::initial());
    }

    fn validate(&self, object: &T, cx: &RuleContext<'_>, errors: &mut Errors) {
        let (spec, status) = object.parts();
        if cx.subresource == Some("status") {
            if let Some(status) = status {
                status.validate(&Path::new("status"), errors);
            }
        } else {
            spec.validate(T::VERSION, &Path::new("spec"), errors);
            spec.validate_scope(!cx.namespace.is_empty(), &Path::new("spec"), errors);
        }
    }

    fn validate_update(&self, object: &T, old: &T, cx: &RuleContext<'_>, errors: &mut Errors) {
        if cx.subresource.is_none() {
            object.parts().0.validate_update(old.parts().0, &Path::new("spec"), errors);
        }
    }
}

/// The same object in the version of `T`, for kinds whose versions differ in `apiVersion` alone.
pub fn in_version_of<T: Object>(mut object: Value) -> Value {
    object["apiVersion"] = T::API_VERSION.into();
    object
}

/// A condition that says that nobody has looked at the object yet.
pub(super) fn pending(kind: &str) -> Condition {
    Condition {
        type_: kind.into(),
        status: "Unknown".into(),
        reason: "Pending".into(),
        message: "Waiting for controller".into(),
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
        observed_generation: None,
    }
}

/// At least `min` and at most eight conditions (`metav1.Condition`), each type once.
pub(super) fn conditions(errors: &mut Errors, path: &Path<'_>, conditions: &[Condition], min: usize) {
    if count(errors, path, conditions.len(), min, MAX_CONDITIONS) {
        return;
    }
    for (i, condition) in conditions.iter().enumerate() {
        let at = path.index(i);
        if conditions[..i].iter().any(|other| other.type_ == condition.type_) {
            errors.push(FieldError::duplicate(at.child("type"), condition.type_.as_str()));
        }
        length(errors, &at.child("type"), &condition.type_, MAX_TYPE_BYTES);
        field::required_format(errors, &at.child("type"), &condition.type_, scaleup_api::names::qualified_name);
        field::one_of(errors, &at.child("status"), &condition.status, &["True", "False", "Unknown"]);
        length(errors, &at.child("reason"), &condition.reason, MAX_REASON_BYTES);
        field::required_format(errors, &at.child("reason"), &condition.reason, reason);
        length(errors, &at.child("message"), &condition.message, MAX_MESSAGE_BYTES);
        field::non_negative(errors, &at.child("observedGeneration"), condition.observed_generation);
    }
}

/// `[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?`
fn reason(text: &str) -> Result<(), String> {
    let bytes = text.as_bytes();
    let good = bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"_,:".contains(b))
        && bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.last().is_some_and(|b| !b",:".contains(b));
    if good { Ok(()) } else { Err("must be a word in CamelCase, e.g. 'BackendNotFound'".into()) }
}

/// Too few or too many items. Whether it was too many, so that they need not be looked at.
pub(super) fn count(errors: &mut Errors, path: &Path<'_>, actual: usize, min: usize, max: usize) -> bool {
    if actual < min {
        let why = if min == 1 { String::new() } else { format!("must have at least {min} items") };
        errors.push(FieldError::required(path, why));
    } else if actual > max {
        errors.push(FieldError::too_many(path, actual, max));
    }
    actual > max
}

/// `Too long` beyond `max` bytes.
pub(super) fn length(errors: &mut Errors, path: &Path<'_>, text: &str, max: usize) {
    if text.len() > max {
        errors.push(FieldError::too_long(path, max));
    }
}

/// `Invalid value` outside of `min..=max`, if set.
pub(super) fn range<N: Into<i64> + Copy>(errors: &mut Errors, path: &Path<'_>, value: Option<N>, min: i64, max: i64) {
    if let Some(value) = value.map(Into::into)
        && !(min..=max).contains(&value)
    {
        errors.push(FieldError::invalid(path, value, format!("must be between {min} and {max}, inclusive")));
    }
}

/// A GEP-2257 duration, if set.
pub(super) fn duration(errors: &mut Errors, path: &Path<'_>, value: Option<&str>) -> Option<std::time::Duration> {
    let value = value?;
    let parsed = scaleup_api::duration::parse(value);
    if parsed.is_none() {
        let why = "must be a duration: one to four numbers with a unit of h, m, s or ms (e.g. '1m30s')";
        errors.push(FieldError::invalid(path, value, why));
    }
    parsed
}

/// `Some(default)` where there is none.
pub(super) fn or_default(value: &mut Option<String>, default: &str) {
    value.get_or_insert_with(|| default.into());
}
