//! The clock that stops components: a thread that advances wasmtime's epoch while there is anything to stop, and the stopwatch that
//! tells a component that computes from a thread that waits for a core.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::time::{ClockId, clock_gettime};
use wasmtime::{Trap, UpdateDeadline};

use crate::engine::Engines;

/// One unit of a deadline.
const TICK: Duration = Duration::from_millis(1);

/// A time as units of a deadline, rounded up; the unit that has begun does not count.
pub(crate) fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX / 2) + 1
}

/// Measures a call whose deadline has passed on the wall clock, which says little on a busy machine: the thread may have waited for a core
/// most of the time. From the first look on the thread's own time counts, and the call is given its limit once more. Calls that keep the
/// deadline, all but the rarest, thus never ask for the time; one that does not end is stopped after at most twice its limit and two units.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stopwatch {
    limit: Duration,
    /// The thread's time at the first look.
    first: Option<Duration>,
    looks: u32,
}

impl Stopwatch {
    /// Looks, each after the limit or one unit, before a thread that is given no core at all gives up.
    const MAX_LOOKS: u32 = 1000;

    /// For a call that may take this long.
    pub fn new(limit: Duration) -> Self {
        Self { limit, first: None, looks: 0 }
    }

    /// To be called by the thread whose deadline has passed.
    pub fn look(&mut self) -> wasmtime::Result<UpdateDeadline> {
        self.look_at(thread_time())
    }

    fn look_at(&mut self, now: Duration) -> wasmtime::Result<UpdateDeadline> {
        self.looks += 1;
        let left = self.limit.saturating_sub(now.saturating_sub(*self.first.get_or_insert(now)));
        if left.is_zero() || self.looks > Self::MAX_LOOKS {
            return Err(Trap::Interrupt.into());
        }
        Ok(UpdateDeadline::Continue(ticks(left)))
    }
}

/// CPU time of this thread since it started.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // The kernel's clocks are not negative, and have less than a second of nanoseconds.
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// See the module. It stands still while nobody holds a [`Lease`].
pub(crate) struct Clock {
    leases: Mutex<usize>,
    wanted: Condvar,
}

/// Keeps the clock going.
pub(crate) struct Lease(Arc<Clock>);

impl Drop for Lease {
    fn drop(&mut self) {
        *self.0.leases.lock() -= 1;
    }
}

impl Clock {
    /// Starts the thread; it ends after the engines are dropped.
    pub fn start(engines: &Arc<Engines>) -> std::io::Result<Arc<Self>> {
        let clock = Arc::new(Self { leases: Mutex::new(0), wanted: Condvar::new() });
        let (weak, engines) = (Arc::downgrade(&clock), Arc::downgrade(engines));
        std::thread::Builder::new().name("plugin-clock".into()).spawn(move || run(&weak, &engines))?;
        Ok(clock)
    }

    /// To be held by whoever may call a component.
    pub fn lease(self: &Arc<Self>) -> Lease {
        *self.leases.lock() += 1;
        self.wanted.notify_one();
        Lease(self.clone())
    }
}

fn run(clock: &Weak<Clock>, engines: &Weak<Engines>) {
    /// Pause between looks whether anybody is left.
    const IDLE: Duration = Duration::from_secs(1);
    loop {
        let (Some(clock), Some(engines)) = (clock.upgrade(), engines.upgrade()) else { return };
        let mut leases = clock.leases.lock();
        if *leases == 0 {
            drop(engines);
            clock.wanted.wait_for(&mut leases, IDLE);
            continue;
        }
        drop(leases);
        std::thread::sleep(TICK);
        engines.tick();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn goes_on(look: wasmtime::Result<UpdateDeadline>) -> Option<u64> {
        match look {
            Ok(UpdateDeadline::Continue(ticks)) => Some(ticks),
            Ok(_) => panic!("unexpected"),
            Err(error) => {
                assert_eq!(error.downcast_ref(), Some(&Trap::Interrupt));
                None
            }
        }
    }

    #[test]
    fn waiting_for_a_core_does_not_count() {
        let ms = Duration::from_millis;
        let mut stopwatch = Stopwatch::new(ms(2));
        assert_eq!(goes_on(stopwatch.look_at(ms(100))), Some(3));
        // The thread has hardly run since.
        assert_eq!(goes_on(stopwatch.look_at(ms(100) + Duration::from_micros(10))), Some(3));
        assert_eq!(goes_on(stopwatch.look_at(ms(101))), Some(2));
        assert_eq!(goes_on(stopwatch.look_at(ms(102))), None);
    }

    #[test]
    fn a_thread_without_a_core_gives_up() {
        let mut stopwatch = Stopwatch::new(Duration::from_millis(2));
        let looks = (0..).take_while(|_| goes_on(stopwatch.look_at(Duration::ZERO)).is_some()).count();
        assert_eq!(looks, 1000);
    }

    #[test]
    fn a_thread_knows_its_own_time() {
        let before = thread_time();
        std::thread::sleep(Duration::from_millis(50));
        assert!(thread_time() - before < Duration::from_millis(40), "sleeping counts");
        let mut sum = 0_u64;
        while thread_time() == before {
            sum = std::hint::black_box(sum + 1);
        }
    }

    #[test]
    fn times_are_rounded_up() {
        assert_eq!(ticks(Duration::ZERO), 1);
        assert_eq!(ticks(Duration::from_micros(1)), 2);
        assert_eq!(ticks(Duration::from_millis(2)), 3);
        assert!(ticks(Duration::MAX) > 1 << 60);
    }
}
