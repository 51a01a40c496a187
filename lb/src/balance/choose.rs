//! Which endpoint a request goes to.
//!
//! First the group (locality), then within it the algorithm. What may not be used is passed over in stages: first endpoints that are
//! well and below their own limit, then all that are well, then any: a request is refused only when everything was tried.
//!
//! The default for HTTP is two choices over latency × requests in flight (peak EWMA), with one addition: the first of the two is not
//! random but whose turn it is, and it is kept unless the other is better by more than noise. So an idle or evenly loaded Service is
//! served strictly in turn, as users of a LoadBalancer Service expect, while an endpoint that is slow, failing or busy is passed over.
//! What noise is depends on load: with requests in flight at either a quarter, on idle ones twice the other's cost and
//! [`IDLE_SLACK_US`], because then waiting for a slower endpoint delays nobody else.
//!
//! `sessionAffinity: ClientIP` is rendezvous hashing of the client's address. Nothing is remembered, so a client keeps its endpoint for
//! longer than the configured timeout: until the endpoint leaves, is unhealthy, or one that the client's address wants more joins (one
//! client in *n* then moves).

use std::cell::Cell;

use super::table::{Group, MAX_GROUPS};
use super::{Choice, hashing, locality};
use crate::backend::{Backend, Tried};
use crate::policy::Algorithm;
use crate::snapshot::AppProtocol;

use std::sync::atomic::Ordering::Relaxed;

/// Cost difference, in microseconds, below which idle endpoints are served in turn.
const IDLE_SLACK_US: f32 = 25_000.0;
/// Attempts to find an endpoint by chance, before looking for any.
const MAX_DRAWS: usize = 4;
/// `LeastConnections` looks at this many endpoints, from another one on each time; exact for Services up to that size.
const MAX_SCAN: usize = 256;

/// How well an endpoint must be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Well, and below its own limit.
    Free,
    /// Well.
    Up,
    /// There.
    Any,
}

/// One choice.
pub(crate) struct Chooser<'a> {
    backend: &'a Backend,
    choice: &'a Choice,
    tried: Tried,
    now_ms: u64,
    turn: Cell<Option<usize>>,
    seed: Cell<u64>,
}

impl<'a> Chooser<'a> {
    pub fn new(backend: &'a Backend, choice: &'a Choice, tried: Tried, now_ms: u64) -> Self {
        Self { backend, choice, tried, now_ms, turn: Cell::new(None), seed: Cell::new(0) }
    }

    /// The endpoint's index; `None` when all were tried.
    pub fn choose(&self) -> Option<usize> {
        let table = &self.backend.table;
        let mut order = [0; MAX_GROUPS];
        let count = if table.groups.len() == 1 { 1 } else { table.order(self.choice.client, &mut order) };
        let near = order.get_mut(..count)?;
        if count > 1 {
            let first = self.first_group(near);
            near[..=first].rotate_right(1);
        }
        let last_resort = table.last_resort.filter(|_| table.groups.len() > 1);
        for need in [Need::Free, Need::Up, Need::Any] {
            let groups = near.iter().map(|group| usize::from(*group)).chain(last_resort);
            let mut found = groups.filter_map(|group| self.pick_from(table.groups.get(group)?, need));
            if let Some(index) = found.next() {
                return Some(index as usize);
            }
        }
        None
    }

    /// Position in `near` of the group to begin with.
    fn first_group(&self, near: &[u8]) -> usize {
        let (table, availability) = (&self.backend.table, &self.backend.availability);
        let panicking = availability.is_panicking();
        let counts = near.iter().map(|group| {
            let all = table.groups.get(usize::from(*group)).map_or(0, |group| group.members.len() as u32);
            (if panicking { all } else { availability.healthy(usize::from(*group)) }, all)
        });
        locality::spill(counts, self.backend.policy.locality.spillover_percent, self.random() as u32)
    }

    fn pick_from(&self, group: &Group, need: Need) -> Option<u32> {
        if group.members.is_empty() {
            return None;
        }
        if self.backend.policy.client_ip_affinity.is_some() {
            return self.by_client(group, need);
        }
        match self.backend.algorithm() {
            Algorithm::RoundRobin => self.in_turn(group, need),
            Algorithm::Random => self.by_chance(group, need, u32::MAX),
            Algorithm::LeastConnections => self.least_connections(group, need),
            Algorithm::LeastRequest => self.better(group, need, |first, second| {
                let load = |index| self.busy(index, group);
                load(first) <= load(second)
            }),
            Algorithm::PeakEwma => self.better(group, need, |first, second| self.keeps_turn(first, second, group)),
            Algorithm::RingHash | Algorithm::Maglev => self.by_hash(group, need),
        }
    }

    fn is_usable(&self, index: u32, need: Need) -> bool {
        let index = index as usize;
        if self.tried.contains(index) {
            return false;
        }
        match need {
            Need::Any => true,
            Need::Up => self.backend.availability.is_up(index),
            Need::Free => {
                self.backend.availability.is_up(index)
                    && self
                        .backend
                        .policy
                        .limits
                        .per_endpoint
                        .is_none_or(|most| self.in_flight(index) < u64::from(most))
            }
        }
    }

    fn in_flight(&self, index: usize) -> u64 {
        self.backend.endpoints[index].in_flight()
    }

    /// A new endpoint's part of its share, from above 0 to 1.
    fn grown(&self, index: u32) -> f32 {
        let Some((window, first_percent)) = self.backend.policy.slow_start else { return 1.0 };
        let age = self.now_ms.saturating_sub(self.backend.endpoints[index as usize].since_ms());
        let part = age as f32 / window.as_millis().max(1) as f32;
        part.clamp(first_percent.clamp(1, 100) as f32 / 100.0, 1.0)
    }

    /// Whether an endpoint that is still growing takes this turn.
    fn is_grown(&self, index: u32) -> bool {
        let grown = self.grown(index);
        grown >= 1.0 || (self.random() >> 40) as f32 / (1u32 << 24) as f32 <= grown
    }

    fn turn(&self) -> usize {
        let turn = self.turn.get().unwrap_or_else(|| self.backend.state.turn.fetch_add(1, Relaxed));
        self.turn.set(Some(turn));
        turn
    }

    /// Numbers that look random, from the turn: no two choices of a backend have the same.
    fn random(&self) -> u64 {
        let seed = self.seed.get().wrapping_add(1);
        self.seed.set(seed);
        hashing::mix(self.turn() as u64 ^ (self.choice.thread as u64) << 48 ^ seed << 56)
    }

    /// Whose turn it is. One that cannot take it leaves it to any other, so that not all of its turns fall to its neighbour.
    fn in_turn(&self, group: &Group, need: Need) -> Option<u32> {
        let holder = group.order[self.turn() % group.order.len()];
        if self.is_usable(holder, need) && self.is_grown(holder) {
            return Some(holder);
        }
        self.from(group, need, self.random() as usize)
    }

    fn from(&self, group: &Group, need: Need, start: usize) -> Option<u32> {
        let (after, before) = (&group.order[start % group.order.len()..], &group.order[..start % group.order.len()]);
        let usable = || after.iter().chain(before).copied().filter(|index| self.is_usable(*index, need));
        if self.backend.policy.slow_start.is_none() {
            return usable().next();
        }
        usable().find(|index| self.is_grown(*index)).or_else(|| usable().next())
    }

    /// A usable endpoint other than `not`, by chance and weight.
    fn by_chance(&self, group: &Group, need: Need, not: u32) -> Option<u32> {
        let draws = (0..MAX_DRAWS).map(|_| group.order[(self.random() % group.order.len() as u64) as usize]);
        let is_fit = |index: &u32| *index != not && self.is_usable(*index, need);
        draws.into_iter().find(|index| is_fit(index) && self.is_grown(*index)).or_else(|| {
            let start = self.random() as usize % group.order.len();
            let (before, after) = group.order.split_at(start);
            after.iter().chain(before).copied().find(is_fit)
        })
    }

    /// Of whose turn it is and another one: the former if `keeps` says so.
    fn better(&self, group: &Group, need: Need, keeps: impl Fn(u32, u32) -> bool) -> Option<u32> {
        let first = self.in_turn(group, need)?;
        if group.members.len() == 1 {
            return Some(first);
        }
        match self.by_chance(group, need, first) {
            Some(second) if !keeps(first, second) => Some(second),
            _ => Some(first),
        }
    }

    /// Requests in flight in relation to the endpoint's weight, 1 being the group's mean.
    fn busy(&self, index: u32, group: &Group) -> f32 {
        let mean = group.weight as f32 / group.members.len() as f32;
        let weight = self.backend.table.weights[index as usize] as f32 / mean * self.grown(index);
        self.in_flight(index as usize) as f32 / weight
    }

    /// Peak EWMA: whether `first` is not worse than `second` by more than noise.
    fn keeps_turn(&self, first: u32, second: u32, group: &Group) -> bool {
        let tcp = self.backend.app == AppProtocol::Tcp;
        let cost = |index: u32| self.backend.endpoints[index as usize].latency(tcp).cost_us(self.now_ms);
        let (a, b) = (cost(first), cost(second));
        // One that nobody has tried is as good as the other.
        let (a, b) = (a.or(b).unwrap_or(1.0), b.or(a).unwrap_or(1.0));
        let (busy_a, busy_b) = (self.busy(first, group), self.busy(second, group));
        if busy_a == 0.0 && busy_b == 0.0 {
            return a <= 2.0 * b + IDLE_SLACK_US;
        }
        a * (1.0 + busy_a) <= 1.25 * b * (1.0 + busy_b)
    }

    fn least_connections(&self, group: &Group, need: Need) -> Option<u32> {
        let members = &group.members;
        let start = self.turn() % members.len();
        let scanned = members[start..].iter().chain(&members[..start]).take(MAX_SCAN).copied();
        let usable = scanned.filter(|index| self.is_usable(*index, need));
        let load = |index: u32| {
            (1.0 + self.in_flight(index as usize) as f32)
                / (self.backend.table.weights[index as usize] as f32 * self.grown(index))
        };
        let least = usable.map(|index| (load(index), index)).min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, index)| index);
        least.or_else(|| self.from(group, need, start))
    }

    fn by_hash(&self, group: &Group, need: Need) -> Option<u32> {
        let hash = self.choice.hash.unwrap_or_else(|| hashing::of_ip(self.choice.client));
        let candidates =
            || group.hash.iter().flat_map(|table| table.candidates(hash)).filter(|index| self.is_usable(*index, need));
        if let Some(percent) = self.backend.policy.bounded_load_percent
            && need == Need::Free
        {
            // Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2018): nobody takes more than its part of the mean.
            let total: u64 = group.members.iter().map(|index| self.in_flight(*index as usize)).sum();
            let bound = |index: u32| {
                let weight = u64::from(self.backend.table.weights[index as usize]);
                ((total + 1) * weight * u64::from(percent)).div_ceil(group.weight * 100).max(1)
            };
            let below = candidates().find(|index| self.in_flight(*index as usize) < bound(*index));
            if below.is_some() {
                return below;
            }
        }
        candidates().next()
    }

    fn by_client(&self, group: &Group, need: Need) -> Option<u32> {
        let client = hashing::of_ip(self.choice.client);
        let score = |index: u32| {
            let endpoint = &self.backend.endpoints[index as usize];
            hashing::rendezvous(client, endpoint.addr, self.backend.table.weights[index as usize])
        };
        let usable = group.members.iter().copied().filter(|index| self.is_usable(*index, need));
        usable.map(|index| (score(index), index)).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, index)| index)
    }
}
