//! Input and answer of the world `admission`, by value; `wit/admission.wit` says what the fields mean.

use serde::{Deserialize, Serialize};
use wasmtime::component::{ComponentType, Lift, Lower};

use crate::check::{at_most, text};

/// Most causes of a denial.
pub const MAX_CAUSES: usize = 32;
/// Most warnings.
pub const MAX_WARNINGS: usize = 8;
/// Most bytes of a patch.
pub const MAX_PATCH_BYTES: usize = 256 * 1024;
/// Most bytes of the object and the old one together.
pub const MAX_OBJECT_BYTES: usize = 8 * 1024 * 1024;

/// What is being done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lower)]
#[component(enum)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Operation {
    #[default]
    #[component(name = "create")]
    Create,
    #[component(name = "update")]
    Update,
    #[component(name = "delete")]
    Delete,
}

/// Which of the two rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lower)]
#[component(enum)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Phase {
    #[default]
    #[component(name = "mutate")]
    Mutate,
    #[component(name = "validate")]
    Validate,
}

/// A label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lower)]
#[component(record)]
#[serde(deny_unknown_fields)]
pub struct Label {
    pub key: String,
    pub value: String,
}

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lower)]
#[component(record)]
#[serde(deny_unknown_fields, default)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
}

/// Everything a decision may depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lower)]
#[component(record)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Input {
    pub phase: Phase,
    pub operation: Operation,
    pub group: String,
    pub version: String,
    pub kind: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    #[component(name = "namespace-labels")]
    pub namespace_labels: Vec<Label>,
    pub tenant: Option<String>,
    pub user: User,
    #[component(name = "dry-run")]
    pub dry_run: bool,
    /// JSON.
    pub object: Option<String>,
    /// JSON.
    #[component(name = "old-object")]
    pub old_object: Option<String>,
    /// Milliseconds since 1970-01-01 UTC.
    #[component(name = "time-ms")]
    pub time_ms: u64,
}

/// What is wrong with one field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lift)]
#[component(record)]
#[serde(deny_unknown_fields)]
pub struct Cause {
    pub reason: String,
    pub field: String,
    pub message: String,
}

/// Why the request is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lift)]
#[component(record)]
#[serde(deny_unknown_fields)]
pub struct Denial {
    pub message: String,
    pub causes: Vec<Cause>,
}

/// Whether the request may go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lift)]
#[component(variant)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    #[component(name = "allow")]
    Allow,
    #[component(name = "deny")]
    Deny(Denial),
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lift)]
#[component(record)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    pub verdict: Verdict,
    /// JSON patch (RFC 6902); its syntax and whether it applies is for the caller to check.
    pub patch: Option<String>,
    pub warnings: Vec<String>,
}

impl Answer {
    /// Whether this is an answer in that phase.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, phase: Phase) -> Result<(), String> {
        at_most("warnings", self.warnings.len(), MAX_WARNINGS)?;
        self.warnings.iter().try_for_each(|warning| text("a warning", warning, 1, 256))?;
        if let Some(patch) = &self.patch {
            at_most("bytes of patch", patch.len(), MAX_PATCH_BYTES)?;
            if phase == Phase::Validate {
                return Err("patches an object in the phase validate".into());
            }
            if matches!(self.verdict, Verdict::Deny(_)) {
                return Err("denies and patches at once".into());
            }
        }
        let Verdict::Deny(denial) = &self.verdict else { return Ok(()) };
        text("the denial's message", &denial.message, 1, 1024)?;
        at_most("causes", denial.causes.len(), MAX_CAUSES)?;
        denial.causes.iter().try_for_each(|cause| {
            text("a cause's reason", &cause.reason, 0, 64)?;
            text("a cause's field", &cause.field, 0, 256)?;
            text("a cause's message", &cause.message, 0, 1024)
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_are_checked() {
        let check = |answer: serde_json::Value, phase, expected: Result<(), &str>| {
            let answer: Answer = serde_json::from_value(answer).unwrap();
            assert_eq!(answer.check(phase), expected.map_err(str::to_owned), "{answer:?}");
        };
        let (allow, deny) = (json!("allow"), json!({"deny": {"message": "no", "causes": []}}));
        check(json!({"verdict": allow, "patch": "[]", "warnings": ["w"]}), Phase::Mutate, Ok(()));
        check(json!({"verdict": deny, "warnings": []}), Phase::Validate, Ok(()));
        let late = Err("patches an object in the phase validate");
        check(json!({"verdict": allow, "patch": "[]", "warnings": []}), Phase::Validate, late);
        check(
            json!({"verdict": deny, "patch": "[]", "warnings": []}),
            Phase::Mutate,
            Err("denies and patches at once"),
        );
        let many = json!({"verdict": allow, "warnings": vec!["w"; 9]});
        check(many, Phase::Mutate, Err("9 warnings, at most 8 are allowed"));
        let silent = json!({"verdict": {"deny": {"message": "", "causes": []}}, "warnings": []});
        check(silent, Phase::Mutate, Err("the denial's message has 0 bytes, not 1 to 1024"));
    }
}
