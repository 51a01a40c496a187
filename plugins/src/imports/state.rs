//! A plugin's key-value state: bounded in entries and bytes, shared by all of its instances in the process.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use wasmtime::component::{ComponentType, Lower};

use crate::Limits;

/// Longest key.
pub const MAX_KEY_BYTES: usize = 128;
/// Longest value.
pub const MAX_VALUE_BYTES: usize = 4096;

/// Why a value is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ComponentType, Lower)]
#[component(enum)]
#[repr(u8)]
pub enum Refusal {
    /// Its key is empty or too long.
    #[component(name = "invalid-key")]
    InvalidKey,
    /// It is too long itself.
    #[component(name = "value-too-long")]
    ValueTooLong,
    /// There is no room.
    #[component(name = "full")]
    Full,
}

#[derive(Debug, Default)]
struct Entries {
    map: HashMap<Box<str>, Arc<[u8]>>,
    bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub struct State {
    entries: Mutex<Entries>,
    max_entries: usize,
    max_bytes: usize,
}

impl State {
    /// Empty, of the limits' size.
    pub fn new(limits: &Limits) -> Self {
        Self { entries: Mutex::default(), max_entries: limits.state_entries, max_bytes: limits.state_bytes }
    }

    pub(crate) fn get(&self, key: &str) -> Option<Arc<[u8]>> {
        self.entries.lock().map.get(key).cloned()
    }

    pub(crate) fn set(&self, key: &str, value: Vec<u8>) -> Result<(), Refusal> {
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return Err(Refusal::InvalidKey);
        }
        if value.len() > MAX_VALUE_BYTES {
            return Err(Refusal::ValueTooLong);
        }
        let mut entries = self.entries.lock();
        let before = entries.map.get(key).map(|old| key.len() + old.len());
        let bytes = entries.bytes - before.unwrap_or(0) + key.len() + value.len();
        if bytes > self.max_bytes || (before.is_none() && entries.map.len() >= self.max_entries) {
            return Err(Refusal::Full);
        }
        entries.bytes = bytes;
        entries.map.insert(key.into(), value.into());
        Ok(())
    }

    pub(crate) fn delete(&self, key: &str) {
        let mut entries = self.entries.lock();
        if let Some(value) = entries.map.remove(key) {
            entries.bytes -= key.len() + value.len();
        }
    }

    /// Entries, and bytes of their keys and values.
    pub fn size(&self) -> (usize, usize) {
        let entries = self.entries.lock();
        (entries.map.len(), entries.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::World;

    #[test]
    fn entries_and_bytes_are_bounded() {
        let limits = Limits { state_entries: 2, state_bytes: 10, ..Limits::of(World::Routing) };
        let state = State::new(&limits);
        assert_eq!(state.set("a", vec![1; 4]), Ok(()));
        assert_eq!(state.set("b", vec![1; 5]), Err(Refusal::Full));
        assert_eq!(state.set("b", vec![1; 4]), Ok(()));
        assert_eq!(state.set("c", vec![]), Err(Refusal::Full), "a third entry");
        assert_eq!(state.set("a", vec![2; 3]), Ok(()), "in place of four bytes");
        assert_eq!(state.size(), (2, 9));
        state.delete("b");
        state.delete("b");
        assert_eq!(state.size(), (1, 4));
        assert_eq!(state.get("a").as_deref(), Some(&[2; 3][..]));
        assert_eq!(state.get("b"), None);
        assert_eq!(state.set("", vec![]), Err(Refusal::InvalidKey));
        assert_eq!(state.set(&"k".repeat(129), vec![]), Err(Refusal::InvalidKey));
        assert_eq!(state.set("a", vec![0; 4097]), Err(Refusal::ValueTooLong));
    }
}
