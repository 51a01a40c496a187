//! A load balancer that runs alone is replaced by a new process under load: HTTP on new connections, DNS over UDP and TCP.
//!
//! The API server is a process of its own and nothing else runs: the Node is written by the test, so that cluster DNS listens on a
//! loopback address.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use scaleup_tests::claims::own_address;
use scaleup_tests::cluster::{Ranges, binary, free_port, issued};
use scaleup_tests::http::Api;
use scaleup_tests::{eventually, full_drill};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

use crate::roles::Processes;
use crate::traffic::{Endpoint, ask, fresh_connections, make_namespace, put_service};
use crate::{Cx, trials};

/// All tests of this module.
pub fn tests(cx: &Cx) -> Vec<Trial> {
    trials![cx, "handover", drill_a_lone_load_balancer_is_replaced]
}

/// A query or a whole exchange that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(2);
const NODE: &str = "handover";
/// What is asked for.
const NAME: &str = "own.lone.svc.cluster.local";

/// The question for an address of [`NAME`] (RFC 1035 §4.1).
fn query(id: u16) -> Vec<u8> {
    let mut out = id.to_be_bytes().to_vec();
    out.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in NAME.split('.') {
        out.push(u8::try_from(label.len()).unwrap_or(0));
        out.extend(label.as_bytes());
    }
    out.extend([0, 0, 1, 0, 1]);
    out
}

/// Whether it is an answer to `id` with one address.
fn check(id: u16, answer: &[u8]) -> Result<()> {
    let good = answer.len() > 12 && answer[..2] == id.to_be_bytes() && answer[3] & 15 == 0 && answer[6..8] == [0, 1];
    ensure!(good, "not the answer: {answer:?}");
    Ok(())
}

async fn ask_udp(server: SocketAddr, id: u16) -> Result<()> {
    // A socket per query, as resolvers do.
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    socket.send_to(&query(id), server).await?;
    let mut answer = [0; 512];
    let (length, _) = tokio::time::timeout(PATIENCE, socket.recv_from(&mut answer)).await.context("no answer")??;
    check(id, &answer[..length])
}

async fn ask_tcp(server: SocketAddr, id: u16) -> Result<()> {
    let exchange = async {
        let mut stream = TcpStream::connect(server).await?;
        let query = query(id);
        stream.write_u16(u16::try_from(query.len())?).await?;
        stream.write_all(&query).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        check(id, &answer)
    };
    tokio::time::timeout(PATIENCE, exchange).await.context("no answer")?
}

/// Queries one after the other, by turns; how many, and why some failed.
async fn queries(server: SocketAddr, stop: CancellationToken) -> (usize, Vec<String>) {
    let (mut sent, mut failed) = (0, Vec::new());
    for id in (0..u16::MAX).cycle() {
        if stop.is_cancelled() {
            break;
        }
        sent += 1;
        let outcome = if id % 4 == 0 { ask_tcp(server, id).await } else { ask_udp(server, id).await };
        if let Err(error) = outcome {
            failed.push(format!("query {sent}, {}: {error:#}", if id % 4 == 0 { "TCP" } else { "UDP" }));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    (sent, failed)
}

struct Lone<'a> {
    dir: &'a Path,
    services: &'a str,
    child: Option<Child>,
}

impl Lone<'_> {
    fn spawn(&self, replace: bool) -> Result<Child> {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.join("lb.log"))?;
        let mut command = Command::new(binary());
        command.arg("lb").arg("--kubeconfig").arg(self.dir.join("lb.kubeconfig"));
        command.args(["--node-name", NODE, "--service-cidr", self.services, "--no-nftables"]);
        command.args(["--lb-http-port", &free_port()?.to_string(), "--lb-https-port", &free_port()?.to_string()]);
        command.arg("--handover-socket").arg(self.dir.join("lb.sock"));
        if replace {
            command.arg("--replace");
        }
        Ok(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?)
    }

    /// Starts a successor and waits until the one before has ended well.
    async fn replace(&mut self) -> Result<()> {
        let next = self.spawn(true)?;
        let mut old = self.child.replace(next).context("not running")?;
        let ended = eventually("the replaced process ends", || {
            let status = old.try_wait();
            async move { Ok(status?) }
        })
        .await?;
        if !ended.success() {
            bail!("it ended with {ended}:\n{}", std::fs::read_to_string(self.dir.join("lb.log"))?);
        }
        Ok(())
    }
}

impl Drop for Lone<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

async fn drill_a_lone_load_balancer_is_replaced(_: Cx) -> Result<()> {
    let rounds = if full_drill() { 10 } else { 3 };
    let home = tempfile::Builder::new().prefix("scaleup-it-").tempdir()?;
    let (dir, data, port) = (home.path(), home.path().join("api"), free_port()?);
    let (mut processes, ranges) = (Processes::default(), Ranges::claim()?);
    let mut apiserver = Command::new(binary());
    apiserver.arg("apiserver").arg("--data-dir").arg(&data).args(["--listen", &format!("127.0.0.1:{port}")]);
    apiserver.args(["--store", "memory", "--service-cidr", &ranges.services()]);
    apiserver.args(["--node-port-range", &ranges.node_port_range()]);
    processes.start(dir, "apiserver", &mut apiserver)?;
    let api = eventually("the API is ready", || async {
        let api = Api::from_kubeconfig(&data.join("kubeconfig"))?;
        Ok(api.get("/readyz").await?.status.is_success().then_some(api))
    })
    .await?;
    std::fs::write(dir.join("lb.kubeconfig"), issued(&data, &api.base, &["lb"])?)?;

    let server = SocketAddr::from((own_address()?, 53));
    let node = json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": NODE, "annotations": {"scaleup.dev/pod-gateway": server.ip().to_string()}}});
    api.post("/api/v1/nodes", &node).await?.ok()?;
    let endpoint = Endpoint::start("e").await?;
    make_namespace(&api, "lone").await?;
    let own = free_port()?;
    let spec = json!({"type": "LoadBalancer", "ports": [{"name": "http", "port": own, "targetPort": 80}]});
    put_service(&api, "lone", "own", spec, &[endpoint.addr]).await?;
    let mut lone = Lone { dir, services: &ranges.services(), child: None };
    lone.child = Some(lone.spawn(false)?);
    eventually("it is served", || async { Ok(ask(own).await.ok()) }).await?;
    eventually("names are answered", || async { Ok(ask_udp(server, 1).await.ok()) }).await?;

    let stop = CancellationToken::new();
    let requests = tokio::spawn(fresh_connections(own, stop.clone()));
    let names = tokio::spawn(queries(server, stop.clone()));
    for _ in 0..rounds {
        lone.replace().await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    stop.cancel();
    let (sent, failed) = requests.await??;
    let (asked, lost) = names.await?;
    println!(
        "lone load balancer: {rounds} hand-overs, {sent} requests, {failed} failed; {asked} DNS queries, {} lost",
        lost.len()
    );
    ensure!(failed == 0 && sent > rounds, "{failed} of {sent} requests failed");
    ensure!(
        lost.is_empty() && asked > 10 * rounds,
        "{} of {asked} queries: {:?}",
        lost.len(),
        &lost[..lost.len().min(5)]
    );
    Ok(())
}
