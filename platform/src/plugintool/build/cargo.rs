//! Rust: with the target of rustup where it is installed, otherwise with the standard library built from source.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::super::{local, project::Project};
use super::tool::find;

const TARGET: &str = "wasm32-unknown-unknown";
/// The compiler of Debian's `rustc-web`, whose `rust-web-src` brings the standard library's source.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// What a compiler prints about itself.
fn ask(rustc: &Path, args: &[&str]) -> Option<PathBuf> {
    let output = Command::new(rustc).args(args).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(text.trim()))
}

/// Whether it has the target's standard library.
fn has_target(rustc: &Path) -> bool {
    let library = ask(rustc, &["--print", "target-libdir", "--target", TARGET]);
    let entries = library.and_then(|library| std::fs::read_dir(library).ok());
    entries.is_some_and(|mut entries| {
        entries.any(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("libstd-")))
    })
}

/// Whether it has the source of its standard library.
fn has_source(rustc: &Path) -> bool {
    ask(rustc, &["--print", "sysroot"])
        .is_some_and(|root| root.join("lib/rustlib/src/rust/library/std/Cargo.toml").is_file())
}

/// The linker that comes with a compiler of rustup, or one on the path.
fn linker(rustc: &[PathBuf], directory: &Path) -> Option<PathBuf> {
    let bundled = rustc.iter().filter_map(|rustc| ask(rustc, &["--print", "target-libdir"])).map(|library| {
        let mut root = library;
        root.pop();
        root.join("bin/rust-lld")
    });
    bundled.into_iter().find(|path| path.is_file()).or_else(|| find(directory, "wasm-ld").ok())
}

/// What cargo says of what it builds.
#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

/// The core module.
pub fn build(project: &Project) -> Result<Vec<u8>> {
    let cargo = find(&project.directory, "cargo")?;
    let candidates: Vec<PathBuf> =
        [find(&project.directory, "rustc").ok(), Some(DEBIAN_RUSTC.into())].into_iter().flatten().collect();
    let mut command = Command::new(cargo);
    command.current_dir(&project.directory).args(["build", "--release", "--target", TARGET]);
    command.arg("--message-format=json-render-diagnostics");
    if let Some(rustc) = candidates.iter().find(|rustc| has_target(rustc)) {
        command.env("RUSTC", rustc);
    } else if let Some(rustc) = candidates.iter().find(|rustc| has_source(rustc)) {
        // Unstable, and allowed by this variable.
        command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1").arg("-Zbuild-std=std,panic_abort");
        let linker =
            linker(&candidates, &project.directory).context("neither rust-lld nor wasm-ld is here (package lld)")?;
        command.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
    } else {
        bail!("no Rust compiler here has the target {TARGET} or the source of its standard library");
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo failed ({}); see above", output.status);
    }
    let messages =
        output.stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Message>(line).ok());
    let mut artifacts =
        messages.filter(|message| message.reason == "compiler-artifact").flat_map(|message| message.filenames);
    let module = artifacts.rfind(|path| path.extension().is_some_and(|extension| extension == "wasm"));
    let module = module.context("cargo built no .wasm: Cargo.toml needs `crate-type = [\"cdylib\"]` under [lib]")?;
    local::read(&module, scaleup_plugins::MAX_MODULE_BYTES)
}
