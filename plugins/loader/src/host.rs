//! The host, started when the first plugin is seen: a process without plugins pays nothing.

use scaleup_plugins::{Host, HostError, HostOptions};
use tokio::sync::OnceCell;

/// See the module.
#[derive(Debug)]
pub struct LazyHost {
    options: HostOptions,
    host: OnceCell<Host>,
}

impl LazyHost {
    /// Nothing is started or made yet.
    pub fn new(options: HostOptions) -> Self {
        Self { options, host: OnceCell::new() }
    }

    /// The host.
    ///
    /// # Errors
    /// If it does not start; the next call tries again.
    pub async fn get(&self) -> Result<&Host, HostError> {
        let start = || async {
            let options = self.options.clone();
            let path = options.cache.clone();
            let started = tokio::task::spawn_blocking(move || Host::start(options)).await;
            started.unwrap_or_else(|error| Err(HostError::Cache { path, error: std::io::Error::other(error) }))
        };
        self.host.get_or_try_init(start).await
    }
}
