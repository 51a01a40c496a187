//! The nftables table, by value: what it should contain, and the script that makes it so.
//!
//! Verdict maps keyed by address, protocol and port lead to a chain per Service port, so the cost of a packet does not
//! depend on the number of Services. Service ports without endpoints are in a set whose members are rejected.
//! Everything written comes from parsed addresses and numbers or from our own configuration, never from object text.
//! A [`Table`] follows snapshots: only Services that changed are looked at again, and only what differs is written.
//!
//! `sessionAffinity: ClientIP` works as upstream's: each endpoint has a set of the clients that it served within the
//! timeout, so a client stays when other endpoints come and go. IPv4 only: pods have no IPv6 addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::snapshot::{EndpointPlan, PortPlan, Protocol, ServiceKey, ServicePlan, ServiceType, Snapshot};

/// Clients remembered per endpoint of a Service with session affinity; more are spread anew.
const MAX_STICKY_CLIENTS: usize = 65_535;

/// What the table depends on besides the snapshot.
#[derive(Clone, Debug)]
pub struct RenderConfig {
    /// Table name.
    pub table: String,
    /// Bridged packets pass netfilter, so replies between pods on one bridge are translated back without our help.
    pub bridge_netfilter: bool,
}

/// Something in the table; in the order in which things must be added, as later ones refer to earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Set of an endpoint's clients; the value is the timeout in seconds.
    Clients,
    /// Chain that sends to one endpoint of a Service with affinity; the value is its rules.
    Endpoint,
    /// Chain of a Service port; the value is its rules.
    Chain,
    /// Element of the map of ClusterIPs; the value is the chain.
    Service,
    /// Element of the map of external addresses, for this node and its pods.
    Near,
    /// Element of the map of external addresses, for everybody else.
    Far,
    /// Element of the map of node ports, for pods.
    NodePort,
    /// Element of the set of what has no endpoints.
    Rejected,
    /// Endpoint that may reach itself through a Service; only kept where its replies come through here.
    Hairpin,
}

/// Kinds that are elements, with their map or set.
const ELEMENTS: [(Kind, &str, &str); 6] = [
    (Kind::Service, "services", "map services { type ipv4_addr . inet_proto . inet_service : verdict; "),
    (Kind::Near, "externals-near", "map externals-near { type ipv4_addr . inet_proto . inet_service : verdict; "),
    (Kind::Far, "externals-far", "map externals-far { type ipv4_addr . inet_proto . inet_service : verdict; "),
    (Kind::NodePort, "node-ports", "map node-ports { type inet_proto . inet_service : verdict; "),
    (Kind::Rejected, "rejected", "set rejected { type ipv4_addr . inet_proto . inet_service; "),
    (Kind::Hairpin, "hairpins", "set hairpins { type ipv4_addr . ipv4_addr; "),
];

type Item = (Kind, String);
/// Who wants an item: of two Services that want one differently the older one gets it.
type Owner = (i64, ServiceKey);

/// Contents of the table, and what they were made from.
#[derive(Debug, Default)]
pub(super) struct Table {
    name: String,
    /// Pod subnet of the node, for node ports and masquerading.
    pod_cidr: Option<String>,
    bridge_netfilter: bool,
    plans: BTreeMap<ServiceKey, Arc<ServicePlan>>,
    items: BTreeMap<Item, BTreeMap<Owner, String>>,
}

/// How an item changed; `None`: it was, or is, not there.
type Changes = BTreeMap<Item, (Option<String>, Option<String>)>;

impl Table {
    /// Takes over `snapshot`; the script from what the table was before, from scratch if it must be. Empty when nothing
    /// changes. Pure.
    pub fn update(&mut self, snapshot: &Snapshot, config: &RenderConfig) -> String {
        let (name, pod_cidr) = (sanitize(&config.table), snapshot.node.pod_cidr.clone());
        if (&self.name, &self.pod_cidr, self.bridge_netfilter) != (&name, &pod_cidr, config.bridge_netfilter) {
            *self = Self { name, pod_cidr, bridge_netfilter: config.bridge_netfilter, ..Self::default() };
            self.follow(snapshot);
            return self.script();
        }
        let changes = self.follow(snapshot);
        self.script_of(&changes)
    }

    /// Takes over the Services that changed.
    fn follow(&mut self, snapshot: &Snapshot) -> Changes {
        let mut before: BTreeMap<Item, Option<String>> = BTreeMap::new();
        let gone: Vec<_> = self
            .plans
            .iter()
            .filter(|(key, _)| !snapshot.services.contains_key(*key))
            .map(|(_, p)| p.clone())
            .collect();
        for plan in gone {
            self.plans.remove(&plan.key);
            self.withdraw(&plan, &mut before);
        }
        for (key, plan) in &snapshot.services {
            let known = self.plans.get(key);
            if known.is_some_and(|known| Arc::ptr_eq(known, plan)) {
                continue;
            }
            if let Some(old) = self.plans.insert(key.clone(), plan.clone()) {
                self.withdraw(&old, &mut before);
            }
            for (item, value) in items(plan, self.bridge_netfilter) {
                self.remember(&item, &mut before);
                self.items.entry(item).or_default().insert(owner(plan), value);
            }
        }
        let now = before.into_iter().map(|(item, old)| {
            let new = self.value(&item);
            (item, (old, new))
        });
        now.filter(|(_, (old, new))| old != new).collect()
    }

    fn withdraw(&mut self, plan: &ServicePlan, before: &mut BTreeMap<Item, Option<String>>) {
        for (item, _) in items(plan, self.bridge_netfilter) {
            self.remember(&item, before);
            if let Some(owners) = self.items.get_mut(&item) {
                owners.remove(&owner(plan));
                if owners.is_empty() {
                    self.items.remove(&item);
                }
            }
        }
    }

    fn remember(&self, item: &Item, before: &mut BTreeMap<Item, Option<String>>) {
        if !before.contains_key(item) {
            before.insert(item.clone(), self.value(item));
        }
    }

    fn value(&self, item: &Item) -> Option<String> {
        self.items.get(item)?.values().next().cloned()
    }

    /// The script that makes the table from scratch, in place of any earlier one.
    pub fn script(&self) -> String {
        let mut out = removal(&self.name);
        let _ = writeln!(out, "table ip {} {{", self.name);
        let of = |kind: Kind| {
            let items = self.items.range((kind, String::new())..).take_while(move |((k, _), _)| *k == kind);
            items.filter_map(|((_, name), owners)| Some((name, owners.values().next()?)))
        };
        for (name, timeout) in of(Kind::Clients) {
            let _ = writeln!(out, "set {name} {{ {} }}", clients(timeout));
        }
        for (kind, _, declaration) in ELEMENTS {
            out.push_str(declaration);
            let elements: Vec<String> = of(kind).map(|(key, chain)| element(kind, key, chain)).collect();
            if !elements.is_empty() {
                let _ = write!(out, "elements = {{ {} }}; ", elements.join(", "));
            }
            out.push_str("}\n");
        }
        for (name, rules) in of(Kind::Endpoint).chain(of(Kind::Chain)) {
            let _ = writeln!(out, "chain {name} {{ {rules}; }}");
        }
        out.push_str(&self.base_chains());
        out.push_str("}\n");
        out
    }

    /// Chains that hang in the kernel's hooks; they change only with the node's subnet.
    fn base_chains(&self) -> String {
        let node_ports = "ip daddr != 127.0.0.0/8 fib daddr type local meta l4proto . th dport vmap @node-ports";
        let lookup = "ip daddr . meta l4proto . th dport vmap";
        // Node ports are served in user space for everybody but pods.
        let from_pods = match &self.pod_cidr {
            Some(cidr) => format!("ip saddr {cidr} {lookup} @externals-near; ip saddr {cidr} {node_ports}; "),
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
            "chain prerouting {{ type nat hook prerouting priority dstnat - 5; {lookup} @services; {from_pods}\
             {lookup} @externals-far; }}\n\
             chain output {{ type nat hook output priority -105; {lookup} @services; {lookup} @externals-near; }}\n\
             chain postrouting {{ type nat hook postrouting priority srcnat - 5; {masquerade}}}\n\
             chain refuse {{ ip daddr . meta l4proto . th dport != @rejected return; \
             meta l4proto tcp reject with tcp reset; reject with icmp type port-unreachable; }}\n\
             chain forward {{ type filter hook forward priority filter - 5; ct state new jump refuse; }}\n\
             chain local {{ type filter hook output priority filter - 5; ct state new jump refuse; }}\n"
        )
    }

    /// The script for `changes`; a chain's name is its content, so chains are only added and removed, never changed.
    fn script_of(&self, changes: &Changes) -> String {
        let (mut out, table) = (String::new(), &self.name);
        let of =
            |kind: Kind| changes.iter().filter(move |((k, _), _)| *k == kind).map(|((_, name), value)| (name, value));
        for (name, (_, new)) in of(Kind::Clients) {
            if let Some(timeout) = new {
                let _ = writeln!(out, "add set ip {table} {name} {{ {} }}", clients(timeout));
            }
        }
        for (name, (_, new)) in of(Kind::Endpoint).chain(of(Kind::Chain)) {
            if let Some(rules) = new {
                let _ = writeln!(out, "add chain ip {table} {name}");
                for rule in rules.split("; ") {
                    let _ = writeln!(out, "add rule ip {table} {name} {rule}");
                }
            }
        }
        for (kind, map, _) in ELEMENTS {
            let gone = of(kind).filter(|(_, (old, _))| old.is_some()).map(|(key, _)| key.clone());
            push_command(&mut out, &format!("delete element ip {table} {map}"), gone);
            let added = of(kind).filter_map(|(key, (_, new))| Some(element(kind, key, new.as_ref()?)));
            push_command(&mut out, &format!("add element ip {table} {map}"), added);
        }
        for (name, (_, new)) in of(Kind::Chain).chain(of(Kind::Endpoint)) {
            if new.is_none() {
                let _ = writeln!(out, "delete chain ip {table} {name}");
            }
        }
        for (name, (_, new)) in of(Kind::Clients) {
            if new.is_none() {
                let _ = writeln!(out, "delete set ip {table} {name}");
            }
        }
        out
    }
}

fn owner(plan: &ServicePlan) -> Owner {
    (plan.created, plan.key.clone())
}

fn clients(timeout: &str) -> String {
    format!("type ipv4_addr; flags dynamic, timeout; timeout {timeout}s; size {MAX_STICKY_CLIENTS};")
}

fn element(kind: Kind, key: &str, value: &str) -> String {
    match kind {
        Kind::Rejected | Kind::Hairpin => key.to_owned(),
        _ => format!("{key} : goto {value}"),
    }
}

/// What a Service puts into the table. Pure.
fn items(plan: &ServicePlan, bridge_netfilter: bool) -> Vec<(Item, String)> {
    let mut items = Vec::new();
    if plan.headless {
        return items;
    }
    for port in &plan.ports {
        add_port(&mut items, plan, port);
        if bridge_netfilter {
            let endpoints: BTreeSet<Ipv4Addr> = port.routed.iter().filter_map(|e| v4(&e.addr.ip())).collect();
            let pairs = endpoints.into_iter().map(|ip| ((Kind::Hairpin, format!("{ip} . {ip}")), String::new()));
            items.extend(pairs);
        }
    }
    items
}

fn add_port(items: &mut Vec<(Item, String)>, plan: &ServicePlan, port: &PortPlan) {
    let protocol = port.protocol.as_str();
    // Addresses that a load balancer of somebody else has given; ours has a socket of its own.
    let foreign = plan.ingress.iter().filter(|_| plan.kind == ServiceType::NodePort).filter_map(|ip| ip.parse().ok());
    let external: Vec<IpAddr> = plan.external_ips.iter().copied().chain(foreign).collect();
    // `externalTrafficPolicy` is about traffic from outside; what comes from here reaches all endpoints.
    let groups = [
        (Kind::Service, &plan.cluster_ips, &port.internal),
        (Kind::Near, &external, &port.routed),
        (Kind::Far, &external, &port.external),
    ];
    for (kind, ips, endpoints) in groups {
        if ips.is_empty() {
            continue;
        }
        let chain = chain(items, plan, port.protocol, endpoints);
        for ip in ips.iter().filter_map(v4) {
            let key = format!("{ip} . {protocol} . {}", port.port);
            match &chain {
                Some(chain) => items.push(((kind, key), chain.clone())),
                None => items.push(((Kind::Rejected, key), String::new())),
            }
        }
    }
    if let Some(node_port) = port.node_port
        && let Some(chain) = chain(items, plan, port.protocol, &port.routed)
    {
        items.push(((Kind::NodePort, format!("{protocol} . {node_port}")), chain));
    }
}

fn v4(ip: &IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    }
}

/// The chain of a Service that sends traffic to `endpoints`, named after what it does.
fn chain(
    items: &mut Vec<(Item, String)>,
    plan: &ServicePlan,
    protocol: Protocol,
    endpoints: &[EndpointPlan],
) -> Option<String> {
    let targets: Vec<SocketAddr> = endpoints.iter().map(|endpoint| endpoint.addr).filter(SocketAddr::is_ipv4).collect();
    let rules = match (&targets[..], plan.client_ip_affinity) {
        ([], _) => return None,
        ([target], _) => format!("meta l4proto {} dnat to {target}", protocol.as_str()),
        (targets, None) => {
            let map: Vec<String> =
                targets.iter().enumerate().map(|(i, t)| format!("{i} : {} . {}", t.ip(), t.port())).collect();
            let (count, map) = (targets.len(), map.join(", "));
            format!("meta l4proto {} dnat ip to numgen random mod {count} map {{ {map} }}", protocol.as_str())
        }
        (targets, Some(timeout)) => sticky(items, plan, protocol, targets, timeout),
    };
    let name = format!("svc-{:016x}", fnv1a(&format!("{} {rules}", plan.key)));
    items.push(((Kind::Chain, name.clone()), rules));
    Some(name)
}

/// The rules that send a client where it was sent before, else anywhere.
fn sticky(
    items: &mut Vec<(Item, String)>,
    plan: &ServicePlan,
    protocol: Protocol,
    targets: &[SocketAddr],
    timeout: Duration,
) -> String {
    let (protocol, seconds) = (protocol.as_str(), timeout.as_secs().max(1));
    let mut rules = Vec::with_capacity(targets.len() + 1);
    let mut verdicts = Vec::with_capacity(targets.len());
    for (index, target) in targets.iter().enumerate() {
        let id = fnv1a(&format!("{} {protocol} {target} {seconds}", plan.key));
        let (set, chain) = (format!("clients-{id:016x}"), format!("ep-{id:016x}"));
        rules.push(format!("ip saddr @{set} goto {chain}"));
        verdicts.push(format!("{index} : goto {chain}"));
        // Each connection starts the timeout anew.
        let own = format!("update @{set} {{ ip saddr }}; meta l4proto {protocol} dnat to {target}");
        items.push(((Kind::Clients, set), seconds.to_string()));
        items.push(((Kind::Endpoint, chain), own));
    }
    rules.push(format!("numgen random mod {} vmap {{ {} }}", targets.len(), verdicts.join(", ")));
    rules.join("; ")
}

/// FNV-1a; chains with equal names would have to collide in 64 bits within one node's Services.
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
    use k8s_openapi::api::core::v1::Service;
    use k8s_openapi::api::discovery::v1::EndpointSlice;
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
        Table::default().update(&snapshot(spec, endpoints), &config)
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
        check(
            &sticky,
            &["10.244.0.2", "10.244.0.3"],
            &["timeout 10800s;", "update @clients-", "numgen random mod 2 vmap { 0 : goto ep-", "goto ep-"],
        );
        let node_port =
            json!({"type": "NodePort", "clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30080}]});
        check(
            &node_port,
            &["10.244.0.2"],
            &["{ tcp . 30080 : goto svc-", "ip saddr 10.244.0.0/24 ip daddr != 127.0.0.0/8"],
        );
        let external = json!({"clusterIP": "10.96.0.1", "externalIPs": ["192.0.2.1"],
            "externalTrafficPolicy": "Local", "ports": [{"port": 80}]});
        // None of the endpoints is on this node: only what comes from it reaches them.
        check(
            &external,
            &["10.244.0.2"],
            &[
                "externals-near { type ipv4_addr . inet_proto . inet_service : verdict; elements = { 192.0.2.1 . tcp . 80 :",
                "externals-far { type ipv4_addr . inet_proto . inet_service : verdict; }",
                "rejected { type ipv4_addr . inet_proto . inet_service; elements = { 192.0.2.1 . tcp . 80 }",
            ],
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
    fn only_what_changed_is_written() {
        let config = RenderConfig { table: "lb".to_owned(), bridge_netfilter: true };
        let spec = json!({"clusterIP": "10.96.0.1", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]});
        let mut table = Table::default();
        assert!(table.update(&snapshot(&spec, &["10.244.0.2"]), &config).starts_with("table ip lb {}\ndelete table"));
        assert_eq!(table.update(&snapshot(&spec, &["10.244.0.2"]), &config), "", "an equal plan of another identity");
        let two = table.update(&snapshot(&spec, &["10.244.0.2", "10.244.0.3"]), &config);
        assert_eq!(two.matches("add set").count(), 2, "{two}");
        let three = table.update(&snapshot(&spec, &["10.244.0.2", "10.244.0.3", "10.244.0.4"]), &config);
        assert_eq!((three.matches("add set").count(), three.matches("delete set").count()), (1, 0), "{three}");
        let gone = table.update(&snapshot(&spec, &["10.244.0.2", "10.244.0.4", "10.244.0.5"]), &config);
        assert_eq!((gone.matches("add set").count(), gone.matches("delete set").count()), (1, 1), "{gone}");
        let none = table.update(&Snapshot { node: snapshot(&spec, &[]).node, ..Snapshot::default() }, &config);
        assert!(!none.contains("add ") && none.matches("delete chain").count() == 4, "{none}");
        assert_eq!(table.items.len(), 0);
    }

    #[test]
    fn an_address_belongs_to_the_older_service() {
        let config = RenderConfig { table: "lb".to_owned(), bridge_netfilter: false };
        let service = |name: &str, year: u32, ip: &str| {
            let service = json!({"metadata": {"name": name, "namespace": "d",
                    "creationTimestamp": format!("{year}-01-01T00:00:00Z")},
                "spec": {"externalIPs": ["192.0.2.1"], "ports": [{"port": 80}]}});
            let slice = json!({"metadata": {"name": name, "namespace": "d",
                    "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": [{"addresses": [ip]}]});
            let service: Service = serde_json::from_value(service).expect("a Service");
            let slice: EndpointSlice = serde_json::from_value(slice).expect("an EndpointSlice");
            (service, slice)
        };
        let (new, new_slice) = service("a", 2026, "10.244.0.2");
        let (old, old_slice) = service("b", 2020, "10.244.0.3");
        let both = plan(&[new.clone(), old], &[new_slice.clone(), old_slice], &PlanConfig::default());
        let mut table = Table::default();
        let target = |table: &Table| table.value(&(Kind::Far, "192.0.2.1 . tcp . 80".to_owned()));
        table.update(&both, &config);
        let first = target(&table);
        let change = table.update(&plan(&[new], &[new_slice], &PlanConfig::default()), &config);
        assert_ne!(first, target(&table));
        assert!(change.contains("delete element ip lb externals-far { 192.0.2.1 . tcp . 80 }"), "{change}");
        assert!(change.contains("add element ip lb externals-far { 192.0.2.1 . tcp . 80 : goto svc-"), "{change}");
    }
}
