//! EndpointSlices of Services with a selector (upstream's `pkg/controller/endpointslice`).
//!
//! A pod's deletion or readiness reaches its slices at once: nothing is batched, because rolling updates lose requests
//! otherwise. Slices of others (mirrored, hand-made) are never touched.

pub mod plan;
pub mod pods;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::{BoxFuture, join_all, join4};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, ResourceExt};
use scaleup_api::LabelSelector;
use scaleup_api::well_known::{LABEL_MANAGED_BY_SLICE, LABEL_SERVICE_NAME, LABEL_ZONE};

use self::plan::{MANAGER, Observed, Op};
use crate::base::calls::{self, Error, call};
use crate::base::events::{Recorder, Severity};
use crate::base::expectations::{Expectations, State};
use crate::base::informer::Change;
use crate::base::key::Key;
use crate::base::queue::Queue;
use crate::base::worker::{Outcome, Reconcile};
use crate::context::{BY_NODE, Context, Informers};

/// Subscribes and works until shutdown.
pub fn start(cx: Context) -> BoxFuture<'static, ()> {
    let queue = cx.queue("endpoint_slice");
    let expectations = Arc::new(Expectations::default());
    cx.informers.services.feed(&queue, |change| change.latest());
    let (q, informers) = (queue.clone(), cx.informers.clone());
    cx.informers.pods.subscribe(move |change| wake_services(change, &informers, &q));
    let (q, informers) = (queue.clone(), cx.informers.clone());
    cx.informers.nodes.subscribe(move |change| wake_zone(change, &informers, &q));
    let (q, e) = (queue.clone(), expectations.clone());
    cx.informers.endpoint_slices.subscribe(move |change| {
        let Some(slice) = change.latest().filter(|s| is_ours(s)) else { return };
        let Some(service) = slice.labels().get(LABEL_SERVICE_NAME) else { return };
        let key = Key::new(slice.namespace().unwrap_or_default(), service.clone());
        if change.old.is_none() {
            e.observed_create(&key, &slice.name_any());
        }
        q.add(key);
    });
    let controller =
        Controller { recorder: cx.recorder.for_component("endpoint-slice-controller"), cx: cx.clone(), expectations };
    let i = cx.informers.clone();
    let caches = join4(i.services.synced(), i.pods.synced(), i.nodes.synced(), i.endpoint_slices.synced());
    cx.work("endpointslice", queue, controller, &i.services, caches)
}

fn is_ours(slice: &EndpointSlice) -> bool {
    slice.labels().get(LABEL_MANAGED_BY_SLICE).is_some_and(|m| m == MANAGER)
}

/// Adds the Services that select a pod, before or after a change that matters.
pub fn wake_services(change: &Change<'_, Pod>, informers: &Informers, queue: &Queue<Key>) {
    if let (Some(old), Some(new)) = (change.old, change.new)
        && !pods::matters(old, new)
    {
        return;
    }
    let Some(latest) = change.latest() else { return };
    for service in informers.services.list_in(&latest.namespace().unwrap_or_default()) {
        let Some(selector) = selector(&service) else { continue };
        let selected = |pod: &Arc<Pod>| selector.matches(pod.labels());
        if change.old.is_some_and(selected) || change.new.is_some_and(selected) {
            queue.add(Key::of(service.as_ref()));
        }
    }
}

/// Adds the Services of a node's pods when its zone becomes known or changes: endpoints carry it.
fn wake_zone(change: &Change<'_, Node>, informers: &Informers, queue: &Queue<Key>) {
    let zone = |node: Option<&Arc<Node>>| node.and_then(|n| n.labels().get(LABEL_ZONE).cloned());
    if zone(change.old) == zone(change.new) {
        return;
    }
    let Some(node) = change.latest() else { return };
    for pod in informers.pods.indexed(BY_NODE, &node.name_any()) {
        wake_services(&Change { old: None, new: Some(&pod) }, informers, queue);
    }
}

/// The Service's selector, if it has one and endpoints follow from it.
pub fn selector(service: &Service) -> Option<LabelSelector> {
    let spec = service.spec.as_ref()?;
    let map = spec.selector.as_ref().filter(|m| !m.is_empty())?;
    (spec.type_.as_deref() != Some("ExternalName")).then(|| LabelSelector::from_map(map))
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
        let informers = &self.cx.informers;
        let Some(service) = informers.services.get(key).filter(|s| s.metadata.deletion_timestamp.is_none()) else {
            // The slices have an owner reference: the garbage collector takes them.
            self.expectations.forget(key);
            return Ok(Outcome::Done);
        };
        let Some(selector) = selector(&service) else { return Ok(Outcome::Done) };
        if let Some(wait) = self.check_expectations(key).await? {
            return Ok(Outcome::After(wait));
        }
        let mut pods = informers.pods.list_in(&key.namespace);
        pods.retain(|p| selector.matches(p.labels()));
        let mut slices = informers.endpoint_slices.list_in(&key.namespace);
        slices.retain(|s| is_ours(s) && s.labels().get(LABEL_SERVICE_NAME) == Some(&key.name));
        let names = pods.iter().filter_map(|p| p.spec.as_ref().and_then(|s| s.node_name.clone()));
        let nodes: HashMap<_, _> =
            names.filter_map(|n| Some((n.clone(), informers.nodes.get(&Key::new("", n))?))).collect();
        let ops = plan::plan(&Observed { service: &service, pods: &pods, nodes: &nodes, slices: &slices });
        let results = join_all(ops.into_iter().map(|op| self.apply(key, op))).await;
        let result = calls::all(results);
        if let Err(e) = &result
            && !e.is_conflict()
            && !e.is_namespace_terminating()
        {
            let text = format!("Error updating Endpoint Slices for Service {key}: {}", e.user_message());
            self.recorder.event(service.as_ref(), Severity::Warning, "FailedToUpdateEndpointSlices", text);
        }
        result.map(|()| Outcome::Done)
    }
}

impl Controller {
    fn api(&self, key: &Key) -> Api<EndpointSlice> {
        Api::namespaced(self.cx.client.clone(), &key.namespace)
    }

    /// How long to wait for slices that were created and are not cached yet; looks up those that stay away.
    async fn check_expectations(&self, key: &Key) -> Result<Option<std::time::Duration>, Error> {
        match self.expectations.state(key) {
            State::Satisfied => Ok(None),
            State::Waiting(wait) => Ok(Some(wait)),
            State::Overdue { creates, .. } => {
                for name in creates {
                    let live = call("get EndpointSlice", &name, self.api(key).get_metadata_opt(&name)).await?;
                    let cached =
                        self.cx.informers.endpoint_slices.get(&Key::new(key.namespace.clone(), name.clone())).is_some();
                    if live.is_none() || cached {
                        self.expectations.observed_create(key, &name);
                    }
                }
                match self.expectations.state(key) {
                    State::Satisfied => Ok(None),
                    _ => Err(Error::Stale { object: key.to_string() }),
                }
            }
        }
    }

    async fn apply(&self, key: &Key, op: Op) -> Result<(), Error> {
        let api = self.api(key);
        match op {
            Op::Create(slice) => {
                let name = slice.name_any();
                self.expectations.expect_create(key, &name);
                let created = calls::create("create EndpointSlice", &api, &name, &slice).await;
                match created {
                    Ok(_) => Ok(()),
                    Err(e) => {
                        if e.is_refusal() {
                            self.expectations.observed_create(key, &name);
                        } else {
                            self.expectations.lost_create(key, &name);
                        }
                        if e.is_namespace_terminating() { Ok(()) } else { Err(e) }
                    }
                }
            }
            Op::Replace(slice) => {
                let name = slice.name_any();
                calls::replace("update EndpointSlice", &api, &name, &slice).await.map(|_| ())
            }
            Op::Delete(slice) => {
                let (name, params) = (slice.name_any(), calls::delete_uid(&slice.uid().unwrap_or_default()));
                calls::gone_is_fine(call("delete EndpointSlice", &name, api.delete(&name, &params)).await)
            }
        }
    }
}
