//! The loop around one watch: through any outage of the API, with pauses that grow and are spread out.

use std::fmt::Debug;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource};
use rand::RngExt;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// How long to pause between attempts to watch.
#[derive(Clone, Copy)]
pub struct Pauses {
    /// After the first failure; doubles with each further one.
    pub first: Duration,
    /// The longest.
    pub longest: Duration,
}

/// Hands every event to `on`, and `None` whenever the watch failed, until `stop`. `kind` is for the log.
pub async fn watch<K>(
    api: Api<K>,
    config: watcher::Config,
    kind: &str,
    pauses: Pauses,
    stop: &CancellationToken,
    mut on: impl FnMut(Option<Event<K>>),
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut stream = std::pin::pin!(watcher::watcher(api, config));
    let mut pause = pauses.first;
    loop {
        let event = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            event = stream.next() => event,
        };
        match event {
            None => return,
            Some(Ok(event)) => {
                if !matches!(event, Event::Init) {
                    // `Init` is only the intention to list.
                    pause = pauses.first;
                }
                // Whoever stopped it while the event was on its way wants to hear of nothing more.
                if stop.is_cancelled() {
                    return;
                }
                on(Some(event));
            }
            Some(Err(e)) => {
                on(None);
                debug!(kind, error = %e, "watch failed; will retry");
                let jitter = rand::rng().random_range(0.75..1.25);
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(pause.mul_f64(jitter)) => {}
                }
                pause = (pause * 2).min(pauses.longest);
            }
        }
    }
}
