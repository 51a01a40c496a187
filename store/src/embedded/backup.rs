//! Copies of a store that is in use, and a walk that checks it.

use std::path::Path;
use std::sync::Arc;

use redb::{Builder, Database, ReadTransaction, ReadableTable, ReadableTableMetadata};

use super::engine::Engine;
use super::fault::{Fault, Inner};
use super::layout::{Counters, FORMAT, KEYS, META, META_FORMAT, Record, VERSIONS};
use super::storage::{FileStorage, Shared, open_error, publish_file, sibling};
use crate::{Result, Revision};

/// Rows copied in one transaction of the copy: bounds the memory of a backup.
const COPY_ROWS: usize = 4096;
/// redb's cache while copying.
const COPY_CACHE_BYTES: usize = 8 << 20;

/// Writes a consistent copy to `path`, which appears only when it is complete. Returns the revision it holds.
pub(super) fn backup(engine: &Engine, path: &Path) -> Result<Revision> {
    let partial = sibling(path, ".partial");
    let copy = || -> Result<Revision> {
        let storage = FileStorage::create(&partial).map_err(|source| open_error(&partial, source))?;
        let storage = Shared(Arc::new(storage));
        let name = partial.display().to_string();
        engine.read(|source| {
            // The copy's faults are not the store's: name the copy in them.
            copy_all(source, &storage).map_err(|fault| Fault::Refused(fault.into_error(&name)))
        })
    };
    let result = copy().and_then(|revision| {
        publish_file(&partial, path).map_err(|source| open_error(path, source))?;
        Ok(revision)
    });
    if result.is_err() {
        // Best effort: a leftover is overwritten by the next backup.
        let _ = std::fs::remove_file(&partial);
    }
    result
}

fn copy_all(source: &ReadTransaction, storage: &Shared) -> Inner<Revision> {
    redb::StorageBackend::set_len(storage, 0).map_err(redb::StorageError::from)?;
    let copy = Builder::new().set_cache_size(COPY_CACHE_BYTES).create_with_backend(storage.clone())?;
    let counters = Counters::load(&source.open_table(META)?)?;
    copy_table(source, &copy, KEYS, |key, (create, newest), table| table.insert(key, (create, newest)).map(drop))?;
    copy_table(source, &copy, VERSIONS, |revision, record, table| table.insert(revision, record).map(drop))?;
    let mut transaction = copy.begin_write()?;
    transaction.set_two_phase_commit(true);
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert(META_FORMAT, FORMAT)?;
        counters.save(&mut meta, None)?;
    }
    transaction.commit()?;
    copy.close()?;
    Ok(counters.revision)
}

/// Copies one table, a bounded number of rows per transaction.
fn copy_table<K, V>(
    source: &ReadTransaction,
    copy: &Database,
    definition: redb::TableDefinition<'static, K, V>,
    insert: impl for<'a> Fn(K::SelfType<'a>, V::SelfType<'a>, &mut redb::Table<'_, K, V>) -> redb::Result<()>,
) -> Inner<()>
where
    K: redb::Key + 'static,
    V: redb::Value + 'static,
{
    let rows = source.open_table(definition)?;
    let mut rows = rows.iter()?.peekable();
    loop {
        let transaction = copy.begin_write()?;
        {
            let mut table = transaction.open_table(definition)?;
            for row in rows.by_ref().take(COPY_ROWS) {
                let (key, value) = row?;
                insert(key.value(), value.value(), &mut table)?;
            }
        }
        transaction.commit()?;
        if rows.peek().is_none() {
            return Ok(());
        }
    }
}

/// Walks everything: each key must lead to a record of its own, and the counters must add up.
pub(super) fn check(transaction: &ReadTransaction) -> Inner<()> {
    let counters = Counters::load(&transaction.open_table(META)?)?;
    let versions = transaction.open_table(VERSIONS)?;
    let keys = transaction.open_table(KEYS)?;
    let mut live = 0;
    for entry in versions.iter()? {
        let (revision, stored) = entry?;
        let record = Record::decode(stored.value())?;
        live += stored.value().len() as u64;
        if record.previous >= revision.value() || record.create_revision > revision.value() {
            return Err(Fault::damaged(format!("revision {} points forward", revision.value())));
        }
    }
    if live != counters.live {
        return Err(Fault::damaged(format!("{live} bytes are stored where {} were counted", counters.live)));
    }
    for entry in keys.iter()? {
        let (key, entry) = entry?;
        let (create, newest) = entry.value();
        let stored = versions.get(newest)?;
        let stored = stored.ok_or_else(|| Fault::damaged(format!("revision {newest} is missing")))?;
        let record = Record::decode(stored.value())?;
        if record.key != key.value() || (create == 0) != record.value.is_none() {
            return Err(Fault::damaged(format!("key {} leads to another one's record", key.value())));
        }
    }
    let history = counters.revision - counters.compacted;
    let kept = versions.range(counters.compacted + 1..)?.count() as u64;
    if kept != history || versions.len()? < keys.len()? {
        return Err(Fault::damaged(format!("{kept} of {history} revisions of history are there")));
    }
    Ok(())
}
