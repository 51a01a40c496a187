//! ConfigMap: keys, size, and `immutable`.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use scaleup_api::names;

use super::field::{self, Errors, Path};
use crate::error::FieldError;
use crate::registry::{RuleContext, Rules};

/// Largest sum of all values of a ConfigMap or Secret (`core.MaxSecretSize`).
pub(super) const MAX_DATA_BYTES: usize = 1 << 20;
/// Upstream's text for a change of what `immutable` protects.
pub(super) const IMMUTABLE_IS_SET: &str = "field is immutable when `immutable` is set";

/// Rules of ConfigMaps.
pub struct ConfigMapRules;

impl Rules for ConfigMapRules {
    type Object = ConfigMap;

    fn validate(&self, object: &ConfigMap, _: &RuleContext<'_>, errors: &mut Errors) {
        let empty = BTreeMap::<String, ByteString>::new();
        let binary = object.binary_data.as_ref().unwrap_or(&empty);
        let (data_at, binary_at) = (Path::new("data"), Path::new("binaryData"));
        let mut bytes = 0;
        for (key, value) in object.data.iter().flatten() {
            field::format(errors, &data_at.key(key), key, names::config_key);
            if binary.contains_key(key) {
                let why = "duplicate of key present in binaryData";
                errors.push(FieldError::invalid(data_at.key(key), key.as_str(), why));
            }
            bytes += value.len();
        }
        for (key, value) in binary {
            field::format(errors, &binary_at.key(key), key, names::config_key);
            bytes += value.0.len();
        }
        if bytes > MAX_DATA_BYTES {
            // Upstream's notation of the whole object.
            errors.push(FieldError::too_long("[]", MAX_DATA_BYTES));
        }
    }

    fn validate_update(&self, object: &ConfigMap, old: &ConfigMap, _: &RuleContext<'_>, errors: &mut Errors) {
        if !field::flag(old.immutable) {
            return;
        }
        if !field::flag(object.immutable) {
            errors.push(FieldError::forbidden("immutable", IMMUTABLE_IS_SET));
        }
        if !field::same(&object.data, &old.data) {
            errors.push(FieldError::forbidden("data", IMMUTABLE_IS_SET));
        }
        if !field::same(&object.binary_data, &old.binary_data) {
            errors.push(FieldError::forbidden("binaryData", IMMUTABLE_IS_SET));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::field::test::*;
    use super::*;

    #[test]
    fn keys_and_size() {
        assert!(create(ConfigMapRules, "{metadata: {name: a}, data: {a.b: c}, binaryData: {x: AAA=}}").is_ok());
        refused(
            ConfigMapRules,
            "{metadata: {name: a}, data: {'a/b': c, x: y}, binaryData: {x: AAA=, '..': ''}}",
            &[
                "data[a/b]: Invalid value: \"a/b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
                "data[x]: Invalid value: \"x\": duplicate of key present in binaryData",
                "binaryData[..]: Invalid value: \"..\": must not be '..'",
            ],
        );
        let big = format!("{{metadata: {{name: a}}, data: {{a: {}}}}}", "x".repeat(MAX_DATA_BYTES + 1));
        refused(ConfigMapRules, &big, &["[]: Too long: may not be more than 1048576 bytes"]);
    }

    #[test]
    fn immutable_ones_keep_their_data() {
        let old = "{metadata: {name: a}, immutable: true, data: {a: b}}";
        let relabelled = "{metadata: {name: a, labels: {x: y}}, immutable: true, data: {a: b}}";
        assert!(update(|| ConfigMapRules, old, relabelled).is_ok());
        same_messages(
            update(|| ConfigMapRules, old, "{metadata: {name: a}, data: {a: c}, binaryData: {b: AAA=}}"),
            &[
                "immutable: Forbidden: field is immutable when `immutable` is set",
                "data: Forbidden: field is immutable when `immutable` is set",
                "binaryData: Forbidden: field is immutable when `immutable` is set",
            ],
        );
    }
}
