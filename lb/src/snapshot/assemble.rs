//! From what each route asks for ([`Place`]) to what is served on a port of the host ([`ListenerPlan`]). Pure.
//!
//! Of rules that match alike, and of TCP, UDP and TLS routes at one place, the oldest route's counts (creation time, then namespace and name).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::gateways::{Carries, Gateways, ListenerId, Speaks};
use super::objects::{ObjectKey, RouteKey};
use super::policies::{Policies, TargetKind};
use super::routes::{
    BackendRef, CertificatePlan, HostPattern, HostPort, HostsPlan, HttpPlan, L4Plan, ListenerPlan, Mode, RuleId,
    RulePlan, TlsAction, TlsSite,
};

/// Where a route is served.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    pub port: HostPort,
    /// `None`: an Ingress.
    pub listener: Option<ListenerId>,
    pub hosts: Box<[HostPattern]>,
    pub content: Content,
}

/// What a route serves at a [`Place`].
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    Http(Box<[Arc<RulePlan>]>),
    /// Names of an Ingress and their certificates.
    Sites(Box<[(HostPattern, Option<Arc<CertificatePlan>>)]>),
    /// Bytes, of TLS connections if the listener speaks TLS.
    L4(Speaks, Box<L4Plan>),
}

/// A route, compiled. There may be thousands: lists have no room to spare.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Compiled {
    pub created: i64,
    pub places: Box<[Place]>,
    /// Sorted, as the others.
    pub backends: Box<[BackendRef]>,
    /// Services that it names, good or not.
    pub mentions: Box<[ObjectKey]>,
    /// Gateways that it names.
    pub parents: Box<[ObjectKey]>,
}

/// TCP, UDP and TLS routes that older ones keep from being served: the younger, the listener, the older.
pub(super) type Shadowed = Vec<(RouteKey, ListenerId, RouteKey)>;

/// What is served on `port`, if anybody asks for it. `routes` are all routes, the oldest first.
pub(super) fn listener(
    port: HostPort,
    gateways: &Gateways,
    policies: &Policies,
    routes: &[(&RouteKey, &Compiled)],
    shadowed: &mut Shadowed,
) -> Option<ListenerPlan> {
    let used = gateways.ports.get(&port)?;
    let here = || {
        routes.iter().flat_map(move |(key, route)| {
            route.places.iter().filter(move |place| place.port == port).map(move |place| (*key, place))
        })
    };
    let mode = match used.carries {
        Carries::Http => Mode::Http(Arc::new(http(gateways, port, here()))),
        Carries::Tls => Mode::Tls(tls(gateways, port, here(), shadowed)),
        Carries::Tcp | Carries::Udp => {
            let mut winner: Option<(&RouteKey, &L4Plan)> = None;
            for (key, place) in here() {
                let Content::L4(_, plan) = &place.content else { continue };
                match (&winner, &place.listener) {
                    (None, _) => winner = Some((key, &**plan)),
                    (Some((older, _)), Some(id)) => shadowed.push((key.clone(), id.clone(), (*older).clone())),
                    _ => {}
                }
            }
            let plan = winner.map_or_else(|| nobody(gateways, port), |(_, plan)| plan.clone());
            if used.carries == Carries::Tcp { Mode::Tcp(plan) } else { Mode::Udp(plan) }
        }
    };
    Some(ListenerPlan {
        created: used.created,
        owners: used.owners.clone(),
        accept_proxy: used.first.as_ref().and_then(|first| accept_proxy(policies, first)),
        mode,
    })
}

/// The order of routes: the oldest first.
pub(super) fn by_age((a, x): &(&RouteKey, &Compiled), (b, y): &(&RouteKey, &Compiled)) -> std::cmp::Ordering {
    (x.created, &a.key, a.kind).cmp(&(y.created, &b.key, b.kind))
}

/// `old` with the rules of `hosts` as they are now, if it serves HTTP: what [`listener`] would say when nothing else has changed.
pub(super) fn patched(
    old: &ListenerPlan,
    port: HostPort,
    gateways: &Gateways,
    routes: &BTreeMap<RouteKey, Compiled>,
    hosts: &BTreeSet<HostPattern>,
) -> Option<ListenerPlan> {
    let before = match &old.mode {
        Mode::Http(http) => http,
        Mode::Tls(sites) => sites.iter().find_map(|site| match &site.action {
            TlsAction::Http { http, .. } => Some(http),
            _ => None,
        })?,
        Mode::Tcp(_) | Mode::Udp(_) => return None,
    };
    let touches = |place: &Place| {
        let http = matches!(place.content, Content::Http(_));
        http && place.port == port && place.hosts.iter().any(|host| hosts.contains(host))
    };
    let mut touching: Vec<(&RouteKey, &Compiled)> =
        routes.iter().filter(|(_, route)| route.places.iter().any(touches)).collect();
    touching.sort_by(by_age);
    let places = touching
        .iter()
        .flat_map(|(key, route)| route.places.iter().filter(|place| touches(place)).map(move |place| (*key, place)));
    let fresh = http(gateways, port, places);
    let mut listeners = before.listeners.clone();
    for pattern in fresh.listeners.keys().chain(before.listeners.keys()) {
        let new = fresh.listeners.get(pattern);
        let plan = listeners.entry(pattern.clone()).or_default();
        let rules = |host| new.and_then(|new| new.hosts.get(host));
        if hosts.iter().all(|host| plan.hosts.get(host) == rules(host)) {
            continue;
        }
        let plan = Arc::make_mut(plan);
        for host in hosts {
            match rules(host) {
                Some(rules) => _ = plan.hosts.insert(host.clone(), rules.clone()),
                None => _ = plan.hosts.remove(host),
            }
        }
    }
    // An entry without rules stays only where a Gateway listens.
    listeners.retain(|pattern, plan| !plan.hosts.is_empty() || fresh.listeners.contains_key(pattern));
    let new = Arc::new(HttpPlan { listeners, ..HttpPlan::default() });
    let mode = match &old.mode {
        Mode::Tls(sites) => Mode::Tls(sites.iter().map(|site| with_http(site, &new)).collect()),
        _ => Mode::Http(new),
    };
    Some(ListenerPlan { mode, ..old.clone() })
}

fn with_http(site: &TlsSite, plan: &Arc<HttpPlan>) -> TlsSite {
    let action = match &site.action {
        TlsAction::Http { certificates, .. } => {
            TlsAction::Http { certificates: certificates.clone(), http: plan.clone() }
        }
        other => other.clone(),
    };
    TlsSite { host: site.host.clone(), action }
}

/// What policies of a listener say about PROXY protocol.
pub(super) fn accept_proxy(policies: &Policies, id: &ListenerId) -> Option<Arc<[String]>> {
    policies.of(TargetKind::Gateway, &id.gateway, Some(&id.listener)).find_map(|attached| attached.accept_proxy.clone())
}

/// A listener that no route is attached to yet: connections end.
fn nobody(gateways: &Gateways, port: HostPort) -> L4Plan {
    let key = gateways.on_port(port).next().map(|(key, _)| key.clone());
    let id = key.map_or_else(RuleId::default, |key| RuleId {
        kind: "Gateway",
        namespace: key.namespace,
        name: key.name,
        ..RuleId::default()
    });
    L4Plan { id, backends: Vec::new(), idle_timeout: None }
}

fn http<'a>(gateways: &Gateways, port: HostPort, places: impl Iterator<Item = (&'a RouteKey, &'a Place)>) -> HttpPlan {
    let mut listeners: BTreeMap<HostPattern, HostsPlan> = BTreeMap::new();
    let mut patterns: BTreeMap<ListenerId, HostPattern> = BTreeMap::new();
    for (key, listener) in gateways.on_port(port) {
        if matches!(listener.speaks, Speaks::Http | Speaks::Https) {
            listeners.entry(listener.host.clone()).or_default();
            let id = ListenerId { gateway: key.clone(), listener: listener.name.clone() };
            patterns.insert(id, listener.host.clone());
        }
    }
    for (_, place) in places {
        let Content::Http(rules) = &place.content else { continue };
        let pattern = match &place.listener {
            None => &HostPattern::Any,
            Some(id) => match patterns.get(id) {
                Some(pattern) => pattern,
                None => continue,
            },
        };
        if !listeners.contains_key(pattern) {
            listeners.insert(pattern.clone(), HostsPlan::default());
        }
        let Some(hosts) = listeners.get_mut(pattern) else { continue };
        for host in &place.hosts {
            match hosts.hosts.get_mut(host) {
                Some(known) => known.extend(rules.iter().cloned()),
                None => drop(hosts.hosts.insert(host.clone(), rules.to_vec())),
            }
        }
    }
    HttpPlan {
        listeners: listeners.into_iter().map(|(host, plan)| (host, Arc::new(plan))).collect(),
        ..HttpPlan::default()
    }
}

/// Sites of a port: all that serve HTTP share one plan, since a client may use a connection for every name of its certificate (RFC 9113
/// §9.1.1).
fn tls<'a>(
    gateways: &Gateways,
    port: HostPort,
    places: impl Iterator<Item = (&'a RouteKey, &'a Place)> + Clone,
    shadowed: &mut Shadowed,
) -> Vec<TlsSite> {
    let plan = Arc::new(http(gateways, port, places.clone()));
    let mut secured: BTreeMap<HostPattern, Vec<Arc<CertificatePlan>>> = BTreeMap::new();
    for (_, listener) in gateways.on_port(port).filter(|(_, listener)| listener.speaks == Speaks::Https) {
        secured.entry(listener.host.clone()).or_default().extend(listener.certificates.iter().cloned());
    }
    let mut l4: BTreeMap<HostPattern, (&RouteKey, &Place)> = BTreeMap::new();
    for (key, place) in places {
        match (&place.content, &place.listener) {
            (Content::Sites(sites), _) => {
                for (host, certificate) in sites {
                    secured.entry(host.clone()).or_default().extend(certificate.clone());
                }
            }
            (Content::L4(..), Some(id)) => {
                for host in &place.hosts {
                    match l4.get(host) {
                        None => drop(l4.insert(host.clone(), (key, place))),
                        Some((older, _)) => shadowed.push((key.clone(), id.clone(), (*older).clone())),
                    }
                }
            }
            _ => {}
        }
    }
    let mut sites: BTreeMap<HostPattern, TlsAction> = secured
        .into_iter()
        .map(|(host, mut certificates)| {
            dedup(&mut certificates);
            (host, TlsAction::Http { certificates: certificates.into(), http: plan.clone() })
        })
        .collect();
    for (host, (_, place)) in l4 {
        let Content::L4(speaks, to) = &place.content else { continue };
        let certificates = || {
            let listener = place.listener.as_ref().and_then(|id| gateways.listener(id));
            listener.map(|listener| listener.certificates.clone()).unwrap_or_default()
        };
        let action = match speaks {
            Speaks::TlsTerminate => TlsAction::Terminate { certificates: certificates(), to: L4Plan::clone(to) },
            _ => TlsAction::Passthrough(L4Plan::clone(to)),
        };
        sites.entry(host).or_insert(action);
    }
    sites.into_iter().map(|(host, action)| TlsSite { host, action }).collect()
}

fn dedup(certificates: &mut Vec<Arc<CertificatePlan>>) {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    certificates.retain(|certificate| seen.insert(certificate.secret.clone()));
}
