//! The one writer: a thread that turns whatever is queued into one durable transaction.
//!
//! A write is decided in queue order inside the transaction, so a batch behaves as its writes one by one: a refused one
//! changes nothing and hinders nobody. Replies go out after the commit is synced and published to watchers. While a
//! commit syncs the next batch gathers; there is no artificial delay. The thread also compacts history, a little with
//! each commit. It never reads for others and never retries a write.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use redb::{ReadableTable, Table, WriteTransaction};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::engine::Engine;
use super::fault::{Fault, Inner};
use super::layout::{Counters, KEYS, META, Record, VERSIONS};
use super::read;
use crate::history::now_ms;
use crate::hub::Hub;
use crate::{Error, Event, HistoryBounds, KeyValue, Result, Revision};

/// Writes in one transaction at most.
const BATCH_WRITES: usize = 1024;
/// Bytes in one transaction at most (the last write may exceed it).
const BATCH_BYTES: usize = 8 << 20;
/// An idle writer looks for history to compact this often.
const TICK: Duration = Duration::from_secs(1);
/// History is allowed to exceed its bounds by 1/16, so that compaction works in strides.
const SLACK_SHIFT: u32 = 4;
/// Revisions compacted in one transaction at most: a bound on how long writers wait for it.
const COMPACT_STRIDE: u64 = 2 * BATCH_WRITES as u64;
/// After the disk was found full, writes are refused this long before the engine is tried again.
const NO_SPACE_PAUSE: Duration = Duration::from_millis(250);

/// What a write wants.
pub(super) enum Change {
    Create(Bytes),
    Update(Bytes, Revision),
    Delete(Revision),
}

/// One queued write.
pub(super) struct Write {
    pub(super) key: String,
    pub(super) change: Change,
    pub(super) reply: oneshot::Sender<Result<Revision>>,
    /// The place in the queue, given back when the write is done.
    pub(super) permit: OwnedSemaphorePermit,
}

/// What the thread is asked to do.
pub(super) enum Command {
    Write(Write),
    Compact(Revision, oneshot::Sender<Result<()>>),
    /// Finish what came before and release the file.
    Close(oneshot::Sender<()>),
}

/// The thread's state.
pub(super) struct Writer {
    engine: Arc<Engine>,
    hub: Arc<Hub>,
    bounds: HistoryBounds,
    counters: Counters,
    /// Set while the disk is known to be full.
    paused_until: Option<Instant>,
    /// Record under construction; kept for its allocation.
    scratch: Vec<u8>,
}

struct Tables<'txn> {
    keys: Table<'txn, &'static str, (u64, u64)>,
    versions: Table<'txn, u64, &'static [u8]>,
}

/// A batch that was decided on but not committed yet.
struct Decided {
    outcomes: Vec<Result<Revision>>,
    events: Vec<Event>,
    counters: Counters,
}

impl Writer {
    pub(super) fn new(engine: Arc<Engine>, hub: Arc<Hub>, bounds: HistoryBounds, counters: Counters) -> Self {
        Self { engine, hub, bounds, counters, paused_until: None, scratch: Vec::new() }
    }

    /// Serves the queue until it is closed.
    pub(super) fn run(mut self, queue: &Receiver<Command>) {
        let closed = loop {
            let first = match queue.recv_timeout(TICK) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break None,
            };
            if let ControlFlow::Break(reply) = self.step(first, queue) {
                break Some(reply);
            }
        };
        self.hub.close();
        self.engine.close();
        if let Some(reply) = closed {
            // The one who asked may have gone; the store is closed either way.
            let _ = reply.send(());
        }
    }

    fn step(&mut self, first: Option<Command>, queue: &Receiver<Command>) -> ControlFlow<oneshot::Sender<()>> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let mut next = first;
        loop {
            match next.take() {
                Some(Command::Write(write)) => {
                    bytes += write.key.len() + write.change.value().map_or(0, Bytes::len);
                    batch.push(write);
                }
                Some(Command::Compact(revision, reply)) => {
                    self.commit(std::mem::take(&mut batch));
                    let _ = reply.send(self.compact_to(revision));
                    return ControlFlow::Continue(());
                }
                Some(Command::Close(reply)) => {
                    self.commit(std::mem::take(&mut batch));
                    return ControlFlow::Break(reply);
                }
                None => break,
            }
            if batch.len() >= BATCH_WRITES || bytes >= BATCH_BYTES {
                break;
            }
            match queue.try_recv() {
                Ok(command) => next = Some(command),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        self.commit(batch);
        ControlFlow::Continue(())
    }

    /// Makes one batch durable, publishes it and replies. With an empty batch only history is compacted, if it is due.
    fn commit(&mut self, batch: Vec<Write>) {
        if let Err(error) = self.ready() {
            return refuse(batch, &error);
        }
        let before = self.counters;
        if batch.is_empty() && !self.compaction_may_be_due() {
            return;
        }
        let engine = self.engine.clone();
        let mut decided = None;
        let result = engine.write(|database| {
            let mut transaction = database.begin_write()?;
            transaction.set_two_phase_commit(true);
            let decision = self.decide(&transaction, &batch)?;
            let changed = decision.counters != before;
            let decision = decided.insert(decision);
            if !changed {
                return Ok(transaction.abort()?);
            }
            decision.counters.save(&mut transaction.open_table(META)?, Some(&before))?;
            Ok(transaction.commit()?)
        });
        let result = match (result, &decided) {
            (Ok(()), _) => Ok(()),
            (Err(fault), decided) => self.recover(fault, decided.as_ref()),
        };
        match (result, decided) {
            (Ok(()), Some(decided)) => {
                self.counters = decided.counters;
                if !decided.events.is_empty() {
                    self.hub.publish(&decided.events, decided.counters.revision);
                }
                for (write, outcome) in batch.into_iter().zip(decided.outcomes) {
                    write.answer(outcome);
                }
            }
            (Err(error), _) => refuse(batch, &error),
            (Ok(()), None) => refuse(batch, &Error::Unavailable("the store was reopened; try again".to_owned())),
        }
    }

    /// Whether the engine can be used; reopens it after a failure.
    fn ready(&mut self) -> Result<()> {
        if let Some(until) = self.paused_until {
            if Instant::now() < until {
                return Err(Error::NoSpace);
            }
            self.paused_until = None;
        }
        if self.engine.database().is_none() {
            self.reopen()?;
        }
        Ok(())
    }

    fn reopen(&mut self) -> Result<()> {
        match self.engine.reopen() {
            Ok(counters) => {
                self.counters = counters;
                Ok(())
            }
            Err(fault) => Err(self.pause_if_full(self.engine.path.clone().as_str(), fault)),
        }
    }

    fn pause_if_full(&mut self, path: &str, fault: Fault) -> Error {
        let error = if fault.needs_reopen() { fault.into_error(path) } else { self.engine.fail(fault) };
        if matches!(error, Error::NoSpace) {
            self.paused_until = Some(Instant::now() + NO_SPACE_PAUSE);
        }
        error
    }

    /// After a failed transaction: puts the engine in order and finds out whether the batch got through after all (a
    /// commit that fails in its last sync may still be on the disk).
    fn recover(&mut self, fault: Fault, decided: Option<&Decided>) -> Result<()> {
        tracing::warn!(path = self.engine.path, ?fault, "a write to the store failed");
        let reopen = fault.needs_reopen();
        let path = self.engine.path.clone();
        let error = self.pause_if_full(&path, fault);
        if reopen {
            self.reopen()?;
            if decided.is_some_and(|decided| decided.counters.revision == self.counters.revision)
                && decided.is_some_and(|decided| !decided.events.is_empty())
            {
                return Ok(());
            }
        }
        Err(error)
    }

    /// Plays the batch inside the transaction.
    fn decide(&mut self, transaction: &WriteTransaction, batch: &[Write]) -> Inner<Decided> {
        let mut tables = Tables { keys: transaction.open_table(KEYS)?, versions: transaction.open_table(VERSIONS)? };
        let mut decided =
            Decided { outcomes: Vec::with_capacity(batch.len()), events: Vec::new(), counters: self.counters };
        let at_ms = now_ms();
        for write in batch {
            let outcome = match tables.apply(write, &mut decided.counters, at_ms, &mut self.scratch) {
                Ok(event) => {
                    let revision = event.revision();
                    decided.events.push(event);
                    Ok(revision)
                }
                Err(Fault::Refused(error)) => Err(error),
                Err(fault) => return Err(fault),
            };
            decided.outcomes.push(outcome);
        }
        if let Some(target) = self.trim_target(&tables, &decided.counters, at_ms)? {
            tables.compact(&mut decided.counters, target)?;
        }
        Ok(decided)
    }

    /// Cheap test of whether an idle writer should open a transaction for compaction.
    fn compaction_may_be_due(&self) -> bool {
        self.counters.revision > self.counters.compacted
            && self
                .engine
                .write(|database| {
                    use redb::ReadableDatabase;
                    let transaction = database.begin_read()?;
                    let versions = transaction.open_table(VERSIONS)?;
                    Ok(self.oldest_is_stale(&versions, &self.counters, now_ms())? || self.over_size(&self.counters))
                })
                .unwrap_or(false)
    }

    fn over_size(&self, counters: &Counters) -> bool {
        let with_slack = |bound: u64| bound.saturating_add(bound >> SLACK_SHIFT);
        counters.revision - counters.compacted > with_slack(self.bounds.max_events)
            || counters.written - counters.compacted_written > with_slack(self.bounds.max_bytes)
    }

    fn oldest_is_stale(
        &self,
        versions: &impl ReadableTable<u64, &'static [u8]>,
        counters: &Counters,
        at_ms: u64,
    ) -> Inner<bool> {
        let max_age_ms = u64::try_from(self.bounds.max_age.as_millis()).unwrap_or(u64::MAX);
        let with_slack = max_age_ms.saturating_add(max_age_ms >> SLACK_SHIFT);
        let Some(oldest) = versions.get(counters.compacted + 1)? else { return Ok(false) };
        Ok(Record::decode(oldest.value())?.at_ms < at_ms.saturating_sub(with_slack))
    }

    /// The revision to compact to in this transaction, if history exceeds a bound.
    fn trim_target(&self, tables: &Tables<'_>, counters: &Counters, at_ms: u64) -> Inner<Option<Revision>> {
        if counters.revision == counters.compacted
            || !(self.over_size(counters) || self.oldest_is_stale(&tables.versions, counters, at_ms)?)
        {
            return Ok(None);
        }
        let max_age_ms = u64::try_from(self.bounds.max_age.as_millis()).unwrap_or(u64::MAX);
        let oldest_ms = at_ms.saturating_sub(max_age_ms);
        let last = counters.revision.min(counters.compacted + COMPACT_STRIDE);
        let mut target = None;
        for entry in tables.versions.range(counters.compacted + 1..=last)? {
            let (revision, stored) = entry?;
            let record = Record::decode(stored.value())?;
            let before = record.written - Record::len(record.key, record.value);
            let keep = counters.revision - revision.value() < self.bounds.max_events
                && counters.written - before <= self.bounds.max_bytes
                && record.at_ms >= oldest_ms;
            if keep {
                break;
            }
            target = Some(revision.value());
        }
        Ok(target)
    }

    /// Compacts on request, in strides that keep each transaction small. Queued writes wait for all of them.
    fn compact_to(&mut self, revision: Revision) -> Result<()> {
        self.ready()?;
        if revision > self.counters.revision {
            return Err(Error::Future { requested: revision, current: self.counters.revision });
        }
        let engine = self.engine.clone();
        while self.counters.compacted < revision {
            let target = revision.min(self.counters.compacted + COMPACT_STRIDE);
            let before = self.counters;
            let result = engine.write(|database| {
                let mut transaction = database.begin_write()?;
                transaction.set_two_phase_commit(true);
                let mut counters = before;
                {
                    let (keys, versions) = (transaction.open_table(KEYS)?, transaction.open_table(VERSIONS)?);
                    Tables { keys, versions }.compact(&mut counters, target)?;
                    counters.save(&mut transaction.open_table(META)?, Some(&before))?;
                }
                transaction.commit()?;
                Ok(counters)
            });
            match result {
                Ok(counters) => self.counters = counters,
                Err(fault) => self.recover(fault, None)?,
            }
        }
        Ok(())
    }
}

impl Tables<'_> {
    fn apply(&mut self, write: &Write, counters: &mut Counters, at_ms: u64, scratch: &mut Vec<u8>) -> Inner<Event> {
        let key = write.key.as_str();
        let newest = self.keys.get(key)?.map(|entry| entry.value());
        let (exists, create, previous) = match newest {
            Some((0, tombstone)) => (false, 0, tombstone),
            Some((create, newest)) => (true, create, newest),
            None => (false, 0, 0),
        };
        let expected = match &write.change {
            Change::Create(_) if exists => return Err(Error::Exists.into()),
            Change::Create(_) => None,
            Change::Update(_, expected) | Change::Delete(expected) => Some(*expected),
        };
        if let Some(expected) = expected
            && (!exists || previous != expected)
        {
            let current = if exists { read::load(&self.versions, previous)? } else { None };
            return Err(Error::Conflict(current).into());
        }
        let revision = counters.revision + 1;
        let value = write.change.value();
        let create = if exists { create } else { revision };
        let length = Record::len(key, value.map(|value| &value[..]));
        let written = counters.written + length;
        let record =
            Record { key, value: value.map(|value| &value[..]), previous, create_revision: create, at_ms, written };
        scratch.clear();
        record.encode(scratch);
        self.versions.insert(revision, scratch.as_slice())?;
        self.keys.insert(key, (if value.is_some() { create } else { 0 }, revision))?;
        counters.revision = revision;
        counters.written = written;
        counters.live += length;
        Ok(match value {
            Some(value) => Event::Put(KeyValue {
                key: key.to_owned(),
                value: value.clone(),
                create_revision: create,
                mod_revision: revision,
            }),
            None => Event::Delete { key: key.to_owned(), revision },
        })
    }

    /// Forgets what only reads before `target` could see: versions replaced by then, and tombstones.
    fn compact(&mut self, counters: &mut Counters, target: Revision) -> Inner<()> {
        for revision in counters.compacted + 1..=target {
            let Some((previous, tombstone, written)) = self.inspect(revision)? else {
                return Err(Fault::damaged(format!("revision {revision} is missing")));
            };
            if previous > 0
                && let Some(replaced) = self.versions.remove(previous)?
            {
                counters.live = counters.live.saturating_sub(replaced.value().len() as u64);
            }
            if let Some(key) = tombstone {
                if let Some(removed) = self.versions.remove(revision)? {
                    counters.live = counters.live.saturating_sub(removed.value().len() as u64);
                }
                // Unless the key was created again since.
                let newest = self.keys.get(key.as_str())?.map(|entry| entry.value());
                if newest == Some((0, revision)) {
                    self.keys.remove(key.as_str())?;
                }
            }
            counters.compacted = revision;
            counters.compacted_written = written;
        }
        Ok(())
    }

    /// What compaction needs of a record: its predecessor, its key if it is a tombstone, and the running total.
    fn inspect(&self, revision: Revision) -> Inner<Option<(Revision, Option<String>, u64)>> {
        let Some(stored) = self.versions.get(revision)? else { return Ok(None) };
        let record = Record::decode(stored.value())?;
        let tombstone = record.value.is_none().then(|| record.key.to_owned());
        Ok(Some((record.previous, tombstone, record.written)))
    }
}

impl Change {
    fn value(&self) -> Option<&Bytes> {
        match self {
            Change::Create(value) | Change::Update(value, _) => Some(value),
            Change::Delete(_) => None,
        }
    }
}

impl Write {
    fn answer(self, outcome: Result<Revision>) {
        drop(self.permit);
        // Whoever asked may have gone; the write stands either way.
        let _ = self.reply.send(outcome);
    }
}

/// Answers every write of a batch with the same failure.
fn refuse(batch: Vec<Write>, error: &Error) {
    for write in batch {
        write.answer(Err(error.again()));
    }
}
