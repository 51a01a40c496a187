//! How a pod serves a Service: addresses, ports, readiness. Shared by EndpointSlices and Endpoints. Pure.

use k8s_openapi::api::core::v1::{Container, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use scaleup_api::pods;

/// Whether the pod may be an endpoint at all: it has an address and has not ended. Terminating pods only if asked for.
pub fn is_candidate(pod: &Pod, include_terminating: bool) -> bool {
    let deleting = pod.metadata.deletion_timestamp.is_some();
    !pods::is_terminal(pod) && !addresses(pod).is_empty() && (include_terminating || !deleting)
}

/// `status.podIPs`, or `status.podIP` alone.
pub fn addresses(pod: &Pod) -> Vec<&str> {
    let Some(status) = pod.status.as_ref() else { return Vec::new() };
    let many: Vec<&str> =
        status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).filter(|ip| !ip.is_empty()).collect();
    if many.is_empty() { status.pod_ip.as_deref().filter(|ip| !ip.is_empty()).into_iter().collect() } else { many }
}

/// The pod's address of one family.
pub fn address(pod: &Pod, ipv6: bool) -> Option<&str> {
    addresses(pod).into_iter().find(|ip| ip.contains(':') == ipv6)
}

/// The host name under which the Service's DNS knows this pod.
pub fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let ours = spec.subdomain.as_deref() == service.metadata.name.as_deref() && pod.namespace() == service.namespace();
    spec.hostname.clone().filter(|h| ours && !h.is_empty())
}

/// The number that a Service port means for this pod; `None` if it names a port that the pod has not.
pub fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    match port.target_port.as_ref() {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(n)) => Some(*n),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecar = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
            let sidecars = spec.init_containers.iter().flatten().filter(sidecar);
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
            let mut found =
                ports.filter(|p| p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol);
            found.next().map(|p| p.container_port)
        }
    }
}

/// Whether a change of a pod can change any endpoint.
pub fn matters(old: &Pod, new: &Pod) -> bool {
    let facts = |p: &Pod| {
        let spec = p.spec.as_ref();
        (
            p.metadata.labels.clone(),
            p.metadata.deletion_timestamp.is_some(),
            pods::is_ready(p),
            pods::is_terminal(p),
            addresses(p).into_iter().map(str::to_owned).collect::<Vec<_>>(),
            spec.and_then(|s| s.node_name.clone()),
            spec.and_then(|s| s.hostname.clone()),
            spec.and_then(|s| s.subdomain.clone()),
        )
    };
    facts(old) != facts(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(value: Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    fn check_port(target: Value, protocol: &str, want: Option<i32>) {
        let pod = pod(json!({"spec": {
            "containers": [{"name": "c", "ports": [
                {"name": "http", "containerPort": 8080},
                {"name": "dns", "containerPort": 5353, "protocol": "UDP"},
            ]}],
            "initContainers": [
                {"name": "once", "ports": [{"name": "setup", "containerPort": 1}]},
                {"name": "side", "restartPolicy": "Always", "ports": [{"name": "proxy", "containerPort": 15001}]},
            ],
        }}));
        let port = json!({"port": 80, "protocol": protocol, "targetPort": target});
        assert_eq!(target_port(&pod, &serde_json::from_value(port).unwrap()), want);
    }

    #[test]
    fn target_ports_are_found() {
        check_port(json!(null), "TCP", Some(80));
        check_port(json!(9000), "TCP", Some(9000));
        check_port(json!("http"), "TCP", Some(8080));
        check_port(json!("http"), "UDP", None);
        check_port(json!("dns"), "UDP", Some(5353));
        check_port(json!("proxy"), "TCP", Some(15001));
        check_port(json!("setup"), "TCP", None);
        check_port(json!("nope"), "TCP", None);
    }

    #[test]
    fn only_living_pods_with_addresses_are_candidates() {
        let with = |status: Value, deleting: bool| {
            let mut p = pod(json!({"status": status}));
            p.metadata.deletion_timestamp = deleting.then(scaleup_api::time::now);
            p
        };
        let up = json!({"podIP": "10.0.0.1", "phase": "Running"});
        assert!(is_candidate(&with(up.clone(), false), false));
        assert!(!is_candidate(&with(up.clone(), true), false));
        assert!(is_candidate(&with(up, true), true));
        assert!(!is_candidate(&with(json!({"podIP": "10.0.0.1", "phase": "Failed"}), false), true));
        assert!(!is_candidate(&with(json!({"phase": "Running"}), false), true));
    }

    #[test]
    fn families_are_told_apart() {
        let p = pod(json!({"status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}}));
        assert_eq!((address(&p, false), address(&p, true)), (Some("10.0.0.1"), Some("fd00::1")));
    }

    #[test]
    fn irrelevant_changes_do_not_matter() {
        let base = json!({"metadata": {"labels": {"a": "b"}}, "status": {"podIP": "10.0.0.1"}});
        let mut noisy = base.clone();
        noisy["metadata"]["annotations"] = json!({"x": "y"});
        noisy["status"]["message"] = json!("hello");
        assert!(!matters(&pod(base.clone()), &pod(noisy)));
        let mut ready = base.clone();
        ready["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        assert!(matters(&pod(base), &pod(ready)));
    }
}
