//! Pods that nobody will clean up otherwise (upstream's `pkg/controller/podgc`): terminated ones beyond a threshold,
//! those of nodes that are gone, and those deleted before they had a node.
//!
//! A node counts as gone only after a quarantine and a live look.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, ResourceExt};
use parking_lot::Mutex;
use scaleup_api::pods;
use serde_json::json;
use tokio::time::Instant;

use crate::base::calls::{self, Error, call};
use crate::base::key::Key;
use crate::base::worker::{Outcome, Reconcile};
use crate::context::Context;

/// Most pods deleted at once.
const CONCURRENCY: usize = 16;

/// Works until shutdown; woken by time only.
pub fn start(cx: Context) -> BoxFuture<'static, ()> {
    let queue = cx.queue("podgc");
    let controller = Controller { cx: cx.clone(), missing: Mutex::default() };
    async move {
        let i = cx.informers.clone();
        let caches = async { tokio::join!(i.pods.synced(), i.nodes.synced()) };
        if cx.ready(caches).await {
            queue.add(Key::default());
            crate::base::worker::run("podgc", queue, Arc::new(controller), 1, cx.shutdown).await;
        }
    }
    .boxed()
}

/// Why a pod goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// Too many terminated pods.
    Terminated,
    /// Its node is gone.
    Orphaned,
    /// Deleted without ever having had a node.
    Unscheduled,
}

fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

/// Which pods to delete, and why. `gone` holds the nodes that are certainly gone. Pure.
fn plan(pods: &[Arc<Pod>], threshold: usize, gone: &dyn Fn(&str) -> bool) -> Vec<(Arc<Pod>, Reason)> {
    let mut found: Vec<(Arc<Pod>, Reason)> = Vec::new();
    let mut terminated: Vec<&Arc<Pod>> = Vec::new();
    for pod in pods {
        if !node(pod).is_empty() && gone(node(pod)) {
            found.push((pod.clone(), Reason::Orphaned));
        } else if node(pod).is_empty() && pod.metadata.deletion_timestamp.is_some() {
            found.push((pod.clone(), Reason::Unscheduled));
        } else if pods::is_terminal(pod) && pod.metadata.deletion_timestamp.is_none() {
            terminated.push(pod);
        }
    }
    if threshold > 0 && terminated.len() > threshold {
        // Evicted ones first, then the oldest.
        let evicted = |p: &Pod| p.status.as_ref().and_then(|s| s.reason.as_deref()) == Some("Evicted");
        terminated.sort_by_key(|p| (!evicted(p), p.metadata.creation_timestamp.clone(), p.name_any()));
        let surplus = terminated.len() - threshold;
        found.extend(terminated.into_iter().take(surplus).map(|p| (p.clone(), Reason::Terminated)));
    }
    found
}

struct Controller {
    cx: Context,
    /// Nodes that pods name and that do not exist → since when.
    missing: Mutex<HashMap<String, Instant>>,
}

#[async_trait]
impl Reconcile for Controller {
    type Key = Key;

    async fn reconcile(&self, _: &Key) -> Result<Outcome, Error> {
        let pods = self.cx.informers.pods.list();
        let gone = self.gone_nodes(&pods).await?;
        let found = plan(&pods, self.cx.config.terminated_pod_gc_threshold, &|n| gone.iter().any(|g| g == n));
        let mut results = Vec::new();
        for chunk in found.chunks(CONCURRENCY) {
            results.extend(join_all(chunk.iter().map(|(pod, reason)| self.delete(pod, *reason))).await);
        }
        calls::all(results)?;
        let quarantine = self.cx.config.pod_gc_quarantine;
        let period = self.cx.config.pod_gc_period;
        let pending = !self.missing.lock().is_empty();
        Ok(Outcome::After(if pending { period.min(quarantine).max(Duration::from_millis(10)) } else { period }))
    }
}

impl Controller {
    /// Nodes that have been missing for the quarantine and that a live look does not find either.
    async fn gone_nodes(&self, pods: &[Arc<Pod>]) -> Result<Vec<String>, Error> {
        let nodes = &self.cx.informers.nodes;
        let mut names: Vec<&str> = pods.iter().map(|p| node(p)).filter(|n| !n.is_empty()).collect();
        names.sort_unstable();
        names.dedup();
        names.retain(|n| nodes.get(&Key::new("", *n)).is_none());
        let now = Instant::now();
        let due: Vec<String> = {
            let mut missing = self.missing.lock();
            missing.retain(|name, _| names.contains(&name.as_str()));
            let quarantine = self.cx.config.pod_gc_quarantine;
            names.retain(|name| now - *missing.entry((*name).to_owned()).or_insert(now) >= quarantine);
            names.into_iter().map(str::to_owned).collect()
        };
        let api: Api<Node> = Api::all(self.cx.client.clone());
        let mut gone = Vec::new();
        for name in due {
            if call("get Node", &name, api.get_metadata_opt(&name)).await?.is_none() {
                gone.push(name);
            }
        }
        Ok(gone)
    }

    async fn delete(&self, pod: &Pod, reason: Reason) -> Result<(), Error> {
        let (name, key) = (pod.name_any(), Key::of(pod));
        let api: Api<Pod> = Api::namespaced(self.cx.client.clone(), &key.namespace);
        if reason != Reason::Terminated && !pods::is_terminal(pod) {
            // Whoever counts this pod must see that it failed before it vanishes.
            let patch = failed_patch(pod, reason);
            calls::gone_is_fine(calls::merge_status("patch Pod status", &api, &name, &patch).await)?;
        }
        let mut params = calls::delete_uid(&pod.uid().unwrap_or_default());
        params.grace_period_seconds = Some(0);
        match call("delete Pod", &key, api.delete(&name, &params)).await {
            Err(e) if !e.is_not_found() && !e.is_conflict() => Err(e),
            _ => {
                tracing::info!(pod = %key, ?reason, "pod garbage collected");
                Ok(())
            }
        }
    }
}

/// Phase Failed, and for orphans the condition that says why.
fn failed_patch(pod: &Pod, reason: Reason) -> serde_json::Value {
    let mut patch = json!({"metadata": {"uid": pod.uid()}, "status": {"phase": "Failed"}});
    if reason == Reason::Orphaned {
        let mut conditions = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        conditions.retain(|c| c.type_ != "DisruptionTarget");
        let mut conditions = json!(conditions);
        if let Some(list) = conditions.as_array_mut() {
            list.push(json!({
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                "message": "PodGC: node no longer exists", "lastTransitionTime": scaleup_api::time::now(),
            }));
        }
        patch["status"]["conditions"] = conditions;
    }
    patch
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, node: &str, phase: &str, created: i64, deleting: bool) -> Arc<Pod> {
        let time = k8s_openapi::jiff::Timestamp::from_second(created).unwrap();
        let value = json!({
            "metadata": {"name": name, "creationTimestamp": time},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": phase},
        });
        let mut pod: Pod = serde_json::from_value(value).unwrap();
        pod.metadata.deletion_timestamp = deleting.then(scaleup_api::time::now);
        Arc::new(pod)
    }

    fn check(pods: &[Arc<Pod>], threshold: usize, want: &[(&str, Reason)]) {
        let found = plan(pods, threshold, &|n| n == "gone");
        let found: Vec<_> = found.iter().map(|(p, r)| (p.name_any(), *r)).collect();
        let want: Vec<_> = want.iter().map(|(n, r)| ((*n).to_owned(), *r)).collect();
        assert_eq!(found, want);
    }

    #[test]
    fn what_nobody_cleans_up_goes() {
        let pods = [
            pod("running", "n1", "Running", 1, false),
            pod("orphan", "gone", "Running", 1, false),
            pod("orphan-done", "gone", "Succeeded", 1, false),
            pod("unscheduled", "", "Pending", 1, true),
            pod("pending", "", "Pending", 1, false),
            pod("terminating", "n1", "Running", 1, true),
        ];
        let want =
            [("orphan", Reason::Orphaned), ("orphan-done", Reason::Orphaned), ("unscheduled", Reason::Unscheduled)];
        check(&pods, 0, &want);
    }

    #[test]
    fn the_oldest_terminated_pods_go_beyond_the_threshold() {
        let pods = [
            pod("young", "n1", "Succeeded", 30, false),
            pod("old", "n1", "Failed", 10, false),
            pod("middle", "n1", "Succeeded", 20, false),
            pod("going", "n1", "Succeeded", 1, true),
        ];
        check(&pods, 1, &[("old", Reason::Terminated), ("middle", Reason::Terminated)]);
        check(&pods, 3, &[]);
        check(&pods, 0, &[]);
        let mut evicted = (*pods[0]).clone();
        evicted.status.as_mut().unwrap().reason = Some("Evicted".into());
        let pods = [Arc::new(evicted), pods[1].clone()];
        check(&pods, 1, &[("young", Reason::Terminated)]);
    }

    #[test]
    fn orphans_say_why_they_failed() {
        let patch = failed_patch(&pod("a", "gone", "Running", 1, false), Reason::Orphaned);
        assert_eq!(patch["status"]["phase"], "Failed");
        assert_eq!(patch["status"]["conditions"][0]["reason"], "DeletionByPodGC");
        let patch = failed_patch(&pod("a", "", "Pending", 1, true), Reason::Unscheduled);
        assert_eq!(patch["status"].get("conditions"), None);
    }
}
