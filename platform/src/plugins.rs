//! Plugins of this process: one host and one registry for all of its roles, the loader that fills it, and what stages for the controllers.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use async_trait::async_trait;
use prometheus_client::registry::Registry as Prometheus;
use scaleup_api::plugin::PluginLimits;
use scaleup_controllers::plugins::Stager;
use scaleup_plugin_loader::{LazyHost, Loader};
use scaleup_plugins::{Compiler, HostOptions, Metrics, NotStaged, Pool, Registry, Rejection, World};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::cli::PluginArgs;

/// Folder of compiled code in a data directory.
const FOLDER: &str = "plugins";

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Plugins {
    host: Arc<LazyHost>,
    /// What roles look their plugins up in.
    pub registry: Arc<Registry>,
}

impl Plugins {
    /// Starts nothing: the host starts with the first plugin.
    pub fn new(args: &PluginArgs, data_dir: &Path) -> Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let options = HostOptions {
            cache: args.plugin_cache.clone().unwrap_or_else(|| data_dir.join(FOLDER)),
            compiler: Compiler::this_program().context("this program cannot be found, which compiles plugins")?,
            threads,
            pool: Pool::default(),
        };
        Ok(Self { host: Arc::new(LazyHost::new(options)), registry: Arc::default() })
    }

    /// Exports the figures of this process's plugins.
    pub fn register(&self, registry: &mut Prometheus) {
        Metrics::register(registry, self.registry.clone());
    }

    /// Loads the plugins of these worlds until `shutdown`; `holder` is this process's name in their status.
    pub fn load(
        &self,
        client: kube::Client,
        worlds: &[World],
        holder: String,
        shutdown: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (host, registry) = (self.host.clone(), self.registry.clone());
        // Writes are admitted where the API server is.
        let hands_in = !worlds.contains(&World::Admission);
        let loader = Loader { client, host, registry, worlds: worlds.to_vec(), holder, hands_in };
        scaleup_plugin_loader::run(loader, shutdown)
    }

    /// What the controllers have modules compiled and probed with.
    pub fn stager(&self) -> Arc<dyn Stager> {
        Arc::new(Staging(self.host.clone()))
    }
}

#[derive(Debug)]
struct Staging(Arc<LazyHost>);

#[async_trait]
impl Stager for Staging {
    async fn stage(
        &self,
        world: &str,
        module: &[u8],
        config: Option<&Value>,
        limits: Option<&PluginLimits>,
    ) -> Result<(), NotStaged> {
        let world = world.parse::<World>().map_err(|message| {
            NotStaged::Rejected(Rejection { condition: "Compiled", reason: "WrongWorld", message })
        })?;
        scaleup_plugin_loader::stage(&self.0, world, module, config, limits).await
    }
}
