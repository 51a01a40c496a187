//! What is told about single requests, beside counters: access log and spans. Set up once, shared by all proxy threads.
//!
//! Threads only put things into bounded queues and never wait; one task each writes the log and sends spans. What does not fit is
//! counted and lost.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::access::{self, Sink};
use crate::trace::{self, Tracer};

/// What is told, and where to. The default tells nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct ObserveConfig {
    /// Where the access log goes.
    pub access_log: Option<AccessTarget>,
    /// Share of requests in it, in percent, where no policy says otherwise. Above 0, answers of class 5xx are always in it.
    pub access_log_percent: f64,
    /// Log queries, too: they may hold secrets.
    pub access_log_query: bool,
    /// Size at which the file is put aside, in bytes.
    pub access_log_max_bytes: u64,
    /// Files put aside that are kept.
    pub access_log_kept: u32,
    /// `http://HOST:PORT` of a collector that takes OTLP/HTTP.
    pub otlp_endpoint: Option<String>,
    /// Share of requests without a caller's decision that are traced, in percent.
    pub trace_percent: f64,
    /// Watch Pods, to count requests by image. Costs an entry per Pod of the cluster.
    pub image_metrics: bool,
}

impl Default for ObserveConfig {
    fn default() -> Self {
        Self {
            access_log: None,
            access_log_percent: 100.0,
            access_log_query: false,
            access_log_max_bytes: 100 << 20,
            access_log_kept: 5,
            otlp_endpoint: None,
            trace_percent: 1.0,
            image_metrics: false,
        }
    }
}

/// Where the access log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessTarget {
    /// Standard output.
    Stdout,
    /// A file, appended to.
    File(PathBuf),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Observers {
    pub access: Option<Sink>,
    pub tracer: Option<Tracer>,
}

/// Sums since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ObserverTotals {
    pub lines: u64,
    pub lines_dropped: u64,
    pub spans: u64,
    pub spans_dropped: u64,
}

impl Observers {
    /// From the configuration; nothing is opened or sent before [`Observers::start`].
    pub fn new(config: &ObserveConfig) -> Self {
        Self {
            access: config.access_log.clone().map(|target| Sink::new(target, config)),
            tracer: config.otlp_endpoint.as_deref().and_then(|endpoint| {
                Tracer::new(endpoint, config.trace_percent)
                    .inspect_err(|error| tracing::error!(endpoint, %error, "requests are not traced"))
                    .ok()
            }),
        }
    }

    /// Starts the tasks that write and send, until `stop`; what is queued then is still delivered.
    pub fn start(self: &Arc<Self>, parts: &mut JoinSet<()>, stop: &CancellationToken) {
        if self.access.is_some() {
            parts.spawn(access::writer::run(self.clone(), stop.clone()));
        }
        if self.tracer.is_some() {
            parts.spawn(trace::export::run(self.clone(), stop.clone()));
        }
    }

    /// Sums since the start.
    pub fn totals(&self) -> ObserverTotals {
        let (lines, lines_dropped) = self.access.as_ref().map(Sink::totals).unwrap_or_default();
        let (spans, spans_dropped) = self.tracer.as_ref().map(Tracer::totals).unwrap_or_default();
        ObserverTotals { lines, lines_dropped, spans, spans_dropped }
    }
}
