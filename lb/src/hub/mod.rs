//! The one place where a new [`Snapshot`] takes effect.
//!
//! [`Hub::publish`] first replaces the backends that listeners read (so a change reaches traffic within the call), then
//! wakes DNS, nftables and the listener manager. It does no I/O and is called by the watch loop, or by hand in tests
//! and benchmarks.
//!
//! A plugin that a policy asks for takes its place when its module is there; until then what was there before stays (`plugins`).

mod plugins;
mod state;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use scaleup_plugins::{PluginKey, Registry};
use tokio::sync::watch;

use crate::backend::Backend;
#[cfg(test)]
use crate::backend::BackendCell;
use crate::balance::geo::Geo;
use crate::balance::shared::Shared;
use crate::plugin::GenerationTotals;
use crate::proxy::site::SiteCell;
use crate::snapshot::routes::{BackendRef, HostPort, RuleId};
use crate::snapshot::{PortPlan, Protocol, ServiceKey, ServicePlan, Snapshot};
use crate::stats::{ConfigStats, ListenerTotals, PodTotals, RequestStats, RequestTotals, ServiceTotals};
use plugins::Plugins;
use state::{SERVICE_RULE, State, now_seconds};

/// Images that are counted on their own; further ones are added up as [`OTHER_IMAGES`].
const MAX_IMAGES: usize = 500;
/// Stands for the images beyond.
const OTHER_IMAGES: &str = "(other)";

/// A port of a Service as one kind of traffic sees it: the unit that endpoints are chosen from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PortKey {
    pub service: ServiceKey,
    pub port: u16,
    pub protocol: Protocol,
    pub view: View,
}

/// Whose traffic it is: traffic policies may leave it different endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum View {
    /// Of the Service's own load balancer ports and node ports.
    Outside,
    /// Of routes.
    Routed,
}

impl PortKey {
    /// A Service's own port.
    pub fn outside(plan: &ServicePlan, port: &PortPlan) -> Self {
        Self { service: plan.key.clone(), port: port.port, protocol: port.protocol, view: View::Outside }
    }

    /// What a route sends to.
    pub fn routed(backend: &BackendRef) -> Self {
        Self { service: backend.service.clone(), port: backend.port, protocol: backend.protocol, view: View::Routed }
    }
}

/// What a listener serves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum SiteKey {
    /// A Service's own port.
    Service(PortKey),
    /// Routes on a port of the host.
    Listener(HostPort),
}

/// Current snapshot, run-time state of what it names, and whom to tell about the next one.
#[derive(Debug)]
pub(crate) struct Hub {
    threads: usize,
    current: ArcSwap<Snapshot>,
    changed: watch::Sender<Arc<Snapshot>>,
    published: AtomicBool,
    state: Mutex<State>,
    /// Where clients are.
    pub geo: Arc<Geo>,
    /// Where shared rate limits are counted.
    pub shared: Arc<Shared>,
    /// Who may choose endpoints.
    plugins: Arc<Registry>,
    /// How snapshots take effect.
    pub config_stats: ConfigStats,
}

impl Hub {
    /// Without plugins.
    #[cfg(test)]
    pub fn new(threads: usize) -> Self {
        Self::with_plugins(threads, Arc::default())
    }

    /// `plugins` are those that policies may name.
    pub fn with_plugins(threads: usize, plugins: Arc<Registry>) -> Self {
        let empty = Arc::new(Snapshot::default());
        let mut state = State::default();
        state.plugins = Plugins::new(plugins.clone());
        Self {
            threads,
            current: ArcSwap::new(empty.clone()),
            changed: watch::channel(empty).0,
            published: AtomicBool::new(false),
            geo: state.geo.clone(),
            shared: state.shared.clone(),
            plugins,
            state: Mutex::new(state),
            config_stats: ConfigStats::default(),
        }
    }

    /// The snapshot in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Whether there was a snapshot yet.
    pub fn is_published(&self) -> bool {
        self.published.load(Relaxed)
    }

    /// Wakes on every new snapshot (several may be seen as one).
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.changed.subscribe()
    }

    /// The endpoints of a Service port that the snapshot has.
    #[cfg(test)]
    pub fn cell(&self, key: &PortKey) -> Option<Arc<BackendCell>> {
        self.state.lock().ports.get(key).map(|port| port.cell.clone())
    }

    /// What a listener serves.
    pub fn site(&self, key: &SiteKey) -> Option<Arc<SiteCell>> {
        self.state.lock().sites.get(key).cloned()
    }

    /// Makes `snapshot` the one in force.
    pub fn publish(&self, snapshot: Snapshot) {
        self.publish_since(snapshot, None);
    }

    /// Likewise; what asked for it came at `since`.
    pub fn publish_since(&self, snapshot: Snapshot, since: Option<Instant>) {
        let begun = Instant::now();
        let snapshot = Arc::new(snapshot);
        {
            let mut state = self.state.lock();
            let old = self.current.swap(snapshot.clone());
            // What is near depends on where we are.
            let moved = state.set_node(&snapshot.node);
            for (key, plan) in &snapshot.services {
                let before = old.services.get(key);
                if moved || before.is_none_or(|before| !Arc::ptr_eq(before, plan)) {
                    state.update(plan, before.map(|plan| &**plan), &snapshot.routed, self.threads);
                }
            }
            for (key, plan) in &old.services {
                if !snapshot.services.contains_key(key) {
                    state.remove(plan, &snapshot.routed);
                }
            }
            let rerouted = !Arc::ptr_eq(&old.routed, &snapshot.routed);
            if rerouted {
                state.add_routed(&old.routed, &snapshot, self.threads);
            }
            state.update_listeners(&old, &snapshot, self.threads);
            if rerouted {
                state.drop_routed(&old.routed, &snapshot);
            }
            state.forget_old_usage(now_seconds());
        }
        self.published.store(true, Relaxed);
        self.changed.send_replace(snapshot);
        let now = Instant::now();
        self.config_stats.published(now - begun, since.map(|since| now.saturating_duration_since(since)));
    }

    /// Puts bindings in place whose modules have come.
    pub fn rebind(&self) {
        let mut state = self.state.lock();
        let snapshot = self.current.load_full();
        state.rebind(&snapshot, self.threads);
    }

    /// Who may choose endpoints.
    pub fn plugins(&self) -> &Arc<Registry> {
        &self.plugins
    }

    /// Decisions of plugins by plugin and generation.
    pub fn plugin_totals(&self) -> Vec<(PluginKey, BTreeMap<Option<u64>, GenerationTotals>)> {
        self.state.lock().plugins.totals()
    }

    /// Says which image a Pod runs.
    pub fn set_image(&self, pod: &Arc<str>, image: &str) {
        let mut state = self.state.lock();
        let threads = self.threads;
        let full = state.images.len() >= MAX_IMAGES && !state.images.contains_key(image);
        let image: Arc<str> = if full { OTHER_IMAGES.into() } else { image.into() };
        let stats = state.images.entry(image).or_insert_with(|| Arc::new(RequestStats::new(threads))).clone();
        if let Some(usage) = state.usage.get(pod) {
            usage.set_image(stats.clone());
        }
        state.pod_images.insert(pod.clone(), stats);
    }

    /// Forgets the images of Pods that are gone.
    pub fn retain_images(&self, keep: impl Fn(&str) -> bool) {
        self.state.lock().pod_images.retain(|pod, _| keep(pod));
    }

    /// Forgets the image of a Pod that is gone.
    pub fn forget_image(&self, pod: &str) {
        self.state.lock().pod_images.remove(pod);
    }

    /// Pods whose image is known.
    #[cfg(test)]
    pub fn pods_with_images(&self) -> usize {
        self.state.lock().pod_images.len()
    }

    /// Requests by image.
    pub fn images(&self) -> Vec<(Arc<str>, RequestTotals)> {
        self.state.lock().images.iter().map(|(image, stats)| (image.clone(), stats.totals())).collect()
    }

    /// Requests by rule; matches of one rule are added up. Services' own ports are not here.
    pub fn routes(&self) -> Vec<(RuleId, RequestTotals)> {
        let mut rules: BTreeMap<RuleId, RequestTotals> = BTreeMap::new();
        for (id, stats) in self.state.lock().routes.iter().filter(|(id, _)| id.kind != SERVICE_RULE) {
            rules.entry(RuleId { matched: 0, ..id.clone() }).or_default().merge(&stats.totals());
        }
        rules.into_iter().collect()
    }

    /// Connections by listener.
    pub fn listeners(&self) -> Vec<(SiteKey, ListenerTotals)> {
        self.state.lock().listeners.iter().map(|(key, stats)| (key.clone(), stats.totals())).collect()
    }

    /// The backends in force, in the order of their keys.
    pub fn backends(&self) -> Vec<(PortKey, Arc<Backend>)> {
        self.state.lock().ports.iter().map(|(key, port)| (key.clone(), port.cell.load_full())).collect()
    }

    /// The key of a Service's own TCP port.
    #[cfg(test)]
    pub fn services_site(&self, namespace: &str, name: &str, port: u16) -> PortKey {
        PortKey { service: ServiceKey::new(namespace, name), port, protocol: Protocol::Tcp, view: View::Outside }
    }

    /// The endpoints in force of a Service port.
    #[cfg(test)]
    pub fn backend_of(&self, key: &PortKey) -> Option<Arc<Backend>> {
        self.state.lock().ports.get(key).map(|port| port.cell.load_full())
    }

    /// Usage per Pod UID since the process started.
    pub fn usage(&self) -> Vec<(Arc<str>, PodTotals)> {
        self.state.lock().usage.iter().map(|(uid, usage)| (uid.clone(), usage.totals())).collect()
    }

    /// Counters per Service.
    pub fn totals(&self) -> Vec<(ServiceKey, ServiceTotals)> {
        self.state.lock().services.iter().map(|(key, stats)| (key.clone(), stats.totals())).collect()
    }

    /// Endpoints known and what they are doing: address, once for each Service port that lists it, and requests in flight.
    pub fn endpoints(&self) -> Vec<(SocketAddr, u64)> {
        self.state.lock().endpoints.values().map(|e| (e.state.addr, e.state.in_flight())).collect()
    }
}

/// Ports the user-space proxy may have to serve: those reachable from outside.
pub(crate) fn proxied_ports(plan: &ServicePlan) -> impl Iterator<Item = &PortPlan> {
    use crate::snapshot::ServiceType::{LoadBalancer, NodePort};
    let outside = matches!(plan.kind, LoadBalancer | NodePort);
    plan.ports.iter().filter(move |_| outside)
}

#[cfg(test)]
mod tests;
