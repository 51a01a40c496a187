//! TCP, and TLS passed through by server name: CPU and rate of short connections, CPU and throughput of bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use scaleup_tests::cluster::free_port;
use scaleup_tests::eventually;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::fleet::Fleet;
use super::{GATEWAYS, own_address, publish, write_all};
use crate::figure;
use crate::peers::Peer;

/// Connections at a time.
const AT_ONCE: usize = 32;
/// Connections that carry bytes at a time.
const STREAMS: usize = 4;
const CHUNK: usize = 256 * 1024;
const ROUNDS: usize = 3;
/// Type of a TLS record that holds a ClientHello (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 22;

/// Server names by which connections are passed on; the `*` is a number.
const NAMES: &str = "n*.bench.example";
const TLS_ROUTES: &str = "/apis/gateway.networking.k8s.io/v1alpha2/namespaces/default/tlsroutes";

/// Where a proxy listens, its processes, and what the best of some turns took: seconds and CPU µs per connection, seconds and CPU µs
/// per MiB.
struct Target {
    port: u16,
    pids: Vec<u32>,
    best: [f64; 4],
}

/// TCP of a Service.
pub async fn all(quick: bool) -> Result<()> {
    let fleet = Fleet::start().await?;
    let (backends, upstreams) = backends().await?;
    let (nginx, haproxy) = (Peer::nginx_stream(&upstreams).await?, Peer::haproxy_tcp(&upstreams).await?);
    let port = publish(&fleet.api, "l4", "tcp", &backends).await?;
    let ours = Target::new(port, fleet.pids()?);
    compare("proxy_l4", [ours, Target::peer(&nginx)?, Target::peer(&haproxy)?], &[], quick).await
}

/// TLS passed through by server name, with 1, 100 and 5,000 of them.
pub async fn names(quick: bool) -> Result<()> {
    let counts = if quick { [1, 10, 100] } else { [1, 100, 5_000] };
    let fleet = Fleet::start().await?;
    let (backends, upstreams) = backends().await?;
    let service = publish(&fleet.api, "l4", "tls", &backends).await?;
    let port = free_port()?;
    let listener = json!({"name": "tls", "port": port, "protocol": "TLS", "tls": {"mode": "Passthrough"}});
    let gateway = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "l4"},
        "spec": {"gatewayClassName": "scaleup", "listeners": [listener]}});
    fleet.api.post(GATEWAYS, &gateway).await?.ok()?;
    let mut known = 0;
    for names in counts {
        write_all(&fleet.api, TLS_ROUTES, known..names, |number| {
            json!({"apiVersion": "gateway.networking.k8s.io/v1alpha2", "kind": "TLSRoute", "metadata": {"name": format!("n{number}")},
                "spec": {"parentRefs": [{"name": "l4"}], "hostnames": [name(number)],
                    "rules": [{"backendRefs": [{"name": "l4", "port": service}]}]}})
        })
        .await?;
        known = names;
        for number in [0, names / 2, names - 1] {
            let hello = client_hello(&name(number))?;
            eventually("the name is served", || async { Ok(connect(port, 1, &hello).await.ok()) }).await?;
        }
        let nginx = Peer::nginx_names(&upstreams, names, NAMES).await?;
        let haproxy = Peer::haproxy_names(&upstreams, names, NAMES).await?;
        let targets = [Target::new(port, fleet.pids()?), Target::peer(&nginx)?, Target::peer(&haproxy)?];
        compare(&format!("proxy_sni_{names}_routes"), targets, &client_hello(&name(names / 2))?, quick).await?;
    }
    Ok(())
}

fn name(number: usize) -> String {
    NAMES.replace('*', &number.to_string())
}

/// The first bytes of a TLS client that asks for the name.
fn client_hello(name: &str) -> Result<Vec<u8>> {
    let config =
        rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    let mut hello = Vec::new();
    rustls::ClientConnection::new(Arc::new(config), name.to_owned().try_into()?)?.write_tls(&mut hello)?;
    Ok(hello)
}

impl Target {
    fn new(port: u16, pids: Vec<u32>) -> Self {
        Self { port, pids, best: [f64::MAX; 4] }
    }

    fn peer(peer: &Peer) -> Result<Self> {
        Ok(Self::new(peer.port, peer.pids()?))
    }

    async fn turn(&mut self, hello: &[u8], connections: usize, mib: u64) -> Result<()> {
        let (start, cpu) = (Instant::now(), figure::cpu_of(&self.pids)?);
        connect(self.port, connections, hello).await?;
        let (opening, opening_cpu) = (start.elapsed().as_secs_f64(), figure::cpu_of(&self.pids)? - cpu);
        let (start, cpu) = (Instant::now(), figure::cpu_of(&self.pids)?);
        download(self.port, mib, hello).await?;
        let (bytes, bytes_cpu) = (start.elapsed().as_secs_f64(), figure::cpu_of(&self.pids)? - cpu);
        let (connections, mib) = (connections as f64, mib as f64);
        let took = [opening / connections, opening_cpu * 1e6 / connections, bytes / mib, bytes_cpu * 1e6 / mib];
        for (best, took) in self.best.iter_mut().zip(took) {
            *best = best.min(took);
        }
        Ok(())
    }
}

/// Ours, nginx and HAProxy in turns; every connection begins with `hello`.
async fn compare(figures: &str, mut targets: [Target; 3], hello: &[u8], quick: bool) -> Result<()> {
    let (connections, mib, rounds) = if quick { (500, 64, 1) } else { (10_000, 2048, ROUNDS) };
    for _ in 0..rounds {
        for target in &mut targets {
            target.turn(hello, connections, mib).await?;
        }
    }
    let [ours, nginx, haproxy] = targets.map(|target| target.best);
    for (peer, theirs) in [("nginx", nginx), ("haproxy", haproxy)] {
        figure::against(&format!("{figures}_connections"), 1.0 / ours[0], "1/s", peer, 1.0 / theirs[0]);
        figure::against(&format!("{figures}_connection_cpu"), ours[1], "us/connection", peer, theirs[1]);
        figure::against(&format!("{figures}_throughput"), 1.0 / ours[2], "MiB/s", peer, 1.0 / theirs[2]);
        figure::against(&format!("{figures}_byte_cpu"), ours[3], "us/MiB", peer, theirs[3]);
    }
    Ok(())
}

/// Two backends and their addresses.
async fn backends() -> Result<([u16; 2], Vec<String>)> {
    let (ports, address) = ([backend().await?, backend().await?], own_address()?);
    Ok((ports, ports.iter().map(|port| format!("{address}:{port}")).collect()))
}

/// Reads a record of TLS if there is one, then a number of MiB (8 bytes, big endian), and sends that much; 0 is answered with one byte.
async fn backend() -> Result<u16> {
    let listener = TcpListener::bind("0.0.0.0:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        let chunk: Arc<[u8]> = vec![7; CHUNK].into();
        while let Ok((mut stream, _)) = listener.accept().await {
            let chunk = chunk.clone();
            tokio::spawn(async move {
                let mut head = [0; 8];
                stream.read_exact(&mut head).await?;
                if head[0] == HANDSHAKE {
                    // Three bytes of the record's content are read already.
                    let rest = usize::from(u16::from_be_bytes([head[3], head[4]])).saturating_sub(3);
                    stream.read_exact(&mut vec![0; rest]).await?;
                    stream.read_exact(&mut head).await?;
                }
                let mib = u64::from_be_bytes(head);
                if mib == 0 {
                    return stream.write_all(&chunk[..1]).await;
                }
                for _ in 0..mib * (1024 * 1024 / CHUNK as u64) {
                    stream.write_all(&chunk).await?;
                }
                Ok(())
            });
        }
    });
    Ok(port)
}

async fn ask(port: u16, mib: u64, hello: &[u8]) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&[hello, &mib.to_be_bytes()].concat()).await?;
    Ok(stream)
}

/// Opens `total` connections, each for one question and its answer.
async fn connect(port: u16, total: usize, hello: &[u8]) -> Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..AT_ONCE {
        let (next, hello) = (next.clone(), hello.to_vec());
        tasks.spawn(async move {
            while next.fetch_add(1, Relaxed) < total {
                let mut stream = ask(port, 0, &hello).await?;
                ensure!(stream.read_u8().await? == 7, "another answer");
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// Fetches `mib` MiB over [`STREAMS`] connections.
async fn download(port: u16, mib: u64, hello: &[u8]) -> Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..STREAMS {
        let hello = hello.to_vec();
        tasks.spawn(async move {
            let mut stream = ask(port, mib / STREAMS as u64, &hello).await?;
            let (mut buffer, mut total) = (vec![0; CHUNK], 0);
            loop {
                match stream.read(&mut buffer).await? {
                    0 => break,
                    read => total += read as u64,
                }
            }
            if total != mib / STREAMS as u64 * 1024 * 1024 {
                bail!("{total} bytes came");
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}
