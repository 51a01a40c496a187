//! `NodeRestriction`: what an agent writes about nodes, pods, leases and tokens concerns its own node only.
//!
//! Follows `plugin/pkg/admission/noderestriction`; the node authorizer has decided what can be decided without a body.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use scaleup_api::well_known::NAMESPACE_NODE_LEASE;
use serde_json::{Map, Value};

use super::service_account::{MIRROR_ANNOTATION, is_mirror};
use super::{Attributes, Plugin, list, text};
use crate::auth::node::{NODE_USER_PREFIX, NODES_GROUP, node_name};
use crate::cache::{Cached, Reader};
use crate::error::{ApiError, GroupResource};

/// Labels under this name are out of agents' reach, so that workloads can be kept away from compromised nodes.
const RESTRICTED: &str = "node-restriction.kubernetes.io";
/// Labels of Kubernetes' own namespaces that an agent may set (`IsKubeletLabel`).
const KUBELET_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];
/// Label namespaces in which an agent may set anything.
const KUBELET_NAMESPACES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

pub(super) struct NodeRestriction;

#[async_trait]
impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }
    async fn validate(&self, server: &Arc<crate::Server>, attributes: &Attributes<'_>) -> Result<(), ApiError> {
        check(&*server.caches, attributes)
    }
}

fn check(caches: &dyn Reader, a: &Attributes<'_>) -> Result<(), ApiError> {
    let Some(node) = node_name(a.user) else {
        let nameless = a.user.in_group(NODES_GROUP) && a.user.name.starts_with(NODE_USER_PREFIX);
        return if nameless { Err(a.forbidden("could not determine node identity from user")) } else { Ok(()) };
    };
    match (&*a.resource.group, &*a.resource.plural, a.subresource) {
        ("", "pods", None) => pod(caches, node, a),
        ("", "pods", Some("status")) => pod_status(node, a),
        ("", "pods", Some("eviction")) => eviction(caches, node, a),
        ("", "pods", Some(other)) => Err(
            a.forbidden(format_args!("unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"))
        ),
        ("", "nodes", _) => node_object(node, a),
        ("", "serviceaccounts", Some("token")) if a.creates() => token(caches, node, a),
        ("coordination.k8s.io", "leases", _) => lease(node, a),
        _ => Ok(()),
    }
}

fn pod(caches: &dyn Reader, node: &str, a: &Attributes<'_>) -> Result<(), ApiError> {
    if a.creates() {
        return mirror_pod(caches, node, a);
    }
    if a.deletes() {
        return match a.old.map(|old| text(old, &["spec", "nodeName"]) == node) {
            Some(false) => {
                Err(a.forbidden(format_args!("node {node:?} can only delete pods with spec.nodeName set to itself")))
            }
            _ => Ok(()),
        };
    }
    Err(a.forbidden(format_args!(
        "unexpected operation \"UPDATE\", node {node:?} can only create and delete mirror pods"
    )))
}

fn mirror_pod(caches: &dyn Reader, node: &str, a: &Attributes<'_>) -> Result<(), ApiError> {
    let pod = &*a.object;
    let spec = &pod["spec"];
    let refuse = |why: String| Err(a.forbidden(why));
    if !is_mirror(pod) {
        return refuse(format!(
            "pod does not have {MIRROR_ANNOTATION:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    if text(spec, &["nodeName"]) != node {
        return refuse(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    let [owner] = list(pod, &["metadata", "ownerReferences"]) else {
        return refuse(format!("node {node:?} can only create pods with a single owner reference set to itself"));
    };
    if (text(owner, &["apiVersion"]), text(owner, &["kind"]), text(owner, &["name"])) != ("v1", "Node", node) {
        return refuse(format!("node {node:?} can only create pods with an owner reference set to itself"));
    }
    if owner["controller"] != true {
        return refuse(format!("node {node:?} can only create pods with a controller owner reference set to itself"));
    }
    if owner["blockOwnerDeletion"] == true {
        return refuse(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
    }
    let uid = caches.get("", "nodes", "", node).map(|n| n.uid.clone()).unwrap_or_default();
    if text(owner, &["uid"]) != uid {
        return refuse(format!("node {node} UID mismatch: expected {uid} got {}", text(owner, &["uid"])));
    }
    match referenced_kind(spec) {
        Some(kind) => refuse(format!("node {node:?} can not create pods that reference {kind}")),
        None => Ok(()),
    }
}

/// The first kind of API object that a pod refers to, if any.
fn referenced_kind(spec: &Value) -> Option<&'static str> {
    if !text(spec, &["serviceAccountName"]).is_empty() {
        return Some("a service account");
    }
    if !list(spec, &["imagePullSecrets"]).is_empty() {
        return Some("secrets");
    }
    let env = ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|kind| list(spec, &[kind]))
        .flat_map(|c| {
            let values = list(c, &["env"]).iter().map(|e| &e["valueFrom"]);
            list(c, &["envFrom"]).iter().chain(values)
        });
    let volumes = list(spec, &["volumes"]);
    let projected = volumes.iter().flat_map(|v| list(v, &["projected", "sources"]));
    for source in env.chain(volumes).chain(projected) {
        for (field, kind) in [
            ("secret", "secrets"),
            ("secretRef", "secrets"),
            ("secretKeyRef", "secrets"),
            ("configMap", "configmaps"),
            ("configMapRef", "configmaps"),
            ("configMapKeyRef", "configmaps"),
            ("serviceAccountToken", "a service account"),
            ("persistentVolumeClaim", "persistentvolumeclaims"),
        ] {
            if source.get(field).is_some_and(|v| !v.is_null()) {
                return Some(kind);
            }
        }
    }
    None
}

fn pod_status(node: &str, a: &Attributes<'_>) -> Result<(), ApiError> {
    let Some(old) = a.old.filter(|_| a.updates()) else {
        return Err(a.forbidden("unexpected operation on pod status, only update is allowed"));
    };
    if text(old, &["spec", "nodeName"]) != node {
        return Err(a.forbidden(format_args!(
            "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
        )));
    }
    if old["metadata"]["labels"] != a.object["metadata"]["labels"] {
        return Err(a.forbidden(format_args!("node {node:?} cannot update labels through pod status")));
    }
    Ok(())
}

fn stored_pod(caches: &dyn Reader, namespace: &str, name: &str) -> Result<Arc<Cached>, ApiError> {
    let gr = GroupResource { group: String::new(), resource: "pods".into() };
    caches.get("", "pods", namespace, name).ok_or_else(|| ApiError::not_found(&gr, name))
}

fn eviction(caches: &dyn Reader, node: &str, a: &Attributes<'_>) -> Result<(), ApiError> {
    let pod = stored_pod(caches, a.namespace, a.name)?;
    if pod.field("spec.nodeName") == Some(node) {
        return Ok(());
    }
    Err(a.forbidden(format_args!("node {node} can only evict pods with spec.nodeName set to itself")))
}

fn node_object(node: &str, a: &Attributes<'_>) -> Result<(), ApiError> {
    let requested = if a.name.is_empty() { text(a.object, &["metadata", "name"]) } else { a.name };
    if requested != node {
        return Err(a.forbidden(format_args!("node {node:?} is not allowed to modify node {requested:?}")));
    }
    if a.deletes() {
        return Ok(());
    }
    let forbidden = forbidden_labels(a.object, a.old);
    if !forbidden.is_empty() {
        let what = if a.creates() { "set the following labels" } else { "modify labels" };
        return Err(a.forbidden(format_args!("is not allowed to {what}: {}", forbidden.join(", "))));
    }
    if let Some(old) = a.old.filter(|_| a.updates())
        && list(old, &["spec", "taints"]) != list(a.object, &["spec", "taints"])
    {
        return Err(a.forbidden(format_args!("node {node:?} is not allowed to modify taints")));
    }
    Ok(())
}

/// Labels that differ and that an agent must not touch, sorted.
fn forbidden_labels(new: &Value, old: Option<&Value>) -> Vec<String> {
    let none = Map::new();
    let labels = |o: Option<&'_ Value>| o.and_then(|o| o["metadata"]["labels"].as_object()).cloned();
    let (new, old) = (labels(Some(new)).unwrap_or_default(), labels(old).unwrap_or(none));
    let keys: BTreeSet<&String> = new.keys().chain(old.keys()).collect();
    keys.into_iter().filter(|k| new.get(*k) != old.get(*k) && forbidden_label(k)).cloned().collect()
}

fn forbidden_label(label: &str) -> bool {
    let namespace = label.split_once('/').map(|(n, _)| n).unwrap_or_default();
    let within =
        |suffix: &str| namespace == suffix || namespace.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.'));
    if within(RESTRICTED) {
        return true;
    }
    let kubernetes = within("kubernetes.io") || within("k8s.io");
    kubernetes && !KUBELET_LABELS.contains(&label) && !KUBELET_NAMESPACES.iter().any(|n| within(n))
}

fn token(caches: &dyn Reader, node: &str, a: &Attributes<'_>) -> Result<(), ApiError> {
    let reference = &a.object["spec"]["boundObjectRef"];
    let of = |field| text(reference, &[field]);
    if (of("apiVersion"), of("kind")) != ("v1", "Pod") || of("name").is_empty() {
        return Err(a.forbidden("node requested token not bound to a pod"));
    }
    if of("uid").is_empty() {
        return Err(a.forbidden("node requested token with a pod binding without a uid"));
    }
    let pod = stored_pod(caches, a.namespace, of("name"))?;
    if pod.uid != of("uid") {
        return Err(a.forbidden(format_args!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been \
             deleted and then recreated",
            of("uid")
        )));
    }
    if pod.field("spec.nodeName") != Some(node) {
        return Err(a.forbidden("node requested token bound to a pod scheduled on a different node"));
    }
    Ok(())
}

fn lease(node: &str, a: &Attributes<'_>) -> Result<(), ApiError> {
    if a.namespace != NAMESPACE_NODE_LEASE {
        let why = format_args!("can only access leases in the {NAMESPACE_NODE_LEASE:?} system namespace");
        return Err(a.forbidden(why));
    }
    let name = if a.name.is_empty() { text(a.object, &["metadata", "name"]) } else { a.name };
    if name != node {
        return Err(a.forbidden("can only access node lease with the same name as the requesting node"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::Write;
    use super::*;
    use crate::auth::testing::{MapReader, user};
    use serde_json::json;

    fn ask(write: Write, expected: Option<&str>) {
        let reader = MapReader::new(&[
            ("", "nodes", json!({"metadata": {"name": "n1", "uid": "node-uid"}})),
            ("", "pods", bound("mine", "n1")),
            ("", "pods", bound("theirs", "n2")),
        ]);
        let mut write = write.by(user("system:node:n1", &[NODES_GROUP]));
        let result = write.with(|a| check(&*reader, a));
        match (result, expected) {
            (Ok(()), None) => {}
            (Err(error), Some(text)) => assert!(error.message.contains(text), "{} / {text}", error.message),
            (got, expected) => panic!("{got:?} instead of {expected:?}"),
        }
    }

    fn bound(name: &str, node: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "web", "uid": format!("{name}-uid")}, "spec": {"nodeName": node}})
    }

    fn mirror() -> Value {
        json!({
            "metadata": {"name": "m", "namespace": "web", "annotations": {MIRROR_ANNOTATION: "x"}, "ownerReferences": [
                {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "node-uid", "controller": true}]},
            "spec": {"nodeName": "n1", "containers": [{"name": "c"}]},
        })
    }

    fn changed(mut object: Value, pointer: &str, value: Value) -> Value {
        *object.pointer_mut(pointer).unwrap() = value;
        object
    }

    #[test]
    fn agents_create_only_their_own_mirror_pods() {
        let create = |object: Value, expected: Option<&str>| ask(Write::create("", "Pod", "pods", object), expected);
        create(mirror(), None);
        create(bound("p", "n1"), Some("can only create mirror pods"));
        create(changed(mirror(), "/spec/nodeName", json!("n2")), Some("with spec.nodeName set to itself"));
        create(changed(mirror(), "/metadata/ownerReferences", json!([])), Some("a single owner reference"));
        create(
            changed(mirror(), "/metadata/ownerReferences/0/name", json!("n2")),
            Some("an owner reference set to itself"),
        );
        create(changed(mirror(), "/metadata/ownerReferences/0/uid", json!("x")), Some("UID mismatch"));
        create(changed(mirror(), "/metadata/ownerReferences/0/controller", json!(false)), Some("controller owner"));
        for (field, value, kind) in [
            ("serviceAccountName", json!("default"), "a service account"),
            ("imagePullSecrets", json!([{"name": "s"}]), "secrets"),
            ("volumes", json!([{"secret": {"secretName": "s"}}]), "secrets"),
            ("volumes", json!([{"projected": {"sources": [{"configMap": {"name": "c"}}]}}]), "configmaps"),
            ("volumes", json!([{"persistentVolumeClaim": {"claimName": "c"}}]), "persistentvolumeclaims"),
            ("containers", json!([{"envFrom": [{"secretRef": {"name": "s"}}]}]), "secrets"),
            ("containers", json!([{"env": [{"valueFrom": {"configMapKeyRef": {"name": "c"}}}]}]), "configmaps"),
        ] {
            let mut pod = mirror();
            pod["spec"][field] = value;
            create(pod, Some(&format!("can not create pods that reference {kind}")));
        }
    }

    #[test]
    fn agents_touch_only_their_own_pods() {
        ask(Write::delete("", "Pod", "pods", bound("mine", "n1")), None);
        ask(Write::delete("", "Pod", "pods", bound("theirs", "n2")), Some("can only delete pods"));
        ask(Write::update("", "Pod", "pods", bound("mine", "n1"), bound("mine", "n1")), Some("unexpected operation"));
        let status = |old: Value, new: Value| Write::update("", "Pod", "pods", new, old).sub("status");
        ask(status(bound("mine", "n1"), bound("mine", "n1")), None);
        ask(status(bound("theirs", "n2"), bound("theirs", "n2")), Some("can only update pod status"));
        let mut labelled = bound("mine", "n1");
        labelled["metadata"]["labels"] = json!({"a": "b"});
        ask(status(bound("mine", "n1"), labelled), Some("cannot update labels through pod status"));
        ask(Write::create("", "Pod", "pods", bound("mine", "n1")).sub("eviction"), None);
        ask(Write::create("", "Pod", "pods", bound("theirs", "n2")).sub("eviction"), Some("can only evict pods"));
        ask(Write::create("", "Pod", "pods", bound("gone", "n1")).sub("eviction"), Some("\"gone\" not found"));
        ask(Write::create("", "Pod", "pods", bound("mine", "n1")).sub("binding"), Some("unexpected pod subresource"));
    }

    #[test]
    fn agents_write_only_their_own_node() {
        let node = |name: &str, labels: Value, taints: Value| json!({"metadata": {"name": name, "labels": labels}, "spec": {"taints": taints}});
        let create = |object: Value, expected| ask(Write::create("", "Node", "nodes", object), expected);
        create(node("n1", json!({"kubernetes.io/os": "linux", "rack": "7"}), json!([{"key": "a"}])), None);
        create(node("n2", json!({}), json!([])), Some("is not allowed to modify node \"n2\""));
        let bad = json!({"node-restriction.kubernetes.io/x": "1", "node-role.kubernetes.io/control-plane": ""});
        create(
            node("n1", bad, json!([])),
            Some(
                "is not allowed to set the following labels: node-restriction.kubernetes.io/x, node-role.kubernetes.io/control-plane",
            ),
        );
        let update = |old: Value, new: Value, expected| ask(Write::update("", "Node", "nodes", new, old), expected);
        let plain = || node("n1", json!({"secure.node-restriction.kubernetes.io/x": "1"}), json!([{"key": "a"}]));
        update(plain(), plain(), None);
        update(plain(), changed(plain(), "/spec/taints", json!([])), Some("not allowed to modify taints"));
        update(
            plain(),
            changed(plain(), "/metadata/labels", json!({})),
            Some("is not allowed to modify labels: secure.node-restriction.kubernetes.io/x"),
        );
        update(
            changed(plain(), "/metadata/name", json!("n2")),
            changed(plain(), "/metadata/name", json!("n2")),
            Some("node \"n2\""),
        );
    }

    #[test]
    fn labels_of_kubernetes_are_reserved() {
        for (label, forbidden) in [
            ("app", false),
            ("example.com/x", false),
            ("kubernetes.io/hostname", false),
            ("node.kubernetes.io/any", false),
            ("kubelet.kubernetes.io/any", false),
            ("kubernetes.io/other", true),
            ("x.k8s.io/y", true),
            ("notkubernetes.io/y", false),
            ("node-restriction.kubernetes.io/y", true),
        ] {
            assert_eq!(forbidden_label(label), forbidden, "{label}");
        }
    }

    #[test]
    fn tokens_are_for_pods_on_the_node() {
        let request = |reference: Value| {
            let object = json!({"metadata": {"namespace": "web", "name": "sa"}, "spec": {"boundObjectRef": reference}});
            Write::create("", "ServiceAccount", "serviceaccounts", object).sub("token")
        };
        let pod = |name: &str, uid: &str| json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid});
        ask(request(pod("mine", "mine-uid")), None);
        ask(request(Value::Null), Some("not bound to a pod"));
        ask(
            request(json!({"apiVersion": "v1", "kind": "Secret", "name": "s", "uid": "u"})),
            Some("not bound to a pod"),
        );
        ask(request(pod("mine", "")), Some("without a uid"));
        ask(request(pod("mine", "other")), Some("does not match the UID"));
        ask(request(pod("theirs", "theirs-uid")), Some("scheduled on a different node"));
        ask(request(pod("gone", "x")), Some("not found"));
    }

    #[test]
    fn leases_are_the_nodes_own() {
        let lease = |namespace: &str, name: &str| {
            let object = json!({"metadata": {"namespace": namespace, "name": name}});
            Write::create("coordination.k8s.io", "Lease", "leases", object)
        };
        ask(lease("kube-node-lease", "n1"), None);
        ask(lease("kube-node-lease", "n2"), Some("same name as the requesting node"));
        ask(lease("default", "n1"), Some("can only access leases"));
    }

    #[test]
    fn others_are_not_concerned() {
        let reader = MapReader::new(&[]);
        let mut write = Write::create("", "Node", "nodes", json!({"metadata": {"name": "n9"}}));
        assert!(write.with(|a| check(&*reader, a)).is_ok());
    }
}
