//! Bodies as they pass through: never buffered, counted per frame, dropped into the right place at the end.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::pool::Upstream;
use super::worker::Worker;
use crate::backend::{Backend, EndpointState};
use crate::stats::{CODE_CLIENT_GONE, add};

/// A request body on its way to an endpoint.
pub(crate) enum RequestBody {
    /// The request has none and may be sent again.
    Empty,
    /// Streamed from the client as the endpoint takes it.
    Stream { body: Incoming, meter: Meter },
}

/// Counts payload bytes for a Service and, once chosen, an endpoint.
pub(crate) struct Meter {
    pub backend: Arc<Backend>,
    pub endpoint: Option<Arc<EndpointState>>,
    pub thread: usize,
}

impl Meter {
    fn received(&self, bytes: usize) {
        add(&self.backend.stats.shard(self.thread).bytes_in, bytes as u64);
        if let Some(usage) = self.endpoint.as_deref().and_then(EndpointState::usage) {
            usage.received(self.thread, bytes as u64);
        }
    }
}

impl RequestBody {
    /// Attributes the bytes that follow to `endpoint`.
    pub fn assign(&mut self, endpoint: &Arc<EndpointState>) {
        if let Self::Stream { meter, .. } = self {
            meter.endpoint = Some(endpoint.clone());
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self::Stream { body, meter } = &mut *self else { return Poll::Ready(None) };
        let frame = Pin::new(body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
        {
            meter.received(data.len());
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Stream { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Stream { body, .. } => body.size_hint(),
        }
    }
}

/// One request from its arrival to the last byte of its response. Counted when dropped, whatever ended it.
pub(crate) struct Record {
    pub worker: Rc<Worker>,
    pub backend: Arc<Backend>,
    started: Instant,
    code: u16,
    endpoint: Option<Arc<EndpointState>>,
}

impl Record {
    pub fn start(worker: Rc<Worker>, backend: Arc<Backend>) -> Self {
        Self { worker, backend, started: Instant::now(), code: CODE_CLIENT_GONE, endpoint: None }
    }

    /// The request goes to `endpoint` (again, when an earlier one failed).
    pub fn sent_to(&mut self, endpoint: &Arc<EndpointState>) {
        self.leave_endpoint();
        endpoint.begin(self.worker.index);
        self.endpoint = Some(endpoint.clone());
    }

    pub fn answered(&mut self, code: http::StatusCode) {
        self.code = code.as_u16();
        if let Some(usage) = self.endpoint.as_deref().and_then(EndpointState::usage) {
            usage.request(self.worker.index);
        }
    }

    /// Payload bytes went to the client.
    pub fn sent(&self, bytes: u64) {
        add(&self.backend.stats.shard(self.worker.index).bytes_out, bytes);
        if let Some(usage) = self.endpoint.as_deref().and_then(EndpointState::usage) {
            usage.sent(self.worker.index, bytes);
        }
    }

    /// Payload bytes came from the client (upgraded connections; request bodies count themselves).
    pub fn received(&self, bytes: u64) {
        add(&self.backend.stats.shard(self.worker.index).bytes_in, bytes);
        if let Some(usage) = self.endpoint.as_deref().and_then(EndpointState::usage) {
            usage.received(self.worker.index, bytes);
        }
    }

    fn leave_endpoint(&mut self) {
        if let Some(endpoint) = self.endpoint.take() {
            endpoint.end(self.worker.index);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.leave_endpoint();
        self.backend.stats.shard(self.worker.index).record(self.code, self.started.elapsed());
    }
}

/// A response body on its way to the client. An endpoint's body holds the upstream connection that produces it: polling
/// the body is what drives that connection, so a request needs no second task.
pub(crate) enum ResponseBody {
    /// Nothing.
    Empty,
    /// A short text of ours.
    Text { text: Option<Bytes>, record: Record },
    /// What an endpoint sends.
    Upstream { body: Incoming, upstream: Option<Box<Upstream>>, record: Record },
}

impl ResponseBody {
    pub fn text(text: String, record: Record) -> Self {
        Self::Text { text: Some(Bytes::from(text)), record }
    }

    /// The body of an endpoint's response. A response without one gives its connection back at once.
    pub fn upstream(body: Incoming, upstream: Box<Upstream>, record: Record) -> Self {
        if body.is_end_stream() {
            record.worker.pool.borrow_mut().put(upstream);
            return Self::Empty;
        }
        Self::Upstream { body, upstream: Some(upstream), record }
    }
}

/// The next frame of an endpoint's body; gives the connection back after the last one.
fn poll_upstream(
    body: &mut Incoming,
    upstream: &mut Option<Box<Upstream>>,
    record: &Record,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
    let mut frame = Pin::new(&mut *body).poll_frame(cx);
    if frame.is_pending()
        && let Some(upstream) = upstream
    {
        upstream.drive(cx);
        frame = Pin::new(&mut *body).poll_frame(cx);
    }
    let ended = match &frame {
        Poll::Pending => return Poll::Pending,
        Poll::Ready(Some(Ok(frame))) => {
            record.sent(frame.data_ref().map_or(0, |data| data.len() as u64));
            body.is_end_stream()
        }
        Poll::Ready(Some(Err(_))) => {
            *upstream = None;
            false
        }
        Poll::Ready(None) => true,
    };
    if ended && let Some(upstream) = upstream.take() {
        record.worker.pool.borrow_mut().put(upstream);
    }
    frame
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Text { text, record } => {
                let text = text.take();
                record.sent(text.as_ref().map_or(0, |text| text.len() as u64));
                Poll::Ready(text.map(|text| Ok(Frame::data(text))))
            }
            Self::Upstream { body, upstream, record } => poll_upstream(body, upstream, record, cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Text { text, .. } => text.is_none(),
            Self::Upstream { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Text { text, .. } => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Self::Upstream { body, .. } => body.size_hint(),
        }
    }
}
