//! Incremental form of [`super::plan`]: an event recompiles the one Service it touches; all others are shared with the
//! previous snapshot. Does no I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::plan::{plan_service, service_key, slice_service};
use super::{NodePlan, PlanConfig, ServiceKey, ServicePlan, Snapshot};

/// Annotation of a Node with the address its pods use as gateway and resolver.
const POD_GATEWAY_ANNOTATION: &str = "scaleup.dev/pod-gateway";

/// Well-known labels of a Node that say where it is.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
const REGION_LABEL: &str = "topology.kubernetes.io/region";

/// Namespace and name of an EndpointSlice.
type SliceKey = (String, String);

/// Keeps the objects and the compiled Services; [`Compiler::snapshot`] is cheap after a small change.
#[derive(Debug, Default)]
pub struct Compiler {
    config: PlanConfig,
    services: BTreeMap<ServiceKey, Service>,
    slices: BTreeMap<ServiceKey, BTreeMap<SliceKey, EndpointSlice>>,
    /// Where a slice is filed: its label may change.
    slice_owner: BTreeMap<SliceKey, ServiceKey>,
    plans: BTreeMap<ServiceKey, Arc<ServicePlan>>,
    node: NodePlan,
    dirty: BTreeSet<ServiceKey>,
}

impl Compiler {
    /// An empty compiler.
    pub fn new(config: PlanConfig) -> Self {
        Self { config, ..Self::default() }
    }

    /// A Service was added or changed.
    pub fn apply_service(&mut self, mut service: Service) {
        service.metadata.managed_fields = None;
        if let Some(key) = service_key(&service) {
            self.dirty.insert(key.clone());
            self.services.insert(key, service);
        }
    }

    /// A Service was deleted.
    pub fn delete_service(&mut self, service: &Service) {
        if let Some(key) = service_key(service) {
            self.services.remove(&key);
            self.dirty.insert(key);
        }
    }

    /// Replaces all Services (a completed list).
    pub fn replace_services(&mut self, services: Vec<Service>) {
        self.dirty.extend(std::mem::take(&mut self.services).into_keys());
        services.into_iter().for_each(|service| self.apply_service(service));
    }

    /// An EndpointSlice was added or changed.
    pub fn apply_slice(&mut self, mut slice: EndpointSlice) {
        self.delete_slice(&slice);
        slice.metadata.managed_fields = None;
        if let (Some(id), Some(owner)) = (slice_key(&slice), slice_service(&slice)) {
            self.dirty.insert(owner.clone());
            self.slice_owner.insert(id.clone(), owner.clone());
            self.slices.entry(owner).or_default().insert(id, slice);
        }
    }

    /// An EndpointSlice was deleted.
    pub fn delete_slice(&mut self, slice: &EndpointSlice) {
        let Some(id) = slice_key(slice) else { return };
        let Some(owner) = self.slice_owner.remove(&id) else { return };
        if let Some(slices) = self.slices.get_mut(&owner) {
            slices.remove(&id);
            if slices.is_empty() {
                self.slices.remove(&owner);
            }
        }
        self.dirty.insert(owner);
    }

    /// Replaces all EndpointSlices (a completed list).
    pub fn replace_slices(&mut self, slices: Vec<EndpointSlice>) {
        self.dirty.extend(std::mem::take(&mut self.slices).into_keys());
        self.slice_owner.clear();
        slices.into_iter().for_each(|slice| self.apply_slice(slice));
    }

    /// The own Node changed.
    pub fn apply_node(&mut self, node: &Node) {
        let annotations = node.metadata.annotations.as_ref();
        let label = |name: &str| node.metadata.labels.as_ref()?.get(name).map(|value| Arc::from(value.as_str()));
        self.node = NodePlan {
            name: node.metadata.name.as_deref().map(Arc::from),
            zone: label(ZONE_LABEL),
            region: label(REGION_LABEL),
            pod_cidr: node.spec.as_ref().and_then(|spec| spec.pod_cidr.clone()).filter(|cidr| is_cidr(cidr)),
            pod_gateway: annotations.and_then(|a| a.get(POD_GATEWAY_ANNOTATION)).and_then(|ip| ip.parse().ok()),
        };
    }

    /// Recompiles what changed and returns the snapshot.
    pub fn snapshot(&mut self) -> Snapshot {
        for key in std::mem::take(&mut self.dirty) {
            let Some(service) = self.services.get(&key) else {
                self.plans.remove(&key);
                continue;
            };
            let slices: Vec<&EndpointSlice> = self.slices.get(&key).into_iter().flat_map(BTreeMap::values).collect();
            let plan = plan_service(key.clone(), service, &slices, &self.config);
            // An equal plan keeps its identity, so that readers see that nothing changed.
            if self.plans.get(&key).is_none_or(|old| **old != plan) {
                self.plans.insert(key, Arc::new(plan));
            }
        }
        Snapshot { services: self.plans.clone(), node: self.node.clone(), ..Snapshot::default() }
    }
}

fn slice_key(slice: &EndpointSlice) -> Option<SliceKey> {
    Some((slice.metadata.namespace.clone()?, slice.metadata.name.clone()?))
}

/// Whether `text` is `IPv4/length`: it is written into nftables rules.
pub(crate) fn is_cidr(text: &str) -> bool {
    let Some((ip, length)) = text.split_once('/') else { return false };
    ip.parse::<std::net::Ipv4Addr>().is_ok()
        && length.len() <= 2
        && length.bytes().all(|b| b.is_ascii_digit())
        && length.parse::<u8>().is_ok_and(|length| length <= 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::plan;
    use serde_json::json;

    fn service(name: &str) -> Service {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "d"}, "spec": {"ports": [{"port": 80}]}}))
            .expect("a Service")
    }

    fn slice(name: &str, service: &str, ip: &str) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "d", "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "endpoints": [{"addresses": [ip]}], "ports": [{"port": 8080}],
        }))
        .expect("an EndpointSlice")
    }

    #[test]
    fn equals_the_full_plan_after_any_sequence() {
        let mut compiler = Compiler::new(PlanConfig::default());
        compiler.apply_service(service("a"));
        compiler.apply_slice(slice("a1", "a", "10.0.0.1"));
        compiler.apply_service(service("b"));
        compiler.apply_slice(slice("a1", "b", "10.0.0.1"));
        compiler.apply_slice(slice("a2", "a", "10.0.0.2"));
        compiler.apply_slice(slice("a3", "a", "10.0.0.3"));
        compiler.delete_slice(&slice("a3", "a", "10.0.0.3"));
        let expected = plan(
            &[service("a"), service("b")],
            &[slice("a1", "b", "10.0.0.1"), slice("a2", "a", "10.0.0.2")],
            &PlanConfig::default(),
        );
        assert_eq!(compiler.snapshot(), expected);
        compiler.delete_service(&service("a"));
        assert_eq!(compiler.snapshot().services.len(), 1);
        compiler.replace_services(vec![service("c")]);
        compiler.replace_slices(vec![slice("c1", "c", "10.0.0.9")]);
        let expected = plan(&[service("c")], &[slice("c1", "c", "10.0.0.9")], &PlanConfig::default());
        assert_eq!(compiler.snapshot(), expected);
    }

    #[test]
    fn untouched_services_are_shared() {
        let mut compiler = Compiler::new(PlanConfig::default());
        compiler.apply_service(service("a"));
        compiler.apply_service(service("b"));
        let before = compiler.snapshot();
        compiler.apply_slice(slice("a1", "a", "10.0.0.1"));
        compiler.apply_service(service("b"));
        let after = compiler.snapshot();
        let key = |name| ServiceKey::new("d", name);
        assert!(!Arc::ptr_eq(&before.services[&key("a")], &after.services[&key("a")]));
        assert!(Arc::ptr_eq(&before.services[&key("b")], &after.services[&key("b")]));
    }

    #[test]
    fn node_facts_are_validated() {
        let mut compiler = Compiler::new(PlanConfig::default());
        let node = |cidr: &str, gateway: &str| -> Node {
            serde_json::from_value(json!({
                "metadata": {"name": "n", "annotations": {POD_GATEWAY_ANNOTATION: gateway}}, "spec": {"podCIDR": cidr},
            }))
            .expect("a Node")
        };
        compiler.apply_node(&node("10.244.1.0/24", "10.244.1.1"));
        assert_eq!(compiler.snapshot().node.pod_cidr.as_deref(), Some("10.244.1.0/24"));
        assert!(compiler.snapshot().node.pod_gateway.is_some());
        compiler.apply_node(&node("10.244.1.0/24; flush ruleset", "nope"));
        let name = Some("n".into());
        assert_eq!(compiler.snapshot().node, NodePlan { name, ..NodePlan::default() });
    }
}
