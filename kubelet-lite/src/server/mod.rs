//! The kubelet API of this node: logs, exec, attach, metrics. HTTPS only, and only for clients with a certificate of the
//! cluster's CA in group `system:masters`: who may do what was decided by the API server before it asked.

mod exec;
mod logs;
mod stats;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use k8s_openapi::api::core::v1::Pod;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::agent::{Agent, TlsMaterial};
use crate::pod::view;
use crate::runtime::{Container, RuntimeError};

/// Connections at a time: one per `logs -f`, exec or attach of the node's pods.
const MAX_CONNECTIONS: usize = 1024;
/// A client must be through with TLS, and later with a request's head, in this time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The group that may ask.
const GROUP: &str = "system:masters";

/// A bound listener.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    router: Router,
}

impl Server {
    /// Binds, and reads the certificates.
    pub async fn bind(address: SocketAddr, agent: Arc<Agent>) -> Result<Self, Error> {
        let tls = agent.config.tls.as_ref().ok_or(Error::NoCertificates)?;
        let acceptor = TlsAcceptor::from(Arc::new(server_config(tls).map_err(Error::Certificates)?));
        let failed = |source| Error::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, acceptor, router: router(agent) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let slot = tokio::select! {
                slot = slots.clone().acquire_owned() => slot,
                () = shutdown.cancelled() => return,
            };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = shutdown.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (acceptor, router, shutdown) = (self.acceptor.clone(), self.router.clone(), shutdown.clone());
                    tokio::spawn(async move {
                        shutdown.run_until_cancelled(serve(stream, acceptor, router)).await;
                        drop(slot);
                    });
                }
                // Out of file descriptors, say: wait for some to be closed.
                Err(error) => {
                    tracing::warn!(%error, "kubelet API cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, router: Router) {
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "kubelet API: TLS refused"),
        Err(_) => return,
    };
    let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    if !leaf.is_some_and(|leaf| is_trusted(leaf)) {
        return tracing::warn!("kubelet API: the client's certificate is not of group {GROUP}");
    }
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE_TIMEOUT);
    let service = TowerToHyperService::new(router);
    if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        tracing::debug!(error, "kubelet API connection ended");
    }
}

/// Whether the certificate names the group that may ask (organization, as everywhere in Kubernetes).
fn is_trusted(leaf: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(leaf) else { return false };
    certificate.subject().iter_organization().any(|o| o.as_str().is_ok_and(|text| text == GROUP))
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

fn server_config(tls: &TlsMaterial) -> Result<rustls::ServerConfig, BoxError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(tls.ca_pem.as_bytes()) {
        roots.add(certificate?)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
    let chain = CertificateDer::pem_slice_iter(tls.cert_pem.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(tls.key_pem.as_bytes())?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    // Exec and attach upgrade the connection, which HTTP/2 does not know.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn router(agent: Arc<Agent>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/pods", get(pods))
        .route("/metrics", get(stats::metrics))
        .route("/metrics/resource", get(stats::resource))
        .route("/stats/summary", get(stats::summary))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::container_logs))
        .route("/exec/{namespace}/{pod}/{container}", get(exec::exec).post(exec::not_spdy))
        .route("/attach/{namespace}/{pod}/{container}", get(exec::attach).post(exec::not_spdy))
        .with_state(agent)
}

async fn healthz(State(agent): State<Arc<Agent>>) -> Response {
    match &*agent.runtime_down.borrow() {
        None => "ok".into_response(),
        Some(text) => (StatusCode::SERVICE_UNAVAILABLE, text.clone()).into_response(),
    }
}

async fn pods(State(agent): State<Arc<Agent>>) -> Response {
    let items: Vec<Arc<Pod>> = agent.pods.lock().values().map(|known| known.latest.get()).collect();
    let items: Vec<&Pod> = items.iter().map(AsRef::as_ref).collect();
    axum::Json(serde_json::json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items }))
        .into_response()
}

/// An answer that is an error.
pub struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

impl From<RuntimeError> for Refusal {
    fn from(error: RuntimeError) -> Self {
        let code = match &error {
            RuntimeError::NotFound(_) => StatusCode::NOT_FOUND,
            RuntimeError::Conflict(_) => StatusCode::CONFLICT,
            e if e.is_unavailable() => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(code, crate::chain(&error))
    }
}

/// Generations of a pod's container, newest first.
async fn generations(agent: &Agent, namespace: &str, pod: &str, container: &str) -> Result<Vec<Container>, Refusal> {
    let missing = |what: String| Refusal(StatusCode::NOT_FOUND, what);
    let found = agent.find(namespace, pod).ok_or_else(|| missing(format!("pod {pod:?} is not on this node")))?;
    let all = view::Observed::new(agent.runtime.pod(view::uid(&found)).await?);
    match all.containers.get(container) {
        Some(list) => Ok(list.clone()),
        None => Err(missing(format!("container {container:?} in pod {pod:?} has not been started"))),
    }
}
