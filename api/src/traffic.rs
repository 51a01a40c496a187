//! `traffic.scaleup.dev/v1`: what a user may say about traffic beyond Service, Ingress and the Gateway API, in one kind,
//! [`TrafficPolicy`], attached by `targetRefs` as the Gateway API's policies are (GEP-713).
//!
//! Everything is optional; an absent field leaves the built-in behaviour, which its documentation names. Durations are written as in
//! the Gateway API (GEP-2257): `10s`, `1m30s`, `250ms`. Shares are in percent.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

crate::kind!(
    /// How traffic to its targets is balanced, limited, protected and retried.
    TrafficPolicy,
    "traffic.scaleup.dev",
    "v1",
    "trafficpolicies",
    Namespace,
    TrafficPolicySpec,
    TrafficPolicyStatus,
    "dev.scaleup.traffic.v1.TrafficPolicy"
);

data!(
    /// Specification of a TrafficPolicy.
    TrafficPolicySpec "dev.scaleup.traffic.v1.TrafficPolicySpec" {
        /// What the policy applies to: Services, Gateways (all or one listener), Ingresses, HTTPRoutes, GRPCRoutes, TLSRoutes, TCPRoutes and
        /// UDPRoutes of the policy's namespace. 1 to 16. For a field set by several policies the most specific target wins
        /// (route, then Service, then Gateway or Ingress); of equals the oldest policy.
        target_refs: Vec<TargetRef>,
        /// How an endpoint is chosen.
        load_balancing: Option<LoadBalancing>,
        /// Requests of our own that find out whether an endpoint works.
        health_check: Option<HealthCheck>,
        /// Endpoints that fail users' requests are left out for a while.
        outlier_detection: Option<OutlierDetection>,
        /// Which failed requests are sent again.
        retries: Option<Retries>,
        /// Slow requests are sent to a second endpoint as well.
        hedging: Option<Hedging>,
        /// Limits on what may be in flight to the target.
        circuit_breaker: Option<CircuitBreaker>,
        /// Where requests wait when a limit of `circuitBreaker` is reached. Without it they are refused at once (503).
        queue: Option<Queue>,
        /// Token buckets; a request must find a token in each that matches it (429 otherwise). At most 16.
        rate_limits: Vec<RateLimit>,
        /// How long things may take.
        timeouts: Option<Timeouts>,
        /// Largest sizes accepted.
        limits: Option<Limits>,
        /// PROXY protocol towards clients and endpoints.
        proxy_protocol: Option<ProxyProtocol>,
        /// TLS towards endpoints (re-encryption).
        upstream_tls: Option<UpstreamTls>,
        /// Which requests are written to the access log.
        access_log: Option<AccessLog>,
        /// The plugin that chooses the endpoint of a request, in place of `loadBalancing.algorithm`, for HTTP. On a route it chooses among the
        /// endpoints of all backends of the rule; on a Service or a Gateway among those of the backend that weights chose.
        policy_ref: Option<PolicyRef>,
    }
);

/// Headers that a [`PolicyRef`] names at most.
pub const MAX_POLICY_HEADERS: usize = 32;

data!(
    /// A plugin of the world `routing`, in the policy's namespace or the cluster's.
    PolicyRef "dev.scaleup.traffic.v1.PolicyRef" {
        /// `WasmPlugin` (default) or `ClusterWasmPlugin`.
        kind: String,
        /// Name.
        name: String,
        /// Names of request headers that the plugin sees. At most 32.
        headers: Vec<String>,
    }
);

data!(
    /// What a policy applies to (`LocalPolicyTargetReferenceWithSectionName`).
    TargetRef "dev.scaleup.traffic.v1.TargetRef" {
        /// API group; empty for Service.
        group: String,
        /// Kind.
        kind: String,
        /// Name.
        name: String,
        /// Name of a Gateway's listener, a route's rule or a Service's port; all of them if absent.
        section_name: Option<String>,
    }
);

data!(
    /// How an endpoint is chosen.
    LoadBalancing "dev.scaleup.traffic.v1.LoadBalancing" {
        /// `PeakEWMA` (default for HTTP: two random choices over failure-aware latency and requests in flight), `RoundRobin` (default for TCP and UDP),
        /// `LeastConnections`, `LeastRequest` (two random choices over requests in flight), `Random`, `RingHash`, `Maglev`.
        algorithm: Option<String>,
        /// What `RingHash` and `Maglev` hash: the first that a request has. The client's address if empty.
        hash_on: Vec<HashOn>,
        /// With `RingHash` and `Maglev`: an endpoint takes at most this many percent of the mean load before its requests spill to the next.
        /// 100 to 1000; unbounded if absent.
        bounded_load_percent: Option<i32>,
        /// Relative weights of endpoints, 0 to 1000, 100 if nothing matches; used by every algorithm.
        weights: Vec<EndpointWeight>,
        /// Which zones and regions are preferred.
        locality: Option<Locality>,
        /// A new endpoint gets its full share only after a while.
        slow_start: Option<SlowStart>,
    }
);

data!(
    /// One source of a hash; exactly one field is set.
    HashOn "dev.scaleup.traffic.v1.HashOn" {
        /// Name of a request header.
        header: Option<String>,
        /// A cookie; it is set on the response when a request does not have it.
        cookie: Option<HashCookie>,
        /// Name of a query parameter.
        query_param: Option<String>,
        /// The client's address.
        source_ip: bool,
    }
);

data!(
    /// A cookie that keeps a client on its endpoint.
    HashCookie "dev.scaleup.traffic.v1.HashCookie" {
        /// Name.
        name: String,
        /// `Path` attribute; `/` if absent.
        path: Option<String>,
        /// `Max-Age` as a duration; a session cookie if absent.
        ttl: Option<String>,
    }
);

data!(
    /// Weight of the endpoints that match; the first match counts.
    EndpointWeight "dev.scaleup.traffic.v1.EndpointWeight" {
        /// Zone of the endpoint.
        zone: Option<String>,
        /// Node of the endpoint.
        node: Option<String>,
        /// Address of the endpoint.
        address: Option<String>,
        /// 0 to 1000, required. 0: used only when all others are gone.
        weight: Option<i32>,
    }
);

data!(
    /// Preference of near endpoints.
    Locality "dev.scaleup.traffic.v1.Locality" {
        /// `None` (default; `spec.trafficDistribution: PreferClose` of the Service sets `Zone`), `Zone` (own zone, then own region, then all), `Region` (own region, then
        /// all), `Nearest` (the region nearest to the client by `regions` and the GeoIP database, then the next).
        prefer: Option<String>,
        /// A level is used in full while at least this share of its endpoints is healthy; below, traffic spills to the next
        /// in proportion. 1 to 100, default 70.
        spillover_percent: Option<i32>,
        /// Where regions are, for `Nearest`.
        regions: Vec<Region>,
    }
);

data!(
    /// A region's place.
    Region "dev.scaleup.traffic.v1.Region" {
        /// `topology.kubernetes.io/region` of its nodes.
        name: String,
        /// Degrees north, -90 to 90, e.g. `"50.11"`.
        latitude: String,
        /// Degrees east, -180 to 180.
        longitude: String,
    }
);

data!(
    /// A new endpoint's share grows linearly.
    SlowStart "dev.scaleup.traffic.v1.SlowStart" {
        /// How long. At most `15m`.
        window: String,
        /// Share at the beginning, 1 to 100, default 10.
        min_percent: Option<i32>,
    }
);

data!(
    /// Active health check.
    HealthCheck "dev.scaleup.traffic.v1.HealthCheck" {
        /// `HTTP` (default), `TCP` or `GRPC` (`grpc.health.v1`).
        r#type: Option<String>,
        /// Path of `HTTP`; `/` if absent.
        path: Option<String>,
        /// `Host` of `HTTP` and `GRPC`.
        host: Option<String>,
        /// Another port than the endpoint's, asked without TLS.
        port: Option<i32>,
        /// Service name of `GRPC`; empty asks for the whole server.
        grpc_service: Option<String>,
        /// Statuses that count as healthy with `HTTP`, e.g. `200` or `200-299`; 200-399 if empty.
        expected_statuses: Vec<String>,
        /// Pause between checks; `10s`. At least `100ms`.
        interval: Option<String>,
        /// Longest wait for an answer; `1s`.
        timeout: Option<String>,
        /// Successes in a row until an endpoint is healthy again; 2.
        healthy_threshold: Option<i32>,
        /// Failures in a row until it is not; 3.
        unhealthy_threshold: Option<i32>,
    }
);

data!(
    /// Passive health: ejection of endpoints that fail.
    OutlierDetection "dev.scaleup.traffic.v1.OutlierDetection" {
        /// Answers of class 5xx or failures in a row that eject an endpoint; 5. 0: never.
        consecutive_errors: Option<i32>,
        /// Share of failed requests in an interval that ejects it, 1 to 100; off if absent.
        failure_percent: Option<i32>,
        /// Requests in an interval below which `failurePercent` says nothing; 20.
        minimum_requests: Option<i32>,
        /// Interval of `failurePercent`; `10s`.
        interval: Option<String>,
        /// First ejection's length; each further one in a row is longer by as much. `30s`.
        base_ejection_time: Option<String>,
        /// Longest ejection; `5m`.
        max_ejection_time: Option<String>,
        /// Largest share of a target's endpoints that may be ejected at a time, 0 to 100; 50.
        max_ejected_percent: Option<i32>,
        /// When fewer than this share of endpoints is healthy, health is ignored and all are used; 0 to 100, default 0 (only when none is left).
        panic_percent: Option<i32>,
    }
);

data!(
    /// Retries of failed requests. Without it: connect failures, and requests without a body whose method is idempotent and whose
    /// connection broke before an answer.
    Retries "dev.scaleup.traffic.v1.Retries" {
        /// Attempts after the first, 0 to 10; 2.
        attempts: Option<i32>,
        /// `ConnectFailure`, `Reset`, `5xx`, `GatewayError` (502, 503, 504), `Timeout` (`perTryTimeout`), `NonIdempotent` (also methods that are not
        /// idempotent). `ConnectFailure` and `Reset` if empty.
        retry_on: Vec<String>,
        /// Further statuses that are retried.
        statuses: Vec<i32>,
        /// Longest wait for the head of one attempt's answer.
        per_try_timeout: Option<String>,
        /// First pause; doubles with jitter up to ten times as much. `25ms`.
        backoff: Option<String>,
        /// Retries may be at most this share of the requests of the last ten seconds, 0 to 100; 20.
        budget_percent: Option<i32>,
        /// whatever `budgetPercent` says, this many per second may be made; 3.
        min_per_second: Option<i32>,
    }
);

data!(
    /// Hedged requests: only for idempotent methods without a body.
    Hedging "dev.scaleup.traffic.v1.Hedging" {
        /// An attempt without an answer for this long gets a rival. At least `1ms`.
        delay: String,
        /// Rivals at most, 1 to 4; 1. They count against the retry budget.
        max_extra: Option<i32>,
    }
);

data!(
    /// Limits on what is in flight to the target, over all threads of one load balancer.
    CircuitBreaker "dev.scaleup.traffic.v1.CircuitBreaker" {
        /// Requests (HTTP) in flight.
        max_requests: Option<i32>,
        /// Connections (TCP) open.
        max_connections: Option<i32>,
        /// Requests or connections in flight at one endpoint.
        max_per_endpoint: Option<i32>,
        /// Retries in flight.
        max_retries: Option<i32>,
    }
);

data!(
    /// A bounded queue with priorities.
    Queue "dev.scaleup.traffic.v1.Queue" {
        /// Requests that may wait, 1 to 100000; 100.
        max_depth: Option<i32>,
        /// Longest wait, then 503 with `Retry-After`; `1s`.
        timeout: Option<String>,
        /// Classes by descending priority, at most 8. A request belongs to the first that matches, or to a last one without name.
        classes: Vec<QueueClass>,
    }
);

data!(
    /// A priority class; all fields that are set must match.
    QueueClass "dev.scaleup.traffic.v1.QueueClass" {
        /// Name in metrics.
        name: String,
        /// A request header and its exact value.
        header: Option<HeaderValue>,
        /// Prefix of the path.
        path_prefix: Option<String>,
    }
);

data!(
    /// A header and its value.
    HeaderValue "dev.scaleup.traffic.v1.HeaderValue" {
        /// Name.
        name: String,
        /// Value.
        value: String,
    }
);

data!(
    /// A token bucket.
    RateLimit "dev.scaleup.traffic.v1.RateLimit" {
        /// Name in metrics.
        name: Option<String>,
        /// What has a bucket of its own: `Target` (default; one bucket for all), `ClientIP`, or `Header`.
        per: Option<String>,
        /// The header of `per: Header`; requests without it share a bucket.
        header: Option<String>,
        /// Tokens per `interval`, 1 to 10000000.
        requests: i32,
        /// `1s`.
        interval: Option<String>,
        /// Tokens that may be saved; as many as `requests`.
        burst: Option<i32>,
        /// Share one bucket over all load balancers, by the Redis that the platform is configured with. Without Redis, or while it
        /// is away, each load balancer counts for itself.
        shared: bool,
    }
);

data!(
    /// Longest times. `0s` is no limit.
    Timeouts "dev.scaleup.traffic.v1.Timeouts" {
        /// From the request's head to the last byte of the answer, retries included; no limit.
        request: Option<String>,
        /// To an endpoint's answer's head; no limit.
        response_header: Option<String>,
        /// For a connection to an endpoint; `2s`.
        connect: Option<String>,
        /// Nothing sent either way (TCP, UDP, upgraded connections); none for TCP, `60s` for UDP.
        idle: Option<String>,
    }
);

data!(
    /// Largest sizes.
    Limits "dev.scaleup.traffic.v1.Limits" {
        /// Of a request's body in bytes, 413 beyond; no limit.
        max_request_body_bytes: Option<i64>,
    }
);

data!(
    /// PROXY protocol.
    ProxyProtocol "dev.scaleup.traffic.v1.ProxyProtocol" {
        /// Expect a header (version 1 or 2) at the beginning of every connection; for Gateways and Services.
        accept: bool,
        /// Addresses (CIDR) whose headers are believed; connections of others are refused. Required with `accept`.
        trusted_sources: Vec<String>,
        /// Send a header to endpoints: `V1` or `V2`. Connections to HTTP endpoints then serve one client connection each.
        send: Option<String>,
    }
);

data!(
    /// TLS towards endpoints, for HTTP and TCP. TLS that passes through, and what clients send to a port with `appProtocol: https`, gets none on top.
    UpstreamTls "dev.scaleup.traffic.v1.UpstreamTls" {
        /// Name expected in the endpoint's certificate, and sent as SNI.
        hostname: String,
        /// ConfigMap of the policy's namespace with the CA in `ca.crt`; the system's roots if absent.
        ca_config_map: Option<String>,
        /// Secret (`kubernetes.io/tls`) with a client certificate.
        client_certificate_secret: Option<String>,
        /// Accept any certificate. For tests only.
        insecure_skip_verify: bool,
    }
);

data!(
    /// Access log.
    AccessLog "dev.scaleup.traffic.v1.AccessLog" {
        /// Share of requests that are logged, 0 to 100; the load balancer's own setting if absent. Failed ones (5xx) always are, if it is above 0.
        sample_percent: Option<i32>,
    }
);

data!(
    /// Observed state of a TrafficPolicy.
    TrafficPolicyStatus "dev.scaleup.traffic.v1.TrafficPolicyStatus" {
        /// One entry per target (Gateway API's `PolicyStatus.ancestors`).
        ancestors: Vec<PolicyAncestorStatus>,
    }
);

data!(
    /// State of a policy at one target.
    PolicyAncestorStatus "dev.scaleup.traffic.v1.PolicyAncestorStatus" {
        /// The target.
        ancestor_ref: TargetRef,
        /// Who wrote this.
        controller_name: String,
        /// `Accepted` with reason `Accepted`, `Conflicted`, `Invalid` or `TargetNotFound`; with a `policyRef` also `ResolvedRefs` with reason
        /// `ResolvedRefs`, `PluginNotFound` or `PluginNotLoaded`.
        conditions: Vec<Condition>,
    }
);
