//! Counters of a listener: connections, handshakes, and requests that belong to no rule.

use std::sync::atomic::AtomicU64;

use super::{Shards, add, class, merge};

/// What clients speak on a listener, by index into [`PROTOCOLS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    Http1,
    Http2,
    /// Bytes or datagrams.
    Raw,
}

/// Label values of `protocol`.
pub(crate) const PROTOCOLS: [&str; 3] = ["h1", "h2", "raw"];

/// Counters of a listener on one thread.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct ListenerShard {
    accepted: AtomicU64,
    closed: AtomicU64,
    refused: AtomicU64,
    tls_ok: AtomicU64,
    tls_failed: AtomicU64,
    spoken: [AtomicU64; 3],
    answers: [AtomicU64; 6],
}

impl ListenerShard {
    /// A client connected; [`Self::closed`] once it is gone.
    pub fn accepted(&self) {
        add(&self.accepted, 1);
    }

    /// A counted connection is gone.
    pub fn closed(&self) {
        add(&self.closed, 1);
    }

    /// A client was turned away: too many connections.
    pub fn refused(&self) {
        add(&self.refused, 1);
    }

    /// A TLS handshake is over.
    pub fn handshake(&self, ok: bool) {
        add(if ok { &self.tls_ok } else { &self.tls_failed }, 1);
    }

    /// It is known what a connection speaks.
    pub fn speaks(&self, protocol: Spoken) {
        add(&self.spoken[protocol as usize], 1);
    }

    /// A request that no rule matched, or that was refused before, was answered with this status.
    pub fn answered(&self, code: u16) {
        add(&self.answers[class(code)], 1);
    }
}

/// Counters of a listener.
#[derive(Debug)]
pub(crate) struct ListenerStats {
    shards: Shards<ListenerShard>,
}

/// Sums of a listener at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenerTotals {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections open now.
    pub active: u64,
    /// Connections turned away.
    pub refused: u64,
    /// TLS handshakes that worked.
    pub tls_ok: u64,
    /// TLS handshakes that failed.
    pub tls_failed: u64,
    /// Connections by what they speak: HTTP/1, HTTP/2, anything.
    pub spoken: [u64; 3],
    /// Requests that belong to no rule, by code class.
    pub unrouted: [u64; 6],
}

impl ListenerStats {
    pub fn new(threads: usize) -> Self {
        Self { shards: Shards::new(threads) }
    }

    pub fn shard(&self, thread: usize) -> &ListenerShard {
        self.shards.get(thread)
    }

    /// Sums over all threads.
    pub fn totals(&self) -> ListenerTotals {
        let mut sum = ListenerTotals::default();
        let mut closed = 0;
        for shard in self.shards.iter() {
            // In this order: what closes meanwhile must not be missing among the accepted.
            merge(&mut closed, &shard.closed);
            merge(&mut sum.accepted, &shard.accepted);
            merge(&mut sum.refused, &shard.refused);
            merge(&mut sum.tls_ok, &shard.tls_ok);
            merge(&mut sum.tls_failed, &shard.tls_failed);
            sum.spoken.iter_mut().zip(&shard.spoken).for_each(|(total, value)| merge(total, value));
            sum.unrouted.iter_mut().zip(&shard.answers).for_each(|(total, value)| merge(total, value));
        }
        sum.active = sum.accepted.saturating_sub(closed);
        sum
    }
}

impl Default for ListenerStats {
    /// Of a listener that serves nobody.
    fn default() -> Self {
        Self::new(1)
    }
}
