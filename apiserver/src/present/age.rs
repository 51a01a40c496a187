//! Ages in tables: `k8s.io/apimachinery/pkg/util/duration`.

use k8s_openapi::jiff::Timestamp;

/// The time that ages are counted to. Tables read the clock nowhere else.
fn now() -> Timestamp {
    scaleup_api::time::now_micro().0
}

/// How long ago an RFC 3339 timestamp was, as `kubectl get` prints it; `<unknown>` if it is empty or not a timestamp.
pub fn since(timestamp: &str) -> String {
    since_at(timestamp, now())
}

fn since_at(timestamp: &str, now: Timestamp) -> String {
    match timestamp.parse::<Timestamp>() {
        Ok(then) => human(now.duration_since(then).as_millis()),
        Err(_) => "<unknown>".to_owned(),
    }
}

/// `HumanDuration`: two or three significant figures (`5s`, `2m3s`, `3h4m`, `5d`, `2y30d`); clocks may differ by two seconds.
fn human(millis: i128) -> String {
    let seconds = millis / 1000;
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    let pair = |big: i128, unit: char, small: i128, small_unit: char| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{small_unit}"),
    };
    match () {
        () if seconds < -1 => "<invalid>".to_owned(),
        () if seconds < 0 => "0s".to_owned(),
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => pair(minutes, 'm', seconds % 60, 's'),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => pair(hours, 'h', minutes % 60, 'm'),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 24 * 8 => pair(days, 'd', hours % 24, 'h'),
        () if years < 2 => format!("{days}d"),
        () if years < 8 => pair(years, 'y', days % 365, 'd'),
        () => format!("{years}y"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_upstream() {
        const MINUTE: i128 = 60;
        const HOUR: i128 = 60 * MINUTE;
        const DAY: i128 = 24 * HOUR;
        const YEAR: i128 = 365 * DAY;
        let check = |seconds: i128, want: &str| assert_eq!(human(seconds * 1000), want, "{seconds}");
        check(-2, "<invalid>");
        check(-1, "0s");
        check(0, "0s");
        check(5, "5s");
        check(119, "119s");
        check(120, "2m");
        check(123, "2m3s");
        check(9 * MINUTE + 59, "9m59s");
        check(10 * MINUTE + 1, "10m");
        check(179 * MINUTE, "179m");
        check(3 * HOUR + 4 * MINUTE, "3h4m");
        check(7 * HOUR, "7h");
        check(8 * HOUR + 59 * MINUTE, "8h");
        check(47 * HOUR, "47h");
        check(2 * DAY, "2d");
        check(2 * DAY + HOUR, "2d1h");
        check(8 * DAY + HOUR, "8d");
        check(YEAR * 2 - 1, "729d");
        check(YEAR * 2, "2y");
        check(YEAR * 2 + DAY * 30, "2y30d");
        check(YEAR * 8 + DAY, "8y");
    }

    #[test]
    fn timestamps_are_parsed_or_unknown() {
        let now = "2024-05-01T12:00:00Z".parse().unwrap();
        let check = |then: &str, want: &str| assert_eq!(since_at(then, now), want, "{then}");
        check("2024-05-01T11:59:55Z", "5s");
        check("2024-05-01T11:59:55.999999Z", "4s");
        check("2024-05-01T12:00:01Z", "0s");
        check("2024-05-01T12:01:00Z", "<invalid>");
        check("", "<unknown>");
        check("yesterday", "<unknown>");
    }
}
