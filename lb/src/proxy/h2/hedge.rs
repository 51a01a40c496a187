//! Rivals of slow requests of HTTP/2 clients, as [`crate::proxy::hedge`] has them for HTTP/1.1: after a delay without answer another
//! endpoint is asked, too. The first real head of a response counts; the others are cancelled.
//!
//! Only for idempotent requests without body that open no tunnel. Heads of class 1xx are not passed on: who sends one may yet lose.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use h2::RecvStream;
use http::Response;

use super::forward::{Attempt, Job};
use super::http1::{Download, write_head};
use super::response::Parsed;
use super::stream::{Stream, until_cancelled};
use super::upstream::{Came, Heads, Lease};
use super::{Broke, http2};
use crate::backend::{EndpointState, Tried};
use crate::balance::{self, Choice};
use crate::proxy::attempt::{checkout, lease};
use crate::proxy::hedge::{InFlight, MAX_RIVALS};
use crate::proxy::pool::Upstream;
use crate::stats::add;

/// The response of one endpoint has begun.
struct Won {
    endpoint: Arc<EndpointState>,
    /// When it was asked.
    since: Instant,
    response: Begun,
}

enum Begun {
    /// What came behind the head is in the buffer.
    Http1(Box<Upstream>, BytesMut, Parsed),
    /// The stream lasts as long as the lease.
    Http2(Lease, Response<RecvStream>),
}

/// Sends the request of `job` to its endpoint (number `first` of the backend) and, each time that nothing has come back after the delay of
/// `hedging`, to another one. Relays the first response.
pub(super) async fn race(
    job: &Job<'_>,
    stream: &mut Stream,
    first: usize,
    choice: &Choice,
    hedging: (Duration, u32),
) -> Result<(), (Attempt, bool)> {
    let race = run(job, first, choice, hedging);
    let race = async {
        match job.head_timeout {
            None => race.await,
            Some(timeout) => {
                let timed_out = Err((Attempt::Broke(Broke::Timeout), false));
                tokio::time::timeout(timeout, race).await.unwrap_or(timed_out)
            }
        }
    };
    let cancelled = Err((Attempt::Broke(Broke::Client), false));
    let won = until_cancelled(&mut stream.respond, race).await.unwrap_or(cancelled)?;
    if !Arc::ptr_eq(&won.endpoint, job.endpoint) {
        job.record.sent_to(&won.endpoint, won.since);
    }
    let job = Job { endpoint: &won.endpoint, begun: won.since, ..*job };
    relay(&job, stream, won.response).await.map_err(|broke| (Attempt::Broke(broke), false))
}

async fn run(
    job: &Job<'_>,
    first: usize,
    choice: &Choice,
    (delay, rivals): (Duration, u32),
) -> Result<Won, (Attempt, bool)> {
    let (record, worker) = (job.record, &job.record.worker);
    let mut tried = Tried::default();
    tried.insert(first);
    record.sent_to(job.endpoint, job.begun);
    // Rivals belong to the same attempt.
    let trace = job.trace();
    let job = &Job { trace: trace.as_ref(), ..*job };
    let mut asked = FuturesUnordered::new();
    asked.push(ask(job, job.endpoint.clone(), job.begun, false));
    let mut timer = std::pin::pin!(tokio::time::sleep(delay));
    let mut count = 0;
    loop {
        tokio::select! {
            biased;
            answer = asked.next() => match answer {
                Some(Ok(won)) => return Ok(won),
                Some(Err(broke)) if asked.is_empty() => return Err(broke),
                Some(Err(_)) => {}
                None => return Err((Attempt::Broke(Broke::Endpoint), false)),
            },
            () = &mut timer, if count < rivals.min(MAX_RIVALS) => {
                timer.as_mut().reset(tokio::time::Instant::now() + delay);
                // Without a place in the budget a later one may have it.
                let may = balance::may_hedge(&record.rule, count);
                count += 1;
                if may && let Ok(Some((index, rival))) = record.choose(choice, tried) {
                    tried.insert(index);
                    add(&record.backend.stats.shard(worker.index).retries, 1);
                    asked.push(ask(job, rival.clone(), Instant::now(), true));
                }
            }
        }
    }
}

/// Asks one endpoint and waits for the head of its response; on failure also whether that was on a connection that had been idle.
async fn ask(
    job: &Job<'_>,
    endpoint: Arc<EndpointState>,
    since: Instant,
    is_rival: bool,
) -> Result<Won, (Attempt, bool)> {
    let _rival = is_rival.then(|| InFlight::begin(&endpoint, job.record.worker.index));
    if job.record.rule.speaks_http2(&job.record.backend) {
        let lease = lease(job.record, &endpoint, since).await;
        let lease = lease.map_err(|failure| (Attempt::NotConnected(failure), false))?;
        let response = ask_http2(job, &lease).await.map_err(|broke| (Attempt::Broke(broke), lease.pooled))?;
        return Ok(Won { endpoint, since, response: Begun::Http2(lease, response) });
    }
    let connection = checkout(job.record, &endpoint, since, false).await;
    let (mut upstream, pooled) = connection.map_err(|failure| (Attempt::NotConnected(failure), false))?;
    let (head, rest) = ask_http1(job, &mut upstream).await.map_err(|broke| (Attempt::Broke(broke), pooled))?;
    Ok(Won { endpoint, since, response: Begun::Http1(Box::new(upstream), rest, head) })
}

async fn ask_http2(job: &Job<'_>, lease: &Lease) -> Result<Response<RecvStream>, Broke> {
    let request = job.to_http2().ok_or(Broke::Unsent)?;
    // Nothing is sent after the head.
    let (future, _) = lease.send(request, true).await?;
    let mut heads = Heads::new(future);
    loop {
        if let Came::Head(response) = heads.next().await? {
            return Ok(response);
        }
    }
}

async fn ask_http1(job: &Job<'_>, upstream: &mut Upstream) -> Result<(Parsed, BytesMut), Broke> {
    let (mut reader, mut writer) = upstream.stream.halves();
    let mut out = Vec::with_capacity(512);
    job.write_http1(None, &mut out);
    write_head(&mut writer, &out).await?;
    let mut download = Download::new(job, &mut reader, BytesMut::new());
    let head = download.head(None).await?;
    Ok((head, download.pending))
}

async fn relay(job: &Job<'_>, stream: &mut Stream, response: Begun) -> Result<(), Broke> {
    let (_, reply) = stream.split(job);
    match response {
        Begun::Http2(lease, response) => {
            let result = http2::relay(job, &reply, response).await;
            drop(lease);
            result
        }
        Begun::Http1(mut upstream, rest, head) => {
            let (mut reader, _) = upstream.stream.halves();
            let mut download = Download::new(job, &mut reader, rest);
            let reusable = download.relay(&reply, head).await?;
            if reusable && download.pending.is_empty() {
                job.record.keep(*upstream);
            }
            Ok(())
        }
    }
}
