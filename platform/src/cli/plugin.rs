//! Options of `scaleup plugin …`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use scaleup_plugins::World;

use super::OutputFormat;

/// `scaleup plugin …`
#[derive(Subcommand, Debug, Clone)]
pub enum PluginTool {
    /// Says whether a module could be used: its world, type, limits, schema and golden examples.
    Validate(ValidateArgs),
}

/// `scaleup plugin validate`
#[derive(Args, Debug, Clone)]
pub struct ValidateArgs {
    /// The module: a component, or a core module with bindings for scaleup:policy.
    pub file: PathBuf,
    /// World that it must be of; any by default.
    #[arg(long, value_name = "WORLD")]
    pub world: Option<World>,
    /// How it looks.
    #[arg(short, long, default_value = "table")]
    pub output: OutputFormat,
}
