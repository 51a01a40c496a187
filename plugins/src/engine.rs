//! wasmtime, configured: one engine for components that stay warm and one for those that are started afresh for each call.
//!
//! The compiler's process and the one that runs components build their configuration here, from the same lines: what the one compiles
//! the other finds in the cache.

use std::path::Path;

use wasmtime::component::Linker;
use wasmtime::{Cache, CacheConfig, Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::imports::Data;
use crate::limits::{MAX_CORE_INSTANCES, MAX_MEMORIES, MAX_MEMORY_BYTES, MAX_TABLE_ELEMENTS, MAX_TABLES, STACK_BYTES};
use crate::{Mode, World, imports};

/// Compiled modules on disk together.
const CACHE_BYTES: u64 = 1 << 30;
/// How many of them.
const CACHE_FILES: u64 = 4096;
/// Unused slots of the pool that keep their mapping.
const WARM_SLOTS: u32 = 64;
/// Bytes of a slot's memory that are cleared by writing instead of by unmapping.
const KEEP_RESIDENT_BYTES: usize = 64 << 10;
/// Metadata of one core instance.
const CORE_INSTANCE_BYTES: usize = 4 << 20;
/// Metadata of one component instance.
const COMPONENT_INSTANCE_BYTES: usize = 4 << 20;

/// How many instances there can be at once, on each of the two engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Components.
    pub components: u32,
    /// Core instances of all of them: small components have about 4, Python's 38.
    pub core_instances: u32,
    /// Linear memories of all of them, usually one each. Each takes 4 GiB of address space, but no memory.
    pub memories: u32,
    /// Tables of all of them, usually two each.
    pub tables: u32,
}

impl Default for Pool {
    fn default() -> Self {
        Self { components: 2048, core_instances: 16_384, memories: 2048, tables: 8192 }
    }
}

/// Whatever decides about compiled code and its place in the cache.
pub(crate) fn config(mode: Mode, cache: &Cache) -> Config {
    let mut config = Config::new();
    config
        .cache(Some(cache.clone()))
        .epoch_interruption(true)
        .consume_fuel(mode == Mode::Fresh)
        .max_wasm_stack(STACK_BYTES)
        // The same answer on every machine.
        .cranelift_nan_canonicalization(true)
        .wasm_relaxed_simd(false)
        .wasm_backtrace_max_frames(None)
        .native_unwind_info(false);
    if mode == Mode::Fresh {
        // Code that looks at bounds itself needs no protected pages behind a memory, which the kernel would have to put up, and to announce to all
        // cores, for every call.
        config
            .signals_based_traps(false)
            .memory_guard_size(0)
            .guard_before_linear_memory(false)
            .memory_reservation(MAX_MEMORY_BYTES);
    }
    config
}

/// Compiled code in this directory.
pub(crate) fn cache(directory: &Path) -> wasmtime::Result<Cache> {
    let mut config = CacheConfig::new();
    config.with_directory(directory);
    config.with_files_total_size_soft_limit(CACHE_BYTES).with_file_count_soft_limit(CACHE_FILES);
    Cache::new(config)
}

/// An engine and what is linked for each world.
pub(crate) struct Engines {
    warm: Engine,
    fresh: Engine,
    cache: Cache,
}

impl Engines {
    pub fn new(cache: &Path, pool: &Pool) -> wasmtime::Result<Self> {
        let cache = self::cache(cache)?;
        let engine = |mode| {
            let mut config = config(mode, &cache);
            config.allocation_strategy(InstanceAllocationStrategy::Pooling(allocation(pool)));
            Engine::new(&config)
        };
        Ok(Self { warm: engine(Mode::Warm)?, fresh: engine(Mode::Fresh)?, cache })
    }

    pub fn of(&self, mode: Mode) -> &Engine {
        match mode {
            Mode::Warm => &self.warm,
            Mode::Fresh => &self.fresh,
        }
    }

    /// How often this process found code in the cache, and how often it had to compile itself.
    pub fn cache_counts(&self) -> (usize, usize) {
        (self.cache.cache_hits(), self.cache.cache_misses())
    }

    /// Everything that a component of this world may import.
    pub fn linker(&self, world: World) -> wasmtime::Result<Linker<Data>> {
        let mut linker = Linker::new(self.of(world.mode()));
        imports::link(&mut linker, world)?;
        Ok(linker)
    }

    /// One unit of every deadline has passed.
    pub fn tick(&self) {
        self.warm.increment_epoch();
        self.fresh.increment_epoch();
    }
}

fn allocation(pool: &Pool) -> PoolingAllocationConfig {
    let mut allocation = PoolingAllocationConfig::new();
    allocation
        .total_component_instances(pool.components)
        .max_component_instance_size(COMPONENT_INSTANCE_BYTES)
        .max_core_instances_per_component(MAX_CORE_INSTANCES)
        .max_memories_per_component(MAX_MEMORIES)
        .max_tables_per_component(MAX_TABLES)
        .total_core_instances(pool.core_instances)
        .max_core_instance_size(CORE_INSTANCE_BYTES)
        .total_memories(pool.memories)
        .max_memories_per_module(MAX_MEMORIES)
        .max_memory_size(usize::try_from(MAX_MEMORY_BYTES).unwrap_or(usize::MAX))
        .total_tables(pool.tables)
        .max_tables_per_module(MAX_TABLES)
        .table_elements(MAX_TABLE_ELEMENTS as usize)
        .max_unused_warm_slots(WARM_SLOTS)
        .linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
        .table_keep_resident(KEEP_RESIDENT_BYTES)
        .pagemap_scan(Enabled::Auto);
    allocation
}
