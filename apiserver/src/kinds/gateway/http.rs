//! HTTPRoute.

use scaleup_api::gateway::{
    HTTPBackendRef, HTTPPathMatch, HTTPPathModifier, HTTPRouteFilter, HTTPRouteMatch, HTTPRouteRetry, HTTPRouteRule,
    HTTPRouteSpec, HTTPRouteTimeouts,
};

use super::super::custom::{SpecRules, count, duration, length, or_default, range};
use super::super::field::{self, Errors, Path};
use super::filters::{MAX_PATH, METHODS};
use super::route::{self, Match};
use super::text::{self, MAX_HEADER_VALUE};
use crate::error::FieldError;

const MAX_QUERY_VALUE: usize = 1024;
const MAX_RETRY_CODES: usize = 64;
/// Upstream leaves this to the implementation.
const MAX_ATTEMPTS: i64 = 1000;

impl SpecRules for HTTPRouteSpec {
    fn fill(&mut self) {
        if self.rules.is_empty() {
            self.rules.push(HTTPRouteRule::default());
        }
        route::fill(&mut self.parent_refs, &mut self.rules);
    }

    fn validate(&self, _: &str, at: &Path<'_>, errors: &mut Errors) {
        route::validate(errors, at, (&self.parent_refs, &self.hostnames), &self.rules);
    }
}

route::rule!(HTTPRouteRule, HTTPRouteMatch, HTTPRouteFilter, HTTPBackendRef;
    fn fill_own(&mut self) {
        if self.matches.is_empty() {
            self.matches.push(HTTPRouteMatch::default());
        }
    }

    fn validate_own(&self, errors: &mut Errors, at: &Path<'_>) {
        if !self.backend_refs.is_empty() && self.filters.iter().any(|f| f.request_redirect.is_some()) {
            let why = "must not be used together with a RequestRedirect filter";
            errors.push(FieldError::forbidden(at.child("backendRefs"), why));
        }
        validate_prefix_replacement(errors, at, self);
        validate_timeouts(errors, &at.child("timeouts"), self.timeouts.as_ref());
        validate_retry(errors, &at.child("retry"), self.retry.as_ref());
    }
);

impl Match for HTTPRouteMatch {
    fn fill(&mut self) {
        let path: &mut HTTPPathMatch = self.path.get_or_insert_default();
        or_default(&mut path.r#type, "PathPrefix");
        or_default(&mut path.value, "/");
        self.headers.iter_mut().for_each(|h| or_default(&mut h.r#type, "Exact"));
        self.query_params.iter_mut().for_each(|q| or_default(&mut q.r#type, "Exact"));
    }

    fn validate(&self, errors: &mut Errors, at: &Path<'_>) {
        if let Some(path) = &self.path {
            let at = at.child("path");
            let value = path.value.as_deref().unwrap_or("/");
            field::optional_one_of(
                errors,
                &at.child("type"),
                &path.r#type,
                &["Exact", "PathPrefix", "RegularExpression"],
            );
            length(errors, &at.child("value"), value, MAX_PATH);
            match path.r#type.as_deref() {
                Some("RegularExpression") => field::required(errors, &at.child("value"), value),
                _ if value.len() <= MAX_PATH => field::format(errors, &at.child("value"), value, text::path),
                _ => {}
            }
        }
        let headers = self.headers.iter().map(|h| (h.name.as_str(), h.value.as_str(), &h.r#type));
        route::conditions(errors, &at.child("headers"), headers, MAX_HEADER_VALUE, true);
        let params = self.query_params.iter().map(|q| (q.name.as_str(), q.value.as_str(), &q.r#type));
        route::conditions(errors, &at.child("queryParams"), params, MAX_QUERY_VALUE, false);
        field::optional_one_of(errors, &at.child("method"), &self.method, METHODS);
    }
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
