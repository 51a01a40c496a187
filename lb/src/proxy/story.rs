//! What log and spans tell of a request that is over, however it was served.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use crate::access::{self, Description, Ending, Flags};
use crate::observe::Observers;
use crate::plugin::Verdict;
use crate::route::Rule;
use crate::trace::{Attempt, Context, Trace, context};

/// See the module.
pub(super) struct Story<'a> {
    pub request: Description,
    /// It goes to the access log.
    pub logged: bool,
    /// With tracing.
    pub context: Option<Context>,
    pub rule: Option<&'a Rule>,
    /// `namespace/name` of the Service that it went to.
    pub service: Option<String>,
    /// The endpoint that was asked last, and the UID of its Pod.
    pub upstream: Option<SocketAddr>,
    pub pod: Option<&'a str>,
    /// How many attempts were made, and those that have spans.
    pub attempts: u32,
    pub spans: Vec<Attempt>,
    /// What a plugin said about it.
    pub verdict: Option<Verdict>,
    /// `None`: the client left before it was told anything.
    pub status: Option<u16>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub duration: Duration,
    pub flags: Flags,
}

impl Story<'_> {
    /// Logs and traces it.
    pub fn tell(self, observers: &Observers) {
        if let Some(sink) = observers.access.as_ref().filter(|_| self.logged) {
            let ending = Ending {
                status: self.status,
                bytes_in: self.bytes_in,
                bytes_out: self.bytes_out,
                duration: self.duration,
                upstream: self.upstream,
                pod: self.pod,
                attempts: self.attempts,
                verdict: self.verdict.as_ref(),
                rule: self.rule.map(|rule| &rule.id),
                service: self.service,
                trace: self.context.as_ref().map(|context| context::hex(&context.trace_id)),
                flags: self.flags,
            };
            let now = k8s_openapi::jiff::Timestamp::now();
            let took = k8s_openapi::jiff::SignedDuration::try_from(self.duration).unwrap_or_default();
            sink.log(access::line(now.checked_sub(took).unwrap_or(now), &self.request, sink.query, &ending));
        }
        if let Some((tracer, context)) = observers.tracer.as_ref().zip(self.context)
            && context.sampled
        {
            let end = SystemTime::now();
            tracer.send(Box::new(Trace {
                context,
                request: self.request,
                rule: self.rule.map(|rule| access::rule_name(&rule.id)),
                route: self.rule.map(|rule| rule.path.text().to_string()),
                start: end.checked_sub(self.duration).unwrap_or(end),
                end,
                status: self.status,
                verdict: self.verdict,
                attempts: self.spans,
            }));
        }
    }
}
