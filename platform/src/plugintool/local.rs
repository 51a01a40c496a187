//! A plugin host in this process, for modules in files. Compiled code is kept between calls in the user's cache.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use scaleup_api::plugin::{MAX_CONFIG_BYTES, PluginLimits};
use scaleup_plugins::{Compiler, Host, HostOptions, Limits, MAX_MODULE_BYTES, Module, Pool, World, world_of};
use serde_json::Value;

/// Where compiled code is kept.
fn cache() -> Result<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("scaleup/plugins"))
        .context("neither HOME nor XDG_CACHE_HOME says where compiled code may be kept: set one of them")
}

/// A host with one thread.
pub fn host() -> Result<Host> {
    let pool = Pool { components: 32, core_instances: 512, memories: 64, tables: 256 };
    Ok(Host::start(HostOptions { cache: cache()?, compiler: Compiler::this_program()?, threads: 1, pool })?)
}

/// A file's bytes, if it is not too large to be read.
pub fn read(path: &Path, most: usize) -> Result<Vec<u8>> {
    let cannot = || format!("cannot read {}", path.display());
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(most as u64 + 1).read_to_end(&mut bytes)).with_context(cannot)?;
    if bytes.len() > most {
        bail!("{} has more than {most} bytes", path.display());
    }
    Ok(bytes)
}

/// A plugin's configuration in a file, if there is one.
pub fn config(path: Option<&Path>) -> Result<Option<Value>> {
    let Some(path) = path else { return Ok(None) };
    let read = serde_json::from_slice(&read(path, MAX_CONFIG_BYTES)?);
    read.map(Some).with_context(|| format!("{} is no JSON", path.display()))
}

/// Compiles a file's module, as one of this world or of the one that it exports, within the limits that are asked for.
pub async fn module(
    host: &Host,
    path: &Path,
    wanted: Option<World>,
    asked: Option<&PluginLimits>,
) -> Result<Arc<Module>> {
    let source = read(path, MAX_MODULE_BYTES)?;
    let world = match wanted {
        Some(world) => world,
        None => world_of(&source).map_err(anyhow::Error::msg).with_context(|| path.display().to_string())?,
    };
    // How long it takes depends on the machine, and an author may wait.
    let mut limits = scaleup_plugin_loader::limits(world, asked);
    if asked.is_none_or(|asked| asked.compile_time.is_none()) {
        limits.compile_cpu = Limits::MOST.compile_cpu;
    }
    host.compile(world, &source, &limits).await.with_context(|| path.display().to_string())
}

/// The limits that are asked for over the defaults of a world. Unless a time is asked for, whatever else runs on an author's machine must not look like
/// an endless loop.
pub fn limits(world: World, asked: Option<&PluginLimits>) -> Limits {
    let limits = scaleup_plugin_loader::limits(world, asked);
    let least = if asked.is_some_and(|asked| asked.time.is_some()) { Duration::ZERO } else { Duration::from_secs(1) };
    Limits { time: limits.time.max(least), ..limits }
}
