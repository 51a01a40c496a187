//! Bytes from one side to the other: a body that holds its place among the streams, and two joined connections.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

/// Bytes in flight per direction.
const BUFFER_BYTES: usize = 32 * 1024;
/// A tunnel without a byte in either direction ends after this (upstream's `streamingConnectionIdleTimeout`).
const IDLE_TIMEOUT: Duration = Duration::from_secs(4 * 3600);
/// After one side has closed, the other may take this long to finish.
const LINGER: Duration = Duration::from_secs(5);

/// The agent's body as ours; the place is given back with the last byte.
pub fn body(incoming: Incoming, place: OwnedSemaphorePermit) -> Body {
    Body::new(Placed { incoming, _place: place })
}

struct Placed {
    incoming: Incoming,
    _place: OwnedSemaphorePermit,
}

impl hyper::body::Body for Placed {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.incoming).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// Joins two connections until either ends.
pub async fn join(client: Upgraded, agent: Upgraded) {
    pipe(TokioIo::new(client), TokioIo::new(agent)).await;
}

async fn pipe(client: impl AsyncRead + AsyncWrite, agent: impl AsyncRead + AsyncWrite) {
    let (client_read, client_write) = tokio::io::split(client);
    let (agent_read, agent_write) = tokio::io::split(agent);
    let activity = Arc::new(Activity { began: Instant::now(), last_ms: AtomicU64::new(0) });
    let mut up = std::pin::pin!(copy(client_read, agent_write, &activity));
    let mut down = std::pin::pin!(copy(agent_read, client_write, &activity));
    let ended = tokio::select! {
        ended = &mut up => (ended, tokio::time::timeout(LINGER, down).await.is_ok()),
        ended = &mut down => (ended, tokio::time::timeout(LINGER, up).await.is_ok()),
    };
    tracing::debug!(error = ended.0.err().map(|e| e.to_string()), both = ended.1, "tunnel ended");
}

/// When a byte last moved in either direction.
struct Activity {
    began: Instant,
    last_ms: AtomicU64,
}

impl Activity {
    fn mark(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(now, Ordering::Relaxed);
    }
    fn idle_since(&self) -> Instant {
        self.began + Duration::from_millis(self.last_ms.load(Ordering::Relaxed))
    }
}

/// Copies until end of file, which is passed on; fails when nothing moves either way for too long.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    activity: &Activity,
) -> io::Result<()> {
    let mut buffer = vec![0u8; BUFFER_BYTES];
    loop {
        let read = loop {
            let deadline = activity.idle_since() + IDLE_TIMEOUT;
            match tokio::time::timeout_at(deadline, from.read(&mut buffer)).await {
                Ok(read) => break read?,
                Err(_) if activity.idle_since() + IDLE_TIMEOUT > Instant::now() => {}
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        };
        if read == 0 {
            return to.shutdown().await;
        }
        activity.mark();
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_go_both_ways_and_an_end_ends_both() {
        let (mut client, near) = tokio::io::duplex(8);
        let (mut agent, far) = tokio::io::duplex(8);
        let tunnel = tokio::spawn(pipe(near, far));
        let mut got = [0u8; 19];
        let (sent, received) = tokio::join!(client.write_all(b"ping-that-is-longer"), agent.read_exact(&mut got));
        sent.unwrap();
        received.unwrap();
        assert_eq!(&got, b"ping-that-is-longer");
        agent.write_all(b"pong").await.unwrap();
        let mut got = [0u8; 4];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"pong");
        drop(agent);
        assert_eq!(client.read(&mut got).await.unwrap(), 0, "the end is passed on");
        drop(client);
        tunnel.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_tunnel_ends_but_a_one_sided_one_does_not() {
        let (client, near) = tokio::io::duplex(8);
        let (mut agent, far) = tokio::io::duplex(8);
        let tunnel = tokio::spawn(pipe(near, far));
        let (mut client_read, _client_write) = tokio::io::split(client);
        for _ in 0..3 {
            tokio::time::sleep(IDLE_TIMEOUT / 2).await;
            agent.write_all(b"x").await.unwrap();
            client_read.read_exact(&mut [0]).await.unwrap();
        }
        assert!(!tunnel.is_finished());
        tokio::time::sleep(IDLE_TIMEOUT + LINGER * 2).await;
        tunnel.await.unwrap();
    }
}
