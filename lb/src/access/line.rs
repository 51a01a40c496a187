//! One line of the access log, by value. Whatever a client sends, it stays inside its JSON string: control characters are escaped,
//! long texts are cut.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::plugin::Verdict;
use crate::route::Head;
use crate::snapshot::routes::RuleId;

/// Longest text of a request that is logged, in bytes.
const MAX_TEXT: usize = 1_024;

/// How a request came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wire {
    /// `HTTP/1.1`, `HTTP/2`, …
    pub protocol: &'static str,
    /// `TLSv1.3`, …; `None`: clear text.
    pub tls: Option<&'static str>,
}

/// What a request's head says, copied because the request is logged or traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Description {
    pub client: IpAddr,
    pub method: String,
    pub host: String,
    pub path: String,
    pub query: Option<String>,
    pub user_agent: Option<String>,
    pub referer: Option<String>,
    pub wire: Wire,
}

impl Description {
    pub fn of(head: &impl Head, wire: Wire) -> Self {
        let field = |name: &str| head.header(name).map(|value| cut(&value));
        Self {
            client: head.client(),
            method: cut(head.method()),
            host: cut(head.host()),
            path: cut(head.path()),
            query: head.query().map(cut),
            user_agent: field("user-agent"),
            referer: field("referer"),
            wire,
        }
    }
}

/// At most [`MAX_TEXT`] bytes of a text.
fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TEXT)].to_owned()
}

/// Why a request ended as it did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags(u16);

impl Flags {
    pub const NO_ROUTE: Self = Self(1);
    pub const NO_ENDPOINT: Self = Self(1 << 1);
    pub const RATE_LIMITED: Self = Self(1 << 2);
    pub const OVERLOADED: Self = Self(1 << 3);
    pub const TIMEOUT: Self = Self(1 << 4);
    pub const UPSTREAM_FAILED: Self = Self(1 << 5);
    pub const RETRIED: Self = Self(1 << 6);
    pub const CLIENT_GONE: Self = Self(1 << 7);
    pub const BAD_REQUEST: Self = Self(1 << 8);
    pub const PLUGIN_REFUSED: Self = Self(1 << 9);

    const NAMES: [(Self, &'static str); 10] = [
        (Self::NO_ROUTE, "no_route"),
        (Self::NO_ENDPOINT, "no_endpoint"),
        (Self::RATE_LIMITED, "rate_limited"),
        (Self::OVERLOADED, "overloaded"),
        (Self::TIMEOUT, "timeout"),
        (Self::UPSTREAM_FAILED, "upstream_failed"),
        (Self::RETRIED, "retried"),
        (Self::CLIENT_GONE, "client_gone"),
        (Self::BAD_REQUEST, "bad_request"),
        (Self::PLUGIN_REFUSED, "plugin_refused"),
    ];

    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(flag, _)| self.0 & flag.0 != 0).map(|(_, name)| name)
    }
}

impl Serialize for Flags {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.names())
    }
}

/// What came of a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ending<'a> {
    /// `None`: the client left before it was told anything.
    pub status: Option<u16>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub duration: Duration,
    pub upstream: Option<SocketAddr>,
    pub pod: Option<&'a str>,
    pub attempts: u32,
    pub verdict: Option<&'a Verdict>,
    pub rule: Option<&'a RuleId>,
    /// `namespace/name`
    pub service: Option<String>,
    pub trace: Option<String>,
    pub flags: Flags,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    client: IpAddr,
    method: &'a str,
    host: &'a str,
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    query: Option<&'a str>,
    status: Option<u16>,
    bytes_in: u64,
    bytes_out: u64,
    duration_ms: f64,
    upstream: Option<SocketAddr>,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    plugin: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plugin_generation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plugin_decision: Option<&'static str>,
    route: Option<String>,
    service: Option<&'a str>,
    pod_uid: Option<&'a str>,
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    referer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<&'a str>,
    flags: Flags,
}

/// A rule as logs and views name it: `HTTPRoute shop/web rule 0`.
pub(crate) fn rule_name(id: &RuleId) -> String {
    format!("{} {}/{} rule {}", id.kind, id.namespace, id.name, id.rule)
}

/// The line, line feed included.
pub(crate) fn line(
    time: k8s_openapi::jiff::Timestamp,
    request: &Description,
    query: bool,
    ending: &Ending<'_>,
) -> Vec<u8> {
    let line = Line {
        time: format!("{time:.3}"),
        client: request.client,
        method: &request.method,
        host: &request.host,
        path: &request.path,
        query: request.query.as_deref().filter(|_| query),
        status: ending.status,
        bytes_in: ending.bytes_in,
        bytes_out: ending.bytes_out,
        duration_ms: ending.duration.as_micros() as f64 / 1e3,
        upstream: ending.upstream,
        attempts: ending.attempts,
        plugin: ending.verdict.map(|verdict| &*verdict.plugin),
        plugin_generation: ending.verdict.and_then(|verdict| verdict.generation),
        plugin_decision: ending.verdict.map(|verdict| verdict.ruling.name()),
        route: ending.rule.map(rule_name),
        service: ending.service.as_deref(),
        pod_uid: ending.pod,
        protocol: request.wire.protocol,
        tls: request.wire.tls,
        user_agent: request.user_agent.as_deref(),
        referer: request.referer.as_deref(),
        trace_id: ending.trace.as_deref(),
        flags: ending.flags,
    };
    let mut out = Vec::with_capacity(512);
    // Writing numbers and strings into memory cannot fail.
    let _ = serde_json::to_writer(&mut out, &line);
    out.push(b'\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::Ruling;

    fn request() -> Description {
        Description {
            client: IpAddr::from([192, 0, 2, 1]),
            method: "GET".into(),
            host: "shop.example".into(),
            path: "/a".into(),
            query: Some("token=secret".into()),
            user_agent: Some("evil\r\n{\"status\":200}\u{7}\u{1b}[31m\"".into()),
            referer: None,
            wire: Wire { protocol: "HTTP/1.1", tls: None },
        }
    }

    #[test]
    fn a_line_says_what_happened() {
        let rule = RuleId { kind: "HTTPRoute", namespace: "shop".into(), name: "web".into(), rule: 2, matched: 0 };
        let verdict = Verdict { plugin: "shop/canary".into(), ruling: Ruling::Pick, generation: Some(3) };
        let ending = Ending {
            status: Some(502),
            bytes_in: 3,
            bytes_out: 4,
            duration: Duration::from_micros(1_500),
            upstream: Some("10.0.0.1:80".parse().expect("an address")),
            pod: Some("p1"),
            attempts: 2,
            verdict: Some(&verdict),
            rule: Some(&rule),
            service: Some("shop/web".into()),
            trace: None,
            flags: Flags::RETRIED.with(Flags::UPSTREAM_FAILED),
        };
        let mut plain = request();
        plain.user_agent = None;
        let time = k8s_openapi::jiff::Timestamp::from_millisecond(1_500).expect("a time");
        let text = String::from_utf8(line(time, &plain, false, &ending)).expect("UTF-8");
        let expected = concat!(
            r#"{"time":"1970-01-01T00:00:01.500Z","client":"192.0.2.1","method":"GET","host":"shop.example","path":"/a","#,
            r#""status":502,"bytes_in":3,"bytes_out":4,"duration_ms":1.5,"upstream":"10.0.0.1:80","attempts":2,"#,
            r#""plugin":"shop/canary","plugin_generation":3,"plugin_decision":"pick","#,
            r#""route":"HTTPRoute shop/web rule 2","service":"shop/web","pod_uid":"p1","protocol":"HTTP/1.1","#,
            r#""flags":["upstream_failed","retried"]}"#,
            "\n"
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn a_client_cannot_forge_a_line() {
        let time = k8s_openapi::jiff::Timestamp::UNIX_EPOCH;
        let text = String::from_utf8(line(time, &request(), true, &Ending::default())).expect("UTF-8");
        assert_eq!(text.matches('\n').count(), 1);
        assert!(!text.trim_end().chars().any(char::is_control), "{text:?}");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["user_agent"], "evil\r\n{\"status\":200}\u{7}\u{1b}[31m\"");
        assert_eq!((&value["query"], &value["status"]), (&"token=secret".into(), &serde_json::Value::Null));
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut(&"é".repeat(MAX_TEXT)).len(), MAX_TEXT);
        assert_eq!(cut(&format!("a{}", "é".repeat(MAX_TEXT))).len(), MAX_TEXT - 1);
    }
}
