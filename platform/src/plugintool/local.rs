//! A plugin host in this process, for modules in files. Compiled code is kept between calls in the user's cache.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use scaleup_plugins::{Compiler, Host, HostOptions, Limits, MAX_MODULE_BYTES, Module, Pool, World, world_of};

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

/// Compiles a file's module, as one of this world or of the one that it exports.
pub async fn module(host: &Host, path: &Path, wanted: Option<World>) -> Result<Arc<Module>> {
    let source = read(path, MAX_MODULE_BYTES)?;
    let world = match wanted {
        Some(world) => world,
        None => world_of(&source).map_err(anyhow::Error::msg).with_context(|| path.display().to_string())?,
    };
    // How long it takes depends on the machine, and an author may wait.
    let limits = Limits { compile_cpu: Limits::MOST.compile_cpu, ..Limits::of(world) };
    host.compile(world, &source, &limits).await.with_context(|| path.display().to_string())
}

/// The defaults of a world. Whatever else runs on an author's machine must not look like an endless loop.
pub fn limits(world: World) -> Limits {
    let defaults = Limits::of(world);
    Limits { time: defaults.time.max(std::time::Duration::from_secs(1)), ..defaults }
}
