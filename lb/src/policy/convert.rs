//! From a TrafficPolicy's fields to [`super::parts`], with the defaults that `scaleup_api::traffic` documents. A policy with anything
//! invalid is refused whole, with a message that names the field. Pure. (A table of fields.)

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use scaleup_api::traffic::{self, TrafficPolicySpec, UpstreamTls};

use super::parts::{Balancing, RequestPart, ServicePart, WeightRule};
use super::{
    Algorithm, HashSource, HealthCheck, InFlightLimits, Locality, Outlier, Prefer, Probe, Queue, QueueClass, RateLimit,
    RatePer, Retries,
};
use crate::snapshot::ServiceKey;

/// Entries of the lists of a policy (the API's limits, or where it has none, ours).
const MAX_RATE_LIMITS: usize = 16;
const MAX_CLASSES: usize = 8;
const MAX_HASH_SOURCES: usize = 8;
const MAX_WEIGHTS: usize = 64;
const MAX_REGIONS: usize = 64;
const MAX_SOURCES: usize = 64;
const MAX_STATUSES: usize = 32;
/// Longest name, path or value, in bytes.
const MAX_TEXT_BYTES: usize = 1024;

/// A policy whose fields are all valid.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Parsed {
    pub request: RequestPart,
    pub service: ServicePart,
    /// References are not followed yet.
    pub upstream_tls: Option<UpstreamTls>,
    pub accept_proxy: Option<Arc<[String]>>,
    /// Names of the fields that are set and about a Service's endpoints.
    pub endpoint_fields: Vec<&'static str>,
}

/// Retries of a policy that says nothing more.
pub(crate) fn default_retries() -> Retries {
    Retries {
        attempts: 2,
        backoff: Some(Duration::from_millis(25)),
        budget_percent: Some(20),
        min_per_second: 3,
        ..Retries::default()
    }
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
    request(&source, spec, &mut parsed.request)?;
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
    service(spec, &mut parsed.service)?;
    parsed.accept_proxy = accept_proxy(spec)?;
    if let Some(tls) = &spec.upstream_tls {
        let name = &tls.hostname;
        check(is_host(name), || format!("upstreamTls.hostname: {name:?} is not a host name"))?;
        parsed.upstream_tls = Some(UpstreamTls { hostname: name.to_ascii_lowercase(), ..tls.clone() });
    }
    Ok(parsed)
}

fn check(fine: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if fine { Ok(()) } else { Err(message()) }
}

/// A number within limits, or the default.
fn number(field: &str, value: Option<i32>, range: std::ops::RangeInclusive<u32>, default: u32) -> Result<u32, String> {
    Ok(optional(field, value, range)?.unwrap_or(default))
}

fn optional(field: &str, value: Option<i32>, range: std::ops::RangeInclusive<u32>) -> Result<Option<u32>, String> {
    let Some(value) = value else { return Ok(None) };
    match u32::try_from(value) {
        Ok(number) if range.contains(&number) => Ok(Some(number)),
        _ => Err(format!("{field}: {value} is not between {} and {}", range.start(), range.end())),
    }
}

fn duration(field: &str, text: &str) -> Result<Duration, String> {
    scaleup_api::duration::parse(text)
        .ok_or_else(|| format!("{field}: {text:?} is not a duration such as 10s or 250ms"))
}

/// A duration that is not zero, or the default.
fn positive(field: &str, text: Option<&str>, default: Duration) -> Result<Duration, String> {
    let Some(text) = text else { return Ok(default) };
    let parsed = duration(field, text)?;
    check(!parsed.is_zero(), || format!("{field}: must be longer than 0s"))?;
    Ok(parsed)
}

/// A limit of time; `0s` is none.
fn limit(field: &str, text: Option<&str>) -> Result<Option<Option<Duration>>, String> {
    let Some(text) = text else { return Ok(None) };
    Ok(Some(Some(duration(field, text)?).filter(|duration| !duration.is_zero())))
}

fn at_most(field: &str, count: usize, most: usize) -> Result<(), String> {
    check(count <= most, || format!("{field}: more than {most} entries"))
}

fn header(field: &str, name: &str) -> Result<Arc<str>, String> {
    let lower = name.to_ascii_lowercase();
    check(http::HeaderName::from_bytes(lower.as_bytes()).is_ok(), || {
        format!("{field}: {name:?} is not a header's name")
    })?;
    Ok(lower.into())
}

/// Text that may stand in a field or a metric.
fn text(field: &str, text: &str) -> Result<Arc<str>, String> {
    let fine =
        !text.is_empty() && text.len() <= MAX_TEXT_BYTES && text.bytes().all(|byte| (b' '..0x7f).contains(&byte));
    check(fine, || format!("{field}: {text:?} is empty, too long or not plain ASCII text"))?;
    Ok(text.into())
}

fn path(field: &str, text: &str) -> Result<Arc<str>, String> {
    let fine =
        text.starts_with('/') && text.len() <= MAX_TEXT_BYTES && text.bytes().all(|byte| byte.is_ascii_graphic());
    check(fine && !text.contains('#'), || format!("{field}: {text:?} is not a path"))?;
    Ok(text.into())
}

fn is_host(text: &str) -> bool {
    scaleup_api::names::dns1123_subdomain(&text.to_ascii_lowercase()).is_ok()
}

/// A host with perhaps a port, for `Host`.
fn authority(field: &str, text: &str) -> Result<Arc<str>, String> {
    let host = text.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(text, |(host, _)| host);
    check(is_host(host), || format!("{field}: {text:?} is not a host"))?;
    Ok(text.to_ascii_lowercase().into())
}

fn request(source: &str, spec: &TrafficPolicySpec, part: &mut RequestPart) -> Result<(), String> {
    part.retries = spec.retries.as_ref().map(retries).transpose()?;
    if let Some(per_try) = spec.retries.as_ref().and_then(|retries| retries.per_try_timeout.as_deref()) {
        part.response_timeout = limit("retries.perTryTimeout", Some(per_try))?;
    }
    if let Some(hedging) = &spec.hedging {
        let delay = positive("hedging.delay", Some(&hedging.delay), Duration::ZERO)?;
        part.hedging = Some((delay, number("hedging.maxExtra", hedging.max_extra, 1..=4, 1)?));
    }
    at_most("rateLimits", spec.rate_limits.len(), MAX_RATE_LIMITS)?;
    if !spec.rate_limits.is_empty() {
        let limits = spec.rate_limits.iter().enumerate();
        part.rate_limits =
            Some(limits.map(|(index, limit)| rate_limit(source, index, limit)).collect::<Result<_, _>>()?);
    }
    if let Some(timeouts) = &spec.timeouts {
        part.request_timeout = limit("timeouts.request", timeouts.request.as_deref())?;
        // An attempt's own limit is the narrower one.
        if part.response_timeout.is_none() {
            part.response_timeout = limit("timeouts.responseHeader", timeouts.response_header.as_deref())?;
        }
        part.idle_timeout = limit("timeouts.idle", timeouts.idle.as_deref())?;
    }
    if let Some(bytes) = spec.limits.as_ref().and_then(|limits| limits.max_request_body_bytes) {
        let bytes = u64::try_from(bytes).map_err(|_| "limits.maxRequestBodyBytes: must not be negative".to_owned())?;
        part.max_body_bytes = Some(bytes);
    }
    if let Some(percent) = spec.access_log.as_ref().and_then(|log| log.sample_percent) {
        part.access_log_percent = Some(f64::from(number("accessLog.samplePercent", Some(percent), 0..=100, 0)?));
    }
    Ok(())
}

fn retries(retries: &traffic::Retries) -> Result<Retries, String> {
    let default = default_retries();
    let mut plan = Retries {
        attempts: number("retries.attempts", retries.attempts, 0..=10, default.attempts)?,
        backoff: match &retries.backoff {
            Some(text) => Some(duration("retries.backoff", text)?).filter(|pause| !pause.is_zero()),
            None => default.backoff,
        },
        budget_percent: optional("retries.budgetPercent", retries.budget_percent, 0..=100)?.or(default.budget_percent),
        min_per_second: number("retries.minPerSecond", retries.min_per_second, 0..=1_000_000, default.min_per_second)?,
        ..default
    };
    if !retries.retry_on.is_empty() {
        (plan.on_connect_failure, plan.on_reset) = (false, false);
    }
    at_most("retries.retryOn", retries.retry_on.len(), MAX_STATUSES)?;
    for on in &retries.retry_on {
        match on.as_str() {
            "ConnectFailure" => plan.on_connect_failure = true,
            "Reset" => plan.on_reset = true,
            "5xx" => plan.statuses.extend(500..=599),
            "GatewayError" => plan.statuses.extend([502, 503, 504]),
            "Timeout" => plan.on_timeout = true,
            "NonIdempotent" => plan.non_idempotent = true,
            other => return Err(format!("retries.retryOn: {other:?} is not known")),
        }
    }
    at_most("retries.statuses", retries.statuses.len(), MAX_STATUSES)?;
    for status in &retries.statuses {
        let known = u16::try_from(*status).ok().filter(|status| (400..=599).contains(status));
        plan.statuses.push(known.ok_or_else(|| format!("retries.statuses: {status} is not between 400 and 599"))?);
    }
    plan.statuses.sort_unstable();
    plan.statuses.dedup();
    Ok(plan)
}

fn rate_limit(source: &str, index: usize, limit: &traffic::RateLimit) -> Result<RateLimit, String> {
    let field = |name: &str| format!("rateLimits[{index}].{name}");
    let per = match (limit.per.as_deref().unwrap_or("Target"), &limit.header) {
        ("Target", _) => RatePer::Target,
        ("ClientIP", _) => RatePer::ClientIp,
        ("Header", Some(name)) => RatePer::Header(header(&field("header"), name)?),
        ("Header", None) => return Err(format!("{} is required with per: Header", field("header"))),
        (other, _) => return Err(format!("{}: {other:?} is not known", field("per"))),
    };
    let requests = number(&field("requests"), Some(limit.requests), 1..=10_000_000, 1)?;
    Ok(RateLimit {
        id: format!("{source}/{index}").into(),
        name: match &limit.name {
            Some(name) => text(&field("name"), name)?,
            None => index.to_string().into(),
        },
        per,
        requests,
        interval: positive(&field("interval"), limit.interval.as_deref(), Duration::from_secs(1))?,
        burst: number(&field("burst"), limit.burst, 1..=10_000_000, requests)?,
        shared: limit.shared,
    })
}

fn service(spec: &TrafficPolicySpec, part: &mut ServicePart) -> Result<(), String> {
    part.balancing = spec.load_balancing.as_ref().map(balancing).transpose()?;
    part.health_check = spec.health_check.as_ref().map(health_check).transpose()?;
    part.outlier = spec.outlier_detection.as_ref().map(outlier).transpose()?;
    if let Some(breaker) = &spec.circuit_breaker {
        let most = |field: &str, value| optional(field, value, 1..=10_000_000);
        part.limits = Some(InFlightLimits {
            requests: most("circuitBreaker.maxRequests", breaker.max_requests)?,
            connections: most("circuitBreaker.maxConnections", breaker.max_connections)?,
            per_endpoint: most("circuitBreaker.maxPerEndpoint", breaker.max_per_endpoint)?,
            retries: optional("circuitBreaker.maxRetries", breaker.max_retries, 0..=10_000_000)?,
        });
    }
    part.queue = spec.queue.as_ref().map(queue).transpose()?;
    part.connect_timeout = match spec.timeouts.as_ref().and_then(|timeouts| timeouts.connect.as_deref()) {
        Some(text) => Some(Some(positive("timeouts.connect", Some(text), Duration::ZERO)?)),
        None => None,
    };
    part.send_proxy = match spec.proxy_protocol.as_ref().and_then(|proxy| proxy.send.as_deref()) {
        None => None,
        Some("V1") => Some(1),
        Some("V2") => Some(2),
        Some(other) => return Err(format!("proxyProtocol.send: {other:?} is neither V1 nor V2")),
    };
    Ok(())
}

fn balancing(spec: &traffic::LoadBalancing) -> Result<Balancing, String> {
    let algorithm = spec.algorithm.as_deref().map(|name| match name {
        "PeakEWMA" => Ok(Algorithm::PeakEwma),
        "RoundRobin" => Ok(Algorithm::RoundRobin),
        "LeastConnections" => Ok(Algorithm::LeastConnections),
        "LeastRequest" => Ok(Algorithm::LeastRequest),
        "Random" => Ok(Algorithm::Random),
        "RingHash" => Ok(Algorithm::RingHash),
        "Maglev" => Ok(Algorithm::Maglev),
        other => Err(format!("loadBalancing.algorithm: {other:?} is not known")),
    });
    at_most("loadBalancing.hashOn", spec.hash_on.len(), MAX_HASH_SOURCES)?;
    at_most("loadBalancing.weights", spec.weights.len(), MAX_WEIGHTS)?;
    let slow_start = spec.slow_start.as_ref().map(|slow| {
        let window = positive("loadBalancing.slowStart.window", Some(&slow.window), Duration::ZERO)?;
        let longest = Duration::from_secs(15 * 60);
        check(window <= longest, || "loadBalancing.slowStart.window: at most 15m".to_owned())?;
        Ok::<_, String>((window, number("loadBalancing.slowStart.minPercent", slow.min_percent, 1..=100, 10)?))
    });
    Ok(Balancing {
        algorithm: algorithm.transpose()?,
        hash_on: spec.hash_on.iter().map(hash_source).collect::<Result<_, _>>()?,
        bounded_load_percent: optional("loadBalancing.boundedLoadPercent", spec.bounded_load_percent, 100..=1000)?,
        weights: spec.weights.iter().map(weight).collect::<Result<_, _>>()?,
        locality: spec.locality.as_ref().map(locality).transpose()?,
        slow_start: slow_start.transpose()?,
    })
}

fn hash_source(source: &traffic::HashOn) -> Result<HashSource, String> {
    const FIELD: &str = "loadBalancing.hashOn";
    match (&source.header, &source.cookie, &source.query_param, source.source_ip) {
        (Some(name), None, None, false) => Ok(HashSource::Header(header(FIELD, name)?)),
        (None, Some(cookie), None, false) => {
            let token = http::HeaderName::from_bytes(cookie.name.as_bytes()).is_ok();
            check(token, || format!("{FIELD}.cookie.name: {:?} is not a cookie's name", cookie.name))?;
            let place = cookie.path.as_deref().unwrap_or("/");
            check(!place.contains(';'), || format!("{FIELD}.cookie.path: {place:?} is not a path"))?;
            let place = path(&format!("{FIELD}.cookie.path"), place)?;
            let ttl = cookie.ttl.as_deref().map(|ttl| duration(&format!("{FIELD}.cookie.ttl"), ttl));
            Ok(HashSource::Cookie(cookie.name.as_str().into(), place, ttl.transpose()?))
        }
        (None, None, Some(name), false) => Ok(HashSource::Query(text(FIELD, name)?)),
        (None, None, None, true) => Ok(HashSource::Address),
        _ => Err(format!("{FIELD}: exactly one field of each entry must be set")),
    }
}

fn weight(weight: &traffic::EndpointWeight) -> Result<WeightRule, String> {
    const FIELD: &str = "loadBalancing.weights";
    let address = weight.address.as_deref().map(|address| {
        address.parse::<IpAddr>().map_err(|_| format!("{FIELD}.address: {address:?} is not an address"))
    });
    let rule = WeightRule {
        zone: weight.zone.as_deref().map(Arc::from),
        node: weight.node.as_deref().map(Arc::from),
        address: address.transpose()?,
        weight: number(&format!("{FIELD}.weight"), weight.weight, 0..=1000, 0)?,
    };
    let says = rule.zone.is_some() || rule.node.is_some() || rule.address.is_some();
    check(says, || format!("{FIELD}: one of zone, node and address must be set"))?;
    Ok(rule)
}

fn locality(locality: &traffic::Locality) -> Result<Locality, String> {
    const FIELD: &str = "loadBalancing.locality";
    at_most(&format!("{FIELD}.regions"), locality.regions.len(), MAX_REGIONS)?;
    let degrees = |name: &str, text: &str, most: f64| -> Result<f64, String> {
        let parsed = text.parse::<f64>().ok().filter(|degrees| degrees.abs() <= most);
        parsed.ok_or_else(|| format!("{FIELD}.regions.{name}: {text:?} is not between -{most} and {most}"))
    };
    let prefer = match locality.prefer.as_deref().unwrap_or("None") {
        "None" => Prefer::None,
        "Zone" => Prefer::Zone,
        "Region" => Prefer::Region,
        "Nearest" => {
            check(!locality.regions.is_empty(), || format!("{FIELD}.regions is required with prefer: Nearest"))?;
            let region = |region: &traffic::Region| {
                let latitude = degrees("latitude", &region.latitude, 90.0)?;
                Ok((text(FIELD, &region.name)?, latitude, degrees("longitude", &region.longitude, 180.0)?))
            };
            Prefer::Nearest(locality.regions.iter().map(region).collect::<Result<Vec<_>, String>>()?.into())
        }
        other => return Err(format!("{FIELD}.prefer: {other:?} is not known")),
    };
    let spillover = number(&format!("{FIELD}.spilloverPercent"), locality.spillover_percent, 1..=100, 70)?;
    Ok(Locality { prefer, spillover_percent: spillover })
}

fn health_check(spec: &traffic::HealthCheck) -> Result<HealthCheck, String> {
    let host = spec.host.as_deref().map(|host| authority("healthCheck.host", host)).transpose()?;
    at_most("healthCheck.expectedStatuses", spec.expected_statuses.len(), MAX_STATUSES)?;
    let probe = match spec.r#type.as_deref().unwrap_or("HTTP") {
        "HTTP" => Probe::Http {
            path: path("healthCheck.path", spec.path.as_deref().unwrap_or("/"))?,
            host,
            statuses: match &spec.expected_statuses[..] {
                [] => vec![(200, 399)],
                texts => texts.iter().map(|text| statuses(text)).collect::<Result<_, _>>()?,
            },
        },
        "TCP" => Probe::Tcp,
        "GRPC" => Probe::Grpc {
            service: match spec.grpc_service.as_deref().unwrap_or_default() {
                "" => "".into(),
                name => text("healthCheck.grpcService", name)?,
            },
            host,
        },
        other => return Err(format!("healthCheck.type: {other:?} is neither HTTP, TCP nor GRPC")),
    };
    let interval = positive("healthCheck.interval", spec.interval.as_deref(), Duration::from_secs(10))?;
    check(interval >= Duration::from_millis(100), || "healthCheck.interval: at least 100ms".to_owned())?;
    let port = spec.port.map(|port| match u16::try_from(port) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("healthCheck.port: {port} is not a port")),
    });
    Ok(HealthCheck {
        probe,
        port: port.transpose()?,
        interval,
        timeout: positive("healthCheck.timeout", spec.timeout.as_deref(), Duration::from_secs(1))?,
        healthy_threshold: number("healthCheck.healthyThreshold", spec.healthy_threshold, 1..=1000, 2)?,
        unhealthy_threshold: number("healthCheck.unhealthyThreshold", spec.unhealthy_threshold, 1..=1000, 3)?,
    })
}

/// `200` or `200-299`.
fn statuses(text: &str) -> Result<(u16, u16), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let status = |text: &str| text.parse::<u16>().ok().filter(|status| (100..=599).contains(status));
    match (status(first), status(last)) {
        (Some(first), Some(last)) if first <= last => Ok((first, last)),
        _ => Err(format!("healthCheck.expectedStatuses: {text:?} is not a status such as 200 or 200-299")),
    }
}

fn outlier(spec: &traffic::OutlierDetection) -> Result<Outlier, String> {
    let field = |name: &str| format!("outlierDetection.{name}");
    let base = positive(&field("baseEjectionTime"), spec.base_ejection_time.as_deref(), Duration::from_secs(30))?;
    let longest = positive(&field("maxEjectionTime"), spec.max_ejection_time.as_deref(), Duration::from_secs(300))?;
    Ok(Outlier {
        consecutive_errors: number(&field("consecutiveErrors"), spec.consecutive_errors, 0..=1_000_000, 5)?,
        failure_percent: optional(&field("failurePercent"), spec.failure_percent, 1..=100)?,
        minimum_requests: number(&field("minimumRequests"), spec.minimum_requests, 1..=1_000_000, 20)?,
        interval: positive(&field("interval"), spec.interval.as_deref(), Duration::from_secs(10))?,
        base_ejection: base,
        max_ejection: longest.max(base),
        max_ejected_percent: number(&field("maxEjectedPercent"), spec.max_ejected_percent, 0..=100, 50)?,
        panic_percent: number(&field("panicPercent"), spec.panic_percent, 0..=100, 0)?,
    })
}

fn queue(spec: &traffic::Queue) -> Result<Queue, String> {
    at_most("queue.classes", spec.classes.len(), MAX_CLASSES)?;
    let class = |class: &traffic::QueueClass| {
        let header = class.header.as_ref().map(|wanted| {
            Ok::<_, String>((
                header("queue.classes.header", &wanted.name)?,
                text("queue.classes.header", &wanted.value)?,
            ))
        });
        let prefix = class.path_prefix.as_deref().map(|prefix| path("queue.classes.pathPrefix", prefix));
        Ok(QueueClass {
            name: text("queue.classes.name", &class.name)?,
            header: header.transpose()?,
            path_prefix: prefix.transpose()?,
        })
    };
    Ok(Queue {
        max_depth: number("queue.maxDepth", spec.max_depth, 1..=100_000, 100)?,
        timeout: positive("queue.timeout", spec.timeout.as_deref(), Duration::from_secs(1))?,
        classes: spec.classes.iter().map(class).collect::<Result<_, String>>()?,
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parsed(spec: Value) -> Result<Parsed, String> {
        let spec: TrafficPolicySpec = serde_json::from_value(spec).expect("a policy");
        parse(&ServiceKey::new("d", "p"), &spec)
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn documented_defaults_are_filled_in() {
        let parsed = parsed(json!({
            "loadBalancing": {"locality": {}, "slowStart": {"window": "30s"}}, "healthCheck": {}, "outlierDetection": {}, "retries": {},
            "hedging": {"delay": "20ms"}, "queue": {}, "rateLimits": [{"requests": 10}], "proxyProtocol": {"send": "V2"},
        }))
        .expect("valid");
        let (request, service) = (parsed.request, parsed.service);
        let balancing = service.balancing.expect("balancing");
        assert_eq!(balancing.locality, Some(Locality::default()));
        assert_eq!(balancing.slow_start, Some((seconds(30), 10)));
        assert_eq!(
            service.health_check,
            Some(HealthCheck {
                probe: Probe::Http { path: "/".into(), host: None, statuses: vec![(200, 399)] },
                port: None,
                interval: seconds(10),
                timeout: seconds(1),
                healthy_threshold: 2,
                unhealthy_threshold: 3,
            })
        );
        assert_eq!(
            service.outlier,
            Some(Outlier {
                consecutive_errors: 5,
                failure_percent: None,
                minimum_requests: 20,
                interval: seconds(10),
                base_ejection: seconds(30),
                max_ejection: seconds(300),
                max_ejected_percent: 50,
                panic_percent: 0,
            })
        );
        assert_eq!(service.queue, Some(Queue { max_depth: 100, timeout: seconds(1), classes: vec![] }));
        assert_eq!(service.send_proxy, Some(2));
        assert_eq!(request.retries, Some(default_retries()));
        assert_eq!(request.hedging, Some((Duration::from_millis(20), 1)));
        let limit = &request.rate_limits.expect("limits")[0];
        assert_eq!((limit.requests, limit.burst, limit.interval, &limit.per), (10, 10, seconds(1), &RatePer::Target));
        assert_eq!(&*limit.id, "d/p/0");
        assert_eq!(
            parsed.endpoint_fields,
            ["loadBalancing", "healthCheck", "outlierDetection", "queue", "proxyProtocol.send"]
        );
    }

    #[test]
    fn fields_are_taken_over() {
        let parsed = parsed(json!({
            "loadBalancing": {"algorithm": "Maglev", "boundedLoadPercent": 125,
                "hashOn": [{"header": "X-User"}, {"cookie": {"name": "c", "ttl": "1h"}}, {"queryParam": "q"}, {"sourceIp": true}],
                "weights": [{"zone": "z", "weight": 5}, {"address": "10.0.0.1", "weight": 0}],
                "locality": {"prefer": "Nearest", "regions": [{"name": "eu", "latitude": "50.11", "longitude": "8.68"}]}},
            "healthCheck": {"type": "GRPC", "grpcService": "s", "host": "H:1", "port": 9},
            "retries": {"attempts": 3, "retryOn": ["GatewayError", "Timeout"], "statuses": [429, 503], "perTryTimeout": "2s", "backoff": "0s"},
            "timeouts": {"request": "0s", "responseHeader": "9s", "idle": "1m", "connect": "3s"},
            "circuitBreaker": {"maxRequests": 1, "maxPerEndpoint": 2}, "accessLog": {"samplePercent": 5},
            "queue": {"classes": [{"name": "gold", "header": {"name": "X-Tier", "value": "gold"}, "pathPrefix": "/a"}]},
            "rateLimits": [{"name": "n", "per": "Header", "header": "X-Key", "requests": 5, "interval": "1m", "burst": 9, "shared": true}],
        }))
        .expect("valid");
        let (request, service) = (parsed.request, parsed.service);
        let balancing = service.balancing.expect("balancing");
        assert_eq!(balancing.algorithm, Some(Algorithm::Maglev));
        assert_eq!(
            balancing.hash_on,
            [
                HashSource::Header("x-user".into()),
                HashSource::Cookie("c".into(), "/".into(), Some(seconds(3600))),
                HashSource::Query("q".into()),
                HashSource::Address
            ]
        );
        assert_eq!(balancing.weights.iter().map(|rule| rule.weight).collect::<Vec<_>>(), [5, 0]);
        let regions = Prefer::Nearest([("eu".into(), 50.11, 8.68)].into());
        assert_eq!(balancing.locality.expect("locality").prefer, regions);
        assert_eq!(
            service.health_check.expect("a check").probe,
            Probe::Grpc { service: "s".into(), host: Some("h:1".into()) }
        );
        let retries = request.retries.expect("retries");
        assert_eq!((retries.attempts, retries.on_reset, retries.on_timeout, retries.backoff), (3, false, true, None));
        assert_eq!(retries.statuses, [429, 502, 503, 504]);
        assert_eq!(request.request_timeout, Some(None));
        assert_eq!(request.response_timeout, Some(Some(seconds(2))));
        assert_eq!(request.idle_timeout, Some(Some(seconds(60))));
        assert_eq!(service.connect_timeout, Some(Some(seconds(3))));
        assert_eq!(service.limits.expect("limits").per_endpoint, Some(2));
        assert_eq!(request.rate_limits.expect("limits")[0].per, RatePer::Header("x-key".into()));
        assert_eq!(request.access_log_percent, Some(5.0));
    }

    #[test]
    fn what_is_not_valid_is_refused_by_name() {
        for (spec, field) in [
            (json!({"loadBalancing": {"algorithm": "Best"}}), "loadBalancing.algorithm"),
            (json!({"loadBalancing": {"hashOn": [{"header": "a\r\nb"}]}}), "loadBalancing.hashOn"),
            (json!({"loadBalancing": {"hashOn": [{"header": "a", "sourceIp": true}]}}), "exactly one"),
            (json!({"loadBalancing": {"hashOn": [{"cookie": {"name": "a", "path": "/; Secure"}}]}}), "cookie.path"),
            (json!({"loadBalancing": {"boundedLoadPercent": 99}}), "boundedLoadPercent"),
            (json!({"loadBalancing": {"weights": [{"zone": "z", "weight": 1001}]}}), "weight"),
            (json!({"loadBalancing": {"weights": [{"weight": 1}]}}), "one of zone"),
            (json!({"loadBalancing": {"slowStart": {"window": "16m"}}}), "slowStart"),
            (json!({"loadBalancing": {"locality": {"prefer": "Nearest"}}}), "regions"),
            (
                json!({"loadBalancing": {"locality": {"prefer": "Nearest", "regions": [{"name": "a", "latitude": "NaN", "longitude": "0"}]}}}),
                "latitude",
            ),
            (json!({"healthCheck": {"path": "x"}}), "healthCheck.path"),
            (json!({"healthCheck": {"path": "/a HTTP/1.1\r\nx: y"}}), "healthCheck.path"),
            (json!({"healthCheck": {"host": "a\r\nb"}}), "healthCheck.host"),
            (json!({"healthCheck": {"expectedStatuses": ["2xx"]}}), "expectedStatuses"),
            (json!({"healthCheck": {"interval": "10ms"}}), "healthCheck.interval"),
            (json!({"healthCheck": {"port": 0}}), "healthCheck.port"),
            (json!({"outlierDetection": {"failurePercent": 0}}), "failurePercent"),
            (json!({"retries": {"attempts": 11}}), "retries.attempts"),
            (json!({"retries": {"retryOn": ["Everything"]}}), "retries.retryOn"),
            (json!({"retries": {"statuses": [200]}}), "retries.statuses"),
            (json!({"hedging": {}}), "hedging.delay"),
            (json!({"circuitBreaker": {"maxRequests": 0}}), "maxRequests"),
            (json!({"queue": {"timeout": "0s"}}), "queue.timeout"),
            (json!({"queue": {"classes": [{"name": "a\n"}]}}), "queue.classes.name"),
            (json!({"rateLimits": [{"requests": 0}]}), "rateLimits[0].requests"),
            (json!({"rateLimits": [{"requests": 1, "per": "Header"}]}), "rateLimits[0].header"),
            (json!({"timeouts": {"idle": "1 s"}}), "timeouts.idle"),
            (json!({"limits": {"maxRequestBodyBytes": -1}}), "maxRequestBodyBytes"),
            (json!({"proxyProtocol": {"accept": true}}), "trustedSources"),
            (json!({"proxyProtocol": {"accept": true, "trustedSources": ["10.0.0.0/33"]}}), "trustedSources"),
            (json!({"proxyProtocol": {"send": "V3"}}), "proxyProtocol.send"),
            (json!({"upstreamTls": {"hostname": "a b"}}), "upstreamTls.hostname"),
            (json!({"accessLog": {"samplePercent": 101}}), "accessLog"),
        ] {
            let refused = parsed(spec.clone()).expect_err("refused");
            assert!(refused.contains(field), "{spec}: {refused}");
        }
    }
}
