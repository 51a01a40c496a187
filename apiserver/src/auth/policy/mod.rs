//! Default roles and bindings: the rows of [`table`] as objects.
//!
//! [`crate::bootstrap`] writes them, gives back what they lack, and never takes anything away.

mod table;

use serde_json::{Map, Value, json};

use super::rbac::RBAC_GROUP;
use super::rbac::rule::Rule;
use table::{Role, Row};

const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const NAMESPACE: &str = "kube-system";

/// Rules that the node authorizer gives every node (row `system:node`).
pub fn node_rules() -> Vec<Rule> {
    let rows = table::CLUSTER_ROLES.iter().filter(|r| r.name == "system:node");
    rows.flat_map(|r| r.rules.iter().map(to_rule)).collect()
}

fn owned(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

fn to_rule(row: &Row) -> Rule {
    Rule {
        verbs: row.verbs.iter().flat_map(|v| v.split(' ')).map(str::to_owned).collect(),
        api_groups: owned(row.groups),
        resources: owned(row.resources),
        resource_names: owned(row.names),
        non_resource_urls: owned(row.urls),
    }
}

/// A rule as objects have it.
pub fn rule_json(rule: Rule) -> Value {
    let mut out = json!({"verbs": rule.verbs});
    for (key, list) in [
        ("apiGroups", rule.api_groups),
        ("resources", rule.resources),
        ("resourceNames", rule.resource_names),
        ("nonResourceURLs", rule.non_resource_urls),
    ] {
        if !list.is_empty() {
            out[key] = json!(list);
        }
    }
    out
}

fn metadata(name: &str, namespace: Option<&str>, labels: &[&str]) -> Value {
    let mut all = Map::from_iter([("kubernetes.io/bootstrapping".to_owned(), json!("rbac-defaults"))]);
    all.extend(labels.iter().map(|l| (format!("{RBAC_GROUP}/{l}"), json!("true"))));
    let mut metadata = json!({"name": name, "labels": all, "annotations": {AUTOUPDATE: "true"}});
    if let Some(namespace) = namespace {
        metadata["namespace"] = json!(namespace);
    }
    metadata
}

fn object(kind: &str, metadata: Value) -> Value {
    json!({"apiVersion": format!("{RBAC_GROUP}/v1"), "kind": kind, "metadata": metadata})
}

fn role(kind: &str, row: &Role, namespace: Option<&str>) -> Value {
    let mut role = object(kind, metadata(row.name, namespace, row.labels));
    role["rules"] = row.rules.iter().map(|row| rule_json(to_rule(row))).collect();
    if let Some(label) = row.aggregate {
        let label = format!("{RBAC_GROUP}/{label}");
        role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
    }
    role
}

/// `("Group", "system:masters")` and so on.
fn binding(kind: &str, namespace: Option<&str>, name: &str, role: (&str, &str), subjects: &[(&str, &str)]) -> Value {
    let mut binding = object(kind, metadata(name, namespace, &[]));
    binding["roleRef"] = json!({"apiGroup": RBAC_GROUP, "kind": role.0, "name": role.1});
    let subject = |(kind, name): &(&str, &str)| json!({"apiGroup": RBAC_GROUP, "kind": kind, "name": name});
    if !subjects.is_empty() {
        binding["subjects"] = subjects.iter().map(subject).collect();
    }
    binding
}

/// Default cluster roles, roles and bindings, ready to create (each has apiVersion, kind, metadata). Roles come before
/// the bindings that refer to them; the namespaced ones live in `kube-system`.
pub fn bootstrap_objects() -> Vec<Value> {
    let mut all: Vec<Value> = table::CLUSTER_ROLES.iter().map(|row| role("ClusterRole", row, None)).collect();
    all.extend(table::ROLES.iter().map(|row| role("Role", row, Some(NAMESPACE))));
    for (role_name, subjects) in table::CLUSTER_BINDINGS {
        all.push(binding("ClusterRoleBinding", None, role_name, ("ClusterRole", role_name), subjects));
    }
    for row in table::CLUSTER_ROLES.iter().filter(|r| r.name.starts_with("system:controller:")) {
        let subjects = [("User", table::CONTROLLER_MANAGER)];
        all.push(binding("ClusterRoleBinding", None, row.name, ("ClusterRole", row.name), &subjects));
    }
    for (role_name, subjects) in table::BINDINGS {
        all.push(binding("RoleBinding", Some(NAMESPACE), role_name, ("Role", role_name), subjects));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::rbac::{Attributes, Authorizer};
    use crate::auth::testing::{MapReader, user};
    use crate::user::UserInfo;

    fn authorizer() -> Authorizer {
        let reader = MapReader::new(&[]);
        for object in bootstrap_objects() {
            let plural = format!("{}s", object["kind"].as_str().unwrap().to_lowercase());
            reader.put(RBAC_GROUP, &plural, object);
        }
        for (name, role, who) in [("v", "view", "vera"), ("e", "edit", "ed"), ("a", "admin", "ada")] {
            let mut binding = binding("RoleBinding", None, name, ("ClusterRole", role), &[("User", who)]);
            binding["metadata"]["namespace"] = json!("web");
            reader.put(RBAC_GROUP, "rolebindings", binding);
        }
        Authorizer::new(reader)
    }

    /// `verb group/resource[/subresource] [namespace/name]` or `verb //path`
    fn may(authorizer: &Authorizer, who: &UserInfo, text: &str) -> bool {
        let mut words = text.split(' ');
        let verb = words.next().unwrap();
        let what = words.next().unwrap();
        let (namespace, name) = words.next().and_then(|w| w.split_once('/')).unwrap_or_default();
        let mut a = Attributes { verb, namespace, name, ..Attributes::of(who) };
        if let Some(path) = what.strip_prefix('/').filter(|p| p.starts_with('/')) {
            a.path = path;
        } else {
            let mut parts = what.splitn(3, '/');
            (a.group, a.resource) = (parts.next().unwrap(), parts.next().unwrap());
            a.subresource = parts.next().unwrap_or_default();
        }
        authorizer.authorize(&a).allowed()
    }

    fn check(who: &UserInfo, yes: &[&str], no: &[&str]) {
        let authorizer = authorizer();
        for text in yes {
            assert!(may(&authorizer, who, text), "{} should be allowed to {text}", who.name);
        }
        for text in no {
            assert!(!may(&authorizer, who, text), "{} should not be allowed to {text}", who.name);
        }
    }

    #[test]
    fn anonymous_sees_health_and_version_only() {
        check(
            &UserInfo::anonymous(),
            &["get //livez", "get //readyz", "get //healthz", "get //version", "get //version/"],
            &[
                "get //api",
                "get //apis/apps",
                "get //openapi/v3",
                "get //metrics",
                "get //readyz/etcd",
                "post //version",
                "get /pods web/x",
                "list /namespaces",
                "create authorization.k8s.io/selfsubjectaccessreviews",
                "create authentication.k8s.io/selfsubjectreviews",
                "get //openid/v1/jwks",
            ],
        );
    }

    #[test]
    fn everybody_with_a_name_may_discover_and_ask_about_themselves() {
        check(
            &user("alice", &[]),
            &[
                "get //api",
                "get //apis/apps/v1",
                "get //openapi/v2",
                "get //version",
                "create authorization.k8s.io/selfsubjectaccessreviews",
                "create authorization.k8s.io/selfsubjectrulesreviews",
                "create authentication.k8s.io/selfsubjectreviews",
            ],
            &[
                "get /pods web/x",
                "list /namespaces",
                "get //metrics",
                "create authorization.k8s.io/subjectaccessreviews",
            ],
        );
    }

    #[test]
    fn view_edit_and_admin_are_nested() {
        let read = [
            "get /pods web/x",
            "list apps/deployments web/",
            "watch /configmaps web/",
            "get /pods/log web/x",
            "get /namespaces web/web",
            "list /events web/",
            "list discovery.k8s.io/endpointslices web/",
            "list networking.k8s.io/ingresses web/",
            "watch gateway.networking.k8s.io/httproutes web/",
            "get gateway.networking.k8s.io/gateways/status web/g",
            "list traffic.scaleup.dev/trafficpolicies web/",
            "watch policy.scaleup.dev/wasmplugins web/",
            "get policy.scaleup.dev/wasmplugins/status web/p",
        ];
        let secrets = ["get /secrets web/s", "create /pods/exec web/x", "create /serviceaccounts/token web/sa"];
        let write = [
            "create /pods web/",
            "patch apps/deployments web/d",
            "update apps/deployments/scale web/d",
            "deletecollection /services web/",
            "create /pods/eviction web/x",
            "create networking.k8s.io/ingresses web/",
            "patch gateway.networking.k8s.io/gateways web/g",
            "delete gateway.networking.k8s.io/referencegrants web/r",
            "create traffic.scaleup.dev/trafficpolicies web/",
            "patch policy.scaleup.dev/wasmplugins web/p",
            "update policy.scaleup.dev/wasmmodules/content web/m",
        ];
        let grant =
            ["create rbac.authorization.k8s.io/roles web/", "update rbac.authorization.k8s.io/rolebindings web/b"];
        let never = [
            "create rbac.authorization.k8s.io/clusterroles",
            "list /nodes",
            "get /pods db/x",
            "list /pods",
            "update /pods/status web/x",
            "delete /namespaces web/web",
            "escalate rbac.authorization.k8s.io/roles web/r",
            "create gateway.networking.k8s.io/gatewayclasses",
            "create networking.k8s.io/ingressclasses",
            "update gateway.networking.k8s.io/httproutes/status web/h",
            "update traffic.scaleup.dev/trafficpolicies/status web/t",
            "patch policy.scaleup.dev/wasmplugins/status web/p",
            "create policy.scaleup.dev/clusterwasmplugins",
            "update policy.scaleup.dev/wasmmodules/content kube-system/m",
        ];
        let (vera, ed, ada) = (user("vera", &[]), user("ed", &[]), user("ada", &[]));
        check(&vera, &read, &[&secrets[..], &write, &grant, &never].concat());
        check(&ed, &[&read[..], &secrets, &write].concat(), &[&grant[..], &never].concat());
        check(&ada, &[&read[..], &secrets, &write, &grant].concat(), &never);
    }

    #[test]
    fn roles_of_the_platform_have_what_they_need_and_no_more() {
        check(
            &user("system:kube-controller-manager", &[]),
            &[
                "list /secrets",
                "watch apps/deployments",
                "create apps/replicasets web/",
                "update apps/deployments/status web/d",
                "update apps/deployments/finalizers web/d",
                "update apps/replicasets/finalizers web/r",
                "create /pods web/",
                "delete /pods web/x",
                "update discovery.k8s.io/endpointslices web/x",
                "create /endpoints web/",
                "update /services/finalizers web/s",
                "update /namespaces/finalize /web",
                "deletecollection batch/jobs web/",
                "patch example.com/widgets web/w",
                "patch /nodes /n",
                "update /nodes/status /n",
                "patch /pods/status web/x",
                "create /serviceaccounts web/",
                "create /configmaps web/",
                "update /configmaps web/kube-root-ca.crt",
                "create events.k8s.io/events web/",
                "create coordination.k8s.io/leases kube-system/",
                "get //apis",
                "update coordination.k8s.io/leases kube-system/kube-controller-manager",
                "list coordination.k8s.io/leases kube-node-lease/",
                "patch policy.scaleup.dev/clusterwasmplugins/status /p",
                "update policy.scaleup.dev/wasmmodules/content web/m",
            ],
            &[
                "create rbac.authorization.k8s.io/clusterrolebindings",
                "bind rbac.authorization.k8s.io/clusterroles /x",
                "escalate rbac.authorization.k8s.io/clusterroles /x",
                "create /pods/exec web/x",
                "create /pods/binding web/x",
                "impersonate /users /bob",
            ],
        );
        check(
            &user("system:kube-scheduler", &[]),
            &[
                "watch /pods",
                "list /nodes",
                "create /pods/binding web/x",
                "patch /pods/status web/x",
                "delete /pods web/x",
                "create events.k8s.io/events web/",
                "list /namespaces",
                "list apps/replicasets",
                "create coordination.k8s.io/leases kube-system/",
                "list /persistentvolumeclaims",
                "patch policy.scaleup.dev/wasmplugins/status web/p",
                "get policy.scaleup.dev/wasmmodules/content web/m",
            ],
            &[
                "update policy.scaleup.dev/wasmmodules/content web/m",
                "create /pods web/",
                "get /secrets web/s",
                "update /nodes /n",
                "create apps/deployments web/",
            ],
        );
        check(
            &user("system:kube-proxy", &[]),
            &[
                "watch /services",
                "list discovery.k8s.io/endpointslices",
                "get /nodes /n",
                "list /pods",
                "patch /services/status web/s",
                "update /services/status web/s",
                "create events.k8s.io/events web/",
                "list /namespaces",
                "watch /configmaps",
                "watch networking.k8s.io/ingresses",
                "list networking.k8s.io/ingressclasses",
                "watch gateway.networking.k8s.io/gatewayclasses",
                "watch gateway.networking.k8s.io/httproutes",
                "list gateway.networking.k8s.io/backendtlspolicies",
                "watch traffic.scaleup.dev/trafficpolicies",
                "patch networking.k8s.io/ingresses/status web/i",
                "patch gateway.networking.k8s.io/gatewayclasses/status /c",
                "update gateway.networking.k8s.io/tlsroutes/status web/t",
                "patch traffic.scaleup.dev/trafficpolicies/status web/t",
                "watch policy.scaleup.dev/clusterwasmplugins",
                "get policy.scaleup.dev/wasmmodules/content web/m",
            ],
            &[
                "watch /secrets",
                "get /secrets web/s",
                "list /secrets web/",
                "update coordination.k8s.io/leases kube-system/kube-controller-manager",
                "update /services web/s",
                "update /nodes/status /n",
                "update /secrets web/s",
                "update networking.k8s.io/ingresses web/i",
                "delete gateway.networking.k8s.io/httproutes web/h",
                "delete /pods web/x",
            ],
        );
        check(
            &user("prometheus", &["system:monitoring"]),
            &["get //metrics", "get //readyz/store"],
            &["get //logs/x", "list /pods"],
        );
        check(
            &user("system:serviceaccount:a:b", &["system:serviceaccounts"]),
            &["get //openid/v1/jwks"],
            &["list /pods"],
        );
    }

    #[test]
    fn nodes_get_nothing_through_rbac() {
        check(&user("system:node:n1", &[]), &["get //api"], &["list /pods", "get /secrets web/s", "patch /nodes /n1"]);
    }

    #[test]
    fn objects_are_complete_and_refer_to_each_other() {
        let objects = bootstrap_objects();
        let mut seen = std::collections::BTreeSet::new();
        for object in &objects {
            let (kind, name) = (object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
            assert!(seen.insert((kind, name)), "{kind} {name} twice");
            if let Some(role) = object.get("roleRef") {
                let role = (role["kind"].as_str().unwrap(), role["name"].as_str().unwrap());
                assert!(seen.contains(&role), "{name} refers to {role:?} before it exists");
            }
        }
    }
}
