//! A client's stream: the request's body as it comes, the response as it goes.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::pin;
use std::task::Poll;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Response, StatusCode};

use super::forward::Job;
use super::{Broke, filters, response};
use crate::proxy::exchange::Copied;
use crate::proxy::record::Record;

/// A client's stream while its request is served.
pub(super) struct Stream {
    body: RecvStream,
    pub respond: SendResponse<Bytes>,
    /// Something of the body was taken: the request cannot be sent again.
    taken: Cell<bool>,
    /// The response has begun.
    answered: Cell<bool>,
    /// Payload bytes received.
    received: Cell<u64>,
    continued: Cell<bool>,
    /// Where the body goes, too.
    pub copy: Option<RefCell<Copied>>,
}

impl Stream {
    pub fn new(body: RecvStream, respond: SendResponse<Bytes>) -> Self {
        Self {
            body,
            respond,
            taken: Cell::new(false),
            answered: Cell::new(false),
            received: Cell::new(0),
            continued: Cell::new(false),
            copy: None,
        }
    }

    /// Something of the body was taken: the request cannot be sent again.
    pub fn is_taken(&self) -> bool {
        self.taken.get()
    }

    /// The response has begun.
    pub fn is_answered(&self) -> bool {
        self.answered.get()
    }

    /// The two directions.
    pub fn split<'a>(&'a mut self, job: &'a Job<'_>) -> (Body<'a>, Reply<'a>) {
        if job.head.expects_continue && !self.continued.replace(true) {
            // A client that does not wait for it does not mind it.
            let mut interim = Response::new(());
            *interim.status_mut() = StatusCode::CONTINUE;
            let _ = self.respond.send_informational(interim);
        }
        // What goes through a tunnel is no body.
        let limit = job.record.rule.policy.max_body_bytes.filter(|_| !job.head.websocket);
        let body = Body {
            stream: &mut self.body,
            taken: &self.taken,
            received: &self.received,
            limit: limit.unwrap_or(u64::MAX),
            record: job.record,
            copy: self.copy.as_ref(),
        };
        let respond = RefCell::new(&mut self.respond);
        (body, Reply { respond, answered: &self.answered, taken: &self.taken })
    }
}

/// The client's body on its way.
pub(super) struct Body<'a> {
    stream: &'a mut RecvStream,
    taken: &'a Cell<bool>,
    received: &'a Cell<u64>,
    limit: u64,
    record: &'a Record,
    copy: Option<&'a RefCell<Copied>>,
}

impl Body<'_> {
    /// The next piece; the client may send more only once [`Body::pass`] is told that it went on.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Broke> {
        let next = std::future::poll_fn(|cx| self.stream.poll_data(cx)).await;
        let next = next.transpose().map_err(|error| broke_body(&error))?;
        if let Some(copy) = self.copy {
            let mut copy = copy.borrow_mut();
            match &next {
                Some(data) => copy.push(data),
                None => copy.complete = true,
            }
        }
        let Some(data) = next else { return Ok(None) };
        self.taken.set(true);
        let received = self.received.get() + data.len() as u64;
        self.received.set(received);
        self.record.received(data.len() as u64);
        if received > self.limit {
            return Err(Broke::TooLarge);
        }
        Ok(Some(data))
    }

    /// That many bytes went on to the endpoint.
    pub fn pass(&mut self, bytes: usize) {
        // Fails only for a stream that is over.
        let _ = self.stream.flow_control().release_capacity(bytes);
    }

    pub async fn trailers(&mut self) -> Result<Option<HeaderMap>, Broke> {
        std::future::poll_fn(|cx| self.stream.poll_trailers(cx)).await.map_err(|error| broke_body(&error))
    }
}

/// A body that contradicts its head is the crate's finding; everything else is a client that left.
fn broke_body(error: &h2::Error) -> Broke {
    if error.is_library() { Broke::BadBody } else { Broke::Client }
}

/// The response on its way to the client.
pub(super) struct Reply<'a> {
    /// Used by who waits for the head and by who passes interim ones on meanwhile.
    respond: RefCell<&'a mut SendResponse<Bytes>>,
    answered: &'a Cell<bool>,
    taken: &'a Cell<bool>,
}

impl Reply<'_> {
    /// Something of the request's body was taken.
    pub fn is_taken(&self) -> bool {
        self.taken.get()
    }

    /// Waits for the endpoint's head: as long as the client does, and no longer than allowed once the request is sent.
    pub async fn wait<T>(
        &self,
        job: &Job<'_>,
        uploaded: &Cell<bool>,
        head: impl Future<Output = Result<T, Broke>>,
    ) -> Result<T, Broke> {
        let mut head = pin!(head);
        let mut wait = pin!(std::future::poll_fn(|cx| {
            if let Poll::Ready(done) = head.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            self.respond.borrow_mut().poll_reset(cx).map(|_| Err(Broke::Client))
        }));
        let Some(timeout) = job.head_timeout else { return wait.await };
        loop {
            let sent = uploaded.get();
            match tokio::time::timeout(timeout, wait.as_mut()).await {
                Ok(done) => return done,
                Err(_) if sent => return Err(Broke::Timeout),
                Err(_) => {}
            }
        }
    }

    /// Passes a head of class 1xx on, if it is for the client. Filters take fields away; what they add comes with the real response.
    pub fn interim(&self, job: &Job<'_>, mut head: Response<()>) {
        if response::passes_interim(head.status()) {
            filters::interim(job.filters, job.own_fields, head.headers_mut());
            response::strip(head.headers_mut());
            head.headers_mut().remove(http::header::CONTENT_LENGTH);
            // A client that is gone is noticed by who waits.
            let _ = self.respond.borrow_mut().send_informational(head);
        }
    }

    /// Begins the response; with `end` it is over.
    pub fn head(&self, job: &Job<'_>, mut head: Response<()>, end: bool) -> Result<SendStream<Bytes>, Broke> {
        let session = job.record.session_field();
        filters::response(job.filters, job.own_fields, session.as_ref(), head.headers_mut());
        response::finish(head.headers_mut());
        self.answered.set(true);
        job.record.answered(head.status());
        job.meter.answered();
        self.respond.borrow_mut().send_response(head, end).map_err(|_| Broke::Client)
    }
}

/// Runs `work` unless the client cancels the request first.
pub(super) async fn until_cancelled<T>(respond: &mut SendResponse<Bytes>, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    std::future::poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Some(done));
        }
        respond.poll_reset(cx).map(|_| None)
    })
    .await
}
