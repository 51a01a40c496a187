//! Explanations by value.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::*;
use crate::policy::ServicePolicy;
use crate::snapshot::routes::{
    BackendRef, FieldMatch, HostPattern, HostsPlan, ListenerPlan, RuleId, RulePlan, ValueMatch, WeightedBackend,
};
use crate::snapshot::{PlanConfig, ServiceKey, plan};

/// A Service `shop/web` on port 8000 with two endpoints, and a Gateway on port 80 with two rules for `shop.example`.
fn hub() -> Hub {
    let service = json!({"metadata": {"name": "web", "namespace": "shop"},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 8000, "name": "http"}]}});
    let slice = json!({"metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"port": 8080, "name": "http"}],
        "endpoints": [
            {"addresses": ["10.0.0.1"], "zone": "a", "nodeName": "n1", "targetRef": {"kind": "Pod", "uid": "p1"}},
            {"addresses": ["10.0.0.2"], "zone": "b", "nodeName": "n2", "targetRef": {"kind": "Pod", "uid": "p2"}}]});
    let mut snapshot = plan(
        &[serde_json::from_value(service).expect("a Service")],
        &[serde_json::from_value(slice).expect("an EndpointSlice")],
        &PlanConfig::default(),
    );
    let backend = BackendRef { service: ServiceKey::new("shop", "web"), port: 8000, protocol: Protocol::Tcp };
    let rule = |index, path: &str| RulePlan {
        id: RuleId { kind: "HTTPRoute", namespace: "shop".into(), name: "web".into(), rule: index, matched: 0 },
        path: PathMatch::Prefix(path.into()),
        method: None,
        headers: vec![],
        query: vec![],
        filters: vec![],
        backends: vec![
            WeightedBackend { backend: Some(backend.clone()), weight: 3, filters: vec![] },
            WeightedBackend { backend: None, weight: 1, filters: vec![] },
        ],
        policy: Arc::default(),
    };
    let mut beta = rule(1, "/beta");
    beta.method = Some("POST".into());
    beta.headers = vec![FieldMatch { name: "x-user".into(), value: ValueMatch::Exact("ann".into()) }];
    let rules = vec![Arc::new(rule(0, "/a")), Arc::new(beta)];
    let hosts = HostsPlan { hosts: BTreeMap::from([(HostPattern::parse("shop.example"), rules)]) };
    let http = HttpPlan {
        listeners: BTreeMap::from([(HostPattern::parse("*.example"), Arc::new(hosts))]),
        ..HttpPlan::default()
    };
    let listener = ListenerPlan {
        created: 0,
        owners: vec!["Gateway infra/public".into()],
        accept_proxy: None,
        mode: Mode::Http(Arc::new(http)),
    };
    let port = HostPort { port: 80, protocol: Protocol::Tcp };
    snapshot.listeners.insert(port, Arc::new(listener));
    snapshot.routed = Arc::new(BTreeSet::from([backend]));
    let hub = Hub::new(1);
    hub.publish(snapshot);
    hub
}

fn ask(hub: &Hub, method: &str, url: &str, headers: &[&str]) -> Explanation {
    let headers: Vec<String> = headers.iter().map(ToString::to_string).collect();
    explain(hub, &Request::new(method, url, &headers, Some("192.0.2.1")).expect("a request"))
}

#[test]
fn a_match_shows_rule_shares_and_the_endpoint_that_is_next() {
    let hub = hub();
    let said = ask(&hub, "GET", "http://shop.example/a?x=1", &[]);
    assert_eq!(said.request, "GET http://shop.example:80/a?x=1 from 192.0.2.1");
    assert_eq!(said.listener.as_deref(), Some("80/TCP for Gateway infra/public"));
    let rule = said.rule.clone().expect("a rule");
    assert_eq!((rule.name.as_str(), rule.path.as_str()), ("HTTPRoute shop/web rule 0", "begins with /a"));
    let [good, bad] = &said.backends[..] else { panic!("two: {said:?}") };
    assert_eq!((good.service.as_deref(), good.share_percent), (Some("shop/web:8000"), 75.0));
    assert_eq!((&bad.service, bad.share_percent), (&None, 25.0));
    assert_eq!(good.algorithm, "PeakEwma (the default)");
    let first = EndpointView {
        address: "10.0.0.1:8080".into(),
        pod: Some("p1".into()),
        node: Some("n1".into()),
        zone: Some("a".into()),
        weight: 100,
        in_flight: 0,
        health: "healthy".into(),
        chosen: true,
    };
    assert_eq!(good.endpoints[0], first);
    assert!(!good.endpoints[1].chosen);
    assert_eq!(said.verdict, "It would be sent to 10.0.0.1:8080.");
    assert_eq!(said, ask(&hub, "GET", "http://shop.example/a?x=1", &[]), "asking takes nobody's turn");
}

#[test]
fn what_endpoints_are_doing_is_shown() {
    let hub = hub();
    let key = hub.services_site("shop", "web", 8000);
    let backend = hub.backend_of(&key).expect("a backend");
    backend.endpoints[0].begin(0);
    let failed = crate::balance::Outcome::ConnectFailed;
    backend.endpoints[0].report(&ServicePolicy::default(), failed, 0);
    let said = ask(&hub, "GET", "http://10.0.0.9:8000/", &[]);
    assert_eq!(said.listener.as_deref(), Some("8000/TCP for Service shop/web"));
    let endpoints = &said.backends[0].endpoints;
    assert_eq!((endpoints[0].in_flight, endpoints[0].health.as_str()), (1, "a connection failed a moment ago"));
    assert_eq!(said.verdict, "It would be sent to 10.0.0.2:8080.");
}

#[test]
fn a_miss_says_what_came_nearest_and_why() {
    let hub = hub();
    let said = ask(&hub, "GET", "http://shop.example/beta/1", &["X-User: bob"]);
    assert_eq!(said.verdict, "No rule for the host \"shop.example\" matches: the answer is 404.");
    let beta = Near {
        rule: "HTTPRoute shop/web rule 1".into(),
        why: vec!["the method is GET, not POST".into(), "the header \"x-user\" is \"bob\", not \"ann\"".into()],
    };
    assert_eq!(said.near[0], beta);
    assert_eq!(said.near[1].why, ["the path /beta/1 is none that begins with /a"]);
    let said = ask(&hub, "POST", "http://shop.example/beta", &[]);
    assert_eq!(said.near[0].why, ["the header \"x-user\" is missing; it should be \"ann\""]);
    assert!(ask(&hub, "POST", "http://shop.example/beta", &["x-user: ann"]).rule.is_some());
}

#[test]
fn hosts_and_ports_nobody_serves_are_told() {
    let hub = hub();
    let verdict = |url: &str| ask(&hub, "GET", url, &[]).verdict;
    assert_eq!(
        verdict("http://other.example/"),
        "The listener for *.example takes the host \"other.example\", but no route does: the answer is 404. Routes there take \
         shop.example."
    );
    assert_eq!(verdict("http://b.test/"), "No listener of the port takes the host \"b.test\": they take *.example.");
    assert_eq!(verdict("http://b.test:81/"), "Nobody listens on port 81: the load balancer serves 80, 8000.");
    assert_eq!(verdict("https://shop.example:80/"), "The port speaks HTTP without TLS: an https request fails.");
    assert_eq!(
        explain(&Hub::new(1), &Request::new("GET", "http://a/", &[], None).expect("a request")).verdict,
        "Nobody listens on port 80: the load balancer serves no port at all."
    );
}

#[test]
fn questions_are_checked() {
    let check = |query: &str, expected: &str| {
        let error = Request::from_query(query).expect_err("not a question").to_string();
        assert!(error.contains(expected), "{query}: {error}");
    };
    check("", "url is missing");
    check("url=ftp://a/", "is not a URL");
    check("url=%2Fa", "is not a URL");
    check("url=http://a/&method=G%20T", "is not a method");
    check("url=http://a/&header=x", "is not a header");
    check("url=http://a/&client=a", "is not a client's address");
    check("url=http://a/&what=1", "not \"what\"");
    let request = Request::from_query("method=post&url=http%3A%2F%2FA.example%3A81%2F%3Fq&header=Host:%20b.example:9")
        .expect("valid");
    assert_eq!((request.head.method.as_str(), request.head.host.as_str(), request.port), ("POST", "b.example", 81));
    assert_eq!((request.head.path.as_str(), request.head.query.as_deref()), ("/", Some("q")));
}

/// A question and the same request as the proxy receives it say the same.
#[track_caller]
fn same_head(url: &str, headers: &[&str], routed: bool) {
    use crate::proxy::request::{Client, Parsed, parse};
    use crate::route::Head as _;
    let texts: Vec<String> = headers.iter().map(ToString::to_string).collect();
    let asked = Request::new("GET", url, &texts, Some("192.0.2.1")).expect("a request").head;
    let asked = if routed { asked.normalized().expect("a path") } else { asked };
    let target = url.split_once("://").and_then(|(_, rest)| Some(&rest[rest.find('/')?..])).expect("a path");
    let host = asked.header("host").expect("a host").into_owned();
    let fields: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let bytes = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n");
    let client = Client::new(asked.client, false, false);
    let held = match parse(bytes.as_bytes(), &crate::ProxyConfig::default(), &client, routed, |head| {
        for name in ["x-a", "cookie", "accept", "host", "x-none"] {
            assert_eq!(head.header(name), asked.header(name), "{name}");
        }
        Held::of(head)
    }) {
        Parsed::Complete(held) => held,
        other => panic!("{other:?}"),
    };
    assert_eq!(held, asked);
}

#[test]
fn a_question_is_read_as_the_proxy_reads_the_request() {
    same_head("http://shop.example/a?x=1", &["X-A: 1", "x-a: 2", "Cookie: a=1", "cookie: b=2"], true);
    same_head("http://Shop.Example:8080/%7eann//b", &["accept: text/html"], true);
    same_head("http://shop.example/%7eann//b", &[], false);
    same_head("http://[2001:db8::1]:81/", &["x-a: 1"], true);
}

#[test]
fn repeated_fields_match_as_they_do_in_the_proxy() {
    let hub = hub();
    assert!(ask(&hub, "POST", "http://shop.example/beta", &["x-user: ann", "x-user: bob"]).rule.is_none());
    let said = ask(&hub, "POST", "http://shop.example/beta", &["x-user: ann", "x-user: bob"]);
    assert_eq!(said.near[0].why, ["the header \"x-user\" is \"ann, bob\", not \"ann\""]);
    assert!(ask(&hub, "GET", "http://shop.example//a", &[]).rule.is_some(), "as the proxy normalizes it");
    assert_eq!(
        ask(&hub, "GET", "http://shop.example/b/..%2fa", &[]).verdict,
        "The answer is 400: the path is ambiguous."
    );
}
