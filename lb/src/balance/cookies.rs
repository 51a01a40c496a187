//! Cookies that keep clients at their endpoints (RFC 6265): found in a request, and written for a response.

use std::time::Duration;

/// Value of a cookie (RFC 6265 §4.2); an empty one is none.
pub(super) fn find<'a>(cookies: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = cookies.split([';', ',']).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(key, value)| *key == name && !value.is_empty()).map(|(_, value)| value)
}

/// The value of a `Set-Cookie` field. `None` if name or path could end an attribute or the field. Without `age` it is a session cookie.
pub(super) fn set(name: &str, value: &str, path: &str, age: Option<Duration>, https: bool) -> Option<String> {
    if !is_safe(name) || name.contains('=') || !is_safe(path) {
        return None;
    }
    let age = age.map(|age| format!("; Max-Age={}", age.as_secs())).unwrap_or_default();
    let secure = if https { "; Secure" } else { "" };
    Some(format!("{name}={value}; Path={path}{age}; HttpOnly; SameSite=Lax{secure}"))
}

/// Whether a text cannot end a cookie's attribute or a field.
fn is_safe(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b';' | b',' | b'"' | b'\\'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_found_by_their_whole_name() {
        assert_eq!(find("xlb=1; lb=2; lb=3", "lb"), Some("2"));
        assert_eq!(find("lb=; a=b", "lb"), None);
        assert_eq!(find("lb", "lb"), None);
    }

    #[test]
    fn hostile_names_and_paths_make_no_cookie() {
        let minute = Some(Duration::from_secs(60));
        assert_eq!(
            set("lb", "v", "/a", minute, true).as_deref(),
            Some("lb=v; Path=/a; Max-Age=60; HttpOnly; SameSite=Lax; Secure")
        );
        for (name, path) in
            [("lb\r\nx: y", "/"), ("a;b", "/"), ("a=b", "/"), ("", "/"), ("lb", "/;Domain=x"), ("lb", "")]
        {
            assert_eq!(set(name, "v", path, None, false), None, "{name:?} {path:?}");
        }
    }
}
