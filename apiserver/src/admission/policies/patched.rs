//! What a plugin's patch may do to an object: nothing that whoever writes could not have asked for.
//!
//! A patch is applied, compared, decoded and bounded here; that the result is valid is found out where all writes are. Nothing is stored.

use scaleup_plugins::PluginKey;
use serde_json::{Map, Value};

use crate::admission::Attributes;
use crate::handler::body::{self, Parsed};
use crate::patch;
use crate::request::FieldValidation;

/// Fields of the metadata that are the server's or identify the object.
const FIXED: [&str; 11] = [
    "name",
    "generateName",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "selfLink",
];

/// The object after the patch; `None` if that changes nothing.
///
/// # Errors
/// Why the patch is of no use.
pub(super) fn apply(key: &PluginKey, attributes: &Attributes<'_>, patch: &str) -> Result<Option<Value>, String> {
    let before = &*attributes.object;
    let applied = patch::json_patch(before, patch.as_bytes()).map_err(|error| format!("its patch: {error}"))?;
    if applied == *before {
        return Ok(None);
    }
    if !key.namespace.is_empty() && attributes.resource.group == "rbac.authorization.k8s.io" {
        return Err("its patch changes a permission, which only a ClusterWasmPlugin may".into());
    }
    fixed(attributes, before, &applied).map_err(|field| format!("its patch changes {field}, which it may not"))?;
    let parsed = Parsed { value: applied, duplicates: Vec::new() };
    let decoded = body::decode(attributes.resource, parsed, FieldValidation::Strict, &mut Vec::new());
    decoded.map(Some).map_err(|error| format!("the object after its patch: {error}"))
}

/// The field that is not as it must be.
fn fixed(attributes: &Attributes<'_>, before: &Value, after: &Value) -> Result<(), String> {
    let outside = |keep: fn(&str) -> bool| first_difference(before, after, keep);
    let difference = match attributes.subresource {
        None => {
            let status = attributes.resource.has_status;
            outside(|field| matches!(field, "apiVersion" | "kind"))
                .or_else(|| status.then(|| outside(|field| field == "status")).flatten())
                .or_else(|| metadata(before, after))
        }
        Some("status") => outside(|field| field != "status"),
        Some("scale") => outside(|field| field != "spec").or_else(|| within_spec(before, after, "replicas")),
        Some("finalize") => outside(|field| field != "spec").or_else(|| within_spec(before, after, "finalizers")),
        Some(other) => Some(format!("the subresource {other}")),
    };
    difference.map_or(Ok(()), Err)
}

fn fields(value: &Value) -> impl Iterator<Item = &String> {
    value.as_object().into_iter().flat_map(Map::keys)
}

fn first_difference(before: &Value, after: &Value, concerned: impl Fn(&str) -> bool) -> Option<String> {
    let mut all = fields(before).chain(fields(after));
    all.find(|field| concerned(field) && before.get(*field) != after.get(*field)).cloned()
}

fn metadata(before: &Value, after: &Value) -> Option<String> {
    let found = first_difference(&before["metadata"], &after["metadata"], |field| FIXED.contains(&field));
    found.map(|field| format!("metadata.{field}"))
}

fn within_spec(before: &Value, after: &Value, allowed: &str) -> Option<String> {
    let found = first_difference(&before["spec"], &after["spec"], |field| field != allowed);
    found.map(|field| format!("spec.{field}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::admission::testing::Write;

    /// What comes of a patch of a Deployment.
    fn patched(subresource: Option<&'static str>, patch: &Value) -> Result<Option<Value>, String> {
        let object = json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "w", "namespace": "web", "uid": "u", "labels": {"a": "b"}},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}},
            "status": {"replicas": 1}});
        let registry = crate::registry::table::builtin();
        let mut write = Write::update("apps", "Deployment", "deployments", object.clone(), object);
        write.resource = (**registry.find("apps", "v1", "deployments").unwrap()).clone();
        write.subresource = subresource;
        write.with(|attributes| apply(&PluginKey::namespaced("web", "p"), attributes, &patch.to_string()))
    }

    #[test]
    fn a_patch_changes_what_its_author_may() {
        let add = |path: &str, value: Value| json!([{"op": "add", "path": path, "value": value}]);
        let label = patched(None, &add("/metadata/labels/tier", json!("gold"))).unwrap().unwrap();
        assert_eq!(label["metadata"]["labels"], json!({"a": "b", "tier": "gold"}));
        assert_eq!(patched(None, &add("/spec/replicas", json!(1))), Ok(None), "nothing changes");
        let refused = |subresource, patch: &Value, why: &str| {
            let error = patched(subresource, patch).unwrap_err();
            assert!(error.contains(why), "{error:?} does not say {why:?}");
        };
        for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "generation"] {
            let patch = add(&format!("/metadata/{field}"), json!("x"));
            refused(None, &patch, &format!("changes metadata.{field}, which it may not"));
        }
        refused(None, &add("/kind", json!("Pod")), "changes kind");
        refused(None, &add("/status/replicas", json!(7)), "changes status");
        refused(None, &add("/spec/nonsense", json!(7)), "unknown field");
        refused(None, &add("/spec/replicas", json!("many")), "the object after its patch");
        refused(None, &add("/no/such/path", json!(7)), "its patch: ");
        refused(None, &json!({"op": "add"}), "error decoding patch");
        let replicas = patched(Some("scale"), &add("/spec/replicas", json!(7))).unwrap().unwrap();
        assert_eq!(replicas["spec"]["replicas"], 7);
        refused(Some("scale"), &add("/spec/paused", json!(true)), "changes spec.paused");
        refused(Some("scale"), &add("/metadata/labels/x", json!("y")), "changes metadata");
        assert!(patched(Some("status"), &add("/status/replicas", json!(7))).unwrap().is_some());
        refused(Some("status"), &add("/spec/replicas", json!(7)), "changes spec");
        refused(Some("token"), &add("/spec/replicas", json!(7)), "the subresource token");
    }

    #[test]
    fn permissions_are_not_for_plugins_of_a_namespace() {
        let role = json!({"metadata": {"name": "r", "namespace": "web"}});
        let mut write = Write::create("rbac.authorization.k8s.io", "Role", "roles", role);
        let patch = r#"[{"op": "add", "path": "/metadata/labels", "value": {"a": "b"}}]"#;
        let error = write.with(|attributes| apply(&PluginKey::namespaced("web", "p"), attributes, patch)).unwrap_err();
        assert!(error.contains("only a ClusterWasmPlugin may"), "{error}");
        assert!(write.with(|attributes| apply(&PluginKey::cluster("p"), attributes, patch)).is_ok());
    }
}
