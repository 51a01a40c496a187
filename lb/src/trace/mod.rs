//! Tracing of requests: W3C trace context in and out, spans to a collector.
//!
//! Off (no [`Tracer`]), the headers pass as they are and a request costs one comparison. On, an invalid context is replaced by a new
//! one, a valid one is continued with its caller's decision whether to sample.

pub(crate) mod context;
pub(crate) mod export;
pub(crate) mod span;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio::sync::mpsc;

pub(crate) use context::Context;
pub(crate) use span::{Attempt, Trace};

use crate::route::Head;

/// Traces that wait to be sent; more are lost.
const MAX_WAITING: usize = 2_048;

/// Why there is no tracing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EndpointError {
    #[error("an OTLP endpoint is of the form http://HOST:PORT")]
    Form,
}

/// Decides which requests are traced, and takes their spans.
#[derive(Debug)]
pub(crate) struct Tracer {
    /// Share of requests without a caller's decision that are sampled, in percent.
    percent: f64,
    /// Where to.
    pub collector: export::Collector,
    traces: mpsc::Sender<Box<Trace>>,
    exported: AtomicU64,
    dropped: AtomicU64,
    /// Taken by the exporter when it starts.
    waiting: Mutex<Option<mpsc::Receiver<Box<Trace>>>>,
}

impl Tracer {
    /// For a collector at `endpoint`; nothing is connected yet.
    pub fn new(endpoint: &str, percent: f64) -> Result<Self, EndpointError> {
        let collector = export::Collector::parse(endpoint).ok_or(EndpointError::Form)?;
        let (traces, receiver) = mpsc::channel(MAX_WAITING);
        Ok(Self {
            percent,
            collector,
            traces,
            exported: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            waiting: Mutex::new(Some(receiver)),
        })
    }

    /// The context of a request with this head.
    pub fn accept_head(&self, head: &impl Head) -> Context {
        self.accept(head.header("traceparent").as_deref(), head.header("tracestate").as_deref())
    }

    fn accept(&self, traceparent: Option<&str>, tracestate: Option<&str>) -> Context {
        Context::accept(traceparent, tracestate, || {
            self.percent >= 100.0 || (self.percent > 0.0 && rand::random::<f64>() * 100.0 < self.percent)
        })
    }

    /// Queues a trace.
    pub fn send(&self, trace: Box<Trace>) {
        if let Err(refused) = self.traces.try_send(trace) {
            self.dropped.fetch_add(refused.into_inner().len(), Relaxed);
        }
    }

    /// Spans that the collector took, and that were lost.
    pub fn totals(&self) -> (u64, u64) {
        (self.exported.load(Relaxed), self.dropped.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_decides_before_the_share_does() {
        let never = Tracer::new("http://127.0.0.1:4318", 0.0).expect("an endpoint");
        let always = Tracer::new("http://127.0.0.1:4318", 100.0).expect("an endpoint");
        let parent = |flags: &str| format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
        assert!(never.accept(Some(&parent("01")), None).sampled && !never.accept(None, None).sampled);
        assert!(!always.accept(Some(&parent("00")), None).sampled && always.accept(None, None).sampled);
        assert!(always.accept(Some("00-nonsense"), None).sampled, "nobody decided");
        assert!(Tracer::new("https://a:1", 1.0).is_err() && Tracer::new("a:4318", 1.0).is_err());
    }
}
