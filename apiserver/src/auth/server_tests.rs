//! Identity and admission through the router of a whole server: tokens, reviews, escalation, agents, namespaces.

use std::sync::Arc;

use axum::body::Body;
use http::{Method, Request};
use http_body_util::BodyExt;
use scaleup_store::memory::MemoryStore;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::auth::InProcessUser;
use crate::auth::rbac::RBAC_GROUP;
use crate::auth::testing::user;
use crate::server::ServerConfig;
use crate::testing::TestServer;
use crate::user::UserInfo;

struct Rig {
    test: TestServer,
}

/// Who asks.
enum As {
    User(UserInfo),
    Token(String),
    Nobody,
}

fn admin() -> As {
    As::User(user("kubernetes-admin", &["system:masters"]))
}

fn named(name: &str) -> As {
    As::User(user(name, &[]))
}

fn agent(node: &str) -> As {
    As::User(user(&format!("system:node:{node}"), &["system:nodes"]))
}

impl Rig {
    async fn new() -> Self {
        let rig = Self { test: TestServer::start(ServerConfig::default(), Arc::new(MemoryStore::new())).await };
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        rig.make("/api/v1/namespaces/default/serviceaccounts", account).await;
        rig
    }

    async fn ask(&self, who: &As, method: Method, path: &str, body: Value) -> (u16, Value) {
        let mut request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        if let As::Token(token) = who {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let mut request = request.body(if body.is_null() { Body::empty() } else { body.to_string().into() }).unwrap();
        if let As::User(user) = who {
            request.extensions_mut().insert(InProcessUser(Arc::new(user.clone())));
        }
        let response = self.test.server.router().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        if status == 401 {
            assert_eq!(response.headers()["www-authenticate"], crate::auth::WWW_AUTHENTICATE);
        }
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    async fn get(&self, who: &As, path: &str) -> (u16, Value) {
        self.ask(who, Method::GET, path, Value::Null).await
    }

    async fn post(&self, who: &As, path: &str, body: Value) -> (u16, Value) {
        self.ask(who, Method::POST, path, body).await
    }

    /// Creates as admin; the object as stored.
    #[track_caller]
    fn make(&self, path: &str, body: Value) -> impl Future<Output = Value> {
        let answer = self.post_owned(path.to_owned(), body);
        async move {
            let (status, object) = answer.await;
            assert_eq!(status, 201, "{object}");
            object
        }
    }

    async fn post_owned(&self, path: String, body: Value) -> (u16, Value) {
        self.post(&admin(), &path, body).await
    }

    async fn bind(&self, name: &str, role: &str, who: &str) {
        let binding = json!({
            "apiVersion": format!("{RBAC_GROUP}/v1"), "kind": "RoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": RBAC_GROUP, "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "apiGroup": RBAC_GROUP, "name": who}],
        });
        self.make(&format!("/apis/{RBAC_GROUP}/v1/namespaces/default/rolebindings"), binding).await;
        self.test.server.caches.catch_up().await.unwrap();
    }
}

const PODS: &str = "/api/v1/namespaces/default/pods";
const TOKEN: &str = "/api/v1/namespaces/default/serviceaccounts/default/token";

fn pod(name: &str, node: &str) -> Value {
    let mut spec = json!({"containers": [{"name": "c", "image": "busybox"}]});
    if !node.is_empty() {
        spec["nodeName"] = node.into();
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
}

fn token_request(spec: Value) -> Value {
    json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec})
}

#[tokio::test]
async fn strangers_see_health_and_version_only() {
    let rig = Rig::new().await;
    for path in ["/livez", "/readyz", "/healthz", "/version"] {
        assert_eq!(rig.get(&As::Nobody, path).await.0, 200, "{path}");
    }
    for path in ["/api", "/apis", "/metrics", "/openapi/v3", "/openid/v1/jwks", PODS, "/nonsense"] {
        assert_eq!(rig.get(&As::Nobody, path).await.0, 403, "{path}");
        assert_eq!(rig.get(&As::Token("garbage".into()), path).await.0, 401, "{path}");
    }
    let (_, status) = rig.get(&As::Nobody, PODS).await;
    assert_eq!(
        status["message"],
        "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" in the namespace \
         \"default\""
    );
}

#[tokio::test]
async fn tokens_work_until_their_account_is_gone() {
    let rig = Rig::new().await;
    let (status, answer) = rig.post(&admin(), TOKEN, token_request(json!({"audiences": []}))).await;
    assert_eq!(status, 201, "{answer}");
    assert_eq!(answer["spec"]["expirationSeconds"], 3600);
    assert!(answer["status"]["expirationTimestamp"].is_string());
    let who = As::Token(answer["status"]["token"].as_str().unwrap().into());
    let (status, me) = rig
        .post(
            &who,
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}),
        )
        .await;
    assert_eq!(status, 201, "{me}");
    assert_eq!(me["status"]["userInfo"]["username"], "system:serviceaccount:default:default");
    assert_eq!(rig.get(&who, PODS).await.0, 403);
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": answer["status"]["token"]}});
    let (_, reviewed) = rig.post(&admin(), "/apis/authentication.k8s.io/v1/tokenreviews", review).await;
    assert_eq!(reviewed["status"]["authenticated"], true, "{reviewed}");
    let account = "/api/v1/namespaces/default/serviceaccounts/default";
    assert_eq!(rig.ask(&admin(), Method::DELETE, account, Value::Null).await.0, 200);
    rig.test.server.caches.catch_up().await.unwrap();
    assert_eq!(rig.get(&who, PODS).await.0, 401);
    let (status, gone) = rig.post(&admin(), TOKEN, token_request(json!({"audiences": []}))).await;
    assert_eq!((status, gone["message"].as_str()), (404, Some("serviceaccounts \"default\" not found")));
}

#[tokio::test]
async fn token_requests_are_checked() {
    let rig = Rig::new().await;
    let made = rig.make(PODS, pod("p", "")).await;
    for (spec, expected, text) in [
        (json!({"audiences": [], "expirationSeconds": 1}), 422, "may not specify a duration less than 10 minutes"),
        (
            json!({"audiences": [], "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "gone"}}),
            404,
            "not found",
        ),
        (
            json!({"audiences": [], "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "other"}}),
            409,
            "does not match the UID in record",
        ),
        (
            json!({"audiences": [], "boundObjectRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}),
            400,
            "cannot bind token to object of type apps/v1, Kind=Deployment",
        ),
        (json!({"audiences": "x"}), 400, ""),
    ] {
        let (status, answer) = rig.post(&admin(), TOKEN, token_request(spec)).await;
        assert_eq!(status, expected, "{answer}");
        assert!(answer["message"].as_str().unwrap().contains(text), "{answer}");
    }
    let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": made["metadata"]["uid"]});
    let (status, answer) =
        rig.post(&admin(), TOKEN, token_request(json!({"audiences": [], "boundObjectRef": bound}))).await;
    assert_eq!(status, 201, "{answer}");
    let who = As::Token(answer["status"]["token"].as_str().unwrap().into());
    assert_eq!(rig.get(&who, "/api").await.0, 200);
    assert_eq!(rig.ask(&admin(), Method::DELETE, &format!("{PODS}/p?gracePeriodSeconds=0"), Value::Null).await.0, 200);
    rig.test.server.caches.catch_up().await.unwrap();
    assert_eq!(rig.get(&who, "/api").await.0, 401, "the token dies with its pod");
}

#[tokio::test]
async fn pods_get_what_admission_gives_them() {
    let rig = Rig::new().await;
    let made = rig.make(PODS, pod("p", "")).await;
    let spec = &made["spec"];
    assert_eq!((&spec["serviceAccountName"], &spec["priority"]), (&json!("default"), &json!(0)));
    assert_eq!(spec["preemptionPolicy"], "PreemptLowerPriority");
    assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
    assert!(spec["volumes"][0]["name"].as_str().unwrap().starts_with("kube-api-access-"), "{spec}");
    assert_eq!(spec["containers"][0]["volumeMounts"][0]["readOnly"], true);
    let check = async |body: Value, path: &str, expected: u16, text: &str| {
        let (status, answer) = rig.post(&admin(), path, body).await;
        assert_eq!(status, expected, "{answer}");
        assert!(answer["message"].as_str().unwrap().contains(text), "{answer}");
    };
    let mut other = pod("q", "");
    other["spec"]["serviceAccountName"] = "robot".into();
    let text = "error looking up service account default/robot: serviceaccount \"robot\" not found";
    check(other, PODS, 403, text).await;
    let mut urgent = pod("q", "");
    urgent["spec"]["priorityClassName"] = "urgent".into();
    check(urgent, PODS, 403, "no PriorityClass with name urgent was found").await;
    check(pod("q", ""), "/api/v1/namespaces/nowhere/pods", 404, "namespaces \"nowhere\" not found").await;
    let (status, refused) = rig.ask(&admin(), Method::DELETE, "/api/v1/namespaces/kube-system", Value::Null).await;
    assert_eq!(
        (status, refused["message"].as_str()),
        (403, Some("namespaces \"kube-system\" is forbidden: this namespace may not be deleted"),)
    );
}

#[tokio::test]
async fn agents_are_kept_to_their_node() {
    let rig = Rig::new().await;
    let node = |name: &str| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
    let (status, made) = rig.post(&agent("n1"), "/api/v1/nodes", node("n1")).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(made["spec"]["taints"][0]["key"], "node.kubernetes.io/not-ready");
    assert_eq!(rig.post(&agent("n1"), "/api/v1/nodes", node("n2")).await.0, 403);
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}});
    rig.make("/api/v1/namespaces/default/secrets", secret).await;
    let mut mine = pod("mine", "n1");
    mine["spec"]["volumes"] = json!([{"name": "s", "secret": {"secretName": "s"}}]);
    let mine = rig.make(PODS, mine).await;
    rig.make(PODS, pod("theirs", "n2")).await;
    rig.test.server.caches.catch_up().await.unwrap();
    let check = async |who: As, path: &str, expected: u16| {
        let (status, answer) = rig.get(&who, path).await;
        assert_eq!(status, expected, "{path}: {answer}");
    };
    check(agent("n1"), "/api/v1/namespaces/default/secrets/s", 200).await;
    check(agent("n2"), "/api/v1/namespaces/default/secrets/s", 403).await;
    check(agent("n1"), "/api/v1/namespaces/default/secrets", 403).await;
    check(agent("n1"), "/api/v1/namespaces/default/secrets?fieldSelector=metadata.name%3Ds", 200).await;
    check(agent("n1"), "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1", 200).await;
    check(agent("n1"), "/api/v1/pods?fieldSelector=spec.nodeName%3Dn2", 403).await;
    check(agent("n1"), "/api/v1/pods", 403).await;
    check(agent("n1"), "/api/v1/nodes/n1", 200).await;
    check(agent("n1"), "/api/v1/nodes", 403).await;
    check(agent("n1"), "/api/v1/services", 200).await;
    let theirs = format!("{PODS}/theirs");
    assert_eq!(rig.ask(&agent("n1"), Method::DELETE, &theirs, Value::Null).await.0, 403);
    let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": "mine", "uid": mine["metadata"]["uid"]});
    let request = token_request(json!({"audiences": [], "boundObjectRef": bound}));
    let (status, answer) = rig.post(&agent("n1"), TOKEN, request.clone()).await;
    assert_eq!(status, 201, "{answer}");
    let (status, answer) = rig.post(&agent("n2"), TOKEN, request).await;
    assert_eq!(
        (status, answer["message"].as_str()),
        (
            403,
            Some(
                "serviceaccounts \"default\" is forbidden: node requested token bound to a pod scheduled on a different node"
            ),
        )
    );
    assert_eq!(rig.post(&agent("n1"), TOKEN, token_request(json!({"audiences": []}))).await.0, 403, "not bound");
}

#[tokio::test]
async fn nobody_grants_what_they_do_not_have() {
    let rig = Rig::new().await;
    rig.bind("alice-admin", "admin", "alice").await;
    let roles = format!("/apis/{RBAC_GROUP}/v1/namespaces/default/roles");
    let role = |verb: &str, resource: &str| {
        json!({"apiVersion": format!("{RBAC_GROUP}/v1"), "kind": "Role", "metadata": {"name": format!("{verb}-{resource}")},
            "rules": [{"verbs": [verb], "apiGroups": [""], "resources": [resource]}]})
    };
    let (status, answer) = rig.post(&named("alice"), &roles, role("get", "pods")).await;
    assert_eq!(status, 201, "{answer}");
    let (status, refused) = rig.post(&named("alice"), &roles, role("get", "nodes")).await;
    assert_eq!(status, 403, "{refused}");
    assert!(
        refused["message"].as_str().unwrap().contains("is attempting to grant RBAC permissions not currently held:\n")
    );
    let bindings = format!("/apis/{RBAC_GROUP}/v1/namespaces/default/rolebindings");
    let binding = |role: &str| {
        json!({"apiVersion": format!("{RBAC_GROUP}/v1"), "kind": "RoleBinding", "metadata": {"name": format!("b-{role}")},
            "roleRef": {"apiGroup": RBAC_GROUP, "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "apiGroup": RBAC_GROUP, "name": "bob"}]})
    };
    let (status, answer) = rig.post(&named("alice"), &bindings, binding("view")).await;
    assert_eq!(status, 201, "aggregated roles are compared by what they hold: {answer}");
    assert_eq!(rig.post(&named("alice"), &bindings, binding("cluster-admin")).await.0, 403);
    rig.test.server.caches.catch_up().await.unwrap();
    assert_eq!(rig.get(&named("bob"), PODS).await.0, 200, "a new binding counts at once");
    assert_eq!(rig.get(&named("bob"), "/api/v1/namespaces/default/secrets").await.0, 403);
}

#[tokio::test]
async fn reviews_answer_what_kubectl_asks() {
    let rig = Rig::new().await;
    rig.bind("alice-view", "view", "alice").await;
    let group = "/apis/authorization.k8s.io/v1";
    let ask = async |verb: &str| {
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {"namespace": "default", "verb": verb, "resource": "pods"}}});
        rig.post(&named("alice"), &format!("{group}/selfsubjectaccessreviews"), review).await.1["status"]["allowed"]
            .clone()
    };
    assert_eq!((ask("list").await, ask("delete").await), (json!(true), json!(false)));
    let rules = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": "default"}});
    let (status, answer) = rig.post(&named("alice"), &format!("{group}/selfsubjectrulesreviews"), rules).await;
    assert_eq!(status, 201, "{answer}");
    let listed = answer["status"]["resourceRules"].as_array().unwrap();
    assert!(listed.iter().any(|r| r["resources"].as_array().unwrap().contains(&json!("pods/log"))));
    let local = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "LocalSubjectAccessReview",
        "metadata": {"namespace": "default"},
        "spec": {"user": "alice", "resourceAttributes": {"namespace": "default", "verb": "get", "resource": "pods"}}});
    let (status, answer) =
        rig.post(&admin(), &format!("{group}/namespaces/default/localsubjectaccessreviews"), local).await;
    assert_eq!((status, &answer["status"]["allowed"]), (201, &json!(true)), "{answer}");
}

/// What a client was told is done counts for its very next request, however far the cache is behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_can_be_bound_at_once_and_a_revoked_one_is_gone_at_once() {
    let rig = Rig::new().await;
    let base = format!("/apis/{RBAC_GROUP}/v1/namespaces/default");
    let rule = json!([{"apiGroups": [RBAC_GROUP], "resources": ["roles", "rolebindings"], "verbs": ["create", "get"]}]);
    let role = |name: &str| json!({"apiVersion": format!("{RBAC_GROUP}/v1"), "kind": "Role", "metadata": {"name": name}, "rules": rule});
    let binding = |name: &str, who: &str| {
        json!({"apiVersion": format!("{RBAC_GROUP}/v1"), "kind": "RoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": RBAC_GROUP, "kind": "Role", "name": name},
            "subjects": [{"kind": "User", "apiGroup": RBAC_GROUP, "name": who}]})
    };
    for round in 0..100 {
        let who = named(&format!("maker-{round}"));
        let (first, second) = (format!("first-{round}"), format!("second-{round}"));
        rig.make(&format!("{base}/roles"), role(&first)).await;
        rig.make(&format!("{base}/rolebindings"), binding(&first, &format!("maker-{round}"))).await;
        let (status, answer) = rig.post(&who, &format!("{base}/roles"), role(&second)).await;
        assert_eq!(status, 201, "{answer}");
        let (status, answer) = rig.post(&who, &format!("{base}/rolebindings"), binding(&second, "somebody")).await;
        assert_eq!(status, 201, "{answer}");
        let path = format!("{base}/rolebindings/{first}");
        assert_eq!(rig.ask(&admin(), Method::DELETE, &path, Value::Null).await.0, 200);
        assert_eq!(rig.get(&who, &format!("{base}/roles/{first}")).await.0, 403);
    }
}

#[tokio::test]
async fn aggregated_roles_show_their_rules() {
    let rig = Rig::new().await;
    let path = format!("/apis/{RBAC_GROUP}/v1/clusterroles/admin");
    for _ in 0..200 {
        let (_, role) = rig.get(&admin(), &path).await;
        if role["rules"].as_array().is_some_and(|r| r.len() > 10) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("the rules of admin were not written");
}
