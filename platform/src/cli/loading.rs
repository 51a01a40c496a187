//! Options of processes that run plugins.

use std::path::PathBuf;

use clap::Args;

/// Options of processes that run plugins.
#[derive(Args, Debug, Clone)]
pub struct PluginArgs {
    /// Directory for compiled plugins, which nobody else may write to; `plugins` in the data directory by default.
    #[arg(long, env = "SCALEUP_PLUGIN_CACHE", value_name = "DIR")]
    pub plugin_cache: Option<PathBuf>,
}
