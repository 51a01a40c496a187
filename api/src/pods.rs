//! What several roles ask of a Pod (`k8s.io/kubernetes/pkg/api/v1/pod`, `component-helpers/resource`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, PodSpec};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::quantity::Quantity;

/// The condition of that type.
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_deref()?.iter().find(|c| c.type_ == kind)
}

/// Whether condition Ready is True.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Whether the pod has been ready for `min_ready_seconds`.
pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    let Some(ready) = condition(pod, "Ready").filter(|c| c.status == "True") else { return false };
    if min_ready_seconds <= 0 {
        return true;
    }
    let Some(since) = &ready.last_transition_time else { return false };
    now.duration_since(since.0) >= SignedDuration::from_secs(i64::from(min_ready_seconds))
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

/// Whether all its containers have ended for good.
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Neither ended nor being deleted.
pub fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Amounts by resource name.
pub type Resources = BTreeMap<String, Quantity>;

fn requests(container: &Container) -> Resources {
    let map = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    // What does not parse was refused at admission; reading it as absent keeps this total.
    map.into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), Quantity::try_from(v).ok()?))).collect()
}

fn add(into: &mut Resources, what: &Resources) {
    for (k, v) in what {
        let sum = into.get(k).copied().unwrap_or_default() + *v;
        into.insert(k.clone(), sum);
    }
}

fn max(into: &mut Resources, what: &Resources) {
    for (k, v) in what {
        let entry = into.entry(k.clone()).or_insert(*v);
        *entry = (*entry).max(*v);
    }
}

/// What the scheduler reserves for a pod (upstream's `PodRequests`): the larger of the containers' sum and of each init
/// container with the sidecars started before it, plus overhead.
pub fn resource_requests(spec: &PodSpec) -> Resources {
    let mut total = Resources::new();
    for c in &spec.containers {
        add(&mut total, &requests(c));
    }
    let (mut sidecars, mut init_peak) = (Resources::new(), Resources::new());
    for c in spec.init_containers.as_deref().unwrap_or_default() {
        let own = requests(c);
        if c.restart_policy.as_deref() == Some("Always") {
            add(&mut sidecars, &own);
            add(&mut total, &own);
            max(&mut init_peak, &sidecars);
        } else {
            let mut with_sidecars = sidecars.clone();
            add(&mut with_sidecars, &own);
            max(&mut init_peak, &with_sidecars);
        }
    }
    max(&mut total, &init_peak);
    let overhead = spec.overhead.iter().flatten();
    add(&mut total, &overhead.filter_map(|(k, v)| Some((k.clone(), Quantity::try_from(v).ok()?))).collect());
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(spec: serde_json::Value, cpu: &str) {
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        assert_eq!(resource_requests(&spec).get("cpu").copied().unwrap_or_default(), Quantity::parse(cpu).unwrap());
    }

    fn c(cpu: &str) -> serde_json::Value {
        serde_json::json!({"name": "c", "resources": {"requests": {"cpu": cpu}}})
    }

    #[test]
    fn requests_take_the_larger_of_init_and_main() {
        use serde_json::json;
        check(json!({"containers": [c("100m"), c("200m")]}), "300m");
        check(json!({"containers": [c("100m")], "initContainers": [c("1"), c("2")]}), "2");
        let mut sidecar = c("500m");
        sidecar["restartPolicy"] = "Always".into();
        check(json!({"containers": [c("100m")], "initContainers": [sidecar, c("1")]}), "1500m");
        check(json!({"containers": [c("2")], "initContainers": [sidecar, c("1")], "overhead": {"cpu": "1"}}), "3500m");
    }

    #[test]
    fn availability_counts_from_the_transition() {
        let t: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let pod: Pod = serde_json::from_value(serde_json::json!({"status": {"phase": "Running", "conditions":
            [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}))
        .unwrap();
        assert!(is_ready(&pod) && is_active(&pod) && !is_terminal(&pod));
        assert!(is_available(&pod, 0, t) && !is_available(&pod, 10, t));
        assert!(is_available(&pod, 10, t + SignedDuration::from_secs(10)));
    }
}
