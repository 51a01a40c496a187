//! The user-space proxy: N threads, each with its own runtime, listener sockets and upstream pool; nothing on the path
//! of a request is shared with another thread except the backend it reads and a round-robin counter.
//!
//! This module starts the threads and hands them sockets. It does not know Services: a socket comes with the
//! [`site::Site`] to serve.

mod attempt;
mod buffer;
mod chunked;
mod datagram;
mod decide;
mod dispatch;
mod drain;
mod exchange;
mod fields;
mod filters;
mod h2;
mod hedge;
pub(crate) mod held;
mod http;
mod io;
mod local;
mod mirror;
mod own;
mod path;
mod pool;
mod proxy_protocol;
mod record;
pub(crate) mod request;
mod response;
mod retry;
pub(crate) mod site;
mod sni;
pub(crate) mod splice;
mod story;
mod tcp;
pub(crate) mod tls;
mod tunnel;
mod udp;
mod verifier;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::config::ProxyConfig;
use crate::listeners::bind::Bound;
use crate::observe::Observers;
use site::SiteCell;
use worker::Command;

/// Commands waiting for a worker; the sender waits beyond.
const COMMAND_QUEUE: usize = 256;

/// Failed to start a proxy thread.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The operating system refused the thread.
    #[error("starting a proxy thread failed: is the limit on processes too low?")]
    Thread(#[source] std::io::Error),
    /// The thread's event loop could not be set up.
    #[error("setting up the event loop of a proxy thread failed: is the limit on open files too low?")]
    Runtime(#[source] std::io::Error),
}

/// The proxy threads. Dropping it without [`Proxy::stop`] closes everything at once.
#[derive(Debug)]
pub(crate) struct Proxy {
    workers: Vec<mpsc::Sender<Command>>,
    ended: Vec<oneshot::Receiver<()>>,
}

impl Proxy {
    /// Starts `threads` proxy threads.
    pub fn start(threads: usize, config: &ProxyConfig, observers: &Arc<Observers>) -> Result<Self, StartError> {
        let config = Arc::new(config.clone());
        let mut proxy = Self { workers: Vec::new(), ended: Vec::new() };
        for index in 0..threads {
            let (commands, inbox) = mpsc::channel(COMMAND_QUEUE);
            let (ended_tx, ended) = oneshot::channel();
            // Set up here, so that failure is reported; it moves into its thread before it is used.
            let (config, observers) = (config.clone(), observers.clone());
            let (ready_tx, ready) = std::sync::mpsc::channel();
            std::thread::Builder::new()
                .name(format!("lb-{index}"))
                .spawn(move || {
                    worker::run(index, config, observers, inbox, &ready_tx);
                    // Nobody may be waiting any more.
                    let _ = ended_tx.send(());
                })
                .map_err(StartError::Thread)?;
            if let Ok(Err(error)) = ready.recv() {
                return Err(StartError::Runtime(error));
            }
            proxy.workers.push(commands);
            proxy.ended.push(ended);
        }
        Ok(proxy)
    }

    /// Number of threads, and so of sockets that [`Proxy::open`] takes.
    pub fn threads(&self) -> usize {
        self.workers.len()
    }

    /// Serves `site` on `sockets`, one per thread, all bound to the same address with `SO_REUSEPORT`.
    pub async fn open(&self, id: u64, sockets: Vec<Bound>, site: &Arc<SiteCell>) {
        for (worker, socket) in self.workers.iter().zip(sockets) {
            // A worker that is gone has closed everything already.
            let _ = worker.send(Command::Open { id, socket, site: site.clone() }).await;
        }
    }

    /// Closes a listener's sockets and returns when no new connection can arrive; connections go on draining.
    pub async fn close(&self, id: u64) {
        for worker in &self.workers {
            let (closed, wait) = oneshot::channel();
            if worker.send(Command::Close { id, closed }).await.is_ok() {
                let _ = wait.await;
            }
        }
    }

    /// Tells the threads that endpoints went away: their idle connections are closed now instead of at the next sweep.
    pub fn endpoints_changed(&self) {
        for worker in &self.workers {
            // A full queue only delays this to the next sweep.
            let _ = worker.try_send(Command::Sweep);
        }
    }

    /// Closes all listeners, lets connections finish for at most `grace`, and ends the threads. For `leave` of it idle connections are
    /// kept, because a successor goes on serving their clients.
    pub async fn stop(self, grace: Duration, leave: Duration) {
        for worker in &self.workers {
            let _ = worker.send(Command::Stop { grace, leave }).await;
        }
        for ended in self.ended {
            let _ = ended.await;
        }
    }
}
