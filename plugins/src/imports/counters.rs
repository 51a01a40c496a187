//! A plugin's own counters, with bounded cardinality.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// Most counters of a plugin.
pub const MAX_COUNTERS: usize = 32;
/// Longest name.
pub const MAX_NAME_BYTES: usize = 63;
/// Where everything is counted that has no counter of its own.
const OTHER: &str = "other";

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Counters(Mutex<BTreeMap<Box<str>, u64>>);

impl Counters {
    pub fn add(&self, name: &str, by: u64) {
        let character = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        let valid = !name.is_empty() && name.len() <= MAX_NAME_BYTES && name.bytes().all(character);
        let mut counters = self.0.lock();
        let known = |name: &str| counters.contains_key(name);
        // One place is kept for the others.
        let room = counters.len() < MAX_COUNTERS - usize::from(!known(OTHER));
        let name = if valid && (known(name) || room) { name } else { OTHER };
        match counters.get_mut(name) {
            Some(count) => *count = count.wrapping_add(by),
            None => _ = counters.insert(name.into(), by),
        }
    }

    /// All of them, by name.
    pub fn read(&self) -> Vec<(Box<str>, u64)> {
        self.0.lock().iter().map(|(name, count)| (name.clone(), *count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cardinality_is_bounded() {
        let counters = Counters::default();
        (0..100).for_each(|i| counters.add(&format!("c{i}"), 1));
        ["", "A", "a-b", &"a".repeat(64)].iter().for_each(|name| counters.add(name, 10));
        counters.add("c0", 5);
        let read = counters.read();
        let of = |name: &str| read.iter().find(|(known, _)| &**known == name).map(|(_, count)| *count);
        assert_eq!(read.len(), MAX_COUNTERS);
        assert_eq!((of("c0"), of("c30"), of("c31"), of("other")), (Some(6), Some(1), None, Some(69 + 40)));
    }
}
