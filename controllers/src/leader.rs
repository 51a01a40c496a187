//! Leader election through a Lease (`coordination.k8s.io/v1`), with client-go's timing and record.
//!
//! Every candidate watches how long the record has not changed *by its own clock*; clocks of different machines are
//! never compared. A leader that cannot renew stops leading before another may start.

use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client};
use prometheus_client::metrics::gauge::Gauge;
use rand::RngExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::base::calls::{self, Error};

/// What is elected, and how patiently.
#[derive(Clone, Debug)]
pub struct Config {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease, e.g. `kube-controller-manager`.
    pub name: String,
    /// Who we are; unique among candidates.
    pub identity: String,
    /// How long a record counts after it last changed.
    pub lease_duration: Duration,
    /// How long a leader tries to renew before it gives up; less than `lease_duration`.
    pub renew_deadline: Duration,
    /// Pause between attempts.
    pub retry_period: Duration,
}

impl Config {
    /// Upstream's defaults: 15 s, 10 s, 2 s.
    pub fn new(namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            identity: identity.into(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// What an attempt should do about the record it read.
#[derive(Debug, PartialEq)]
enum Step {
    /// No record: create ours.
    Create,
    /// Ours, released or expired: write ours.
    Take {
        /// Whether the holder changes.
        transition: bool,
    },
    /// Somebody else's.
    Wait,
}

/// The record as we last saw it, and since when it is unchanged.
#[derive(Default)]
struct Observed {
    record: Option<LeaseSpec>,
    since: Option<Instant>,
}

impl Observed {
    fn note(&mut self, record: Option<&LeaseSpec>, now: Instant) {
        if self.since.is_none() || self.record.as_ref() != record {
            self.record = record.cloned();
            self.since = Some(now);
        }
    }
    fn step(&self, identity: &str, lease_duration: Duration, now: Instant) -> Step {
        let (Some(record), Some(since)) = (&self.record, self.since) else { return Step::Create };
        let holder = record.holder_identity.as_deref().unwrap_or_default();
        if holder == identity {
            Step::Take { transition: false }
        } else if holder.is_empty() || now - since >= lease_duration {
            Step::Take { transition: true }
        } else {
            Step::Wait
        }
    }
}

/// A candidate.
pub struct Elector {
    api: Api<Lease>,
    config: Config,
    observed: Observed,
    gauge: Gauge,
}

impl Elector {
    /// A candidate for the Lease that `config` names; `gauge` is 1 while it leads.
    pub fn new(client: Client, config: Config, gauge: Gauge) -> Self {
        let api = Api::namespaced(client, &config.namespace);
        Self { api, config, observed: Observed::default(), gauge }
    }

    /// Runs `lead` whenever elected, each time with a token that is cancelled when leadership is lost or `shutdown`
    /// comes; `lead` must return soon then. Returns after `shutdown`, with the Lease released.
    pub async fn run<F, Fut>(mut self, shutdown: CancellationToken, mut lead: F)
    where
        F: FnMut(CancellationToken) -> Fut,
        Fut: Future<Output = ()>,
    {
        while !shutdown.is_cancelled() {
            if !self.acquire(&shutdown).await {
                return;
            }
            info!(lease = %self.config.name, identity = %self.config.identity, "became leader");
            self.gauge.set(1);
            let leading = shutdown.child_token();
            let renewing = async {
                self.renew(&leading).await;
                leading.cancel();
            };
            tokio::join!(lead(leading.clone()), renewing);
            self.gauge.set(0);
            if shutdown.is_cancelled() {
                self.release().await;
            } else {
                warn!(lease = %self.config.name, "lost leadership; standing again");
            }
        }
    }

    async fn acquire(&mut self, shutdown: &CancellationToken) -> bool {
        loop {
            match self.attempt().await {
                Ok(true) => return true,
                Ok(false) => {}
                Err(e) => debug!(lease = %self.config.name, error = %e, "cannot acquire the lease; will retry"),
            }
            let pause = self.config.retry_period.mul_f64(rand::rng().random_range(1.0..1.2));
            tokio::select! {
                () = shutdown.cancelled() => return false,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Returns when leadership is lost or `leading` was cancelled.
    async fn renew(&mut self, leading: &CancellationToken) {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                () = leading.cancelled() => return,
                () = tokio::time::sleep(self.config.retry_period) => {}
            }
            let deadline = renewed + self.config.renew_deadline;
            match tokio::time::timeout_at(deadline, self.attempt()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => return,
                Ok(Err(e)) => debug!(lease = %self.config.name, error = %e, "cannot renew the lease; will retry"),
                Err(_) => return,
            }
            if Instant::now() >= deadline {
                return;
            }
        }
    }

    /// One try to get or keep the Lease: whether we hold it now.
    async fn attempt(&mut self) -> Result<bool, Error> {
        let name = self.config.name.clone();
        let current = calls::call("get Lease", &name, self.api.get_opt(&name)).await?;
        let now = Instant::now();
        self.observed.note(current.as_ref().and_then(|l| l.spec.as_ref()), now);
        let step = self.observed.step(&self.config.identity, self.config.lease_duration, now);
        let written = match (step, current) {
            (Step::Wait, _) => return Ok(false),
            (_, None) => {
                let lease = self.lease(None, false);
                calls::create("create Lease", &self.api, &name, &lease).await
            }
            (step, Some(current)) => {
                let lease = self.lease(Some(current), step != Step::Take { transition: false });
                calls::replace("update Lease", &self.api, &name, &lease).await
            }
        };
        match written {
            Ok(lease) => {
                self.observed.note(lease.spec.as_ref(), Instant::now());
                Ok(true)
            }
            Err(e) if e.is_conflict() || e.is_already_exists() => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn lease(&self, current: Option<Lease>, transition: bool) -> Lease {
        let now = scaleup_api::time::now_micro();
        let seconds = i32::try_from(self.config.lease_duration.as_secs()).unwrap_or(i32::MAX);
        let mut lease = current.unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(self.config.name.clone()),
                namespace: Some(self.config.namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: None,
        });
        let old = lease.spec.take();
        let acquired = old.as_ref().filter(|_| !transition).and_then(|s| s.acquire_time.clone());
        let transitions = old.as_ref().and_then(|s| s.lease_transitions).unwrap_or(0);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.config.identity.clone()),
            lease_duration_seconds: Some(seconds),
            acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if transition { transitions.saturating_add(1) } else { transitions }),
            ..LeaseSpec::default()
        });
        lease
    }

    /// Lets the next candidate in at once.
    async fn release(&self) {
        let name = self.config.name.as_str();
        let Ok(Some(mut lease)) = calls::call("get Lease", name, self.api.get_opt(name)).await else { return };
        let Some(spec) = lease.spec.as_mut().filter(|s| s.holder_identity.as_ref() == Some(&self.config.identity))
        else {
            return;
        };
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        if let Err(e) = calls::replace("update Lease", &self.api, name, &lease).await {
            debug!(lease = name, error = %e, "lease not released; it will expire");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(15);

    fn record(holder: &str, transitions: i32) -> LeaseSpec {
        LeaseSpec { holder_identity: Some(holder.into()), lease_transitions: Some(transitions), ..LeaseSpec::default() }
    }

    fn check(record: Option<LeaseSpec>, unchanged_for_s: u64, want: Step) {
        let start = Instant::now();
        let now = start + Duration::from_secs(unchanged_for_s);
        let mut observed = Observed::default();
        observed.note(record.as_ref(), start);
        observed.note(record.as_ref(), now);
        assert_eq!(observed.step("me", LEASE, now), want, "{record:?} for {unchanged_for_s} s");
    }

    #[test]
    fn only_a_free_or_expired_lease_is_taken() {
        check(None, 0, Step::Create);
        check(Some(record("me", 0)), 100, Step::Take { transition: false });
        check(Some(record("", 0)), 0, Step::Take { transition: true });
        check(Some(record("you", 0)), 14, Step::Wait);
        check(Some(record("you", 0)), 15, Step::Take { transition: true });
    }

    #[test]
    fn a_renewed_lease_does_not_expire() {
        let start = Instant::now();
        let mut observed = Observed::default();
        observed.note(Some(&record("you", 0)), start);
        observed.note(Some(&record("you", 1)), start + Duration::from_secs(14));
        assert_eq!(observed.step("me", LEASE, start + Duration::from_secs(20)), Step::Wait);
    }
}
