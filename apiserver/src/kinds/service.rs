//! Service: types, ports, traffic policies and the address fields. Single stack IPv4.
//!
//! What an update inherits is in [`super::service_prepare`], who gets which address in [`super::service_alloc`].

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    ClientIPConfig, LoadBalancerIngress, Service, ServicePort, ServiceSpec, SessionAffinityConfig,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use scaleup_api::names;
use scaleup_api::well_known::ANNOTATION_ROUTING_POLICY;
use serde_json::json;

use super::field::{self, Errors, Path};
use super::service_prepare::{self, is_headless, is_load_balancer, needs_health_check_port};
use crate::error::FieldError;
use crate::registry::{RuleContext, Rules, SelectableField};

pub use super::service_alloc::{ServiceHooks, repair, run_repairs};

/// What field selectors may name.
pub const SELECTABLE: &[SelectableField] = &[
    SelectableField { path: "spec.clusterIP", get: |service| field::text_at(service, "/spec/clusterIP") },
    SelectableField { path: "spec.type", get: |service| field::text_at(service, "/spec/type") },
];

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const AFFINITY_TIMEOUT_S: i32 = 10_800;
const MAX_AFFINITY_TIMEOUT_S: i32 = 86_400;
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const ONLY_LOAD_BALANCER: &str = "may only be used when `type` is 'LoadBalancer'";
const DISTRIBUTIONS: &[&str] = &["PreferClose", "PreferSameNode", "PreferSameZone"];
const NEVER_CHANGES: &str = "may not change once set";

/// Rules of Services.
pub struct ServiceRules;

impl Rules for ServiceRules {
    type Object = Service;

    fn default(&self, object: &mut Service) {
        default_spec(object.spec.get_or_insert_default());
        let ingress = object.status.iter_mut().filter_map(|s| s.load_balancer.as_mut());
        let ingress = ingress.flat_map(|b| b.ingress.iter_mut().flatten());
        for entry in ingress.filter(|i| !field::text(&i.ip).is_empty()) {
            entry.ip_mode.get_or_insert_with(|| "VIP".into());
        }
    }

    fn prepare_create(&self, object: &mut Service, _: &RuleContext<'_>) {
        service_prepare::prepare(object, None);
    }

    fn prepare_update(&self, object: &mut Service, old: &Service, cx: &RuleContext<'_>) {
        if cx.subresource.is_none() {
            service_prepare::prepare(object, Some(old));
        }
    }

    fn validate(&self, object: &Service, cx: &RuleContext<'_>, errors: &mut Errors) {
        let empty = ServiceSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&empty);
        if cx.subresource == Some("status") {
            validate_status(object, spec, errors);
            return;
        }
        field::format(errors, &Path::new("metadata.name"), field::text(&object.metadata.name), names::dns1035_label);
        let path = Path::new("spec");
        validate_type(&path, spec, errors);
        validate_ports(&path, spec, errors);
        field::labels(errors, &path.child("selector"), spec.selector.as_ref());
        validate_affinity(&path, spec, errors);
        validate_addresses(&path, spec, errors);
        validate_plugin(object, errors);
        validate_load_balancer(&path, object, spec, errors);
        validate_traffic(&path, spec, errors);
    }

    fn validate_update(&self, object: &Service, old: &Service, cx: &RuleContext<'_>, errors: &mut Errors) {
        if cx.subresource.is_none()
            && let (Some(new), Some(old)) = (&object.spec, &old.spec)
        {
            validate_spec_update(&Path::new("spec"), new, old, errors);
        }
    }

    fn warnings(&self, object: &Service) -> Vec<String> {
        let Some(spec) = &object.spec else { return Vec::new() };
        let mut out = Vec::new();
        if is_headless(spec) && !field::text(&spec.load_balancer_ip).is_empty() {
            out.push("spec.loadBalancerIP is ignored when spec.clusterIP is \"None\"".into());
        }
        if spec.type_.as_deref() == Some("ExternalName") && !field::list(&spec.external_ips).is_empty() {
            out.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".into());
        }
        if !field::text(&spec.load_balancer_ip).is_empty() {
            out.push("spec.loadBalancerIP: deprecated in v1.24+ and without effect here".into());
        }
        out
    }
}

fn fill(value: &mut Option<String>, default: &str) {
    if value.as_deref().is_none_or(str::is_empty) {
        *value = Some(default.into());
    }
}

/// `SetDefaults_Service`
fn default_spec(spec: &mut ServiceSpec) {
    fill(&mut spec.session_affinity, "None");
    if spec.session_affinity.as_deref() == Some("None") {
        spec.session_affinity_config = None;
    }
    if spec.session_affinity.as_deref() == Some("ClientIP") {
        let config: &mut SessionAffinityConfig = spec.session_affinity_config.get_or_insert_default();
        let client: &mut ClientIPConfig = config.client_ip.get_or_insert_default();
        client.timeout_seconds.get_or_insert(AFFINITY_TIMEOUT_S);
    }
    fill(&mut spec.type_, "ClusterIP");
    for port in spec.ports.iter_mut().flatten() {
        fill(&mut port.protocol, "TCP");
        let unset = match &port.target_port {
            None => true,
            Some(IntOrString::Int(number)) => *number == 0,
            Some(IntOrString::String(name)) => name.is_empty(),
        };
        if unset {
            port.target_port = Some(IntOrString::Int(port.port));
        }
    }
    if service_prepare::externally_accessible(spec) {
        fill(&mut spec.external_traffic_policy, "Cluster");
    }
    if matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer" | "ClusterIP")) {
        fill(&mut spec.internal_traffic_policy, "Cluster");
    }
    if is_load_balancer(spec) {
        spec.allocate_load_balancer_node_ports.get_or_insert(true);
    }
}

fn validate_type(path: &Path<'_>, spec: &ServiceSpec, errors: &mut Errors) {
    let kind = field::text(&spec.type_);
    field::one_of(errors, &path.child("type"), kind, TYPES);
    if kind != "ExternalName" && !is_headless(spec) && field::list(&spec.ports).is_empty() {
        errors.push(FieldError::required(path.child("ports"), ""));
    }
    match kind {
        "LoadBalancer" | "NodePort" if is_headless(spec) => {
            let at = path.child("clusterIPs");
            let why = format!("may not be set to 'None' for {kind} services");
            errors.push(FieldError::invalid(at.index(0), "None", why));
        }
        "ExternalName" => {
            for (name, set) in [
                ("clusterIPs", !field::list(&spec.cluster_ips).is_empty()),
                ("ipFamilies", !field::list(&spec.ip_families).is_empty()),
                ("ipFamilyPolicy", spec.ip_family_policy.is_some()),
            ] {
                if set {
                    let why = "may not be set for ExternalName services";
                    errors.push(FieldError::forbidden(path.child(name), why));
                }
            }
            let name = field::text(&spec.external_name);
            let name = name.strip_suffix('.').unwrap_or(name);
            field::required_format(errors, &path.child("externalName"), name, names::dns1123_subdomain);
        }
        _ => {}
    }
}

fn validate_ports(path: &Path<'_>, spec: &ServiceSpec, errors: &mut Errors) {
    let path = path.child("ports");
    let ports = field::list(&spec.ports);
    let (mut seen_names, mut seen_ports, mut seen_node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (i, port) in ports.iter().enumerate() {
        let at = path.index(i);
        let name = field::text(&port.name);
        if ports.len() > 1 {
            field::required(errors, &at.child("name"), name);
        }
        if !name.is_empty() {
            field::format(errors, &at.child("name"), name, names::dns1123_label);
            if !seen_names.insert(name) {
                errors.push(FieldError::duplicate(at.child("name"), name));
            }
        }
        validate_port(&at, port, errors);
        let protocol = field::text(&port.protocol);
        if !seen_ports.insert((protocol, port.port)) {
            errors.push(FieldError::duplicate(at, json!({"protocol": protocol, "port": port.port})));
        }
        let Some(node_port) = port.node_port.filter(|p| *p != 0) else { continue };
        if spec.type_.as_deref() == Some("ClusterIP") {
            let why = "may not be used when `type` is 'ClusterIP'";
            errors.push(FieldError::forbidden(at.child("nodePort"), why));
        }
        if !seen_node_ports.insert((protocol, node_port)) {
            errors.push(FieldError::duplicate(at.child("nodePort"), node_port));
        }
    }
}

fn validate_port(at: &Path<'_>, port: &ServicePort, errors: &mut Errors) {
    field::port(errors, &at.child("port"), port.port);
    let protocol = field::text(&port.protocol);
    field::one_of(errors, &at.child("protocol"), protocol, field::PROTOCOLS);
    if protocol == "SCTP" {
        errors.push(FieldError::forbidden(at.child("protocol"), "SCTP is not supported yet; use TCP or UDP"));
    }
    if let Some(target) = &port.target_port {
        field::port_or_name(errors, &at.child("targetPort"), target);
    }
    if let Some(protocol) = &port.app_protocol {
        field::format(errors, &at.child("appProtocol"), protocol, names::qualified_name);
    }
}

fn validate_affinity(path: &Path<'_>, spec: &ServiceSpec, errors: &mut Errors) {
    let kind = field::text(&spec.session_affinity);
    field::one_of(errors, &path.child("sessionAffinity"), kind, &["ClientIP", "None"]);
    if kind != "ClientIP" {
        return;
    }
    let client = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
    let seconds = client.and_then(|c| c.timeout_seconds).unwrap_or_default();
    if seconds <= 0 || seconds > MAX_AFFINITY_TIMEOUT_S {
        let at = path.child("sessionAffinityConfig");
        let at = at.child("clientIP");
        let why = format!("must be greater than 0 and less than {MAX_AFFINITY_TIMEOUT_S}");
        errors.push(FieldError::invalid(at.child("timeoutSeconds"), seconds, why));
    }
}

/// `ValidateServiceClusterIPsRelatedFields`, for a cluster that has IPv4 only.
fn validate_addresses(path: &Path<'_>, spec: &ServiceSpec, errors: &mut Errors) {
    let at = path.child("externalIPs");
    for (i, ip) in field::list(&spec.external_ips).iter().enumerate() {
        field::format(errors, &at.index(i), ip, names::ip);
        field::non_special_ip(errors, &at.index(i), ip);
    }
    if spec.type_.as_deref() == Some("ExternalName") {
        return;
    }
    let ips_at = path.child("clusterIPs");
    let (ip, ips) = (field::text(&spec.cluster_ip), field::list(&spec.cluster_ips));
    let mut refuse = |why: &str| errors.push(FieldError::invalid(ips_at, json!(ips), why));
    match (ip, ips.first()) {
        ("", Some(_)) => refuse("must be empty when `clusterIP` is not specified"),
        (_, Some(first)) if first != ip => refuse("first value must match `clusterIP`"),
        _ => {}
    }
    if ips.len() > 1 {
        refuse(match ip {
            "None" => "'None' must be the first and only value",
            _ => "may hold one value only: this cluster is not configured for dual-stack services",
        });
    }
    for (i, ip) in ips.iter().enumerate().filter(|(i, ip)| *i > 0 || *ip != "None") {
        field::format(errors, &ips_at.index(i), ip, names::ip);
    }
    let families_at = path.child("ipFamilies");
    for (i, family) in field::list(&spec.ip_families).iter().enumerate() {
        match family.as_str() {
            "IPv4" if i == 0 => {}
            "IPv4" => errors.push(FieldError::duplicate(families_at.index(i), "IPv4")),
            "IPv6" => {
                errors.push(FieldError::invalid(families_at.index(i), "IPv6", "not configured on this cluster"));
            }
            other => errors.push(FieldError::not_supported(families_at.index(i), other, &["IPv4", "IPv6"])),
        }
    }
    let policy_at = path.child("ipFamilyPolicy");
    let policies = &["PreferDualStack", "RequireDualStack", "SingleStack"];
    field::optional_one_of(errors, &policy_at, &spec.ip_family_policy, policies);
    if spec.ip_family_policy.as_deref() == Some("RequireDualStack") {
        let why = "this cluster is not configured for dual-stack services";
        errors.push(FieldError::invalid(policy_at, "RequireDualStack", why));
    }
}

fn validate_load_balancer(path: &Path<'_>, service: &Service, spec: &ServiceSpec, errors: &mut Errors) {
    let balanced = is_load_balancer(spec);
    let ranges = field::list(&spec.load_balancer_source_ranges);
    let annotation = service.metadata.annotations.as_ref().and_then(|a| a.get(SOURCE_RANGES));
    // Letting everybody in where a list was asked for would be worse than refusing.
    let why = if balanced { "source ranges are not supported yet; remove the field" } else { ONLY_LOAD_BALANCER };
    if !ranges.is_empty() {
        errors.push(FieldError::forbidden(path.child("LoadBalancerSourceRanges"), why));
    } else if annotation.is_some() {
        errors.push(FieldError::forbidden(Path::new("metadata.annotations").key(SOURCE_RANGES), why));
    }
    if !balanced && spec.allocate_load_balancer_node_ports.is_some() {
        errors.push(FieldError::forbidden(path.child("allocateLoadBalancerNodePorts"), ONLY_LOAD_BALANCER));
    }
    match &spec.load_balancer_class {
        Some(_) if !balanced => {
            errors.push(FieldError::forbidden(path.child("loadBalancerClass"), ONLY_LOAD_BALANCER));
        }
        Some(class) => field::format(errors, &path.child("loadBalancerClass"), class, names::qualified_name),
        None => {}
    }
}

/// The annotation that names a Service's plugin: one that cannot be followed would be forgotten silently.
fn validate_plugin(service: &Service, errors: &mut Errors) {
    let annotation = service.metadata.annotations.as_ref().and_then(|a| a.get(ANNOTATION_ROUTING_POLICY));
    let Some(value) = annotation else { return };
    let name = value.strip_prefix("ClusterWasmPlugin/").unwrap_or(value);
    if let Err(why) = names::dns1123_subdomain(name) {
        let at = Path::new("metadata.annotations");
        let why = format!("must be the name of a WasmPlugin, or 'ClusterWasmPlugin/' and a name: {why}");
        errors.push(FieldError::invalid(at.key(ANNOTATION_ROUTING_POLICY), value.as_str(), why));
    }
}

fn validate_traffic(path: &Path<'_>, spec: &ServiceSpec, errors: &mut Errors) {
    let policies = &["Cluster", "Local"];
    let external = field::text(&spec.external_traffic_policy);
    let at = path.child("externalTrafficPolicy");
    if service_prepare::externally_accessible(spec) {
        field::one_of(errors, &at, external, policies);
    } else if !external.is_empty() {
        errors.push(FieldError::invalid(at, external, "may only be set for externally-accessible services"));
    }
    let at = path.child("healthCheckNodePort");
    let port = spec.health_check_node_port.unwrap_or(0);
    if needs_health_check_port(spec) {
        // Zero is what allocation fills in before this runs on a write.
        if port != 0 {
            field::port(errors, &at, port);
        }
    } else if port != 0 {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(FieldError::invalid(at, port, why));
    }
    field::optional_one_of(errors, &path.child("internalTrafficPolicy"), &spec.internal_traffic_policy, policies);
    let at = path.child("trafficDistribution");
    field::optional_one_of(errors, &at, &spec.traffic_distribution, DISTRIBUTIONS);
}

fn validate_spec_update(path: &Path<'_>, new: &ServiceSpec, old: &ServiceSpec, errors: &mut Errors) {
    let external_name = |s: &ServiceSpec| s.type_.as_deref() == Some("ExternalName");
    let both_headless = is_headless(new) && is_headless(old);
    if !(external_name(new) || external_name(old) || both_headless) {
        let (ips, old_ips) = (field::list(&new.cluster_ips), field::list(&old.cluster_ips));
        let at = path.child("clusterIPs");
        if ips.is_empty() && !old_ips.is_empty() {
            errors.push(FieldError::invalid(at.index(0), json!(ips), "primary clusterIP can not be unset"));
        } else if !old_ips.is_empty() && ips.first() != old_ips.first() {
            errors.push(FieldError::invalid(at.index(0), json!(ips), NEVER_CHANGES));
        }
    }
    if is_load_balancer(new) && is_load_balancer(old) && new.load_balancer_class != old.load_balancer_class {
        let value = json!(new.load_balancer_class);
        errors.push(FieldError::invalid(path.child("loadBalancerClass"), value, NEVER_CHANGES));
    }
    let ports = (new.health_check_node_port.unwrap_or(0), old.health_check_node_port.unwrap_or(0));
    if needs_health_check_port(new) && needs_health_check_port(old) && ports.0 != ports.1 {
        errors.push(FieldError::forbidden(path.child("healthCheckNodePort"), field::IMMUTABLE));
    }
}

/// `ValidateLoadBalancerStatus`
fn validate_status(service: &Service, spec: &ServiceSpec, errors: &mut Errors) {
    let balancer = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    let ingress = balancer.map(|b| field::list(&b.ingress)).unwrap_or_default();
    let path = Path::new("status.loadBalancer.ingress");
    if !is_load_balancer(spec) && !ingress.is_empty() {
        errors.push(FieldError::forbidden(path, "may only be used when `spec.type` is 'LoadBalancer'"));
        return;
    }
    for (i, entry) in ingress.iter().enumerate() {
        validate_ingress(&path.index(i), entry, errors);
    }
}

fn validate_ingress(at: &Path<'_>, entry: &LoadBalancerIngress, errors: &mut Errors) {
    let (ip, host) = (field::text(&entry.ip), field::text(&entry.hostname));
    if !ip.is_empty() {
        field::format(errors, &at.child("ip"), ip, names::ip);
    } else if entry.ip_mode.is_some() {
        errors.push(FieldError::forbidden(at.child("ipMode"), "may not be specified when `ip` is not set"));
    }
    field::optional_one_of(errors, &at.child("ipMode"), &entry.ip_mode, &["Proxy", "VIP"]);
    if host.is_empty() {
        return;
    }
    field::format(errors, &at.child("hostname"), host, names::dns1123_subdomain);
    if names::ip(host).is_ok() {
        errors.push(FieldError::invalid(at.child("hostname"), host, "must be a DNS name, not an IP address"));
    }
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
