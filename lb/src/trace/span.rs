//! Spans of one request as OTLP's JSON (opentelemetry-proto `trace.proto`; attributes by the semantic conventions for HTTP). Pure.

use std::net::SocketAddr;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::context::{Context, hex};
use crate::access::Description;
use crate::plugin::Verdict;

/// `SPAN_KIND_SERVER` and `SPAN_KIND_CLIENT`.
const SERVER: u8 = 2;
const CLIENT: u8 = 3;
/// `STATUS_CODE_UNSET` and `STATUS_CODE_ERROR`.
const UNSET: u8 = 0;
const ERROR: u8 = 2;

/// A request that is traced.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    pub context: Context,
    pub request: Description,
    /// Rule that matched, e.g. `HTTPRoute shop/web rule 0`.
    pub rule: Option<String>,
    /// What its path had to match.
    pub route: Option<String>,
    pub start: SystemTime,
    pub end: SystemTime,
    /// `None`: the client left before it was told anything.
    pub status: Option<u16>,
    /// What a plugin said about it.
    pub verdict: Option<Verdict>,
    pub attempts: Vec<Attempt>,
}

/// An attempt at an endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub span_id: [u8; 8],
    pub endpoint: SocketAddr,
    pub start: SystemTime,
    /// When it ended, with what status; `None`: it broke.
    pub end: Option<(SystemTime, Option<u16>)>,
}

impl Trace {
    /// Number of its spans.
    pub fn len(&self) -> u64 {
        self.attempts.len() as u64 + 1
    }

    /// Its spans as OTLP takes them, the request's own first.
    pub fn spans(&self) -> Vec<Value> {
        let request = &self.request;
        let mut attributes = vec![
            text("http.request.method", &request.method),
            text("url.scheme", if request.wire.tls.is_some() { "https" } else { "http" }),
            text("url.path", &request.path),
            text("server.address", &request.host),
            text("client.address", &request.client.to_string()),
            text("network.protocol.version", request.wire.protocol.trim_start_matches("HTTP/")),
        ];
        attributes.extend(request.user_agent.as_deref().map(|agent| text("user_agent.original", agent)));
        attributes.extend(self.route.as_deref().map(|route| text("http.route", route)));
        attributes.extend(self.rule.as_deref().map(|rule| text("scaleup.rule", rule)));
        if let Some(Verdict { plugin, ruling, generation }) = &self.verdict {
            attributes.extend([text("scaleup.plugin", plugin), text("scaleup.plugin.decision", ruling.name())]);
            attributes.extend(generation.map(|generation| int("scaleup.plugin.generation", generation)));
        }
        let failed = self.status.is_none_or(|status| status >= 500);
        attributes.extend(outcome(self.status, failed, "client_gone"));
        let name = match &self.route {
            Some(route) => format!("{} {route}", request.method),
            None => request.method.clone(),
        };
        let server = json!({
            "traceId": hex(&self.context.trace_id), "spanId": hex(&self.context.span_id),
            "parentSpanId": self.context.parent.map(|parent| hex(&parent)).unwrap_or_default(),
            "traceState": self.context.state.as_deref().unwrap_or_default(),
            "name": name, "kind": SERVER,
            "startTimeUnixNano": nanos(self.start), "endTimeUnixNano": nanos(self.end),
            "attributes": attributes, "status": status(failed),
        });
        let attempts = self.attempts.iter().enumerate().map(|(number, attempt)| self.attempt(number, attempt));
        std::iter::once(server).chain(attempts).collect()
    }

    fn attempt(&self, number: usize, attempt: &Attempt) -> Value {
        let (end, code) = attempt.end.unwrap_or((self.end, self.status));
        let failed = code.is_none_or(|code| code >= 400);
        let mut attributes = vec![
            text("http.request.method", &self.request.method),
            text("server.address", &attempt.endpoint.ip().to_string()),
            int("server.port", attempt.endpoint.port().into()),
            text("url.full", &format!("http://{}{}", attempt.endpoint, self.request.path)),
        ];
        if number > 0 {
            attributes.push(int("http.request.resend_count", number as u64));
        }
        attributes.extend(outcome(code, failed, "connection_failed"));
        json!({
            "traceId": hex(&self.context.trace_id), "spanId": hex(&attempt.span_id),
            "parentSpanId": hex(&self.context.span_id),
            "traceState": self.context.state.as_deref().unwrap_or_default(),
            "name": self.request.method, "kind": CLIENT,
            "startTimeUnixNano": nanos(attempt.start), "endTimeUnixNano": nanos(end),
            "attributes": attributes, "status": status(failed),
        })
    }
}

/// Status and, for failures, the kind of error.
fn outcome(code: Option<u16>, failed: bool, without: &str) -> impl Iterator<Item = Value> {
    let status = code.map(|code| int("http.response.status_code", code.into()));
    let kind = code.map_or_else(|| without.to_owned(), |code| code.to_string());
    status.into_iter().chain(failed.then(|| text("error.type", &kind)))
}

fn status(failed: bool) -> Value {
    json!({"code": if failed { ERROR } else { UNSET }})
}

fn text(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

/// 64-bit numbers are strings in protobuf's JSON.
fn int(key: &str, value: u64) -> Value {
    json!({"key": key, "value": {"intValue": value.to_string()}})
}

fn nanos(time: SystemTime) -> String {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
}

/// An `ExportTraceServiceRequest`.
pub(crate) fn request(spans: &[Value]) -> Value {
    json!({"resourceSpans": [{
        "resource": {"attributes": [
            text("service.name", "scaleup-lb"), text("service.version", env!("CARGO_PKG_VERSION")),
        ]},
        "scopeSpans": [{"scope": {"name": "scaleup-lb"}, "spans": spans}],
    }]})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Wire;
    use crate::plugin::Ruling;
    use std::time::Duration;

    #[test]
    fn a_retried_request_is_three_spans() {
        let at = |ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        let attempt = |id: u8, from, end| Attempt {
            span_id: [id; 8],
            endpoint: "10.0.0.1:80".parse().expect("an address"),
            start: at(from),
            end,
        };
        let trace = Trace {
            context: Context { trace_id: [1; 16], parent: Some([2; 8]), span_id: [3; 8], sampled: true, state: None },
            request: Description {
                client: [192, 0, 2, 1].into(),
                method: "GET".into(),
                host: "shop.example".into(),
                path: "/a".into(),
                query: None,
                user_agent: None,
                referer: None,
                wire: Wire { protocol: "HTTP/1.1", tls: None },
            },
            rule: None,
            route: Some("/".into()),
            start: at(1),
            end: at(9),
            status: Some(200),
            verdict: Some(Verdict { plugin: "a/b".into(), ruling: Ruling::Pick, generation: Some(7) }),
            attempts: vec![attempt(4, 2, Some((at(3), None))), attempt(5, 4, None)],
        };
        let spans = trace.spans();
        assert_eq!((spans.len() as u64, trace.len()), (3, 3));
        assert_eq!(spans[0]["name"], "GET /");
        assert_eq!(spans[0]["parentSpanId"], "0202020202020202");
        assert_eq!(
            (&spans[0]["startTimeUnixNano"], &spans[0]["endTimeUnixNano"]),
            (&json!("1000000"), &json!("9000000"))
        );
        assert_eq!(spans[0]["status"]["code"], UNSET);
        let has = |span: &Value, attribute: Value| {
            assert!(span["attributes"].as_array().expect("a list").contains(&attribute), "{attribute} in {span:#}");
        };
        has(&spans[0], int("http.response.status_code", 200));
        has(&spans[0], int("scaleup.plugin.generation", 7));
        has(&spans[0], text("network.protocol.version", "1.1"));
        for (span, failed) in [(&spans[1], true), (&spans[2], false)] {
            assert_eq!(span["parentSpanId"], spans[0]["spanId"]);
            assert_eq!(span["status"]["code"], if failed { ERROR } else { UNSET });
        }
        assert_eq!(spans[1]["endTimeUnixNano"], "3000000");
        has(&spans[1], text("error.type", "connection_failed"));
        has(&spans[2], int("http.request.resend_count", 1));
        has(&spans[2], int("http.response.status_code", 200));
    }
}
