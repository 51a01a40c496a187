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
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use scaleup_tests::cluster::Cluster;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

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
        Ok(Self { port: cluster.port, pid, connector: TlsConnector::from(Arc::new(tls)) })
    }

    /// One connection.
    pub async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let tcp = TcpStream::connect(("127.0.0.1", self.port)).await?;
        tcp.set_nodelay(true)?;
        let tls = self.connector.connect(ServerName::try_from("localhost")?, tcp).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
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
    latencies.sort_unstable();
    let cpu_ms_each = (figure::cpu_s(target.pid)? - cpu) * 1e3 / total as f64;
    Ok(Report { rate: total as f64 / wall, latencies, cpu_ms_each })
}

impl Report {
    /// Prints rate, median, p99 and CPU under a common name.
    pub fn print(&self, name: &str) {
        figure::print(&format!("{name}_rate"), self.rate, "1/s");
        figure::print(&format!("{name}_p50"), figure::quantile_ms(&self.latencies, 0.5), "ms");
        figure::print(&format!("{name}_p99"), figure::quantile_ms(&self.latencies, 0.99), "ms");
        figure::print(&format!("{name}_cpu"), self.cpu_ms_each, "ms/request");
    }
}
