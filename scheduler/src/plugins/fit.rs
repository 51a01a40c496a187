//! NodeResourcesFit and NodeResourcesBalancedAllocation: what a pod requests must be there, and should be taken evenly.

use std::borrow::Cow;

use crate::cache::{Cache, NodeIndex};
use crate::framework::{Events, Filter, MAX_SCORE, Plugin, Rejection, Score};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

/// Rejects nodes without room; scores emptier nodes higher (upstream's default strategy LeastAllocated on CPU and
/// memory, equally weighted).
pub struct NodeResourcesFit;

struct Wanted<'a>(&'a PodInfo);

impl Filter for Wanted<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let (wanted, offered, taken) = (&self.0.requests, &node.facts.allocatable, &node.requested);
        let mut reasons = Vec::new();
        if node.pods.len() as i64 + 1 > offered.pods {
            reasons.push(Cow::Borrowed("Too many pods"));
        }
        let lacks = |wanted: i64, offered: i64, taken: i64| wanted > 0 && wanted > offered.saturating_sub(taken);
        if lacks(wanted.milli_cpu, offered.milli_cpu, taken.milli_cpu) {
            reasons.push(Cow::Borrowed("Insufficient cpu"));
        }
        if lacks(wanted.memory, offered.memory, taken.memory) {
            reasons.push(Cow::Borrowed("Insufficient memory"));
        }
        if lacks(wanted.ephemeral_storage, offered.ephemeral_storage, taken.ephemeral_storage) {
            reasons.push(Cow::Borrowed("Insufficient ephemeral-storage"));
        }
        for (name, amount) in &wanted.scalar {
            if lacks(*amount, offered.scalar(name), taken.scalar(name)) {
                reasons.push(Cow::Owned(format!("Insufficient {name}")));
            }
        }
        if reasons.is_empty() { Ok(()) } else { Err(Rejection(reasons)) }
    }
}

impl Score for Wanted<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let (wanted, taken) = (self.0.non_zero, node.non_zero);
        let free = |offered: i64, taken: i64| {
            (offered > 0).then(|| if taken > offered { 0 } else { (offered - taken) * MAX_SCORE / offered })
        };
        let offered = &node.facts.allocatable;
        let scores = [
            free(offered.milli_cpu, taken.milli_cpu.saturating_add(wanted.milli_cpu)),
            // In KiB: byte counts times 100 could overflow on a node of that size.
            free(offered.memory >> 10, taken.memory.saturating_add(wanted.memory) >> 10),
        ];
        let known = scores.iter().flatten().count() as i64;
        if known == 0 { 0 } else { scores.iter().flatten().sum::<i64>() / known }
    }
}

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn woken_by(&self) -> Events {
        Events::NODE_ADDED | Events::NODE_ALLOCATABLE | Events::POD_REMOVED
    }

    fn filter<'a>(&'a self, pod: &'a PodInfo, _cache: &'a Cache) -> Option<Box<dyn Filter + 'a>> {
        Some(Box::new(Wanted(pod)))
    }

    fn score<'a>(
        &'a self,
        pod: &'a PodInfo,
        _cache: &'a Cache,
        _feasible: &[NodeIndex],
    ) -> Option<Box<dyn Score + 'a>> {
        Some(Box::new(Wanted(pod)))
    }
}

/// Prefers nodes whose CPU and memory would be used in the same proportion.
pub struct NodeResourcesBalancedAllocation;

struct Balance<'a>(&'a PodInfo);

impl Score for Balance<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let (wanted, offered, taken) = (&self.0.requests, &node.facts.allocatable, &node.requested);
        let share = |wanted: i64, offered: i64, taken: i64| {
            (offered > 0).then(|| (taken.saturating_add(wanted) as f64 / offered as f64).min(1.0))
        };
        let cpu = share(wanted.milli_cpu, offered.milli_cpu, taken.milli_cpu);
        let memory = share(wanted.memory, offered.memory, taken.memory);
        // Of two numbers the standard deviation is half their distance; of one it is zero.
        let deviation = match (cpu, memory) {
            (Some(cpu), Some(memory)) => (cpu - memory).abs() / 2.0,
            _ => 0.0,
        };
        ((1.0 - deviation) * MAX_SCORE as f64) as i64
    }
}

impl Plugin for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn score<'a>(
        &'a self,
        pod: &'a PodInfo,
        _cache: &'a Cache,
        _feasible: &[NodeIndex],
    ) -> Option<Box<dyn Score + 'a>> {
        // A pod that requests nothing unbalances nothing.
        (pod.requests.milli_cpu > 0 || pod.requests.memory > 0).then(|| Box::new(Balance(pod)) as _)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plugins::testing::{accepted, cluster, filtered, node, pod, scored};

    fn asking(name: &str, node: &str, requests: Value) -> PodInfo {
        let containers = json!([{"name": "c", "resources": {"requests": requests}}]);
        pod(name, json!({"spec": {"nodeName": node, "containers": containers}}))
    }

    #[test]
    fn reasons_name_every_lacking_resource() {
        let offer =
            json!({"status": {"allocatable": {"pods": "1", "example.com/gpu": "1", "ephemeral-storage": "1Gi"}}});
        let cache = cluster(vec![node("a", offer)], vec![asking("first", "a", json!({"cpu": "3", "memory": "4Gi"}))]);
        let check = |requests: Value, expected: &[&str]| {
            let expected: Vec<String> = expected.iter().map(|reason| (*reason).to_owned()).collect();
            let results = filtered(&NodeResourcesFit, &asking("p", "", requests.clone()), &cache);
            assert_eq!(results[0].1, Err(expected), "{requests}");
        };
        check(json!({}), &["Too many pods"]);
        check(json!({"cpu": "1", "memory": "4Gi"}), &["Too many pods"]);
        check(json!({"cpu": "1001m"}), &["Too many pods", "Insufficient cpu"]);
        check(json!({"cpu": "2", "memory": "5Gi"}), &["Too many pods", "Insufficient cpu", "Insufficient memory"]);
        check(json!({"ephemeral-storage": "2Gi"}), &["Too many pods", "Insufficient ephemeral-storage"]);
        check(json!({"example.com/gpu": "2"}), &["Too many pods", "Insufficient example.com/gpu"]);
        check(json!({"example.com/none": "1"}), &["Too many pods", "Insufficient example.com/none"]);
    }

    #[test]
    fn a_pod_that_fits_exactly_fits() {
        let mut cache = cluster(vec![node("a", json!({}))], vec![asking("first", "a", json!({"cpu": "3"}))]);
        assert_eq!(accepted(&NodeResourcesFit, &asking("p", "", json!({"cpu": "1"})), &cache), ["a"]);
        assert!(accepted(&NodeResourcesFit, &asking("p", "", json!({"cpu": "4"})), &cache).is_empty());
        cache.remove_pod("first");
        assert_eq!(accepted(&NodeResourcesFit, &asking("p", "", json!({"cpu": "4"})), &cache), ["a"]);
    }

    #[test]
    fn emptier_nodes_score_higher() {
        let nodes = vec![node("empty", json!({})), node("half", json!({})), node("none", json!({}))];
        let pods = vec![asking("1", "half", json!({"cpu": "2", "memory": "4Gi"}))];
        let cache = cluster(nodes, pods);
        let scores = scored(&NodeResourcesFit, &asking("p", "", json!({"cpu": "1", "memory": "2Gi"})), &cache);
        assert_eq!(scores, [75, 25, 75]);
        // Without requests the defaults of 100m and 200 MiB count.
        let scores = scored(&NodeResourcesFit, &asking("p", "", json!({})), &cache);
        assert_eq!(scores, [97, 47, 97]);
    }

    #[test]
    fn balance_prefers_even_use() {
        let cache = cluster(vec![node("a", json!({}))], vec![asking("1", "a", json!({"cpu": "2"}))]);
        let score = |requests| scored(&NodeResourcesBalancedAllocation, &asking("p", "", requests), &cache);
        assert_eq!(score(json!({"memory": "4Gi"})), [100]);
        assert_eq!(score(json!({"cpu": "2"})), [50]);
        assert!(score(json!({})).is_empty());
    }
}
