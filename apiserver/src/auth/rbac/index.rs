//! Roles and bindings, compiled: subject → what it is granted, cluster-wide and by namespace.
//!
//! Compiled anew when the cache's revision of one of the four kinds moves; objects that did not change are not parsed again.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::rbac::v1 as rbac;
use serde::Deserialize;

use super::RBAC_GROUP;
use super::aggregation;
use super::rule::Rule;
use crate::cache::{Cached, Reader};
use crate::user::UserInfo;

/// The kinds that the index is made of; their order is that of [`Stamp`].
const PLURALS: [&str; 4] = ["roles", "clusterroles", "rolebindings", "clusterrolebindings"];

/// Revisions of the four kinds; equal stamps, equal index.
pub(super) type Stamp = [u64; 4];

/// The cache's present stamp.
pub(super) fn stamp(caches: &dyn Reader) -> Stamp {
    PLURALS.map(|plural| caches.changed(RBAC_GROUP, plural))
}

/// What one binding grants one subject.
#[derive(Debug)]
pub(super) struct Grant {
    /// Of the role; empty if there is no such role.
    pub rules: Arc<[Rule]>,
    /// `RoleBinding "b/web" of ClusterRole "reader"`
    binding: Arc<str>,
    /// `Group "g"`
    subject: String,
    /// `clusterrole.rbac.authorization.k8s.io "x" not found`
    missing: Option<Arc<str>>,
}

impl Grant {
    /// Upstream's reason for an allowed request.
    pub fn describe(&self) -> String {
        format!("RBAC: allowed by {} to {}", self.binding, self.subject)
    }
}

#[derive(Debug, Default)]
struct Grants {
    cluster: Vec<Arc<Grant>>,
    namespaced: HashMap<String, Vec<Arc<Grant>>>,
}

/// Namespace (empty for cluster roles) and name.
type RoleKey = (String, String);

/// The compiled form.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub stamp: Stamp,
    users: HashMap<String, Grants>,
    groups: HashMap<String, Grants>,
    roles: HashMap<RoleKey, Arc<[Rule]>>,
}

impl Index {
    /// Everything granted to `user` for requests in `namespace`; cluster-wide grants first.
    pub fn grants<'a>(&'a self, user: &'a UserInfo, namespace: &'a str) -> impl Iterator<Item = &'a Arc<Grant>> {
        let subjects =
            move || self.users.get(&user.name).into_iter().chain(user.groups.iter().filter_map(|g| self.groups.get(g)));
        let local = move |g: &'a Grants| g.namespaced.get(namespace).into_iter().flatten();
        subjects().flat_map(|g| g.cluster.iter()).chain(subjects().flat_map(local))
    }

    /// Upstream's text about bindings of this user whose roles do not exist.
    pub fn missing_roles(&self, user: &UserInfo, namespace: &str) -> Option<String> {
        let missing: Vec<&str> = self.grants(user, namespace).filter_map(|g| g.missing.as_deref()).collect();
        match missing.as_slice() {
            [] => None,
            [one] => Some(format!("RBAC: {one}")),
            many => Some(format!("RBAC: [{}]", many.join(", "))),
        }
    }

    /// The rules of a role, aggregation resolved.
    pub fn role_rules(&self, namespace: &str, kind: &str, name: &str) -> Option<Arc<[Rule]>> {
        let namespace = if kind == "ClusterRole" { "" } else { namespace };
        self.roles.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }
}

enum Parsed {
    Role(Arc<[Rule]>),
    ClusterRole(aggregation::ClusterRole),
    Binding(Binding),
}

struct Binding {
    namespace: String,
    name: String,
    role_kind: String,
    role_name: String,
    subjects: Vec<rbac::Subject>,
}

/// Remembers what it parsed.
#[derive(Default)]
pub(super) struct Compiler {
    parsed: HashMap<(usize, String, String), (u64, Arc<Parsed>)>,
}

impl Compiler {
    /// Compiles the cache's state, which is at least as new as `stamp`.
    pub fn compile(&mut self, caches: &dyn Reader, stamp: Stamp) -> Index {
        let mut index = Index { stamp, ..Index::default() };
        let mut next = HashMap::new();
        let mut bindings = Vec::new();
        let mut cluster_roles = Vec::new();
        for (kind, plural) in PLURALS.iter().enumerate() {
            for object in caches.list(RBAC_GROUP, plural, None) {
                let key = (kind, object.namespace.clone(), object.name.clone());
                let known = self.parsed.remove(&key).filter(|(revision, _)| *revision == object.revision);
                let Some(parsed) = known.map(|(_, p)| p).or_else(|| parse(kind, &object).map(Arc::new)) else {
                    continue;
                };
                match &*parsed {
                    Parsed::Role(rules) => {
                        index.roles.insert((object.namespace.clone(), object.name.clone()), rules.clone());
                    }
                    Parsed::ClusterRole(_) => cluster_roles.push(parsed.clone()),
                    Parsed::Binding(_) => bindings.push(parsed.clone()),
                }
                next.insert(key, (object.revision, parsed));
            }
        }
        self.parsed = next;
        let cluster_roles: Vec<&aggregation::ClusterRole> = cluster_roles
            .iter()
            .filter_map(|p| if let Parsed::ClusterRole(r) = &**p { Some(r) } else { None })
            .collect();
        for (role, rules) in cluster_roles.iter().zip(aggregation::resolve(&cluster_roles)) {
            index.roles.insert((String::new(), role.name.clone()), rules);
        }
        for parsed in &bindings {
            if let Parsed::Binding(binding) = &**parsed {
                index.add(binding);
            }
        }
        index
    }
}

impl Index {
    fn add(&mut self, binding: &Binding) {
        let rules = self.role_rules(&binding.namespace, &binding.role_kind, &binding.role_name);
        let missing = rules.is_none().then(|| -> Arc<str> {
            format!("{}.{RBAC_GROUP} {:?} not found", binding.role_kind.to_lowercase(), binding.role_name).into()
        });
        let rules = rules.unwrap_or_default();
        let (kind, name) = match binding.namespace.as_str() {
            "" => ("ClusterRoleBinding", binding.name.clone()),
            namespace => ("RoleBinding", format!("{}/{namespace}", binding.name)),
        };
        let text: Arc<str> = format!("{kind} {name:?} of {} {:?}", binding.role_kind, binding.role_name).into();
        for subject in &binding.subjects {
            let namespace = subject.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(&binding.namespace);
            let (map, key, described) = match subject.kind.as_str() {
                "User" => (&mut self.users, subject.name.clone(), format!("User {:?}", subject.name)),
                "Group" => (&mut self.groups, subject.name.clone(), format!("Group {:?}", subject.name)),
                "ServiceAccount" if !namespace.is_empty() => (
                    &mut self.users,
                    format!("system:serviceaccount:{namespace}:{}", subject.name),
                    format!("ServiceAccount {:?}", format!("{}/{namespace}", subject.name)),
                ),
                _ => continue,
            };
            let grant = Arc::new(Grant {
                rules: rules.clone(),
                binding: text.clone(),
                subject: described,
                missing: missing.clone(),
            });
            let grants = map.entry(key).or_default();
            match binding.namespace.as_str() {
                "" => grants.cluster.push(grant),
                namespace => grants.namespaced.entry(namespace.to_owned()).or_default().push(grant),
            }
        }
    }
}

fn rules(list: Option<Vec<rbac::PolicyRule>>) -> Arc<[Rule]> {
    list.unwrap_or_default().into_iter().map(Rule::from).collect()
}

/// `None` for an object that is not what it should be; it grants nothing then.
fn parse(kind: usize, object: &Cached) -> Option<Parsed> {
    fn typed<'a, T: Deserialize<'a>>(object: &'a Cached) -> Option<T> {
        serde_json::from_slice(&object.json)
            .inspect_err(|error| tracing::error!(%error, name = object.name, "stored RBAC object cannot be read"))
            .ok()
    }
    let binding = |role: rbac::RoleRef, subjects: Option<Vec<rbac::Subject>>| {
        Parsed::Binding(Binding {
            namespace: object.namespace.clone(),
            name: object.name.clone(),
            role_kind: role.kind,
            role_name: role.name,
            subjects: subjects.unwrap_or_default(),
        })
    };
    Some(match PLURALS[kind] {
        "roles" => Parsed::Role(rules(typed::<rbac::Role>(object)?.rules)),
        "clusterroles" => {
            let role: rbac::ClusterRole = typed(object)?;
            Parsed::ClusterRole(aggregation::ClusterRole::new(
                &object.name,
                &object.labels,
                rules(role.rules),
                role.aggregation_rule,
            ))
        }
        "rolebindings" => {
            let b: rbac::RoleBinding = typed(object)?;
            binding(b.role_ref, b.subjects)
        }
        _ => {
            let b: rbac::ClusterRoleBinding = typed(object)?;
            binding(b.role_ref, b.subjects)
        }
    })
}
