//! Watch fan-out shared by the stores that hold their own history.
//!
//! A store publishes each committed batch once; the hub hands every watcher the events under its prefix, in order. It
//! never blocks the publisher: a watcher that falls behind by more than a bound is cut off and told so. It keeps no
//! history; replay is the store's business (see [`Hub::subscribe`]'s contract).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::{Error, Event, Revision, Watch, WatchItem};

/// A watcher with more undelivered events than this is cut off: it costs memory that nobody reads.
pub(crate) const MAX_UNDELIVERED_EVENTS: usize = 50_000;
/// The same in bytes of keys and values.
pub(crate) const MAX_UNDELIVERED_BYTES: usize = 64 << 20;
/// A watcher is told the store's revision at least this often while no event comes its way.
pub(crate) const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// What a watcher has yet to read, shared by both ends of its queue.
#[derive(Default)]
struct Backlog {
    events: AtomicUsize,
    bytes: AtomicUsize,
    /// Events outstanding at the moment the watcher was cut off; 0 while it is fine.
    cut_off_at: AtomicUsize,
}

struct Watcher {
    prefix: String,
    from: Revision,
    queue: mpsc::UnboundedSender<Vec<Event>>,
    backlog: Arc<Backlog>,
}

/// The live half of a watch: what was published after [`Hub::subscribe`].
pub(crate) struct Subscription {
    queue: mpsc::UnboundedReceiver<Vec<Event>>,
    backlog: Arc<Backlog>,
    published: watch::Receiver<Revision>,
    /// Highest revision this watcher knows to be complete.
    reported: Revision,
}

/// All watchers of one store.
pub(crate) struct Hub {
    watchers: Mutex<Vec<Watcher>>,
    published: watch::Sender<Revision>,
}

fn event_bytes(event: &Event) -> usize {
    match event {
        Event::Put(kv) => kv.key.len() + kv.value.len(),
        Event::Delete { key, .. } => key.len(),
    }
}

/// Ends a stream of watch items after its first error, as the seam promises.
pub(crate) fn until_error(items: impl Stream<Item = Result<WatchItem, Error>> + Send + 'static) -> Watch {
    stream::unfold(Some(Box::pin(items)), |state| async move {
        let mut items = state?;
        let item = items.next().await?;
        let rest = item.is_ok().then_some(items);
        Some((item, rest))
    })
    .boxed()
}

impl Hub {
    /// A hub whose store is at `revision`.
    pub(crate) fn new(revision: Revision) -> Self {
        Self { watchers: Mutex::new(Vec::new()), published: watch::Sender::new(revision) }
    }

    /// The revision up to which everything was published.
    pub(crate) fn revision(&self) -> Revision {
        *self.published.borrow()
    }

    /// Starts a live watch of events with `revision >= from` and returns the revision it starts after: the caller
    /// replays everything up to that one from its history, and the subscription continues without a gap or an overlap.
    pub(crate) fn subscribe(&self, prefix: &str, from: Revision) -> (Subscription, Revision) {
        let (sender, queue) = mpsc::unbounded_channel();
        let backlog = Arc::new(Backlog::default());
        let mut watchers = self.watchers.lock();
        // Publishing holds the same lock, so this revision is exactly what the queue will continue from.
        let revision = self.revision();
        watchers.push(Watcher { prefix: prefix.to_owned(), from, queue: sender, backlog: backlog.clone() });
        let published = self.published.subscribe();
        (Subscription { queue, backlog, published, reported: revision }, revision)
    }

    /// Hands out events that are durable. `events` are in revision order and end at `revision`.
    pub(crate) fn publish(&self, events: &[Event], revision: Revision) {
        let mut watchers = self.watchers.lock();
        watchers.retain(|watcher| watcher.offer(events));
        // After the queues: a reader that sees this revision and an empty queue has everything up to it.
        self.published.send_replace(revision);
    }

    /// Ends every watch and starts anew at `revision`: what lies between is gone.
    pub(crate) fn reset(&self, revision: Revision) {
        let mut watchers = self.watchers.lock();
        watchers.clear();
        self.published.send_replace(revision);
    }

    /// Whether anybody watches.
    pub(crate) fn is_watched(&self) -> bool {
        self.watchers.lock().iter().any(|watcher| !watcher.queue.is_closed())
    }

    /// Ends every watch: the store is closing.
    pub(crate) fn close(&self) {
        self.watchers.lock().clear();
    }
}

impl Watcher {
    /// Queues what matches; false when the watcher is gone or cut off.
    fn offer(&self, events: &[Event]) -> bool {
        if self.queue.is_closed() {
            return false;
        }
        let matching: Vec<Event> = events
            .iter()
            .filter(|event| event.revision() >= self.from && event.key().starts_with(&self.prefix))
            .cloned()
            .collect();
        if matching.is_empty() {
            return true;
        }
        let bytes = matching.iter().map(event_bytes).sum::<usize>();
        let events_waiting = self.backlog.events.fetch_add(matching.len(), Ordering::AcqRel) + matching.len();
        let bytes_waiting = self.backlog.bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        // A single oversized batch is let through when nothing else waits, or it could never be delivered.
        let alone = events_waiting == matching.len();
        if !alone && (events_waiting > MAX_UNDELIVERED_EVENTS || bytes_waiting > MAX_UNDELIVERED_BYTES) {
            self.backlog.cut_off_at.store(events_waiting, Ordering::Release);
            return false;
        }
        self.queue.send(matching).is_ok()
    }
}

impl Subscription {
    /// The next item; `None` when the store closed.
    async fn next(&mut self) -> Option<Result<WatchItem, Error>> {
        loop {
            if let Some(item) = self.try_next() {
                return Some(item);
            }
            let changed = tokio::select! {
                biased;
                batch = self.queue.recv() => return batch.map(|batch| Ok(self.deliver(batch))).or_else(|| self.cut_off()),
                changed = tokio::time::timeout(PROGRESS_INTERVAL, self.published.changed()) => changed,
            };
            if changed.is_err() {
                return Some(Ok(WatchItem::Progress(self.reported)));
            }
        }
    }

    /// What can be said without waiting.
    fn try_next(&mut self) -> Option<Result<WatchItem, Error>> {
        // Read before the queue is found empty: see `Hub::publish`.
        let published = *self.published.borrow_and_update();
        if self.backlog.cut_off_at.load(Ordering::Acquire) > 0 {
            return self.cut_off();
        }
        match self.queue.try_recv() {
            Ok(batch) => Some(Ok(self.deliver(batch))),
            Err(mpsc::error::TryRecvError::Empty) if published > self.reported => {
                self.reported = published;
                Some(Ok(WatchItem::Progress(published)))
            }
            Err(_) => None,
        }
    }

    fn deliver(&mut self, batch: Vec<Event>) -> WatchItem {
        self.backlog.events.fetch_sub(batch.len(), Ordering::AcqRel);
        self.backlog.bytes.fetch_sub(batch.iter().map(event_bytes).sum(), Ordering::AcqRel);
        self.reported = self.reported.max(batch.last().map_or(0, Event::revision));
        WatchItem::Events(batch)
    }

    fn cut_off(&self) -> Option<Result<WatchItem, Error>> {
        match self.backlog.cut_off_at.load(Ordering::Acquire) {
            0 => Some(Err(Error::Unavailable("the store is closing".to_owned()))),
            waiting => Some(Err(Error::SlowWatcher(waiting))),
        }
    }

    /// The live half alone as a stream that ends after its first error.
    pub(crate) fn into_stream(self) -> BoxStream<'static, Result<WatchItem, Error>> {
        stream::unfold(Some(self), |state| async move {
            let mut subscription = state?;
            let item = subscription.next().await?;
            let rest = item.is_ok().then_some(subscription);
            Some((item, rest))
        })
        .boxed()
    }

    /// Puts a replay that is already in memory in front.
    pub(crate) fn after(self, replay: Vec<Event>) -> Watch {
        let mut batches = VecDeque::new();
        if !replay.is_empty() {
            batches.push_back(Ok(WatchItem::Events(replay)));
        }
        stream::iter(batches).chain(self.into_stream()).boxed()
    }
}
