//! Authorization: `system:masters` may do all, nodes what concerns their node, everybody what RBAC grants.
//!
//! Roles and bindings are compiled into an [`index::Index`] when the cache says that one changed; a request costs a lookup
//! per group of its user and the rules found there. Nothing is ever denied explicitly: what nobody grants is refused.

pub mod aggregation;
pub mod escalation;
pub mod index;
pub mod rule;

use std::borrow::Cow;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use scaleup_api::selector::FieldSelector;

use self::index::{Compiler, Grant, Index};
use self::rule::Rule;
use super::lb;
use super::node::{NodeAuthorizer, NodeVerdict, node_name};
use crate::cache::Reader;
use crate::error::{ApiError, GroupResource};
use crate::user::UserInfo;

/// Group of the RBAC kinds.
pub const RBAC_GROUP: &str = "rbac.authorization.k8s.io";
/// Members may do everything; no binding can take that away.
pub const MASTERS: &str = "system:masters";

/// What is asked (`authorizer.Attributes`).
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    /// Who.
    pub user: &'a UserInfo,
    /// RBAC verb, or the lower-case HTTP method for a non-resource path.
    pub verb: &'a str,
    /// Empty: cluster scope or all namespaces.
    pub namespace: &'a str,
    /// API group.
    pub group: &'a str,
    /// Plural.
    pub resource: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// Empty for collections.
    pub name: &'a str,
    /// Non-resource path, e.g. `/metrics`; empty for a resource request.
    pub path: &'a str,
    /// The `fieldSelector` parameter, percent-decoded; empty if none. A list of one `metadata.name` is authorized as that
    /// object; nodes may list only their own pods.
    pub field_selector: &'a str,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Go on.
    Allow,
    /// Refuse; `reason` may be empty.
    Deny {
        /// For people.
        reason: String,
    },
}

impl Decision {
    /// Whether to go on.
    pub fn allowed(&self) -> bool {
        *self == Decision::Allow
    }
}

impl<'a> Attributes<'a> {
    /// Everything but the user empty.
    pub fn of(user: &'a UserInfo) -> Self {
        Self {
            user,
            verb: "",
            namespace: "",
            group: "",
            resource: "",
            subresource: "",
            name: "",
            path: "",
            field_selector: "",
        }
    }

    /// The name that the request is about: for lists and watches also the one that the field selector pins.
    fn effective_name(&self) -> Cow<'a, str> {
        let collection = matches!(self.verb, "list" | "watch" | "deletecollection");
        if !collection || !self.name.is_empty() || !self.field_selector.contains("metadata.name") {
            return Cow::Borrowed(self.name);
        }
        let selector = FieldSelector::parse(self.field_selector).unwrap_or_default();
        let pinned = selector.requirements().iter().find(|r| r.path == "metadata.name" && !r.negate);
        pinned.map_or(Cow::Borrowed(self.name), |r| Cow::Owned(r.value.clone()))
    }

    /// `User "x" cannot list resource "pods" in API group "" in the namespace "y"`
    pub fn describe(&self) -> String {
        let (user, verb) = (&self.user.name, self.verb);
        let text = if !self.path.is_empty() {
            format!("User {user:?} cannot {verb} path {:?}", self.path)
        } else {
            let slash = if self.subresource.is_empty() { "" } else { "/" };
            let resource = format!("{}{slash}{}", self.resource, self.subresource);
            let scope = match self.namespace {
                "" => "at the cluster scope".to_owned(),
                namespace => format!("in the namespace {namespace:?}"),
            };
            format!("User {user:?} cannot {verb} resource {resource:?} in API group {:?} {scope}", self.group)
        };
        // As upstream: the text may end up in a browser.
        text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
    }

    /// The 403 for a denial, in upstream's words.
    pub fn forbidden_error(&self, reason: &str) -> ApiError {
        let gr = GroupResource { group: self.group.into(), resource: self.resource.into() };
        let text = self.describe();
        let text = if reason.is_empty() { text } else { format!("{text}: {reason}") };
        ApiError::forbidden(&gr, &self.effective_name(), text)
    }
}

enum Verdict {
    Allowed(Option<Arc<Grant>>),
    Denied(String),
}

/// Decides what users may do. One for all requests.
pub struct Authorizer {
    caches: Arc<dyn Reader>,
    index: ArcSwap<Index>,
    compiler: Mutex<Compiler>,
    nodes: NodeAuthorizer,
}

impl Authorizer {
    /// Over the cache's roles, bindings and pods.
    pub fn new(caches: Arc<dyn Reader>) -> Self {
        Self {
            nodes: NodeAuthorizer::new(caches.clone()),
            index: ArcSwap::from_pointee(Index::default()),
            compiler: Mutex::new(Compiler::default()),
            caches,
        }
    }

    /// Whether `attributes.user` may do it.
    pub fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        match self.verdict(attributes) {
            Verdict::Allowed(_) => Decision::Allow,
            Verdict::Denied(reason) => Decision::Deny { reason },
        }
    }

    /// The decision and why (`SubjectAccessReviewStatus.reason`).
    pub fn explain(&self, attributes: &Attributes<'_>) -> (Decision, String) {
        match self.verdict(attributes) {
            Verdict::Allowed(grant) => (Decision::Allow, grant.map(|g| g.describe()).unwrap_or_default()),
            Verdict::Denied(reason) => (Decision::Deny { reason: reason.clone() }, reason),
        }
    }

    /// Like [`Authorizer::authorize`], as the error that the client gets.
    pub fn require(&self, attributes: &Attributes<'_>) -> Result<(), ApiError> {
        match self.authorize(attributes) {
            Decision::Allow => Ok(()),
            Decision::Deny { reason } => Err(attributes.forbidden_error(&reason)),
        }
    }

    fn verdict(&self, attributes: &Attributes<'_>) -> Verdict {
        if attributes.user.in_group(MASTERS) {
            return Verdict::Allowed(None);
        }
        let name = attributes.effective_name();
        let attributes = &Attributes { name: &name, ..*attributes };
        let mut reasons = Vec::new();
        if let Some(node) = node_name(attributes.user) {
            match self.nodes.decide(node, attributes) {
                NodeVerdict::Allow => return Verdict::Allowed(None),
                NodeVerdict::NoOpinion(reason) if reason.is_empty() => {}
                NodeVerdict::NoOpinion(reason) => reasons.push(reason),
            }
        }
        if lb::is_load_balancer(attributes.user) {
            match lb::decide(attributes) {
                Ok(()) => return Verdict::Allowed(None),
                Err("") => {}
                Err(reason) => reasons.push(reason.to_owned()),
            }
        }
        let index = self.index();
        if let Some(grant) =
            index.grants(attributes.user, attributes.namespace).find(|g| g.rules.iter().any(|r| r.allows(attributes)))
        {
            return Verdict::Allowed(Some(grant.clone()));
        }
        reasons.extend(index.missing_roles(attributes.user, attributes.namespace));
        Verdict::Denied(reasons.join(", "))
    }

    /// All rules that `user` has in `namespace` (cluster-wide ones included), from RBAC only.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        self.index().grants(user, namespace).flat_map(|g| g.rules.iter().cloned()).collect()
    }

    /// The rules of a role or cluster role, aggregation resolved; `None` if there is no such role.
    pub fn role_rules(&self, namespace: &str, kind: &str, name: &str) -> Option<Arc<[Rule]>> {
        self.index().role_rules(namespace, kind, name)
    }

    /// The compiled roles and bindings, as new as the cache.
    fn index(&self) -> Arc<Index> {
        let current = self.index.load();
        if current.stamp == index::stamp(&*self.caches) {
            return Arc::clone(&current);
        }
        let mut compiler = self.compiler.lock();
        let stamp = index::stamp(&*self.caches);
        let current = self.index.load_full();
        if current.stamp == stamp {
            return current;
        }
        let fresh = Arc::new(compiler.compile(&*self.caches, stamp));
        self.index.store(fresh.clone());
        fresh
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::auth::testing::{MapReader, user};
    use serde_json::{Value, json};

    pub(crate) fn binding(
        kind: &str,
        namespace: &str,
        name: &str,
        role: (&str, &str),
        subject: Value,
    ) -> (String, Value) {
        let plural = format!("{}s", kind.to_lowercase());
        let object = json!({
            "metadata": {"name": name, "namespace": namespace},
            "roleRef": {"apiGroup": RBAC_GROUP, "kind": role.0, "name": role.1},
            "subjects": [subject],
        });
        (plural, object)
    }

    fn put(reader: &MapReader, (plural, object): (String, Value)) {
        reader.put(RBAC_GROUP, &plural, object);
    }

    fn role(reader: &MapReader, namespace: &str, name: &str, rules: Value) {
        let plural = if namespace.is_empty() { "clusterroles" } else { "roles" };
        let metadata = json!({"name": name, "namespace": namespace});
        reader.put(RBAC_GROUP, plural, json!({"metadata": metadata, "rules": rules}));
    }

    fn pods(verbs: &[&str]) -> Value {
        json!([{"apiGroups": [""], "resources": ["pods"], "verbs": verbs}])
    }

    fn may(authorizer: &Authorizer, who: &UserInfo, verb: &str, namespace: &str) -> bool {
        authorizer.authorize(&Attributes { verb, namespace, resource: "pods", ..Attributes::of(who) }).allowed()
    }

    #[test]
    fn grants_follow_bindings_scopes_and_subjects() {
        let reader = MapReader::new(&[]);
        let authorizer = Authorizer::new(reader.clone());
        let (alice, ops) = (user("alice", &[]), user("olga", &["ops"]));
        let robot = user("system:serviceaccount:ci:robot", &["system:serviceaccounts"]);
        assert!(!may(&authorizer, &alice, "get", "web"));
        role(&reader, "", "reader", pods(&["get"]));
        role(&reader, "web", "writer", pods(&["create"]));
        let subject = json!({"kind": "User", "name": "alice"});
        put(&reader, binding("RoleBinding", "web", "a", ("ClusterRole", "reader"), subject.clone()));
        assert!(may(&authorizer, &alice, "get", "web"), "a new binding counts at once");
        assert!(!may(&authorizer, &alice, "get", "db") && !may(&authorizer, &alice, "get", ""));
        put(&reader, binding("RoleBinding", "web", "b", ("Role", "writer"), json!({"kind": "Group", "name": "ops"})));
        assert!(may(&authorizer, &ops, "create", "web") && !may(&authorizer, &ops, "get", "web"));
        let robot_subject = json!({"kind": "ServiceAccount", "name": "robot", "namespace": "ci"});
        put(&reader, binding("ClusterRoleBinding", "", "c", ("ClusterRole", "reader"), robot_subject));
        assert!(may(&authorizer, &robot, "get", "") && may(&authorizer, &robot, "get", "web"));
        assert!(!may(&authorizer, &user("robot", &[]), "get", "web"));
        reader.remove(RBAC_GROUP, "rolebindings", "web", "a");
        assert!(!may(&authorizer, &alice, "get", "web"), "a deleted binding counts at once");
        role(&reader, "", "reader", pods(&["list"]));
        assert!(!may(&authorizer, &robot, "get", "") && may(&authorizer, &robot, "list", ""));
    }

    #[test]
    fn masters_may_do_everything() {
        let authorizer = Authorizer::new(MapReader::new(&[]));
        let admin = user("kubernetes-admin", &[MASTERS]);
        assert!(may(&authorizer, &admin, "anything", "anywhere"));
        let path = Attributes { verb: "get", path: "/metrics", ..Attributes::of(&admin) };
        assert!(authorizer.authorize(&path).allowed());
    }

    #[test]
    fn refusals_are_worded_as_upstreams() {
        let authorizer = Authorizer::new(MapReader::new(&[]));
        let who = user("x", &[]);
        let check = |attributes: Attributes<'_>, expected: &str| {
            let error = authorizer.require(&attributes).unwrap_err();
            assert_eq!((error.code.as_u16(), error.reason), (403, "Forbidden"));
            assert_eq!(error.message, expected);
        };
        let base = Attributes { verb: "list", resource: "pods", ..Attributes::of(&who) };
        check(
            Attributes { namespace: "y", ..base },
            r#"pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "y""#,
        );
        check(
            Attributes { verb: "get", group: "apps", resource: "deployments", subresource: "scale", name: "w", ..base },
            r#"deployments.apps "w" is forbidden: User "x" cannot get resource "deployments/scale" in API group "apps" at the cluster scope"#,
        );
        check(
            Attributes { verb: "get", resource: "", path: "/metrics", ..base },
            r#"forbidden: User "x" cannot get path "/metrics""#,
        );
        check(
            Attributes { field_selector: "metadata.name=w", ..base },
            r#"pods "w" is forbidden: User "x" cannot list resource "pods" in API group "" at the cluster scope"#,
        );
        let angry = user("<b>&", &[]);
        check(
            Attributes { user: &angry, ..base },
            r#"pods is forbidden: User "&lt;b&gt;&amp;" cannot list resource "pods" in API group "" at the cluster scope"#,
        );
    }

    #[test]
    fn bindings_to_missing_roles_are_named() {
        let reader = MapReader::new(&[]);
        let authorizer = Authorizer::new(reader.clone());
        let who = user("x", &[]);
        let subject = json!({"kind": "User", "name": "x"});
        put(&reader, binding("ClusterRoleBinding", "", "b", ("ClusterRole", "gone"), subject));
        let asked = Attributes { verb: "list", resource: "pods", ..Attributes::of(&who) };
        let Decision::Deny { reason } = authorizer.authorize(&asked) else { panic!() };
        assert_eq!(reason, r#"RBAC: clusterrole.rbac.authorization.k8s.io "gone" not found"#);
    }

    #[test]
    fn a_list_of_one_name_needs_only_that_name() {
        let reader = MapReader::new(&[]);
        let authorizer = Authorizer::new(reader.clone());
        let one = json!([{"apiGroups": [""], "resources": ["pods"], "resourceNames": ["w"], "verbs": ["watch"]}]);
        role(&reader, "", "one", one);
        put(
            &reader,
            binding("ClusterRoleBinding", "", "b", ("ClusterRole", "one"), json!({"kind": "User", "name": "x"})),
        );
        let who = user("x", &[]);
        let asked = |selector| {
            let base = Attributes { verb: "watch", resource: "pods", namespace: "n", ..Attributes::of(&who) };
            authorizer.authorize(&Attributes { field_selector: selector, ..base }).allowed()
        };
        assert!(asked("metadata.name=w") && asked("status.phase!=Running,metadata.name==w"));
        for selector in ["", "metadata.name=v", "metadata.name!=w", "metadata.namespace=w", "garbage metadata.name"] {
            assert!(!asked(selector), "{selector}");
        }
    }

    #[test]
    fn allowed_requests_say_by_what() {
        let reader = MapReader::new(&[]);
        let authorizer = Authorizer::new(reader.clone());
        role(&reader, "", "reader", pods(&["get"]));
        put(
            &reader,
            binding("RoleBinding", "web", "b", ("ClusterRole", "reader"), json!({"kind": "Group", "name": "g"})),
        );
        let who = user("x", &["g"]);
        let asked = Attributes { verb: "get", resource: "pods", namespace: "web", ..Attributes::of(&who) };
        assert_eq!(
            authorizer.explain(&asked).1,
            r#"RBAC: allowed by RoleBinding "b/web" of ClusterRole "reader" to Group "g""#
        );
    }
}
