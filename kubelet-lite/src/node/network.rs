//! The node's pod network: one bridge, its subnet a free /24 of the pool, found again after a restart.

use std::net::Ipv4Addr;
use std::path::Path;

use crate::agent::{Agent, PodNetwork};
use crate::node::machine;
use crate::runtime::{Network, RuntimeError};

/// Size of a node's subnet.
const NODE_PREFIX: u32 = 24;
/// Subnets tried when others take them at the same time.
const ATTEMPTS: usize = 32;

/// Why there is no pod network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The pool does not parse or is too small.
    #[error("pod CIDR pool {0:?} is not an IPv4 network of at least /24; set it to one, e.g. 10.244.0.0/16")]
    BadPool(String),
    /// Every /24 of the pool is in use on this machine.
    #[error(
        "no free /24 is left in {0}; remove unused networks (docker network prune) or choose another pod CIDR pool"
    )]
    PoolIsFull(String),
    /// The runtime said no.
    #[error("the pod network could not be made")]
    Runtime(#[from] RuntimeError),
}

/// An IPv4 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Subnet {
    base: u32,
    bits: u32,
}

impl Subnet {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/')?;
        let bits: u32 = bits.parse().ok().filter(|b| *b <= 32)?;
        let address: Ipv4Addr = address.parse().ok()?;
        Some(Self { base: u32::from(address) & Self::mask(bits), bits })
    }
    fn mask(bits: u32) -> u32 {
        u32::MAX.checked_shl(32 - bits).unwrap_or(0)
    }
    fn overlaps(self, other: Self) -> bool {
        let mask = Self::mask(self.bits.min(other.bits));
        self.base & mask == other.base & mask
    }
    fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base | 1)
    }
    fn cidr(self) -> String {
        format!("{}/{}", Ipv4Addr::from(self.base), self.bits)
    }
}

/// The /24s of the pool that overlap nothing in `used`, in order, beginning at a place given by `seed` so that nodes that
/// start together do not all try the first.
fn candidates(pool: &str, used: &[String], seed: u32) -> Option<Vec<Subnet>> {
    let pool = Subnet::parse(pool).filter(|p| p.bits <= NODE_PREFIX && p.bits > 0)?;
    let used: Vec<Subnet> = used.iter().filter_map(|u| Subnet::parse(u)).collect();
    let count = 1u32 << (NODE_PREFIX - pool.bits);
    let nth =
        |i: u32| Subnet { base: pool.base + ((i.wrapping_add(seed) % count) << (32 - NODE_PREFIX)), bits: NODE_PREFIX };
    Some((0..count).map(nth).filter(|s| !used.iter().any(|u| u.overlaps(*s))).take(ATTEMPTS).collect())
}

/// Where a node begins to look.
fn seed_of(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Finds the node's network or makes it.
pub async fn ensure(agent: &Agent) -> Result<PodNetwork, NetworkError> {
    let name = agent.config.network_name();
    let existing = agent.runtime.networks().await?;
    if let Some(found) = existing.iter().find(|n| n.name == name).and_then(as_pod_network) {
        return Ok(found);
    }
    let mut used: Vec<String> = existing.into_iter().flat_map(|n| n.subnets).collect();
    if agent.config.hollow.is_none() {
        used.extend(machine::routes());
    }
    let pool = &agent.config.pod_cidr_pool;
    // Other nodes' subnets are not known here (a node may read its own object only): names spread them, and the load
    // balancer tells of nodes that got the same one all the same.
    let free =
        candidates(pool, &used, seed_of(&agent.config.node_name)).ok_or_else(|| NetworkError::BadPool(pool.clone()))?;
    for subnet in free {
        match agent.runtime.create_network(&name, &subnet.cidr(), subnet.gateway()).await {
            Ok(()) => return Ok(PodNetwork { name, cidr: subnet.cidr(), gateway: subnet.gateway() }),
            Err(RuntimeError::Conflict(text)) => tracing::debug!(text, subnet = subnet.cidr(), "subnet is taken"),
            Err(error) => return Err(error.into()),
        }
    }
    Err(NetworkError::PoolIsFull(pool.clone()))
}

fn as_pod_network(found: &Network) -> Option<PodNetwork> {
    Some(PodNetwork { name: found.name.clone(), cidr: found.subnets.first()?.clone(), gateway: found.gateway? })
}

/// Lets the kernel's packet filter see traffic between pods of one bridge, without which service addresses do not work
/// between pods of one node. Best effort: the module may be missing or the right to set it.
pub async fn filter_bridged_traffic() {
    const SWITCH: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    if !Path::new(SWITCH).exists() {
        let loaded = tokio::process::Command::new("modprobe").arg("br_netfilter").output().await;
        if !loaded.is_ok_and(|o| o.status.success()) {
            tracing::debug!("br_netfilter is not loaded; service addresses may not work between pods of one node");
        }
    }
    if std::fs::read_to_string(SWITCH).is_ok_and(|now| now.trim() == "1") {
        return;
    }
    if let Err(error) = std::fs::write(SWITCH, "1") {
        tracing::warn!(%error, "cannot set {SWITCH}; service addresses may not work between pods of one node");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_subnets_are_found() {
        let check = |pool: &str, used: &[&str], want: Option<&str>| {
            let used: Vec<String> = used.iter().map(|u| (*u).to_owned()).collect();
            let got = candidates(pool, &used, 0).and_then(|c| Some(c.first()?.cidr()));
            assert_eq!(got.as_deref(), want, "{pool} {used:?}");
        };
        check("10.244.0.0/16", &[], Some("10.244.0.0/24"));
        check("10.244.0.0/16", &["10.244.0.0/24", "10.244.1.0/25"], Some("10.244.2.0/24"));
        check("10.244.0.0/16", &["10.244.0.0/17"], Some("10.244.128.0/24"));
        check("10.244.0.0/16", &["10.0.0.0/8"], None);
        check("10.244.0.0/16", &["fd00::/64", "nonsense"], Some("10.244.0.0/24"));
        check("10.244.7.0/24", &[], Some("10.244.7.0/24"));
        check("10.244.0.0/25", &[], None);
        check("bad", &[], None);
        assert_eq!(Subnet::parse("10.1.2.0/24").unwrap().gateway(), Ipv4Addr::new(10, 1, 2, 1));
    }
}
