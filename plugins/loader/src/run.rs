//! The loop: what was seen wakes plugins, plugins are loaded one task each, and what became of them is reported.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use scaleup_api::plugin::{ClusterWasmPlugin, PluginHolder, WasmPlugin};
use scaleup_plugins::{PluginKey, Registry, World};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::handin::hand_in;
use crate::host::LazyHost;
use crate::load::{LoadError, Slots};
use crate::report;
use crate::watch::{self, Plugin, Seen};

/// How often it is looked for what is due.
const TICK: Duration = Duration::from_millis(500);
/// Shortest time between two reports of figures.
const REPORT: Duration = Duration::from_secs(3);
/// Longest time between two reports: who is silent for longer is taken for gone.
const RENEWAL: Duration = Duration::from_secs(60);
/// Pause after the first failure; doubles with each.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Plugins that are loaded at a time.
const LOADING: usize = 4;
/// Longest wait for a report to be written.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Plugins looked after; further ones are left alone.
const MAX_PLUGINS: usize = 10_000;

/// What a loader is started with.
#[derive(Clone)]
pub struct Loader {
    /// The API.
    pub client: Client,
    /// Compiles and runs.
    pub host: Arc<LazyHost>,
    /// What is filled.
    pub registry: Arc<Registry>,
    /// Decisions that are taken in this process.
    pub worlds: Vec<World>,
    /// Its name in `status.holders`: `lb/node-1`.
    pub holder: String,
    /// Whether recorded decisions are handed in at the API server, because it is another process.
    pub hands_in: bool,
}

struct Entry {
    plugin: Arc<Plugin>,
    world: World,
    busy: bool,
    dirty: bool,
    failures: u32,
    due: Option<Instant>,
    error: Option<Arc<LoadError>>,
    reported: Option<(PluginHolder, Instant)>,
    /// Number of the first record that is not handed in.
    handed_in: u64,
}

struct State {
    loader: Loader,
    slots: Arc<Slots>,
    entries: HashMap<PluginKey, Entry>,
    permits: Arc<Semaphore>,
    loads: JoinSet<(PluginKey, Result<(), LoadError>)>,
    reports: JoinSet<Vec<(PluginKey, PluginHolder, bool)>>,
    hand_ins: JoinSet<Vec<(PluginKey, u64)>>,
}

/// Loads plugins until `shutdown`. Never fails: what cannot be loaded is tried again.
pub async fn run(loader: Loader, shutdown: CancellationToken) {
    let slots = Slots { client: loader.client.clone(), host: loader.host.clone(), registry: loader.registry.clone() };
    let mut seen = watch::plugins(&loader.client);
    let mut state = State {
        slots: Arc::new(slots),
        loader,
        entries: HashMap::new(),
        permits: Arc::new(Semaphore::new(LOADING)),
        loads: JoinSet::new(),
        reports: JoinSet::new(),
        hand_ins: JoinSet::new(),
    };
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            Some(seen) = seen.next() => state.see(seen),
            Some(done) = state.loads.join_next() => match done {
                Ok((key, result)) => state.loaded(&key, result),
                Err(error) => tracing::error!(%error, "loading a plugin failed; please report this"),
            },
            Some(done) = state.reports.join_next() => state.reported(done.unwrap_or_default()),
            Some(done) = state.hand_ins.join_next() => state.handed_in(done.unwrap_or_default()),
            _ = ticks.tick() => state.tick(),
        }
    }
}

impl State {
    fn see(&mut self, seen: Seen) {
        match seen {
            Seen::Plugin(plugin) => self.see_plugin(*plugin),
            Seen::Gone(key) => self.forget(&key),
            Seen::All(cluster, keys) => {
                let of_kind = |key: &PluginKey| key.namespace.is_empty() == cluster;
                let gone = self.entries.keys().filter(|key| of_kind(key) && !keys.contains(key));
                for key in gone.cloned().collect::<Vec<_>>() {
                    self.forget(&key);
                }
            }
        }
    }

    fn see_plugin(&mut self, plugin: Plugin) {
        let world = plugin.spec.world.parse().ok().filter(|world| self.loader.worlds.contains(world));
        let Some(world) = world else { return };
        let key = plugin.key.clone();
        if self.entries.get(&key).is_some_and(|known| known.plugin.uid != plugin.uid || known.world != world) {
            self.forget(&key);
        }
        if !self.entries.contains_key(&key) && self.entries.len() >= MAX_PLUGINS {
            return tracing::warn!(plugin = %key, "not loaded: there are {MAX_PLUGINS} plugins already");
        }
        let plugin = Arc::new(plugin);
        match self.entries.get_mut(&key) {
            Some(entry) => {
                let (was, is) = (&entry.plugin, &plugin);
                let relevant = |p: &Plugin| {
                    let (s, conditions) =
                        (&p.status, p.status.conditions.iter().map(|c| (c.type_.clone(), c.status.clone())));
                    let none =
                        s.active.is_none().then(|| (p.spec.failure_policy.clone(), conditions.collect::<Vec<_>>()));
                    (s.active.clone(), s.candidate.clone(), s.previous.clone(), p.spec.recording.clone(), none)
                };
                let changed = relevant(was) != relevant(is);
                entry.plugin = plugin;
                if changed {
                    (entry.failures, entry.dirty) = (0, true);
                }
            }
            None => {
                let entry = Entry {
                    plugin,
                    world,
                    busy: false,
                    dirty: true,
                    failures: 0,
                    due: None,
                    error: None,
                    reported: None,
                    handed_in: 0,
                };
                self.entries.insert(key.clone(), entry);
            }
        }
        self.start(&key);
    }

    fn forget(&mut self, key: &PluginKey) {
        if let Some(entry) = self.entries.remove(key) {
            self.slots.unload(key, entry.world);
        }
    }

    /// Loads the plugin if it has changed and is not being loaded already.
    fn start(&mut self, key: &PluginKey) {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.dirty && !entry.busy) else { return };
        (entry.busy, entry.dirty, entry.due) = (true, false, None);
        let (slots, permits) = (self.slots.clone(), self.permits.clone());
        let (plugin, world, key) = (entry.plugin.clone(), entry.world, key.clone());
        self.loads.spawn(async move {
            // It is never closed.
            let _permit = permits.acquire_owned().await;
            let result = slots.load(&plugin, world).await;
            (key, result)
        });
    }

    fn loaded(&mut self, key: &PluginKey, result: Result<(), LoadError>) {
        let Some(entry) = self.entries.get_mut(key) else {
            // It was deleted meanwhile.
            self.loader.worlds.iter().for_each(|world| self.slots.unload(key, *world));
            return;
        };
        entry.busy = false;
        match result {
            Ok(()) => (entry.failures, entry.error) = (0, None),
            Err(error) => {
                let pause = FIRST_PAUSE.saturating_mul(1 << entry.failures.min(10)).min(LONGEST_PAUSE);
                tracing::warn!(plugin = %key, error = error.message(), "not loaded; will retry in {} s", pause.as_secs());
                (entry.failures, entry.due) = (entry.failures.saturating_add(1), Some(Instant::now() + pause));
                entry.error = Some(Arc::new(error));
            }
        }
        self.start(key);
        self.report();
    }

    fn tick(&mut self) {
        let now = Instant::now();
        let due = self.entries.iter().filter(|(_, entry)| entry.due.is_some_and(|due| now >= due));
        for key in due.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.dirty = true;
            }
            self.start(&key);
        }
        self.report();
        self.hand_in();
    }

    /// Hands in what was recorded, unless that is being done.
    fn hand_in(&mut self) {
        if !self.loader.hands_in || !self.hand_ins.is_empty() {
            return;
        }
        let recorded = self.entries.iter().filter(|(_, entry)| entry.plugin.spec.recording.is_some());
        let due =
            recorded.map(|(key, entry)| (key.clone(), self.loader.registry.slot(key, entry.world), entry.handed_in));
        let (due, client) = (due.collect::<Vec<_>>(), self.loader.client.clone());
        if due.is_empty() {
            return;
        }
        self.hand_ins.spawn(async move {
            let mut done = Vec::with_capacity(due.len());
            for (key, slot, number) in due {
                let next = hand_in(&client, &key, slot, number).await;
                done.push((key, next));
            }
            done
        });
    }

    fn handed_in(&mut self, done: Vec<(PluginKey, u64)>) {
        for (key, next) in done {
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.handed_in = next;
            }
        }
    }

    /// Writes the entries that have changed, unless some are being written.
    fn report(&mut self) {
        if !self.reports.is_empty() {
            return;
        }
        let now = Instant::now();
        let due = self.entries.iter().filter(|(_, entry)| !entry.busy).filter_map(|(key, entry)| {
            let slot = self.loader.registry.slot(key, entry.world);
            let found = report::entry(&slot, entry.error.as_deref());
            let wanted = entry.reported.as_ref().is_none_or(|(before, at)| {
                let age = now.duration_since(*at);
                report::is_news(before, &found) || age >= RENEWAL || (age >= REPORT && *before != found)
            });
            wanted.then(|| (key.clone(), found))
        });
        let due: Vec<(PluginKey, PluginHolder)> = due.collect();
        if due.is_empty() {
            return;
        }
        let (client, holder) = (self.loader.client.clone(), self.loader.holder.clone());
        self.reports.spawn(async move {
            let mut done = Vec::with_capacity(due.len());
            for (key, entry) in due {
                let written = write(&client, &holder, &key, &entry).await;
                done.push((key, entry, written));
            }
            done
        });
    }

    fn reported(&mut self, done: Vec<(PluginKey, PluginHolder, bool)>) {
        for (key, entry, written) in done {
            if let Some(known) = self.entries.get_mut(&key).filter(|_| written) {
                known.reported = Some((entry, Instant::now()));
            }
        }
    }
}

/// Whether it was written. If not, it is tried again with the next tick.
async fn write(client: &Client, holder: &str, key: &PluginKey, entry: &PluginHolder) -> bool {
    let (patch, params) = (Patch::Merge(report::patch(holder, entry)), PatchParams::default());
    let call = async {
        if key.namespace.is_empty() {
            let api: Api<ClusterWasmPlugin> = Api::all(client.clone());
            api.patch_status(&key.name, &params, &patch).await.map(drop)
        } else {
            let api: Api<WasmPlugin> = Api::namespaced(client.clone(), &key.namespace);
            api.patch_status(&key.name, &params, &patch).await.map(drop)
        }
    };
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::debug!(plugin = %key, %error, "the plugin's status is not written; will retry");
            false
        }
        Err(_) => false,
    }
}
