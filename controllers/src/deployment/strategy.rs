//! Numbers that follow from a Deployment's spec: surge, unavailability, deadline, history (upstream's
//! `deployment_util.go`).

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet, RollingUpdateDeployment};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// `spec.replicas`; 1 if unset.
pub fn desired(d: &Deployment) -> i32 {
    spec(d).and_then(|s| s.replicas).unwrap_or(1)
}

fn spec(d: &Deployment) -> Option<&DeploymentSpec> {
    d.spec.as_ref()
}

/// Whether the strategy is `RollingUpdate`, which is the default.
pub fn is_rolling(d: &Deployment) -> bool {
    let kind = spec(d).and_then(|s| s.strategy.as_ref()).and_then(|s| s.type_.as_deref());
    kind.unwrap_or("RollingUpdate") == "RollingUpdate"
}

fn rolling(d: &Deployment) -> Option<&RollingUpdateDeployment> {
    spec(d)?.strategy.as_ref()?.rolling_update.as_ref()
}

/// A number or a percentage of `total`. Malformed percentages, which validation refuses, count as 0.
fn scaled(value: Option<&IntOrString>, total: i32, round_up: bool) -> i32 {
    match value {
        None => scaled(Some(&IntOrString::String("25%".into())), total, round_up),
        Some(IntOrString::Int(n)) => *n,
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.strip_suffix('%').and_then(|p| p.parse().ok()).unwrap_or(0);
            let product = percent.saturating_mul(i64::from(total));
            let value = if round_up { product.saturating_add(99).div_euclid(100) } else { product.div_euclid(100) };
            i32::try_from(value).unwrap_or(i32::MAX)
        }
    }
}

/// Surge (rounded up) and unavailability (rounded down); both zero would never progress, so one pod may be unavailable
/// then.
fn fenceposts(d: &Deployment) -> (i32, i32) {
    let surge = scaled(rolling(d).and_then(|r| r.max_surge.as_ref()), desired(d), true).max(0);
    let unavailable = scaled(rolling(d).and_then(|r| r.max_unavailable.as_ref()), desired(d), false).max(0);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// How many pods may be missing during a rollout.
pub fn max_unavailable(d: &Deployment) -> i32 {
    if !is_rolling(d) || desired(d) == 0 { 0 } else { fenceposts(d).1.min(desired(d)) }
}

/// How many pods there may be too many during a rollout.
pub fn max_surge(d: &Deployment) -> i32 {
    if is_rolling(d) { fenceposts(d).0 } else { 0 }
}

/// `spec.progressDeadlineSeconds`, if there is a deadline.
pub fn progress_deadline(d: &Deployment) -> Option<i32> {
    spec(d).and_then(|s| s.progress_deadline_seconds).filter(|s| *s != i32::MAX)
}

/// `spec.revisionHistoryLimit`, if there is a limit.
pub fn history_limit(d: &Deployment) -> Option<usize> {
    let limit = spec(d).and_then(|s| s.revision_history_limit).filter(|l| *l != i32::MAX)?;
    Some(usize::try_from(limit).unwrap_or(0))
}

/// `spec.paused`
pub fn is_paused(d: &Deployment) -> bool {
    spec(d).and_then(|s| s.paused).unwrap_or(false)
}

/// `spec.replicas` of a ReplicaSet.
pub fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// `status.availableReplicas` of a ReplicaSet.
pub fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

/// `status.readyReplicas` of a ReplicaSet.
pub fn ready(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0)
}

/// `status.replicas` of a ReplicaSet.
pub fn actual(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |s| s.replicas)
}

/// Sum over sets.
pub fn sum<'a>(sets: impl IntoIterator<Item = &'a ReplicaSet>, f: fn(&ReplicaSet) -> i32) -> i32 {
    sets.into_iter().map(f).fold(0, i32::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn deployment(replicas: i32, strategy: Value) -> Deployment {
        let value = json!({"spec": {"replicas": replicas, "strategy": strategy, "selector": {}, "template": {}}});
        serde_json::from_value(value).unwrap()
    }

    fn check(replicas: i32, surge: Value, unavailable: Value, want: (i32, i32)) {
        let strategy =
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}});
        let d = deployment(replicas, strategy);
        assert_eq!((max_surge(&d), max_unavailable(&d)), want, "{replicas} {surge} {unavailable}");
    }

    #[test]
    fn percentages_round_towards_availability() {
        check(10, json!("25%"), json!("25%"), (3, 2));
        check(10, json!(null), json!(null), (3, 2));
        check(1, json!("25%"), json!("25%"), (1, 0));
        check(4, json!(2), json!(1), (2, 1));
        check(3, json!("0%"), json!("0%"), (0, 1));
        check(3, json!(0), json!("10%"), (0, 1));
        check(2, json!(0), json!(5), (0, 2));
        check(0, json!("25%"), json!("25%"), (0, 0));
        check(3, json!("bad"), json!(1), (0, 1));
        check(3, json!("100%"), json!("100%"), (3, 3));
        check(i32::MAX, json!("999%"), json!("0%"), (i32::MAX, 0));
    }

    #[test]
    fn recreate_knows_no_surge() {
        let d = deployment(5, json!({"type": "Recreate"}));
        assert_eq!((max_surge(&d), max_unavailable(&d), is_rolling(&d)), (0, 0, false));
    }

    #[test]
    fn the_largest_number_means_no_limit() {
        let mut d = deployment(1, json!({}));
        let spec = d.spec.as_mut().unwrap();
        (spec.progress_deadline_seconds, spec.revision_history_limit) = (Some(i32::MAX), Some(i32::MAX));
        assert_eq!((progress_deadline(&d), history_limit(&d)), (None, None));
        let spec = d.spec.as_mut().unwrap();
        (spec.progress_deadline_seconds, spec.revision_history_limit) = (Some(600), Some(10));
        assert_eq!((progress_deadline(&d), history_limit(&d)), (Some(600), Some(10)));
    }
}
