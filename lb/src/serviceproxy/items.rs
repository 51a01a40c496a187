//! What one Service puts into the table, by value.
//!
//! Knows neither other Services nor the kernel. Everything comes from parsed addresses and numbers, never from object text.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use crate::snapshot::{EndpointPlan, PortPlan, Protocol, ServicePlan, ServiceType};

/// Something in the table; in the order in which things must be added, as later ones refer to earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Set of an endpoint's clients; the value is the timeout in seconds.
    Clients,
    /// Chain that sends to one endpoint of a Service with affinity; the value is its rules.
    Endpoint,
    /// Chain of a port of a Service with affinity; the value is its rules.
    Chain,
    /// What is sent to a ClusterIP's port; the value is where it goes.
    Service,
    /// What is sent to an external address, by this node and its pods.
    Near,
    /// What is sent to an external address, by everybody else.
    Far,
    /// What is sent to a node port, by pods.
    NodePort,
    /// Element of the set of what has no endpoints.
    Rejected,
    /// Endpoint that may reach itself through a Service; only kept where its replies come through here.
    Hairpin,
}

/// What an item is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Rules, a number or nothing, as the kind says; of an address the chain that decides.
    Text(String),
    /// Of an address: any of these, with equal chances.
    Spread(Vec<SocketAddrV4>),
}

/// An item's kind, and its name or key among those.
pub(super) type Item = (Kind, String);

/// What a Service puts into the table. Pure.
pub(super) fn items(plan: &ServicePlan, bridge_netfilter: bool) -> Vec<(Item, Value)> {
    let mut items = Vec::new();
    if plan.headless {
        return items;
    }
    for port in &plan.ports {
        add_port(&mut items, plan, port);
        if bridge_netfilter {
            let endpoints: BTreeSet<Ipv4Addr> = port.routed.iter().filter_map(|e| v4(&e.addr.ip())).collect();
            items.extend(endpoints.into_iter().map(|ip| ((Kind::Hairpin, format!("{ip} . {ip}")), none())));
        }
    }
    items
}

fn none() -> Value {
    Value::Text(String::new())
}

fn add_port(items: &mut Vec<(Item, Value)>, plan: &ServicePlan, port: &PortPlan) {
    let protocol = port.protocol.as_str();
    // Addresses that a load balancer of somebody else has given; ours has a socket of its own.
    let foreign = plan.ingress.iter().filter(|_| plan.kind == ServiceType::NodePort).filter_map(|ip| ip.parse().ok());
    let external: Vec<IpAddr> = plan.external_ips.iter().copied().chain(foreign).collect();
    // `externalTrafficPolicy` is about traffic from outside; what comes from here reaches all endpoints, near ones first as hints
    // say.
    let groups = [
        (Kind::Service, &plan.cluster_ips, &port.internal),
        (Kind::Near, &external, &port.cluster),
        (Kind::Far, &external, if port.external_local { &port.external } else { &port.cluster }),
    ];
    for (kind, ips, endpoints) in groups {
        if ips.is_empty() {
            continue;
        }
        let target = target(items, plan, port.protocol, endpoints);
        for ip in ips.iter().filter_map(v4) {
            let key = format!("{ip} . {protocol} . {}", port.port);
            match &target {
                Some(target) => items.push(((kind, key), target.clone())),
                None => items.push(((Kind::Rejected, key), none())),
            }
        }
    }
    if let Some(node_port) = port.node_port
        && let Some(target) = target(items, plan, port.protocol, &port.cluster)
    {
        items.push(((Kind::NodePort, format!("{protocol} . {node_port}")), target));
    }
}

fn v4(ip: &IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    }
}

/// Where traffic for `endpoints` goes; `None` if there are none. One endpoint needs no affinity.
fn target(
    items: &mut Vec<(Item, Value)>,
    plan: &ServicePlan,
    protocol: Protocol,
    endpoints: &[EndpointPlan],
) -> Option<Value> {
    let targets: Vec<SocketAddrV4> = endpoints
        .iter()
        .filter_map(|endpoint| match endpoint.addr {
            SocketAddr::V4(addr) => Some(addr),
            SocketAddr::V6(_) => None,
        })
        .collect();
    match (targets.len(), plan.client_ip_affinity) {
        (0, _) => None,
        (1, _) | (_, None) => Some(Value::Spread(targets)),
        (_, Some(timeout)) => Some(Value::Text(sticky(items, plan, protocol, &targets, timeout))),
    }
}

/// The chain that sends a client where it was sent before, else anywhere; named after what it does, so it never changes.
fn sticky(
    items: &mut Vec<(Item, Value)>,
    plan: &ServicePlan,
    protocol: Protocol,
    targets: &[SocketAddrV4],
    timeout: Duration,
) -> String {
    let (protocol, seconds) = (protocol.as_str(), timeout.as_secs().max(1));
    let mut rules = Vec::with_capacity(targets.len() + 1);
    let mut verdicts = Vec::with_capacity(targets.len());
    for (index, target) in targets.iter().enumerate() {
        let id = fnv1a(&format!("{} {protocol} {target} {seconds}", plan.key));
        let (set, chain) = (format!("clients-{id:016x}"), format!("ep-{id:016x}"));
        rules.push(format!("ip saddr @{set} goto {chain}"));
        verdicts.push(format!("{index} : goto {chain}"));
        // Each connection starts the timeout anew.
        let own = format!("update @{set} {{ ip saddr }}; meta l4proto {protocol} dnat to {target}");
        items.push(((Kind::Clients, set), Value::Text(seconds.to_string())));
        items.push(((Kind::Endpoint, chain), Value::Text(own)));
    }
    rules.push(format!("numgen random mod {} vmap {{ {} }}", targets.len(), verdicts.join(", ")));
    let rules = rules.join("; ");
    let name = format!("svc-{:016x}", fnv1a(&format!("{} {rules}", plan.key)));
    items.push(((Kind::Chain, name.clone()), Value::Text(rules)));
    name
}

/// FNV-1a; chains with equal names would have to collide in 64 bits within one node's Services.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
