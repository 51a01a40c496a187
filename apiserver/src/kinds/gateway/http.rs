//! HTTPRoute.

use std::collections::BTreeSet;

use scaleup_api::gateway::{
    BackendRef, HTTPBackendRef, HTTPPathMatch, HTTPPathModifier, HTTPRouteFilter, HTTPRouteMatch, HTTPRouteRetry,
    HTTPRouteRule, HTTPRouteSpec, HTTPRouteTimeouts, SessionPersistence,
};
use scaleup_api::names;

use super::super::custom::{SpecRules, count, duration, length, or_default, range};
use super::super::field::{self, Errors, Path};
use super::filters::{self, MAX_PATH, METHODS};
use super::refs;
use super::text::{self, MAX_HEADER_VALUE, MAX_NAME};
use crate::error::FieldError;

/// Most rules of a route.
pub const MAX_RULES: usize = 16;
/// Most matches of a rule.
pub const MAX_MATCHES: usize = 64;
/// Most matches of all rules of a route.
pub const MAX_ALL_MATCHES: usize = 128;
/// Most headers or query parameters of a match.
pub const MAX_CONDITIONS: usize = 16;
const MAX_QUERY_VALUE: usize = 1024;
const MAX_RETRY_CODES: usize = 64;
/// Upstream leaves this to the implementation.
const MAX_ATTEMPTS: i64 = 1000;
const MAX_SESSION_NAME: usize = 128;
/// How headers and parameters are compared.
pub const COMPARISONS: &[&str] = &["Exact", "RegularExpression"];

impl SpecRules for HTTPRouteSpec {
    fn fill(&mut self) {
        self.parent_refs.iter_mut().for_each(refs::default_parent);
        if self.rules.is_empty() {
            self.rules.push(HTTPRouteRule::default());
        }
        self.rules.iter_mut().for_each(default_rule);
    }

    fn validate(&self, _: &str, at: &Path<'_>, errors: &mut Errors) {
        refs::parents(errors, &at.child("parentRefs"), &self.parent_refs);
        refs::hostnames(errors, &at.child("hostnames"), &self.hostnames, 0);
        let list = at.child("rules");
        if count(errors, &list, self.rules.len(), 0, MAX_RULES) {
            return;
        }
        self.rules.iter().enumerate().for_each(|(i, rule)| validate_rule(errors, &list.index(i), rule));
        rule_names(errors, &list, self.rules.iter().map(|r| &r.name));
        all_matches(errors, &list, self.rules.iter().map(|r| r.matches.len()).sum());
    }
}

/// Names of rules are unique.
pub fn rule_names<'a>(errors: &mut Errors, at: &Path<'_>, all: impl Iterator<Item = &'a Option<String>>) {
    let mut seen = BTreeSet::new();
    for (i, name) in all.enumerate() {
        let at = at.index(i);
        text::optional(errors, &at.child("name"), name, MAX_NAME, names::dns1123_subdomain);
        if let Some(name) = name
            && !seen.insert(name)
        {
            errors.push(FieldError::duplicate(at.child("name"), name.as_str()));
        }
    }
}

/// The matches of all rules together.
pub fn all_matches(errors: &mut Errors, at: &Path<'_>, sum: usize) {
    if sum > MAX_ALL_MATCHES {
        let why = format!("the rules of a route may have {MAX_ALL_MATCHES} matches together");
        errors.push(FieldError::invalid(at, sum, why));
    }
}

fn default_rule(rule: &mut HTTPRouteRule) {
    if rule.matches.is_empty() {
        rule.matches.push(HTTPRouteMatch::default());
    }
    for one in &mut rule.matches {
        let path: &mut HTTPPathMatch = one.path.get_or_insert_default();
        or_default(&mut path.r#type, "PathPrefix");
        or_default(&mut path.value, "/");
        one.headers.iter_mut().for_each(|h| or_default(&mut h.r#type, "Exact"));
        one.query_params.iter_mut().for_each(|q| or_default(&mut q.r#type, "Exact"));
    }
    filters::default_http(&mut rule.filters);
    for backend in &mut rule.backend_refs {
        refs::default_backend(&mut backend.group, &mut backend.kind, Some(&mut backend.weight));
        filters::default_http(&mut backend.filters);
    }
    if let Some(session) = &mut rule.session_persistence {
        default_session(session);
    }
}

/// Fills what a session leaves out.
pub fn default_session(session: &mut SessionPersistence) {
    or_default(&mut session.r#type, "Cookie");
    if let Some(cookie) = &mut session.cookie_config {
        or_default(&mut cookie.lifetime_type, "Session");
    }
}

fn validate_rule(errors: &mut Errors, at: &Path<'_>, rule: &HTTPRouteRule) {
    let list = at.child("matches");
    if !count(errors, &list, rule.matches.len(), 0, MAX_MATCHES) {
        rule.matches.iter().enumerate().for_each(|(i, one)| validate_match(errors, &list.index(i), one));
    }
    filters::validate_http(errors, &at.child("filters"), &rule.filters);
    let list = at.child("backendRefs");
    if !count(errors, &list, rule.backend_refs.len(), 0, refs::MAX_BACKENDS) {
        rule.backend_refs.iter().enumerate().for_each(|(i, b)| validate_backend(errors, &list.index(i), b));
    }
    if !rule.backend_refs.is_empty() && rule.filters.iter().any(|f| f.request_redirect.is_some()) {
        errors.push(FieldError::forbidden(list, "must not be used together with a RequestRedirect filter"));
    }
    validate_prefix_replacement(errors, at, rule);
    validate_timeouts(errors, &at.child("timeouts"), rule.timeouts.as_ref());
    validate_retry(errors, &at.child("retry"), rule.retry.as_ref());
    validate_session(errors, &at.child("sessionPersistence"), rule.session_persistence.as_ref());
}

/// What stands for a prefix needs a prefix: the rule has one match, and it is of that type.
fn validate_prefix_replacement(errors: &mut Errors, at: &Path<'_>, rule: &HTTPRouteRule) {
    let prefix =
        |m: &HTTPRouteMatch| m.path.as_ref().and_then(|p| p.r#type.as_deref()).is_none_or(|t| t == "PathPrefix");
    if matches!(rule.matches.as_slice(), [one] if prefix(one)) {
        return;
    }
    let replaces = |path: &Option<HTTPPathModifier>| path.as_ref().is_some_and(|p| p.replace_prefix_match.is_some());
    let of_filter = |f: &HTTPRouteFilter| {
        let redirect = f.request_redirect.as_ref().is_some_and(|r| replaces(&r.path));
        redirect || f.url_rewrite.as_ref().is_some_and(|r| replaces(&r.path))
    };
    let in_backends = rule.backend_refs.iter().flat_map(|b| &b.filters);
    if rule.filters.iter().chain(in_backends).any(of_filter) {
        let why = "must be exactly one, of type PathPrefix, when a filter has path.replacePrefixMatch";
        errors.push(FieldError::invalid(at.child("matches"), rule.matches.len(), why));
    }
}

fn validate_match(errors: &mut Errors, at: &Path<'_>, one: &HTTPRouteMatch) {
    if let Some(path) = &one.path {
        let at = at.child("path");
        let value = path.value.as_deref().unwrap_or("/");
        field::optional_one_of(errors, &at.child("type"), &path.r#type, &["Exact", "PathPrefix", "RegularExpression"]);
        length(errors, &at.child("value"), value, MAX_PATH);
        match path.r#type.as_deref() {
            Some("RegularExpression") => field::required(errors, &at.child("value"), value),
            _ if value.len() <= MAX_PATH => field::format(errors, &at.child("value"), value, text::path),
            _ => {}
        }
    }
    let list = at.child("headers");
    let headers = one.headers.iter().map(|h| (h.name.as_str(), h.value.as_str(), &h.r#type));
    validate_conditions(errors, &list, headers, MAX_HEADER_VALUE, true);
    let list = at.child("queryParams");
    let params = one.query_params.iter().map(|q| (q.name.as_str(), q.value.as_str(), &q.r#type));
    validate_conditions(errors, &list, params, MAX_QUERY_VALUE, false);
    field::optional_one_of(errors, &at.child("method"), &one.method, METHODS);
}

/// Conditions on headers or query parameters: name, value, type. Each name once; of headers whatever its case.
pub fn validate_conditions<'a>(
    errors: &mut Errors,
    at: &Path<'_>,
    all: impl ExactSizeIterator<Item = (&'a str, &'a str, &'a Option<String>)>,
    max_value: usize,
    headers: bool,
) {
    if count(errors, at, all.len(), 0, MAX_CONDITIONS) {
        return;
    }
    let mut seen = BTreeSet::new();
    for (i, (name, value, kind)) in all.enumerate() {
        let at = at.index(i);
        text::required(errors, &at.child("name"), name, text::MAX_HEADER_NAME, text::token);
        text::required(errors, &at.child("value"), value, max_value, text::header_value);
        field::optional_one_of(errors, &at.child("type"), kind, COMPARISONS);
        if !seen.insert(if headers { name.to_ascii_lowercase() } else { name.to_owned() }) {
            errors.push(FieldError::duplicate(at.child("name"), name));
        }
    }
}

fn validate_backend(errors: &mut Errors, at: &Path<'_>, backend: &HTTPBackendRef) {
    let HTTPBackendRef { name, group, kind, namespace, port, weight, filters } = backend.clone();
    refs::backend(errors, at, &BackendRef { name, group, kind, namespace, port, weight });
    filters::validate_http(errors, &at.child("filters"), &filters);
}

fn validate_timeouts(errors: &mut Errors, at: &Path<'_>, timeouts: Option<&HTTPRouteTimeouts>) {
    let Some(timeouts) = timeouts else { return };
    let request = duration(errors, &at.child("request"), timeouts.request.as_deref());
    let backend = duration(errors, &at.child("backendRequest"), timeouts.backend_request.as_deref());
    if let (Some(request), Some(backend)) = (request, backend)
        && !request.is_zero()
        && backend > request
    {
        let why = "must not be longer than the request timeout";
        errors.push(FieldError::invalid(at.child("backendRequest"), field::text(&timeouts.backend_request), why));
    }
}

fn validate_retry(errors: &mut Errors, at: &Path<'_>, retry: Option<&HTTPRouteRetry>) {
    let Some(retry) = retry else { return };
    let codes = at.child("codes");
    if !count(errors, &codes, retry.codes.len(), 0, MAX_RETRY_CODES) {
        retry.codes.iter().enumerate().for_each(|(i, code)| range(errors, &codes.index(i), Some(*code), 400, 599));
    }
    range(errors, &at.child("attempts"), retry.attempts, 0, MAX_ATTEMPTS);
    duration(errors, &at.child("backoff"), retry.backoff.as_deref());
}

/// A session's name, times and cookie.
pub fn validate_session(errors: &mut Errors, at: &Path<'_>, session: Option<&SessionPersistence>) {
    let Some(session) = session else { return };
    text::optional(errors, &at.child("sessionName"), &session.session_name, MAX_SESSION_NAME, text::token);
    duration(errors, &at.child("absoluteTimeout"), session.absolute_timeout.as_deref());
    duration(errors, &at.child("idleTimeout"), session.idle_timeout.as_deref());
    field::optional_one_of(errors, &at.child("type"), &session.r#type, &["Cookie", "Header"]);
    let lifetime = session.cookie_config.as_ref().map(|c| &c.lifetime_type);
    if let Some(lifetime) = lifetime {
        let at = at.child("cookieConfig");
        field::optional_one_of(errors, &at.child("lifetimeType"), lifetime, &["Permanent", "Session"]);
    }
    if lifetime.and_then(Option::as_deref) == Some("Permanent") && session.absolute_timeout.is_none() {
        let why = "must be specified when cookieConfig.lifetimeType is Permanent";
        errors.push(FieldError::required(at.child("absoluteTimeout"), why));
    }
}
