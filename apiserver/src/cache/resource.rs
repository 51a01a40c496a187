//! The cache of one stored kind: objects in key order, and topics that watchers read events from.
//!
//! A topic is the history of what one group of watchers may care about: the whole kind, a namespace, one object, or one
//! value of a selectable field (`spec.nodeName=n1`). An event is appended to the few topics it belongs to and wakes
//! only their watchers, so 5,000 node agents that watch their own pods cost a pod event two wake-ups, not 5,000.

use std::borrow::Borrow;
use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::{RwLock, RwLockUpgradableReadGuard};
use scaleup_api::selector::FieldSelector;
use scaleup_store::Revision;
use tokio::sync::Notify;

use super::ring::{Missed, Ring};
use super::{CacheEvent, Cached};
use crate::registry::SelectableField;

/// Orders objects by key.
#[derive(Debug)]
struct Entry(Arc<Cached>);

impl Borrow<str> for Entry {
    fn borrow(&self) -> &str {
        self.0.key()
    }
}
impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.0.key() == other.0.key()
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.key().cmp(other.0.key())
    }
}

/// What a group of watchers has in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Every object.
    All,
    /// Objects of one namespace.
    Namespace(Box<str>),
    /// One object, by key.
    Object(Box<str>),
    /// Objects whose selectable field has this value.
    Field(&'static str, Box<str>),
}

impl Topic {
    fn holds(&self, object: &Cached) -> bool {
        match self {
            Self::All => true,
            Self::Namespace(namespace) => **namespace == *object.namespace,
            Self::Object(key) => **key == *object.key(),
            Self::Field(path, value) => object.field(path) == Some(value),
        }
    }
    fn concerns(&self, event: &CacheEvent) -> bool {
        [&event.before, &event.after].into_iter().flatten().any(|object| self.holds(object))
    }
}

/// A topic's history and its waiting watchers.
#[derive(Debug)]
struct Channel {
    ring: RwLock<Ring>,
    wake: Notify,
    /// Subscriptions; changes only while the state is locked.
    users: AtomicUsize,
}

impl Channel {
    fn new(ring: Ring) -> Arc<Self> {
        Arc::new(Self { ring: RwLock::new(ring), wake: Notify::new(), users: AtomicUsize::new(0) })
    }
}

#[derive(Debug)]
struct State {
    objects: BTreeSet<Entry>,
    /// Revision of the newest event applied, or of the list that filled the cache.
    revision: Revision,
    /// Topics beside [`Topic::All`] that somebody watches.
    topics: HashMap<Topic, Arc<Channel>>,
    /// Paths of the [`Topic::Field`]s among them, each once.
    field_paths: Vec<&'static str>,
}

/// The cache of one stored kind.
#[derive(Debug)]
pub struct ResourceCache {
    /// `/registry/{group or core}/{plural}/`
    prefix: String,
    selectable: Vec<SelectableField>,
    state: RwLock<State>,
    all: Arc<Channel>,
    changed: AtomicU64,
}

/// Objects at one revision.
#[derive(Debug)]
pub struct Snapshot {
    /// In key order.
    pub items: Vec<Arc<Cached>>,
    /// The revision at which exactly these objects existed.
    pub revision: Revision,
    /// Objects beyond the limit.
    pub remaining: u64,
}

/// What to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Range<'a> {
    /// One namespace; empty is all.
    pub namespace: &'a str,
    /// Only keys strictly greater than this; empty is from the start.
    pub start_after: &'a str,
    /// At most this many; 0 is no limit.
    pub limit: usize,
}

impl ResourceCache {
    /// Empty.
    pub fn new(group: &str, plural: &str, selectable: Vec<SelectableField>) -> Self {
        let group = if group.is_empty() { "core" } else { group };
        Self {
            prefix: format!("{}{group}/{plural}/", super::ROOT),
            selectable,
            state: RwLock::new(State {
                objects: BTreeSet::new(),
                revision: 0,
                topics: HashMap::new(),
                field_paths: Vec::new(),
            }),
            all: Channel::new(Ring::default()),
            changed: AtomicU64::new(0),
        }
    }

    /// Store key of everything of this kind, with a slash at the end.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Fields that selectors may name, aliases' included.
    pub fn selectable(&self) -> &[SelectableField] {
        &self.selectable
    }

    /// Revision of the last change of any object.
    pub fn changed(&self) -> Revision {
        self.changed.load(Ordering::Acquire)
    }

    /// One object by key.
    pub fn get(&self, key: &str) -> Option<Arc<Cached>> {
        self.state.read().objects.get(key).map(|e| e.0.clone())
    }

    /// All objects of a namespace; of every namespace if that is empty.
    pub fn all(&self, namespace: &str) -> Vec<Arc<Cached>> {
        collect(&self.state.read().objects, Range { namespace, ..Range::default() }, &|_| true).0
    }

    /// Objects that match, and the revision of that state. `progress` is the global progress, read before this call.
    pub fn snapshot(&self, range: Range<'_>, progress: Revision, matches: &dyn Fn(&Cached) -> bool) -> Snapshot {
        let state = self.state.read();
        let (items, remaining) = collect(&state.objects, range, matches);
        Snapshot { items, remaining, revision: progress.max(state.revision) }
    }

    /// The same, if nothing of this kind has changed since `revision`; `None`: the cache has moved on.
    pub fn snapshot_at(
        &self,
        range: Range<'_>,
        revision: Revision,
        matches: &dyn Fn(&Cached) -> bool,
    ) -> Option<Snapshot> {
        let state = self.state.read();
        if state.revision > revision {
            return None;
        }
        let (items, remaining) = collect(&state.objects, range, matches);
        Some(Snapshot { items, remaining, revision })
    }

    /// Events after `revision`.
    pub fn subscribe(self: &Arc<Self>, topic: Topic, revision: Revision) -> Result<Subscription, Missed> {
        let (channel, position) = self.join(self.state.upgradable_read(), &topic, |ring| ring.position_after(revision));
        // The subscription exists before an error is returned, so that an unused topic goes away again.
        let mut subscription = Subscription { cache: self.clone(), topic, channel, position: 0, after: revision };
        subscription.position = position?;
        Ok(subscription)
    }

    /// The present objects of a namespace (or of all), and events after that state.
    pub fn subscribe_with_snapshot(
        self: &Arc<Self>,
        topic: Topic,
        namespace: &str,
        progress: Revision,
        matches: &dyn Fn(&Cached) -> bool,
    ) -> (Snapshot, Subscription) {
        let state = self.state.upgradable_read();
        let (items, _) = collect(&state.objects, Range { namespace, ..Range::default() }, matches);
        let revision = progress.max(state.revision);
        let (channel, position) = self.join(state, &topic, Ring::end);
        let subscription = Subscription { cache: self.clone(), topic, channel, position, after: revision };
        (Snapshot { items, revision, remaining: 0 }, subscription)
    }

    /// Joins the topic's channel and finds a position in it, while the state's lock keeps changes out. A new channel
    /// starts with what the main history has for it.
    fn join<T>(
        &self,
        state: RwLockUpgradableReadGuard<'_, State>,
        topic: &Topic,
        position: impl FnOnce(&Ring) -> T,
    ) -> (Arc<Channel>, T) {
        let existing = if *topic == Topic::All { Some(&self.all) } else { state.topics.get(topic) };
        if let Some(channel) = existing {
            channel.users.fetch_add(1, Ordering::AcqRel);
            let found = position(&channel.ring.read());
            return (channel.clone(), found);
        }
        let mut state = RwLockUpgradableReadGuard::upgrade(state);
        let main = self.all.ring.read();
        let mut ring = Ring::starting_at(main.floor());
        main.iter().filter(|e| topic.concerns(e)).for_each(|e| ring.push(e.clone()));
        let found = position(&ring);
        let channel = Channel::new(ring);
        channel.users.store(1, Ordering::Release);
        state.topics.insert(topic.clone(), channel.clone());
        state.remember_paths();
        (channel, found)
    }

    /// Applies changes in revision order and wakes the watchers concerned.
    pub(super) fn apply(&self, changes: Vec<Change>) {
        let mut woken: Vec<Arc<Channel>> = Vec::new();
        let mut state = self.state.write();
        for change in changes {
            let revision = change.revision;
            let before = state.objects.take(change.key.as_str()).map(|e| e.0);
            if before.is_none() && change.after.is_none() {
                continue;
            }
            if let Some(after) = &change.after {
                state.objects.insert(Entry(after.clone()));
            }
            state.revision = revision;
            self.changed.store(revision, Ordering::Release);
            let event = Arc::new(CacheEvent::new(revision, before, change.after));
            self.all.ring.write().push(event.clone());
            for channel in state.channels_of(&event) {
                channel.ring.write().push(event.clone());
                woken.push(channel);
            }
        }
        drop(state);
        self.all.wake.notify_waiters();
        woken.iter().for_each(|channel| channel.wake.notify_waiters());
    }

    /// Whether `key` is there: decides between ADDED and MODIFIED when its bytes are encoded.
    pub(super) fn contains(&self, key: &str) -> bool {
        self.state.read().objects.contains(key)
    }

    /// Replaces everything with the state at `revision`; the histories start anew and all watchers must list again.
    pub(super) fn replace(&self, objects: Vec<Arc<Cached>>, revision: Revision) {
        let mut state = self.state.write();
        state.objects = objects.into_iter().map(Entry).collect();
        state.revision = revision;
        self.changed.store(revision, Ordering::Release);
        for channel in state.topics.values().chain([&self.all]) {
            channel.ring.write().reset(revision);
            channel.wake.notify_waiters();
        }
    }

    /// Drops what the age bound says; called from time to time, since an idle kind sees no pushes.
    pub(super) fn trim(&self, now: Instant) {
        let state = self.state.read();
        self.all.ring.write().trim(now);
        let floor = self.all.ring.read().floor();
        for channel in state.topics.values() {
            channel.ring.write().trim_to(floor);
        }
    }

    /// Topics that somebody watches, [`Topic::All`] aside.
    #[cfg(test)]
    pub(super) fn topics(&self) -> usize {
        self.state.read().topics.len()
    }

    fn release(&self, topic: &Topic, channel: &Channel) {
        let mut state = self.state.write();
        if channel.users.fetch_sub(1, Ordering::AcqRel) == 1 && *topic != Topic::All {
            state.topics.remove(topic);
            state.remember_paths();
        }
    }
}

/// One change to apply.
pub(super) struct Change {
    /// Key below the resource.
    pub key: String,
    /// Its revision.
    pub revision: Revision,
    /// The object now; `None` if it is gone.
    pub after: Option<Arc<Cached>>,
}

impl State {
    fn remember_paths(&mut self) {
        self.field_paths.clear();
        for topic in self.topics.keys() {
            if let Topic::Field(path, _) = topic
                && !self.field_paths.contains(path)
            {
                self.field_paths.push(path);
            }
        }
    }

    /// The watched topics, [`Topic::All`] aside, that the event belongs to.
    fn channels_of(&self, event: &CacheEvent) -> Vec<Arc<Channel>> {
        if self.topics.is_empty() {
            return Vec::new();
        }
        let mut topics: Vec<Topic> = Vec::new();
        for object in [&event.before, &event.after].into_iter().flatten() {
            topics.push(Topic::Object(object.key().into()));
            if !object.namespace.is_empty() {
                topics.push(Topic::Namespace(object.namespace.as_str().into()));
            }
            for path in &self.field_paths {
                topics.extend(object.field(path).map(|value| Topic::Field(path, value.into())));
            }
        }
        let mut found: Vec<Arc<Channel>> = Vec::new();
        for channel in topics.iter().filter_map(|topic| self.topics.get(topic)) {
            if !found.iter().any(|c| Arc::ptr_eq(c, channel)) {
                found.push(channel.clone());
            }
        }
        found
    }
}

fn collect(objects: &BTreeSet<Entry>, range: Range<'_>, matches: &dyn Fn(&Cached) -> bool) -> (Vec<Arc<Cached>>, u64) {
    let namespace = if range.namespace.is_empty() { String::new() } else { format!("{}/", range.namespace) };
    let start = if range.start_after > namespace.as_str() {
        Bound::Excluded(range.start_after)
    } else {
        Bound::Included(namespace.as_str())
    };
    let mut selected = objects
        .range::<str, _>((start, Bound::Unbounded))
        .take_while(|e| e.0.key().starts_with(&namespace))
        .filter(|e| matches(&e.0));
    let limit = if range.limit == 0 { usize::MAX } else { range.limit };
    let items = selected.by_ref().take(limit).map(|e| e.0.clone()).collect();
    (items, selected.count() as u64)
}

/// The narrowest topic for a watch of `namespace` (empty: all) with this field selector.
pub fn topic_for(cache: &ResourceCache, namespaced: bool, namespace: &str, fields: &FieldSelector) -> Topic {
    let exact = |path: &str| fields.requirements().iter().find(|r| r.path == path && !r.negate).map(|r| &r.value);
    if let Some(name) = exact("metadata.name")
        && (!namespaced || !namespace.is_empty())
    {
        return Topic::Object(super::object_key(namespace, name).into());
    }
    for field in cache.selectable() {
        if let Some(value) = exact(field.path).filter(|v| !v.is_empty()) {
            return Topic::Field(field.path, value.as_str().into());
        }
    }
    if namespace.is_empty() { Topic::All } else { Topic::Namespace(namespace.into()) }
}

/// A watcher's place in a topic. It holds no events: a reader that is slow misses them instead.
#[derive(Debug)]
pub struct Subscription {
    cache: Arc<ResourceCache>,
    topic: Topic,
    channel: Arc<Channel>,
    position: u64,
    /// Events up to this revision are the watcher's past.
    after: Revision,
}

impl Subscription {
    /// Up to `max` events that came since the last call; returns how many positions it went on (0: nothing yet).
    pub fn read(&mut self, max: usize, out: &mut Vec<Arc<CacheEvent>>) -> Result<usize, Missed> {
        let from = out.len();
        self.channel.ring.read().read(self.position, max, out)?;
        let passed = out.len() - from;
        self.position += passed as u64;
        let after = self.after;
        out.retain(|e| e.revision > after);
        Ok(passed)
    }

    /// For waiting without borrowing the subscription.
    pub fn waker(&self) -> TopicWaker {
        TopicWaker(self.channel.clone())
    }
}

/// Tells when a topic has news.
pub struct TopicWaker(Arc<Channel>);

impl TopicWaker {
    /// Resolves when there may be more to read. Create and `enable` it before the read that finds nothing.
    pub fn woken(&self) -> tokio::sync::futures::Notified<'_> {
        self.0.wake.notified()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.cache.release(&self.topic, &self.channel);
    }
}
