//! Annotations that a Deployment keeps on its ReplicaSets: revision, its history, desired and maximal size. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use kube::ResourceExt;

use super::strategy;

/// Number of the rollout, on Deployment and ReplicaSet.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// Earlier revisions of a ReplicaSet that was rolled back to, comma-separated.
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The Deployment's `spec.replicas` when the ReplicaSet was last scaled.
pub const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
/// The same plus surge.
pub const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const ROLLBACK_TO: &str = "deprecated.deployment.rollback.to";

/// Annotations of a Deployment that its ReplicaSets do not inherit.
const NOT_INHERITED: [&str; 6] =
    [LAST_APPLIED, REVISION, REVISION_HISTORY, DESIRED_REPLICAS, MAX_REPLICAS, ROLLBACK_TO];
/// Longest history kept (upstream's `revHistoryLimitInChars`).
const MAX_HISTORY_BYTES: usize = 2_000;

/// Annotations to set.
pub type Changes = BTreeMap<String, String>;

/// The revision of a ReplicaSet; 0 if it has none or a malformed one.
pub fn of(set: &ReplicaSet) -> i64 {
    set.annotations().get(REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// The size annotation `name`, if well-formed.
pub fn number(set: &ReplicaSet, name: &str) -> Option<i32> {
    set.annotations().get(name).and_then(|n| n.parse().ok())
}

/// The size annotations for the Deployment as it is now.
pub fn sizes(d: &Deployment) -> [(&'static str, i32); 2] {
    let desired = strategy::desired(d);
    [(DESIRED_REPLICAS, desired), (MAX_REPLICAS, desired.saturating_add(strategy::max_surge(d)))]
}

/// What to set on the newest ReplicaSet (upstream's `SetNewReplicaSetAnnotations`): inherited annotations, its
/// revision if it is to become newer than `revision`, and the history of a rollback.
pub fn changes(d: &Deployment, set: &ReplicaSet, revision: i64) -> Changes {
    let current = set.annotations();
    let inherited =
        d.annotations().iter().filter(|(k, v)| !NOT_INHERITED.contains(&k.as_str()) && current.get(*k) != Some(*v));
    let mut changes: Changes = inherited.map(|(k, v)| (k.clone(), v.clone())).collect();
    let old = current.get(REVISION).map(String::as_str).unwrap_or_default();
    let Ok(old_number) = (if old.is_empty() { Ok(0) } else { old.parse::<i64>() }) else { return changes };
    if old_number < revision {
        changes.insert(REVISION.into(), revision.to_string());
        if !old.is_empty() {
            let history = current.get(REVISION_HISTORY).map(String::as_str).unwrap_or_default();
            changes.insert(REVISION_HISTORY.into(), appended(history, old));
        }
    }
    changes
}

/// `history,old`, without its oldest entries if too long.
fn appended(history: &str, old: &str) -> String {
    let mut entries: Vec<&str> = history.split(',').filter(|e| !e.is_empty()).collect();
    entries.push(old);
    let mut length: usize = entries.iter().map(|e| e.len() + 1).sum();
    let mut start = 0;
    while length > MAX_HISTORY_BYTES + 1 && start + 1 < entries.len() {
        length -= entries[start].len() + 1;
        start += 1;
    }
    entries[start..].join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(deployment: Value, set: Value, revision: i64, want: Value) {
        let d: Deployment = serde_json::from_value(json!({"metadata": {"annotations": deployment}})).unwrap();
        let s: ReplicaSet = serde_json::from_value(json!({"metadata": {"annotations": set}})).unwrap();
        assert_eq!(json!(changes(&d, &s, revision)), want);
    }

    #[test]
    fn annotations_are_inherited_and_revisions_grow() {
        check(json!({}), json!({}), 1, json!({REVISION: "1"}));
        check(json!({}), json!({REVISION: "3"}), 2, json!({}));
        check(json!({}), json!({REVISION: "x"}), 2, json!({}));
        check(
            json!({"kubernetes.io/change-cause": "why", LAST_APPLIED: "{}", REVISION: "7"}),
            json!({REVISION: "1"}),
            1,
            json!({"kubernetes.io/change-cause": "why"}),
        );
        check(json!({}), json!({REVISION: "1"}), 3, json!({REVISION: "3", REVISION_HISTORY: "1"}));
        check(
            json!({}),
            json!({REVISION: "3", REVISION_HISTORY: "1"}),
            5,
            json!({REVISION: "5", REVISION_HISTORY: "1,3"}),
        );
    }

    #[test]
    fn history_is_bounded() {
        let long = (1000..2000).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        let history = appended(&long, "2000");
        assert!(history.len() <= MAX_HISTORY_BYTES && history.ends_with("1999,2000"), "{}", history.len());
    }

    #[test]
    fn malformed_numbers_count_as_none() {
        let set = json!({"metadata": {"annotations": {REVISION: "99999999999999999999", DESIRED_REPLICAS: "-"}}});
        let set: ReplicaSet = serde_json::from_value(set).unwrap();
        assert_eq!((of(&set), number(&set, DESIRED_REPLICAS)), (0, None));
    }
}
