//! Counters written on the hot path: one shard per proxy thread, merged when somebody reads.
//!
//! A shard has one writer, so counting is a plain load and store; a reader may see a value a moment old, never a torn one.

mod listeners;
mod pods;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

pub use listeners::ListenerTotals;
pub(crate) use listeners::{ListenerStats, PROTOCOLS, Spoken};
pub use pods::PodTotals;
pub(crate) use pods::PodUsage;

/// Upper bounds of the request duration histogram in seconds; an unbounded bucket follows. At most a factor of 2.5 apart from
/// 100 µs to 60 s, so that p50, p90 and p99 can be read off for fast and slow Services alike.
pub(crate) const DURATION_BUCKETS: [f64; BUCKETS - 1] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Buckets of a histogram, the unbounded one included.
pub(crate) const BUCKETS: usize = 19;
const DURATION_BUCKETS_NS: [u64; BUCKETS - 1] = [
    100_000,
    250_000,
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
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
];
/// Label values of `code`, by index `status / 100 - 1`; the last one is a client that went away before the response.
pub(crate) const CODE_CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "client_gone"];
/// Stands for a request whose client left before a response was sent.
pub(crate) const CODE_CLIENT_GONE: u16 = 600;

/// Index of a status in [`CODE_CLASSES`].
fn class(code: u16) -> usize {
    usize::from(code / 100).saturating_sub(1).min(CODE_CLASSES.len() - 1)
}

/// Adds without a locked instruction: only the shard's own thread writes.
pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(amount), Relaxed);
}

/// Subtracts, likewise.
pub(crate) fn sub(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Relaxed).wrapping_sub(amount), Relaxed);
}

/// One `T` per proxy thread, made when one of them counts for the first time: most of thousands of routes never see a request.
#[derive(Debug)]
pub(crate) struct Shards<T> {
    threads: usize,
    shards: OnceLock<Box<[T]>>,
}

impl<T: Default> Shards<T> {
    pub fn new(threads: usize) -> Self {
        Self { threads: threads.max(1), shards: OnceLock::new() }
    }

    pub fn get(&self, thread: usize) -> &T {
        let shards = self.shards.get_or_init(|| (0..self.threads).map(|_| T::default()).collect());
        &shards[thread % self.threads]
    }

    /// Of the threads; none as long as nobody has counted.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.shards.get().into_iter().flatten()
    }
}

/// Durations by bucket, written by one thread.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = DURATION_BUCKETS_NS.iter().position(|bound| ns <= *bound).unwrap_or(DURATION_BUCKETS_NS.len());
        add(&self.buckets[bucket], 1);
        add(&self.sum_ns, ns);
    }

    fn add_to(&self, total: &mut Durations) {
        total.buckets.iter_mut().zip(&self.buckets).for_each(|(total, value)| merge(total, value));
        merge(&mut total.sum_ns, &self.sum_ns);
    }
}

/// Sums of a histogram at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Durations {
    /// How many fell into each bucket, not cumulative; the last one is unbounded.
    pub buckets: [u64; BUCKETS],
    /// Sum in nanoseconds.
    pub sum_ns: u64,
}

impl Durations {
    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, bucket| sum.wrapping_add(*bucket))
    }

    /// Adds another histogram's.
    pub fn merge(&mut self, other: &Self) {
        self.buckets.iter_mut().zip(other.buckets).for_each(|(total, value)| *total = total.wrapping_add(value));
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns);
    }
}

fn merge(total: &mut u64, value: &AtomicU64) {
    *total = total.wrapping_add(value.load(Relaxed));
}

/// What is counted of requests, whoever they are counted for, on one thread.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct RequestShard {
    codes: [AtomicU64; 6],
    durations: Histogram,
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
    pub retries: AtomicU64,
}

impl RequestShard {
    /// Counts a finished request.
    pub fn record(&self, code: u16, duration: Duration) {
        add(&self.codes[class(code)], 1);
        self.durations.observe(duration);
    }

    fn add_to(&self, sum: &mut RequestTotals) {
        sum.codes.iter_mut().zip(&self.codes).for_each(|(total, value)| merge(total, value));
        self.durations.add_to(&mut sum.durations);
        merge(&mut sum.bytes_in, &self.bytes_in);
        merge(&mut sum.bytes_out, &self.bytes_out);
        merge(&mut sum.retries, &self.retries);
    }
}

/// Requests of a route's rule, or of an image.
#[derive(Debug)]
pub(crate) struct RequestStats {
    shards: Shards<RequestShard>,
}

/// Requests of a route's rule.
pub(crate) type RouteStats = RequestStats;

/// Sums of requests at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RequestTotals {
    /// Finished requests by code class (1xx … 5xx, client gone).
    pub codes: [u64; 6],
    /// How long they took.
    pub durations: Durations,
    /// Payload bytes from clients.
    pub bytes_in: u64,
    /// Payload bytes to clients.
    pub bytes_out: u64,
    /// Attempts after the first.
    pub retries: u64,
}

impl RequestTotals {
    /// Adds others.
    pub fn merge(&mut self, other: &Self) {
        self.codes.iter_mut().zip(other.codes).for_each(|(total, value)| *total = total.wrapping_add(value));
        self.durations.merge(&other.durations);
        self.bytes_in = self.bytes_in.wrapping_add(other.bytes_in);
        self.bytes_out = self.bytes_out.wrapping_add(other.bytes_out);
        self.retries = self.retries.wrapping_add(other.retries);
    }
}

impl RequestStats {
    pub fn new(threads: usize) -> Self {
        Self { shards: Shards::new(threads) }
    }

    pub fn shard(&self, thread: usize) -> &RequestShard {
        self.shards.get(thread)
    }

    /// Sums over all threads.
    pub fn totals(&self) -> RequestTotals {
        let mut sum = RequestTotals::default();
        self.shards.iter().for_each(|shard| shard.add_to(&mut sum));
        sum
    }
}

/// Counters of a Service on one thread. Whoever makes a decision counts it, with [`add`] or the methods.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct ServiceShard {
    codes: [AtomicU64; 6],
    durations: Histogram,
    connects: Histogram,
    queue_waits: Histogram,
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
    pub active_connections: AtomicU64,
    pub retries: AtomicU64,
    pub connect_failures: AtomicU64,
    pub upstream_opened: AtomicU64,
    pub upstream_reused: AtomicU64,
    rate_limited: AtomicU64,
    overloaded: AtomicU64,
    queue_depth: AtomicU64,
}

impl ServiceShard {
    /// Counts a finished request.
    pub fn record(&self, code: u16, duration: Duration) {
        add(&self.codes[class(code)], 1);
        self.durations.observe(duration);
    }

    /// A connection to an endpoint was opened within `time`.
    pub fn connected(&self, time: Duration) {
        add(&self.upstream_opened, 1);
        self.connects.observe(time);
    }

    /// A request was refused: not let through by a rate limit (429), or for what is in flight already (503).
    pub fn refused(&self, refusal: &crate::balance::Refusal) {
        match refusal {
            crate::balance::Refusal::RateLimited { .. } => add(&self.rate_limited, 1),
            crate::balance::Refusal::Overloaded { .. } => add(&self.overloaded, 1),
        }
    }

    /// A request waits in the Service's queue from now on.
    #[cfg_attr(not(test), expect(dead_code, reason = "called where requests wait, which is not built in yet"))]
    pub fn queued(&self) {
        add(&self.queue_depth, 1);
    }

    /// It waited this long, whether it was let through or gave up. On the thread that called [`Self::queued`].
    #[cfg_attr(not(test), expect(dead_code, reason = "called where requests wait, which is not built in yet"))]
    pub fn left_queue(&self, waited: Duration) {
        sub(&self.queue_depth, 1);
        self.queue_waits.observe(waited);
    }
}

/// Counters of one Service.
#[derive(Debug)]
pub(crate) struct ServiceStats {
    shards: Shards<ServiceShard>,
    /// Written by any thread: rare.
    ejections: AtomicU64,
}

/// Sums of a [`ServiceStats`] at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ServiceTotals {
    /// Finished requests by code class (1xx … 5xx, client gone).
    pub codes: [u64; 6],
    /// How long they took.
    pub durations: Durations,
    /// How long connecting to endpoints took.
    pub connects: Durations,
    /// How long requests waited in the queue.
    pub queue_waits: Durations,
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
    /// Requests refused by a rate limit.
    pub rate_limited: u64,
    /// Requests refused because too much was in flight.
    pub overloaded: u64,
    /// Requests waiting now.
    pub queue_depth: u64,
    /// Times an endpoint was ejected.
    pub ejections: u64,
}

impl ServiceStats {
    pub fn new(threads: usize) -> Self {
        Self { shards: Shards::new(threads), ejections: AtomicU64::new(0) }
    }

    pub fn shard(&self, thread: usize) -> &ServiceShard {
        self.shards.get(thread)
    }

    /// An endpoint was ejected. From any thread.
    #[cfg_attr(not(test), expect(dead_code, reason = "called where endpoints are ejected, which is not built in yet"))]
    pub fn ejected(&self) {
        self.ejections.fetch_add(1, Relaxed);
    }

    /// Sums over all threads.
    pub fn totals(&self) -> ServiceTotals {
        let mut sum = ServiceTotals { ejections: self.ejections.load(Relaxed), ..ServiceTotals::default() };
        for shard in self.shards.iter() {
            sum.codes.iter_mut().zip(&shard.codes).for_each(|(total, value)| merge(total, value));
            shard.durations.add_to(&mut sum.durations);
            shard.connects.add_to(&mut sum.connects);
            shard.queue_waits.add_to(&mut sum.queue_waits);
            merge(&mut sum.bytes_in, &shard.bytes_in);
            merge(&mut sum.bytes_out, &shard.bytes_out);
            merge(&mut sum.active_connections, &shard.active_connections);
            merge(&mut sum.retries, &shard.retries);
            merge(&mut sum.connect_failures, &shard.connect_failures);
            merge(&mut sum.upstream_opened, &shard.upstream_opened);
            merge(&mut sum.upstream_reused, &shard.upstream_reused);
            merge(&mut sum.rate_limited, &shard.rate_limited);
            merge(&mut sum.overloaded, &shard.overloaded);
            merge(&mut sum.queue_depth, &shard.queue_depth);
        }
        sum
    }
}

/// How configuration reaches traffic. Written by the one task that publishes.
#[derive(Debug, Default)]
pub(crate) struct ConfigStats {
    publish: Histogram,
    effect: Histogram,
}

impl ConfigStats {
    /// A snapshot was published, which took `publish`; `effect` is the time since the event that asked for it, if it is known.
    pub fn published(&self, publish: Duration, effect: Option<Duration>) {
        self.publish.observe(publish);
        if let Some(effect) = effect {
            self.effect.observe(effect);
        }
    }

    /// How long publishing took, and how long after the event it was over.
    pub fn totals(&self) -> (Durations, Durations) {
        let mut sums = (Durations::default(), Durations::default());
        self.publish.add_to(&mut sums.0);
        self.effect.add_to(&mut sums.1);
        sums
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
        assert_eq!(totals.durations.buckets[0], 1);
        assert_eq!(totals.durations.buckets[2], 1);
        assert_eq!(totals.durations.buckets[3], 1);
        assert_eq!(totals.durations.buckets[17], 1);
        assert_eq!(totals.durations.count(), 4);
    }

    #[test]
    fn every_thread_counts_into_the_same_sums() {
        let stats = ServiceStats::new(2);
        let limited = crate::balance::Refusal::RateLimited { limit: "l".into(), retry_after: Duration::ZERO };
        stats.shard(0).refused(&limited);
        stats.shard(1).refused(&limited);
        stats.shard(1).refused(&crate::balance::Refusal::Overloaded { retry_after: Duration::ZERO });
        stats.shard(0).queued();
        stats.shard(1).queued();
        stats.shard(1).left_queue(Duration::from_millis(2));
        stats.shard(0).connected(Duration::from_micros(80));
        stats.ejected();
        let totals = stats.totals();
        assert_eq!((totals.rate_limited, totals.overloaded, totals.queue_depth, totals.ejections), (2, 1, 1, 1));
        assert_eq!((totals.queue_waits.count(), totals.queue_waits.sum_ns), (1, 2_000_000));
        assert_eq!((totals.upstream_opened, totals.connects.buckets[0]), (1, 1));
        let listener = ListenerStats::new(2);
        for thread in 0..2 {
            listener.shard(thread).accepted();
            listener.shard(thread).speaks(Spoken::Http2);
            listener.shard(thread).handshake(thread == 0);
            listener.shard(thread).answered(404);
        }
        listener.shard(1).closed();
        listener.shard(1).refused();
        let expected = ListenerTotals {
            accepted: 2,
            active: 1,
            refused: 1,
            tls_ok: 1,
            tls_failed: 1,
            spoken: [0, 2, 0],
            unrouted: [0, 0, 0, 2, 0, 0],
        };
        assert_eq!(listener.totals(), expected);
    }

    #[test]
    fn bucket_tables_agree() {
        for (seconds, ns) in DURATION_BUCKETS.iter().zip(DURATION_BUCKETS_NS) {
            assert!((seconds * 1e9 - ns as f64).abs() < 1.0, "{seconds} s is not {ns} ns");
        }
    }
}
