//! What a controller has asked for and not yet seen in its cache (upstream's `UIDTrackingControllerExpectations`).
//!
//! Creates are tracked by name, which the controller chooses itself, and deletes by UID. So an answer that was lost is
//! no riddle: what stays unseen for [`CHECK_AFTER`] is looked up live by the caller, never assumed.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::key::Key;

/// An expectation that is this old is checked against the API.
pub const CHECK_AFTER: Duration = Duration::from_secs(10);
/// A create or delete whose answer was lost is checked after this time already.
const CHECK_AFTER_LOST: Duration = Duration::from_millis(200);

#[derive(Default)]
struct Pending {
    /// Name → when to look it up live.
    creates: HashMap<String, Instant>,
    /// UID → (name, when to look it up live).
    deletes: HashMap<String, (String, Instant)>,
}

/// Whether a controller may act on what its cache shows for a key.
#[derive(Debug, PartialEq, Eq)]
pub enum State {
    /// Everything asked for has been seen.
    Satisfied,
    /// Something has not; look again after this time at the latest.
    Waiting(Duration),
    /// These have not been seen for long: look them up and report with `observed_*`.
    Overdue {
        /// Names of objects to create.
        creates: Vec<String>,
        /// Names and UIDs of objects to delete.
        deletes: Vec<(String, String)>,
    },
}

/// Expectations of one controller.
#[derive(Default)]
pub struct Expectations {
    inner: Mutex<HashMap<Key, Pending>>,
}

impl Expectations {
    /// Before creating `name` for `key`.
    pub fn expect_create(&self, key: &Key, name: &str) {
        let at = Instant::now() + CHECK_AFTER;
        self.inner.lock().entry(key.clone()).or_default().creates.insert(name.to_owned(), at);
    }
    /// Before deleting the object `name` of UID `uid` for `key`.
    pub fn expect_delete(&self, key: &Key, name: &str, uid: &str) {
        let at = Instant::now() + CHECK_AFTER;
        self.inner.lock().entry(key.clone()).or_default().deletes.insert(uid.to_owned(), (name.to_owned(), at));
    }
    /// The object appeared, or will not.
    pub fn observed_create(&self, key: &Key, name: &str) {
        self.edit(key, |p| {
            p.creates.remove(name);
        });
    }
    /// The object is gone or going, or will stay.
    pub fn observed_delete(&self, key: &Key, uid: &str) {
        self.edit(key, |p| {
            p.deletes.remove(uid);
        });
    }
    /// The answer to a create was lost.
    pub fn lost_create(&self, key: &Key, name: &str) {
        let at = Instant::now() + CHECK_AFTER_LOST;
        self.edit(key, |p| {
            p.creates.entry(name.to_owned()).and_modify(|due| *due = at);
        });
    }
    /// The answer to a delete was lost.
    pub fn lost_delete(&self, key: &Key, uid: &str) {
        let at = Instant::now() + CHECK_AFTER_LOST;
        self.edit(key, |p| {
            p.deletes.entry(uid.to_owned()).and_modify(|(_, due)| *due = at);
        });
    }
    /// The owner is gone.
    pub fn forget(&self, key: &Key) {
        self.inner.lock().remove(key);
    }

    fn edit(&self, key: &Key, f: impl FnOnce(&mut Pending)) {
        let mut inner = self.inner.lock();
        let Some(pending) = inner.get_mut(key) else { return };
        f(pending);
        if pending.creates.is_empty() && pending.deletes.is_empty() {
            inner.remove(key);
        }
    }

    /// Whether to act, wait or look.
    pub fn state(&self, key: &Key) -> State {
        self.state_at(key, Instant::now())
    }

    fn state_at(&self, key: &Key, now: Instant) -> State {
        let inner = self.inner.lock();
        let Some(pending) = inner.get(key) else { return State::Satisfied };
        let mut creates: Vec<String> =
            pending.creates.iter().filter(|(_, at)| **at <= now).map(|(n, _)| n.clone()).collect();
        let mut deletes: Vec<(String, String)> = pending
            .deletes
            .iter()
            .filter(|(_, (_, at))| *at <= now)
            .map(|(u, (n, _))| (n.clone(), u.clone()))
            .collect();
        if !creates.is_empty() || !deletes.is_empty() {
            creates.sort();
            deletes.sort();
            return State::Overdue { creates, deletes };
        }
        let due = pending.creates.values().chain(pending.deletes.values().map(|(_, at)| at)).min();
        due.map_or(State::Satisfied, |at| State::Waiting(*at - now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_is_waited_for() {
        let e = Expectations::default();
        let key = Key::new("ns", "rs");
        assert_eq!(e.state(&key), State::Satisfied);
        e.expect_create(&key, "a");
        e.expect_delete(&key, "b", "uid-b");
        assert!(matches!(e.state(&key), State::Waiting(d) if d <= CHECK_AFTER));
        e.observed_create(&key, "other");
        e.observed_create(&key, "a");
        assert!(matches!(e.state(&key), State::Waiting(_)));
        e.observed_delete(&key, "uid-b");
        assert_eq!(e.state(&key), State::Satisfied);
        assert!(e.inner.lock().is_empty(), "nothing is kept for satisfied keys");
    }

    #[test]
    fn what_stays_unseen_is_looked_up() {
        let e = Expectations::default();
        let key = Key::new("ns", "rs");
        e.expect_create(&key, "a");
        e.expect_create(&key, "b");
        e.lost_create(&key, "b");
        let now = Instant::now() + CHECK_AFTER_LOST;
        assert_eq!(e.state_at(&key, now), State::Overdue { creates: vec!["b".into()], deletes: vec![] });
        assert_eq!(
            e.state_at(&key, now + CHECK_AFTER),
            State::Overdue { creates: vec!["a".into(), "b".into()], deletes: vec![] }
        );
        e.forget(&key);
        assert_eq!(e.state(&key), State::Satisfied);
    }
}
