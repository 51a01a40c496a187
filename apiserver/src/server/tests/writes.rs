//! Creates, updates, patches, field validation, dry runs.

use super::*;

#[tokio::test]
async fn create_get_list_update_delete() {
    let api = Api::start().await;
    let created = api.post(CONFIGMAPS, &config_map("a", "1")).await.is(201);
    let meta = &created.body["metadata"];
    assert!(meta["uid"].is_string() && meta["creationTimestamp"].is_string());
    assert_eq!(meta["namespace"], "default");
    let got = api.get(&format!("{CONFIGMAPS}/a")).await.is(200);
    assert_eq!(got.body, created.body);
    let list = api.get(CONFIGMAPS).await.is(200);
    assert_eq!(list.body["kind"], "ConfigMapList");
    assert!(list.body["items"].as_array().unwrap().contains(&created.body));
    assert!(list.version() >= created.version());

    api.post(CONFIGMAPS, &config_map("a", "1")).await.says(409, r#"configmaps "a" already exists"#);
    let mut changed = created.body.clone();
    changed["data"]["k"] = json!("2");
    let updated = api.put(&format!("{CONFIGMAPS}/a"), &changed).await.is(200);
    assert!(updated.version() > created.version());
    assert_eq!(updated.body["metadata"]["uid"], created.body["metadata"]["uid"]);
    api.put(&format!("{CONFIGMAPS}/a"), &changed).await.says(409, "the object has been modified; please apply");
    api.put(&format!("{CONFIGMAPS}/b"), &config_map("b", "1")).await.says(404, r#"configmaps "b" not found"#);

    let deleted = api.delete(&format!("{CONFIGMAPS}/a"), &Value::Null).await.is(200);
    assert_eq!((&deleted.body["kind"], &deleted.body["status"]), (&json!("Status"), &json!("Success")));
    api.get(&format!("{CONFIGMAPS}/a")).await.says(404, r#"configmaps "a" not found"#);
}

#[tokio::test]
async fn unconditional_and_no_op_updates() {
    let api = Api::start().await;
    let created = api.post(CONFIGMAPS, &config_map("a", "1")).await.is(201);
    let same = api.put(&format!("{CONFIGMAPS}/a"), &config_map("a", "1")).await.is(200);
    assert_eq!(same.version(), created.version());
    let same = api.patch(&format!("{CONFIGMAPS}/a"), MERGE, &json!({"data": {"k": "1"}})).await.is(200);
    assert_eq!(same.version(), created.version());
    let other = api.put(&format!("{CONFIGMAPS}/a"), &config_map("a", "2")).await.is(200);
    assert!(other.version() > created.version());
}

#[tokio::test]
async fn identity_mismatches() {
    let api = Api::start().await;
    let created = api.post(CONFIGMAPS, &config_map("a", "1")).await.is(201).body;
    let with = |field: &str, value: &str| {
        let mut object = created.clone();
        object["metadata"][field] = json!(value);
        object["metadata"].as_object_mut().unwrap().remove("resourceVersion");
        object
    };
    let uri = format!("{CONFIGMAPS}/a");
    api.put(&uri, &with("name", "b"))
        .await
        .says(400, "the name of the object (b) does not match the name on the URL (a)");
    api.put(&uri, &with("namespace", "x")).await.says(400, "the namespace of the object (x) does not match");
    api.put(&uri, &with("uid", "x")).await.says(409, "Precondition failed: UID in precondition: x");
    api.put(&uri, &with("creationTimestamp", "2001-01-01T00:00:00Z")).await.says(422, "field is immutable");
    let mut elsewhere = config_map("b", "1");
    elsewhere["metadata"]["namespace"] = json!("kube-system");
    api.post(CONFIGMAPS, &elsewhere).await.says(400, "does not match the namespace sent on the request");
    api.post(CONFIGMAPS, &pod("b")).await.says(400, "cannot be handled as a ConfigMap");
    let mut version = config_map("b", "1");
    version["apiVersion"] = json!("v2");
    api.post(CONFIGMAPS, &version).await.says(400, "does not match the expected API version (v1)");
    let mut numbered = config_map("b", "1");
    numbered["metadata"]["resourceVersion"] = json!("5");
    api.post(CONFIGMAPS, &numbered).await.says(400, "resourceVersion should not be set on objects to be created");
    api.post("/api/v1/configmaps", &config_map("b", "1")).await.is(405);
}

#[tokio::test]
async fn generated_names() {
    let api = Api::start().await;
    let mut object = config_map("", "1");
    object["metadata"] = json!({"generateName": "gen-"});
    let one = api.post(CONFIGMAPS, &object).await.is(201);
    let two = api.post(CONFIGMAPS, &object).await.is(201);
    let name = one.body["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("gen-") && name.len() == 9);
    assert_ne!(one.body["metadata"]["name"], two.body["metadata"]["name"]);
    object["metadata"] = json!({});
    api.post(CONFIGMAPS, &object).await.says(422, "name or generateName is required");
}

#[tokio::test]
async fn field_validation() {
    let api = Api::start().await;
    let odd = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"NAME"},"data":{"k":"1","k":"2"},"foo":{}}"#;
    let send = |name: &str, mode: &str| {
        let uri = format!("{CONFIGMAPS}?fieldValidation={mode}");
        let body = odd.replace("NAME", name);
        let api = &api;
        async move { api.send(Method::POST, &uri, JSON, body).await }
    };
    let strict = send("a", "Strict").await;
    strict.says(400, r#"strict decoding error: duplicate field "data.k", unknown field "foo""#);
    let warned = send("b", "").await.is(201);
    assert_eq!(warned.warnings, [r#"299 - "duplicate field \"data.k\"""#, r#"299 - "unknown field \"foo\"""#]);
    let ignored = send("c", "Ignore").await.is(201);
    assert_eq!((ignored.warnings.len(), &ignored.body["data"]["k"]), (0, &json!("2")));
    send("d", "Sometimes").await.is(422);
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: y\ndata:\n  k: v\n";
    let created = api.send(Method::POST, CONFIGMAPS, "application/yaml", yaml).await.is(201);
    assert_eq!(created.body["data"]["k"], "v");
    api.send(Method::POST, CONFIGMAPS, "application/vnd.kubernetes.protobuf", "k8s\0").await.is(400);
    api.send(Method::POST, CONFIGMAPS, "application/cbor", "{}").await.is(415);
    api.send(Method::POST, CONFIGMAPS, JSON, "{").await.says(400, "must be of type ConfigMap");
    api.send(Method::POST, CONFIGMAPS, JSON, "[]").await.is(400);
    api.send(Method::POST, CONFIGMAPS, JSON, vec![b' '; (3 << 20) + 1]).await.is(413);
}

#[tokio::test]
async fn dry_runs_change_nothing() {
    let api = Api::start().await;
    let answer = api.post(&format!("{CONFIGMAPS}?dryRun=All"), &config_map("a", "1")).await.is(201);
    assert!(answer.body["metadata"]["uid"].is_string());
    api.get(&format!("{CONFIGMAPS}/a")).await.is(404);
    api.post(&format!("{CONFIGMAPS}?dryRun=Yes"), &config_map("a", "1")).await.is(422);
    let created = api.post(CONFIGMAPS, &config_map("a", "1")).await.is(201);
    let uri = format!("{CONFIGMAPS}/a?dryRun=All");
    let answer = api.put(&uri, &config_map("a", "2")).await.is(200);
    assert_eq!(answer.body["data"]["k"], "2");
    api.delete(&uri, &Value::Null).await.is(200);
    assert_eq!(api.get(&format!("{CONFIGMAPS}/a")).await.body, created.body);
    api.post(&format!("{CONFIGMAPS}?dryRun=All"), &config_map("a", "1")).await.is(409);
}

#[tokio::test]
async fn patches() {
    let api = Api::start().await;
    api.post(CONFIGMAPS, &config_map("a", "1")).await.is(201);
    let uri = format!("{CONFIGMAPS}/a");
    let merged = api.patch(&uri, MERGE, &json!({"data": {"k": null, "n": "2"}})).await.is(200);
    assert_eq!(merged.body["data"], json!({"n": "2"}));
    let ops = json!([{"op": "replace", "path": "/data/n", "value": "3"}]);
    let patched = api.patch(&uri, "application/json-patch+json", &ops).await.is(200);
    assert_eq!(patched.body["data"]["n"], "3");
    let strategic = "application/strategic-merge-patch+json";
    let patched = api.patch(&uri, strategic, &json!({"metadata": {"labels": {"x": "y"}}})).await.is(200);
    assert_eq!(patched.body["metadata"]["labels"], json!({"l": "1", "x": "y"}));
    api.patch(&uri, "application/apply-patch+yaml", &json!({})).await.says(415, "--server-side=false");
    api.patch(&uri, "application/json", &json!({})).await.says(415, "application/merge-patch+json");
    api.patch(&uri, MERGE, &json!({"metadata": {"name": "b"}})).await.is(400);
    api.patch(&uri, MERGE, &json!({"metadata": {"resourceVersion": "1"}})).await.is(409);
    api.patch(&format!("{uri}?fieldValidation=Strict"), MERGE, &json!({"foo": 1}))
        .await
        .says(400, "unknown field \"foo\"");
    api.patch(&format!("{CONFIGMAPS}/none"), MERGE, &json!({})).await.is(404);
}

#[tokio::test]
async fn status_is_a_part_of_its_own() {
    let api = Api::start().await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}}, "status": {"replicas": 9}});
    let created = api.post(deployments, &deployment).await.is(201);
    assert_eq!(created.body["metadata"]["generation"], 1);
    let uri = format!("{deployments}/d");
    let patched = api
        .patch(&format!("{uri}/status"), MERGE, &json!({"status": {"replicas": 2}, "spec": {"replicas": 7}}))
        .await
        .is(200);
    assert_eq!((&patched.body["status"]["replicas"], &patched.body["spec"]["replicas"]), (&json!(2), &json!(1)));
    assert_eq!(patched.body["metadata"]["generation"], 1);
    let patched = api.patch(&uri, MERGE, &json!({"status": {"replicas": 5}, "spec": {"replicas": 3}})).await.is(200);
    assert_eq!((&patched.body["status"]["replicas"], &patched.body["spec"]["replicas"]), (&json!(2), &json!(3)));
    assert_eq!(patched.body["metadata"]["generation"], 2);
    let labelled = api.patch(&uri, MERGE, &json!({"metadata": {"labels": {"x": "y"}}})).await.is(200);
    assert_eq!(labelled.body["metadata"]["generation"], 2);

    let scale = api.get(&format!("{uri}/scale")).await.is(200);
    assert_eq!((&scale.body["spec"]["replicas"], &scale.body["status"]["selector"]), (&json!(3), &json!("a=b")));
    let mut wanted = scale.body.clone();
    wanted["spec"]["replicas"] = json!(4);
    api.put(&format!("{uri}/scale"), &wanted).await.is(200);
    api.put(&format!("{uri}/scale"), &wanted).await.is(409);
    let scaled = api.patch(&format!("{uri}/scale"), MERGE, &json!({"spec": {"replicas": 5}})).await.is(200);
    assert_eq!(scaled.body["spec"]["replicas"], 5);
    assert_eq!(api.get(&uri).await.body["metadata"]["generation"], 4);
    api.patch(&format!("{uri}/scale"), MERGE, &json!({"spec": {"replicas": -1}})).await.is(422);
    api.get(&format!("{uri}/nothing")).await.is(404);
}
