//! The Gateway API's kinds: what is filled in and what is refused. HTTPRoutes are in [`http`].

mod http;

use scaleup_api::gateway as api;
use serde_json::{Value, json};

use super::super::custom::CustomRules;
use super::super::field::test::*;
use crate::registry::{AnyRules, RuleContext, Rules, Typed};

fn object(spec: &str) -> String {
    format!("{{metadata: {{name: a}}, spec: {spec}}}")
}

/// Creating from a spec gives exactly these messages, where `$` at the beginning stands for `spec.rules[0]`.
#[track_caller]
fn check<T>(spec: &str, expected: &[&str])
where
    CustomRules<T>: Rules,
{
    let expected: Vec<String> = expected.iter().map(|e| e.replacen("$.", "spec.rules[0].", 1)).collect();
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    if expected.is_empty() {
        assert_eq!(create(CustomRules::<T>::new(), &object(spec)).err(), None, "{spec}");
    } else {
        refused(CustomRules::<T>::new(), &object(spec), &expected);
    }
}

#[track_caller]
fn filled<T>(spec: &str, expected: Value)
where
    CustomRules<T>: Rules,
{
    let stored = create(CustomRules::<T>::new(), &object(spec)).expect("valid");
    contains(&stored, &expected);
    let again = Typed(CustomRules::<T>::new()).decode(stored.clone()).expect("decodes").object;
    assert_eq!(again, stored, "filling in is idempotent");
}

// ---- GatewayClass and Gateway ----

const HTTP: &str = "name: http, port: 80, protocol: HTTP";

#[track_caller]
fn listeners(listeners: &str, expected: &[&str]) {
    check::<api::Gateway>(&format!("{{gatewayClassName: a, listeners: {listeners}}}"), expected);
}

#[test]
fn classes() {
    filled::<api::GatewayClass>(
        "{controllerName: scaleup.dev/gateway}",
        json!({"status": {"conditions": [{"type": "Accepted", "status": "Unknown", "reason": "Pending"}]}}),
    );
    check::<api::GatewayClass>("{}", &["spec.controllerName: Required value"]);
    check::<api::GatewayClass>(
        "{controllerName: gateway, description: a2345678901234567890123456789012345678901234567890123456789012345, parametersRef: {kind: '1'}}",
        &[
            "spec.controllerName: Invalid value: \"gateway\": must be a domain and a path (e.g. 'example.com/gateway')",
            "spec.description: Too long: may not be more than 64 bytes",
            "spec.parametersRef.kind: Invalid value: \"1\": must be a kind: at most 63 letters, digits and '-', beginning with a letter (e.g. 'Service')",
            "spec.parametersRef.name: Required value",
        ],
    );
    same_messages(
        update(
            CustomRules::<api::GatewayClass>::new,
            &object("{controllerName: a.b/c}"),
            &object("{controllerName: a.b/d}"),
        ),
        &["spec.controllerName: Invalid value: \"a.b/d\": field is immutable"],
    );
}

#[test]
fn gateways_are_filled_in() {
    filled::<api::Gateway>(
        "{gatewayClassName: a, addresses: [{value: 10.0.0.1}], listeners: [{name: s, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: c}]}, allowedRoutes: {kinds: [{kind: HTTPRoute}]}}]}",
        json!({
            "spec": {"addresses": [{"type": "IPAddress", "value": "10.0.0.1"}], "listeners": [{
                "allowedRoutes": {"namespaces": {"from": "Same"}, "kinds": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute"}]},
                "tls": {"mode": "Terminate", "certificateRefs": [{"group": "", "kind": "Secret", "name": "c"}]},
            }]},
            "status": {"conditions": [{"type": "Accepted", "status": "Unknown"}, {"type": "Programmed", "status": "Unknown"}]},
        }),
    );
}

#[test]
fn gateways_are_checked() {
    check::<api::Gateway>("{}", &["spec.gatewayClassName: Required value", "spec.listeners: Required value"]);
    listeners(&format!("[{{{HTTP}}}, {{name: b, port: 80, protocol: HTTP, hostname: '*.a.example'}}]"), &[]);
    listeners(
        &format!("[{{{HTTP}}}, {{{HTTP}}}]"),
        &[
            "spec.listeners[1].name: Duplicate value: \"http\"",
            "spec.listeners[1]: Invalid value: \"http\": the combination of port, protocol and hostname must be unique for each listener",
        ],
    );
    listeners(
        "[{name: a, port: 0, protocol: TCP, hostname: a.example, tls: {mode: Passthrough}}]",
        &[
            "spec.listeners[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            "spec.listeners[0].hostname: Forbidden: must not be specified for protocols TCP and UDP",
            "spec.listeners[0].tls: Forbidden: must not be specified for protocols HTTP, TCP and UDP",
        ],
    );
    listeners(
        "[{name: a, port: 443, protocol: HTTPS, tls: {mode: Passthrough}}, {name: b, port: 444, protocol: HTTPS, tls: {}}]",
        &[
            "spec.listeners[0].tls.mode: Invalid value: \"Passthrough\": must be Terminate for protocol HTTPS",
            "spec.listeners[1].tls.certificateRefs: Required value: certificateRefs or options must be specified when mode is Terminate",
        ],
    );
    listeners(
        "[{name: a, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Some, selector: {matchExpressions: [{key: a, operator: In}]}}, kinds: [{}]}}]",
        &[
            "spec.listeners[0].allowedRoutes.namespaces.from: Unsupported value: \"Some\": supported values: \"All\", \"Selector\", \"Same\"",
            "spec.listeners[0].allowedRoutes.namespaces.selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
            "spec.listeners[0].allowedRoutes.kinds[0].kind: Required value",
        ],
    );
    let many: Vec<String> = (1..=65).map(|i| format!("{{name: l{i}, port: {i}, protocol: HTTP}}")).collect();
    listeners(&format!("[{}]", many.join(", ")), &["spec.listeners: Too many: 65: must have at most 64 items"]);
    check::<api::Gateway>(
        &format!(
            "{{gatewayClassName: a, listeners: [{{{HTTP}}}], addresses: [{{value: x}}, {{type: Hostname, value: a b}}, {{value: 10.0.0.1}}, {{value: 10.0.0.1}}], infrastructure: {{labels: {{'a b': c}}}}}}"
        ),
        &[
            "spec.addresses[0].value: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            &format!(
                "spec.addresses[1].value: Invalid value: \"a b\": {}",
                super::text::hostname("a b").expect_err("bad")
            ),
            "spec.addresses[3]: Duplicate value: \"10.0.0.1\"",
            &format!(
                "spec.infrastructure.labels: Invalid value: \"a b\": {}",
                scaleup_api::names::qualified_name("a b").expect_err("bad")
            ),
        ],
    );
}

#[test]
fn a_status_is_checked_when_it_is_written() {
    let cx = RuleContext { subresource: Some("status"), ..cx() };
    let rules = Typed(CustomRules::<api::Gateway>::new());
    let old = create(
        CustomRules::<api::Gateway>::new(),
        &object(&format!("{{gatewayClassName: a, listeners: [{{{HTTP}}}]}}")),
    )
    .expect("valid");
    let write = |status: Value| {
        let mut new = old.clone();
        new["status"] = status;
        let decoded = rules.decode(new).expect("decodes").object;
        rules.update(decoded, &old, &cx).map_err(|e| e.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let condition = json!({"type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "lastTransitionTime": "2024-01-01T00:00:00Z"});
    let stored = write(json!({"addresses": [{"value": "10.0.0.1"}], "conditions": [condition], "listeners": [
        {"name": "http", "attachedRoutes": 1, "supportedKinds": [{"kind": "HTTPRoute"}], "conditions": []}]}));
    contains(
        &stored.expect("valid"),
        &json!({"status": {"addresses": [{"type": "IPAddress"}], "listeners": [{"supportedKinds": [{"group": "gateway.networking.k8s.io"}]}]}}),
    );
    let mut bad = condition.clone();
    (bad["status"], bad["reason"]) = (json!("Yes"), json!("two words"));
    same_messages(
        write(json!({"conditions": [condition, bad], "addresses": [{"value": "x"}]})),
        &[
            "status.conditions[1].type: Duplicate value: \"Accepted\"",
            "status.conditions[1].status: Unsupported value: \"Yes\": supported values: \"True\", \"False\", \"Unknown\"",
            "status.conditions[1].reason: Invalid value: \"two words\": must be a word in CamelCase, e.g. 'BackendNotFound'",
            "status.addresses[0].value: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ],
    );
}

// ---- the others ----

#[test]
fn grpc_routes() {
    filled::<api::GRPCRoute>(
        "{rules: [{matches: [{method: {service: a.B}, headers: [{name: a, value: b}]}], backendRefs: [{name: a, port: 80}]}]}",
        json!({"spec": {"rules": [{"matches": [{"method": {"type": "Exact"}, "headers": [{"type": "Exact"}]}], "backendRefs": [{"weight": 1}]}]}}),
    );
    check::<api::GRPCRoute>("{rules: [{matches: [{method: {type: RegularExpression, method: 'Get.*'}}]}]}", &[]);
    check::<api::GRPCRoute>(
        "{rules: [{matches: [{method: {}}, {method: {service: a/b, method: a.b}}], filters: [{type: URLRewrite}]}]}",
        &[
            "$.matches[0].method: Required value: one or both of 'service' and 'method' must be specified",
            "$.matches[1].method.service: Invalid value: \"a/b\": must be a service's name (e.g. 'shop.v1.Cart')",
            "$.matches[1].method.method: Invalid value: \"a.b\": must be a method's name (e.g. 'AddItem')",
            "$.filters[0].type: Unsupported value: \"URLRewrite\": supported values: \"RequestHeaderModifier\", \"ResponseHeaderModifier\", \"RequestMirror\", \"ExtensionRef\"",
        ],
    );
}

#[test]
fn routes_of_connections() {
    let one = "{rules: [{backendRefs: [{name: a, port: 80}]}]}";
    filled::<api::TCPRoute>(one, json!({"spec": {"rules": [{"backendRefs": [{"kind": "Service", "weight": 1}]}]}}));
    check::<api::UDPRoute>(one, &[]);
    check::<api::TLSRoute>(one, &[]);
    check::<api::v1::TLSRoute>(one, &["spec.hostnames: Required value"]);
    check::<api::TCPRoute>("{}", &["spec.rules: Required value"]);
    check::<api::UDPRoute>("{rules: [{}]}", &["$.backendRefs: Required value"]);
    check::<api::v1::TLSRoute>(
        "{hostnames: [a.example], rules: [{backendRefs: [{name: a, port: 80}]}, {backendRefs: [{name: a, port: 80}]}]}",
        &["spec.rules: Too many: 2: must have at most 1 items"],
    );
}

#[test]
fn grants_and_backend_tls() {
    check::<api::ReferenceGrant>(
        "{from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: a}], to: [{group: '', kind: Service}]}",
        &[],
    );
    check::<api::ReferenceGrant>(
        "{from: [{namespace: A}], to: []}",
        &[
            "spec.from[0].kind: Required value",
            &format!(
                "spec.from[0].namespace: Invalid value: \"A\": {}",
                scaleup_api::names::dns1123_label("A").expect_err("bad")
            ),
            "spec.to: Required value",
        ],
    );
    let target = "targetRefs: [{group: '', kind: Service, name: a}]";
    let policy = |validation: &str, expected: &[&str]| {
        check::<api::BackendTLSPolicy>(&format!("{{{target}, validation: {validation}}}"), expected);
    };
    policy("{hostname: a.example, wellKnownCACertificates: System}", &[]);
    policy(
        "{hostname: a.example, caCertificateRefs: [{group: '', kind: ConfigMap, name: a}], subjectAltNames: [{type: URI, uri: 'spiffe://a/b'}]}",
        &[],
    );
    let why = "exactly one of caCertificateRefs and wellKnownCACertificates must be specified";
    policy("{hostname: a.example}", &[&format!("spec.validation.caCertificateRefs: Required value: {why}")]);
    policy(
        "{hostname: '*.a', wellKnownCACertificates: System, caCertificateRefs: [{group: '', kind: ConfigMap, name: a}], subjectAltNames: [{type: Hostname, uri: 'a:b'}]}",
        &[
            &format!(
                "spec.validation.hostname: Invalid value: \"*.a\": {}",
                super::text::precise_hostname("*.a").expect_err("bad")
            ),
            &format!("spec.validation.wellKnownCACertificates: Forbidden: {why}"),
            "spec.validation.subjectAltNames[0].hostname: Required value: must be specified for type Hostname",
            "spec.validation.subjectAltNames[0].uri: Forbidden: may only be specified for type URI",
        ],
    );
    check::<api::BackendTLSPolicy>(
        "{targetRefs: [{group: '', kind: Service, name: a}, {group: '', kind: Service, name: a}], validation: {hostname: a, wellKnownCACertificates: System}}",
        &[
            "spec.targetRefs[1]: Invalid value: \"a\": sectionName must be unique when targetRefs includes 2 or more references to the same target",
        ],
    );
}
