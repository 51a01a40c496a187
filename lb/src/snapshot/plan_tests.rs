//! Services and EndpointSlices, planned by value.

use super::*;
use serde_json::{Value, json};

fn service(spec: Value) -> Service {
    serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u1"}, "spec": spec}))
        .expect("a Service")
}

fn slice(endpoints: Value) -> EndpointSlice {
    serde_json::from_value(json!({
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {SERVICE_NAME_LABEL: "web"}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }))
    .expect("an EndpointSlice")
}

fn addresses(endpoints: &[EndpointPlan]) -> Vec<String> {
    endpoints.iter().map(|e| e.addr.to_string()).collect()
}

fn planned(spec: Value, endpoints: Value) -> ServicePlan {
    let config = PlanConfig { node_name: "n1".to_owned(), ..PlanConfig::default() };
    let snapshot = plan(&[service(spec)], &[slice(endpoints)], &config);
    let plan = snapshot.services.into_values().next().expect("one Service");
    Arc::unwrap_or_clone(plan)
}

fn http_port() -> Value {
    json!([{"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080}])
}

#[track_caller]
fn check(endpoints: Value, expected: &[&str]) {
    let plan = planned(json!({"clusterIP": "10.96.0.5", "ports": http_port()}), endpoints);
    assert_eq!(addresses(&plan.ports[0].internal), expected);
}

#[test]
fn ready_endpoints_get_traffic() {
    check(
        json!([
            {"addresses": ["10.1.0.2"], "conditions": {"ready": true}},
            {"addresses": ["10.1.0.1"]},
            {"addresses": ["10.1.0.3"], "conditions": {"ready": false}},
            {"addresses": ["10.1.0.4"], "conditions": {"ready": false, "serving": true, "terminating": true}},
        ]),
        &["10.1.0.1:8080", "10.1.0.2:8080"],
    );
}

#[test]
fn without_ready_ones_serving_and_terminating_endpoints_are_used() {
    check(
        json!([
            {"addresses": ["10.1.0.3"], "conditions": {"ready": false}},
            {"addresses": ["10.1.0.4"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["10.1.0.5"], "conditions": {"ready": false, "serving": false, "terminating": true}},
        ]),
        &["10.1.0.4:8080"],
    );
}

#[test]
fn hostile_addresses_are_left_out() {
    check(
        json!([
            {"addresses": ["10.1.0.1 }; flush ruleset"]}, {"addresses": []}, {"addresses": ["10.1.0.300"]},
            {"addresses": ["10.1.0.1"]}, {"addresses": ["10.1.0.1"]},
        ]),
        &["10.1.0.1:8080"],
    );
}

#[test]
fn local_policies_keep_endpoints_of_this_node() {
    let endpoints = json!([
        {"addresses": ["10.1.0.1"], "nodeName": "n1"}, {"addresses": ["10.1.0.2"], "nodeName": "n2"},
    ]);
    let spec = json!({"type": "NodePort", "externalTrafficPolicy": "Local", "ports": http_port()});
    let plan = planned(spec, endpoints);
    assert_eq!(addresses(&plan.ports[0].internal), ["10.1.0.1:8080", "10.1.0.2:8080"]);
    assert_eq!(addresses(&plan.ports[0].external), ["10.1.0.1:8080"]);
}

#[test]
fn health_check_ports_are_those_of_local_services() {
    let endpoints = || {
        json!([
            {"addresses": ["10.1.0.1"], "nodeName": "n1"},
            {"addresses": ["10.1.0.2"], "nodeName": "n1", "conditions": {"ready": false, "serving": true}},
            {"addresses": ["10.1.0.3"], "nodeName": "n2"},
        ])
    };
    let check = |policy: &str, kind: &str, port: i32, expected: Option<u16>| {
        let spec = json!({"type": kind, "externalTrafficPolicy": policy, "healthCheckNodePort": port,
            "ports": http_port()});
        let plan = planned(spec, endpoints());
        assert_eq!((plan.health_check_node_port, plan.local_ready), (expected, 1), "{policy} {kind} {port}");
    };
    check("Local", "LoadBalancer", 31000, Some(31000));
    check("Cluster", "LoadBalancer", 31000, None);
    check("Local", "ClusterIP", 31000, None);
    check("Local", "LoadBalancer", 70000, None);
}

#[test]
fn types_affinity_and_addresses_are_resolved() {
    let plan = planned(
        json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.9"], "externalIPs": ["192.0.2.7", "x"],
               "sessionAffinity": "ClientIP", "ports": http_port()}),
        json!([]),
    );
    assert_eq!(plan.kind, ServiceType::LoadBalancer);
    assert!(plan.client_ip_affinity.is_some());
    assert_eq!(plan.cluster_ips, ["10.96.0.9".parse::<IpAddr>().expect("an address")]);
    assert_eq!(plan.external_ips.len(), 1);
    assert_eq!(plan.ports[0].node_port, Some(30080));
}

#[test]
fn node_ports_of_plain_services_are_ignored() {
    assert_eq!(planned(json!({"ports": http_port()}), json!([])).ports[0].node_port, None);
}

#[test]
fn foreign_load_balancer_classes_are_not_served() {
    let kind = |class: &str| {
        planned(json!({"type": "LoadBalancer", "loadBalancerClass": class, "ports": http_port()}), json!([])).kind
    };
    assert_eq!(kind("example.com/x"), ServiceType::NodePort);
    assert_eq!(kind(LOAD_BALANCER_CLASS), ServiceType::LoadBalancer);
}

#[test]
fn app_protocol_decides_http() {
    let check = |port: Value, expected: AppProtocol| {
        let port: ServicePort = serde_json::from_value(port).expect("a port");
        assert_eq!(app_protocol(&port), expected, "{port:?}");
    };
    check(json!({"port": 80, "name": "http"}), AppProtocol::Http);
    check(json!({"port": 80, "name": "http-api"}), AppProtocol::Http);
    check(json!({"port": 80, "name": "https"}), AppProtocol::Tcp);
    check(json!({"port": 80, "appProtocol": "http"}), AppProtocol::Http);
    check(json!({"port": 80, "name": "http", "appProtocol": "mysql"}), AppProtocol::Tcp);
    check(json!({"port": 80}), AppProtocol::Tcp);
}

#[test]
fn impossible_ports_are_left_out() {
    let ports = json!([{"port": 0}, {"port": 70000}, {"port": -1}, {"port": 5, "protocol": "SCTP"}, {"port": 9}]);
    let plan = planned(json!({"ports": ports}), json!([]));
    assert_eq!(plan.ports.iter().map(|p| p.port).collect::<Vec<_>>(), [9]);
}

/// The plan of a Service `web` beside other objects, as the compiler makes it.
fn compiled(spec: Value, endpoints: Value, others: &[Value]) -> ServicePlan {
    let mut all = others.to_vec();
    all.push(json!({"kind": "Service", "metadata": {"name": "web", "namespace": "shop"}, "spec": spec}));
    let mut slice = serde_json::to_value(slice(endpoints)).expect("JSON");
    slice["kind"] = json!("EndpointSlice");
    all.push(slice);
    let config = PlanConfig { node_name: "n1".to_owned(), ..PlanConfig::default() };
    let snapshot = crate::snapshot::testing::snapshot(config, &all).expect("valid objects");
    Arc::unwrap_or_clone(snapshot.services.into_values().next().expect("one Service"))
}

fn node(name: &str, zone: &str) -> Value {
    json!({"kind": "Node", "metadata": {"name": name, "labels": {
        "topology.kubernetes.io/zone": zone, "topology.kubernetes.io/region": format!("{zone}-region")}}})
}

#[test]
fn endpoints_know_their_zone_region_and_weight() {
    let policy = json!({"kind": "TrafficPolicy", "metadata": {"namespace": "shop", "name": "p"}, "spec": {
        "targetRefs": [{"kind": "Service", "name": "web"}],
        "loadBalancing": {"weights": [{"zone": "b", "weight": 7}, {"node": "n1", "weight": 8}]}}});
    let endpoints = json!([
        {"addresses": ["10.1.0.1"], "nodeName": "n1"}, {"addresses": ["10.1.0.2"], "nodeName": "n2", "zone": "c"},
        {"addresses": ["10.1.0.3"], "nodeName": "n3"}, {"addresses": ["10.1.0.4"]},
    ]);
    let plan = compiled(
        json!({"ports": http_port()}),
        endpoints,
        &[node("n1", "a"), node("n2", "b"), node("n3", "b"), policy],
    );
    let facts: Vec<_> = plan.ports[0]
        .routed
        .iter()
        .map(|e| (e.zone.as_deref().unwrap_or_default(), e.region.as_deref().unwrap_or_default(), e.weight))
        .collect();
    assert_eq!(facts, [("a", "a-region", 8), ("c", "b-region", 100), ("b", "b-region", 7), ("", "", 100)]);
    assert_eq!(&*plan.ports[0].policy.sources[0], "shop/p");
}

#[test]
fn hints_keep_traffic_from_inside_in_its_zone_if_all_endpoints_have_them() {
    let near = json!({"addresses": ["10.1.0.1"], "hints": {"forZones": [{"name": "a"}]}});
    let far = json!({"addresses": ["10.1.0.2"], "hints": {"forZones": [{"name": "b"}]}});
    let silent = json!({"addresses": ["10.1.0.3"]});
    let check = |endpoints: Value, expected: &[&str]| {
        let plan = compiled(json!({"ports": http_port()}), endpoints.clone(), &[node("n1", "a")]);
        assert_eq!(addresses(&plan.ports[0].internal), expected);
        assert_eq!(plan.ports[0].routed.len(), endpoints.as_array().expect("an array").len());
    };
    check(json!([near, far]), &["10.1.0.1:8080"]);
    check(json!([near, far, silent]), &["10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.3:8080"]);
    check(json!([far]), &["10.1.0.2:8080"]);
    // A node's hint goes before a zone's, again if all have one; what ends is used whatever it says.
    let here = json!({"addresses": ["10.1.0.4"], "hints": {"forNodes": [{"name": "n1"}], "forZones": [{"name": "a"}]}});
    let there =
        json!({"addresses": ["10.1.0.5"], "hints": {"forNodes": [{"name": "n2"}], "forZones": [{"name": "a"}]}});
    check(json!([here, there]), &["10.1.0.4:8080"]);
    check(json!([near, here]), &["10.1.0.1:8080", "10.1.0.4:8080"]);
    check(json!([there]), &["10.1.0.5:8080"]);
    let mut ending = here.clone();
    ending["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
    let internal = |endpoints: Value| {
        addresses(&compiled(json!({"ports": http_port()}), endpoints, &[node("n1", "a")]).ports[0].internal)
    };
    assert_eq!(internal(json!([there, ending])), ["10.1.0.5:8080"]);
    let mut both = [ending, there];
    both[1]["conditions"] = both[0]["conditions"].clone();
    assert_eq!(internal(json!(both)), ["10.1.0.4:8080", "10.1.0.5:8080"]);
}

#[test]
fn the_kernel_follows_hints_from_everywhere_but_for_local_traffic() {
    let near = json!({"addresses": ["10.1.0.1"], "nodeName": "n2", "hints": {"forZones": [{"name": "a"}]}});
    let far = json!({"addresses": ["10.1.0.2"], "nodeName": "n1", "hints": {"forZones": [{"name": "b"}]}});
    let port = |spec: Value| {
        let mut spec = spec;
        spec["ports"] = http_port();
        compiled(spec, json!([near, far]), &[node("n1", "a")]).ports[0].clone()
    };
    let cluster = port(json!({}));
    assert_eq!((addresses(&cluster.cluster), cluster.external_local), (vec!["10.1.0.1:8080".to_owned()], false));
    let local = port(json!({"internalTrafficPolicy": "Local", "type": "NodePort", "externalTrafficPolicy": "Local"}));
    assert_eq!(addresses(&local.internal), ["10.1.0.2:8080"]);
    assert_eq!((addresses(&local.external), local.external_local), (vec!["10.1.0.2:8080".to_owned()], true));
    assert_eq!(addresses(&local.cluster), ["10.1.0.1:8080"]);
}

#[test]
fn traffic_distribution_and_affinity_become_policy() {
    let policy = |spec: Value| {
        let mut spec = spec;
        spec["ports"] = http_port();
        planned(spec, json!([])).ports[0].policy.clone()
    };
    for (text, prefer) in [
        ("PreferClose", Prefer::Zone),
        ("PreferSameZone", Prefer::Zone),
        ("PreferSameNode", Prefer::Node),
        ("x", Prefer::None),
    ] {
        assert_eq!(policy(json!({"trafficDistribution": text})).locality.prefer, prefer);
    }
    let affinity = |config: Value| {
        policy(json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config})).client_ip_affinity
    };
    assert_eq!(affinity(json!({})), Some(Duration::from_secs(10_800)));
    assert_eq!(affinity(json!({"clientIP": {"timeoutSeconds": 5}})), Some(Duration::from_secs(5)));
    assert_eq!(affinity(json!({"clientIP": {"timeoutSeconds": -5}})), Some(Duration::from_secs(10_800)));
}
