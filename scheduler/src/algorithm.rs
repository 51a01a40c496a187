//! The decision: which node for this pod.
//!
//! Filter, score, pick the best, ties at random. On large clusters, like upstream, the search stops once a share of the
//! nodes turned out feasible, beginning each time where the last search ended. For pods that come in many equal copies
//! (replicas) the answers of all nodes are kept by class: after a decision only the nodes that changed are asked again.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::cache::{Cache, NodeIndex};
use crate::framework::{Enabled, Events, Filter, Plugin, Profile, Score};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::policies::{self, Bound, MAX_NODES, Moment};

/// Clusters up to this size are searched as a whole (upstream's `minFeasibleNodesToFind`).
const MIN_FEASIBLE: usize = 100;
/// Share of nodes that is always enough to find (upstream's `minFeasibleNodesPercentageToFind`).
const MIN_FEASIBLE_PERCENT: usize = 5;
/// All plugins of users, where a plugin is named.
const USERS: &str = "WasmPlugin";
/// Classes of equal pods whose answers are kept.
const MAX_CLASSES: usize = 64;

/// No node will do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FitError {
    /// Nodes in the cluster.
    pub nodes: usize,
    /// How many nodes gave each reason.
    pub reasons: BTreeMap<Cow<'static, str>, usize>,
    /// Names of the plugins that rejected some node.
    pub rejected_by: BTreeSet<&'static str>,
    /// What may help.
    pub woken_by: Events,
    /// The pod must wait whatever nodes there are, because a user's plugin gave no answer.
    pub refused: Option<String>,
}

impl fmt::Display for FitError {
    /// Upstream's `FitError.Error()`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        if let Some(why) = &self.refused {
            return f.write_str(why);
        }
        let mut reasons: Vec<String> = self.reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        reasons.sort();
        write!(f, "0/{} nodes are available: {}.", self.nodes, reasons.join(", "))
    }
}

impl FitError {
    fn new(nodes: usize) -> Self {
        let woken_by = Events::NODE_ADDED;
        Self { nodes, reasons: BTreeMap::new(), rejected_by: BTreeSet::new(), woken_by, refused: None }
    }
}

/// How many feasible nodes are enough among `nodes` (upstream's adaptive `percentageOfNodesToScore`).
pub fn enough(nodes: usize) -> usize {
    if nodes <= MIN_FEASIBLE {
        return nodes;
    }
    let percent = 50_usize.saturating_sub(nodes / 125).max(MIN_FEASIBLE_PERCENT);
    (nodes * percent / 100).max(MIN_FEASIBLE)
}

/// A plugin and its filter.
type PreparedFilter<'a> = (&'a dyn Plugin, Box<dyn Filter + 'a>);

/// The filters prepared for one pod.
struct Prepared<'a> {
    filters: Vec<PreparedFilter<'a>>,
}

impl<'a> Prepared<'a> {
    fn new(profile: &'a Profile, pod: &'a PodInfo, cache: &'a Cache) -> Self {
        let prepare = |enabled: &'a Enabled| Some((&*enabled.plugin, enabled.plugin.filter(pod, cache)?));
        Self { filters: profile.plugins.iter().filter_map(prepare).collect() }
    }

    fn accepts(&self, node: &NodeInfo) -> bool {
        self.filters.iter().all(|(_, filter)| filter.filter(node).is_ok())
    }

    /// As upstream, the first plugin that rejects a node gives the reasons.
    fn explain(&self, node: &NodeInfo, error: &mut FitError) {
        for (plugin, filter) in &self.filters {
            if let Err(rejection) = filter.filter(node) {
                for reason in rejection.0 {
                    *error.reasons.entry(reason).or_default() += 1;
                }
                error.rejected_by.insert(plugin.name());
                error.woken_by = error.woken_by | plugin.woken_by();
                return;
            }
        }
    }
}

fn scores<'a>(
    profile: &'a Profile,
    pod: &'a PodInfo,
    cache: &'a Cache,
    feasible: &[NodeIndex],
) -> Vec<(i64, Box<dyn Score + 'a>)> {
    let prepare = |enabled: &'a Enabled| {
        let wanted = enabled.weight != 0;
        wanted.then(|| enabled.plugin.score(pod, cache, feasible)).flatten().map(|score| (enabled.weight, score))
    };
    profile.plugins.iter().filter_map(prepare).collect()
}

/// The answers of all nodes to pods of one class.
#[derive(Default)]
struct Class {
    /// Whether the answers were collected; a class that was seen only once has none.
    built: bool,
    structure: u64,
    /// Position in the cache's log up to which changes are in.
    position: u64,
    /// Score and tie-breaker by node.
    by_node: HashMap<NodeIndex, (i64, u32)>,
    /// The same, ascending.
    ranking: BTreeSet<(i64, u32, NodeIndex)>,
    /// Why no node will do, as long as nothing changes.
    failure: Option<FitError>,
    used: u64,
}

impl Class {
    fn set(&mut self, index: NodeIndex, score: Option<(i64, u32)>) {
        if let Some((score, tie)) = self.by_node.remove(&index) {
            self.ranking.remove(&(score, tie, index));
        }
        if let Some((score, tie)) = score {
            self.by_node.insert(index, (score, tie));
            self.ranking.insert((score, tie, index));
        }
    }
}

/// See the module's description. One per scheduler; it remembers classes and where the last search ended.
pub struct Algorithm {
    profile: Profile,
    classes: HashMap<Arc<str>, Class>,
    next_start: usize,
    uses: u64,
    random: u64,
}

impl Algorithm {
    /// With this profile.
    pub fn new(profile: Profile, seed: u64) -> Self {
        Self { profile, classes: HashMap::new(), next_start: 0, uses: 0, random: seed }
    }

    /// The profile.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// The best node for the pod, as of now.
    ///
    /// # Errors
    /// [`FitError`] says why there is none.
    pub fn decide(&mut self, pod: &PodInfo, cache: &Cache) -> Result<NodeIndex, FitError> {
        if cache.present().is_empty() {
            return Err(FitError::new(0));
        }
        let local = self.profile.plugins.iter().all(|enabled| enabled.plugin.is_local(pod, cache));
        if local && cache.present().len() > 1 && self.know(&pod.class) {
            return self.decide_by_class(pod, cache);
        }
        self.decide_by_search(pod, cache)
    }

    /// Whether a class was seen before; it is from now on.
    fn know(&mut self, class: &Arc<str>) -> bool {
        self.uses += 1;
        if let Some(known) = self.classes.get_mut(class) {
            known.used = self.uses;
            return true;
        }
        if self.classes.len() >= MAX_CLASSES
            && let Some(oldest) = self.classes.iter().min_by_key(|(_, known)| known.used).map(|(name, _)| name.clone())
        {
            self.classes.remove(&oldest);
        }
        self.classes.insert(class.clone(), Class { used: self.uses, ..Class::default() });
        false
    }

    fn draw(random: &mut u64) -> u32 {
        // xorshift64*: ties need no more than that.
        *random ^= *random >> 12;
        *random ^= *random << 25;
        *random ^= *random >> 27;
        (random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    fn decide_by_class(&mut self, pod: &PodInfo, cache: &Cache) -> Result<NodeIndex, FitError> {
        // `know` has just made sure that it is there.
        let mut class = self.classes.remove(&pod.class).unwrap_or_default();
        let result = self.refresh(&mut class, pod, cache);
        self.classes.insert(pod.class.clone(), class);
        result
    }

    /// Brings a class up to date and reads off the best node.
    fn refresh(&mut self, class: &mut Class, pod: &PodInfo, cache: &Cache) -> Result<NodeIndex, FitError> {
        let prepared = Prepared::new(&self.profile, pod, cache);
        let scores = scores(&self.profile, pod, cache, cache.present());
        let random = &mut self.random;
        let mut judge = |index: NodeIndex| {
            let node = cache.node(index);
            (node.present && prepared.accepts(node)).then(|| {
                let score = scores.iter().map(|(weight, score)| weight * score.score(node)).sum::<i64>();
                (score, Self::draw(random))
            })
        };
        let current = class.built && class.structure == cache.structure();
        match cache.changed_since(class.position).filter(|_| current) {
            Some(changed) => {
                let changed: BTreeSet<NodeIndex> = changed.collect();
                if !changed.is_empty() {
                    class.failure = None;
                }
                for index in changed {
                    class.set(index, judge(index));
                }
            }
            None => {
                *class = Class { built: true, structure: cache.structure(), used: class.used, ..Class::default() };
                for index in cache.present() {
                    class.set(*index, judge(*index));
                }
            }
        }
        class.position = cache.log_end();
        if let Some((_, _, index)) = class.ranking.last() {
            return Ok(*index);
        }
        let failure = class.failure.get_or_insert_with(|| {
            let mut error = FitError::new(cache.present().len());
            cache.nodes().for_each(|node| prepared.explain(node, &mut error));
            error
        });
        Err(failure.clone())
    }

    fn decide_by_search(&mut self, pod: &PodInfo, cache: &Cache) -> Result<NodeIndex, FitError> {
        let prepared = Prepared::new(&self.profile, pod, cache);
        let present = cache.present();
        let (wanted, start) = (enough(present.len()), self.next_start % present.len());
        let mut feasible = Vec::with_capacity(wanted);
        let mut searched = 0;
        for index in present[start..].iter().chain(&present[..start]) {
            searched += 1;
            if prepared.accepts(cache.node(*index)) {
                feasible.push(*index);
                if feasible.len() == wanted {
                    break;
                }
            }
        }
        self.next_start = start + searched;
        if feasible.is_empty() {
            let mut error = FitError::new(present.len());
            cache.nodes().for_each(|node| prepared.explain(node, &mut error));
            return Err(error);
        }
        drop(prepared);
        let totals = vec![0; feasible.len()];
        Ok(self.best(pod, cache, &feasible, totals))
    }

    /// The best node for a pod that users' plugins are asked about too, once each: about all nodes that the built-in filters accept, as far
    /// as one question may have so many.
    ///
    /// # Errors
    /// [`FitError`] says why there is none.
    pub fn decide_with(
        &mut self,
        asked: &[&Bound],
        pod: &PodInfo,
        cache: &Cache,
        now: Instant,
        time_ms: u64,
    ) -> Result<NodeIndex, FitError> {
        let present = cache.present();
        if present.is_empty() {
            return Err(FitError::new(0));
        }
        let random = u64::from(Self::draw(&mut self.random)) << 32 | u64::from(Self::draw(&mut self.random));
        let start = self.next_start % present.len();
        let prepared = Prepared::new(&self.profile, pod, cache);
        let around = present[start..].iter().chain(&present[..start]).copied();
        let feasible = around.filter(|index| prepared.accepts(cache.node(*index))).take(MAX_NODES).collect::<Vec<_>>();
        self.next_start = start + feasible.len();
        let mut error = FitError::new(present.len());
        let judged = match policies::judge(asked, pod, cache, &feasible, Moment { now, time_ms, random }) {
            Ok(judged) => judged,
            Err(why) => {
                error.refused = Some(why);
                return Err(error);
            }
        };
        if judged.nodes.is_empty() {
            for index in present {
                match judged.rejected.get(index) {
                    Some(reason) => *error.reasons.entry(reason.clone().into()).or_default() += 1,
                    None => prepared.explain(cache.node(*index), &mut error),
                }
            }
            if !judged.rejected.is_empty() {
                // It may have looked at anything.
                (error.woken_by, _) = (Events::ALL, error.rejected_by.insert(USERS));
            }
            return Err(error);
        }
        drop(prepared);
        let (feasible, totals): (Vec<_>, Vec<_>) = judged.nodes.into_iter().unzip();
        Ok(self.best(pod, cache, &feasible, totals))
    }

    /// The highest total among `feasible`, which is not empty; built-in scores are added to `totals`.
    fn best(&mut self, pod: &PodInfo, cache: &Cache, feasible: &[NodeIndex], mut totals: Vec<i64>) -> NodeIndex {
        if let [only] = feasible {
            return *only;
        }
        let nodes: Vec<&NodeInfo> = feasible.iter().map(|index| cache.node(*index)).collect();
        for (weight, score) in scores(&self.profile, pod, cache, feasible) {
            let mut raw: Vec<i64> = nodes.iter().map(|node| score.score(node)).collect();
            score.normalize(&nodes, &mut raw);
            totals.iter_mut().zip(raw).for_each(|(total, score)| *total += weight * score);
        }
        let random = &mut self.random;
        let ranked = feasible.iter().zip(totals).map(|(index, total)| (total, Self::draw(random), *index));
        ranked.max().map_or(feasible[0], |(_, _, index)| index)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plugins::default_profile;
    use crate::plugins::testing::{cluster, node, pod};

    fn algorithm() -> Algorithm {
        Algorithm::new(default_profile(), 42)
    }

    fn asking(name: &str, cpu: &str) -> PodInfo {
        let containers = json!([{"name": "c", "resources": {"requests": {"cpu": cpu}}}]);
        pod(name, json!({"spec": {"containers": containers}}))
    }

    fn tainted(name: &str) -> crate::node::NodeFacts {
        node(name, json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}}))
    }

    #[test]
    fn messages_are_upstreams() {
        let check = |nodes: Vec<crate::node::NodeFacts>, cpu: &str, expected: &str| {
            let cache = cluster(nodes, vec![]);
            let mut algorithm = algorithm();
            // The first decision searches, the second goes by class: both must say the same.
            for _ in 0..2 {
                let error = algorithm.decide(&asking("p", cpu), &cache).unwrap_err();
                assert_eq!(error.to_string(), expected);
            }
        };
        check(vec![], "1", "no nodes available to schedule pods");
        check(vec![node("a", json!({}))], "5", "0/1 nodes are available: 1 Insufficient cpu.");
        check(
            vec![tainted("a"), node("b", json!({})), node("c", json!({}))],
            "5",
            "0/3 nodes are available: 1 node(s) had untolerated taint {k: v}, 2 Insufficient cpu.",
        );
    }

    #[test]
    fn failures_remember_what_may_help() {
        let cache = cluster(vec![tainted("a"), node("b", json!({}))], vec![]);
        let error = algorithm().decide(&asking("p", "5"), &cache).unwrap_err();
        assert_eq!(error.rejected_by, BTreeSet::from(["TaintToleration", "NodeResourcesFit"]));
        assert!(error.woken_by.intersects(Events::POD_REMOVED) && error.woken_by.intersects(Events::NODE_TAINTS));
        assert!(!error.woken_by.intersects(Events::NODE_LABELS));
    }

    #[test]
    fn enough_is_upstreams_share() {
        let check = |nodes, expected| assert_eq!(enough(nodes), expected, "{nodes} nodes");
        check(0, 0);
        check(99, 99);
        check(101, 100);
        check(1000, 420);
        check(5000, 500);
        check(6000, 300);
        check(20_000, 1000);
    }

    #[test]
    fn replicas_fill_nodes_evenly_and_completely() {
        let mut cache = cluster((0..8).map(|index| node(&format!("n{index}"), json!({}))).collect(), vec![]);
        let mut algorithm = algorithm();
        for index in 0..32 {
            let replica = asking(&format!("p{index}"), "1");
            let chosen = algorithm.decide(&replica, &cache).unwrap();
            cache.assume(Arc::new(replica), chosen);
            let loads: Vec<usize> = cache.nodes().map(|node| node.pods.len()).collect();
            let (min, max) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
            assert!(max - min <= 1, "{loads:?}");
        }
        let error = algorithm.decide(&asking("late", "1"), &cache).unwrap_err();
        assert_eq!(error.to_string(), "0/8 nodes are available: 8 Insufficient cpu.");
        cache.forget("p0");
        assert!(algorithm.decide(&asking("late", "1"), &cache).is_ok(), "room that was freed is seen");
    }

    /// Both ways to decide must agree on what is best.
    #[test]
    fn classes_answer_as_a_search_does() {
        let sized = |index: usize| {
            node(&format!("n{index}"), json!({"status": {"allocatable": {"cpu": format!("{}", index + 1)}}}))
        };
        let mut cache = cluster((0..20).map(sized).collect(), vec![]);
        let mut by_class = algorithm();
        for index in 0..60 {
            let replica = asking(&format!("p{index}"), "500m");
            let fast = by_class.decide(&replica, &cache).unwrap();
            let slow = algorithm().decide_by_search(&replica, &cache).unwrap();
            let total = |index: NodeIndex| -> i64 {
                let profile = default_profile();
                let scores = scores(&profile, &replica, &cache, cache.present());
                scores.iter().map(|(weight, score)| weight * score.score(cache.node(index))).sum()
            };
            assert_eq!(total(fast), total(slow), "decision {index}");
            cache.assume(Arc::new(replica), fast);
            if index % 7 == 0 {
                cache.put_node(node(&format!("new{index}"), json!({})));
            }
        }
    }

    #[test]
    fn preferences_decide_among_feasible_nodes() {
        let zone = |name: &str, zone: &str| node(name, json!({"metadata": {"labels": {"zone": zone}}}));
        let cache = cluster(vec![zone("a", "1"), zone("b", "2"), zone("c", "3")], vec![]);
        let term = json!({"weight": 1, "preference": {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["2"]}]}});
        let wishes: Value = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [term]}});
        let wishing = pod("p", json!({"spec": {"affinity": wishes}}));
        for _ in 0..5 {
            let chosen = algorithm().decide(&wishing, &cache).unwrap();
            assert_eq!(cache.node(chosen).facts.name, "b");
        }
    }

    #[test]
    fn many_different_classes_are_forgotten_not_collected() {
        let cache = cluster(vec![node("a", json!({})), node("b", json!({}))], vec![]);
        let mut algorithm = algorithm();
        for milli in 0..500 {
            algorithm.decide(&asking("p", &format!("{milli}m")), &cache).unwrap();
        }
        assert_eq!(algorithm.classes.len(), MAX_CLASSES);
    }
}
