//! JSON patch (RFC 6902) with bounds: a small body must not be able to build a huge or deep document, or keep a core busy.

use std::num::NonZeroUsize;

use http::StatusCode;
use json_patch::jsonptr::Pointer;
use json_patch::{Patch, PatchOperation};
use serde_json::Value;

use super::unprocessable;
use crate::error::ApiError;

/// Upstream's limit.
const MAX_OPERATIONS: usize = 10_000;
/// JSON values that all operations of a patch together may add, move, copy or shift in lists.
const MAX_WORK: usize = 200_000;
/// Bytes of text that count as one value.
const TEXT_UNIT_BYTES: usize = 64;
/// Levels that a patched document may have; readers of stored objects stop at 128.
const MAX_DEPTH: usize = 100;

/// Applies `patch` to a copy of `object`.
pub fn apply(object: &Value, patch: &[u8]) -> Result<Value, ApiError> {
    let Patch(operations) = serde_json::from_slice(patch)
        .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
    if operations.len() > MAX_OPERATIONS {
        return Err(too_large(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let mut out = object.clone();
    let mut work = MAX_WORK;
    for operation in &operations {
        if tests_for_absence(&out, operation) {
            continue;
        }
        let cost = cost(&out, operation)?;
        work = work
            .checked_sub(cost)
            .ok_or_else(|| too_large(format!("the JSON patch moves more than {MAX_WORK} values")))?;
        json_patch::patch_unsafe(&mut out, std::slice::from_ref(operation))
            .map_err(|error| unprocessable(explain(operation, &error.kind)))?;
    }
    if !out.is_object() {
        return Err(unprocessable("the patch replaces the object with something else".into()));
    }
    Ok(out)
}

/// Upstream's library takes `test` for null as a test for absence, which RFC 6902 does not have.
fn tests_for_absence(document: &Value, operation: &PatchOperation) -> bool {
    let PatchOperation::Test(test) = operation else { return false };
    let parent = test.path.parent().and_then(|p| p.resolve(document).ok());
    test.value.is_null() && test.path.resolve(document).is_err() && parent.is_some_and(Value::is_object)
}

fn too_large(message: String) -> ApiError {
    ApiError { code: StatusCode::PAYLOAD_TOO_LARGE, reason: "RequestEntityTooLarge", message, details: None }
}

fn explain(operation: &PatchOperation, kind: &json_patch::PatchErrorKind) -> String {
    match operation {
        PatchOperation::Test(_) => format!("testing value {} failed", operation.path()),
        _ => format!("{} of {}: {kind}", name(operation), operation.path()),
    }
}

fn name(operation: &PatchOperation) -> &'static str {
    match operation {
        PatchOperation::Add(_) => "add",
        PatchOperation::Remove(_) => "remove",
        PatchOperation::Replace(_) => "replace",
        PatchOperation::Move(_) => "move",
        PatchOperation::Copy(_) => "copy",
        PatchOperation::Test(_) => "test",
    }
}

/// How many values an operation touches beyond its own body, and whether its result would be too deep.
fn cost(document: &Value, operation: &PatchOperation) -> Result<usize, ApiError> {
    let shifted = |at: &Pointer| {
        let list = at.parent().and_then(|p| p.resolve(document).ok()).and_then(Value::as_array);
        list.map_or(0, Vec::len)
    };
    let placed = |value: &Value, at: &Pointer| {
        let size = measure(value, at.tokens().count())?;
        Ok::<usize, ApiError>(size.get() + shifted(at))
    };
    match operation {
        PatchOperation::Add(op) => placed(&op.value, &op.path),
        PatchOperation::Replace(op) => placed(&op.value, &op.path),
        PatchOperation::Remove(op) => Ok(shifted(&op.path)),
        PatchOperation::Test(_) => Ok(0),
        PatchOperation::Move(op) => match op.from.resolve(document) {
            Ok(value) => Ok(placed(value, &op.path)? + shifted(&op.from)),
            Err(_) => Ok(0),
        },
        PatchOperation::Copy(op) => match op.from.resolve(document) {
            Ok(value) => placed(value, &op.path),
            Err(_) => Ok(0),
        },
    }
}

/// How many values there are in `value`; refuses depth beyond the bound before recursing into it.
fn measure(value: &Value, depth: usize) -> Result<NonZeroUsize, ApiError> {
    if depth > MAX_DEPTH {
        return Err(unprocessable(format!("the patched object would have more than {MAX_DEPTH} levels")));
    }
    let add = |sum: NonZeroUsize, child: &Value| Ok(sum.saturating_add(measure(child, depth + 1)?.get()));
    match value {
        Value::Array(items) => items.iter().try_fold(NonZeroUsize::MIN, add),
        Value::Object(fields) => fields.values().try_fold(NonZeroUsize::MIN, add),
        // A long text costs what it weighs.
        Value::String(text) => Ok(NonZeroUsize::MIN.saturating_add(text.len() / TEXT_UNIT_BYTES)),
        _ => Ok(NonZeroUsize::MIN),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(object: Value, patch: &Value) -> Result<Value, ApiError> {
        apply(&object, patch.to_string().as_bytes())
    }

    #[test]
    fn operations_apply_in_order() {
        let check =
            |object: Value, patch: Value, want: Value| assert_eq!(run(object, &patch).unwrap(), want, "{patch}");
        check(
            json!({"a": 1}),
            json!([{"op": "test", "path": "/a", "value": 1}, {"op": "replace", "path": "/a", "value": 2}]),
            json!({"a": 2}),
        );
        check(
            json!({"l": [1, 3]}),
            json!([{"op": "add", "path": "/l/1", "value": 2}, {"op": "add", "path": "/l/-", "value": 4}]),
            json!({"l": [1, 2, 3, 4]}),
        );
        check(
            json!({"a": {"b": 1}}),
            json!([{"op": "move", "from": "/a/b", "path": "/c"}, {"op": "remove", "path": "/a"}]),
            json!({"c": 1}),
        );
        check(json!({"a": 1}), json!([{"op": "copy", "from": "/a", "path": "/b"}]), json!({"a": 1, "b": 1}));
        check(json!({"a/b": 1}), json!([{"op": "remove", "path": "/a~1b"}]), json!({}));
        check(json!({"a": 1}), json!([]), json!({"a": 1}));
    }

    fn refused(object: Value, patch: &Value, code: u16, text: &str) {
        let error = run(object, patch).expect_err(&patch.to_string()[..40.min(patch.to_string().len())]);
        assert_eq!(error.code.as_u16(), code, "{error}");
        let status = error.to_status().to_string();
        assert!(status.contains(text), "{status} has no {text}");
    }

    #[test]
    fn what_does_not_apply_is_422() {
        let text = "the server rejected our request due to an error in our request";
        for patch in [
            json!([{"op": "test", "path": "/a", "value": 2}]),
            json!([{"op": "remove", "path": "/nope"}]),
            json!([{"op": "replace", "path": "/x/y", "value": 1}]),
            json!([{"op": "add", "path": "/l/9", "value": 1}]),
            json!([{"op": "add", "path": "/l/x", "value": 1}]),
            json!([{"op": "copy", "from": "/nope", "path": "/b"}]),
            json!([{"op": "move", "from": "/l", "path": "/l/0/x"}]),
            json!([{"op": "replace", "path": "", "value": 3}]),
        ] {
            refused(json!({"a": 1, "l": []}), &patch, 422, text);
        }
        refused(json!({"a": 1}), &json!([{"op": "test", "path": "/a", "value": 2}]), 422, "testing value /a failed");
    }

    #[test]
    fn what_is_no_patch_is_400() {
        for patch in [
            json!({}),
            json!([{"op": "frobnicate", "path": "/a"}]),
            json!([{"op": "add", "path": "/a"}]),
            json!([{"op": "add", "path": "a", "value": 1}]),
            json!([{"path": "/a"}]),
            json!([1]),
            json!("x"),
        ] {
            refused(json!({}), &patch, 400, "error decoding patch");
        }
    }

    #[test]
    fn null_tests_for_absence() {
        let patch = json!([{"op": "test", "path": "/b", "value": null}]);
        assert!(run(json!({"a": 1}), &patch).is_ok());
        refused(json!({"b": 1}), &patch, 422, "testing value /b failed");
        refused(json!({}), &json!([{"op": "test", "path": "/x/b", "value": null}]), 422, "testing value /x/b failed");
    }

    #[test]
    fn size_and_depth_are_bounded() {
        let many: Value = (0..=MAX_OPERATIONS).map(|_| json!({"op": "test", "path": "/a", "value": 1})).collect();
        refused(json!({"a": 1}), &many, 413, "maximum operations in a JSON patch is 10000, got 10001");
        // Each copy of the document into itself doubles it.
        let doubling: Value = (0..60).map(|i| json!({"op": "copy", "from": "", "path": format!("/k{i}")})).collect();
        refused(json!({"a": 1}), &doubling, 413, "moves more than");
        let wide: Value = (0..60).map(|i| json!({"op": "copy", "from": "/l", "path": format!("/l/{i}")})).collect();
        refused(json!({"l": [1]}), &wide, 413, "moves more than");
        let text = json!({"a": "x".repeat(1 << 20)});
        let copies: Value = (0..200).map(|i| json!({"op": "copy", "from": "/a", "path": format!("/b{i}")})).collect();
        refused(text, &copies, 413, "moves more than");
        let list = json!({"l": vec![0; 100_000]});
        let shifts: Value = (0..100).map(|_| json!({"op": "add", "path": "/l/0", "value": 0})).collect();
        refused(list, &shifts, 413, "moves more than");
        let down: Value =
            (0..200).map(|i| json!({"op": "add", "path": format!("/a{}", "/a".repeat(i)), "value": {}})).collect();
        refused(json!({}), &down, 422, "more than 100 levels");
    }
}
