//! This machine as a Node: registration, conditions, capacity, and the Lease that says it is alive.
//!
//! Three loops that do not wait for each other: the runtime is asked, the status is written, the Lease is renewed. None of
//! them ever waits for a pod.

pub mod machine;
pub mod network;
mod object;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Api, Patch, PatchParams, PostParams};
use scaleup_api::subnet::Subnet;
use scaleup_api::well_known::NAMESPACE_NODE_LEASE;
use serde_json::json;
use tokio::sync::watch;

use crate::agent::{Agent, NOT_ASKED, PodNetwork};
use crate::events::Kind;
use crate::runtime::{Image, Version};
use object::Seen;

/// `nodeLeaseDurationSeconds` and how often it is renewed.
const LEASE_SECONDS: i32 = 40;
const LEASE_RENEWAL: Duration = Duration::from_secs(10);
/// The machine is measured and the runtime asked this often.
const CHECK: Duration = Duration::from_secs(10);
/// While the Node has no pod subnet it is read this often: at first, and at last.
const ASSIGNMENT_MIN: Duration = Duration::from_millis(50);
const ASSIGNMENT_MAX: Duration = Duration::from_secs(2);
/// A status that has not changed is written this often.
const REPORT: Duration = Duration::from_secs(300);
/// While the runtime is away it is asked this often.
const RUNTIME_RETRY: Duration = Duration::from_secs(2);
/// Between attempts while the API is away.
const API_RETRY: Duration = Duration::from_secs(1);
/// Images are counted this often; the list is long and costs the runtime time.
const IMAGES: Duration = Duration::from_secs(60);

/// What the runtime said last.
#[derive(Clone, Debug, Default, PartialEq)]
struct RuntimeView {
    version: Option<Version>,
    images: Vec<Image>,
}

/// Everything about the node, until cancelled.
pub async fn run(agent: Arc<Agent>, kubelet_port: Option<u16>) {
    let view = watch::channel(RuntimeView::default()).0;
    if agent.config.hollow.is_none() {
        network::filter_bridged_traffic().await;
    }
    tokio::join!(watch_runtime(&agent, &view), keep_status(&agent, kubelet_port, view.subscribe()), keep_lease(&agent),);
}

/// Asks the runtime, makes the pod network when there is none, and says so when either comes or goes.
async fn watch_runtime(agent: &Agent, view: &watch::Sender<RuntimeView>) {
    let mut images_at: Option<tokio::time::Instant> = None;
    let mut assigned = agent.assigned.subscribe();
    loop {
        let mut pause = CHECK;
        assigned.mark_unchanged();
        match runtime_ready(agent).await {
            Ok(version) => {
                let mut now = RuntimeView { version: Some(version), images: view.borrow().images.clone() };
                if images_at.is_none_or(|at| at.elapsed() >= IMAGES) {
                    now.images = agent.runtime.images().await.unwrap_or_default();
                    images_at = Some(tokio::time::Instant::now());
                }
                view.send_if_modified(|before| std::mem::replace(before, now.clone()) != now);
                if agent.runtime_down.send_if_modified(|down| down.take().is_some()) {
                    tracing::info!("the container runtime answers");
                    for known in agent.pods.lock().values() {
                        known.poke.notify_one();
                    }
                }
            }
            Err(text) => {
                pause = RUNTIME_RETRY;
                agent.runtime_down.send_if_modified(|down| {
                    let news = down.as_deref() != Some(text.as_str());
                    if news {
                        tracing::warn!("{text}");
                        *down = Some(text);
                    }
                    news
                });
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // The network may have to be made again.
            _ = assigned.changed() => {}
        }
    }
}

/// Whether pods can be run, or what to do about it.
async fn runtime_ready(agent: &Agent) -> Result<Version, String> {
    let version = agent.runtime.version().await.map_err(|e| e.to_string())?;
    let assigned = *agent.assigned.borrow();
    let found = network::ensure(agent, assigned).await.map_err(|error| crate::chain(&error))?;
    set(&agent.made, Some(found.clone()));
    // One that has another subnet than the Node is in use, or it would have been made again.
    if assigned.is_some() {
        join(agent, found);
    }
    Ok(version)
}

/// Lets pods join the network.
fn join(agent: &Agent, network: PodNetwork) {
    let (cidr, gateway, name) = (network.cidr, network.gateway, network.name.clone());
    if set(&agent.network, Some(network)) {
        tracing::info!(%cidr, %gateway, network = name, "pod network");
    }
}

/// Whether it was another value before.
fn set<T: PartialEq>(channel: &watch::Sender<T>, value: T) -> bool {
    channel.send_if_modified(|now| {
        let news = *now != value;
        *now = value;
        news
    })
}

/// Registers the node and keeps its status true.
async fn keep_status(agent: &Agent, port: Option<u16>, mut view: watch::Receiver<RuntimeView>) {
    let mut down = agent.runtime_down.subscribe();
    let mut network = agent.network.subscribe();
    let mut made = agent.made.subscribe();
    let mut written: Option<tokio::time::Instant> = None;
    let mut ready_before: Option<bool> = None;
    let mut assignment = ASSIGNMENT_MIN;
    // The first look waits for the runtime's answer, so that a healthy node is never registered as broken.
    let answered = down.wait_for(|text| text.as_deref() != Some(NOT_ASKED));
    let _first = tokio::time::timeout(CHECK, answered).await.is_ok();
    loop {
        let RuntimeView { version, images } = view.borrow_and_update().clone();
        network.mark_unchanged();
        let seen = Seen {
            down: down.borrow_and_update().clone(),
            version,
            images,
            made: made.borrow_and_update().clone(),
            network: None,
            pressure: machine::pressure(&agent.config),
            port,
        };
        let due = written.is_none_or(|at| at.elapsed() >= REPORT);
        let ready = seen.down.is_none();
        match sync_node(agent, seen, due).await {
            Ok(wrote) => {
                if wrote {
                    written = Some(tokio::time::Instant::now());
                }
                if ready_before.replace(ready) != Some(ready) {
                    announce(agent, ready);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "node status not written yet");
                tokio::time::sleep(API_RETRY).await;
                continue;
            }
        }
        let pause = if agent.assigned.borrow().is_some() { CHECK } else { assignment };
        assignment = (assignment * 2).min(ASSIGNMENT_MAX);
        tokio::select! {
            _ = down.changed() => {}
            _ = network.changed() => {}
            _ = made.changed() => {}
            _ = view.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn announce(agent: &Agent, ready: bool) {
    let name = &agent.config.node_name;
    let node = Node { metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() }, ..Node::default() };
    let reason = if ready { "NodeReady" } else { "NodeNotReady" };
    agent.events.node(&node, Kind::Normal, reason, format!("Node {name} status is now: {reason}"));
}

/// Creates the node if it is not there, and writes what differs; whether anything was written.
async fn sync_node(agent: &Agent, mut seen: Seen, due: bool) -> Result<bool, kube::Error> {
    let api: Api<Node> = Api::all(agent.client.clone());
    let name = &agent.config.node_name;
    let current = match api.get_opt(name).await? {
        Some(node) => node,
        None => {
            tracing::info!(name, "registering the node");
            let created = api.create(&PostParams::default(), &object::fresh(agent, &seen)).await?;
            let text = "Starting kubelet.";
            agent.events.node(&created, Kind::Normal, "Starting", text);
            created
        }
    };
    learn_subnet(agent, &seen, &current);
    seen.network = agent.network.borrow().clone();
    if let Some(patch) = object::meta_patch(agent, &seen, &current) {
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    let status = object::status(agent, &seen, current.status.as_ref());
    if !due && object::same(current.status.as_ref(), &status) {
        return Ok(false);
    }
    let patch = object::status_patch(current.status.as_ref(), &status);
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(true)
}

/// Takes the assigned subnet from the Node, and the network if it has that already: a healthy node that starts again is
/// never said to be without one.
fn learn_subnet(agent: &Agent, seen: &Seen, node: &Node) {
    let text = object::pod_cidr(node);
    let assigned = text.and_then(Subnet::parse);
    if assigned.is_none() && text.is_some() {
        tracing::warn!(podCIDR = text, "the Node's pod subnet is not IPv4: pods cannot be run here");
    }
    set(&agent.assigned, assigned);
    if let Some(made) = seen.made.clone().filter(|made| Some(made.cidr) == assigned) {
        join(agent, made);
    }
}

/// Renews the Lease, whatever else goes on.
async fn keep_lease(agent: &Agent) {
    let mut ticks = tokio::time::interval(LEASE_RENEWAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        while let Err(error) = renew(agent).await {
            tracing::debug!(%error, "lease not renewed yet");
            tokio::time::sleep(API_RETRY).await;
        }
    }
}

async fn renew(agent: &Agent) -> Result<(), kube::Error> {
    let api: Api<Lease> = Api::namespaced(agent.client.clone(), NAMESPACE_NODE_LEASE);
    let name = &agent.config.node_name;
    let now = MicroTime(agent.clock.now());
    let patch = json!({ "spec": {
        "holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now,
    }});
    match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        other => return other.map(drop),
    }
    let owner = Api::<Node>::all(agent.client.clone()).get_opt(name).await?.and_then(|node| {
        Some(OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: name.clone(),
            uid: node.metadata.uid?,
            ..OwnerReference::default()
        })
    });
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(NAMESPACE_NODE_LEASE.into()),
            owner_references: owner.map(|o| vec![o]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.clone()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    };
    api.create(&PostParams::default(), &lease).await.map(drop)
}
