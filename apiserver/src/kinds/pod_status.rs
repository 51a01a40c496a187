//! Updates of a Pod's status (`ValidatePodStatusUpdate`).

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodSpec, PodStatus};
use scaleup_api::names;

use super::field::{self, Errors, Path};
use crate::error::FieldError;

/// Conditions whose names need no check.
const SYSTEM_CONDITIONS: &[&str] = &["PodScheduled", "Ready", "Initialized"];

/// What a node agent may not report.
pub(super) fn validate_update(object: &Pod, old: &Pod, errors: &mut Errors) {
    let empty = PodStatus::default();
    let (new, was) = (object.status.as_ref().unwrap_or(&empty), old.status.as_ref().unwrap_or(&empty));
    let conditions_at = Path::new("metadata.conditions");
    for (i, condition) in field::list(&new.conditions).iter().enumerate() {
        if !SYSTEM_CONDITIONS.contains(&condition.type_.as_str()) {
            let at = conditions_at.index(i);
            field::format(errors, &at.child("Type"), &condition.type_, names::qualified_name);
        }
    }
    let path = Path::new("status");
    let nominated = field::text(&new.nominated_node_name);
    if nominated != field::text(&was.nominated_node_name) && !nominated.is_empty() {
        field::format(errors, &path.child("nominatedNodeName"), nominated, names::dns1123_subdomain);
    }
    field::immutable(errors, &path.child("qosClass"), &new.qos_class, &was.qos_class);
    validate_addresses(&path, new, errors);
    let Some(spec) = &old.spec else { return };
    let states = [
        ("containerStatuses", &new.container_statuses, &was.container_statuses),
        ("initContainerStatuses", &new.init_container_statuses, &was.init_container_statuses),
    ];
    for (name, new, old) in states {
        validate_transitions(&path.child(name), field::list(new), field::list(old), spec, errors);
    }
}

fn validate_addresses(path: &Path<'_>, status: &PodStatus, errors: &mut Errors) {
    let pod_ips: Vec<&str> = field::list(&status.pod_ips).iter().map(|p| p.ip.as_str()).collect();
    let host_ips: Vec<&str> = field::list(&status.host_ips).iter().map(|p| p.ip.as_str()).collect();
    for (name, ips) in [("podIPs", &pod_ips), ("hostIPs", &host_ips)] {
        let at = path.child(name);
        for (i, ip) in ips.iter().enumerate() {
            field::format(errors, &at.index(i), ip, names::ip);
        }
        let v6 = ips.iter().filter(|ip| ip.contains(':')).count();
        if v6 > 1 || ips.len() - v6 > 1 {
            let why = "may specify no more than one IP for each IP family";
            errors.push(FieldError::invalid(at, field::value_of(ips), why));
        }
    }
    let host = field::text(&status.host_ip);
    if let Some(first) = host_ips.first().filter(|first| **first != host) {
        let at = path.child("hostIPs");
        errors.push(FieldError::invalid(at.index(0).child("ip"), *first, "must be equal to `hostIP`"));
    }
}

/// A container that ended for good does not come back.
fn validate_transitions(
    path: &Path<'_>,
    new: &[ContainerStatus],
    old: &[ContainerStatus],
    spec: &PodSpec,
    errors: &mut Errors,
) {
    let policy = field::text(&spec.restart_policy);
    if policy == "Always" {
        return;
    }
    let sidecar = |name: &str| {
        let mut init = field::list(&spec.init_containers).iter();
        init.any(|c| c.name == name && c.restart_policy.as_deref() == Some("Always"))
    };
    for (i, old) in old.iter().enumerate() {
        let Some(ended) = old.state.as_ref().and_then(|s| s.terminated.as_ref()) else { continue };
        if ended.exit_code != 0 && policy == "OnFailure" || sidecar(&old.name) {
            continue;
        }
        let runs = |s: &&ContainerStatus| {
            s.name == old.name && s.state.as_ref().is_none_or(|state| state.terminated.is_none())
        };
        if new.iter().any(|s| runs(&s)) {
            let why = "may not be transitioned to non-terminated state";
            errors.push(FieldError::forbidden(path.index(i).child("state"), why));
        }
    }
}
