//! The plugins of a process by name: what those who load fill and those who decide look up.
//!
//! A name has a slot as soon as anybody asks for it, whether such a plugin exists or not, so that a binding can be compiled before its
//! plugin is loaded and never has to be compiled again when it changes.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{FailurePolicy, Policy, Record, Recording, World};

/// Which plugin: a `WasmPlugin`, or a `ClusterWasmPlugin` where there is no namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PluginKey {
    /// `metadata.namespace`; empty for a `ClusterWasmPlugin`.
    pub namespace: Arc<str>,
    /// `metadata.name`
    pub name: Arc<str>,
}

impl PluginKey {
    /// A `WasmPlugin`.
    pub fn namespaced(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// A `ClusterWasmPlugin`.
    pub fn cluster(name: impl Into<Arc<str>>) -> Self {
        Self { namespace: "".into(), name: name.into() }
    }
}

/// `namespace/name`, or `name`.
impl fmt::Display for PluginKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// A plugin as those see it who decide. Held for good.
#[derive(Debug)]
pub struct Slot {
    /// What decides.
    pub policy: Policy,
    /// `spec.failurePolicy`
    failure: ArcSwap<FailurePolicy>,
    /// There is such an object.
    known: AtomicBool,
}

impl Slot {
    /// What to do when a decision fails.
    pub fn failure(&self) -> FailurePolicy {
        **self.failure.load()
    }

    /// Whether there is a plugin of this name and world, loaded or not.
    pub fn is_known(&self) -> bool {
        self.known.load(Relaxed)
    }

    /// For those who load.
    pub fn set_known(&self, known: bool) {
        self.known.store(known, Relaxed);
    }

    /// For those who load.
    pub fn set_failure(&self, failure: FailurePolicy) {
        if self.failure() != failure {
            self.failure.store(Arc::new(failure));
        }
    }

    /// For those who load: from now on a sample of its decisions is kept; `None` for none. What was kept is forgotten when this changes.
    pub fn set_recording(&self, recording: Option<Recording>) {
        self.policy.recorder.set(recording);
    }

    /// The decisions that were kept, oldest first.
    pub fn records(&self) -> Vec<Record> {
        self.policy.recorder.records(self.policy.name())
    }

    /// Those from a number on, oldest first and at most so many, each with the number to go on from. Records are counted from 0 as they are made;
    /// what is not kept any more is left out.
    pub fn records_since(&self, number: u64, most: usize) -> Vec<(u64, Record)> {
        self.policy.recorder.since(self.policy.name(), number, most)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Registry {
    slots: Mutex<HashMap<(PluginKey, World), Arc<Slot>>>,
    changed: watch::Sender<u64>,
}

impl Default for Registry {
    fn default() -> Self {
        Self { slots: Mutex::default(), changed: watch::channel(0).0 }
    }
}

impl Registry {
    /// The slot of a plugin for this decision: empty if no plugin of this name and world is loaded.
    pub fn slot(&self, key: &PluginKey, world: World) -> Arc<Slot> {
        let mut slots = self.slots.lock();
        let slot = slots.entry((key.clone(), world)).or_insert_with(|| {
            let policy = Policy::new(key.to_string(), world);
            // Until it is known what its author wants, what it is to decide about waits.
            let failure = FailurePolicy { fetch: crate::OnFailure::Refuse, ..FailurePolicy::default() };
            Arc::new(Slot { policy, failure: ArcSwap::from_pointee(failure), known: AtomicBool::new(false) })
        });
        slot.clone()
    }

    /// All slots there are, in order of their names.
    pub fn slots(&self) -> Vec<(PluginKey, Arc<Slot>)> {
        let mut slots: Vec<_> = self.slots.lock().iter().map(|((key, _), slot)| (key.clone(), slot.clone())).collect();
        slots.sort_by(|(a, left), (b, right)| (a, left.policy.world() as u8).cmp(&(b, right.policy.world() as u8)));
        slots
    }

    /// Forgets the slots that nobody else holds and nothing decides in.
    pub fn prune(&self) {
        self.slots.lock().retain(|_, slot| Arc::strong_count(slot) > 1 || slot.is_known() || !slot.policy.is_absent());
    }

    /// For those who load: a slot has got its first generation, or lost its last, or its plugin has come or gone.
    pub fn announce(&self) {
        self.changed.send_modify(|turn| *turn = turn.wrapping_add(1));
    }

    /// Wakes those whose bindings depend on whether a plugin is loaded.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_there_before_its_plugin_and_goes_when_nobody_wants_it() {
        let registry = Registry::default();
        let key = PluginKey::namespaced("web", "canary");
        let slot = registry.slot(&key, World::Routing);
        assert!(Arc::ptr_eq(&slot, &registry.slot(&key, World::Routing)));
        assert!(
            !Arc::ptr_eq(&slot, &registry.slot(&key, World::Admission)),
            "one of another world is another decision"
        );
        assert_eq!((slot.policy.name().as_ref(), slot.policy.is_absent()), ("web/canary", true));
        registry.prune();
        assert_eq!(registry.slots().len(), 1);
        drop(slot);
        registry.prune();
        assert!(registry.slots().is_empty());
    }

    #[test]
    fn those_who_wait_are_woken() {
        let registry = Registry::default();
        let changes = registry.changes();
        assert!(!changes.has_changed().unwrap());
        registry.announce();
        assert!(changes.has_changed().unwrap());
        assert_eq!(PluginKey::cluster("tiers").to_string(), "tiers");
    }
}
