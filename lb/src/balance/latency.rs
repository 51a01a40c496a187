//! What an endpoint's past attempts say about its next one: peak-sensitive latency and failures, in three words of atomics.
//!
//! As Finagle's and linkerd's peak EWMA: a slower attempt counts at once, faster ones only as the time constant passes, and without
//! attempts the cost fades, so that an endpoint that was slow is tried again. Two things differ. A single outlier among fast attempts
//! is blended in instead of taken over (a pause of the machine is not the endpoint's fault; a slow endpoint is slow twice). And
//! failures are counted apart from latency: a fast 503 never makes an endpoint look faster, it makes it look slow.
//!
//! Writers race without harm: a lost update is one attempt that was not seen. Within a millisecond only a peak or a failure writes, so
//! threads seldom fight over the line.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Time constant of forgetting.
const DECAY_MS: f32 = 10_000.0;
/// Weight of one outcome in the share of failures.
const FAILURE_WEIGHT: f32 = 1.0 / 8.0;
/// What failing always costs, in microseconds of latency, and in multiples of the endpoint's own latency.
const FAILURE_COST_US: f32 = 1_000_000.0;
const FAILURE_FACTOR: f32 = 8.0;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Latency {
    /// Milliseconds of the clock (low half, wrapping) in the upper half, microseconds as `f32` in the lower. 0: no attempt yet.
    cell: AtomicU64,
    /// Share of failed attempts as `f32`, as of the time in `cell`.
    failures: AtomicU32,
    /// The previous attempt's latency as `f32`.
    last: AtomicU32,
}

impl Latency {
    /// An attempt ended at `now_ms`; `latency` is `None` when it has no meaning (no connection, timeout).
    pub fn record(&self, latency: Option<Duration>, failed: bool, now_ms: u64) {
        let (stamp, before) = unpack(self.cell.load(Relaxed));
        let first = stamp == 0 && before == 0.0;
        let keep = if first { 0.0 } else { decay(stamp, now_ms) };
        let failures = f32::from_bits(self.failures.load(Relaxed));
        let mut sample = latency.map_or(before, |latency| latency.as_secs_f32() * 1e6).max(1.0);
        if failed {
            sample = sample.max(before);
        }
        let last = f32::from_bits(self.last.swap(sample.to_bits(), Relaxed));
        let peak = if first { sample } else { sample.min(last.max(before)) };
        let after = (before * keep + sample * (1.0 - keep)).max(peak.min(sample));
        // A failure of a moment ago fades with time, and with successes.
        let faded = failures * keep;
        let share = faded + (f32::from(u8::from(failed)) - faded) * FAILURE_WEIGHT;
        let same_moment = !first && stamp == now_ms as u32;
        if same_moment && after <= before && !failed && failures == 0.0 {
            return;
        }
        self.failures.store(if share < 0.001 { 0.0 } else { share }.to_bits(), Relaxed);
        self.cell.store(pack(now_ms, after), Relaxed);
    }

    /// Expected cost of an attempt in microseconds at `now_ms`; `None` before the first.
    pub fn cost_us(&self, now_ms: u64) -> Option<f32> {
        let (latency, failures) = self.average(now_ms)?;
        Some(latency + failures * failures * (FAILURE_FACTOR * latency + FAILURE_COST_US))
    }

    /// Latency in microseconds and share of failures at `now_ms`; zeros before the first attempt.
    pub fn seen(&self, now_ms: u64) -> (f32, f32) {
        self.average(now_ms).unwrap_or_default()
    }

    fn average(&self, now_ms: u64) -> Option<(f32, f32)> {
        let (stamp, latency) = unpack(self.cell.load(Relaxed));
        if stamp == 0 && latency == 0.0 {
            return None;
        }
        let keep = decay(stamp, now_ms);
        Some((latency * keep, f32::from_bits(self.failures.load(Relaxed)) * keep))
    }
}

fn pack(now_ms: u64, latency: f32) -> u64 {
    (now_ms << 32) | u64::from(latency.to_bits())
}

fn unpack(cell: u64) -> (u32, f32) {
    ((cell >> 32) as u32, f32::from_bits(cell as u32))
}

/// What is left of something after the time from `stamp` to `now_ms`.
fn decay(stamp: u32, now_ms: u64) -> f32 {
    let elapsed = (now_ms as u32).wrapping_sub(stamp);
    // Another thread may have written a moment after our clock was read.
    if elapsed > u32::MAX / 2 { 1.0 } else { (-(elapsed as f32) / DECAY_MS).exp() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn after(attempts: &[(u64, u32, bool)]) -> Latency {
        let latency = Latency::default();
        for (at, ms, failed) in attempts {
            latency.record(Some(MS * *ms), *failed, *at);
        }
        latency
    }

    fn cost_ms(latency: &Latency, at: u64) -> f32 {
        latency.cost_us(at).expect("an attempt was made") / 1_000.0
    }

    #[test]
    fn slow_attempts_count_at_once_and_are_forgotten_slowly() {
        let slow = after(&[(1, 2, false), (100, 300, false), (200, 300, false)]);
        assert!(cost_ms(&slow, 200) > 290.0);
        slow.record(Some(MS), false, 300);
        assert!(cost_ms(&slow, 300) > 280.0, "one fast attempt is no recovery");
        assert!(cost_ms(&slow, 60_000) < 1.0, "it is tried again some time");
        for at in 0..600 {
            slow.record(Some(MS), false, 400 + at * 100);
        }
        assert!(cost_ms(&slow, 60_400) < 3.0);
    }

    #[test]
    fn a_lone_outlier_is_not_a_peak() {
        let hiccup = after(&[(1, 1, false), (10, 1, false), (20, 500, false), (30, 1, false)]);
        assert!(cost_ms(&hiccup, 30) < 5.0, "{}", cost_ms(&hiccup, 30));
    }

    #[test]
    fn fast_failures_look_slow() {
        let good = after(&[(1, 20, false), (500, 20, false), (900, 20, false)]);
        let failing = after(&[(1, 1, true), (500, 1, true), (900, 1, true)]);
        assert!(cost_ms(&failing, 900) > 4.0 * cost_ms(&good, 900));
        // Also when all of the latency was learnt from failures without a duration.
        let refused = Latency::default();
        (0..3).for_each(|at| refused.record(None, true, at + 1));
        assert!(cost_ms(&refused, 3) > 4.0 * cost_ms(&good, 900));
        // A failure now and then does not.
        let flaky = after(&[(1, 20, false), (500, 1, true), (900, 20, false), (1_000, 20, false)]);
        assert!(cost_ms(&flaky, 1_000) < 2.0 * cost_ms(&good, 1_000));
    }

    #[test]
    fn order_follows_latency_after_any_history() {
        let (fast, slow) = (Latency::default(), Latency::default());
        for round in 0..200u64 {
            fast.record(Some(MS * (5 + (round % 3) as u32)), false, 1 + round * 50);
            slow.record(Some(MS * (40 + (round % 7) as u32)), false, 1 + round * 50);
            assert!(cost_ms(&fast, 1 + round * 50) * 3.0 < cost_ms(&slow, 1 + round * 50), "round {round}");
        }
    }

    #[test]
    fn the_clock_may_wrap_and_step_back_by_a_moment() {
        let late = u64::from(u32::MAX);
        let latency = after(&[(late - 10, 50, false), (late, 50, false)]);
        assert!(cost_ms(&latency, late + 100) > 45.0);
        assert!(cost_ms(&latency, late - 5) > 45.0);
        assert!(cost_ms(&latency, late + 100_000) < 1.0);
    }
}
