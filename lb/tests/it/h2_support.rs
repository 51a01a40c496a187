//! HTTP/2 for tests: a client that writes frames as it is told, a client through the `h2` crate, and an HTTP/2 endpoint.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::support::PATIENCE;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const PRIORITIZED: u8 = 0x20;

pub const PROTOCOL_ERROR: u32 = 1;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const STREAM_CLOSED: u32 = 5;
pub const FRAME_SIZE_ERROR: u32 = 6;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const COMPRESSION_ERROR: u32 = 9;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// A frame (RFC 9113 §4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A header block of literals that are not indexed (RFC 7541 §6.2.2).
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            // A length with a prefix of 7 bits.
            if text.len() < 127 {
                bytes.push(text.len() as u8);
            } else {
                let mut rest = text.len() - 127;
                bytes.push(127);
                while rest >= 128 {
                    bytes.push((rest % 128) as u8 | 128);
                    rest /= 128;
                }
                bytes.push(rest as u8);
            }
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    bytes
}

/// The pseudo-header fields of an ordinary request, then `more`.
pub fn request(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut fields = vec![(":method", method), (":scheme", "http"), (":path", path), (":authority", "a")];
    fields.extend_from_slice(more);
    block(&fields)
}

/// A request without body on `stream`.
pub fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &request("GET", "/", &[]))
}

/// What came of a connection or stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    GoAway(u32),
    Reset(u32),
    Status(u16),
    /// Closed without a word.
    Closed,
}

#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// Writes what it is told and reads frames.
pub struct Raw {
    pub stream: TcpStream,
}

impl Raw {
    pub async fn connect(addr: SocketAddr) -> Self {
        let mut raw = Self { stream: TcpStream::connect(addr).await.unwrap() };
        raw.write(PREFACE).await;
        raw.write(&frame(SETTINGS, 0, 0, &[])).await;
        raw
    }

    /// A peer that went away meanwhile is seen when reading.
    pub async fn write(&mut self, bytes: &[u8]) -> bool {
        matches!(tokio::time::timeout(PATIENCE, self.stream.write_all(bytes)).await, Ok(Ok(())))
    }

    /// The next frame; `None` when the connection is closed.
    pub async fn next(&mut self) -> Option<Frame> {
        let read = async {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let mut payload = vec![0; length];
            self.stream.read_exact(&mut payload).await.ok()?;
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
            Some(Frame { kind: head[3], flags: head[4], stream, payload })
        };
        tokio::time::timeout(PATIENCE, read).await.expect("a frame or the end")
    }

    /// The next frame of a kind.
    pub async fn next_of(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await.unwrap_or_else(|| panic!("closed before a frame of kind {kind}"));
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// The next thing of consequence for `stream` or the connection.
    pub async fn outcome(&mut self, stream: u32) -> Outcome {
        while let Some(frame) = self.next().await {
            let code = |at: usize| u32::from_be_bytes(frame.payload[at..at + 4].try_into().unwrap());
            match frame.kind {
                GOAWAY => return Outcome::GoAway(code(4)),
                RST_STREAM if frame.stream == stream => return Outcome::Reset(code(0)),
                HEADERS if frame.stream == stream => return Outcome::Status(status(&frame.payload)),
                _ => {}
            }
        }
        Outcome::Closed
    }
}

/// The status at the front of a header block that is the first of its connection (RFC 7541 appendices A and B).
pub fn status(block: &[u8]) -> u16 {
    let known = [200, 204, 206, 304, 400, 404, 500];
    match block {
        [first @ 0x88..=0x8e, ..] => known[usize::from(first - 0x88)],
        [_, length, rest @ ..] if length & 0x80 == 0 => {
            std::str::from_utf8(&rest[..usize::from(*length)]).unwrap().parse().unwrap()
        }
        [_, length, rest @ ..] => {
            let bits: String = rest[..usize::from(length & 0x7f)].iter().map(|byte| format!("{byte:08b}")).collect();
            let (mut at, mut number) = (0, 0);
            for _ in 0..3 {
                let short = u16::from_str_radix(&bits[at..at + 5], 2).unwrap();
                let (digit, length) = if short < 3 {
                    (short, 5)
                } else {
                    (u16::from_str_radix(&bits[at..at + 6], 2).unwrap() - 0x19 + 3, 6)
                };
                number = number * 10 + digit;
                at += length;
            }
            number
        }
        _ => panic!("no status in {block:?}"),
    }
}

/// A client connection through the `h2` crate.
pub struct H2Client {
    pub sender: SendRequest<Bytes>,
    pub connection: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

impl H2Client {
    pub async fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        Self { sender, connection: tokio::spawn(connection) }
    }

    /// Likewise once the server has said what it offers.
    pub async fn connect_extended(addr: SocketAddr) -> Self {
        let client = Self::connect(addr).await;
        let wait = async {
            while !client.sender.is_extended_connect_protocol_enabled() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("extended CONNECT is offered");
        client
    }

    /// Opens a stream.
    pub async fn open(
        &mut self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        end: bool,
    ) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
        let mut request = Request::builder().method(method).uri(format!("http://web{path}"));
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        self.sender = self.sender.clone().ready().await.unwrap();
        self.sender.send_request(request.body(()).unwrap(), end).unwrap()
    }

    /// A whole exchange: status, fields, body, trailers.
    pub async fn try_send(
        &mut self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Whole, h2::Error> {
        let (response, mut sink) = self.open(method, path, fields, body.is_empty()).await;
        if !body.is_empty() {
            write(&mut sink, Bytes::copy_from_slice(body), true).await?;
        }
        Whole::read(tokio::time::timeout(PATIENCE, response).await.expect("a response in time")?).await
    }

    pub async fn get(&mut self, path: &str) -> Whole {
        self.try_send("GET", path, &[], b"").await.unwrap()
    }
}

/// A response with everything that belongs to it.
#[derive(Debug)]
pub struct Whole {
    pub status: u16,
    pub fields: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

impl Whole {
    pub async fn read(response: Response<RecvStream>) -> Result<Self, h2::Error> {
        let (parts, mut stream) = response.into_parts();
        let read = async {
            let mut body = Vec::new();
            while let Some(data) = stream.data().await {
                let data = data?;
                stream.flow_control().release_capacity(data.len())?;
                body.extend_from_slice(&data);
            }
            let trailers = stream.trailers().await?;
            Ok(Self { status: parts.status.as_u16(), fields: parts.headers, body, trailers })
        };
        tokio::time::timeout(PATIENCE, read).await.expect("a whole response in time")
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// Sends data as windows allow.
pub async fn write(sink: &mut SendStream<Bytes>, mut data: Bytes, end: bool) -> Result<(), h2::Error> {
    while !data.is_empty() {
        sink.reserve_capacity(data.len());
        let room = std::future::poll_fn(|cx| sink.poll_capacity(cx)).await.transpose()?.unwrap_or(0);
        let piece = data.split_to(room.min(data.len()));
        let last = end && data.is_empty();
        sink.send_data(piece, last)?;
    }
    Ok(())
}

/// An HTTP/2 endpoint. Paths: `/` its name, `/echo` body and trailers back as they come, `/headers` the head as text, `/never` no answer,
/// `/grpc` a gRPC message and a status in trailers, `/grpc-error` trailers-only, `/cut` a body that breaks off, `/big` 1 MiB, `/hints` a 103
/// with a link 20 ms before its name, `/floods` nothing but those.
pub struct H2Endpoint {
    pub addr: SocketAddr,
    pub connections: Arc<AtomicU64>,
    pub requests: Arc<AtomicU64>,
    /// Streams that clients reset.
    pub cancelled: Arc<AtomicU64>,
    kill: CancellationToken,
    goodbye: CancellationToken,
}

impl H2Endpoint {
    pub async fn start(name: &str) -> Self {
        Self::with(name, h2::server::Builder::new()).await
    }

    pub async fn with(name: &str, builder: h2::server::Builder) -> Self {
        Self::behind(name, builder, |stream| async { Some(stream) }).await
    }

    /// Likewise behind something that `open` makes of a connection.
    pub async fn behind<IO, F>(
        name: &str,
        builder: h2::server::Builder,
        open: impl Fn(TcpStream) -> F + Send + Sync + 'static,
    ) -> Self
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = Option<IO>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Self {
            addr: listener.local_addr().unwrap(),
            connections: Arc::default(),
            requests: Arc::default(),
            cancelled: Arc::default(),
            kill: CancellationToken::new(),
            goodbye: CancellationToken::new(),
        };
        let name: Arc<str> = name.into();
        let (connections, requests, cancelled) =
            (endpoint.connections.clone(), endpoint.requests.clone(), endpoint.cancelled.clone());
        let (kill, goodbye) = (endpoint.kill.clone(), endpoint.goodbye.clone());
        tokio::spawn(async move {
            loop {
                let stream = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap().0,
                    () = kill.cancelled() => return,
                };
                connections.fetch_add(1, Relaxed);
                let (requests, cancelled, kill, name, goodbye, builder) =
                    (requests.clone(), cancelled.clone(), kill.clone(), name.clone(), goodbye.clone(), builder.clone());
                let opened = open(stream);
                tokio::spawn(async move {
                    let Some(stream) = opened.await else { return };
                    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
                    let mut leaving = false;
                    loop {
                        let (request, respond) = tokio::select! {
                            accepted = connection.accept() => match accepted {
                                Some(Ok(accepted)) => accepted,
                                _ => return,
                            },
                            () = kill.cancelled() => return,
                            () = goodbye.cancelled(), if !leaving => {
                                leaving = true;
                                connection.graceful_shutdown();
                                continue;
                            }
                        };
                        requests.fetch_add(1, Relaxed);
                        let (name, cancelled) = (name.clone(), cancelled.clone());
                        tokio::spawn(async move {
                            if respond_to(request, respond, &name).await.is_err() {
                                cancelled.fetch_add(1, Relaxed);
                            }
                        });
                    }
                });
            }
        });
        endpoint
    }

    pub fn kill(&self) {
        self.kill.cancel();
    }

    /// Says GOAWAY on all connections.
    pub fn goodbye(&self) {
        self.goodbye.cancel();
    }

    pub fn served(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    pub async fn until_cancelled(&self, count: u64) {
        let wait = async {
            while self.cancelled.load(Relaxed) < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the endpoint sees the cancellation");
    }
}

impl Drop for H2Endpoint {
    fn drop(&mut self) {
        self.kill.cancel();
    }
}

/// Early Hints (RFC 8297) with a field that belongs to the hop, too.
fn hint() -> Response<()> {
    Response::builder().status(103).header("link", "</a.css>; rel=preload").header("x-gone", "1").body(()).unwrap()
}

async fn respond_to(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    name: &str,
) -> Result<(), h2::Error> {
    let (parts, mut body) = request.into_parts();
    let grpc = || Response::builder().header("content-type", "application/grpc");
    match parts.uri.path() {
        "/echo" => {
            let mut sink = respond.send_response(Response::new(()), false)?;
            while let Some(data) = body.data().await {
                let data = data?;
                body.flow_control().release_capacity(data.len())?;
                write(&mut sink, data, false).await?;
            }
            match body.trailers().await? {
                Some(trailers) => sink.send_trailers(trailers),
                None => sink.send_data(Bytes::new(), true),
            }
        }
        "/headers" => {
            let mut text = format!("{} {}\n", parts.method, parts.uri);
            for (name, value) in &parts.headers {
                text.push_str(&format!("{name}: {}\n", value.to_str().unwrap_or("?")));
            }
            respond.send_response(Response::new(()), false)?.send_data(text.into(), true)
        }
        "/never" => {
            std::future::poll_fn(|cx| respond.poll_reset(cx)).await?;
            Err(h2::Reason::CANCEL.into())
        }
        "/grpc" => {
            let mut sink = respond.send_response(grpc().body(()).unwrap(), false)?;
            write(&mut sink, Bytes::from_static(b"\0\0\0\0\x02hi"), false).await?;
            sink.send_trailers(HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]))
        }
        "/grpc-error" => {
            respond.send_response(grpc().header("grpc-status", "5").body(()).unwrap(), true)?;
            Ok(())
        }
        "/cut" => {
            let mut sink = respond.send_response(Response::new(()), false)?;
            write(&mut sink, Bytes::from_static(b"begun"), false).await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
            sink.send_reset(h2::Reason::INTERNAL_ERROR);
            Ok(())
        }
        "/hints" => {
            respond.send_informational(hint())?;
            tokio::time::sleep(Duration::from_millis(20)).await;
            respond.send_response(Response::new(()), false)?.send_data(Bytes::copy_from_slice(name.as_bytes()), true)
        }
        "/floods" => loop {
            respond.send_informational(hint())?;
            tokio::time::sleep(Duration::from_millis(1)).await;
        },
        "/big" => {
            let mut sink = respond.send_response(Response::new(()), false)?;
            write(&mut sink, vec![b'x'; 1024 * 1024].into(), true).await
        }
        _ => respond.send_response(Response::new(()), false)?.send_data(Bytes::copy_from_slice(name.as_bytes()), true),
    }
}
