//! Retry budgets: how many retries and hedged attempts the requests of the last ten seconds pay for.
//!
//! Counted per thread in buckets of a second; a decision sums them up. Threads may overdraw a budget by one each, never more.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Window in seconds.
const WINDOW: u64 = 10;
/// Rows of counters; threads beyond share them, and may then miss a count.
const SHARDS: usize = 16;

/// Requests and retries of one rule.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    shards: [Shard; SHARDS],
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    requests: [AtomicU64; WINDOW as usize],
    retries: [AtomicU64; WINDOW as usize],
}

/// The second in the upper half, the count in the lower.
fn count(buckets: &[AtomicU64], second: u64) {
    let bucket = &buckets[(second % WINDOW) as usize];
    let old = bucket.load(Relaxed);
    let current = if old >> 32 == second { old } else { second << 32 };
    bucket.store(current.saturating_add(1), Relaxed);
}

fn sum(buckets: &[AtomicU64], second: u64) -> u64 {
    let recent = |bucket: u64| second.saturating_sub(bucket >> 32) < WINDOW && bucket >> 32 <= second;
    buckets
        .iter()
        .map(|bucket| bucket.load(Relaxed))
        .filter(|bucket| recent(*bucket))
        .map(|bucket| bucket & 0xFFFF_FFFF)
        .sum()
}

fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static OWN: Cell<usize> = Cell::new(NEXT.fetch_add(1, Relaxed) % SHARDS));
    OWN.get()
}

impl Budget {
    /// A request has come.
    pub fn request(&self, now_ms: u64) {
        count(&self.shards[shard()].requests, now_ms / 1_000);
    }

    /// Takes one retry from the budget if there is one left: `percent` of the requests, but at least `min_per_second`.
    pub fn retry(&self, percent: u32, min_per_second: u32, now_ms: u64) -> bool {
        let second = now_ms / 1_000;
        let total =
            |of: fn(&Shard) -> &[AtomicU64]| -> u64 { self.shards.iter().map(|shard| sum(of(shard), second)).sum() };
        let bucket = (second % WINDOW) as usize;
        let this_second: u64 = self
            .shards
            .iter()
            .map(|shard| shard.retries[bucket].load(Relaxed))
            .filter(|bucket| bucket >> 32 == second)
            .map(|bucket| bucket & 0xFFFF_FFFF)
            .sum();
        let paid = || total(|shard| &shard.requests) * u64::from(percent) / 100;
        let allowed = this_second < u64::from(min_per_second) || total(|shard| &shard.retries) < paid();
        if allowed {
            count(&self.shards[shard()].retries, second);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_share_of_recent_requests() {
        let budget = Budget::default();
        (0..100).for_each(|at| budget.request(5_000 + at));
        let granted = |at| (0..100).filter(|_| budget.retry(20, 0, at)).count();
        assert_eq!(granted(5_100), 20);
        assert_eq!(granted(14_999), 0, "still within ten seconds of all of them");
        assert_eq!(granted(16_000), 0, "nothing comes in");
        (0..50).for_each(|_| budget.request(17_000));
        assert_eq!(granted(17_000), 10);
    }

    #[test]
    fn a_few_per_second_are_always_allowed() {
        let budget = Budget::default();
        let granted = |at| (0..100).filter(|_| budget.retry(20, 3, at)).count();
        assert_eq!([granted(1_000), granted(1_900), granted(2_000)], [3, 0, 3]);
        let none = Budget::default();
        assert!(!none.retry(20, 0, 1_000));
    }
}
