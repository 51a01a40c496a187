//! Watches the raw bytes of a client connection for request framing that parsers disagree about.
//!
//! hyper resolves `Content-Length` beside `Transfer-Encoding` by RFC 9112 §6.3 and hides that both were sent; a proxy
//! should refuse such a message instead, because whoever stands in front of us may have framed it the other way. The
//! [`Framer`] follows the message boundaries itself and remembers which request head was ambiguous. It decides nothing
//! else: whatever it cannot follow it leaves to hyper, which answers 400.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of a header line that are looked at: enough for `Transfer-Encoding:` and for `Content-Length:` with any value
/// that fits 64 bits.
const LINE_PREFIX: usize = 64;

/// Number (from 1) of the first ambiguous request head on a connection, shared with the request handler. 0: none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict(Arc<AtomicU64>);

impl Verdict {
    /// Whether the `number`th request (from 1) of the connection must be refused.
    pub fn refuses(&self, number: u64) -> bool {
        self.0.load(Relaxed) == number
    }
}

/// Where in the request stream the next byte belongs.
#[derive(Debug, PartialEq, Eq)]
enum State {
    /// In the request line or a header field.
    Head,
    /// In a body with this many bytes left.
    Body(u64),
    /// In a chunk-size line; the size so far, and whether the digits are over.
    ChunkSize { size: u64, digits_over: bool },
    /// In chunk data, line end included.
    Chunk(u64),
    /// In the trailer section.
    Trailer,
    /// Not followed any further: the connection will be closed, or carries another protocol.
    Off,
}

/// Follows the framing of HTTP/1.1 requests.
#[derive(Debug)]
pub(crate) struct Framer {
    state: State,
    prefix: [u8; LINE_PREFIX],
    line: usize,
    last: u8,
    head: Head,
    heads: u64,
    verdict: Verdict,
}

/// What the current head has shown so far.
#[derive(Debug, Default)]
struct Head {
    started: bool,
    length_lines: u32,
    length: u64,
    chunked: bool,
    suspicious: bool,
}

impl Framer {
    pub fn new(verdict: Verdict) -> Self {
        Self {
            state: State::Head,
            prefix: [0; LINE_PREFIX],
            line: 0,
            last: 0,
            head: Head::default(),
            heads: 0,
            verdict,
        }
    }

    /// Takes the next bytes received.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = match self.state {
                State::Off => return,
                State::Head | State::Trailer => self.line(bytes),
                State::Body(left) => self.skip(bytes, left, State::Body, State::Head),
                State::ChunkSize { size, digits_over } => self.chunk_size(bytes[0], size, digits_over),
                State::Chunk(left) => {
                    self.skip(bytes, left, State::Chunk, State::ChunkSize { size: 0, digits_over: false })
                }
            };
            bytes = &bytes[taken..];
        }
    }

    fn skip(&mut self, bytes: &[u8], left: u64, more: fn(u64) -> State, then: State) -> usize {
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        self.state = if left == taken as u64 { then } else { more(left - taken as u64) };
        taken
    }

    /// Collects a line; the bytes taken.
    fn line(&mut self, bytes: &[u8]) -> usize {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let part = &bytes[..end.unwrap_or(bytes.len())];
        if self.line < LINE_PREFIX {
            let keep = part.len().min(LINE_PREFIX - self.line);
            self.prefix[self.line..self.line + keep].copy_from_slice(&part[..keep]);
        }
        self.line = self.line.saturating_add(part.len());
        if let Some(last) = part.last() {
            self.last = *last;
        }
        let Some(end) = end else { return bytes.len() };
        self.end_line();
        end + 1
    }

    fn end_line(&mut self) {
        let carriage_return = self.line > 0 && self.last == b'\r';
        let length = self.line - usize::from(carriage_return);
        let line = &self.prefix[..length.min(LINE_PREFIX)];
        if self.state == State::Trailer {
            if length == 0 {
                self.state = State::Head;
            }
        } else if length == 0 {
            // Empty lines before a request line are tolerated (RFC 9112 §2.2).
            if self.head.started {
                self.end_head();
            }
        } else if !self.head.started {
            self.head.started = true;
        } else if let Some(value) = field(line, b"content-length:") {
            self.head.length_lines += 1;
            match std::str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok()) {
                Some(length) => self.head.length = length,
                None => self.state = State::Off,
            }
        } else if field(line, b"transfer-encoding:").is_some() {
            self.head.chunked = true;
        }
        // A line that ends in a bare LF is one line to some and half a line to others.
        self.head.suspicious |= !carriage_return && self.head.started;
        self.line = 0;
        self.last = 0;
    }

    fn end_head(&mut self) {
        let head = std::mem::take(&mut self.head);
        self.heads += 1;
        if head.suspicious || head.length_lines > 1 || (head.chunked && head.length_lines > 0) {
            self.verdict.0.store(self.heads, Relaxed);
            self.state = State::Off;
        } else if head.chunked {
            self.state = State::ChunkSize { size: 0, digits_over: false };
        } else if head.length > 0 {
            self.state = State::Body(head.length);
        }
    }

    fn chunk_size(&mut self, byte: u8, size: u64, digits_over: bool) -> usize {
        self.state = match (byte, char::from(byte).to_digit(16)) {
            (b'\n', _) if size == 0 => State::Trailer,
            (b'\n', _) => State::Chunk(size.saturating_add(2)),
            (_, Some(digit)) if !digits_over => match size.checked_mul(16) {
                Some(size) => State::ChunkSize { size: size | u64::from(digit), digits_over },
                None => State::Off,
            },
            _ => State::ChunkSize { size, digits_over: true },
        };
        1
    }
}

/// The value of `line` when its name is `name` (lower case, colon included). A space before the colon counts as well:
/// hyper refuses it, and until it does the framing must not be misread.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, value) = line.split_at_checked(name.len())?;
    start.eq_ignore_ascii_case(name).then_some(value)
}

/// A client stream whose received bytes pass through a [`Framer`].
#[derive(Debug)]
pub(crate) struct Guarded<S> {
    stream: S,
    framer: Framer,
}

impl<S> Guarded<S> {
    pub fn new(stream: S, verdict: Verdict) -> Self {
        Self { stream, framer: Framer::new(verdict) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Some(new) = buf.filled().get(before..) {
            self.framer.feed(new);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The verdict and the number of heads seen must not depend on how the bytes are cut.
    #[track_caller]
    fn check(stream: &str, refused: u64, heads: u64) {
        for cut in [1, 2, 3, 7, 64, stream.len()] {
            let verdict = Verdict::default();
            let mut framer = Framer::new(verdict.clone());
            stream.as_bytes().chunks(cut).for_each(|part| framer.feed(part));
            assert_eq!(verdict.0.load(Relaxed), refused, "verdict with pieces of {cut}: {stream:?}");
            assert_eq!(framer.heads, heads, "heads with pieces of {cut}: {stream:?}");
        }
    }

    #[test]
    fn ordinary_requests_pass() {
        check("GET / HTTP/1.1\r\nhost: a\r\n\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n", 0, 2);
        check("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab\r\ncGET / HTTP/1.1\r\n\r\n", 0, 2);
        check(
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;x=1\r\nhello\r\n0\r\nt: 1\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            0,
            2,
        );
        check("POST / HTTP/1.1\r\nX-Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 0, 1);
    }

    #[test]
    fn body_bytes_that_look_like_headers_are_not_judged() {
        let body = "content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n";
        check(&format!("POST / HTTP/1.1\r\ncontent-length: {}\r\n\r\n{body}", body.len()), 0, 1);
        let size = format!("{:x}", body.len());
        check(&format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{size}\r\n{body}\r\n0\r\n\r\n"), 0, 1);
    }

    #[test]
    fn both_framings_are_refused_at_the_right_request() {
        let both = "POST / HTTP/1.1\r\nContent-Length: 4\r\nTRANSFER-ENCODING: chunked\r\n\r\n";
        check(both, 1, 1);
        check(&format!("GET / HTTP/1.1\r\nhost: a\r\n\r\nPOST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nxx{both}"), 3, 3);
        check("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 0\r\n\r\n", 1, 1);
    }

    #[test]
    fn doubled_lengths_and_bare_line_feeds_are_refused() {
        check("POST / HTTP/1.1\r\ncontent-length: 4\r\ncontent-length: 4\r\n\r\n", 1, 1);
        check("GET / HTTP/1.1\nhost: a\n\n", 1, 1);
        check("GET / HTTP/1.1\r\nhost: a\nx: y\r\n\r\n", 1, 1);
    }
}
