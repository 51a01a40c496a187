//! What all parts of one agent share.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use k8s_openapi::api::core::v1::{Pod, Service};
use kube::runtime::reflector;
use parking_lot::Mutex;
use scaleup_api::Quantity;
use scaleup_api::subnet::Subnet;
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, watch};

use crate::clock::Clock;
use crate::events::Recorder;
use crate::metrics::Metrics;
use crate::pod::publish::Latest;
use crate::runtime::ContainerRuntime;
use crate::volumes::Volumes;
use crate::volumes::content::Fetcher;

/// Pulls at a time.
const PARALLEL_PULLS: usize = 8;
/// Volume refreshes at a time.
const PARALLEL_REFRESHES: usize = 4;

/// What is said of the runtime before its first answer.
pub const NOT_ASKED: &str = "the container runtime has not been asked yet";

/// Certificates for the kubelet API, PEM.
#[derive(Clone)]
pub struct TlsMaterial {
    /// The cluster's CA: clients must have a certificate of it.
    pub ca_pem: String,
    /// Serving certificate chain.
    pub cert_pem: String,
    /// Its key (PKCS#8).
    pub key_pem: String,
}

impl std::fmt::Debug for TlsMaterial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsMaterial").finish_non_exhaustive()
    }
}

/// A node without a machine: nothing is read from, or written to, the disk of this one.
#[derive(Clone, Copy, Debug)]
pub struct Hollow {
    /// CPUs it claims to have.
    pub cpus: u32,
    /// Memory it claims to have, bytes.
    pub memory_bytes: u64,
}

/// What an agent is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the Node.
    pub node_name: String,
    /// `InternalIP`; also where the kubelet API is reached.
    pub node_ip: IpAddr,
    /// Everything below it is the agent's: pod volumes, container log bookkeeping.
    pub data_dir: PathBuf,
    /// Distinguishes agents that share one runtime; goes into labels and network names (lower case, digits, dashes). An agent
    /// removes containers that carry its instance and belong to no pod it knows, so no two may share one. The default is made
    /// of the data directory.
    pub instance: String,
    /// CIDR out of which the node asks for a pod subnet.
    pub pod_cidr_pool: String,
    /// Prefix of the subnet that it asks for.
    pub node_mask_bits: u32,
    /// Where the kubelet API listens; port 0 is any free one, published in the Node. `None` is not at all.
    pub listen: Option<SocketAddr>,
    /// Certificates for it; required with `listen`.
    pub tls: Option<TlsMaterial>,
    /// Labels of the Node beside the standard ones.
    pub labels: BTreeMap<String, String>,
    /// Whether containers are stopped when the agent ends.
    pub stop_pods: bool,
    /// Domain of the cluster's DNS.
    pub cluster_domain: String,
    /// Address of the cluster's DNS; unset is the pod network's gateway.
    pub cluster_dns: Option<IpAddr>,
    /// Pods the node takes.
    pub max_pods: u32,
    /// A node without a machine.
    pub hollow: Option<Hollow>,
    /// Time.
    pub clock: Clock,
}

impl Config {
    /// Defaults for a node.
    pub fn new(node_name: impl Into<String>, node_ip: IpAddr, data_dir: impl Into<PathBuf>) -> Self {
        let data_dir = data_dir.into();
        Self {
            node_name: node_name.into(),
            node_ip,
            instance: instance_of(&data_dir),
            data_dir,
            pod_cidr_pool: "10.244.0.0/16".into(),
            node_mask_bits: 24,
            listen: None,
            tls: None,
            labels: BTreeMap::new(),
            stop_pods: false,
            cluster_domain: scaleup_api::well_known::CLUSTER_DOMAIN.into(),
            cluster_dns: None,
            max_pods: 110,
            hollow: None,
            clock: Clock::System,
        }
    }

    /// Name of the node's pod network.
    pub fn network_name(&self) -> String {
        format!("scaleup-{}-{}", self.instance, self.node_name)
    }

    /// Label value that marks this agent's containers in a shared runtime.
    pub fn owner(&self) -> String {
        format!("{}.{}", self.instance, self.node_name)
    }
}

/// Eight hex digits that stand for a directory.
fn instance_of(data_dir: &Path) -> String {
    let absolute = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    let digest = Sha256::digest(absolute.as_os_str().as_encoded_bytes());
    digest.iter().take(4).fold(String::new(), |out, byte| out + &format!("{byte:02x}"))
}

/// The pod network as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNetwork {
    /// Name in the runtime.
    pub name: String,
    /// Its subnet.
    pub cidr: Subnet,
    /// The bridge's address.
    pub gateway: Ipv4Addr,
}

/// What the machine can give, as the Node says.
#[derive(Clone, Debug, Default)]
pub struct Amounts {
    /// `status.capacity`
    pub capacity: BTreeMap<String, Quantity>,
    /// `status.allocatable`
    pub allocatable: BTreeMap<String, Quantity>,
}

/// A pod that has a worker.
#[derive(Clone)]
pub struct Known {
    /// Its newest version.
    pub latest: Latest,
    /// Wakes its worker.
    pub poke: Arc<tokio::sync::Notify>,
    /// The API has it no more.
    pub gone: Arc<AtomicBool>,
}

impl Known {
    /// A pod seen for the first time.
    pub fn new(pod: Arc<Pod>) -> Self {
        Self { latest: Latest::new(pod), poke: Arc::default(), gone: Arc::default() }
    }
}

/// Shared state.
pub struct Agent {
    /// What it was told.
    pub config: Config,
    /// The API.
    pub client: kube::Client,
    /// Runs the containers.
    pub runtime: Arc<dyn ContainerRuntime>,
    /// Name of the runtime, for container ids.
    pub runtime_name: String,
    /// Time.
    pub clock: Clock,
    /// Events.
    pub events: Recorder,
    /// Reads ConfigMaps and Secrets.
    pub fetcher: Arc<Fetcher>,
    /// Pod volumes; a hollow node has none.
    pub volumes: Option<Arc<Volumes>>,
    /// `Node.spec.podCIDR` as last seen.
    pub assigned: watch::Sender<Option<Subnet>>,
    /// The pod network of this machine, whether or not its subnet is the assigned one.
    pub made: watch::Sender<Option<PodNetwork>>,
    /// The pod network that pods may join, once there is one.
    pub network: watch::Sender<Option<PodNetwork>>,
    /// Whether the runtime answers; `Some(text)` is why it does not.
    pub runtime_down: watch::Sender<Option<String>>,
    /// Capacity.
    pub amounts: Amounts,
    /// Services, for environment variables.
    pub services: reflector::Store<Service>,
    /// Pods by UID.
    pub pods: Mutex<HashMap<String, Known>>,
    /// Bound on pulls.
    pub pull_slots: Semaphore,
    /// Bound on volume refreshes.
    pub refresh_slots: Semaphore,
    /// Figures.
    pub metrics: Metrics,
}

impl Agent {
    /// Puts it together; starts nothing but the event writer.
    pub fn new(
        config: Config,
        client: kube::Client,
        runtime: Arc<dyn ContainerRuntime>,
        services: reflector::Store<Service>,
        metrics: Metrics,
    ) -> Self {
        let clock = config.clock;
        let fetcher = Arc::new(Fetcher::new(client.clone(), clock));
        let volumes =
            config.hollow.is_none().then(|| Arc::new(Volumes::new(config.data_dir.join("pods"), fetcher.clone())));
        Self {
            events: Recorder::start(client.clone(), &config.node_name, clock),
            amounts: crate::node::machine::amounts(&config),
            runtime_name: if config.hollow.is_some() { "fake".into() } else { "docker".into() },
            clock,
            client,
            runtime,
            fetcher,
            volumes,
            assigned: watch::channel(None).0,
            made: watch::channel(None).0,
            network: watch::channel(None).0,
            runtime_down: watch::channel(Some(NOT_ASKED.to_owned())).0,
            services,
            pods: Mutex::default(),
            pull_slots: Semaphore::new(PARALLEL_PULLS),
            refresh_slots: Semaphore::new(PARALLEL_REFRESHES),
            metrics,
            config,
        }
    }

    /// Address of the cluster's DNS as pods are told.
    pub fn cluster_dns(&self) -> Option<IpAddr> {
        self.config.cluster_dns.or_else(|| self.network.borrow().as_ref().map(|n| IpAddr::V4(n.gateway)))
    }

    /// The pod with that namespace and name, if it is here.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let pods = self.pods.lock();
        pods.values().map(|known| known.latest.get()).find(|pod| {
            pod.metadata.namespace.as_deref() == Some(namespace) && pod.metadata.name.as_deref() == Some(name)
        })
    }
}
