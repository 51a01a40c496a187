//! Writes nftables scripts. Decides nothing: contents are [`Table`]'s.
//!
//! Everything written comes from parsed addresses and numbers or from our own configuration, never from object text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::SocketAddrV4;

use super::items::{Kind, Value};
use super::table::{Changes, Table};

/// Clients remembered per endpoint of a Service with session affinity; more are spread anew.
const MAX_STICKY_CLIENTS: usize = 65_535;
/// What leads to an address's port.
const ADDRESS: &str = "ip daddr . meta l4proto . th dport";
/// What leads to a port of any address of this node.
const NODE_PORT: &str = "meta l4proto . th dport";

/// Kinds that are looked up: in the map of verdicts and then the maps of endpoints that are named after it, by the chain of
/// that name; what the key is made of, and its types.
const LOOKUPS: [(Kind, &str, &str, &str); 4] = [
    (Kind::Service, "services", ADDRESS, "ipv4_addr . inet_proto . inet_service"),
    (Kind::Near, "externals-near", ADDRESS, "ipv4_addr . inet_proto . inet_service"),
    (Kind::Far, "externals-far", ADDRESS, "ipv4_addr . inet_proto . inet_service"),
    (Kind::NodePort, "node-ports", NODE_PORT, "inet_proto . inet_service"),
];

/// Kinds that are elements of a set, with its name and type.
const SETS: [(Kind, &str, &str); 2] = [
    (Kind::Rejected, "rejected", "ipv4_addr . inet_proto . inet_service"),
    (Kind::Hairpin, "hairpins", "ipv4_addr . ipv4_addr"),
];

/// Elements by set or map and key; the value of a map's.
type Elements = BTreeMap<(String, String), Option<String>>;

/// The script that makes `table` from scratch, in place of any earlier one.
pub(super) fn from_scratch(table: &Table) -> String {
    let mut out = removal(&table.name);
    let _ = writeln!(out, "table ip {} {{", table.name);
    for (name, timeout) in table.of(Kind::Clients) {
        let _ = writeln!(out, "set {name} {{ {} }}", clients(timeout));
    }
    for (_, name, kind) in SETS {
        let _ = writeln!(out, "set {name} {{ type {kind}; }}");
    }
    for (kind, name, _, types) in LOOKUPS {
        let _ = writeln!(out, "map {name} {{ type {types} : verdict; }}");
        for count in table.spreads(kind) {
            let _ = writeln!(out, "map {name}-{count} {{ {} }}", spread(kind, count));
        }
    }
    for (name, rules) in table.of(Kind::Endpoint).chain(table.of(Kind::Chain)) {
        let _ = writeln!(out, "chain {name} {{ {}; }}", text(rules));
    }
    for (kind, name, ..) in LOOKUPS {
        let rules: Vec<String> = lookup_rules(table, kind).collect();
        let _ = writeln!(out, "chain {name} {{ {}; }}", rules.join("; "));
    }
    out.push_str(&base_chains(table));
    out.push_str("}\n");
    let kinds = LOOKUPS.iter().map(|l| l.0).chain(SETS.iter().map(|s| s.0));
    let mut all = Elements::new();
    for kind in kinds {
        all.extend(table.of(kind).flat_map(|(key, value)| elements(kind, key, value)));
    }
    push_elements(&mut out, "add", &table.name, &all);
    out
}

/// The script for `changes` to what is now `table`.
pub(super) fn of_changes(table: &Table, changes: &Changes) -> String {
    let (mut out, name) = (String::new(), &table.name);
    let of = |kind: Kind| changes.items.iter().filter(move |((k, _), _)| *k == kind).map(|((_, n), value)| (n, value));
    for (set, (_, new)) in of(Kind::Clients) {
        if let Some(timeout) = new {
            let _ = writeln!(out, "add set ip {name} {set} {{ {} }}", clients(timeout));
        }
    }
    for (kind, count) in &changes.new_spreads {
        let _ = writeln!(out, "add map ip {name} {}-{count} {{ {} }}", map_name(*kind), spread(*kind, *count));
    }
    for (chain, (_, new)) in of(Kind::Endpoint).chain(of(Kind::Chain)) {
        if let Some(rules) = new {
            let _ = writeln!(out, "add chain ip {name} {chain}");
            // Its name is its content, so a chain is only ever added and removed.
            push_rules(&mut out, name, chain, text(rules).split("; "));
        }
    }
    push_element_changes(&mut out, name, changes);
    let moved: BTreeSet<Kind> = changes.new_spreads.iter().chain(&changes.old_spreads).map(|(kind, _)| *kind).collect();
    for kind in moved {
        let _ = writeln!(out, "flush chain ip {name} {}", map_name(kind));
        push_rules(&mut out, name, map_name(kind), lookup_rules(table, kind));
    }
    for (chain, (_, new)) in of(Kind::Chain).chain(of(Kind::Endpoint)) {
        if new.is_none() {
            let _ = writeln!(out, "delete chain ip {name} {chain}");
        }
    }
    for (kind, count) in &changes.old_spreads {
        let _ = writeln!(out, "delete map ip {name} {}-{count}", map_name(*kind));
    }
    for (set, (_, new)) in of(Kind::Clients) {
        if new.is_none() {
            let _ = writeln!(out, "delete set ip {name} {set}");
        }
    }
    out
}

/// The script that removes a table whether or not it is there.
pub(super) fn removal(table: &str) -> String {
    let table = sanitize(table);
    format!("table ip {table} {{}}\ndelete table ip {table}\n")
}

/// An nftables identifier: letters, digits, `-` and `_`, not starting with a digit.
pub(super) fn sanitize(name: &str) -> String {
    let plain: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' }).collect();
    if plain.starts_with(|c: char| c.is_ascii_alphabetic()) { plain } else { format!("t{plain}") }
}

/// Chains that hang in the kernel's hooks; they change only with the node's subnet.
fn base_chains(table: &Table) -> String {
    // Node ports are served in user space for everybody but pods.
    let from_pods = match &table.pod_cidr {
        Some(cidr) => format!(
            "ip saddr {cidr} jump externals-near; \
             ip saddr {cidr} ip daddr != 127.0.0.0/8 fib daddr type local jump node-ports; "
        ),
        None => String::new(),
    };
    let masquerade = match &table.pod_cidr {
        // A pod that reaches itself must see another source address, or it would answer itself directly.
        _ if table.bridge_netfilter => "ct status dnat ip saddr . ip daddr @hairpins masquerade; ".to_owned(),
        // The reply of a pod on the same bridge would not come through here to be translated back.
        Some(cidr) => format!("ct status dnat ip saddr {cidr} ip daddr {cidr} masquerade; "),
        None => String::new(),
    };
    format!(
        "chain prerouting {{ type nat hook prerouting priority dstnat - 5; jump services; {from_pods}\
         jump externals-far; }}\n\
         chain output {{ type nat hook output priority -105; jump services; jump externals-near; }}\n\
         chain postrouting {{ type nat hook postrouting priority srcnat - 5; {masquerade}}}\n\
         chain refuse {{ {ADDRESS} != @rejected return; \
         meta l4proto tcp reject with tcp reset; reject with icmp type port-unreachable; }}\n\
         chain forward {{ type filter hook forward priority filter - 5; ct state new jump refuse; }}\n\
         chain local {{ type filter hook output priority filter - 5; ct state new jump refuse; }}\n"
    )
}

/// Rules that look a kind up: among what has affinity, then by number of endpoints.
fn lookup_rules(table: &Table, kind: Kind) -> impl Iterator<Item = String> {
    let (name, key) = (map_name(kind), key_of(kind));
    let spreads = table.spreads(kind).map(move |count| {
        format!("meta l4proto {{ tcp, udp }} dnat ip to {key} . numgen random mod {count} map @{name}-{count}")
    });
    std::iter::once(format!("{key} vmap @{name}")).chain(spreads)
}

/// Declaration of the map of what has `count` endpoints.
fn spread(kind: Kind, count: usize) -> String {
    format!("typeof {} . numgen random mod {count} : ip daddr . th dport;", key_of(kind))
}

fn map_name(kind: Kind) -> &'static str {
    LOOKUPS.iter().find(|lookup| lookup.0 == kind).map_or("", |lookup| lookup.1)
}

fn key_of(kind: Kind) -> &'static str {
    LOOKUPS.iter().find(|lookup| lookup.0 == kind).map_or("", |lookup| lookup.2)
}

fn clients(timeout: &Value) -> String {
    format!("type ipv4_addr; flags dynamic, timeout; timeout {}s; size {MAX_STICKY_CLIENTS};", text(timeout))
}

fn text(value: &Value) -> &str {
    match value {
        Value::Text(text) => text,
        Value::Spread(_) => "",
    }
}

/// The elements that an item is.
fn elements(kind: Kind, key: &str, value: &Value) -> Vec<((String, String), Option<String>)> {
    if let Some((_, set, _)) = SETS.iter().find(|set| set.0 == kind) {
        return vec![(((*set).to_owned(), key.to_owned()), None)];
    }
    let map = map_name(kind);
    if map.is_empty() {
        return Vec::new();
    }
    let slot = |(slot, target): (usize, &SocketAddrV4), count: usize| {
        let value = format!("{} . {}", target.ip(), target.port());
        ((format!("{map}-{count}"), format!("{key} . {slot}")), Some(value))
    };
    match value {
        Value::Text(chain) => vec![((map.to_owned(), key.to_owned()), Some(format!("goto {chain}")))],
        Value::Spread(targets) => targets.iter().enumerate().map(|t| slot(t, targets.len())).collect(),
    }
}

/// Elements that are gone, then those that are new or lead elsewhere now.
fn push_element_changes(out: &mut String, table: &str, changes: &Changes) {
    let (mut gone, mut added) = (Elements::new(), Elements::new());
    for ((kind, key), (old, new)) in &changes.items {
        let old: Elements = old.iter().flat_map(|value| elements(*kind, key, value)).collect();
        let new: Elements = new.iter().flat_map(|value| elements(*kind, key, value)).collect();
        gone.extend(old.iter().filter(|(e, value)| new.get(*e) != Some(*value)).map(|(e, _)| (e.clone(), None)));
        added.extend(new.into_iter().filter(|(e, value)| old.get(e) != Some(value)));
    }
    push_elements(out, "delete", table, &gone);
    push_elements(out, "add", table, &added);
}

/// One command per set or map.
fn push_elements(out: &mut String, command: &str, table: &str, elements: &Elements) {
    let mut current: Option<&str> = None;
    for ((set, key), value) in elements {
        if current.replace(set) == Some(set) {
            out.push_str(", ");
        } else {
            let end = if out.ends_with('\n') || out.is_empty() { "" } else { " }\n" };
            let _ = write!(out, "{end}{command} element ip {table} {set} {{ ");
        }
        out.push_str(key);
        if let Some(value) = value {
            let _ = write!(out, " : {value}");
        }
    }
    if current.is_some() {
        out.push_str(" }\n");
    }
}

fn push_rules<R: AsRef<str>>(out: &mut String, table: &str, chain: &str, rules: impl Iterator<Item = R>) {
    for rule in rules {
        let _ = writeln!(out, "add rule ip {table} {chain} {}", rule.as_ref());
    }
}
