//! The server: assembly of store, cache, registry, identity and admission, and HTTP on top.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::body::Body;
use bytes::Bytes;
use http::Request;
use scaleup_store::Store;
use serde_json::Value;

use crate::cache::{Cached, Caches};
use crate::error::ApiError;
use crate::handler::Resolved;
use crate::registry::Registry;

/// What an API server needs to know; plain data, no I/O.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where keys, certificates and the audit log are kept.
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
    /// Requests in flight, long-running ones (watch, exec, logs) not counted.
    pub max_in_flight: usize,
    /// Open connections.
    pub max_connections: usize,
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
        }
    }
}

/// Everything a request may need; built once, shared by all connections.
pub struct Server {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The watch cache of every kind.
    pub caches: Arc<Caches>,
    /// The kinds; a CRD publishes a new table.
    pub registry: ArcSwap<Registry>,
    /// As configured.
    pub config: ServerConfig,
}

/// Builder.
pub struct ApiServer;

impl Server {
    /// The whole body, at most [`ServerConfig::max_body_bytes`].
    pub async fn read_body(&self, request: Request<Body>) -> Result<Bytes, ApiError> {
        axum::body::to_bytes(request.into_body(), self.config.max_body_bytes)
            .await
            .map_err(|_| ApiError::too_large(self.config.max_body_bytes))
    }
    /// The body as an object, JSON or YAML by content type.
    pub async fn read_object(&self, resolved: &Resolved, request: Request<Body>) -> Result<Value, ApiError> {
        let _ = resolved;
        let bytes = self.read_body(request).await?;
        serde_json::from_slice(&bytes).map_err(|e| ApiError::bad_request(e.to_string()))
    }
    /// The newest stored object.
    pub async fn get_stored(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Cached>>, ApiError> {
        use crate::cache::Reader;
        Ok(self.caches.get(group, plural, namespace, name))
    }
    /// Read, change, write if unchanged; again on a conflict. Bypasses admission and validation.
    pub async fn update_stored(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
        f: impl FnMut(Value) -> Result<Value, ApiError> + Send,
    ) -> Result<Arc<Cached>, ApiError> {
        let _ = (group, plural, namespace, name, f);
        Err(ApiError::internal("not assembled"))
    }
    /// Writes a new object. Bypasses admission and validation.
    pub async fn create_stored(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
        object: Value,
    ) -> Result<Arc<Cached>, ApiError> {
        let _ = (group, plural, namespace, name, object);
        Err(ApiError::internal("not assembled"))
    }
}
