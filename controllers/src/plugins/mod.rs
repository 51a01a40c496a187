//! Plugins: brings the module that a WasmPlugin or ClusterWasmPlugin asks for through its conditions, and each new version through its rollout.
//!
//! A version gets into the status only when it was fetched, verified, compiled and probed; whoever decides loads what the status says, and says in
//! its own entry of `status.holders` what becomes of it. This controller runs no component: [`Stager`] is handed to it. A version
//! that is no good never replaces one that is.

mod gc;
mod remote;
mod rollout;
mod source;
mod staging;
mod status;
mod store;

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::{BoxFuture, join3};
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference, Secret};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource, ResourceExt};
use parking_lot::Mutex;
use scaleup_api::kind::Object;
use scaleup_api::plugin::{
    CLUSTER_MODULES, ClusterWasmPlugin, PluginLimits, WasmPlugin, WasmPluginSpec, WasmPluginStatus,
};
use scaleup_plugins::NotStaged;
use serde_json::Value;
use tokio::time::Instant;

use crate::base::calls::{self, Error};
use crate::base::events::{Recorder, Severity};
use crate::base::key::Key;
use crate::base::queue::Queue;
use crate::base::worker::{self, Outcome, Reconcile};
use crate::context::Context;

/// Plugins that are worked on at once: each may hold a module of 32 MiB.
const WORKERS: usize = 2;
/// How often a source that can change without the plugin is read without a reason.
const SOURCE_PERIOD: Duration = Duration::from_secs(300);
/// Pause after the first attempt at a module that came to nothing; doubles with each.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// How often a rollout under way is looked at.
const ROLLOUT_PERIOD: Duration = Duration::from_secs(1);

/// Compiles and probes modules, within their limits.
#[async_trait]
pub trait Stager: Debug + Send + Sync {
    /// Whether the module is a component of the world that compiles, takes the configuration and answers its examples as it says.
    async fn stage(
        &self,
        world: &str,
        module: &[u8],
        config: Option<&Value>,
        limits: Option<&PluginLimits>,
    ) -> Result<(), NotStaged>;
}

/// A plugin of either kind.
#[derive(Clone, Debug)]
pub(crate) struct Plugin {
    key: Key,
    generation: i64,
    reference: ObjectReference,
    spec: WasmPluginSpec,
    status: WasmPluginStatus,
}

impl Plugin {
    fn of<K>(object: &K) -> Self
    where
        K: Resource<DynamicType = ()> + Object<Spec = WasmPluginSpec, Status = WasmPluginStatus>,
    {
        let (spec, status) = object.parts();
        Self {
            key: Key::of(object),
            generation: object.meta().generation.unwrap_or_default(),
            reference: object.object_ref(&()),
            spec: spec.clone(),
            status: status.cloned().unwrap_or_default(),
        }
    }

    /// Where its modules are stored.
    fn modules(&self) -> &str {
        if self.key.namespace.is_empty() { CLUSTER_MODULES } else { &self.key.namespace }
    }

    /// The namespace of an object that it refers to.
    fn namespace_of<'a>(&'a self, given: &'a str) -> &'a str {
        if self.key.namespace.is_empty() { given } else { &self.key.namespace }
    }

    /// Whether it gets its module from this object, `None` for sources that never change by themselves.
    fn reads(&self) -> Option<(&'static str, Key)> {
        let source = &self.spec.source;
        let (kind, named) = match (&source.config_map_ref, &source.secret_ref) {
            (Some(named), _) => ("ConfigMap", named),
            (None, Some(named)) => ("Secret", named),
            (None, None) => return None,
        };
        Some((kind, Key::new(self.namespace_of(&named.namespace), named.name.clone())))
    }
}

struct Controller {
    cx: Context,
    stager: Arc<dyn Stager>,
    recorder: Recorder,
    sources: Arc<Sources>,
}

/// What is known of plugins' sources.
type Sources = Mutex<HashMap<Key, SourceState>>;

/// When a source is to be read.
#[derive(Clone, Copy, Debug)]
struct SourceState {
    /// `metadata.generation` that this is about.
    generation: i64,
    /// Attempts that came to nothing, one after the other.
    failures: u32,
    /// Not before.
    next: Instant,
}

/// Subscribes and works until shutdown; without a stager there is nothing to do.
pub fn start(cx: Context) -> BoxFuture<'static, ()> {
    let Some(stager) = cx.config.plugins.clone() else {
        return async move { cx.shutdown.cancelled().await }.boxed();
    };
    let queue: Arc<Queue<Key>> = cx.queue("plugin");
    let informers = cx.informers.clone();
    informers.wasm_plugins.feed(&queue, |change| change.new);
    informers.cluster_wasm_plugins.feed(&queue, |change| change.new);
    let sources = Arc::new(Sources::default());
    let recorder = cx.recorder.for_component("plugin-controller");
    let controller = Arc::new(Controller { cx: cx.clone(), stager, recorder, sources: sources.clone() });
    async move {
        let synced = join3(
            informers.wasm_plugins.synced(),
            informers.cluster_wasm_plugins.synced(),
            informers.wasm_modules.synced(),
        );
        if !cx.ready(synced).await {
            return;
        }
        let (period, shutdown) = (cx.config.resync_period, cx.shutdown.clone());
        let known = informers.clone();
        let keys = move || [known.wasm_plugins.keys(), known.cluster_wasm_plugins.keys()].concat();
        tokio::join!(
            worker::resync(queue.clone(), period, keys, shutdown.clone()),
            worker::run("plugin", queue.clone(), controller, WORKERS, shutdown.clone()),
            follow::<ConfigMap>(&cx, "ConfigMap", &queue, &sources),
            follow::<Secret>(&cx, "Secret", &queue, &sources),
            gc::run(&cx),
        );
    }
    .boxed()
}

/// Wakes plugins whose ConfigMap or Secret changes. Their contents are read when they are needed, and not kept.
async fn follow<K>(cx: &Context, kind: &'static str, queue: &Arc<Queue<Key>>, sources: &Sources)
where
    K: Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + Debug + Send + 'static,
{
    let api: Api<PartialObjectMeta<K>> = Api::all(cx.client.clone());
    let mut changes = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
    loop {
        let event = tokio::select! {
            () = cx.shutdown.cancelled() => return,
            event = changes.next() => event,
        };
        let (namespace, name) = match event {
            None => return,
            Some(Ok(Event::Apply(object) | Event::Delete(object) | Event::InitApply(object))) => {
                (object.namespace().unwrap_or_default(), object.name_any())
            }
            Some(_) => continue,
        };
        let changed = Some((kind, Key::new(namespace, name)));
        let namespaced = cx.informers.wasm_plugins.list();
        let cluster = cx.informers.cluster_wasm_plugins.list();
        let all = namespaced.iter().map(|plugin| Plugin::of(&**plugin));
        for plugin in all.chain(cluster.iter().map(|plugin| Plugin::of(&**plugin))) {
            if plugin.reads() == changed {
                sources.lock().remove(&plugin.key);
                queue.add(plugin.key);
            }
        }
    }
}

impl Controller {
    /// As it is now: what is decided here depends on what was decided last.
    async fn get(&self, key: &Key) -> Result<Option<Plugin>, Error> {
        let client = self.cx.client.clone();
        if key.namespace.is_empty() {
            let api: Api<ClusterWasmPlugin> = Api::all(client);
            let found = calls::call("get ClusterWasmPlugin", key, api.get_opt(&key.name)).await?;
            return Ok(found.filter(|found| found.meta().deletion_timestamp.is_none()).as_ref().map(Plugin::of));
        }
        let api: Api<WasmPlugin> = Api::namespaced(client, &key.namespace);
        let found = calls::call("get WasmPlugin", key, api.get_opt(&key.name)).await?;
        Ok(found.filter(|found| found.meta().deletion_timestamp.is_none()).as_ref().map(Plugin::of))
    }

    /// How long it is until the source may be read again. What wakes a plugin is most often news of its figures.
    fn wait(&self, plugin: &Plugin) -> Duration {
        let known = self.sources.lock().get(&plugin.key).copied().filter(|known| known.generation == plugin.generation);
        known.map_or(Duration::ZERO, |known| known.next.saturating_duration_since(Instant::now()))
    }

    /// Notes an attempt.
    fn tried(&self, plugin: &Plugin, outcome: Outcome) {
        let mut sources = self.sources.lock();
        let known = sources.get(&plugin.key).filter(|known| known.generation == plugin.generation);
        let failures = match outcome {
            Outcome::Backoff => known.map_or(0, |known| known.failures).saturating_add(1),
            _ => 0,
        };
        let pause = match failures {
            0 => SOURCE_PERIOD,
            failures => FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(10)).min(LONGEST_PAUSE),
        };
        let state = SourceState { generation: plugin.generation, failures, next: Instant::now() + pause };
        sources.insert(plugin.key.clone(), state);
    }
}

#[async_trait]
impl Reconcile for Controller {
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(plugin) = self.get(key).await? else {
            self.sources.lock().remove(key);
            return Ok(Outcome::Done);
        };
        let mut now = status::Work::new(&plugin, Timestamp::now());
        let mut again = None;
        if !now.is_settled() || plugin.reads().is_some() {
            if self.wait(&plugin).is_zero() {
                let outcome = staging::stage(self, &plugin, &mut now).await?;
                self.tried(&plugin, outcome);
            }
            again = Some(self.wait(&plugin));
        }
        let rolling = rollout::advance(&plugin.spec, &mut now);
        now.finish();
        status::write(&self.cx.client, &plugin, &now.status).await?;
        for (severity, reason, message) in now.events {
            self.recorder.event_about(plugin.reference.clone(), severity, reason, message);
        }
        Ok(match (again, rolling) {
            (_, true) => Outcome::After(ROLLOUT_PERIOD),
            (Some(wait), false) => Outcome::After(wait),
            (None, false) => Outcome::Done,
        })
    }
}

/// Something that is said in an event.
type Said = (Severity, &'static str, String);
