//! Request heads of HTTP/2 clients: checked, then written for endpoints of either version (RFC 9113 §8.2, §8.3).
//!
//! The crate refuses what is wrong with frames, pseudo-header fields, names, and octets no field may have; this module what
//! two parsers could read differently once it is HTTP/1.1. Pure: no I/O, no clock.

use std::borrow::Cow;
use std::net::IpAddr;

use bytes::Bytes;
use h2::ext::Protocol;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, StatusCode, Uri};

use super::websocket;
use crate::config::ProxyConfig;
use crate::proxy::fields::{Field, content_length, is_host, kind, write};
use crate::proxy::path;
use crate::proxy::request::{Client, Framing, Reject, is_target_byte};
use crate::route;

/// Longest `X-Forwarded-For` or `Forwarded` value we extend; a longer one is replaced.
const MAX_FORWARDED_BYTES: usize = 4 * 1024;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// A request's head. Filters may change it before it is written.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub method: Method,
    /// As sent to the endpoint.
    pub authority: Authority,
    pub path: PathAndQuery,
    pub fields: HeaderMap,
    pub framing: Framing,
    pub expects_continue: bool,
    /// Content-type `application/grpc` or a variant of it.
    pub is_grpc: bool,
    /// An extended CONNECT for a WebSocket (RFC 8441 §5). Its method is GET here, as in HTTP/1.1.
    pub websocket: bool,
    pub client: IpAddr,
    /// The authority's host in lower case, if it is not in lower case already.
    lower: Option<Box<str>>,
}

const fn bad(reason: &'static str) -> Reject {
    Reject { status: StatusCode::BAD_REQUEST, reason }
}

impl Head {
    /// Checks a request's head; `ended`: there is no body.
    pub fn check(request: Request<()>, ended: bool, client: IpAddr, config: &ProxyConfig) -> Result<Self, Reject> {
        let (parts, ()) = request.into_parts();
        let (mut method, mut fields) = (parts.method, parts.headers);
        let websocket = method == Method::CONNECT;
        if websocket {
            check_connect(parts.extensions.get(), &fields)?;
            method = Method::GET;
        }
        if fields.len() > config.max_header_count {
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            return Err(Reject { status, reason: "the request's header is too large" });
        }
        let uri = parts.uri.into_parts();
        if uri.scheme.as_ref().is_some_and(|scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS) {
            return Err(bad("the scheme is neither http nor https"));
        }
        let path = uri.path_and_query.ok_or(bad("the path is missing"))?;
        check_path(&path, &method, config.max_uri_bytes)?;
        let authority = take_authority(uri.authority, &mut fields)?;
        let length = take_length(&fields)?;
        let framing = match (ended, length) {
            // What the client sends belongs to the tunnel.
            _ if websocket => Framing::None,
            (true, Some(1..)) => return Err(bad("the body is shorter than its Content-Length")),
            (true, _) | (false, Some(0)) => Framing::None,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::Chunked,
        };
        let mut expects_continue = false;
        for (name, value) in &fields {
            if value.as_bytes().first().is_some_and(|b| matches!(b, b' ' | b'\t'))
                || value.as_bytes().last().is_some_and(|b| matches!(b, b' ' | b'\t'))
            {
                return Err(bad("a field's value begins or ends with white space"));
            }
            if kind(name.as_str()) == Some(Field::Expect) {
                expects_continue = value.as_bytes().eq_ignore_ascii_case(b"100-continue") && !ended && !websocket;
            }
        }
        for name in [header::EXPECT, header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
            fields.remove(name);
        }
        fields.remove("http2-settings");
        if websocket {
            fields.remove(websocket::KEY);
        }
        join_cookies(&mut fields)?;
        let is_grpc = is_grpc(&fields);
        let lower = lower(&authority);
        Ok(Self { method, authority, path, fields, framing, expects_continue, is_grpc, websocket, client, lower })
    }

    /// Another receiver.
    pub fn set_authority(&mut self, authority: Authority) {
        self.lower = lower(&authority);
        self.authority = authority;
    }

    /// May be sent twice without the user noticing (RFC 9110 §9.2.2).
    pub fn is_idempotent(&self) -> bool {
        self.method.is_idempotent()
    }

    /// Says who the client is; what it claims about itself is kept only from those we trust.
    pub fn claim(&mut self, client: &Client, tls: bool) {
        let host = HeaderValue::from_str(self.authority.as_str()).ok();
        let proto = HeaderValue::from_static(if tls { "https" } else { "http" });
        let Ok(address) = HeaderValue::from_str(&client.address) else { return };
        if client.trusted {
            extend(&mut self.fields, FORWARDED_FOR, &client.address, true);
            extend(&mut self.fields, header::FORWARDED, &format!("for={}", client.node), false);
            self.fields.entry(FORWARDED_PROTO).or_insert(proto);
            if let Some(host) = host {
                self.fields.entry(FORWARDED_HOST).or_insert(host);
            }
        } else {
            self.fields.remove(header::FORWARDED);
            self.fields.insert(FORWARDED_FOR, address);
            self.fields.insert(FORWARDED_PROTO, proto);
            if let Some(host) = host {
                self.fields.insert(FORWARDED_HOST, host);
            }
        }
    }

    /// Appends the head in HTTP/1.1's form (RFC 9112 §3, §5). `key`: asks to switch to the WebSocket protocol (RFC 6455 §4.1).
    pub fn write_http1(&self, key: Option<&str>, out: &mut Vec<u8>) {
        for part in [self.method.as_str(), " ", self.path.as_str(), " HTTP/1.1\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        write(out, "host", self.authority.as_str().as_bytes());
        for (name, value) in &self.fields {
            // Framing is ours alone, whatever a filter says.
            if !matches!(kind(name.as_str()), Some(Field::Host | Field::ContentLength | Field::TransferEncoding)) {
                write(out, name.as_str(), value.as_bytes());
            }
        }
        match self.framing {
            Framing::None if self.fields.contains_key(header::CONTENT_LENGTH) || self.method == Method::POST => {
                write(out, "content-length", b"0");
            }
            Framing::None => {}
            Framing::Length(length) => write(out, "content-length", length.to_string().as_bytes()),
            Framing::Chunked | Framing::Close => write(out, "transfer-encoding", b"chunked"),
        }
        if let Some(key) = key {
            write(out, websocket::KEY.as_str(), key.as_bytes());
            write(out, "upgrade", b"websocket");
            write(out, "connection", b"upgrade");
        }
        out.extend_from_slice(b"\r\n");
    }

    /// The head in HTTP/2's form; `None` if a filter made something of it that is no URI.
    pub fn to_http2(&self, tls: bool) -> Option<Request<()>> {
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(if tls { Scheme::HTTPS } else { Scheme::HTTP });
        uri.authority = Some(self.authority.clone());
        uri.path_and_query = Some(self.path.clone());
        let mut request = Request::new(());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = Uri::from_parts(uri).ok()?;
        *request.headers_mut() = self.fields.clone();
        request.headers_mut().remove(header::HOST);
        Some(request)
    }
}

/// Whether content is gRPC's (the gRPC over HTTP/2 specification: `application/grpc`, `+proto`, `;…`).
pub(super) fn is_grpc(fields: &HeaderMap) -> bool {
    let value = fields.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    value.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

/// The host in lower case, unless it is.
fn lower(authority: &Authority) -> Option<Box<str>> {
    let host = authority.host();
    host.bytes().any(|b| b.is_ascii_uppercase()).then(|| host.to_ascii_lowercase().into())
}

impl Head {
    /// Brings the path into the one form that is matched and sent on ([`path::normalize`]).
    pub fn normalize(&mut self) -> Result<(), Reject> {
        let ambiguous = bad("the path means different things to different servers");
        let normal = match path::normalize(self.path.path()).map_err(|_| ambiguous)? {
            Cow::Borrowed(_) => return Ok(()),
            Cow::Owned(normal) => normal,
        };
        let text = match self.path.query() {
            Some(query) => format!("{normal}?{query}"),
            None => normal,
        };
        self.path = PathAndQuery::try_from(text).map_err(|_| ambiguous)?;
        Ok(())
    }
}

/// A CONNECT opens a tunnel of ours only if it asks for a WebSocket (RFC 8441 §4, §5).
fn check_connect(protocol: Option<&Protocol>, fields: &HeaderMap) -> Result<(), Reject> {
    match protocol.map(Protocol::as_str) {
        None => Err(Reject { status: StatusCode::METHOD_NOT_ALLOWED, reason: "CONNECT is not offered here" }),
        Some(protocol) if !protocol.eq_ignore_ascii_case("websocket") => {
            Err(Reject { status: StatusCode::NOT_IMPLEMENTED, reason: "only the protocol websocket is offered here" })
        }
        // RFC 9110 §9.3.6
        Some(_) if fields.contains_key(header::CONTENT_LENGTH) => Err(bad("a tunnel has no Content-Length")),
        Some(_) => Ok(()),
    }
}

fn check_path(path: &PathAndQuery, method: &Method, max_bytes: usize) -> Result<(), Reject> {
    let text = path.as_str();
    if text.len() > max_bytes {
        return Err(Reject { status: StatusCode::URI_TOO_LONG, reason: "the path is too long" });
    }
    if !(text.starts_with('/') || text == "*" && method == Method::OPTIONS) {
        return Err(bad("the path does not begin with a slash"));
    }
    if !text.bytes().all(is_target_byte) {
        return Err(bad("the path has a character that belongs in no URL"));
    }
    Ok(())
}

/// `:authority`, or `Host` without one; both must agree (RFC 9113 §8.3.1).
fn take_authority(authority: Option<Authority>, fields: &mut HeaderMap) -> Result<Authority, Reject> {
    let mut hosts = fields.get_all(header::HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(bad("more than one Host header"));
    }
    let authority = match (authority, host) {
        (None, None) => return Err(bad("neither :authority nor Host is there")),
        (Some(authority), None) => authority,
        (Some(authority), Some(host)) if host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()) => {
            authority
        }
        (Some(_), Some(_)) => return Err(bad(":authority and Host differ")),
        (None, Some(host)) => Authority::try_from(host.as_bytes()).map_err(|_| bad("the Host header is not a host"))?,
    };
    if !is_host(authority.as_str().as_bytes()) || authority.host().is_empty() {
        return Err(bad("the authority is not a host name with an optional port"));
    }
    fields.remove(header::HOST);
    Ok(authority)
}

fn take_length(fields: &HeaderMap) -> Result<Option<u64>, Reject> {
    let mut lengths = fields.get_all(header::CONTENT_LENGTH).iter();
    let (length, second) = (lengths.next(), lengths.next());
    if second.is_some() {
        return Err(bad("more than one Content-Length"));
    }
    length.map(|value| content_length(value.as_bytes()).ok_or(bad("the Content-Length is not a number"))).transpose()
}

/// Cookies may come in several fields, but only in HTTP/2 (RFC 9113 §8.2.3).
fn join_cookies(fields: &mut HeaderMap) -> Result<(), Reject> {
    let mut crumbs = fields.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else { return Ok(()) };
    let mut joined = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    let joined = HeaderValue::from_maybe_shared(Bytes::from(joined)).map_err(|_| bad("a cookie is malformed"))?;
    fields.insert(header::COOKIE, joined);
    Ok(())
}

/// Writes all values of a field as one with `element` at the end; alone, if there are none and it is `always` sent.
fn extend(fields: &mut HeaderMap, name: HeaderName, element: &str, always: bool) {
    let mut joined = Vec::new();
    for value in fields.get_all(&name) {
        joined.extend_from_slice(value.as_bytes());
        joined.extend_from_slice(b", ");
    }
    if joined.len() > MAX_FORWARDED_BYTES {
        joined.clear();
    } else if joined.is_empty() && !always {
        return;
    }
    joined.extend_from_slice(element.as_bytes());
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(joined)) {
        fields.insert(name, value);
    }
}

impl route::Head for Head {
    fn method(&self) -> &str {
        self.method.as_str()
    }

    fn host(&self) -> &str {
        self.lower.as_deref().unwrap_or_else(|| self.authority.host())
    }

    fn path(&self) -> &str {
        self.path.path()
    }

    fn query(&self) -> Option<&str> {
        self.path.query()
    }

    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        if name == "host" {
            return Some(self.authority.as_str().into());
        }
        let values = self.fields.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        crate::route::joined(name, values)
    }

    fn client(&self) -> IpAddr {
        self.client
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::Head as _;

    fn head(method: &str, uri: &str, fields: &[(&str, &str)], ended: bool) -> Result<Head, Reject> {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let config = ProxyConfig { max_uri_bytes: 100, ..ProxyConfig::default() };
        Head::check(request.body(()).expect("a request"), ended, IpAddr::from([192, 0, 2, 7]), &config)
    }

    #[track_caller]
    fn check(method: &str, uri: &str, fields: &[(&str, &str)], ended: bool, status: u16) {
        let got = head(method, uri, fields, ended).err().map_or(200, |reject| reject.status.as_u16());
        assert_eq!(got, status, "{method} {uri} {fields:?}");
    }

    #[track_caller]
    fn written(head: &Head, expected: &str) {
        let mut out = Vec::new();
        head.write_http1(None, &mut out);
        assert_eq!(String::from_utf8_lossy(&out).replace("\r\n", "\n"), expected);
    }

    #[test]
    fn repeated_fields_are_joined_and_so_are_the_parts_of_a_cookie_field() {
        let fields = [("x-a", "1"), ("cookie", "a=1"), ("x-a", "2"), ("cookie", "b=2")];
        let head = head("GET", "http://a/", &fields, true).expect("a good head");
        assert_eq!(head.header("x-a").as_deref(), Some("1, 2"));
        assert_eq!(head.header("cookie").as_deref(), Some("a=1; b=2"), "RFC 9113 §8.2.3");
    }

    #[test]
    fn heads_are_refused_that_would_be_read_in_two_ways() {
        check("GET", "http://a/", &[], true, 200);
        check("GET", "http://a/", &[("host", "A")], true, 200);
        check("OPTIONS", "*", &[("host", "a")], true, 200);
        for (method, uri, fields, ended, status) in [
            ("GET", "http://a/", &[("host", "b")][..], true, 400),
            ("GET", "/", &[], true, 400),
            ("GET", "/", &[("host", "a"), ("host", "a")], true, 400),
            ("GET", "/", &[("host", "a/b")], true, 400),
            ("GET", "http://u@a/", &[], true, 400),
            ("GET", "*", &[("host", "a")], true, 400),
            ("GET", "ftp://a/", &[], true, 400),
            ("POST", "http://a/", &[("content-length", "4"), ("content-length", "4")], false, 400),
            ("POST", "http://a/", &[("content-length", "+4")], false, 400),
            ("POST", "http://a/", &[("content-length", "4, 4")], false, 400),
            ("POST", "http://a/", &[("content-length", "4")], true, 400),
            ("GET", "http://a/", &[("x", " y")], true, 400),
            ("GET", "http://a/", &[("x", "y\t")], true, 400),
            ("CONNECT", "a:80", &[], false, 405),
        ] {
            check(method, uri, fields, ended, status);
        }
        check("GET", &format!("http://a/{}", "x".repeat(100)), &[], true, 414);
        let many: Vec<_> = (0..101).map(|_| ("x", "y")).collect();
        check("GET", "http://a/", &many, true, 431);
    }

    #[test]
    fn http1_gets_one_framing_one_host_and_one_cookie() {
        let fields = [
            ("cookie", "a=1"),
            ("x", "y"),
            ("cookie", "b=2"),
            ("te", "trailers"),
            ("content-length", "4"),
            ("expect", "100-continue"),
        ];
        let request = head("POST", "http://A.example:81/p?q=1", &fields, false).expect("a good head");
        assert!(request.expects_continue && request.host() == "a.example");
        written(
            &request,
            "POST /p?q=1 HTTP/1.1\nhost: A.example:81\ncookie: a=1; b=2\nx: y\nte: trailers\ncontent-length: 4\n\n",
        );
        let unknown = head("POST", "http://a/", &[], false).expect("a good head");
        written(&unknown, "POST / HTTP/1.1\nhost: a\ntransfer-encoding: chunked\n\n");
        let empty = head("POST", "http://a/", &[], true).expect("a good head");
        written(&empty, "POST / HTTP/1.1\nhost: a\ncontent-length: 0\n\n");
    }

    #[test]
    fn claims_of_strangers_are_replaced_and_those_of_friends_extended() {
        let fields = [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-proto", "https"), ("forwarded", "for=6.6.6.6")];
        let client = |trusted| Client::new(IpAddr::from([192, 0, 2, 7]), trusted, false);
        for (trusted, expected) in [
            (false, "x-forwarded-for: 192.0.2.7\nx-forwarded-proto: http\nx-forwarded-host: a\n"),
            (
                true,
                "x-forwarded-for: 6.6.6.6, 192.0.2.7\nx-forwarded-proto: https\nforwarded: for=6.6.6.6, for=192.0.2.7\n\
                 x-forwarded-host: a\n",
            ),
        ] {
            let mut request = head("GET", "http://a/", &fields, true).expect("a good head");
            request.claim(&client(trusted), false);
            written(&request, &format!("GET / HTTP/1.1\nhost: a\n{expected}\n"));
        }
    }

    #[test]
    fn grpc_is_known_by_its_content_type() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;x", true),
            ("application/grpc-web", false),
            ("text/plain", false),
        ] {
            let head = head("POST", "http://a/", &[("content-type", value)], true).expect("a good head");
            assert_eq!(head.is_grpc, expected, "{value}");
        }
    }
}
