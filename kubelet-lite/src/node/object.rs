//! The Node object as it should be. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec, NodeStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as K8sQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use scaleup_api::Quantity;
use scaleup_api::well_known::{
    ANNOTATION_POD_GATEWAY, ANNOTATION_WANTED_POD_CIDR, LABEL_ARCH, LABEL_HOSTNAME, LABEL_OS,
};
use serde_json::{Map, Value, json};

use super::machine::{self, Pressure};
use crate::agent::{Agent, PodNetwork};
use crate::pod::status::time;
use crate::runtime::{Image, Version};

/// Images listed in the Node (`nodeStatusMaxImages`), the largest first.
const MAX_IMAGES: usize = 50;
/// Names listed per image.
const MAX_IMAGE_NAMES: usize = 5;

/// What is known about the machine.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Why pods cannot be run, if they cannot.
    pub down: Option<String>,
    /// The runtime.
    pub version: Option<Version>,
    /// Its images.
    pub images: Vec<Image>,
    /// The pod network of this machine.
    pub made: Option<PodNetwork>,
    /// The same, once pods may join it.
    pub network: Option<PodNetwork>,
    /// Pressure.
    pub pressure: Pressure,
    /// Port of the kubelet API.
    pub port: Option<u16>,
}

fn labels(agent: &Agent) -> BTreeMap<String, String> {
    let mut labels = agent.config.labels.clone();
    labels.insert(LABEL_HOSTNAME.into(), agent.config.node_name.clone());
    labels.insert(LABEL_OS.into(), "linux".into());
    labels.insert(LABEL_ARCH.into(), machine::architecture().into());
    labels
}

/// A node that is not registered yet.
pub fn fresh(agent: &Agent, seen: &Seen) -> Node {
    let wanted = seen.made.as_ref().map(|n| (ANNOTATION_WANTED_POD_CIDR.to_owned(), n.cidr.to_string()));
    Node {
        metadata: ObjectMeta {
            name: Some(agent.config.node_name.clone()),
            labels: Some(labels(agent)),
            annotations: wanted.map(|w| BTreeMap::from([w])),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec::default()),
        status: Some(status(agent, seen, None)),
    }
}

/// Labels and annotations that differ, as a merge patch. The pod CIDR is the node IPAM controller's to write.
pub fn meta_patch(agent: &Agent, seen: &Seen, current: &Node) -> Option<Value> {
    let has = current.metadata.labels.clone().unwrap_or_default();
    let missing: BTreeMap<String, String> =
        labels(agent).into_iter().filter(|(name, value)| has.get(name) != Some(value)).collect();
    let mut metadata = Map::new();
    if !missing.is_empty() {
        metadata.insert("labels".into(), json!(missing));
    }
    let annotations = annotations(seen, current);
    if !annotations.is_empty() {
        metadata.insert("annotations".into(), json!(annotations));
    }
    (!metadata.is_empty()).then(|| json!({ "metadata": metadata }))
}

/// Annotations that differ; `None` is one that has to go.
fn annotations(seen: &Seen, current: &Node) -> BTreeMap<&'static str, Option<String>> {
    let wanted = match pod_cidr(current) {
        // The wish has been answered.
        Some(_) => Some(None),
        None => seen.made.as_ref().map(|made| Some(made.cidr.to_string())),
    };
    let gateway = seen.network.as_ref().map(|network| Some(network.gateway.to_string()));
    let should = [(ANNOTATION_WANTED_POD_CIDR, wanted), (ANNOTATION_POD_GATEWAY, gateway)];
    let is = |name: &str| current.metadata.annotations.as_ref().and_then(|a| a.get(name));
    should
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .filter(|(name, value)| is(name) != value.as_ref())
        .collect()
}

/// `spec.podCIDR`, if it is set.
pub fn pod_cidr(node: &Node) -> Option<&str> {
    node.spec.as_ref()?.pod_cidr.as_deref().filter(|cidr| !cidr.is_empty())
}

/// `status`, heartbeat times set to now.
pub fn status(agent: &Agent, seen: &Seen, before: Option<&NodeStatus>) -> NodeStatus {
    let amounts = |map: &BTreeMap<String, Quantity>| -> BTreeMap<String, K8sQuantity> {
        map.iter().map(|(name, amount)| (name.clone(), amount.into_k8s())).collect()
    };
    let address = |kind: &str, value: String| NodeAddress { type_: kind.into(), address: value };
    NodeStatus {
        addresses: Some(vec![
            address("InternalIP", agent.config.node_ip.to_string()),
            address("Hostname", agent.config.node_name.clone()),
        ]),
        capacity: Some(amounts(&agent.amounts.capacity)),
        allocatable: Some(amounts(&agent.amounts.allocatable)),
        conditions: Some(conditions(seen, before, agent.clock.now())),
        daemon_endpoints: seen
            .port
            .map(|port| NodeDaemonEndpoints { kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(port) }) }),
        node_info: Some(machine::system_info(&agent.config, seen.version.as_ref())),
        images: Some(images(&seen.images)),
        ..NodeStatus::default()
    }
}

fn images(all: &[Image]) -> Vec<ContainerImage> {
    let mut all: Vec<&Image> = all.iter().collect();
    all.sort_by_key(|i| (std::cmp::Reverse(i.size_bytes), i.id.clone()));
    let names = |image: &Image| {
        let mut names: Vec<String> = image.digests.iter().chain(&image.tags).cloned().collect();
        names.truncate(MAX_IMAGE_NAMES);
        names
    };
    all.into_iter()
        .map(|image| (names(image), i64::try_from(image.size_bytes).unwrap_or(i64::MAX)))
        .filter(|(names, _)| !names.is_empty())
        .take(MAX_IMAGES)
        .map(|(names, size)| ContainerImage { names: Some(names), size_bytes: Some(size) })
        .collect()
}

fn conditions(seen: &Seen, before: Option<&NodeStatus>, now: Timestamp) -> Vec<NodeCondition> {
    let before = before.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let make = |kind: &str, on: bool, reason: &str, message: String| {
        let status = if on { "True" } else { "False" };
        let same = before.iter().find(|c| c.type_ == kind && c.status == status);
        NodeCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_heartbeat_time: Some(time(now)),
            last_transition_time: same.and_then(|c| c.last_transition_time.clone()).or_else(|| Some(time(now))),
        }
    };
    let network = match &seen.network {
        Some(_) => make("NetworkUnavailable", false, "PodNetworkReady", "the pod network is there".into()),
        None if seen.made.is_some() => {
            let text = "waiting for spec.podCIDR, which the controllers assign";
            make("NetworkUnavailable", true, "NoPodCIDR", text.into())
        }
        None => make("NetworkUnavailable", true, "NoPodNetwork", "the pod network has not been made yet".into()),
    };
    let p = seen.pressure;
    let memory = if p.memory { "insufficient memory available" } else { "sufficient memory available" };
    let pids = if p.pids { "insufficient PID available" } else { "sufficient PID available" };
    let has = |text: &str| format!("kubelet has {text}");
    let ready = match &seen.down {
        None => make("Ready", true, "KubeletReady", "kubelet is posting ready status".into()),
        Some(text) => make("Ready", false, "ContainerRuntimeUnavailable", text.clone()),
    };
    let memory_reason = if p.memory { "KubeletHasInsufficientMemory" } else { "KubeletHasSufficientMemory" };
    let disk = if p.disk { "disk pressure" } else { "no disk pressure" };
    let disk_reason = if p.disk { "KubeletHasDiskPressure" } else { "KubeletHasNoDiskPressure" };
    let pid_reason = if p.pids { "KubeletHasInsufficientPID" } else { "KubeletHasSufficientPID" };
    let mut out = vec![
        make("MemoryPressure", p.memory, memory_reason, has(memory)),
        make("DiskPressure", p.disk, disk_reason, has(disk)),
        make("PIDPressure", p.pids, pid_reason, has(pids)),
        network,
        ready,
    ];
    let own: Vec<String> = out.iter().map(|c| c.type_.clone()).collect();
    out.extend(before.iter().filter(|c| !own.contains(&c.type_)).cloned());
    out
}

/// Whether two statuses differ in nothing but heartbeat times.
pub fn same(before: Option<&NodeStatus>, after: &NodeStatus) -> bool {
    let quiet = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        serde_json::to_value(status).unwrap_or_default()
    };
    let Some(before) = before else { return false };
    let (before, after) = (quiet(before), quiet(after));
    let Some(after) = after.as_object() else { return false };
    // Fields that others write are none of ours.
    after.iter().all(|(field, value)| before.get(field) == Some(value))
}

/// A merge patch of `status`. Maps are replaced as a whole: an amount that is gone must not stay.
pub fn status_patch(before: Option<&NodeStatus>, after: &NodeStatus) -> Value {
    let mut patch = serde_json::to_value(after).unwrap_or_default();
    let old = before.map(|b| serde_json::to_value(b).unwrap_or_default()).unwrap_or_default();
    for field in ["capacity", "allocatable"] {
        let gone: Vec<String> = old
            .get(field)
            .and_then(Value::as_object)
            .into_iter()
            .flat_map(Map::keys)
            .filter(|name| patch.get(field).is_some_and(|new| new.get(*name).is_none()))
            .cloned()
            .collect();
        for name in gone {
            patch[field][name] = Value::Null;
        }
    }
    json!({ "status": patch })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(all: &'a [NodeCondition], kind: &str) -> (&'a str, &'a str, &'a str) {
        let c = all.iter().find(|c| c.type_ == kind).unwrap();
        (&c.status, c.reason.as_deref().unwrap(), c.message.as_deref().unwrap())
    }

    #[test]
    fn conditions_say_what_is_wrong() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let down = Seen { down: Some("start it with: systemctl start docker".into()), ..Seen::default() };
        let got = conditions(&down, None, now);
        assert_eq!(
            find(&got, "Ready"),
            ("False", "ContainerRuntimeUnavailable", "start it with: systemctl start docker")
        );
        assert_eq!(find(&got, "NetworkUnavailable").0, "True");
        assert_eq!(find(&got, "DiskPressure"), ("False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"));
        assert_eq!(
            find(&got, "MemoryPressure"),
            ("False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available")
        );
    }

    #[test]
    fn transition_times_stay_until_the_status_changes() {
        let at = |s: i64| Timestamp::from_second(1_000_000 + s).unwrap();
        let seen = Seen::default();
        let first = conditions(&seen, None, at(0));
        let before = NodeStatus { conditions: Some(first), ..NodeStatus::default() };
        let later = conditions(&seen, Some(&before), at(50));
        assert!(later.iter().all(|c| c.last_transition_time == Some(time(at(0)))));
        assert!(later.iter().all(|c| c.last_heartbeat_time == Some(time(at(50)))));
        let changed = conditions(&Seen { down: Some("x".into()), ..Seen::default() }, Some(&before), at(60));
        let ready = changed.iter().find(|c| c.type_ == "Ready").unwrap();
        assert_eq!(ready.last_transition_time, Some(time(at(60))));
        let after = NodeStatus { conditions: Some(later), ..NodeStatus::default() };
        assert!(same(Some(&before), &after), "heartbeats alone are no change");
    }

    #[test]
    fn a_subnet_is_asked_for_until_there_is_one() {
        let network = PodNetwork {
            name: "net".into(),
            cidr: scaleup_api::subnet::Subnet::parse("10.244.7.0/24").unwrap(),
            gateway: std::net::Ipv4Addr::new(10, 244, 7, 1),
        };
        let made = Seen { made: Some(network.clone()), ..Seen::default() };
        let node = |value: Value| serde_json::from_value::<Node>(value).unwrap();
        let text = |value: &str| Some(value.to_owned());
        let waiting = node(json!({"metadata": {"name": "n"}}));
        assert_eq!(annotations(&made, &waiting), [(ANNOTATION_WANTED_POD_CIDR, text("10.244.7.0/24"))].into());
        let asked = node(json!({"metadata": {"annotations": {ANNOTATION_WANTED_POD_CIDR: "10.244.7.0/24"}}}));
        assert_eq!(annotations(&made, &asked), BTreeMap::new());
        let mut answered = asked.clone();
        answered.spec = Some(NodeSpec { pod_cidr: text("10.244.7.0/24"), ..NodeSpec::default() });
        let ready = Seen { network: Some(network), ..made.clone() };
        let expected = [(ANNOTATION_WANTED_POD_CIDR, None), (ANNOTATION_POD_GATEWAY, text("10.244.7.1"))];
        assert_eq!(annotations(&ready, &answered), expected.into());
        let got = conditions(&made, None, Timestamp::from_second(1).unwrap());
        assert_eq!(find(&got, "NetworkUnavailable").1, "NoPodCIDR");
    }

    #[test]
    fn images_are_bounded_and_the_largest_come_first() {
        let image =
            |n: u64| Image { id: n.to_string(), tags: vec![format!("i:{n}")], size_bytes: n, ..Image::default() };
        let all: Vec<Image> = (0..80).map(image).collect();
        let got = images(&all);
        assert_eq!((got.len(), got[0].size_bytes), (MAX_IMAGES, Some(79)));
    }
}
