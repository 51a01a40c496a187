//! Tables that map a hash to an endpoint so that few hashes move when endpoints come and go: a ketama-style ring and Maglev's table
//! (Eisenbud et al., NSDI 2016). Built when a backend is compiled, immutable, the same on every load balancer. Pure.

use std::net::{IpAddr, SocketAddr};

/// Points of an endpoint of mean weight on a ring, while the ring has room for them.
const POINTS_PER_ENDPOINT: usize = 160;
/// Points on a ring at most; beyond 5,000 endpoints some may have none.
const MAX_POINTS: usize = 160 * 1_024;
/// Maglev table sizes: primes, each about twice the one before.
const PRIMES: [u32; 11] = [1_021, 2_039, 4_093, 8_191, 16_381, 32_749, 65_537, 131_071, 262_139, 524_287, 1_048_573];
/// A Maglev table has at least this many slots per endpoint, which keeps shares within about 1 %.
const SLOTS_PER_ENDPOINT: usize = 100;

/// An endpoint to be placed: its index in the backend, address and weight (not 0).
pub(super) type Member = (u32, SocketAddr, u32);

/// See the module.
#[derive(Clone, Debug)]
pub(crate) enum Table {
    /// `(point, index)`, sorted.
    Ring(Box<[(u64, u32)]>),
    /// Index per slot; a prime number of slots.
    Maglev(Box<[u32]>),
}

impl Table {
    pub fn ring(members: &[Member]) -> Self {
        let total: u64 = members.iter().map(|(_, _, weight)| u64::from(*weight)).sum();
        let room = (members.len() * POINTS_PER_ENDPOINT).min(MAX_POINTS) as u64;
        let mut points = Vec::with_capacity(room as usize);
        for (index, addr, weight) in members {
            let count = (u64::from(*weight) * room / total.max(1)).max(1);
            points.extend((0..count).map(|point| (mix(of_addr(*addr) ^ mix(point)), *index)));
        }
        points.sort_unstable();
        Self::Ring(points.into())
    }

    pub fn maglev(members: &[Member]) -> Self {
        let wanted = members.len().saturating_mul(SLOTS_PER_ENDPOINT);
        let largest = PRIMES[PRIMES.len() - 1];
        let size = PRIMES.into_iter().find(|prime| *prime as usize >= wanted).unwrap_or(largest);
        Self::Maglev(fill(members, size))
    }

    /// Endpoints for `hash`, best first; an endpoint may be named more than once. Every endpoint is there in the end.
    pub fn candidates(&self, hash: u64) -> Candidates<'_> {
        let hash = mix(hash);
        let start = match self {
            Self::Ring(points) => points.partition_point(|(point, _)| *point < hash),
            Self::Maglev(slots) => (hash % (slots.len().max(1) as u64)) as usize,
        };
        Candidates { table: self, start, passed: 0 }
    }

    fn len(&self) -> usize {
        match self {
            Self::Ring(points) => points.len(),
            Self::Maglev(slots) => slots.len(),
        }
    }
}

/// See [`Table::candidates`].
pub(crate) struct Candidates<'a> {
    table: &'a Table,
    start: usize,
    passed: usize,
}

impl Iterator for Candidates<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        if self.passed >= self.table.len() {
            return None;
        }
        let at = (self.start + self.passed) % self.table.len();
        self.passed += 1;
        Some(match self.table {
            Table::Ring(points) => points[at].1,
            Table::Maglev(slots) => slots[at],
        })
    }
}

/// Every member takes free slots in the order of its own permutation, in rounds; heavier ones more often.
fn fill(members: &[Member], size: u32) -> Box<[u32]> {
    let size = size as usize;
    let mut slots: Vec<Option<u32>> = vec![None; if members.is_empty() { 0 } else { size }];
    let heaviest = members.iter().map(|(_, _, weight)| *weight).max().unwrap_or(1).max(1);
    let mut places: Vec<(usize, usize, u64)> = members
        .iter()
        .map(|(_, addr, _)| {
            let hash = of_addr(*addr);
            let offset = (mix(hash) % size as u64) as usize;
            let skip = (mix(hash ^ 0x5151) % (size as u64 - 1)) as usize + 1;
            (offset, skip, 0)
        })
        .collect();
    let mut filled = 0;
    while filled < slots.len() {
        for ((index, _, weight), (place, skip, saved)) in members.iter().zip(&mut places) {
            *saved += u64::from(*weight);
            if *saved < u64::from(heaviest) {
                continue;
            }
            *saved -= u64::from(heaviest);
            // A prime size and a skip below it visit every slot, so a free one is found.
            while slots[*place].is_some() {
                *place = (*place + *skip) % size;
            }
            slots[*place] = Some(*index);
            filled += 1;
            if filled == slots.len() {
                break;
            }
        }
    }
    slots.into_iter().flatten().collect()
}

/// SplitMix64's finalizer: spreads every input bit over the output.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Hash of bytes, the same in every process: load balancers must agree.
pub(crate) fn of_bytes(bytes: &[u8]) -> u64 {
    let mut hash = mix(bytes.len() as u64);
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = mix(hash ^ u64::from_le_bytes(word));
    }
    hash
}

/// Hash of an address.
pub(crate) fn of_ip(ip: IpAddr) -> u64 {
    match ip {
        IpAddr::V4(ip) => mix(u64::from(ip.to_bits())),
        IpAddr::V6(ip) => mix(mix((ip.to_bits() >> 64) as u64) ^ ip.to_bits() as u64),
    }
}

/// Hash of an address and a port.
pub(crate) fn of_addr(addr: SocketAddr) -> u64 {
    mix(of_ip(addr.ip()) ^ u64::from(addr.port()))
}

/// Rendezvous hashing (Highest Random Weight): how much `client` wants `addr`. Larger wins; others' coming and going changes nothing.
pub(super) fn rendezvous(client: u64, addr: SocketAddr, weight: u32) -> f64 {
    let unit = (mix(client ^ of_addr(addr)) >> 11) as f64 / (1u64 << 53) as f64;
    -f64::from(weight.max(1)) / unit.max(f64::MIN_POSITIVE).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(count: u8, weight: impl Fn(u8) -> u32) -> Vec<Member> {
        (0..count).map(|i| (u32::from(i), SocketAddr::from(([10, 0, 0, i], 8080)), weight(i))).collect()
    }

    fn build(maglev: bool, members: &[Member]) -> Table {
        if maglev { Table::maglev(members) } else { Table::ring(members) }
    }

    fn first(table: &Table, hash: u64) -> u32 {
        table.candidates(hash).next().expect("an endpoint")
    }

    #[test]
    fn sizes_are_primes() {
        let prime = |n: u32| (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
        assert!(PRIMES.into_iter().all(prime));
    }

    #[test]
    fn shares_follow_weights() {
        for (maglev, tolerance) in [(true, 0.05), (false, 0.30)] {
            let table = build(maglev, &members(10, |i| if i < 5 { 100 } else { 300 }));
            let mut counts = [0u32; 10];
            (0..200_000).for_each(|hash| counts[first(&table, hash) as usize] += 1);
            for (i, count) in counts.iter().enumerate() {
                let expected = if i < 5 { 10_000.0 } else { 30_000.0 };
                let off = (f64::from(*count) - expected).abs() / expected;
                assert!(off < tolerance, "maglev {maglev}: endpoint {i} has {count}");
            }
        }
    }

    #[test]
    fn one_endpoint_less_moves_little_more_than_its_own_share() {
        for (maglev, others) in [(true, 0.02), (false, 0.0)] {
            let all = members(20, |_| 100);
            let fewer: Vec<Member> = all.iter().copied().filter(|(index, ..)| *index != 7).collect();
            let (before, after) = (build(maglev, &all), build(maglev, &fewer));
            let mut moved = 0;
            for hash in 0..100_000 {
                let (from, to) = (first(&before, hash), first(&after, hash));
                moved += u32::from(from != 7 && from != to);
            }
            assert!(f64::from(moved) <= 100_000.0 * others, "maglev {maglev}: {moved} of others' hashes moved");
        }
    }

    #[test]
    fn candidates_name_everybody_once_around() {
        for maglev in [true, false] {
            let table = build(maglev, &members(30, |i| 1 + u32::from(i)));
            let mut seen: Vec<u32> = table.candidates(99).collect();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), 30);
            assert!(build(maglev, &[]).candidates(1).next().is_none());
        }
    }

    #[test]
    fn bytes_hash_by_content_and_length() {
        assert_eq!(of_bytes(b"abc"), of_bytes(b"abc"));
        assert_ne!(of_bytes(b"abc"), of_bytes(b"abc\0"));
        assert_ne!(of_bytes(b"12345678a"), of_bytes(b"12345678b"));
    }
}
