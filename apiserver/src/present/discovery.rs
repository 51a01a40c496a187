//! Discovery documents.

use serde_json::{Value, json};

use crate::registry::Registry;

/// How a discovery request at `/api` or `/apis` wants its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscoveryFormat {
    /// `APIVersions` or `APIGroupList`.
    Classic,
    /// `apidiscovery.k8s.io` of this version (`v2`, `v2beta1`).
    Aggregated(&'static str),
}

impl DiscoveryFormat {
    /// From the request's Accept header.
    pub fn from_accept(accept: &str) -> Self {
        let _ = accept;
        Self::Classic
    }
    /// `Content-Type` of the answer.
    pub fn content_type(self) -> &'static str {
        "application/json"
    }
}

pub fn api(registry: &Registry) -> Value {
    let _ = registry;
    json!({})
}
pub fn apis(registry: &Registry) -> Value {
    let _ = registry;
    json!({})
}
pub fn group(registry: &Registry, group: &str) -> Option<Value> {
    let _ = (registry, group);
    None
}
pub fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let _ = (registry, group, version);
    None
}
/// `/api` aggregated.
pub fn aggregated_core(registry: &Registry) -> Value {
    let _ = registry;
    json!({})
}
/// `/apis` aggregated.
pub fn aggregated(registry: &Registry) -> Value {
    let _ = registry;
    json!({})
}
