//! The pods of this node: one worker each, fed by a watch on `spec.nodeName`; and what nobody owns any more.
//!
//! Wakes workers on the runtime's events and, in case one was missed, on a periodic list.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent::{Agent, Known};
use crate::pod::view;
use crate::pod::worker::{Worker, terminate};
use crate::runtime::{Kind, Listed};

/// Between lists of the runtime: events tell sooner.
const RELIST: Duration = Duration::from_secs(15);
/// Pause before the runtime's events are asked for again.
const RESUBSCRIBE: Duration = Duration::from_secs(1);
/// What containers without a pod get to stop.
const ORPHAN_GRACE: Duration = Duration::from_secs(2);

/// Follows the pods of the node until shutdown. Workers end with it; their containers do not.
pub async fn run(agent: Arc<Agent>, shutdown: CancellationToken) {
    let workers = Workers { agent: agent.clone(), tracker: TaskTracker::new(), shutdown: shutdown.clone() };
    let selector = format!("spec.nodeName={}", agent.config.node_name);
    let api: Api<Pod> = Api::all(agent.client.clone());
    let mut pods = watch(api, watcher::Config::default().fields(&selector)).default_backoff().boxed();
    let mut listed: Option<HashSet<String>> = None;
    let mut synced = false;
    let work = async {
        let mut relist = tokio::time::interval(RELIST);
        relist.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = pods.next() => match event {
                    Some(Ok(Event::Init)) => listed = Some(HashSet::new()),
                    Some(Ok(Event::InitApply(pod))) => {
                        listed.get_or_insert_default().insert(view::uid(&pod).to_owned());
                        workers.apply(pod);
                    }
                    Some(Ok(Event::InitDone)) => {
                        workers.keep(&listed.take().unwrap_or_default());
                        synced = true;
                        relist.reset_immediately();
                    }
                    Some(Ok(Event::Apply(pod))) => workers.apply(pod),
                    Some(Ok(Event::Delete(pod))) => workers.gone(view::uid(&pod)),
                    Some(Err(error)) => tracing::debug!(%error, "watch of pods; trying again"),
                    None => return,
                },
                _ = relist.tick(), if synced => workers.sweep().await,
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = follow_runtime(agent.clone()) => {}
        () = shutdown.cancelled() => {}
    }
    workers.tracker.close();
    workers.tracker.wait().await;
}

/// Wakes workers on the runtime's events, and all of them when events may have been missed.
async fn follow_runtime(agent: Arc<Agent>) {
    loop {
        match agent.runtime.events().await {
            Ok(mut events) => {
                poke_all(&agent);
                while let Some(Ok(event)) = events.next().await {
                    if let Some(known) = agent.pods.lock().get(&event.pod_uid) {
                        known.poke.notify_one();
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "no events from the runtime"),
        }
        tokio::time::sleep(RESUBSCRIBE).await;
    }
}

fn poke_all(agent: &Agent) {
    for known in agent.pods.lock().values() {
        known.poke.notify_one();
    }
}

struct Workers {
    agent: Arc<Agent>,
    tracker: TaskTracker,
    shutdown: CancellationToken,
}

impl Workers {
    /// A new or changed pod.
    fn apply(&self, pod: Pod) {
        let uid = view::uid(&pod).to_owned();
        let pod = Arc::new(pod);
        let mut pods = self.agent.pods.lock();
        if let Some(known) = pods.get(&uid) {
            known.latest.offer(pod);
            known.poke.notify_one();
            return;
        }
        let known = Known::new(pod);
        pods.insert(uid, known.clone());
        drop(pods);
        let worker = Worker::new(self.agent.clone(), known);
        let shutdown = self.shutdown.clone();
        self.tracker.spawn(async move {
            // Cancelled at shutdown: the containers stay, and the next agent finds them.
            let _ended = shutdown.run_until_cancelled(worker.run()).await;
        });
    }

    /// A pod that the API has no more.
    fn gone(&self, uid: &str) {
        if let Some(known) = self.agent.pods.lock().get(uid) {
            known.gone.store(true, Ordering::Relaxed);
            known.poke.notify_one();
        }
    }

    /// After a list: everything else is gone.
    fn keep(&self, listed: &HashSet<String>) {
        let missing: Vec<String> =
            self.agent.pods.lock().keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
        missing.iter().for_each(|uid| self.gone(uid));
    }

    /// Wakes workers whose containers are not as they were, and removes what belongs to no pod.
    async fn sweep(&self) {
        let all = match self.agent.runtime.list().await {
            Ok(all) => all,
            Err(error) => return tracing::debug!(%error, "cannot list containers"),
        };
        self.agent.metrics.running_containers.set(
            i64::try_from(all.iter().filter(|l| l.running && l.kind == Kind::Container).count()).unwrap_or(i64::MAX),
        );
        let mut orphans: BTreeMap<String, Vec<Listed>> = BTreeMap::new();
        {
            let pods = self.agent.pods.lock();
            self.agent.metrics.running_pods.set(i64::try_from(pods.len()).unwrap_or(i64::MAX));
            for item in all {
                match pods.get(&item.pod.uid) {
                    Some(known) if !item.running => known.poke.notify_one(),
                    Some(_) => {}
                    None => orphans.entry(item.pod.uid.clone()).or_default().push(item),
                }
            }
        }
        for (uid, containers) in orphans {
            self.tracker.spawn(remove_orphan(self.agent.clone(), uid, containers));
        }
        self.sweep_volumes().await;
    }

    /// Directories of pods that are gone, left by an agent that was killed.
    async fn sweep_volumes(&self) {
        let Some(volumes) = self.agent.volumes.clone() else { return };
        let on_disk = volumes.pods().unwrap_or_default();
        let left: Vec<String> = {
            let pods = self.agent.pods.lock();
            on_disk.into_iter().filter(|uid| !pods.contains_key(uid)).collect()
        };
        if left.is_empty() {
            return;
        }
        // A container may still have them mounted.
        let Ok(running) = self.agent.runtime.list().await else { return };
        for uid in left.iter().filter(|uid| !running.iter().any(|l| l.pod.uid == **uid)) {
            terminate::clear(&volumes, uid).await;
        }
    }
}

/// Stops and removes the containers of a pod that the API does not have.
async fn remove_orphan(agent: Arc<Agent>, uid: String, containers: Vec<Listed>) {
    tracing::info!(uid, count = containers.len(), "removing containers of a pod that is gone");
    let (sandboxes, mains): (Vec<Listed>, Vec<Listed>) = containers.into_iter().partition(|c| c.kind == Kind::Sandbox);
    for group in [mains, sandboxes] {
        let ends = group.iter().map(|c| async {
            agent.runtime.stop(&c.id, ORPHAN_GRACE).await?;
            agent.runtime.remove(&c.id).await
        });
        for outcome in futures::future::join_all(ends).await {
            if let Err(error) = outcome {
                tracing::debug!(%error, uid, "not removed; the next sweep tries again");
            }
        }
    }
}

/// Stops everything the agent runs, for a shutdown that asks for it. Dead containers stay, so that restarts are counted on.
pub async fn stop_all(agent: &Agent) {
    let all = match agent.runtime.list().await {
        Ok(all) => all,
        Err(error) => return tracing::warn!(%error, "cannot stop the pods"),
    };
    let (sandboxes, mains): (Vec<Listed>, Vec<Listed>) =
        all.into_iter().filter(|l| l.running).partition(|c| c.kind == Kind::Sandbox);
    let grace_of = |uid: &str| {
        let pods = agent.pods.lock();
        pods.get(uid).map_or(ORPHAN_GRACE, |known| Duration::from_secs(view::grace_seconds(&known.latest.get())))
    };
    for group in [mains, sandboxes] {
        let stops = group.iter().map(|c| agent.runtime.stop(&c.id, grace_of(&c.pod.uid)));
        for outcome in futures::future::join_all(stops).await {
            if let Err(error) = outcome {
                tracing::warn!(%error, "a container was not stopped");
            }
        }
    }
}
