//! What happens in etcd, in order: one watch over the store's prefix that feeds the hub, and replays.
//!
//! Asking etcd for progress on a watch is not sound before 3.4.25 and 3.5.8 (etcd-io/etcd#15220: the answer overtakes
//! events), so progress is read off the events themselves: one watch sees them in total order, and while nothing else
//! happens and somebody watches, a heartbeat key is written once a second. The feed reconnects by itself; watchers only
//! learn of it when etcd stayed away for long or compacted what they miss.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{EventType, KvClient, WatchClient, WatchOptions, WatchResponse, WatchStream};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::errors::Meaning;
use super::{bounded, from_etcd, key_value, range_end, to_etcd};
use crate::hub::{Hub, PROGRESS_INTERVAL};
use crate::{Error, Event, Result, Revision, WatchItem};

/// Bookkeeping beside the paths: the heartbeat.
const HEARTBEAT: &str = ":heartbeat";
/// Pause between attempts to reconnect, doubling up to the second.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(3);
/// Watches end when etcd was away for this long: their readers should know.
const OUTAGE_PATIENCE: Duration = Duration::from_secs(15);

/// Access to etcd's events under one prefix.
#[derive(Clone)]
pub(super) struct Feed {
    kv: KvClient,
    watches: WatchClient,
    prefix: String,
}

/// Why the feed's watch ended.
enum End {
    /// Events up to this revision are gone.
    Compacted(Revision),
    Lost(String),
    Stopped,
}

impl Feed {
    pub(super) fn new(kv: KvClient, watches: WatchClient, prefix: String) -> Self {
        Self { kv, watches, prefix }
    }

    /// Writes the heartbeat; its revision, at which there is an event in the prefix by construction.
    pub(super) async fn beat(&self) -> Result<Revision, Meaning> {
        let key = format!("{}{HEARTBEAT}", self.prefix);
        let response = bounded(self.kv.clone().put(key, "", None)).await?;
        Ok(response.header().map_or(0, |header| from_etcd(header.revision())))
    }

    async fn open(&self, from: Revision) -> Result<WatchStream, Meaning> {
        let options = WatchOptions::new().with_range(range_end(&self.prefix)).with_start_revision(to_etcd(from));
        bounded(self.watches.clone().watch(self.prefix.as_str(), Some(options))).await
    }

    /// Feeds the hub until `stop`.
    pub(super) async fn run(self, hub: Arc<Hub>, stop: CancellationToken) {
        let mut pause = RECONNECT_PAUSE;
        let mut healthy_at = Instant::now();
        loop {
            let before = hub.revision();
            match self.follow(&hub, &stop).await {
                End::Stopped => break,
                End::Compacted(revision) => {
                    // Whoever watches has a gap now; whoever comes next starts behind it.
                    hub.reset(revision);
                }
                End::Lost(why) => {
                    if hub.revision() > before {
                        (pause, healthy_at) = (RECONNECT_PAUSE, Instant::now());
                    }
                    tracing::warn!(why, "the watch on etcd was lost; reconnecting");
                    if healthy_at.elapsed() > OUTAGE_PATIENCE {
                        hub.close();
                    }
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(RECONNECT_PAUSE_MAX);
                }
            }
        }
        hub.close();
    }

    /// One watch's life: publishes everything after the hub's revision.
    async fn follow(&self, hub: &Hub, stop: &CancellationToken) -> End {
        let mut watch = match self.open(hub.revision() + 1).await {
            Ok(watch) => watch,
            Err(meaning) => return End::Lost(meaning.into_error(0, 0).to_string()),
        };
        loop {
            let message = tokio::select! {
                () = stop.cancelled() => return End::Stopped,
                message = tokio::time::timeout(PROGRESS_INTERVAL, watch.message()) => message,
            };
            let response = match message {
                Ok(Ok(Some(response))) => response,
                Ok(Ok(None)) => return End::Lost("etcd closed the watch".to_owned()),
                Ok(Err(error)) => return End::Lost(error.to_string()),
                Err(_) if hub.is_watched() => match self.beat().await {
                    Ok(_) => continue,
                    Err(meaning) => return End::Lost(meaning.into_error(0, 0).to_string()),
                },
                Err(_) => continue,
            };
            if response.compact_revision() > 0 {
                return End::Compacted(from_etcd(response.compact_revision()));
            }
            if response.canceled() {
                return End::Lost(response.cancel_reason().to_owned());
            }
            let (events, last) = self.events(&response);
            if let Some(last) = last {
                hub.publish(&events, last);
            }
        }
    }

    /// The events of paths, and the last revision of any event.
    fn events(&self, response: &WatchResponse) -> (Vec<Event>, Option<Revision>) {
        let mut last = None;
        let mut events = Vec::with_capacity(response.events().len());
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            last = Some(from_etcd(kv.mod_revision()));
            let Some(kv) = key_value(kv, &self.prefix) else { continue };
            events.push(match event.event_type() {
                EventType::Put => Event::Put(kv),
                EventType::Delete => Event::Delete { key: kv.key, revision: kv.mod_revision },
            });
        }
        (events, last)
    }

    /// The events under `prefix` in `from..=to`. There is an event at `to`, heartbeats counted, which is how the end is
    /// recognized.
    pub(super) async fn replay(
        &self,
        prefix: &str,
        from: Revision,
        to: Revision,
    ) -> Result<BoxStream<'static, Result<WatchItem>>> {
        let watch = self.open(from).await.map_err(|meaning| meaning.into_error(from, 0))?;
        let state = Some((self.clone(), watch, prefix.to_owned()));
        Ok(stream::unfold(state, move |state| async move {
            let (feed, mut watch, prefix) = state?;
            loop {
                let step = feed.replay_step(&mut watch, &prefix, from, to).await;
                match step {
                    Ok((events, true)) if events.is_empty() => return None,
                    Ok((events, true)) => return Some((Ok(WatchItem::Events(events)), None)),
                    Ok((events, false)) if events.is_empty() => {}
                    Ok((events, false)) => return Some((Ok(WatchItem::Events(events)), Some((feed, watch, prefix)))),
                    Err(error) => return Some((Err(error), None)),
                }
            }
        })
        .boxed())
    }

    /// One response of a replay: what matches, and whether it was the last.
    async fn replay_step(
        &self,
        watch: &mut WatchStream,
        prefix: &str,
        from: Revision,
        to: Revision,
    ) -> Result<(Vec<Event>, bool)> {
        let lost = |why: String| Error::Unavailable(why);
        let response = bounded(watch.message()).await.map_err(|meaning| meaning.into_error(from, 0))?;
        let response = response.ok_or_else(|| lost("etcd closed the watch".to_owned()))?;
        if response.compact_revision() > 0 {
            return Err(Error::Compacted { requested: from, oldest: from_etcd(response.compact_revision()) });
        }
        if response.canceled() {
            return Err(lost(response.cancel_reason().to_owned()));
        }
        let (mut events, last) = self.events(&response);
        events.retain(|event| event.revision() <= to && event.key().starts_with(prefix));
        Ok((events, last.is_some_and(|last| last >= to)))
    }

    /// Compacts what is older than one interval, every interval, as kube-apiserver does. Several servers doing so agree
    /// with each other: each compacts to a revision that is at least one interval old.
    pub(super) async fn compact_regularly(self, interval: Duration, stop: CancellationToken) {
        let mut due = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(interval) => {}
            }
            if let Some(revision) = due
                && let Err(meaning) = bounded(self.kv.clone().compact(to_etcd(revision), None)).await
                && !matches!(meaning, Meaning::Compacted)
            {
                tracing::warn!(?meaning, revision, "etcd could not be compacted; trying again after the next interval");
            }
            due = self.beat().await.ok();
        }
    }
}
