//! Counters written on the hot path: one shard per proxy thread, merged when somebody reads.
//!
//! A shard has one writer, so counting is a plain load and store; a reader may see a value a moment old, never a torn one.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the request duration histogram in seconds; an unbounded bucket follows.
pub(crate) const DURATION_BUCKETS: [f64; 13] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
const DURATION_BUCKETS_NS: [u64; 13] = [
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
];
/// Label values of `code`, by index `status / 100 - 1`; the last one is a client that went away before the response.
pub(crate) const CODE_CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "client_gone"];
/// Stands for a request whose client left before a response was sent.
pub(crate) const CODE_CLIENT_GONE: u16 = 600;

/// Adds without a locked instruction: only the shard's own thread writes.
pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(amount), Relaxed);
}

/// Subtracts, likewise.
pub(crate) fn sub(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Relaxed).wrapping_sub(amount), Relaxed);
}

/// One `T` per proxy thread.
#[derive(Debug)]
pub(crate) struct Shards<T>(Box<[T]>);

impl<T: Default> Shards<T> {
    pub fn new(threads: usize) -> Self {
        Self((0..threads.max(1)).map(|_| T::default()).collect())
    }

    pub fn get(&self, thread: usize) -> &T {
        &self.0[thread % self.0.len()]
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter()
    }
}

/// Counters of a Service on one thread.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct ServiceShard {
    codes: [AtomicU64; 6],
    durations: [AtomicU64; 14],
    duration_ns: AtomicU64,
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
    pub active_connections: AtomicU64,
    pub retries: AtomicU64,
    pub connect_failures: AtomicU64,
    pub upstream_opened: AtomicU64,
    pub upstream_reused: AtomicU64,
}

impl ServiceShard {
    /// Counts a finished request.
    pub fn record(&self, code: u16, duration: Duration) {
        let class = usize::from(code / 100).saturating_sub(1).min(CODE_CLASSES.len() - 1);
        add(&self.codes[class], 1);
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = DURATION_BUCKETS_NS.iter().position(|bound| ns <= *bound).unwrap_or(DURATION_BUCKETS_NS.len());
        add(&self.durations[bucket], 1);
        add(&self.duration_ns, ns);
    }
}

/// Counters of one Service.
#[derive(Debug)]
pub(crate) struct ServiceStats {
    shards: Shards<ServiceShard>,
}

/// Sums of a [`ServiceStats`] at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceTotals {
    /// Finished requests by code class (1xx … 5xx, client gone).
    pub codes: [u64; 6],
    /// Finished requests per duration bucket, not cumulative.
    pub durations: [u64; 14],
    /// Sum of durations in nanoseconds.
    pub duration_ns: u64,
    /// Payload bytes from clients.
    pub bytes_in: u64,
    /// Payload bytes to clients.
    pub bytes_out: u64,
    /// Client connections open now.
    pub active_connections: u64,
    /// Requests sent again after a failed attempt.
    pub retries: u64,
    /// Failed attempts to connect to an endpoint.
    pub connect_failures: u64,
    /// Upstream connections opened.
    pub upstream_opened: u64,
    /// Requests that found a pooled upstream connection.
    pub upstream_reused: u64,
}

impl ServiceStats {
    pub fn new(threads: usize) -> Self {
        Self { shards: Shards::new(threads) }
    }

    pub fn shard(&self, thread: usize) -> &ServiceShard {
        self.shards.get(thread)
    }

    /// Sums over all threads.
    pub fn totals(&self) -> ServiceTotals {
        let mut sum = ServiceTotals::default();
        let merge = |total: &mut u64, value: &AtomicU64| *total = total.wrapping_add(value.load(Relaxed));
        for shard in self.shards.iter() {
            sum.codes.iter_mut().zip(&shard.codes).for_each(|(total, value)| merge(total, value));
            sum.durations.iter_mut().zip(&shard.durations).for_each(|(total, value)| merge(total, value));
            merge(&mut sum.duration_ns, &shard.duration_ns);
            merge(&mut sum.bytes_in, &shard.bytes_in);
            merge(&mut sum.bytes_out, &shard.bytes_out);
            merge(&mut sum.active_connections, &shard.active_connections);
            merge(&mut sum.retries, &shard.retries);
            merge(&mut sum.connect_failures, &shard.connect_failures);
            merge(&mut sum.upstream_opened, &shard.upstream_opened);
            merge(&mut sum.upstream_reused, &shard.upstream_reused);
        }
        sum
    }
}

/// Counters of a route's rule on one thread.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct RouteShard {
    pub requests: AtomicU64,
}

/// Counters of a route's rule.
#[derive(Debug)]
pub(crate) struct RouteStats {
    shards: Shards<RouteShard>,
}

impl RouteStats {
    pub fn new(threads: usize) -> Self {
        Self { shards: Shards::new(threads) }
    }

    pub fn shard(&self, thread: usize) -> &RouteShard {
        self.shards.get(thread)
    }
}

/// Cumulative usage of one Pod, for billing. Survives snapshots and address changes of the Pod.
#[derive(Debug)]
pub(crate) struct PodUsage {
    shards: Shards<PodShard>,
    /// Unix seconds when an endpoint of the Pod last left its Service; 0 before.
    pub gone_since: AtomicI64,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct PodShard {
    requests: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

/// Sums of a Pod's usage since this process started; only ever grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodTotals {
    /// Requests (HTTP) and connections (TCP) served.
    pub requests: u64,
    /// Payload bytes received for the Pod.
    pub bytes_in: u64,
    /// Payload bytes sent by the Pod.
    pub bytes_out: u64,
}

impl PodUsage {
    pub fn new(threads: usize) -> Self {
        Self { shards: Shards::new(threads), gone_since: AtomicI64::new(0) }
    }

    pub fn request(&self, thread: usize) {
        add(&self.shards.get(thread).requests, 1);
    }

    pub fn received(&self, thread: usize, bytes: u64) {
        add(&self.shards.get(thread).bytes_in, bytes);
    }

    pub fn sent(&self, thread: usize, bytes: u64) {
        add(&self.shards.get(thread).bytes_out, bytes);
    }

    pub fn totals(&self) -> PodTotals {
        let mut sum = PodTotals::default();
        for shard in self.shards.iter() {
            sum.requests += shard.requests.load(Relaxed);
            sum.bytes_in += shard.bytes_in.load(Relaxed);
            sum.bytes_out += shard.bytes_out.load(Relaxed);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_fall_into_their_class_and_bucket() {
        let stats = ServiceStats::new(2);
        stats.shard(0).record(200, Duration::from_micros(500));
        stats.shard(1).record(204, Duration::from_micros(501));
        stats.shard(1).record(503, Duration::from_secs(60));
        stats.shard(0).record(CODE_CLIENT_GONE, Duration::ZERO);
        let totals = stats.totals();
        assert_eq!(totals.codes, [0, 2, 0, 0, 1, 1]);
        assert_eq!(totals.durations[0], 2);
        assert_eq!(totals.durations[1], 1);
        assert_eq!(totals.durations[13], 1);
    }

    #[test]
    fn bucket_tables_agree() {
        for (seconds, ns) in DURATION_BUCKETS.iter().zip(DURATION_BUCKETS_NS) {
            assert!((seconds * 1e9 - ns as f64).abs() < 1.0, "{seconds} s is not {ns} ns");
        }
    }
}
