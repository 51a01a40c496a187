//! The store seam: seven operations on revisioned bytes.
//!
//! A store knows nothing of kinds. Keys are UTF-8 paths (`/registry/pods/default/web`), values are opaque bytes, and one
//! monotonic counter numbers every write, as etcd's revision does. Every write is durable before its future resolves
//! (memory excepted). There is no cache, no decoding and no retry here: the watch cache above does those.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub mod conformance;
pub mod drill;
pub mod embedded;
pub mod etcd;
mod history;
mod hub;
pub mod memory;

pub use history::{HISTORY_MAX_AGE, HISTORY_MAX_BYTES, HISTORY_MAX_EVENTS, HistoryBounds};

/// etcd's revision: 0 is "nothing was ever written"; the first write has revision 1 or more.
pub type Revision = u64;

/// Largest key and value together, on every store: somewhat below etcd's default `--max-request-bytes` of 1.5 MiB, so
/// that the request around them fits.
pub const MAX_ENTRY_BYTES: usize = (3 << 19) - (16 << 10);

/// One stored key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// Full key.
    pub key: String,
    /// Value as written.
    pub value: Bytes,
    /// Revision of the write that created the key (deleting and creating again starts anew).
    pub create_revision: Revision,
    /// Revision of the last write.
    pub mod_revision: Revision,
}

/// What to list.
#[derive(Clone, Copy, Debug, Default)]
pub struct ListRequest<'a> {
    /// Keys that start with this, in ascending byte order.
    pub prefix: &'a str,
    /// Only keys strictly greater than this.
    pub start_after: Option<&'a str>,
    /// At most this many items; 0 is no limit.
    pub limit: usize,
    /// State as of this revision; `None` is the latest.
    pub at: Option<Revision>,
}

/// One page of a list.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Items in key order.
    pub items: Vec<KeyValue>,
    /// The store's revision at the read (not the highest item's): the `at` asked for, else the current one.
    pub revision: Revision,
    /// How many items match beyond this page.
    pub remaining: u64,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Created (`kv.create_revision == kv.mod_revision`) or updated.
    Put(KeyValue),
    /// Deleted at `revision`.
    Delete {
        /// The key.
        key: String,
        /// Revision of the deletion.
        revision: Revision,
    },
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            Event::Put(kv) => &kv.key,
            Event::Delete { key, .. } => key,
        }
    }

    /// The revision that made this change.
    pub fn revision(&self) -> Revision {
        match self {
            Event::Put(kv) => kv.mod_revision,
            Event::Delete { revision, .. } => *revision,
        }
    }
}

/// What a watch yields. Events are in revision order without gaps; all events of one revision are in one batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchItem {
    /// One or more changes.
    Events(Vec<Event>),
    /// Every change up to and including this revision has been delivered.
    Progress(Revision),
}

/// A watch. It ends after the first error: the reader lists again.
pub type Watch = BoxStream<'static, Result<WatchItem, Error>>;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Create: the key is there already.
    #[error("key exists")]
    Exists,
    /// Update or delete: the key is gone or has another revision. Carries what is there now.
    #[error("revision does not match")]
    Conflict(Option<KeyValue>),
    /// Read or watch at a revision that compaction removed.
    #[error("revision {requested} is compacted, the oldest kept is {oldest}")]
    Compacted {
        /// What was asked for.
        requested: Revision,
        /// The oldest revision that can still be read.
        oldest: Revision,
    },
    /// Read at a revision that is not written yet.
    #[error("revision {requested} is in the future, the store is at {current}")]
    Future {
        /// What was asked for.
        requested: Revision,
        /// The store's revision.
        current: Revision,
    },
    /// A watcher fell too far behind and was cut off.
    #[error("watcher is too slow: {0} undelivered events")]
    SlowWatcher(usize),
    /// The disk is full: nothing was written; free space and try again.
    #[error("no space left on the store's disk")]
    NoSpace,
    /// Another process has the store open.
    #[error("the store {path} is in use by another process")]
    Locked {
        /// The file.
        path: String,
    },
    /// The store's file is damaged; it was not changed.
    #[error("the store {path} is damaged: {detail}")]
    Corrupt {
        /// The file.
        path: String,
        /// What was found.
        detail: String,
    },
    /// The file cannot be opened at all: permissions, a missing directory, a directory in its place.
    #[error("cannot open the store {path}: check that it is a file this user may read and write")]
    Open {
        /// The file.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file was written by another version of this program; it was not changed.
    #[error("the store {path} has format {found}, this program reads {supported}: use the version that wrote it")]
    Format {
        /// The file.
        path: String,
        /// The format found.
        found: u64,
        /// The one format this program knows.
        supported: u64,
    },
    /// Key and value together are larger than [`MAX_ENTRY_BYTES`].
    #[error("entry of {size} bytes is larger than the limit of {limit}")]
    TooLarge {
        /// Key and value.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The store cannot be reached or is shutting down; try again.
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// Anything else from the engine.
    #[error("store engine failed")]
    Engine(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// The same failure for another caller, as when one commit fails several writes.
    pub(crate) fn again(&self) -> Self {
        match self {
            Error::NoSpace => Error::NoSpace,
            Error::Corrupt { path, detail } => Error::Corrupt { path: path.clone(), detail: detail.clone() },
            Error::Unavailable(why) => Error::Unavailable(why.clone()),
            other => Error::Unavailable(other.to_string()),
        }
    }
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Refuses what no store takes.
pub(crate) fn check_size(key: &str, value: &[u8]) -> Result<()> {
    let size = key.len() + value.len();
    if size > MAX_ENTRY_BYTES {
        return Err(Error::TooLarge { size, limit: MAX_ENTRY_BYTES });
    }
    Ok(())
}

/// The seam. `Arc<dyn Store>` is what the API server gets.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The latest value of `key` and the store's revision at the read (linearizable).
    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision)>;
    /// A page of keys at one revision (linearizable if `at` is `None`).
    async fn list(&self, request: ListRequest<'_>) -> Result<Page>;
    /// Writes `key` if it is absent; its revision, or [`Error::Exists`].
    async fn create(&self, key: &str, value: Bytes) -> Result<Revision>;
    /// Replaces `key` if its `mod_revision` is `expected`; the new revision, or [`Error::Conflict`].
    async fn update(&self, key: &str, value: Bytes, expected: Revision) -> Result<Revision>;
    /// Deletes `key` if its `mod_revision` is `expected`; the revision of the deletion, or [`Error::Conflict`].
    async fn delete(&self, key: &str, expected: Revision) -> Result<Revision>;
    /// Every change under `prefix` with a revision greater than or equal to `from`; [`Error::Compacted`] if some are gone. A
    /// store whose events lag behind its writes may still have those that are to come.
    /// `Progress` items arrive at least once a second while nothing else does.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch>;
    /// Forgets history before `revision`: older reads and watches get [`Error::Compacted`].
    async fn compact(&self, revision: Revision) -> Result<()>;
}
