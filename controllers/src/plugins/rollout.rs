//! From candidate to active version, and back: decided by time and by what the processes that decide have counted. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use scaleup_api::duration;
use scaleup_api::plugin::{
    CanaryStep, PluginCounts, PluginFigures, PluginVersion, Rollout, WasmPluginSpec, WasmPluginStatus,
};

use super::status::Work;
use crate::base::events::Severity;

/// How long the version before can be put back because of errors.
const WATCHED: Duration = Duration::from_secs(600);
/// Fewer decisions say nothing about percentages, while they go on.
const MIN_DECISIONS: i64 = 20;
const DEFAULT_MAX_ERROR_PERCENT: i32 = 1;

/// What a phase asks for before the next one begins.
struct Phase {
    duration: Duration,
    decisions: i64,
    max_difference_percent: Option<i32>,
}

fn time(text: Option<&String>) -> Duration {
    text.and_then(|text| duration::parse(text)).unwrap_or_default()
}

/// Whether a new version is tried before it decides.
pub fn has_phases(spec: &WasmPluginSpec) -> bool {
    spec.rollout.as_ref().is_some_and(|rollout| rollout.shadow.is_some() || !rollout.canary.is_empty())
}

/// Puts a version into its first phase.
pub fn begin(spec: &WasmPluginSpec, version: &mut PluginVersion, now: Timestamp) {
    let rollout = spec.rollout.clone().unwrap_or_default();
    version.since = Some(Time(now));
    if rollout.shadow.is_some() {
        version.phase = "Shadow".into();
    } else if let Some(step) = rollout.canary.first() {
        canary(version, 0, step);
    }
}

fn canary(version: &mut PluginVersion, at: usize, step: &CanaryStep) {
    version.phase = "Canary".into();
    (version.percent, version.step) = (Some(step.percent), i32::try_from(at).ok());
}

/// The phase that a candidate is in, and the step that follows. A phase that is not in the specification any more is over.
fn phase<'a>(rollout: &'a Rollout, candidate: &PluginVersion) -> (Phase, Option<(usize, &'a CanaryStep)>) {
    let next = |at: usize| rollout.canary.get(at).map(|step| (at, step));
    let over = Phase { duration: Duration::ZERO, decisions: 0, max_difference_percent: None };
    match (candidate.phase.as_str(), candidate.step.and_then(|step| usize::try_from(step).ok())) {
        ("Canary", Some(at)) => {
            let step = rollout.canary.get(at);
            let wanted = step.map_or(over, |step| Phase {
                duration: time(step.duration.as_ref()),
                decisions: step.decisions.unwrap_or(0),
                max_difference_percent: None,
            });
            (wanted, next(at + 1))
        }
        _ => {
            let wanted = rollout.shadow.as_ref().map_or(over, |shadow| Phase {
                duration: time(shadow.duration.as_ref()),
                decisions: shadow.decisions.unwrap_or(0),
                max_difference_percent: shadow.max_difference_percent,
            });
            (wanted, next(0))
        }
    }
}

fn add(sum: PluginCounts, figures: &PluginFigures) -> PluginCounts {
    PluginCounts {
        decisions: sum.decisions.saturating_add(figures.decisions),
        errors: figures.errors.values().fold(sum.errors, |sum, count| sum.saturating_add(*count)),
        differences: sum.differences.saturating_add(figures.differences),
    }
}

/// What a version has done at all holders since they loaded it, as the active one or as the candidate.
pub fn counts(status: &WasmPluginStatus, number: i64) -> PluginCounts {
    let of = |holder: &scaleup_api::plugin::PluginHolder| {
        let active = holder.figures.clone().filter(|_| holder.active == Some(number));
        active.or_else(|| holder.candidate_figures.clone().filter(|_| holder.candidate == Some(number)))
    };
    status.holders.values().filter_map(of).fold(PluginCounts::default(), |sum, figures| add(sum, &figures))
}

fn since(version: &PluginVersion, status: &WasmPluginStatus) -> PluginCounts {
    let (now, before) = (counts(status, version.number), version.before.clone().unwrap_or_default());
    PluginCounts {
        decisions: (now.decisions - before.decisions).max(0),
        errors: (now.errors - before.errors).max(0),
        differences: (now.differences - before.differences).max(0),
    }
}

fn exceeds(part: i64, whole: i64, percent: i32) -> bool {
    part.saturating_mul(100) > whole.saturating_mul(i64::from(percent))
}

fn age(version: &PluginVersion, now: Timestamp) -> Duration {
    let since = version.since.as_ref().map_or(now, |since| since.0);
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

/// Why a candidate or the active version cannot stay, if it cannot.
fn fault(version: &PluginVersion, status: &WasmPluginStatus, max_error_percent: i32, least: i64) -> Option<String> {
    if let Some((name, _)) = status.holders.iter().find(|(_, holder)| holder.tripped == Some(version.number)) {
        return Some(format!("it kept failing at {name} and was taken out there"));
    }
    let done = since(version, status);
    (done.decisions >= least && exceeds(done.errors, done.decisions, max_error_percent))
        .then(|| format!("{} of {} decisions failed, {max_error_percent}% may", done.errors, done.decisions))
}

/// Moves the candidate on or takes it out, or takes the active version back. Whether there is something to be looked at again soon.
pub fn advance(spec: &WasmPluginSpec, work: &mut Work) -> bool {
    let rollout = spec.rollout.clone().unwrap_or_default();
    let most = rollout.max_error_percent.unwrap_or(DEFAULT_MAX_ERROR_PERCENT);
    take_back(work, most);
    let Some(candidate) = work.status.candidate.clone() else { return is_watched(work) };
    let (wanted, next) = phase(&rollout, &candidate);
    let done = since(&candidate, &work.status);
    let holders = &work.status.holders;
    let everywhere = holders.values().all(|holder| holder.candidate == Some(candidate.number));
    let passed = everywhere && age(&candidate, work.now) >= wanted.duration && done.decisions >= wanted.decisions;
    let least = if passed { 1 } else { MIN_DECISIONS };
    let differs = wanted
        .max_difference_percent
        .filter(|most| done.decisions >= least && exceeds(done.differences, done.decisions, *most));
    let fault = fault(&candidate, &work.status, most, least).or_else(|| {
        differs.map(|most| format!("{} of {} answers differed, {most}% may", done.differences, done.decisions))
    });
    if let Some(why) = fault {
        work.status.candidate = None;
        work.gave_up(candidate.number, "RolloutFailed", format!("version {} is not used: {why}", candidate.number));
        return is_watched(work);
    }
    if !passed || rollout.paused {
        return true;
    }
    let before = Some(counts(&work.status, candidate.number));
    let number = candidate.number;
    match next {
        Some((at, step)) => {
            let mut moved = PluginVersion { since: Some(Time(work.now)), before, ..candidate };
            canary(&mut moved, at, step);
            work.status.candidate = Some(moved);
            work.say(
                Severity::Normal,
                "RolloutAdvanced",
                format!("version {number} takes {}% of decisions", step.percent),
            );
        }
        None => {
            work.status.candidate = None;
            work.activate(PluginVersion { before, ..candidate }, false);
            work.say(Severity::Normal, "Activated", format!("version {number} decides"));
        }
    }
    true
}

fn is_watched(work: &Work) -> bool {
    let status = &work.status;
    status.previous.is_some() && status.active.as_ref().is_some_and(|active| age(active, work.now) < WATCHED)
}

/// The version before decides again, if the active one fails too often soon after it took over.
fn take_back(work: &mut Work, max_error_percent: i32) {
    if !is_watched(work) {
        return;
    }
    let Some(active) = work.status.active.clone() else { return };
    // Version before version: one that is put back was good for long.
    if work.status.previous.as_ref().is_some_and(|previous| previous.number > active.number) {
        return;
    }
    let Some(why) = fault(&active, &work.status, max_error_percent, MIN_DECISIONS) else { return };
    let Some(previous) = work.status.previous.take() else { return };
    let message = format!("version {} was taken back, version {} decides again: {why}", active.number, previous.number);
    work.activate(previous, false);
    work.status.previous = None;
    work.gave_up(active.number, "RolledBack", message);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use scaleup_api::plugin::{PluginHolder, RolloutPhase};

    use super::*;

    const START: i64 = 1_700_000_000;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(START + seconds).unwrap()
    }

    fn version(number: i64) -> PluginVersion {
        PluginVersion { number, phase: "Active".into(), since: Some(Time(at(-5_000))), ..PluginVersion::default() }
    }

    fn figures(decisions: i64, trap: i64, differences: i64) -> PluginFigures {
        let errors = BTreeMap::from([("trap".to_owned(), trap)]);
        PluginFigures { decisions, errors, differences, ..PluginFigures::default() }
    }

    fn spec() -> WasmPluginSpec {
        let step = |percent, decisions| CanaryStep { percent, decisions: Some(decisions), ..CanaryStep::default() };
        let shadow =
            RolloutPhase { duration: Some("10s".into()), max_difference_percent: Some(50), ..RolloutPhase::default() };
        let rollout = Rollout {
            shadow: Some(shadow),
            canary: vec![step(10, 100), step(50, 0)],
            max_error_percent: Some(5),
            ..Rollout::default()
        };
        WasmPluginSpec { rollout: Some(rollout), ..WasmPluginSpec::default() }
    }

    fn trying() -> Work {
        let mut candidate = version(2);
        begin(&spec(), &mut candidate, at(0));
        let holder = PluginHolder { active: Some(1), candidate: Some(2), ..PluginHolder::default() };
        let status = WasmPluginStatus {
            active: Some(version(1)),
            candidate: Some(candidate),
            holders: BTreeMap::from([("lb/a".to_owned(), holder)]),
            ..WasmPluginStatus::default()
        };
        Work::of(status, 7, at(0))
    }

    fn counted(work: &mut Work, candidate: PluginFigures) {
        work.status.holders.get_mut("lb/a").unwrap().candidate_figures = Some(candidate);
    }

    fn is(work: &Work, active: i64, candidate: Option<(&str, Option<i32>)>) {
        assert_eq!(work.status.active.as_ref().unwrap().number, active);
        let found = work.status.candidate.as_ref().map(|one| (one.phase.as_str(), one.percent));
        assert_eq!(found, candidate);
    }

    #[test]
    fn phases_follow_each_other() {
        let mut work = trying();
        assert!(advance(&spec(), &mut work));
        is(&work, 1, Some(("Shadow", None)));
        work.now = at(10);
        counted(&mut work, figures(40, 1, 19));
        advance(&spec(), &mut work);
        is(&work, 1, Some(("Canary", Some(10))));
        // Only what it did in this step counts.
        counted(&mut work, figures(139, 1, 19));
        advance(&spec(), &mut work);
        is(&work, 1, Some(("Canary", Some(10))));
        counted(&mut work, figures(140, 1, 19));
        advance(&spec(), &mut work);
        is(&work, 1, Some(("Canary", Some(50))));
        let mut paused = spec();
        paused.rollout.as_mut().unwrap().paused = true;
        advance(&paused, &mut work);
        is(&work, 1, Some(("Canary", Some(50))));
        advance(&spec(), &mut work);
        is(&work, 2, None);
        assert_eq!(work.status.previous.as_ref().unwrap().number, 1);
    }

    #[test]
    fn candidates_that_fail_or_differ_are_taken_out() {
        for candidate in [figures(40, 3, 0), figures(40, 0, 21)] {
            let mut work = trying();
            counted(&mut work, candidate);
            advance(&spec(), &mut work);
            is(&work, 1, None);
            assert_eq!(work.status.latest.as_ref().unwrap().rejected.as_deref(), Some("RolloutFailed"));
        }
        let mut work = trying();
        work.status.holders.get_mut("lb/a").unwrap().tripped = Some(2);
        advance(&spec(), &mut work);
        is(&work, 1, None);
    }

    #[test]
    fn no_phase_passes_before_everybody_has_loaded_it() {
        let mut work = trying();
        work.status.holders.insert("lb/b".into(), PluginHolder { active: Some(1), ..PluginHolder::default() });
        work.now = at(100);
        advance(&spec(), &mut work);
        is(&work, 1, Some(("Shadow", None)));
    }

    #[test]
    fn a_version_that_fails_after_it_took_over_is_taken_back() {
        let failing = |seconds| {
            let mut work = trying();
            let candidate = work.status.candidate.take().unwrap();
            work.activate(candidate, false);
            let holder = work.status.holders.get_mut("lb/a").unwrap();
            (holder.active, holder.candidate, holder.figures) = (Some(2), None, Some(figures(100, 6, 0)));
            work.now = at(seconds);
            advance(&spec(), &mut work);
            work
        };
        let work = failing(599);
        is(&work, 1, None);
        assert_eq!((work.status.previous, work.events.len()), (None, 1));
        is(&failing(601), 2, None);
    }
}
