//! Every role alone, over HTTPS, with identities that `scaleup kubeconfig` makes; and the same platform on etcd.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use scaleup_tests::cluster::{binary, free_port, issued};
use scaleup_tests::docker::demo_image;
use scaleup_tests::eventually;
use scaleup_tests::http::Api;
use scaleup_tests::kubectl::Kubectl;

use crate::{Cx, trials};

/// All tests of this module.
pub fn tests(cx: &Cx) -> Vec<Trial> {
    trials![cx, "roles", roles_apart_on_etcd]
}

/// Processes that end with the test.
#[derive(Default)]
pub(crate) struct Processes(Vec<Child>);

impl Processes {
    pub fn start(&mut self, dir: &std::path::Path, name: &str, command: &mut Command) -> Result<()> {
        let log = std::fs::File::create(dir.join(format!("{name}.log")))?;
        self.0.push(
            command
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
                .with_context(|| name.to_owned())?,
        );
        Ok(())
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in self.0.iter_mut().rev() {
            let _ = Command::new("kill").arg(child.id().to_string()).status();
        }
        std::thread::sleep(std::time::Duration::from_millis(1_500));
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn start_etcd(processes: &mut Processes, dir: &std::path::Path) -> Result<u16> {
    let (client, peer) = (free_port()?, free_port()?);
    let (client_url, peer_url) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    let mut command = Command::new("etcd");
    command.arg("--data-dir").arg(dir.join("etcd"));
    command.args([
        "--listen-client-urls",
        &client_url,
        "--advertise-client-urls",
        &client_url,
        "--listen-peer-urls",
        &peer_url,
    ]);
    command.args(["--initial-advertise-peer-urls", &peer_url, "--initial-cluster", &format!("default={peer_url}")]);
    processes.start(dir, "etcd", &mut command)?;
    Ok(client)
}

async fn roles_apart_on_etcd(_: Cx) -> Result<()> {
    let home = tempfile::Builder::new().prefix("scaleup-it-").tempdir()?;
    let dir = home.path();
    let node = format!("it-{}-apart", std::process::id());
    let outcome = apart(dir, &node).await;
    scaleup_tests::docker::remove_node(&node);
    scaleup_tests::docker::remove_mounts(dir);
    if outcome.is_err() {
        for name in ["apiserver", "controllers", "scheduler", "agent", "lb"] {
            let log = std::fs::read_to_string(dir.join(format!("{name}.log"))).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(15).collect();
            println!("--- {name}\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
    outcome
}

async fn apart(dir: &std::path::Path, node: &str) -> Result<()> {
    let mut processes = Processes::default();
    let etcd = start_etcd(&mut processes, dir)?;
    let port = free_port()?;
    let data = dir.join("api");
    let mut apiserver = Command::new(binary());
    apiserver.arg("apiserver").arg("--data-dir").arg(&data).args([
        "--listen",
        &format!("0.0.0.0:{port}"),
        "--store",
        &format!("etcd://127.0.0.1:{etcd}"),
    ]);
    apiserver.args(["--service-cidr", "10.94.0.0/16", "--node-port-range", "29000-29099"]);
    processes.start(dir, "apiserver", &mut apiserver)?;
    let api = eventually("the API is ready", || async {
        let api = Api::from_kubeconfig(&data.join("kubeconfig"))?;
        Ok(api.get("/readyz").await?.status.is_success().then_some(api))
    })
    .await?;
    let config = |name: &str, subject: &[&str]| -> Result<std::path::PathBuf> {
        let path = dir.join(format!("{name}.kubeconfig"));
        std::fs::write(&path, issued(&data, &api.base, subject)?)?;
        Ok(path)
    };
    for role in ["controllers", "scheduler"] {
        let kubeconfig = config(role, &[role])?;
        let mut command = Command::new(binary());
        command.arg(role).arg("--kubeconfig").arg(kubeconfig);
        if role == "controllers" {
            command.args(["--pod-cidr-pool", "10.230.0.0/16"]);
        }
        processes.start(dir, role, &mut command)?;
    }
    let mut agent = Command::new(binary());
    agent.arg("agent").arg("--kubeconfig").arg(config("agent", &["node", node, "--address", "127.0.0.1"])?);
    agent.arg("--data-dir").arg(dir.join("agent")).args([
        "--node-name",
        node,
        "--node-ip",
        "127.0.0.1",
        "--pod-cidr-pool",
        // Not what the controllers give: the network that the agent makes at first is made again.
        "10.231.0.0/16",
    ]);
    processes.start(dir, "agent", &mut agent)?;
    let mut lb = Command::new(binary());
    lb.arg("lb").arg("--kubeconfig").arg(config("lb", &["lb"])?).args([
        "--node-name",
        node,
        "--service-cidr",
        "10.94.0.0/16",
    ]);
    processes.start(dir, "lb", &mut lb)?;

    let kubectl = Kubectl::new(Kubectl::NEW, &data.join("kubeconfig"));
    eventually("every role is in the view of components", || async {
        let slices = kubectl.json("-n kube-system get endpointslices -l app.kubernetes.io/part-of=scaleup").await?;
        let ready: std::collections::BTreeSet<&str> = slices["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|slice| slice["endpoints"][0]["conditions"]["ready"] == true)
            .filter(|slice| slice["metadata"]["annotations"]["scaleup.dev/version"].is_string())
            .filter_map(|slice| slice["metadata"]["labels"]["app.kubernetes.io/component"].as_str())
            .collect();
        Ok((ready == ["apiserver", "controllers", "lb", "scheduler"].into()).then_some(()))
    })
    .await?;
    let subnet = eventually("the node has a pod subnet", || async {
        let node = kubectl.json(&format!("get node {node}")).await?;
        let gateway = &node["metadata"]["annotations"]["scaleup.dev/pod-gateway"];
        Ok(gateway.is_string().then(|| node["spec"]["podCIDR"].as_str().unwrap_or_default().to_owned()))
    })
    .await?;
    ensure!(subnet.starts_with("10.230."), "the controllers say which subnet a node has: {subnet}");
    demo_image("v1")?;
    eventually("the service account", || async { Ok(kubectl.ok("get serviceaccount default").await.ok()) }).await?;
    let answers = crate::path::deploy(&kubectl, "web").await?;
    ensure!(crate::path::ask(answers).await?.contains("version v1"), "through the load balancer");
    ensure!(kubectl.ok("-n web logs deployment/web").await?.contains("serving"), "logs across processes");
    ensure!(kubectl.ok("-n web exec deployment/web -- hostname").await?.contains("web-"), "exec across processes");
    kubectl.ok("delete namespace web --timeout=60s").await?;
    Ok(())
}
