//! Aggregated cluster roles: `admin`, `edit`, `view` and users' own are the union of the roles that their selectors pick.
//!
//! The authorizer resolves them while compiling, so they are never stale; [`reconcile`] writes the result into the
//! objects, where upstream's controller puts it and `kubectl describe clusterrole` looks for it.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::rbac::v1 as rbac;
use scaleup_api::selector::LabelSelector;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::RBAC_GROUP;
use super::rule::Rule;
use crate::cache::{Labels, Reader};
use crate::error::ApiError;

/// How often [`run`] looks at the cache's revision.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// What aggregation needs of a cluster role.
#[derive(Debug)]
pub struct ClusterRole {
    /// `metadata.name`
    pub name: String,
    labels: Labels,
    rules: Arc<[Rule]>,
    /// `None`: not aggregated.
    selectors: Option<Vec<LabelSelector>>,
}

impl ClusterRole {
    /// From the object's parts; a selector that cannot be read selects nothing.
    pub fn new(name: &str, labels: &Labels, rules: Arc<[Rule]>, aggregation: Option<rbac::AggregationRule>) -> Self {
        let selectors = aggregation.map(|a| {
            let selectors = a.cluster_role_selectors.unwrap_or_default();
            selectors.iter().map(|s| LabelSelector::from_k8s(s).unwrap_or_else(|_| LabelSelector::nothing())).collect()
        });
        Self { name: name.into(), labels: labels.clone(), rules, selectors }
    }

    fn selects(&self, other: &ClusterRole) -> bool {
        self.name != other.name
            && self.selectors.as_ref().is_some_and(|all| all.iter().any(|s| s.matches_by(|key| other.labels.get(key))))
    }
}

/// The rules of each role, in the order given. Aggregation may be nested (`view` → `edit` → `admin`) and even circular.
pub fn resolve(roles: &[&ClusterRole]) -> Vec<Arc<[Rule]>> {
    (0..roles.len())
        .map(|i| if roles[i].selectors.is_none() { roles[i].rules.clone() } else { union(roles, i) })
        .collect()
}

/// Rules of the not aggregated roles that are reachable from `start`, in the order of names, without repetition.
fn union(roles: &[&ClusterRole], start: usize) -> Arc<[Rule]> {
    let mut reached = vec![false; roles.len()];
    let mut open = vec![start];
    reached[start] = true;
    while let Some(at) = open.pop() {
        for (i, role) in roles.iter().enumerate() {
            if !reached[i] && roles[at].selects(role) {
                reached[i] = true;
                open.push(i);
            }
        }
    }
    let mut sources: Vec<&ClusterRole> =
        roles.iter().zip(&reached).filter(|(r, yes)| **yes && r.selectors.is_none()).map(|(r, _)| *r).collect();
    sources.sort_by(|a, b| a.name.cmp(&b.name));
    let mut seen = std::collections::HashSet::new();
    let rules = sources.iter().flat_map(|r| r.rules.iter()).filter(|r| seen.insert(*r));
    rules.cloned().collect()
}

fn to_json(rule: &Rule) -> Value {
    let mut out = json!({"verbs": rule.verbs});
    for (key, list) in [
        ("apiGroups", &rule.api_groups),
        ("resources", &rule.resources),
        ("resourceNames", &rule.resource_names),
        ("nonResourceURLs", &rule.non_resource_urls),
    ] {
        if !list.is_empty() {
            out[key] = json!(list);
        }
    }
    out
}

/// Aggregated roles whose stored rules are not (any more) what their selectors pick: name and rules to write.
pub fn plan(caches: &dyn Reader) -> Vec<(String, Vec<Value>)> {
    let roles: Vec<ClusterRole> = caches
        .list(RBAC_GROUP, "clusterroles", None)
        .iter()
        .filter_map(|object| {
            let role: rbac::ClusterRole = serde_json::from_slice(&object.json).ok()?;
            let rules = role.rules.unwrap_or_default().into_iter().map(Rule::from).collect();
            Some(ClusterRole::new(&object.name, &object.labels, rules, role.aggregation_rule))
        })
        .collect();
    let refs: Vec<&ClusterRole> = roles.iter().collect();
    let wanted = resolve(&refs);
    let stale = roles.iter().zip(wanted).filter(|(role, rules)| role.rules != *rules);
    stale.map(|(role, rules)| (role.name.clone(), rules.iter().map(to_json).collect())).collect()
}

/// Writes what [`plan`] says; how many roles were written.
pub async fn reconcile(server: &Arc<crate::Server>) -> Result<usize, ApiError> {
    let stale = plan(&*server.caches);
    for (name, rules) in &stale {
        let set = |mut role: Value| {
            role["rules"] = Value::Array(rules.clone());
            Ok(role)
        };
        server.update_stored(RBAC_GROUP, "clusterroles", "", name, set).await?;
    }
    Ok(stale.len())
}

/// Keeps aggregated roles' stored rules right until `shutdown`; woken by a timer, it looks only when cluster roles changed.
pub async fn run(server: Arc<crate::Server>, shutdown: CancellationToken) {
    let mut seen = None;
    loop {
        let revision = server.caches.changed(RBAC_GROUP, "clusterroles");
        if seen != Some(revision) {
            match reconcile(&server).await {
                Ok(_) => seen = Some(revision),
                Err(error) => tracing::warn!(%error, "aggregated cluster roles cannot be written"),
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(CHECK_EVERY) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::auth::testing::MapReader;

    fn role(
        name: &str,
        labels: &[&str],
        verbs: &[&str],
        aggregate: Option<&str>,
    ) -> (&'static str, &'static str, Value) {
        let labels: BTreeMap<&str, &str> = labels.iter().map(|l| (*l, "true")).collect();
        let mut role = json!({
            "metadata": {"name": name, "labels": labels},
            "rules": verbs.iter().map(|v| json!({"verbs": [v], "apiGroups": [""], "resources": ["pods"]})).collect::<Vec<_>>(),
        });
        if let Some(label) = aggregate {
            role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
        }
        (RBAC_GROUP, "clusterroles", role)
    }

    fn verbs(plan: &[(String, Vec<Value>)], name: &str) -> Vec<String> {
        let (_, rules) = plan.iter().find(|(n, _)| n == name).unwrap();
        rules.iter().map(|r| r["verbs"][0].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn nested_and_circular_roles_are_resolved() {
        let reader = MapReader::new(&[
            role("view", &["to-edit", "to-loop"], &[], Some("to-view")),
            role("edit", &[], &["stale"], Some("to-edit")),
            role("a-view", &["to-view"], &["get", "list"], None),
            role("a-edit", &["to-edit"], &["create", "get"], None),
            role("loop", &["to-view"], &[], Some("to-loop")),
            role("plain", &[], &["patch"], None),
        ]);
        let plan = plan(&*reader);
        assert_eq!(verbs(&plan, "view"), ["get", "list"]);
        assert_eq!(verbs(&plan, "edit"), ["create", "get", "list"], "nested, once each, stale rules dropped");
        assert_eq!(verbs(&plan, "loop"), ["get", "list"]);
        assert!(plan.iter().all(|(name, _)| name != "plain"));
    }

    #[test]
    fn nothing_is_planned_once_written() {
        let reader = MapReader::new(&[
            role("view", &[], &["get"], Some("to-view")),
            role("a-view", &["to-view"], &["get"], None),
        ]);
        assert_eq!(plan(&*reader), []);
    }
}
