//! Health check node ports: an answer per Service with `externalTrafficPolicy: Local` to the question whether this node
//! has endpoints of it, in kube-proxy's form (`spec.healthCheckNodePort`), for load balancers in front of the nodes.
//!
//! One small HTTP server per port, on the role's own runtime; user traffic never comes here.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::bind::BindError;
use crate::hub::Hub;
use crate::snapshot::{ServiceKey, Snapshot};

/// Connections served at once per port; more wait in the backlog.
const MAX_CONNECTIONS: usize = 32;
/// Longest wait for a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest life of a connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause before a port that could not be bound is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Pause after a failed accept.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// The ports of a node.
pub(super) struct HealthPorts {
    hub: Arc<Hub>,
    bind_address: IpAddr,
    ports: BTreeMap<u16, Port>,
}

struct Port {
    service: ServiceKey,
    state: State,
}

enum State {
    /// Served by this task, which ends with it.
    Open(tokio::task::JoinHandle<()>),
    /// Tried again at the time.
    Failed(BindError, Instant),
}

impl Drop for Port {
    fn drop(&mut self) {
        if let State::Open(task) = &self.state {
            task.abort();
        }
    }
}

/// Which port answers for which Service; of two Services the older one has it. Pure.
fn wanted(snapshot: &Snapshot) -> BTreeMap<u16, ServiceKey> {
    let mut wanted: BTreeMap<u16, (i64, &ServiceKey)> = BTreeMap::new();
    for (key, plan) in &snapshot.services {
        let Some(port) = plan.health_check_node_port else { continue };
        let claim = (plan.created, key);
        wanted.entry(port).and_modify(|known| *known = (*known).min(claim)).or_insert(claim);
    }
    wanted.into_iter().map(|(port, (_, key))| (port, key.clone())).collect()
}

impl HealthPorts {
    pub fn new(hub: Arc<Hub>, bind_address: IpAddr) -> Self {
        Self { hub, bind_address, ports: BTreeMap::new() }
    }

    /// Closes what `snapshot` does not want any more and opens what is missing.
    pub fn apply(&mut self, snapshot: &Snapshot) {
        let wanted = wanted(snapshot);
        self.ports.retain(|port, known| wanted.get(port) == Some(&known.service));
        for (port, service) in wanted {
            match self.ports.get(&port).map(|known| &known.state) {
                Some(State::Open(_)) => continue,
                Some(State::Failed(_, retry_at)) if *retry_at > Instant::now() => continue,
                _ => {}
            }
            let state = match listen(SocketAddr::new(self.bind_address, port)) {
                Ok(listener) => State::Open(tokio::spawn(serve(listener, self.hub.clone(), service.clone()))),
                Err(error) => State::Failed(error, Instant::now() + RETRY),
            };
            self.ports.insert(port, Port { service, state });
        }
    }

    /// When a port should be tried again.
    pub fn next_retry(&self) -> Option<Instant> {
        let retries = self.ports.values().filter_map(|port| match port.state {
            State::Failed(_, at) => Some(at),
            State::Open(_) => None,
        });
        retries.min()
    }

    /// Ports that cannot be listened on.
    pub fn problems(&self) -> impl Iterator<Item = (&ServiceKey, u16, &BindError)> {
        self.ports.iter().filter_map(|(number, port)| match &port.state {
            State::Failed(error, _) => Some((&port.service, *number, error)),
            State::Open(_) => None,
        })
    }
}

fn listen(addr: SocketAddr) -> Result<TcpListener, BindError> {
    let listener = std::net::TcpListener::bind(addr)?;
    listener.set_nonblocking(true)?;
    Ok(TcpListener::from_std(listener)?)
}

async fn serve(listener: TcpListener, hub: Arc<Hub>, service: ServiceKey) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        let (hub, service) = (hub.clone(), service.clone());
        tokio::spawn(async move {
            let answer = hyper::service::service_fn(|_: Request<hyper::body::Incoming>| {
                let count = hub.snapshot().services.get(&service).map_or(0, |plan| plan.local_ready);
                std::future::ready(Ok::<_, Infallible>(answer(&service, count)))
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), answer);
            // A client that breaks off has no answer coming.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
            drop(slot);
        });
    }
}

/// What kube-proxy answers for a Service with `count` local endpoints.
fn answer(service: &ServiceKey, count: usize) -> Response<Full<bytes::Bytes>> {
    let body = serde_json::json!({
        "service": {"namespace": &*service.namespace, "name": &*service.name},
        "localEndpoints": count,
        "serviceProxyHealthy": true,
    });
    let mut response = Response::new(Full::new(body.to_string().into()));
    *response.status_mut() = if count > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = response.headers_mut();
    headers.insert("content-type", http::HeaderValue::from_static("application/json"));
    headers.insert("x-content-type-options", http::HeaderValue::from_static("nosniff"));
    headers.insert("x-load-balancing-endpoint-weight", count.into());
    response
}
