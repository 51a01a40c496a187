//! What a plugin may use. Plain data; a tenant's caps are limits as well.

use std::time::Duration;

use crate::World;

/// Most linear memory that any plugin can have: the size of a slot in the pool.
pub const MAX_MEMORY_BYTES: u64 = 256 << 20;
/// Most elements of one table, likewise.
pub const MAX_TABLE_ELEMENTS: u32 = 65_536;
/// Most core instances of one component, likewise. Python's have 38.
pub const MAX_CORE_INSTANCES: u32 = 64;
/// Most memories of one component, likewise.
pub const MAX_MEMORIES: u32 = 8;
/// Most tables of one component, likewise.
pub const MAX_TABLES: u32 = 64;
/// Stack of a call, in bytes; the same for all.
pub const STACK_BYTES: usize = 512 << 10;
/// Largest module that is looked at.
pub const MAX_MODULE_BYTES: usize = 64 << 20;

/// What one plugin may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Linear memory of an instance, all of its memories together.
    pub memory_bytes: u64,
    /// Elements of all tables of an instance together.
    pub table_elements: u32,
    /// Size of the module.
    pub module_bytes: usize,
    /// CPU time for compiling it.
    pub compile_cpu: Duration,
    /// Address space for compiling it.
    pub compile_memory_bytes: u64,
    /// What one call may copy out of the guest (its answer, log lines, values), in bytes as the host sees them.
    pub output_bytes: usize,
    /// Time of one call.
    pub time: Duration,
    /// Instructions of one call, for worlds whose calls have fresh instances.
    pub fuel: u64,
    /// Entries of its state.
    pub state_entries: usize,
    /// Bytes of its state, keys and values.
    pub state_bytes: usize,
}

impl Limits {
    /// The defaults for a world, as its WIT says.
    pub fn of(world: World) -> Self {
        let (time_ms, fuel) = match world {
            World::Routing => (2, u64::MAX),
            World::Scheduling => (50, u64::MAX),
            World::Admission => (1_000, 50_000_000),
            World::Scaling | World::Pricing => (2_000, 500_000_000),
        };
        Self {
            memory_bytes: 64 << 20,
            table_elements: 16_384,
            module_bytes: 32 << 20,
            compile_cpu: Duration::from_secs(60),
            compile_memory_bytes: 2 << 30,
            output_bytes: 1 << 20,
            time: Duration::from_millis(time_ms),
            fuel,
            state_entries: 1024,
            state_bytes: 256 << 10,
        }
    }

    /// What nobody can have more of.
    pub const MOST: Self = Self {
        memory_bytes: MAX_MEMORY_BYTES,
        table_elements: MAX_TABLE_ELEMENTS,
        module_bytes: MAX_MODULE_BYTES,
        compile_cpu: Duration::from_secs(600),
        compile_memory_bytes: 16 << 30,
        output_bytes: 64 << 20,
        time: Duration::from_secs(60),
        fuel: u64::MAX,
        state_entries: 1 << 20,
        state_bytes: 64 << 20,
    };

    /// These, but nothing above `caps`.
    #[must_use]
    pub fn within(&self, caps: &Self) -> Self {
        Self {
            memory_bytes: self.memory_bytes.min(caps.memory_bytes),
            table_elements: self.table_elements.min(caps.table_elements),
            module_bytes: self.module_bytes.min(caps.module_bytes),
            compile_cpu: self.compile_cpu.min(caps.compile_cpu),
            compile_memory_bytes: self.compile_memory_bytes.min(caps.compile_memory_bytes),
            output_bytes: self.output_bytes.min(caps.output_bytes),
            time: self.time.min(caps.time),
            fuel: self.fuel.min(caps.fuel),
            state_entries: self.state_entries.min(caps.state_entries),
            state_bytes: self.state_bytes.min(caps.state_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_above_the_caps() {
        let wanted = Limits { memory_bytes: u64::MAX, time: Duration::from_secs(1), ..Limits::of(World::Routing) };
        let caps = Limits { output_bytes: 10, ..Limits::of(World::Routing) };
        let got = wanted.within(&caps);
        assert_eq!((got.memory_bytes, got.time, got.output_bytes), (64 << 20, Duration::from_millis(2), 10));
        assert_eq!(wanted.within(&Limits::MOST).memory_bytes, MAX_MEMORY_BYTES);
    }
}
