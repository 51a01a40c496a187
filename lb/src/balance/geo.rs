//! Where clients are, from a database in MaxMind's format (GeoLite2-City and its like), loaded again when the file changes.
//!
//! Only `location.latitude` and `location.longitude` are read. Without a database nobody's place is known, which is never an error.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

/// Pause between looks at the file.
const RELOAD_INTERVAL: Duration = Duration::from_secs(5);
/// Largest database that is loaded.
const MAX_BYTES: u64 = 1024 * 1024 * 1024;

/// The database in force, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Geo {
    reader: ArcSwapOption<maxminddb::Reader<Vec<u8>>>,
}

#[derive(Deserialize)]
struct Record {
    location: Option<Location>,
}

#[derive(Deserialize)]
struct Location {
    latitude: Option<f64>,
    longitude: Option<f64>,
}

/// Why a database was not loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("cannot be read")]
    Read(#[source] std::io::Error),
    #[error("is larger than a gigabyte")]
    TooLarge,
    #[error("is not a MaxMind database")]
    Format(#[source] maxminddb::MaxMindDbError),
}

impl Geo {
    /// Degrees north and east of where a client is.
    pub fn place(&self, client: IpAddr) -> Option<(f64, f64)> {
        let reader = self.reader.load();
        let record: Record = reader.as_ref()?.lookup(client).ok()?.decode().ok()??;
        let location = record.location?;
        Some((location.latitude.filter(|n| n.is_finite())?, location.longitude.filter(|n| n.is_finite())?))
    }

    fn load(&self, path: &Path) -> Result<(), LoadError> {
        if std::fs::metadata(path).map_err(LoadError::Read)?.len() > MAX_BYTES {
            return Err(LoadError::TooLarge);
        }
        let bytes = std::fs::read(path).map_err(LoadError::Read)?;
        let reader = maxminddb::Reader::from_source(bytes).map_err(LoadError::Format)?;
        self.reader.store(Some(Arc::new(reader)));
        Ok(())
    }
}

/// Keeps `geo` as the file says until `shutdown`. A file that is gone or broken leaves the last good one in force.
pub(crate) async fn run(geo: Arc<Geo>, path: PathBuf, shutdown: CancellationToken) {
    let mut loaded: Option<(u64, SystemTime)> = None;
    loop {
        let stamp = std::fs::metadata(&path).ok().and_then(|meta| Some((meta.len(), meta.modified().ok()?)));
        if stamp.is_none() && loaded.is_none() {
            tracing::debug!(path = %path.display(), "there is no GeoIP database (yet)");
        }
        if stamp.is_some() && stamp != loaded {
            loaded = stamp;
            let (geo, path) = (geo.clone(), path.clone());
            // A gigabyte takes a while.
            let result = tokio::task::spawn_blocking(move || geo.load(&path).map_err(|error| (path, error))).await;
            if let Ok(Err((path, error))) = result {
                tracing::warn!(path = %path.display(), error = &error as &dyn std::error::Error, "the GeoIP database was not loaded");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(RELOAD_INTERVAL) => {}
            () = shutdown.cancelled() => return,
        }
    }
}
