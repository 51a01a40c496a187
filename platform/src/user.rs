//! What tools of a user have in common: the client of a kubeconfig, and standard output.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::cli::UserArgs;

/// A client of the user's.
pub async fn client(args: &UserArgs) -> Result<kube::Client> {
    let own = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".scaleup/kubeconfig"));
    let path = args.kubeconfig.clone().or(own.filter(|path| path.is_file()));
    let config = match path {
        None => kube::Config::from_kubeconfig(&KubeConfigOptions::default()).await.context(
            "there is no kubeconfig: give one with --kubeconfig or KUBECONFIG (`scaleup up` writes one into its data directory)",
        )?,
        Some(path) => {
            let file = Kubeconfig::read_from(&path)
                .with_context(|| format!("cannot read the kubeconfig {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?
        }
    };
    Ok(kube::Client::try_from(config)?)
}

/// To standard output; that nobody reads any more is no error.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        outcome => Ok(outcome?),
    }
}
