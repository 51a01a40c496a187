//! Addresses that a Gateway asks for (`spec.addresses`), and whether it has them. Pure.
//!
//! All Gateways share the addresses of the load balancers; none is made for one of them. So an address that is asked for is there if a
//! load balancer has it, which each knows of itself only: the others' are those that they have written into the Gateway's status.

use std::net::IpAddr;

use scaleup_api::gateway::{GatewaySpecAddress, GatewayStatusAddress};

use super::references::Fault;

/// Addresses of a Gateway that are read (the API's limit).
const MAX_ADDRESSES: usize = 16;

/// What a Gateway asks for; empty if any address will do.
pub(super) fn wanted(addresses: &[GatewaySpecAddress]) -> Result<Vec<IpAddr>, Fault> {
    let mut wanted = Vec::new();
    for address in addresses.iter().take(MAX_ADDRESSES) {
        let unsupported = |message: String| Fault::new("UnsupportedAddress", format!("spec.addresses: {message}"));
        match address.r#type.as_deref().unwrap_or("IPAddress") {
            "IPAddress" => {}
            other => return Err(unsupported(format!("type {other:?} is not supported, only IPAddress is"))),
        }
        let value = address.value.as_deref().unwrap_or_default();
        if !value.is_empty() {
            wanted.push(value.parse().map_err(|_| unsupported(format!("{value:?} is not an IP address")))?);
        }
    }
    Ok(wanted)
}

/// Whether a Gateway that wants these may have `address`.
pub(super) fn may_have(wanted: &[IpAddr], address: &str) -> bool {
    wanted.is_empty() || address.parse().is_ok_and(|address| wanted.contains(&address))
}

/// The first address that is wanted and that no load balancer serves at. All of them say the same.
pub(super) fn missing(wanted: &[IpAddr], served: &[GatewayStatusAddress]) -> Option<Fault> {
    let is_served = |address: &IpAddr| served.iter().any(|served| served.value.parse() == Ok(*address));
    let missing = wanted.iter().find(|address| !is_served(address))?;
    let message = format!("spec.addresses: no load balancer that serves this Gateway has the address {missing}");
    Some(Fault::new("AddressNotUsable", message))
}
