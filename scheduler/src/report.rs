//! What users are told: events on the pod, and its condition `PodScheduled`.
//!
//! Reports are written beside the scheduling, by a bounded number of tasks from a bounded queue; when the API cannot keep
//! up, reports are dropped and counted rather than scheduling held up. A repeated event becomes a series, as upstream.
//! (kube's `Recorder` walks all its recent events for each new one, which thousands of pods a second do not bear.)

use std::collections::HashMap;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use parking_lot::Mutex;
use scaleup_api::time::{now, now_micro};
use serde_json::json;
use tokio::sync::mpsc;

use crate::metrics::Metrics;
use crate::plugins::DEFAULT_SCHEDULER;
use crate::pod::PodInfo;

/// Reports that wait to be written.
const QUEUE: usize = 16_384;
/// Reports being written at a time.
const CONCURRENCY: usize = 32;
/// Longest note of an event (upstream's `NoteLengthLimit`).
const MAX_NOTE_BYTES: usize = 1024;
/// Failures remembered to make series of; when full, the memory starts anew.
const MAX_SERIES: usize = 4096;

/// Something to tell.
#[derive(Clone, Debug)]
pub(crate) enum Report {
    /// The pod got its node.
    Scheduled { pod: Arc<PodInfo>, node: String },
    /// It did not; the reason of the condition is `Unschedulable` or `SchedulerError`.
    Failed { pod: Arc<PodInfo>, reason: &'static str, message: String },
}

/// The sending end.
#[derive(Clone)]
pub(crate) struct Reporter {
    queue: mpsc::Sender<Report>,
    metrics: Metrics,
}

impl Reporter {
    /// Also gives the future that writes; it ends when all senders are gone.
    pub(crate) fn new(client: kube::Client, metrics: Metrics) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, mut reports) = mpsc::channel(QUEUE);
        let writer = Arc::new(Writer { client, series: Mutex::new(HashMap::new()), instance: instance() });
        let reports = futures::stream::poll_fn(move |context| reports.poll_recv(context));
        let writing = reports.for_each_concurrent(CONCURRENCY, move |report| {
            let writer = writer.clone();
            async move { writer.write(report).await }
        });
        (Self { queue, metrics }, writing)
    }

    pub(crate) fn send(&self, report: Report) {
        if self.queue.try_send(report).is_err() {
            self.metrics.dropped_report();
        }
    }
}

fn instance() -> String {
    let host = std::env::var("HOSTNAME").unwrap_or_default();
    if host.is_empty() { DEFAULT_SCHEDULER.to_owned() } else { format!("{DEFAULT_SCHEDULER}-{host}") }
}

/// The first `limit` bytes or a little less, at a character's boundary.
fn truncated(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

struct Writer {
    client: kube::Client,
    /// Events by pod and note: name, and how often.
    series: Mutex<HashMap<(String, String), (String, i32)>>,
    instance: String,
}

impl Writer {
    async fn write(&self, report: Report) {
        let pod = match &report {
            Report::Scheduled { pod, .. } | Report::Failed { pod, .. } => pod.clone(),
        };
        let result = match report {
            Report::Scheduled { pod, node } => {
                let note = format!("Successfully assigned {} to {node}", pod.key());
                self.event(&pod, "Normal", "Scheduled", "Binding", &note).await
            }
            Report::Failed { pod, reason, message } => {
                let condition = self.condition(&pod, reason, &message).await;
                condition.and(self.event(&pod, "Warning", "FailedScheduling", "Scheduling", &message).await)
            }
        };
        if let Err(error) = result {
            tracing::debug!(pod = pod.key(), %error, "could not report on a pod");
        }
    }

    /// Sets `PodScheduled` to False, unless it says the same already.
    async fn condition(&self, pod: &PodInfo, reason: &str, message: &str) -> Result<(), kube::Error> {
        if reason == "Unschedulable" && pod.unschedulable_message.as_deref() == Some(message) {
            return Ok(());
        }
        let condition = json!({
            "type": "PodScheduled", "status": "False", "reason": reason, "message": message,
            "lastProbeTime": null, "lastTransitionTime": now(),
        });
        // The UID keeps it from a pod of the same name that came after this one.
        let patch = json!({"metadata": {"uid": pod.uid}, "status": {"conditions": [condition]}});
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let patched = pods.patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        match patched {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn event(
        &self,
        pod: &PodInfo,
        kind: &str,
        reason: &str,
        action: &str,
        note: &str,
    ) -> Result<(), kube::Error> {
        let note = truncated(note, MAX_NOTE_BYTES);
        let events: Api<Event> = Api::namespaced(self.client.clone(), &pod.namespace);
        let key = (pod.uid.clone(), note.to_owned());
        // A pod is scheduled once; only failures repeat.
        let again = if kind == "Warning" { self.count(&key) } else { None };
        if let Some((name, count)) = again {
            let series = EventSeries { count, last_observed_time: now_micro() };
            let patched = events.patch(&name, &PatchParams::default(), &Patch::Merge(json!({"series": series}))).await;
            match patched {
                // It expired: begin anew.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                other => return other.map(drop),
            }
        }
        let name = format!("{}.{:x}", truncated(&pod.name, 200), Timestamp::now().as_nanosecond());
        if kind == "Warning" {
            self.remember(key, name.clone());
        }
        let event = Event {
            metadata: ObjectMeta { name: Some(name), namespace: Some(pod.namespace.clone()), ..ObjectMeta::default() },
            event_time: Some(now_micro()),
            type_: Some(kind.to_owned()),
            reason: Some(reason.to_owned()),
            action: Some(action.to_owned()),
            note: Some(note.to_owned()),
            regarding: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                namespace: Some(pod.namespace.clone()),
                name: Some(pod.name.clone()),
                uid: Some(pod.uid.clone()),
                ..ObjectReference::default()
            }),
            reporting_controller: Some(pod.scheduler.clone()),
            reporting_instance: Some(self.instance.clone()),
            ..Event::default()
        };
        events.create(&PostParams::default(), &event).await.map(drop)
    }

    /// The name of an event that was written before, and how often it has happened now.
    fn count(&self, key: &(String, String)) -> Option<(String, i32)> {
        let mut series = self.series.lock();
        let (name, count) = series.get_mut(key)?;
        *count = count.saturating_add(1);
        Some((name.clone(), *count))
    }

    fn remember(&self, key: (String, String), name: String) {
        let mut series = self.series.lock();
        if series.len() >= MAX_SERIES {
            series.clear();
        }
        series.insert(key, (name, 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_cut_at_characters() {
        let check = |text: &str, limit, expected: &str| assert_eq!(truncated(text, limit), expected);
        check("abc", 5, "abc");
        check("abc", 2, "ab");
        check("aü", 2, "a");
        check("ü", 1, "");
    }
}
