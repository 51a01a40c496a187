//! The embedded store: one redb file, one writer thread with group commit, readers on snapshots.
//!
//! A write is synced to the disk before its future resolves. History is bounded and compacted as it goes. One process at
//! a time has the file. It keeps no second copy of the data in memory (the watch cache above holds every object's bytes
//! already), and it never answers from a file that failed verification.

mod backup;
mod engine;
mod fault;
mod layout;
mod read;
mod storage;
#[cfg(test)]
mod tests;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::sync::{Semaphore, oneshot};

use crate::history::watchable;
use crate::hub::{Hub, until_error};
use crate::{Error, HistoryBounds, KeyValue, ListRequest, Page, Result, Revision, Store, Watch, WatchItem, check_size};
use engine::Engine;
use storage::{FileStorage, Lock, open_error, publish_file, sibling};
use writer::{Change, Command, Write, Writer};

/// Default for [`Options::cache_bytes`]: redb's own default is 1 GiB. The system's page cache is behind it.
pub const CACHE_BYTES: usize = 8 << 20;
/// Writes that wait for the writer; more wait in line for a place.
const QUEUE_WRITES: usize = 8192;
/// Reads at a time: each takes a blocking thread.
const MAX_READERS: usize = 16;

/// How to open a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// How much history to keep.
    pub history: HistoryBounds,
    /// Bytes of pages that redb may keep in memory.
    pub cache_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { history: HistoryBounds::default(), cache_bytes: CACHE_BYTES }
    }
}

/// Sizes, for metrics and tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Revision of the last write.
    pub revision: Revision,
    /// The oldest revision that can be read.
    pub compacted: Revision,
    /// Bytes of records stored, history included.
    pub live_bytes: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
}

/// The store; see the module's description. Dropping it closes the file soon after; [`EmbeddedStore::close`] waits.
pub struct EmbeddedStore {
    engine: Arc<Engine>,
    hub: Arc<Hub>,
    queue: Sender<Command>,
    places: Arc<Semaphore>,
    readers: Arc<Semaphore>,
}

impl EmbeddedStore {
    /// Opens the store at `path`, creating it if nothing is there, and verifies it.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::Corrupt`], [`Error::Format`], [`Error::NoSpace`] or [`Error::Open`].
    pub async fn open(path: impl AsRef<Path>, options: Options) -> Result<Self> {
        let path = path.as_ref().to_owned();
        blocking(move || {
            let lock = Lock::acquire(&path)?;
            let name = path.display().to_string();
            if !path.try_exists().map_err(|source| open_error(&path, source))? {
                // Under another name first: a crash in the middle must not leave half a store that looks damaged.
                let fresh = sibling(&path, ".new");
                let storage = FileStorage::create(&fresh).map_err(|source| open_error(&path, source))?;
                Engine::initialize(&name, Arc::new(storage), options.cache_bytes)?;
                publish_file(&fresh, &path).map_err(|source| open_error(&path, source))?;
            }
            let storage = FileStorage::open(&path, lock).map_err(|source| open_error(&path, source))?;
            Self::open_on(name, Arc::new(storage), options)
        })
        .await
    }

    /// Opens a store on `storage`, which must hold one already. Blocks.
    pub(crate) fn open_on(name: String, storage: Arc<dyn redb::StorageBackend>, options: Options) -> Result<Self> {
        let (engine, counters) = Engine::open(name, storage, options.cache_bytes)?;
        let (engine, hub) = (Arc::new(engine), Arc::new(Hub::new(counters.revision)));
        let writer = Writer::new(engine.clone(), hub.clone(), options.history, counters);
        let (queue, commands) = channel();
        std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(&commands))
            .map_err(|source| Error::Engine(Box::new(source)))?;
        let (places, readers) = (Semaphore::new(QUEUE_WRITES), Semaphore::new(MAX_READERS));
        Ok(Self { engine, hub, queue, places: Arc::new(places), readers: Arc::new(readers) })
    }

    /// Writes an empty store into an empty `storage`. Blocks.
    pub(crate) fn initialize(storage: Arc<dyn redb::StorageBackend>) -> Result<()> {
        Engine::initialize("storage", storage, CACHE_BYTES)
    }

    /// Finishes the writes that were queued, ends all watches and releases the file.
    pub async fn close(&self) {
        let (reply, done) = oneshot::channel();
        if self.queue.send(Command::Close(reply)).is_ok() {
            // An error means that somebody else closed it first.
            let _ = done.await;
        }
    }

    /// Writes a consistent copy of the store to `path` while it is in use; the copy appears when it is complete and can
    /// be opened as a store. Returns the revision it holds.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Open`] for the copy, and whatever reading the store may give.
    pub async fn backup_to(&self, path: impl AsRef<Path>) -> Result<Revision> {
        let (engine, path) = (self.engine.clone(), path.as_ref().to_owned());
        blocking(move || backup::backup(&engine, &path)).await
    }

    /// Walks every key and every record and checks that they belong together. (Checksums of all pages are verified
    /// whenever the store is opened.)
    ///
    /// # Errors
    /// [`Error::Corrupt`] says what was found.
    pub async fn check(&self) -> Result<()> {
        let engine = self.engine.clone();
        blocking(move || engine.read(backup::check)).await
    }

    /// Sizes as of now.
    ///
    /// # Errors
    /// As any read.
    pub async fn stats(&self) -> Result<Stats> {
        let engine = self.engine.clone();
        let counters = blocking(move || engine.read(read::counters)).await?;
        Ok(Stats {
            revision: counters.revision,
            compacted: counters.compacted,
            live_bytes: counters.live,
            file_bytes: self.engine.file_bytes(),
        })
    }

    async fn write(&self, key: &str, change: Change) -> Result<Revision> {
        let closed = || Error::Unavailable("the store is closed".to_owned());
        let permit = self.places.clone().acquire_owned().await.map_err(|_| closed())?;
        let (reply, outcome) = oneshot::channel();
        let write = Write { key: key.to_owned(), change, reply, permit };
        self.queue.send(Command::Write(write)).map_err(|_| closed())?;
        outcome.await.map_err(|_| closed())?
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl Fn(&redb::ReadTransaction) -> fault::Inner<T> + Send + 'static,
    ) -> Result<T> {
        read_with(self.engine.clone(), self.readers.clone(), work).await
    }
}

async fn read_with<T: Send + 'static>(
    engine: Arc<Engine>,
    readers: Arc<Semaphore>,
    work: impl Fn(&redb::ReadTransaction) -> fault::Inner<T> + Send + 'static,
) -> Result<T> {
    // The semaphore is never closed; without a permit the read goes ahead all the same.
    let permit = readers.acquire_owned().await.ok();
    blocking(move || {
        let result = engine.read(work);
        drop(permit);
        result
    })
    .await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Unavailable(format!("the read was abandoned: {error}"))),
    }
}

/// A watch's replay from disk: pieces of history up to where the live half starts.
struct Replay {
    engine: Arc<Engine>,
    readers: Arc<Semaphore>,
    prefix: String,
    next: Option<Revision>,
    to: Revision,
}

impl Replay {
    /// The next piece; `None` at the end or after an error.
    async fn step(mut self) -> Option<(Result<WatchItem>, Self)> {
        while let Some(from) = self.next.filter(|from| *from <= self.to) {
            let (prefix, to) = (self.prefix.clone(), self.to);
            let work = move |transaction: &redb::ReadTransaction| read::replay(transaction, &prefix, from, to);
            match read_with(self.engine.clone(), self.readers.clone(), work).await {
                Ok((events, next)) => {
                    self.next = next;
                    if !events.is_empty() {
                        return Some((Ok(WatchItem::Events(events)), self));
                    }
                }
                Err(error) => {
                    self.next = None;
                    return Some((Err(error), self));
                }
            }
        }
        None
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision)> {
        let key = key.to_owned();
        self.read(move |transaction| read::get(transaction, &key)).await
    }

    async fn list(&self, request: ListRequest<'_>) -> Result<Page> {
        let (prefix, start_after) = (request.prefix.to_owned(), request.start_after.map(str::to_owned));
        let (limit, at) = (request.limit, request.at);
        self.read(move |transaction| {
            let request = ListRequest { prefix: &prefix, start_after: start_after.as_deref(), limit, at };
            read::list(transaction, &request)
        })
        .await
    }

    async fn create(&self, key: &str, value: Bytes) -> Result<Revision> {
        check_size(key, &value)?;
        self.write(key, Change::Create(value)).await
    }

    async fn update(&self, key: &str, value: Bytes, expected: Revision) -> Result<Revision> {
        check_size(key, &value)?;
        self.write(key, Change::Update(value, expected)).await
    }

    async fn delete(&self, key: &str, expected: Revision) -> Result<Revision> {
        self.write(key, Change::Delete(expected)).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch> {
        let (subscription, to) = self.hub.subscribe(prefix, from);
        let compacted = self.read(|transaction| Ok(read::counters(transaction)?.compacted)).await?;
        watchable(from, compacted)?;
        let replay = Replay {
            engine: self.engine.clone(),
            readers: self.readers.clone(),
            prefix: prefix.to_owned(),
            next: Some(from.max(1)),
            to,
        };
        let replay = stream::unfold(replay, Replay::step);
        Ok(until_error(replay.chain(subscription.into_stream())))
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        let closed = || Error::Unavailable("the store is closed".to_owned());
        let (reply, outcome) = oneshot::channel();
        self.queue.send(Command::Compact(revision, reply)).map_err(|_| closed())?;
        outcome.await.map_err(|_| closed())?
    }
}
