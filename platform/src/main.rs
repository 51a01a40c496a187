//! The `scaleup` binary: parse options, build the roles they ask for, run them, drain on SIGTERM or Ctrl-C.
//!
//! Everything a role needs is decided here and handed to it as plain data and a `kube::Client`; roles never read options.

mod alone;
mod cli;
mod component;
mod handover;
mod issue;
mod lbrole;
mod lbtool;
mod opened;
mod plugins;
mod plugintool;
mod preflight;
mod process;
mod roles;
mod up;
mod user;
mod views;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Result;
use cli::{Cli, Command, LogFormat};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

// Chosen by measurement (docs/benchmarks.md); the others are there to measure again.
#[cfg(all(feature = "mimalloc", not(feature = "jemalloc")))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn logging(cli: &Cli) -> Result<()> {
    let filter = EnvFilter::try_new(&cli.log).map_err(|e| anyhow::anyhow!("--log {}: {e}", cli.log))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match cli.log_format {
        LogFormat::Text => builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

/// Cancelled by the first SIGTERM or SIGINT; the second ends the process at once.
fn shutdown_signal() -> Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let token = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let cancelled = token.clone();
    tokio::spawn(async move {
        for round in 0.. {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if round > 0 {
                tracing::warn!("stopping at once");
                std::process::exit(130);
            }
            tracing::info!("stopping; once more to stop at once");
            cancelled.cancel();
        }
    });
    Ok(token)
}

async fn run(cli: Cli) -> Result<ExitCode> {
    let shutdown = shutdown_signal()?;
    let done = match cli.command {
        Command::Up(args) => up::run(*args, shutdown).await,
        Command::Apiserver(args) => alone::apiserver(*args, shutdown).await,
        Command::Controllers(args) => alone::controllers(args, shutdown).await,
        Command::Scheduler(args) => alone::scheduler(args, shutdown).await,
        Command::Agent(args) => alone::agent(*args, shutdown).await,
        Command::Lb(args) => lbrole::run(*args, shutdown).await,
        Command::Plugin(tool) => return plugintool::run(tool).await,
        Command::Kubeconfig(args) => issue::kubeconfig(&args),
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().collect();
    // What a user's component is compiled in: a process with nothing else in it.
    if arguments.get(1).is_some_and(|first| first == scaleup_plugins::SUBCOMMAND) {
        return scaleup_plugins::compile_child(&arguments[2..]);
    }
    // The allocator spreads over more of its memory than it fills: pages of 2 MiB would make that resident, three times
    // what is used at rest. A kernel without such pages refuses, and then there is nothing to turn off.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    // Fails only if a provider is installed already, and then there is one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let outcome = cli::parse(arguments).and_then(|cli| {
        logging(&cli)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let outcome = runtime.block_on(run(cli));
        // What is left are blocking reads that nobody waits for.
        runtime.shutdown_timeout(std::time::Duration::from_secs(1));
        outcome
    });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("scaleup: {error:#}");
            ExitCode::FAILURE
        }
    }
}
