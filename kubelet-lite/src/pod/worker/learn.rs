//! What a worker learns: from a look at its containers, and from the tasks beside it.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::super::facts::{Health, Hook, Step, StopReason};
use super::super::handler::Failed;
use super::super::probe::{self, Finding};
use super::super::view::{self, Observed};
use super::super::{images, start, status, stop};
use super::{VOLUME_REFRESH, Worker};
use crate::clock::{after, between};
use crate::events::Kind;
use crate::runtime::Container;
use crate::volumes::{Prepared, VolumeError};

/// What the tasks beside the worker tell it.
pub enum Report {
    /// Volumes are in place, or not.
    Volumes(Result<Prepared, VolumeError>),
    /// An image was looked for.
    Image {
        /// Container it is for.
        container: String,
        /// Image name.
        image: String,
        /// What came of it.
        outcome: images::Outcome,
    },
    /// A probe has something to say.
    Probe {
        /// Container id.
        id: String,
        /// Which.
        kind: probe::Kind,
        /// What.
        finding: Finding,
    },
    /// A `postStart` hook ended.
    Hook {
        /// Container id.
        id: String,
        /// Container name.
        container: String,
        /// How.
        outcome: Result<(), Failed>,
    },
    /// A container was stopped.
    Stopped(String),
}

impl Worker {
    /// Learns from what runs and what has ended: health of new containers, probes, termination messages.
    pub(super) async fn notice(&mut self, pod: &Arc<Pod>, observed: &Observed) {
        let running: HashSet<&str> = observed.running().map(|c| c.id.as_str()).collect();
        self.facts.health.retain(|id, _| running.contains(id.as_str()));
        self.facts
            .stopping
            .retain(|id| running.contains(id.as_str()) || observed.sandbox.as_ref().is_some_and(|s| s.id == *id));
        self.probes.retain(|(id, _), cancel| {
            let keep = running.contains(id.as_str());
            if !keep {
                cancel.cancel();
            }
            keep
        });
        for container in observed.running() {
            self.facts.health.entry(container.id.clone()).or_insert_with(|| found_health(pod, container));
            self.start_probes(pod, container, observed.sandbox.as_ref());
        }
        let ended = observed.containers.values().flatten().filter(|c| c.exit().is_some());
        let ids: HashSet<&str> = ended.clone().map(|c| c.id.as_str()).collect();
        self.facts.messages.retain(|id, _| ids.contains(id.as_str()));
        for container in ended {
            if !self.facts.messages.contains_key(&container.id) {
                let message = start::termination_message(&self.agent, pod, container).await;
                self.facts.messages.insert(container.id.clone(), message);
            }
        }
    }

    fn start_probes(&mut self, pod: &Arc<Pod>, container: &Container, sandbox: Option<&Container>) {
        let Some(spec) = view::container(pod, &container.name) else { return };
        let Some(health) = self.facts.health.get(&container.id) else { return };
        if self.facts.stopping.contains(&container.id) || health.doomed.is_some() || sandbox.is_none() {
            return;
        }
        let settled = health.started && health.post_start == Hook::Done;
        let wanted = [
            (probe::Kind::Startup, &spec.startup_probe, !health.started && health.post_start == Hook::Done),
            (probe::Kind::Readiness, &spec.readiness_probe, settled),
            (probe::Kind::Liveness, &spec.liveness_probe, settled),
        ];
        for (kind, probe, due) in wanted {
            let (Some(probe), true) = (probe, due) else { continue };
            let key = (container.id.clone(), kind);
            if self.probes.contains_key(&key) {
                continue;
            }
            let Some(target) = stop::target(&self.agent, pod, container, sandbox) else { continue };
            let cancel = self.tasks.child_token();
            let age = between(container.started_at.unwrap_or(self.seen_at), self.agent.clock.now());
            let settings = probe::Settings::new(probe);
            tokio::spawn(probe::run(target, kind, settings, age, self.report.clone(), cancel.clone()));
            self.probes.insert(key, cancel);
        }
    }

    /// Takes a report in.
    pub(super) fn take(&mut self, report: Report) {
        match report {
            Report::Volumes(outcome) => self.take_volumes(outcome),
            Report::Image { container, image, outcome } => {
                match outcome.backoff {
                    Some(backoff) => self.facts.pulls.insert(image, backoff),
                    None => self.facts.pulls.remove(&image),
                };
                self.facts.images.insert(container, outcome.fact);
            }
            Report::Probe { id, kind, finding } => self.take_probe(&id, kind, finding),
            Report::Hook { id, container, outcome } => {
                let Some(health) = self.facts.health.get_mut(&id) else { return };
                health.post_start = Hook::Done;
                if let Err(failed) = outcome {
                    health.doomed = Some(StopReason::PostStart);
                    let text = format!("PostStartHook failed: {failed}");
                    let pod = self.known.latest.get();
                    self.agent.events.pod(&pod, Some(&container), Kind::Warning, "FailedPostStartHook", text);
                }
            }
            Report::Stopped(id) => {
                self.facts.stopping.remove(&id);
            }
        }
    }

    fn take_volumes(&mut self, outcome: Result<Prepared, VolumeError>) {
        self.refreshing = false;
        let pod = self.known.latest.get();
        let now = self.agent.clock.now();
        let changing = view::spec(&pod).volumes.iter().flatten().any(crate::volumes::changes);
        let token = self.agent.fetcher.refresh_at(view::uid(&pod));
        let regular = after(now, VOLUME_REFRESH);
        self.refresh_at = changing.then(|| token.map_or(regular, |at| at.min(regular)));
        match outcome {
            Ok(prepared) => {
                self.prepared = prepared;
                self.mount_failures = 0;
                self.facts.volumes = Step::Done;
            }
            Err(error) => {
                self.agent.events.pod(&pod, None, Kind::Warning, "FailedMount", error.to_string());
                // Volumes that were set up once stay usable; only the first setup holds the pod up.
                if self.facts.volumes != Step::Done {
                    let failure = self.failure("FailedMount", error.to_string(), self.mount_failures);
                    self.mount_failures = self.mount_failures.saturating_add(1);
                    self.facts.volumes = Step::Failed(failure);
                    self.refresh_at = None;
                }
            }
        }
    }

    fn take_probe(&mut self, id: &str, kind: probe::Kind, finding: Finding) {
        let pod = self.known.latest.get();
        let probe_grace = |pod: &Pod, name: &str| {
            let spec = view::container(pod, name)?;
            let probe = if kind == probe::Kind::Startup { &spec.startup_probe } else { &spec.liveness_probe };
            u64::try_from(probe.as_ref()?.termination_grace_period_seconds?).ok()
        };
        let Some(health) = self.facts.health.get_mut(id) else { return };
        let name = health.name.clone();
        match (kind, finding) {
            (_, Finding::Attempt(message)) => {
                let text = format!("{} probe failed: {message}", kind.name());
                self.agent.events.pod(&pod, Some(&name), Kind::Warning, "Unhealthy", text);
            }
            (probe::Kind::Startup, Finding::Passed) => health.started = true,
            (probe::Kind::Readiness, Finding::Passed) => health.ready = true,
            (probe::Kind::Readiness, Finding::Failed(_)) => health.ready = false,
            (probe::Kind::Liveness, Finding::Passed) => {}
            (probe::Kind::Startup, Finding::Failed(_)) => {
                health.doomed = Some(StopReason::Startup);
                health.doom_grace_s = probe_grace(&pod, &name);
            }
            (probe::Kind::Liveness, Finding::Failed(_)) => {
                health.doomed = Some(StopReason::Liveness);
                health.doom_grace_s = probe_grace(&pod, &name);
            }
        }
    }
}

/// Health of a container found running: what the API says of this very container, so that a restart of the agent takes no
/// pod out of service.
fn found_health(pod: &Pod, container: &Container) -> Health {
    let spec = view::container(pod, &container.name);
    let reported = status::reported(pod, &container.name)
        .filter(|s| s.container_id.as_deref().is_some_and(|id| id.ends_with(&container.id)));
    Health {
        name: container.name.clone(),
        started: spec.is_none_or(|s| s.startup_probe.is_none()) || reported.is_some_and(|s| s.started == Some(true)),
        ready: spec.is_none_or(|s| s.readiness_probe.is_none()) || reported.is_some_and(|s| s.ready),
        post_start: Hook::Done,
        doomed: None,
        doom_grace_s: None,
    }
}
