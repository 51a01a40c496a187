//! One request of an HTTP/1.1 client: admitted, sent to an endpoint or another, until a response has been delivered.
//! What may be sent again says [`super::retry`].

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;

use super::buffer::Buffer;
use super::decide::Forward;
use super::exchange::{Broke, ClientSide, Copied, Done, EndpointSide, Job};
use super::filters::Filters;
use super::h2::upstream::Lease;
use super::held::Unseen;
use super::http::{After, Conn, http_date};
use super::io::{Stream, send};
use super::pool::{ConnectError, Opening, Upstream};
use super::record::Record;
use super::request::{Framing, Reject, Request};
use super::retry::{Attempts, Ended};
use super::tls::Connector;
use super::tunnel::{self, Direction};
use super::worker::Worker;
use super::{h2, hedge, mirror};
use crate::access::Flags;
use crate::backend::{Backend, EndpointState};
use crate::balance::{self, Choice, Outcome, Permit, Refusal};
use crate::plugin::Refused;
use crate::stats::add;

impl<S: Stream> Conn<'_, S> {
    /// Serves a request within the time its rule allows.
    pub async fn forward(&mut self, work: &Forward, record: &Record) -> After {
        if let Some(refused) = record.refusal() {
            return self.refused_by_plugin(&refused, &work.request, record).await;
        }
        let Some(limit) = work.rule.policy.request_timeout else { return self.admit(work, record).await };
        match tokio::time::timeout_at((record.started + limit).into(), self.admit(work, record)).await {
            Ok(after) => after,
            Err(_) if record.has_begun() => After::Reset,
            Err(_) => {
                record.report(Outcome::TimedOut);
                self.fail(Failure::RequestTimeout, &work.request, record).await
            }
        }
    }

    async fn admit(&mut self, work: &Forward, record: &Record) -> After {
        let entered = match &work.held {
            // Only then there is something to wait for.
            Some(head) => tokio::select! {
                biased;
                entered = balance::enter(&work.rule, &work.backend, &**head) => entered,
                () = self.gone() => return After::Drop,
            },
            None => balance::enter(&work.rule, &work.backend, &Unseen(self.client.ip)).await,
        };
        match entered {
            Ok(permit) => self.attempts(work, record, permit).await,
            Err(refusal) => self.refuse_entry(&refusal, &work.request, record).await,
        }
    }

    async fn refuse_entry(&mut self, refusal: &Refusal, request: &Request, record: &Record) -> After {
        let (code, seconds) = refusal.answer();
        record.backend.stats.shard(self.worker.index).refused(refusal);
        record.flag(match refusal {
            Refusal::RateLimited { .. } => Flags::RATE_LIMITED,
            Refusal::Overloaded { .. } => Flags::OVERLOADED,
        });
        let status = StatusCode::from_u16(code).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        let text = match refusal {
            Refusal::RateLimited { limit, .. } => format!("{code}: too many requests (limit {limit})\n"),
            Refusal::Overloaded { .. } => format!("{code}: service {} has all it can take\n", record.backend.service),
        };
        let close = self.must_close(request) || request.framing != Framing::None;
        let fields = [("retry-after", seconds.to_string())];
        self.answer(status, &text, &fields, Some(request), close, Some(record)).await
    }

    /// Tells the client what a plugin says to it.
    async fn refused_by_plugin(&mut self, refused: &Refused, request: &Request, record: &Record) -> After {
        record.flag(Flags::PLUGIN_REFUSED);
        let fields: Vec<(&str, String)> =
            refused.headers.iter().map(|header| (header.name.as_str(), header.value.clone())).collect();
        let close = self.must_close(request) || request.framing != Framing::None;
        self.answer(refused.status, &refused.text, &fields, Some(request), close, Some(record)).await
    }

    /// Sends the request to an endpoint, or another, until a response has been delivered. The permit lasts as long.
    async fn attempts(&mut self, work: &Forward, record: &Record, permit: Permit) -> After {
        let (request, backend) = (&work.request, &*work.backend);
        let choice = Choice {
            client: self.client.ip,
            hash: work.hash,
            pinned: record.pinned(),
            thread: self.worker.index,
            now: record.started,
        };
        let copy = self.mirrored(work);
        let bodiless = request.framing == Framing::None;
        let mut continued = !request.expects_continue;
        let mut attempts = Attempts::new(record, &permit, &choice, request.idempotent);
        loop {
            let (index, endpoint) = match attempts.next() {
                Ok(Some(next)) => next,
                Ok(None) => break,
                Err(refused) => return self.refused_by_plugin(&refused, request, record).await,
            };
            let started = if attempts.is_first() { record.started } else { Instant::now() };
            let http2 = work.rule.speaks_http2(backend);
            let (upstream, pooled) = match checkout(record, endpoint, started, http2).await {
                Ok(found) => found,
                Err(failure) => {
                    if attempts.again((index, endpoint), Ended::NotConnected(failure), false, true).await {
                        continue;
                    }
                    break;
                }
            };
            if !continued {
                continued = true;
                if self.input.is_empty() && send(&mut self.writer, b"HTTP/1.1 100 Continue\r\n\r\n").await.is_err() {
                    return After::Drop;
                }
            }
            record.sent_to(endpoint, if pooled { started } else { Instant::now() });
            record.propagate(&mut self.head, self.client.ip);
            let broke = match self.exchange(work, (upstream, index), &choice, &copy, attempts.retries, record).await {
                Ok(after) => {
                    self.mirror_body(work, copy);
                    return after;
                }
                Err(broke) => broke,
            };
            let ended = match broke {
                Broke::Unsent => Ended::Unsent,
                Broke::Endpoint => Ended::Broken,
                Broke::Timeout => Ended::TimedOut,
                Broke::Status { code, .. } => Ended::Status(code),
                Broke::Malformed => Ended::Malformed,
                Broke::BadBody => {
                    let reason = "the request's chunked body is malformed";
                    return self.refuse(Reject { status: StatusCode::BAD_REQUEST, reason }, Some(record)).await;
                }
                Broke::TooLarge => {
                    let reason = "the request's body is too large";
                    return self.refuse(Reject { status: StatusCode::PAYLOAD_TOO_LARGE, reason }, Some(record)).await;
                }
                Broke::Client => return After::Drop,
                Broke::Midway => return After::Reset,
            };
            let repeatable = bodiless || matches!(ended, Ended::Unsent | Ended::Status(_));
            if !attempts.again((index, endpoint), ended, pooled, repeatable).await {
                break;
            }
        }
        self.fail(attempts.failure, request, record).await
    }

    /// Sends copies of a request without body, or prepares for copying one's body.
    fn mirrored(&self, work: &Forward) -> Option<RefCell<Copied>> {
        let mirrors = mirror::all(&work.rule, work.share);
        if work.request.upgrade || mirrors.clone().next().is_none() {
            return None;
        }
        if work.request.framing != Framing::None {
            return Some(RefCell::default());
        }
        mirrors
            .for_each(|mirror| mirror::send((&self.worker, &self.own), mirror, &work.request, &self.head, Vec::new()));
        None
    }

    /// Sends copies of a request whose body was copied.
    fn mirror_body(&self, work: &Forward, copy: Option<RefCell<Copied>>) {
        let Some(Copied { bytes, complete: true, overflowed: false }) = copy.map(RefCell::into_inner) else { return };
        for mirror in mirror::all(&work.rule, work.share) {
            mirror::send((&self.worker, &self.own), mirror, &work.request, &self.head, bytes.clone());
        }
    }

    /// One attempt on one connection, which goes back to the pool afterwards if it can.
    async fn exchange(
        &mut self,
        work: &Forward,
        (mut upstream, index): (Upstream, usize),
        choice: &Choice,
        copy: &Option<RefCell<Copied>>,
        retries: u32,
        record: &Record,
    ) -> Result<After, Broke> {
        let (worker, rule, request) = (self.worker.clone(), &*work.rule, &work.request);
        let header_timeout = rule.policy.response_timeout.or(worker.config.response_header_timeout);
        let mut asked = false;
        if let Some((delay, rivals)) = rule.policy.hedging
            && request.framing == Framing::None
            && request.idempotent
            && !request.upgrade
        {
            let plan = hedge::Plan { delay, rivals, timeout: header_timeout, choice: *choice, first: index };
            upstream = Box::pin(hedge::race(self, work, upstream, plan, record)).await?;
            asked = true;
        }
        let again = |status: u16| {
            rule.policy.retries.statuses.contains(&status)
                && request.framing == Framing::None
                && balance::may_retry(rule, Outcome::Status(status, Duration::ZERO), request.idempotent, retries)
        };
        let again: &dyn Fn(u16) -> bool = &again;
        let session = record.session_field();
        let job = Job {
            request,
            head: &self.head,
            asked,
            close: self.must_close(request),
            date: http_date,
            header_timeout,
            stock: &worker.stock,
            edits: Filters::of_share(rule, &rule.backends[work.share])
                .response_edits(&work.own)
                .with_session(session.as_ref()),
            max_body_bytes: rule.policy.max_body_bytes.unwrap_or(u64::MAX),
            again: (!rule.policy.retries.statuses.is_empty()).then_some(again),
            copy: copy.as_ref(),
            torn: &self.torn,
            patience: self.patience,
        };
        let client = ClientSide {
            reader: &mut self.reader,
            writer: &mut self.writer,
            input: &mut self.input,
            reply: &mut self.reply,
        };
        let (reader, writer) = upstream.stream.halves();
        let endpoint = EndpointSide { reader, writer, input: &mut upstream.input, large: &mut upstream.large };
        let Done { response, sent_all } = match job.run(client, endpoint, record).await {
            Ok(done) => done,
            Err(broke) => {
                if let Broke::Status { reusable: true, .. } = broke {
                    upstream.input.release(&worker.stock);
                    record.keep(upstream);
                }
                return Err(broke);
            }
        };
        if response.status == StatusCode::SWITCHING_PROTOCOLS {
            if !request.upgrade {
                // Nobody asked for another protocol; what follows on that connection is not HTTP.
                return Err(Broke::Malformed);
            }
            // Boxed, so that other requests need no room for it.
            Box::pin(self.tunnel(upstream, rule.policy.idle_timeout, record)).await;
            return Ok(After::Drop);
        }
        upstream.input.release(&worker.stock);
        if response.reusable && sent_all {
            record.keep(upstream);
        }
        Ok(match (response.close, sent_all && self.input.is_empty()) {
            (false, _) => After::Next,
            (true, true) if !S::FAREWELL => After::Drop,
            (true, _) => After::Close,
        })
    }

    /// Passes a 101 on and joins the client's connection with the endpoint's, until both have ended or nothing went over them for
    /// `idle_timeout`.
    async fn tunnel(&mut self, upstream: Upstream, idle_timeout: Option<Duration>, record: &Record) {
        let active = Cell::new(true);
        let count = |direction, bytes| {
            active.set(true);
            match direction {
                Direction::FromClient => record.received(bytes),
                Direction::ToClient => record.sent(bytes),
            }
        };
        let joined = async {
            send(&mut self.writer, &self.reply).await?;
            // Bytes that came with the 101, and those that the client did not wait with.
            let early = [std::mem::take(&mut self.input), upstream.input];
            let client = (&mut self.reader, &mut self.writer);
            tunnel::join(client, upstream.stream, early, &record.worker.stock, &count).await
        };
        tokio::select! {
            result = joined => if let Err(error) = result {
                tracing::trace!(%error, "upgraded connection ended");
            },
            () = tunnel::silence(idle_timeout, &active) => tracing::trace!("upgraded connection was silent for too long"),
        }
    }

    async fn fail(&mut self, failure: Failure, request: &Request, record: &Record) -> After {
        if self.torn.get() {
            return After::Reset;
        }
        let (status, text) = failure.status_and_text();
        record.flag(failure.flags());
        let service = &record.backend.service;
        let text = format!("{}: service {service} {text}\n", status.as_u16());
        // A body that nobody takes would be read as the next request.
        let close = self.must_close(request) || request.framing != Framing::None;
        self.answer(status, &text, &[], Some(request), close, Some(record)).await
    }
}

/// The TLS settings that connections to a backend's endpoints are opened with; 0: none.
pub(super) fn connector_id(worker: &Worker, backend: &Backend) -> u64 {
    let policy = backend.policy.upstream_tls.as_ref();
    policy.and_then(|policy| worker.connectors.get(policy)).map_or(0, |connector| connector.id)
}

/// How the endpoints of a backend are reached over TLS, if they are.
fn connector(worker: &Worker, backend: &Backend) -> Result<Option<Rc<Connector>>, Failure> {
    match &backend.policy.upstream_tls {
        None => Ok(None),
        Some(policy) => worker.connectors.get(policy).map(Some).ok_or(Failure::TlsSettings),
    }
}

/// How connections for a request are opened.
fn opening<'a>(record: &'a Record, connector: Option<&'a Connector>) -> Opening<'a> {
    let policy = &record.backend.policy;
    let announced = policy.send_proxy.zip(record.own.as_deref().map(|own| &own.ends));
    Opening { connector, announced, timeout: policy.connect_timeout.unwrap_or(record.worker.config.connect_timeout) }
}

/// A connection to `endpoint` and whether it comes from the pool. With `http2` it is a stream of one that speaks HTTP/2.
pub(super) async fn checkout(
    record: &Record,
    endpoint: &Arc<EndpointState>,
    now: Instant,
    http2: bool,
) -> Result<(Upstream, bool), Failure> {
    let (worker, backend) = (&*record.worker, &*record.backend);
    if http2 {
        // Boxed, so that requests to other endpoints need no room for it.
        let lease = Box::pin(lease(record, endpoint, now)).await?;
        let open = lease.pooled;
        let stream = h2::bridge::connect(lease, backend.policy.upstream_tls.is_some(), worker.config.send_timeout);
        return Ok((Upstream::bridged(endpoint, stream), open));
    }
    let connector = connector(worker, backend)?;
    let pooled = record.pool().borrow_mut().take(endpoint, connector.as_ref().map_or(0, |c| c.id), now);
    if let Some(upstream) = pooled {
        add(&backend.stats.shard(worker.index).upstream_reused, 1);
        return Ok((upstream, true));
    }
    let opened = Upstream::connect(endpoint, opening(record, connector.as_deref())).await;
    connected(worker, backend, endpoint, now, opened).map(|upstream| (upstream, false))
}

/// A place for a stream on an HTTP/2 connection to `endpoint`.
pub(super) async fn lease(record: &Record, endpoint: &Arc<EndpointState>, now: Instant) -> Result<Lease, Failure> {
    let (worker, backend) = (&*record.worker, &*record.backend);
    let connector = connector(worker, backend)?;
    let pool = record.own.as_deref().map_or(&worker.h2.pool, |own| &own.http2);
    match pool.checkout(endpoint, opening(record, connector.as_deref())).await {
        Ok(lease) if lease.pooled => {
            add(&backend.stats.shard(worker.index).upstream_reused, 1);
            Ok(lease)
        }
        opened => connected(worker, backend, endpoint, now, opened),
    }
}

/// Reports how connecting, begun at `since`, went.
fn connected<T>(
    worker: &Worker,
    backend: &Backend,
    endpoint: &EndpointState,
    since: Instant,
    opened: Result<T, ConnectError>,
) -> Result<T, Failure> {
    let stats = backend.stats.shard(worker.index);
    match opened {
        Ok(connection) => {
            let took = since.elapsed();
            endpoint.report(&backend.policy, Outcome::Connected(took), worker.index);
            stats.connected(took);
            Ok(connection)
        }
        Err(error) => {
            endpoint.report(&backend.policy, Outcome::ConnectFailed, worker.index);
            add(&stats.connect_failures, 1);
            tracing::debug!(service = %backend.service, endpoint = %endpoint.addr, %error, "endpoint is unreachable");
            Err(match error {
                ConnectError::Timeout => Failure::ConnectTimeout,
                ConnectError::Tls(_) => Failure::Tls,
                ConnectError::Alpn => Failure::Alpn,
                ConnectError::Io(_) => Failure::Unreachable,
            })
        }
    }
}

/// Sends the head in `head` to `endpoint` and waits for the first bytes of the response, which stay in the connection's buffer.
pub(super) async fn ask(worker: &Rc<Worker>, mut upstream: Upstream, head: &[u8]) -> Result<Upstream, Broke> {
    let (mut reader, mut writer) = upstream.stream.halves();
    send(&mut writer, head).await.map_err(|_| Broke::Endpoint)?;
    let input: &mut Buffer = &mut upstream.input;
    match input.fill(&mut reader, &worker.stock, super::buffer::SMALL).await {
        Ok(1..) => Ok(upstream),
        _ => Err(Broke::Endpoint),
    }
}

/// Why a request could not be answered by any endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    NoEndpoints,
    Unreachable,
    ConnectTimeout,
    Tls,
    TlsSettings,
    /// TLS is as it should be, but the endpoint does not speak HTTP/2 inside.
    Alpn,
    Broken,
    Malformed,
    ResponseTimeout,
    RequestTimeout,
    /// The last response had this status, and then nobody could be asked any more.
    Status(u16),
}

impl Failure {
    /// As the access log tells it.
    pub(super) fn flags(self) -> Flags {
        match self {
            Self::NoEndpoints => Flags::NO_ENDPOINT,
            Self::ConnectTimeout | Self::ResponseTimeout | Self::RequestTimeout => {
                Flags::UPSTREAM_FAILED.with(Flags::TIMEOUT)
            }
            _ => Flags::UPSTREAM_FAILED,
        }
    }

    pub(super) fn status_and_text(self) -> (StatusCode, &'static str) {
        match self {
            Self::NoEndpoints => (StatusCode::SERVICE_UNAVAILABLE, "has no ready endpoints"),
            Self::Unreachable => (StatusCode::BAD_GATEWAY, "has endpoints, but none accepted a connection"),
            Self::ConnectTimeout => (StatusCode::GATEWAY_TIMEOUT, "has endpoints, but connecting timed out"),
            Self::Tls => {
                (StatusCode::BAD_GATEWAY, "has endpoints, but none with the TLS certificate that its policy demands")
            }
            Self::Alpn => (StatusCode::BAD_GATEWAY, "has endpoints, but none that speaks HTTP/2 over TLS (ALPN h2)"),
            Self::TlsSettings => (StatusCode::BAD_GATEWAY, "has a TLS policy that cannot be used"),
            Self::Broken => (StatusCode::BAD_GATEWAY, "closed the connection before it responded"),
            Self::Malformed => (StatusCode::BAD_GATEWAY, "sent a response that is not valid HTTP"),
            Self::ResponseTimeout => (StatusCode::GATEWAY_TIMEOUT, "did not respond in time"),
            Self::RequestTimeout => {
                (StatusCode::GATEWAY_TIMEOUT, "did not respond within the time for the whole request")
            }
            Self::Status(code) => {
                let status = StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_GATEWAY);
                (status, "has no endpoint that responds better")
            }
        }
    }
}
