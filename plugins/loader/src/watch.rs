//! Both kinds of plugins as one stream.

use std::pin::Pin;

use futures::stream::{self, Stream, StreamExt};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use scaleup_api::kind::Object;
use scaleup_api::plugin::{CLUSTER_MODULES, ClusterWasmPlugin, WasmPlugin, WasmPluginSpec, WasmPluginStatus};
use scaleup_plugins::PluginKey;

/// A plugin of either kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Plugin {
    /// Its name.
    pub key: PluginKey,
    /// Tells it from a later one of its name.
    pub uid: String,
    /// What is wanted.
    pub spec: WasmPluginSpec,
    /// What the controllers have decided.
    pub status: WasmPluginStatus,
}

impl Plugin {
    fn of<K>(object: K) -> Self
    where
        K: Resource<DynamicType = ()> + Object<Spec = WasmPluginSpec, Status = WasmPluginStatus>,
    {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let (spec, status) = object.parts();
        Self {
            key: PluginKey::namespaced(namespace, name),
            uid: object.uid().unwrap_or_default(),
            spec: spec.clone(),
            status: status.cloned().unwrap_or_default(),
        }
    }

    /// Where its modules are stored.
    pub fn modules(&self) -> &str {
        if self.key.namespace.is_empty() { CLUSTER_MODULES } else { &self.key.namespace }
    }
}

/// What was seen.
#[derive(Debug)]
pub enum Seen {
    /// There is, or it changed.
    Plugin(Box<Plugin>),
    /// It is gone.
    Gone(PluginKey),
    /// All of one kind have been seen, and there are no others: ClusterWasmPlugins if true.
    All(bool, Vec<PluginKey>),
}

/// All there is to see.
pub type Sight = Pin<Box<dyn Stream<Item = Seen> + Send>>;

/// Watches both kinds, through any outage of the API.
pub fn plugins(client: &Client) -> Sight {
    let namespaced = of_kind::<WasmPlugin>(Api::all(client.clone()), false);
    let cluster = of_kind::<ClusterWasmPlugin>(Api::all(client.clone()), true);
    Box::pin(stream::select(namespaced, cluster))
}

fn of_kind<K>(api: Api<K>, cluster: bool) -> Sight
where
    K: Resource<DynamicType = ()> + Object<Spec = WasmPluginSpec, Status = WasmPluginStatus>,
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let mut listed: Vec<PluginKey> = Vec::new();
    let seen = watcher(api, watcher::Config::default()).default_backoff().filter_map(move |event| {
        let seen = match event {
            Ok(Event::Apply(object)) => Some(Seen::Plugin(Box::new(Plugin::of(object)))),
            Ok(Event::Delete(object)) => Some(Seen::Gone(Plugin::of(object).key)),
            Ok(Event::Init) => {
                listed.clear();
                None
            }
            Ok(Event::InitApply(object)) => {
                let plugin = Plugin::of(object);
                listed.push(plugin.key.clone());
                Some(Seen::Plugin(Box::new(plugin)))
            }
            Ok(Event::InitDone) => Some(Seen::All(cluster, std::mem::take(&mut listed))),
            Err(error) => {
                tracing::debug!(%error, "plugins cannot be watched; will retry");
                None
            }
        };
        futures::future::ready(seen)
    });
    Box::pin(seen)
}
