//! The one JSON layout of stored and served objects.
//!
//! Stored bytes always begin `{"apiVersion":…,"kind":…,"metadata":{`, so that the resource version can be spliced in at a
//! place that is found without parsing. Pure; knows nothing of kinds.

use std::ops::Range;

use bytes::Bytes;
use scaleup_store::Revision;
use serde_json::{Map, Value};

use super::EventType;

/// Keys that come first, in this order.
const FIRST: [&str; 3] = ["apiVersion", "kind", "metadata"];
/// End of every watch event.
pub const FRAME_END: &[u8] = b"}\n";

/// An object as it is stored: canonical layout, no resource version, no self link.
pub fn to_stored(value: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    out.push(b'{');
    let empty = Map::new();
    let object = value.as_object().unwrap_or(&empty);
    for key in FIRST {
        if let Some(value) = object.get(key) {
            push_key(&mut out, key);
            match value {
                Value::Object(metadata) if key == "metadata" => push_metadata(&mut out, metadata),
                other => push_value(&mut out, other),
            }
        }
    }
    for (key, value) in object.iter().filter(|(key, _)| !FIRST.contains(&key.as_str())) {
        push_key(&mut out, key);
        push_value(&mut out, value);
    }
    out.push(b'}');
    out
}

fn push_metadata(out: &mut Vec<u8>, metadata: &Map<String, Value>) {
    out.push(b'{');
    for (key, value) in metadata.iter().filter(|(key, _)| !matches!(key.as_str(), "resourceVersion" | "selfLink")) {
        push_key(out, key);
        push_value(out, value);
    }
    out.push(b'}');
}

fn push_key(out: &mut Vec<u8>, key: &str) {
    if out.last() != Some(&b'{') {
        out.push(b',');
    }
    // As for values: writing a string to memory cannot fail.
    let _ = serde_json::to_writer(&mut *out, key);
    out.push(b':');
}

fn push_value(out: &mut Vec<u8>, value: &Value) {
    // Writing a `Value` to memory cannot fail: its keys are strings and a Vec grows.
    let _ = serde_json::to_writer(out, value);
}

/// The offset just after `"metadata":{` in canonical bytes; `None` if they are laid out otherwise.
pub fn metadata_at(json: &[u8]) -> Option<usize> {
    let after_version = skip_string(json, skip(json, 0, b"{\"apiVersion\":")?)?;
    let after_kind = skip_string(json, skip(json, after_version, b",\"kind\":")?)?;
    let at = skip(json, after_kind, b",\"metadata\":{")?;
    // An empty metadata would need no comma after the version: no stored object is without a name.
    (json.get(at) == Some(&b'"')).then_some(at)
}

fn skip(json: &[u8], at: usize, expected: &[u8]) -> Option<usize> {
    json.get(at..)?.starts_with(expected).then_some(at + expected.len())
}

/// Past a JSON string without escapes (no API version or kind has any).
fn skip_string(json: &[u8], at: usize) -> Option<usize> {
    let start = skip(json, at, b"\"")?;
    let length = json.get(start..)?.iter().position(|b| matches!(b, b'"' | b'\\'))?;
    (json[start + length] == b'"').then_some(start + length + 1)
}

/// A watch event with the resource version in place.
pub struct Spliced {
    /// `{"type":T,"object":{…}}` and a line end.
    pub frame: Bytes,
    /// The object within it.
    pub json: Range<usize>,
    /// The text of the version, as an offset into the object: `"resourceVersion":"N",`.
    pub version_at: Range<u32>,
}

/// Splices `revision` into canonical bytes at `meta_at` and wraps them as a watch event.
pub fn splice(event: EventType, stored: &[u8], meta_at: usize, revision: Revision) -> Spliced {
    let version = format!("\"resourceVersion\":\"{revision}\",");
    let head = event.head();
    let length = head.len() + stored.len() + version.len();
    let mut out = Vec::with_capacity(length + FRAME_END.len());
    out.extend_from_slice(head);
    out.extend_from_slice(&stored[..meta_at]);
    out.extend_from_slice(version.as_bytes());
    out.extend_from_slice(&stored[meta_at..]);
    out.extend_from_slice(FRAME_END);
    // Objects are bounded by the body limit, far below 4 GiB.
    let at = u32::try_from(meta_at).unwrap_or(u32::MAX);
    let end = at.saturating_add(u32::try_from(version.len()).unwrap_or(u32::MAX));
    Spliced { frame: Bytes::from(out), json: head.len()..length, version_at: at..end }
}

/// A watch event around any object's bytes.
pub fn frame(event: EventType, json: &[u8]) -> Bytes {
    let head = event.head();
    let mut out = Vec::with_capacity(head.len() + json.len() + FRAME_END.len());
    out.extend_from_slice(head);
    out.extend_from_slice(json);
    out.extend_from_slice(FRAME_END);
    Bytes::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn stored_bytes_begin_with_type_and_metadata() {
        let value = json!({"data": {"a": "1"}, "kind": "ConfigMap", "apiVersion": "v1",
            "metadata": {"name": "x", "resourceVersion": "7", "selfLink": "/s"}});
        let stored = to_stored(&value);
        assert_eq!(
            std::str::from_utf8(&stored).unwrap(),
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"},"data":{"a":"1"}}"#
        );
        let at = metadata_at(&stored).unwrap();
        let spliced = splice(EventType::Modified, &stored, at, 42);
        assert_eq!(
            &spliced.frame[..],
            &br#"{"type":"MODIFIED","object":{"apiVersion":"v1","kind":"ConfigMap","metadata":{"resourceVersion":"42","name":"x"},"data":{"a":"1"}}}
"#[..]
        );
        let object: Value = serde_json::from_slice(&spliced.frame[spliced.json.clone()]).unwrap();
        assert_eq!(object["metadata"]["resourceVersion"], "42");
        let json = &spliced.frame[spliced.json];
        let version = spliced.version_at.start as usize..spliced.version_at.end as usize;
        assert_eq!(&json[version], br#""resourceVersion":"42","#);
    }

    #[test]
    fn other_layouts_are_not_mistaken() {
        for odd in [
            r#"{"kind":"A","apiVersion":"v1","metadata":{"name":"x"}}"#,
            r#"{"apiVersion":"v1","kind":"A","metadata":{}}"#,
            r#"{"apiVersion":"v\"1","kind":"A","metadata":{"name":"x"}}"#,
            r#"{"apiVersion":"v1","kind":"A"}"#,
            r#"{"apiVersion":"v1"#,
            "",
        ] {
            assert_eq!(metadata_at(odd.as_bytes()), None, "{odd}");
        }
    }
}
