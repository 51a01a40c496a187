//! The start that an API server has in common alone and in `up`: checks, port, store, assembly, the admin's kubeconfig.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use scaleup_apiserver::auth::pki::Kubeconfig;
use scaleup_apiserver::server::{ApiServer, Server};
use tokio::net::TcpListener;

use crate::cli::ApiArgs;
use crate::issue::CLUSTER;
use crate::plugins::Plugins;
use crate::preflight::{self, DataDir};
use crate::roles::{self, OpenStore};

/// An API server that is about to serve, and what it holds.
pub struct Opened {
    /// Not serving yet.
    pub server: Arc<Server>,
    /// Port it listens on.
    pub port: u16,
    /// Where clients on this machine reach it.
    pub url: String,
    /// The admin's kubeconfig.
    pub kubeconfig: PathBuf,
    store: OpenStore,
    /// Keeps other processes out of the directory for as long as the store may write.
    _lock: DataDir,
}

impl Opened {
    /// Takes the data directory and the port; the listener is what to serve on.
    pub async fn open(api: &ApiArgs, dir: &Path, plugins: &Plugins) -> Result<(Self, TcpListener)> {
        preflight::check_clock(dir)?;
        let lock = DataDir::open(dir)?;
        let listener = preflight::bind(api.listen).await?;
        let bound = listener.local_addr()?;
        let store = roles::open_store(api, dir).await?;
        let server = ApiServer::build(roles::apiserver(api, dir, bound, plugins), store.store.clone())?;
        let (url, kubeconfig) = (roles::local_url(bound), dir.join("kubeconfig"));
        let admin =
            Kubeconfig { cluster: CLUSTER, server: &url, user: "kubernetes-admin", groups: &["system:masters"] };
        server.ca.ensure_kubeconfig(&kubeconfig, &admin)?;
        preflight::give_to_caller(dir, &kubeconfig);
        Ok((Self { server, port: bound.port(), url, kubeconfig, store, _lock: lock }, listener))
    }

    /// Stops what still runs, then finishes queued writes; the directory is free after that.
    pub async fn close(self) {
        self.server.stop();
        self.store.close().await;
    }
}
