//! The cluster as the scheduler believes it to be: nodes, the pods on them, and the pods it has just decided on.
//!
//! Updated in place by watch events and decisions, so a "snapshot" costs nothing: one task owns it. Two counters tell
//! others what changed: [`Cache::structure`] when any node offers something else, and a bounded log of nodes whose pods
//! changed. It does no I/O and knows no clock; callers pass the time.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::framework::Events;
use crate::node::{NodeFacts, NodeInfo};
use crate::pod::PodInfo;
use crate::terms::Labels;

/// A decision that was bound but never seen in the watch is forgotten after this long.
const ASSUMED_EXPIRY: Duration = Duration::from_secs(300);
/// Entries in the log of changed nodes.
const LOG_LENGTH: usize = 16_384;

/// Index of a node in the cache.
pub type NodeIndex = usize;

/// How a pod came to be on its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Decided; the binding is under way.
    Assumed,
    /// Decided and bound; the watch has not said so yet.
    Bound { forget_at: Instant },
    /// The watch says so.
    Confirmed,
}

struct Placed {
    pod: Arc<PodInfo>,
    node: NodeIndex,
    state: State,
}

/// See the module's description.
#[derive(Default)]
pub struct Cache {
    nodes: Vec<NodeInfo>,
    by_name: HashMap<String, NodeIndex>,
    /// Nodes that are there, in a stable order.
    present: Vec<NodeIndex>,
    pods: HashMap<String, Placed>,
    namespaces: HashMap<String, Labels>,
    /// On how many nodes each image is.
    image_nodes: HashMap<String, usize>,
    /// `PreferNoSchedule` taints on all nodes.
    soft_taints: usize,
    /// Pods that say something about other pods.
    affinity_pods: usize,
    structure: u64,
    log: VecDeque<NodeIndex>,
    /// Entries ever dropped from the log's front.
    log_start: u64,
}

impl Cache {
    /// Nodes that are there.
    pub fn present(&self) -> &[NodeIndex] {
        &self.present
    }

    /// A node by index.
    pub fn node(&self, index: NodeIndex) -> &NodeInfo {
        &self.nodes[index]
    }

    /// Nodes that are there.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.present.iter().map(|index| &self.nodes[*index])
    }

    /// A namespace's labels.
    pub fn namespace(&self, name: &str) -> Option<&Labels> {
        self.namespaces.get(name)
    }

    /// On how many nodes an image is.
    pub fn nodes_with_image(&self, image: &str) -> usize {
        self.image_nodes.get(image).copied().unwrap_or(0)
    }

    /// Whether any node has a `PreferNoSchedule` taint.
    pub fn has_soft_taints(&self) -> bool {
        self.soft_taints > 0
    }

    /// Whether any placed pod says something about other pods.
    pub fn has_affinity_pods(&self) -> bool {
        self.affinity_pods > 0
    }

    /// Changes whenever a node comes, goes or offers something else.
    pub fn structure(&self) -> u64 {
        self.structure
    }

    /// Where the log of changed nodes ends.
    pub fn log_end(&self) -> u64 {
        self.log_start + self.log.len() as u64
    }

    /// Nodes changed since `position`, with repetitions; `None` if the log does not go back that far.
    pub fn changed_since(&self, position: u64) -> Option<impl Iterator<Item = NodeIndex> + '_> {
        let skip = usize::try_from(position.checked_sub(self.log_start)?).ok()?;
        Some(self.log.iter().skip(skip).copied())
    }

    fn touch(&mut self, index: NodeIndex) {
        if self.log.len() == LOG_LENGTH {
            self.log.pop_front();
            self.log_start += 1;
        }
        self.log.push_back(index);
    }

    fn index(&mut self, name: &str) -> NodeIndex {
        if let Some(index) = self.by_name.get(name) {
            return *index;
        }
        // Slots of nodes that are gone and empty are used again.
        let index =
            self.nodes.iter().position(|node| !node.present && node.pods.is_empty() && node.facts.name.is_empty());
        let index = index.unwrap_or_else(|| {
            self.nodes.push(NodeInfo::default());
            self.nodes.len() - 1
        });
        name.clone_into(&mut self.nodes[index].facts.name);
        self.by_name.insert(name.to_owned(), index);
        index
    }

    fn release_if_empty(&mut self, index: NodeIndex) {
        let node = &mut self.nodes[index];
        if !node.present && node.pods.is_empty() {
            self.by_name.remove(&node.facts.name);
            *node = NodeInfo::default();
        }
    }

    fn count_facts(&mut self, facts: &NodeFacts, add: bool) {
        let step = |count: &mut usize| *count = if add { *count + 1 } else { count.saturating_sub(1) };
        for _ in facts.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule") {
            step(&mut self.soft_taints);
        }
        for image in facts.images.keys() {
            let count = self.image_nodes.entry(image.clone()).or_default();
            step(count);
            if *count == 0 {
                self.image_nodes.remove(image);
            }
        }
    }

    /// A node was added or changed; what that may help.
    pub fn put_node(&mut self, facts: NodeFacts) -> Events {
        let index = self.index(&facts.name);
        if self.nodes[index].present && self.nodes[index].facts == facts {
            return Events::NONE;
        }
        let old = std::mem::replace(&mut self.nodes[index].facts, facts);
        let was_present = std::mem::replace(&mut self.nodes[index].present, true);
        let facts = self.nodes[index].facts.clone();
        self.structure += 1;
        self.count_facts(&facts, true);
        if !was_present {
            self.present.push(index);
            return Events::NODE_ADDED;
        }
        self.count_facts(&old, false);
        let mut events = Events::NONE;
        if old.allocatable != facts.allocatable {
            events = events | Events::NODE_ALLOCATABLE;
        }
        if old.labels != facts.labels {
            events = events | Events::NODE_LABELS;
        }
        if old.taints != facts.taints || old.unschedulable != facts.unschedulable {
            events = events | Events::NODE_TAINTS;
        }
        events
    }

    /// A node went away. Its pods stay on record until they go too.
    pub fn remove_node(&mut self, name: &str) -> Events {
        let Some(index) = self.by_name.get(name).copied().filter(|index| self.nodes[*index].present) else {
            return Events::NONE;
        };
        let facts = NodeFacts { name: name.to_owned(), ..NodeFacts::default() };
        let old = std::mem::replace(&mut self.nodes[index].facts, facts);
        self.nodes[index].present = false;
        self.count_facts(&old, false);
        self.present.retain(|present| *present != index);
        self.structure += 1;
        self.release_if_empty(index);
        Events::NODE_REMOVED
    }

    /// Names of the nodes that are there.
    pub fn node_names(&self) -> Vec<String> {
        self.nodes().map(|node| node.facts.name.clone()).collect()
    }

    /// A namespace was added or changed.
    pub fn put_namespace(&mut self, name: String, labels: Labels) -> Events {
        match self.namespaces.insert(name, labels.clone()) {
            Some(old) if old == labels => Events::NONE,
            _ => Events::NAMESPACE,
        }
    }

    /// A namespace went away.
    pub fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    fn place(&mut self, pod: Arc<PodInfo>, node: NodeIndex, state: State) {
        self.affinity_pods += usize::from(pod.has_pod_affinity());
        self.nodes[node].add(pod.clone());
        self.pods.insert(pod.uid.clone(), Placed { pod, node, state });
        self.touch(node);
    }

    fn unplace(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let placed = self.pods.remove(uid)?;
        self.affinity_pods -= usize::from(placed.pod.has_pod_affinity());
        self.nodes[placed.node].remove(uid);
        self.touch(placed.node);
        self.release_if_empty(placed.node);
        Some(placed.pod)
    }

    /// Counts on a decision that is being carried out.
    pub fn assume(&mut self, pod: Arc<PodInfo>, node: NodeIndex) {
        self.place(pod, node, State::Assumed);
    }

    /// The decision was carried out.
    pub fn bound(&mut self, uid: &str, now: Instant) {
        if let Some(placed) = self.pods.get_mut(uid)
            && placed.state == State::Assumed
        {
            placed.state = State::Bound { forget_at: now + ASSUMED_EXPIRY };
        }
    }

    /// The decision failed; whether the pod was still only assumed.
    pub fn forget(&mut self, uid: &str) -> bool {
        let assumed = self.pods.get(uid).is_some_and(|placed| placed.state != State::Confirmed);
        assumed && self.unplace(uid).is_some()
    }

    /// Whether a decision on the pod is under way or waits to be seen.
    pub fn is_assumed(&self, uid: &str) -> bool {
        self.pods.get(uid).is_some_and(|placed| placed.state != State::Confirmed)
    }

    /// The watch shows a pod on a node.
    pub fn put_pod(&mut self, pod: Arc<PodInfo>) -> Events {
        let node = self.index(&pod.node);
        let known = self.pods.get(&pod.uid);
        let events = match known {
            None => Events::POD_ADDED,
            Some(known) if known.pod.labels != pod.labels || known.state != State::Confirmed => Events::POD_ADDED,
            Some(_) => Events::NONE,
        };
        let shrunk = known.is_some_and(|known| known.pod.requests != pod.requests || known.node != node);
        let same = known.is_some_and(|known| {
            known.node == node
                && known.pod.class == pod.class
                && known.pod.labels == pod.labels
                && known.pod.terminating == pod.terminating
        });
        if let Some(placed) = self.pods.get_mut(&pod.uid).filter(|_| same) {
            // The usual confirmation of a decision: nothing to recompute.
            placed.state = State::Confirmed;
            return events;
        }
        self.unplace(&pod.uid);
        // Unplacing may have released an otherwise unknown node.
        let node = self.index(&pod.node);
        self.place(pod, node, State::Confirmed);
        if shrunk { events | Events::POD_REMOVED } else { events }
    }

    /// A pod is gone or has ended.
    pub fn remove_pod(&mut self, uid: &str) -> Events {
        if self.unplace(uid).is_some() { Events::POD_REMOVED } else { Events::NONE }
    }

    /// Forgets decisions that were bound long ago and never seen.
    pub fn expire(&mut self, now: Instant) -> Events {
        let stale = |placed: &Placed| matches!(placed.state, State::Bound { forget_at } if forget_at <= now);
        let expired: Vec<String> =
            self.pods.values().filter(|placed| stale(placed)).map(|placed| placed.pod.uid.clone()).collect();
        let mut events = Events::NONE;
        for uid in expired {
            tracing::warn!(uid, "a bound pod never appeared in the watch; its place is given up");
            events = events | self.remove_pod(&uid);
        }
        events
    }

    /// Confirmed pods that are not among `seen`: they went away while the watch was down.
    pub fn missing(&self, seen: &HashSet<String>) -> Vec<String> {
        let gone = |placed: &&Placed| placed.state == State::Confirmed && !seen.contains(&placed.pod.uid);
        self.pods.values().filter(gone).map(|placed| placed.pod.uid.clone()).collect()
    }
}
