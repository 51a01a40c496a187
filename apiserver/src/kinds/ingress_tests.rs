//! Ingresses and IngressClasses: what is filled in and what is refused.

use serde_json::json;

use super::super::field::test::*;
use super::*;
use crate::registry::{AnyRules, Typed};

fn ingress(spec: &str) -> String {
    format!("{{metadata: {{name: web}}, spec: {spec}}}")
}

fn with_path(path: &str) -> String {
    ingress(&format!(
        "{{rules: [{{http: {{paths: [{{{path}, backend: {{service: {{name: a, port: {{number: 80}}}}}}}}]}}}}]}}"
    ))
}

#[track_caller]
fn check(text: &str, expected: &[&str]) {
    if expected.is_empty() {
        assert_eq!(create(IngressRules, text).err(), None, "{text}");
    } else {
        refused(IngressRules, text, expected);
    }
}

#[test]
fn something_must_be_served() {
    check(&ingress("{}"), &["spec: Invalid value: \"\": either `defaultBackend` or `rules` must be specified"]);
    check(&ingress("{defaultBackend: {service: {name: a, port: {name: http}}}}"), &[]);
    check(&ingress("{rules: [{host: a.example}], tls: [{hosts: [a.example], secretName: a}]}"), &[]);
    check(&ingress("{rules: [{http: {paths: []}}]}"), &["spec.rules[0].http.paths: Required value"]);
}

#[test]
fn paths() {
    check(&with_path("pathType: Prefix, path: /a"), &[]);
    check(&with_path("pathType: ImplementationSpecific"), &[]);
    let at = "spec.rules[0].http.paths[0]";
    check(&with_path("path: /"), &[&format!("{at}.pathType: Required value: pathType must be specified")]);
    check(&with_path("pathType: Exact"), &[&format!("{at}.path: Invalid value: \"\": must be an absolute path")]);
    check(
        &with_path("pathType: Prefix, path: a//b/.."),
        &[
            &format!("{at}.path: Invalid value: \"a//b/..\": must be an absolute path"),
            &format!("{at}.path: Invalid value: \"a//b/..\": must not contain '//'"),
            &format!("{at}.path: Invalid value: \"a//b/..\": cannot end with '/..'"),
        ],
    );
    check(
        &with_path("pathType: Regex, path: \"/\\r\\n\""),
        &[
            &format!("{at}.path: Invalid value: \"/\\r\\n\": must not contain control characters"),
            &format!(
                "{at}.pathType: Unsupported value: \"Regex\": supported values: \"Exact\", \"ImplementationSpecific\", \"Prefix\""
            ),
        ],
    );
}

#[test]
fn backends() {
    let check = |backend: &str, expected: &[&str]| {
        let at = "spec.defaultBackend";
        let expected: Vec<String> = expected.iter().map(|e| format!("{at}{e}")).collect();
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        check(&ingress(&format!("{{defaultBackend: {backend}}}")), &expected);
    };
    check("{resource: {apiGroup: a.b, kind: Bucket, name: x}}", &[]);
    check("{}", &[": Required value: a backend must have a service or a resource"]);
    check(
        "{service: {name: a, port: {number: 1}}, resource: {kind: a, name: b}}",
        &[": Invalid value: \"\": cannot set both resource and service backends"],
    );
    check("{service: {name: a}}", &[".service.port: Required value: port name or number is required"]);
    check(
        "{service: {name: a, port: {number: 80, name: b}}}",
        &[".service.port: Invalid value: \"\": cannot set both port name & port number"],
    );
    check(
        "{service: {port: {number: 70000}}}",
        &[
            ".service.name: Required value",
            ".service.port.number: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ],
    );
}

#[test]
fn hosts_and_classes() {
    let wildcard = wildcard_error();
    check(
        &ingress(
            "{ingressClassName: A, rules: [{host: '*.a.example'}, {host: 'a.*'}, {host: 10.0.0.1}], tls: [{hosts: ['*', b], secretName: A}]}",
        ),
        &[
            &format!(
                "spec.ingressClassName: Invalid value: \"A\": {}",
                names::dns1123_subdomain("A").expect_err("bad")
            ),
            &format!("spec.rules[1].host: Invalid value: \"a.*\": {wildcard}"),
            "spec.rules[2].host: Invalid value: \"10.0.0.1\": must be a DNS name, not an IP address",
            &format!("spec.tls[0].hosts[0]: Invalid value: \"*\": {wildcard}"),
            &format!(
                "spec.tls[0].secretName: Invalid value: \"A\": {}",
                names::dns1123_subdomain("A").expect_err("bad")
            ),
        ],
    );
    let both = "{metadata: {name: web, annotations: {kubernetes.io/ingress.class: a}}, spec: {ingressClassName: b, rules: [{host: a}]}}";
    let why = "must match `ingressClassName` when both are specified";
    check(both, &[&format!("metadata.annotations[kubernetes.io/ingress.class]: Invalid value: \"a\": {why}")]);
    check(&both.replace("ingressClassName: b", "ingressClassName: a"), &[]);
    let stored = create(IngressRules, &both.replace("ingressClassName: b, ", "")).expect("valid");
    assert_eq!(Typed(IngressRules).warnings(&stored).len(), 1);
}

#[test]
fn status() {
    let cx = RuleContext { subresource: Some("status"), ..cx() };
    let old = create(IngressRules, &ingress("{rules: [{host: a}]}")).expect("valid");
    let mut new = old.clone();
    new["status"] =
        json!({"loadBalancer": {"ingress": [{"ip": "10.0.0.1", "ports": [{"port": 80, "protocol": "TCP"}]}]}});
    assert!(Typed(IngressRules).update(new.clone(), &old, &cx).is_ok());
    new["status"] = json!({"loadBalancer": {"ingress": [{"ip": "x", "hostname": "10.0.0.1"}]}});
    assert_eq!(Typed(IngressRules).update(new, &old, &cx).expect_err("bad").len(), 2);
}

#[test]
fn classes() {
    let class = |spec: &str| format!("{{metadata: {{name: a}}, spec: {spec}}}");
    let stored = create(IngressClassRules, &class("{controller: a.b/c, parameters: {kind: P, name: n}}"));
    contains(&stored.expect("valid"), &json!({"spec": {"parameters": {"scope": "Cluster"}}}));
    refused(IngressClassRules, &class("{}"), &["spec.controller: Required value"]);
    refused(
        IngressClassRules,
        &class("{controller: a.b/c, parameters: {scope: Namespace}}"),
        &[
            "spec.parameters.kind: Required value",
            "spec.parameters.name: Required value",
            "spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'",
        ],
    );
    same_messages(
        update(|| IngressClassRules, &class("{controller: a.b/c}"), &class("{controller: a.b/d}")),
        &["spec.controller: Invalid value: \"a.b/d\": field is immutable"],
    );
}
