//! Configuration of the load balancer role: plain data, parsed by the platform, never read from the environment here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::observe::ObserveConfig;

/// A text that may hold a password: never shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden(String);

impl Hidden {
    /// The text itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Hidden {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// Everything the role needs to know before it starts.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the Node this process runs on; its Node object is watched for `podCIDR` and the pod gateway.
    pub node_name: String,
    /// Address that Service listeners bind to.
    pub bind_address: IpAddr,
    /// Address written to `Service.status.loadBalancer.ingress` once a Service's listeners are bound.
    pub advertise_ip: IpAddr,
    /// Port that Ingresses are served on in clear text.
    pub http_port: u16,
    /// Port that Ingresses are served on with TLS.
    pub https_port: u16,
    /// Proxy threads, each with its own listener sockets and upstream pool. `None`: one per core.
    pub threads: Option<usize>,
    /// Name of our nftables table (family `ip`), unique per instance on a machine.
    pub table: String,
    /// ClusterIP range; reverse DNS inside it is answered authoritatively.
    pub service_cidr: String,
    /// DNS zone of the cluster, without leading or trailing dot.
    pub cluster_domain: String,
    /// Where DNS listens. Empty: port 53 of the pod gateway, learnt from the own Node's annotation.
    pub dns_listen: Vec<SocketAddr>,
    /// File the upstream resolvers are read from.
    pub resolv_conf: PathBuf,
    /// Serve Services of type LoadBalancer and NodePort in user space.
    pub enable_proxy: bool,
    /// Program the node's service proxy (ClusterIPs) into nftables, and the way to pods of other nodes.
    pub enable_nftables: bool,
    /// Serve cluster DNS.
    pub enable_dns: bool,
    /// GeoIP database in MaxMind's format (with `location`, as GeoLite2-City), for `locality.prefer: Nearest`; loaded again when it
    /// changes.
    pub geo_database: Option<PathBuf>,
    /// Redis that shared rate limits are counted in, `redis://[user:password@]host[:port][/database]` (`rediss` for TLS).
    pub redis_url: Option<Hidden>,
    /// Plugins that policies may name: this role asks those of the world `routing`, somebody else loads them.
    pub plugins: Arc<scaleup_plugins::Registry>,
    /// Limits and timeouts of the proxy.
    pub proxy: ProxyConfig,
    /// Access log, tracing and metrics by image.
    pub observe: ObserveConfig,
}

impl Config {
    /// The defaults for `node_name`: listens everywhere, one thread per core, all parts enabled.
    pub fn new(node_name: impl Into<String>) -> Self {
        let node_name = node_name.into();
        Self {
            table: format!("scaleup-{node_name}"),
            node_name,
            bind_address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            advertise_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            http_port: 80,
            https_port: 443,
            threads: None,
            service_cidr: "10.96.0.0/16".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            dns_listen: Vec::new(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            enable_proxy: true,
            enable_nftables: true,
            enable_dns: true,
            geo_database: None,
            redis_url: None,
            plugins: Arc::default(),
            proxy: ProxyConfig::default(),
            observe: ObserveConfig::default(),
        }
    }

    /// Number of proxy threads to start (at least one).
    pub(crate) fn thread_count(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.threads.unwrap_or_else(cores).clamp(1, MAX_THREADS)
    }
}

/// More threads than this would only cost memory.
pub(crate) const MAX_THREADS: usize = 256;

/// Limits and timeouts of the HTTP and TCP proxy.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Longest wait for a TCP connection to an endpoint.
    pub connect_timeout: Duration,
    /// Longest wait for an endpoint's response header; `None` waits as long as the client does.
    pub response_header_timeout: Option<Duration>,
    /// Longest time from the end of one request to the complete header of the next (also the keep-alive idle time).
    pub header_read_timeout: Duration,
    /// Longest wait for the client in the middle of a message: for more of its body, or until it takes more of a response.
    pub body_idle_timeout: Duration,
    /// Longest time from the connection to the end of the TLS handshake.
    pub tls_handshake_timeout: Duration,
    /// Longest wait for the receiver of an HTTP/2 body to take more of it.
    pub send_timeout: Duration,
    /// How long an idle upstream connection is kept. Below 5 s, the keep-alive time of many HTTP servers, so that we
    /// close first and a request that may not be replayed never meets a connection that is just being closed.
    pub upstream_idle_timeout: Duration,
    /// Idle upstream connections kept per endpoint and thread.
    pub max_idle_per_endpoint: usize,
    /// Requests served on one client connection before it is asked to reconnect.
    pub max_requests_per_connection: u64,
    /// Client connections per thread; more are closed at once.
    pub max_connections_per_thread: usize,
    /// Largest request header section in bytes (431 beyond).
    pub max_header_bytes: usize,
    /// Largest number of header fields (431 beyond).
    pub max_header_count: usize,
    /// Longest request target in bytes (414 beyond).
    pub max_uri_bytes: usize,
    /// Keep and extend `X-Forwarded-*` and `Forwarded` sent by clients instead of replacing them.
    pub trust_forwarded_headers: bool,
    /// How long connections may finish after their listener was closed.
    pub drain_timeout: Duration,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(2),
            response_header_timeout: None,
            header_read_timeout: Duration::from_secs(30),
            body_idle_timeout: Duration::from_secs(60),
            tls_handshake_timeout: Duration::from_secs(10),
            send_timeout: Duration::from_secs(60),
            upstream_idle_timeout: Duration::from_secs(4),
            max_idle_per_endpoint: 256,
            max_requests_per_connection: 100_000,
            max_connections_per_thread: 50_000,
            max_header_bytes: 32 * 1024,
            max_header_count: 100,
            max_uri_bytes: 8 * 1024,
            trust_forwarded_headers: false,
            drain_timeout: Duration::from_secs(30),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_shown() {
        let url = "redis://user:secret@cache.example/1".to_owned();
        let config = Config { redis_url: Some(url.clone().into()), ..Config::new("n") };
        assert!(!format!("{config:?} {config:#?}").contains("secret"));
        assert_eq!(config.redis_url.as_ref().map(Hidden::reveal), Some(&*url));
    }
}
