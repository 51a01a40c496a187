//! What traffic is steered by: one immutable [`Snapshot`] of Services and their endpoints.
//!
//! [`Compiler`] makes it from Kubernetes objects, recompiling only what an event touched, out of pure functions: [`plan`] for Services,
//! `gateways`, `attach`, `rules`, `filters`, `ingress` and `policies` for what steers traffic to them, `assemble` for what is served on a port;
//! [`watch`] feeds the compiler from the API. Nothing here opens sockets or counts requests:
//! what must outlive a snapshot (in-flight counts, health, round-robin position) is in [`crate::backend`].

mod addresses;
mod assemble;
mod attach;
pub(crate) mod certificates;
mod compile;
mod compile_route;
mod conditions;
mod filters;
#[cfg(test)]
mod gateway_tests;
mod gateways;
#[cfg(test)]
mod incremental_tests;
mod ingress;
#[cfg(test)]
mod ingress_tests;
mod objects;
mod plan;
mod plugins;
mod policies;
mod references;
pub mod routes;
mod rules;
mod sessions;
#[cfg(test)]
mod status_tests;
mod statuses;
pub mod testing;
mod unsaid;
pub(crate) mod watch;
pub(crate) mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub use compile::Compiler;
pub use gateways::GATEWAY_CONTROLLER;
pub use ingress::INGRESS_CONTROLLER;
pub use objects::{Kind, Object, ObjectKey, RouteKey, RouteKind};
pub use plan::plan;
use routes::{BackendRef, HostPort, ListenerPlan};
pub(crate) use statuses::Plan as StatusPlan;
pub use statuses::SUPPORTED_FEATURES;

use crate::policy::{RequestPolicy, ServicePolicy};

/// Namespace and name of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// `metadata.namespace`
    pub namespace: Arc<str>,
    /// `metadata.name`
    pub name: Arc<str>,
}

impl ServiceKey {
    /// The key of `namespace/name`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Transport protocol of a Service port. SCTP is not served; such ports are left out of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// `TCP`, the default
    Tcp,
    /// `UDP`
    Udp,
}

impl Protocol {
    /// The name nftables and SRV records use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// How the user-space proxy treats a TCP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppProtocol {
    /// Bytes are copied both ways.
    Tcp,
    /// HTTP/1.1 with an upstream pool: `appProtocol: http`, or a port named `http` or `http-…`.
    Http,
    /// HTTP/2 without TLS towards endpoints (prior knowledge): `appProtocol: kubernetes.io/h2c` or `grpc`, or a port named
    /// `grpc`, `grpc-…`, `h2c` or `h2c-…`.
    H2c,
}

/// `Service.spec.type`; a headless Service is a `ClusterIp` without addresses ([`ServicePlan::headless`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceType {
    /// Reachable inside the cluster only.
    ClusterIp,
    /// Also on `nodePort` of every node.
    NodePort,
    /// Also on its ports at the load balancer's address.
    LoadBalancer,
    /// Only a DNS alias.
    ExternalName,
}

/// A Service with everything resolved that DNS, nftables and the proxy need.
#[derive(Clone, Debug, PartialEq)]
pub struct ServicePlan {
    /// Namespace and name.
    pub key: ServiceKey,
    /// `metadata.uid`, for events.
    pub uid: String,
    /// `metadata.creationTimestamp` in Unix seconds: of two Services that claim a port the older one wins.
    pub created: i64,
    /// `spec.type`
    pub kind: ServiceType,
    /// `spec.clusterIP: None`
    pub headless: bool,
    /// `spec.externalName`
    pub external_name: Option<String>,
    /// `spec.clusterIPs`
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`
    pub external_ips: Vec<IpAddr>,
    /// `spec.sessionAffinity: ClientIP`: how long a client keeps its endpoint.
    pub client_ip_affinity: Option<Duration>,
    /// Ports, in spec order.
    pub ports: Vec<PortPlan>,
    /// Addresses DNS answers with when the Service is headless, by address.
    pub hosts: Vec<HostPlan>,
    /// `spec.healthCheckNodePort`, with `externalTrafficPolicy: Local`.
    pub health_check_node_port: Option<u16>,
    /// Addresses of ready endpoints on the own node.
    pub local_ready: usize,
    /// `status.loadBalancer.ingress[].ip` as last seen.
    pub ingress: Vec<String>,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq)]
pub struct PortPlan {
    /// `name`, empty when unnamed.
    pub name: String,
    /// `port`
    pub port: u16,
    /// `nodePort`
    pub node_port: Option<u16>,
    /// `protocol`
    pub protocol: Protocol,
    /// HTTP or plain TCP in the proxy.
    pub app: AppProtocol,
    /// Endpoints for traffic from inside the cluster (`internalTrafficPolicy` applied).
    pub internal: Arc<[EndpointPlan]>,
    /// Endpoints for traffic from outside (`externalTrafficPolicy` applied).
    pub external: Arc<[EndpointPlan]>,
    /// Whether that policy is `Local`.
    pub external_local: bool,
    /// Endpoints for what the kernel sends from here to any in the cluster: those that hints name for this node or zone, else all.
    pub cluster: Arc<[EndpointPlan]>,
    /// Endpoints for traffic of routes (Ingress, Gateway API): all of them.
    pub routed: Arc<[EndpointPlan]>,
    /// What TrafficPolicies and the Service itself say about its endpoints.
    pub policy: Arc<ServicePolicy>,
    /// What TrafficPolicies of the Service say about requests; routes have their own.
    pub requests: Arc<RequestPolicy>,
    /// Sources (CIDR) whose PROXY protocol header its own port requires and believes; `None`: no header is expected.
    pub accept_proxy: Option<Arc<[String]>>,
}

/// An address that traffic may be sent to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointPlan {
    /// Address and (already resolved) target port.
    pub addr: SocketAddr,
    /// UID of the Pod behind it, when it is one.
    pub pod_uid: Option<Arc<str>>,
    /// Node it runs on.
    pub node: Option<Arc<str>>,
    /// Zone it is in.
    pub zone: Option<Arc<str>>,
    /// Region it is in (of its node).
    pub region: Option<Arc<str>>,
    /// Relative weight (TrafficPolicy); 100 unless somebody says otherwise.
    pub weight: u32,
}

/// One address of a headless Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPlan {
    /// The address.
    pub ip: IpAddr,
    /// `hostname` of the endpoint; without one the dashed address is its DNS label.
    pub hostname: Option<String>,
    /// Port name to number, for SRV records (a slice may resolve a named target port differently per pod).
    pub ports: Vec<(String, u16)>,
}

/// What is known about the node this process runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePlan {
    /// `metadata.name`
    pub name: Option<Arc<str>>,
    /// Label `topology.kubernetes.io/zone`
    pub zone: Option<Arc<str>>,
    /// Label `topology.kubernetes.io/region`
    pub region: Option<Arc<str>>,
    /// `spec.podCIDR`
    pub pod_cidr: Option<String>,
    /// Annotation `scaleup.dev/pod-gateway`: the address pods use as their resolver.
    pub pod_gateway: Option<IpAddr>,
}

/// All Services at one moment. Cheap to clone: Services are shared between snapshots.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// By namespace and name.
    pub services: BTreeMap<ServiceKey, Arc<ServicePlan>>,
    /// Ports of the host that routes are served on.
    pub listeners: BTreeMap<HostPort, Arc<ListenerPlan>>,
    /// Service ports that [`Snapshot::listeners`] send traffic to.
    pub routed: Arc<BTreeSet<BackendRef>>,
    /// The own node.
    pub node: NodePlan,
}

/// What [`plan`] depends on besides the objects.
#[derive(Clone, Debug)]
pub struct PlanConfig {
    /// The own node, for traffic policy `Local`.
    pub node_name: String,
    /// Port of the host on which Ingresses are served in clear text.
    pub http_port: u16,
    /// Port of the host on which Ingresses are served with TLS.
    pub https_port: u16,
}

impl Default for PlanConfig {
    fn default() -> Self {
        Self { node_name: String::new(), http_port: 80, https_port: 443 }
    }
}
