//! Which pods go first when a ReplicaSet shrinks (upstream's `ActivePodsWithRanks`). Pure.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use scaleup_api::pods;

/// `controller.kubernetes.io/pod-deletion-cost`: an integer, lower goes first, 0 if unset or malformed.
pub const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Sorts after everything that survives longer. Fields in order of weight; the smallest goes first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// Unassigned before assigned.
    assigned: bool,
    /// Pending, then unknown, then running.
    phase: u8,
    /// Not ready before ready.
    ready: bool,
    /// Cheap before expensive.
    cost: i32,
    /// Of nodes with many related pods first.
    crowding: Reverse<usize>,
    /// Ready for a shorter time first, by orders of magnitude (base 2) so that old pods are not all spared.
    ready_for: i32,
    /// More restarts first: ordinary containers, then sidecars.
    restarts: Reverse<(i32, i32)>,
    /// Younger first, by orders of magnitude.
    age: i32,
    /// A stable last word.
    uid: String,
}

/// The `count` pods of `pods` to delete. `related` are all pods that owners of the same controller run, for crowding.
pub fn to_delete(pods: Vec<Arc<Pod>>, related: &[Arc<Pod>], count: usize, now: Timestamp) -> Vec<Arc<Pod>> {
    if count >= pods.len() {
        return pods;
    }
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for pod in related.iter().filter(|p| pods::is_active(p)) {
        *on_node.entry(node(pod)).or_default() += 1;
    }
    let mut pods = pods;
    pods.sort_by_cached_key(|pod| rank(pod, on_node.get(node(pod)).copied().unwrap_or(0), now));
    pods.truncate(count);
    pods
}

fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

fn rank(pod: &Pod, on_node: usize, now: Timestamp) -> Rank {
    let status = pod.status.as_ref();
    let phase = match status.and_then(|s| s.phase.as_deref()) {
        Some("Running") => 2,
        Some("Unknown") => 1,
        _ => 0,
    };
    let ready = pods::is_ready(pod);
    let ready_since = pods::condition(pod, "Ready").and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0);
    let regular = status.and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    Rank {
        assigned: !node(pod).is_empty(),
        phase,
        ready,
        cost: pod.annotations().get(DELETION_COST).and_then(|c| c.parse().ok()).unwrap_or(0),
        crowding: Reverse(on_node),
        ready_for: if ready { magnitude(ready_since, now) } else { 0 },
        restarts: Reverse((max_restarts(regular), max_restarts(sidecars(pod)))),
        age: magnitude(pod.metadata.creation_timestamp.as_ref().map(|t| t.0), now),
        uid: pod.uid().unwrap_or_default(),
    }
}

fn max_restarts<'a>(containers: impl IntoIterator<Item = &'a ContainerStatus>) -> i32 {
    containers.into_iter().map(|c| c.restart_count).max().unwrap_or(0)
}

/// Statuses of init containers that keep running (`restartPolicy: Always`).
fn sidecars(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let init = pod.spec.as_ref().and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
    let statuses = pod.status.as_ref().and_then(|s| s.init_container_statuses.as_deref()).unwrap_or_default();
    let is_sidecar = |name: &str| init.iter().any(|c| c.name == name && c.restart_policy.as_deref() == Some("Always"));
    statuses.iter().filter(move |s| is_sidecar(&s.name))
}

/// Logarithm (base 2) of the time since `t` in nanoseconds; -1 for the future, and for unknown.
fn magnitude(t: Option<Timestamp>, now: Timestamp) -> i32 {
    let elapsed = t.map_or(0, |t| (now.as_nanosecond() - t.as_nanosecond()).max(0));
    elapsed.checked_ilog2().map_or(-1, |l| i32::try_from(l).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodCondition, PodSpec, PodStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    const NOW: i64 = 1_000_000;

    struct P(&'static str, Pod);

    /// A running, ready pod on node n1, created and ready for 1,000 s.
    fn pod(name: &'static str) -> P {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.uid = Some(name.into());
        pod.metadata.creation_timestamp = Some(Time(Timestamp::from_second(NOW - 1000).unwrap()));
        pod.spec = Some(PodSpec { node_name: Some("n1".into()), ..PodSpec::default() });
        pod.status = Some(PodStatus { phase: Some("Running".into()), ..PodStatus::default() });
        P(name, pod).ready(1000)
    }

    impl P {
        fn with(mut self, f: impl FnOnce(&mut Pod)) -> Self {
            f(&mut self.1);
            self
        }
        fn ready(self, seconds: i64) -> Self {
            let since = Some(Time(Timestamp::from_second(NOW - seconds).unwrap()));
            let condition = PodCondition {
                type_: "Ready".into(),
                status: "True".into(),
                last_transition_time: since,
                ..PodCondition::default()
            };
            self.with(|p| p.status.as_mut().unwrap().conditions = Some(vec![condition]))
        }
        fn phase(self, phase: &str) -> Self {
            self.with(|p| p.status.as_mut().unwrap().phase = Some(phase.into()))
        }
        fn unready(self) -> Self {
            self.with(|p| p.status.as_mut().unwrap().conditions = None)
        }
        fn node(self, node: &str) -> Self {
            self.with(|p| p.spec.as_mut().unwrap().node_name = Some(node.into()).filter(|n: &String| !n.is_empty()))
        }
        fn cost(self, cost: &str) -> Self {
            self.with(|p| p.metadata.annotations = Some([(DELETION_COST.to_owned(), cost.to_owned())].into()))
        }
        fn created(self, seconds: i64) -> Self {
            self.with(|p| p.metadata.creation_timestamp = Some(Time(Timestamp::from_second(NOW - seconds).unwrap())))
        }
        fn restarts(self, n: i32) -> Self {
            let status = ContainerStatus { restart_count: n, ..ContainerStatus::default() };
            self.with(|p| p.status.as_mut().unwrap().container_statuses = Some(vec![status]))
        }
    }

    /// Checks that `first` is deleted rather than `second`.
    fn check(first: P, second: P) {
        assert_ne!(first.0, second.0);
        let (a, b) = (Arc::new(first.1), Arc::new(second.1));
        for pods in [vec![a.clone(), b.clone()], vec![b.clone(), a.clone()]] {
            let gone = to_delete(pods.clone(), &pods, 1, Timestamp::from_second(NOW).unwrap());
            assert_eq!(gone[0].name_any(), first.0, "instead of {}", second.0);
        }
    }

    #[test]
    fn the_least_useful_pod_goes_first() {
        check(pod("unassigned").node(""), pod("assigned").phase("Pending").unready());
        check(pod("pending").phase("Pending").unready(), pod("unknown").phase("Unknown").unready());
        check(pod("unknown").phase("Unknown"), pod("running").unready());
        check(pod("unready").unready().cost("5"), pod("ready").cost("-5"));
        check(pod("cheap").cost("-5"), pod("z-default"));
        check(pod("default").ready(1), pod("expensive").cost("5").ready(100_000));
        check(pod("z-recently-ready").ready(10), pod("a-long-ready").ready(900));
        check(pod("z-restarted").restarts(3), pod("a-stable").restarts(1));
        check(pod("z-younger").created(10), pod("a-older").created(900));
        check(pod("a-uid"), pod("b-uid"));
        check(pod("a-same-magnitude").ready(600), pod("b-same-magnitude").ready(601));
    }

    #[test]
    fn crowded_nodes_shrink_first() {
        let pods: Vec<Arc<Pod>> =
            [pod("a").node("n2"), pod("b"), pod("c")].into_iter().map(|p| Arc::new(p.1)).collect();
        let gone = to_delete(pods.clone(), &pods, 1, Timestamp::from_second(NOW).unwrap());
        assert_eq!(gone[0].name_any(), "b");
    }

    #[test]
    fn all_go_when_all_must() {
        let pods = vec![Arc::new(pod("a").1)];
        assert_eq!(to_delete(pods.clone(), &[], 5, Timestamp::UNIX_EPOCH).len(), 1);
    }
}
