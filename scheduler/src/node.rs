//! A node as the scheduler sees it: what it offers, and what the pods on it (bound or assumed) take.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};

use crate::pod::{HostPort, PodInfo, image_name};
use crate::resources::{NonZero, Resources};
use crate::terms::Labels;

/// What a node says of itself. Two that are equal are interchangeable for scheduling: heartbeats change nothing here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeFacts {
    /// `metadata.name`
    pub name: String,
    /// `metadata.labels`
    pub labels: Labels,
    /// `spec.taints`
    pub taints: Vec<Taint>,
    /// `spec.unschedulable`
    pub unschedulable: bool,
    /// `status.allocatable`
    pub allocatable: Resources,
    /// Size in bytes of each image on the node, by every name it has.
    pub images: BTreeMap<String, i64>,
}

impl From<&Node> for NodeFacts {
    fn from(node: &Node) -> Self {
        let spec = node.spec.as_ref();
        let status = node.status.as_ref();
        let offered = status.and_then(|status| status.allocatable.as_ref());
        let mut images = BTreeMap::new();
        for image in status.and_then(|status| status.images.as_ref()).into_iter().flatten() {
            for name in image.names.iter().flatten() {
                images.insert(image_name(name), image.size_bytes.unwrap_or(0));
            }
        }
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: spec.and_then(|spec| spec.taints.clone()).unwrap_or_default(),
            unschedulable: spec.and_then(|spec| spec.unschedulable).unwrap_or(false),
            allocatable: Resources::from_k8s(offered.into_iter().flatten()),
            images,
        }
    }
}

/// See the module's description.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// What it offers.
    pub facts: NodeFacts,
    /// Whether the Node object is there. Pods may be known before their node, or outlive it.
    pub present: bool,
    /// Pods on it.
    pub pods: Vec<Arc<PodInfo>>,
    /// How many of them say something about other pods.
    pub affinity_pods: usize,
    /// Sum of their requests.
    pub requested: Resources,
    /// The same for scores.
    pub non_zero: NonZero,
    /// Ports they take.
    pub ports: Vec<HostPort>,
}

impl NodeInfo {
    /// Puts a pod on it.
    pub fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.apply(&pod.requests, 1);
        self.non_zero = self.non_zero.plus(pod.non_zero);
        self.ports.extend(pod.ports.iter().cloned());
        self.affinity_pods += usize::from(pod.has_pod_affinity());
        self.pods.push(pod);
    }

    /// Takes a pod off it.
    pub fn remove(&mut self, uid: &str) {
        let Some(index) = self.pods.iter().position(|pod| pod.uid == uid) else { return };
        let pod = self.pods.swap_remove(index);
        self.requested.apply(&pod.requests, -1);
        self.non_zero = self.non_zero.minus(pod.non_zero);
        self.affinity_pods -= usize::from(pod.has_pod_affinity());
        for port in &pod.ports {
            if let Some(index) = self.ports.iter().position(|taken| taken == port) {
                self.ports.swap_remove(index);
            }
        }
    }
}
