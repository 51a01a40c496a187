//! The redb handle: opening with verification, reading behind a guard, and replacing it after I/O errors.
//!
//! redb refuses everything after the first I/O error until it is reopened, and trusts pages that it verified when the
//! file was opened. So every open verifies all checksums, and every call goes through a guard that turns a panic on
//! pages damaged since then into [`Error::Corrupt`](crate::Error::Corrupt). Nothing here knows what a key is.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use redb::{Builder, Database, ReadTransaction, ReadableDatabase, StorageBackend};

use super::fault::{Fault, Inner};
use super::layout::{Counters, FORMAT, KEYS, META, META_FORMAT, VERSIONS};
use super::storage::Shared;
use crate::{Error, Result};

/// A reader that meets a store being reopened looks again after this long…
const REOPEN_POLL: Duration = Duration::from_millis(10);
/// …and gives up after this many times.
const REOPEN_POLLS: u32 = 200;
/// Closing waits this many times for readers.
const CLOSE_POLLS: u32 = 100;
/// A file of at least this size…
const REWRITE_MIN_BYTES: u64 = 64 << 20;
/// …that is more than this many times larger than the data in it is rewritten when it is opened.
const REWRITE_FACTOR: u64 = 4;

/// See the module's description.
pub(super) struct Engine {
    /// For messages.
    pub(super) path: String,
    /// `None` once closed: the lock goes with the last handle on it.
    storage: Mutex<Option<Shared>>,
    cache_bytes: usize,
    /// `None` while it is being replaced, and after [`Engine::close`].
    database: RwLock<Option<Arc<Database>>>,
    /// Set once the data was found damaged: nothing is read or written any more.
    damaged: Mutex<Option<String>>,
}

/// Runs `work`; a panic in it is a fault. redb panics on damaged pages that it had verified before; no state of ours
/// lives across the boundary, and redb's own is dropped with the handle.
fn guarded<T>(work: impl FnOnce() -> Inner<T>) -> Inner<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| Err(Fault::panicked(&*payload)))
}

impl Engine {
    /// Opens what is in `storage`, which must hold a database already.
    pub(super) fn open(path: String, storage: Arc<dyn StorageBackend>, cache_bytes: usize) -> Result<(Self, Counters)> {
        let engine = Self {
            path,
            storage: Mutex::new(Some(Shared(storage))),
            cache_bytes,
            database: RwLock::new(None),
            damaged: Mutex::new(None),
        };
        let counters = guarded(|| engine.load(true)).map_err(|fault| fault.into_error(&engine.path))?;
        Ok((engine, counters))
    }

    /// Writes an empty database into an empty `storage`.
    pub(super) fn initialize(path: &str, storage: Arc<dyn StorageBackend>, cache_bytes: usize) -> Result<()> {
        let create = || -> Inner<()> {
            let database = Builder::new().set_cache_size(cache_bytes).create_with_backend(Shared(storage))?;
            let mut transaction = database.begin_write()?;
            transaction.set_two_phase_commit(true);
            {
                transaction.open_table(KEYS)?;
                transaction.open_table(VERSIONS)?;
                let mut meta = transaction.open_table(META)?;
                meta.insert(META_FORMAT, FORMAT)?;
                Counters::default().save(&mut meta, None)?;
            }
            transaction.commit()?;
            Ok(database.close()?)
        };
        guarded(create).map_err(|fault| fault.into_error(path))
    }

    /// Opens redb on the storage, rewrites the file if it is mostly air, and reads the counters.
    fn load(&self, verify: bool) -> Inner<Counters> {
        let Some(storage) = self.storage.lock().clone() else {
            return Err(Fault::Refused(Error::Unavailable("the store is closed".to_owned())));
        };
        if storage.len().map_err(redb::StorageError::from)? == 0 {
            return Err(Fault::damaged("the file is empty".to_owned()));
        }
        let mut database = Builder::new()
            .set_cache_size(self.cache_bytes)
            .set_check_integrity_on_open(verify)
            .create_with_backend(storage.clone())?;
        let counters = self.inspect(&database.begin_read()?)?;
        let size = storage.len().map_err(redb::StorageError::from)?;
        if size >= REWRITE_MIN_BYTES && size / REWRITE_FACTOR > counters.live {
            database.compact()?;
            tracing::info!(path = self.path, before_bytes = size, after_bytes = storage.len().ok(), "store compacted");
        }
        *self.database.write() = Some(Arc::new(database));
        Ok(counters)
    }

    /// Reads the format and the counters and checks them against the tables.
    fn inspect(&self, transaction: &ReadTransaction) -> Inner<Counters> {
        use redb::ReadableTable;
        let meta = transaction.open_table(META)?;
        let found = meta.get(META_FORMAT)?.map(|value| value.value());
        match found {
            Some(FORMAT) => {}
            Some(found) => {
                let error = Error::Format { path: self.path.clone(), found, supported: FORMAT };
                return Err(Fault::Refused(error));
            }
            None => return Err(Fault::damaged("it names no format".to_owned())),
        }
        let counters = Counters::load(&meta)?;
        let newest = transaction.open_table(VERSIONS)?.last()?.map_or(0, |(revision, _)| revision.value());
        transaction.open_table(KEYS)?;
        if newest > counters.revision {
            let detail = format!("it holds revision {newest} but says that {} is the last", counters.revision);
            return Err(Fault::damaged(detail));
        }
        Ok(counters)
    }

    /// The handle for the writer; readers go through [`Engine::read`].
    pub(super) fn database(&self) -> Option<Arc<Database>> {
        self.database.read().clone()
    }

    /// Runs `work` on a snapshot. Blocks: not for async threads.
    pub(super) fn read<T>(&self, work: impl Fn(&ReadTransaction) -> Inner<T>) -> Result<T> {
        for _ in 0..REOPEN_POLLS {
            self.check_damage()?;
            if self.storage.lock().is_none() {
                return Err(Error::Unavailable("the store is closed".to_owned()));
            }
            if let Some(database) = self.database() {
                match guarded(|| work(&database.begin_read()?)) {
                    Ok(value) => return Ok(value),
                    Err(fault) if fault.needs_reopen() => {}
                    Err(fault) => return Err(self.fail(fault)),
                }
            }
            std::thread::sleep(REOPEN_POLL);
        }
        Err(Error::Unavailable("the store is being reopened after an I/O error".to_owned()))
    }

    /// Runs the writer's `work` behind the guard.
    pub(super) fn write<T>(&self, work: impl FnOnce(&Database) -> Inner<T>) -> Inner<T> {
        self.check_damage()?;
        let Some(database) = self.database() else { return Err(Fault::Engine(redb::Error::DatabaseClosed)) };
        guarded(|| work(&database))
    }

    /// Replaces a handle that refuses to go on after an I/O error. Everything was verified when the store was opened, so
    /// this one only repairs.
    pub(super) fn reopen(&self) -> Inner<Counters> {
        *self.database.write() = None;
        guarded(|| self.load(false))
    }

    /// What the seam calls this fault; damage is remembered.
    pub(super) fn fail(&self, fault: Fault) -> Error {
        let error = fault.into_error(&self.path);
        if let Error::Corrupt { detail, .. } = &error {
            tracing::error!(path = self.path, detail, "the store is damaged; it serves nothing until it is restored");
            *self.damaged.lock() = Some(detail.clone());
        }
        error
    }

    fn check_damage(&self) -> Result<()> {
        match &*self.damaged.lock() {
            Some(detail) => Err(Error::Corrupt { path: self.path.clone(), detail: detail.clone() }),
            None => Ok(()),
        }
    }

    /// Bytes of the file.
    pub(super) fn file_bytes(&self) -> u64 {
        self.storage.lock().as_ref().and_then(|storage| storage.len().ok()).unwrap_or(0)
    }

    /// Lets go of the file, waiting a moment for readers that are under way.
    pub(super) fn close(&self) {
        *self.storage.lock() = None;
        let Some(database) = self.database.write().take() else { return };
        for _ in 0..CLOSE_POLLS {
            if Arc::strong_count(&database) == 1 {
                break;
            }
            std::thread::sleep(REOPEN_POLL);
        }
        // A reader that outlasts the wait closes it when it drops the last handle; the lock is held until then.
        if let Some(database) = Arc::into_inner(database)
            && let Err(fault) = guarded(|| Ok(database.close()?))
        {
            tracing::warn!(
                path = self.path,
                ?fault,
                "the store did not close cleanly; it is repaired on the next start"
            );
        }
    }
}
