//! How the connections of one listener learn that it is closing.

use std::cell::Cell;

use tokio::sync::Notify;

/// Life of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Accepting.
    Serving,
    /// Not accepting, because a successor does: idle connections wait for one more request, whose answer says that they close. Closing
    /// them at once could meet a request on its way.
    Leaving,
    /// Not accepting; what is in flight finishes, idle connections close.
    Draining,
    /// The time to finish is over; everything closes.
    Aborting,
}

/// Shared by a listener and its connections, on one thread.
#[derive(Debug)]
pub(crate) struct Drain {
    phase: Cell<Phase>,
    changed: Notify,
}

impl Drain {
    pub fn new() -> Self {
        Self { phase: Cell::new(Phase::Serving), changed: Notify::new() }
    }

    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Moves on; never back.
    pub fn advance(&self, phase: Phase) {
        if phase > self.phase.get() {
            self.phase.set(phase);
            self.changed.notify_waiters();
        }
    }

    /// Resolves once `phase` is reached.
    pub async fn reached(&self, phase: Phase) {
        while self.phase.get() < phase {
            // One thread: nothing can happen between the check and the first poll.
            self.changed.notified().await;
        }
    }
}
