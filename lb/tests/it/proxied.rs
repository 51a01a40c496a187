//! PROXY protocol in and out, idle timeouts of L4 listeners, and health check node ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use scaleup_lb::policy::ServicePolicy;
use scaleup_lb::snapshot::routes::{
    BackendRef, HostPattern, HostPort, L4Plan, ListenerPlan, Mode, RuleId, TlsAction, TlsSite, WeightedBackend,
};
use scaleup_lb::snapshot::{Protocol, Snapshot};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

const LISTENER_PORT: u16 = 8001;

/// Sends back everything it gets.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    addr
}

/// The Service, with `send_proxy`, and a listener that passes connections on to it.
fn listener(endpoint: SocketAddr, send: Option<u8>, accept: Option<&str>, idle: Option<Duration>) -> Snapshot {
    let mut snapshot = snapshot("db", &[endpoint], json!({}));
    for plan in snapshot.services.values_mut() {
        let mut changed = (**plan).clone();
        for port in &mut changed.ports {
            port.policy = Arc::new(ServicePolicy { send_proxy: send, ..ServicePolicy::default() });
        }
        *plan = Arc::new(changed);
    }
    let backend = BackendRef { service: key(), port: SERVICE_PORT, protocol: Protocol::Tcp };
    let share = |backend, weight| WeightedBackend { backend, weight, filters: Vec::new() };
    let plan = ListenerPlan {
        created: 0,
        owners: vec!["Gateway shop/edge".to_owned()],
        accept_proxy: accept.map(|source| [source.to_owned()].into()),
        mode: Mode::Tcp(L4Plan {
            id: RuleId { kind: "TCPRoute", ..RuleId::default() },
            backends: vec![share(None, 0), share(Some(backend.clone()), 1)],
            idle_timeout: idle,
        }),
    };
    snapshot.routed = Arc::new(BTreeSet::from([backend]));
    let port = HostPort { port: LISTENER_PORT, protocol: Protocol::Tcp };
    snapshot.listeners = BTreeMap::from([(port, Arc::new(plan))]);
    snapshot
}

async fn connect(lab: &Lab) -> TcpStream {
    let addr = SocketAddr::new(lab.addr.ip(), LISTENER_PORT);
    let connected = async {
        loop {
            match TcpStream::connect(addr).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, connected).await.expect("the listener opens")
}

/// What comes back for `parts`, sent one by one; `None` when the connection is refused.
async fn exchange(lab: &Lab, parts: &[&[u8]]) -> Option<Vec<u8>> {
    let mut stream = connect(lab).await;
    for part in parts {
        stream.set_nodelay(true).unwrap();
        stream.write_all(part).await.ok()?;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stream.shutdown().await.ok()?;
    let mut reply = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut reply)).await.expect("it ends");
    read.ok().map(|_| reply).filter(|reply| !reply.is_empty())
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_are_believed_passed_on_and_demanded() {
    let lab = Lab::start("db", &[], |_| {}).await;
    lab.lb.publish(listener(echo().await, Some(1), Some("127.0.0.0/8"), None));
    let expected = format!("PROXY TCP4 192.0.2.9 {} 4711 {LISTENER_PORT}\r\nhello", lab.addr.ip());
    let v1 = b"PROXY TCP4 192.0.2.9 198.51.100.1 4711 80\r\nhello";
    assert_eq!(exchange(&lab, &[v1]).await.as_deref(), Some(expected.as_bytes()));
    assert_eq!(exchange(&lab, &[&v1[..7], &v1[7..41], &v1[41..]]).await.as_deref(), Some(expected.as_bytes()));
    let v2 = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0f"[..], &[192, 0, 2, 9, 198, 51, 100, 1, 0x12, 0x67, 0, 80, 4, 0, 0]];
    assert_eq!(exchange(&lab, &[&v2.concat(), b"hello"]).await.as_deref(), Some(expected.as_bytes()));
    // The proxy's own connection.
    let local = exchange(&lab, &[b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", b"hello"]).await.expect("an answer");
    assert!(local.starts_with(b"PROXY TCP4 127.0.0.1 "), "{}", String::from_utf8_lossy(&local));
    for bad in [&b"hello"[..], b"PROXY TCP4 1 2 3 4\r\nhello", b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\0hello"] {
        assert_eq!(exchange(&lab, &[bad]).await, None, "{}", String::from_utf8_lossy(bad));
    }
    // Somebody whose header is not believed is not let in without one either.
    lab.lb.publish(listener(echo().await, None, Some("192.0.2.0/24"), None));
    assert_eq!(exchange(&lab, &[v1]).await, None);
    lab.lb.publish(listener(echo().await, Some(2), None, None));
    let plain = exchange(&lab, &[b"hello"]).await.expect("an answer");
    assert!(
        plain.starts_with(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01") && plain.ends_with(b"hello"),
        "{plain:?}"
    );
    lab.stop().await;
}

/// What a client that wants `name` sends first.
fn client_hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut bytes = Vec::new();
    rustls::ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut bytes).unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_passes_through_by_name() {
    let lab = Lab::start("db", &[], |_| {}).await;
    let mut snapshot = listener(echo().await, None, None, None);
    for plan in snapshot.listeners.values_mut() {
        let mut changed = (**plan).clone();
        let Mode::Tcp(to) = changed.mode else { panic!("a TCP listener") };
        let site = |host: &str| TlsSite { host: HostPattern::parse(host), action: TlsAction::Passthrough(to.clone()) };
        changed.mode = Mode::Tls(vec![site("a.example"), site("*.b.example")]);
        *plan = Arc::new(changed);
    }
    lab.lb.publish(snapshot);
    for name in ["a.example", "A.Example", "x.y.b.example"] {
        let hello = client_hello(name);
        let parts: Vec<&[u8]> = hello.chunks(100).collect();
        assert_eq!(exchange(&lab, &parts).await.as_deref(), Some(&hello[..]), "{name}: every byte arrives");
    }
    for name in ["b.example", "c.example", "192.0.2.1"] {
        assert_eq!(exchange(&lab, &[&client_hello(name)]).await, None, "{name}");
    }
    // What is not TLS gets an alert (decode_error) at most.
    let reply = exchange(&lab, &[b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n"]).await;
    assert!(reply.as_deref().is_none_or(|reply| reply == [21, 3, 3, 0, 2, 2, 50]), "{reply:?}");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_ends_a_connection_where_a_policy_says_so() {
    let lab = Lab::start("db", &[], |_| {}).await;
    lab.lb.publish(listener(echo().await, None, None, Some(Duration::from_millis(200))));
    let mut stream = connect(&lab).await;
    let mut byte = [0];
    // Longer in all than the longest silence.
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        stream.write_all(b"x").await.unwrap();
        stream.read_exact(&mut byte).await.unwrap();
    }
    let ended = tokio::time::timeout(PATIENCE, stream.read(&mut byte)).await.expect("it is closed");
    assert_eq!(ended.unwrap_or(0), 0);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_check_node_ports_tell_about_local_endpoints() {
    let lab = Lab::start("db", &[], |_| {}).await;
    let check_port = 8002;
    let publish = |nodes: &[&str]| {
        let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": check_port,
            "ports": [{"name": "db", "port": SERVICE_PORT}]});
        let service = json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u"}, "spec": spec});
        let endpoints: Vec<_> = nodes
            .iter()
            .enumerate()
            .map(|(i, n)| json!({"addresses": [format!("10.0.0.{i}")], "nodeName": n}))
            .collect();
        let slice = json!({"metadata": {"name": "web-1", "namespace": "shop",
                "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
            "ports": [{"name": "db", "port": 80}], "endpoints": endpoints});
        let config = scaleup_lb::snapshot::PlanConfig { node_name: "n1".to_owned(), ..Default::default() };
        let (service, slice) = (serde_json::from_value(service).unwrap(), serde_json::from_value(slice).unwrap());
        lab.lb.publish(scaleup_lb::snapshot::plan(&[service], &[slice], &config));
    };
    publish(&["n1", "n2", "n1"]);
    let addr = SocketAddr::new(lab.addr.ip(), check_port);
    let get = async || {
        let wait = async {
            while TcpStream::connect(addr).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the port opens");
        String::from_utf8(raw(addr, b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await).unwrap()
    };
    let reply = get().await;
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    assert!(reply.contains("x-load-balancing-endpoint-weight: 2\r\n"), "{reply}");
    let body: serde_json::Value = serde_json::from_str(reply.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    let service = json!({"namespace": "shop", "name": "web"});
    assert_eq!(body, json!({"service": service, "localEndpoints": 2, "serviceProxyHealthy": true}));
    publish(&["n2"]);
    assert!(get().await.starts_with("HTTP/1.1 503 "));
    lab.set(&[]);
    let closed = async {
        while TcpStream::connect(addr).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, closed).await.expect("the port is released with its Service");
    lab.stop().await;
}
