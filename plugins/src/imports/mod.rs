//! What a component may import: logging, counters, configuration, state, and for routing the topology. Nothing else is linked, so
//! nothing else can be imported.

mod counters;
mod log;
mod state;
mod trace;

use std::sync::Arc;

use parking_lot::Mutex;
use wasmtime::component::Linker;
use wasmtime::{ResourceLimiter, StoreContextMut};

use crate::clock::Stopwatch;
use crate::routing::Topology;
use crate::{Limits, VERSION, World};
pub(crate) use counters::Counters;
pub use log::Level;
pub(crate) use log::Log;
pub use state::State;
pub(crate) use trace::{Read, Trace};

/// What all instances of a generation share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub config: Arc<str>,
    pub state: Arc<State>,
    pub counters: Arc<Counters>,
    pub log: Mutex<Log>,
}

/// What belongs to one instance.
pub(crate) struct Data {
    pub shared: Arc<Shared>,
    /// Of the call that is under way.
    pub topology: Arc<Topology>,
    /// Of the call that is under way, if it is recorded.
    pub trace: Option<Trace>,
    pub meter: Meter,
    pub stopwatch: Stopwatch,
}

/// Counts what an instance has, and refuses what is too much.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meter {
    max_memory: u64,
    max_elements: u64,
    /// Bytes of linear memory.
    pub memory: u64,
    elements: u64,
}

impl Meter {
    pub fn new(limits: &Limits) -> Self {
        Self { max_memory: limits.memory_bytes, max_elements: u64::from(limits.table_elements), memory: 0, elements: 0 }
    }
}

/// Adds what is wanted beyond `current`, unless that is too much.
fn grow(total: &mut u64, most: u64, current: usize, desired: usize) -> bool {
    let after = total.saturating_add(desired.saturating_sub(current) as u64);
    let allowed = after <= most;
    if allowed {
        *total = after;
    }
    allowed
}

impl ResourceLimiter for Meter {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(grow(&mut self.memory, self.max_memory, current, desired))
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(grow(&mut self.elements, self.max_elements, current, desired))
    }
}

/// Name of an interface with its version, as a component imports and exports it.
pub(crate) fn interface(name: &str) -> String {
    format!("scaleup:policy/{name}@{VERSION}")
}

/// Interfaces with functions that a component of this world may import.
pub(crate) fn offered(world: World) -> &'static [&'static str] {
    match world {
        World::Routing => &["logging", "counters", "config", "state", "topology"],
        _ => &["logging", "counters", "config", "state"],
    }
}

/// Links what [`offered`] says.
pub(crate) fn link(linker: &mut Linker<Data>, world: World) -> wasmtime::Result<()> {
    type Caller<'a> = StoreContextMut<'a, Data>;
    linker.instance(&interface("logging"))?.func_wrap("log", |caller: Caller, (level, line): (Level, String)| {
        caller.data().shared.log.lock().write(level, &line, std::time::Instant::now());
        Ok(())
    })?;
    linker.instance(&interface("counters"))?.func_wrap("add", |caller: Caller, (name, by): (String, u64)| {
        caller.data().shared.counters.add(&name, by);
        Ok(())
    })?;
    linker
        .instance(&interface("config"))?
        .func_wrap("get", |caller: Caller, (): ()| Ok((caller.data().shared.config.clone(),)))?;
    let mut state = linker.instance(&interface("state"))?;
    state.func_wrap("get", |mut caller: Caller, (key,): (String,)| {
        let data = caller.data_mut();
        let value = data.shared.state.get(&key);
        if let Some(trace) = &mut data.trace {
            trace.read(&key, value.as_ref());
        }
        Ok((value,))
    })?;
    state.func_wrap("set", |mut caller: Caller, (key, value): (String, Vec<u8>)| {
        let data = caller.data_mut();
        let outcome = data.shared.state.set(&key, value);
        if let Some(trace) = data.trace.as_mut().filter(|_| outcome.is_ok()) {
            trace.wrote(&key);
        }
        Ok((outcome,))
    })?;
    state.func_wrap("delete", |mut caller: Caller, (key,): (String,)| {
        let data = caller.data_mut();
        data.shared.state.delete(&key);
        if let Some(trace) = &mut data.trace {
            trace.wrote(&key);
        }
        Ok(())
    })?;
    if world == World::Routing {
        linker
            .instance(&interface("topology"))?
            .func_wrap("get", |caller: Caller, (): ()| Ok((caller.data().topology.clone(),)))?;
    }
    Ok(())
}
