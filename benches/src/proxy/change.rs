//! From a change of an EndpointSlice to its effect on the wire, under load: how long, and what it costs in errors.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use scaleup_tests::cluster::{Cluster, Options};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{SLICES, own_address, publish, slice};
use crate::figure;
use crate::peers::Peer;

/// Connections that send one request after another meanwhile.
const LOAD: usize = 16;
/// Longest wait for an effect.
const PATIENCE: Duration = Duration::from_secs(5);

/// Moves a Service back and forth between two endpoints.
pub async fn all(quick: bool) -> Result<()> {
    let changes = if quick { 10 } else { 200 };
    let cluster = Cluster::start(Options::default()).await?;
    let api = cluster.api()?;
    let backends = [Peer::nginx_backend(b"0").await?, Peer::nginx_backend(b"1").await?];
    let port = publish(&cluster, "change", "http", &[backends[0].port]).await?;
    let (stop, served, failed) =
        (Arc::new(AtomicBool::new(false)), Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let mut load = tokio::task::JoinSet::new();
    for _ in 0..LOAD {
        let (stop, served, failed) = (stop.clone(), served.clone(), failed.clone());
        load.spawn(async move {
            let mut connection = Connection::open(port).await;
            while !stop.load(Relaxed) {
                match &mut connection {
                    Ok(open) => match open.get().await {
                        Ok(_) => {
                            served.fetch_add(1, Relaxed);
                            continue;
                        }
                        Err(_) => failed.fetch_add(1, Relaxed),
                    },
                    Err(_) => failed.fetch_add(1, Relaxed),
                };
                connection = Connection::open(port).await;
            }
        });
    }
    let (address, mut probe) = (own_address()?, Connection::open(port).await?);
    let (mut took, mut after_write) = (Vec::new(), Vec::new());
    for change in 1..=changes {
        let target = change % 2;
        let path = format!("{SLICES}/change-0");
        let start = Instant::now();
        let written = tokio::spawn({
            let (api, body) = (api.clone(), slice("change", 0, "http", &address, backends[target].port));
            async move {
                api.put(&path, &body).await?.ok()?;
                anyhow::Ok(Instant::now())
            }
        });
        // Effect: the first request that the new endpoint answers.
        while probe.get().await? != b'0' + target as u8 {
            ensure!(start.elapsed() < PATIENCE, "change {change} had no effect");
        }
        let effect = Instant::now();
        took.push(effect - start);
        after_write.push(effect.saturating_duration_since(written.await??));
        ensure!(probe.get().await? == b'0' + target as u8, "the old endpoint answered after the new one");
    }
    stop.store(true, Relaxed);
    while load.join_next().await.is_some() {}
    took.sort_unstable();
    figure::print("proxy_change_p50", figure::quantile_ms(&took, 0.5), "ms");
    figure::print("proxy_change_p99", figure::quantile_ms(&took, 0.99), "ms");
    after_write.sort_unstable();
    // The rest is the API's durable write; an effect may well precede its answer.
    figure::print("proxy_change_after_write_p99", figure::quantile_ms(&after_write, 0.99), "ms");
    figure::print("proxy_change_requests", served.load(Relaxed) as f64, "requests meanwhile");
    figure::print("proxy_change_errors", failed.load(Relaxed) as f64, "requests failed");
    Ok(())
}

/// A keep-alive connection that asks for one byte.
struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(port: u16) -> Result<Self> {
        Ok(Self { stream: TcpStream::connect(("127.0.0.1", port)).await?, buffer: vec![0; 4096] })
    }

    /// The one byte of the answer's body.
    async fn get(&mut self) -> Result<u8> {
        self.stream.write_all(b"GET / HTTP/1.1\r\nhost: change\r\n\r\n").await?;
        let mut filled = 0;
        loop {
            let read = self.stream.read(&mut self.buffer[filled..]).await?;
            filled += read;
            let answer = &self.buffer[..filled];
            if read == 0 {
                bail!("closed");
            }
            let Some(head) = answer.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
            ensure!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(answer));
            if filled > head + 4 {
                return answer.last().copied().context("empty");
            }
        }
    }
}
