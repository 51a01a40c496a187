//! What HTTPRoutes and GRPCRoutes have in common: rules with matches, filters, backends and sessions. What each has alone is in its file.

use std::collections::BTreeSet;

use scaleup_api::gateway::{BackendRef, ParentReference, SessionPersistence};
use scaleup_api::names;

use super::super::custom::{count, duration, or_default};
use super::super::field::{self, Errors, Path};
use super::filters::{self, Filter};
use super::refs;
use super::text::{self, MAX_NAME};
use crate::error::FieldError;

/// Most rules of a route.
pub const MAX_RULES: usize = 16;
/// Most matches of a rule.
const MAX_MATCHES: usize = 64;
/// Most matches of all rules of a route.
const MAX_ALL_MATCHES: usize = 128;
/// Most headers or query parameters of a match.
const MAX_CONDITIONS: usize = 16;
const MAX_SESSION_NAME: usize = 128;
/// How headers and parameters are compared.
pub const COMPARISONS: &[&str] = &["Exact", "RegularExpression"];

/// A condition of a rule.
pub trait Match {
    /// Fills what it leaves out.
    fn fill(&mut self);
    /// Checks it.
    fn validate(&self, errors: &mut Errors, at: &Path<'_>);
}

/// A backend with filters of its own.
pub trait Backend {
    /// Their kind.
    type Filter: Filter;
    /// Itself without filters.
    fn reference(&self) -> BackendRef;
    /// Its filters.
    fn filters(&self) -> &[Self::Filter];
    /// Group, kind and weight; filters.
    fn parts_mut(&mut self) -> ([&mut Option<String>; 2], &mut Option<i32>, &mut [Self::Filter]);
}

/// A rule.
pub trait Rule {
    /// Its conditions.
    type Match: Match;
    /// Its backends.
    type Backend: Backend;
    /// What it consists of.
    fn parts(&self) -> Parts<'_, Self::Match, Self::Backend>;
    /// Matches, filters, backends, session.
    #[allow(clippy::type_complexity, reason = "named where it is taken apart")]
    fn parts_mut(
        &mut self,
    ) -> (
        &mut [Self::Match],
        &mut [<Self::Backend as Backend>::Filter],
        &mut [Self::Backend],
        Option<&mut SessionPersistence>,
    );
    /// Fills what only rules of this kind have.
    fn fill_own(&mut self) {}
    /// Checks what only rules of this kind have.
    fn validate_own(&self, _: &mut Errors, _: &Path<'_>) {}
}

/// What a rule consists of.
pub struct Parts<'a, M, B: Backend> {
    pub name: &'a Option<String>,
    pub matches: &'a [M],
    pub filters: &'a [B::Filter],
    pub backends: &'a [B],
    pub session: Option<&'a SessionPersistence>,
}

/// The traits of a kind's rules and backends, whose fields have the same names: `rule!(HTTPRouteRule, HTTPRouteMatch, HTTPRouteFilter,
/// HTTPBackendRef; fn fill_own ..)`.
macro_rules! rule {
    ($rule:ty, $match:ty, $filter:ty, $backend:ident; $($own:item)*) => {
        impl super::route::Backend for $backend {
            type Filter = $filter;
            fn reference(&self) -> scaleup_api::gateway::BackendRef {
                let $backend { name, group, kind, namespace, port, weight, filters: _ } = self.clone();
                scaleup_api::gateway::BackendRef { name, group, kind, namespace, port, weight }
            }
            fn filters(&self) -> &[$filter] {
                &self.filters
            }
            fn parts_mut(&mut self) -> ([&mut Option<String>; 2], &mut Option<i32>, &mut [$filter]) {
                ([&mut self.group, &mut self.kind], &mut self.weight, &mut self.filters)
            }
        }
        impl super::route::Rule for $rule {
            type Match = $match;
            type Backend = $backend;
            fn parts(&self) -> super::route::Parts<'_, $match, $backend> {
                super::route::Parts {
                    name: &self.name,
                    matches: &self.matches,
                    filters: &self.filters,
                    backends: &self.backend_refs,
                    session: self.session_persistence.as_ref(),
                }
            }
            fn parts_mut(
                &mut self,
            ) -> (
                &mut [$match],
                &mut [$filter],
                &mut [$backend],
                Option<&mut scaleup_api::gateway::SessionPersistence>,
            ) {
                (&mut self.matches, &mut self.filters, &mut self.backend_refs, self.session_persistence.as_mut())
            }
            $($own)*
        }
    };
}
pub(super) use rule;

/// Fills what a route leaves out.
pub fn fill<R: Rule>(parents: &mut [ParentReference], rules: &mut [R]) {
    parents.iter_mut().for_each(refs::default_parent);
    for rule in rules {
        rule.fill_own();
        let (matches, of_rule, backends, session) = rule.parts_mut();
        matches.iter_mut().for_each(Match::fill);
        filters::fill(of_rule);
        for backend in backends {
            let ([group, kind], weight, of_backend) = backend.parts_mut();
            refs::default_backend(group, kind, Some(weight));
            filters::fill(of_backend);
        }
        if let Some(session) = session {
            or_default(&mut session.r#type, "Cookie");
            if let Some(cookie) = &mut session.cookie_config {
                or_default(&mut cookie.lifetime_type, "Session");
            }
        }
    }
}

/// Checks a route.
pub fn validate<R: Rule>(
    errors: &mut Errors,
    at: &Path<'_>,
    (parents, hostnames): (&[ParentReference], &[String]),
    rules: &[R],
) {
    refs::parents(errors, &at.child("parentRefs"), parents);
    refs::hostnames(errors, &at.child("hostnames"), hostnames, 0);
    let at = at.child("rules");
    if count(errors, &at, rules.len(), 0, MAX_RULES) {
        return;
    }
    rules.iter().enumerate().for_each(|(i, rule)| validate_rule(errors, &at.index(i), rule));
    rule_names(errors, &at, rules.iter().map(|rule| rule.parts().name));
    let sum: usize = rules.iter().map(|rule| rule.parts().matches.len()).sum();
    if sum > MAX_ALL_MATCHES {
        let why = format!("the rules of a route may have {MAX_ALL_MATCHES} matches together");
        errors.push(FieldError::invalid(at, sum, why));
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

fn validate_rule<R: Rule>(errors: &mut Errors, at: &Path<'_>, rule: &R) {
    let Parts { name: _, matches, filters: of_rule, backends, session } = rule.parts();
    let list = at.child("matches");
    if !count(errors, &list, matches.len(), 0, MAX_MATCHES) {
        matches.iter().enumerate().for_each(|(i, one)| one.validate(errors, &list.index(i)));
    }
    filters::validate(errors, &at.child("filters"), of_rule);
    let list = at.child("backendRefs");
    if !count(errors, &list, backends.len(), 0, refs::MAX_BACKENDS) {
        for (i, backend) in backends.iter().enumerate() {
            let at = list.index(i);
            refs::backend(errors, &at, &backend.reference());
            filters::validate(errors, &at.child("filters"), backend.filters());
        }
    }
    rule.validate_own(errors, at);
    validate_session(errors, &at.child("sessionPersistence"), session);
}

/// Conditions on headers or query parameters: name, value, type. Each name once; of headers whatever its case.
pub fn conditions<'a>(
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

/// A session's name, times and cookie.
fn validate_session(errors: &mut Errors, at: &Path<'_>, session: Option<&SessionPersistence>) {
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
