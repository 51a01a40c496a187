//! Connections: accept, TLS, HTTP/1.1 and HTTP/2 with limits, graceful drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::{BoxError, Router};
use futures::FutureExt;
use futures::future::BoxFuture;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tower::Service;
use tracing::{debug, info, warn};

use super::Server;
use crate::auth::PeerCertificate;
use crate::auth::pki::{PkiError, apiserver_names, hostname, keep_fresh};

/// Longest TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time for a request's head, and longest idle time of an HTTP/1.1 connection (upstream's idle timeout).
const HEADER_TIMEOUT: Duration = Duration::from_secs(90);
/// Flow-control windows of HTTP/2: hyper's defaults throttle lists to a client with some latency.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Streams of one HTTP/2 connection: every watch of a client is one.
const MAX_STREAMS: u32 = 4_096;
/// Largest HTTP/2 frame.
const MAX_FRAME_BYTES: u32 = 1 << 20;
/// Bytes buffered per HTTP/2 stream before a body is asked for more.
const SEND_BUFFER_BYTES: usize = 256 << 10;
/// HTTP/2 pings find clients that are gone.
const PING_PERIOD: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// How long requests may finish after the server was told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after `accept` failed (out of file descriptors).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Request extension: where the client is.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress(pub SocketAddr);

/// Request extension: cancelled when the listener that the request came through drains; watches end then.
#[derive(Clone, Debug)]
pub struct Draining(pub CancellationToken);

/// Why serving is impossible.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The serving certificate.
    #[error("the serving certificate cannot be made")]
    Pki(#[from] PkiError),
}

impl Server {
    /// Serves TLS (h2 and http/1.1, client certificates optional) until `shutdown`, then drains: no new connections,
    /// watches end, other requests finish within [`DRAIN_TIMEOUT`]. Roles in this process are served on until
    /// [`Server::stop`].
    pub async fn serve(self: &Arc<Self>, listener: TcpListener, shutdown: CancellationToken) -> Result<(), ServeError> {
        let config = &self.config;
        let names = apiserver_names(&hostname(), config.advertise_address, self.first_service_ip, &config.extra_names);
        let serving = self.ca.serving(names)?;
        tokio::spawn(keep_fresh(vec![serving.certificate.clone()], self.tokens.clone(), shutdown.clone()));
        let acceptor = TlsAcceptor::from(serving.config);
        let places = Arc::new(Semaphore::new(config.max_connections));
        let graceful = GracefulShutdown::new();
        let draining = Draining(self.stopping.child_token());
        let router = self.router();
        while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(cause) => {
                    warn!(%cause, "a connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                debug!(%peer, "too many connections: refused");
                continue;
            };
            let connection = Connection {
                acceptor: acceptor.clone(),
                router: router.clone(),
                peer: PeerAddress(peer),
                draining: draining.clone(),
                watcher: graceful.watcher(),
            };
            tokio::spawn(async move {
                connection.run(stream).await;
                drop(place);
            });
        }
        drop(listener);
        info!("draining connections");
        draining.0.cancel();
        if tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await.is_err() {
            warn!("some connections did not end in time and are cut");
        }
        Ok(())
    }
}

struct Connection {
    acceptor: TlsAcceptor,
    router: Router,
    peer: PeerAddress,
    draining: Draining,
    watcher: hyper_util::server::graceful::Watcher,
}

impl Connection {
    /// Thousands of connections are idle watches: each half is on the heap only while it lasts, and what the handshake
    /// needed is freed with it.
    async fn run(self, stream: TcpStream) {
        let peer = self.peer;
        // Small answers must not wait for acknowledgements; without the option they are only slower.
        let _ = stream.set_nodelay(true);
        let handshake = Box::pin(tokio::time::timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(stream)));
        let tls = match handshake.await {
            Ok(Ok(tls)) => Box::new(tls),
            Ok(Err(cause)) => return debug!(peer = %peer.0, %cause, "TLS handshake failed"),
            Err(_) => return debug!(peer = %peer.0, "TLS handshake took too long"),
        };
        if let Err(cause) = self.serve(tls).await {
            debug!(peer = %peer.0, %cause, "connection ended");
        }
    }

    /// HTTP on an accepted connection. The future is made here, not in an async function, which would keep room for
    /// the stream twice.
    fn serve(self, tls: Box<TlsStream<TcpStream>>) -> BoxFuture<'static, Result<(), BoxError>> {
        let peer = self.peer;
        let certificate = match tls.get_ref().1.peer_certificates().and_then(|c| c.first()) {
            None => None,
            Some(der) => match PeerCertificate::from_der(der) {
                Ok(certificate) => Some(certificate),
                Err(_) => return futures::future::err("the client certificate names nobody".into()).boxed(),
            },
        };
        let (router, draining) = (self.router, self.draining);
        let service = service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            let extensions = request.extensions_mut();
            extensions.insert(peer);
            extensions.insert(draining.clone());
            if let Some(certificate) = &certificate {
                extensions.insert(certificate.clone());
            }
            router.clone().call(request)
        });
        // Agreed on already: sniffing would cost each HTTP/1.1 connection a read buffer of twice the size.
        let is_h2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
        let builder = if is_h2 { builder().http2_only() } else { builder().http1_only() };
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(tls), service).into_owned();
        self.watcher.watch(connection).boxed()
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
        .max_frame_size(MAX_FRAME_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(PING_PERIOD)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::{ApiServer, ServerConfig};
    use http_body_util::BodyExt;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use scaleup_store::memory::MemoryStore;

    type Sender = hyper::client::conn::http2::SendRequest<Body>;

    async fn connect(server: &Server, address: SocketAddr, user: Option<&str>) -> Sender {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(server.ca.cert_pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.unwrap().with_root_certificates(roots);
        let mut config = match user {
            None => builder.with_no_client_auth(),
            Some(user) => {
                let identity = server.ca.issue_client(user, &["system:masters"]).unwrap();
                let chain = CertificateDer::pem_slice_iter(identity.cert_pem.as_bytes()).map(Result::unwrap).collect();
                let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = TcpStream::connect(address).await.unwrap();
        let tls = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    async fn get(sender: &mut Sender, path: &str) -> http::Response<Incoming> {
        let request = Request::builder().uri(format!("https://localhost{path}")).body(Body::empty()).unwrap();
        sender.send_request(request).await.unwrap()
    }

    #[tokio::test]
    async fn certificates_identify_and_draining_ends_watches() {
        let dir = std::env::temp_dir().join(format!("scaleup-tls-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&dir).unwrap();
        let config = ServerConfig { data_dir: dir.clone(), ..ServerConfig::default() };
        let server = ApiServer::build(config, Arc::new(MemoryStore::new())).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn({
            let (server, shutdown) = (server.clone(), shutdown.clone());
            async move { server.serve(listener, shutdown).await }
        });
        server.ready().await;

        let mut stranger = connect(&server, address, None).await;
        assert_eq!(get(&mut stranger, "/readyz").await.status(), 200);
        assert_eq!(get(&mut stranger, "/api/v1/namespaces").await.status(), 403);
        let mut admin = connect(&server, address, Some("admin")).await;
        assert_eq!(get(&mut admin, "/api/v1/namespaces").await.status(), 200);
        let mut watch = get(&mut admin, "/api/v1/namespaces?watch=1").await.into_body();
        assert!(watch.frame().await.unwrap().unwrap().into_data().unwrap().starts_with(b"{\"type\":\"ADDED\""));

        shutdown.cancel();
        while let Some(frame) = watch.frame().await {
            frame.unwrap();
        }
        tokio::time::timeout(Duration::from_secs(5), serving).await.expect("drained").unwrap().unwrap();
        server.stop();
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
