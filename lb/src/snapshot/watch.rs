//! Feeds the [`Compiler`] from the API and publishes a snapshot after every event, without a debounce delay.
//!
//! Events that are already waiting are folded into one snapshot. While the API is away the last snapshot stays in force;
//! a watch that restarts replaces its objects only when its list is complete. A kind that the API server does not serve (or does not let us
//! see) counts as empty until it does. Statuses are planned after changes, at most ten times a second; [`super::write`] writes them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::stream::{BoxStream, select_all};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt, utils::Backoff};
use kube::{Api, Client};
use scaleup_api::gateway::{
    BackendTLSPolicy, GRPCRoute, Gateway, GatewayClass, HTTPRoute, ReferenceGrant, TCPRoute, TLSRoute, UDPRoute,
};
use scaleup_api::traffic::TrafficPolicy;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::objects::object_key;
use super::statuses::Plan;
use super::{Compiler, Kind, Object};
use crate::hub::Hub;
use crate::listeners::Report;

/// Events folded into one snapshot at most, so that a long burst still takes effect along the way.
const MAX_BATCH: usize = 256;
/// First and longest pause between attempts to reach the API.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Pause between attempts to see a kind that is not served.
const UNSERVED_PAUSE: Duration = Duration::from_secs(20);
/// Pause between a change and the plan of statuses, so that a burst makes one.
const STATUS_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause before the next plan if one did not hold everything.
const MORE_PAUSE: Duration = Duration::from_secs(1);

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

/// What one of the watches says.
enum Change {
    Event(Kind, Event<Object>),
    /// The API server does not serve the kind.
    Unserved(Kind),
}

/// Objects of lists in progress, and which lists were complete once. Nothing is published before all are: a Service without its endpoints
/// would refuse traffic that its pods are ready for, a listener without its routes would answer 404.
#[derive(Default)]
struct Progress {
    lists: BTreeMap<Kind, Vec<Object>>,
    listed: BTreeSet<Kind>,
}

/// How statuses are told: the listeners' report and the own address go in, plans come out.
pub(crate) struct Statuses {
    pub reports: watch::Receiver<Report>,
    pub ip: String,
    pub plans: watch::Sender<Plan>,
}

/// Watches until `shutdown`; never returns on API errors.
pub(crate) async fn run(
    client: Client,
    mut compiler: Compiler,
    hub: &Hub,
    mut statuses: Option<Statuses>,
    shutdown: CancellationToken,
) {
    let mut changes = all(&client);
    let mut progress = Progress::default();
    let mut status_due: Option<Instant> = None;
    let mut plugins = hub.plugins().changes();
    loop {
        let first = tokio::select! {
            change = changes.next() => match change {
                Some(change) => change,
                None => return,
            },
            () = reported(&mut statuses) => {
                compiler.reported();
                status_due = sooner(status_due);
                continue;
            }
            // Its sender is the hub's.
            Ok(()) = plugins.changed() => {
                status_due = sooner(status_due);
                continue;
            }
            () = sleep_until(status_due) => {
                let statuses = statuses.as_ref().filter(|_| progress.is_complete());
                let more = statuses.is_some_and(|statuses| plan_statuses(&mut compiler, statuses));
                // Those of this plan are seen when they are written, and planned anew then; unless none can be.
                status_due = more.then(|| Instant::now() + MORE_PAUSE);
                continue;
            }
            () = shutdown.cancelled() => return,
        };
        let since = std::time::Instant::now();
        let mut publish = apply(&mut compiler, &mut progress, first);
        for _ in 1..MAX_BATCH {
            let Some(Some(change)) = changes.next().now_or_never() else { break };
            publish |= apply(&mut compiler, &mut progress, change);
        }
        if publish && progress.is_complete() {
            hub.publish_since(compiler.snapshot(), Some(since));
            status_due = sooner(status_due);
        }
    }
}

/// Whether there is more to be told than fits in a plan.
fn plan_statuses(compiler: &mut Compiler, statuses: &Statuses) -> bool {
    let plan = {
        let report = statuses.reports.borrow();
        compiler.statuses(&report, &statuses.ip, k8s_openapi::jiff::Timestamp::now())
    };
    let more = plan.more;
    statuses.plans.send_if_modified(|old| {
        let changed = *old != plan;
        *old = plan;
        changed
    });
    more
}

/// Something has changed: the next plan is made soon, and not later than known.
fn sooner(known: Option<Instant>) -> Option<Instant> {
    let due = Instant::now() + STATUS_PAUSE;
    Some(known.map_or(due, |known| known.min(due)))
}

/// Waits for the next report of the listeners.
async fn reported(statuses: &mut Option<Statuses>) {
    let gone = match statuses {
        Some(statuses) => statuses.reports.changed().await.is_err(),
        None => true,
    };
    if gone {
        std::future::pending::<()>().await;
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The watches of all kinds.
fn all(client: &Client) -> impl futures::Stream<Item = Change> + Send + Unpin + use<> {
    let any = watcher::Config::default;
    let secrets = any().fields("type=kubernetes.io/tls");
    select_all([
        watched::<Service>(client, Kind::Service, any()),
        watched::<EndpointSlice>(client, Kind::EndpointSlice, any()),
        watched::<Node>(client, Kind::Node, any()),
        watched::<Namespace>(client, Kind::Namespace, any()),
        watched::<IngressClass>(client, Kind::IngressClass, any()),
        watched::<Ingress>(client, Kind::Ingress, any()),
        watched::<GatewayClass>(client, Kind::GatewayClass, any()),
        watched::<Gateway>(client, Kind::Gateway, any()),
        watched::<HTTPRoute>(client, Kind::HTTPRoute, any()),
        watched::<GRPCRoute>(client, Kind::GRPCRoute, any()),
        watched::<TLSRoute>(client, Kind::TLSRoute, any()),
        watched::<TCPRoute>(client, Kind::TCPRoute, any()),
        watched::<UDPRoute>(client, Kind::UDPRoute, any()),
        watched::<ReferenceGrant>(client, Kind::ReferenceGrant, any()),
        watched::<BackendTLSPolicy>(client, Kind::BackendTLSPolicy, any()),
        watched::<TrafficPolicy>(client, Kind::TrafficPolicy, any()),
        watched::<Secret>(client, Kind::Secret, secrets),
        watched::<ConfigMap>(client, Kind::ConfigMap, any()),
    ])
}

/// A watch over all namespaces that retries for ever; errors are logged, not passed on.
fn watched<K>(client: &Client, kind: Kind, config: watcher::Config) -> BoxStream<'static, Change>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + serde::de::DeserializeOwned + 'static,
    Object: From<K>,
{
    let events = watcher(Api::<K>::all(client.clone()), config).backoff(Retry(RETRY_MIN)).boxed();
    let next = move |(mut events, mut unserved): (BoxStream<'static, watcher::Result<Event<K>>>, bool)| async move {
        loop {
            match events.next().await? {
                Ok(event) => return Some((Change::Event(kind, any_kind(event)), (events, false))),
                Err(error) if is_unserved(&error) && unserved => tokio::time::sleep(UNSERVED_PAUSE).await,
                Err(error) if is_unserved(&error) => {
                    tracing::info!(kind = kind.as_str(), %error, "the API server does not serve this kind; it counts as empty");
                    return Some((Change::Unserved(kind), (events, true)));
                }
                Err(error) => {
                    unserved = false;
                    tracing::debug!(kind = kind.as_str(), %error, "watch interrupted, retrying");
                }
            }
        }
    };
    futures::stream::unfold((events, false), next).boxed()
}

fn any_kind<K>(event: Event<K>) -> Event<Object>
where
    Object: From<K>,
{
    match event {
        Event::Apply(object) => Event::Apply(object.into()),
        Event::Delete(object) => Event::Delete(object.into()),
        Event::Init => Event::Init,
        Event::InitApply(object) => Event::InitApply(object.into()),
        Event::InitDone => Event::InitDone,
    }
}

/// Whether a list failed because there is nothing to be listed for us.
fn is_unserved(error: &watcher::Error) -> bool {
    let watcher::Error::InitialListFailed(kube::Error::Api(status)) = error else { return false };
    matches!(status.code, 403 | 404)
}

impl Progress {
    fn is_complete(&self) -> bool {
        self.listed.len() == Kind::ALL.len()
    }
}

/// Puts one event into the compiler; true when the snapshot may have changed.
fn apply(compiler: &mut Compiler, progress: &mut Progress, change: Change) -> bool {
    match change {
        Change::Event(_, Event::Apply(object)) => compiler.apply(object),
        Change::Event(kind, Event::Delete(object)) => {
            if let Some(key) = object_key(object.metadata()) {
                compiler.delete(kind, &key);
            }
        }
        Change::Event(kind, Event::Init) => {
            progress.lists.remove(&kind);
            return false;
        }
        Change::Event(kind, Event::InitApply(object)) => {
            progress.lists.entry(kind).or_default().push(object);
            return false;
        }
        Change::Event(kind, Event::InitDone) => {
            progress.listed.insert(kind);
            compiler.replace(kind, progress.lists.remove(&kind).unwrap_or_default());
        }
        Change::Unserved(kind) => return progress.listed.insert(kind),
    }
    true
}
