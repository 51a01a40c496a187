//! Request heads: parsed, checked and written in the form that goes upstream (RFC 9110 §7, RFC 9112).
//!
//! Pure: no I/O, no clock. What two parsers could read differently is refused: a proxy must not pass on a message that
//! whoever stands behind it may frame in another way. Heads are not kept; [`parse`] writes the new one at once.

use std::mem::MaybeUninit;

use http::uri::Scheme;
use http::{StatusCode, Uri};
use httparse::Header;

use super::fields::{self, Field, Options, content_length, is_host, is_named, kind, write};
use crate::config::ProxyConfig;

/// Most header fields a request can have, whatever is configured.
const MAX_FIELDS: usize = 128;
/// Names that `Connection` may list beside the usual ones; each costs a comparison per field.
const MAX_NAMED: usize = 16;
/// Longest `X-Forwarded-For` or `Forwarded` value we extend; a longer one is replaced.
const MAX_FORWARDED_BYTES: usize = 4 * 1024;
/// How an HTTP/2 connection without negotiation begins (RFC 9113 §3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";

/// Why a request was refused: status and a text for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reject {
    pub status: StatusCode,
    pub reason: &'static str,
}

const fn bad(reason: &'static str) -> Reject {
    Reject { status: StatusCode::BAD_REQUEST, reason }
}

const TOO_LARGE: Reject =
    Reject { status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, reason: "the request's header is too large" };

/// How a message's body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is none.
    None,
    /// After this many bytes (not 0).
    Length(u64),
    Chunked,
    /// With the connection (responses only).
    Close,
}

/// What is left to know of a request once its new head is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// Bytes of the head as received.
    pub length: usize,
    pub framing: Framing,
    /// The client speaks HTTP/1.0.
    pub http10: bool,
    /// The response has no body, whatever its head says.
    pub is_head: bool,
    /// May be sent twice without the user noticing (RFC 9110 §9.2.2).
    pub idempotent: bool,
    /// Asks to switch to another protocol that we tunnel.
    pub upgrade: bool,
    pub expects_continue: bool,
    /// The client wants to send more requests on its connection.
    pub keep_alive: bool,
}

/// Result of [`parse`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// More bytes are needed.
    Partial,
    Complete(Request),
    Refused(Reject),
    /// The client speaks HTTP/2, for which there is no answer it would understand.
    Http2,
}

/// Facts about the client connection that forwarded headers tell.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// The client's address as text.
    pub address: String,
    /// The address as a `Forwarded` node identifier (IPv6 bracketed and quoted).
    pub node: String,
    /// Keep what the client says about earlier hops.
    pub trusted: bool,
}

/// Reads a head at the front of `bytes` and writes the one for the endpoint to `out` (replacing what is there).
/// `fallback_host` names the Service for HTTP/1.0 requests without `Host`.
pub(crate) fn parse(
    bytes: &[u8],
    config: &ProxyConfig,
    client: &Client,
    fallback_host: impl FnOnce() -> String,
    out: &mut Vec<u8>,
) -> Parsed {
    let mut memory = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let limit = config.max_header_count.min(MAX_FIELDS);
    let mut head = httparse::Request::new(&mut []);
    let length = match head.parse_with_uninit_headers(bytes, &mut memory[..limit]) {
        Ok(httparse::Status::Complete(length)) if length <= config.max_header_bytes => length,
        Ok(httparse::Status::Partial) if bytes.len() < config.max_header_bytes => return Parsed::Partial,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Parsed::Refused(TOO_LARGE),
        Err(_) if bytes.starts_with(HTTP2_PREFACE) => return Parsed::Http2,
        Err(_) => return Parsed::Refused(bad("the request is malformed")),
    };
    if fields::has_bare_line_feed(&bytes[..length]) {
        return Parsed::Refused(bad("a line of the request ends in a bare line feed"));
    }
    let (Some(method), Some(target), Some(version)) = (head.method, head.path, head.version) else {
        return Parsed::Partial;
    };
    let head = Head { method, target, http10: version == 0, fields: head.headers };
    match head.rewrite(length, config, client, fallback_host, out) {
        Ok(request) => Parsed::Complete(request),
        Err(reject) => Parsed::Refused(reject),
    }
}

struct Head<'a> {
    method: &'a str,
    target: &'a str,
    http10: bool,
    fields: &'a [Header<'a>],
}

/// What the known fields of a head say.
#[derive(Default)]
struct Facts<'a> {
    host: Option<&'a [u8]>,
    length: Option<u64>,
    chunked: bool,
    options: Options,
    upgrade: Option<&'a [u8]>,
    expects_continue: bool,
    trailers: bool,
}

impl<'a> Head<'a> {
    fn rewrite(
        &self,
        length: usize,
        config: &ProxyConfig,
        client: &Client,
        fallback_host: impl FnOnce() -> String,
        out: &mut Vec<u8>,
    ) -> Result<Request, Reject> {
        let facts = self.facts()?;
        let (path, authority) = self.target(config.max_uri_bytes)?;
        let framing = match (facts.chunked, facts.length) {
            (true, _) => Framing::Chunked,
            (false, Some(length @ 1..)) => Framing::Length(length),
            (false, _) => Framing::None,
        };
        let fallback;
        // Absolute form: its authority is the host, whatever the Host header says (RFC 9112 §3.2.2).
        let host = match (authority.as_deref().map(str::as_bytes), facts.host) {
            (Some(host), _) | (None, Some(host)) => host,
            (None, None) => {
                fallback = fallback_host();
                fallback.as_bytes()
            }
        };
        let upgrade = facts.upgrade.filter(|protocol| {
            // Behind a proxy, h2c would let requests pass unseen.
            facts.options.upgrade && framing == Framing::None && !protocol.eq_ignore_ascii_case(b"h2c")
        });
        out.clear();
        for part in [self.method, " ", &path, " HTTP/1.1\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        write(out, "host", host);
        self.write_fields(&facts, client.trusted, out);
        if facts.trailers {
            write(out, "te", b"trailers");
        }
        if let Some(protocol) = upgrade {
            write(out, "upgrade", protocol);
            write(out, "connection", b"upgrade");
        }
        if facts.chunked {
            write(out, "transfer-encoding", b"chunked");
        }
        if client.trusted {
            self.extend_claims(host, client, out)
        } else {
            replace_claims(host, client, out)
        };
        out.extend_from_slice(b"\r\n");
        Ok(Request {
            length,
            framing,
            http10: self.http10,
            is_head: self.method == "HEAD",
            idempotent: matches!(self.method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE"),
            upgrade: upgrade.is_some(),
            expects_continue: facts.expects_continue && framing != Framing::None && !self.http10,
            keep_alive: !facts.options.close && (!self.http10 || facts.options.keep_alive),
        })
    }

    fn facts(&self) -> Result<Facts<'a>, Reject> {
        let mut facts = Facts::default();
        for field in self.fields {
            match kind(field.name) {
                Some(Field::Host) => {
                    if facts.host.replace(field.value).is_some() {
                        return Err(bad("more than one Host header"));
                    }
                    if !is_host(field.value) {
                        return Err(bad("the Host header is not a host name with an optional port"));
                    }
                }
                Some(Field::ContentLength) => {
                    let length = content_length(field.value).ok_or(bad("the Content-Length is not a number"))?;
                    if facts.length.replace(length).is_some() {
                        return Err(bad("more than one Content-Length"));
                    }
                }
                Some(Field::TransferEncoding) => {
                    if facts.chunked || !field.value.eq_ignore_ascii_case(b"chunked") {
                        return Err(bad("the only transfer coding accepted is a single \"chunked\""));
                    }
                    facts.chunked = true;
                }
                Some(Field::Connection) => facts.options.read(field.value),
                Some(Field::Upgrade) => facts.upgrade = Some(field.value),
                Some(Field::Expect) => facts.expects_continue = field.value.eq_ignore_ascii_case(b"100-continue"),
                Some(Field::Te) => facts.trailers = field.value.eq_ignore_ascii_case(b"trailers"),
                _ => {}
            }
        }
        if facts.host.is_none() && !self.http10 {
            return Err(bad("the Host header is missing"));
        }
        if facts.chunked && self.http10 {
            return Err(bad("a client this old cannot use transfer codings"));
        }
        if facts.chunked && facts.length.is_some() {
            return Err(bad("Content-Length and Transfer-Encoding exclude each other"));
        }
        if facts.options.named > 0 {
            self.check_named(facts.options.named)?;
        }
        Ok(facts)
    }

    fn check_named(&self, count: usize) -> Result<(), Reject> {
        if count > MAX_NAMED {
            return Err(bad("Connection names too many headers"));
        }
        if ["host", "content-length", "transfer-encoding"].iter().any(|name| is_named(self.fields, name)) {
            return Err(bad("Connection names a header that is not hop-by-hop"));
        }
        Ok(())
    }

    /// The target as sent upstream, and the authority of an absolute one.
    fn target(&self, max_bytes: usize) -> Result<(std::borrow::Cow<'a, str>, Option<String>), Reject> {
        if self.method == "CONNECT" {
            return Err(Reject { status: StatusCode::METHOD_NOT_ALLOWED, reason: "CONNECT is not offered here" });
        }
        if self.target.len() > max_bytes {
            return Err(Reject { status: StatusCode::URI_TOO_LONG, reason: "the request target is too long" });
        }
        if !self.target.bytes().all(is_target_byte) {
            return Err(bad("the request target has a character that belongs in no URL"));
        }
        if self.target.starts_with('/') || (self.target == "*" && self.method == "OPTIONS") {
            return Ok((self.target.into(), None));
        }
        let neither = bad("the request target is neither a path nor an http URL");
        let uri: Uri = self.target.parse().map_err(|_| neither)?;
        let http = uri.scheme().is_some_and(|scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS);
        let authority = uri.authority().filter(|_| http).ok_or(neither)?.as_str();
        if !is_host(authority.as_bytes()) {
            return Err(bad("the request target carries more than a host and a port"));
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok((path.into(), Some(authority.to_owned())))
    }

    /// The fields that pass: neither this hop's own (RFC 9110 §7.6.1) nor those written anew.
    fn write_fields(&self, facts: &Facts<'_>, trusted: bool, out: &mut Vec<u8>) {
        for field in self.fields {
            let passes = match kind(field.name) {
                None => facts.options.named == 0 || !is_named(self.fields, field.name),
                Some(Field::ContentLength) => true,
                Some(Field::ForwardedHost | Field::ForwardedProto) => trusted,
                Some(_) => false,
            };
            if passes {
                write(out, field.name, field.value);
            }
        }
    }

    /// Adds us to what earlier hops said.
    fn extend_claims(&self, host: &[u8], client: &Client, out: &mut Vec<u8>) {
        self.append(Field::ForwardedFor, "x-forwarded-for", client.address.as_bytes(), true, out);
        self.append(Field::Forwarded, "forwarded", format!("for={}", client.node).as_bytes(), false, out);
        let has = |wanted: Field| self.fields.iter().any(|field| kind(field.name) == Some(wanted));
        if !has(Field::ForwardedProto) {
            write(out, "x-forwarded-proto", b"http");
        }
        if !has(Field::ForwardedHost) {
            write(out, "x-forwarded-host", host);
        }
    }

    /// Writes all values of a field as one with `element` at the end; alone, if there are none and it is `always` sent.
    fn append(&self, wanted: Field, name: &str, element: &[u8], always: bool, out: &mut Vec<u8>) {
        let mut joined = Vec::new();
        for field in self.fields.iter().filter(|field| kind(field.name) == Some(wanted)) {
            joined.extend_from_slice(field.value);
            joined.extend_from_slice(b", ");
        }
        if joined.len() > MAX_FORWARDED_BYTES {
            joined.clear();
        } else if joined.is_empty() && !always {
            return;
        }
        joined.extend_from_slice(element);
        write(out, name, &joined);
    }
}

/// Says who the client is; what it claims about itself has been dropped.
fn replace_claims(host: &[u8], client: &Client, out: &mut Vec<u8>) {
    write(out, "x-forwarded-for", client.address.as_bytes());
    write(out, "x-forwarded-proto", b"http");
    write(out, "x-forwarded-host", host);
}

/// Bytes of a path or query that endpoints see as sent. Beyond RFC 3986 those that browsers send unescaped; no fragment.
pub(crate) fn is_target_byte(byte: u8) -> bool {
    matches!(byte, b'!' | b'"' | b'$'..=b';' | b'=' | b'?'..=b'_' | b'a'..=b'~' | 0x80..)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(trusted: bool) -> Client {
        Client { address: "192.0.2.1".to_owned(), node: "192.0.2.1".to_owned(), trusted }
    }

    fn run(text: &str, trusted: bool) -> (Parsed, String) {
        let config = ProxyConfig { max_uri_bytes: 100, ..ProxyConfig::default() };
        let mut out = Vec::new();
        let parsed = parse(text.as_bytes(), &config, &client(trusted), || "web.d".to_owned(), &mut out);
        (parsed, String::from_utf8_lossy(&out).into_owned())
    }

    fn text(method: &str, target: &str, headers: &[(&str, &str)]) -> String {
        let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!("{method} {target} HTTP/1.1\r\n{lines}\r\n")
    }

    #[track_caller]
    fn check(method: &str, target: &str, headers: &[(&str, &str)], status: u16) {
        let got = match run(&text(method, target, headers), false).0 {
            Parsed::Complete(_) => 200,
            Parsed::Refused(reject) => reject.status.as_u16(),
            other => panic!("{other:?}"),
        };
        assert_eq!(got, status, "{method} {target} {headers:?}");
    }

    #[test]
    fn framing_and_host_are_unambiguous() {
        check("GET", "/", &[("host", "a")], 200);
        check("GET", "/", &[("host", "[::1]:80")], 200);
        check("GET", "/", &[], 400);
        check("GET", "/", &[("host", "a"), ("host", "a")], 400);
        for host in ["", "a b", "a/b", "u@a", "a,b", "a\tb"] {
            check("GET", "/", &[("host", host)], 400);
        }
        let te = "transfer-encoding";
        check("POST", "/", &[("host", "a"), (te, "chunked")], 200);
        check("POST", "/", &[("host", "a"), (te, "Chunked")], 200);
        for coding in ["gzip, chunked", "chunked, chunked", "identity, chunked", "xchunked", "\"chunked\"", ""] {
            check("POST", "/", &[("host", "a"), (te, coding)], 400);
        }
        check("POST", "/", &[("host", "a"), (te, "chunked"), (te, "chunked")], 400);
        check("POST", "/", &[("host", "a"), (te, "chunked"), ("content-length", "1")], 400);
        check("POST", "/", &[("host", "a"), ("content-length", "1"), ("content-length", "1")], 400);
        check("POST", "/", &[("host", "a"), ("connection", "close, Content-Length")], 400);
        check("GET", "/", &[("host", "a"), ("connection", "host")], 400);
        check("GET", "/", &[("host", "a"), ("connection", &"x,".repeat(MAX_NAMED + 1))], 400);
    }

    #[test]
    fn targets_are_paths_or_http_urls() {
        let host = [("host", "a")];
        check("GET", "http://b/x", &host, 200);
        check("GET", "/a?b={c}&d=%20[e]|f", &host, 200);
        check("OPTIONS", "*", &host, 200);
        check("GET", "*", &host, 400);
        check("GET", "ftp://b/x", &host, 400);
        check("GET", "http://u:p@b/x", &host, 400);
        check("GET", "/a#b", &host, 400);
        check("GET", "/a<b>", &host, 400);
        check("CONNECT", "b:443", &host, 405);
        check("GET", &format!("/{}", "x".repeat(100)), &host, 414);
    }

    /// Request line and sorted field lines as sent upstream.
    fn forwarded(trusted: bool, target: &str, headers: &[(&str, &str)]) -> (String, Vec<String>) {
        let (parsed, out) = run(&text("GET", target, headers), trusted);
        assert!(matches!(parsed, Parsed::Complete(_)), "{parsed:?}");
        let mut lines = out.strip_suffix("\r\n\r\n").expect("an end").split("\r\n").map(str::to_owned);
        let first = lines.next().expect("a request line");
        let mut rest: Vec<String> = lines.collect();
        rest.sort();
        (first, rest)
    }

    const OURS: [&str; 4] = ["host: a", "x-forwarded-for: 192.0.2.1", "x-forwarded-host: a", "x-forwarded-proto: http"];

    #[test]
    fn hop_by_hop_headers_end_here_and_claims_of_strangers_are_replaced() {
        let (_, got) = forwarded(
            false,
            "/",
            &[
                ("Host", "a"),
                ("Connection", "keep-alive, x-secret"),
                ("X-Secret", "1"),
                ("keep-alive", "5"),
                ("proxy-connection", "x"),
                ("te", "gzip"),
                ("upgrade", "h2c"),
                ("http2-settings", "x"),
                ("expect", "100-continue"),
                ("forwarded", "for=evil"),
                ("X-Forwarded-For", "203.0.113.9"),
                ("x-forwarded-proto", "https"),
            ],
        );
        assert_eq!(got, OURS);
    }

    #[test]
    fn trusted_claims_are_extended() {
        let (_, got) = forwarded(
            true,
            "/",
            &[
                ("host", "a"),
                ("forwarded", "for=x"),
                ("x-forwarded-for", "203.0.113.9"),
                ("x-forwarded-for", "203.0.113.8"),
                ("x-forwarded-proto", "https"),
            ],
        );
        let expected = [
            "forwarded: for=x, for=192.0.2.1",
            "host: a",
            "x-forwarded-for: 203.0.113.9, 203.0.113.8, 192.0.2.1",
            "x-forwarded-host: a",
            "x-forwarded-proto: https",
        ];
        assert_eq!(got, expected);
        assert_eq!(forwarded(true, "/", &[("host", "a")]).1, OURS);
    }

    #[test]
    fn upgrades_and_trailers_survive() {
        let headers = [("host", "a"), ("connection", "Upgrade"), ("upgrade", "websocket"), ("te", "trailers")];
        let (_, got) = forwarded(false, "/", &headers);
        for expected in ["connection: upgrade", "upgrade: websocket", "te: trailers"] {
            assert!(got.iter().any(|line| line == expected), "{expected} in {got:?}");
        }
    }

    #[test]
    fn absolute_targets_decide_the_host() {
        let (line, got) = forwarded(false, "http://b:81/x?y", &[("host", "a")]);
        assert_eq!(line, "GET /x?y HTTP/1.1");
        assert!(got.contains(&"host: b:81".to_owned()));
        assert_eq!(forwarded(false, "http://b", &[("host", "a")]).0, "GET / HTTP/1.1");
    }

    #[test]
    fn only_real_upgrade_requests_are_tunnelled() {
        let check = |headers: &[(&str, &str)], expected| {
            let mut all = vec![("host", "a")];
            all.extend_from_slice(headers);
            let Parsed::Complete(request) = run(&text("GET", "/", &all), false).0 else { panic!("{headers:?}") };
            assert_eq!(request.upgrade, expected, "{headers:?}");
        };
        check(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")], true);
        check(&[("upgrade", "websocket")], false);
        check(&[("connection", "upgrade"), ("upgrade", "h2c")], false);
        check(&[("connection", "upgrade")], false);
        check(&[("connection", "upgrade"), ("upgrade", "websocket"), ("content-length", "1")], false);
    }

    #[test]
    fn old_clients_may_leave_out_the_host_and_ask_for_keep_alive() {
        let (parsed, out) = run("GET / HTTP/1.0\r\n\r\n", false);
        assert!(matches!(parsed, Parsed::Complete(Request { http10: true, keep_alive: false, .. })), "{parsed:?}");
        assert!(out.starts_with("GET / HTTP/1.1\r\nhost: web.d\r\n"), "{out}");
        let (parsed, _) = run("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", false);
        assert!(matches!(parsed, Parsed::Complete(Request { keep_alive: true, .. })), "{parsed:?}");
    }
}
