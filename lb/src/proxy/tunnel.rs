//! Connections that left HTTP by a 101 response: bytes both ways until both sides are done.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::http::Conn;
use super::pool::Upstream;
use super::record::Record;

/// Copy buffer per direction in bytes.
pub(crate) const COPY_BUFFER: usize = 16 * 1024;

/// Passes the 101 in `conn.reply` on and joins the client's connection with the endpoint's.
pub(crate) async fn join(conn: &mut Conn<'_>, mut upstream: Upstream, record: &Record) {
    let count = |direction, bytes| match direction {
        Direction::FromClient => record.received(bytes),
        Direction::ToClient => record.sent(bytes),
    };
    let sent = async {
        conn.writer.write_all(&conn.reply).await?;
        // Bytes that came with the 101, and those that the client did not wait with.
        count(Direction::ToClient, upstream.input.bytes().len() as u64);
        conn.writer.write_all(upstream.input.bytes()).await?;
        count(Direction::FromClient, conn.input.bytes().len() as u64);
        upstream.stream.write_all(conn.input.bytes()).await
    };
    let result = match sent.await {
        Ok(()) => {
            let mut client = Counted { stream: tokio::io::join(&mut conn.reader, &mut conn.writer), count };
            let copied =
                tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream.stream, COPY_BUFFER, COPY_BUFFER);
            copied.await.map(drop)
        }
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        tracing::trace!(%error, "upgraded connection ended");
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
