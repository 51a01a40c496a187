//! The world `admission`: whether a write to the API goes through, and how.

use serde_json::Value;

pub use crate::bindings::admission::scaleup::policy::admission_types::{
    Answer, Cause, Denial, Input, Label, Operation, Phase, User, Verdict,
};

/// Allows, denies or changes writes to the API.
pub trait Admitter: 'static {
    /// What the plugin's configuration is; [`crate::NoConfig`] for none.
    type Config: serde::de::DeserializeOwned;

    /// Called once per instance, and an instance answers once.
    fn new(config: Self::Config) -> Self;

    /// Called for each write that the plugin is bound to. Limit by default: 50 million instructions, 1 s.
    fn admit(&self, input: Input) -> Answer;
}

impl Input {
    /// The object that is written; `Null` on a delete.
    pub fn parsed(&self) -> Value {
        parse(self.object.as_deref())
    }

    /// The stored object; `Null` on a create.
    pub fn parsed_old(&self) -> Value {
        parse(self.old_object.as_deref())
    }

    /// A label of the namespace.
    pub fn namespace_label(&self, key: &str) -> Option<&str> {
        self.namespace_labels.iter().find(|label| label.key == key).map(|label| label.value.as_str())
    }
}

/// The API server's JSON is valid.
fn parse(text: Option<&str>) -> Value {
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Value::Null)
}

impl Answer {
    /// The write goes on.
    pub fn allow() -> Self {
        Self { verdict: Verdict::Allow, patch: None, warnings: Vec::new() }
    }

    /// The write is refused.
    pub fn deny(message: impl Into<String>, causes: Vec<Cause>) -> Self {
        Self { verdict: Verdict::Deny(Denial { message: message.into(), causes }), patch: None, warnings: Vec::new() }
    }

    /// With a JSON patch (RFC 6902): an array of operations, e.g. `json!([{"op": "add", "path": "/metadata/labels/a", "value": "b"}])`. Only in [`Phase::Mutate`].
    #[must_use]
    pub fn patch(mut self, operations: &Value) -> Self {
        self.patch = Some(operations.to_string());
        self
    }

    /// With a warning for the client: 1 to 256 bytes.
    #[must_use]
    pub fn warn(mut self, warning: impl Into<String>) -> Self {
        self.warnings.push(warning.into());
        self
    }
}

/// What is wrong with a field, e.g. `FieldValueForbidden` at `spec.containers[0].image`.
pub fn cause(reason: &str, field: impl Into<String>, message: impl Into<String>) -> Cause {
    Cause { reason: reason.to_owned(), field: field.into(), message: message.into() }
}
