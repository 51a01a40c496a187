//! The node authorizer: an agent may touch its own node, the pods bound to it, and what those pods refer to.
//!
//! Follows `plugin/pkg/auth/authorizer/node` with selector authorization on. It only ever allows; what it has no opinion
//! on is left to RBAC. What depends on the body of a write is the business of the `NodeRestriction` admission plugin.

mod graph;

use std::sync::{Arc, LazyLock};

use scaleup_api::selector::FieldSelector;
use scaleup_api::well_known::NAMESPACE_NODE_LEASE;

use self::graph::Graph;
pub(crate) use self::graph::RefKind;
use super::policy;
use super::rbac::Attributes;
use super::rbac::rule::Rule;
use crate::cache::Reader;
use crate::user::UserInfo;

/// Prefix of the user names of agents.
pub const NODE_USER_PREFIX: &str = "system:node:";
/// Group of the agents.
pub const NODES_GROUP: &str = "system:nodes";

/// The node that `user` is the agent of.
pub fn node_name(user: &UserInfo) -> Option<&str> {
    user.name.strip_prefix(NODE_USER_PREFIX).filter(|n| !n.is_empty() && user.in_group(NODES_GROUP))
}

/// What the node authorizer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeVerdict {
    /// Go on.
    Allow,
    /// Ask RBAC; the reason (may be empty) is told if that refuses too.
    NoOpinion(String),
}

use NodeVerdict::{Allow, NoOpinion};

fn no(reason: impl Into<String>) -> NodeVerdict {
    NoOpinion(reason.into())
}

/// Rules of every node for what is not subdivided; the row `system:node` of the policy table.
static NODE_RULES: LazyLock<Vec<Rule>> = LazyLock::new(policy::node_rules);

/// Decides about agents. One for all requests.
pub struct NodeAuthorizer {
    caches: Arc<dyn Reader>,
    graph: Graph,
}

impl NodeAuthorizer {
    /// Over the cache's pods.
    pub fn new(caches: Arc<dyn Reader>) -> Self {
        Self { caches, graph: Graph::default() }
    }

    /// About a request of `node`'s agent.
    pub fn decide(&self, node: &str, a: &Attributes<'_>) -> NodeVerdict {
        match (a.group, a.resource) {
            _ if !a.path.is_empty() => {}
            ("", "secrets") => return self.read_referenced(node, RefKind::Secret, a),
            ("", "configmaps") => return self.read_referenced(node, RefKind::ConfigMap, a),
            ("", "serviceaccounts") => return self.service_account(node, a),
            ("", "nodes") => return own_node(node, a),
            ("", "pods") => return self.pod(node, a),
            ("coordination.k8s.io", "leases") => return lease(node, a),
            _ => {}
        }
        if NODE_RULES.iter().any(|r| r.allows(a)) { Allow } else { no("") }
    }

    fn read_referenced(&self, node: &str, kind: RefKind, a: &Attributes<'_>) -> NodeVerdict {
        if !matches!(a.verb, "get" | "list" | "watch") {
            return no("can only read resources of this type");
        }
        if !a.subresource.is_empty() {
            return no("cannot read subresource");
        }
        if a.namespace.is_empty() {
            return no("can only read namespaced object of this type");
        }
        self.referenced(node, kind, a)
    }

    fn service_account(&self, node: &str, a: &Attributes<'_>) -> NodeVerdict {
        match (a.verb, a.subresource) {
            ("get", "") | ("create", "token") => self.referenced(node, RefKind::ServiceAccount, a),
            (_, "token") => no("can only create tokens for individual service accounts"),
            _ => no("can only get individual resources of this type"),
        }
    }

    fn referenced(&self, node: &str, kind: RefKind, a: &Attributes<'_>) -> NodeVerdict {
        if a.name.is_empty() {
            return no("No Object name found");
        }
        if self.graph.refers(&*self.caches, node, kind, a.namespace, a.name) {
            return Allow;
        }
        no(format!("no relationship found between node '{node}' and this object"))
    }

    fn pod(&self, node: &str, a: &Attributes<'_>) -> NodeVerdict {
        match (a.verb, a.subresource) {
            ("get", "") if self.bound_to(node, a) == Some(true) => Allow,
            ("get", "") => no(format!("no relationship found between node '{node}' and this object")),
            ("list" | "watch", "") => {
                let selector = FieldSelector::parse(a.field_selector).unwrap_or_default();
                let own = |r: &scaleup_api::selector::FieldRequirement| {
                    r.path == "spec.nodeName" && !r.negate && r.value == node
                };
                if selector.requirements().iter().any(own) {
                    Allow
                } else {
                    no("can only list/watch pods with spec.nodeName field selector")
                }
            }
            // Mirror pods; NodeRestriction looks at the body.
            ("create", "") => Allow,
            // A pod that is not there (any more) is 404 further on, which an agent needs to tell from 403.
            ("delete", "") | ("update" | "patch", "status") | ("create", "eviction") => match self.bound_to(node, a) {
                Some(false) => no(format!("node '{node}' can only change pods with spec.nodeName set to itself")),
                _ => Allow,
            },
            _ => no(""),
        }
    }

    /// Whether the pod asked about is bound to `node`; `None` if there is no such pod.
    fn bound_to(&self, node: &str, a: &Attributes<'_>) -> Option<bool> {
        let pod = self.caches.get("", "pods", a.namespace, a.name)?;
        Some(pod.field("spec.nodeName") == Some(node))
    }
}

fn own_node(node: &str, a: &Attributes<'_>) -> NodeVerdict {
    match (a.verb, a.subresource) {
        // A create has no name yet: NodeRestriction looks at the body.
        ("create", "") => Allow,
        ("get" | "list" | "watch", "") if a.name == node => Allow,
        ("get" | "list" | "watch", "") if a.name.is_empty() => {
            no(format!("node '{node}' cannot read all nodes, only its own Node object"))
        }
        ("get" | "list" | "watch", "") => {
            no(format!("node '{node}' cannot read '{}', only its own Node object", a.name))
        }
        ("update" | "patch", "" | "status") if a.name == node => Allow,
        ("update" | "patch", "" | "status") => no(format!("node '{node}' is not allowed to modify node '{}'", a.name)),
        _ => no(""),
    }
}

fn lease(node: &str, a: &Attributes<'_>) -> NodeVerdict {
    // An agent watches nothing of others, so its own lease is all it may list and watch, by name.
    if !matches!(a.verb, "get" | "list" | "watch" | "create" | "update" | "patch" | "delete") {
        return no("can only get, create, update, patch, or delete a node lease");
    }
    if a.namespace != NAMESPACE_NODE_LEASE {
        return no(format!("can only access leases in the {NAMESPACE_NODE_LEASE:?} system namespace"));
    }
    if a.verb != "create" && a.name != node {
        return no("can only access node lease with the same name as the requesting node");
    }
    Allow
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::testing::{MapReader, user};
    use serde_json::json;

    fn authorizer() -> NodeAuthorizer {
        let pod = |name: &str, node: &str| {
            json!({
                "metadata": {"namespace": "web", "name": name, "uid": name},
                "spec": {
                    "nodeName": node, "serviceAccountName": format!("sa-{name}"),
                    "imagePullSecrets": [{"name": format!("pull-{name}")}],
                    "containers": [{"name": "c", "envFrom": [{"configMapRef": {"name": format!("env-{name}")}}]}],
                },
            })
        };
        NodeAuthorizer::new(MapReader::new(&[
            ("", "pods", pod("mine", "n1")),
            ("", "pods", pod("theirs", "n2")),
            ("", "pods", pod("free", "")),
        ]))
    }

    /// `verb group/resource[/subresource] [namespace/]name [selector]`
    fn ask(authorizer: &NodeAuthorizer, text: &str) -> NodeVerdict {
        let who = user("system:node:n1", &[NODES_GROUP]);
        let mut words = text.split(' ');
        let verb = words.next().unwrap();
        let mut what = words.next().unwrap().splitn(3, '/');
        let (namespace, name) = words.next().and_then(|w| w.split_once('/')).unwrap_or_default();
        let attributes = Attributes {
            verb,
            group: what.next().unwrap(),
            resource: what.next().unwrap(),
            subresource: what.next().unwrap_or_default(),
            namespace,
            name,
            field_selector: words.next().unwrap_or_default(),
            ..Attributes::of(&who)
        };
        authorizer.decide("n1", &attributes)
    }

    #[test]
    fn agents_reach_their_own_things_only() {
        let authorizer = authorizer();
        for allowed in [
            "get /nodes /n1",
            "watch /nodes /n1",
            "create /nodes",
            "patch /nodes/status /n1",
            "update /nodes /n1",
            "get coordination.k8s.io/leases kube-node-lease/n1",
            "create coordination.k8s.io/leases kube-node-lease/",
            "list /pods / spec.nodeName=n1",
            "watch /pods / spec.nodeName==n1,status.phase!=Failed",
            "get /pods web/mine",
            "delete /pods web/mine",
            "patch /pods/status web/mine",
            "create /pods web/",
            "create /pods/eviction web/mine",
            "delete /pods web/gone",
            "update /pods/status web/gone",
            "get /secrets web/pull-mine",
            "watch /secrets web/pull-mine",
            "get /configmaps web/env-mine",
            "get /serviceaccounts web/sa-mine",
            "create /serviceaccounts/token web/sa-mine",
            "list /services",
            "watch discovery.k8s.io/endpointslices",
            "create /events web/",
            "create events.k8s.io/events web/",
            "patch events.k8s.io/events web/e",
        ] {
            assert_eq!(ask(&authorizer, allowed), Allow, "{allowed}");
        }
        for refused in [
            "get /nodes /n2",
            "list /nodes",
            "patch /nodes/status /n2",
            "delete /nodes /n1",
            "update /nodes /n2",
            "get coordination.k8s.io/leases kube-node-lease/n2",
            "get coordination.k8s.io/leases default/n1",
            "list coordination.k8s.io/leases kube-node-lease/",
            "list /pods",
            "list /pods / spec.nodeName!=n1",
            "list /pods / spec.nodeName=n2",
            "list /pods / bad",
            "get /pods web/theirs",
            "get /pods web/free",
            "get /pods web/gone",
            "delete /pods web/theirs",
            "patch /pods/status web/theirs",
            "patch /pods/status web/free",
            "update /pods web/mine",
            "create /pods/eviction web/theirs",
            "create /pods/binding web/mine",
            "create /pods/exec web/mine",
            "deletecollection /pods web/",
            "get /secrets web/pull-theirs",
            "get /secrets web/pull-free",
            "list /secrets web/",
            "list /secrets",
            "update /secrets web/pull-mine",
            "get /configmaps web/pull-mine",
            "get /secrets web/env-mine",
            "get /configmaps db/env-mine",
            "get /serviceaccounts web/sa-theirs",
            "list /serviceaccounts web/",
            "create /serviceaccounts/token web/sa-theirs",
            "update /serviceaccounts web/sa-mine",
            "create /services web/",
            "get apps/deployments web/x",
            "delete /events web/e",
            "create rbac.authorization.k8s.io/clusterroles",
        ] {
            assert!(matches!(ask(&authorizer, refused), NoOpinion(_)), "{refused}");
        }
    }

    #[test]
    fn refusals_say_why() {
        let authorizer = authorizer();
        assert_eq!(
            ask(&authorizer, "get /secrets web/other"),
            no("no relationship found between node 'n1' and this object")
        );
        assert_eq!(ask(&authorizer, "list /pods"), no("can only list/watch pods with spec.nodeName field selector"));
    }

    #[test]
    fn only_members_of_the_group_are_agents() {
        assert_eq!(node_name(&user("system:node:n1", &[NODES_GROUP])), Some("n1"));
        for (name, groups) in [("system:node:n1", &[][..]), ("system:node:", &[NODES_GROUP]), ("n1", &[NODES_GROUP])] {
            assert_eq!(node_name(&user(name, groups)), None);
        }
    }
}
