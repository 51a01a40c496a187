//! Controllers as kubectl shows them: rollouts, rollback, garbage collection, namespaces, lost nodes.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use scaleup_tests::cluster::{Cluster, Options};
use scaleup_tests::eventually;
use scaleup_tests::kubectl::Kubectl;
use serde_json::{Value, json};

use crate::{Cx, trials};

/// All tests of this module.
pub fn tests(cx: &Cx) -> Vec<Trial> {
    trials![
        cx,
        "controllers",
        rollout_history_and_undo,
        pause_and_resume,
        progress_deadline,
        recreate,
        garbage_collection,
        namespace_deletion,
        endpoints_follow_pods,
        service_accounts_and_root_ca,
        scheduling_and_why_not,
        one_bad_pod_blocks_nobody,
        lost_node,
    ]
}

fn deployment(name: &str, replicas: u32, image: &str, extra: Value) -> String {
    let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": image, "ports": [{"name": "http", "containerPort": 80}]}]}}}});
    if let (Some(spec), Some(extra)) = (object["spec"].as_object_mut(), extra.as_object()) {
        spec.extend(extra.clone());
    }
    object.to_string()
}

async fn image(kubectl: &Kubectl, namespace: &str, name: &str) -> Result<String> {
    kubectl
        .ok(&format!("-n {namespace} get deployment {name} -o jsonpath={{.spec.template.spec.containers[0].image}}"))
        .await
}

async fn rollout_history_and_undo(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    for (kubectl, ns) in [(cluster.kubectl(), "undo-new"), (cluster.old_kubectl(), "undo-old")] {
        kubectl.namespace(ns).await?;
        kubectl.apply_in(ns, &deployment("d", 3, "app:1", json!({}))).await?;
        for version in 2..=4 {
            kubectl.rolled_out(ns, "d").await?;
            kubectl.ok(&format!("-n {ns} set image deployment/d c=app:{version}")).await?;
        }
        kubectl.rolled_out(ns, "d").await?;
        let history = kubectl.ok(&format!("-n {ns} rollout history deployment/d")).await?;
        ensure!(["1", "2", "3", "4"].iter().all(|r| history.lines().any(|l| l.starts_with(r))), "{history}");
        ensure!(
            kubectl.ok(&format!("-n {ns} rollout history deployment/d --revision=2")).await?.contains("app:2"),
            "revision 2"
        );
        kubectl.ok(&format!("-n {ns} rollout undo deployment/d")).await?;
        kubectl.rolled_out(ns, "d").await?;
        ensure!(image(&kubectl, ns, "d").await? == "app:3", "undo");
        kubectl.ok(&format!("-n {ns} rollout undo deployment/d --to-revision=1")).await?;
        kubectl.rolled_out(ns, "d").await?;
        ensure!(image(&kubectl, ns, "d").await? == "app:1", "undo to 1");
        let sets = kubectl.json(&format!("-n {ns} get rs")).await?;
        let running = |set: &&Value| set["spec"]["replicas"] == 3;
        ensure!(
            sets["items"].as_array().is_some_and(|s| s.len() == 4 && s.iter().filter(running).count() == 1),
            "{sets}"
        );
        kubectl.ok(&format!("-n {ns} rollout restart deployment/d")).await?;
        kubectl.rolled_out(ns, "d").await?;
    }
    Ok(())
}

async fn pause_and_resume(cx: Cx) -> Result<()> {
    let kubectl = cx.fake().await?.kubectl();
    kubectl.namespace("pause").await?;
    kubectl.apply_in("pause", &deployment("d", 2, "app:1", json!({}))).await?;
    kubectl.rolled_out("pause", "d").await?;
    kubectl.ok("-n pause rollout pause deployment/d").await?;
    kubectl.ok("-n pause set image deployment/d c=app:2").await?;
    kubectl.ok("-n pause scale deployment/d --replicas=4").await?;
    // Scaling goes on while paused, rolling out does not.
    eventually("scaled", || async {
        let d = kubectl.json("-n pause get deployment d").await?;
        Ok((d["status"]["readyReplicas"] == 4 && d["status"]["observedGeneration"] == d["metadata"]["generation"])
            .then_some(()))
    })
    .await?;
    ensure!(
        kubectl.json("-n pause get rs").await?["items"].as_array().is_some_and(|s| s.len() == 1),
        "nothing rolled out"
    );
    kubectl.ok("-n pause rollout resume deployment/d").await?;
    kubectl.rolled_out("pause", "d").await?;
    let pods = kubectl.ok("-n pause get pods -o jsonpath={.items[*].spec.containers[0].image}").await?;
    ensure!(pods.split_whitespace().filter(|i| *i == "app:2").count() >= 4, "{pods}");
    Ok(())
}

async fn progress_deadline(cx: Cx) -> Result<()> {
    let kubectl = cx.fake().await?.kubectl();
    kubectl.namespace("deadline").await?;
    let impossible = json!({"progressDeadlineSeconds": 2, "template": {"metadata": {"labels": {"app": "d"}},
        "spec": {"nodeSelector": {"no": "such-node"}, "containers": [{"name": "c", "image": "app:1"}]}}});
    kubectl.apply_in("deadline", &deployment("d", 1, "app:1", impossible)).await?;
    eventually("ProgressDeadlineExceeded", || async {
        let d = kubectl.json("-n deadline get deployment d").await?;
        let conditions = d["status"]["conditions"].as_array().cloned().unwrap_or_default();
        Ok(conditions
            .iter()
            .any(|c| c["type"] == "Progressing" && c["reason"] == "ProgressDeadlineExceeded" && c["status"] == "False")
            .then_some(()))
    })
    .await?;
    ensure!(
        kubectl
            .fails("-n deadline rollout status deployment/d --timeout=10s")
            .await?
            .contains("exceeded its progress deadline"),
        "rollout status"
    );
    Ok(())
}

async fn recreate(cx: Cx) -> Result<()> {
    let kubectl = cx.fake().await?.kubectl();
    kubectl.namespace("recreate").await?;
    kubectl.apply_in("recreate", &deployment("d", 2, "app:1", json!({"strategy": {"type": "Recreate"}}))).await?;
    kubectl.rolled_out("recreate", "d").await?;
    kubectl.ok("-n recreate set image deployment/d c=app:2").await?;
    kubectl.rolled_out("recreate", "d").await?;
    let pods = kubectl.ok("-n recreate get pods -o jsonpath={.items[*].spec.containers[0].image}").await?;
    ensure!(pods == "app:2 app:2", "{pods}");
    Ok(())
}

async fn gone(kubectl: &Kubectl, line: &str) -> Result<()> {
    eventually(&format!("{line}: nothing left"), || async {
        Ok(kubectl.ok(line).await?.trim().is_empty().then_some(()))
    })
    .await
}

async fn garbage_collection(cx: Cx) -> Result<()> {
    let kubectl = cx.fake().await?.kubectl();
    kubectl.namespace("gc").await?;
    for (name, policy) in [("back", "background"), ("fore", "foreground"), ("orphan", "orphan")] {
        kubectl.apply_in("gc", &deployment(name, 2, "app:1", json!({}))).await?;
        kubectl.rolled_out("gc", name).await?;
        kubectl.ok(&format!("-n gc delete deployment {name} --cascade={policy} --timeout=60s")).await?;
        if policy == "foreground" {
            let left = kubectl.ok("-n gc get rs,pods -l app=fore -o name").await?;
            ensure!(!left.contains("replicaset"), "the owner went before its dependents: {left}");
        }
        if policy != "orphan" {
            gone(&kubectl, &format!("-n gc get rs,pods -l app={name} -o name")).await?;
        }
    }
    let left = kubectl.json("-n gc get rs -l app=orphan").await?;
    let set = &left["items"][0];
    ensure!(set["metadata"]["ownerReferences"].is_null() && set["status"]["readyReplicas"] == 2, "orphaned: {set}");
    // An adopted one goes with its new owner.
    kubectl.apply_in("gc", &deployment("orphan", 2, "app:1", json!({}))).await?;
    eventually("adopted", || async {
        let set = kubectl.json("-n gc get rs -l app=orphan").await?;
        Ok((set["items"][0]["metadata"]["ownerReferences"][0]["kind"] == "Deployment").then_some(()))
    })
    .await?;
    kubectl.ok("-n gc delete deployment orphan --timeout=60s").await?;
    gone(&kubectl, "-n gc get rs,pods -l app=orphan -o name").await
}

async fn namespace_deletion(cx: Cx) -> Result<()> {
    let kubectl = cx.fake().await?.kubectl();
    kubectl.namespace("doomed").await?;
    kubectl.apply_in("doomed", &deployment("d", 2, "app:1", json!({}))).await?;
    kubectl.ok("-n doomed create configmap held --from-literal=a=b").await?;
    let finalizers = async |list: Value| {
        let patch = json!({"metadata": {"finalizers": list}}).to_string();
        kubectl.ok_args(&["-n", "doomed", "patch", "configmap", "held", "--type=merge", "-p", &patch], "").await
    };
    kubectl.ok("-n doomed create service clusterip s --tcp=80").await?;
    finalizers(json!(["example.com/hold"])).await?;
    kubectl.ok("delete namespace doomed --wait=false").await?;
    eventually("only the held object is left", || async {
        let phase = kubectl.ok("get namespace doomed -o jsonpath={.status.phase}").await?;
        let left =
            kubectl.ok("-n doomed get deployments,rs,pods,services,configmaps,secrets,serviceaccounts -o name").await?;
        Ok((phase == "Terminating" && left.trim() == "configmap/held").then_some(()))
    })
    .await?;
    let refused = kubectl.fails("-n doomed create configmap late").await?;
    ensure!(refused.contains("because it is being terminated"), "{refused}");
    eventually("the condition says why", || async {
        let conditions = kubectl.ok("get namespace doomed -o jsonpath={.status.conditions}").await?;
        Ok((conditions.contains("NamespaceFinalizersRemaining") && conditions.contains("example.com/hold"))
            .then_some(()))
    })
    .await?;
    finalizers(Value::Null).await?;
    eventually("gone", || async { Ok(kubectl.fails("get namespace doomed").await.ok()) }).await?;
    ensure!(kubectl.fails("delete namespace default").await?.contains("forbidden"), "default stays");
    Ok(())
}

async fn endpoints_follow_pods(cx: Cx) -> Result<()> {
    let kubectl = cx.fake().await?.kubectl();
    kubectl.namespace("endpoints").await?;
    kubectl.apply_in("endpoints", &deployment("d", 3, "app:1", json!({}))).await?;
    kubectl.ok("-n endpoints expose deployment d --port=80 --target-port=http").await?;
    let slices = || async {
        let all = kubectl.json("-n endpoints get endpointslices -l kubernetes.io/service-name=d").await?;
        let mut ready = Vec::new();
        for slice in all["items"].as_array().context("items")? {
            for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
                if endpoint["conditions"]["ready"] == true {
                    ready.push(endpoint["addresses"][0].as_str().unwrap_or_default().to_owned());
                }
            }
        }
        ready.sort();
        anyhow::Ok(ready)
    };
    for replicas in [3, 5, 0, 2] {
        kubectl.ok(&format!("-n endpoints scale deployment d --replicas={replicas}")).await?;
        eventually("endpoints follow", || async {
            let pods = kubectl.json("-n endpoints get pods -l app=d").await?;
            let mut addresses: Vec<String> = pods["items"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|p| p["status"]["podIP"].as_str().map(str::to_owned))
                .collect();
            addresses.sort();
            let endpoints = kubectl.json("-n endpoints get endpoints d").await?;
            let old = endpoints["subsets"][0]["addresses"].as_array().map_or(0, Vec::len);
            Ok((addresses.len() == replicas && slices().await? == addresses && old == replicas).then_some(()))
        })
        .await?;
    }
    let port = kubectl.ok("-n endpoints get endpointslices -o jsonpath={.items[0].ports[0].port}").await?;
    ensure!(port == "80", "named target port: {port}");
    Ok(())
}

async fn service_accounts_and_root_ca(cx: Cx) -> Result<()> {
    let kubectl = cx.fake().await?.kubectl();
    kubectl.namespace("accounts").await?;
    eventually("kube-root-ca.crt", || async {
        let ca = kubectl.ok("-n accounts get configmap kube-root-ca.crt -o jsonpath={.data.ca\\.crt}").await?;
        Ok(ca.contains("BEGIN CERTIFICATE").then_some(()))
    })
    .await?;
    kubectl.ok("-n accounts delete serviceaccount default").await?;
    eventually("default comes back", || async { Ok(kubectl.ok("-n accounts get serviceaccount default").await.ok()) })
        .await?;
    kubectl.ok("-n accounts run p --image=app:1").await?;
    let pod = kubectl.json("-n accounts get pod p").await?;
    ensure!(pod["spec"]["serviceAccountName"] == "default", "{pod}");
    ensure!(
        pod["spec"]["containers"][0]["volumeMounts"][0]["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount",
        "{pod}"
    );
    Ok(())
}

async fn scheduling_and_why_not(cx: Cx) -> Result<()> {
    let kubectl = cx.fake().await?.kubectl();
    kubectl.namespace("sched").await?;
    let pod = |name: &str, spec: Value| {
        let mut object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "app:1"}]}});
        if let (Some(into), Some(spec)) = (object["spec"].as_object_mut(), spec.as_object()) {
            into.extend(spec.clone());
        }
        object.to_string()
    };
    let huge = json!([{"name": "c", "image": "app:1", "resources": {"requests": {"cpu": "100000"}}}]);
    for (name, spec, why) in [
        ("huge", json!({"containers": huge}), "0/1 nodes are available: 1 Insufficient cpu."),
        ("elsewhere", json!({"nodeSelector": {"no": "such"}}), "node(s) didn't match Pod's node affinity/selector"),
    ] {
        kubectl.apply_in("sched", &pod(name, spec)).await?;
        eventually(why, || async {
            let events = kubectl.ok(&format!("-n sched get events --field-selector involvedObject.name={name},reason=FailedScheduling -o jsonpath={{.items[*].message}}")).await?;
            Ok(events.contains(why).then_some(()))
        })
        .await?;
        let condition = kubectl.ok(&format!("-n sched get pod {name} -o jsonpath={{.status.conditions[0]}}")).await?;
        ensure!(condition.contains("Unschedulable") && condition.contains("PodScheduled"), "{condition}");
    }
    // A gate is lifted by changing the node: the pod that waited is scheduled then.
    let node = kubectl.ok("get nodes -o jsonpath={.items[0].metadata.name}").await?;
    kubectl.ok(&format!("label node {node} no=such")).await?;
    kubectl.ok("-n sched wait --for=condition=PodScheduled pod/elsewhere --timeout=60s").await?;
    kubectl.ok(&format!("label node {node} no-")).await?;
    Ok(())
}

async fn one_bad_pod_blocks_nobody(cx: Cx) -> Result<()> {
    let kubectl = cx.fake().await?.kubectl();
    kubectl.namespace("bad-pod").await?;
    let huge = json!({"template": {"metadata": {"labels": {"app": "huge"}}, "spec": {"containers": [{"name": "c", "image": "app:1", "resources": {"requests": {"memory": "1000Ti"}}}]}}});
    kubectl.apply_in("bad-pod", &deployment("huge", 20, "app:1", huge)).await?;
    kubectl.apply_in("bad-pod", &deployment("good", 20, "app:1", json!({}))).await?;
    kubectl.rolled_out("bad-pod", "good").await?;
    kubectl.ok("delete namespace bad-pod --timeout=60s").await?;
    Ok(())
}

/// A node whose agent is killed: NotReady, tainted, its pods evicted; and back again.
async fn lost_node(_: Cx) -> Result<()> {
    let cluster =
        Cluster::start(Options { extra: vec!["--node-monitor-grace-period=15s".into()], ..Options::default() }).await?;
    let kubectl = cluster.kubectl();
    let api = cluster.api()?;
    let lost = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "lost"}});
    api.post("/api/v1/nodes", &lost).await?.ok()?;
    let now = "2020-01-01T00:00:00Z";
    let status = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "", "lastHeartbeatTime": now, "lastTransitionTime": now}]}});
    api.patch("/api/v1/nodes/lost/status", "merge", &status).await?.ok()?;
    let tolerations = json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 2},
        {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 2}]);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stranded"}, "spec": {"nodeName": "lost", "tolerations": tolerations, "containers": [{"name": "c", "image": "app:1"}]}});
    eventually("the pod is accepted", || async {
        Ok(api.post("/api/v1/namespaces/default/pods", &pod).await?.status.is_success().then_some(()))
    })
    .await?;
    eventually("NotReady and tainted", || async {
        let node = kubectl.json("get node lost").await?;
        let unknown = node["status"]["conditions"].as_array().is_some_and(|c| {
            c.iter().any(|c| c["type"] == "Ready" && c["status"] == "Unknown" && c["reason"] == "NodeStatusUnknown")
        });
        let tainted = node["spec"]["taints"].as_array().is_some_and(|t| {
            t.iter().any(|t| t["key"] == "node.kubernetes.io/unreachable" && t["effect"] == "NoExecute")
        });
        Ok((unknown && tainted).then_some(()))
    })
    .await?;
    eventually("evicted", || async {
        let answer = api.get("/api/v1/namespaces/default/pods/stranded").await?;
        Ok((answer.status == 404 || !answer.json()["metadata"]["deletionTimestamp"].is_null()).then_some(()))
    })
    .await?;
    // The node that lives is not touched.
    let nodes = kubectl.ok("get nodes").await?;
    ensure!(nodes.lines().any(|l| l.contains(&cluster.node) && l.contains(" Ready")), "{nodes}");
    Ok(())
}
