//! OpenAPI documents.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::registry::Registry;

/// `/openapi/v2` as JSON.
pub fn v2(registry: &Registry) -> Bytes {
    let _ = registry;
    Bytes::new()
}
/// `/openapi/v2` as protobuf (`application/com.github.proto-openapi.spec.v2@v1.0+protobuf`).
pub fn v2_protobuf(registry: &Registry) -> Bytes {
    let _ = registry;
    Bytes::new()
}
/// `/openapi/v3`: where the documents are.
pub fn v3_index(registry: &Registry) -> Value {
    let _ = registry;
    json!({})
}
/// `/openapi/v3/{path}`, e.g. `api/v1` or `apis/apps/v1`.
pub fn v3_group(registry: &Registry, path: &str) -> Option<Bytes> {
    let _ = (registry, path);
    None
}
