//! One proxy thread: accepts on its sockets, serves connections, sweeps its pool, drains.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};

use super::buffer::Stock;
use super::drain::{Drain, Phase};
use super::own::Own;
use super::pool::Pool;
use super::site::SiteCell;
use super::tls::Connectors;
use super::{dispatch, h2, udp};
use crate::config::ProxyConfig;
use crate::listeners::bind::{BACKLOG, Bound};
use crate::observe::Observers;
use crate::plugin::Desk;
use crate::stats::{ListenerStats, ServiceStats, Spoken, add, sub};

/// Pause after a failed accept (usually: out of file descriptors).
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How often idle upstream connections are looked through.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// What a worker is told.
pub(crate) enum Command {
    /// Serve `site` on `socket`.
    Open { id: u64, socket: Bound, site: Arc<SiteCell> },
    /// Close that listener's socket, then answer; connections drain.
    Close { id: u64, closed: oneshot::Sender<()> },
    /// Look through the idle upstream connections now.
    Sweep,
    /// Close all and end once connections are done, after `grace` at the latest. For `leave` of it idle connections may ask for something.
    Stop { grace: Duration, leave: Duration },
}

/// What the connections of a thread share.
pub(crate) struct Worker {
    /// Index of the thread, and of its shard in all counters.
    pub index: usize,
    pub config: Arc<ProxyConfig>,
    pub observers: Arc<Observers>,
    /// Where plugins' questions are written.
    pub desk: Desk,
    pub pool: RefCell<Pool>,
    pub stock: Stock,
    /// TLS settings towards endpoints.
    pub connectors: Connectors,
    /// Mirrored requests on their way.
    pub copies: Cell<usize>,
    pub h2: h2::Shared,
    /// What clients' connections have for themselves, to be swept; those that are gone until the next sweep.
    pub owned: RefCell<Vec<Weak<Own>>>,
    connections: Cell<usize>,
    idle: Notify,
}

impl Worker {
    /// Whether the thread has as many connections and sessions as it may have.
    pub fn is_full(&self) -> bool {
        self.connections.get() >= self.config.max_connections_per_thread
    }

    /// An empty pool as the configuration bounds it.
    pub fn new_pool(&self) -> Pool {
        new_pool(&self.config)
    }

    /// Looks through the idle connections to endpoints.
    fn sweep(&self) {
        self.pool.borrow_mut().sweep();
        self.h2.pool.sweep();
        self.owned.borrow_mut().retain(|own| own.upgrade().inspect(|own| own.sweep()).is_some());
    }
}

fn new_pool(config: &ProxyConfig) -> Pool {
    Pool::new(config.max_idle_per_endpoint, config.upstream_idle_timeout)
}

/// A listener of this thread.
struct Listener {
    drain: Rc<Drain>,
    /// Resolves when the socket is closed.
    closed: oneshot::Receiver<()>,
}

/// The thread's main function; reports through `ready` whether it could start.
pub(crate) fn run(
    index: usize,
    config: Arc<ProxyConfig>,
    observers: Arc<Observers>,
    commands: mpsc::Receiver<Command>,
    ready: &std::sync::mpsc::Sender<std::io::Result<()>>,
) {
    let options = tokio::runtime::LocalOptions::default();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build_local(options) {
        Ok(runtime) => runtime,
        Err(error) => {
            // The starter waits for this.
            let _ = ready.send(Err(error));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    let pool = RefCell::new(new_pool(&config));
    let worker = Rc::new(Worker {
        index,
        config,
        observers,
        desk: Desk::new(index),
        pool,
        stock: Stock::default(),
        connectors: Connectors::default(),
        copies: Cell::new(0),
        h2: h2::Shared::default(),
        owned: RefCell::default(),
        connections: Cell::new(0),
        idle: Notify::new(),
    });
    runtime.block_on(serve(worker, commands));
}

async fn serve(worker: Rc<Worker>, mut commands: mpsc::Receiver<Command>) {
    let mut listeners: HashMap<u64, Listener> = HashMap::new();
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (grace, leave) = loop {
        let command = tokio::select! {
            command = commands.recv() => command,
            _ = sweep.tick() => Some(Command::Sweep),
        };
        match command {
            Some(Command::Open { id, socket, site }) => {
                if let Some(listener) = open(&worker, socket, site) {
                    listeners.insert(id, listener);
                }
            }
            Some(Command::Close { id, closed }) => {
                if let Some(listener) = listeners.remove(&id) {
                    close(listener, worker.config.drain_timeout, Duration::ZERO).await;
                }
                // The manager may have been stopped meanwhile.
                let _ = closed.send(());
            }
            Some(Command::Sweep) => worker.sweep(),
            Some(Command::Stop { grace, leave }) => break (grace, leave),
            None => break (Duration::ZERO, Duration::ZERO),
        }
    };
    for (_, listener) in listeners {
        close(listener, grace, leave).await;
    }
    // Connections abort themselves when their listener's time is over; the margin lets them do so.
    let deadline = Instant::now() + grace + ACCEPT_RETRY;
    while worker.connections.get() > 0 {
        if tokio::time::timeout_at(deadline, worker.idle.notified()).await.is_err() {
            break;
        }
    }
    worker.pool.borrow_mut().clear();
    worker.h2.pool.clear();
}

fn open(worker: &Rc<Worker>, socket: Bound, site: Arc<SiteCell>) -> Option<Listener> {
    let drain = Rc::new(Drain::new());
    let (closed_tx, closed) = oneshot::channel();
    let (worker, listener_drain) = (worker.clone(), drain.clone());
    let watched = |error: &std::io::Error| tracing::error!(%error, "a listener socket cannot be watched");
    match socket {
        Bound::Tcp(socket) => {
            let socket = TcpListener::from_std(socket).inspect_err(watched).ok()?;
            tokio::task::spawn_local(async move {
                accept_loop(&worker, &socket, &site, &listener_drain).await;
                drop(socket);
                let _ = closed_tx.send(());
            });
        }
        Bound::Udp(socket) => {
            tokio::task::spawn_local(async move {
                // Its sockets are closed when it returns.
                let _ = udp::serve(&worker, socket, &site, &listener_drain).await.inspect_err(watched);
                let _ = closed_tx.send(());
            });
        }
    }
    Some(Listener { drain, closed })
}

/// Stops accepting (after the connections that are already queued) and starts the listener's drain.
async fn close(listener: Listener, grace: Duration, leave: Duration) {
    listener.drain.advance(if leave.is_zero() { Phase::Draining } else { Phase::Leaving });
    let _ = listener.closed.await;
    tokio::task::spawn_local(async move {
        tokio::time::sleep(leave).await;
        listener.drain.advance(Phase::Draining);
        tokio::time::sleep(grace.saturating_sub(leave)).await;
        listener.drain.advance(Phase::Aborting);
    });
}

async fn accept_loop(worker: &Rc<Worker>, socket: &TcpListener, site: &Arc<SiteCell>, drain: &Rc<Drain>) {
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = drain.reached(Phase::Leaving) => break,
        };
        match accepted {
            Ok((stream, peer)) => connection(worker, stream, peer, site, drain),
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
    // Connections the kernel has completed already would be reset when the socket closes.
    for _ in 0..BACKLOG {
        let Some(Ok((stream, peer))) = socket.accept().now_or_never() else { return };
        connection(worker, stream, peer, site, drain);
    }
}

fn connection(worker: &Rc<Worker>, stream: TcpStream, peer: SocketAddr, site: &Arc<SiteCell>, drain: &Rc<Drain>) {
    if worker.is_full() {
        site.load().stats.shard(worker.index).refused();
        return;
    }
    let guard = ConnectionGuard::new(worker.clone());
    let (worker, site, drain) = (worker.clone(), site.clone(), drain.clone());
    tokio::task::spawn_local(async move {
        let counted = Accepted::new(site.load().stats.clone(), worker.index);
        dispatch::serve(worker, stream, peer, site, drain, &counted).await;
        drop((guard, counted));
    });
}

/// Counts a client's connection for its listener while it lives.
pub(crate) struct Accepted {
    stats: Arc<ListenerStats>,
    thread: usize,
}

impl Accepted {
    pub fn new(stats: Arc<ListenerStats>, thread: usize) -> Self {
        stats.shard(thread).accepted();
        Self { stats, thread }
    }

    /// A TLS handshake ended.
    pub fn shaken_hands(&self, ok: bool) {
        self.stats.shard(self.thread).handshake(ok);
    }

    /// It is known what it speaks.
    pub fn speaks(&self, protocol: Spoken) {
        self.stats.shard(self.thread).speaks(protocol);
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        self.stats.shard(self.thread).closed();
    }
}

/// Counts a client's connection for its Service while it lives.
pub(crate) struct Active {
    stats: Arc<ServiceStats>,
    thread: usize,
}

impl Active {
    pub fn new(stats: Arc<ServiceStats>, thread: usize) -> Self {
        add(&stats.shard(thread).active_connections, 1);
        Self { stats, thread }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        sub(&self.stats.shard(self.thread).active_connections, 1);
    }
}

/// Counts a connection while it lives, for the thread's limit and the drain.
pub(crate) struct ConnectionGuard {
    worker: Rc<Worker>,
}

impl ConnectionGuard {
    pub fn new(worker: Rc<Worker>) -> Self {
        worker.connections.set(worker.connections.get() + 1);
        Self { worker }
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.worker.connections.set(self.worker.connections.get() - 1);
        if self.worker.connections.get() == 0 {
            self.worker.idle.notify_one();
        }
    }
}
