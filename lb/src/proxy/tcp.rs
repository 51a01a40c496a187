//! Plain TCP: accept, connect to an endpoint, copy both ways until both sides are done.
//!
//! Connections whose endpoint leaves the Service, or whose Service goes, are left to finish; only the end of the
//! listener's drain closes them. Silence ends a connection only where a policy says how long; TCP keep-alive finds dead
//! peers. With TLS passthrough the bytes are TLS; otherwise a policy may put TLS around
//! them on the way to the endpoint.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::drain::{Drain, Phase};
use super::io::{Link, Stream};
use super::own::Ends;
use super::pool::{self, ConnectError, Opening};
use super::site::L4;
use super::tunnel::{self, Direction};
use super::worker::{Active, Worker};
use crate::backend::{Backend, EndpointState, Tried};
use crate::balance::{self, Choice, Outcome};
use crate::listeners::bind::keepalive;
use crate::stats::add;

/// Endpoints tried for a connection.
const MAX_CONNECT_ATTEMPTS: usize = 8;
/// What connections count as beside requests, in the metrics of routes.
const SERVED: u16 = 200;
const REFUSED: u16 = 503;

/// Serves one client connection.
///
/// `encrypted`: what the client sends is TLS that does not end here, so none is put around it.
pub(crate) async fn serve<S: Stream>(
    worker: &Rc<Worker>,
    mut client: S,
    ends: Ends,
    l4: &L4,
    drain: &Rc<Drain>,
    encrypted: bool,
) {
    let cell = l4.share(rand::random()).and_then(|share| share.cell.as_ref());
    let Some(backend) = cell.map(|cell| cell.load_full()) else { return };
    let _active = Active::new(backend.stats.clone(), worker.index);
    let (started, route) = (Instant::now(), l4.stats.shard(worker.index));
    // A reset tells the client apart from an orderly end that nothing was served.
    let refuse = |client: &S| {
        route.record(REFUSED, started.elapsed());
        client.with_tcp(|tcp| drop(SockRef::from(tcp).set_linger(Some(Duration::ZERO))));
    };
    let Ok(_permit) = balance::enter_connection(&backend) else { return refuse(&client) };
    let Some((endpoint, upstream)) = connect(worker, &backend, &ends, encrypted).await else { return refuse(&client) };
    let thread = worker.index;
    let _in_flight = InFlight::begin(endpoint.clone(), thread);
    let shard = backend.stats.shard(thread);
    let active = Cell::new(true);
    let count = |direction, bytes| {
        active.set(true);
        match direction {
            Direction::FromClient => {
                add(&shard.bytes_in, bytes);
                add(&route.bytes_in, bytes);
                endpoint.usage().inspect(|usage| usage.received(thread, bytes));
            }
            Direction::ToClient => {
                add(&shard.bytes_out, bytes);
                add(&route.bytes_out, bytes);
                endpoint.usage().inspect(|usage| usage.sent(thread, bytes));
            }
        }
    };
    let (mut reader, mut writer) = client.halves();
    let copied = tunnel::join((&mut reader, &mut writer), upstream, Default::default(), &worker.stock, &count);
    tokio::select! {
        result = copied => {
            if let Err(error) = result {
                tracing::trace!(%error, peer = %ends.client, "connection ended");
            }
        }
        () = drain.reached(Phase::Aborting) => {}
        () = tunnel::silence(l4.idle_timeout, &active) => {
            tracing::trace!(peer = %ends.client, "connection was silent for too long");
        }
    }
    route.record(SERVED, started.elapsed());
}

/// A connection to the first endpoint that accepts one, with the TLS that the policy demands.
async fn connect(
    worker: &Worker,
    backend: &Backend,
    ends: &Ends,
    encrypted: bool,
) -> Option<(Arc<EndpointState>, Link)> {
    let shard = backend.stats.shard(worker.index);
    let choice = Choice::of_client(ends.client.ip().to_canonical(), worker.index);
    let mut tried = Tried::default();
    let tls = backend.policy.upstream_tls.as_ref().filter(|tls| !tls.http_only && !encrypted);
    let connector = match tls.map(|tls| worker.connectors.get(tls)) {
        None => None,
        Some(Some(connector)) => Some(connector),
        Some(None) => {
            tracing::debug!(service = %backend.service, "the TLS policy cannot be used");
            return None;
        }
    };
    let opening = Opening {
        connector: connector.as_deref(),
        announced: backend.policy.send_proxy.map(|version| (version, ends)),
        timeout: backend.policy.connect_timeout.unwrap_or(worker.config.connect_timeout),
    };
    for _ in 0..MAX_CONNECT_ATTEMPTS {
        let (index, endpoint) = backend.choose(&choice, tried)?;
        let started = Instant::now();
        match open(endpoint, opening).await {
            Ok(stream) => {
                let took = started.elapsed();
                endpoint.report(&backend.policy, Outcome::Connected(took), worker.index);
                shard.connected(took);
                return Some((endpoint.clone(), stream));
            }
            Err(error) => {
                endpoint.report(&backend.policy, Outcome::ConnectFailed, worker.index);
                add(&shard.connect_failures, 1);
                tracing::debug!(service = %backend.service, endpoint = %endpoint.addr, %error, "endpoint is unreachable");
                tried.insert(index);
            }
        }
    }
    None
}

async fn open(endpoint: &EndpointState, opening: Opening<'_>) -> Result<Link, ConnectError> {
    let connected = async {
        let stream = pool::connect(endpoint.addr, opening).await?;
        // The client's side has it from its listener.
        let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive());
        Ok(stream)
    };
    let Some(connector) = opening.connector else { return Ok(Link::Plain(connected.await?)) };
    let secured = async { connector.secure_bytes(connected.await?).await.map_err(ConnectError::Tls) };
    // Boxed, so that connections in clear text need no room for a handshake.
    Box::pin(tokio::time::timeout(opening.timeout, secured)).await.unwrap_or(Err(ConnectError::Timeout))
}

/// Counts a connection at its endpoint while it lives.
struct InFlight {
    endpoint: Arc<EndpointState>,
    thread: usize,
}

impl InFlight {
    fn begin(endpoint: Arc<EndpointState>, thread: usize) -> Self {
        endpoint.begin(thread);
        endpoint.usage().inspect(|usage| usage.request(thread));
        Self { endpoint, thread }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.end(self.thread);
    }
}
