//! Health checks, outlier detection, retries, queues and rate limits.

use std::time::Duration;

use scaleup_api::names;
use scaleup_api::traffic::{HealthCheck, OutlierDetection, Queue, QueueClass, RateLimit, Retries};

use super::super::custom::{count, duration, range};
use super::super::field::{self, Errors, Path};
use super::super::gateway::text;
use super::{MAX_COUNT, MAX_NAME, time};
use crate::error::FieldError;

const MAX_PATH: usize = 1024;
const MAX_STATUSES: usize = 32;
const MAX_CLASSES: usize = 8;
const MAX_RATE_LIMITS: usize = 16;
const MAX_TOKENS: i64 = 10_000_000;
const MAX_QUEUE: i64 = 100_000;
const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// Smallest duration that is not nothing.
const SOME: Duration = Duration::from_millis(1);
const RETRY_ON: &[&str] = &["5xx", "ConnectFailure", "GatewayError", "NonIdempotent", "Reset", "Timeout"];

pub fn health_check(errors: &mut Errors, at: &Path<'_>, check: &HealthCheck) {
    field::optional_one_of(errors, &at.child("type"), &check.r#type, &["GRPC", "HTTP", "TCP"]);
    let kind = check.r#type.as_deref().unwrap_or("HTTP");
    for (member, set, kinds) in [
        ("path", check.path.is_some(), &["HTTP"][..]),
        ("expectedStatuses", !check.expected_statuses.is_empty(), &["HTTP"]),
        ("host", check.host.is_some(), &["HTTP", "GRPC"]),
        ("grpcService", check.grpc_service.is_some(), &["GRPC"]),
    ] {
        if set && !kinds.contains(&kind) {
            let why = format!("may only be specified when `type` is {}", kinds.join(" or "));
            errors.push(FieldError::forbidden(at.child(member), why));
        }
    }
    text::optional(errors, &at.child("path"), &check.path, MAX_PATH, request_target);
    text::optional(errors, &at.child("host"), &check.host, MAX_NAME, authority);
    range(errors, &at.child("port"), check.port, 1, 65535);
    if let Some(service) = check.grpc_service.as_ref().filter(|s| !s.is_empty()) {
        text::required(errors, &at.child("grpcService"), service, MAX_PATH, text::grpc_service);
    }
    let list = at.child("expectedStatuses");
    if !count(errors, &list, check.expected_statuses.len(), 0, MAX_STATUSES) {
        for (i, status) in check.expected_statuses.iter().enumerate() {
            field::format(errors, &list.index(i), status, statuses);
        }
    }
    time(errors, &at.child("interval"), &check.interval, MIN_CHECK_INTERVAL, None);
    time(errors, &at.child("timeout"), &check.timeout, SOME, None);
    range(errors, &at.child("healthyThreshold"), check.healthy_threshold, 1, MAX_COUNT);
    range(errors, &at.child("unhealthyThreshold"), check.unhealthy_threshold, 1, MAX_COUNT);
}

/// A path, perhaps with a query, as it stands in a request's first line.
fn request_target(target: &str) -> Result<(), String> {
    if target.starts_with('/') && target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        Ok(())
    } else {
        Err("must be an absolute path without spaces (e.g. '/healthz')".into())
    }
}

/// A host name or IPv4 address, perhaps with a port.
fn authority(value: &str) -> Result<(), String> {
    let (host, port) = value.rsplit_once(':').map_or((value, None), |(host, port)| (host, Some(port)));
    names::dns1123_subdomain(host)?;
    match port {
        Some(port) if port.parse::<u16>().is_ok_and(|p| p > 0) && !port.starts_with('+') => Ok(()),
        Some(_) => Err("must end with a port between 1 and 65535, or have none".into()),
        None => Ok(()),
    }
}

/// `200` or `200-299`.
fn statuses(value: &str) -> Result<(), String> {
    let number = |s: &str| {
        let parsed = s.parse::<u16>().ok().filter(|_| s.len() == 3 && s.bytes().all(|b| b.is_ascii_digit()));
        parsed.filter(|n| (100..=599).contains(n))
    };
    let good = match value.split_once('-') {
        Some((first, last)) => number(first).zip(number(last)).is_some_and(|(first, last)| first <= last),
        None => number(value).is_some(),
    };
    if good { Ok(()) } else { Err("must be a status between 100 and 599 or a range (e.g. '200-299')".into()) }
}

pub fn outlier_detection(errors: &mut Errors, at: &Path<'_>, outlier: &OutlierDetection) {
    range(errors, &at.child("consecutiveErrors"), outlier.consecutive_errors, 0, MAX_COUNT);
    range(errors, &at.child("failurePercent"), outlier.failure_percent, 1, 100);
    range(errors, &at.child("minimumRequests"), outlier.minimum_requests, 1, MAX_COUNT);
    time(errors, &at.child("interval"), &outlier.interval, SOME, None);
    let base = time(errors, &at.child("baseEjectionTime"), &outlier.base_ejection_time, SOME, None);
    let max = time(errors, &at.child("maxEjectionTime"), &outlier.max_ejection_time, SOME, None);
    if let (Some(base), Some(max)) = (base, max)
        && base > max
    {
        let why = "must not be shorter than baseEjectionTime";
        errors.push(FieldError::invalid(at.child("maxEjectionTime"), field::text(&outlier.max_ejection_time), why));
    }
    range(errors, &at.child("maxEjectedPercent"), outlier.max_ejected_percent, 0, 100);
    range(errors, &at.child("panicPercent"), outlier.panic_percent, 0, 100);
}

pub fn retries(errors: &mut Errors, at: &Path<'_>, retries: &Retries) {
    range(errors, &at.child("attempts"), retries.attempts, 0, 10);
    let list = at.child("retryOn");
    if !count(errors, &list, retries.retry_on.len(), 0, RETRY_ON.len()) {
        for (i, on) in retries.retry_on.iter().enumerate() {
            field::one_of(errors, &list.index(i), on, RETRY_ON);
            if retries.retry_on[..i].contains(on) {
                errors.push(FieldError::duplicate(list.index(i), on.as_str()));
            }
        }
    }
    let list = at.child("statuses");
    if !count(errors, &list, retries.statuses.len(), 0, MAX_STATUSES) {
        retries.statuses.iter().enumerate().for_each(|(i, s)| range(errors, &list.index(i), Some(*s), 400, 599));
    }
    time(errors, &at.child("perTryTimeout"), &retries.per_try_timeout, SOME, None);
    duration(errors, &at.child("backoff"), retries.backoff.as_deref());
    range(errors, &at.child("budgetPercent"), retries.budget_percent, 0, 100);
    range(errors, &at.child("minPerSecond"), retries.min_per_second, 0, MAX_COUNT);
}

pub fn queue(errors: &mut Errors, at: &Path<'_>, queue: &Queue) {
    range(errors, &at.child("maxDepth"), queue.max_depth, 1, MAX_QUEUE);
    time(errors, &at.child("timeout"), &queue.timeout, SOME, None);
    let list = at.child("classes");
    if count(errors, &list, queue.classes.len(), 0, MAX_CLASSES) {
        return;
    }
    for (i, QueueClass { name, header, path_prefix }) in queue.classes.iter().enumerate() {
        let at = list.index(i);
        field::required_format(errors, &at.child("name"), name, names::dns1123_label);
        if queue.classes[..i].iter().any(|other| other.name == *name) {
            errors.push(FieldError::duplicate(at.child("name"), name.as_str()));
        }
        if header.is_none() && path_prefix.is_none() {
            errors.push(FieldError::required(at, "at least one of header and pathPrefix"));
        }
        if let Some(header) = header {
            let at = at.child("header");
            text::required(errors, &at.child("name"), &header.name, text::MAX_HEADER_NAME, text::token);
            text::required(errors, &at.child("value"), &header.value, text::MAX_HEADER_VALUE, text::header_value);
        }
        text::optional(errors, &at.child("pathPrefix"), path_prefix, MAX_PATH, text::path);
    }
}

pub fn rate_limits(errors: &mut Errors, at: &Path<'_>, limits: &[RateLimit]) {
    if count(errors, at, limits.len(), 0, MAX_RATE_LIMITS) {
        return;
    }
    for (i, limit) in limits.iter().enumerate() {
        let item = at.index(i);
        text::optional(errors, &item.child("name"), &limit.name, MAX_NAME, names::dns1123_label);
        if limit.name.is_some() && limits[..i].iter().any(|other| other.name == limit.name) {
            errors.push(FieldError::duplicate(item.child("name"), field::text(&limit.name)));
        }
        field::optional_one_of(errors, &item.child("per"), &limit.per, &["ClientIP", "Header", "Target"]);
        text::optional(errors, &item.child("header"), &limit.header, text::MAX_HEADER_NAME, text::token);
        match (limit.per.as_deref() == Some("Header"), &limit.header) {
            (true, None) => {
                errors.push(FieldError::required(item.child("header"), "must be specified when `per` is 'Header'"));
            }
            (false, Some(_)) => {
                let why = "may only be specified when `per` is 'Header'";
                errors.push(FieldError::forbidden(item.child("header"), why));
            }
            _ => {}
        }
        range(errors, &item.child("requests"), Some(limit.requests), 1, MAX_TOKENS);
        time(errors, &item.child("interval"), &limit.interval, SOME, None);
        range(errors, &item.child("burst"), limit.burst, 1, MAX_TOKENS);
    }
}
