//! Which writes a plugin is asked about: the bindings of `ClusterWasmPlugin`s and `WasmPlugin`s, compiled.
//!
//! Looked over when the cache's revision of one of the two kinds moves, and compiled for each plugin that was written. What would lock everybody out is never asked about: the two
//! kinds themselves (as upstream exempts webhook configurations) and what this server writes for itself; nor what keeps nodes alive,
//! unless a rule names it without a wildcard.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use scaleup_api::plugin::{AdmissionBinding, AdmissionRule};
use scaleup_api::selector::LabelSelector;
use scaleup_plugins::{PluginKey, Registry as Plugins, Slot, World};
use scaleup_store::Revision;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::admission::Attributes;
use crate::bootstrap::OWN_USER;
use crate::cache::{Cached, Labels, Reader};
use crate::registry::{Registry, Resource};

/// API group of the kinds.
pub(super) const GROUP: &str = "policy.scaleup.dev";
/// The kinds, in the order in which their plugins are asked.
const PLURALS: [&str; 2] = ["clusterwasmplugins", "wasmplugins"];
/// Calls of one plugin at a time: a slow one must not take the threads of all.
const MAX_CALLS_EACH: usize = 8;

/// Revisions of the kinds: equal stamps, equal index.
pub(super) type Stamp = [u64; 2];

/// The cache's present stamp.
pub(super) fn stamp(caches: &dyn Reader) -> Stamp {
    PLURALS.map(|plural| caches.changed(GROUP, plural))
}

/// A plugin and what it is bound to.
#[derive(Debug)]
pub(super) struct Bound {
    pub key: PluginKey,
    pub slot: Arc<Slot>,
    /// To be held during a call.
    pub turns: Arc<Semaphore>,
    rules: Vec<AdmissionRule>,
    namespaces: LabelSelector,
    objects: LabelSelector,
}

/// What matters here of both kinds: not the module that may be within.
#[derive(Deserialize)]
struct AnyPlugin {
    spec: Binding,
}

#[derive(Deserialize)]
struct Binding {
    world: String,
    admission: Option<AdmissionBinding>,
}

/// All bindings: cluster-wide ones first, then by namespace, each by name.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub stamp: Stamp,
    pub bound: Vec<Arc<Bound>>,
    /// What each object came to at its revision.
    known: HashMap<PluginKey, (Revision, Option<Arc<Bound>>)>,
}

impl Index {
    /// From what the cache holds; what goes on being there keeps its turns.
    pub fn compile(stamp: Stamp, caches: &dyn Reader, plugins: &Plugins, before: &Self) -> Self {
        let mut index = Self { stamp, ..Self::default() };
        for object in PLURALS.iter().flat_map(|plural| caches.list(GROUP, plural, None)) {
            let key = PluginKey::namespaced(object.namespace.as_str(), object.name.as_str());
            let bound = match before.known.get(&key) {
                Some((revision, bound)) if *revision == object.revision => bound.clone(),
                known => {
                    let turns = known.and_then(|(_, bound)| Some(bound.as_ref()?.turns.clone()));
                    Bound::new(&object, key.clone(), plugins, turns).map(Arc::new)
                }
            };
            index.bound.extend(bound.clone());
            index.known.insert(key, (object.revision, bound));
        }
        index
    }
}

fn selector(given: Option<&meta::LabelSelector>) -> LabelSelector {
    // One that cannot be read was not let in. If it were there all the same, better to ask too often.
    given.and_then(|given| LabelSelector::from_k8s(given).ok()).unwrap_or_else(LabelSelector::everything)
}

impl Bound {
    /// `None` for a plugin that has nothing to do with admission.
    fn new(object: &Cached, key: PluginKey, plugins: &Plugins, turns: Option<Arc<Semaphore>>) -> Option<Self> {
        let spec = match serde_json::from_slice::<AnyPlugin>(&object.json) {
            Ok(plugin) => plugin.spec,
            Err(error) => {
                tracing::warn!(plugin = %key, %error, "a stored plugin cannot be read; nobody is asked");
                return None;
            }
        };
        let binding = spec.admission.filter(|_| spec.world == World::Admission.name())?;
        Some(Self {
            slot: plugins.slot(&key, World::Admission),
            key,
            turns: turns.unwrap_or_else(|| Arc::new(Semaphore::new(MAX_CALLS_EACH))),
            namespaces: selector(binding.namespace_selector.as_ref()),
            objects: selector(binding.object_selector.as_ref()),
            rules: binding.rules,
        })
    }

    /// Whether it is asked about this write, as the object is now. `rows` are the [`versions`] of its kind.
    pub fn concerns(&self, attributes: &Attributes<'_>, rows: &[Arc<Resource>], caches: &dyn Reader) -> bool {
        let own = self.key.namespace.is_empty()
            || (attributes.resource.namespaced() && *self.key.namespace == *attributes.namespace);
        own && self.rules.iter().any(|rule| concerns(rule, attributes, rows))
            && self.selects_namespace(attributes, caches)
            && self.selects_object(attributes)
    }

    /// As upstream: a namespace counts as in itself, other objects without namespace are always selected.
    fn selects_namespace(&self, attributes: &Attributes<'_>, caches: &dyn Reader) -> bool {
        if self.namespaces.is_everything() {
            return true;
        }
        if attributes.is_kind("", "namespaces") {
            let object = Some(&*attributes.object).filter(|object| object.is_object()).or(attributes.old);
            return object.is_none_or(|object| matches(&self.namespaces, object));
        }
        if attributes.namespace.is_empty() {
            return true;
        }
        let namespace = caches.get("", "namespaces", "", attributes.namespace);
        let none = Labels::default();
        let labels = namespace.as_ref().map_or(&none, |namespace| &namespace.labels);
        self.namespaces.matches_by(|key| labels.get(key))
    }

    fn selects_object(&self, attributes: &Attributes<'_>) -> bool {
        let objects = [Some(&*attributes.object), attributes.old].into_iter().flatten();
        self.objects.is_everything()
            || objects.filter(|object| object.is_object()).any(|object| matches(&self.objects, object))
    }
}

fn matches(selector: &LabelSelector, object: &Value) -> bool {
    let labels = &object["metadata"]["labels"];
    selector.matches_by(|key| labels.get(key).and_then(Value::as_str))
}

/// Whether no plugin is ever asked about it.
pub(super) fn is_exempt(attributes: &Attributes<'_>) -> bool {
    attributes.user.name == OWN_USER || attributes.resource.group == GROUP
}

/// What nodes and the platform's other roles write all the time to say that they are there and how their objects are.
fn is_upkeep(attributes: &Attributes<'_>) -> bool {
    let name = &attributes.user.name;
    let own_role = name.starts_with("system:node:") || name.starts_with("system:kube-");
    own_role
        && (matches!(attributes.subresource, Some("status" | "token"))
            || attributes.is_kind("coordination.k8s.io", "leases")
            || matches!(attributes.resource.stored_as(), ("", "events")))
}

fn names(list: &[String], name: &str) -> bool {
    list.iter().any(|given| given == "*" || given == name)
}

/// All versions of a kind: nobody gets around a rule by another one (upstream's `matchPolicy: Equivalent`).
pub(super) fn versions(of: &Resource, registry: &Registry) -> Vec<Arc<Resource>> {
    registry.rows().iter().filter(|row| row.stored_as() == of.stored_as()).cloned().collect()
}

fn concerns(rule: &AdmissionRule, attributes: &Attributes<'_>, rows: &[Arc<Resource>]) -> bool {
    let subresource = attributes.subresource.unwrap_or_default();
    let wildcards = !is_upkeep(attributes);
    names(&rule.operations, super::operation(attributes).1)
        && rows.iter().any(|row| covers(rule, row, subresource, wildcards))
}

fn covers(rule: &AdmissionRule, row: &Resource, subresource: &str, wildcards: bool) -> bool {
    let resource = |given: &String| {
        let (plural, part) = given.split_once('/').unwrap_or((given, ""));
        (wildcards || !given.contains('*'))
            && (plural == "*" || plural == row.plural)
            && (part == "*" || part == subresource)
    };
    names(&rule.api_groups, &row.group)
        && (rule.api_versions.is_empty() || names(&rule.api_versions, &row.version))
        && rule.resources.iter().any(resource)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::admission::testing::Write;
    use crate::auth::testing::{MapReader, user};

    fn bound(namespace: &str, admission: Value) -> Bound {
        let kind = if namespace.is_empty() { "ClusterWasmPlugin" } else { "WasmPlugin" };
        let object = json!({"apiVersion": "policy.scaleup.dev/v1", "kind": kind,
            "metadata": {"name": "p", "namespace": namespace},
            "spec": {"world": "admission", "source": {"inline": ""}, "admission": admission}});
        let key = PluginKey::namespaced(namespace, "p");
        Bound::new(&Cached::from_value(&object, 1, &[]).unwrap(), key, &Plugins::default(), None).unwrap()
    }

    fn rule(operations: &[&str], groups: &[&str], resources: &[&str]) -> Value {
        json!({"rules": [{"operations": operations, "apiGroups": groups, "resources": resources}]})
    }

    fn caches() -> Arc<MapReader> {
        let namespace = |name: &str, tier: &str| json!({"metadata": {"name": name, "labels": {"tier": tier}}});
        MapReader::new(&[("", "namespaces", namespace("web", "gold")), ("", "namespaces", namespace("dev", "none"))])
    }

    fn pod() -> Value {
        json!({"metadata": {"name": "w", "namespace": "web", "labels": {"app": "a"}}})
    }

    #[track_caller]
    fn check(bound: &Bound, mut write: Write, expected: bool) {
        let registry = crate::registry::table::builtin();
        let rows = versions(&write.resource, &registry);
        assert_eq!(write.with(|attributes| bound.concerns(attributes, &rows, &*caches())), expected);
    }

    #[test]
    fn rules_are_upstreams() {
        let create = || Write::create("", "Pod", "pods", pod());
        let check = |operations: &[&str], groups: &[&str], resources: &[&str], write: Write, expected| {
            check(&bound("", rule(operations, groups, resources)), write, expected);
        };
        check(&["CREATE"], &[""], &["pods"], create(), true);
        check(&["UPDATE", "DELETE"], &[""], &["pods"], create(), false);
        check(&["DELETE"], &[""], &["pods"], Write::delete("", "Pod", "pods", pod()), true);
        check(&["UPDATE"], &["*"], &["*"], Write::update("", "Pod", "pods", pod(), pod()), true);
        check(&["*"], &["apps"], &["*"], create(), false);
        check(&["*"], &["*"], &["*"], create().sub("status"), false);
        check(&["*"], &["*"], &["*/*"], create().sub("status"), true);
        check(&["*"], &["*"], &["*/*"], create(), true);
        check(&["*"], &["*"], &["pods/*"], create(), true);
        check(&["*"], &["*"], &["pods/status"], create(), false);
        check(&["*"], &["*"], &["*/status"], create().sub("status"), true);
    }

    #[test]
    fn another_version_is_no_way_around_a_rule() {
        let event = || json!({"metadata": {"name": "e", "namespace": "web"}});
        let on_core = bound("", rule(&["*"], &[""], &["events"]));
        let registry = crate::registry::table::builtin();
        let row = registry.find("events.k8s.io", "v1", "events").unwrap();
        let mut write = Write::create("events.k8s.io", "Event", "events", event());
        write.resource = (**row).clone();
        check(&on_core, write, true);
    }

    #[test]
    fn namespaces_and_objects_are_selected_by_labels() {
        let all = |more: Value| {
            let mut binding = rule(&["*"], &["*"], &["*"]);
            binding.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            binding
        };
        let create = || Write::create("", "Pod", "pods", pod());
        let gold = || all(json!({"namespaceSelector": {"matchLabels": {"tier": "gold"}}}));
        check(&bound("", gold()), create(), true);
        let mut elsewhere = create();
        elsewhere.namespace = "dev".into();
        check(&bound("", gold()), elsewhere, false);
        let namespace = |tier: &str| json!({"metadata": {"name": "new", "labels": {"tier": tier}}});
        check(&bound("", gold()), Write::create("", "Namespace", "namespaces", namespace("gold")), true);
        check(&bound("", gold()), Write::create("", "Namespace", "namespaces", namespace("tin")), false);
        check(&bound("", gold()), Write::create("", "Node", "nodes", json!({"metadata": {"name": "n"}})), true);
        let app = |value: &str| all(json!({"objectSelector": {"matchLabels": {"app": value}}}));
        check(&bound("", app("a")), create(), true);
        check(&bound("", app("b")), create(), false);
        let mut changed = pod();
        changed["metadata"]["labels"]["app"] = "b".into();
        check(&bound("", app("a")), Write::update("", "Pod", "pods", changed, pod()), true);
        // A WasmPlugin is asked about its own namespace only.
        check(&bound("web", rule(&["*"], &["*"], &["*"])), create(), true);
        check(&bound("dev", rule(&["*"], &["*"], &["*"])), create(), false);
        let node = || Write::create("", "Node", "nodes", json!({"metadata": {"name": "n"}}));
        check(&bound("web", rule(&["*"], &["*"], &["*"])), node(), false);
    }

    #[test]
    fn what_was_not_written_is_not_compiled_again() {
        let named = |name: &str| {
            json!({"metadata": {"name": name}, "spec": {"world": "admission", "source": {"inline": ""},
                "admission": rule(&["*"], &["*"], &["*"])}})
        };
        let caches =
            MapReader::new(&[(GROUP, "clusterwasmplugins", named("a")), (GROUP, "clusterwasmplugins", named("b"))]);
        let plugins = Plugins::default();
        let first = Index::compile(stamp(&*caches), &*caches, &plugins, &Index::default());
        caches.put(GROUP, "clusterwasmplugins", named("b"));
        let second = Index::compile(stamp(&*caches), &*caches, &plugins, &first);
        assert_ne!(first.stamp, second.stamp);
        assert!(Arc::ptr_eq(&first.bound[0], &second.bound[0]));
        assert!(!Arc::ptr_eq(&first.bound[1], &second.bound[1]));
        assert!(Arc::ptr_eq(&first.bound[1].turns, &second.bound[1].turns), "calls are counted on");
    }

    #[test]
    fn nobody_is_locked_out() {
        let exempt = |mut write: Write| write.with(|attributes| is_exempt(attributes));
        let plugin = json!({"metadata": {"name": "p"}});
        assert!(exempt(Write::delete(GROUP, "ClusterWasmPlugin", "clusterwasmplugins", plugin.clone())));
        assert!(exempt(Write::update(GROUP, "WasmPlugin", "wasmplugins", plugin.clone(), plugin).sub("status")));
        assert!(exempt(Write::create("", "Pod", "pods", pod()).by(user(OWN_USER, &["system:masters"]))));
        assert!(!exempt(Write::create("", "Pod", "pods", pod()).by(user("admin", &["system:masters"]))));
        // Upkeep is left alone unless it is named.
        let node = || user("system:node:n1", &["system:nodes"]);
        let lease = || json!({"metadata": {"name": "n1", "namespace": "web"}});
        let renewal = || Write::update("coordination.k8s.io", "Lease", "leases", lease(), lease()).by(node());
        let status = || Write::update("", "Pod", "pods", pod(), pod()).sub("status").by(node());
        let everything = bound("", rule(&["*"], &["*"], &["*/*"]));
        check(&everything, renewal(), false);
        check(&everything, status(), false);
        check(&everything, status().by(user("alice", &[])), true);
        check(&everything, Write::create("", "Pod", "pods", pod()).by(node()), true);
        check(&bound("", rule(&["*"], &["*"], &["leases"])), renewal(), true);
        check(&bound("", rule(&["*"], &["*"], &["pods/status"])), status(), true);
        check(&bound("", rule(&["*"], &["*"], &["pods/*"])), status(), false);
    }
}
