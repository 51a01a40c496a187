//! Who may do what: TLS, certificates, tokens, RBAC, `auth can-i`, escalation, node identities.

use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use scaleup_tests::cluster::{Cluster, Options, issued};
use scaleup_tests::http::Api;
use serde_json::{Value, json};

use crate::{Cx, trials};

/// All tests of this module.
pub fn tests(cx: &Cx) -> Vec<Trial> {
    trials![
        cx,
        "identity",
        anonymous_sees_health_and_version_only,
        key_files_are_private,
        every_route_is_authorized,
        can_i,
        roles_cannot_escalate,
        service_account_tokens,
        nodes_touch_only_their_own,
        impersonation,
        default_cluster_roles,
        default_policy_is_completed_at_each_start,
    ]
}

async fn anonymous_sees_health_and_version_only(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let (admin, anonymous) = (cluster.api()?, cluster.anonymous()?);
    for path in ["/livez", "/readyz", "/healthz", "/version", "/readyz?verbose"] {
        ensure!(anonymous.get(path).await?.status.is_success(), "{path}");
    }
    for path in [
        "/",
        "/api",
        "/apis",
        "/api/v1",
        "/api/v1/namespaces",
        "/openapi/v2",
        "/openapi/v3",
        "/metrics",
        "/apis/apps/v1",
        "/nonsense",
    ] {
        let answer = anonymous.get(path).await?;
        ensure!(matches!(answer.status.as_u16(), 401 | 403), "{path}: {} {}", answer.status, answer.text);
        ensure!(answer.json()["kind"] == "Status", "{path}: {}", answer.text);
        if !["/", "/nonsense"].contains(&path) {
            ensure!(admin.get(path).await?.status.is_success(), "{path} as admin");
        }
    }
    Ok(())
}

async fn key_files_are_private(cx: Cx) -> Result<()> {
    let dir = cx.fake().await?.dir.path();
    let mut keys = 0;
    let mut open = vec![dir.to_path_buf()];
    while let Some(path) = open.pop() {
        for entry in std::fs::read_dir(path)? {
            let entry = entry?.path();
            let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if entry.is_dir() && name != "kubectl-home" {
                open.push(entry);
            } else if name.ends_with(".key") || name == "kubeconfig" {
                keys += 1;
                let mode = std::fs::metadata(&entry)?.permissions().mode() & 0o777;
                ensure!(mode == 0o600, "{} has mode {mode:o}", entry.display());
            }
        }
    }
    ensure!(keys >= 3, "CA, token key and kubeconfig; found {keys}");
    Ok(())
}

/// A client of a new service account that nobody granted anything.
async fn nobody(admin: &Api, namespace: &str, name: &str) -> Result<Api> {
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
    admin.post(&format!("/api/v1/namespaces/{namespace}/serviceaccounts"), &account).await?.ok()?;
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
    let token = admin.post(&path, &request).await?.ok()?;
    admin.with_token(token["status"]["token"].as_str().context("token")?)
}

/// Every kind and verb that discovery lists is refused to somebody without a role: the loop runs over discovery, so that a
/// new kind is covered when it is added.
async fn every_route_is_authorized(cx: Cx) -> Result<()> {
    let admin = cx.fake().await?.api()?;
    let user = nobody(&admin, "default", "nobody").await?;
    let mut versions = vec!["/api/v1".to_owned()];
    for group in admin.get("/apis").await?.ok()?["groups"].as_array().context("groups")? {
        for version in group["versions"].as_array().context("versions")? {
            versions.push(format!("/apis/{}", version["groupVersion"].as_str().context("groupVersion")?));
        }
    }
    let (mut refused, mut reviews) = (0, 0);
    for version in versions {
        for resource in admin.get(&version).await?.ok()?["resources"].as_array().context("resources")? {
            let full = resource["name"].as_str().context("name")?;
            let (plural, subresource) = full.split_once('/').unwrap_or((full, ""));
            let namespace = if resource["namespaced"] == true { "/namespaces/default" } else { "" };
            let collection = format!("{version}{namespace}/{plural}");
            let object = format!("{collection}/x{}{subresource}", if subresource.is_empty() { "" } else { "/" });
            for verb in resource["verbs"].as_array().context("verbs")? {
                let verb = verb.as_str().context("verb")?;
                let body = json!({});
                let answer = match (verb, subresource.is_empty()) {
                    ("list", _) => user.get(&collection).await?,
                    ("watch", _) => user.get(&format!("{collection}?watch=1&timeoutSeconds=1")).await?,
                    ("get", _) => user.get(&object).await?,
                    ("create", true) => user.post(&collection, &body).await?,
                    ("create", false) => user.post(&object, &body).await?,
                    ("update", _) => user.put(&object, &body).await?,
                    ("patch", _) => user.patch(&object, "merge", &body).await?,
                    ("delete", _) => user.delete(&object, &Value::Null).await?,
                    ("deletecollection", _) => user.delete(&collection, &Value::Null).await?,
                    (other, _) => anyhow::bail!("{version} {full}: verb {other}"),
                };
                // Everybody may ask what they may do.
                if plural.starts_with("selfsubject") {
                    reviews += 1;
                    ensure!(answer.status != 403, "{verb} {full}: {}", answer.text);
                    continue;
                }
                refused += 1;
                ensure!(answer.status == 403, "{verb} {version} {full}: {} {}", answer.status, answer.text);
                let expected =
                    format!("User \"system:serviceaccount:default:nobody\" cannot {verb} resource \"{full}\"");
                ensure!(answer.message().contains(&expected), "{}", answer.text);
            }
        }
    }
    println!("authorization: {refused} verbs of all kinds refused, {reviews} self reviews answered");
    ensure!(refused > 100, "only {refused} were tried");
    Ok(())
}

async fn can_i(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let kubectl = cluster.kubectl();
    ensure!(kubectl.ok("auth can-i create deployments").await?.trim() == "yes", "admin");
    kubectl.ok("create namespace can-i").await?;
    kubectl.ok("-n can-i create serviceaccount reader").await?;
    kubectl.ok("-n can-i create role reader --verb=get,list --resource=pods,pods/log").await?;
    kubectl.ok("-n can-i create rolebinding reader --role=reader --serviceaccount=can-i:reader").await?;
    let who = "--as=system:serviceaccount:can-i:reader";
    for (question, answer) in [
        ("list pods", "yes"),
        ("get pods/log", "yes"),
        ("delete pods", "no"),
        ("list secrets", "no"),
        ("create deployments.apps", "no"),
    ] {
        let outcome = kubectl
            .run(&[
                "-n",
                "can-i",
                "auth",
                "can-i",
                question.split_once(' ').unwrap_or_default().0,
                question.split_once(' ').unwrap_or_default().1,
                who,
            ])
            .await?;
        ensure!(outcome.stdout.trim() == answer, "{question}: {}{}", outcome.stdout, outcome.stderr);
    }
    ensure!(kubectl.fails(&format!("-n default get pods {who}")).await?.contains("forbidden"), "another namespace");
    let list = kubectl.ok(&format!("-n can-i auth can-i --list {who}")).await?;
    ensure!(
        list.contains("pods") && list.contains("[get list]") && list.contains("selfsubjectaccessreviews"),
        "{list}"
    );
    ensure!(kubectl.ok(&format!("auth whoami {who}")).await?.contains("system:serviceaccount:can-i:reader"), "whoami");
    let old = cluster.old_kubectl().run(&["-n", "can-i", "auth", "can-i", "list", "pods", who]).await?;
    ensure!(old.stdout.trim() == "yes", "{old:?}");
    Ok(())
}

async fn roles_cannot_escalate(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let (kubectl, admin) = (cluster.kubectl(), cluster.api()?);
    kubectl.ok("create namespace escalate").await?;
    kubectl.ok("-n escalate create role maker --verb=create,update,get --resource=roles,rolebindings").await?;
    let user = nobody(&admin, "escalate", "maker").await?;
    kubectl.ok("-n escalate create rolebinding maker --role=maker --serviceaccount=escalate:maker").await?;
    let base = "/apis/rbac.authorization.k8s.io/v1/namespaces/escalate";
    let role = |name: &str, resource: &str| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name},
            "rules": [{"apiGroups": [if resource == "roles" { "rbac.authorization.k8s.io" } else { "" }], "resources": [resource], "verbs": ["get"]}]})
    };
    let answer = user.post(&format!("{base}/roles"), &role("more", "secrets")).await?;
    ensure!(
        answer.status == 403 && answer.message().contains("attempting to grant RBAC permissions not currently held"),
        "{}",
        answer.text
    );
    user.post(&format!("{base}/roles"), &role("same", "roles")).await?.ok()?;
    let binding = |role: &str, kind: &str| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": format!("b-{role}")},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": "maker", "namespace": "escalate"}]})
    };
    let answer = user.post(&format!("{base}/rolebindings"), &binding("cluster-admin", "ClusterRole")).await?;
    ensure!(answer.status == 403, "{}", answer.text);
    user.post(&format!("{base}/rolebindings"), &binding("same", "Role")).await?.ok()?;
    Ok(())
}

async fn service_account_tokens(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let (kubectl, admin) = (cluster.kubectl(), cluster.api()?);
    kubectl.ok("create namespace tokens").await?;
    kubectl.ok("-n tokens create serviceaccount robot").await?;
    let token = kubectl.ok("-n tokens create token robot --duration=10m").await?;
    let robot = admin.with_token(token.trim())?;
    let review =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token.trim()}});
    let status = admin.post("/apis/authentication.k8s.io/v1/tokenreviews", &review).await?.ok()?["status"].clone();
    ensure!(
        status["authenticated"] == true && status["user"]["username"] == "system:serviceaccount:tokens:robot",
        "{status}"
    );
    let foreign = kubectl.ok("-n tokens create token robot --audience=elsewhere").await?;
    ensure!(admin.with_token(foreign.trim())?.get("/api").await?.status == 401, "a token for another audience");
    let answer = kubectl.fails("-n tokens create token robot --duration=1s").await?;
    ensure!(answer.contains("10 minutes") || answer.contains("600"), "{answer}");
    ensure!(robot.get("/api").await?.status.is_success(), "discovery is for every user");
    kubectl.ok("-n tokens delete serviceaccount robot").await?;
    ensure!(robot.get("/api").await?.status == 401, "the account is gone");
    let jwks = admin.get("/openid/v1/jwks").await?.ok()?;
    ensure!(jwks["keys"].as_array().is_some_and(|k| !k.is_empty()), "{jwks}");
    Ok(())
}

fn issued_api(dir: &std::path::Path, server: &str, subject: &[&str]) -> Result<Api> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), issued(dir, server, subject)?)?;
    Api::from_kubeconfig(file.path())
}

async fn nodes_touch_only_their_own(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let (kubectl, admin) = (cluster.kubectl(), cluster.api()?);
    kubectl.ok("create namespace nodes").await?;
    for secret in ["mine", "theirs"] {
        kubectl.ok(&format!("-n nodes create secret generic {secret} --from-literal=a=b")).await?;
    }
    scaleup_tests::eventually("the service account", || async {
        Ok(kubectl.ok("-n nodes get serviceaccount default").await.ok())
    })
    .await?;
    let pod = |name: &str, node: &str, secret: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"nodeName": node,
            "containers": [{"name": "c", "image": "i", "envFrom": [{"secretRef": {"name": secret}}]}]}})
    };
    for node in ["it-one", "it-two"] {
        admin
            .post("/api/v1/nodes", &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}}))
            .await?
            .ok()?;
    }
    admin.post("/api/v1/namespaces/nodes/pods", &pod("p-one", "it-one", "mine")).await?.ok()?;
    admin.post("/api/v1/namespaces/nodes/pods", &pod("p-two", "it-two", "theirs")).await?.ok()?;
    let node = issued_api(cluster.dir.path(), &admin.base, &["node", "it-one", "--address", "127.0.0.1"])?;
    let expect = |what: &'static str, answer: scaleup_tests::http::Answer, code: u16| {
        ensure!(answer.status.as_u16() == code, "{what}: expected {code}, got {} {}", answer.status, answer.text);
        anyhow::Ok(())
    };
    expect("own node", node.get("/api/v1/nodes/it-one").await?, 200)?;
    let merge = json!({"metadata": {"labels": {"a": "b"}}});
    expect("change the own node", node.patch("/api/v1/nodes/it-one", "merge", &merge).await?, 200)?;
    expect("change another node", node.patch("/api/v1/nodes/it-two", "merge", &merge).await?, 403)?;
    expect("delete a node", node.delete("/api/v1/nodes/it-two", &Value::Null).await?, 403)?;
    expect("secret of an own pod", node.get("/api/v1/namespaces/nodes/secrets/mine").await?, 200)?;
    expect("secret of another's pod", node.get("/api/v1/namespaces/nodes/secrets/theirs").await?, 403)?;
    expect("list secrets", node.get("/api/v1/namespaces/nodes/secrets").await?, 403)?;
    expect("own pods", node.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dit-one").await?, 200)?;
    let status = json!({"status": {"message": "hello"}});
    expect(
        "status of an own pod",
        node.patch("/api/v1/namespaces/nodes/pods/p-one/status", "merge", &status).await?,
        200,
    )?;
    expect(
        "status of another's pod",
        node.patch("/api/v1/namespaces/nodes/pods/p-two/status", "merge", &status).await?,
        403,
    )?;
    expect("create a pod", node.post("/api/v1/namespaces/nodes/pods", &pod("p-new", "it-one", "mine")).await?, 403)?;
    expect(
        "make itself an admin",
        node.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &json!({})).await?,
        403,
    )?;
    for node in ["it-one", "it-two"] {
        kubectl.ok(&format!("delete node {node}")).await?;
    }
    kubectl.ok("delete namespace nodes --wait=false").await?;
    Ok(())
}

async fn impersonation(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let admin = cluster.api()?;
    let user = nobody(&admin, "default", "pretender").await?;
    let request = user
        .request(reqwest::Method::GET, "/api/v1/namespaces")
        .header("impersonate-user", "kubernetes-admin")
        .header("impersonate-group", "system:masters");
    let answer = user.send(request).await?;
    ensure!(answer.status == 403 && answer.message().contains("impersonate"), "{}", answer.text);
    let answer = cluster.kubectl().fails("get namespaces --as=alice").await?;
    ensure!(answer.contains("User \"alice\" cannot list resource \"namespaces\""), "{answer}");
    Ok(())
}

async fn default_cluster_roles(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let kubectl = cluster.kubectl();
    let roles = kubectl.ok("get clusterroles -o name").await?;
    for role in [
        "cluster-admin",
        "admin",
        "edit",
        "view",
        "system:node",
        "system:discovery",
        "system:basic-user",
        "system:kube-scheduler",
        "system:kube-controller-manager",
    ] {
        ensure!(roles.contains(&format!("clusterrole.rbac.authorization.k8s.io/{role}\n")), "{role}");
    }
    kubectl.ok("create namespace viewers").await?;
    kubectl.ok("-n viewers create rolebinding v --clusterrole=view --user=vera").await?;
    for (line, allowed) in
        [("get pods", true), ("get deployments", true), ("get secrets", false), ("delete pod x", false)]
    {
        let outcome =
            kubectl.run(&format!("-n viewers {line} --as=vera").split_whitespace().collect::<Vec<_>>()).await?;
        ensure!((outcome.code == 0) == allowed, "{line}: {outcome:?}");
    }
    Ok(())
}

/// Changes an RBAC object, as an administrator might.
async fn rewrite(api: &Api, path: &str, change: impl Fn(&mut Value)) -> Result<()> {
    let path = format!("/apis/rbac.authorization.k8s.io/v1/{path}");
    let mut object = api.get(&path).await?.ok()?;
    change(&mut object);
    api.put(&path, &object).await?.ok()?;
    Ok(())
}

async fn default_policy_is_completed_at_each_start(_: Cx) -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let (api, kubectl) = (cluster.api()?, cluster.kubectl());
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let own = json!({"apiGroups": ["example.com"], "resources": ["widgets"], "verbs": ["get"]});
    let kept = "rbac.authorization.kubernetes.io/autoupdate";
    // As if this version knew more than the one that made the cluster.
    rewrite(&api, "clusterroles/system:discovery", |role| role["rules"] = json!([own])).await?;
    rewrite(&api, "clusterroles/system:monitoring", |role| {
        role["rules"] = json!([]);
        role["metadata"]["annotations"][kept] = json!("false");
    })
    .await?;
    rewrite(&api, "clusterroles/view", |role| {
        role["aggregationRule"]["clusterRoleSelectors"] = json!([{"matchLabels": {"mine": "true"}}]);
    })
    .await?;
    rewrite(&api, "clusterrolebindings/system:public-info-viewer", |binding| {
        binding["subjects"] = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "ann"}]);
    })
    .await?;
    api.delete(&format!("{rbac}/clusterroles/system:aggregate-to-edit"), &json!({})).await?.ok()?;
    api.delete(&format!("{rbac}/clusterrolebindings/system:basic-user"), &json!({})).await?.ok()?;
    let other = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "system:basic-user"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}});
    api.post(&format!("{rbac}/clusterrolebindings"), &other).await?.ok()?;
    let before = kubectl.ok("auth can-i get /apis --as bob --as-group system:authenticated").await;
    ensure!(before.is_err(), "the permission is gone: {before:?}");

    cluster.stop().await?;
    cluster.launch().await?;
    let role = async |name: &str| anyhow::Ok(api.get(&format!("{rbac}/clusterroles/{name}")).await?.ok()?);
    let binding = async |name: &str| anyhow::Ok(api.get(&format!("{rbac}/clusterrolebindings/{name}")).await?.ok()?);
    kubectl.ok("auth can-i get /apis --as bob --as-group system:authenticated").await?;
    let discovery = role("system:discovery").await?;
    ensure!(discovery["rules"].as_array().is_some_and(|rules| rules.len() > 1 && rules[0] == own), "{discovery}");
    let monitoring = role("system:monitoring").await?;
    ensure!(monitoring["rules"].as_array().is_none_or(Vec::is_empty), "it was to be left alone: {monitoring}");
    let view = role("view").await?;
    ensure!(view["aggregationRule"]["clusterRoleSelectors"].as_array().is_some_and(|all| all.len() == 2), "{view}");
    role("system:aggregate-to-edit").await?;
    let public = binding("system:public-info-viewer").await?;
    let subjects: Vec<&str> =
        public["subjects"].as_array().into_iter().flatten().filter_map(|subject| subject["name"].as_str()).collect();
    ensure!(subjects == ["ann", "system:authenticated", "system:unauthenticated"], "{subjects:?}");
    let basic = binding("system:basic-user").await?;
    ensure!(basic["roleRef"]["name"] == "system:basic-user" && basic["subjects"][0].is_object(), "{basic}");
    // Nothing is left to do, and what was added stays once. The rules of an aggregated role may still change by the controller that fills it.
    let versions = async || -> Result<[Value; 3]> {
        let [discovery, edit] = [role("system:discovery").await?, role("system:aggregate-to-edit").await?];
        let version = |role: &Value| role["metadata"]["resourceVersion"].clone();
        Ok([version(&discovery), version(&edit), role("view").await?["aggregationRule"].clone()])
    };
    let settled = versions().await?;
    cluster.stop().await?;
    cluster.launch().await?;
    ensure!(versions().await? == settled, "a second start changes nothing");
    Ok(())
}
