//! Status and conditions of a Deployment (upstream's `progress.go` and `calculateStatus`). Pure.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::strategy::{self, actual, available, desired, max_unavailable, ready, size, sum};

/// Condition types.
pub const AVAILABLE: &str = "Available";
pub const PROGRESSING: &str = "Progressing";
pub const REPLICA_FAILURE: &str = "ReplicaFailure";

/// Reasons of the Progressing condition.
pub const NEW_REPLICA_SET_CREATED: &str = "NewReplicaSetCreated";
pub const FOUND_NEW_REPLICA_SET: &str = "FoundNewReplicaSet";
pub const REPLICA_SET_UPDATED: &str = "ReplicaSetUpdated";
pub const REPLICA_SET_CREATE_ERROR: &str = "ReplicaSetCreateError";
pub const NEW_REPLICA_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
pub const TIMED_OUT: &str = "ProgressDeadlineExceeded";
pub const PAUSED: &str = "DeploymentPaused";
pub const RESUMED: &str = "DeploymentResumed";

/// A condition that changed now.
pub fn condition(kind: &str, status: &str, reason: &str, message: String, now: Timestamp) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// The condition of a type.
pub fn get<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.as_deref()?.iter().find(|c| c.type_ == kind)
}

/// The reason of the Progressing condition.
pub fn progress_reason(status: &DeploymentStatus) -> Option<&str> {
    get(status, PROGRESSING)?.reason.as_deref()
}

/// Sets a condition unless status and reason stay; the transition time moves only with the status.
pub fn set(status: &mut DeploymentStatus, mut new: DeploymentCondition) {
    if let Some(old) = get(status, &new.type_) {
        if old.status == new.status && old.reason == new.reason {
            return;
        }
        if old.status == new.status {
            new.last_transition_time = old.last_transition_time.clone();
        }
    }
    remove(status, &new.type_.clone());
    status.conditions.get_or_insert_default().push(new);
}

/// Removes the condition of a type.
pub fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = status.conditions.as_mut() {
        conditions.retain(|c| c.type_ != kind);
    }
}

/// Counts over all ReplicaSets, and the Available condition (upstream's `calculateStatus`). Other conditions are those
/// of `d.status`.
pub fn counted(d: &Deployment, all: &[&ReplicaSet], newest: Option<&ReplicaSet>, now: Timestamp) -> DeploymentStatus {
    let old = d.status.clone().unwrap_or_default();
    let available_replicas = sum(all.iter().copied(), available);
    let unavailable = sum(all.iter().copied(), size).saturating_sub(available_replicas).max(0);
    let mut status = DeploymentStatus {
        observed_generation: d.metadata.generation,
        replicas: Some(sum(all.iter().copied(), actual)),
        updated_replicas: Some(newest.map_or(0, actual)),
        ready_replicas: Some(sum(all.iter().copied(), ready)),
        available_replicas: Some(available_replicas),
        unavailable_replicas: Some(unavailable),
        collision_count: old.collision_count,
        conditions: old.conditions,
        ..DeploymentStatus::default()
    };
    let minimum = available_replicas >= desired(d).saturating_sub(max_unavailable(d));
    let new = if minimum {
        let text = "Deployment has minimum availability.".to_owned();
        condition(AVAILABLE, "True", "MinimumReplicasAvailable", text, now)
    } else {
        let text = "Deployment does not have minimum availability.".to_owned();
        condition(AVAILABLE, "False", "MinimumReplicasUnavailable", text, now)
    };
    set(&mut status, new);
    status
}

/// Whether the rollout is over: everything desired is updated and available, and nothing old is left.
pub fn complete(d: &Deployment, status: &DeploymentStatus) -> bool {
    let n = Some(desired(d));
    let or_zero = |v: Option<i32>| Some(v.unwrap_or(0));
    or_zero(status.updated_replicas) == n
        && or_zero(status.replicas) == n
        && or_zero(status.available_replicas) == n
        && status.observed_generation.unwrap_or(0) >= d.metadata.generation.unwrap_or(0)
}

/// Whether anything moved in the right direction since the last status.
fn progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let n = |v: Option<i32>| v.unwrap_or(0);
    let outdated = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(new.updated_replicas) > n(old.updated_replicas)
        || outdated(new) < outdated(old)
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

/// Time until the progress deadline; zero once it has passed.
fn until_deadline(d: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let deadline = strategy::progress_deadline(d)?;
    let from = get(status, PROGRESSING)?.last_update_time.as_ref()?.0;
    let due = from.as_second().saturating_add(i64::from(deadline));
    Some(Duration::from_secs(u64::try_from(due.saturating_sub(now.as_second())).unwrap_or(0)))
}

fn timed_out(d: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    match progress_reason(status) {
        None | Some(NEW_REPLICA_SET_AVAILABLE) => false,
        Some(TIMED_OUT) => true,
        Some(_) => until_deadline(d, status, now).is_some_and(|d| d.is_zero()),
    }
}

/// The status during a rollout (upstream's `syncRolloutStatus`): counts, progress, failures. `d.status` is the status
/// so far.
pub fn rollout(d: &Deployment, all: &[&ReplicaSet], newest: Option<&ReplicaSet>, now: Timestamp) -> DeploymentStatus {
    let old = d.status.clone().unwrap_or_default();
    let mut new = counted(d, all, newest, now);
    if strategy::progress_deadline(d).is_none() {
        remove(&mut new, PROGRESSING);
    }
    let settled = new.replicas == new.updated_replicas && progress_reason(&old) == Some(NEW_REPLICA_SET_AVAILABLE);
    if strategy::progress_deadline(d).is_some() && !settled {
        progress(d, &old, &mut new, newest, now);
    }
    match failure(all, newest) {
        Some(condition) => set(&mut new, condition),
        None => remove(&mut new, REPLICA_FAILURE),
    }
    new
}

fn progress(
    d: &Deployment,
    old: &DeploymentStatus,
    new: &mut DeploymentStatus,
    newest: Option<&ReplicaSet>,
    now: Timestamp,
) {
    let subject =
        newest.map_or_else(|| format!("Deployment {:?}", d.name_any()), |s| format!("ReplicaSet {:?}", s.name_any()));
    if complete(d, new) {
        let text = format!("{subject} has successfully progressed.");
        set(new, condition(PROGRESSING, "True", NEW_REPLICA_SET_AVAILABLE, text, now));
    } else if progressed(old, new) {
        let text = format!("{subject} is progressing.");
        let mut updated = condition(PROGRESSING, "True", REPLICA_SET_UPDATED, text, now);
        // With the same reason too, the update time moves: it is what the deadline counts from.
        if let Some(current) = get(old, PROGRESSING) {
            if current.status == "True" {
                updated.last_transition_time = current.last_transition_time.clone();
            }
            remove(new, PROGRESSING);
        }
        set(new, updated);
    } else if timed_out(d, new, now) {
        let text = format!("{subject} has timed out progressing.");
        set(new, condition(PROGRESSING, "False", TIMED_OUT, text, now));
    }
}

/// A ReplicaSet's failure as the Deployment's, the newest set's first.
fn failure(all: &[&ReplicaSet], newest: Option<&ReplicaSet>) -> Option<DeploymentCondition> {
    let sets = newest.into_iter().chain(all.iter().copied());
    let conditions = sets.filter_map(|s| s.status.as_ref()).flat_map(|s| s.conditions.as_deref().unwrap_or_default());
    let found = conditions.into_iter().find(|c| c.type_ == REPLICA_FAILURE)?;
    Some(DeploymentCondition {
        type_: REPLICA_FAILURE.into(),
        status: found.status.clone(),
        reason: found.reason.clone(),
        message: found.message.clone(),
        last_transition_time: found.last_transition_time.clone(),
        last_update_time: found.last_transition_time.clone(),
    })
}

/// When to look again so that the deadline is noticed although nothing happens (upstream's `requeueStuckDeployment`).
pub fn next_check(d: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    if complete(d, status) || progress_reason(status) == Some(TIMED_OUT) || strategy::is_paused(d) {
        return None;
    }
    // A second more: timestamps have no fraction.
    until_deadline(d, status, now).map(|left| left + Duration::from_secs(1))
}

/// Whether two statuses say the same; unset and zero, unset and empty do.
pub fn same(a: &DeploymentStatus, b: &DeploymentStatus) -> bool {
    let counts = |s: &DeploymentStatus| {
        [
            s.replicas,
            s.updated_replicas,
            s.ready_replicas,
            s.available_replicas,
            s.unavailable_replicas,
            s.collision_count,
        ]
        .map(Option::unwrap_or_default)
    };
    counts(a) == counts(b)
        && a.observed_generation.unwrap_or(0) == b.observed_generation.unwrap_or(0)
        && a.conditions.as_deref().unwrap_or_default() == b.conditions.as_deref().unwrap_or_default()
}
