//! TLS towards clients and towards endpoints.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use scaleup_lb::policy::{AltName, ServicePolicy, UpstreamTls};
use scaleup_lb::snapshot::routes::{
    CertificatePlan, Filter, HostPattern, L4Plan, Mode, RedirectPlan, RuleId, TlsAction, TlsSite,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::routed::*;
use crate::support::PATIENCE;

pub fn certificate(names: &[&str]) -> Arc<CertificatePlan> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    Arc::new(CertificatePlan {
        secret: "shop/tls".to_owned(),
        chain_pem: made.cert.pem().into_bytes(),
        key_pem: made.signing_key.serialize_pem().into_bytes(),
    })
}

fn der(plan: &CertificatePlan) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(&plan.chain_pem).unwrap()
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

pub fn client_config(trusted: &[&Arc<CertificatePlan>], alpn: &[&[u8]]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    trusted.iter().for_each(|plan| roots.add(der(plan)).unwrap());
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

async fn connect(lab: &Routed, name: &str, config: &Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
    connect_to(lab.addr, name, config).await
}

pub async fn connect_to(
    addr: SocketAddr,
    name: &str,
    config: &Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    tokio::time::timeout(PATIENCE, TlsConnector::from(config.clone()).connect(name, stream)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_name_has_its_certificate_and_its_routes() {
    let (a, b) = (Scripted::echo().await, Scripted::named("b").await);
    let (cert_a, cert_b) = (certificate(&["a.example"]), certificate(&["*.wild.example"]));
    let sites = vec![
        tls_site("a.example", &[&cert_a], vec![rule("/", "a")]),
        tls_site("*.wild.example", &[&cert_a, &cert_b], vec![rule("/", "b")]),
    ];
    let setup = Setup::default().service("a", &[a.addr]).service("b", &[b.addr]).listener(PORT, Mode::Tls(sites));
    let lab = Routed::start(&setup).await;
    let config = client_config(&[&cert_a, &cert_b], &[b"http/1.1"]);
    let mut stream = connect(&lab, "a.example", &config).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let answer = Answer::to(&mut stream, &get("/", "A.example:8080")).await;
    assert!(answer.status == 200 && answer.body.contains("x-forwarded-proto: https"), "{answer:?}");
    let mut stream = connect(&lab, "x.wild.example", &config).await.unwrap();
    assert_eq!(stream.get_ref().1.peer_certificates().unwrap()[0], der(&cert_b));
    assert_eq!(Answer::to(&mut stream, &get("/", "y.wild.example")).await.body, "b");
    // The other site's requests do not come in over this one's connections.
    let mut stream = connect(&lab, "x.wild.example", &config).await.unwrap();
    assert_eq!(Answer::to(&mut stream, &get("/", "a.example")).await.status, 421);
    assert!(connect(&lab, "other.example", &config).await.is_err());
    // A whole session: several requests and large bodies both ways.
    let mut stream = connect(&lab, "a.example", &config).await.unwrap();
    let body = "x".repeat(300_000);
    for _ in 0..3 {
        let head = format!("POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let mut reply = Vec::new();
        while !(reply.len() > 300_000 && reply.ends_with(body.as_bytes())) {
            let read = tokio::time::timeout(PATIENCE, stream.read_buf(&mut reply)).await.unwrap().unwrap();
            assert!(read > 0, "closed after {} bytes", reply.len());
        }
        assert!(reply.starts_with(b"HTTP/1.1 200 "));
    }
    // Not TLS at all.
    let mut plain = TcpStream::connect(lab.addr).await.unwrap();
    plain.write_all(get("/", "a.example").as_bytes()).await.unwrap();
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, plain.read_to_end(&mut rest)).await.expect("the connection is closed");
    assert!(!rest.starts_with(b"HTTP"));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_used_at_once_and_connections_go_on() {
    let endpoint = Scripted::named("ok").await;
    let (old, new) = (certificate(&["a.example"]), certificate(&["a.example"]));
    let setup = |cert: &Arc<CertificatePlan>, path: &str| {
        let site = tls_site("a.example", &[cert], vec![rule(path, "a")]);
        Setup::default().service("a", &[endpoint.addr]).listener(PORT, Mode::Tls(vec![site]))
    };
    let lab = Routed::start(&setup(&old, "/old")).await;
    let config = client_config(&[&old, &new], &[]);
    let mut before = connect(&lab, "a.example", &config).await.unwrap();
    before.write_all(b"GET /old HTTP/1.1\r\nhost: a.example\r\n\r\n").await.unwrap();
    let mut reply = vec![0; 1024];
    let read = tokio::time::timeout(PATIENCE, before.read(&mut reply)).await.unwrap().unwrap();
    assert!(reply[..read].starts_with(b"HTTP/1.1 200 "));
    lab.publish(&setup(&new, "/new"));
    let fresh = client_config(&[&old, &new], &[]);
    let after = connect(&lab, "a.example", &fresh).await.unwrap();
    assert_eq!(after.get_ref().1.peer_certificates().unwrap()[0], der(&new));
    // The connection lives on, with the routes of now.
    before.write_all(b"GET /old HTTP/1.1\r\nhost: a.example\r\n\r\n").await.unwrap();
    let read = tokio::time::timeout(PATIENCE, before.read(&mut reply)).await.unwrap().unwrap();
    assert!(reply[..read].starts_with(b"HTTP/1.1 404 "));
    assert_eq!(Answer::to(&mut before, &get("/new", "a.example")).await.status, 200);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_resumed_even_over_a_new_certificate() {
    let endpoint = Scripted::named("ok").await;
    let (old, new) = (certificate(&["a.example"]), certificate(&["a.example"]));
    let setup = |cert: &Arc<CertificatePlan>| {
        let site = tls_site("", &[cert], vec![rule("/", "a")]);
        Setup::default().service("a", &[endpoint.addr]).listener(PORT, Mode::Tls(vec![site]))
    };
    let lab = Routed::start(&setup(&old)).await;
    let config = client_config(&[&old], &[]);
    for round in 0..3 {
        let mut stream = connect(&lab, "a.example", &config).await.unwrap();
        let expected = if round == 0 { rustls::HandshakeKind::Full } else { rustls::HandshakeKind::Resumed };
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(expected), "round {round}");
        assert_eq!(Answer::to(&mut stream, &get("/", "a.example")).await.status, 200);
        lab.publish(&setup(&new));
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clear_text_is_redirected_and_a_silent_client_is_closed() {
    let cert = certificate(&["a.example"]);
    let redirect = RedirectPlan { scheme: Some("https".into()), hostname: None, port: None, path: None, status: 301 };
    let setup = Setup::default()
        .rules(vec![filtered("/", "none", vec![Filter::Redirect(redirect)])])
        .listener(8443, Mode::Tls(vec![tls_site("", &[&cert], vec![])]));
    let lab =
        Routed::configured(&setup, |config| config.proxy.tls_handshake_timeout = Duration::from_millis(200)).await;
    let answer = lab.get("/x").await;
    assert_eq!((answer.status, answer.header("location")), (301, Some("https://a.example/x")));
    let mut addr = lab.addr;
    addr.set_port(8443);
    let open = async {
        loop {
            match TcpStream::connect(addr).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let mut stream = tokio::time::timeout(PATIENCE, open).await.unwrap();
    let closed = tokio::time::timeout(PATIENCE, stream.read(&mut [0])).await.expect("the connection is closed");
    assert!(matches!(closed, Ok(0) | Err(_)));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn protocols_are_switched_inside_tls() {
    let endpoint = Scripted::start(|_, before| match before {
        0 => Act::Say(b"HTTP/1.1 101 X\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhi".to_vec()),
        _ => Act::Say(b"again".to_vec()),
    })
    .await;
    let cert = certificate(&["a.example"]);
    let site = tls_site("", &[&cert], vec![rule("/", "a")]);
    let setup = Setup::default().service("a", &[endpoint.addr]).listener(PORT, Mode::Tls(vec![site]));
    let lab = Routed::start(&setup).await;
    let mut stream = connect(&lab, "a.example", &client_config(&[&cert], &[])).await.unwrap();
    let upgrade = b"GET / HTTP/1.1\r\nhost: a.example\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
    stream.write_all(upgrade).await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\nhi") {
        assert!(tokio::time::timeout(PATIENCE, stream.read_buf(&mut seen)).await.unwrap().unwrap() > 0);
    }
    assert!(seen.starts_with(b"HTTP/1.1 101 "));
    stream.write_all(b"anything\r\n\r\n").await.unwrap();
    while !seen.ends_with(b"again") {
        assert!(tokio::time::timeout(PATIENCE, stream.read_buf(&mut seen)).await.unwrap().unwrap() > 0);
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_may_end_here_for_other_protocols() {
    let endpoint = Scripted::start(|_, _| Act::Say(b"pong".to_vec())).await;
    let cert = certificate(&["a.example"]);
    let l4 = L4Plan { id: RuleId::default(), backends: vec![share("a", 1)], idle_timeout: None };
    let action = TlsAction::Terminate { certificates: Arc::from([cert.clone()]), to: l4 };
    let site = TlsSite { host: HostPattern::Any, action };
    let setup = Setup::default().service("a", &[endpoint.addr]).listener(PORT, Mode::Tls(vec![site]));
    let lab = Routed::start(&setup).await;
    let mut stream = connect(&lab, "a.example", &client_config(&[&cert], &[])).await.unwrap();
    stream.write_all(b"ping\r\n\r\n").await.unwrap();
    let mut reply = [0; 4];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut reply)).await.unwrap().unwrap();
    assert_eq!(&reply, b"pong");
    lab.stop().await;
}

/// An endpoint that answers over TLS, and demands `client` if there is one.
async fn tls_endpoint(cert: &CertificatePlan, client: Option<&CertificatePlan>) -> Scripted {
    let acceptor = acceptor(cert, client, &[]);
    Scripted::behind(
        |request, _| Act::reply(200, request),
        move |stream| {
            let acceptor = acceptor.clone();
            async move { acceptor.accept(stream).await.ok() }
        },
    )
    .await
}

/// TLS as an endpoint has it, with the protocols `alpn`; demands `client` if there is one.
pub fn acceptor(cert: &CertificatePlan, client: Option<&CertificatePlan>, alpn: &[&[u8]]) -> TlsAcceptor {
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let builder = match client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            let mut roots = RootCertStore::empty();
            roots.add(der(client)).unwrap();
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let key = PrivateKeyDer::from_pem_slice(&cert.key_pem).unwrap();
    let mut config = builder.with_single_cert(vec![der(cert)], key).unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_are_reached_over_tls_and_must_be_who_they_say() {
    let (cert, client) = (certificate(&["inner.example"]), certificate(&["lb"]));
    let (endpoint, strict) = (tls_endpoint(&cert, None).await, tls_endpoint(&cert, Some(&client)).await);
    let tls = |hostname: &str, ca: &Arc<CertificatePlan>, with: Option<&Arc<CertificatePlan>>, insecure: bool| {
        let upstream_tls = UpstreamTls {
            hostname: hostname.into(),
            ca_pem: Some(ca.chain_pem.clone()),
            client: with.cloned(),
            insecure,
            ..UpstreamTls::default()
        };
        ServicePolicy { upstream_tls: Some(Arc::new(upstream_tls)), ..ServicePolicy::default() }
    };
    let good = tls("inner.example", &cert, None, false);
    let setup = |policy: ServicePolicy| {
        Setup::default()
            .service_with("good", &[endpoint.addr], policy)
            .service_with("name", &[endpoint.addr], tls("other.example", &cert, None, false))
            .service_with("ca", &[endpoint.addr], tls("inner.example", &client, None, false))
            .service_with("any", &[endpoint.addr], tls("other.example", &client, None, true))
            .service_with("strict", &[strict.addr], tls("inner.example", &cert, Some(&client), false))
            .rules(["good", "name", "ca", "any", "strict"].map(|name| rule(&format!("/{name}"), name)).to_vec())
    };
    let lab = Routed::start(&setup(good)).await;
    for (path, status) in [("/good", 200), ("/name", 502), ("/ca", 502), ("/any", 200), ("/strict", 200)] {
        let answer = lab.get(path).await;
        assert_eq!(answer.status, status, "{path} {answer:?}");
    }
    // With a list of names, the one that is asked for does not count.
    let listed = |names: &[&str]| {
        let names = names.iter().map(|name| AltName::Hostname((*name).into())).collect();
        let ServicePolicy { upstream_tls: Some(tls), .. } = tls("asked.example", &cert, None, false) else { panic!() };
        let tls = UpstreamTls { alt_names: names, ..(*tls).clone() };
        ServicePolicy { upstream_tls: Some(Arc::new(tls)), ..ServicePolicy::default() }
    };
    lab.publish(&setup(listed(&["other.example", "inner.example"])));
    assert_eq!(lab.get("/good").await.status, 200);
    lab.publish(&setup(listed(&["asked.example"])));
    assert_eq!(lab.get("/good").await.status, 502);
    lab.publish(&setup(tls("inner.example", &cert, None, false)));
    // Connections are pooled; those of another policy are not used.
    let before = endpoint.connections();
    for _ in 0..20 {
        assert_eq!(lab.get("/good").await.status, 200);
    }
    let opened = endpoint.connections() - before;
    assert!(opened <= 10, "{opened} connections for 20 requests");
    lab.publish(&setup(tls("other.example", &cert, None, false)));
    assert_eq!(lab.get("/good").await.status, 502);
    let mut stream = TcpStream::connect(lab.addr).await.unwrap();
    let body = "x".repeat(200_000);
    let post = format!("POST /any HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 200000\r\n\r\n{body}");
    assert!(Answer::to(&mut stream, &post).await.body.ends_with(&body));
    lab.stop().await;
}
