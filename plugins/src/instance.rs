//! One running component: started under limits, asked, and thrown away when something went wrong.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::{PoolConcurrencyLimitError, Store, Trap};

use crate::call::{Calls, Question};
use crate::clock::{Stopwatch, ticks};
use crate::imports::{Data, Meter, Read, Shared, Trace};
use crate::metadata::Metadata;
use crate::module::Module;
use crate::{Class, Failure, Limits, Mode};

/// How long starting may take on a thread that serves.
const START_TIME: Duration = Duration::from_millis(20);

pub(crate) struct Instance {
    store: Store<Data>,
    calls: Calls,
    counts_fuel: bool,
}

impl Instance {
    /// Starts it. What it executes while starting counts as part of the first call where fuel is counted.
    pub fn start(module: &Module, shared: &Arc<Shared>, limits: &Limits) -> Result<Self, Failure> {
        let data = Data {
            shared: shared.clone(),
            topology: module.no_topology(),
            trace: None,
            meter: Meter::new(limits),
            stopwatch: Stopwatch::default(),
        };
        let mut store = Store::new(module.engine(), data);
        store.limiter(|data| &mut data.meter);
        store.set_hostcall_fuel(limits.output_bytes);
        store.epoch_deadline_callback(|mut store| store.data_mut().stopwatch.look());
        allow(&mut store, limits.time.max(START_TIME));
        let counts_fuel = module.world().mode() == Mode::Fresh;
        if counts_fuel {
            store.set_fuel(limits.fuel).map_err(|error| failure(&error, "starting"))?;
        }
        let calls = module.pre().instantiate(&mut store).map_err(|error| failure(&error, "starting"))?;
        Ok(Self { store, calls, counts_fuel })
    }

    /// Asks it. After a failure it must not be used again.
    pub fn ask<Q: Question>(&mut self, question: &Q, limits: &Limits) -> Result<Q::Answer, Failure> {
        if let Some(topology) = question.topology()
            && !Arc::ptr_eq(topology, &self.store.data().topology)
        {
            self.store.data_mut().topology = topology.clone();
        }
        allow(&mut self.store, limits.time);
        let answer = question
            .ask(&self.calls, &mut self.store)
            .ok_or_else(|| Failure::new(Class::Compile, format!("not a component of the world {}", Q::WORLD)))?
            .map_err(|error| failure(&error, "deciding"))?;
        question.check(&answer).map_err(|wrong| Failure::new(Class::InvalidOutput, wrong))?;
        Ok(answer)
    }

    /// From now on it is noted what the call reads of the state.
    pub fn trace(&mut self) {
        self.store.data_mut().trace = Some(Trace::default());
    }

    /// What was noted.
    pub fn traced(&mut self) -> Option<Vec<Read>> {
        self.store.data_mut().trace.take().and_then(Trace::finish)
    }

    /// What it says of itself.
    pub fn metadata(&mut self, limits: &Limits) -> Result<Metadata, Failure> {
        allow(&mut self.store, limits.time.max(START_TIME));
        let metadata = self.calls.metadata(&mut self.store).map_err(|error| failure(&error, "describing itself"))?;
        metadata.check().map_err(|wrong| Failure::new(Class::InvalidOutput, wrong))?;
        Ok(metadata)
    }

    /// Bytes of linear memory.
    pub fn memory(&self) -> u64 {
        self.store.data().meter.memory
    }

    /// Instructions executed, where they are counted.
    pub fn fuel_used(&self, limits: &Limits) -> u64 {
        if !self.counts_fuel {
            return 0;
        }
        limits.fuel.saturating_sub(self.store.get_fuel().unwrap_or(0))
    }
}

/// What follows may take this much of the thread's time.
fn allow(store: &mut Store<Data>, time: Duration) {
    store.data_mut().stopwatch = Stopwatch::new(time);
    store.set_epoch_deadline(ticks(time));
}

/// What an error of wasmtime means.
fn failure(error: &wasmtime::Error, doing: &str) -> Failure {
    let class = match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt | Trap::OutOfFuel) => Class::Timeout,
        Some(_) => Class::Trap,
        None if error.is::<PoolConcurrencyLimitError>() => Class::Timeout,
        // Everything else in a call is a value that could not be read; in a start it is a limit.
        None if doing == "starting" => Class::Trap,
        None => Class::InvalidOutput,
    };
    let why = match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => "its time is up".to_owned(),
        Some(Trap::OutOfFuel) => "its fuel is used up".to_owned(),
        Some(trap) => trap.to_string(),
        None if error.is::<PoolConcurrencyLimitError>() => "no room for another instance".to_owned(),
        None => format!("{error:#}"),
    };
    Failure::new(class, format!("{doing}: {why}"))
}
