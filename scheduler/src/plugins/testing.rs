//! Pods, nodes and clusters in a few words, for the plugins' tests.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use crate::cache::{Cache, NodeIndex};
use crate::framework::Plugin;
use crate::node::{NodeFacts, NodeInfo};
use crate::pod::PodInfo;

/// Adds `more` to `base`, recursively; lists are replaced.
pub fn merge(base: &mut Value, more: Value) {
    match (base, more) {
        (Value::Object(base), Value::Object(more)) => {
            for (key, value) in more {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, more) => *base = more,
    }
}

/// A pod in namespace `ns` with one container, and whatever is merged in.
pub fn pod(name: &str, more: Value) -> PodInfo {
    let mut whole = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name},
        "spec": {"schedulerName": "default-scheduler", "containers": [{"name": "c"}]},
    });
    merge(&mut whole, more);
    PodInfo::from(&serde_json::from_value::<Pod>(whole).unwrap())
}

/// A pod on a node.
pub fn placed(name: &str, node: &str, labels: Value) -> PodInfo {
    pod(name, json!({"metadata": {"labels": labels}, "spec": {"nodeName": node}}))
}

/// A node of 4 cores, 8 GiB and 110 pods, and whatever is merged in.
pub fn node(name: &str, more: Value) -> NodeFacts {
    let mut whole = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}},
    });
    merge(&mut whole, more);
    NodeFacts::from(&serde_json::from_value::<Node>(whole).unwrap())
}

/// A cluster of nodes with pods on them.
pub fn cluster(nodes: Vec<NodeFacts>, pods: Vec<PodInfo>) -> Cache {
    let mut cache = Cache::default();
    for facts in nodes {
        cache.put_node(facts);
    }
    for pod in pods {
        cache.put_pod(Arc::new(pod));
    }
    cache
}

/// Names of the nodes that a plugin lets the pod on, and the reasons of the others.
pub fn filtered(plugin: &dyn Plugin, pod: &PodInfo, cache: &Cache) -> Vec<(String, Result<(), Vec<String>>)> {
    let filter = plugin.filter(pod, cache);
    let judge = |node: &NodeInfo| {
        let result = filter.as_ref().map_or(Ok(()), |filter| filter.filter(node));
        result.map_err(|rejection| rejection.0.into_iter().map(|reason| reason.into_owned()).collect())
    };
    cache.nodes().map(|node| (node.facts.name.clone(), judge(node))).collect()
}

/// Names of the nodes that a plugin lets the pod on.
pub fn accepted(plugin: &dyn Plugin, pod: &PodInfo, cache: &Cache) -> Vec<String> {
    filtered(plugin, pod, cache).into_iter().filter(|(_, result)| result.is_ok()).map(|(name, _)| name).collect()
}

/// Normalized scores of all nodes; empty if the plugin has no opinion.
pub fn scored(plugin: &dyn Plugin, pod: &PodInfo, cache: &Cache) -> Vec<i64> {
    let feasible: Vec<NodeIndex> = cache.present().to_vec();
    let nodes: Vec<&NodeInfo> = cache.nodes().collect();
    let Some(score) = plugin.score(pod, cache, &feasible) else { return Vec::new() };
    let mut scores: Vec<i64> = nodes.iter().map(|node| score.score(node)).collect();
    score.normalize(&nodes, &mut scores);
    scores
}
