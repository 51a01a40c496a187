//! `--replace`: a new process takes over from the one that runs, without a refused connection or a lost DNS query.
//!
//! ```text
//! successor  ── connects ──────────▶ predecessor
//!            ◀─ listening sockets ──             both may accept from now on
//!            ── R: release ────────▶             control plane drains, store closes, directory and API port are free;
//!            ◀─ D: done ────────────             the load balancer serves what it knows (one that runs alone has only
//!                                                its metrics to let go)
//! opens the store, serves the API, binds nothing new for ports it has taken
//!            ── S: serving ────────▶             stops accepting, finishes what it has begun, ends
//! ```
//!
//! The Unix socket in the data directory is for its owner only. A successor that dies on the way leaves the predecessor serving
//! traffic, without a control plane, until another one comes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use scaleup_lb::Lb;
use scaleup_lb::handover::{self, Handed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Name of the socket in the data directory.
pub const SOCKET: &str = "handover.sock";
const RELEASE: u8 = b'R';
const DONE: u8 = b'D';
const SERVING: u8 = b'S';
/// How long a predecessor may take to drain its control plane.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a successor may take until it serves.
const SERVING_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a connection may take to say what it wants.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// The running process's side: waits for a successor.
pub struct Offer {
    listener: UnixListener,
    lb: Lb,
}

/// A successor that has the sockets and asks for the rest.
pub struct Successor(UnixStream);

impl Offer {
    /// Opens the socket at `path`; what an earlier process left there is removed.
    pub fn open(path: &Path, lb: Lb) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).with_context(|| format!("{}: cannot be opened", path.display()))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, lb })
    }

    /// Waits until a successor has taken the sockets and asks for the rest. One that fails on the way is passed over.
    pub async fn asked(&self) -> Successor {
        loop {
            match self.next().await {
                Ok(successor) => return successor,
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "somebody came to take over and went away");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn next(&self) -> Result<Successor> {
        let (stream, _) = self.listener.accept().await?;
        let sockets = self.lb.listening()?;
        let stream = blocking(stream, move |stream| handover::send(stream, &sockets)).await?.0;
        let mut successor = Successor(stream);
        tokio::time::timeout(ASK_TIMEOUT, successor.expect(RELEASE)).await.context("no word")??;
        Ok(successor)
    }
}

impl Successor {
    /// Tells it that everything is free; whether it serves now.
    pub async fn released(mut self) -> bool {
        let serving = async {
            self.0.write_all(&[DONE]).await?;
            self.expect(SERVING).await
        };
        matches!(tokio::time::timeout(SERVING_TIMEOUT, serving).await, Ok(Ok(())))
    }

    async fn expect(&mut self, word: u8) -> Result<()> {
        let got = self.0.read_u8().await?;
        if got != word {
            bail!("an unexpected word: {got}");
        }
        Ok(())
    }
}

/// The new process's side.
pub struct Predecessor {
    stream: UnixStream,
    /// What it listens on.
    pub sockets: Handed,
}

impl Predecessor {
    /// Takes the sockets of the process behind `path` and waits until it has given up the rest. `None`: nothing runs there.
    pub async fn take(path: &PathBuf) -> Result<Option<Self>> {
        let stream = match UnixStream::connect(path).await {
            Ok(stream) => stream,
            Err(error)
                if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused) =>
            {
                tracing::info!("nothing runs here that could be replaced");
                return Ok(None);
            }
            Err(error) => return Err(error).with_context(|| format!("{}: cannot connect", path.display())),
        };
        let (mut stream, sockets) =
            blocking(stream, handover::receive).await.context("taking the sockets over failed")?;
        stream.write_all(&[RELEASE]).await?;
        tracing::info!(
            ports = sockets.listening.len(),
            dns = sockets.dns.len(),
            "took the listening sockets over; waiting for the old process to let go"
        );
        let done = tokio::time::timeout(RELEASE_TIMEOUT, stream.read_u8()).await;
        match done.context("the old process did not let go in time")? {
            Ok(DONE) => Ok(Some(Self { stream, sockets })),
            Ok(other) => bail!("the old process said something unexpected: {other}"),
            Err(error) => Err(error).context("the old process went away"),
        }
    }

    /// Tells it that we serve.
    pub async fn serving(mut self) {
        if self.stream.write_all(&[SERVING]).await.is_err() {
            tracing::warn!("the old process is gone already");
        }
    }
}

/// Starts the load balancer's role in `tasks`, on the sockets of a predecessor if there is one; returns when it serves.
pub async fn start<F>(
    lb: Lb,
    predecessor: Option<Predecessor>,
    tasks: &mut JoinSet<(&'static str, Result<()>)>,
    run: impl FnOnce(Lb) -> F,
) where
    F: Future<Output = Result<(), scaleup_lb::Error>> + Send + 'static,
{
    let (predecessor, sockets) = match predecessor {
        Some(mut predecessor) => {
            let sockets = std::mem::take(&mut predecessor.sockets);
            (Some(predecessor), sockets)
        }
        None => (None, Handed::default()),
    };
    lb.adopt(sockets);
    let role = run(lb.clone());
    tasks.spawn(async move { ("load balancer", role.await.map_err(Into::into)) });
    if let Some(predecessor) = predecessor {
        lb.settled().await;
        predecessor.serving().await;
    }
}

/// Waits until a successor serves: this one, or a later one if it fails. Ends early on `shutdown`.
pub async fn finish(mut successor: Successor, offer: &Offer, shutdown: &CancellationToken) {
    let handed_over = async {
        while !successor.released().await {
            tracing::error!(
                "the new process went away before it served; traffic goes on here, without a control plane, until another one comes: \
                 start it with --replace again"
            );
            successor = offer.asked().await;
        }
        tracing::info!("the new process serves; finishing what was begun");
        offer.lb.hand_over();
    };
    shutdown.run_until_cancelled(handed_over).await;
}

/// Runs `work`, which blocks, on the stream; both.
async fn blocking<T: Send + 'static>(
    stream: UnixStream,
    work: impl FnOnce(&std::os::unix::net::UnixStream) -> std::io::Result<T> + Send + 'static,
) -> Result<(UnixStream, T)> {
    let stream = stream.into_std()?;
    let done = tokio::task::spawn_blocking(move || {
        stream.set_nonblocking(false)?;
        // Bounds both directions: whoever is at the other end may be stuck.
        stream.set_read_timeout(Some(ASK_TIMEOUT))?;
        stream.set_write_timeout(Some(ASK_TIMEOUT))?;
        let result = work(&stream)?;
        stream.set_nonblocking(true)?;
        Ok::<_, std::io::Error>((stream, result))
    });
    let (stream, result) = done.await??;
    Ok((UnixStream::from_std(stream)?, result))
}
