//! Metadata-only watches of every kind that can be listed, watched and deleted, kept up to date with discovery.
//!
//! A discovery that fails for a group changes nothing for that group.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kube::api::{DynamicObject, PartialObjectMeta};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::graph::{Graph, Item, Uid};
use crate::base::discovery::{Discovered, Kind, discover};
use crate::base::queue::Queue;
use crate::base::watch::{Pauses, watch};

/// Most kinds watched at once.
const MAX_KINDS: usize = 2_000;
/// First pause after a watch or discovery failed.
const MIN_BACKOFF: Duration = Duration::from_millis(200);
/// Longest pause.
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// A kind whose first list takes longer is not waited for (upstream's `initialSyncTimeout`).
const SYNC_TIMEOUT: Duration = Duration::from_secs(30);

/// Kinds that neither own nor are owned, and come in masses.
fn is_ignored(kind: &Kind) -> bool {
    kind.resource.kind == "Event" && matches!(kind.resource.group.as_str(), "" | "events.k8s.io")
}

struct Monitor {
    kind: Arc<Kind>,
    synced: Arc<AtomicBool>,
    started: Instant,
    stop: CancellationToken,
}

/// The watches and the graph that they feed.
pub struct Monitors {
    client: Client,
    graph: Arc<Mutex<Graph>>,
    queue: Arc<Queue<Uid>>,
    /// Group and kind → watch.
    running: RwLock<HashMap<(String, String), Monitor>>,
    /// Whether every group that is served has answered at least once.
    complete: AtomicBool,
    /// Groups (`group/version`) that have answered.
    answered: Mutex<HashSet<String>>,
    started: Instant,
    /// What [`Monitors::settle`] last found.
    settled: AtomicBool,
}

/// What a discovery means for the watches.
#[derive(Debug, Default, PartialEq)]
struct Diff {
    start: Vec<Kind>,
    stop: Vec<(String, String)>,
}

/// Pure: compares what is watched with what is served.
fn diff(running: &[Kind], found: &Discovered) -> Diff {
    let key = |k: &Kind| (k.resource.group.clone(), k.resource.kind.clone());
    let failed = |group: &str| found.failed.iter().any(|(g, _)| g.split_once('/').map_or("", |(g, _)| g) == group);
    let wanted = || found.kinds.iter().filter(|k| k.has("watch") && !is_ignored(k));
    let mut diff = Diff::default();
    for kind in running.iter().filter(|k| !failed(&k.resource.group)) {
        if !wanted().any(|w| w == kind) {
            diff.stop.push(key(kind));
        }
    }
    for kind in wanted() {
        let same = running.iter().any(|r| r == kind);
        let kept = running.iter().any(|r| key(r) == key(kind)) && failed(&kind.resource.group);
        if !same && !kept {
            diff.start.push(kind.clone());
        }
    }
    diff
}

impl Monitors {
    /// No watches yet.
    pub fn new(client: Client, graph: Arc<Mutex<Graph>>, queue: Arc<Queue<Uid>>) -> Self {
        Self {
            client,
            graph,
            queue,
            running: RwLock::default(),
            complete: AtomicBool::new(false),
            answered: Mutex::default(),
            started: Instant::now(),
            settled: AtomicBool::new(false),
        }
    }

    /// The kind that an owner reference names, in the version that is watched.
    pub fn kind(&self, group: &str, kind: &str) -> Option<Arc<Kind>> {
        self.running.read().get(&(group.to_owned(), kind.to_owned())).map(|m| m.kind.clone())
    }

    /// Whether the graph holds everything there is, as far as discovery and watches can tell. What is looked at before
    /// may be dropped: once the graph is settled, everything suspect is put into the queue.
    pub fn settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    fn settle(&self) {
        let settled = {
            let running = self.running.read();
            let late = |since: Instant| since.elapsed() >= SYNC_TIMEOUT;
            (self.complete.load(Ordering::Acquire) || late(self.started))
                && !running.is_empty()
                && running.values().all(|m| m.synced.load(Ordering::Acquire) || late(m.started))
        };
        if settled && !self.settled.swap(settled, Ordering::AcqRel) {
            let suspects = self.graph.lock().suspects();
            suspects.into_iter().for_each(|uid| self.queue.add(uid));
        }
        self.settled.store(settled, Ordering::Release);
    }

    /// Rediscovers every `period` until `shutdown`.
    pub async fn run(self: &Arc<Self>, period: Duration, shutdown: &CancellationToken) {
        let mut backoff = MIN_BACKOFF;
        while !shutdown.is_cancelled() {
            let complete = match discover(&self.client).await {
                Ok(found) => {
                    self.adjust(&found, shutdown);
                    found.failed.is_empty()
                }
                Err(e) => {
                    debug!(error = %e, "discovery failed; watching what is known");
                    false
                }
            };
            self.settle();
            let pause = if complete { period } else { backoff.min(period) };
            backoff = if complete { MIN_BACKOFF } else { (backoff * 2).min(MAX_BACKOFF) };
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn adjust(self: &Arc<Self>, found: &Discovered, shutdown: &CancellationToken) {
        let mut running = self.running.write();
        let kinds: Vec<Kind> = running.values().map(|m| (*m.kind).clone()).collect();
        let diff = diff(&kinds, found);
        for key in diff.stop {
            if let Some(monitor) = running.remove(&key) {
                monitor.stop.cancel();
                let mut graph = self.graph.lock();
                for uid in graph.of_kind(&monitor.kind) {
                    graph.forget(&uid);
                }
                info!(group = key.0, kind = key.1, "no longer watched");
            }
        }
        for kind in diff.start {
            if running.len() >= MAX_KINDS {
                warn!(limit = MAX_KINDS, kind = kind.resource.kind, "too many kinds; not garbage collected");
                break;
            }
            let key = (kind.resource.group.clone(), kind.resource.kind.clone());
            let stop = shutdown.child_token();
            let monitor = Monitor { kind: Arc::new(kind), synced: Arc::default(), started: Instant::now(), stop };
            let (this, kind) = (self.clone(), monitor.kind.clone());
            let (synced, stop) = (monitor.synced.clone(), monitor.stop.clone());
            tokio::spawn(async move { this.watch(kind, synced, stop).await });
            running.insert(key, monitor);
        }
        // A group that answered before is watched as it was then; only one that never did leaves the graph incomplete.
        let mut answered = self.answered.lock();
        answered.retain(|version| found.versions.contains(version));
        let failed = |version: &String| found.failed.iter().any(|(f, _)| f == version);
        answered.extend(found.versions.iter().filter(|v| !failed(v)).cloned());
        self.complete.store(found.versions.iter().all(|v| answered.contains(v)), Ordering::Release);
    }

    async fn watch(&self, kind: Arc<Kind>, synced: Arc<AtomicBool>, stop: CancellationToken) {
        let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(self.client.clone(), &kind.resource);
        let mut listed: Option<Vec<Uid>> = None;
        let on = |event| {
            if let Some(event) = event {
                self.apply(&kind, event, &mut listed, &synced);
            }
        };
        let pauses = Pauses { first: MIN_BACKOFF, longest: MAX_BACKOFF };
        watch(api, watcher::Config::default(), &kind.resource.kind, pauses, &stop, on).await;
    }

    fn apply(
        &self,
        kind: &Arc<Kind>,
        event: Event<PartialObjectMeta<DynamicObject>>,
        listed: &mut Option<Vec<Uid>>,
        synced: &AtomicBool,
    ) {
        let mut graph = self.graph.lock();
        let look = match event {
            Event::Init => {
                *listed = Some(Vec::new());
                Vec::new()
            }
            Event::InitApply(object) => {
                listed.get_or_insert_default().extend(object.metadata.uid.clone());
                Item::new(kind.clone(), &object.metadata).map(|i| graph.upsert(i)).unwrap_or_default()
            }
            Event::Apply(object) => {
                Item::new(kind.clone(), &object.metadata).map(|i| graph.upsert(i)).unwrap_or_default()
            }
            Event::Delete(object) => graph.remove(object.metadata.uid.as_deref().unwrap_or_default()),
            Event::InitDone => {
                let listed: HashSet<Uid> = listed.take().unwrap_or_default().into_iter().collect();
                let gone: Vec<Uid> = graph.of_kind(kind).into_iter().filter(|u| !listed.contains(u)).collect();
                synced.store(true, Ordering::Release);
                gone.iter().flat_map(|u| graph.remove(u)).collect()
            }
        };
        drop(graph);
        if self.settled() {
            look.into_iter().for_each(|uid| self.queue.add(uid));
        } else {
            self.settle();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::api::ApiResource;

    fn kind(group: &str, name: &str, verbs: &[&str]) -> Kind {
        let resource = ApiResource {
            group: group.into(),
            version: "v1".into(),
            api_version: "v1".into(),
            kind: name.into(),
            plural: name.into(),
        };
        Kind { resource, namespaced: true, verbs: verbs.iter().map(|v| (*v).to_owned()).collect() }
    }

    fn found(kinds: &[Kind], failed: &[&str]) -> Discovered {
        let failed = failed.iter().map(|g| ((*g).to_owned(), "down".to_owned())).collect();
        Discovered { kinds: kinds.to_vec(), versions: Vec::new(), failed }
    }

    #[test]
    fn watches_follow_discovery() {
        let all = &["delete", "list", "watch"];
        let (pod, set) = (kind("", "Pod", all), kind("apps", "ReplicaSet", all));
        let kinds = [pod.clone(), kind("", "Event", all), kind("a.io", "Odd", &["delete", "list"])];
        assert_eq!(diff(&[], &found(&kinds, &[])).start, std::slice::from_ref(&pod));
        let gone = diff(&[pod.clone(), set.clone()], &found(std::slice::from_ref(&pod), &[]));
        assert_eq!(gone, Diff { start: vec![], stop: vec![("apps".into(), "ReplicaSet".into())] });
        // A group that does not answer keeps its watches.
        let down = diff(&[pod.clone(), set.clone()], &found(std::slice::from_ref(&pod), &["apps/v1"]));
        assert_eq!(down, Diff::default());
        let core_down = diff(&[pod.clone(), set.clone()], &found(std::slice::from_ref(&set), &["v1"]));
        assert_eq!(core_down, Diff::default());
        // Another version is another watch.
        let mut newer = set.clone();
        newer.resource.version = "v2".into();
        let changed = diff(std::slice::from_ref(&set), &found(std::slice::from_ref(&newer), &[]));
        assert_eq!(changed, Diff { start: vec![newer], stop: vec![("apps".into(), "ReplicaSet".into())] });
    }
}
