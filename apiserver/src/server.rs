//! The server: assembly of store, cache, registry, identity and admission, and HTTP on top.
//!
//! [`ApiServer::build`] makes it and starts its background work; [`Server::router`] answers requests, however they come:
//! over TLS ([`Server::serve`]) or from a role in the same process ([`Server::in_process`]).

mod in_process;
mod pipeline;
mod received;
mod records;
mod routes;
mod tls;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::body::Body;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use scaleup_store::Store;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::admission::Chain;
use crate::audit::Audit;
use crate::auth::Authenticator;
use crate::auth::pki::{Ca, KubeletClient, PkiError, keep_fresh};
use crate::auth::rbac::{Authorizer, aggregation};
use crate::auth::tokens::TokenIssuer;
use crate::bootstrap;
use crate::cache::{Cached, Caches, EventType, Reader, encode, object_key};
use crate::error::{ApiError, GroupResource};
use crate::handler::storage::{MODIFIED, cache_error, check_size, store_error, store_key};
use crate::handler::{Resolved, body, metadata};
use crate::metrics::Metrics;
use crate::registry::{Registry, table};
use crate::request::{FieldValidation, Query, WriteOptions};

use received::Received;

pub use in_process::InProcess;
pub use tls::{Draining, PeerAddress, ServeError};

/// Longest time a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How often [`Server::update_stored`] tries again after losing a race.
const MAX_ATTEMPTS: usize = 20;
/// Issuer of service account tokens, as upstream's default.
const TOKEN_ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// What an API server needs to know; no I/O.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where keys, certificates (`pki/`) and the audit log are kept.
    pub data_dir: PathBuf,
    /// Name of the cluster, for certificates and kubeconfigs.
    pub cluster_name: String,
    /// Range of cluster IPs, e.g. `10.96.0.0/16`.
    pub service_cidr: String,
    /// First and last node port.
    pub node_port_range: (u16, u16),
    /// Address under which nodes and pods reach this server.
    pub advertise_address: IpAddr,
    /// Port of it.
    pub advertise_port: u16,
    /// Further DNS names and addresses of the serving certificate.
    pub extra_names: Vec<String>,
    /// How long events are kept.
    pub event_ttl: Duration,
    /// Largest request body.
    pub max_body_bytes: usize,
    /// Requests in flight, long-running ones (watch, exec, logs) and those of roles in this process not counted.
    pub max_in_flight: usize,
    /// Open connections.
    pub max_connections: usize,
    /// Whether no other process writes to the store (memory, embedded); with etcd and several servers: false.
    pub exclusive_store: bool,
    /// Whether requests are logged to `audit.log`.
    pub audit: bool,
    /// Where the plugins that decide about writes are found; whoever loads them holds it too.
    pub plugins: Arc<scaleup_plugins::Registry>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("."),
            cluster_name: "scaleup".into(),
            service_cidr: "10.96.0.0/16".into(),
            node_port_range: (30_000, 32_767),
            advertise_address: IpAddr::from([127, 0, 0, 1]),
            advertise_port: 6443,
            extra_names: Vec::new(),
            event_ttl: Duration::from_secs(3600),
            max_body_bytes: 3 << 20,
            max_in_flight: 600,
            max_connections: 10_000,
            exclusive_store: true,
            audit: true,
            plugins: Arc::default(),
        }
    }
}

/// Why a server cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Keys or certificates.
    #[error("the server's keys and certificates cannot be used")]
    Pki(#[from] PkiError),
    /// The service range is not an IPv4 CIDR with room for addresses.
    #[error("the service range {0:?} is not a usable IPv4 CIDR, e.g. 10.96.0.0/16")]
    ServiceCidr(String),
    /// The audit log cannot be opened.
    #[error("the audit log {path} cannot be opened")]
    Audit {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Everything a request may need; built once, shared by all connections.
pub struct Server {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The watch cache of every kind.
    pub caches: Arc<Caches>,
    /// The kinds; a CRD publishes a new table.
    pub registry: ArcSwap<Registry>,
    /// Finds the user of a request.
    pub authenticator: Authenticator,
    /// Decides what users may do.
    pub authorizer: Arc<Authorizer>,
    /// Changes and refuses writes.
    pub admission: Chain,
    /// Signs and verifies service account tokens.
    pub tokens: Arc<TokenIssuer>,
    /// The cluster's certificate authority.
    pub ca: Arc<Ca>,
    /// TLS towards nodes' agents.
    pub kubelet_client: KubeletClient,
    /// As configured.
    pub config: ServerConfig,
    /// What `/metrics` shows.
    pub metrics: Metrics,
    /// Cancelled by [`Server::stop`]: background work and watches end.
    pub stopping: CancellationToken,
    /// Address of the `kubernetes` Service.
    pub first_service_ip: IpAddr,
    /// Whether [`bootstrap`] is done.
    pub bootstrapped: AtomicBool,
    /// Answers `GET /lb/…`, once authorised: the load balancer's views. Set before serving, if at all.
    pub lb_views: OnceLock<axum::Router>,
    /// Decisions of plugins that other processes have recorded.
    received: Received,
    audit: Option<Audit>,
    in_flight: Semaphore,
}

/// Builder of [`Server`].
pub struct ApiServer;

impl ApiServer {
    /// Opens keys and logs in the data directory, and starts the background work (cache, bootstrap, event sweeper,
    /// certificate renewal). Needs a Tokio runtime. The store may be away: requests are refused until it answers.
    pub fn build(config: ServerConfig, store: Arc<dyn Store>) -> Result<Arc<Server>, BuildError> {
        let first_service_ip = bootstrap::first_address(&config.service_cidr)
            .filter(IpAddr::is_ipv4)
            .ok_or_else(|| BuildError::ServiceCidr(config.service_cidr.clone()))?;
        let pki = config.data_dir.join("pki");
        let ca = Ca::load_or_create(&pki)?;
        let tokens = Arc::new(TokenIssuer::open(&pki, TOKEN_ISSUER)?);
        let registry = table::builtin();
        let caches = Arc::new(Caches::new(&registry, store.clone(), config.exclusive_store));
        let reader: Arc<dyn Reader> = caches.clone();
        let authorizer = Arc::new(Authorizer::new(reader.clone()));
        let metrics = Metrics::default();
        let audit = if config.audit {
            let path = config.data_dir.join("audit.log");
            let opened = Audit::open(&path, metrics.audit_errors.clone());
            Some(opened.map_err(|source| BuildError::Audit { path, source })?)
        } else {
            None
        };
        let server = Arc::new(Server {
            authenticator: Authenticator::new(reader, authorizer.clone(), tokens.clone()),
            kubelet_client: ca.kubelet_client()?,
            in_flight: Semaphore::new(config.max_in_flight),
            admission: metrics.with_registry(|registry| {
                let chain = Chain::standard(config.plugins.clone());
                chain.register(registry);
                chain
            }),
            registry: ArcSwap::from_pointee(registry),
            stopping: CancellationToken::new(),
            bootstrapped: AtomicBool::new(false),
            first_service_ip,
            store,
            caches,
            authorizer,
            tokens,
            ca,
            config,
            metrics,
            lb_views: OnceLock::new(),
            received: Received::default(),
            audit,
        });
        server.start();
        Ok(server)
    }
}

impl Server {
    fn start(self: &Arc<Self>) {
        tokio::spawn(self.caches.clone().run(self.stopping.clone()));
        tokio::spawn(bootstrap::run(self.clone()));
        tokio::spawn(bootstrap::sweep_events(self.clone()));
        tokio::spawn(crate::kinds::service::run_repairs(self.clone(), self.stopping.clone()));
        tokio::spawn(aggregation::run(self.clone(), self.stopping.clone()));
        let certificates = vec![self.kubelet_client.certificate.clone()];
        tokio::spawn(keep_fresh(certificates, self.tokens.clone(), self.stopping.clone()));
    }

    /// Ends background work and every watch. Requests that come later may be refused.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// Whether requests can be answered: the cache is filled and the cluster's own objects exist.
    pub fn is_ready(&self) -> bool {
        self.caches.is_synced() && self.bootstrapped.load(Ordering::Acquire) && !self.stopping.is_cancelled()
    }

    /// Resolves once [`Server::is_ready`], or when the server stops.
    pub async fn ready(&self) {
        const POLL: Duration = Duration::from_millis(2);
        while !self.is_ready() && !self.stopping.is_cancelled() {
            tokio::time::sleep(POLL).await;
        }
    }

    /// Answers every path of the API.
    pub fn router(self: &Arc<Self>) -> axum::Router {
        routes::router(self)
    }

    /// A service for `kube::Client::new(service, "default")` whose requests are `user`'s.
    pub fn in_process(self: &Arc<Self>, user: crate::user::UserInfo) -> InProcess {
        InProcess::new(self.router(), user)
    }

    /// The whole body, at most [`ServerConfig::max_body_bytes`].
    pub async fn read_body(&self, request: Request<Body>) -> Result<Bytes, ApiError> {
        self.read_body_of(request, self.config.max_body_bytes).await
    }

    /// The whole body, at most `limit` bytes: for subresources whose bodies are no objects.
    pub async fn read_body_of(&self, request: Request<Body>, limit: usize) -> Result<Bytes, ApiError> {
        if declared_length(&request).is_some_and(|length| length > limit as u64) {
            return Err(ApiError::too_large(limit));
        }
        let body = Limited::new(request.into_body(), limit).collect();
        match tokio::time::timeout(BODY_TIMEOUT, body).await {
            Ok(Ok(collected)) => Ok(collected.to_bytes()),
            Ok(Err(cause)) if cause.is::<LengthLimitError>() => Err(ApiError::too_large(limit)),
            Ok(Err(cause)) => Err(ApiError::bad_request(format!("the body cannot be read: {cause}"))),
            Err(_) => Err(ApiError::bad_request(format!("the body did not arrive in {} s", BODY_TIMEOUT.as_secs()))),
        }
    }

    /// The body as an object, JSON or YAML by content type. With `fieldValidation=Strict` duplicate keys are refused.
    pub async fn read_object(&self, resolved: &Resolved, request: Request<Body>) -> Result<Value, ApiError> {
        let query = Query::parse(request.uri().query())?;
        let options = WriteOptions::parse(&query, "CreateOptions")?;
        let headers = request.headers().clone();
        let bytes = self.read_body(request).await?;
        let subresource = resolved.subresource.as_deref().and_then(|name| resolved.resource.subresource(name));
        let kind = subresource.and_then(|s| s.gvk).map_or(resolved.resource.kind.as_ref(), |(_, _, kind)| kind);
        let parsed = body::parse(&headers, &bytes, kind)?;
        if let Some(field) = parsed.duplicates.first().filter(|_| options.validation == FieldValidation::Strict) {
            return Err(ApiError::bad_request(format!("strict decoding error: duplicate field {field:?}")));
        }
        Ok(parsed.value)
    }

    /// The newest stored object (a consistent read).
    pub async fn get_stored(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Cached>>, ApiError> {
        self.caches.catch_up().await.map_err(cache_error)?;
        Ok(self.caches.get(group, plural, namespace, name))
    }

    /// Read, change, write if unchanged; again on a conflict. Bypasses admission and validation. A change to the same
    /// value is not written.
    pub async fn update_stored(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
        mut f: impl FnMut(Value) -> Result<Value, ApiError> + Send,
    ) -> Result<Arc<Cached>, ApiError> {
        let gr = GroupResource { group: group.into(), resource: plural.into() };
        let key = store_key(group, plural, namespace, name);
        let mut existing = self.get_stored(group, plural, namespace, name).await?;
        for _ in 0..MAX_ATTEMPTS {
            let current = existing.ok_or_else(|| ApiError::not_found(&gr, name))?;
            let old = current.value();
            let new = f(old.clone())?;
            if new == old {
                return Ok(current);
            }
            let stored = Bytes::from(encode::to_stored(&new));
            check_size(stored.len())?;
            match self.store.update(&key, stored.clone(), current.revision).await {
                Ok(revision) => return self.written(group, plural, namespace, name, &stored, revision),
                Err(scaleup_store::Error::Conflict(Some(now))) => {
                    let kv = self.decode(group, plural, &object_key(namespace, name), &now.value, now.mod_revision)?;
                    existing = Some(kv);
                }
                Err(cause) => return Err(store_error(&gr, name, cause)),
            }
        }
        Err(ApiError::conflict(&gr, name, MODIFIED))
    }

    /// Writes a new object with a UID and a creation timestamp. Bypasses admission, defaults and validation.
    pub async fn create_stored(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
        mut object: Value,
    ) -> Result<Arc<Cached>, ApiError> {
        let gr = GroupResource { group: group.into(), resource: plural.into() };
        let registry = self.registry.load();
        let row = registry.stored(group, plural).ok_or_else(ApiError::no_such_path)?;
        metadata::prepare_create(row, &mut object);
        metadata::of(&mut object).insert("name".into(), name.into());
        if !namespace.is_empty() {
            metadata::of(&mut object).insert("namespace".into(), namespace.into());
        }
        let stored = Bytes::from(encode::to_stored(&object));
        check_size(stored.len())?;
        let created = self.store.create(&store_key(group, plural, namespace, name), stored.clone()).await;
        let revision = created.map_err(|cause| store_error(&gr, name, cause))?;
        self.written(group, plural, namespace, name, &stored, revision)
    }

    fn written(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
        stored: &[u8],
        revision: u64,
    ) -> Result<Arc<Cached>, ApiError> {
        self.caches.note_written(revision);
        self.decode(group, plural, &object_key(namespace, name), stored, revision)
    }

    fn decode(
        &self,
        group: &str,
        plural: &str,
        key: &str,
        stored: &[u8],
        revision: u64,
    ) -> Result<Arc<Cached>, ApiError> {
        let cache = self.caches.resource(group, plural).ok_or_else(ApiError::no_such_path)?;
        let object = Cached::from_stored(key, stored, revision, cache.selectable(), EventType::Modified);
        object.map(Arc::new).map_err(ApiError::internal)
    }
}

fn declared_length(request: &Request<Body>) -> Option<u64> {
    request.headers().get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
