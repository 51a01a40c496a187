//! Cluster DNS of the node: names of Services and pods from the snapshot, everything else from the machine's resolvers.
//!
//! [`zone`] answers, purely; [`server`] moves packets; [`forward`] asks other resolvers; [`cache`] keeps what they said.
//! Answers from the snapshot are computed each time, so that a change is answered from at once.

mod cache;
mod forward;
mod server;
mod sockets;
mod stats;
mod zone;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::hub::Hub;
use forward::Forwarder;
pub(crate) use sockets::DnsSockets;
pub(crate) use stats::DnsStats;
use zone::Zone;

/// Port of the DNS protocol.
const DNS_PORT: u16 = 53;
/// Pause before an address that cannot be bound (yet) is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// How long queries that other resolvers are to answer, and connections, may take after a hand-over.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// What the role needs to know.
#[derive(Clone, Debug)]
pub(crate) struct DnsConfig {
    /// Zone without dots at its ends.
    pub cluster_domain: String,
    /// ClusterIP range.
    pub service_cidr: String,
    /// Fixed addresses; empty: port 53 of the pod gateway.
    pub listen: Vec<SocketAddr>,
    /// Where the machine's resolvers are listed.
    pub resolv_conf: PathBuf,
    /// What is counted.
    pub stats: DnsStats,
    /// What is listened on, and was by a predecessor.
    pub sockets: Arc<DnsSockets>,
}

/// Serves until `shutdown`, on the addresses that configuration or the own Node name. After a hand-over it finishes what it has begun.
pub(crate) async fn run(config: DnsConfig, hub: Arc<Hub>, shutdown: CancellationToken) {
    let zone = match Zone::new(&config.cluster_domain, &config.service_cidr) {
        Ok(zone) => Arc::new(zone),
        Err(error) => {
            tracing::error!(%error, "cluster DNS is off until the configuration is corrected");
            config.sockets.settle();
            shutdown.cancelled().await;
            return;
        }
    };
    let forwarder = Arc::new(Forwarder::new(config.resolv_conf.clone(), config.stats.clone()));
    let mut snapshots = hub.subscribe();
    // The predecessor answers until we know as much as it does.
    if config.sockets.kept.has_adopted() && !hub.is_published() {
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            () = shutdown.cancelled() => return,
        }
    }
    let mut running: BTreeMap<SocketAddr, CancellationToken> = BTreeMap::new();
    let servers = TaskTracker::new();
    loop {
        let gateway = snapshots.borrow_and_update().node.pod_gateway;
        let wanted: Vec<SocketAddr> = if config.listen.is_empty() {
            gateway.into_iter().map(|ip| SocketAddr::new(ip, DNS_PORT)).collect()
        } else {
            config.listen.clone()
        };
        running.retain(|addr, stop| {
            let keep = wanted.contains(addr);
            if !keep {
                stop.cancel();
            }
            keep
        });
        forwarder.set_own_addresses(wanted.clone());
        let mut opened = Vec::new();
        for addr in wanted {
            running.entry(addr).or_insert_with(|| {
                let stop = shutdown.child_token();
                let (zone, hub, forwarder) = (zone.clone(), hub.clone(), forwarder.clone());
                let context = server::Context { zone, hub, forwarder, stats: config.stats.clone() };
                let (done, tried) = oneshot::channel();
                servers.spawn(keep_serving(addr, Arc::new(context), config.sockets.clone(), done, stop.clone()));
                opened.push(tried);
                stop
            });
        }
        // Whether or not they could be opened; a predecessor's always can.
        join_all(opened).await;
        config.sockets.settle();
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { break },
            () = shutdown.cancelled() => break,
        }
    }
    if config.sockets.kept.are_handed_over() {
        servers.close();
        // A resolver that does not answer must not hold the end up.
        let _ = tokio::time::timeout(LAST_ANSWERS, servers.wait()).await;
    }
}

/// Serves `addr` until `stop`, binding again when that fails: the pod network's bridge may not be there yet. Says by `tried` when it has
/// tried once.
async fn keep_serving(
    addr: SocketAddr,
    context: Arc<server::Context>,
    sockets: Arc<DnsSockets>,
    tried: oneshot::Sender<()>,
    stop: CancellationToken,
) {
    let mut tried = Some(tried);
    let mut told = false;
    loop {
        let opened = sockets.open(addr).await;
        if let Some(tried) = tried.take() {
            // Nobody waits after the end.
            let _ = tried.send(());
        }
        match opened {
            Ok(pair) => {
                tracing::info!(%addr, "cluster DNS is listening");
                server::serve(pair, context.clone(), stop.clone()).await;
                sockets.kept.closed(addr);
                return;
            }
            Err(error) if !std::mem::replace(&mut told, true) => {
                tracing::info!(%addr, %error, "cluster DNS cannot listen yet, retrying");
            }
            Err(_) => {}
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = stop.cancelled() => return,
        }
    }
}
