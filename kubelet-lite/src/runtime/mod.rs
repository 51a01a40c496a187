//! The container runtime seam: everything the agent asks of a runtime, and nothing more.
//!
//! A runtime runs sandboxes (which hold a pod's address) and containers, and labels both so that an agent that was killed
//! finds them again. It decides nothing: no restarts, no backoff, no policy. Two implementations exist, [`docker`] and
//! [`fake`]; one conformance suite ([`conformance`]) runs on both.

#[cfg(test)]
mod conformance;
pub mod docker;
pub mod fake;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite};

/// Boxed cause of an error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a runtime could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Nothing answers at the endpoint.
    #[error("the container runtime does not answer at {endpoint}; start it with: systemctl start docker")]
    Unavailable {
        /// Socket path.
        endpoint: String,
        /// What the connection attempt said.
        #[source]
        source: BoxError,
    },
    /// The container, image or network does not exist.
    #[error("{0}")]
    NotFound(String),
    /// A name, address range or port is taken.
    #[error("{0}")]
    Conflict(String),
    /// The runtime answered with an error of its own.
    #[error("{0}")]
    Refused(String),
    /// No answer in time.
    #[error("the container runtime did not answer within {0:?}")]
    Timeout(Duration),
    /// A log, exec or attach stream broke.
    #[error("stream to the container runtime broke")]
    Stream(#[source] BoxError),
}

impl RuntimeError {
    /// Whether the runtime as a whole is away, as opposed to one request refused.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Timeout(_))
    }
    /// Whether the object asked for does not exist (any more).
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound(_))
    }
}

/// Shorthand of this module.
pub type Result<T> = std::result::Result<T, RuntimeError>;

/// What runs the containers (`Node.status.nodeInfo`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Version {
    /// `docker`
    pub name: String,
    /// e.g. `20.10.24`
    pub version: String,
}

/// An image on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Content id: `sha256:…`.
    pub id: String,
    /// `repo:tag` names.
    pub tags: Vec<String>,
    /// `repo@sha256:…` names.
    pub digests: Vec<String>,
    /// Bytes on disk.
    pub size_bytes: u64,
    /// `USER` of the image; empty is root.
    pub user: String,
}

/// Credentials for one registry. `Debug` hides them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RegistryAuth {
    /// User.
    pub username: String,
    /// Password or token.
    pub password: String,
    /// OAuth identity token, instead of user and password.
    pub identity_token: String,
    /// Registry host the credentials are for.
    pub server: String,
}

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryAuth").field("server", &self.server).finish_non_exhaustive()
    }
}

/// A bridge network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Name, unique in the runtime.
    pub name: String,
    /// IPv4 subnets in CIDR notation.
    pub subnets: Vec<String>,
    /// The bridge's own address, if it has one.
    pub gateway: Option<Ipv4Addr>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// Whose a sandbox or container is (labels `io.kubernetes.pod.*`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodRef {
    /// `metadata.uid`
    pub uid: String,
    /// `metadata.name`
    pub name: String,
    /// `metadata.namespace`
    pub namespace: String,
}

/// The network a sandbox joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SandboxNetwork {
    /// The node's pod network, by name.
    Pod(String),
    /// The host's (`hostNetwork: true`).
    Host,
}

/// A published port (`containers[].ports[].hostPort`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Port inside the pod.
    pub container_port: u16,
    /// Port on the host.
    pub host_port: u16,
    /// Address on the host; empty is every address.
    pub host_ip: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}

/// What to hold a pod's address with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxSpec {
    /// Whose.
    pub pod: PodRef,
    /// Counts sandboxes of the pod, from 0.
    pub attempt: u32,
    /// Host name inside the pod (63 bytes at most).
    pub hostname: String,
    /// Network.
    pub network: SandboxNetwork,
    /// Published ports.
    pub ports: Vec<HostPort>,
    /// `hostPID`
    pub host_pid: bool,
    /// `hostIPC`
    pub host_ipc: bool,
}

/// Whose processes a container sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PidMode {
    /// Its own.
    #[default]
    Container,
    /// Everything in the pod (`shareProcessNamespace`).
    Pod,
    /// The host's (`hostPID`).
    Host,
}

/// A bind mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// On the host; absolute.
    pub source: PathBuf,
    /// In the container; absolute.
    pub target: String,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// Limits, as cgroups count them. Zero is "not set".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Relative weight, 1024 per CPU requested.
    pub cpu_shares: i64,
    /// CFS quota in µs per [`Resources::cpu_period_us`].
    pub cpu_quota_us: i64,
    /// CFS period in µs.
    pub cpu_period_us: i64,
    /// Bytes.
    pub memory_bytes: i64,
    /// `oom_score_adj`
    pub oom_score_adj: i64,
}

/// `securityContext`, pod and container merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// `uid`, `uid:gid` or empty for the image's.
    pub user: String,
    /// Additional groups.
    pub groups: Vec<i64>,
    /// All devices, all capabilities.
    pub privileged: bool,
    /// Added capabilities.
    pub cap_add: Vec<String>,
    /// Dropped capabilities.
    pub cap_drop: Vec<String>,
    /// The root filesystem refuses writes.
    pub read_only_root: bool,
    /// setuid programs gain nothing.
    pub no_new_privileges: bool,
    /// Seccomp profile: `None` is the runtime's default, `Some("unconfined")`, or a profile's JSON.
    pub seccomp: Option<String>,
}

/// What to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Whose.
    pub pod: PodRef,
    /// `containers[].name`
    pub name: String,
    /// Restart count.
    pub attempt: u32,
    /// Hash of the container's spec: a running container with another hash is out of date.
    pub hash: String,
    /// Sandbox whose namespaces it joins.
    pub sandbox_id: String,
    /// Image id or reference that is on this machine.
    pub image: String,
    /// Image as the pod names it.
    pub image_name: String,
    /// Replaces the image's entrypoint unless empty.
    pub command: Vec<String>,
    /// Replaces the image's arguments unless empty.
    pub args: Vec<String>,
    /// `NAME=value`
    pub env: Vec<(String, String)>,
    /// Empty for the image's.
    pub working_dir: String,
    /// Bind mounts.
    pub mounts: Vec<Mount>,
    /// Limits.
    pub resources: Resources,
    /// Rights.
    pub security: Security,
    /// Processes it sees.
    pub pid: PidMode,
    /// `hostIPC`
    pub host_ipc: bool,
    /// Allocate a terminal.
    pub tty: bool,
    /// Keep standard input open.
    pub stdin: bool,
    /// Close standard input after the first attach ends.
    pub stdin_once: bool,
}

/// Sandbox or container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Holds the pod's address.
    Sandbox,
    /// Runs something of the user's.
    Container,
}

/// Where a container is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Made, never started.
    Created,
    /// Has a process.
    Running,
    /// Had one.
    Exited(Exit),
}

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// 128 + signal for a killed process.
    pub code: i32,
    /// The kernel ran out of the container's memory.
    pub oom_killed: bool,
    /// Why it could not be started at all; empty if it ran.
    pub start_error: String,
    /// When.
    pub at: Timestamp,
}

/// A sandbox or container as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// The runtime's id.
    pub id: String,
    /// Sandbox or container.
    pub kind: Kind,
    /// Whose.
    pub pod: PodRef,
    /// Container name; empty for sandboxes.
    pub name: String,
    /// Restart count, or sandbox attempt.
    pub attempt: u32,
    /// Hash of the spec it was made from; empty for sandboxes.
    pub hash: String,
    /// Sandbox it lives in; empty for sandboxes.
    pub sandbox_id: String,
    /// State.
    pub state: State,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was started last, if ever.
    pub started_at: Option<Timestamp>,
    /// Image as the pod named it.
    pub image: String,
    /// Content id of the image.
    pub image_id: String,
    /// Sandboxes on the pod network: the pod's address.
    pub address: Option<IpAddr>,
    /// Whether it has a terminal.
    pub tty: bool,
}

impl Container {
    /// Whether it has a process.
    pub fn is_running(&self) -> bool {
        self.state == State::Running
    }
    /// How it ended, if it did.
    pub fn exit(&self) -> Option<&Exit> {
        match &self.state {
            State::Exited(exit) => Some(exit),
            _ => None,
        }
    }
}

/// A line of the cheap list of everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The runtime's id.
    pub id: String,
    /// Sandbox or container.
    pub kind: Kind,
    /// Whose.
    pub pod: PodRef,
    /// Container name; empty for sandboxes.
    pub name: String,
    /// Whether it has a process.
    pub running: bool,
}

/// Something changed in a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The pod.
    pub pod_uid: String,
}

/// Standard streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StdStream {
    /// Standard output, or a terminal's.
    Out,
    /// Standard error.
    Err,
}

/// Output of a container, in order.
pub type OutputStream = BoxStream<'static, Result<(StdStream, Bytes)>>;

/// Which part of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on until the container ends.
    pub follow: bool,
    /// The last N lines only.
    pub tail: Option<u64>,
    /// Only lines at or after this.
    pub since: Option<Timestamp>,
    /// Put an RFC 3339 time before each line.
    pub timestamps: bool,
}

/// A command to run in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecSpec {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Allocate a terminal.
    pub tty: bool,
    /// Connect standard input.
    pub stdin: bool,
    /// Connect standard output.
    pub stdout: bool,
    /// Connect standard error.
    pub stderr: bool,
}

/// A running exec or attach.
pub struct Session {
    /// What it prints; ends when it ends.
    pub output: OutputStream,
    /// Its standard input; shutting it down is end of file.
    pub input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// The rest.
    pub control: Box<dyn SessionControl>,
}

/// Terminal size and exit code of a [`Session`].
#[async_trait]
pub trait SessionControl: Send + Sync {
    /// Sets the terminal's size in characters.
    async fn resize(&self, width: u16, height: u16) -> Result<()>;
    /// The exit code, once the output has ended. `None` if the process goes on without us (attach) or nobody knows.
    async fn exit_code(&self) -> Result<Option<i32>>;
}

/// Counters of a sandbox or container; all but memory are cumulative since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time in ns.
    pub cpu_ns: u64,
    /// Memory in use that cannot be reclaimed at once, bytes.
    pub memory_working_set_bytes: u64,
    /// Memory in use, bytes.
    pub memory_usage_bytes: u64,
    /// Bytes received; sandboxes only.
    pub rx_bytes: u64,
    /// Bytes sent; sandboxes only.
    pub tx_bytes: u64,
}

/// A byte stream into a pod.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Runs containers.
///
/// Calls are bounded in time except [`ContainerRuntime::pull`], [`ContainerRuntime::stop`] (its grace) and streams. Dropping
/// a future may leave the work half done; labels make that visible to the next [`ContainerRuntime::pod`].
#[async_trait]
pub trait ContainerRuntime: Send + Sync + 'static {
    /// Asks whether it is there and what it is.
    async fn version(&self) -> Result<Version>;

    /// An image on this machine, by reference or id.
    async fn image(&self, reference: &str) -> Result<Option<Image>>;
    /// All images on this machine.
    async fn images(&self) -> Result<Vec<Image>>;
    /// Fetches an image from its registry.
    async fn pull(&self, reference: &str, auth: Option<&RegistryAuth>) -> Result<Image>;

    /// All networks.
    async fn networks(&self) -> Result<Vec<Network>>;
    /// Makes a bridge network of one subnet. [`RuntimeError::Conflict`] if name or subnet are taken.
    async fn create_network(&self, name: &str, subnet: &str, gateway: Ipv4Addr) -> Result<()>;
    /// Removes a network nothing is connected to.
    async fn remove_network(&self, name: &str) -> Result<()>;

    /// Makes a sandbox and starts it; returns when it has its address.
    async fn run_sandbox(&self, spec: &SandboxSpec) -> Result<Container>;
    /// Makes a container; returns its id.
    async fn create(&self, spec: &ContainerSpec) -> Result<String>;
    /// Starts a created container; returns when its process runs.
    async fn start(&self, id: &str) -> Result<()>;
    /// The stop signal, then SIGKILL after `grace`; returns when it is stopped. Stopped or absent already is success.
    async fn stop(&self, id: &str, grace: Duration) -> Result<()>;
    /// Removes a container or sandbox, killing it if it runs. Absent already is success.
    async fn remove(&self, id: &str) -> Result<()>;

    /// Every sandbox and container of this agent.
    async fn list(&self) -> Result<Vec<Listed>>;
    /// Sandboxes and containers of one pod.
    async fn pod(&self, uid: &str) -> Result<Vec<Container>>;
    /// Changes of this agent's containers, from now on. Ends when the runtime goes away.
    async fn events(&self) -> Result<BoxStream<'static, Result<Event>>>;

    /// Output of a container.
    async fn logs(&self, id: &str, options: &LogOptions) -> Result<OutputStream>;
    /// Runs a command in a container.
    async fn exec(&self, id: &str, spec: &ExecSpec) -> Result<Session>;
    /// Connects to a container's own standard streams.
    async fn attach(&self, id: &str, spec: &ExecSpec) -> Result<Session>;
    /// Counters.
    async fn stats(&self, id: &str) -> Result<Stats>;
    /// Connects to a port of a pod, as probes and hooks do.
    async fn dial(&self, pod: &PodRef, address: SocketAddr) -> std::io::Result<Box<dyn Io>>;
}

/// Label and annotation names on sandboxes and containers.
pub mod labels {
    /// Pod UID.
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    /// Pod name.
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    /// Pod namespace.
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    /// Container name.
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    /// Restart count or sandbox attempt.
    pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
    /// Hash of the container's spec.
    pub const HASH: &str = "io.kubernetes.container.hash";
    /// `podsandbox` or `container`.
    pub const TYPE: &str = "io.kubernetes.docker.type";
    /// Sandbox a container lives in.
    pub const SANDBOX: &str = "io.kubernetes.sandbox.id";
    /// Image as the pod names it.
    pub const IMAGE: &str = "scaleup.dev/image";
    /// Which agent owns it: several may share one Docker.
    pub const INSTANCE: &str = "scaleup.dev/instance";
}
