//! For a request that matches no rule: what came nearest, and what was missing.

use super::{Near, path_matches};
use crate::access::rule_name;
use crate::proxy::held::Held;
use crate::route::{Head, whole};
use crate::snapshot::routes::{FieldMatch, HostPattern, HttpPlan, PathMatch, RulePlan, ValueMatch};

/// Rules, hosts or ports that are listed at most.
pub(super) const MAX_SHOWN: usize = 5;

/// The verdict, and the nearest rules.
pub(super) fn missed(plan: Option<&HttpPlan>, request: &Held) -> (String, Vec<Near>) {
    let Some(plan) = plan else {
        return ("No rule matches: the answer is 404.".to_owned(), Vec::new());
    };
    let list = |hosts: Vec<&HostPattern>| {
        let shown: Vec<String> = hosts.iter().take(MAX_SHOWN).map(ToString::to_string).collect();
        let more = hosts.len().saturating_sub(shown.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        if shown.is_empty() { "none".to_owned() } else { format!("{}{more}", shown.join(", ")) }
    };
    // In the order of precedence: only the first that matches counts.
    let Some((listener, hosts)) = plan.listeners.iter().find(|(host, _)| host.matches(&request.host)) else {
        let known = list(plan.listeners.keys().collect());
        return (format!("No listener of the port takes the host {:?}: they take {known}.", request.host), Vec::new());
    };
    let candidates: Vec<&RulePlan> = hosts
        .hosts
        .iter()
        .filter(|(host, _)| host.matches(&request.host))
        .flat_map(|(_, rules)| rules.iter().map(|rule| &**rule))
        .collect();
    if candidates.is_empty() {
        let known = list(hosts.hosts.keys().collect());
        let text = format!(
            "The listener for {listener} takes the host {:?}, but no route does: the answer is 404. Routes there take {known}.",
            request.host
        );
        return (text, Vec::new());
    }
    let mut near: Vec<(usize, usize, Near)> = candidates
        .into_iter()
        .map(|rule| {
            let why = reasons(rule, request);
            // A path that matches is nearer than anything else; then a long common beginning.
            let missed = why.len() + if path_matches(&rule.path, &request.path) == Some(true) { 0 } else { MAX_SHOWN };
            (missed, usize::MAX - common(&rule.path, &request.path), Near { rule: rule_name(&rule.id), why })
        })
        .collect();
    near.sort_by_key(|(missed, far, _)| (*missed, *far));
    let text = format!("No rule for the host {:?} matches: the answer is 404.", request.host);
    (text, near.into_iter().take(MAX_SHOWN).map(|(_, _, near)| near).collect())
}

/// Bytes that a pattern and a path have in common in front.
fn common(pattern: &PathMatch, path: &str) -> usize {
    pattern.text().bytes().zip(path.bytes()).take_while(|(a, b)| a == b).count()
}

pub(super) fn path_text(pattern: &PathMatch) -> String {
    match pattern {
        PathMatch::Exact(path) => format!("is {path}"),
        PathMatch::Prefix(path) => format!("begins with {path}"),
        PathMatch::Regex(pattern) | PathMatch::AnyService(pattern) => format!("matches {pattern}"),
    }
}

/// What of a rule does not match.
fn reasons(rule: &RulePlan, request: &Held) -> Vec<String> {
    let mut why = Vec::new();
    if path_matches(&rule.path, &request.path) != Some(true) {
        why.push(format!("the path {} is none that {}", request.path, path_text(&rule.path)));
    }
    if let Some(method) = rule.method.as_ref().filter(|method| ***method != *request.method) {
        why.push(format!("the method is {}, not {method}", request.method));
    }
    for field in &rule.headers {
        why.extend(missing("header", field, request.header(&field.name).as_deref()));
    }
    for field in &rule.query {
        let query = request.query.as_deref().unwrap_or_default();
        let found = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| **name == *field.name);
        why.extend(missing("query parameter", field, found.as_ref().map(|(_, value)| &**value)));
    }
    if why.is_empty() {
        why.push("a more specific host has rules, which go first".to_owned());
    }
    why
}

fn missing(what: &str, field: &FieldMatch, got: Option<&str>) -> Option<String> {
    let (wanted, matches) = match &field.value {
        ValueMatch::Exact(value) => (format!("{value:?}"), got == Some(&**value)),
        ValueMatch::Regex(pattern) => {
            let matches = whole(pattern).zip(got).is_some_and(|(regex, got)| regex.is_match(got));
            (format!("one that matches {pattern:?}"), matches)
        }
    };
    if matches {
        return None;
    }
    Some(match got {
        None => format!("the {what} {:?} is missing; it should be {wanted}", field.name),
        Some(got) => format!("the {what} {:?} is {got:?}, not {wanted}", field.name),
    })
}
