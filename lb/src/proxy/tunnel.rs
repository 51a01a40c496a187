//! Connections that left HTTP by a 101 response: bytes both ways until both sides are done.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::body::Record;
use super::drain::{Drain, Phase};
use super::pool::Upstream;
use super::worker::ConnectionGuard;

/// Copy buffer per direction in bytes.
pub(crate) const COPY_BUFFER: usize = 16 * 1024;

/// Joins the client's upgraded connection with the endpoint's. The client side becomes available when the 101 response
/// has been written; `record` is counted when the tunnel ends.
pub(crate) fn spawn(on_upgrade: OnUpgrade, upstream: Box<Upstream>, record: Record, drain: Rc<Drain>) {
    let guard = ConnectionGuard::new(record.worker.clone(), record.backend.stats.clone());
    tokio::task::spawn_local(async move {
        tokio::select! {
            () = join(on_upgrade, upstream, &record) => {}
            () = drain.reached(Phase::Aborting) => {}
        }
        drop(guard);
    });
}

async fn join(on_upgrade: OnUpgrade, upstream: Box<Upstream>, record: &Record) {
    let (mut endpoint, early) = upstream.into_stream().await;
    let client = match on_upgrade.await {
        Ok(client) => TokioIo::new(client),
        Err(error) => {
            tracing::debug!(%error, "the client left before its connection was upgraded");
            return;
        }
    };
    let count = |direction, bytes| match direction {
        Direction::FromClient => record.received(bytes),
        Direction::ToClient => record.sent(bytes),
    };
    let mut client = Counted { stream: client, count };
    // Bytes that came with the 101.
    if client.write_all(&early).await.is_ok() {
        let copied = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut endpoint, COPY_BUFFER, COPY_BUFFER);
        if let Err(error) = copied.await {
            tracing::trace!(%error, "upgraded connection ended");
        }
    }
}

/// Which way counted bytes went.
#[derive(Clone, Copy)]
pub(crate) enum Direction {
    FromClient,
    ToClient,
}

/// A client stream that reports what passes as it passes, so that long connections show up before they end.
pub(crate) struct Counted<S, F> {
    pub stream: S,
    pub count: F,
}

impl<S: AsyncRead + Unpin, F: FnMut(Direction, u64) + Unpin> AsyncRead for Counted<S, F> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        if read > 0 {
            (self.count)(Direction::FromClient, read as u64);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin, F: FnMut(Direction, u64) + Unpin> AsyncWrite for Counted<S, F> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = &result {
            (self.count)(Direction::ToClient, *written as u64);
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
