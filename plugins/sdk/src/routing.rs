//! The world `routing`: which endpoint gets a request.

use std::net::IpAddr;

pub use crate::bindings::routing::scaleup::policy::routing_types::{
    Address, Decision, Endpoint, Header, Health, Input, Method, Place, Proximity, Rejection, Request, Topology, Zone,
};

/// Chooses the endpoint for a request.
pub trait Router: 'static {
    /// What the plugin's configuration is; [`crate::NoConfig`] for none.
    type Config: serde::de::DeserializeOwned;

    /// Called once per instance. What it keeps besides the configuration is a cache: an instance may be thrown away at any time.
    fn new(config: Self::Config) -> Self;

    /// Called for each attempt of each request, on the thread that serves it. Time limit by default: 2 ms.
    fn route(&self, input: Input) -> Decision;
}

/// Names that endpoints refer to. What is kept of it is right as long as `Input::topology_version` is the same.
pub fn topology() -> Topology {
    #[cfg(target_arch = "wasm32")]
    return crate::bindings::routing::scaleup::policy::topology::get();
    #[cfg(not(target_arch = "wasm32"))]
    Topology { zones: Vec::new(), backends: Vec::new(), here: None }
}

impl Request {
    /// Value of a header that the binding selects; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|header| header.name == name).map(|header| header.value.as_str())
    }

    /// Value of a cookie, if the binding selects `cookie`.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        let pairs = self.header("cookie")?.split(';').filter_map(|pair| pair.trim().split_once('='));
        pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

impl Endpoint {
    /// Whether nothing speaks against sending the request there.
    pub fn is_usable(&self) -> bool {
        self.health == Health::Healthy && !self.tried
    }
}

impl Input {
    /// Positions of the endpoints that nothing speaks against.
    pub fn usable(&self) -> impl Iterator<Item = (u32, &Endpoint)> {
        (0..).zip(&self.endpoints).filter(|(_, endpoint)| endpoint.is_usable())
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        match address {
            Address::V4((a, b, c, d)) => [a, b, c, d].into(),
            Address::V6((a, b, c, d, e, f, g, h)) => [a, b, c, d, e, f, g, h].into(),
        }
    }
}

impl Decision {
    /// An answer in place of an endpoint's, without headers.
    pub fn reject(status: u16) -> Self {
        Self::Reject(Rejection { status, headers: Vec::new() })
    }
}

/// A number that is the same for the same bytes everywhere and spreads evenly (FNV-1a with a finalizer): for sticky choices.
pub fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    mix(fnv)
}

/// Spreads a number's bits (the finalizer of MurmurHash3).
pub fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    value = (value ^ (value >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ (value >> 33)
}
