//! From options to each role's own configuration and dependencies; used by `up` and by the roles that run alone.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use scaleup_apiserver::server::ServerConfig;
use scaleup_kubelet_lite as kubelet;
use scaleup_store::Store;
use scaleup_store::embedded::{self, EmbeddedStore};
use scaleup_store::etcd::{self, EtcdStore};
use scaleup_store::memory::MemoryStore;

use crate::cli::{ApiArgs, ControllersArgs, LbArgs, NodeArgs, PodNetworkArgs, RuntimeChoice, StoreChoice};
use crate::issue::{CLUSTER, Serving};
use crate::plugins::Plugins;
use crate::preflight;

/// Name of the embedded store's file.
const STORE_FILE: &str = "store.redb";
/// What a node with the fake runtime claims to have.
const HOLLOW: kubelet::Hollow = kubelet::Hollow { cpus: 32, memory_bytes: 64 << 30 };
/// nftables allows longer names, but a listing should stay readable.
const MAX_TABLE_NAME: usize = 60;

/// An opened store, and what closes it.
pub struct OpenStore {
    /// For the API server.
    pub store: Arc<dyn Store>,
    embedded: Option<Arc<EmbeddedStore>>,
}

impl OpenStore {
    /// Finishes queued writes and releases the file.
    pub async fn close(self) {
        if let Some(embedded) = self.embedded {
            embedded.close().await;
        }
    }
}

fn file(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Opens the store that the options name.
pub async fn open_store(api: &ApiArgs, data_dir: &Path) -> Result<OpenStore> {
    match &api.store {
        StoreChoice::Embedded => {
            let path = data_dir.join(STORE_FILE);
            let store = EmbeddedStore::open(&path, embedded::Options::default()).await.with_context(|| {
                format!(
                    "cannot open the store {}; a damaged one is never changed: move it away, or restore a backup",
                    path.display()
                )
            })?;
            let store = Arc::new(store);
            Ok(OpenStore { store: store.clone(), embedded: Some(store) })
        }
        StoreChoice::Memory => {
            tracing::warn!("the store is in memory: everything is forgotten when this process ends");
            Ok(OpenStore { store: Arc::new(MemoryStore::new()), embedded: None })
        }
        StoreChoice::Etcd(hosts) => {
            let tls = match &api.etcd_ca {
                None => None,
                Some(ca) => {
                    let identity = match (&api.etcd_cert, &api.etcd_key) {
                        (Some(cert), Some(key)) => Some((file(cert)?, file(key)?)),
                        _ => None,
                    };
                    Some(etcd::Tls { ca_pem: file(ca)?, identity_pem: identity })
                }
            };
            let scheme = if tls.is_some() { "https" } else { "http" };
            let endpoints: Vec<String> = hosts.iter().map(|h| format!("{scheme}://{h}")).collect();
            let options = etcd::Options { tls, ..etcd::Options::default() };
            let store =
                EtcdStore::connect(&endpoints, options).await.context("is etcd running, and is --store right?")?;
            Ok(OpenStore { store: Arc::new(store), embedded: None })
        }
    }
}

/// The API server's configuration for a bound port.
pub fn apiserver(api: &ApiArgs, data_dir: &Path, bound: SocketAddr, plugins: &Plugins) -> ServerConfig {
    ServerConfig {
        data_dir: data_dir.into(),
        cluster_name: CLUSTER.into(),
        service_cidr: api.service_cidr.clone(),
        node_port_range: (api.node_port_range.0, api.node_port_range.1),
        advertise_address: advertise(api, bound.ip()),
        advertise_port: bound.port(),
        extra_names: api.tls_names.clone(),
        exclusive_store: !matches!(api.store, StoreChoice::Etcd(_)),
        plugins: plugins.registry.clone(),
        ..ServerConfig::default()
    }
}

/// Where nodes and pods reach the API: as told, else the address listened on, else the machine's primary address. Loopback is no
/// address for pods, whatever is listened on.
fn advertise(api: &ApiArgs, bound: IpAddr) -> IpAddr {
    let usable = |ip: &IpAddr| !ip.is_unspecified() && !ip.is_loopback();
    api.advertise_address.unwrap_or_else(|| Some(bound).filter(usable).unwrap_or_else(preflight::primary_address))
}

/// URL for clients on this machine.
pub fn local_url(bound: SocketAddr) -> String {
    let ip = if bound.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { bound.ip() };
    format!("https://{}", SocketAddr::new(ip, bound.port()))
}

/// This node's name.
pub fn node_name(given: Option<&String>) -> String {
    given.cloned().unwrap_or_else(preflight::host_name)
}

/// This node's address.
pub fn node_ip(node: &NodeArgs) -> IpAddr {
    node.node_ip.unwrap_or_else(preflight::primary_address)
}

/// The controllers' configuration.
pub fn controllers(
    args: &ControllersArgs,
    pods: &PodNetworkArgs,
    ca_pem: String,
    plugins: &Plugins,
) -> Result<scaleup_controllers::Config> {
    let bits = u32::from(pods.node_cidr_mask_size);
    let pod_network = scaleup_controllers::nodeipam::Config::new(&pods.pod_cidr_pool, bits)
        .context("--pod-cidr-pool and --node-cidr-mask-size do not go together")?;
    Ok(scaleup_controllers::Config {
        pod_network: Some(pod_network),
        ca_pem,
        node_monitor_grace_period: args.node_monitor_grace_period,
        acme: acme(args)?,
        plugins: Some(plugins.stager()),
        ..scaleup_controllers::Config::default()
    })
}

fn acme(args: &ControllersArgs) -> Result<Option<scaleup_controllers::acme::Config>> {
    let Some(contact) = args.acme_email.clone() else { return Ok(None) };
    let read = |path: &PathBuf| {
        std::fs::read(path).with_context(|| format!("--acme-ca-file {}: cannot be read", path.display()))
    };
    let root_pem = args.acme_ca_file.as_ref().map(read).transpose()?;
    Ok(Some(scaleup_controllers::acme::Config { directory: args.acme_directory.clone(), contact, root_pem }))
}

/// The load balancer's configuration.
pub fn lb(args: &LbArgs, node: &str, node_ip: IpAddr, service_cidr: &str, plugins: &Plugins) -> scaleup_lb::Config {
    let mut table: String = format!("scaleup-{node}")
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' })
        .collect();
    table.truncate(MAX_TABLE_NAME);
    scaleup_lb::Config {
        bind_address: args.lb_bind,
        advertise_ip: args.lb_advertise.unwrap_or(node_ip),
        threads: args.lb_threads,
        http_port: args.lb_http_port,
        https_port: args.lb_https_port,
        table,
        service_cidr: service_cidr.into(),
        enable_nftables: !args.no_nftables,
        observe: observe(args),
        geo_database: args.lb_geo_database.clone(),
        redis_url: args.lb_redis_url.clone().map(Into::into),
        plugins: plugins.registry.clone(),
        ..scaleup_lb::Config::new(node)
    }
}

fn observe(args: &LbArgs) -> scaleup_lb::ObserveConfig {
    use scaleup_lb::AccessTarget;
    let target = |path: &std::path::PathBuf| match path.as_os_str() == "-" {
        true => AccessTarget::Stdout,
        false => AccessTarget::File(path.clone()),
    };
    scaleup_lb::ObserveConfig {
        access_log: args.lb_access_log.as_ref().map(target),
        access_log_percent: args.lb_access_log_sample,
        access_log_query: args.lb_access_log_query,
        access_log_max_bytes: u64::from(args.lb_access_log_max_mib) << 20,
        access_log_kept: args.lb_access_log_keep,
        otlp_endpoint: args.otlp_endpoint.clone(),
        trace_percent: args.trace_sample,
        image_metrics: args.lb_image_metrics,
    }
}

/// The scheduler's configuration.
pub fn scheduler(plugins: &Plugins) -> scaleup_scheduler::Config {
    scaleup_scheduler::Config { plugins: plugins.registry.clone(), ..scaleup_scheduler::Config::default() }
}

/// The agent's configuration.
pub fn agent(args: &NodeArgs, pods: &PodNetworkArgs, data_dir: &Path, node: &str, serving: Serving) -> kubelet::Config {
    let Serving { ca_pem, cert_pem, key_pem } = serving;
    kubelet::Config {
        pod_cidr_pool: pods.pod_cidr_pool.clone(),
        node_mask_bits: u32::from(pods.node_cidr_mask_size),
        listen: Some(args.kubelet_listen),
        tls: Some(kubelet::TlsMaterial { ca_pem, cert_pem, key_pem }),
        labels: args.node_labels.iter().cloned().collect(),
        stop_pods: args.stop_pods,
        hollow: (args.runtime == RuntimeChoice::Fake).then_some(HOLLOW),
        ..kubelet::Config::new(node, node_ip(args), data_dir.join("node"))
    }
}

/// The container runtime that the options name.
pub fn runtime(args: &NodeArgs, config: &kubelet::Config) -> Arc<dyn kubelet::runtime::ContainerRuntime> {
    match args.runtime {
        RuntimeChoice::Docker => {
            let socket = args.docker_socket.to_string_lossy();
            Arc::new(kubelet::runtime::docker::DockerRuntime::new(socket, config.owner()))
        }
        RuntimeChoice::Fake => Arc::new(kubelet::runtime::fake::FakeRuntime::steady(config.clock)),
    }
}
