//! An etcd of one's own, for tests and benchmarks: started on free ports in a temporary directory, gone when dropped.
//!
//! It needs the `etcd` program (Debian: `etcd-server`) on the path and says so if it is not there. Never used in
//! production.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

/// How long etcd may take to listen.
const START_PATIENCE: Duration = Duration::from_secs(30);
const START_POLL: Duration = Duration::from_millis(20);
/// Somebody else may take a free port before etcd does.
const START_ATTEMPTS: u32 = 3;

/// Why there is no etcd.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The program is missing.
    #[error("cannot start etcd: install it (Debian: apt-get install etcd-server)")]
    Missing(#[source] io::Error),
    /// Ports, directories.
    #[error("cannot prepare an etcd")]
    Io(#[from] io::Error),
    /// It did not come up.
    #[error("etcd does not listen on {0}")]
    Silent(String),
}

/// A running etcd.
#[derive(Debug)]
pub struct LocalEtcd {
    child: Child,
    directory: PathBuf,
    client_port: u16,
    peer_port: u16,
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn spawn(directory: &std::path::Path, client_port: u16, peer_port: u16) -> Result<Child, LocalError> {
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    Command::new("etcd")
        .arg("--data-dir")
        .arg(directory)
        .args(["--name", "test", "--log-level", "error", "--logger", "zap"])
        .args(["--listen-client-urls", &url(client_port), "--advertise-client-urls", &url(client_port)])
        .args(["--listen-peer-urls", &url(peer_port), "--initial-advertise-peer-urls", &url(peer_port)])
        .args(["--initial-cluster", &format!("test={}", url(peer_port))])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => LocalError::Missing(error),
            _ => LocalError::Io(error),
        })
}

impl LocalEtcd {
    /// Starts one with its data in `directory`, which is created, and removed again on drop.
    ///
    /// # Errors
    /// [`LocalError`] says what is missing.
    pub async fn start(directory: impl Into<PathBuf>) -> Result<Self, LocalError> {
        let directory = directory.into();
        std::fs::create_dir_all(&directory)?;
        let mut last = None;
        for _ in 0..START_ATTEMPTS {
            let (client_port, peer_port) = (free_port()?, free_port()?);
            let child = spawn(&directory, client_port, peer_port)?;
            let mut etcd = Self { child, directory: directory.clone(), client_port, peer_port };
            match etcd.listening().await {
                Ok(()) => return Ok(etcd),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| LocalError::Silent("any port".to_owned())))
    }

    /// For `EtcdStore::connect`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    /// Kills it; its data and ports stay for [`LocalEtcd::restart`].
    ///
    /// # Errors
    /// From the system.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// Starts it again where it was.
    ///
    /// # Errors
    /// As [`LocalEtcd::start`].
    pub async fn restart(&mut self) -> Result<(), LocalError> {
        self.child = spawn(&self.directory, self.client_port, self.peer_port)?;
        self.listening().await
    }

    async fn listening(&mut self) -> Result<(), LocalError> {
        let started = Instant::now();
        while started.elapsed() < START_PATIENCE && self.child.try_wait()?.is_none() {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, self.client_port)).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(START_POLL).await;
        }
        Err(LocalError::Silent(self.endpoint()))
    }
}

impl Drop for LocalEtcd {
    fn drop(&mut self) {
        // Best effort on both: there is nobody left to tell.
        let _ = self.kill();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
