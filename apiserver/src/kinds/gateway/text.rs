//! Formats of text in the Gateway API. Each check says what the text must be.

use scaleup_api::names;

use super::super::custom::length;
use super::super::field::{self, Errors, Path};

/// Longest name, host name or domain.
pub const MAX_NAME: usize = 253;
/// Longest header or query parameter name.
pub const MAX_HEADER_NAME: usize = 256;
/// Longest value of a header.
pub const MAX_HEADER_VALUE: usize = 4096;

/// A check of a format: `Err` says what the text must be.
pub type Check = fn(&str) -> Result<(), String>;

fn check(good: bool, why: &str) -> Result<(), String> {
    if good { Ok(()) } else { Err(why.into()) }
}

/// An API group: empty (core) or a DNS subdomain.
pub fn group(text: &str) -> Result<(), String> {
    if text.is_empty() { Ok(()) } else { names::dns1123_subdomain(text) }
}

/// A kind: letters, digits and inner dashes, beginning with a letter, at most 63.
pub fn kind(text: &str) -> Result<(), String> {
    let bytes = text.as_bytes();
    let good = bytes.len() <= 63
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
        && bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.last().is_some_and(|b| *b != b'-');
    check(good, "must be a kind: at most 63 letters, digits and '-', beginning with a letter (e.g. 'Service')")
}

/// A host name that is not an address.
pub fn precise_hostname(text: &str) -> Result<(), String> {
    names::dns1123_subdomain(text)?;
    check(text.parse::<std::net::IpAddr>().is_err(), "must be a DNS name, not an IP address")
}

/// A host name, perhaps with `*` for its first label.
pub fn hostname(text: &str) -> Result<(), String> {
    precise_hostname(text.strip_prefix("*.").unwrap_or(text))
        .map_err(|e| format!("{e}; a first label of '*' is allowed"))
}

/// `domain/path`, as controllers are named.
pub fn controller(text: &str) -> Result<(), String> {
    check(domain_path(text), "must be a domain and a path (e.g. 'example.com/gateway')")
}

fn domain_path(text: &str) -> bool {
    let of_path = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b);
    text.split_once('/').is_some_and(|(domain, path)| {
        names::dns1123_subdomain(domain).is_ok() && !path.is_empty() && path.bytes().all(of_path)
    })
}

/// A token of RFC 9110: names of headers and query parameters.
pub fn token(text: &str) -> Result<(), String> {
    let of_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let good = !text.is_empty() && text.len() <= MAX_HEADER_NAME && text.bytes().all(of_token);
    check(good, "must be a token of RFC 9110: at most 256 letters, digits and any of !#$%&'*+-.^_`|~")
}

/// A value of a header: no control characters, so that none can end the line.
pub fn header_value(text: &str) -> Result<(), String> {
    check(!text.bytes().any(|b| b < b' ' && b != b'\t' || b == 0x7f), "must not contain control characters")
}

/// A type of address of a Gateway.
pub fn address_type(text: &str) -> Result<(), String> {
    let known = ["IPAddress", "Hostname", "NamedAddress"].contains(&text);
    check(known || domain_path(text), "must be 'IPAddress', 'Hostname', 'NamedAddress' or a domain and a path")
}

/// A protocol of a listener.
pub fn protocol(text: &str) -> Result<(), String> {
    let word = |w: &str| names::dns1123_label(&w.to_ascii_lowercase()).is_ok();
    let own = |(domain, name): (&str, &str)| {
        names::dns1123_subdomain(domain).is_ok() && !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    let good = word(text) || text.split_once('/').is_some_and(own);
    check(good, "must be 'HTTP', 'HTTPS', 'TLS', 'TCP', 'UDP' or a domain and a name")
}

/// A path that is compared with a request's: RFC 3986 `pchar` and slashes, in the one form that requests are brought to.
pub fn path(text: &str) -> Result<(), String> {
    check(text.starts_with('/'), "must be an absolute path and start with '/'")?;
    for part in ["//", "/./", "/../", "%2f", "%2F", "#"] {
        check(!text.contains(part), &format!("must not contain '{part}'"))?;
    }
    for end in ["/..", "/."] {
        check(!text.ends_with(end), &format!("must not end with '{end}'"))?;
    }
    check(path_characters(text), "must only contain valid characters of a path (RFC 3986)")
}

/// RFC 3986 `pchar` and `/`; a percent sign has two hexadecimal digits.
pub fn path_characters(text: &str) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let good = match byte {
            b'%' => {
                bytes.next().is_some_and(|b| b.is_ascii_hexdigit())
                    && bytes.next().is_some_and(|b| b.is_ascii_hexdigit())
            }
            b => b.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@".contains(&b),
        };
        if !good {
            return false;
        }
    }
    true
}

/// What a filter may put into a path: no control characters or spaces, no query, no fragment.
pub fn new_path(text: &str) -> Result<(), String> {
    check(text.is_empty() || path_characters(text), "must only contain valid characters of a path (RFC 3986)")
}

/// `scheme://host[:port]` or `*`, as CORS origins are written; the host may begin with `*.`.
pub fn origin(text: &str) -> Result<(), String> {
    let good = || {
        let (scheme, rest) = text.split_once("://")?;
        let scheme_ok = scheme.bytes().next()?.is_ascii_alphabetic()
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
        let (host, port) = rest.rsplit_once(':').map_or((rest, None), |(host, port)| (host, Some(port)));
        let port_ok = port.is_none_or(|p| p.len() <= 5 && p.parse::<u16>().is_ok());
        let host_ok =
            host == "*" || !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic() && !b":/?#".contains(&b));
        (scheme_ok && port_ok && host_ok).then_some(())
    };
    check(text == "*" || good().is_some(), "must be '*' or an origin (e.g. 'https://example.com:8443')")
}

/// A URI with a scheme.
pub fn uri(text: &str) -> Result<(), String> {
    let scheme = |s: &str| !s.is_empty() && !s.bytes().any(|b| b"/?#".contains(&b));
    let good = text.split_once(':').is_some_and(|(s, rest)| scheme(s) && !rest.is_empty());
    check(
        good && !text.bytes().any(|b| b.is_ascii_control() || b == b' '),
        "must be a URI (e.g. 'spiffe://example.com/web')",
    )
}

/// Name of a gRPC service, `package.Service`.
pub fn grpc_service(text: &str) -> Result<(), String> {
    let text = text.strip_prefix('.').unwrap_or(text);
    check(text.split('.').all(|part| grpc_method(part).is_ok()), "must be a service's name (e.g. 'shop.v1.Cart')")
}

/// Name of a gRPC method.
pub fn grpc_method(text: &str) -> Result<(), String> {
    let good = text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    check(good, "must be a method's name (e.g. 'AddItem')")
}

/// A required text of a format, at most `max` bytes.
pub fn required(errors: &mut Errors, path: &Path<'_>, text: &str, max: usize, check: Check) {
    length(errors, path, text, max);
    if text.len() <= max {
        field::required_format(errors, path, text, check);
    }
}

/// A text of a format that may be absent, but not empty.
pub fn optional(errors: &mut Errors, path: &Path<'_>, text: &Option<String>, max: usize, check: Check) {
    if let Some(text) = text {
        required(errors, path, text, max, check);
    }
}

/// Any text.
pub fn any(_: &str) -> Result<(), String> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn holds(check: Check, good: &[&str], bad: &[&str]) {
        for text in good {
            assert_eq!(check(text), Ok(()), "{text:?}");
        }
        for text in bad {
            assert!(check(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn formats() {
        holds(kind, &["Service", "My-Kind1"], &["", "1a", "a-", "a b", "a\n"]);
        holds(
            hostname,
            &["a.example", "*.a.example", "localhost"],
            &["", "*", "*.", "a.*.b", "A.example", "10.0.0.1", "a..b", "a b"],
        );
        holds(controller, &["scaleup.dev/gateway", "a.b/C/d~1"], &["", "a.b", "a.b/", "A.b/c", "a.b/c d", "/c"]);
        holds(token, &["X-A", "a_b", "`~"], &["", "a b", "a:b", "é", "a\r\nb"]);
        holds(header_value, &["a b", "é", "\t"], &["a\r\nb: c", "a\0"]);
        holds(protocol, &["HTTP", "a.b/FOO"], &["", "H TTP", "a.b/", "a.b/f-o"]);
        holds(
            path,
            &["/", "/a/b", "/a%20b", "/a/..b", "/a."],
            &["", "a", "//", "/a/./b", "/a/..", "/.", "/%2F", "/%2f", "/a#b", "/a b", "/a%2", "/?x", "/é"],
        );
        holds(
            origin,
            &["*", "https://a.example", "https://*.a.example", "http://a:8080"],
            &["", "a.example", "https://", "https://a/b", "https://a:x", "https://a:70000"],
        );
        holds(uri, &["spiffe://a/b", "urn:x"], &["", "a", ":a", "/a:b", "a: b"]);
        holds(grpc_service, &["a.b.C", ".a.b", "_x"], &["", "a..b", "1a", "a/b", "a-b"]);
        holds(address_type, &["IPAddress", "a.b/c"], &["", "ip", "IPAddress2"]);
    }
}
