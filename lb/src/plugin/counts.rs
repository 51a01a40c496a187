//! Decisions by generation: counters per thread, of the latest generations only, so that their number is bounded however often a plugin
//! changes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Ruling;
use crate::stats::{Shards, add};

/// Generations whose decisions are told apart; of more, the oldest is forgotten.
const GENERATIONS: usize = 4;
const RULINGS: usize = Ruling::ALL.len();

/// Decisions by [`Ruling`].
pub(crate) type GenerationTotals = [u64; RULINGS];

#[derive(Debug, Default)]
struct Generation {
    /// Its number plus one; 0: free.
    number: AtomicU64,
    rulings: [AtomicU64; RULINGS],
}

/// One thread's part; only that thread writes to it.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    /// Where there was no decision.
    none: [AtomicU64; RULINGS],
    latest: [Generation; GENERATIONS],
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Counts(Shards<Shard>);

impl Counts {
    pub fn new(threads: usize) -> Self {
        Self(Shards::new(threads))
    }

    /// A decision was taken, or not (`generation` is `None`).
    pub fn count(&self, thread: usize, generation: Option<u64>, ruling: Ruling) {
        let shard = self.0.get(thread);
        let rulings = match generation {
            None => &shard.none,
            Some(number) => &shard.of(number.wrapping_add(1)).rulings,
        };
        add(&rulings[ruling as usize], 1);
    }

    /// By generation; `None` is where there was none.
    pub fn totals(&self) -> BTreeMap<Option<u64>, GenerationTotals> {
        let mut totals: BTreeMap<Option<u64>, GenerationTotals> = BTreeMap::new();
        for shard in self.0.iter() {
            let known = shard.latest.iter().map(|one| (one.number.load(Relaxed).checked_sub(1), &one.rulings));
            let known = known.filter(|(number, _)| number.is_some()).chain([(None, &shard.none)]);
            for (number, rulings) in known {
                let sum = totals.entry(number).or_default();
                sum.iter_mut().zip(rulings).for_each(|(sum, one)| *sum = sum.wrapping_add(one.load(Relaxed)));
            }
        }
        totals.retain(|_, rulings| rulings.iter().any(|count| *count > 0));
        totals
    }
}

impl Shard {
    fn of(&self, number: u64) -> &Generation {
        let [first, rest @ ..] = &self.latest;
        let mut oldest = first;
        for one in std::iter::once(first).chain(rest) {
            let known = one.number.load(Relaxed);
            if known == number {
                return one;
            }
            if known < oldest.number.load(Relaxed) {
                oldest = one;
            }
        }
        oldest.rulings.iter().for_each(|count| count.store(0, Relaxed));
        oldest.number.store(number, Relaxed);
        oldest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_generations_are_told_apart() {
        let counts = Counts::new(2);
        for generation in 0..7 {
            counts.count(0, Some(generation), Ruling::Pick);
            counts.count(1, Some(generation), Ruling::Pick);
            counts.count(1, Some(generation), Ruling::Reject);
        }
        counts.count(0, None, Ruling::Failed);
        let totals = counts.totals();
        assert_eq!(totals.keys().copied().collect::<Vec<_>>(), [None, Some(3), Some(4), Some(5), Some(6)]);
        assert_eq!(totals[&Some(6)], [2, 0, 0, 1, 0, 0]);
        assert_eq!(totals[&None], [0, 0, 0, 0, 1, 0]);
    }
}
