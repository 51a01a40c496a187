//! The one task that follows the store and feeds every kind's cache.
//!
//! It lists `/registry/` once, then follows a watch from that revision. A watch that ends is resumed where it was; only
//! if the store has forgotten that revision is everything listed again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::StreamExt;
use scaleup_store::{Error, Event, KeyValue, ListRequest, Revision, WatchItem};
use tracing::{debug, error, warn};

use super::resource::Change;
use super::{Cached, Caches, EventType, ROOT, ResourceCache};

/// Objects per page of the first list. Every page counts what lies beyond it, so small pages cost more than they save.
const LIST_PAGE: usize = 4_000;
/// First and longest pause between attempts to reach the store.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How often histories are trimmed by age.
const TRIM_PERIOD: Duration = Duration::from_secs(15);

/// Never returns.
pub(super) async fn run(caches: &Arc<Caches>) {
    let mut backoff = BACKOFF_MIN;
    loop {
        let started = Instant::now();
        if let Err(cause) = session(caches).await {
            warn!(cause = %cause, "the store's watch ended; resuming");
        }
        if started.elapsed() > BACKOFF_MAX {
            backoff = BACKOFF_MIN;
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// From where the caches are (or from a list) until the watch ends.
async fn session(caches: &Arc<Caches>) -> Result<(), Error> {
    if !caches.is_synced() {
        list_everything(caches).await?;
    }
    let mut watch = match caches.store.watch(ROOT, caches.progress() + 1).await {
        Err(Error::Compacted { requested, oldest }) => {
            warn!(requested, oldest, "the store's history is gone; listing again");
            list_everything(caches).await?;
            caches.store.watch(ROOT, caches.progress() + 1).await?
        }
        other => other?,
    };
    let mut trimmed = Instant::now();
    while let Some(item) = watch.next().await {
        match item {
            Ok(WatchItem::Events(events)) => apply(caches, events),
            Ok(WatchItem::Progress(revision)) => caches.advance(revision),
            Err(Error::Compacted { .. }) => return list_everything(caches).await,
            Err(cause) => return Err(cause),
        }
        if trimmed.elapsed() > TRIM_PERIOD {
            trimmed = Instant::now();
            caches.each().for_each(|resource| resource.trim(trimmed));
        }
    }
    debug!("the store closed its watch");
    Ok(())
}

/// One consistent list of everything, page by page, at the revision of the first page.
async fn list_everything(caches: &Arc<Caches>) -> Result<(), Error> {
    // Keys are in order, so each kind's objects come in one run.
    let mut found: Vec<(Arc<ResourceCache>, Vec<Arc<Cached>>)> = Vec::new();
    let mut at: Option<Revision> = None;
    let mut after: Option<String> = None;
    loop {
        let request = ListRequest { prefix: ROOT, start_after: after.as_deref(), limit: LIST_PAGE, at };
        let page = caches.store.list(request).await?;
        at = Some(page.revision);
        after = page.items.last().map(|kv| kv.key.clone());
        for kv in &page.items {
            let Some((resource, key)) = locate(caches, &kv.key) else { continue };
            let object = decode(&resource, key, kv, EventType::Added);
            match found.last_mut() {
                Some((kind, objects)) if Arc::ptr_eq(kind, &resource) => objects.extend(object),
                _ => found.push((resource, object.into_iter().collect())),
            }
        }
        if page.remaining == 0 || page.items.is_empty() {
            break;
        }
    }
    let revision = at.unwrap_or_default();
    for resource in caches.each() {
        let own = found.iter_mut().find(|(kind, _)| Arc::ptr_eq(kind, resource));
        resource.replace(own.map(|(_, objects)| std::mem::take(objects)).unwrap_or_default(), revision);
    }
    caches.synced.store(true, Ordering::Release);
    caches.advance(revision);
    Ok(())
}

/// Applies one batch: consecutive changes of one kind under one lock, so that no reader sees half a revision.
fn apply(caches: &Caches, events: Vec<Event>) {
    let Some(last) = events.last().map(Event::revision) else { return };
    let mut run: Option<(Arc<ResourceCache>, Vec<Change>)> = None;
    for event in events {
        let revision = event.revision();
        let store_key = match &event {
            Event::Put(kv) => &kv.key,
            Event::Delete { key, .. } => key,
        };
        let Some((resource, key)) = locate(caches, store_key) else { continue };
        let pending = run.as_ref().filter(|(r, _)| Arc::ptr_eq(r, &resource)).map(|(_, changes)| changes.as_slice());
        let after = match &event {
            Event::Delete { .. } => None,
            Event::Put(kv) => {
                let there = match pending.and_then(|changes| changes.iter().rev().find(|c| c.key == key)) {
                    Some(change) => change.after.is_some(),
                    None => resource.contains(key),
                };
                let kind = if there { EventType::Modified } else { EventType::Added };
                let Some(object) = decode(&resource, key, kv, kind) else { continue };
                Some(object)
            }
        };
        let change = Change { key: key.to_owned(), revision, after };
        match &mut run {
            Some((current, changes)) if Arc::ptr_eq(current, &resource) => changes.push(change),
            _ => {
                if let Some((done, changes)) = run.replace((resource, vec![change])) {
                    done.apply(changes);
                }
            }
        }
    }
    if let Some((resource, changes)) = run {
        resource.apply(changes);
    }
    caches.advance(last);
}

/// The cache that a store key belongs to, and the key below it; `None` for keys of no known kind.
fn locate<'k>(caches: &Caches, store_key: &'k str) -> Option<(Arc<ResourceCache>, &'k str)> {
    let mut parts = store_key.strip_prefix(ROOT)?.splitn(3, '/');
    let (group, plural, key) = (parts.next()?, parts.next()?, parts.next()?);
    let group = if group == "core" { "" } else { group };
    let resource = caches.resource(group, plural)?;
    (!key.is_empty()).then(|| (resource.clone(), key))
}

fn decode(resource: &ResourceCache, key: &str, kv: &KeyValue, kind: EventType) -> Option<Arc<Cached>> {
    match Cached::from_stored(key, &kv.value, kv.mod_revision, resource.selectable(), kind) {
        Ok(object) => Some(Arc::new(object)),
        Err(cause) => {
            error!(%cause, "an object in the store is damaged and is not served; restore it from a backup");
            None
        }
    }
}
