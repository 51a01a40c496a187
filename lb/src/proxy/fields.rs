//! Header fields that a proxy must know, and small pure helpers for heads.

/// Fields that are read, replaced or dropped on the way; all others pass as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Host,
    Connection,
    ContentLength,
    TransferEncoding,
    Te,
    Upgrade,
    Expect,
    KeepAlive,
    ProxyConnection,
    Http2Settings,
    Forwarded,
    ForwardedFor,
    ForwardedHost,
    ForwardedProto,
}

/// Which of the known fields `name` (a token, RFC 9110 §5.6.2) is. By length and first letter, which differ in any two: other names cost
/// a look at both.
pub(crate) fn kind(name: &str) -> Option<Field> {
    let name = name.as_bytes();
    let (found, field) = match (name.len(), name.first()? | 0x20) {
        (2, b't') => (is(name, b"te"), Field::Te),
        (4, b'h') => (is(name, b"host"), Field::Host),
        (6, b'e') => (is(name, b"expect"), Field::Expect),
        (7, b'u') => (is(name, b"upgrade"), Field::Upgrade),
        (9, b'f') => (is(name, b"forwarded"), Field::Forwarded),
        (10, b'c') => (is(name, b"connection"), Field::Connection),
        (10, b'k') => (is(name, b"keep-alive"), Field::KeepAlive),
        (14, b'c') => (is(name, b"content-length"), Field::ContentLength),
        (14, b'h') => (is(name, b"http2-settings"), Field::Http2Settings),
        (15, b'x') => (is(name, b"x-forwarded-for"), Field::ForwardedFor),
        (16, b'p') => (is(name, b"proxy-connection"), Field::ProxyConnection),
        (16, b'x') => (is(name, b"x-forwarded-host"), Field::ForwardedHost),
        (17, b't') => (is(name, b"transfer-encoding"), Field::TransferEncoding),
        (17, b'x') => (is(name, b"x-forwarded-proto"), Field::ForwardedProto),
        _ => return None,
    };
    found.then_some(field)
}

/// Whether a token is `known` (lower-case letters, digits and hyphens) in any case. All at once, not byte by byte: in tokens the bit
/// that tells the cases of letters apart changes nothing else that is in `known`.
fn is<const N: usize>(name: &[u8], known: &[u8; N]) -> bool {
    let Ok(name) = <&[u8; N]>::try_from(name) else { return false };
    name.iter().zip(known).fold(0, |differences, (byte, known)| differences | ((byte | 0x20) ^ known)) == 0
}

/// Appends a field line.
pub(crate) fn write(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Elements of a comma-separated value.
pub(crate) fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii)
}

/// A `Content-Length`: digits and nothing else (RFC 9110 §8.6; no lists, no signs).
pub(crate) fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Whether a line ends in a line feed alone: one line to some parsers and half a line to others.
pub(crate) fn has_bare_line_feed(head: &[u8]) -> bool {
    head.first() == Some(&b'\n') || head.windows(2).any(|pair| pair[1] == b'\n' && pair[0] != b'\r')
}

/// A registered name, IPv4 address or bracketed IPv6 address, with an optional port (RFC 3986 §3.2.2, without the
/// sub-delimiters that no host name has).
pub(crate) fn is_host(host: &[u8]) -> bool {
    let plain =
        |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'~' | b'%' | b':' | b'[' | b']');
    !host.is_empty() && host.iter().all(plain)
}

/// What the `Connection` fields of a message say.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    pub close: bool,
    pub keep_alive: bool,
    pub upgrade: bool,
    /// Other names: fields that end at this hop.
    pub named: usize,
}

impl Options {
    pub fn read(&mut self, value: &[u8]) {
        for token in elements(value).filter(|token| !token.is_empty()) {
            if token.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if token.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else {
                self.named += 1;
            }
        }
    }
}

/// Whether a `Connection` field among `fields` names `name`.
pub(crate) fn is_named(fields: &[httparse::Header<'_>], name: &str) -> bool {
    let connections = fields.iter().filter(|field| kind(field.name) == Some(Field::Connection));
    connections.flat_map(|field| elements(field.value)).any(|token| token.eq_ignore_ascii_case(name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_digits() {
        for (value, expected) in
            [("0", Some(0)), ("18446744073709551615", Some(u64::MAX)), ("18446744073709551616", None), ("", None)]
        {
            assert_eq!(content_length(value.as_bytes()), expected, "{value}");
        }
        for value in ["+4", "-1", "0x4", "4, 4", "4 4", " 4"] {
            assert_eq!(content_length(value.as_bytes()), None, "{value}");
        }
    }

    #[test]
    fn bare_line_feeds_are_found_anywhere() {
        for (head, expected) in
            [("a\r\nb\r\n\r\n", false), ("a\nb\r\n", true), ("\n", true), ("a\r\n\n", true), ("a\r\r\n", false)]
        {
            assert_eq!(has_bare_line_feed(head.as_bytes()), expected, "{head:?}");
        }
    }

    #[test]
    fn names_are_known_in_any_case() {
        assert_eq!(kind("Transfer-Encoding"), Some(Field::TransferEncoding));
        assert_eq!(kind("HOST"), Some(Field::Host));
        for name in ["x-host", "hos", "hosts", "", "te ", "Connectiom", "\u{e9}\u{e9}"] {
            assert_eq!(kind(name), None, "{name}");
        }
        let all = [
            "host",
            "connection",
            "content-length",
            "transfer-encoding",
            "te",
            "upgrade",
            "expect",
            "keep-alive",
            "proxy-connection",
            "http2-settings",
            "forwarded",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
        ];
        let kinds: Vec<_> = all.iter().filter_map(|name| kind(&name.to_uppercase())).collect();
        assert_eq!(kinds.len(), all.len());
    }
}
