//! What Gateways and their routes become, by value: a table of objects and the lines of [`super::testing::describe`].

use serde_json::{Value, json};

use super::certificates::tests::secret;
use super::testing::{compiler, describe};
use super::{PlanConfig, Snapshot};
use crate::policy::AltName;

/// A class, a Gateway `infra/edge` and Services `shop/web` and `shop/api`.
fn world(listeners: &Value) -> Vec<Value> {
    let service = |name: &str| {
        json!({"kind": "Service", "metadata": {"namespace": "shop", "name": name},
               "spec": {"ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}})
    };
    vec![
        json!({"kind": "GatewayClass", "metadata": {"name": "scaleup"}, "spec": {"controllerName": "scaleup.dev/gateway"}}),
        json!({"kind": "Gateway", "metadata": {"namespace": "infra", "name": "edge", "creationTimestamp": "2026-01-01T00:00:00Z"},
               "spec": {"gatewayClassName": "scaleup", "listeners": listeners}}),
        service("web"),
        service("api"),
    ]
}

fn route(kind: &str, name: &str, created: &str, spec: &Value) -> Value {
    let mut spec = spec.clone();
    if spec.get("parentRefs").is_none() {
        spec["parentRefs"] = json!([{"name": "edge", "namespace": "infra"}]);
    }
    json!({"kind": kind, "metadata": {"namespace": "shop", "name": name, "creationTimestamp": created}, "spec": spec})
}

fn snapshot(objects: &[Value]) -> Snapshot {
    compiler(PlanConfig::default(), objects).expect("valid objects").snapshot()
}

#[track_caller]
fn check(listeners: Value, routes: &[Value], expected: &[&str]) {
    let mut objects = world(&listeners);
    objects.extend_from_slice(routes);
    assert_eq!(describe(&snapshot(&objects)), expected);
}

fn all(mut listener: Value) -> Value {
    listener["allowedRoutes"] = json!({"namespaces": {"from": "All"}});
    listener
}

fn http() -> Value {
    json!([all(json!({"name": "http", "port": 80, "protocol": "HTTP"}))])
}

const OLD: &str = "2026-01-01T00:00:00Z";
const NEW: &str = "2026-02-01T00:00:00Z";

fn to(name: &str) -> Value {
    json!([{"name": name, "port": 80}])
}

#[test]
fn matches_become_rules() {
    let spec = json!({"hostnames": ["Shop.example", "*.shop.example"], "rules": [
        {"matches": [
            {"path": {"type": "Exact", "value": "/a"}, "method": "GET"},
            {"path": {"value": "/b/"}, "headers": [{"name": "X-V", "value": "1"}, {"name": "x-v", "value": "2"}]},
            {"path": {"type": "RegularExpression", "value": "/c/[0-9]+"},
             "queryParams": [{"name": "Q", "type": "RegularExpression", "value": "x+"}]},
        ], "backendRefs": [{"name": "web", "port": 80, "weight": 9}, {"name": "api", "port": 80}]},
        {"backendRefs": [{"name": "api", "port": 80, "weight": 0}]},
    ]});
    let mut expected = Vec::new();
    for host in ["shop.example", "*.shop.example"] {
        for rule in [
            "=/a GET -> shop/web:80*9 shop/api:80",
            "/b x-v=1 -> shop/web:80*9 shop/api:80",
            "~/c/[0-9]+ Q~x+ -> shop/web:80*9 shop/api:80",
            "/ -> shop/api:80*0",
        ] {
            expected.push(format!("80 http * {host} {rule}"));
        }
    }
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    check(http(), &[route("HTTPRoute", "r", OLD, &spec)], &expected);
}

#[test]
fn a_secret_of_the_gateway_secures_its_listener() {
    let listener = json!({"name": "s", "port": 443, "protocol": "HTTPS", "hostname": "*.example",
        "tls": {"certificateRefs": [{"name": "cert"}]}, "allowedRoutes": {"namespaces": {"from": "All"}}});
    let secret = serde_json::to_value(secret("infra", "cert", "*.example")).expect("JSON");
    let routes =
        [route("HTTPRoute", "r", OLD, &json!({"hostnames": ["a.example"], "rules": [{"backendRefs": to("web")}]}))];
    let without = ["443 site *.example http []", "443 https *.example a.example / -> shop/web:80"];
    check(json!([listener.clone()]), &routes, &without);
    let with = ["443 site *.example http [infra/cert]", "443 https *.example a.example / -> shop/web:80"];
    check(json!([listener]), &[routes[0].clone(), secret], &with);
}

#[test]
fn of_routes_that_match_alike_the_older_comes_first() {
    let rules = |name: &str| json!({"rules": [{"backendRefs": to(name)}]});
    check(
        http(),
        &[route("HTTPRoute", "a", NEW, &rules("api")), route("HTTPRoute", "b", OLD, &rules("web"))],
        &["80 http * * / -> shop/web:80", "80 http * * / -> shop/api:80"],
    );
}

#[test]
fn grpc_calls_are_posts_to_paths() {
    let call = |method: Value| json!({"method": method});
    let spec = json!({"rules": [{"matches": [
        call(json!({"service": "shop.v1.Cart", "method": "Get"})),
        call(json!({"service": "shop.v1.Cart"})),
        call(json!({"method": "Get.It"})),
        call(json!({"type": "RegularExpression", "service": "shop\\..*", "method": "G.t"})),
        {"headers": [{"name": "x", "value": "1"}]},
    ], "backendRefs": to("api")}]});
    check(
        http(),
        &[route("GRPCRoute", "r", OLD, &spec)],
        &[
            "80 http * * =/shop.v1.Cart/Get POST -> shop/api:80",
            "80 http * * /shop.v1.Cart POST -> shop/api:80",
            "80 http * * ~/[^/]+/Get\\.It POST -> shop/api:80",
            "80 http * * ~/(?:shop\\..*)/(?:G.t) POST -> shop/api:80",
            "80 http * * / POST x=1 -> shop/api:80",
        ],
    );
}

#[test]
fn routes_are_served_by_the_listeners_that_take_them() {
    let rules = json!([{"backendRefs": to("web")}]);
    let listener = |name: &str, port: u16, extra: Value| {
        let mut listener = json!({"name": name, "port": port, "protocol": "HTTP"});
        listener.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        listener
    };
    let from = |from: Value| json!({"allowedRoutes": {"namespaces": from}});
    let listeners = json!([
        listener("same", 81, from(json!({"from": "Same"}))),
        listener("default", 82, json!({})),
        listener("all", 83, from(json!({"from": "All"}))),
        listener("labels", 84, from(json!({"from": "Selector", "selector": {"matchLabels": {"team": "shop"}}}))),
        listener(
            "grpc",
            85,
            json!({"allowedRoutes": {"namespaces": {"from": "All"}, "kinds": [{"kind": "GRPCRoute"}]}})
        ),
    ]);
    let namespace = |team: &str| json!({"kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": team}}});
    let route = |parent: Value| route("HTTPRoute", "r", OLD, &json!({"parentRefs": [parent], "rules": rules}));
    let empty: Vec<String> = (81..=85).map(|port| port.to_string()).collect();
    let check = |objects: &[Value], expected: &[&str]| {
        let mut all = world(&listeners);
        all.extend_from_slice(objects);
        let snapshot = snapshot(&all);
        let ports: Vec<String> = snapshot.listeners.keys().map(|port| port.port.to_string()).collect();
        assert_eq!(ports, empty, "listeners without routes are open");
        assert_eq!(describe(&snapshot), expected);
    };
    let edge = |extra: Value| {
        let mut parent = json!({"name": "edge", "namespace": "infra"});
        parent.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        parent
    };
    let (all, labels) = ("83 http * * / -> shop/web:80", "84 http * * / -> shop/web:80");
    check(&[route(edge(json!({})))], &[all]);
    check(&[namespace("shop"), route(edge(json!({})))], &[all, labels]);
    check(&[namespace("other"), route(edge(json!({})))], &[all]);
    check(&[namespace("shop"), route(edge(json!({"sectionName": "labels"})))], &[labels]);
    check(&[namespace("shop"), route(edge(json!({"port": 83})))], &[all]);
    check(&[route(edge(json!({"port": 83, "sectionName": "labels"})))], &[]);
    check(&[route(json!({"name": "edge"}))], &[]);
    check(&[route(edge(json!({"kind": "Service", "group": ""})))], &[]);
}

#[test]
fn invalid_rules_are_left_out_and_the_others_served() {
    let refused = [
        json!({"matches": [{"path": {"value": "no-slash"}}]}),
        json!({"matches": [{"path": {"value": "/a\r\nb"}}]}),
        json!({"matches": [{"path": {"type": "RegularExpression", "value": "a)|(b"}}]}),
        json!({"matches": [{"path": {"type": "RegularExpression", "value": "(a{1000}){1000}"}}]}),
        json!({"matches": [{"path": {"type": "Glob", "value": "/*"}}]}),
        json!({"matches": [{"method": "BREW"}]}),
        json!({"matches": [{"headers": [{"name": "a b", "value": "c"}]}]}),
        json!({"filters": [{"type": "ExtensionRef"}]}),
        json!({"timeouts": {"request": "soon"}}),
        json!({"retry": {"codes": [200]}}),
        json!({"sessionPersistence": {"cookieConfig": {"lifetimeType": "Permanent"}}}),
        json!({"backendRefs": [{"name": "web", "port": 80, "filters": [{"type": "Unknown"}]}]}),
    ];
    for rule in refused {
        let spec = json!({"rules": [rule, {"backendRefs": to("web")}]});
        check(http(), &[route("HTTPRoute", "r", OLD, &spec)], &["80 http * * / -> shop/web:80"]);
    }
    let spec = json!({"rules": [{"backendRefs": [{"name": "gone", "port": 80}, {"name": "web", "port": 80}]}]});
    check(http(), &[route("HTTPRoute", "r", OLD, &spec)], &["80 http * * / -> 500 shop/web:80"]);
}

#[test]
fn tls_is_passed_on_or_ended_by_server_name() {
    let listener = |name: &str, host: &str, tls: Value| {
        all(json!({"name": name, "port": 443, "protocol": "TLS", "hostname": host, "tls": tls}))
    };
    let listeners = json!([
        listener("through", "*.through.example", json!({"mode": "Passthrough"})),
        listener("ended", "ended.example", json!({"certificateRefs": [{"name": "cert"}]})),
    ]);
    let cert = serde_json::to_value(secret("infra", "cert", "ended.example")).expect("JSON");
    let tls = |name: &str, created: &str, hosts: Value, backend: &str| {
        route("TLSRoute", name, created, &json!({"hostnames": hosts, "rules": [{"backendRefs": to(backend)}]}))
    };
    check(
        listeners,
        &[
            cert,
            tls("a", OLD, json!(["a.through.example", "ended.example"]), "web"),
            tls("b", NEW, json!(["a.through.example", "b.through.example"]), "api"),
            tls("c", NEW, json!(["elsewhere.example"]), "api"),
        ],
        &[
            "443 site a.through.example passthrough -> shop/web:80",
            "443 site b.through.example passthrough -> shop/api:80",
            "443 site ended.example terminate [infra/cert] -> shop/web:80",
        ],
    );
}

#[test]
fn tcp_and_udp_routes_have_their_port_to_themselves() {
    let listeners = json!([
        all(json!({"name": "tcp", "port": 5432, "protocol": "TCP"})),
        all(json!({"name": "dns", "port": 53, "protocol": "UDP"})),
        all(json!({"name": "dns-tcp", "port": 53, "protocol": "TCP"})),
    ]);
    let section = |name: &str, backends: Value| json!({"parentRefs": [{"name": "edge", "namespace": "infra", "sectionName": name}], "rules": [{"backendRefs": backends}]});
    check(
        listeners,
        &[
            route("TCPRoute", "b", NEW, &section("tcp", to("api"))),
            route(
                "TCPRoute",
                "a",
                OLD,
                &section("tcp", json!([{"name": "web", "port": 80, "weight": 3}, {"name": "api", "port": 80}])),
            ),
            route("UDPRoute", "d", OLD, &section("dns", json!([{"name": "web", "port": 53}]))),
            route("UDPRoute", "e", OLD, &section("dns-tcp", json!([{"name": "web", "port": 53}]))),
        ],
        &["53 tcp -> ", "53 udp -> shop/web:53", "5432 tcp -> shop/web:80*3 shop/api:80"],
    );
}

#[test]
fn another_namespace_cannot_take_a_listener_and_an_invalid_class_serves_nothing() {
    let gateway = |namespace: &str, name: &str, class: &str, protocol: &str| {
        json!({"kind": "Gateway", "metadata": {"namespace": namespace, "name": name, "creationTimestamp": NEW},
               "spec": {"gatewayClassName": class, "listeners": [
                    {"name": "l", "port": 80, "protocol": protocol, "allowedRoutes": {"namespaces": {"from": "All"}}}]}})
    };
    let with = |gateway: Value| {
        let name = gateway["metadata"]["name"].clone();
        let namespace = gateway["metadata"]["namespace"].clone();
        let spec =
            json!({"parentRefs": [{"name": name, "namespace": namespace}], "rules": [{"backendRefs": to("web")}]});
        let mut objects = world(&http());
        objects.extend([gateway, route("HTTPRoute", "r", OLD, &spec), route("TCPRoute", "t", OLD, &spec)]);
        describe(&snapshot(&objects))
    };
    assert_eq!(with(gateway("infra", "second", "scaleup", "HTTP")), ["80 http * * / -> shop/web:80"]);
    assert!(with(gateway("evil", "second", "scaleup", "HTTP")).is_empty());
    assert!(with(gateway("infra", "second", "scaleup", "TCP")).is_empty());
    assert!(with(gateway("infra", "second", "nginx", "HTTP")).is_empty());
}

#[test]
fn timeouts_retries_and_policies_make_a_rules_policy() {
    let policy = |name: &str, created: &str, target: Value, spec: Value| {
        let mut spec = spec;
        spec["targetRefs"] = json!([target]);
        let namespace = if target["kind"] == "Gateway" { "infra" } else { "shop" };
        json!({"kind": "TrafficPolicy", "metadata": {"namespace": namespace, "name": name, "creationTimestamp": created}, "spec": spec})
    };
    let group = "gateway.networking.k8s.io";
    let mut objects = world(&http());
    objects.extend([
        route(
            "HTTPRoute",
            "r",
            OLD,
            &json!({"rules": [{"name": "first", "backendRefs": to("web"),
            "sessionPersistence": {"sessionName": "sid"},
            "timeouts": {"request": "10s", "backendRequest": "0s"}, "retry": {"codes": [503, 500], "attempts": 4}}]}),
        ),
        policy(
            "route",
            NEW,
            json!({"group": group, "kind": "HTTPRoute", "name": "r"}),
            json!({"timeouts": {"request": "1s", "responseHeader": "2s", "idle": "3s"}}),
        ),
        policy(
            "rule",
            NEW,
            json!({"group": group, "kind": "HTTPRoute", "name": "r", "sectionName": "first"}),
            json!({"timeouts": {"idle": "4s"}}),
        ),
        policy(
            "other-rule",
            OLD,
            json!({"group": group, "kind": "HTTPRoute", "name": "r", "sectionName": "second"}),
            json!({"timeouts": {"idle": "5s"}}),
        ),
        policy(
            "service",
            NEW,
            json!({"kind": "Service", "name": "web"}),
            json!({"limits": {"maxRequestBodyBytes": 7}, "hedging": {"delay": "5ms"}}),
        ),
        policy(
            "service-old",
            OLD,
            json!({"kind": "Service", "name": "web"}),
            json!({"limits": {"maxRequestBodyBytes": 6}}),
        ),
        policy(
            "gateway",
            OLD,
            json!({"group": group, "kind": "Gateway", "name": "edge"}),
            json!({"limits": {"maxRequestBodyBytes": 5}, "rateLimits": [{"requests": 100}]}),
        ),
        policy(
            "invalid",
            OLD,
            json!({"group": group, "kind": "HTTPRoute", "name": "r"}),
            json!({"timeouts": {"idle": "1s"}, "queue": {"maxDepth": 1}}),
        ),
    ]);
    let snapshot = snapshot(&objects);
    let super::routes::Mode::Http(http) = &snapshot.listeners.values().next().expect("a listener").mode else {
        panic!("HTTP")
    };
    let hosts = http.listeners.values().next().expect("a listener");
    let policy = &hosts.hosts.values().next().expect("a host")[0].policy;
    let seconds = std::time::Duration::from_secs;
    assert_eq!(policy.request_timeout, Some(seconds(10)));
    assert_eq!(policy.response_timeout, None, "the rule itself says that there is no limit");
    assert_eq!(policy.idle_timeout, Some(seconds(4)));
    assert_eq!((policy.retries.attempts, &policy.retries.statuses[..]), (4, &[500, 503][..]));
    assert_eq!(policy.session.as_ref().map(|session| &*session.name), Some("sid"));
    assert_eq!(policy.max_body_bytes, Some(6));
    assert_eq!(policy.hedging, Some((std::time::Duration::from_millis(5), 1)));
    assert_eq!(&*policy.rate_limits[0].id, "infra/gateway/0/Gateway/edge/");
    let sources: Vec<&str> = policy.sources.iter().map(|source| &**source).collect();
    assert_eq!(sources, ["shop/rule", "shop/route", "shop/service-old", "shop/service", "infra/gateway"]);
}

#[test]
fn endpoints_speak_tls_where_policies_or_the_service_say_so() {
    let pem = String::from_utf8(secret("d", "n", "ca").data.expect("data")["tls.crt"].0.clone()).expect("text");
    let service = json!({"kind": "Service", "metadata": {"namespace": "shop", "name": "tls"}, "spec": {"ports": [
        {"name": "plain", "port": 80}, {"name": "s", "port": 443, "appProtocol": "https"}]}});
    let bundle = |text: &str| json!({"kind": "ConfigMap", "metadata": {"namespace": "shop", "name": "ca"}, "data": {"ca.crt": text}});
    let policy = json!({"kind": "BackendTLSPolicy", "metadata": {"namespace": "shop", "name": "p"}, "spec": {
        "targetRefs": [{"group": "", "kind": "Service", "name": "tls", "sectionName": "plain"}],
        "validation": {"hostname": "in.example", "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "ca"}]}}});
    let ours = json!({"kind": "TrafficPolicy", "metadata": {"namespace": "shop", "name": "t"}, "spec": {
        "targetRefs": [{"kind": "Service", "name": "tls"}], "upstreamTls": {"hostname": "ours.example", "insecureSkipVerify": true}}});
    let tls = |objects: &[&Value]| {
        let objects: Vec<Value> = objects.iter().map(|object| (*object).clone()).collect();
        let snapshot = snapshot(&objects);
        let plan = snapshot.services.values().next().expect("a Service");
        plan.ports.iter().map(|port| port.policy.upstream_tls.as_deref().cloned()).collect::<Vec<_>>()
    };
    let none = tls(&[&service]);
    assert!(none[0].is_none());
    let implied = none[1].as_ref().expect("TLS");
    assert_eq!((&*implied.hostname, implied.insecure, implied.http_only), ("tls.shop.svc", true, true));
    let told = tls(&[&service, &bundle(&pem), &policy])[0].clone().expect("TLS");
    assert_eq!(
        (&*told.hostname, told.insecure, told.ca_pem.map(|pem| pem.len())),
        ("in.example", false, Some(pem.len() + 1))
    );
    let with_names = |names: Value| {
        let mut policy = policy.clone();
        policy["spec"]["validation"]["subjectAltNames"] = names;
        tls(&[&service, &bundle(&pem), &policy])[0].clone().expect("TLS")
    };
    let named = with_names(
        json!([{"type": "Hostname", "hostname": "*.In.example"}, {"type": "URI", "uri": "spiffe://c/ns/s/sa/a"}]),
    );
    let expected = [AltName::Hostname("*.in.example".into()), AltName::Uri("spiffe://c/ns/s/sa/a".into())];
    assert_eq!((&*named.hostname, &*named.alt_names), ("in.example", &expected[..]));
    let refused = with_names(json!([{"type": "Hostname", "hostname": "a b"}]));
    assert_eq!((refused.alt_names.len(), refused.ca_pem), (0, Some(vec![])), "nobody is trusted");
    for broken in [vec![&service, &policy], vec![&service, &policy, &bundle("garbage")]] {
        let broken = tls(&broken)[0].clone().expect("TLS");
        assert_eq!((broken.ca_pem, broken.insecure), (Some(vec![]), false), "nobody is trusted");
    }
    let both = tls(&[&service, &bundle(&pem), &policy, &ours]);
    // What a client sends to a port for HTTPS is TLS already.
    let both = both.iter().map(|tls| tls.as_ref().map(|tls| (&*tls.hostname, tls.http_only)));
    assert_eq!(both.collect::<Vec<_>>(), [Some(("ours.example", false)), Some(("ours.example", true))]);
}
