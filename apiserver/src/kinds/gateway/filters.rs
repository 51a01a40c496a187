//! Filters of HTTPRoutes and GRPCRoutes.

use std::collections::BTreeSet;

use scaleup_api::gateway::{
    GRPCRouteFilter, HTTPCORSFilter, HTTPHeader, HTTPHeaderFilter, HTTPPathModifier, HTTPRequestMirrorFilter,
    HTTPRequestRedirectFilter, HTTPRouteFilter, HTTPURLRewriteFilter, LocalObjectReference,
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

/// A filter of a route's rule or backend.
pub trait Filter {
    /// `type`
    fn kind(&self) -> &str;
    /// Every type.
    fn members(&self) -> Vec<(&'static str, &'static str, bool)>;
    /// What is done to the heads of requests and responses.
    fn modifiers(&self) -> [Option<&HTTPHeaderFilter>; 2];
    /// Where copies go.
    fn mirror(&self) -> Option<&HTTPRequestMirrorFilter>;
    /// Likewise.
    fn mirror_mut(&mut self) -> Option<&mut HTTPRequestMirrorFilter>;
    /// An object of somebody else's.
    fn extension(&self) -> Option<&LocalObjectReference>;
    /// Fills what only filters of this kind of route have.
    fn fill_own(&mut self) {}
    /// Checks what only filters of this kind of route have.
    fn validate_own(&self, _: &mut Errors, _: &Path<'_>) {}
}

/// `filter!(HTTPRouteFilter, [("RequestRedirect", "requestRedirect", request_redirect), ..]; fn fill_own ..)`: beside the types that
/// filters of all routes have, those that these alone have.
macro_rules! filter {
    ($filter:ty, [$($own_type:tt)*]; $($own:item)*) => {
        impl Filter for $filter {
            fn kind(&self) -> &str {
                &self.r#type
            }
            fn members(&self) -> Vec<(&'static str, &'static str, bool)> {
                filter!(@members self,
                    ("RequestHeaderModifier", "requestHeaderModifier", request_header_modifier),
                    ("ResponseHeaderModifier", "responseHeaderModifier", response_header_modifier),
                    ("RequestMirror", "requestMirror", request_mirror),
                    $($own_type)*
                    ("ExtensionRef", "extensionRef", extension_ref),
                )
            }
            fn modifiers(&self) -> [Option<&HTTPHeaderFilter>; 2] {
                [self.request_header_modifier.as_ref(), self.response_header_modifier.as_ref()]
            }
            fn mirror(&self) -> Option<&HTTPRequestMirrorFilter> {
                self.request_mirror.as_ref()
            }
            fn mirror_mut(&mut self) -> Option<&mut HTTPRequestMirrorFilter> {
                self.request_mirror.as_mut()
            }
            fn extension(&self) -> Option<&LocalObjectReference> {
                self.extension_ref.as_ref()
            }
            $($own)*
        }
    };
    (@members $filter:ident, $(($kind:literal, $member:literal, $field:ident),)*) => {
        vec![$(($kind, $member, $filter.$field.is_some())),*]
    };
}

filter!(GRPCRouteFilter, [];);

filter!(HTTPRouteFilter, [
        ("RequestRedirect", "requestRedirect", request_redirect),
        ("URLRewrite", "urlRewrite", url_rewrite),
        ("CORS", "cors", cors),
    ];
    fn fill_own(&mut self) {
        if let Some(redirect) = &mut self.request_redirect {
            redirect.status_code.get_or_insert(302);
        }
        if let Some(cors) = &mut self.cors {
            cors.max_age.get_or_insert(5);
        }
    }

    fn validate_own(&self, errors: &mut Errors, at: &Path<'_>) {
        if let Some(redirect) = &self.request_redirect {
            validate_redirect(errors, &at.child("requestRedirect"), redirect);
        }
        if let Some(HTTPURLRewriteFilter { hostname, path }) = &self.url_rewrite {
            let at = at.child("urlRewrite");
            text::optional(errors, &at.child("hostname"), hostname, MAX_NAME, text::precise_hostname);
            path_modifier(errors, &at.child("path"), path.as_ref());
        }
        if let Some(cors) = &self.cors {
            validate_cors(errors, &at.child("cors"), cors);
        }
    }
);

/// Fills what filters leave out.
pub fn fill(filters: &mut [impl Filter]) {
    for filter in filters {
        filter.fill_own();
        let Some(mirror) = filter.mirror_mut() else { continue };
        refs::default_backend(&mut mirror.backend_ref.group, &mut mirror.backend_ref.kind, None);
        if let Some(fraction) = &mut mirror.fraction {
            fraction.denominator.get_or_insert(100);
        }
    }
}

/// Checks the filters of a rule or backend.
pub fn validate<F: Filter>(errors: &mut Errors, at: &Path<'_>, filters: &[F]) {
    if count(errors, at, filters.len(), 0, MAX_FILTERS) {
        return;
    }
    once(errors, at, filters.iter().map(F::kind));
    for (i, filter) in filters.iter().enumerate() {
        let at = at.index(i);
        union(errors, &at, filter.kind(), &filter.members());
        let [request, response] = filter.modifiers();
        headers(errors, &at.child("requestHeaderModifier"), request);
        headers(errors, &at.child("responseHeaderModifier"), response);
        if let Some(mirror) = filter.mirror() {
            validate_mirror(errors, &at.child("requestMirror"), mirror);
        }
        filter.validate_own(errors, &at);
        if let Some(extension) = filter.extension() {
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
