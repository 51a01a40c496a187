//! Which node may read what: pods bound to it, and the secrets, config maps and accounts these refer to.
//!
//! Kept up by the cache's events, so that a request costs a walk over the pods of its node and nothing that grows with the
//! cluster. Pods of one template share their list of references.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use parking_lot::Mutex;

use crate::cache::{Cached, Reader};

/// What a pod can refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum RefKind {
    Secret,
    ConfigMap,
    ServiceAccount,
}

type Refs = Arc<[(RefKind, Box<str>)]>;

#[derive(Debug)]
struct BoundPod {
    namespace: Box<str>,
    name: Box<str>,
    refs: Refs,
}

#[derive(Default)]
struct State {
    /// Revision of the pods up to which the state is; `None`: never filled.
    revision: Option<u64>,
    nodes: HashMap<Box<str>, Vec<BoundPod>>,
    interned: HashSet<Refs>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Graph {
    state: Mutex<State>,
}

impl Graph {
    /// Whether a pod bound to `node` refers to this object.
    pub fn refers(&self, caches: &dyn Reader, node: &str, kind: RefKind, namespace: &str, name: &str) -> bool {
        let mut state = self.state.lock();
        state.catch_up(caches);
        let pods = state.nodes.get(node).map(Vec::as_slice).unwrap_or_default();
        pods.iter().any(|p| &*p.namespace == namespace && p.refs.iter().any(|(k, n)| *k == kind && &**n == name))
    }
}

impl State {
    fn catch_up(&mut self, caches: &dyn Reader) {
        // Read before the objects: what changes in between is looked at once more, never missed.
        let revision = caches.changed("", "pods");
        if self.revision == Some(revision) {
            return;
        }
        match self.revision.and_then(|since| caches.changes("", "pods", since)) {
            Some(events) => {
                for event in events {
                    if let Some(before) = &event.before {
                        self.remove(before);
                    }
                    if let Some(after) = &event.after {
                        self.add(after);
                    }
                }
            }
            None => {
                *self = Self::default();
                for pod in caches.list("", "pods", None) {
                    self.add(&pod);
                }
            }
        }
        self.revision = Some(revision);
        // Lists of references whose pods are gone.
        if self.interned.len() > 64 {
            self.interned.retain(|refs| Arc::strong_count(refs) > 1);
        }
    }

    fn add(&mut self, pod: &Cached) {
        let node = pod.field("spec.nodeName").unwrap_or_default();
        if node.is_empty() {
            return;
        }
        let found: Refs = references(pod).into();
        let refs = match self.interned.get(&found) {
            Some(known) => known.clone(),
            None => {
                self.interned.insert(found.clone());
                found
            }
        };
        let bound = BoundPod { namespace: pod.namespace.as_str().into(), name: pod.name.as_str().into(), refs };
        let pods = self.nodes.entry(node.into()).or_default();
        // An event that the list already had comes again after a full reload.
        pods.retain(|p| (&*p.namespace, &*p.name) != (&*bound.namespace, &*bound.name));
        pods.push(bound);
    }

    fn remove(&mut self, pod: &Cached) {
        let node = pod.field("spec.nodeName").unwrap_or_default();
        if let Some(pods) = self.nodes.get_mut(node) {
            pods.retain(|p| (&*p.namespace, &*p.name) != (pod.namespace.as_str(), pod.name.as_str()));
            if pods.is_empty() {
                self.nodes.remove(node);
            }
        }
    }
}

/// What a pod refers to, sorted and without repetition; a pod that cannot be read refers to nothing.
fn references(pod: &Cached) -> Vec<(RefKind, Box<str>)> {
    let Some(spec) = serde_json::from_slice::<core::Pod>(&pod.json).ok().and_then(|p| p.spec) else {
        return Vec::new();
    };
    let mut refs = Collector::default();
    refs.add(RefKind::ServiceAccount, spec.service_account_name.as_deref());
    for secret in spec.image_pull_secrets.iter().flatten() {
        refs.add(RefKind::Secret, Some(&secret.name));
    }
    for volume in spec.volumes.iter().flatten() {
        refs.volume(volume);
    }
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        refs.environment(container.env.as_deref(), container.env_from.as_deref());
    }
    for container in spec.ephemeral_containers.iter().flatten() {
        refs.environment(container.env.as_deref(), container.env_from.as_deref());
    }
    refs.0.sort();
    refs.0.dedup();
    refs.0
}

#[derive(Default)]
struct Collector(Vec<(RefKind, Box<str>)>);

impl Collector {
    fn add(&mut self, kind: RefKind, name: Option<&str>) {
        if let Some(name) = name.filter(|n| !n.is_empty()) {
            self.0.push((kind, name.into()));
        }
    }

    fn volume(&mut self, volume: &core::Volume) {
        self.add(RefKind::Secret, volume.secret.as_ref().and_then(|s| s.secret_name.as_deref()));
        self.add(RefKind::ConfigMap, volume.config_map.as_ref().map(|c| c.name.as_str()));
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            self.add(RefKind::Secret, source.secret.as_ref().map(|s| s.name.as_str()));
            self.add(RefKind::ConfigMap, source.config_map.as_ref().map(|c| c.name.as_str()));
        }
    }

    fn environment(&mut self, env: Option<&[core::EnvVar]>, env_from: Option<&[core::EnvFromSource]>) {
        for source in env.into_iter().flatten().filter_map(|e| e.value_from.as_ref()) {
            self.add(RefKind::Secret, source.secret_key_ref.as_ref().map(|s| s.name.as_str()));
            self.add(RefKind::ConfigMap, source.config_map_key_ref.as_ref().map(|c| c.name.as_str()));
        }
        for source in env_from.into_iter().flatten() {
            self.add(RefKind::Secret, source.secret_ref.as_ref().map(|s| s.name.as_str()));
            self.add(RefKind::ConfigMap, source.config_map_ref.as_ref().map(|c| c.name.as_str()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::testing::MapReader;
    use serde_json::{Value, json};

    fn pod(name: &str, node: &str, secret: &str) -> Value {
        json!({
            "metadata": {"namespace": "web", "name": name},
            "spec": {"nodeName": node, "containers": [], "volumes": [{"name": "s", "secret": {"secretName": secret}}]},
        })
    }

    #[test]
    fn every_kind_of_reference_is_found() {
        let reader = MapReader::new(&[(
            "",
            "pods",
            json!({
                "metadata": {"namespace": "web", "name": "p"},
                "spec": {
                    "nodeName": "n1", "serviceAccountName": "sa", "imagePullSecrets": [{"name": "s1"}],
                    "initContainers": [{"name": "i", "env": [
                        {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s2", "key": "k"}}},
                        {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "c2", "key": "k"}}}]}],
                    "containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "s3"}}, {"configMapRef": {"name": "c3"}}]}],
                    "ephemeralContainers": [{"name": "e", "envFrom": [{"secretRef": {"name": "s6"}}]}],
                    "volumes": [
                        {"name": "a", "secret": {"secretName": "s4"}}, {"name": "b", "configMap": {"name": "c4"}},
                        {"name": "p", "projected": {"sources": [
                            {"secret": {"name": "s5"}}, {"configMap": {"name": "c5"}}]}}],
                },
            }),
        )]);
        let graph = Graph::default();
        let refers = |kind, name: &str| graph.refers(&*reader, "n1", kind, "web", name);
        assert!(refers(RefKind::ServiceAccount, "sa"));
        for name in ["s1", "s2", "s3", "s4", "s5", "s6"] {
            assert!(refers(RefKind::Secret, name), "{name}");
            assert!(!refers(RefKind::ConfigMap, name), "{name}");
        }
        for name in ["c2", "c3", "c4", "c5"] {
            assert!(refers(RefKind::ConfigMap, name), "{name}");
        }
        assert!(!refers(RefKind::Secret, "other") && !refers(RefKind::Secret, ""));
    }

    #[test]
    fn the_graph_follows_events_without_listing_again() {
        let reader = MapReader::new(&[("", "pods", pod("a", "n1", "one"))]);
        let graph = Graph::default();
        let refers = |node: &str, name: &str| graph.refers(&*reader, node, RefKind::Secret, "web", name);
        assert!(refers("n1", "one") && !refers("n2", "one"));
        let lists = reader.lists();
        reader.put("", "pods", pod("b", "", "two"));
        assert!(!refers("n2", "two"), "not bound yet");
        reader.put("", "pods", pod("b", "n2", "two"));
        assert!(refers("n2", "two") && !refers("n1", "two"));
        reader.remove("", "pods", "web", "a");
        assert!(!refers("n1", "one"), "gone with the pod");
        assert_eq!(reader.lists(), lists);
        reader.put("", "pods", pod("c", "n1", "three"));
        reader.forget();
        assert!(refers("n1", "three") && refers("n2", "two"), "a lost history is a new list");
        assert_eq!(reader.lists(), lists + 1);
    }
}
