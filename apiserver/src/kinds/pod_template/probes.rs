//! Probes and lifecycle hooks.

use k8s_openapi::api::core::v1::{
    Container, ExecAction, HTTPGetAction, Lifecycle, LifecycleHandler, Probe, SleepAction, TCPSocketAction,
};

use super::super::field::{self, Errors, Path};
use crate::error::FieldError;

/// Probes and hooks of a container that keeps running (`grace_period_s`: the pod's).
pub fn validate(path: &Path<'_>, container: &Container, grace_period_s: Option<i64>, errors: &mut Errors) {
    if let Some(lifecycle) = &container.lifecycle {
        validate_lifecycle(&path.child("lifecycle"), lifecycle, grace_period_s, errors);
    }
    for (name, probe) in [("livenessProbe", &container.liveness_probe), ("startupProbe", &container.startup_probe)] {
        let Some(probe) = probe else { continue };
        let at = path.child(name);
        validate_probe(&at, probe, errors);
        let successes = probe.success_threshold.unwrap_or_default();
        if successes != 1 {
            errors.push(FieldError::invalid(at.child("successThreshold"), successes, "must be 1"));
        }
    }
    if let Some(probe) = &container.readiness_probe {
        let at = path.child("readinessProbe");
        validate_probe(&at, probe, errors);
        if let Some(seconds) = probe.termination_grace_period_seconds {
            let why = "must not be set for readinessProbes";
            errors.push(FieldError::invalid(at.child("terminationGracePeriodSeconds"), seconds, why));
        }
    }
}

/// Init containers that end have nothing to probe.
pub fn forbid(path: &Path<'_>, container: &Container, errors: &mut Errors) {
    for (name, set) in [
        ("lifecycle", container.lifecycle.is_some()),
        ("livenessProbe", container.liveness_probe.is_some()),
        ("readinessProbe", container.readiness_probe.is_some()),
        ("startupProbe", container.startup_probe.is_some()),
    ] {
        if set {
            let why = "may not be set for init containers without restartPolicy=Always";
            errors.push(FieldError::forbidden(path.child(name), why));
        }
    }
}

/// What a probe or hook does.
#[derive(Default)]
struct Handler<'a> {
    exec: Option<&'a ExecAction>,
    http_get: Option<&'a HTTPGetAction>,
    tcp_socket: Option<&'a TCPSocketAction>,
    grpc_port: Option<i32>,
    sleep: Option<&'a SleepAction>,
}

impl<'a> Handler<'a> {
    fn of_probe(probe: &'a Probe) -> Self {
        Self {
            exec: probe.exec.as_ref(),
            http_get: probe.http_get.as_ref(),
            tcp_socket: probe.tcp_socket.as_ref(),
            grpc_port: probe.grpc.as_ref().map(|g| g.port),
            sleep: None,
        }
    }
    fn of_hook(hook: &'a LifecycleHandler) -> Self {
        Self {
            exec: hook.exec.as_ref(),
            http_get: hook.http_get.as_ref(),
            tcp_socket: hook.tcp_socket.as_ref(),
            sleep: hook.sleep.as_ref(),
            grpc_port: None,
        }
    }
}

fn validate_probe(path: &Path<'_>, probe: &Probe, errors: &mut Errors) {
    validate_handler(path, &Handler::of_probe(probe), None, errors);
    for (name, value) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        field::non_negative(errors, &path.child(name), value);
    }
    if let Some(seconds) = probe.termination_grace_period_seconds
        && seconds <= 0
    {
        let at = path.child("terminationGracePeriodSeconds");
        errors.push(FieldError::invalid(at, seconds, "must be greater than 0"));
    }
}

fn validate_lifecycle(path: &Path<'_>, lifecycle: &Lifecycle, grace_period_s: Option<i64>, errors: &mut Errors) {
    for (name, hook) in [("postStart", &lifecycle.post_start), ("preStop", &lifecycle.pre_stop)] {
        if let Some(hook) = hook {
            validate_handler(&path.child(name), &Handler::of_hook(hook), grace_period_s, errors);
        }
    }
}

fn validate_handler(path: &Path<'_>, handler: &Handler<'_>, grace_period_s: Option<i64>, errors: &mut Errors) {
    let given: Vec<&str> = [
        ("exec", handler.exec.is_some()),
        ("httpGet", handler.http_get.is_some()),
        ("tcpSocket", handler.tcp_socket.is_some()),
        ("grpc", handler.grpc_port.is_some()),
        ("sleep", handler.sleep.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, set)| set.then_some(name))
    .collect();
    let Some((first, more)) = given.split_first() else {
        errors.push(FieldError::required(path, "must specify a handler type"));
        return;
    };
    let at = path.child(first);
    // As upstream, only the first one is looked into.
    if let Some(exec) = handler.exec {
        if field::list(&exec.command).is_empty() {
            errors.push(FieldError::required(at.child("command"), ""));
        }
    } else if let Some(http) = handler.http_get {
        validate_http_get(&at, http, errors);
    } else if let Some(tcp) = handler.tcp_socket {
        field::port_or_name(errors, &at.child("port"), &tcp.port);
    } else if let Some(port) = handler.grpc_port {
        field::port(errors, &at.child("port"), port);
    } else if let (Some(sleep), Some(grace)) = (handler.sleep, grace_period_s)
        && !(0..=grace).contains(&sleep.seconds)
    {
        let why = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        errors.push(FieldError::invalid(at, sleep.seconds, why));
    }
    for name in more {
        errors.push(FieldError::forbidden(path.child(name), "may not specify more than 1 handler type"));
    }
}

fn validate_http_get(path: &Path<'_>, action: &HTTPGetAction, errors: &mut Errors) {
    field::required(errors, &path.child("path"), field::text(&action.path));
    field::port_or_name(errors, &path.child("port"), &action.port);
    let schemes = &["HTTP", "HTTPS"];
    let scheme = field::text(&action.scheme);
    if !schemes.contains(&scheme) {
        errors.push(FieldError::not_supported(path.child("scheme"), scheme, schemes));
    }
    for header in field::list(&action.http_headers) {
        field::format(errors, &path.child("httpHeaders"), &header.name, http_header_name);
    }
}

fn http_header_name(name: &str) -> Result<(), String> {
    if !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Ok(());
    }
    Err("a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')".into())
}
