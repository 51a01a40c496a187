//! HTTP/2 connections to endpoints, shared by many requests of one proxy thread.
//!
//! A connection takes as many streams as its endpoint allows (and [`MAX_STREAMS`] at most); when all are full another one is opened,
//! up to [`MAX_CONNECTIONS`], and then requests wait. Connections end when they are idle, when their endpoint is gone or says GOAWAY, or
//! when it does not answer a PING; streams on them finish first where the endpoint still serves them.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{Connection, ResponseFuture, SendRequest};
use h2::{Ping, RecvStream, SendStream};
use http::{Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;

use super::{Broke, CONNECTION_WINDOW_BYTES, RESET_STREAM_TIME, RESET_STREAMS, SEND_BUFFER_BYTES, STREAM_WINDOW_BYTES};
use crate::backend::EndpointState;
use crate::proxy::pool::{ConnectError, IdHasher, Opening, connect};
use crate::proxy::response::{MAX_HEAD_BYTES, MAX_INFORMATIONAL};

/// Streams on one connection at a time.
const MAX_STREAMS: usize = 100;
/// Connections per endpoint and thread.
const MAX_CONNECTIONS: usize = 8;
/// How long a connection without streams is kept.
const IDLE_TIME: Duration = Duration::from_secs(60);
/// A connection with streams is asked whether it is alive this often; no answer until the next time ends it.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// How long after it was opened a connection's settings may come (they are the first thing that an endpoint sends, RFC 9113 §3.4), and
/// how often that is looked at.
const SETTINGS_TIME: Duration = Duration::from_secs(1);
const SETTINGS_PAUSE: Duration = Duration::from_millis(2);

/// All of a thread's HTTP/2 connections to endpoints.
#[derive(Debug, Default)]
pub(crate) struct Pool(RefCell<ByEndpoint>);

/// By endpoint and TLS settings (0: none).
type ByEndpoint = HashMap<(u64, u64), Rc<Connections>, BuildHasherDefault<IdHasher>>;

/// Those to one endpoint, under the same TLS settings.
#[derive(Debug, Default)]
struct Connections {
    open: RefCell<Vec<Rc<Conn>>>,
    connecting: Cell<bool>,
    /// Failed attempts to connect, so that those who waited for one fail with it.
    failures: Cell<u64>,
    /// A stream ended, or connecting did.
    changed: Notify,
}

#[derive(Debug)]
struct Conn {
    sender: SendRequest<Bytes>,
    endpoint: Arc<EndpointState>,
    state: Rc<ConnState>,
}

/// Shared with the task that drives the connection; knows no sender, which would keep the connection open.
#[derive(Debug)]
struct ConnState {
    streams: Cell<usize>,
    closed: Cell<bool>,
    idle_since: Cell<Instant>,
    opened: Instant,
}

/// Leave to open one stream. Must live as long as the stream.
#[derive(Debug)]
pub(crate) struct Lease {
    conn: Rc<Conn>,
    all: Rc<Connections>,
    /// The connection carried others before.
    pub pooled: bool,
}

impl Pool {
    /// A place for a stream to `endpoint`, on an open connection or a new one, within the time for opening one.
    pub async fn checkout(&self, endpoint: &Arc<EndpointState>, opening: Opening<'_>) -> Result<Lease, ConnectError> {
        let key = (endpoint.id, opening.connector.map_or(0, |connector| connector.id));
        let all = self.0.borrow_mut().entry(key).or_default().clone();
        if let Some(lease) = all.lease() {
            return Ok(lease);
        }
        let failures = all.failures.get();
        let wait = async {
            loop {
                if let Some(lease) = all.lease() {
                    return Ok(lease);
                }
                if all.failures.get() != failures {
                    return Err(ConnectError::Io(io::ErrorKind::ConnectionRefused.into()));
                }
                if !all.connecting.get() && all.open.borrow().len() < MAX_CONNECTIONS {
                    return all.open(endpoint, opening).await;
                }
                all.changed.notified().await;
            }
        };
        tokio::time::timeout(opening.timeout, wait).await.unwrap_or(Err(ConnectError::Timeout))
    }

    /// Lets go of connections that are too old, closed, or belong to an endpoint that is gone.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.0.borrow_mut().retain(|_, all| {
            all.open.borrow_mut().retain(|conn| {
                let idle = conn.state.streams.get() == 0 && now.duration_since(conn.state.idle_since.get()) > IDLE_TIME;
                !conn.state.closed.get() && !conn.endpoint.is_removed() && !idle
            });
            !all.open.borrow().is_empty() || Rc::strong_count(all) > 1
        });
    }

    /// Lets go of everything.
    pub fn clear(&self) {
        for (_, all) in self.0.borrow_mut().drain() {
            // Their tasks know `all`, so that they would keep each other.
            all.open.borrow_mut().clear();
        }
    }
}

impl Connections {
    /// A place on the connection with the fewest streams.
    fn lease(self: &Rc<Self>) -> Option<Lease> {
        let mut open = self.open.borrow_mut();
        open.retain(|conn| !conn.state.closed.get());
        let conn = open.iter().min_by_key(|conn| conn.state.streams.get())?;
        if conn.state.streams.get() >= conn.sender.current_max_send_streams().min(MAX_STREAMS) {
            return None;
        }
        Some(Lease::new(conn, self, true))
    }

    async fn open(self: &Rc<Self>, endpoint: &Arc<EndpointState>, opening: Opening<'_>) -> Result<Lease, ConnectError> {
        let connecting = Connecting::begin(self);
        let now = Instant::now();
        let (streams, closed, idle_since) = (Cell::new(0), Cell::new(false), Cell::new(now));
        let state = Rc::new(ConnState { streams, closed, idle_since, opened: now });
        let stream = connect(endpoint.addr, opening).await?;
        let sender = match opening.connector {
            None => self.greet(stream, &state).await?,
            // Whoever waits for us bounds the time, too. Boxed, so that other connections need no room for it.
            Some(connector) => {
                let secured = Box::pin(connector.secure_http2(stream)).await?;
                Box::pin(self.greet(secured, &state)).await?
            }
        };
        connecting.succeeded();
        let conn = Rc::new(Conn { sender, endpoint: endpoint.clone(), state });
        self.open.borrow_mut().push(conn.clone());
        Ok(Lease::new(&conn, self, false))
    }
}

impl Connections {
    /// Begins HTTP/2 on a new connection and sees that its frames move.
    async fn greet<IO: AsyncRead + AsyncWrite + Unpin + 'static>(
        self: &Rc<Self>,
        io: IO,
        state: &Rc<ConnState>,
    ) -> Result<SendRequest<Bytes>, ConnectError> {
        let handshake = client_settings().handshake::<_, Bytes>(io).await;
        let (sender, connection) = handshake.map_err(|error| ConnectError::Io(io::Error::other(error)))?;
        tokio::task::spawn_local(drive(connection, state.clone(), self.clone()));
        Ok(sender)
    }
}

/// Marks that somebody connects, while it lives.
struct Connecting<'a> {
    all: &'a Connections,
    succeeded: bool,
}

impl<'a> Connecting<'a> {
    fn begin(all: &'a Connections) -> Self {
        all.connecting.set(true);
        Self { all, succeeded: false }
    }

    fn succeeded(mut self) {
        self.succeeded = true;
    }
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        self.all.connecting.set(false);
        if !self.succeeded {
            self.all.failures.set(self.all.failures.get() + 1);
        }
        self.all.changed.notify_waiters();
    }
}

fn client_settings() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_concurrent_reset_streams(RESET_STREAMS)
        .reset_stream_duration(RESET_STREAM_TIME);
    builder
}

/// Moves a connection's frames until it is over.
async fn drive<IO: AsyncRead + AsyncWrite + Unpin>(
    mut connection: Connection<IO, Bytes>,
    state: Rc<ConnState>,
    all: Rc<Connections>,
) {
    let mut ping_pong = connection.ping_pong();
    let mut timer = pin!(tokio::time::sleep(PING_INTERVAL));
    let mut connection = pin!(connection);
    let mut asked = false;
    let result = std::future::poll_fn(|cx| {
        if let Some(ping_pong) = &mut ping_pong
            && asked
            && ping_pong.poll_pong(cx).is_ready()
        {
            asked = false;
        }
        while timer.as_mut().poll(cx).is_ready() {
            if asked {
                return Poll::Ready(Ok(()));
            }
            if let Some(ping_pong) = &mut ping_pong
                && state.streams.get() > 0
            {
                asked = ping_pong.send_ping(Ping::opaque()).is_ok() && ping_pong.poll_pong(cx).is_pending();
            }
            timer.as_mut().reset(tokio::time::Instant::now() + PING_INTERVAL);
        }
        connection.as_mut().poll(cx)
    })
    .await;
    if let Err(error) = result {
        tracing::debug!(%error, "an HTTP/2 connection to an endpoint ended");
    }
    state.closed.set(true);
    all.changed.notify_waiters();
}

impl Lease {
    fn new(conn: &Rc<Conn>, all: &Rc<Connections>, pooled: bool) -> Self {
        conn.state.streams.set(conn.state.streams.get() + 1);
        Self { conn: conn.clone(), all: all.clone(), pooled }
    }

    /// Whether the endpoint opens tunnels for other protocols (RFC 8441 §3).
    pub async fn takes_extended_connect(&self) -> bool {
        loop {
            if self.conn.sender.is_extended_connect_protocol_enabled() {
                return true;
            }
            if self.conn.state.closed.get() || self.conn.state.opened.elapsed() > SETTINGS_TIME {
                return false;
            }
            tokio::time::sleep(SETTINGS_PAUSE).await;
        }
    }

    /// Opens the stream with a request head; `end`: there is no body.
    pub async fn send(&self, request: Request<()>, end: bool) -> Result<(ResponseFuture, SendStream<Bytes>), Broke> {
        let ready = self.conn.sender.clone().ready().await;
        let sent = ready.and_then(|mut sender| sender.send_request(request, end));
        sent.map_err(|_| {
            // It goes away; others may still be well.
            self.conn.state.closed.set(true);
            Broke::Unsent
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let state = &self.conn.state;
        state.streams.set(state.streams.get().saturating_sub(1));
        if state.streams.get() == 0 {
            state.idle_since.set(Instant::now());
        }
        self.all.changed.notify_one();
    }
}

/// The heads of a response, one after the other.
pub(super) struct Heads {
    future: ResponseFuture,
    /// Heads of class 1xx that may still come.
    informational: u32,
}

/// What came next of a response.
pub(super) enum Came {
    /// A head of class 1xx; the real one follows.
    Interim(Response<()>),
    Head(Response<RecvStream>),
}

impl Heads {
    pub fn new(future: ResponseFuture) -> Self {
        Self { future, informational: MAX_INFORMATIONAL }
    }

    /// For a reader that counts them itself, and knows better what to do when there are too many.
    pub fn counted(future: ResponseFuture) -> Self {
        Self { future, informational: MAX_INFORMATIONAL + 1 }
    }

    /// Not to be called again after the real head.
    pub async fn next(&mut self) -> Result<Came, Broke> {
        let Self { future, informational } = self;
        let came = std::future::poll_fn(|cx| match future.poll_informational(cx) {
            Poll::Ready(Some(interim)) => Poll::Ready(interim.map(Came::Interim)),
            Poll::Ready(None) | Poll::Pending => Pin::new(&mut *future).poll(cx).map(|head| head.map(Came::Head)),
        });
        let came = came.await.map_err(|error| broke(&error))?;
        if let Came::Interim(interim) = &came {
            *informational = informational.checked_sub(1).ok_or(Broke::Malformed)?;
            // HTTP/2 has no 101 (RFC 9113 §8.6).
            if interim.status() == StatusCode::SWITCHING_PROTOCOLS {
                return Err(Broke::Malformed);
            }
        }
        Ok(came)
    }
}

/// What an error on a stream means for its request.
fn broke(error: &h2::Error) -> Broke {
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    // GOAWAY with a smaller last stream: it was not looked at (RFC 9113 §6.8, §8.7).
    let left = error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR);
    if refused || left {
        Broke::Unsent
    } else if error.is_library() {
        Broke::Malformed
    } else {
        Broke::Endpoint
    }
}
