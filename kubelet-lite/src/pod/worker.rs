//! One pod's worker: looks, plans, acts, tells, waits.
//!
//! ```text
//! Syncing ──deletionTimestamp──► Terminating ──► removed from the API
//!    └────────gone from the API────────┴────────► cleaned up
//! ```
//! Everything that takes long (pulls, volumes, stops, hooks, probes) runs beside it and reports back; what is left is a few
//! calls to the runtime at a time. A worker owns its pod: nobody else touches its containers. One state machine, hence one file.

pub mod terminate;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Preconditions};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::facts::{Ended, Facts, Failure, Health, Hook, ImageFact, Step, StopReason};
use super::handler::Failed;
use super::plan::{Op, Plan, Waiting, plan};
use super::probe::{self, Finding};
use super::publish::Publisher;
use super::start::{self, Ground};
use super::view::{self, Observed};
use super::{images, spec, status, stop};
use crate::agent::{Agent, Known};
use crate::clock::{after, between};
use crate::events::Kind;
use crate::runtime::Container;
use crate::volumes::content::World;
use crate::volumes::{Prepared, VolumeError};

/// Reports waiting for the worker; whoever reports waits when it is full.
const REPORTS: usize = 64;
/// Rounds of looking and acting without a pause; each makes progress, so this only stops a mistake from spinning.
const MAX_ROUNDS: usize = 64;
/// Between looks while the runtime is away; its return wakes the worker sooner.
const RUNTIME_RETRY: Duration = Duration::from_secs(5);
/// Every pod is looked at this often even if nothing happens.
const RESYNC: Duration = Duration::from_secs(60);
/// How long a sandbox waits for the pod network.
const NETWORK_WAIT: Duration = Duration::from_secs(5);
/// First delay after a failed volume, sandbox or creation, doubling…
const RETRY_MIN: Duration = Duration::from_millis(500);
/// …up to this.
const RETRY_MAX: Duration = Duration::from_secs(20);
/// Volumes made of API objects are read again this often.
const VOLUME_REFRESH: Duration = Duration::from_secs(15);
/// What an ended pod's sandbox gets.
const SANDBOX_GRACE: Duration = Duration::from_secs(5);
/// A pod that was ready keeps serving this long after its deletion, so that balancers hear of it first.
pub const DRAIN_DELAY: Duration = Duration::from_millis(250);
/// Grace of containers whose pod is gone from the API.
const ORPHAN_GRACE: Duration = Duration::from_secs(2);
/// Between attempts to delete a finished pod from the API.
const DELETE_RETRY: Duration = Duration::from_secs(1);

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

/// The worker.
pub struct Worker {
    agent: Arc<Agent>,
    known: Known,
    reports: mpsc::Receiver<Report>,
    report: mpsc::Sender<Report>,
    publisher: Publisher,
    facts: Facts,
    prepared: Prepared,
    probes: HashMap<(String, probe::Kind), CancellationToken>,
    seen_at: Timestamp,
    waiting: BTreeMap<String, Waiting>,
    refresh_at: Option<Timestamp>,
    refreshing: bool,
    mount_failures: u32,
    /// Ends everything beside the worker when the worker ends.
    tasks: CancellationToken,
}

/// What one round did.
#[derive(PartialEq, Eq)]
enum Round {
    /// Something: look again at once.
    Again,
    /// Nothing more to do before this time, or an event.
    Until(Timestamp),
}

impl Worker {
    /// For a pod; start it with [`Worker::run`].
    pub fn new(agent: Arc<Agent>, known: Known) -> Self {
        let (report, reports) = mpsc::channel(REPORTS);
        let publisher = Publisher::start(agent.client.clone(), known.latest.clone());
        let seen_at = agent.clock.now();
        Self {
            agent,
            known,
            reports,
            report,
            publisher,
            facts: Facts::default(),
            prepared: Prepared::new(),
            probes: HashMap::new(),
            seen_at,
            waiting: BTreeMap::new(),
            refresh_at: None,
            refreshing: false,
            mount_failures: 0,
            tasks: CancellationToken::new(),
        }
    }

    /// Until the pod is gone.
    pub async fn run(mut self) {
        loop {
            let pod = self.known.latest.get();
            if self.is_gone() || pod.metadata.deletion_timestamp.is_some() {
                return self.terminate().await;
            }
            let mut round = Round::Again;
            for _ in 0..MAX_ROUNDS {
                round = self.round(&pod).await;
                if round != Round::Again || self.is_gone() {
                    break;
                }
            }
            let until = match round {
                Round::Again => after(self.agent.clock.now(), RETRY_MIN),
                Round::Until(at) => at,
            };
            self.wait(until).await;
        }
    }

    fn is_gone(&self) -> bool {
        self.known.gone.load(Ordering::Relaxed)
    }

    /// Until something happens or the time has come.
    async fn wait(&mut self, until: Timestamp) {
        let now = self.agent.clock.now();
        let until = self.refresh_at.filter(|_| !self.refreshing).map_or(until, |at| at.min(until));
        tokio::select! {
            () = self.known.poke.notified() => {}
            () = tokio::time::sleep(between(now, until)) => {}
            report = self.reports.recv() => if let Some(report) = report { self.take(report) }
        }
        if self.refresh_at.is_some_and(|at| at <= self.agent.clock.now()) && !self.refreshing {
            self.set_up_volumes();
        }
    }

    /// Looks, plans, tells, acts.
    async fn round(&mut self, pod: &Arc<Pod>) -> Round {
        while let Ok(report) = self.reports.try_recv() {
            self.take(report);
        }
        let now = self.agent.clock.now();
        let found = match self.agent.runtime.pod(view::uid(pod)).await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, pod = view::name(pod), "cannot look at the pod's containers");
                return Round::Until(after(now, RUNTIME_RETRY));
            }
        };
        let mut observed = Observed::new(found);
        self.notice(pod, &observed).await;
        let deadline = self.check_deadline(pod, now);
        let decided = plan(pod, &observed, &self.facts, now);
        self.announce(pod, &decided);
        self.publish(pod, &observed, &decided);
        let mut again = false;
        for op in &decided.ops {
            again |= self.apply(op, pod, &mut observed).await;
        }
        if again {
            return Round::Again;
        }
        let resync = after(now, RESYNC);
        Round::Until([decided.wake, deadline].into_iter().flatten().fold(resync, Timestamp::min))
    }

    fn publish(&self, pod: &Pod, observed: &Observed, decided: &Plan) {
        let over = decided.finished && observed.running().next().is_none();
        self.publish_as(pod, observed, &decided.waiting, over);
    }

    fn publish_as(&self, pod: &Pod, observed: &Observed, waiting: &BTreeMap<String, Waiting>, over: bool) {
        self.publisher.publish(status::generate(&status::Input {
            pod,
            observed,
            facts: &self.facts,
            waiting,
            host_ip: self.agent.config.node_ip,
            seen_at: self.seen_at,
            now: self.agent.clock.now(),
            over,
            runtime: &self.agent.runtime_name,
        }));
    }

    /// Learns from what runs and what has ended: health of new containers, probes, termination messages.
    async fn notice(&mut self, pod: &Arc<Pod>, observed: &Observed) {
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

    /// `activeDeadlineSeconds`: when it will strike, or the verdict if it has.
    fn check_deadline(&mut self, pod: &Pod, now: Timestamp) -> Option<Timestamp> {
        let seconds = u64::try_from(view::spec(pod).active_deadline_seconds?).ok()?;
        if view::has_ended(pod) || self.facts.ended.is_some() {
            return None;
        }
        let started = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map_or(self.seen_at, |t| t.0);
        let strikes = after(started, Duration::from_secs(seconds));
        if now < strikes {
            return Some(strikes);
        }
        let message = "Pod was active on the node longer than the specified deadline".to_owned();
        self.agent.events.pod(pod, None, Kind::Normal, "DeadlineExceeded", message.clone());
        self.facts.ended = Some(Ended { reason: "DeadlineExceeded".into(), message });
        None
    }

    /// Events for what the plan waits for, once each time it begins to.
    fn announce(&mut self, pod: &Pod, decided: &Plan) {
        for (name, waiting) in &decided.waiting {
            let began = self.waiting.get(name).is_none_or(|before| before.reason != waiting.reason);
            if began && waiting.reason == "CrashLoopBackOff" {
                let text = format!("Back-off restarting failed container {name} in pod {}", view::described(pod));
                self.agent.events.pod(pod, Some(name), Kind::Warning, "BackOff", text);
            }
        }
        self.waiting.clone_from(&decided.waiting);
    }

    /// Does one operation, or starts it; whether to look again at once.
    async fn apply(&mut self, op: &Op, pod: &Arc<Pod>, observed: &mut Observed) -> bool {
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
    fn set_up_volumes(&mut self) {
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

    fn failure(&self, reason: &'static str, message: String, attempts: u32) -> Failure {
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
        hook: super::handler::Action,
    ) {
        let target = super::handler::Target {
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

    /// Takes a report in.
    fn take(&mut self, report: Report) {
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
