//! The place where a policy is: which generation decides, which one is tried, which one was before.
//!
//! Those who decide hold it for good; those who load replace what is in it, atomically. A decision is taken by exactly one generation,
//! the one that was in force when it began, and a generation that was replaced lives until its last decision has ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::breaker::{BreakerState, Leave};
use crate::call::{Question, Route};
use crate::generation::Generation;
use crate::record::Recorder;
use crate::routing::Topology;
use crate::{Class, Failure, World, admission, pricing, routing, scaling, scheduling};

/// What a candidate does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rollout {
    /// It is asked for every decision, but its answers only count as equal or different.
    Shadow,
    /// It takes this percentage of decisions. Where it fails, the active generation decides.
    Canary(u8),
}

/// A decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Decided<T> {
    /// What was decided.
    pub answer: T,
    /// By which generation.
    pub generation: u64,
}

/// What is in a policy.
#[derive(Clone, Debug)]
pub struct Generations {
    /// The one that decides.
    pub active: Option<Arc<Generation>>,
    /// The one that is tried.
    pub candidate: Option<(Arc<Generation>, Rollout)>,
    /// The one that was active before: for a rollback, or when the active one keeps failing.
    pub previous: Option<Arc<Generation>>,
    /// The latest one that was taken out because it kept failing.
    pub tripped: Option<Arc<Generation>>,
    /// What decisions fail with while there is no active one.
    pub absent: Failure,
}

/// A generation of another world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a component of the world {found} cannot be a policy for {wanted}")]
pub struct WrongWorld {
    /// The policy's.
    pub wanted: World,
    /// The generation's.
    pub found: World,
}

/// See the module.
#[derive(Debug)]
pub struct Policy {
    name: Arc<str>,
    world: World,
    generations: ArcSwap<Generations>,
    /// Held while generations are changed.
    changing: Mutex<()>,
    turn: AtomicU64,
    pub(crate) recorder: Recorder,
}

impl Policy {
    /// Empty: decisions fail with the class `fetch`. `name` is that of the plugin: `namespace/name`.
    pub fn new(name: impl Into<Arc<str>>, world: World) -> Self {
        let absent = Failure { skipped: true, ..Failure::new(Class::Fetch, "no module has been loaded yet") };
        let none = Generations { active: None, candidate: None, previous: None, tripped: None, absent };
        Self {
            name: name.into(),
            world,
            generations: ArcSwap::from_pointee(none),
            changing: Mutex::new(()),
            turn: AtomicU64::new(0),
            recorder: Recorder::default(),
        }
    }

    /// `namespace/name`
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Which decision it takes.
    pub fn world(&self) -> World {
        self.world
    }

    /// What is in it now.
    pub fn generations(&self) -> Arc<Generations> {
        self.generations.load_full()
    }

    /// Whether nothing is in it that could decide.
    pub fn is_absent(&self) -> bool {
        self.generations.load().active.is_none()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Generations) -> T) -> T {
        let _changing = self.changing.lock();
        let mut generations = Generations::clone(&self.generations.load());
        let result = change(&mut generations);
        self.generations.store(Arc::new(generations));
        result
    }

    fn of_this_world(&self, generation: &Generation) -> Result<(), WrongWorld> {
        let (wanted, found) = (self.world, generation.module().world());
        if wanted == found { Ok(()) } else { Err(WrongWorld { wanted, found }) }
    }

    /// Tries a generation, in place of the candidate that there may be.
    ///
    /// # Errors
    /// If it is one of another world.
    pub fn stage(&self, candidate: Arc<Generation>, rollout: Rollout) -> Result<(), WrongWorld> {
        self.of_this_world(&candidate)?;
        self.change(|all| all.candidate = Some((candidate, rollout)));
        Ok(())
    }

    /// From now on this generation decides. There is no candidate any more, and the active one becomes the previous one.
    ///
    /// # Errors
    /// If it is one of another world.
    pub fn publish(&self, generation: Arc<Generation>) -> Result<(), WrongWorld> {
        self.of_this_world(&generation)?;
        self.change(|all| {
            all.candidate = None;
            all.previous = all.active.replace(generation).or(all.previous.take());
        });
        Ok(())
    }

    /// Puts these generations in, in one step, whatever was there. A generation that was taken out because it kept failing is left out.
    ///
    /// # Errors
    /// If one is of another world.
    pub fn arrange(
        &self,
        active: Arc<Generation>,
        candidate: Option<(Arc<Generation>, Rollout)>,
        previous: Option<Arc<Generation>>,
    ) -> Result<(), WrongWorld> {
        let tried = candidate.as_ref().map(|(candidate, _)| candidate);
        std::iter::once(&active).chain(tried).chain(&previous).try_for_each(|one| self.of_this_world(one))?;
        self.change(|all| {
            let fails = |one: &Arc<Generation>| all.tripped.as_ref().is_some_and(|tripped| Arc::ptr_eq(tripped, one));
            // It was taken out while this was being prepared: what was put in its place stays.
            if !fails(&active) {
                (all.active, all.previous) = (Some(active), previous.filter(|one| !fails(one)));
            }
            all.candidate = candidate.filter(|(candidate, _)| !fails(candidate));
        });
        Ok(())
    }

    /// What was taken out because it kept failing is not wanted any more, either.
    pub fn forget_tripped(&self) {
        self.change(|all| all.tripped = None);
    }

    /// Takes the candidate out.
    pub fn withdraw(&self) {
        self.change(|all| all.candidate = None);
    }

    /// The generation before decides again; the candidate is taken out. The number of the one that decides now; `None` if there was none before.
    pub fn roll_back(&self) -> Option<u64> {
        self.change(|all| {
            let before = all.previous.take()?;
            all.candidate = None;
            let number = before.number();
            all.previous = all.active.replace(before);
            Some(number)
        })
    }

    /// Takes everything out. Decisions fail with this from now on.
    pub fn clear(&self, class: Class, message: &str) {
        let absent = Failure { skipped: true, ..Failure::new(class, message) };
        self.change(|all| *all = Generations { active: None, candidate: None, previous: None, tripped: None, absent });
    }

    /// What decisions fail with while no generation is active.
    pub fn set_absent(&self, class: Class, message: &str) {
        self.change(|all| all.absent = Failure { skipped: true, ..Failure::new(class, message) });
    }

    /// Which endpoint gets a request. `thread` is the number of the serving thread, `now` the time of the request.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn route(
        &self,
        input: &routing::Input,
        topology: &Arc<Topology>,
        thread: usize,
        now: Instant,
    ) -> Result<Decided<routing::Decision>, Failure> {
        self.decide(&Route(input, topology), thread, now)
    }

    /// Whether a write goes through. Blocks up to the limit's time.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn admit(&self, input: &admission::Input, now: Instant) -> Result<Decided<admission::Answer>, Failure> {
        self.decide(input, 0, now)
    }

    /// Which nodes do for a pod. `thread` is the number of the calling thread: 0 if there is but one.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn place(
        &self,
        input: &scheduling::Input,
        thread: usize,
        now: Instant,
    ) -> Result<Decided<scheduling::Answer>, Failure> {
        self.decide(input, thread, now)
    }

    /// How many replicas. Blocks up to the limit's time.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn scale(&self, input: &scaling::Input, now: Instant) -> Result<Decided<scaling::Answer>, Failure> {
        self.decide(input, 0, now)
    }

    /// What usage costs. Blocks up to the limit's time.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn price(&self, input: &pricing::Input, now: Instant) -> Result<Decided<pricing::Answer>, Failure> {
        self.decide(input, 0, now)
    }

    /// An answer that had passed its check is of no use after all, such as a patch that does not apply: it counts as a failure of the
    /// generation that gave it.
    pub fn unusable(&self, generation: u64, why: &str, now: Instant) -> Failure {
        let failure = Failure::new(Class::InvalidOutput, why);
        let all = self.generations.load();
        let candidate = all.candidate.iter().map(|(candidate, _)| candidate);
        let mut known = all.active.iter().chain(candidate).chain(&all.previous);
        if let Some(found) = known.find(|known| known.number() == generation) {
            found.stats.error(failure.class);
            if found.failed(failure.class, now) {
                self.trip(found, &failure);
            }
        }
        failure
    }

    fn decide<Q: Question>(&self, question: &Q, thread: usize, now: Instant) -> Result<Decided<Q::Answer>, Failure> {
        let all = self.generations.load();
        let record = self.recorder.wants();
        if let Some((candidate, Rollout::Canary(percent))) = &all.candidate
            && self.turn.fetch_add(1, Relaxed) % 100 < u64::from(*percent)
            && let Ok(decided) = self.ask(candidate, question, thread, now, record)
        {
            return Ok(decided);
        }
        let decided = match &all.active {
            Some(active) => self.ask(active, question, thread, now, record),
            None => Err(all.absent.clone()),
        };
        if let Some((candidate, Rollout::Shadow)) = &all.candidate
            && let Ok(shadow) = self.ask(candidate, question, thread, now, false)
            && decided.as_ref().is_ok_and(|decided| decided.answer != shadow.answer)
        {
            candidate.differs();
        }
        decided
    }

    fn ask<Q: Question>(
        &self,
        generation: &Arc<Generation>,
        question: &Q,
        thread: usize,
        now: Instant,
        record: bool,
    ) -> Result<Decided<Q::Answer>, Failure> {
        if let Leave::Skip(class) = generation.breaker.leave(now) {
            return Err(Failure { skipped: true, ..Failure::new(class, "it failed too often and is given a rest") });
        }
        let result =
            if record { self.recorded(generation, question, thread) } else { generation.call(question, thread, None) };
        match result {
            Ok(answer) => {
                generation.breaker.succeeded();
                Ok(Decided { answer, generation: generation.number() })
            }
            Err(failure) => {
                if generation.failed(failure.class, now) {
                    self.trip(generation, &failure);
                }
                Err(failure)
            }
        }
    }

    #[cold]
    fn recorded<Q: Question>(
        &self,
        generation: &Arc<Generation>,
        question: &Q,
        thread: usize,
    ) -> Result<Q::Answer, Failure> {
        let mut reads = None;
        let result = generation.call(question, thread, Some(&mut reads));
        if let Some(reads) = reads {
            self.recorder.keep(generation, question.case(), reads, &result);
        }
        result
    }

    /// A generation keeps failing: a candidate is taken out, the active one gives way to the one before. If there is none, it is given a
    /// rest, and the built-in policy decides meanwhile.
    fn trip(&self, generation: &Arc<Generation>, failure: &Failure) {
        let back = self.change(|all| {
            if all.candidate.take_if(|(candidate, _)| Arc::ptr_eq(candidate, generation)).is_some() {
                all.tripped = Some(generation.clone());
                return Some("the candidate is taken out");
            }
            let is_active = all.active.as_ref().is_some_and(|active| Arc::ptr_eq(active, generation));
            let well = |before: &&mut Arc<Generation>| before.breaker() == BreakerState::Closed;
            if is_active && let Some(before) = all.previous.as_mut().filter(well).map(|before| before.clone()) {
                (all.active, all.previous, all.tripped) = (Some(before), None, Some(generation.clone()));
                return Some("the generation before decides again");
            }
            is_active.then_some("it is given a rest")
        });
        if let Some(consequence) = back {
            let (plugin, number) = (&*self.name, generation.number());
            tracing::warn!(plugin, generation = number, class = failure.class.name(), error = %failure, "a plugin keeps failing: {consequence}");
        }
    }
}
