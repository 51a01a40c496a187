//! From stored bytes to what a client gets: aliases, Tables, metadata-only views, YAML, indentation.
//!
//! The common case, an object in its stored version as plain JSON, is a copy of a reference and nothing else.

use axum::body::Body;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, WARNING};
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

use super::Context;
use crate::cache::{Cached, encode};
use crate::error::ApiError;
use crate::negotiate::{Accepted, Format, View};
use crate::present::table::IncludeObject;
use crate::present::{partial, table};
use crate::registry::{Resource, Storage};

/// Most warnings sent with one answer.
const MAX_WARNINGS: usize = 32;
/// Longest warning text, as upstream's truncation.
const MAX_WARNING_BYTES: usize = 4_096;

/// An object in the row's version.
pub fn value(row: &Resource, stored: &Cached) -> Value {
    from_stored(row, stored.value())
}

/// From the stored version to the row's.
pub fn from_stored(row: &Resource, stored: Value) -> Value {
    match &row.storage {
        Storage::Alias { from_stored, .. } => from_stored(stored),
        _ => stored,
    }
}

/// From the row's version to the bytes of the stored one.
pub fn to_stored(row: &Resource, served: &Value) -> Vec<u8> {
    match &row.storage {
        Storage::Alias { to_stored, .. } => encode::to_stored(&to_stored(served.clone())),
        _ => encode::to_stored(served),
    }
}

/// Whether stored bytes are what the client wants.
pub fn is_ready(row: &Resource, accepted: Accepted) -> bool {
    accepted.is_plain() && !matches!(row.storage, Storage::Alias { .. })
}

/// An answer with one object, given as stored bytes.
pub fn object(cx: &Context, status: StatusCode, stored: Bytes) -> Result<Response<Body>, ApiError> {
    let row = &cx.resolved.resource;
    if is_ready(row, cx.accepted) {
        return Ok(respond(cx, status, stored));
    }
    let parsed = serde_json::from_slice(&stored).map_err(ApiError::internal)?;
    served_object(cx, status, &from_stored(row, parsed))
}

/// An answer with one object in the row's version.
pub fn served_object(cx: &Context, status: StatusCode, object: &Value) -> Result<Response<Body>, ApiError> {
    let row = &cx.resolved.resource;
    let body = match cx.accepted.view {
        View::Object => encode(cx.accepted, object)?,
        View::Partial => encode(cx.accepted, &partial::object(object))?,
        View::Table => {
            let meta = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
            encode(cx.accepted, &table::render(row, [object].into_iter(), meta, include(cx)?, true))?
        }
    };
    Ok(respond(cx, status, body))
}

/// An answer that no view applies to (Status, Scale, reviews).
pub fn other(cx: &Context, status: StatusCode, object: &Value) -> Result<Response<Body>, ApiError> {
    Ok(respond(cx, status, encode(cx.accepted, object)?))
}

/// The `includeObject` parameter.
pub fn include(cx: &Context) -> Result<IncludeObject, ApiError> {
    let text = cx.query.get("includeObject");
    IncludeObject::parse(text)
        .ok_or_else(|| ApiError::bad_request(format!("unrecognized includeObject value: {text:?}")))
}

/// JSON (perhaps indented) or YAML.
pub fn encode(accepted: Accepted, value: &Value) -> Result<Bytes, ApiError> {
    let text = match (accepted.format, accepted.pretty) {
        (Format::Json, false) => serde_json::to_vec(value).map_err(ApiError::internal)?,
        (Format::Json, true) => {
            let mut out = serde_json::to_vec_pretty(value).map_err(ApiError::internal)?;
            out.push(b'\n');
            out
        }
        (Format::Yaml, _) => serde_saphyr::to_string(value).map_err(ApiError::internal)?.into_bytes(),
    };
    Ok(text.into())
}

/// Body with content type and warnings.
pub fn respond(cx: &Context, status: StatusCode, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(cx.accepted.format.content_type());
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    add_warnings(&mut response, &cx.warnings);
    response
}

/// One `Warning: 299 - "text"` header per warning.
pub fn add_warnings(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings.iter().take(MAX_WARNINGS) {
        let mut quoted = String::with_capacity(warning.len() + 16);
        quoted.push_str("299 - \"");
        for c in warning.chars().filter(|c| !c.is_control()).take(MAX_WARNING_BYTES) {
            if matches!(c, '"' | '\\') {
                quoted.push('\\');
            }
            quoted.push(c);
        }
        quoted.push('"');
        if let Ok(header) = HeaderValue::try_from(quoted) {
            response.headers_mut().append(WARNING, header);
        }
    }
}
