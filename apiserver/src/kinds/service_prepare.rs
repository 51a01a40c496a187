//! What a Service write inherits before it is validated (`pkg/registry/core/service`): allocated values that a client left
//! out, fields that a change of type makes meaningless, and the address family.
//!
//! Pure and idempotent: the allocation hook and the rules both call [`prepare`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServiceSpec};

use super::field;

/// The value of `clusterIP` that asks for none.
const NONE: &str = "None";

/// Whether the Service has a name and no address.
pub(super) fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some(NONE) || field::list(&spec.cluster_ips).first().is_some_and(|ip| ip == NONE)
}

/// Type LoadBalancer.
pub(super) fn is_load_balancer(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref() == Some("LoadBalancer")
}

/// Every type but ExternalName.
pub(super) fn needs_cluster_ip(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref() != Some("ExternalName")
}

/// Whether ports without a node port get one.
pub(super) fn needs_node_ports(spec: &ServiceSpec) -> bool {
    match spec.type_.as_deref() {
        Some("NodePort") => true,
        Some("LoadBalancer") => spec.allocate_load_balancer_node_ports.unwrap_or(true),
        _ => false,
    }
}

/// Whether balancers outside ask nodes for health (`NeedsHealthCheck`).
pub(super) fn needs_health_check_port(spec: &ServiceSpec) -> bool {
    is_load_balancer(spec) && spec.external_traffic_policy.as_deref() == Some("Local")
}

/// Whether traffic from outside the cluster can arrive (`ExternallyAccessible`).
pub(super) fn externally_accessible(spec: &ServiceSpec) -> bool {
    match spec.type_.as_deref() {
        Some("NodePort" | "LoadBalancer") => true,
        Some("ClusterIP") => !field::list(&spec.external_ips).is_empty(),
        _ => false,
    }
}

/// Node ports of the ports, without the health check's.
pub(super) fn node_ports(spec: &ServiceSpec) -> BTreeSet<i32> {
    field::list(&spec.ports).iter().filter_map(|p| p.node_port).filter(|p| *p != 0).collect()
}

/// All of it, for a create (`old` is `None`) or an update.
pub(super) fn prepare(service: &mut Service, old: Option<&Service>) {
    let empty = ServiceSpec::default();
    let old = old.map(|old| old.spec.as_ref().unwrap_or(&empty));
    let spec = service.spec.get_or_insert_default();
    normalize_cluster_ips(spec, old);
    if let Some(old) = old {
        inherit_allocated(spec, old);
        drop_type_dependent(spec, old);
    }
    init_ip_family(spec, old);
    if !is_load_balancer(spec)
        && let Some(balancer) = service.status.as_mut().and_then(|s| s.load_balancer.as_mut())
    {
        balancer.ingress = None;
    }
}

/// Clients may know only one of `clusterIP` and `clusterIPs` (`NormalizeClusterIPs`).
fn normalize_cluster_ips(spec: &mut ServiceSpec, old: Option<&ServiceSpec>) {
    let ip = field::text(&spec.cluster_ip).to_owned();
    let plural_is_empty = field::list(&spec.cluster_ips).is_empty();
    let Some(old) = old else {
        if !ip.is_empty() && plural_is_empty {
            spec.cluster_ips = Some(vec![ip]);
        }
        return;
    };
    let old_ip = field::text(&old.cluster_ip);
    let plural_is_unchanged = field::list(&spec.cluster_ips) == field::list(&old.cluster_ips);
    if ip == old_ip {
        if plural_is_empty && old.cluster_ips.is_some() {
            spec.cluster_ips.clone_from(&old.cluster_ips);
        }
    } else if plural_is_unchanged || plural_is_empty {
        spec.cluster_ips = if ip.is_empty() { None } else { Some(vec![ip]) };
    }
}

/// A PUT without what the server had allocated keeps it (`PatchAllocatedValues`).
fn inherit_allocated(spec: &mut ServiceSpec, old: &ServiceSpec) {
    if needs_cluster_ip(old) && needs_cluster_ip(spec) {
        if field::text(&spec.cluster_ip).is_empty() {
            spec.cluster_ip.clone_from(&old.cluster_ip);
        }
        if field::list(&spec.cluster_ips).is_empty() && spec.cluster_ip == old.cluster_ip {
            spec.cluster_ips.clone_from(&old.cluster_ips);
        }
    }
    if needs_node_ports(old) && needs_node_ports(spec) {
        let current = node_ports(spec);
        let mut used: BTreeSet<i32> = node_ports(old).intersection(&current).copied().collect();
        let by_name: BTreeMap<&str, i32> =
            field::list(&old.ports).iter().map(|p| (field::text(&p.name), p.node_port.unwrap_or(0))).collect();
        for port in spec.ports.iter_mut().flatten().filter(|p| p.node_port.unwrap_or(0) == 0) {
            let known = by_name.get(field::text(&port.name)).copied().filter(|p| *p != 0);
            if let Some(known) = known.filter(|p| used.insert(*p)) {
                port.node_port = Some(known);
            }
        }
    }
    let both_checked = needs_health_check_port(old) && needs_health_check_port(spec);
    if both_checked && spec.health_check_node_port.unwrap_or(0) == 0 {
        spec.health_check_node_port = old.health_check_node_port;
    }
}

/// A field that the new type does not have goes, if the client did not change it (`dropTypeDependentFields`).
fn drop_type_dependent(spec: &mut ServiceSpec, old: &ServiceSpec) {
    if needs_cluster_ip(old) && !needs_cluster_ip(spec) {
        if spec.cluster_ip == old.cluster_ip && spec.cluster_ips == old.cluster_ips {
            spec.cluster_ip = None;
            spec.cluster_ips = None;
        }
        if spec.ip_families == old.ip_families {
            spec.ip_families = None;
        }
        if spec.ip_family_policy == old.ip_family_policy {
            spec.ip_family_policy = None;
        }
    }
    if needs_node_ports(old) && !needs_node_ports(spec) && node_ports(spec).is_subset(&node_ports(old)) {
        spec.ports.iter_mut().flatten().for_each(|p| p.node_port = None);
    }
    if needs_health_check_port(old)
        && !needs_health_check_port(spec)
        && spec.health_check_node_port == old.health_check_node_port
    {
        spec.health_check_node_port = None;
    }
    if is_load_balancer(old) && !is_load_balancer(spec) {
        if spec.allocate_load_balancer_node_ports == old.allocate_load_balancer_node_ports {
            spec.allocate_load_balancer_node_ports = None;
        }
        if spec.load_balancer_class == old.load_balancer_class {
            spec.load_balancer_class = None;
        }
    }
    if externally_accessible(old)
        && !externally_accessible(spec)
        && spec.external_traffic_policy == old.external_traffic_policy
    {
        spec.external_traffic_policy = None;
    }
}

/// Family and policy of a cluster with IPv4 only (`initIPFamilyFields`).
fn init_ip_family(spec: &mut ServiceSpec, old: Option<&ServiceSpec>) {
    if !needs_cluster_ip(spec) {
        return;
    }
    if spec.ip_family_policy.is_none() {
        let inherited = old.and_then(|old| old.ip_family_policy.clone());
        spec.ip_family_policy = Some(inherited.unwrap_or_else(|| "SingleStack".into()));
    }
    if field::list(&spec.ip_families).is_empty() {
        let v6 = |ip: &String| ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6());
        let family = if field::list(&spec.cluster_ips).first().is_some_and(v6) { "IPv6" } else { "IPv4" };
        spec.ip_families = Some(vec![family.into()]);
    }
}
