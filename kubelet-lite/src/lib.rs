//! The node agent: makes containers of the pods bound to its node, and tells the API how they are.
//!
//! It behaves as upstream's kubelet does, over Docker. It keeps nothing of its own but pod volumes: containers are found by
//! their labels after a restart, and a healthy one is never restarted. It never decides where a pod runs, never touches a
//! container it did not make, and talks to the API as an ordinary client.
//!
//! [`build`] puts an agent together from plain data, a client and a runtime; [`Node::run`] runs it until shutdown.

mod agent;
pub mod clock;
mod events;
mod metrics;
mod node;
mod pod;
mod pods;
pub mod runtime;
mod server;
#[cfg(test)]
mod testing;
mod volumes;

use std::net::SocketAddr;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use agent::Agent;
pub use agent::{Config, Hollow, TlsMaterial};
use runtime::ContainerRuntime;

/// Why an agent cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubelet API's address is taken or not this machine's.
    #[error("the node agent cannot listen on {address}; choose another address or port 0 for any free one")]
    Listen {
        /// Address asked for.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The kubelet API needs certificates.
    #[error("the kubelet API is told to listen but has no certificates")]
    NoCertificates,
    /// The certificates do not parse or fit.
    #[error("the kubelet API's certificates cannot be used")]
    Certificates(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// An agent that is ready to run.
pub struct Node {
    agent: Arc<Agent>,
    server: Option<server::Server>,
    services: reflector::store::Writer<Service>,
}

/// Puts an agent together: binds the kubelet API's listener, registers metrics, starts nothing else.
pub async fn build(
    config: Config,
    client: kube::Client,
    runtime: Arc<dyn ContainerRuntime>,
    registry: &mut Registry,
) -> Result<Node, Error> {
    let metrics = metrics::Metrics::default();
    metrics.register(registry);
    let (reader, services) = reflector::store();
    let agent = Arc::new(Agent::new(config, client, runtime, reader, metrics));
    let server = match agent.config.listen {
        Some(address) => Some(server::Server::bind(address, agent.clone()).await?),
        None => None,
    };
    Ok(Node { agent, server, services })
}

impl Node {
    /// Where the kubelet API listens.
    pub fn kubelet_address(&self) -> Option<SocketAddr> {
        self.server.as_ref().map(server::Server::address)
    }

    /// Runs until `shutdown`. Containers stay, unless the configuration says otherwise.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Self { agent, server, services } = self;
        let port = server.as_ref().map(|s| s.address().port());
        let background = async {
            let serve = async {
                match server {
                    Some(server) => server.run(shutdown.clone()).await,
                    None => shutdown.cancelled().await,
                }
            };
            tokio::join!(follow_services(agent.clone(), services), node::run(agent.clone(), port), serve);
        };
        tokio::select! {
            () = pods::run(agent.clone(), shutdown.clone()) => {}
            () = background => {}
        }
        if agent.config.stop_pods {
            pods::stop_all(&agent).await;
        }
        Ok(())
    }
}

/// Keeps the list of services that variables are made of.
async fn follow_services(agent: Arc<Agent>, writer: reflector::store::Writer<Service>) {
    if agent.config.hollow.is_some() {
        return std::future::pending().await;
    }
    let api: Api<Service> = Api::all(agent.client.clone());
    let mut events = watcher(api, watcher::Config::default()).default_backoff().reflect(writer).boxed();
    while let Some(event) = events.next().await {
        if let Err(error) = event {
            tracing::debug!(%error, "watch of services; trying again");
        }
    }
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        out.push_str(": ");
        out.push_str(&next.to_string());
        cause = next.source();
    }
    out
}
