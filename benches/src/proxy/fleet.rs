//! An API server and a load balancer in processes of their own, so that what the load balancer uses is told apart from the rest.

use std::process::Command;

use anyhow::{Context, Result};
use scaleup_tests::cluster::{binary, free_port, issued};
use scaleup_tests::eventually;
use scaleup_tests::http::Api;

use crate::figure;
use crate::peers::{Peer, peer_dir};

/// Both of them.
pub struct Fleet {
    /// The API as admin.
    pub api: Api,
    lb: Peer,
    // Ends after the load balancer.
    _apiserver: Peer,
}

impl Fleet {
    /// Starts both; ClusterIPs are left alone.
    pub async fn start() -> Result<Self> {
        let (dir, port) = (peer_dir()?, free_port()?);
        let data = dir.path().join("data");
        let mut command = Command::new(binary());
        command.arg("apiserver").arg("--data-dir").arg(&data);
        command.args(["--listen", &format!("0.0.0.0:{port}"), "--node-port-range", "29100-29199"]);
        let apiserver = Peer::start(&mut command, port, dir).await?;
        let api = eventually("the API is ready", || async {
            let api = Api::from_kubeconfig(&data.join("kubeconfig"))?;
            Ok(api.get("/readyz").await?.status.is_success().then_some(api))
        })
        .await?;
        let (dir, port) = (peer_dir()?, free_port()?);
        let kubeconfig = dir.path().join("kubeconfig");
        std::fs::write(&kubeconfig, issued(&data, &api.base, &["lb"])?)?;
        let mut command = Command::new(binary());
        command.arg("lb").arg("--kubeconfig").arg(kubeconfig).arg("--no-nftables");
        command.args(["--node-name", "bench", "--metrics-listen", &format!("127.0.0.1:{port}")]);
        let lb = Peer::start(&mut command, port, dir).await?;
        Ok(Self { api, lb, _apiserver: apiserver })
    }

    /// Process ids of the load balancer.
    pub fn pids(&self) -> Result<Vec<u32>> {
        self.lb.pids()
    }

    /// Resident memory of the load balancer in MiB.
    pub fn memory(&self) -> Result<f64> {
        figure::rss_mib(*self.pids()?.first().context("no process")?)
    }

    /// Share of requests that found an open connection to their endpoint, in percent.
    pub async fn reuse(&self) -> Result<f64> {
        let text = reqwest::get(format!("http://127.0.0.1:{}/metrics", self.lb.port)).await?.text().await?;
        Ok(super::reuse(&text))
    }
}
