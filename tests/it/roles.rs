//! Every role alone, over HTTPS, with identities that `scaleup kubeconfig` makes; and the same platform on etcd.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use scaleup_tests::cluster::{Ranges, binary, free_port, issued};
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

/// Starts etcd with its data and log in a directory; its port.
pub(crate) fn start_etcd(processes: &mut Processes, dir: &std::path::Path) -> Result<u16> {
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

/// Every role in a process of its own, over HTTPS; the processes end, and what they made on the machine is removed, on drop.
pub(crate) struct Apart {
    pub dir: tempfile::TempDir,
    pub api: Api,
    node: String,
    processes: Processes,
    ranges: Ranges,
    /// Its range of pods is what the controllers do not give.
    other: Ranges,
}

impl Drop for Apart {
    fn drop(&mut self) {
        drop(std::mem::take(&mut self.processes));
        scaleup_tests::docker::remove_node(&self.node);
        scaleup_tests::docker::remove_mounts(self.dir.path());
    }
}

impl Apart {
    /// With the processes that there are already, such as a store.
    pub async fn start(dir: tempfile::TempDir, mut processes: Processes, store: &str, runtime: &str) -> Result<Self> {
        let (ranges, other) = (Ranges::claim()?, Ranges::claim()?);
        let (port, data) = (free_port()?, dir.path().join("api"));
        let node = format!("it-{}-apart-{port}", std::process::id());
        let mut apiserver = Command::new(binary());
        apiserver.arg("apiserver").arg("--data-dir").arg(&data).args(["--listen", &format!("0.0.0.0:{port}")]);
        apiserver.args(["--store", store, "--service-cidr", &ranges.services()]);
        apiserver.args(["--node-port-range", &ranges.node_port_range()]);
        processes.start(dir.path(), "apiserver", &mut apiserver)?;
        let api = eventually("the API is ready", || async {
            let api = Api::from_kubeconfig(&data.join("kubeconfig"))?;
            Ok(api.get("/readyz").await?.status.is_success().then_some(api))
        })
        .await?;
        let mut apart = Self { dir, api, node, processes, ranges, other };
        for role in ["controllers", "scheduler"] {
            let mut command = Command::new(binary());
            command.arg(role).arg("--kubeconfig").arg(apart.issue(role, &[role])?);
            if role == "controllers" {
                command.args(["--pod-cidr-pool", &apart.ranges.pods()]);
            } else {
                command.arg("--plugin-cache").arg(apart.dir.path().join("scheduler-plugins"));
            }
            apart.run(role, &mut command)?;
        }
        let node = apart.node.clone();
        let mut agent = Command::new(binary());
        let kubeconfig = apart.issue("agent", &["node", &node, "--address", "127.0.0.1"])?;
        agent.arg("agent").arg("--kubeconfig").arg(kubeconfig).arg("--data-dir").arg(apart.dir.path().join("agent"));
        agent.args(["--runtime", runtime, "--node-name", &node, "--node-ip", "127.0.0.1"]);
        // Not what the controllers give: the network that the agent makes at first is made again.
        agent.args(["--pod-cidr-pool", &apart.other.pods()]);
        apart.run("agent", &mut agent)?;
        let mut lb = Command::new(binary());
        lb.arg("lb").arg("--kubeconfig").arg(apart.issue("lb", &["lb"])?);
        lb.args(["--node-name", &node, "--service-cidr", &apart.ranges.services()]);
        lb.arg("--plugin-cache").arg(apart.dir.path().join("lb-plugins"));
        apart.run("lb", &mut lb)?;
        Ok(apart)
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("api")
    }

    fn run(&mut self, name: &str, command: &mut Command) -> Result<()> {
        self.processes.start(self.dir.path(), name, command)
    }

    /// A file with somebody's kubeconfig.
    pub fn issue(&self, name: &str, subject: &[&str]) -> Result<PathBuf> {
        let path = self.dir.path().join(format!("{name}.kubeconfig"));
        std::fs::write(&path, issued(&self.data(), &self.api.base, subject)?)?;
        Ok(path)
    }

    /// The administrator's.
    pub fn kubeconfig(&self) -> PathBuf {
        self.data().join("kubeconfig")
    }

    /// What came of a test; the ends of all logs, if it failed.
    pub fn told(&self, outcome: Result<()>) -> Result<()> {
        if outcome.is_err() {
            for name in ["apiserver", "controllers", "scheduler", "agent", "lb"] {
                let log = std::fs::read_to_string(self.dir.path().join(format!("{name}.log"))).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(15).collect();
                println!("--- {name}\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
        }
        outcome
    }
}

async fn roles_apart_on_etcd(_: Cx) -> Result<()> {
    let (dir, mut processes) = (tempfile::Builder::new().prefix("scaleup-it-").tempdir()?, Processes::default());
    let etcd = start_etcd(&mut processes, dir.path())?;
    let apart = Apart::start(dir, processes, &format!("etcd://127.0.0.1:{etcd}"), "docker").await?;
    apart.told(work_together(&apart).await)
}

async fn work_together(apart: &Apart) -> Result<()> {
    let node = &apart.node;
    let kubectl = Kubectl::new(Kubectl::NEW, &apart.kubeconfig());
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
    let (pods, _) = apart
        .ranges
        .pods()
        .rsplit_once(".0.0/")
        .map(|(net, rest)| (format!("{net}."), rest.to_owned()))
        .context("a range")?;
    ensure!(subnet.starts_with(&pods), "the controllers say which subnet a node has: {subnet}");
    demo_image("v1")?;
    eventually("the service account", || async { Ok(kubectl.ok("get serviceaccount default").await.ok()) }).await?;
    let answers = crate::path::deploy(&kubectl, "web").await?;
    ensure!(crate::path::ask(answers).await?.contains("version v1"), "through the load balancer");
    ensure!(kubectl.ok("-n web logs deployment/web").await?.contains("serving"), "logs across processes");
    ensure!(kubectl.ok("-n web exec deployment/web -- hostname").await?.contains("web-"), "exec across processes");
    kubectl.ok("delete namespace web --timeout=60s").await?;
    Ok(())
}
