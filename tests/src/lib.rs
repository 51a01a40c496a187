//! What the integration tests stand on: the real binary in a directory of its own, real kubectl, raw HTTPS, Docker.
//!
//! Nothing here knows ScaleUp's crates: the product is seen from outside only.

pub mod claims;
pub mod cluster;
pub mod docker;
pub mod http;
pub mod kubectl;

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long [`eventually`] tries by default: generous, because machines are shared; a pass is quick.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Repeats `check` until it answers `Ok(Some(value))`; the last reason is in the error when patience runs out.
pub async fn eventually<T, F, Fut>(what: &str, mut check: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    let start = Instant::now();
    let mut last = String::from("not yet");
    while start.elapsed() < PATIENCE {
        match check().await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => {}
            Err(e) => last = format!("{e:#}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("{what}: did not happen within {PATIENCE:?}; last: {last}")
}

/// Whether the drills run at the full counts.
pub fn full_drill() -> bool {
    std::env::var("SCALEUP_DRILL").is_ok_and(|v| v == "full")
}
