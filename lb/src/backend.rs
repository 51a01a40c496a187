//! Run-time form of a Service port for the proxy: which endpoints, in which state, counted where.
//!
//! A [`Backend`] is immutable and replaced whole; what must survive a replacement (health, in-flight counts, counters,
//! the round-robin position) is shared by `Arc` from one backend to the next. Counters are sharded by proxy thread:
//! only the owning thread writes its shard, so no write needs a locked instruction.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::balance::availability::{self, Availability};
use crate::balance::choose::Chooser;
use crate::balance::latency::Latency;
use crate::balance::outlier::Passive;
use crate::balance::session::Tags;
use crate::balance::state::PortState;
use crate::balance::table::Table;
use crate::balance::{Choice, Outcome, clock};
use crate::plugin::Binding;
use crate::policy::{Algorithm, ServicePolicy};
use crate::snapshot::{AppProtocol, EndpointPlan, NodePlan, ServiceKey};
use crate::stats::{PodUsage, ServiceStats, Shards, add, sub};

/// How long an endpoint that refused a connection is tried only when all others failed.
const SUSPECT_TIME: Duration = Duration::from_secs(1);

/// Per-thread counters of an endpoint.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct EndpointShard {
    in_flight: AtomicU64,
}

/// Whether an endpoint may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// Nothing speaks against it.
    Healthy,
    /// It refused a connection a moment ago: others are preferred.
    Suspect,
    /// It failed too many requests and is left out for a while.
    Ejected,
    /// An active health check fails.
    Failing,
}

/// What is known about one address as an endpoint of one Service port, across snapshots.
#[derive(Debug)]
pub(crate) struct EndpointState {
    /// Unique in this process; key of the upstream pools.
    pub id: u64,
    pub addr: SocketAddr,
    /// UID and cumulative usage of the Pod behind the address, when there is one.
    pub pod: Option<(Arc<str>, Arc<PodUsage>)>,
    shards: Shards<EndpointShard>,
    /// Set when the Service has this endpoint no more: pooled connections are closed instead of kept.
    removed: AtomicBool,
    /// Milliseconds on the process clock until which the endpoint is avoided; 0: healthy.
    suspect_until_ms: AtomicU64,
    /// Of responses, and of connections.
    responses: Latency,
    connections: Latency,
    /// Ejection by users' requests.
    pub passive: Passive,
    /// It is sent requests, not only connections.
    answers: AtomicBool,
    /// Active checks that fail now.
    failing_checks: AtomicU32,
    /// Since when it has been in use, for slow start.
    since_ms: AtomicU64,
}

impl EndpointState {
    pub fn new(id: u64, addr: SocketAddr, pod: Option<(Arc<str>, Arc<PodUsage>)>, threads: usize) -> Self {
        Self {
            id,
            addr,
            pod,
            shards: Shards::new(threads),
            removed: AtomicBool::new(false),
            suspect_until_ms: AtomicU64::new(0),
            responses: Latency::default(),
            connections: Latency::default(),
            passive: Passive::default(),
            answers: AtomicBool::new(false),
            failing_checks: AtomicU32::new(0),
            since_ms: AtomicU64::new(clock::ms(Instant::now())),
        }
    }

    pub fn begin(&self, thread: usize) {
        add(&self.shards.get(thread).in_flight, 1);
    }

    pub fn end(&self, thread: usize) {
        sub(&self.shards.get(thread).in_flight, 1);
    }

    /// Requests and connections being served now, over all threads.
    pub fn in_flight(&self) -> u64 {
        self.shards.iter().map(|shard| shard.in_flight.load(Relaxed)).fold(0, u64::wrapping_add)
    }

    /// Where traffic of this endpoint is added up for billing.
    pub fn usage(&self) -> Option<&PodUsage> {
        self.pod.as_ref().map(|(_, usage)| &**usage)
    }

    pub fn set_removed(&self, removed: bool) {
        self.removed.store(removed, Relaxed);
    }

    pub fn is_removed(&self) -> bool {
        self.removed.load(Relaxed)
    }

    /// Learns from an attempt that has just ended. `_thread` is the proxy thread.
    pub fn report(&self, policy: &ServicePolicy, outcome: Outcome, _thread: usize) {
        self.report_at(policy, outcome, Instant::now());
    }

    /// Learns from an attempt that ended at `now`.
    pub fn report_at(&self, policy: &ServicePolicy, outcome: Outcome, now: Instant) {
        let now_ms = clock::ms(now);
        let failed = match outcome {
            Outcome::Status(status, latency) => {
                let failed = status >= 500;
                self.responses.record(Some(latency), failed, now_ms);
                failed
            }
            Outcome::Connected(latency) => {
                self.connections.record(Some(latency), false, now_ms);
                false
            }
            Outcome::ConnectFailed | Outcome::Reset | Outcome::TimedOut => {
                self.responses.record(None, true, now_ms);
                self.connections.record(None, true, now_ms);
                true
            }
        };
        match outcome {
            // Prefer others for a while.
            Outcome::ConnectFailed => {
                let before = self.suspect_until_ms.swap(now_ms + SUSPECT_TIME.as_millis() as u64, Relaxed);
                // Backends that know already look again when the first suspicion ends.
                if before <= now_ms {
                    availability::changed();
                }
            }
            Outcome::Status(..) | Outcome::Connected(_)
                if self.suspect_until_ms.load(Relaxed) != 0 && self.suspect_until_ms.swap(0, Relaxed) > now_ms =>
            {
                availability::changed();
            }
            _ => {}
        }
        // Where answers are expected, that a connection could be made says nothing about them: failures in a row go on.
        let telling = !matches!(outcome, Outcome::Connected(_)) || !self.answers.load(Relaxed);
        if matches!(outcome, Outcome::Status(..) | Outcome::Reset | Outcome::TimedOut) && !self.answers.load(Relaxed) {
            self.answers.store(true, Relaxed);
        }
        if let Some(outlier) = policy.outlier.as_ref().filter(|_| telling)
            && self.passive.record(outlier, failed, now_ms)
        {
            // When it returns it starts slowly again.
            self.since_ms.store(self.passive.ejection_ms().1, Relaxed);
            availability::changed();
        }
    }

    /// An active check has begun to fail, or (`false`) has succeeded again or is no longer made.
    pub fn set_check_failing(&self, failing: bool, now: Instant) {
        if failing {
            self.failing_checks.fetch_add(1, Relaxed);
        } else if self.failing_checks.fetch_sub(1, Relaxed) == 1 {
            self.since_ms.store(clock::ms(now), Relaxed);
        }
        availability::changed();
    }

    /// Health now. A backend's policy may still use an ejected endpoint: see [`Backend::health`].
    pub fn health(&self) -> Health {
        self.health_at(clock::ms(Instant::now())).0
    }

    /// Health at a time, and when it changes by itself.
    pub fn health_at(&self, now_ms: u64) -> (Health, u64) {
        if self.failing_checks.load(Relaxed) > 0 {
            return (Health::Failing, u64::MAX);
        }
        if self.passive.is_ejected(now_ms) {
            return (Health::Ejected, self.passive.ejection_ms().1);
        }
        let suspect_until = self.suspect_until_ms.load(Relaxed);
        if now_ms < suspect_until { (Health::Suspect, suspect_until) } else { (Health::Healthy, u64::MAX) }
    }

    /// What responses (or with `tcp` connections) cost lately.
    pub fn latency(&self, tcp: bool) -> &Latency {
        if tcp { &self.connections } else { &self.responses }
    }

    /// Since when it has been in use, in milliseconds of [`clock`].
    pub fn since_ms(&self) -> u64 {
        self.since_ms.load(Relaxed)
    }
}

/// What a backend is, beside its endpoints.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub service: ServiceKey,
    /// `metadata.uid` of the Service.
    pub uid: Arc<str>,
    pub port: u16,
    pub app: AppProtocol,
    pub policy: Arc<ServicePolicy>,
    /// What survives snapshots.
    pub state: Arc<PortState>,
    pub stats: Arc<ServiceStats>,
}

/// Where the endpoints of a backend are, in its order, and where we are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    pub plans: Arc<[EndpointPlan]>,
    pub node: Arc<NodePlan>,
}

/// The endpoints of one Service port and how to choose among them. Immutable.
#[derive(Debug)]
pub(crate) struct Backend {
    pub service: ServiceKey,
    pub uid: Arc<str>,
    pub port: u16,
    pub app: AppProtocol,
    pub endpoints: Box<[Arc<EndpointState>]>,
    pub policy: Arc<ServicePolicy>,
    /// Turn, limits and queue, shared over threads and snapshots.
    pub state: Arc<PortState>,
    pub stats: Arc<ServiceStats>,
    pub table: Table,
    pub availability: Availability,
    tags: OnceLock<Tags>,
    /// Where its endpoints are.
    pub places: Places,
    /// Who chooses among its endpoints, if its Service has a plugin.
    pub plugin: Option<Arc<Binding>>,
}

/// Endpoints already tried for a request, by index. Beyond 128 endpoints the mask wraps, which only means that a retry
/// may skip one that was not tried.
#[derive(Clone, Copy, Default)]
pub(crate) struct Tried(u128);

impl Tried {
    pub fn insert(&mut self, index: usize) {
        self.0 |= 1 << (index % 128);
    }

    pub fn contains(self, index: usize) -> bool {
        self.0 & (1 << (index % 128)) != 0
    }
}

impl Backend {
    /// `table` must be of the plans of `endpoints`.
    pub fn new(identity: Identity, endpoints: Box<[Arc<EndpointState>]>, table: Table) -> Self {
        let Identity { service, uid, port, app, policy, state, stats } = identity;
        let availability = Availability::new(endpoints.len(), table.groups.len());
        let (tags, places) = (OnceLock::new(), Places::default());
        Self {
            service,
            uid,
            port,
            app,
            endpoints,
            policy,
            state,
            stats,
            table,
            availability,
            tags,
            places,
            plugin: None,
        }
    }

    /// With what plugins are told of its endpoints, and the one that its Service has.
    #[must_use]
    pub fn with_plugin(self, places: Places, plugin: Option<Arc<Binding>>) -> Self {
        Self { places, plugin, ..self }
    }

    /// Without endpoints.
    pub fn empty(identity: Identity) -> Self {
        Self::new(identity, Box::default(), Table::default())
    }

    /// The algorithm in force.
    pub fn algorithm(&self) -> Algorithm {
        self.policy.algorithm.unwrap_or(match self.app {
            AppProtocol::Http | AppProtocol::H2c => Algorithm::PeakEwma,
            AppProtocol::Tcp => Algorithm::RoundRobin,
        })
    }

    /// The endpoint for a request and its index; ones that are not well only when nothing else is left; `None` when all were tried.
    pub fn choose(&self, choice: &Choice, tried: Tried) -> Option<(usize, &Arc<EndpointState>)> {
        if self.endpoints.is_empty() {
            return None;
        }
        let now_ms = clock::ms(choice.now);
        self.refresh(now_ms);
        if let Some(index) = choice.pinned.map(|index| index as usize)
            && !tried.contains(index)
            && self.availability.is_up(index)
            && let Some(endpoint) = self.endpoints.get(index)
        {
            return Some((index, endpoint));
        }
        let index = Chooser::new(self, choice, tried, now_ms).choose()?;
        Some((index, self.endpoints.get(index)?))
    }

    /// Its endpoints as sessions name them.
    pub fn tags(&self) -> &Tags {
        self.tags.get_or_init(|| Tags::new(&self.uid, self.port, &self.endpoints))
    }

    /// Looks at its endpoints' health again if there is news.
    pub fn refresh(&self, now_ms: u64) {
        self.availability.refresh(&self.endpoints, &self.policy, &self.table.group_of, now_ms);
    }

    /// Endpoints with their health as this backend's policy sees it: no more are ejected than it allows.
    pub fn health(&self, now: Instant) -> impl Iterator<Item = (&Arc<EndpointState>, Health)> {
        let now_ms = clock::ms(now);
        self.refresh(now_ms);
        self.endpoints.iter().enumerate().map(move |(index, endpoint)| {
            let health = endpoint.health_at(now_ms).0;
            (endpoint, if self.availability.is_honoured(index) { Health::Healthy } else { health })
        })
    }
}

/// Where listeners find the current backend of their Service port: loaded once per request, replaced at any time.
pub(crate) type BackendCell = ArcSwap<Backend>;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::net::IpAddr;

    pub(crate) fn backend(addresses: &[&str], client_ip_affinity: bool) -> Backend {
        let policy = ServicePolicy {
            client_ip_affinity: client_ip_affinity.then_some(Duration::from_secs(10)),
            ..ServicePolicy::default()
        };
        with_policy(addresses, policy, |_| {})
    }

    /// A backend of endpoints that `change` may still change; ids count from 0.
    pub(crate) fn with_policy(
        addresses: &[&str],
        policy: ServicePolicy,
        change: impl Fn(&mut EndpointPlan),
    ) -> Backend {
        let plan = |addr: &&str| {
            let addr = addr.parse().expect("an address");
            let mut plan = EndpointPlan { addr, pod_uid: None, node: None, zone: None, region: None, weight: 100 };
            change(&mut plan);
            plan
        };
        of_plans(&addresses.iter().map(plan).collect::<Vec<_>>(), policy, &NodePlan::default(), &Arc::default())
    }

    pub(crate) fn of_plans(
        plans: &[EndpointPlan],
        policy: ServicePolicy,
        node: &NodePlan,
        geo: &Arc<crate::balance::geo::Geo>,
    ) -> Backend {
        let table = Table::new(plans, &policy, node, geo);
        let states = (0..).zip(plans).map(|(id, plan)| Arc::new(EndpointState::new(id, plan.addr, None, 1)));
        let identity = Identity {
            service: ServiceKey::new("d", "web"),
            uid: "u".into(),
            port: 80,
            app: AppProtocol::Http,
            policy: Arc::new(policy),
            state: Arc::default(),
            stats: Arc::new(ServiceStats::new(1)),
        };
        Backend::new(identity, states.collect(), table)
    }

    fn client(last: u8) -> Choice {
        Choice::of_client(IpAddr::from([192, 0, 2, last]), 0)
    }

    fn connect(endpoint: &EndpointState, outcome: Outcome) {
        endpoint.report(&ServicePolicy::default(), outcome, 0);
    }

    fn picks(backend: &Backend, count: usize) -> Vec<usize> {
        (0..count).filter_map(|_| backend.choose(&client(1), Tried::default())).map(|(index, _)| index).collect()
    }

    #[test]
    fn round_robin_is_exact_and_ends_when_all_were_tried() {
        let backend = backend(&["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"], false);
        assert_eq!(picks(&backend, 6), [0, 1, 2, 0, 1, 2]);
        let mut tried = Tried::default();
        for _ in 0..3 {
            let (index, _) = backend.choose(&client(1), tried).expect("one is left");
            tried.insert(index);
        }
        assert!(backend.choose(&client(1), tried).is_none());
    }

    #[test]
    fn suspects_are_used_only_when_nothing_else_is_left() {
        let backend = backend(&["10.0.0.1:1", "10.0.0.2:1"], false);
        connect(&backend.endpoints[0], Outcome::ConnectFailed);
        assert_eq!(picks(&backend, 3), [1, 1, 1]);
        connect(&backend.endpoints[1], Outcome::ConnectFailed);
        assert_eq!(picks(&backend, 2).len(), 2);
        connect(&backend.endpoints[0], Outcome::Connected(Duration::ZERO));
        assert_eq!(picks(&backend, 2), [0, 0]);
    }

    #[test]
    fn affinity_keeps_a_client_on_its_endpoint_when_others_leave() {
        let all = ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1"];
        let before = backend(&all, true);
        let mut used = std::collections::BTreeSet::new();
        for last in 0..100u8 {
            let (_, chosen) = before.choose(&client(last), Tried::default()).expect("an endpoint");
            used.insert(chosen.addr);
            let fewer: Vec<&str> = all.into_iter().filter(|a| *a == chosen.addr.to_string() || *a == all[0]).collect();
            let after = backend(&fewer, true);
            assert_eq!(after.choose(&client(last), Tried::default()).expect("an endpoint").1.addr, chosen.addr);
        }
        assert_eq!(used.len(), all.len(), "clients spread over all endpoints");
    }

    #[test]
    fn in_flight_is_summed_over_threads() {
        let state = EndpointState::new(0, "10.0.0.1:1".parse().expect("an address"), None, 3);
        state.begin(0);
        state.begin(2);
        // A request may end on another shard's thread only by wrapping arithmetic; the sum stays right.
        state.end(1);
        assert_eq!(state.in_flight(), 1);
    }
}
