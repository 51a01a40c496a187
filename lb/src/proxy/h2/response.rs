//! Response heads of endpoints in the form that HTTP/2 clients get (RFC 9113 §8.3.2). Pure: no I/O.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use crate::proxy::fields::{Field, Options, content_length, has_bare_line_feed, is_named, kind};
use crate::proxy::request::Framing;
use crate::proxy::response::MAX_HEAD_BYTES;

/// Header fields accepted in a response; more is treated as a broken endpoint.
const MAX_FIELDS: usize = 200;

/// The endpoint sent something that is not a response to the request.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the endpoint's response is malformed")]
pub(super) struct Malformed;

/// An HTTP/1.1 response's head.
#[derive(Debug)]
pub(super) struct Parsed {
    pub response: Response<()>,
    pub framing: Framing,
    /// The connection can carry another request afterwards.
    pub reusable: bool,
}

/// Takes a whole head off the front of `bytes`; `None`: more are needed. Values share the memory of `bytes`.
pub(super) fn parse(bytes: &mut BytesMut, is_head: bool) -> Result<Option<Parsed>, Malformed> {
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
    if status.as_u16() >= 600 {
        return Err(Malformed);
    }
    let facts = Facts::read(head.headers, version == 0)?;
    let base = bytes.as_ptr() as usize;
    // Where names and values are, to take them out of the shared memory below.
    let mut fields = HeaderMap::with_capacity(head.headers.len() + 1);
    let mut spans = [(0, 0); MAX_FIELDS];
    for (span, field) in spans.iter_mut().zip(head.headers.iter()) {
        *span = ((field.value.as_ptr() as usize).saturating_sub(base), field.value.len());
    }
    let names: Vec<Option<HeaderName>> = head
        .headers
        .iter()
        .map(|field| {
            let passes = match kind(field.name) {
                None => facts.options.named == 0 || !is_named(head.headers, field.name),
                Some(Field::ContentLength) => facts.keeps_length(status),
                Some(_) => false,
            };
            passes.then(|| HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Malformed)).transpose()
        })
        .collect::<Result<_, _>>()?;
    let memory: Bytes = bytes.split_to(length).freeze();
    for (name, (start, length)) in names.into_iter().zip(spans) {
        let Some(name) = name else { continue };
        let value = memory.get(start..start + length).map(|_| memory.slice(start..start + length)).ok_or(Malformed)?;
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| Malformed)?;
        if name == header::CONTENT_LENGTH {
            fields.insert(name, value);
        } else {
            fields.append(name, value);
        }
    }
    let framing = facts.framing(status, is_head);
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = fields;
    Ok(Some(Parsed { response, framing, reusable: facts.is_reusable(framing, version == 0) }))
}

#[derive(Default)]
struct Facts {
    length: Option<u64>,
    chunked: bool,
    options: Options,
}

impl Facts {
    fn read(fields: &[httparse::Header<'_>], http10: bool) -> Result<Self, Malformed> {
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
                _ => {}
            }
        }
        Ok(facts)
    }

    /// Void beside a transfer coding, forbidden without a body (RFC 9110 §8.6).
    fn keeps_length(&self, status: StatusCode) -> bool {
        !self.chunked && !status.is_informational() && status != StatusCode::NO_CONTENT
    }

    fn framing(&self, status: StatusCode, is_head: bool) -> Framing {
        let bodiless =
            is_head || status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        match (self.chunked, self.length) {
            _ if bodiless => Framing::None,
            (true, _) => Framing::Chunked,
            (false, Some(0)) => Framing::None,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::Close,
        }
    }

    fn is_reusable(&self, framing: Framing, http10: bool) -> bool {
        let asked = !self.options.close && (!http10 || self.options.keep_alive);
        // A length beside a transfer coding may have been meant to hide something (RFC 9112 §6.3).
        asked && framing != Framing::Close && !(self.chunked && self.length.is_some())
    }
}

/// A trailer section as read by the chunked decoder; fields that frame or route a message have no business there.
pub(super) fn trailers(section: &[u8]) -> Option<HeaderMap> {
    if section.len() <= 2 || has_bare_line_feed(section) {
        return None;
    }
    let mut memory = [httparse::EMPTY_HEADER; 64];
    let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(section, &mut memory) else {
        return None;
    };
    let mut map = HeaderMap::with_capacity(fields.len());
    for field in fields.iter().filter(|field| kind(field.name).is_none()) {
        map.append(HeaderName::from_bytes(field.name.as_bytes()).ok()?, HeaderValue::from_bytes(field.value).ok()?);
    }
    (!map.is_empty()).then_some(map)
}

/// Fields that must not stand in trailers are dropped, whoever sent them (RFC 9110 §6.5.1).
pub(super) fn clean_trailers(fields: &mut HeaderMap) {
    let bad: Vec<HeaderName> = fields.keys().filter(|name| kind(name.as_str()).is_some()).cloned().collect();
    for name in bad {
        fields.remove(name);
    }
}

/// What every response has.
pub(super) fn finish(fields: &mut HeaderMap) {
    if !fields.contains_key(header::DATE)
        && let Ok(date) = HeaderValue::from_maybe_shared(Bytes::from(crate::proxy::http::http_date()))
    {
        fields.insert(header::DATE, date);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str, is_head: bool) -> Result<Option<(String, Framing, bool)>, Malformed> {
        let mut bytes = BytesMut::from(text);
        let parsed = parse(&mut bytes, is_head)?;
        Ok(parsed.map(|Parsed { response, framing, reusable }| {
            let mut text = response.status().as_u16().to_string();
            for (name, value) in response.headers() {
                text.push_str(&format!(" {name}={}", value.to_str().unwrap_or("?")));
            }
            (format!("{text}|{}", String::from_utf8_lossy(&bytes)), framing, reusable)
        }))
    }

    #[track_caller]
    fn check(text: &str, expected: &str, framing: Framing, reusable: bool) {
        assert_eq!(run(text, false), Ok(Some((expected.to_owned(), framing, reusable))), "{text:?}");
    }

    #[test]
    fn heads_lose_what_belongs_to_the_hop() {
        check(
            "HTTP/1.1 200 OK\r\nX-A: 1\r\nConnection: x-b\r\nX-B: 2\r\nContent-Length: 3\r\nset-cookie: a\r\nset-cookie: b\r\n\r\nabc",
            "200 x-a=1 content-length=3 set-cookie=a set-cookie=b|abc",
            Framing::Length(3),
            true,
        );
        check(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nkeep-alive: x\r\ncontent-length: 3\r\n\r\n",
            "200|",
            Framing::Chunked,
            false,
        );
        check("HTTP/1.1 204 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", "204|", Framing::None, false);
        check("HTTP/1.0 200 OK\r\n\r\nx", "200|x", Framing::Close, false);
        assert_eq!(
            run("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n", true).map(|r| r.map(|r| r.1)),
            Ok(Some(Framing::None))
        );
        assert_eq!(run("HTTP/1.1 200 OK\r\nx: y\r\n", false), Ok(None));
    }

    #[test]
    fn what_is_no_response_is_malformed() {
        for text in [
            "hello\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: +3\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 999 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n",
        ] {
            assert_eq!(run(text, false), Err(Malformed), "{text:?}");
        }
    }

    #[test]
    fn trailers_are_read_and_cleaned() {
        let map = trailers(b"grpc-status: 0\r\ncontent-length: 3\r\n\r\n").expect("trailers");
        assert_eq!((map.len(), map.get("grpc-status").map(HeaderValue::as_bytes)), (1, Some(&b"0"[..])));
        assert!(trailers(b"\r\n").is_none());
        let mut map = HeaderMap::from_iter([(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"))]);
        clean_trailers(&mut map);
        assert!(map.is_empty());
    }
}
