//! References between objects: from routes to Services, from Gateways to Secrets, across namespaces only where a ReferenceGrant allows it.
//! Pure; says why a reference is not good instead of following it.

use k8s_openapi::api::core::v1::ServicePort;
use scaleup_api::gateway::GROUP;

use super::objects::{ObjectKey, Objects, RouteKind};
use super::routes::BackendRef;
use super::{Protocol, ServiceKey};

/// Why something is not as its object asks: a reason of the Gateway API and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Reason of a condition.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Fault {
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// One end of a reference.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End<'a> {
    pub group: &'a str,
    pub kind: &'a str,
    pub namespace: &'a str,
}

/// Whether `from` may refer to the object `name` at `to`: in its own namespace always, in others by a ReferenceGrant there.
pub(crate) fn permitted(objects: &Objects, from: End<'_>, to: End<'_>, name: &str) -> bool {
    if from.namespace == to.namespace {
        return true;
    }
    let first = ObjectKey::new(to.namespace, "");
    let grants = objects.grants.range(first..).take_while(|(key, _)| &*key.namespace == to.namespace);
    grants.map(|(_, grant)| &grant.spec).any(|grant| {
        grant.from.iter().any(|f| f.group == from.group && f.kind == from.kind && f.namespace == from.namespace)
            && grant
                .to
                .iter()
                .any(|t| t.group == to.group && t.kind == to.kind && t.name.as_deref().is_none_or(|only| only == name))
    })
}

/// A reference to a backend, as all kinds of routes write it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WrittenRef<'a> {
    pub group: Option<&'a str>,
    pub kind: Option<&'a str>,
    pub namespace: Option<&'a str>,
    pub name: &'a str,
    pub port: Option<i32>,
}

/// A reference from any of the types that have these fields.
macro_rules! written {
    ($reference:expr) => {
        $crate::snapshot::references::WrittenRef {
            group: $reference.group.as_deref(),
            kind: $reference.kind.as_deref(),
            namespace: $reference.namespace.as_deref(),
            name: &$reference.name,
            port: $reference.port,
        }
    };
}
pub(crate) use written;

/// The Service port that a route of `kind` in `namespace` means. The Service is told in any case if its name is known, so that a change
/// of it is noticed.
pub(crate) fn backend(
    objects: &Objects,
    kind: RouteKind,
    namespace: &str,
    reference: WrittenRef<'_>,
) -> (Option<ServiceKey>, Result<BackendRef, Fault>) {
    let (group, target) = (reference.group.unwrap_or_default(), reference.kind.unwrap_or("Service"));
    if !group.is_empty() || target != "Service" {
        let message = format!("backend {group}/{target} {:?}: only Services can be backends", reference.name);
        return (None, Err(Fault::new("InvalidKind", message)));
    }
    let to = End { group: "", kind: "Service", namespace: reference.namespace.unwrap_or(namespace) };
    let from = End { group: GROUP, kind: kind.as_str(), namespace };
    let key = objects.service_key(to.namespace, reference.name);
    if !permitted(objects, from, to, reference.name) {
        let message = format!(
            "Service {key} is in another namespace and no ReferenceGrant there allows {} of {namespace:?} to use it",
            kind.as_str()
        );
        return (Some(key), Err(Fault::new("RefNotPermitted", message)));
    }
    let found = port(
        objects,
        &key,
        protocol_of(kind),
        |port| Some(port.port) == reference.port,
        || reference.port.map_or_else(|| "(none given)".to_owned(), |port| port.to_string()),
    );
    (Some(key), found)
}

fn protocol_of(kind: RouteKind) -> Protocol {
    if kind == RouteKind::UDPRoute { Protocol::Udp } else { Protocol::Tcp }
}

/// The port of a Service that `wanted` says; `name` is for the message.
pub(crate) fn port(
    objects: &Objects,
    key: &ServiceKey,
    protocol: Protocol,
    wanted: impl Fn(&ServicePort) -> bool,
    name: impl Fn() -> String,
) -> Result<BackendRef, Fault> {
    let Some(service) = objects.services.get(key) else {
        return Err(Fault::new("BackendNotFound", format!("Service {key} does not exist")));
    };
    let spec = service.spec.as_ref();
    if spec.is_some_and(|spec| spec.type_.as_deref() == Some("ExternalName")) {
        return Err(Fault::new("InvalidKind", format!("Service {key} is of type ExternalName and has no endpoints")));
    }
    let ports = spec.and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let same = |port: &&ServicePort| super::plan::parse_protocol(port.protocol.as_deref()) == Some(protocol);
    let found = ports.iter().filter(same).find(|port| wanted(port)).and_then(|port| u16::try_from(port.port).ok());
    match found.filter(|port| *port != 0) {
        Some(port) => Ok(BackendRef { service: key.clone(), port, protocol }),
        None => {
            let message = format!("Service {key} has no {} port {}", protocol.as_str(), name());
            Err(Fault::new("BackendNotFound", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::testing::objects;
    use serde_json::{Value, json};

    #[track_caller]
    fn check(grant: Value, reference: Value, expected: Result<u16, &str>) {
        let mut all = vec![
            json!({"kind": "Service", "metadata": {"namespace": "b", "name": "web"},
                   "spec": {"ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]}}),
            json!({"kind": "Service", "metadata": {"namespace": "b", "name": "out"},
                   "spec": {"type": "ExternalName", "externalName": "x", "ports": [{"port": 80}]}}),
        ];
        if !grant.is_null() {
            all.push(json!({"kind": "ReferenceGrant", "metadata": {"namespace": "b", "name": "g"}, "spec": grant}));
        }
        let reference: scaleup_api::gateway::BackendRef = serde_json::from_value(reference).expect("a reference");
        let (_, found) = backend(&objects(&all), RouteKind::HTTPRoute, "a", written!(reference));
        assert_eq!(found.map(|backend| backend.port).map_err(|fault| fault.reason), expected, "{reference:?}");
    }

    #[test]
    fn references_across_namespaces_need_a_grant() {
        let grant = |group: &str, kind: &str, from: &str, to: Value| json!({"from": [{"group": group, "kind": kind, "namespace": from}], "to": [to]});
        let web = json!({"name": "web", "namespace": "b", "port": 80});
        let services = json!({"group": "", "kind": "Service"});
        check(Value::Null, web.clone(), Err("RefNotPermitted"));
        check(grant(GROUP, "HTTPRoute", "a", services.clone()), web.clone(), Ok(80));
        check(grant(GROUP, "HTTPRoute", "c", services.clone()), web.clone(), Err("RefNotPermitted"));
        check(grant(GROUP, "GRPCRoute", "a", services.clone()), web.clone(), Err("RefNotPermitted"));
        check(grant("", "HTTPRoute", "a", services.clone()), web.clone(), Err("RefNotPermitted"));
        check(
            grant(GROUP, "HTTPRoute", "a", json!({"group": "", "kind": "Secret"})),
            web.clone(),
            Err("RefNotPermitted"),
        );
        let named = |name: &str| json!({"group": "", "kind": "Service", "name": name});
        check(grant(GROUP, "HTTPRoute", "a", named("web")), web.clone(), Ok(80));
        check(grant(GROUP, "HTTPRoute", "a", named("api")), web, Err("RefNotPermitted"));
    }

    #[test]
    fn what_is_not_a_service_port_is_told_apart() {
        let grant = json!({"from": [{"group": GROUP, "kind": "HTTPRoute", "namespace": "a"}],
                           "to": [{"group": "", "kind": "Service"}]});
        let check = |reference: Value, expected| check(grant.clone(), reference, expected);
        check(json!({"name": "web", "namespace": "b", "port": 81}), Err("BackendNotFound"));
        check(json!({"name": "web", "namespace": "b", "port": 53}), Err("BackendNotFound"));
        check(json!({"name": "web", "namespace": "b"}), Err("BackendNotFound"));
        check(json!({"name": "web", "port": 80}), Err("BackendNotFound"));
        check(json!({"name": "out", "namespace": "b", "port": 80}), Err("InvalidKind"));
        check(json!({"name": "web", "kind": "Pod", "port": 80}), Err("InvalidKind"));
        check(json!({"name": "web", "group": "x", "port": 80}), Err("InvalidKind"));
    }
}
