//! Rules of HTTPRoutes and GRPCRoutes as [`RulePlan`]s, for one route at a time and independent of where it attaches. A rule that is not
//! valid is left out and its fault told; the others are served (`PartiallyInvalid`). Pure.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use scaleup_api::gateway::{
    GRPCRoute, GRPCRouteFilter, GRPCRouteMatch, HTTPRoute, HTTPRouteFilter, HTTPRouteMatch, HTTPRouteRule,
    SessionPersistence,
};

use super::filters::{self, field_name};
use super::objects::{ObjectKey, Objects, RouteKey, RouteKind};
use super::references::{Fault, WrittenRef, backend, written};
use super::routes::{BackendRef, FieldMatch, PathMatch, RuleId, RulePlan, ValueMatch, WeightedBackend};
use super::sessions;
use crate::policy::Retries;
use crate::policy::parts::RequestPart;

/// Rules of a route, matches of a rule, conditions of a match, backends of a rule that are read (the API's limits).
const MAX_RULES: usize = 16;
const MAX_MATCHES: usize = 64;
const MAX_CONDITIONS: usize = 16;
const MAX_BACKENDS: usize = 16;
/// Longest text that is matched, in bytes.
const MAX_MATCH_BYTES: usize = 4096;
/// Largest weight (the API's limit).
const MAX_WEIGHT: i32 = 1_000_000;
/// Most retries, as for a TrafficPolicy.
const MAX_ATTEMPTS: i32 = 10;

/// A rule with what its policy depends on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rule {
    /// For `sectionName` of policies.
    pub name: Option<Arc<str>>,
    /// One per match; the policy is still the default.
    pub plans: Vec<RulePlan>,
    /// What the route itself says about its requests.
    pub own: RequestPart,
    /// Its backends' Services and ports, in order.
    pub backends: Vec<BackendRef>,
}

/// The rules of a route, and everything that was found out on the way.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Rules {
    pub rules: Vec<Rule>,
    /// Rules that are left out, by index.
    pub dropped: Vec<(usize, Fault)>,
    /// References that are not good.
    pub unresolved: Vec<Fault>,
    /// Service ports that traffic may go to, mirrors included.
    pub backends: BTreeSet<BackendRef>,
    /// Services that are named, whether or not they exist.
    pub mentions: BTreeSet<ObjectKey>,
    /// What is not done although the route asks for it.
    pub notes: Vec<String>,
}

/// A backend as HTTPRoute and GRPCRoute write it.
struct WrittenBackend<'a> {
    reference: WrittenRef<'a>,
    weight: Option<i32>,
    filters: Vec<HTTPRouteFilter>,
}

/// A rule as HTTPRoute and GRPCRoute write it.
struct Written<'a> {
    index: usize,
    name: Option<&'a str>,
    own: Result<RequestPart, Fault>,
    session: Option<&'a SessionPersistence>,
    conditions: Result<Vec<Condition>, Fault>,
    filters: &'a [HTTPRouteFilter],
    backends: Vec<WrittenBackend<'a>>,
}

/// Condition on one request.
struct Condition {
    path: PathMatch,
    method: Option<Arc<str>>,
    headers: Vec<FieldMatch>,
    query: Vec<FieldMatch>,
}

/// The rules of an HTTPRoute.
pub(super) fn of_http(objects: &Objects, key: &RouteKey, route: &HTTPRoute) -> Rules {
    let mut out = Rules::default();
    let everything = [HTTPRouteRule::default()];
    let rules = if route.spec.rules.is_empty() { &everything[..] } else { &route.spec.rules };
    for (index, rule) in rules.iter().take(MAX_RULES).enumerate() {
        let conditions = conditions(&rule.matches, http_condition);
        let backends = rule.backend_refs.iter().take(MAX_BACKENDS).map(|backend| WrittenBackend {
            reference: written!(backend),
            weight: backend.weight,
            filters: backend.filters.clone(),
        });
        let own = own_part(rule);
        let (name, session) = (rule.name.as_deref(), rule.session_persistence.as_ref());
        let written =
            Written { index, name, own, session, conditions, filters: &rule.filters, backends: backends.collect() };
        out.add(objects, key, written);
    }
    out
}

/// The rules of a GRPCRoute: gRPC is `POST /SERVICE/METHOD`.
pub(super) fn of_grpc(objects: &Objects, key: &RouteKey, route: &GRPCRoute) -> Rules {
    let mut out = Rules::default();
    for (index, rule) in route.spec.rules.iter().take(MAX_RULES).enumerate() {
        let conditions = conditions(&rule.matches, grpc_condition);
        let backends = rule.backend_refs.iter().take(MAX_BACKENDS).map(|backend| WrittenBackend {
            reference: written!(backend),
            weight: backend.weight,
            filters: backend.filters.iter().map(http_filter).collect(),
        });
        let filters: Vec<HTTPRouteFilter> = rule.filters.iter().map(http_filter).collect();
        let (name, session, own) =
            (rule.name.as_deref(), rule.session_persistence.as_ref(), Ok(RequestPart::default()));
        let written =
            Written { index, name, own, session, conditions, filters: &filters, backends: backends.collect() };
        out.add(objects, key, written);
    }
    out
}

fn http_filter(filter: &GRPCRouteFilter) -> HTTPRouteFilter {
    HTTPRouteFilter {
        r#type: filter.r#type.clone(),
        request_header_modifier: filter.request_header_modifier.clone(),
        response_header_modifier: filter.response_header_modifier.clone(),
        request_mirror: filter.request_mirror.clone(),
        ..HTTPRouteFilter::default()
    }
}

impl Rules {
    fn add(&mut self, objects: &Objects, key: &RouteKey, written: Written<'_>) {
        let index = written.index;
        if let Err(fault) = self.try_add(objects, key, written) {
            self.dropped.push((index, fault));
        }
    }

    fn try_add(&mut self, objects: &Objects, key: &RouteKey, written: Written<'_>) -> Result<(), Fault> {
        let Written { index, name, own, session, conditions, filters, backends } = written;
        let (mut own, conditions) = (own?, conditions?);
        if let Some(session) = session {
            let rule = name.map_or_else(|| index.to_string(), str::to_owned);
            let paths = conditions.iter().map(|condition| &condition.path);
            own.session = Some(sessions::policy(session, key, &rule, paths)?);
        }
        let prefix = conditions.iter().all(|condition| matches!(condition.path, PathMatch::Prefix(_)));
        let filters = self.filters(objects, key, filters, prefix)?;
        let mut shares = Vec::new();
        let mut named = Vec::new();
        for share in backends {
            let backend = self.resolve(objects, key.kind, &key.key.namespace, share.reference);
            let weight = u32::try_from(share.weight.unwrap_or(1).clamp(0, MAX_WEIGHT)).unwrap_or(0);
            named.extend(backend.clone());
            let filters = self.filters(objects, key, &share.filters, prefix)?;
            shares.push(WeightedBackend { backend, weight, filters });
        }
        let plan = |(matched, condition): (usize, Condition)| RulePlan {
            id: RuleId {
                kind: key.kind.as_str(),
                namespace: key.key.namespace.clone(),
                name: key.key.name.clone(),
                rule: index,
                matched,
            },
            path: condition.path,
            method: condition.method,
            headers: condition.headers,
            query: condition.query,
            filters: filters.clone(),
            backends: shares.clone(),
            policy: Arc::default(),
        };
        let plans = conditions.into_iter().enumerate().map(plan).collect();
        self.rules.push(Rule { name: name.map(Arc::from), plans, own, backends: named });
        Ok(())
    }

    fn filters(
        &mut self,
        objects: &Objects,
        key: &RouteKey,
        filters: &[HTTPRouteFilter],
        prefix: bool,
    ) -> Result<Vec<super::routes::Filter>, Fault> {
        filters::compile(filters, prefix, &mut |mirror| {
            self.resolve(objects, key.kind, &key.key.namespace, written!(mirror))
        })
    }

    /// The Service port of a reference; notes the Service, and what is wrong.
    pub(super) fn resolve(
        &mut self,
        objects: &Objects,
        kind: RouteKind,
        namespace: &str,
        reference: WrittenRef<'_>,
    ) -> Option<BackendRef> {
        let (service, found) = backend(objects, kind, namespace, reference);
        self.mentions.extend(service);
        match found {
            Ok(backend) => {
                self.backends.insert(backend.clone());
                Some(backend)
            }
            Err(fault) => {
                self.unresolved.push(fault);
                None
            }
        }
    }
}

fn conditions<M>(
    matches: &[M],
    condition: fn(Option<&M>) -> Result<Condition, Fault>,
) -> Result<Vec<Condition>, Fault> {
    if matches.is_empty() {
        return Ok(vec![condition(None)?]);
    }
    matches.iter().take(MAX_MATCHES).map(|wanted| condition(Some(wanted))).collect()
}

fn http_condition(wanted: Option<&HTTPRouteMatch>) -> Result<Condition, Fault> {
    let root = || PathMatch::Prefix("/".into());
    let Some(wanted) = wanted else {
        return Ok(Condition { path: root(), method: None, headers: vec![], query: vec![] });
    };
    let path = match &wanted.path {
        Some(path) => path_match(path.r#type.as_deref().unwrap_or("PathPrefix"), path.value.as_deref().unwrap_or("/"))?,
        None => root(),
    };
    let method = wanted.method.as_deref().map(|method| {
        let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"].contains(&method);
        if known { Ok(method.into()) } else { Err(unsupported(format!("{method:?} is not a method"))) }
    });
    let headers = wanted.headers.iter().map(|h| (h.name.as_str(), h.r#type.as_deref(), h.value.as_str()));
    let mut query: Vec<FieldMatch> = Vec::new();
    for parameter in wanted.query_params.iter().take(MAX_CONDITIONS) {
        // Of two conditions on one name the first counts, as the API says.
        if !query.iter().any(|known| *known.name == *parameter.name) {
            let value = value_match(parameter.r#type.as_deref(), &parameter.value)?;
            query.push(FieldMatch { name: parameter.name.as_str().into(), value });
        }
    }
    Ok(Condition { path, method: method.transpose()?, headers: header_matches(headers)?, query })
}

fn header_matches<'a>(
    wanted: impl Iterator<Item = (&'a str, Option<&'a str>, &'a str)>,
) -> Result<Vec<FieldMatch>, Fault> {
    let mut headers: Vec<FieldMatch> = Vec::new();
    for (name, kind, value) in wanted.take(MAX_CONDITIONS) {
        let name = field_name(name)?;
        if !headers.iter().any(|known| known.name == name) {
            headers.push(FieldMatch { name, value: value_match(kind, value)? });
        }
    }
    Ok(headers)
}

fn unsupported(message: impl Into<String>) -> Fault {
    Fault::new("UnsupportedValue", message)
}

fn value_match(kind: Option<&str>, value: &str) -> Result<ValueMatch, Fault> {
    if value.len() > MAX_MATCH_BYTES {
        return Err(unsupported("a value to match is too long"));
    }
    match kind.unwrap_or("Exact") {
        "Exact" => Ok(ValueMatch::Exact(value.into())),
        "RegularExpression" => Ok(ValueMatch::Regex(regex(value)?)),
        other => Err(unsupported(format!("match type {other:?} is not supported"))),
    }
}

/// A regular expression that compiles, alone too: otherwise `a)|(b` would escape from its frame.
fn regex(pattern: &str) -> Result<Arc<str>, Fault> {
    let refused = || unsupported(format!("{pattern:?} is not a regular expression (RE2 syntax), or too large"));
    if pattern.len() > MAX_MATCH_BYTES || regex_syntax_alone(pattern).is_none() {
        return Err(refused());
    }
    crate::route::whole(pattern).map(|_| pattern.into()).ok_or_else(refused)
}

/// Memory that checking an expression may take.
const MAX_REGEX_BYTES: usize = 256 * 1024;

fn regex_syntax_alone(pattern: &str) -> Option<regex::Regex> {
    regex::RegexBuilder::new(pattern).size_limit(MAX_REGEX_BYTES).build().ok()
}

/// A path condition, as HTTPRoutes and Ingresses have them.
pub(super) fn path_match(kind: &str, value: &str) -> Result<PathMatch, Fault> {
    if kind == "RegularExpression" {
        return Ok(PathMatch::Regex(regex(value)?));
    }
    let fine = value.starts_with('/')
        && value.len() <= MAX_MATCH_BYTES
        && value.bytes().all(|byte| byte > b' ' && byte != 0x7f);
    if !fine {
        return Err(unsupported(format!("{value:?} is not a path")));
    }
    match kind {
        "Exact" => Ok(PathMatch::Exact(value.into())),
        "PathPrefix" => {
            let trimmed = value.trim_end_matches('/');
            Ok(PathMatch::Prefix(if trimmed.is_empty() { "/" } else { trimmed }.into()))
        }
        other => Err(unsupported(format!("path match type {other:?} is not supported"))),
    }
}

fn grpc_condition(wanted: Option<&GRPCRouteMatch>) -> Result<Condition, Fault> {
    let method = wanted.and_then(|wanted| wanted.method.as_ref());
    let (service, call) = (method.and_then(|m| m.service.as_deref()), method.and_then(|m| m.method.as_deref()));
    let path = match (method.and_then(|m| m.r#type.as_deref()).unwrap_or("Exact"), service, call) {
        (_, None, None) => PathMatch::Prefix("/".into()),
        ("Exact", Some(service), Some(call)) => {
            PathMatch::Exact(format!("/{}/{}", segment(service)?, segment(call)?).into())
        }
        ("Exact", Some(service), None) => PathMatch::Prefix(format!("/{}", segment(service)?).into()),
        ("Exact", None, Some(call)) => {
            PathMatch::AnyService(regex(&format!("/[^/]+/{}", regex::escape(segment(call)?)))?)
        }
        ("RegularExpression", service, call) => {
            let part = |text: Option<&str>| -> Result<String, Fault> {
                Ok(text.map(regex).transpose()?.map_or_else(|| "[^/]+".to_owned(), |text| format!("(?:{text})")))
            };
            let pattern = regex(&format!("/{}/{}", part(service)?, part(call)?))?;
            if service.is_some() { PathMatch::Regex(pattern) } else { PathMatch::AnyService(pattern) }
        }
        (other, ..) => return Err(unsupported(format!("method match type {other:?} is not supported"))),
    };
    let headers = wanted.map(|wanted| wanted.headers.as_slice()).unwrap_or_default();
    let headers = headers.iter().map(|h| (h.name.as_str(), h.r#type.as_deref(), h.value.as_str()));
    Ok(Condition { path, method: Some("POST".into()), headers: header_matches(headers)?, query: vec![] })
}

/// A gRPC service's or method's name.
fn segment(text: &str) -> Result<&str, Fault> {
    let fine = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    if text.is_empty() || text.len() > MAX_MATCH_BYTES || !fine {
        return Err(unsupported(format!("{text:?} is not the name of a gRPC service or method")));
    }
    Ok(text)
}

/// `timeouts` and `retry` of an HTTPRoute's rule.
fn own_part(rule: &HTTPRouteRule) -> Result<RequestPart, Fault> {
    let duration = |text: Option<&str>| -> Result<Option<Option<Duration>>, Fault> {
        let Some(text) = text else { return Ok(None) };
        let parsed = scaleup_api::duration::parse(text);
        let parsed = parsed.ok_or_else(|| unsupported(format!("{text:?} is not a duration such as 10s")))?;
        Ok(Some(Some(parsed).filter(|duration| !duration.is_zero())))
    };
    let mut part = RequestPart::default();
    if let Some(timeouts) = &rule.timeouts {
        part.request_timeout = duration(timeouts.request.as_deref())?;
        part.response_timeout = duration(timeouts.backend_request.as_deref())?;
    }
    if let Some(retry) = &rule.retry {
        let mut statuses: Vec<u16> = Vec::new();
        for code in &retry.codes {
            match u16::try_from(*code) {
                Ok(code @ 400..=599) => statuses.push(code),
                _ => return Err(unsupported(format!("retry.codes: {code} is not between 400 and 599"))),
            }
        }
        statuses.sort_unstable();
        statuses.dedup();
        let attempts = retry.attempts.unwrap_or(2).clamp(0, MAX_ATTEMPTS);
        part.retries = Some(Retries {
            attempts: u32::try_from(attempts).unwrap_or(0),
            on_connect_failure: true,
            on_reset: true,
            on_timeout: true,
            statuses,
            backoff: duration(retry.backoff.as_deref())?.flatten(),
            ..crate::policy::convert::default_retries()
        });
    }
    Ok(part)
}
