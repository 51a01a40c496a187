//! Input and answer of the world `routing`, by value; `wit/routing.wit` says what the fields mean.
//!
//! A caller keeps an [`Input`] per thread and fills it again for each request: in steady state nothing is allocated.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use wasmtime::component::{ComponentType, Lift, Lower};

/// Most endpoints of one call.
pub const MAX_ENDPOINTS: usize = 1024;
/// Most headers of a rejection.
pub const MAX_HEADERS: usize = 16;
/// Most bytes of a rejection's headers.
pub const MAX_HEADER_BYTES: usize = 8 * 1024;
/// Header fields that frame messages, belong to one connection (RFC 9110 §7.6.1, RFC 9112 §6) or choose the host: only the load balancer sets
/// them.
pub const PROTECTED_HEADERS: [&str; 9] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Request method.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lower, Lift)]
#[component(enum)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Method {
    #[default]
    #[component(name = "get")]
    Get,
    #[component(name = "head")]
    Head,
    #[component(name = "post")]
    Post,
    #[component(name = "put")]
    Put,
    #[component(name = "delete")]
    Delete,
    #[component(name = "connect")]
    Connect,
    #[component(name = "options")]
    Options,
    #[component(name = "trace")]
    Trace,
    #[component(name = "patch")]
    Patch,
    #[component(name = "other")]
    Other,
}

impl From<&str> for Method {
    fn from(method: &str) -> Self {
        match method {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "POST" => Self::Post,
            "PUT" => Self::Put,
            "DELETE" => Self::Delete,
            "CONNECT" => Self::Connect,
            "OPTIONS" => Self::Options,
            "TRACE" => Self::Trace,
            "PATCH" => Self::Patch,
            _ => Self::Other,
        }
    }
}

/// An IP address; in JSON its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lower, Lift)]
#[component(variant)]
#[serde(from = "IpAddr", into = "IpAddr")]
pub enum Address {
    #[component(name = "v4")]
    V4((u8, u8, u8, u8)),
    #[component(name = "v6")]
    V6((u16, u16, u16, u16, u16, u16, u16, u16)),
}

impl Default for Address {
    fn default() -> Self {
        Self::V4((0, 0, 0, 0))
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.octets().into()),
            IpAddr::V6(address) => Self::V6(address.segments().into()),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        match address {
            Address::V4((a, b, c, d)) => Ipv4Addr::new(a, b, c, d).into(),
            Address::V6((a, b, c, d, e, f, g, h)) => Ipv6Addr::new(a, b, c, d, e, f, g, h).into(),
        }
    }
}

/// A header field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lower, Lift)]
#[component(record)]
pub struct Header {
    pub name: String,
    pub value: String,
}

/// A point on earth, in degrees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ComponentType, Lower, Lift)]
#[component(record)]
pub struct Place {
    pub latitude: f64,
    pub longitude: f64,
}

/// The request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ComponentType, Lower)]
#[component(record)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Request {
    pub method: Method,
    pub host: String,
    pub path: String,
    pub headers: Vec<Header>,
    pub client: Address,
    pub place: Option<Place>,
    pub attempt: u32,
}

/// How near an endpoint is to the load balancer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lower, Lift)]
#[component(enum)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Proximity {
    #[component(name = "node")]
    Node,
    #[component(name = "zone")]
    Zone,
    #[component(name = "region")]
    Region,
    #[default]
    #[component(name = "elsewhere")]
    Elsewhere,
}

/// How an endpoint is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lower, Lift)]
#[component(enum)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Health {
    #[default]
    #[component(name = "healthy")]
    Healthy,
    #[component(name = "suspect")]
    Suspect,
    #[component(name = "ejected")]
    Ejected,
    #[component(name = "failing")]
    Failing,
}

/// An address that the request may be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ComponentType, Lower)]
#[component(record)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Endpoint {
    /// Hash of address and port, equal everywhere.
    pub key: u64,
    /// Position in [`Topology::backends`].
    pub backend: u32,
    /// Position in [`Topology::zones`].
    pub zone: u32,
    pub proximity: Proximity,
    pub health: Health,
    pub tried: bool,
    pub weight: u32,
    #[component(name = "in-flight")]
    pub in_flight: u32,
    /// Microseconds; 0 before the first response.
    #[component(name = "latency-us")]
    pub latency_us: f32,
    /// 0 to 1.
    pub failures: f32,
}

impl Default for Endpoint {
    fn default() -> Self {
        Self {
            key: 0,
            backend: 0,
            zone: 0,
            proximity: Proximity::default(),
            health: Health::default(),
            tried: false,
            weight: 100,
            in_flight: 0,
            latency_us: 0.0,
            failures: 0.0,
        }
    }
}

/// Everything a decision may depend on, but for [`Topology`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ComponentType, Lower)]
#[component(record)]
#[serde(rename_all = "camelCase", default)]
pub struct Input {
    pub request: Request,
    /// At least one, at most [`MAX_ENDPOINTS`].
    pub endpoints: Vec<Endpoint>,
    #[component(name = "topology-version")]
    pub topology_version: u64,
    pub random: u64,
    /// Milliseconds since 1970-01-01 UTC.
    #[component(name = "time-ms")]
    pub time_ms: u64,
}

/// A zone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ComponentType, Lower)]
#[component(record)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Zone {
    pub name: String,
    pub region: String,
    pub place: Option<Place>,
}

/// Names that endpoints refer to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ComponentType, Lower)]
#[component(record)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Topology {
    pub zones: Vec<Zone>,
    /// `namespace/service:port`
    pub backends: Vec<String>,
    /// Position in `zones` of the load balancer's own zone.
    pub here: Option<u32>,
}

/// An input with its topology: the JSON form in golden examples and recordings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Case {
    #[serde(flatten)]
    pub input: Input,
    pub topology: Topology,
}

/// An answer in place of an endpoint's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lift)]
#[component(record)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rejection {
    pub status: u16,
    pub headers: Vec<Header>,
}

/// What is to happen with the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lift)]
#[component(variant)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// What the built-in policy says.
    #[component(name = "default")]
    Default,
    /// The endpoint at this position.
    #[component(name = "pick")]
    Pick(u32),
    #[component(name = "reject")]
    Reject(Rejection),
}

impl Decision {
    /// Whether the answer is one to a call with so many endpoints.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, endpoints: usize) -> Result<(), String> {
        match self {
            Self::Default => Ok(()),
            Self::Pick(index) if (*index as usize) < endpoints => Ok(()),
            Self::Pick(index) => Err(format!("picks endpoint {index} of {endpoints}")),
            Self::Reject(rejection) => rejection.check(),
        }
    }
}

impl Rejection {
    fn check(&self) -> Result<(), String> {
        if !(300..=599).contains(&self.status) {
            return Err(format!("rejects with status {}, which is not between 300 and 599", self.status));
        }
        let bytes: usize = self.headers.iter().map(|header| header.name.len() + header.value.len()).sum();
        if self.headers.len() > MAX_HEADERS || bytes > MAX_HEADER_BYTES {
            return Err(format!("rejects with {} headers of {bytes} bytes", self.headers.len()));
        }
        match self.headers.iter().find(|header| !is_header(header)) {
            Some(header) => Err(format!("rejects with a header {:?} that may not be sent", header.name)),
            None => Ok(()),
        }
    }
}

/// RFC 9110 §5.1 and §5.5, names in lower case.
fn is_header(header: &Header) -> bool {
    let token = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let text = |byte: u8| byte == b'\t' || (byte >= 0x20 && byte != 0x7f);
    !header.name.is_empty()
        && header.name.bytes().all(token)
        && header.value.bytes().all(text)
        && header.value.trim_matches([' ', '\t']).len() == header.value.len()
        && !PROTECTED_HEADERS.contains(&header.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_checked() {
        let check = |decision: &str, expected: Result<(), &str>| {
            let decision: Decision = serde_json::from_str(decision).unwrap();
            assert_eq!(decision.check(3), expected.map_err(str::to_owned), "{decision:?}");
        };
        check(r#""default""#, Ok(()));
        check(r#"{"pick": 2}"#, Ok(()));
        check(r#"{"pick": 3}"#, Err("picks endpoint 3 of 3"));
        let reject = |status: u16, name: &str, value: &str| {
            serde_json::json!({"reject": {"status": status, "headers": [{"name": name, "value": value}]}}).to_string()
        };
        check(&reject(503, "retry-after", "1"), Ok(()));
        check(&reject(200, "retry-after", "1"), Err("rejects with status 200, which is not between 300 and 599"));
        for (name, value) in
            [("a", "b\r\nc: d"), ("", "x"), ("A", "x"), ("a b", "x"), ("content-length", "3"), ("a", " x")]
        {
            let wrong = format!("rejects with a header {name:?} that may not be sent");
            check(&reject(503, name, value), Err(&wrong));
        }
        check(&reject(503, "a", &"x".repeat(MAX_HEADER_BYTES)), Err("rejects with 1 headers of 8193 bytes"));
    }

    #[test]
    fn cases_may_leave_everything_out() {
        let case: Case = serde_json::from_str(
            r#"{"request": {"client": "::ffff:10.0.0.1", "method": "post"}, "endpoints": [{"inFlight": 3}], "topology": {"backends": ["a/b:80"]}}"#,
        )
        .unwrap();
        assert_eq!(case.input.request.client, Address::V4((10, 0, 0, 1)));
        assert_eq!((case.input.endpoints[0].in_flight, case.input.endpoints[0].weight), (3, 100));
        assert_eq!(case.topology.backends, ["a/b:80"]);
        let text = serde_json::to_string(&case).unwrap();
        assert_eq!(serde_json::from_str::<Case>(&text).unwrap(), case);
    }
}
