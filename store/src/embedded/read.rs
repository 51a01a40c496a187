//! Reads on a snapshot: one key, a page, a slice of history. Pure functions of a redb transaction.

use std::ops::Bound;

use redb::{ReadOnlyTable, ReadTransaction, ReadableTable};

use super::fault::{Fault, Inner};
use super::layout::{Counters, KEYS, META, Record, VERSIONS};
use crate::history::{readable, watchable};
use crate::{Event, KeyValue, ListRequest, Page, Revision};

/// A replay is read in pieces of this many records…
const REPLAY_RECORDS: usize = 1000;
/// …or about this many bytes, so that a slow watcher pins neither memory nor old pages.
const REPLAY_BYTES: usize = 4 << 20;

type Versions = ReadOnlyTable<u64, &'static [u8]>;

pub(super) fn counters(transaction: &ReadTransaction) -> Inner<Counters> {
    Counters::load(&transaction.open_table(META)?)
}

/// The record at `revision`, which an index points at.
pub(super) fn load(versions: &impl ReadableTable<u64, &'static [u8]>, revision: Revision) -> Inner<Option<KeyValue>> {
    let Some(bytes) = versions.get(revision)? else {
        return Err(Fault::damaged(format!("revision {revision} is missing")));
    };
    Ok(Record::decode(bytes.value())?.key_value(revision))
}

pub(super) fn get(transaction: &ReadTransaction, key: &str) -> Inner<(Option<KeyValue>, Revision)> {
    let revision = counters(transaction)?.revision;
    let newest = transaction.open_table(KEYS)?.get(key)?.map(|entry| entry.value());
    match newest {
        Some((create, newest)) if create > 0 => Ok((load(&transaction.open_table(VERSIONS)?, newest)?, revision)),
        _ => Ok((None, revision)),
    }
}

/// Revision of the version that was current `at`, walking back from `newest`; 0 if the key did not exist.
fn version_at(versions: &Versions, newest: Revision, at: Revision) -> Inner<Revision> {
    let mut revision = newest;
    while revision > at {
        let Some(bytes) = versions.get(revision)? else { return Ok(0) };
        let previous = Record::decode(bytes.value())?.previous;
        if previous >= revision {
            return Err(Fault::damaged(format!("revision {revision} follows {previous}")));
        }
        revision = previous;
    }
    if revision == 0 {
        return Ok(0);
    }
    // A tombstone that compaction removed reads as "was not there", which is what it said.
    let Some(bytes) = versions.get(revision)? else { return Ok(0) };
    Ok(if Record::decode(bytes.value())?.value.is_some() { revision } else { 0 })
}

pub(super) fn list(transaction: &ReadTransaction, request: &ListRequest<'_>) -> Inner<Page> {
    let counters = counters(transaction)?;
    let at = readable(request.at, counters.compacted, counters.revision)?;
    let keys = transaction.open_table(KEYS)?;
    let versions = transaction.open_table(VERSIONS)?;
    let start = match request.start_after {
        Some(after) if after >= request.prefix => Bound::Excluded(after),
        _ => Bound::Included(request.prefix),
    };
    let limit = if request.limit == 0 { usize::MAX } else { request.limit };
    let mut page = Page { items: Vec::new(), revision: at, remaining: 0 };
    for entry in keys.range::<&str>((start, Bound::Unbounded))? {
        let (key, entry) = entry?;
        if !key.value().starts_with(request.prefix) {
            break;
        }
        let (create, newest) = entry.value();
        let revision = match (create, newest) {
            (_, newest) if newest > at => version_at(&versions, newest, at)?,
            (0, _) => 0,
            (_, newest) => newest,
        };
        if revision == 0 {
            continue;
        }
        if page.items.len() < limit {
            page.items.extend(load(&versions, revision)?);
        } else {
            page.remaining += 1;
        }
    }
    Ok(page)
}

/// The next piece of history with revisions in `from..=to`: matching events, and where to go on (`None`: done).
pub(super) fn replay(
    transaction: &ReadTransaction,
    prefix: &str,
    from: Revision,
    to: Revision,
) -> Inner<(Vec<Event>, Option<Revision>)> {
    watchable(from, counters(transaction)?.compacted)?;
    let versions = transaction.open_table(VERSIONS)?;
    let (mut events, mut bytes) = (Vec::new(), 0);
    for (seen, entry) in versions.range(from..=to)?.enumerate() {
        let (revision, stored) = entry?;
        let revision = revision.value();
        if seen >= REPLAY_RECORDS || bytes >= REPLAY_BYTES {
            return Ok((events, Some(revision)));
        }
        bytes += stored.value().len();
        let record = Record::decode(stored.value())?;
        if record.key.starts_with(prefix) {
            events.push(record.event(revision));
        }
    }
    Ok((events, None))
}
