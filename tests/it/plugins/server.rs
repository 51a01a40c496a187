//! A web server of the test's own, for modules that come from elsewhere: HTTPS by a CA of its own, or clear text.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Result;
use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST, LOCATION};
use http::{HeaderName, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Signs the certificates of servers.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// What a client is to trust.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// For a server at `localhost`.
    fn acceptor(&self) -> Result<TlsAcceptor> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec!["localhost".into()])?.signed_by(&key, &self.0)?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        Ok(Arc::new(config).into())
    }
}

/// A request.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub query: String,
    /// `localhost:PORT`
    pub host: String,
    /// Empty if there is none.
    pub authorization: String,
    pub at: Instant,
}

/// An answer.
pub type Reply = Response<Full<Bytes>>;

/// An answer with this body.
pub fn body(bytes: impl Into<Bytes>) -> Reply {
    Response::new(Full::new(bytes.into()))
}

/// An answer without a body.
pub fn status(status: StatusCode) -> Reply {
    let mut reply = body(Bytes::new());
    *reply.status_mut() = status;
    reply
}

/// An answer with a header.
pub fn with(mut reply: Reply, name: HeaderName, value: &str) -> Reply {
    if let Ok(value) = value.parse() {
        reply.headers_mut().insert(name, value);
    }
    reply
}

/// A redirection.
pub fn redirect(to: &str) -> Reply {
    with(status(StatusCode::TEMPORARY_REDIRECT), LOCATION, to)
}

type Handler = dyn Fn(&Asked) -> Reply + Send + Sync;

/// Serves until it is dropped.
pub struct Server {
    addr: SocketAddr,
    tls: bool,
    asked: Arc<Mutex<Vec<Asked>>>,
    stop: CancellationToken,
}

impl Server {
    /// With a certificate of this authority, or in clear text.
    pub async fn start(
        authority: Option<&Authority>,
        handler: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let acceptor = authority.map(Authority::acceptor).transpose()?;
        let server = Self {
            addr: listener.local_addr()?,
            tls: acceptor.is_some(),
            asked: Arc::default(),
            stop: CancellationToken::new(),
        };
        let handler: Arc<Handler> = Arc::new(handler);
        let (asked, stop) = (server.asked.clone(), server.stop.clone());
        tokio::spawn(async move {
            while let Some(Ok((stream, _))) = stop.run_until_cancelled(listener.accept()).await {
                let (asked, stop, handler, acceptor) = (asked.clone(), stop.clone(), handler.clone(), acceptor.clone());
                let serve = async move {
                    match acceptor {
                        // A client that does not trust it goes away: nothing to serve.
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                serve(stream, asked, handler).await;
                            }
                        }
                        None => serve(stream, asked, handler).await,
                    }
                };
                tokio::spawn(async move { stop.run_until_cancelled(serve).await });
            }
        });
        Ok(server)
    }

    /// `localhost:PORT`
    pub fn host(&self) -> String {
        format!("localhost:{}", self.addr.port())
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", if self.tls { "https" } else { "http" }, self.host())
    }

    /// When this path was asked for.
    pub fn times(&self, path: &str) -> Vec<Instant> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().filter(|one| one.path == path).map(|one| one.at).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    asked: Arc<Mutex<Vec<Asked>>>,
    handler: Arc<Handler>,
) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let text =
            |name| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let one = Asked {
            path: request.uri().path().to_owned(),
            query: request.uri().query().unwrap_or_default().to_owned(),
            host: text(HOST),
            authorization: text(AUTHORIZATION),
            at: Instant::now(),
        };
        asked.lock().unwrap_or_else(PoisonError::into_inner).push(one.clone());
        std::future::ready(Ok::<_, Infallible>(handler(&one)))
    });
    // A connection that breaks is the client's affair.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}
