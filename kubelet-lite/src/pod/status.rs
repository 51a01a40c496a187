//! `status` of a pod from what is observed (`kubelet_pods.go`: `getPhase`, `convertStatusToAPIStatus`). Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container as SpecContainer, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Map, Value};

use super::facts::Facts;
use super::plan::Waiting;
use super::view::{self, Observed};
use crate::runtime::Container;

/// Conditions that the agent writes; all others belong to somebody else and are kept.
const OWNED_CONDITIONS: [&str; 4] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"];

/// Whether the agent writes that condition.
pub fn owns(condition: &str) -> bool {
    OWNED_CONDITIONS.contains(&condition)
}

/// Fields of `status` that the agent writes.
const OWNED_FIELDS: [&str; 10] = [
    "phase",
    "reason",
    "message",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "startTime",
    "containerStatuses",
    "initContainerStatuses",
];

/// What a status is made from.
pub struct Input<'a> {
    /// The pod as the API has it.
    pub pod: &'a Pod,
    /// Its containers.
    pub observed: &'a Observed,
    /// What else is known.
    pub facts: &'a Facts,
    /// Why containers do not run, from the plan.
    pub waiting: &'a BTreeMap<String, Waiting>,
    /// The node's address.
    pub host_ip: IpAddr,
    /// When the agent first saw the pod.
    pub seen_at: Timestamp,
    /// Now.
    pub now: Timestamp,
    /// Nothing of the pod will run again: it is being deleted and its containers have ended, or it has ended by itself.
    pub over: bool,
    /// Name of the runtime, for container ids: `docker://…`.
    pub runtime: &'a str,
}

/// The container's status as the API has it.
pub fn reported<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let lists = [status.container_statuses.as_deref(), status.init_container_statuses.as_deref()];
    lists.into_iter().flatten().flatten().find(|s| s.name == name)
}

/// The whole status.
pub fn generate(input: &Input<'_>) -> PodStatus {
    let statuses = |list: &[SpecContainer]| list.iter().map(|c| container_status(input, c)).collect::<Vec<_>>();
    let inits = statuses(view::init_containers(input.pod));
    let mains = statuses(view::containers(input.pod));
    let mut phase = match &input.facts.ended {
        Some(_) => "Failed",
        None => phase(input.pod, &inits, &mains, input.over),
    };
    let before = input.pod.status.as_ref();
    if let Some(ended @ ("Succeeded" | "Failed")) = before.and_then(|s| s.phase.as_deref()) {
        phase = if ended == "Failed" { "Failed" } else { "Succeeded" };
    }
    let conditions = conditions(input, phase, &inits, &mains);
    let address = pod_address(input);
    let ended = input.facts.ended.as_ref();
    let kept = |field: fn(&PodStatus) -> &Option<String>| before.and_then(|s| field(s).clone());
    PodStatus {
        phase: Some(phase.into()),
        reason: ended.map(|e| e.reason.clone()).or_else(|| kept(|s| &s.reason)),
        message: ended.map(|e| e.message.clone()).or_else(|| kept(|s| &s.message)),
        host_ip: Some(input.host_ip.to_string()),
        host_ips: Some(vec![HostIP { ip: input.host_ip.to_string() }]),
        pod_ip: address.map(|a| a.to_string()),
        pod_ips: address.map(|a| vec![PodIP { ip: a.to_string() }]),
        start_time: before.and_then(|s| s.start_time.clone()).or_else(|| Some(time(input.seen_at))),
        conditions: Some(conditions),
        container_statuses: (!mains.is_empty()).then_some(mains),
        init_container_statuses: (!inits.is_empty()).then_some(inits),
        ..PodStatus::default()
    }
}

/// The sandbox's address; a pod that has ended keeps the last one.
fn pod_address(input: &Input<'_>) -> Option<IpAddr> {
    if view::spec(input.pod).host_network == Some(true) {
        return input.observed.sandbox.is_some().then_some(input.host_ip).or_else(|| last_address(input.pod));
    }
    input.observed.sandbox.as_ref().and_then(|s| s.address).or_else(|| last_address(input.pod))
}

fn last_address(pod: &Pod) -> Option<IpAddr> {
    pod.status.as_ref()?.pod_ip.as_deref()?.parse().ok()
}

/// `metav1.Time` has whole seconds on the wire.
pub fn time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

fn container_status(input: &Input<'_>, container: &SpecContainer) -> ContainerStatus {
    let generations = input.observed.containers.get(&container.name).map(Vec::as_slice).unwrap_or_default();
    let reported = reported(input.pod, &container.name);
    let waiting =
        input.waiting.get(&container.name).filter(|_| !generations.first().is_some_and(Container::is_running));
    let base = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        restart_count: reported.map_or(0, |s| s.restart_count),
        started: Some(false),
        ..ContainerStatus::default()
    };
    let Some(newest) = generations.first() else {
        let ended_before = reported.filter(|s| input.over && s.state.as_ref().is_some_and(|s| s.terminated.is_some()));
        if let Some(kept) = ended_before {
            return kept.clone();
        }
        return ContainerStatus {
            state: Some(waiting_state(waiting)),
            last_state: reported.and_then(|s| s.last_state.clone()),
            ..base
        };
    };
    let previous = generations.get(1);
    let (state, last) = match waiting {
        Some(_) => (waiting_state(waiting), Some(newest)),
        None => (state_of(input, newest), previous),
    };
    let terminated = |c: &Container| c.exit().map(|_| state_of(input, c));
    let running = newest.is_running();
    ContainerStatus {
        state: Some(state),
        last_state: Some(last.and_then(terminated).unwrap_or_default()),
        ready: running && input.facts.is_ready(&newest.id) && input.facts.ended.is_none(),
        started: Some(running && input.facts.is_started(&newest.id)),
        restart_count: i32::try_from(newest.attempt).unwrap_or(i32::MAX),
        container_id: Some(format!("{}://{}", input.runtime, newest.id)),
        image_id: newest.image_id.clone(),
        ..base
    }
}

fn waiting_state(waiting: Option<&Waiting>) -> ContainerState {
    let (reason, message) = waiting.map_or(("ContainerCreating", ""), |w| (w.reason, w.message.as_str()));
    let message = (!message.is_empty()).then(|| message.to_owned());
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.into()), message }),
        ..ContainerState::default()
    }
}

fn state_of(input: &Input<'_>, container: &Container) -> ContainerState {
    let Some(exit) = container.exit() else {
        let running = ContainerStateRunning { started_at: container.started_at.map(time) };
        return ContainerState { running: Some(running), ..ContainerState::default() };
    };
    let reason = match exit {
        e if !e.start_error.is_empty() => "StartError",
        e if e.oom_killed => "OOMKilled",
        e if e.code == 0 => "Completed",
        _ => "Error",
    };
    let message = match input.facts.messages.get(&container.id) {
        Some(message) if !message.is_empty() => Some(message.clone()),
        _ => (!exit.start_error.is_empty()).then(|| exit.start_error.clone()),
    };
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: exit.code,
            reason: Some(reason.into()),
            message,
            started_at: Some(time(container.started_at.unwrap_or(Timestamp::UNIX_EPOCH))),
            finished_at: Some(time(exit.at)),
            container_id: Some(format!("{}://{}", input.runtime, container.id)),
            signal: None,
        }),
        ..ContainerState::default()
    }
}

fn terminated(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.state.as_ref()?.terminated.as_ref()
}

fn is_running(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|s| s.running.is_some())
}

fn last_terminated(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.last_state.as_ref()?.terminated.as_ref()
}

/// `getPhase`: where a pod is in its life.
fn phase(pod: &Pod, inits: &[ContainerStatus], mains: &[ContainerStatus], over: bool) -> &'static str {
    let policy = view::restart_policy(pod);
    let (mut initializing, mut init_failed) = (false, false);
    for (container, status) in view::init_containers(pod).iter().zip(inits) {
        if view::is_sidecar(container) {
            initializing |= status.started != Some(true) && last_terminated(status).is_none();
        } else {
            match (terminated(status), last_terminated(status)) {
                (Some(t), _) => init_failed |= t.exit_code != 0,
                (None, Some(t)) if !is_running(status) && t.exit_code != 0 => init_failed = true,
                _ => initializing = true,
            }
        }
    }
    let (mut waiting, mut running, mut stopped, mut succeeded) = (0, 0, 0, 0);
    for status in mains {
        if is_running(status) {
            running += 1;
        } else if let Some(t) = terminated(status) {
            stopped += 1;
            succeeded += usize::from(t.exit_code == 0);
        } else if last_terminated(status).is_some() {
            stopped += 1;
        } else {
            waiting += 1;
        }
    }
    let began = running + stopped > 0;
    if init_failed && (policy == "Never" || over) {
        return "Failed";
    }
    if over && waiting > 0 && stopped == 0 {
        // Deleted before anything ran.
        return "Failed";
    }
    match () {
        () if (initializing || init_failed) && !began => "Pending",
        () if waiting > 0 && !over => "Pending",
        () if running > 0 => "Running",
        () if stopped > 0 && (over || policy == "Never") => {
            if stopped == succeeded {
                "Succeeded"
            } else {
                "Failed"
            }
        }
        () if stopped > 0 && policy == "OnFailure" && stopped == succeeded => "Succeeded",
        () if stopped > 0 => "Running",
        () => "Pending",
    }
}

struct Verdict {
    met: bool,
    reason: &'static str,
    message: String,
}

impl Verdict {
    fn met() -> Self {
        Self { met: true, reason: "", message: String::new() }
    }
    fn unmet(reason: &'static str, message: impl Into<String>) -> Self {
        Self { met: false, reason, message: message.into() }
    }
}

fn conditions(
    input: &Input<'_>,
    phase: &str,
    inits: &[ContainerStatus],
    mains: &[ContainerStatus],
) -> Vec<PodCondition> {
    let initialized = initialized(input.pod, phase, inits, mains);
    let containers_ready = containers_ready(input.pod, phase, inits, mains);
    let ready = pod_ready(input.pod, &containers_ready);
    let sandbox_ready = if input.observed.sandbox.is_some() { Verdict::met() } else { Verdict::unmet("", "") };
    let before = input.pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let mut out: Vec<PodCondition> = OWNED_CONDITIONS
        .into_iter()
        .zip([sandbox_ready, initialized, ready, containers_ready])
        .map(|(kind, verdict)| condition(kind, verdict, before, input.now))
        .collect();
    out.extend(before.iter().filter(|c| !owns(&c.type_)).cloned());
    out
}

fn condition(kind: &str, verdict: Verdict, before: &[PodCondition], now: Timestamp) -> PodCondition {
    let status = if verdict.met { "True" } else { "False" };
    let same = before.iter().find(|c| c.type_ == kind && c.status == status);
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    PodCondition {
        type_: kind.into(),
        status: status.into(),
        reason: some(verdict.reason),
        message: some(&verdict.message),
        last_transition_time: same.and_then(|c| c.last_transition_time.clone()).or_else(|| Some(time(now))),
        ..PodCondition::default()
    }
}

fn initialized(pod: &Pod, phase: &str, inits: &[ContainerStatus], mains: &[ContainerStatus]) -> Verdict {
    if phase == "Succeeded" {
        return Verdict { met: true, reason: "PodCompleted", message: String::new() };
    }
    let began = mains.iter().any(|s| is_running(s) || terminated(s).is_some() || last_terminated(s).is_some());
    let incomplete: Vec<&str> = view::init_containers(pod)
        .iter()
        .zip(inits)
        .filter(|(container, status)| {
            if view::is_sidecar(container) {
                status.started != Some(true) && !began
            } else {
                terminated(status).is_none_or(|t| t.exit_code != 0) && !began
            }
        })
        .map(|(container, _)| container.name.as_str())
        .collect();
    if incomplete.is_empty() {
        return Verdict::met();
    }
    Verdict::unmet("ContainersNotInitialized", format!("containers with incomplete status: [{}]", incomplete.join(" ")))
}

fn containers_ready(pod: &Pod, phase: &str, inits: &[ContainerStatus], mains: &[ContainerStatus]) -> Verdict {
    match phase {
        "Succeeded" => return Verdict::unmet("PodCompleted", ""),
        "Failed" => return Verdict::unmet("PodFailed", ""),
        _ => {}
    }
    let sidecars = view::init_containers(pod).iter().zip(inits).filter(|(c, _)| view::is_sidecar(c)).map(|(_, s)| s);
    let unready: Vec<&str> = sidecars.chain(mains).filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
    if unready.is_empty() {
        return Verdict::met();
    }
    Verdict::unmet("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" ")))
}

fn pod_ready(pod: &Pod, containers: &Verdict) -> Verdict {
    if !containers.met {
        return Verdict::unmet(containers.reason, containers.message.clone());
    }
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let mut missing = Vec::new();
    for gate in view::spec(pod).readiness_gates.as_deref().unwrap_or_default() {
        let kind = &gate.condition_type;
        match conditions.iter().find(|c| c.type_ == *kind) {
            None => missing.push(format!("corresponding condition of pod readiness gate {kind:?} does not exist.")),
            Some(c) if c.status != "True" => {
                missing.push(format!("the status of pod readiness gate {kind:?} is not \"True\", but {}", c.status))
            }
            Some(_) => {}
        }
    }
    if missing.is_empty() { Verdict::met() } else { Verdict::unmet("ReadinessGatesNotReady", missing.join(", ")) }
}

/// The merge patch (RFC 7386) of `status` that turns `before` into `after`; `None` if nothing of ours changes.
///
/// Conditions of others are in `after` already, taken from the same `before`; the caller makes the write conditional on its
/// resourceVersion.
pub fn patch(before: Option<&PodStatus>, after: &PodStatus) -> Option<Value> {
    let object = |status: Option<&PodStatus>| match status.map(serde_json::to_value) {
        Some(Ok(Value::Object(map))) => map,
        _ => Map::new(),
    };
    let (old, new) = (object(before), object(Some(after)));
    let mut changes = Map::new();
    for field in OWNED_FIELDS.into_iter().chain(["conditions"]) {
        match (old.get(field), new.get(field)) {
            (was, Some(is)) if was != Some(is) => {
                changes.insert(field.into(), is.clone());
            }
            (Some(_), None) => {
                changes.insert(field.into(), Value::Null);
            }
            _ => {}
        }
    }
    (!changes.is_empty()).then_some(Value::Object(changes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn state(text: &str) -> serde_json::Value {
        let ended = |code: i32| json!({"terminated": {"exitCode": code}});
        match text {
            "run" => json!({"state": {"running": {}}, "started": true}),
            "ok" => json!({"state": ended(0)}),
            "err" => json!({"state": ended(1)}),
            "crash" => json!({"state": {"waiting": {}}, "lastState": ended(1)}),
            _ => json!({"state": {"waiting": {}}}),
        }
    }

    fn statuses(list: &[&str]) -> Vec<ContainerStatus> {
        let one = |text: &&str| {
            let mut status = json!({"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0});
            status.as_object_mut().unwrap().extend(state(text).as_object().unwrap().clone());
            serde_json::from_value(status).unwrap()
        };
        list.iter().map(one).collect()
    }

    fn check(policy: &str, inits: &[&str], mains: &[&str], over: bool, want: &str) {
        let containers = |n: usize| (0..n).map(|i| json!({"name": i.to_string()})).collect::<Vec<_>>();
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "restartPolicy": policy, "initContainers": containers(inits.len()), "containers": containers(mains.len())}}))
        .unwrap();
        let got = phase(&pod, &statuses(inits), &statuses(mains), over);
        assert_eq!(got, want, "{policy} {inits:?} {mains:?} {over}");
    }

    #[test]
    fn phases_are_upstreams() {
        check("Always", &[], &["wait"], false, "Pending");
        check("Always", &[], &["run"], false, "Running");
        check("Always", &[], &["run", "wait"], false, "Pending");
        check("Always", &[], &["run", "crash"], false, "Running");
        check("Always", &[], &["crash"], false, "Running");
        check("Always", &[], &["ok"], false, "Running");
        check("Never", &[], &["ok"], false, "Succeeded");
        check("Never", &[], &["ok", "err"], false, "Failed");
        check("Never", &[], &["ok", "run"], false, "Running");
        check("OnFailure", &[], &["ok"], false, "Succeeded");
        check("OnFailure", &[], &["err"], false, "Running");
        check("Always", &[], &["ok"], true, "Succeeded");
        check("Always", &[], &["err"], true, "Failed");
        check("Always", &[], &["wait"], true, "Failed");
        check("Always", &["run"], &["wait"], false, "Pending");
        check("Always", &["ok"], &["run"], false, "Running");
        check("Always", &["crash"], &["wait"], false, "Pending");
        check("Never", &["err"], &["wait"], false, "Failed");
    }

    #[test]
    fn patches_name_only_what_changes() {
        let status = |text: serde_json::Value| -> PodStatus { serde_json::from_value(text).unwrap() };
        let before =
            status(json!({"phase": "Pending", "podIP": "1.1.1.1", "qosClass": "Burstable", "hostIP": "2.2.2.2"}));
        let after = status(json!({"phase": "Running", "hostIP": "2.2.2.2"}));
        assert_eq!(patch(Some(&before), &after), Some(json!({"phase": "Running", "podIP": null})));
        assert_eq!(patch(Some(&after), &after), None, "and nothing if nothing does");
        assert_eq!(patch(None, &after), Some(json!({"phase": "Running", "hostIP": "2.2.2.2"})));
    }
}
