//! The conformance suite on every implementation; etcd is started by the test.

use std::sync::Arc;

use scaleup_store::embedded::{EmbeddedStore, Options};
use scaleup_store::etcd::local::LocalEtcd;
use scaleup_store::etcd::{self, EtcdStore};
use scaleup_store::memory::MemoryStore;
use scaleup_store::{Store, conformance};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory() {
    conformance::run(|| async { Arc::new(MemoryStore::new()) as Arc<dyn Store> }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded() {
    let directory = tempfile::tempdir().unwrap();
    let count = std::sync::atomic::AtomicUsize::new(0);
    conformance::run(|| async {
        let index = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = directory.path().join(format!("{index}.redb"));
        Arc::new(EmbeddedStore::open(path, Options::default()).await.unwrap()) as Arc<dyn Store>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd() {
    let directory = tempfile::tempdir().unwrap();
    let server = LocalEtcd::start(directory.path().join("etcd")).await.unwrap();
    let count = std::sync::atomic::AtomicUsize::new(0);
    conformance::run(|| async {
        let index = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // Neighbours whose prefixes share a stem.
        let options = etcd::Options { prefix: format!("/test{index}"), ..etcd::Options::default() };
        Arc::new(EtcdStore::connect(&[server.endpoint()], options).await.unwrap()) as Arc<dyn Store>
    })
    .await;
}
