//! Endpoints that do as they are told, and load balancers with policies in front of them.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Bytes;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use scaleup_lb::policy::{RequestPolicy, ServicePolicy};
use scaleup_lb::snapshot::Snapshot;
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket};

use crate::support::*;

/// An endpoint that answers as it is told, on `/healthz` with a status of its own.
pub struct Scripted {
    pub addr: SocketAddr,
    pub script: Arc<Script>,
    pub kill: tokio_util::sync::CancellationToken,
}

#[derive(Default)]
pub struct Script {
    pub status: AtomicU16,
    pub delay_ms: AtomicU64,
    /// Keeps requests waiting.
    pub hold: AtomicBool,
    pub health: AtomicU16,
    pub served: AtomicU64,
    pub checks: AtomicU64,
}

impl Scripted {
    pub async fn start(name: &'static str) -> Self {
        Self::start_at(name, HERE).await
    }

    pub async fn start_at(name: &'static str, ip: Ipv4Addr) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let script = Arc::new(Script { status: 200.into(), health: 200.into(), ..Script::default() });
        let kill = tokio_util::sync::CancellationToken::new();
        let (shared, killed) = (script.clone(), kill.clone());
        tokio::spawn(async move {
            loop {
                let stream = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap().0,
                    () = killed.cancelled() => return,
                };
                let (script, killed) = (shared.clone(), killed.clone());
                tokio::spawn(async move {
                    let service =
                        hyper::service::service_fn(|request: Request<_>| answer(request, name, script.clone()));
                    let serve =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    tokio::select! {
                        _ = serve => {}
                        () = killed.cancelled() => {}
                    }
                });
            }
        });
        Self { addr, script, kill }
    }

    pub async fn several<const N: usize>() -> [Self; N] {
        let mut all = Vec::new();
        for name in ["e0", "e1", "e2", "e3"].into_iter().take(N) {
            all.push(Self::start(name).await);
        }
        all.try_into().ok().unwrap()
    }

    pub fn served(&self) -> u64 {
        self.script.served.load(Relaxed)
    }

    pub fn set(&self, status: u16) {
        self.script.status.store(status, Relaxed);
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.kill.cancel();
    }
}

type Answer = Result<Response<Full<Bytes>>, std::convert::Infallible>;

async fn answer(request: Request<hyper::body::Incoming>, name: &'static str, script: Arc<Script>) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from_static(name.as_bytes())));
    if request.uri().path() == "/healthz" {
        script.checks.fetch_add(1, Relaxed);
        *response.status_mut() = StatusCode::from_u16(script.health.load(Relaxed)).unwrap();
        return Ok(response);
    }
    script.served.fetch_add(1, Relaxed);
    *response.status_mut() = StatusCode::from_u16(script.status.load(Relaxed)).unwrap();
    tokio::time::sleep(Duration::from_millis(script.delay_ms.load(Relaxed))).await;
    while script.hold.load(Relaxed) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(response)
}

pub fn addrs(endpoints: &[Scripted]) -> Vec<SocketAddr> {
    endpoints.iter().map(|endpoint| endpoint.addr).collect()
}

/// The snapshot of the one Service with these policies.
pub fn with(endpoints: &[SocketAddr], policy: ServicePolicy, requests: RequestPolicy) -> Snapshot {
    let mut snapshot = snapshot("http", endpoints, json!({}));
    let plan = Arc::make_mut(snapshot.services.get_mut(&key()).unwrap());
    plan.ports[0].policy = Arc::new(policy);
    plan.ports[0].requests = Arc::new(requests);
    snapshot
}

pub async fn lab(endpoints: &[Scripted], policy: ServicePolicy, requests: RequestPolicy) -> Lab {
    let addrs = addrs(endpoints);
    let lab = Lab::http(&addrs).await;
    lab.lb.publish(with(&addrs, policy, requests));
    lab
}

/// Clients that send GETs one after the other.
pub async fn load(lab: &Lab, clients: usize, each: usize) {
    let tasks: Vec<_> = (0..clients)
        .map(|_| {
            let addr = lab.addr;
            tokio::spawn(async move {
                let mut client = Client::connect(addr).await;
                for _ in 0..each {
                    client.get("/").await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

/// One GET on a connection of its own, from a certain address.
pub async fn get_from(lab: &Lab, from: Ipv4Addr, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap, String) {
    let exchange = async {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(from.into(), 0)).unwrap();
        let stream = socket.connect(lab.addr).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::get("/").header("host", "web");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head.status, head.headers, String::from_utf8_lossy(&body).into_owned())
    };
    tokio::time::timeout(PATIENCE, exchange).await.unwrap()
}

pub const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

pub async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "{what}");
}
