//! One request from its arrival to the last byte of its response. Counted, logged and traced once, whatever ended it.
//!
//! Without log and tracing nothing here allocates. With them, a request that is told about costs one description of its head, made
//! when it is over ([`Record::describe`]); others cost nothing more.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::own::{Own, OwnCell};
use super::pool::{Pool, Upstream};
use super::story::Story;
use super::worker::Worker;
use crate::access::{Decision, Description, Flags, Wire, WrittenHead};
use crate::backend::{Backend, EndpointState, Tried};
use crate::balance::session::Session;
use crate::balance::{Choice, Outcome};
use crate::plugin::{Asked, Refused, Verdict};
use crate::route::{Head, Rule};
use crate::stats::{CODE_CLIENT_GONE, add};
use crate::trace::{Attempt, Context, Tracer, context::span_id};

/// Attempts of a request that get a span of their own.
const MAX_SPANS: usize = 16;

/// See the module.
pub(crate) struct Record {
    pub worker: Rc<Worker>,
    pub rule: Arc<Rule>,
    pub backend: Arc<Backend>,
    /// What the client's connection has for itself, if endpoints are to know whom requests are for.
    pub own: Option<Rc<Own>>,
    /// When its head was complete.
    pub started: Instant,
    /// When its present attempt began.
    attempt: Cell<Instant>,
    /// When its response head came, as long as nothing took time since: saves asking the clock again.
    ended: Cell<Option<Instant>>,
    code: Cell<u16>,
    endpoint: RefCell<Option<Arc<EndpointState>>>,
    counted: bool,
    attempts: Cell<u32>,
    bytes_in: Cell<u64>,
    bytes_out: Cell<u64>,
    flags: Cell<Flags>,
    session: Option<Box<Session>>,
    asked: RefCell<Option<Asked>>,
    logged: Decision,
    /// Only when it is told about.
    told: RefCell<Option<Box<Told>>>,
}

/// What is gathered of a request that is logged or traced.
#[derive(Default)]
struct Told {
    request: Option<Description>,
    context: Option<Context>,
    attempts: Vec<Attempt>,
    /// The last endpoint, after it was left.
    endpoint: Option<Arc<EndpointState>>,
}

/// What an endpoint is told of the trace.
pub(crate) struct AttemptContext {
    pub context: Context,
    /// Of the attempt.
    pub span_id: [u8; 8],
}

impl Record {
    /// Session and plugin must be of `backend`, `own` of the client's connection.
    pub fn start(
        worker: Rc<Worker>,
        rule: Arc<Rule>,
        backend: Arc<Backend>,
        (session, asked): (Option<Box<Session>>, Option<Asked>),
        own: &OwnCell,
    ) -> Self {
        let started = Instant::now();
        let access = worker.observers.access.as_ref();
        let logged = access.map_or(Decision::Never, |sink| sink.decide(rule.policy.access_log_percent));
        let told = logged != Decision::Never || worker.observers.tracer.is_some();
        let own = backend.policy.send_proxy.map(|_| own.get(&worker));
        Self {
            worker,
            rule,
            backend,
            own,
            started,
            attempt: Cell::new(started),
            ended: Cell::new(None),
            code: Cell::new(CODE_CLIENT_GONE),
            endpoint: RefCell::default(),
            counted: false,
            attempts: Cell::new(0),
            bytes_in: Cell::new(0),
            bytes_out: Cell::new(0),
            flags: Cell::default(),
            session,
            asked: RefCell::new(asked),
            logged,
            told: RefCell::new(told.then(Box::default)),
        }
    }

    /// The request goes to `endpoint` (again, when an earlier one failed) since `now`.
    pub fn sent_to(&self, endpoint: &Arc<EndpointState>, now: Instant) {
        self.leave_endpoint();
        self.attempt.set(now);
        self.ended.set(None);
        self.attempts.set(self.attempts.get() + 1);
        endpoint.begin(self.worker.index);
        *self.endpoint.borrow_mut() = Some(endpoint.clone());
    }

    /// Where its connections (HTTP/1.1) are kept.
    pub fn pool(&self) -> &RefCell<Pool> {
        self.own.as_deref().map_or(&self.worker.pool, |own| &own.http1)
    }

    /// Keeps a connection whose exchange is over.
    pub fn keep(&self, upstream: Upstream) {
        self.pool().borrow_mut().put(upstream, Instant::now());
    }

    /// The endpoint for the next attempt, by the plugin if there is one; an error if it refuses the request.
    pub fn choose(&self, choice: &Choice, tried: Tried) -> Result<Option<(usize, &Arc<EndpointState>)>, Box<Refused>> {
        if let Some(asked) = &mut *self.asked.borrow_mut()
            && let Some(index) = asked.next(&self.backend, tried, &self.worker.desk)?
            && let Some(endpoint) = self.backend.endpoints.get(index)
        {
            return Ok(Some((index, endpoint)));
        }
        Ok(self.backend.choose(choice, tried))
    }

    /// What the client is told if its request must not be sent at all.
    pub fn refusal(&self) -> Option<Box<Refused>> {
        self.asked.borrow_mut().as_mut()?.refusal()
    }

    /// See [`crate::balance::Choice`].
    pub fn pinned(&self) -> Option<u32> {
        self.session.as_ref()?.pinned()
    }

    /// The field that tells the client its session with the endpoint that is asked now, if it must be told.
    pub fn session_field(&self) -> Option<(&str, String)> {
        let session = self.session.as_ref()?;
        session.field(&self.backend, self.endpoint.borrow().as_deref()?)
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

    /// Puts the trace context for the present attempt into the request's head as it goes to the endpoint (HTTP/1.1). Does nothing
    /// without tracing.
    pub fn propagate(&self, head: &mut Vec<u8>, client: IpAddr) {
        if self.worker.observers.tracer.is_some()
            && let Some(trace) = self.attempt_context(|tracer| tracer.accept_head(&WrittenHead::parse(head, client)))
        {
            trace.context.replace_in(trace.span_id, head);
        }
    }

    /// The trace context for the present attempt; `None` without tracing. `accept` reads the client's.
    pub fn attempt_context(&self, accept: impl FnOnce(&Tracer) -> Context) -> Option<AttemptContext> {
        let tracer = self.worker.observers.tracer.as_ref()?;
        let mut told = self.told.borrow_mut();
        let told = told.as_deref_mut()?;
        let context = told.context.get_or_insert_with(|| accept(tracer));
        let span_id = span_id();
        if context.sampled
            && told.attempts.len() < MAX_SPANS
            && let Some(endpoint) = self.endpoint.borrow().as_deref()
        {
            let start = SystemTime::now();
            if let Some(before) = told.attempts.last_mut() {
                // Another attempt: the last one broke.
                before.end.get_or_insert((start, None));
            }
            told.attempts.push(Attempt { span_id, endpoint: endpoint.addr, start, end: None });
        }
        Some(AttemptContext { context: context.clone(), span_id })
    }

    /// Whether [`Record::describe`] has a reader, as far as is known now: call it when the request is over.
    pub fn wants_description(&self) -> bool {
        match self.told.borrow().as_deref() {
            None => false,
            Some(told) if told.request.is_some() => false,
            Some(told) => {
                self.logged.covers(self.code.get())
                    || told.context.as_ref().map_or(self.worker.observers.tracer.is_some(), |context| context.sampled)
            }
        }
    }

    /// Keeps what the log and spans tell of the request's head.
    pub fn describe(&self, head: &impl Head, wire: Wire) {
        let mut told = self.told.borrow_mut();
        let Some(told) = told.as_deref_mut() else { return };
        told.request = Some(Description::of(head, wire));
        if let Some(tracer) = &self.worker.observers.tracer {
            // A request that was not sent to any endpoint.
            told.context.get_or_insert_with(|| tracer.accept_head(head));
        }
    }

    /// Remembers why it ends as it does.
    pub fn flag(&self, flags: Flags) {
        self.flags.set(self.flags.get().with(flags));
    }

    pub fn answered(&self, code: http::StatusCode) {
        self.code.set(code.as_u16());
        if let Some(usage) = self.endpoint.borrow().as_deref().and_then(EndpointState::usage) {
            usage.request(self.worker.index);
        }
    }

    /// Payload bytes went to the client.
    pub fn sent(&self, bytes: u64) {
        let thread = self.worker.index;
        self.bytes_out.set(self.bytes_out.get() + bytes);
        add(&self.backend.stats.shard(thread).bytes_out, bytes);
        add(&self.rule.stats.shard(thread).bytes_out, bytes);
        if let Some(usage) = self.endpoint.borrow().as_deref().and_then(EndpointState::usage) {
            usage.sent(thread, bytes);
        }
    }

    /// Payload bytes came from the client.
    pub fn received(&self, bytes: u64) {
        let thread = self.worker.index;
        self.bytes_in.set(self.bytes_in.get() + bytes);
        add(&self.backend.stats.shard(thread).bytes_in, bytes);
        add(&self.rule.stats.shard(thread).bytes_in, bytes);
        if let Some(usage) = self.endpoint.borrow().as_deref().and_then(EndpointState::usage) {
            usage.received(thread, bytes);
        }
    }

    /// Counts the request as over; the time.
    pub fn finish(mut self) -> Instant {
        self.count()
    }

    fn count(&mut self) -> Instant {
        let now = self.ended.get().unwrap_or_else(Instant::now);
        let (thread, code) = (self.worker.index, self.code.get());
        let took = now.saturating_duration_since(self.started);
        if let Some(image) = self.endpoint.borrow().as_deref().and_then(|e| e.usage()?.image()) {
            let shard = image.shard(thread);
            shard.record(code, took);
            add(&shard.bytes_in, self.bytes_in.get());
            add(&shard.bytes_out, self.bytes_out.get());
        }
        self.leave_endpoint();
        self.backend.stats.shard(thread).record(code, took);
        let rule = self.rule.stats.shard(thread);
        rule.record(code, took);
        let retries = self.attempts.get().saturating_sub(1);
        if retries > 0 {
            add(&rule.retries, retries.into());
        }
        self.counted = true;
        let asked = self.asked.take();
        if let Some(told) = self.told.take() {
            self.tell(*told, now, asked.as_ref().map(Asked::verdict));
        }
        if let Some(asked) = asked {
            asked.close(&self.worker.desk);
        }
        now
    }

    /// Logs and traces it.
    fn tell(&self, told: Told, now: Instant, verdict: Option<Verdict>) {
        let Some(request) = told.request else { return };
        let code = self.code.get();
        let status = (code != CODE_CLIENT_GONE).then_some(code);
        let mut flags = self.flags.get();
        if self.attempts.get() > 1 {
            flags = flags.with(Flags::RETRIED);
        }
        if status.is_none() {
            flags = flags.with(Flags::CLIENT_GONE);
        }
        let endpoint = told.endpoint.as_deref();
        let story = Story {
            request,
            logged: self.logged.covers(code),
            context: told.context,
            rule: Some(&self.rule),
            service: Some(self.backend.service.to_string()),
            upstream: endpoint.map(|endpoint| endpoint.addr),
            pod: endpoint.and_then(|endpoint| Some(&*endpoint.pod.as_ref()?.0)),
            attempts: self.attempts.get(),
            spans: told.attempts,
            verdict,
            status,
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            duration: now.saturating_duration_since(self.started),
            flags,
        };
        story.tell(&self.worker.observers);
    }

    fn leave_endpoint(&self) {
        if let Some(endpoint) = self.endpoint.take() {
            endpoint.end(self.worker.index);
            if let Some(told) = self.told.borrow_mut().as_deref_mut() {
                told.endpoint = Some(endpoint);
            }
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
