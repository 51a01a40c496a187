//! One running `scaleup up`, with addresses and ranges that collide with no other.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::claims::Claim;
pub use crate::claims::free_port;
use crate::http::Api;
use crate::kubectl::Kubectl;

/// How long a start may take before the test gives up.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// Instances of this process so far, for their names.
static INSTANCES: AtomicU16 = AtomicU16::new(0);

/// Ranges that no other instance on this machine has: 10.96/16 and 10.244/16 are left to a person's own.
#[derive(Debug)]
pub struct Ranges(Claim);

impl Ranges {
    /// Instances at one time, of this process and of others (a benchmark beside a test).
    const COUNT: u32 = 60;
    /// Node ports of an instance.
    const NODE_PORTS: u16 = 45;

    /// Ranges that are ours while this lives.
    pub fn claim() -> Result<Self> {
        Ok(Self(Claim::any("ranges", 0..Self::COUNT, |_| true)?))
    }

    /// For ClusterIPs.
    pub fn services(&self) -> String {
        format!("10.{}.0.0/16", 100 + self.0.number)
    }

    /// For pods.
    pub fn pods(&self) -> String {
        format!("10.{}.0.0/16", 160 + self.0.number)
    }

    /// First and last node port.
    pub fn node_ports(&self) -> (u16, u16) {
        let first = 30_000 + self.0.number as u16 * Self::NODE_PORTS;
        (first, first + Self::NODE_PORTS - 1)
    }

    /// Node ports as a flag says them.
    pub fn node_port_range(&self) -> String {
        let (first, last) = self.node_ports();
        format!("{first}-{last}")
    }
}

/// The binary under test.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("SCALEUP_BIN") {
        return path.into();
    }
    // Beside the benchmarks, or above `deps/`, where tests are.
    let exe = std::env::current_exe().unwrap_or_default();
    let beside = exe.ancestors().skip(1).take(2).map(|dir| dir.join("scaleup"));
    beside.clone().find(|path| path.is_file()).or_else(|| beside.last()).unwrap_or_default()
}

/// How to start an instance.
#[derive(Clone, Debug)]
pub struct Options {
    /// `docker` or `fake`.
    pub runtime: &'static str,
    /// `embedded`, `memory` or `etcd://…`.
    pub store: String,
    /// Further flags.
    pub extra: Vec<String>,
    /// Further environment variables.
    pub env: Vec<(&'static str, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self { runtime: "fake", store: "embedded".into(), extra: Vec::new(), env: Vec::new() }
    }
}

/// A running instance; it is stopped, and what it made in Docker is removed, on drop.
pub struct Cluster {
    /// Data directory.
    pub dir: tempfile::TempDir,
    /// Port of the API.
    pub port: u16,
    /// Its ranges.
    pub ranges: Ranges,
    /// Name of its node.
    pub node: String,
    options: Options,
    child: Option<Child>,
    /// For HTTP and HTTPS of Ingresses, unless the options say others.
    edge: [u16; 2],
}

impl Cluster {
    /// Starts an instance and waits until it is ready.
    pub async fn start(options: Options) -> Result<Self> {
        let number = INSTANCES.fetch_add(1, Ordering::Relaxed);
        let mut cluster = Self {
            dir: tempfile::Builder::new().prefix("scaleup-it-").tempdir()?,
            port: free_port()?,
            ranges: Ranges::claim()?,
            node: format!("it-{}-{number}", std::process::id()),
            options,
            child: None,
            edge: [free_port()?, free_port()?],
        };
        cluster.launch().await?;
        Ok(cluster)
    }

    /// The full command line of the instance.
    pub fn command(&self) -> Command {
        let mut command = Command::new(binary());
        command
            .arg("up")
            .arg("--data-dir")
            .arg(self.dir.path())
            .args(["--listen", &format!("0.0.0.0:{}", self.port)])
            .args(["--store", &self.options.store])
            .args(["--runtime", self.options.runtime])
            .args(["--node-name", &self.node])
            .args(["--service-cidr", &self.ranges.services()])
            .args(["--pod-cidr-pool", &self.ranges.pods()])
            .args(["--node-port-range", &self.ranges.node_port_range()])
            .args(&self.options.extra)
            .envs(self.options.env.iter().map(|(name, value)| (name, value)));
        for (flag, port) in ["--lb-http-port", "--lb-https-port"].iter().zip(self.edge) {
            if !self.options.extra.iter().any(|given| given == flag) {
                command.args([flag, &*port.to_string()]);
            }
        }
        command
    }

    /// Starts the process and waits for `/readyz`.
    pub async fn launch(&mut self) -> Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(self.log_path())?;
        let child =
            self.command().stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().with_context(|| {
                format!(
                    "cannot start {}; build it first: cargo build -p scaleup, or run cargo test --workspace",
                    binary().display()
                )
            })?;
        self.child = Some(child);
        self.wait_ready().await
    }

    /// Starts a second process with `--replace` and waits until it is ready and the first one has ended well.
    pub async fn replace(&mut self) -> Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(self.log_path())?;
        let mut command = self.command();
        let next = command.arg("--replace").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let old = self.child.replace(next);
        let status = wait_end_of(old.context("not running")?, &self.log_path()).await?;
        if !status.success() {
            bail!("the replaced process ended with {status}:\n{}", self.log());
        }
        self.wait_ready().await
    }

    /// Waits for `/readyz`; a process that ended is an error with its log.
    pub async fn wait_ready(&mut self) -> Result<()> {
        let client =
            reqwest::Client::builder().tls_danger_accept_invalid_certs(true).timeout(Duration::from_secs(5)).build()?;
        let url = format!("https://127.0.0.1:{}/readyz", self.port);
        let start = Instant::now();
        while start.elapsed() < START_PATIENCE {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                bail!("scaleup ended with {status}:\n{}", self.log());
            }
            if let Ok(answer) = client.get(&url).send().await
                && answer.status().is_success()
                && self.kubeconfig().is_file()
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("scaleup was not ready within {START_PATIENCE:?}:\n{}", self.log())
    }

    /// Sends a signal; the process is reaped by [`Cluster::wait_end`].
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("not running")?;
        let pid = Pid::from_raw(i32::try_from(child.id())?).context("pid")?;
        kill_process(pid, signal)?;
        Ok(())
    }

    /// Waits for the process to end.
    pub async fn wait_end(&mut self) -> Result<std::process::ExitStatus> {
        wait_end_of(self.child.take().context("not running")?, &self.log_path()).await
    }

    /// `kill -9`.
    pub async fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait_end().await.map(|_| ())
    }

    /// SIGTERM and a clean end.
    pub async fn stop(&mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.wait_end().await?;
        if !status.success() {
            bail!("scaleup ended with {status} on SIGTERM:\n{}", self.log());
        }
        Ok(())
    }

    /// Process id.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }
    /// Where its admin kubeconfig is.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }
    /// Where its log is.
    pub fn log_path(&self) -> PathBuf {
        self.dir.path().join("it.log")
    }
    /// Its log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }
    /// The newer kubectl with its admin kubeconfig.
    pub fn kubectl(&self) -> Kubectl {
        Kubectl::new(Kubectl::NEW, &self.kubeconfig())
    }
    /// Debian's kubectl 1.20 with its admin kubeconfig.
    pub fn old_kubectl(&self) -> Kubectl {
        Kubectl::new(Kubectl::OLD, &self.kubeconfig())
    }
    /// Raw HTTPS as admin.
    pub fn api(&self) -> Result<Api> {
        Api::from_kubeconfig(&self.kubeconfig())
    }
    /// Raw HTTPS without credentials.
    pub fn anonymous(&self) -> Result<Api> {
        self.api()?.without_credentials()
    }
}

async fn wait_end_of(mut child: Child, log: &Path) -> Result<std::process::ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if start.elapsed() > START_PATIENCE {
            child.kill()?;
            child.wait()?;
            bail!("scaleup did not stop within {START_PATIENCE:?}:\n{}", std::fs::read_to_string(log)?);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::TERM);
            }
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(10) && matches!(child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        match self.options.runtime {
            "docker" => crate::docker::remove_node(&self.node),
            _ => crate::docker::remove_table(&self.node),
        }
        crate::docker::remove_mounts(self.dir.path());
    }
}

/// The kubeconfig that `scaleup kubeconfig` prints for somebody.
pub fn issued(dir: &Path, server: &str, subject: &[&str]) -> Result<String> {
    let output = Command::new(binary())
        .arg("kubeconfig")
        .arg("--data-dir")
        .arg(dir)
        .args(["--server", server])
        .args(subject)
        .output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// The project's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}
