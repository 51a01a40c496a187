//! `scaleup plugin records`: prints the decisions that the API server's process recorded, as `scaleup plugin replay` reads them.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::cli::RecordsArgs;
use crate::user::{client, print};

/// Asks the API server as the user of the kubeconfig.
pub async fn run(args: &RecordsArgs) -> Result<ExitCode> {
    let name = match &args.namespace {
        Some(namespace) => format!("{namespace}/{}", args.name),
        None => args.name.clone(),
    };
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("plugin", &name);
    let request = http::Request::get(format!("/plugins/records?{}", query.finish())).body(Vec::new())?;
    let lines = client(&args.user).await?.request_text(request).await;
    let lines = lines.with_context(|| format!("the records of {name} cannot be had"))?;
    if !lines.is_empty() {
        print(&lines)?;
    }
    Ok(ExitCode::SUCCESS)
}
