//! Writes that are gathered: the `h2` crate flushes behind every DATA frame, which would make each response a TLS record and a system call of its
//! own. What it writes is kept until the connection's task has nothing more to do, or a full record is there.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The most that is kept: the plaintext of a full TLS record (RFC 8446 section 5.1).
const RECORD_BYTES: usize = 16 * 1024;

/// The memory of one thread's connections: only one of them writes at a time, and one that waits for its client keeps what it holds.
pub(super) type Spare = Rc<RefCell<Vec<u8>>>;

/// A socket whose writes are gathered. Whoever owns it calls [`Gather::poll_push`] whenever its work is done for now.
#[derive(Debug)]
pub(super) struct Gather<IO> {
    io: IO,
    out: Vec<u8>,
    spare: Spare,
    /// Flushing does nothing, as the owner pushes.
    pushed: bool,
}

impl<IO: AsyncWrite + Unpin> Gather<IO> {
    /// Flushes as it is told until [`Gather::defer`] is called.
    pub fn new(io: IO, spare: Spare) -> Self {
        Self { io, out: Vec::new(), spare, pushed: false }
    }

    /// From now on the owner pushes.
    pub fn defer(&mut self) {
        self.pushed = true;
    }

    /// Hands everything that was written to the socket.
    pub fn poll_push(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.is_empty() {
            return Pin::new(&mut self.io).poll_flush(cx);
        }
        let mut sent = 0;
        let outcome = loop {
            match Pin::new(&mut self.io).poll_write(cx, &self.out[sent..]) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => sent += written,
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
            if sent == self.out.len() {
                break Poll::Ready(Ok(()));
            }
        };
        self.out.drain(..sent);
        ready!(outcome)?;
        self.spare.replace(std::mem::take(&mut self.out));
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Takes what there is room for, after making room if there is none.
    fn poll_take(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.out.len() >= RECORD_BYTES {
            ready!(self.poll_push(cx))?;
        }
        if self.out.capacity() == 0 {
            self.out = self.spare.take();
            self.out.reserve_exact(RECORD_BYTES);
        }
        let taken = bytes.len().min(RECORD_BYTES - self.out.len());
        self.out.extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Gather<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Gather<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_take(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut written = 0;
        for buf in bufs.iter().filter(|buf| !buf.is_empty()) {
            match self.poll_take(cx, buf) {
                Poll::Ready(Ok(taken)) => written += taken,
                // What was taken counts; a socket that fails or waits does so again at the next write.
                Poll::Ready(Err(error)) if written == 0 => return Poll::Ready(Err(error)),
                Poll::Pending if written == 0 => return Poll::Pending,
                Poll::Ready(Err(_)) | Poll::Pending => break,
            }
            if self.out.len() >= RECORD_BYTES {
                break;
            }
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.pushed { Poll::Ready(Ok(())) } else { self.poll_push(cx) }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_push(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn writes_leave_when_they_are_pushed_or_fill_a_record() {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        let spare = Spare::default();
        let mut gather = Gather::new(near, spare.clone());
        gather.defer();
        for piece in [&b"head"[..], b"body"] {
            assert!(gather.write_all(piece).await.is_ok() && gather.flush().await.is_ok());
        }
        let mut buf = vec![0; RECORD_BYTES];
        assert!(futures::FutureExt::now_or_never(far.read(&mut buf)).is_none(), "nothing has left yet");
        assert!(std::future::poll_fn(|cx| gather.poll_push(cx)).await.is_ok());
        assert_eq!(far.read(&mut buf).await.ok(), Some(8), "both at once");
        assert_eq!(&buf[..8], b"headbody");
        assert!(gather.out.capacity() == 0, "it holds no memory while it has nothing");
        assert!(gather.write_all(&vec![7; RECORD_BYTES + 1]).await.is_ok());
        assert!(far.read_exact(&mut buf).await.is_ok(), "a full record leaves by itself");
        assert!(gather.shutdown().await.is_ok());
        assert_eq!(far.read(&mut buf).await.ok(), Some(1));
    }

    #[tokio::test]
    async fn a_socket_that_takes_no_more_stops_the_writer_and_loses_nothing() {
        let (near, mut far) = tokio::io::duplex(1000);
        let mut gather = Gather::new(near, Spare::default());
        gather.defer();
        let sent: Vec<u8> = (0..100_000_u32).map(|i| i as u8).collect();
        let write = async {
            assert!(gather.write_all(&sent).await.is_ok() && gather.shutdown().await.is_ok());
        };
        let mut got = Vec::new();
        let read = async { far.read_to_end(&mut got).await };
        let ((), read) = tokio::join!(write, read);
        assert_eq!(read.ok(), Some(sent.len()));
        assert!(got == sent);
    }
}
