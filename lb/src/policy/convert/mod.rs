//! From a TrafficPolicy's fields to [`super::parts`], with the defaults that `scaleup_api::traffic` documents. A policy with anything
//! invalid is refused whole, with a message that names the field. Pure.

mod endpoints;
mod plugin;
mod requests;
#[cfg(test)]
mod tests;
mod values;

use std::net::IpAddr;
use std::sync::Arc;

use scaleup_api::traffic::{TrafficPolicySpec, UpstreamTls};

use super::PluginRef;
use super::parts::{RequestPart, ServicePart};
use crate::snapshot::ServiceKey;
pub(crate) use plugin::annotated;
pub(crate) use requests::default_retries;
use values::{at_most, check, is_host};

/// Sources of PROXY protocol headers (the API's limit).
const MAX_SOURCES: usize = 64;

/// A policy whose fields are all valid.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Parsed {
    pub request: RequestPart,
    pub service: ServicePart,
    /// References are not followed yet.
    pub upstream_tls: Option<UpstreamTls>,
    pub accept_proxy: Option<Arc<[String]>>,
    /// What it decides about depends on the target.
    pub plugin: Option<Arc<PluginRef>>,
    /// Names of the fields that are set and about a Service's endpoints.
    pub endpoint_fields: Vec<&'static str>,
}

impl Parsed {
    /// What is said about requests, at a target: limits that have one bucket have one per target.
    pub fn request_at(&self, place: &str) -> RequestPart {
        let mut part = self.request.clone();
        for limit in part.rate_limits.iter_mut().flatten() {
            limit.id = format!("{}/{place}", limit.id).into();
        }
        part
    }
}

/// The fields of the policy `key`; the error is for its author.
pub(crate) fn parse(key: &ServiceKey, spec: &TrafficPolicySpec) -> Result<Parsed, String> {
    let source: Arc<str> = key.to_string().into();
    let mut parsed = Parsed::default();
    (parsed.request.source, parsed.service.source) = (Some(source.clone()), Some(source.clone()));
    requests::request(&source, spec, &mut parsed.request)?;
    let mut endpoint = |name, set: bool| {
        if set {
            parsed.endpoint_fields.push(name)
        }
    };
    endpoint("loadBalancing", spec.load_balancing.is_some());
    endpoint("healthCheck", spec.health_check.is_some());
    endpoint("outlierDetection", spec.outlier_detection.is_some());
    endpoint("circuitBreaker", spec.circuit_breaker.is_some());
    endpoint("queue", spec.queue.is_some());
    endpoint("upstreamTls", spec.upstream_tls.is_some());
    endpoint("proxyProtocol.send", spec.proxy_protocol.as_ref().is_some_and(|proxy| proxy.send.is_some()));
    endpoint("timeouts.connect", spec.timeouts.as_ref().is_some_and(|timeouts| timeouts.connect.is_some()));
    endpoints::service(spec, &mut parsed.service)?;
    parsed.accept_proxy = accept_proxy(spec)?;
    let plugin = spec.policy_ref.as_ref().map(|reference| plugin::of(&key.namespace, reference)).transpose()?;
    parsed.plugin = plugin.map(Arc::new);
    if let Some(tls) = &spec.upstream_tls {
        let name = &tls.hostname;
        check(is_host(name), || format!("upstreamTls.hostname: {name:?} is not a host name"))?;
        parsed.upstream_tls = Some(UpstreamTls { hostname: name.to_ascii_lowercase(), ..tls.clone() });
    }
    Ok(parsed)
}

fn accept_proxy(spec: &TrafficPolicySpec) -> Result<Option<Arc<[String]>>, String> {
    let Some(proxy) = spec.proxy_protocol.as_ref().filter(|proxy| proxy.accept) else { return Ok(None) };
    const FIELD: &str = "proxyProtocol.trustedSources";
    check(!proxy.trusted_sources.is_empty(), || format!("{FIELD} is required with accept"))?;
    at_most(FIELD, proxy.trusted_sources.len(), MAX_SOURCES)?;
    for source in &proxy.trusted_sources {
        let (ip, length) = source.split_once('/').map_or((source.as_str(), None), |(ip, length)| (ip, Some(length)));
        let ip: Option<IpAddr> = ip.parse().ok();
        let most = if ip.is_some_and(|ip| ip.is_ipv6()) { 128 } else { 32 };
        let fits = length.is_none_or(|length| length.parse::<u8>().is_ok_and(|length| length <= most));
        check(ip.is_some() && fits, || format!("{FIELD}: {source:?} is not an address or a CIDR"))?;
    }
    Ok(Some(proxy.trusted_sources.clone().into()))
}
