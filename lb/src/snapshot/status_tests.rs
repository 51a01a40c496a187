//! What is written into statuses, by value.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::statuses::Plan;
use super::testing::{compiler, object};
use super::{Compiler, Kind, PlanConfig, Protocol};
use crate::listeners::{Problem, Report};
use crate::snapshot::routes::HostPort;

const IP: &str = "192.0.2.10";

fn report(ports: &[(u16, bool)]) -> Report {
    let mut report = Report { settled: true, ..Report::default() };
    for (port, bound) in ports {
        let problem = Problem { reason: "PortConflict", message: "somebody has it".to_owned() };
        report.listeners.insert(HostPort { port: *port, protocol: Protocol::Tcp }, (!bound).then_some(problem));
    }
    report
}

fn gateway(listeners: Value) -> Value {
    json!({"kind": "Gateway", "metadata": {"namespace": "infra", "name": "edge", "generation": 3, "resourceVersion": "7"},
           "spec": {"gatewayClassName": "scaleup", "listeners": listeners}})
}

fn world(extra: &[Value]) -> Compiler {
    let mut all = vec![
        json!({"kind": "GatewayClass", "metadata": {"name": "scaleup"}, "spec": {"controllerName": "scaleup.dev/gateway"}}),
        json!({"kind": "IngressClass", "metadata": {"name": "scaleup"}, "spec": {"controller": "scaleup.dev/ingress"}}),
        json!({"kind": "Service", "metadata": {"namespace": "infra", "name": "web"}, "spec": {"ports": [{"name": "http", "port": 80}]}}),
    ];
    all.extend_from_slice(extra);
    let mut compiler = compiler(PlanConfig::default(), &all).expect("valid objects");
    compiler.snapshot();
    compiler
}

fn planned(compiler: &mut Compiler, report: &Report) -> Plan {
    compiler.reported();
    compiler.statuses(report, IP, k8s_openapi::jiff::Timestamp::UNIX_EPOCH)
}

fn status(plan: &Plan, kind: Kind) -> Option<Value> {
    plan.patches.iter().find(|patch| patch.kind == kind).map(|patch| patch.status.clone())
}

/// `Type=Status/Reason` of conditions.
fn conditions(list: &Value) -> Vec<String> {
    let text = |c: &Value, field: &str| c[field].as_str().unwrap_or_default().to_owned();
    list.as_array()
        .into_iter()
        .flatten()
        .map(|c| format!("{}={}/{}", text(c, "type"), text(c, "status"), text(c, "reason")))
        .collect()
}

#[test]
fn a_gateway_says_what_its_listeners_do() {
    let listeners = json!([
        {"name": "http", "port": 80, "protocol": "HTTP"}, {"name": "taken", "port": 81, "protocol": "HTTP"},
        {"name": "tls", "port": 443, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": "gone"}]}},
        {"name": "clash", "port": 80, "protocol": "TCP"},
        {"name": "kinds", "port": 82, "protocol": "HTTP", "allowedRoutes": {"kinds": [{"kind": "TCPRoute"}]}},
    ]);
    let route = json!({"kind": "HTTPRoute", "metadata": {"namespace": "infra", "name": "r"}, "spec": {"parentRefs": [{"name": "edge"}],
        "rules": [{"backendRefs": [{"name": "web", "port": 80}]}]}});
    let mut compiler = world(&[gateway(listeners), route]);
    assert!(status(&planned(&mut compiler, &Report::default()), Kind::Gateway).is_none(), "before the first round");
    assert!(
        status(&planned(&mut compiler, &report(&[(80, true)])), Kind::Gateway).is_none(),
        "ports are still being bound"
    );
    let ports = report(&[(80, true), (81, false), (82, true), (443, true)]);
    let plan = planned(&mut compiler, &ports);
    let gateway = status(&plan, Kind::Gateway).expect("a status");
    assert_eq!(
        plan.patches.iter().find(|patch| patch.kind == Kind::Gateway).expect("a patch").resource_version.as_deref(),
        Some("7")
    );
    assert_eq!(gateway["addresses"], json!([{"type": "IPAddress", "value": IP}]));
    assert_eq!(conditions(&gateway["conditions"]), ["Accepted=True/ListenersNotValid", "Programmed=True/Programmed"]);
    assert_eq!(gateway["conditions"][0]["observedGeneration"], json!(3));
    let of: BTreeMap<&str, Vec<String>> = gateway["listeners"]
        .as_array()
        .expect("listeners")
        .iter()
        .map(|listener| (listener["name"].as_str().expect("a name"), conditions(&listener["conditions"])))
        .collect();
    let fine = ["Accepted=True/Accepted", "Conflicted=False/NoConflicts", "ResolvedRefs=True/ResolvedRefs"];
    assert_eq!(of["http"], [&fine[..], &["Programmed=True/Programmed"]].concat());
    assert_eq!(of["taken"], [&fine[..], &["Programmed=False/PortConflict"]].concat());
    assert_eq!(
        of["tls"],
        [&fine[..2], &["ResolvedRefs=False/InvalidCertificateRef", "Programmed=False/Invalid"]].concat()
    );
    assert_eq!(
        of["clash"],
        [
            "Accepted=False/ProtocolConflict",
            "Conflicted=True/ProtocolConflict",
            "ResolvedRefs=True/ResolvedRefs",
            "Programmed=False/Invalid"
        ]
    );
    assert_eq!(of["kinds"][2], "ResolvedRefs=False/InvalidRouteKinds");
    let attached: Vec<&Value> = gateway["listeners"]
        .as_array()
        .expect("listeners")
        .iter()
        .map(|listener| &listener["attachedRoutes"])
        .collect();
    assert_eq!(attached, [&json!(1), &json!(1), &json!(1), &json!(0), &json!(0)]);
}

#[test]
fn a_gateway_has_the_addresses_that_it_asks_for_or_says_that_it_has_not() {
    let theirs = "192.0.2.11";
    let asked = |addresses: &Value, current: &[&str], generation: Option<i64>| {
        let mut gateway = gateway(json!([{"name": "http", "port": 80, "protocol": "HTTP"}]));
        gateway["spec"]["addresses"] = addresses.clone();
        let values: Vec<Value> = current.iter().map(|ip| json!({"type": "IPAddress", "value": ip})).collect();
        let programmed = json!({"type": "Programmed", "status": "True", "reason": "Programmed", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": generation});
        gateway["status"] = json!({"addresses": values, "conditions": [programmed], "listeners": []});
        gateway
    };
    let check = |addresses: Value, current: &[&str], expected: [&str; 2], then: &[&str]| {
        let mut compiler = world(&[asked(&addresses, current, None)]);
        let status = status(&planned(&mut compiler, &report(&[(80, true)])), Kind::Gateway).expect("a status");
        assert_eq!(conditions(&status["conditions"]), expected, "{status}");
        let values: Vec<&str> =
            status["addresses"].as_array().expect("addresses").iter().filter_map(|a| a["value"].as_str()).collect();
        assert_eq!(values, then);
    };
    let (accepted, unsupported) = ("Accepted=True/Accepted", "Accepted=False/UnsupportedAddress");
    let (programmed, unusable) = ("Programmed=True/Programmed", "Programmed=False/AddressNotUsable");
    check(json!([]), &[], [accepted, programmed], &[IP]);
    check(json!([{"type": "IPAddress"}]), &[], [accepted, programmed], &[IP]);
    check(json!([{"type": "IPAddress", "value": ""}]), &[theirs], [accepted, programmed], &[IP, theirs]);
    check(json!([{"value": IP}]), &[], [accepted, programmed], &[IP]);
    check(json!([{"value": IP}, {"value": theirs}]), &[], [accepted, unusable], &[IP]);
    check(json!([{"value": IP}, {"value": theirs}]), &[theirs], [accepted, programmed], &[IP, theirs]);
    check(json!([{"value": "203.0.113.9"}]), &[IP], [accepted, unusable], &[]);
    check(json!([{"value": theirs}]), &[IP, theirs], [accepted, programmed], &[theirs]);
    check(json!([{"type": "Hostname", "value": "a.example"}]), &[IP], [unsupported, "Programmed=False/Invalid"], &[]);
    check(
        json!([{"value": IP}, {"type": "test.example/odd", "value": "x"}]),
        &[],
        [unsupported, "Programmed=False/Invalid"],
        &[],
    );
    // Where only others may serve it, what they have said of this generation stands.
    let mut compiler = world(&[asked(&json!([{"value": theirs}]), &[], Some(3))]);
    let status = status(&planned(&mut compiler, &report(&[(80, true)])), Kind::Gateway).expect("a status");
    assert!(conditions(&status["conditions"]).contains(&programmed.to_owned()), "{status}");
}

#[test]
fn a_gateway_that_is_not_accepted_serves_nothing() {
    let mut edge = gateway(json!([{"name": "http", "port": 80, "protocol": "HTTP"}]));
    edge["spec"]["addresses"] = json!([{"type": "NamedAddress", "value": "edge"}]);
    let route = json!({"kind": "HTTPRoute", "metadata": {"namespace": "infra", "name": "r"}, "spec": {"parentRefs": [{"name": "edge"}],
        "rules": [{"backendRefs": [{"name": "web", "port": 80}]}]}});
    let mut compiler = world(&[edge, route]);
    assert_eq!(compiler.snapshot().listeners.len(), 0);
    let plan = planned(&mut compiler, &report(&[]));
    let gateway = status(&plan, Kind::Gateway).expect("a status");
    let listener = conditions(&gateway["listeners"][0]["conditions"]);
    assert_eq!(listener[0], "Accepted=False/Pending");
    assert_eq!(listener[3], "Programmed=False/Invalid");
    let route = status(&plan, Kind::HTTPRoute).expect("a status");
    assert_eq!(conditions(&route["parents"][0]["conditions"])[0], "Accepted=False/NoMatchingParent");
}

/// What is planned is written; after that nothing is left to do.
fn settle(compiler: &mut Compiler, objects: &[Value], report: &Report) {
    let plan = planned(compiler, report);
    assert!(!plan.patches.is_empty());
    for patch in plan.patches {
        let known = objects
            .iter()
            .find(|object| object["kind"] == patch.kind.as_str() && object["metadata"]["name"] == *patch.key.name);
        let mut written = known.cloned().expect("an object");
        written["status"] = patch.status;
        compiler.apply(object(written).expect("an object"));
    }
    compiler.snapshot();
    assert_eq!(planned(compiler, report).patches, []);
}

#[test]
fn what_was_written_is_not_written_again() {
    let objects = [
        json!({"kind": "GatewayClass", "metadata": {"name": "scaleup"}, "spec": {"controllerName": "scaleup.dev/gateway"}}),
        gateway(json!([{"name": "http", "port": 80, "protocol": "HTTP"}])),
        json!({"kind": "HTTPRoute", "metadata": {"namespace": "infra", "name": "r"}, "spec": {"parentRefs": [{"name": "edge"}, {"name": "edge", "sectionName": "no"}],
            "rules": [{"backendRefs": [{"name": "gone", "port": 80}]}, {"matches": [{"method": "X"}]}]}}),
        json!({"kind": "Ingress", "metadata": {"namespace": "infra", "name": "i"}, "spec": {"ingressClassName": "scaleup",
            "defaultBackend": {"service": {"name": "web", "port": {"number": 80}}}}}),
        json!({"kind": "TrafficPolicy", "metadata": {"namespace": "infra", "name": "p"}, "spec": {"targetRefs": [{"kind": "Service", "name": "web"}]}}),
        json!({"kind": "BackendTLSPolicy", "metadata": {"namespace": "infra", "name": "b"}, "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "gone"}],
            "validation": {"hostname": "h.example"}}}),
    ];
    let mut compiler = world(&objects);
    settle(&mut compiler, &objects, &report(&[(80, true)]));
    // Another load balancer, which has the port to itself, wants its own address there and nothing else.
    let plan = compiler.statuses(&report(&[(80, true)]), "192.0.2.11", Default::default());
    let gateway = status(&plan, Kind::Gateway).expect("a status");
    assert_eq!(gateway["addresses"].as_array().expect("addresses").len(), 2);
    // One that has not leaves everything as it is.
    let plan = compiler.statuses(&report(&[(80, false)]), "192.0.2.11", Default::default());
    assert_eq!(plan.patches, []);
    // The one that had it and lost it takes its address away.
    let gateway = status(&planned(&mut compiler, &report(&[(80, false)])), Kind::Gateway).expect("a status");
    assert_eq!(gateway["addresses"], json!([]));
    assert!(conditions(&gateway["conditions"]).contains(&"Programmed=False/PortConflict".to_owned()));
}

#[test]
fn a_route_says_what_became_of_it_at_each_parent() {
    let listeners = json!([{"name": "http", "port": 80, "protocol": "HTTP", "hostname": "*.a.example"},
                           {"name": "tcp", "port": 90, "protocol": "TCP"}]);
    #[track_caller]
    fn check(listeners: &Value, kind: &str, spec: Value, expected: &[&str]) {
        let mut spec = spec;
        spec["parentRefs"] = spec.get("parentRefs").cloned().unwrap_or_else(|| json!([{"name": "edge"}]));
        let route = json!({"kind": kind, "metadata": {"namespace": "infra", "name": "r", "creationTimestamp": "2026-01-02T00:00:00Z"}, "spec": spec,
            "status": {"parents": [{"controllerName": "other.example/c", "parentRef": {"name": "x"}, "conditions": []}]}});
        let older = json!({"kind": "TCPRoute", "metadata": {"namespace": "infra", "name": "old", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"parentRefs": [{"name": "edge"}], "rules": [{"backendRefs": [{"name": "web", "port": 80}]}]}});
        let mut compiler = world(&[gateway(listeners.clone()), route, older]);
        let plan = planned(&mut compiler, &report(&[]));
        let patch = plan.patches.iter().find(|patch| &*patch.key.name == "r").expect("a status");
        let parents = patch.status["parents"].as_array().expect("parents");
        assert_eq!(parents[0]["controllerName"], "other.example/c", "what others wrote stays");
        let got: Vec<String> = parents[1..].iter().flat_map(|parent| conditions(&parent["conditions"])).collect();
        assert_eq!(got, expected);
    }
    let resolved = "ResolvedRefs=True/ResolvedRefs";
    let web = json!([{"backendRefs": [{"name": "web", "port": 80}]}]);
    let http = |spec: Value, expected: &[&str]| check(&listeners, "HTTPRoute", spec, expected);
    http(json!({"rules": web}), &["Accepted=True/Accepted", resolved]);
    http(json!({"rules": web, "hostnames": ["b.example"]}), &["Accepted=False/NoMatchingListenerHostname", resolved]);
    http(
        json!({"rules": web, "parentRefs": [{"name": "edge", "sectionName": "x"}]}),
        &["Accepted=False/NoMatchingParent", resolved],
    );
    http(
        json!({"rules": web, "parentRefs": [{"name": "edge", "sectionName": "tcp"}]}),
        &["Accepted=False/NotAllowedByListeners", resolved],
    );
    http(
        json!({"rules": [{"backendRefs": [{"name": "gone", "port": 80}]}]}),
        &["Accepted=True/Accepted", "ResolvedRefs=False/BackendNotFound"],
    );
    http(
        json!({"rules": [{"backendRefs": [{"name": "web", "namespace": "x", "port": 80}]}]}),
        &["Accepted=True/Accepted", "ResolvedRefs=False/RefNotPermitted"],
    );
    http(
        json!({"rules": [{"backendRefs": [{"name": "web", "kind": "Bucket"}]}]}),
        &["Accepted=True/Accepted", "ResolvedRefs=False/InvalidKind"],
    );
    http(json!({"rules": [{"matches": [{"method": "X"}]}]}), &["Accepted=False/UnsupportedValue", resolved]);
    http(
        json!({"rules": [{"matches": [{"method": "X"}]}, web[0]]}),
        &["Accepted=True/Accepted", resolved, "PartiallyInvalid=True/UnsupportedValue"],
    );
    check(&listeners, "TCPRoute", json!({"rules": web}), &["Accepted=False/RouteConflict", resolved]);
}

#[test]
fn a_policy_says_what_became_of_it_at_each_target() {
    let group = "gateway.networking.k8s.io";
    let policy = |name: &str, created: &str, target: Value, spec: Value| {
        let mut spec = spec;
        spec["targetRefs"] = json!([target]);
        json!({"kind": "TrafficPolicy", "metadata": {"namespace": "infra", "name": name, "creationTimestamp": created}, "spec": spec})
    };
    let check = |target: Value, spec: Value, reason: &str, message: &str| {
        let older = policy(
            "a",
            "2026-01-01T00:00:00Z",
            json!({"kind": "Service", "name": "web"}),
            json!({"limits": {"maxRequestBodyBytes": 1}}),
        );
        let mut compiler = world(&[gateway(json!([])), older, policy("p", "2026-01-02T00:00:00Z", target, spec)]);
        let plan = planned(&mut compiler, &report(&[]));
        let patch = plan.patches.iter().find(|patch| &*patch.key.name == "p").expect("a status");
        let condition = &patch.status["ancestors"][0]["conditions"][0];
        assert_eq!(condition["reason"], reason, "{condition}");
        assert!(condition["message"].as_str().expect("a message").contains(message), "{condition}");
    };
    let service = json!({"kind": "Service", "name": "web"});
    let edge = json!({"group": group, "kind": "Gateway", "name": "edge"});
    check(service.clone(), json!({"queue": {"maxDepth": 5}}), "Accepted", "");
    check(service.clone(), json!({"queue": {"maxDepth": 0}}), "Invalid", "queue.maxDepth");
    check(service.clone(), json!({"limits": {"maxRequestBodyBytes": 2}}), "Conflicted", "infra/a");
    check(service.clone(), json!({"limits": {"maxRequestBodyBytes": 2}, "hedging": {"delay": "1s"}}), "Accepted", "");
    check(service, json!({"upstreamTls": {"hostname": "h", "caConfigMap": "no"}}), "Invalid", "ConfigMap");
    check(json!({"kind": "Service", "name": "gone"}), json!({}), "TargetNotFound", "gone");
    check(json!({"kind": "Pod", "name": "web"}), json!({}), "Invalid", "cannot be targeted");
    check(edge.clone(), json!({"timeouts": {"request": "1s"}}), "Accepted", "");
    check(
        edge.clone(),
        json!({"timeouts": {"connect": "1s"}, "queue": {}}),
        "Invalid",
        "queue, timeouts.connect are about a Service's endpoints",
    );
    check(edge, json!({"proxyProtocol": {"accept": true}}), "Invalid", "trustedSources");
    let ingress = json!({"group": "networking.k8s.io", "kind": "Ingress", "name": "i"});
    check(
        ingress,
        json!({"proxyProtocol": {"accept": true, "trustedSources": ["10.0.0.0/8"]}}),
        "Invalid",
        "Gateways and Services",
    );
}

#[test]
fn a_policy_says_what_its_ports_cannot_follow() {
    let check = |port: Value, section: Option<&str>, spec: Value, expected: Option<&str>| {
        let service = json!({"kind": "Service", "metadata": {"namespace": "infra", "name": "s"}, "spec": {"clusterIP": "10.96.0.9", "ports": [port]}});
        let mut policy =
            json!({"kind": "TrafficPolicy", "metadata": {"namespace": "infra", "name": "p"}, "spec": spec});
        policy["spec"]["targetRefs"] = json!([{"kind": "Service", "name": "s", "sectionName": section}]);
        let plan = planned(&mut world(&[service, policy]), &report(&[]));
        let status = status(&plan, Kind::TrafficPolicy).expect("a status");
        let conditions = &status["ancestors"][0]["conditions"];
        assert_eq!(conditions[0]["status"], "True", "{conditions}");
        match expected {
            Some(text) => {
                assert_eq!(conditions[1]["type"], "PartiallyInvalid", "{conditions}");
                assert!(
                    conditions[1]["message"].as_str().is_some_and(|message| message.starts_with(text)),
                    "{conditions}"
                );
            }
            None => assert_eq!(conditions[1], Value::Null),
        }
    };
    let send = json!({"proxyProtocol": {"send": "V1"}});
    let tls = json!({"upstreamTls": {"hostname": "a.example"}});
    let http = json!({"name": "http", "port": 80});
    let tcp = json!({"name": "db", "port": 5432});
    let udp = json!({"name": "dns", "port": 53, "protocol": "UDP"});
    for port in [http.clone(), tcp.clone(), json!({"port": 443, "appProtocol": "https"})] {
        check(port.clone(), None, send.clone(), None);
        check(port, None, tls.clone(), None);
    }
    check(udp.clone(), None, send.clone(), Some("proxyProtocol.send: port 53 is UDP"));
    check(udp.clone(), Some("dns"), tls.clone(), Some("upstreamTls: port 53 is UDP"));
    check(udp.clone(), Some("other"), tls, None);
    check(
        udp,
        None,
        json!({"proxyProtocol": {"send": "V2"}, "upstreamTls": {"hostname": "a"}}),
        Some("proxyProtocol.send, upstreamTls: port 53"),
    );
}

#[test]
fn proxy_protocol_is_for_the_oldest_on_a_port_to_ask() {
    let policy = json!({"kind": "TrafficPolicy", "metadata": {"namespace": "infra", "name": "p"}, "spec": {
        "targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"}],
        "proxyProtocol": {"accept": true, "trustedSources": ["10.0.0.0/8"]}}});
    let ingress = json!({"kind": "Ingress", "metadata": {"namespace": "infra", "name": "i", "creationTimestamp": "2020-01-01T00:00:00Z"},
        "spec": {"ingressClassName": "scaleup", "defaultBackend": {"service": {"name": "web", "port": {"number": 80}}}}});
    let edge = gateway(json!([{"name": "http", "port": 80, "protocol": "HTTP"}]));
    let check = |objects: &[Value], reason: &str, accepts: bool| {
        let mut compiler = world(objects);
        let plan = planned(&mut compiler, &report(&[]));
        let status = status(&plan, Kind::TrafficPolicy).expect("a status");
        assert_eq!(status["ancestors"][0]["conditions"][0]["reason"], reason);
        let snapshot = compiler.snapshot();
        assert_eq!(snapshot.listeners.values().next().expect("a listener").accept_proxy.is_some(), accepts);
    };
    check(&[edge.clone(), policy.clone()], "Accepted", true);
    check(&[edge, policy, ingress], "Conflicted", false);
}

/// What a policy with `policyRef`, and a Service with the annotation, say about the plugin `infra/canary`.
#[track_caller]
fn plugin(compiler: &mut Compiler, expected: [&str; 2]) {
    let plan = planned(compiler, &report(&[]));
    let of_policy = status(&plan, Kind::TrafficPolicy).map(|status| status["ancestors"][0]["conditions"].clone());
    let of_service = status(&plan, Kind::Service).map(|status| status["conditions"].clone());
    let told = |list: Option<Value>, type_: &str| {
        let all = conditions(&list.unwrap_or_default());
        all.into_iter().find(|condition| condition.starts_with(type_)).unwrap_or_default()
    };
    let told = [told(of_policy, "ResolvedRefs="), told(of_service, "traffic.scaleup.dev/PolicyResolved=")];
    assert_eq!(told, expected);
}

#[test]
fn a_plugin_that_is_not_there_is_told() {
    let policy = |kind: &str, name: &str| {
        json!({"kind": "TrafficPolicy", "metadata": {"namespace": "infra", "name": "p"}, "spec": {
            "targetRefs": [{"kind": "Service", "name": "web"}], "policyRef": {"kind": kind, "name": name}}})
    };
    let service = json!({"kind": "Service", "spec": {"ports": [{"name": "http", "port": 80}]},
        "metadata": {"namespace": "infra", "name": "annotated", "annotations": {"traffic.scaleup.dev/policy": "canary"}}});
    let registry = std::sync::Arc::new(scaleup_plugins::Registry::default());
    let mut compiler = world(&[policy("", "canary"), service]).with_plugins(registry.clone());
    plugin(
        &mut compiler,
        ["ResolvedRefs=False/PluginNotFound", "traffic.scaleup.dev/PolicyResolved=False/PluginNotFound"],
    );
    let key = scaleup_plugins::PluginKey::namespaced("infra", "canary");
    let slot = registry.slot(&key, scaleup_plugins::World::Routing);
    slot.set_known(true);
    plugin(
        &mut compiler,
        ["ResolvedRefs=False/PluginNotLoaded", "traffic.scaleup.dev/PolicyResolved=False/PluginNotLoaded"],
    );
    let plan = planned(&mut compiler, &report(&[]));
    let told = status(&plan, Kind::TrafficPolicy).expect("a status").to_string();
    assert!(told.contains("WasmPlugin infra/canary cannot decide yet: no module has been loaded yet"), "{told}");
    assert!(told.contains(r#""type":"Accepted""#) && !told.contains("Conflicted"), "{told}");
    // The other load balancer has it: this one leaves the condition alone.
    let mut loaded = policy("", "canary");
    loaded["status"] = json!({"ancestors": [{"ancestorRef": {"group": "", "kind": "Service", "name": "web"}, "controllerName": "scaleup.dev/gateway",
        "conditions": [
            {"type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "observedGeneration": 0, "lastTransitionTime": "1970-01-01T00:00:00Z"},
            {"type": "ResolvedRefs", "status": "True", "reason": "ResolvedRefs", "message": "WasmPlugin infra/canary", "observedGeneration": 0,
             "lastTransitionTime": "1970-01-01T00:00:00Z"}]}]});
    let mut compiler = world(&[loaded]).with_plugins(registry.clone());
    assert_eq!(status(&planned(&mut compiler, &report(&[])), Kind::TrafficPolicy), None);
    slot.set_known(false);
    plugin(&mut compiler, ["ResolvedRefs=False/PluginNotFound", ""]);

    let of_cluster = policy("ClusterWasmPlugin", "canary");
    let mut compiler = world(&[of_cluster]).with_plugins(registry);
    plugin(&mut compiler, ["ResolvedRefs=False/PluginNotFound", ""]);
    let snapshot = compiler.snapshot();
    let web = &snapshot.services[&super::ServiceKey::new("infra", "web")];
    let key = web.ports[0].policy.plugin.as_ref().map(|plugin| plugin.key.clone());
    assert_eq!(key, Some(scaleup_plugins::PluginKey::cluster("canary")));
}

#[test]
fn an_ingress_has_our_address_while_its_port_is_bound() {
    let ingress = |ips: Value| {
        json!({"kind": "Ingress", "metadata": {"namespace": "infra", "name": "i"}, "status": {"loadBalancer": {"ingress": ips}},
            "spec": {"ingressClassName": "scaleup", "defaultBackend": {"service": {"name": "web", "port": {"number": 80}}}}})
    };
    let check = |ips: Value, bound: bool, expected: Option<Value>| {
        let mut compiler = world(&[ingress(ips)]);
        let status = status(&planned(&mut compiler, &report(&[(80, bound)])), Kind::Ingress);
        assert_eq!(status.map(|status| status["loadBalancer"]["ingress"].clone()), expected);
    };
    let (ours, theirs) = (json!({"ip": IP}), json!({"ip": "198.51.100.1"}));
    check(json!([]), true, Some(json!([ours])));
    check(json!([theirs]), true, Some(json!([theirs, ours])));
    check(json!([ours]), true, None);
    check(json!([theirs, ours]), false, Some(json!([theirs])));
    check(json!([]), false, None);
}

#[test]
fn a_plan_is_bounded_and_the_next_one_goes_on() {
    let listeners = json!([{"name": "http", "port": 80, "protocol": "HTTP"}]);
    let mut all = vec![gateway(listeners)];
    let route = |at: usize| {
        json!({"kind": "HTTPRoute", "metadata": {"namespace": "infra", "name": format!("r{at:03}"), "resourceVersion": "1"},
            "spec": {"parentRefs": [{"name": "edge"}], "rules": [{"backendRefs": [{"name": "web", "port": 80}]}]}})
    };
    all.extend((0..600).map(route));
    let mut compiler = world(&all);
    let mut planned = |statuses: &mut dyn FnMut(&super::statuses::StatusPatch, &mut Compiler)| {
        let plan = planned(&mut compiler, &report(&[(80, true)]));
        let routes: Vec<_> = plan.patches.iter().filter(|patch| patch.kind == Kind::HTTPRoute).collect();
        routes.iter().for_each(|patch| statuses(patch, &mut compiler));
        compiler.snapshot();
        (routes.first().map(|patch| patch.key.name.to_string()), routes.len(), plan.more)
    };
    let ignore = &mut |_: &super::statuses::StatusPatch, _: &mut Compiler| {};
    let write = &mut |patch: &super::statuses::StatusPatch, compiler: &mut Compiler| {
        let mut written = route(patch.key.name[1..].parse().expect("a number"));
        written["status"] = patch.status.clone();
        compiler.apply(object(written).expect("a route"));
    };
    assert_eq!(planned(ignore), (Some("r000".to_owned()), 256, true));
    assert_eq!(
        planned(write),
        (Some("r256".to_owned()), 256, true),
        "what could not be written does not hold up the others"
    );
    assert_eq!(planned(write), (Some("r512".to_owned()), 256, true), "the rest, and again from the start");
    assert_eq!(planned(write), (Some("r168".to_owned()), 88, false));
    assert_eq!(planned(write), (None, 0, false));
}
