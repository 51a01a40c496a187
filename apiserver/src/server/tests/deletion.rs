//! Grace, finalizers, preconditions, collections, namespaces.

use super::*;

#[tokio::test]
async fn pods_are_deleted_with_grace() {
    let api = Api::start().await;
    api.post("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "default"}})).await;
    let created = api.post(PODS, &pod("p")).await.is(201);
    assert_eq!(created.body["status"]["phase"], "Pending");
    // Not on a node yet: nothing to wait for.
    api.delete(&format!("{PODS}/p"), &Value::Null).await.is(200);
    api.get(&format!("{PODS}/p")).await.is(404);

    let mut bound = pod("q");
    bound["spec"]["nodeName"] = json!("n1");
    api.post(PODS, &bound).await.is(201);
    let uri = format!("{PODS}/q");
    let marked = api.delete(&uri, &Value::Null).await.is(200);
    assert_eq!(marked.body["metadata"]["deletionGracePeriodSeconds"], 30);
    assert!(marked.body["metadata"]["deletionTimestamp"].is_string());
    let longer = api.delete(&uri, &json!({"gracePeriodSeconds": 60})).await.is(200);
    assert_eq!(longer.body["metadata"]["deletionGracePeriodSeconds"], 30);
    let shorter = api.delete(&uri, &json!({"gracePeriodSeconds": 5})).await.is(200);
    assert_eq!(shorter.body["metadata"]["deletionGracePeriodSeconds"], 5);
    api.delete(&uri, &json!({"gracePeriodSeconds": 0})).await.is(200);
    api.get(&uri).await.is(404);
}

#[tokio::test]
async fn finalizers_hold_objects() {
    let api = Api::start().await;
    let mut held = config_map("a", "1");
    held["metadata"]["finalizers"] = json!(["x.io/hold"]);
    api.post(CONFIGMAPS, &held).await.is(201);
    let uri = format!("{CONFIGMAPS}/a");
    let marked = api.delete(&uri, &json!({"propagationPolicy": "Foreground"})).await.is(200);
    assert_eq!(marked.body["metadata"]["finalizers"], json!(["x.io/hold", "foregroundDeletion"]));
    let again = api.delete(&uri, &Value::Null).await.is(200);
    assert_eq!(again.version(), marked.version());
    api.patch(&uri, MERGE, &json!({"metadata": {"finalizers": ["y.io/new"]}})).await.says(422, "no new finalizers");
    api.patch(&uri, MERGE, &json!({"metadata": {"finalizers": ["foregroundDeletion"]}})).await.is(200);
    let mut events =
        api.watch(&format!("{CONFIGMAPS}?watch=1&fieldSelector=metadata.name%3Da&resourceVersion=0")).await;
    assert_eq!(events.seen().await, Events::pair("ADDED", "a"));
    api.patch(&uri, MERGE, &json!({"metadata": {"finalizers": null}})).await.is(200);
    assert_eq!(events.seen().await, Events::pair("DELETED", "a"));
    api.get(&uri).await.is(404);
}

#[tokio::test]
async fn delete_preconditions_and_options() {
    let api = Api::start().await;
    let created = api.post(CONFIGMAPS, &config_map("a", "1")).await.is(201);
    let uri = format!("{CONFIGMAPS}/a");
    api.delete(&uri, &json!({"preconditions": {"uid": "x"}})).await.says(409, "UID in precondition: x");
    api.delete(&uri, &json!({"preconditions": {"resourceVersion": "1"}}))
        .await
        .says(409, "ResourceVersion in precondition");
    api.delete(&uri, &json!({"propagationPolicy": "Maybe"})).await.is(422);
    api.delete(&uri, &json!({"kind": "Pod"})).await.is(400);
    api.send(Method::DELETE, &uri, JSON, "[1]").await.is(400);
    let uid = created.body["metadata"]["uid"].clone();
    api.delete(&uri, &json!({"preconditions": {"uid": uid}})).await.is(200);
    api.delete(&uri, &Value::Null).await.is(404);
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let api = Api::start().await;
    for (name, label) in [("a", "1"), ("b", "1"), ("c", "2")] {
        api.post(CONFIGMAPS, &config_map(name, label)).await.is(201);
    }
    let deleted = api.delete(&format!("{CONFIGMAPS}?labelSelector=l%3D1"), &Value::Null).await.is(200);
    assert_eq!(deleted.body["items"].as_array().unwrap().len(), 2);
    let left = api.get(&format!("{CONFIGMAPS}?labelSelector=l")).await;
    assert_eq!(left.body["items"][0]["metadata"]["name"], "c");
    assert_eq!(left.body["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn namespaces_end_through_finalize() {
    let api = Api::start().await;
    let created = api.post("/api/v1/namespaces", &json!({"metadata": {"name": "n"}})).await.is(201);
    assert_eq!(created.body["spec"]["finalizers"], json!(["kubernetes"]));
    let marked = api.delete("/api/v1/namespaces/n", &Value::Null).await.is(200);
    assert_eq!(marked.body["status"]["phase"], "Terminating");
    let mut done = marked.body.clone();
    done["spec"]["finalizers"] = json!([]);
    api.put("/api/v1/namespaces/n/finalize", &done).await.is(200);
    api.get("/api/v1/namespaces/n").await.is(404);
}
