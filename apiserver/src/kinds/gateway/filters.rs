//! Filters of HTTPRoutes and GRPCRoutes.

use std::collections::BTreeSet;

use scaleup_api::gateway::{
    GRPCRouteFilter, HTTPCORSFilter, HTTPHeader, HTTPHeaderFilter, HTTPPathModifier, HTTPRequestMirrorFilter,
    HTTPRequestRedirectFilter, HTTPRouteFilter, HTTPURLRewriteFilter,
};

use super::super::custom::{count, length, range};
use super::super::field::{self, Errors, Path};
use super::refs;
use super::text::{self, MAX_HEADER_VALUE, MAX_NAME};
use crate::error::FieldError;

/// Most filters of a rule or backend, and most headers of a list of a header filter.
pub const MAX_FILTERS: usize = 16;
/// Longest path.
pub const MAX_PATH: usize = 1024;
const MAX_CORS: usize = 64;
const MAX_CORS_METHODS: usize = 9;
/// Methods that requests are told apart by.
pub const METHODS: &[&str] = &["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];
const REDIRECTS: &[i32] = &[301, 302, 303, 307, 308];

/// The filter types that may stand in a list once only.
const ONCE: &[&str] = &["RequestHeaderModifier", "ResponseHeaderModifier", "RequestRedirect", "URLRewrite", "CORS"];

/// `type`, and for each type the name of its field and whether it is set.
type Union<'a> = &'a [(&'static str, &'static str, bool)];

/// The type is known, its field is set, and no other one is.
fn union(errors: &mut Errors, at: &Path<'_>, kind: &str, members: Union<'_>) {
    let types: Vec<&str> = members.iter().map(|(name, ..)| *name).collect();
    field::one_of(errors, &at.child("type"), kind, &types);
    for (name, member, set) in members {
        match (*name == kind, set) {
            (true, false) => {
                errors.push(FieldError::required(at.child(member), format!("must be specified for type {name}")));
            }
            (false, true) => {
                errors.push(FieldError::forbidden(at.child(member), format!("may only be specified for type {name}")));
            }
            _ => {}
        }
    }
}

/// Types that may stand once only stand once.
fn once<'a>(errors: &mut Errors, at: &Path<'_>, types: impl Iterator<Item = &'a str>) {
    let mut seen = BTreeSet::new();
    for (i, kind) in types.enumerate() {
        if !seen.insert(kind) && ONCE.contains(&kind) {
            errors.push(FieldError::invalid(at.index(i), kind, format!("{kind} filter cannot be repeated")));
        }
    }
    if seen.contains("RequestRedirect") && seen.contains("URLRewrite") {
        errors.push(FieldError::forbidden(at, "RequestRedirect and URLRewrite must not be used together"));
    }
}

/// Fills what filters leave out.
pub fn default_http(filters: &mut [HTTPRouteFilter]) {
    for filter in filters {
        if let Some(mirror) = &mut filter.request_mirror {
            default_mirror(mirror);
        }
        if let Some(redirect) = &mut filter.request_redirect {
            redirect.status_code.get_or_insert(302);
        }
        if let Some(cors) = &mut filter.cors {
            cors.max_age.get_or_insert(5);
        }
    }
}

/// Fills what filters leave out.
pub fn default_grpc(filters: &mut [GRPCRouteFilter]) {
    filters.iter_mut().filter_map(|f| f.request_mirror.as_mut()).for_each(default_mirror);
}

fn default_mirror(mirror: &mut HTTPRequestMirrorFilter) {
    refs::default_backend(&mut mirror.backend_ref.group, &mut mirror.backend_ref.kind, None);
    if let Some(fraction) = &mut mirror.fraction {
        fraction.denominator.get_or_insert(100);
    }
}

/// Filters of an HTTPRoute's rule or backend.
pub fn validate_http(errors: &mut Errors, at: &Path<'_>, filters: &[HTTPRouteFilter]) {
    if count(errors, at, filters.len(), 0, MAX_FILTERS) {
        return;
    }
    once(errors, at, filters.iter().map(|f| f.r#type.as_str()));
    for (i, f) in filters.iter().enumerate() {
        let at = at.index(i);
        let members: Union<'_> = &[
            ("RequestHeaderModifier", "requestHeaderModifier", f.request_header_modifier.is_some()),
            ("ResponseHeaderModifier", "responseHeaderModifier", f.response_header_modifier.is_some()),
            ("RequestMirror", "requestMirror", f.request_mirror.is_some()),
            ("RequestRedirect", "requestRedirect", f.request_redirect.is_some()),
            ("URLRewrite", "urlRewrite", f.url_rewrite.is_some()),
            ("CORS", "cors", f.cors.is_some()),
            ("ExtensionRef", "extensionRef", f.extension_ref.is_some()),
        ];
        union(errors, &at, &f.r#type, members);
        headers(errors, &at.child("requestHeaderModifier"), f.request_header_modifier.as_ref());
        headers(errors, &at.child("responseHeaderModifier"), f.response_header_modifier.as_ref());
        if let Some(mirror) = &f.request_mirror {
            validate_mirror(errors, &at.child("requestMirror"), mirror);
        }
        if let Some(redirect) = &f.request_redirect {
            validate_redirect(errors, &at.child("requestRedirect"), redirect);
        }
        if let Some(HTTPURLRewriteFilter { hostname, path }) = &f.url_rewrite {
            let at = at.child("urlRewrite");
            text::optional(errors, &at.child("hostname"), hostname, MAX_NAME, text::precise_hostname);
            path_modifier(errors, &at.child("path"), path.as_ref());
        }
        if let Some(cors) = &f.cors {
            validate_cors(errors, &at.child("cors"), cors);
        }
        if let Some(extension) = &f.extension_ref {
            refs::local(errors, &at.child("extensionRef"), extension);
        }
    }
}

/// Filters of a GRPCRoute's rule or backend.
pub fn validate_grpc(errors: &mut Errors, at: &Path<'_>, filters: &[GRPCRouteFilter]) {
    if count(errors, at, filters.len(), 0, MAX_FILTERS) {
        return;
    }
    once(errors, at, filters.iter().map(|f| f.r#type.as_str()));
    for (i, f) in filters.iter().enumerate() {
        let at = at.index(i);
        let members: Union<'_> = &[
            ("RequestHeaderModifier", "requestHeaderModifier", f.request_header_modifier.is_some()),
            ("ResponseHeaderModifier", "responseHeaderModifier", f.response_header_modifier.is_some()),
            ("RequestMirror", "requestMirror", f.request_mirror.is_some()),
            ("ExtensionRef", "extensionRef", f.extension_ref.is_some()),
        ];
        union(errors, &at, &f.r#type, members);
        headers(errors, &at.child("requestHeaderModifier"), f.request_header_modifier.as_ref());
        headers(errors, &at.child("responseHeaderModifier"), f.response_header_modifier.as_ref());
        if let Some(mirror) = &f.request_mirror {
            validate_mirror(errors, &at.child("requestMirror"), mirror);
        }
        if let Some(extension) = &f.extension_ref {
            refs::local(errors, &at.child("extensionRef"), extension);
        }
    }
}

/// Each name is in one list at most, and once. Names of headers are compared without case.
fn headers(errors: &mut Errors, at: &Path<'_>, filter: Option<&HTTPHeaderFilter>) {
    let Some(filter) = filter else { return };
    let mut seen = BTreeSet::new();
    let mut check = |errors: &mut Errors, at: &Path<'_>, name: &str| {
        text::required(errors, at, name, text::MAX_HEADER_NAME, text::token);
        if !seen.insert(name.to_ascii_lowercase()) {
            errors.push(FieldError::duplicate(at, name));
        }
    };
    for (member, list) in [("set", &filter.set), ("add", &filter.add)] {
        let list_at = at.child(member);
        if !count(errors, &list_at, list.len(), 0, MAX_FILTERS) {
            for (i, HTTPHeader { name, value }) in list.iter().enumerate() {
                check(errors, &list_at.index(i).child("name"), name);
                text::required(errors, &list_at.index(i).child("value"), value, MAX_HEADER_VALUE, text::header_value);
            }
        }
    }
    let list_at = at.child("remove");
    if !count(errors, &list_at, filter.remove.len(), 0, MAX_FILTERS) {
        filter.remove.iter().enumerate().for_each(|(i, name)| check(errors, &list_at.index(i), name));
    }
}

fn validate_mirror(errors: &mut Errors, at: &Path<'_>, mirror: &HTTPRequestMirrorFilter) {
    refs::backend_object(errors, &at.child("backendRef"), &mirror.backend_ref);
    range(errors, &at.child("percent"), mirror.percent, 0, 100);
    let Some(fraction) = &mirror.fraction else { return };
    let at = at.child("fraction");
    if mirror.percent.is_some() {
        errors.push(FieldError::forbidden(at, "only one of percent and fraction may be specified"));
    }
    let denominator = fraction.denominator.unwrap_or(100);
    range(errors, &at.child("denominator"), Some(denominator), 1, i32::MAX.into());
    range(errors, &at.child("numerator"), Some(fraction.numerator), 0, denominator.max(0).into());
}

fn validate_redirect(errors: &mut Errors, at: &Path<'_>, redirect: &HTTPRequestRedirectFilter) {
    field::optional_one_of(errors, &at.child("scheme"), &redirect.scheme, &["http", "https"]);
    text::optional(errors, &at.child("hostname"), &redirect.hostname, MAX_NAME, text::precise_hostname);
    path_modifier(errors, &at.child("path"), redirect.path.as_ref());
    range(errors, &at.child("port"), redirect.port, 1, 65535);
    if let Some(code) = redirect.status_code.filter(|code| !REDIRECTS.contains(code)) {
        let why = "must be one of 301, 302, 303, 307, 308";
        errors.push(FieldError::invalid(at.child("statusCode"), code, why));
    }
}

fn path_modifier(errors: &mut Errors, at: &Path<'_>, path: Option<&HTTPPathModifier>) {
    let Some(path) = path else { return };
    let members: Union<'_> = &[
        ("ReplaceFullPath", "replaceFullPath", path.replace_full_path.is_some()),
        ("ReplacePrefixMatch", "replacePrefixMatch", path.replace_prefix_match.is_some()),
    ];
    union(errors, at, &path.r#type, members);
    for (member, value) in
        [("replaceFullPath", &path.replace_full_path), ("replacePrefixMatch", &path.replace_prefix_match)]
    {
        length(errors, &at.child(member), field::text(value), MAX_PATH);
        field::format(errors, &at.child(member), field::text(value), text::new_path);
    }
}

fn validate_cors(errors: &mut Errors, at: &Path<'_>, cors: &HTTPCORSFilter) {
    let lists: [(&str, &[String], usize, text::Check); 4] = [
        ("allowOrigins", &cors.allow_origins, MAX_CORS, text::origin),
        ("allowMethods", &cors.allow_methods, MAX_CORS_METHODS, cors_method),
        ("allowHeaders", &cors.allow_headers, MAX_CORS, text::token),
        ("exposeHeaders", &cors.expose_headers, MAX_CORS, text::token),
    ];
    for (member, list, max, check) in lists {
        let list_at = at.child(member);
        if count(errors, &list_at, list.len(), 0, max) {
            continue;
        }
        for (i, item) in list.iter().enumerate() {
            text::required(errors, &list_at.index(i), item, MAX_NAME, check);
            if list[..i].contains(item) {
                errors.push(FieldError::duplicate(list_at.index(i), item.as_str()));
            }
        }
        if list.len() > 1 && list.iter().any(|item| item == "*") {
            errors.push(FieldError::invalid(list_at, "*", "must be the only item"));
        }
    }
    range(errors, &at.child("maxAge"), cors.max_age, 1, i32::MAX.into());
}

fn cors_method(text: &str) -> Result<(), String> {
    if text == "*" || METHODS.contains(&text) { Ok(()) } else { Err("must be '*' or a method, e.g. 'GET'".into()) }
}
