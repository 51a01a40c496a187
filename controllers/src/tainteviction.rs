//! Pods leave nodes whose `NoExecute` taints they do not (or no longer) tolerate (upstream's taint eviction
//! controller).
//!
//! The time a pod may stay counts from the taint's `timeAdded`, so that a restart of the controller gives no second
//! grace.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::{BoxFuture, join};
use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};
use k8s_openapi::jiff::Timestamp;
use kube::{Api, ResourceExt};
use parking_lot::Mutex;
use scaleup_api::pods;
use serde_json::json;
use std::collections::HashMap;

use crate::base::calls::{self, Error, call};
use crate::base::events::{Recorder, Severity};
use crate::base::key::Key;
use crate::base::worker::{Outcome, Reconcile};
use crate::context::{BY_NODE, Context};

const NO_EXECUTE: &str = "NoExecute";

/// Subscribes and works until shutdown.
pub fn start(cx: Context) -> BoxFuture<'static, ()> {
    let queue = cx.queue("taint-eviction");
    let q = queue.clone();
    cx.informers.pods.subscribe(move |change| {
        let facts = |p: &Arc<Pod>| p.spec.as_ref().map(|s| (s.node_name.clone(), s.tolerations.clone()));
        if change.old.map(facts) != change.new.map(facts)
            && let Some(pod) = change.latest()
        {
            q.add(Key::of(pod.as_ref()));
        }
    });
    let (q, pods) = (queue.clone(), cx.informers.pods.clone());
    cx.informers.nodes.subscribe(move |change| {
        let taints = |n: &Arc<k8s_openapi::api::core::v1::Node>| n.spec.as_ref().and_then(|s| s.taints.clone());
        if let Some(new) = change.new
            && change.old.map(taints) != Some(taints(new))
        {
            pods.indexed(BY_NODE, &new.name_any()).iter().for_each(|p| q.add(Key::of(p.as_ref())));
        }
    });
    let controller = Controller {
        recorder: cx.recorder.for_component("taint-eviction-controller"),
        cx: cx.clone(),
        scheduled: Mutex::default(),
    };
    let i = cx.informers.clone();
    let caches = join(i.pods.synced(), i.nodes.synced());
    cx.work("tainteviction", queue, controller, &i.pods, caches)
}

/// What becomes of a pod.
#[derive(Debug, PartialEq)]
enum Fate {
    /// It may stay.
    Stay,
    /// It must go now.
    Evict,
    /// It must go then, unless something changes.
    EvictAfter(Duration),
}

/// Whether a toleration covers a taint (`Toleration.ToleratesTaint`).
fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let set = |t: &Option<String>| t.clone().filter(|t| !t.is_empty());
    let effect = set(&toleration.effect).is_none_or(|e| e == taint.effect);
    let key = set(&toleration.key).is_none_or(|k| k == taint.key);
    let value = match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => {
            set(&toleration.key).is_some()
                && toleration.value.clone().unwrap_or_default() == taint.value.clone().unwrap_or_default()
        }
        _ => false,
    };
    effect && key && value
}

/// What the taints of its node mean for a pod. `observed` stands in for taints without `timeAdded`. Pure.
fn plan(tolerations: &[Toleration], taints: &[Taint], observed: Timestamp, now: Timestamp) -> Fate {
    let mut deadline: Option<i64> = None;
    for taint in taints.iter().filter(|t| t.effect == NO_EXECUTE) {
        let Some(toleration) = tolerations.iter().find(|t| tolerates(t, taint)) else { return Fate::Evict };
        let Some(seconds) = toleration.toleration_seconds else { continue };
        let from = taint.time_added.as_ref().map_or(observed, |t| t.0);
        let due = from.as_second().saturating_add(seconds.max(0));
        deadline = Some(deadline.map_or(due, |d| d.min(due)));
    }
    match deadline.map(|d| d.saturating_sub(now.as_second())) {
        None => Fate::Stay,
        Some(left) => match u64::try_from(left) {
            Ok(left) if left > 0 => Fate::EvictAfter(Duration::from_secs(left)),
            _ => Fate::Evict,
        },
    }
}

struct Controller {
    cx: Context,
    recorder: Recorder,
    /// Pods waiting for their eviction → since when the taints are known.
    scheduled: Mutex<HashMap<Key, Timestamp>>,
}

#[async_trait]
impl Reconcile for Controller {
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let pod = self.cx.informers.pods.get(key).filter(|p| pods::is_active(p));
        let node = |p: &Pod| {
            let name = p.spec.as_ref().and_then(|s| s.node_name.clone()).filter(|n| !n.is_empty())?;
            self.cx.informers.nodes.get(&Key::new("", name))
        };
        let Some((pod, node)) = pod.and_then(|p| node(&p).map(|n| (p, n))) else {
            self.scheduled.lock().remove(key);
            return Ok(Outcome::Done);
        };
        let now = scaleup_api::time::now().0;
        let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.clone()).unwrap_or_default();
        let taints = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
        let observed = self.scheduled.lock().get(key).copied().unwrap_or(now);
        match plan(&tolerations, &taints, observed, now) {
            Fate::Stay => {
                if self.scheduled.lock().remove(key).is_some() {
                    let text = format!("Cancelling deletion of Pod {key}");
                    self.recorder.event(pod.as_ref(), Severity::Normal, "TaintManagerEviction", text);
                }
                Ok(Outcome::Done)
            }
            Fate::EvictAfter(left) => {
                self.scheduled.lock().entry(key.clone()).or_insert(now);
                Ok(Outcome::After(left))
            }
            Fate::Evict => {
                self.evict(key, &pod).await?;
                self.scheduled.lock().remove(key);
                Ok(Outcome::Done)
            }
        }
    }
}

impl Controller {
    async fn evict(&self, key: &Key, pod: &Pod) -> Result<(), Error> {
        let text = format!("Marking for deletion Pod {key}");
        self.recorder.event(pod, Severity::Normal, "TaintManagerEviction", text);
        let api: Api<Pod> = Api::namespaced(self.cx.client.clone(), &key.namespace);
        let mut conditions = json!(pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default());
        if let Some(list) = conditions.as_array_mut() {
            list.retain(|c| c["type"] != "DisruptionTarget");
            list.push(json!({
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
                "message": "Taint manager: deleting due to NoExecute taint",
                "lastTransitionTime": scaleup_api::time::now(),
            }));
        }
        let patch = json!({
            "metadata": {"uid": pod.uid(), "resourceVersion": pod.metadata.resource_version},
            "status": {"conditions": conditions},
        });
        calls::gone_is_fine(calls::merge_status("patch Pod status", &api, &key.name, &patch).await)?;
        let params = calls::delete_uid(&pod.uid().unwrap_or_default());
        match call("delete Pod", key, api.delete(&key.name, &params)).await {
            Err(e) if !e.is_not_found() && !e.is_conflict() => Err(e),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const NOW: i64 = 1_000_000;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn check(tolerations: Value, taints: Value, want: Fate) {
        let tolerations: Vec<Toleration> = serde_json::from_value(tolerations).unwrap();
        let mut taints: Vec<Taint> = serde_json::from_value(taints).unwrap();
        for taint in &mut taints {
            taint.time_added.get_or_insert(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(NOW - 100)));
        }
        assert_eq!(plan(&tolerations, &taints, at(NOW), at(NOW)), want, "{tolerations:?} {taints:?}");
    }

    #[test]
    fn taints_decide() {
        let dead = json!([{"key": "unreachable", "effect": "NoExecute"}]);
        check(json!([]), json!([]), Fate::Stay);
        check(json!([]), json!([{"key": "unreachable", "effect": "NoSchedule"}]), Fate::Stay);
        check(json!([]), dead.clone(), Fate::Evict);
        let forever = json!([{"key": "unreachable", "operator": "Exists"}]);
        check(forever.clone(), dead.clone(), Fate::Stay);
        let for_300 =
            json!([{"key": "unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]);
        check(for_300.clone(), dead.clone(), Fate::EvictAfter(Duration::from_secs(200)));
        let for_50 = json!([{"key": "unreachable", "operator": "Exists", "tolerationSeconds": 50}]);
        check(for_50, dead.clone(), Fate::Evict);
        check(json!([{"operator": "Exists"}]), dead.clone(), Fate::Stay);
        check(json!([{"key": "unreachable", "operator": "Exists", "tolerationSeconds": -1}]), dead, Fate::Evict);
        let two = json!([{"key": "unreachable", "effect": "NoExecute"}, {"key": "gpu", "effect": "NoExecute"}]);
        check(for_300, two, Fate::Evict);
    }

    #[test]
    fn the_shortest_toleration_counts() {
        let tolerations = json!([
            {"key": "a", "operator": "Exists", "tolerationSeconds": 300},
            {"key": "b", "operator": "Exists", "tolerationSeconds": 150},
        ]);
        let taints = json!([{"key": "a", "effect": "NoExecute"}, {"key": "b", "effect": "NoExecute"}]);
        check(tolerations, taints, Fate::EvictAfter(Duration::from_secs(50)));
    }

    fn check_tolerates(toleration: Value, taint: Value, want: bool) {
        let (t, taint) = (serde_json::from_value(toleration).unwrap(), serde_json::from_value(taint).unwrap());
        assert_eq!(tolerates(&t, &taint), want, "{t:?} {taint:?}");
    }

    #[test]
    fn tolerations_match_as_upstream() {
        let taint = json!({"key": "k", "value": "v", "effect": "NoExecute"});
        check_tolerates(json!({"key": "k", "value": "v"}), taint.clone(), true);
        check_tolerates(json!({"key": "k", "operator": "Equal", "value": "w"}), taint.clone(), false);
        check_tolerates(json!({"key": "k", "operator": "Exists"}), taint.clone(), true);
        check_tolerates(json!({"key": "k", "operator": "Exists", "effect": "NoSchedule"}), taint.clone(), false);
        check_tolerates(json!({"key": "j", "operator": "Exists"}), taint.clone(), false);
        check_tolerates(json!({"value": "v"}), taint.clone(), false);
        check_tolerates(json!({"key": "k", "operator": "Bogus"}), taint, false);
    }
}
