//! The nftables table, by value: what it should contain, and the script that makes it so.
//!
//! One verdict map keyed by address, protocol and port leads to a chain per Service port, so the cost of a packet does
//! not depend on the number of Services. Service ports without endpoints are in a set whose members are rejected.
//! Everything written comes from parsed addresses and numbers or from our own configuration, never from object text.
//!
//! `sessionAffinity: ClientIP` picks the endpoint by a hash of the client's address: it holds for as long as the
//! endpoints stay the same (upstream also keeps it when other endpoints change, and forgets it after a timeout).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::snapshot::{EndpointPlan, PortPlan, Protocol, ServicePlan, Snapshot};

/// What the table depends on besides the snapshot.
#[derive(Clone, Debug)]
pub struct RenderConfig {
    /// Table name.
    pub table: String,
    /// Bridged packets pass netfilter, so replies between pods on one bridge are translated back without our help.
    pub bridge_netfilter: bool,
}

/// Contents of the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Model {
    table: String,
    /// Rule of each Service port's chain.
    chains: BTreeMap<String, String>,
    /// `address . protocol . port` to chain.
    services: BTreeMap<String, String>,
    /// `protocol . port` to chain.
    node_ports: BTreeMap<String, String>,
    /// `address . protocol . port` without endpoints.
    rejected: BTreeSet<String>,
    /// Endpoints that may reach themselves through a Service; only kept where their replies come through here.
    hairpins: BTreeSet<Ipv4Addr>,
    /// Pod subnet of the node, for node ports and masquerading.
    pod_cidr: Option<String>,
    bridge_netfilter: bool,
}

/// The table `snapshot` asks for. Pure.
pub(super) fn model(snapshot: &Snapshot, config: &RenderConfig) -> Model {
    let mut model = Model {
        table: sanitize(&config.table),
        pod_cidr: snapshot.node.pod_cidr.clone(),
        bridge_netfilter: config.bridge_netfilter,
        ..Model::default()
    };
    for plan in snapshot.services.values().filter(|plan| !plan.headless) {
        for port in &plan.ports {
            add_port(&mut model, plan, port);
            if config.bridge_netfilter {
                let endpoints = port.internal.iter().chain(&*port.external);
                model.hairpins.extend(endpoints.filter_map(|endpoint| v4(&endpoint.addr.ip())));
            }
        }
    }
    model
}

fn add_port(model: &mut Model, plan: &ServicePlan, port: &PortPlan) {
    let protocol = port.protocol.as_str();
    let key = |ip: &Ipv4Addr| format!("{ip} . {protocol} . {}", port.port);
    let groups = [(&plan.cluster_ips, &port.internal), (&plan.external_ips, &port.external)];
    for (ips, endpoints) in groups {
        let chain = chain(model, plan.client_ip_affinity.is_some(), port.protocol, endpoints);
        for ip in ips.iter().filter_map(v4) {
            match &chain {
                Some(chain) => {
                    model.services.entry(key(&ip)).or_insert_with(|| chain.clone());
                }
                None => {
                    model.rejected.insert(key(&ip));
                }
            }
        }
    }
    if let Some(node_port) = port.node_port
        && let Some(chain) = chain(model, plan.client_ip_affinity.is_some(), port.protocol, &port.external)
    {
        model.node_ports.entry(format!("{protocol} . {node_port}")).or_insert(chain);
    }
}

fn v4(ip: &IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    }
}

/// The chain that sends traffic to `endpoints`, named after what it does, so that equal ones are shared.
fn chain(model: &mut Model, affinity: bool, protocol: Protocol, endpoints: &[EndpointPlan]) -> Option<String> {
    let targets: Vec<SocketAddr> = endpoints.iter().map(|endpoint| endpoint.addr).filter(SocketAddr::is_ipv4).collect();
    if targets.is_empty() {
        return None;
    }
    let protocol = protocol.as_str();
    let rule = if let [target] = targets[..] {
        format!("meta l4proto {protocol} dnat to {target}")
    } else {
        let count = targets.len();
        let choice =
            if affinity { format!("jhash ip saddr mod {count}") } else { format!("numgen random mod {count}") };
        let targets: Vec<String> =
            targets.iter().enumerate().map(|(i, t)| format!("{i} : {} . {}", t.ip(), t.port())).collect();
        format!("meta l4proto {protocol} dnat ip to {choice} map {{ {} }}", targets.join(", "))
    };
    let name = format!("svc-{:016x}", fnv1a(&rule));
    model.chains.entry(name.clone()).or_insert(rule);
    Some(name)
}

/// FNV-1a with a final mix; chains with equal names would have to collide in 64 bits within one node's Services.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// An nftables identifier: letters, digits, `-` and `_`, not starting with a digit.
fn sanitize(name: &str) -> String {
    let plain: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' }).collect();
    if plain.starts_with(|c: char| c.is_ascii_alphabetic()) { plain } else { format!("t{plain}") }
}

/// The script that removes a table whether or not it is there.
pub(super) fn removal(table: &str) -> String {
    let table = sanitize(table);
    format!("table ip {table} {{}}\ndelete table ip {table}\n")
}

impl Model {
    /// The script that makes the table from scratch, in place of any earlier one.
    pub fn script(&self) -> String {
        let mut out = removal(&self.table);
        let _ = writeln!(out, "table ip {} {{", self.table);
        out.push_str("map services { type ipv4_addr . inet_proto . inet_service : verdict; ");
        push_elements(&mut out, self.services.iter().map(|(key, chain)| format!("{key} : goto {chain}")));
        out.push_str("}\nmap node-ports { type inet_proto . inet_service : verdict; ");
        push_elements(&mut out, self.node_ports.iter().map(|(key, chain)| format!("{key} : goto {chain}")));
        out.push_str("}\nset rejected { type ipv4_addr . inet_proto . inet_service; ");
        push_elements(&mut out, self.rejected.iter().cloned());
        out.push_str("}\nset hairpins { type ipv4_addr . ipv4_addr; ");
        push_elements(&mut out, self.hairpins.iter().map(pair));
        out.push_str("}\n");
        for (name, rule) in &self.chains {
            let _ = writeln!(out, "chain {name} {{ {rule}; }}");
        }
        out.push_str(&self.base_chains());
        out.push_str("}\n");
        out
    }

    /// Chains that hang in the kernel's hooks; they change only with the node's subnet.
    fn base_chains(&self) -> String {
        let node_ports = "ip daddr != 127.0.0.0/8 fib daddr type local";
        let lookup = "meta l4proto . th dport vmap @node-ports";
        let from_pods = match &self.pod_cidr {
            // TCP node ports are served in user space for everybody else.
            Some(cidr) => format!("ip saddr {cidr} {node_ports} {lookup}; "),
            None => String::new(),
        };
        let masquerade = match &self.pod_cidr {
            // A pod that reaches itself must see another source address, or it would answer itself directly.
            _ if self.bridge_netfilter => "ct status dnat ip saddr . ip daddr @hairpins masquerade; ".to_owned(),
            // The reply of a pod on the same bridge would not come through here to be translated back.
            Some(cidr) => format!("ct status dnat ip saddr {cidr} ip daddr {cidr} masquerade; "),
            None => String::new(),
        };
        format!(
            "chain dispatch {{ ip daddr . meta l4proto . th dport vmap @services; }}\n\
             chain prerouting {{ type nat hook prerouting priority dstnat - 5; jump dispatch; {from_pods}\
             meta l4proto udp {node_ports} {lookup}; }}\n\
             chain output {{ type nat hook output priority -105; jump dispatch; \
             meta l4proto udp {node_ports} {lookup}; }}\n\
             chain postrouting {{ type nat hook postrouting priority srcnat - 5; {masquerade}}}\n\
             chain refuse {{ ip daddr . meta l4proto . th dport != @rejected return; \
             meta l4proto tcp reject with tcp reset; reject with icmp type port-unreachable; }}\n\
             chain forward {{ type filter hook forward priority filter - 5; ct state new jump refuse; }}\n\
             chain local {{ type filter hook output priority filter - 5; ct state new jump refuse; }}\n"
        )
    }

    /// The script from `old` (the table in force) to this one: only the differences; empty when there are none.
    pub fn script_from(&self, old: &Self) -> String {
        if (&self.table, &self.pod_cidr, self.bridge_netfilter) != (&old.table, &old.pod_cidr, old.bridge_netfilter) {
            return self.script();
        }
        let mut out = String::new();
        let table = &self.table;
        // A chain's name is its content: chains are only added and removed, never changed.
        for (name, rule) in self.chains.iter().filter(|(name, _)| !old.chains.contains_key(*name)) {
            let _ = writeln!(out, "add chain ip {table} {name}\nadd rule ip {table} {name} {rule}");
        }
        for (map, new, old) in
            [("services", &self.services, &old.services), ("node-ports", &self.node_ports, &old.node_ports)]
        {
            let gone = old.iter().filter(|(key, chain)| new.get(*key) != Some(*chain)).map(|(key, _)| key.clone());
            push_command(&mut out, &format!("delete element ip {table} {map}"), gone);
            let added = new.iter().filter(|(key, chain)| old.get(*key) != Some(*chain));
            let added = added.map(|(key, chain)| format!("{key} : goto {chain}"));
            push_command(&mut out, &format!("add element ip {table} {map}"), added);
        }
        let gone = old.rejected.difference(&self.rejected).cloned();
        push_command(&mut out, &format!("delete element ip {table} rejected"), gone);
        let added = self.rejected.difference(&old.rejected).cloned();
        push_command(&mut out, &format!("add element ip {table} rejected"), added);
        let gone = old.hairpins.difference(&self.hairpins).map(pair);
        push_command(&mut out, &format!("delete element ip {table} hairpins"), gone);
        let added = self.hairpins.difference(&old.hairpins).map(pair);
        push_command(&mut out, &format!("add element ip {table} hairpins"), added);
        for name in old.chains.keys().filter(|name| !self.chains.contains_key(*name)) {
            let _ = writeln!(out, "delete chain ip {table} {name}");
        }
        out
    }
}

fn pair(ip: &Ipv4Addr) -> String {
    format!("{ip} . {ip}")
}

fn push_elements(out: &mut String, elements: impl Iterator<Item = String>) {
    let elements: Vec<String> = elements.collect();
    if !elements.is_empty() {
        let _ = write!(out, "elements = {{ {} }}; ", elements.join(", "));
    }
}

fn push_command(out: &mut String, command: &str, elements: impl Iterator<Item = String>) {
    let elements: Vec<String> = elements.collect();
    if !elements.is_empty() {
        let _ = writeln!(out, "{command} {{ {} }}", elements.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{NodePlan, PlanConfig, plan};
    use serde_json::{Value, json};

    fn snapshot(spec: &Value, endpoints: &[&str]) -> Snapshot {
        let service = json!({"metadata": {"name": "web", "namespace": "d"}, "spec": spec});
        let slice = json!({"metadata": {"name": "web", "namespace": "d", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"port": 8080}],
            "endpoints": endpoints.iter().map(|ip| json!({"addresses": [ip]})).collect::<Vec<_>>()});
        let service = serde_json::from_value(service).expect("a Service");
        let slice = serde_json::from_value(slice).expect("an EndpointSlice");
        let mut snapshot = plan(&[service], &[slice], &PlanConfig::default());
        snapshot.node = NodePlan { pod_cidr: Some("10.244.0.0/24".to_owned()), ..NodePlan::default() };
        snapshot
    }

    fn script(spec: &Value, endpoints: &[&str], bridge_netfilter: bool) -> String {
        let config = RenderConfig { table: "lb".to_owned(), bridge_netfilter };
        model(&snapshot(spec, endpoints), &config).script()
    }

    #[track_caller]
    fn check(spec: &Value, endpoints: &[&str], expected: &[&str]) {
        let script = script(spec, endpoints, false);
        for line in expected {
            assert!(script.contains(line), "{line:?} is missing in\n{script}");
        }
    }

    #[test]
    fn a_service_is_a_map_element_and_a_chain() {
        let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
        check(&spec, &["10.244.0.2"], &["10.96.0.1 . tcp . 80 : goto svc-", "dnat to 10.244.0.2:8080"]);
        let two = "dnat ip to numgen random mod 2 map { 0 : 10.244.0.2 . 8080, 1 : 10.244.0.3 . 8080 }";
        check(&spec, &["10.244.0.2", "10.244.0.3"], &[two]);
        check(&spec, &[], &["inet_service; elements = { 10.96.0.1 . tcp . 80 }"]);
        let sticky = json!({"clusterIP": "10.96.0.1", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]});
        check(&sticky, &["10.244.0.2", "10.244.0.3"], &["dnat ip to jhash ip saddr mod 2 map"]);
        let node_port =
            json!({"type": "NodePort", "clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30080}]});
        check(
            &node_port,
            &["10.244.0.2"],
            &["{ tcp . 30080 : goto svc-", "ip saddr 10.244.0.0/24 ip daddr != 127.0.0.0/8"],
        );
    }

    #[test]
    fn masquerading_depends_on_what_the_bridge_does() {
        let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
        let plain = script(&spec, &["10.244.0.2"], false);
        assert!(plain.contains("ip saddr 10.244.0.0/24 ip daddr 10.244.0.0/24 masquerade"), "{plain}");
        let filtered = script(&spec, &["10.244.0.2"], true);
        assert!(filtered.contains("elements = { 10.244.0.2 . 10.244.0.2 }"), "{filtered}");
        assert!(!filtered.contains("10.244.0.0/24 masquerade"), "{filtered}");
    }

    #[test]
    fn names_cannot_carry_commands() {
        assert_eq!(sanitize("scaleup-n1"), "scaleup-n1");
        assert_eq!(sanitize("a {}; flush ruleset"), "a-----flush-ruleset");
        assert_eq!(sanitize("1a"), "t1a");
        assert_eq!(sanitize(""), "t");
    }

    #[test]
    fn an_unchanged_model_needs_no_script() {
        let config = RenderConfig { table: "lb".to_owned(), bridge_netfilter: true };
        let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
        let one = model(&snapshot(&spec, &["10.244.0.2"]), &config);
        assert_eq!(one.script_from(&one), "");
        assert!(one.script_from(&Model::default()).starts_with("table ip lb {}\ndelete table ip lb\n"));
    }
}
