//! The compiler's process: limits itself, reads a module from its input, compiles it into the cache and writes the component to its output.
//!
//! It serves nothing, and what it parses is hostile: no more of the program runs in it than this file.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, setrlimit};
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::check::clip;
use crate::encode::component;
use crate::{Mode, engine};

/// Exit code for a module that is not one; the reason is on the standard error.
pub(crate) const INVALID: u8 = 3;
/// Longest reason.
const MAX_REASON_BYTES: usize = 1024;

/// What to do, passed as arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    pub mode: Mode,
    pub cache: PathBuf,
    pub cpu_s: u64,
    pub memory_bytes: u64,
    /// Exact size of the input.
    pub module_bytes: usize,
}

impl Job {
    pub fn arguments(&self) -> [OsString; 5] {
        let mode = match self.mode {
            Mode::Warm => "warm",
            Mode::Fresh => "fresh",
        };
        [
            mode.into(),
            self.cache.clone().into(),
            self.cpu_s.to_string().into(),
            self.memory_bytes.to_string().into(),
            self.module_bytes.to_string().into(),
        ]
    }

    fn parse(arguments: &[OsString]) -> Option<Self> {
        let [mode, cache, cpu_s, memory_bytes, module_bytes] = arguments else { return None };
        let mode = match mode.to_str()? {
            "warm" => Mode::Warm,
            "fresh" => Mode::Fresh,
            _ => return None,
        };
        Some(Self {
            mode,
            cache: cache.into(),
            cpu_s: cpu_s.to_str()?.parse().ok()?,
            memory_bytes: memory_bytes.to_str()?.parse().ok()?,
            module_bytes: module_bytes.to_str()?.parse().ok()?,
        })
    }
}

/// Does the job that the arguments after [`super::SUBCOMMAND`] say. Call it before anything else is started.
pub fn main(arguments: &[OsString]) -> ExitCode {
    let Some(job) = Job::parse(arguments) else {
        eprintln!("this is for the plugin host to call");
        return ExitCode::FAILURE;
    };
    match run(&job) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(reason)) => {
            eprintln!("{}", clip(&reason, MAX_REASON_BYTES));
            ExitCode::from(INVALID)
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The outer error is the machine's, the inner one the module's.
fn run(job: &Job) -> std::io::Result<Result<(), String>> {
    let limit = |resource, most| setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) });
    limit(Resource::As, job.memory_bytes)?;
    limit(Resource::Cpu, job.cpu_s)?;
    limit(Resource::Core, 0)?;
    let mut source = Vec::new();
    std::io::stdin().lock().take(job.module_bytes as u64).read_to_end(&mut source)?;
    let engine = engine::cache(&job.cache).and_then(|cache| Engine::new(&engine::config(job.mode, &cache)));
    let engine = engine.map_err(|error| std::io::Error::other(format!("{error:#}")))?;
    let component = match component(source) {
        Ok(component) => component,
        Err(reason) => return Ok(Err(reason)),
    };
    if let Err(error) = Component::new(&engine, &component) {
        return Ok(Err(format!("{error:#}")));
    }
    let mut output = std::io::stdout().lock();
    output.write_all(&component)?;
    output.flush()?;
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_survive_being_arguments() {
        let job = Job { mode: Mode::Fresh, cache: "/a b".into(), cpu_s: 3, memory_bytes: 1 << 31, module_bytes: 7 };
        assert_eq!(Job::parse(&job.arguments()), Some(job));
        assert_eq!(Job::parse(&["warm".into()]), None);
    }
}
