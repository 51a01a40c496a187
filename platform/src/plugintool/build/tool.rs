//! Programs of others: where they are, and what it means when they fail.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A program: of the project (`node_modules`, a virtual environment in `.venv`), or on the path.
pub fn find(directory: &Path, program: &str) -> Result<PathBuf> {
    let own = ["node_modules/.bin", ".venv/bin"].map(|folder| directory.join(folder).join(program));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join(program));
    let found = own.into_iter().chain(on_path).find(|candidate| candidate.is_file());
    found.with_context(|| format!("{program} is not here and not on the PATH"))
}

/// Runs it; what it says is the caller's to read.
pub fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("{program} failed ({status}); see above");
    }
    Ok(())
}
