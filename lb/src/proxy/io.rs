//! Streams as the proxy reads and writes them: plain TCP or TLS, towards clients and towards endpoints.
//!
//! Code towards clients is generic, so that plain connections pay nothing for TLS; towards endpoints a [`Link`] decides by a branch.
//! A TLS session is one object for both directions; its halves share it through a cell, as all happens on one thread. TLS may keep
//! bytes that were written: whoever has nothing more to write flushes ([`send`]).

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio_rustls::{client, server};

/// Something to read that can say beforehand whether reading makes sense.
pub(crate) trait Source: AsyncRead + Unpin {
    /// Ready when a read may give bytes, an end or an error: memory for them is worth taking.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// The connection, if its bytes are what is read.
    fn plain(&self) -> Option<&TcpStream> {
        None
    }
}

/// Something to write.
pub(crate) trait Sink: AsyncWrite + Unpin {
    /// The connection, if what is written are its bytes.
    fn plain(&self) -> Option<&TcpStream> {
        None
    }
}

impl Sink for WriteHalf<'_> {
    fn plain(&self) -> Option<&TcpStream> {
        Some(self.as_ref())
    }
}

impl Source for ReadHalf<'_> {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream: &TcpStream = self.as_ref();
        stream.poll_read_ready(cx)
    }

    fn plain(&self) -> Option<&TcpStream> {
        Some(self.as_ref())
    }
}

/// A connection that can be read and written at once.
pub(crate) trait Stream: 'static {
    type Reader<'a>: Source;
    type Writer<'a>: Sink;
    /// Its protocol says goodbye before a connection is closed.
    const FAREWELL: bool;

    /// Its two directions.
    fn halves(&mut self) -> (Self::Reader<'_>, Self::Writer<'_>);
    /// What it runs over.
    fn with_tcp<R>(&self, look: impl FnOnce(&TcpStream) -> R) -> R;
    /// TLS version, e.g. `1.3`; `None` in clear text.
    fn tls_version(&self) -> Option<&'static str> {
        None
    }
}

impl Stream for TcpStream {
    type Reader<'a> = ReadHalf<'a>;
    type Writer<'a> = WriteHalf<'a>;
    const FAREWELL: bool = false;

    fn halves(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        self.split()
    }

    fn with_tcp<R>(&self, look: impl FnOnce(&TcpStream) -> R) -> R {
        look(self)
    }
}

/// A TLS stream over TCP.
pub(crate) trait Session: AsyncRead + AsyncWrite + Unpin + 'static {
    fn tcp(&self) -> &TcpStream;
    /// The version agreed on.
    fn version(&self) -> Option<rustls::ProtocolVersion>;
    /// Nothing decrypted is waiting: the socket says whether there is more.
    fn wants_read(&self) -> bool;
}

impl Session for server::TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
    fn version(&self) -> Option<rustls::ProtocolVersion> {
        self.get_ref().1.protocol_version()
    }
    fn wants_read(&self) -> bool {
        self.get_ref().1.wants_read()
    }
}

impl Session for client::TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
    fn version(&self) -> Option<rustls::ProtocolVersion> {
        self.get_ref().1.protocol_version()
    }
    fn wants_read(&self) -> bool {
        self.get_ref().1.wants_read()
    }
}

/// A TLS stream whose directions are used at once.
pub(crate) struct Shared<S>(RefCell<S>);

impl<S> Shared<S> {
    pub fn new(stream: S) -> Self {
        Self(RefCell::new(stream))
    }
}

/// As logs and metrics tell a TLS version.
pub(crate) fn version_text(version: Option<rustls::ProtocolVersion>) -> Option<&'static str> {
    match version? {
        rustls::ProtocolVersion::TLSv1_3 => Some("1.3"),
        rustls::ProtocolVersion::TLSv1_2 => Some("1.2"),
        _ => None,
    }
}

/// One direction of a [`Shared`].
pub(crate) struct Half<'a, S>(&'a RefCell<S>);

impl<S: Session> Stream for Shared<S> {
    type Reader<'a> = Half<'a, S>;
    type Writer<'a> = Half<'a, S>;
    const FAREWELL: bool = true;

    fn halves(&mut self) -> (Half<'_, S>, Half<'_, S>) {
        (Half(&self.0), Half(&self.0))
    }

    fn with_tcp<R>(&self, look: impl FnOnce(&TcpStream) -> R) -> R {
        look(self.0.borrow().tcp())
    }

    fn tls_version(&self) -> Option<&'static str> {
        version_text(self.0.borrow().version())
    }
}

impl<S: Session> Source for Half<'_, S> {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.0.borrow();
        if stream.wants_read() { stream.tcp().poll_read_ready(cx) } else { Poll::Ready(Ok(())) }
    }
}

impl<S: AsyncWrite + Unpin> Sink for Half<'_, S> {}

impl<S: AsyncRead + Unpin> AsyncRead for Half<'_, S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Half<'_, S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_shutdown(cx)
    }
}

/// A connection to an endpoint.
pub(crate) enum Link {
    Plain(TcpStream),
    Tls(Box<Shared<client::TlsStream<TcpStream>>>),
    /// Something else that behaves like a connection for one exchange: a stream of an HTTP/2 connection.
    Bridged(Box<Shared<DuplexStream>>),
}

impl Link {
    /// Whether another request can be sent: the endpoint has neither closed nor sent anything. Costs no call into the kernel unless
    /// something arrived; with TLS that may be a session ticket.
    pub fn is_usable(&mut self) -> bool {
        match self {
            Self::Plain(stream) => {
                matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
            }
            Self::Tls(stream) => {
                let mut byte = [0];
                let mut cx = Context::from_waker(std::task::Waker::noop());
                Pin::new(stream.0.get_mut()).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_pending()
            }
            Self::Bridged(_) => false,
        }
    }
}

impl Link {
    /// Its two directions.
    pub fn halves(&mut self) -> (LinkReader<'_>, LinkWriter<'_>) {
        match self {
            Self::Plain(stream) => {
                let (reader, writer) = stream.split();
                (LinkReader::Plain(reader), LinkWriter::Plain(writer))
            }
            Self::Tls(stream) => (LinkReader::Tls(Half(&stream.0)), LinkWriter::Tls(Half(&stream.0))),
            Self::Bridged(stream) => (LinkReader::Bridged(Half(&stream.0)), LinkWriter::Bridged(Half(&stream.0))),
        }
    }
}

/// One direction of a [`Link`].
pub(crate) enum LinkReader<'a> {
    Plain(ReadHalf<'a>),
    Tls(Half<'a, client::TlsStream<TcpStream>>),
    Bridged(Half<'a, DuplexStream>),
}

/// The other direction.
pub(crate) enum LinkWriter<'a> {
    Plain(WriteHalf<'a>),
    Tls(Half<'a, client::TlsStream<TcpStream>>),
    Bridged(Half<'a, DuplexStream>),
}

impl Source for LinkReader<'_> {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(reader) => reader.poll_readable(cx),
            Self::Tls(reader) => reader.poll_readable(cx),
            Self::Bridged(_) => Poll::Ready(Ok(())),
        }
    }

    fn plain(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(reader) => reader.plain(),
            Self::Tls(_) | Self::Bridged(_) => None,
        }
    }
}

impl Sink for LinkWriter<'_> {
    fn plain(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(writer) => writer.plain(),
            Self::Tls(_) | Self::Bridged(_) => None,
        }
    }
}

impl AsyncRead for LinkReader<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(reader) => Pin::new(reader).poll_read(cx, buf),
            Self::Tls(reader) => Pin::new(reader).poll_read(cx, buf),
            Self::Bridged(reader) => Pin::new(reader).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for LinkWriter<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(writer) => Pin::new(writer).poll_write(cx, buf),
            Self::Tls(writer) => Pin::new(writer).poll_write(cx, buf),
            Self::Bridged(writer) => Pin::new(writer).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(writer) => Pin::new(writer).poll_write_vectored(cx, bufs),
            Self::Tls(writer) => Pin::new(writer).poll_write_vectored(cx, bufs),
            Self::Bridged(writer) => Pin::new(writer).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(writer) => Pin::new(writer).poll_flush(cx),
            Self::Tls(writer) => Pin::new(writer).poll_flush(cx),
            Self::Bridged(writer) => Pin::new(writer).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(writer) => Pin::new(writer).poll_shutdown(cx),
            Self::Tls(writer) => Pin::new(writer).poll_shutdown(cx),
            Self::Bridged(writer) => Pin::new(writer).poll_shutdown(cx),
        }
    }
}

/// Writes all of `bytes` and sees that nothing of it is kept.
pub(crate) async fn send<W: AsyncWrite + Unpin>(writer: &mut W, bytes: &[u8]) -> io::Result<()> {
    writer.write_all(bytes).await?;
    writer.flush().await
}

/// Writes both pieces likewise, in one call if the stream takes them; on failure the bytes that were written.
pub(crate) async fn send_both<W: AsyncWrite + Unpin>(writer: &mut W, first: &[u8], second: &[u8]) -> Result<(), usize> {
    let (mut sent, all) = (0, first.len() + second.len());
    while sent < all {
        let written = std::future::poll_fn(|cx| {
            let (first, second) = (first.get(sent..).unwrap_or(&[]), &second[sent.saturating_sub(first.len())..]);
            if second.is_empty() {
                Pin::new(&mut *writer).poll_write(cx, first)
            } else {
                Pin::new(&mut *writer).poll_write_vectored(cx, &[IoSlice::new(first), IoSlice::new(second)])
            }
        });
        match written.await {
            Ok(written @ 1..) => sent += written,
            Ok(0) | Err(_) => return Err(sent),
        }
    }
    writer.flush().await.map_err(|_| sent)
}

/// A client that is not there: nothing comes from it, and what is sent to it is dropped. Mirrored requests have one.
pub(crate) struct Nobody;

impl Source for Nobody {
    fn poll_readable(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncRead for Nobody {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Nobody {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, _: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
