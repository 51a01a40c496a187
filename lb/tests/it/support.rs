//! A load balancer under test, endpoints for it, and a plain HTTP/1.1 client.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::registry::Registry;
use scaleup_lb::snapshot::{PlanConfig, ServiceKey, Snapshot, plan};
use scaleup_lb::{Config, Lb, ServiceTotals};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Longest wait for anything in a test; only reached when something is broken.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An address that nobody else uses.
pub fn own_ip() -> Ipv4Addr {
    crate::claims::own_address().unwrap()
}

/// An address where nobody listens.
pub fn dead() -> SocketAddr {
    SocketAddr::new(own_ip().into(), 1)
}

/// Every test's Service.
pub const SERVICE_PORT: u16 = 8000;

pub fn key() -> ServiceKey {
    ServiceKey::new("shop", "web")
}

/// A snapshot with the one Service `shop/web` of type LoadBalancer in front of `endpoints`.
pub fn snapshot(port_name: &str, endpoints: &[SocketAddr], extra_spec: Value) -> Snapshot {
    let mut spec = json!({
        "type": "LoadBalancer", "clusterIP": "10.96.0.10",
        "ports": [{"name": port_name, "port": SERVICE_PORT}],
    });
    if let (Some(spec), Some(extra)) = (spec.as_object_mut(), extra_spec.as_object()) {
        spec.extend(extra.clone());
    }
    let protocol = spec["ports"][0].get("protocol").cloned().unwrap_or_else(|| "TCP".into());
    let service = json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u"}, "spec": spec});
    let slices: Vec<_> = endpoints
        .iter()
        .enumerate()
        .map(|(i, addr)| {
            let slice = json!({
                "metadata": {"name": format!("web-{i}"), "namespace": "shop",
                             "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": "IPv4", "ports": [{"name": port_name, "port": addr.port(), "protocol": protocol}],
                "endpoints": [{"addresses": [addr.ip().to_string()],
                               "targetRef": {"kind": "Pod", "uid": format!("pod-{addr}")}}],
            });
            serde_json::from_value(slice).unwrap()
        })
        .collect();
    plan(&[serde_json::from_value(service).unwrap()], &slices, &PlanConfig::default())
}

/// A load balancer's task.
pub type Run = tokio::task::JoinHandle<Result<(), scaleup_lb::Error>>;

/// Starts a load balancer with two threads on `ip` that leaves the machine's nftables and DNS alone.
pub fn launch(ip: Ipv4Addr, configure: impl FnOnce(&mut Config)) -> (Lb, CancellationToken, Run) {
    launch_registered(ip, &mut Registry::default(), configure)
}

/// Likewise, with its metrics in `registry`.
pub fn launch_registered(
    ip: Ipv4Addr,
    registry: &mut Registry,
    configure: impl FnOnce(&mut Config),
) -> (Lb, CancellationToken, Run) {
    let mut config = Config::new("n1");
    config.bind_address = ip.into();
    config.threads = Some(2);
    config.enable_nftables = false;
    config.enable_dns = false;
    config.proxy.drain_timeout = Duration::from_secs(5);
    configure(&mut config);
    let lb = scaleup_lb::build(config, registry);
    let shutdown = CancellationToken::new();
    let run = tokio::spawn({
        let (lb, shutdown) = (lb.clone(), shutdown.clone());
        async move { lb.run_standalone(shutdown).await }
    });
    (lb, shutdown, run)
}

/// A running load balancer.
pub struct Lab {
    pub lb: Lb,
    pub addr: SocketAddr,
    port_name: &'static str,
    shutdown: CancellationToken,
    run: Run,
}

impl Lab {
    pub async fn http(endpoints: &[SocketAddr]) -> Self {
        Self::start("http", endpoints, |_| {}).await
    }

    pub async fn start(port_name: &'static str, endpoints: &[SocketAddr], configure: impl FnOnce(&mut Config)) -> Self {
        Self::start_with(port_name, endpoints, json!({}), configure).await
    }

    pub async fn start_with(
        port_name: &'static str,
        endpoints: &[SocketAddr],
        extra_spec: Value,
        configure: impl FnOnce(&mut Config),
    ) -> Self {
        let ip = own_ip();
        let (lb, shutdown, run) = launch(ip, configure);
        let lab = Self { lb, addr: SocketAddr::new(ip.into(), SERVICE_PORT), port_name, shutdown, run };
        lab.set_with(endpoints, extra_spec);
        assert!(tokio::time::timeout(PATIENCE, lab.lb.wait_bound(&key())).await.unwrap(), "the port is bound");
        lab
    }

    pub fn set(&self, endpoints: &[SocketAddr]) {
        self.set_with(endpoints, json!({}));
    }

    pub fn set_with(&self, endpoints: &[SocketAddr], extra_spec: Value) {
        self.lb.publish(snapshot(self.port_name, endpoints, extra_spec));
    }

    pub fn totals(&self) -> ServiceTotals {
        let totals = self.lb.totals();
        totals.into_iter().find(|(name, _)| *name == key()).map(|(_, totals)| totals).unwrap_or_default()
    }

    /// Waits until `condition` holds for the counters.
    pub async fn until(&self, what: &str, condition: impl Fn(&ServiceTotals) -> bool) {
        let wait = async {
            while !condition(&self.totals()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}: {:?}", self.totals()));
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.run).await.unwrap().unwrap().unwrap();
    }
}

/// An HTTP endpoint. Paths: `/` its name, `/echo` the body back, `/headers` the request head as text, `/stream/N` N MiB,
/// `/slow` after 300 ms, `/empty` 204, `/early` an answer before the body is read.
pub struct Endpoint {
    pub addr: SocketAddr,
    pub connections: Arc<AtomicU64>,
    pub requests: Arc<AtomicU64>,
    kill: CancellationToken,
}

impl Endpoint {
    pub async fn start(name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Self {
            addr: listener.local_addr().unwrap(),
            connections: Arc::default(),
            requests: Arc::default(),
            kill: CancellationToken::new(),
        };
        let (connections, requests, kill) =
            (endpoint.connections.clone(), endpoint.requests.clone(), endpoint.kill.clone());
        let name: Arc<str> = name.into();
        tokio::spawn(async move {
            loop {
                let stream = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap().0,
                    () = kill.cancelled() => return,
                };
                connections.fetch_add(1, Relaxed);
                let (requests, kill, name) = (requests.clone(), kill.clone(), name.clone());
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(|request| {
                        requests.fetch_add(1, Relaxed);
                        respond(request, name.clone())
                    });
                    let serve =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    tokio::select! {
                        _ = serve => {}
                        // As when a process is killed: everything is closed, whatever it was doing.
                        () = kill.cancelled() => {}
                    }
                });
            }
        });
        endpoint
    }

    pub fn kill(&self) {
        self.kill.cancel();
    }

    pub fn served(&self) -> u64 {
        self.requests.load(Relaxed)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.kill.cancel();
    }
}

pub async fn endpoints<const N: usize>() -> [Endpoint; N] {
    let mut all = Vec::new();
    for i in 0..N {
        all.push(Endpoint::start(&format!("e{i}")).await);
    }
    all.try_into().ok().unwrap()
}

pub fn addresses(endpoints: &[Endpoint]) -> Vec<SocketAddr> {
    endpoints.iter().map(|endpoint| endpoint.addr).collect()
}

type Body = BoxBody<Bytes, hyper::Error>;

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

pub const MIB: usize = 1024 * 1024;

async fn respond(request: Request<Incoming>, name: Arc<str>) -> Result<Response<Body>, hyper::Error> {
    let path = request.uri().path().to_owned();
    let response = match path.as_str() {
        "/echo" => Response::new(request.into_body().boxed()),
        "/headers" => {
            let mut text = format!("{} {}\n", request.method(), request.uri());
            for (name, value) in request.headers() {
                text.push_str(&format!("{name}: {}\n", value.to_str().unwrap_or("?")));
            }
            Response::new(full(text))
        }
        "/slow" => {
            tokio::time::sleep(Duration::from_millis(300)).await;
            Response::new(full(name.to_string()))
        }
        "/early" => Response::builder().status(StatusCode::FORBIDDEN).body(full("no")).unwrap(),
        "/empty" => Response::builder().status(StatusCode::NO_CONTENT).body(full("")).unwrap(),
        "/length" => Response::new(full(request.into_body().collect().await?.to_bytes().len().to_string())),
        stream if stream.starts_with("/stream/") => {
            let mib: usize = stream["/stream/".len()..].parse().unwrap();
            let chunk = Bytes::from(vec![b'x'; MIB]);
            let frames = futures::stream::iter((0..mib).map(move |_| Ok(Frame::data(chunk.clone()))));
            Response::new(BodyExt::boxed(StreamBody::new(frames)))
        }
        _ => Response::new(full(name.to_string())),
    };
    Ok(response)
}

/// A keep-alive client connection through hyper.
pub struct Client {
    sender: hyper::client::conn::http1::SendRequest<Body>,
}

impl Client {
    pub async fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { sender }
    }

    pub async fn send(&mut self, method: &str, path: &str, body: Body) -> hyper::Result<Response<Incoming>> {
        self.sender.ready().await?;
        let request = Request::builder().method(method).uri(path).header("host", "web").body(body).unwrap();
        self.sender.send_request(request).await
    }

    pub async fn try_get(&mut self, path: &str) -> hyper::Result<(StatusCode, String)> {
        let response = self.send("GET", path, full("")).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    pub async fn get(&mut self, path: &str) -> (StatusCode, String) {
        tokio::time::timeout(PATIENCE, self.try_get(path)).await.unwrap().unwrap()
    }

    pub async fn post(&mut self, path: &str, body: Body) -> Response<Incoming> {
        tokio::time::timeout(PATIENCE, self.send("POST", path, body)).await.unwrap().unwrap()
    }
}

pub fn text_body(text: impl Into<Bytes>) -> Body {
    full(text)
}

/// A body of unknown length, so sent chunked.
pub fn chunked_body(count: usize, chunk: Bytes) -> Body {
    let frames = futures::stream::iter((0..count).map(move |_| Ok(Frame::data(chunk.clone()))));
    BodyExt::boxed(StreamBody::new(frames))
}

/// Sends bytes as they are and returns everything that comes back until the connection closes.
pub async fn raw(addr: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    // A refusal may close the connection before all was sent.
    let _ = stream.write_all(bytes).await;
    let mut reply = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut reply)).await.expect("the connection is closed");
    reply
}

/// Reads one response head from a stream.
pub async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = tokio::time::timeout(PATIENCE, stream.read_u8()).await.unwrap();
        match byte {
            Ok(byte) => head.push(byte),
            Err(error) => panic!("closed after {:?}: {error}", String::from_utf8_lossy(&head)),
        }
    }
    String::from_utf8(head).unwrap()
}
