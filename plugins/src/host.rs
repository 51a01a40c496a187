//! The host of a process: engines, compiler, cache, clock.

use std::collections::HashMap;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use wasmtime::component::Component;

use crate::clock::{Clock, Lease};
use crate::compile::Compiler;
use crate::engine::{Engines, Pool};
use crate::imports::{Counters, Log, Shared, State};
use crate::instance::Instance;
use crate::module::{Digest, Module};
use crate::{CompileError, Limits, World};

/// Compilations at a time.
const COMPILATIONS: usize = 1;
/// What a component may copy out while it describes itself.
const METADATA_BYTES: usize = 4 << 20;

/// How a host is set up.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// Where compiled code is kept; made if it is not there. Nobody else may write to it.
    pub cache: PathBuf,
    /// How the compiler is started.
    pub compiler: Compiler,
    /// Threads that serve requests: each has its own instance of every routing and scheduling component.
    pub threads: usize,
    /// Instances at once.
    pub pool: Pool,
}

/// Why there is no host.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The cache's directory.
    #[error("the plugin cache {path} cannot be used")]
    Cache {
        /// Where.
        path: PathBuf,
        #[source]
        error: std::io::Error,
    },
    /// wasmtime.
    #[error("the WebAssembly engine does not start: {0}")]
    Engine(String),
    /// The clock.
    #[error("the plugin clock does not start")]
    Clock(#[source] std::io::Error),
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Host(Arc<Inner>);

struct Inner {
    engines: Arc<Engines>,
    clock: Arc<Clock>,
    cache: PathBuf,
    compiler: Compiler,
    threads: usize,
    compiling: Semaphore,
    /// Modules in use: plugins with equal modules share their code.
    modules: Mutex<HashMap<(Digest, World), Weak<Module>>>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("cache", &self.0.cache).field("threads", &self.0.threads).finish_non_exhaustive()
    }
}

/// Makes the directory, for us alone.
fn prepare(cache: &Path) -> std::io::Result<PathBuf> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(cache)?;
    let found = std::fs::metadata(cache)?;
    // Whoever may write here may run code in this process.
    if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o022 != 0 {
        return Err(std::io::Error::other("others may write to it: chown it to this user and chmod 700"));
    }
    cache.canonicalize()
}

impl Host {
    /// Starts the clock; it compiles and runs nothing yet.
    ///
    /// # Errors
    /// See [`HostError`].
    pub fn start(options: HostOptions) -> Result<Self, HostError> {
        let cache = prepare(&options.cache).map_err(|error| HostError::Cache { path: options.cache.clone(), error })?;
        let engines = Engines::new(&cache, &options.pool).map_err(|error| HostError::Engine(format!("{error:#}")))?;
        let engines = Arc::new(engines);
        let clock = Clock::start(&engines).map_err(HostError::Clock)?;
        Ok(Self(Arc::new(Inner {
            engines,
            clock,
            cache,
            compiler: options.compiler,
            threads: options.threads.max(1),
            compiling: Semaphore::new(COMPILATIONS),
            modules: Mutex::default(),
        })))
    }

    pub(crate) fn threads(&self) -> usize {
        self.0.threads
    }

    pub(crate) fn clock(&self) -> Lease {
        self.0.clock.lease()
    }

    /// How often compiled code was found in the cache, and how often this process had to compile itself: when the compiler could not write
    /// to the cache, because the disk is full.
    pub fn cache_counts(&self) -> (usize, usize) {
        self.0.engines.cache_counts()
    }

    /// Makes a module out of bytes: a component, or a core module with a `component-type` section. Takes from milliseconds to the limit's
    /// time, but none of the calling thread's.
    ///
    /// # Errors
    /// See [`CompileError`]: all but `Compiler` are the module's fault.
    pub async fn compile(&self, world: World, source: &[u8], limits: &Limits) -> Result<Arc<Module>, CompileError> {
        let limits = limits.within(&Limits::MOST);
        if source.len() > limits.module_bytes {
            return Err(CompileError::TooLarge { bytes: source.len(), most: limits.module_bytes });
        }
        let key = (Digest::of(source), world);
        let closed = |_| CompileError::Compiler(std::io::Error::other("the host has stopped"));
        let _permit = self.0.compiling.acquire().await.map_err(closed)?;
        if let Some(module) = self.known(key) {
            return Ok(module);
        }
        let component = self.0.compiler.run(world, &self.0.cache, source, &limits).await?;
        let (host, size) = (self.clone(), source.len());
        // Reading the code takes milliseconds, and the component runs for the first time.
        let loading = tokio::task::spawn_blocking(move || host.load(key, size, &component, &limits));
        loading.await.map_err(|error| CompileError::Compiler(std::io::Error::other(error)))?
    }

    fn known(&self, key: (Digest, World)) -> Option<Arc<Module>> {
        self.0.modules.lock().get(&key).and_then(Weak::upgrade)
    }

    fn load(
        &self,
        key: (Digest, World),
        size: usize,
        component: &[u8],
        limits: &Limits,
    ) -> Result<Arc<Module>, CompileError> {
        let (digest, world) = key;
        let engine = self.0.engines.of(world.mode());
        // The child has put the code into the cache: this does not compile.
        let component =
            Component::new(engine, component).map_err(|error| CompileError::Invalid(format!("{error:#}")))?;
        let linker = self.0.engines.linker(world).map_err(|error| CompileError::Invalid(format!("{error:#}")))?;
        let mut module = Module::link(world, &component, &linker, digest, size, limits)?;
        let _clock = self.clock();
        let limits = Limits { output_bytes: METADATA_BYTES, ..limits.clone() };
        let described = Instance::start(&module, &alone("{}", State::new(&limits)), &limits)
            .and_then(|mut instance| instance.metadata(&limits));
        module.metadata = described.map_err(|failure| match failure.message.contains("type mismatch") {
            true => CompileError::WrongWorld { world, why: failure.message.to_string() },
            false => CompileError::Start(failure),
        })?;
        let module = Arc::new(module);
        let mut modules = self.0.modules.lock();
        modules.retain(|_, module| module.strong_count() > 0);
        modules.insert(key, Arc::downgrade(&module));
        Ok(module)
    }
}

/// What an instance shares that is started for itself alone.
pub(crate) fn alone(config: &str, state: State) -> Arc<Shared> {
    Arc::new(Shared {
        config: config.into(),
        state: Arc::new(state),
        counters: Arc::new(Counters::default()),
        log: Mutex::new(Log::new("".into())),
    })
}
