//! Pods that wait for a node.
//!
//! A pod is ready to be tried (`active`, by priority and then by age), waiting out a failure (`backoff`), hopeless until
//! something changes (`unschedulable`), held back by its gates (`gated`), or being tried (`in flight`). A change in the
//! cluster wakes only those it may help. A pod that fails makes room for the next at once: one bad pod blocks nobody.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::framework::Events;
use crate::pod::PodInfo;

/// Wait after the first failure (upstream's `podInitialBackoffSeconds`); it doubles…
pub const INITIAL_BACKOFF: Duration = Duration::from_secs(1);
/// …up to this (upstream's `podMaxBackoffSeconds`).
pub const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// A pod that nothing woke for this long is tried again, in case a hint was missing (upstream's
/// `podMaxInUnschedulablePodsDuration`).
pub const MAX_UNSCHEDULABLE: Duration = Duration::from_secs(300);

/// Order of the ready ones: priority, then who came first.
type Rank = (Reverse<i32>, u64);

/// Where a pod is; see the module's description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Active(Rank),
    /// Until then.
    Backoff(Instant, u64),
    Unschedulable,
    Gated,
    /// What has changed in the meantime.
    InFlight(Events),
}

struct Entry {
    pod: Arc<PodInfo>,
    place: Place,
    attempts: u32,
    /// When it failed last.
    failed_at: Instant,
    /// What may help, as of its last failure.
    woken_by: Events,
}

/// How many pods are where, for metrics (`scheduler_pending_pods{queue}`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Ready to be tried.
    pub active: usize,
    /// Waiting out a failure.
    pub backoff: usize,
    /// Waiting for a change.
    pub unschedulable: usize,
    /// Held back by `schedulingGates`.
    pub gated: usize,
}

/// See the module's description.
#[derive(Default)]
pub struct Queue {
    entries: HashMap<String, Entry>,
    active: BTreeSet<(Rank, String)>,
    backoff: BTreeSet<(Instant, u64, String)>,
    unschedulable: HashSet<String>,
    gated: HashSet<String>,
    in_flight: HashSet<String>,
    /// Numbers arrivals.
    sequence: u64,
}

fn backoff_after(attempts: u32) -> Duration {
    let factor = 2_u32.saturating_pow(attempts.saturating_sub(1));
    INITIAL_BACKOFF.saturating_mul(factor).min(MAX_BACKOFF)
}

impl Queue {
    /// Takes an entry out of the set of its place.
    fn unlink(&mut self, uid: &str) {
        let Some(entry) = self.entries.get(uid) else { return };
        match entry.place {
            Place::Active(rank) => drop(self.active.remove(&(rank, uid.to_owned()))),
            Place::Backoff(until, number) => drop(self.backoff.remove(&(until, number, uid.to_owned()))),
            Place::Unschedulable => drop(self.unschedulable.remove(uid)),
            Place::Gated => drop(self.gated.remove(uid)),
            Place::InFlight(_) => drop(self.in_flight.remove(uid)),
        }
    }

    /// Puts an entry into a place and into the set of it.
    fn link(&mut self, uid: &str, place: Place) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.place = place;
        let uid = uid.to_owned();
        match place {
            Place::Active(rank) => drop(self.active.insert((rank, uid))),
            Place::Backoff(until, number) => drop(self.backoff.insert((until, number, uid))),
            Place::Unschedulable => drop(self.unschedulable.insert(uid)),
            Place::Gated => drop(self.gated.insert(uid)),
            Place::InFlight(_) => drop(self.in_flight.insert(uid)),
        }
    }

    fn relocate(&mut self, uid: &str, place: Place) {
        self.unlink(uid);
        self.link(uid, place);
    }

    fn next_number(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    fn activate(&mut self, uid: &str) {
        let number = self.next_number();
        let Some(priority) = self.entries.get(uid).map(|entry| entry.pod.priority) else { return };
        self.relocate(uid, Place::Active((Reverse(priority), number)));
    }

    /// Ready, unless a failure is too fresh.
    fn requeue(&mut self, uid: &str, now: Instant) {
        let Some(entry) = self.entries.get(uid) else { return };
        let until = entry.failed_at + backoff_after(entry.attempts);
        if entry.attempts > 0 && until > now {
            let number = self.next_number();
            self.relocate(uid, Place::Backoff(until, number));
        } else {
            self.activate(uid);
        }
    }

    /// A pod without a node was added or changed.
    pub fn put(&mut self, pod: Arc<PodInfo>, now: Instant) {
        let uid = pod.uid.clone();
        let Some(entry) = self.entries.get_mut(&uid) else {
            let place = Place::Gated;
            let gated = pod.gated;
            let entry = Entry { pod, place, attempts: 0, failed_at: now, woken_by: Events::ALL };
            self.entries.insert(uid.clone(), entry);
            self.link(&uid, Place::Gated);
            if !gated {
                self.activate(&uid);
            }
            return;
        };
        let old = std::mem::replace(&mut entry.pod, pod);
        let changed = old.class != entry.pod.class || old.labels != entry.pod.labels;
        let (gated, reordered) = (entry.pod.gated, old.priority != entry.pod.priority);
        match entry.place {
            Place::Gated if !gated => self.activate(&uid),
            Place::Unschedulable if changed => self.requeue(&uid, now),
            Place::InFlight(_) if changed => entry.place = Place::InFlight(Events::ALL),
            Place::Active(_) if reordered => self.activate(&uid),
            _ => {}
        }
    }

    /// A pod is gone, has a node, or is nobody's business any more.
    pub fn remove(&mut self, uid: &str) {
        self.unlink(uid);
        self.entries.remove(uid);
    }

    /// Whether the pod is in it, in flight included.
    pub fn contains(&self, uid: &str) -> bool {
        self.entries.contains_key(uid)
    }

    /// The next pod to try; it is in flight from then on.
    pub fn pop(&mut self, now: Instant) -> Option<Arc<PodInfo>> {
        self.ripen(now);
        let uid = self.active.first().map(|(_, uid)| uid.clone())?;
        self.relocate(&uid, Place::InFlight(Events::NONE));
        let entry = self.entries.get_mut(&uid)?;
        entry.attempts = entry.attempts.saturating_add(1);
        Some(entry.pod.clone())
    }

    /// Whether [`Queue::pop`] would give one.
    pub fn is_ready(&self, now: Instant) -> bool {
        !self.active.is_empty() || self.backoff.first().is_some_and(|(until, _, _)| *until <= now)
    }

    /// When the next backoff ends.
    pub fn next_due(&self) -> Option<Instant> {
        self.backoff.first().map(|(until, _, _)| *until)
    }

    fn ripen(&mut self, now: Instant) {
        while let Some((_, _, uid)) = self.backoff.first().filter(|(until, _, _)| *until <= now) {
            let uid = uid.clone();
            self.activate(&uid);
        }
    }

    /// No node would do for a pod in flight; it waits for one of the changes `woken_by`. If one came while it was tried, it
    /// only waits out its backoff.
    pub fn unschedulable(&mut self, uid: &str, woken_by: Events, now: Instant) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let Place::InFlight(seen) = entry.place else { return };
        (entry.failed_at, entry.woken_by) = (now, woken_by);
        if seen.intersects(woken_by) {
            self.requeue(uid, now);
        } else {
            self.relocate(uid, Place::Unschedulable);
        }
    }

    /// Something else went wrong with a pod in flight; it is tried again after a backoff.
    pub fn retry(&mut self, uid: &str, now: Instant) {
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.failed_at = now;
            self.requeue(uid, now);
        }
    }

    /// Something changed.
    pub fn wake(&mut self, events: Events, now: Instant) {
        if events.is_empty() {
            return;
        }
        for uid in &self.in_flight {
            if let Some(Entry { place: Place::InFlight(seen), .. }) = self.entries.get_mut(uid) {
                *seen = *seen | events;
            }
        }
        let helped = |uid: &&String| self.entries.get(*uid).is_some_and(|entry| entry.woken_by.intersects(events));
        let mut woken: Vec<String> = self.unschedulable.iter().filter(helped).cloned().collect();
        // By age among equals: sets have no order of their own.
        woken.sort_by_key(|uid| self.entries.get(uid).map(|entry| entry.failed_at));
        woken.iter().for_each(|uid| self.requeue(uid, now));
    }

    /// Gives those another try that nothing woke for long.
    pub fn flush(&mut self, now: Instant) {
        let stale = |uid: &&String| {
            self.entries.get(*uid).is_some_and(|entry| now.duration_since(entry.failed_at) >= MAX_UNSCHEDULABLE)
        };
        let woken: Vec<String> = self.unschedulable.iter().filter(stale).cloned().collect();
        woken.iter().for_each(|uid| self.requeue(uid, now));
    }

    /// All pods in it.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<PodInfo>> {
        self.entries.values().map(|entry| &entry.pod)
    }

    /// The same by UID.
    pub fn uids(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    /// How many are where.
    pub fn counts(&self) -> Counts {
        Counts {
            active: self.active.len(),
            backoff: self.backoff.len(),
            unschedulable: self.unschedulable.len(),
            gated: self.gated.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plugins::testing::pod;

    fn put(queue: &mut Queue, name: &str, more: Value, now: Instant) {
        queue.put(Arc::new(pod(name, more)), now);
    }

    fn names(queue: &mut Queue, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| queue.pop(now).map(|pod| pod.name.clone())).collect()
    }

    #[test]
    fn priority_comes_first_then_age() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        put(&mut queue, "old", json!({}), now);
        put(&mut queue, "urgent", json!({"spec": {"priority": 10}}), now);
        put(&mut queue, "new", json!({}), now);
        put(&mut queue, "idle", json!({"spec": {"priority": -1}}), now);
        assert_eq!(names(&mut queue, now), ["urgent", "old", "new", "idle"]);
    }

    #[test]
    fn a_failed_pod_waits_for_what_may_help() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        put(&mut queue, "p", json!({}), now);
        queue.pop(now).unwrap();
        queue.unschedulable("p", Events::NODE_ADDED, now);
        assert_eq!(queue.counts(), Counts { unschedulable: 1, ..Counts::default() });
        queue.wake(Events::POD_REMOVED, now);
        assert_eq!(queue.counts().unschedulable, 1, "that does not help");
        queue.wake(Events::NODE_ADDED, now);
        assert_eq!(queue.counts(), Counts { backoff: 1, ..Counts::default() }, "it failed just now");
        assert!(queue.pop(now).is_none());
        assert_eq!(queue.next_due(), Some(now + INITIAL_BACKOFF));
        assert_eq!(names(&mut queue, now + INITIAL_BACKOFF), ["p"]);
    }

    #[test]
    fn a_change_while_in_flight_is_not_missed() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        put(&mut queue, "p", json!({}), now);
        queue.pop(now).unwrap();
        queue.wake(Events::NODE_ADDED, now);
        queue.unschedulable("p", Events::NODE_ADDED, now);
        assert_eq!(queue.counts().backoff, 1);
    }

    #[test]
    fn backoff_doubles_up_to_its_bound() {
        let (mut queue, mut now) = (Queue::default(), Instant::now());
        put(&mut queue, "p", json!({}), now);
        let mut waits = Vec::new();
        for _ in 0..6 {
            queue.pop(now).unwrap();
            queue.retry("p", now);
            waits.push((queue.next_due().unwrap() - now).as_secs());
            now = queue.next_due().unwrap();
        }
        assert_eq!(waits, [1, 2, 4, 8, 10, 10]);
    }

    #[test]
    fn a_bad_pod_does_not_block_others() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        put(&mut queue, "bad", json!({"spec": {"priority": 1000}}), now);
        put(&mut queue, "good", json!({}), now);
        assert_eq!(queue.pop(now).unwrap().name, "bad");
        queue.unschedulable("bad", Events::NODE_ADDED, now);
        assert_eq!(names(&mut queue, now), ["good"]);
    }

    #[test]
    fn gated_pods_wait_for_their_gates() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        put(&mut queue, "p", json!({"spec": {"schedulingGates": [{"name": "quota"}]}}), now);
        assert_eq!(queue.counts(), Counts { gated: 1, ..Counts::default() });
        queue.wake(Events::ALL, now);
        assert!(queue.pop(now).is_none());
        put(&mut queue, "p", json!({}), now);
        assert_eq!(names(&mut queue, now), ["p"]);
    }

    #[test]
    fn forgotten_pods_are_tried_again_in_the_end() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        put(&mut queue, "p", json!({}), now);
        queue.pop(now).unwrap();
        queue.unschedulable("p", Events::NONE, now);
        queue.flush(now + MAX_UNSCHEDULABLE - Duration::from_secs(1));
        assert_eq!(queue.counts().unschedulable, 1);
        queue.flush(now + MAX_UNSCHEDULABLE);
        assert_eq!(names(&mut queue, now + MAX_UNSCHEDULABLE), ["p"]);
    }

    #[test]
    fn a_changed_pod_is_tried_again() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        put(&mut queue, "p", json!({}), now);
        queue.pop(now).unwrap();
        queue.unschedulable("p", Events::NONE, now);
        put(&mut queue, "p", json!({}), now);
        assert_eq!(queue.counts().unschedulable, 1, "nothing changed");
        put(&mut queue, "p", json!({"metadata": {"labels": {"a": "b"}}}), now);
        assert_eq!(queue.counts().backoff, 1);
        queue.remove("p");
        assert_eq!(queue.counts(), Counts::default());
        assert!(queue.entries.is_empty());
    }
}
