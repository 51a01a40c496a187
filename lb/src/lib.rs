//! The load balancer role: an HTTP/1.1 and TCP proxy for Services, the node's service proxy and cluster DNS.
//!
//! ```text
//! API ─watch→ snapshot::Compiler ─→ hub::Hub ─┬→ backend cells ← proxy threads (per request)
//!  ↑ statuses ← snapshot::write              │
//!                                             ├→ listeners::manager → sockets; listeners::status → API
//!                                             ├→ serviceproxy → nft
//!                                             └→ dns
//! ```
//!
//! The role is an ordinary Kubernetes client. It never writes spec, never proxies without a snapshot, and keeps serving
//! the last one while the API is away. [`Lb::publish`] takes a snapshot made by hand, so the data path also runs
//! without Kubernetes.

mod backend;
mod balance;
mod config;
mod dns;
mod hub;
mod listeners;
mod metrics;
pub mod policy;
mod proxy;
mod route;
pub mod serviceproxy;
pub mod snapshot;
mod stats;

use std::net::SocketAddr;
use std::sync::Arc;

use kube::Client;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use config::{Config, ProxyConfig};
use hub::Hub;
use listeners::Report;
use listeners::manager::Manager;
use proxy::Proxy;
pub use proxy::StartError;
use snapshot::{Compiler, PlanConfig, ServiceKey, Snapshot};
pub use stats::{PodTotals, ServiceTotals};

/// The role failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its threads could not be started.
    #[error("the load balancer cannot start")]
    Start(#[source] StartError),
    /// One of its parts stopped although nobody asked it to.
    #[error("a part of the load balancer stopped unexpectedly")]
    Stopped,
}

/// The assembled role; nothing runs before [`Lb::run`] or [`Lb::run_standalone`].
#[derive(Clone, Debug)]
pub struct Lb {
    config: Arc<Config>,
    hub: Arc<Hub>,
    reports: Arc<watch::Sender<Report>>,
}

/// Assembles the role and registers its metrics.
pub fn build(config: Config, metrics_registry: &mut Registry) -> Lb {
    let hub = Arc::new(Hub::new(config.thread_count()));
    metrics::register(metrics_registry, hub.clone());
    Lb { config: Arc::new(config), hub, reports: Arc::new(watch::channel(Report::default()).0) }
}

impl Lb {
    /// Runs as a Kubernetes client until `shutdown`, then drains.
    pub async fn run(&self, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
        let mut parts = self.start(&shutdown)?;
        let (hub, config, token) = (self.hub.clone(), &self.config, shutdown.clone());
        let compiler = Compiler::new(PlanConfig {
            node_name: config.node_name.clone(),
            http_port: config.http_port,
            https_port: config.https_port,
        });
        let mut statuses = None;
        if config.enable_proxy {
            let ip = config.advertise_ip.to_string();
            let (plans, planned) = watch::channel(snapshot::StatusPlan::default());
            parts.spawn(snapshot::write::run(client.clone(), planned, shutdown.clone()));
            let reports = self.reports.subscribe();
            statuses = Some(snapshot::watch::Statuses { reports, ip: ip.clone(), plans });
            parts.spawn(listeners::status::run(
                client.clone(),
                hub.clone(),
                self.reports.subscribe(),
                ip,
                shutdown.clone(),
            ));
        }
        parts.spawn(async move {
            snapshot::watch::run(client, compiler, &hub, statuses, token).await;
        });
        finish(parts, &shutdown).await
    }

    /// Runs without Kubernetes until `shutdown`: snapshots come from [`Lb::publish`] only.
    pub async fn run_standalone(&self, shutdown: CancellationToken) -> Result<(), Error> {
        let parts = self.start(&shutdown)?;
        finish(parts, &shutdown).await
    }

    /// Makes `snapshot` the one in force. Traffic on open listeners follows before this returns; listeners, nftables
    /// and DNS follow at once.
    pub fn publish(&self, snapshot: Snapshot) {
        self.hub.publish(snapshot);
    }

    /// Waits until every load balancer port of `service` is bound (or `false` when one is known not to be).
    pub async fn wait_bound(&self, service: &ServiceKey) -> bool {
        let mut reports = self.reports.subscribe();
        let known = |report: &Report| report.services.get(service).is_some_and(|s| s.bound + s.unbound > 0);
        match reports.wait_for(known).await {
            Ok(report) => report.services.get(service).is_some_and(|s| s.unbound == 0),
            Err(_) => false,
        }
    }

    /// Cumulative usage per Pod UID since this process started, for billing. Entries of Pods that are gone are kept for
    /// an hour.
    pub fn usage(&self) -> Vec<(Arc<str>, PodTotals)> {
        self.hub.usage()
    }

    /// Counters per Service since it was first seen.
    pub fn totals(&self) -> Vec<(ServiceKey, ServiceTotals)> {
        self.hub.totals()
    }

    /// Endpoints behind the proxied Services and the requests each is serving now.
    pub fn endpoints(&self) -> Vec<(SocketAddr, u64)> {
        self.hub.endpoints()
    }

    fn start(&self, shutdown: &CancellationToken) -> Result<JoinSet<()>, Error> {
        let (config, hub) = (&self.config, &self.hub);
        let mut parts = JoinSet::new();
        if config.enable_proxy {
            let proxy = Proxy::start(config.thread_count(), &config.proxy).map_err(Error::Start)?;
            let manager = Manager::new(hub.clone(), proxy, config.bind_address, self.reports.clone());
            parts.spawn(manager.run(shutdown.clone(), config.proxy.drain_timeout));
        }
        if config.enable_nftables {
            let (config, hub, shutdown) = (config.clone(), hub.clone(), shutdown.clone());
            parts.spawn(async move { serviceproxy::run(&config.table, hub, shutdown).await });
        }
        if config.enable_dns {
            let dns = dns::DnsConfig {
                cluster_domain: config.cluster_domain.clone(),
                service_cidr: config.service_cidr.clone(),
                listen: config.dns_listen.clone(),
                resolv_conf: config.resolv_conf.clone(),
            };
            parts.spawn(dns::run(dns, hub.clone(), shutdown.clone()));
        }
        Ok(parts)
    }
}

/// Waits for `shutdown`, then for all parts; a part that ends earlier is an error.
async fn finish(mut parts: JoinSet<()>, shutdown: &CancellationToken) -> Result<(), Error> {
    let early = tokio::select! {
        biased;
        () = shutdown.cancelled() => false,
        _ = parts.join_next() => true,
    };
    if early && !shutdown.is_cancelled() {
        return Err(Error::Stopped);
    }
    while let Some(ended) = parts.join_next().await {
        if ended.is_err() {
            return Err(Error::Stopped);
        }
    }
    Ok(())
}
