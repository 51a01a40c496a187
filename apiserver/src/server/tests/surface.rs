//! Aliases, views, bootstrap, health, anonymous users, many clients.

use super::*;

#[tokio::test]
async fn aliases_share_storage() {
    let api = Api::start().await;
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "reason": "R", "message": "m",
        "type": "Normal", "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "source": {"component": "c"}, "firstTimestamp": "2024-01-01T00:00:00Z", "lastTimestamp": "2024-01-01T00:00:00Z"});
    api.post("/api/v1/namespaces/default/events", &event).await.is(201);
    let other = api.get("/apis/events.k8s.io/v1/namespaces/default/events/e").await.is(200);
    assert_eq!(
        (&other.body["apiVersion"], &other.body["regarding"]["name"]),
        (&json!("events.k8s.io/v1"), &json!("p"))
    );
    assert!(other.body["metadata"]["resourceVersion"].is_string());
    let list = api.get("/apis/events.k8s.io/v1/events?fieldSelector=regarding.name%3Dp").await.is(200);
    assert_eq!(list.body["items"][0]["note"], "m");
}

#[tokio::test]
async fn views_of_objects() {
    let api = Api::start().await;
    api.post(CONFIGMAPS, &config_map("a", "1")).await.is(201);
    let as_kind = |uri: String, accept: &'static str| {
        let request = Request::builder().uri(uri).header("accept", accept).body(Body::empty()).unwrap();
        let service = api.admin.clone();
        async move {
            let response = service.oneshot(request).await.unwrap();
            let status = response.status();
            (status, response.into_body().collect().await.unwrap().to_bytes())
        }
    };
    let uri = format!("{CONFIGMAPS}?fieldSelector=metadata.name%3Da");
    let (_, table) = as_kind(uri.clone(), "application/json;as=Table;v=v1;g=meta.k8s.io").await;
    let table: Value = serde_json::from_slice(&table).unwrap();
    assert_eq!((&table["kind"], &table["rows"][0]["cells"][0]), (&json!("Table"), &json!("a")));
    let (_, partial) = as_kind(uri.clone(), "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io").await;
    let partial: Value = serde_json::from_slice(&partial).unwrap();
    assert_eq!(partial["items"][0]["metadata"]["name"], "a");
    assert!(partial["items"][0]["data"].is_null());
    let (_, yaml) = as_kind(format!("{CONFIGMAPS}/a"), "application/yaml").await;
    assert!(std::str::from_utf8(&yaml).unwrap().contains("kind: ConfigMap"));
    let (_, pretty) = as_kind(format!("{CONFIGMAPS}/a?pretty=true"), "application/json").await;
    assert!(pretty.starts_with(b"{\n"));
    let (status, _) = as_kind(format!("{CONFIGMAPS}/a"), "application/vnd.kubernetes.protobuf").await;
    assert_eq!(status, 406);
}

#[tokio::test]
async fn bootstrap_made_a_cluster() {
    let api = Api::start().await;
    for path in [
        "/api/v1/namespaces/kube-system",
        "/api/v1/namespaces/kube-node-lease",
        "/api/v1/namespaces/default/services/kubernetes",
        "/apis/scheduling.k8s.io/v1/priorityclasses/system-node-critical",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/cluster-admin",
    ] {
        api.get(path).await.is(200);
    }
    let service = api.get("/api/v1/namespaces/default/services/kubernetes").await;
    assert_eq!(service.body["spec"]["clusterIP"], "10.96.0.1");
    // A second round changes nothing.
    let before = api.get("/api/v1/namespaces").await.version();
    bootstrap::run_once(&api.server).await.unwrap();
    assert_eq!(api.get("/api/v1/namespaces").await.version(), before);
}

#[tokio::test]
async fn the_load_balancers_views_are_for_those_who_may() {
    let api = Api::start().await;
    api.get("/lb/top").await.says(404, "--lb-views");
    let views = axum::routing::get(|axum::extract::Path(view): axum::extract::Path<String>| async move { view });
    assert!(api.server.lb_views.set(axum::Router::new().route("/lb/{view}", views)).is_ok());
    assert_eq!(api.get("/lb/top?x=1").await.is(200).body, json!("top"));
    let stranger = api.server.in_process(crate::user::UserInfo::system("eve", &[]));
    let request = Request::builder().uri("/lb/top").body(Body::empty()).unwrap();
    assert_eq!(stranger.oneshot(request).await.unwrap().status(), 403);
}

#[tokio::test]
async fn health_discovery_and_unknown_paths() {
    let api = Api::start().await;
    assert_eq!(api.get("/readyz").await.is(200).body, json!("ok"));
    assert!(api.get("/readyz?verbose").await.is(200).body.as_str().unwrap().contains("[+]informer-sync ok"));
    api.get("/livez/ping").await.is(200);
    api.get("/livez/nothing").await.is(404);
    assert_eq!(api.get("/version").await.is(200).body["major"], "1");
    api.get("/api").await.is(200);
    api.get("/apis/apps/v1").await.is(200);
    assert!(api.get("/metrics").await.is(200).body.as_str().unwrap().contains("apiserver_request_total"));
    for path in [
        "/nothing",
        "/apis/none.io",
        "/apis/none.io/v1/things",
        "/api/v1/things",
        "/api/v1/namespaces/..%2f/pods",
        "/api/v1/namespaces/%2e%2e/pods",
        "/api/v1//pods",
        "/api/v1/pods/a",
        "/api/v1/namespaces/a/nodes",
        "/api/v1/nodes/%00",
    ] {
        api.get(path).await.says(404, "the server could not find the requested resource");
    }
    api.send(Method::OPTIONS, CONFIGMAPS, JSON, Body::empty()).await.is(405);
    api.post("/version", &json!({})).await.is(405);
}

#[tokio::test]
async fn strangers_see_health_and_version_only() {
    let api = Api::start().await;
    let ask = |path: &str| {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        api.server.router().oneshot(request)
    };
    for path in ["/livez", "/readyz", "/healthz", "/version"] {
        assert_eq!(ask(path).await.unwrap().status(), 200, "{path}");
    }
    for path in ["/metrics", "/api", "/apis", "/openapi/v2", CONFIGMAPS, "/nothing", "/livezz"] {
        assert_eq!(ask(path).await.unwrap().status(), 403, "{path}");
    }
}

#[tokio::test]
async fn writes_of_many_clients_all_count() {
    let api = Arc::new(Api::start().await);
    api.post(CONFIGMAPS, &config_map("a", "0")).await.is(201);
    let writers = (0..8).map(|i| {
        let api = api.clone();
        async move {
            let patch = json!({"data": {format!("k{i}"): "v"}});
            api.patch(&format!("{CONFIGMAPS}/a"), MERGE, &patch).await.is(200);
        }
    });
    futures::stream::iter(writers).buffer_unordered(8).collect::<Vec<()>>().await;
    assert_eq!(api.get(&format!("{CONFIGMAPS}/a")).await.body["data"].as_object().unwrap().len(), 9);
}
