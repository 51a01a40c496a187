//! What outlives snapshots, and how each thing follows the next one: backends, sites, endpoints, counters, usage. One step of
//! [`super::Hub::publish`] each, all under its lock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;

use super::plugins::{Place, Plugins, Waiting};
use super::{PortKey, SiteKey, View, proxied_ports};
use crate::backend::{Backend, BackendCell, EndpointState, Identity, Places};
use crate::balance::Control;
use crate::balance::budget::Budget;
use crate::balance::geo::Geo;
use crate::balance::rate::Limiter;
use crate::balance::shared::Shared;
use crate::balance::state::PortState;
use crate::balance::table::Table;
use crate::plugin::Binding;
use crate::policy::RequestPolicy;
use crate::proxy::site::{L4, Site, SiteCell, SiteMode, accept_proxy, compile as compile_site};
use crate::route::{HttpTable, Resolve, Rule, Weighted};
use crate::snapshot::routes::{BackendRef, HostPort, ListenerPlan, RuleId, RulePlan};
use crate::snapshot::{AppProtocol, EndpointPlan, NodePlan, PortPlan, Protocol, ServiceKey, ServicePlan, Snapshot};
use crate::stats::{ListenerStats, PodUsage, RequestStats, RouteStats, ServiceStats};

/// A Pod's usage is kept this long after its last endpoint went, so that a billing reader does not miss its end.
pub(super) const USAGE_KEPT_SECONDS: i64 = 3_600;
/// Pause between searches for usage that may be forgotten.
const CLEANUP_SECONDS: i64 = 60;
/// Beyond this many usage entries those of Pods that are gone are dropped at once.
const MAX_USAGE_ENTRIES: usize = 100_000;

/// [`RuleId::kind`] of a Service's own port.
pub(super) const SERVICE_RULE: &str = "Service";

#[derive(Debug, Default)]
pub(super) struct State {
    pub ports: BTreeMap<PortKey, Port>,
    pub sites: BTreeMap<SiteKey, Arc<SiteCell>>,
    pub listeners: BTreeMap<SiteKey, Arc<ListenerStats>>,
    /// Requests by image, and the images of Pods; empty unless image metrics are on.
    pub images: BTreeMap<Arc<str>, Arc<RequestStats>>,
    pub pod_images: HashMap<Arc<str>, Arc<RequestStats>>,
    pub routes: BTreeMap<RuleId, Arc<RouteStats>>,
    /// Rules in force by the address of their plan, which they keep: a rule is compiled once for all listeners and snapshots that have it.
    rules: HashMap<usize, Weak<Rule>>,
    budgets: BTreeMap<RuleId, Arc<Budget>>,
    /// By [`crate::policy::RateLimit::id`].
    limiters: BTreeMap<Arc<str>, Arc<Limiter>>,
    node: Arc<NodePlan>,
    pub geo: Arc<Geo>,
    pub shared: Arc<Shared>,
    pub endpoints: HashMap<EndpointKey, Interned>,
    pub services: BTreeMap<ServiceKey, Arc<ServiceStats>>,
    pub plugins: Plugins,
    pub usage: BTreeMap<Arc<str>, Arc<PodUsage>>,
    next_endpoint_id: u64,
    /// Unix seconds of the next search for usage to forget.
    next_cleanup: i64,
}

#[derive(Debug)]
pub(super) struct Port {
    pub cell: Arc<BackendCell>,
    state: Arc<PortState>,
}

/// An address as one Service port uses it, for its own traffic and for that of routes. Others that list the address know nothing of it:
/// what one of them finds wrong, or checks, is judged by its own policy.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct EndpointKey {
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
pub(super) struct Interned {
    pub state: Arc<EndpointState>,
    users: usize,
}

impl State {
    pub fn update(
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
    pub fn remove(&mut self, plan: &ServicePlan, routed: &BTreeSet<BackendRef>) {
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
    pub fn add_routed(&mut self, before: &BTreeSet<BackendRef>, snapshot: &Snapshot, threads: usize) {
        for backend in snapshot.routed.difference(before) {
            match snapshot.services.get(&backend.service) {
                Some(plan) => self.set_routed(backend, plan, threads),
                None => drop(self.routed_cell(backend, threads)),
            }
        }
    }

    /// Forgets the Service ports that no listener sends to any more. Their cells stay as they are: a request that found its rule just
    /// before still has to find an endpoint.
    pub fn drop_routed(&mut self, before: &BTreeSet<BackendRef>, snapshot: &Snapshot) {
        for backend in before.difference(&snapshot.routed) {
            let key = PortKey::routed(backend);
            if let Some(port) = self.ports.remove(&key) {
                self.release(&key, &port.cell.load());
                // Whoever sends there again needs the new cell.
                self.rules.clear();
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
        let (places, plugin) = (
            Places { plans: endpoints.clone(), node: self.node.clone() },
            self.plugin_of_port(key, plan, port, threads),
        );
        let states = endpoints.iter().map(|endpoint| self.acquire(key, endpoint, threads)).collect();
        Backend::new(identity, states, table).with_plugin(places, plugin)
    }

    /// The plugin that a Service has for its endpoints.
    fn plugin_of_port(
        &mut self,
        key: &PortKey,
        plan: &ServicePlan,
        port: &PortPlan,
        threads: usize,
    ) -> Option<Arc<Binding>> {
        let wanted = port.policy.plugin.as_ref().filter(|_| port.app != AppProtocol::Tcp);
        // A cell that a route made before its Service came has served nobody.
        let known = self.ports.get(key).is_some_and(|known| *known.cell.load().uid == *plan.uid);
        let place = Place::Port(key.clone());
        let (plugin, waits) = self.plugins.bind(place, wanted, known, (&self.geo, threads));
        self.plugins.note(Waiting::Port(key.clone()), waits);
        plugin
    }

    /// Compiles what waits for modules.
    pub fn rebind(&mut self, snapshot: &Snapshot, threads: usize) {
        for waiting in std::mem::take(&mut self.plugins.waiting) {
            match waiting {
                Waiting::Site(SiteKey::Listener(port)) => {
                    if let Some(plan) = snapshot.listeners.get(&port) {
                        self.set_listener(port, plan, threads);
                    }
                }
                // A Service's own port has no rules that plugins are bound to.
                Waiting::Site(SiteKey::Service(_)) => {}
                Waiting::Port(key) => {
                    let Some(plan) = snapshot.services.get(&key.service) else { continue };
                    let mut ports = plan.ports.iter();
                    if let Some(port) = ports.find(|port| port.port == key.port && port.protocol == key.protocol) {
                        self.set_port(&key, plan, port, threads);
                    }
                }
            }
        }
    }

    fn set_listener(&mut self, port: HostPort, plan: &ListenerPlan, threads: usize) {
        let mut cells = Cells { state: self, threads, waits: false };
        let site = compile_site(plan, port.port, &mut cells);
        let (key, waits) = (SiteKey::Listener(port), cells.waits);
        self.plugins.note(Waiting::Site(key.clone()), waits);
        self.set_site(key, site, threads);
    }

    /// Whether the own node is somewhere else than before.
    pub fn set_node(&mut self, node: &NodePlan) -> bool {
        let place = |node: &NodePlan| (node.name.clone(), node.zone.clone(), node.region.clone());
        let moved = place(&self.node) != place(node);
        self.node = Arc::new(node.clone());
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
    pub fn update_listeners(&mut self, old: &Snapshot, snapshot: &Snapshot, threads: usize) {
        for (port, plan) in &snapshot.listeners {
            if old.listeners.get(port).is_none_or(|before| !Arc::ptr_eq(before, plan)) {
                self.set_listener(*port, plan, threads);
            }
        }
        for port in old.listeners.keys().filter(|port| !snapshot.listeners.contains_key(port)) {
            self.listeners.remove(&SiteKey::Listener(*port));
            if let Some(site) = self.sites.remove(&SiteKey::Listener(*port)) {
                site.store(Arc::new(Site::gone()));
            }
        }
        self.rules.retain(|_, rule| rule.strong_count() > 0);
        self.routes.retain(|_, stats| Arc::strong_count(stats) > 1);
        self.budgets.retain(|_, budget| Arc::strong_count(budget) > 1);
        self.limiters.retain(|_, limiter| Arc::strong_count(limiter) > 1);
        let (routes, ports) = (&self.routes, &self.ports);
        self.plugins.retain(|place| match place {
            Place::Rule(id) => routes.contains_key(id),
            Place::Port(key) => ports.contains_key(key),
        });
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

    pub fn forget_old_usage(&mut self, now: i64) {
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
    /// A plugin of theirs waits for its module.
    waits: bool,
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

    fn plugin(&mut self, id: &RuleId, policy: &RequestPolicy) -> Option<Arc<Binding>> {
        let State { plugins, routes, geo, .. } = &mut *self.state;
        let known = routes.contains_key(id);
        let (plugin, waits) = plugins.bind(Place::Rule(id.clone()), policy.plugin.as_ref(), known, (geo, self.threads));
        self.waits |= waits;
        plugin
    }

    fn rule(&mut self, plan: &Arc<RulePlan>) -> Arc<Rule> {
        let address = Arc::as_ptr(plan).addr();
        // With a plugin it depends on more than its plan: whether the module is there yet.
        let known = self.state.rules.get(&address).filter(|_| plan.policy.plugin.is_none());
        let known = known.and_then(Weak::upgrade).filter(|rule| rule.is_of(plan));
        known.unwrap_or_else(|| {
            let rule = Arc::new(Rule::new(plan, self));
            self.state.rules.insert(address, Arc::downgrade(&rule));
            rule
        })
    }
}

/// Unix seconds.
pub(super) fn now_seconds() -> i64 {
    k8s_openapi::jiff::Timestamp::now().as_second()
}
