//! A load generator: a fixed number of keep-alive HTTP/1.1 connections, each sending one request after another.
//!
//! hyper's raw connections over TLS, so that the client costs little beside the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use scaleup_tests::cluster::Cluster;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::figure;

/// One request.
#[derive(Clone)]
pub struct Call {
    /// Method.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// JSON body, may be empty.
    pub body: Bytes,
}

/// What a run measured.
pub struct Report {
    /// Requests per second.
    pub rate: f64,
    /// Sorted latencies.
    pub latencies: Vec<Duration>,
    /// Server CPU in milliseconds per request.
    pub cpu_ms_each: f64,
}

/// Where and as whom to connect.
#[derive(Clone)]
pub struct Target {
    port: u16,
    pid: u32,
    connector: TlsConnector,
    connector_h2: TlsConnector,
}

impl Target {
    /// The cluster's API as its admin.
    pub fn new(cluster: &Cluster) -> Result<Self> {
        let config: serde_json::Value = serde_saphyr::from_str(&std::fs::read_to_string(cluster.kubeconfig())?)?;
        let pem = |value: &serde_json::Value| -> Result<Vec<u8>> {
            Ok(base64::engine::general_purpose::STANDARD.decode(value.as_str().context("kubeconfig")?)?)
        };
        let user = &config["users"][0]["user"];
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&pem(
            &config["clusters"][0]["cluster"]["certificate-authority-data"],
        )?)?)?;
        let chain =
            CertificateDer::pem_slice_iter(&pem(&user["client-certificate-data"])?).collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&pem(&user["client-key-data"])?)?;
        let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(chain, key)?;
        let pid = cluster.pid().context("not running")?;
        let mut h2 = tls.clone();
        h2.alpn_protocols = vec![b"h2".to_vec()];
        let (connector, connector_h2) = (TlsConnector::from(Arc::new(tls)), TlsConnector::from(Arc::new(h2)));
        Ok(Self { port: cluster.port, pid, connector, connector_h2 })
    }

    async fn dial(&self, connector: &TlsConnector) -> Result<TokioIo<TlsStream<TcpStream>>> {
        let tcp = TcpStream::connect(("127.0.0.1", self.port)).await?;
        tcp.set_nodelay(true)?;
        Ok(TokioIo::new(connector.connect(ServerName::try_from("localhost")?, tcp).await?))
    }

    /// One HTTP/1.1 connection.
    pub async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let (sender, connection) = hyper::client::conn::http1::handshake(self.dial(&self.connector).await?).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// One HTTP/2 connection, as client-go's: many requests at a time.
    pub async fn connect_h2(&self) -> Result<http2::SendRequest<Full<Bytes>>> {
        let io = self.dial(&self.connector_h2).await?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// Sends one request and reads the whole answer; its length.
pub async fn call(sender: &mut SendRequest<Full<Bytes>>, call: &Call) -> Result<usize> {
    let request = Request::builder()
        .method(call.method.clone())
        .uri(&call.path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Full::new(call.body.clone()))?;
    // The last answer may be read before the connection's task has noticed that it is complete.
    sender.ready().await?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    if !status.is_success() {
        bail!("{} {}: {status}: {}", call.method, call.path, String::from_utf8_lossy(&body));
    }
    Ok(body.len())
}

/// Sends `total` requests over `connections`; `make(i)` is the i-th.
pub async fn run(
    target: &Target,
    connections: usize,
    total: usize,
    make: impl Fn(usize) -> Call + Send + Sync + 'static,
) -> Result<Report> {
    let (make, next) = (Arc::new(make), Arc::new(AtomicUsize::new(0)));
    let mut senders = Vec::new();
    for _ in 0..connections {
        senders.push(target.connect().await?);
    }
    let (cpu, start) = (figure::cpu_s(target.pid)?, Instant::now());
    let mut tasks = tokio::task::JoinSet::new();
    for mut sender in senders {
        let (make, next) = (make.clone(), next.clone());
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= total {
                    return anyhow::Ok(latencies);
                }
                let what = make(i);
                let begin = Instant::now();
                call(&mut sender, &what).await?;
                latencies.push(begin.elapsed());
            }
        });
    }
    let mut latencies = Vec::with_capacity(total);
    while let Some(done) = tasks.join_next().await {
        latencies.extend(done??);
    }
    let wall = start.elapsed().as_secs_f64();
    ensure!(latencies.len() == total, "{} of {total} answered", latencies.len());
    Ok(Report::new(latencies, wall, figure::cpu_s(target.pid)? - cpu))
}

impl Report {
    /// From what was seen in `wall_s` seconds and the server's CPU time.
    pub fn new(mut latencies: Vec<Duration>, wall_s: f64, cpu_s: f64) -> Self {
        latencies.sort_unstable();
        let total = latencies.len() as f64;
        Self { rate: total / wall_s, latencies, cpu_ms_each: cpu_s * 1e3 / total }
    }

    /// Several runs as one.
    pub fn pooled(runs: Vec<Self>) -> Self {
        let requests = |r: &Self| r.latencies.len() as f64;
        let wall_s = runs.iter().map(|r| requests(r) / r.rate).sum();
        let cpu_s = runs.iter().map(|r| requests(r) * r.cpu_ms_each / 1e3).sum();
        Self::new(runs.into_iter().flat_map(|r| r.latencies).collect(), wall_s, cpu_s)
    }

    /// Prints the same figures beside a peer's.
    pub fn against(&self, name: &str, peer: &str, theirs: &Self) {
        let (ms, each) = (|r: &Self, q| figure::quantile_ms(&r.latencies, q), "ms/request");
        figure::against(&format!("{name}_rate"), self.rate, "1/s", peer, theirs.rate);
        figure::against(&format!("{name}_p50"), ms(self, 0.5), "ms", peer, ms(theirs, 0.5));
        figure::against(&format!("{name}_p99"), ms(self, 0.99), "ms", peer, ms(theirs, 0.99));
        figure::against(&format!("{name}_cpu"), self.cpu_ms_each, each, peer, theirs.cpu_ms_each);
    }

    /// Prints rate, median, p99 and CPU under a common name.
    pub fn print(&self, name: &str) {
        figure::print(&format!("{name}_rate"), self.rate, "1/s");
        figure::print(&format!("{name}_p50"), figure::quantile_ms(&self.latencies, 0.5), "ms");
        figure::print(&format!("{name}_p99"), figure::quantile_ms(&self.latencies, 0.99), "ms");
        figure::print(&format!("{name}_cpu"), self.cpu_ms_each, "ms/request");
    }
}
