//! The one place that reads the wall clock.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// Wall-clock time, real or moved by tokio's (pausable) clock.
#[derive(Clone, Copy, Debug, Default)]
pub enum Clock {
    /// The machine's.
    #[default]
    System,
    /// Starts at a wall-clock time and advances with `tokio::time`: a paused test moves it.
    Tokio {
        /// Wall-clock time at `since`.
        base: Timestamp,
        /// Moment on tokio's clock.
        since: Instant,
    },
}

impl Clock {
    /// A clock that follows tokio's from now on.
    pub fn following_tokio() -> Self {
        Self::Tokio { base: Timestamp::now(), since: Instant::now() }
    }
    /// Now.
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => Timestamp::now(),
            Self::Tokio { base, since } => after(*base, since.elapsed()),
        }
    }
    /// How long from now until `at`; zero if it has passed.
    pub fn until(&self, at: Timestamp) -> Duration {
        between(self.now(), at)
    }
}

/// `at + duration`, clamped to what a timestamp can hold.
pub fn after(at: Timestamp, duration: Duration) -> Timestamp {
    at.checked_add(duration).unwrap_or(Timestamp::MAX)
}

/// `to - from`; zero if `to` is earlier.
pub fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or(Duration::ZERO)
}
