//! `scaleup lb top` and `scaleup lb explain`: ask the API server as the user of a kubeconfig, and print.

mod explained;
mod table;

use std::io::IsTerminal;

use anyhow::{Context, Result};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::cli::{ExplainArgs, LbTool, OutputFormat, TopArgs};
use crate::user::{client, print};

async fn ask(client: &kube::Client, path: &str) -> Result<Value> {
    let request = http::Request::get(path).body(Vec::new())?;
    client.request(request).await.context("the load balancer's view cannot be had")
}

/// Runs a tool.
pub async fn run(tool: LbTool, shutdown: CancellationToken) -> Result<()> {
    match tool {
        LbTool::Top(args) => top(args, shutdown).await,
        LbTool::Explain(args) => explain(args).await,
    }
}

async fn top(args: TopArgs, shutdown: CancellationToken) -> Result<()> {
    let client = client(&args.user).await?;
    let live = !args.once && args.output == OutputFormat::Table && std::io::stdout().is_terminal();
    let mut before = ask(&client, "/lb/top").await?;
    loop {
        if shutdown.run_until_cancelled(tokio::time::sleep(args.interval)).await.is_none() {
            return Ok(());
        }
        let after = ask(&client, "/lb/top").await?;
        let rows = table::rows(&before, &after);
        let mut text = match args.output {
            OutputFormat::Json => serde_json::to_string_pretty(&rows)?,
            OutputFormat::Table => table::render(&rows),
        };
        if live {
            // Home, and clear what was there.
            text.insert_str(0, "\u{1b}[H\u{1b}[2J");
        }
        print(&text)?;
        if args.once {
            return Ok(());
        }
        before = after;
    }
}

async fn explain(args: ExplainArgs) -> Result<()> {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("method", &args.method).append_pair("url", &args.url);
    for header in &args.header {
        query.append_pair("header", header);
    }
    if let Some(client) = args.client {
        query.append_pair("client", &client.to_string());
    }
    let said = ask(&client(&args.user).await?, &format!("/lb/explain?{}", query.finish())).await?;
    match args.output {
        OutputFormat::Json => print(&serde_json::to_string_pretty(&said)?),
        OutputFormat::Table => print(&explained::render(&said)),
    }
}
