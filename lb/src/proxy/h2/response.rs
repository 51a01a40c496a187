//! Response heads of endpoints in the form that HTTP/2 clients get (RFC 9113 §8.3.2). Pure: no I/O.

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use crate::proxy::fields::{Field, has_bare_line_feed, kind};
use crate::proxy::request::Framing;
use crate::proxy::response::{Malformed, read};

/// An HTTP/1.1 response's head.
#[derive(Debug)]
pub(super) struct Parsed {
    pub response: Response<()>,
    pub framing: Framing,
    /// The connection can carry another request afterwards.
    pub reusable: bool,
    /// It is a 101 that switches to the WebSocket protocol.
    pub websocket: bool,
}

/// Takes a whole head off the front of `bytes`; `None`: more are needed. Values share the memory of `bytes`.
pub(super) fn parse(bytes: &mut BytesMut, is_head: bool) -> Result<Option<Parsed>, Malformed> {
    let base = bytes.as_ptr() as usize;
    let found = read(bytes, |head| {
        if head.status.as_u16() >= 600 {
            return Err(Malformed);
        }
        // Where values are, to take them out of the shared memory below.
        let mut spans = Vec::with_capacity(head.fields.len());
        for field in head.fields {
            let length = kind(field.name) == Some(Field::ContentLength) && head.told_length().is_some();
            if length || head.passes(field.name) {
                let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Malformed)?;
                spans.push((name, (field.value.as_ptr() as usize).saturating_sub(base), field.value.len()));
            }
        }
        let framing = head.framing(is_head);
        let parsed = Parsed {
            response: Response::new(()),
            framing,
            reusable: head.is_reusable(framing),
            websocket: head.switches_to("websocket"),
        };
        Ok((head.length, head.status, parsed, spans))
    })?;
    let Some((length, status, mut parsed, spans)) = found else { return Ok(None) };
    let memory: Bytes = bytes.split_to(length).freeze();
    let mut fields = HeaderMap::with_capacity(spans.len() + 1);
    for (name, start, length) in spans {
        let value = memory.get(start..start + length).map(|_| memory.slice(start..start + length)).ok_or(Malformed)?;
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| Malformed)?;
        if name == header::CONTENT_LENGTH {
            fields.insert(name, value);
        } else {
            fields.append(name, value);
        }
    }
    *parsed.response.status_mut() = status;
    *parsed.response.headers_mut() = fields;
    Ok(Some(parsed))
}

/// Whether a client gets a response of class 1xx: a 100 would answer what only we asked.
pub(super) fn passes_interim(status: StatusCode) -> bool {
    status.is_informational() && !matches!(status, StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS)
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

/// Fields that the crate accepts and no HTTP/2 client should see.
pub(super) fn strip(fields: &mut HeaderMap) {
    let hop = |name: &str| matches!(kind(name), Some(field) if field != Field::ContentLength);
    if fields.keys().any(|name| hop(name.as_str())) {
        let names: Vec<_> = fields.keys().filter(|name| hop(name.as_str())).cloned().collect();
        for name in names {
            fields.remove(name);
        }
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
        Ok(parsed.map(|Parsed { response, framing, reusable, .. }| {
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
