//! TrafficPolicy (traffic.scaleup.dev): every field is what its documentation in `scaleup_api::traffic` says.
//!
//! Nothing is filled in: an absent field leaves the decision to a less specific policy, and then to the load balancer.

mod balancing;
mod protection;
#[cfg(test)]
mod tests;

use std::time::Duration;

use scaleup_api::gateway;
use scaleup_api::names;
use scaleup_api::traffic::{
    MAX_POLICY_HEADERS, PolicyRef, ProxyProtocol, TargetRef, Timeouts, TrafficPolicySpec, TrafficPolicyStatus,
    UpstreamTls,
};

use super::custom::{SpecRules, StatusRules, conditions, count, duration, range};
use super::field::{self, Errors, Path};
use super::gateway::{text, validate_targets};
use crate::error::FieldError;

const MAX_NAME: usize = 253;
const MAX_ANCESTORS: usize = 16;
const MAX_SOURCES: usize = 64;
/// Largest count of anything that is only limited by its type.
const MAX_COUNT: i64 = i32::MAX as i64;

/// Kinds that a policy may be attached to: group, kind, and whether it has sections.
const TARGETS: &[(&str, &str, bool)] = &[
    ("", "Service", true),
    ("networking.k8s.io", "Ingress", false),
    (gateway::GROUP, "Gateway", true),
    (gateway::GROUP, "HTTPRoute", true),
    (gateway::GROUP, "GRPCRoute", true),
    (gateway::GROUP, "TLSRoute", true),
    (gateway::GROUP, "TCPRoute", true),
    (gateway::GROUP, "UDPRoute", true),
];

impl SpecRules for TrafficPolicySpec {
    fn validate(&self, _: &str, at: &Path<'_>, errors: &mut Errors) {
        targets(errors, &at.child("targetRefs"), &self.target_refs);
        if let Some(part) = &self.load_balancing {
            balancing::load_balancing(errors, &at.child("loadBalancing"), part);
        }
        if let Some(part) = &self.health_check {
            protection::health_check(errors, &at.child("healthCheck"), part);
        }
        if let Some(part) = &self.outlier_detection {
            protection::outlier_detection(errors, &at.child("outlierDetection"), part);
        }
        if let Some(part) = &self.retries {
            protection::retries(errors, &at.child("retries"), part);
        }
        if let Some(part) = &self.hedging {
            let at = at.child("hedging");
            required_time(errors, &at.child("delay"), &part.delay, Duration::from_millis(1), None);
            range(errors, &at.child("maxExtra"), part.max_extra, 1, 4);
        }
        if let Some(part) = &self.circuit_breaker {
            let at = at.child("circuitBreaker");
            range(errors, &at.child("maxRequests"), part.max_requests, 1, MAX_COUNT);
            range(errors, &at.child("maxConnections"), part.max_connections, 1, MAX_COUNT);
            range(errors, &at.child("maxPerEndpoint"), part.max_per_endpoint, 1, MAX_COUNT);
            range(errors, &at.child("maxRetries"), part.max_retries, 0, MAX_COUNT);
        }
        if let Some(part) = &self.queue {
            protection::queue(errors, &at.child("queue"), part);
        }
        protection::rate_limits(errors, &at.child("rateLimits"), &self.rate_limits);
        if let Some(part) = &self.timeouts {
            timeouts(errors, &at.child("timeouts"), part);
        }
        if let Some(part) = &self.limits {
            let at = at.child("limits");
            field::non_negative(errors, &at.child("maxRequestBodyBytes"), part.max_request_body_bytes);
        }
        if let Some(part) = &self.proxy_protocol {
            proxy_protocol(errors, &at.child("proxyProtocol"), part);
        }
        if let Some(part) = &self.upstream_tls {
            upstream_tls(errors, &at.child("upstreamTls"), part);
        }
        if let Some(part) = &self.access_log {
            let at = at.child("accessLog");
            range(errors, &at.child("samplePercent"), part.sample_percent, 0, 100);
        }
        if let Some(part) = &self.policy_ref {
            policy_ref(errors, &at.child("policyRef"), part);
        }
    }
}

fn policy_ref(errors: &mut Errors, at: &Path<'_>, part: &PolicyRef) {
    if !part.kind.is_empty() {
        field::one_of(errors, &at.child("kind"), &part.kind, &["ClusterWasmPlugin", "WasmPlugin"]);
    }
    text::required(errors, &at.child("name"), &part.name, MAX_NAME, names::dns1123_subdomain);
    let list = at.child("headers");
    if !count(errors, &list, part.headers.len(), 0, MAX_POLICY_HEADERS) {
        for (i, name) in part.headers.iter().enumerate() {
            field::format(errors, &list.index(i), name, text::token);
        }
    }
}

fn targets(errors: &mut Errors, at: &Path<'_>, targets: &[TargetRef]) {
    let all = targets.iter().map(|t| (t.group.as_str(), t.kind.as_str(), t.name.as_str(), &t.section_name));
    validate_targets(errors, at, all.collect());
    for (i, target) in targets.iter().enumerate().take(MAX_ANCESTORS) {
        let (group, kind) = (target.group.as_str(), target.kind.as_str());
        match TARGETS.iter().find(|(g, k, _)| (*g, *k) == (group, kind)) {
            Some((.., false)) if target.section_name.is_some() => {
                let why = format!("{kind} has no sections");
                errors.push(FieldError::forbidden(at.index(i).child("sectionName"), why));
            }
            Some(_) => {}
            None if TARGETS.iter().any(|(_, k, _)| *k == kind) => {
                let groups: Vec<&str> = TARGETS.iter().filter(|(_, k, _)| *k == kind).map(|(g, ..)| *g).collect();
                errors.push(FieldError::not_supported(at.index(i).child("group"), group, &groups));
            }
            None => {
                let kinds: Vec<&str> = TARGETS.iter().map(|(_, k, _)| *k).collect();
                errors.push(FieldError::not_supported(at.index(i).child("kind"), kind, &kinds));
            }
        }
    }
}

/// A duration that is at least `min` and, if there is a `max`, at most that.
fn time(
    errors: &mut Errors,
    at: &Path<'_>,
    value: &Option<String>,
    min: Duration,
    max: Option<Duration>,
) -> Option<Duration> {
    let parsed = duration(errors, at, value.as_deref())?;
    let given = field::text(value);
    if parsed < min {
        errors.push(FieldError::invalid(at, given, format!("must be at least {}ms", min.as_millis())));
    } else if let Some(max) = max.filter(|max| parsed > *max) {
        errors.push(FieldError::invalid(at, given, format!("must be at most {}s", max.as_secs())));
    }
    Some(parsed)
}

/// As [`time`], but `Required value` if empty.
fn required_time(errors: &mut Errors, at: &Path<'_>, value: &str, min: Duration, max: Option<Duration>) {
    if value.is_empty() {
        errors.push(FieldError::required(at, "a duration, e.g. '10s'"));
    } else {
        time(errors, at, &Some(value.to_owned()), min, max);
    }
}

fn timeouts(errors: &mut Errors, at: &Path<'_>, timeouts: &Timeouts) {
    for (member, value) in [
        ("request", &timeouts.request),
        ("responseHeader", &timeouts.response_header),
        ("connect", &timeouts.connect),
        ("idle", &timeouts.idle),
    ] {
        duration(errors, &at.child(member), value.as_deref());
    }
}

fn proxy_protocol(errors: &mut Errors, at: &Path<'_>, proxy: &ProxyProtocol) {
    let list = at.child("trustedSources");
    if proxy.accept && proxy.trusted_sources.is_empty() {
        errors.push(FieldError::required(list, "say whose headers are believed when `accept` is true"));
    }
    if !proxy.accept && !proxy.trusted_sources.is_empty() {
        errors.push(FieldError::forbidden(list, "may only be specified when `accept` is true"));
    }
    if !count(errors, &list, proxy.trusted_sources.len(), 0, MAX_SOURCES) {
        for (i, source) in proxy.trusted_sources.iter().enumerate() {
            field::format(errors, &list.index(i), source, field::cidr);
        }
    }
    field::optional_one_of(errors, &at.child("send"), &proxy.send, &["V1", "V2"]);
}

fn upstream_tls(errors: &mut Errors, at: &Path<'_>, tls: &UpstreamTls) {
    text::required(errors, &at.child("hostname"), &tls.hostname, MAX_NAME, text::precise_hostname);
    text::optional(errors, &at.child("caConfigMap"), &tls.ca_config_map, MAX_NAME, names::dns1123_subdomain);
    let secret = &tls.client_certificate_secret;
    text::optional(errors, &at.child("clientCertificateSecret"), secret, MAX_NAME, names::dns1123_subdomain);
    if tls.insecure_skip_verify && tls.ca_config_map.is_some() {
        let why = "must not be specified when `insecureSkipVerify` is true: no certificate would be checked";
        errors.push(FieldError::forbidden(at.child("caConfigMap"), why));
    }
}

impl StatusRules for TrafficPolicyStatus {
    fn validate(&self, at: &Path<'_>, errors: &mut Errors) {
        let at = at.child("ancestors");
        if count(errors, &at, self.ancestors.len(), 0, MAX_ANCESTORS) {
            return;
        }
        for (i, ancestor) in self.ancestors.iter().enumerate() {
            let at = at.index(i);
            targets(errors, &at.child("ancestorRef"), std::slice::from_ref(&ancestor.ancestor_ref));
            text::required(errors, &at.child("controllerName"), &ancestor.controller_name, MAX_NAME, text::controller);
            conditions(errors, &at.child("conditions"), &ancestor.conditions, 1);
        }
    }
}
