//! Filters of HTTPRoutes and GRPCRoutes, checked: whatever they put into a request or an answer is a valid field, path or host name, and
//! nothing that frames a message can be changed. Pure.

use std::sync::Arc;

use scaleup_api::gateway::{
    BackendObjectReference, HTTPCORSFilter, HTTPHeader, HTTPHeaderFilter, HTTPPathModifier, HTTPRequestMirrorFilter,
    HTTPRequestRedirectFilter, HTTPRouteFilter, HTTPURLRewriteFilter,
};
use scaleup_plugins::routing::PROTECTED_HEADERS;

use super::gateways::valid_host;
use super::references::Fault;
use super::routes::{BackendRef, CorsPlan, Filter, HeaderEdits, HostPattern, PathRewrite, RedirectPlan};

/// Filters of a rule or a backend (the API's limit).
const MAX_FILTERS: usize = 16;
/// Headers in a list (the API's limit).
const MAX_HEADERS: usize = 16;
/// Entries of a CORS list (the API's limit).
const MAX_CORS_ENTRIES: usize = 64;
/// Longest path that is set, in bytes (the API's limit).
const MAX_PATH_BYTES: usize = 1024;

fn invalid(message: impl Into<String>) -> Fault {
    Fault::new("UnsupportedValue", message)
}

/// The steps that `filters` ask for. `prefix`: all matches of the rule are prefixes. `mirror` resolves a backend; a mirror whose backend is
/// not good is left out.
pub(super) fn compile(
    filters: &[HTTPRouteFilter],
    prefix: bool,
    mirror: &mut dyn FnMut(&BackendObjectReference) -> Option<BackendRef>,
) -> Result<Vec<Filter>, Fault> {
    if filters.len() > MAX_FILTERS {
        return Err(invalid(format!("more than {MAX_FILTERS} filters")));
    }
    let mut steps: Vec<Filter> = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for filter in filters {
        let name = filter.r#type.as_str();
        if name != "RequestMirror" && seen.contains(&name) {
            return Err(invalid(format!("filter {name} is given twice")));
        }
        seen.push(name);
        let missing = || invalid(format!("filter {name:?} lacks its field"));
        let step = match name {
            "RequestHeaderModifier" => {
                let edits = filter.request_header_modifier.as_ref().ok_or_else(missing)?;
                Some(Filter::RequestHeaders(header_edits(edits)?))
            }
            "ResponseHeaderModifier" => {
                let edits = filter.response_header_modifier.as_ref().ok_or_else(missing)?;
                Some(Filter::ResponseHeaders(header_edits(edits)?))
            }
            "RequestMirror" => {
                let wanted = filter.request_mirror.as_ref().ok_or_else(missing)?;
                let (numerator, denominator) = share(wanted)?;
                mirror(&wanted.backend_ref).map(|backend| Filter::Mirror { backend, numerator, denominator })
            }
            "RequestRedirect" => {
                let wanted = filter.request_redirect.as_ref().ok_or_else(missing)?;
                Some(Filter::Redirect(redirect(wanted, prefix)?))
            }
            "URLRewrite" => Some(rewrite(filter.url_rewrite.as_ref().ok_or_else(missing)?, prefix)?),
            "CORS" => Some(Filter::Cors(cors(filter.cors.as_ref().ok_or_else(missing)?)?)),
            other => return Err(invalid(format!("filter {other:?} is not supported"))),
        };
        steps.extend(step);
    }
    if seen.contains(&"RequestRedirect") && seen.contains(&"URLRewrite") {
        return Err(Fault::new("IncompatibleFilters", "RequestRedirect and URLRewrite exclude each other"));
    }
    Ok(steps)
}

/// A field's name in lower case, if it may be changed.
pub(crate) fn field_name(name: &str) -> Result<Arc<str>, Fault> {
    let lower = name.to_ascii_lowercase();
    if http::HeaderName::from_bytes(lower.as_bytes()).is_err() {
        return Err(invalid(format!("{name:?} is not a header's name")));
    }
    Ok(lower.into())
}

/// Likewise, if edits may touch it.
pub(crate) fn editable(name: &str) -> Result<Arc<str>, Fault> {
    let name = field_name(name)?;
    if PROTECTED_HEADERS.contains(&&*name) {
        return Err(invalid(format!("header {name} cannot be changed; URLRewrite.hostname changes the host")));
    }
    Ok(name)
}

/// Name and value of a field.
type Pair = (Arc<str>, Arc<str>);

fn header_edits(filter: &HTTPHeaderFilter) -> Result<HeaderEdits, Fault> {
    let pairs = |headers: &[HTTPHeader]| -> Result<Vec<Pair>, Fault> {
        if headers.len() > MAX_HEADERS {
            return Err(invalid(format!("more than {MAX_HEADERS} headers")));
        }
        headers.iter().map(|header| Ok((editable(&header.name)?, field_value(&header.value)?))).collect()
    };
    if filter.remove.len() > MAX_HEADERS {
        return Err(invalid(format!("more than {MAX_HEADERS} headers")));
    }
    Ok(HeaderEdits {
        set: pairs(&filter.set)?,
        add: pairs(&filter.add)?,
        remove: filter.remove.iter().map(|name| editable(name)).collect::<Result<_, _>>()?,
    })
}

fn field_value(value: &str) -> Result<Arc<str>, Fault> {
    if http::HeaderValue::from_str(value).is_err() || value.trim() != value {
        return Err(invalid(format!("{value:?} is not a header's value")));
    }
    Ok(value.into())
}

fn share(mirror: &HTTPRequestMirrorFilter) -> Result<(u32, u32), Fault> {
    let (numerator, denominator) = match (mirror.percent, &mirror.fraction) {
        (None, None) => (1, 1),
        (Some(percent), None) => (percent, 100),
        (None, Some(fraction)) => (fraction.numerator, fraction.denominator.unwrap_or(100)),
        (Some(_), Some(_)) => return Err(invalid("RequestMirror: percent and fraction exclude each other")),
    };
    match (u32::try_from(numerator), u32::try_from(denominator)) {
        (Ok(numerator), Ok(denominator)) if denominator > 0 && numerator <= denominator => Ok((numerator, denominator)),
        _ => Err(invalid("RequestMirror: the share is not between 0 and 1")),
    }
}

fn redirect(filter: &HTTPRequestRedirectFilter, prefix: bool) -> Result<RedirectPlan, Fault> {
    let scheme = filter.scheme.as_deref().map(|scheme| match scheme {
        "http" | "https" => Ok(scheme.into()),
        other => Err(invalid(format!("RequestRedirect: scheme {other:?} is neither http nor https"))),
    });
    let status = match filter.status_code.unwrap_or(302) {
        status @ (301 | 302 | 303 | 307 | 308) => u16::try_from(status).unwrap_or(302),
        other => return Err(invalid(format!("RequestRedirect: status {other} is not a redirect's"))),
    };
    let port = filter.port.map(|port| match u16::try_from(port) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(invalid(format!("RequestRedirect: {port} is not a port"))),
    });
    Ok(RedirectPlan {
        scheme: scheme.transpose()?,
        hostname: filter.hostname.as_deref().map(hostname).transpose()?,
        port: port.transpose()?,
        path: filter.path.as_ref().map(|path| path_rewrite(path, prefix)).transpose()?,
        status,
    })
}

fn rewrite(filter: &HTTPURLRewriteFilter, prefix: bool) -> Result<Filter, Fault> {
    Ok(Filter::Rewrite {
        hostname: filter.hostname.as_deref().map(hostname).transpose()?,
        path: filter.path.as_ref().map(|path| path_rewrite(path, prefix)).transpose()?,
    })
}

fn hostname(text: &str) -> Result<Arc<str>, Fault> {
    match valid_host(text) {
        Some(HostPattern::Exact(name)) => Ok(name),
        _ => Err(invalid(format!("{text:?} is not a host name"))),
    }
}

fn path_rewrite(path: &HTTPPathModifier, prefix: bool) -> Result<PathRewrite, Fault> {
    match (&*path.r#type, &path.replace_full_path, &path.replace_prefix_match) {
        ("ReplaceFullPath", Some(path), _) => Ok(PathRewrite::Full(new_path(path)?)),
        ("ReplacePrefixMatch", _, Some(path)) if prefix => Ok(PathRewrite::Prefix(new_path(path)?)),
        ("ReplacePrefixMatch", _, Some(_)) => Err(invalid("ReplacePrefixMatch needs matches of type PathPrefix only")),
        (other, ..) => Err(invalid(format!("path modifier {other:?} is not supported or lacks its field"))),
    }
}

/// A path that can stand in a request line and in `Location`. An empty one is the root.
fn new_path(path: &str) -> Result<Arc<str>, Fault> {
    if path.is_empty() {
        return Ok("/".into());
    }
    let fine =
        path.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'"' | b'<' | b'>' | b'\\'));
    if !path.starts_with('/') || path.starts_with("//") || !fine || path.len() > MAX_PATH_BYTES {
        return Err(invalid(format!("{path:?} is not a path")));
    }
    Ok(path.into())
}

fn cors(filter: &HTTPCORSFilter) -> Result<CorsPlan, Fault> {
    let list = |texts: &[String], lower: bool| -> Result<Vec<Arc<str>>, Fault> {
        if texts.len() > MAX_CORS_ENTRIES {
            return Err(invalid(format!("CORS: more than {MAX_CORS_ENTRIES} entries")));
        }
        let tokens = texts.iter().map(|text| match http::HeaderName::from_bytes(text.as_bytes()) {
            Ok(name) if lower => Ok(name.as_str().into()),
            Ok(_) => Ok(text.as_str().into()),
            Err(_) => Err(invalid(format!("CORS: {text:?} is not a name"))),
        });
        tokens.collect()
    };
    if filter.allow_origins.len() > MAX_CORS_ENTRIES {
        return Err(invalid(format!("CORS: more than {MAX_CORS_ENTRIES} entries")));
    }
    let max_age = filter.max_age.unwrap_or(5);
    Ok(CorsPlan {
        origins: filter.allow_origins.iter().map(|text| origin(text)).collect::<Result<_, _>>()?,
        methods: list(&filter.allow_methods, false)?,
        headers: list(&filter.allow_headers, true)?,
        expose: list(&filter.expose_headers, true)?,
        credentials: filter.allow_credentials.unwrap_or(false),
        max_age_s: u32::try_from(max_age).map_err(|_| invalid("CORS: maxAge is negative"))?,
    })
}

/// `scheme://host[:port]`, where the host may begin with `*.`, or `*`.
fn origin(text: &str) -> Result<Arc<str>, Fault> {
    let refused = || invalid(format!("CORS: {text:?} is not an origin"));
    if text == "*" {
        return Ok(text.into());
    }
    let (scheme, rest) = text.split_once("://").ok_or_else(refused)?;
    let host = match rest.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => host,
        Some(_) => return Err(refused()),
        None => rest,
    };
    let letters =
        !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    if !letters || (host != "*" && (host.is_empty() || valid_host(host).is_none())) {
        return Err(refused());
    }
    Ok(text.to_ascii_lowercase().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Protocol, ServiceKey};
    use serde_json::{Value, json};

    fn compiled(filters: Value, prefix: bool) -> Result<Vec<Filter>, Fault> {
        let filters: Vec<HTTPRouteFilter> = serde_json::from_value(filters).expect("filters");
        compile(&filters, prefix, &mut |reference| {
            let service = ServiceKey::new("d", &reference.name);
            (reference.name != "missing").then_some(BackendRef { service, port: 80, protocol: Protocol::Tcp })
        })
    }

    #[track_caller]
    fn check(filter: Value, expected: &[Filter]) {
        assert_eq!(compiled(json!([filter]), true).expect("valid"), expected);
    }

    #[track_caller]
    fn refused(filters: Value, reason: &str) {
        assert_eq!(compiled(filters.clone(), false).expect_err("refused").reason, reason, "{filters}");
    }

    #[test]
    fn headers_are_changed() {
        let edits = json!({"set": [{"name": "X-A", "value": "1"}], "add": [{"name": "x-b", "value": "a b"}], "remove": ["X-C"]});
        let plan = HeaderEdits {
            set: vec![("x-a".into(), "1".into())],
            add: vec![("x-b".into(), "a b".into())],
            remove: vec!["x-c".into()],
        };
        check(
            json!({"type": "RequestHeaderModifier", "requestHeaderModifier": edits}),
            &[Filter::RequestHeaders(plan.clone())],
        );
        check(
            json!({"type": "ResponseHeaderModifier", "responseHeaderModifier": edits}),
            &[Filter::ResponseHeaders(plan)],
        );
    }

    #[test]
    fn framing_and_hostile_headers_are_refused() {
        for (name, value) in [
            ("Transfer-Encoding", "chunked"),
            ("content-length", "0"),
            ("Host", "a"),
            ("connection", "close"),
            ("x y", "1"),
            ("", "1"),
            ("x", "a\r\nb: c"),
            ("x", "a\0"),
            ("x:", "1"),
        ] {
            let edits = json!({"set": [{"name": name, "value": value}]});
            refused(json!([{"type": "RequestHeaderModifier", "requestHeaderModifier": edits}]), "UnsupportedValue");
        }
        refused(
            json!([{"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["content-length"]}}]),
            "UnsupportedValue",
        );
    }

    #[test]
    fn redirects_and_rewrites() {
        check(
            json!({"type": "RequestRedirect", "requestRedirect": {"scheme": "https", "hostname": "B.example", "port": 8443,
                   "statusCode": 301, "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": ""}}}),
            &[Filter::Redirect(RedirectPlan {
                scheme: Some("https".into()),
                hostname: Some("b.example".into()),
                port: Some(8443),
                path: Some(PathRewrite::Prefix("/".into())),
                status: 301,
            })],
        );
        check(
            json!({"type": "URLRewrite", "urlRewrite": {"hostname": "b", "path": {"type": "ReplaceFullPath", "replaceFullPath": "/x"}}}),
            &[Filter::Rewrite { hostname: Some("b".into()), path: Some(PathRewrite::Full("/x".into())) }],
        );
        let redirect =
            |field: &str, value: Value| json!([{"type": "RequestRedirect", "requestRedirect": {field: value}}]);
        refused(redirect("scheme", json!("ftp")), "UnsupportedValue");
        refused(redirect("hostname", json!("*.a")), "UnsupportedValue");
        refused(redirect("hostname", json!("a\r\nb")), "UnsupportedValue");
        refused(redirect("statusCode", json!(200)), "UnsupportedValue");
        refused(redirect("port", json!(0)), "UnsupportedValue");
        for path in ["x", "/a b", "/a\r\nx: y", "//evil.example", "/é", "/a?b"] {
            let path = json!({"type": "ReplaceFullPath", "replaceFullPath": path});
            refused(redirect("path", path), "UnsupportedValue");
        }
        let prefix = json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": "/x"});
        refused(redirect("path", prefix), "UnsupportedValue");
        refused(
            json!([{"type": "RequestRedirect", "requestRedirect": {}}, {"type": "URLRewrite", "urlRewrite": {}}]),
            "IncompatibleFilters",
        );
        refused(
            json!([{"type": "URLRewrite", "urlRewrite": {}}, {"type": "URLRewrite", "urlRewrite": {}}]),
            "UnsupportedValue",
        );
    }

    #[test]
    fn mirrors_take_a_share() {
        let mirror = |extra: Value| {
            let mut filter = json!({"backendRef": {"name": "copy", "port": 80}});
            filter.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
            json!([{"type": "RequestMirror", "requestMirror": filter}])
        };
        let shares = |extra: Value| match &compiled(mirror(extra), false).expect("valid")[..] {
            [Filter::Mirror { numerator, denominator, .. }] => (*numerator, *denominator),
            other => panic!("{other:?}"),
        };
        assert_eq!(shares(json!({})), (1, 1));
        assert_eq!(shares(json!({"percent": 5})), (5, 100));
        assert_eq!(shares(json!({"fraction": {"numerator": 1, "denominator": 3}})), (1, 3));
        refused(mirror(json!({"percent": 101})), "UnsupportedValue");
        refused(mirror(json!({"fraction": {"numerator": 1, "denominator": 0}})), "UnsupportedValue");
        assert_eq!(compiled(mirror(json!({"backendRef": {"name": "missing"}})), false), Ok(vec![]));
    }

    #[test]
    fn cors_lists_are_checked() {
        check(
            json!({"type": "CORS", "cors": {"allowOrigins": ["https://*.A.example", "http://b:81", "*"], "allowMethods": ["GET", "*"],
                   "allowHeaders": ["X-A"], "exposeHeaders": ["*"], "allowCredentials": true}}),
            &[Filter::Cors(CorsPlan {
                origins: vec!["https://*.a.example".into(), "http://b:81".into(), "*".into()],
                methods: vec!["GET".into(), "*".into()],
                headers: vec!["x-a".into()],
                expose: vec!["*".into()],
                credentials: true,
                max_age_s: 5,
            })],
        );
        for (field, value) in [
            ("allowOrigins", "a"),
            ("allowOrigins", "https://a\r\n"),
            ("allowMethods", "G T"),
            ("exposeHeaders", "a:b"),
        ] {
            refused(json!([{"type": "CORS", "cors": {field: [value]}}]), "UnsupportedValue");
        }
        refused(json!([{"type": "ExtensionRef"}]), "UnsupportedValue");
        refused(json!([{"type": "URLRewrite"}]), "UnsupportedValue");
    }
}
