//! Paths in the one form that is matched and sent on, so that what a route does not see an endpoint does not see either.
//!
//! | in the path | becomes |
//! |---|---|
//! | `%41`, `%2e` and other escapes of unreserved characters | the character (RFC 3986 §6.2.2.2) |
//! | `%2f`, `%c3` | upper case, still escaped (§6.2.2.1): data, not a separator |
//! | `/./`, `/a/../` | resolved (§5.2.4) |
//! | `//` | `/`, as nginx does |
//! | `..` above the root, `..%2f`, `..;x`, `\`, `%00`, an escape that is none | refused: endpoints disagree about it |
//!
//! A Service's own port has no routes, so paths pass there as they are. Queries always do. Pure.

use std::borrow::Cow;

/// The path means different things to different servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the path is ambiguous")]
pub(crate) struct Ambiguous;

/// The normal form of a path (without query). Paths that are in it already cost a look at each byte and no memory; what does not begin
/// with a slash (`*`) is left alone.
pub(crate) fn normalize(path: &str) -> Result<Cow<'_, str>, Ambiguous> {
    if is_plain(path) || !path.starts_with('/') {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = decode_unreserved(path)?;
    let mut out = String::with_capacity(decoded.len());
    let mut segments = decoded.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "" | "." if !last => {}
            "" | "." => out.push('/'),
            ".." => {
                out.truncate(out.rfind('/').ok_or(Ambiguous)?);
                if last {
                    out.push('/');
                }
            }
            _ if hides_dots(segment) => return Err(Ambiguous),
            _ => {
                out.push('/');
                out.push_str(segment);
            }
        }
    }
    Ok(if out == path { Cow::Borrowed(path) } else { Cow::Owned(out) })
}

/// Whether nothing needs a second look.
fn is_plain(path: &str) -> bool {
    let mut before = 0;
    path.bytes().all(|byte| {
        let odd = matches!(byte, b'%' | b'\\') || (before == b'/' && matches!(byte, b'/' | b'.'));
        before = byte;
        !odd
    })
}

fn decode_unreserved(path: &str) -> Result<String, Ambiguous> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find(['%', '\\']) {
        out.push_str(&rest[..at]);
        let escape = rest.get(at..at + 3).filter(|escape| escape.starts_with('%')).ok_or(Ambiguous)?;
        if !escape.bytes().skip(1).all(|b| b.is_ascii_hexdigit()) {
            return Err(Ambiguous);
        }
        let byte = u8::from_str_radix(&escape[1..], 16).map_err(|_| Ambiguous)?;
        match byte {
            0 => return Err(Ambiguous),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.extend(escape.chars().map(|c| c.to_ascii_uppercase())),
        }
        rest = &rest[at + 3..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Whether a server that takes escaped slashes for separators, or cuts parameters off, sees a dot segment.
fn hides_dots(segment: &str) -> bool {
    let dots = |part: &str| matches!(part.split(';').next(), Some("." | ".."));
    segment.split("%2F").flat_map(|part| part.split("%5C")).any(dots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, expected: Option<&str>) {
        assert_eq!(normalize(path).ok().as_deref(), expected, "{path}");
    }

    #[test]
    fn equal_paths_get_one_form() {
        for (path, expected) in [
            ("/", "/"),
            ("*", "*"),
            ("/a/b", "/a/b"),
            ("/a/", "/a/"),
            ("/.well-known/x", "/.well-known/x"),
            ("/...", "/..."),
            ("/a/./b", "/a/b"),
            ("/a/.", "/a/"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/..", "/"),
            ("/a/%2e%2E/b", "/b"),
            ("/%61dmin", "/admin"),
            ("//a///b//", "/a/b/"),
            ("/a%20b", "/a%20b"),
            ("/x%2fy%c3%A9", "/x%2Fy%C3%A9"),
            ("/@scope%2fname", "/@scope%2Fname"),
            ("/a;v=1/b", "/a;v=1/b"),
        ] {
            check(path, Some(expected));
        }
    }

    #[test]
    fn what_servers_disagree_about_is_refused() {
        for path in [
            "/..",
            "/a/../../b",
            "/%2e%2e/b",
            "/a/..%2fb",
            "/a%2f..%2Fb",
            "/a%2f%2e%2e",
            "/a/..%5cb",
            "/a\\..\\b",
            "/a\\b",
            "/a/..;/b",
            "/a/..;x=1/b",
            "/a/.;/b",
            "/a%00b",
            "/a%",
            "/a%4",
            "/a%zz",
            "/a%+1",
            "/é%é",
        ] {
            check(path, None);
        }
    }

    #[test]
    fn a_normal_form_is_its_own_normal_form() {
        for path in ["/a/%2e/b/../c%2fd//", "/%25%32%65", "/%7e", "/a//b/.."] {
            let once = normalize(path).expect("a good path").into_owned();
            assert_eq!(normalize(&once).as_deref(), Ok(&*once), "{path}");
        }
    }
}
