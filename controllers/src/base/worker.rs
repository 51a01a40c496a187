//! The thin loop around a reconciler: take a key, reconcile, requeue. All retrying happens here.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::calls::Error;
use super::queue::{Queue, QueueKey};

/// How long a reconcile under way may go on after shutdown began.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// What follows a reconcile that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing until something changes.
    Done,
    /// Again after this time: something becomes due then.
    After(Duration),
    /// Again with growing delays: something is under way elsewhere (a namespace emptying).
    Backoff,
}

/// Brings one object closer to what it should be.
#[async_trait]
pub trait Reconcile: Send + Sync + 'static {
    /// What it is given.
    type Key: QueueKey;
    /// Idempotent; sees the world through caches and live reads, never through what woke it.
    async fn reconcile(&self, key: &Self::Key) -> Result<Outcome, Error>;
}

/// Runs `workers` concurrent loops until `shutdown`, then lets reconciles under way finish.
pub async fn run<R: Reconcile>(
    name: &'static str,
    queue: Arc<Queue<R::Key>>,
    reconciler: Arc<R>,
    workers: usize,
    shutdown: CancellationToken,
) {
    let mut tasks = JoinSet::new();
    for _ in 0..workers.max(1) {
        let (queue, reconciler, shutdown) = (queue.clone(), reconciler.clone(), shutdown.clone());
        tasks.spawn(async move {
            loop {
                let key = tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return,
                    key = queue.get() => key,
                };
                step(name, &queue, reconciler.as_ref(), &key).await;
                queue.done(&key);
            }
        });
    }
    shutdown.cancelled().await;
    let drained = tokio::time::timeout(DRAIN_TIMEOUT, async { while tasks.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        warn!(controller = name, "reconciles did not finish within {} s of shutdown", DRAIN_TIMEOUT.as_secs());
    }
}

async fn step<R: Reconcile>(name: &'static str, queue: &Queue<R::Key>, reconciler: &R, key: &R::Key) {
    // A panic is a bug; it must cost one key a retry, not the controller its worker.
    match AssertUnwindSafe(reconciler.reconcile(key)).catch_unwind().await {
        Ok(Ok(Outcome::Done)) => queue.forget(key),
        Ok(Ok(Outcome::After(delay))) => {
            queue.forget(key);
            queue.add_after(key.clone(), delay);
        }
        Ok(Ok(Outcome::Backoff)) => queue.add_rate_limited(key.clone()),
        Ok(Err(e)) => {
            let cause = std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default();
            if e.is_conflict() || matches!(e, Error::Stale { .. } | Error::Discovery { .. }) {
                debug!(controller = name, %key, error = %e, cause, "will retry");
            } else {
                warn!(controller = name, %key, error = %e, cause, "will retry");
            }
            queue.add_rate_limited(key.clone());
        }
        Err(_) => {
            error!(controller = name, %key, "the reconcile panicked; will retry");
            queue.add_rate_limited(key.clone());
        }
    }
}

/// Adds every key now and then: a lost event delays work, it never loses it.
pub async fn resync<K: QueueKey>(
    queue: Arc<Queue<K>>,
    period: Duration,
    keys: impl Fn() -> Vec<K> + Send,
    shutdown: CancellationToken,
) {
    loop {
        keys().into_iter().for_each(|key| queue.add(key));
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(period) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::metrics::Metrics;
    use parking_lot::Mutex;

    struct Script(Mutex<Vec<&'static str>>, CancellationToken);

    #[async_trait]
    impl Reconcile for Script {
        type Key = String;
        async fn reconcile(&self, _: &String) -> Result<Outcome, Error> {
            let next = self.0.lock().pop();
            match next {
                Some("fail") => Err(Error::Stale { object: "a".into() }),
                Some("panic") => panic!("scripted"),
                Some("after") => Ok(Outcome::After(Duration::from_millis(50))),
                Some("backoff") => Ok(Outcome::Backoff),
                _ => {
                    self.1.cancel();
                    Ok(Outcome::Done)
                }
            }
        }
    }

    #[tokio::test]
    async fn failures_and_panics_are_retried() {
        let queue = Arc::new(Queue::new(Metrics::unregistered().queue("test")));
        let shutdown = CancellationToken::new();
        let script = Script(Mutex::new(vec!["after", "backoff", "panic", "fail"]), shutdown.clone());
        let start = tokio::time::Instant::now();
        let drained = shutdown.clone();
        queue.add("a".to_owned());
        run("test", queue, Arc::new(script), 2, shutdown).await;
        // 5 + 10 + 20 ms of backoff, then 50 ms: the script was played to its end, in its time.
        assert!(drained.is_cancelled() && start.elapsed() >= Duration::from_millis(85));
    }
}
