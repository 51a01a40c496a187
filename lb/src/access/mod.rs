//! The access log: one JSON object per line.
//!
//! A request costs a comparison when there is no log. A line is made on the proxy thread when the request is over, and only for
//! requests that are logged; it never waits for the writer.

mod head;
mod line;
pub(crate) mod writer;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio::sync::mpsc;

pub(crate) use head::{WrittenHead, without_port};
pub(crate) use line::{Description, Ending, Flags, Wire, line, rule_name};

use crate::observe::{AccessTarget, ObserveConfig};

/// Lines that wait for the writer; more are lost.
const MAX_WAITING: usize = 8_192;

/// Where finished lines go.
#[derive(Debug)]
pub(crate) struct Sink {
    /// Share of requests that are logged, in percent.
    percent: f64,
    /// Log queries.
    pub query: bool,
    lines: mpsc::Sender<Vec<u8>>,
    written: AtomicU64,
    dropped: AtomicU64,
    /// Taken by the writer when it starts.
    waiting: Mutex<Option<(mpsc::Receiver<Vec<u8>>, writer::Writer)>>,
}

impl Sink {
    /// Nothing is opened yet.
    pub fn new(target: AccessTarget, config: &ObserveConfig) -> Self {
        let (lines, receiver) = mpsc::channel(MAX_WAITING);
        let writer = writer::Writer::new(target, config.access_log_max_bytes, config.access_log_kept);
        Self {
            percent: config.access_log_percent,
            query: config.access_log_query,
            lines,
            written: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            waiting: Mutex::new(Some((receiver, writer))),
        }
    }

    /// Whether and how a request is logged, decided when it begins. `policy` is what its rule says, in percent.
    pub fn decide(&self, policy: Option<f64>) -> Decision {
        let percent = policy.unwrap_or(self.percent);
        if percent >= 100.0 || (percent > 0.0 && rand::random::<f64>() * 100.0 < percent) {
            Decision::Always
        } else if percent > 0.0 {
            Decision::Failures
        } else {
            Decision::Never
        }
    }

    /// Queues a line, which ends in a line feed.
    pub fn log(&self, line: Vec<u8>) {
        if self.lines.try_send(line).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Lines written and lost.
    pub fn totals(&self) -> (u64, u64) {
        (self.written.load(Relaxed), self.dropped.load(Relaxed))
    }
}

/// Whether a request is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nothing is.
    Never,
    /// Only an answer of class 5xx is.
    Failures,
    /// Whatever comes of it.
    Always,
}

impl Decision {
    /// Whether an answer with this status is logged.
    pub fn covers(self, code: u16) -> bool {
        match self {
            Self::Never => false,
            Self::Failures => (500..600).contains(&code),
            Self::Always => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_go_before_the_setting_and_failures_are_logged_above_nothing() {
        let config = ObserveConfig { access_log_percent: 0.0, ..ObserveConfig::default() };
        let sink = Sink::new(AccessTarget::Stdout, &config);
        assert_eq!(sink.decide(None), Decision::Never);
        assert_eq!(sink.decide(Some(100.0)), Decision::Always);
        let few = (0..1_000).map(|_| sink.decide(Some(1.0))).filter(|d| *d == Decision::Always).count();
        // Ten are expected; a hundred would be thirty standard deviations away.
        assert!(few < 100, "{few}");
        assert!(!Decision::Never.covers(503) && !Decision::Failures.covers(404));
        // A client that went away (600) is not a failure of a server.
        assert!(Decision::Failures.covers(503) && !Decision::Failures.covers(600) && Decision::Always.covers(200));
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let sink = Sink::new(AccessTarget::Stdout, &ObserveConfig::default());
        (0..MAX_WAITING + 3).for_each(|_| sink.log(b"x\n".to_vec()));
        assert_eq!(sink.totals(), (0, 3));
    }
}
