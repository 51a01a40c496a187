//! WATCH: a place in the cache's shared history, turned into a stream of events.
//!
//! A watcher buffers at most one batch. It never holds events back for a slow client: who falls out of the history gets
//! a 410 event and lists again. Every stream ends by itself, at the latest after [`MAX_DURATION`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use http::{Response, StatusCode};
use scaleup_store::Revision;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::storage::cache_error;
use super::{Context, read, served};
use crate::cache::{CacheEvent, Cached, EventType, Missed, Subscription, encode, topic_for};
use crate::error::ApiError;
use crate::negotiate::{Format, OFFERED, View};
use crate::present::{partial, table};
use crate::registry::Storage;
use crate::request::ListOptions;

/// Events encoded at a time.
const BATCH_EVENTS: usize = 64;
/// Bytes of initial objects sent at a time.
const BATCH_BYTES: usize = 64 * 1024;
/// How often bookmarks are sent, as upstream.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(60);
/// How long before the end the last bookmark is sent.
const LAST_BOOKMARK_AHEAD: Duration = Duration::from_secs(2);
/// A watch without a timeout lasts between this and twice this, as upstream's `--min-request-timeout`.
const MIN_DURATION: Duration = Duration::from_secs(1800);
/// No watch lasts longer.
const MAX_DURATION: Duration = Duration::from_secs(6 * 3600);
/// Annotation of the bookmark that ends the initial events.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// Where a watch starts.
enum Start {
    /// With the present objects as ADDED events, perhaps followed by a bookmark that says so.
    Present { bookmark: bool },
    /// With what comes after the present.
    Now,
    /// With what came after a revision.
    After(Revision),
}

/// The answer to a watch.
pub async fn watch(cx: Context) -> Result<Response<Body>, ApiError> {
    let options = ListOptions::parse(&cx.query, true)?;
    read::check_fields(&cx.resolved.resource, &options)?;
    if cx.accepted.format != Format::Json {
        return Err(ApiError::not_acceptable(&OFFERED[..1]));
    }
    served::include(&cx)?;
    let version = options.version.unwrap_or(0);
    let start = match (options.send_initial_events, version) {
        (Some(true), _) => Start::Present { bookmark: options.bookmarks },
        (Some(false), 0) => Start::Now,
        (None, 0) => Start::Present { bookmark: false },
        (_, after) => Start::After(after),
    };
    let waited = match options.version {
        None => cx.server.caches.catch_up().await,
        Some(version) => cx.server.caches.wait_for(version).await,
    };
    let watcher = match waited.map_err(cache_error) {
        Ok(()) => Watcher::start(&cx, options, start)?,
        // Once the request is known to be good, failures are events, as upstream's `newErrWatcher`.
        Err(error) => Watcher::failed(&cx, options, &error)?,
    };
    let shutdown = cx.draining.clone();
    let events = stream::unfold(watcher, move |mut watcher| {
        let shutdown = shutdown.clone();
        async move {
            let next = shutdown.run_until_cancelled(watcher.next()).await.flatten()?;
            Some((Ok::<_, std::convert::Infallible>(next), watcher))
        }
    });
    Ok(served::respond(&cx, StatusCode::OK, Body::from_stream(events)))
}

/// One watch. Phases: the present objects, then live events, then (after an error or at the deadline) the end.
struct Watcher {
    view: Presenter,
    options: ListOptions,
    /// `None` if there is nothing to follow: only what is pending is sent.
    subscription: Option<Subscription>,
    caches: Arc<crate::cache::Caches>,
    /// Present objects not sent yet.
    initial: std::vec::IntoIter<Arc<Cached>>,
    /// The bookmark to send after them.
    initial_end: Option<Revision>,
    pending: VecDeque<Bytes>,
    /// The stream ends once nothing is pending.
    ending: bool,
    next_bookmark: Option<Instant>,
    deadline: Instant,
}

impl Watcher {
    fn start(cx: &Context, options: ListOptions, start: Start) -> Result<Self, ApiError> {
        let row = &cx.resolved.resource;
        let namespace = cx.resolved.namespace.as_str();
        let cache = read::cache_of(cx, row)?;
        let topic = topic_for(cache, row.namespaced(), namespace, &options.fields);
        let progress = cx.server.caches.progress();
        let mut watcher = Self::new(cx, options)?;
        match start {
            Start::After(revision) => match cache.subscribe(topic, revision) {
                Ok(subscription) => watcher.subscription = Some(subscription),
                Err(missed) => watcher.end_with(&too_old(Some(revision), missed)),
            },
            Start::Now => watcher.subscription = Some(cache.subscribe_with_snapshot(topic, "", progress, &|_| false).1),
            Start::Present { bookmark } => {
                let matches = |o: &Cached| read::matches(&watcher.options, o);
                let (present, subscription) = cache.subscribe_with_snapshot(topic, namespace, progress, &matches);
                watcher.subscription = Some(subscription);
                watcher.initial = present.items.into_iter();
                watcher.initial_end = bookmark.then_some(present.revision);
            }
        }
        Ok(watcher)
    }

    fn failed(cx: &Context, options: ListOptions, error: &ApiError) -> Result<Self, ApiError> {
        let mut watcher = Self::new(cx, options)?;
        watcher.end_with(error);
        Ok(watcher)
    }

    fn new(cx: &Context, options: ListOptions) -> Result<Self, ApiError> {
        let now = Instant::now();
        let lasts = match options.timeout_s {
            Some(seconds) => Duration::from_secs(seconds).min(MAX_DURATION),
            None => MIN_DURATION.mul_f64(1.0 + rand::random::<f64>()),
        };
        Ok(Self {
            view: Presenter::new(cx)?,
            next_bookmark: options.bookmarks.then(|| bookmark_at(now, now + lasts)),
            options,
            subscription: None,
            caches: cx.server.caches.clone(),
            initial: Vec::new().into_iter(),
            initial_end: None,
            pending: VecDeque::new(),
            ending: false,
            deadline: now + lasts,
        })
    }

    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.pending.pop_front() {
                return Some(frame);
            }
            if self.ending {
                return None;
            }
            if let Some(bytes) = self.initial_batch() {
                return Some(bytes);
            }
            if let Some(revision) = self.initial_end.take() {
                return Some(self.view.bookmark(revision, true));
            }
            self.live().await;
        }
    }

    /// Some of the present objects as ADDED events.
    fn initial_batch(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        while out.len() < BATCH_BYTES {
            let Some(object) = self.initial.next() else { break };
            out.extend_from_slice(&self.view.present(EventType::Added, &object.json));
        }
        (!out.is_empty()).then(|| Bytes::from(out))
    }

    /// Waits for events, the next bookmark or the end, and makes pending what is to be sent.
    async fn live(&mut self) {
        let Some(subscription) = self.subscription.as_mut() else {
            self.ending = true;
            return;
        };
        let waker = subscription.waker();
        let mut woken = std::pin::pin!(waker.woken());
        woken.as_mut().enable();
        // Read before the events: whatever is in here by then has been delivered once the read finds no more.
        let progress = self.caches.progress();
        let mut events: Vec<Arc<CacheEvent>> = Vec::new();
        match subscription.read(BATCH_EVENTS, &mut events) {
            Err(missed) => self.end_with(&too_old(None, missed)),
            Ok(0) => {
                let until = self.next_bookmark.unwrap_or(self.deadline).min(self.deadline);
                tokio::select! {
                    () = woken => {}
                    () = tokio::time::sleep_until(until) => self.timer(progress),
                }
            }
            Ok(_) => self.encode(&events),
        }
    }

    fn encode(&mut self, events: &[Arc<CacheEvent>]) {
        for event in events {
            if let Some(kind) = event.seen_by(|o| read::matches(&self.options, o)) {
                self.pending.push_back(self.view.event(event, kind));
            }
        }
    }

    fn timer(&mut self, progress: Revision) {
        let now = Instant::now();
        if self.next_bookmark.is_some_and(|at| now >= at) {
            self.pending.push_back(self.view.bookmark(progress, false));
            self.next_bookmark = Some(bookmark_at(now, self.deadline));
        }
        self.ending = now >= self.deadline;
    }

    fn end_with(&mut self, error: &ApiError) {
        let status = error.to_status().to_string();
        self.pending.push_back(encode::frame(EventType::Error, status.as_bytes()));
        self.ending = true;
    }
}

/// When the next bookmark is due: in a minute, or shortly before the end.
fn bookmark_at(now: Instant, deadline: Instant) -> Instant {
    let last = deadline.checked_sub(LAST_BOOKMARK_AHEAD).filter(|at| *at > now).unwrap_or(deadline);
    (now + BOOKMARK_PERIOD).min(last)
}

fn too_old(requested: Option<Revision>, missed: Missed) -> ApiError {
    match requested {
        Some(revision) => ApiError::expired(format!("too old resource version: {revision} ({})", missed.floor)),
        None => ApiError::expired(format!("too old resource version: the watch fell behind ({})", missed.floor)),
    }
}

/// How events look to this client.
struct Presenter {
    row: Arc<crate::registry::Resource>,
    view: View,
    include: table::IncludeObject,
    pretty: crate::negotiate::Accepted,
    /// Whether the cache's frames are what the client wants.
    ready: bool,
    /// Whether the metadata in the stored bytes are.
    copies_metadata: bool,
    /// Tables carry their headers once.
    headers_sent: bool,
}

impl Presenter {
    fn new(cx: &Context) -> Result<Self, ApiError> {
        let row = cx.resolved.resource.clone();
        Ok(Self {
            ready: served::is_ready(&row, cx.accepted),
            copies_metadata: cx.accepted.view == View::Partial && matches!(row.storage, Storage::Own),
            view: cx.accepted.view,
            include: served::include(cx)?,
            // Events are one line each.
            pretty: crate::negotiate::Accepted { pretty: false, ..cx.accepted },
            row,
            headers_sent: false,
        })
    }

    fn event(&mut self, event: &CacheEvent, kind: EventType) -> Bytes {
        if self.ready { event.frame(kind) } else { self.present(kind, &event.object(kind)) }
    }

    /// An object's stored bytes as an event.
    fn present(&mut self, kind: EventType, stored: &[u8]) -> Bytes {
        if self.ready {
            return encode::frame(kind, stored);
        }
        if self.copies_metadata
            && let Some(shown) = partial::bytes(stored)
        {
            return encode::frame(kind, &shown);
        }
        let object = served::from_stored(&self.row, serde_json::from_slice(stored).unwrap_or(Value::Null));
        let shown = match self.view {
            View::Object => object,
            View::Partial => partial::object(&object),
            View::Table => {
                let meta = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                let first = !std::mem::replace(&mut self.headers_sent, true);
                table::render(&self.row, [&object].into_iter(), meta, self.include, first)
            }
        };
        encode::frame(kind, &served::encode(self.pretty, &shown).unwrap_or_default())
    }

    fn bookmark(&self, revision: Revision, initial_end: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({INITIAL_EVENTS_END: "true"});
        }
        let object = match self.view {
            View::Object => json!({"kind": self.row.kind, "apiVersion": self.row.api_version(), "metadata": metadata}),
            View::Partial => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            View::Table => table::render(&self.row, std::iter::empty(), metadata, self.include, false),
        };
        encode::frame(EventType::Bookmark, object.to_string().as_bytes())
    }
}
