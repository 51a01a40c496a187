//! Cells of every kind but the pod, and the small readers they are made of.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as K8sLabelSelector;
use scaleup_api::selector::LabelSelector;
use serde::Deserialize;
use serde_json::Value;

use crate::present::age;

/// How many addresses or ports a cell lists before it says how many more there are.
const MAX_LISTED: usize = 3;

// ---- readers: what is absent or of another type reads as empty ----

/// The value at a path of fields.
pub fn at<'a>(object: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, key| value.get(key))
}

/// A string field; empty if absent.
pub fn text<'a>(object: &'a Value, path: &[&str]) -> &'a str {
    at(object, path).and_then(Value::as_str).unwrap_or("")
}

/// An integer field; 0 if absent.
pub fn integer(object: &Value, path: &[&str]) -> i64 {
    at(object, path).and_then(Value::as_i64).unwrap_or(0)
}

/// A boolean field; false if absent.
pub fn flag(object: &Value, path: &[&str]) -> bool {
    at(object, path).and_then(Value::as_bool).unwrap_or(false)
}

/// A list field; empty if absent.
pub fn array<'a>(object: &'a Value, path: &[&str]) -> &'a [Value] {
    at(object, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// `value`, or `fallback` if it is empty.
pub fn or<'a>(value: &'a str, fallback: &'a str) -> &'a str {
    if value.is_empty() { fallback } else { value }
}

fn keys(object: &Value, path: &[&str]) -> usize {
    at(object, path).and_then(Value::as_object).map_or(0, serde_json::Map::len)
}

pub fn joined<'a>(items: impl Iterator<Item = &'a str>, separator: &str) -> String {
    items.collect::<Vec<_>>().join(separator)
}

/// `a,b,c + 2 more...`
pub fn listed(items: &[String], empty: &str) -> Value {
    let shown = items.get(..MAX_LISTED).unwrap_or(items).join(",");
    match items.len().checked_sub(MAX_LISTED) {
        Some(more) if more > 0 => format!("{shown} + {more} more...").into(),
        _ => or(&shown, empty).into(),
    }
}

// ---- metadata ----

/// `metadata.name`
pub fn name(object: &Value) -> Value {
    text(object, &["metadata", "name"]).into()
}

/// Time since `metadata.creationTimestamp`.
pub fn age(object: &Value) -> Value {
    age::since(text(object, &["metadata", "creationTimestamp"])).into()
}

/// `metadata.creationTimestamp` itself; clients print it as an age.
pub fn created_at(object: &Value) -> Value {
    text(object, &["metadata", "creationTimestamp"]).into()
}

// ---- workloads ----

/// `2/3`
pub fn deployment_ready(object: &Value) -> Value {
    let (ready, want) = (integer(object, &["status", "readyReplicas"]), integer(object, &["spec", "replicas"]));
    format!("{ready}/{want}").into()
}

/// `status.updatedReplicas`
pub fn updated_replicas(object: &Value) -> Value {
    integer(object, &["status", "updatedReplicas"]).into()
}

/// `status.availableReplicas`
pub fn available_replicas(object: &Value) -> Value {
    integer(object, &["status", "availableReplicas"]).into()
}

/// `spec.replicas`
pub fn desired_replicas(object: &Value) -> Value {
    integer(object, &["spec", "replicas"]).into()
}

/// `status.replicas`
pub fn current_replicas(object: &Value) -> Value {
    integer(object, &["status", "replicas"]).into()
}

/// `status.readyReplicas`
pub fn ready_replicas(object: &Value) -> Value {
    integer(object, &["status", "readyReplicas"]).into()
}

fn containers(object: &Value, field: &str) -> Value {
    let containers = array(object, &["spec", "template", "spec", "containers"]);
    joined(containers.iter().map(|c| text(c, &[field])), ",").into()
}

/// Names of the template's containers.
pub fn container_names(object: &Value) -> Value {
    containers(object, "name")
}

/// Images of the template's containers.
pub fn container_images(object: &Value) -> Value {
    containers(object, "image")
}

fn selector_text(object: &Value) -> Option<String> {
    let selector = K8sLabelSelector::deserialize(at(object, &["spec", "selector"])?).ok()?;
    LabelSelector::from_k8s(&selector).ok().map(|s| s.to_string())
}

/// `spec.selector` of a Deployment.
pub fn label_selector(object: &Value) -> Value {
    match at(object, &["spec", "selector"]) {
        Some(_) => selector_text(object).unwrap_or_else(|| "<invalid>".to_owned()).into(),
        None => "".into(),
    }
}

/// `spec.selector` of a ReplicaSet.
pub fn label_selector_or_none(object: &Value) -> Value {
    match at(object, &["spec", "selector"]) {
        Some(_) => selector_text(object).map_or_else(|| "<error>".into(), |s| or(&s, "<none>").into()),
        None => "<none>".into(),
    }
}

// ---- services and endpoints ----

/// `spec.type`
pub fn service_type(object: &Value) -> Value {
    text(object, &["spec", "type"]).into()
}

/// First of `spec.clusterIPs`.
pub fn cluster_ip(object: &Value) -> Value {
    let first = array(object, &["spec", "clusterIPs"]).first().and_then(Value::as_str).unwrap_or("");
    or(or(first, text(object, &["spec", "clusterIP"])), "<none>").into()
}

/// `spec.externalIPs` and the load balancer's addresses, by type.
pub fn external_ip(object: &Value) -> Value {
    let external: Vec<&str> = array(object, &["spec", "externalIPs"]).iter().filter_map(Value::as_str).collect();
    match text(object, &["spec", "type"]) {
        "ClusterIP" | "NodePort" => or(&external.join(","), "<none>").into(),
        "LoadBalancer" => {
            let ingress = array(object, &["status", "loadBalancer", "ingress"]);
            let own: BTreeSet<&str> = ingress
                .iter()
                .map(|i| or(text(i, &["ip"]), text(i, &["hostname"])))
                .filter(|address| !address.is_empty())
                .collect();
            let all = joined(own.into_iter().chain(external), ",");
            or(&all, "<pending>").into()
        }
        "ExternalName" => text(object, &["spec", "externalName"]).into(),
        _ => "<unknown>".into(),
    }
}

/// `80:30080/TCP,443/TCP`
pub fn service_ports(object: &Value) -> Value {
    let port = |p: &Value| {
        let (port, protocol) = (integer(p, &["port"]), text(p, &["protocol"]));
        match integer(p, &["nodePort"]) {
            0 => format!("{port}/{protocol}"),
            node_port => format!("{port}:{node_port}/{protocol}"),
        }
    };
    let ports: Vec<String> = array(object, &["spec", "ports"]).iter().map(port).collect();
    or(&ports.join(","), "<none>").into()
}

/// `app=web,tier=front`
pub fn service_selector(object: &Value) -> Value {
    let pairs: BTreeMap<&str, &str> = at(object, &["spec", "selector"])
        .and_then(Value::as_object)
        .map(|m| m.iter().map(|(k, v)| (k.as_str(), v.as_str().unwrap_or(""))).collect())
        .unwrap_or_default();
    let all: Vec<String> = pairs.iter().map(|(k, v)| format!("{k}={v}")).collect();
    or(&all.join(","), "<none>").into()
}

fn host_port(address: &str, port: i64) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// `10.0.0.1:80,10.0.0.2:80 + 3 more...`
pub fn endpoints(object: &Value) -> Value {
    let mut all = Vec::new();
    for subset in array(object, &["subsets"]) {
        let addresses = || array(subset, &["addresses"]).iter().map(|a| text(a, &["ip"]));
        let ports = array(subset, &["ports"]);
        if ports.is_empty() {
            all.extend(addresses().map(str::to_owned));
        }
        for port in ports {
            all.extend(addresses().map(|ip| host_port(ip, integer(port, &["port"]))));
        }
    }
    listed(&all, "<none>")
}

/// `addressType`
pub fn address_type(object: &Value) -> Value {
    text(object, &["addressType"]).into()
}

/// `80,443`
pub fn slice_ports(object: &Value) -> Value {
    let port = |p: &Value| match (integer(p, &["port"]), text(p, &["name"])) {
        (0, "") => "*".to_owned(),
        (0, name) => name.to_owned(),
        (number, _) => number.to_string(),
    };
    listed(&array(object, &["ports"]).iter().map(port).collect::<Vec<_>>(), "<unset>")
}

/// `10.0.0.1,10.0.0.2 + 3 more...`
pub fn slice_endpoints(object: &Value) -> Value {
    let addresses = array(object, &["endpoints"]).iter().flat_map(|e| array(e, &["addresses"]));
    listed(&addresses.filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>(), "<unset>")
}

// ---- configuration ----

/// Keys of `data` and `binaryData`.
pub fn config_map_keys(object: &Value) -> Value {
    (keys(object, &["data"]) + keys(object, &["binaryData"])).into()
}

/// Keys of `data`.
pub fn secret_keys(object: &Value) -> Value {
    keys(object, &["data"]).into()
}

/// `type` of a Secret or Event.
pub fn object_type(object: &Value) -> Value {
    text(object, &["type"]).into()
}

/// How many entries `secrets` of a ServiceAccount has.
pub fn secrets(object: &Value) -> Value {
    array(object, &["secrets"]).len().into()
}

/// `status.phase`
pub fn phase(object: &Value) -> Value {
    text(object, &["status", "phase"]).into()
}

/// `spec.holderIdentity`
pub fn lease_holder(object: &Value) -> Value {
    text(object, &["spec", "holderIdentity"]).into()
}

/// `value`
pub fn priority_value(object: &Value) -> Value {
    integer(object, &["value"]).into()
}

/// `globalDefault`
pub fn global_default(object: &Value) -> Value {
    flag(object, &["globalDefault"]).into()
}

/// `preemptionPolicy`
pub fn preemption_policy(object: &Value) -> Value {
    text(object, &["preemptionPolicy"]).into()
}

// ---- nodes ----

/// `Ready,SchedulingDisabled`
pub fn node_status(object: &Value) -> Value {
    let conditions = array(object, &["status", "conditions"]);
    let ready = conditions.iter().find(|c| text(c, &["type"]) == "Ready").map(|c| text(c, &["status"]));
    let status = match ready {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    if flag(object, &["spec", "unschedulable"]) {
        return format!("{status},SchedulingDisabled").into();
    }
    status.into()
}

/// Roles from the labels `node-role.kubernetes.io/ROLE` and `kubernetes.io/role`.
pub fn node_roles(object: &Value) -> Value {
    let labels = at(object, &["metadata", "labels"]).and_then(Value::as_object);
    let role = |(key, value): (&String, &Value)| match key.strip_prefix("node-role.kubernetes.io/") {
        Some(role) => Some(role.to_owned()),
        None if key == "kubernetes.io/role" => value.as_str().map(str::to_owned),
        None => None,
    };
    let roles: BTreeSet<String> = labels.into_iter().flatten().filter_map(role).filter(|r| !r.is_empty()).collect();
    or(&joined(roles.iter().map(String::as_str), ","), "<none>").into()
}

/// `status.nodeInfo.kubeletVersion`
pub fn kubelet_version(object: &Value) -> Value {
    text(object, &["status", "nodeInfo", "kubeletVersion"]).into()
}

fn node_address(object: &Value, kind: &str) -> Value {
    let addresses = array(object, &["status", "addresses"]);
    addresses.iter().find(|a| text(a, &["type"]) == kind).map_or("<none>", |a| text(a, &["address"])).into()
}

/// First address of type InternalIP.
pub fn internal_ip(object: &Value) -> Value {
    node_address(object, "InternalIP")
}

/// First address of type ExternalIP.
pub fn node_external_ip(object: &Value) -> Value {
    node_address(object, "ExternalIP")
}

fn node_info(object: &Value, field: &str) -> Value {
    or(text(object, &["status", "nodeInfo", field]), "<unknown>").into()
}

/// `status.nodeInfo.osImage`
pub fn os_image(object: &Value) -> Value {
    node_info(object, "osImage")
}

/// `status.nodeInfo.kernelVersion`
pub fn kernel_version(object: &Value) -> Value {
    node_info(object, "kernelVersion")
}

/// `status.nodeInfo.containerRuntimeVersion`
pub fn container_runtime(object: &Value) -> Value {
    node_info(object, "containerRuntimeVersion")
}

// ---- events: the core and the events.k8s.io shape name the same things differently ----

fn first_of<'a>(object: &'a Value, paths: &[&[&str]]) -> &'a str {
    paths.iter().map(|path| text(object, path)).find(|value| !value.is_empty()).unwrap_or("")
}

fn event_first(object: &Value) -> String {
    age::since(first_of(object, &[&["firstTimestamp"], &["deprecatedFirstTimestamp"], &["eventTime"]]))
}

/// Age of the first occurrence.
pub fn event_first_seen(object: &Value) -> Value {
    event_first(object).into()
}

/// Age of the last occurrence.
pub fn event_last_seen(object: &Value) -> Value {
    if at(object, &["series"]).is_some_and(Value::is_object) {
        return age::since(text(object, &["series", "lastObservedTime"])).into();
    }
    match first_of(object, &[&["lastTimestamp"], &["deprecatedLastTimestamp"]]) {
        "" => event_first(object).into(),
        last => age::since(last).into(),
    }
}

/// `reason`
pub fn event_reason(object: &Value) -> Value {
    text(object, &["reason"]).into()
}

/// `pod/web-1`
pub fn event_object(object: &Value) -> Value {
    let field = |name: &str| first_of(object, &[&["involvedObject", name], &["regarding", name]]).to_owned();
    let kind = field("kind").to_lowercase();
    match field("name") {
        name if name.is_empty() => kind.into(),
        name => format!("{kind}/{name}").into(),
    }
}

/// `spec.containers{app}`
pub fn event_subobject(object: &Value) -> Value {
    first_of(object, &[&["involvedObject", "fieldPath"], &["regarding", "fieldPath"]]).into()
}

/// `kubelet, node-1`
pub fn event_source(object: &Value) -> Value {
    let component = first_of(
        object,
        &[
            &["source", "component"],
            &["deprecatedSource", "component"],
            &["reportingComponent"],
            &["reportingController"],
        ],
    );
    let host = first_of(object, &[&["source", "host"], &["deprecatedSource", "host"], &["reportingInstance"]]);
    if host.is_empty() { component.into() } else { format!("{component}, {host}").into() }
}

/// `message` or `note`
pub fn event_message(object: &Value) -> Value {
    first_of(object, &[&["message"], &["note"]]).trim().into()
}

/// `count`; an event without one happened once.
pub fn event_count(object: &Value) -> Value {
    let counts: [&[&str]; 3] = [&["series", "count"], &["count"], &["deprecatedCount"]];
    counts.iter().map(|path| integer(object, path)).find(|n| *n > 0).unwrap_or(1).into()
}

// ---- RBAC ----

/// `ClusterRole/view`
pub fn role_ref(object: &Value) -> Value {
    format!("{}/{}", text(object, &["roleRef", "kind"]), text(object, &["roleRef", "name"])).into()
}

fn subjects(object: &Value, kind: &str) -> Value {
    let of_kind = array(object, &["subjects"]).iter().filter(|s| text(s, &["kind"]) == kind);
    let shown = |s: &Value| match (kind, text(s, &["namespace"])) {
        ("ServiceAccount", namespace) if !namespace.is_empty() => format!("{namespace}/{}", text(s, &["name"])),
        _ => text(s, &["name"]).to_owned(),
    };
    of_kind.map(shown).collect::<Vec<_>>().join(", ").into()
}

/// Users among the subjects.
pub fn bound_users(object: &Value) -> Value {
    subjects(object, "User")
}

/// Groups among the subjects.
pub fn bound_groups(object: &Value) -> Value {
    subjects(object, "Group")
}

/// Service accounts among the subjects, as `namespace/name`.
pub fn bound_service_accounts(object: &Value) -> Value {
    subjects(object, "ServiceAccount")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(cell: fn(&Value) -> Value, object: Value, want: impl Into<Value>) {
        assert_eq!(cell(&object), want.into(), "{object}");
    }

    #[test]
    fn services() {
        let lb = |status: Value, external: Value| json!({"spec": {"type": "LoadBalancer", "externalIPs": external}, "status": {"loadBalancer": status}});
        check(external_ip, lb(json!({}), json!([])), "<pending>");
        check(external_ip, lb(json!({"ingress": [{"ip": "1.2.3.4"}, {"hostname": "h"}]}), json!([])), "1.2.3.4,h");
        check(external_ip, lb(json!({"ingress": [{"ip": "1.2.3.4"}]}), json!(["9.9.9.9"])), "1.2.3.4,9.9.9.9");
        check(external_ip, json!({"spec": {"type": "ClusterIP"}}), "<none>");
        check(external_ip, json!({"spec": {"type": "ExternalName", "externalName": "db.example"}}), "db.example");
        check(external_ip, json!({}), "<unknown>");
        let ports = json!([{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]);
        check(service_ports, json!({"spec": {"ports": ports}}), "80:30080/TCP,53/UDP");
        check(service_ports, json!({}), "<none>");
        check(cluster_ip, json!({"spec": {"clusterIPs": ["10.96.0.1"]}}), "10.96.0.1");
        check(cluster_ip, json!({}), "<none>");
        check(service_selector, json!({"spec": {"selector": {"b": "2", "a": "1"}}}), "a=1,b=2");
        check(service_selector, json!({}), "<none>");
    }

    #[test]
    fn endpoint_lists_are_cut() {
        let ips = |n: usize| (1..=n).map(|i| json!({"ip": format!("10.0.0.{i}")})).collect::<Value>();
        let subset = |n: usize, ports: Value| json!({"subsets": [{"addresses": ips(n), "ports": ports}]});
        check(endpoints, json!({}), "<none>");
        check(endpoints, subset(2, json!([{"port": 80}])), "10.0.0.1:80,10.0.0.2:80");
        check(endpoints, subset(5, json!([{"port": 80}])), "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more...");
        check(endpoints, subset(1, json!([])), "10.0.0.1");
        check(
            endpoints,
            json!({"subsets": [{"addresses": [{"ip": "fd00::1"}], "ports": [{"port": 1}]}]}),
            "[fd00::1]:1",
        );
        check(slice_ports, json!({"ports": [{"port": 80}, {"name": "x"}, {}]}), "80,x,*");
        check(slice_ports, json!({}), "<unset>");
        let slice = json!({"endpoints": [{"addresses": ["a", "b"]}, {"addresses": ["c", "d"]}]});
        check(slice_endpoints, slice, "a,b,c + 1 more...");
    }

    #[test]
    fn nodes() {
        let node = |status: &str, cordoned: bool| json!({"spec": {"unschedulable": cordoned}, "status": {"conditions": [{"type": "Ready", "status": status}]}});
        check(node_status, node("True", false), "Ready");
        check(node_status, node("Unknown", true), "NotReady,SchedulingDisabled");
        check(node_status, json!({}), "Unknown");
        let labels = json!({"node-role.kubernetes.io/worker": "", "kubernetes.io/role": "gpu", "x": "y",
            "node-role.kubernetes.io/control-plane": ""});
        check(node_roles, json!({"metadata": {"labels": labels}}), "control-plane,gpu,worker");
        check(node_roles, json!({}), "<none>");
        check(
            internal_ip,
            json!({"status": {"addresses": [{"type": "InternalIP", "address": "10.1.1.1"}]}}),
            "10.1.1.1",
        );
        check(os_image, json!({}), "<unknown>");
    }

    #[test]
    fn events_of_both_groups() {
        let core = json!({"involvedObject": {"kind": "Pod", "name": "web", "fieldPath": "spec"}, "message": " hi\n",
            "source": {"component": "kubelet", "host": "n1"}, "count": 4, "reason": "Pulled", "type": "Normal"});
        let new = json!({"regarding": {"kind": "Pod", "name": "web", "fieldPath": "spec"}, "note": "hi",
            "reportingController": "kubelet", "reportingInstance": "n1", "series": {"count": 4}});
        for event in [core, new] {
            check(event_object, event.clone(), "pod/web");
            check(event_subobject, event.clone(), "spec");
            check(event_message, event.clone(), "hi");
            check(event_source, event.clone(), "kubelet, n1");
            check(event_count, event, 4);
        }
        check(event_count, json!({}), 1);
        check(event_last_seen, json!({}), "<unknown>");
        let old = json!({"series": {"lastObservedTime": "2000-01-01T00:00:00.000000Z"}});
        assert!(event_last_seen(&old).as_str().is_some_and(|a| a.ends_with('y')));
    }

    #[test]
    fn workloads_and_the_rest() {
        let deployment = json!({"spec": {"replicas": 3, "selector": {"matchLabels": {"b": "2", "a": "1"}},
            "template": {"spec": {"containers": [{"name": "x", "image": "i:1"}, {"name": "y", "image": "j:2"}]}}},
            "status": {"readyReplicas": 2, "updatedReplicas": 1}});
        check(deployment_ready, deployment.clone(), "2/3");
        check(updated_replicas, deployment.clone(), 1);
        check(available_replicas, deployment.clone(), 0);
        check(container_names, deployment.clone(), "x,y");
        check(container_images, deployment.clone(), "i:1,j:2");
        check(label_selector, deployment.clone(), "a=1,b=2");
        check(label_selector_or_none, deployment, "a=1,b=2");
        check(label_selector_or_none, json!({}), "<none>");
        let bad = json!({"spec": {"selector": {"matchExpressions": [{"key": "a", "operator": "Bad"}]}}});
        check(label_selector, bad, "<invalid>");
        check(config_map_keys, json!({"data": {"a": ""}, "binaryData": {"b": ""}}), 2);
        check(secret_keys, json!({"data": {"a": ""}}), 1);
        check(secrets, json!({"secrets": [{}]}), 1);
        let binding = json!({"roleRef": {"kind": "ClusterRole", "name": "view"}, "subjects": [
            {"kind": "User", "name": "u"}, {"kind": "Group", "name": "g"}, {"kind": "User", "name": "v"},
            {"kind": "ServiceAccount", "name": "s", "namespace": "n"}]});
        check(role_ref, binding.clone(), "ClusterRole/view");
        check(bound_users, binding.clone(), "u, v");
        check(bound_groups, binding.clone(), "g");
        check(bound_service_accounts, binding, "n/s");
    }
}
