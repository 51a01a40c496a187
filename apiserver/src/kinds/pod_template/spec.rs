//! `ValidatePodSpec`: a spec's own fields; containers, volumes and the rest have modules of their own.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodDNSConfig, PodSpec};
use scaleup_api::names;

use super::super::field::{self, Errors, Path};
use super::{Holder, containers, scheduling, security, unsupported, volumes};
use crate::error::FieldError;

/// Limits of libc's resolver.
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Every mistake of a pod spec.
pub fn validate(path: &Path<'_>, spec: &PodSpec, holder: Holder, errors: &mut Errors) {
    volumes::validate(&path.child("volumes"), field::list(&spec.volumes), errors);
    containers::validate(path, spec, errors);
    host_ports_of_host_network(path, spec, holder, errors);
    let restart = field::text(&spec.restart_policy);
    field::one_of(errors, &path.child("restartPolicy"), restart, &["Always", "OnFailure", "Never"]);
    let policies = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    let dns = field::text(&spec.dns_policy);
    field::one_of(errors, &path.child("dnsPolicy"), dns, policies);
    field::labels(errors, &path.child("nodeSelector"), spec.node_selector.as_ref());
    if let Some(context) = &spec.security_context {
        security::validate_pod(&path.child("securityContext"), context, spec, errors);
    }
    if let Some(affinity) = &spec.affinity {
        scheduling::validate_affinity(&path.child("affinity"), affinity, errors);
    }
    validate_dns(&path.child("dnsConfig"), spec.dns_config.as_ref(), dns, errors);
    validate_gates(path, spec, errors);
    let spread = field::list(&spec.topology_spread_constraints);
    scheduling::validate_spread(&path.child("topologySpreadConstraints"), spread, errors);
    scheduling::validate_tolerations(&path.child("tolerations"), field::list(&spec.tolerations), errors);
    validate_names(path, spec, errors);
    validate_host_aliases(path, spec, errors);
    if let Some(seconds) = spec.active_deadline_seconds
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let why = format!("must be between 1 and {}, inclusive", i32::MAX);
        errors.push(FieldError::invalid(path.child("activeDeadlineSeconds"), seconds, why));
    }
    let preemption = &["PreemptLowerPriority", "Never"];
    field::optional_one_of(errors, &path.child("preemptionPolicy"), &spec.preemption_policy, preemption);
    if let Some(os) = &spec.os {
        let at = path.child("os");
        if os.name.is_empty() {
            errors.push(FieldError::required(at.child("name"), "cannot be empty"));
        } else {
            field::one_of(errors, &at, &os.name, &["linux", "windows"]);
        }
    }
    unsupported::spec(path, spec, holder, errors);
}

/// In a Pod on the host's network, a container port is the host port; a template may leave that to the Pod.
fn host_ports_of_host_network(path: &Path<'_>, spec: &PodSpec, holder: Holder, errors: &mut Errors) {
    if !field::flag(spec.host_network) {
        return;
    }
    let path = path.child("containers");
    for (i, container) in spec.containers.iter().enumerate() {
        let at = path.index(i);
        let at = at.child("ports");
        for (i, port) in field::list(&container.ports).iter().enumerate() {
            let host = port.host_port.unwrap_or(0);
            if (holder == Holder::Pod || host != 0) && host != port.container_port {
                let why = "must match `containerPort` when `hostNetwork` is true";
                errors.push(FieldError::invalid(at.index(i).child("hostPort"), host, why));
            }
        }
    }
}

fn validate_names(path: &Path<'_>, spec: &PodSpec, errors: &mut Errors) {
    type Format = fn(&str) -> Result<(), String>;
    let subdomain: Format = names::dns1123_subdomain;
    let label: Format = names::dns1123_label;
    for (name, value, format) in [
        ("serviceAccountName", &spec.service_account_name, subdomain),
        ("nodeName", &spec.node_name, subdomain),
        ("priorityClassName", &spec.priority_class_name, subdomain),
        ("hostname", &spec.hostname, label),
        ("subdomain", &spec.subdomain, label),
    ] {
        if let Some(value) = value.as_deref().filter(|v| !v.is_empty()) {
            field::format(errors, &path.child(name), value, format);
        }
    }
}

fn validate_host_aliases(path: &Path<'_>, spec: &PodSpec, errors: &mut Errors) {
    let path = path.child("hostAliases");
    for (i, alias) in field::list(&spec.host_aliases).iter().enumerate() {
        let at = path.index(i);
        field::format(errors, &at.child("ip"), &alias.ip, names::ip);
        let at = at.child("hostnames");
        for (i, name) in field::list(&alias.hostnames).iter().enumerate() {
            field::format(errors, &at.index(i), name, names::dns1123_subdomain);
        }
    }
}

fn validate_gates(path: &Path<'_>, spec: &PodSpec, errors: &mut Errors) {
    let at = path.child("readinessGates");
    for (i, gate) in field::list(&spec.readiness_gates).iter().enumerate() {
        let at = at.index(i);
        field::format(errors, &at.child("conditionType"), &gate.condition_type, names::qualified_name);
    }
    let at = path.child("schedulingGates");
    let gates = field::list(&spec.scheduling_gates);
    for (i, gate) in gates.iter().enumerate() {
        field::format(errors, &at.index(i), &gate.name, names::qualified_name);
        if gates[..i].iter().any(|g| g.name == gate.name) {
            errors.push(FieldError::duplicate(at.index(i), gate.name.as_str()));
        }
    }
    if !gates.is_empty() && !field::text(&spec.node_name).is_empty() {
        let why = "cannot be set until all schedulingGates have been cleared";
        errors.push(FieldError::forbidden(path.child("nodeName"), why));
    }
}

fn validate_dns(path: &Path<'_>, config: Option<&PodDNSConfig>, policy: &str, errors: &mut Errors) {
    let Some(config) = config else {
        if policy == "None" {
            let why = "must provide `dnsConfig` when `dnsPolicy` is None";
            errors.push(FieldError::required(path, why));
        }
        return;
    };
    let servers = field::list(&config.nameservers);
    let servers_at = path.child("nameservers");
    if policy == "None" && servers.is_empty() {
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.push(FieldError::required(servers_at, why));
    }
    if servers.len() > MAX_NAMESERVERS {
        let why = format!("must not have more than {MAX_NAMESERVERS} nameservers");
        errors.push(FieldError::invalid(servers_at, field::value_of(&config.nameservers), why));
    }
    for (i, server) in servers.iter().enumerate() {
        field::format(errors, &servers_at.index(i), server, names::ip);
    }
    let searches = field::list(&config.searches);
    let searches_at = path.child("searches");
    if searches.len() > MAX_SEARCHES {
        let why = format!("must not have more than {MAX_SEARCHES} search paths");
        errors.push(FieldError::invalid(searches_at, field::value_of(&config.searches), why));
    }
    // Spaces between the paths count.
    let chars = searches.iter().map(|s| s.len() + 1).sum::<usize>();
    if chars > MAX_SEARCH_CHARS + 1 {
        let why =
            format!("must not have more than {MAX_SEARCH_CHARS} characters (including spaces) in the search list");
        errors.push(FieldError::invalid(searches_at, field::value_of(&config.searches), why));
    }
    for (i, search) in searches.iter().enumerate() {
        let search = search.strip_suffix('.').unwrap_or(search);
        field::format(errors, &searches_at.index(i), search, names::dns1123_subdomain);
    }
    let options_at = path.child("options");
    for (i, option) in field::list(&config.options).iter().enumerate() {
        if field::text(&option.name).is_empty() {
            errors.push(FieldError::required(options_at.index(i), "must not be empty"));
        }
    }
}

/// What is checked in Pods and not in templates, for compatibility.
pub fn containers_only_for_pod(path: &Path<'_>, spec: &PodSpec, errors: &mut Errors) {
    let mut check = |name: &str, containers: &[Container]| {
        let path = path.child(name);
        for (i, container) in containers.iter().enumerate() {
            let image = field::text(&container.image);
            if image.trim() != image {
                let why = "must not have leading or trailing whitespace";
                errors.push(FieldError::invalid(path.index(i).child("image"), image, why));
            }
        }
    };
    check("containers", &spec.containers);
    check("initContainers", field::list(&spec.init_containers));
    if !field::text(&spec.service_account_name).is_empty() {
        return;
    }
    let path = path.child("volumes");
    for (i, volume) in field::list(&spec.volumes).iter().enumerate() {
        let at = path.index(i);
        let at = at.child("projected");
        let at = at.child("sources");
        let sources = volume.projected.iter().flat_map(|p| field::list(&p.sources));
        for (i, _) in sources.enumerate().filter(|(_, s)| s.service_account_token.is_some()) {
            let why = "must not be specified when serviceAccountName is not set";
            errors.push(FieldError::forbidden(at.index(i).child("serviceAccountToken"), why));
        }
    }
}

/// Annotations that mean something to a Pod.
pub fn annotations(path: &Path<'_>, annotations: Option<&BTreeMap<String, String>>, errors: &mut Errors) {
    let Some(cost) = annotations.and_then(|a| a.get(DELETION_COST)) else { return };
    // As Go's strconv prints it: no leading zero, no plus sign.
    let canonical = cost.parse::<i32>().is_ok_and(|n| n.to_string() == *cost);
    if !canonical {
        let why = "must be a 32bit integer";
        errors.push(FieldError::invalid(path.key(DELETION_COST), cost.as_str(), why));
    }
}
