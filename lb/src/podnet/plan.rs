//! Which pod subnets are where, by value, and the commands and scripts that make the kernel know. Pure.
//!
//! Everything written comes from parsed addresses and numbers or from our own configuration, never from object text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::Node;
use scaleup_api::subnet::Subnet;

/// Origin that marks our routes (`rtnetlink(7)`: free for users); the metric tells instances on one machine apart.
pub(super) const ROUTE_PROTOCOL: &str = "115";
/// Metrics of our routes: connected subnets, which have none, always win.
const METRIC_BASE: u64 = 20_000;
const METRICS: u64 = 10_000;
/// Nodes that routes are kept to.
const MAX_PEERS: usize = 5_000;

/// The cluster's pod network as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodNet {
    /// The own pods' subnet.
    pub own: Subnet,
    /// Other nodes' subnets and where they are reached (`InternalIP`).
    pub peers: BTreeMap<Subnet, Ipv4Addr>,
    /// Names of nodes whose subnet overlaps another one: their pods cannot be reached from here.
    pub conflicts: BTreeSet<String>,
}

/// What `nodes` say, seen from the node `own`; `None` while it has no subnet. The older of two nodes keeps a subnet.
pub(crate) fn pod_net<'a>(nodes: impl Iterator<Item = &'a Node>, own: &str) -> Option<PodNet> {
    let mut all: Vec<(i64, &str, Subnet, Option<Ipv4Addr>)> = nodes
        .filter_map(|node| {
            let name = node.metadata.name.as_deref()?;
            let created = node.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second());
            let cidr = Subnet::parse(node.spec.as_ref()?.pod_cidr.as_deref()?)?;
            Some((created, name, cidr, internal_ip(node)))
        })
        .collect();
    let (_, _, own_cidr, _) = *all.iter().find(|(_, name, ..)| *name == own)?;
    all.sort();
    let mut found = PodNet { own: own_cidr, peers: BTreeMap::new(), conflicts: BTreeSet::new() };
    for (_, name, cidr, ip) in all.into_iter().filter(|(_, name, ..)| *name != own) {
        if cidr.overlaps(own_cidr) || found.peers.keys().any(|known| known.overlaps(cidr)) {
            found.conflicts.insert(name.to_owned());
        } else if let Some(ip) = ip.filter(|_| found.peers.len() < MAX_PEERS) {
            found.peers.insert(cidr, ip);
        }
    }
    Some(found)
}

fn internal_ip(node: &Node) -> Option<Ipv4Addr> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    addresses.iter().filter(|address| address.type_ == "InternalIP").find_map(|address| address.address.parse().ok())
}

/// How the way to another node's address goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// It shares a subnet with this machine: a route by it works.
    Direct,
    /// It is this machine: another agent's bridge is connected already.
    Local,
    /// Behind a router, which knows nothing of pod subnets.
    Routed,
}

/// What `ip -j -4 route get ADDRESS` says; `None` when there is no way.
pub(crate) fn way(json: &str) -> Option<Way> {
    let routes: serde_json::Value = serde_json::from_str(json).ok()?;
    let route = routes.get(0)?;
    if route.get("type").and_then(|kind| kind.as_str()) == Some("local") {
        return Some(Way::Local);
    }
    Some(if route.get("gateway").is_some() { Way::Routed } else { Way::Direct })
}

/// Our routes in what `ip -j -4 route show proto 115` says.
pub(crate) fn installed(json: &str, metric: u32) -> BTreeMap<Subnet, Ipv4Addr> {
    let routes: Vec<serde_json::Value> = serde_json::from_str(json).unwrap_or_default();
    let ours = routes.iter().filter(|route| route.get("metric").and_then(|m| m.as_u64()) == Some(metric.into()));
    ours.filter_map(|route| {
        let text = |name: &str| route.get(name).and_then(|value| value.as_str());
        Some((Subnet::parse(text("dst")?)?, text("gateway")?.parse().ok()?))
    })
    .collect()
}

/// The metric of the routes of the instance that owns `table`.
pub(crate) fn metric(table: &str) -> u32 {
    (METRIC_BASE + hash(table) % METRICS) as u32
}

/// Arguments of `ip` that lead from the routes in `installed` to those in `wanted`.
pub(crate) fn route_commands(
    wanted: &BTreeMap<Subnet, Ipv4Addr>,
    installed: &BTreeMap<Subnet, Ipv4Addr>,
    metric: u32,
) -> Vec<Vec<String>> {
    let command = |verb: &str, cidr: &Subnet, via: &Ipv4Addr| -> Vec<String> {
        let text = format!("-4 route {verb} {cidr} via {via} proto {ROUTE_PROTOCOL} metric {metric}");
        text.split(' ').map(str::to_owned).collect()
    };
    let gone = installed.iter().filter(|(cidr, _)| !wanted.contains_key(*cidr)).map(|(c, v)| command("delete", c, v));
    let new =
        wanted.iter().filter(|(cidr, via)| installed.get(*cidr) != Some(*via)).map(|(c, v)| command("replace", c, v));
    gone.chain(new).collect()
}

/// Name of our chain in iptables' filter table, unique per instance.
pub(crate) fn chain_name(table: &str) -> String {
    format!("SCALEUP-PODS-{:08x}", hash(table) as u32)
}

/// Input of `iptables-restore --noflush`: our chain lets through what goes between the own pods and other nodes and
/// their pods. Docker drops it otherwise (policy DROP, isolation of bridges), and puts `DOCKER-USER`, which leads here,
/// before its own rules whenever it starts.
pub(crate) fn filter_script(net: &PodNet, table: &str) -> String {
    let (chain, own) = (chain_name(table), net.own);
    let mut out = format!("*filter\n:{chain} - [0:0]\n");
    for (cidr, via) in &net.peers {
        for (from, to) in [(cidr.to_string(), own.to_string()), (own.to_string(), cidr.to_string())] {
            let _ = writeln!(out, "-A {chain} -s {from} -d {to} -j ACCEPT");
        }
        // Other nodes themselves: their load balancers and checks.
        let _ = writeln!(out, "-A {chain} -s {via}/32 -d {own} -j ACCEPT");
        let _ = writeln!(out, "-A {chain} -s {own} -d {via}/32 -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT");
    }
    out.push_str("COMMIT\n");
    out
}

/// Name of our nftables table.
fn nat_table(table: &str) -> String {
    format!("scaleup-pods-{:08x}", hash(table) as u32)
}

/// nftables script: pods are seen by other nodes' pods under their own address. Docker translates whatever leaves its
/// bridge; a translation to the same address, made before Docker's turn, is the last word.
pub(crate) fn nat_script(net: &PodNet, table: &str) -> String {
    let (table, own) = (nat_table(table), net.own);
    let mut out = format!("table ip {table} {{}}\ndelete table ip {table}\n");
    if net.peers.is_empty() {
        return out;
    }
    let peers: Vec<String> = net.peers.keys().map(ToString::to_string).collect();
    let _ = writeln!(
        out,
        "table ip {table} {{\nset peers {{ type ipv4_addr; flags interval; elements = {{ {} }}; }}\n\
         chain postrouting {{ type nat hook postrouting priority srcnat - 6; \
         ip saddr {own} ip daddr @peers snat to ip saddr; }}\n}}",
        peers.join(", ")
    );
    out
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, created: &str, cidr: &str, ip: &str) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": name, "creationTimestamp": created}, "spec": {"podCIDR": cidr},
            "status": {"addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": ip}]},
        }))
        .expect("a Node")
    }

    fn cidr(text: &str) -> Subnet {
        Subnet::parse(text).expect("a subnet")
    }

    #[test]
    fn subnets_of_other_nodes_are_reached_by_their_address() {
        let nodes = [
            node("a", "2026-01-01T00:00:00Z", "10.244.0.0/24", "192.0.2.1"),
            node("b", "2026-01-01T00:00:00Z", "10.244.1.0/24", "192.0.2.2"),
            node("late", "2026-01-02T00:00:00Z", "10.244.1.128/25", "192.0.2.3"),
            node("mine", "2026-01-02T00:00:00Z", "10.244.0.0/16", "192.0.2.4"),
            node("bad", "2026-01-01T00:00:00Z", "10.244.9.0/24; reboot", "192.0.2.5"),
            node("v6", "2026-01-01T00:00:00Z", "10.244.8.0/24", "2001:db8::1"),
        ];
        let net = pod_net(nodes.iter(), "a").expect("a subnet of its own");
        assert_eq!(net.own, cidr("10.244.0.0/24"));
        assert_eq!(net.peers, [(cidr("10.244.1.0/24"), Ipv4Addr::new(192, 0, 2, 2))].into());
        assert_eq!(net.conflicts, ["late".to_owned(), "mine".to_owned()].into());
        assert_eq!(pod_net(nodes.iter(), "nobody"), None);
    }

    #[test]
    fn only_what_differs_is_routed() {
        let via = |last: u8| Ipv4Addr::new(192, 0, 2, last);
        let wanted = [(cidr("10.244.1.0/24"), via(2)), (cidr("10.244.2.0/24"), via(3))].into();
        let shown = json!([
            {"dst": "10.244.1.0/24", "gateway": "192.0.2.2", "dev": "e", "metric": 20007},
            {"dst": "10.244.2.0/24", "gateway": "192.0.2.9", "dev": "e", "metric": 20007},
            {"dst": "10.244.3.0/24", "gateway": "192.0.2.4", "dev": "e", "metric": 20007},
            {"dst": "10.244.4.0/24", "gateway": "192.0.2.4", "dev": "e", "metric": 20008},
        ]);
        let commands = route_commands(&wanted, &installed(&shown.to_string(), 20007), 20007);
        let commands: Vec<String> = commands.iter().map(|command| command.join(" ")).collect();
        assert_eq!(
            commands,
            [
                "-4 route delete 10.244.3.0/24 via 192.0.2.4 proto 115 metric 20007",
                "-4 route replace 10.244.2.0/24 via 192.0.2.3 proto 115 metric 20007",
            ]
        );
        assert!(installed("nonsense", 1).is_empty());
    }

    #[test]
    fn the_way_to_a_node_is_told_apart() {
        let check = |json: serde_json::Value, expected| assert_eq!(way(&json.to_string()), expected);
        check(json!([{"dst": "192.0.2.2", "dev": "eth0", "prefsrc": "192.0.2.1"}]), Some(Way::Direct));
        check(json!([{"dst": "192.0.2.2", "gateway": "192.0.2.254", "dev": "eth0"}]), Some(Way::Routed));
        check(json!([{"type": "local", "dst": "127.0.0.1", "dev": "lo"}]), Some(Way::Local));
        check(json!([]), None);
    }
}
