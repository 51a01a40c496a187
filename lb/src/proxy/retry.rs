//! Which endpoint a request goes to next, and whether it goes to another one: the same whatever version of HTTP its client speaks. Sends
//! nothing itself.
//!
//! What may be sent again: a request of which nothing was sent; an idempotent one without body that met a pooled connection just as
//! it was closed (that is no fault of the endpoint, so it counts as no retry); and what the rule's policy allows, if nothing of a response
//! was passed on and nothing of a body was taken from the client. Nothing else is ever sent twice.

use std::sync::Arc;
use std::time::Duration;

use super::attempt::{Failure, connector_id};
use super::record::Record;
use crate::backend::{EndpointState, Tried};
use crate::balance::{self, Choice, Outcome, Permit};
use crate::plugin::Refused;
use crate::route::Rule;
use crate::stats::add;

/// Attempts per request, stale pooled connections included.
const MAX_ATTEMPTS: u32 = 16;
/// Longest pause before a retry.
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// How an attempt ended of which nothing was passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Without a connection.
    NotConnected(Failure),
    /// The endpoint saw nothing of the request.
    Unsent,
    /// The connection broke before a response.
    Broken,
    /// No response came in time.
    TimedOut,
    /// The policy wants a retry after this status, and has paid for it.
    Status(u16),
    /// What came is not HTTP.
    Malformed,
}

/// Number and state of an endpoint, if there is one to ask.
type Next<'a> = Result<Option<(usize, &'a Arc<EndpointState>)>, Box<Refused>>;

/// The attempts of one request.
pub(super) struct Attempts<'a> {
    record: &'a Record,
    permit: &'a Permit,
    choice: &'a Choice,
    idempotent: bool,
    tried: Tried,
    made: u32,
    /// Those after the first that the policy counts.
    pub retries: u32,
    /// Why the last one failed.
    pub failure: Failure,
}

impl<'a> Attempts<'a> {
    pub fn new(record: &'a Record, permit: &'a Permit, choice: &'a Choice, idempotent: bool) -> Self {
        let (tried, failure) = (Tried::default(), Failure::NoEndpoints);
        Self { record, permit, choice, idempotent, tried, made: 0, retries: 0, failure }
    }

    /// The endpoint for the next attempt; an error if a plugin refuses the request.
    pub fn next(&mut self) -> Next<'a> {
        if self.made == MAX_ATTEMPTS {
            return Ok(None);
        }
        let Some(found) = self.choose()? else { return Ok(None) };
        if self.made > 0 {
            add(&self.record.backend.stats.shard(self.record.worker.index).retries, 1);
        }
        self.made += 1;
        Ok(Some(found))
    }

    /// It is the first attempt, or none was made yet.
    pub fn is_first(&self) -> bool {
        self.made <= 1
    }

    /// Once all were tried, those that did answer, or that a pause gave time, may be asked again.
    fn choose(&mut self) -> Next<'a> {
        let record = self.record;
        if let Some(found) = record.choose(self.choice, self.tried)? {
            return Ok(Some(found));
        }
        let answered = matches!(self.failure, Failure::Status(_) | Failure::ResponseTimeout);
        let paused = record.rule.policy.retries.backoff.is_some() && self.failure != Failure::NoEndpoints;
        if !answered && !paused {
            return Ok(None);
        }
        self.tried = Tried::default();
        record.choose(self.choice, self.tried)
    }

    /// The attempt at an endpoint ended like this, on a connection that may have been `pooled`. Whether there is to be another one, now:
    /// the pause that the policy wants is over. `repeatable`: the whole request can still be sent.
    pub async fn again(
        &mut self,
        (index, endpoint): (usize, &EndpointState),
        ended: Ended,
        pooled: bool,
        repeatable: bool,
    ) -> bool {
        let Record { worker, backend, rule, .. } = self.record;
        let unseen = matches!(ended, Ended::NotConnected(_) | Ended::Unsent);
        let outcome = match ended {
            Ended::NotConnected(_) => Outcome::ConnectFailed,
            Ended::TimedOut => Outcome::TimedOut,
            Ended::Unsent | Ended::Broken | Ended::Malformed | Ended::Status(_) => Outcome::Reset,
        };
        self.failure = match ended {
            Ended::NotConnected(failure) => failure,
            Ended::Unsent | Ended::Broken => Failure::Broken,
            Ended::TimedOut => Failure::ResponseTimeout,
            Ended::Status(code) => Failure::Status(code),
            Ended::Malformed => Failure::Malformed,
        };
        if pooled && matches!(ended, Ended::Unsent | Ended::Broken) {
            // It was closed while idle, and so perhaps were the others; the endpoint itself may be well.
            self.record.pool().borrow_mut().forget(endpoint, connector_id(worker, backend));
            if repeatable && (unseen || self.idempotent) {
                return true;
            }
        } else {
            self.tried.insert(index);
        }
        let allowed = match ended {
            Ended::Status(_) => repeatable,
            // Connecting reports itself.
            Ended::NotConnected(_) => repeatable && self.may_retry(outcome, true),
            Ended::Unsent | Ended::Broken | Ended::TimedOut => {
                self.record.report(outcome);
                repeatable && self.may_retry(outcome, unseen || self.idempotent)
            }
            Ended::Malformed => {
                self.record.report(outcome);
                false
            }
        };
        if allowed {
            self.retries += 1;
            pause(rule, self.retries).await;
        }
        allowed
    }

    fn may_retry(&self, outcome: Outcome, idempotent: bool) -> bool {
        let Record { backend, rule, .. } = self.record;
        balance::may_retry(rule, outcome, idempotent, self.retries)
            && self.permit.begin_retry(backend.policy.limits.retries)
    }
}

/// Waits before retry number `retry` (from 1): twice as long each time, at random from half of it, so that clients that failed together
/// do not come back together.
async fn pause(rule: &Rule, retry: u32) {
    let Some(first) = rule.policy.retries.backoff else { return };
    let full = first.saturating_mul(1 << retry.saturating_sub(1).min(16)).min(MAX_BACKOFF);
    tokio::time::sleep(full.mul_f64(rand::random_range(0.5..=1.0))).await;
}
