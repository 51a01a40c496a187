//! What passes on a client's connection, by frame: closes those that only make work.
//!
//! Frames that move a request on earn credit, frames that do not cost it; so does time. Whoever runs out is not read any
//! more. The meter only looks at frame headers (RFC 9113 §4.1); what they mean is the crate's business.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::PREFACE;

/// Credit of a new connection, and the most that can be saved. A frame without progress costs 1.
const MAX_CREDIT: f64 = 1000.0;
/// Credit earned per second.
const CREDIT_PER_SECOND: f64 = 100.0;
/// Credit earned by a DATA frame with payload, or a header block.
const CREDIT_PER_PROGRESS: f64 = 1.0;
/// Bytes we send that earn a credit: a client may acknowledge what it gets by window updates.
const BYTES_PER_CREDIT: f64 = 256.0;
/// Resets a client may make at once, and how many more per second. Clients do cancel requests, but not most of them.
const MAX_RESETS: f64 = 200.0;
const RESETS_PER_SECOND: f64 = 20.0;
/// A request that was answered earns so many resets.
const RESETS_PER_ANSWER: f64 = 0.5;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const HEADER_BYTES: usize = 9;

/// See the module.
#[derive(Debug)]
pub(super) struct Meter {
    credit: Cell<f64>,
    resets: Cell<f64>,
    refilled: Cell<Instant>,
    exceeded: Cell<bool>,
    /// Bytes received.
    received: Cell<u64>,
}

impl Meter {
    pub fn new(now: Instant) -> Self {
        Self {
            credit: Cell::new(MAX_CREDIT),
            resets: Cell::new(MAX_RESETS),
            refilled: Cell::new(now),
            exceeded: Cell::new(false),
            received: Cell::new(0),
        }
    }

    /// The client made too much work for nothing.
    pub fn is_exceeded(&self) -> bool {
        self.exceeded.get()
    }

    pub fn received(&self) -> u64 {
        self.received.get()
    }

    /// A request was answered.
    pub fn answered(&self) {
        self.resets.set((self.resets.get() + RESETS_PER_ANSWER).min(MAX_RESETS));
    }

    fn earn(&self, credit: f64) {
        self.credit.set((self.credit.get() + credit).min(MAX_CREDIT));
    }

    fn frame(&self, kind: u8, length: usize, now: impl Fn() -> Instant) {
        match kind {
            DATA if length > 0 => return self.earn(CREDIT_PER_PROGRESS),
            HEADERS => return self.earn(CREDIT_PER_PROGRESS),
            RST_STREAM => self.resets.set(self.resets.get() - 1.0),
            _ => self.credit.set(self.credit.get() - 1.0),
        }
        if self.credit.get() < 0.0 || self.resets.get() < 0.0 {
            // The clock is read only by those who look bad.
            let now = now();
            let seconds = now.saturating_duration_since(self.refilled.replace(now)).as_secs_f64();
            self.earn(seconds * CREDIT_PER_SECOND);
            self.resets.set((self.resets.get() + seconds * RESETS_PER_SECOND).min(MAX_RESETS));
            self.exceeded.set(self.credit.get() < 0.0 || self.resets.get() < 0.0);
        }
    }
}

/// Where in the client's bytes we are.
#[derive(Debug)]
enum At {
    /// This far in the preface.
    Preface(usize),
    /// This far in a frame header.
    Header([u8; HEADER_BYTES], usize),
    /// This many bytes before the end of a frame.
    Payload(usize),
}

/// A client's socket that is watched by a [`Meter`]. Shared, because the crate does not give sockets back.
#[derive(Debug)]
pub(super) struct Metered<IO> {
    pub io: Rc<RefCell<IO>>,
    meter: Rc<Meter>,
    /// Received by whoever found out that this is HTTP/2.
    early: Box<[u8]>,
    early_used: usize,
    at: At,
}

impl<IO> Metered<IO> {
    pub fn new(io: Rc<RefCell<IO>>, early: Box<[u8]>, meter: Rc<Meter>) -> Self {
        Self { io, meter, early, early_used: 0, at: At::Preface(0) }
    }

    fn watch(&mut self, mut bytes: &[u8]) {
        self.meter.received.set(self.meter.received.get() + bytes.len() as u64);
        while !bytes.is_empty() {
            match &mut self.at {
                At::Preface(done) => {
                    let taken = bytes.len().min(PREFACE.len() - *done);
                    *done += taken;
                    bytes = &bytes[taken..];
                    if *done == PREFACE.len() {
                        self.at = At::Header([0; HEADER_BYTES], 0);
                    }
                }
                At::Payload(left) => {
                    let taken = bytes.len().min(*left);
                    *left -= taken;
                    bytes = &bytes[taken..];
                    if *left == 0 {
                        self.at = At::Header([0; HEADER_BYTES], 0);
                    }
                }
                At::Header(header, done) => {
                    let taken = bytes.len().min(HEADER_BYTES - *done);
                    header[*done..*done + taken].copy_from_slice(&bytes[..taken]);
                    *done += taken;
                    bytes = &bytes[taken..];
                    if *done == HEADER_BYTES {
                        let length =
                            usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
                        self.meter.frame(header[3], length, Instant::now);
                        self.at = if length == 0 { At::Header([0; HEADER_BYTES], 0) } else { At::Payload(length) };
                    }
                }
            }
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Metered<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.meter.is_exceeded() {
            // Back to the connection's loop, which ends it.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        if self.early_used < self.early.len() {
            let rest = &self.early[self.early_used..];
            let taken = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..taken]);
            self.early_used += taken;
        } else {
            let io = self.io.clone();
            ready!(Pin::new(&mut *io.borrow_mut()).poll_read(cx, buf))?;
        }
        self.watch(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Metered<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut *self.io.borrow_mut()).poll_write(cx, bytes))?;
        self.meter.earn(written as f64 / BYTES_PER_CREDIT);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut *self.io.borrow_mut()).poll_write_vectored(cx, bufs))?;
        self.meter.earn(written as f64 / BYTES_PER_CREDIT);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.borrow().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io.borrow_mut()).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn watched(frames: &[(u8, usize)], cut: usize) -> Rc<Meter> {
        let meter = Rc::new(Meter::new(Instant::now()));
        let mut io = Metered::new(Rc::default(), Box::default(), meter.clone());
        let () = *io.io.borrow();
        let mut bytes = PREFACE.to_vec();
        for (kind, length) in frames {
            bytes.extend_from_slice(&[0, (length >> 8) as u8, *length as u8, *kind, 0, 0, 0, 0, 1]);
            bytes.extend(std::iter::repeat_n(7, *length));
        }
        bytes.chunks(cut).for_each(|piece| io.watch(piece));
        meter
    }

    #[test]
    fn frames_are_counted_however_they_are_cut() {
        for cut in [1, 5, 9, 1000, 100_000] {
            let meter = watched(&[(4, 6), (6, 8), (DATA, 300), (RST_STREAM, 4), (200, 0), (DATA, 0)], cut);
            assert_eq!((meter.credit.get(), meter.resets.get()), (MAX_CREDIT - 3.0, MAX_RESETS - 1.0), "{cut}");
        }
    }

    #[test]
    fn floods_exceed_it_and_work_does_not() {
        let flood = |kind, length, count| watched(&vec![(kind, length); count], 4096).is_exceeded();
        for (kind, length) in [(2, 5), (4, 0), (6, 8), (8, 4), (99, 0), (DATA, 0), (RST_STREAM, 4)] {
            assert!(flood(kind, length, 3000), "{kind}");
        }
        assert!(!flood(HEADERS, 20, 20_000) && !flood(DATA, 10, 20_000) && !flood(RST_STREAM, 4, 150));
    }

    #[test]
    fn time_heals() {
        let start = Instant::now();
        let meter = Meter::new(start);
        for second in 1..100 {
            for _ in 0..RESETS_PER_SECOND as u64 {
                meter.frame(RST_STREAM, 4, || start + Duration::from_secs(second));
            }
        }
        assert!(!meter.is_exceeded());
    }
}
