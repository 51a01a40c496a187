//! Cells of Ingresses, the Gateway API and TrafficPolicies.
//!
//! Those of the Gateway API are what a custom resource's JSON paths give upstream: lists print as JSON, and what is absent is empty.

use serde_json::Value;

use super::cells::{array, at, joined, listed, or, text};

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

// ---- networking.k8s.io ----

/// `spec.ingressClassName`, or what was used before there was one.
pub fn ingress_class(object: &Value) -> Value {
    let annotation = text(object, &["metadata", "annotations", CLASS_ANNOTATION]);
    or(or(text(object, &["spec", "ingressClassName"]), annotation), "<none>").into()
}

/// Hosts of the rules; `*` if there are none.
pub fn ingress_hosts(object: &Value) -> Value {
    let hosts = array(object, &["spec", "rules"]).iter().map(|rule| text(rule, &["host"]));
    let hosts: Vec<String> = hosts.filter(|host| !host.is_empty()).map(str::to_owned).collect();
    listed(&hosts, "*")
}

/// Addresses from the status.
pub fn ingress_address(object: &Value) -> Value {
    let points = array(object, &["status", "loadBalancer", "ingress"]);
    joined(points.iter().map(|p| or(text(p, &["ip"]), text(p, &["hostname"]))), ",").into()
}

/// `80`, and `443` with TLS.
pub fn ingress_ports(object: &Value) -> Value {
    if array(object, &["spec", "tls"]).is_empty() { "80".into() } else { "80, 443".into() }
}

/// `spec.controller`
pub fn class_controller(object: &Value) -> Value {
    text(object, &["spec", "controller"]).into()
}

/// `Kind.group/name`
pub fn class_parameters(object: &Value) -> Value {
    let Some(parameters) = at(object, &["spec", "parameters"]).filter(|p| p.is_object()) else {
        return "<none>".into();
    };
    let (kind, group, name) =
        (text(parameters, &["kind"]), text(parameters, &["apiGroup"]), text(parameters, &["name"]));
    if group.is_empty() { format!("{kind}/{name}").into() } else { format!("{kind}.{group}/{name}").into() }
}

// ---- gateway.networking.k8s.io ----

fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    let found = array(object, &["status", "conditions"]).iter().find(|c| c["type"] == kind);
    found.map_or("", |c| text(c, &["status"]))
}

/// `spec.controllerName`
pub fn gateway_controller(object: &Value) -> Value {
    text(object, &["spec", "controllerName"]).into()
}

/// Status of the condition `Accepted`.
pub fn accepted(object: &Value) -> Value {
    condition(object, "Accepted").into()
}

/// `spec.description`
pub fn description(object: &Value) -> Value {
    text(object, &["spec", "description"]).into()
}

/// `spec.gatewayClassName`
pub fn gateway_class(object: &Value) -> Value {
    text(object, &["spec", "gatewayClassName"]).into()
}

/// Addresses from the status.
pub fn gateway_address(object: &Value) -> Value {
    joined(array(object, &["status", "addresses"]).iter().map(|a| text(a, &["value"])), ",").into()
}

/// Status of the condition `Programmed`.
pub fn programmed(object: &Value) -> Value {
    condition(object, "Programmed").into()
}

/// `spec.hostnames`, as JSON.
pub fn hostnames(object: &Value) -> Value {
    at(object, &["spec", "hostnames"]).map(Value::to_string).unwrap_or_default().into()
}

// ---- traffic.scaleup.dev ----

/// `Service/web,HTTPRoute/shop`
pub fn policy_targets(object: &Value) -> Value {
    let target = |t: &Value| {
        let section = text(t, &["sectionName"]);
        let section = if section.is_empty() { String::new() } else { format!(":{section}") };
        format!("{}/{}{section}", text(t, &["kind"]), text(t, &["name"]))
    };
    let targets: Vec<String> = array(object, &["spec", "targetRefs"]).iter().map(target).collect();
    listed(&targets, "<none>")
}

/// `spec.loadBalancing.algorithm`
pub fn policy_algorithm(object: &Value) -> Value {
    or(text(object, &["spec", "loadBalancing", "algorithm"]), "<default>").into()
}

/// `True` if it is at every target, else the first other status; empty while nobody has looked.
pub fn policy_accepted(object: &Value) -> Value {
    let conditions = array(object, &["status", "ancestors"]).iter().flat_map(|a| array(a, &["conditions"]));
    let mut all = conditions.filter(|c| c["type"] == "Accepted").map(|c| text(c, &["status"])).peekable();
    let first = all.peek().copied().unwrap_or("");
    all.find(|status| *status != "True").unwrap_or(first).into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cells() {
        let ingress = json!({"metadata": {"annotations": {CLASS_ANNOTATION: "old"}},
            "spec": {"rules": [{"host": "a"}, {}, {"host": "b"}, {"host": "c"}, {"host": "d"}], "tls": [{}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.1"}, {"hostname": "h"}]}}});
        assert_eq!(ingress_class(&ingress), "old");
        assert_eq!(ingress_hosts(&ingress), "a,b,c + 1 more...");
        assert_eq!(ingress_address(&ingress), "10.0.0.1,h");
        assert_eq!(ingress_ports(&ingress), "80, 443");
        assert_eq!((ingress_class(&json!({})), ingress_hosts(&json!({}))), ("<none>".into(), "*".into()));
        let class = json!({"spec": {"parameters": {"kind": "P", "apiGroup": "a.b", "name": "n"}}});
        assert_eq!((class_parameters(&class), class_parameters(&json!({}))), ("P.a.b/n".into(), "<none>".into()));
        let gateway = json!({"status": {"conditions": [{"type": "Programmed", "status": "True"}], "addresses": [{"value": "10.0.0.1"}]}});
        assert_eq!((programmed(&gateway), accepted(&gateway)), ("True".into(), "".into()));
        assert_eq!(gateway_address(&gateway), "10.0.0.1");
        assert_eq!(hostnames(&json!({"spec": {"hostnames": ["a", "b"]}})), r#"["a","b"]"#);
    }

    #[test]
    fn policies() {
        let accepted = |all: &[&str]| {
            let ancestors = all.iter().map(|s| json!({"conditions": [{"type": "Accepted", "status": s}]}));
            policy_accepted(&json!({"status": {"ancestors": ancestors.collect::<Value>()}}))
        };
        assert_eq!(accepted(&[]), "");
        assert_eq!(accepted(&["True", "True"]), "True");
        assert_eq!(accepted(&["True", "False"]), "False");
        let policy = json!({"spec": {"targetRefs": [{"kind": "Service", "name": "web"}, {"kind": "Gateway", "name": "g", "sectionName": "s"}]}});
        assert_eq!(policy_targets(&policy), "Service/web,Gateway/g:s");
        assert_eq!(policy_algorithm(&policy), "<default>");
    }
}
