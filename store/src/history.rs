//! How much history a store keeps. Values only; each store enforces them in its own way.

use std::time::Duration;

use crate::{Error, Result, Revision};

/// Default for [`HistoryBounds::max_events`].
pub const HISTORY_MAX_EVENTS: u64 = 50_000;
/// Default for [`HistoryBounds::max_bytes`]: without it, large objects make a history by count alone grow to gigabytes.
pub const HISTORY_MAX_BYTES: u64 = 64 << 20;
/// Default for [`HistoryBounds::max_age`]: kube-apiserver's `--etcd-compaction-interval`.
pub const HISTORY_MAX_AGE: Duration = Duration::from_secs(300);

/// Whatever is reached first makes the store forget its oldest revisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryBounds {
    /// Writes that can be replayed.
    pub max_events: u64,
    /// Bytes of keys and values in them.
    pub max_bytes: u64,
    /// Age of the oldest one.
    pub max_age: Duration,
}

impl Default for HistoryBounds {
    fn default() -> Self {
        Self { max_events: HISTORY_MAX_EVENTS, max_bytes: HISTORY_MAX_BYTES, max_age: HISTORY_MAX_AGE }
    }
}

/// Milliseconds since the Unix epoch. The one place of this crate that reads the wall clock.
pub(crate) fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Whether state as of `at` can be read: the revision to read at.
pub(crate) fn readable(at: Option<Revision>, compacted: Revision, current: Revision) -> Result<Revision> {
    match at {
        None => Ok(current),
        Some(requested) if requested > current => Err(Error::Future { requested, current }),
        Some(requested) if requested < compacted => Err(Error::Compacted { requested, oldest: compacted }),
        Some(requested) => Ok(requested),
    }
}

/// Whether every event from `from` on is still there.
pub(crate) fn watchable(from: Revision, compacted: Revision) -> Result<()> {
    // Events up to and including the compacted revision may be gone.
    if from.max(1) <= compacted {
        return Err(Error::Compacted { requested: from, oldest: compacted });
    }
    Ok(())
}
