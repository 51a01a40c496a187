//! Copies of requests, sent for their effect on the receiver: nobody waits for the response, and nothing of it is kept.
//!
//! A copy has a task and a connection of its own, so the original never waits for it. When too many are on their way, or the body is
//! too large, there is none.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::attempt::checkout;
use super::buffer::Buffer;
use super::exchange::{ClientSide, EndpointSide, Job, Patience};
use super::filters::Edits;
use super::http::http_date;
use super::io::Nobody;
use super::own::OwnCell;
use super::record::Record;
use super::request::Request;
use super::worker::Worker;
use crate::backend::Tried;
use crate::balance::{self, Choice};
use crate::route::{Mirror, Rule};

/// Copies on their way per thread.
const MAX_COPIES: usize = 128;
/// A copy is given up after this time.
const MAX_TIME: Duration = Duration::from_secs(30);

/// Who gets copies of a request of `rule` to its share `share`.
pub(super) fn all(rule: &Rule, share: usize) -> impl Iterator<Item = &Mirror> + Clone {
    let of_share = rule.backends.get(share).map(|share| &*share.mirrors).unwrap_or_default();
    rule.mirrors.iter().chain(of_share)
}

/// Sends a copy with this head and (encoded) body, unless it is not this request's turn or too many are on their way.
pub(super) fn send(
    (worker, own): (&Rc<Worker>, &OwnCell),
    mirror: &Mirror,
    request: &Request,
    head: &[u8],
    body: Vec<u8>,
) {
    if worker.copies.get() >= MAX_COPIES || !mirror.takes(rand::random()) {
        return;
    }
    let Some(backend) = mirror.rule.backends.first().and_then(|share| Some(share.cell.as_ref()?.load_full())) else {
        return;
    };
    let copy = Copy::begin(worker.clone());
    let record = Record::start(worker.clone(), mirror.rule.clone(), backend, (None, None), own);
    let (request, head) = (*request, head.to_vec());
    tokio::task::spawn_local(async move {
        if tokio::time::timeout(MAX_TIME, run(&request, &head, body, &record)).await.is_err() {
            tracing::debug!(service = %record.backend.service, "a mirrored request took too long");
        }
        record.finish();
        drop(copy);
    });
}

async fn run(request: &Request, head: &[u8], body: Vec<u8>, record: &Record) {
    let (worker, backend) = (&record.worker, &record.backend);
    let Ok(_permit) = balance::enter_connection(backend) else { return };
    let choice = Choice {
        client: std::net::Ipv4Addr::UNSPECIFIED.into(),
        hash: Some(rand::random()),
        pinned: None,
        thread: worker.index,
        now: record.started,
    };
    let Some((_, endpoint)) = backend.choose(&choice, Tried::default()) else { return };
    let http2 = record.rule.speaks_http2(backend);
    let Ok((mut upstream, _)) = checkout(record, endpoint, record.started, http2).await else { return };
    record.sent_to(endpoint, std::time::Instant::now());
    let (deadline, torn) = (Cell::new(None), Cell::new(false));
    let job = Job {
        request,
        head,
        asked: false,
        close: false,
        date: http_date,
        header_timeout: None,
        stock: &worker.stock,
        edits: Edits::default(),
        max_body_bytes: u64::MAX,
        again: None,
        copy: None,
        torn: &torn,
        // The time as a whole is bounded.
        patience: Patience { deadline: &deadline, longest: MAX_TIME },
    };
    let mut input = Buffer::holding(body.into_boxed_slice());
    let mut reply = Vec::new();
    let client = ClientSide { reader: &mut Nobody, writer: &mut Nobody, input: &mut input, reply: &mut reply };
    let (reader, writer) = upstream.stream.halves();
    let side = EndpointSide { reader, writer, input: &mut upstream.input, large: &mut upstream.large };
    if let Ok(done) = job.run(client, side, record).await
        && done.response.reusable
        && done.sent_all
    {
        upstream.input.release(&worker.stock);
        record.keep(upstream);
    }
}

/// Counts a copy while it is on its way.
struct Copy {
    worker: Rc<Worker>,
}

impl Copy {
    fn begin(worker: Rc<Worker>) -> Self {
        worker.copies.set(worker.copies.get() + 1);
        Self { worker }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.worker.copies.set(self.worker.copies.get() - 1);
    }
}
