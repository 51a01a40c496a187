//! One request of an HTTP/2 client, from its head to the last byte of its response.
//!
//! What may be sent again says [`crate::proxy::retry`].

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};

use super::answer::{Answer, effective_status};
use super::head::Head;
use super::meter::Meter;
use super::stream::{Reply, Stream, until_cancelled};
use super::{Broke, copies, filters, hedge, http1, http2, websocket};
use crate::access::{Flags, Wire};
use crate::backend::{Backend, EndpointState};
use crate::balance::session::Chosen;
use crate::balance::{self, Choice, Outcome, Permit, Refusal, affinity, may_retry};
use crate::plugin::{self, Refused};
use crate::proxy::attempt;
use crate::proxy::filters::{Fields, Filters, Place};
use crate::proxy::held::Unseen;
use crate::proxy::local::Seen;
use crate::proxy::own::OwnCell;
use crate::proxy::record::{AttemptContext, Record};
use crate::proxy::request::{Client, Framing, Reject};
use crate::proxy::retry::{Attempts, Ended};
use crate::proxy::site::Target;
use crate::proxy::worker::Worker;
use crate::route::{Rule, Weighted};

/// What the requests of a client connection share.
pub(super) struct Context {
    pub worker: Rc<Worker>,
    pub target: Target,
    pub client: Client,
    pub own: OwnCell,
    pub peer: std::net::IpAddr,
    /// TLS version towards the client.
    pub tls: Option<&'static str>,
    pub meter: Rc<Meter>,
}

/// What an attempt is about.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub head: &'a Head,
    pub record: &'a Record,
    pub filters: Filters<'a>,
    pub own_fields: &'a Fields,
    pub endpoint: &'a Arc<EndpointState>,
    /// Retries so far, on which it depends whether another one may follow a status.
    pub retries: u32,
    pub begun: Instant,
    /// Longest wait for the response's head.
    pub head_timeout: Option<Duration>,
    pub meter: &'a Meter,
    /// What the endpoint is told of the trace, if there is one.
    pub trace: Option<&'a AttemptContext>,
}

/// Serves a request.
pub(super) async fn serve(context: Rc<Context>, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
    let (parts, body) = request.into_parts();
    let ended = body.is_end_stream();
    let (method, is_grpc) = (parts.method.clone(), super::head::is_grpc(&parts.headers));
    let request = Request::from_parts(parts, ());
    let mut stream = Stream::new(body, respond);
    match Head::check(request, ended, context.peer, &context.worker.config) {
        Ok(head) => route(&context, &mut stream, head).await,
        Err(Reject { status, reason }) => {
            let seen = context.see(None, status, &Unseen(context.peer));
            let sent = Answer::new(status, reason).send(&mut stream.respond, &method, is_grpc);
            seen.answered(&context.worker, &context.target, None, status, sent.unwrap_or(0));
        }
    }
}

impl Context {
    /// How requests come here.
    fn wire(&self) -> Wire {
        Wire { protocol: "HTTP/2", tls: self.tls }
    }

    /// Notes a request that is answered here.
    fn see(&self, rule: Option<&Rule>, status: StatusCode, head: &impl crate::route::Head) -> Seen {
        Seen::new(&self.worker.observers, rule, status, head, self.wire())
    }

    /// Answers a request here.
    fn answer(&self, rule: Option<&Rule>, answer: Answer, stream: &mut Stream, head: &Head) {
        let (status, seen) = (answer.status, self.see(rule, answer.status, head));
        let sent = answer.send(&mut stream.respond, &head.method, head.is_grpc);
        seen.answered(&self.worker, &self.target, rule, status, sent.unwrap_or(0));
    }
}

async fn route(context: &Context, stream: &mut Stream, mut head: Head) {
    let refuse = |rule: Option<&Rule>, stream: &mut Stream, head: &Head, status, reason: &str| {
        context.answer(rule, Answer::new(status, reason), stream, head);
    };
    let site = context.target.load();
    if !context.target.allows(&site, crate::route::Head::host(&head)) {
        let text = "this connection was opened for another host";
        return refuse(None, stream, &head, StatusCode::MISDIRECTED_REQUEST, text);
    }
    let table = context.target.table(&site);
    // As in HTTP/1.1: a Service's own port passes paths as they are.
    if table.is_some_and(|table| table.single().is_none())
        && let Err(Reject { status, reason }) = head.normalize()
    {
        return refuse(None, stream, &head, status, reason);
    }
    if let Some(challenge) = table.and_then(|table| table.challenge(crate::route::Head::path(&head))) {
        let answer = Answer { text: challenge.to_string(), ..Answer::new(StatusCode::OK, "") };
        return context.answer(None, answer, stream, &head);
    }
    let found = table.and_then(|table| Some((table.find(&head)?.clone(), table.port())));
    drop(site);
    let Some((rule, port)) = found else {
        return refuse(None, stream, &head, StatusCode::NOT_FOUND, "no route matches this request");
    };
    let place = Place { https: context.target.is_tls(), port };
    let (Chosen { share: chosen, backend, session }, asked) =
        plugin::choose(&rule, &head, place.https, &context.worker.desk);
    let share = chosen.and_then(|index| rule.backends.get(index));
    let all = share.map_or(Filters::of_rule(&rule), |share| Filters::of_share(&rule, share));
    if !all.is_empty()
        && let Some(answer) = filters::answer(all, &head, &rule, place)
    {
        return context.answer(Some(&rule), answer, stream, &head);
    }
    let (Some(index), Some(share)) = (chosen, share) else {
        return refuse(Some(&rule), stream, &head, StatusCode::INTERNAL_SERVER_ERROR, "the route has no backend");
    };
    let Some(backend) = backend else {
        return refuse(
            Some(&rule),
            stream,
            &head,
            StatusCode::INTERNAL_SERVER_ERROR,
            "the route's backend does not exist",
        );
    };
    let record = Record::start(context.worker.clone(), rule.clone(), backend, (session, asked), &context.own);
    admit(context, stream, &mut head, &record, (index, share, all, place)).await;
    if record.wants_description() {
        record.describe(&head, context.wire());
    }
    record.finish();
}

/// Serves a request for which a backend was chosen, if limits allow.
async fn admit(
    context: &Context,
    stream: &mut Stream,
    head: &mut Head,
    record: &Record,
    (index, share, all, place): (usize, &Weighted, Filters<'_>, Place),
) {
    let rule = &record.rule;
    let limit = rule.policy.max_body_bytes;
    if let (Some(limit), Framing::Length(length)) = (limit, head.framing)
        && length > limit
    {
        return give(Answer::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large"), stream, head, record);
    }
    if let Some(refused) = record.refusal() {
        return fail(Failure::Refused(refused), stream, head, record);
    }
    // Limits come before the head is changed; waiting ends when the client cancels.
    let entered = until_cancelled(&mut stream.respond, balance::enter(rule, &record.backend, head)).await;
    // Given back when the request is over.
    let permit = match entered {
        None => return,
        Some(Ok(permit)) => permit,
        Some(Err(refusal)) => {
            record.backend.stats.shard(context.worker.index).refused(&refusal);
            record.flag(match refusal {
                Refusal::RateLimited { .. } => Flags::RATE_LIMITED,
                Refusal::Overloaded { .. } => Flags::OVERLOADED,
            });
            return give(refused(&refusal, &record.backend), stream, head, record);
        }
    };
    let affinity = affinity::of(&record.backend, head, place.https, rand::random);
    let choice = Choice {
        client: context.peer,
        hash: affinity.hash,
        pinned: record.pinned(),
        thread: context.worker.index,
        now: record.started,
    };
    let mut own_fields = if all.is_empty() { Fields::new() } else { all.response_fields(head) };
    own_fields.extend(affinity.set_cookie.map(|cookie| ("set-cookie", cookie)));
    head.claim(&context.client, place.https);
    if !all.is_empty() {
        filters::request(all, head, rule);
    }
    stream.copy = copies::begin((&context.worker, &context.own), head, rule, index);
    let attempts = attempts(context, stream, head, record, (share, &own_fields, &permit), &choice);
    let failure = match rule.policy.request_timeout {
        None => attempts.await,
        Some(timeout) => tokio::time::timeout(timeout, attempts)
            .await
            .unwrap_or(Err(Failure::Attempts(attempt::Failure::RequestTimeout))),
    };
    match (failure, stream.copy.take()) {
        (Err(failure), _) => fail(failure, stream, head, record),
        (Ok(()), Some(copy)) => copies::finish((&context.worker, &context.own), head, rule, index, copy),
        (Ok(()), None) => {}
    }
}

/// Sends the request to an endpoint, or another, until a response has been delivered.
async fn attempts(
    context: &Context,
    stream: &mut Stream,
    head: &Head,
    record: &Record,
    (share, own_fields, permit): (&Weighted, &Fields, &Permit),
    choice: &Choice,
) -> Result<(), Failure> {
    let worker = &context.worker;
    let rule = &*record.rule;
    let mut attempts = Attempts::new(record, permit, choice, head.is_idempotent());
    while let Some((index, endpoint)) = attempts.next().map_err(Failure::Refused)? {
        let job = Job {
            head,
            record,
            filters: Filters::of_share(rule, share),
            own_fields,
            endpoint,
            retries: attempts.retries,
            begun: Instant::now(),
            head_timeout: rule.policy.response_timeout.or(worker.config.response_header_timeout),
            meter: &context.meter,
            trace: None,
        };
        let ended = match rule.policy.hedging {
            Some(hedging) if head.is_idempotent() && head.framing == Framing::None && !head.websocket => {
                // Boxed, so that other requests need no room for it.
                Box::pin(hedge::race(&job, stream, index, choice, hedging)).await
            }
            _ => job.run(stream, endpoint).await,
        };
        let (broke, pooled) = match ended {
            Ok(()) => return Ok(()),
            Err(broke) => broke,
        };
        let ended = match broke {
            Attempt::NotConnected(failure) => Ended::NotConnected(failure),
            Attempt::Broke(Broke::Unsent) => Ended::Unsent,
            Attempt::Broke(Broke::Endpoint) => Ended::Broken,
            Attempt::Broke(Broke::Timeout) => Ended::TimedOut,
            Attempt::Broke(Broke::Status(status)) => Ended::Status(status),
            Attempt::Broke(Broke::Malformed) => Ended::Malformed,
            Attempt::Broke(broke) => return Err(Failure::Request(broke)),
        };
        if stream.is_answered() {
            return Err(Failure::Request(Broke::Midway));
        }
        if !attempts.again((index, endpoint), ended, pooled, !stream.is_taken()).await {
            break;
        }
    }
    Err(Failure::Attempts(attempts.failure))
}

/// How an attempt ended that did not deliver a response.
#[derive(Clone, Copy)]
pub(super) enum Attempt {
    NotConnected(attempt::Failure),
    Broke(Broke),
}

/// A connection, unless the client was gone first.
fn connected<T>(result: Option<Result<T, attempt::Failure>>) -> Result<T, (Attempt, bool)> {
    match result {
        None => Err((Attempt::Broke(Broke::Client), false)),
        Some(connection) => connection.map_err(|failure| (Attempt::NotConnected(failure), false)),
    }
}

impl Job<'_> {
    /// One attempt; on failure also whether it was made on a connection that had been idle.
    async fn run(&self, stream: &mut Stream, endpoint: &Arc<EndpointState>) -> Result<(), (Attempt, bool)> {
        let http2 = self.record.rule.speaks_http2(&self.record.backend);
        if http2 && !self.head.websocket {
            let lease = attempt::lease(self.record, endpoint, self.begun);
            let lease = connected(until_cancelled(&mut stream.respond, lease).await)?;
            self.record.sent_to(endpoint, self.begun);
            let trace = self.trace();
            let job = Job { trace: trace.as_ref(), ..*self };
            let Some(request) = job.to_http2() else { return Err((Attempt::Broke(Broke::Unsent), false)) };
            let result = http2::exchange(stream, &job, &lease, request).await;
            return result.map_err(|broke| (Attempt::Broke(broke), lease.pooled));
        }
        let connection = attempt::checkout(self.record, endpoint, self.begun, http2);
        let (mut upstream, is_pooled) = connected(until_cancelled(&mut stream.respond, connection).await)?;
        self.record.sent_to(endpoint, if is_pooled { self.begun } else { Instant::now() });
        let trace = self.trace();
        let job = Job { trace: trace.as_ref(), ..*self };
        let (reader, writer) = upstream.stream.halves();
        let exchanged = if self.head.websocket {
            // Boxed, so that other requests need no room for it.
            Box::pin(websocket::exchange(stream, &job, reader, writer)).await
        } else {
            http1::exchange(stream, &job, reader, writer).await
        };
        match exchanged {
            Ok(reusable) => {
                if reusable {
                    self.record.keep(upstream);
                }
                Ok(())
            }
            Err(broke) => Err((Attempt::Broke(broke), is_pooled)),
        }
    }

    /// What the endpoint that the record names is told of the trace.
    pub fn trace(&self) -> Option<AttemptContext> {
        self.record.attempt_context(|tracer| tracer.accept_head(self.head))
    }

    /// Appends the head for an HTTP/1.1 endpoint; see [`Head::write_http1`].
    pub fn write_http1(&self, key: Option<&str>, out: &mut Vec<u8>) {
        self.head.write_http1(key, out);
        if let Some(AttemptContext { context, span_id }) = self.trace {
            context.replace_in(*span_id, out);
        }
    }

    /// The head for an HTTP/2 endpoint; see [`Head::to_http2`].
    pub fn to_http2(self) -> Option<Request<()>> {
        let mut request = self.head.to_http2(self.record.backend.policy.upstream_tls.is_some())?;
        if let Some(AttemptContext { context, span_id }) = self.trace {
            context.set_in(*span_id, request.headers_mut());
        }
        Some(request)
    }

    /// Longest wait for the client or the endpoint to take more of a body.
    pub fn patience(&self) -> Duration {
        self.record.worker.config.send_timeout
    }

    /// Reports a response's status; an error if another endpoint should be asked instead.
    pub fn judge(&self, reply: &Reply<'_>, response: &Response<()>) -> Result<(), Broke> {
        let (backend, rule) = (&*self.record.backend, &*self.record.rule);
        let status = effective_status(response.status(), response.headers());
        let outcome = Outcome::Status(status, self.begun.elapsed());
        self.endpoint.report(&backend.policy, outcome, self.record.worker.index);
        let listed = !rule.policy.retries.statuses.is_empty() && !reply.is_taken();
        if listed && may_retry(rule, outcome, self.head.is_idempotent(), self.retries) {
            return Err(Broke::Status(status));
        }
        Ok(())
    }
}

/// Why a request got no complete response.
enum Failure {
    /// By a plugin.
    Refused(Box<Refused>),
    /// No endpoint has answered.
    Attempts(attempt::Failure),
    /// It is not the endpoint's fault, or the response has begun.
    Request(Broke),
}

/// Ends a request that no endpoint has answered, or not completely.
fn fail(failure: Failure, stream: &mut Stream, head: &Head, record: &Record) {
    let reset = match failure {
        Failure::Request(Broke::Client) => Some(Reason::CANCEL),
        Failure::Request(Broke::BadBody) => Some(Reason::PROTOCOL_ERROR),
        _ if stream.is_answered() => Some(Reason::INTERNAL_ERROR),
        _ => None,
    };
    if let Some(reason) = reset {
        return stream.respond.send_reset(reason);
    }
    if let Failure::Request(Broke::TooLarge) = failure {
        return give(Answer::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large"), stream, head, record);
    }
    let (flags, (status, text)) = match failure {
        Failure::Refused(refused) => {
            record.flag(Flags::PLUGIN_REFUSED);
            return give(refused_by_plugin(*refused), stream, head, record);
        }
        Failure::Attempts(failure) => (failure.flags(), failure.status_and_text()),
        Failure::Request(_) => (Flags::UPSTREAM_FAILED, (StatusCode::BAD_GATEWAY, "did not complete its response")),
    };
    record.flag(flags);
    give(Answer::new(status, &format!("service {} {text}", record.backend.service)), stream, head, record);
}

/// What a plugin says to a client.
fn refused_by_plugin(refused: Refused) -> Answer {
    let mut answer = Answer { text: refused.text, ..Answer::new(refused.status, "") };
    for header in &refused.headers {
        if let (Ok(name), Ok(value)) = (header.name.parse::<HeaderName>(), HeaderValue::from_str(&header.value)) {
            answer.fields.append(name, value);
        }
    }
    answer
}

fn give(answer: Answer, stream: &mut Stream, head: &Head, record: &Record) {
    record.answered(answer.status);
    if let Some(bytes) = answer.send(&mut stream.respond, &head.method, head.is_grpc) {
        record.sent(bytes);
    }
}

fn refused(refusal: &Refusal, backend: &Backend) -> Answer {
    let (status, text, after) = match refusal {
        Refusal::RateLimited { limit, retry_after } => {
            (StatusCode::TOO_MANY_REQUESTS, format!("over the rate limit {limit}"), *retry_after)
        }
        Refusal::Overloaded { retry_after } => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("service {} has too much to do", backend.service), *retry_after)
        }
    };
    Answer { retry_after: Some(after), ..Answer::new(status, &text) }
}
