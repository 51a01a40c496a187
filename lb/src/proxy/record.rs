//! One request from its arrival to the last byte of its response. Counted once, whatever ended it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::worker::Worker;
use crate::backend::{Backend, EndpointState};
use crate::balance::Outcome;
use crate::route::Rule;
use crate::stats::{CODE_CLIENT_GONE, add};

/// See the module.
pub(crate) struct Record {
    pub worker: Rc<Worker>,
    pub rule: Arc<Rule>,
    pub backend: Arc<Backend>,
    /// When its head was complete.
    pub started: Instant,
    /// When its present attempt began.
    attempt: Cell<Instant>,
    /// When its response head came, as long as nothing took time since: saves asking the clock again.
    ended: Cell<Option<Instant>>,
    code: Cell<u16>,
    endpoint: RefCell<Option<Arc<EndpointState>>>,
    counted: bool,
}

impl Record {
    pub fn start(worker: Rc<Worker>, rule: Arc<Rule>, backend: Arc<Backend>) -> Self {
        let started = Instant::now();
        Self {
            worker,
            rule,
            backend,
            started,
            attempt: Cell::new(started),
            ended: Cell::new(None),
            code: Cell::new(CODE_CLIENT_GONE),
            endpoint: RefCell::default(),
            counted: false,
        }
    }

    /// The request goes to `endpoint` (again, when an earlier one failed) since `now`.
    pub fn sent_to(&self, endpoint: &Arc<EndpointState>, now: Instant) {
        self.leave_endpoint();
        self.attempt.set(now);
        self.ended.set(None);
        endpoint.begin(self.worker.index);
        *self.endpoint.borrow_mut() = Some(endpoint.clone());
    }

    /// The head of the endpoint's response is there: it learns how long that took.
    pub fn responded(&self, code: http::StatusCode) {
        let now = Instant::now();
        self.ended.set(Some(now));
        self.report(Outcome::Status(code.as_u16(), now.saturating_duration_since(self.attempt.get())));
    }

    /// More than the response's head has to be waited for.
    pub fn goes_on(&self) {
        self.ended.set(None);
    }

    /// The attempt ended like this.
    pub fn report(&self, outcome: Outcome) {
        if let Some(endpoint) = self.endpoint.borrow().as_deref() {
            endpoint.report(&self.backend.policy, outcome, self.worker.index);
        }
    }

    /// The client was told something.
    pub fn has_begun(&self) -> bool {
        self.code.get() != CODE_CLIENT_GONE
    }

    pub fn answered(&self, code: http::StatusCode) {
        self.code.set(code.as_u16());
        if let Some(usage) = self.endpoint.borrow().as_deref().and_then(EndpointState::usage) {
            usage.request(self.worker.index);
        }
    }

    /// Payload bytes went to the client.
    pub fn sent(&self, bytes: u64) {
        add(&self.backend.stats.shard(self.worker.index).bytes_out, bytes);
        if let Some(usage) = self.endpoint.borrow().as_deref().and_then(EndpointState::usage) {
            usage.sent(self.worker.index, bytes);
        }
    }

    /// Payload bytes came from the client.
    pub fn received(&self, bytes: u64) {
        add(&self.backend.stats.shard(self.worker.index).bytes_in, bytes);
        if let Some(usage) = self.endpoint.borrow().as_deref().and_then(EndpointState::usage) {
            usage.received(self.worker.index, bytes);
        }
    }

    /// Counts the request as over; the time.
    pub fn finish(mut self) -> Instant {
        self.count()
    }

    fn count(&mut self) -> Instant {
        let now = self.ended.get().unwrap_or_else(Instant::now);
        self.leave_endpoint();
        self.backend
            .stats
            .shard(self.worker.index)
            .record(self.code.get(), now.saturating_duration_since(self.started));
        add(&self.rule.stats.shard(self.worker.index).requests, 1);
        self.counted = true;
        now
    }

    fn leave_endpoint(&self) {
        if let Some(endpoint) = self.endpoint.take() {
            endpoint.end(self.worker.index);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.counted {
            self.count();
        }
    }
}
