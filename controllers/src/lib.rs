//! The controllers: each an ordinary Kubernetes client that brings objects closer to what they should be.
//!
//! [`CONTROLLERS`] is the table of them. A controller's start function subscribes to shared caches
//! ([`context::Informers`]) and returns the future that works until shutdown. Every controller decides in a pure
//! `plan` and acts in `apply`. Nothing in here knows the API server or the store; it runs unchanged against upstream
//! Kubernetes.

pub mod acme;
pub mod base;
mod config;
mod context;
pub mod leader;

pub mod deployment;
pub mod endpoints;
pub mod endpointslice;
pub mod gc;
pub mod namespace;
pub mod nodeipam;
pub mod nodelifecycle;
pub mod plugins;
pub mod podgc;
pub mod replicaset;
pub mod rootca;
pub mod serviceaccount;
pub mod tainteviction;

use std::sync::Arc;

use futures::future::BoxFuture;
use kube::Client;
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

pub use base::metrics::Metrics;
pub use config::Config;
pub use context::{Context, Informers};

/// Name of the Lease that instances compete for, as upstream's.
const LEASE_NAME: &str = "kube-controller-manager";

/// One controller.
pub struct Controller {
    /// As in logs, metrics and upstream's `--controllers`.
    pub name: &'static str,
    /// Subscribes at once; the future works until shutdown.
    pub start: fn(Context) -> BoxFuture<'static, ()>,
}

/// All controllers.
pub const CONTROLLERS: &[Controller] = &[
    Controller { name: "deployment", start: deployment::start },
    Controller { name: "replicaset", start: replicaset::start },
    Controller { name: "endpointslice", start: endpointslice::start },
    Controller { name: "endpoints", start: endpoints::start },
    Controller { name: "namespace", start: namespace::start },
    Controller { name: "garbagecollector", start: gc::start },
    Controller { name: "podgc", start: podgc::start },
    Controller { name: "node-ipam", start: nodeipam::start },
    Controller { name: "nodelifecycle", start: nodelifecycle::start },
    Controller { name: "tainteviction", start: tainteviction::start },
    Controller { name: "serviceaccount", start: serviceaccount::start },
    Controller { name: "root-ca-certificate-publisher", start: rootca::start },
    Controller { name: "acme", start: acme::start },
    Controller { name: "plugin", start: plugins::start },
];

/// Why the controllers stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A controller ended although nobody asked it to: a bug.
    #[error("controller {name} ended by itself")]
    Ended {
        /// Its name.
        name: &'static str,
    },
}

/// Registers the metrics; hand the result to [`run`].
pub fn build(registry: &mut Registry) -> Metrics {
    Metrics::register(registry)
}

/// Runs all controllers until `shutdown`, standing for election first if the configuration says so.
pub async fn run(client: Client, config: Config, metrics: Metrics, shutdown: CancellationToken) -> Result<(), Error> {
    if !config.leader_elect {
        return lead(&client, &config, &metrics, &shutdown).await;
    }
    let election = leader::Config::new(scaleup_api::well_known::NAMESPACE_SYSTEM, LEASE_NAME, &config.identity);
    let elector = leader::Elector::new(client.clone(), election, metrics.leader(LEASE_NAME));
    let failure = parking_lot::Mutex::new(None);
    elector
        .run(shutdown.clone(), |leading| {
            let (client, config, metrics, failure, shutdown) = (&client, &config, &metrics, &failure, &shutdown);
            async move {
                if let Err(e) = lead(client, config, metrics, &leading).await {
                    *failure.lock() = Some(e);
                    shutdown.cancel();
                }
            }
        })
        .await;
    failure.into_inner().map_or(Ok(()), Err)
}

/// Runs the table of controllers until `stop`.
async fn lead(client: &Client, config: &Config, metrics: &Metrics, stop: &CancellationToken) -> Result<(), Error> {
    let (recorder, events) = base::events::channel(client.clone());
    // Controllers drain first, then the caches and events they use may stop.
    let infrastructure = CancellationToken::new();
    let informers = Arc::new(Informers::new());
    let context = Context {
        client: client.clone(),
        config: Arc::new(config.clone()),
        informers: informers.clone(),
        recorder,
        metrics: metrics.clone(),
        shutdown: stop.child_token(),
    };
    let mut controllers = JoinSet::new();
    for controller in CONTROLLERS {
        let name = controller.name;
        let work = (controller.start)(context.clone());
        controllers.spawn(async move {
            work.await;
            name
        });
    }
    let mut support = JoinSet::new();
    support.spawn(events.run(infrastructure.clone()));
    let (watch_client, watch_stop) = (client.clone(), infrastructure.clone());
    let (acme, plugins) = (config.acme.is_some(), config.plugins.is_some());
    support.spawn(async move { informers.run(&watch_client, acme, plugins, &watch_stop).await });

    let mut result = Ok(());
    while let Some(ended) = controllers.join_next().await {
        if stop.is_cancelled() || result.is_err() {
            continue;
        }
        let name = ended.unwrap_or("(panicked)");
        error!(controller = name, "ended by itself; stopping the others");
        result = Err(Error::Ended { name });
        context.shutdown.cancel();
    }
    infrastructure.cancel();
    while support.join_next().await.is_some() {}
    info!("controllers stopped");
    result
}
