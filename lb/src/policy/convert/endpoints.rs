//! What a policy says about a Service's endpoints: how they are chosen, checked, ejected, and what is in flight to them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use scaleup_api::traffic::{self, TrafficPolicySpec};

use super::super::parts::{Balancing, ServicePart, WeightRule};
use super::super::{
    Algorithm, HashSource, HealthCheck, InFlightLimits, Locality, Outlier, Prefer, Probe, Queue, QueueClass,
};
use super::values::{
    MAX_STATUSES, at_most, authority, check, duration, header, number, optional, path, positive, text,
};

/// Entries of lists (the API's limits, or where it has none, ours).
const MAX_CLASSES: usize = 8;
const MAX_HASH_SOURCES: usize = 8;
const MAX_WEIGHTS: usize = 64;
const MAX_REGIONS: usize = 64;

pub(super) fn service(spec: &TrafficPolicySpec, part: &mut ServicePart) -> Result<(), String> {
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
