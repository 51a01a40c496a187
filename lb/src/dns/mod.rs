//! Cluster DNS of the node: names of Services and pods from the snapshot, everything else from the machine's resolvers.
//!
//! [`zone`] answers, purely; [`server`] moves packets; [`forward`] asks other resolvers; [`cache`] keeps what they said.
//! Answers from the snapshot are computed each time, so that a change is answered from at once.

mod cache;
mod forward;
mod server;
mod stats;
mod zone;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::hub::Hub;
use forward::Forwarder;
pub(crate) use stats::DnsStats;
use zone::Zone;

/// Port of the DNS protocol.
const DNS_PORT: u16 = 53;
/// Pause before an address that cannot be bound (yet) is tried again.
const RETRY: Duration = Duration::from_millis(500);

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
}

/// Serves until `shutdown`, on the addresses that configuration or the own Node name.
pub(crate) async fn run(config: DnsConfig, hub: Arc<Hub>, shutdown: CancellationToken) {
    let zone = match Zone::new(&config.cluster_domain, &config.service_cidr) {
        Ok(zone) => Arc::new(zone),
        Err(error) => {
            tracing::error!(%error, "cluster DNS is off until the configuration is corrected");
            shutdown.cancelled().await;
            return;
        }
    };
    let forwarder = Arc::new(Forwarder::new(config.resolv_conf.clone(), config.stats.clone()));
    let mut snapshots = hub.subscribe();
    let mut running: BTreeMap<SocketAddr, CancellationToken> = BTreeMap::new();
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
        for addr in wanted {
            running.entry(addr).or_insert_with(|| {
                let stop = shutdown.child_token();
                let (zone, hub, forwarder) = (zone.clone(), hub.clone(), forwarder.clone());
                let context = server::Context { zone, hub, forwarder, stats: config.stats.clone() };
                tokio::spawn(keep_serving(addr, Arc::new(context), stop.clone()));
                stop
            });
        }
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            () = shutdown.cancelled() => return,
        }
    }
}

/// Serves `addr` until `stop`, binding again when that fails: the pod network's bridge may not be there yet.
async fn keep_serving(addr: SocketAddr, context: Arc<server::Context>, stop: CancellationToken) {
    let mut told = false;
    loop {
        match server::bind(addr).await {
            Ok(sockets) => {
                tracing::info!(%addr, "cluster DNS is listening");
                told = false;
                tokio::select! {
                    () = server::serve(sockets, context.clone()) => {}
                    () = stop.cancelled() => return,
                }
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
