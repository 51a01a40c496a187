//! Answers of our own: short texts, or for gRPC requests a status in trailers-only form.
//!
//! Statuses of gRPC follow its mapping from HTTP ("HTTP to gRPC Status Code Mapping"), but for 504: a deadline that passed
//! here is what `DEADLINE_EXCEEDED` means.

use bytes::Bytes;
use h2::server::SendResponse;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Method, Response, StatusCode};

use std::time::Duration;

pub(super) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// See the module.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: StatusCode,
    pub text: String,
    /// When to try again.
    pub retry_after: Option<Duration>,
    /// Fields beside the usual ones, e.g. `Location`.
    pub fields: HeaderMap,
}

impl Answer {
    pub fn new(status: StatusCode, reason: &str) -> Self {
        let text = format!("{}: {reason}\n", status.as_u16());
        Self { status, text, retry_after: None, fields: HeaderMap::new() }
    }

    /// Sends it and ends the stream; the payload bytes, `None` if the client is gone.
    pub fn send(self, respond: &mut SendResponse<Bytes>, method: &Method, is_grpc: bool) -> Option<u64> {
        let mut response = Response::new(());
        let fields = response.headers_mut();
        *fields = self.fields;
        if let Ok(date) = HeaderValue::from_maybe_shared(Bytes::from(crate::proxy::http::http_date())) {
            fields.insert(DATE, date);
        }
        if let Some(after) = self.retry_after {
            // In whole seconds, and never too early.
            fields.insert(RETRY_AFTER, HeaderValue::from(after.as_secs_f64().ceil() as u64));
        }
        if is_grpc {
            fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            fields.insert(GRPC_STATUS, HeaderValue::from(grpc_status(self.status)));
            if let Ok(message) = HeaderValue::from_str(self.text.trim_end()) {
                fields.insert(GRPC_MESSAGE, message);
            }
            return respond.send_response(response, true).ok().map(|_| 0);
        }
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        fields.insert(CONTENT_LENGTH, HeaderValue::from(self.text.len() as u64));
        *response.status_mut() = self.status;
        let length = self.text.len() as u64;
        let empty = *method == Method::HEAD || self.text.is_empty();
        let mut stream = respond.send_response(response, empty).ok()?;
        if empty {
            return Some(0);
        }
        // Short enough to wait in the stream's buffer for the client's window.
        stream.send_data(Bytes::from(self.text), true).ok()?;
        Some(length)
    }
}

fn grpc_status(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 | 431 => 13,
        401 => 16,
        403 => 7,
        404 | 405 => 12,
        413 => 8,
        429 | 502 | 503 => 14,
        504 => 4,
        _ => 2,
    }
}

/// What a response says about its endpoint, as an HTTP status: gRPC hides failures behind 200.
pub(super) fn effective_status(status: StatusCode, fields: &HeaderMap) -> u16 {
    let grpc = fields.get(GRPC_STATUS).map(HeaderValue::as_bytes);
    match grpc {
        // DEADLINE_EXCEEDED, UNAVAILABLE, and the endpoint's own faults: UNKNOWN, INTERNAL, DATA_LOSS.
        Some(b"4") => 504,
        Some(b"14") => 503,
        Some(b"2" | b"13" | b"15") => 500,
        _ => status.as_u16(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_statuses_say_the_same_as_http_ones() {
        for (http, grpc) in [(404, 12), (429, 14), (503, 14), (504, 4), (403, 7), (500, 2)] {
            assert_eq!(grpc_status(StatusCode::from_u16(http).expect("a status")), grpc);
        }
        for (grpc, http) in [("0", 200), ("5", 200), ("14", 503), ("4", 504), ("13", 500)] {
            let fields = HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static(grpc))]);
            assert_eq!(effective_status(StatusCode::OK, &fields), http);
        }
    }
}
