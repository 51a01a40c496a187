//! InterPodAffinity: near pods of one kind, away from pods of another; both required and preferred, both ways (the pods
//! already placed have a say as well).

use std::collections::HashMap;

use crate::cache::{Cache, NodeIndex};
use crate::framework::{Events, Filter, MAX_SCORE, Plugin, Rejection, Score};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::terms::PodTerm;

/// What a placed pod's required affinity to the incoming one weighs in scores (upstream's `hardPodAffinityWeight`).
const HARD_AFFINITY_WEIGHT: i64 = 1;

/// See the module's description.
pub struct InterPodAffinity;

/// Amounts by topology: the node label's key and value.
type Topology<'a> = HashMap<(&'a str, &'a str), i64>;

fn topology<'a>(node: &'a NodeInfo, term: &'a PodTerm) -> Option<(&'a str, &'a str)> {
    Some((term.topology_key.as_str(), node.facts.labels.get(&term.topology_key)?.as_str()))
}

fn matches(term: &PodTerm, pod: &PodInfo, cache: &Cache) -> bool {
    term.matches(&pod.namespace, &pod.labels, cache.namespace(&pod.namespace))
}

struct Required<'a> {
    pod: &'a PodInfo,
    /// The pod matches its own affinity terms: it may be the first of its kind.
    self_affine: bool,
    /// Where pods are that match all affinity terms.
    near: Topology<'a>,
    /// Where pods are that match an anti-affinity term.
    away: Topology<'a>,
    /// Where pods are whose anti-affinity the pod matches.
    unwelcome: Topology<'a>,
}

impl<'a> Required<'a> {
    fn new(pod: &'a PodInfo, cache: &'a Cache) -> Self {
        let all_match = |other: &PodInfo| pod.affinity.required.iter().all(|term| matches(term, other, cache));
        let mut required = Self {
            pod,
            self_affine: all_match(pod),
            near: Topology::new(),
            away: Topology::new(),
            unwelcome: Topology::new(),
        };
        let asks = !pod.affinity.required.is_empty() || !pod.anti_affinity.required.is_empty();
        for node in cache.nodes().filter(|node| asks || node.affinity_pods > 0) {
            for other in &node.pods {
                required.count(node, other, cache, &all_match);
            }
        }
        required
    }

    fn count(&mut self, node: &'a NodeInfo, other: &'a PodInfo, cache: &Cache, all_match: &impl Fn(&PodInfo) -> bool) {
        for term in &other.anti_affinity.required {
            if let Some(key) = topology(node, term).filter(|_| matches(term, self.pod, cache)) {
                *self.unwelcome.entry(key).or_default() += 1;
            }
        }
        if !self.pod.affinity.required.is_empty() && all_match(other) {
            for key in self.pod.affinity.required.iter().filter_map(|term| topology(node, term)) {
                *self.near.entry(key).or_default() += 1;
            }
        }
        for term in &self.pod.anti_affinity.required {
            if let Some(key) = topology(node, term).filter(|_| matches(term, other, cache)) {
                *self.away.entry(key).or_default() += 1;
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.pod.affinity.required.is_empty() && self.pod.anti_affinity.required.is_empty() && self.unwelcome.is_empty()
    }

    fn near_enough(&self, node: &NodeInfo) -> bool {
        let terms = &self.pod.affinity.required;
        let labelled = terms.iter().all(|term| node.facts.labels.contains_key(&term.topology_key));
        let counted = |term: &PodTerm| {
            let value = node.facts.labels.get(&term.topology_key).map(String::as_str);
            value.is_some_and(|value| self.near.contains_key(&(term.topology_key.as_str(), value)))
        };
        labelled && (terms.iter().all(counted) || (self.near.is_empty() && self.self_affine))
    }
}

impl Filter for Required<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let labels = &node.facts.labels;
        let at = |key: &str, map: &Topology<'_>| {
            labels.get(key).is_some_and(|value| map.contains_key(&(key, value.as_str())))
        };
        if !self.near_enough(node) {
            return Err(Rejection::because("node(s) didn't match pod affinity rules"));
        }
        if self.pod.anti_affinity.required.iter().any(|term| at(&term.topology_key, &self.away)) {
            return Err(Rejection::because("node(s) didn't match pod anti-affinity rules"));
        }
        if !self.unwelcome.is_empty() && labels.iter().any(|(key, value)| self.unwelcome.contains_key(&(key, value))) {
            return Err(Rejection::because("node(s) didn't satisfy existing pods anti-affinity rules"));
        }
        Ok(())
    }
}

struct Preferred<'a>(Topology<'a>);

impl<'a> Preferred<'a> {
    fn new(pod: &'a PodInfo, cache: &'a Cache) -> Self {
        let mut points = Topology::new();
        let mut add = |node: &'a NodeInfo, term: &'a PodTerm, of: &PodInfo, weight: i64| {
            if let Some(key) = topology(node, term).filter(|_| matches(term, of, cache)) {
                *points.entry(key).or_default() += weight;
            }
        };
        let wishes = !pod.affinity.preferred.is_empty() || !pod.anti_affinity.preferred.is_empty();
        for node in cache.nodes().filter(|node| wishes || node.affinity_pods > 0) {
            for other in &node.pods {
                pod.affinity.preferred.iter().for_each(|(weight, term)| add(node, term, other, *weight));
                pod.anti_affinity.preferred.iter().for_each(|(weight, term)| add(node, term, other, -weight));
                other.affinity.required.iter().for_each(|term| add(node, term, pod, HARD_AFFINITY_WEIGHT));
                other.affinity.preferred.iter().for_each(|(weight, term)| add(node, term, pod, *weight));
                other.anti_affinity.preferred.iter().for_each(|(weight, term)| add(node, term, pod, -weight));
            }
        }
        Self(points)
    }
}

impl Score for Preferred<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let points =
            |(key, value): (&String, &String)| self.0.get(&(key.as_str(), value.as_str())).copied().unwrap_or(0);
        node.facts.labels.iter().map(points).sum()
    }

    fn normalize(&self, _nodes: &[&NodeInfo], scores: &mut [i64]) {
        let (min, max) = (scores.iter().min().copied().unwrap_or(0), scores.iter().max().copied().unwrap_or(0));
        for score in scores {
            *score = if max > min { MAX_SCORE * (*score - min) / (max - min) } else { 0 };
        }
    }
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn woken_by(&self) -> Events {
        Events::NODE_ADDED | Events::NODE_LABELS | Events::POD_ADDED | Events::POD_REMOVED | Events::NAMESPACE
    }

    fn is_local(&self, pod: &PodInfo, cache: &Cache) -> bool {
        !pod.has_pod_affinity() && !cache.has_affinity_pods()
    }

    fn filter<'a>(&'a self, pod: &'a PodInfo, cache: &'a Cache) -> Option<Box<dyn Filter + 'a>> {
        if self.is_local(pod, cache) {
            return None;
        }
        let required = Required::new(pod, cache);
        (!required.is_empty()).then(|| Box::new(required) as _)
    }

    fn score<'a>(&'a self, pod: &'a PodInfo, cache: &'a Cache, _feasible: &[NodeIndex]) -> Option<Box<dyn Score + 'a>> {
        if self.is_local(pod, cache) {
            return None;
        }
        let preferred = Preferred::new(pod, cache);
        (!preferred.0.is_empty()).then(|| Box::new(preferred) as _)
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

    fn term(app: &str, key: &str) -> Value {
        json!({"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}})
    }

    fn with(kind: &str, terms: Value, more: Value) -> PodInfo {
        let mut spec = json!({"spec": {"affinity": {kind: terms}}});
        merge(&mut spec, more);
        pod("p", spec)
    }

    fn required(terms: Value) -> Value {
        json!({"requiredDuringSchedulingIgnoredDuringExecution": terms})
    }

    fn preferred(weight: i64, term: Value) -> Value {
        json!({"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": weight, "podAffinityTerm": term}]})
    }

    fn reasons(pod: &PodInfo, cache: &Cache) -> Vec<String> {
        filtered(&InterPodAffinity, pod, cache).into_iter().filter_map(|(_, result)| result.err()).flatten().collect()
    }

    #[test]
    fn affinity_needs_company() {
        let cache = cluster(nodes(), vec![placed("db", "a1", json!({"app": "db"}))]);
        let near = |key: &str| with("podAffinity", required(json!([term("db", key)])), json!({}));
        assert_eq!(accepted(&InterPodAffinity, &near("zone"), &cache), ["a1", "a2"]);
        assert_eq!(accepted(&InterPodAffinity, &near("kubernetes.io/hostname"), &cache), ["a1"]);
        assert_eq!(reasons(&near("zone"), &cache), vec!["node(s) didn't match pod affinity rules"; 2]);
        let nobody = with("podAffinity", required(json!([term("none", "zone")])), json!({}));
        assert!(accepted(&InterPodAffinity, &nobody, &cache).is_empty());
    }

    #[test]
    fn the_first_of_its_kind_may_go_anywhere_with_the_label() {
        let cache = cluster(nodes(), vec![]);
        let labels = json!({"metadata": {"labels": {"app": "web"}}});
        let first = with("podAffinity", required(json!([term("web", "zone")])), labels);
        assert_eq!(accepted(&InterPodAffinity, &first, &cache), ["a1", "a2", "b1"]);
    }

    #[test]
    fn anti_affinity_keeps_away() {
        let cache = cluster(nodes(), vec![placed("db", "a1", json!({"app": "db"}))]);
        let away = |key: &str| with("podAntiAffinity", required(json!([term("db", key)])), json!({}));
        assert_eq!(accepted(&InterPodAffinity, &away("zone"), &cache), ["b1", "bare"]);
        assert_eq!(accepted(&InterPodAffinity, &away("kubernetes.io/hostname"), &cache), ["a2", "b1", "bare"]);
        assert_eq!(reasons(&away("zone"), &cache), vec!["node(s) didn't match pod anti-affinity rules"; 2]);
    }

    #[test]
    fn placed_pods_keep_others_away() {
        let loner = with(
            "podAntiAffinity",
            required(json!([term("web", "zone")])),
            json!({"metadata": {"uid": "loner"}, "spec": {"nodeName": "a1"}}),
        );
        let cache = cluster(nodes(), vec![loner]);
        let web = pod("p", json!({"metadata": {"labels": {"app": "web"}}}));
        assert_eq!(accepted(&InterPodAffinity, &web, &cache), ["b1", "bare"]);
        assert_eq!(reasons(&web, &cache), vec!["node(s) didn't satisfy existing pods anti-affinity rules"; 2]);
        let other = pod("p", json!({"metadata": {"labels": {"app": "db"}}}));
        assert_eq!(accepted(&InterPodAffinity, &other, &cache).len(), 4);
    }

    #[test]
    fn wishes_score_both_ways() {
        let db = placed("db", "a1", json!({"app": "db"}));
        let fan = with(
            "podAffinity",
            preferred(50, term("web", "zone")),
            json!({"metadata": {"uid": "fan"}, "spec": {"nodeName": "b1"}}),
        );
        let cache = cluster(nodes(), vec![db, fan]);
        let near =
            with("podAffinity", preferred(100, term("db", "zone")), json!({"metadata": {"labels": {"app": "web"}}}));
        assert_eq!(scored(&InterPodAffinity, &near, &cache), [100, 100, 50, 0]);
        let away = with("podAntiAffinity", preferred(10, term("db", "zone")), json!({}));
        assert_eq!(scored(&InterPodAffinity, &away, &cache), [0, 0, 100, 100]);
    }

    #[test]
    fn pods_without_wishes_are_local() {
        let cache = cluster(nodes(), vec![placed("db", "a1", json!({"app": "db"}))]);
        assert!(InterPodAffinity.is_local(&pod("p", json!({})), &cache));
        assert!(
            !InterPodAffinity.is_local(&with("podAffinity", required(json!([term("db", "zone")])), json!({})), &cache)
        );
    }
}
