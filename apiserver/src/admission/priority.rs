//! `Priority`: a pod's priority comes from its PriorityClass, and from nowhere else.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Attributes, Plugin, text};
use crate::cache::Reader;
use crate::error::ApiError;

const GROUP: &str = "scheduling.k8s.io";
const PLURAL: &str = "priorityclasses";
const DEFAULT_POLICY: &str = "PreemptLowerPriority";

pub(super) struct Priority;

#[async_trait]
impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }
    async fn mutate(&self, server: &Arc<crate::Server>, attributes: &mut Attributes<'_>) -> Result<(), ApiError> {
        if attributes.is("", "pods") && attributes.object["spec"].is_object() {
            match attributes.old {
                None if attributes.creates() => assign(&*server.caches, attributes)?,
                Some(old) if attributes.updates() => keep(attributes.object, old),
                _ => {}
            }
        }
        Ok(())
    }
    async fn validate(&self, server: &Arc<crate::Server>, attributes: &Attributes<'_>) -> Result<(), ApiError> {
        if attributes.is(GROUP, PLURAL) && !attributes.deletes() {
            one_default(&*server.caches, attributes)?;
        }
        Ok(())
    }
}

/// Name, value and preemption policy of a class.
struct Class {
    name: String,
    value: i64,
    policy: String,
}

impl Class {
    fn of(class: &Value) -> Self {
        let policy = text(class, &["preemptionPolicy"]);
        Self {
            name: text(class, &["metadata", "name"]).to_owned(),
            value: class["value"].as_i64().unwrap_or(0),
            policy: if policy.is_empty() { DEFAULT_POLICY } else { policy }.to_owned(),
        }
    }
}

/// The class marked as default with the lowest value, as upstream picks among several; else no class, priority 0.
fn default_class(caches: &dyn Reader) -> Class {
    let classes = caches.list(GROUP, PLURAL, None);
    let defaults = classes.iter().map(|c| c.value()).filter(|c| c["globalDefault"] == true).map(|c| Class::of(&c));
    let none = Class { name: String::new(), value: 0, policy: DEFAULT_POLICY.into() };
    defaults.min_by_key(|c| c.value).unwrap_or(none)
}

fn assign(caches: &dyn Reader, attributes: &mut Attributes<'_>) -> Result<(), ApiError> {
    let spec = &attributes.object["spec"];
    let wanted = text(spec, &["priorityClassName"]);
    let class = if wanted.is_empty() {
        default_class(caches)
    } else {
        let found = caches.get(GROUP, PLURAL, "", wanted);
        let found =
            found.ok_or_else(|| attributes.forbidden(format_args!("no PriorityClass with name {wanted} was found")))?;
        Class::of(&found.value())
    };
    if let Some(given) = spec["priority"].as_i64().filter(|p| *p != class.value) {
        return Err(attributes.forbidden(format_args!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
             computed {} from the given PriorityClass name",
            class.value
        )));
    }
    let given = text(spec, &["preemptionPolicy"]);
    if !given.is_empty() && given != class.policy {
        return Err(attributes.forbidden(format_args!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
             controller computed {} from the given PriorityClass name",
            class.policy
        )));
    }
    let spec = &mut attributes.object["spec"];
    if !class.name.is_empty() {
        spec["priorityClassName"] = class.name.into();
    }
    spec["priority"] = json!(class.value);
    spec["preemptionPolicy"] = class.policy.into();
    Ok(())
}

/// What an update leaves out stays, so that old manifests can be applied again.
fn keep(object: &mut Value, old: &Value) {
    if object["spec"]["priorityClassName"] != old["spec"]["priorityClassName"] {
        return;
    }
    for field in ["priority", "preemptionPolicy"] {
        if object["spec"][field].is_null() && !old["spec"][field].is_null() {
            object["spec"][field] = old["spec"][field].clone();
        }
    }
}

fn one_default(caches: &dyn Reader, attributes: &Attributes<'_>) -> Result<(), ApiError> {
    if attributes.object["globalDefault"] != true {
        return Ok(());
    }
    let classes = caches.list(GROUP, PLURAL, None);
    match classes.iter().find(|c| c.name != attributes.name && c.value()["globalDefault"] == true) {
        Some(other) => Err(attributes.forbidden(format_args!(
            "PriorityClass {} is already marked as default. Only one default can exist",
            other.name
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Write;
    use super::*;
    use crate::auth::testing::MapReader;

    fn class(name: &str, value: i64, default: bool, policy: Option<&str>) -> (&'static str, &'static str, Value) {
        let object =
            json!({"metadata": {"name": name}, "value": value, "globalDefault": default, "preemptionPolicy": policy});
        (GROUP, PLURAL, object)
    }

    fn check(classes: &[(&str, &str, Value)], spec: Value, expected: Result<(&str, i64, &str), &str>) {
        let reader = MapReader::new(classes);
        let mut write =
            Write::create("", "Pod", "pods", json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec}));
        let result = write.with(|a| assign(&*reader, a));
        match (result, expected) {
            (Ok(()), Ok((name, value, policy))) => {
                let spec = &write.object["spec"];
                assert_eq!(text(spec, &["priorityClassName"]), name);
                assert_eq!((spec["priority"].as_i64(), text(spec, &["preemptionPolicy"])), (Some(value), policy));
            }
            (Err(error), Err(text)) => {
                assert_eq!(error.code.as_u16(), 403);
                assert!(error.message.contains(text), "{}", error.message);
            }
            (got, expected) => panic!("{got:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn priority_comes_from_the_class() {
        let classes = [class("high", 1000, false, Some("Never")), class("low", 10, true, None)];
        check(&[], json!({}), Ok(("", 0, DEFAULT_POLICY)));
        check(&classes, json!({}), Ok(("low", 10, DEFAULT_POLICY)));
        check(&classes, json!({"priorityClassName": "high"}), Ok(("high", 1000, "Never")));
        check(&classes, json!({"priorityClassName": "high", "priority": 1000}), Ok(("high", 1000, "Never")));
        check(
            &classes,
            json!({"priorityClassName": "gone"}),
            Err("pods \"p\" is forbidden: no PriorityClass with name gone was found"),
        );
        check(
            &classes,
            json!({"priority": 5}),
            Err("the integer value of priority (5) must not be provided in pod spec"),
        );
        check(&classes, json!({"preemptionPolicy": "Never"}), Err("the string value of PreemptionPolicy (Never)"));
    }

    #[test]
    fn updates_keep_the_priority() {
        let old = json!({"spec": {"priorityClassName": "high", "priority": 1000, "preemptionPolicy": "Never"}});
        let mut object = json!({"spec": {"priorityClassName": "high"}});
        keep(&mut object, &old);
        assert_eq!(object, old);
    }

    #[test]
    fn only_one_class_is_the_default() {
        let reader = MapReader::new(&[class("low", 10, true, None)]);
        let ask = |name: &str, default: bool| {
            let (_, _, object) = class(name, 1, default, None);
            Write::create(GROUP, "PriorityClass", PLURAL, object).with(|a| one_default(&*reader, a))
        };
        assert!(ask("low", true).is_ok() && ask("other", false).is_ok());
        assert!(ask("other", true).unwrap_err().message.contains("PriorityClass low is already marked as default"));
    }
}
