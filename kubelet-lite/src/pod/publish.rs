//! Writes a pod's status: the newest one, one request at a time, only what changed.
//!
//! Beside the worker, so that a slow API never holds up containers. A write is conditional on the resourceVersion it was
//! computed against, because conditions of others are part of the same list.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::watch;

use super::status;
use super::view;

/// Delay after a failed write, doubling…
const RETRY_MIN: Duration = Duration::from_millis(100);
/// …up to this.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// How long a final status may take before the agent goes on without it; it is written anyway if the API comes back.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);

/// The newest version of a pod that anybody here has seen.
#[derive(Clone)]
pub struct Latest(Arc<Mutex<Arc<Pod>>>);

impl Latest {
    /// Begins with a version.
    pub fn new(pod: Arc<Pod>) -> Self {
        Self(Arc::new(Mutex::new(pod)))
    }
    /// The newest.
    pub fn get(&self) -> Arc<Pod> {
        self.0.lock().clone()
    }
    /// Takes a version if it is newer; watches and answers arrive in any order.
    pub fn offer(&self, pod: Arc<Pod>) {
        let mut latest = self.0.lock();
        if revision(&pod) >= revision(&latest) {
            *latest = pod;
        }
    }
}

/// `resourceVersion` as a number. Other servers than ours and etcd-backed ones may use text: that counts as newest.
fn revision(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(u64::MAX)
}

/// Number of a status, and the status.
type Wanted = (u64, Option<PodStatus>);

/// The worker's end.
pub struct Publisher {
    wanted: watch::Sender<Wanted>,
    written: watch::Receiver<u64>,
}

impl Publisher {
    /// Starts the writing task, which ends with the publisher.
    pub fn start(client: kube::Client, latest: Latest) -> Self {
        let (wanted, inbox) = watch::channel((0, None));
        let (done, written) = watch::channel(0);
        tokio::spawn(write(client, latest, inbox, done));
        Self { wanted, written }
    }

    /// Wants this status written.
    pub fn publish(&self, status: PodStatus) {
        self.wanted.send_if_modified(|(number, current)| {
            if current.as_ref() == Some(&status) {
                return false;
            }
            *number += 1;
            *current = Some(status);
            true
        });
    }

    /// Waits until what was published last is written, or the pod is gone, or it takes too long.
    pub async fn flush(&self) {
        let number = self.wanted.borrow().0;
        let mut written = self.written.clone();
        let wait = written.wait_for(|done| *done >= number);
        if tokio::time::timeout(FLUSH_TIMEOUT, wait).await.is_err() {
            tracing::debug!("status is not written yet");
        }
    }
}

async fn write(client: kube::Client, latest: Latest, mut inbox: watch::Receiver<Wanted>, done: watch::Sender<u64>) {
    let mut delay = RETRY_MIN;
    while inbox.changed().await.is_ok() {
        loop {
            let (number, status) = inbox.borrow_and_update().clone();
            let Some(status) = status else { break };
            match write_once(&client, &latest, status).await {
                Ok(Written::Yes) => {
                    delay = RETRY_MIN;
                    done.send_replace(number);
                    break;
                }
                Ok(Written::PodIsGone) => {
                    done.send_replace(u64::MAX);
                    return;
                }
                Ok(Written::Conflict) => {}
                Err(error) => tracing::debug!(%error, pod = view::name(&latest.get()), "status not written yet"),
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RETRY_MAX);
            if inbox.has_changed().is_err() {
                return;
            }
        }
    }
}

enum Written {
    Yes,
    Conflict,
    PodIsGone,
}

async fn write_once(client: &kube::Client, latest: &Latest, status: PodStatus) -> Result<Written, kube::Error> {
    let pod = latest.get();
    let api: Api<Pod> = Api::namespaced(client.clone(), view::namespace(&pod));
    let status = rebased(status, pod.status.as_ref());
    let Some(changes) = status::patch(pod.status.as_ref(), &status) else { return Ok(Written::Yes) };
    let patch = json!({
        "metadata": { "uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version },
        "status": changes,
    });
    match api.patch_status(view::name(&pod), &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(answer) => {
            latest.offer(Arc::new(answer));
            Ok(Written::Yes)
        }
        Err(kube::Error::Api(refused)) if refused.code == 404 => Ok(Written::PodIsGone),
        Err(kube::Error::Api(refused)) if refused.code == 409 => match api.get_opt(view::name(&pod)).await? {
            Some(newer) if newer.metadata.uid == pod.metadata.uid => {
                latest.offer(Arc::new(newer));
                Ok(Written::Conflict)
            }
            _ => Ok(Written::PodIsGone),
        },
        Err(error) => Err(error),
    }
}

/// The status with the conditions of others as they are now.
fn rebased(mut status: PodStatus, current: Option<&PodStatus>) -> PodStatus {
    let mut conditions = status.conditions.take().unwrap_or_default();
    conditions.retain(|c| status::owns(&c.type_));
    let others = current.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.extend(others.iter().filter(|c| !status::owns(&c.type_)).cloned());
    status.conditions = Some(conditions);
    status
}
