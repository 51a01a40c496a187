//! `scaleup plugin replay`: recorded decisions, taken again by a component, and exactly what would have been another one.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use scaleup_plugins::{Difference, Host, Limits, Module, Outcome, Record, differences};
use serde::Serialize;
use serde_json::Value;

use super::local;
use crate::cli::{OutputFormat, ReplayArgs};
use crate::user::print;

/// Longest line.
const MAX_LINE_BYTES: u64 = 32 << 20;
/// Nothing is another decision, something is, or it could not be found out: as `diff` says it.
const SAME: u8 = 0;
const CHANGED: u8 = 1;
const TROUBLE: u8 = 2;

/// A decision that would have been another one.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Changed {
    /// Number of the line, from 1.
    line: u64,
    plugin: String,
    generation: u64,
    time_ms: u64,
    /// The recorded answer, or `{"failure": class}`.
    recorded: Value,
    replayed: Value,
    /// Where two answers differ; `expected` is the recorded one.
    differences: Vec<Difference>,
    /// The module and its configuration are those that decided: what differs is what they saw (it was redacted), or kept in their own memory.
    same_plugin: bool,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    records: u64,
    unchanged: u64,
    changed: Vec<Changed>,
    /// Lines that could not be taken again, and why.
    unusable: Vec<(u64, String)>,
}

/// What replay needs.
struct Player {
    host: Host,
    module: std::sync::Arc<Module>,
    config: Option<Value>,
    limits: Limits,
}

impl Player {
    fn play(&self, line: u64, text: &[u8], report: &mut Report) {
        report.records += 1;
        let outcome = serde_json::from_slice::<Record>(text).map_err(|error| format!("no record: {error}"));
        let config = self.config.as_ref().map(Value::to_string);
        let again = outcome.and_then(|record| {
            let again = self.host.replay(&self.module, &record, config.as_deref(), &self.limits);
            again.map(|again| (record, again)).map_err(|error| error.to_string())
        });
        let (record, again) = match again {
            Ok(both) => both,
            Err(why) => return report.unusable.push((line, why)),
        };
        let (recorded, replayed) = (record.outcome.compared(), again.compared());
        if recorded == replayed {
            report.unchanged += 1;
            return;
        }
        let same_config = self.config.as_ref().is_none_or(|config| *config == record.config);
        report.changed.push(Changed {
            line,
            differences: match (&record.outcome, &again) {
                (Outcome::Answer(_), Outcome::Answer(_)) => differences(&recorded, &replayed),
                _ => Vec::new(),
            },
            same_plugin: same_config && record.digest == self.module.digest().to_string(),
            plugin: record.plugin,
            generation: record.generation,
            time_ms: record.time_ms,
            recorded,
            replayed,
        });
    }
}

/// The next line without its end; `None` at the end.
fn next_line(from: &mut impl BufRead) -> Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    from.take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut line)?;
    if line.len() as u64 > MAX_LINE_BYTES {
        bail!("a line has more than {MAX_LINE_BYTES} bytes");
    }
    Ok((!line.is_empty()).then_some(line))
}

fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    if path == Path::new("-") {
        return Ok(Box::new(std::io::stdin().lock()));
    }
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Box::new(BufReader::new(file)))
}

async fn replay(args: &ReplayArgs) -> Result<u8> {
    let config = local::config(args.with_config.as_deref())?;
    let mut records = open(&args.records)?;
    let host = local::host()?;
    let module = local::module(&host, &args.file, None, None).await?;
    let limits = local::limits(module.world(), None);
    let player = Player { host, module, config, limits };
    let mut report = Report::default();
    let mut number = 0;
    while let Some(line) = next_line(&mut records).with_context(|| args.records.display().to_string())? {
        number += 1;
        if !line.trim_ascii().is_empty() {
            player.play(number, &line, &mut report);
        }
    }
    match args.output {
        OutputFormat::Json => print(&serde_json::to_string_pretty(&report)?)?,
        OutputFormat::Table => print(&text(&report))?,
    }
    Ok(match (report.unusable.is_empty() && report.records > 0, report.changed.is_empty()) {
        (false, _) => TROUBLE,
        (true, false) => CHANGED,
        (true, true) => SAME,
    })
}

/// The exit code says what was found out.
pub async fn run(args: &ReplayArgs) -> ExitCode {
    ExitCode::from(replay(args).await.unwrap_or_else(|error| {
        eprintln!("scaleup: {error:#}");
        TROUBLE
    }))
}

fn text(report: &Report) -> String {
    let mut lines = Vec::new();
    for one in &report.changed {
        lines.push(format!("line {}: {} generation {}, at {} ms", one.line, one.plugin, one.generation, one.time_ms));
        lines.extend(one.differences.iter().map(|difference| {
            let path = if difference.path.is_empty() { "the decision" } else { &difference.path };
            format!("    {path}: was {}, would be {}", difference.expected, difference.found)
        }));
        if one.differences.is_empty() {
            lines.push(format!("    was {}, would be {}", one.recorded, one.replayed));
        }
    }
    lines.extend(report.unusable.iter().map(|(line, why)| format!("line {line}: cannot be taken again: {why}")));
    if report.changed.iter().any(|one| one.same_plugin) {
        lines.push(
            "note: the same module with the same configuration decides otherwise: what it decides on was redacted (name headers in \
             spec.recording.plainHeaders), or it keeps something in its own memory"
                .into(),
        );
    }
    let (changed, unusable) = (report.changed.len(), report.unusable.len());
    lines.push(match report.records {
        0 => "there are no records".into(),
        records => format!("{records} records: {} unchanged, {changed} changed, {unusable} unusable", report.unchanged),
    });
    lines.join("\n")
}
