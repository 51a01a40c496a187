//! Requests over TLS, with HTTP/1.1 and HTTP/2 and with 1, 100 and 5,000 routes of one host: rate and CPU per request, and the memory of
//! the routes. h2load is the client; all three terminate TLS with the same certificate and know as many routes.

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use scaleup_tests::cluster::{Cluster, Options, free_port};
use scaleup_tests::eventually;
use serde_json::json;
use tokio::process::Command;

use super::{own_address, publish};
use crate::figure;
use crate::peers::Peer;

/// The host that is asked for.
const HOST: &str = "bench.example";
/// HTTPRoutes that are created at a time.
const WRITERS: usize = 16;
const GATEWAY: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/default";

/// A protocol of the client: its name here and h2load's arguments. The connections' streams are as many in both.
const PROTOCOLS: [(&str, &[&str]); 2] = [("h1_tls", &["--h1", "-c64"]), ("h2_tls", &["-c8", "-m8"])];

struct Measured {
    rate: f64,
    cpu_us: f64,
}

/// The whole comparison.
pub async fn all(quick: bool) -> Result<()> {
    let (seconds, rounds, counts) = if quick { (1, 1, [1, 10, 100]) } else { (4, 3, [1, 100, 5_000]) };
    let cluster = Cluster::start(Options::default()).await?;
    let pid = cluster.pid().context("pid")?;
    let certificate = rcgen::generate_simple_self_signed([HOST.to_owned()])?;
    let (chain, key) = (certificate.cert.pem(), certificate.signing_key.serialize_pem());
    let body = vec![b'x'; 1024];
    let backends = [Peer::nginx_backend(&body).await?, Peer::nginx_backend(&body).await?];
    let address = own_address()?;
    let upstreams: Vec<String> = backends.iter().map(|b| format!("{address}:{}", b.port)).collect();
    let service = publish(&cluster, "edge", "http", &backends.iter().map(|b| b.port).collect::<Vec<_>>()).await?;
    let port = gateway(&cluster, &chain, &key).await?;
    let (mut known, at_rest) = (0, figure::rss_mib(pid)?);
    for routes in counts {
        route(&cluster, known..routes, service).await?;
        known = routes;
        let path = format!("/r{}/", routes / 2);
        for route in [0, routes / 2, routes - 1] {
            eventually("the route is served", || async {
                let answer = h2load(port, &format!("/r{route}/"), &["-n1", "-c1"]).await;
                Ok(answer.is_ok().then_some(()))
            })
            .await?;
        }
        let nginx = Peer::nginx_edge(&upstreams, routes, &chain, &key).await?;
        let haproxy = Peer::haproxy_edge(&upstreams, routes, &chain, &key).await?;
        for (protocol, arguments) in PROTOCOLS {
            let mut best: [Option<Measured>; 3] = [None, None, None];
            for _ in 0..rounds {
                let targets = [(port, vec![pid]), (nginx.port, nginx.pids()?), (haproxy.port, haproxy.pids()?)];
                for (slot, (port, pids)) in best.iter_mut().zip(targets) {
                    let measured = measure(port, &path, arguments, seconds, &pids).await?;
                    if slot.as_ref().is_none_or(|best| measured.cpu_us < best.cpu_us) {
                        *slot = Some(measured);
                    }
                }
            }
            let [Some(ours), Some(nginx), Some(haproxy)] = best else { bail!("nothing measured") };
            let name = format!("proxy_{protocol}_{routes}_routes");
            for (peer, theirs) in [("nginx", &nginx), ("haproxy", &haproxy)] {
                figure::against(&format!("{name}_rate"), ours.rate, "1/s", peer, theirs.rate);
                figure::against(&format!("{name}_cpu"), ours.cpu_us, "us/request", peer, theirs.cpu_us);
            }
        }
    }
    // The API server's, its caches' and the controllers' share included: they are one process.
    figure::print(&format!("proxy_{known}_routes_memory"), figure::rss_mib(pid)? - at_rest, "MiB more");
    Ok(())
}

/// A Gateway that terminates TLS; its port.
async fn gateway(cluster: &Cluster, chain: &str, key: &str) -> Result<u16> {
    let (api, port, base64) = (cluster.api()?, free_port()?, base64::engine::general_purpose::STANDARD);
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "edge"}, "type": "kubernetes.io/tls",
        "data": {"tls.crt": base64.encode(chain), "tls.key": base64.encode(key)}});
    api.post("/api/v1/namespaces/default/secrets", &secret).await?.ok()?;
    let listener =
        json!({"name": "https", "port": port, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": "edge"}]}});
    let gateway = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "edge"},
        "spec": {"gatewayClassName": "scaleup", "listeners": [listener]}});
    api.post(&format!("{GATEWAY}/gateways"), &gateway).await?.ok()?;
    Ok(port)
}

/// One HTTPRoute for each number, by path.
async fn route(cluster: &Cluster, numbers: std::ops::Range<usize>, service: u16) -> Result<()> {
    let mut writers = tokio::task::JoinSet::new();
    for first in 0..WRITERS {
        let (api, numbers) = (cluster.api()?, numbers.clone().skip(first).step_by(WRITERS));
        writers.spawn(async move {
            for number in numbers {
                let rule = json!({"matches": [{"path": {"type": "PathPrefix", "value": format!("/r{number}")}}],
                    "backendRefs": [{"name": "edge", "port": service}]});
                let route = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
                    "metadata": {"name": format!("r{number}")},
                    "spec": {"parentRefs": [{"name": "edge"}], "hostnames": [HOST], "rules": [rule]}});
                api.post(&format!("{GATEWAY}/httproutes"), &route).await?.ok()?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = writers.join_next().await {
        done??;
    }
    Ok(())
}

async fn measure(port: u16, path: &str, arguments: &[&str], seconds: u64, pids: &[u32]) -> Result<Measured> {
    let duration = format!("-D{seconds}");
    let before = figure::cpu_of(pids)?;
    let (requests, rate) = h2load(port, path, &[arguments, &[duration.as_str()]].concat()).await?;
    Ok(Measured { rate, cpu_us: (figure::cpu_of(pids)? - before) * 1e6 / requests })
}

/// How many requests were answered, all with success, and how many per second.
async fn h2load(port: u16, path: &str, arguments: &[&str]) -> Result<(f64, f64)> {
    let connect = format!("--connect-to=127.0.0.1:{port}");
    let url = format!("https://{HOST}{path}");
    let output = Command::new("h2load").arg("-t1").args(arguments).args([&connect, &url]).output().await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = |line: &str, before: &str| -> Option<f64> {
        let line = text.lines().find(|l| l.starts_with(line))?;
        line.split(before).next()?.rsplit([' ', ',']).find(|word| !word.is_empty())?.parse().ok()
    };
    let done = number("requests:", " done").with_context(|| text.clone())?;
    let (good, rate) = (number("status codes:", " 2xx"), number("finished in", " req/s"));
    // When the time is up, answers may have begun that are not done.
    ensure!(done >= 1.0 && good.is_some_and(|good| good >= done), "port {port}: {text}");
    Ok((done, rate.with_context(|| text.clone())?))
}
