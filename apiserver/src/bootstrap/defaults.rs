//! The default RBAC policy of a cluster that an older server made, or an administrator changed: at each start it gets what it lacks, as
//! upstream's auto-reconciliation has it (`k8s.io/component-helpers/auth/rbac/reconciliation`).
//!
//! Permissions, subjects and selectors are added, never taken away. A binding to another role is made anew: `roleRef` cannot change.
//! What has the annotation `rbac.authorization.kubernetes.io/autoupdate: "false"` is left alone.

use k8s_openapi::api::rbac::v1::PolicyRule;
use serde::Deserialize;
use serde_json::Value;

use super::*;
use crate::auth::rbac::escalation;
use crate::auth::rbac::rule::Rule;
use crate::handler::delete::{DeleteOptions, Deleted, delete_object};

const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// What is to be done about an object of the policy that is there.
#[derive(Debug, PartialEq)]
enum Repair {
    /// Nothing.
    None,
    /// It becomes this.
    Replace(Value),
    /// It is made again as it should be.
    Recreate,
}

/// Creates an object of the policy, or gives an existing one what it lacks.
pub(super) async fn ensure(server: &Arc<Server>, wanted: Value) -> Result<(), ApiError> {
    let Some(there) = ensure_object(server, wanted.clone()).await? else { return Ok(()) };
    let kind = text(&wanted["kind"]).to_owned();
    match repair(&there.value(), &wanted) {
        Repair::None => Ok(()),
        Repair::Replace(merged) => {
            info!(kind, name = %there.name, "default RBAC policy was incomplete: added what it lacked");
            replace(server, merged).await
        }
        Repair::Recreate => {
            let mut cx = context(server, &wanted, Verb::Delete)?;
            let deleted = delete_object(&mut cx, &DeleteOptions::default()).await?;
            if let Deleted::Marked(_) = deleted {
                // Somebody's finalizer holds it; the next start tries again.
                warn!(kind, name = %there.name, "default RBAC policy: a binding to another role cannot be replaced yet");
                return Ok(());
            }
            server.caches.catch_up().await.map_err(storage::cache_error)?;
            info!(kind, name = %there.name, "default RBAC policy: a binding to another role was replaced");
            ensure_object(server, wanted).await.map(|_| ())
        }
    }
}

fn rules(object: &Value) -> Vec<Rule> {
    let rules = object["rules"].as_array().into_iter().flatten();
    rules.filter_map(|rule| PolicyRule::deserialize(rule).ok()).map(Rule::from).collect()
}

/// The items of the list at `path` in `wanted` that `present` does not have there.
fn missing_items(present: &Value, wanted: &Value, path: &str) -> Vec<Value> {
    let list = |object: &Value| object.pointer(path).and_then(Value::as_array).cloned().unwrap_or_default();
    let have = list(present);
    list(wanted).into_iter().filter(|item| !have.contains(item)).collect()
}

/// Pure.
fn repair(present: &Value, wanted: &Value) -> Repair {
    if present["metadata"]["annotations"][AUTOUPDATE] == "false" {
        return Repair::None;
    }
    if present["roleRef"] != wanted["roleRef"] {
        return Repair::Recreate;
    }
    let mut merged = present.clone();
    let add = |field: &mut Value, items: Vec<Value>| {
        if !items.is_empty() {
            let mut all = field.as_array().cloned().unwrap_or_default();
            all.extend(items);
            *field = all.into();
        }
    };
    add(&mut merged["subjects"], missing_items(present, wanted, "/subjects"));
    if wanted["aggregationRule"].is_null() {
        let lacking = escalation::lacking(&rules(present), &rules(wanted));
        add(&mut merged["rules"], lacking.into_iter().map(policy::rule_json).collect());
    } else {
        // Its rules are computed, not kept.
        let selectors = missing_items(present, wanted, "/aggregationRule/clusterRoleSelectors");
        add(&mut merged["aggregationRule"]["clusterRoleSelectors"], selectors);
    }
    for map in ["labels", "annotations"] {
        for (key, value) in wanted["metadata"][map].as_object().into_iter().flatten() {
            if merged["metadata"][map][key].is_null() {
                merged["metadata"][map][key] = value.clone();
            }
        }
    }
    // Looking at an absent field made it null.
    if let Some(fields) = merged.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    if merged == *present { Repair::None } else { Repair::Replace(merged) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn merged(present: &Value, wanted: &Value) -> Value {
        match repair(present, wanted) {
            Repair::Replace(merged) => {
                assert_eq!(repair(&merged, wanted), Repair::None, "once is enough");
                merged
            }
            other => panic!("{other:?}"),
        }
    }

    fn rule(resources: &[&str], verbs: &[&str]) -> Value {
        json!({"apiGroups": [""], "resources": resources, "verbs": verbs})
    }

    #[test]
    fn permissions_that_are_not_covered_are_added() {
        let role = |rules: &[Value]| json!({"metadata": {"name": "a", "labels": {"l": "1"}}, "rules": rules});
        let wanted = role(&[rule(&["pods"], &["get", "list"]), rule(&["nodes"], &["watch"])]);
        let mut present = role(&[rule(&["pods"], &["get"]), rule(&["secrets"], &["get"])]);
        present["metadata"]["labels"]["l"] = json!("2");
        let both = merged(&present, &wanted);
        let expected = [
            rule(&["pods"], &["get"]),
            rule(&["secrets"], &["get"]),
            json!({"verbs": ["watch"], "apiGroups": [""], "resources": ["nodes"]}),
            json!({"verbs": ["list"], "apiGroups": [""], "resources": ["pods"]}),
        ];
        assert_eq!((&both["rules"], &both["metadata"]["labels"]["l"]), (&json!(expected), &json!("2")));
        assert_eq!(repair(&role(&[rule(&["*"], &["*"])]), &wanted), Repair::None, "more is enough");
        let mut kept = role(&[]);
        kept["metadata"]["annotations"] = json!({AUTOUPDATE: "false"});
        assert_eq!(repair(&kept, &wanted), Repair::None);
        assert_eq!(merged(&json!({"metadata": {"name": "a"}}), &wanted)["metadata"]["labels"]["l"], "1");
    }

    #[test]
    fn selectors_and_subjects_are_added_and_bindings_lead_where_they_should() {
        let selector = |label: &str| json!({"matchLabels": {label: "true"}});
        let role = |selectors: &[Value]| json!({"metadata": {"name": "view"}, "aggregationRule": {"clusterRoleSelectors": selectors}, "rules": [rule(&["pods"], &["get"])]});
        let both = merged(&role(&[selector("mine")]), &role(&[selector("view")]));
        assert_eq!(both, role(&[selector("mine"), selector("view")]));
        let plain = json!({"metadata": {"name": "view"}, "rules": []});
        assert_eq!(
            merged(&plain, &role(&[selector("view")]))["aggregationRule"],
            role(&[selector("view")])["aggregationRule"]
        );
        let binding = |role: &str, users: &[&str]| {
            let subjects: Vec<Value> = users.iter().map(|user| json!({"kind": "User", "name": user})).collect();
            json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": role}, "subjects": subjects})
        };
        assert_eq!(merged(&binding("r", &["bob"]), &binding("r", &["ann"])), binding("r", &["bob", "ann"]));
        let mut empty = binding("r", &[]);
        empty.as_object_mut().expect("an object").remove("subjects");
        assert_eq!(merged(&empty, &binding("r", &["ann"])), binding("r", &["ann"]));
        assert_eq!(repair(&empty, &empty), Repair::None);
        assert_eq!(repair(&binding("other", &["ann"]), &binding("r", &["ann"])), Repair::Recreate);
    }
}
