//! Response heads of HTTP/1.1 endpoints: read, and written in the form that HTTP/1.1 clients get; and short answers of our own.
//!
//! Pure: no I/O, no clock.

use std::mem::MaybeUninit;

use http::StatusCode;

use super::fields::{Field, Options, content_length, is_named, kind, write};
use super::filters::Edits;
use super::request::{Framing, Request};

/// Header fields accepted in a response; more is treated as a broken endpoint.
const MAX_FIELDS: usize = 200;
/// Responses of class 1xx before the real one.
pub(crate) const MAX_INFORMATIONAL: u32 = 8;
/// Largest response head accepted in bytes.
pub(crate) const MAX_HEAD_BYTES: usize = 128 * 1024;

/// The endpoint sent something that is not a response to the request.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the endpoint's response is malformed")]
pub(crate) struct Malformed;

/// What is left to know of a response once its new head is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Response {
    /// Bytes of the head as received.
    pub length: usize,
    pub status: StatusCode,
    /// How the endpoint ends the body.
    pub framing: Framing,
    /// The endpoint's connection can carry another request afterwards.
    pub reusable: bool,
    /// The client's connection must be closed afterwards.
    pub close: bool,
}

impl Response {
    /// The real response follows (1xx; a switch of protocols is the real one).
    pub fn is_interim(&self) -> bool {
        self.status.is_informational() && self.status != StatusCode::SWITCHING_PROTOCOLS
    }
}

/// What the head is written for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hop<'a> {
    pub request: &'a Request,
    /// Close the client's connection after the response.
    pub close: bool,
    /// Tells the time as an HTTP date, for responses without one (RFC 9110 §6.6.1).
    pub date: fn() -> String,
    pub edits: Edits<'a>,
}

/// Reads a head at the front of `bytes` and writes the one for the client to `out` (replacing what is there). `None`:
/// more bytes are needed. Of a 1xx other than 101 that the client does not get nothing is written.
pub(crate) fn parse(bytes: &[u8], hop: Hop<'_>, out: &mut Vec<u8>) -> Result<Option<Response>, Malformed> {
    read(bytes, |head| head.rewrite(hop, out))
}

/// Reads a head at the front of `bytes` and lets `then` look at it. `None`: more bytes are needed.
#[inline]
pub(crate) fn read<T>(
    bytes: &[u8],
    then: impl FnOnce(&Head<'_>) -> Result<T, Malformed>,
) -> Result<Option<T>, Malformed> {
    let mut memory = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut head = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let length = match config.parse_response_with_uninit_headers(&mut head, bytes, &mut memory) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD_BYTES => return Ok(None),
        _ => return Err(Malformed),
    };
    let (Some(code), Some(version)) = (head.code, head.version) else { return Err(Malformed) };
    let status = StatusCode::from_u16(code).map_err(|_| Malformed)?;
    let (http10, fields) = (version == 0, &*head.headers);
    let facts = Facts::read(fields, http10)?;
    then(&Head { length, status, reason: head.reason.unwrap_or(""), http10, fields, facts }).map(Some)
}

/// An endpoint's head as it was read.
pub(crate) struct Head<'a> {
    /// In bytes.
    pub length: usize,
    pub status: StatusCode,
    reason: &'a str,
    http10: bool,
    pub fields: &'a [httparse::Header<'a>],
    facts: Facts<'a>,
}

/// What the known fields of a head say.
#[derive(Default)]
struct Facts<'a> {
    length: Option<u64>,
    chunked: bool,
    options: Options,
    upgrade: Option<&'a [u8]>,
    dated: bool,
}

impl<'a> Facts<'a> {
    fn read(fields: &'a [httparse::Header<'a>], http10: bool) -> Result<Self, Malformed> {
        let mut facts = Self::default();
        for field in fields {
            match kind(field.name) {
                Some(Field::ContentLength) => {
                    let length = content_length(field.value).ok_or(Malformed)?;
                    if facts.length.replace(length).is_some_and(|other| other != length) {
                        return Err(Malformed);
                    }
                }
                Some(Field::TransferEncoding) => {
                    if facts.chunked || http10 || !field.value.eq_ignore_ascii_case(b"chunked") {
                        return Err(Malformed);
                    }
                    facts.chunked = true;
                }
                Some(Field::Connection) => facts.options.read(field.value),
                Some(Field::Upgrade) => facts.upgrade = Some(field.value),
                None if field.name.len() == 4 && field.name.eq_ignore_ascii_case("date") => facts.dated = true,
                _ => {}
            }
        }
        Ok(facts)
    }
}

impl Head<'_> {
    /// How the body ends; `is_head`: of the response to a HEAD.
    pub fn framing(&self, is_head: bool) -> Framing {
        let bodiless = is_head
            || self.status.is_informational()
            || matches!(self.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        match (self.facts.chunked, self.facts.length) {
            _ if bodiless => Framing::None,
            (true, _) => Framing::Chunked,
            (false, Some(0)) => Framing::None,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::Close,
        }
    }

    /// Whether the connection can carry another request after a response of this framing.
    pub fn is_reusable(&self, framing: Framing) -> bool {
        let Facts { options, chunked, length, .. } = &self.facts;
        let asked = !options.close && (!self.http10 || options.keep_alive);
        // A length beside a transfer coding may have been meant to hide something (RFC 9112 §6.3).
        let hides = *chunked && length.is_some();
        asked && framing != Framing::Close && !hides && self.status != StatusCode::SWITCHING_PROTOCOLS
    }

    /// The length that the client is told: void beside a transfer coding, forbidden without a body (RFC 9110 §8.6).
    pub fn told_length(&self) -> Option<u64> {
        let bodiless = self.status.is_informational() || self.status == StatusCode::NO_CONTENT;
        self.facts.length.filter(|_| !self.facts.chunked && !bodiless)
    }

    /// Whether a field goes to the client as it is: neither this hop's own (RFC 9110 §7.6.1) nor written anew.
    #[inline]
    pub fn passes(&self, name: &str) -> bool {
        kind(name).is_none() && (self.facts.options.named == 0 || !is_named(self.fields, name))
    }

    /// Whether it switches to this protocol (a name in lower case).
    pub fn switches_to(&self, protocol: &str) -> bool {
        self.status == StatusCode::SWITCHING_PROTOCOLS
            && self.facts.options.upgrade
            && self.facts.upgrade.is_some_and(|upgrade| upgrade.eq_ignore_ascii_case(protocol.as_bytes()))
    }

    fn rewrite(&self, hop: Hop<'_>, out: &mut Vec<u8>) -> Result<Response, Malformed> {
        let framing = self.framing(hop.request.is_head);
        let mut response = Response {
            length: self.length,
            status: self.status,
            framing,
            reusable: self.is_reusable(framing),
            close: hop.close || (hop.request.http10 && matches!(framing, Framing::Chunked | Framing::Close)),
        };
        if response.is_interim() {
            self.rewrite_interim(hop, out);
            return Ok(response);
        }
        write_status_line(self.status, self.reason, hop.request.http10, out);
        self.write_fields(hop, out);
        if !hop.edits.is_empty() {
            hop.edits.added().for_each(|(name, value)| write(out, name, value.as_bytes()));
        }
        if let Some(length) = self.told_length() {
            write_length(length, out);
        }
        let unsized_body = matches!(framing, Framing::Chunked | Framing::Close);
        if unsized_body && !hop.request.http10 {
            write(out, "transfer-encoding", b"chunked");
        }
        if self.status == StatusCode::SWITCHING_PROTOCOLS {
            response.close = true;
            write(out, "upgrade", self.facts.upgrade.ok_or(Malformed)?);
            write(out, "connection", b"upgrade");
        } else {
            write_connection(response.close, hop.request.http10, out);
        }
        if !self.facts.dated {
            write(out, "date", (hop.date)().as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        Ok(response)
    }

    /// For clients of HTTP/1.0 there are none of class 1xx (RFC 9110 §15.2), and a 100 would answer what only we asked. Edits take
    /// fields away; what they add comes with the real response.
    fn rewrite_interim(&self, hop: Hop<'_>, out: &mut Vec<u8>) {
        out.clear();
        if hop.request.http10 || self.status == StatusCode::CONTINUE {
            return;
        }
        write_status_line(self.status, self.reason, false, out);
        self.write_fields(hop, out);
        out.extend_from_slice(b"\r\n");
    }

    fn write_fields(&self, hop: Hop<'_>, out: &mut Vec<u8>) {
        let edited = !hop.edits.is_empty();
        for field in self.fields {
            if self.passes(field.name) && !(edited && hop.edits.drops(field.name)) {
                write(out, field.name, field.value);
            }
        }
    }
}

/// A short answer of our own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer<'a> {
    pub status: StatusCode,
    /// In lower case, beside what every answer has.
    pub fields: &'a [(&'a str, String)],
    /// May be empty.
    pub text: &'a str,
    /// The client speaks HTTP/1.0.
    pub http10: bool,
    /// The request was a HEAD: the text is only announced.
    pub is_head: bool,
    pub close: bool,
    pub date: fn() -> String,
}

impl Answer<'_> {
    /// Writes all of it to `out` (replacing what is there).
    pub fn write(&self, out: &mut Vec<u8>) {
        write_status_line(self.status, self.status.canonical_reason().unwrap_or(""), self.http10, out);
        for (name, value) in self.fields {
            write(out, name, value.as_bytes());
        }
        if !self.text.is_empty() {
            write(out, "content-type", b"text/plain; charset=utf-8");
        }
        // RFC 9110 §8.6
        if self.status != StatusCode::NO_CONTENT {
            write_length(self.text.len() as u64, out);
        }
        write_connection(self.close, self.http10, out);
        write(out, "date", (self.date)().as_bytes());
        out.extend_from_slice(b"\r\n");
        if !self.is_head {
            out.extend_from_slice(self.text.as_bytes());
        }
    }
}

fn write_status_line(status: StatusCode, reason: &str, http10: bool, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(if http10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn write_connection(close: bool, http10: bool, out: &mut Vec<u8>) {
    if close {
        write(out, "connection", b"close");
    } else if http10 {
        write(out, "connection", b"keep-alive");
    }
}

fn write_length(length: u64, out: &mut Vec<u8>) {
    // Writing to a Vec cannot fail.
    let _ = std::io::Write::write_fmt(out, format_args!("content-length: {length}\r\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: Request = Request {
        length: 0,
        framing: Framing::None,
        http10: false,
        is_head: false,
        idempotent: true,
        upgrade: false,
        expects_continue: false,
        keep_alive: true,
    };

    fn run(text: &str, request: &Request) -> Result<Option<(Response, String)>, Malformed> {
        let mut out = Vec::new();
        let hop = Hop { request, close: false, date: || "now".to_owned(), edits: Edits::default() };
        let response = parse(text.as_bytes(), hop, &mut out)?;
        Ok(response.map(|response| (response, String::from_utf8_lossy(&out).into_owned())))
    }

    #[track_caller]
    fn check(text: &str, request: &Request, framing: Framing, head: &str) {
        let (response, out) = run(text, request).expect("a good head").expect("a whole head");
        assert_eq!((response.framing, out.as_str()), (framing, head), "{text:?}");
        assert_eq!(response.length, text.len());
    }

    #[test]
    fn responses_keep_one_framing() {
        check(
            "HTTP/1.1 200 Fine\r\nContent-Length: 3\r\nDate: x\r\n\r\n",
            &GET,
            Framing::Length(3),
            "HTTP/1.1 200 Fine\r\nDate: x\r\ncontent-length: 3\r\n\r\n",
        );
        let both = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\nconnection: x-a\r\nx-a: 1\r\nx: y\r\n\r\n";
        check(
            both,
            &GET,
            Framing::Chunked,
            "HTTP/1.1 200 OK\r\nx: y\r\ntransfer-encoding: chunked\r\ndate: now\r\n\r\n",
        );
        assert!(!run(both, &GET).expect("a good head").expect("a whole head").0.reusable);
        check(
            "HTTP/1.1 200 OK\r\n\r\n",
            &GET,
            Framing::Close,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ndate: now\r\n\r\n",
        );
    }

    #[test]
    fn some_responses_have_no_body() {
        let head = Request { is_head: true, ..GET };
        check(
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n",
            &head,
            Framing::None,
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ndate: now\r\n\r\n",
        );
        check("HTTP/1.1 204 No Content\r\n\r\n", &GET, Framing::None, "HTTP/1.1 204 No Content\r\ndate: now\r\n\r\n");
        let informational = run("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", &GET).expect("good").expect("whole");
        assert_eq!(informational.1, "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n");
        assert!(informational.0.is_interim());
        for (text, request) in [
            ("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", Request { http10: true, ..GET }),
            ("HTTP/1.1 100 Continue\r\nlink: x\r\n\r\n", GET),
        ] {
            let (_, out) = run(text, &request).expect("good").expect("whole");
            assert_eq!(out, "", "{text:?} is not for this client");
        }
    }

    #[test]
    fn old_clients_get_no_chunks() {
        let old = Request { http10: true, ..GET };
        let (response, out) =
            run("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", &old).expect("good").expect("whole");
        assert!(response.close && response.framing == Framing::Chunked);
        assert_eq!(out, "HTTP/1.0 200 OK\r\nconnection: close\r\ndate: now\r\n\r\n");
    }

    #[test]
    fn broken_heads_are_malformed() {
        for text in [
            "220 mail.example.com ESMTP\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        ] {
            assert_eq!(run(text, &GET), Err(Malformed), "{text:?}");
        }
        assert_eq!(run("HTTP/1.1 200 OK\r\nx: ", &GET), Ok(None));
    }
}
