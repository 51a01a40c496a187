//! The load balancer role: a proxy for Services and routes, the node's service proxy, routes between nodes' pods and
//! cluster DNS.
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

mod access;
mod backend;
mod balance;
mod config;
mod dns;
pub mod explain;
pub mod handover;
mod health;
mod hub;
mod images;
mod listeners;
mod metrics;
mod observe;
mod plugin;
mod podnet;
pub mod policy;
mod proxy;
mod route;
pub mod serviceproxy;
pub mod snapshot;
mod sockets;
mod stats;
mod trace;
mod view;

use std::net::SocketAddr;
use std::sync::Arc;

use kube::Client;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use backend::Health;
pub use config::{Config, Hidden, ProxyConfig};
use hub::Hub;
use listeners::Report;
use listeners::manager::Manager;
use observe::Observers;
pub use observe::{AccessTarget, ObserveConfig};
use proxy::Proxy;
pub use proxy::StartError;
use snapshot::{Compiler, PlanConfig, ServiceKey, Snapshot};
pub use stats::{Durations, ListenerTotals, PodTotals, RequestTotals, ServiceTotals};
pub use view::ViewError;

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
    observers: Arc<Observers>,
    /// Unix milliseconds when counting began.
    since_ms: i64,
    reports: Arc<watch::Sender<Report>>,
    sockets: Arc<listeners::Sockets>,
    dns_stats: dns::DnsStats,
    dns_sockets: Arc<dns::DnsSockets>,
}

/// Assembles the role and registers its metrics.
pub fn build(config: Config, metrics_registry: &mut Registry) -> Lb {
    let hub = Arc::new(Hub::with_plugins(config.thread_count(), config.plugins.clone()));
    let observers = Arc::new(Observers::new(&config.observe));
    metrics::register(metrics_registry, hub.clone(), observers.clone());
    let dns_stats = dns::DnsStats::default();
    dns_stats.register(metrics_registry);
    Lb {
        config: Arc::new(config),
        hub,
        observers,
        since_ms: k8s_openapi::jiff::Timestamp::now().as_millisecond(),
        reports: Arc::new(watch::channel(Report::default()).0),
        sockets: Arc::default(),
        dns_stats,
        dns_sockets: Arc::default(),
    }
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
        })
        .with_plugins(config.plugins.clone());
        let mut statuses = None;
        if config.enable_proxy {
            let ip = config.advertise_ip.to_string();
            parts.spawn(health::events::run(client.clone(), hub.clone(), shutdown.clone()));
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
        if config.enable_nftables {
            let (client, config, shutdown) = (client.clone(), config.clone(), shutdown.clone());
            parts.spawn(async move { podnet::run(client, &config.node_name, &config.table, shutdown).await });
        }
        if config.observe.image_metrics {
            parts.spawn(images::run(client.clone(), hub.clone(), shutdown.clone()));
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

    /// Copies of the sockets that are listened on, for a successor.
    pub fn listening(&self) -> std::io::Result<handover::Handed> {
        Ok(handover::Handed { listening: self.sockets.listening()?, dns: self.dns_sockets.copies()? })
    }

    /// A successor serves the listeners and DNS now: when this role is shut down, idle connections may still ask for something.
    pub fn hand_over(&self) {
        self.sockets.hand_over();
        self.dns_sockets.kept.hand_over();
    }

    /// Takes sockets over from a predecessor: a port that is wanted is served on them instead of being bound. Before [`Lb::run`].
    pub fn adopt(&self, sockets: handover::Handed) {
        self.sockets.adopt(sockets.listening.into_iter().map(|listening| (listening.port, listening.sockets)));
        if self.config.enable_dns {
            self.dns_sockets.adopt(sockets.dns);
        }
    }

    /// Waits until everything is tried that the first complete snapshot asks for; adopted sockets that nobody wants are closed then.
    pub async fn settled(&self) {
        let mut reports = self.reports.subscribe();
        // An error means that the role has ended.
        let _ = reports.wait_for(|report| report.settled).await;
        self.sockets.drop_adopted();
        if self.config.enable_dns {
            self.dns_sockets.settled().await;
        }
        self.dns_sockets.kept.drop_adopted();
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

    /// Endpoints of Service ports (an address for each that lists it) and the requests each is serving now.
    pub fn endpoints(&self) -> Vec<(SocketAddr, u64)> {
        self.hub.endpoints()
    }

    fn start(&self, shutdown: &CancellationToken) -> Result<JoinSet<()>, Error> {
        let (config, hub) = (&self.config, &self.hub);
        let mut parts = JoinSet::new();
        if config.enable_proxy {
            let proxy = Proxy::start(config.thread_count(), &config.proxy, &self.observers).map_err(Error::Start)?;
            let manager =
                Manager::new(hub.clone(), proxy, config.bind_address, self.reports.clone(), self.sockets.clone());
            // What draining connections still log and trace is delivered, too.
            let drained = CancellationToken::new();
            self.observers.start(&mut parts, &drained);
            let (shutdown, grace) = (shutdown.clone(), config.proxy.drain_timeout);
            parts.spawn(async move {
                manager.run(shutdown, grace).await;
                drained.cancel();
            });
        }
        if config.enable_proxy {
            parts.spawn(health::run(hub.clone(), shutdown.clone()));
            parts.spawn(plugin::follow(hub.clone(), shutdown.clone()));
            if let Some(path) = config.geo_database.clone() {
                parts.spawn(balance::geo::run(hub.geo.clone(), path, shutdown.clone()));
            }
            if let Some(url) = config.redis_url.clone() {
                parts.spawn(balance::shared::run(hub.shared.clone(), url, shutdown.clone()));
            }
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
                stats: self.dns_stats.clone(),
                sockets: self.dns_sockets.clone(),
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
