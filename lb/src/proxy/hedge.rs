//! Rivals of slow requests: after a delay without answer another endpoint is asked, too. The first answer counts; the others are
//! cancelled, and their connections dropped, because an answer may still come over them.
//!
//! Only for idempotent requests without body and without upgrade.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::attempt::{ask, checkout};
use super::decide::Forward;
use super::exchange::Broke;
use super::http::Conn;
use super::io::Stream;
use super::pool::Upstream;
use super::record::Record;
use crate::backend::{EndpointState, Tried};
use crate::balance::{self, Choice};
use crate::stats::add;

/// Rivals at once, whatever a policy says.
pub(super) const MAX_RIVALS: u32 = 4;

/// How a request is hedged.
pub(super) struct Plan {
    /// Before each rival.
    pub delay: Duration,
    pub rivals: u32,
    /// Longest wait for the first answer.
    pub timeout: Option<Duration>,
    pub choice: Choice,
    /// Index of the endpoint asked first.
    pub first: usize,
}

/// Sends `conn`'s request over `first` and, as long as nothing comes back, to others. The connection over which the response begins.
pub(super) async fn race<S: Stream>(
    conn: &mut Conn<'_, S>,
    work: &Forward,
    first: Upstream,
    plan: Plan,
    record: &Record,
) -> Result<Upstream, Broke> {
    // The head is needed while the client's connection is watched.
    let head = std::mem::take(&mut conn.head);
    let result = match plan.timeout {
        None => run(conn, &head, work, first, &plan, record).await,
        Some(timeout) => {
            let race = tokio::time::timeout(timeout, run(conn, &head, work, first, &plan, record));
            race.await.unwrap_or(Err(Broke::Timeout))
        }
    };
    conn.head = head;
    result
}

async fn run<S: Stream>(
    conn: &mut Conn<'_, S>,
    head: &[u8],
    work: &Forward,
    first: Upstream,
    plan: &Plan,
    record: &Record,
) -> Result<Upstream, Broke> {
    let worker = conn.worker.clone();
    let stats = work.backend.stats.shard(worker.index);
    let begun = first.endpoint.clone();
    let mut tried = Tried::default();
    tried.insert(plan.first);
    let mut asked = FuturesUnordered::new();
    asked.push(one(record, begun.clone(), Some(first), head));
    let mut timer = std::pin::pin!(tokio::time::sleep(plan.delay));
    let mut rivals = 0;
    loop {
        tokio::select! {
            biased;
            answer = asked.next() => match answer {
                Some(Ok((upstream, since))) => {
                    if !Arc::ptr_eq(&upstream.endpoint, &begun) {
                        record.sent_to(&upstream.endpoint, since);
                    }
                    return Ok(upstream);
                }
                Some(Err(broke)) if asked.is_empty() => return Err(broke),
                Some(Err(_)) => {}
                None => return Err(Broke::Endpoint),
            },
            () = &mut timer, if rivals < plan.rivals.min(MAX_RIVALS) => {
                timer.as_mut().reset(tokio::time::Instant::now() + plan.delay);
                // Without a place in the budget a later one may have it.
                let may = balance::may_hedge(&work.rule, rivals);
                rivals += 1;
                if may && let Ok(Some((index, rival))) = record.choose(&plan.choice, tried) {
                    tried.insert(index);
                    add(&stats.retries, 1);
                    asked.push(one(record, rival.clone(), None, head));
                }
            }
            () = conn.gone() => return Err(Broke::Client),
        }
    }
}

/// Asks one endpoint; the connection with the beginning of its answer, and when it was asked.
async fn one(
    record: &Record,
    endpoint: Arc<EndpointState>,
    open: Option<Upstream>,
    head: &[u8],
) -> Result<(Upstream, Instant), Broke> {
    let since = Instant::now();
    let _rival = open.is_none().then(|| InFlight::begin(&endpoint, record.worker.index));
    let upstream = match open {
        Some(upstream) => upstream,
        None => {
            let http2 = record.rule.speaks_http2(&record.backend);
            checkout(record, &endpoint, since, http2).await.map_err(|_| Broke::Unsent)?.0
        }
    };
    Ok((ask(&record.worker, upstream, head).await?, since))
}

/// Counts a rival at its endpoint until the race is over; the first is counted by the request's record.
pub(super) struct InFlight {
    endpoint: Arc<EndpointState>,
    thread: usize,
}

impl InFlight {
    pub fn begin(endpoint: &Arc<EndpointState>, thread: usize) -> Self {
        endpoint.begin(thread);
        Self { endpoint: endpoint.clone(), thread }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.end(self.thread);
    }
}
