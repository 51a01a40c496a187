//! Upstream connections of one proxy thread: opened, lent to one request at a time, kept while idle.
//!
//! Nothing here is shared between threads, and nothing here knows HTTP.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::buffer::Buffer;
use crate::backend::EndpointState;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("connecting timed out")]
    Timeout,
    #[error("connecting failed")]
    Io(#[source] io::Error),
}

/// A connection to an endpoint.
pub(crate) struct Upstream {
    pub endpoint: Arc<EndpointState>,
    pub stream: TcpStream,
    /// Received and not yet passed on.
    pub input: Buffer,
    /// The last response was large, and so may be the next: worth a large buffer from the start.
    pub large: bool,
}

impl Upstream {
    /// Opens a connection to `endpoint` within `timeout`.
    pub async fn connect(endpoint: &Arc<EndpointState>, timeout: Duration) -> Result<Self, ConnectError> {
        let stream = connect(endpoint.addr, timeout).await?;
        Ok(Self { endpoint: endpoint.clone(), stream, input: Buffer::default(), large: false })
    }

    /// Whether another request can be sent: the endpoint has neither closed nor sent anything. Costs no call into the
    /// kernel unless something arrived.
    fn is_usable(&self) -> bool {
        matches!(self.stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
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
    upstream: Upstream,
    since: Instant,
}

impl Pool {
    pub fn new(max_idle_per_endpoint: usize, idle_timeout: Duration) -> Self {
        Self { idle: HashMap::new(), max_idle_per_endpoint, idle_timeout }
    }

    /// The most recently used idle connection to `endpoint` that is still open.
    pub fn take(&mut self, endpoint: &EndpointState, now: Instant) -> Option<Upstream> {
        let idle = self.idle.get_mut(&endpoint.id)?;
        while let Some(Idle { upstream, since }) = idle.pop() {
            if now.saturating_duration_since(since) < self.idle_timeout && upstream.is_usable() {
                return Some(upstream);
            }
        }
        None
    }

    /// Keeps a connection whose exchange is over, unless its endpoint is gone or said more than it was asked.
    pub fn put(&mut self, upstream: Upstream, now: Instant) {
        if upstream.endpoint.is_removed() || !upstream.input.is_empty() {
            return;
        }
        let idle = self.idle.entry(upstream.endpoint.id).or_default();
        if idle.len() < self.max_idle_per_endpoint {
            idle.push(Idle { upstream, since: now });
        }
    }

    /// Closes all idle connections to an endpoint: one of them turned out to be dead.
    pub fn forget(&mut self, endpoint: &EndpointState) {
        self.idle.remove(&endpoint.id);
    }

    /// Closes what is too old, was closed by its endpoint, or belongs to an endpoint that is gone.
    pub fn sweep(&mut self) {
        let (now, timeout) = (Instant::now(), self.idle_timeout);
        self.idle.retain(|_, idle| {
            idle.retain(|entry| {
                !entry.upstream.endpoint.is_removed()
                    && now.saturating_duration_since(entry.since) < timeout
                    && entry.upstream.is_usable()
            });
            !idle.is_empty()
        });
    }

    /// Closes everything.
    pub fn clear(&mut self) {
        self.idle.clear();
    }
}
