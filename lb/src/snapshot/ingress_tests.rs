//! What Ingresses become, by value, beside Gateways and alone.

use serde_json::{Value, json};

use super::certificates::tests::secret;
use super::testing::{compiler, describe};
use super::{PlanConfig, Snapshot};

fn class(name: &str, controller: &str, default: bool) -> Value {
    let annotations = json!({"ingressclass.kubernetes.io/is-default-class": default.to_string()});
    json!({"kind": "IngressClass", "metadata": {"name": name, "annotations": annotations}, "spec": {"controller": controller}})
}

fn service(name: &str) -> Value {
    json!({"kind": "Service", "metadata": {"namespace": "d", "name": name},
           "spec": {"ports": [{"name": "web", "port": 80}, {"name": "admin", "port": 81}]}})
}

fn backend(name: &str, port: Value) -> Value {
    json!({"service": {"name": name, "port": port}})
}

fn path(kind: &str, path: &str, to: &str) -> Value {
    json!({"pathType": kind, "path": path, "backend": backend(to, json!({"number": 80}))})
}

fn ingress(name: &str, annotations: Value, spec: Value) -> Value {
    let metadata = json!({"namespace": "d", "name": name, "annotations": annotations, "creationTimestamp": "2026-01-01T00:00:00Z"});
    json!({"kind": "Ingress", "metadata": metadata, "spec": spec})
}

fn snapshot(extra: &[Value]) -> Snapshot {
    let mut all = vec![class("scaleup", "scaleup.dev/ingress", true), class("nginx", "k8s.io/ingress-nginx", false)];
    all.extend([service("a"), service("b")]);
    all.extend_from_slice(extra);
    compiler(PlanConfig::default(), &all).expect("valid objects").snapshot()
}

#[track_caller]
fn check(objects: &[Value], expected: &[&str]) {
    assert_eq!(describe(&snapshot(objects)), expected);
}

fn rules(host: &str, paths: Value) -> Value {
    json!([{"host": host, "http": {"paths": paths}}])
}

#[test]
fn only_ingresses_of_our_class_are_served() {
    let served = |annotations: Value, named: Value| {
        let mut spec = json!({"rules": rules("", json!([path("Prefix", "/", "a")]))});
        if !named.is_null() {
            spec["ingressClassName"] = named;
        }
        !snapshot(&[ingress("i", annotations, spec)]).listeners.is_empty()
    };
    let annotation = |class: &str| json!({"kubernetes.io/ingress.class": class});
    assert!(served(json!({}), json!("scaleup")));
    assert!(served(json!({}), Value::Null), "the default class");
    assert!(served(annotation("scaleup"), Value::Null));
    assert!(!served(json!({}), json!("nginx")));
    assert!(!served(json!({}), json!("unknown")));
    assert!(!served(annotation("nginx"), Value::Null));
    assert!(!served(annotation("scaleup"), json!("nginx")));
}

#[test]
fn hosts_paths_and_ports() {
    let spec = json!({"rules": [
        {"host": "A.example", "http": {"paths": [
            path("Exact", "/x", "a"), path("Prefix", "/p/", "b"), path("ImplementationSpecific", "", "a"),
            path("Prefix", "no-slash", "a"),
            {"pathType": "Prefix", "path": "/admin", "backend": backend("a", json!({"name": "admin"}))},
            {"pathType": "Prefix", "path": "/gone", "backend": backend("gone", json!({"number": 80}))},
            {"pathType": "Prefix", "path": "/port", "backend": backend("a", json!({"name": "other"}))},
        ]}},
        {"host": "*.b.example", "http": {"paths": [path("Prefix", "/", "b")]}},
        {"host": "bad host", "http": {"paths": [path("Prefix", "/", "b")]}},
    ]});
    check(
        &[ingress("i", json!({}), spec)],
        &[
            "80 http * a.example =/x -> d/a:80",
            "80 http * a.example /p -> d/b:80",
            "80 http * a.example / -> d/a:80",
            "80 http * a.example /admin -> d/a:81",
            "80 http * a.example /gone -> 500",
            "80 http * a.example /port -> 500",
            "80 http * *.b.example / -> d/b:80",
        ],
    );
}

#[test]
fn a_default_backend_takes_what_no_rule_matches() {
    let default = backend("b", json!({"number": 80}));
    check(&[ingress("i", json!({}), json!({"defaultBackend": default}))], &["80 http * * / -> d/b:80"]);
    check(
        &[ingress(
            "i",
            json!({}),
            json!({"defaultBackend": default, "rules": rules("h", json!([path("Exact", "/x", "a")]))}),
        )],
        &["80 http * h =/x -> d/a:80", "80 http * h / -> d/b:80", "80 http * * / -> d/b:80"],
    );
}

#[test]
fn names_in_tls_are_served_with_their_own_certificate() {
    let cert = serde_json::to_value(secret("d", "cert", "a.example")).expect("JSON");
    let spec = json!({
        "tls": [{"hosts": ["a.example"], "secretName": "cert"}, {"hosts": ["b.example"], "secretName": "missing"}],
        "rules": [{"host": "a.example", "http": {"paths": [path("Prefix", "/", "a")]}},
                  {"host": "b.example", "http": {"paths": [path("Prefix", "/", "b")]}},
                  {"host": "c.example", "http": {"paths": [path("Prefix", "/", "b")]}}]});
    let secure = [
        "443 site a.example http [d/cert]",
        "443 site b.example http []",
        "443 https * a.example / -> d/a:80",
        "443 https * b.example / -> d/b:80",
    ];
    let plain =
        ["80 http * a.example / -> d/a:80", "80 http * b.example / -> d/b:80", "80 http * c.example / -> d/b:80"];
    let both: Vec<&str> = plain.iter().chain(&secure).copied().collect();
    check(&[cert.clone(), ingress("i", json!({}), spec.clone())], &both);
    let redirected = ["80 http * a.example / 1 filters -> ", "80 http * b.example / 1 filters -> ", plain[2]];
    let both: Vec<&str> = redirected.iter().chain(&secure).copied().collect();
    for annotation in ["scaleup.dev/ssl-redirect", "nginx.ingress.kubernetes.io/force-ssl-redirect"] {
        check(&[cert.clone(), ingress("i", json!({annotation: "true"}), spec.clone())], &both);
    }
    let both: Vec<&str> = plain.iter().chain(&secure).copied().collect();
    check(&[cert, ingress("i", json!({"scaleup.dev/ssl-redirect": "false"}), spec)], &both);
}

#[test]
fn a_gateways_names_are_not_an_ingresss() {
    let gateway = json!([
        {"kind": "GatewayClass", "metadata": {"name": "scaleup"}, "spec": {"controllerName": "scaleup.dev/gateway"}},
        {"kind": "Gateway", "metadata": {"namespace": "g", "name": "g", "creationTimestamp": "2026-02-01T00:00:00Z"},
         "spec": {"gatewayClassName": "scaleup", "listeners": [
            {"name": "l", "port": 80, "protocol": "HTTP", "hostname": "*.g.example"}, {"name": "t", "port": 443, "protocol": "TCP"}]}},
    ]);
    let gateway = gateway.as_array().expect("an array");
    let spec = json!({"tls": [{"hosts": ["d.example"], "secretName": "x"}], "rules": [
        {"host": "a.g.example", "http": {"paths": [path("Prefix", "/", "a")]}},
        {"host": "d.example", "http": {"paths": [path("Prefix", "/", "b")]}}]});
    let ingress = ingress("i", json!({}), spec);
    // The Ingress is older: its HTTPS port is not the Gateway's for TCP.
    let expected =
        ["80 http * d.example / -> d/b:80", "443 site d.example http []", "443 https * d.example / -> d/b:80"];
    check(&[gateway[0].clone(), gateway[1].clone(), ingress.clone()], &expected);
    let mut compiler = compiler(
        PlanConfig::default(),
        &[gateway[0].clone(), gateway[1].clone(), class("scaleup", "scaleup.dev/ingress", true), ingress],
    )
    .expect("valid objects");
    compiler.snapshot();
    let report = crate::listeners::Report { settled: true, ..Default::default() };
    let plan = compiler.statuses(&report, "192.0.2.1", Default::default());
    let reasons: Vec<&str> = plan.problems.values().flatten().map(|problem| problem.reason).collect();
    assert!(reasons.contains(&"HostConflict") && reasons.contains(&"InvalidCertificateRef"), "{reasons:?}");
}
