//! Run-time form of a Service port for the proxy: which endpoints, in which state, counted where.
//!
//! A [`Backend`] is immutable and replaced whole; what must survive a replacement (health, in-flight counts, counters,
//! the round-robin position) is shared by `Arc` from one backend to the next. Counters are sharded by proxy thread:
//! only the owning thread writes its shard, so no write needs a locked instruction.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::balance::{Choice, Outcome};
use crate::policy::ServicePolicy;
use crate::snapshot::{AppProtocol, ServiceKey};
use crate::stats::{PodUsage, ServiceStats, Shards, add, sub};

/// How long an endpoint that refused a connection is tried only when all others failed.
const SUSPECT_TIME: Duration = Duration::from_secs(1);

/// Per-thread counters of an endpoint.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct EndpointShard {
    in_flight: AtomicU64,
}

/// What is known about one address, across snapshots.
#[derive(Debug)]
pub(crate) struct EndpointState {
    /// Unique in this process; key of the upstream pools.
    pub id: u64,
    pub addr: SocketAddr,
    /// UID and cumulative usage of the Pod behind the address, when there is one.
    pub pod: Option<(Arc<str>, Arc<PodUsage>)>,
    shards: Shards<EndpointShard>,
    /// Set when no Service has this endpoint any more: pooled connections are closed instead of kept.
    removed: AtomicBool,
    /// Milliseconds on the process clock until which the endpoint is avoided; 0: healthy.
    suspect_until_ms: AtomicU64,
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

    /// Learns from an attempt on proxy thread `thread`.
    pub fn report(&self, policy: &ServicePolicy, outcome: Outcome, thread: usize) {
        let _ = (policy, thread);
        match outcome {
            // Prefer others for a while.
            Outcome::ConnectFailed => {
                self.suspect_until_ms.store(clock_ms() + SUSPECT_TIME.as_millis() as u64, Relaxed);
            }
            _ if self.suspect_until_ms.load(Relaxed) != 0 => self.suspect_until_ms.store(0, Relaxed),
            _ => {}
        }
    }

    /// A connection failed a moment ago; it is used only when all others failed, too.
    pub fn is_suspect(&self) -> bool {
        let until = self.suspect_until_ms.load(Relaxed);
        until != 0 && clock_ms() < until
    }
}

/// Milliseconds since the first call; only differences matter.
fn clock_ms() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_millis() as u64 + 1
}

/// The endpoints of one Service port and how to choose among them. Immutable.
#[derive(Debug)]
pub(crate) struct Backend {
    pub service: ServiceKey,
    pub port: u16,
    pub app: AppProtocol,
    pub endpoints: Box<[Arc<EndpointState>]>,
    pub policy: Arc<ServicePolicy>,
    /// Next round-robin turn, shared over threads and snapshots so that turns are exact.
    pub turn: Arc<AtomicUsize>,
    pub stats: Arc<ServiceStats>,
}

/// Endpoints already tried for a request, by index. Beyond 128 endpoints the mask wraps, which only means that a retry
/// may skip one that was not tried.
#[derive(Clone, Copy, Default)]
pub(crate) struct Tried(u128);

impl Tried {
    pub fn insert(&mut self, index: usize) {
        self.0 |= 1 << (index % 128);
    }

    fn contains(self, index: usize) -> bool {
        self.0 & (1 << (index % 128)) != 0
    }
}

impl Backend {
    /// The endpoint for a request and its index; suspects only when nothing else is left; `None` when all were tried.
    pub fn choose(&self, choice: &Choice, tried: Tried) -> Option<(usize, &Arc<EndpointState>)> {
        let count = self.endpoints.len();
        if count == 0 {
            return None;
        }
        if self.policy.client_ip_affinity.is_some() {
            return self.pick_by_client(choice.client, tried);
        }
        let start = self.turn.fetch_add(1, Relaxed) % count;
        let order = || (start..count).chain(0..start).filter(|index| !tried.contains(*index));
        let index = order().find(|index| !self.endpoints[*index].is_suspect()).or_else(|| order().next())?;
        Some((index, &self.endpoints[index]))
    }

    /// Rendezvous hashing: a client keeps its endpoint while that one is there, whatever happens to the others.
    fn pick_by_client(&self, client: IpAddr, tried: Tried) -> Option<(usize, &Arc<EndpointState>)> {
        let client = match client {
            IpAddr::V4(ip) => u64::from(ip.to_bits()),
            IpAddr::V6(ip) => (ip.to_bits() >> 64) as u64 ^ ip.to_bits() as u64,
        };
        let score = |endpoint: &EndpointState| {
            let addr = match endpoint.addr.ip() {
                IpAddr::V4(ip) => u64::from(ip.to_bits()),
                IpAddr::V6(ip) => (ip.to_bits() >> 64) as u64 ^ ip.to_bits() as u64,
            };
            (!endpoint.is_suspect(), mix(mix(client) ^ addr ^ (u64::from(endpoint.addr.port()) << 48)))
        };
        let candidates = self.endpoints.iter().enumerate().filter(|(index, _)| !tried.contains(*index));
        candidates.max_by_key(|(_, endpoint)| score(endpoint))
    }
}

/// SplitMix64's finalizer: spreads every input bit over the output.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Where listeners find the current backend of their Service port: loaded once per request, replaced at any time.
pub(crate) type BackendCell = ArcSwap<Backend>;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn backend(addresses: &[&str], client_ip_affinity: bool) -> Backend {
        let state = |(id, addr): (usize, &&str)| {
            Arc::new(EndpointState::new(id as u64, addr.parse().expect("an address"), None, 1))
        };
        Backend {
            service: ServiceKey::new("d", "web"),
            port: 80,
            app: AppProtocol::Http,
            endpoints: addresses.iter().enumerate().map(state).collect(),
            policy: Arc::new(ServicePolicy {
                client_ip_affinity: client_ip_affinity.then_some(Duration::from_secs(10)),
                ..ServicePolicy::default()
            }),
            turn: Arc::default(),
            stats: Arc::new(ServiceStats::new(1)),
        }
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
