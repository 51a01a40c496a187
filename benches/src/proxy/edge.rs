//! Requests with 1, 100 and 5,000 routes of one host: HTTP/1.1 in clear text with answers of 1 KiB and 64 KiB, HTTP/1.1 and HTTP/2 over
//! TLS. Rate and CPU per request as fast as the client can, p99 at half of nginx's rate, and the load balancer's memory. h2load is the
//! client; all three have the same certificate and know as many routes.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use scaleup_tests::cluster::free_port;
use scaleup_tests::eventually;
use scaleup_tests::http::Api;
use serde_json::json;
use tokio::process::Command;

use super::fleet::Fleet;
use super::{GATEWAYS, own_address, publish, write_all};
use crate::figure;
use crate::peers::Peer;

/// The host that is asked for.
const HOST: &str = "bench.example";
const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/default/httproutes";
const SMALL_BYTES: usize = 1024;
const BIG_BYTES: usize = 65_536;

/// How the client asks. Requests that are under way are as many in all of them.
struct Scenario {
    name: &'static str,
    scheme: &'static str,
    /// What follows a route's prefix.
    tail: &'static str,
    /// h2load's arguments.
    arguments: &'static [&'static str],
    /// Its connections, as in the arguments.
    connections: f64,
}

const SCENARIOS: [Scenario; 4] = [
    Scenario { name: "h1", scheme: "http", tail: "", arguments: &["--h1", "-c64"], connections: 64.0 },
    Scenario { name: "h1_64k", scheme: "http", tail: "big", arguments: &["--h1", "-c64"], connections: 64.0 },
    Scenario { name: "h1_tls", scheme: "https", tail: "", arguments: &["--h1", "-c64"], connections: 64.0 },
    Scenario { name: "h2_tls", scheme: "https", tail: "", arguments: &["-c8", "-m8"], connections: 8.0 },
];

/// A proxy under test: its ports in clear text and with TLS, and its processes.
struct Target {
    clear: u16,
    tls: u16,
    pids: Vec<u32>,
}

/// The best of some turns.
#[derive(Clone, Copy)]
struct Measured {
    rate: f64,
    cpu_us: f64,
    /// At a rate that leaves half of nginx idle.
    p99_ms: f64,
}

/// The whole comparison.
pub async fn all(quick: bool) -> Result<()> {
    let (seconds, rounds, counts) = if quick { (1, 1, [1, 10, 100]) } else { (3, 3, [1, 100, 5_000]) };
    let fleet = Fleet::start().await?;
    let certificate = rcgen::generate_simple_self_signed([HOST.to_owned()])?;
    let pair = (certificate.cert.pem(), certificate.signing_key.serialize_pem());
    let pair = (pair.0.as_str(), pair.1.as_str());
    let (small, big) = (vec![b'x'; SMALL_BYTES], vec![b'x'; BIG_BYTES]);
    let backends = [Peer::nginx_backends(&small, &big).await?, Peer::nginx_backends(&small, &big).await?];
    let address = own_address()?;
    let upstreams: Vec<String> = backends.iter().map(|b| format!("{address}:{}", b.port)).collect();
    let service = publish(&fleet.api, "edge", "http", &backends.iter().map(|b| b.port).collect::<Vec<_>>()).await?;
    let (clear, tls) = gateway(&fleet.api, pair).await?;
    let mut known = 0;
    for routes in counts {
        route(&fleet.api, known..routes, service).await?;
        known = routes;
        for number in [0, routes / 2, routes - 1] {
            eventually("the route is served", || async {
                let answer = h2load(&format!("https://{HOST}/r{number}/"), tls, &["-n1", "-c1"], None).await;
                Ok(answer.is_ok().then_some(()))
            })
            .await?;
        }
        let (nginx_clear, haproxy_clear) = (free_port()?, free_port()?);
        let nginx = Peer::nginx_edge(&upstreams, routes, nginx_clear, pair).await?;
        let haproxy = Peer::haproxy_edge(&upstreams, routes, haproxy_clear, pair).await?;
        let targets = [
            Target { clear, tls, pids: fleet.pids()? },
            Target { clear: nginx_clear, tls: nginx.port, pids: nginx.pids()? },
            Target { clear: haproxy_clear, tls: haproxy.port, pids: haproxy.pids()? },
        ];
        for scenario in &SCENARIOS {
            let [ours, nginx, haproxy] = compare(scenario, routes, &targets, seconds, rounds).await?;
            let name = format!("proxy_{}_{routes}_routes", scenario.name);
            for (peer, theirs) in [("nginx", nginx), ("haproxy", haproxy)] {
                figure::against(&format!("{name}_rate"), ours.rate, "1/s", peer, theirs.rate);
                figure::against(&format!("{name}_cpu"), ours.cpu_us, "us/request", peer, theirs.cpu_us);
                figure::against(&format!("{name}_half_load_p99"), ours.p99_ms, "ms", peer, theirs.p99_ms);
            }
        }
        figure::print(&format!("proxy_{routes}_routes_memory"), fleet.memory()?, "MiB, the load balancer's process");
    }
    figure::print("proxy_connection_reuse", fleet.reuse().await?, "%");
    Ok(())
}

/// The three in turns, so that a slow spell of the machine hits all: first as fast as they can, then all at the same rate.
async fn compare(
    scenario: &Scenario,
    routes: usize,
    targets: &[Target; 3],
    seconds: u64,
    rounds: usize,
) -> Result<[Measured; 3]> {
    let url = format!("{}://{HOST}/r{}/{}", scenario.scheme, routes / 2, scenario.tail);
    let mut best = [Measured { rate: 0.0, cpu_us: f64::MAX, p99_ms: f64::MAX }; 3];
    for full in [true, false] {
        let rps = format!("--rps={}", best[1].rate / 2.0 / scenario.connections);
        let duration = format!("-D{seconds}");
        let mut arguments = [scenario.arguments, &[duration.as_str()]].concat();
        if !full {
            arguments.push(&rps);
        }
        for _ in 0..rounds {
            for (best, target) in best.iter_mut().zip(targets) {
                let port = if scenario.scheme == "https" { target.tls } else { target.clear };
                let log = tempfile::NamedTempFile::new()?;
                let before = figure::cpu_of(&target.pids)?;
                let (requests, rate) = h2load(&url, port, &arguments, (!full).then_some(log.path())).await?;
                let cpu_us = (figure::cpu_of(&target.pids)? - before) * 1e6 / requests;
                if !full {
                    best.p99_ms = best.p99_ms.min(p99_ms(log.path())?);
                } else if cpu_us < best.cpu_us {
                    (best.rate, best.cpu_us) = (rate, cpu_us);
                }
            }
        }
    }
    Ok(best)
}

/// p99 of a log of h2load's: start, status, microseconds.
fn p99_ms(log: &std::path::Path) -> Result<f64> {
    let text = std::fs::read_to_string(log)?;
    let took = |line: &str| line.split('\t').nth(2)?.parse().ok().map(Duration::from_micros);
    let mut took: Vec<Duration> = text.lines().filter_map(took).collect();
    took.sort_unstable();
    if took.is_empty() {
        bail!("h2load logged nothing");
    }
    Ok(figure::quantile_ms(&took, 0.99))
}

/// A Gateway that serves the host in clear text and with TLS; its ports.
async fn gateway(api: &Api, (chain, key): (&str, &str)) -> Result<(u16, u16)> {
    let (clear, tls, base64) = (free_port()?, free_port()?, base64::engine::general_purpose::STANDARD);
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "edge"}, "type": "kubernetes.io/tls",
        "data": {"tls.crt": base64.encode(chain), "tls.key": base64.encode(key)}});
    api.post("/api/v1/namespaces/default/secrets", &secret).await?.ok()?;
    let listeners = json!([{"name": "http", "port": clear, "protocol": "HTTP"},
        {"name": "https", "port": tls, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": "edge"}]}}]);
    let gateway = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "edge"},
        "spec": {"gatewayClassName": "scaleup", "listeners": listeners}});
    api.post(GATEWAYS, &gateway).await?.ok()?;
    Ok((clear, tls))
}

/// One HTTPRoute for each number, by path.
async fn route(api: &Api, numbers: std::ops::Range<usize>, service: u16) -> Result<()> {
    write_all(api, ROUTES, numbers, |number| {
        let rule = json!({"matches": [{"path": {"type": "PathPrefix", "value": format!("/r{number}")}}],
            "backendRefs": [{"name": "edge", "port": service}]});
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": format!("r{number}")},
            "spec": {"parentRefs": [{"name": "edge"}], "hostnames": [HOST], "rules": [rule]}})
    })
    .await
}

/// How many requests were answered, all with success, and how many per second.
async fn h2load(url: &str, port: u16, arguments: &[&str], log: Option<&std::path::Path>) -> Result<(f64, f64)> {
    let mut command = Command::new("h2load");
    command.arg("-t1").args(arguments).arg(format!("--connect-to=127.0.0.1:{port}"));
    if let Some(log) = log {
        command.arg("--log-file").arg(log);
    }
    let output = command.arg(url).output().await?;
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
