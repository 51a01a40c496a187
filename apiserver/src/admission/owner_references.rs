//! `OwnerReferencesPermissionEnforcement`: owner references decide over deletion, so setting them needs that permission.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use super::{Attributes, Plugin, list, text};
use crate::auth::rbac::{self, Authorizer, Decision};
use crate::error::ApiError;
use crate::registry::Registry;

pub(super) struct OwnerReferencesPermissionEnforcement;

#[async_trait]
impl Plugin for OwnerReferencesPermissionEnforcement {
    fn name(&self) -> &'static str {
        "OwnerReferencesPermissionEnforcement"
    }
    async fn validate(&self, server: &Arc<crate::Server>, attributes: &Attributes<'_>) -> Result<(), ApiError> {
        if attributes.deletes() {
            return Ok(());
        }
        check(&server.authorizer, &server.registry.load(), attributes)
    }
}

fn references(object: Option<&Value>) -> &[Value] {
    object.map(|o| list(o, &["metadata", "ownerReferences"])).unwrap_or_default()
}

fn blocks(reference: &Value) -> bool {
    reference["blockOwnerDeletion"] == true
}

/// References that newly block their owner's deletion.
fn newly_blocking<'a>(new: &'a [Value], old: &[Value]) -> Vec<&'a Value> {
    let before = |r: &Value| old.iter().find(|o| o["uid"] == r["uid"]);
    new.iter().filter(|r| blocks(r) && !before(r).is_some_and(blocks)).collect()
}

fn check(authorizer: &Authorizer, registry: &Registry, attributes: &Attributes<'_>) -> Result<(), ApiError> {
    let (new, old) = (references(Some(attributes.object)), references(attributes.old));
    // Most writes stop here.
    if new == old || attributes.is_kind("", "pods") && attributes.subresource == Some("status") {
        return Ok(());
    }
    let base = rbac::Attributes { namespace: attributes.namespace, ..rbac::Attributes::of(attributes.user) };
    let delete = rbac::Attributes {
        verb: "delete",
        group: &attributes.resource.group,
        resource: &attributes.resource.plural,
        subresource: attributes.subresource.unwrap_or_default(),
        name: attributes.name,
        ..base
    };
    // The words after the colon are how upstream prints a reason and an absent error.
    if let Decision::Deny { reason } = authorizer.authorize(&delete) {
        let why = format_args!("cannot set an ownerRef on a resource you can't delete: {reason}, <nil>");
        return Err(attributes.forbidden(why));
    }
    for reference in newly_blocking(new, old) {
        let (api_version, kind) = (text(reference, &["apiVersion"]), text(reference, &["kind"]));
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let Some(owner) = registry.by_kind(group, version, kind) else {
            return Err(attributes.forbidden(format_args!(
                "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion \
                 {api_version} Kind {kind}: no matches for kind {kind:?} in version {api_version:?}"
            )));
        };
        let finalizers = rbac::Attributes {
            verb: "update",
            group,
            resource: &owner.plural,
            subresource: "finalizers",
            name: text(reference, &["name"]),
            namespace: if owner.namespaced() { attributes.namespace } else { "" },
            ..base
        };
        if let Decision::Deny { reason } = authorizer.authorize(&finalizers) {
            return Err(attributes.forbidden(format_args!(
                "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: \
                 {reason}, <nil>"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::Write;
    use super::*;
    use crate::auth::rbac::RBAC_GROUP;
    use crate::auth::testing::MapReader;
    use crate::present::fixtures;
    use serde_json::json;

    fn pod(references: Value) -> Value {
        json!({"metadata": {"name": "p", "namespace": "web", "ownerReferences": references}})
    }

    fn owner(kind: &str, block: bool) -> Value {
        json!({"apiVersion": "apps/v1", "kind": kind, "name": "o", "uid": "u", "blockOwnerDeletion": block})
    }

    fn check_as(rules: Value, mut write: Write, expected: Option<&str>) {
        let reader = MapReader::new(&[
            (RBAC_GROUP, "clusterroles", json!({"metadata": {"name": "r"}, "rules": rules})),
            (
                RBAC_GROUP,
                "clusterrolebindings",
                json!({"metadata": {"name": "b"}, "roleRef": {"apiGroup": RBAC_GROUP, "kind": "ClusterRole", "name": "r"},
                       "subjects": [{"kind": "User", "name": "alice"}]}),
            ),
        ]);
        let authorizer = Authorizer::new(reader);
        let result = write.with(|a| check(&authorizer, &fixtures::registry(), a));
        match (result, expected) {
            (Ok(()), None) => {}
            (Err(error), Some(text)) => assert!(error.message.contains(text), "{}", error.message),
            (got, expected) => panic!("{got:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn setting_owners_needs_the_permission_to_delete() {
        let create = |refs: Value| Write::create("", "Pod", "pods", pod(refs));
        let delete = json!([{"verbs": ["delete"], "apiGroups": [""], "resources": ["pods"]}]);
        let both = json!([
            {"verbs": ["delete"], "apiGroups": [""], "resources": ["pods"]},
            {"verbs": ["update"], "apiGroups": ["apps"], "resources": ["deployments/finalizers"]},
        ]);
        check_as(json!([]), create(Value::Null), None);
        check_as(
            json!([]),
            create(json!([owner("Deployment", false)])),
            Some("cannot set an ownerRef on a resource you can't delete: , <nil>"),
        );
        check_as(delete.clone(), create(json!([owner("Deployment", false)])), None);
        check_as(
            delete.clone(),
            create(json!([owner("Deployment", true)])),
            Some(
                "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: , <nil>",
            ),
        );
        check_as(both.clone(), create(json!([owner("Deployment", true)])), None);
        check_as(
            both,
            create(json!([owner("Unknown", true)])),
            Some("cannot find RESTMapping for APIVersion apps/v1 Kind Unknown"),
        );
        let same = pod(json!([owner("Deployment", true)]));
        check_as(json!([]), Write::update("", "Pod", "pods", same.clone(), same.clone()), None);
        check_as(delete, Write::update("", "Pod", "pods", pod(json!([owner("Deployment", false)])), same), None);
    }
}
