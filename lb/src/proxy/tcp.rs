//! Plain TCP: accept, connect to an endpoint, copy both ways until both sides are done.
//!
//! Connections whose endpoint leaves the Service, or whose Service goes, are left to finish; only the end of the
//! listener's drain closes them. There is no idle timeout; TCP keep-alive finds dead peers.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::TcpStream;

use super::drain::{Drain, Phase};
use super::pool;
use super::site::L4;
use super::tunnel::{self, Direction};
use super::worker::{Active, Worker};
use crate::backend::{Backend, EndpointState, Tried};
use crate::balance::{self, Choice, Outcome};
use crate::listeners::bind::keepalive;
use crate::stats::add;

/// Endpoints tried for a connection.
const MAX_CONNECT_ATTEMPTS: usize = 8;

/// Serves one client connection.
pub(crate) async fn serve(worker: &Rc<Worker>, mut client: TcpStream, peer: SocketAddr, l4: &L4, drain: &Rc<Drain>) {
    let cell = l4.share(rand::random()).and_then(|share| share.cell.as_ref());
    let Some(backend) = cell.map(|cell| cell.load_full()) else { return };
    let _active = Active::new(backend.stats.clone(), worker.index);
    let Ok(_permit) = balance::enter_connection(&backend) else { return };
    let Some((endpoint, upstream)) = connect(worker, &backend, peer).await else {
        // A reset tells the client apart from an orderly end that nothing was served.
        let _ = SockRef::from(&client).set_linger(Some(Duration::ZERO));
        return;
    };
    // The client's side has it from its listener.
    let _ = SockRef::from(&upstream).set_tcp_keepalive(&keepalive());
    let thread = worker.index;
    let _in_flight = InFlight::begin(endpoint.clone(), thread);
    let shard = backend.stats.shard(thread);
    let count = |direction, bytes| match direction {
        Direction::FromClient => {
            add(&shard.bytes_in, bytes);
            endpoint.usage().inspect(|usage| usage.received(thread, bytes));
        }
        Direction::ToClient => {
            add(&shard.bytes_out, bytes);
            endpoint.usage().inspect(|usage| usage.sent(thread, bytes));
        }
    };
    let (mut reader, mut writer) = client.split();
    let copied = tunnel::join((&mut reader, &mut writer), upstream, Default::default(), &worker.stock, &count);
    tokio::select! {
        result = copied => {
            if let Err(error) = result {
                tracing::trace!(%error, %peer, "connection ended");
            }
        }
        () = drain.reached(Phase::Aborting) => {}
    }
}

/// A connection to the first endpoint that accepts one.
async fn connect(worker: &Worker, backend: &Backend, peer: SocketAddr) -> Option<(Arc<EndpointState>, TcpStream)> {
    let shard = backend.stats.shard(worker.index);
    let choice = Choice::of_client(peer.ip().to_canonical(), worker.index);
    let mut tried = Tried::default();
    for _ in 0..MAX_CONNECT_ATTEMPTS {
        let (index, endpoint) = backend.choose(&choice, tried)?;
        let started = Instant::now();
        match pool::connect(endpoint.addr, worker.config.connect_timeout).await {
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
