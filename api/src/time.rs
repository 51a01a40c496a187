//! The one door to the wall clock for API timestamps.

use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};

fn rounded(unit: Unit) -> Timestamp {
    let now = Timestamp::now();
    // Rounding down can only fail outside of jiff's range of years -9999..9999.
    now.round(TimestampRound::new().smallest(unit).mode(RoundMode::Trunc)).unwrap_or(now)
}

/// Now, in whole seconds: `metav1.Time` has no fraction on the wire.
pub fn now() -> Time {
    Time(rounded(Unit::Second))
}

/// Now, in microseconds.
pub fn now_micro() -> MicroTime {
    MicroTime(rounded(Unit::Microsecond))
}
