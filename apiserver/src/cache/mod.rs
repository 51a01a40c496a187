//! The watch cache.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use scaleup_store::Revision;
use serde_json::Value;

/// One object as served: ready-to-send JSON with `resourceVersion` in place, and what selectors need.
#[derive(Debug)]
pub struct Cached {
    /// Namespace; empty for cluster scope.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `metadata.uid`
    pub uid: String,
    /// Revision of the last write: `metadata.resourceVersion`.
    pub revision: Revision,
    /// The object as JSON in its stored version.
    pub json: Bytes,
    /// `metadata.labels`
    pub labels: BTreeMap<String, String>,
    /// Selectable fields by path, `metadata.name` and `metadata.namespace` included.
    pub fields: BTreeMap<&'static str, String>,
}

impl Cached {
    /// Parses [`Cached::json`]. Stored objects are valid JSON by construction; a damaged one reads as `Null`.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.json).unwrap_or(Value::Null)
    }
}

/// What the rest of the server (authorizer, admission, hooks) may read without going through HTTP. Group and plural are
/// those of the row that stores (`("", "pods")`, `("rbac.authorization.k8s.io", "roles")`).
pub trait Reader: Send + Sync + 'static {
    /// One object, as of the newest state the cache has.
    fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<Cached>>;
    /// All objects of a kind, in one namespace or in all (`None`), in key order.
    fn list(&self, group: &str, plural: &str, namespace: Option<&str>) -> Vec<Arc<Cached>>;
    /// Revision of the last change to any object of the kind: unchanged means that derived state is still right.
    fn changed(&self, group: &str, plural: &str) -> Revision;
}

/// The caches of all kinds.
#[derive(Default)]
pub struct Caches {}

impl Reader for Caches {
    fn get(&self, _: &str, _: &str, _: &str, _: &str) -> Option<Arc<Cached>> {
        None
    }
    fn list(&self, _: &str, _: &str, _: Option<&str>) -> Vec<Arc<Cached>> {
        Vec::new()
    }
    fn changed(&self, _: &str, _: &str) -> Revision {
        0
    }
}
