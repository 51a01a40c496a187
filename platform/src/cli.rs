//! Flags, `SCALEUP_*` variables and the YAML file, in that order of precedence, parsed into plain data.
//!
//! One declaration per option: clap reads flags and environment from it, and the file's keys are the flags' names, put in as defaults
//! before the command line is parsed. Nothing here opens, binds or starts anything but that file.

mod deploy;
mod lb;
mod loading;
mod plugin;

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

pub use deploy::{ApplyArgs, NameArgs, PushArgs, TargetArgs};
pub use lb::{ExplainArgs, LbArgs, LbRoleArgs, LbTool, OutputFormat, TopArgs, UserArgs};
pub use loading::PluginArgs;
pub use plugin::{
    BenchArgs, BuildArgs, Language, NewArgs, PluginTool, RecordsArgs, ReplayArgs, TestArgs, ValidateArgs,
};

/// Largest configuration file read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// ScaleUp: containers for web services, with the API that kubectl speaks.
#[derive(Parser, Debug)]
#[command(name = "scaleup", version, propagate_version = true)]
pub struct Cli {
    /// YAML file whose keys are the flags' names without the dashes in front.
    #[arg(long, global = true, env = "SCALEUP_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What is logged: error, warn, info, debug, trace, or a filter such as `info,scaleup_lb=debug`.
    #[arg(long, global = true, env = "SCALEUP_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
    /// How log lines look.
    #[arg(long, global = true, env = "SCALEUP_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Subcommands: every role at once, one role each, and tools.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Every role in one process.
    Up(Box<UpArgs>),
    /// The API server alone.
    Apiserver(Box<ApiserverArgs>),
    /// The controllers alone.
    Controllers(ControllersRoleArgs),
    /// The scheduler alone.
    Scheduler(SchedulerArgs),
    /// The node agent alone: runs pods on this machine's Docker.
    Agent(Box<AgentArgs>),
    /// The load balancer, service proxy and cluster DNS of a node alone.
    Lb(Box<LbRoleArgs>),
    /// Builds, tests and manages policies as WebAssembly.
    #[command(subcommand)]
    Plugin(PluginTool),
    /// Prints a kubeconfig for a role, a node or a user, signed by the CA in the data directory.
    Kubeconfig(KubeconfigArgs),
}

/// Where state is kept.
#[derive(Args, Debug, Clone)]
pub struct DataArgs {
    /// Directory for the store, keys, kubeconfig and pod volumes.
    #[arg(long, env = "SCALEUP_DATA_DIR", value_name = "DIR", default_value_os_t = default_data_dir())]
    pub data_dir: PathBuf,
}

/// Options of the API server.
#[derive(Args, Debug, Clone)]
pub struct ApiArgs {
    /// Address and port of the API.
    #[arg(long, env = "SCALEUP_LISTEN", value_name = "ADDR:PORT", default_value = "0.0.0.0:6443")]
    pub listen: SocketAddr,
    /// Address under which nodes and pods reach the API; found out by default.
    #[arg(long, env = "SCALEUP_ADVERTISE_ADDRESS", value_name = "IP")]
    pub advertise_address: Option<IpAddr>,
    /// Further DNS names or addresses for the serving certificate.
    #[arg(long, env = "SCALEUP_TLS_NAMES", value_name = "NAME", value_delimiter = ',')]
    pub tls_names: Vec<String>,
    /// embedded, memory, or etcd://HOST:PORT[,HOST:PORT…]
    #[arg(long, env = "SCALEUP_STORE", value_name = "STORE", default_value = "embedded")]
    pub store: StoreChoice,
    /// CA certificate of etcd (PEM); turns TLS to etcd on.
    #[arg(long, env = "SCALEUP_ETCD_CA", value_name = "FILE")]
    pub etcd_ca: Option<PathBuf>,
    /// Client certificate for etcd (PEM).
    #[arg(long, env = "SCALEUP_ETCD_CERT", value_name = "FILE", requires = "etcd_key")]
    pub etcd_cert: Option<PathBuf>,
    /// Key of the client certificate for etcd (PEM).
    #[arg(long, env = "SCALEUP_ETCD_KEY", value_name = "FILE", requires = "etcd_cert")]
    pub etcd_key: Option<PathBuf>,
    /// Range of cluster IPs.
    #[arg(long, env = "SCALEUP_SERVICE_CIDR", value_name = "CIDR", default_value = "10.96.0.0/16", value_parser = service_cidr)]
    pub service_cidr: String,
    /// Range of node ports.
    #[arg(long, env = "SCALEUP_NODE_PORT_RANGE", value_name = "FIRST-LAST", default_value = "30000-32767")]
    pub node_port_range: PortRange,
}

/// Where pods' addresses come from: the controllers give each node a part of it, the agent asks for one that is free on its machine.
#[derive(Args, Debug, Clone)]
pub struct PodNetworkArgs {
    /// Range out of which the controllers give each node a subnet for its pods; an agent asks for one out of it.
    #[arg(
        long,
        visible_alias = "cluster-cidr",
        env = "SCALEUP_POD_CIDR_POOL",
        value_name = "CIDR",
        default_value = "10.244.0.0/16",
        value_parser = pod_cidr_pool
    )]
    pub pod_cidr_pool: String,
    /// Prefix length of a node's subnet: /24 has room for 253 pods.
    #[arg(long, env = "SCALEUP_NODE_CIDR_MASK_SIZE", value_name = "BITS", default_value_t = 24, value_parser = clap::value_parser!(u8).range(16..=28))]
    pub node_cidr_mask_size: u8,
}

/// Options of the node agent.
#[derive(Args, Debug, Clone)]
pub struct NodeArgs {
    /// Name of this node; the host name by default.
    #[arg(long, env = "SCALEUP_NODE_NAME", value_name = "NAME", value_parser = node_name)]
    pub node_name: Option<String>,
    /// Address of this node; found out by default.
    #[arg(long, env = "SCALEUP_NODE_IP", value_name = "IP")]
    pub node_ip: Option<IpAddr>,
    /// What runs containers.
    #[arg(long, env = "SCALEUP_RUNTIME", value_name = "RUNTIME", default_value = "docker")]
    pub runtime: RuntimeChoice,
    /// Docker's socket.
    #[arg(long, env = "SCALEUP_DOCKER_SOCKET", value_name = "PATH", default_value = "/var/run/docker.sock")]
    pub docker_socket: PathBuf,
    /// Address and port of the agent's own API (logs, exec); port 0 takes a free one.
    #[arg(long, env = "SCALEUP_KUBELET_LISTEN", value_name = "ADDR:PORT", default_value = "0.0.0.0:0")]
    pub kubelet_listen: SocketAddr,
    /// Labels of this node.
    #[arg(long, env = "SCALEUP_NODE_LABELS", value_name = "KEY=VALUE", value_delimiter = ',', value_parser = label)]
    pub node_labels: Vec<(String, String)>,
    /// Stop the pods' containers when the agent stops; they stay up otherwise.
    #[arg(long, env = "SCALEUP_STOP_PODS")]
    pub stop_pods: bool,
}

/// Options of the controllers.
#[derive(Args, Debug, Clone)]
pub struct ControllersArgs {
    /// How long a node may be silent before it counts as lost.
    #[arg(long, env = "SCALEUP_NODE_MONITOR_GRACE_PERIOD", value_name = "TIME", default_value = "40s", value_parser = duration)]
    pub node_monitor_grace_period: Duration,
    /// Get certificates by ACME for Ingresses and Gateways annotated with scaleup.dev/acme: "true", under this e-mail address. Giving
    /// it means agreeing to the CA's terms of service.
    #[arg(long, env = "SCALEUP_ACME_EMAIL", value_name = "ADDRESS")]
    pub acme_email: Option<String>,
    /// Directory URL of the CA.
    #[arg(
        long,
        env = "SCALEUP_ACME_DIRECTORY",
        value_name = "URL",
        default_value = "https://acme-v02.api.letsencrypt.org/directory"
    )]
    pub acme_directory: String,
    /// PEM file with a CA that the directory itself is verified with, beside the system's.
    #[arg(long, env = "SCALEUP_ACME_CA_FILE", value_name = "FILE")]
    pub acme_ca_file: Option<PathBuf>,
}

/// `scaleup controllers`
#[derive(Args, Debug, Clone)]
pub struct ControllersRoleArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    #[command(flatten)]
    pub controllers: ControllersArgs,
    #[command(flatten)]
    pub pod_network: PodNetworkArgs,
    #[command(flatten)]
    pub plugins: PluginArgs,
    /// Where this role's metrics are served, at /metrics; nowhere by default.
    #[arg(long, env = "SCALEUP_METRICS_LISTEN", value_name = "ADDR:PORT")]
    pub metrics_listen: Option<SocketAddr>,
}

/// `scaleup scheduler`
#[derive(Args, Debug, Clone)]
pub struct SchedulerArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    #[command(flatten)]
    pub plugins: PluginArgs,
    /// Where this role's metrics are served, at /metrics; nowhere by default.
    #[arg(long, env = "SCALEUP_METRICS_LISTEN", value_name = "ADDR:PORT")]
    pub metrics_listen: Option<SocketAddr>,
}

/// `scaleup up`
#[derive(Args, Debug, Clone)]
pub struct UpArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub api: ApiArgs,
    #[command(flatten)]
    pub node: NodeArgs,
    #[command(flatten)]
    pub lb: LbArgs,
    #[command(flatten)]
    pub controllers: ControllersArgs,
    #[command(flatten)]
    pub pod_network: PodNetworkArgs,
    #[command(flatten)]
    pub plugins: PluginArgs,
    /// Take over from the process that has the data directory, without refusing a connection to the load balancer; an ordinary start if there
    /// is none.
    #[arg(long)]
    pub replace: bool,
}

/// `scaleup apiserver`
#[derive(Args, Debug, Clone)]
pub struct ApiserverArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub api: ApiArgs,
    #[command(flatten)]
    pub plugins: PluginArgs,
    /// Where a load balancer serves its metrics; its views are offered at /lb then (`scaleup lb top`).
    #[arg(long, env = "SCALEUP_LB_VIEWS", value_name = "ADDR:PORT")]
    pub lb_views: Option<SocketAddr>,
}

/// How a role that runs alone reaches the API.
#[derive(Args, Debug, Clone)]
pub struct ClientArgs {
    /// Kubeconfig of this role, made by `scaleup kubeconfig`.
    #[arg(long, env = "SCALEUP_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: PathBuf,
}

/// `scaleup agent`
#[derive(Args, Debug, Clone)]
pub struct AgentArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub node: NodeArgs,
    #[command(flatten)]
    pub pod_network: PodNetworkArgs,
}

/// `scaleup kubeconfig`
#[derive(Args, Debug, Clone)]
pub struct KubeconfigArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// Where clients reach the API, e.g. https://10.0.0.5:6443
    #[arg(long, value_name = "URL")]
    pub server: String,
    /// Who it is for.
    #[command(subcommand)]
    pub subject: Subject,
}

/// Who a kubeconfig is for.
#[derive(Subcommand, Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// The controllers.
    Controllers,
    /// The scheduler.
    Scheduler,
    /// Load balancer, service proxy and DNS of a node.
    Lb,
    /// A node's agent; the certificate also serves the agent's own API at the given addresses.
    Node {
        /// The node's name.
        name: String,
        /// The node's addresses.
        #[arg(long, required = true, value_delimiter = ',')]
        address: Vec<IpAddr>,
    },
    /// A person or program; what they may do is up to RBAC.
    User {
        /// Name.
        name: String,
        /// Groups.
        #[arg(long, value_delimiter = ',')]
        group: Vec<String>,
    },
}

/// Which store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreChoice {
    /// One file in the data directory.
    Embedded,
    /// Nothing is kept.
    Memory,
    /// `host:port` of etcd members.
    Etcd(Vec<String>),
}

impl std::str::FromStr for StoreChoice {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "embedded" => Ok(Self::Embedded),
            "memory" => Ok(Self::Memory),
            _ => match s.strip_prefix("etcd://") {
                Some(hosts)
                    if !hosts.is_empty()
                        && hosts.split(',').all(|h| {
                            h.rsplit_once(':')
                                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
                        }) =>
                {
                    Ok(Self::Etcd(hosts.split(',').map(str::to_owned).collect()))
                }
                _ => Err("expected embedded, memory or etcd://HOST:PORT[,HOST:PORT…]".into()),
            },
        }
    }
}

/// What runs containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RuntimeChoice {
    /// Docker on this machine.
    Docker,
    /// Nothing runs, pods only seem to: for trying things at scale.
    Fake,
}

/// An inclusive range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange(pub u16, pub u16);

impl std::str::FromStr for PortRange {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let parsed = s.split_once('-').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        match parsed {
            Some((first, last)) if 0 < first && first <= last => Ok(Self(first, last)),
            _ => Err("expected FIRST-LAST, e.g. 30000-32767".into()),
        }
    }
}

fn ipv4_cidr(text: &str, shortest: u8, longest: u8) -> Result<String, String> {
    let parsed =
        text.split_once('/').and_then(|(ip, bits)| Some((ip.parse::<Ipv4Addr>().ok()?, bits.parse::<u8>().ok()?)));
    match parsed {
        Some((ip, bits)) if (shortest..=longest).contains(&bits) => {
            let mask = u32::MAX << (32 - u32::from(bits));
            Ok(format!("{}/{bits}", Ipv4Addr::from(u32::from(ip) & mask)))
        }
        _ => Err(format!("expected an IPv4 range between /{shortest} and /{longest}, e.g. 10.96.0.0/16")),
    }
}

fn service_cidr(text: &str) -> Result<String, String> {
    ipv4_cidr(text, 12, 28)
}

fn pod_cidr_pool(text: &str) -> Result<String, String> {
    ipv4_cidr(text, 8, 24)
}

fn node_name(text: &str) -> Result<String, String> {
    scaleup_api::names::dns1123_subdomain(text).map(|()| text.to_owned())
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    scaleup_api::names::qualified_name(key)?;
    scaleup_api::names::label_value(value)?;
    Ok((key.to_owned(), value.to_owned()))
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = match text.as_bytes().last() {
        Some(b's') => text[..text.len() - 1].parse().ok(),
        Some(b'm') => text[..text.len() - 1].parse::<u64>().ok().and_then(|m| m.checked_mul(60)),
        _ => None,
    };
    parsed.filter(|s| *s > 0).map(Duration::from_secs).ok_or_else(|| "expected a time such as 40s or 5m".to_owned())
}

/// `~/.scaleup`, or the system's directory for a user without a home.
pub fn default_data_dir() -> PathBuf {
    std::env::var_os("HOME")
        .map_or_else(|| PathBuf::from("/var/lib/scaleup"), |home| PathBuf::from(home).join(".scaleup"))
}

/// Parses a command line; `--help` and mistakes end the process as clap does.
pub fn parse(args: Vec<OsString>) -> Result<Cli> {
    let mut command = Cli::command();
    if let Some(path) = config_path(&args) {
        let length = std::fs::metadata(&path)
            .with_context(|| format!("cannot read the configuration file {}", path.display()))?
            .len();
        if length > MAX_CONFIG_BYTES {
            bail!("the configuration file {} is larger than {MAX_CONFIG_BYTES} bytes", path.display());
        }
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read the configuration file {}", path.display()))?;
        command = with_file(command, &text).with_context(|| format!("in the configuration file {}", path.display()))?;
    }
    let matches = command.get_matches_from(args);
    Cli::from_arg_matches(&matches).map_err(|e| e.exit())
}

fn config_path(args: &[OsString]) -> Option<PathBuf> {
    let mut iter = args.iter();
    while let Some(arg) = iter.next() {
        if arg == "--config" {
            return iter.next().map(PathBuf::from);
        }
        if let Some(path) = arg.to_str().and_then(|a| a.strip_prefix("--config=")) {
            return Some(path.into());
        }
    }
    std::env::var_os("SCALEUP_CONFIG").map(PathBuf::from)
}

/// Puts the file's values in as defaults of the options they name.
fn with_file(mut command: clap::Command, text: &str) -> Result<clap::Command> {
    let file: std::collections::BTreeMap<String, serde_json::Value> =
        serde_saphyr::from_str(text).context("expected a mapping of option names to values")?;
    for (key, value) in file {
        let text = match value {
            serde_json::Value::String(s) => s,
            serde_json::Value::Bool(_) | serde_json::Value::Number(_) => value.to_string(),
            serde_json::Value::Array(items) => items
                .iter()
                .map(|i| i.as_str().map_or_else(|| i.to_string(), str::to_owned))
                .collect::<Vec<_>>()
                .join(","),
            _ => bail!("{key}: expected a text, number, boolean or list"),
        };
        let mut known = false;
        command = set_default(command, &key, &text, &mut known);
        let names: Vec<String> = command.get_subcommands().map(|s| s.get_name().to_owned()).collect();
        for name in names {
            command = command.mut_subcommand(name, |sub| set_default(sub, &key, &text, &mut known));
        }
        if !known {
            bail!("{key}: no such option; `scaleup up --help` lists them");
        }
    }
    Ok(command)
}

fn set_default(command: clap::Command, key: &str, value: &str, known: &mut bool) -> clap::Command {
    let Some(id) =
        command.get_arguments().find(|a| a.get_long() == Some(key) && key != "config").map(|a| a.get_id().clone())
    else {
        return command;
    };
    *known = true;
    let value = value.to_owned();
    command.mut_arg(id, move |arg| arg.required(false).default_value(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_with(file: &str, args: &[&str]) -> Result<Cli> {
        let matches = with_file(Cli::command(), file)?.try_get_matches_from(args)?;
        Ok(Cli::from_arg_matches(&matches)?)
    }

    #[test]
    fn file_is_below_flags() {
        let file = "listen: 127.0.0.1:1\nnode-name: from-file\nstop-pods: true\nnode-labels: [a=b, c=d]\nlog: debug\n";
        let cli = parse_with(file, &["scaleup", "up", "--listen", "127.0.0.1:2"]).unwrap();
        assert_eq!(cli.log, "debug");
        let Command::Up(up) = cli.command else { panic!("up") };
        assert_eq!(up.api.listen.port(), 2);
        assert_eq!(up.node.node_name.as_deref(), Some("from-file"));
        assert!(up.node.stop_pods);
        assert_eq!(up.node.node_labels, [("a".into(), "b".into()), ("c".into(), "d".into())]);
    }

    #[test]
    fn mistakes_in_the_file_are_named() {
        let check = |file: &str, part: &str| {
            let e = format!("{:#}", parse_with(file, &["scaleup", "up"]).unwrap_err());
            assert!(e.contains(part), "{e}");
        };
        check("listne: x", "listne: no such option");
        check("listen: nonsense", "invalid");
        check("listen: {a: b}", "expected a text");
        check("- a", "expected a mapping");
    }

    #[test]
    fn stores_and_ranges() {
        assert_eq!("etcd://a:1,b:2".parse(), Ok(StoreChoice::Etcd(vec!["a:1".into(), "b:2".into()])));
        for bad in ["", "etcd://", "etcd://a", "etcd://a:b", "etcd://:1", "redis"] {
            assert!(bad.parse::<StoreChoice>().is_err(), "{bad}");
        }
        assert_eq!("1-2".parse(), Ok(PortRange(1, 2)));
        for bad in ["", "1", "2-1", "0-5", "1-70000"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
    }

    #[test]
    fn values_are_checked() {
        assert_eq!(service_cidr("10.96.3.4/16"), Ok("10.96.0.0/16".into()));
        for bad in ["10.96.0.0", "10.96.0.0/31", "10.96.0.0/8", "fd00::/112", "x/16", "10.96.0.0/99"] {
            assert!(service_cidr(bad).is_err(), "{bad}");
        }
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        for bad in ["", "5", "0s", "-1s", "s", "5h", "99999999999999999999m"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(node_name("Not_A_Name").is_err() && label("no-value").is_err() && label("a b=c").is_err());
    }

    #[test]
    fn the_declaration_is_sound() {
        Cli::command().debug_assert();
    }
}
