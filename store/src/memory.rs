//! The store in memory: for tests and for throw-away servers.
//!
//! One mutex over an ordered map and a history of writes with their previous values; reads at an older revision undo
//! the newer writes. Nothing is durable and nothing is ever written to disk.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::history::{now_ms, readable, watchable};
use crate::hub::Hub;
use crate::{Error, Event, HistoryBounds, KeyValue, ListRequest, Page, Result, Revision, Store, Watch, check_size};

/// A write that can be replayed and undone.
struct Record {
    event: Event,
    previous: Option<KeyValue>,
    bytes: u64,
    at_ms: u64,
}

#[derive(Clone)]
struct Entry {
    value: Bytes,
    create_revision: Revision,
    mod_revision: Revision,
}

impl Entry {
    fn key_value(&self, key: &str) -> KeyValue {
        KeyValue {
            key: key.to_owned(),
            value: self.value.clone(),
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
        }
    }
}

#[derive(Default)]
struct State {
    revision: Revision,
    compacted: Revision,
    keys: BTreeMap<String, Entry>,
    /// Every write in `(compacted, revision]`, oldest first.
    history: VecDeque<Record>,
    history_bytes: u64,
}

/// The store; see the module's description.
pub struct MemoryStore {
    state: Mutex<State>,
    hub: Hub,
    bounds: HistoryBounds,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store with default bounds.
    pub fn new() -> Self {
        Self::with_bounds(HistoryBounds::default())
    }

    /// An empty store that keeps this much history.
    pub fn with_bounds(bounds: HistoryBounds) -> Self {
        Self { state: Mutex::new(State::default()), hub: Hub::new(0), bounds }
    }

    /// Applies one write that was decided on; `write` gets the new revision. Publishing happens under the state's lock,
    /// so watchers see writes in revision order.
    fn commit(
        &self,
        state: &mut State,
        write: impl FnOnce(&mut State, Revision) -> (Event, Option<KeyValue>),
    ) -> Revision {
        state.revision += 1;
        let revision = state.revision;
        let (event, previous) = write(state, revision);
        let bytes = match &event {
            Event::Put(kv) => kv.key.len() + kv.value.len(),
            Event::Delete { key, .. } => key.len(),
        } as u64;
        state.history_bytes += bytes;
        state.history.push_back(Record { event: event.clone(), previous, bytes, at_ms: now_ms() });
        state.trim(&self.bounds);
        self.hub.publish(&[event], revision);
        revision
    }
}

impl State {
    fn trim(&mut self, bounds: &HistoryBounds) {
        let max_age_ms = u64::try_from(bounds.max_age.as_millis()).unwrap_or(u64::MAX);
        let oldest_ms = now_ms().saturating_sub(max_age_ms);
        while let Some(first) = self.history.front() {
            let over = self.history.len() as u64 > bounds.max_events || self.history_bytes > bounds.max_bytes;
            if !over && first.at_ms >= oldest_ms {
                break;
            }
            self.forget(first.event.revision());
        }
    }

    fn forget(&mut self, revision: Revision) {
        while let Some(first) = self.history.front()
            && first.event.revision() <= revision
        {
            self.history_bytes -= first.bytes;
            self.history.pop_front();
        }
        self.compacted = self.compacted.max(revision);
    }

    /// What differs from the present at `at`: key to its value then.
    fn undo(&self, at: Revision) -> BTreeMap<&str, Option<&KeyValue>> {
        let mut then = BTreeMap::new();
        for record in self.history.iter().rev().take_while(|record| record.event.revision() > at) {
            then.insert(record.event.key(), record.previous.as_ref());
        }
        then
    }

    fn list(&self, request: &ListRequest<'_>, at: Revision) -> Page {
        let undone = self.undo(at);
        let start = match request.start_after {
            Some(after) if after >= request.prefix => Bound::Excluded(after),
            _ => Bound::Included(request.prefix),
        };
        let wanted = |key: &str| key.starts_with(request.prefix);
        let now = self.keys.range::<str, _>((start, Bound::Unbounded)).take_while(|(key, _)| wanted(key));
        let mut items: BTreeMap<&str, KeyValue> = now
            .filter(|(key, _)| !undone.contains_key(key.as_str()))
            .map(|(key, entry)| (key.as_str(), entry.key_value(key)))
            .collect();
        let then = undone.range::<str, _>((start, Bound::Unbounded)).take_while(|(key, _)| wanted(key));
        items.extend(then.filter_map(|(key, kv)| kv.map(|kv| (*key, kv.clone()))));
        let matching = items.len();
        let limit = if request.limit == 0 { matching } else { request.limit };
        let items: Vec<KeyValue> = items.into_values().take(limit).collect();
        Page { remaining: (matching - items.len()) as u64, items, revision: at }
    }

    /// The entry if its revision is `expected`.
    fn expect(&self, key: &str, expected: Revision) -> Result<KeyValue> {
        let current = self.keys.get(key).map(|entry| entry.key_value(key));
        match current {
            Some(current) if current.mod_revision == expected => Ok(current),
            other => Err(Error::Conflict(other)),
        }
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision)> {
        let state = self.state.lock();
        Ok((state.keys.get(key).map(|entry| entry.key_value(key)), state.revision))
    }

    async fn list(&self, request: ListRequest<'_>) -> Result<Page> {
        let state = self.state.lock();
        let at = readable(request.at, state.compacted, state.revision)?;
        Ok(state.list(&request, at))
    }

    async fn create(&self, key: &str, value: Bytes) -> Result<Revision> {
        check_size(key, &value)?;
        let mut state = self.state.lock();
        if state.keys.contains_key(key) {
            return Err(Error::Exists);
        }
        Ok(self.commit(&mut state, |state, revision| {
            let entry = Entry { value, create_revision: revision, mod_revision: revision };
            let event = Event::Put(entry.key_value(key));
            state.keys.insert(key.to_owned(), entry);
            (event, None)
        }))
    }

    async fn update(&self, key: &str, value: Bytes, expected: Revision) -> Result<Revision> {
        check_size(key, &value)?;
        let mut state = self.state.lock();
        let previous = state.expect(key, expected)?;
        Ok(self.commit(&mut state, |state, revision| {
            let entry = Entry { value, create_revision: previous.create_revision, mod_revision: revision };
            let event = Event::Put(entry.key_value(key));
            state.keys.insert(key.to_owned(), entry);
            (event, Some(previous))
        }))
    }

    async fn delete(&self, key: &str, expected: Revision) -> Result<Revision> {
        let mut state = self.state.lock();
        let previous = state.expect(key, expected)?;
        Ok(self.commit(&mut state, |state, revision| {
            state.keys.remove(key);
            (Event::Delete { key: key.to_owned(), revision }, Some(previous))
        }))
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch> {
        // The state's lock keeps writers out between the subscription and the replay.
        let state = self.state.lock();
        watchable(from, state.compacted)?;
        let (subscription, _) = self.hub.subscribe(prefix, from);
        let wanted = |event: &&Event| event.revision() >= from && event.key().starts_with(prefix);
        let replay = state.history.iter().map(|record| &record.event).filter(wanted);
        Ok(subscription.after(replay.cloned().collect()))
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        let mut state = self.state.lock();
        if revision > state.revision {
            return Err(Error::Future { requested: revision, current: state.revision });
        }
        state.forget(revision);
        Ok(())
    }
}
