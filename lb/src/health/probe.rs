//! One check of one endpoint, on a connection of its own: HTTP/1.1, HTTP/2, gRPC or only the connection; over TLS where requests are.
//!
//! Answers are hostile: only the status is read, and of a gRPC answer a few bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Version};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::policy::{Probe, UpstreamTls};
use crate::proxy::tls::{ALPN_HTTP, ALPN_HTTP1, client_config};

const USER_AGENT: &str = concat!("scaleup-health-check/", env!("CARGO_PKG_VERSION"));
/// `HealthCheckResponse.ServingStatus.SERVING`
const SERVING: u64 = 1;
/// A `HealthCheckResponse` with its frame is shorter than this.
const MAX_GRPC_BYTES: usize = 64;

/// What is asked of every endpoint of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub probe: Probe,
    /// HTTP over HTTP/2 with prior knowledge.
    pub http2: bool,
    /// Version of the PROXY protocol that the endpoint expects.
    pub proxy: Option<u8>,
    /// TLS that it speaks. Not asked for by a check of the connection alone.
    pub tls: Option<Arc<UpstreamTls>>,
}

/// What is asked, with what asking takes.
pub(super) struct Ask {
    asked: Asked,
    /// `None` with TLS: its settings cannot be used.
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

impl Ask {
    pub fn new(asked: Asked) -> Self {
        // Where HTTP/2 is meant, but only gRPC insists on it, the endpoint may decide.
        let alpn: &[&[u8]] = match (&asked.probe, asked.http2) {
            (Probe::Grpc { .. }, _) => &ALPN_HTTP[..1],
            (_, true) => ALPN_HTTP,
            (_, false) => &[ALPN_HTTP1],
        };
        let tls = asked.tls.as_ref().and_then(|policy| {
            let name = ServerName::try_from(policy.hostname.to_string()).ok()?;
            Some((client_config(policy, alpn)?, name))
        });
        Self { asked, tls }
    }

    pub fn asked(&self) -> &Asked {
        &self.asked
    }
}

/// Why an endpoint did not pass.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    #[error("it did not answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    #[error("connecting failed")]
    Connect(#[source] std::io::Error),
    #[error("its TLS is not as the policy demands")]
    Tls(#[source] std::io::Error),
    #[error("the TLS settings of its policy cannot be used")]
    TlsSettings,
    #[error("the connection broke")]
    Http1(#[from] hyper::Error),
    #[error("the connection broke")]
    Http2(#[from] h2::Error),
    #[error("the check cannot be asked: host or path is not valid")]
    Request(#[from] http::Error),
    #[error("it answered with status {0}")]
    Status(StatusCode),
    #[error("it did not answer that it is serving")]
    NotServing,
}

/// Asks `addr`.
pub(super) async fn check(ask: &Ask, addr: SocketAddr, timeout: Duration) -> Result<(), Failed> {
    tokio::time::timeout(timeout, attempt(ask, addr)).await.unwrap_or(Err(Failed::TimedOut(timeout)))
}

async fn attempt(ask: &Ask, addr: SocketAddr) -> Result<(), Failed> {
    let Asked { probe, http2, proxy, tls } = &ask.asked;
    let mut stream = TcpStream::connect(addr).await.map_err(Failed::Connect)?;
    // That the connection is not for a client (PROXY protocol §2: UNKNOWN, LOCAL).
    match proxy {
        Some(1) => stream.write_all(b"PROXY UNKNOWN\r\n").await.map_err(Failed::Connect)?,
        Some(_) => stream.write_all(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0").await.map_err(Failed::Connect)?,
        None => {}
    }
    if *probe == Probe::Tcp {
        return Ok(());
    }
    if tls.is_none() {
        return request(probe, *http2, "http", stream, addr).await;
    }
    let (config, name) = ask.tls.clone().ok_or(Failed::TlsSettings)?;
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(Failed::Tls)?;
    let http2 = stream.get_ref().1.alpn_protocol() == Some(ALPN_HTTP[0]);
    request(probe, http2, "https", stream, addr).await
}

/// Asks over a connection to `addr`.
async fn request<S: Connection>(
    probe: &Probe,
    over_http2: bool,
    scheme: &str,
    stream: S,
    addr: SocketAddr,
) -> Result<(), Failed> {
    match probe {
        Probe::Tcp => Ok(()),
        Probe::Http { path, host, statuses } => {
            let authority = host.as_deref().map_or_else(|| addr.to_string(), str::to_owned);
            let status = if over_http2 {
                let request = http2_request(Method::GET, scheme, &authority, path).body(())?;
                http2(stream, request, None).await?.0
            } else {
                http1(stream, &authority, path).await?
            };
            let expected = statuses.iter().any(|(from, to)| (*from..=*to).contains(&status.as_u16()));
            if expected { Ok(()) } else { Err(Failed::Status(status)) }
        }
        Probe::Grpc { service, host } => {
            let authority = host.as_deref().map_or_else(|| addr.to_string(), str::to_owned);
            let request = http2_request(Method::POST, scheme, &authority, "/grpc.health.v1.Health/Check")
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(())?;
            let (status, body) = http2(stream, request, Some(grpc_request(service))).await?;
            match status {
                StatusCode::OK if serving_status(&body) == Some(SERVING) => Ok(()),
                StatusCode::OK => Err(Failed::NotServing),
                status => Err(Failed::Status(status)),
            }
        }
    }
}

/// A connection, with TLS or without.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Connection for S {}

async fn http1(stream: impl Connection, host: &str, path: &str) -> Result<StatusCode, Failed> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header("host", host)
        .header("user-agent", USER_AGENT)
        .header("connection", "close")
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request);
    tokio::pin!(connection, response);
    // The connection ends with this function, whatever else the endpoint has to say.
    tokio::select! {
        biased;
        response = &mut response => Ok(response?.status()),
        ended = &mut connection => {
            ended?;
            Ok(response.await?.status())
        }
    }
}

fn http2_request(method: Method, scheme: &str, authority: &str, path: &str) -> http::request::Builder {
    let uri = http::Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build();
    let builder = Request::builder().method(method).version(Version::HTTP_2).header("user-agent", USER_AGENT);
    match uri {
        Ok(uri) => builder.uri(uri),
        // Reported by the builder when it is finished.
        Err(_) => builder.uri("\0"),
    }
}

/// Sends a request and returns status and the first bytes of the body.
async fn http2(
    stream: impl Connection,
    request: Request<()>,
    body: Option<Vec<u8>>,
) -> Result<(StatusCode, Vec<u8>), Failed> {
    let (sender, connection) = h2::client::handshake(stream).await?;
    let exchange = async move {
        let mut sender = sender.ready().await?;
        let (response, mut send) = sender.send_request(request, body.is_none())?;
        if let Some(body) = body {
            send.send_data(body.into(), true)?;
        }
        let response = response.await?;
        let (status, mut stream) = (response.status(), response.into_body());
        let mut bytes = Vec::new();
        while bytes.len() < MAX_GRPC_BYTES {
            let Some(chunk) = stream.data().await else { break };
            let chunk = chunk?;
            bytes.extend_from_slice(&chunk[..chunk.len().min(MAX_GRPC_BYTES)]);
        }
        Ok((status, bytes))
    };
    tokio::pin!(connection, exchange);
    tokio::select! {
        biased;
        done = &mut exchange => done,
        ended = &mut connection => {
            ended?;
            exchange.await
        }
    }
}

/// `HealthCheckRequest { service }` in a gRPC frame.
fn grpc_request(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        varint(service.len() as u64, &mut message);
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
    frame.extend_from_slice(&message);
    frame
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// `HealthCheckResponse.status` of a gRPC frame; `None` if it is something else.
fn serving_status(frame: &[u8]) -> Option<u64> {
    let (header, message) = frame.split_at_checked(5)?;
    let length = u32::from_be_bytes(header.get(1..)?.try_into().ok()?) as usize;
    if header[0] != 0 {
        return None;
    }
    let message = message.get(..length)?;
    match message {
        // The default, UNKNOWN, is not written.
        [] => Some(0),
        [0x08, value, ..] if *value < 0x80 => Some(u64::from(*value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[test]
    fn grpc_frames() {
        assert_eq!(grpc_request(""), [0, 0, 0, 0, 0]);
        assert_eq!(grpc_request("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(grpc_request(&"x".repeat(200))[5..8], [0x0a, 0xc8, 0x01]);
        assert_eq!(serving_status(&[0, 0, 0, 0, 2, 8, 1]), Some(SERVING));
        assert_eq!(serving_status(&[0, 0, 0, 0, 2, 8, 2]), Some(2));
        assert_eq!(serving_status(&[0, 0, 0, 0, 0]), Some(0));
        for bad in [&[][..], &[0, 0, 0], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 9, 8, 1], &[0, 0xff, 0xff, 0xff, 0xff]] {
            assert_eq!(serving_status(bad), None, "{bad:?}");
        }
    }

    #[tokio::test]
    async fn hosts_that_cannot_be_asked_fail_without_panic() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        for http2 in [true, false] {
            let host = Some("a b\r\nc".into());
            let probe = Probe::Http { path: "/".into(), host, statuses: vec![(200, 399)] };
            let ask = Ask::new(Asked { probe, http2, proxy: None, tls: None });
            assert!(matches!(check(&ask, addr, Duration::from_secs(5)).await, Err(Failed::Request(_))));
        }
    }

    /// An endpoint behind TLS: HTTP/2 if that is agreed on, `grpc.health.v1` with this status; HTTP/1.1 with 204 else.
    async fn tls_endpoint(alpn: &[&[u8]], grpc_status: u8) -> (SocketAddr, Vec<u8>) {
        let made = rcgen::generate_simple_self_signed(vec!["inner.example".to_owned()]).expect("a certificate");
        let plan = Arc::new(crate::snapshot::routes::CertificatePlan {
            secret: "d/s".to_owned(),
            chain_pem: made.cert.pem().into_bytes(),
            key_pem: made.signing_key.serialize_pem().into_bytes(),
        });
        let config = crate::proxy::tls::server_config(std::slice::from_ref(&plan), alpn).expect("a configuration");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            let acceptor = tokio_rustls::TlsAcceptor::from(config);
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
                    let _ = stream.read(&mut [0; 1024]).await;
                    let _ = stream.write_all(b"HTTP/1.1 204 X\r\n\r\n").await;
                    let _ = stream.shutdown().await;
                    continue;
                }
                let Ok(mut connection) = h2::server::handshake(stream).await else { continue };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    assert_eq!(request.uri().scheme_str(), Some("https"));
                    let Ok(mut body) = respond.send_response(http::Response::new(()), false) else { break };
                    let _ = body.send_data(Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, grpc_status]), true);
                }
            }
        });
        (addr, plan.chain_pem.clone())
    }

    #[tokio::test]
    async fn endpoints_behind_tls_are_asked_over_tls() {
        let http = || Probe::Http { path: "/".into(), host: None, statuses: vec![(200, 299)] };
        let grpc = || Probe::Grpc { service: "".into(), host: None };
        let both: &[&[u8]] = ALPN_HTTP;
        for (alpn, grpc_status, probe, http2, name, expected) in [
            (both, 1, http(), false, "inner.example", "passed"),
            (both, 1, http(), true, "inner.example", "passed"),
            (&[ALPN_HTTP1][..], 1, http(), true, "inner.example", "passed"),
            (&[], 1, http(), false, "inner.example", "passed"),
            (both, 1, grpc(), false, "inner.example", "passed"),
            (both, 2, grpc(), false, "inner.example", "it did not answer that it is serving"),
            (both, 1, http(), false, "other.example", "its TLS is not as the policy demands"),
            (both, 1, http(), false, "no name", "the TLS settings of its policy cannot be used"),
            (both, 1, Probe::Tcp, false, "other.example", "passed"),
        ] {
            let (addr, ca_pem) = tls_endpoint(alpn, grpc_status).await;
            let tls = UpstreamTls { hostname: name.into(), ca_pem: Some(ca_pem), ..UpstreamTls::default() };
            let what = format!("{probe:?} http2: {http2} {name}");
            let ask = Ask::new(Asked { probe, http2, proxy: None, tls: Some(Arc::new(tls)) });
            let said = check(&ask, addr, Duration::from_secs(10)).await;
            assert_eq!(said.map_or_else(|error| error.to_string(), |()| "passed".to_owned()), expected, "{what}");
        }
    }
}
