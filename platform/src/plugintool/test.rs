//! `scaleup plugin test`: golden examples, and where an answer is another one.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use scaleup_plugins::metadata::Example;
use scaleup_plugins::{Difference, Host, Limits, Module, differences};
use serde::Serialize;
use serde_json::Value;

use super::{examples, local, project::Project};
use crate::cli::{OutputFormat, TestArgs};
use crate::user::print;

/// One example.
#[derive(Serialize)]
struct Outcome {
    /// `component`, or the file.
    source: String,
    name: String,
    ok: bool,
    /// Why there is no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    differences: Vec<Difference>,
}

fn try_one(host: &Host, module: &Module, example: &Example, limits: &Limits) -> Result<Vec<Difference>, String> {
    let expected: Value =
        serde_json::from_str(&example.expected).map_err(|error| format!("what is expected cannot be read: {error}"))?;
    let answer = host.answer(module, &example.config, &example.input, limits).map_err(|error| error.to_string())?;
    Ok(differences(&expected, &answer))
}

/// Exit code 1 if an example does not hold.
pub async fn run(args: &TestArgs) -> Result<ExitCode> {
    let (file, own): (PathBuf, Option<PathBuf>) = if args.path.is_dir() {
        let project = Project::open(&args.path)?;
        (project.built()?, Some(args.path.join("examples")).filter(|path| path.is_dir()))
    } else {
        (args.path.clone(), None)
    };
    let host = local::host()?;
    let module = local::module(&host, &file, None, None).await?;
    let limits = local::limits(module.world(), None);
    let mut sources = vec![("component".to_owned(), module.metadata().examples.clone())];
    if let Some(directory) = args.examples.as_ref().or(own.as_ref()) {
        sources.extend(examples::of_directory(directory)?);
    }
    let mut outcomes = Vec::new();
    for (source, examples) in &sources {
        for example in examples {
            let tried = try_one(&host, &module, example, &limits);
            let (source, name) = (source.clone(), example.name.clone());
            outcomes.push(match tried {
                Ok(differences) => Outcome { source, name, ok: differences.is_empty(), error: None, differences },
                Err(error) => Outcome { source, name, ok: false, error: Some(error), differences: Vec::new() },
            });
        }
    }
    if outcomes.is_empty() {
        bail!("{} has no golden examples, and there are none in files (--examples DIR)", file.display());
    }
    match args.output {
        OutputFormat::Json => print(&serde_json::to_string_pretty(&outcomes)?)?,
        OutputFormat::Table => print(&text(&outcomes))?,
    }
    Ok(ExitCode::from(u8::from(outcomes.iter().any(|outcome| !outcome.ok))))
}

fn text(outcomes: &[Outcome]) -> String {
    let mut lines = Vec::new();
    for outcome in outcomes {
        lines.push(format!("{}  {}: {}", if outcome.ok { "ok  " } else { "FAIL" }, outcome.source, outcome.name));
        lines.extend(outcome.error.iter().map(|error| format!("        {error}")));
        lines.extend(outcome.differences.iter().map(|one| {
            let path = if one.path.is_empty() { "the answer" } else { &one.path };
            format!("        {path}: expected {}, is {}", one.expected, one.found)
        }));
    }
    let failed = outcomes.iter().filter(|outcome| !outcome.ok).count();
    lines.push(format!("{} of {} examples hold", outcomes.len() - failed, outcomes.len()));
    lines.join("\n")
}
