//! NodeUnschedulable and NodeName: the simplest things a pod or a node can say.

use k8s_openapi::api::core::v1::Taint;
use scaleup_api::well_known::TAINT_UNSCHEDULABLE;

use crate::cache::Cache;
use crate::framework::{Events, Filter, Plugin, Rejection};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::terms::tolerated;

/// Keeps pods off cordoned nodes unless they tolerate that.
pub struct NodeUnschedulable;

struct Cordoned;

impl Filter for Cordoned {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if node.facts.unschedulable { Err(Rejection::because("node(s) were unschedulable")) } else { Ok(()) }
    }
}

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn woken_by(&self) -> Events {
        Events::NODE_ADDED | Events::NODE_TAINTS
    }

    fn filter<'a>(&'a self, pod: &'a PodInfo, _cache: &'a Cache) -> Option<Box<dyn Filter + 'a>> {
        let taint = Taint { key: TAINT_UNSCHEDULABLE.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
        (!tolerated(&pod.tolerations, &taint)).then(|| Box::new(Cordoned) as _)
    }
}

/// Holds a pod that names its node to it.
pub struct NodeName;

struct Named<'a>(&'a str);

impl Filter for Named<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if node.facts.name == self.0 {
            return Ok(());
        }
        Err(Rejection::because("node(s) didn't match the requested node name"))
    }
}

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn woken_by(&self) -> Events {
        Events::NODE_ADDED
    }

    fn filter<'a>(&'a self, pod: &'a PodInfo, _cache: &'a Cache) -> Option<Box<dyn Filter + 'a>> {
        (!pod.node.is_empty()).then(|| Box::new(Named(&pod.node)) as _)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plugins::testing::{accepted, cluster, filtered, node, pod};

    #[test]
    fn cordoned_nodes_take_only_those_who_tolerate_it() {
        let cache = cluster(vec![node("a", json!({"spec": {"unschedulable": true}})), node("b", json!({}))], vec![]);
        assert_eq!(accepted(&NodeUnschedulable, &pod("p", json!({})), &cache), ["b"]);
        let reasons = filtered(&NodeUnschedulable, &pod("p", json!({})), &cache);
        assert_eq!(reasons[0].1, Err(vec!["node(s) were unschedulable".to_owned()]));
        let toleration = json!({"key": "node.kubernetes.io/unschedulable", "operator": "Exists"});
        let daemon = pod("p", json!({"spec": {"tolerations": [toleration]}}));
        assert_eq!(accepted(&NodeUnschedulable, &daemon, &cache), ["a", "b"]);
    }

    #[test]
    fn a_named_node_is_the_only_one() {
        let cache = cluster(vec![node("a", json!({})), node("b", json!({}))], vec![]);
        assert_eq!(accepted(&NodeName, &pod("p", json!({"spec": {"nodeName": "b"}})), &cache), ["b"]);
        assert_eq!(accepted(&NodeName, &pod("p", json!({})), &cache), ["a", "b"]);
    }
}
