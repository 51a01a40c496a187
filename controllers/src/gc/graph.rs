//! Who owns whom, as the watches show it. Pure: changes in, UIDs to look at out.
//!
//! The graph only decides what is worth a look; what happens is decided on live reads.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use scaleup_api::well_known::{FINALIZER_FOREGROUND, FINALIZER_ORPHAN};

use crate::base::discovery::Kind;

/// `metadata.uid`
pub type Uid = String;

/// What the graph keeps of an object.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its kind.
    pub kind: Arc<Kind>,
    /// Its namespace; empty for cluster scope.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: Uid,
    /// `metadata.ownerReferences`
    pub owners: Vec<OwnerReference>,
    /// Whether it is being deleted at all.
    pub deleting: bool,
    /// Whether it is being deleted and waits for its dependents.
    pub foreground: bool,
    /// Whether it is being deleted and lets its dependents go free.
    pub orphaning: bool,
}

/// Whether the finalizer is set.
pub fn has_finalizer(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|f| f == finalizer)
}

impl Item {
    /// From an object's metadata; `None` without a UID.
    pub fn new(kind: Arc<Kind>, meta: &ObjectMeta) -> Option<Self> {
        let deleting = meta.deletion_timestamp.is_some();
        Some(Self {
            kind,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone()?,
            owners: meta.owner_references.clone().unwrap_or_default(),
            deleting,
            foreground: deleting && has_finalizer(meta, FINALIZER_FOREGROUND),
            orphaning: deleting && has_finalizer(meta, FINALIZER_ORPHAN),
        })
    }

    /// Whether `reference`, on an object in `namespace`, really means this object.
    fn is_meant_by(&self, reference: &OwnerReference, namespace: &str) -> bool {
        let (group, _) = split_api_version(&reference.api_version);
        self.uid == reference.uid
            && self.name == reference.name
            && self.kind.resource.kind == reference.kind
            && self.kind.resource.group == group
            && (!self.kind.namespaced || self.namespace == namespace)
    }
}

/// Group and version of `apps/v1` or `v1`.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// A dependent as its owner sees it.
#[derive(Clone, Debug)]
pub struct Dependent {
    /// Its UID.
    pub uid: Uid,
    /// Whether it blocks a foreground deletion of the owner.
    pub blocking: bool,
    /// Whether it waits for its own dependents already.
    pub foreground: bool,
}

/// A table of at least this many places…
const SPARSE_TABLE: usize = 4_096;
/// …that has more than this many for each object shrinks.
const SPARSE_FACTOR: usize = 8;

/// All objects of all kinds.
#[derive(Default)]
pub struct Graph {
    /// Boxed: the table grows by doubling, and most of it is empty then.
    items: HashMap<Uid, Box<Item>>,
    /// Owner UID → UIDs of objects that refer to it, whether or not the owner is known.
    dependents: HashMap<Uid, BTreeSet<Uid>>,
}

impl Graph {
    /// The object of that UID.
    pub fn get(&self, uid: &str) -> Option<&Item> {
        self.items.get(uid).map(Box::as_ref)
    }

    /// The objects that refer to `uid`.
    pub fn dependents(&self, uid: &str) -> Vec<Dependent> {
        let of = |d: &Uid| {
            let item = self.items.get(d)?;
            let blocking = item.owners.iter().any(|r| r.uid == uid && r.block_owner_deletion == Some(true));
            Some(Dependent { uid: d.clone(), blocking, foreground: item.foreground })
        };
        self.dependents.get(uid).into_iter().flatten().filter_map(of).collect()
    }

    /// UIDs of all objects of a kind.
    pub fn of_kind(&self, kind: &Kind) -> Vec<Uid> {
        self.items.values().filter(|i| *i.kind == *kind).map(|i| i.uid.clone()).collect()
    }

    /// Whether an object needs a look: it is in some stage of deletion that involves others, or an owner of it is
    /// unknown, mistaken or waiting for its dependents.
    pub fn is_suspect(&self, uid: &str) -> bool {
        let Some(item) = self.items.get(uid) else { return false };
        if item.foreground || item.orphaning {
            return true;
        }
        let sound = |r: &OwnerReference| {
            self.items.get(&r.uid).is_some_and(|o| o.is_meant_by(r, &item.namespace) && !o.foreground)
        };
        !item.deleting && item.owners.iter().any(|r| !sound(r))
    }

    /// All objects that need a look.
    pub fn suspects(&self) -> Vec<Uid> {
        self.items.keys().filter(|uid| self.is_suspect(uid)).cloned().collect()
    }

    /// Takes in an object that was added or changed: whom to look at.
    pub fn upsert(&mut self, item: Item) -> Vec<Uid> {
        let uid = item.uid.clone();
        let old = self.items.insert(uid.clone(), Box::new(item.clone()));
        let mut look = Vec::new();
        for reference in old.iter().flat_map(|o| &o.owners) {
            let kept = item.owners.iter().find(|r| r.uid == reference.uid);
            if kept.is_none() {
                self.unlink(&reference.uid, &uid);
            }
            let released = kept.is_none_or(|r| r.block_owner_deletion != Some(true));
            if released && self.items.get(&reference.uid).is_some_and(|o| o.foreground) {
                look.push(reference.uid.clone());
            }
        }
        for reference in &item.owners {
            self.dependents.entry(reference.uid.clone()).or_default().insert(uid.clone());
        }
        if item.foreground && !old.is_some_and(|o| o.foreground) {
            look.extend(self.dependents.get(&uid).into_iter().flatten().cloned());
        }
        if self.is_suspect(&uid) {
            look.push(uid);
        }
        look
    }

    /// Takes out an object that is gone: whom to look at.
    pub fn remove(&mut self, uid: &str) -> Vec<Uid> {
        let Some(item) = self.items.remove(uid) else { return Vec::new() };
        // Gives memory back after many objects are gone, at a cost spread over their removals.
        if self.items.capacity() > SPARSE_TABLE.max(self.items.len() * SPARSE_FACTOR) {
            self.items.shrink_to(self.items.len() * 2);
        }
        let mut look: Vec<Uid> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        for reference in &item.owners {
            self.unlink(&reference.uid, uid);
            if self.items.get(&reference.uid).is_some_and(|o| o.foreground) {
                look.push(reference.uid.clone());
            }
        }
        look
    }

    /// Takes out an object whose kind is no longer served: its dependents are not concluded to be orphans.
    pub fn forget(&mut self, uid: &str) {
        self.remove(uid);
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(set) = self.dependents.get_mut(owner) {
            set.remove(dependent);
            if set.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::api::ApiResource;

    fn kind(kind: &str, namespaced: bool) -> Arc<Kind> {
        let resource = ApiResource {
            group: "apps".into(),
            version: "v1".into(),
            api_version: "apps/v1".into(),
            kind: kind.into(),
            plural: format!("{}s", kind.to_lowercase()),
        };
        Arc::new(Kind { resource, namespaced, verbs: vec![] })
    }

    fn item(uid: &str, owners: &[(&str, bool)]) -> Item {
        let owner = |(uid, block): &(&str, bool)| OwnerReference {
            api_version: "apps/v1".into(),
            kind: "Thing".into(),
            name: (*uid).into(),
            uid: (*uid).into(),
            block_owner_deletion: Some(*block),
            controller: None,
        };
        Item {
            kind: kind("Thing", true),
            namespace: "n".into(),
            name: uid.into(),
            uid: uid.into(),
            owners: owners.iter().map(owner).collect(),
            deleting: false,
            foreground: false,
            orphaning: false,
        }
    }

    fn foreground(item: Item) -> Item {
        Item { deleting: true, foreground: true, ..item }
    }

    #[test]
    fn unknown_owners_are_looked_for() {
        let mut g = Graph::default();
        assert_eq!(g.upsert(item("pod", &[("set", true)])), ["pod"]);
        assert_eq!(g.suspects(), ["pod"]);
        assert!(g.upsert(item("set", &[])).is_empty());
        assert!(g.suspects().is_empty());
        assert!(g.upsert(item("pod2", &[("set", true)])).is_empty());
    }

    #[test]
    fn references_with_wrong_coordinates_are_looked_at() {
        let mut g = Graph::default();
        g.upsert(item("set", &[]));
        let mut elsewhere = item("pod", &[("set", true)]);
        elsewhere.namespace = "other".into();
        assert_eq!(g.upsert(elsewhere), ["pod"]);
        let mut renamed = item("pod2", &[("set", true)]);
        renamed.owners[0].name = "x".into();
        assert_eq!(g.upsert(renamed), ["pod2"]);
    }

    #[test]
    fn a_deleted_owner_wakes_its_dependents() {
        let mut g = Graph::default();
        g.upsert(item("set", &[]));
        g.upsert(item("a", &[("set", true)]));
        g.upsert(item("b", &[("set", false)]));
        assert_eq!(g.remove("set"), ["a", "b"]);
        assert!(g.remove("a").is_empty());
        assert!(g.remove("b").is_empty());
        assert!(g.dependents.is_empty());
    }

    #[test]
    fn foreground_deletion_wakes_both_ways() {
        let mut g = Graph::default();
        g.upsert(item("set", &[]));
        g.upsert(item("a", &[("set", true)]));
        g.upsert(item("b", &[("set", true)]));
        assert_eq!(g.upsert(foreground(item("set", &[]))), ["a", "b", "set"]);
        let blocking: Vec<_> = g.dependents("set").into_iter().filter(|d| d.blocking).map(|d| d.uid).collect();
        assert_eq!(blocking, ["a", "b"]);
        assert!(g.upsert(item("a", &[("set", false)])).contains(&"set".to_owned()), "no longer blocking");
        assert!(g.upsert(item("a", &[])).contains(&"set".to_owned()), "no longer owned");
        assert_eq!(g.remove("b"), ["set"]);
    }

    #[test]
    fn owners_that_change_do_not_leak() {
        let mut g = Graph::default();
        g.upsert(item("a", &[("x", true), ("y", true)]));
        g.upsert(item("a", &[("y", true)]));
        assert!(!g.dependents.contains_key("x"));
        assert_eq!(g.of_kind(&kind("Thing", true)), ["a"]);
        g.forget("a");
        assert!(g.items.is_empty() && g.dependents.is_empty());
    }
}
