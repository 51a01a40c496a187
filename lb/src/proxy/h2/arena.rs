//! Memory that is read into: blocks from which each read splits off exactly what it got.
//!
//! A connection that waits holds none of it, and many small messages share a block. A block is freed, or used again, once
//! nothing that was split off it is left.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::AsyncRead;
use tokio_util::io::poll_read_buf;

/// Size of a block. What is split off pins all of it, so not larger than a default window.
const BLOCK_BYTES: usize = 64 * 1024;
/// Room for a read; with less left, the next block is begun.
const MIN_READ_BYTES: usize = 8 * 1024;

/// One thread's current block.
#[derive(Debug, Default)]
pub(crate) struct Arena(RefCell<BytesMut>);

impl Arena {
    /// Reads once and appends to `to`; the bytes read, 0 at the end of the stream.
    pub fn poll_read<R: AsyncRead + Unpin>(
        &self,
        from: &mut R,
        to: &mut BytesMut,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut block = self.0.borrow_mut();
        if block.capacity() < MIN_READ_BYTES {
            block.reserve(BLOCK_BYTES);
        }
        let read = ready!(poll_read_buf(Pin::new(from), cx, &mut *block))?;
        let piece = block.split();
        if to.is_empty() {
            *to = piece;
        } else {
            // Adjacent pieces are joined without copying.
            to.unsplit(piece);
        }
        Poll::Ready(Ok(read))
    }

    /// [`Arena::poll_read`] as a future; safe to drop at any point.
    pub async fn read<R: AsyncRead + Unpin>(&self, from: &mut R, to: &mut BytesMut) -> io::Result<usize> {
        std::future::poll_fn(|cx| self.poll_read(from, to, cx)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_are_what_was_read_and_share_a_block() {
        let arena = Arena::default();
        let (mut first, mut second, mut both) = (BytesMut::new(), BytesMut::new(), BytesMut::new());
        assert_eq!(arena.read(&mut &b"hello"[..], &mut first).await.ok(), Some(5));
        assert_eq!(arena.read(&mut &b"world"[..], &mut second).await.ok(), Some(5));
        assert_eq!((&first[..], &second[..]), (&b"hello"[..], &b"world"[..]));
        assert_eq!(second.as_ptr() as usize - first.as_ptr() as usize, 5, "one block");
        for _ in 0..2 {
            assert!(arena.read(&mut &b"xy"[..], &mut both).await.is_ok());
        }
        assert_eq!(&both[..], b"xyxy");
        assert_eq!(arena.read(&mut &b""[..], &mut both).await.ok(), Some(0));
    }
}
