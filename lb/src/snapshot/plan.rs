//! From Service and EndpointSlice objects to a [`Snapshot`], by value.
//!
//! Endpoint choice follows upstream's kube-proxy: ready endpoints; when there are none, those still serving while they
//! terminate. Objects are hostile input: addresses, ports and protocols that do not parse are left out, never an error.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, EndpointPort, EndpointSlice};

use scaleup_api::well_known::ANNOTATION_ROUTING_POLICY;

use super::objects::NodeFacts;
use super::policies::{Attached, Policies, TargetKind};
use crate::policy::convert::annotated;
use crate::policy::parts::{RequestPart, ServicePart, WeightRule, request_policy, service_policy};
use crate::policy::{Locality, PluginRef, Prefer, ServicePolicy, UpstreamTls};

use super::{
    AppProtocol, EndpointPlan, HostPlan, PlanConfig, PortPlan, Protocol, ServiceKey, ServicePlan, ServiceType, Snapshot,
};

/// Label of an EndpointSlice that names its Service.
pub(super) const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// `spec.loadBalancerClass` values we implement; others belong to somebody else.
const LOAD_BALANCER_CLASS: &str = "scaleup.dev/lb";
/// Weight of an endpoint that no policy speaks of.
pub(super) const DEFAULT_WEIGHT: u32 = 100;
/// Upstream's default of `timeoutSeconds`.
const DEFAULT_AFFINITY: Duration = Duration::from_secs(10_800);
/// Endpoints kept per Service port; more cannot be balanced sensibly from one node.
const MAX_ENDPOINTS_PER_PORT: usize = 5_000;

/// The snapshot of `services` with the endpoints in `slices`. Pure.
pub fn plan(services: &[Service], slices: &[EndpointSlice], config: &PlanConfig) -> Snapshot {
    let mut by_service: BTreeMap<ServiceKey, Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices {
        if let Some(key) = slice_service(slice) {
            by_service.entry(key).or_default().push(slice);
        }
    }
    let (nodes, policies) = (BTreeMap::new(), Policies::default());
    let context = ServiceContext { config, nodes: &nodes, policies: &policies };
    let services = services
        .iter()
        .filter_map(|service| {
            let key = service_key(service)?;
            let slices = by_service.get(&key).map_or(&[][..], Vec::as_slice);
            Some((key.clone(), Arc::new(plan_service(key, service, slices, context))))
        })
        .collect();
    Snapshot { services, ..Snapshot::default() }
}

/// Namespace and name of a Service object; `None` when the object has none.
pub(super) fn service_key(service: &Service) -> Option<ServiceKey> {
    Some(ServiceKey::new(service.metadata.namespace.as_deref()?, service.metadata.name.as_deref()?))
}

/// The Service an EndpointSlice belongs to.
pub(super) fn slice_service(slice: &EndpointSlice) -> Option<ServiceKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
    Some(ServiceKey::new(slice.metadata.namespace.as_deref()?, name))
}

/// What a Service's plan depends on besides the Service and its slices.
#[derive(Clone, Copy)]
pub(super) struct ServiceContext<'a> {
    pub config: &'a PlanConfig,
    pub nodes: &'a BTreeMap<Arc<str>, NodeFacts>,
    pub policies: &'a Policies,
}

/// The plan of one Service with its slices. Pure.
pub(super) fn plan_service(
    key: ServiceKey,
    service: &Service,
    slices: &[&EndpointSlice],
    context: ServiceContext<'_>,
) -> ServicePlan {
    let empty = ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&empty);
    let kind = service_type(spec);
    let ports = spec.ports.as_deref().unwrap_or_default();
    let plugin = annotated_plugin(service).and_then(Result::ok).map(Arc::new);
    let ports = ports.iter().filter_map(|port| plan_port(&key, port, spec, kind, slices, (context, &plugin))).collect();
    ServicePlan {
        key,
        uid: service.metadata.uid.clone().unwrap_or_default(),
        created: service.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second()),
        kind,
        headless: spec.cluster_ip.as_deref() == Some("None"),
        external_name: spec.external_name.clone().filter(|_| kind == ServiceType::ExternalName),
        cluster_ips: cluster_ips(spec, kind),
        external_ips: spec.external_ips.iter().flatten().filter_map(|ip| ip.parse().ok()).collect(),
        client_ip_affinity: client_ip_affinity(spec),
        ports,
        hosts: hosts(slices),
        health_check_node_port: health_check_node_port(spec, kind),
        local_ready: local_ready(slices, &context.config.node_name),
        ingress: ingress(service),
    }
}

/// The plugin that a Service's annotation asks for.
pub(super) fn annotated_plugin(service: &Service) -> Option<Result<PluginRef, String>> {
    let value = service.metadata.annotations.as_ref()?.get(ANNOTATION_ROUTING_POLICY)?;
    Some(annotated(service.metadata.namespace.as_deref()?, value))
}

/// How long a client keeps its endpoint (`sessionAffinityConfig.clientIP.timeoutSeconds`).
fn client_ip_affinity(spec: &ServiceSpec) -> Option<Duration> {
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|config| config.timeout_seconds).and_then(|seconds| u64::try_from(seconds).ok());
    let on = spec.session_affinity.as_deref() == Some("ClientIP");
    on.then(|| seconds.map_or(DEFAULT_AFFINITY, Duration::from_secs))
}

/// Other load balancers ask there which nodes have endpoints; upstream allocates it for type LoadBalancer only.
fn health_check_node_port(spec: &ServiceSpec, kind: ServiceType) -> Option<u16> {
    let local = spec.external_traffic_policy.as_deref() == Some("Local");
    let outside = matches!(kind, ServiceType::LoadBalancer | ServiceType::NodePort);
    let port = spec.health_check_node_port.filter(|_| local && outside)?;
    u16::try_from(port).ok().filter(|port| *port != 0)
}

/// Distinct addresses of ready endpoints on `node`.
fn local_ready(slices: &[&EndpointSlice], node: &str) -> usize {
    let ready = |e: &&Endpoint| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
    let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
    let local = endpoints.filter(|e| e.node_name.as_deref() == Some(node)).filter(ready);
    local.filter_map(first_address).collect::<std::collections::BTreeSet<_>>().len()
}

fn service_type(spec: &ServiceSpec) -> ServiceType {
    match spec.type_.as_deref() {
        Some("LoadBalancer") if is_our_class(spec) => ServiceType::LoadBalancer,
        // Somebody else balances it; its node ports are still ours to serve.
        Some("LoadBalancer") => ServiceType::NodePort,
        Some("NodePort") => ServiceType::NodePort,
        Some("ExternalName") => ServiceType::ExternalName,
        _ => ServiceType::ClusterIp,
    }
}

fn cluster_ips(spec: &ServiceSpec, kind: ServiceType) -> Vec<IpAddr> {
    if kind == ServiceType::ExternalName {
        return Vec::new();
    }
    let mut texts: Vec<&String> = spec.cluster_ips.iter().flatten().collect();
    if texts.is_empty() {
        texts.extend(&spec.cluster_ip);
    }
    texts.into_iter().filter_map(|ip| ip.parse().ok()).collect()
}

fn ingress(service: &Service) -> Vec<String> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    status.and_then(|lb| lb.ingress.as_ref()).into_iter().flatten().filter_map(|entry| entry.ip.clone()).collect()
}

/// Whether `spec.loadBalancerClass` leaves this Service to us.
fn is_our_class(spec: &ServiceSpec) -> bool {
    spec.load_balancer_class.as_deref().is_none_or(|class| class == LOAD_BALANCER_CLASS)
}

fn plan_port(
    key: &ServiceKey,
    port: &ServicePort,
    spec: &ServiceSpec,
    kind: ServiceType,
    slices: &[&EndpointSlice],
    (context, plugin): (ServiceContext<'_>, &Option<Arc<PluginRef>>),
) -> Option<PortPlan> {
    let protocol = parse_protocol(port.protocol.as_deref())?;
    let name = port.name.clone().unwrap_or_default();
    let attached: Vec<&Attached> = context.policies.of(TargetKind::Service, key, Some(&name)).collect();
    let parts: Vec<&ServicePart> = attached.iter().map(|attached| &*attached.service).collect();
    let (mut policy, weights) = service_policy(&parts, own_policy(key, port, spec, (context, plugin)));
    if port.app_protocol.as_deref() == Some("https")
        && let Some(tls) = &mut policy.upstream_tls
    {
        Arc::make_mut(tls).http_only = true;
    }
    let candidates = candidates(&name, protocol, slices, context.nodes, &weights);
    let node = Some(context.config.node_name.as_str());
    let local = |policy: &Option<String>| policy.as_deref() == Some("Local");
    let all: Arc<[EndpointPlan]> = choose(&candidates, None).into();
    let restrict =
        |on: bool| -> Arc<[EndpointPlan]> { if on { choose(&candidates, node).into() } else { all.clone() } };
    let cluster: Arc<[EndpointPlan]> = hinted(&all, &candidates, context).map_or_else(|| all.clone(), Arc::from);
    let requests: Vec<&RequestPart> = attached.iter().map(|attached| &*attached.request).collect();
    Some(PortPlan {
        port: u16::try_from(port.port).ok().filter(|port| *port != 0)?,
        node_port: port
            .node_port
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port != 0 && matches!(kind, ServiceType::NodePort | ServiceType::LoadBalancer)),
        protocol,
        app: app_protocol(port),
        internal: if local(&spec.internal_traffic_policy) { restrict(true) } else { cluster.clone() },
        external: restrict(local(&spec.external_traffic_policy)),
        external_local: local(&spec.external_traffic_policy),
        cluster,
        routed: all.clone(),
        policy: Arc::new(policy),
        requests: if requests.is_empty() { Arc::default() } else { Arc::new(request_policy(&requests)) },
        accept_proxy: attached.iter().find_map(|attached| attached.accept_proxy.clone()),
        name,
    })
}

/// What the Service itself and BackendTLSPolicies say about a port's endpoints.
fn own_policy(
    key: &ServiceKey,
    port: &ServicePort,
    spec: &ServiceSpec,
    (context, plugin): (ServiceContext<'_>, &Option<Arc<PluginRef>>),
) -> ServicePolicy {
    let prefer = match spec.traffic_distribution.as_deref() {
        Some("PreferClose" | "PreferSameZone") => Prefer::Zone,
        Some("PreferSameNode") => Prefer::Node,
        _ => Prefer::None,
    };
    let name = port.name.as_deref().unwrap_or_default();
    let https = || {
        // Nobody says whom to trust: as the API server's Service proxy, any certificate is accepted.
        let hostname = format!("{}.{}.svc", key.name, key.namespace).into();
        Arc::new(UpstreamTls { hostname, insecure: true, http_only: true, ..UpstreamTls::default() })
    };
    ServicePolicy {
        client_ip_affinity: client_ip_affinity(spec),
        locality: Locality { prefer, ..Locality::default() },
        upstream_tls: context
            .policies
            .tls_of(key, name)
            .or_else(|| (port.app_protocol.as_deref() == Some("https")).then(https)),
        plugin: plugin.clone(),
        ..ServicePolicy::default()
    }
}

/// The endpoints meant for our node, or else for our zone, as kube-proxy chooses them (`topologyModeFromHints`): only if every ready endpoint has
/// a hint of that kind and some name ours.
fn hinted(
    all: &[EndpointPlan],
    candidates: &[Candidate<'_>],
    context: ServiceContext<'_>,
) -> Option<Vec<EndpointPlan>> {
    // Most Services have none.
    if candidates.iter().all(|candidate| candidate.hints.is_none()) {
        return None;
    }
    let node = context.config.node_name.as_str();
    let zone = context.nodes.get(node).and_then(|facts| facts.zone.as_deref());
    let by_addr: BTreeMap<SocketAddr, &Candidate<'_>> = candidates.iter().map(|c| (c.plan.addr, c)).collect();
    let meant = |is_ours: &dyn Fn(&Candidate<'_>) -> Option<bool>| {
        let mut near = Vec::new();
        for endpoint in all {
            // Those that only serve until they end are used without regard to hints.
            let candidate = by_addr.get(&endpoint.addr).filter(|candidate| candidate.ready)?;
            if is_ours(candidate)? {
                near.push(endpoint.clone());
            }
        }
        (!near.is_empty()).then_some(near)
    };
    let for_node =
        |candidate: &Candidate<'_>| Some(candidate.hints?.for_nodes.as_ref()?.iter().any(|h| h.name == node));
    let for_zone = |candidate: &Candidate<'_>| {
        Some(candidate.hints?.for_zones.as_ref()?.iter().any(|h| Some(h.name.as_str()) == zone))
    };
    meant(&for_node).or_else(|| meant(&for_zone))
}

pub(super) fn parse_protocol(text: Option<&str>) -> Option<Protocol> {
    match text {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some(_) => None,
    }
}

/// How a port is proxied, by its `appProtocol` and else by its name.
pub(crate) fn app_protocol(port: &ServicePort) -> AppProtocol {
    let named = port.name.as_deref().is_some_and(|name| name == "http" || name.starts_with("http-"));
    let h2c = |name: &str| {
        ["grpc", "h2c"].iter().any(|p| name.strip_prefix(p).is_some_and(|r| r.is_empty() || r.starts_with('-')))
    };
    match port.app_protocol.as_deref() {
        Some("http" | "kubernetes.io/ws") => AppProtocol::Http,
        // Its own port passes the bytes on; routes speak TLS to it (see `own_policy`).
        Some("https") => AppProtocol::Tcp,
        Some("kubernetes.io/h2c" | "grpc") => AppProtocol::H2c,
        Some(_) => AppProtocol::Tcp,
        None if named => AppProtocol::Http,
        None if port.name.as_deref().is_some_and(h2c) => AppProtocol::H2c,
        None => AppProtocol::Tcp,
    }
}

/// An endpoint of the right port with its conditions resolved to upstream's defaults.
struct Candidate<'a> {
    plan: EndpointPlan,
    ready: bool,
    serving_while_terminating: bool,
    node: Option<&'a str>,
    hints: Option<&'a EndpointHints>,
}

fn candidates<'a>(
    port_name: &str,
    protocol: Protocol,
    slices: &[&'a EndpointSlice],
    nodes: &BTreeMap<Arc<str>, NodeFacts>,
    weights: &[WeightRule],
) -> Vec<Candidate<'a>> {
    let mut found: BTreeMap<SocketAddr, Candidate<'a>> = BTreeMap::new();
    for slice in slices {
        let Some(number) = slice_port(slice, port_name, protocol) else { continue };
        for endpoint in &slice.endpoints {
            let Some(ip) = first_address(endpoint) else { continue };
            let candidate = candidate(endpoint, SocketAddr::new(ip, number), nodes, weights);
            let known = found.get(&candidate.plan.addr);
            // While an endpoint moves between slices it may be in both: the ready copy counts.
            if known.is_none_or(|known| candidate.ready && !known.ready) && found.len() < MAX_ENDPOINTS_PER_PORT {
                found.insert(candidate.plan.addr, candidate);
            }
        }
    }
    found.into_values().collect()
}

fn candidate<'a>(
    endpoint: &'a Endpoint,
    addr: SocketAddr,
    nodes: &BTreeMap<Arc<str>, NodeFacts>,
    weights: &[WeightRule],
) -> Candidate<'a> {
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
    let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
    let pod = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
    let facts = endpoint.node_name.as_deref().and_then(|node| nodes.get(node));
    let mut plan = EndpointPlan {
        addr,
        pod_uid: pod.and_then(|pod| pod.uid.as_deref()).map(Arc::from),
        node: endpoint.node_name.as_deref().map(Arc::from),
        zone: endpoint.zone.as_deref().map(Arc::from).or_else(|| facts.and_then(|facts| facts.zone.clone())),
        region: facts.and_then(|facts| facts.region.clone()),
        weight: DEFAULT_WEIGHT,
    };
    if let Some(rule) = weights.iter().find(|rule| rule.matches(&plan)) {
        plan.weight = rule.weight;
    }
    Candidate {
        plan,
        ready,
        serving_while_terminating: serving && terminating,
        node: endpoint.node_name.as_deref(),
        hints: endpoint.hints.as_ref(),
    }
}

fn first_address(endpoint: &Endpoint) -> Option<IpAddr> {
    endpoint.addresses.first()?.parse().ok()
}

fn slice_port(slice: &EndpointSlice, name: &str, protocol: Protocol) -> Option<u16> {
    let matches = |port: &&EndpointPort| {
        port.name.as_deref().unwrap_or_default() == name && parse_protocol(port.protocol.as_deref()) == Some(protocol)
    };
    let port = slice.ports.iter().flatten().find(matches)?;
    u16::try_from(port.port?).ok().filter(|port| *port != 0)
}

/// The endpoints that get traffic: ready ones, else those still serving while terminating; on `node` only if given.
fn choose(candidates: &[Candidate<'_>], node: Option<&str>) -> Vec<EndpointPlan> {
    let eligible = || candidates.iter().filter(|c| node.is_none_or(|node| c.node == Some(node)));
    let ready: Vec<EndpointPlan> = eligible().filter(|c| c.ready).map(|c| c.plan.clone()).collect();
    if !ready.is_empty() {
        return ready;
    }
    eligible().filter(|c| c.serving_while_terminating).map(|c| c.plan.clone()).collect()
}

/// Ready addresses of all slices, for headless DNS (the slice controller marks endpoints ready when
/// `publishNotReadyAddresses` is set).
fn hosts(slices: &[&EndpointSlice]) -> Vec<HostPlan> {
    let mut hosts: BTreeMap<IpAddr, HostPlan> = BTreeMap::new();
    for slice in slices {
        let ports: Vec<(String, u16)> = slice
            .ports
            .iter()
            .flatten()
            .filter_map(|p| Some((p.name.clone().unwrap_or_default(), u16::try_from(p.port?).ok()?)))
            .collect();
        let ready = slice.endpoints.iter().filter(|e| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true));
        for endpoint in ready.take(MAX_ENDPOINTS_PER_PORT) {
            if let Some(ip) = first_address(endpoint) {
                hosts.entry(ip).or_insert_with(|| HostPlan {
                    ip,
                    hostname: endpoint.hostname.clone(),
                    ports: ports.clone(),
                });
            }
        }
    }
    hosts.into_values().collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
