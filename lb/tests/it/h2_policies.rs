//! What policies say about requests, for HTTP/2 clients: timeouts, retries, sizes.

use std::sync::Arc;
use std::time::Duration;

use scaleup_lb::policy::{Algorithm, RequestPolicy, ServicePolicy};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::h2_support::*;
use crate::support::*;

/// A load balancer in front of `endpoints` whose requests follow a policy.
async fn lab(port_name: &'static str, endpoints: &[std::net::SocketAddr], policy: RequestPolicy) -> Lab {
    let lab = Lab::start(port_name, endpoints, |_| {}).await;
    let mut snapshot = snapshot(port_name, endpoints, json!({}));
    let policy = Arc::new(policy);
    for service in snapshot.services.values_mut() {
        for port in &mut Arc::make_mut(service).ports {
            port.requests = policy.clone();
            // Exact turns: what an endpoint answered must not decide who is asked next.
            let policy = ServicePolicy { algorithm: Some(Algorithm::RoundRobin), ..ServicePolicy::default() };
            port.policy = Arc::new(policy);
        }
    }
    lab.lb.publish(snapshot);
    lab
}

const GRPC: &[(&str, &str)] = &[("content-type", "application/grpc"), ("te", "trailers")];

#[tokio::test(flavor = "multi_thread")]
async fn time_runs_out() {
    let endpoint = H2Endpoint::start("h0").await;
    let short = Some(Duration::from_millis(200));
    for policy in [
        RequestPolicy { request_timeout: short, ..RequestPolicy::default() },
        RequestPolicy { response_timeout: short, ..RequestPolicy::default() },
    ] {
        let lab = lab("h2c", &[endpoint.addr], policy).await;
        let mut client = H2Client::connect(lab.addr).await;
        let late = client.get("/never").await;
        assert_eq!(late.status, 504, "{}", late.text());
        let late = client.try_send("POST", "/never", GRPC, b"\0\0\0\0\0").await.unwrap();
        assert_eq!((late.status, late.field("grpc-status")), (200, "4"), "DEADLINE_EXCEEDED");
        assert_eq!(client.get("/").await.text(), "h0", "the connection goes on");
        lab.stop().await;
    }
    endpoint.until_cancelled(4).await;
    // Once the response has begun, only the stream can say that it is incomplete.
    let policy = RequestPolicy { request_timeout: short, ..RequestPolicy::default() };
    let lab = lab("h2c", &[endpoint.addr], policy).await;
    let mut client = H2Client::connect(lab.addr).await;
    let (response, sink) = client.open("POST", "/echo", &[], false).await;
    let error = Whole::read(response.await.unwrap()).await.unwrap_err();
    assert!(error.is_reset(), "{error}");
    drop(sink);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_have_a_limit() {
    let [endpoint] = endpoints::<1>().await;
    let policy = RequestPolicy { max_body_bytes: Some(1000), ..RequestPolicy::default() };
    let lab = lab("http", &[endpoint.addr], policy).await;
    let mut client = H2Client::connect(lab.addr).await;
    let fits = client.try_send("POST", "/length", &[], &[b'x'; 1000]).await.unwrap();
    assert_eq!(fits.text(), "1000");
    let announced = client.try_send("POST", "/length", &[("content-length", "1001")], &[b'x'; 1001]).await.unwrap();
    let found_out = client.try_send("POST", "/length", &[], &[b'x'; 1001]).await.unwrap();
    assert_eq!((announced.status, found_out.status), (413, 413));
    lab.stop().await;
}

/// An endpoint that reads whole requests and answers all of them with a status.
async fn always(status: &'static str) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let mut stream = listener.accept().await.unwrap().0;
            tokio::spawn(async move {
                let head = read_head(&mut stream).await;
                let mut body = Vec::new();
                while head.contains("chunked") && !body.ends_with(b"0\r\n\r\n") {
                    body.push(stream.read_u8().await.unwrap());
                }
                let text = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(text.as_bytes()).await.unwrap();
            });
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_are_retried_where_a_policy_says_so() {
    let bad = always("503 Busy").await;
    let [good] = endpoints::<1>().await;
    let mut policy = RequestPolicy::default();
    policy.retries.statuses = vec![503];
    let retrying = lab("http", &[bad, good.addr], policy).await;
    let mut client = H2Client::connect(retrying.addr).await;
    for _ in 0..10 {
        assert_eq!(client.get("/").await.text(), "e0");
    }
    // A POST may have had an effect.
    let mut statuses: Vec<u16> = Vec::new();
    for _ in 0..4 {
        statuses.push(client.try_send("POST", "/length", &[], b"hello").await.unwrap().status);
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 503, 503]);
    // Nor can a body be sent twice; what the endpoint said is what the client gets.
    let mut statuses: Vec<u16> = Vec::new();
    for _ in 0..4 {
        statuses.push(client.try_send("PUT", "/length", &[], b"hello").await.unwrap().status);
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 503, 503]);
    retrying.stop().await;
    let mut policy = RequestPolicy::default();
    policy.retries.statuses = vec![503];
    let hopeless = lab("http", &[bad], policy).await;
    assert_eq!(H2Client::connect(hopeless.addr).await.get("/").await.status, 503);
    hopeless.stop().await;
    let plain = lab("http", &[bad, good.addr], RequestPolicy::default()).await;
    let mut client = H2Client::connect(plain.addr).await;
    let mut statuses = vec![client.get("/").await.status, client.get("/").await.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 503]);
    plain.stop().await;
}
