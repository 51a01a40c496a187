//! The PROXY protocol towards HTTP endpoints: every connection is for one client, who has it for as long as it stays. And TLS towards TCP
//! endpoints.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use scaleup_lb::policy::{Algorithm, RequestPolicy, ServicePolicy, UpstreamTls};
use scaleup_lb::snapshot::routes::{CertificatePlan, L4Plan, Mode, RuleId, TlsAction, TlsSite};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::h2_support::H2Client;
use crate::routed::*;
use crate::scripted::until;
use crate::support::PATIENCE;
use crate::tls::{acceptor, certificate, client_config, connect_to};

/// An endpoint that demands a header and answers every request with what the header of its connection says.
struct Told {
    addr: SocketAddr,
    opened: Arc<AtomicU64>,
    closed: Arc<AtomicU64>,
}

impl Told {
    async fn start(tls: Option<TlsAcceptor>, http2: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let told = Self { addr, opened: Arc::default(), closed: Arc::default() };
        let (opened, closed) = (told.opened.clone(), told.closed.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (closed, tls) = (closed.clone(), tls.clone());
                opened.fetch_add(1, Relaxed);
                tokio::spawn(async move {
                    if let Some(header) = header(&mut stream).await {
                        match tls {
                            None => serve(stream, &header, http2).await,
                            Some(tls) => {
                                if let Ok(stream) = tls.accept(stream).await {
                                    serve(stream, &header, http2).await;
                                }
                            }
                        }
                    }
                    closed.fetch_add(1, Relaxed);
                });
            }
        });
        told
    }

    fn opened(&self) -> u64 {
        self.opened.load(Relaxed)
    }

    fn open(&self) -> u64 {
        self.opened() - self.closed.load(Relaxed)
    }
}

/// What the header at the beginning of a connection says: version, client, our side. `None`: there is none.
async fn header(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = vec![stream.read_u8().await.ok()?];
    if bytes == b"P" {
        while !bytes.ends_with(b"\r\n") {
            bytes.push(stream.read_u8().await.ok()?);
        }
        let text = String::from_utf8(bytes).ok()?;
        let [from, to, from_port, to_port] =
            text.trim_end().strip_prefix("PROXY TCP4 ")?.split(' ').collect::<Vec<_>>()[..]
        else {
            return None;
        };
        return Some(format!("v1 {from}:{from_port} {to}:{to_port}"));
    }
    bytes.resize(28, 0);
    stream.read_exact(&mut bytes[1..]).await.ok()?;
    bytes.starts_with(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c").then_some(())?;
    let addr = |ip: usize, port: usize| {
        let octets: [u8; 4] = bytes[ip..ip + 4].try_into().unwrap();
        SocketAddr::from((octets, u16::from_be_bytes([bytes[port], bytes[port + 1]])))
    };
    Some(format!("v2 {} {}", addr(16, 24), addr(20, 26)))
}

/// GETs without body, of either version.
async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &str, http2: bool) {
    if http2 {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let head = http::Response::builder().header("content-length", answer.len()).body(()).unwrap();
            let mut body = respond.send_response(head, false).unwrap();
            body.send_data(Bytes::copy_from_slice(answer.as_bytes()), true).unwrap();
        }
        return;
    }
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return };
            head.push(byte);
        }
        let reply = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
        if stream.write_all(reply.as_bytes()).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        // Like a server that does not keep connections for long.
        if head.starts_with(b"GET /last ") {
            return;
        }
    }
}

/// A client of HTTP/1.1 that keeps its connection.
struct Kept(TcpStream);

impl Kept {
    async fn connect(lab: &Routed) -> Self {
        Self(TcpStream::connect(lab.addr).await.unwrap())
    }

    async fn get(&mut self, path: &str) -> String {
        let exchange = async {
            self.0.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(self.0.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap().to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap();
            let mut body = vec![0; length];
            self.0.read_exact(&mut body).await.unwrap();
            String::from_utf8(body).unwrap()
        };
        tokio::time::timeout(PATIENCE, exchange).await.expect("an answer")
    }

    /// What endpoints are to be told of it.
    fn told(&self, version: u8) -> String {
        format!("v{version} {} {}", self.0.local_addr().unwrap(), self.0.peer_addr().unwrap())
    }
}

fn sends(version: u8) -> ServicePolicy {
    let algorithm = Some(Algorithm::RoundRobin);
    ServicePolicy { send_proxy: Some(version), algorithm, ..ServicePolicy::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_to_an_http_endpoint_is_for_the_client_that_it_names() {
    for version in [1, 2] {
        let endpoint = Told::start(None, false).await;
        let setup = Setup::default().service_with("a", &[endpoint.addr], sends(version)).rules(vec![rule("/", "a")]);
        let lab = Routed::start(&setup).await;
        let (mut one, mut two) = (Kept::connect(&lab).await, Kept::connect(&lab).await);
        for _ in 0..10 {
            assert_eq!(one.get("/").await, one.told(version));
            assert_eq!(two.get("/").await, two.told(version));
        }
        assert_eq!(endpoint.opened(), 2, "each client's connection is used again, and by nobody else");
        // The endpoint closes one; the next has the same header.
        assert_eq!(one.get("/last").await, one.told(version));
        until("it is closed", async || endpoint.open() == 1).await;
        assert_eq!(one.get("/").await, one.told(version));
        assert_eq!((endpoint.opened(), endpoint.open()), (3, 2));
        // A client that leaves takes its connection with it.
        drop(one);
        until("it goes with its client", async || endpoint.open() == 1).await;
        assert_eq!(two.get("/").await, two.told(version));
        let mut three = Kept::connect(&lab).await;
        assert_eq!(three.get("/").await, three.told(version));
        assert_eq!(endpoint.opened(), 4);
        lab.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_and_endpoints_of_http2_have_connections_of_their_own_too() {
    let (old, new) = (Told::start(None, false).await, Told::start(None, true).await);
    let setup = Setup::default()
        .service_with("old", &[old.addr], sends(1))
        .service_with("new", &[new.addr], sends(2))
        .h2c("new")
        .rules(vec![rule("/old", "old"), rule("/new", "new")]);
    let lab = Routed::start(&setup).await;
    let (mut one, mut two, mut three) =
        (H2Client::connect(lab.addr).await, H2Client::connect(lab.addr).await, Kept::connect(&lab).await);
    let mut seen = Vec::new();
    for path in ["/old", "/new"] {
        let (first, second) = (one.get(path).await.text(), two.get(path).await.text());
        for _ in 0..5 {
            assert_eq!(one.get(path).await.text(), first);
            assert_eq!(two.get(path).await.text(), second);
        }
        assert!(first.ends_with(&format!(" {}", lab.addr)), "{first}");
        assert_ne!(first, second);
        seen.push(first[3..].to_owned());
    }
    assert_eq!(seen[0], seen[1], "one client connection is one address");
    assert_eq!(three.get("/new").await, three.told(2));
    assert_eq!(three.get("/new").await, three.told(2));
    assert_eq!((old.opened(), new.opened()), (2, 3));
    drop((one, two, three));
    until("they go with their clients", async || (old.open(), new.open()) == (0, 0)).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_header_goes_before_tls_with_rivals_and_with_copies() {
    let cert = certificate(&["inner.example"]);
    let (secure, copies) = (Told::start(Some(acceptor(&cert, None, &[])), false).await, Told::start(None, false).await);
    let tls = ServicePolicy { upstream_tls: Some(upstream("inner.example", &cert)), ..sends(2) };
    // Everybody is asked again at once, so rivals open connections.
    let hedging = RequestPolicy { hedging: Some((Duration::from_millis(1), 2)), ..RequestPolicy::default() };
    let mut hedged = governed("/", "secure", hedging);
    hedged.filters = vec![mirror("copies")];
    let setup = Setup::default()
        .service_with("secure", &[secure.addr], tls)
        .service_with("copies", &[copies.addr], sends(1))
        .rules(vec![hedged]);
    let lab = Routed::start(&setup).await;
    let mut client = Kept::connect(&lab).await;
    for _ in 0..5 {
        assert_eq!(client.get("/").await, client.told(2));
    }
    until("a copy was sent", async || copies.opened() > 0).await;
    drop(client);
    until("all end with the client", async || (secure.open(), copies.open()) == (0, 0)).await;
    lab.stop().await;
}

fn upstream(hostname: &str, ca: &CertificatePlan) -> Arc<UpstreamTls> {
    Arc::new(UpstreamTls { hostname: hostname.into(), ca_pem: Some(ca.chain_pem.clone()), ..UpstreamTls::default() })
}

/// Sends back what it gets inside TLS, after the name that was asked for and the header, if it demands one.
async fn tls_echo(tls: TlsAcceptor, announced: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                let said = if announced { header(&mut stream).await? } else { String::new() };
                let mut stream = tls.accept(stream).await.ok()?;
                let (alpn, name) = (stream.get_ref().1.alpn_protocol().is_some(), stream.get_ref().1.server_name());
                let greeting = format!("{} {said} {alpn}\n", name.unwrap_or_default());
                stream.write_all(greeting.as_bytes()).await.ok()?;
                let (mut read, mut write) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut read, &mut write).await;
                write.shutdown().await.ok()
            });
        }
    });
    addr
}

/// Everything that comes back for `bytes`; empty if the connection is cut.
async fn exchange(stream: impl AsyncRead + AsyncWrite, bytes: &[u8]) -> Vec<u8> {
    let (mut read, mut write) = tokio::io::split(stream);
    let send = async {
        let _ = write.write_all(bytes).await;
        let _ = write.shutdown().await;
    };
    let mut reply = Vec::new();
    let both = async { tokio::join!(send, read.read_to_end(&mut reply)).1 };
    match tokio::time::timeout(PATIENCE, both).await.expect("it ends") {
        Ok(_) => reply,
        Err(_) => Vec::new(),
    }
}

fn bytes_to(service: &str) -> L4Plan {
    L4Plan {
        id: RuleId { kind: "TCPRoute", ..RuleId::default() },
        backends: vec![share(service, 1)],
        idle_timeout: None,
    }
}

/// What a TCP client gets from an endpoint under a policy.
async fn through(policy: ServicePolicy, endpoints: &[SocketAddr], bytes: &[u8]) -> (String, Vec<u8>) {
    let setup = Setup::default().service_with("a", endpoints, policy).listener(PORT, Mode::Tcp(bytes_to("a")));
    let lab = Routed::start(&setup).await;
    let (mut told, mut reply) = (String::new(), Vec::new());
    // A reset may come before connecting was noticed to have succeeded.
    if let Ok(stream) = TcpStream::connect(lab.addr).await {
        told = format!("{} {}", stream.local_addr().unwrap(), lab.addr);
        reply = exchange(stream, bytes).await;
    }
    lab.stop().await;
    (told, reply)
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_endpoints_are_reached_over_tls_and_must_be_who_they_say() {
    let (cert, other) = (certificate(&["inner.example"]), certificate(&["inner.example"]));
    let good = tls_echo(acceptor(&cert, None, &[b"h2"]), false).await;
    let bad = tls_echo(acceptor(&other, None, &[]), false).await;
    let policy = |tls: Arc<UpstreamTls>| ServicePolicy { upstream_tls: Some(tls), ..ServicePolicy::default() };
    let large = vec![b'x'; 1_000_000];
    let check = async |policy: ServicePolicy, endpoints: &[SocketAddr], expected: Option<&str>| {
        let (_, reply) = through(policy, endpoints, &large).await;
        match expected {
            Some(greeting) => {
                assert_eq!(String::from_utf8_lossy(&reply[..reply.len().min(greeting.len())]), greeting);
                assert_eq!(reply.len(), greeting.len() + large.len(), "every byte, both ways");
            }
            None => assert!(reply.is_empty(), "{} bytes", reply.len()),
        }
    };
    let tls = upstream("inner.example", &cert);
    check(policy(tls.clone()), &[good], Some("inner.example  false\n")).await;
    check(policy(upstream("other.example", &cert)), &[good], None).await;
    check(policy(tls.clone()), &[bad], None).await;
    // Another endpoint is tried when one is not who it should be.
    for _ in 0..2 {
        check(policy(tls.clone()), &[bad, good], Some("inner.example  false\n")).await;
    }
    let insecure = UpstreamTls { insecure: true, ..(*upstream("any.example", &other)).clone() };
    check(policy(Arc::new(insecure)), &[good], Some("any.example  false\n")).await;
    let unusable = UpstreamTls { ca_pem: Some(vec![]), ..(*tls).clone() };
    check(policy(Arc::new(unusable)), &[good], None).await;
    let client = certificate(&["lb"]);
    let strict = tls_echo(acceptor(&cert, Some(&client), &[]), false).await;
    check(policy(tls.clone()), &[strict], None).await;
    let with_client = UpstreamTls { client: Some(client), ..(*tls).clone() };
    check(policy(Arc::new(with_client)), &[strict], Some("inner.example  false\n")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_to_tcp_endpoints_comes_after_the_header_and_never_twice() {
    let cert = certificate(&["inner.example"]);
    let endpoint = tls_echo(acceptor(&cert, None, &[]), true).await;
    let tls = upstream("inner.example", &cert);
    let policy = ServicePolicy { upstream_tls: Some(tls.clone()), ..sends(2) };
    let (told, reply) = through(policy, &[endpoint], b"hello").await;
    assert_eq!(String::from_utf8_lossy(&reply), format!("inner.example v2 {told} false\nhello"));
    // TLS that ends here begins again; what passes through is TLS already.
    let plain = tls_echo(acceptor(&cert, None, &[]), false).await;
    let outer = certificate(&["outer.example"]);
    let policy = ServicePolicy { upstream_tls: Some(tls), ..ServicePolicy::default() };
    let site = |action| TlsSite { host: scaleup_lb::snapshot::routes::HostPattern::Any, action };
    let ends = site(TlsAction::Terminate { certificates: Arc::from([outer.clone()]), to: bytes_to("a") });
    for (action, trusted, name, expected) in [
        (ends, &outer, "outer.example", "inner.example  false\nhello"),
        (site(TlsAction::Passthrough(bytes_to("a"))), &cert, "inner.example", "inner.example  false\nhello"),
    ] {
        let setup =
            Setup::default().service_with("a", &[plain], policy.clone()).listener(PORT, Mode::Tls(vec![action]));
        let lab = Routed::start(&setup).await;
        let stream = connect_to(lab.addr, name, &client_config(&[trusted], &[])).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&exchange(stream, b"hello").await), expected);
        lab.stop().await;
    }
}
