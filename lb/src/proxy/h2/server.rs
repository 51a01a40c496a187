//! A client's HTTP/2 connection: accepts streams, watches for floods and silence, drains.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::Connection;
use h2::{Ping, Reason, RecvStream};
use http::Request;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use super::forward::{self, Context};
use super::gather::Gather;
use super::meter::{Meter, Metered};
use super::server_settings;
use crate::proxy::drain::{Drain, Phase};
use crate::proxy::own::{Ends, OwnCell};
use crate::proxy::request::Client;
use crate::proxy::site::Target;
use crate::proxy::worker::Worker;

/// How long, and for how many bytes, a client may go on sending after we said GOAWAY for its faults: closing at once would
/// reset the connection and take the reason with it.
const LINGER_TIME: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1024 * 1024;

/// Serves a connection until either side closes it or the listener's drain ends it. `early`: bytes of it that were read
/// already, the preface's beginning.
pub(crate) async fn serve<IO>(
    worker: Rc<Worker>,
    io: IO,
    early: &[u8],
    ends: Ends,
    (target, tls): (Target, Option<&'static str>),
    drain: Rc<Drain>,
) where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let io = Rc::new(RefCell::new(Gather::new(io, worker.h2.spare.clone())));
    let meter = Rc::new(Meter::new(Instant::now()));
    let metered = Metered::new(io.clone(), early.into(), meter.clone());
    let handshake = server_settings(&worker.config).handshake::<_, Bytes>(metered);
    let idle = worker.config.header_read_timeout;
    let connection = tokio::select! {
        connection = tokio::time::timeout(idle, handshake) => connection,
        () = drain.reached(Phase::Aborting) => return,
    };
    let Ok(Ok(mut connection)) = connection else { return };
    let ping_pong = connection.ping_pong();
    let peer = ends.client.ip().to_canonical();
    let context = Rc::new(Context {
        client: Client::new(peer, worker.config.trust_forwarded_headers, target.is_tls()),
        own: OwnCell::new(ends),
        worker,
        target,
        peer,
        tls,
        meter: meter.clone(),
    });
    let streams = Rc::new(Streams { open: Cell::new(0), idle_since: Cell::new(Instant::now()) });
    io.borrow_mut().defer();
    let (requests, leaving, asked_at) = (0, false, None);
    let mut conn = Conn { connection, io: io.clone(), ping_pong, context, streams, requests, leaving, asked_at };
    let faulty = conn.run(&drain, idle).await;
    drop(conn);
    if faulty {
        linger(&io).await;
    }
}

/// Reads what a client still sends, within bounds.
async fn linger<IO: AsyncRead + Unpin>(io: &RefCell<Gather<IO>>) {
    let drained = async {
        let (mut left, mut waste) = (LINGER_BYTES, [0; 4096]);
        while left > 0 {
            let read = std::future::poll_fn(|cx| {
                let mut io = io.borrow_mut();
                pin!(io.read(&mut waste)).poll(cx)
            });
            match read.await {
                Ok(read @ 1..) => left = left.saturating_sub(read),
                _ => return,
            }
        }
    };
    // However it ends, the connection is closed next.
    let _ = tokio::time::timeout(LINGER_TIME, drained).await;
}

/// Streams of a connection that are served.
struct Streams {
    open: Cell<usize>,
    idle_since: Cell<Instant>,
}

/// Counts a stream while it lives.
struct Open(Rc<Streams>);

impl Open {
    fn new(streams: &Rc<Streams>) -> Self {
        streams.open.set(streams.open.get() + 1);
        Self(streams.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        if self.0.open.get() == 0 {
            self.0.idle_since.set(Instant::now());
        }
    }
}

struct Conn<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    connection: Connection<Metered<Gather<IO>>, Bytes>,
    io: Rc<RefCell<Gather<IO>>>,
    ping_pong: Option<h2::PingPong>,
    context: Rc<Context>,
    streams: Rc<Streams>,
    /// Requests seen so far.
    requests: u64,
    /// GOAWAY was said.
    leaving: bool,
    /// Bytes received when the client was last asked for a sign of life.
    asked_at: Option<u64>,
}

/// What happens on a connection.
#[allow(clippy::large_enum_variant, reason = "one exists at a time and is moved once")]
enum Event {
    Accepted(Request<RecvStream>, h2::server::SendResponse<Bytes>),
    /// The connection is over; `true`: by the client's fault.
    Ended(bool),
    Exceeded,
    Draining,
    Aborting,
    Tick,
}

impl<IO: AsyncRead + AsyncWrite + Unpin + 'static> Conn<IO> {
    /// Whether the connection ended by the client's fault.
    async fn run(&mut self, drain: &Drain, idle: Duration) -> bool {
        let mut timer = pin!(tokio::time::sleep(idle));
        let (mut draining, mut aborting) = (pin!(drain.reached(Phase::Leaving)), pin!(drain.reached(Phase::Aborting)));
        let mut registered = false;
        loop {
            let event = std::future::poll_fn(|cx| {
                // Polled once to register this task, then only when there is news.
                if !registered || drain.phase() != Phase::Serving {
                    registered = true;
                    if aborting.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(Event::Aborting);
                    }
                    if !self.leaving && draining.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(Event::Draining);
                    }
                }
                if timer.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Event::Tick);
                }
                let accepted = self.connection.poll_accept(cx);
                if self.context.meter.is_exceeded() {
                    return Poll::Ready(Event::Exceeded);
                }
                match accepted {
                    Poll::Ready(Some(Ok((request, respond)))) => Poll::Ready(Event::Accepted(request, respond)),
                    Poll::Ready(Some(Err(error))) => Poll::Ready(Event::Ended(!error.is_io())),
                    Poll::Ready(None) => Poll::Ready(Event::Ended(false)),
                    // Nothing more to do: what was written meanwhile leaves together.
                    Poll::Pending => match self.io.borrow_mut().poll_push(cx) {
                        Poll::Ready(Err(_)) => Poll::Ready(Event::Ended(false)),
                        Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
                    },
                }
            });
            match event.await {
                Event::Accepted(request, respond) => self.accept(request, respond),
                Event::Ended(faulty) => return faulty,
                Event::Exceeded => {
                    tracing::debug!(peer = %self.context.peer, "an HTTP/2 client makes work for nothing");
                    return self.end(Reason::ENHANCE_YOUR_CALM).await;
                }
                Event::Draining => self.leave(),
                Event::Aborting => {
                    self.end(Reason::NO_ERROR).await;
                    return false;
                }
                Event::Tick => {
                    if !self.is_alive(idle) {
                        self.end(Reason::NO_ERROR).await;
                        return false;
                    }
                    let due = if self.streams.open.get() == 0 {
                        self.streams.idle_since.get() + idle
                    } else {
                        Instant::now() + idle
                    };
                    timer.as_mut().reset(due.max(Instant::now() + Duration::from_millis(1)).into());
                }
            }
        }
    }

    fn accept(&mut self, request: Request<RecvStream>, respond: h2::server::SendResponse<Bytes>) {
        self.requests += 1;
        if self.requests >= self.context.worker.config.max_requests_per_connection {
            self.leave();
        }
        let (context, open) = (self.context.clone(), Open::new(&self.streams));
        tokio::task::spawn_local(async move {
            forward::serve(context, request, respond).await;
            drop(open);
        });
    }

    /// Says GOAWAY in two steps (RFC 9113 §6.8); what is in flight finishes.
    fn leave(&mut self) {
        if !self.leaving {
            self.leaving = true;
            self.connection.graceful_shutdown();
        }
    }

    /// Called about every `idle`: says GOAWAY to a client without requests and asks one with requests for a sign of life. `false`: it
    /// gave none, or did not go.
    fn is_alive(&mut self, idle: Duration) -> bool {
        if self.streams.open.get() == 0 && self.streams.idle_since.get().elapsed() >= idle {
            let stays = self.leaving;
            self.leave();
            // It has the time of another tick to close.
            self.streams.idle_since.set(Instant::now());
            return !stays;
        }
        let received = self.context.meter.received();
        if self.asked_at == Some(received) && self.streams.open.get() > 0 {
            return false;
        }
        self.asked_at = Some(received);
        if let Some(ping_pong) = &mut self.ping_pong {
            // The answer is seen as bytes received; an old one is only taken out of the way.
            let mut ignored = std::task::Context::from_waker(std::task::Waker::noop());
            let _ = ping_pong.poll_pong(&mut ignored);
            let _ = ping_pong.send_ping(Ping::opaque());
        }
        true
    }

    /// Closes the connection with a reason. Always "by the client's fault" to the caller, who lingers.
    async fn end(&mut self, reason: Reason) -> bool {
        self.connection.abrupt_shutdown(reason);
        let closed = std::future::poll_fn(|cx| {
            let closed = self.connection.poll_closed(cx);
            if self.io.borrow_mut().poll_push(cx).is_pending() { Poll::Pending } else { closed }
        });
        // A client that does not even take this learns the reason from nobody.
        let _ = tokio::time::timeout(LINGER_TIME, closed).await;
        true
    }
}
