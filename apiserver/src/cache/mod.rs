//! The watch cache: every kind's objects as ready-to-send bytes, and a bounded history of events to resume watches from.
//!
//! One task ([`dispatch`]) follows one store watch over `/registry/` and feeds a [`ResourceCache`] per stored kind.
//! Reads and watches never touch the store, except lists at a revision that the cache has moved past. The cache never
//! writes, never decodes more than metadata and selectable fields, and never decides who may read.

mod dispatch;
pub mod encode;
mod event;
mod labels;
mod resource;
mod ring;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use scaleup_store::{Revision, Store};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::registry::{Registry, SelectableField, Storage};

pub use event::{CacheEvent, EventType};
pub use labels::Labels;
pub use resource::{Range as KeyRange, ResourceCache, Snapshot, Subscription, Topic, topic_for};
pub use ring::{MAX_RING_AGE, MAX_RING_BYTES, MAX_RING_EVENTS, Missed};

/// Prefix of everything this server stores.
pub const ROOT: &str = "/registry/";

/// How long a consistent read waits for the cache to catch up with the store, as upstream's `blockTimeout`.
pub const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a request waits for this server's own earlier writes before it is decided on what the cache has.
pub const OWN_WRITES_TIMEOUT: Duration = Duration::from_millis(250);

/// One object as served: ready-to-send JSON with `resourceVersion` in place, and what selectors need.
#[derive(Debug)]
pub struct Cached {
    /// Namespace; empty for cluster scope.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `metadata.uid`
    pub uid: String,
    /// Revision of the last write: `metadata.resourceVersion`.
    pub revision: Revision,
    /// The object as JSON in its stored version.
    pub json: Bytes,
    /// `metadata.labels`
    pub labels: Labels,
    /// Selectable fields by path, without `metadata.name` and `metadata.namespace`: read them with [`Cached::field`].
    fields: Box<[(&'static str, Box<str>)]>,
    /// `{namespace}/{name}`, or `{name}` in cluster scope: the order of lists.
    key: Box<str>,
    /// A watch event of the type that made this state, [`Cached::json`] within it.
    frame: Bytes,
    /// Where the resource version stands in `json`.
    version_at: Range<u32>,
}

/// Why stored bytes cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("the stored object {key} cannot be read: {detail}")]
pub struct DamagedObject {
    /// Key below the resource.
    pub key: String,
    /// What is wrong.
    pub detail: String,
}

/// `{namespace}/{name}`, or `{name}` in cluster scope.
pub fn object_key(namespace: &str, name: &str) -> String {
    if namespace.is_empty() {
        return name.to_owned();
    }
    let mut key = String::with_capacity(namespace.len() + 1 + name.len());
    key.push_str(namespace);
    key.push('/');
    key.push_str(name);
    key
}

/// Metadata that every object has, borrowed from its bytes.
#[derive(serde::Deserialize)]
struct Head {
    #[serde(default)]
    metadata: HeadMeta,
}

#[derive(Default, serde::Deserialize)]
struct HeadMeta {
    #[serde(default)]
    uid: String,
    #[serde(default)]
    labels: Option<Labels>,
}

impl Cached {
    /// From stored bytes (no resource version in them) and the revision that wrote them.
    ///
    /// `key` is `namespace/name` or `name`; `event` is the type of the watch event that this write is.
    pub fn from_stored(
        key: &str,
        stored: &[u8],
        revision: Revision,
        selectable: &[SelectableField],
        event: EventType,
    ) -> Result<Self, DamagedObject> {
        let damaged = |detail: String| DamagedObject { key: key.to_owned(), detail };
        let Some(meta_at) = encode::metadata_at(stored) else {
            let value: Value = serde_json::from_slice(stored).map_err(|e| damaged(e.to_string()))?;
            let again = encode::to_stored(&value);
            if encode::metadata_at(&again).is_none() {
                return Err(damaged("it is not an object with metadata".into()));
            }
            return Self::from_stored(key, &again, revision, selectable, event);
        };
        let (head, fields) = parse_head(stored, selectable).map_err(|e| damaged(e.to_string()))?;
        let spliced = encode::splice(event, stored, meta_at, revision);
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        Ok(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: head.uid,
            revision,
            json: spliced.frame.slice(spliced.json),
            labels: head.labels.unwrap_or_default(),
            fields,
            key: key.into(),
            frame: spliced.frame,
            version_at: spliced.version_at,
        })
    }

    /// From a whole object; for tests and for callers that have no stored bytes.
    pub fn from_value(
        value: &Value,
        revision: Revision,
        selectable: &[SelectableField],
    ) -> Result<Self, DamagedObject> {
        let text = |field: &str| value["metadata"][field].as_str().unwrap_or_default().to_owned();
        let key = object_key(&text("namespace"), &text("name"));
        Self::from_stored(&key, &encode::to_stored(value), revision, selectable, EventType::Added)
    }

    /// Parses [`Cached::json`]. Stored objects are valid JSON by construction; a damaged one reads as `Null`.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.json).unwrap_or(Value::Null)
    }

    /// A selectable field's value; `None` if the kind has no such field.
    pub fn field(&self, path: &str) -> Option<&str> {
        match path {
            "metadata.name" => Some(&self.name),
            "metadata.namespace" => Some(&self.namespace),
            _ => self.fields.iter().find(|(p, _)| *p == path).map(|(_, v)| v.as_ref()),
        }
    }

    /// `{namespace}/{name}`, or `{name}` in cluster scope.
    pub fn key(&self) -> &str {
        &self.key
    }

    fn version_range(&self) -> Range<usize> {
        self.version_at.start as usize..self.version_at.end as usize
    }
}

type Fields = Box<[(&'static str, Box<str>)]>;

fn parse_head(stored: &[u8], selectable: &[SelectableField]) -> Result<(HeadMeta, Fields), serde_json::Error> {
    if selectable.is_empty() {
        let head: Head = serde_json::from_slice(stored)?;
        return Ok((head.metadata, Box::default()));
    }
    let value: Value = serde_json::from_slice(stored)?;
    let fields = selectable.iter().map(|f| (f.path, (f.get)(&value).into_boxed_str())).collect();
    let head = <Head as serde::Deserialize>::deserialize(&value)?;
    Ok((head.metadata, fields))
}

/// What the rest of the server (authorizer, admission, hooks) may read without going through HTTP. Group and plural are
/// those of the row that stores (`("", "pods")`, `("rbac.authorization.k8s.io", "roles")`).
pub trait Reader: Send + Sync + 'static {
    /// One object, as of the newest state the cache has.
    fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<Cached>>;
    /// All objects of a kind, in one namespace or in all (`None`), in key order.
    fn list(&self, group: &str, plural: &str, namespace: Option<&str>) -> Vec<Arc<Cached>>;
    /// Revision of the last change to any object of the kind: unchanged means that derived state is still right.
    fn changed(&self, group: &str, plural: &str) -> Revision;
    /// Changes of a kind after revision `since`, oldest first; `None` if they are not all remembered: list again.
    fn changes(&self, group: &str, plural: &str, since: Revision) -> Option<Vec<Arc<CacheEvent>>>;
}

/// Why the cache cannot answer.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The first list has not come in yet, or the store cannot be asked.
    #[error("the watch cache is not ready")]
    NotReady,
    /// The revision was not reached in [`CATCH_UP_TIMEOUT`].
    #[error("resource version {requested} is larger than the cache's, {current}")]
    TooLarge {
        /// What was asked for.
        requested: Revision,
        /// Where the cache is.
        current: Revision,
    },
    /// The store's answer.
    #[error("the store did not answer")]
    Store(#[source] scaleup_store::Error),
}

/// The caches of all kinds.
pub struct Caches {
    /// By group, then plural.
    resources: HashMap<String, HashMap<String, Arc<ResourceCache>>>,
    /// Every change up to this revision is in the caches.
    progress: AtomicU64,
    progress_changed: watch::Sender<()>,
    synced: AtomicBool,
    /// Highest revision that a write through this server was answered with.
    written: AtomicU64,
    store: Arc<dyn Store>,
    /// Whether every write goes through this process, so that `written` is all there is to wait for.
    exclusive: bool,
}

impl Caches {
    /// Empty caches for every stored kind of `registry`. [`Caches::run`] fills them.
    ///
    /// `exclusive`: no other process writes to the store (memory, embedded); else consistent reads ask it for its revision.
    pub fn new(registry: &Registry, store: Arc<dyn Store>, exclusive: bool) -> Self {
        let mut resources: HashMap<String, HashMap<String, Arc<ResourceCache>>> = HashMap::new();
        for row in registry.rows().iter().filter(|r| matches!(r.storage, Storage::Own)) {
            let selectable = selectable_of(registry, &row.group, &row.plural);
            let cache = ResourceCache::new(&row.group, &row.plural, selectable);
            resources.entry(row.group.to_string()).or_default().insert(row.plural.to_string(), Arc::new(cache));
        }
        Self {
            resources,
            progress: AtomicU64::new(0),
            progress_changed: watch::channel(()).0,
            synced: AtomicBool::new(false),
            written: AtomicU64::new(0),
            store,
            exclusive,
        }
    }

    /// Follows the store until `shutdown`; never returns early.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        // In this order: the store closes right after, and its end is then nothing to warn of.
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            () = dispatch::run(&self) => {}
        }
    }

    /// The cache of the row that stores this group and plural.
    pub fn resource(&self, group: &str, plural: &str) -> Option<&Arc<ResourceCache>> {
        self.resources.get(group)?.get(plural)
    }

    /// Every change up to this revision is visible; 0 before the first list.
    pub fn progress(&self) -> Revision {
        self.progress.load(Ordering::Acquire)
    }

    /// Whether the first list is in.
    pub fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    /// Notes that a write was answered with this revision: later consistent reads see it.
    pub fn note_written(&self, revision: Revision) {
        self.written.fetch_max(revision, Ordering::AcqRel);
    }

    /// Waits until everything written before this call is visible.
    pub async fn catch_up(&self) -> Result<(), CacheError> {
        let target = if self.exclusive {
            self.written.load(Ordering::Acquire)
        } else {
            self.store.get(ROOT).await.map_err(CacheError::Store)?.1
        };
        self.wait_for(target).await
    }

    /// Waits until every write that this server has answered is visible, at most [`OWN_WRITES_TIMEOUT`]: what a client was
    /// told is done (a role, a binding, an account) counts for its next request. Never asks the store.
    pub async fn see_own_writes(&self) {
        self.reach(self.written.load(Ordering::Acquire), OWN_WRITES_TIMEOUT).await;
    }

    /// Waits until every change up to `revision` is visible, at most [`CATCH_UP_TIMEOUT`].
    pub async fn wait_for(&self, revision: Revision) -> Result<(), CacheError> {
        if self.reach(revision, CATCH_UP_TIMEOUT).await {
            Ok(())
        } else if !self.is_synced() {
            Err(CacheError::NotReady)
        } else {
            Err(CacheError::TooLarge { requested: revision, current: self.progress() })
        }
    }

    /// Whether `revision` was reached within `limit`.
    async fn reach(&self, revision: Revision, limit: Duration) -> bool {
        if self.reached(revision) {
            return true;
        }
        let mut changed = self.progress_changed.subscribe();
        let reached = async { while !self.reached(revision) && changed.changed().await.is_ok() {} };
        tokio::time::timeout(limit, reached).await.is_ok()
    }

    fn reached(&self, revision: Revision) -> bool {
        self.progress() >= revision && self.is_synced()
    }

    fn advance(&self, revision: Revision) {
        self.progress.fetch_max(revision, Ordering::AcqRel);
        self.progress_changed.send_replace(());
    }

    fn each(&self) -> impl Iterator<Item = &Arc<ResourceCache>> {
        self.resources.values().flat_map(HashMap::values)
    }
}

/// Selectable fields of the row that stores, and of every alias over it.
fn selectable_of(registry: &Registry, group: &str, plural: &str) -> Vec<SelectableField> {
    let mut fields: Vec<SelectableField> = Vec::new();
    for row in registry.rows().iter().filter(|r| r.stored_as() == (group, plural)) {
        for field in row.selectable {
            let reserved = matches!(field.path, "metadata.name" | "metadata.namespace");
            if !reserved && fields.iter().all(|f| f.path != field.path) {
                fields.push(*field);
            }
        }
    }
    fields
}

impl Reader for Caches {
    fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<Cached>> {
        self.resource(group, plural)?.get(&object_key(namespace, name))
    }
    fn list(&self, group: &str, plural: &str, namespace: Option<&str>) -> Vec<Arc<Cached>> {
        self.resource(group, plural).map(|r| r.all(namespace.unwrap_or_default())).unwrap_or_default()
    }
    fn changed(&self, group: &str, plural: &str) -> Revision {
        self.resource(group, plural).map(|r| r.changed()).unwrap_or_default()
    }
    fn changes(&self, group: &str, plural: &str, since: Revision) -> Option<Vec<Arc<CacheEvent>>> {
        let mut events = Vec::new();
        self.resource(group, plural)?.subscribe(Topic::All, since).ok()?.read(MAX_RING_EVENTS, &mut events).ok()?;
        Some(events)
    }
}
