//! What TrafficPolicies say, resolved per Service port and per rule: by value, with defaults filled in and everything validated.
//!
//! A [`ServicePolicy`] is about a Service's endpoints, whoever sends them traffic; a [`RequestPolicy`] about the requests that match a
//! rule. Nothing here counts or decides: that is [`crate::balance`].

pub(crate) mod convert;
pub(crate) mod parts;

use std::sync::Arc;
use std::time::Duration;

use scaleup_plugins::PluginKey;

/// How a Service port's endpoints are chosen and protected. The default is what a Service without a policy gets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServicePolicy {
    /// `namespace/name` of the TrafficPolicies it comes from, for explanations.
    pub sources: Vec<Arc<str>>,
    /// How an endpoint is chosen; `None`: by the protocol's default.
    pub algorithm: Option<Algorithm>,
    /// What `RingHash` and `Maglev` hash; the client's address if empty.
    pub hash_on: Vec<HashSource>,
    /// `sessionAffinity: ClientIP`: how long a client keeps its endpoint after its last connection.
    pub client_ip_affinity: Option<Duration>,
    /// With hashing: an endpoint's largest load in percent of the mean.
    pub bounded_load_percent: Option<u32>,
    /// Which endpoints are near, and when traffic goes farther.
    pub locality: Locality,
    /// Growth of a new endpoint's share: window and first share in percent.
    pub slow_start: Option<(Duration, u32)>,
    /// Checks of our own.
    pub health_check: Option<HealthCheck>,
    /// Ejection of endpoints that fail; on by default only for connect failures (a pause of a second).
    pub outlier: Option<Outlier>,
    /// Limits on what is in flight.
    pub limits: InFlightLimits,
    /// Where requests wait that are over a limit.
    pub queue: Option<Queue>,
    /// Longest wait for a connection; `None`: the proxy's default.
    pub connect_timeout: Option<Duration>,
    /// PROXY protocol version (1 or 2) sent to endpoints.
    pub send_proxy: Option<u8>,
    /// TLS to endpoints.
    pub upstream_tls: Option<Arc<UpstreamTls>>,
    /// Who chooses endpoints for HTTP requests, before the algorithm.
    pub plugin: Option<Arc<PluginRef>>,
}

/// A plugin of the world `routing` that is to choose endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginRef {
    /// Which.
    pub key: PluginKey,
    /// Request headers (lower case) that it sees.
    pub headers: Box<[Arc<str>]>,
    /// It chooses among the endpoints of all backends of a rule, not only of the one that weights chose.
    pub whole_rule: bool,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// In turn, by weight.
    RoundRobin,
    /// Fewest requests or connections in flight, in relation to weight.
    LeastConnections,
    /// The better of two random ones by requests in flight.
    LeastRequest,
    /// The better of two random ones by peak-EWMA latency × requests in flight, failures counted as slow.
    PeakEwma,
    /// By chance, by weight.
    Random,
    /// Ketama-style ring.
    RingHash,
    /// Maglev table (Eisenbud et al., NSDI 2016).
    Maglev,
}

/// A source of a hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashSource {
    /// A request header, lower case.
    Header(Arc<str>),
    /// A cookie, made when absent: name, path, `Max-Age` (a session cookie if absent).
    Cookie(Arc<str>, Arc<str>, Option<Duration>),
    /// A query parameter.
    Query(Arc<str>),
    /// The client's address.
    Address,
}

/// Preference of near endpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct Locality {
    /// What is near.
    pub prefer: Prefer,
    /// Share of healthy endpoints, in percent, below which traffic spills over to the next level.
    pub spillover_percent: u32,
}

impl Default for Locality {
    fn default() -> Self {
        Self { prefer: Prefer::None, spillover_percent: 70 }
    }
}

/// See [`Locality`].
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Prefer {
    /// All alike.
    #[default]
    None,
    /// Own node, then own zone, then own region, then all.
    Node,
    /// Own zone, then own region, then all.
    Zone,
    /// Own region, then all.
    Region,
    /// The region nearest to the client, by name, latitude and longitude.
    Nearest(Arc<[(Arc<str>, f64, f64)]>),
}

/// What an active check asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `GET` of a path; healthy if the status is in one of the (inclusive) ranges.
    Http {
        /// Path and query.
        path: Arc<str>,
        /// `Host`; the endpoint's address if absent.
        host: Option<Arc<str>>,
        /// Inclusive.
        statuses: Vec<(u16, u16)>,
    },
    /// A connection.
    Tcp,
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        /// `HealthCheckRequest.service`
        service: Arc<str>,
        /// `:authority`
        host: Option<Arc<str>>,
    },
}

/// Active health check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: Probe,
    /// Another port than the endpoint's.
    pub port: Option<u16>,
    /// Pause between checks.
    pub interval: Duration,
    /// Longest wait.
    pub timeout: Duration,
    /// Successes in a row that make an endpoint healthy.
    pub healthy_threshold: u32,
    /// Failures in a row that make it unhealthy.
    pub unhealthy_threshold: u32,
}

/// Passive health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlier {
    /// Failures in a row; 0: never.
    pub consecutive_errors: u32,
    /// Share of failures in an interval, in percent.
    pub failure_percent: Option<u32>,
    /// Requests in an interval below which `failure_percent` says nothing.
    pub minimum_requests: u32,
    /// Interval of `failure_percent`.
    pub interval: Duration,
    /// Length of the first ejection.
    pub base_ejection: Duration,
    /// Longest ejection.
    pub max_ejection: Duration,
    /// Largest share ejected, in percent.
    pub max_ejected_percent: u32,
    /// Share of healthy endpoints below which health is ignored, in percent.
    pub panic_percent: u32,
}

/// Limits on what is in flight; `None` is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InFlightLimits {
    /// HTTP requests.
    pub requests: Option<u32>,
    /// TCP connections.
    pub connections: Option<u32>,
    /// Requests or connections per endpoint.
    pub per_endpoint: Option<u32>,
    /// Retries.
    pub retries: Option<u32>,
}

/// Where requests wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Requests that may wait.
    pub max_depth: u32,
    /// Longest wait.
    pub timeout: Duration,
    /// By descending priority.
    pub classes: Vec<QueueClass>,
}

/// A priority class; what is set must match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueClass {
    /// Name in metrics.
    pub name: Arc<str>,
    /// A header (lower case) and its value.
    pub header: Option<(Arc<str>, Arc<str>)>,
    /// Prefix of the path.
    pub path_prefix: Option<Arc<str>>,
}

/// A name in a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AltName {
    /// A host name, perhaps `*.` and a domain: any name one label below it, or the wildcard itself.
    Hostname(Arc<str>),
    /// A URI, byte for byte.
    Uri(Arc<str>),
}

/// TLS to endpoints.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Sent as SNI, and expected in the certificate unless there are `alt_names`.
    pub hostname: Arc<str>,
    /// Names of which the certificate must have one.
    pub alt_names: Arc<[AltName]>,
    /// PEM; `None`: the system's roots. Empty: nobody is trusted, since what was asked for is not there; connections must fail.
    pub ca_pem: Option<Vec<u8>>,
    /// Client certificate.
    pub client: Option<Arc<crate::snapshot::routes::CertificatePlan>>,
    /// Any certificate will do.
    pub insecure: bool,
    /// For HTTP requests only: other bytes (TCP, TLS that ends here) are passed on as they are.
    pub http_only: bool,
}

impl std::fmt::Debug for UpstreamTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpstreamTls").field("hostname", &self.hostname).finish_non_exhaustive()
    }
}

/// What holds for the requests of a rule. The default is what a request without a policy gets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestPolicy {
    /// `namespace/name` of the TrafficPolicies it comes from.
    pub sources: Vec<Arc<str>>,
    /// What is sent again.
    pub retries: Retries,
    /// Rivals of slow requests: delay and how many at most.
    pub hedging: Option<(Duration, u32)>,
    /// Token buckets.
    pub rate_limits: Vec<RateLimit>,
    /// From head to last byte.
    pub request_timeout: Option<Duration>,
    /// To an attempt's response head.
    pub response_timeout: Option<Duration>,
    /// Upgraded connections: longest silence.
    pub idle_timeout: Option<Duration>,
    /// Largest body.
    pub max_body_bytes: Option<u64>,
    /// Share of requests in the access log, in percent; `None`: the load balancer's setting.
    pub access_log_percent: Option<f64>,
    /// Clients come back to their endpoint (routes only).
    pub session: Option<Arc<SessionPolicy>>,
    /// Who chooses endpoints, if that is not the Service's to say.
    pub plugin: Option<Arc<PluginRef>>,
}

/// How clients come back to their endpoint (`sessionPersistence` of a route's rule).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionPolicy {
    /// Of the cookie, or of the header (lower case).
    pub name: Arc<str>,
    /// What carries the token.
    pub carrier: SessionCarrier,
    /// A session ends this long after it began.
    pub absolute: Option<Duration>,
    /// A session ends when it was not used for this long.
    pub idle: Option<Duration>,
}

impl SessionPolicy {
    /// Sessions end by time.
    pub fn is_timed(&self) -> bool {
        self.absolute.is_some() || self.idle.is_some()
    }
}

/// See [`SessionPolicy`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionCarrier {
    /// A cookie for this path, until the browser is closed or (`permanent`) as long as the session may last.
    Cookie {
        /// `Path`
        path: Arc<str>,
        /// With `Max-Age`.
        permanent: bool,
    },
    /// A header of requests and responses.
    Header,
}

/// Retries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retries {
    /// After the first attempt.
    pub attempts: u32,
    /// The connection could not be opened.
    pub on_connect_failure: bool,
    /// The connection broke before a response.
    pub on_reset: bool,
    /// No response head within [`RequestPolicy::response_timeout`].
    pub on_timeout: bool,
    /// Statuses, sorted.
    pub statuses: Vec<u16>,
    /// Methods that are not idempotent, too (their bodies are never sent twice).
    pub non_idempotent: bool,
    /// First pause; `None`: no pause.
    pub backoff: Option<Duration>,
    /// Retries in percent of requests in ten seconds; `None`: not limited.
    pub budget_percent: Option<u32>,
    /// Retries per second that may be made whatever the share.
    pub min_per_second: u32,
}

impl Default for Retries {
    /// Without a policy: connect failures and broken connections, as often as there are endpoints to try.
    fn default() -> Self {
        Self {
            attempts: 7,
            on_connect_failure: true,
            on_reset: true,
            on_timeout: false,
            statuses: Vec::new(),
            non_idempotent: false,
            backoff: None,
            budget_percent: None,
            min_per_second: 0,
        }
    }
}

/// A token bucket's rule. Its state lives as long as a rule with this identity is in force.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RateLimit {
    /// Unique: `namespace/policy/index/target`.
    pub id: Arc<str>,
    /// Name in metrics.
    pub name: Arc<str>,
    /// What has a bucket of its own.
    pub per: RatePer,
    /// Tokens per interval.
    pub requests: u32,
    /// Interval.
    pub interval: Duration,
    /// Tokens saved at most.
    pub burst: u32,
    /// One bucket over all load balancers.
    pub shared: bool,
}

/// What has a bucket of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RatePer {
    /// The whole target.
    Target,
    /// Each client address.
    ClientIp,
    /// Each value of a header (lower case).
    Header(Arc<str>),
}
