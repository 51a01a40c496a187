//! Passive health: which outcomes eject an endpoint, and for how long. Pure but for the endpoint's own atomics.
//!
//! An ejection lasts `base_ejection` times the number of ejections in a row, at most `max_ejection`; an endpoint that stays well for as
//! long as its last ejection is forgiven one. How many may be out at a time is not decided here: every backend honours as many ejections
//! as its policy allows, the oldest first (see [`super::availability`]).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::policy::Outlier;

/// Ejections in a row that are counted.
const MAX_IN_A_ROW: u64 = 1_000;

/// What is remembered of an endpoint's outcomes.
#[derive(Debug, Default)]
pub(crate) struct Passive {
    /// Failures since the last success.
    consecutive: AtomicU32,
    /// Current interval: end in milliseconds, requests, failures.
    interval_end_ms: AtomicU64,
    requests: AtomicU32,
    failures: AtomicU32,
    /// When the last ejection began and ends; 0: never.
    from_ms: AtomicU64,
    until_ms: AtomicU64,
    in_a_row: AtomicU64,
}

impl Passive {
    /// An attempt ended; true if it ejects the endpoint.
    pub fn record(&self, policy: &Outlier, failed: bool, now_ms: u64) -> bool {
        if self.is_ejected(now_ms) {
            // Outcomes of requests that were on their way say nothing new.
            return false;
        }
        let consecutive = if failed { self.consecutive.fetch_add(1, Relaxed) + 1 } else { 0 };
        if !failed && self.consecutive.load(Relaxed) != 0 {
            self.consecutive.store(0, Relaxed);
        }
        let by_row = policy.consecutive_errors > 0 && consecutive >= policy.consecutive_errors;
        if by_row || self.by_share(policy, failed, now_ms) {
            self.eject(policy, now_ms);
            return true;
        }
        false
    }

    fn by_share(&self, policy: &Outlier, failed: bool, now_ms: u64) -> bool {
        let Some(percent) = policy.failure_percent else { return false };
        let end = self.interval_end_ms.load(Relaxed);
        let length = u64::try_from(policy.interval.as_millis()).unwrap_or(u64::MAX).max(1);
        if now_ms >= end
            && self.interval_end_ms.compare_exchange(end, now_ms.saturating_add(length), Relaxed, Relaxed).is_ok()
        {
            self.requests.store(0, Relaxed);
            self.failures.store(0, Relaxed);
        }
        let requests = self.requests.fetch_add(1, Relaxed).saturating_add(1);
        let failures = self.failures.fetch_add(u32::from(failed), Relaxed).saturating_add(u32::from(failed));
        failed
            && requests >= policy.minimum_requests
            && u64::from(failures) * 100 >= u64::from(requests) * u64::from(percent)
    }

    fn eject(&self, policy: &Outlier, now_ms: u64) {
        let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let last = self.until_ms.load(Relaxed);
        let length = last.saturating_sub(self.from_ms.load(Relaxed)).max(1);
        let forgiven = if last == 0 { u64::MAX } else { now_ms.saturating_sub(last) / length };
        let in_a_row = self.in_a_row.load(Relaxed).saturating_sub(forgiven).saturating_add(1).min(MAX_IN_A_ROW);
        let time = millis(policy.base_ejection).saturating_mul(in_a_row).min(millis(policy.max_ejection)).max(1);
        self.in_a_row.store(in_a_row, Relaxed);
        self.from_ms.store(now_ms, Relaxed);
        self.until_ms.store(now_ms.saturating_add(time), Relaxed);
        self.consecutive.store(0, Relaxed);
        self.requests.store(0, Relaxed);
        self.failures.store(0, Relaxed);
    }

    pub fn is_ejected(&self, now_ms: u64) -> bool {
        now_ms < self.until_ms.load(Relaxed)
    }

    /// Begin and end of the last ejection; zeros if there was none.
    pub fn ejection_ms(&self) -> (u64, u64) {
        (self.from_ms.load(Relaxed), self.until_ms.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn policy() -> Outlier {
        Outlier {
            consecutive_errors: 3,
            failure_percent: None,
            minimum_requests: 10,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(70),
            max_ejected_percent: 50,
            panic_percent: 0,
        }
    }

    /// Feeds outcomes from `at` on, 1 ms apart, `x` failed; when it was ejected.
    fn feed(passive: &Passive, policy: &Outlier, at: u64, outcomes: &str) -> Option<u64> {
        (at..)
            .zip(outcomes.chars())
            .find(|(now, outcome)| passive.record(policy, *outcome == 'x', *now))
            .map(|(now, _)| now)
    }

    #[test]
    fn failures_in_a_row_eject_and_a_success_starts_over() {
        let passive = Passive::default();
        assert_eq!(feed(&passive, &policy(), 1, "xx.xx.xx"), None);
        assert_eq!(feed(&passive, &policy(), 100, "xxx"), Some(100));
        assert!(passive.is_ejected(30_099) && !passive.is_ejected(30_100));
    }

    #[test]
    fn ejections_in_a_row_grow_up_to_the_longest_and_good_times_are_rewarded() {
        let (passive, mut lengths, mut now) = (Passive::default(), Vec::new(), 1_000);
        for _ in 0..4 {
            let at = feed(&passive, &policy(), now, "xxx").expect("ejected");
            let (from, until) = passive.ejection_ms();
            assert_eq!(from, at);
            lengths.push((until - from) / 1_000);
            now = until;
        }
        assert_eq!(lengths, [30, 60, 70, 70]);
        // Well for twice as long as the last ejection: two steps back, then one up.
        let at = feed(&passive, &policy(), now + 140_000, "xxx").expect("ejected");
        assert_eq!(passive.ejection_ms().1 - at, 70_000);
        let at = feed(&passive, &policy(), at + 70_000 + 700_000, "xxx").expect("ejected");
        assert_eq!(passive.ejection_ms().1 - at, 30_000, "all is forgiven");
    }

    #[test]
    fn a_share_of_failures_ejects_when_there_are_enough_requests() {
        let policy = Outlier { consecutive_errors: 0, failure_percent: Some(40), ..policy() };
        let passive = Passive::default();
        assert_eq!(feed(&passive, &policy, 1, "x.x.x.x.."), None, "too few requests");
        assert_eq!(feed(&passive, &policy, 10, ".x"), Some(11), "5 of 11");
        let passive = Passive::default();
        assert_eq!(feed(&passive, &policy, 1, "xxxxx"), None);
        // The next interval knows nothing of the first.
        assert_eq!(feed(&passive, &policy, 10_001, "......x.x.x"), None);
    }

    #[test]
    fn nothing_is_learnt_while_ejected() {
        let passive = Passive::default();
        feed(&passive, &policy(), 1, "xxx");
        assert_eq!(feed(&passive, &policy(), 50, "xxxxxx"), None);
        assert_eq!(passive.ejection_ms().0, 3);
    }
}
