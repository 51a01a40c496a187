//! What a process says of a plugin: its entry in `status.holders`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use scaleup_api::plugin::{PluginFigures, PluginHolder};
use scaleup_plugins::{BreakerState, Class, Generation, Slot};
use serde_json::{Value, json};

use crate::load::LoadError;

/// Longest message.
const MAX_MESSAGE_BYTES: usize = 512;

/// The entry, without the time.
pub fn entry(slot: &Slot, error: Option<&LoadError>) -> PluginHolder {
    let all = slot.policy.generations();
    let number = |one: &Generation| i64::try_from(one.number()).unwrap_or(i64::MAX);
    let candidate = all.candidate.as_ref().map(|(candidate, _)| candidate);
    let (state, message) = match (error, &all.active) {
        (Some(error), _) => (error.class().name(), error.message()),
        (None, Some(_)) if all.tripped.is_some() => ("Tripped", "a version kept failing and was taken out".to_owned()),
        (None, Some(_)) => ("Loaded", String::new()),
        (None, None) => (all.absent.class.name(), all.absent.message.to_string()),
    };
    PluginHolder {
        active: all.active.as_deref().map(number),
        candidate: candidate.map(|one| number(one)),
        tripped: all.tripped.as_deref().map(number),
        state: state.into(),
        message: clipped(message),
        figures: all.active.as_deref().map(figures),
        candidate_figures: candidate.map(|one| figures(one)),
        time: None,
    }
}

fn clipped(mut message: String) -> String {
    let mut end = message.len().min(MAX_MESSAGE_BYTES);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message.truncate(end);
    message
}

fn figures(generation: &Generation) -> PluginFigures {
    let read = generation.statistics();
    let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let nanos = |share| i64::try_from(read.latency.quantile(share).as_nanos()).unwrap_or(i64::MAX);
    let errors = Class::ALL.into_iter().map(|class| (class.name().to_owned(), whole(read.errors[class as usize])));
    PluginFigures {
        decisions: whole(read.decisions),
        errors: errors.filter(|(_, count)| *count > 0).collect(),
        differences: whole(read.differences),
        p50_nanos: nanos(0.5),
        p99_nanos: nanos(0.99),
        fuel: whole(read.fuel),
        memory_bytes: whole(read.peak_memory_bytes),
        breaker: match generation.breaker() {
            BreakerState::Closed => "Closed",
            BreakerState::Open => "Open",
            BreakerState::Trial => "HalfOpen",
        }
        .into(),
    }
}

/// Whether the two differ in more than figures: worth being said at once.
pub fn is_news(before: &PluginHolder, now: &PluginHolder) -> bool {
    let without =
        |one: &PluginHolder| PluginHolder { figures: None, candidate_figures: None, time: None, ..one.clone() };
    without(before) != without(now)
}

/// The status as a merge patch with this entry alone. Everything that may be left from an older entry is taken away.
pub fn patch(holder: &str, entry: &PluginHolder) -> Value {
    let entry = PluginHolder { time: Some(Time(Timestamp::now())), ..entry.clone() };
    let mut value = json!({"active": null, "candidate": null, "tripped": null, "message": null, "figures": null,
        "candidateFigures": null});
    let figures = |figures: &PluginFigures| {
        let mut all = json!({"decisions": null, "differences": null, "p50Nanos": null, "p99Nanos": null, "fuel": null,
            "memoryBytes": null, "breaker": null});
        let mut errors: Value = Class::ALL.into_iter().map(|class| (class.name(), Value::Null)).collect();
        merge(&mut errors, json!(figures.errors));
        merge(&mut all, json!(figures));
        all["errors"] = errors;
        all
    };
    merge(&mut value, json!(entry));
    for (field, of) in [("figures", &entry.figures), ("candidateFigures", &entry.candidate_figures)] {
        if let Some(of) = of {
            value[field] = figures(of);
        }
    }
    json!({"status": {"holders": {holder: value}}})
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_replaces_the_one_before() {
        let figures = PluginFigures { decisions: 3, ..PluginFigures::default() };
        let entry =
            PluginHolder { active: Some(2), state: "Loaded".into(), figures: Some(figures), ..PluginHolder::default() };
        let patch = patch("lb/n1", &entry);
        let written = &patch["status"]["holders"]["lb/n1"];
        assert_eq!((&written["active"], &written["candidate"]), (&json!(2), &Value::Null));
        assert_eq!((&written["figures"]["decisions"], &written["figures"]["fuel"]), (&json!(3), &Value::Null));
        assert_eq!(written["figures"]["errors"]["trap"], Value::Null);
        assert!(written["candidateFigures"].is_null() && written["time"].is_string());
    }

    #[test]
    fn figures_alone_can_wait() {
        let before = PluginHolder { active: Some(2), state: "Loaded".into(), ..PluginHolder::default() };
        let counted = PluginHolder { figures: Some(PluginFigures::default()), ..before.clone() };
        assert!(!is_news(&before, &counted));
        assert!(is_news(&before, &PluginHolder { active: Some(3), ..counted }));
    }
}
