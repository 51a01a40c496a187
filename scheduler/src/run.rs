//! The loop around the core: watches in, bindings and reports out.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Binding, Namespace, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::core::Request;
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use scaleup_api::plugin::{ClusterWasmPlugin, WasmPlugin};
use scaleup_plugins::PluginKey;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::core::{Change, Core, Decision, Outcome};
use crate::metrics::{Attempt, Metrics};
use crate::node::NodeFacts;
use crate::pod::PodInfo;
use crate::report::{Report, Reporter};
use crate::{Config, Error};

/// Changes that wait to be applied; beyond that the watches wait.
const CHANGES: usize = 8192;
/// Changes applied before the next decisions.
const CHANGES_PER_TURN: usize = 1024;
/// Decisions before the next look at what changed.
const DECISIONS_PER_TURN: usize = 64;
/// How often stale state is looked for.
const TIDY_INTERVAL: Duration = Duration::from_secs(30);
/// How often it is looked whether other versions of users' plugins decide.
const PLUGINS_INTERVAL: Duration = Duration::from_secs(1);
/// How long bindings under way are waited for on shutdown.
const DRAIN: Duration = Duration::from_secs(5);
/// A binding that takes longer has failed.
const BIND_TIMEOUT: Duration = Duration::from_secs(30);
/// A watch that fails is opened again after this, doubling…
const WATCH_BACKOFF: Duration = Duration::from_millis(200);
/// …up to this.
const WATCH_BACKOFF_MAX: Duration = Duration::from_secs(10);

/// A binding's end.
struct Finished {
    pod: std::sync::Arc<PodInfo>,
    node: String,
    /// What the API said, if it did not work.
    failure: Option<(Outcome, String)>,
    took: Duration,
}

struct WatchBackoff(Duration);

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = self.0;
        self.0 = (wait * 2).min(WATCH_BACKOFF_MAX);
        Some(wait)
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.0 = WATCH_BACKOFF;
    }
}

/// How objects of one kind become changes.
struct Translation<K, Id = String> {
    put: fn(&K) -> Change,
    gone: fn(&K) -> Change,
    /// The identity that `listed` wants.
    id: fn(&K) -> Id,
    listed: fn(HashSet<Id>) -> Change,
}

/// Follows all objects of a kind for as long as somebody listens.
async fn follow<K, Id>(client: Client, translation: Translation<K, Id>, changes: mpsc::Sender<Change>)
where
    Id: Eq + Hash + Send,
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let watch = watcher(Api::<K>::all(client), watcher::Config::default()).backoff(WatchBackoff(WATCH_BACKOFF));
    let mut watch = std::pin::pin!(watch);
    let mut seen = HashSet::new();
    let mut healthy = true;
    while let Some(event) = watch.next().await {
        let change = match event {
            Ok(watcher::Event::Init) => {
                seen.clear();
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                seen.insert((translation.id)(&object));
                (translation.put)(&object)
            }
            Ok(watcher::Event::InitDone) => (translation.listed)(std::mem::take(&mut seen)),
            Ok(watcher::Event::Apply(object)) => (translation.put)(&object),
            Ok(watcher::Event::Delete(object)) => (translation.gone)(&object),
            Err(error) => {
                // Once per outage: the API may be away for any time.
                if std::mem::take(&mut healthy) {
                    tracing::warn!(kind = %K::kind(&()), %error, "cannot watch; trying again");
                }
                continue;
            }
        };
        healthy = true;
        if changes.send(change).await.is_err() {
            return;
        }
    }
}

fn name(metadata: &ObjectMeta) -> String {
    metadata.name.clone().unwrap_or_default()
}

fn plugin_key(metadata: &ObjectMeta) -> PluginKey {
    PluginKey::namespaced(
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default(),
    )
}

fn watch_everything(client: &Client, tasks: &mut JoinSet<()>) -> mpsc::Receiver<Change> {
    let (changes, receiver) = mpsc::channel(CHANGES);
    let uid = |pod: &Pod| pod.metadata.uid.clone().unwrap_or_default();
    let pods = Translation::<Pod> {
        put: |pod| Change::Pod(Box::new(PodInfo::from(pod))),
        gone: |pod| Change::PodGone(pod.metadata.uid.clone().unwrap_or_default()),
        id: uid,
        listed: Change::PodsListed,
    };
    let nodes = Translation::<Node> {
        put: |node| Change::Node(Box::new(NodeFacts::from(node))),
        gone: |node| Change::NodeGone(name(&node.metadata)),
        id: |node| name(&node.metadata),
        listed: Change::NodesListed,
    };
    let namespaces = Translation::<Namespace> {
        put: |one| Change::Namespace(name(&one.metadata), one.metadata.labels.clone().unwrap_or_default()),
        gone: |one| Change::NamespaceGone(name(&one.metadata)),
        id: |one| name(&one.metadata),
        listed: |_| Change::NamespacesListed,
    };
    let cluster_plugins = Translation::<ClusterWasmPlugin, PluginKey> {
        put: |one| Change::Plugin(plugin_key(&one.metadata), Box::new(one.spec.clone())),
        gone: |one| Change::PluginGone(plugin_key(&one.metadata)),
        id: |one| plugin_key(&one.metadata),
        listed: |seen| Change::PluginsListed(true, seen),
    };
    let plugins = Translation::<WasmPlugin, PluginKey> {
        put: |one| Change::Plugin(plugin_key(&one.metadata), Box::new(one.spec.clone())),
        gone: |one| Change::PluginGone(plugin_key(&one.metadata)),
        id: |one| plugin_key(&one.metadata),
        listed: |seen| Change::PluginsListed(false, seen),
    };
    tasks.spawn(follow(client.clone(), cluster_plugins, changes.clone()));
    tasks.spawn(follow(client.clone(), plugins, changes.clone()));
    tasks.spawn(follow(client.clone(), pods, changes.clone()));
    tasks.spawn(follow(client.clone(), nodes, changes.clone()));
    tasks.spawn(follow(client.clone(), namespaces, changes));
    receiver
}

/// Sends one `pods/binding`.
async fn bind(client: Client, pod: std::sync::Arc<PodInfo>, node: String, started: Instant) -> Finished {
    let failure = match tokio::time::timeout(BIND_TIMEOUT, post_binding(&client, &pod, &node)).await {
        Ok(Ok(())) => None,
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Some((Outcome::Gone, status.message.clone())),
        Ok(Err(error)) => Some((Outcome::Failed, error.to_string())),
        Err(_) => Some((Outcome::Failed, format!("no answer within {BIND_TIMEOUT:?}"))),
    };
    Finished { pod, node, failure, took: started.elapsed() }
}

async fn post_binding(client: &Client, pod: &PodInfo, node: &str) -> Result<(), kube::Error> {
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(pod.name.clone()),
            namespace: Some(pod.namespace.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let body = serde_json::to_vec(&binding).map_err(kube::Error::SerdeError)?;
    let request = Request::new(Pod::url_path(&(), Some(&pod.namespace)));
    let request = request.create_subresource("binding", &pod.name, &PostParams::default(), body);
    client.request::<IgnoredAny>(request.map_err(kube::Error::BuildRequest)?).await.map(drop)
}

/// Everything the loop owns.
struct Loop {
    client: Client,
    core: Core,
    config: Config,
    metrics: Metrics,
    reporter: Reporter,
    bindings: JoinSet<Finished>,
}

impl Loop {
    /// Whether another pod can be tried right now.
    fn can_decide(&self, now: Instant) -> bool {
        self.bindings.len() < self.config.max_bindings && self.core.is_ready(now)
    }

    /// How long nothing will happen by itself.
    fn idle(&self, now: Instant, tidy_at: Instant) -> Duration {
        let due = if self.bindings.len() < self.config.max_bindings { self.core.next_due() } else { None };
        let look_at = if self.core.asks_plugins() { tidy_at.min(now + PLUGINS_INTERVAL) } else { tidy_at };
        due.map_or(look_at, |due| due.min(look_at)).saturating_duration_since(now)
    }

    /// Decides; where users' plugins take their time, other tasks of this thread go on elsewhere meanwhile.
    fn decide(&mut self) {
        if !self.core.asks_plugins() {
            return self.decide_now();
        }
        self.core.tell_time(u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0));
        match Handle::current().runtime_flavor() {
            RuntimeFlavor::MultiThread => tokio::task::block_in_place(|| self.decide_now()),
            _ => self.decide_now(),
        }
    }

    fn decide_now(&mut self) {
        for _ in 0..DECISIONS_PER_TURN {
            let started = Instant::now();
            if !self.can_decide(started) {
                break;
            }
            let Some(decision) = self.core.next(started) else { break };
            self.metrics.algorithm(started.elapsed());
            match decision {
                Decision::Bind { pod, node } => {
                    self.bindings.spawn(bind(self.client.clone(), pod, node, started));
                }
                Decision::Unschedulable { pod, message } => {
                    self.metrics.attempt(Attempt::Unschedulable, started.elapsed());
                    self.reporter.send(Report::Failed { pod, reason: "Unschedulable", message });
                }
                Decision::Refused { pod, message } => {
                    self.metrics.attempt(Attempt::Error, started.elapsed());
                    self.reporter.send(Report::Failed { pod, reason: "SchedulerError", message });
                }
            }
        }
    }

    fn finish(&mut self, finished: Finished) {
        let Finished { pod, node, failure, took } = finished;
        let outcome = failure.as_ref().map_or(Outcome::Bound, |(outcome, _)| *outcome);
        self.core.finished(&pod.uid, outcome, Instant::now());
        match failure {
            None => {
                self.metrics.attempt(Attempt::Scheduled, took);
                self.reporter.send(Report::Scheduled { pod, node });
            }
            Some((Outcome::Failed, message)) => {
                self.metrics.attempt(Attempt::Error, took);
                tracing::warn!(pod = pod.key(), node, message, "a pod could not be bound");
                self.reporter.send(Report::Failed { pod, reason: "SchedulerError", message });
            }
            Some(_) => tracing::debug!(pod = pod.key(), "the pod went away while it was being bound"),
        }
    }

    async fn drive(&mut self, mut changes: mpsc::Receiver<Change>, shutdown: &CancellationToken) -> Result<(), Error> {
        let mut batch = Vec::with_capacity(CHANGES_PER_TURN);
        let mut tidy_at = Instant::now() + TIDY_INTERVAL;
        let mut loaded = self.config.plugins.changes();
        loop {
            let now = Instant::now();
            let (ready, idle) = (self.can_decide(now), self.idle(now, tidy_at));
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                Some(finished) = self.bindings.join_next(), if !self.bindings.is_empty() => {
                    // A binding that panicked leaves its pod assumed until that expires.
                    if let Ok(finished) = finished {
                        self.finish(finished);
                    }
                    while let Some(Ok(finished)) = self.bindings.try_join_next() {
                        self.finish(finished);
                    }
                }
                count = changes.recv_many(&mut batch, CHANGES_PER_TURN) => {
                    if count == 0 {
                        return Err(Error::WatchesEnded);
                    }
                    batch.drain(..).for_each(|change| self.core.apply(change, now));
                }
                // A plugin got its first version, or lost its last. The other end is in our own configuration.
                Ok(()) = loaded.changed() => {}
                () = std::future::ready(()), if ready => {}
                () = tokio::time::sleep(idle), if !ready => {}
            }
            let now = Instant::now();
            if now >= tidy_at {
                self.core.tidy(now);
                tidy_at = now + TIDY_INTERVAL;
            }
            self.core.settle(now);
            self.decide();
            self.metrics.pending(self.core.counts());
            tokio::task::yield_now().await;
        }
    }

    /// Waits for the bindings under way.
    async fn drain(&mut self) {
        let all = async {
            while let Some(finished) = self.bindings.join_next().await {
                if let Ok(finished) = finished {
                    self.finish(finished);
                }
            }
        };
        if tokio::time::timeout(DRAIN, all).await.is_err() {
            tracing::warn!("bindings were still under way at shutdown; the next start sees how they ended");
        }
    }
}

/// Runs until `shutdown`; see [`crate::run`].
pub(crate) async fn run(
    client: Client,
    config: Config,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let mut watches = JoinSet::new();
    let changes = watch_everything(&client, &mut watches);
    let (reporter, writing) = Reporter::new(client.clone(), metrics.clone());
    let writing = tokio::spawn(writing);
    let core = Core::new(config.profile.clone(), config.seed).with_plugins(config.plugins.clone());
    let mut running = Loop { client, core, config, metrics, reporter, bindings: JoinSet::new() };
    let result = running.drive(changes, &shutdown).await;
    running.drain().await;
    drop(running);
    // The reporter is gone, so the writer ends once its queue is empty.
    let written = tokio::time::timeout(DRAIN, writing).await;
    if written.is_err() {
        tracing::warn!("some events were still to be written at shutdown");
    }
    watches.shutdown().await;
    result
}
