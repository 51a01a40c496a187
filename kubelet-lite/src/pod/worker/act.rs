//! What a worker does: operations of its plan, and the tasks beside it.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use super::super::backoff::Backoff;
use super::super::facts::{Failure, Health, Hook, ImageFact, Step, StopReason};
use super::super::handler::{Action, Target};
use super::super::plan::Op;
use super::super::start::{self, Ground};
use super::super::view::{self, Observed};
use super::super::{images, probe, spec, stop};
use super::learn::Report;
use super::{NETWORK_WAIT, RETRY_MAX, RETRY_MIN, SANDBOX_GRACE, Worker};
use crate::clock::after;
use crate::events::Kind;
use crate::runtime::Container;
use crate::volumes::content::World;

impl Worker {
    /// Does one operation, or starts it; whether to look again at once.
    pub(super) async fn apply(&mut self, op: &Op, pod: &Arc<Pod>, observed: &mut Observed) -> bool {
        match op {
            Op::SetUpVolumes => {
                self.facts.volumes = if self.agent.volumes.is_none() { Step::Done } else { Step::Running };
                self.set_up_volumes();
                self.facts.volumes == Step::Done
            }
            Op::EnsureImage(container) => {
                self.ensure_image(pod, container);
                false
            }
            Op::RunSandbox { attempt } => self.run_sandbox(pod, *attempt, observed).await,
            Op::Start { container, attempt } => self.start(pod, container, *attempt, observed).await,
            Op::Stop { id, container, why } => {
                if let Some(found) = observed.running().find(|c| c.id == *id).cloned() {
                    self.stop(pod, &found, why, observed.sandbox.clone());
                } else {
                    tracing::debug!(%id, container, "already stopped");
                }
                false
            }
            Op::StopSandbox(id) => {
                self.facts.stopping.insert(id.clone());
                if let Err(error) = self.agent.runtime.stop(id, SANDBOX_GRACE).await {
                    tracing::debug!(%error, id, "sandbox not stopped");
                    self.facts.stopping.remove(id);
                    return false;
                }
                true
            }
            Op::Remove(id) => {
                if let Err(error) = self.agent.runtime.remove(id).await {
                    tracing::debug!(%error, id, "not removed");
                }
                false
            }
        }
    }

    /// Sets volumes up or brings them up to date, beside the worker.
    pub(super) fn set_up_volumes(&mut self) {
        let Some(volumes) = self.agent.volumes.clone() else { return };
        let (agent, pod, report) = (self.agent.clone(), self.known.latest.get(), self.report.clone());
        self.refreshing = true;
        let work = async move {
            // Never closed while the agent lives.
            let _slot = agent.refresh_slots.acquire().await.ok();
            let pod_ip = pod.status.as_ref().and_then(|s| s.pod_ip.clone()).unwrap_or_default();
            let host_ip = agent.config.node_ip.to_string();
            let world =
                World { pod: &pod, host_ip: &host_ip, pod_ip: &pod_ip, allocatable: &agent.amounts.allocatable };
            let outcome = volumes.set_up(&world).await;
            // A worker that is gone needs no report.
            let _gone = report.send(Report::Volumes(outcome)).await;
        };
        self.beside(work);
    }

    fn beside(&self, work: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.tasks.clone();
        tokio::spawn(async move {
            // Cancelled with the worker; either way it is over.
            let _ended = cancel.run_until_cancelled(work).await;
        });
    }

    fn ensure_image(&mut self, pod: &Arc<Pod>, name: &str) {
        let Some(container) = view::container(pod, name).cloned() else { return };
        let image = container.image.clone().unwrap_or_default();
        let before = self.facts.images.insert(name.to_owned(), ImageFact::Pulling);
        if let Some(ImageFact::Failed(failure)) = before {
            // The reason stays visible while another attempt runs.
            tracing::debug!(image, reason = failure.reason, "trying again to get an image");
        }
        let backoff = self.facts.pulls.get(&image).copied();
        let (agent, pod, report) = (self.agent.clone(), pod.clone(), self.report.clone());
        self.beside(async move {
            let outcome = images::ensure(&agent, &pod, &container, backoff).await;
            let name = container.name;
            let _gone = report.send(Report::Image { container: name, image, outcome }).await;
        });
    }

    async fn run_sandbox(&mut self, pod: &Arc<Pod>, attempt: u32, observed: &mut Observed) -> bool {
        let Some(network) = self.network_name(pod).await else {
            self.fail_sandbox(pod, "the pod network is not ready yet".into());
            return false;
        };
        if attempt > 0 {
            let text = "Pod sandbox changed, it will be killed and re-created.";
            self.agent.events.pod(pod, None, Kind::Normal, "SandboxChanged", text);
        }
        match self.agent.runtime.run_sandbox(&spec::sandbox(pod, &network, attempt)).await {
            Ok(sandbox) => {
                self.facts.sandbox = None;
                self.agent.metrics.sandboxes_started.inc();
                observed.sandbox = Some(sandbox);
                true
            }
            Err(error) => {
                self.fail_sandbox(pod, error.to_string());
                false
            }
        }
    }

    async fn network_name(&self, pod: &Pod) -> Option<String> {
        if view::spec(pod).host_network == Some(true) {
            return Some("host".into());
        }
        // A node that has just registered has its subnet in a moment.
        let mut network = self.agent.network.subscribe();
        let there = tokio::time::timeout(NETWORK_WAIT, network.wait_for(Option::is_some)).await.ok()?.ok()?;
        there.as_ref().map(|n| n.name.clone())
    }

    fn fail_sandbox(&mut self, pod: &Pod, message: String) {
        let text = format!("Failed to create pod sandbox: {message}");
        self.agent.events.pod(pod, None, Kind::Warning, "FailedCreatePodSandBox", text);
        let attempts = self.facts.sandbox.as_ref().map_or(0, |f| f.attempts.saturating_add(1));
        self.facts.sandbox = Some(self.failure("FailedCreatePodSandBox", message, attempts));
        self.known.poke.notify_one();
    }

    pub(super) fn failure(&self, reason: &'static str, message: String, attempts: u32) -> Failure {
        let delay = RETRY_MIN.saturating_mul(1 << attempts.min(10)).min(RETRY_MAX);
        Failure { reason, message, retry_at: after(self.agent.clock.now(), delay), attempts }
    }

    async fn start(&mut self, pod: &Arc<Pod>, name: &str, attempt: u32, observed: &Observed) -> bool {
        let (Some(container), Some(sandbox)) = (view::container(pod, name), &observed.sandbox) else { return false };
        let Some(ImageFact::Ready(image)) = self.facts.images.get(name).cloned() else { return false };
        if let Some(ended) = observed.newest(name)
            && let Some(exit) = ended.exit()
        {
            let before = self.facts.restarts.get(name).copied();
            let next = Backoff::next(before, exit.at, self.agent.clock.now());
            self.facts.restarts.insert(name.to_owned(), next);
        }
        let ground = Ground { agent: &self.agent, pod, sandbox, prepared: &self.prepared };
        let outcome = start::container(&ground, container, attempt, &image).await;
        // A restart asks for the image again: the policy may be Always, or the image gone.
        self.facts.images.remove(name);
        match outcome {
            Ok(id) => {
                self.agent.metrics.containers_started.inc();
                self.facts.create.remove(name);
                let hook = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()).and_then(stop::action);
                let health = Health {
                    name: name.to_owned(),
                    started: container.startup_probe.is_none(),
                    ready: container.readiness_probe.is_none(),
                    post_start: if hook.is_some() { Hook::Running } else { Hook::Done },
                    doomed: None,
                    doom_grace_s: None,
                };
                self.facts.health.insert(id.clone(), health);
                if let Some(hook) = hook {
                    self.run_hook(pod, container, id, sandbox, hook);
                }
            }
            Err(error) => {
                let attempts = self.facts.create.get(name).map_or(0, |f| f.attempts.saturating_add(1));
                let failure = self.failure(error.reason, error.message, attempts);
                self.facts.create.insert(name.to_owned(), failure);
            }
        }
        true
    }

    fn run_hook(
        &self,
        pod: &Arc<Pod>,
        container: &k8s_openapi::api::core::v1::Container,
        id: String,
        sandbox: &Container,
        hook: Action,
    ) {
        let target = Target {
            runtime: self.agent.runtime.clone(),
            pod: view::pod_ref(pod),
            id: id.clone(),
            address: start::address(&self.agent, pod, sandbox),
            spec: Arc::new(container.clone()),
        };
        let (report, name) = (self.report.clone(), container.name.clone());
        self.beside(async move {
            // As upstream, a hook takes as long as it takes; the container's end ends it.
            let outcome = target.run(&hook, Duration::MAX).await;
            let _gone = report.send(Report::Hook { id, container: name, outcome }).await;
        });
    }

    fn stop(&mut self, pod: &Arc<Pod>, container: &Container, why: &StopReason, sandbox: Option<Container>) {
        self.facts.stopping.insert(container.id.clone());
        for kind in [probe::Kind::Startup, probe::Kind::Liveness] {
            if let Some(cancel) = self.probes.remove(&(container.id.clone(), kind)) {
                cancel.cancel();
            }
        }
        let own = self.facts.health.get(&container.id).and_then(|h| h.doom_grace_s);
        let grace = Duration::from_secs(own.unwrap_or_else(|| view::grace_seconds(pod)));
        let (agent, pod, container, why) = (self.agent.clone(), pod.clone(), container.clone(), why.clone());
        let report = self.report.clone();
        self.beside(async move {
            let target = stop::target(&agent, &pod, &container, sandbox.as_ref());
            stop::container(&agent, &pod, target, &container, &why, grace).await;
            let _gone = report.send(Report::Stopped(container.id)).await;
        });
    }
}
