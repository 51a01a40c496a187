//! HTTP/1.1: one client connection, request by request (RFC 9112).
//!
//! ```text
//! Conn::run ── next head ── decide ──┬─ an answer of our own
//!                                    └─ attempt: admission, endpoint, retries ── exchange
//! ```
//!
//! Timeouts: a connection has one timer, moved only when it fires. What moves per request is a plain deadline.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::StatusCode;
use socket2::SockRef;
use tokio::io::AsyncWriteExt;

use super::buffer::{Buffer, SMALL};
use super::decide::{Forward, Local, decide};
use super::drain::{Drain, Phase};
use super::exchange::Patience;
use super::held::Unseen;
use super::io::{Stream, send};
use super::local::Seen;
use super::own::{Ends, OwnCell};
use super::record::Record;
use super::request::{self, Client, Framing, Parsed, Reject, Request};
use super::response::Answer;
use super::site::Target;
use super::worker::{Accepted, Active, Worker};
use crate::access::{Flags, Wire, WrittenHead};
use crate::stats::Spoken;

/// How long, and for how many bytes, a client may go on sending after we refused what it sends: closing at once would
/// reset the connection and take our answer with it.
const LINGER_TIME: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1024 * 1024;

/// A client connection.
pub(super) struct Conn<'s, S: Stream> {
    pub worker: Rc<Worker>,
    pub target: Target,
    drain: Rc<Drain>,
    pub client: Client,
    pub own: OwnCell,
    pub reader: S::Reader<'s>,
    pub writer: S::Writer<'s>,
    /// Received and not yet used.
    pub input: Buffer,
    /// The request's head as it goes upstream; kept until there is a response, to send it again.
    pub head: Vec<u8>,
    /// The response's head as it goes to the client.
    pub reply: Vec<u8>,
    /// Requests seen so far.
    requests: u64,
    /// TLS version towards the client.
    tls: Option<&'static str>,
    counted: &'s Accepted,
    pub patience: Patience<'s>,
    /// See [`super::exchange::Job::torn`].
    pub torn: Cell<bool>,
}

/// What becomes of a connection after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// It waits for the next one.
    Next,
    /// It is closed once the client has seen everything.
    Close,
    /// It is closed at once.
    Drop,
    /// It is reset, so that the client sees that the response is incomplete.
    Reset,
    /// It goes on in HTTP/2, with what was read.
    Http2,
}

/// Serves a client connection until either side closes it or the listener's drain ends it. A client that begins to speak HTTP/2 is
/// given back, with what it said.
pub(super) async fn serve<S: Stream>(
    worker: Rc<Worker>,
    mut stream: S,
    ends: Ends,
    target: Target,
    drain: Rc<Drain>,
    counted: &Accepted,
) -> Option<(S, Buffer)> {
    let _active = active(&worker, &target);
    let timeout = worker.config.header_read_timeout;
    let deadline = Cell::new(Some(Instant::now() + timeout));
    let tls = stream.tls_version();
    let ended = {
        let work = async {
            let (reader, writer) = stream.halves();
            let ip = ends.client.ip().to_canonical();
            let mut conn = Conn::<S> {
                client: Client::new(ip, worker.config.trust_forwarded_headers, target.is_tls()),
                own: OwnCell::new(ends),
                drain: drain.clone(),
                input: Buffer::default(),
                head: Vec::new(),
                reply: Vec::new(),
                requests: 0,
                tls,
                counted,
                patience: Patience { deadline: &deadline, longest: worker.config.body_idle_timeout },
                torn: Cell::new(false),
                worker: worker.clone(),
                target,
                reader,
                writer,
            };
            let after = conn.run(&deadline).await;
            (after, conn.input)
        };
        let mut work = pin!(work);
        let mut timer = pin!(tokio::time::sleep(timeout));
        let (mut draining, mut aborting) = (pin!(drain.reached(Phase::Draining)), pin!(drain.reached(Phase::Aborting)));
        let mut registered = false;
        std::future::poll_fn(|cx| {
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
                        tracing::trace!(peer = %ends.client, "the client let us wait too long");
                        return Poll::Ready(None);
                    }
                    timer.as_mut().reset(due.unwrap_or(now + timeout).into());
                }
            }
            registered = true;
            work.as_mut().poll(cx).map(Some)
        })
        .await
    };
    match ended {
        Some((After::Http2, input)) => return Some((stream, input)),
        Some((After::Reset, _)) => {
            stream.with_tcp(|tcp| {
                // If it fails, the client sees an orderly end in the middle of a message, which is as wrong.
                let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
            });
        }
        _ => {}
    }
    None
}

/// Counts the connection for its Service, if the listener is a Service's own port.
fn active(worker: &Worker, target: &Target) -> Option<Active> {
    let site = target.load();
    let rule = target.table(&site)?.single()?;
    let stats = rule.backends.first()?.cell.as_ref()?.load().stats.clone();
    Some(Active::new(stats, worker.index))
}

/// What came next on a connection.
enum Next {
    /// What is to be done is in the slot.
    Forward,
    Answer(Box<Local>, Seen),
    Refused(Reject),
    Http2,
}

impl<S: Stream> Conn<'_, S> {
    async fn run(&mut self, deadline: &Cell<Option<Instant>>) -> After {
        let timeout = self.worker.config.header_read_timeout;
        // In a place of its own: what is returned from function to function is copied each time.
        let mut work = None;
        loop {
            let Some(next) = self.next(&mut work).await else { return After::Drop };
            deadline.set(None);
            if self.requests == 0 && !matches!(next, Next::Http2) {
                self.counted.speaks(Spoken::Http1);
            }
            self.requests += 1;
            let (after, now) = match next {
                Next::Forward => {
                    let Some(work) = &mut work else { return After::Drop };
                    self.input.consume(work.request.length);
                    let told = (work.session.take(), work.asked.take());
                    let record =
                        Record::start(self.worker.clone(), work.rule.clone(), work.backend.clone(), told, &self.own);
                    let after = self.forward(work, &record).await;
                    if record.wants_description() {
                        record.describe(&WrittenHead::parse(&self.head, self.client.ip), self.wire());
                    }
                    (after, record.finish())
                }
                Next::Answer(local, seen) => {
                    self.input.consume(local.request.length);
                    (self.answer_locally(&local, seen).await, Instant::now())
                }
                Next::Refused(reject) => (self.refused(reject).await, Instant::now()),
                Next::Http2 if self.requests == 1 => return After::Http2,
                Next::Http2 => return After::Drop,
            };
            work = None;
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

    /// Waits for a whole head and decides about it; `None` when there will be none.
    async fn next(&mut self, work: &mut Option<Forward>) -> Option<Next> {
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
                let site = self.target.load();
                let table = self.target.table(&site)?;
                let wire = self.wire();
                let (target, desk, out) = (&self.target, &self.worker.desk, &mut self.head);
                let routed = table.single().is_none();
                let observers = &self.worker.observers;
                let parsed = request::parse(bytes, config, &self.client, routed, |head| {
                    match decide(target, &site, table, head, (desk, out)) {
                        Ok(decided) => {
                            *work = Some(decided);
                            Ok(())
                        }
                        Err(local) => {
                            let seen = Seen::new(observers, local.rule.as_deref(), local.status, head, wire);
                            Err((local, seen))
                        }
                    }
                });
                match parsed {
                    Parsed::Partial => {}
                    Parsed::Complete(Ok(())) => return Some(Next::Forward),
                    Parsed::Complete(Err((answer, seen))) => return Some(Next::Answer(answer, seen)),
                    Parsed::Refused(reject) => return Some(Next::Refused(reject)),
                    Parsed::Http2 => return Some(Next::Http2),
                }
            }
            seen = bytes.len();
            let filled = std::future::poll_fn(|cx| {
                if self.input.is_empty() && self.drain.phase() >= Phase::Draining {
                    return Poll::Ready(None);
                }
                let filled = self.input.poll_fill(&mut self.reader, &self.worker.stock, SMALL, cx);
                filled.map(|filled| filled.ok().filter(|read| *read > 0))
            });
            filled.await?;
        }
    }

    /// How requests come here.
    fn wire(&self) -> Wire {
        Wire { protocol: "HTTP/1.1", tls: self.tls }
    }

    /// Answers a request of which nothing is known.
    async fn refused(&mut self, reject: Reject) -> After {
        // What is there is an earlier request's.
        self.head.clear();
        let Some(record) = self.record() else {
            let seen = Seen::new(&self.worker.observers, None, reject.status, &Unseen(self.client.ip), self.wire());
            let after = self.refuse(reject, None).await;
            let sent = if after == After::Drop { 0 } else { reject.text().len() as u64 };
            seen.answered(&self.worker, &self.target, None, reject.status, sent);
            return after;
        };
        let after = self.refuse(reject, Some(&record)).await;
        if record.wants_description() {
            record.describe(&WrittenHead::parse(&self.head, self.client.ip), self.wire());
        }
        record.finish();
        after
    }

    /// Counts what is refused at a Service's own port; which route else is meant is not known.
    fn record(&self) -> Option<Record> {
        let site = self.target.load();
        let rule = self.target.table(&site)?.single()?;
        let backend = rule.backends.first()?.cell.as_ref()?.load_full();
        Some(Record::start(self.worker.clone(), rule.clone(), backend, (None, None), &self.own))
    }

    /// Answers a request that is not forwarded, and closes the connection: what follows it cannot be trusted.
    pub async fn refuse(&mut self, reject: Reject, record: Option<&Record>) -> After {
        if let Some(record) = record {
            record.flag(Flags::BAD_REQUEST);
        }
        self.answer(reject.status, &reject.text(), &[], None, true, record).await
    }

    async fn answer_locally(&mut self, local: &Local, seen: Seen) -> After {
        let request = &local.request;
        // A body that nobody takes would be read as the next request.
        let close = local.close || self.must_close(request) || request.framing != Framing::None;
        let after = self.answer(local.status, &local.text, &local.fields, Some(request), close, None).await;
        let sent = if after == After::Drop || request.is_head { 0 } else { local.text.len() as u64 };
        seen.answered(&self.worker, &self.target, local.rule.as_deref(), local.status, sent);
        after
    }

    pub async fn answer(
        &mut self,
        status: StatusCode,
        text: &str,
        fields: &[(&str, String)],
        request: Option<&Request>,
        close: bool,
        record: Option<&Record>,
    ) -> After {
        if let Some(record) = record {
            record.answered(status);
        }
        let (http10, is_head) = request.map_or((false, false), |request| (request.http10, request.is_head));
        Answer { status, fields, text, http10, is_head, close, date: http_date }.write(&mut self.reply);
        if send(&mut self.writer, &self.reply).await.is_err() {
            return After::Drop;
        }
        if let Some(record) = record {
            record.sent(if is_head { 0 } else { text.len() as u64 });
        }
        if close { After::Close } else { After::Next }
    }

    pub fn must_close(&self, request: &Request) -> bool {
        !request.keep_alive
            || self.requests >= self.worker.config.max_requests_per_connection
            || self.drain.phase() != Phase::Serving
    }

    /// Resolves when the client leaves. What it sends meanwhile is kept, up to a buffer.
    pub async fn gone(&mut self) {
        std::future::poll_fn(|cx| {
            if !self.input.is_empty() {
                return Poll::Pending;
            }
            let filled = self.input.poll_fill(&mut self.reader, &self.worker.stock, SMALL, cx);
            match filled {
                Poll::Ready(Ok(1..)) | Poll::Pending => Poll::Pending,
                Poll::Ready(_) => Poll::Ready(()),
            }
        })
        .await;
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

/// Now, as in a `Date` header.
pub(super) fn http_date() -> String {
    let now = k8s_openapi::jiff::Timestamp::now();
    // Only years beyond 9999 cannot be printed.
    k8s_openapi::jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&now).unwrap_or_default()
}
