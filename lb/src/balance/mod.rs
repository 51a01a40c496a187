//! Decisions about single requests and connections: may it go now, to which endpoint, and what does its outcome say?
//!
//! Policies ([`crate::policy`]) are the rules, endpoints ([`crate::backend`]) the state. Nothing here does I/O but waiting in a
//! queue and asking the shared rate limiter.
//!
//! | question | answered in |
//! |---|---|
//! | which endpoint | [`choose`], prepared by [`table`] ([`turns`], [`hashing`], [`locality`], [`geo`]), from [`latency`] and [`availability`] |
//! | is an endpoint well | [`outlier`], and [`crate::health`] for checks of our own |
//! | may a request go now | [`rate`] ([`gcra`], [`shared`]), then [`state`] ([`queue`]) |
//! | may it be sent again | [`may_retry`], [`budget`] |
//! | what is hashed | [`affinity`] |
//! | whose session is it | [`session`], by [`token`]s in [`cookies`] or headers |

pub(crate) mod affinity;
pub(crate) mod availability;
pub(crate) mod budget;
pub(crate) mod choose;
pub(crate) mod clock;
mod cookies;
mod gcra;
pub(crate) mod geo;
pub(crate) mod hashing;
pub(crate) mod latency;
mod locality;
pub(crate) mod outlier;
mod queue;
pub(crate) mod rate;
pub(crate) mod session;
pub(crate) mod shared;
pub(crate) mod state;
pub(crate) mod table;
mod token;
mod turns;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::policy::{InFlightLimits, QueueClass, RequestPolicy};
use crate::route::{Head, Rule};
use budget::Budget;
use rate::Limiter;
use state::Kind;
pub(crate) use state::Permit;

/// What a client is told to wait at least before it comes back.
const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);

/// What choosing an endpoint may depend on, beside the endpoints.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice {
    /// The client's address.
    pub client: IpAddr,
    /// Hash of what the policy hashes on; `None`: the client's address.
    pub hash: Option<u64>,
    /// Index of the endpoint that the client's session is with.
    pub pinned: Option<u32>,
    /// Proxy thread.
    pub thread: usize,
    /// When the request came; read once, for all decisions about it.
    pub now: Instant,
}

impl Choice {
    /// For a connection that has just come, of which only the client is known.
    pub fn of_client(client: IpAddr, thread: usize) -> Self {
        Self { client, hash: None, pinned: None, thread, now: Instant::now() }
    }
}

/// How an attempt at an endpoint ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A response head with this status came after this time.
    Status(u16, Duration),
    /// A TCP connection was established (L4 only).
    Connected(Duration),
    /// No connection.
    ConnectFailed,
    /// The connection broke before a response.
    Reset,
    /// No response in time.
    TimedOut,
}

/// Why a request is not let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// 429: no token for another `retry_after`.
    RateLimited { limit: Arc<str>, retry_after: Duration },
    /// 503: too much is in flight and the queue (if any) is full, or waiting took too long.
    Overloaded { retry_after: Duration },
}

impl Refusal {
    /// Status, and the value of `Retry-After`: whole seconds, at least one (RFC 9110 §10.2.3).
    pub fn answer(&self) -> (u16, u64) {
        let (status, wait) = match self {
            Self::RateLimited { retry_after, .. } => (429, retry_after),
            Self::Overloaded { retry_after } => (503, retry_after),
        };
        (status, wait.as_secs() + u64::from(wait.subsec_nanos() > 0).max(u64::from(wait.as_secs() == 0)))
    }
}

/// What a rule's policy counts. Made when the rule is compiled; what it refers to outlives the rule.
#[derive(Debug, Default)]
pub(crate) struct Control {
    limiters: Box<[Arc<Limiter>]>,
    budget: Option<Arc<Budget>>,
}

impl Control {
    pub fn new(limiters: Box<[Arc<Limiter>]>, budget: Option<Arc<Budget>>) -> Self {
        Self { limiters, budget }
    }

    /// With counters of its own, for a rule that nobody registers.
    pub fn alone(policy: &RequestPolicy) -> Self {
        let limiter = |rule: &crate::policy::RateLimit| Arc::new(Limiter::new(rule.clone(), Arc::default()));
        let budget = policy.retries.budget_percent.map(|_| Arc::default());
        Self::new(policy.rate_limits.iter().map(limiter).collect(), budget)
    }

    /// For metrics.
    #[expect(dead_code, reason = "for metrics")]
    pub fn limiters(&self) -> &[Arc<Limiter>] {
        &self.limiters
    }

    /// Whether requests need not ask.
    fn is_idle(&self) -> bool {
        self.limiters.is_empty() && self.budget.is_none()
    }
}

/// Asks for leave to send a request of `rule` to `backend`, waiting in its queue if it has one.
pub(crate) async fn enter(rule: &Rule, backend: &Arc<Backend>, head: &impl Head) -> Result<Permit, Refusal> {
    if rule.control.is_idle() && !limits_requests(&backend.policy.limits) {
        return Ok(Permit::default());
    }
    for (at, limiter) in rule.control.limiters.iter().enumerate() {
        if let Err(refusal) = limiter.check(head).await {
            // One that is refused has cost nobody a token.
            rule.control.limiters[..at].iter().for_each(|passed| passed.give_back(head));
            return Err(refusal);
        }
    }
    if let Some(budget) = &rule.control.budget {
        budget.request(clock::ms(Instant::now()));
    }
    let limits = &backend.policy.limits;
    let Some(limit) = most(limits.requests, limits.per_endpoint, backend) else {
        return Ok(backend.state.free_permit());
    };
    if let Some(permit) = backend.state.try_enter(Kind::Requests, limit) {
        return Ok(permit);
    }
    let mut retry_after = MIN_RETRY_AFTER;
    if let Some(queue) = &backend.policy.queue {
        let class = class(&queue.classes, head);
        if let Some(permit) = backend.state.wait(limit, class, queue.max_depth, queue.timeout).await {
            return Ok(permit);
        }
        retry_after = retry_after.max(queue.timeout);
    }
    backend.state.totals.refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    Err(Refusal::Overloaded { retry_after })
}

/// Likewise for an L4 connection; never waits.
pub(crate) fn enter_connection(backend: &Arc<Backend>) -> Result<Permit, Refusal> {
    let limits = &backend.policy.limits;
    let Some(limit) = most(limits.connections, limits.per_endpoint, backend) else { return Ok(Permit::default()) };
    backend.state.try_enter(Kind::Connections, limit).ok_or_else(|| {
        backend.state.totals.refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Refusal::Overloaded { retry_after: MIN_RETRY_AFTER }
    })
}

fn limits_requests(limits: &InFlightLimits) -> bool {
    limits.requests.is_some() || limits.per_endpoint.is_some() || limits.retries.is_some()
}

/// How much may be in flight: the limit for all, and what endpoints that are well may have together.
fn most(all: Option<u32>, per_endpoint: Option<u32>, backend: &Backend) -> Option<u32> {
    let endpoints = u32::try_from(backend.endpoints.len()).unwrap_or(u32::MAX);
    let well = endpoints.saturating_sub(backend.availability.down()).max(1);
    let together = per_endpoint.map(|most| most.saturating_mul(well));
    match (all, together) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The first class that matches; the last one, without name, otherwise.
fn class(classes: &[QueueClass], head: &impl Head) -> usize {
    let matches = |class: &QueueClass| {
        class.header.as_ref().is_none_or(|(name, value)| head.header(name).is_some_and(|got| *got == **value))
            && class.path_prefix.as_ref().is_none_or(|prefix| head.path().starts_with(&**prefix))
    };
    classes.iter().take(queue::MAX_CLASSES - 1).position(matches).unwrap_or(queue::MAX_CLASSES - 1)
}

/// Whether one more attempt may be made for a request of `rule` after `outcome`; takes it from the retry budget. Where retries in
/// flight are limited [`Permit::begin_retry`] has the last word.
pub(crate) fn may_retry(rule: &Rule, outcome: Outcome, idempotent: bool, attempt: u32) -> bool {
    let retries = &rule.policy.retries;
    attempt < retries.attempts
        && match outcome {
            Outcome::Status(status, _) => {
                retries.statuses.binary_search(&status).is_ok() && (idempotent || retries.non_idempotent)
            }
            Outcome::Connected(_) => false,
            Outcome::ConnectFailed => retries.on_connect_failure,
            Outcome::Reset => retries.on_reset && (idempotent || retries.non_idempotent),
            Outcome::TimedOut => retries.on_timeout && (idempotent || retries.non_idempotent),
        }
        && spend(rule)
}

/// Whether a slow request may get another rival, of which it has `rivals` already; takes it from the retry budget.
pub(crate) fn may_hedge(rule: &Rule, rivals: u32) -> bool {
    rule.policy.hedging.is_some_and(|(_, most)| rivals < most) && spend(rule)
}

fn spend(rule: &Rule) -> bool {
    let retries = &rule.policy.retries;
    match (&rule.control.budget, retries.budget_percent) {
        (Some(budget), Some(percent)) => budget.retry(percent, retries.min_per_second, clock::ms(Instant::now())),
        _ => true,
    }
}

#[cfg(test)]
pub(crate) mod tests;
