//! Services: load balancer, node ports, TCP, cluster IPs and DNS between pods, drain, metrics.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use scaleup_tests::cluster::free_port;
use scaleup_tests::docker::{demo_image, tools_image};
use scaleup_tests::eventually;
use scaleup_tests::kubectl::Kubectl;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::path::{ConstantLoad, ask};
use crate::{Cx, trials};

/// All tests of this module.
pub fn tests(cx: &Cx) -> Vec<Trial> {
    trials![
        cx,
        "lb",
        pods_reach_services_by_name,
        tcp_and_node_ports,
        port_conflict_is_told,
        killed_backend_loses_no_get,
        tools_show_and_explain_traffic,
        service_without_endpoints
    ]
}

/// A deployment of the demo app behind a Service of the given type and port name.
async fn serve(kubectl: &Kubectl, namespace: &str, kind: &str, port_name: &str) -> Result<u16> {
    let (image, port) = (demo_image("v1")?, free_port()?);
    kubectl.ok(&format!("create namespace {namespace}")).await?;
    let manifest = format!(
        r"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: app, namespace: {namespace}}}
spec:
  replicas: 3
  selector: {{matchLabels: {{app: app}}}}
  template:
    metadata: {{labels: {{app: app}}}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
        - name: web
          image: {image}
          ports: [{{name: http, containerPort: 8080}}]
          readinessProbe: {{tcpSocket: {{port: http}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: app, namespace: {namespace}}}
spec:
  type: {kind}
  selector: {{app: app}}
  ports: [{{name: {port_name}, port: {port}, targetPort: http}}]
"
    );
    kubectl.apply(&manifest).await?;
    kubectl.ok(&format!("-n {namespace} rollout status deployment/app --timeout=60s")).await?;
    Ok(port)
}

async fn pods_reach_services_by_name(cx: Cx) -> Result<()> {
    let kubectl = cx.docker().await?.kubectl();
    let port = serve(&kubectl, "dns", "ClusterIP", "http").await?;
    let image = tools_image()?;
    let client = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client", "namespace": "dns"},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": image}]}});
    kubectl.apply(&client.to_string()).await?;
    kubectl.ok("-n dns wait --for=condition=Ready pod/client --timeout=60s").await?;
    let run = |command: String| {
        let kubectl = kubectl.clone();
        async move { kubectl.ok_args(&["-n", "dns", "exec", "client", "--", "sh", "-c", &command], "").await }
    };
    let address = kubectl.ok("-n dns get service app -o jsonpath={.spec.clusterIP}").await?;
    for name in ["app", "app.dns", "app.dns.svc", "app.dns.svc.cluster.local", &address] {
        eventually(name, || async {
            Ok(run(format!("curl -fsS --max-time 5 http://{name}:{port}/")).await?.contains("hello from").then_some(()))
        })
        .await?;
    }
    let many =
        run(format!("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do curl -fsS --max-time 5 http://app:{port}/; done")).await?;
    let seen: BTreeSet<&str> = many.lines().filter_map(|l| l.split_whitespace().nth(2)).collect();
    ensure!(seen.len() == 3, "ClusterIP reaches every replica: {seen:?}");
    let looked_up = run("getent hosts app.dns.svc.cluster.local".into()).await?;
    ensure!(looked_up.contains(&address), "{looked_up}");
    ensure!(run("getent hosts no-such.dns.svc.cluster.local".into()).await.is_err(), "NXDOMAIN");
    // A pod speaks to the API by name, with the CA and the token that are mounted.
    let base = "/var/run/secrets/kubernetes.io/serviceaccount";
    let api = format!(
        "curl -sS --max-time 5 --cacert {base}/ca.crt -H \"Authorization: Bearer $(cat {base}/token)\" https://kubernetes.default.svc"
    );
    ensure!(run(format!("{api}/version")).await?.contains("gitVersion"), "the API from a pod");
    let refused = run(format!("{api}/api/v1/namespaces/dns/secrets")).await?;
    ensure!(refused.contains("system:serviceaccount:dns:default") && refused.contains("Forbidden"), "{refused}");
    kubectl.ok("delete namespace dns --timeout=60s").await?;
    Ok(())
}

async fn tcp_and_node_ports(cx: Cx) -> Result<()> {
    let cluster = cx.docker().await?;
    let kubectl = cluster.kubectl();
    let port = serve(&kubectl, "tcp", "LoadBalancer", "raw").await?;
    let node_port: u16 = kubectl.ok("-n tcp get service app -o jsonpath={.spec.ports[0].nodePort}").await?.parse()?;
    ensure!((cluster.ranges.node_ports().0..=cluster.ranges.node_ports().1).contains(&node_port), "{node_port}");
    for port in [port, node_port] {
        eventually("answers", || async { Ok(ask(port).await.ok()) }).await?;
        // Half-closed by the client: the answer still arrives.
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
        stream.shutdown().await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        ensure!(text.contains("hello from"), "{text}");
    }
    kubectl.ok("-n tcp delete service app").await?;
    eventually("closed", || async { Ok((ask(port).await.is_err() && ask(node_port).await.is_err()).then_some(())) })
        .await?;
    kubectl.ok("delete namespace tcp --timeout=60s").await?;
    Ok(())
}

async fn port_conflict_is_told(cx: Cx) -> Result<()> {
    let kubectl = cx.fake().await?.kubectl();
    let port = free_port()?;
    let taken = std::net::TcpListener::bind(("0.0.0.0", port))?;
    kubectl.ok("create namespace conflict").await?;
    kubectl.ok(&format!("-n conflict create service loadbalancer s --tcp={port}:80")).await?;
    eventually("an event", || async {
        let events = kubectl
            .ok("-n conflict get events --field-selector reason=PortConflict -o jsonpath={.items[*].message}")
            .await?;
        Ok(events.contains(&port.to_string()).then_some(()))
    })
    .await?;
    let ingress = kubectl.ok("-n conflict get service s -o jsonpath={.status.loadBalancer.ingress}").await?;
    ensure!(ingress.is_empty(), "{ingress}");
    drop(taken);
    eventually("it is served once the port is free", || async {
        Ok((!kubectl.ok("-n conflict get service s -o jsonpath={.status.loadBalancer.ingress}").await?.is_empty())
            .then_some(()))
    })
    .await
}

async fn killed_backend_loses_no_get(cx: Cx) -> Result<()> {
    let kubectl = cx.docker().await?.kubectl();
    let port = serve(&kubectl, "killed", "LoadBalancer", "http").await?;
    eventually("answers", || async { Ok(ask(port).await.ok()) }).await?;
    let load = ConstantLoad::start(port, 100)?;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let pods = kubectl.json("-n killed get pods").await?;
    let id = pods["items"][0]["status"]["containerStatuses"][0]["containerID"]
        .as_str()
        .context("id")?
        .trim_start_matches("docker://")
        .to_owned();
    scaleup_tests::docker::docker(&["kill", &id])?;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let (sent, failures) = load.finish().await?;
    ensure!(failures.is_empty(), "{} of {sent}: {:?}", failures.len(), &failures[..failures.len().min(3)]);
    kubectl.ok("delete namespace killed --timeout=60s").await?;
    Ok(())
}

/// What the binary prints for a user.
async fn tool(kubeconfig: &std::path::Path, args: &[&str]) -> Result<std::process::Output> {
    let mut command = tokio::process::Command::new(scaleup_tests::cluster::binary());
    command.arg("lb").args(args).env("KUBECONFIG", kubeconfig).env_remove("SCALEUP_KUBECONFIG");
    Ok(command.output().await?)
}

async fn tools_show_and_explain_traffic(cx: Cx) -> Result<()> {
    let cluster = cx.docker().await?;
    let kubectl = cluster.kubectl();
    let port = serve(&kubectl, "seen", "LoadBalancer", "http").await?;
    eventually("answers", || async { Ok(ask(port).await.ok()) }).await?;
    let printed = |output: std::process::Output| -> Result<String> {
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let load = ConstantLoad::start(port, 100)?;
    let top = tool(&cluster.kubeconfig(), &["top", "--once", "-o", "json"]).await;
    let table = tool(&cluster.kubeconfig(), &["top", "--once"]).await;
    let (_, failures) = load.finish().await?;
    ensure!(failures.is_empty(), "{failures:?}");
    let rows: serde_json::Value = serde_json::from_str(&printed(top?)?)?;
    let row =
        rows.as_array().context("rows")?.iter().find(|row| row["name"] == "Service seen/app").context("the row")?;
    ensure!(row["requests_per_s"].as_f64().is_some_and(|rate| rate > 10.0), "{row}");
    ensure!(row["p99_ms"].as_f64().is_some_and(|time| time > 0.0) && row["endpoints"] == 3, "{row}");
    let table = printed(table?)?;
    ensure!(table.starts_with("NAME") && table.contains("Service seen/app"), "{table}");
    let url = format!("http://127.0.0.1:{port}/a?x=1");
    let said = printed(tool(&cluster.kubeconfig(), &["explain", "GET", &url, "--client", "192.0.2.1"]).await?)?;
    for part in ["from 192.0.2.1", "for Service seen/app", "It would be sent to ", "=> "] {
        ensure!(said.contains(part), "{part} in {said}");
    }
    let unserved = format!("http://127.0.0.1:{}/", free_port()?);
    let said = printed(tool(&cluster.kubeconfig(), &["explain", "GET", &unserved]).await?)?;
    ensure!(said.contains("Nobody listens on port"), "{said}");
    // Who may not see it does not.
    let file = tempfile::NamedTempFile::new()?;
    let server = format!("https://127.0.0.1:{}", cluster.port);
    std::fs::write(file.path(), scaleup_tests::cluster::issued(cluster.dir.path(), &server, &["user", "eve"])?)?;
    let refused = tool(file.path(), &["top", "--once"]).await?;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && text.contains("forbidden"), "{text}");
    kubectl.ok("delete namespace seen --timeout=60s").await?;
    Ok(())
}

async fn service_without_endpoints(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let api = cluster.api()?;
    let port = free_port()?;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "empty"}, "spec": {"type": "LoadBalancer", "selector": {"no": "body"}, "ports": [{"name": "http", "port": port}]}});
    api.post("/api/v1/namespaces/default/services", &service).await?.ok()?;
    let client = reqwest::Client::new();
    eventually("503", || async {
        let answer = client.get(format!("http://127.0.0.1:{port}/")).send().await?;
        Ok((answer.status() == 503).then_some(()))
    })
    .await?;
    let metrics = api.get("/metrics").await?.text;
    for family in
        ["apiserver_request_total", "lb_requests_total", "workqueue_depth", "scheduler_pending_pods", "process_"]
    {
        ensure!(metrics.contains(family), "{family} is not in /metrics");
    }
    api.delete("/api/v1/namespaces/default/services/empty", &serde_json::Value::Null).await?.ok()?;
    Ok(())
}
