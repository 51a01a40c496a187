//! What the host offers to every plugin. Outside WebAssembly, where there is no host, a stand-in for tests.

use crate::Level;

/// Writes a line to the platform's log, under the plugin's name. Cut at 1 KiB; above 10 lines a second they are dropped.
pub fn log(level: Level, message: &str) {
    #[cfg(target_arch = "wasm32")]
    crate::bindings::policy::scaleup::policy::logging::log(level, message);
    #[cfg(not(target_arch = "wasm32"))]
    eprintln!("{level:?}: {message}");
}

/// Adds to a counter: the metric `scaleup_plugin_counter_total{plugin, name}`. A name is of `a-z`, `0-9` and `_`; a plugin may have 32 of them.
pub fn count(name: &str, by: u64) {
    #[cfg(target_arch = "wasm32")]
    crate::bindings::policy::scaleup::policy::counters::add(name, by);
    #[cfg(not(target_arch = "wasm32"))]
    let _ = (name, by);
}

/// The configuration as JSON.
pub(crate) fn config() -> String {
    #[cfg(target_arch = "wasm32")]
    return crate::bindings::policy::scaleup::policy::config::get();
    #[cfg(not(target_arch = "wasm32"))]
    "{}".to_owned()
}
