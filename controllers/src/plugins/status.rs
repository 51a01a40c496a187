//! The status as it becomes: conditions, versions, sums; and writing what has changed of it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, PatchOperation, RemoveOperation};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use scaleup_api::plugin::{
    ClusterWasmPlugin, PluginAttempt, PluginFigures, PluginHolder, PluginVersion, WasmPlugin, WasmPluginStatus,
};
use serde_json::{Value, json};

use super::{Plugin, Said};
use crate::base::calls::{self, Error};
use crate::base::events::Severity;

/// A process that has not renewed its entry for so long is gone.
const GONE_S: i64 = 180;
/// Reason of the condition `Active`, and of an event: a process has gone back to the version before by itself.
const FELL_BACK: &str = "FellBack";
/// Likewise: a process does not ask the version for the time being, and has none to go back to.
const FAILING: &str = "Failing";
/// Longest message of a condition.
const MAX_MESSAGE_BYTES: usize = 1024;

/// `status` of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    True,
    False,
    Unknown,
}

/// A status that is being worked out.
pub struct Work {
    pub status: WasmPluginStatus,
    pub generation: i64,
    pub now: Timestamp,
    pub events: Vec<Said>,
}

impl Work {
    pub fn new(plugin: &Plugin, now: Timestamp) -> Self {
        Self::of(plugin.status.clone(), plugin.generation, now)
    }

    /// Begins with this status; entries of processes that are gone are dropped.
    pub fn of(mut status: WasmPluginStatus, generation: i64, now: Timestamp) -> Self {
        let fresh =
            |time: &Option<Time>| time.as_ref().is_none_or(|time| now.as_second() - time.0.as_second() < GONE_S);
        status.holders.retain(|_, holder| fresh(&holder.time));
        Self { status, generation, now, events: Vec::new() }
    }

    /// Whether the specification has become a version, or never will.
    pub fn is_settled(&self) -> bool {
        let done = |latest: &PluginAttempt| {
            latest.generation == self.generation && (latest.number.is_some() || latest.rejected.is_some())
        };
        self.status.observed_generation == Some(self.generation) && self.status.latest.as_ref().is_some_and(done)
    }

    pub fn say(&mut self, severity: Severity, reason: &'static str, message: String) {
        self.events.push((severity, reason, message));
    }

    pub fn condition(&mut self, kind: &str, state: State, reason: &str, mut message: String) {
        let mut end = message.len().min(MAX_MESSAGE_BYTES);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        let status = format!("{state:?}");
        let known = self.status.conditions.iter_mut().find(|condition| condition.type_ == kind);
        let same = known.as_ref().filter(|known| known.status == status);
        let condition = Condition {
            type_: kind.into(),
            last_transition_time: same.map_or(Time(self.now), |known| known.last_transition_time.clone()),
            status,
            reason: reason.into(),
            message,
            observed_generation: Some(self.generation),
        };
        match known {
            Some(known) => *known = condition,
            None => self.status.conditions.push(condition),
        }
    }

    /// A step that is not done; those after it are not known.
    pub fn failed(&mut self, kind: &'static str, reason: &str, message: String) {
        let known = self.status.conditions.iter().find(|condition| condition.type_ == kind);
        if known.is_none_or(|known| (known.reason.as_str(), known.message.as_str()) != (reason, message.as_str())) {
            let reason = match kind {
                "Fetched" => "FetchFailed",
                "Verified" => "VerificationFailed",
                "Compiled" => "CompilationFailed",
                _ => "ProbeFailed",
            };
            self.say(Severity::Warning, reason, message.clone());
        }
        self.condition(kind, State::False, reason, message);
        let steps = ["Fetched", "Verified", "Compiled", "Probed"];
        for later in steps.into_iter().skip_while(|step| *step != kind).skip(1) {
            self.condition(later, State::Unknown, "Waiting", format!("{kind} is not true"));
        }
    }

    /// What was fetched cannot be used; `for_good` until it or the specification changes.
    pub fn rejected(&mut self, kind: &'static str, reason: &str, message: String, for_good: bool) {
        self.failed(kind, reason, message.clone());
        if let Some(latest) = self.status.latest.as_mut().filter(|_| for_good) {
            (latest.rejected, latest.message) = (Some(reason.into()), Some(message));
        }
    }

    /// A version was tried and is not used.
    pub fn gave_up(&mut self, number: i64, reason: &'static str, message: String) {
        self.say(Severity::Warning, reason, message.clone());
        let latest = self
            .status
            .latest
            .get_or_insert_with(|| PluginAttempt { generation: self.generation, ..PluginAttempt::default() });
        if latest.number.is_none_or(|latest| latest == number) {
            (latest.rejected, latest.message) = (Some(reason.into()), Some(message));
        }
    }

    /// This version decides, and the one that did is the one before.
    pub fn activate(&mut self, version: PluginVersion, back: bool) {
        let version = PluginVersion {
            phase: "Active".into(),
            percent: None,
            step: None,
            since: Some(Time(self.now)),
            before: if back { None } else { version.before.clone() },
            ..version
        };
        self.status.candidate = None;
        self.status.previous = self.status.active.replace(version).or(self.status.previous.take());
    }

    /// What follows from all the rest: the condition `Active` and the sums.
    pub fn finish(&mut self) {
        let (state, reason, message) = self.active();
        let known = self.status.conditions.iter().find(|condition| condition.type_ == "Active");
        let is_news = known.is_none_or(|known| (&known.reason, &known.message) != (&reason, &message));
        if let Some(reason) = [FELL_BACK, FAILING].into_iter().find(|event| is_news && *event == reason) {
            self.say(Severity::Warning, reason, message.clone());
        }
        self.condition("Active", state, &reason, message);
        let number = self.status.active.as_ref().map(|active| active.number);
        let holders = self.status.holders.values().filter(|holder| number.is_some() && holder.active == number);
        let mut all = holders.filter_map(|holder| holder.figures.as_ref()).peekable();
        let totals = all.peek().is_some().then(|| all.fold(PluginFigures::default(), sum));
        self.status.totals = totals;
    }

    fn active(&self) -> (State, String, String) {
        let status = &self.status;
        let Some(active) = &status.active else {
            let failed = status.conditions.iter().find(|c| c.type_ != "Active" && c.status == "False");
            let why =
                failed.map_or_else(|| "no version is ready yet".to_owned(), |c| format!("{}: {}", c.reason, c.message));
            return (State::False, "NoVersion".into(), why);
        };
        let decides = format!("version {} decides", active.number);
        let broken = status.holders.iter().find(|(_, holder)| holder.active.is_none() && !holder.state.is_empty());
        if let Some((name, holder)) = broken.filter(|(_, holder)| !holder.message.is_empty()) {
            return (State::False, "NotLoaded".into(), format!("{decides}, but not at {name}: {}", holder.message));
        }
        if let Some((reason, what)) = trouble(&status.holders, active.number) {
            return (State::True, reason.into(), format!("{decides}, but {what}"));
        }
        if let Some(candidate) = &status.candidate {
            let percent = candidate.percent.map(|percent| format!(" with {percent}%")).unwrap_or_default();
            let text = format!("{decides}; version {} is tried: {}{percent}", candidate.number, candidate.phase);
            return (State::True, "RollingOut".into(), text);
        }
        let latest = status.latest.as_ref().and_then(|latest| Some((latest.rejected.as_ref()?, latest)));
        if let Some((reason, latest)) = latest {
            let own = ["RolledBack", "RolloutFailed"].contains(&reason.as_str());
            let why = latest.message.clone().unwrap_or_default();
            let reason = if own { reason.clone() } else { "PreviousVersion".into() };
            return (State::True, reason, format!("{decides}; what was asked for last is not used: {why}"));
        }
        (State::True, "Active".into(), decides)
    }
}

/// What is wrong at processes that have loaded the version which decides: the reason, and in words.
fn trouble(holders: &BTreeMap<String, PluginHolder>, number: i64) -> Option<(&'static str, String)> {
    let mut tripped = holders.iter().filter(|(_, holder)| holder.tripped == Some(number));
    if let Some((name, holder)) = tripped.next() {
        let instead = holder.active.map_or_else(|| "none".to_owned(), |version| format!("version {version}"));
        let others = others(tripped.count());
        return Some((
            FELL_BACK,
            format!("it kept failing at {name}{others}, where {instead} decides until there is another one"),
        ));
    }
    let is_open = |holder: &PluginHolder| {
        let figures = holder.figures.as_ref().filter(|_| holder.active == Some(number));
        figures.is_some_and(|figures| !["", "Closed"].contains(&figures.breaker.as_str()))
    };
    let mut open = holders.iter().filter(|(_, holder)| is_open(holder));
    let (name, _) = open.next()?;
    let others = others(open.count());
    Some((
        FAILING,
        format!("it keeps failing at {name}{others} and is given a rest there: the failure policy decides meanwhile"),
    ))
}

fn others(count: usize) -> String {
    if count == 0 { String::new() } else { format!(" and at {count} more") }
}

fn sum(mut all: PluginFigures, one: &PluginFigures) -> PluginFigures {
    all.decisions = all.decisions.saturating_add(one.decisions);
    for (class, count) in &one.errors {
        let sum = all.errors.entry(class.clone()).or_default();
        *sum = sum.saturating_add(*count);
    }
    all.differences = all.differences.saturating_add(one.differences);
    all.fuel = all.fuel.saturating_add(one.fuel);
    // Quantiles cannot be added up: the slowest process says what may be expected.
    (all.p50_nanos, all.p99_nanos) = (all.p50_nanos.max(one.p50_nanos), all.p99_nanos.max(one.p99_nanos));
    all.memory_bytes = all.memory_bytes.max(one.memory_bytes);
    if all.breaker.is_empty() || one.breaker != "Closed" {
        all.breaker.clone_from(&one.breaker);
    }
    all
}

/// The operations that make one status the other, without those parts that others write.
fn operations(before: &WasmPluginStatus, now: &WasmPluginStatus) -> Vec<PatchOperation> {
    let (before, now) = (json!(before), json!(now));
    let at = |field: &str| PointerBuf::from_tokens(["status", field]);
    let mut all = Vec::new();
    for field in ["observedGeneration", "conditions", "active", "candidate", "previous", "totals", "latest", "versions"]
    {
        match (before.get(field), now.get(field)) {
            (before, Some(value)) if before != Some(value) => {
                all.push(PatchOperation::Add(AddOperation { path: at(field), value: value.clone() }));
            }
            (Some(_), None) => all.push(PatchOperation::Remove(RemoveOperation { path: at(field) })),
            _ => {}
        }
    }
    let gone = before.get("holders").and_then(Value::as_object).into_iter().flatten();
    for (name, _) in gone.filter(|(name, _)| now.get("holders").and_then(|holders| holders.get(name)).is_none()) {
        let path = PointerBuf::from_tokens(["status", "holders", name]);
        all.push(PatchOperation::Remove(RemoveOperation { path }));
    }
    all
}

/// Writes what has changed.
pub async fn write(client: &Client, plugin: &Plugin, now: &WasmPluginStatus) -> Result<(), Error> {
    let operations = operations(&plugin.status, now);
    if operations.is_empty() {
        return Ok(());
    }
    let patch: Patch<()> = Patch::Json(json_patch::Patch(operations));
    let (key, params) = (&plugin.key, PatchParams::default());
    let done = if key.namespace.is_empty() {
        let api: Api<ClusterWasmPlugin> = Api::all(client.clone());
        calls::call("patch ClusterWasmPlugin status", key, api.patch_status(&key.name, &params, &patch)).await.map(drop)
    } else {
        let api: Api<WasmPlugin> = Api::namespaced(client.clone(), &key.namespace);
        calls::call("patch WasmPlugin status", key, api.patch_status(&key.name, &params, &patch)).await.map(drop)
    };
    calls::gone_is_fine(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work() -> Work {
        Work::of(WasmPluginStatus::default(), 3, Timestamp::from_second(1_000).unwrap())
    }

    fn active(work: &mut Work) -> (String, String, String) {
        work.finish();
        let found = work.status.conditions.iter().find(|condition| condition.type_ == "Active").unwrap();
        (found.status.clone(), found.reason.clone(), found.message.clone())
    }

    #[test]
    fn the_condition_active_says_what_decides() {
        let mut work = work();
        work.failed("Fetched", "FetchFailed", "no such ConfigMap".into());
        assert_eq!(active(&mut work), ("False".into(), "NoVersion".into(), "FetchFailed: no such ConfigMap".into()));
        let steps: Vec<_> = work.status.conditions.iter().map(|c| (c.type_.as_str(), c.status.as_str())).collect();
        assert_eq!(steps[..2], [("Fetched", "False"), ("Verified", "Unknown")]);
        work.failed("Fetched", "FetchFailed", "no such ConfigMap".into());
        assert_eq!(work.events.len(), 1, "said once");
        work.activate(PluginVersion { number: 4, ..PluginVersion::default() }, false);
        assert_eq!(active(&mut work).1, "Active");
        work.gave_up(5, "RolledBack", "version 5 was taken back".into());
        let (state, reason, message) = active(&mut work);
        assert_eq!((state.as_str(), reason.as_str()), ("True", "RolledBack"));
        assert!(message.contains("version 4 decides") && message.contains("version 5 was taken back"), "{message}");
        let holder = PluginHolder { state: "fetch".into(), message: "no module".into(), ..PluginHolder::default() };
        work.status.holders.insert("lb/a".into(), holder);
        assert_eq!(active(&mut work).1, "NotLoaded");
    }

    #[test]
    fn a_process_that_goes_its_own_way_is_told() {
        let mut work = work();
        work.activate(PluginVersion { number: 5, ..PluginVersion::default() }, false);
        let well = PluginHolder { active: Some(5), state: "Loaded".into(), ..PluginHolder::default() };
        let fell =
            PluginHolder { active: Some(4), tripped: Some(5), state: "Tripped".into(), ..PluginHolder::default() };
        let figures = PluginFigures { breaker: "Open".into(), ..PluginFigures::default() };
        let rests = PluginHolder { figures: Some(figures), ..well.clone() };
        work.status.holders.insert("lb/a".into(), well.clone());
        assert_eq!(active(&mut work).1, "Active");
        work.status.holders.insert("lb/b".into(), rests);
        let (state, reason, message) = active(&mut work);
        assert_eq!((state.as_str(), reason.as_str()), ("True", "Failing"));
        assert!(message.contains("lb/b and is given a rest"), "{message}");
        for name in ["lb/c", "lb/d"] {
            work.status.holders.insert(name.into(), fell.clone());
        }
        let (state, reason, message) = active(&mut work);
        assert_eq!((state.as_str(), reason.as_str()), ("True", "FellBack"));
        assert!(message.contains("lb/c and at 1 more, where version 4 decides"), "{message}");
        active(&mut work);
        let said: Vec<_> = work.events.iter().map(|(_, reason, _)| *reason).collect();
        assert_eq!(said, ["Failing", "FellBack"], "said once");
        for holder in work.status.holders.values_mut() {
            *holder = well.clone();
        }
        assert_eq!((active(&mut work).1.as_str(), work.events.len()), ("Active", 2));
    }

    #[test]
    fn only_what_changed_is_written() {
        let holder = PluginHolder { time: Some(Time(Timestamp::from_second(1).unwrap())), ..PluginHolder::default() };
        let mut before = WasmPluginStatus {
            versions: Some(1),
            totals: Some(PluginFigures::default()),
            ..WasmPluginStatus::default()
        };
        before.holders.insert("lb/a".into(), holder);
        assert!(operations(&before, &before).is_empty());
        let mut now = Work::of(before.clone(), 1, Timestamp::from_second(1_000).unwrap()).status;
        (now.versions, now.totals) = (Some(2), None);
        let written = json!(json_patch::Patch(operations(&before, &now)));
        assert_eq!(
            written,
            json!([{"op": "remove", "path": "/status/totals"}, {"op": "add", "path": "/status/versions", "value": 2},
                {"op": "remove", "path": "/status/holders/lb~1a"}])
        );
    }
}
