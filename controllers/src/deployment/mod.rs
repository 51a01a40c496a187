//! Deployments: roll a template out over ReplicaSets (upstream's `pkg/controller/deployment`).
//!
//! Never touches pods; that is what ReplicaSets do.

mod plan;
mod revision;
mod status;
mod strategy;
mod template;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::{BoxFuture, join3};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Preconditions;
use kube::{Api, ResourceExt};
use scaleup_api::LabelSelector;
use scaleup_api::owner::{controller_of, controller_ref};
use serde_json::{Value, json};

use self::plan::{Observed, Op};
use crate::base::calls::{self, Error, call};
use crate::base::events::{Recorder, Severity};
use crate::base::informer::Change;
use crate::base::key::Key;
use crate::base::queue::Queue;
use crate::base::refs;
use crate::base::worker::{Outcome, Reconcile};
use crate::context::{BY_OWNER, Context, ORPHANS};

/// Subscribes and works until shutdown.
pub fn start(cx: Context) -> BoxFuture<'static, ()> {
    let queue = cx.queue("deployment");
    cx.informers.deployments.feed(&queue, |change| change.latest());
    let (q, inner) = (queue.clone(), cx.clone());
    cx.informers.replica_sets.subscribe(move |change| set_changed(change, &inner, &q));
    let (q, inner) = (queue.clone(), cx.clone());
    cx.informers.pods.subscribe(move |change| pod_changed(change, &inner, &q));
    let controller = Controller { recorder: cx.recorder.for_component("deployment-controller"), cx: cx.clone() };
    let i = cx.informers.clone();
    let caches = join3(i.deployments.synced(), i.replica_sets.synced(), i.pods.synced());
    cx.work("deployment", queue, controller, &i.deployments, caches)
}

fn owner_key(set: &ReplicaSet) -> Option<Key> {
    let r = controller_of(&set.metadata).filter(|r| r.kind == "Deployment")?;
    Some(Key::new(set.namespace().unwrap_or_default(), r.name.clone()))
}

fn set_changed(change: &Change<'_, ReplicaSet>, cx: &Context, queue: &Queue<Key>) {
    for set in change.old.into_iter().chain(change.new) {
        if let Some(key) = owner_key(set) {
            queue.add(key);
        }
    }
    let Some(new) = change.new.filter(|s| controller_of(&s.metadata).is_none()) else { return };
    let labels = new.metadata.labels.clone().unwrap_or_default();
    for d in cx.informers.deployments.list_in(&new.namespace().unwrap_or_default()) {
        let selector = d.spec.as_ref().map(|s| LabelSelector::from_k8s(&s.selector));
        if matches!(selector, Some(Ok(s)) if !s.is_everything() && s.matches(&labels)) {
            queue.add(Key::of(d.as_ref()));
        }
    }
}

/// Only `Recreate` cares: the last old pod must be gone before the first new one starts.
fn pod_changed(change: &Change<'_, Pod>, cx: &Context, queue: &Queue<Key>) {
    let Some(pod) = change.latest() else { return };
    let over = change.new.is_none_or(|p| scaleup_api::pods::is_terminal(p));
    let Some(r) = controller_of(&pod.metadata).filter(|r| over && r.kind == "ReplicaSet") else { return };
    let set = cx.informers.replica_sets.get(&Key::new(pod.namespace().unwrap_or_default(), r.name.clone()));
    if let Some(key) = set.and_then(|s| owner_key(&s))
        && cx.informers.deployments.get(&key).is_some_and(|d| !strategy::is_rolling(&d))
    {
        queue.add(key);
    }
}

struct Controller {
    cx: Context,
    recorder: Recorder,
}

#[async_trait]
impl Reconcile for Controller {
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(deployment) = self.cx.informers.deployments.get(key) else { return Ok(Outcome::Done) };
        let deployment = (*deployment).clone();
        let spec = deployment.spec.clone().unwrap_or_default();
        let selector = LabelSelector::from_k8s(&spec.selector)
            .map_err(|e| Error::Unusable { object: key.to_string(), message: e.to_string() })?;
        if selector.is_everything() {
            let text = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.event(&deployment, Severity::Warning, "SelectingAll", text.into());
            return Ok(Outcome::Done);
        }
        let sets = self.claim(key, &deployment, &selector).await?;
        let pods = if strategy::is_rolling(&deployment) { BTreeMap::new() } else { self.pods_of(&sets) };
        let now = scaleup_api::time::now().0;
        let plan = plan::plan(Observed { deployment: deployment.clone(), sets, pods, now });
        self.apply(key, deployment, plan.ops).await?;
        Ok(plan.again.map_or(Outcome::Done, Outcome::After))
    }
}

impl Controller {
    fn sets(&self, key: &Key) -> Api<ReplicaSet> {
        Api::namespaced(self.cx.client.clone(), &key.namespace)
    }
    fn deployments(&self, key: &Key) -> Api<Deployment> {
        Api::namespaced(self.cx.client.clone(), &key.namespace)
    }

    fn pods_of(&self, sets: &[Arc<ReplicaSet>]) -> BTreeMap<String, Vec<Arc<Pod>>> {
        let uids = sets.iter().filter_map(|s| s.uid());
        uids.map(|uid| (uid.clone(), self.cx.informers.pods.indexed(BY_OWNER, &uid))).collect()
    }

    /// The ReplicaSets of the Deployment, after adoption and release.
    async fn claim(&self, key: &Key, d: &Deployment, selector: &LabelSelector) -> Result<Vec<Arc<ReplicaSet>>, Error> {
        let cache = &self.cx.informers.replica_sets;
        let mut candidates = cache.indexed(BY_OWNER, d.metadata.uid.as_deref().unwrap_or_default());
        candidates.extend(cache.indexed(ORPHANS, &key.namespace));
        let claims = refs::plan(&d.metadata, selector, candidates);
        let owner = controller_ref::<Deployment>(&d.metadata);
        let what = refs::What { adopt: "adopt ReplicaSet", release: "release ReplicaSet" };
        claims.carry_out(what, &self.sets(key), &owner, self.still_alive(key, d)).await
    }

    async fn still_alive(&self, key: &Key, d: &Deployment) -> Result<bool, Error> {
        let live = call("get Deployment", key, self.deployments(key).get_metadata_opt(&key.name)).await?;
        Ok(live.is_some_and(|l| l.metadata.uid == d.metadata.uid && l.metadata.deletion_timestamp.is_none()))
    }

    async fn apply(&self, key: &Key, mut deployment: Deployment, ops: Vec<Op>) -> Result<(), Error> {
        for op in ops {
            match op {
                Op::Create(set) => self.create(key, &deployment, &set).await?,
                Op::Update { set, replicas, min_ready_seconds, annotations } => {
                    let patch = update_patch(&set, replicas, min_ready_seconds, &annotations);
                    let name = set.name_any();
                    calls::merge("patch ReplicaSet", &self.sets(key), &name, &patch).await?;
                    if let Some(to) = replicas {
                        self.scaled(&deployment, &name, strategy::size(&set), to);
                    }
                }
                Op::Delete(set) => {
                    let mut params = calls::delete_uid(&set.uid().unwrap_or_default());
                    params.preconditions =
                        Some(Preconditions { uid: set.uid(), resource_version: set.resource_version() });
                    let name = set.name_any();
                    calls::gone_is_fine(call("delete ReplicaSet", &name, self.sets(key).delete(&name, &params)).await)?;
                }
                Op::SetRevision(revision) => {
                    let patch = json!({"metadata": {
                        "uid": deployment.metadata.uid,
                        "resourceVersion": deployment.metadata.resource_version,
                        "annotations": {revision::REVISION: revision},
                    }});
                    let api = self.deployments(key);
                    deployment.metadata = calls::merge("patch Deployment", &api, &key.name, &patch).await?.metadata;
                }
                Op::Status(status) => self.write_status(key, &deployment, *status).await?,
            }
        }
        Ok(())
    }

    fn scaled(&self, d: &Deployment, set: &str, from: i32, to: i32) {
        let direction = if from < to { "up" } else { "down" };
        let text = format!("Scaled {direction} replica set {set} from {from} to {to}");
        self.recorder.event(d, Severity::Normal, "ScalingReplicaSet", text);
    }

    async fn write_status(&self, key: &Key, d: &Deployment, status: DeploymentStatus) -> Result<(), Error> {
        let mut updated = d.clone();
        updated.status = Some(status);
        let api = self.deployments(key);
        calls::gone_is_fine(calls::replace_status("update Deployment status", &api, &key.name, &updated).await)
    }

    async fn create(&self, key: &Key, d: &Deployment, set: &ReplicaSet) -> Result<(), Error> {
        let name = set.name_any();
        match calls::create("create ReplicaSet", &self.sets(key), &name, set).await {
            Ok(_) => {
                if strategy::size(set) > 0 {
                    self.scaled(d, &name, 0, strategy::size(set));
                }
                Ok(())
            }
            Err(e) if e.is_already_exists() => self.resolve_collision(key, d, set).await,
            Err(e) if e.is_namespace_terminating() => Err(e),
            Err(e) => {
                let text = format!("Failed to create new replica set {name:?}: {}", e.user_message());
                self.recorder.event(d, Severity::Warning, status::REPLICA_SET_CREATE_ERROR, text.clone());
                if strategy::progress_deadline(d).is_some() && e.is_refusal() {
                    let mut failed = d.status.clone().unwrap_or_default();
                    let now = scaleup_api::time::now().0;
                    let reason = status::REPLICA_SET_CREATE_ERROR;
                    status::set(&mut failed, status::condition(status::PROGRESSING, "False", reason, text, now));
                    if d.status.as_ref() != Some(&failed) {
                        self.write_status(key, d, failed).await?;
                    }
                }
                Err(e)
            }
        }
    }

    /// The name is taken: by our own set that the cache does not show yet, or by another template of the same hash.
    async fn resolve_collision(&self, key: &Key, d: &Deployment, set: &ReplicaSet) -> Result<(), Error> {
        let name = set.name_any();
        let Some(live) = call("get ReplicaSet", &name, self.sets(key).get_opt(&name)).await? else {
            return Err(Error::Stale { object: key.to_string() });
        };
        let template = |s: &ReplicaSet| s.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default();
        let ours = controller_of(&live.metadata).is_some_and(|r| Some(&r.uid) == d.metadata.uid.as_ref());
        if ours && template::equal_ignoring_hash(&template(&live), &template(set)) {
            return Err(Error::Stale { object: key.to_string() });
        }
        let mut bumped = d.status.clone().unwrap_or_default();
        bumped.collision_count = Some(bumped.collision_count.unwrap_or(0).saturating_add(1));
        self.write_status(key, d, bumped).await?;
        Err(Error::Stale { object: key.to_string() })
    }
}

/// A merge patch that fails with a conflict if the set has changed since it was observed.
fn update_patch(
    set: &ReplicaSet,
    replicas: Option<i32>,
    min_ready_seconds: Option<i32>,
    annotations: &BTreeMap<String, String>,
) -> Value {
    let mut patch = json!({"metadata": {
        "uid": set.metadata.uid,
        "resourceVersion": set.metadata.resource_version,
    }});
    if !annotations.is_empty() {
        patch["metadata"]["annotations"] = json!(annotations);
    }
    if let Some(n) = replicas {
        patch["spec"]["replicas"] = json!(n);
    }
    if let Some(n) = min_ready_seconds {
        patch["spec"]["minReadySeconds"] = json!(n);
    }
    patch
}
