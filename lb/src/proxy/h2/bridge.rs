//! An HTTP/2 stream to an endpoint that looks like an HTTP/1.1 connection to it, for requests of HTTP/1.1 clients.
//!
//! What the HTTP/1.1 engine writes is its own canonical form, so parsing it is strict and cheap. The connection carries one exchange and
//! says so (`Connection: close`); a stream that breaks is a connection that closes early.
//!
//! An upgrade to the WebSocket protocol becomes an extended CONNECT (RFC 8441 §5), and the endpoint's 200 a 101. The key is answered here,
//! as HTTP/2 has none. Where the endpoint does not offer that the answer is a 501.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::ext::Protocol;
use h2::{Reason, RecvStream, SendStream};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};

use super::transfer::{both, send};
use super::upstream::{Came, Heads, Lease};
use super::{Broke, response, websocket};
use crate::proxy::chunked::{Chunked, LAST_CHUNK, Output, write_chunk};
use crate::proxy::fields::{Field, content_length, kind, write};

/// Bytes between the two sides, each way.
const PIPE_BYTES: usize = 64 * 1024;
/// Room for a read; with less left, more memory is taken.
const MIN_READ_BYTES: usize = 4 * 1024;
const READ_BYTES: usize = 16 * 1024;
/// Largest head taken from the engine; clients' limits are stricter.
const MAX_HEAD_BYTES: usize = 256 * 1024;
/// Fields of such a head.
const MAX_FIELDS: usize = 256;
/// In a tunnel over which nothing comes from the endpoint it is noticed this late that the engine is gone.
const ABANDONED_AFTER: Duration = Duration::from_secs(5);
/// What is answered when the endpoint opens no tunnels.
const NO_TUNNELS: &str = "501: the endpoint speaks HTTP/2 and offers no WebSockets over it (RFC 8441): for HTTP/1.1 the port's appProtocol must be \
                          kubernetes.io/ws or http\n";

/// A connection that is the stream of `lease`; `tls`: the endpoint is reached over TLS. `patience`: longest wait for the endpoint to take
/// more of a body.
pub(crate) fn connect(lease: Lease, tls: bool, patience: Duration) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    tokio::task::spawn_local(async move {
        if let Err(broke) = run(ours, &lease, tls, patience).await {
            tracing::debug!(?broke, "a stream to an endpoint broke");
        }
    });
    theirs
}

async fn run(pipe: DuplexStream, lease: &Lease, tls: bool, patience: Duration) -> Result<(), Broke> {
    let (mut reader, mut writer) = tokio::io::split(pipe);
    let mut input = BytesMut::new();
    let Head { request, body } = loop {
        if let Some(head) = parse(&mut input, tls)? {
            break head;
        }
        if input.len() > MAX_HEAD_BYTES || fill(&mut reader, &mut input).await? == 0 {
            return Err(Broke::Client);
        }
    };
    if let Body::Tunnel(key) = body {
        // Boxed, so that other requests need no room for it.
        return Box::pin(tunnel(request, &key, lease, (reader, writer, input), patience)).await;
    }
    let is_head = request.method() == Method::HEAD;
    let (future, mut sink) = lease.send(request, matches!(body, Body::None)).await?;
    let sent = Cell::new(false);
    let upload = async {
        upload(&mut reader, input, body, &mut sink, patience).await?;
        sent.set(true);
        // The engine writes nothing more; when it lets go of the connection, the exchange is over.
        let mut rest = BytesMut::new();
        while fill(&mut reader, &mut rest).await? > 0 {
            rest.clear();
        }
        Err(Broke::Client)
    };
    let download = async {
        let mut heads = Heads::counted(future);
        loop {
            match heads.next().await? {
                Came::Interim(interim) => relay_interim(&interim, &mut writer).await?,
                Came::Head(response) => return relay(response, is_head, &mut writer).await,
            }
        }
    };
    both(upload, download).await.map(|((), _)| ())
}

async fn fill(reader: &mut ReadHalf<DuplexStream>, input: &mut BytesMut) -> Result<usize, Broke> {
    // Without room it would be read in crumbs, and endpoints rightly take many small DATA frames for an attack.
    if input.capacity() - input.len() < MIN_READ_BYTES {
        input.reserve(READ_BYTES);
    }
    reader.read_buf(input).await.map_err(|_| Broke::Client)
}

/// How a request's body ends.
enum Body {
    None,
    Length(u64),
    Chunked,
    /// The WebSocket protocol follows; the client's key.
    Tunnel(Bytes),
}

struct Head {
    request: Request<()>,
    body: Body,
}

/// Takes a head off the front of `input`; `None`: there is more to come.
fn parse(input: &mut BytesMut, tls: bool) -> Result<Option<Head>, Broke> {
    let mut memory = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut head = httparse::Request::new(&mut []);
    let length = match head.parse_with_uninit_headers(input, &mut memory) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Broke::BadBody),
    };
    let head = convert(&head, tls).ok_or(Broke::BadBody)?;
    let _ = input.split_to(length);
    Ok(Some(head))
}

fn convert(head: &httparse::Request<'_, '_>, tls: bool) -> Option<Head> {
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(if tls { Scheme::HTTPS } else { Scheme::HTTP });
    uri.path_and_query = Some(PathAndQuery::try_from(head.path?).ok()?);
    let (mut fields, mut body) = (HeaderMap::with_capacity(head.headers.len()), Body::None);
    for field in head.headers.iter() {
        match kind(field.name) {
            Some(Field::Host) => uri.authority = Some(Authority::try_from(field.value).ok()?),
            Some(Field::TransferEncoding) => body = Body::Chunked,
            Some(Field::ContentLength) => {
                let length = content_length(field.value)?;
                body = if length == 0 { Body::None } else { Body::Length(length) };
                fields.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            }
            // These end at this hop (RFC 9113 §8.2.2); an upgrade to anything but the WebSocket protocol is refused by the endpoint's
            // answer to the plain request.
            Some(
                Field::Connection
                | Field::KeepAlive
                | Field::ProxyConnection
                | Field::Upgrade
                | Field::Expect
                | Field::Http2Settings,
            ) => {}
            _ => {
                let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
                fields.append(name, HeaderValue::from_bytes(field.value).ok()?);
            }
        }
    }
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(head.method?.as_bytes()).ok()?;
    let wants = |field: &httparse::Header<'_>| {
        kind(field.name) == Some(Field::Upgrade) && field.value.eq_ignore_ascii_case(b"websocket")
    };
    if request.method() == Method::GET
        && matches!(body, Body::None)
        && head.headers.iter().any(wants)
        && let Some(key) = fields.remove(websocket::KEY)
    {
        *request.method_mut() = Method::CONNECT;
        request.extensions_mut().insert(Protocol::from_static("websocket"));
        body = Body::Tunnel(Bytes::copy_from_slice(key.as_bytes()));
    }
    *request.uri_mut() = Uri::from_parts(uri).ok()?;
    *request.headers_mut() = fields;
    Some(Head { request, body })
}

async fn upload(
    reader: &mut ReadHalf<DuplexStream>,
    mut input: BytesMut,
    body: Body,
    sink: &mut SendStream<Bytes>,
    patience: Duration,
) -> Result<(), Broke> {
    let mut left = match body {
        Body::None | Body::Tunnel(_) => return Ok(()),
        Body::Length(length) => Some(length),
        Body::Chunked => None,
    };
    let mut chunked = Chunked::new(Output::Plain);
    loop {
        let (data, done) = match &mut left {
            Some(left) => {
                let ready = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *left -= ready as u64;
                (input.split_to(ready).freeze(), *left == 0)
            }
            None => {
                let mut out = Vec::new();
                let step = chunked.decode(&input, &mut out).map_err(|_| Broke::BadBody)?;
                let _ = input.split_to(step.used);
                (Bytes::from(out), step.done)
            }
        };
        let trailers = if done && left.is_none() { response::trailers(chunked.trailer()) } else { None };
        send(sink, data, done && trailers.is_none(), patience).await.map_err(|_| Broke::Endpoint)?;
        if let Some(trailers) = trailers {
            return sink.send_trailers(trailers).map_err(|_| Broke::Endpoint);
        }
        if done {
            return Ok(());
        }
        if fill(reader, &mut input).await? == 0 {
            return Err(Broke::Client);
        }
    }
}

/// Asks for a tunnel and, if the endpoint opens it, moves bytes both ways until both sides have ended.
async fn tunnel(
    request: Request<()>,
    key: &[u8],
    lease: &Lease,
    (mut reader, mut writer, mut input): (ReadHalf<DuplexStream>, WriteHalf<DuplexStream>, BytesMut),
    patience: Duration,
) -> Result<(), Broke> {
    if !lease.takes_extended_connect().await {
        let length = NO_TUNNELS.len();
        let answer = format!(
            "HTTP/1.1 501 Not Implemented\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{NO_TUNNELS}"
        );
        writer.write_all(answer.as_bytes()).await.map_err(|_| Broke::Client)?;
        return writer.shutdown().await.map_err(|_| Broke::Client);
    }
    let (future, mut sink) = lease.send(request, false).await?;
    let mut heads = Heads::counted(future);
    let response = async {
        loop {
            match heads.next().await? {
                Came::Interim(interim) => relay_interim(&interim, &mut writer).await?,
                Came::Head(response) => return Ok(response),
            }
        }
    };
    let gone = async {
        while input.len() < MAX_HEAD_BYTES && fill(&mut reader, &mut input).await? > 0 {}
        if input.len() < MAX_HEAD_BYTES { Err(Broke::Client) } else { std::future::pending().await }
    };
    let response: Response<RecvStream> = tokio::select! {
        response = response => response?,
        gone = gone => gone?,
    };
    if !response.status().is_success() {
        return relay(response, false, &mut writer).await;
    }
    let (mut parts, mut body) = response.into_parts();
    parts.headers.remove(websocket::ACCEPT);
    let mut out = head(StatusCode::SWITCHING_PROTOCOLS, &parts.headers);
    write(&mut out, "upgrade", b"websocket");
    write(&mut out, "connection", b"upgrade");
    write(&mut out, websocket::ACCEPT.as_str(), websocket::proof_of(key).as_bytes());
    out.extend_from_slice(b"\r\n");
    writer.write_all(&out).await.map_err(|_| Broke::Client)?;
    let upload = async {
        loop {
            send(&mut sink, input.split().freeze(), false, patience).await.map_err(|_| Broke::Endpoint)?;
            if fill(&mut reader, &mut input).await? == 0 {
                return sink.send_data(Bytes::new(), true).map_err(|_| Broke::Endpoint);
            }
        }
    };
    let download = async {
        loop {
            match tokio::time::timeout(ABANDONED_AFTER, body.data()).await {
                Ok(Some(data)) => {
                    let data = data.map_err(|_| Broke::Midway)?;
                    writer.write_all(&data).await.map_err(|_| Broke::Client)?;
                    // Window that cannot be given back belongs to a stream that is over.
                    let _ = body.flow_control().release_capacity(data.len());
                }
                Ok(None) => return writer.shutdown().await.map_err(|_| Broke::Client),
                // Writes nothing; fails if nobody is there any more.
                Err(_) => drop(writer.write(&[]).await.map_err(|_| Broke::Client)?),
            }
        }
    };
    let ended = tokio::try_join!(upload, download).map(drop);
    if ended.is_err() {
        // RFC 8441 §5
        sink.send_reset(Reason::CANCEL);
    }
    ended
}

/// The beginning of a head: everything but framing.
fn head(status: StatusCode, fields: &HeaderMap) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(format!("HTTP/1.1 {status}\r\n").as_bytes());
    for (name, value) in fields.iter().filter(|(name, _)| kind(name.as_str()).is_none()) {
        write(&mut out, name.as_str(), value.as_bytes());
    }
    out
}

/// The engine decides whether the client gets it.
async fn relay_interim(interim: &Response<()>, writer: &mut WriteHalf<DuplexStream>) -> Result<(), Broke> {
    let mut out = head(interim.status(), interim.headers());
    out.extend_from_slice(b"\r\n");
    writer.write_all(&out).await.map_err(|_| Broke::Client)
}

async fn relay(
    response: Response<RecvStream>,
    is_head: bool,
    writer: &mut WriteHalf<DuplexStream>,
) -> Result<(), Broke> {
    let (parts, mut body) = response.into_parts();
    let mut out = head(parts.status, &parts.headers);
    let length = parts.headers.get(header::CONTENT_LENGTH);
    let bodiless = is_head || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let is_chunked = match length {
        Some(length) => {
            write(&mut out, "content-length", length.as_bytes());
            false
        }
        None if body.is_end_stream() && !bodiless => {
            write(&mut out, "content-length", b"0");
            false
        }
        None => !bodiless,
    };
    if is_chunked {
        write(&mut out, "transfer-encoding", b"chunked");
    }
    write(&mut out, "connection", b"close");
    out.extend_from_slice(b"\r\n");
    while let Some(data) = body.data().await {
        let data = data.map_err(|_| Broke::Midway)?;
        if is_chunked {
            write_chunk(&data, &mut out)
        } else {
            out.extend_from_slice(&data)
        }
        writer.write_all(&out).await.map_err(|_| Broke::Client)?;
        out.clear();
        // Window that cannot be given back belongs to a stream that is over.
        let _ = body.flow_control().release_capacity(data.len());
    }
    let trailers = body.trailers().await.map_err(|_| Broke::Midway)?;
    if is_chunked {
        end(trailers, &mut out);
    }
    writer.write_all(&out).await.map_err(|_| Broke::Client)?;
    writer.shutdown().await.map_err(|_| Broke::Client)
}

/// The last chunk with an endpoint's trailers.
fn end(trailers: Option<HeaderMap>, out: &mut Vec<u8>) {
    let Some(mut trailers) = trailers else { return out.extend_from_slice(LAST_CHUNK) };
    response::clean_trailers(&mut trailers);
    out.extend_from_slice(b"0\r\n");
    for (name, value) in &trailers {
        write(out, name.as_str(), value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::tests::backend;
    use crate::proxy::h2::upstream::Pool;
    use crate::proxy::pool::Opening;
    use tokio::net::TcpListener;

    /// What an endpoint sees of `request`, and what comes back of its answer: the body, and trailers if there were any.
    async fn exchange(request: &str, length: Option<&str>) -> (String, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
        let addr = listener.local_addr().expect("an address");
        let length = length.map(str::to_owned);
        let endpoint = tokio::spawn(async move {
            let stream = listener.accept().await.expect("a connection").0;
            let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
            let (request, mut respond) = connection.accept().await.expect("a stream").expect("a request");
            let serve = tokio::spawn(async move {
                let (parts, mut body) = request.into_parts();
                let mut seen = format!("{} {}", parts.method, parts.uri);
                for (name, value) in &parts.headers {
                    seen.push_str(&format!(" {name}={}", value.to_str().expect("text")));
                }
                while let Some(data) = body.data().await {
                    seen.push_str(&format!(" {}", String::from_utf8_lossy(&data.expect("data"))));
                }
                if let Some(trailers) = body.trailers().await.expect("an end") {
                    seen.push_str(&format!(" +{}", trailers.len()));
                }
                let mut response = Response::builder().header("x-y", "1");
                if let Some(length) = &length {
                    response = response.header("content-length", length);
                }
                let mut sink = respond.send_response(response.body(()).expect("a head"), false).expect("a stream");
                sink.send_data(Bytes::from_static(b"hello"), length.is_some()).expect("a stream");
                if length.is_none() {
                    let trailers = HeaderMap::from_iter([(header::ETAG, HeaderValue::from_static("t"))]);
                    sink.send_trailers(trailers).expect("a stream");
                }
                seen
            });
            // Until the client is gone.
            while connection.accept().await.is_some() {}
            serve.await.expect("an answer")
        });
        let text = addr.to_string();
        let (pool, backend) = (Pool::default(), backend(&[&text], false));
        let patience = Duration::from_secs(20);
        let opening = Opening { connector: None, announced: None, timeout: patience };
        let lease = pool.checkout(&backend.endpoints[0], opening).await.expect("a stream");
        let mut pipe = connect(lease, false, patience);
        pipe.write_all(request.as_bytes()).await.expect("a pipe");
        let mut got = String::new();
        pipe.read_to_string(&mut got).await.expect("a response");
        drop(pipe);
        pool.clear();
        (endpoint.await.expect("an endpoint"), got)
    }

    #[track_caller]
    fn check(request: &str, length: Option<&str>, seen: &str, got: &str) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let result = tokio::task::LocalSet::new().block_on(&runtime, exchange(request, length));
        assert_eq!((&*result.0, &*result.1.replace("\r\n", "|")), (seen, got));
    }

    #[test]
    fn one_exchange_in_http1_is_one_stream() {
        check(
            "GET /p?q HTTP/1.1\r\nhost: a:81\r\nx: 1\r\nte: trailers\r\n\r\n",
            Some("5"),
            "GET http://a:81/p?q x=1 te=trailers",
            "HTTP/1.1 200 OK|x-y: 1|content-length: 5|connection: close||hello",
        );
        check(
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc",
            None,
            "POST http://a/ content-length=3 abc",
            "HTTP/1.1 200 OK|x-y: 1|transfer-encoding: chunked|connection: close||5|hello|0|etag: t||",
        );
        check(
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n",
            Some("5"),
            "POST http://a/ abc +1",
            "HTTP/1.1 200 OK|x-y: 1|content-length: 5|connection: close||hello",
        );
    }
}
