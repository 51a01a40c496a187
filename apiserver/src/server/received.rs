//! Recorded decisions of plugins from other processes: the latest ones, in memory alone, bounded per plugin and in all.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;
use scaleup_plugins::{MAX_RECORDS, PluginKey};

/// Most bytes of one plugin's records.
const MAX_BYTES: usize = 16 << 20;
/// Most bytes of all of them.
const MAX_TOTAL_BYTES: usize = 64 << 20;

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When it was decided; milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
    /// As JSON, without the end of the line.
    pub text: Box<str>,
}

#[derive(Debug, Default)]
struct Kept {
    /// Of the plugin: one that comes after it does not get its records.
    uid: Box<str>,
    lines: VecDeque<Line>,
    bytes: usize,
}

impl Kept {
    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.lines.pop_front() {
            self.bytes -= oldest.text.len();
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Received {
    plugins: Mutex<HashMap<PluginKey, Kept>>,
}

impl Received {
    /// Keeps them after those that are there. `is_there` says whether there is still a plugin of a name and UID: what is of no plugin is forgotten.
    pub fn keep(&self, key: &PluginKey, uid: &str, lines: Vec<Line>, is_there: impl Fn(&PluginKey, &str) -> bool) {
        let mut plugins = self.plugins.lock();
        plugins.retain(|key, kept| is_there(key, &kept.uid));
        let kept = plugins.entry(key.clone()).or_default();
        if *kept.uid != *uid {
            *kept = Kept { uid: uid.into(), ..Kept::default() };
        }
        kept.bytes += lines.iter().map(|line| line.text.len()).sum::<usize>();
        kept.lines.extend(lines);
        while kept.lines.len() > MAX_RECORDS || kept.bytes > MAX_BYTES {
            kept.drop_oldest();
        }
        while plugins.values().map(|kept| kept.bytes).sum::<usize>() > MAX_TOTAL_BYTES {
            let Some(largest) = plugins.values_mut().max_by_key(|kept| kept.bytes) else { return };
            largest.drop_oldest();
        }
    }

    /// Those of a plugin, in the order in which they came.
    pub fn lines(&self, key: &PluginKey, uid: &str) -> Vec<Line> {
        let plugins = self.plugins.lock();
        let kept = plugins.get(key).filter(|kept| *kept.uid == *uid);
        kept.map(|kept| kept.lines.iter().cloned().collect()).unwrap_or_default()
    }

    /// Nobody wants them any more.
    pub fn forget(&self, key: &PluginKey) {
        self.plugins.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(time_ms: u64, bytes: usize) -> Line {
        Line { time_ms, text: "x".repeat(bytes).into() }
    }

    fn times(received: &Received, key: &PluginKey, uid: &str) -> Vec<u64> {
        received.lines(key, uid).iter().map(|line| line.time_ms).collect()
    }

    #[test]
    fn the_latest_are_kept_per_plugin() {
        let (received, key) = (Received::default(), PluginKey::namespaced("shop", "p"));
        received.keep(&key, "1", vec![line(1, 9), line(2, 9)], |_, _| true);
        received.keep(&key, "1", vec![line(3, 9)], |_, _| true);
        assert_eq!(times(&received, &key, "1"), [1, 2, 3]);
        received.keep(&key, "1", (4..4 + MAX_RECORDS as u64).map(|n| line(n, 1)).collect(), |_, _| true);
        assert_eq!((times(&received, &key, "1").len(), times(&received, &key, "1")[0]), (MAX_RECORDS, 4));
        received.keep(&key, "1", vec![line(0, MAX_BYTES)], |_, _| true);
        assert_eq!(times(&received, &key, "1"), [0]);
        // Another plugin of this name begins anew.
        received.keep(&key, "2", vec![line(7, 1)], |_, _| true);
        assert_eq!((times(&received, &key, "1"), times(&received, &key, "2")), (Vec::<u64>::new(), vec![7_u64]));
        received.forget(&key);
        assert!(times(&received, &key, "2").is_empty());
    }

    #[test]
    fn all_together_are_bounded_and_of_plugins_that_are_there() {
        let received = Received::default();
        let key = |n: usize| PluginKey::cluster(format!("p{n}"));
        for n in 0..6 {
            received.keep(&key(n), "u", (0..16).map(|at| line(at, MAX_BYTES / 16)).collect(), |_, _| true);
        }
        let kept: usize = (0..6).map(|n| received.lines(&key(n), "u").len()).sum();
        assert_eq!(kept, MAX_TOTAL_BYTES / (MAX_BYTES / 16));
        assert!((0..6).all(|n| !received.lines(&key(n), "u").is_empty()), "nobody loses all of theirs");
        received.keep(&key(0), "u", vec![], |known, _| *known == key(0));
        assert!(!received.lines(&key(0), "u").is_empty() && received.lines(&key(1), "u").is_empty());
    }
}
