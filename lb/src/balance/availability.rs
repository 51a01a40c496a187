//! Which endpoints of a backend may be used now: a bit per endpoint and a count per group, worked out again when an endpoint's health
//! changed or an ejection ended, and read by every choice in between for the price of three loads.
//!
//! Endpoints belong to several backends (of a Service port's own traffic and of routes), which may have different ones. So an endpoint only
//! knows what happened to it; whether a backend honours an ejection is decided here: the oldest first, up to the policy's share. Failing checks and suspicion are always honoured, unless so
//! few endpoints remain that panicking is in order: then health is ignored.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::*};

use crate::backend::{EndpointState, Health};
use crate::policy::ServicePolicy;

/// Counts changes of any endpoint's health. One for the process: changes are rare, and looking again does no harm.
static CHANGES: AtomicU64 = AtomicU64::new(1);

/// An endpoint's health has changed.
pub(crate) fn changed() {
    CHANGES.fetch_add(1, Release);
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Availability {
    /// [`CHANGES`] as of the last look.
    seen: AtomicU64,
    /// When something changes by itself.
    next_ms: AtomicU64,
    looking: AtomicBool,
    up: Box<[AtomicU64]>,
    /// Endpoints that are down.
    down: AtomicU32,
    panic: AtomicBool,
    /// Endpoints that are up, by group.
    groups: Box<[AtomicU32]>,
}

impl Availability {
    pub fn new(endpoints: usize, groups: usize) -> Self {
        Self {
            seen: AtomicU64::new(0),
            next_ms: AtomicU64::new(0),
            looking: AtomicBool::new(false),
            up: (0..endpoints.div_ceil(64)).map(|_| AtomicU64::new(u64::MAX)).collect(),
            down: AtomicU32::new(0),
            panic: AtomicBool::new(false),
            groups: (0..groups).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// Looks again if there is news. `group_of` says to which group an endpoint belongs.
    pub fn refresh(
        &self,
        endpoints: &[std::sync::Arc<EndpointState>],
        policy: &ServicePolicy,
        group_of: &[u8],
        now_ms: u64,
    ) {
        let changes = CHANGES.load(Acquire);
        if self.seen.load(Relaxed) == changes && now_ms < self.next_ms.load(Relaxed) {
            return;
        }
        // One thread looks; the others go on with what is known. Change counts are stored last, so a look that was overtaken is repeated.
        if self.looking.swap(true, Acquire) {
            return;
        }
        let mut next_ms = u64::MAX;
        let mut down: Vec<u32> = Vec::new();
        let mut ejected: Vec<(u64, u32)> = Vec::new();
        for (index, endpoint) in (0..).zip(endpoints) {
            let (health, until_ms) = endpoint.health_at(now_ms);
            next_ms = next_ms.min(until_ms);
            match health {
                Health::Healthy => {}
                Health::Ejected => ejected.push((endpoint.passive.ejection_ms().0, index)),
                Health::Suspect | Health::Failing => down.push(index),
            }
        }
        ejected.sort_unstable();
        let allowed = policy.outlier.as_ref().map_or(endpoints.len(), |outlier| {
            // As Envoy: at least one, or small Services would have no protection at all.
            (endpoints.len() * outlier.max_ejected_percent as usize / 100)
                .max(usize::from(outlier.max_ejected_percent > 0))
        });
        down.extend(ejected.into_iter().take(allowed).map(|(_, index)| index));
        let mut words = vec![u64::MAX; self.up.len()];
        let mut counts = vec![0u32; self.groups.len()];
        for group in group_of {
            counts.get_mut(usize::from(*group)).into_iter().for_each(|count| *count += 1);
        }
        for index in &down {
            words[*index as usize / 64] &= !(1 << (index % 64));
            let group = group_of.get(*index as usize).and_then(|group| counts.get_mut(usize::from(*group)));
            group.into_iter().for_each(|count| *count -= 1);
        }
        let healthy = endpoints.len() - down.len();
        let panic_percent = policy.outlier.as_ref().map_or(0, |outlier| outlier.panic_percent);
        let panic = !endpoints.is_empty() && healthy * 100 < endpoints.len() * panic_percent as usize;
        self.panic.store(panic, Relaxed);
        self.down.store(down.len() as u32, Relaxed);
        self.up.iter().zip(words).for_each(|(known, word)| known.store(word, Relaxed));
        self.groups.iter().zip(counts).for_each(|(known, count)| known.store(count, Relaxed));
        self.next_ms.store(next_ms, Relaxed);
        self.seen.store(changes, Relaxed);
        self.looking.store(false, Release);
    }

    /// Whether the endpoint may be used.
    pub fn is_up(&self, index: usize) -> bool {
        self.is_honoured(index) || self.panic.load(Relaxed)
    }

    /// Likewise without panic: what is told about it.
    pub fn is_honoured(&self, index: usize) -> bool {
        self.up.get(index / 64).is_none_or(|word| word.load(Relaxed) & (1 << (index % 64)) != 0)
    }

    /// Endpoints of a group that may be used.
    pub fn healthy(&self, group: usize) -> u32 {
        self.groups.get(group).map_or(0, |count| count.load(Relaxed))
    }

    /// Endpoints that are down.
    pub fn down(&self) -> u32 {
        self.down.load(Relaxed)
    }

    /// So few are healthy that health is ignored.
    pub fn is_panicking(&self) -> bool {
        self.panic.load(Relaxed)
    }
}
