//! A host, and components that do what a test needs.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use scaleup_lb::policy::PluginRef;
use scaleup_plugins::testing::Guest;
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

fn guest(decision: &str) -> Guest {
    Guest::new(World::Routing, decision)
}

pub fn picks(index: u32) -> Guest {
    guest(&format!(
        "(i32.store8 (i32.const 1024) (i32.const 1)) (i32.store offset=4 (i32.const 1024) (i32.const {index})) (i32.const 1024)"
    ))
}

pub fn says_default() -> Guest {
    guest("(i32.store8 (i32.const 1024) (i32.const 0)) (i32.const 1024)")
}

/// Rejects with a status and one header.
pub fn rejects(status: u16, name: &str, value: &str) -> Guest {
    let (name_len, value_len) = (name.len(), value.len());
    guest(&format!(
        "(i32.store8 (i32.const 1024) (i32.const 2)) (i32.store16 offset=4 (i32.const 1024) (i32.const {status}))
         (i32.store offset=8 (i32.const 1024) (i32.const 2048)) (i32.store offset=12 (i32.const 1024) (i32.const 1))
         (i32.store (i32.const 2048) (i32.const 2304)) (i32.store offset=4 (i32.const 2048) (i32.const {name_len}))
         (i32.store offset=8 (i32.const 2048) (i32.const 3072)) (i32.store offset=12 (i32.const 2048) (i32.const {value_len}))
         (i32.const 1024)"
    ))
    .extra(&format!(r#"(data (i32.const 2304) "{name}") (data (i32.const 3072) "{value}")"#))
}

/// Traps in every `n`th call of an instance, and says default otherwise.
pub fn traps_every(n: u32) -> Guest {
    guest(&format!(
        "(if (i32.eqz (i32.rem_u (global.get $calls) (i32.const {n}))) (then unreachable))
         (i32.store8 (i32.const 1024) (i32.const 0)) (i32.const 1024)"
    ))
}

pub fn loops() -> Guest {
    guest("(loop $again (br $again)) (unreachable)")
}

/// Picks the endpoint whose index is the number of headers that it is shown.
pub fn counts_headers(at: u32) -> Guest {
    guest(&format!(
        "(i32.store8 (i32.const 1024) (i32.const 1))
         (i32.store offset=4 (i32.const 1024) (i32.load offset={at} (local.get $in))) (i32.const 1024)"
    ))
}
