//! The embedded store on disks that are damaged or full.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use redb::{Builder, StorageBackend};

use super::layout::{FORMAT, META, META_FORMAT};
use super::*;
use crate::drill::{Disk, Random, SyncFault};

fn blank() -> Disk {
    let disk = Disk::new(Vec::new(), SyncFault::Honest);
    EmbeddedStore::initialize(Arc::new(disk.clone())).unwrap();
    disk
}

fn open(storage: impl StorageBackend) -> Result<EmbeddedStore> {
    EmbeddedStore::open_on("test".to_owned(), Arc::new(storage), Options::default())
}

/// A store with something of everything in it, closed.
async fn populated() -> Vec<u8> {
    let disk = blank();
    let store = open(disk.clone()).unwrap();
    for index in 0..60_u8 {
        let value = Bytes::from(vec![index; 100 + usize::from(index) * 37]);
        let revision = store.create(&format!("/k/{index}"), value.clone()).await.unwrap();
        match index % 3 {
            0 => drop(store.update(&format!("/k/{index}"), value, revision).await.unwrap()),
            1 => drop(store.delete(&format!("/k/{index}"), revision).await.unwrap()),
            _ => {}
        }
    }
    store.close().await;
    disk.contents()
}

/// Opens a damaged file: it must be refused, or be whole after all (damage may hit unused space). Never a panic.
async fn examine(what: &str, bytes: Vec<u8>, expected: &Page) -> bool {
    let store = match open(Disk::new(bytes, SyncFault::Honest)) {
        Ok(store) => store,
        Err(Error::Corrupt { .. } | Error::Format { .. }) => return false,
        Err(error) => panic!("{what}: {error:?}"),
    };
    let page = store.list(ListRequest { prefix: "/", ..Default::default() }).await;
    let page = page.unwrap_or_else(|error| panic!("{what}: opened, but {error:?}"));
    assert_eq!(
        (&page.items, page.revision),
        (&expected.items, expected.revision),
        "{what}: opened with other contents"
    );
    store.check().await.unwrap_or_else(|error| panic!("{what}: opened, but {error:?}"));
    store.close().await;
    true
}

async fn pristine(bytes: &[u8]) -> Page {
    let store = open(Disk::new(bytes.to_vec(), SyncFault::Honest)).unwrap();
    let page = store.list(ListRequest { prefix: "/", ..Default::default() }).await.unwrap();
    store.close().await;
    page
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flipped_bytes_are_refused_or_harmless() {
    const FLIPS: u64 = 600;
    let good = populated().await;
    let expected = pristine(&good).await;
    assert!(expected.items.len() > 30);
    let mut random = Random::new(7);
    let mut refused = 0;
    for flip in 0..FLIPS {
        // The header and its neighbourhood densely, the rest everywhere.
        let range = if flip % 4 == 0 { 512 } else { good.len() as u64 };
        let at = random.below(range) as usize;
        let mut bytes = good.clone();
        bytes[at] ^= 1 << random.below(8);
        if !examine(&format!("byte {at} flipped"), bytes, &expected).await {
            refused += 1;
        }
    }
    assert!(refused > FLIPS / 10, "only {refused} of {FLIPS} flips were noticed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overwritten_pages_are_refused_or_harmless() {
    let good = populated().await;
    let expected = pristine(&good).await;
    let mut random = Random::new(11);
    for page in 0..good.len() / 4096 {
        let mut bytes = good.clone();
        for byte in &mut bytes[page * 4096..(page + 1) * 4096] {
            *byte = random.below(256) as u8;
        }
        examine(&format!("page {page} overwritten"), bytes, &expected).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncated_files_are_refused() {
    let good = populated().await;
    let expected = pristine(&good).await;
    let mut lengths: Vec<usize> = (0..good.len()).step_by(1777).collect();
    lengths.extend([0, 1, 8, 9, 63, 64, 320, 511, 512, 4095, 4096, 4097, good.len() - 4096, good.len() - 1]);
    for length in lengths {
        let whole = examine(&format!("cut to {length} bytes"), good[..length].to_vec(), &expected).await;
        assert!(!whole, "a file cut to {length} of {} bytes was accepted", good.len());
    }
}

/// A disk with room for so many bytes.
#[derive(Clone, Debug)]
struct Small {
    disk: Disk,
    room: Arc<AtomicU64>,
}

impl StorageBackend for Small {
    fn len(&self) -> io::Result<u64> {
        StorageBackend::len(&self.disk)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.sync_data()
    }

    // As on a file system with sparse files: growing is free, writing into the new part is not.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if offset + data.len() as u64 > self.room.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.disk.write(offset, data)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writes_and_recovers() {
    let room = Arc::new(AtomicU64::new(400_000));
    let store = open(Small { disk: blank(), room: room.clone() }).unwrap();
    let value = Bytes::from(vec![7; 5000]);
    let mut written = 0_u64;
    let error = loop {
        match store.create(&format!("/k/{written}"), value.clone()).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 1000, "the disk never filled up");
    };
    assert!(matches!(error, Error::NoSpace), "{error:?}");
    assert!(written > 10);
    // Reads go on, and nothing of the refused write is there.
    let page = store.list(ListRequest { prefix: "/", ..Default::default() }).await.unwrap();
    assert_eq!(page.items.len() as u64, written);
    let first = store.create("/more", value.clone()).await;
    assert!(matches!(first, Err(Error::NoSpace)), "{first:?}");

    room.store(u64::MAX, Ordering::Relaxed);
    let mut recovered = None;
    for _ in 0..100 {
        match store.create("/more", value.clone()).await {
            Ok(revision) => recovered = Some(revision),
            Err(Error::NoSpace) => {}
            Err(error) => panic!("{error:?}"),
        }
        if recovered.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(recovered, Some(written + 1), "no revision was used up by refused writes");
    store.check().await.unwrap();
    store.close().await;
}

/// A disk that fails once at a given write.
#[derive(Debug)]
struct Flaky {
    disk: Disk,
    writes_left: AtomicU64,
}

impl StorageBackend for Flaky {
    fn len(&self) -> io::Result<u64> {
        StorageBackend::len(&self.disk)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.writes_left.fetch_sub(1, Ordering::Relaxed) == 1 {
            return Err(io::Error::other("a cable came loose"));
        }
        self.disk.write(offset, data)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn io_errors_do_not_need_a_restart() {
    for writes_left in 1..40 {
        let disk = Flaky { disk: blank(), writes_left: AtomicU64::new(u64::MAX) };
        let disk = Arc::new(disk);
        let store = EmbeddedStore::open_on("test".to_owned(), disk.clone(), Options::default()).unwrap();
        disk.writes_left.store(writes_left, Ordering::Relaxed);
        let mut acknowledged = Vec::new();
        let mut failed = 0;
        for index in 0..20 {
            let key = format!("/k/{index}");
            match store.create(&key, Bytes::from_static(b"value")).await {
                Ok(_) => acknowledged.push(key),
                Err(Error::Engine(_) | Error::Unavailable(_)) => failed += 1,
                Err(error) => panic!("{error:?}"),
            }
        }
        assert!(failed <= 1, "one failed write failed {failed} requests");
        let page = store.list(ListRequest { prefix: "/", ..Default::default() }).await.unwrap();
        let found: Vec<&str> = page.items.iter().map(|kv| kv.key.as_str()).collect();
        acknowledged.sort_unstable();
        assert_eq!(found, acknowledged, "after failing at write {writes_left}");
        store.check().await.unwrap();
        store.close().await;
    }
}

#[tokio::test]
async fn unknown_formats_are_refused() {
    let disk = blank();
    {
        let database = Builder::new().create_with_backend(storage::Shared(Arc::new(disk.clone()))).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert(META_FORMAT, FORMAT + 1).unwrap();
        transaction.commit().unwrap();
    }
    match open(disk).err() {
        Some(Error::Format { found, supported, .. }) => assert_eq!((found, supported), (FORMAT + 1, FORMAT)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_failed_write_leaves_its_batch_alone() {
    let store = open(blank()).unwrap();
    store.create("/taken", Bytes::new()).await.unwrap();
    let writes = (0..200).map(|index| {
        let key = if index % 4 == 0 { "/taken".to_owned() } else { format!("/k/{index}") };
        let store = &store;
        async move { (index, store.create(&key, Bytes::new()).await) }
    });
    for (index, result) in futures::future::join_all(writes).await {
        match result {
            Ok(_) => assert!(index % 4 != 0),
            Err(Error::Exists) => assert!(index % 4 == 0),
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(store.stats().await.unwrap().revision, 151);
}

#[tokio::test]
async fn slow_watchers_are_cut_off() {
    use crate::hub::MAX_UNDELIVERED_BYTES;
    let store = open(blank()).unwrap();
    let mut watch = store.watch("/", 1).await.unwrap();
    let value = Bytes::from(vec![1; 1 << 20]);
    for index in 0..=MAX_UNDELIVERED_BYTES >> 20 {
        store.create(&format!("/k/{index}"), value.clone()).await.unwrap();
    }
    let mut last = None;
    while let Some(item) = watch.next().await {
        last = Some(item);
    }
    assert!(matches!(last, Some(Err(Error::SlowWatcher(events))) if events > 50), "{last:?}");
}
