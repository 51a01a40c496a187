//! The compiler after any sequence of events equals one that was given the surviving objects at once, and shares what did not change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::certificates::tests::secret;
use super::objects::object_key;
use super::testing::{compiler, object};
use super::{Compiler, PlanConfig};
use crate::listeners::Report;

/// Versions of one object; the events exchange them.
type Slot = Vec<Value>;

fn versions(kind: &str, namespace: &str, name: &str, versions: Vec<Value>) -> Slot {
    let version = |(index, mut body): (usize, Value)| {
        body["kind"] = json!(kind);
        let created = format!("2026-01-0{}T00:00:00Z", 1 + (name.len() + index) % 8);
        let mut metadata = json!({"name": name, "creationTimestamp": created, "generation": index});
        if !namespace.is_empty() {
            metadata["namespace"] = json!(namespace);
        }
        metadata.as_object_mut().expect("an object").extend(body["metadata"].as_object().cloned().unwrap_or_default());
        body["metadata"] = metadata;
        body
    };
    versions.into_iter().enumerate().map(version).collect()
}

fn gateway(listeners: Value) -> Value {
    json!({"spec": {"gatewayClassName": "scaleup", "listeners": listeners}})
}

fn http_route(host: &str, backend: Value) -> Value {
    json!({"spec": {"parentRefs": [{"name": "edge", "namespace": "infra"}], "hostnames": [host],
           "rules": [{"matches": [{"path": {"value": "/x"}}], "backendRefs": [backend]}]}})
}

fn slots() -> Vec<Slot> {
    let all = json!({"namespaces": {"from": "All"}});
    let labels = json!({"namespaces": {"from": "Selector", "selector": {"matchLabels": {"a": "b"}}}});
    let http = |allowed: &Value, host: &str| json!({"name": "http", "port": 80, "protocol": "HTTP", "hostname": host, "allowedRoutes": allowed});
    let https = json!({"name": "https", "port": 443, "protocol": "HTTPS", "allowedRoutes": all,
                       "tls": {"certificateRefs": [{"name": "cert", "namespace": "certs"}]}});
    let tcp = |port: u16| json!({"name": "tcp", "port": port, "protocol": "TCP", "allowedRoutes": all});
    let service = |ports: Value| json!({"spec": {"type": "LoadBalancer", "ports": ports}});
    let slice = |service: &str, ip: &str| {
        json!({"metadata": {"labels": {"kubernetes.io/service-name": service}}, "addressType": "IPv4",
               "endpoints": [{"addresses": [ip], "nodeName": "n"}], "ports": [{"name": "p", "port": 8080}]})
    };
    let grant = |from: &str, to: &str| {
        json!({"spec": {"from": [{"group": "gateway.networking.k8s.io", "kind": from, "namespace": "infra"},
                                 {"group": "gateway.networking.k8s.io", "kind": from, "namespace": "b"}],
                        "to": [{"group": "", "kind": to}]}})
    };
    let policy = |target: Value, spec: Value| {
        let mut spec = spec;
        spec["targetRefs"] = json!([target]);
        json!({"spec": spec})
    };
    let ingress = |class: &str, annotations: Value| {
        json!({"metadata": {"annotations": annotations}, "spec": {"ingressClassName": class,
            "tls": [{"hosts": ["i.example"], "secretName": "cert"}],
            "rules": [{"host": "i.example", "http": {"paths": [
                {"pathType": "Prefix", "path": "/", "backend": {"service": {"name": "web", "port": {"name": "p"}}}}]}}]}})
    };
    let secrets = |host: &str| serde_json::to_value(secret("certs", "cert", host)).expect("JSON");
    let mut own_secret = secrets("i.example");
    own_secret["metadata"]["namespace"] = json!("a");
    let group = "gateway.networking.k8s.io";
    let p = |port: u16| json!([{"name": "p", "port": port}]);
    let web = json!({"name": "web", "namespace": "a", "port": 80});
    vec![
        versions(
            "GatewayClass",
            "",
            "scaleup",
            vec![
                json!({"spec": {"controllerName": "scaleup.dev/gateway"}}),
                json!({"spec": {"controllerName": "x.example/y"}}),
            ],
        ),
        versions(
            "IngressClass",
            "",
            "scaleup",
            vec![json!({"spec": {"controller": "scaleup.dev/ingress"}}), json!({"spec": {"controller": "x"}})],
        ),
        versions(
            "Gateway",
            "infra",
            "edge",
            vec![
                gateway(json!([http(&all, ""), https])),
                gateway(json!([http(&labels, "*.example"), https, tcp(90)])),
                gateway(json!([tcp(80)])),
            ],
        ),
        versions("Gateway", "other", "edge-two", vec![gateway(json!([http(&all, "")])), gateway(json!([tcp(443)]))]),
        versions("Namespace", "", "a", vec![json!({"metadata": {"labels": {"a": "b"}}}), json!({})]),
        versions(
            "Node",
            "",
            "n",
            vec![
                json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "z"}}}),
                json!({"metadata": {"labels": {"topology.kubernetes.io/region": "r"}}}),
            ],
        ),
        versions(
            "Service",
            "a",
            "web",
            vec![service(p(80)), service(p(81)), service(json!([{"name": "p", "port": 80, "appProtocol": "https"}]))],
        ),
        versions("Service", "b", "api", vec![service(p(80)), service(json!([{"name": "q", "port": 80}]))]),
        versions(
            "EndpointSlice",
            "a",
            "one",
            vec![slice("web", "10.0.0.1"), slice("api", "10.0.0.2"), slice("web", "10.0.0.3")],
        ),
        versions(
            "HTTPRoute",
            "a",
            "route",
            vec![http_route("a.example", web.clone()), http_route("*.example", json!({"name": "gone", "port": 1}))],
        ),
        versions(
            "HTTPRoute",
            "b",
            "second",
            vec![http_route("b.example", web.clone()), http_route("a.example", json!({"name": "api", "port": 80}))],
        ),
        versions(
            "GRPCRoute",
            "a",
            "grpc",
            vec![json!({"spec": {"parentRefs": [{"name": "edge", "namespace": "infra"}],
            "rules": [{"matches": [{"method": {"service": "s"}}], "backendRefs": [{"name": "web", "port": 80}]}]}})],
        ),
        versions(
            "TCPRoute",
            "a",
            "tcp",
            vec![
                json!({"spec": {"parentRefs": [{"name": "edge", "namespace": "infra"}], "rules": [{"backendRefs": [{"name": "web", "port": 80}]}]}}),
            ],
        ),
        versions(
            "TCPRoute",
            "b",
            "tcp-second",
            vec![
                json!({"spec": {"parentRefs": [{"name": "edge", "namespace": "infra"}], "rules": [{"backendRefs": [web]}]}}),
            ],
        ),
        versions(
            "Ingress",
            "a",
            "ingress",
            vec![
                ingress("scaleup", json!({})),
                ingress("x", json!({})),
                ingress("scaleup", json!({"scaleup.dev/ssl-redirect": "true"})),
            ],
        ),
        versions("ReferenceGrant", "a", "grant", vec![grant("HTTPRoute", "Service"), grant("TCPRoute", "Service")]),
        versions("ReferenceGrant", "certs", "grant", vec![grant("Gateway", "Secret")]),
        vec![secrets("a.example"), secrets("b.example")],
        vec![own_secret],
        versions(
            "TrafficPolicy",
            "a",
            "on-route",
            vec![
                policy(
                    json!({"group": group, "kind": "HTTPRoute", "name": "route"}),
                    json!({"timeouts": {"request": "1s"}}),
                ),
                policy(json!({"group": group, "kind": "HTTPRoute", "name": "route"}), json!({"queue": {}})),
            ],
        ),
        versions(
            "TrafficPolicy",
            "a",
            "on-service",
            vec![
                policy(
                    json!({"kind": "Service", "name": "web"}),
                    json!({"timeouts": {"idle": "1s"}, "circuitBreaker": {"maxRequests": 5}}),
                ),
                policy(
                    json!({"kind": "Service", "name": "web"}),
                    json!({"upstreamTls": {"hostname": "h", "caConfigMap": "ca"}}),
                ),
            ],
        ),
        versions(
            "TrafficPolicy",
            "infra",
            "on-gateway",
            vec![
                policy(
                    json!({"group": group, "kind": "Gateway", "name": "edge"}),
                    json!({"proxyProtocol": {"accept": true, "trustedSources": ["10.0.0.0/8"]}}),
                ),
                policy(
                    json!({"group": group, "kind": "Gateway", "name": "edge", "sectionName": "http"}),
                    json!({"limits": {"maxRequestBodyBytes": 1}}),
                ),
            ],
        ),
        versions("ConfigMap", "a", "ca", vec![json!({"data": {"ca.crt": "x"}}), json!({"data": {}})]),
        versions(
            "BackendTLSPolicy",
            "a",
            "tls",
            vec![json!({"spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "web"}],
            "validation": {"hostname": "h.example", "wellKnownCACertificates": "System"}}})],
        ),
    ]
}

/// Numbers that look random and are the same every time (a linear congruential generator).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("small") % limit
    }
}

#[test]
fn any_sequence_of_events_ends_where_its_objects_do() {
    let slots = slots();
    let config = PlanConfig { node_name: "n".to_owned(), ..PlanConfig::default() };
    let mut report = Report { settled: true, ..Report::default() };
    for port in [80, 443, 90] {
        report.listeners.insert(super::routes::HostPort { port, protocol: super::Protocol::Tcp }, None);
    }
    let (mut served, mut told) = (0, 0);
    for seed in 0..40 {
        let mut numbers = Numbers(seed);
        let mut incremental = Compiler::new(config.clone());
        // Half of the sequences begin with everything there is.
        let first = slots.iter().map(|slot| slot[0].clone()).enumerate().filter(|_| seed % 2 == 0);
        let mut alive: BTreeMap<usize, Value> = first.collect();
        alive.values().for_each(|value| incremental.apply(object(value.clone()).expect("an object")));
        for step in 0..60 {
            let at = numbers.below(slots.len());
            // Nodes are not forgotten, and a Secret is compared with its predecessor: they are only exchanged.
            if numbers.below(4) == 0 && slots[at][0]["kind"] != "Node" {
                if let Some(gone) = alive.remove(&at) {
                    let gone = object(gone).expect("an object");
                    incremental.delete(gone.kind(), &object_key(gone.metadata()).expect("a key"));
                }
            } else {
                let version = slots[at][numbers.below(slots[at].len())].clone();
                incremental.apply(object(version.clone()).expect("an object"));
                alive.insert(at, version);
            }
            if numbers.below(3) > 0 {
                continue;
            }
            let objects: Vec<Value> = alive.values().cloned().collect();
            let mut full = compiler(config.clone(), &objects).expect("valid objects");
            assert_eq!(incremental.snapshot(), full.snapshot(), "seed {seed}, step {step}: {objects:#?}");
            let plans = [&mut incremental, &mut full]
                .map(|compiler| compiler.statuses(&report, "192.0.2.1", Default::default()));
            assert_eq!(plans[0], plans[1], "seed {seed}, step {step}");
            served += super::testing::describe(&incremental.snapshot()).len();
            told += plans[0].patches.len();
        }
    }
    assert!(served > 1_000 && told > 2_000, "the sequences do nothing: {served} rules, {told} statuses");
}

/// A Gateway with `count` HTTPRoutes over a tenth as many Services, each with an endpoint.
fn large(count: usize) -> Compiler {
    let mut objects = vec![
        json!({"kind": "GatewayClass", "metadata": {"name": "scaleup"}, "spec": {"controllerName": "scaleup.dev/gateway"}}),
        json!({"kind": "Gateway", "metadata": {"namespace": "infra", "name": "edge"}, "spec": {"gatewayClassName": "scaleup",
            "listeners": [{"name": "http", "port": 80, "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "All"}}}]}}),
    ];
    for at in 0..count / 10 {
        objects.push(json!({"kind": "Service", "metadata": {"namespace": "a", "name": format!("s{at}")}, "spec": {"ports": [{"port": 80}]}}));
        objects.push(large_slice(at, 1));
    }
    objects.extend((0..count).map(|at| large_route(at, "/")));
    compiler(PlanConfig::default(), &objects).expect("valid objects")
}

fn large_route(at: usize, path: &str) -> Value {
    let mut route = http_route(&format!("h{at}.example"), json!({"name": format!("s{}", at / 10), "port": 80}));
    route["kind"] = json!("HTTPRoute");
    route["metadata"] = json!({"namespace": "a", "name": format!("r{at}")});
    route["spec"]["rules"][0]["matches"] = json!([{"path": {"value": path}}]);
    route
}

fn large_slice(at: usize, octet: u8) -> Value {
    json!({"kind": "EndpointSlice", "metadata": {"namespace": "a", "name": format!("s{at}"), "labels": {"kubernetes.io/service-name": format!("s{at}")}},
           "addressType": "IPv4", "ports": [{"port": 8080}],
           "endpoints": [{"addresses": [format!("10.{}.{}.{octet}", at / 250, at % 250)]}]})
}

/// What it costs is printed, for people: `cargo test -p scaleup-lb --lib incremental -- --nocapture`.
#[test]
fn a_change_among_thousands_of_routes_touches_little() {
    let mut compiler = large(5_000);
    let before = compiler.snapshot();
    let mut took = [Vec::new(), Vec::new()];
    for round in 0..20_u8 {
        let slice = object(large_slice(7, round)).expect("a slice");
        let start = Instant::now();
        compiler.apply(slice);
        let after = compiler.snapshot();
        took[0].push(start.elapsed().as_micros());
        assert!(before.listeners.iter().all(|(port, plan)| Arc::ptr_eq(plan, &after.listeners[port])));
        assert!(Arc::ptr_eq(&before.routed, &after.routed));
    }
    let rules = |snapshot: &super::Snapshot| {
        let super::routes::Mode::Http(http) = &snapshot.listeners.values().next().expect("a port").mode else {
            panic!()
        };
        let hosts = http.listeners.values().next().expect("a listener").clone();
        hosts.hosts.values().map(|rules| rules[0].clone()).collect::<Vec<_>>()
    };
    for round in 0..20 {
        let route = object(large_route(42, &format!("/{round}"))).expect("a route");
        let start = Instant::now();
        compiler.apply(route);
        let after = compiler.snapshot();
        took[1].push(start.elapsed().as_micros());
        let shared = rules(&before).iter().zip(rules(&after)).filter(|(old, new)| Arc::ptr_eq(old, new)).count();
        assert_eq!(shared, 4_999);
    }
    took.iter_mut().for_each(|took| took.sort_unstable());
    println!("median of 20: an endpoint {} µs, a route {} µs", took[0][10], took[1][10]);
}
