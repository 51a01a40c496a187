//! Default roles and bindings.

use serde_json::Value;

/// Default cluster roles, roles and bindings, ready to create (each has apiVersion, kind, metadata).
pub fn bootstrap_objects() -> Vec<Value> {
    Vec::new()
}
