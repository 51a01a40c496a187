//! Watch fan-out: one write to many watchers, and what an idle watcher costs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use scaleup_tests::cluster::Options;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use crate::api::{MAPS, config_map, start};
use crate::figure;
use crate::load::{self, Call, Target};

/// Watches on one HTTP/2 connection: about as many kinds as a controller manager or an agent watches.
const WATCHES_PER_CONNECTION: usize = 20;
/// Handshakes at a time.
const CONNECTING: usize = 32;
/// Longest wait for an event.
const PATIENCE: Duration = Duration::from_secs(30);
/// What every event in this benchmark begins with.
const ADDED: &[u8] = br#"{"type":"ADDED","#;

/// Memory per idle watcher, then one write after another to all of them.
pub async fn fan_out(quick: bool) -> Result<()> {
    let (watchers, writes) = if quick { (60, 5) } else { (1_000, 100) };
    for (name, per_connection) in [("h1_tls", 1), ("h2", WATCHES_PER_CONNECTION)] {
        let (cluster, target) = start(Options::default()).await?;
        let pid = cluster.pid().context("pid")?;
        let before = figure::rss_mib(pid)?;
        let (sender, mut events) = unbounded_channel();
        let mut connecting = JoinSet::new();
        for _ in 0..watchers / per_connection {
            if connecting.len() >= CONNECTING {
                connecting.join_next().await.context("join")???;
            }
            connecting.spawn(watch(target.clone(), per_connection, sender.clone()));
        }
        while let Some(done) = connecting.join_next().await {
            done??;
        }
        let each = (figure::rss_mib(pid)? - before) * 1024.0 / watchers as f64;
        figure::print(&format!("watch_{name}_idle_memory"), each, "KiB/watcher");
        write(&format!("watch_{name}"), &target, watchers, writes, &mut events).await?;
    }
    Ok(())
}

/// From each write's request to each watcher's event.
async fn write(
    name: &str,
    target: &Target,
    watchers: usize,
    writes: usize,
    events: &mut UnboundedReceiver<Instant>,
) -> Result<()> {
    let mut writer = target.connect().await?;
    let (mut all, mut last) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    for i in 0..writes {
        let body = config_map(&format!("w-{i}"), "");
        let start = Instant::now();
        load::call(&mut writer, &Call { method: http::Method::POST, path: MAPS.into(), body }).await?;
        let mut slowest = Duration::ZERO;
        for _ in 0..watchers {
            let at = tokio::time::timeout(PATIENCE, events.recv()).await?.context("watchers ended")?;
            let took = at.duration_since(start);
            slowest = slowest.max(took);
            all.push(took);
        }
        last.push(slowest);
    }
    let wall = begin.elapsed().as_secs_f64();
    all.sort_unstable();
    last.sort_unstable();
    figure::print(&format!("{name}_events"), all.len() as f64 / wall, "1/s");
    figure::print(&format!("{name}_p50"), figure::quantile_ms(&all, 0.5), "ms");
    figure::print(&format!("{name}_p99"), figure::quantile_ms(&all, 0.99), "ms");
    figure::print(&format!("{name}_last_watcher_p50"), figure::quantile_ms(&last, 0.5), "ms");
    Ok(())
}

/// Opens `count` watches, on a connection of HTTP/1.1 if it is one, else on one of HTTP/2.
async fn watch(target: Target, count: usize, events: UnboundedSender<Instant>) -> Result<()> {
    let path = format!("{MAPS}?watch=1&resourceVersion=0");
    if count == 1 {
        let mut connection = target.connect().await?;
        let request = Request::get(path).header("host", "localhost").body(Full::default())?;
        let response = connection.send_request(request).await?;
        ensure!(response.status().is_success(), "watch: {}", response.status());
        tokio::spawn(read_events(response.into_body(), events, connection));
        return Ok(());
    }
    let connection = target.connect_h2().await?;
    for _ in 0..count {
        let request = Request::get(format!("https://localhost{path}")).body(Full::default())?;
        let response = connection.clone().send_request(request).await?;
        ensure!(response.status().is_success(), "watch: {}", response.status());
        tokio::spawn(read_events(response.into_body(), events.clone(), connection.clone()));
    }
    Ok(())
}

/// Reports when each event came in. The connection is held as long.
async fn read_events<C>(mut body: Incoming, events: UnboundedSender<Instant>, connection: C) {
    while let Some(Ok(frame)) = body.frame().await {
        let at = Instant::now();
        let count = frame.data_ref().map_or(0, |d| d.windows(ADDED.len()).filter(|w| *w == ADDED).count());
        for _ in 0..count {
            if events.send(at).is_err() {
                return;
            }
        }
    }
    drop(connection);
}
