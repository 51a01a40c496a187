//! Cases from upstream's guide (`strategic-merge-patch.md`, "Update API Objects in Place Using kubectl patch") and its
//! `patch_test.go`, on real kinds.

use serde_json::{Value, json};

use crate::error::ApiError;
use crate::patch::strategic_merge;
use crate::present::fixtures::resource;

fn patch(kind: (&'static str, &'static str), object: &Value, patch: &Value) -> Result<Value, ApiError> {
    strategic_merge(&resource(kind.0, "v1", kind.1, "x"), object, patch.to_string().as_bytes())
}

/// Patches a Deployment whose pod template's spec is `spec`.
fn check_pod_spec(spec: Value, change: Value, want: Value) {
    let wrap = |spec: &Value| json!({"spec": {"template": {"spec": spec}}});
    let got = patch(("apps", "Deployment"), &wrap(&spec), &wrap(&change)).unwrap_or_else(|e| panic!("{change}: {e:?}"));
    assert_eq!(got, wrap(&want), "{change}");
}

fn check(kind: (&'static str, &'static str), object: Value, change: Value, want: Value) {
    let got = patch(kind, &object, &change).unwrap_or_else(|e| panic!("{change}: {e:?}"));
    assert_eq!(got, want, "{change}");
}

const POD: (&str, &str) = ("", "Pod");
const DEPLOYMENT: (&str, &str) = ("apps", "Deployment");
const SERVICE: (&str, &str) = ("", "Service");

#[test]
fn containers_merge_by_name() {
    let nginx = json!({"name": "patch-demo-ctr", "image": "nginx", "env": [{"name": "A", "value": "1"}]});
    check_pod_spec(
        json!({"containers": [nginx]}),
        json!({"containers": [{"name": "patch-demo-ctr-2", "image": "redis"}]}),
        json!({"containers": [{"name": "patch-demo-ctr-2", "image": "redis"}, nginx]}),
    );
    check_pod_spec(
        json!({"containers": [nginx]}),
        json!({"containers": [{"name": "patch-demo-ctr", "image": "nginx:2"}]}),
        json!({"containers": [{"name": "patch-demo-ctr", "image": "nginx:2", "env": [{"name": "A", "value": "1"}]}]}),
    );
    check_pod_spec(
        json!({"containers": [nginx]}),
        json!({"containers": [{"name": "patch-demo-ctr", "env": [{"name": "B", "value": "2"}, {"name": "A", "value": "3"}]}]}),
        json!({"containers": [{"name": "patch-demo-ctr", "image": "nginx",
            "env": [{"name": "B", "value": "2"}, {"name": "A", "value": "3"}]}]}),
    );
    // kubectl set env NAME- sends an item with `$patch: delete`.
    check_pod_spec(
        json!({"containers": [nginx]}),
        json!({"containers": [{"name": "patch-demo-ctr", "env": [{"name": "A", "$patch": "delete"}]}]}),
        json!({"containers": [{"name": "patch-demo-ctr", "image": "nginx", "env": []}]}),
    );
}

#[test]
fn ports_merge_by_container_port_alone() {
    check_pod_spec(
        json!({"containers": [{"name": "a", "ports": [{"containerPort": 53, "protocol": "TCP"}]}]}),
        json!({"containers": [{"name": "a", "ports": [{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 80}]}]}),
        json!({"containers": [{"name": "a", "ports": [{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 80}]}]}),
    );
    check(
        SERVICE,
        json!({"spec": {"ports": [{"port": 80, "nodePort": 30080}, {"port": 443}]}}),
        json!({"spec": {"ports": [{"port": 80, "targetPort": "http"}]}}),
        json!({"spec": {"ports": [{"port": 80, "nodePort": 30080, "targetPort": "http"}, {"port": 443}]}}),
    );
}

#[test]
fn atomic_lists_are_replaced() {
    check_pod_spec(
        json!({"tolerations": [{"key": "dedicated", "value": "test-team", "effect": "NoSchedule"}]}),
        json!({"tolerations": [{"key": "disktype", "value": "ssd", "effect": "NoSchedule"}]}),
        json!({"tolerations": [{"key": "disktype", "value": "ssd", "effect": "NoSchedule"}]}),
    );
    check_pod_spec(
        json!({"containers": [{"name": "a", "command": ["sh", "-c"], "args": ["x"]}]}),
        json!({"containers": [{"name": "a", "command": ["bash"], "args": null}]}),
        json!({"containers": [{"name": "a", "command": ["bash"]}]}),
    );
}

#[test]
fn retain_keys_drops_what_is_not_listed() {
    let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": "25%"}});
    check(
        DEPLOYMENT,
        json!({"spec": {"replicas": 2, "strategy": rolling}}),
        json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
        json!({"spec": {"replicas": 2, "strategy": {"type": "Recreate"}}}),
    );
    check_pod_spec(
        json!({"volumes": [{"name": "v", "emptyDir": {"medium": "Memory"}}, {"name": "w", "emptyDir": {}}]}),
        json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}),
        json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}, {"name": "w", "emptyDir": {}}]}),
    );
    check(
        DEPLOYMENT,
        json!({"spec": {}}),
        json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
        json!({"spec": {"strategy": {"type": "Recreate"}}}),
    );
}

#[test]
fn primitive_lists_merge_and_delete() {
    let metadata = |finalizers: Value| json!({"metadata": {"finalizers": finalizers}});
    check(
        POD,
        metadata(json!(["a/b", "c/d"])),
        metadata(json!(["c/d", "e/f"])),
        metadata(json!(["a/b", "c/d", "e/f"])),
    );
    check(
        POD,
        metadata(json!(["a/b", "c/d"])),
        json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/b"]}}),
        metadata(json!(["c/d"])),
    );
    check(
        POD,
        metadata(json!(["a/b", "c/d"])),
        json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/b"], "finalizers": ["x/y"],
            "$setElementOrder/finalizers": ["x/y", "c/d"]}}),
        metadata(json!(["x/y", "c/d"])),
    );
    check(POD, metadata(json!(["a/b"])), json!({"metadata": {"finalizers": null}}), json!({"metadata": {}}));
    check(
        POD,
        json!({"metadata": {}}),
        json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}),
        json!({"metadata": {}}),
    );
}

#[test]
fn set_element_order_orders_and_keeps_server_items_in_place() {
    let names = |all: &[&str]| all.iter().map(|n| json!({"name": n})).collect::<Value>();
    let order = |server: &[&str], change: Value, want: &[&str]| {
        check_pod_spec(json!({"containers": names(server)}), change, json!({"containers": names(want)}));
    };
    order(&["a", "b", "c"], json!({"$setElementOrder/containers": names(&["c", "b", "a"])}), &["c", "b", "a"]);
    // `s` was injected on the server: it stays between its neighbours.
    order(
        &["a", "s", "b"],
        json!({"$setElementOrder/containers": names(&["a", "b", "n"]), "containers": [{"name": "n"}]}),
        &["a", "s", "b", "n"],
    );
    order(
        &["a", "b"],
        json!({"$setElementOrder/containers": names(&["b"]), "containers": [{"name": "a", "$patch": "delete"}]}),
        &["b"],
    );
    order(&["a"], json!({"$setElementOrder/containers": names(&["b", "a"]), "containers": names(&["b"])}), &["b", "a"]);
    check_pod_spec(
        json!({}),
        json!({"$setElementOrder/containers": names(&["b", "a"]), "containers": names(&["b", "a"])}),
        json!({"containers": names(&["b", "a"])}),
    );
    check_pod_spec(
        json!({"containers": names(&["a"])}),
        json!({"$setElementOrder/containers": [], "containers": null}),
        json!({}),
    );
    check_pod_spec(json!({}), json!({"$setElementOrder/containers": []}), json!({}));
}

#[test]
fn patch_directives_replace_and_delete() {
    check_pod_spec(
        json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        json!({"containers": [{"name": "c", "image": "i"}, {"$patch": "replace"}]}),
        json!({"containers": [{"name": "c", "image": "i"}]}),
    );
    check_pod_spec(
        json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        json!({"containers": [{"name": "a", "$patch": "delete"}, {"name": "zz", "$patch": "delete"}]}),
        json!({"containers": [{"name": "b"}]}),
    );
    check_pod_spec(
        json!({"nodeSelector": {"a": "1", "b": "2"}}),
        json!({"nodeSelector": {"$patch": "replace", "c": "3"}}),
        json!({"nodeSelector": {"c": "3"}}),
    );
    check_pod_spec(
        json!({"securityContext": {"runAsUser": 1}}),
        json!({"securityContext": {"$patch": "delete"}}),
        json!({"securityContext": {}}),
    );
    check_pod_spec(json!({}), json!({"securityContext": {"$patch": "delete"}}), json!({}));
    check_pod_spec(
        json!({"nodeSelector": {"a": "1"}}),
        json!({"nodeSelector": {"$patch": "merge", "b": "2"}}),
        json!({"nodeSelector": {"a": "1", "b": "2"}}),
    );
    check(
        POD,
        json!({"spec": {"x": 1}}),
        json!({"$patch": "replace", "metadata": {"name": "p"}}),
        json!({"metadata": {"name": "p"}}),
    );
}

#[test]
fn nulls_delete_and_never_stay() {
    check(
        POD,
        json!({"metadata": {"labels": {"a": "1", "b": "2"}}}),
        json!({"metadata": {"labels": {"a": null, "c": null}, "annotations": {"x": null, "y": "1"}}}),
        json!({"metadata": {"labels": {"b": "2"}, "annotations": {"y": "1"}}}),
    );
    check_pod_spec(
        json!({"containers": []}),
        json!({"containers": [{"name": "a", "image": null, "$setElementOrder/env": [], "resources": {"limits": {"cpu": null}}}]}),
        json!({"containers": [{"name": "a", "resources": {"limits": {}}}]}),
    );
}

#[test]
fn scalars_of_any_type_are_replaced() {
    check(
        DEPLOYMENT,
        json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": 1}}}}),
        json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": "25%"}}}}),
        json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": "25%"}}}}),
    );
    // A list where the object has a map, and the other way round: the patch's value stands, and decoding refuses it.
    check(
        POD,
        json!({"spec": {"containers": {}}}),
        json!({"spec": {"containers": []}}),
        json!({"spec": {"containers": []}}),
    );
    check(POD, json!({}), json!({"nope": {"a": 1}}), json!({"nope": {"a": 1}}));
    check(
        ("", "ConfigMap"),
        json!({"data": {"a": "1"}}),
        json!({"data": {"b": "2"}}),
        json!({"data": {"a": "1", "b": "2"}}),
    );
}

#[test]
fn other_merge_keys() {
    let conditions = |all: Value| json!({"status": {"conditions": all}});
    check(
        POD,
        conditions(json!([{"type": "Ready", "status": "False"}, {"type": "Initialized", "status": "True"}])),
        conditions(json!([{"type": "Ready", "status": "True"}])),
        conditions(json!([{"type": "Ready", "status": "True"}, {"type": "Initialized", "status": "True"}])),
    );
    let owners = |all: Value| json!({"metadata": {"ownerReferences": all}});
    check(
        POD,
        owners(json!([{"uid": "1", "name": "a"}])),
        owners(json!([{"uid": "1", "controller": true}, {"uid": "2"}])),
        owners(json!([{"uid": "1", "name": "a", "controller": true}, {"uid": "2"}])),
    );
    check_pod_spec(
        json!({"imagePullSecrets": [{"name": "a"}]}),
        json!({"imagePullSecrets": [{"name": "b"}]}),
        json!({"imagePullSecrets": [{"name": "b"}, {"name": "a"}]}),
    );
    check_pod_spec(
        json!({"containers": [{"name": "a", "volumeMounts": [{"mountPath": "/x", "name": "v"}]}]}),
        json!({"containers": [{"name": "a", "volumeMounts": [{"mountPath": "/x", "name": "w"}]}]}),
        json!({"containers": [{"name": "a", "volumeMounts": [{"mountPath": "/x", "name": "w"}]}]}),
    );
    check(
        ("", "ServiceAccount"),
        json!({"secrets": [{"name": "a"}]}),
        json!({"secrets": [{"name": "b"}]}),
        json!({"secrets": [{"name": "b"}, {"name": "a"}]}),
    );
}

#[test]
fn what_does_not_fit_is_refused() {
    let server = json!({"metadata": {"finalizers": ["a"], "labels": {"x": "y"}},
        "spec": {"containers": [{"name": "a", "env": [{"name": "E"}]}], "nodeSelector": {"a": "b"}}});
    let refused = |change: Value, code: u16, text: &str| {
        let error = patch(POD, &server, &change).expect_err(&change.to_string());
        assert_eq!(error.code.as_u16(), code, "{change}");
        let status = error.to_status().to_string();
        assert!(status.contains(text), "{change}: {status}");
    };
    refused(json!({"spec": {"containers": [{"image": "i"}]}}), 422, "does not contain declared merge key: name");
    refused(json!({"spec": {"containers": [{"$patch": "delete"}]}}), 422, "does not contain declared merge key: name");
    refused(json!({"spec": {"containers": [["x"]]}}), 422, "lists of lists");
    refused(json!({"spec": {"containers": ["x"]}}), 422, "not identical");
    refused(json!({"spec": {"containers": [{"name": "a", "$patch": "merge"}]}}), 422, "merging lists cannot");
    refused(json!({"spec": {"containers": [{"name": "a", "$patch": "frob"}]}}), 400, "unknown patch type");
    refused(json!({"spec": {"nodeSelector": {"$patch": 3}}}), 400, "unknown patch type");
    refused(json!({"spec": {"$retainKeys": "x"}}), 400, "retainKeys");
    refused(json!({"spec": {"$retainKeys": ["a"], "b": 1}}), 400, "retainKeys");
    refused(json!({"spec": {"$setElementOrder/containers": 3}}), 400, "setElementOrder");
    refused(json!({"spec": {"$setElementOrder/": []}}), 400, "setElementOrder");
    refused(json!({"spec": {"$setElementOrder/nope": []}}), 422, "unable to find api field");
    refused(
        json!({"spec": {"$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "a"}]}}),
        422,
        "doesn't match",
    );
    refused(json!({"spec": {"$setElementOrder/nodeSelector": []}}), 422, "expected a list");
    refused(json!({"metadata": {"$deleteFromPrimitiveList/finalizers": 3}}), 400, "primitive list");
    refused(json!({"metadata": {"$deleteFromPrimitiveList/finalizers": [{}]}}), 400, "primitive list");
}
