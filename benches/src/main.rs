//! Every figure we claim: `scaleup-benches [FILTER…]` prints one line each, `name value unit (peer value, ratio)`.
//!
//! A peer is measured in the same run on the same machine; absolute figures say little on shared machines, ratios do. Nothing here
//! passes or fails: it measures. Traffic stays on loopback and on this machine's own addresses.

mod api;
mod figure;
mod load;
mod node;
mod peers;
mod plugins;
mod proxy;
mod watch;

use std::future::Future;
use std::pin::Pin;

use anyhow::Result;
use clap::Parser;

/// Measures ScaleUp against its peers.
#[derive(Parser, Debug)]
pub struct Args {
    /// Only benchmarks whose name contains one of these.
    filter: Vec<String>,
    /// Smaller counts: shows that everything runs, the figures mean little.
    #[arg(long)]
    quick: bool,
}

type Bench = fn(bool) -> Pin<Box<dyn Future<Output = Result<()>>>>;

/// Every benchmark: name and function.
const BENCHES: &[(&str, Bench)] = &[
    ("start", |quick| Box::pin(node::start(quick))),
    ("etcd", |quick| Box::pin(api::creates(quick))),
    ("api", |quick| Box::pin(api::verbs(quick))),
    ("watch", |quick| Box::pin(watch::fan_out(quick))),
    ("objects", |quick| Box::pin(node::hundred_thousand(quick))),
    ("pod", |quick| Box::pin(node::pod_start(quick))),
    ("proxy", |quick| Box::pin(proxy::l7::all(quick))),
    ("proxy-edge", |quick| Box::pin(proxy::edge::all(quick))),
    ("proxy-tcp", |quick| Box::pin(proxy::l4::all(quick))),
    ("proxy-sni", |quick| Box::pin(proxy::l4::names(quick))),
    ("proxy-change", |quick| Box::pin(proxy::change::all(quick))),
    ("proxy-plugin", |quick| Box::pin(proxy::plugin::all(quick))),
    ("plugins", |quick| Box::pin(plugins::all(quick))),
];

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    // Fails only if a provider is installed already, and then there is one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut failed = Vec::new();
    for (name, bench) in BENCHES {
        if !args.filter.is_empty() && !args.filter.iter().any(|f| name.contains(f.as_str())) {
            continue;
        }
        if let Err(e) = bench(args.quick).await {
            eprintln!("{name}: {e:#}");
            failed.push(*name);
        }
    }
    anyhow::ensure!(failed.is_empty(), "could not measure: {}", failed.join(", "));
    Ok(())
}
