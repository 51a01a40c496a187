//! What a ReplicaSet needs and how it stands. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use scaleup_api::{LabelSelector, owner, pods};

use super::rank;
use crate::base::names;

/// Most pods created or deleted in one reconcile (upstream's `BurstReplicas`).
pub const BURST_REPLICAS: usize = 500;
/// Condition type: the last attempt to create or delete pods failed.
pub const REPLICA_FAILURE: &str = "ReplicaFailure";

/// What to do.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// How many pods to create.
    pub create: usize,
    /// Pods to delete.
    pub delete: Vec<Arc<Pod>>,
}

/// The difference between `spec.replicas` and the active pods, at most [`BURST_REPLICAS`]. `related`: see
/// [`rank::to_delete`].
pub fn plan(set: &ReplicaSet, active: Vec<Arc<Pod>>, related: &[Arc<Pod>], now: Timestamp) -> Plan {
    let want = usize::try_from(replicas(set)).unwrap_or(0);
    if active.len() < want {
        Plan { create: (want - active.len()).min(BURST_REPLICAS), ..Plan::default() }
    } else {
        let surplus = (active.len() - want).min(BURST_REPLICAS);
        let delete = if surplus == 0 { Vec::new() } else { rank::to_delete(active, related, surplus, now) };
        Plan { create: 0, delete }
    }
}

/// `spec.replicas`; 1 if unset.
pub fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// Sizes of the batches in which `count` pods are created: 1, 2, 4, …; a broken template then fails once, not 500
/// times.
pub fn slow_start(count: usize) -> Vec<usize> {
    let (mut left, mut size, mut batches) = (count, 1, Vec::new());
    while left > 0 {
        let batch = size.min(left);
        batches.push(batch);
        left -= batch;
        size *= 2;
    }
    batches
}

/// A new pod of the set (upstream's `GetPodFromTemplate`), with a name of our choice.
pub fn new_pod(set: &ReplicaSet) -> Pod {
    let template = set.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default();
    let base = format!("{}-", set.metadata.name.as_deref().unwrap_or_default());
    let meta = template.metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            name: Some(names::generate(&base)),
            generate_name: Some(base),
            namespace: set.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner::controller_ref::<ReplicaSet>(&set.metadata)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

/// A create or delete that failed.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// `FailedCreate` or `FailedDelete`.
    pub reason: &'static str,
    /// What the server said.
    pub message: String,
}

/// The status that `active` pods and the outcome of managing them make. `failure` is `None` after success, and while
/// nothing was tried the old condition stays: pass `managed = false` then.
pub fn status(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    managed: bool,
    failure: Option<&Failure>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let spec = set.spec.clone().unwrap_or_default();
    let template_labels = spec.template.and_then(|t| t.metadata).and_then(|m| m.labels).unwrap_or_default();
    let template_selector = LabelSelector::from_map(&template_labels);
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let none = BTreeMap::new();
    let count = |f: &dyn Fn(&Pod) -> bool| i32::try_from(active.iter().filter(|p| f(p)).count()).unwrap_or(i32::MAX);
    let old = set.status.clone().unwrap_or_default();
    let conditions = conditions(old.conditions.unwrap_or_default(), managed, failure, now);
    ReplicaSetStatus {
        replicas: count(&|_| true),
        fully_labeled_replicas: Some(count(&|p| {
            template_selector.matches(p.metadata.labels.as_ref().unwrap_or(&none))
        })),
        ready_replicas: Some(count(&pods::is_ready)),
        available_replicas: Some(count(&|p| pods::is_available(p, min_ready, now))),
        observed_generation: set.metadata.generation,
        conditions: Some(conditions).filter(|c| !c.is_empty()),
        ..ReplicaSetStatus::default()
    }
}

fn conditions(
    mut conditions: Vec<ReplicaSetCondition>,
    managed: bool,
    failure: Option<&Failure>,
    now: Timestamp,
) -> Vec<ReplicaSetCondition> {
    let current = conditions.iter().any(|c| c.type_ == REPLICA_FAILURE);
    match failure {
        Some(failure) if !current => conditions.push(ReplicaSetCondition {
            type_: REPLICA_FAILURE.into(),
            status: "True".into(),
            reason: Some(failure.reason.into()),
            message: Some(failure.message.clone()),
            last_transition_time: Some(Time(now)),
        }),
        None if managed => conditions.retain(|c| c.type_ != REPLICA_FAILURE),
        _ => {}
    }
    conditions
}

/// Whether two statuses say the same; unset and zero do.
pub fn same(a: &ReplicaSetStatus, b: &ReplicaSetStatus) -> bool {
    let counts = |s: &ReplicaSetStatus| {
        let [full, ready, available] =
            [s.fully_labeled_replicas, s.ready_replicas, s.available_replicas].map(Option::unwrap_or_default);
        (s.replicas, full, ready, available, s.observed_generation.unwrap_or(0))
    };
    let conditions = |s: &ReplicaSetStatus| s.conditions.clone().unwrap_or_default();
    counts(a) == counts(b) && conditions(a) == conditions(b)
}

/// When the next ready pod becomes available by the passing of time alone.
pub fn next_available(set: &ReplicaSet, active: &[Arc<Pod>], now: Timestamp) -> Option<Duration> {
    let min_ready = set.spec.as_ref().and_then(|s| s.min_ready_seconds).filter(|s| *s > 0)?;
    let since = |p: &Arc<Pod>| pods::condition(p, "Ready").and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0);
    let waiting = active.iter().filter(|p| pods::is_ready(p) && !pods::is_available(p, min_ready, now));
    let due = waiting.filter_map(since).map(|t| t.as_second().saturating_add(i64::from(min_ready))).min()?;
    // A full second more: timestamps have no fraction.
    let seconds = u64::try_from(due.saturating_sub(now.as_second())).unwrap_or(0).saturating_add(1);
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::ReplicaSetSpec;
    use k8s_openapi::api::core::v1::{PodCondition, PodStatus, PodTemplateSpec};

    const NOW: i64 = 1_000_000;

    fn now() -> Timestamp {
        Timestamp::from_second(NOW).unwrap()
    }

    fn set(replicas: i32, min_ready: i32) -> ReplicaSet {
        let mut set = ReplicaSet::default();
        set.metadata.name = Some("web-1".into());
        set.metadata.namespace = Some("shop".into());
        set.metadata.uid = Some("uid".into());
        set.metadata.generation = Some(4);
        let labels = [("app".to_owned(), "web".to_owned())].into();
        let metadata = Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() });
        set.spec = Some(ReplicaSetSpec {
            replicas: Some(replicas),
            min_ready_seconds: Some(min_ready),
            template: Some(PodTemplateSpec { metadata, ..PodTemplateSpec::default() }),
            ..ReplicaSetSpec::default()
        });
        set
    }

    fn pods(n: usize, ready_for: Option<i64>) -> Vec<Arc<Pod>> {
        let pod = |i: usize| {
            let mut pod = Pod::default();
            pod.metadata.name = Some(format!("p{i}"));
            pod.metadata.uid = Some(format!("p{i}"));
            pod.metadata.labels = Some([("app".to_owned(), "web".to_owned())].into());
            let ready = ready_for.map(|s| PodCondition {
                type_: "Ready".into(),
                status: "True".into(),
                last_transition_time: Some(Time(Timestamp::from_second(NOW - s).unwrap())),
                ..PodCondition::default()
            });
            pod.status = Some(PodStatus { conditions: ready.map(|c| vec![c]), ..PodStatus::default() });
            Arc::new(pod)
        };
        (0..n).map(pod).collect()
    }

    fn check_plan(replicas: i32, active: usize, create: usize, delete: usize) {
        let active = pods(active, None);
        let plan = plan(&set(replicas, 0), active.clone(), &active, now());
        assert_eq!((plan.create, plan.delete.len()), (create, delete), "{replicas} wanted, {} active", active.len());
    }

    #[test]
    fn the_difference_is_created_or_deleted() {
        check_plan(3, 0, 3, 0);
        check_plan(3, 3, 0, 0);
        check_plan(3, 5, 0, 2);
        check_plan(0, 2, 0, 2);
        check_plan(2_000, 0, BURST_REPLICAS, 0);
        check_plan(0, 600, 0, BURST_REPLICAS);
        check_plan(-1, 1, 0, 1);
    }

    #[test]
    fn batches_double() {
        assert_eq!(slow_start(0), Vec::<usize>::new());
        assert_eq!(slow_start(1), [1]);
        assert_eq!(slow_start(10), [1, 2, 4, 3]);
        assert_eq!(slow_start(500).iter().sum::<usize>(), 500);
    }

    #[test]
    fn new_pods_belong_to_the_set() {
        let pod = new_pod(&set(1, 0));
        assert!(pod.metadata.name.unwrap().starts_with("web-1-"));
        assert_eq!(pod.metadata.generate_name.as_deref(), Some("web-1-"));
        assert_eq!(pod.metadata.namespace.as_deref(), Some("shop"));
        let owner = &pod.metadata.owner_references.unwrap()[0];
        assert_eq!((owner.kind.as_str(), owner.uid.as_str(), owner.controller), ("ReplicaSet", "uid", Some(true)));
    }

    #[test]
    fn status_counts_pods() {
        let mut all = pods(2, Some(100));
        all.extend(pods(1, Some(5)));
        all.extend(pods(1, None));
        let mut other = (*all[3]).clone();
        other.metadata.labels = None;
        all.push(Arc::new(other));
        let s = status(&set(5, 10), &all, true, None, now());
        let got = (s.replicas, s.fully_labeled_replicas, s.ready_replicas, s.available_replicas, s.observed_generation);
        assert_eq!(got, (5, Some(4), Some(3), Some(2), Some(4)));
        assert_eq!(s.conditions, None);
    }

    #[test]
    fn failures_show_until_something_succeeds() {
        let failure = Failure { reason: "FailedCreate", message: "quota".into() };
        let mut set = set(1, 0);
        set.status = Some(status(&set, &[], true, Some(&failure), now()));
        let condition = &set.status.as_ref().unwrap().conditions.as_ref().unwrap()[0];
        assert_eq!((condition.type_.as_str(), condition.reason.as_deref()), ("ReplicaFailure", Some("FailedCreate")));
        assert!(status(&set, &[], false, None, now()).conditions.is_some(), "nothing was tried");
        assert!(status(&set, &[], true, None, now()).conditions.is_none());
    }

    #[test]
    fn unset_and_zero_are_the_same() {
        let zero =
            ReplicaSetStatus { ready_replicas: Some(0), conditions: Some(vec![]), ..ReplicaSetStatus::default() };
        assert!(same(&ReplicaSetStatus::default(), &zero));
        assert!(!same(&ReplicaSetStatus { ready_replicas: Some(1), ..zero.clone() }, &zero));
    }

    #[test]
    fn availability_is_waited_for() {
        assert_eq!(next_available(&set(1, 0), &pods(1, Some(1)), now()), None);
        assert_eq!(next_available(&set(1, 10), &pods(1, Some(4)), now()), Some(Duration::from_secs(7)));
        assert_eq!(next_available(&set(1, 10), &pods(1, Some(20)), now()), None);
        assert_eq!(next_available(&set(1, 10), &pods(1, None), now()), None);
    }
}
