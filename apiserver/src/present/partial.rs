//! `PartialObjectMetadata`: an object without all but its metadata (`k8s.io/apimachinery/pkg/apis/meta/v1`).

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// What stands before the metadata.
const HEAD: &[u8] = br#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":"#;

/// One object's metadata.
pub fn object(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

/// The same from an object's JSON, for watches of all kinds: its metadata is copied, the rest is skipped. `None` if it
/// is not an object with metadata.
pub fn bytes(json: &[u8]) -> Option<Vec<u8>> {
    #[derive(Deserialize)]
    struct Head<'a> {
        #[serde(borrow)]
        metadata: &'a RawValue,
    }
    let head: Head<'_> = serde_json::from_slice(json).ok()?;
    let metadata = head.metadata.get().as_bytes();
    let mut out = Vec::with_capacity(HEAD.len() + metadata.len() + 1);
    out.extend_from_slice(HEAD);
    out.extend_from_slice(metadata);
    out.push(b'}');
    Some(out)
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
        let copied = bytes(pod.to_string().as_bytes()).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&copied).unwrap(), want);
        assert_eq!(bytes(b"[]"), None);
        let all = list([pod].iter(), json!({"resourceVersion": "7"}));
        assert_eq!(all["items"], json!([want]));
        assert_eq!(all["metadata"]["resourceVersion"], "7");
        assert_eq!(all["kind"], "PartialObjectMetadataList");
    }
}
