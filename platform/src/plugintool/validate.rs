//! `scaleup plugin validate`: what the platform would say of a module, without the platform.

use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use super::local;
use crate::cli::{OutputFormat, ValidateArgs};
use crate::user::print;

/// What is known of a module.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    world: &'static str,
    sha256: String,
    /// Bytes.
    size: usize,
    /// Whether it exports a schema of its configuration.
    schema: bool,
    examples: usize,
    /// What speaks against it.
    problems: Vec<String>,
}

/// Problems are in the exit code: 0 for none, 1 otherwise.
pub async fn run(args: &ValidateArgs) -> Result<ExitCode> {
    let host = local::host()?;
    let module = local::module(&host, &args.file, args.world).await?;
    let (metadata, limits) = (module.metadata(), local::limits(module.world()));
    let mut problems = Vec::new();
    if !metadata.config_schema.is_empty()
        && let Err(error) = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&metadata.config_schema)
    {
        problems.push(format!("the configuration's schema is not a JSON object: {error}"));
    }
    for example in &metadata.examples {
        if let Err(error) = host.probe(&module, example, &limits) {
            problems.push(format!("example {:?}: {error}", example.name));
        }
    }
    let report = Report {
        world: module.world().name(),
        sha256: module.digest().to_string(),
        size: module.size_bytes(),
        schema: !metadata.config_schema.is_empty(),
        examples: metadata.examples.len(),
        problems,
    };
    match args.output {
        OutputFormat::Json => print(&serde_json::to_string_pretty(&report)?)?,
        OutputFormat::Table => print(&text(&report))?,
    }
    Ok(ExitCode::from(u8::from(!report.problems.is_empty())))
}

fn text(report: &Report) -> String {
    let schema = if report.schema { "exported" } else { "none: any configuration is accepted" };
    let mut lines = vec![
        format!("world     {}", report.world),
        format!("sha256    {}", report.sha256),
        format!("size      {} bytes", report.size),
        format!("schema    {schema}"),
        format!("examples  {}", report.examples),
    ];
    lines.extend(report.problems.iter().map(|problem| format!("problem   {problem}")));
    lines.push(if report.problems.is_empty() { "can be used".into() } else { "cannot be used".into() });
    lines.join("\n")
}
