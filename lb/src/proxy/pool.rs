//! Upstream connections of one proxy thread: opened, driven inline, kept while idle.
//!
//! An [`Upstream`] is hyper's sender and connection together. Whoever uses it polls both in its own task, so a request
//! needs neither a task nor a wake-up of its own upstream. Nothing here is shared between threads.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::body::RequestBody;
use crate::backend::EndpointState;

/// Header fields accepted in a response; more is treated as a broken endpoint.
const MAX_RESPONSE_HEADERS: usize = 200;
/// Largest buffer hyper keeps for a connection in bytes: bounds a response head, and what a slow client makes us hold.
const MAX_BUFFER: usize = 128 * 1024;

/// Why no response came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("connecting timed out")]
    Timeout,
    #[error("connecting failed")]
    Io(#[source] std::io::Error),
    #[error("setting up HTTP failed")]
    Http(#[source] hyper::Error),
}

/// Why an exchange on an open connection failed.
pub(crate) struct ExchangeError {
    /// The request, when nothing of it was sent.
    pub unsent: Option<Box<Request<RequestBody>>>,
    /// Whether the endpoint sent something that is not HTTP; sending the request again would not help.
    pub malformed: bool,
}

/// A connection to an endpoint.
pub(crate) struct Upstream {
    pub endpoint: Arc<EndpointState>,
    sender: SendRequest<RequestBody>,
    connection: Connection<TokioIo<TcpStream>, RequestBody>,
    /// The connection's future has ended: it must not be polled again.
    done: bool,
}

impl Upstream {
    /// Opens a connection to `endpoint` within `timeout`.
    pub async fn connect(endpoint: &Arc<EndpointState>, timeout: Duration) -> Result<Box<Self>, ConnectError> {
        let stream = connect(endpoint.addr, timeout).await?;
        let (sender, connection) = http1::Builder::new()
            .max_headers(MAX_RESPONSE_HEADERS)
            .max_buf_size(MAX_BUFFER)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(ConnectError::Http)?;
        Ok(Box::new(Self { endpoint: endpoint.clone(), sender, connection, done: false }))
    }

    /// Lets the connection read and write what it can.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        // Errors reach whoever waits for the response or its body.
        if !self.done && self.connection.poll_without_shutdown(cx).is_ready() {
            self.done = true;
        }
    }

    /// Sends `request` and waits for the response head.
    pub async fn exchange(&mut self, request: Request<RequestBody>) -> Result<Response<Incoming>, ExchangeError> {
        let mut response = std::pin::pin!(self.sender.try_send_request(request));
        let result = std::future::poll_fn(|cx| {
            if !self.done && self.connection.poll_without_shutdown(cx).is_ready() {
                self.done = true;
            }
            response.as_mut().poll(cx)
        })
        .await;
        result.map_err(|mut error| {
            let unsent = error.take_message().map(Box::new);
            let error = error.into_error();
            tracing::trace!(%error, endpoint = %self.endpoint.addr, "exchange failed");
            ExchangeError { unsent, malformed: error.is_parse() }
        })
    }

    /// After a 101: waits until hyper has let go of the socket; the socket and bytes already received on it.
    pub async fn into_stream(mut self: Box<Self>) -> (TcpStream, bytes::Bytes) {
        std::future::poll_fn(|cx| {
            self.drive(cx);
            if self.done { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let parts = self.connection.into_parts();
        (parts.io.into_inner(), parts.read_buf)
    }

    /// Whether another request can be sent. Notices a close by the endpoint.
    fn is_usable(&mut self, cx: &mut Context<'_>) -> bool {
        self.drive(cx);
        !self.done && self.sender.is_ready()
    }
}

/// Connects within `timeout`, without Nagle's delay.
pub(crate) async fn connect(addr: SocketAddr, timeout: Duration) -> Result<TcpStream, ConnectError> {
    let stream = tokio::time::timeout(timeout, TcpStream::connect(addr)).await.map_err(|_| ConnectError::Timeout)?;
    let stream = stream.map_err(ConnectError::Io)?;
    stream.set_nodelay(true).map_err(ConnectError::Io)?;
    Ok(stream)
}

/// Idle connections of one thread.
pub(crate) struct Pool {
    idle: HashMap<u64, Vec<Idle>>,
    max_idle_per_endpoint: usize,
    idle_timeout: Duration,
}

struct Idle {
    upstream: Box<Upstream>,
    since: Instant,
}

impl Pool {
    pub fn new(max_idle_per_endpoint: usize, idle_timeout: Duration) -> Self {
        Self { idle: HashMap::new(), max_idle_per_endpoint, idle_timeout }
    }

    /// The most recently used idle connection to `endpoint` that is still open.
    pub fn take(&mut self, endpoint: &EndpointState) -> Option<Box<Upstream>> {
        let idle = self.idle.get_mut(&endpoint.id)?;
        // The user polls it with its own waker right away, so a wake-up missed here is not lost.
        let mut cx = Context::from_waker(Waker::noop());
        while let Some(Idle { mut upstream, since }) = idle.pop() {
            if since.elapsed() < self.idle_timeout && upstream.is_usable(&mut cx) {
                return Some(upstream);
            }
        }
        None
    }

    /// Keeps a connection whose exchange is over, unless it cannot be used again or its endpoint is gone.
    pub fn put(&mut self, mut upstream: Box<Upstream>) {
        let mut cx = Context::from_waker(Waker::noop());
        if upstream.endpoint.is_removed() || !upstream.is_usable(&mut cx) {
            return;
        }
        let idle = self.idle.entry(upstream.endpoint.id).or_default();
        if idle.len() < self.max_idle_per_endpoint {
            idle.push(Idle { upstream, since: Instant::now() });
        }
    }

    /// Closes all idle connections to an endpoint: one of them turned out to be dead.
    pub fn forget(&mut self, endpoint: &EndpointState) {
        self.idle.remove(&endpoint.id);
    }

    /// Closes what is too old, was closed by its endpoint, or belongs to an endpoint that is gone.
    pub fn sweep(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        let timeout = self.idle_timeout;
        self.idle.retain(|_, idle| {
            idle.retain_mut(|entry| {
                !entry.upstream.endpoint.is_removed()
                    && entry.since.elapsed() < timeout
                    && entry.upstream.is_usable(&mut cx)
            });
            !idle.is_empty()
        });
    }

    /// Closes everything.
    pub fn clear(&mut self) {
        self.idle.clear();
    }
}
