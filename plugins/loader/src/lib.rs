//! Loads the plugins of a process: keeps each slot of its [`Registry`] as the plugin's status says.
//!
//! A Kubernetes client: it watches WasmPlugins and ClusterWasmPlugins, fetches modules by digest, compiles them, puts generations into slots, and
//! writes what becomes of them into its own entry of `status.holders`; recorded decisions it hands in at the API server, if that is another process. It never decides which version is good enough (the controllers do,
//! and say so in the status) nor what a decision means (the roles do, which know nothing of this crate). No role imports it: the platform
//! runs it beside them. [`stage()`] is what the controllers have done with a version that is not in any status yet.

mod convert;
mod handin;
mod host;
mod load;
mod modules;
mod report;
mod run;
mod stage;
mod watch;

pub use convert::{failure_policy, limits};
pub use host::LazyHost;
pub use run::{Loader, run};
pub use scaleup_plugins::Registry;
pub use stage::stage;
