//! Rate limits: which bucket a request takes its token from, in this process or shared by Redis.
//!
//! A shared bucket is asked for a few tokens at a time, and waited for at most [`super::shared::PATIENCE`]; what was got in advance is
//! used up first, and a refusal is remembered for as long as it holds. While Redis is away the bucket of this process decides.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::clock;
use super::gcra::{Keys, Rate};
use super::shared::{Answer, Shared};
use super::{Refusal, hashing};
use crate::policy::{RateLimit, RatePer};
use crate::route::Head;

/// Longest key that is written to Redis as it is; of longer ones a part and a hash.
const MAX_KEY_BYTES: usize = 96;
/// How long tokens got in advance may be used.
const LEASE_NS: u64 = 1_000_000_000;
/// Tokens are got in advance for this long.
const ADVANCE_NS: u64 = 10_000_000;
/// Most of a burst that is got in advance: one part of so many.
const ADVANCE_PARTS: u32 = 8;

/// One rule's buckets.
#[derive(Debug)]
pub(crate) struct Limiter {
    pub rule: RateLimit,
    rate: Rate,
    /// The bucket of `per: Target` in this process.
    whole: AtomicU64,
    keys: Keys,
    shared: Arc<Shared>,
    /// Requests let through and refused, for metrics.
    pub passed: AtomicU64,
    pub refused: AtomicU64,
}

impl Limiter {
    pub fn new(rule: RateLimit, shared: Arc<Shared>) -> Self {
        Self {
            rate: Rate::new(rule.requests, rule.interval, rule.burst),
            rule,
            whole: AtomicU64::new(0),
            keys: Keys::default(),
            shared,
            passed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Takes a token for a request.
    pub async fn check(&self, head: &impl Head) -> Result<(), Refusal> {
        let key = self.key(head);
        let now_ns = clock::ns(Instant::now());
        let taken = if self.rule.shared && self.shared.is_there() {
            self.take_shared(&key, now_ns).await
        } else {
            self.take(&key, now_ns)
        };
        let counter = if taken.is_ok() { &self.passed } else { &self.refused };
        counter.fetch_add(1, Relaxed);
        taken.map_err(|wait_ns| Refusal::RateLimited {
            limit: self.rule.name.clone(),
            retry_after: Duration::from_nanos(wait_ns),
        })
    }

    /// Gives the token back that a request has taken which is refused for another reason.
    pub fn give_back(&self, head: &impl Head) {
        self.passed.fetch_sub(1, Relaxed);
        let (key, now_ns) = (self.key(head), clock::ns(Instant::now()));
        let shared = self.rule.shared && self.shared.is_there();
        if self.rule.per == RatePer::Target && !shared {
            self.whole.fetch_sub(self.rate.emission_ns, Relaxed);
            return;
        }
        self.keys.with(&key, now_ns, |entry| {
            if shared {
                (entry.lease, entry.lease_end_ns) = (entry.lease.saturating_add(1), now_ns.saturating_add(LEASE_NS));
            } else {
                entry.bucket = entry.bucket.saturating_sub(self.rate.emission_ns);
            }
        });
    }

    /// What the request's bucket is called. IPv6 clients are told apart by their /64, which is what one customer has.
    fn key<'h>(&self, head: &'h impl Head) -> Cow<'h, [u8]> {
        match &self.rule.per {
            RatePer::Target => Cow::Borrowed(b""),
            RatePer::ClientIp => match head.client().to_canonical() {
                IpAddr::V4(ip) => Cow::Owned(ip.octets().to_vec()),
                IpAddr::V6(ip) => Cow::Owned(ip.octets()[..8].to_vec()),
            },
            RatePer::Header(name) => match head.header(name) {
                Some(Cow::Borrowed(value)) => Cow::Borrowed(value.as_bytes()),
                Some(Cow::Owned(value)) => Cow::Owned(value.into_bytes()),
                None => Cow::Borrowed(b""),
            },
        }
    }

    /// From the bucket of this process; how long to wait if it is empty.
    fn take(&self, key: &[u8], now_ns: u64) -> Result<(), u64> {
        if self.rule.per == RatePer::Target {
            let mut bucket = self.whole.load(Relaxed);
            loop {
                let after = self.rate.take(bucket, now_ns)?;
                match self.whole.compare_exchange_weak(bucket, after, Relaxed, Relaxed) {
                    Ok(_) => return Ok(()),
                    Err(current) => bucket = current,
                }
            }
        }
        self.keys.with(key, now_ns, |entry| {
            entry.bucket = self.rate.take(entry.bucket, now_ns)?;
            Ok(())
        })
    }

    async fn take_shared(&self, key: &[u8], now_ns: u64) -> Result<(), u64> {
        let known = self.keys.with(key, now_ns, |entry| {
            if entry.lease > 0 && now_ns < entry.lease_end_ns {
                entry.lease -= 1;
                return Some(Ok(()));
            }
            entry.denied_until_ns.checked_sub(now_ns).filter(|wait| *wait > 0).map(Err)
        });
        if let Some(known) = known {
            return known;
        }
        let advance =
            (ADVANCE_NS / self.rate.emission_ns).clamp(1, u64::from((self.rule.burst / ADVANCE_PARTS).max(1)));
        match self.shared.take(&self.name(key), self.rate, advance).await {
            Answer::Granted(tokens) => {
                self.keys.with(key, now_ns, |entry| {
                    entry.lease = u32::try_from(tokens.saturating_sub(1)).unwrap_or(u32::MAX);
                    entry.lease_end_ns = now_ns.saturating_add(LEASE_NS);
                });
                Ok(())
            }
            Answer::Denied(wait_ns) => {
                self.keys.with(key, now_ns, |entry| entry.denied_until_ns = now_ns.saturating_add(wait_ns));
                Err(wait_ns.max(1))
            }
            Answer::Away => self.take(key, now_ns),
        }
    }

    /// The bucket's key in Redis: the same on every load balancer.
    fn name(&self, key: &[u8]) -> Vec<u8> {
        let mut name = format!("scaleup:ratelimit:{}:", self.rule.id).into_bytes();
        name.extend_from_slice(&key[..key.len().min(MAX_KEY_BYTES)]);
        if key.len() > MAX_KEY_BYTES {
            name.extend_from_slice(format!("#{:016x}", hashing::of_bytes(key)).as_bytes());
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::tests::Request;

    fn limiter(per: RatePer, requests: u32) -> Limiter {
        let rule = RateLimit {
            id: "d/p/0/t".into(),
            name: "limit".into(),
            per,
            requests,
            interval: Duration::from_secs(3_600),
            burst: requests,
            shared: false,
        };
        Limiter::new(rule, Arc::default())
    }

    async fn passes(limiter: &Limiter, request: &Request) -> bool {
        limiter.check(request).await.is_ok()
    }

    #[tokio::test]
    async fn every_client_has_a_bucket_of_its_own_and_is_told_when_to_come_back() {
        let limiter = limiter(RatePer::ClientIp, 2);
        let from = |client: &str| Request { client: client.parse().expect("an address"), ..Request::default() };
        let (a, b) = (from("192.0.2.1"), from("192.0.2.2"));
        assert!(passes(&limiter, &a).await && passes(&limiter, &a).await && passes(&limiter, &b).await);
        let Err(Refusal::RateLimited { limit, retry_after }) = limiter.check(&a).await else { panic!("let through") };
        assert_eq!(&*limit, "limit");
        assert!(
            retry_after > Duration::from_secs(1_700) && retry_after <= Duration::from_secs(1_800),
            "{retry_after:?}"
        );
        // The same customer with another IPv6 address, and an IPv4 address in IPv6 form.
        assert!(passes(&limiter, &from("2001:db8::1")).await && passes(&limiter, &from("2001:db8::2")).await);
        assert!(!passes(&limiter, &from("2001:db8::3")).await);
        assert!(!passes(&limiter, &from("::ffff:192.0.2.1")).await);
        assert_eq!((limiter.passed.load(Relaxed), limiter.refused.load(Relaxed)), (5, 3));
    }

    #[tokio::test]
    async fn headers_have_buckets_by_value_and_share_one_without() {
        let limiter = limiter(RatePer::Header("x-tenant".into()), 1);
        let with = |value| Request { headers: vec![("x-tenant", value)], ..Request::default() };
        assert!(passes(&limiter, &with("a")).await && passes(&limiter, &with("b")).await);
        assert!(!passes(&limiter, &with("a")).await);
        assert!(passes(&limiter, &Request::default()).await && !passes(&limiter, &Request::default()).await);
    }

    #[tokio::test]
    async fn the_target_has_one() {
        let limiter = limiter(RatePer::Target, 3);
        for expected in [true, true, true, false] {
            assert_eq!(passes(&limiter, &Request::default()).await, expected);
        }
    }

    #[test]
    fn long_keys_stay_short_and_apart_in_redis() {
        let limiter = limiter(RatePer::Target, 1);
        let (a, b) = ([b'x'; 5_000], [b'x'; 5_001]);
        assert!(limiter.name(&a).len() < 160);
        assert_ne!(limiter.name(&a), limiter.name(&b));
    }
}
