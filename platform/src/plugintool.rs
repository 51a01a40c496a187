//! `scaleup plugin …`: everything that the author and the operator of a plugin do from the command line. One file per command.
//!
//! Commands that run a component do it with the platform's own host, in this process.

mod bench;
mod build;
mod deploy;
mod examples;
mod local;
mod manifest;
mod project;
mod records;
mod replay;
mod templates;
mod test;
mod validate;

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::PluginTool;

/// Runs a command. An error is one of the caller's; what was found out is in the exit code.
pub async fn run(tool: PluginTool) -> Result<ExitCode> {
    match tool {
        PluginTool::New(args) => project::create(&args),
        PluginTool::Build(args) => build::run(&args),
        PluginTool::Validate(args) => validate::run(&args).await,
        PluginTool::Test(args) => test::run(&args).await,
        PluginTool::Bench(args) => bench::run(&args).await,
        PluginTool::Records(args) => records::run(&args).await,
        PluginTool::Replay(args) => Ok(replay::run(&args).await),
        PluginTool::Push(args) => deploy::push(&args).await,
        PluginTool::Apply(args) => deploy::apply(&args).await,
        PluginTool::Rollback(args) => deploy::rollback(&args).await,
        PluginTool::Status(args) => deploy::status(&args).await,
    }
}
