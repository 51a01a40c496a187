//! Token buckets as virtual scheduling (GCRA, ITU-T I.371): a bucket is one number, the theoretical arrival time of the next request.
//! Many buckets live in a table of bounded size. Pure; times are nanoseconds of [`super::clock`].

use std::hash::{BuildHasher, RandomState};

use parking_lot::Mutex;

/// Buckets of a table at most; beyond, those that are nearest to full are forgotten first.
pub(crate) const MAX_KEYS: usize = 64 * 1_024;
/// Parts of a table, each with a lock of its own, held for some tens of nanoseconds.
const PARTS: usize = 16;
/// Buckets that share a place in a part.
const WAYS: usize = 8;

/// A bucket's rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    /// Nanoseconds per token.
    pub emission_ns: u64,
    /// Tokens that may be saved, in nanoseconds.
    pub burst_ns: u64,
}

impl Rate {
    pub fn new(requests: u32, interval: std::time::Duration, burst: u32) -> Self {
        let interval = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX).max(1);
        let emission_ns = (interval / u64::from(requests.max(1))).max(1);
        Self { emission_ns, burst_ns: emission_ns.saturating_mul(u64::from(burst.max(1))) }
    }

    /// Takes a token: the bucket afterwards, or how long until there is one.
    pub fn take(self, bucket: u64, now_ns: u64) -> Result<u64, u64> {
        let after = bucket.max(now_ns).saturating_add(self.emission_ns);
        match (after - now_ns).checked_sub(self.burst_ns) {
            None | Some(0) => Ok(after),
            Some(wait) => Err(wait),
        }
    }
}

/// What is known of a key: its own bucket, and what was got from the shared one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Entry {
    key: u64,
    /// Theoretical arrival time; in the past: the bucket is full.
    pub bucket: u64,
    /// Tokens taken from the shared bucket in advance, and until when they may be used.
    pub lease: u32,
    pub lease_end_ns: u64,
    /// The shared bucket is empty until then.
    pub denied_until_ns: u64,
}

impl Entry {
    /// How much would be lost by forgetting it: nothing if it is not after `now`.
    fn worth(&self) -> u64 {
        self.bucket.max(self.lease_end_ns).max(self.denied_until_ns)
    }
}

/// Entries by key.
#[derive(Debug)]
pub(super) struct Keys {
    parts: [Mutex<Vec<[Entry; WAYS]>>; PARTS],
    /// Keys come from clients: places must not be predictable.
    random: RandomState,
}

impl Default for Keys {
    fn default() -> Self {
        Self { parts: std::array::from_fn(|_| Mutex::default()), random: RandomState::new() }
    }
}

impl Keys {
    /// Runs `work` on the entry of `key`, which is made if it is new.
    pub fn with<R>(&self, key: &[u8], now_ns: u64, work: impl FnOnce(&mut Entry) -> R) -> R {
        let hash = self.random.hash_one(key).max(1);
        let mut part = self.parts[hash as usize % PARTS].lock();
        if part.is_empty() {
            part.push(Default::default());
        }
        loop {
            let at = (hash / PARTS as u64) as usize % part.len();
            let set = &mut part[at];
            if let Some(known) = set.iter_mut().find(|entry| entry.key == hash) {
                return work(known);
            }
            let Some(least) = set.iter_mut().min_by_key(|entry| entry.worth()) else { continue };
            if least.worth() <= now_ns || !grow(&mut part) {
                let at = (hash / PARTS as u64) as usize % part.len();
                let least = part[at].iter_mut().min_by_key(|entry| entry.worth());
                let mut unused = Entry::default();
                let entry = least.unwrap_or(&mut unused);
                *entry = Entry { key: hash, ..Entry::default() };
                return work(entry);
            }
        }
    }

    #[cfg(test)]
    fn capacity(&self) -> usize {
        self.parts.iter().map(|part| part.lock().len() * WAYS).sum()
    }
}

/// Doubles a part; false if it is as large as may be.
fn grow(part: &mut Vec<[Entry; WAYS]>) -> bool {
    let size = part.len() * 2;
    if size * WAYS * PARTS > MAX_KEYS {
        return false;
    }
    let old = std::mem::replace(part, vec![Default::default(); size]);
    for entry in old.into_iter().flatten().filter(|entry| entry.key != 0) {
        let set = &mut part[(entry.key / PARTS as u64) as usize % size];
        // A set of twice as many sets gets no more entries than the one it comes from.
        if let Some(free) = set.iter_mut().find(|slot| slot.key == 0) {
            *free = entry;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn bursts_pass_then_the_rate_holds() {
        let rate = Rate::new(10, Duration::from_secs(1), 5);
        let (mut bucket, mut passed) = (0, 0);
        for step in 0..200 {
            // A request every 10 ms for two seconds.
            let now = SECOND + step * SECOND / 100;
            if let Ok(after) = rate.take(bucket, now) {
                (bucket, passed) = (after, passed + 1);
            }
        }
        assert_eq!(passed, 5 + 19);
    }

    #[test]
    fn the_wait_is_exact() {
        let rate = Rate::new(1, Duration::from_secs(60), 1);
        let bucket = rate.take(0, SECOND).expect("the first");
        let wait = rate.take(bucket, 11 * SECOND).expect_err("ten seconds later");
        assert_eq!(wait, 50 * SECOND);
        assert!(rate.take(bucket, 61 * SECOND - 1).is_err());
        assert!(rate.take(bucket, 61 * SECOND).is_ok());
    }

    #[test]
    fn full_buckets_are_forgotten_before_the_table_grows_and_it_never_grows_too_large() {
        let (keys, rate) = (Keys::default(), Rate::new(1, Duration::from_secs(1), 1));
        let take = |key: u64, now: u64| {
            keys.with(&key.to_le_bytes(), now, |entry| match rate.take(entry.bucket, now) {
                Ok(after) => {
                    entry.bucket = after;
                    true
                }
                Err(_) => false,
            })
        };
        for key in 0..10_000u64 {
            assert!(take(key, SECOND + key * 2 * SECOND), "every key has its own bucket");
        }
        assert_eq!(keys.capacity(), PARTS * WAYS, "old ones made room");
        let now = 100_000 * SECOND;
        for key in 0..200_000 {
            take(key, now);
        }
        assert!(keys.capacity() <= MAX_KEYS);
        let refused = (199_000..200_000).filter(|key| !take(*key, now)).count();
        assert!(refused > 500, "recent keys are remembered: {refused}");
    }

    #[test]
    fn growing_forgets_nobody() {
        let keys = Keys::default();
        (0..1_000u64).for_each(|key| keys.with(&key.to_le_bytes(), 1, |entry| entry.bucket = 100 + key));
        assert!((0..1_000u64).all(|key| keys.with(&key.to_le_bytes(), 1, |entry| entry.bucket) == 100 + key));
    }
}
