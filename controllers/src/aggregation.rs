//! ClusterRoles with an aggregation rule get the rules of the roles it selects (upstream's ClusterRole aggregation).

use std::sync::Arc;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::{Api, ResourceExt};
use scaleup_api::LabelSelector;
use serde_json::json;

use crate::base::calls::{self, Error};
use crate::base::key::Key;
use crate::base::worker::{Outcome, Reconcile};
use crate::context::Context;

/// Subscribes and works until shutdown.
pub fn start(cx: Context) -> BoxFuture<'static, ()> {
    let queue = cx.queue("ClusterRoleAggregator");
    let (q, informers) = (queue.clone(), cx.informers.clone());
    cx.informers.cluster_roles.subscribe(move |_| {
        let roles = informers.cluster_roles.list();
        roles.iter().filter(|r| r.aggregation_rule.is_some()).for_each(|r| q.add(Key::of(r.as_ref())));
    });
    let controller = Controller { cx: cx.clone() };
    async move {
        let roles = cx.informers.cluster_roles.clone();
        if cx.ready(roles.synced()).await {
            cx.work("clusterrole-aggregation", queue, controller, roles.clone()).await;
        }
    }
    .boxed()
}

/// The rules that `role` should have; `None` if it has them, or does not aggregate. Pure.
fn plan(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Result<Option<Vec<PolicyRule>>, String> {
    let Some(aggregation) = role.aggregation_rule.as_ref() else { return Ok(None) };
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in aggregation.cluster_role_selectors.as_deref().unwrap_or_default() {
        let selector = LabelSelector::from_k8s(selector).map_err(|e| e.to_string())?;
        let others = all.iter().filter(|r| r.name_any() != role.name_any() && selector.matches(r.labels()));
        for rule in others.flat_map(|r| r.rules.iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    Ok(Some(rules).filter(|r| r.as_slice() != role.rules.as_deref().unwrap_or_default()))
}

struct Controller {
    cx: Context,
}

#[async_trait]
impl Reconcile for Controller {
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(role) = self.cx.informers.cluster_roles.get(key) else { return Ok(Outcome::Done) };
        let rules = plan(&role, &self.cx.informers.cluster_roles.list())
            .map_err(|message| Error::Unusable { object: key.to_string(), message })?;
        let Some(rules) = rules else { return Ok(Outcome::Done) };
        let patch = json!({"metadata": {"resourceVersion": role.metadata.resource_version}, "rules": rules});
        let api: Api<ClusterRole> = Api::all(self.cx.client.clone());
        let patched = calls::merge("patch ClusterRole", &api, &key.name, &patch).await;
        calls::gone_is_fine(patched).map(|()| Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn role(name: &str, labels: Value, verbs: &[&str]) -> Arc<ClusterRole> {
        let rules: Vec<Value> =
            verbs.iter().map(|v| json!({"verbs": [v], "resources": ["pods"], "apiGroups": [""]})).collect();
        let value = json!({"metadata": {"name": name, "labels": labels}, "rules": rules});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn rules_are_gathered_once_each() {
        let mut admin = (*role("admin", json!({"agg": "edit"}), &[])).clone();
        admin.aggregation_rule = serde_json::from_value(
            json!({"clusterRoleSelectors": [{"matchLabels": {"agg": "edit"}}, {"matchLabels": {"x": "y"}}]}),
        )
        .unwrap();
        let all = [
            Arc::new(admin.clone()),
            role("a", json!({"agg": "edit"}), &["get", "list"]),
            role("b", json!({"x": "y"}), &["list", "watch"]),
            role("c", json!({}), &["delete"]),
        ];
        let rules = plan(&admin, &all).unwrap().unwrap();
        let verbs: Vec<_> = rules.iter().flat_map(|r| r.verbs.clone()).collect();
        assert_eq!(verbs, ["get", "list", "watch"]);
        admin.rules = Some(rules);
        assert_eq!(plan(&admin, &all), Ok(None));
        assert_eq!(plan(&all[1], &all), Ok(None), "does not aggregate");
    }
}
