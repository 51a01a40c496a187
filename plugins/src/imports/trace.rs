//! What a call that is recorded read of the state: with it, the decision can be taken again.

use std::sync::Arc;

/// Most keys of one call. A decision that read more is not recorded: it could not be taken again.
const MAX_READS: usize = 256;

/// A key, and the value that the call found.
pub(crate) type Read = (Box<str>, Option<Arc<[u8]>>);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    reads: Vec<Read>,
    /// What the call itself wrote: reading it says nothing of the state before.
    written: Vec<Box<str>>,
    overflown: bool,
}

impl Trace {
    /// The call has read a key.
    pub fn read(&mut self, key: &str, value: Option<&Arc<[u8]>>) {
        let known = self.reads.iter().any(|(read, _)| **read == *key) || self.written.iter().any(|it| **it == *key);
        if known {
            return;
        }
        if self.reads.len() < MAX_READS {
            self.reads.push((key.into(), value.cloned()));
        } else {
            self.overflown = true;
        }
    }

    /// The call has changed a key.
    pub fn wrote(&mut self, key: &str) {
        if self.written.len() < MAX_READS {
            self.written.push(key.into());
        } else {
            self.overflown = true;
        }
    }

    /// What it read that it had not written before; `None` if that is too much.
    pub fn finish(self) -> Option<Vec<Read>> {
        (!self.overflown).then_some(self.reads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_state_before_the_call_counts() {
        let mut trace = Trace::default();
        let value: Arc<[u8]> = vec![1].into();
        trace.read("a", Some(&value));
        trace.wrote("a");
        trace.read("a", None);
        trace.wrote("b");
        trace.read("b", Some(&value));
        trace.read("c", None);
        assert_eq!(trace.finish(), Some(vec![("a".into(), Some(value)), ("c".into(), None)]));
        let mut trace = Trace::default();
        (0..=MAX_READS).for_each(|key| trace.read(&key.to_string(), None));
        assert_eq!(trace.finish(), None);
    }
}
