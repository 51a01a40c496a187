//! Bytes received and not yet used, and a thread's stock of memory for them.
//!
//! A connection that waits for its next message holds no memory: [`Buffer::poll_fill`] takes some when bytes are there,
//! [`Buffer::release`] gives it back once they are used.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;

use super::io::Source;
use super::splice::Pipes;

/// Bytes read at once where a head is expected: most messages fit whole.
pub(crate) const SMALL: usize = 16 * 1024;
/// Bytes read at once in the middle of a large body, or when one is likely: 64 KiB with their head fit whole.
pub(crate) const LARGE: usize = 80 * 1024;
/// Memory that a thread keeps in pieces of each size, in bytes; more is freed.
const MAX_STOCK_BYTES: usize = 4 * 1024 * 1024;

/// Memory that connections of one thread lend each other.
#[derive(Debug, Default)]
pub(crate) struct Stock {
    small: RefCell<Vec<Box<[u8]>>>,
    large: RefCell<Vec<Box<[u8]>>>,
    /// The kernel's memory, for bytes at which we need not look.
    pub pipes: Pipes,
}

impl Stock {
    fn of(&self, size: usize) -> Option<&RefCell<Vec<Box<[u8]>>>> {
        match size {
            SMALL => Some(&self.small),
            LARGE => Some(&self.large),
            _ => None,
        }
    }

    fn take(&self, size: usize) -> Box<[u8]> {
        let kept = self.of(size).and_then(|stock| stock.borrow_mut().pop());
        kept.unwrap_or_else(|| vec![0; size].into_boxed_slice())
    }

    fn give(&self, memory: Box<[u8]>) {
        if let Some(stock) = self.of(memory.len()) {
            let mut stock = stock.borrow_mut();
            if stock.len() < MAX_STOCK_BYTES / memory.len() {
                stock.push(memory);
            }
        }
    }
}

/// Bytes in the order they arrived; used from the front, filled at the back.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    memory: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// With `bytes` in it.
    pub fn holding(bytes: Box<[u8]>) -> Self {
        Self { start: 0, end: bytes.len(), memory: bytes }
    }

    /// What is there.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Drops `count` bytes from the front, or all there are.
    pub fn consume(&mut self, count: usize) {
        self.start += count.min(self.end - self.start);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Room at the back for at least one byte and, when empty, for `size`.
    fn make_room(&mut self, stock: &Stock, size: usize) {
        if self.memory.len() < size && self.is_empty() {
            self.release(stock);
            self.memory = stock.take(size);
        } else if self.end == self.memory.len() {
            if self.start == 0 {
                let mut memory = stock.take((self.memory.len() * 2).max(size));
                memory[..self.end].copy_from_slice(&self.memory);
                stock.give(std::mem::replace(&mut self.memory, memory));
            } else {
                self.memory.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
        }
    }

    /// Reads once, into memory for `size` bytes; the bytes read, 0 at the end of the stream. The caller bounds how much
    /// it lets pile up: what is there is kept, whatever it takes.
    pub fn poll_fill<R: Source>(
        &mut self,
        from: &mut R,
        stock: &Stock,
        size: usize,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        ready!(from.poll_readable(cx))?;
        self.make_room(stock, size);
        let mut room = ReadBuf::new(&mut self.memory[self.end..]);
        // Unlike `try_read` this knows after a short read that nothing is left, which saves a call into the kernel.
        ready!(Pin::new(from).poll_read(cx, &mut room))?;
        let read = room.filled().len();
        self.end += read;
        Poll::Ready(Ok(read))
    }

    /// [`Buffer::poll_fill`] as a future; safe to drop at any point.
    pub async fn fill<R: Source>(&mut self, from: &mut R, stock: &Stock, size: usize) -> io::Result<usize> {
        std::future::poll_fn(|cx| self.poll_fill(from, stock, size, cx)).await
    }

    /// Gives the memory back when nothing is in it.
    pub fn release(&mut self, stock: &Stock) {
        if self.is_empty() && !self.memory.is_empty() {
            stock.give(std::mem::take(&mut self.memory));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn bytes_keep_their_order_while_the_buffer_grows_and_empties() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let mut writer = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a stream");
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let sent: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        let expected = sent.clone();
        let task = tokio::spawn(async move {
            writer.write_all(&sent).await.expect("sent");
        });
        let (mut reader, _) = stream.split();
        let (stock, mut buffer, mut got) = (Stock::default(), Buffer::default(), Vec::new());
        loop {
            let read = buffer.fill(&mut reader, &stock, SMALL).await.expect("read");
            if read == 0 {
                break;
            }
            // Always something is left, so that it must grow and move.
            let take = buffer.bytes().len() * 2 / 3;
            got.extend_from_slice(&buffer.bytes()[..take]);
            buffer.consume(take);
        }
        got.extend_from_slice(buffer.bytes());
        buffer.consume(usize::MAX);
        buffer.release(&stock);
        assert!(got == expected && buffer.memory.is_empty());
        task.await.expect("the writer");
    }
}
