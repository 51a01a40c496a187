//! One watch per kind, shared by all controllers: an indexed cache, and handlers that are told of changes.
//!
//! Handlers run on the informer's task and must only put keys into queues. Objects are kept without `managedFields`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Debug;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource, ResourceExt};
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use tokio::sync::watch as flag;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::key::Key;
use super::queue::Queue;
use super::watch::{self, Pauses};

/// Between attempts to watch while the API is away.
const PAUSES: Pauses = Pauses { first: Duration::from_millis(100), longest: Duration::from_secs(5) };

/// A change of one object: both sides for an update, one for an addition or a deletion.
pub struct Change<'a, K> {
    /// As it was in the cache.
    pub old: Option<&'a Arc<K>>,
    /// As it is in the cache now.
    pub new: Option<&'a Arc<K>>,
}

impl<'a, K> Change<'a, K> {
    /// The newest state that is known.
    pub fn latest(&self) -> Option<&'a Arc<K>> {
        self.new.or(self.old)
    }
}

type Handler<K> = Box<dyn Fn(&Change<'_, K>) + Send + Sync>;
/// The values under which an index finds an object.
pub type Indexer<K> = fn(&K) -> Vec<String>;

struct Index<K> {
    name: &'static str,
    values_of: Indexer<K>,
    keys: HashMap<String, BTreeSet<Key>>,
}

struct Cache<K> {
    objects: BTreeMap<Key, Arc<K>>,
    indexes: Vec<Index<K>>,
}

/// The cache and watch of one kind.
pub struct Informer<K> {
    cache: RwLock<Cache<K>>,
    handlers: RwLock<Vec<Handler<K>>>,
    synced: flag::Sender<bool>,
    /// Since when the watch works; `None` while it does not.
    healthy: RwLock<Option<Instant>>,
}

impl<K> Informer<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    /// An empty cache with these indexes.
    pub fn new(indexers: &[(&'static str, Indexer<K>)]) -> Self {
        let indexes = indexers
            .iter()
            .map(|(name, values_of)| Index { name, values_of: *values_of, keys: HashMap::new() })
            .collect();
        Self {
            cache: RwLock::new(Cache { objects: BTreeMap::new(), indexes }),
            handlers: RwLock::new(Vec::new()),
            synced: flag::channel(false).0,
            healthy: RwLock::new(None),
        }
    }

    /// Calls `handler` for each change from now on.
    pub fn subscribe(&self, handler: impl Fn(&Change<'_, K>) + Send + Sync + 'static) {
        self.handlers.write().push(Box::new(handler));
    }

    /// Puts the key of the object that `wanted` picks from a change into `queue`, from now on.
    pub fn feed(
        &self,
        queue: &Arc<Queue<Key>>,
        wanted: impl for<'a> Fn(&Change<'a, K>) -> Option<&'a Arc<K>> + Send + Sync + 'static,
    ) {
        let queue = queue.clone();
        self.subscribe(move |change| {
            if let Some(object) = wanted(change) {
                queue.add(Key::of(object.as_ref()));
            }
        });
    }

    /// The object, if cached.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.cache.read().objects.get(key).cloned()
    }

    /// All objects, by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.cache.read().objects.values().cloned().collect()
    }

    /// All keys.
    pub fn keys(&self) -> Vec<Key> {
        self.cache.read().objects.keys().cloned().collect()
    }

    /// All objects of a namespace, by name.
    pub fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        let from = Bound::Included(Key::new(namespace, ""));
        let cache = self.cache.read();
        let range = cache.objects.range((from, Bound::Unbounded));
        range.take_while(|(k, _)| k.namespace == namespace).map(|(_, o)| o.clone()).collect()
    }

    /// All objects that the index `name` files under `value`, by namespace and name.
    pub fn indexed(&self, name: &str, value: &str) -> Vec<Arc<K>> {
        let cache = self.cache.read();
        let keys = cache.indexes.iter().find(|i| i.name == name).and_then(|i| i.keys.get(value));
        keys.into_iter().flatten().filter_map(|k| cache.objects.get(k).cloned()).collect()
    }

    /// Ends when the first list is complete.
    pub fn synced(&self) -> impl Future<Output = ()> + Send + use<K> {
        let mut synced = self.synced.subscribe();
        async move {
            // It fails only when the informer is gone; then nobody is left to wait for it.
            let _ = synced.wait_for(|s| *s).await;
        }
    }

    /// Since when the watch has worked without interruption; `None` while it does not.
    pub fn healthy_since(&self) -> Option<Instant> {
        *self.healthy.read()
    }

    /// Watches until `shutdown`, through any outage of the API.
    pub async fn run(&self, api: Api<K>, config: watcher::Config, shutdown: CancellationToken) {
        let mut initial: Option<Vec<K>> = None;
        let on = |event: Option<Event<K>>| match event {
            None => *self.healthy.write() = None,
            Some(event) => {
                if !matches!(event, Event::Init) {
                    self.healthy.write().get_or_insert_with(Instant::now);
                }
                self.apply(event, &mut initial);
            }
        };
        watch::watch(api, config, std::any::type_name::<K>(), PAUSES, &shutdown, on).await;
    }

    fn apply(&self, event: Event<K>, initial: &mut Option<Vec<K>>) {
        match event {
            Event::Init => *initial = Some(Vec::new()),
            Event::InitApply(object) => initial.get_or_insert_default().push(object),
            Event::InitDone => {
                self.replace(initial.take().unwrap_or_default());
                self.synced.send_replace(true);
            }
            Event::Apply(object) => self.put(object),
            Event::Delete(object) => self.remove(&Key::of(&object), Some(object)),
        }
    }

    /// Replaces everything, as after a new list; handlers hear of the differences.
    pub fn replace(&self, objects: Vec<K>) {
        let listed: HashSet<Key> = objects.iter().map(Key::of).collect();
        objects.into_iter().for_each(|o| self.put(o));
        for key in self.keys().into_iter().filter(|k| !listed.contains(k)) {
            self.remove(&key, None);
        }
    }

    /// Caches an object and tells the handlers, unless this version of it is cached already.
    pub fn put(&self, mut object: K) {
        object.meta_mut().managed_fields = None;
        let key = Key::of(&object);
        let new = Arc::new(object);
        let old = self.cache.write().insert(key, new.clone());
        if let Some(old) = &old {
            let same_version = old.resource_version().is_some() && old.resource_version() == new.resource_version();
            if same_version && old.uid() == new.uid() {
                return;
            }
        }
        match &old {
            // Deleted and created again between two events: two objects.
            Some(replaced) if replaced.uid() != new.uid() => {
                self.tell(&Change { old: Some(replaced), new: None });
                self.tell(&Change { old: None, new: Some(&new) });
            }
            _ => self.tell(&Change { old: old.as_ref(), new: Some(&new) }),
        }
    }

    fn remove(&self, key: &Key, last: Option<K>) {
        let Some(old) = self.cache.write().remove(key) else { return };
        let last = last.map_or(old, Arc::new);
        self.tell(&Change { old: Some(&last), new: None });
    }

    fn tell(&self, change: &Change<'_, K>) {
        self.handlers.read().iter().for_each(|h| h(change));
    }
}

impl<K> Cache<K> {
    fn insert(&mut self, key: Key, object: Arc<K>) -> Option<Arc<K>> {
        let old = self.objects.insert(key.clone(), object.clone());
        for index in &mut self.indexes {
            let values = (index.values_of)(&object);
            if let Some(old) = &old {
                let before = (index.values_of)(old);
                if before == values {
                    continue;
                }
                index.unfile(&key, before);
            }
            for value in values {
                index.keys.entry(value).or_default().insert(key.clone());
            }
        }
        old
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<K>> {
        let old = self.objects.remove(key)?;
        for index in &mut self.indexes {
            let before = (index.values_of)(&old);
            index.unfile(key, before);
        }
        Some(old)
    }
}

impl<K> Index<K> {
    fn unfile(&mut self, key: &Key, values: Vec<String>) {
        for value in values {
            if let Some(keys) = self.keys.get_mut(&value) {
                keys.remove(key);
                if keys.is_empty() {
                    self.keys.remove(&value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use parking_lot::Mutex;

    fn map(ns: &str, name: &str, uid: &str, rv: &str, label: &str) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.namespace = Some(ns.into());
        map.metadata.name = Some(name.into());
        map.metadata.uid = Some(uid.into());
        map.metadata.resource_version = Some(rv.into());
        map.metadata.labels = Some([("l".to_owned(), label.to_owned())].into());
        map
    }

    fn by_label(map: &ConfigMap) -> Vec<String> {
        map.labels().values().cloned().collect()
    }

    fn informer() -> (Informer<ConfigMap>, Arc<Mutex<Vec<String>>>) {
        let informer = Informer::new(&[("label", by_label as Indexer<ConfigMap>)]);
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let sink = log.clone();
        informer.subscribe(move |c| {
            let version = |o: Option<&Arc<ConfigMap>>| o.and_then(|o| o.resource_version()).unwrap_or("-".into());
            sink.lock().push(format!("{}:{}>{}", c.latest().unwrap().name_any(), version(c.old), version(c.new)));
        });
        (informer, log)
    }

    #[test]
    fn changes_reach_cache_index_and_handlers() {
        let (informer, log) = informer();
        informer.put(map("n", "a", "1", "1", "x"));
        informer.put(map("n", "a", "1", "1", "x"));
        informer.put(map("n", "a", "1", "2", "y"));
        informer.put(map("m", "b", "2", "3", "y"));
        assert_eq!(informer.list_in("n").len(), 1);
        assert_eq!(informer.list_in("").len(), 0);
        assert!(informer.indexed("label", "x").is_empty());
        assert_eq!(informer.indexed("label", "y").len(), 2);
        informer.put(map("n", "a", "9", "4", "y"));
        informer.replace(vec![map("m", "b", "2", "3", "y")]);
        assert_eq!(*log.lock(), ["a:->1", "a:1>2", "b:->3", "a:2>-", "a:->4", "a:4>-"]);
        assert_eq!(informer.indexed("label", "y").len(), 1);
    }

    #[tokio::test]
    async fn a_list_is_applied_as_a_whole() {
        let (informer, log) = informer();
        let mut initial = None;
        informer.apply(Event::Init, &mut initial);
        informer.apply(Event::InitApply(map("n", "a", "1", "1", "x")), &mut initial);
        assert!(log.lock().is_empty());
        informer.apply(Event::InitDone, &mut initial);
        informer.synced().await;
        informer.apply(Event::Init, &mut initial);
        informer.apply(Event::InitDone, &mut initial);
        assert_eq!(*log.lock(), ["a:->1", "a:1>-"]);
    }
}
