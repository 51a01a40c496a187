//! Registry rows for tests of presentation and patches.

use std::borrow::Cow;
use std::sync::Arc;

use crate::registry::{
    ALL_VERBS, Registry, Resource, Rules, Scope, Storage, Subresource, SubresourceKind, Typed, Verb,
};

struct AnyObject;

impl Rules for AnyObject {
    type Object = serde_json::Value;
}

/// A namespaced row with all verbs and nothing else.
pub fn resource(group: &'static str, version: &'static str, kind: &'static str, plural: &'static str) -> Resource {
    Resource {
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
        plural: plural.into(),
        singular: kind.to_lowercase().into(),
        short_names: Cow::Borrowed(&[]),
        categories: Cow::Borrowed(&[]),
        scope: Scope::Namespaced,
        verbs: ALL_VERBS,
        subresources: Vec::new(),
        storage: Storage::Own,
        selectable: &[],
        columns: super::columns::DEFAULT,
        has_generation: false,
        has_status: false,
        rules: Arc::new(Typed(AnyObject)),
        hooks: None,
    }
}

/// A few rows of several groups, subresources included.
pub fn registry() -> Registry {
    let status = Subresource {
        name: "status",
        verbs: &[Verb::Get, Verb::Patch, Verb::Update],
        gvk: None,
        kind: SubresourceKind::Status,
    };
    let scale = Subresource {
        name: "scale",
        gvk: Some(("autoscaling", "v1", "Scale")),
        kind: SubresourceKind::Scale,
        ..status.clone()
    };
    let mut pods = resource("", "v1", "Pod", "pods");
    pods.short_names = Cow::Borrowed(&[Cow::Borrowed("po")]);
    pods.categories = Cow::Borrowed(&[Cow::Borrowed("all")]);
    pods.subresources = vec![status.clone()];
    let mut nodes = resource("", "v1", "Node", "nodes");
    nodes.scope = Scope::Cluster;
    let mut deployments = resource("apps", "v1", "Deployment", "deployments");
    deployments.subresources = vec![status, scale];
    let mut reviews = resource("authorization.k8s.io", "v1", "SubjectAccessReview", "subjectaccessreviews");
    reviews.scope = Scope::Cluster;
    reviews.verbs = &[Verb::Create];
    Registry::new(vec![
        resource("example.com", "v1beta1", "Widget", "widgets"),
        resource("example.com", "v1", "Widget", "widgets"),
        reviews,
        deployments,
        pods,
        nodes,
        resource("", "v1", "ConfigMap", "configmaps"),
    ])
}
