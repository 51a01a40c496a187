//! `scaleup plugin validate`: what the platform would say of a module, without the platform.

use std::process::ExitCode;

use anyhow::{Context, Result};
use scaleup_api::plugin::{PluginLimits, WasmPluginSpec, parse_limits};
use scaleup_plugins::{World, no_config};
use serde::Serialize;
use serde_json::Value;

use super::{local, manifest};
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
    /// Whether a configuration was checked against it.
    config: bool,
    examples: usize,
    /// What speaks against it.
    problems: Vec<String>,
}

/// What the module must do for.
struct Wanted {
    world: Option<World>,
    /// `None`: any that its schema allows.
    config: Option<Value>,
    limits: Option<PluginLimits>,
}

fn wanted(args: &ValidateArgs) -> Result<Wanted> {
    if let Some(path) = &args.manifest {
        let shown = || path.display().to_string();
        let manifest = manifest::read(path)?;
        let spec: WasmPluginSpec =
            serde_json::from_value(manifest.spec).context("its spec cannot be read").with_context(shown)?;
        let world = spec.world.parse().map_err(anyhow::Error::msg).with_context(shown)?;
        if let Some(limits) = &spec.limits
            && let Err(mistakes) = parse_limits(limits)
        {
            let all: Vec<_> = mistakes.iter().map(|(field, why)| format!("spec.limits.{field}: {why}")).collect();
            anyhow::bail!("{}: {}", shown(), all.join("; "));
        }
        let config = Some(spec.config.unwrap_or_else(no_config));
        return Ok(Wanted { world: Some(world), config, limits: spec.limits });
    }
    Ok(Wanted { world: args.world, config: local::config(args.with_config.as_deref())?, limits: None })
}

/// Problems are in the exit code: 0 for none, 1 otherwise.
pub async fn run(args: &ValidateArgs) -> Result<ExitCode> {
    let wanted = wanted(args)?;
    let host = local::host()?;
    let module = local::module(&host, &args.file, wanted.world, wanted.limits.as_ref()).await?;
    let (metadata, limits) = (module.metadata(), local::limits(module.world(), wanted.limits.as_ref()));
    let mut problems = Vec::new();
    // What cannot be read is found with any configuration, too.
    if wanted.config.is_none()
        && !metadata.config_schema.is_empty()
        && let Err(error) = serde_json::from_str::<serde_json::Map<String, Value>>(&metadata.config_schema)
    {
        problems.push(format!("the configuration's schema is not a JSON object: {error}"));
    }
    let rejections = host.rejections(&module, wanted.config.as_ref(), &limits);
    problems.extend(rejections.map(|rejection| format!("{}: {}", rejection.reason, rejection.message)));
    let report = Report {
        world: module.world().name(),
        sha256: module.digest().to_string(),
        size: module.size_bytes(),
        schema: !metadata.config_schema.is_empty(),
        config: wanted.config.is_some(),
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
    let config = if report.config { "checked" } else { "none given: see --with-config and --manifest" };
    let mut lines = vec![
        format!("world     {}", report.world),
        format!("sha256    {}", report.sha256),
        format!("size      {} bytes", report.size),
        format!("schema    {schema}"),
        format!("config    {config}"),
        format!("examples  {}", report.examples),
    ];
    lines.extend(report.problems.iter().map(|problem| format!("problem   {problem}")));
    lines.push(if report.problems.is_empty() { "can be used".into() } else { "cannot be used".into() });
    lines.join("\n")
}
