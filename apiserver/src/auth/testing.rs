//! A cache for tests: a map of objects, with revisions as the real one counts them.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

use crate::cache::{CacheEvent, Cached, Reader};
use crate::registry::SelectableField;
use crate::user::UserInfo;

type Key = (String, String, String, String);

/// Objects by group, plural, namespace and name.
#[derive(Default)]
pub(crate) struct MapReader {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<Key, Arc<Cached>>,
    changed: BTreeMap<(String, String), u64>,
    events: Vec<(String, String, Arc<CacheEvent>)>,
    lists: usize,
}

const KINDS: &[(&str, &str)] = &[
    ("clusterrolebindings", "ClusterRoleBinding"),
    ("clusterroles", "ClusterRole"),
    ("clusterwasmplugins", "ClusterWasmPlugin"),
    ("ingressclasses", "IngressClass"),
    ("namespaces", "Namespace"),
    ("nodes", "Node"),
    ("pods", "Pod"),
    ("priorityclasses", "PriorityClass"),
    ("rolebindings", "RoleBinding"),
    ("roles", "Role"),
    ("serviceaccounts", "ServiceAccount"),
];

const FIELDS: &[SelectableField] = &[SelectableField { path: "spec.nodeName", get: |v| text(v, "/spec/nodeName") }];

fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

impl State {
    fn change(&mut self, key: Key, after: impl FnOnce(u64) -> Option<Cached>) {
        self.revision += 1;
        let after = after(self.revision).map(Arc::new);
        let before = match &after {
            Some(object) => self.objects.insert(key.clone(), object.clone()),
            None => self.objects.remove(&key),
        };
        let event = Arc::new(CacheEvent::new(self.revision, before, after));
        self.changed.insert((key.0.clone(), key.1.clone()), self.revision);
        self.events.push((key.0, key.1, event));
    }
}

impl MapReader {
    pub(crate) fn new(objects: &[(&str, &str, Value)]) -> Arc<Self> {
        let reader = Arc::new(Self::default());
        for (group, plural, object) in objects {
            reader.put(group, plural, object.clone());
        }
        reader
    }

    /// Adds or replaces; `apiVersion` and `kind` may be left out.
    pub(crate) fn put(&self, group: &str, plural: &str, mut object: Value) {
        let kind = KINDS.iter().find(|(p, _)| *p == plural).map(|(_, kind)| *kind).unwrap();
        object["kind"] = kind.into();
        object["apiVersion"] = if group.is_empty() { "v1".into() } else { format!("{group}/v1").into() };
        let key = (group.into(), plural.into(), text(&object, "/metadata/namespace"), text(&object, "/metadata/name"));
        let fields = if plural == "pods" { FIELDS } else { &[] };
        self.state.lock().change(key, |revision| Some(Cached::from_value(&object, revision, fields).unwrap()));
    }

    pub(crate) fn remove(&self, group: &str, plural: &str, namespace: &str, name: &str) {
        self.state.lock().change((group.into(), plural.into(), namespace.into(), name.into()), |_| None);
    }

    /// Forgets all events, as a full history does.
    pub(crate) fn forget(&self) {
        self.state.lock().events.clear();
    }

    /// How often whole kinds were listed.
    pub(crate) fn lists(&self) -> usize {
        self.state.lock().lists
    }
}

impl Reader for MapReader {
    fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<Cached>> {
        self.state.lock().objects.get(&(group.into(), plural.into(), namespace.into(), name.into())).cloned()
    }
    fn list(&self, group: &str, plural: &str, namespace: Option<&str>) -> Vec<Arc<Cached>> {
        let matches = |k: &Key| k.0 == group && k.1 == plural && namespace.is_none_or(|n| k.2 == n);
        let mut state = self.state.lock();
        state.lists += 1;
        state.objects.iter().filter(|(k, _)| matches(k)).map(|(_, v)| v.clone()).collect()
    }
    fn changed(&self, group: &str, plural: &str) -> u64 {
        self.state.lock().changed.get(&(group.to_owned(), plural.to_owned())).copied().unwrap_or(0)
    }
    fn changes(&self, group: &str, plural: &str, since: u64) -> Option<Vec<Arc<CacheEvent>>> {
        let state = self.state.lock();
        if state.events.is_empty() {
            return None;
        }
        let of_kind = state.events.iter().filter(|(g, p, e)| g == group && p == plural && e.revision > since);
        Some(of_kind.map(|(_, _, e)| e.clone()).collect())
    }
}

/// A user with these groups and `system:authenticated`.
pub(crate) fn user(name: &str, groups: &[&str]) -> UserInfo {
    UserInfo::system(name, groups)
}
