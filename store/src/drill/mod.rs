//! The power-loss drill: cuts the power at every moment of a workload and looks at what the embedded store makes of it.
//!
//! `kill -9` leaves the page cache alone and proves nothing about durability. Here the store runs on a disk that records
//! every write, change of length and sync. From the recording the drill builds what a disk could hold after a power cut:
//! every prefix of the writes, torn last writes, and arbitrary subsets of the writes since the last sync. It opens each
//! such image and demands that the store opens, that everything acknowledged is there, that the contents are exactly
//! those of some moment, and that history and counters agree. Some images are cut a second time while they recover.
//! For tests only; it touches no real disk.

mod disk;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;

use crate::embedded::{EmbeddedStore, Options};
use crate::{Error, Event, HistoryBounds, ListRequest, Revision, Store, WatchItem};
pub(crate) use disk::Disk;
pub use disk::SyncFault;
use disk::{CUTS, Cut, Op, image};

/// Images in a full drill.
pub const FULL_IMAGES: usize = 1000;
/// Images in a quick one.
pub const QUICK_IMAGES: usize = 150;
/// Writers at a time in the workload, so that commits group several writes.
const WRITERS: usize = 12;
/// Keys of the workload.
const KEYS: u64 = 40;
/// Rounds of the workload; each round's writes are acknowledged before the next begins.
const ROUNDS: usize = 14;
/// History kept by the workload's store: short, so that compaction runs too.
const HISTORY_EVENTS: u64 = 30;
/// One image in this many is cut again while the store recovers from the first cut.
const SECOND_CUT_EVERY: usize = 5;
/// Failures reported in words; more are only counted.
const MAX_FAILURES: usize = 20;
const CACHE_BYTES: usize = 1 << 20;
/// A replay that yields nothing for this long has a gap.
const PATIENCE: Duration = Duration::from_secs(10);

/// What to drill.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Images to open.
    pub images: usize,
    /// Makes the workload and the cuts repeatable.
    pub seed: u64,
    /// How the disk lies.
    pub fault: SyncFault,
}

impl Config {
    /// An honest disk.
    pub fn new(images: usize, seed: u64) -> Self {
        Self { images, seed, fault: SyncFault::Honest }
    }
}

/// What came out.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Writes that were acknowledged in the workload.
    pub acknowledged: usize,
    /// Operations recorded on the disk.
    pub operations: usize,
    /// Syncs among the operations.
    pub syncs: usize,
    /// Images with every write up to the cut.
    pub prefixes: usize,
    /// Images with a part of the last write.
    pub torn: usize,
    /// Images with any of the writes since the last sync.
    pub reordered: usize,
    /// Images cut again while the store recovered.
    pub second_cuts: usize,
    /// Images that broke a promise.
    pub failed: usize,
    /// The first of them in words.
    pub failures: Vec<String>,
}

impl Report {
    /// Images opened in all.
    pub fn images(&self) -> usize {
        self.prefixes + self.torn + self.reordered + self.second_cuts
    }

    fn record(&mut self, what: &str, result: Result<Recovered, String>) -> Option<Recovered> {
        match result {
            Ok(recovered) => Some(recovered),
            Err(failure) => {
                self.failed += 1;
                if self.failures.len() < MAX_FAILURES {
                    self.failures.push(format!("{what}: {failure}"));
                }
                None
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "power-loss drill: {} images ({} prefixes, {} torn, {} reordered, {} cut again during recovery) of {} disk \
             operations with {} syncs, {} acknowledged writes: {} failed",
            self.images(),
            self.prefixes,
            self.torn,
            self.reordered,
            self.second_cuts,
            self.operations,
            self.syncs,
            self.acknowledged,
            self.failed
        )?;
        self.failures.iter().try_for_each(|failure| write!(f, "\n  {failure}"))
    }
}

/// Small, fast and repeatable (splitmix64); not for anything secret.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Uniform enough in `0..bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

/// What the workload did, as its clients know it.
#[derive(Default)]
struct Truth {
    /// Every write by revision: the key and its new value, `None` for a deletion.
    writes: BTreeMap<Revision, (String, Option<Bytes>)>,
    /// `(position in the disk's log, revision)`: by then everything up to that revision was acknowledged.
    acknowledged: Vec<(usize, Revision)>,
}

impl Truth {
    fn at(&self, revision: Revision) -> BTreeMap<&str, &Bytes> {
        let mut state = BTreeMap::new();
        for (key, value) in self.writes.range(..=revision).map(|(_, write)| write) {
            match value {
                Some(value) => state.insert(key.as_str(), value),
                None => state.remove(key.as_str()),
            };
        }
        state
    }

    /// What must have survived a cut at `position`.
    fn promised(&self, position: usize) -> Revision {
        let kept = self.acknowledged.iter().take_while(|(at, _)| *at <= position);
        kept.map(|(_, revision)| *revision).max().unwrap_or(0)
    }

    fn last(&self) -> Revision {
        self.writes.keys().next_back().copied().unwrap_or(0)
    }
}

fn options() -> Options {
    let history = HistoryBounds { max_events: HISTORY_EVENTS, ..HistoryBounds::default() };
    Options { history, cache_bytes: CACHE_BYTES }
}

async fn open(disk: &Disk) -> Result<EmbeddedStore, Error> {
    let disk = Arc::new(disk.clone());
    let opening = tokio::task::spawn_blocking(|| EmbeddedStore::open_on("drill".to_owned(), disk, options()));
    opening.await.map_err(|error| Error::Unavailable(error.to_string()))?
}

/// Runs the drill.
///
/// # Errors
/// If the workload itself fails, which no cut excuses.
pub async fn run(config: Config) -> Result<Report, Error> {
    let mut random = Random::new(config.seed);
    let base = fresh_image()?;
    let disk = Disk::new(base.clone(), config.fault);
    let truth = workload(&disk, &mut random).await?;
    let log = disk.log();
    let mut report = Report {
        acknowledged: truth.writes.len(),
        operations: log.len(),
        syncs: log.iter().filter(|op| matches!(op, Op::Sync)).count(),
        ..Report::default()
    };
    // Second cuts come out of the same budget.
    let first_cuts = config.images * SECOND_CUT_EVERY / (SECOND_CUT_EVERY + 1);
    for index in 0..first_cuts {
        let cut = CUTS[index % CUTS.len()];
        let at = 1 + index * (log.len() - 1) / first_cuts.max(1);
        let name = format!("{cut:?} at {at} of {}", log.len());
        let cut_disk = Disk::new(image(&base, &log, at, cut, &mut random), SyncFault::Honest);
        let before = cut_disk.contents();
        match cut {
            Cut::Prefix => report.prefixes += 1,
            Cut::Torn => report.torn += 1,
            Cut::Reordered => report.reordered += 1,
        }
        let recovered = report.record(&name, inspect(&cut_disk, &truth, truth.promised(at)).await);
        let Some(recovered) = recovered.filter(|_| index % SECOND_CUT_EVERY == 0) else { continue };
        let again = usize::try_from(random.below(recovered.log.len() as u64 + 1)).unwrap_or(0);
        let twice = Disk::new(image(&before, &recovered.log, again, Cut::Reordered, &mut random), SyncFault::Honest);
        report.second_cuts += 1;
        let name = format!("{name}, again at {again} of {} of its recovery", recovered.log.len());
        report.record(&name, inspect(&twice, &truth, recovered.revision).await);
    }
    Ok(report)
}

/// A new store's file, as it is when it appears under its name.
fn fresh_image() -> Result<Vec<u8>, Error> {
    let disk = Disk::new(Vec::new(), SyncFault::Honest);
    EmbeddedStore::initialize(Arc::new(disk.clone()))?;
    Ok(disk.contents())
}

/// Writers that create, update and delete; what they did.
async fn workload(disk: &Disk, random: &mut Random) -> Result<Truth, Error> {
    let store = open(disk).await?;
    let mut truth = Truth::default();
    let mut known: BTreeMap<String, Revision> = BTreeMap::new();
    for round in 0..ROUNDS {
        // From one writer at a time to all of them: single writes and groups.
        let writers = 1 + round % WRITERS;
        let mut picked: BTreeMap<String, (bool, Bytes)> = BTreeMap::new();
        for _ in 0..writers {
            let size = if random.below(8) == 0 { random.below(20_000) } else { random.below(900) };
            let value = Bytes::from(vec![random.below(256) as u8; usize::try_from(size).unwrap_or(0)]);
            picked.insert(format!("/k/{}", random.below(KEYS)), (random.below(4) == 0, value));
        }
        let writes = picked.into_iter().map(|(key, (delete, value))| {
            let (store, expected) = (&store, known.get(&key).copied());
            async move {
                let revision = match expected {
                    Some(expected) if delete => return Ok((store.delete(&key, expected).await?, key, None)),
                    Some(expected) => store.update(&key, value.clone(), expected).await?,
                    None => store.create(&key, value.clone()).await?,
                };
                Ok::<_, Error>((revision, key, Some(value)))
            }
        });
        for written in join_all(writes).await {
            let (revision, key, value) = written?;
            match value {
                Some(_) => known.insert(key.clone(), revision),
                None => known.remove(&key),
            };
            truth.writes.insert(revision, (key, value));
        }
        truth.acknowledged.push((disk.position(), truth.last()));
    }
    store.close().await;
    Ok(truth)
}

/// What recovery made of an image.
struct Recovered {
    revision: Revision,
    /// What was done to the disk to recover.
    log: Vec<Op>,
}

/// Opens an image, checks every promise, and writes on.
async fn inspect(disk: &Disk, truth: &Truth, promised: Revision) -> Result<Recovered, String> {
    let store = open(disk).await.map_err(|error| format!("does not open: {error}"))?;
    let judged = judge(&store, truth, promised).await;
    let log = disk.log();
    let written = store.create("/after", Bytes::new()).await;
    store.close().await;
    match (judged, written) {
        (Err(failure), _) => Err(failure),
        (_, Err(error)) => Err(format!("cannot be written to: {error}")),
        (Ok(revision), Ok(next)) if next != revision + 1 => Err(format!("revision {next} follows {revision}")),
        (Ok(revision), Ok(_)) => Ok(Recovered { revision, log }),
    }
}

async fn judge(store: &EmbeddedStore, truth: &Truth, promised: Revision) -> Result<Revision, String> {
    let say = |error: Error| error.to_string();
    store.check().await.map_err(say)?;
    let stats = store.stats().await.map_err(say)?;
    if stats.revision < promised {
        return Err(format!("revision {} is there, {promised} was acknowledged", stats.revision));
    }
    if stats.revision > truth.last() {
        return Err(format!("revision {} was never written", stats.revision));
    }
    for at in [stats.compacted, stats.revision] {
        let page =
            store.list(ListRequest { prefix: "/", at: Some(at), ..ListRequest::default() }).await.map_err(say)?;
        let found: BTreeMap<&str, &Bytes> = page.items.iter().map(|kv| (kv.key.as_str(), &kv.value)).collect();
        if found != truth.at(at) {
            return Err(format!("at revision {at} there are other contents than were written"));
        }
    }
    replay(store, truth, stats.compacted, stats.revision).await?;
    Ok(stats.revision)
}

/// The history must be exactly what was written after `compacted`.
async fn replay(store: &EmbeddedStore, truth: &Truth, compacted: Revision, last: Revision) -> Result<(), String> {
    let mut watch = store.watch("/", compacted + 1).await.map_err(|error| error.to_string())?;
    let mut next = compacted + 1;
    while next <= last {
        let item = tokio::time::timeout(PATIENCE, watch.next()).await;
        let Ok(Some(Ok(item))) = item else { return Err(format!("the history ends before {next}: {item:?}")) };
        let WatchItem::Events(events) = item else { continue };
        for event in events {
            let value = match &event {
                Event::Put(kv) => Some(&kv.value),
                Event::Delete { .. } => None,
            };
            let written = truth.writes.get(&next).map(|(key, value)| (key.as_str(), value.as_ref()));
            if event.revision() != next || written != Some((event.key(), value)) {
                return Err(format!("the history has something else at {next}"));
            }
            next += 1;
        }
    }
    Ok(())
}
