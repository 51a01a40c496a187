//! The one place where a new [`Snapshot`] takes effect.
//!
//! [`Hub::publish`] first replaces the backends that listeners read (so a change reaches traffic within the call), then
//! wakes DNS, nftables and the listener manager. It does no I/O and is called by the watch loop, or by hand in tests
//! and benchmarks.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::backend::{Backend, BackendCell, EndpointState, Identity};
use crate::balance::Control;
use crate::balance::budget::Budget;
use crate::balance::geo::Geo;
use crate::balance::rate::Limiter;
use crate::balance::shared::Shared;
use crate::balance::state::PortState;
use crate::balance::table::Table;
use crate::policy::RequestPolicy;
use crate::proxy::site::{L4, Site, SiteCell, SiteMode, accept_proxy, compile as compile_site};
use crate::route::{HttpTable, Resolve, Rule, Weighted};
use crate::snapshot::routes::{BackendRef, HostPort, RuleId};
use crate::snapshot::{AppProtocol, EndpointPlan, NodePlan, PortPlan, Protocol, ServiceKey, ServicePlan, Snapshot};
use crate::stats::{
    ConfigStats, ListenerStats, ListenerTotals, PodTotals, PodUsage, RequestStats, RequestTotals, RouteStats,
    ServiceStats, ServiceTotals,
};

/// A Pod's usage is kept this long after its last endpoint went, so that a billing reader does not miss its end.
const USAGE_KEPT_SECONDS: i64 = 3_600;
/// Pause between searches for usage that may be forgotten.
const CLEANUP_SECONDS: i64 = 60;
/// Beyond this many usage entries those of Pods that are gone are dropped at once.
const MAX_USAGE_ENTRIES: usize = 100_000;

/// Images that are counted on their own; further ones are added up as [`OTHER_IMAGES`].
const MAX_IMAGES: usize = 500;
/// Stands for the images beyond.
const OTHER_IMAGES: &str = "(other)";
/// [`RuleId::kind`] of a Service's own port.
const SERVICE_RULE: &str = "Service";

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
    /// How snapshots take effect.
    pub config_stats: ConfigStats,
}

#[derive(Debug, Default)]
struct State {
    ports: BTreeMap<PortKey, Port>,
    sites: BTreeMap<SiteKey, Arc<SiteCell>>,
    listeners: BTreeMap<SiteKey, Arc<ListenerStats>>,
    /// Requests by image, and the images of Pods; empty unless image metrics are on.
    images: BTreeMap<Arc<str>, Arc<RequestStats>>,
    pod_images: HashMap<Arc<str>, Arc<RequestStats>>,
    routes: BTreeMap<RuleId, Arc<RouteStats>>,
    budgets: BTreeMap<RuleId, Arc<Budget>>,
    /// By [`crate::policy::RateLimit::id`].
    limiters: BTreeMap<Arc<str>, Arc<Limiter>>,
    node: NodePlan,
    geo: Arc<Geo>,
    shared: Arc<Shared>,
    endpoints: HashMap<EndpointKey, Interned>,
    services: BTreeMap<ServiceKey, Arc<ServiceStats>>,
    usage: BTreeMap<Arc<str>, Arc<PodUsage>>,
    next_endpoint_id: u64,
    /// Unix seconds of the next search for usage to forget.
    next_cleanup: i64,
}

#[derive(Debug)]
struct Port {
    cell: Arc<BackendCell>,
    state: Arc<PortState>,
}

/// An address as one Service port uses it, for its own traffic and for that of routes. Others that list the address know nothing of it:
/// what one of them finds wrong, or checks, is judged by its own policy.
#[derive(Debug, PartialEq, Eq, Hash)]
struct EndpointKey {
    service: ServiceKey,
    port: u16,
    protocol: Protocol,
    addr: SocketAddr,
    pod: Option<Arc<str>>,
}

impl EndpointKey {
    fn new(port: &PortKey, addr: SocketAddr, pod: Option<&Arc<str>>) -> Self {
        let PortKey { service, port, protocol, view: _ } = port;
        Self { service: service.clone(), port: *port, protocol: *protocol, addr, pod: pod.cloned() }
    }
}

/// An endpoint's state and how many backends hold it.
#[derive(Debug)]
struct Interned {
    state: Arc<EndpointState>,
    users: usize,
}

impl Hub {
    pub fn new(threads: usize) -> Self {
        let empty = Arc::new(Snapshot::default());
        let state = State::default();
        Self {
            threads,
            current: ArcSwap::new(empty.clone()),
            changed: watch::channel(empty).0,
            published: AtomicBool::new(false),
            geo: state.geo.clone(),
            shared: state.shared.clone(),
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

impl State {
    fn update(
        &mut self,
        plan: &ServicePlan,
        before: Option<&ServicePlan>,
        routed: &BTreeSet<BackendRef>,
        threads: usize,
    ) {
        for port in proxied_ports(plan) {
            let key = PortKey::outside(plan, port);
            self.set_port(&key, plan, port, threads);
            self.set_service_site(&key, port, threads);
        }
        for backend in routed_ports(routed, &plan.key) {
            self.set_routed(backend, plan, threads);
        }
        let kept: BTreeSet<PortKey> = proxied_ports(plan).map(|port| PortKey::outside(plan, port)).collect();
        for (plan, port) in before.into_iter().flat_map(|plan| proxied_ports(plan).map(move |port| (plan, port))) {
            let key = PortKey::outside(plan, port);
            if !kept.contains(&key) {
                self.remove_outside(&key);
            }
        }
    }

    /// Follows a Service that is gone. What routes send to stays, without endpoints, until no route names it.
    fn remove(&mut self, plan: &ServicePlan, routed: &BTreeSet<BackendRef>) {
        proxied_ports(plan).for_each(|port| self.remove_outside(&PortKey::outside(plan, port)));
        for backend in routed_ports(routed, &plan.key) {
            self.empty_port(&PortKey::routed(backend));
        }
        self.services.remove(&plan.key);
    }

    fn remove_outside(&mut self, key: &PortKey) {
        self.listeners.remove(&SiteKey::Service(key.clone()));
        if let Some(site) = self.sites.remove(&SiteKey::Service(key.clone())) {
            site.store(Arc::new(Site::gone()));
        }
        self.remove_port(key);
    }

    fn remove_port(&mut self, key: &PortKey) {
        self.empty_port(key);
        self.ports.remove(key);
    }

    /// Connections that outlive their Service find nobody to ask.
    fn empty_port(&mut self, key: &PortKey) {
        let Some(port) = self.ports.get(key) else { return };
        let old = port.cell.load_full();
        port.cell.store(Arc::new(Backend::empty(Identity {
            service: old.service.clone(),
            uid: old.uid.clone(),
            port: old.port,
            app: old.app,
            policy: Arc::default(),
            state: old.state.clone(),
            stats: old.stats.clone(),
        })));
        self.release(key, &old);
    }

    /// Takes over which Service ports routes send to from now on.
    fn add_routed(&mut self, before: &BTreeSet<BackendRef>, snapshot: &Snapshot, threads: usize) {
        for backend in snapshot.routed.difference(before) {
            match snapshot.services.get(&backend.service) {
                Some(plan) => self.set_routed(backend, plan, threads),
                None => drop(self.routed_cell(backend, threads)),
            }
        }
    }

    /// Forgets the Service ports that no listener sends to any more. Their cells stay as they are: a request that found its rule just
    /// before still has to find an endpoint.
    fn drop_routed(&mut self, before: &BTreeSet<BackendRef>, snapshot: &Snapshot) {
        for backend in before.difference(&snapshot.routed) {
            let key = PortKey::routed(backend);
            if let Some(port) = self.ports.remove(&key) {
                self.release(&key, &port.cell.load());
            }
        }
    }

    fn set_routed(&mut self, backend: &BackendRef, plan: &ServicePlan, threads: usize) {
        let key = PortKey::routed(backend);
        match plan.ports.iter().find(|port| port.port == backend.port && port.protocol == backend.protocol) {
            Some(port) => self.set_port(&key, plan, port, threads),
            None => self.empty_port(&key),
        }
    }

    /// The cell that routes send to; without endpoints if the Service is not there (yet).
    fn routed_cell(&mut self, backend: &BackendRef, threads: usize) -> Arc<BackendCell> {
        let key = PortKey::routed(backend);
        if let Some(port) = self.ports.get(&key) {
            return port.cell.clone();
        }
        let state: Arc<PortState> = Arc::default();
        let empty = Backend::empty(Identity {
            service: backend.service.clone(),
            uid: "".into(),
            port: backend.port,
            app: AppProtocol::Http,
            policy: Arc::default(),
            state: state.clone(),
            stats: self.service_stats(&backend.service, threads),
        });
        let cell = Arc::new(ArcSwap::from_pointee(empty));
        self.ports.insert(key, Port { cell: cell.clone(), state });
        cell
    }

    fn set_port(&mut self, key: &PortKey, plan: &ServicePlan, port: &PortPlan, threads: usize) {
        // New endpoints are taken before old ones are released, so that a shared one is never marked removed.
        let backend = self.backend(key, plan, port, threads);
        match self.ports.get(key) {
            Some(known) => {
                let old = known.cell.swap(Arc::new(backend));
                self.release(key, &old);
            }
            None => {
                let state = backend.state.clone();
                self.ports.insert(key.clone(), Port { cell: Arc::new(ArcSwap::from_pointee(backend)), state });
            }
        }
    }

    fn backend(&mut self, key: &PortKey, plan: &ServicePlan, port: &PortPlan, threads: usize) -> Backend {
        let endpoints = if key.view == View::Outside { &port.external } else { &port.routed };
        let identity = Identity {
            service: plan.key.clone(),
            uid: plan.uid.as_str().into(),
            port: port.port,
            app: port.app,
            policy: port.policy.clone(),
            state: self.ports.get(key).map(|port| port.state.clone()).unwrap_or_default(),
            stats: self.service_stats(&plan.key, threads),
        };
        let table = Table::new(endpoints, &port.policy, &self.node, &self.geo);
        Backend::new(identity, endpoints.iter().map(|endpoint| self.acquire(key, endpoint, threads)).collect(), table)
    }

    /// Whether the own node is somewhere else than before.
    fn set_node(&mut self, node: &NodePlan) -> bool {
        let place = |node: &NodePlan| (node.name.clone(), node.zone.clone(), node.region.clone());
        let moved = place(&self.node) != place(node);
        self.node = node.clone();
        moved
    }

    /// What the policy of a rule counts, going on with what was counted before.
    fn control(&mut self, id: &RuleId, policy: &RequestPolicy) -> Control {
        let limiters = policy.rate_limits.iter().map(|rule| {
            let known = self.limiters.get(&rule.id).filter(|limiter| limiter.rule == *rule).cloned();
            let limiter = known.unwrap_or_else(|| Arc::new(Limiter::new(rule.clone(), self.shared.clone())));
            self.limiters.insert(rule.id.clone(), limiter.clone());
            limiter
        });
        let limiters = limiters.collect();
        let budget = policy.retries.budget_percent.map(|_| self.budgets.entry(id.clone()).or_default().clone());
        Control::new(limiters, budget)
    }

    fn service_stats(&mut self, key: &ServiceKey, threads: usize) -> Arc<ServiceStats> {
        self.services.entry(key.clone()).or_insert_with(|| Arc::new(ServiceStats::new(threads))).clone()
    }

    fn route_stats(&mut self, id: &RuleId, threads: usize) -> Arc<RouteStats> {
        self.routes.entry(id.clone()).or_insert_with(|| Arc::new(RouteStats::new(threads))).clone()
    }

    /// What a Service's own port serves: everything goes to its endpoints.
    fn set_service_site(&mut self, key: &PortKey, port: &PortPlan, threads: usize) {
        let Some(cell) = self.ports.get(key).map(|port| port.cell.clone()) else { return };
        let id = RuleId {
            kind: SERVICE_RULE,
            namespace: key.service.namespace.clone(),
            name: key.service.name.clone(),
            ..RuleId::default()
        };
        let stats = self.route_stats(&id, threads);
        let mode = match (port.app, port.protocol) {
            (AppProtocol::Http | AppProtocol::H2c, Protocol::Tcp) => {
                let mut rule = Rule::of_service(id, cell, port.requests.clone(), stats);
                rule.control = self.control(&rule.id, &port.requests);
                SiteMode::Http(Arc::new(HttpTable::only(Arc::new(rule))))
            }
            (_, protocol) => {
                let share = Weighted::all_of(cell);
                let idle_timeout = port.requests.idle_timeout;
                let l4 = Arc::new(L4 { id, shares: Box::new([share]), total_weight: 1, idle_timeout, stats });
                if protocol == Protocol::Tcp { SiteMode::Tcp(l4) } else { SiteMode::Udp(l4) }
            }
        };
        let accept_proxy = accept_proxy(port.accept_proxy.as_ref());
        self.set_site(SiteKey::Service(key.clone()), Site { mode, accept_proxy, stats: Arc::default() }, threads);
    }

    fn set_site(&mut self, key: SiteKey, mut site: Site, threads: usize) {
        site.stats = self.listeners.entry(key.clone()).or_insert_with(|| Arc::new(ListenerStats::new(threads))).clone();
        match self.sites.get(&key) {
            Some(cell) => cell.store(Arc::new(site)),
            None => drop(self.sites.insert(key, Arc::new(ArcSwap::from_pointee(site)))),
        }
    }

    /// Compiles the listeners that changed.
    fn update_listeners(&mut self, old: &Snapshot, snapshot: &Snapshot, threads: usize) {
        for (port, plan) in &snapshot.listeners {
            if old.listeners.get(port).is_none_or(|before| !Arc::ptr_eq(before, plan)) {
                let site = compile_site(plan, port.port, &mut Cells { state: self, threads });
                self.set_site(SiteKey::Listener(*port), site, threads);
            }
        }
        for port in old.listeners.keys().filter(|port| !snapshot.listeners.contains_key(port)) {
            self.listeners.remove(&SiteKey::Listener(*port));
            if let Some(site) = self.sites.remove(&SiteKey::Listener(*port)) {
                site.store(Arc::new(Site::gone()));
            }
        }
        self.routes.retain(|_, stats| Arc::strong_count(stats) > 1);
        self.budgets.retain(|_, budget| Arc::strong_count(budget) > 1);
        self.limiters.retain(|_, limiter| Arc::strong_count(limiter) > 1);
    }

    fn acquire(&mut self, port: &PortKey, plan: &EndpointPlan, threads: usize) -> Arc<EndpointState> {
        let pod = plan.pod_uid.as_ref().map(|uid| {
            let usage = self.usage.entry(uid.clone()).or_insert_with(|| Arc::new(PodUsage::new(threads)));
            usage.gone_since.store(0, Relaxed);
            if let Some(image) = self.pod_images.get(uid) {
                usage.set_image(image.clone());
            }
            (uid.clone(), usage.clone())
        });
        let id = &mut self.next_endpoint_id;
        let interned =
            self.endpoints.entry(EndpointKey::new(port, plan.addr, plan.pod_uid.as_ref())).or_insert_with(|| {
                *id += 1;
                Interned { state: Arc::new(EndpointState::new(*id, plan.addr, pod, threads)), users: 0 }
            });
        interned.users += 1;
        interned.state.clone()
    }

    fn release(&mut self, port: &PortKey, backend: &Backend) {
        for endpoint in &backend.endpoints {
            let key = EndpointKey::new(port, endpoint.addr, endpoint.pod.as_ref().map(|(uid, _)| uid));
            let Some(interned) = self.endpoints.get_mut(&key) else { continue };
            interned.users -= 1;
            if interned.users == 0 {
                endpoint.set_removed(true);
                if let Some(usage) = endpoint.usage() {
                    usage.gone_since.store(now_seconds(), Relaxed);
                }
                self.endpoints.remove(&key);
            }
        }
    }

    fn forget_old_usage(&mut self, now: i64) {
        let excess = self.usage.len() > MAX_USAGE_ENTRIES;
        if now < self.next_cleanup && !excess {
            return;
        }
        self.next_cleanup = now + CLEANUP_SECONDS;
        self.usage.retain(|_, usage| {
            let in_use = Arc::strong_count(usage) > 1;
            in_use || (!excess && now - usage.gone_since.load(Relaxed) < USAGE_KEPT_SECONDS)
        });
    }
}

/// The routed ports of a Service.
fn routed_ports<'a>(
    routed: &'a BTreeSet<BackendRef>,
    service: &'a ServiceKey,
) -> impl Iterator<Item = &'a BackendRef> + 'a {
    let first = BackendRef { service: service.clone(), port: 0, protocol: Protocol::Tcp };
    routed.range(first..).take_while(move |backend| backend.service == *service)
}

/// Where compiled rules find cells and counters.
struct Cells<'a> {
    state: &'a mut State,
    threads: usize,
}

impl Resolve for Cells<'_> {
    fn cell(&mut self, backend: &BackendRef) -> Option<Arc<BackendCell>> {
        Some(self.state.routed_cell(backend, self.threads))
    }
    fn stats(&mut self, id: &RuleId) -> Arc<RouteStats> {
        self.state.route_stats(id, self.threads)
    }

    fn control(&mut self, id: &RuleId, policy: &RequestPolicy) -> Control {
        self.state.control(id, policy)
    }
}

fn now_seconds() -> i64 {
    k8s_openapi::jiff::Timestamp::now().as_second()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{PlanConfig, plan};
    use serde_json::json;

    /// Services by name, each with the endpoints given as `(last octet, Pod UID)`.
    fn snapshot(services: &[(&str, &[(u8, &str)])]) -> Snapshot {
        let mut objects = Vec::new();
        let mut slices = Vec::new();
        for (name, endpoints) in services {
            let service = json!({"metadata": {"name": name, "namespace": "d"},
                "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
            objects.push(serde_json::from_value(service).expect("a Service"));
            let endpoints: Vec<_> = endpoints
                .iter()
                .map(|(octet, uid)| {
                    json!({"addresses": [format!("10.0.0.{octet}")], "targetRef": {"kind": "Pod", "uid": uid}})
                })
                .collect();
            let slice = json!({"metadata": {"name": name, "namespace": "d",
                "labels": {"kubernetes.io/service-name": name}}, "addressType": "IPv4",
                "ports": [{"port": 8080}], "endpoints": endpoints});
            slices.push(serde_json::from_value(slice).expect("an EndpointSlice"));
        }
        plan(&objects, &slices, &PlanConfig::default())
    }

    fn cell(hub: &Hub, name: &str) -> Arc<BackendCell> {
        let service = ServiceKey::new("d", name);
        hub.cell(&PortKey { service, port: 80, protocol: Protocol::Tcp, view: View::Outside }).expect("a cell")
    }

    #[test]
    fn states_outlive_snapshots_and_end_with_their_service() {
        let hub = Hub::new(1);
        hub.publish(snapshot(&[("a", &[(1, "p1"), (2, "p2")]), ("b", &[(1, "p1")])]));
        let (a, b) = (cell(&hub, "a"), cell(&hub, "b"));
        let backend = a.load_full();
        let (first, second, of_b) = (&backend.endpoints[0], &backend.endpoints[1], b.load().endpoints[0].clone());
        hub.publish(snapshot(&[("a", &[(1, "p1")]), ("b", &[(1, "p1")])]));
        assert!(!first.is_removed() && second.is_removed());
        assert!(Arc::ptr_eq(first, &a.load().endpoints[0]) && Arc::ptr_eq(&of_b, &b.load().endpoints[0]));
        hub.publish(snapshot(&[("a", &[(3, "p3")])]));
        assert!(first.is_removed() && of_b.is_removed());
        assert!(b.load().endpoints.is_empty(), "connections of a Service that is gone find nobody");
        assert!(Arc::ptr_eq(&a, &cell(&hub, "a")));
    }

    #[test]
    fn what_one_service_finds_wrong_with_an_address_is_nothing_to_another() {
        use crate::backend::Health;
        use crate::balance::Outcome;
        use crate::policy::{Outlier, ServicePolicy};
        let hub = Hub::new(1);
        let mut all = snapshot(&[("a", &[(1, "p1")]), ("b", &[(1, "p1")])]);
        let routed = BackendRef { service: ServiceKey::new("d", "a"), port: 80, protocol: Protocol::Tcp };
        all.routed = Arc::new(BTreeSet::from([routed.clone()]));
        hub.publish(all);
        let own = cell(&hub, "a").load().endpoints[0].clone();
        let other = cell(&hub, "b").load().endpoints[0].clone();
        let of_routes = hub.cell(&PortKey::routed(&routed)).expect("a cell").load().endpoints[0].clone();
        let outlier = Outlier {
            consecutive_errors: 1,
            failure_percent: None,
            minimum_requests: 1,
            interval: std::time::Duration::from_secs(10),
            base_ejection: std::time::Duration::from_secs(60),
            max_ejection: std::time::Duration::from_secs(60),
            max_ejected_percent: 100,
            panic_percent: 0,
        };
        let policy = ServicePolicy { outlier: Some(outlier), ..ServicePolicy::default() };
        own.report(&policy, Outcome::Status(500, std::time::Duration::ZERO), 0);
        assert_eq!((own.health(), other.health()), (Health::Ejected, Health::Healthy));
        other.set_check_failing(true, Instant::now());
        assert_eq!((own.health(), other.health()), (Health::Ejected, Health::Failing));
        assert!(Arc::ptr_eq(&own, &of_routes), "the Service's own traffic and routes learn from each other");
        assert!(Arc::ptr_eq(&own.pod.as_ref().expect("a Pod").1, &other.pod.as_ref().expect("a Pod").1), "one bill");
    }

    #[test]
    fn a_request_finds_the_endpoints_of_a_backend_that_its_route_has_just_lost() {
        let hub = Hub::new(1);
        let published = |routed: &[BackendRef]| {
            let mut snapshot = snapshot(&[("a", &[(1, "p1")])]);
            snapshot.routed = Arc::new(routed.iter().cloned().collect());
            hub.publish(snapshot);
        };
        let backend = BackendRef { service: ServiceKey::new("d", "a"), port: 80, protocol: Protocol::Tcp };
        published(std::slice::from_ref(&backend));
        let found = hub.cell(&PortKey::routed(&backend)).expect("a cell");
        published(&[]);
        assert!(hub.cell(&PortKey::routed(&backend)).is_none());
        assert_eq!(found.load().endpoints.len(), 1);
    }

    #[test]
    fn an_address_taken_over_by_another_pod_starts_afresh() {
        let hub = Hub::new(1);
        hub.publish(snapshot(&[("a", &[(1, "old")])]));
        let old = cell(&hub, "a").load().endpoints[0].clone();
        hub.publish(snapshot(&[("a", &[(1, "new")])]));
        let new = cell(&hub, "a").load().endpoints[0].clone();
        assert!(old.is_removed() && !new.is_removed() && old.id != new.id);
    }

    #[test]
    fn usage_is_kept_for_a_while_after_the_pod_and_then_forgotten() {
        let hub = Hub::new(1);
        hub.publish(snapshot(&[("a", &[(1, "p1")])]));
        cell(&hub, "a").load().endpoints[0].usage().expect("usage").request(0);
        hub.publish(snapshot(&[]));
        assert_eq!(hub.usage()[0].1.requests, 1);
        hub.state.lock().forget_old_usage(now_seconds() + USAGE_KEPT_SECONDS + 1);
        assert!(hub.usage().is_empty());
    }
}
