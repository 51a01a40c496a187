//! Compilation in a process of its own, so that a module made to exhaust a compiler exhausts nothing else.
//!
//! The child turns a core module into a component, compiles it under limits of memory and CPU time and leaves the code in wasmtime's cache
//! on disk, whose key covers the module, the compiler and its settings. It hands back the component, and this process loads the
//! code from the cache: it never parses or compiles what somebody brought. That the cache is read and written by nobody else is a matter of
//! its directory's permissions.

pub mod child;

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::{CompileError, Limits, World};
use child::Job;

/// Name of the subcommand that the program answers with [`child::main`].
pub const SUBCOMMAND: &str = "plugin-compile";
/// What a component may be larger than the core module it is made from.
const WRAPPING_BYTES: usize = 4 << 20;
/// Most of the child's words that are read.
const MAX_MESSAGE_BYTES: usize = 16 << 10;
/// Time beyond the CPU time, for a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(30);
/// Wall-clock time in multiples of the CPU time.
const WALL_PER_CPU: u32 = 4;

/// How the compiler is started: this program again, unless somebody says otherwise.
#[derive(Clone, Debug)]
pub struct Compiler {
    /// The program.
    pub program: PathBuf,
    /// Arguments before those of the job.
    pub arguments: Vec<OsString>,
}

impl Compiler {
    /// This program with [`SUBCOMMAND`].
    ///
    /// # Errors
    /// If the program cannot be found.
    pub fn this_program() -> std::io::Result<Self> {
        Ok(Self { program: std::env::current_exe()?, arguments: vec![SUBCOMMAND.into()] })
    }

    /// Compiles into the cache. Returns the component.
    pub(crate) async fn run(
        &self,
        world: World,
        cache: &Path,
        source: &[u8],
        limits: &Limits,
    ) -> Result<Vec<u8>, CompileError> {
        let job = Job {
            mode: world.mode(),
            cache: cache.to_owned(),
            cpu_s: limits.compile_cpu.as_secs().max(1),
            memory_bytes: limits.compile_memory_bytes,
            module_bytes: source.len(),
        };
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .args(job.arguments())
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(CompileError::Compiler)?;
        let (input, output, words) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(mut input), Some(output), Some(words)) = (input, output, words) else {
            return Err(CompileError::Compiler(std::io::Error::other("no pipes")));
        };
        let most = limits.module_bytes.saturating_add(WRAPPING_BYTES);
        let work = async {
            let feed = async move {
                // A child that ends early says why.
                let _ = input.write_all(source).await;
                drop(input);
            };
            let (mut component, mut message) = (Vec::new(), Vec::new());
            let (mut output, mut words) = (output.take(most as u64 + 1), words.take(MAX_MESSAGE_BYTES as u64));
            let read = output.read_to_end(&mut component);
            let ((), read, heard) = tokio::join!(feed, read, words.read_to_end(&mut message));
            read.and(heard).map_err(CompileError::Compiler)?;
            let status = child.wait().await.map_err(CompileError::Compiler)?;
            Ok((component, message, status))
        };
        let wall = limits.compile_cpu.saturating_mul(WALL_PER_CPU).saturating_add(PATIENCE);
        let too_expensive =
            || CompileError::TooExpensive { cpu: limits.compile_cpu, memory_bytes: limits.compile_memory_bytes };
        let (component, message, status) = tokio::time::timeout(wall, work).await.map_err(|_| too_expensive())??;
        if component.len() > most {
            return Err(CompileError::TooLarge { bytes: component.len(), most });
        }
        match verdict(status) {
            Verdict::Done => Ok(component),
            Verdict::Invalid => Err(CompileError::Invalid(String::from_utf8_lossy(&message).trim().to_owned())),
            Verdict::Exhausted => Err(too_expensive()),
            Verdict::Broken => {
                let said = String::from_utf8_lossy(&message).trim().to_owned();
                Err(CompileError::Compiler(std::io::Error::other(format!("{status}: {said}"))))
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Done,
    Invalid,
    Exhausted,
    Broken,
}

/// What the end of a child means. Memory that cannot be had aborts it; CPU time that is used up ends in one of two signals.
fn verdict(status: ExitStatus) -> Verdict {
    const ABORT: i32 = 6;
    const KILL: i32 = 9;
    const SEGMENTATION_FAULT: i32 = 11;
    const CPU_TIME: i32 = 24;
    match (status.code(), status.signal()) {
        (Some(0), _) => Verdict::Done,
        (Some(code), _) if code == i32::from(child::INVALID) => Verdict::Invalid,
        // The stack is part of the memory.
        (_, Some(ABORT | KILL | SEGMENTATION_FAULT | CPU_TIME)) => Verdict::Exhausted,
        _ => Verdict::Broken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_a_child_are_told_apart() {
        let check = |raw, expected| assert_eq!(verdict(ExitStatus::from_raw(raw)), expected, "{raw}");
        check(0, Verdict::Done);
        check(i32::from(child::INVALID) << 8, Verdict::Invalid);
        check(1 << 8, Verdict::Broken);
        check(6, Verdict::Exhausted);
        check(9, Verdict::Exhausted);
        check(24, Verdict::Exhausted);
        check(15, Verdict::Broken);
    }
}
