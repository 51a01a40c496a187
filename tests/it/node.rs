//! What the node agent does with a pod on real Docker: environment, volumes, probes, restarts, logs, exec, limits, hooks.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use scaleup_tests::docker::{demo_image, docker};
use scaleup_tests::eventually;
use scaleup_tests::kubectl::Kubectl;
use serde_json::{Value, json};

use crate::{Cx, trials};

/// All tests of this module.
pub fn tests(cx: &Cx) -> Vec<Trial> {
    trials![
        cx,
        "node",
        environment_and_volumes,
        configuration_updates_reach_files,
        init_containers_and_completion,
        restart_policy_and_backoff,
        probes,
        logs,
        exec,
        attach,
        resources_and_security,
        missing_configuration,
        termination,
        service_account_token_is_mounted,
        node_object,
        host_network_and_host_path,
    ]
}

/// A pod of the demo image with one container running `script`.
fn pod(name: &str, script: &str, spec: Value, container: Value) -> Result<Value> {
    let mut object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}, "annotations": {"note": "hello"}},
        "spec": {"terminationGracePeriodSeconds": 2, "containers": [{"name": "c", "image": demo_image("v1")?, "command": ["sh", "-c", script]}]}});
    let merge = |into: &mut Value, from: &Value| {
        if let (Some(into), Some(from)) = (into.as_object_mut(), from.as_object()) {
            into.extend(from.clone());
        }
    };
    merge(&mut object["spec"], &spec);
    merge(&mut object["spec"]["containers"][0], &container);
    Ok(object)
}

async fn apply(kubectl: &Kubectl, ns: &str, object: &Value) -> Result<()> {
    kubectl.apply_in(ns, &object.to_string()).await
}

async fn ready(kubectl: &Kubectl, ns: &str, name: &str) -> Result<()> {
    kubectl.ok(&format!("-n {ns} wait --for=condition=Ready pod/{name} --timeout=60s")).await.map(|_| ())
}

async fn sh(kubectl: &Kubectl, ns: &str, name: &str, script: &str) -> Result<String> {
    Ok(kubectl.ok_args(&["-n", ns, "exec", name, "-c", "c", "--", "sh", "-c", script], "").await?.trim().to_owned())
}

async fn finished(kubectl: &Kubectl, ns: &str, name: &str, phase: &str) -> Result<Value> {
    eventually(phase, || async {
        let pod = kubectl.json(&format!("-n {ns} get pod {name}")).await?;
        Ok((pod["status"]["phase"] == phase).then_some(pod))
    })
    .await
}

async fn environment_and_volumes(cx: Cx) -> Result<()> {
    let kubectl = cx.docker().await?.kubectl();
    let ns = "node-env";
    kubectl.namespace(ns).await?;
    kubectl
        .ok(&format!("-n {ns} create configmap cm --from-literal=K=from-map --from-literal=file.txt=content"))
        .await?;
    kubectl.ok(&format!("-n {ns} create secret generic sec --from-literal=PASS=hidden")).await?;
    let env = json!([{"name": "PLAIN", "value": "x"}, {"name": "EXPANDED", "value": "$(PLAIN)-y-$$(PLAIN)-$(MISSING)"},
        {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "K"}}},
        {"name": "OPTIONAL", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k", "optional": true}}},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}}]);
    let volumes = json!([{"name": "cm", "configMap": {"name": "cm", "items": [{"key": "file.txt", "path": "dir/renamed"}], "defaultMode": 0o400}},
        {"name": "sec", "secret": {"secretName": "sec"}}, {"name": "tmp", "emptyDir": {}}, {"name": "mem", "emptyDir": {"medium": "Memory"}},
        {"name": "down", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        {"name": "proj", "projected": {"sources": [{"configMap": {"name": "cm"}}, {"secret": {"name": "sec"}}]}}]);
    let mounts = json!([{"name": "cm", "mountPath": "/cm"}, {"name": "sec", "mountPath": "/sec", "readOnly": true}, {"name": "tmp", "mountPath": "/scratch"},
        {"name": "mem", "mountPath": "/mem"}, {"name": "down", "mountPath": "/down"}, {"name": "proj", "mountPath": "/proj"},
        {"name": "cm", "mountPath": "/single", "subPath": "dir/renamed"}]);
    let container = json!({"env": env, "envFrom": [{"secretRef": {"name": "sec"}, "prefix": "S_"}], "volumeMounts": mounts, "workingDir": "/scratch",
        "resources": {"limits": {"memory": "64Mi"}}});
    apply(&kubectl, ns, &pod("p", "sleep 3600", json!({"volumes": volumes}), container)?).await?;
    ready(&kubectl, ns, "p").await?;
    let address = kubectl.ok(&format!("-n {ns} get pod p -o jsonpath={{.status.podIP}}")).await?;
    for (script, expected) in [
        ("echo $PLAIN $EXPANDED", "x x-y-$(PLAIN)-$(MISSING)"),
        ("echo $K $S_PASS [$OPTIONAL]", "from-map hidden []"),
        ("echo $POD $CPU", "p 64"),
        ("echo $IP", address.as_str()),
        ("hostname", "p"),
        ("pwd", "/scratch"),
        ("cat /cm/dir/renamed /sec/PASS /proj/K /proj/PASS /single", "contenthiddenfrom-maphiddencontent"),
        ("cat /down/labels", "app=\"p\""),
        ("echo x > /scratch/f && echo y > /mem/f && cat /scratch/f /mem/f", "x\ny"),
        ("(echo x > /sec/f) 2>/dev/null && echo writable || echo refused", "refused"),
        ("grep -c search /etc/resolv.conf", "1"),
    ] {
        let got = sh(&kubectl, ns, "p", script).await?;
        ensure!(got == expected, "{script}: {got:?}, expected {expected:?}");
    }
    kubectl.ok(&format!("delete namespace {ns} --timeout=60s")).await?;
    Ok(())
}

async fn configuration_updates_reach_files(cx: Cx) -> Result<()> {
    let kubectl = cx.docker().await?.kubectl();
    let ns = "node-update";
    kubectl.namespace(ns).await?;
    kubectl.ok(&format!("-n {ns} create configmap cm --from-literal=f=one")).await?;
    let spec = json!({"volumes": [{"name": "v", "configMap": {"name": "cm"}}]});
    apply(&kubectl, ns, &pod("p", "sleep 3600", spec, json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}))?)
        .await?;
    ready(&kubectl, ns, "p").await?;
    ensure!(sh(&kubectl, ns, "p", "cat /v/f").await? == "one", "first");
    kubectl.ok_args(&["-n", ns, "patch", "configmap", "cm", "-p", r#"{"data":{"f":"two"}}"#], "").await?;
    eventually("the file follows", || async { Ok((sh(&kubectl, ns, "p", "cat /v/f").await? == "two").then_some(())) })
        .await?;
    kubectl.ok(&format!("delete namespace {ns} --timeout=60s")).await?;
    Ok(())
}

async fn init_containers_and_completion(cx: Cx) -> Result<()> {
    let kubectl = cx.docker().await?.kubectl();
    let ns = "node-init";
    kubectl.namespace(ns).await?;
    let image = demo_image("v1")?;
    let mount = json!([{"name": "v", "mountPath": "/v"}]);
    let init = |name: &str| json!({"name": name, "image": image, "command": ["sh", "-c", format!("echo {name} >> /v/order")], "volumeMounts": mount});
    let spec = json!({"restartPolicy": "Never", "volumes": [{"name": "v", "emptyDir": {}}], "initContainers": [init("one"), init("two")]});
    let done = pod("done", "cat /v/order; echo said > /dev/termination-log", spec, json!({"volumeMounts": mount}))?;
    apply(&kubectl, ns, &done).await?;
    let status = finished(&kubectl, ns, "done", "Succeeded").await?["status"].clone();
    ensure!(kubectl.ok(&format!("-n {ns} logs done")).await? == "one\ntwo\n", "init containers run in order");
    let ended = &status["containerStatuses"][0]["state"]["terminated"];
    ensure!(
        ended["reason"] == "Completed"
            && ended["exitCode"] == 0
            && ended["message"].as_str().is_some_and(|m| m.trim() == "said"),
        "{ended}"
    );
    ensure!(kubectl.ok(&format!("-n {ns} get pod done")).await?.contains("Completed"), "table");
    apply(&kubectl, ns, &pod("fails", "exit 3", json!({"restartPolicy": "Never"}), json!({}))?).await?;
    let failed = finished(&kubectl, ns, "fails", "Failed").await?;
    ensure!(failed["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 3, "{failed}");
    let bad_init = json!({"restartPolicy": "Never", "initContainers": [{"name": "i", "image": image, "command": ["sh", "-c", "exit 1"]}]});
    apply(&kubectl, ns, &pod("stuck", "sleep 1", bad_init, json!({}))?).await?;
    finished(&kubectl, ns, "stuck", "Failed").await?;
    kubectl.ok(&format!("delete namespace {ns} --timeout=60s")).await?;
    Ok(())
}

async fn restart_policy_and_backoff(cx: Cx) -> Result<()> {
    let kubectl = cx.docker().await?.kubectl();
    let ns = "node-restart";
    kubectl.namespace(ns).await?;
    apply(&kubectl, ns, &pod("p", "echo run; exit 1", json!({}), json!({}))?).await?;
    eventually("CrashLoopBackOff", || async {
        let status = kubectl.json(&format!("-n {ns} get pod p")).await?["status"]["containerStatuses"][0].clone();
        let waiting = &status["state"]["waiting"];
        let told = waiting["message"].as_str().is_some_and(|m| m.contains("back-off 10s restarting failed container"));
        Ok((waiting["reason"] == "CrashLoopBackOff" && told && status["lastState"]["terminated"]["exitCode"] == 1)
            .then_some(()))
    })
    .await?;
    ensure!(kubectl.ok(&format!("-n {ns} logs p --previous")).await?.contains("run"), "the previous log");
    ensure!(kubectl.ok(&format!("-n {ns} get pods")).await?.contains("CrashLoopBackOff"), "table");
    kubectl.ok(&format!("delete namespace {ns} --timeout=60s")).await?;
    Ok(())
}

async fn probes(cx: Cx) -> Result<()> {
    let kubectl = cx.docker().await?.kubectl();
    let ns = "node-probes";
    kubectl.namespace(ns).await?;
    let exec = |path: &str| json!({"exec": {"command": ["cat", path]}, "periodSeconds": 1, "timeoutSeconds": 20, "failureThreshold": 1});
    apply(
        &kubectl,
        ns,
        &pod(
            "gate",
            "sleep 3600",
            json!({}),
            json!({"readinessProbe": exec("/tmp/ready"), "livenessProbe": exec("/etc/version")}),
        )?,
    )
    .await?;
    eventually("running, not ready", || async {
        let pod = kubectl.json(&format!("-n {ns} get pod gate")).await?;
        let status = &pod["status"]["containerStatuses"][0];
        Ok((status["started"] == true && status["ready"] == false).then_some(()))
    })
    .await?;
    sh(&kubectl, ns, "gate", "touch /tmp/ready").await?;
    ready(&kubectl, ns, "gate").await?;
    sh(&kubectl, ns, "gate", "rm /tmp/ready").await?;
    eventually("not ready again", || async {
        Ok((kubectl.json(&format!("-n {ns} get pod gate")).await?["status"]["containerStatuses"][0]["ready"] == false)
            .then_some(()))
    })
    .await?;
    // The liveness probe fails: the container is killed and started again.
    sh(&kubectl, ns, "gate", "rm /etc/version").await?;
    eventually("restarted by liveness", || async {
        Ok((kubectl.json(&format!("-n {ns} get pod gate")).await?["status"]["containerStatuses"][0]["restartCount"]
            .as_u64()
            >= Some(1))
        .then_some(()))
    })
    .await?;
    let events = kubectl.ok(&format!("-n {ns} get events")).await?;
    ensure!(
        events.contains("Readiness probe failed")
            && events.contains("Liveness probe failed")
            && events.contains("failed liveness probe, will be restarted"),
        "{events}"
    );
    // HTTP and TCP, with named ports.
    let serving = json!({"command": ["/bin/web"], "ports": [{"name": "http", "containerPort": 8080}],
        "startupProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 1, "failureThreshold": 30}, "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1}});
    apply(&kubectl, ns, &pod("web", "", json!({}), serving)?).await?;
    ready(&kubectl, ns, "web").await?;
    let missing = json!({"command": ["/bin/web"], "readinessProbe": {"httpGet": {"path": "/missing", "port": 8080}, "periodSeconds": 1}});
    apply(&kubectl, ns, &pod("404", "", json!({}), missing)?).await?;
    eventually("the event says 404", || async {
        Ok(kubectl
            .ok(&format!("-n {ns} get events"))
            .await?
            .contains("HTTP probe failed with statuscode: 404")
            .then_some(()))
    })
    .await?;
    kubectl.ok(&format!("delete namespace {ns} --timeout=60s")).await?;
    Ok(())
}

async fn logs(cx: Cx) -> Result<()> {
    let cluster = cx.docker().await?;
    let kubectl = cluster.kubectl();
    let ns = "node-logs";
    kubectl.namespace(ns).await?;
    let image = demo_image("v1")?;
    let mut two = pod(
        "p",
        "for i in 1 2 3 4 5; do echo line $i; done; sleep 0.5; echo oops >&2; sleep 3600",
        json!({}),
        json!({}),
    )?;
    two["spec"]["containers"]
        .as_array_mut()
        .context("containers")?
        .push(json!({"name": "other", "image": image, "command": ["sh", "-c", "echo other; sleep 3600"]}));
    apply(&kubectl, ns, &two).await?;
    ready(&kubectl, ns, "p").await?;
    let log = |args: &str| {
        let line = format!("-n {ns} logs p {args}");
        let kubectl = kubectl.clone();
        async move { kubectl.ok(&line).await }
    };
    eventually("all lines", || async {
        Ok((log("-c c").await? == "line 1\nline 2\nline 3\nline 4\nline 5\noops\n").then_some(()))
    })
    .await?;
    ensure!(log("-c c --tail=2").await? == "line 5\noops\n", "tail");
    ensure!(log("-c c --tail=0").await?.is_empty(), "tail 0");
    ensure!(log("-c c --limit-bytes=8").await? == "line 1\nl", "limit");
    ensure!(log("-c c --timestamps --tail=1").await?.starts_with("20"), "timestamps");
    ensure!(log("-c c --since=1h").await?.contains("line 1"), "since");
    ensure!(log("--all-containers --prefix").await?.contains("[pod/p/other] other"), "all containers");
    ensure!(cluster.old_kubectl().ok(&format!("-n {ns} logs p -c other")).await? == "other\n", "old kubectl");
    let api = cluster.api()?;
    let base = format!("/api/v1/namespaces/{ns}/pods/p/log");
    for (query, code) in [
        ("", 400),
        ("?container=none", 400),
        ("?container=c&tailLines=x", 400),
        ("?container=c&tailLines=-1", 422),
        ("?container=c&sinceSeconds=0", 422),
        ("?container=c&previous=true", 400),
    ] {
        let answer = api.get(&format!("{base}{query}")).await?;
        ensure!(
            answer.status.as_u16() == code && answer.json()["kind"] == "Status",
            "{query}: {} {}",
            answer.status,
            answer.text
        );
    }
    ensure!(
        api.get(&base)
            .await?
            .message()
            .contains("a container name must be specified for pod p, choose one of: [c other]"),
        "which container"
    );
    kubectl.ok(&format!("delete namespace {ns} --timeout=60s")).await?;
    Ok(())
}

async fn exec(cx: Cx) -> Result<()> {
    let kubectl = cx.docker().await?.kubectl();
    let ns = "node-exec";
    kubectl.namespace(ns).await?;
    apply(&kubectl, ns, &pod("p", "sleep 3600", json!({}), json!({}))?).await?;
    ready(&kubectl, ns, "p").await?;
    ensure!(sh(&kubectl, ns, "p", "echo out; echo err >&2").await? == "out", "stdout apart from stderr");
    let failed = kubectl.run(&["-n", ns, "exec", "p", "--", "sh", "-c", "exit 42"]).await?;
    ensure!(failed.code == 42, "{failed:?}");
    let echoed = kubectl.ok_args(&["-n", ns, "exec", "-i", "p", "--", "cat"], "through standard input\n").await?;
    ensure!(echoed == "through standard input\n", "{echoed}");
    let large = "0123456789abcdef".repeat(64 * 1024);
    let counted = kubectl.ok_args(&["-n", ns, "exec", "-i", "p", "--", "cat"], &large).await?;
    ensure!(counted == large, "1 MiB through exec: {} bytes came back", counted.len());
    let missing = kubectl.run(&["-n", ns, "exec", "p", "--", "/no/such/program"]).await?;
    ensure!(
        missing.code != 0 && format!("{}{}", missing.stdout, missing.stderr).contains("no such file"),
        "{missing:?}"
    );
    ensure!(kubectl.fails(&format!("-n {ns} exec nobody -- true")).await?.contains("not found"), "no such pod");
    kubectl.ok(&format!("delete namespace {ns} --timeout=60s")).await?;
    Ok(())
}

/// `kubectl attach` shows what the container prints from then on.
async fn attach(cx: Cx) -> Result<()> {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let kubectl = cx.docker().await?.kubectl();
    let ns = "node-attach";
    kubectl.namespace(ns).await?;
    apply(
        &kubectl,
        ns,
        &pod("p", "i=0; while true; do echo tick $i; i=$((i+1)); sleep 0.2; done", json!({}), json!({}))?,
    )
    .await?;
    ready(&kubectl, ns, "p").await?;
    let mut child = kubectl.command().args(["-n", ns, "attach", "p"]).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
    for _ in 0..3 {
        let line =
            tokio::time::timeout(std::time::Duration::from_secs(20), lines.next_line()).await.context("no line")??;
        ensure!(line.as_deref().is_some_and(|l| l.starts_with("tick ")), "{line:?}");
    }
    child.kill().await?;
    kubectl.ok(&format!("delete namespace {ns} --timeout=60s")).await?;
    Ok(())
}

async fn inspect(kubectl: &Kubectl, ns: &str, name: &str) -> Result<Value> {
    let id =
        kubectl.ok(&format!("-n {ns} get pod {name} -o jsonpath={{.status.containerStatuses[0].containerID}}")).await?;
    let text = docker(&["inspect", id.trim_start_matches("docker://")])?;
    Ok(serde_json::from_str::<Value>(&text)?[0].clone())
}

async fn resources_and_security(cx: Cx) -> Result<()> {
    let kubectl = cx.docker().await?.kubectl();
    let ns = "node-limits";
    kubectl.namespace(ns).await?;
    let container = json!({"resources": {"requests": {"cpu": "250m", "memory": "32Mi"}, "limits": {"cpu": "500m", "memory": "64Mi"}},
        "securityContext": {"runAsUser": 1000, "runAsGroup": 2000, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}});
    apply(&kubectl, ns, &pod("p", "sleep 3600", json!({}), container)?).await?;
    ready(&kubectl, ns, "p").await?;
    let host = inspect(&kubectl, ns, "p").await?["HostConfig"].clone();
    ensure!(host["Memory"] == 64 << 20 && host["CpuShares"] == 256, "{host}");
    let quota = host["NanoCpus"] == 500_000_000u64 || (host["CpuQuota"] == 50_000 && host["CpuPeriod"] == 100_000);
    ensure!(quota && host["ReadonlyRootfs"] == true, "{host}");
    ensure!(sh(&kubectl, ns, "p", "id -u; id -g").await? == "1000\n2000", "user and group");
    ensure!(kubectl.ok(&format!("-n {ns} get pod p -o jsonpath={{.status.qosClass}}")).await? == "Burstable", "QoS");
    let root = json!({"securityContext": {"runAsNonRoot": true}});
    apply(&kubectl, ns, &pod("root", "sleep 3600", json!({}), root)?).await?;
    eventually("refused to run as root", || async {
        let waiting = kubectl.json(&format!("-n {ns} get pod root")).await?["status"]["containerStatuses"][0]["state"]
            ["waiting"]
            .clone();
        Ok((waiting["reason"] == "CreateContainerConfigError"
            && waiting["message"].as_str().is_some_and(|m| m.contains("runAsNonRoot")))
        .then_some(()))
    })
    .await?;
    let hungry = json!({"resources": {"limits": {"memory": "16Mi"}}});
    let script = "x=a; while true; do x=$x$x; done";
    apply(&kubectl, ns, &pod("oom", script, json!({"restartPolicy": "Never"}), hungry)?).await?;
    let ended =
        finished(&kubectl, ns, "oom", "Failed").await?["status"]["containerStatuses"][0]["state"]["terminated"].clone();
    ensure!(ended["reason"] == "OOMKilled" && ended["exitCode"] == 137, "{ended}");
    kubectl.ok(&format!("delete namespace {ns} --timeout=60s")).await?;
    Ok(())
}

async fn missing_configuration(cx: Cx) -> Result<()> {
    let kubectl = cx.docker().await?.kubectl();
    let ns = "node-missing";
    kubectl.namespace(ns).await?;
    let container = json!({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "later", "key": "a"}}}]});
    apply(&kubectl, ns, &pod("p", "sleep 3600", json!({}), container)?).await?;
    eventually("CreateContainerConfigError", || async {
        let waiting =
            kubectl.json(&format!("-n {ns} get pod p")).await?["status"]["containerStatuses"][0]["state"]["waiting"]
                .clone();
        Ok((waiting["reason"] == "CreateContainerConfigError"
            && waiting["message"].as_str().is_some_and(|m| m.contains("configmap \"later\" not found")))
        .then_some(()))
    })
    .await?;
    kubectl.ok(&format!("-n {ns} create configmap later --from-literal=a=b")).await?;
    ready(&kubectl, ns, "p").await?;
    ensure!(sh(&kubectl, ns, "p", "echo $A").await? == "b", "the value came");
    kubectl.ok(&format!("delete namespace {ns} --timeout=60s")).await?;
    Ok(())
}

async fn termination(cx: Cx) -> Result<()> {
    let cluster = cx.docker().await?;
    let kubectl = cluster.kubectl();
    let ns = "node-term";
    kubectl.namespace(ns).await?;
    let spec = json!({"terminationGracePeriodSeconds": 20, "volumes": [{"name": "v", "hostPath": {"path": cluster.dir.path().join("term"), "type": "DirectoryOrCreate"}}]});
    let container = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}], "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", "echo hook >> /v/order"]}}}});
    let script = "trap 'echo term >> /v/order; exit 0' TERM; while true; do sleep 0.1; done";
    apply(&kubectl, ns, &pod("p", script, spec, container)?).await?;
    ready(&kubectl, ns, "p").await?;
    kubectl.ok(&format!("-n {ns} delete pod p --timeout=60s")).await?;
    let order = std::fs::read_to_string(cluster.dir.path().join("term/order"))?;
    ensure!(order == "hook\nterm\n", "{order:?}");
    // One that ignores SIGTERM is killed after its grace.
    apply(
        &kubectl,
        ns,
        &pod(
            "deaf",
            "trap '' TERM; while true; do sleep 0.1; done",
            json!({"terminationGracePeriodSeconds": 1}),
            json!({}),
        )?,
    )
    .await?;
    ready(&kubectl, ns, "deaf").await?;
    kubectl.ok(&format!("-n {ns} delete pod deaf --timeout=60s")).await?;
    apply(
        &kubectl,
        ns,
        &pod(
            "slow",
            "trap '' TERM; while true; do sleep 0.1; done",
            json!({"terminationGracePeriodSeconds": 3600}),
            json!({}),
        )?,
    )
    .await?;
    ready(&kubectl, ns, "slow").await?;
    kubectl.ok(&format!("-n {ns} delete pod slow --force --grace-period=0 --timeout=60s")).await?;
    eventually("no container is left", || async {
        Ok(docker(&["ps", "-aq", "--filter", &format!("label=io.kubernetes.pod.namespace={ns}")])?
            .is_empty()
            .then_some(()))
    })
    .await?;
    kubectl.ok(&format!("delete namespace {ns} --timeout=60s")).await?;
    Ok(())
}

async fn service_account_token_is_mounted(cx: Cx) -> Result<()> {
    let cluster = cx.docker().await?;
    let kubectl = cluster.kubectl();
    let ns = "node-token";
    kubectl.namespace(ns).await?;
    apply(&kubectl, ns, &pod("p", "sleep 3600", json!({}), json!({}))?).await?;
    ready(&kubectl, ns, "p").await?;
    let base = "/var/run/secrets/kubernetes.io/serviceaccount";
    ensure!(sh(&kubectl, ns, "p", &format!("cat {base}/namespace")).await? == ns, "namespace");
    ensure!(sh(&kubectl, ns, "p", &format!("cat {base}/ca.crt")).await?.contains("BEGIN CERTIFICATE"), "CA");
    let token = sh(&kubectl, ns, "p", &format!("cat {base}/token")).await?;
    let pod = cluster.api()?.with_token(&token)?;
    let answer = pod.get(&format!("/api/v1/namespaces/{ns}/pods")).await?;
    ensure!(
        answer.status == 403 && answer.message().contains(&format!("system:serviceaccount:{ns}:default")),
        "{}",
        answer.text
    );
    // The token is bound to the pod: it ends with it.
    kubectl.ok(&format!("-n {ns} delete pod p --timeout=60s")).await?;
    ensure!(pod.get("/api").await?.status == 401, "the pod is gone");
    kubectl.ok(&format!("delete namespace {ns} --timeout=60s")).await?;
    Ok(())
}

async fn node_object(cx: Cx) -> Result<()> {
    let cluster = cx.docker().await?;
    let kubectl = cluster.kubectl();
    let node = kubectl.json(&format!("get node {}", cluster.node)).await?;
    let (status, labels) = (&node["status"], &node["metadata"]["labels"]);
    ensure!(
        labels["kubernetes.io/hostname"] == cluster.node.as_str() && labels["kubernetes.io/os"] == "linux",
        "{labels}"
    );
    for resource in ["cpu", "memory", "pods", "ephemeral-storage"] {
        ensure!(
            status["capacity"][resource].is_string() && status["allocatable"][resource].is_string(),
            "{resource}: {status}"
        );
    }
    ensure!(
        status["nodeInfo"]["containerRuntimeVersion"].as_str().is_some_and(|v| v.starts_with("docker://")),
        "{status}"
    );
    let lease = kubectl.json(&format!("-n kube-node-lease get lease {}", cluster.node)).await?;
    ensure!(lease["spec"]["renewTime"].is_string() && lease["spec"]["leaseDurationSeconds"] == 40, "{lease}");
    let wide = kubectl.ok("get nodes -o wide").await?;
    ensure!(wide.contains(" Ready ") && wide.contains("docker://"), "{wide}");
    Ok(())
}

async fn host_network_and_host_path(cx: Cx) -> Result<()> {
    let cluster = cx.docker().await?;
    let kubectl = cluster.kubectl();
    let ns = "node-host";
    kubectl.namespace(ns).await?;
    let port = scaleup_tests::cluster::free_port()?;
    let container = json!({"command": ["/bin/web"], "env": [{"name": "PORT", "value": port.to_string()}]});
    apply(&kubectl, ns, &pod("p", "", json!({"hostNetwork": true}), container)?).await?;
    ready(&kubectl, ns, "p").await?;
    eventually("served on the host", || async { Ok(crate::path::ask(port).await.ok()) }).await?;
    let pod_object = kubectl.json(&format!("-n {ns} get pod p")).await?;
    ensure!(pod_object["status"]["podIP"] == pod_object["status"]["hostIP"], "{}", pod_object["status"]);
    let mut absent = pod("absent", "true", json!({}), json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}))?;
    absent["spec"]["volumes"] = json!([{"name": "v", "hostPath": {"path": "/no/such/directory", "type": "Directory"}}]);
    apply(&kubectl, ns, &absent).await?;
    eventually("FailedMount", || async {
        Ok(kubectl.ok(&format!("-n {ns} get events")).await?.contains("FailedMount").then_some(()))
    })
    .await?;
    kubectl.ok(&format!("delete namespace {ns} --timeout=60s")).await?;
    Ok(())
}
