//! When a generation that keeps failing is no longer asked.
//!
//! A state machine without clock. Decisions that succeed while it is closed cost one load.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::Class;

/// Failures within [`WINDOW`] that open it,
const FAILURES: u64 = 5;
/// if they are at least this part of the decisions in it.
const SHARE_PERCENT: u64 = 5;
/// See [`FAILURES`].
const WINDOW: Duration = Duration::from_secs(10);
/// How long it stays open at first.
const PAUSE: Duration = Duration::from_secs(5);
/// And at most: the pause doubles with each trial that fails.
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// Whether the generation is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// It is.
    Closed,
    /// It is not.
    Open,
    /// One decision is under way to find out.
    Trial,
}

#[derive(Debug)]
struct Inner {
    /// Beginning of the window, and the decisions taken until then.
    window: Option<(Instant, u64)>,
    failures: u64,
    reopens: Option<Instant>,
    pause: Duration,
    class: Class,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Breaker {
    state: AtomicU8,
    inner: Mutex<Inner>,
}

/// What a breaker says before a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// Ask.
    Ask,
    /// Do not ask: it failed with this.
    Skip(Class),
}

impl Default for Breaker {
    fn default() -> Self {
        let inner = Inner { window: None, failures: 0, reopens: None, pause: PAUSE, class: Class::Trap };
        Self { state: AtomicU8::new(BreakerState::Closed as u8), inner: Mutex::new(inner) }
    }
}

impl Breaker {
    pub fn state(&self) -> BreakerState {
        match self.state.load(Relaxed) {
            0 => BreakerState::Closed,
            1 => BreakerState::Open,
            _ => BreakerState::Trial,
        }
    }

    fn set(&self, state: BreakerState) {
        self.state.store(state as u8, Relaxed);
    }

    pub fn leave(&self, now: Instant) -> Leave {
        if self.state() == BreakerState::Closed {
            return Leave::Ask;
        }
        let mut inner = self.inner.lock();
        match self.state() {
            BreakerState::Closed => Leave::Ask,
            // A trial that never ended is followed by another one.
            _ if inner.reopens.is_some_and(|at| now >= at) => {
                inner.reopens = Some(now + inner.pause);
                self.set(BreakerState::Trial);
                Leave::Ask
            }
            _ => Leave::Skip(inner.class),
        }
    }

    /// A decision succeeded.
    pub fn succeeded(&self) {
        if self.state() != BreakerState::Closed {
            let mut inner = self.inner.lock();
            if self.state() == BreakerState::Trial {
                (inner.window, inner.failures, inner.pause) = (None, 0, PAUSE);
                self.set(BreakerState::Closed);
            }
        }
    }

    /// A decision failed, after so many in all. Whether this has opened it.
    pub fn failed(&self, class: Class, decisions: u64, now: Instant) -> bool {
        let mut inner = self.inner.lock();
        inner.class = class;
        match self.state() {
            BreakerState::Open => return false,
            BreakerState::Trial => inner.pause = (inner.pause * 2).min(MAX_PAUSE),
            BreakerState::Closed => {
                let (begun, before) = *inner.window.get_or_insert((now, decisions.saturating_sub(1)));
                if now.saturating_duration_since(begun) > WINDOW {
                    (inner.window, inner.failures) = (Some((now, decisions.saturating_sub(1))), 1);
                    return false;
                }
                inner.failures += 1;
                let many = inner.failures * 100 >= decisions.saturating_sub(before) * SHARE_PERCENT;
                if inner.failures < FAILURES || !many {
                    return false;
                }
            }
        }
        inner.reopens = Some(now + inner.pause);
        self.set(BreakerState::Open);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_failures_open_it() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        for i in 1..FAILURES {
            assert!(!breaker.failed(Class::Trap, i, at(i)));
            assert_eq!(breaker.leave(at(i)), Leave::Ask);
        }
        assert!(breaker.failed(Class::Timeout, FAILURES, at(10)));
        assert!(!breaker.failed(Class::Timeout, FAILURES + 1, at(10)), "one that was under way");
        assert_eq!(breaker.leave(at(11)), Leave::Skip(Class::Timeout));
        // One trial, whose failure doubles the pause.
        assert_eq!((breaker.leave(at(5_010)), breaker.leave(at(5_010))), (Leave::Ask, Leave::Skip(Class::Timeout)));
        assert!(breaker.failed(Class::Trap, 7, at(5_010)));
        assert_eq!((breaker.leave(at(15_009)), breaker.leave(at(15_010))), (Leave::Skip(Class::Trap), Leave::Ask));
        breaker.succeeded();
        assert_eq!((breaker.state(), breaker.leave(at(15_011))), (BreakerState::Closed, Leave::Ask));
        assert!(!breaker.failed(Class::Trap, 9, at(15_012)), "counts from the beginning again");
    }

    #[test]
    fn rare_failures_do_not() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        // One in a hundred, 100 decisions a second.
        for i in 1..=100 {
            assert!(!breaker.failed(Class::Trap, i * 100, start + Duration::from_secs(i)), "{i}");
        }
        // One in ten is too much.
        let begin = start + Duration::from_secs(200);
        let opened =
            (1..=10).any(|i| breaker.failed(Class::Trap, 20_000 + i * 10, begin + Duration::from_millis(i * 100)));
        assert!(opened);
    }
}
