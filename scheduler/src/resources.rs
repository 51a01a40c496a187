//! Amounts of node resources in the integers the scheduler compares: millicores and whole units.

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as K8sQuantity;
use scaleup_api::quantity::Quantity;

/// What a container without a CPU request counts as when nodes are scored (upstream's `DefaultMilliCPURequest`).
const DEFAULT_MILLI_CPU: i64 = 100;
/// The same for memory (upstream's `DefaultMemoryRequest`).
const DEFAULT_MEMORY_BYTES: i64 = 200 * 1024 * 1024;

/// An amount of everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a core.
    pub milli_cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes.
    pub ephemeral_storage: i64,
    /// How many pods; only in what a node offers.
    pub pods: i64,
    /// Extended resources and huge pages by name, sorted, none of them zero.
    pub scalar: Vec<(String, i64)>,
}

impl Resources {
    /// From named amounts, as `status.allocatable` has them. What does not parse counts as absent; the API server does
    /// not let it in.
    pub fn from_k8s<'a>(amounts: impl IntoIterator<Item = (&'a String, &'a K8sQuantity)>) -> Self {
        Self::from_amounts(
            amounts.into_iter().filter_map(|(name, amount)| Some((name.as_str(), Quantity::try_from(amount).ok()?))),
        )
    }

    /// From parsed amounts.
    pub fn from_amounts<'a>(amounts: impl IntoIterator<Item = (&'a str, Quantity)>) -> Self {
        let mut resources = Self::default();
        for (name, amount) in amounts {
            match name {
                "cpu" => resources.milli_cpu = amount.milli_value(),
                "memory" => resources.memory = amount.value(),
                "ephemeral-storage" => resources.ephemeral_storage = amount.value(),
                "pods" => resources.pods = amount.value(),
                _ if amount.is_zero() => {}
                name => resources.scalar.push((name.to_owned(), amount.value())),
            }
        }
        resources.scalar.sort();
        resources
    }

    /// How much of an extended resource.
    pub fn scalar(&self, name: &str) -> i64 {
        self.scalar.iter().find(|(known, _)| known == name).map_or(0, |(_, amount)| *amount)
    }

    /// Adds `other`, `sign` times (1 or -1); pods are not touched.
    pub fn apply(&mut self, other: &Resources, sign: i64) {
        let add = |into: &mut i64, amount: i64| *into = into.saturating_add(amount.saturating_mul(sign));
        add(&mut self.milli_cpu, other.milli_cpu);
        add(&mut self.memory, other.memory);
        add(&mut self.ephemeral_storage, other.ephemeral_storage);
        for (name, amount) in &other.scalar {
            match self.scalar.binary_search_by(|(known, _)| known.cmp(name)) {
                Ok(index) => add(&mut self.scalar[index].1, *amount),
                Err(index) => self.scalar.insert(index, (name.clone(), amount.saturating_mul(sign))),
            }
        }
    }

    /// Whether nothing is asked for.
    pub fn is_zero(&self) -> bool {
        self.milli_cpu == 0 && self.memory == 0 && self.ephemeral_storage == 0 && self.scalar.is_empty()
    }
}

/// CPU (millicores) and memory (bytes) of a pod for scoring: containers without a request count with a default, or they
/// would all pile up on one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NonZero {
    /// Thousandths of a core.
    pub milli_cpu: i64,
    /// Bytes.
    pub memory: i64,
}

impl NonZero {
    /// Upstream's `PodRequests` with `NonMissingContainerRequests`.
    pub fn of(spec: &PodSpec) -> Self {
        let mut total = spec.containers.iter().map(Self::of_container).fold(Self::default(), Self::plus);
        let (mut sidecars, mut peak) = (Self::default(), Self::default());
        for container in spec.init_containers.as_deref().unwrap_or_default() {
            let own = Self::of_container(container);
            if container.restart_policy.as_deref() == Some("Always") {
                total = total.plus(own);
                sidecars = sidecars.plus(own);
                peak = peak.max(sidecars);
            } else {
                peak = peak.max(sidecars.plus(own));
            }
        }
        let overhead = Resources::from_k8s(spec.overhead.iter().flatten());
        total.max(peak).plus(Self { milli_cpu: overhead.milli_cpu, memory: overhead.memory })
    }

    fn of_container(container: &Container) -> Self {
        let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let amount = |name: &str| requests.and_then(|all| all.get(name)).and_then(|text| Quantity::try_from(text).ok());
        Self {
            milli_cpu: amount("cpu").map_or(DEFAULT_MILLI_CPU, |amount| amount.milli_value()),
            memory: amount("memory").map_or(DEFAULT_MEMORY_BYTES, |amount| amount.value()),
        }
    }

    /// The sum.
    pub fn plus(self, other: Self) -> Self {
        Self {
            milli_cpu: self.milli_cpu.saturating_add(other.milli_cpu),
            memory: self.memory.saturating_add(other.memory),
        }
    }

    /// The difference.
    pub fn minus(self, other: Self) -> Self {
        Self {
            milli_cpu: self.milli_cpu.saturating_sub(other.milli_cpu),
            memory: self.memory.saturating_sub(other.memory),
        }
    }

    fn max(self, other: Self) -> Self {
        Self { milli_cpu: self.milli_cpu.max(other.milli_cpu), memory: self.memory.max(other.memory) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn missing_requests_count_with_a_default() {
        let check = |spec: serde_json::Value, milli_cpu, mebibytes: i64| {
            let spec: PodSpec = serde_json::from_value(spec).unwrap();
            assert_eq!(NonZero::of(&spec), NonZero { milli_cpu, memory: mebibytes << 20 }, "{spec:?}");
        };
        let c = |requests: serde_json::Value| json!({"name": "c", "resources": {"requests": requests}});
        check(json!({"containers": [c(json!({})), c(json!({"cpu": "1"}))]}), 1100, 400);
        check(json!({"containers": [c(json!({"cpu": "0", "memory": "0"}))]}), 0, 0);
        check(
            json!({"containers": [c(json!({}))], "initContainers": [c(json!({"cpu": "2", "memory": "1Mi"}))]}),
            2000,
            200,
        );
        check(json!({"containers": [c(json!({}))], "overhead": {"cpu": "50m"}}), 150, 200);
    }

    #[test]
    fn amounts_add_and_subtract() {
        let amounts = |list: &[(&str, i64)]| {
            Resources::from_amounts(list.iter().map(|(name, amount)| (*name, Quantity::from_value(*amount))))
        };
        let mut node = amounts(&[("cpu", 2), ("example.com/gpu", 1)]);
        node.apply(&amounts(&[("cpu", 1), ("memory", 5), ("example.com/fpga", 3)]), 1);
        assert_eq!(node, amounts(&[("cpu", 3), ("memory", 5), ("example.com/fpga", 3), ("example.com/gpu", 1)]));
        node.apply(&amounts(&[("cpu", 3), ("memory", 5)]), -1);
        assert_eq!((node.milli_cpu, node.memory, node.scalar("example.com/gpu")), (0, 0, 1));
    }
}
