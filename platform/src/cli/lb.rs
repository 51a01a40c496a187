//! Options of the load balancer and of the tools that look at it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::{PluginArgs, duration, node_name, service_cidr};

/// Options of the load balancer.
#[derive(Args, Debug, Clone)]
pub struct LbArgs {
    /// Address that Services of type LoadBalancer and NodePort are served on.
    #[arg(long, env = "SCALEUP_LB_BIND", value_name = "IP", default_value = "0.0.0.0")]
    pub lb_bind: IpAddr,
    /// Address written into Services' status; the node's by default.
    #[arg(long, env = "SCALEUP_LB_ADVERTISE", value_name = "IP")]
    pub lb_advertise: Option<IpAddr>,
    /// Port of the host on which Ingresses are served in clear text.
    #[arg(long, env = "SCALEUP_LB_HTTP_PORT", value_name = "PORT", default_value = "80")]
    pub lb_http_port: u16,
    /// Port of the host on which Ingresses are served with TLS.
    #[arg(long, env = "SCALEUP_LB_HTTPS_PORT", value_name = "PORT", default_value = "443")]
    pub lb_https_port: u16,
    /// Threads of the proxy; one per core by default.
    #[arg(long, env = "SCALEUP_LB_THREADS", value_name = "N")]
    pub lb_threads: Option<usize>,
    /// Database in MaxMind's format (.mmdb) that says where clients are, for TrafficPolicies with prefer: Nearest. Read again when it changes.
    #[arg(long, env = "SCALEUP_GEO_DATABASE", value_name = "FILE")]
    pub lb_geo_database: Option<PathBuf>,
    /// Redis by which several load balancers share rate limits (redis://HOST:PORT); each counts for itself without.
    #[arg(long, env = "SCALEUP_REDIS_URL", value_name = "URL", hide_env_values = true)]
    pub lb_redis_url: Option<String>,
    /// Leave nftables alone: ClusterIPs do not work on this node then.
    #[arg(long, env = "SCALEUP_NO_NFTABLES")]
    pub no_nftables: bool,
    /// File that requests are logged to, one JSON object per line; - is standard output.
    #[arg(long, env = "SCALEUP_LB_ACCESS_LOG", value_name = "PATH|-")]
    pub lb_access_log: Option<PathBuf>,
    /// Share of requests in the access log; answers of class 5xx are always in it, unless it is 0.
    #[arg(long, env = "SCALEUP_LB_ACCESS_LOG_SAMPLE", value_name = "PERCENT", default_value = "100", value_parser = percent)]
    pub lb_access_log_sample: f64,
    /// Log queries of URLs, too; they may hold secrets.
    #[arg(long, env = "SCALEUP_LB_ACCESS_LOG_QUERY")]
    pub lb_access_log_query: bool,
    /// Size at which the access log is put aside as PATH.1.
    #[arg(long, env = "SCALEUP_LB_ACCESS_LOG_MAX_MIB", value_name = "MIB", default_value = "100")]
    pub lb_access_log_max_mib: u32,
    /// Access logs put aside that are kept.
    #[arg(long, env = "SCALEUP_LB_ACCESS_LOG_KEEP", value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub lb_access_log_keep: u32,
    /// Collector of traces (OTLP over HTTP), e.g. http://127.0.0.1:4318; requests are not traced without.
    #[arg(long, env = "SCALEUP_OTLP_ENDPOINT", value_name = "URL", value_parser = otlp_endpoint)]
    pub otlp_endpoint: Option<String>,
    /// Share of requests that are traced when their caller has not decided.
    #[arg(long, env = "SCALEUP_TRACE_SAMPLE", value_name = "PERCENT", default_value = "1", value_parser = percent)]
    pub trace_sample: f64,
    /// Count requests by image, too: watches all pods for it.
    #[arg(long, env = "SCALEUP_LB_IMAGE_METRICS")]
    pub lb_image_metrics: bool,
}

/// `scaleup lb`
#[derive(Args, Debug, Clone)]
#[command(subcommand_negates_reqs = true)]
pub struct LbRoleArgs {
    /// A look at load balancers that run, instead of running one.
    #[command(subcommand)]
    pub tool: Option<LbTool>,
    /// Kubeconfig of this role, made by `scaleup kubeconfig`.
    #[arg(long, env = "SCALEUP_KUBECONFIG", value_name = "FILE", required = true)]
    pub kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    pub lb: LbArgs,
    #[command(flatten)]
    pub plugins: PluginArgs,
    /// Name of this node; the host name by default.
    #[arg(long, env = "SCALEUP_NODE_NAME", value_name = "NAME", value_parser = node_name)]
    pub node_name: Option<String>,
    /// Range of cluster IPs, as the API server has it.
    #[arg(long, env = "SCALEUP_SERVICE_CIDR", value_name = "CIDR", default_value = "10.96.0.0/16", value_parser = service_cidr)]
    pub service_cidr: String,
    /// Where this role's metrics are served, at /metrics; nowhere by default.
    #[arg(long, env = "SCALEUP_METRICS_LISTEN", value_name = "ADDR:PORT")]
    pub metrics_listen: Option<SocketAddr>,
    /// Take over from the load balancer that has the hand-over socket, without refusing a connection or losing a DNS query; an ordinary
    /// start if there is none.
    #[arg(long)]
    pub replace: bool,
    /// Unix socket by which a successor with --replace finds this process; only its user may connect. By default
    /// scaleup-lb-NODE.sock in $XDG_RUNTIME_DIR or /run.
    #[arg(long, env = "SCALEUP_HANDOVER_SOCKET", value_name = "PATH")]
    pub handover_socket: Option<PathBuf>,
}

/// `scaleup lb …`
#[derive(Subcommand, Debug, Clone)]
pub enum LbTool {
    /// Shows what Services and routes are doing, live.
    Top(TopArgs),
    /// Says which listener, rule, policy and endpoint a request would get, and why. Nothing is sent.
    Explain(ExplainArgs),
}

/// Who asks.
#[derive(Args, Debug, Clone)]
pub struct UserArgs {
    /// Kubeconfig; `~/.scaleup/kubeconfig` or `~/.kube/config` by default.
    #[arg(long = "kubeconfig", env = "KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// How answers look.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub enum OutputFormat {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// `scaleup lb top`
#[derive(Args, Debug, Clone)]
pub struct TopArgs {
    #[command(flatten)]
    pub user: UserArgs,
    /// Print once and end.
    #[arg(long)]
    pub once: bool,
    /// Time between two looks.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub interval: Duration,
    /// How it looks.
    #[arg(short, long, default_value = "table")]
    pub output: OutputFormat,
}

/// `scaleup lb explain`
#[derive(Args, Debug, Clone)]
pub struct ExplainArgs {
    #[command(flatten)]
    pub user: UserArgs,
    /// Method, e.g. GET.
    pub method: String,
    /// URL, e.g. http://shop.example/a?x=1; its port is the load balancer's.
    pub url: String,
    /// A header, e.g. "x-user: ann"; may be repeated.
    #[arg(short = 'H', long, value_name = "NAME: VALUE")]
    pub header: Vec<String>,
    /// Address of the client.
    #[arg(long, value_name = "IP")]
    pub client: Option<IpAddr>,
    /// How it looks.
    #[arg(short, long, default_value = "table")]
    pub output: OutputFormat,
}

fn percent(text: &str) -> Result<f64, String> {
    let parsed = text.trim_end_matches('%').parse::<f64>().ok();
    parsed
        .filter(|p| (0.0..=100.0).contains(p))
        .ok_or_else(|| "expected a share between 0 and 100, e.g. 2.5".to_owned())
}

fn otlp_endpoint(text: &str) -> Result<String, String> {
    let usable = url::Url::parse(text).is_ok_and(|url| url.scheme() == "http" && url.has_host());
    if usable {
        Ok(text.to_owned())
    } else {
        Err("expected http://HOST:PORT; collectors are spoken to without TLS".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn tools_need_nothing_of_the_role() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["scaleup", "lb"][..], args].concat());
        let role = parse(&["--kubeconfig", "/k"]).unwrap();
        assert!(matches!(role.command, Command::Lb(lb) if lb.tool.is_none() && lb.kubeconfig.is_some()));
        assert!(parse(&[]).unwrap_err().to_string().contains("--kubeconfig"));
        let Command::Lb(lb) = parse(&["explain", "GET", "http://a/", "-H", "a: b", "--client", "::1"]).unwrap().command
        else {
            panic!("lb")
        };
        assert!(matches!(lb.tool, Some(LbTool::Explain(args)) if args.header == ["a: b"] && args.client.is_some()));
        let top = parse(&["top", "--once", "-o", "json", "--kubeconfig", "/mine"]).unwrap();
        let Command::Lb(lb) = top.command else { panic!("lb") };
        assert!(
            matches!(lb.tool, Some(LbTool::Top(args)) if args.once && args.user.kubeconfig == Some("/mine".into()))
        );
        assert!(percent("100.1").is_err() && percent("NaN").is_err() && percent("2.5%") == Ok(2.5));
        assert!(otlp_endpoint("https://a:4318").is_err() && otlp_endpoint("http://a:4318").is_ok());
    }
}
