//! What one TrafficPolicy (or a route itself) says, field by field, and how several of them make one policy: for each field the first that
//! says something counts. By value.

use std::sync::Arc;
use std::time::Duration;

use super::{
    Algorithm, HashSource, HealthCheck, InFlightLimits, Locality, Outlier, PluginRef, Queue, RateLimit, RequestPolicy,
    Retries, ServicePolicy, SessionPolicy, UpstreamTls,
};

/// About requests. `None`: nothing is said. A time of `Some(None)` is "no limit".
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RequestPart {
    /// `namespace/name` of the TrafficPolicy; a route has none.
    pub source: Option<Arc<str>>,
    pub retries: Option<Retries>,
    pub hedging: Option<(Duration, u32)>,
    pub rate_limits: Option<Vec<RateLimit>>,
    pub request_timeout: Option<Option<Duration>>,
    pub response_timeout: Option<Option<Duration>>,
    pub idle_timeout: Option<Option<Duration>>,
    pub max_body_bytes: Option<u64>,
    pub access_log_percent: Option<f64>,
    /// Of routes only.
    pub session: Option<Arc<SessionPolicy>>,
    /// Of routes and Gateways.
    pub plugin: Option<Arc<PluginRef>>,
}

/// About a Service's endpoints.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ServicePart {
    /// `namespace/name` of the TrafficPolicy.
    pub source: Option<Arc<str>>,
    pub balancing: Option<Balancing>,
    pub health_check: Option<HealthCheck>,
    pub outlier: Option<Outlier>,
    pub limits: Option<InFlightLimits>,
    pub queue: Option<Queue>,
    pub connect_timeout: Option<Option<Duration>>,
    pub send_proxy: Option<u8>,
    pub upstream_tls: Option<Arc<UpstreamTls>>,
    pub plugin: Option<Arc<PluginRef>>,
}

/// `loadBalancing` of a policy.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Balancing {
    pub algorithm: Option<Algorithm>,
    pub hash_on: Vec<HashSource>,
    pub bounded_load_percent: Option<u32>,
    pub weights: Vec<WeightRule>,
    /// `None`: what the Service says.
    pub locality: Option<Locality>,
    pub slow_start: Option<(Duration, u32)>,
}

/// A weight of the endpoints that match all that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct WeightRule {
    pub zone: Option<Arc<str>>,
    pub node: Option<Arc<str>>,
    pub address: Option<std::net::IpAddr>,
    pub weight: u32,
}

/// The names of those fields that are set.
fn set(fields: &[(&'static str, bool)]) -> Vec<&'static str> {
    fields.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect()
}

impl RequestPart {
    /// Names of the fields that are set.
    pub fn said(&self) -> Vec<&'static str> {
        set(&[
            ("retries", self.retries.is_some()),
            ("hedging", self.hedging.is_some()),
            ("rateLimits", self.rate_limits.is_some()),
            ("timeouts.request", self.request_timeout.is_some()),
            ("timeouts.responseHeader", self.response_timeout.is_some()),
            ("timeouts.idle", self.idle_timeout.is_some()),
            ("limits.maxRequestBodyBytes", self.max_body_bytes.is_some()),
            ("accessLog.samplePercent", self.access_log_percent.is_some()),
            ("policyRef", self.plugin.is_some()),
        ])
    }
}

impl ServicePart {
    /// Names of the fields that are set.
    pub fn said(&self) -> Vec<&'static str> {
        set(&[
            ("loadBalancing", self.balancing.is_some()),
            ("healthCheck", self.health_check.is_some()),
            ("outlierDetection", self.outlier.is_some()),
            ("circuitBreaker", self.limits.is_some()),
            ("queue", self.queue.is_some()),
            ("timeouts.connect", self.connect_timeout.is_some()),
            ("proxyProtocol.send", self.send_proxy.is_some()),
            ("upstreamTls", self.upstream_tls.is_some()),
            ("policyRef", self.plugin.is_some()),
        ])
    }
}

impl WeightRule {
    /// Whether it is about an endpoint.
    pub fn matches(&self, endpoint: &crate::snapshot::EndpointPlan) -> bool {
        self.zone.as_ref().is_none_or(|zone| endpoint.zone.as_ref() == Some(zone))
            && self.node.as_ref().is_none_or(|node| endpoint.node.as_ref() == Some(node))
            && self.address.is_none_or(|address| endpoint.addr.ip() == address)
    }
}

/// The first of the parts that says something.
fn first<'a, P: 'a, T: 'a + Clone>(parts: &[&'a P], field: impl Fn(&'a P) -> &'a Option<T>) -> Option<T> {
    parts.iter().find_map(|part| field(part).clone())
}

fn sources<'a>(all: impl Iterator<Item = &'a Option<Arc<str>>>) -> Vec<Arc<str>> {
    let mut sources: Vec<Arc<str>> = Vec::new();
    for source in all.flatten() {
        if !sources.contains(source) {
            sources.push(source.clone());
        }
    }
    sources
}

/// One policy of parts by precedence.
pub(crate) fn request_policy(parts: &[&RequestPart]) -> RequestPolicy {
    let default = RequestPolicy::default();
    RequestPolicy {
        sources: sources(parts.iter().map(|part| &part.source)),
        retries: first(parts, |part| &part.retries).unwrap_or_default(),
        hedging: first(parts, |part| &part.hedging),
        rate_limits: first(parts, |part| &part.rate_limits).unwrap_or_default(),
        request_timeout: first(parts, |part| &part.request_timeout).unwrap_or(default.request_timeout),
        response_timeout: first(parts, |part| &part.response_timeout).unwrap_or(default.response_timeout),
        idle_timeout: first(parts, |part| &part.idle_timeout).unwrap_or(default.idle_timeout),
        max_body_bytes: first(parts, |part| &part.max_body_bytes),
        access_log_percent: first(parts, |part| &part.access_log_percent),
        session: first(parts, |part| &part.session),
        plugin: first(parts, |part| &part.plugin),
    }
}

/// One policy of parts by precedence, and the weights of endpoints. What the Service itself says is in `base` and gives way.
pub(crate) fn service_policy(parts: &[&ServicePart], base: ServicePolicy) -> (ServicePolicy, Vec<WeightRule>) {
    let balancing = first(parts, |part| &part.balancing).unwrap_or_default();
    let policy = ServicePolicy {
        sources: sources(parts.iter().map(|part| &part.source)),
        algorithm: balancing.algorithm,
        hash_on: balancing.hash_on,
        bounded_load_percent: balancing.bounded_load_percent,
        locality: balancing.locality.unwrap_or(base.locality),
        slow_start: balancing.slow_start,
        health_check: first(parts, |part| &part.health_check),
        outlier: first(parts, |part| &part.outlier),
        limits: first(parts, |part| &part.limits).unwrap_or_default(),
        queue: first(parts, |part| &part.queue),
        connect_timeout: first(parts, |part| &part.connect_timeout).unwrap_or(base.connect_timeout),
        send_proxy: first(parts, |part| &part.send_proxy),
        upstream_tls: first(parts, |part| &part.upstream_tls).or(base.upstream_tls),
        plugin: first(parts, |part| &part.plugin).or(base.plugin),
        client_ip_affinity: base.client_ip_affinity,
    };
    (policy, balancing.weights)
}
