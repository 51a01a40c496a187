//! UDP: each client's datagrams go to one endpoint, and that endpoint's answers back, for as long as something goes.
//!
//! A session (client address to endpoint, with a connected socket of its own) ends by silence, when its endpoint leaves
//! its Service, when the endpoint's machine says that nobody listens (ICMP), or with the listener. Sessions survive new
//! snapshots otherwise. The kernel sends a client's datagrams to one thread (`SO_REUSEPORT` hashes addresses), so no
//! session is ever shared. Datagrams are dropped, as anywhere in UDP, when a socket's buffer is full.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::sync::Notify;

/// What a datagram counts as beside requests, in the metrics of routes.
const SERVED: u16 = 200;

use super::datagram::{Datagrams, Path};
use super::drain::{Drain, Phase};
use super::site::{L4, SiteCell, SiteMode};
use super::worker::{Active, ConnectionGuard, Worker};
use crate::backend::{Backend, EndpointState, Tried};
use crate::balance::{self, Choice, Outcome, Permit};
use crate::stats::add;

/// Silence that ends a session unless a policy says otherwise.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Sessions of a listener on one thread; beyond it one of the quietest ends for each new one.
const MAX_SESSIONS: usize = 8_192;
/// Sessions looked at to find a quiet one.
const EVICTION_SAMPLE: usize = 16;
/// Datagrams taken from a socket before others get their turn.
const BATCH: usize = 64;
/// Largest datagram.
const MAX_DATAGRAM: usize = 65_535;
/// Endpoints tried for a datagram.
const MAX_ATTEMPTS: usize = 3;
/// Pause after an unexpected error of the listener's socket, so that a persistent one does not spin.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// A listener on one thread.
struct Listener {
    worker: Rc<Worker>,
    socket: Datagrams,
    sessions: RefCell<HashMap<Path, Rc<Session>>>,
    /// Where answers are received into, one at a time.
    answer: RefCell<Box<[u8]>>,
    drain: Rc<Drain>,
}

/// A client and its endpoint.
struct Session {
    path: Path,
    upstream: UdpSocket,
    endpoint: Arc<EndpointState>,
    backend: Arc<Backend>,
    idle_timeout: Duration,
    last: Cell<Instant>,
    /// Told when somebody else has ended the session.
    ended: Notify,
    _active: Active,
    _guard: ConnectionGuard,
    _permit: Permit,
}

/// Serves a listener's socket until its drain begins; then all sessions end with it.
pub(crate) async fn serve(
    worker: &Rc<Worker>,
    socket: std::net::UdpSocket,
    site: &Arc<SiteCell>,
    drain: &Rc<Drain>,
) -> io::Result<()> {
    let listener = Rc::new(Listener {
        worker: worker.clone(),
        socket: Datagrams::new(socket)?,
        sessions: RefCell::default(),
        answer: RefCell::new(vec![0; MAX_DATAGRAM].into()),
        drain: drain.clone(),
    });
    let mut buffer = vec![0; MAX_DATAGRAM];
    let mut draining = pin!(drain.reached(Phase::Leaving));
    loop {
        tokio::select! {
            ready = listener.socket.readable() => ready?,
            () = &mut draining => return Ok(()),
        }
        for _ in 0..BATCH {
            match listener.socket.try_recv(&mut buffer) {
                Ok((length, path)) => listener.forward(&buffer[..length], path, site),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::debug!(%error, "receiving a datagram failed");
                    tokio::time::sleep(ERROR_PAUSE).await;
                    break;
                }
            }
        }
    }
}

impl Listener {
    /// Sends a client's datagram to its endpoint, choosing one if it has none.
    fn forward(self: &Rc<Self>, bytes: &[u8], path: Path, site: &SiteCell) {
        for _ in 0..MAX_ATTEMPTS {
            let known = self.sessions.borrow().get(&path).cloned();
            let session = match known {
                Some(session) if !session.endpoint.is_removed() => session,
                gone => {
                    if let Some(session) = gone {
                        self.end(&session);
                    }
                    let now = site.load();
                    let SiteMode::Udp(l4) = &now.mode else { return };
                    let Some(session) = self.start(path, l4) else { return };
                    session
                }
            };
            session.last.set(Instant::now());
            // A new socket is not known to be ready yet; the kernel knows.
            match SockRef::from(&session.upstream).send(bytes) {
                Ok(_) => return self.count_sent(&session, bytes.len(), site),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // An error that was waiting at the socket (ICMP): nothing was sent.
                Err(error) => self.failed(&session, &error),
            }
        }
    }

    fn count_sent(&self, session: &Session, bytes: usize, site: &SiteCell) {
        let (thread, bytes) = (self.worker.index, bytes as u64);
        add(&session.backend.stats.shard(thread).bytes_in, bytes);
        if let SiteMode::Udp(l4) = &site.load().mode {
            let route = l4.stats.shard(thread);
            route.record(SERVED, Duration::ZERO);
            add(&route.bytes_in, bytes);
        }
        if let Some(usage) = session.endpoint.usage() {
            usage.request(thread);
            usage.received(thread, bytes);
        }
    }

    /// A session for a client that has none, with a task that brings the answers.
    fn start(self: &Rc<Self>, path: Path, l4: &L4) -> Option<Rc<Session>> {
        let (worker, thread) = (&self.worker, self.worker.index);
        if worker.is_full() {
            return None;
        }
        let backend = l4.share(rand::random())?.cell.as_ref()?.load_full();
        let permit = balance::enter_connection(&backend).ok()?;
        let choice = Choice::of_client(path.peer.ip().to_canonical(), thread);
        let mut tried = Tried::default();
        let (endpoint, upstream) = (0..MAX_ATTEMPTS).find_map(|_| {
            let (index, endpoint) = backend.choose(&choice, tried)?;
            tried.insert(index);
            let connected = connect(endpoint.addr).inspect_err(|error| {
                endpoint.report(&backend.policy, Outcome::ConnectFailed, thread);
                add(&backend.stats.shard(thread).connect_failures, 1);
                tracing::debug!(service = %backend.service, endpoint = %endpoint.addr, %error, "endpoint is unreachable");
            });
            Some((endpoint.clone(), connected.ok()?))
        })?;
        self.make_room();
        endpoint.begin(thread);
        add(&backend.stats.shard(thread).upstream_opened, 1);
        let session = Rc::new(Session {
            path,
            upstream,
            endpoint,
            idle_timeout: l4.idle_timeout.unwrap_or(IDLE_TIMEOUT),
            last: Cell::new(Instant::now()),
            ended: Notify::new(),
            _active: Active::new(backend.stats.clone(), thread),
            _guard: ConnectionGuard::new(worker.clone()),
            _permit: permit,
            backend,
        });
        self.sessions.borrow_mut().insert(path, session.clone());
        // The task does not keep the socket open: it is closed as soon as the listener ends.
        tokio::task::spawn_local(answers(Rc::downgrade(self), self.drain.clone(), session.clone(), thread));
        Some(session)
    }

    /// Ends a quiet session if there are too many. The table's order is random, and so is the sample.
    fn make_room(&self) {
        if self.sessions.borrow().len() < MAX_SESSIONS {
            return;
        }
        let quietest =
            self.sessions.borrow().values().take(EVICTION_SAMPLE).min_by_key(|session| session.last.get()).cloned();
        if let Some(session) = quietest {
            self.end(&session);
        }
    }

    /// Forgets the session, unless another one has taken its place.
    fn end(&self, session: &Rc<Session>) {
        let mut sessions = self.sessions.borrow_mut();
        if sessions.get(&session.path).is_some_and(|known| Rc::ptr_eq(known, session)) {
            sessions.remove(&session.path);
        }
        session.ended.notify_one();
    }

    fn failed(&self, session: &Rc<Session>, error: &io::Error) {
        let (backend, endpoint) = (&session.backend, &session.endpoint);
        tracing::debug!(service = %backend.service, endpoint = %endpoint.addr, %error, "endpoint does not take datagrams");
        endpoint.report(&backend.policy, Outcome::ConnectFailed, self.worker.index);
        add(&backend.stats.shard(self.worker.index).connect_failures, 1);
        self.end(session);
    }

    /// Passes on the answers that are there; false when the endpoint is not reachable.
    fn pass_answers(&self, session: &Session) -> io::Result<()> {
        let mut buffer = self.answer.borrow_mut();
        let thread = self.worker.index;
        for _ in 0..BATCH {
            let length = match session.upstream.try_recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            session.last.set(Instant::now());
            match self.socket.try_send(&buffer[..length], session.path) {
                Ok(()) => {
                    add(&session.backend.stats.shard(thread).bytes_out, length as u64);
                    session.endpoint.usage().inspect(|usage| usage.sent(thread, length as u64));
                }
                Err(error) => tracing::trace!(%error, peer = %session.path.peer, "an answer was dropped"),
            }
        }
        Ok(())
    }
}

/// Brings a session's answers to its client until the session ends.
async fn answers(listener: Weak<Listener>, drain: Rc<Drain>, session: Rc<Session>, thread: usize) {
    let mut timer = pin!(tokio::time::sleep(session.idle_timeout));
    let (mut draining, mut ended) = (pin!(drain.reached(Phase::Draining)), pin!(session.ended.notified()));
    loop {
        tokio::select! {
            ready = session.upstream.readable() => {
                let Some(listener) = listener.upgrade() else { break };
                if let Err(error) = ready.and_then(|()| listener.pass_answers(&session)) {
                    listener.failed(&session, &error);
                    break;
                }
            }
            () = &mut timer => {
                let due = session.last.get() + session.idle_timeout;
                if due <= Instant::now() {
                    break;
                }
                // Only when it fires, not with every datagram.
                timer.as_mut().reset(due.into());
            }
            () = &mut draining => break,
            () = &mut ended => break,
        }
    }
    session.endpoint.end(thread);
    if let Some(listener) = listener.upgrade() {
        listener.end(&session);
    }
}

/// A socket that talks to `addr` only, and hears its ICMP errors.
fn connect(addr: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr =
        if addr.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    socket.connect(addr)?;
    UdpSocket::from_std(socket)
}
