//! The conformance suite on the implementations that need nothing but a disk.

use std::sync::Arc;

use scaleup_store::embedded::{EmbeddedStore, Options};
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
