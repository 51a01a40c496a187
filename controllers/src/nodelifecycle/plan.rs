//! What a silent or unhealthy node means: conditions, taints, readiness of its pods, pace of evictions. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::ResourceExt;
use scaleup_api::pods;
use scaleup_api::well_known::{LABEL_REGION, LABEL_ZONE, TAINT_NOT_READY, TAINT_UNREACHABLE, TAINT_UNSCHEDULABLE};
use tokio::time::Instant;

use crate::config::Config;

const NO_SCHEDULE: &str = "NoSchedule";
const NO_EXECUTE: &str = "NoExecute";
/// Conditions that a node reports itself.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Condition → taint while it is True.
const PRESSURE: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];
/// Nodes with this label do not count for disruption.
pub const EXCLUDE_DISRUPTION: &str = "node.kubernetes.io/exclude-disruption";

/// When a node was last heard of, by our own clock.
#[derive(Clone, Debug)]
pub struct Health {
    renewed: Option<MicroTime>,
    heartbeat: Option<Time>,
    /// When either last changed.
    pub heard: Instant,
}

/// Takes note of a node's Lease and heartbeat. Their clocks are never compared with ours, only with themselves.
pub fn observe(old: Option<&Health>, node: &Node, lease: Option<&Lease>, now: Instant) -> Health {
    let renewed = lease.and_then(|l| l.spec.as_ref()).and_then(|s| s.renew_time.clone());
    let heartbeat = ready(node).and_then(|c| c.last_heartbeat_time.clone());
    let heard = match old {
        Some(old) if old.renewed == renewed && old.heartbeat == heartbeat => old.heard,
        _ => now,
    };
    Health { renewed, heartbeat, heard }
}

/// The condition of a type.
pub fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_deref()?.iter().find(|c| c.type_ == kind)
}

/// The Ready condition.
pub fn ready(node: &Node) -> Option<&NodeCondition> {
    condition(node, "Ready")
}

/// Whether the Ready condition is True.
pub fn is_ready(node: &Node) -> bool {
    ready(node).is_some_and(|c| c.status == "True")
}

/// The conditions of a node that has been silent for `silent`; `None` if nothing changes.
pub fn conditions(node: &Node, silent: Duration, config: &Config, now: &Time) -> Option<Vec<NodeCondition>> {
    let grace = if ready(node).is_some() { config.node_monitor_grace_period } else { config.node_startup_grace_period };
    if silent <= grace {
        return None;
    }
    let mut conditions = node.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let mut changed = false;
    for kind in REPORTED {
        match conditions.iter_mut().find(|c| c.type_ == kind) {
            Some(c) if c.status == "Unknown" => {}
            Some(c) => {
                c.status = "Unknown".into();
                c.reason = Some("NodeStatusUnknown".into());
                c.message = Some("Kubelet stopped posting node status.".into());
                c.last_transition_time = Some(now.clone());
                changed = true;
            }
            None => {
                conditions.push(NodeCondition {
                    type_: kind.into(),
                    status: "Unknown".into(),
                    reason: Some("NodeStatusNeverUpdated".into()),
                    message: Some("Kubelet never posted node status.".into()),
                    last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                    last_transition_time: Some(now.clone()),
                });
                changed = true;
            }
        }
    }
    changed.then_some(conditions)
}

/// The taint that a node's readiness calls for.
fn readiness_taint(node: &Node) -> Option<&'static str> {
    match ready(node).map(|c| c.status.as_str()) {
        Some("True") => None,
        Some("Unknown") => Some(TAINT_UNREACHABLE),
        _ => Some(TAINT_NOT_READY),
    }
}

/// The taints a node should have; `None` if it has them. `may_evict`: `Some(true)` gives an unready node its
/// `NoExecute` taint, `Some(false)` leaves that as it is, `None` takes it away (everything is down: evicting would
/// help nobody).
pub fn taints(node: &Node, may_evict: Option<bool>, now: &Time) -> Option<Vec<Taint>> {
    let current = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    let has = |key: &str, effect: &str| current.iter().any(|t| t.key == key && t.effect == effect);
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    let readiness = readiness_taint(node);
    wanted.extend(readiness.map(|key| (key, NO_SCHEDULE)));
    for (kind, key) in PRESSURE {
        if condition(node, kind).is_some_and(|c| c.status == "True") {
            wanted.push((key, NO_SCHEDULE));
        }
    }
    if node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false) {
        wanted.push((TAINT_UNSCHEDULABLE, NO_SCHEDULE));
    }
    let evicting = has(TAINT_NOT_READY, NO_EXECUTE) || has(TAINT_UNREACHABLE, NO_EXECUTE);
    // Once evicting, the taint follows the condition at once.
    if let (Some(key), Some(allowed)) = (readiness, may_evict)
        && (allowed || evicting)
    {
        wanted.push((key, NO_EXECUTE));
    }
    let is_managed = |t: &Taint| {
        let by_readiness = t.key == TAINT_NOT_READY || t.key == TAINT_UNREACHABLE;
        let by_pressure = t.key == TAINT_UNSCHEDULABLE || PRESSURE.iter().any(|(_, key)| *key == t.key);
        (t.effect == NO_SCHEDULE && (by_readiness || by_pressure)) || (t.effect == NO_EXECUTE && by_readiness)
    };
    let mut taints: Vec<Taint> = current
        .iter()
        .filter(|t| !is_managed(t) || wanted.contains(&(t.key.as_str(), t.effect.as_str())))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !has(key, effect) {
            let time_added = Some(now.clone());
            taints.push(Taint { key: key.into(), effect: effect.into(), value: None, time_added });
        }
    }
    (taints != current).then_some(taints)
}

/// Pods of an unready node that still count as ready since before it became unready. A later transition is the node's
/// own word, which is not overruled.
pub fn pods_to_mark(node: &Node, on_node: Vec<Arc<Pod>>) -> Vec<Arc<Pod>> {
    let Some(down) = ready(node).filter(|c| c.status != "True").and_then(|c| c.last_transition_time.as_ref()) else {
        return Vec::new();
    };
    let stale = |pod: &Arc<Pod>| {
        let condition = pods::condition(pod, "Ready").filter(|c| c.status == "True");
        condition.is_some_and(|c| c.last_transition_time.as_ref().is_none_or(|t| t <= down))
    };
    on_node.into_iter().filter(stale).collect()
}

/// Region and zone of a node.
pub type Zone = (String, String);

/// The zone of a node.
pub fn zone(node: &Node) -> Zone {
    let label = |key: &str| node.labels().get(key).cloned().unwrap_or_default();
    (label(LABEL_REGION), label(LABEL_ZONE))
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disruption {
    None,
    Partial,
    Full,
}

fn disruption(ready: usize, not_ready: usize, threshold: f64) -> Disruption {
    #[allow(clippy::cast_precision_loss, reason = "node counts are far below 2^52")]
    let part = |n: usize| n as f64 / (ready + not_ready) as f64;
    if ready == 0 && not_ready > 0 {
        Disruption::Full
    } else if not_ready > 2 && part(not_ready) >= threshold {
        Disruption::Partial
    } else {
        Disruption::None
    }
}

/// Evictions per second in each zone; `None` if all zones are down entirely: then nobody is evicted.
pub fn rates(nodes: &[Arc<Node>], config: &Config) -> Option<BTreeMap<Zone, f64>> {
    let mut counts: BTreeMap<Zone, (usize, usize)> = BTreeMap::new();
    for node in nodes {
        let (up, down) = counts.entry(zone(node)).or_default();
        if !node.labels().contains_key(EXCLUDE_DISRUPTION) {
            if is_ready(node) { *up += 1 } else { *down += 1 }
        }
    }
    let states =
        counts.iter().map(|(z, (up, down))| (z, up + down, disruption(*up, *down, config.unhealthy_zone_threshold)));
    let rate = |size: usize, state: Disruption| match state {
        Disruption::None | Disruption::Full => config.node_eviction_rate_per_second,
        Disruption::Partial if size > config.large_cluster_size_threshold => {
            config.secondary_node_eviction_rate_per_second
        }
        Disruption::Partial => 0.0,
    };
    let states: Vec<_> = states.collect();
    if !states.is_empty() && states.iter().all(|(_, _, s)| *s == Disruption::Full) {
        return None;
    }
    Some(states.into_iter().map(|(z, size, s)| (z.clone(), rate(size, s))).collect())
}

/// Lets one node at once, then `rate` per second and zone.
#[derive(Default)]
pub struct Pace {
    /// Zone → (tokens, as of).
    buckets: HashMap<Zone, (f64, Instant)>,
}

impl Pace {
    /// Whether another node of the zone may be evicted now.
    pub fn take(&mut self, zone: Zone, rate: f64, now: Instant) -> bool {
        let bucket = self.buckets.entry(zone).or_insert((1.0, now));
        let tokens = (bucket.0 + (now - bucket.1).as_secs_f64() * rate).min(1.0);
        let granted = rate > 0.0 && tokens >= 1.0;
        *bucket = (if granted { tokens - 1.0 } else { tokens }, now);
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn time(second: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
    }

    fn node(ready: Option<&str>, extra: Value) -> Node {
        let mut value = json!({"metadata": {"name": "n1"}, "spec": {}, "status": {"conditions": []}});
        if let Some(status) = ready {
            let condition = json!({
                "type": "Ready", "status": status, "lastHeartbeatTime": time(5), "lastTransitionTime": time(100),
            });
            value["status"]["conditions"] = json!([condition]);
        }
        for (k, v) in extra.as_object().unwrap() {
            value["spec"][k] = v.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    fn lease(second: i64) -> Lease {
        serde_json::from_value(json!({"spec": {"renewTime": time(second)}})).unwrap()
    }

    #[test]
    fn a_node_is_heard_of_by_lease_or_heartbeat() {
        let (start, later) = (Instant::now(), Instant::now() + Duration::from_secs(50));
        let first = observe(None, &node(Some("True"), json!({})), Some(&lease(1)), start);
        assert_eq!(first.heard, start);
        let silent = observe(Some(&first), &node(Some("True"), json!({})), Some(&lease(1)), later);
        assert_eq!(silent.heard, start);
        let renewed = observe(Some(&first), &node(Some("True"), json!({})), Some(&lease(2)), later);
        assert_eq!(renewed.heard, later);
        let mut beating = node(Some("True"), json!({}));
        beating.status.as_mut().unwrap().conditions.as_mut().unwrap()[0].last_heartbeat_time = Some(time(9));
        assert_eq!(observe(Some(&first), &beating, Some(&lease(1)), later).heard, later);
    }

    #[test]
    fn silence_makes_conditions_unknown() {
        let config = Config::default();
        let up = node(Some("True"), json!({}));
        let silent = |n: &Node, s| conditions(n, Duration::from_secs(s), &config, &time(1000));
        assert_eq!(silent(&up, 40), None);
        let unknown = silent(&up, 41).unwrap();
        let of = |kind: &str| unknown.iter().find(|c| c.type_ == kind).unwrap();
        assert!(unknown.iter().all(|c| c.status == "Unknown"));
        assert_eq!(unknown.len(), 4);
        assert_eq!(of("Ready").reason.as_deref(), Some("NodeStatusUnknown"));
        assert_eq!(of("Ready").message.as_deref(), Some("Kubelet stopped posting node status."));
        assert_eq!(of("PIDPressure").reason.as_deref(), Some("NodeStatusNeverUpdated"));
        // A node that never reported has longer.
        assert_eq!(silent(&node(None, json!({})), 59), None);
        assert!(silent(&node(None, json!({})), 61).is_some());
        let mut down = up.clone();
        down.status.as_mut().unwrap().conditions = Some(unknown);
        assert_eq!(silent(&down, 1000), None, "said already");
    }

    fn check_taints(ready: &str, spec: Value, may_evict: Option<bool>, want: Option<&[&str]>) {
        let got = taints(&node(Some(ready), spec.clone()), may_evict, &time(1));
        let got = got.map(|t| t.iter().map(|t| format!("{}:{}", t.key, t.effect)).collect::<Vec<_>>());
        let want = want.map(|w| w.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
        assert_eq!(got, want, "{ready} {spec}");
    }

    #[test]
    fn taints_follow_conditions() {
        let mine = json!({"key": "gpu", "effect": "NoExecute"});
        let dead = [
            json!({"key": TAINT_UNREACHABLE, "effect": "NoSchedule"}),
            json!({"key": TAINT_UNREACHABLE, "effect": "NoExecute"}),
        ];
        let unreachable = |e: &str| format!("{TAINT_UNREACHABLE}:{e}");
        let (soft, hard) = (unreachable("NoSchedule"), unreachable("NoExecute"));
        check_taints("True", json!({}), Some(false), None);
        check_taints("Unknown", json!({}), Some(false), Some(&[&soft]));
        check_taints("Unknown", json!({}), Some(true), Some(&[&soft, &hard]));
        check_taints("Unknown", json!({"taints": dead}), Some(false), None);
        check_taints("Unknown", json!({"taints": dead}), None, Some(&[&soft]));
        check_taints("True", json!({"taints": [mine, dead[0], dead[1]]}), Some(false), Some(&["gpu:NoExecute"]));
        let not_ready = [format!("{TAINT_NOT_READY}:NoSchedule"), format!("{TAINT_NOT_READY}:NoExecute")];
        check_taints("False", json!({"taints": dead}), Some(false), Some(&[&not_ready[0], &not_ready[1]]));
        let cordoned = format!("{TAINT_UNSCHEDULABLE}:NoSchedule");
        check_taints("True", json!({"unschedulable": true}), Some(false), Some(&[&cordoned]));
    }

    #[test]
    fn only_pods_that_were_ready_before_are_marked() {
        let pod = |status: &str, since: i64| -> Arc<Pod> {
            let condition = json!({"type": "Ready", "status": status, "lastTransitionTime": time(since)});
            Arc::new(serde_json::from_value(json!({"status": {"conditions": [condition]}})).unwrap())
        };
        let all = || vec![pod("True", 50), pod("True", 150), pod("False", 50)];
        assert_eq!(pods_to_mark(&node(Some("Unknown"), json!({})), all()), [pod("True", 50)]);
        assert!(pods_to_mark(&node(Some("True"), json!({})), all()).is_empty());
    }

    fn check_rates(zones: &[(&str, usize, usize)], want: Option<&[f64]>) {
        let mut nodes = Vec::new();
        for (zone, up, down) in zones {
            for n in 0..up + down {
                let mut node = node(Some(if n < *up { "True" } else { "Unknown" }), json!({}));
                node.metadata.labels = Some([(LABEL_ZONE.to_owned(), (*zone).to_owned())].into());
                nodes.push(Arc::new(node));
            }
        }
        let got = rates(&nodes, &Config::default()).map(|r| r.into_values().collect::<Vec<_>>());
        assert_eq!(got, want.map(<[f64]>::to_vec), "{zones:?}");
    }

    #[test]
    fn mass_failures_slow_evictions_down() {
        check_rates(&[("a", 3, 1)], Some(&[0.1]));
        check_rates(&[("a", 2, 2)], Some(&[0.1]));
        check_rates(&[("a", 2, 3)], Some(&[0.0]));
        check_rates(&[("a", 20, 40)], Some(&[0.01]));
        check_rates(&[("a", 0, 5)], None);
        check_rates(&[("a", 0, 5), ("b", 3, 0)], Some(&[0.1, 0.1]));
        check_rates(&[("a", 0, 5), ("b", 0, 1)], None);
        check_rates(&[], Some(&[]));
    }

    #[test]
    fn evictions_are_paced() {
        let mut pace = Pace::default();
        let (now, zone) = (Instant::now(), Zone::default());
        let at = |s| now + Duration::from_secs(s);
        assert!(pace.take(zone.clone(), 0.1, at(0)));
        assert!(!pace.take(zone.clone(), 0.1, at(5)));
        assert!(pace.take(zone.clone(), 0.1, at(11)));
        assert!(!pace.take(zone, 0.0, at(1000)), "a rate of nothing is nothing");
    }
}
