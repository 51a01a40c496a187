//! The end of a pod: drain, stop, last status, clean up, delete from the API (`SyncTerminatingPod`, `SyncTerminatedPod`).

use super::*;
use crate::pod::{start, stop};
use crate::runtime::Container;

impl Worker {
    /// Runs to the end; the worker is over afterwards.
    pub(super) async fn terminate(mut self) {
        // Pulls, hooks, probes and refreshes are over; what was ready stays so in the status until it has stopped.
        self.tasks.cancel();
        self.probes.clear();
        let forced = self.is_gone();
        let observed = self.look().await;
        if !forced {
            let pod = self.known.latest.get();
            self.publish_as(&pod, &observed, &self.waiting.clone(), false);
            if scaleup_api::pods::is_ready(&pod) && view::grace_seconds(&pod) > 0 {
                self.drain().await;
            }
        }
        self.stop_everything(&observed).await;
        let ended = self.look().await;
        let pod = self.known.latest.get();
        self.notice_ended(&pod, &ended).await;
        if !self.is_gone() {
            let waiting = self.waiting.clone();
            self.publish_as(&pod, &ended, &waiting, true);
            self.publisher.flush().await;
        }
        self.remove_everything(&pod).await;
        self.delete_from_api(&pod).await;
        if let Some(volumes) = self.agent.volumes.clone() {
            clear(&volumes, view::uid(&pod)).await;
        }
        self.agent.pods.lock().remove(view::uid(&pod));
    }

    /// The pod's containers, however long the runtime takes to say.
    async fn look(&self) -> Observed {
        let uid = view::uid(&self.known.latest.get()).to_owned();
        loop {
            match self.agent.runtime.pod(&uid).await {
                Ok(found) => return Observed::new(found),
                Err(error) => tracing::debug!(%error, uid, "cannot look at the pod's containers"),
            }
            tokio::time::sleep(RUNTIME_RETRY).await;
        }
    }

    /// Keeps serving until balancers have heard; a forced deletion ends it.
    async fn drain(&self) {
        let deadline = tokio::time::Instant::now() + DRAIN_DELAY;
        while !self.is_gone() {
            tokio::select! {
                () = self.known.poke.notified() => {}
                () = tokio::time::sleep_until(deadline) => return,
            }
        }
    }

    /// Stops all containers within the grace period, which may be shortened at any time.
    async fn stop_everything(&self, observed: &Observed) {
        let running: Vec<Container> = observed.running().cloned().collect();
        if running.is_empty() {
            return;
        }
        let pod = self.known.latest.get();
        let began = tokio::time::Instant::now();
        let grace = || {
            if self.is_gone() {
                return ORPHAN_GRACE;
            }
            Duration::from_secs(view::grace_seconds(&self.known.latest.get()))
        };
        let initial = grace();
        let mut stopping = std::pin::pin!(stop::all(&self.agent, &pod, &running, observed.sandbox.as_ref(), initial));
        let mut shortest = initial;
        loop {
            tokio::select! {
                () = &mut stopping => return,
                () = self.known.poke.notified() => shortest = shortest.min(grace()),
                // Only for a grace period shorter than the one the stop was begun with; that one keeps its own time.
                () = tokio::time::sleep_until(began + shortest), if shortest < initial => {
                    stop::kill(&self.agent, &running).await;
                    return;
                }
            }
        }
    }

    async fn notice_ended(&mut self, pod: &Pod, ended: &Observed) {
        self.facts.health.clear();
        for container in ended.containers.values().flatten() {
            if !self.facts.messages.contains_key(&container.id) {
                let message = start::termination_message(&self.agent, pod, container).await;
                self.facts.messages.insert(container.id.clone(), message);
            }
        }
    }

    /// Removes containers, then sandboxes, until nothing is left.
    async fn remove_everything(&self, pod: &Pod) {
        loop {
            let left = self.look().await;
            if left.is_empty() {
                return;
            }
            let containers = left.containers.values().flatten().chain(&left.unstarted);
            let removals = containers.map(|c| self.remove(&c.id));
            futures::future::join_all(removals).await;
            let sandboxes = left.sandbox.iter().chain(&left.old_sandboxes);
            let done = futures::future::join_all(sandboxes.map(|s| self.remove(&s.id))).await;
            if done.iter().all(|removed| *removed) {
                return;
            }
            tracing::debug!(pod = view::name(pod), "containers are not removed yet");
            tokio::time::sleep(RUNTIME_RETRY).await;
        }
    }

    async fn remove(&self, id: &str) -> bool {
        match self.agent.runtime.remove(id).await {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, id, "not removed");
                false
            }
        }
    }

    /// The last word: this very pod may go.
    async fn delete_from_api(&self, pod: &Pod) {
        let api: Api<Pod> = Api::namespaced(self.agent.client.clone(), view::namespace(pod));
        let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams::default().grace_period(0).preconditions(preconditions);
        while !self.is_gone() {
            match api.delete(view::name(pod), &params).await {
                Ok(_) => return,
                // Gone, or another pod has the name by now.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
                Err(error) => tracing::debug!(%error, pod = view::name(pod), "not deleted yet"),
            }
            tokio::select! {
                () = self.known.poke.notified() => {}
                () = tokio::time::sleep(DELETE_RETRY) => {}
            }
        }
    }
}

/// Takes a pod's volumes down beside the async threads.
pub async fn clear(volumes: &Arc<crate::volumes::Volumes>, uid: &str) {
    let (volumes, uid) = (volumes.clone(), uid.to_owned());
    let outcome = tokio::task::spawn_blocking(move || volumes.tear_down(&uid)).await;
    if let Ok(Err(error)) = outcome {
        tracing::warn!(%error, "a pod's volumes are not removed; the next start of the agent tries again");
    }
}
