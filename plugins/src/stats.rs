//! What a generation has done: counters by thread, added up when somebody asks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::Class;

/// Latency buckets: four per doubling, from 64 ns to about 17 s.
const BUCKETS: usize = 112;
/// Logarithm of the first bucket's width.
const FIRST_BITS: u32 = 6;

/// Position of a latency.
fn bucket(ns: u64) -> usize {
    let bits = ns.max(1 << FIRST_BITS).ilog2();
    let quarter = (ns >> (bits - 2)) & 3;
    (((bits - FIRST_BITS) as usize) * 4 + if ns < 1 << FIRST_BITS { 0 } else { quarter as usize }).min(BUCKETS - 1)
}

/// Latency below which everything in this bucket and those before lies, in nanoseconds.
fn upper_ns(bucket: usize) -> u64 {
    let bits = FIRST_BITS + (bucket / 4) as u32;
    (1 << bits) + ((bucket % 4) as u64 + 1) * (1 << (bits - 2))
}

/// One thread's part.
#[derive(Debug)]
#[repr(align(128))]
struct Shard {
    decisions: AtomicU64,
    errors: [AtomicU64; Class::ALL.len()],
    latency: [AtomicU64; BUCKETS],
    total_ns: AtomicU64,
    fuel: AtomicU64,
}

impl Default for Shard {
    fn default() -> Self {
        Self {
            decisions: AtomicU64::new(0),
            errors: std::array::from_fn(|_| AtomicU64::new(0)),
            latency: std::array::from_fn(|_| AtomicU64::new(0)),
            total_ns: AtomicU64::new(0),
            fuel: AtomicU64::new(0),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Stats {
    shards: Box<[Shard]>,
    peak_memory: AtomicU64,
    /// Decisions of a candidate in the shadow that were not the active generation's.
    pub differences: AtomicU64,
}

impl Stats {
    pub fn new(threads: usize) -> Self {
        Self {
            shards: (0..threads.max(1)).map(|_| Shard::default()).collect(),
            peak_memory: AtomicU64::new(0),
            differences: AtomicU64::new(0),
        }
    }

    /// A call has ended.
    pub fn record(&self, thread: usize, took: Duration, fuel: u64, memory: u64, error: Option<Class>) {
        let shard = &self.shards[thread % self.shards.len()];
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        shard.decisions.fetch_add(1, Relaxed);
        shard.latency[bucket(ns)].fetch_add(1, Relaxed);
        shard.total_ns.fetch_add(ns, Relaxed);
        if fuel > 0 {
            shard.fuel.fetch_add(fuel, Relaxed);
        }
        if let Some(class) = error {
            shard.errors[class as usize].fetch_add(1, Relaxed);
        }
        if memory > self.peak_memory.load(Relaxed) {
            self.peak_memory.fetch_max(memory, Relaxed);
        }
    }

    /// A call that was recorded as a success has failed.
    pub fn error(&self, class: Class) {
        if let Some(shard) = self.shards.first() {
            shard.errors[class as usize].fetch_add(1, Relaxed);
        }
    }

    /// Calls so far.
    pub fn decisions(&self) -> u64 {
        self.shards.iter().map(|shard| shard.decisions.load(Relaxed)).sum()
    }

    pub fn read(&self) -> Statistics {
        let sum = |of: &dyn Fn(&Shard) -> u64| self.shards.iter().map(of).sum::<u64>();
        Statistics {
            decisions: self.decisions(),
            errors: std::array::from_fn(|class| sum(&|shard| shard.errors[class].load(Relaxed))),
            differences: self.differences.load(Relaxed),
            latency: Histogram(std::array::from_fn(|at| sum(&|shard| shard.latency[at].load(Relaxed)))),
            cpu: Duration::from_nanos(sum(&|shard| shard.total_ns.load(Relaxed))),
            fuel: sum(&|shard| shard.fuel.load(Relaxed)),
            peak_memory_bytes: self.peak_memory.load(Relaxed),
        }
    }
}

/// Numbers of calls by how long they took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram([u64; BUCKETS]);

impl Histogram {
    /// The latency that this share (0 to 1) of calls did not exceed, by at most a quarter too much; zero without calls.
    pub fn quantile(&self, share: f64) -> Duration {
        let total: u64 = self.0.iter().sum();
        let wanted = ((total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.0.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        found.filter(|_| total > 0).map_or(Duration::ZERO, |at| Duration::from_nanos(upper_ns(at)))
    }

    /// Upper bounds in seconds with the numbers of calls that each has alone, ascending: each a doubling.
    pub fn doublings(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        self.0.chunks(4).enumerate().map(|(at, counts)| (upper_ns(at * 4 + 3) as f64 / 1e9, counts.iter().sum()))
    }
}

/// What a generation has done, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Calls.
    pub decisions: u64,
    /// Of these, failed ones, in the order of [`Class::ALL`].
    pub errors: [u64; Class::ALL.len()],
    /// Calls in the shadow with another answer than the active generation's.
    pub differences: u64,
    /// How long calls took.
    pub latency: Histogram,
    /// All calls together: to be billed. Calls do nothing but compute, so their time on the wall clock is CPU time, but for waits for a core on a busy
    /// machine.
    pub cpu: Duration,
    /// Instructions of all calls; 0 for worlds whose instructions are not counted.
    pub fuel: u64,
    /// Most linear memory that an instance had.
    pub peak_memory_bytes: u64,
}

impl Statistics {
    /// Failed calls.
    pub fn failed(&self) -> u64 {
        self.errors.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_lie_within_their_buckets() {
        for ns in [0, 1, 63, 64, 79, 80, 100, 1000, 4096, 999_999, 1 << 33] {
            let at = bucket(ns);
            assert!(ns < upper_ns(at) && (at == 0 || ns >= upper_ns(at - 1)), "{ns} {at}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn threads_are_added_up() {
        let stats = Stats::new(2);
        (0..98).for_each(|i| stats.record(i, Duration::from_nanos(900), 5, 10, None));
        stats.record(0, Duration::from_micros(50), 5, 70, Some(Class::Trap));
        stats.record(3, Duration::from_micros(50), 5, 60, Some(Class::Timeout));
        let read = stats.read();
        assert_eq!((read.decisions, read.failed(), read.fuel, read.peak_memory_bytes), (100, 2, 500, 70));
        assert_eq!(read.errors, [0, 0, 1, 1, 0]);
        assert_eq!(read.cpu, Duration::from_nanos(98 * 900 + 100_000));
        let (p50, p99) = (read.latency.quantile(0.5).as_nanos(), read.latency.quantile(0.99).as_nanos());
        assert!((900..=1125).contains(&p50) && (50_000..=62_500).contains(&p99), "{p50} {p99}");
        assert_eq!(read.latency.doublings().map(|(_, count)| count).sum::<u64>(), 100);
        assert_eq!(Stats::new(1).read().latency.quantile(0.5), Duration::ZERO);
    }
}
