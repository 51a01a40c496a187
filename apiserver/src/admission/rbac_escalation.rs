//! Escalation checks on roles and bindings, where upstream has them in the storage of these kinds.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::rbac::v1::PolicyRule;
use serde::Deserialize;
use serde_json::Value;

use super::{Attributes, Plugin, text};
use crate::auth::rbac::escalation::{confirm, exempt, full_authority, may_bind, may_escalate, no_such_role};
use crate::auth::rbac::rule::Rule;
use crate::auth::rbac::{Authorizer, RBAC_GROUP};
use crate::error::ApiError;
use crate::handler::storage::cache_error;

pub(super) struct RbacEscalation;

#[async_trait]
impl Plugin for RbacEscalation {
    fn name(&self) -> &'static str {
        "RBACEscalation"
    }
    async fn validate(&self, server: &Arc<crate::Server>, attributes: &Attributes<'_>) -> Result<(), ApiError> {
        if attributes.resource.group != RBAC_GROUP || attributes.deletes() || exempt(attributes.user) {
            return Ok(());
        }
        // Upstream reads the roles from its store here; another API server may just have written them.
        server.caches.catch_up().await.map_err(cache_error)?;
        match &*attributes.resource.plural {
            "roles" | "clusterroles" => check_role(&server.authorizer, attributes),
            "rolebindings" | "clusterrolebindings" => check_binding(&server.authorizer, attributes),
            _ => Ok(()),
        }
    }
}

/// Whether an update changes nothing but what the garbage collector changes (finalizers, owner references).
fn only_collects_garbage(attributes: &Attributes<'_>) -> bool {
    let Some(old) = attributes.old else { return false };
    let without = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object["metadata"].as_object_mut() {
            for field in ["finalizers", "ownerReferences", "resourceVersion", "managedFields"] {
                metadata.remove(field);
            }
        }
        object
    };
    without(attributes.object) == without(old)
}

fn rules(object: &Value) -> Vec<Rule> {
    let parsed: Vec<PolicyRule> = Option::deserialize(&object["rules"]).ok().flatten().unwrap_or_default();
    parsed.into_iter().map(Rule::from).collect()
}

fn check_role(authorizer: &Authorizer, attributes: &Attributes<'_>) -> Result<(), ApiError> {
    let (user, namespace) = (attributes.user, attributes.namespace);
    if only_collects_garbage(attributes)
        || may_escalate(authorizer, user, namespace, &attributes.resource.plural, attributes.name)
    {
        return Ok(());
    }
    confirm(authorizer, user, namespace, &rules(attributes.object)).map_err(|refusal| attributes.forbidden(refusal))?;
    let aggregates = !attributes.object["aggregationRule"].is_null();
    if aggregates && confirm(authorizer, user, namespace, &full_authority()).is_err() {
        return Err(attributes.forbidden("must have cluster-admin privileges to use an aggregationRule"));
    }
    Ok(())
}

fn check_binding(authorizer: &Authorizer, attributes: &Attributes<'_>) -> Result<(), ApiError> {
    let (user, namespace) = (attributes.user, attributes.namespace);
    let role = &attributes.object["roleRef"];
    let (kind, name) = (text(role, &["kind"]), text(role, &["name"]));
    if only_collects_garbage(attributes) || may_bind(authorizer, user, namespace, kind, name) {
        return Ok(());
    }
    let rules = authorizer.role_rules(namespace, kind, name).ok_or_else(|| no_such_role(kind, name))?;
    confirm(authorizer, user, namespace, &rules).map_err(|refusal| attributes.forbidden(refusal))
}

#[cfg(test)]
mod tests {
    use super::super::testing::Write;
    use super::*;
    use crate::auth::testing::MapReader;
    use serde_json::json;

    fn authorizer() -> Authorizer {
        let get_pods = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
        let all = json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}, {"verbs": ["*"], "nonResourceURLs": ["*"]}]);
        let escalate = json!([
            {"verbs": ["escalate"], "apiGroups": [RBAC_GROUP], "resources": ["clusterroles"], "resourceNames": ["mine"]},
            {"verbs": ["bind"], "apiGroups": [RBAC_GROUP], "resources": ["clusterroles"], "resourceNames": ["all"]},
        ]);
        let reader = MapReader::new(&[]);
        for (name, rules, who) in [("reader", get_pods, "rita"), ("all", all, "olga"), ("grantor", escalate, "gus")] {
            reader.put(RBAC_GROUP, "clusterroles", json!({"metadata": {"name": name}, "rules": rules}));
            let binding = json!({
                "metadata": {"name": name}, "roleRef": {"apiGroup": RBAC_GROUP, "kind": "ClusterRole", "name": name},
                "subjects": [{"kind": "User", "name": who}],
            });
            reader.put(RBAC_GROUP, "clusterrolebindings", binding);
        }
        Authorizer::new(reader)
    }

    fn role(name: &str, verb: &str, resource: &str) -> Value {
        json!({"metadata": {"name": name}, "rules": [{"verbs": [verb], "apiGroups": [""], "resources": [resource]}]})
    }

    fn ask_role(who: &str, object: Value, old: Option<Value>) -> Result<(), ApiError> {
        let mut write = Write::create(RBAC_GROUP, "ClusterRole", "clusterroles", object);
        write.old = old;
        write.by(crate::auth::testing::user(who, &["g"])).with(|a| check_role(&authorizer(), a))
    }

    #[test]
    fn roles_grant_only_what_their_writer_has() {
        assert!(ask_role("rita", role("r", "get", "pods"), None).is_ok());
        let refused = ask_role("rita", role("r", "list", "secrets"), None).unwrap_err();
        assert_eq!(
            refused.message,
            "clusterroles.rbac.authorization.k8s.io \"r\" is forbidden: user \"rita\" (groups=[\"g\" \
             \"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n\
             {APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"list\"]}"
        );
        assert!(ask_role("olga", role("r", "*", "*"), None).is_ok());
        assert!(ask_role("gus", role("mine", "*", "*"), None).is_ok(), "may escalate this one");
        assert!(ask_role("gus", role("other", "*", "*"), None).is_err());
        let mut collected = role("r", "list", "secrets");
        collected["metadata"]["finalizers"] = json!(["x"]);
        assert!(ask_role("rita", role("r", "list", "secrets"), Some(collected)).is_ok(), "the collector may finish");
    }

    #[test]
    fn aggregation_needs_everything() {
        let mut object = role("r", "get", "pods");
        object["aggregationRule"] = json!({"clusterRoleSelectors": [{}]});
        assert!(ask_role("olga", object.clone(), None).is_ok());
        let refused = ask_role("rita", object, None).unwrap_err();
        assert!(refused.message.ends_with("must have cluster-admin privileges to use an aggregationRule"));
    }

    #[test]
    fn bindings_hand_out_only_what_their_writer_has() {
        let ask = |who: &str, role: &str| {
            let object = json!({"metadata": {"name": "b", "namespace": "web"}, "roleRef": {"kind": "ClusterRole", "name": role}});
            Write::create(RBAC_GROUP, "RoleBinding", "rolebindings", object)
                .by(crate::auth::testing::user(who, &[]))
                .with(|a| check_binding(&authorizer(), a))
        };
        assert!(ask("rita", "reader").is_ok());
        assert_eq!(ask("rita", "all").unwrap_err().code.as_u16(), 403);
        assert!(ask("gus", "all").is_ok(), "may bind it");
        assert_eq!(ask("gus", "reader").unwrap_err().code.as_u16(), 403);
        let missing = ask("rita", "gone").unwrap_err();
        assert_eq!(missing.message, "clusterroles.rbac.authorization.k8s.io \"gone\" not found");
    }
}
