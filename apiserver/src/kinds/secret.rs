//! Secret: `stringData` becomes `data`, typed secrets must hold what their type promises.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use scaleup_api::names;
use serde_json::Value;

use super::configmap::{IMMUTABLE_IS_SET, MAX_DATA_BYTES};
use super::field::{self, Errors, Path};
use crate::error::FieldError;
use crate::registry::{RuleContext, Rules, SelectableField};

/// Annotation of a service account token secret that names the account.
const SERVICE_ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";

/// What field selectors may name.
pub const SELECTABLE: &[SelectableField] =
    &[SelectableField { path: "type", get: |secret| field::text_at(secret, "/type") }];

/// Rules of Secrets.
pub struct SecretRules;

impl Rules for SecretRules {
    type Object = Secret;

    fn default(&self, object: &mut Secret) {
        if let Some(strings) = object.string_data.take() {
            let data = object.data.get_or_insert_default();
            data.extend(strings.into_iter().map(|(key, value)| (key, ByteString(value.into_bytes()))));
        }
        if field::text(&object.type_).is_empty() {
            object.type_ = Some("Opaque".into());
        }
    }

    fn validate(&self, object: &Secret, _: &RuleContext<'_>, errors: &mut Errors) {
        let data_at = Path::new("data");
        let mut bytes = 0;
        for (key, value) in object.data.iter().flatten() {
            field::format(errors, &data_at.key(key), key, names::config_key);
            bytes += value.0.len();
        }
        if bytes > MAX_DATA_BYTES {
            errors.push(FieldError::too_long(data_at, MAX_DATA_BYTES));
        }
        validate_type(object, errors);
    }

    fn validate_update(&self, object: &Secret, old: &Secret, _: &RuleContext<'_>, errors: &mut Errors) {
        field::immutable(errors, &Path::new("type"), &object.type_, &old.type_);
        if !field::flag(old.immutable) {
            return;
        }
        if !field::flag(object.immutable) {
            errors.push(FieldError::forbidden("immutable", IMMUTABLE_IS_SET));
        }
        // Compared without printing: a secret's values never end up in an error.
        if object.data.iter().flatten().ne(old.data.iter().flatten()) {
            errors.push(FieldError::forbidden("data", IMMUTABLE_IS_SET));
        }
    }
}

/// What a well-known type requires (`ValidateSecret`).
fn validate_type(secret: &Secret, errors: &mut Errors) {
    let data_at = Path::new("data");
    let get = |key: &str| secret.data.as_ref().and_then(|d| d.get(key)).map(|v| v.0.as_slice());
    let mut require = |keys: &[&str]| {
        for key in keys.iter().filter(|key| get(key).is_none()) {
            errors.push(FieldError::required(data_at.key(key), ""));
        }
    };
    match field::text(&secret.type_) {
        "kubernetes.io/service-account-token" => {
            let name = secret.metadata.annotations.as_ref().and_then(|a| a.get(SERVICE_ACCOUNT_NAME));
            if name.is_none_or(String::is_empty) {
                let at = Path::new("metadata.annotations");
                errors.push(FieldError::required(at.key(SERVICE_ACCOUNT_NAME), ""));
            }
        }
        "kubernetes.io/dockercfg" => require_json(errors, &data_at, ".dockercfg", get(".dockercfg")),
        "kubernetes.io/dockerconfigjson" => {
            require_json(errors, &data_at, ".dockerconfigjson", get(".dockerconfigjson"));
        }
        "kubernetes.io/basic-auth" if get("username").is_none() && get("password").is_none() => {
            require(&["username", "password"]);
        }
        "kubernetes.io/ssh-auth" if get("ssh-privatekey").is_none_or(<[u8]>::is_empty) => {
            errors.push(FieldError::required(data_at.key("ssh-privatekey"), ""));
        }
        "kubernetes.io/tls" => require(&["tls.crt", "tls.key"]),
        _ => {}
    }
}

fn require_json(errors: &mut Errors, data_at: &Path<'_>, key: &str, value: Option<&[u8]>) {
    let Some(value) = value else {
        errors.push(FieldError::required(data_at.key(key), ""));
        return;
    };
    if !matches!(serde_json::from_slice(value), Ok(Value::Object(_))) {
        errors.push(FieldError::invalid(data_at.key(key), "<secret contents redacted>", "must be a JSON object"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::field::test::*;
    use super::*;

    #[test]
    fn string_data_is_merged_and_dropped() {
        let stored = create(SecretRules, "{metadata: {name: a}, data: {a: AAA=, b: AAA=}, stringData: {b: hi}}");
        let stored = stored.expect("valid");
        contains(&stored, &json!({"type": "Opaque", "data": {"a": "AAA=", "b": "aGk="}}));
        assert!(stored.get("stringData").is_none());
    }

    #[test]
    fn types_hold_what_they_promise() {
        let check = |kind: &str, data: &str, expected: &[&str]| {
            let text = format!("{{metadata: {{name: a}}, type: kubernetes.io/{kind}, stringData: {data}}}");
            if expected.is_empty() {
                assert!(create(SecretRules, &text).is_ok(), "{text}");
            } else {
                refused(SecretRules, &text, expected);
            }
        };
        check("tls", "{tls.crt: x, tls.key: y}", &[]);
        check("tls", "{tls.crt: x}", &["data[tls.key]: Required value"]);
        check("ssh-auth", "{ssh-privatekey: ''}", &["data[ssh-privatekey]: Required value"]);
        check("basic-auth", "{password: x}", &[]);
        check("basic-auth", "{}", &["data[username]: Required value", "data[password]: Required value"]);
        check("dockerconfigjson", "{.dockerconfigjson: '{}'}", &[]);
        let redacted = "data[.dockercfg]: Invalid value: \"<secret contents redacted>\": must be a JSON object";
        check("dockercfg", "{.dockercfg: 'hush'}", &[redacted]);
        let annotation = "metadata.annotations[kubernetes.io/service-account.name]: Required value";
        check("service-account-token", "{}", &[annotation]);
        check("anything", "{}", &[]);
    }

    #[test]
    fn type_and_immutable_data_stay() {
        let old = "{metadata: {name: a}, immutable: true, stringData: {a: b}}";
        assert!(update(|| SecretRules, old, old).is_ok());
        same_messages(
            update(|| SecretRules, old, "{metadata: {name: a}, immutable: true, type: x, stringData: {a: c}}"),
            &[
                "type: Invalid value: \"x\": field is immutable",
                "data: Forbidden: field is immutable when `immutable` is set",
            ],
        );
    }
}
