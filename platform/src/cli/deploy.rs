//! Options of the commands that bring plugins to a cluster.

use std::path::PathBuf;

use clap::Args;

use super::{OutputFormat, UserArgs};

/// Which plugin.
#[derive(Args, Debug, Clone)]
pub struct TargetArgs {
    #[command(flatten)]
    pub user: UserArgs,
    /// Namespace of the WasmPlugin; that of the kubeconfig by default.
    #[arg(short, long, value_name = "NAMESPACE", conflicts_with = "cluster")]
    pub namespace: Option<String>,
    /// A ClusterWasmPlugin.
    #[arg(long)]
    pub cluster: bool,
}

/// `scaleup plugin push`
#[derive(Args, Debug, Clone)]
pub struct PushArgs {
    /// The module.
    pub file: PathBuf,
    #[command(flatten)]
    pub target: TargetArgs,
}

/// `scaleup plugin apply`
#[derive(Args, Debug, Clone)]
pub struct ApplyArgs {
    /// The module.
    pub file: PathBuf,
    /// The plugin in YAML: a WasmPlugin or ClusterWasmPlugin, whose source and sha256 are filled in.
    #[arg(short = 'f', long, value_name = "FILE")]
    pub manifest: PathBuf,
    #[command(flatten)]
    pub target: TargetArgs,
}

/// `scaleup plugin rollback` and `scaleup plugin status`
#[derive(Args, Debug, Clone)]
pub struct NameArgs {
    /// Name of the plugin.
    pub name: String,
    #[command(flatten)]
    pub target: TargetArgs,
    /// How it looks.
    #[arg(short, long, default_value = "table")]
    pub output: OutputFormat,
}
