//! NodeAffinity: `nodeSelector` and required node affinity reject, preferred node affinity scores.

use crate::cache::{Cache, NodeIndex};
use crate::framework::{Events, Filter, Plugin, Rejection, Score, normalize};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

/// See the module's description.
pub struct NodeAffinity;

struct Wanted<'a>(&'a PodInfo);

impl Filter for Wanted<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if self.0.accepts_node(&node.facts.name, &node.facts.labels) {
            return Ok(());
        }
        Err(Rejection::because("node(s) didn't match Pod's node affinity/selector"))
    }
}

impl Score for Wanted<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let terms = self.0.node_preferred.iter();
        terms.filter(|(_, term)| term.matches(&node.facts.name, &node.facts.labels)).map(|(weight, _)| weight).sum()
    }

    fn normalize(&self, _nodes: &[&NodeInfo], scores: &mut [i64]) {
        normalize(scores, false);
    }
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn woken_by(&self) -> Events {
        Events::NODE_ADDED | Events::NODE_LABELS
    }

    fn is_local(&self, pod: &PodInfo, _cache: &Cache) -> bool {
        pod.node_preferred.is_empty()
    }

    fn filter<'a>(&'a self, pod: &'a PodInfo, _cache: &'a Cache) -> Option<Box<dyn Filter + 'a>> {
        let asks = !pod.node_selector.is_empty() || pod.node_required.is_some();
        asks.then(|| Box::new(Wanted(pod)) as _)
    }

    fn score<'a>(
        &'a self,
        pod: &'a PodInfo,
        _cache: &'a Cache,
        _feasible: &[NodeIndex],
    ) -> Option<Box<dyn Score + 'a>> {
        (!pod.node_preferred.is_empty()).then(|| Box::new(Wanted(pod)) as _)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plugins::testing::{accepted, cluster, filtered, node, pod, scored};

    fn nodes() -> Cache {
        let zone = |name: &str, zone: &str| node(name, json!({"metadata": {"labels": {"zone": zone}}}));
        cluster(vec![zone("a", "1"), zone("b", "2"), zone("c", "3")], vec![])
    }

    fn affine(node_affinity: Value) -> PodInfo {
        pod("p", json!({"spec": {"affinity": {"nodeAffinity": node_affinity}}}))
    }

    fn zone(operator: &str, values: Value) -> Value {
        json!({"matchExpressions": [{"key": "zone", "operator": operator, "values": values}]})
    }

    #[test]
    fn selector_and_required_terms_reject() {
        let cache = nodes();
        let check = |pod: PodInfo, expected: &[&str]| assert_eq!(accepted(&NodeAffinity, &pod, &cache), expected);
        check(pod("p", json!({})), &["a", "b", "c"]);
        check(pod("p", json!({"spec": {"nodeSelector": {"zone": "2"}}})), &["b"]);
        let required =
            |terms: Value| json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}});
        check(affine(required(json!([zone("In", json!(["1", "2"]))]))), &["a", "b"]);
        check(affine(required(json!([zone("In", json!(["1"])), zone("In", json!(["3"]))]))), &["a", "c"]);
        check(affine(required(json!([zone("NotIn", json!(["1"]))]))), &["b", "c"]);
        check(affine(required(json!([]))), &[]);
        let reasons = filtered(&NodeAffinity, &pod("p", json!({"spec": {"nodeSelector": {"zone": "2"}}})), &cache);
        assert_eq!(reasons[0].1, Err(vec!["node(s) didn't match Pod's node affinity/selector".to_owned()]));
    }

    #[test]
    fn preferred_terms_add_up() {
        let prefer = |weight: i64, term: Value| json!({"weight": weight, "preference": term});
        let terms = json!([prefer(10, zone("In", json!(["1"]))), prefer(30, zone("In", json!(["1", "2"])))]);
        let wishing = affine(json!({"preferredDuringSchedulingIgnoredDuringExecution": terms}));
        assert_eq!(scored(&NodeAffinity, &wishing, &nodes()), [100, 75, 0]);
        assert!(scored(&NodeAffinity, &pod("p", json!({})), &nodes()).is_empty());
    }
}
