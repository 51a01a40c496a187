//! Which requests are refused, and how headers change on their way through (RFC 9110 §7, RFC 9112 §6).
//!
//! Pure: no I/O, no clock. hyper has already refused what does not parse (bad tokens, bad chunk sizes, obsolete line
//! folding, spaces before colons, differing lengths); here is refused what parses but may be read differently upstream.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Scheme};
use http::{Method, StatusCode, Uri, Version, request};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Longest `X-Forwarded-For` or `Forwarded` value we extend; a longer one is replaced.
const MAX_FORWARDED_BYTES: usize = 4 * 1024;

/// Why a request was refused: status and a text for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reject {
    pub status: StatusCode,
    pub reason: &'static str,
}

const fn bad(reason: &'static str) -> Reject {
    Reject { status: StatusCode::BAD_REQUEST, reason }
}

/// Refuses what must not be forwarded.
pub(crate) fn check_request(head: &request::Parts, max_uri_bytes: usize) -> Result<(), Reject> {
    if head.method == Method::CONNECT {
        return Err(Reject { status: StatusCode::METHOD_NOT_ALLOWED, reason: "CONNECT is not offered here" });
    }
    check_target(&head.method, &head.uri, max_uri_bytes)?;
    check_host(head)?;
    if head.headers.contains_key(header::TRANSFER_ENCODING) {
        let mut codings = head.headers.get_all(header::TRANSFER_ENCODING).iter();
        let only_chunked = codings.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"chunked"));
        if !only_chunked || codings.next().is_some() {
            return Err(bad("the only transfer coding accepted is a single \"chunked\""));
        }
        if head.headers.contains_key(header::CONTENT_LENGTH) {
            return Err(bad("Content-Length and Transfer-Encoding exclude each other"));
        }
    }
    for token in connection_tokens(&head.headers) {
        let framing = ["host", "content-length", "transfer-encoding"];
        if framing.iter().any(|name| token.eq_ignore_ascii_case(name.as_bytes())) {
            return Err(bad("Connection names a header that is not hop-by-hop"));
        }
    }
    Ok(())
}

fn check_target(method: &Method, uri: &Uri, max_uri_bytes: usize) -> Result<(), Reject> {
    let path = uri.path_and_query().map_or("", PathAndQuery::as_str);
    if path.len() > max_uri_bytes {
        return Err(Reject { status: StatusCode::URI_TOO_LONG, reason: "the request target is too long" });
    }
    let scheme_ok = uri.scheme().is_none_or(|scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS);
    let asterisk = path == "*" && method == Method::OPTIONS && uri.authority().is_none();
    if !scheme_ok || (uri.authority().is_some() && uri.scheme().is_none()) || !(path.starts_with('/') || asterisk) {
        return Err(bad("the request target is neither a path nor an http URL"));
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(bad("the request target carries user information"));
    }
    Ok(())
}

fn check_host(head: &request::Parts) -> Result<(), Reject> {
    let mut hosts = head.headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if head.version >= Version::HTTP_11 => Err(bad("the Host header is missing")),
        (None, _) => Ok(()),
        (Some(_), Some(_)) => Err(bad("more than one Host header")),
        (Some(host), None) if is_host(host.as_bytes()) => Ok(()),
        (Some(_), None) => Err(bad("the Host header is not a host name with an optional port")),
    }
}

/// A registered name, IPv4 address or bracketed IPv6 address, with an optional port (RFC 3986 §3.2.2, without the
/// sub-delimiters that no host name has).
fn is_host(host: &[u8]) -> bool {
    let plain =
        |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'~' | b'%' | b':' | b'[' | b']');
    !host.is_empty() && host.iter().all(plain)
}

/// Lower- or mixed-case tokens of all `Connection` headers.
fn connection_tokens(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let values = headers.get_all(header::CONNECTION).iter();
    values.flat_map(|value| value.as_bytes().split(|b| *b == b',')).map(<[u8]>::trim_ascii)
}

/// Whether the client asks to switch to another protocol that we tunnel. `h2c` is not: behind a proxy it would let
/// requests pass unseen.
pub(crate) fn wants_upgrade(headers: &HeaderMap) -> bool {
    let Some(protocol) = headers.get(header::UPGRADE) else { return false };
    !protocol.as_bytes().eq_ignore_ascii_case(b"h2c")
        && connection_tokens(headers).any(|token| token.eq_ignore_ascii_case(b"upgrade"))
}

/// Facts about the client connection that forwarded headers tell.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// The client's address as text.
    pub address: HeaderValue,
    /// The address as a `Forwarded` node identifier (IPv6 bracketed and quoted).
    pub node: String,
    /// Keep what the client says about earlier hops.
    pub trusted: bool,
}

/// Turns the client's head into the one sent upstream.
pub(crate) fn to_upstream(head: &mut request::Parts, client: &Client, upgrade: bool, fallback_host: &HeaderValue) {
    if let Some(authority) = head.uri.authority()
        // Absolute form: its authority is the host, whatever the Host header says (RFC 9112 §3.2.2).
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        head.headers.insert(header::HOST, host);
    } else if !head.headers.contains_key(header::HOST) {
        head.headers.insert(header::HOST, fallback_host.clone());
    }
    if head.uri.scheme().is_some() {
        head.uri = head.uri.path_and_query().cloned().map(Uri::from).unwrap_or_default();
    }
    head.version = Version::HTTP_11;
    let upgrade_to = if upgrade { head.headers.get(header::UPGRADE).cloned() } else { None };
    let trailers = head.headers.get(header::TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    remove_hop_by_hop(&mut head.headers);
    head.headers.remove(header::EXPECT);
    head.headers.remove(HTTP2_SETTINGS);
    if trailers {
        head.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocol) = upgrade_to {
        head.headers.insert(header::UPGRADE, protocol);
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    set_forwarded(&mut head.headers, client);
}

fn set_forwarded(headers: &mut HeaderMap, client: &Client) {
    let host = headers.get(header::HOST).cloned();
    if !client.trusted {
        headers.remove(header::FORWARDED);
        headers.insert(X_FORWARDED_FOR, client.address.clone());
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
        host.map(|host| headers.insert(X_FORWARDED_HOST, host));
        return;
    }
    if !append(headers, &X_FORWARDED_FOR, client.address.as_bytes()) {
        headers.insert(X_FORWARDED_FOR, client.address.clone());
    }
    if headers.contains_key(header::FORWARDED) {
        append(headers, &header::FORWARDED, format!("for={}", client.node).as_bytes());
    }
    headers.entry(X_FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
    if let Some(host) = host {
        headers.entry(X_FORWARDED_HOST).or_insert(host);
    }
}

/// Appends to a comma-separated header that is present; false when there is none to extend.
fn append(headers: &mut HeaderMap, name: &HeaderName, element: &[u8]) -> bool {
    let mut joined = Vec::new();
    for value in headers.get_all(name) {
        joined.extend_from_slice(value.as_bytes());
        joined.extend_from_slice(b", ");
    }
    if joined.is_empty() || joined.len() > MAX_FORWARDED_BYTES {
        return false;
    }
    joined.extend_from_slice(element);
    HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)).is_ok_and(|value| headers.insert(name, value).is_some())
}

/// Turns an endpoint's response head into the one sent to the client; `switched` for a 101 that is tunnelled.
pub(crate) fn to_client(headers: &mut HeaderMap, switched: bool) {
    // A length beside a transfer coding is void (RFC 9112 §6.3) and must not reach the client.
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    let upgrade_to = if switched { headers.remove(header::UPGRADE) } else { None };
    remove_hop_by_hop(headers);
    if let Some(protocol) = upgrade_to {
        headers.insert(header::UPGRADE, protocol);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// Removes the connection's own headers and those it names (RFC 9110 §7.6.1). One pass finds what is there, so that a
/// message without any costs no lookups.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let mut found = [false; HOP_BY_HOP_COUNT];
    for name in headers.keys() {
        if let Some(index) = HOP_BY_HOP.iter().position(|hop| hop == name) {
            found[index] = true;
        }
    }
    if found[0] {
        let standard = |token: &[u8]| {
            [&b"close"[..], b"keep-alive", b"upgrade"].iter().any(|known| token.eq_ignore_ascii_case(known))
        };
        let tokens = connection_tokens(headers).filter(|token| !standard(token));
        let named: Vec<HeaderName> = tokens.filter_map(|token| HeaderName::from_bytes(token).ok()).collect();
        named.into_iter().for_each(|name| {
            headers.remove(name);
        });
    }
    for (name, found) in HOP_BY_HOP.iter().zip(found) {
        if found {
            headers.remove(name);
        }
    }
}

const HOP_BY_HOP_COUNT: usize = 6;
/// `Connection` first.
static HOP_BY_HOP: [HeaderName; HOP_BY_HOP_COUNT] =
    [header::CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, header::TE, header::TRANSFER_ENCODING, header::UPGRADE];

/// Whether a request may be sent twice without the user noticing (RFC 9110 §9.2.2).
pub(crate) fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn head(method: &str, uri: &str, headers: &[(&str, &str)]) -> request::Parts {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    #[track_caller]
    fn check(method: &str, uri: &str, headers: &[(&str, &str)], status: u16) {
        let got =
            check_request(&head(method, uri, headers), 100).map_or_else(|reject| reject.status.as_u16(), |()| 200);
        assert_eq!(got, status, "{method} {uri} {headers:?}");
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
        for coding in ["gzip, chunked", "chunked, chunked", "identity, chunked", "xchunked", "\"chunked\""] {
            check("POST", "/", &[("host", "a"), (te, coding)], 400);
        }
        check("POST", "/", &[("host", "a"), (te, "chunked"), (te, "chunked")], 400);
        check("POST", "/", &[("host", "a"), (te, "chunked"), ("content-length", "1")], 400);
        check("POST", "/", &[("host", "a"), ("connection", "close, Content-Length")], 400);
        check("GET", "/", &[("host", "a"), ("connection", "host")], 400);
    }

    #[test]
    fn targets_are_paths_or_http_urls() {
        let host = [("host", "a")];
        check("GET", "http://b/x", &host, 200);
        check("OPTIONS", "*", &host, 200);
        check("GET", "*", &host, 400);
        check("GET", "ftp://b/x", &host, 400);
        check("GET", "http://u:p@b/x", &host, 400);
        check("CONNECT", "b:443", &host, 405);
        check("GET", &format!("/{}", "x".repeat(100)), &host, 414);
    }

    fn client(trusted: bool) -> Client {
        Client { address: HeaderValue::from_static("192.0.2.1"), node: "192.0.2.1".to_owned(), trusted }
    }

    fn forwarded(trusted: bool, upgrade: bool, uri: &str, headers: &[(&str, &str)]) -> (String, Vec<(String, String)>) {
        let mut head = head("GET", uri, headers);
        to_upstream(&mut head, &client(trusted), upgrade, &HeaderValue::from_static("web.d"));
        let mut all: Vec<(String, String)> = head
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().expect("text").to_owned()))
            .collect();
        all.sort();
        (head.uri.to_string(), all)
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    const OURS: [(&str, &str); 4] =
        [("host", "a"), ("x-forwarded-for", "192.0.2.1"), ("x-forwarded-host", "a"), ("x-forwarded-proto", "http")];

    #[test]
    fn hop_by_hop_headers_end_here_and_claims_of_strangers_are_replaced() {
        let (_, got) = forwarded(
            false,
            false,
            "/",
            &[
                ("host", "a"),
                ("connection", "keep-alive, x-secret"),
                ("x-secret", "1"),
                ("keep-alive", "5"),
                ("proxy-connection", "x"),
                ("te", "gzip"),
                ("upgrade", "h2c"),
                ("http2-settings", "x"),
                ("expect", "100-continue"),
                ("forwarded", "for=evil"),
                ("x-forwarded-for", "203.0.113.9"),
                ("x-forwarded-proto", "https"),
            ],
        );
        assert_eq!(got, pairs(&OURS));
    }

    #[test]
    fn trusted_claims_are_extended() {
        let (_, got) = forwarded(
            true,
            false,
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
            ("forwarded", "for=x, for=192.0.2.1"),
            ("host", "a"),
            ("x-forwarded-for", "203.0.113.9, 203.0.113.8, 192.0.2.1"),
            ("x-forwarded-host", "a"),
            ("x-forwarded-proto", "https"),
        ];
        assert_eq!(got, pairs(&expected));
        assert_eq!(forwarded(true, false, "/", &[("host", "a")]).1, pairs(&OURS));
    }

    #[test]
    fn upgrades_and_trailers_survive() {
        let (_, got) = forwarded(
            false,
            true,
            "/",
            &[("host", "a"), ("connection", "Upgrade"), ("upgrade", "websocket"), ("te", "trailers")],
        );
        for expected in [("connection", "upgrade"), ("upgrade", "websocket"), ("te", "trailers")] {
            assert!(got.contains(&(expected.0.to_owned(), expected.1.to_owned())), "{expected:?} in {got:?}");
        }
    }

    #[test]
    fn absolute_targets_decide_the_host() {
        let (uri, got) = forwarded(false, false, "http://b:81/x?y", &[("host", "a")]);
        assert_eq!(uri, "/x?y");
        assert!(got.contains(&("host".to_owned(), "b:81".to_owned())));
    }

    #[test]
    fn only_real_upgrade_requests_are_tunnelled() {
        let check = |headers: &[(&str, &str)], expected| {
            assert_eq!(wants_upgrade(&head("GET", "/", headers).headers), expected, "{headers:?}");
        };
        check(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")], true);
        check(&[("upgrade", "websocket")], false);
        check(&[("connection", "upgrade"), ("upgrade", "h2c")], false);
        check(&[("connection", "upgrade")], false);
    }

    #[test]
    fn responses_keep_one_framing() {
        let mut headers = head(
            "GET",
            "/",
            &[("transfer-encoding", "chunked"), ("content-length", "3"), ("connection", "close"), ("x", "y")],
        )
        .headers;
        to_client(&mut headers, false);
        assert_eq!(headers.len(), 1);
    }
}
