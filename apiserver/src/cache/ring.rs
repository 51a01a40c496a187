//! A bounded history of events with stable positions, so that any number of readers share it.
//!
//! Bounded by count, by bytes kept alive and by age. A reader that falls behind the oldest event has missed something
//! and must list again: the ring never waits for readers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use scaleup_store::Revision;

use super::CacheEvent;

/// Most events kept per kind (and per topic of a kind).
pub const MAX_RING_EVENTS: usize = 16_384;
/// Most bytes that the events of one kind keep alive.
pub const MAX_RING_BYTES: usize = 32 << 20;
/// How long events are kept at most: memory after a burst of writes comes back after this. Upstream guarantees 75 s.
pub const MAX_RING_AGE: Duration = Duration::from_secs(120);

/// The reader's position, or the revision it wants to resume from, is older than the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("events up to revision {floor} are gone")]
pub struct Missed {
    /// Events with a revision up to this one are gone.
    pub floor: Revision,
}

/// The history.
#[derive(Debug, Default)]
pub struct Ring {
    events: VecDeque<Arc<CacheEvent>>,
    /// Position of the first event.
    first: u64,
    bytes: usize,
    /// Events with a revision up to this one are not here.
    floor: Revision,
}

impl Ring {
    /// An empty history that knows nothing up to `floor`.
    pub fn starting_at(floor: Revision) -> Self {
        Self { floor, ..Self::default() }
    }

    /// Position after the newest event.
    pub fn end(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    /// Events with a revision up to this one are not here.
    pub fn floor(&self) -> Revision {
        self.floor
    }

    /// Oldest to newest.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<CacheEvent>> {
        self.events.iter()
    }

    /// Appends, and drops what exceeds the bounds.
    pub fn push(&mut self, event: Arc<CacheEvent>) {
        self.bytes += event.weight();
        let now = event.at;
        self.events.push_back(event);
        self.trim(now);
    }

    /// Drops what exceeds the bounds at `now`.
    pub fn trim(&mut self, now: Instant) {
        while let Some(first) = self.events.front() {
            let over = self.events.len() > MAX_RING_EVENTS || self.bytes > MAX_RING_BYTES;
            if !over && now.saturating_duration_since(first.at) <= MAX_RING_AGE {
                return;
            }
            self.pop();
        }
    }

    /// Drops events up to `floor`: what the main history of the kind has dropped, its topics drop too.
    pub fn trim_to(&mut self, floor: Revision) {
        while self.events.front().is_some_and(|e| e.revision <= floor) {
            self.pop();
        }
        self.floor = self.floor.max(floor);
    }

    fn pop(&mut self) {
        if let Some(event) = self.events.pop_front() {
            self.first += 1;
            self.bytes -= event.weight();
            self.floor = self.floor.max(event.revision);
        }
    }

    /// Forgets everything up to `floor`; every reader has missed something.
    pub fn reset(&mut self, floor: Revision) {
        // One position is skipped, so that a reader that had read everything notices too.
        self.first = self.end() + 1;
        self.events.clear();
        self.bytes = 0;
        self.floor = floor;
    }

    /// Position of the first event after `revision`.
    pub fn position_after(&self, revision: Revision) -> Result<u64, Missed> {
        if revision < self.floor {
            return Err(Missed { floor: self.floor });
        }
        Ok(self.first + self.events.partition_point(|e| e.revision <= revision) as u64)
    }

    /// Up to `max` events from `position` on.
    pub fn read(&self, position: u64, max: usize, out: &mut Vec<Arc<CacheEvent>>) -> Result<(), Missed> {
        let Some(skip) = position.checked_sub(self.first) else {
            return Err(Missed { floor: self.floor });
        };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(self.events.len());
        out.extend(self.events.range(skip..).take(max).cloned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(revision: Revision) -> Arc<CacheEvent> {
        Arc::new(CacheEvent::new(revision, None, None))
    }

    #[test]
    fn count_bound_drops_the_oldest() {
        let mut ring = Ring::starting_at(10);
        let total = MAX_RING_EVENTS as u64 + 5;
        (0..total).for_each(|i| ring.push(event(11 + i)));
        assert_eq!(ring.iter().count(), MAX_RING_EVENTS);
        assert_eq!(ring.floor(), 15);
        assert_eq!(ring.position_after(14), Err(Missed { floor: 15 }));
        assert_eq!(ring.position_after(15), Ok(5));
        assert_eq!(ring.end(), total);
        let mut out = Vec::new();
        assert_eq!(ring.read(4, 10, &mut out), Err(Missed { floor: 15 }));
        ring.read(5, 2, &mut out).unwrap();
        assert_eq!(out.iter().map(|e| e.revision).collect::<Vec<_>>(), [16, 17]);
    }

    #[test]
    fn age_bound_drops_the_oldest() {
        let mut ring = Ring::starting_at(0);
        ring.push(event(1));
        ring.trim(Instant::now() + MAX_RING_AGE + Duration::from_secs(1));
        assert_eq!((ring.iter().count(), ring.floor()), (0, 1));
    }

    #[test]
    fn readers_notice_a_reset_even_if_they_had_read_everything() {
        let mut ring = Ring::starting_at(0);
        ring.push(event(1));
        let position = ring.end();
        ring.reset(9);
        assert_eq!(ring.read(position, 1, &mut Vec::new()), Err(Missed { floor: 9 }));
        assert_eq!(ring.read(ring.end(), 1, &mut Vec::new()), Ok(()));
    }
}
