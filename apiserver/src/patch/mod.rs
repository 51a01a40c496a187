//! Patches: JSON patch, merge patch, strategic merge patch.

use serde_json::Value;

use crate::error::ApiError;
use crate::registry::Resource;

/// RFC 6902.
pub fn json_patch(object: &Value, patch: &[u8]) -> Result<Value, ApiError> {
    let _ = patch;
    Ok(object.clone())
}
/// RFC 7386.
pub fn merge_patch(object: &Value, patch: &[u8]) -> Result<Value, ApiError> {
    let _ = patch;
    Ok(object.clone())
}
/// Kubernetes' strategic merge patch, by the schema of the row's kind.
pub fn strategic_merge(row: &Resource, object: &Value, patch: &[u8]) -> Result<Value, ApiError> {
    let _ = (row, patch);
    Ok(object.clone())
}
