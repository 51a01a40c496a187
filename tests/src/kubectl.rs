//! Real kubectl, of two generations.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

/// A command may take this long.
const TIMEOUT: Duration = Duration::from_secs(90);

/// A kubectl with a kubeconfig.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    home: PathBuf,
}

/// What a command printed and how it ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit code; -1 if a signal ended it.
    pub code: i32,
}

impl Kubectl {
    /// 1.32 or newer.
    pub const NEW: &'static str = "kubectl-new";
    /// Debian's 1.20.
    pub const OLD: &'static str = "kubectl-old";

    /// `program` as `scripts/setup test` puts it into `.tools`.
    pub fn new(program: &str, kubeconfig: &Path) -> Self {
        let program = crate::cluster::root().join(".tools").join(program);
        let home = kubeconfig.parent().unwrap_or(Path::new("/")).join("kubectl-home");
        Self { program, kubeconfig: kubeconfig.into(), home }
    }

    /// The command, ready for arguments.
    pub fn command(&self) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.program);
        // A home of its own: discovery is cached there per server address, and addresses are used again.
        command.env("KUBECONFIG", &self.kubeconfig).env("HOME", &self.home).env_remove("KUBERNETES_SERVICE_HOST");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Runs and answers whatever the outcome is.
    pub async fn run(&self, args: &[&str]) -> Result<Outcome> {
        self.run_with(args, "").await
    }

    /// Runs with standard input.
    pub async fn run_with(&self, args: &[&str], input: &str) -> Result<Outcome> {
        let mut command = self.command();
        command.args(args);
        if !input.is_empty() {
            command.stdin(Stdio::piped());
        }
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}; run scripts/setup test", self.program.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await?;
        }
        let output = tokio::time::timeout(TIMEOUT, child.wait_with_output())
            .await
            .with_context(|| format!("kubectl {args:?} took longer than {TIMEOUT:?}"))??;
        Ok(Outcome {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code().unwrap_or(-1),
        })
    }

    /// Runs and expects success; standard output. The line is split at white space.
    pub async fn ok(&self, line: &str) -> Result<String> {
        let args: Vec<&str> = line.split_whitespace().collect();
        self.ok_args(&args, "").await
    }

    /// Runs with exact arguments and standard input, and expects success.
    pub async fn ok_args(&self, args: &[&str], input: &str) -> Result<String> {
        let outcome = self.run_with(args, input).await?;
        if outcome.code != 0 {
            bail!("kubectl {args:?} ended with {}:\n{}{}", outcome.code, outcome.stdout, outcome.stderr);
        }
        Ok(outcome.stdout)
    }

    /// Runs and expects failure; standard error.
    pub async fn fails(&self, line: &str) -> Result<String> {
        let args: Vec<&str> = line.split_whitespace().collect();
        let outcome = self.run(&args).await?;
        if outcome.code == 0 {
            bail!("kubectl {line} succeeded:\n{}", outcome.stdout);
        }
        Ok(outcome.stderr)
    }

    /// `kubectl apply -f -`
    pub async fn apply(&self, manifest: &str) -> Result<String> {
        self.ok_args(&["apply", "-f", "-"], manifest).await
    }

    /// Makes a namespace, and waits for the account that its pods need.
    pub async fn namespace(&self, name: &str) -> Result<()> {
        self.ok(&format!("create namespace {name}")).await?;
        let account = format!("-n {name} get serviceaccount default");
        crate::eventually("the service account", || async { Ok(self.ok(&account).await.ok()) }).await.map(|_| ())
    }

    /// Applies an object in a namespace.
    pub async fn apply_in(&self, namespace: &str, object: &str) -> Result<()> {
        self.ok_args(&["-n", namespace, "apply", "-f", "-"], object).await.map(|_| ())
    }

    /// Waits until a Deployment is rolled out.
    pub async fn rolled_out(&self, namespace: &str, deployment: &str) -> Result<()> {
        self.ok(&format!("-n {namespace} rollout status deployment/{deployment} --timeout=60s")).await.map(|_| ())
    }

    /// `kubectl get … -o json`
    pub async fn json(&self, line: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.ok(&format!("{line} -o json")).await?)?)
    }
}
