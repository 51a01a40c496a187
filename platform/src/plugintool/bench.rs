//! `scaleup plugin bench`: how fast a component decides, on this machine, one after the other on one thread.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use scaleup_plugins::metadata::Example;
use scaleup_plugins::{Case, Failure, Generation, Host, Module, Policy, Setup};
use serde::Serialize;

use super::local;
use crate::cli::{BenchArgs, OutputFormat};
use crate::user::print;

/// Instances started to see how long that takes.
const STARTS: u32 = 200;
/// Largest input that is read.
const MAX_INPUT_BYTES: usize = 64 << 20;
/// Decisions that are not measured: caches fill, compiled code is mapped.
const WARM_UP: usize = 20;

/// Figures of one input. Times are in nanoseconds.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures {
    name: String,
    per_second: f64,
    p50_ns: u64,
    p99_ns: u64,
    max_ns: u64,
    /// Instructions of one decision; 0 where they are not counted.
    fuel: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    world: &'static str,
    /// A generation with one instance, from nothing to the point where it can be asked.
    start_ns: u64,
    inputs: Vec<Figures>,
}

fn decide(policy: &Policy, case: &Case) -> Result<(), Failure> {
    let now = Instant::now();
    match case {
        Case::Routing(input, topology) => policy.route(input, topology, 0, now).map(drop),
        Case::Admission(input) => policy.admit(input, now).map(drop),
        Case::Scheduling(input) => policy.place(input, 0, now).map(drop),
        Case::Scaling(input) => policy.scale(input, now).map(drop),
        Case::Pricing(input) => policy.price(input, now).map(drop),
    }
}

fn generation(host: &Host, module: &Arc<Module>, config: &str) -> Result<Arc<Generation>, Failure> {
    let setup = Setup {
        plugin: "bench".into(),
        number: 1,
        config: config.into(),
        limits: local::limits(module.world(), None),
        state: None,
    };
    Generation::new(host, module.clone(), setup)
}

fn measure(host: &Host, module: &Arc<Module>, example: &Example, duration: Duration) -> Result<Figures> {
    let context = || format!("input {:?}", example.name);
    let case = Case::read(module.world(), &example.input).map_err(anyhow::Error::msg).with_context(context)?;
    let generation = generation(host, module, &example.config).with_context(context)?;
    let policy = Policy::new("bench", module.world());
    policy.publish(generation.clone())?;
    (0..WARM_UP).try_for_each(|_| decide(&policy, &case)).with_context(context)?;
    let mut times: Vec<u64> = Vec::new();
    let began = Instant::now();
    while began.elapsed() < duration {
        let from = Instant::now();
        decide(&policy, &case).with_context(context)?;
        times.push(u64::try_from(from.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    let took = began.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |share: f64| times.get((times.len() as f64 * share) as usize).or(times.last()).copied().unwrap_or(0);
    let statistics = generation.statistics();
    Ok(Figures {
        name: example.name.clone(),
        per_second: times.len() as f64 / took,
        p50_ns: at(0.5),
        p99_ns: at(0.99),
        max_ns: at(1.0),
        fuel: statistics.fuel / statistics.decisions.max(1),
    })
}

fn text_of(path: &std::path::Path) -> Result<String> {
    String::from_utf8(local::read(path, MAX_INPUT_BYTES)?).with_context(|| format!("{} is no text", path.display()))
}

pub async fn run(args: &BenchArgs) -> Result<ExitCode> {
    let host = local::host()?;
    let module = local::module(&host, &args.file, None, None).await?;
    let examples = match &args.input {
        None => module.metadata().examples.clone(),
        Some(path) => vec![Example {
            name: path.display().to_string(),
            config: args.with_config.as_deref().map(text_of).transpose()?.unwrap_or_else(|| "{}".to_owned()),
            input: text_of(path)?,
            expected: String::new(),
        }],
    };
    let Some(first) = examples.first() else {
        bail!("{} has no golden examples to measure: give an input with --input", args.file.display());
    };
    let began = Instant::now();
    for _ in 0..STARTS {
        generation(&host, &module, &first.config)?;
    }
    let start_ns = u64::try_from((began.elapsed() / STARTS).as_nanos()).unwrap_or(u64::MAX);
    let inputs: Result<Vec<Figures>> =
        examples.iter().map(|example| measure(&host, &module, example, args.duration)).collect();
    let report = Report { world: module.world().name(), start_ns, inputs: inputs? };
    match args.output {
        OutputFormat::Json => print(&serde_json::to_string_pretty(&report)?)?,
        OutputFormat::Table => print(&text(&report))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn text(report: &Report) -> String {
    let micros = |ns: u64| ns as f64 / 1000.0;
    let mut lines = vec![
        format!("world {}, start {:.1} µs", report.world, micros(report.start_ns)),
        format!("{:>12} {:>10} {:>10} {:>10} {:>12}  input", "decisions/s", "p50 µs", "p99 µs", "max µs", "fuel"),
    ];
    lines.extend(report.inputs.iter().map(|one| {
        let (p50, p99, max) = (micros(one.p50_ns), micros(one.p99_ns), micros(one.max_ns));
        format!("{:>12.0} {p50:>10.2} {p99:>10.2} {max:>10.2} {:>12}  {}", one.per_second, one.fuel, one.name)
    }));
    lines.join("\n")
}
