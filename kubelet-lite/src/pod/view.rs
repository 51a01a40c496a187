//! A pod as its spec and its containers show it. Pure lookups, no decisions.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container as SpecContainer, Pod, PodSpec};

use crate::runtime::{Container, Kind, PodRef, State};

/// Sandboxes and containers of one pod, sorted out.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The running sandbox.
    pub sandbox: Option<Container>,
    /// Other sandboxes, running or not.
    pub old_sandboxes: Vec<Container>,
    /// Containers that were started, by name, newest first.
    pub containers: BTreeMap<String, Vec<Container>>,
    /// Containers made but never started: leftovers of an interrupted start.
    pub unstarted: Vec<Container>,
}

impl Observed {
    /// Sorts what [`crate::runtime::ContainerRuntime::pod`] returned.
    pub fn new(mut all: Vec<Container>) -> Self {
        all.sort_by_key(|c| std::cmp::Reverse((c.attempt, c.created_at)));
        let mut out = Self::default();
        for container in all {
            match (container.kind, &container.state) {
                (Kind::Sandbox, State::Running) if out.sandbox.is_none() => out.sandbox = Some(container),
                (Kind::Sandbox, _) => out.old_sandboxes.push(container),
                (Kind::Container, State::Created) => out.unstarted.push(container),
                (Kind::Container, _) => out.containers.entry(container.name.clone()).or_default().push(container),
            }
        }
        out
    }

    /// The newest container of that name.
    pub fn newest(&self, name: &str) -> Option<&Container> {
        self.containers.get(name)?.first()
    }

    /// Every running container.
    pub fn running(&self) -> impl Iterator<Item = &Container> {
        self.containers.values().flatten().filter(|c| c.is_running())
    }

    /// Attempt number for the next sandbox.
    pub fn next_sandbox_attempt(&self) -> u32 {
        let sandboxes = self.sandbox.iter().chain(&self.old_sandboxes);
        sandboxes.map(|s| s.attempt.saturating_add(1)).max().unwrap_or(0)
    }

    /// Whether nothing of the pod is left in the runtime.
    pub fn is_empty(&self) -> bool {
        self.sandbox.is_none()
            && self.old_sandboxes.is_empty()
            && self.containers.is_empty()
            && self.unstarted.is_empty()
    }
}

/// The pod's spec; an object without one reads as empty.
pub fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
    pod.spec.as_ref().unwrap_or(&EMPTY)
}

/// `metadata.uid`
pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// `metadata.namespace`
pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

/// `metadata.name`
pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// Whose containers.
pub fn pod_ref(pod: &Pod) -> PodRef {
    PodRef { uid: uid(pod).into(), name: name(pod).into(), namespace: namespace(pod).into() }
}

/// `name_namespace(uid)`, as upstream's messages name a pod.
pub fn described(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

/// `spec.restartPolicy`
pub fn restart_policy(pod: &Pod) -> &str {
    spec(pod).restart_policy.as_deref().unwrap_or("Always")
}

/// `spec.initContainers`
pub fn init_containers(pod: &Pod) -> &[SpecContainer] {
    spec(pod).init_containers.as_deref().unwrap_or_default()
}

/// `spec.containers`
pub fn containers(pod: &Pod) -> &[SpecContainer] {
    &spec(pod).containers
}

/// Init containers and containers.
pub fn all_containers(pod: &Pod) -> impl Iterator<Item = &SpecContainer> {
    init_containers(pod).iter().chain(containers(pod))
}

/// The container of that name.
pub fn container<'a>(pod: &'a Pod, name: &str) -> Option<&'a SpecContainer> {
    all_containers(pod).find(|c| c.name == name)
}

/// Whether an init container goes on running (`restartPolicy: Always`).
pub fn is_sidecar(container: &SpecContainer) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// `spec.containers{name}`, as events name a part of a pod.
pub fn field_path(pod: &Pod, container: &str) -> String {
    let list = if init_containers(pod).iter().any(|c| c.name == container) { "initContainers" } else { "containers" };
    format!("spec.{list}{{{container}}}")
}

/// Whether the API says that the pod has ended for good.
pub fn has_ended(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// Seconds the pod gets to stop, from the deletion or the spec.
pub fn grace_seconds(pod: &Pod) -> u64 {
    let seconds = pod
        .metadata
        .deletion_grace_period_seconds
        .or(spec(pod).termination_grace_period_seconds)
        .unwrap_or(DEFAULT_GRACE_S);
    u64::try_from(seconds).unwrap_or(0)
}

/// `terminationGracePeriodSeconds` unless set.
const DEFAULT_GRACE_S: i64 = 30;
