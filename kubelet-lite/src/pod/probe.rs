//! Probes of one container (`prober/worker.go`): one task per probe, which says only when its verdict changes.

use std::time::Duration;

use k8s_openapi::api::core::v1::Probe;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::handler::{Action, Target};
use super::worker::Report;

/// Defaults of `v1.Probe`.
const PERIOD_S: i32 = 10;
const TIMEOUT_S: i32 = 1;
const FAILURES: i32 = 3;
const SUCCESSES: i32 = 1;

/// A container that has never been ready is asked sooner than its period, from this delay doubling up to the period: most
/// need a few milliseconds to open their port, and a period is ten seconds. These attempts count for nothing when they fail.
const EAGER_DELAY: Duration = Duration::from_millis(100);

/// Which probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `startupProbe`
    Startup,
    /// `readinessProbe`
    Readiness,
    /// `livenessProbe`
    Liveness,
}

impl Kind {
    /// As events name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// One attempt failed: an event, nothing more.
    Attempt(String),
    /// `successThreshold` attempts in a row succeeded.
    Passed,
    /// `failureThreshold` attempts in a row failed.
    Failed(String),
}

/// A probe as numbers.
#[derive(Clone, Debug)]
pub struct Settings {
    action: Action,
    delay: Duration,
    period: Duration,
    timeout: Duration,
    failures: u32,
    successes: u32,
}

fn seconds(value: Option<i32>, default: i32) -> Duration {
    Duration::from_secs(u64::try_from(value.filter(|v| *v > 0).unwrap_or(default)).unwrap_or(0))
}

fn count(value: Option<i32>, default: i32) -> u32 {
    u32::try_from(value.filter(|v| *v > 0).unwrap_or(default)).unwrap_or(1)
}

impl Settings {
    /// With the API's defaults.
    pub fn new(probe: &Probe) -> Self {
        let action = if let Some(exec) = &probe.exec {
            Action::Exec(exec.clone())
        } else if let Some(http) = &probe.http_get {
            Action::Http(http.clone())
        } else if let Some(tcp) = &probe.tcp_socket {
            Action::Tcp(tcp.clone())
        } else {
            Action::Unsupported("a gRPC probe")
        };
        Self {
            action,
            delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, PERIOD_S),
            timeout: seconds(probe.timeout_seconds, TIMEOUT_S),
            failures: count(probe.failure_threshold, FAILURES),
            successes: count(probe.success_threshold, SUCCESSES),
        }
    }
}

/// Counts attempts; pure.
#[derive(Debug, Default)]
struct Streak {
    last: Option<bool>,
    length: u32,
    verdict: Option<bool>,
}

impl Streak {
    /// The verdict, if this attempt changes it.
    fn add(&mut self, passed: bool, settings: &Settings) -> Option<bool> {
        self.length = if self.last == Some(passed) { self.length.saturating_add(1) } else { 1 };
        self.last = Some(passed);
        let needed = if passed { settings.successes } else { settings.failures };
        if self.length < needed || self.verdict == Some(passed) {
            return None;
        }
        self.verdict = Some(passed);
        Some(passed)
    }
}

/// Probes until cancelled, until a startup probe has passed, or until the container must be stopped. `age` is how long the
/// container has run already.
pub async fn run(
    target: Target,
    kind: Kind,
    settings: Settings,
    age: Duration,
    reports: mpsc::Sender<Report>,
    cancel: CancellationToken,
) {
    let work = async {
        tokio::time::sleep(settings.delay.saturating_sub(age)).await;
        let mut streak = Streak::default();
        let mut eager = (kind == Kind::Readiness).then_some(EAGER_DELAY);
        loop {
            let began = tokio::time::Instant::now();
            let outcome = target.run(&settings.action, settings.timeout).await;
            if outcome.is_err()
                && let Some(delay) = eager.filter(|d| *d < settings.period)
            {
                eager = Some(delay * 2);
                tokio::time::sleep(delay).await;
                continue;
            }
            eager = None;
            let message = outcome.as_ref().err().map(|failed| failed.0.clone());
            let mut findings: Vec<Finding> = message.iter().cloned().map(Finding::Attempt).collect();
            match streak.add(outcome.is_ok(), &settings) {
                Some(true) => findings.push(Finding::Passed),
                Some(false) => findings.push(Finding::Failed(message.unwrap_or_default())),
                None => {}
            }
            let last = match findings.last() {
                Some(Finding::Passed) => kind == Kind::Startup,
                Some(Finding::Failed(_)) => kind != Kind::Readiness,
                _ => false,
            };
            for finding in findings {
                let report = Report::Probe { id: target.id.clone(), kind, finding };
                if reports.send(report).await.is_err() {
                    return;
                }
            }
            if last {
                return;
            }
            tokio::time::sleep_until(began + settings.period).await;
        }
    };
    // Either way the task is over.
    let _ended = cancel.run_until_cancelled(work).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_need_their_thresholds() {
        let probe = Probe { failure_threshold: Some(2), success_threshold: Some(2), ..Probe::default() };
        let settings = Settings::new(&probe);
        let mut streak = Streak::default();
        let attempts = [true, true, true, false, true, false, false, false, true, true];
        let got: Vec<Option<bool>> = attempts.into_iter().map(|passed| streak.add(passed, &settings)).collect();
        let (t, f) = (Some(true), Some(false));
        assert_eq!(got, [None, t, None, None, None, None, f, None, None, t]);
    }

    #[test]
    fn defaults_are_the_apis() {
        let settings = Settings::new(&Probe { period_seconds: Some(0), ..Probe::default() });
        assert_eq!((settings.period.as_secs(), settings.timeout.as_secs()), (10, 1));
        assert_eq!((settings.failures, settings.successes), (3, 1));
    }
}
