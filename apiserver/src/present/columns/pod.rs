//! The pod's aggregate columns: upstream's `printPod`.

use serde_json::Value;

use super::cells::{array, flag, integer, or, text};
use crate::present::age;

/// What the containers' states add up to.
#[derive(Debug, PartialEq)]
struct Summary {
    ready: i64,
    total: usize,
    reason: String,
    restarts: i64,
    /// When a container last ended, RFC 3339; empty if none did. Whole seconds in UTC, so text order is time order.
    last_restart: String,
}

/// `1/2`
pub fn ready(pod: &Value) -> Value {
    let summary = summarize(pod);
    format!("{}/{}", summary.ready, summary.total).into()
}

/// `Running`, `Init:0/1`, `CrashLoopBackOff`, `Terminating`, …
pub fn status(pod: &Value) -> Value {
    summarize(pod).reason.into()
}

/// `3 (5m ago)`
pub fn restarts(pod: &Value) -> Value {
    let summary = summarize(pod);
    if summary.restarts == 0 || summary.last_restart.is_empty() {
        return summary.restarts.to_string().into();
    }
    format!("{} ({} ago)", summary.restarts, age::since(&summary.last_restart)).into()
}

/// First of `status.podIPs`.
pub fn ip(pod: &Value) -> Value {
    let first = array(pod, &["status", "podIPs"]).first().map_or("", |p| text(p, &["ip"]));
    or(first, "<none>").into()
}

/// `spec.nodeName`
pub fn node(pod: &Value) -> Value {
    or(text(pod, &["spec", "nodeName"]), "<none>").into()
}

/// `status.nominatedNodeName`
pub fn nominated_node(pod: &Value) -> Value {
    or(text(pod, &["status", "nominatedNodeName"]), "<none>").into()
}

/// `1/2`: gates whose condition is true, of all.
pub fn readiness_gates(pod: &Value) -> Value {
    let gates = array(pod, &["spec", "readinessGates"]);
    if gates.is_empty() {
        return "<none>".into();
    }
    let is_true = gates.iter().filter(|g| condition_is_true(pod, text(g, &["conditionType"]))).count();
    format!("{is_true}/{}", gates.len()).into()
}

fn condition_is_true(pod: &Value, kind: &str) -> bool {
    let conditions = array(pod, &["status", "conditions"]);
    conditions.iter().find(|c| text(c, &["type"]) == kind).is_some_and(|c| text(c, &["status"]) == "True")
}

fn summarize(pod: &Value) -> Summary {
    let phase = text(pod, &["status", "phase"]);
    let status_reason = text(pod, &["status", "reason"]);
    let sidecars = array(pod, &["spec", "initContainers"]).iter().filter(|c| restarts_always(c)).count();
    let mut summary = Summary {
        ready: 0,
        total: array(pod, &["spec", "containers"]).len() + sidecars,
        reason: or(status_reason, phase).to_owned(),
        restarts: 0,
        last_restart: String::new(),
    };
    let gated = |c: &Value| text(c, &["type"]) == "PodScheduled" && text(c, &["reason"]) == "SchedulingGated";
    if array(pod, &["status", "conditions"]).iter().any(gated) {
        summary.reason = "SchedulingGated".to_owned();
    }
    let sidecar_restarts = add_init_containers(pod, &mut summary);
    if sidecar_restarts.initialized || condition_is_true(pod, "Initialized") {
        summary.restarts = sidecar_restarts.restarts;
        summary.last_restart = sidecar_restarts.last_restart;
        add_containers(pod, &mut summary);
    }
    if !text(pod, &["metadata", "deletionTimestamp"]).is_empty() {
        if status_reason == "NodeLost" {
            summary.reason = "Unknown".to_owned();
        } else if phase != "Succeeded" && phase != "Failed" {
            summary.reason = "Terminating".to_owned();
        }
    }
    summary
}

fn restarts_always(init_container: &Value) -> bool {
    text(init_container, &["restartPolicy"]) == "Always"
}

/// What of the init containers' counters still counts once the pod is past initialization.
struct SidecarRestarts {
    initialized: bool,
    restarts: i64,
    last_restart: String,
}

fn add_init_containers(pod: &Value, summary: &mut Summary) -> SidecarRestarts {
    let specs = array(pod, &["spec", "initContainers"]);
    let mut sidecars = SidecarRestarts { initialized: true, restarts: 0, last_restart: String::new() };
    for (i, container) in array(pod, &["status", "initContainerStatuses"]).iter().enumerate() {
        let name = text(container, &["name"]);
        let sidecar = specs.iter().any(|s| text(s, &["name"]) == name && restarts_always(s));
        count_restarts(container, &mut summary.restarts, &mut summary.last_restart);
        if sidecar {
            count_restarts(container, &mut sidecars.restarts, &mut sidecars.last_restart);
        }
        let terminated = container.get("state").and_then(|s| s.get("terminated"));
        if terminated.is_some_and(|t| integer(t, &["exitCode"]) == 0) {
            continue;
        }
        if sidecar && flag(container, &["started"]) {
            summary.ready += i64::from(flag(container, &["ready"]));
            continue;
        }
        let waiting = text(container, &["state", "waiting", "reason"]);
        summary.reason = match terminated {
            Some(terminated) => format!("Init:{}", ended(terminated)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{i}/{}", specs.len()),
        };
        sidecars.initialized = false;
        break;
    }
    sidecars
}

fn add_containers(pod: &Value, summary: &mut Summary) {
    let mut has_running = false;
    for container in array(pod, &["status", "containerStatuses"]).iter().rev() {
        count_restarts(container, &mut summary.restarts, &mut summary.last_restart);
        let state = |name: &str| container.get("state").and_then(|s| s.get(name)).filter(|s| !s.is_null());
        let waiting = text(container, &["state", "waiting", "reason"]);
        if !waiting.is_empty() {
            summary.reason = waiting.to_owned();
        } else if let Some(terminated) = state("terminated") {
            summary.reason = ended(terminated);
        } else if flag(container, &["ready"]) && state("running").is_some() {
            has_running = true;
            summary.ready += 1;
        }
    }
    if summary.reason == "Completed" && has_running {
        summary.reason = if condition_is_true(pod, "Ready") { "Running" } else { "NotReady" }.to_owned();
    }
}

fn count_restarts(container: &Value, restarts: &mut i64, last: &mut String) {
    *restarts = restarts.saturating_add(integer(container, &["restartCount"]));
    let finished = text(container, &["lastState", "terminated", "finishedAt"]);
    if finished > last.as_str() {
        *last = finished.to_owned();
    }
}

fn ended(terminated: &Value) -> String {
    let reason = text(terminated, &["reason"]);
    let signal = integer(terminated, &["signal"]);
    match (reason, signal) {
        ("", 0) => format!("ExitCode:{}", integer(terminated, &["exitCode"])),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(pod: Value, want_ready: &str, want_status: &str, want_restarts: &str) {
        assert_eq!(ready(&pod), want_ready, "{pod}");
        assert_eq!(status(&pod), want_status, "{pod}");
        let got = restarts(&pod);
        assert!(got.as_str().unwrap().starts_with(want_restarts), "{got} {pod}");
    }

    fn pod(phase: &str, containers: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]},
            "status": {"phase": phase, "containerStatuses": containers}})
    }

    #[test]
    fn container_states_add_up() {
        let running = json!({"ready": true, "restartCount": 1, "state": {"running": {}}});
        check(pod("Pending", json!([])), "0/2", "Pending", "0");
        check(pod("Running", json!([running, running])), "2/2", "Running", "2");
        let crash = json!({"restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"finishedAt": "2020-01-01T00:00:00Z"}}});
        check(pod("Running", json!([crash, running])), "1/2", "CrashLoopBackOff", "4 (");
        let done = json!({"state": {"terminated": {"reason": "Completed", "exitCode": 0}}});
        check(pod("Succeeded", json!([done, done])), "0/2", "Completed", "0");
        check(pod("Running", json!([done, running])), "1/2", "NotReady", "1");
        let mut ready = pod("Running", json!([done, running]));
        ready["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        check(ready, "1/2", "Running", "1");
        check(pod("Failed", json!([{"state": {"terminated": {"exitCode": 3}}}])), "0/2", "ExitCode:3", "0");
        check(
            pod("Failed", json!([{"state": {"terminated": {"exitCode": 137, "signal": 9}}}])),
            "0/2",
            "Signal:9",
            "0",
        );
        let mut evicted = pod("Failed", json!([]));
        evicted["status"]["reason"] = json!("Evicted");
        check(evicted, "0/2", "Evicted", "0");
    }

    #[test]
    fn init_containers_come_first() {
        let init = |statuses: Value, specs: Value| {
            json!({"spec": {"containers": [{"name": "a"}], "initContainers": specs},
                "status": {"phase": "Pending", "initContainerStatuses": statuses,
                    "containerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}]}})
        };
        let two = json!([{"name": "i"}, {"name": "j"}]);
        let done = json!({"name": "i", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
        let running = json!({"name": "j", "state": {"running": {}}});
        check(init(json!([{"name": "i", "state": {"running": {}}}]), two.clone()), "0/1", "Init:0/2", "0");
        check(init(json!([done, running]), two.clone()), "0/1", "Init:1/2", "0");
        check(init(json!([done, done]), two.clone()), "0/1", "PodInitializing", "0");
        let failed =
            json!({"name": "i", "restartCount": 2, "state": {"terminated": {"exitCode": 1, "reason": "Error"}}});
        check(init(json!([failed]), two.clone()), "0/1", "Init:Error", "2");
        let code = json!({"name": "i", "state": {"terminated": {"exitCode": 1}}});
        check(init(json!([code]), two.clone()), "0/1", "Init:ExitCode:1", "0");
        let pull = json!({"name": "i", "state": {"waiting": {"reason": "ImagePullBackOff"}}});
        check(init(json!([pull]), two), "0/1", "Init:ImagePullBackOff", "0");
        let sidecar = json!([{"name": "i", "restartPolicy": "Always"}]);
        let up = json!({"name": "i", "started": true, "ready": true, "restartCount": 4, "state": {"running": {}}});
        check(init(json!([up]), sidecar), "1/2", "PodInitializing", "4");
    }

    #[test]
    fn deletion_shows() {
        let mut deleted = pod("Running", json!([]));
        deleted["metadata"]["deletionTimestamp"] = json!("2020-01-01T00:00:00Z");
        check(deleted.clone(), "0/2", "Terminating", "0");
        deleted["status"]["reason"] = json!("NodeLost");
        check(deleted, "0/2", "Unknown", "0");
        let mut done = pod("Succeeded", json!([]));
        done["metadata"]["deletionTimestamp"] = json!("2020-01-01T00:00:00Z");
        check(done, "0/2", "Succeeded", "0");
        let mut gated = pod("Pending", json!([]));
        gated["status"]["conditions"] =
            json!([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]);
        check(gated, "0/2", "SchedulingGated", "0");
    }

    #[test]
    fn wide_columns() {
        let p = json!({"spec": {"nodeName": "n", "readinessGates": [{"conditionType": "x"}, {"conditionType": "y"}]},
            "status": {"podIPs": [{"ip": "10.0.0.1"}], "conditions": [{"type": "x", "status": "True"}]}});
        assert_eq!(ip(&p), "10.0.0.1");
        assert_eq!(node(&p), "n");
        assert_eq!(nominated_node(&p), "<none>");
        assert_eq!(readiness_gates(&p), "1/2");
        assert_eq!(readiness_gates(&json!({})), "<none>");
        assert_eq!(ip(&json!({})), "<none>");
    }

    #[test]
    fn nonsense_does_not_panic() {
        let odd =
            json!({"spec": [], "status": {"containerStatuses": [3, null, "x"], "initContainerStatuses": {"a": 1}}});
        check(odd, "0/0", "", "0");
    }
}
