//! One pod's worker: looks, plans, acts, tells, waits.
//!
//! ```text
//! Syncing ──deletionTimestamp──► Terminating ──► removed from the API
//!    └────────gone from the API────────┴────────► cleaned up
//! ```
//! Everything that takes long (pulls, volumes, stops, hooks, probes) runs beside it and reports back; what is left is a few
//! calls to the runtime at a time. A worker owns its pod: nobody else touches its containers.
//! `act` is what it does, `learn` what it takes in.

mod act;
mod learn;
pub mod terminate;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Preconditions};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::facts::{Ended, Facts};
use super::plan::{Plan, Waiting, plan};
use super::publish::Publisher;
use super::view::{self, Observed};
use super::{probe, status};
use crate::agent::{Agent, Known};
use crate::clock::{after, between};
use crate::events::Kind;
use crate::volumes::Prepared;
pub use learn::Report;

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
}
