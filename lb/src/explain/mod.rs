//! Why a request goes where it goes: the decision that the data path would make now, said in words. A pure function of what is in
//! force; nothing is sent, counted or changed.

mod near;
mod request;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use serde::Serialize;

use crate::access::rule_name;
use crate::backend::{Backend, EndpointState, Health, Identity, Tried};
use crate::balance::session::Chosen;
use crate::balance::state::PortState;
use crate::balance::{Choice, affinity};
use crate::hub::{Hub, SiteKey};
use crate::listeners::desired;
use crate::plugin::{self, Asked, Desk, Verdict};
use crate::policy::SessionCarrier;
use crate::proxy::held::Held;
use crate::proxy::site::{SiteMode, TlsMode};
use crate::route::{HttpTable, Rule, Weighted};
use crate::snapshot::routes::{Filter, HostPort, HttpPlan, Mode, PathMatch, TlsAction};
use crate::snapshot::{Protocol, Snapshot};
pub use request::{Request, RequestError};

/// What would become of a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Explanation {
    /// The request, e.g. `GET http://shop.example/a from 192.0.2.1`.
    pub request: String,
    /// In a sentence.
    pub verdict: String,
    /// Who serves the port, e.g. `80/TCP for Gateway infra/public`.
    pub listener: Option<String>,
    /// Who wanted the port, too, and was later.
    pub lost: Vec<String>,
    /// The rule that matches.
    pub rule: Option<RuleView>,
    /// Without one: what came nearest, and why it does not match.
    pub near: Vec<Near>,
    /// Where the rule sends requests.
    pub backends: Vec<BackendView>,
    /// Who has a say in where this request goes, and what it says.
    pub plugin: Option<PluginView>,
}

/// A plugin that was asked about the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PluginView {
    /// `namespace/name`, or `name` of a ClusterWasmPlugin.
    pub name: String,
    /// The generation that decided; `None` if there was no decision.
    pub generation: Option<u64>,
    /// `pick`, `overruled`, `default`, `reject`, `failed` or `refused`.
    pub decision: &'static str,
    /// Its answer to the client, if it refuses the request.
    pub status: Option<u16>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RuleView {
    /// E.g. `HTTPRoute shop/web rule 0`.
    pub name: String,
    /// What its path has to match.
    pub path: String,
    /// What is done with the request, in order.
    pub filters: Vec<String>,
    /// TrafficPolicies that say something about its requests.
    pub policies: Vec<String>,
    /// What they say.
    pub limits: Vec<String>,
}

/// A rule that does not match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Near {
    /// E.g. `HTTPRoute shop/web rule 0`.
    pub rule: String,
    /// What does not.
    pub why: Vec<String>,
}

/// A share of a rule's requests.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BackendView {
    /// `namespace/name:port`; `None`: a reference that is not valid.
    pub service: Option<String>,
    /// Share of the rule's requests in percent.
    pub share_percent: f64,
    /// TrafficPolicies that say something about its endpoints.
    pub policies: Vec<String>,
    /// How an endpoint is chosen.
    pub algorithm: String,
    /// Its endpoints.
    pub endpoints: Vec<EndpointView>,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndpointView {
    /// Address and port.
    pub address: String,
    /// UID of its Pod.
    pub pod: Option<String>,
    /// Its node.
    pub node: Option<String>,
    /// Its zone.
    pub zone: Option<String>,
    /// Relative weight.
    pub weight: u32,
    /// Requests it serves now.
    pub in_flight: u64,
    /// `healthy`, or what is wrong.
    pub health: String,
    /// It would get this request.
    pub chosen: bool,
}

/// What would become of `request` now.
pub(crate) fn explain(hub: &Hub, request: &Request) -> Explanation {
    let snapshot = hub.snapshot();
    let mut out = Explanation { request: request.to_string(), ..Explanation::default() };
    let port = HostPort { port: request.port, protocol: Protocol::Tcp };
    let claims = desired(&snapshot);
    let Some((winner, lost)) = claims.get(&port).and_then(|claims| claims.split_first()) else {
        let known: Vec<String> = claims.keys().take(near::MAX_SHOWN).map(|port| port.port.to_string()).collect();
        let known = if known.is_empty() { "no port at all".to_owned() } else { known.join(", ") };
        out.verdict = format!("Nobody listens on port {}: the load balancer serves {known}.", request.port);
        return out;
    };
    out.listener = Some(format!("{}/TCP for {}", request.port, winner.owner));
    out.lost = lost.iter().map(|claim| claim.owner.clone()).collect();
    let Some(site) = hub.site(&winner.target) else {
        out.verdict = "The listener is being opened or closed.".to_owned();
        return out;
    };
    let site = site.load_full();
    let plan = http_plan(&snapshot, &winner.target, request);
    let table = match (&site.mode, request.https) {
        (SiteMode::Http(table), false) => Ok(table.clone()),
        (SiteMode::Http(_), true) => Err("The port speaks HTTP without TLS: an https request fails.".to_owned()),
        (SiteMode::Tls(_), false) => Err("The port speaks TLS: a request without is refused.".to_owned()),
        (SiteMode::Tls(tls), true) => tls_table(tls.sites.iter(), request),
        (SiteMode::Tcp(l4), _) => {
            out.backends = l4
                .shares
                .iter()
                .map(|share| backend_view(&snapshot, share, l4.total_weight, &request.head, None))
                .collect();
            Err(format!("The port passes bytes on, whatever they are, by {}.", rule_name(&l4.id)))
        }
        (SiteMode::Udp(_) | SiteMode::Gone, _) => Err("Nothing is served on the port for TCP.".to_owned()),
    };
    match table {
        Err(verdict) => out.verdict = verdict,
        Ok(table) => {
            // A Service's own port passes paths as they are.
            let routed = table.single().is_none();
            let head = if routed { request.head.clone().normalized() } else { Ok(request.head.clone()) };
            match head.as_ref().map(|head| (head, table.find(head))) {
                Ok((head, Some(rule))) => matched(&mut out, &snapshot, rule, head),
                Ok((head, None)) => (out.verdict, out.near) = near::missed(plan, head),
                Err(error) => out.verdict = format!("The answer is 400: {error}."),
            }
        }
    }
    out
}

/// The table for the name that the client would send.
fn tls_table<'a>(
    mut sites: impl Iterator<Item = &'a (crate::snapshot::routes::HostPattern, TlsMode)>,
    request: &Request,
) -> Result<Arc<HttpTable>, String> {
    match sites.find(|(host, _)| host.matches(&request.head.host)) {
        None => {
            Err(format!("No certificate or passthrough is configured for {}: the handshake fails.", request.head.host))
        }
        Some((_, TlsMode::Http(_, table))) => Ok(table.clone()),
        Some((host, TlsMode::Terminate(_, l4))) => {
            Err(format!("TLS for {host} ends here; bytes go on by {}.", rule_name(&l4.id)))
        }
        Some((host, TlsMode::Passthrough(l4))) => {
            Err(format!("TLS for {host} is passed on as it is by {}.", rule_name(&l4.id)))
        }
    }
}

/// The plan of what `request` is matched against.
fn http_plan<'s>(snapshot: &'s Snapshot, target: &SiteKey, request: &Request) -> Option<&'s HttpPlan> {
    let SiteKey::Listener(port) = target else { return None };
    match &snapshot.listeners.get(port)?.mode {
        Mode::Http(http) => Some(http),
        Mode::Tls(sites) => match &sites.iter().find(|site| site.host.matches(&request.head.host))?.action {
            TlsAction::Http { http, .. } => Some(http),
            _ => None,
        },
        _ => None,
    }
}

fn matched(out: &mut Explanation, snapshot: &Snapshot, rule: &Rule, request: &Held) {
    let answered = rule.filters.iter().find(|filter| matches!(filter, Filter::Redirect(_)));
    // A plugin is really asked: there is no other way to know what it says.
    let (Chosen { share, backend, session }, mut asked) = plugin::choose(rule, request, false, &Desk::uncounted());
    let refusal = asked.as_mut().and_then(Asked::refusal);
    let picked = asked.as_ref().and_then(Asked::first).and_then(|index| u32::try_from(index).ok());
    let pinned = picked.or_else(|| session.as_ref()?.pinned());
    let pinned = pinned.and_then(|index| Some((share?, backend?, index)));
    let decided = answered.is_none().then(|| asked.as_ref().map(Asked::verdict)).flatten();
    out.plugin = decided.map(|Verdict { plugin, ruling, generation }| PluginView {
        name: plugin.to_string(),
        generation,
        decision: ruling.name(),
        status: refusal.as_ref().map(|refused| refused.status.as_u16()),
    });
    let views = rule.backends.iter().map(|share| {
        let pin = pinned.as_ref().map(|(_, backend, index)| (backend, *index));
        backend_view(snapshot, share, rule.total_weight, request, pin)
    });
    out.backends = views.collect();
    let usable = out.backends.iter().filter(|backend| backend.share_percent > 0.0);
    let ready = usable.clone().any(|backend| !backend.endpoints.is_empty());
    out.verdict = match (answered, rule.total_weight, ready) {
        (Some(_), _, _) => "The rule answers with a redirect.".to_owned(),
        (None, ..) if out.plugin.as_ref().is_some_and(|plugin| plugin.status.is_some()) => {
            out.plugin.as_ref().map(refused).unwrap_or_default()
        }
        (None, 0, _) => "The rule sends to nobody: the answer is 500.".to_owned(),
        (None, _, false) if usable.clone().all(|backend| backend.service.is_none()) => {
            "The rule's backends are not valid: the answer is 500; the route's status says why.".to_owned()
        }
        (None, _, false) => "No backend has a ready endpoint: the answer is 503.".to_owned(),
        (None, _, true) => {
            let kept = pinned.as_ref().map(|(share, ..)| *share).or(share.filter(|_| asked.is_some()));
            let kept = kept.and_then(|share| out.backends.get(share));
            let mut from = kept.into_iter().chain(usable).flat_map(|backend| &backend.endpoints);
            let chosen = from.find(|endpoint| endpoint.chosen);
            chosen.map_or_else(
                || "No endpoint can be chosen now.".to_owned(),
                |endpoint| format!("It would be sent to {}.", endpoint.address),
            )
        }
    };
    let policy = &rule.policy;
    let mut limits = Vec::new();
    let mut limit = |name: &str, value: Option<String>| limits.extend(value.map(|value| format!("{name} {value}")));
    limit("request timeout", policy.request_timeout.map(|time| format!("{time:?}")));
    limit("response timeout", policy.response_timeout.map(|time| format!("{time:?}")));
    limit("largest body", policy.max_body_bytes.map(|bytes| format!("{bytes} bytes")));
    let session = policy.session.as_ref();
    limit(
        "session by",
        session.map(|session| match session.carrier {
            SessionCarrier::Cookie { .. } => format!("cookie {}", session.name),
            SessionCarrier::Header => format!("header {}", session.name),
        }),
    );
    limit("retries", (!policy.sources.is_empty()).then(|| policy.retries.attempts.to_string()));
    for rate in &policy.rate_limits {
        limit("rate limit", Some(format!("{}: {} per {:?}", rate.name, rate.requests, rate.interval)));
    }
    out.rule = Some(RuleView {
        name: rule_name(&rule.id),
        path: near::path_text(&rule.path),
        filters: rule.filters.iter().map(filter_text).collect(),
        policies: policy.sources.iter().map(ToString::to_string).collect(),
        limits,
    });
}

/// What is said about a request that a plugin refuses.
fn refused(plugin: &PluginView) -> String {
    let (name, status) = (&plugin.name, plugin.status.unwrap_or_default());
    match plugin.generation {
        Some(generation) => format!("The plugin {name} (generation {generation}) refuses it: the answer is {status}."),
        None => format!(
            "The plugin {name} gives no decision, and requests without one are refused: the answer is {status}."
        ),
    }
}

/// `pinned` is what the request's session is with, or what a plugin picked.
fn backend_view(
    snapshot: &Snapshot,
    share: &Weighted,
    total_weight: u32,
    request: &Held,
    pinned: Option<(&Arc<Backend>, u32)>,
) -> BackendView {
    let share_percent = f64::from(share.weight) * 100.0 / f64::from(total_weight.max(1));
    let Some(backend) = share.cell.as_ref().map(|cell| cell.load_full()) else {
        let algorithm = "none: the reference is not valid".to_owned();
        return BackendView { service: None, share_percent, policies: Vec::new(), algorithm, endpoints: Vec::new() };
    };
    let hash = affinity::of(&backend, request, false, || 0).hash;
    let pinned = pinned.filter(|(pinned, _)| Arc::ptr_eq(pinned, &backend)).map(|(_, index)| index);
    let choice = Choice { client: request.client, hash, pinned, thread: 0, now: Instant::now() };
    let chosen = pinned.map(|index| index as usize).filter(|index| backend.availability.is_up(*index));
    let chosen = chosen.or_else(|| preview(&backend, &choice));
    let plan = |endpoint: &EndpointState| {
        let service = snapshot.services.get(&backend.service)?;
        let ports = service.ports.iter().filter(|port| port.port == backend.port);
        ports.flat_map(|port| port.routed.iter().chain(&*port.external)).find(|plan| plan.addr == endpoint.addr)
    };
    let endpoints = backend.health(Instant::now()).enumerate().map(|(index, (endpoint, health))| {
        let plan = plan(endpoint);
        EndpointView {
            address: endpoint.addr.to_string(),
            pod: endpoint.pod.as_ref().map(|(uid, _)| uid.to_string()),
            node: plan.and_then(|plan| plan.node.as_ref()).map(ToString::to_string),
            zone: plan.and_then(|plan| plan.zone.as_ref()).map(ToString::to_string),
            weight: plan.map_or(0, |plan| plan.weight),
            in_flight: endpoint.in_flight(),
            health: health_text(health).to_owned(),
            chosen: chosen == Some(index),
        }
    });
    BackendView {
        service: Some(format!("{}:{}", backend.service, backend.port)),
        share_percent,
        policies: backend.policy.sources.iter().map(ToString::to_string).collect(),
        algorithm: algorithm_text(&backend),
        endpoints: endpoints.collect(),
    }
}

/// The endpoint that would be chosen, asked of a copy: nobody's turn is taken.
fn preview(backend: &Backend, choice: &Choice) -> Option<usize> {
    let state = PortState::default();
    state.turn.store(backend.state.turn.load(Relaxed), Relaxed);
    let identity = Identity {
        service: backend.service.clone(),
        uid: backend.uid.clone(),
        port: backend.port,
        app: backend.app,
        policy: backend.policy.clone(),
        state: Arc::new(state),
        stats: backend.stats.clone(),
    };
    let copy = Backend::new(identity, backend.endpoints.clone(), backend.table.clone());
    copy.choose(choice, Tried::default()).map(|(index, _)| index)
}

fn health_text(health: Health) -> &'static str {
    match health {
        Health::Healthy => "healthy",
        Health::Suspect => "a connection failed a moment ago",
        Health::Ejected => "ejected: it failed too many requests",
        Health::Failing => "an active health check fails",
    }
}

fn algorithm_text(backend: &Backend) -> String {
    match (backend.policy.client_ip_affinity, backend.policy.algorithm) {
        (Some(_), _) => "by the client's address (session affinity)".to_owned(),
        (None, Some(algorithm)) => format!("{algorithm:?}"),
        (None, None) => format!("{:?} (the default)", backend.algorithm()),
    }
}

fn filter_text(filter: &Filter) -> String {
    match filter {
        Filter::RequestHeaders(edits) => {
            format!("changes {} request headers", edits.set.len() + edits.add.len() + edits.remove.len())
        }
        Filter::ResponseHeaders(edits) => {
            format!("changes {} response headers", edits.set.len() + edits.add.len() + edits.remove.len())
        }
        Filter::Redirect(redirect) => format!("redirects with {}", redirect.status),
        Filter::Rewrite { hostname, path } => {
            let host = hostname.as_ref().map(|host| format!(" host to {host}")).unwrap_or_default();
            let path = path.as_ref().map(|path| format!(" path by {path:?}")).unwrap_or_default();
            format!("rewrites{host}{path}")
        }
        Filter::Mirror { backend, numerator, denominator } => {
            format!("copies {numerator} of {denominator} requests to {}:{}", backend.service, backend.port)
        }
        Filter::Cors(_) => "handles cross-origin requests".to_owned(),
        #[allow(unreachable_patterns, reason = "filters that are added later")]
        _ => "another filter".to_owned(),
    }
}

/// Whether a path matches; `None`: the pattern does not compile.
fn path_matches(pattern: &PathMatch, path: &str) -> Option<bool> {
    Some(match pattern {
        PathMatch::Exact(exact) => **exact == *path,
        PathMatch::Prefix(prefix) => {
            let prefix = prefix.trim_end_matches('/');
            path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        PathMatch::Regex(pattern) | PathMatch::AnyService(pattern) => crate::route::whole(pattern)?.is_match(path),
    })
}

#[cfg(test)]
mod tests;
