//! A work queue as client-go's: a key is in it once, worked on by one worker at a time, delayed and backed off per key.
//!
//! It holds keys only, so its size is bounded by the number of objects. It never drops a key and never does I/O.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::metrics::QueueMetrics;

/// First delay after a failure; doubles with each further one (upstream's `ItemExponentialFailureRateLimiter`).
pub const BASE_BACKOFF: Duration = Duration::from_millis(5);
/// Longest delay after a failure. Upstream's 1,000 s would leave a controller asleep long after an outage.
pub const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// What a key must be.
pub trait QueueKey: Clone + Eq + Hash + Ord + Send + Sync + std::fmt::Display + 'static {}
impl<T: Clone + Eq + Hash + Ord + Send + Sync + std::fmt::Display + 'static> QueueKey for T {}

struct Inner<K> {
    /// Keys to hand out, in order.
    ready: VecDeque<K>,
    /// When each key in `ready` was put there.
    since: HashMap<K, Instant>,
    /// Keys to hand out again once they are done.
    again: HashSet<K>,
    /// Keys that a worker has.
    working: HashMap<K, Instant>,
    /// Keys to become ready later; entries that differ from `due` are obsolete.
    delayed: BinaryHeap<Reverse<(Instant, K)>>,
    due: HashMap<K, Instant>,
    /// Failures in a row.
    failures: HashMap<K, u32>,
}

/// The queue. Share it in an `Arc`.
pub struct Queue<K> {
    inner: Mutex<Inner<K>>,
    wake: Notify,
    metrics: QueueMetrics,
}

/// Delay before try number `failures + 1`.
fn backoff(failures: u32) -> Duration {
    BASE_BACKOFF.saturating_mul(2u32.saturating_pow(failures.min(20))).min(MAX_BACKOFF)
}

impl<K: QueueKey> Queue<K> {
    /// An empty queue.
    pub fn new(metrics: QueueMetrics) -> Self {
        let inner = Inner {
            ready: VecDeque::new(),
            since: HashMap::new(),
            again: HashSet::new(),
            working: HashMap::new(),
            delayed: BinaryHeap::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
        };
        Self { inner: Mutex::new(inner), wake: Notify::new(), metrics }
    }

    /// Puts `key` at the end, unless it waits already. A key that is being worked on is handed out again afterwards.
    pub fn add(&self, key: K) {
        let mut inner = self.inner.lock();
        self.add_locked(&mut inner, key);
        drop(inner);
        self.wake.notify_one();
    }

    fn add_locked(&self, inner: &mut Inner<K>, key: K) {
        if inner.working.contains_key(&key) {
            if inner.again.insert(key) {
                self.metrics.adds.inc();
            }
        } else if !inner.since.contains_key(&key) {
            inner.since.insert(key.clone(), Instant::now());
            inner.ready.push_back(key);
            self.metrics.adds.inc();
            self.metrics.depth.set(i64::try_from(inner.ready.len()).unwrap_or(i64::MAX));
        }
    }

    /// Adds `key` after `delay`; of several delays the shortest counts.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let at = Instant::now() + delay;
        let mut inner = self.inner.lock();
        if inner.due.get(&key).is_some_and(|due| *due <= at) {
            return;
        }
        inner.due.insert(key.clone(), at);
        inner.delayed.push(Reverse((at, key)));
        drop(inner);
        self.wake.notify_one();
    }

    /// Adds `key` after a delay that doubles with each call, until [`Queue::forget`].
    pub fn add_rate_limited(&self, key: K) {
        let delay = {
            let mut inner = self.inner.lock();
            let failures = inner.failures.entry(key.clone()).or_insert(0);
            *failures = failures.saturating_add(1);
            backoff(*failures - 1)
        };
        self.metrics.retries.inc();
        self.add_after(key, delay);
    }

    /// Ends the backoff of `key`.
    pub fn forget(&self, key: &K) {
        self.inner.lock().failures.remove(key);
    }

    /// The next key; waits for one. Call [`Queue::done`] with it. Cancel-safe.
    pub async fn get(&self) -> K {
        loop {
            let next_due = {
                let mut inner = self.inner.lock();
                self.promote(&mut inner);
                if let Some(key) = inner.ready.pop_front() {
                    let now = Instant::now();
                    if let Some(since) = inner.since.remove(&key) {
                        self.metrics.queue_duration.observe((now - since).as_secs_f64());
                    }
                    inner.working.insert(key.clone(), now);
                    self.metrics.depth.set(i64::try_from(inner.ready.len()).unwrap_or(i64::MAX));
                    if !inner.ready.is_empty() {
                        // One wake-up may stand for several adds: pass it on.
                        self.wake.notify_one();
                    }
                    return key;
                }
                inner.delayed.peek().map(|Reverse((at, _))| *at)
            };
            match next_due {
                Some(at) => {
                    tokio::select! {
                        () = self.wake.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                None => self.wake.notified().await,
            }
        }
    }

    fn promote(&self, inner: &mut Inner<K>) {
        let now = Instant::now();
        while inner.delayed.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            let Some(Reverse((at, key))) = inner.delayed.pop() else { return };
            if inner.due.get(&key) == Some(&at) {
                inner.due.remove(&key);
                self.add_locked(inner, key);
            }
        }
    }

    /// Says that the work on `key` is over.
    pub fn done(&self, key: &K) {
        let mut inner = self.inner.lock();
        if let Some(started) = inner.working.remove(key) {
            self.metrics.work_duration.observe(started.elapsed().as_secs_f64());
        }
        if inner.again.remove(key) && !inner.since.contains_key(key) {
            inner.since.insert(key.clone(), Instant::now());
            inner.ready.push_back(key.clone());
            self.metrics.depth.set(i64::try_from(inner.ready.len()).unwrap_or(i64::MAX));
        }
        drop(inner);
        self.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::metrics::Metrics;

    fn queue() -> Queue<String> {
        Queue::new(Metrics::unregistered().queue("test"))
    }

    /// Long enough for anything that should come, short enough to wait for what should not.
    const SOON: Duration = Duration::from_millis(100);

    #[test]
    fn backoff_doubles_up_to_a_bound() {
        let ms: Vec<u128> = (0..5).map(|n| backoff(n).as_millis()).collect();
        assert_eq!(ms, [5, 10, 20, 40, 80]);
        assert_eq!(backoff(u32::MAX), MAX_BACKOFF);
    }

    #[tokio::test]
    async fn a_key_waits_once_and_is_worked_on_by_one() {
        let q = queue();
        q.add("a".into());
        q.add("a".into());
        q.add("b".into());
        assert_eq!(q.get().await, "a");
        q.add("a".into());
        assert_eq!(q.get().await, "b");
        assert!(tokio::time::timeout(SOON, q.get()).await.is_err(), "a is being worked on");
        q.done(&"a".to_owned());
        assert_eq!(q.get().await, "a");
        q.done(&"a".to_owned());
        assert!(tokio::time::timeout(SOON, q.get()).await.is_err());
    }

    #[tokio::test]
    async fn the_shortest_delay_counts() {
        let q = queue();
        let start = Instant::now();
        q.add_after("a".into(), Duration::from_millis(80));
        q.add_after("a".into(), Duration::from_millis(20));
        q.add_after("a".into(), Duration::from_millis(90));
        assert_eq!(q.get().await, "a");
        assert!(start.elapsed() >= Duration::from_millis(20));
        q.done(&"a".to_owned());
        assert!(tokio::time::timeout(SOON, q.get()).await.is_err(), "handed out once");
    }

    #[tokio::test]
    async fn failures_back_off_until_forgotten() {
        let q = queue();
        for (round, at_least_ms) in [5, 10, 20, 5, 10].into_iter().enumerate() {
            if round == 3 {
                q.forget(&"a".to_owned());
            }
            let failures = q.inner.lock().failures.get("a").copied().unwrap_or(0);
            assert_eq!(backoff(failures).as_millis(), at_least_ms);
            let start = Instant::now();
            q.add_rate_limited("a".into());
            let key = q.get().await;
            q.done(&key);
            assert!(start.elapsed().as_millis() >= at_least_ms, "round {round}");
        }
    }

    #[tokio::test]
    async fn many_workers_get_every_key() {
        let q = std::sync::Arc::new(queue());
        let seen = std::sync::Arc::new(Mutex::new(HashSet::new()));
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let (q, seen) = (q.clone(), seen.clone());
                tokio::spawn(async move {
                    loop {
                        let key = q.get().await;
                        seen.lock().insert(key.clone());
                        tokio::task::yield_now().await;
                        q.done(&key);
                    }
                })
            })
            .collect();
        for n in 0..1000 {
            q.add(n.to_string());
        }
        while seen.lock().len() < 1000 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        workers.iter().for_each(|w| w.abort());
    }
}
