//! What a pod's worker knows that the runtime does not: probe results, failures and when to try again.
//!
//! Lost when the agent ends, by design: everything here is found out again, and nothing here makes a healthy container
//! restart.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;

use super::backoff::Backoff;
use crate::runtime::Image;

/// A failed step and when it is worth trying again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Waiting reason, e.g. `CreateContainerConfigError`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// Earliest next attempt.
    pub retry_at: Timestamp,
    /// Attempts that failed in a row, for the delay of the next.
    pub attempts: u32,
}

/// A step that is done once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Step {
    /// Not begun.
    #[default]
    Idle,
    /// Somebody is at it.
    Running,
    /// Done.
    Done,
    /// Failed.
    Failed(Failure),
}

/// A container's image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageFact {
    /// Being looked up or pulled.
    Pulling,
    /// On this machine.
    Ready(Image),
    /// Not to be had (now).
    Failed(Failure),
}

/// A `postStart` hook.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Hook {
    /// There is none, or it has run.
    #[default]
    Done,
    /// It runs.
    Running,
}

/// Why a running container must be stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Liveness probe.
    Liveness,
    /// Startup probe.
    Startup,
    /// `postStart` failed.
    PostStart,
    /// Its spec (image) has changed.
    Changed,
    /// Its sandbox is gone.
    SandboxGone,
    /// The pod has ended or is being deleted.
    PodEnded,
}

/// What is known of a running container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Container name.
    pub name: String,
    /// Startup probe has passed, or there is none.
    pub started: bool,
    /// Readiness probe passes, or there is none.
    pub ready: bool,
    /// `postStart`.
    pub post_start: Hook,
    /// Must be stopped.
    pub doomed: Option<StopReason>,
    /// Grace of that stop, if the probe names one (`terminationGracePeriodSeconds`).
    pub doom_grace_s: Option<u64>,
}

/// Why the pod has ended, whatever its containers say (`activeDeadlineSeconds`, eviction).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// `status.reason`
    pub reason: String,
    /// `status.message`
    pub message: String,
}

/// Everything a worker knows.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Volumes are in place.
    pub volumes: Step,
    /// Images by container name.
    pub images: HashMap<String, ImageFact>,
    /// Pull backoff by image.
    pub pulls: HashMap<String, Backoff>,
    /// Failed creations by container name.
    pub create: HashMap<String, Failure>,
    /// Failed sandbox.
    pub sandbox: Option<Failure>,
    /// Restart backoff by container name.
    pub restarts: HashMap<String, Backoff>,
    /// Running containers by id.
    pub health: HashMap<String, Health>,
    /// Containers being stopped, by id.
    pub stopping: HashSet<String>,
    /// Termination messages by id.
    pub messages: HashMap<String, String>,
    /// Set once the pod has ended by decree.
    pub ended: Option<Ended>,
}

impl Facts {
    /// Whether the container with that id counts as ready.
    pub fn is_ready(&self, id: &str) -> bool {
        self.health.get(id).is_some_and(|h| h.started && h.ready && h.post_start == Hook::Done)
    }
    /// Whether the container with that id has started (startup probe and `postStart`).
    pub fn is_started(&self, id: &str) -> bool {
        self.health.get(id).is_some_and(|h| h.started && h.post_start == Hook::Done)
    }
}
