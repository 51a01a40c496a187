//! The etcd store beyond conformance: outages, regular compaction, and what a user sees when etcd is not there.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use scaleup_store::etcd::local::LocalEtcd;
use scaleup_store::etcd::{EtcdStore, Options};
use scaleup_store::{Error, Event, Revision, Store, Watch, WatchItem};

const PATIENCE: Duration = Duration::from_secs(30);

async fn next_event(watch: &mut Watch) -> Event {
    let event = async {
        loop {
            if let WatchItem::Events(mut events) = watch.next().await.unwrap().unwrap() {
                assert_eq!(events.len(), 1);
                break events.remove(0);
            }
        }
    };
    tokio::time::timeout(PATIENCE, event).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_etcd_is_survived() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = LocalEtcd::start(directory.path().join("etcd")).await.unwrap();
    let store = EtcdStore::connect(&[server.endpoint()], Options::default()).await.unwrap();
    let first = store.create("/a", Bytes::from_static(b"1")).await.unwrap();
    let mut watch = store.watch("/", first).await.unwrap();
    assert_eq!(next_event(&mut watch).await.revision(), first);

    server.kill().unwrap();
    let down = store.create("/b", Bytes::new()).await;
    assert!(matches!(down, Err(Error::Unavailable(_))), "{down:?}");
    server.restart().await.unwrap();

    let mut second: Option<Revision> = None;
    for _ in 0..100 {
        match store.create("/c", Bytes::new()).await {
            Ok(revision) => second = Some(revision),
            Err(Error::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(100)).await,
            // The answer to an earlier attempt was lost with the connection.
            Err(Error::Exists) => second = Some(store.get("/c").await.unwrap().0.unwrap().mod_revision),
            Err(error) => panic!("{error:?}"),
        }
        if second.is_some() {
            break;
        }
    }
    assert_eq!(store.get("/a").await.unwrap().0.unwrap().mod_revision, first);
    assert_eq!(next_event(&mut watch).await.revision(), second.unwrap(), "the watch went on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_history_is_compacted_regularly() {
    let directory = tempfile::tempdir().unwrap();
    let server = LocalEtcd::start(directory.path().join("etcd")).await.unwrap();
    let options = Options { compaction_interval: Duration::from_millis(200), ..Options::default() };
    let store = EtcdStore::connect(&[server.endpoint()], options).await.unwrap();
    let first = store.create("/a", Bytes::new()).await.unwrap();
    store.update("/a", Bytes::from_static(b"2"), first).await.unwrap();
    let compacted = async {
        loop {
            let mut watch = store.watch("/", first).await.unwrap();
            match watch.next().await.unwrap() {
                Err(Error::Compacted { requested, .. }) => break assert_eq!(requested, first),
                Err(error) => panic!("{error:?}"),
                Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, compacted).await.unwrap();
}

#[tokio::test]
async fn an_absent_etcd_is_named() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let endpoint = format!("http://127.0.0.1:{port}");
    match EtcdStore::connect(std::slice::from_ref(&endpoint), Options::default()).await.err() {
        Some(Error::Unavailable(why)) => assert!(why.contains(&endpoint), "{why}"),
        other => panic!("{other:?}"),
    }
}
