//! Errors of the API and their one mapping to Kubernetes' `Status`.
//!
//! Every refusal a client can see is an [`ApiError`]; nothing else in this crate writes a `Status` body. Wording,
//! reasons and codes follow `k8s.io/apimachinery/pkg/api/errors`.

use http::StatusCode;
use serde_json::{Value, json};

/// What is wrong with one field (`metav1.CauseType` and the wording of `field.Error`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldErrorKind {
    /// `FieldValueRequired`
    Required,
    /// `FieldValueInvalid`
    Invalid,
    /// `FieldValueNotSupported`
    NotSupported,
    /// `FieldValueDuplicate`
    Duplicate,
    /// `FieldValueForbidden`
    Forbidden,
    /// `FieldValueTooLong`
    TooLong,
    /// `FieldValueTooMany`
    TooMany,
    /// `FieldValueNotFound`
    NotFound,
    /// `FieldValueTypeInvalid`
    TypeInvalid,
}

/// One failed field, e.g. `spec.replicas: Invalid value: -1: must be greater than or equal to 0`.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// JSON path in upstream's notation: `spec.containers[0].name`, `data[bad key]`.
    pub field: String,
    /// What class of mistake it is.
    pub kind: FieldErrorKind,
    /// The offending value, printed as upstream does; `Null` where it is not shown.
    pub value: Value,
    /// What to do about it.
    pub detail: String,
}

impl FieldError {
    /// `Required value`
    pub fn required(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(field, FieldErrorKind::Required, Value::Null, detail)
    }
    /// `Invalid value: V`
    pub fn invalid(field: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(field, FieldErrorKind::Invalid, value.into(), detail)
    }
    /// `Forbidden`
    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(field, FieldErrorKind::Forbidden, Value::Null, detail)
    }
    /// `Duplicate value: V`
    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(field, FieldErrorKind::Duplicate, value.into(), "")
    }
    /// `Unsupported value: V: supported values: "a", "b"`
    pub fn not_supported(field: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let list = supported.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(", ");
        Self::new(field, FieldErrorKind::NotSupported, value.into(), format!("supported values: {list}"))
    }
    /// `Too long: may not be more than N bytes`
    pub fn too_long(field: impl Into<String>, max_bytes: usize) -> Self {
        Self::new(field, FieldErrorKind::TooLong, Value::Null, format!("may not be more than {max_bytes} bytes"))
    }
    /// `Too many: N: must have at most M items`
    pub fn too_many(field: impl Into<String>, actual: usize, max: usize) -> Self {
        Self::new(field, FieldErrorKind::TooMany, json!(actual), format!("must have at most {max} items"))
    }
    /// `Not found: V`
    pub fn not_found(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(field, FieldErrorKind::NotFound, value.into(), "")
    }
    /// Any kind.
    pub fn new(field: impl Into<String>, kind: FieldErrorKind, value: Value, detail: impl Into<String>) -> Self {
        Self { field: field.into(), kind, value, detail: detail.into() }
    }

    /// `metav1.CauseType`
    pub fn reason(&self) -> &'static str {
        match self.kind {
            FieldErrorKind::Required => "FieldValueRequired",
            FieldErrorKind::Invalid => "FieldValueInvalid",
            FieldErrorKind::NotSupported => "FieldValueNotSupported",
            FieldErrorKind::Duplicate => "FieldValueDuplicate",
            FieldErrorKind::Forbidden => "FieldValueForbidden",
            FieldErrorKind::TooLong => "FieldValueTooLong",
            FieldErrorKind::TooMany => "FieldValueTooMany",
            FieldErrorKind::NotFound => "FieldValueNotFound",
            FieldErrorKind::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    /// The text after the field, as `field.Error.ErrorBody()` prints it.
    pub fn body(&self) -> String {
        let head = match self.kind {
            FieldErrorKind::Required => "Required value",
            FieldErrorKind::Invalid | FieldErrorKind::TypeInvalid => "Invalid value",
            FieldErrorKind::NotSupported => "Unsupported value",
            FieldErrorKind::Duplicate => "Duplicate value",
            FieldErrorKind::Forbidden => "Forbidden",
            FieldErrorKind::TooLong => "Too long",
            FieldErrorKind::TooMany => "Too many",
            FieldErrorKind::NotFound => "Not found",
        };
        let mut out = head.to_owned();
        if !self.value.is_null() {
            out.push_str(": ");
            out.push_str(&self.value.to_string());
        }
        if !self.detail.is_empty() {
            out.push_str(": ");
            out.push_str(&self.detail);
        }
        out
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// One entry of `status.details.causes`.
#[derive(Clone, Debug, PartialEq)]
pub struct Cause {
    /// `metav1.CauseType`
    pub reason: String,
    /// What happened.
    pub message: String,
    /// The field it is about; empty if none.
    pub field: String,
}

/// A refusal that a client sees as a `Status` with `status: Failure`.
///
/// Built by the constructors below, which mirror `errors.NewNotFound` and its siblings.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub code: StatusCode,
    /// `metav1.StatusReason`
    pub reason: &'static str,
    /// Text for people; says what to do where that is known.
    pub message: String,
    /// `details`; boxed to keep `Result<T, ApiError>` small.
    pub details: Option<Box<Details>>,
}

/// `metav1.StatusDetails`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    /// Object name.
    pub name: String,
    /// API group of the kind.
    pub group: String,
    /// Resource (plural) or kind, as upstream fills it for the reason at hand.
    pub kind: String,
    /// Object UID, where known.
    pub uid: String,
    /// Per-field causes.
    pub causes: Vec<Cause>,
    /// Seconds after which a retry makes sense; 0 is none. Also sent as the `Retry-After` header.
    pub retry_after_s: u32,
}

/// Group and plural of a resource, for messages: `deployments.apps "web" not found`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct GroupResource {
    /// API group, empty for core.
    pub group: String,
    /// Plural.
    pub resource: String,
}

impl std::fmt::Display for GroupResource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.group.is_empty() { f.write_str(&self.resource) } else { write!(f, "{}.{}", self.resource, self.group) }
    }
}

impl ApiError {
    fn new(code: StatusCode, reason: &'static str, message: String, details: Option<Details>) -> Self {
        Self { code, reason, message, details: details.map(Box::new) }
    }
    fn on(gr: &GroupResource, name: &str) -> Details {
        Details { name: name.into(), group: gr.group.clone(), kind: gr.resource.clone(), ..Details::default() }
    }
    /// 404 for an object.
    pub fn not_found(gr: &GroupResource, name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", format!("{gr} {name:?} not found"), Some(Self::on(gr, name)))
    }
    /// 404 for a path that names no resource.
    pub fn no_such_path() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            "the server could not find the requested resource".into(),
            Some(Details::default()),
        )
    }
    /// 409 on create.
    pub fn already_exists(gr: &GroupResource, name: &str) -> Self {
        let message = format!("{gr} {name:?} already exists");
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message, Some(Self::on(gr, name)))
    }
    /// 409 on a lost race or failed precondition.
    pub fn conflict(gr: &GroupResource, name: &str, why: impl std::fmt::Display) -> Self {
        let message = format!("Operation cannot be fulfilled on {gr} {name:?}: {why}");
        Self::new(StatusCode::CONFLICT, "Conflict", message, Some(Self::on(gr, name)))
    }
    /// 422 with one cause per field. `kind` is the Kind, not the plural, as upstream does here.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let all = errors.iter().map(ToString::to_string).collect::<Vec<_>>();
        let text = match all.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let gk = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let causes = errors
            .iter()
            .map(|e| Cause { reason: e.reason().into(), message: e.body(), field: e.field.clone() })
            .collect();
        let details =
            Details { name: name.into(), group: group.into(), kind: kind.into(), causes, ..Details::default() };
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            format!("{gk} {name:?} is invalid: {text}"),
            Some(details),
        )
    }
    /// 400
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message.into(), None)
    }
    /// 401
    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized".into(), None)
    }
    /// 403 on an object or collection; `why` is the authorizer's or admission's explanation.
    pub fn forbidden(gr: &GroupResource, name: &str, why: impl std::fmt::Display) -> Self {
        let message = match (gr.resource.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{gr} is forbidden: {why}"),
            (false, false) => format!("{gr} {name:?} is forbidden: {why}"),
        };
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message, Some(Self::on(gr, name)))
    }
    /// 405
    pub fn method_not_allowed(gr: &GroupResource, verb: &str) -> Self {
        let message = format!("{verb} is not supported on resources of kind {:?}", gr.to_string());
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message, Some(Self::on(gr, "")))
    }
    /// 406
    pub fn not_acceptable(offered: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", offered.join(", "));
        Self::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message, None)
    }
    /// 410: the revision asked for is gone; relist.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message.into(), None)
    }
    /// 413
    pub fn too_large(limit_bytes: usize) -> Self {
        let message = format!("request body is larger than the limit of {limit_bytes} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message, None)
    }
    /// 415
    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message.into(), None)
    }
    /// 429
    pub fn too_many_requests(message: impl Into<String>, retry_after_s: u32) -> Self {
        let details = Details { retry_after_s, ..Details::default() };
        Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message.into(), Some(details))
    }
    /// 500; the cause is logged by the caller, the client gets `message`.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        let message = format!("Internal error occurred: {message}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message, None)
    }
    /// 503
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message.into(), None)
    }
    /// 504, with `retryAfterSeconds` 1 as upstream's `NewTimeoutError`.
    pub fn timeout(message: impl std::fmt::Display) -> Self {
        let details = Details { retry_after_s: 1, ..Details::default() };
        Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", format!("Timeout: {message}"), Some(details))
    }

    /// The `Status` object.
    pub fn to_status(&self) -> Value {
        let mut out = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code.as_u16(),
        });
        if let Some(d) = &self.details {
            let mut details = serde_json::Map::new();
            for (key, value) in [("name", &d.name), ("group", &d.group), ("kind", &d.kind), ("uid", &d.uid)] {
                if !value.is_empty() {
                    details.insert(key.into(), Value::from(value.as_str()));
                }
            }
            if !d.causes.is_empty() {
                let cause = |c: &Cause| {
                    let mut m = serde_json::Map::new();
                    m.insert("reason".into(), c.reason.as_str().into());
                    m.insert("message".into(), c.message.as_str().into());
                    if !c.field.is_empty() {
                        m.insert("field".into(), c.field.as_str().into());
                    }
                    Value::Object(m)
                };
                details.insert("causes".into(), d.causes.iter().map(cause).collect());
            }
            if d.retry_after_s > 0 {
                details.insert("retryAfterSeconds".into(), d.retry_after_s.into());
            }
            out["details"] = Value::Object(details);
        }
        out
    }
}
