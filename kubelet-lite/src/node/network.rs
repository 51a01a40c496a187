//! The node's pod network: one bridge, whose subnet is the Node's `spec.podCIDR`.
//!
//! Which subnet that is, the node IPAM controller says. Before it does, the network is made with one of the pool that is
//! free on this machine, and the Node's annotation asks for that; if another node has it, the network is made again with the
//! one that was given.

use std::path::Path;

use scaleup_api::subnet::Subnet;

use crate::agent::{Agent, PodNetwork};
use crate::node::machine;
use crate::runtime::{Network, RuntimeError};

/// Subnets tried when others take them at the same time.
const ATTEMPTS: usize = 32;

/// Why there is no pod network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The pool does not parse or is too small.
    #[error("pod CIDR pool {0:?} is not an IPv4 network of at least /{1}; set it to one, e.g. 10.244.0.0/16")]
    BadPool(String, u32),
    /// Every part of the pool is in use on this machine.
    #[error(
        "no free /{1} is left in {0}; remove unused networks (docker network prune) or choose another pod CIDR pool"
    )]
    PoolIsFull(String, u32),
    /// Somebody else on this machine has the subnet.
    #[error(
        "the Node's pod subnet {0} is in use on this machine by something else ({1}): remove that, or delete the Node \
         object and restart the agent so that it asks for another one"
    )]
    Taken(Subnet, String),
    /// The runtime said no.
    #[error("the pod network could not be made")]
    Runtime(#[from] RuntimeError),
}

/// The parts of the pool, of a prefix of `bits`, that overlap nothing in `used`, in order, beginning at a place given by
/// `seed` so that nodes that start together do not all ask for the first.
fn candidates(pool: &str, bits: u32, used: &[String], seed: u32) -> Option<Vec<Subnet>> {
    let pool = Subnet::parse(pool).filter(|p| p.parts(bits) > 0)?;
    let used: Vec<Subnet> = used.iter().filter_map(|u| Subnet::parse(u)).collect();
    let count = pool.parts(bits);
    let nth = |i: u32| pool.part(bits, i.wrapping_add(seed) % count);
    Some((0..count).filter_map(nth).filter(|s| !used.iter().any(|u| u.overlaps(*s))).take(ATTEMPTS).collect())
}

/// Where a node begins to look.
fn seed_of(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Finds the node's network or makes it: with the subnet that was `assigned`, if one was already.
pub async fn ensure(agent: &Agent, assigned: Option<Subnet>) -> Result<PodNetwork, NetworkError> {
    let name = agent.config.network_name();
    let existing = agent.runtime.networks().await?;
    if let Some(found) = existing.iter().find(|n| n.name == name).and_then(as_pod_network) {
        match assigned.filter(|subnet| *subnet != found.cidr) {
            None => return Ok(found),
            Some(subnet) => {
                if let Err(error) = agent.runtime.remove_network(&name).await {
                    // Containers are connected: they are worth more than the way to them from other nodes.
                    if agent.network.borrow().as_ref() != Some(&found) {
                        tracing::warn!(%error, cidr = %found.cidr, %subnet, "the pod network is in use and keeps its subnet; drain the node to change it");
                    }
                    return Ok(found);
                }
                tracing::info!(had = %found.cidr, %subnet, "the pod network is made again with the assigned subnet");
            }
        }
    }
    match assigned {
        Some(subnet) => match create(agent, name, subnet).await {
            Err(RuntimeError::Conflict(text)) => Err(NetworkError::Taken(subnet, text)),
            other => Ok(other?),
        },
        None => propose(agent, name, existing).await,
    }
}

/// Makes the network with a subnet that is free here.
async fn propose(agent: &Agent, name: String, existing: Vec<Network>) -> Result<PodNetwork, NetworkError> {
    let mut used: Vec<String> = existing.into_iter().flat_map(|n| n.subnets).collect();
    if agent.config.hollow.is_none() {
        used.extend(machine::routes());
    }
    let (pool, bits) = (&agent.config.pod_cidr_pool, agent.config.node_mask_bits);
    let seed = seed_of(&agent.config.node_name);
    let free = candidates(pool, bits, &used, seed).ok_or_else(|| NetworkError::BadPool(pool.clone(), bits))?;
    for subnet in free {
        match create(agent, name.clone(), subnet).await {
            Err(RuntimeError::Conflict(text)) => tracing::debug!(text, %subnet, "subnet is taken"),
            other => return Ok(other?),
        }
    }
    Err(NetworkError::PoolIsFull(pool.clone(), bits))
}

async fn create(agent: &Agent, name: String, cidr: Subnet) -> Result<PodNetwork, RuntimeError> {
    let gateway = cidr.gateway();
    agent.runtime.create_network(&name, &cidr.to_string(), gateway).await?;
    Ok(PodNetwork { name, cidr, gateway })
}

fn as_pod_network(found: &Network) -> Option<PodNetwork> {
    let cidr = found.subnets.iter().find_map(|subnet| Subnet::parse(subnet))?;
    Some(PodNetwork { name: found.name.clone(), cidr, gateway: found.gateway? })
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
    use std::sync::Arc;

    use super::*;
    use crate::agent::{Config, Hollow};
    use crate::clock::Clock;
    use crate::runtime::ContainerRuntime;
    use crate::runtime::fake::FakeRuntime;
    use crate::testing::api::Api;

    #[test]
    fn free_subnets_are_found() {
        let check = |pool: &str, used: &[&str], want: Option<&str>| {
            let used: Vec<String> = used.iter().map(|u| (*u).to_owned()).collect();
            let got = candidates(pool, 24, &used, 0).and_then(|c| Some(c.first()?.to_string()));
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
    }

    fn agent(runtime: &FakeRuntime, name: &str) -> Agent {
        let mut config = Config::new(name, std::net::IpAddr::from([127, 0, 0, 1]), "/nonexistent");
        config.hollow = Some(Hollow { cpus: 1, memory_bytes: 1 << 30 });
        let services = kube::runtime::reflector::store().0;
        Agent::new(config, Api::default().client(), Arc::new(runtime.clone()), services, Default::default())
    }

    #[tokio::test]
    async fn the_assigned_subnet_replaces_the_one_asked_for() {
        let runtime = FakeRuntime::steady(Clock::System);
        let (one, two) = (agent(&runtime, "one"), agent(&runtime, "two"));
        let asked = ensure(&one, None).await.unwrap();
        assert_eq!(ensure(&one, None).await.unwrap(), asked, "found again");
        assert_eq!(ensure(&one, Some(asked.cidr)).await.unwrap(), asked, "granted");
        let other = ensure(&two, None).await.unwrap();
        assert_ne!(other.cidr, asked.cidr, "nobody asks for what is in use here");
        let given = Subnet::parse("10.244.99.0/24");
        let moved = ensure(&two, given).await.unwrap();
        assert_eq!((Some(moved.cidr), moved.gateway.to_string()), (given, "10.244.99.1".to_owned()));
        assert_eq!(runtime.networks().await.unwrap().len(), 2, "the network that was asked with is gone");
        runtime.remove_network(&moved.name).await.unwrap();
        assert!(matches!(ensure(&two, Some(asked.cidr)).await, Err(NetworkError::Taken(..))));
    }
}
