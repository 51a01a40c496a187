//! `PartialObjectMetadata`: an object without all but its metadata (`k8s.io/apimachinery/pkg/apis/meta/v1`).

use serde_json::{Value, json};

/// One object's metadata.
pub fn object(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

/// A list of them. `list_meta` is the list's own metadata (`resourceVersion`, `continue`, `remainingItemCount`).
pub fn list<'a>(items: impl Iterator<Item = &'a Value>, list_meta: Value) -> Value {
    json!({
        "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": list_meta,
        "items": items.map(object).collect::<Value>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_metadata_is_left() {
        let pod = json!({"kind": "Pod", "metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"secret": 1}});
        let want = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": {"name": "a", "labels": {"x": "y"}}});
        assert_eq!(object(&pod), want);
        let all = list([pod].iter(), json!({"resourceVersion": "7"}));
        assert_eq!(all["items"], json!([want]));
        assert_eq!(all["metadata"]["resourceVersion"], "7");
        assert_eq!(all["kind"], "PartialObjectMetadataList");
    }
}
