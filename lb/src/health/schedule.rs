//! When checks are due and what their results mean. Pure: time is passed in.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, Hash, RandomState};
use std::time::{Duration, Instant};

use crate::policy::HealthCheck;

/// A first check is made within this, or within an interval if that is shorter.
const FIRST_WITHIN: Duration = Duration::from_secs(1);
/// Intervals vary by so many percent, so that checks do not march in step.
const JITTER_PERCENT: u32 = 10;

/// Times by key.
#[derive(Debug)]
pub(super) struct Schedule<K> {
    times: BTreeSet<(Instant, K)>,
    of: HashMap<K, Instant>,
    random: RandomState,
}

impl<K> Default for Schedule<K> {
    fn default() -> Self {
        Self { times: BTreeSet::new(), of: HashMap::new(), random: RandomState::new() }
    }
}

impl<K: Clone + Ord + Hash> Schedule<K> {
    /// A first check of `key`, at any time soon.
    pub fn first(&mut self, key: K, interval: Duration, now: Instant) {
        let within = interval.min(FIRST_WITHIN);
        let part = self.part(&key, now);
        self.set(key, now + within.mul_f64(part));
    }

    /// The next one, an interval later.
    pub fn again(&mut self, key: K, interval: Duration, now: Instant) {
        let jitter = f64::from(JITTER_PERCENT) / 100.0;
        let factor = 1.0 - jitter + 2.0 * jitter * self.part(&key, now);
        self.set(key, now + interval.mul_f64(factor));
    }

    pub fn remove(&mut self, key: &K) {
        if let Some(at) = self.of.remove(key) {
            self.times.remove(&(at, key.clone()));
        }
    }

    /// Takes the key that has been due for longest.
    pub fn due(&mut self, now: Instant) -> Option<K> {
        let (at, key) = self.times.first().filter(|(at, _)| *at <= now)?.clone();
        self.times.remove(&(at, key.clone()));
        self.of.remove(&key);
        Some(key)
    }

    /// When the next one is due.
    pub fn next(&self) -> Option<Instant> {
        self.times.first().map(|(at, _)| *at)
    }

    fn set(&mut self, key: K, at: Instant) {
        self.remove(&key);
        self.of.insert(key.clone(), at);
        self.times.insert((at, key));
    }

    /// A number from 0 to 1 that differs by key and time.
    fn part(&self, key: &K, now: Instant) -> f64 {
        self.random.hash_one((key, now)) as f64 / u64::MAX as f64
    }
}

/// Results in a row.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Streak {
    checked: bool,
    failing: bool,
    /// Results in a row that speak against the present state.
    against: u32,
}

impl Streak {
    pub fn is_failing(self) -> bool {
        self.failing
    }

    /// A check has ended; whether the endpoint is failing now, if that changed.
    pub fn record(&mut self, ok: bool, check: &HealthCheck) -> Option<bool> {
        let first = !std::mem::replace(&mut self.checked, true);
        if ok != self.failing {
            self.against = 0;
            return None;
        }
        self.against += 1;
        let needed = if self.failing { check.healthy_threshold } else { check.unhealthy_threshold };
        if self.against < needed && !first {
            return None;
        }
        self.failing = !ok;
        self.against = 0;
        Some(self.failing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Probe;

    fn check() -> HealthCheck {
        HealthCheck {
            probe: Probe::Tcp,
            port: None,
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            healthy_threshold: 2,
            unhealthy_threshold: 3,
        }
    }

    /// Changes of state after each result: `x` failed, `.` passed.
    #[track_caller]
    fn changes(results: &str, expected: &str) {
        let mut streak = Streak::default();
        let got: String = results
            .chars()
            .map(|result| match streak.record(result == '.', &check()) {
                Some(true) => 'F',
                Some(false) => 'H',
                None => '-',
            })
            .collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn thresholds_count_results_in_a_row() {
        changes(".xx.xxx", "------F");
        changes(".xxxx.x..", "---F----H");
        changes(".xxx...xxx", "---F-H---F");
    }

    #[test]
    fn the_first_check_decides_alone() {
        changes("x..", "F-H");
        changes(".", "-");
    }

    #[test]
    fn checks_are_spread_and_vary() {
        let (mut schedule, start) = (Schedule::<u32>::default(), Instant::now());
        let interval = Duration::from_secs(10);
        (0..1_000).for_each(|key| schedule.first(key, interval, start));
        let soon = std::iter::from_fn(|| schedule.due(start + FIRST_WITHIN / 2)).count();
        assert!((400..600).contains(&soon), "{soon} in the first half second");
        while schedule.due(start + FIRST_WITHIN).is_some() {}
        assert_eq!(schedule.next(), None);
        (0..1_000).for_each(|key| schedule.again(key, interval, start));
        let first = schedule.next().expect("some are due") - start;
        assert!(first >= Duration::from_secs(9) && first < Duration::from_millis(9_500), "{first:?}");
        assert_eq!(schedule.due(start + Duration::from_secs(8)), None);
        schedule.remove(&7);
        let all: Vec<u32> = std::iter::from_fn(|| schedule.due(start + Duration::from_secs(11))).collect();
        assert!(all.len() == 999 && !all.contains(&7));
    }
}
