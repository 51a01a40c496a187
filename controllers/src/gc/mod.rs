//! The garbage collector: dependents of owners that are gone go too (upstream's `pkg/controller/garbagecollector`).
//!
//! Watches decide what to look at, live reads decide what happens: an object is deleted only after each of its owners
//! was looked up by name and UID and found absent. A failed read or an unknown kind is never taken for absence.

mod decide;
mod graph;
mod monitors;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::{Api, Client};
use parking_lot::Mutex;
use scaleup_api::well_known::{FINALIZER_FOREGROUND, FINALIZER_ORPHAN};
use serde_json::json;

use self::decide::{Decision, OwnerState, decide};
use self::graph::{Graph, Item, Uid, has_finalizer, split_api_version};
use self::monitors::Monitors;
use crate::base::calls::{self, Error, call};
use crate::base::discovery::Kind;
use crate::base::queue::Queue;
use crate::base::refs;
use crate::base::worker::{self, Outcome, Reconcile};
use crate::context::Context;

/// Owners known to be absent (upstream's `absentOwnerCache`). UIDs are never used again, so an entry is never wrong.
const MAX_ABSENT: usize = 500;
/// Concurrent looks (upstream's `--concurrent-gc-syncs`).
const WORKERS: usize = 20;

/// Works until shutdown.
pub fn start(cx: Context) -> BoxFuture<'static, ()> {
    async move {
        let queue = cx.queue("garbage_collector_attempt_to_delete");
        let graph = Arc::new(Mutex::new(Graph::default()));
        let monitors = Arc::new(Monitors::new(cx.client.clone(), graph.clone(), queue.clone()));
        let collector = Collector {
            client: cx.client.clone(),
            graph: graph.clone(),
            monitors: monitors.clone(),
            queue: queue.clone(),
            absent: Mutex::default(),
        };
        let suspects = move || graph.lock().suspects();
        tokio::join!(
            monitors.run(cx.config.discovery_period, &cx.shutdown),
            worker::resync(queue.clone(), cx.config.resync_period, suspects, cx.shutdown.clone()),
            worker::run("garbagecollector", queue, Arc::new(collector), WORKERS, cx.shutdown.clone()),
        );
    }
    .boxed()
}

#[derive(Default)]
struct Absent {
    known: HashSet<(String, Uid)>,
    order: VecDeque<(String, Uid)>,
}

impl Absent {
    fn has(&self, namespace: &str, uid: &str) -> bool {
        self.known.contains(&(namespace.to_owned(), uid.to_owned()))
    }
    fn add(&mut self, namespace: &str, uid: &str) {
        let entry = (namespace.to_owned(), uid.to_owned());
        if self.known.insert(entry.clone()) {
            self.order.push_back(entry);
        }
        if self.order.len() > MAX_ABSENT
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

struct Collector {
    client: Client,
    graph: Arc<Mutex<Graph>>,
    monitors: Arc<Monitors>,
    queue: Arc<Queue<Uid>>,
    absent: Mutex<Absent>,
}

#[async_trait]
impl Reconcile for Collector {
    type Key = Uid;

    async fn reconcile(&self, uid: &Uid) -> Result<Outcome, Error> {
        if !self.monitors.settled() {
            // The graph is not complete: owners would be looked up in vain, and dependents missed for good.
            return Ok(Outcome::Done);
        }
        let (item, suspect) = {
            let graph = self.graph.lock();
            (graph.get(uid).cloned(), graph.is_suspect(uid))
        };
        let Some(item) = item.filter(|_| suspect) else { return Ok(Outcome::Done) };
        let Some(meta) = self.live(&item).await? else { return Ok(Outcome::Done) };
        if meta.deletion_timestamp.is_some() {
            if has_finalizer(&meta, FINALIZER_ORPHAN) {
                return self.orphan_dependents(&item, &meta).await;
            }
            if has_finalizer(&meta, FINALIZER_FOREGROUND) {
                return self.await_dependents(&item, &meta).await;
            }
            return Ok(Outcome::Done);
        }
        self.check_owners(&item, &meta).await
    }
}

impl Collector {
    fn api(&self, kind: &Kind, namespace: &str) -> Api<DynamicObject> {
        if kind.namespaced {
            Api::namespaced_with(self.client.clone(), namespace, &kind.resource)
        } else {
            Api::all_with(self.client.clone(), &kind.resource)
        }
    }

    /// The object's metadata now; `None` (and taken out of the graph) if it is gone.
    async fn live(&self, item: &Item) -> Result<Option<ObjectMeta>, Error> {
        let api = self.api(&item.kind, &item.namespace);
        let found = call("get", describe(item), api.get_metadata_opt(&item.name)).await?;
        let meta = found.map(|o| o.metadata).filter(|m| m.uid.as_ref() == Some(&item.uid));
        if meta.is_none() {
            let look = self.graph.lock().remove(&item.uid);
            look.into_iter().for_each(|uid| self.queue.add(uid));
        }
        Ok(meta)
    }

    async fn check_owners(&self, item: &Item, meta: &ObjectMeta) -> Result<Outcome, Error> {
        let mut owners = Vec::new();
        for reference in meta.owner_references.iter().flatten() {
            owners.push((reference.clone(), self.owner_state(item, reference).await?));
        }
        let dependents = self.graph.lock().dependents(&item.uid);
        let api = self.api(&item.kind, &item.namespace);
        match decide(meta, &owners, &dependents) {
            Decision::Keep => {}
            Decision::DropReferences(uids) => {
                let uids: Vec<&str> = uids.iter().map(String::as_str).collect();
                self.patch(&api, item, refs::release_patch(meta, &uids)).await?;
            }
            Decision::Delete { policy, unblock: true } => {
                let mut references = meta.owner_references.clone().unwrap_or_default();
                references.iter_mut().for_each(|r| r.block_owner_deletion = Some(false));
                self.patch(&api, item, refs::owner_references_patch(meta, &references)).await?;
                self.delete(&api, item, None, policy).await?;
            }
            Decision::Delete { policy, unblock: false } => {
                self.delete(&api, item, meta.resource_version.clone(), policy).await?;
            }
        }
        Ok(Outcome::Done)
    }

    /// Looks an owner up, live, by name and UID.
    async fn owner_state(&self, item: &Item, reference: &OwnerReference) -> Result<OwnerState, Error> {
        let (group, _) = split_api_version(&reference.api_version);
        let Some(kind) = self.monitors.kind(group, &reference.kind) else {
            let message = format!("owner kind {} {} is not known", reference.api_version, reference.kind);
            return Err(Error::Discovery { message });
        };
        if kind.namespaced && item.namespace.is_empty() {
            // Not a valid reference: nothing can be concluded from it.
            return Ok(OwnerState::Solid);
        }
        let namespace = if kind.namespaced { item.namespace.as_str() } else { "" };
        if self.absent.lock().has(namespace, &reference.uid) {
            return Ok(OwnerState::Absent);
        }
        let api = self.api(&kind, namespace);
        let found = call("get owner", &reference.name, api.get_metadata_opt(&reference.name)).await?;
        match found.map(|o| o.metadata).filter(|m| m.uid.as_ref() == Some(&reference.uid)) {
            None => {
                self.absent.lock().add(namespace, &reference.uid);
                Ok(OwnerState::Absent)
            }
            Some(m) if m.deletion_timestamp.is_some() && has_finalizer(&m, FINALIZER_FOREGROUND) => {
                Ok(OwnerState::Waiting)
            }
            Some(_) => Ok(OwnerState::Solid),
        }
    }

    async fn delete(
        &self,
        api: &Api<DynamicObject>,
        item: &Item,
        resource_version: Option<String>,
        policy: PropagationPolicy,
    ) -> Result<(), Error> {
        tracing::debug!(object = %describe(item), ?policy, "no owner is left; deleting");
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: Some(item.uid.clone()), resource_version }),
            propagation_policy: Some(policy),
            ..DeleteParams::default()
        };
        calls::gone_is_fine(call("delete", describe(item), api.delete(&item.name, &params)).await)
    }

    async fn patch(&self, api: &Api<DynamicObject>, item: &Item, patch: serde_json::Value) -> Result<(), Error> {
        let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
        calls::gone_is_fine(call("patch", describe(item), api.patch_metadata(&item.name, &params, &patch)).await)
    }

    /// Frees the dependents of an object that is deleted with `propagationPolicy: Orphan`, then lets it go.
    async fn orphan_dependents(&self, item: &Item, meta: &ObjectMeta) -> Result<Outcome, Error> {
        let dependents = self.graph.lock().dependents(&item.uid);
        for dependent in dependents {
            let Some(dependent) = self.graph.lock().get(&dependent.uid).cloned() else { continue };
            let Some(live) = self.live(&dependent).await? else { continue };
            if live.owner_references.iter().flatten().any(|r| r.uid == item.uid) {
                let api = self.api(&dependent.kind, &dependent.namespace);
                self.patch(&api, &dependent, refs::release_patch(&live, &[&item.uid])).await?;
            }
        }
        self.remove_finalizer(item, meta, FINALIZER_ORPHAN).await
    }

    /// Lets go of an object deleted with `propagationPolicy: Foreground` once no dependent blocks it.
    async fn await_dependents(&self, item: &Item, meta: &ObjectMeta) -> Result<Outcome, Error> {
        let dependents = self.graph.lock().dependents(&item.uid);
        let blocking: Vec<_> = dependents.into_iter().filter(|d| d.blocking).collect();
        if blocking.is_empty() {
            return self.remove_finalizer(item, meta, FINALIZER_FOREGROUND).await;
        }
        // The last of them wakes this object when it goes.
        blocking.into_iter().filter(|d| !d.foreground).for_each(|d| self.queue.add(d.uid));
        Ok(Outcome::Done)
    }

    async fn remove_finalizer(&self, item: &Item, meta: &ObjectMeta, finalizer: &str) -> Result<Outcome, Error> {
        let left: Vec<&String> = meta.finalizers.iter().flatten().filter(|f| *f != finalizer).collect();
        let patch = json!({"metadata": {
            "uid": meta.uid,
            "resourceVersion": meta.resource_version,
            "finalizers": left,
        }});
        self.patch(&self.api(&item.kind, &item.namespace), item, patch).await?;
        Ok(Outcome::Done)
    }
}

fn describe(item: &Item) -> String {
    let slash = if item.namespace.is_empty() { "" } else { "/" };
    format!("{} {}{slash}{}", item.kind.resource.kind, item.namespace, item.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_absent_owner_cache_is_bounded() {
        let mut absent = Absent::default();
        for n in 0..2 * MAX_ABSENT {
            absent.add("ns", &n.to_string());
            absent.add("ns", &n.to_string());
        }
        assert_eq!((absent.known.len(), absent.order.len()), (MAX_ABSENT, MAX_ABSENT));
        assert!(absent.has("ns", &(2 * MAX_ABSENT - 1).to_string()));
        assert!(!absent.has("ns", "0"));
        assert!(
            !absent.has("other", &(2 * MAX_ABSENT - 1).to_string()),
            "a namespaced owner counts in its namespace only"
        );
    }
}
