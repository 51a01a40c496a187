//! A module with its configuration and limits: one version of a policy. It counts what it does and keeps its instances.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use parking_lot::Mutex;

use crate::breaker::{Breaker, BreakerState};
use crate::call::Question;
use crate::clock::Lease;
use crate::imports::{Counters, Log, Read, Shared, State};
use crate::instance::Instance;
use crate::module::Module;
use crate::stats::{Statistics, Stats};
use crate::{Class, Failure, Host, Limits, Mode};

/// What makes a generation out of a module.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Name of the plugin, for logs: `namespace/name`.
    pub plugin: Arc<str>,
    /// Unique and growing for each plugin, e.g. `metadata.generation`.
    pub number: u64,
    /// JSON that satisfies the module's schema; `{}` for none.
    pub config: Arc<str>,
    /// Within the tenant's caps.
    pub limits: Limits,
    /// `None` for an empty one of its own.
    pub state: Option<Arc<State>>,
}

/// A thread's instance. Threads have places of their own, so that a lock is only ever met by whoever has more threads than were announced.
#[repr(align(128))]
struct Place(Mutex<Option<Instance>>);

/// See the module.
pub struct Generation {
    number: u64,
    plugin: Arc<str>,
    module: Arc<Module>,
    limits: Limits,
    shared: Arc<Shared>,
    places: Box<[Place]>,
    pub(crate) stats: Stats,
    pub(crate) breaker: Breaker,
    _clock: Lease,
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Generation");
        debug
            .field("plugin", &self.plugin)
            .field("number", &self.number)
            .field("module", &self.module)
            .finish_non_exhaustive()
    }
}

impl Generation {
    /// Starts its instances: one per thread where they stay warm, otherwise one that shows that it starts. Blocks meanwhile.
    ///
    /// # Errors
    /// If it does not start within its limits.
    pub fn new(host: &Host, module: Arc<Module>, setup: Setup) -> Result<Arc<Self>, Failure> {
        let limits = setup.limits.within(&Limits::MOST);
        let shared = Arc::new(Shared {
            config: setup.config,
            state: setup.state.unwrap_or_else(|| Arc::new(State::new(&limits))),
            counters: Arc::new(Counters::default()),
            log: Mutex::new(Log::new(setup.plugin.clone())),
        });
        let clock = host.clock();
        let first = Instance::start(&module, &shared, &limits)?;
        let mut places: Box<[Place]> = Box::default();
        if module.world().mode() == Mode::Warm {
            let rest = (1..host.threads()).map(|_| Instance::start(&module, &shared, &limits).map(Some));
            let all: Result<Vec<_>, Failure> = std::iter::once(Ok(Some(first))).chain(rest).collect();
            places = all?.into_iter().map(|instance| Place(Mutex::new(instance))).collect();
        }
        Ok(Arc::new(Self {
            number: setup.number,
            plugin: setup.plugin,
            module,
            limits,
            shared,
            places,
            stats: Stats::new(host.threads()),
            breaker: Breaker::default(),
            _clock: clock,
        }))
    }

    /// As in [`Setup`].
    pub fn number(&self) -> u64 {
        self.number
    }

    /// As in [`Setup`].
    pub fn plugin(&self) -> &Arc<str> {
        &self.plugin
    }

    /// Its module.
    pub fn module(&self) -> &Arc<Module> {
        &self.module
    }

    /// In force: what was set up, within what the host can give.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Its configuration, JSON.
    pub fn config(&self) -> &Arc<str> {
        &self.shared.config
    }

    /// Its state, to hand on to the next generation.
    pub fn state(&self) -> &Arc<State> {
        &self.shared.state
    }

    /// Whether it is still asked.
    pub fn breaker(&self) -> BreakerState {
        self.breaker.state()
    }

    /// What it has done so far.
    pub fn statistics(&self) -> Statistics {
        self.stats.read()
    }

    /// Its own counters by name.
    pub fn counters(&self) -> Vec<(Box<str>, u64)> {
        self.shared.counters.read()
    }

    /// Log lines written, and dropped.
    pub fn log_lines(&self) -> (u64, u64) {
        let log = self.shared.log.lock();
        (log.written_total, log.dropped_total)
    }

    /// Asks an instance, on this thread. With `reads`, what it read of the state is put there; `None` if that is too much to be told.
    pub(crate) fn call<Q: Question>(
        &self,
        question: &Q,
        thread: usize,
        reads: Option<&mut Option<Vec<Read>>>,
    ) -> Result<Q::Answer, Failure> {
        let began = Instant::now();
        let (result, fuel, memory) = self.ask(question, thread, reads);
        let error = result.as_ref().err().map(|failure| failure.class);
        self.stats.record(thread, began.elapsed(), fuel, memory, error);
        result
    }

    /// The answer, instructions executed, and bytes of memory.
    fn ask<Q: Question>(
        &self,
        question: &Q,
        thread: usize,
        reads: Option<&mut Option<Vec<Read>>>,
    ) -> (Result<Q::Answer, Failure>, u64, u64) {
        let ask = |instance: &mut Instance| match reads {
            None => instance.ask(question, &self.limits),
            Some(reads) => {
                instance.trace();
                let answer = instance.ask(question, &self.limits);
                *reads = instance.traced();
                answer
            }
        };
        let own = thread % self.places.len().max(1);
        let (before, after) = self.places.split_at(own);
        for place in after.iter().chain(before) {
            let Some(mut place) = place.0.try_lock() else { continue };
            let instance = match &mut *place {
                Some(instance) => instance,
                none => match Instance::start(&self.module, &self.shared, &self.limits) {
                    Ok(instance) => none.insert(instance),
                    Err(failure) => return (Err(failure), 0, 0),
                },
            };
            let (answer, memory) = (ask(instance), instance.memory());
            if answer.is_err() {
                *place = None;
            }
            return (answer, 0, memory);
        }
        match Instance::start(&self.module, &self.shared, &self.limits) {
            Ok(mut instance) => {
                let answer = ask(&mut instance);
                (answer, instance.fuel_used(&self.limits), instance.memory())
            }
            Err(failure) => (Err(failure), 0, 0),
        }
    }

    /// One failure more. Whether it is no longer asked because of it.
    pub(crate) fn failed(&self, class: Class, now: Instant) -> bool {
        self.breaker.failed(class, self.stats.decisions(), now)
    }

    pub(crate) fn differs(&self) {
        self.stats.differences.fetch_add(1, Relaxed);
    }
}
