//! What admission says beside its verdict: annotations of the audit event, and warnings that are sent with refusals as well.
//!
//! One per request, filled by whatever writes on its behalf. It never changes a verdict.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// Most annotations of one request.
const MAX_ANNOTATIONS: usize = 64;
/// Most warnings of one request.
const MAX_WARNINGS: usize = 32;

/// See the module. What is beyond the bounds is left out.
#[derive(Debug, Default)]
pub struct Notes(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    annotations: BTreeMap<String, String>,
    warnings: Vec<String>,
}

impl Notes {
    /// For the audit event; a later value of a key replaces the one before.
    pub fn annotate(&self, key: String, value: String) {
        let mut inner = self.0.lock();
        if inner.annotations.len() < MAX_ANNOTATIONS || inner.annotations.contains_key(&key) {
            inner.annotations.insert(key, value);
        }
    }

    /// For the client; each text once.
    pub fn warn(&self, text: &str) {
        let mut inner = self.0.lock();
        if inner.warnings.len() < MAX_WARNINGS && inner.warnings.iter().all(|known| known != text) {
            inner.warnings.push(text.to_owned());
        }
    }

    /// The annotations; there are none after that.
    pub fn take_annotations(&self) -> BTreeMap<String, String> {
        std::mem::take(&mut self.0.lock().annotations)
    }

    /// The warnings; there are none after that.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().warnings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_bounded_and_warnings_come_once() {
        let notes = Notes::default();
        for i in 0..200 {
            notes.annotate(format!("k{i}"), "v".into());
            notes.warn(&format!("w{i}"));
            notes.warn("w0");
        }
        notes.annotate("k0".into(), "again".into());
        let annotations = notes.take_annotations();
        assert_eq!((annotations.len(), annotations["k0"].as_str()), (MAX_ANNOTATIONS, "again"));
        assert_eq!(notes.take_warnings().len(), MAX_WARNINGS);
        assert!(notes.take_warnings().is_empty());
    }
}
