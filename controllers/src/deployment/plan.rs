//! What a Deployment needs next (upstream's `sync.go`, `rolling.go`, `recreate.go`). Pure: a model of the ReplicaSets
//! is changed step by step as upstream would change them through the API, and the differences become operations.
//!
//! One state machine in one file: pausing, scaling, the two strategies, history, status.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use scaleup_api::pods;

use super::strategy::{self, actual, available, desired, max_surge, max_unavailable, size, sum};
use super::{revision, status, template};

/// Everything that is known.
pub struct Observed {
    /// The Deployment.
    pub deployment: Deployment,
    /// Its ReplicaSets, after adoption and release.
    pub sets: Vec<Arc<ReplicaSet>>,
    /// Pods of those ReplicaSets, by the UID of the set; only `Recreate` asks for them.
    pub pods: BTreeMap<String, Vec<Arc<Pod>>>,
    /// Now, in whole seconds.
    pub now: Timestamp,
}

/// One API call.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Create the ReplicaSet of the current template.
    Create(Box<ReplicaSet>),
    /// Change a ReplicaSet that is still as observed.
    Update {
        /// The set, as observed.
        set: Arc<ReplicaSet>,
        /// New `spec.replicas`.
        replicas: Option<i32>,
        /// New `spec.minReadySeconds`.
        min_ready_seconds: Option<i32>,
        /// Annotations to set.
        annotations: BTreeMap<String, String>,
    },
    /// Delete a ReplicaSet that history does not need.
    Delete(Arc<ReplicaSet>),
    /// Set the Deployment's revision annotation.
    SetRevision(String),
    /// Write the status.
    Status(Box<DeploymentStatus>),
}

/// Operations in order, and when to look again.
#[derive(Debug, Default)]
pub struct Plan {
    /// What to do.
    pub ops: Vec<Op>,
    /// When something becomes due.
    pub again: Option<Duration>,
}

/// A ReplicaSet as it will be after the operations so far.
struct Row {
    /// As observed; `None` for one to be created.
    seen: Option<Arc<ReplicaSet>>,
    /// As it will be.
    set: ReplicaSet,
}

struct Model {
    d: Deployment,
    /// In order of creation.
    rows: Vec<Row>,
    /// Index of the set of the current template.
    newest: Option<usize>,
    pods: BTreeMap<String, Vec<Arc<Pod>>>,
    deletes: Vec<Arc<ReplicaSet>>,
    revision: Option<String>,
    now: Timestamp,
}

/// What to do next for a Deployment.
pub fn plan(observed: Observed) -> Plan {
    let original = observed.deployment.status.clone().unwrap_or_default();
    let had_status = observed.deployment.status.is_some();
    let mut model = Model::new(observed);
    let new_status = model.sync();
    let again = status::next_check(&model.d, &new_status, model.now);
    let mut ops = model.ops();
    if !had_status || !status::same(&original, &new_status) {
        ops.push(Op::Status(Box::new(new_status)));
    }
    Plan { ops, again }
}

impl Model {
    fn new(observed: Observed) -> Self {
        let mut sets = observed.sets;
        sets.sort_by_key(|s| (s.metadata.creation_timestamp.clone(), s.name_any()));
        let wanted = observed.deployment.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
        let matches = |s: &Arc<ReplicaSet>| {
            let template = s.spec.as_ref().and_then(|s| s.template.as_ref());
            template.is_some_and(|t| template::equal_ignoring_hash(t, &wanted))
        };
        // The oldest of several equal ones, as upstream, so that all controllers agree.
        let newest = sets.iter().position(matches);
        let rows = sets.into_iter().map(|s| Row { set: (*s).clone(), seen: Some(s) }).collect();
        Self {
            d: observed.deployment,
            rows,
            newest,
            pods: observed.pods,
            deletes: Vec::new(),
            revision: None,
            now: observed.now,
        }
    }

    fn all(&self) -> Vec<&ReplicaSet> {
        self.rows.iter().map(|r| &r.set).collect()
    }
    fn newest(&self) -> Option<&ReplicaSet> {
        self.newest.map(|i| &self.rows[i].set)
    }
    fn old(&self) -> impl Iterator<Item = usize> {
        let newest = self.newest;
        (0..self.rows.len()).filter(move |i| Some(*i) != newest)
    }
    fn size(&self, row: usize) -> i32 {
        size(&self.rows[row].set)
    }
    fn old_active(&self) -> Vec<usize> {
        self.old().filter(|i| self.size(*i) > 0).collect()
    }

    fn sync(&mut self) -> DeploymentStatus {
        if self.d.metadata.deletion_timestamp.is_some() {
            return self.counted();
        }
        self.note_pause();
        if strategy::is_paused(&self.d) {
            return self.scale_only();
        }
        self.sync_revision(false);
        if self.is_scaling() {
            return self.scale_only();
        }
        if strategy::is_rolling(&self.d) { self.rolling() } else { self.recreate() }
    }

    fn counted(&self) -> DeploymentStatus {
        status::counted(&self.d, &self.all(), self.newest(), self.now)
    }
    fn rollout_status(&self) -> DeploymentStatus {
        status::rollout(&self.d, &self.all(), self.newest(), self.now)
    }

    /// Pausing stops the progress clock and resuming starts it anew (upstream's `checkPausedConditions`).
    fn note_pause(&mut self) {
        if strategy::progress_deadline(&self.d).is_none() {
            return;
        }
        let (paused, now) = (strategy::is_paused(&self.d), self.now);
        let current = self.d.status.get_or_insert_default();
        let was_paused = match status::progress_reason(current) {
            Some(status::TIMED_OUT) => return,
            reason => reason == Some(status::PAUSED),
        };
        let change = match (paused, was_paused) {
            (true, false) => Some((status::PAUSED, "Deployment is paused")),
            (false, true) => Some((status::RESUMED, "Deployment is resumed")),
            _ => None,
        };
        if let Some((reason, text)) = change {
            status::set(current, status::condition(status::PROGRESSING, "Unknown", reason, text.into(), now));
        }
    }

    /// Brings annotations and revision of the newest set up to date, creating the set if asked to.
    fn sync_revision(&mut self, create: bool) {
        let number = self.old().map(|i| revision::of(&self.rows[i].set)).max().unwrap_or(0).saturating_add(1);
        if self.newest.is_none() {
            if !create {
                return;
            }
            self.create_newest(number);
        }
        let Some(newest) = self.newest else { return };
        let changes = revision::changes(&self.d, &self.rows[newest].set, number);
        let min_ready = self.d.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
        let set = &mut self.rows[newest].set;
        set.metadata.annotations.get_or_insert_default().extend(changes);
        let spec = set.spec.get_or_insert_default();
        if spec.min_ready_seconds.unwrap_or(0) != min_ready {
            spec.min_ready_seconds = Some(min_ready);
        }
        let (own, name) = (revision::of(set), set.name_any());
        if self.d.annotations().get(revision::REVISION) != Some(&own.to_string()) {
            self.revision = Some(own.to_string());
        }
        let now = self.now;
        let has_deadline = strategy::progress_deadline(&self.d).is_some();
        let current = self.d.status.get_or_insert_default();
        if has_deadline && status::get(current, status::PROGRESSING).is_none() {
            let text = format!("Found new replica set {name:?}");
            let found = status::condition(status::PROGRESSING, "True", status::FOUND_NEW_REPLICA_SET, text, now);
            status::set(current, found);
        }
    }

    fn create_newest(&mut self, number: i64) {
        let mut set = template::new_replica_set(&self.d);
        let mut annotations = revision::changes(&self.d, &set, number);
        annotations.extend(revision::sizes(&self.d).map(|(k, v)| (k.to_owned(), v.to_string())));
        set.metadata.annotations = Some(annotations);
        let name = set.name_any();
        self.rows.push(Row { seen: None, set });
        let newest = self.rows.len() - 1;
        self.newest = Some(newest);
        let replicas = self.wanted_newest_size(newest);
        self.rows[newest].set.spec.get_or_insert_default().replicas = Some(replicas);
        if strategy::progress_deadline(&self.d).is_some() {
            let text = format!("Created new replica set {name:?}");
            let created =
                status::condition(status::PROGRESSING, "True", status::NEW_REPLICA_SET_CREATED, text, self.now);
            status::set(self.d.status.get_or_insert_default(), created);
        }
    }

    /// How large the newest set may be now (upstream's `NewRSNewReplicas`).
    fn wanted_newest_size(&self, newest: usize) -> i32 {
        let (want, current) = (desired(&self.d), self.size(newest));
        if !strategy::is_rolling(&self.d) {
            return want;
        }
        let total = sum(self.all(), size);
        let room = want.saturating_add(max_surge(&self.d)).saturating_sub(total);
        if room <= 0 { current } else { current.saturating_add(room.min(want.saturating_sub(current))) }
    }

    /// Changes the size of a set, if it differs: whether it did.
    fn scale_to(&mut self, row: usize, replicas: i32) -> bool {
        let sizes = revision::sizes(&self.d);
        let set = &mut self.rows[row].set;
        let changed = size(set) != replicas;
        set.spec.get_or_insert_default().replicas = Some(replicas);
        let annotations = set.metadata.annotations.get_or_insert_default();
        annotations.extend(sizes.map(|(k, v)| (k.to_owned(), v.to_string())));
        changed
    }

    /// Whether `spec.replicas` changed since the active sets were last scaled.
    fn is_scaling(&self) -> bool {
        let active = self.rows.iter().filter(|r| size(&r.set) > 0);
        let mut annotated = active.filter_map(|r| revision::number(&r.set, revision::DESIRED_REPLICAS));
        annotated.any(|n| n != desired(&self.d))
    }

    /// A paused or merely scaled Deployment: no rollout, only sizes (upstream's `sync`).
    fn scale_only(&mut self) -> DeploymentStatus {
        self.sync_revision(false);
        self.scale();
        if strategy::is_paused(&self.d) {
            self.clean_up();
        }
        self.counted()
    }

    fn scale(&mut self) {
        let want = desired(&self.d);
        if let Some(only) = self.active_or_latest() {
            self.scale_to(only, want);
        } else if self.is_saturated() {
            for row in self.old_active() {
                self.scale_to(row, 0);
            }
        } else if strategy::is_rolling(&self.d) {
            self.scale_proportionally();
        }
    }

    /// The single active set; without any, the newest or else the latest one.
    fn active_or_latest(&self) -> Option<usize> {
        let active: Vec<usize> = (0..self.rows.len()).filter(|i| self.size(*i) > 0).collect();
        match active.as_slice() {
            [] => self.newest.or_else(|| self.rows.len().checked_sub(1)),
            [only] => Some(*only),
            _ => None,
        }
    }

    fn is_saturated(&self) -> bool {
        let want = desired(&self.d);
        self.newest().is_some_and(|s| {
            size(s) == want && revision::number(s, revision::DESIRED_REPLICAS) == Some(want) && available(s) == want
        })
    }

    /// Spreads a change of size over all active sets in proportion to their sizes.
    fn scale_proportionally(&mut self) {
        let want = desired(&self.d);
        let mut rows: Vec<usize> = (0..self.rows.len()).filter(|i| self.size(*i) > 0).collect();
        let total = rows.iter().map(|i| self.size(*i)).fold(0, i32::saturating_add);
        let allowed = if want > 0 { want.saturating_add(max_surge(&self.d)) } else { 0 };
        let to_add = allowed.saturating_sub(total);
        // Largest first; of equal ones the newer when growing, the older when shrinking.
        if to_add > 0 {
            rows.sort_by_key(|i| (-i64::from(self.size(*i)), std::cmp::Reverse(*i)));
        } else {
            rows.sort_by_key(|i| (-i64::from(self.size(*i)), *i));
        }
        let mut added = 0;
        let mut sizes = Vec::new();
        for row in &rows {
            let share = if to_add == 0 { 0 } else { self.share(*row, to_add, added) };
            added += share;
            sizes.push(self.size(*row).saturating_add(share));
        }
        if let Some(first) = sizes.first_mut() {
            *first = first.saturating_add(to_add - added).max(0);
        }
        for (row, replicas) in rows.into_iter().zip(sizes) {
            self.scale_to(row, replicas);
        }
    }

    /// One set's part of a change (upstream's `GetReplicaSetProportion`).
    fn share(&self, row: usize, to_add: i32, added: i32) -> i32 {
        let set = &self.rows[row].set;
        let (current, want) = (size(set), desired(&self.d));
        if current == 0 || to_add == added {
            return 0;
        }
        let fraction = if want == 0 {
            -current
        } else {
            let annotated = revision::number(set, revision::MAX_REPLICAS).filter(|n| *n > 0);
            let base = annotated.or_else(|| self.d.status.as_ref().and_then(|s| s.replicas)).unwrap_or(0);
            if base <= 0 {
                return 0;
            }
            let target = i64::from(want) + i64::from(max_surge(&self.d));
            // Rounded half away from zero, as upstream's float arithmetic does; both factors are positive.
            let scaled = (2 * i64::from(current) * target + i64::from(base)) / (2 * i64::from(base));
            i32::try_from(scaled).unwrap_or(i32::MAX).saturating_sub(current)
        };
        let left = to_add - added;
        if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
    }

    fn rolling(&mut self) -> DeploymentStatus {
        self.sync_revision(true);
        let Some(newest) = self.newest else { return self.rollout_status() };
        if self.grow_newest(newest) || self.shrink_old(newest) {
            return self.rollout_status();
        }
        if status::complete(&self.d, &self.d.status.clone().unwrap_or_default()) {
            self.clean_up();
        }
        self.rollout_status()
    }

    /// Scales the newest set as far as surge allows: whether it changed.
    fn grow_newest(&mut self, newest: usize) -> bool {
        let (want, current) = (desired(&self.d), self.size(newest));
        if current == want {
            return false;
        }
        let replicas = if current > want { want } else { self.wanted_newest_size(newest) };
        if replicas == current {
            return false;
        }
        self.scale_to(newest, replicas)
    }

    /// Scales old sets down as far as availability allows, unhealthy pods first: whether anything changed.
    fn shrink_old(&mut self, newest: usize) -> bool {
        let old = self.old_active();
        if old.is_empty() {
            return false;
        }
        let min_available = desired(&self.d).saturating_sub(max_unavailable(&self.d));
        let new = &self.rows[newest].set;
        let new_unavailable = size(new).saturating_sub(available(new));
        let total = sum(self.all(), size);
        let most = total.saturating_sub(min_available).saturating_sub(new_unavailable);
        if most <= 0 {
            return false;
        }
        let cleaned = self.shrink_unhealthy(&old, most);
        let stopped = self.shrink_healthy(&old, min_available);
        cleaned || stopped
    }

    /// Pods that are not available may go without harm (upstream's `cleanupUnhealthyReplicas`).
    fn shrink_unhealthy(&mut self, old: &[usize], most: i32) -> bool {
        let mut done = 0;
        for row in old {
            let set = &self.rows[*row].set;
            let unhealthy = size(set).saturating_sub(available(set)).max(0).min(most - done);
            if unhealthy > 0 {
                let replicas = size(set) - unhealthy;
                self.scale_to(*row, replicas);
                done += unhealthy;
            }
        }
        done > 0
    }

    /// Available pods above the minimum may go (upstream's `scaleDownOldReplicaSetsForRollingUpdate`).
    fn shrink_healthy(&mut self, old: &[usize], min_available: i32) -> bool {
        let mut surplus = sum(self.all(), available).saturating_sub(min_available);
        let mut changed = false;
        for row in old {
            let fewer = self.size(*row).min(surplus);
            if fewer > 0 {
                let replicas = self.size(*row) - fewer;
                changed |= self.scale_to(*row, replicas);
                surplus -= fewer;
            }
        }
        changed
    }

    fn recreate(&mut self) -> DeploymentStatus {
        let old = self.old_active();
        if !old.is_empty() {
            for row in old {
                self.scale_to(row, 0);
            }
            return self.rollout_status();
        }
        if self.old_pods_running() {
            return self.rollout_status();
        }
        self.sync_revision(true);
        if let Some(newest) = self.newest
            && self.size(newest) != desired(&self.d)
        {
            self.scale_to(newest, desired(&self.d));
        }
        if status::complete(&self.d, &self.d.status.clone().unwrap_or_default()) {
            self.clean_up();
        }
        self.rollout_status()
    }

    fn old_pods_running(&self) -> bool {
        if self.old().any(|i| actual(&self.rows[i].set) > 0) {
            return true;
        }
        let newest = self.newest().and_then(ResourceExt::uid);
        let old = self.pods.iter().filter(|(uid, _)| Some(*uid) != newest.as_ref());
        old.flat_map(|(_, pods)| pods).any(|p| !pods::is_terminal(p))
    }

    /// Deletes the oldest empty sets beyond the history limit.
    fn clean_up(&mut self) {
        let Some(limit) = strategy::history_limit(&self.d) else { return };
        let mut old: Vec<usize> =
            self.old().filter(|i| self.rows[*i].set.metadata.deletion_timestamp.is_none()).collect();
        let surplus = old.len().saturating_sub(limit);
        old.sort_by_key(|i| (revision::of(&self.rows[*i].set), *i));
        for row in old.into_iter().take(surplus) {
            let set = &self.rows[row].set;
            let observed = set.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0);
            let settled = set.metadata.generation.unwrap_or(0) <= observed;
            if actual(set) == 0 && size(set) == 0 && settled {
                self.deletes.extend(self.rows[row].seen.clone());
            }
        }
    }

    /// The differences between what was seen and what shall be.
    fn ops(&self) -> Vec<Op> {
        let mut ops = Vec::new();
        for row in &self.rows {
            match &row.seen {
                None => ops.push(Op::Create(Box::new(row.set.clone()))),
                Some(seen) => ops.extend(update(seen, &row.set)),
            }
        }
        // Growing first: availability comes before thrift.
        ops.sort_by_key(|op| match op {
            Op::Create(_) => 0,
            Op::Update { set, replicas: Some(n), .. } if *n < size(set) => 2,
            _ => 1,
        });
        ops.extend(self.deletes.iter().cloned().map(Op::Delete));
        ops.extend(self.revision.clone().map(Op::SetRevision));
        ops
    }
}

fn update(seen: &Arc<ReplicaSet>, set: &ReplicaSet) -> Option<Op> {
    let old = seen.annotations();
    let annotations: BTreeMap<String, String> = set
        .annotations()
        .iter()
        .filter(|(k, v)| old.get(*k) != Some(*v))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let min_ready = |s: &ReplicaSet| s.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let replicas = Some(size(set)).filter(|n| *n != size(seen));
    let min_ready_seconds = Some(min_ready(set)).filter(|n| *n != min_ready(seen));
    let changed = replicas.is_some() || min_ready_seconds.is_some() || !annotations.is_empty();
    changed.then(|| Op::Update { set: seen.clone(), replicas, min_ready_seconds, annotations })
}
