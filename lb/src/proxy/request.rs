//! Request heads: parsed, checked and written in the form that goes upstream (RFC 9110 §7, RFC 9112).
//!
//! Pure: no I/O, no clock. What two parsers could read differently is refused: a proxy must not pass on a message that
//! whoever stands behind it may frame in another way. Heads are not kept: [`parse`] shows one, which is matched and written
//! anew at once.

use std::borrow::Cow;
use std::mem::MaybeUninit;
use std::net::IpAddr;

use http::StatusCode;
use httparse::Header;

use super::fields::{self, Field, Options, content_length, is_host, is_named, kind, write};
use super::filters::{Edits, Rewritten};
use super::path;
use crate::config::ProxyConfig;
use crate::route;

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

impl Reject {
    /// What the client is told.
    pub fn text(self) -> String {
        format!("{}: {}\n", self.status.as_u16(), self.reason)
    }
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
pub(crate) enum Parsed<T> {
    /// More bytes are needed.
    Partial,
    /// What became of the head.
    Complete(T),
    Refused(Reject),
    /// The client speaks HTTP/2.
    Http2,
}

/// Facts about the client connection that routing and forwarded headers tell.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub ip: IpAddr,
    /// The client's address as text.
    pub address: String,
    /// The address as a `Forwarded` node identifier (IPv6 bracketed and quoted).
    pub node: String,
    /// Keep what the client says about earlier hops.
    pub trusted: bool,
    /// It came over TLS.
    pub https: bool,
}

impl Client {
    pub fn new(ip: IpAddr, trusted: bool, https: bool) -> Self {
        let address = ip.to_string();
        let node = if ip.is_ipv6() { format!("\"[{address}]\"") } else { address.clone() };
        Self { ip, address, node, trusted, https }
    }
}

/// Reads a head at the front of `bytes` and lets `then` look at it. With `routed`, its path is brought into the form that routes are
/// about ([`path::normalize`]).
pub(crate) fn parse<T>(
    bytes: &[u8],
    config: &ProxyConfig,
    client: &Client,
    routed: bool,
    then: impl FnOnce(&Head<'_>) -> T,
) -> Parsed<T> {
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
    let raw = Raw { method, target, http10: version == 0, fields: head.headers };
    match raw.check(length, config, client, routed) {
        Ok(head) => Parsed::Complete(then(&head)),
        Err(reject) => Parsed::Refused(reject),
    }
}

/// A head as it was parsed.
struct Raw<'a> {
    method: &'a str,
    target: &'a str,
    http10: bool,
    fields: &'a [Header<'a>],
}

/// A head that was checked.
#[derive(Debug)]
pub(crate) struct Head<'a> {
    method: &'a str,
    /// In origin form; its path may be empty.
    target: &'a str,
    /// Of the target, else `Host`; as received. Only bytes that hosts may have.
    authority: Option<&'a [u8]>,
    /// Path and host as routes see them, if there are routes.
    routed: Option<(Cow<'a, str>, Cow<'a, str>)>,
    http10: bool,
    fields: &'a [Header<'a>],
    facts: Facts<'a>,
    length: usize,
    client: &'a Client,
}

/// What the known fields of a head say.
#[derive(Debug, Default)]
struct Facts<'a> {
    host: Option<&'a [u8]>,
    length: Option<u64>,
    chunked: bool,
    options: Options,
    upgrade: Option<&'a [u8]>,
    expects_continue: bool,
    trailers: bool,
}

impl Facts<'_> {
    fn framing(&self) -> Framing {
        match (self.chunked, self.length) {
            (true, _) => Framing::Chunked,
            (false, Some(length @ 1..)) => Framing::Length(length),
            (false, _) => Framing::None,
        }
    }
}

impl route::Head for Head<'_> {
    fn method(&self) -> &str {
        self.method
    }

    fn host(&self) -> &str {
        match &self.routed {
            Some((_, host)) => host,
            None => std::str::from_utf8(self.authority.unwrap_or_default()).unwrap_or_default(),
        }
    }

    fn path(&self) -> &str {
        match &self.routed {
            Some((path, _)) => path,
            None => split(self.target).0,
        }
    }

    fn query(&self) -> Option<&str> {
        split(self.target).1
    }

    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        let values = self.fields.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        route::joined(name, values.map(|field| String::from_utf8_lossy(field.value)))
    }

    fn client(&self) -> IpAddr {
        self.client.ip
    }
}

impl Head<'_> {
    /// How the body ends.
    pub fn framing(&self) -> Framing {
        self.facts.framing()
    }

    /// All fields, as received.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.fields.iter().map(|field| (field.name, field.value))
    }

    /// What is left to know when nothing is sent upstream.
    pub fn summary(&self) -> Request {
        let framing = self.framing();
        Request {
            length: self.length,
            framing,
            http10: self.http10,
            is_head: self.method == "HEAD",
            idempotent: matches!(self.method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE"),
            upgrade: self.upgrade().is_some(),
            expects_continue: self.facts.expects_continue && framing != Framing::None && !self.http10,
            keep_alive: !self.facts.options.close && (!self.http10 || self.facts.options.keep_alive),
        }
    }

    /// The protocol to switch to.
    fn upgrade(&self) -> Option<&[u8]> {
        self.facts.upgrade.filter(|protocol| {
            // Behind a proxy, h2c would let requests pass unseen.
            self.facts.options.upgrade && self.framing() == Framing::None && !protocol.eq_ignore_ascii_case(b"h2c")
        })
    }

    /// Writes the head for the endpoint to `out` (replacing what is there). `fallback_host` names the Service for HTTP/1.0 requests
    /// without `Host`.
    #[inline]
    pub fn write(
        &self,
        new: &Rewritten<'_>,
        edits: Edits<'_>,
        fallback_host: impl FnOnce() -> String,
        out: &mut Vec<u8>,
    ) -> Request {
        let fallback;
        let host = match self.authority {
            Some(host) => host,
            None => {
                fallback = fallback_host();
                fallback.as_bytes()
            }
        };
        out.clear();
        out.extend_from_slice(self.method.as_bytes());
        out.push(b' ');
        let path = new.path.as_deref().or(self.routed.as_ref().map(|(path, _)| &**path));
        self.write_target(path, out);
        out.extend_from_slice(b" HTTP/1.1\r\n");
        write(out, "host", new.host.map_or(host, str::as_bytes));
        self.write_fields(edits, out);
        if self.facts.trailers {
            write(out, "te", b"trailers");
        }
        if let Some(protocol) = self.upgrade() {
            write(out, "upgrade", protocol);
            write(out, "connection", b"upgrade");
        }
        if self.facts.chunked {
            write(out, "transfer-encoding", b"chunked");
        }
        if self.client.trusted {
            self.extend_claims(host, edits, out)
        } else {
            self.replace_claims(host, edits, out)
        };
        if !edits.is_empty() {
            edits.added().for_each(|(name, value)| write(out, name, value.as_bytes()));
        }
        out.extend_from_slice(b"\r\n");
        self.summary()
    }

    /// The target with another path, or as it is.
    fn write_target(&self, path: Option<&str>, out: &mut Vec<u8>) {
        let Some(path) = path else {
            if !self.target.starts_with(['/', '*']) {
                out.push(b'/');
            }
            return out.extend_from_slice(self.target.as_bytes());
        };
        out.extend_from_slice(path.as_bytes());
        if let (_, Some(query)) = split(self.target) {
            out.push(b'?');
            out.extend_from_slice(query.as_bytes());
        }
    }

    /// The fields that pass: neither this hop's own (RFC 9110 §7.6.1) nor those written anew.
    fn write_fields(&self, edits: Edits<'_>, out: &mut Vec<u8>) {
        let edited = !edits.is_empty();
        for field in self.fields {
            let passes = match kind(field.name) {
                None => self.facts.options.named == 0 || !is_named(self.fields, field.name),
                Some(Field::ContentLength) => true,
                Some(Field::ForwardedHost | Field::ForwardedProto) => self.client.trusted,
                Some(_) => false,
            };
            if passes && !(edited && edits.drops(field.name)) {
                write(out, field.name, field.value);
            }
        }
    }

    fn proto(&self) -> &'static [u8] {
        if self.client.https { b"https" } else { b"http" }
    }

    /// Adds us to what earlier hops said.
    fn extend_claims(&self, host: &[u8], edits: Edits<'_>, out: &mut Vec<u8>) {
        let client = self.client;
        if !edits.drops("x-forwarded-for") {
            self.append(Field::ForwardedFor, "x-forwarded-for", client.address.as_bytes(), true, out);
        }
        if !edits.drops("forwarded") {
            self.append(Field::Forwarded, "forwarded", format!("for={}", client.node).as_bytes(), false, out);
        }
        let has = |wanted: Field| self.fields.iter().any(|field| kind(field.name) == Some(wanted));
        if !has(Field::ForwardedProto) && !edits.drops("x-forwarded-proto") {
            write(out, "x-forwarded-proto", self.proto());
        }
        if !has(Field::ForwardedHost) && !edits.drops("x-forwarded-host") {
            write(out, "x-forwarded-host", host);
        }
    }

    /// Says who the client is; what it claims about itself has been dropped.
    fn replace_claims(&self, host: &[u8], edits: Edits<'_>, out: &mut Vec<u8>) {
        let claims = [
            ("x-forwarded-for", self.client.address.as_bytes()),
            ("x-forwarded-proto", self.proto()),
            ("x-forwarded-host", host),
        ];
        let edited = !edits.is_empty();
        for (name, value) in claims {
            if !(edited && edits.drops(name)) {
                write(out, name, value);
            }
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

impl<'a> Raw<'a> {
    #[inline]
    fn check(&self, length: usize, config: &ProxyConfig, client: &'a Client, routed: bool) -> Result<Head<'a>, Reject> {
        let facts = self.facts()?;
        let (target, authority) = self.target(config.max_uri_bytes)?;
        // Absolute form: its authority is the host, whatever the Host header says (RFC 9112 §3.2.2).
        let authority = authority.map(str::as_bytes).or(facts.host);
        let routed = if routed {
            let path = path::normalize(split(target).0);
            let path = path.map_err(|_| bad("the path means different things to different servers"))?;
            let host = std::str::from_utf8(authority.unwrap_or_default()).unwrap_or_default();
            Some((path, host_name(host)))
        } else {
            None
        };
        Ok(Head {
            method: self.method,
            target,
            authority,
            routed,
            http10: self.http10,
            fields: self.fields,
            facts,
            length,
            client,
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

    /// The target in origin form (its path may be empty), and the authority of an absolute one.
    fn target(&self, max_bytes: usize) -> Result<(&'a str, Option<&'a str>), Reject> {
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
            return Ok((self.target, None));
        }
        let neither = bad("the request target is neither a path nor an http URL");
        let (scheme, rest) = self.target.split_once("://").ok_or(neither)?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return Err(neither);
        }
        let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.is_empty() {
            return Err(neither);
        }
        if !is_host(authority.as_bytes()) {
            return Err(bad("the request target carries more than a host and a port"));
        }
        Ok((target, Some(authority)))
    }
}

/// Path (never empty) and query of a target in origin form.
fn split(target: &str) -> (&str, Option<&str>) {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    (if path.is_empty() { "/" } else { path }, query)
}

/// A host for routing: without port and trailing dot, in lower case. Costs no memory if it is already.
fn host_name(authority: &str) -> Cow<'_, str> {
    let host = match authority.rsplit_once(':') {
        // Not within an IPv6 address.
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !port.is_empty() => host,
        _ => authority,
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

/// Bytes of a path or query that endpoints see as sent. Beyond RFC 3986 those that browsers send unescaped; no fragment.
pub(crate) fn is_target_byte(byte: u8) -> bool {
    matches!(byte, b'!' | b'"' | b'$'..=b';' | b'=' | b'?'..=b'_' | b'a'..=b'~' | 0x80..)
}

#[cfg(test)]
mod tests;
