//! `PartialObjectMetadata`.

use serde_json::{Value, json};

/// Metadata only.
pub fn object(object: &Value) -> Value {
    let _ = object;
    json!({})
}

/// `PartialObjectMetadataList`.
pub fn list<'a>(items: impl Iterator<Item = &'a Value>, list_meta: Value) -> Value {
    let _ = (items.count(), list_meta);
    json!({})
}
