//! Patches: from a stored object and a request body to the patched object. Pure and bounded; nothing here validates the
//! result against its kind, which the generic handler does with every write.

mod json;
mod strategic;

use http::StatusCode;
use serde_json::Value;

use crate::error::{ApiError, Cause, Details};
use crate::registry::Resource;
use crate::schema::graph::Node;

/// RFC 6902 (`application/json-patch+json`).
///
/// Refuses with 400 what is no JSON patch, 413 more than 10,000 operations or excessive work, 422 a failed operation.
pub fn json_patch(object: &Value, patch: &[u8]) -> Result<Value, ApiError> {
    json::apply(object, patch)
}

/// RFC 7386 (`application/merge-patch+json`). Refuses with 400 what is no JSON object.
pub fn merge_patch(object: &Value, patch: &[u8]) -> Result<Value, ApiError> {
    let patch = parse_object(patch)?;
    let mut out = object.clone();
    json_patch::merge(&mut out, &patch);
    Ok(out)
}

/// Kubernetes' strategic merge patch (`application/strategic-merge-patch+json`) by the schema of the row's kind.
///
/// Refuses with 400 what is no JSON object or a malformed directive, 415 kinds without a built-in schema (as upstream does for
/// custom resources), 422 a patch that does not fit the object.
pub fn strategic_merge(row: &Resource, object: &Value, patch: &[u8]) -> Result<Value, ApiError> {
    let node = Node::of_kind(&row.group, &row.version, &row.kind).ok_or_else(|| {
        ApiError::unsupported_media_type(
            "the body of the request was in an unknown format - accepted media types include: \
             application/json-patch+json, application/merge-patch+json",
        )
    })?;
    strategic::apply(node, object, parse_object(patch)?)
}

/// serde_json refuses more than 128 levels, which bounds every recursion over a patch.
fn parse_object(patch: &[u8]) -> Result<Value, ApiError> {
    match serde_json::from_slice(patch) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(ApiError::bad_request("error decoding patch: the patch must be a JSON object")),
        Err(error) => Err(ApiError::bad_request(format!("error decoding patch: {error}"))),
    }
}

/// 422 with upstream's message for patches that do not apply; the detail goes into a cause, which kubectl prints.
fn unprocessable(detail: String) -> ApiError {
    let cause = Cause { reason: "UnexpectedServerResponse".into(), message: detail, field: "patch".into() };
    ApiError {
        code: StatusCode::UNPROCESSABLE_ENTITY,
        reason: "Invalid",
        message: "the server rejected our request due to an error in our request".into(),
        details: Some(Box::new(Details { causes: vec![cause], ..Details::default() })),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::present::fixtures::resource;

    #[test]
    fn merge_patches() {
        let check = |object: Value, patch: Value, want: Value| {
            assert_eq!(merge_patch(&object, patch.to_string().as_bytes()).unwrap(), want, "{patch}");
        };
        check(json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"}));
        check(json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"}));
        check(json!({"a": ["b"]}), json!({"a": ["c", null]}), json!({"a": ["c", null]}));
        check(
            json!({"a": {"b": "c"}}),
            json!({"a": {"b": "d", "c": null, "e": {"f": null}}}),
            json!({"a": {"b": "d", "e": {}}}),
        );
        check(json!({"a": "s"}), json!({"a": {"b": 1}}), json!({"a": {"b": 1}}));
    }

    #[test]
    fn malformed_bodies_are_400() {
        let row = resource("", "v1", "Pod", "pods");
        let deep = format!("{}1{}", "{\"a\":".repeat(200), "}".repeat(200));
        for body in ["", "null", "[]", "3", "\"x\"", "{", "{\"a\":}", deep.as_str()] {
            let merge = merge_patch(&json!({}), body.as_bytes()).unwrap_err();
            assert_eq!((merge.code.as_u16(), merge.reason), (400, "BadRequest"), "{body}");
            let strategic = strategic_merge(&row, &json!({}), body.as_bytes()).unwrap_err();
            assert_eq!(strategic.code.as_u16(), 400, "{body}");
        }
    }

    #[test]
    fn custom_kinds_have_no_strategic_merge() {
        let row = resource("example.com", "v1", "Widget", "widgets");
        let error = strategic_merge(&row, &json!({}), b"{}").unwrap_err();
        assert_eq!(error.code.as_u16(), 415);
        assert!(error.message.contains("application/merge-patch+json"));
    }
}
