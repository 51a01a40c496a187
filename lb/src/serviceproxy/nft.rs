//! The one door to the `nft` program.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Longest run of `nft`.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of its error text that are kept.
const MAX_ERROR_TEXT: usize = 500;

/// Programming the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// `nft` is not installed.
    #[error("the program `nft` could not be started: install the package nftables")]
    Start(#[source] std::io::Error),
    /// Talking to it failed.
    #[error("passing the rules to `nft` failed")]
    Io(#[source] std::io::Error),
    /// It did not finish.
    #[error("`nft` did not finish within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// It may not change the ruleset.
    #[error("`nft` may not change the ruleset: run as root or with CAP_NET_ADMIN")]
    Denied,
    /// It refused the rules.
    #[error("`nft` refused the rules: {0}")]
    Refused(String),
}

/// Applies `script` as one transaction: all of it or nothing.
pub(super) async fn apply(script: &str) -> Result<(), NftError> {
    tokio::time::timeout(TIMEOUT, run(script)).await.map_err(|_| NftError::Timeout)?
}

async fn run(script: &str) -> Result<(), NftError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(NftError::Start)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that fails early closes the pipe; its error text says more than the pipe's.
        let _ = stdin.write_all(script.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(NftError::Io)?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    if text.contains("Operation not permitted") {
        return Err(NftError::Denied);
    }
    Err(NftError::Refused(text.chars().take(MAX_ERROR_TEXT).collect::<String>().trim().replace('\n', " ")))
}
