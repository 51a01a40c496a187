//! The embedded store on real files: locking, reopening, growth, backup and damage that a user can cause.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use scaleup_store::embedded::{EmbeddedStore, Options};
use scaleup_store::{Error, HistoryBounds, ListRequest, Store};

async fn open(path: &Path) -> Result<EmbeddedStore, Error> {
    EmbeddedStore::open(path, Options::default()).await
}

fn kilobyte(seed: usize) -> Bytes {
    Bytes::from(vec![(seed % 251) as u8; 1024])
}

async fn count(store: &EmbeddedStore) -> usize {
    store.list(ListRequest { prefix: "/", ..Default::default() }).await.unwrap().items.len()
}

#[tokio::test]
async fn a_second_opener_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let first = open(&path).await.unwrap();
    assert!(matches!(open(&path).await, Err(Error::Locked { .. })));
    first.create("/a", Bytes::new()).await.unwrap();
    first.close().await;
    assert!(matches!(first.create("/b", Bytes::new()).await, Err(Error::Unavailable(_))));
    assert!(matches!(first.get("/a").await, Err(Error::Unavailable(_))));
    let second = open(&path).await.unwrap();
    assert_eq!(count(&second).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contents_and_history_survive_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let store = open(&path).await.unwrap();
    let first = store.create("/a", Bytes::from_static(b"1")).await.unwrap();
    let second = store.update("/a", Bytes::from_static(b"2"), first).await.unwrap();
    store.close().await;
    let store = open(&path).await.unwrap();
    let (kv, revision) = store.get("/a").await.unwrap();
    assert_eq!((kv.unwrap().value, revision), (Bytes::from_static(b"2"), second));
    let then = store.list(ListRequest { prefix: "/", at: Some(first), ..Default::default() }).await.unwrap();
    assert_eq!(then.items[0].value, Bytes::from_static(b"1"));
    assert_eq!(store.create("/b", Bytes::new()).await.unwrap(), second + 1, "revisions never go back");
}

#[tokio::test]
async fn unusable_paths_say_why() {
    let directory = tempfile::tempdir().unwrap();
    let missing = open(&directory.path().join("no/such/store.redb")).await;
    assert!(matches!(missing, Err(Error::Open { .. })));
    assert!(matches!(open(directory.path()).await, Err(Error::Open { .. })));
    for (name, contents) in [("empty", &b""[..]), ("text", b"not a database"), ("zeros", &[0; 8192])] {
        let path = directory.path().join(name);
        std::fs::write(&path, contents).unwrap();
        assert!(matches!(open(&path).await, Err(Error::Corrupt { .. })), "{name}");
        assert_eq!(std::fs::read(&path).unwrap(), contents, "{name} was changed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_under_steady_overwrites_stays_small() {
    const OVERWRITES: usize = 50_000;
    const WRITERS: usize = 64;
    let directory = tempfile::tempdir().unwrap();
    let history = HistoryBounds { max_events: 2_000, ..HistoryBounds::default() };
    let path = directory.path().join("store.redb");
    let store = Arc::new(EmbeddedStore::open(&path, Options { history, ..Options::default() }).await.unwrap());
    let overwrite = |writer: usize| {
        let store = store.clone();
        async move {
            let key = format!("/k/{writer}");
            let mut revision = store.create(&key, kilobyte(writer)).await.unwrap();
            for index in 0..OVERWRITES / WRITERS {
                revision = store.update(&key, kilobyte(index), revision).await.unwrap();
            }
        }
    };
    for done in join_all((0..WRITERS).map(|writer| tokio::spawn(overwrite(writer)))).await {
        done.unwrap();
    }
    let stats = store.stats().await.unwrap();
    assert!(stats.revision - stats.compacted <= 2_000 + 2_000 / 16 + 2_048, "{stats:?}");
    assert!(stats.live_bytes < 6 << 20, "{stats:?}");
    assert!(stats.file_bytes < 32 << 20, "a file of {WRITERS} kilobytes and a short history: {stats:?}");
    store.check().await.unwrap();
}

#[tokio::test]
async fn old_history_is_forgotten_while_idle() {
    let directory = tempfile::tempdir().unwrap();
    let history = HistoryBounds { max_age: Duration::from_millis(50), ..HistoryBounds::default() };
    let options = Options { history, ..Options::default() };
    let store = EmbeddedStore::open(directory.path().join("store.redb"), options).await.unwrap();
    let first = store.create("/a", kilobyte(1)).await.unwrap();
    store.update("/a", kilobyte(2), first).await.unwrap();
    for _ in 0..100 {
        if store.stats().await.unwrap().compacted == 2 {
            let old = store.list(ListRequest { prefix: "/", at: Some(first), ..Default::default() }).await;
            assert!(matches!(old, Err(Error::Compacted { oldest: 2, .. })));
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("history was kept: {:?}", store.stats().await);
}

#[tokio::test]
async fn history_is_bounded_in_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let history = HistoryBounds { max_bytes: 64 << 10, ..HistoryBounds::default() };
    let options = Options { history, ..Options::default() };
    let store = EmbeddedStore::open(directory.path().join("store.redb"), options).await.unwrap();
    let mut revision = store.create("/a", kilobyte(0)).await.unwrap();
    for index in 0..300 {
        revision = store.update("/a", kilobyte(index), revision).await.unwrap();
    }
    let stats = store.stats().await.unwrap();
    assert!((40..=70).contains(&(stats.revision - stats.compacted)), "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_one_moment_of_a_busy_store() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(open(&directory.path().join("store.redb")).await.unwrap());
    for index in 0..200 {
        store.create(&format!("/k/{index:03}"), kilobyte(index)).await.unwrap();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let busy = {
        let (store, stop) = (store.clone(), stop.clone());
        tokio::spawn(async move {
            let mut index = 200;
            while !stop.load(Ordering::Relaxed) {
                store.create(&format!("/k/{index:03}"), kilobyte(index)).await.unwrap();
                index += 1;
            }
        })
    };
    let path = directory.path().join("backup.redb");
    let revision = store.backup_to(&path).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    busy.await.unwrap();
    let backup = open(&path).await.unwrap();
    backup.check().await.unwrap();
    assert!(revision >= 200);
    assert_eq!(backup.stats().await.unwrap().revision, revision);
    assert_eq!(count(&backup).await as u64, revision, "one key per revision");
    let original = store.list(ListRequest { prefix: "/", at: Some(revision), ..Default::default() }).await.unwrap();
    let copy = backup.list(ListRequest { prefix: "/", ..Default::default() }).await.unwrap();
    assert_eq!(original.items, copy.items);
    let nowhere = store.backup_to(directory.path().join("no/such/backup")).await;
    assert!(matches!(nowhere, Err(Error::Open { .. })), "{nowhere:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_file_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let store = open(&path).await.unwrap();
    store.backup_to(directory.path().join("backup.redb")).await.unwrap();
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
    }
}
