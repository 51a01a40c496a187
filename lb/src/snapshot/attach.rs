//! Where routes of the Gateway API attach: which listeners of which parents take them, for which host names, and why the others do not.
//! Pure.

use std::sync::Arc;

use scaleup_api::gateway::{GROUP, ParentReference};

use super::gateways::{Gateways, ListenerFacts, ListenerId, Namespaces, Speaks, valid_host};
use super::objects::{ObjectKey, Objects, RouteKey, RouteKind};
use super::references::Fault;
use super::routes::{HostPattern, HostPort};

/// Parents and host names of a route that are read (the API's limits).
const MAX_PARENTS: usize = 32;
const MAX_HOSTNAMES: usize = 16;

/// A listener that takes a route.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Attachment {
    pub listener: ListenerId,
    pub port: HostPort,
    pub speaks: Speaks,
    /// The names that listener and route have in common.
    pub hosts: Vec<HostPattern>,
}

/// What became of a route at one of its parents.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ParentOutcome {
    /// As the route writes it.
    pub reference: ParentReference,
    /// Why it is not accepted.
    pub refused: Option<Fault>,
}

/// The Gateway that a parent reference means, if it can mean one.
pub(super) fn gateway_of(route: &ObjectKey, parent: &ParentReference) -> Option<ObjectKey> {
    let group = parent.group.as_deref().unwrap_or(GROUP);
    let kind = parent.kind.as_deref().unwrap_or("Gateway");
    (group == GROUP && kind == "Gateway")
        .then(|| ObjectKey::new(parent.namespace.as_deref().unwrap_or(&route.namespace), &parent.name))
}

/// What the parents that are ours say about a route. Host names that are none are left out; if all are, nothing matches.
pub(super) fn attach(
    objects: &Objects,
    gateways: &Gateways,
    route: &RouteKey,
    parents: &[ParentReference],
    hostnames: &[String],
) -> (Vec<Attachment>, Vec<ParentOutcome>) {
    let wanted: Vec<HostPattern> = hostnames
        .iter()
        .take(MAX_HOSTNAMES)
        .filter_map(|name| valid_host(name).filter(|host| *host != HostPattern::Any))
        .collect();
    let wanted = (!hostnames.is_empty()).then_some(&wanted[..]);
    let (mut attachments, mut outcomes): (Vec<Attachment>, Vec<ParentOutcome>) = (Vec::new(), Vec::new());
    for parent in parents.iter().take(MAX_PARENTS) {
        let Some(key) = gateway_of(&route.key, parent) else { continue };
        let Some((key, facts)) = gateways.by_key.get_key_value(&key) else { continue };
        let refused = match to_parent(objects, route, parent, key, &facts.listeners, wanted) {
            Ok(found) => {
                for attachment in found {
                    if !attachments.iter().any(|known| known.listener == attachment.listener) {
                        attachments.push(attachment);
                    }
                }
                None
            }
            Err(fault) => Some(fault),
        };
        outcomes.push(ParentOutcome { reference: parent.clone(), refused });
    }
    (attachments, outcomes)
}

fn to_parent(
    objects: &Objects,
    route: &RouteKey,
    parent: &ParentReference,
    key: &ObjectKey,
    listeners: &[ListenerFacts],
    wanted: Option<&[HostPattern]>,
) -> Result<Vec<Attachment>, Fault> {
    let meant: Vec<&ListenerFacts> = listeners
        .iter()
        .filter(|listener| parent.section_name.as_deref().is_none_or(|name| name == &*listener.name))
        .filter(|listener| parent.port.is_none_or(|port| port == i32::from(listener.port.port)))
        .collect();
    if meant.is_empty() {
        let message = format!("Gateway {key} has no listener of that name or port");
        return Err(Fault::new("NoMatchingParent", message));
    }
    let allowed: Vec<&ListenerFacts> =
        meant.into_iter().filter(|listener| allows(objects, key, listener, route)).collect();
    if allowed.is_empty() {
        let message = format!(
            "no listener of Gateway {key} takes {} of namespace {:?} (allowedRoutes)",
            route.kind.as_str(),
            route.key.namespace
        );
        return Err(Fault::new("NotAllowedByListeners", message));
    }
    let matching: Vec<(&ListenerFacts, Vec<HostPattern>)> = allowed
        .into_iter()
        .map(|listener| (listener, common(&listener.host, wanted.filter(|_| has_names(listener.speaks, route.kind)))))
        .filter(|(_, hosts)| !hosts.is_empty())
        .collect();
    if matching.is_empty() {
        let message = format!("no host name of the route is one of a listener of Gateway {key}");
        return Err(Fault::new("NoMatchingListenerHostname", message));
    }
    let served: Vec<Attachment> = matching
        .into_iter()
        .filter(|(listener, _)| listener.refused.is_none())
        .map(|(listener, hosts)| Attachment {
            listener: ListenerId { gateway: key.clone(), listener: listener.name.clone() },
            port: listener.port,
            speaks: listener.speaks,
            hosts,
        })
        .collect();
    if served.is_empty() {
        let message =
            format!("the listeners of Gateway {key} that would take the route are not served; see its status");
        return Err(Fault::new("NoMatchingParent", message));
    }
    Ok(served)
}

fn has_names(speaks: Speaks, kind: RouteKind) -> bool {
    !matches!(speaks, Speaks::Tcp | Speaks::Udp) && !matches!(kind, RouteKind::TCPRoute | RouteKind::UDPRoute)
}

fn allows(objects: &Objects, gateway: &ObjectKey, listener: &ListenerFacts, route: &RouteKey) -> bool {
    let namespace = &route.key.namespace;
    let from = match &listener.namespaces {
        Namespaces::Same => *namespace == gateway.namespace,
        Namespaces::All => true,
        Namespaces::Selector(selector) => {
            objects.namespaces.get(namespace).is_some_and(|labels| selector.matches(labels))
        }
        Namespaces::None => false,
    };
    from && listener.kinds.contains(&route.kind)
}

/// The names that a listener and a route have in common; a route without names takes the listener's.
fn common(listener: &HostPattern, wanted: Option<&[HostPattern]>) -> Vec<HostPattern> {
    let Some(wanted) = wanted else { return vec![listener.clone()] };
    let mut hosts: Vec<HostPattern> = wanted.iter().filter_map(|name| intersect(listener, name)).collect();
    hosts.sort();
    hosts.dedup();
    hosts
}

/// The narrower of two patterns if it lies within the other.
fn intersect(a: &HostPattern, b: &HostPattern) -> Option<HostPattern> {
    let within = |narrow: &HostPattern, wide: &HostPattern| match (narrow, wide) {
        (_, HostPattern::Any) => true,
        (HostPattern::Any, _) => false,
        (HostPattern::Exact(name), wide) => wide.matches(name),
        (HostPattern::Wildcard(_), HostPattern::Exact(_)) => false,
        (HostPattern::Wildcard(narrow), HostPattern::Wildcard(wide)) => {
            narrow == wide || HostPattern::Wildcard(Arc::clone(wide)).matches(narrow)
        }
    };
    if within(b, a) {
        return Some(b.clone());
    }
    within(a, b).then(|| a.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_listener_and_route_intersect() {
        let check = |listener: &str, route: &[&str], expected: &[&str]| {
            let wanted: Vec<HostPattern> = route.iter().map(|name| HostPattern::parse(name)).collect();
            let wanted = (!wanted.is_empty()).then_some(&wanted[..]);
            let got: Vec<String> =
                common(&HostPattern::parse(listener), wanted).iter().map(ToString::to_string).collect();
            assert_eq!(got, expected, "{listener} {route:?}");
        };
        check("", &[], &["*"]);
        check("a.example", &[], &["a.example"]);
        check("", &["b.example", "a.example", "a.example"], &["a.example", "b.example"]);
        check("a.example", &["a.example", "b.example"], &["a.example"]);
        check("*.example", &["a.example", "x.y.example", "example", "a.other"], &["a.example", "x.y.example"]);
        check("a.example", &["*.example"], &["a.example"]);
        check("*.a.example", &["*.example"], &["*.a.example"]);
        check("*.example", &["*.a.example"], &["*.a.example"]);
        check("*.example", &["*.example"], &["*.example"]);
        check("*.b.example", &["*.a.example", "*.b"], &[]);
    }
}
