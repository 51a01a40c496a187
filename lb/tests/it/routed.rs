//! A load balancer with routes made by hand, and endpoints that follow a script.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus_client::registry::Registry;
use scaleup_lb::policy::{Algorithm, RequestPolicy, ServicePolicy};
use scaleup_lb::snapshot::routes::{
    BackendRef, CertificatePlan, Filter, HostPattern, HostPort, HostsPlan, HttpPlan, ListenerPlan, Mode, PathMatch,
    RuleId, RulePlan, TlsAction, TlsSite, WeightedBackend,
};
use scaleup_lb::snapshot::{AppProtocol, PlanConfig, Protocol, ServiceKey, Snapshot, plan};
use scaleup_lb::{Config, Lb};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::support::{PATIENCE, Run, launch_registered, own_ip};

/// The port of every test's listener.
pub const PORT: u16 = 8080;

/// What is served.
#[derive(Clone, Default)]
pub struct Setup {
    services: Vec<(&'static str, Vec<SocketAddr>, ServicePolicy)>,
    /// Services whose endpoints speak HTTP/2.
    h2c: BTreeSet<&'static str>,
    listeners: BTreeMap<u16, Option<Mode>>,
}

impl Setup {
    /// Endpoints that are chosen in turn.
    pub fn service(self, name: &'static str, endpoints: &[SocketAddr]) -> Self {
        let policy = ServicePolicy { algorithm: Some(Algorithm::RoundRobin), ..ServicePolicy::default() };
        self.service_with(name, endpoints, policy)
    }

    pub fn service_with(mut self, name: &'static str, endpoints: &[SocketAddr], policy: ServicePolicy) -> Self {
        self.services.retain(|(known, _, _)| *known != name);
        self.services.push((name, endpoints.to_vec(), policy));
        self
    }

    /// HTTP/2 is spoken to the endpoints of a Service.
    pub fn h2c(mut self, name: &'static str) -> Self {
        self.h2c.insert(name);
        self
    }

    pub fn listener(mut self, port: u16, mode: Mode) -> Self {
        self.listeners.insert(port, Some(mode));
        self
    }

    pub fn rules(self, rules: Vec<RulePlan>) -> Self {
        self.listener(PORT, Mode::Http(http(vec![("", rules)])))
    }

    pub fn snapshot(&self) -> Snapshot {
        let (mut services, mut slices) = (Vec::new(), Vec::new());
        for (name, endpoints, _) in &self.services {
            let service = json!({"metadata": {"name": name, "namespace": "shop"},
                "spec": {"type": "ClusterIP", "ports": [{"name": "http", "port": 80}]}});
            services.push(serde_json::from_value(service).unwrap());
            for (i, addr) in endpoints.iter().enumerate() {
                let slice = json!({"metadata": {"name": format!("{name}-{i}"), "namespace": "shop",
                    "labels": {"kubernetes.io/service-name": name}}, "addressType": "IPv4",
                    "ports": [{"name": "http", "port": addr.port()}],
                    "endpoints": [{"addresses": [addr.ip().to_string()]}]});
                slices.push(serde_json::from_value(slice).unwrap());
            }
        }
        let mut snapshot = plan(&services, &slices, &PlanConfig::default());
        for (name, _, policy) in &self.services {
            let plan = Arc::make_mut(snapshot.services.get_mut(&ServiceKey::new("shop", name)).unwrap());
            plan.ports[0].policy = Arc::new(policy.clone());
            if self.h2c.contains(name) {
                plan.ports[0].app = AppProtocol::H2c;
            }
        }
        snapshot.routed = Arc::new(self.services.iter().map(|(name, _, _)| to(name)).collect::<BTreeSet<_>>());
        for (port, mode) in &self.listeners {
            let port = HostPort { port: *port, protocol: Protocol::Tcp };
            let mode = mode.clone().unwrap();
            let listener = ListenerPlan { created: 0, owners: vec!["Gateway shop/g".into()], accept_proxy: None, mode };
            snapshot.listeners.insert(port, Arc::new(listener));
        }
        snapshot
    }
}

pub fn to(service: &str) -> BackendRef {
    BackendRef { service: ServiceKey::new("shop", service), port: 80, protocol: Protocol::Tcp }
}

pub fn share(service: &str, weight: u32) -> WeightedBackend {
    WeightedBackend { backend: Some(to(service)), weight, filters: vec![] }
}

/// A rule for a path prefix.
pub fn rule(prefix: &str, service: &str) -> RulePlan {
    RulePlan {
        id: RuleId { kind: "HTTPRoute", namespace: "shop".into(), name: prefix.into(), ..RuleId::default() },
        path: PathMatch::Prefix(prefix.into()),
        method: None,
        headers: vec![],
        query: vec![],
        filters: vec![],
        backends: vec![share(service, 1)],
        policy: Arc::default(),
    }
}

pub fn filtered(prefix: &str, service: &str, filters: Vec<Filter>) -> RulePlan {
    RulePlan { filters, ..rule(prefix, service) }
}

pub fn mirror(to_service: &str) -> Filter {
    Filter::Mirror { backend: to(to_service), numerator: 1, denominator: 1 }
}

/// Everything goes to `main`, and a copy of it to `copies`.
pub fn mirrored(main: &Scripted, copies: &Scripted) -> Setup {
    let rule = filtered("/", "main", vec![mirror("copies")]);
    Setup::default().service("main", &[main.addr]).service("copies", &[copies.addr]).rules(vec![rule])
}

pub fn governed(prefix: &str, service: &str, policy: RequestPolicy) -> RulePlan {
    RulePlan { policy: Arc::new(policy), ..rule(prefix, service) }
}

/// Rules by host, in one listener per host.
pub fn http(hosts: Vec<(&str, Vec<RulePlan>)>) -> Arc<HttpPlan> {
    let listeners = hosts.into_iter().map(|(host, rules)| {
        let pattern = HostPattern::parse(host);
        let rules = rules.into_iter().map(Arc::new).collect();
        (pattern.clone(), Arc::new(HostsPlan { hosts: BTreeMap::from([(pattern, rules)]) }))
    });
    Arc::new(HttpPlan { listeners: listeners.collect(), ..HttpPlan::default() })
}

pub fn tls_site(host: &str, certificates: &[&Arc<CertificatePlan>], rules: Vec<RulePlan>) -> TlsSite {
    let certificates: Arc<[Arc<CertificatePlan>]> = certificates.iter().map(|plan| (*plan).clone()).collect();
    let http = http(vec![(host, rules)]);
    TlsSite { host: HostPattern::parse(host), action: TlsAction::Http { certificates, http } }
}

/// A running load balancer.
pub struct Routed {
    pub lb: Lb,
    pub addr: SocketAddr,
    shutdown: CancellationToken,
    run: Run,
}

impl Routed {
    pub async fn start(setup: &Setup) -> Self {
        Self::configured(setup, |_| {}).await
    }

    pub async fn configured(setup: &Setup, configure: impl FnOnce(&mut Config)) -> Self {
        Self::registered(setup, &mut Registry::default(), configure).await
    }

    /// Likewise, with its metrics in `registry`.
    pub async fn registered(setup: &Setup, registry: &mut Registry, configure: impl FnOnce(&mut Config)) -> Self {
        let ip = own_ip();
        let (lb, shutdown, run) = launch_registered(ip, registry, configure);
        lb.publish(setup.snapshot());
        let addr = SocketAddr::new(ip.into(), PORT);
        let open = async {
            while TcpStream::connect(addr).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, open).await.expect("the listener opens");
        Self { lb, addr, shutdown, run }
    }

    pub fn publish(&self, setup: &Setup) {
        self.lb.publish(setup.snapshot());
    }

    /// One request on a connection of its own: the whole answer.
    pub async fn send(&self, request: &str) -> Answer {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        Answer::to(&mut stream, request).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(&get(path, "a.example")).await
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.run).await.unwrap().unwrap().unwrap();
    }
}

pub fn get(path: &str, host: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")
}

/// A response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// In lower case.
    pub head: String,
    pub body: String,
}

impl Answer {
    /// Sends `request`, which asks to close the connection, and reads until it is closed.
    pub async fn to(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str) -> Self {
        // A refusal may close the connection before all was sent.
        let _ = stream.write_all(request.as_bytes()).await;
        let _ = stream.flush().await;
        let mut bytes = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the connection is closed");
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap();
        Self { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// What a scripted endpoint does with a request.
pub enum Act {
    /// Sends these bytes.
    Say(Vec<u8>),
    /// Closes the connection.
    Close,
    /// Does nothing for as long as the connection lasts.
    Hang,
}

impl Act {
    /// A response with a length.
    pub fn reply(status: u16, body: &str) -> Self {
        Self::Say(format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes())
    }
}

/// An endpoint that follows a script.
pub struct Scripted {
    pub addr: SocketAddr,
    /// Heads and bodies as received.
    log: Arc<Mutex<Vec<String>>>,
    connections: Arc<Mutex<u64>>,
}

impl Scripted {
    /// `act` is told the request and how many came before.
    pub async fn start(act: impl Fn(&str, usize) -> Act + Send + Sync + 'static) -> Self {
        Self::behind(act, |stream| async { Some(stream) }).await
    }

    /// Likewise behind something that `open` makes of a connection.
    pub async fn behind<IO, F>(
        act: impl Fn(&str, usize) -> Act + Send + Sync + 'static,
        open: impl Fn(TcpStream) -> F + Send + Sync + 'static,
    ) -> Self
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = Option<IO>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scripted = Self { addr: listener.local_addr().unwrap(), log: Arc::default(), connections: Arc::default() };
        let (log, connections, act) = (scripted.log.clone(), scripted.connections.clone(), Arc::new(act));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                *connections.lock().unwrap() += 1;
                let (log, act, opened) = (log.clone(), act.clone(), open(stream));
                tokio::spawn(async move {
                    let Some(mut stream) = opened.await else { return };
                    while let Some(request) = read_request(&mut stream).await {
                        let before = {
                            let mut log = log.lock().unwrap();
                            log.push(request.clone());
                            log.len() - 1
                        };
                        match act(&request, before) {
                            Act::Say(bytes) => {
                                if stream.write_all(&bytes).await.is_err() || stream.flush().await.is_err() {
                                    return;
                                }
                            }
                            Act::Close => return,
                            Act::Hang => {
                                let _ = stream.read(&mut [0]).await;
                                return;
                            }
                        }
                    }
                });
            }
        });
        scripted
    }

    /// Answers with the request itself.
    pub async fn echo() -> Self {
        Self::start(|request, _| Act::reply(200, request)).await
    }

    /// Answers with a name.
    pub async fn named(name: &'static str) -> Self {
        Self::start(move |_, _| Act::reply(200, name)).await
    }

    pub fn seen(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    pub fn connections(&self) -> u64 {
        *self.connections.lock().unwrap()
    }

    pub async fn until_seen(&self, count: usize) -> Vec<String> {
        let wait = async {
            while self.seen().len() < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{:?}", self.seen()));
        self.seen()
    }
}

/// Head and body (as sent) of the next request.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8_lossy(&bytes).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    if let Some(length) = length {
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.ok()?;
        bytes.extend(body);
    } else if head.contains("transfer-encoding: chunked") {
        while !bytes.ends_with(b"0\r\n\r\n") {
            bytes.push(stream.read_u8().await.ok()?);
        }
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
