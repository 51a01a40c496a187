//! The table by value.

use super::items::{Kind, Value as Item};
use super::script::sanitize;
use super::table::{RenderConfig, Table};
use crate::snapshot::Snapshot;
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
fn a_service_is_an_element_per_endpoint() {
    let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
    check(&spec, &["10.244.0.2"], &["services-1 { 10.96.0.1 . tcp . 80 . 0 : 10.244.0.2 . 8080 }"]);
    let two = "add element ip lb services-2 { 10.96.0.1 . tcp . 80 . 0 : 10.244.0.2 . 8080, \
        10.96.0.1 . tcp . 80 . 1 : 10.244.0.3 . 8080 }\n";
    let lookup = "dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @services-2; }";
    check(&spec, &["10.244.0.2", "10.244.0.3"], &[two, lookup]);
    check(&spec, &[], &["add element ip lb rejected { 10.96.0.1 . tcp . 80 }"]);
    let sticky = json!({"clusterIP": "10.96.0.1", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]});
    check(
        &sticky,
        &["10.244.0.2", "10.244.0.3"],
        &[
            "timeout 10800s;",
            "update @clients-",
            "numgen random mod 2 vmap { 0 : goto ep-",
            "goto ep-",
            "add element ip lb services { 10.96.0.1 . tcp . 80 : goto svc-",
        ],
    );
    let node_port = json!({"type": "NodePort", "clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30080}]});
    check(
        &node_port,
        &["10.244.0.2"],
        &["node-ports-1 { tcp . 30080 . 0 : 10.244.0.2 . 8080 }", "ip saddr 10.244.0.0/24 ip daddr != 127.0.0.0/8"],
    );
    let external = json!({"clusterIP": "10.96.0.1", "externalIPs": ["192.0.2.1"],
        "externalTrafficPolicy": "Local", "ports": [{"port": 80}]});
    // None of the endpoints is on this node: only what comes from it reaches them.
    check(
        &external,
        &["10.244.0.2"],
        &["externals-near-1 { 192.0.2.1 . tcp . 80 . 0", "rejected { 192.0.2.1 . tcp . 80 }"],
    );
    assert!(!script(&external, &["10.244.0.2"], false).contains("externals-far-"));
}

#[test]
fn masquerading_depends_on_what_the_bridge_does() {
    let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
    let plain = script(&spec, &["10.244.0.2"], false);
    assert!(plain.contains("ip saddr 10.244.0.0/24 ip daddr 10.244.0.0/24 masquerade"), "{plain}");
    let filtered = script(&spec, &["10.244.0.2"], true);
    assert!(filtered.contains("hairpins { 10.244.0.2 . 10.244.0.2 }"), "{filtered}");
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
    assert!(two.contains("delete map ip lb services-1") && two.contains("flush chain ip lb services\n"), "{two}");
    let three = table.update(&snapshot(&spec, &["10.244.0.2", "10.244.0.3", "10.244.0.4"]), &config);
    assert_eq!((three.matches("add set").count(), three.matches("delete set").count()), (1, 0), "{three}");
    let gone = table.update(&snapshot(&spec, &["10.244.0.2", "10.244.0.4", "10.244.0.5"]), &config);
    assert_eq!((gone.matches("add set").count(), gone.matches("delete set").count()), (1, 1), "{gone}");
    let none = table.update(&Snapshot { node: snapshot(&spec, &[]).node, ..Snapshot::default() }, &config);
    assert!(!none.contains("add ") && none.matches("delete chain").count() == 4, "{none}");
    assert!(table.is_empty());
}

#[test]
fn of_endpoints_only_what_differs_is_written() {
    let config = RenderConfig { table: "lb".to_owned(), bridge_netfilter: false };
    let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
    let mut table = Table::default();
    table.update(&snapshot(&spec, &["10.244.0.2", "10.244.0.3"]), &config);
    let other = table.update(&snapshot(&spec, &["10.244.0.2", "10.244.0.4"]), &config);
    let expected = "delete element ip lb services-2 { 10.96.0.1 . tcp . 80 . 1 }\n\
        add element ip lb services-2 { 10.96.0.1 . tcp . 80 . 1 : 10.244.0.4 . 8080 }\n";
    assert_eq!(other, expected);
    let third = table.update(&snapshot(&spec, &["10.244.0.2", "10.244.0.4", "10.244.0.5"]), &config);
    let order: Vec<&str> = third.lines().map(|line| line.split(" ip lb ").next().unwrap_or_default()).collect();
    assert_eq!(
        order,
        ["add map", "delete element", "add element", "flush chain", "add rule", "add rule", "delete map"],
        "{third}"
    );
    let none = table.update(&snapshot(&spec, &[]), &config);
    assert!(none.contains("delete map ip lb services-3\n") && none.contains("add element ip lb rejected"), "{none}");
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
    let target = |table: &Table| -> Option<Item> { table.value(&(Kind::Far, "192.0.2.1 . tcp . 80".to_owned())) };
    table.update(&both, &config);
    let first = target(&table);
    let change = table.update(&plan(&[new], &[new_slice], &PlanConfig::default()), &config);
    assert_ne!(first, target(&table));
    assert!(change.contains("delete element ip lb externals-far-1 { 192.0.2.1 . tcp . 80 . 0 }"), "{change}");
    assert!(
        change.contains("add element ip lb externals-far-1 { 192.0.2.1 . tcp . 80 . 0 : 10.244.0.2 . 8080 }"),
        "{change}"
    );
}
