//! TaintToleration: hard taints reject, soft ones (`PreferNoSchedule`) cost points.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::Toleration;

use crate::cache::{Cache, NodeIndex};
use crate::framework::{Events, Filter, Plugin, Rejection, Score, normalize};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::terms::tolerated;

/// See the module's description.
pub struct TaintToleration;

struct Tolerations<'a> {
    all: &'a [Toleration],
    /// Those that speak of soft taints.
    soft: Vec<Toleration>,
}

impl Filter for Tolerations<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let hard = |effect: &str| matches!(effect, "NoSchedule" | "NoExecute");
        match node.facts.taints.iter().find(|taint| hard(&taint.effect) && !tolerated(self.all, taint)) {
            None => Ok(()),
            Some(taint) => {
                let value = taint.value.as_deref().unwrap_or_default();
                let reason = format!("node(s) had untolerated taint {{{}: {value}}}", taint.key);
                Err(Rejection(vec![Cow::Owned(reason)]))
            }
        }
    }
}

impl Score for Tolerations<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let soft = node.facts.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule");
        soft.filter(|taint| !tolerated(&self.soft, taint)).count() as i64
    }

    fn normalize(&self, _nodes: &[&NodeInfo], scores: &mut [i64]) {
        normalize(scores, true);
    }
}

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn woken_by(&self) -> Events {
        Events::NODE_ADDED | Events::NODE_TAINTS
    }

    fn is_local(&self, _pod: &PodInfo, cache: &Cache) -> bool {
        !cache.has_soft_taints()
    }

    fn filter<'a>(&'a self, pod: &'a PodInfo, _cache: &'a Cache) -> Option<Box<dyn Filter + 'a>> {
        Some(Box::new(Tolerations { all: &pod.tolerations, soft: Vec::new() }))
    }

    fn score<'a>(&'a self, pod: &'a PodInfo, cache: &'a Cache, _feasible: &[NodeIndex]) -> Option<Box<dyn Score + 'a>> {
        let about_soft =
            |toleration: &&Toleration| matches!(toleration.effect.as_deref(), None | Some("" | "PreferNoSchedule"));
        cache.has_soft_taints().then(|| {
            let soft = pod.tolerations.iter().filter(about_soft).cloned().collect();
            Box::new(Tolerations { all: &pod.tolerations, soft }) as _
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plugins::testing::{accepted, cluster, filtered, node, pod, scored};

    fn tainted(name: &str, taints: Value) -> crate::node::NodeFacts {
        node(name, json!({"spec": {"taints": taints}}))
    }

    fn nodes() -> Cache {
        cluster(
            vec![
                tainted("free", json!([])),
                tainted("gpu", json!([{"key": "gpu", "value": "a100", "effect": "NoSchedule"}])),
                tainted("leaving", json!([{"key": "gone", "effect": "NoExecute"}])),
                tainted("soft", json!([{"key": "spot", "effect": "PreferNoSchedule"}])),
            ],
            vec![],
        )
    }

    #[test]
    fn hard_taints_reject() {
        let cache = nodes();
        assert_eq!(accepted(&TaintToleration, &pod("p", json!({})), &cache), ["free", "soft"]);
        let reasons = filtered(&TaintToleration, &pod("p", json!({})), &cache);
        assert_eq!(reasons[1].1, Err(vec!["node(s) had untolerated taint {gpu: a100}".to_owned()]));
        assert_eq!(reasons[2].1, Err(vec!["node(s) had untolerated taint {gone: }".to_owned()]));
        let tolerating = pod("p", json!({"spec": {"tolerations": [{"key": "gpu", "operator": "Exists"}]}}));
        assert_eq!(accepted(&TaintToleration, &tolerating, &cache), ["free", "gpu", "soft"]);
    }

    #[test]
    fn soft_taints_cost_points() {
        let cache = nodes();
        assert_eq!(scored(&TaintToleration, &pod("p", json!({})), &cache), [100, 100, 100, 0]);
        let tolerating = pod("p", json!({"spec": {"tolerations": [{"key": "spot", "operator": "Exists"}]}}));
        assert_eq!(scored(&TaintToleration, &tolerating, &cache), [100, 100, 100, 100]);
        let without = cluster(vec![tainted("free", json!([]))], vec![]);
        assert!(scored(&TaintToleration, &pod("p", json!({})), &without).is_empty());
    }
}
