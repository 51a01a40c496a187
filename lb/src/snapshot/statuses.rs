//! What the statuses of Gateways, routes, Ingresses and policies must say, and which of them do not say it yet. Pure: [`super::write`] writes.
//!
//! Several load balancers write the same objects. What depends on objects alone comes out alike in all of them. What depends on a host's
//! ports does not: each adds and removes only its own address, and as long as another's is there, one that cannot serve leaves the
//! conditions as they are.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use scaleup_api::gateway::{
    GROUP, Gateway, GatewayStatusAddress, ListenerStatus, ParentReference, PolicyAncestorStatus, PolicyStatus,
    RouteGroupKind, RouteParentStatus, RouteStatus,
};
use scaleup_api::traffic::{PolicyAncestorStatus as TrafficAncestor, TargetRef, TrafficPolicy, TrafficPolicyStatus};
use scaleup_plugins::Registry;
use serde_json::{Value, json};

use super::assemble::Shadowed;
use super::compile_route::RouteOutcome;
use super::conditions::Conditions;
use super::gateways::{GATEWAY_CONTROLLER, GatewayFacts, Gateways, ListenerFacts, ListenerId, Speaks, is_ours};
use super::objects::{Kind, ObjectKey, Objects, Route, RouteKey, RouteKind, StoredRoute};
use super::plan::app_protocol;
use super::policies::{Policies, TargetKind, TargetOutcome};
use super::references::Fault;
use super::routes::HostPort;
use super::unsaid::Unsaid;
use super::{AppProtocol, addresses, plugins};
use crate::listeners::Report;

/// What is claimed of the Gateway API, by the names of its conformance suite, sorted.
pub const SUPPORTED_FEATURES: &[&str] = &[
    "BackendTLSPolicy",
    "BackendTLSPolicySANValidation",
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "Gateway",
    "GatewayAddressEmpty",
    "GatewayHTTPListenerIsolation",
    "GatewayPort8080",
    "GatewayStaticAddresses",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteCORS",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteSchemeRedirect",
    "ReferenceGrant",
    "TCPRoute",
    "TLSRoute",
    "TLSRouteModeMixed",
    "TLSRouteModeTerminate",
    "UDPRoute",
];

/// A status to be written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StatusPatch {
    pub kind: Kind,
    pub key: ObjectKey,
    /// The version that the decision was made on.
    pub resource_version: Option<String>,
    /// Merge patch of `status`.
    pub status: Value,
}

/// Everything that users must be told.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub patches: Vec<StatusPatch>,
    /// What is wrong with Ingresses of ours, by object and UID, for events.
    pub problems: BTreeMap<(RouteKey, String), Vec<Fault>>,
    /// Further routes wait for the next plan.
    pub more: bool,
}

/// Listeners and ports at which a route is served.
pub(super) type Served = BTreeSet<(Option<ListenerId>, HostPort)>;

/// What statuses are made of.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub objects: &'a Objects,
    pub gateways: &'a Gateways,
    pub policies: &'a Policies,
    pub outcomes: &'a BTreeMap<RouteKey, std::sync::Arc<RouteOutcome>>,
    /// Listeners at which a route is served, for each route.
    pub served: &'a dyn Fn(&RouteKey) -> Served,
    /// How many routes each listener serves.
    pub attached: &'a BTreeMap<ListenerId, i32>,
    pub shadowed: &'a BTreeMap<HostPort, Shadowed>,
    pub by_service: &'a BTreeMap<ObjectKey, BTreeSet<RouteKey>>,
    pub plugins: &'a Registry,
    pub report: &'a Report,
    /// The own address.
    pub ip: &'a str,
    pub now: Timestamp,
}

/// What must be written.
pub(super) fn plan(known: Known<'_>, unsaid: &mut Unsaid) -> Plan {
    let mut plan = Plan::default();
    classes(known, &mut plan);
    gateways(known, &mut plan);
    ingress_problems(known, &mut plan);
    plan.more = unsaid.turn(|key| {
        let stored = known.objects.routes.get(key).and_then(StoredRoute::open);
        let Some((route, outcome)) = stored.zip(known.outcomes.get(key)) else { return false };
        let before = plan.patches.len();
        let current = match &*route {
            Route::Ingress(ingress) => {
                of_ingress(known, key, ingress, &mut plan);
                return plan.patches.len() > before;
            }
            Route::Http(route) => route.status.as_ref(),
            Route::Grpc(route) => route.status.as_ref(),
            Route::Tls(route) => route.status.as_ref(),
            Route::Tcp(route) => route.status.as_ref(),
            Route::Udp(route) => route.status.as_ref(),
        };
        of_route(known, key, outcome, route.metadata(), current, &mut plan);
        plan.patches.len() > before
    });
    traffic_policies(known, &mut plan);
    tls_policies(known, &mut plan);
    for service in known.objects.services.values() {
        if let Some(status) = plugins::of_service(service, known.plugins, known.now) {
            plan.patch(Kind::Service, &service.metadata, status);
        }
    }
    plan
}

/// Of all Ingresses: what is not among them counts as solved.
fn ingress_problems(known: Known<'_>, plan: &mut Plan) {
    for (key, outcome) in known.outcomes.iter().take_while(|(key, _)| key.kind == RouteKind::Ingress) {
        if let Some(problems) = outcome.ingress.as_ref().filter(|problems| !problems.is_empty())
            && let Some(route) = known.objects.routes.get(key).and_then(StoredRoute::open)
        {
            let uid = route.metadata().uid.clone().unwrap_or_default();
            plan.problems.insert((key.clone(), uid), problems.clone());
        }
    }
}

impl Plan {
    fn patch(&mut self, kind: Kind, metadata: &ObjectMeta, status: Value) {
        let Some(key) = super::objects::object_key(metadata) else { return };
        self.patches.push(StatusPatch { kind, key, resource_version: metadata.resource_version.clone(), status });
    }
}

fn classes(known: Known<'_>, plan: &mut Plan) {
    for (key, class) in &known.objects.gateway_classes {
        if !is_ours(known.objects, &key.name) {
            continue;
        }
        let empty = Default::default();
        let current = class.status.as_ref().unwrap_or(&empty);
        let generation = class.metadata.generation.unwrap_or_default();
        let mut conditions = Conditions::new(&current.conditions, generation, known.now);
        conditions.add("Accepted", true, "Accepted", "");
        let conditions = conditions.finish(&["Accepted"]);
        let told = current.supported_features.iter().map(|feature| feature.name.as_str());
        if conditions != current.conditions || !told.eq(SUPPORTED_FEATURES.iter().copied()) {
            let features: Vec<Value> = SUPPORTED_FEATURES.iter().map(|name| json!({"name": name})).collect();
            let status = json!({"conditions": conditions, "supportedFeatures": features});
            plan.patch(Kind::GatewayClass, &class.metadata, status);
        }
    }
}

fn gateways(known: Known<'_>, plan: &mut Plan) {
    // Before the first round nothing is bound yet: that must not take addresses away.
    if !known.report.settled {
        return;
    }
    for (key, facts) in &known.gateways.by_key {
        let Some(gateway) = known.objects.gateways.get(key) else { continue };
        if let Some(status) = of_gateway(known, key, facts, gateway, known.attached) {
            plan.patch(Kind::Gateway, &gateway.metadata, status);
        }
    }
}

/// Why a listener does not serve; `None` if it does, `Some(None)` if nobody knows yet.
fn obstacle(known: Known<'_>, listener: &ListenerFacts) -> Option<Option<Fault>> {
    if let Some(refused) = &listener.refused {
        return Some(Some(Fault::new("Invalid", refused.message.clone())));
    }
    let terminates = matches!(listener.speaks, Speaks::Https | Speaks::TlsTerminate);
    if terminates && listener.certificates.is_empty() {
        return Some(Some(Fault::new("Invalid", "there is no certificate to serve with; handshakes are refused")));
    }
    match known.report.listeners.get(&listener.port) {
        None => Some(None),
        Some(None) => None,
        Some(Some(problem)) => Some(Some(Fault::new(problem.reason, problem.message.clone()))),
    }
}

fn of_gateway(
    known: Known<'_>,
    key: &ObjectKey,
    facts: &GatewayFacts,
    gateway: &Gateway,
    attached: &BTreeMap<ListenerId, i32>,
) -> Option<Value> {
    let empty = Default::default();
    let current = gateway.status.as_ref().unwrap_or(&empty);
    let generation = gateway.metadata.generation.unwrap_or_default();
    let obstacles: Vec<Option<Option<Fault>>> = facts.listeners.iter().map(|l| obstacle(known, l)).collect();
    if obstacles.contains(&Some(None)) {
        // The ports are still being bound; the report of that comes at once.
        return None;
    }
    let serves = obstacles.iter().any(Option::is_none);
    let mut addresses: Vec<GatewayStatusAddress> =
        current.addresses.iter().filter(|address| address.value != known.ip).cloned().collect();
    let wanted_here = addresses::may_have(&facts.addresses, known.ip);
    let others = match (addresses.is_empty(), wanted_here) {
        (true, true) => Others::None,
        (false, true) => Others::Serve,
        (_, false) => Others::Decide,
    };
    if serves && wanted_here {
        addresses.push(GatewayStatusAddress { value: known.ip.to_owned(), r#type: Some("IPAddress".to_owned()) });
        addresses.sort_by(|a, b| a.value.cmp(&b.value));
    }
    let mut statuses = Vec::new();
    for (listener, obstacle) in facts.listeners.iter().zip(&obstacles) {
        let before = current.listeners.iter().find(|status| *status.name == *listener.name);
        let conditions = before.map(|status| status.conditions.as_slice()).unwrap_or_default();
        let conditions = listener_conditions(
            Conditions::new(conditions, generation, known.now),
            listener,
            obstacle.as_ref().and_then(Option::as_ref),
            others,
        );
        let id = ListenerId { gateway: key.clone(), listener: listener.name.clone() };
        let kind = |kind: &RouteKind| RouteGroupKind { kind: kind.as_str().to_owned(), group: Some(GROUP.to_owned()) };
        statuses.push(ListenerStatus {
            name: listener.name.to_string(),
            supported_kinds: listener.kinds.iter().map(kind).collect(),
            attached_routes: attached.get(&id).copied().unwrap_or_default(),
            conditions,
        });
    }
    let mut conditions = Conditions::new(&current.conditions, generation, known.now);
    let refused = facts.listeners.iter().filter(|listener| listener.refused.is_some()).count();
    let unknown = gateway.spec.listeners.len().saturating_sub(facts.listeners.len());
    match (&facts.refused, refused + unknown, facts.listeners.len() - refused) {
        (Some(fault), ..) => conditions.add("Accepted", false, fault.reason, &fault.message),
        (_, 0, _) => conditions.add("Accepted", true, "Accepted", ""),
        (_, _, 0) => {
            conditions.add("Accepted", false, "ListenersNotValid", "no listener is valid; see their conditions")
        }
        _ => {
            conditions.add("Accepted", true, "ListenersNotValid", "some listeners are not valid; see their conditions")
        }
    }
    let missing = addresses::missing(&facts.addresses, &addresses);
    match missing.filter(|_| serves || others == Others::Serve) {
        // All load balancers that serve it come to this.
        Some(missing) if others != Others::Decide => conditions.unless("Programmed", "Programmed", Some(&missing)),
        Some(missing) => programmed(&mut conditions, Some(missing), others),
        None => {
            let first = || obstacles.iter().flatten().flatten().next().cloned().unwrap_or_else(no_listener);
            programmed(&mut conditions, (!serves).then(first), others);
        }
    }
    let conditions = conditions.finish(&["Accepted", "Programmed"]);
    let changed = conditions != current.conditions || statuses != current.listeners || addresses != current.addresses;
    changed.then(|| json!({"addresses": addresses, "conditions": conditions, "listeners": statuses}))
}

fn no_listener() -> Fault {
    Fault::new("Invalid", "there is no listener that can be served")
}

/// What other load balancers have to say about a Gateway's ports.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Others {
    /// None of them serves it.
    None,
    /// Another serves it, too.
    Serve,
    /// Only they may: the Gateway does not ask for the own address.
    Decide,
}

/// `Programmed`; what one load balancer cannot do is not told while another does it.
fn programmed(conditions: &mut Conditions<'_>, obstacle: Option<Fault>, others: Others) {
    let invalid = obstacle.as_ref().is_some_and(|fault| fault.reason == "Invalid");
    let generation = Some(conditions.generation());
    let stays = |current: &&Condition| match others {
        Others::None => false,
        Others::Serve => obstacle.is_some() && current.status == "True",
        // Said once, so that a Gateway nobody can serve has somebody who says so.
        Others::Decide => current.observed_generation == generation && current.status != "Unknown",
    };
    match conditions.current("Programmed").filter(|_| !invalid).filter(stays) {
        Some(current) => conditions.add("Programmed", current.status == "True", &current.reason, &current.message),
        None => conditions.unless("Programmed", "Programmed", obstacle.as_ref()),
    }
}

fn listener_conditions(
    mut conditions: Conditions<'_>,
    listener: &ListenerFacts,
    obstacle: Option<&Fault>,
    others: Others,
) -> Vec<Condition> {
    conditions.unless("Accepted", "Accepted", listener.refused.as_ref());
    match listener.refused.as_ref().filter(|_| listener.conflicted) {
        Some(fault) => conditions.add("Conflicted", true, fault.reason, &fault.message),
        None => conditions.add("Conflicted", false, "NoConflicts", ""),
    }
    conditions.unless("ResolvedRefs", "ResolvedRefs", listener.unresolved.as_ref());
    programmed(&mut conditions, obstacle.cloned(), others);
    conditions.finish(&["Accepted", "Conflicted", "ResolvedRefs", "Programmed"])
}

fn of_ingress(known: Known<'_>, key: &RouteKey, ingress: &Ingress, plan: &mut Plan) {
    let status = ingress.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let current: Vec<&str> = status
        .and_then(|lb| lb.ingress.as_ref())
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ip.as_deref())
        .collect();
    if !known.report.settled {
        return;
    }
    let ports: BTreeSet<HostPort> = (known.served)(key).into_iter().map(|(_, port)| port).collect();
    if ports.iter().any(|port| !known.report.listeners.contains_key(port)) {
        return;
    }
    let bound = ports.iter().any(|port| known.report.listeners.get(port) == Some(&None));
    let present = current.contains(&known.ip);
    if bound == present {
        return;
    }
    let mut entries: Vec<Value> = status
        .and_then(|lb| lb.ingress.as_ref())
        .into_iter()
        .flatten()
        .filter(|entry| entry.ip.as_deref() != Some(known.ip))
        .map(|entry| json!(entry))
        .collect();
    if bound {
        entries.push(json!({"ip": known.ip}));
    }
    plan.patch(Kind::Ingress, &ingress.metadata, json!({"loadBalancer": {"ingress": entries}}));
}

fn of_route(
    known: Known<'_>,
    key: &RouteKey,
    outcome: &RouteOutcome,
    metadata: &ObjectMeta,
    current: Option<&RouteStatus>,
    plan: &mut Plan,
) {
    let current = current.map(|status| status.parents.as_slice()).unwrap_or_default();
    let mut parents: Vec<RouteParentStatus> =
        current.iter().filter(|parent| parent.controller_name != GATEWAY_CONTROLLER).cloned().collect();
    for parent in &outcome.parents {
        let before = current
            .iter()
            .find(|status| status.controller_name == GATEWAY_CONTROLLER && status.parent_ref == parent.reference);
        let conditions = before.map(|status| status.conditions.as_slice()).unwrap_or_default();
        let mut conditions = Conditions::new(conditions, outcome.generation, known.now);
        let shadowed = shadow(known, key, &parent.reference);
        let refused = parent.refused.as_ref().or(outcome.invalid.as_ref()).or(shadowed.as_ref());
        match refused {
            Some(fault) => conditions.add("Accepted", false, fault.reason, &fault.message),
            None => conditions.add("Accepted", true, "Accepted", &outcome.notes.join("; ")),
        }
        conditions.unless("ResolvedRefs", "ResolvedRefs", outcome.unresolved.as_ref());
        if let Some(fault) = &outcome.partially {
            conditions.add("PartiallyInvalid", true, fault.reason, &fault.message);
        }
        parents.push(RouteParentStatus {
            parent_ref: parent.reference.clone(),
            controller_name: GATEWAY_CONTROLLER.to_owned(),
            conditions: conditions.finish(&["Accepted", "ResolvedRefs", "PartiallyInvalid"]),
        });
    }
    if parents != current {
        let kind = match key.kind {
            RouteKind::Ingress => Kind::Ingress,
            RouteKind::HTTPRoute => Kind::HTTPRoute,
            RouteKind::GRPCRoute => Kind::GRPCRoute,
            RouteKind::TLSRoute => Kind::TLSRoute,
            RouteKind::TCPRoute => Kind::TCPRoute,
            RouteKind::UDPRoute => Kind::UDPRoute,
        };
        plan.patch(kind, metadata, json!({"parents": parents}));
    }
}

/// An older route that has this one's place at a parent.
fn shadow(known: Known<'_>, key: &RouteKey, parent: &ParentReference) -> Option<Fault> {
    let gateway = super::attach::gateway_of(&key.key, parent)?;
    let lost = known.shadowed.values().flatten().find(|(younger, id, _)| {
        younger == key
            && id.gateway == gateway
            && parent.section_name.as_deref().is_none_or(|section| *section == *id.listener)
    });
    let (_, id, older) = lost?;
    let message = format!("listener {} serves {} {}, which is older", id.listener, older.kind.as_str(), older.key);
    Some(Fault::new("RouteConflict", message))
}

fn traffic_policies(known: Known<'_>, plan: &mut Plan) {
    for (key, outcomes) in &known.policies.outcomes {
        let Some(policy) = known.objects.policies.get(key) else { continue };
        let generation = policy.metadata.generation.unwrap_or_default();
        let current = policy.status.as_ref().map(|status| status.ancestors.as_slice()).unwrap_or_default();
        let mut ancestors: Vec<TrafficAncestor> =
            current.iter().filter(|ancestor| ancestor.controller_name != GATEWAY_CONTROLLER).cloned().collect();
        for outcome in outcomes.iter() {
            let before = current.iter().find(|ancestor| {
                ancestor.controller_name == GATEWAY_CONTROLLER && ancestor.ancestor_ref == outcome.target
            });
            let conditions = before.map(|ancestor| ancestor.conditions.as_slice()).unwrap_or_default();
            let mut conditions = Conditions::new(conditions, generation, known.now);
            conditions.unless("Accepted", "Accepted", target_fault(known, key, outcome).as_ref());
            if let Some(plugin) = &outcome.plugin {
                plugins::resolved(&mut conditions, known.plugins, plugin);
            }
            if let Some(fault) = without_effect(known, policy, &outcome.target) {
                conditions.add("PartiallyInvalid", true, fault.reason, &fault.message);
            }
            ancestors.push(TrafficAncestor {
                ancestor_ref: outcome.target.clone(),
                controller_name: GATEWAY_CONTROLLER.to_owned(),
                conditions: conditions.finish(&["Accepted", "ResolvedRefs", "PartiallyInvalid"]),
            });
        }
        if ancestors != current {
            let status = TrafficPolicyStatus { ancestors };
            plan.patch(Kind::TrafficPolicy, &policy.metadata, json!({"ancestors": status.ancestors}));
        }
    }
}

/// Why a policy does not hold at a target.
fn target_fault(known: Known<'_>, policy: &ObjectKey, outcome: &TargetOutcome) -> Option<Fault> {
    let target = &outcome.target;
    let kind = match (&outcome.refused, TargetKind::of(target)) {
        (Some(fault), _) => return Some(fault.clone()),
        (None, kind) => kind?,
    };
    let key = ObjectKey::new(&policy.namespace, &target.name);
    let route = |kind| known.objects.routes.contains_key(&RouteKey { kind, key: key.clone() });
    let exists = match kind {
        TargetKind::Service => known.objects.services.contains_key(&key),
        TargetKind::Gateway => known.objects.gateways.contains_key(&key),
        TargetKind::Ingress => route(RouteKind::Ingress),
        TargetKind::HTTPRoute => route(RouteKind::HTTPRoute),
        TargetKind::GRPCRoute => route(RouteKind::GRPCRoute),
        TargetKind::TLSRoute => route(RouteKind::TLSRoute),
        TargetKind::TCPRoute => route(RouteKind::TCPRoute),
        TargetKind::UDPRoute => route(RouteKind::UDPRoute),
    };
    if !exists {
        return Some(Fault::new("TargetNotFound", format!("{} {key} does not exist", target.kind)));
    }
    let overridden = known.policies.overridden(policy, kind, &key, target.section_name.as_deref());
    overridden.or_else(|| (kind == TargetKind::Gateway).then(|| shared_port(known, policy, &key)).flatten())
}

/// What a policy says that the ports of the Service it targets cannot follow: PROXY protocol and TLS are for connections, and plugins
/// for HTTP.
fn without_effect(known: Known<'_>, policy: &TrafficPolicy, target: &TargetRef) -> Option<Fault> {
    if TargetKind::of(target) != Some(TargetKind::Service) {
        return None;
    }
    let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
    let service = known.objects.services.get(&ObjectKey::new(namespace, &target.name))?;
    let sends = policy.spec.proxy_protocol.as_ref().is_some_and(|proxy| proxy.send.is_some());
    let encrypts = policy.spec.upstream_tls.is_some();
    let connects: Vec<&str> = [("proxyProtocol.send", sends), ("upstreamTls", encrypts)]
        .iter()
        .filter(|(_, set)| *set)
        .map(|(field, _)| *field)
        .collect();
    let chooses = policy.spec.policy_ref.is_some();
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let targeted = ports.filter(|port| target.section_name.is_none() || target.section_name == port.name);
    let problems: Vec<String> = targeted
        .filter_map(|port| {
            let (number, https) = (port.port, port.app_protocol.as_deref() == Some("https"));
            match app_protocol(port) {
                _ if port.protocol.as_deref() == Some("UDP") && !connects.is_empty() => {
                    Some(format!("{}: port {number} is UDP, which has no connections", connects.join(", ")))
                }
                AppProtocol::Tcp if chooses && !https => {
                    Some(format!("policyRef: port {number} passes bytes on; plugins choose endpoints for HTTP only"))
                }
                _ => None,
            }
        })
        .collect();
    (!problems.is_empty()).then(|| Fault::new("UnsupportedValue", problems.join("; ")))
}

/// A policy that asks for PROXY protocol on a port that an older object has: it would cut off the clients of that.
fn shared_port(known: Known<'_>, policy: &ObjectKey, gateway: &ObjectKey) -> Option<Fault> {
    let source = policy.to_string();
    let facts = known.gateways.by_key.get(gateway)?;
    facts.listeners.iter().filter(|listener| listener.refused.is_none()).find_map(|listener| {
        let attached = known.policies.of(TargetKind::Gateway, gateway, Some(&listener.name));
        let mut asking = attached.filter(|attached| attached.accept_proxy.is_some());
        let used = known.gateways.ports.get(&listener.port)?;
        let first = used.first.as_ref().is_some_and(|first| first.gateway == *gateway);
        let asks = asking.any(|attached| attached.request.source.as_deref() == Some(&source));
        let owner = used.owners.first().filter(|_| asks && !first)?;
        let message = format!("proxyProtocol.accept: port {} belongs to {owner}, which is older", listener.port.port);
        Some(Fault::new("Conflicted", message))
    })
}

fn tls_policies(known: Known<'_>, plan: &mut Plan) {
    for (key, fault) in &known.policies.tls_outcomes {
        let Some(policy) = known.objects.tls_policies.get(key) else { continue };
        let generation = policy.metadata.generation.unwrap_or_default();
        let current = policy.status.as_ref().map(|status| status.ancestors.as_slice()).unwrap_or_default();
        let mut ancestors: Vec<PolicyAncestorStatus> =
            current.iter().filter(|ancestor| ancestor.controller_name != GATEWAY_CONTROLLER).cloned().collect();
        for gateway in gateways_through(known, key, policy) {
            let reference = ParentReference {
                group: Some(GROUP.to_owned()),
                kind: Some("Gateway".to_owned()),
                namespace: Some(gateway.namespace.to_string()),
                name: gateway.name.to_string(),
                ..ParentReference::default()
            };
            let before = current
                .iter()
                .find(|ancestor| ancestor.controller_name == GATEWAY_CONTROLLER && ancestor.ancestor_ref == reference);
            let conditions = before.map(|ancestor| ancestor.conditions.as_slice()).unwrap_or_default();
            let mut conditions = Conditions::new(conditions, generation, known.now);
            let references =
                fault.as_ref().filter(|fault| matches!(fault.reason, "InvalidKind" | "InvalidCACertificateRef"));
            match (fault, references) {
                (_, Some(fault)) => conditions.add("Accepted", false, "NoValidCACertificate", &fault.message),
                (fault, None) => conditions.unless("Accepted", "Accepted", fault.as_ref()),
            }
            conditions.unless("ResolvedRefs", "ResolvedRefs", references);
            ancestors.push(PolicyAncestorStatus {
                ancestor_ref: reference,
                controller_name: GATEWAY_CONTROLLER.to_owned(),
                conditions: conditions.finish(&["Accepted", "ResolvedRefs"]),
            });
        }
        if ancestors != current {
            let status = PolicyStatus { ancestors };
            plan.patch(Kind::BackendTLSPolicy, &policy.metadata, json!({"ancestors": status.ancestors}));
        }
    }
}

/// Ancestors in a policy's status (the API's limit).
const MAX_ANCESTORS: usize = 16;

/// The Gateways of ours whose routes send to a policy's Services.
fn gateways_through(
    known: Known<'_>,
    key: &ObjectKey,
    policy: &scaleup_api::gateway::BackendTLSPolicy,
) -> BTreeSet<ObjectKey> {
    let services = policy.spec.target_refs.iter().take(super::policies::MAX_TARGETS);
    let routes =
        services.filter_map(|target| known.by_service.get(&ObjectKey::new(&key.namespace, &target.name))).flatten();
    let gateways: BTreeSet<ObjectKey> =
        routes.flat_map(|route| (known.served)(route)).filter_map(|(id, _)| id).map(|id| id.gateway).collect();
    gateways.into_iter().take(MAX_ANCESTORS).collect()
}
