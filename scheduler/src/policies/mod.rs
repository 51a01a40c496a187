//! Scheduling by plugins: `ClusterWasmPlugin`s and `WasmPlugin`s of the world `scheduling` filter and score the nodes that the built-in
//! filters accept.
//!
//! A plugin is asked once per pod, about all of those nodes. Its rejections count like those of built-in filters, its scores are weighted
//! and added to theirs. When it gives no answer, its failure policy says whether the built-in plugins decide alone or the pod waits.
//! It never loads plugins: it looks their slots up.

mod input;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use scaleup_api::plugin::WasmPluginSpec;
use scaleup_api::selector::LabelSelector;
use scaleup_plugins::scheduling::{Answer, Input};
use scaleup_plugins::{Failure, OnFailure, PluginKey, Registry, Slot, World};

use crate::cache::{Cache, NodeIndex};
use crate::pod::PodInfo;

pub use scaleup_plugins::scheduling::MAX_NODES;

/// Weights that a plugin may have.
const WEIGHTS: std::ops::RangeInclusive<i32> = 1..=100;

/// What takes decisions: a [`Slot`], or a test.
pub trait Placer: Send + Sync {
    /// Filters and scores nodes.
    ///
    /// # Errors
    /// Why there is no answer.
    fn place(&self, input: &Input, now: Instant) -> Result<Answer, Failure>;
    /// What then.
    fn on(&self, failure: &Failure) -> OnFailure;
    /// Which version decides, if any.
    fn generation(&self) -> Option<u64>;
}

impl Placer for Slot {
    fn place(&self, input: &Input, now: Instant) -> Result<Answer, Failure> {
        // One task schedules.
        self.policy.place(input, 0, now).map(|decided| decided.answer)
    }

    fn on(&self, failure: &Failure) -> OnFailure {
        self.failure().on(failure.class)
    }

    fn generation(&self) -> Option<u64> {
        self.policy.generations().active.as_ref().map(|active| active.number())
    }
}

/// A plugin and what it is bound to.
pub struct Bound {
    key: PluginKey,
    placer: Arc<dyn Placer>,
    /// Of its version that was seen last.
    generation: Option<u64>,
    binding: Binding,
}

/// Which pods, and how much it counts.
#[derive(Debug, PartialEq)]
struct Binding {
    weight: i64,
    scheduler_names: Vec<String>,
    namespaces: Option<LabelSelector>,
    node_labels: Vec<String>,
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bound").field("key", &self.key).field("binding", &self.binding).finish_non_exhaustive()
    }
}

impl Bound {
    /// `None` for a plugin that has nothing to do with scheduling.
    fn new(key: PluginKey, spec: &WasmPluginSpec, placer: Arc<dyn Placer>) -> Option<Self> {
        if spec.world != World::Scheduling.name() {
            return None;
        }
        let binding = spec.scheduling.clone().unwrap_or_default();
        let selector = binding.namespace_selector.as_ref();
        let mut node_labels = binding.node_labels;
        node_labels.truncate(scaleup_plugins::scheduling::MAX_LABEL_KEYS);
        let binding = Binding {
            weight: i64::from(binding.weight.unwrap_or(1).clamp(*WEIGHTS.start(), *WEIGHTS.end())),
            scheduler_names: binding.scheduler_names,
            // One that cannot be read was not let in; it would select nothing.
            namespaces: selector.map(|s| LabelSelector::from_k8s(s).unwrap_or_else(|_| LabelSelector::nothing())),
            node_labels,
        };
        Some(Self { key, generation: placer.generation(), placer, binding })
    }

    /// Whether it is asked about this pod. Without names and selector a `WasmPlugin` is for its namespace and a `ClusterWasmPlugin` for nothing.
    fn concerns(&self, pod: &PodInfo, cache: &Cache) -> bool {
        if !self.key.namespace.is_empty() {
            return *self.key.namespace == *pod.namespace;
        }
        let Binding { scheduler_names, namespaces, .. } = &self.binding;
        let named = scheduler_names.is_empty() || scheduler_names.contains(&pod.scheduler);
        let selected = namespaces.as_ref().is_none_or(|selector| match cache.namespace(&pod.namespace) {
            Some(labels) => selector.matches(labels),
            None => selector.matches(&BTreeMap::new()),
        });
        named && selected && !(scheduler_names.is_empty() && namespaces.is_none())
    }
}

/// All plugins of the world: those of the cluster first, then by namespace, each by name.
#[derive(Debug, Default)]
pub struct Policies {
    slots: Arc<Registry>,
    bound: BTreeMap<PluginKey, Bound>,
}

/// What plugins made of nodes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// Nodes that no plugin rejected, with their weighted scores.
    pub nodes: Vec<(NodeIndex, i64)>,
    /// Reasons of the others, with the plugin's name.
    pub rejected: BTreeMap<NodeIndex, String>,
}

impl Policies {
    /// Whose slots are in this registry.
    pub fn new(slots: Arc<Registry>) -> Self {
        Self { slots, bound: BTreeMap::new() }
    }

    /// A plugin was added or changed. Whether that changes a binding.
    pub fn put(&mut self, key: PluginKey, spec: &WasmPluginSpec) -> bool {
        let bound = (spec.world == World::Scheduling.name())
            .then(|| Bound::new(key.clone(), spec, self.slots.slot(&key, World::Scheduling)))
            .flatten();
        let Some(bound) = bound else { return self.remove(&key) };
        if self.bound.get(&key).is_some_and(|known| known.binding == bound.binding) {
            return false;
        }
        self.bound.insert(key, bound);
        true
    }

    /// A plugin was deleted. Whether it was bound.
    pub fn remove(&mut self, key: &PluginKey) -> bool {
        self.bound.remove(key).is_some()
    }

    /// These are all there are: of the cluster, or of namespaces.
    pub fn listed(&mut self, of_cluster: bool, seen: &HashSet<PluginKey>) {
        self.bound.retain(|key, _| key.namespace.is_empty() != of_cluster || seen.contains(key));
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bound.is_empty()
    }

    /// Whether there is a profile of this name because of a plugin.
    pub fn has_profile(&self, scheduler: &str) -> bool {
        let cluster = self.bound.values().filter(|bound| bound.key.namespace.is_empty());
        cluster.flat_map(|bound| &bound.binding.scheduler_names).any(|name| name == scheduler)
    }

    /// Whether another version decides somewhere than when this was asked last.
    pub fn have_changed(&mut self) -> bool {
        self.bound.values_mut().fold(false, |changed, bound| {
            let now = bound.placer.generation();
            std::mem::replace(&mut bound.generation, now) != now || changed
        })
    }

    /// The plugins to be asked about a pod, in order.
    pub fn for_pod(&self, pod: &PodInfo, cache: &Cache) -> Vec<&Bound> {
        self.bound.values().filter(|bound| bound.concerns(pod, cache)).collect()
    }
}

/// When and with what luck.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// For breakers and deadlines.
    pub now: Instant,
    /// Milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
    /// A random number.
    pub random: u64,
}

/// Asks plugins about feasible nodes, at most [`MAX_NODES`], each about those that the ones before accepted.
///
/// # Errors
/// Why the pod must wait: a plugin gave no answer, and its failure policy is to refuse then.
pub fn judge(
    asked: &[&Bound],
    pod: &PodInfo,
    cache: &Cache,
    feasible: &[NodeIndex],
    moment: Moment,
) -> Result<Judged, String> {
    let mut judged = Judged { nodes: feasible.iter().map(|index| (*index, 0)).collect(), ..Judged::default() };
    for bound in asked {
        if judged.nodes.is_empty() {
            break;
        }
        let indexes: Vec<NodeIndex> = judged.nodes.iter().map(|(index, _)| *index).collect();
        let input = input::flatten(pod, cache, &indexes, &bound.binding.node_labels, moment);
        match bound.placer.place(&input, moment.now) {
            Ok(answer) => apply(bound, &answer, &mut judged),
            Err(failure) => {
                let (plugin, class) = (bound.key.to_string(), failure.class.name());
                if !failure.skipped {
                    tracing::warn!(plugin, class, %failure, pod = pod.key(), "a scheduling plugin gave no answer");
                }
                if bound.placer.on(&failure) == OnFailure::Refuse {
                    return Err(format!("plugin {plugin:?} gave no answer: {class}: {failure}"));
                }
            }
        }
    }
    Ok(judged)
}

fn apply(bound: &Bound, answer: &Answer, judged: &mut Judged) {
    let before = std::mem::take(&mut judged.nodes);
    for (at, (index, score)) in before.into_iter().enumerate() {
        match answer.rejection(at) {
            Some(reason) => {
                let reason: String = reason.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
                judged.rejected.insert(index, format!("plugin {:?}: {reason}", bound.key.to_string()));
            }
            None => {
                let verdict = answer.verdicts.get(at).copied().unwrap_or(0);
                judged.nodes.push((index, score + bound.binding.weight * i64::from(verdict)));
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Plugins in a few words.

    use super::*;
    use scaleup_plugins::Class;

    type Answers = Box<dyn Fn(&Input) -> Result<Answer, Class> + Send + Sync>;

    /// Answers what it is told to.
    pub struct Fake {
        pub answers: Answers,
        pub on_failure: OnFailure,
        pub generation: parking_lot::Mutex<Option<u64>>,
    }

    impl Placer for Fake {
        fn place(&self, input: &Input, _now: Instant) -> Result<Answer, Failure> {
            assert_eq!(input.check(), Ok(()));
            let failure = |class| Failure { class, message: "it failed".into(), skipped: true };
            let answer = (self.answers)(input).map_err(failure)?;
            assert_eq!(answer.check(input.nodes.len()), Ok(()));
            Ok(answer)
        }
        fn on(&self, _failure: &Failure) -> OnFailure {
            self.on_failure
        }
        fn generation(&self) -> Option<u64> {
            *self.generation.lock()
        }
    }

    pub fn fake(answers: impl Fn(&Input) -> Result<Answer, Class> + Send + Sync + 'static) -> Fake {
        Fake {
            answers: Box::new(answers),
            on_failure: OnFailure::BuiltIn,
            generation: parking_lot::Mutex::new(Some(1)),
        }
    }

    impl Policies {
        /// With a plugin that is no slot's.
        pub fn put_fake(&mut self, key: PluginKey, scheduling: serde_json::Value, placer: Arc<Fake>) {
            let spec = serde_json::json!({"world": "scheduling", "source": {}, "scheduling": scheduling});
            let spec = serde_json::from_value(spec).unwrap();
            self.bound.insert(key.clone(), Bound::new(key, &spec, placer).unwrap());
        }
    }
}

#[cfg(test)]
mod tests {
    use scaleup_plugins::Class;
    use serde_json::{Value, json};

    use super::testing::fake;
    use super::*;
    use crate::plugins::testing::{cluster, node, pod};

    #[test]
    fn bindings_say_which_pods_a_plugin_is_asked_about() {
        let mut cache = cluster(vec![], vec![]);
        cache.put_namespace("ns".into(), BTreeMap::from([("tier".to_owned(), "gold".to_owned())]));
        let check = |key: PluginKey, binding: Value, scheduler: &str, expected: bool| {
            let mut policies = Policies::default();
            policies.put_fake(key, binding.clone(), Arc::new(fake(|_| Ok(Answer::default()))));
            let pod = pod("p", json!({"spec": {"schedulerName": scheduler}}));
            assert_eq!(!policies.for_pod(&pod, &cache).is_empty(), expected, "{binding}");
        };
        let (any, gpu) = ("default-scheduler", "gpu");
        let selector = |tier: &str| json!({"matchLabels": {"tier": tier}});
        check(PluginKey::namespaced("ns", "p"), json!({}), any, true);
        check(PluginKey::namespaced("other", "p"), json!({}), any, false);
        check(PluginKey::cluster("p"), json!({}), any, false);
        check(PluginKey::cluster("p"), json!({"schedulerNames": ["gpu"]}), gpu, true);
        check(PluginKey::cluster("p"), json!({"schedulerNames": ["gpu"]}), any, false);
        check(PluginKey::cluster("p"), json!({"namespaceSelector": selector("gold")}), any, true);
        check(PluginKey::cluster("p"), json!({"namespaceSelector": selector("tin")}), any, false);
        check(
            PluginKey::cluster("p"),
            json!({"schedulerNames": ["gpu"], "namespaceSelector": selector("tin")}),
            gpu,
            false,
        );
    }

    #[test]
    fn scores_are_weighted_and_rejections_named() {
        let cache = cluster(vec![node("a", json!({})), node("b", json!({})), node("c", json!({}))], vec![]);
        let mut policies = Policies::default();
        let first = |_: &Input| Ok(Answer { verdicts: vec![50, -1, 10], reasons: vec!["no free\u{7} GPU".into()] });
        policies.put_fake(
            PluginKey::cluster("a"),
            json!({"schedulerNames": ["gpu"], "weight": 3}),
            Arc::new(fake(first)),
        );
        // It sees only what the first one left.
        let second = |input: &Input| Ok(Answer { verdicts: vec![7; input.nodes.len()], reasons: vec![] });
        policies.put_fake(PluginKey::namespaced("ns", "b"), json!({}), Arc::new(fake(second)));
        let pod = pod("p", json!({"spec": {"schedulerName": "gpu"}}));
        let moment = Moment { now: Instant::now(), time_ms: 5, random: 7 };
        let asked = policies.for_pod(&pod, &cache);
        let judged = judge(&asked, &pod, &cache, cache.present(), moment).unwrap();
        assert_eq!(judged.nodes, [(0, 157), (2, 37)]);
        assert_eq!(judged.rejected, BTreeMap::from([(1, "plugin \"a\": no free\u{fffd} GPU".to_owned())]));
    }

    #[test]
    fn failure_policies_decide_about_failures() {
        let cache = cluster(vec![node("a", json!({}))], vec![]);
        let moment = Moment { now: Instant::now(), time_ms: 5, random: 7 };
        let judged = |on_failure| {
            let mut policies = Policies::default();
            let mut failing = fake(|_| Err(Class::Timeout));
            failing.on_failure = on_failure;
            policies.put_fake(PluginKey::namespaced("ns", "p"), json!({}), Arc::new(failing));
            let pod = pod("p", json!({}));
            judge(&policies.for_pod(&pod, &cache), &pod, &cache, cache.present(), moment)
        };
        assert_eq!(judged(OnFailure::BuiltIn).unwrap().nodes, [(0, 0)]);
        assert_eq!(judged(OnFailure::Refuse).unwrap_err(), "plugin \"ns/p\" gave no answer: timeout: it failed");
    }

    #[test]
    fn another_version_is_noticed_once() {
        let mut policies = Policies::default();
        let placer = Arc::new(fake(|_| Ok(Answer::default())));
        policies.put_fake(PluginKey::cluster("p"), json!({"schedulerNames": ["gpu"]}), placer.clone());
        assert!(!policies.have_changed() && policies.has_profile("gpu") && !policies.has_profile("cpu"));
        *placer.generation.lock() = Some(2);
        assert!(policies.have_changed() && !policies.have_changed());
        policies.listed(false, &HashSet::new());
        assert!(!policies.is_empty());
        policies.listed(true, &HashSet::new());
        assert!(policies.is_empty());
    }
}
