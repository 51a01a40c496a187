//! Making and starting one container: variables, mounts, files, then the runtime.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Container as SpecContainer, Pod};

use super::env::{self, Context, Sources};
use super::spec::{self, Files, Parts};
use super::{dns, view};
use crate::agent::Agent;
use crate::events::Kind;
use crate::runtime::{Container, Image, LogOptions};
use crate::volumes::Prepared;

/// How long a start waits for the first list of services.
const SERVICES_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest termination message.
const MAX_MESSAGE_BYTES: usize = 4096;
/// Longest termination message made of a log's end, and lines of it.
const MAX_LOG_MESSAGE_BYTES: usize = 2048;
const LOG_MESSAGE_LINES: u64 = 80;

/// Why a container does not run.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct StartError {
    /// Waiting reason.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl StartError {
    fn config(message: impl Into<String>) -> Self {
        Self { reason: "CreateContainerConfigError", message: message.into() }
    }
}

/// A pod and what was made for it so far.
pub struct Ground<'a> {
    /// The agent.
    pub agent: &'a Arc<Agent>,
    /// The pod.
    pub pod: &'a Pod,
    /// Its sandbox.
    pub sandbox: &'a Container,
    /// Its volumes.
    pub prepared: &'a Prepared,
}

/// The pod's address: its sandbox's, or the node's on the host's network.
pub fn address(agent: &Agent, pod: &Pod, sandbox: &Container) -> IpAddr {
    match sandbox.address {
        Some(address) if view::spec(pod).host_network != Some(true) => address,
        _ => agent.config.node_ip,
    }
}

/// Makes and starts a container; its id.
pub async fn container(
    ground: &Ground<'_>,
    container: &SpecContainer,
    attempt: u32,
    image: &Image,
) -> Result<String, StartError> {
    let agent = ground.agent;
    let event = |kind, reason, text: String| agent.events.pod(ground.pod, Some(&container.name), kind, reason, text);
    let spec = match assemble(ground, container, attempt, image).await {
        Ok(spec) => spec,
        Err(error) => {
            event(Kind::Warning, "Failed", format!("Error: {error}"));
            return Err(error);
        }
    };
    let id = agent.runtime.create(&spec).await.map_err(|e| {
        event(Kind::Warning, "Failed", format!("Error: {e}"));
        StartError { reason: "CreateContainerError", message: e.to_string() }
    })?;
    event(Kind::Normal, "Created", format!("Created container: {}", container.name));
    agent.runtime.start(&id).await.map_err(|e| {
        let message = format!("failed to start container {id:?}: {e}");
        event(Kind::Warning, "Failed", format!("Error: {message}"));
        StartError { reason: "RunContainerError", message }
    })?;
    event(Kind::Normal, "Started", format!("Started container {}", container.name));
    Ok(id)
}

async fn assemble(
    ground: &Ground<'_>,
    container: &SpecContainer,
    attempt: u32,
    image: &Image,
) -> Result<crate::runtime::ContainerSpec, StartError> {
    let Ground { agent, pod, sandbox, prepared } = ground;
    let ip = address(agent, pod, sandbox);
    let hollow = agent.volumes.is_none();
    let env = if hollow { Default::default() } else { variables(agent, pod, container, ip).await? };
    let (mounts, files, seccomp_profile) = match &agent.volumes {
        None => (Vec::new(), Files { hosts: None, resolv: None, termination: None }, None),
        Some(volumes) => {
            let mounts = volumes.mounts(pod, container, &env, prepared).map_err(StartError::config)?;
            let dir = volumes.pod_dir(view::uid(pod));
            let files = write_files(agent, pod, container, attempt, &dir, ip).map_err(|e| {
                StartError::config(format!("cannot write the container's files in {}: {e}", dir.display()))
            })?;
            (mounts, files, seccomp(agent, pod, container)?)
        }
    };
    spec::container(Parts {
        pod,
        container,
        attempt,
        sandbox_id: &sandbox.id,
        image,
        env: &env,
        mounts,
        files: &files,
        machine_memory_bytes: agent.amounts.capacity.get("memory").map_or(0, |q| q.value()),
        seccomp_profile,
    })
    .map_err(|e| StartError::config(e.0))
}

fn seccomp(agent: &Agent, pod: &Pod, container: &SpecContainer) -> Result<Option<String>, StartError> {
    let Some(name) = spec::local_seccomp(pod, container) else { return Ok(None) };
    let missing = |why: &str| StartError::config(format!("cannot load seccomp profile {name:?}: {why}"));
    let path = spec::seccomp_path(&agent.config.data_dir, name).ok_or_else(|| missing("it leaves its directory"))?;
    std::fs::read_to_string(&path).map(Some).map_err(|e| missing(&e.to_string()))
}

async fn variables(
    agent: &Agent,
    pod: &Pod,
    container: &SpecContainer,
    ip: IpAddr,
) -> Result<std::collections::BTreeMap<String, String>, StartError> {
    let ready = tokio::time::timeout(SERVICES_TIMEOUT, agent.services.wait_until_ready()).await;
    if !matches!(ready, Ok(Ok(()))) {
        return Err(StartError::config("services have not yet been read at least once, cannot construct envvars"));
    }
    let (config_maps, secrets) = env::references(container);
    let namespace = view::namespace(pod);
    let mut sources = Sources::default();
    let unreadable = |e: kube::Error| StartError::config(e.to_string());
    for name in config_maps {
        let found = agent.fetcher.config_map(namespace, &name).await.map_err(unreadable)?;
        sources.config_maps.insert(name, found);
    }
    for name in secrets {
        let found = agent.fetcher.secret(namespace, &name).await.map_err(unreadable)?;
        sources.secrets.insert(name, found);
    }
    let links = view::spec(pod).enable_service_links.unwrap_or(true);
    let mut services = agent.services.state();
    services.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let services = env::service_variables(services.iter().map(AsRef::as_ref), namespace, links);
    let context = Context {
        pod,
        pod_ip: &ip.to_string(),
        host_ip: &agent.config.node_ip.to_string(),
        allocatable: &agent.amounts.allocatable,
        services: &services,
    };
    env::resolve(container, &sources, &context).map_err(|e| StartError::config(e.0))
}

/// Where a container's attempt writes why it ended.
pub fn termination_file(dir: &Path, container: &str, attempt: u32) -> PathBuf {
    dir.join("containers").join(container).join(attempt.to_string())
}

fn write_files(
    agent: &Agent,
    pod: &Pod,
    container: &SpecContainer,
    attempt: u32,
    dir: &Path,
    ip: IpAddr,
) -> std::io::Result<Files> {
    std::fs::create_dir_all(dir)?;
    let domain = &agent.config.cluster_domain;
    let host = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let hosts = dir.join("etc-hosts");
    write_if_changed(&hosts, &dns::hosts(pod, Some(ip), domain, &host("/etc/hosts")))?;
    let resolv = dir.join("resolv.conf");
    let resolver = dns::resolver(pod, agent.cluster_dns(), domain, &host("/etc/resolv.conf"));
    write_if_changed(&resolv, &resolver.render())?;
    let termination = termination_file(dir, &container.name, attempt);
    if let Some(parent) = termination.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(&termination, "")?;
    // The container's user, whoever that is, must be able to write it.
    std::fs::set_permissions(&termination, std::fs::Permissions::from_mode(0o666))?;
    Ok(Files { hosts: Some(hosts), resolv: Some(resolv), termination: Some(termination) })
}

/// In place, since containers have the file itself mounted.
fn write_if_changed(path: &Path, text: &str) -> std::io::Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|now| now == text) {
        return Ok(());
    }
    std::fs::write(path, text)
}

/// What an ended container left as its reason.
pub async fn termination_message(agent: &Agent, pod: &Pod, ended: &Container) -> String {
    let (Some(volumes), Some(container)) = (&agent.volumes, view::container(pod, &ended.name)) else {
        return String::new();
    };
    let path = termination_file(&volumes.pod_dir(view::uid(pod)), &ended.name, ended.attempt);
    let message = read_start(&path, MAX_MESSAGE_BYTES);
    let from_log = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    if !message.is_empty() || !from_log || ended.exit().is_none_or(|e| e.code == 0) {
        return message;
    }
    let options = LogOptions { tail: Some(LOG_MESSAGE_LINES), ..LogOptions::default() };
    let Ok(mut log) = agent.runtime.logs(&ended.id, &options).await else { return String::new() };
    let mut tail = Vec::new();
    while let Some(Ok((_, bytes))) = log.next().await {
        tail.extend_from_slice(&bytes);
        if tail.len() > 2 * MAX_LOG_MESSAGE_BYTES {
            tail.drain(..tail.len() - MAX_LOG_MESSAGE_BYTES);
        }
    }
    let start = tail.len().saturating_sub(MAX_LOG_MESSAGE_BYTES);
    String::from_utf8_lossy(&tail[start..]).into_owned()
}

/// The first bytes of a file that a container wrote: never more, and never through a link.
fn read_start(path: &Path, limit: usize) -> String {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::NOFOLLOW.union(rustix::fs::OFlags::NONBLOCK).bits();
    let open = std::fs::OpenOptions::new().read(true).custom_flags(i32::try_from(flags).unwrap_or(0)).open(path);
    let mut bytes = Vec::new();
    let limit = u64::try_from(limit).unwrap_or(u64::MAX);
    match open.and_then(|file| file.take(limit).read_to_end(&mut bytes)) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}
