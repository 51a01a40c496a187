//! HTTP/1.1: one client connection, request by request (RFC 9112).
//!
//! Retries: an endpoint that cannot be connected to is replaced by the next one. A request whose connection closed
//! before any byte of a response, or before a short response was complete, is sent again when nothing of it was sent, or
//! when it is idempotent and has no body. Nothing else is ever sent twice.
//!
//! Timeouts: a connection has one timer, moved only when it fires. What moves per request is a plain deadline.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::StatusCode;
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::buffer::{Buffer, SMALL};
use super::drain::{Drain, Phase};
use super::exchange::{Broke, ClientSide, Done, EndpointSide, Job};
use super::pool::{ConnectError, Upstream};
use super::record::Record;
use super::request::{self, Client, Framing, Parsed, Reject, Request};
use super::response::Answer;
use super::site::{SiteCell, SiteMode};
use super::worker::{Active, Worker};
use super::{h2, tunnel};
use crate::backend::{Backend, EndpointState, Tried};
use crate::balance::{Choice, Outcome};
use crate::route::Rule;
use crate::stats::add;

/// Attempts per request, stale pooled connections included.
const MAX_ATTEMPTS: u32 = 8;
/// How long, and for how many bytes, a client may go on sending after we refused what it sends: closing at once would
/// reset the connection and take our answer with it.
const LINGER_TIME: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1024 * 1024;

/// A client connection.
pub(crate) struct Conn<'s> {
    worker: Rc<Worker>,
    site: Arc<SiteCell>,
    drain: Rc<Drain>,
    peer: IpAddr,
    client: Client,
    pub reader: ReadHalf<'s>,
    pub writer: WriteHalf<'s>,
    /// Received and not yet used.
    pub input: Buffer,
    /// The request's head as it goes upstream; kept until there is a response, to send it again.
    head: Vec<u8>,
    /// The response's head as it goes to the client.
    pub reply: Vec<u8>,
    /// Requests seen so far.
    requests: u64,
}

/// What becomes of a connection after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// It waits for the next one.
    Next,
    /// It is closed once the client has seen everything.
    Close,
    /// It is closed at once.
    Drop,
    /// It is reset, so that the client sees that the response is incomplete.
    Reset,
    /// It goes on in HTTP/2.
    Http2,
}

/// Serves a client connection until either side closes it or the listener's drain ends it.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    mut stream: TcpStream,
    peer: SocketAddr,
    site: Arc<SiteCell>,
    drain: Rc<Drain>,
) {
    let service = rule_of(&site).and_then(|rule| rule.share(0)?.cell.as_ref().map(|cell| cell.load().stats.clone()));
    let _active = service.map(|stats| Active::new(stats, worker.index));
    let timeout = worker.config.header_read_timeout;
    let deadline = Cell::new(Some(Instant::now() + timeout));
    let work = async {
        let (after, early) = {
            let (reader, writer) = stream.split();
            let peer = peer.ip().to_canonical();
            let mut conn = Conn {
                client: client(peer, worker.config.trust_forwarded_headers),
                drain: drain.clone(),
                input: Buffer::default(),
                head: Vec::new(),
                reply: Vec::new(),
                requests: 0,
                worker: worker.clone(),
                site: site.clone(),
                peer,
                reader,
                writer,
            };
            (conn.run(&deadline).await, conn.input)
        };
        if after == After::Reset {
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
        (after == After::Http2).then_some((stream, early))
    };
    let mut work = pin!(work);
    let mut timer = pin!(tokio::time::sleep(timeout));
    let (mut draining, mut aborting) = (pin!(drain.reached(Phase::Draining)), pin!(drain.reached(Phase::Aborting)));
    let mut registered = false;
    let upgraded = std::future::poll_fn(|cx| {
        // Polled once to register this task, then only when there is news: a request costs two comparisons here.
        if !registered || drain.phase() != Phase::Serving {
            // The request loop looks at the phase itself.
            let _ = drain.phase() < Phase::Draining && draining.as_mut().poll(cx).is_ready();
            if aborting.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
        }
        if !registered || timer.is_elapsed() {
            while timer.as_mut().poll(cx).is_ready() {
                let (now, due) = (Instant::now(), deadline.get());
                if due.is_some_and(|due| due <= now) {
                    tracing::trace!(%peer, "no request in time");
                    return Poll::Ready(None);
                }
                timer.as_mut().reset(due.unwrap_or(now + timeout).into());
            }
        }
        registered = true;
        work.as_mut().poll(cx)
    });
    if let Some((stream, early)) = upgraded.await {
        let target = h2::Target::Clear(site.clone());
        // Boxed, so that connections which never get here do not hold room for it.
        Box::pin(h2::serve(worker.clone(), stream, early.bytes(), peer, target, drain.clone())).await;
    }
}

/// The rule of a Service's own port.
fn rule_of(site: &SiteCell) -> Option<Arc<Rule>> {
    match &site.load().mode {
        SiteMode::Http(table) => table.single().cloned(),
        _ => None,
    }
}

pub(crate) fn client(ip: IpAddr, trusted: bool) -> Client {
    let address = ip.to_string();
    let node = if ip.is_ipv6() { format!("\"[{address}]\"") } else { address.clone() };
    Client { address, node, trusted }
}

impl Conn<'_> {
    async fn run(&mut self, deadline: &Cell<Option<Instant>>) -> After {
        let timeout = self.worker.config.header_read_timeout;
        loop {
            let Some(parsed) = self.next_head().await else { return After::Drop };
            if parsed == Parsed::Http2 {
                return if self.requests == 0 { After::Http2 } else { After::Drop };
            }
            deadline.set(None);
            let Some(rule) = rule_of(&self.site) else { return After::Drop };
            let Some(cell) = rule.share(rand::random()).and_then(|share| share.cell.clone()) else {
                return After::Drop;
            };
            let record = Record::start(self.worker.clone(), rule, cell.load_full());
            self.requests += 1;
            let after = match &parsed {
                Parsed::Complete(request) => {
                    self.input.consume(request.length);
                    self.serve_request(request, &record).await
                }
                Parsed::Refused(reject) => self.refuse(*reject, &record).await,
                Parsed::Http2 | Parsed::Partial => After::Drop,
            };
            let now = record.finish();
            match after {
                After::Next => deadline.set(Some(now + timeout)),
                After::Close => {
                    self.linger().await;
                    return After::Drop;
                }
                After::Drop | After::Reset | After::Http2 => return after,
            }
            self.input.release(&self.worker.stock);
            if self.reply.capacity() > SMALL {
                // It carried a chunked body.
                self.reply = Vec::new();
            }
        }
    }

    /// Waits for a whole head and parses it; `None` when there will be none.
    async fn next_head(&mut self) -> Option<Parsed> {
        let mut seen = 0;
        loop {
            // Empty lines before a request line are tolerated (RFC 9112 §2.2).
            while self.input.bytes().starts_with(b"\r\n") {
                self.input.consume(2);
                seen = 0;
            }
            let bytes = self.input.bytes();
            let config = &self.worker.config;
            // A head that comes byte by byte is parsed once per line.
            if bytes[seen..].contains(&b'\n') || bytes.len() >= config.max_header_bytes {
                let fallback_host = || {
                    rule_of(&self.site)
                        .map(|rule| format!("{}.{}", rule.id.name, rule.id.namespace))
                        .unwrap_or_default()
                };
                match request::parse(bytes, config, &self.client, fallback_host, &mut self.head) {
                    Parsed::Partial => {}
                    parsed => return Some(parsed),
                }
            }
            seen = bytes.len();
            let filled = std::future::poll_fn(|cx| {
                if self.input.is_empty() && self.drain.phase() != Phase::Serving {
                    return Poll::Ready(None);
                }
                let filled = self.input.poll_fill(&mut self.reader, &self.worker.stock, SMALL, cx);
                filled.map(|filled| filled.ok().filter(|read| *read > 0))
            });
            filled.await?;
        }
    }

    /// Answers a request that is not forwarded, and closes the connection: what follows it cannot be trusted.
    async fn refuse(&mut self, reject: Reject, record: &Record) -> After {
        let text = format!("{}: {}\n", reject.status.as_u16(), reject.reason);
        self.answer(reject.status, &text, None, true, record).await
    }

    async fn fail(&mut self, failure: Failure, request: &Request, record: &Record) -> After {
        let (status, text) = failure.status_and_text();
        let service = &record.backend.service;
        let text = format!("{}: service {service} {text}\n", status.as_u16());
        // A body that nobody takes would be read as the next request.
        let close = self.must_close(request) || request.framing != Framing::None;
        self.answer(status, &text, Some(request), close, record).await
    }

    async fn answer(
        &mut self,
        status: StatusCode,
        text: &str,
        request: Option<&Request>,
        close: bool,
        record: &Record,
    ) -> After {
        record.answered(status);
        let (http10, is_head) = request.map_or((false, false), |request| (request.http10, request.is_head));
        Answer { status, text, http10, is_head, close, date: http_date }.write(&mut self.reply);
        if self.writer.write_all(&self.reply).await.is_err() {
            return After::Drop;
        }
        record.sent(if is_head { 0 } else { text.len() as u64 });
        if close { After::Close } else { After::Next }
    }

    fn must_close(&self, request: &Request) -> bool {
        !request.keep_alive
            || self.requests >= self.worker.config.max_requests_per_connection
            || self.drain.phase() != Phase::Serving
    }

    /// Sends the request to an endpoint, or another, until a response has been delivered.
    async fn serve_request(&mut self, request: &Request, record: &Record) -> After {
        let backend = &*record.backend;
        let stats = backend.stats.shard(self.worker.index);
        let mut tried = Tried::default();
        let mut failure = Failure::NoEndpoints;
        let mut continued = !request.expects_continue;
        for attempt in 0..MAX_ATTEMPTS {
            let choice = Choice::of_client(self.peer, self.worker.index);
            let Some((index, endpoint)) = backend.choose(&choice, tried) else { break };
            if attempt > 0 {
                add(&stats.retries, 1);
            }
            let (upstream, pooled) = match self.checkout(backend, endpoint, record.started).await {
                Ok(found) => found,
                Err(error) => {
                    failure = error;
                    tried.insert(index);
                    continue;
                }
            };
            if !continued {
                continued = true;
                if self.input.is_empty() && self.writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_err() {
                    return After::Drop;
                }
            }
            record.sent_to(endpoint);
            let broke = match self.exchange(request, upstream, record).await {
                Ok(after) => return after,
                Err(broke) => broke,
            };
            if pooled && matches!(broke, Broke::Unsent | Broke::Endpoint) {
                // It was closed while idle, and so perhaps were the others; the endpoint itself may be well.
                self.worker.pool.borrow_mut().forget(endpoint);
            } else {
                tried.insert(index);
            }
            let again = request.idempotent && request.framing == Framing::None;
            failure = match broke {
                Broke::Unsent => Failure::Broken,
                Broke::Endpoint if again => Failure::Broken,
                Broke::Endpoint => return self.fail(Failure::Broken, request, record).await,
                Broke::Malformed => return self.fail(Failure::Malformed, request, record).await,
                Broke::Timeout => return self.fail(Failure::ResponseTimeout, request, record).await,
                Broke::BadBody => {
                    let reason = "the request's chunked body is malformed";
                    return self.refuse(Reject { status: StatusCode::BAD_REQUEST, reason }, record).await;
                }
                Broke::Client => return After::Drop,
                Broke::Midway => return After::Reset,
            };
        }
        self.fail(failure, request, record).await
    }

    /// One attempt on one connection, which goes back to the pool afterwards if it can.
    async fn exchange(&mut self, request: &Request, mut upstream: Upstream, record: &Record) -> Result<After, Broke> {
        let worker = self.worker.clone();
        let job = Job {
            request,
            head: &self.head,
            close: self.must_close(request),
            date: http_date,
            header_timeout: worker.config.response_header_timeout,
            stock: &worker.stock,
        };
        let client = ClientSide {
            reader: &mut self.reader,
            writer: &mut self.writer,
            input: &mut self.input,
            reply: &mut self.reply,
        };
        let (reader, writer) = upstream.stream.split();
        let endpoint = EndpointSide { reader, writer, input: &mut upstream.input, large: &mut upstream.large };
        let Done { response, sent_all } = job.run(client, endpoint, record).await?;
        if response.status == StatusCode::SWITCHING_PROTOCOLS {
            if !request.upgrade {
                // Nobody asked for another protocol; what follows on that connection is not HTTP.
                return Err(Broke::Malformed);
            }
            tunnel::upgrade(self, upstream, record).await;
            return Ok(After::Drop);
        }
        upstream.input.release(&worker.stock);
        if response.reusable && sent_all {
            worker.pool.borrow_mut().put(upstream, Instant::now());
        }
        Ok(match (response.close, sent_all && self.input.is_empty()) {
            (false, _) => After::Next,
            (true, true) => After::Drop,
            (true, false) => After::Close,
        })
    }

    /// A connection to `endpoint` and whether it comes from the pool.
    async fn checkout(
        &self,
        backend: &Backend,
        endpoint: &Arc<EndpointState>,
        now: Instant,
    ) -> Result<(Upstream, bool), Failure> {
        let stats = backend.stats.shard(self.worker.index);
        let pooled = self.worker.pool.borrow_mut().take(endpoint, now);
        if let Some(upstream) = pooled {
            add(&stats.upstream_reused, 1);
            return Ok((upstream, true));
        }
        match Upstream::connect(endpoint, self.worker.config.connect_timeout).await {
            Ok(upstream) => {
                endpoint.report(&backend.policy, Outcome::Connected(now.elapsed()), self.worker.index);
                add(&stats.upstream_opened, 1);
                Ok((upstream, false))
            }
            Err(error) => {
                endpoint.report(&backend.policy, Outcome::ConnectFailed, self.worker.index);
                add(&stats.connect_failures, 1);
                tracing::debug!(service = %backend.service, endpoint = %endpoint.addr, %error, "endpoint is unreachable");
                Err(match error {
                    ConnectError::Timeout => Failure::ConnectTimeout,
                    ConnectError::Io(_) => Failure::Unreachable,
                })
            }
        }
    }

    /// Says that we are done and lets the client finish what it is sending, within bounds.
    async fn linger(&mut self) {
        let goodbye = async {
            self.writer.shutdown().await.ok()?;
            let mut left = LINGER_BYTES;
            while left > 0 {
                self.input.consume(usize::MAX);
                let read = self.input.fill(&mut self.reader, &self.worker.stock, SMALL).await.ok()?;
                left = left.saturating_sub(read.max(1));
                if read == 0 {
                    break;
                }
            }
            Some(())
        };
        // However it ends, the connection is closed next.
        let _ = tokio::time::timeout(LINGER_TIME, goodbye).await;
    }
}

/// Why a request could not be answered by any endpoint.
#[derive(Clone, Copy)]
enum Failure {
    NoEndpoints,
    Unreachable,
    ConnectTimeout,
    Broken,
    Malformed,
    ResponseTimeout,
}

impl Failure {
    fn status_and_text(self) -> (StatusCode, &'static str) {
        match self {
            Self::NoEndpoints => (StatusCode::SERVICE_UNAVAILABLE, "has no ready endpoints"),
            Self::Unreachable => (StatusCode::BAD_GATEWAY, "has endpoints, but none accepted a connection"),
            Self::ConnectTimeout => (StatusCode::GATEWAY_TIMEOUT, "has endpoints, but connecting timed out"),
            Self::Broken => (StatusCode::BAD_GATEWAY, "closed the connection before it responded"),
            Self::Malformed => (StatusCode::BAD_GATEWAY, "sent a response that is not valid HTTP/1.1"),
            Self::ResponseTimeout => (StatusCode::GATEWAY_TIMEOUT, "did not respond in time"),
        }
    }
}

/// Now, as in a `Date` header.
pub(crate) fn http_date() -> String {
    let now = k8s_openapi::jiff::Timestamp::now();
    // Only years beyond 9999 cannot be printed.
    k8s_openapi::jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&now).unwrap_or_default()
}
