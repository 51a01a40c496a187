//! Upstream connections of one proxy thread: opened, lent to one request at a time, kept while idle.
//!
//! Nothing here is shared between threads, and nothing here knows HTTP.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::buffer::Buffer;
use super::io::{Link, Shared};
use super::own::Ends;
use super::proxy_protocol;
use super::tls::Connector;
use crate::backend::EndpointState;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("connecting timed out")]
    Timeout,
    #[error("connecting failed")]
    Io(#[source] io::Error),
    #[error("the endpoint's TLS is not as the policy demands")]
    Tls(#[source] io::Error),
    #[error("the endpoint does not speak HTTP/2 over TLS")]
    Alpn,
}

/// How a connection is opened.
#[derive(Clone, Copy)]
pub(crate) struct Opening<'a> {
    /// TLS, if it is spoken.
    pub connector: Option<&'a Connector>,
    /// For whom, in which version of the PROXY protocol: said before anything else.
    pub announced: Option<(u8, &'a Ends)>,
    /// Longest wait, TLS handshake included.
    pub timeout: Duration,
}

/// A connection to an endpoint.
pub(crate) struct Upstream {
    pub endpoint: Arc<EndpointState>,
    pub stream: Link,
    /// Of the TLS settings it was opened with; 0: none.
    connector: u64,
    /// Received and not yet passed on.
    pub input: Buffer,
    /// The last response was large, and so may be the next: worth a large buffer from the start.
    pub large: bool,
}

impl Upstream {
    /// Opens a connection to `endpoint`.
    pub async fn connect(endpoint: &Arc<EndpointState>, opening: Opening<'_>) -> Result<Self, ConnectError> {
        let (endpoint, input, large) = (endpoint.clone(), Buffer::default(), false);
        let Some(connector) = opening.connector else {
            let stream = Link::Plain(connect(endpoint.addr, opening).await?);
            return Ok(Self { endpoint, stream, connector: 0, input, large });
        };
        let opened =
            async { connector.secure(connect(endpoint.addr, opening).await?).await.map_err(ConnectError::Tls) };
        // Boxed, so that requests to other endpoints need no room for a handshake.
        let opened = Box::pin(tokio::time::timeout(opening.timeout, opened));
        let stream = opened.await.map_err(|_| ConnectError::Timeout)??;
        Ok(Self { endpoint, stream, connector: connector.id, input, large })
    }
}

impl Upstream {
    /// A connection for one exchange that is none of TCP.
    pub fn bridged(endpoint: &Arc<EndpointState>, stream: tokio::io::DuplexStream) -> Self {
        let stream = Link::Bridged(Box::new(Shared::new(stream)));
        Self { endpoint: endpoint.clone(), stream, connector: 0, input: Buffer::default(), large: false }
    }
}

/// Connects, without Nagle's delay, and says for whom. TLS is the caller's.
pub(crate) async fn connect(addr: SocketAddr, opening: Opening<'_>) -> Result<TcpStream, ConnectError> {
    let connected = tokio::time::timeout(opening.timeout, TcpStream::connect(addr));
    let mut stream = connected.await.map_err(|_| ConnectError::Timeout)?.map_err(ConnectError::Io)?;
    stream.set_nodelay(true).map_err(ConnectError::Io)?;
    if let Some((version, ends)) = opening.announced {
        // A new connection takes as little as this at once. Boxed, so that others need no room for it.
        Box::pin(proxy_protocol::send(&mut stream, version, ends)).await.map_err(ConnectError::Io)?;
    }
    Ok(stream)
}

/// Idle connections of one thread.
pub(crate) struct Pool {
    /// By endpoint and TLS settings: what was opened under others is never used.
    idle: HashMap<(u64, u64), Vec<Idle>, BuildHasherDefault<IdHasher>>,
    max_idle_per_endpoint: usize,
    idle_timeout: Duration,
}

struct Idle {
    upstream: Upstream,
    since: Instant,
}

impl Pool {
    pub fn new(max_idle_per_endpoint: usize, idle_timeout: Duration) -> Self {
        Self { idle: HashMap::default(), max_idle_per_endpoint, idle_timeout }
    }

    /// The most recently used idle connection to `endpoint` (with the TLS settings `connector`, 0: none) that is still open.
    pub fn take(&mut self, endpoint: &EndpointState, connector: u64, now: Instant) -> Option<Upstream> {
        let idle = self.idle.get_mut(&(endpoint.id, connector))?;
        while let Some(Idle { mut upstream, since }) = idle.pop() {
            if now.saturating_duration_since(since) < self.idle_timeout && upstream.stream.is_usable() {
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
        let idle = self.idle.entry((upstream.endpoint.id, upstream.connector)).or_default();
        if idle.len() < self.max_idle_per_endpoint {
            idle.push(Idle { upstream, since: now });
        }
    }

    /// Closes all idle connections to an endpoint: one of them turned out to be dead.
    pub fn forget(&mut self, endpoint: &EndpointState, connector: u64) {
        self.idle.remove(&(endpoint.id, connector));
    }

    /// Closes what is too old, was closed by its endpoint, or belongs to an endpoint that is gone.
    pub fn sweep(&mut self) {
        let (now, timeout) = (Instant::now(), self.idle_timeout);
        self.idle.retain(|_, idle| {
            idle.retain_mut(|entry| {
                !entry.upstream.endpoint.is_removed()
                    && now.saturating_duration_since(entry.since) < timeout
                    && entry.upstream.stream.is_usable()
            });
            !idle.is_empty()
        });
    }

    /// Closes everything.
    pub fn clear(&mut self) {
        self.idle.clear();
    }
}

/// Hashes ids that we count up ourselves, which nobody can choose so that they collide.
#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, id: u64) {
        // Fibonacci hashing: the upper bits, which the table looks at, depend on all of the id.
        self.0 = (self.0.rotate_left(5) ^ id).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_bridge_is_a_connection_for_one_exchange() {
        let endpoint = Arc::new(EndpointState::new(1, "10.0.0.1:1".parse().expect("an address"), None, 1));
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut upstream = Upstream::bridged(&endpoint, ours);
        let (mut reader, mut writer) = upstream.stream.halves();
        let mut seen = [0; 4];
        writer.write_all(b"ping").await.expect("written");
        theirs.read_exact(&mut seen).await.expect("read");
        theirs.write_all(b"pong").await.expect("written");
        reader.read_exact(&mut seen).await.expect("read");
        assert_eq!(&seen, b"pong");
        let mut pool = Pool::new(1, Duration::from_secs(10));
        pool.put(upstream, Instant::now());
        assert!(pool.take(&endpoint, 0, Instant::now()).is_none(), "it is not used again");
    }

    #[test]
    fn ids_counted_up_spread() {
        let hash = |endpoint: u64, connector: u64| {
            let mut hasher = IdHasher::default();
            hasher.write_u64(endpoint);
            hasher.write_u64(connector);
            hasher.finish()
        };
        let all: std::collections::BTreeSet<u64> = (0..100).flat_map(|a| (0..100).map(move |b| hash(a, b))).collect();
        assert_eq!(all.len(), 10_000);
        let low: std::collections::BTreeSet<u64> = (0..256).map(|id| hash(id, 0) & 0xff).collect();
        assert!(low.len() > 128, "{}", low.len());
    }
}
