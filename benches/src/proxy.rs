//! The load balancer beside nginx and HAProxy: same backends, same client, same run.
//!
//! All three have one worker per core, keep connections to the backends open, set the same headers and write no access
//! log. [`l7`] is HTTP/1.1 with wrk, [`edge`] TLS, HTTP/2 and many routes with h2load, [`l4`] TCP, plain and by server name, [`change`] how
//! fast a change of endpoints takes effect, [`plugin`] what a routing plugin costs.

pub mod change;
pub mod edge;
mod fleet;
pub mod l4;
pub mod l7;
pub mod plugin;

use std::ops::Range;

use anyhow::Result;
use scaleup_tests::eventually;
use scaleup_tests::http::Api;
use serde_json::{Value, json};

/// This machine's own address: backends may not be on loopback, as endpoints must not.
fn own_address() -> Result<String> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // TEST-NET-3; connecting a datagram socket only looks the route up.
    socket.connect("203.0.113.1:9")?;
    Ok(socket.local_addr()?.ip().to_string())
}

/// Path of a Service's EndpointSlices.
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

fn slice(service: &str, number: usize, port_name: &str, address: &str, port: u16) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("{service}-{number}"), "labels": {"kubernetes.io/service-name": service}},
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        "ports": [{"name": port_name, "port": port, "protocol": "TCP"}]})
}

/// A Service without selector over the backends; its port once it accepts connections. Ports named `http` are proxied
/// as HTTP, others as TCP.
async fn publish(api: &Api, name: &str, port_name: &str, backends: &[u16]) -> Result<u16> {
    let address = own_address()?;
    let port = scaleup_tests::cluster::free_port()?;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"type": "LoadBalancer", "ports": [{"name": port_name, "port": port, "targetPort": 80}]}});
    for (number, backend) in backends.iter().enumerate() {
        api.post(SLICES, &slice(name, number, port_name, &address, *backend)).await?.ok()?;
    }
    api.post("/api/v1/namespaces/default/services", &service).await?.ok()?;
    eventually("the load balancer listens", || async {
        Ok(tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok().then_some(()))
    })
    .await?;
    Ok(port)
}

/// Path of the Gateway API's objects.
const GATEWAYS: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/default/gateways";
/// Routes that are created at a time.
const WRITERS: usize = 16;

/// Writes one object for each number, as `object` says, under `path`.
async fn write_all(api: &Api, path: &str, numbers: Range<usize>, object: impl Fn(usize) -> Value + Copy) -> Result<()> {
    let write = |first: usize| {
        let numbers = numbers.clone().skip(first).step_by(WRITERS);
        async move {
            for number in numbers {
                api.post(path, &object(number)).await?.ok()?;
            }
            anyhow::Ok(())
        }
    };
    futures::future::try_join_all((0..WRITERS).map(write)).await.map(|_| ())
}

/// Share of upstream requests that found an open connection, in percent, from a page of metrics.
fn reuse(metrics: &str) -> f64 {
    let sum = |what: &str| -> f64 {
        let name = format!("lb_upstream_connections_{what}_total");
        let lines = metrics.lines().filter(|l| l.starts_with(&name));
        lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    let (reused, opened) = (sum("reused"), sum("opened"));
    100.0 * reused / (reused + opened).max(1.0)
}
