//! Gateways of our class: what each listener asks for, and which of them get it, since all Gateways share the addresses of the load balancer.
//!
//! A port carries one kind of traffic (HTTP, TLS, TCP or UDP): the oldest object that asks decides. A host name on a port belongs to the
//! oldest Gateway that asks for it; Gateways of its namespace may share it (their routes serve together), those of others may not, since
//! they could take its traffic. Everything here is by value.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use scaleup_api::LabelSelector;
use scaleup_api::gateway::{GROUP, Gateway, Listener};

use super::objects::{ObjectKey, Objects, RouteKind, created};
use super::references::{End, Fault, permitted};
use super::routes::{CertificatePlan, HostPattern, HostPort};
use super::{PlanConfig, Protocol, addresses};

/// `controllerName` of the GatewayClasses that are ours.
pub const GATEWAY_CONTROLLER: &str = "scaleup.dev/gateway";
/// Listeners of a Gateway that are read (the API's limit).
const MAX_LISTENERS: usize = 64;
/// Certificates of a listener that are read (the API's limit).
const MAX_CERTIFICATES: usize = 64;

/// A listener of a Gateway.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ListenerId {
    pub gateway: ObjectKey,
    pub listener: Arc<str>,
}

/// What a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    Http,
    Https,
    /// TLS ends here, and any bytes are inside.
    TlsTerminate,
    TlsPassthrough,
    Tcp,
    Udp,
}

/// What a port carries; two kinds cannot share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carries {
    Http,
    Tls,
    Tcp,
    Udp,
}

impl Speaks {
    pub fn carries(self) -> Carries {
        match self {
            Self::Http => Carries::Http,
            Self::Https | Self::TlsTerminate | Self::TlsPassthrough => Carries::Tls,
            Self::Tcp => Carries::Tcp,
            Self::Udp => Carries::Udp,
        }
    }

    /// Kinds of routes that can be served.
    pub fn kinds(self) -> &'static [RouteKind] {
        match self {
            Self::Http | Self::Https => &[RouteKind::HTTPRoute, RouteKind::GRPCRoute],
            Self::TlsTerminate => &[RouteKind::TLSRoute, RouteKind::TCPRoute],
            Self::TlsPassthrough => &[RouteKind::TLSRoute],
            Self::Tcp => &[RouteKind::TCPRoute],
            Self::Udp => &[RouteKind::UDPRoute],
        }
    }
}

/// Namespaces whose routes may attach.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Namespaces {
    Same,
    All,
    Selector(LabelSelector),
    None,
}

/// A listener, resolved.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ListenerFacts {
    pub name: Arc<str>,
    pub port: HostPort,
    pub speaks: Speaks,
    pub host: HostPattern,
    pub kinds: Vec<RouteKind>,
    pub namespaces: Namespaces,
    pub certificates: Arc<[Arc<CertificatePlan>]>,
    /// Why it is not served at all.
    pub refused: Option<Fault>,
    /// It is not served because others have its port or name.
    pub conflicted: bool,
    /// What it refers to that is not good.
    pub unresolved: Option<Fault>,
}

/// A Gateway, resolved.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GatewayFacts {
    pub created: i64,
    pub listeners: Vec<ListenerFacts>,
    /// Addresses that it asks for; empty if any will do.
    pub addresses: Vec<IpAddr>,
    /// Why it is not served at all.
    pub refused: Option<Fault>,
}

/// All Gateways that are ours.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Gateways {
    pub by_key: BTreeMap<ObjectKey, Arc<GatewayFacts>>,
    /// What each port carries, when the oldest object asked for it, and all that share it, oldest first.
    pub ports: BTreeMap<HostPort, PortUse>,
}

/// See [`Gateways::ports`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PortUse {
    pub carries: Carries,
    pub created: i64,
    /// For messages.
    pub owners: Vec<String>,
    /// The oldest, if it is a Gateway: its settings hold for the port.
    pub first: Option<ListenerId>,
}

/// Since when Ingresses ask for their two ports.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct IngressClaims {
    pub http: Option<i64>,
    pub https: Option<i64>,
}

/// Name under which Ingresses share a port.
pub(crate) const INGRESSES: &str = "Ingresses";

impl Gateways {
    /// From the objects. Pure.
    pub fn compile(objects: &Objects, config: &PlanConfig, ingresses: IngressClaims) -> Self {
        let mut all = Self::default();
        let mut hosts: BTreeMap<(HostPort, HostPattern), (ObjectKey, Speaks)> = BTreeMap::new();
        let mut gateways: Vec<(i64, Option<&ObjectKey>, Option<&Gateway>)> = objects
            .gateways
            .iter()
            .filter(|(_, gateway)| is_ours(objects, &gateway.spec.gateway_class_name))
            .map(|(key, gateway)| (created(&gateway.metadata), Some(key), Some(&**gateway)))
            .collect();
        // Ingresses stand in line with the Gateways.
        let own =
            [(ingresses.http, config.http_port, Carries::Http), (ingresses.https, config.https_port, Carries::Tls)];
        gateways.extend(own.iter().filter_map(|(since, ..)| Some(((*since)?, None, None))));
        gateways.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
        for (since, key, gateway) in gateways {
            let (Some(key), Some(gateway)) = (key, gateway) else {
                for (_, port, carries) in own.iter().filter(|(at, ..)| *at == Some(since)) {
                    all.claim(HostPort { port: *port, protocol: Protocol::Tcp }, *carries, since, INGRESSES, None);
                }
                continue;
            };
            let listeners = gateway.spec.listeners.iter().take(MAX_LISTENERS);
            let mut facts: Vec<ListenerFacts> =
                listeners.filter_map(|listener| resolve(objects, key, listener)).collect();
            let (addresses, refused) = match addresses::wanted(&gateway.spec.addresses) {
                Ok(wanted) => (wanted, None),
                Err(fault) => (Vec::new(), Some(fault)),
            };
            if let Some(fault) = &refused {
                let waits = Fault::new("Pending", format!("the Gateway is not accepted: {}", fault.message));
                facts.iter_mut().for_each(|listener| _ = listener.refused.get_or_insert_with(|| waits.clone()));
            }
            for listener in facts.iter_mut().filter(|listener| listener.refused.is_none()) {
                let fault = all.conflict(&hosts, key, listener);
                if let Some(fault) = fault {
                    listener.refused = Some(fault);
                    listener.conflicted = true;
                    continue;
                }
                hosts.entry((listener.port, listener.host.clone())).or_insert((key.clone(), listener.speaks));
                let id = ListenerId { gateway: key.clone(), listener: listener.name.clone() };
                all.claim(listener.port, listener.speaks.carries(), since, &format!("Gateway {key}"), Some(id));
            }
            all.by_key
                .insert(key.clone(), Arc::new(GatewayFacts { created: since, listeners: facts, addresses, refused }));
        }
        all
    }

    fn claim(&mut self, port: HostPort, carries: Carries, created: i64, owner: &str, id: Option<ListenerId>) {
        let used =
            self.ports.entry(port).or_insert_with(|| PortUse { carries, created, owners: Vec::new(), first: id });
        if used.carries == carries && !used.owners.iter().any(|known| known == owner) {
            used.owners.push(owner.to_owned());
        }
    }

    /// Why a listener cannot be served beside those before it.
    fn conflict(
        &self,
        hosts: &BTreeMap<(HostPort, HostPattern), (ObjectKey, Speaks)>,
        key: &ObjectKey,
        listener: &ListenerFacts,
    ) -> Option<Fault> {
        let number = listener.port.port;
        let used = self.ports.get(&listener.port);
        if let Some(used) = used.filter(|used| used.carries != listener.speaks.carries()) {
            let message = format!("port {number} is used by {} with another protocol", used.owners.join(", "));
            return Some(Fault::new("ProtocolConflict", message));
        }
        let (owner, speaks) = hosts.get(&(listener.port, listener.host.clone()))?;
        let mergeable = matches!(listener.speaks, Speaks::Http | Speaks::Https);
        if owner != key && owner.namespace == key.namespace && mergeable && *speaks == listener.speaks {
            return None;
        }
        let message = format!("host {} of port {number} belongs to Gateway {owner}, which is older", listener.host);
        Some(Fault::new("HostnameConflict", message))
    }

    /// A listener that is served.
    pub fn listener(&self, id: &ListenerId) -> Option<&ListenerFacts> {
        let facts = self.by_key.get(&id.gateway)?;
        facts.listeners.iter().find(|listener| listener.name == id.listener && listener.refused.is_none())
    }

    /// The listeners that are served on a port, with the keys of their Gateways.
    pub fn on_port(&self, port: HostPort) -> impl Iterator<Item = (&ObjectKey, &ListenerFacts)> {
        self.by_key
            .iter()
            .flat_map(|(key, facts)| facts.listeners.iter().map(move |listener| (key, listener)))
            .filter(move |(_, listener)| listener.port == port && listener.refused.is_none())
    }
}

/// Whether a GatewayClass is ours.
pub(crate) fn is_ours(objects: &Objects, class: &str) -> bool {
    let key = ObjectKey::new("", class);
    objects.gateway_classes.get(&key).is_some_and(|class| class.spec.controller_name == GATEWAY_CONTROLLER)
}

/// What a listener asks for; `None` if its port is impossible, so that nothing can be said about it.
fn resolve(objects: &Objects, gateway: &ObjectKey, listener: &Listener) -> Option<ListenerFacts> {
    let tls = listener.tls.as_ref();
    let mode = tls.and_then(|tls| tls.mode.as_deref()).unwrap_or("Terminate");
    let unsupported = |message: String| Some(Fault::new("UnsupportedProtocol", message));
    let (speaks, mut refused) = match (&*listener.protocol, mode) {
        ("HTTP", _) => (Speaks::Http, None),
        ("HTTPS", "Terminate") => (Speaks::Https, None),
        ("TLS", "Terminate") => (Speaks::TlsTerminate, None),
        ("TLS", "Passthrough") => (Speaks::TlsPassthrough, None),
        ("TCP", _) => (Speaks::Tcp, None),
        ("UDP", _) => (Speaks::Udp, None),
        ("HTTPS" | "TLS", mode) => {
            (Speaks::Https, unsupported(format!("tls.mode {mode:?} does not go with protocol {:?}", listener.protocol)))
        }
        (other, _) => (Speaks::Tcp, unsupported(format!("protocol {other:?} is not supported"))),
    };
    let protocol = if speaks == Speaks::Udp { Protocol::Udp } else { Protocol::Tcp };
    let port = u16::try_from(listener.port).ok().filter(|port| *port != 0)?;
    let hostname = listener.hostname.as_deref().unwrap_or_default();
    let host = match speaks {
        Speaks::Tcp | Speaks::Udp => HostPattern::Any,
        _ => match valid_host(hostname) {
            Some(host) => host,
            None => {
                refused = Some(Fault::new("UnsupportedValue", format!("hostname {hostname:?} is not a host name")));
                HostPattern::Any
            }
        },
    };
    let mut unresolved = None;
    let terminates = matches!(speaks, Speaks::Https | Speaks::TlsTerminate);
    let certificates =
        if terminates { certificates(objects, gateway, listener, &mut unresolved) } else { Arc::default() };
    let kinds = kinds(listener, speaks, &mut unresolved);
    let namespaces = namespaces(listener, &mut refused);
    Some(ListenerFacts {
        name: listener.name.as_str().into(),
        port: HostPort { port, protocol },
        speaks,
        host,
        kinds,
        namespaces,
        certificates,
        refused,
        conflicted: false,
        unresolved,
    })
}

/// A host name or a wildcard; an empty text is any. `None`: neither.
pub(crate) fn valid_host(text: &str) -> Option<HostPattern> {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let fine = text.is_empty() || scaleup_api::names::dns1123_subdomain(&name.to_ascii_lowercase()).is_ok();
    fine.then(|| HostPattern::parse(text))
}

fn certificates(
    objects: &Objects,
    gateway: &ObjectKey,
    listener: &Listener,
    unresolved: &mut Option<Fault>,
) -> Arc<[Arc<CertificatePlan>]> {
    let references = listener.tls.as_ref().map(|tls| tls.certificate_refs.as_slice()).unwrap_or_default();
    if references.is_empty() {
        *unresolved = Some(Fault::new("InvalidCertificateRef", "tls.certificateRefs is empty"));
    }
    let mut found = Vec::new();
    for reference in references.iter().take(MAX_CERTIFICATES) {
        let (group, kind) = (reference.group.as_deref().unwrap_or_default(), reference.kind.as_deref());
        let namespace = reference.namespace.as_deref().unwrap_or(&gateway.namespace);
        let key = ObjectKey::new(namespace, &reference.name);
        let invalid = |message: String| Fault::new("InvalidCertificateRef", message);
        if !group.is_empty() || kind.is_some_and(|kind| kind != "Secret") {
            *unresolved = Some(invalid(format!("certificate {:?} is not a Secret", reference.name)));
            continue;
        }
        let from = End { group: GROUP, kind: "Gateway", namespace: &gateway.namespace };
        if !permitted(objects, from, End { group: "", kind: "Secret", namespace }, &reference.name) {
            let message = format!("Secret {key} is in another namespace and no ReferenceGrant there allows its use");
            *unresolved = Some(Fault::new("RefNotPermitted", message));
            continue;
        }
        match objects.secrets.get(&key) {
            None => {
                *unresolved = Some(invalid(format!("Secret {key} of type kubernetes.io/tls does not exist")));
            }
            Some(secret) => {
                if let Some(problem) = &secret.problem {
                    *unresolved = Some(invalid(broken(&key, problem, secret.good.is_some())));
                }
                found.extend(secret.good.clone());
            }
        }
    }
    found.into()
}

/// What to say about a Secret that is not good (any more).
pub(crate) fn broken(key: &ObjectKey, problem: &str, kept: bool) -> String {
    let kept = if kept { "; the certificate that it held before stays in use" } else { "" };
    format!("Secret {key} cannot be used: {problem}{kept}")
}

fn kinds(listener: &Listener, speaks: Speaks, unresolved: &mut Option<Fault>) -> Vec<RouteKind> {
    let wanted = listener.allowed_routes.as_ref().map(|allowed| allowed.kinds.as_slice()).unwrap_or_default();
    if wanted.is_empty() {
        return speaks.kinds().to_vec();
    }
    let mut kinds = Vec::new();
    for kind in wanted {
        let known = speaks.kinds().iter().find(|known| known.as_str() == kind.kind);
        match known.filter(|_| kind.group.as_deref().is_none_or(|group| group == GROUP)) {
            Some(known) if !kinds.contains(known) => kinds.push(*known),
            Some(_) => {}
            None => {
                let message = format!("kind {:?} cannot attach to a listener of this protocol", kind.kind);
                *unresolved = Some(Fault::new("InvalidRouteKinds", message));
            }
        }
    }
    kinds
}

fn namespaces(listener: &Listener, refused: &mut Option<Fault>) -> Namespaces {
    let allowed = listener.allowed_routes.as_ref().and_then(|allowed| allowed.namespaces.as_ref());
    match allowed.and_then(|allowed| allowed.from.as_deref()).unwrap_or("Same") {
        "Same" => Namespaces::Same,
        "All" => Namespaces::All,
        "Selector" => match allowed.and_then(|allowed| allowed.selector.as_ref()).map(LabelSelector::from_k8s) {
            Some(Ok(selector)) => Namespaces::Selector(selector),
            _ => {
                let message = "allowedRoutes.namespaces.selector is not a label selector";
                *refused = Some(Fault::new("UnsupportedValue", message));
                Namespaces::None
            }
        },
        "None" => Namespaces::None,
        other => {
            let message = format!("allowedRoutes.namespaces.from {other:?} is not supported");
            *refused = Some(Fault::new("UnsupportedValue", message));
            Namespaces::None
        }
    }
}
