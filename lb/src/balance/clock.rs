//! Milliseconds of one process-wide monotonic clock: small enough for atomics, comparable over threads. Reads no clock itself but for
//! [`start`]; callers pass the time they have.

use std::sync::OnceLock;
use std::time::Instant;

fn start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

/// Milliseconds from the process's first use of this clock to `at`, plus one, so that 0 can mean "never".
pub(crate) fn ms(at: Instant) -> u64 {
    let since = at.saturating_duration_since(start());
    since.as_secs() * 1_000 + u64::from(since.subsec_millis()) + 1
}

/// Likewise in nanoseconds; enough for 584 years.
pub(crate) fn ns(at: Instant) -> u64 {
    let since = at.saturating_duration_since(start());
    since.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(since.subsec_nanos())) + 1
}
