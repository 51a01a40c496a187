//! What happened between two looks at the counters, per Service and rule. Pure.

use serde::Serialize;
use serde_json::Value;

/// A line of the table. Rates are per second, times in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    /// `Service shop/web`, `HTTPRoute shop/web rule 0`.
    pub name: String,
    pub requests_per_s: f64,
    /// `None`: no request in the interval.
    pub p50_ms: Option<f64>,
    pub p90_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// Answers of class 5xx and clients that left, in percent.
    pub errors_percent: f64,
    pub in_flight: Option<u64>,
    pub bytes_per_s: f64,
    pub retries_per_s: f64,
    pub endpoints: Option<u64>,
    pub ejected: Option<u64>,
}

/// The rows of two answers of `/lb/top`, busiest first.
pub fn rows(before: &Value, after: &Value) -> Vec<Row> {
    let seconds = (number(&after["time_ms"]) as f64 - number(&before["time_ms"]) as f64).max(1.0) / 1e3;
    let bounds: Vec<f64> = after["bucket_bounds"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    let mut rows = Vec::new();
    for (list, name) in
        [("services", service_name as fn(&Value) -> String), ("routes", route_name as fn(&Value) -> String)]
    {
        let old: std::collections::HashMap<String, &Value> =
            before[list].as_array().into_iter().flatten().map(|item| (name(item), item)).collect();
        for item in after[list].as_array().into_iter().flatten() {
            let name = name(item);
            let was = old.get(&name).copied().unwrap_or(&Value::Null);
            rows.push(row(name, was, item, seconds, &bounds));
        }
    }
    rows.sort_by(|a, b| b.requests_per_s.total_cmp(&a.requests_per_s).then_with(|| a.name.cmp(&b.name)));
    rows
}

fn service_name(item: &Value) -> String {
    format!("Service {}/{}", text(&item["namespace"]), text(&item["name"]))
}

fn route_name(item: &Value) -> String {
    let (kind, namespace, name) = (text(&item["kind"]), text(&item["namespace"]), text(&item["name"]));
    format!("{kind} {namespace}/{name} rule {}", number(&item["rule"]))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// By how much a counter grew; one that began anew counts from 0.
fn grown(was: &Value, is: &Value) -> u64 {
    let (was, is) = (number(was), number(is));
    if is >= was { is - was } else { is }
}

fn row(name: String, was: &Value, is: &Value, seconds: f64, bounds: &[f64]) -> Row {
    let per_second = |key: &str| grown(&was[key], &is[key]) as f64 / seconds;
    let codes: Vec<u64> = (0..6).map(|class| grown(&was["codes"][class], &is["codes"][class])).collect();
    let requests: u64 = codes.iter().sum();
    let buckets: Vec<u64> = (0..=bounds.len())
        .map(|bucket| grown(&was["durations"]["buckets"][bucket], &is["durations"]["buckets"][bucket]))
        .collect();
    let quantile = |share: f64| quantile(&buckets, bounds, share).map(|seconds| seconds * 1e3);
    Row {
        requests_per_s: requests as f64 / seconds,
        p50_ms: quantile(0.5),
        p90_ms: quantile(0.9),
        p99_ms: quantile(0.99),
        errors_percent: if requests > 0 { (codes[4] + codes[5]) as f64 * 100.0 / requests as f64 } else { 0.0 },
        in_flight: is["in_flight"].as_u64(),
        bytes_per_s: per_second("bytes_in") + per_second("bytes_out"),
        retries_per_s: per_second("retries"),
        endpoints: is["endpoints"].as_u64(),
        ejected: is["ejected"].as_u64(),
        name,
    }
}

/// In seconds, as Prometheus' `histogram_quantile` has it: linear within a bucket; beyond the last bound, that bound.
fn quantile(buckets: &[u64], bounds: &[f64], share: f64) -> Option<f64> {
    let total: u64 = buckets.iter().sum();
    if total == 0 {
        return None;
    }
    let wanted = share * total as f64;
    let (mut seen, mut low) = (0.0, 0.0);
    for (count, bound) in buckets.iter().zip(bounds) {
        let count = *count as f64;
        if count > 0.0 && seen + count >= wanted {
            return Some(low + (bound - low) * (wanted - seen) / count);
        }
        (seen, low) = (seen + count, *bound);
    }
    bounds.last().copied()
}

/// Bytes with a unit.
fn bytes(value: f64) -> String {
    match value {
        v if v >= 1e9 => format!("{:.1}G", v / 1e9),
        v if v >= 1e6 => format!("{:.1}M", v / 1e6),
        v if v >= 1e3 => format!("{:.1}k", v / 1e3),
        v => format!("{v:.0}"),
    }
}

/// The table as text.
pub fn render(rows: &[Row]) -> String {
    const HEAD: [&str; 10] =
        ["NAME", "REQ/S", "P50", "P90", "P99", "ERR%", "IN FLIGHT", "BYTES/S", "RETRIES/S", "EJECTED"];
    let time = |ms: Option<f64>| {
        ms.map_or("-".to_owned(), |ms| if ms < 10.0 { format!("{ms:.2}ms") } else { format!("{ms:.0}ms") })
    };
    let count = |count: Option<u64>| count.map_or("-".to_owned(), |count| count.to_string());
    let mut lines: Vec<[String; 10]> = vec![HEAD.map(str::to_owned)];
    lines.extend(rows.iter().map(|row| {
        [
            row.name.chars().filter(|c| !c.is_control()).collect(),
            format!("{:.1}", row.requests_per_s),
            time(row.p50_ms),
            time(row.p90_ms),
            time(row.p99_ms),
            format!("{:.1}", row.errors_percent),
            count(row.in_flight),
            bytes(row.bytes_per_s),
            format!("{:.1}", row.retries_per_s),
            row.ejected.zip(row.endpoints).map_or("-".to_owned(), |(ejected, all)| format!("{ejected}/{all}")),
        ]
    }));
    let widths: Vec<usize> =
        (0..10).map(|at| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for line in &lines {
        for (at, (cell, width)) in line.iter().zip(&widths).enumerate() {
            // Names to the left, numbers to the right.
            let cell = if at == 0 { format!("{cell:<width$}") } else { format!("  {cell:>width$}") };
            out.push_str(&cell);
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn look(time_ms: u64, ok: u64, failed: u64, buckets: [u64; 3]) -> Value {
        json!({"time_ms": time_ms, "bucket_bounds": [0.001, 0.01], "routes": [],
            "services": [{"namespace": "shop", "name": "web", "codes": [0, ok, 0, 0, failed, 0],
                "durations": {"buckets": buckets, "sum_ns": 0}, "bytes_in": 0, "bytes_out": ok * 1_000, "retries": failed,
                "in_flight": 3, "endpoints": 2, "ejected": 1}]})
    }

    #[test]
    fn rows_are_what_happened_in_between() {
        let rows = rows(&look(0, 100, 0, [100, 0, 0]), &look(2_000, 190, 10, [150, 50, 0]));
        let [row] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!((row.name.as_str(), row.requests_per_s, row.errors_percent), ("Service shop/web", 50.0, 10.0));
        assert_eq!((row.bytes_per_s, row.retries_per_s), (45_000.0, 5.0));
        assert_eq!(row.p50_ms, Some(1.0));
        // 40 of the 50 in the bucket from 1 to 10 ms.
        assert!((row.p90_ms.unwrap() - 8.2).abs() < 1e-9, "{row:?}");
        let text = render(&rows);
        assert!(text.starts_with("NAME"), "{text}");
        for cell in ["Service shop/web", "50.0", "1.00ms", "10.0", "45.0k", "1/2"] {
            assert!(text.contains(cell), "{cell} in\n{text}");
        }
    }

    #[test]
    fn what_began_anew_or_is_idle_is_no_nonsense() {
        let rows = rows(&look(0, 100, 0, [100, 0, 0]), &look(1_000, 5, 0, [5, 0, 0]));
        assert_eq!(rows[0].requests_per_s, 5.0);
        let rows = super::rows(&look(0, 5, 0, [5, 0, 0]), &look(1_000, 5, 0, [5, 0, 0]));
        assert_eq!((rows[0].requests_per_s, rows[0].p99_ms), (0.0, None));
        assert!(super::rows(&Value::Null, &json!({"services": "x"})).is_empty());
        assert_eq!(quantile(&[0, 0, 7], &[0.001, 0.01], 0.5), Some(0.01));
    }
}
