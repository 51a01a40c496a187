//! What Gateways and their routes become, by value: a table of objects and the lines of [`super::testing::describe`].

use serde_json::{Value, json};

use super::certificates::tests::secret;
use super::testing::{compiler, describe};
use super::{PlanConfig, Snapshot};

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
