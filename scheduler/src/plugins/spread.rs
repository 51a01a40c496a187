//! PodTopologySpread: pods of one kind evenly over zones, hosts or any node label. Hard constraints reject, soft ones
//! score.
//!
//! Only constraints that the pod states count; upstream's cluster defaults for pods of Services and ReplicaSets are not
//! applied.

use std::collections::HashMap;

use crate::cache::{Cache, NodeIndex};
use crate::framework::{Events, Filter, MAX_SCORE, Plugin, Rejection, Score};
use crate::node::NodeInfo;
use crate::pod::{PodInfo, Spread, WhenUnsatisfiable};
use crate::terms::tolerated;

const SKEWED: &str = "node(s) didn't match pod topology spread constraints";
const UNLABELLED: &str = "node(s) didn't match pod topology spread constraints (missing required label)";
/// Raw score of nodes that are not in any domain; they get 0 in the end.
const IGNORED: i64 = -1;

/// See the module's description.
pub struct PodTopologySpread;

fn constraints(pod: &PodInfo, when: WhenUnsatisfiable) -> Vec<&Spread> {
    pod.spread.iter().filter(|constraint| constraint.when == when).collect()
}

fn domain<'a>(node: &'a NodeInfo, constraint: &Spread) -> Option<&'a str> {
    node.facts.labels.get(&constraint.topology_key).map(String::as_str)
}

/// Whether the node's pods count for the constraint.
fn counts(node: &NodeInfo, constraint: &Spread, pod: &PodInfo) -> bool {
    let hard = |effect: &str| matches!(effect, "NoSchedule" | "NoExecute");
    let tainted = || node.facts.taints.iter().any(|taint| hard(&taint.effect) && !tolerated(&pod.tolerations, taint));
    !(constraint.honor_affinity && !pod.accepts_node(&node.facts.name, &node.facts.labels)
        || constraint.honor_taints && tainted())
}

/// How many pods on the node the constraint means.
fn matching(node: &NodeInfo, constraint: &Spread, namespace: &str) -> i64 {
    let meant = |other: &PodInfo| {
        other.namespace == namespace && !other.terminating && constraint.selector.matches(&other.labels)
    };
    node.pods.iter().filter(|other| meant(other)).count() as i64
}

/// A hard constraint and its pods by domain.
struct Hard<'a> {
    constraint: &'a Spread,
    domains: HashMap<&'a str, i64>,
    /// Pods in the emptiest domain.
    min: i64,
    /// 1 if the pod itself counts.
    own: i64,
}

struct Required<'a>(Vec<Hard<'a>>);

impl<'a> Required<'a> {
    fn new(pod: &'a PodInfo, constraints: &[&'a Spread], cache: &'a Cache) -> Self {
        let labelled = |node: &NodeInfo| constraints.iter().all(|constraint| domain(node, constraint).is_some());
        let hard = |constraint: &&'a Spread| {
            let mut domains: HashMap<&str, i64> = HashMap::new();
            for node in cache.nodes().filter(|node| labelled(node) && counts(node, constraint, pod)) {
                if let Some(name) = domain(node, constraint) {
                    *domains.entry(name).or_default() += matching(node, constraint, &pod.namespace);
                }
            }
            let enough = constraint.min_domains.is_none_or(|wanted| domains.len() as i64 >= wanted);
            let min = if enough { domains.values().min().copied().unwrap_or(0) } else { 0 };
            Hard { constraint, domains, min, own: i64::from(constraint.selector.matches(&pod.labels)) }
        };
        Self(constraints.iter().map(hard).collect())
    }
}

impl Filter for Required<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        for hard in &self.0 {
            let Some(name) = domain(node, hard.constraint) else { return Err(Rejection::because(UNLABELLED)) };
            let there = hard.domains.get(name).copied().unwrap_or(0);
            if there + hard.own - hard.min > hard.constraint.max_skew {
                return Err(Rejection::because(SKEWED));
            }
        }
        Ok(())
    }
}

/// A soft constraint, its pods by domain, and how much a pod there weighs.
struct Soft<'a> {
    constraint: &'a Spread,
    domains: HashMap<&'a str, i64>,
    weight: f64,
}

struct Preferred<'a>(Vec<Soft<'a>>);

impl<'a> Preferred<'a> {
    fn new(pod: &'a PodInfo, constraints: &[&'a Spread], cache: &'a Cache, feasible: &[NodeIndex]) -> Self {
        let labelled = |node: &NodeInfo| constraints.iter().all(|constraint| domain(node, constraint).is_some());
        let soft = |constraint: &&'a Spread| {
            let candidates = feasible.iter().map(|index| cache.node(*index)).filter(|node| labelled(node));
            let mut domains: HashMap<&str, i64> =
                candidates.filter_map(|node| Some((domain(node, constraint)?, 0))).collect();
            for node in cache.nodes().filter(|node| labelled(node) && counts(node, constraint, pod)) {
                if let Some(count) = domain(node, constraint).and_then(|name| domains.get_mut(name)) {
                    *count += matching(node, constraint, &pod.namespace);
                }
            }
            // Many domains hold few pods each: weigh them up against constraints with few domains.
            let weight = (domains.len() as f64 + 2.0).ln();
            Soft { constraint, domains, weight }
        };
        Self(constraints.iter().map(soft).collect())
    }
}

impl Score for Preferred<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let mut score = 0.0;
        for soft in &self.0 {
            let Some(name) = domain(node, soft.constraint) else { return IGNORED };
            let there = soft.domains.get(name).copied().unwrap_or(0) as f64;
            score += there * soft.weight + (soft.constraint.max_skew - 1) as f64;
        }
        score.round() as i64
    }

    fn normalize(&self, _nodes: &[&NodeInfo], scores: &mut [i64]) {
        let known = || scores.iter().copied().filter(|score| *score != IGNORED);
        let (min, max) = (known().min().unwrap_or(0), known().max().unwrap_or(0));
        for score in scores {
            *score = match *score {
                IGNORED => 0,
                _ if max == 0 => MAX_SCORE,
                score => MAX_SCORE * (max + min - score) / max,
            };
        }
    }
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn woken_by(&self) -> Events {
        Events::NODE_ADDED
            | Events::NODE_REMOVED
            | Events::NODE_LABELS
            | Events::NODE_TAINTS
            | Events::POD_ADDED
            | Events::POD_REMOVED
    }

    fn is_local(&self, pod: &PodInfo, _cache: &Cache) -> bool {
        pod.spread.is_empty()
    }

    fn filter<'a>(&'a self, pod: &'a PodInfo, cache: &'a Cache) -> Option<Box<dyn Filter + 'a>> {
        let hard = constraints(pod, WhenUnsatisfiable::Reject);
        (!hard.is_empty()).then(|| Box::new(Required::new(pod, &hard, cache)) as _)
    }

    fn score<'a>(&'a self, pod: &'a PodInfo, cache: &'a Cache, feasible: &[NodeIndex]) -> Option<Box<dyn Score + 'a>> {
        let soft = constraints(pod, WhenUnsatisfiable::Prefer);
        (!soft.is_empty()).then(|| Box::new(Preferred::new(pod, &soft, cache, feasible)) as _)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plugins::testing::{accepted, cluster, filtered, merge, node, placed, pod, scored};

    fn nodes() -> Vec<crate::node::NodeFacts> {
        let zone = |name: &str, zone: &str| node(name, json!({"metadata": {"labels": {"zone": zone}}}));
        vec![zone("a1", "a"), zone("a2", "a"), zone("b1", "b"), node("bare", json!({}))]
    }

    fn spreading(when: &str, more: Value) -> PodInfo {
        let mut constraint = json!({
            "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": when,
            "labelSelector": {"matchLabels": {"app": "web"}},
        });
        merge(&mut constraint, more);
        pod(
            "p",
            json!({
                "metadata": {"labels": {"app": "web", "rev": "2"}},
                "spec": {"topologySpreadConstraints": [constraint]},
            }),
        )
    }

    fn web(name: &str, node: &str) -> PodInfo {
        placed(name, node, json!({"app": "web", "rev": "1"}))
    }

    #[test]
    fn hard_constraints_bound_the_skew() {
        let check = |pods: Vec<PodInfo>, more: Value, expected: &[&str]| {
            let cache = cluster(nodes(), pods);
            assert_eq!(
                accepted(&PodTopologySpread, &spreading("DoNotSchedule", more.clone()), &cache),
                expected,
                "{more}"
            );
        };
        check(vec![], json!({}), &["a1", "a2", "b1"]);
        check(vec![web("1", "a1")], json!({}), &["b1"]);
        check(vec![web("1", "a1")], json!({"maxSkew": 2}), &["a1", "a2", "b1"]);
        check(vec![web("1", "a1"), web("2", "b1")], json!({}), &["a1", "a2", "b1"]);
        check(vec![web("1", "a1")], json!({"topologyKey": "kubernetes.io/hostname"}), &["a2", "b1", "bare"]);
        // Of another revision: they do not count.
        check(vec![web("1", "a1")], json!({"matchLabelKeys": ["rev"]}), &["a1", "a2", "b1"]);
        // Two domains where three are wanted: an empty third is assumed.
        check(vec![web("1", "a1"), web("2", "b1")], json!({"minDomains": 3}), &[]);
        let mut leaving = web("1", "a1");
        leaving.terminating = true;
        check(vec![leaving], json!({}), &["a1", "a2", "b1"]);
    }

    #[test]
    fn reasons_tell_skew_from_missing_labels() {
        let cache = cluster(nodes(), vec![web("1", "a1")]);
        let results = filtered(&PodTopologySpread, &spreading("DoNotSchedule", json!({})), &cache);
        assert_eq!(results[0].1, Err(vec![SKEWED.to_owned()]));
        assert_eq!(results[3].1, Err(vec![UNLABELLED.to_owned()]));
    }

    #[test]
    fn excluded_nodes_do_not_count() {
        let cache = cluster(nodes(), vec![web("1", "a1")]);
        let mut only_a = spreading("DoNotSchedule", json!({}));
        only_a.node_selector.insert("zone".into(), "a".into());
        assert_eq!(accepted(&PodTopologySpread, &only_a, &cache), ["a1", "a2", "b1"], "zone b is no domain for it");
        let mut ignoring = spreading("DoNotSchedule", json!({"nodeAffinityPolicy": "Ignore"}));
        ignoring.node_selector.insert("zone".into(), "a".into());
        assert_eq!(accepted(&PodTopologySpread, &ignoring, &cache), ["b1"]);
    }

    #[test]
    fn soft_constraints_prefer_emptier_domains() {
        let cache = cluster(nodes(), vec![web("1", "a1"), web("2", "a2"), web("3", "b1")]);
        let scores = scored(&PodTopologySpread, &spreading("ScheduleAnyway", json!({})), &cache);
        assert_eq!(scores[0], scores[1]);
        assert!(scores[2] > scores[0], "{scores:?}");
        assert_eq!(scores[3], 0, "a node without the label is in no domain");
        let empty = cluster(nodes(), vec![]);
        let scores = scored(&PodTopologySpread, &spreading("ScheduleAnyway", json!({})), &empty);
        assert_eq!(scores, [100, 100, 100, 0]);
    }
}
