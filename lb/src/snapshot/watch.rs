//! Feeds the [`Compiler`] from the API and publishes a snapshot after every event, without a debounce delay.
//!
//! Events that are already waiting are folded into one snapshot. While the API is away the last snapshot stays in force;
//! a watch that restarts replaces its objects only when its list is complete.

use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt, stream::BoxStream};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt, utils::Backoff};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use super::Compiler;
use crate::hub::Hub;

/// Events folded into one snapshot at most, so that a long burst still takes effect along the way.
const MAX_BATCH: usize = 256;
/// First and longest pause between attempts to reach the API.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Doubling pauses between attempts, bounded by [`RETRY_MAX`], forever.
#[derive(Clone)]
struct Retry(Duration);

impl Iterator for Retry {
    type Item = Duration;
    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(RETRY_MAX);
        Some(pause)
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        self.0 = RETRY_MIN;
    }
}

/// One event of any of the watches.
#[allow(clippy::large_enum_variant, reason = "one exists at a time and is moved once")]
enum Change {
    Service(Event<Service>),
    Slice(Event<EndpointSlice>),
    Node(Event<Node>),
}

/// Objects of a list in progress, and which lists were complete once. Nothing is published before both are: a Service
/// without its endpoints would refuse traffic that its pods are ready for.
#[derive(Default)]
struct Progress {
    services: Vec<Service>,
    slices: Vec<EndpointSlice>,
    services_listed: bool,
    slices_listed: bool,
}

/// Watches until `shutdown`; never returns on API errors.
pub(crate) async fn run(
    client: Client,
    node_name: &str,
    mut compiler: Compiler,
    hub: &Hub,
    shutdown: CancellationToken,
) {
    let node = watcher::Config::default().fields(&format!("metadata.name={node_name}"));
    let mut changes: BoxStream<'static, Change> = futures::stream::select(
        futures::stream::select(
            watched::<Service>(&client, watcher::Config::default()).map(Change::Service),
            watched::<EndpointSlice>(&client, watcher::Config::default()).map(Change::Slice),
        ),
        watched::<Node>(&client, node).map(Change::Node),
    )
    .boxed();
    let mut progress = Progress::default();
    loop {
        let first = tokio::select! {
            change = changes.next() => change,
            () = shutdown.cancelled() => return,
        };
        let Some(first) = first else { return };
        let since = std::time::Instant::now();
        let mut publish = apply(&mut compiler, &mut progress, first);
        for _ in 1..MAX_BATCH {
            let Some(Some(change)) = changes.next().now_or_never() else { break };
            publish |= apply(&mut compiler, &mut progress, change);
        }
        if publish && progress.services_listed && progress.slices_listed {
            hub.publish_since(compiler.snapshot(), Some(since));
        }
    }
}

/// A watch over all namespaces that retries for ever; errors are logged, not passed on.
fn watched<K>(client: &Client, config: watcher::Config) -> impl Stream<Item = Event<K>> + Send + use<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + serde::de::DeserializeOwned + 'static,
{
    watcher(Api::<K>::all(client.clone()), config).backoff(Retry(RETRY_MIN)).filter_map(|event| async move {
        event.inspect_err(|error| tracing::debug!(kind = %K::kind(&()), %error, "watch interrupted, retrying")).ok()
    })
}

/// Puts one event into the compiler; true when the snapshot may have changed.
fn apply(compiler: &mut Compiler, progress: &mut Progress, change: Change) -> bool {
    match change {
        Change::Service(Event::Apply(service)) => compiler.apply_service(service),
        Change::Service(Event::Delete(service)) => compiler.delete_service(&service),
        Change::Service(Event::Init) => {
            progress.services.clear();
            return false;
        }
        Change::Service(Event::InitApply(service)) => {
            progress.services.push(service);
            return false;
        }
        Change::Service(Event::InitDone) => {
            progress.services_listed = true;
            compiler.replace_services(std::mem::take(&mut progress.services));
        }
        Change::Slice(Event::Apply(slice)) => compiler.apply_slice(slice),
        Change::Slice(Event::Delete(slice)) => compiler.delete_slice(&slice),
        Change::Slice(Event::Init) => {
            progress.slices.clear();
            return false;
        }
        Change::Slice(Event::InitApply(slice)) => {
            progress.slices.push(slice);
            return false;
        }
        Change::Slice(Event::InitDone) => {
            progress.slices_listed = true;
            compiler.replace_slices(std::mem::take(&mut progress.slices));
        }
        Change::Node(Event::Apply(node) | Event::InitApply(node)) => compiler.apply_node(&node),
        // A Node that is deleted and registered again keeps its network meanwhile.
        Change::Node(Event::Delete(_) | Event::Init | Event::InitDone) => return false,
    }
    true
}
