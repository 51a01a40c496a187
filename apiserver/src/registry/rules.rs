//! What a kind decides about its own objects: types, defaults, validation. Pure: no I/O, no clock, no other objects.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::FieldError;

/// What rules may know about the write at hand.
#[derive(Clone, Copy, Debug, Default)]
pub struct RuleContext<'a> {
    /// Namespace of the object; empty for cluster scope.
    pub namespace: &'a str,
    /// Subresource being written: `status`, …
    pub subresource: Option<&'a str>,
}

/// A decoded body.
pub struct Decoded {
    /// Canonical form: JSON types checked, unknown fields dropped, defaults filled.
    pub object: Value,
    /// Paths of fields that the schema does not know, e.g. `spec.replica`.
    pub unknown_fields: Vec<String>,
}

/// Typed rules of one kind. Implementations are stateless unit structs in `kinds/`.
///
/// The generic handler does everything that is the same for every kind before these run: metadata (names, UIDs,
/// timestamps, generation, immutability of identity), keeping `status` on spec writes and everything but `status` on status writes.
pub trait Rules: Send + Sync + 'static {
    /// The k8s-openapi type.
    type Object: Serialize + DeserializeOwned + Send;

    /// Fills defaults as upstream's `SetDefaults_*` do. Idempotent.
    fn default(&self, object: &mut Self::Object) {
        let _ = object;
    }
    /// Sets and clears what a client does not decide on create (initial status, say).
    fn prepare_create(&self, object: &mut Self::Object, cx: &RuleContext<'_>) {
        let _ = (object, cx);
    }
    /// Carries over what an update may not touch.
    fn prepare_update(&self, object: &mut Self::Object, old: &Self::Object, cx: &RuleContext<'_>) {
        let _ = (object, old, cx);
    }
    /// Validates a new object; pushes every mistake, not just the first.
    fn validate(&self, object: &Self::Object, cx: &RuleContext<'_>, errors: &mut Vec<FieldError>) {
        let _ = (object, cx, errors);
    }
    /// Validates what only a new object must hold to. [`Rules::validate`] has run on it already.
    fn validate_create(&self, object: &Self::Object, cx: &RuleContext<'_>, errors: &mut Vec<FieldError>) {
        let _ = (object, cx, errors);
    }
    /// Validates a change, immutable fields above all. [`Rules::validate`] has run on the new object already.
    fn validate_update(
        &self,
        object: &Self::Object,
        old: &Self::Object,
        cx: &RuleContext<'_>,
        errors: &mut Vec<FieldError>,
    ) {
        let _ = (object, old, cx, errors);
    }
    /// Warnings for the client (deprecated fields and the like).
    fn warnings(&self, object: &Self::Object) -> Vec<String> {
        let _ = object;
        Vec::new()
    }
    /// Seconds between the request to delete and the removal: `None` if the kind is removed at once (every kind but
    /// pods). `requested` is `gracePeriodSeconds` of the request. Upstream's `CheckGracefulDelete`.
    fn grace_period_s(&self, object: &Self::Object, requested: Option<i64>) -> Option<i64> {
        let _ = (object, requested);
        None
    }
    /// Changes an object whose deletion begins but is not done at once (a namespace becomes `Terminating`).
    fn begin_deletion(&self, object: &mut Self::Object) {
        let _ = object;
    }
    /// What beside `metadata.finalizers` keeps an object that is being deleted (a namespace's `spec.finalizers`).
    fn is_held(&self, object: &Self::Object) -> bool {
        let _ = object;
        false
    }
    /// Whether names of this kind may be any path segment (RBAC kinds: `system:node`), not only DNS subdomains.
    fn names_are_path_segments(&self) -> bool {
        false
    }
    /// How a name is validated beyond that; upstream's `ValidateXName`. Default: DNS-1123 subdomain.
    fn name_is_label(&self) -> bool {
        false
    }
}

/// [`Rules`] with the type erased; what a registry row holds. CRDs implement it over a schema.
pub trait AnyRules: Send + Sync + 'static {
    /// Checks JSON types, finds unknown fields, fills defaults. The error names the field that did not decode.
    fn decode(&self, raw: Value) -> Result<Decoded, String>;
    /// Prepare, default, validate a new object.
    fn create(&self, object: Value, cx: &RuleContext<'_>) -> Result<Value, Vec<FieldError>>;
    /// Prepare, default, validate a change.
    fn update(&self, object: Value, old: &Value, cx: &RuleContext<'_>) -> Result<Value, Vec<FieldError>>;
    /// Warnings for the client.
    fn warnings(&self, object: &Value) -> Vec<String>;
    /// See [`Rules::grace_period_s`].
    fn grace_period_s(&self, object: &Value, requested: Option<i64>) -> Option<i64>;
    /// See [`Rules::begin_deletion`].
    fn begin_deletion(&self, object: Value) -> Value;
    /// See [`Rules::is_held`].
    fn is_held(&self, object: &Value) -> bool;
    /// See [`Rules::names_are_path_segments`].
    fn names_are_path_segments(&self) -> bool;
    /// See [`Rules::name_is_label`].
    fn name_is_label(&self) -> bool;
}

/// Adapter from [`Rules`] to [`AnyRules`].
pub struct Typed<R>(pub R);

fn type_error(e: &serde_json::Error) -> Vec<FieldError> {
    vec![FieldError::new("", crate::error::FieldErrorKind::TypeInvalid, Value::Null, e.to_string())]
}

/// A path as upstream writes it: `spec.containers[0].image`.
fn field_path(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", field_path(parent)),
        Path::Map { parent, key } => match field_path(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => field_path(parent),
    }
}

impl<R: Rules> AnyRules for Typed<R> {
    fn decode(&self, raw: Value) -> Result<Decoded, String> {
        let mut unknown_fields = Vec::new();
        let mut note = |path: serde_ignored::Path<'_>| unknown_fields.push(field_path(&path));
        let decoded: Result<R::Object, _> =
            serde_path_to_error::deserialize(serde_ignored::Deserializer::new(raw, &mut note));
        let mut object = decoded.map_err(|e| {
            let path = e.path().to_string();
            if path == "." { e.into_inner().to_string() } else { format!("{path}: {}", e.into_inner()) }
        })?;
        self.0.default(&mut object);
        Ok(Decoded { object: serde_json::to_value(&object).map_err(|e| e.to_string())?, unknown_fields })
    }

    fn create(&self, object: Value, cx: &RuleContext<'_>) -> Result<Value, Vec<FieldError>> {
        let mut object: R::Object = serde_json::from_value(object).map_err(|e| type_error(&e))?;
        self.0.prepare_create(&mut object, cx);
        self.0.default(&mut object);
        let mut errors = Vec::new();
        self.0.validate(&object, cx, &mut errors);
        self.0.validate_create(&object, cx, &mut errors);
        if errors.is_empty() { serde_json::to_value(&object).map_err(|e| type_error(&e)) } else { Err(errors) }
    }

    fn update(&self, object: Value, old: &Value, cx: &RuleContext<'_>) -> Result<Value, Vec<FieldError>> {
        let mut object: R::Object = serde_json::from_value(object).map_err(|e| type_error(&e))?;
        let old = R::Object::deserialize(old).map_err(|e| type_error(&e))?;
        self.0.prepare_update(&mut object, &old, cx);
        self.0.default(&mut object);
        let mut errors = Vec::new();
        self.0.validate(&object, cx, &mut errors);
        self.0.validate_update(&object, &old, cx, &mut errors);
        if errors.is_empty() { serde_json::to_value(&object).map_err(|e| type_error(&e)) } else { Err(errors) }
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        R::Object::deserialize(object).map(|o| self.0.warnings(&o)).unwrap_or_default()
    }
    fn grace_period_s(&self, object: &Value, requested: Option<i64>) -> Option<i64> {
        R::Object::deserialize(object).ok().and_then(|o| self.0.grace_period_s(&o, requested))
    }
    fn begin_deletion(&self, object: Value) -> Value {
        let Ok(mut typed) = R::Object::deserialize(&object) else { return object };
        self.0.begin_deletion(&mut typed);
        serde_json::to_value(&typed).unwrap_or(object)
    }
    fn is_held(&self, object: &Value) -> bool {
        R::Object::deserialize(object).is_ok_and(|o| self.0.is_held(&o))
    }
    fn names_are_path_segments(&self) -> bool {
        self.0.names_are_path_segments()
    }
    fn name_is_label(&self) -> bool {
        self.0.name_is_label()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    struct Pods;
    impl Rules for Pods {
        type Object = k8s_openapi::api::core::v1::Pod;
    }

    #[test]
    fn unknown_fields_are_named_as_upstream_does() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "nam": 1},
            "spec": {"containers": [{"name": "a"}, {"name": "b", "imag": "c"}], "foo": {}}});
        let mut unknown = Typed(Pods).decode(pod).unwrap().unknown_fields;
        unknown.sort();
        assert_eq!(unknown, ["metadata.nam", "spec.containers[1].imag", "spec.foo"]);
    }

    #[test]
    fn a_type_error_names_the_field() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"},
            "spec": {"containers": [{"name": "a", "ports": [{"containerPort": "x"}]}]}});
        let error = Typed(Pods).decode(pod).err().unwrap();
        assert!(error.starts_with("spec.containers[0].ports[0].containerPort: "), "{error}");
    }
}
