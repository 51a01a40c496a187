//! `pods/binding`: the scheduler's only write. It sets `spec.nodeName`, once.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use http::{Request, Response, StatusCode};
use k8s_openapi::api::core::v1::Binding;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Map, Value, json};

use super::field;
use super::posted::{Posted, read};
use crate::error::{ApiError, FieldError, GroupResource};
use crate::handler::{Resolved, SubresourceHandler};

/// Assigns pods to nodes.
pub struct BindingHandler;

#[async_trait]
impl SubresourceHandler for BindingHandler {
    async fn handle(
        &self,
        server: &Arc<crate::Server>,
        resolved: Resolved,
        request: Request<Body>,
    ) -> Result<Response<Body>, ApiError> {
        let posted: Posted<Binding> = read(server, &resolved, request).await?;
        let binding = &posted.object;
        let (namespace, name) = (resolved.namespace.as_str(), resolved.name.as_str());
        validate(name, binding)?;
        let gr = GroupResource { group: String::new(), resource: "pods/binding".into() };
        let bind = |pod: Value| {
            assign(pod, binding, scaleup_api::time::now()).map_err(|why| ApiError::conflict(&gr, name, why))
        };
        if posted.dry_run {
            let pods = resolved.resource.group_resource();
            let pod = server.get_stored("", "pods", namespace, name).await?;
            bind(pod.ok_or_else(|| ApiError::not_found(&pods, name))?.value())?;
        } else {
            server.update_stored("", "pods", namespace, name, bind).await?;
        }
        posted.answer(server, resolved, StatusCode::CREATED)
    }
}

/// `ValidatePodBinding`
fn validate(name: &str, binding: &Binding) -> Result<(), ApiError> {
    let mut errors = Vec::new();
    let kind = field::text(&binding.target.kind);
    if !matches!(kind, "" | "Node") {
        errors.push(FieldError::not_supported("target.kind", kind, &["Node", "<empty>"]));
    }
    if field::text(&binding.target.name).is_empty() {
        errors.push(FieldError::required("target.name", ""));
    }
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid("", "Binding", name, &errors)) }
}

/// The pod with its node, or why it cannot have it (`setPodNodeAndMetadata`).
fn assign(mut pod: Value, binding: &Binding, now: Time) -> Result<Value, String> {
    let name = field::text_at(&pod, "/metadata/name");
    let wanted_uid = field::text(&binding.metadata.uid);
    let uid = field::text_at(&pod, "/metadata/uid");
    if !wanted_uid.is_empty() && wanted_uid != uid {
        return Err(format!("Precondition failed: UID in precondition: {wanted_uid}, UID in object meta: {uid}"));
    }
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        return Err(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let node = field::text_at(&pod, "/spec/nodeName");
    if !node.is_empty() {
        return Err(format!("pod {name} is already assigned to node {node:?}"));
    }
    if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        return Err(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    pod["spec"]["nodeName"] = field::text(&binding.target.name).into();
    for (key, value) in binding.metadata.annotations.iter().flatten() {
        entries(&mut pod["metadata"]["annotations"]).insert(key.clone(), value.as_str().into());
    }
    copy_labels(&mut pod, binding.metadata.labels.as_ref());
    set_scheduled(&mut pod, now);
    Ok(pod)
}

fn entries(map: &mut Value) -> &mut Map<String, Value> {
    if !map.is_object() {
        *map = Value::Object(Map::new());
    }
    match map {
        Value::Object(map) => map,
        _ => unreachable!("it was just made an object"),
    }
}

/// The node's labels that the scheduler passes on; the pod's own win.
fn copy_labels(pod: &mut Value, labels: Option<&BTreeMap<String, String>>) {
    for (key, value) in labels.into_iter().flatten() {
        entries(&mut pod["metadata"]["labels"]).entry(key.clone()).or_insert_with(|| value.as_str().into());
    }
}

/// Condition PodScheduled becomes True (`UpdatePodCondition`).
fn set_scheduled(pod: &mut Value, now: Time) {
    let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    let conditions = &mut entries(&mut pod["status"]).entry("conditions").or_insert_with(|| json!([]));
    let Some(list) = conditions.as_array_mut() else {
        **conditions = json!([condition]);
        return;
    };
    match list.iter_mut().find(|c| c["type"] == "PodScheduled") {
        Some(known) if known["status"] == "True" => {}
        Some(known) => *known = condition,
        None => list.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::super::field::test::{contains, yaml};
    use super::*;

    fn binding(text: &str) -> Binding {
        serde_json::from_value(yaml(text)).expect("test binding decodes")
    }

    #[test]
    fn a_pod_gets_its_node_once() {
        let pod = json!({"metadata": {"name": "a", "uid": "u", "labels": {"zone": "mine"}}, "spec": {},
            "status": {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}});
        let to_n1 = binding(
            "{metadata: {name: a, annotations: {x: y}, labels: {zone: z, region: r}}, target: {kind: Node, name: n1}}",
        );
        let bound = assign(pod.clone(), &to_n1, scaleup_api::time::now()).expect("free");
        contains(
            &bound,
            &json!({
                "metadata": {"annotations": {"x": "y"}, "labels": {"zone": "mine", "region": "r"}},
                "spec": {"nodeName": "n1"},
                "status": {"conditions": [{"type": "PodScheduled", "status": "True"}]},
            }),
        );
        assert!(bound["status"]["conditions"][0].get("reason").is_none());
        let check = |pod: Value, text: &str, expected: &str| {
            let result = assign(pod, &binding(text), scaleup_api::time::now());
            assert_eq!(result.expect_err("refused"), expected);
        };
        let plain = "{metadata: {}, target: {name: n2}}";
        check(bound, plain, "pod a is already assigned to node \"n1\"");
        let mut deleted = pod.clone();
        deleted["metadata"]["deletionTimestamp"] = json!("2024-01-01T00:00:00Z");
        check(deleted, plain, "pod a is being deleted, cannot be assigned to a host");
        let mut gated = pod.clone();
        gated["spec"]["schedulingGates"] = json!([{"name": "x"}]);
        check(gated, plain, "pod a has non-empty .spec.schedulingGates");
        check(
            pod,
            "{metadata: {uid: other}, target: {name: n2}}",
            "Precondition failed: UID in precondition: other, UID in object meta: u",
        );
    }

    #[test]
    fn targets_are_nodes() {
        assert!(validate("a", &binding("{metadata: {}, target: {name: n}}")).is_ok());
        let error = validate("a", &binding("{metadata: {}, target: {kind: Minion}}")).expect_err("refused");
        assert_eq!(
            error.message,
            "Binding \"a\" is invalid: [target.kind: Unsupported value: \"Minion\": supported values: \"Node\", \"<empty>\", target.name: Required value]"
        );
    }
}
