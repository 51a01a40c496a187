//! Requests that are answered here: no route matches them, a filter answers them, or they are refused. Counted for their rule, or for the
//! listener if there is none, and told about like those that endpoints answer.

use std::time::Instant;

use http::StatusCode;

use super::site::Target;
use super::story::Story;
use super::worker::Worker;
use crate::access::{Decision, Description, Flags, Wire};
use crate::observe::Observers;
use crate::route::{Head, Rule};
use crate::stats::add;
use crate::trace::Context;

/// A request whose answer is known. Allocates only if it is told about.
pub(crate) struct Seen {
    started: Instant,
    told: Option<Box<Told>>,
}

struct Told {
    request: Description,
    context: Option<Context>,
    logged: bool,
}

impl Seen {
    /// Notes a request that `rule` (if there is one) answers with `status`, while its head is there.
    pub fn new(observers: &Observers, rule: Option<&Rule>, status: StatusCode, head: &impl Head, wire: Wire) -> Self {
        let policy = rule.and_then(|rule| rule.policy.access_log_percent);
        let decision = observers.access.as_ref().map_or(Decision::Never, |sink| sink.decide(policy));
        let logged = decision.covers(status.as_u16());
        let context = observers.tracer.as_ref().map(|tracer| tracer.accept_head(head));
        let wanted = logged || context.as_ref().is_some_and(|context| context.sampled);
        let told = wanted.then(|| Box::new(Told { request: Description::of(head, wire), context, logged }));
        Self { started: Instant::now(), told }
    }

    /// It was answered like this, with so many payload bytes, on a connection to `target`.
    pub fn answered(self, worker: &Worker, target: &Target, rule: Option<&Rule>, status: StatusCode, bytes_out: u64) {
        let (duration, code) = (self.started.elapsed(), status.as_u16());
        match rule {
            Some(rule) => {
                let shard = rule.stats.shard(worker.index);
                shard.record(code, duration);
                add(&shard.bytes_out, bytes_out);
            }
            None => target.load().stats.shard(worker.index).answered(code),
        }
        let Some(told) = self.told else { return };
        let story = Story {
            request: told.request,
            logged: told.logged,
            context: told.context,
            rule,
            service: None,
            upstream: None,
            pod: None,
            attempts: 0,
            spans: Vec::new(),
            verdict: None,
            status: Some(code),
            bytes_in: 0,
            bytes_out,
            duration,
            flags: flags(rule.is_some(), code),
        };
        story.tell(&worker.observers);
    }
}

/// Why a request is answered here with this status.
fn flags(routed: bool, code: u16) -> Flags {
    match (routed, code) {
        (false, 404) => Flags::NO_ROUTE,
        (_, 400..=499) => Flags::BAD_REQUEST,
        (_, 500..) => Flags::NO_ENDPOINT,
        _ => Flags::default(),
    }
}
