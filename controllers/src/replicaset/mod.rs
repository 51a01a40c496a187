//! ReplicaSets: keep `spec.replicas` pods of a template running (upstream's `pkg/controller/replicaset`).
//!
//! Never creates or deletes while earlier creates or deletes have not shown up in the cache.

mod plan;
mod rank;

use std::sync::Arc;

use async_trait::async_trait;
use futures::future::{BoxFuture, join, join_all};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt};
use scaleup_api::owner::{controller_of, controller_ref};
use scaleup_api::{LabelSelector, pods};

use self::plan::{Failure, Plan};
use crate::base::calls::{self, Error, call};
use crate::base::events::{Recorder, Severity};
use crate::base::expectations::{Expectations, State};
use crate::base::informer::Change;
use crate::base::key::Key;
use crate::base::queue::Queue;
use crate::base::refs;
use crate::base::worker::{Outcome, Reconcile};
use crate::context::{BY_OWNER, Context, ORPHANS};

/// Subscribes and works until shutdown.
pub fn start(cx: Context) -> BoxFuture<'static, ()> {
    let queue = cx.queue("replicaset");
    let expectations = Arc::new(Expectations::default());
    let (q, e) = (queue.clone(), expectations.clone());
    cx.informers.replica_sets.subscribe(move |change| {
        if let Some(set) = change.latest() {
            q.add(Key::of(set.as_ref()));
        }
        if let (Some(old), None) = (change.old, change.new) {
            e.forget(&Key::of(old.as_ref()));
        }
    });
    let (q, e, inner) = (queue.clone(), expectations.clone(), cx.clone());
    cx.informers.pods.subscribe(move |change| pod_changed(change, &inner, &q, &e));
    let controller =
        Controller { recorder: cx.recorder.for_component("replicaset-controller"), cx: cx.clone(), expectations };
    let i = cx.informers.clone();
    let caches = join(i.pods.synced(), i.replica_sets.synced());
    cx.work("replicaset", queue, controller, &i.replica_sets, caches)
}

/// Wakes the owners of a pod, old and new, and takes note of what was expected.
fn pod_changed(change: &Change<'_, Pod>, cx: &Context, queue: &Queue<Key>, expectations: &Expectations) {
    let owner_key = |pod: &Pod| {
        let r = controller_of(&pod.metadata).filter(|r| r.kind == "ReplicaSet")?;
        Some(Key::new(pod.namespace().unwrap_or_default(), r.name.clone()))
    };
    let Some(latest) = change.latest() else { return };
    let key = owner_key(latest);
    if let Some(key) = &key {
        if change.old.is_none() {
            expectations.observed_create(key, &latest.name_any());
        }
        if change.new.is_none() || latest.metadata.deletion_timestamp.is_some() {
            expectations.observed_delete(key, &latest.uid().unwrap_or_default());
        }
        queue.add(key.clone());
    }
    if let Some(old_key) = change.old.and_then(|old| owner_key(old)).filter(|k| Some(k) != key.as_ref()) {
        queue.add(old_key);
    }
    if key.is_none() && change.new.is_some() && controller_of(&latest.metadata).is_none() {
        // An orphan: whoever selects it may adopt it.
        let labels = latest.metadata.labels.clone().unwrap_or_default();
        for set in cx.informers.replica_sets.list_in(&latest.namespace().unwrap_or_default()) {
            let selector = set.spec.as_ref().map(|s| LabelSelector::from_k8s(&s.selector));
            if matches!(selector, Some(Ok(s)) if !s.is_everything() && s.matches(&labels)) {
                queue.add(Key::of(set.as_ref()));
            }
        }
    }
}

struct Controller {
    cx: Context,
    recorder: Recorder,
    expectations: Arc<Expectations>,
}

#[async_trait]
impl Reconcile for Controller {
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(set) = self.cx.informers.replica_sets.get(key) else {
            self.expectations.forget(key);
            return Ok(Outcome::Done);
        };
        let spec = set.spec.clone().unwrap_or_default();
        let selector = LabelSelector::from_k8s(&spec.selector)
            .map_err(|e| Error::Unusable { object: key.to_string(), message: e.to_string() })?;
        let state = self.check_expectations(key).await?;
        let owned = self.claim(key, &set, &selector).await?;
        let mut active: Vec<Arc<Pod>> = owned.into_iter().filter(|p| pods::is_active(p)).collect();
        active.sort_by_key(|p| p.name_any());

        let may_manage = state == State::Satisfied && set.metadata.deletion_timestamp.is_none();
        let managed = if may_manage { self.manage(key, &set, active.clone()).await } else { Ok(()) };
        let failure = managed.as_ref().err().map(|(f, _)| f);
        self.update_status(key, &set, &active, may_manage, failure).await?;
        if let Err((_, e)) = managed {
            return Err(e);
        }
        let now = scaleup_api::time::now().0;
        let waiting = match state {
            State::Waiting(d) => Some(d),
            _ => None,
        };
        let next = waiting.into_iter().chain(plan::next_available(&set, &active, now)).min();
        Ok(next.map_or(Outcome::Done, Outcome::After))
    }
}

impl Controller {
    fn pods(&self, key: &Key) -> Api<Pod> {
        Api::namespaced(self.cx.client.clone(), &key.namespace)
    }

    /// Looks up what has not shown up for long, so that a lost answer or event never blocks the set.
    async fn check_expectations(&self, key: &Key) -> Result<State, Error> {
        let State::Overdue { creates, deletes } = self.expectations.state(key) else {
            return Ok(self.expectations.state(key));
        };
        let api = self.pods(key);
        for name in creates {
            let live = call("get Pod", &name, api.get_metadata_opt(&name)).await?;
            let cached = self.cx.informers.pods.get(&Key::new(key.namespace.clone(), name.clone())).is_some();
            if live.is_none() || cached {
                self.expectations.observed_create(key, &name);
            }
        }
        for (name, uid) in deletes {
            let live = call("get Pod", &name, api.get_metadata_opt(&name)).await?;
            if live.is_none_or(|p| p.uid().as_ref() != Some(&uid) || p.metadata.deletion_timestamp.is_none()) {
                self.expectations.observed_delete(key, &uid);
            }
        }
        match self.expectations.state(key) {
            State::Overdue { .. } => Err(Error::Stale { object: key.to_string() }),
            state => Ok(state),
        }
    }

    /// The pods of the set, after adoption and release.
    async fn claim(&self, key: &Key, set: &Arc<ReplicaSet>, selector: &LabelSelector) -> Result<Vec<Arc<Pod>>, Error> {
        let pods = &self.cx.informers.pods;
        let mut candidates = pods.indexed(BY_OWNER, set.metadata.uid.as_deref().unwrap_or_default());
        if !selector.is_everything() {
            candidates.extend(pods.indexed(ORPHANS, &key.namespace).into_iter().filter(|p| pods::is_active(p)));
        }
        let claims = refs::plan(&set.metadata, selector, candidates);
        let owner = controller_ref::<ReplicaSet>(&set.metadata);
        let what = refs::What { adopt: "adopt Pod", release: "release Pod" };
        claims.carry_out(what, &self.pods(key), &owner, self.still_alive(key, set)).await
    }

    /// A live look before adopting: the cached set may be deleted, or another of the same name (upstream's `CanAdopt`).
    async fn still_alive(&self, key: &Key, set: &ReplicaSet) -> Result<bool, Error> {
        let api: Api<ReplicaSet> = Api::namespaced(self.cx.client.clone(), &key.namespace);
        let live = call("get ReplicaSet", key, api.get_metadata_opt(&key.name)).await?;
        Ok(live.is_some_and(|l| l.metadata.uid == set.metadata.uid && l.metadata.deletion_timestamp.is_none()))
    }

    /// All pods of ReplicaSets with the same owner: during a rollout, crowding counts old and new together.
    fn related(&self, set: &ReplicaSet) -> Vec<Arc<Pod>> {
        let informers = &self.cx.informers;
        let siblings = match controller_of(&set.metadata) {
            Some(r) => informers.replica_sets.indexed(BY_OWNER, &r.uid).iter().filter_map(|s| s.uid()).collect(),
            None => vec![set.uid().unwrap_or_default()],
        };
        siblings.iter().flat_map(|uid| informers.pods.indexed(BY_OWNER, uid)).collect()
    }

    async fn manage(&self, key: &Key, set: &ReplicaSet, active: Vec<Arc<Pod>>) -> Result<(), (Failure, Error)> {
        let now = scaleup_api::time::now().0;
        let Plan { create, delete } = plan::plan(set, active, &self.related(set), now);
        if create > 0 {
            return self.create_pods(key, set, create).await;
        }
        self.delete_pods(key, set, delete).await
    }

    async fn create_pods(&self, key: &Key, set: &ReplicaSet, count: usize) -> Result<(), (Failure, Error)> {
        let api = self.pods(key);
        for batch in plan::slow_start(count) {
            let results = join_all((0..batch).map(|_| self.create_pod(key, set, &api))).await;
            if let Some(e) = results.into_iter().find_map(Result::err) {
                let failure = Failure { reason: "FailedCreate", message: e.user_message() };
                return Err((failure, e));
            }
        }
        Ok(())
    }

    async fn create_pod(&self, key: &Key, set: &ReplicaSet, api: &Api<Pod>) -> Result<(), Error> {
        let pod = plan::new_pod(set);
        let name = pod.name_any();
        self.expectations.expect_create(key, &name);
        match calls::create("create Pod", api, &name, &pod).await {
            Ok(_) => {
                self.recorder.event(set, Severity::Normal, "SuccessfulCreate", format!("Created pod: {name}"));
                Ok(())
            }
            Err(e) if e.is_namespace_terminating() => {
                self.expectations.observed_create(key, &name);
                Ok(())
            }
            Err(e) => {
                if e.is_refusal() {
                    self.expectations.observed_create(key, &name);
                } else {
                    self.expectations.lost_create(key, &name);
                }
                let message = format!("Error creating: {}", e.user_message());
                self.recorder.event(set, Severity::Warning, "FailedCreate", message);
                Err(e)
            }
        }
    }

    async fn delete_pods(&self, key: &Key, set: &ReplicaSet, pods: Vec<Arc<Pod>>) -> Result<(), (Failure, Error)> {
        let api = self.pods(key);
        for pod in &pods {
            self.expectations.expect_delete(key, &pod.name_any(), &pod.uid().unwrap_or_default());
        }
        let results = join_all(pods.iter().map(|pod| self.delete_pod(key, set, &api, pod))).await;
        match results.into_iter().find_map(Result::err) {
            Some(e) => Err((Failure { reason: "FailedDelete", message: e.user_message() }, e)),
            None => Ok(()),
        }
    }

    async fn delete_pod(&self, key: &Key, set: &ReplicaSet, api: &Api<Pod>, pod: &Pod) -> Result<(), Error> {
        let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
        match call("delete Pod", &name, api.delete(&name, &calls::delete_uid(&uid))).await {
            Ok(_) => {
                self.recorder.event(set, Severity::Normal, "SuccessfulDelete", format!("Deleted pod: {name}"));
                Ok(())
            }
            Err(e) if e.is_not_found() || e.is_conflict() => {
                // Gone, or another pod of that name: this one needs no deleting any more.
                self.expectations.observed_delete(key, &uid);
                Ok(())
            }
            Err(e) => {
                if e.is_refusal() {
                    self.expectations.observed_delete(key, &uid);
                } else {
                    self.expectations.lost_delete(key, &uid);
                }
                let message = format!("Error deleting: {}", e.user_message());
                self.recorder.event(set, Severity::Warning, "FailedDelete", message);
                Err(e)
            }
        }
    }

    async fn update_status(
        &self,
        key: &Key,
        set: &ReplicaSet,
        active: &[Arc<Pod>],
        managed: bool,
        failure: Option<&Failure>,
    ) -> Result<(), Error> {
        let status = plan::status(set, active, managed, failure, scaleup_api::time::now().0);
        if set.status.as_ref().is_some_and(|old| plan::same(old, &status)) {
            return Ok(());
        }
        let api: Api<ReplicaSet> = Api::namespaced(self.cx.client.clone(), &key.namespace);
        let mut updated = set.clone();
        updated.status = Some(status);
        calls::gone_is_fine(calls::replace_status("update ReplicaSet status", &api, &key.name, &updated).await)
    }
}
