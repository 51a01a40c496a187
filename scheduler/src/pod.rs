//! A pod as the scheduler sees it: everything it asks of a node, compiled once.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Container, Pod, PodAffinityTerm, PodSpec, PreferredSchedulingTerm, Toleration, TopologySpreadConstraint,
    WeightedPodAffinityTerm,
};
use k8s_openapi::jiff::Timestamp;
use scaleup_api::pods;
use scaleup_api::selector::LabelSelector;

use crate::resources::{NonZero, Resources};
use crate::terms::{Labels, NodeTerm, PodTerm, selector};

/// A port that a pod takes on its node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// `0.0.0.0` for every address.
    pub ip: String,
    /// The port.
    pub port: i32,
}

impl HostPort {
    /// Whether both cannot be had on one node.
    pub fn conflicts(&self, other: &HostPort) -> bool {
        const ANY: &str = "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == ANY || other.ip == ANY)
    }
}

/// What to do if a topology spread constraint cannot be met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenUnsatisfiable {
    /// `DoNotSchedule`
    Reject,
    /// `ScheduleAnyway`
    Prefer,
}

/// One `topologySpreadConstraint`.
#[derive(Clone, Debug)]
pub struct Spread {
    /// How uneven it may get.
    pub max_skew: i64,
    /// The node label whose equal values make a domain.
    pub topology_key: String,
    /// Hard or soft.
    pub when: WhenUnsatisfiable,
    /// Which pods count.
    pub selector: LabelSelector,
    /// With fewer domains than this, an empty one is assumed.
    pub min_domains: Option<i64>,
    /// Whether nodes that the pod's affinity excludes do not count (`Honor`, the default).
    pub honor_affinity: bool,
    /// Whether nodes with untolerated taints do not count (`Honor`; the default is `Ignore`).
    pub honor_taints: bool,
}

/// Affinity to other pods.
#[derive(Clone, Debug, Default)]
pub struct PodAffinity {
    /// Required.
    pub required: Vec<PodTerm>,
    /// Preferred, with weights of 1–100.
    pub preferred: Vec<(i64, PodTerm)>,
}

impl PodAffinity {
    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        self.required.is_empty() && self.preferred.is_empty()
    }
}

/// See the module's description.
#[derive(Clone, Debug)]
pub struct PodInfo {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
    /// `metadata.uid`
    pub uid: String,
    /// `metadata.labels`
    pub labels: Labels,
    /// `metadata.creationTimestamp`
    pub created: Timestamp,
    /// Whether `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// Whether it has ended for good.
    pub terminal: bool,
    /// `spec.schedulerName`
    pub scheduler: String,
    /// `spec.nodeName`, empty if none.
    pub node: String,
    /// `spec.priority`
    pub priority: i32,
    /// Whether `spec.schedulingGates` hold it back.
    pub gated: bool,
    /// What it needs.
    pub requests: Resources,
    /// What it counts as in scores.
    pub non_zero: NonZero,
    /// Ports it takes on the node.
    pub ports: Vec<HostPort>,
    /// `spec.tolerations`
    pub tolerations: Vec<Toleration>,
    /// `spec.nodeSelector`
    pub node_selector: Labels,
    /// Required node affinity: one of the terms; `None` if there is no requirement.
    pub node_required: Option<Vec<NodeTerm>>,
    /// Preferred node affinity, with weights.
    pub node_preferred: Vec<(i64, NodeTerm)>,
    /// `spec.affinity.podAffinity`
    pub affinity: PodAffinity,
    /// `spec.affinity.podAntiAffinity`
    pub anti_affinity: PodAffinity,
    /// `spec.topologySpreadConstraints`
    pub spread: Vec<Spread>,
    /// Images of all containers, with a tag.
    pub images: Vec<String>,
    /// Pods with equal classes ask the same of a node.
    pub class: Arc<str>,
    /// Message of the `PodScheduled=False` condition, if it has one for the reason `Unschedulable`.
    pub unschedulable_message: Option<String>,
}

/// An image name as nodes report it: without a tag or digest it means `:latest`.
pub fn image_name(name: &str) -> String {
    match (name.rfind(':'), name.rfind('/')) {
        (Some(colon), slash) if slash.is_none_or(|slash| colon > slash) => name.to_owned(),
        _ => format!("{name}:latest"),
    }
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(sidecar);
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let text = |text: &Option<String>, default: &str| match text.as_deref() {
                None | Some("") => default.to_owned(),
                Some(text) => text.to_owned(),
            };
            Some(HostPort {
                protocol: text(&port.protocol, "TCP"),
                ip: text(&port.host_ip, "0.0.0.0"),
                port: port.host_port.filter(|port| *port > 0)?,
            })
        })
        .collect()
}

fn spread(constraint: &TopologySpreadConstraint, labels: &Labels) -> Spread {
    let mut wanted = constraint.label_selector.clone();
    if let Some(selector) = &mut wanted {
        // matchLabelKeys narrow the selector to this pod's own values, as to one revision of a Deployment.
        for key in constraint.match_label_keys.iter().flatten() {
            if let Some(value) = labels.get(key) {
                selector.match_labels.get_or_insert_default().insert(key.clone(), value.clone());
            }
        }
    }
    Spread {
        max_skew: i64::from(constraint.max_skew),
        topology_key: constraint.topology_key.clone(),
        when: match constraint.when_unsatisfiable.as_str() {
            "ScheduleAnyway" => WhenUnsatisfiable::Prefer,
            _ => WhenUnsatisfiable::Reject,
        },
        selector: selector(wanted.as_ref()),
        min_domains: constraint.min_domains.map(i64::from),
        honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
        honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
    }
}

fn pod_affinity(
    required: Option<&Vec<PodAffinityTerm>>,
    preferred: Option<&Vec<WeightedPodAffinityTerm>>,
    namespace: &str,
) -> PodAffinity {
    let weighted =
        |term: &WeightedPodAffinityTerm| (i64::from(term.weight), PodTerm::new(&term.pod_affinity_term, namespace));
    PodAffinity {
        required: required.into_iter().flatten().map(|term| PodTerm::new(term, namespace)).collect(),
        preferred: preferred.into_iter().flatten().map(weighted).collect(),
    }
}

/// Everything that decides which nodes fit and how well, as text: equal texts mean equal answers.
fn class(spec: &PodSpec, requests: &Resources, non_zero: NonZero, ports: &[HostPort], images: &[String]) -> Arc<str> {
    let affinity = spec.affinity.as_ref();
    format!("{requests:?}{non_zero:?}{ports:?}{images:?}{:?}{:?}{affinity:?}", spec.node_selector, spec.tolerations)
        .into()
}

impl From<&Pod> for PodInfo {
    fn from(pod: &Pod) -> Self {
        let metadata = &pod.metadata;
        let absent = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&absent);
        let namespace = metadata.namespace.clone().unwrap_or_default();
        let labels = metadata.labels.clone().unwrap_or_default();
        let requests = pods::resource_requests(spec);
        let requests = Resources::from_amounts(requests.iter().map(|(name, amount)| (name.as_str(), *amount)));
        let node_affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let required = node_affinity.and_then(|one| one.required_during_scheduling_ignored_during_execution.as_ref());
        let preferred = node_affinity.and_then(|one| one.preferred_during_scheduling_ignored_during_execution.as_ref());
        let weigh = |term: &PreferredSchedulingTerm| (i64::from(term.weight), NodeTerm::from(&term.preference));
        let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.pod_affinity.as_ref());
        let anti = spec.affinity.as_ref().and_then(|affinity| affinity.pod_anti_affinity.as_ref());
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        let images: Vec<String> = containers.filter_map(|one| one.image.as_deref().map(image_name)).collect();
        let (non_zero, ports) = (NonZero::of(spec), host_ports(spec));
        let failed = pods::condition(pod, "PodScheduled")
            .filter(|condition| condition.status == "False" && condition.reason.as_deref() == Some("Unschedulable"));
        Self {
            terminating: metadata.deletion_timestamp.is_some(),
            terminal: pods::is_terminal(pod),
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            created: metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            scheduler: spec.scheduler_name.clone().unwrap_or_default(),
            node: spec.node_name.clone().unwrap_or_default(),
            priority: spec.priority.unwrap_or(0),
            gated: spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty()),
            class: class(spec, &requests, non_zero, &ports, &images),
            requests,
            non_zero,
            ports,
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            node_required: required.map(|one| one.node_selector_terms.iter().map(Into::into).collect()),
            node_preferred: preferred.into_iter().flatten().map(weigh).collect(),
            affinity: pod_affinity(
                affinity.and_then(|one| one.required_during_scheduling_ignored_during_execution.as_ref()),
                affinity.and_then(|one| one.preferred_during_scheduling_ignored_during_execution.as_ref()),
                &namespace,
            ),
            anti_affinity: pod_affinity(
                anti.and_then(|one| one.required_during_scheduling_ignored_during_execution.as_ref()),
                anti.and_then(|one| one.preferred_during_scheduling_ignored_during_execution.as_ref()),
                &namespace,
            ),
            spread: spec.topology_spread_constraints.iter().flatten().map(|one| spread(one, &labels)).collect(),
            images,
            unschedulable_message: failed.map(|condition| condition.message.clone().unwrap_or_default()),
            labels,
            namespace,
        }
    }
}

impl PodInfo {
    /// `namespace/name`, as in messages.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Whether it says anything about other pods.
    pub fn has_pod_affinity(&self) -> bool {
        !self.affinity.is_empty() || !self.anti_affinity.is_empty()
    }

    /// Whether node selector and required node affinity accept the node.
    pub fn accepts_node(&self, name: &str, labels: &Labels) -> bool {
        self.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.node_required.as_ref().is_none_or(|terms| terms.iter().any(|term| term.matches(name, labels)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn images_have_tags() {
        let check = |name: &str, expected: &str| assert_eq!(image_name(name), expected);
        check("nginx", "nginx:latest");
        check("nginx:1.27", "nginx:1.27");
        check("localhost:5000/nginx", "localhost:5000/nginx:latest");
        check("a/b@sha256:00", "a/b@sha256:00");
    }

    #[test]
    fn ports_conflict_on_equal_or_wildcard_addresses() {
        let port = |protocol: &str, ip: &str, port| HostPort { protocol: protocol.into(), ip: ip.into(), port };
        let check = |other: HostPort, expected| {
            assert_eq!(port("TCP", "127.0.0.1", 80).conflicts(&other), expected, "{other:?}");
        };
        check(port("TCP", "127.0.0.1", 80), true);
        check(port("TCP", "0.0.0.0", 80), true);
        check(port("TCP", "127.0.0.2", 80), false);
        check(port("UDP", "127.0.0.1", 80), false);
        check(port("TCP", "0.0.0.0", 81), false);
    }

    #[test]
    fn equal_demands_make_one_class() {
        let pod = |name: &str, cpu: &str| {
            let container = json!({"name": name, "image": "web", "resources": {"requests": {"cpu": cpu}}});
            let pod = json!({"metadata": {"name": name, "labels": {"n": name}}, "spec": {"containers": [container]}});
            PodInfo::from(&serde_json::from_value::<Pod>(pod).unwrap())
        };
        assert_eq!(pod("a", "100m").class, pod("b", "0.1").class);
        assert_ne!(pod("a", "100m").class, pod("a", "200m").class);
    }
}
