//! The clock that stops components: a thread that advances wasmtime's epoch while there is anything to stop.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::engine::Engines;

/// One unit of a deadline. A component that must be stopped is stopped at most two units late.
const TICK: Duration = Duration::from_millis(1);

/// A time as units of a deadline, rounded up; the unit that has begun does not count.
pub(crate) fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX / 2) + 1
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

    #[test]
    fn times_are_rounded_up() {
        assert_eq!(ticks(Duration::ZERO), 1);
        assert_eq!(ticks(Duration::from_micros(1)), 2);
        assert_eq!(ticks(Duration::from_millis(2)), 3);
        assert!(ticks(Duration::MAX) > 1 << 60);
    }
}
