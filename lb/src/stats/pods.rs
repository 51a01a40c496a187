//! Usage of Pods, for billing.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use super::{RequestStats, Shards, add};

/// Cumulative usage of one Pod, for billing. Survives snapshots and address changes of the Pod.
#[derive(Debug)]
pub(crate) struct PodUsage {
    shards: Shards<PodShard>,
    /// Unix seconds when an endpoint of the Pod last left its Service; 0 before.
    pub gone_since: AtomicI64,
    /// Requests of the Pod's image, once it is known (only when image metrics are on).
    image: OnceLock<Arc<RequestStats>>,
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
        Self { shards: Shards::new(threads), gone_since: AtomicI64::new(0), image: OnceLock::new() }
    }

    /// The Pod runs this image; the first one said counts, as a Pod's does while it is billed.
    pub fn set_image(&self, stats: Arc<RequestStats>) {
        // Known already.
        let _ = self.image.set(stats);
    }

    /// Where requests of the Pod's image are counted.
    pub fn image(&self) -> Option<&RequestStats> {
        self.image.get().map(|stats| &**stats)
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
