//! The conformance suite: what every [`Store`] promises, as checks that run against any implementation.
//!
//! Call [`run`] from a test with a function that gives an empty store (or an empty corner of one) for each check. A
//! broken promise panics with what was expected, which is how a test fails. Nothing here is used outside of tests.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test support: a panic is the failing test's message")]

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;

use crate::{Error, Event, KeyValue, ListRequest, MAX_ENTRY_BYTES, Page, Revision, Store, Watch, WatchItem};

/// A watch that yields nothing for this long is broken: progress is due every second.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs every check, each on a store that `empty` makes.
pub async fn run<F, S>(empty: F)
where
    F: Fn() -> S,
    S: Future<Output = Arc<dyn Store>>,
{
    absent_keys_read_as_absent(empty().await).await;
    writes_number_themselves(empty().await).await;
    create_refuses_what_exists(empty().await).await;
    update_and_delete_compare_revisions(empty().await).await;
    recreated_keys_start_anew(empty().await).await;
    lists_are_ordered_and_prefixed(empty().await).await;
    pages_cover_everything_once(empty().await).await;
    pages_at_a_revision_ignore_later_writes(empty().await).await;
    old_revisions_read_as_they_were(empty().await).await;
    unwritten_revisions_are_refused(empty().await).await;
    keys_and_values_are_opaque(empty().await).await;
    oversized_entries_are_refused(empty().await).await;
    racing_updates_lose_nothing(empty().await).await;
    racing_creates_have_one_winner(empty().await).await;
    racing_deletes_have_one_winner(empty().await).await;
    watches_replay_and_follow(empty().await).await;
    watches_see_only_their_prefix(empty().await).await;
    watches_start_in_the_future(empty().await).await;
    watches_report_progress(empty().await).await;
    watches_have_no_gaps_under_load(empty().await).await;
    watchers_agree(empty().await).await;
    compaction_forgets_the_past_only(empty().await).await;
    compaction_is_idempotent(empty().await).await;
    compaction_removes_tombstones(empty().await).await;
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn list(store: &dyn Store, prefix: &str) -> Page {
    store.list(ListRequest { prefix, ..Default::default() }).await.unwrap()
}

async fn list_at(store: &dyn Store, prefix: &str, at: Revision) -> Result<Page, Error> {
    store.list(ListRequest { prefix, at: Some(at), ..Default::default() }).await
}

fn names(page: &Page) -> Vec<&str> {
    page.items.iter().map(|item| item.key.as_str()).collect()
}

fn contents(page: &Page) -> BTreeMap<String, Bytes> {
    page.items.iter().map(|item| (item.key.clone(), item.value.clone())).collect()
}

async fn next(watch: &mut Watch) -> Result<WatchItem, Error> {
    let item = tokio::time::timeout(PATIENCE, watch.next()).await;
    item.unwrap_or_else(|_| panic!("the watch said nothing for {PATIENCE:?}"))
        .unwrap_or_else(|| panic!("the watch ended"))
}

/// Reads events until `count` have come.
async fn events(watch: &mut Watch, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    while events.len() < count {
        if let WatchItem::Events(batch) = next(watch).await.unwrap() {
            assert!(!batch.is_empty(), "an empty batch");
            events.extend(batch);
        }
    }
    assert_eq!(events.len(), count, "more events than writes: {events:?}");
    events
}

/// Whether watching from `from` reports compaction, at once or as the first item.
async fn watch_is_compacted(store: &dyn Store, from: Revision) -> bool {
    match store.watch("/", from).await {
        Err(Error::Compacted { .. }) => true,
        Err(error) => panic!("{error:?}"),
        Ok(mut watch) => matches!(next(&mut watch).await, Err(Error::Compacted { .. })),
    }
}

/// Current revision.
async fn head(store: &dyn Store) -> Revision {
    store.get("/none").await.unwrap().1
}

async fn absent_keys_read_as_absent(store: Arc<dyn Store>) {
    assert_eq!(store.get("/a").await.unwrap().0, None);
    assert!(list(&*store, "/").await.items.is_empty());
    assert!(matches!(store.update("/a", bytes("1"), 1).await, Err(Error::Conflict(None))));
    assert!(matches!(store.delete("/a", 1).await, Err(Error::Conflict(None))));
}

async fn writes_number_themselves(store: Arc<dyn Store>) {
    let first = store.create("/a", bytes("1")).await.unwrap();
    let second = store.create("/b", bytes("2")).await.unwrap();
    let third = store.update("/a", bytes("3"), first).await.unwrap();
    let fourth = store.delete("/b", second).await.unwrap();
    assert!(0 < first && first < second && second < third && third < fourth);
    let (read, revision) = store.get("/a").await.unwrap();
    let expected = KeyValue { key: "/a".into(), value: bytes("3"), create_revision: first, mod_revision: third };
    assert_eq!(read, Some(expected));
    assert_eq!(revision, fourth, "a read reports the store's revision, not the key's");
    assert_eq!(store.get("/b").await.unwrap().0, None);
    assert_eq!(list(&*store, "/").await.revision, fourth);
}

async fn create_refuses_what_exists(store: Arc<dyn Store>) {
    let revision = store.create("/a", bytes("1")).await.unwrap();
    assert!(matches!(store.create("/a", bytes("2")).await, Err(Error::Exists)));
    assert_eq!(store.get("/a").await.unwrap().0.unwrap().value, bytes("1"));
    assert_eq!(head(&*store).await, revision, "a refused write has no revision");
}

async fn update_and_delete_compare_revisions(store: Arc<dyn Store>) {
    let first = store.create("/a", bytes("1")).await.unwrap();
    let second = store.update("/a", bytes("2"), first).await.unwrap();
    let current = store.get("/a").await.unwrap().0;
    for result in [store.update("/a", bytes("3"), first).await, store.delete("/a", first).await] {
        match result {
            Err(Error::Conflict(found)) => assert_eq!(found, current, "a conflict carries what is there"),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(store.update("/a", bytes("3"), second + 100).await, Err(Error::Conflict(Some(_)))));
    store.delete("/a", second).await.unwrap();
    assert!(matches!(store.delete("/a", second).await, Err(Error::Conflict(None))));
}

async fn recreated_keys_start_anew(store: Arc<dyn Store>) {
    let first = store.create("/a", bytes("1")).await.unwrap();
    store.delete("/a", first).await.unwrap();
    let second = store.create("/a", bytes("2")).await.unwrap();
    let read = store.get("/a").await.unwrap().0.unwrap();
    assert_eq!((read.create_revision, read.mod_revision), (second, second));
    assert!(matches!(store.update("/a", bytes("3"), first).await, Err(Error::Conflict(Some(_)))));
}

async fn lists_are_ordered_and_prefixed(store: Arc<dyn Store>) {
    for key in ["/pods/b", "/pods/a", "/pods-more/a", "/pods", "/pods/a/x", "/podz", "/pod"] {
        store.create(key, bytes(key)).await.unwrap();
    }
    assert_eq!(names(&list(&*store, "/pods/").await), ["/pods/a", "/pods/a/x", "/pods/b"]);
    assert_eq!(names(&list(&*store, "/pods").await), ["/pods", "/pods-more/a", "/pods/a", "/pods/a/x", "/pods/b"]);
    assert_eq!(list(&*store, "/").await.items.len(), 7);
    assert!(list(&*store, "/q").await.items.is_empty());
}

async fn pages_cover_everything_once(store: Arc<dyn Store>) {
    for index in 0..23 {
        store.create(&format!("/p/{index:02}"), bytes("v")).await.unwrap();
    }
    store.create("/q", bytes("v")).await.unwrap();
    for limit in [1, 5, 22, 23, 24] {
        let (mut seen, mut after) = (Vec::new(), None::<String>);
        loop {
            let request = ListRequest { prefix: "/p/", start_after: after.as_deref(), limit, at: None };
            let page = store.list(request).await.unwrap();
            assert!(page.items.len() <= limit);
            seen.extend(page.items.iter().map(|item| item.key.clone()));
            assert_eq!(page.remaining, 23 - seen.len() as u64, "limit {limit}");
            if page.remaining == 0 {
                break;
            }
            after = seen.last().cloned();
        }
        assert_eq!(seen, (0..23).map(|index| format!("/p/{index:02}")).collect::<Vec<_>>());
    }
    let before_prefix = ListRequest { prefix: "/p/", start_after: Some("/a"), ..Default::default() };
    assert_eq!(store.list(before_prefix).await.unwrap().items.len(), 23);
    let behind_prefix = ListRequest { prefix: "/p/", start_after: Some("/z"), ..Default::default() };
    assert!(store.list(behind_prefix).await.unwrap().items.is_empty());
}

async fn pages_at_a_revision_ignore_later_writes(store: Arc<dyn Store>) {
    for index in 0..10 {
        store.create(&format!("/p/{index}"), bytes("old")).await.unwrap();
    }
    let first = store.list(ListRequest { prefix: "/p/", limit: 4, ..Default::default() }).await.unwrap();
    for item in list(&*store, "/p/").await.items {
        match item.key.as_str() {
            "/p/5" => store.delete(&item.key, item.mod_revision).await.unwrap(),
            _ => store.update(&item.key, bytes("new"), item.mod_revision).await.unwrap(),
        };
    }
    store.create("/p/55", bytes("new")).await.unwrap();
    let request = ListRequest { prefix: "/p/", start_after: Some("/p/3"), limit: 0, at: Some(first.revision) };
    let second = store.list(request).await.unwrap();
    assert_eq!(names(&second), ["/p/4", "/p/5", "/p/6", "/p/7", "/p/8", "/p/9"]);
    assert!(second.items.iter().all(|item| item.value == bytes("old")));
    assert_eq!(second.revision, first.revision);
}

async fn old_revisions_read_as_they_were(store: Arc<dyn Store>) {
    let mut now = BTreeMap::new();
    let mut revisions: BTreeMap<String, Revision> = BTreeMap::new();
    let mut past = Vec::new();
    for step in 0..60_u32 {
        let key = format!("/k/{}", step * 7 % 5);
        let value = bytes(&step.to_string());
        let (revision, stays) = match revisions.get(&key) {
            Some(known) if step % 4 == 3 => (store.delete(&key, *known).await.unwrap(), false),
            Some(known) => (store.update(&key, value.clone(), *known).await.unwrap(), true),
            None => (store.create(&key, value.clone()).await.unwrap(), true),
        };
        if stays {
            now.insert(key.clone(), value);
            revisions.insert(key, revision);
        } else {
            now.remove(&key);
            revisions.remove(&key);
        }
        past.push((revision, now.clone()));
    }
    for (revision, then) in past {
        let page = list_at(&*store, "/k/", revision).await.unwrap();
        assert_eq!(contents(&page), then, "at revision {revision}");
        assert_eq!(page.revision, revision);
    }
}

async fn unwritten_revisions_are_refused(store: Arc<dyn Store>) {
    let revision = store.create("/a", bytes("1")).await.unwrap();
    assert!(list_at(&*store, "/", revision).await.is_ok());
    match list_at(&*store, "/", revision + 1000).await {
        Err(Error::Future { requested, current }) => assert_eq!((requested, current), (revision + 1000, revision)),
        other => panic!("{other:?}"),
    }
    assert!(matches!(store.compact(revision + 1000).await, Err(Error::Future { .. })));
}

async fn keys_and_values_are_opaque(store: Arc<dyn Store>) {
    let large: Vec<u8> = (0..1_000_000_u32).map(|index| (index % 251) as u8).collect();
    let values = [Bytes::new(), Bytes::from_static(&[0, 255, 0]), bytes("{\"a\":1}"), Bytes::from(large)];
    let keys = ["/ü/日本", "/ with space", "/%2F..", "/\u{1f980}"];
    for (key, value) in keys.into_iter().zip(values.clone()) {
        store.create(key, value).await.unwrap();
    }
    for (key, value) in keys.into_iter().zip(values) {
        assert_eq!(store.get(key).await.unwrap().0.unwrap().value, value, "{key}");
    }
    let mut sorted = keys;
    sorted.sort_unstable();
    assert_eq!(names(&list(&*store, "/").await), sorted, "byte order");
    assert_eq!(names(&list(&*store, "/ü").await), ["/ü/日本"]);
}

async fn oversized_entries_are_refused(store: Arc<dyn Store>) {
    let largest = Bytes::from(vec![7_u8; MAX_ENTRY_BYTES - 2]);
    let revision = store.create("/a", largest.clone()).await.unwrap();
    let refused = store.create("/bb", largest).await;
    assert!(matches!(refused, Err(Error::TooLarge { limit: MAX_ENTRY_BYTES, .. })), "{refused:?}");
    let refused = store.update("/a", Bytes::from(vec![7_u8; MAX_ENTRY_BYTES]), revision).await;
    assert!(matches!(refused, Err(Error::TooLarge { .. })), "{refused:?}");
}

async fn racing_updates_lose_nothing(store: Arc<dyn Store>) {
    const WRITERS: usize = 8;
    const EACH: usize = 12;
    store.create("/counter", bytes("0")).await.unwrap();
    let increment = |store: Arc<dyn Store>| async move {
        for _ in 0..EACH {
            loop {
                let current = store.get("/counter").await.unwrap().0.unwrap();
                let count: usize = std::str::from_utf8(&current.value).unwrap().parse().unwrap();
                let updated = store.update("/counter", bytes(&(count + 1).to_string()), current.mod_revision).await;
                match updated {
                    Ok(_) => break,
                    Err(Error::Conflict(Some(_))) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
        }
    };
    let writers = (0..WRITERS).map(|_| tokio::spawn(increment(store.clone())));
    for writer in join_all(writers).await {
        writer.unwrap();
    }
    let total = store.get("/counter").await.unwrap().0.unwrap();
    assert_eq!(total.value, bytes(&(WRITERS * EACH).to_string()));
}

async fn racing_creates_have_one_winner(store: Arc<dyn Store>) {
    let race = |index: usize| {
        let store = store.clone();
        async move { store.create("/one", bytes(&index.to_string())).await }
    };
    let results = join_all((0..16).map(race)).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert_eq!(results.iter().filter(|result| matches!(result, Err(Error::Exists))).count(), 15);
    let winner = results.iter().position(Result::is_ok).unwrap();
    assert_eq!(store.get("/one").await.unwrap().0.unwrap().value, bytes(&winner.to_string()));
}

async fn racing_deletes_have_one_winner(store: Arc<dyn Store>) {
    let revision = store.create("/one", bytes("1")).await.unwrap();
    let results = join_all((0..16).map(|_| store.delete("/one", revision))).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert_eq!(results.iter().filter(|result| matches!(result, Err(Error::Conflict(None)))).count(), 15);
}

async fn watches_replay_and_follow(store: Arc<dyn Store>) {
    let first = store.create("/w/a", bytes("1")).await.unwrap();
    let second = store.update("/w/a", bytes("2"), first).await.unwrap();
    let mut watch = store.watch("/w/", first).await.unwrap();
    let third = store.delete("/w/a", second).await.unwrap();
    let fourth = store.create("/w/a", bytes("4")).await.unwrap();
    let put = |value: &str, create, revision| {
        Event::Put(KeyValue {
            key: "/w/a".into(),
            value: bytes(value),
            create_revision: create,
            mod_revision: revision,
        })
    };
    let deleted = Event::Delete { key: "/w/a".into(), revision: third };
    let all = vec![put("1", first, first), put("2", first, second), deleted, put("4", fourth, fourth)];
    assert_eq!(events(&mut watch, 4).await, all);
    let mut late = store.watch("/w/", second).await.unwrap();
    assert_eq!(events(&mut late, 3).await, all[1..]);
}

async fn watches_see_only_their_prefix(store: Arc<dyn Store>) {
    let mut watch = store.watch("/pods/", head(&*store).await + 1).await.unwrap();
    for key in ["/pod", "/pods", "/pods-x/a", "/pods/a", "/podz", "/pods/b"] {
        store.create(key, bytes(key)).await.unwrap();
    }
    let seen: Vec<String> = events(&mut watch, 2)
        .await
        .into_iter()
        .map(|event| match event {
            Event::Put(kv) => kv.key,
            Event::Delete { key, .. } => panic!("{key} was not deleted"),
        })
        .collect();
    assert_eq!(seen, ["/pods/a", "/pods/b"]);
}

async fn watches_start_in_the_future(store: Arc<dyn Store>) {
    let first = store.create("/a", bytes("1")).await.unwrap();
    let mut watch = store.watch("/", first + 2).await.unwrap();
    store.create("/b", bytes("2")).await.unwrap();
    let third = store.create("/c", bytes("3")).await.unwrap();
    assert_eq!(events(&mut watch, 1).await[0].revision(), third);
}

async fn watches_report_progress(store: Arc<dyn Store>) {
    let revision = store.create("/other/a", bytes("1")).await.unwrap();
    let mut watch = store.watch("/quiet/", revision).await.unwrap();
    let reached = async move {
        loop {
            match next(&mut watch).await.unwrap() {
                WatchItem::Progress(reported) if reported >= revision => break reported,
                WatchItem::Progress(_) => {}
                WatchItem::Events(events) => panic!("{events:?}"),
            }
        }
    };
    assert!(reached.await >= revision);
}

async fn watches_have_no_gaps_under_load(store: Arc<dyn Store>) {
    const WRITERS: usize = 6;
    const EACH: usize = 20;
    let from = head(&*store).await + 1;
    let early = store.watch("/load/", from).await.unwrap();
    let write = |writer: usize| {
        let store = store.clone();
        async move {
            let mut written = BTreeSet::new();
            for index in 0..EACH {
                let key = format!("/load/{writer}/{index}");
                let revision = store.create(&key, bytes("1")).await.unwrap();
                written.insert(revision);
                if index % 3 == 0 {
                    written.insert(store.delete(&key, revision).await.unwrap());
                }
            }
            written
        }
    };
    let writing = join_all((0..WRITERS).map(|writer| tokio::spawn(write(writer))));
    // One watch starts in the middle of the writing and must join replay and live events without a seam.
    let opening = async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        store.watch("/load/", from).await.unwrap()
    };
    let (written, middle) = tokio::join!(writing, opening);
    let written: BTreeSet<Revision> = written.into_iter().flat_map(Result::unwrap).collect();
    for mut watch in [early, middle] {
        let seen: Vec<Revision> = events(&mut watch, written.len()).await.iter().map(Event::revision).collect();
        assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "out of order: {seen:?}");
        assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), written);
    }
}

async fn watchers_agree(store: Arc<dyn Store>) {
    let from = head(&*store).await + 1;
    let mut watches = join_all((0..8).map(|_| async { store.watch("/", from).await.unwrap() })).await;
    for index in 0..10 {
        store.create(&format!("/{index}"), bytes("1")).await.unwrap();
    }
    let first = events(&mut watches[0], 10).await;
    for watch in &mut watches[1..] {
        assert_eq!(events(watch, 10).await, first);
    }
}

async fn compaction_forgets_the_past_only(store: Arc<dyn Store>) {
    let first = store.create("/a", bytes("1")).await.unwrap();
    let second = store.create("/b", bytes("2")).await.unwrap();
    let third = store.update("/a", bytes("3"), first).await.unwrap();
    let fourth = store.update("/a", bytes("4"), third).await.unwrap();
    // Events may lag behind writes, and those that are still to come need no past.
    events(&mut store.watch("/", first).await.unwrap(), 4).await;
    store.compact(third).await.unwrap();
    for revision in [first, second] {
        match list_at(&*store, "/", revision).await {
            Err(Error::Compacted { requested, oldest }) => assert!(requested == revision && oldest > requested),
            other => panic!("{other:?}"),
        }
        assert!(watch_is_compacted(&*store, revision).await, "watch from {revision}");
    }
    let then = contents(&list_at(&*store, "/", third).await.unwrap());
    assert_eq!(then, BTreeMap::from([("/a".into(), bytes("3")), ("/b".into(), bytes("2"))]));
    let now = contents(&list(&*store, "/").await);
    assert_eq!(now, BTreeMap::from([("/a".into(), bytes("4")), ("/b".into(), bytes("2"))]));
    let mut watch = store.watch("/", fourth).await.unwrap();
    assert_eq!(events(&mut watch, 1).await[0].revision(), fourth);
}

async fn compaction_is_idempotent(store: Arc<dyn Store>) {
    let first = store.create("/a", bytes("1")).await.unwrap();
    let second = store.update("/a", bytes("2"), first).await.unwrap();
    store.compact(second).await.unwrap();
    store.compact(second).await.unwrap();
    store.compact(first).await.unwrap();
    assert_eq!(head(&*store).await, second, "compaction is no write");
    assert!(list_at(&*store, "/", first).await.is_err());
    assert!(list_at(&*store, "/", second).await.is_ok());
}

async fn compaction_removes_tombstones(store: Arc<dyn Store>) {
    let mut last = 0;
    for round in 0..3 {
        for index in 0..5 {
            let key = format!("/t/{index}");
            let revision = store.create(&key, bytes("1")).await.unwrap();
            last = store.delete(&key, revision).await.unwrap();
        }
        if round == 1 {
            store.compact(last).await.unwrap();
        }
    }
    let kept = store.create("/t/3", bytes("kept")).await.unwrap();
    store.compact(kept).await.unwrap();
    assert_eq!(contents(&list(&*store, "/t/").await), BTreeMap::from([("/t/3".into(), bytes("kept"))]));
    assert_eq!(contents(&list_at(&*store, "/t/", kept).await.unwrap()).len(), 1);
    assert!(list_at(&*store, "/t/", last).await.is_err());
    let revision = store.create("/t/0", bytes("again")).await.unwrap();
    assert_eq!(store.get("/t/0").await.unwrap().0.unwrap().create_revision, revision);
}
