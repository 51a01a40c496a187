//! A host, and generations of plugins.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use scaleup_lb::policy::PluginRef;
use scaleup_plugins::testing::Guest;
pub use scaleup_plugins::testing::routing::*;
use scaleup_plugins::{Compiler, Generation, Host, HostOptions, Limits, PluginKey, Pool, Registry, Setup, Slot, World};

/// Threads of the load balancers here.
const THREADS: usize = 2;

/// One for all tests: compiled code is shared.
pub fn host() -> &'static Host {
    static HOST: OnceLock<(Host, tempfile::TempDir)> = OnceLock::new();
    let (host, _) = HOST.get_or_init(|| {
        let cache = tempfile::tempdir().unwrap();
        let options = HostOptions {
            cache: cache.path().join("code"),
            compiler: Compiler::this_program().unwrap(),
            threads: THREADS,
            pool: Pool { components: 128, core_instances: 512, memories: 128, tables: 256 },
        };
        (Host::start(options).unwrap(), cache)
    });
    host
}

pub fn plugin_key(name: &str) -> PluginKey {
    PluginKey::namespaced("shop", name)
}

/// What a policy asks for.
pub fn wanted(name: &str, headers: &[&str]) -> Arc<PluginRef> {
    let headers = headers.iter().map(|name| Arc::from(*name)).collect();
    Arc::new(PluginRef { key: plugin_key(name), headers, whole_rule: false })
}

/// As a generation of the plugin `name` that decides from now on. Limits of time that no busy machine breaks, unless `time` is given.
pub async fn publish(registry: &Registry, name: &str, number: u64, guest: &Guest, time: Option<Duration>) -> Arc<Slot> {
    let slot = registry.slot(&plugin_key(name), World::Routing);
    slot.policy.publish(generation(name, number, guest, time).await).unwrap();
    registry.announce();
    slot
}

pub async fn generation(name: &str, number: u64, guest: &Guest, time: Option<Duration>) -> Arc<Generation> {
    let limits = Limits { time: time.unwrap_or(Duration::from_secs(10)), ..Limits::of(World::Routing) };
    let module = host().compile(World::Routing, &guest.component(), &limits).await.unwrap();
    let setup = Setup { plugin: format!("shop/{name}").into(), number, config: "{}".into(), limits, state: None };
    Generation::new(host(), module, setup).unwrap()
}
