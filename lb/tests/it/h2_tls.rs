//! HTTP/2 to endpoints behind TLS: agreed on by ALPN, for clients of either version, for gRPC.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use scaleup_lb::policy::{Algorithm, ServicePolicy, UpstreamTls};
use scaleup_lb::snapshot::routes::{CertificatePlan, RulePlan};
use scaleup_lb::snapshot::{PlanConfig, testing};
use serde_json::json;

use crate::h2_support::*;
use crate::routed::*;
use crate::tls::{acceptor, certificate};

const GRPC: &[(&str, &str)] = &[("content-type", "application/grpc"), ("te", "trailers")];

async fn endpoint(cert: &CertificatePlan, alpn: &[&[u8]]) -> H2Endpoint {
    let acceptor = acceptor(cert, None, alpn);
    let open = move |stream| {
        let acceptor = acceptor.clone();
        async move { acceptor.accept(stream).await.ok() }
    };
    H2Endpoint::behind("h0", h2::server::Builder::new(), open).await
}

fn tls(hostname: &str, ca: &CertificatePlan) -> ServicePolicy {
    let upstream_tls = UpstreamTls {
        alt_names: Default::default(),
        http_only: true,
        hostname: hostname.into(),
        ca_pem: Some(ca.chain_pem.clone()),
        client: None,
        insecure: false,
    };
    let algorithm = Some(Algorithm::RoundRobin);
    ServicePolicy { upstream_tls: Some(Arc::new(upstream_tls)), algorithm, ..ServicePolicy::default() }
}

/// A rule of a GRPCRoute.
fn grpc_rule(prefix: &str, service: &str) -> RulePlan {
    let mut rule = rule(prefix, service);
    rule.id.kind = "GRPCRoute";
    rule
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_speak_http2_inside_tls() {
    let cert = certificate(&["inner.example"]);
    let endpoint = endpoint(&cert, &[b"h2", b"http/1.1"]).await;
    let setup = Setup::default()
        .service_with("a", &[endpoint.addr], tls("inner.example", &cert))
        .h2c("a")
        .rules(vec![rule("/", "a")]);
    let lab = Routed::start(&setup).await;
    let mut client = H2Client::connect(lab.addr).await;
    for _ in 0..10 {
        assert_eq!(client.get("/").await.text(), "h0");
    }
    assert!(endpoint.connections.load(Relaxed) <= 2, "streams share a connection");
    assert!(client.get("/headers").await.text().starts_with("GET https://web/headers\n"));
    let echo = client.try_send("POST", "/echo", GRPC, &vec![b'x'; 300_000]).await.unwrap();
    assert!(echo.body.len() == 300_000);
    // A client of HTTP/1.1.
    assert!(lab.get("/").await.body.contains("h0"));
    let post = "POST /echo HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello";
    let echo = lab.send(post).await;
    // In as many chunks as it came in.
    let letters: String = echo.body.chars().filter(char::is_ascii_alphabetic).collect();
    assert_eq!(letters, "hello", "{echo:?}");
    // Connections of another policy are not used.
    let other = Setup::default()
        .service_with("a", &[endpoint.addr], tls("other.example", &cert))
        .h2c("a")
        .rules(vec![rule("/", "a")]);
    lab.publish(&other);
    assert_eq!(client.get("/").await.status, 502);
    assert_eq!(lab.get("/").await.status, 502);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_of_grpc_routes_speak_http2_whatever_their_port_says() {
    let cert = certificate(&["inner.example"]);
    let (secure, clear) = (endpoint(&cert, &[b"h2"]).await, H2Endpoint::start("h1").await);
    let setup = Setup::default()
        .service_with("secure", &[secure.addr], tls("inner.example", &cert))
        .service("clear", &[clear.addr])
        .rules(vec![grpc_rule("/grpc", "secure"), grpc_rule("/", "clear")]);
    let lab = Routed::start(&setup).await;
    let mut client = H2Client::connect(lab.addr).await;
    let answer = client.try_send("POST", "/grpc", GRPC, b"\0\0\0\0\0").await.unwrap();
    assert_eq!((answer.status, &answer.body[..]), (200, &b"\0\0\0\0\x02hi"[..]));
    assert_eq!(answer.trailers.unwrap().get("grpc-status").unwrap(), "0");
    let error = client.try_send("POST", "/grpc-error", GRPC, b"\0\0\0\0\0").await.unwrap();
    assert_eq!(error.field("grpc-status"), "5");
    assert_eq!((secure.served(), clear.served()), (1, 1));
    lab.stop().await;
}

/// An endpoint that would speak something else inside TLS is not spoken to.
#[tokio::test(flavor = "multi_thread")]
async fn endpoints_must_agree_to_http2() {
    let cert = certificate(&["inner.example"]);
    // Refused in the handshake, and not talked about at all.
    let (other, silent) = (endpoint(&cert, &[b"http/1.1"]).await, endpoint(&cert, &[]).await);
    let setup = Setup::default()
        .service_with("other", &[other.addr], tls("inner.example", &cert))
        .service_with("silent", &[silent.addr], tls("inner.example", &cert))
        .h2c("other")
        .h2c("silent")
        .rules(vec![rule("/other", "other"), rule("/silent", "silent")]);
    let lab = Routed::start(&setup).await;
    let mut client = H2Client::connect(lab.addr).await;
    for path in ["/other", "/silent"] {
        let answer = client.get(path).await;
        assert!(answer.status == 502 && answer.text().contains("HTTP/2 over TLS"), "{path} {answer:?}");
        let answer = lab.get(path).await;
        assert!(answer.status == 502 && answer.body.contains("HTTP/2 over TLS"), "{path} {answer:?}");
    }
    lab.stop().await;
}

/// From the objects to the wire: endpoints of a GRPCRoute are believed as a BackendTLSPolicy says.
#[tokio::test(flavor = "multi_thread")]
async fn a_backend_tls_policy_holds_for_a_grpc_route() {
    let cert = certificate(&["inner.example"]);
    let endpoint = endpoint(&cert, &[b"h2"]).await;
    let ca = String::from_utf8(cert.chain_pem.clone()).unwrap();
    let objects = |hostname: &str| {
        let metadata = |name: &str| json!({"namespace": "shop", "name": name});
        let (ip, port) = (endpoint.addr.ip().to_string(), endpoint.addr.port());
        [
            json!({"kind": "GatewayClass", "metadata": {"name": "scaleup"}, "spec": {"controllerName": "scaleup.dev/gateway"}}),
            json!({"kind": "Gateway", "metadata": metadata("edge"), "spec": {"gatewayClassName": "scaleup",
                "listeners": [{"name": "http", "port": PORT, "protocol": "HTTP"}]}}),
            json!({"kind": "Service", "metadata": metadata("cart"), "spec": {"ports": [{"name": "rpc", "port": 80}]}}),
            json!({"kind": "EndpointSlice", "metadata": {"namespace": "shop", "name": "cart", "labels": {"kubernetes.io/service-name": "cart"}},
                "addressType": "IPv4", "ports": [{"name": "rpc", "port": port}], "endpoints": [{"addresses": [ip]}]}),
            json!({"kind": "ConfigMap", "metadata": metadata("ca"), "data": {"ca.crt": ca}}),
            json!({"kind": "BackendTLSPolicy", "metadata": metadata("cart"), "spec": {
                "targetRefs": [{"group": "", "kind": "Service", "name": "cart"}],
                "validation": {"hostname": hostname, "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "ca"}]}}}),
            json!({"kind": "GRPCRoute", "metadata": metadata("cart"), "spec": {"parentRefs": [{"name": "edge"}],
                "rules": [{"matches": [{"method": {"service": "grpc"}}], "backendRefs": [{"name": "cart", "port": 80}]}]}}),
        ]
    };
    let snapshot = |hostname: &str| testing::snapshot(PlanConfig::default(), &objects(hostname)).unwrap();
    let lab = Routed::start(&Setup::default().rules(vec![])).await;
    lab.lb.publish(snapshot("inner.example"));
    let mut client = H2Client::connect(lab.addr).await;
    let answer = client.try_send("POST", "/grpc", GRPC, b"\0\0\0\0\0").await.unwrap();
    assert_eq!((answer.status, &answer.body[..]), (200, &b"\0\0\0\0\x02hi"[..]));
    assert_eq!(answer.trailers.unwrap().get("grpc-status").unwrap(), "0");
    lab.lb.publish(snapshot("other.example"));
    let answer = client.try_send("POST", "/grpc", GRPC, b"\0\0\0\0\0").await.unwrap();
    // UNAVAILABLE
    assert_eq!((answer.field("grpc-status"), endpoint.served()), ("14", 1));
    lab.stop().await;
}
