//! Pod templates of a Deployment: equality, hash, and the ReplicaSet made of one. Pure.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use scaleup_api::owner;
use scaleup_api::well_known::LABEL_POD_TEMPLATE_HASH;
use serde_json::Value;

use crate::base::names;

const FNV_OFFSET: u32 = 0x811c_9dc5;
const FNV_PRIME: u32 = 0x0100_0193;

/// Drops nulls and empty lists: Go does not tell them from absence. Empty objects stay (`emptyDir: {}`).
fn normalized(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.into_iter().map(|(k, v)| (k, normalized(v)));
            Value::Object(kept.filter(|(_, v)| !v.is_null() && v.as_array().is_none_or(|a| !a.is_empty())).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(normalized).collect()),
        other => other,
    }
}

fn without_hash(template: &PodTemplateSpec) -> Value {
    let mut template = template.clone();
    let meta = template.metadata.get_or_insert_default();
    if let Some(labels) = meta.labels.as_mut() {
        labels.remove(LABEL_POD_TEMPLATE_HASH);
    }
    meta.labels = meta.labels.take().filter(|l| !l.is_empty());
    meta.annotations = meta.annotations.take().filter(|a| !a.is_empty());
    meta.creation_timestamp = None;
    normalized(serde_json::to_value(template).unwrap_or_default())
}

/// Whether two templates are the same but for the `pod-template-hash` label (upstream's `EqualIgnoreHash`).
pub fn equal_ignoring_hash(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    a == b || without_hash(a) == without_hash(b)
}

/// FNV-1a of the template and the collision count, in upstream's alphabet. Stable across restarts.
pub fn hash(template: &PodTemplateSpec, collision_count: Option<i32>) -> String {
    let text = without_hash(template).to_string();
    let collisions = collision_count.map(|c| c.to_string()).unwrap_or_default();
    let step = |h: u32, byte: &u8| (h ^ u32::from(*byte)).wrapping_mul(FNV_PRIME);
    let sum = text.as_bytes().iter().chain(collisions.as_bytes()).fold(FNV_OFFSET, step);
    names::safe_encode(&sum.to_string())
}

/// A ReplicaSet of the Deployment's template, without replicas or annotations yet.
pub fn new_replica_set(deployment: &Deployment) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment.status.as_ref().and_then(|s| s.collision_count);
    let hash = hash(&spec.template, collisions);
    let mut template = spec.template;
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(LABEL_POD_TEMPLATE_HASH.into(), hash.clone());
    let labels = labels.clone();
    let mut selector: LabelSelector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(LABEL_POD_TEMPLATE_HASH.into(), hash.clone());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.metadata.name.as_deref().unwrap_or_default())),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![owner::controller_ref::<Deployment>(&deployment.metadata)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(value: Value) -> PodTemplateSpec {
        serde_json::from_value(value).unwrap()
    }

    fn image(image: &str) -> PodTemplateSpec {
        template(
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}}),
        )
    }

    #[test]
    fn hashes_are_stable_and_tell_templates_apart() {
        assert_eq!(hash(&image("a"), None), hash(&image("a"), None));
        assert_ne!(hash(&image("a"), None), hash(&image("b"), None));
        assert_ne!(hash(&image("a"), None), hash(&image("a"), Some(1)));
        let mut labelled = image("a");
        let labels = labelled.metadata.as_mut().unwrap().labels.as_mut().unwrap();
        labels.insert(LABEL_POD_TEMPLATE_HASH.into(), "x".into());
        assert_eq!(hash(&labelled, None), hash(&image("a"), None));
        assert!(equal_ignoring_hash(&labelled, &image("a")));
    }

    #[test]
    fn absence_and_emptiness_are_equal_but_empty_objects_count() {
        let with = |extra: Value| template(json!({"spec": {"containers": [{"name": "c", "volumeMounts": extra}]}}));
        let without = template(json!({"spec": {"containers": [{"name": "c"}]}}));
        assert!(equal_ignoring_hash(&with(json!([])), &without));
        let volume = |v: Value| template(json!({"spec": {"containers": [], "volumes": [v]}}));
        assert!(!equal_ignoring_hash(&volume(json!({"name": "v", "emptyDir": {}})), &volume(json!({"name": "v"}))));
    }

    #[test]
    fn the_set_carries_the_hash_everywhere() {
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "d"},
            "spec": {"selector": {"matchLabels": {"app": "web"}}, "minReadySeconds": 3, "template": image("a")},
        }))
        .unwrap();
        let set = new_replica_set(&deployment);
        let hash = hash(&image("a"), None);
        assert_eq!(set.metadata.name, Some(format!("web-{hash}")));
        let spec = set.spec.unwrap();
        assert_eq!(spec.selector.match_labels.unwrap()[LABEL_POD_TEMPLATE_HASH], hash);
        assert_eq!(spec.template.unwrap().metadata.unwrap().labels.unwrap()[LABEL_POD_TEMPLATE_HASH], hash);
        assert_eq!(set.metadata.labels.unwrap()[LABEL_POD_TEMPLATE_HASH], hash);
        assert_eq!((spec.replicas, spec.min_ready_seconds), (Some(0), Some(3)));
    }
}
