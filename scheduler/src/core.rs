//! The scheduler without the world: changes go in, decisions come out. No I/O, no clock, no tasks.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use scaleup_api::plugin::WasmPluginSpec;
use scaleup_plugins::PluginKey;

use crate::algorithm::{Algorithm, FitError};
use crate::cache::Cache;
use crate::framework::{Events, Profile};
use crate::node::NodeFacts;
use crate::pod::PodInfo;
use crate::policies::Policies;
use crate::queue::{Counts, Queue};
use crate::terms::Labels;

/// What was seen in the cluster.
#[derive(Debug)]
pub enum Change {
    /// A pod was added or changed.
    Pod(Box<PodInfo>),
    /// A pod was deleted.
    PodGone(String),
    /// These were all the pods there are, by UID.
    PodsListed(HashSet<String>),
    /// A node was added or changed.
    Node(Box<NodeFacts>),
    /// A node was deleted.
    NodeGone(String),
    /// These were all the nodes there are, by name.
    NodesListed(HashSet<String>),
    /// A namespace was added or changed.
    Namespace(String, Labels),
    /// A namespace was deleted.
    NamespaceGone(String),
    /// All namespaces have been seen.
    NamespacesListed,
    /// A plugin of a user was added or changed.
    Plugin(PluginKey, Box<WasmPluginSpec>),
    /// A plugin of a user was deleted.
    PluginGone(PluginKey),
    /// These were all the plugins there are: `ClusterWasmPlugin`s if `true`, else `WasmPlugin`s.
    PluginsListed(bool, HashSet<PluginKey>),
}

/// What is to be done.
#[derive(Debug)]
pub enum Decision {
    /// Bind the pod to the node and report with [`Core::finished`].
    Bind {
        /// The pod.
        pod: Arc<PodInfo>,
        /// The node's name.
        node: String,
    },
    /// Tell the user that no node will do.
    Unschedulable {
        /// The pod.
        pod: Arc<PodInfo>,
        /// Upstream's message.
        message: String,
    },
    /// Tell the user that a plugin gave no answer; the pod is tried again after a backoff.
    Refused {
        /// The pod.
        pod: Arc<PodInfo>,
        /// Which plugin, and why.
        message: String,
    },
}

/// How a binding went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The pod has its node.
    Bound,
    /// The pod is gone.
    Gone,
    /// It did not work; another try may.
    Failed,
}

/// See the module's description.
pub struct Core {
    cache: Cache,
    queue: Queue,
    algorithm: Algorithm,
    policies: Policies,
    /// Milliseconds since 1970-01-01 UTC, as far as plugins are concerned.
    time_ms: u64,
    /// Pods without a node that name another scheduler, by UID: a plugin may make its name ours.
    others: HashMap<String, Arc<PodInfo>>,
    /// Changes that [`Core::settle`] has yet to announce to the queue.
    pending: Events,
    pods_listed: bool,
    nodes_listed: bool,
    namespaces_listed: bool,
    /// `WasmPlugin`s and `ClusterWasmPlugin`s.
    plugins_listed: [bool; 2],
}

impl Core {
    /// Knows nothing yet; `seed` breaks ties.
    pub fn new(profile: Profile, seed: u64) -> Self {
        Self {
            cache: Cache::default(),
            queue: Queue::default(),
            algorithm: Algorithm::new(profile, seed),
            policies: Policies::default(),
            time_ms: 0,
            others: HashMap::new(),
            pending: Events::NONE,
            pods_listed: false,
            nodes_listed: false,
            namespaces_listed: false,
            plugins_listed: [false; 2],
        }
    }

    /// With the plugins of users that are in this registry.
    #[must_use]
    pub fn with_plugins(mut self, plugins: Arc<scaleup_plugins::Registry>) -> Self {
        self.policies = Policies::new(plugins);
        self
    }

    /// Whether a decision may take as long as a user's plugin may.
    pub fn asks_plugins(&self) -> bool {
        !self.policies.is_empty()
    }

    /// What plugins are told of the time from now on: milliseconds since 1970-01-01 UTC.
    pub fn tell_time(&mut self, time_ms: u64) {
        self.time_ms = time_ms;
    }

    /// Takes note of a change.
    pub fn apply(&mut self, change: Change, now: Instant) {
        let events = match change {
            Change::Pod(pod) => self.pod(*pod, now),
            Change::PodGone(uid) => self.pod_gone(&uid),
            Change::PodsListed(seen) => self.pods_listed(&seen),
            Change::Node(facts) => self.cache.put_node(*facts),
            Change::NodeGone(name) => self.cache.remove_node(&name),
            Change::NodesListed(seen) => {
                self.nodes_listed = true;
                let gone = self.cache.node_names().into_iter().filter(|name| !seen.contains(name));
                gone.fold(Events::NONE, |events, name| events | self.cache.remove_node(&name))
            }
            Change::Namespace(name, labels) => self.cache.put_namespace(name, labels),
            Change::NamespaceGone(name) => {
                self.cache.remove_namespace(&name);
                Events::NONE
            }
            Change::NamespacesListed => {
                self.namespaces_listed = true;
                Events::NONE
            }
            Change::Plugin(key, spec) if self.policies.put(key.clone(), &spec) => self.plugins_changed(now),
            Change::PluginGone(key) if self.policies.remove(&key) => self.plugins_changed(now),
            Change::Plugin(..) | Change::PluginGone(_) => Events::NONE,
            Change::PluginsListed(of_cluster, seen) => {
                self.plugins_listed[usize::from(of_cluster)] = true;
                self.policies.listed(of_cluster, &seen);
                self.plugins_changed(now)
            }
        };
        self.pending = self.pending | events;
    }

    /// Whether the pod names a profile of this scheduler.
    fn is_ours(&self, pod: &PodInfo) -> bool {
        pod.scheduler == self.algorithm.profile().scheduler_name || self.policies.has_profile(&pod.scheduler)
    }

    /// Profiles may have come or gone.
    fn plugins_changed(&mut self, now: Instant) -> Events {
        for pod in self.queue.pods().filter(|pod| !self.is_ours(pod)).cloned().collect::<Vec<_>>() {
            self.queue.remove(&pod.uid);
            self.others.insert(pod.uid.clone(), pod);
        }
        let others = self.others.values().filter(|pod| self.is_ours(pod));
        for pod in others.cloned().collect::<Vec<_>>() {
            self.others.remove(&pod.uid);
            self.queue.put(pod, now);
        }
        Events::PLUGIN
    }

    fn pod(&mut self, pod: PodInfo, now: Instant) -> Events {
        if !pod.node.is_empty() {
            self.others.remove(&pod.uid);
            self.queue.remove(&pod.uid);
            return if pod.terminal { self.cache.remove_pod(&pod.uid) } else { self.cache.put_pod(Arc::new(pod)) };
        }
        self.others.remove(&pod.uid);
        if pod.terminal || pod.terminating {
            self.queue.remove(&pod.uid);
        } else if !self.is_ours(&pod) {
            self.queue.remove(&pod.uid);
            self.others.insert(pod.uid.clone(), Arc::new(pod));
        } else if self.queue.contains(&pod.uid) || !self.cache.is_assumed(&pod.uid) {
            // Else it is bound and the watch is late.
            self.queue.put(Arc::new(pod), now);
        }
        Events::NONE
    }

    fn pod_gone(&mut self, uid: &str) -> Events {
        self.others.remove(uid);
        self.queue.remove(uid);
        self.cache.remove_pod(uid)
    }

    fn pods_listed(&mut self, seen: &HashSet<String>) -> Events {
        self.pods_listed = true;
        self.others.retain(|uid, _| seen.contains(uid));
        for uid in self.queue.uids() {
            if !seen.contains(&uid) {
                self.queue.remove(&uid);
            }
        }
        let missing = self.cache.missing(seen);
        missing.iter().fold(Events::NONE, |events, uid| events | self.cache.remove_pod(uid))
    }

    /// Wakes the pods that the changes since the last time may help.
    pub fn settle(&mut self, now: Instant) {
        if self.policies.have_changed() {
            self.pending = self.pending | Events::PLUGIN;
        }
        let events = std::mem::replace(&mut self.pending, Events::NONE);
        self.queue.wake(events, now);
    }

    /// To be called now and then: forgets stale assumptions and gives stale pods another try.
    pub fn tidy(&mut self, now: Instant) {
        self.pending = self.pending | self.cache.expire(now);
        self.queue.flush(now);
    }

    /// Whether everything was listed once. Before that any decision would be blind.
    pub fn is_synced(&self) -> bool {
        self.pods_listed && self.nodes_listed && self.namespaces_listed && self.plugins_listed == [true; 2]
    }

    /// Whether there is a pod to try.
    pub fn is_ready(&self, now: Instant) -> bool {
        self.is_synced() && self.queue.is_ready(now)
    }

    /// When the next pod will be, if none is.
    pub fn next_due(&self) -> Option<Instant> {
        self.queue.next_due()
    }

    /// Tries the next pod.
    pub fn next(&mut self, now: Instant) -> Option<Decision> {
        if !self.is_synced() {
            return None;
        }
        let pod = self.queue.pop(now)?;
        let asked = self.policies.for_pod(&pod, &self.cache);
        let decided = match asked.as_slice() {
            [] => self.algorithm.decide(&pod, &self.cache),
            asked => self.algorithm.decide_with(asked, &pod, &self.cache, now, self.time_ms),
        };
        match decided {
            Ok(index) => {
                let node = self.cache.node(index).facts.name.clone();
                self.cache.assume(pod.clone(), index);
                Some(Decision::Bind { pod, node })
            }
            Err(FitError { refused: Some(message), .. }) => {
                self.queue.retry(&pod.uid, now);
                Some(Decision::Refused { pod, message })
            }
            Err(error) => {
                self.queue.unschedulable(&pod.uid, error.woken_by, now);
                Some(Decision::Unschedulable { message: error.to_string(), pod })
            }
        }
    }

    /// How the binding of a pod went.
    pub fn finished(&mut self, uid: &str, outcome: Outcome, now: Instant) {
        match outcome {
            Outcome::Bound => {
                self.cache.bound(uid, now);
                self.queue.remove(uid);
            }
            Outcome::Gone => {
                self.queue.remove(uid);
                self.give_up(uid);
            }
            Outcome::Failed => {
                self.queue.retry(uid, now);
                self.give_up(uid);
            }
        }
    }

    fn give_up(&mut self, uid: &str) {
        if self.cache.forget(uid) {
            self.pending = self.pending | Events::POD_REMOVED;
        }
    }

    /// How many pods wait where.
    pub fn counts(&self) -> Counts {
        self.queue.counts()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use scaleup_plugins::scheduling::{Answer, Input};
    use scaleup_plugins::{Class, OnFailure};

    use super::*;
    use crate::plugins::default_profile;
    use crate::plugins::testing::{node, pod};
    use crate::policies::testing::{Fake, fake};
    use crate::queue::INITIAL_BACKOFF;

    fn synced(nodes: &[&str], now: Instant) -> Core {
        let mut core = Core::new(default_profile(), 1);
        for name in nodes {
            core.apply(Change::Node(Box::new(node(name, json!({})))), now);
        }
        core.apply(Change::NodesListed(nodes.iter().map(|name| (*name).to_owned()).collect()), now);
        core.apply(Change::PodsListed(HashSet::new()), now);
        core.apply(Change::NamespacesListed, now);
        for of_cluster in [false, true] {
            core.apply(Change::PluginsListed(of_cluster, HashSet::new()), now);
        }
        core
    }

    fn add(core: &mut Core, name: &str, more: Value, now: Instant) {
        core.apply(Change::Pod(Box::new(pod(name, more))), now);
        core.settle(now);
    }

    fn cpu(amount: &str) -> Value {
        json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": amount}}}]}})
    }

    /// What the core does next, in words.
    fn next(core: &mut Core, now: Instant) -> String {
        match core.next(now) {
            None => "nothing".to_owned(),
            Some(Decision::Bind { pod, node }) => format!("{} to {node}", pod.key()),
            Some(Decision::Unschedulable { pod, message } | Decision::Refused { pod, message }) => {
                format!("{}: {message}", pod.key())
            }
        }
    }

    #[test]
    fn nothing_is_decided_before_everything_was_seen() {
        let now = Instant::now();
        let mut core = Core::new(default_profile(), 1);
        add(&mut core, "p", json!({}), now);
        assert_eq!(next(&mut core, now), "nothing");
        core.apply(Change::PodsListed(HashSet::from(["p".to_owned()])), now);
        core.apply(Change::NodesListed(HashSet::new()), now);
        assert_eq!(next(&mut core, now), "nothing");
        core.apply(Change::NamespacesListed, now);
        core.apply(Change::PluginsListed(false, HashSet::new()), now);
        assert_eq!(next(&mut core, now), "nothing");
        core.apply(Change::PluginsListed(true, HashSet::new()), now);
        assert_eq!(next(&mut core, now), "ns/p: no nodes available to schedule pods");
    }

    #[test]
    fn only_our_pending_pods_are_scheduled() {
        let now = Instant::now();
        let check = |more: Value, expected: &str| {
            let mut core = synced(&["a"], now);
            add(&mut core, "p", more.clone(), now);
            assert_eq!(next(&mut core, now), expected, "{more}");
        };
        check(json!({}), "ns/p to a");
        check(json!({"spec": {"schedulerName": "other"}}), "nothing");
        check(json!({"spec": {"nodeName": "a"}}), "nothing");
        check(json!({"spec": {"schedulingGates": [{"name": "g"}]}}), "nothing");
        check(json!({"status": {"phase": "Failed"}}), "nothing");
        check(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}), "nothing");
    }

    #[test]
    fn a_decision_counts_before_it_is_seen() {
        let now = Instant::now();
        let mut core = synced(&["a"], now);
        add(&mut core, "first", cpu("3"), now);
        add(&mut core, "second", cpu("3"), now);
        assert_eq!(next(&mut core, now), "ns/first to a");
        assert_eq!(next(&mut core, now), "ns/second: 0/1 nodes are available: 1 Insufficient cpu.");
        core.finished("first", Outcome::Bound, now);
        assert_eq!(core.counts().unschedulable, 1);
        // The first one ends: room for the second, once its backoff is over.
        core.apply(Change::PodGone("first".to_owned()), now);
        core.settle(now);
        assert_eq!(next(&mut core, now), "nothing");
        assert_eq!(next(&mut core, now + INITIAL_BACKOFF), "ns/second to a");
    }

    #[test]
    fn a_failed_binding_gives_the_place_back() {
        let now = Instant::now();
        let mut core = synced(&["a"], now);
        add(&mut core, "p", cpu("3"), now);
        assert_eq!(next(&mut core, now), "ns/p to a");
        core.finished("p", Outcome::Failed, now);
        core.settle(now);
        assert_eq!(core.counts().backoff, 1);
        assert_eq!(next(&mut core, now + INITIAL_BACKOFF), "ns/p to a");
        core.finished("p", Outcome::Gone, now);
        add(&mut core, "other", cpu("4"), now);
        assert_eq!(next(&mut core, now), "ns/other to a");
    }

    #[test]
    fn stale_news_of_a_pod_being_bound_changes_nothing() {
        let now = Instant::now();
        let mut core = synced(&["a"], now);
        add(&mut core, "p", cpu("3"), now);
        assert_eq!(next(&mut core, now), "ns/p to a");
        add(&mut core, "p", cpu("3"), now);
        assert_eq!(next(&mut core, now), "nothing");
        core.finished("p", Outcome::Bound, now);
        // The watch still delivers the pod as it was before the binding.
        add(&mut core, "p", cpu("3"), now);
        assert_eq!(next(&mut core, now), "nothing");
    }

    #[test]
    fn a_relist_finds_what_was_missed() {
        let now = Instant::now();
        let mut core = synced(&["a", "b"], now);
        let mut placed = cpu("4");
        placed["spec"]["nodeName"] = "a".into();
        add(&mut core, "placed", placed, now);
        add(&mut core, "waiting", cpu("5"), now);
        core.apply(Change::NodesListed(HashSet::from(["a".to_owned()])), now);
        core.apply(Change::PodsListed(HashSet::new()), now);
        core.settle(now);
        assert_eq!(next(&mut core, now), "nothing", "the waiting pod is gone");
        add(&mut core, "new", cpu("4"), now);
        assert_eq!(next(&mut core, now), "ns/new to a", "b is gone, and so is the pod on a");
    }

    #[test]
    fn ended_pods_free_their_place() {
        let now = Instant::now();
        let mut core = synced(&["a"], now);
        let mut job = cpu("4");
        job["spec"]["nodeName"] = "a".into();
        add(&mut core, "job", job.clone(), now);
        add(&mut core, "p", cpu("1"), now);
        assert_eq!(next(&mut core, now), "ns/p: 0/1 nodes are available: 1 Insufficient cpu.");
        job["status"] = json!({"phase": "Succeeded"});
        add(&mut core, "job", job, now);
        assert_eq!(next(&mut core, now + INITIAL_BACKOFF), "ns/p to a");
    }

    /// A core with nodes `a` and `b` and a plugin for the profile `gpu`.
    fn with_plugin(placer: Arc<Fake>, now: Instant) -> Core {
        let mut core = synced(&["a", "b"], now);
        core.policies.put_fake(PluginKey::cluster("gpu"), json!({"schedulerNames": ["gpu"]}), placer);
        core
    }

    fn for_gpu() -> Value {
        json!({"spec": {"schedulerName": "gpu"}})
    }

    #[test]
    fn a_plugin_makes_a_profile_and_says_why_nodes_will_not_do() {
        let now = Instant::now();
        let answer = |_: &Input| Ok(Answer { verdicts: vec![-1, -1], reasons: vec!["no free GPU".into()] });
        let placer = Arc::new(fake(answer));
        let mut core = with_plugin(placer.clone(), now);
        add(&mut core, "p", for_gpu(), now);
        add(&mut core, "q", json!({}), now);
        assert_eq!(next(&mut core, now), "ns/p: 0/2 nodes are available: 2 plugin \"gpu\": no free GPU.");
        assert!(next(&mut core, now).starts_with("ns/q to "), "it is not asked about others");
        core.settle(now);
        assert_eq!(core.counts().unschedulable, 1);
        // Another version may say something else.
        *placer.generation.lock() = Some(2);
        core.settle(now);
        assert_eq!((core.counts().unschedulable, core.counts().backoff), (0, 1));
    }

    #[test]
    fn a_plugins_score_decides_among_equals() {
        let now = Instant::now();
        for (best, expected) in [(0, "ns/p to a"), (1, "ns/p to b")] {
            let answer = move |_: &Input| {
                Ok(Answer { verdicts: (0..2).map(|i| i32::from(i == best)).collect(), ..Answer::default() })
            };
            let mut core = with_plugin(Arc::new(fake(answer)), now);
            add(&mut core, "p", for_gpu(), now);
            assert_eq!(next(&mut core, now), expected);
        }
    }

    #[test]
    fn a_pod_waits_for_a_plugin_that_must_answer() {
        let now = Instant::now();
        let mut failing = fake(|_| Err(Class::Trap));
        failing.on_failure = OnFailure::Refuse;
        let mut core = with_plugin(Arc::new(failing), now);
        add(&mut core, "p", for_gpu(), now);
        assert_eq!(next(&mut core, now), "ns/p: plugin \"gpu\" gave no answer: trap: it failed");
        assert_eq!(core.counts().backoff, 1);
        let mut core = with_plugin(Arc::new(fake(|_| Err(Class::Trap))), now);
        add(&mut core, "p", for_gpu(), now);
        assert!(next(&mut core, now).starts_with("ns/p to "), "the built-in plugins decide");
    }

    #[test]
    fn pods_of_a_profile_wait_for_its_plugin() {
        let now = Instant::now();
        let mut core = synced(&["a"], now);
        add(&mut core, "p", for_gpu(), now);
        assert_eq!(next(&mut core, now), "nothing", "some other scheduler's");
        let spec = |names: &[&str]| {
            let spec = json!({"world": "scheduling", "source": {}, "scheduling": {"schedulerNames": names}});
            Box::new(serde_json::from_value(spec).unwrap())
        };
        core.apply(Change::Plugin(PluginKey::cluster("gpu"), spec(&["gpu"])), now);
        core.settle(now);
        assert_eq!(next(&mut core, now), "ns/p: plugin \"gpu\" gave no answer: fetch: no module has been loaded yet");
        core.apply(Change::Plugin(PluginKey::cluster("gpu"), spec(&["other"])), now);
        assert_eq!((core.counts(), core.others.len()), (Counts::default(), 1));
        core.apply(Change::PodGone("p".to_owned()), now);
        assert!(core.others.is_empty());
    }
}
