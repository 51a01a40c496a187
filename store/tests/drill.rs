//! The power-loss drill. `SCALEUP_DRILL=full` makes it a thousand images; CI opens fewer.

use scaleup_store::drill::{self, Config, FULL_IMAGES, QUICK_IMAGES, SyncFault};

const SEED: u64 = 20_260_101;

fn images() -> usize {
    match std::env::var("SCALEUP_DRILL").as_deref() {
        Ok("full") => FULL_IMAGES,
        _ => QUICK_IMAGES,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost() {
    let report = drill::run(Config::new(images(), SEED)).await.unwrap();
    println!("{report}");
    assert_eq!(report.failed, 0, "{report}");
    assert!(report.images() + 5 >= images(), "{report}");
    if images() == FULL_IMAGES {
        assert!(report.prefixes >= report.operations, "not every prefix was tried: {report}");
    }
    assert!(report.syncs > 20 && report.acknowledged > 30, "the workload is too small to prove anything: {report}");
}

/// The drill would notice a missing sync, whichever it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_syncs_are_noticed() {
    for fault in [SyncFault::DropAll, SyncFault::DropOdd, SyncFault::DropEven] {
        let report = drill::run(Config { fault, ..Config::new(FULL_IMAGES, SEED) }).await.unwrap();
        println!("{fault:?}: {} of {} images failed", report.failed, report.images());
        assert!(report.failed > 0, "a disk that swallows syncs ({fault:?}) passed: {report}");
    }
}
