//! PriorityClass (scheduling.k8s.io): a value that never changes.

use k8s_openapi::api::scheduling::v1::PriorityClass;

use super::field::{self, Errors, Path};
use crate::error::FieldError;
use crate::registry::{RuleContext, Rules};

/// Largest value of a class of a user's own.
const HIGHEST_USER_VALUE: i32 = 1_000_000_000;
/// Prefix of the classes that come with the system.
const SYSTEM_PREFIX: &str = "system-";
/// The classes that come with the system, none of them a global default.
pub const SYSTEM_CLASSES: &[(&str, i32)] =
    &[("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

/// Rules of PriorityClasses.
pub struct PriorityClassRules;

impl Rules for PriorityClassRules {
    type Object = PriorityClass;

    fn default(&self, object: &mut PriorityClass) {
        object.preemption_policy.get_or_insert_with(|| "PreemptLowerPriority".into());
    }

    fn validate(&self, object: &PriorityClass, _: &RuleContext<'_>, errors: &mut Errors) {
        let name = field::text(&object.metadata.name);
        if name.starts_with(SYSTEM_PREFIX) {
            if let Err(why) = known_system_class(name, object) {
                let text = "priority class names with 'system-' prefix are reserved for system use only. error: ";
                errors.push(FieldError::forbidden("metadata.name", format!("{text}{why}")));
            }
        } else if object.value > HIGHEST_USER_VALUE {
            let why = format!("maximum allowed value of a user defined priority is {HIGHEST_USER_VALUE}");
            errors.push(FieldError::forbidden("value", why));
        }
        let policies = &["PreemptLowerPriority", "Never"];
        field::one_of(errors, &Path::new("preemptionPolicy"), field::text(&object.preemption_policy), policies);
    }

    fn validate_update(&self, object: &PriorityClass, old: &PriorityClass, _: &RuleContext<'_>, errors: &mut Errors) {
        if object.value != old.value {
            errors.push(FieldError::forbidden("value", "may not be changed in an update."));
        }
        let at = Path::new("preemptionPolicy");
        field::immutable(errors, &at, &object.preemption_policy, &old.preemption_policy);
    }
}

fn known_system_class(name: &str, class: &PriorityClass) -> Result<(), String> {
    let Some((_, value)) = SYSTEM_CLASSES.iter().find(|(known, _)| *known == name) else {
        return Err(format!("{name} is not a known system priority class"));
    };
    if class.value != *value {
        return Err(format!("value of {name} PriorityClass must be {value}"));
    }
    if field::flag(class.global_default) {
        return Err(format!("globalDefault of {name} PriorityClass must be false"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::field::test::*;
    use super::*;

    #[test]
    fn values_and_reserved_names() {
        let stored = create(PriorityClassRules, "{metadata: {name: high}, value: 1000000000}").expect("valid");
        contains(&stored, &json!({"preemptionPolicy": "PreemptLowerPriority"}));
        assert!(create(PriorityClassRules, "{metadata: {name: system-node-critical}, value: 2000001000}").is_ok());
        refused(
            PriorityClassRules,
            "{metadata: {name: high}, value: 1000000001, preemptionPolicy: Sometimes}",
            &[
                "value: Forbidden: maximum allowed value of a user defined priority is 1000000000",
                "preemptionPolicy: Unsupported value: \"Sometimes\": supported values: \"PreemptLowerPriority\", \"Never\"",
            ],
        );
        refused(
            PriorityClassRules,
            "{metadata: {name: system-mine}, value: 1}",
            &[
                "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: system-mine is not a known system priority class",
            ],
        );
    }

    #[test]
    fn value_and_policy_stay() {
        same_messages(
            update(
                || PriorityClassRules,
                "{metadata: {name: a}, value: 1}",
                "{metadata: {name: a}, value: 2, preemptionPolicy: Never}",
            ),
            &[
                "value: Forbidden: may not be changed in an update.",
                "preemptionPolicy: Invalid value: \"Never\": field is immutable",
            ],
        );
    }
}
