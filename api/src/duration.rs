//! Durations as the Gateway API writes them (GEP-2257): `10s`, `1m30s`, `250ms`.

use std::time::Duration;

/// Parts a duration may have.
const MAX_PARTS: usize = 4;
/// Digits a part may have.
const MAX_DIGITS: usize = 5;

/// The duration that a text means: one to four parts, each one to five digits and a unit of `h`, `m`, `s` or `ms`, added up.
/// `None` if it is anything else.
///
/// ```
/// use std::time::Duration;
/// assert_eq!(scaleup_api::duration::parse("1m30s"), Some(Duration::from_secs(90)));
/// assert_eq!(scaleup_api::duration::parse("1.5s"), None);
/// ```
pub fn parse(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total_ms = 0_u64;
    for _ in 0..MAX_PARTS {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 || digits > MAX_DIGITS {
            return None;
        }
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let units = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
        let (unit, ms) = units.into_iter().find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        total_ms += number * ms;
        if rest.is_empty() {
            return Some(Duration::from_millis(total_ms));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in [
            ("0s", 0),
            ("250ms", 250),
            ("10s", 10_000),
            ("1m30s", 90_000),
            ("1h2m3s4ms", 3_723_004),
            ("1s1s", 2000),
            ("5ms1h", 3_600_005),
            ("99999h99999h99999h99999h", 4 * 99_999 * 3_600_000),
            ("00010s", 10_000),
        ] {
            assert_eq!(parse(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in [
            "",
            "1",
            "s",
            "-1s",
            "+1s",
            "1.5s",
            "1S",
            "100000s",
            "1s ",
            " 1s",
            "1d",
            "1us",
            "1s1s1s1s1s",
            "１s",
            "1m s",
            "1é",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
