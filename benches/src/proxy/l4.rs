//! TCP: CPU and rate of short connections, CPU and throughput of bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use scaleup_tests::cluster::{Cluster, Options};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{own_address, publish};
use crate::figure;
use crate::peers::Peer;

/// Connections at a time.
const AT_ONCE: usize = 32;
/// Connections that carry bytes at a time.
const STREAMS: usize = 4;
const CHUNK: usize = 256 * 1024;
const ROUNDS: usize = 3;

/// The whole comparison.
pub async fn all(quick: bool) -> Result<()> {
    let (connections, mib, rounds) = if quick { (500, 64, 1) } else { (10_000, 2048, ROUNDS) };
    let cluster = Cluster::start(Options::default()).await?;
    let pid = cluster.pid().context("pid")?;
    let backends = [backend().await?, backend().await?];
    let address = own_address()?;
    let upstreams: Vec<String> = backends.iter().map(|port| format!("{address}:{port}")).collect();
    let (nginx, haproxy) = (Peer::nginx_stream(&upstreams).await?, Peer::haproxy_tcp(&upstreams).await?);
    let port = publish(&cluster, "l4", "tcp", &backends).await?;
    let mut best = [[f64::MAX; 4]; 3];
    for _ in 0..rounds {
        let targets = [(port, vec![pid]), (nginx.port, nginx.pids()?), (haproxy.port, haproxy.pids()?)];
        for (best, (port, pids)) in best.iter_mut().zip(targets) {
            let (start, cpu) = (Instant::now(), figure::cpu_of(&pids)?);
            connect(port, connections).await?;
            let (seconds, cpu) = (start.elapsed().as_secs_f64(), figure::cpu_of(&pids)? - cpu);
            best[0] = best[0].min(seconds / connections as f64);
            best[1] = best[1].min(cpu * 1e6 / connections as f64);
            let (start, cpu) = (Instant::now(), figure::cpu_of(&pids)?);
            download(port, mib).await?;
            let (seconds, cpu) = (start.elapsed().as_secs_f64(), figure::cpu_of(&pids)? - cpu);
            best[2] = best[2].min(seconds / mib as f64);
            best[3] = best[3].min(cpu * 1e6 / mib as f64);
        }
    }
    let [ours, nginx, haproxy] = best;
    for (peer, theirs) in [("nginx", nginx), ("haproxy", haproxy)] {
        figure::against("proxy_l4_connections", 1.0 / ours[0], "1/s", peer, 1.0 / theirs[0]);
        figure::against("proxy_l4_connection_cpu", ours[1], "us/connection", peer, theirs[1]);
        figure::against("proxy_l4_throughput", 1.0 / ours[2], "MiB/s", peer, 1.0 / theirs[2]);
        figure::against("proxy_l4_byte_cpu", ours[3], "us/MiB", peer, theirs[3]);
    }
    Ok(())
}

/// Reads a number of MiB (8 bytes, big endian) and sends that much; 0 is answered with one byte.
async fn backend() -> Result<u16> {
    let listener = TcpListener::bind("0.0.0.0:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        let chunk: Arc<[u8]> = vec![7; CHUNK].into();
        while let Ok((mut stream, _)) = listener.accept().await {
            let chunk = chunk.clone();
            tokio::spawn(async move {
                let mib = stream.read_u64().await?;
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

async fn ask(port: u16, mib: u64) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    stream.write_u64(mib).await?;
    Ok(stream)
}

/// Opens `total` connections, each for one question and its answer.
async fn connect(port: u16, total: usize) -> Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..AT_ONCE {
        let next = next.clone();
        tasks.spawn(async move {
            while next.fetch_add(1, Relaxed) < total {
                let mut stream = ask(port, 0).await?;
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
async fn download(port: u16, mib: u64) -> Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..STREAMS {
        tasks.spawn(async move {
            let mut stream = ask(port, mib / STREAMS as u64).await?;
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
