//! Incremental form of the compilation: an event recompiles only what it touches, everything else is shared with the previous snapshot.
//! Does no I/O.
//!
//! Dependencies: a Service's plan depends on the Service, its slices, Nodes' zones and policies; a route's on the route, the ports of the
//! Services that it names, Gateways, grants and policies; a host port's on the routes that are served there. Hence an EndpointSlice never
//! recompiles a route.

mod refresh;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::jiff::Timestamp;
use scaleup_api::well_known::{
    ANNOTATION_POD_GATEWAY, CONFIG_MAP_ACME_CHALLENGES, LABEL_REGION, LABEL_ZONE, NAMESPACE_SYSTEM,
};
use scaleup_plugins::Registry;

use super::assemble::{Compiled, Shadowed};
use super::compile_route::RouteOutcome;
use super::gateways::{Gateways, IngressClaims, ListenerId, Namespaces};
use super::objects::{
    Kind, NodeFacts, Object, ObjectKey, Objects, Route, RouteKey, RouteKind, StoredRoute, object_key,
};
use super::plan::{service_key, slice_service};
use super::policies::Policies;
use super::routes::{BackendRef, HostPattern, HostPort, ListenerPlan, Mode};
use super::unsaid::Unsaid;
use super::{NodePlan, PlanConfig, Protocol, ServiceKey, ServicePlan, Snapshot, certificates, statuses};
use crate::listeners::Report;
use crate::policy::RequestPolicy;

/// ACME challenges answered at a time.
const MAX_CHALLENGES: usize = 10_000;

/// Namespace and name of an EndpointSlice.
type SliceKey = (String, String);

/// Keeps the objects and what was compiled from them; [`Compiler::snapshot`] is cheap after a small change.
#[derive(Debug, Default)]
pub struct Compiler {
    config: PlanConfig,
    objects: Objects,
    slices: BTreeMap<ServiceKey, BTreeMap<SliceKey, EndpointSlice>>,
    /// Where a slice is filed: its label may change.
    slice_owner: BTreeMap<SliceKey, ServiceKey>,
    plans: BTreeMap<ServiceKey, Arc<ServicePlan>>,
    node: NodePlan,
    claims: IngressClaims,
    gateways: Gateways,
    policies: Policies,
    routes: BTreeMap<RouteKey, Compiled>,
    outcomes: BTreeMap<RouteKey, Arc<RouteOutcome>>,
    /// Routes by the Services and Gateways that they name.
    by_service: BTreeMap<ObjectKey, BTreeSet<RouteKey>>,
    by_gateway: BTreeMap<ObjectKey, BTreeSet<RouteKey>>,
    /// How many routes send to a Service port.
    users: BTreeMap<BackendRef, usize>,
    routed: Arc<BTreeSet<BackendRef>>,
    listeners: BTreeMap<HostPort, Arc<ListenerPlan>>,
    shadowed: BTreeMap<HostPort, Shadowed>,
    /// How many routes are served at a Gateway's listener.
    attached: BTreeMap<ListenerId, i32>,
    unsaid: Unsaid,
    default_policy: Arc<RequestPolicy>,
    plugins: Arc<Registry>,
    dirty: Dirty,
}

/// What must be compiled again.
#[derive(Debug, Default)]
struct Dirty {
    services: BTreeSet<ServiceKey>,
    routes: BTreeSet<RouteKey>,
    ports: BTreeMap<HostPort, Touched>,
    all_services: bool,
    all_routes: bool,
    all_ports: bool,
    ingresses: bool,
    claims: bool,
    gateways: bool,
    policies: bool,
}

/// What routes changed on a port.
#[derive(Clone, Debug, Default)]
struct Touched {
    /// Rules of these names.
    hosts: BTreeSet<HostPattern>,
    /// More than rules of names.
    more: bool,
}

impl Compiler {
    /// An empty compiler.
    pub fn new(config: PlanConfig) -> Self {
        Self { config, ..Self::default() }
    }

    /// With the plugins that statuses tell about.
    #[must_use]
    pub fn with_plugins(self, plugins: Arc<Registry>) -> Self {
        Self { plugins, ..self }
    }

    /// An object was added or changed.
    pub fn apply(&mut self, mut object: Object) {
        object.strip();
        let Some(key) = object_key(object.metadata()) else { return };
        match object {
            Object::Service(service) => self.apply_service(*service),
            Object::EndpointSlice(slice) => self.apply_slice(*slice),
            Object::Node(node) => self.apply_node(&node),
            Object::Namespace(namespace) => {
                let labels = namespace.metadata.labels.unwrap_or_default();
                let changed = self.objects.namespaces.get(&key.name) != Some(&labels);
                self.objects.namespaces.insert(key.name, labels);
                self.dirty.all_routes |= changed && self.selects_namespaces();
            }
            Object::IngressClass(class) => {
                self.objects.ingress_classes.insert(key, class);
                (self.dirty.ingresses, self.dirty.claims) = (true, true);
            }
            Object::GatewayClass(class) => {
                self.objects.gateway_classes.insert(key, class);
                self.dirty.gateways = true;
            }
            Object::Gateway(gateway) => {
                self.objects.gateways.insert(key, gateway);
                self.dirty.gateways = true;
            }
            Object::Ingress(route) => self.apply_route(RouteKind::Ingress, key, Route::Ingress(route)),
            Object::HTTPRoute(route) => self.apply_route(RouteKind::HTTPRoute, key, Route::Http(route)),
            Object::GRPCRoute(route) => self.apply_route(RouteKind::GRPCRoute, key, Route::Grpc(route)),
            Object::TLSRoute(route) => self.apply_route(RouteKind::TLSRoute, key, Route::Tls(route)),
            Object::TCPRoute(route) => self.apply_route(RouteKind::TCPRoute, key, Route::Tcp(route)),
            Object::UDPRoute(route) => self.apply_route(RouteKind::UDPRoute, key, Route::Udp(route)),
            Object::ReferenceGrant(grant) => {
                self.objects.grants.insert(key, grant);
                (self.dirty.all_routes, self.dirty.gateways) = (true, true);
            }
            Object::BackendTLSPolicy(policy) => {
                self.objects.tls_policies.insert(key, policy);
                self.dirty.policies = true;
            }
            Object::TrafficPolicy(policy) => {
                self.objects.policies.insert(key, policy);
                self.dirty.policies = true;
            }
            Object::Secret(secret) => {
                let stored = certificates::store(&secret, self.objects.secrets.get(&key));
                self.secret_changed(&key);
                self.objects.secrets.insert(key, stored);
            }
            Object::ConfigMap(map) if is_challenges(&key) => {
                let all = map.data.unwrap_or_default().into_iter().take(MAX_CHALLENGES);
                self.objects.challenges = Arc::new(all.map(|(token, answer)| (token.into(), answer.into())).collect());
            }
            Object::ConfigMap(map) => match certificates::bundle(&map) {
                Some(pem) => {
                    self.dirty.policies |= self.objects.bundles.get(&key) != Some(&pem);
                    self.objects.bundles.insert(key, pem);
                }
                None => self.dirty.policies |= self.objects.bundles.remove(&key).is_some(),
            },
        }
    }

    /// An object was deleted.
    pub fn delete(&mut self, kind: Kind, key: &ObjectKey) {
        match kind {
            Kind::Service => self.remove_service(key),
            Kind::EndpointSlice => self.remove_slice(&(key.namespace.to_string(), key.name.to_string())),
            // A Node that is deleted and registered again keeps its network and its zone meanwhile.
            Kind::Node => {}
            Kind::Namespace => {
                let known = self.objects.namespaces.remove(&key.name).is_some();
                self.dirty.all_routes |= known && self.selects_namespaces();
            }
            Kind::IngressClass => {
                self.objects.ingress_classes.remove(key);
                (self.dirty.ingresses, self.dirty.claims) = (true, true);
            }
            Kind::GatewayClass => {
                self.objects.gateway_classes.remove(key);
                self.dirty.gateways = true;
            }
            Kind::Gateway => {
                self.objects.gateways.remove(key);
                self.dirty.gateways = true;
            }
            Kind::Ingress => self.delete_route(RouteKind::Ingress, key),
            Kind::HTTPRoute => self.delete_route(RouteKind::HTTPRoute, key),
            Kind::GRPCRoute => self.delete_route(RouteKind::GRPCRoute, key),
            Kind::TLSRoute => self.delete_route(RouteKind::TLSRoute, key),
            Kind::TCPRoute => self.delete_route(RouteKind::TCPRoute, key),
            Kind::UDPRoute => self.delete_route(RouteKind::UDPRoute, key),
            Kind::ReferenceGrant => {
                self.objects.grants.remove(key);
                (self.dirty.all_routes, self.dirty.gateways) = (true, true);
            }
            Kind::BackendTLSPolicy => self.dirty.policies |= self.objects.tls_policies.remove(key).is_some(),
            Kind::TrafficPolicy => self.dirty.policies |= self.objects.policies.remove(key).is_some(),
            Kind::Secret => {
                self.secret_changed(key);
                self.objects.secrets.remove(key);
            }
            Kind::ConfigMap if is_challenges(key) => self.objects.challenges = Arc::default(),
            Kind::ConfigMap => self.dirty.policies |= self.objects.bundles.remove(key).is_some(),
        }
    }

    /// Replaces all objects of a kind (a completed list).
    pub fn replace(&mut self, kind: Kind, objects: Vec<Object>) {
        let kept: BTreeSet<ObjectKey> = objects.iter().filter_map(|object| object_key(object.metadata())).collect();
        for key in self.keys(kind).into_iter().filter(|key| !kept.contains(key)) {
            self.delete(kind, &key);
        }
        objects.into_iter().filter(|object| object.kind() == kind).for_each(|object| self.apply(object));
    }

    fn keys(&self, kind: Kind) -> Vec<ObjectKey> {
        let objects = &self.objects;
        let routes = |kind: RouteKind| {
            objects.routes.keys().filter(|route| route.kind == kind).map(|route| route.key.clone()).collect()
        };
        match kind {
            Kind::Service => objects.services.keys().cloned().collect(),
            Kind::EndpointSlice => {
                self.slice_owner.keys().map(|(namespace, name)| ObjectKey::new(namespace, name)).collect()
            }
            Kind::Node => objects.nodes.keys().map(|name| ObjectKey::new("", name)).collect(),
            Kind::Namespace => objects.namespaces.keys().map(|name| ObjectKey::new("", name)).collect(),
            Kind::IngressClass => objects.ingress_classes.keys().cloned().collect(),
            Kind::GatewayClass => objects.gateway_classes.keys().cloned().collect(),
            Kind::Gateway => objects.gateways.keys().cloned().collect(),
            Kind::Ingress => routes(RouteKind::Ingress),
            Kind::HTTPRoute => routes(RouteKind::HTTPRoute),
            Kind::GRPCRoute => routes(RouteKind::GRPCRoute),
            Kind::TLSRoute => routes(RouteKind::TLSRoute),
            Kind::TCPRoute => routes(RouteKind::TCPRoute),
            Kind::UDPRoute => routes(RouteKind::UDPRoute),
            Kind::ReferenceGrant => objects.grants.keys().cloned().collect(),
            Kind::BackendTLSPolicy => objects.tls_policies.keys().cloned().collect(),
            Kind::TrafficPolicy => objects.policies.keys().cloned().collect(),
            Kind::Secret => objects.secrets.keys().cloned().collect(),
            Kind::ConfigMap => objects.bundles.keys().cloned().collect(),
        }
    }

    /// A Service was added or changed.
    pub fn apply_service(&mut self, mut service: Service) {
        service.metadata.managed_fields = None;
        let Some(key) = service_key(&service) else { return };
        let before = self.objects.services.get(&key).and_then(|service| service.spec.as_ref());
        let after = service.spec.as_ref();
        let seen_by_routes = |spec: Option<&k8s_openapi::api::core::v1::ServiceSpec>| {
            spec.map(|spec| (spec.type_.clone(), spec.ports.clone()))
        };
        if !self.objects.services.contains_key(&key) || seen_by_routes(before) != seen_by_routes(after) {
            self.dirty.routes.extend(self.by_service.get(&key).into_iter().flatten().cloned());
        }
        self.dirty.services.insert(key.clone());
        self.objects.services.insert(key, Box::new(service));
    }

    /// A Service was deleted.
    pub fn delete_service(&mut self, service: &Service) {
        if let Some(key) = service_key(service) {
            self.remove_service(&key);
        }
    }

    fn remove_service(&mut self, key: &ServiceKey) {
        self.objects.services.remove(key);
        self.dirty.routes.extend(self.by_service.get(key).into_iter().flatten().cloned());
        self.dirty.services.insert(key.clone());
    }

    /// Replaces all Services (a completed list).
    pub fn replace_services(&mut self, services: Vec<Service>) {
        self.replace(Kind::Service, services.into_iter().map(Object::from).collect());
    }

    /// An EndpointSlice was added or changed.
    pub fn apply_slice(&mut self, mut slice: EndpointSlice) {
        self.delete_slice(&slice);
        slice.metadata.managed_fields = None;
        if let (Some(id), Some(owner)) = (slice_key(&slice), slice_service(&slice)) {
            self.dirty.services.insert(owner.clone());
            self.slice_owner.insert(id.clone(), owner.clone());
            self.slices.entry(owner).or_default().insert(id, slice);
        }
    }

    /// An EndpointSlice was deleted.
    pub fn delete_slice(&mut self, slice: &EndpointSlice) {
        if let Some(id) = slice_key(slice) {
            self.remove_slice(&id);
        }
    }

    fn remove_slice(&mut self, id: &SliceKey) {
        let Some(owner) = self.slice_owner.remove(id) else { return };
        if let Some(slices) = self.slices.get_mut(&owner) {
            slices.remove(id);
            if slices.is_empty() {
                self.slices.remove(&owner);
            }
        }
        self.dirty.services.insert(owner);
    }

    /// Replaces all EndpointSlices (a completed list).
    pub fn replace_slices(&mut self, slices: Vec<EndpointSlice>) {
        self.replace(Kind::EndpointSlice, slices.into_iter().map(Object::from).collect());
    }

    /// A Node was added or changed.
    pub fn apply_node(&mut self, node: &Node) {
        let Some(name) = node.metadata.name.as_deref() else { return };
        let label = |label: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(label));
        let facts = NodeFacts {
            zone: label(LABEL_ZONE).map(|zone| zone.as_str().into()),
            region: label(LABEL_REGION).map(|region| region.as_str().into()),
        };
        // A process without a Node of its own takes any: it is alone.
        if self.config.node_name.is_empty() || name == self.config.node_name {
            let annotations = node.metadata.annotations.as_ref();
            self.node = NodePlan {
                name: Some(name.into()),
                pod_cidr: node.spec.as_ref().and_then(|spec| spec.pod_cidr.clone()).filter(|cidr| is_cidr(cidr)),
                pod_gateway: annotations.and_then(|a| a.get(ANNOTATION_POD_GATEWAY)).and_then(|ip| ip.parse().ok()),
                zone: facts.zone.clone(),
                region: facts.region.clone(),
            };
        }
        if self.objects.nodes.get(name) != Some(&facts) {
            self.objects.nodes.insert(name.into(), facts);
            self.dirty.all_services = true;
        }
    }

    fn apply_route(&mut self, kind: RouteKind, key: ObjectKey, route: Route) {
        let key = RouteKey { kind, key };
        self.dirty.claims |= kind == RouteKind::Ingress;
        self.dirty.routes.insert(key.clone());
        self.objects.routes.insert(key, StoredRoute::new(route));
    }

    fn delete_route(&mut self, kind: RouteKind, key: &ObjectKey) {
        let key = RouteKey { kind, key: key.clone() };
        if self.objects.routes.remove(&key).is_some() {
            self.dirty.claims |= kind == RouteKind::Ingress;
            self.dirty.routes.insert(key);
        }
    }

    fn selects_namespaces(&self) -> bool {
        // Gateways that are not compiled yet compile their routes anyhow.
        let mut listeners = self.gateways.by_key.values().flat_map(|facts| &facts.listeners);
        listeners.any(|listener| matches!(listener.namespaces, Namespaces::Selector(_)))
    }

    /// Whatever may use a Secret looks at it again.
    fn secret_changed(&mut self, key: &ObjectKey) {
        (self.dirty.gateways, self.dirty.policies) = (true, true);
        let uses = |ingress: &Ingress| {
            let tls = ingress.spec.as_ref().and_then(|spec| spec.tls.as_ref());
            tls.into_iter().flatten().any(|tls| tls.secret_name.as_deref() == Some(&*key.name))
        };
        let first = RouteKey { kind: RouteKind::Ingress, key: ObjectKey::new(&key.namespace, "") };
        let ingresses = self
            .objects
            .routes
            .range(first..)
            .take_while(|(route, _)| route.kind == RouteKind::Ingress && route.key.namespace == key.namespace);
        let using = ingresses
            .filter(|(_, route)| matches!(route, StoredRoute::Whole(Route::Ingress(ingress)) if uses(ingress)));
        self.dirty.routes.extend(using.map(|(route, _)| route.clone()));
    }

    /// The listeners' report has changed: statuses that depend on it are looked at again.
    pub(crate) fn reported(&mut self) {
        let ingresses = self.objects.routes.keys().take_while(|key| key.kind == RouteKind::Ingress);
        self.unsaid.extend(ingresses.cloned());
    }

    /// What must be written into statuses, as of the last snapshot. `ip`: the own address.
    pub(crate) fn statuses(&mut self, report: &Report, ip: &str, now: Timestamp) -> statuses::Plan {
        let served = |key: &RouteKey| {
            let places = self.routes.get(key).into_iter().flat_map(|route| &route.places);
            places.map(|place| (place.listener.clone(), place.port)).collect()
        };
        let known = statuses::Known {
            objects: &self.objects,
            gateways: &self.gateways,
            policies: &self.policies,
            outcomes: &self.outcomes,
            served: &served,
            attached: &self.attached,
            shadowed: &self.shadowed,
            by_service: &self.by_service,
            plugins: &self.plugins,
            report,
            ip,
            now,
        };
        statuses::plan(known, &mut self.unsaid)
    }

    /// What is kept of the objects.
    #[cfg(test)]
    pub(crate) fn into_objects(self) -> Objects {
        self.objects
    }

    /// The listeners, with the answers to ACME challenges where CAs ask for them.
    fn challenged(&self) -> BTreeMap<HostPort, Arc<ListenerPlan>> {
        let mut listeners = self.listeners.clone();
        if self.objects.challenges.is_empty() {
            return listeners;
        }
        let plan =
            listeners.entry(HostPort { port: self.config.http_port, protocol: Protocol::Tcp }).or_insert_with(|| {
                Arc::new(ListenerPlan {
                    created: i64::MAX,
                    owners: vec!["ACME challenges".to_owned()],
                    accept_proxy: None,
                    mode: Mode::Http(Arc::default()),
                })
            });
        if let Mode::Http(http) = &mut Arc::make_mut(plan).mode {
            Arc::make_mut(http).challenges = self.objects.challenges.clone();
        }
        listeners
    }

    /// Recompiles what changed and returns the snapshot.
    pub fn snapshot(&mut self) -> Snapshot {
        let mut dirty = std::mem::take(&mut self.dirty);
        self.refresh_gateways(&mut dirty);
        self.refresh_policies(&mut dirty);
        self.refresh_services(&dirty);
        self.refresh_routes(&mut dirty);
        self.refresh_listeners(&dirty);
        Snapshot {
            services: self.plans.clone(),
            listeners: self.challenged(),
            routed: self.routed.clone(),
            node: self.node.clone(),
        }
    }
}

/// Whether it is the ConfigMap that the ACME controller publishes in.
fn is_challenges(key: &ObjectKey) -> bool {
    &*key.namespace == NAMESPACE_SYSTEM && &*key.name == CONFIG_MAP_ACME_CHALLENGES
}

fn slice_key(slice: &EndpointSlice) -> Option<SliceKey> {
    Some((slice.metadata.namespace.clone()?, slice.metadata.name.clone()?))
}

/// Whether `text` is `IPv4/length`: it is written into nftables rules.
pub(crate) fn is_cidr(text: &str) -> bool {
    let Some((ip, length)) = text.split_once('/') else { return false };
    ip.parse::<std::net::Ipv4Addr>().is_ok()
        && length.len() <= 2
        && length.bytes().all(|b| b.is_ascii_digit())
        && length.parse::<u8>().is_ok_and(|length| length <= 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::plan;
    use serde_json::json;

    fn service(name: &str) -> Service {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "d"}, "spec": {"ports": [{"port": 80}]}}))
            .expect("a Service")
    }

    fn slice(name: &str, service: &str, ip: &str) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "d", "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "endpoints": [{"addresses": [ip]}], "ports": [{"port": 8080}],
        }))
        .expect("an EndpointSlice")
    }

    #[test]
    fn equals_the_full_plan_after_any_sequence() {
        let mut compiler = Compiler::new(PlanConfig::default());
        compiler.apply_service(service("a"));
        compiler.apply_slice(slice("a1", "a", "10.0.0.1"));
        compiler.apply_service(service("b"));
        compiler.apply_slice(slice("a1", "b", "10.0.0.1"));
        compiler.apply_slice(slice("a2", "a", "10.0.0.2"));
        compiler.apply_slice(slice("a3", "a", "10.0.0.3"));
        compiler.delete_slice(&slice("a3", "a", "10.0.0.3"));
        let expected = plan(
            &[service("a"), service("b")],
            &[slice("a1", "b", "10.0.0.1"), slice("a2", "a", "10.0.0.2")],
            &PlanConfig::default(),
        );
        assert_eq!(compiler.snapshot(), expected);
        compiler.delete_service(&service("a"));
        assert_eq!(compiler.snapshot().services.len(), 1);
        compiler.replace_services(vec![service("c")]);
        compiler.replace_slices(vec![slice("c1", "c", "10.0.0.9")]);
        let expected = plan(&[service("c")], &[slice("c1", "c", "10.0.0.9")], &PlanConfig::default());
        assert_eq!(compiler.snapshot(), expected);
    }

    #[test]
    fn untouched_services_are_shared() {
        let mut compiler = Compiler::new(PlanConfig::default());
        compiler.apply_service(service("a"));
        compiler.apply_service(service("b"));
        let before = compiler.snapshot();
        compiler.apply_slice(slice("a1", "a", "10.0.0.1"));
        compiler.apply_service(service("b"));
        let after = compiler.snapshot();
        let key = |name| ServiceKey::new("d", name);
        assert!(!Arc::ptr_eq(&before.services[&key("a")], &after.services[&key("a")]));
        assert!(Arc::ptr_eq(&before.services[&key("b")], &after.services[&key("b")]));
    }

    #[test]
    fn node_facts_are_validated() {
        let mut compiler = Compiler::new(PlanConfig::default());
        let node = |cidr: &str, gateway: &str| -> Node {
            serde_json::from_value(json!({
                "metadata": {"name": "n", "annotations": {ANNOTATION_POD_GATEWAY: gateway}}, "spec": {"podCIDR": cidr},
            }))
            .expect("a Node")
        };
        compiler.apply_node(&node("10.244.1.0/24", "10.244.1.1"));
        assert_eq!(compiler.snapshot().node.pod_cidr.as_deref(), Some("10.244.1.0/24"));
        assert!(compiler.snapshot().node.pod_gateway.is_some());
        compiler.apply_node(&node("10.244.1.0/24; flush ruleset", "nope"));
        let name = Some("n".into());
        assert_eq!(compiler.snapshot().node, NodePlan { name, ..NodePlan::default() });
    }
}
