//! What Ingress and the Gateway API ask for, resolved and by value: which ports of the host are listened on, which requests match
//! which rule there, and where that rule sends them. Services with ports of their own (LoadBalancer, NodePort) are not here.
//!
//! Everything is validated: patterns compile, names are lower-case, references were allowed. What was not is absent, and the status
//! of its object says so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Protocol, ServiceKey};
use crate::policy::RequestPolicy;

/// A port of the host that routes are served on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// Number.
    pub port: u16,
    /// TCP (HTTP, TLS and TCP listeners) or UDP.
    pub protocol: Protocol,
}

/// What is served on a [`HostPort`].
#[derive(Clone, Debug, PartialEq)]
pub struct ListenerPlan {
    /// `metadata.creationTimestamp` in Unix seconds of the oldest object that asks for it: among claims of a port the oldest wins.
    pub created: i64,
    /// The objects that ask for it, e.g. `Gateway infra/public`, for messages.
    pub owners: Vec<String>,
    /// Sources (CIDR) whose PROXY protocol header is required and believed; `None`: no header is expected.
    pub accept_proxy: Option<Arc<[String]>>,
    /// What happens with a connection.
    pub mode: Mode,
}

/// What happens with a connection to a listener.
#[derive(Clone, Debug, PartialEq)]
pub enum Mode {
    /// HTTP/1.1 and HTTP/2 with prior knowledge, in clear text.
    Http(Arc<HttpPlan>),
    /// TLS: the name in the ClientHello says what happens next; most specific names first.
    Tls(Vec<TlsSite>),
    /// Any bytes.
    Tcp(L4Plan),
    /// Datagrams.
    Udp(L4Plan),
}

/// What happens with TLS connections to a name.
#[derive(Clone, Debug, PartialEq)]
pub struct TlsSite {
    /// Names (SNI). [`HostPattern::Any`] also takes clients that send none.
    pub host: HostPattern,
    /// What happens.
    pub action: TlsAction,
}

/// See [`TlsSite`].
#[derive(Clone, Debug, PartialEq)]
pub enum TlsAction {
    /// TLS ends here; HTTP inside (ALPN `h2` and `http/1.1`).
    Http {
        /// Certificates, the best for the name is chosen. None: handshakes are refused; no other site's certificate is shown.
        certificates: Arc<[Arc<CertificatePlan>]>,
        /// What is served.
        http: Arc<HttpPlan>,
    },
    /// TLS ends here; the bytes inside go to the backends.
    Terminate {
        /// Certificates, as above.
        certificates: Arc<[Arc<CertificatePlan>]>,
        /// Where to.
        to: L4Plan,
    },
    /// The connection goes to the backends as it is.
    Passthrough(L4Plan),
}

/// A certificate and its key, checked to belong together.
#[derive(Clone, PartialEq, Eq)]
pub struct CertificatePlan {
    /// `namespace/name` of the Secret.
    pub secret: String,
    /// `tls.crt`: PEM, leaf first.
    pub chain_pem: Vec<u8>,
    /// `tls.key`: PEM. Never printed.
    pub key_pem: Vec<u8>,
}

impl std::fmt::Debug for CertificatePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificatePlan").field("secret", &self.secret).finish_non_exhaustive()
    }
}

/// A host name pattern. The order is that of precedence: exact names, then wildcards with longer suffixes, then everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// A name in lower case without trailing dot.
    Exact(Arc<str>),
    /// `*.SUFFIX`: one or more labels before the suffix (which is kept without the star and the dot).
    Wildcard(Arc<str>),
    /// Any name, or none.
    Any,
}

impl HostPattern {
    /// From `a.example`, `*.example` or an empty text; case does not matter.
    pub fn parse(text: &str) -> Self {
        let text = text.trim_end_matches('.').to_ascii_lowercase();
        match text.strip_prefix("*.") {
            _ if text.is_empty() || text == "*" => Self::Any,
            Some(suffix) => Self::Wildcard(suffix.into()),
            None => Self::Exact(text.into()),
        }
    }

    /// Whether `host` (lower case, no port) is one of these names.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => **name == *host,
            Self::Wildcard(suffix) => host
                .strip_suffix(&**suffix)
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(|rest| !rest.is_empty()),
            Self::Any => true,
        }
    }

    fn rank(&self) -> (u8, std::cmp::Reverse<usize>, &str) {
        match self {
            Self::Exact(name) => (0, std::cmp::Reverse(0), name),
            Self::Wildcard(suffix) => (1, std::cmp::Reverse(suffix.len()), suffix),
            Self::Any => (2, std::cmp::Reverse(0), ""),
        }
    }
}

impl Ord for HostPattern {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for HostPattern {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl std::fmt::Display for HostPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// HTTP routing of one port (or, with TLS, of one site).
///
/// A request belongs to the most specific listener whose pattern matches its host, and to no other (GEP-1713). There the most specific
/// host with a matching rule wins; within a host the rules' order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpPlan {
    /// By the listeners' host patterns.
    pub listeners: BTreeMap<HostPattern, Arc<HostsPlan>>,
    /// Answers to ACME challenges (RFC 8555 §8.3) by token, for every host.
    pub challenges: Arc<Challenges>,
}

/// Key authorizations by token.
pub type Challenges = BTreeMap<Arc<str>, Arc<str>>;

/// Rules by the routes' host patterns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostsPlan {
    /// In each list rules that precede others come first; paths need not be sorted (see [`PathMatch`]).
    pub hosts: BTreeMap<HostPattern, Vec<Arc<RulePlan>>>,
}

/// Which object a rule comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId {
    /// `HTTPRoute`, `GRPCRoute`, `Ingress`, `Service`, …
    pub kind: &'static str,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Index of the rule in the object.
    pub rule: usize,
    /// Index of the match in the rule.
    pub matched: usize,
}

/// One match of a route's rule, and what to do.
#[derive(Clone, Debug, PartialEq)]
pub struct RulePlan {
    /// Where it comes from.
    pub id: RuleId,
    /// Path.
    pub path: PathMatch,
    /// Method, upper case.
    pub method: Option<Arc<str>>,
    /// Headers; names in lower case.
    pub headers: Vec<FieldMatch>,
    /// Query parameters; names are case-sensitive.
    pub query: Vec<FieldMatch>,
    /// In order.
    pub filters: Vec<Filter>,
    /// Where requests go, unless a filter answers.
    pub backends: Vec<WeightedBackend>,
    /// From the route itself and from TrafficPolicies.
    pub policy: Arc<RequestPolicy>,
}

/// How a path is matched. Precedence: exact, regular expression, longest prefix but the root, method of any gRPC service, root; then
/// method, number of headers, number of query parameters, then order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// The whole path.
    Exact(Arc<str>),
    /// Whole elements: `/a` matches `/a`, `/a/` and `/a/b`, not `/ab`. Without trailing slash but for `/`.
    Prefix(Arc<str>),
    /// The whole path (RE2 syntax, bounded size).
    Regex(Arc<str>),
    /// Likewise, for a method of any gRPC service: whoever names a service goes before (GRPCRoute, `rules.matches`).
    AnyService(Arc<str>),
}

impl PathMatch {
    /// The path or expression.
    pub fn text(&self) -> &Arc<str> {
        match self {
            Self::Exact(text) | Self::Prefix(text) | Self::Regex(text) | Self::AnyService(text) => text,
        }
    }
}

/// A header or query parameter to match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldMatch {
    /// Name.
    pub name: Arc<str>,
    /// Value.
    pub value: ValueMatch,
}

/// A value to match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch {
    /// Equal.
    Exact(Arc<str>),
    /// All of it matches (RE2 syntax).
    Regex(Arc<str>),
}

/// A step between match and backend.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// Changes request headers.
    RequestHeaders(HeaderEdits),
    /// Changes response headers.
    ResponseHeaders(HeaderEdits),
    /// Answers with a redirect.
    Redirect(RedirectPlan),
    /// Changes host or path.
    Rewrite {
        /// New `Host`.
        hostname: Option<Arc<str>>,
        /// New path.
        path: Option<PathRewrite>,
    },
    /// Sends a copy whose response is ignored.
    Mirror {
        /// Where to.
        backend: BackendRef,
        /// Share of requests: `numerator` of `denominator`.
        numerator: u32,
        /// Not 0.
        denominator: u32,
    },
    /// Answers preflight requests and adds CORS headers.
    Cors(CorsPlan),
}

/// Changes to header fields, in this order: set, add, remove. Names in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// Replaced or created.
    pub set: Vec<(Arc<str>, Arc<str>)>,
    /// Added to what is there.
    pub add: Vec<(Arc<str>, Arc<str>)>,
    /// Removed.
    pub remove: Vec<Arc<str>>,
}

/// A redirect; absent parts are the request's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectPlan {
    /// `http` or `https`.
    pub scheme: Option<Arc<str>>,
    /// Host.
    pub hostname: Option<Arc<str>>,
    /// Port; absent: the scheme's well-known one if `scheme` is set, else the listener's.
    pub port: Option<u16>,
    /// Path.
    pub path: Option<PathRewrite>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// A new path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRewrite {
    /// This one.
    Full(Arc<str>),
    /// The matched prefix becomes this one.
    Prefix(Arc<str>),
}

/// Cross-origin resource sharing (Fetch standard §3.2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CorsPlan {
    /// Allowed origins; `*` alone or within a host.
    pub origins: Vec<Arc<str>>,
    /// Allowed methods; `*` for all.
    pub methods: Vec<Arc<str>>,
    /// Allowed request headers; `*` for all.
    pub headers: Vec<Arc<str>>,
    /// Headers that scripts may read.
    pub expose: Vec<Arc<str>>,
    /// Whether credentials are allowed.
    pub credentials: bool,
    /// How long a preflight answer may be kept, in seconds.
    pub max_age_s: u32,
}

/// A Service port that traffic is sent to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendRef {
    /// The Service.
    pub service: ServiceKey,
    /// One of its ports.
    pub port: u16,
    /// That port's protocol.
    pub protocol: Protocol,
}

/// A share of a rule's requests.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedBackend {
    /// `None`: the reference is not valid; this share is answered with 500.
    pub backend: Option<BackendRef>,
    /// Relative; 0 gets nothing.
    pub weight: u32,
    /// Run after the rule's.
    pub filters: Vec<Filter>,
}

/// Where a TCP or UDP listener sends connections.
#[derive(Clone, Debug, PartialEq)]
pub struct L4Plan {
    /// Where it comes from.
    pub id: RuleId,
    /// Shares; filters are empty.
    pub backends: Vec<WeightedBackend>,
    /// Longest silence; `None`: the protocol's default.
    pub idle_timeout: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_labels_and_sort_by_precedence() {
        let check = |pattern: &str, host: &str, expected: bool| {
            assert_eq!(HostPattern::parse(pattern).matches(host), expected, "{pattern} {host}");
        };
        check("A.example.", "a.example", true);
        check("a.example", "b.a.example", false);
        check("*.example", "a.example", true);
        check("*.example", "b.a.example", true);
        check("*.example", "example", false);
        check("*.example", "aexample", false);
        check("", "anything", true);
        let mut all: Vec<HostPattern> =
            ["*", "*.a.b", "x.y", "*.b", "b.b"].iter().map(|text| HostPattern::parse(text)).collect();
        all.sort();
        let texts: Vec<String> = all.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["b.b", "x.y", "*.a.b", "*.b", "*"]);
    }
}
