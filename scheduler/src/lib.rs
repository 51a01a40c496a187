//! The scheduler: finds a node for each pod that has none, as kube-scheduler's default profile does.
//!
//! ```text
//! API ─watch→ core::Core { cache ← changes, queue, algorithm { plugins }, policies } ─decisions→ bindings, reports ─→ API
//! ```
//!
//! The role is an ordinary Kubernetes client. [`core::Core`] is free of I/O and clocks; [`run`] is the loop around it.
//! Preemption is not done: a pod of high priority waits for room like any other, only first in line. The scheduler never
//! touches a pod that names another scheduler (the profiles that users' plugins make are its own), and never writes anything but bindings, events and the condition
//! `PodScheduled`.

pub mod algorithm;
pub mod cache;
pub mod core;
pub mod framework;
mod metrics;
pub mod node;
pub mod plugins;
pub mod pod;
pub mod policies;
pub mod queue;
mod report;
pub mod resources;
mod run;
pub mod terms;

use std::sync::Arc;

use kube::Client;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use framework::Profile;
pub use metrics::Metrics;

/// Default for [`Config::max_bindings`].
pub const MAX_BINDINGS: usize = 128;

/// How to schedule.
#[derive(Clone, Debug)]
pub struct Config {
    /// The scheduler's name and its plugins; more of them can be added to the default ones.
    pub profile: Profile,
    /// Bindings under way at a time.
    pub max_bindings: usize,
    /// Breaks ties between equally good nodes; not zero.
    pub seed: u64,
    /// Where the plugins of users are found; whoever loads them holds it too.
    pub plugins: Arc<scaleup_plugins::Registry>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            profile: plugins::default_profile(),
            max_bindings: MAX_BINDINGS,
            seed: rand::random::<u64>() | 1,
            plugins: Arc::default(),
        }
    }
}

/// Why the scheduler stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The watches ended although nobody asked them to: a bug.
    #[error("the watches ended by themselves")]
    WatchesEnded,
}

/// Registers the metrics; hand the result to [`run`].
pub fn build(registry: &mut Registry) -> Metrics {
    Metrics::register(registry)
}

/// Schedules until `shutdown`, then waits for bindings under way. The API may be away at any time.
///
/// # Errors
/// Only for bugs; see [`Error`].
pub async fn run(client: Client, config: Config, metrics: Metrics, shutdown: CancellationToken) -> Result<(), Error> {
    run::run(client, config, metrics, shutdown).await
}
