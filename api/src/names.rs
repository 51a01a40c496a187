//! Name formats (`k8s.io/apimachinery/pkg/util/validation`). Each check answers with upstream's message.

const LABEL_MAX: usize = 63;
const SUBDOMAIN_MAX: usize = 253;

fn too_long(max: usize) -> String {
    format!("must be no more than {max} characters")
}

fn is_label(s: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = s.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(&first), Some(&last)) => alnum(first) && alnum(last) && bytes.iter().all(|&b| alnum(b) || b == b'-'),
        _ => false,
    }
}

/// RFC 1123 label: `[a-z0-9]([-a-z0-9]*[a-z0-9])?`, at most 63.
pub fn dns1123_label(s: &str) -> Result<(), String> {
    if s.len() > LABEL_MAX {
        return Err(too_long(LABEL_MAX));
    }
    if is_label(s) {
        return Ok(());
    }
    Err("a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')".into())
}

/// RFC 1123 subdomain: labels joined by dots, at most 253.
pub fn dns1123_subdomain(s: &str) -> Result<(), String> {
    if s.len() > SUBDOMAIN_MAX {
        return Err(too_long(SUBDOMAIN_MAX));
    }
    if s.split('.').all(is_label) {
        return Ok(());
    }
    Err("a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')".into())
}

/// RFC 1035 label: starts with a letter, at most 63 (Service names).
pub fn dns1035_label(s: &str) -> Result<(), String> {
    if s.len() > LABEL_MAX {
        return Err(too_long(LABEL_MAX));
    }
    if is_label(s) && s.as_bytes().first().is_some_and(u8::is_ascii_lowercase) {
        return Ok(());
    }
    Err("a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')".into())
}

fn is_name_part(s: &str) -> bool {
    let bytes = s.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            first.is_ascii_alphanumeric()
                && last.is_ascii_alphanumeric()
                && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        }
        _ => false,
    }
}

const NAME_PART: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

/// A label or annotation key: `[prefix/]name`.
pub fn qualified_name(s: &str) -> Result<(), String> {
    let mut parts = s.split('/');
    let (first, second, rest) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    if rest.is_some() {
        return Err("a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')".into());
    }
    let name = match second {
        None => first,
        Some(name) => {
            if first.is_empty() {
                return Err("prefix part must be non-empty".into());
            }
            dns1123_subdomain(first).map_err(|e| format!("prefix part {e}"))?;
            name
        }
    };
    if name.is_empty() {
        return Err("name part must be non-empty".into());
    }
    if name.len() > LABEL_MAX {
        return Err(format!("name part {}", too_long(LABEL_MAX)));
    }
    if is_name_part(name) { Ok(()) } else { Err(NAME_PART.into()) }
}

/// A label value: empty, or at most 63 of `[A-Za-z0-9-_.]` starting and ending alphanumeric.
pub fn label_value(s: &str) -> Result<(), String> {
    if s.len() > LABEL_MAX {
        return Err(too_long(LABEL_MAX));
    }
    if s.is_empty() || is_name_part(s) {
        return Ok(());
    }
    Err("a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')".into())
}

/// A name that only has to be one path segment (RBAC kinds).
pub fn path_segment(s: &str) -> Result<(), String> {
    if s == "." || s == ".." {
        return Err(format!("may not be '{s}'"));
    }
    match s.chars().find(|c| matches!(c, '/' | '%')) {
        Some(c) => Err(format!("may not contain '{c}'")),
        None => Ok(()),
    }
}

/// IANA service name: at most 15, lower-case alphanumerics and single inner dashes, at least one letter.
pub fn port_name(s: &str) -> Result<(), String> {
    const MAX: usize = 15;
    if s.len() > MAX {
        return Err(too_long(MAX));
    }
    if !s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        return Err("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !s.bytes().any(|b| b.is_ascii_lowercase()) {
        return Err("must contain at least one letter (a-z)".into());
    }
    if s.contains("--") {
        return Err("must not contain consecutive hyphens".into());
    }
    if s.starts_with('-') || s.ends_with('-') {
        return Err("must not begin or end with a hyphen".into());
    }
    Ok(())
}

/// An IPv4 or IPv6 address.
pub fn ip(s: &str) -> Result<(), String> {
    s.parse::<std::net::IpAddr>()
        .map(|_| ())
        .map_err(|_| "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into())
}

/// An environment variable name as upstream accepts it by default (printable ASCII but `=`).
pub fn env_var_name(s: &str) -> Result<(), String> {
    if s.is_empty() || !s.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=') {
        return Err(
            "a valid environment variable name must consist only of printable ASCII characters other than '='".into()
        );
    }
    Ok(())
}

/// A key of a ConfigMap or Secret.
pub fn config_key(s: &str) -> Result<(), String> {
    if s.len() > SUBDOMAIN_MAX {
        return Err(too_long(SUBDOMAIN_MAX));
    }
    if s.is_empty() || !s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        return Err("a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')".into());
    }
    match s {
        "." => Err("must not be '.'".into()),
        _ if s.starts_with("..") => Err(if s == ".." { "must not be '..'" } else { "must not start with '..'" }.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        let long = "a".repeat(64);
        let check = |f: fn(&str) -> Result<(), String>, good: &[&str], bad: &[&str]| {
            for s in good {
                assert_eq!(f(s), Ok(()), "{s:?}");
            }
            for s in bad {
                assert!(f(s).is_err(), "{s:?}");
            }
        };
        check(dns1123_label, &["a", "a-1", "1a"], &["", "-a", "a-", "A", "a.b", "a_b", "ä", &long]);
        check(dns1123_subdomain, &["a.b", "a-1.2"], &["", ".", "a..b", "a.", "A.b", "../x"]);
        check(dns1035_label, &["a", "a1"], &["1a", "", "a."]);
        check(qualified_name, &["a", "A_b.c", "x.y/z"], &["", "/a", "a/", "a/b/c", "X.y/z", "a b", &long]);
        check(label_value, &["", "A", "a_b"], &["-a", "a b", &long]);
        check(path_segment, &["system:node", "a b"], &[".", "..", "a/b", "a%2f"]);
        check(port_name, &["http", "h2-c"], &["", "HTTP", "-a", "a-", "a--b", "80", "abcdefghijklmnop"]);
        check(config_key, &["a.b", "_A"], &["", ".", "..", "..x", "a/b", "a b"]);
        check(env_var_name, &["A", "a.b-c"], &["", "A=B", "é"]);
    }
}
