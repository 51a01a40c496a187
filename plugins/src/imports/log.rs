//! A plugin's log lines: cut, cleaned and rate limited before they reach the platform's log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::component::{ComponentType, Lift};

use crate::check::clip;

/// Longest line.
pub const MAX_LINE_BYTES: usize = 1024;
/// Lines per second in the long run.
pub const LINES_PER_SECOND: u32 = 10;
/// Lines at once.
pub const BURST: u32 = 100;

/// How important a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code, reason = "components make them")]
pub enum Level {
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
}

/// Where a plugin's lines go through: a token bucket.
#[derive(Debug)]
pub(crate) struct Log {
    plugin: Arc<str>,
    tokens: u32,
    refilled: Option<Instant>,
    /// Since the last line that was written.
    dropped: u64,
    /// Ever.
    pub dropped_total: u64,
    /// Lines written.
    pub written_total: u64,
}

impl Log {
    pub fn new(plugin: Arc<str>) -> Self {
        Self { plugin, tokens: BURST, refilled: None, dropped: 0, dropped_total: 0, written_total: 0 }
    }

    /// Writes a line, or counts it.
    pub fn write(&mut self, level: Level, line: &str, now: Instant) {
        if !self.take(now) {
            self.dropped += 1;
            self.dropped_total += 1;
            return;
        }
        self.written_total += 1;
        let (plugin, line, dropped) = (&*self.plugin, clean(line), std::mem::take(&mut self.dropped));
        match level {
            Level::Debug => tracing::debug!(plugin, dropped, "{line}"),
            Level::Info => tracing::info!(plugin, dropped, "{line}"),
            Level::Warn => tracing::warn!(plugin, dropped, "{line}"),
            Level::Error => tracing::error!(plugin, dropped, "{line}"),
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        let interval = Duration::from_secs(1) / LINES_PER_SECOND;
        let since = now.saturating_duration_since(*self.refilled.get_or_insert(now));
        let earned = u32::try_from(since.as_nanos() / interval.as_nanos()).unwrap_or(u32::MAX);
        if earned >= BURST - self.tokens {
            (self.tokens, self.refilled) = (BURST, Some(now));
        } else {
            self.tokens += earned;
            self.refilled = self.refilled.map(|at| at + interval * earned);
        }
        let any = self.tokens > 0;
        self.tokens -= u32::from(any);
        any
    }
}

/// One line without control characters, of bounded length.
fn clean(line: &str) -> String {
    clip(line, MAX_LINE_BYTES).chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floods_are_dropped() {
        let (mut log, start) = (Log::new("p".into()), Instant::now());
        (0..1000).for_each(|_| log.write(Level::Debug, "x", start));
        assert_eq!((log.written_total, log.dropped_total), (100, 900));
        (0..10).for_each(|_| log.write(Level::Debug, "x", start + Duration::from_millis(550)));
        assert_eq!((log.written_total, log.dropped_total), (105, 905));
        (0..10).for_each(|_| log.write(Level::Debug, "x", start + Duration::from_millis(600)));
        assert_eq!((log.written_total, log.dropped_total), (106, 914));
        (0..200).for_each(|_| log.write(Level::Debug, "x", start + Duration::from_secs(3600)));
        assert_eq!(log.written_total, 206);
    }

    #[test]
    fn lines_are_cut_and_cleaned() {
        assert_eq!(clean("a\n\u{1b}[31mb"), "a\u{fffd}\u{fffd}[31mb");
        assert_eq!(clean(&"ä".repeat(600)).len(), 1024);
        assert_eq!(clean(&format!("a{}", "ä".repeat(600))).len(), 1023);
    }
}
