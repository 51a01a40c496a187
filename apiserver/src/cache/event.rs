//! One change in the history: the object before and after, and its watch events, encoded once for all watchers.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use scaleup_store::Revision;

use super::{Cached, encode};

/// `watch.EventType`, as far as objects have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// `ADDED`
    Added,
    /// `MODIFIED`
    Modified,
    /// `DELETED`
    Deleted,
    /// `BOOKMARK`
    Bookmark,
    /// `ERROR`
    Error,
}

impl EventType {
    /// How an event of this type begins.
    pub fn head(self) -> &'static [u8] {
        match self {
            Self::Added => br#"{"type":"ADDED","object":"#,
            Self::Modified => br#"{"type":"MODIFIED","object":"#,
            Self::Deleted => br#"{"type":"DELETED","object":"#,
            Self::Bookmark => br#"{"type":"BOOKMARK","object":"#,
            Self::Error => br#"{"type":"ERROR","object":"#,
        }
    }
}

/// A change of one object at one revision.
#[derive(Debug)]
pub struct CacheEvent {
    /// The revision that made it.
    pub revision: Revision,
    /// The object before; `None` if it was created.
    pub before: Option<Arc<Cached>>,
    /// The object after; `None` if it was deleted.
    pub after: Option<Arc<Cached>>,
    /// When it came in, for the history's age bound.
    pub at: Instant,
    /// The new state as an event of the type that its own frame is not: what was modified is ADDED to a watcher whose
    /// selector only matches now.
    retyped: OnceLock<Bytes>,
    /// As seen by a watcher whose selector does not match any more, or after a deletion.
    as_deleted: OnceLock<Bytes>,
}

impl CacheEvent {
    /// A change that just came in.
    pub fn new(revision: Revision, before: Option<Arc<Cached>>, after: Option<Arc<Cached>>) -> Self {
        Self { revision, before, after, at: Instant::now(), retyped: OnceLock::new(), as_deleted: OnceLock::new() }
    }

    /// What this change is to a watcher that selects objects by `matches`; `None`: nothing.
    pub fn seen_by(&self, matches: impl Fn(&Cached) -> bool) -> Option<EventType> {
        let before = self.before.as_deref().is_some_and(&matches);
        let after = self.after.as_deref().is_some_and(&matches);
        match (before, after) {
            (false, true) => Some(EventType::Added),
            (true, true) => Some(EventType::Modified),
            (true, false) => Some(EventType::Deleted),
            (false, false) => None,
        }
    }

    /// The encoded watch event. `kind` is what [`CacheEvent::seen_by`] said.
    pub fn frame(&self, kind: EventType) -> Bytes {
        match (kind, &self.before, &self.after) {
            (EventType::Deleted, Some(before), _) => {
                self.as_deleted.get_or_init(|| encode::frame(kind, &self.last_state(before))).clone()
            }
            (_, _, Some(after)) if after.frame.starts_with(kind.head()) => after.frame.clone(),
            (_, _, Some(after)) => self.retyped.get_or_init(|| encode::frame(kind, &after.json)).clone(),
            (_, _, None) => Bytes::new(),
        }
    }

    /// The object of the watch event, as JSON.
    pub fn object(&self, kind: EventType) -> Bytes {
        match (kind, &self.after) {
            (EventType::Added | EventType::Modified, Some(after)) => after.json.clone(),
            _ => {
                let frame = self.frame(EventType::Deleted);
                let end = frame.len().saturating_sub(encode::FRAME_END.len());
                frame.slice(EventType::Deleted.head().len().min(end)..end)
            }
        }
    }

    /// The object that went away, with the revision of its going, as upstream sends it.
    fn last_state(&self, before: &Cached) -> Vec<u8> {
        let version = before.version_range();
        let mut out = Vec::with_capacity(before.json.len() + 8);
        out.extend_from_slice(&before.json[..version.start]);
        out.extend_from_slice(format!("\"resourceVersion\":\"{}\",", self.revision).as_bytes());
        out.extend_from_slice(&before.json[version.end..]);
        out
    }

    /// Bytes that the history keeps alive because of this event.
    pub fn weight(&self) -> usize {
        let before = self.before.as_ref().map_or(0, |c| c.json.len());
        let after = self.after.as_ref().map_or(0, |c| c.json.len());
        // A deletion is encoded once more when somebody watches; the struct and its two Arcs are a few hundred bytes.
        before + after.max(before) + 512
    }
}
