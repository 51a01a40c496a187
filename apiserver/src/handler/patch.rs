//! PATCH: which kind of patch a content type means, and applying it to an object in the row's version.

use bytes::Bytes;
use http::HeaderMap;
use serde_json::Value;

use crate::error::ApiError;
use crate::negotiate::media_type;
use crate::patch;
use crate::registry::Resource;

/// Content types of patches that are understood.
const ACCEPTED: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"];
/// Content type of server-side apply.
const APPLY: &str = "application/apply-patch+yaml";

/// The kinds of patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' own.
    Strategic,
}

/// A patch as it came in.
pub struct Patch {
    /// How to read it.
    pub kind: Kind,
    /// The body.
    pub bytes: Bytes,
}

/// From the content type; 415 for anything else.
pub fn kind(headers: &HeaderMap) -> Result<Kind, ApiError> {
    match media_type(headers).as_str() {
        "application/json-patch+json" => Ok(Kind::Json),
        "application/merge-patch+json" => Ok(Kind::Merge),
        "application/strategic-merge-patch+json" => Ok(Kind::Strategic),
        APPLY => Err(ApiError::unsupported_media_type(
            "server-side apply is not supported yet: use kubectl apply with --server-side=false, or one of the media types \
             application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json",
        )),
        other => Err(ApiError::unsupported_media_type(format!(
            "the body of the request was in an unknown format ({other}) - accepted media types include: {}",
            ACCEPTED.join(", ")
        ))),
    }
}

impl Patch {
    /// The patched object.
    pub fn apply(&self, row: &Resource, object: &Value) -> Result<Value, ApiError> {
        match self.kind {
            Kind::Json => patch::json_patch(object, &self.bytes),
            Kind::Merge => patch::merge_patch(object, &self.bytes),
            Kind::Strategic => patch::strategic_merge(row, object, &self.bytes),
        }
    }

    /// Whether the patch itself names a resource version, which makes it conditional.
    pub fn names_version(&self) -> bool {
        let Ok(patch) = serde_json::from_slice::<Value>(&self.bytes) else { return false };
        match self.kind {
            Kind::Json => patch.as_array().into_iter().flatten().any(|op| op["path"] == "/metadata/resourceVersion"),
            Kind::Merge | Kind::Strategic => patch["metadata"]["resourceVersion"].is_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::CONTENT_TYPE;

    #[test]
    fn content_types() {
        let of = |t: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, t.parse().unwrap());
            kind(&headers)
        };
        assert_eq!(of("application/merge-patch+json; charset=utf-8").unwrap(), Kind::Merge);
        let apply = of(APPLY).unwrap_err();
        assert_eq!(apply.code, 415);
        assert!(apply.message.contains("--server-side=false"));
        let other = of("application/json").unwrap_err();
        assert!(other.code == 415 && other.message.contains(ACCEPTED[2]), "{other}");
    }

    #[test]
    fn versions_in_patches_are_noticed() {
        let check = |kind, text: &'static str, expected| {
            assert_eq!(Patch { kind, bytes: Bytes::from(text) }.names_version(), expected, "{text}");
        };
        check(Kind::Merge, r#"{"metadata":{"resourceVersion":"1"}}"#, true);
        check(Kind::Merge, r#"{"metadata":{"labels":{}}}"#, false);
        check(Kind::Json, r#"[{"op":"test","path":"/metadata/resourceVersion","value":"1"}]"#, true);
        check(Kind::Json, r#"[]"#, false);
        check(Kind::Strategic, "nonsense", false);
    }
}
