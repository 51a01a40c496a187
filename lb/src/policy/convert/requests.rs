//! What a policy says about requests: retries, hedging, rate limits, time.

use std::time::Duration;

use scaleup_api::traffic::{self, TrafficPolicySpec};

use super::super::parts::RequestPart;
use super::super::{RateLimit, RatePer, Retries};
use super::values::{MAX_STATUSES, at_most, duration, header, limit, number, optional, positive, text};

/// Entries of lists (the API's limits, or where it has none, ours).
const MAX_RATE_LIMITS: usize = 16;

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

pub(super) fn request(source: &str, spec: &TrafficPolicySpec, part: &mut RequestPart) -> Result<(), String> {
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
