//! Exponential backoff as `client-go/util/flowcontrol` computes it: pure, in wall-clock time.

use std::time::Duration;

use jiff::Timestamp;

use crate::clock::{after, between};

/// First delay.
pub const INITIAL: Duration = Duration::from_secs(10);
/// Longest delay.
pub const MAX: Duration = Duration::from_secs(300);
/// A failure this long after the last one starts from the first delay again.
const RESET_AFTER: Duration = Duration::from_secs(2 * 300);

/// State of one key (a container's restarts, or an image's pulls).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Delay of the failure counted last.
    pub delay: Duration,
    updated: Timestamp,
}

impl Backoff {
    /// Counts a failure that happened at `event` and is noticed `now`.
    pub fn next(previous: Option<Self>, event: Timestamp, now: Timestamp) -> Self {
        let delay = match previous {
            Some(p) if between(p.updated, event) <= RESET_AFTER => (p.delay * 2).min(MAX),
            _ => INITIAL,
        };
        Self { delay, updated: now }
    }

    /// When an attempt that is counted by its own time (a pull) may be made again; `None` if now.
    pub fn cooling_until(&self, now: Timestamp) -> Option<Timestamp> {
        let until = after(self.updated, self.delay);
        (now < until).then_some(until)
    }

    /// When the next attempt after a failure at `event` may start; `None` if it may now.
    pub fn wait_until(&self, event: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let until = after(event, self.delay);
        (between(self.updated, event) <= RESET_AFTER && now < until).then_some(until)
    }
}

/// A duration as Go prints it, whole seconds: `10s`, `1m20s`, `5m0s`.
pub fn go_seconds(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    #[test]
    fn doubles_to_the_maximum_and_resets_after_ten_quiet_minutes() {
        let mut now = 0;
        let mut backoff = None;
        let mut delays = Vec::new();
        for _ in 0..8 {
            let next = Backoff::next(backoff, at(now), at(now));
            delays.push(next.delay.as_secs());
            backoff = Some(next);
            now += 100;
        }
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300, 300]);
        let next = Backoff::next(backoff, at(now + 601), at(now + 601));
        assert_eq!(next.delay, INITIAL);
    }

    #[test]
    fn waits_from_the_failure_on() {
        let backoff = Backoff::next(None, at(0), at(1));
        assert_eq!(backoff.wait_until(at(5), at(6)), Some(at(15)));
        assert_eq!(backoff.wait_until(at(5), at(15)), None);
        assert_eq!(backoff.wait_until(at(700), at(701)), None, "an old failure is forgiven");
    }

    #[test]
    fn durations_print_as_in_go() {
        for (seconds, text) in [(10, "10s"), (80, "1m20s"), (300, "5m0s")] {
            assert_eq!(go_seconds(Duration::from_secs(seconds)), text);
        }
    }
}
