//! WebSockets of HTTP/2 clients (RFC 8441): tunnels through an HTTP/1.1 endpoint.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::ext::Protocol;
use h2::{Reason, SendStream};
use http::Request;
use scaleup_lb::policy::RequestPolicy;
use sha1::{Digest, Sha1};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::h2_support::*;
use crate::routed::*;
use crate::support::{PATIENCE, read_head};

/// How the endpoint ended.
type Ended = std::io::Result<()>;

/// An endpoint. Paths: `/echo` a tunnel that begins with `!` and echoes, `/quiet` one over which nothing comes, `/wrong` proves nothing,
/// `/plain` answers 200, `/no` 403. Tells the heads that it saw, and how each connection ended.
async fn endpoint() -> (std::net::SocketAddr, mpsc::UnboundedReceiver<String>, mpsc::UnboundedReceiver<Ended>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (heads, seen) = mpsc::unbounded_channel();
    let (ends, ended) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (heads, ends) = (heads.clone(), ends.clone());
            tokio::spawn(async move { drop(ends.send(serve(stream, &heads).await)) });
        }
    });
    (addr, seen, ended)
}

async fn serve(mut stream: TcpStream, heads: &mpsc::UnboundedSender<String>) -> Ended {
    let head = read_head(&mut stream).await;
    heads.send(head.clone()).unwrap();
    let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap_or_default();
    let proof = BASE64_STANDARD.encode(Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11")));
    let switch = |proof: &str| {
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\nsec-websocket-accept: {proof}\r\n\
             sec-websocket-protocol: chat\r\n\r\n"
        )
    };
    let path = head.split(' ').nth(1).unwrap_or_default();
    match path {
        "/echo" => {
            stream.write_all((switch(&proof) + "!").as_bytes()).await?;
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await?;
            write.shutdown().await
        }
        "/quiet" => {
            stream.write_all(switch(&proof).as_bytes()).await?;
            stream.read_to_end(&mut Vec::new()).await.map(drop)
        }
        "/wrong" => stream.write_all(switch("c3pPLMBiTxaQ9kYGzzhZRbK+xOo=").as_bytes()).await,
        "/plain" => stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno").await,
        _ => stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno").await,
    }
}

/// Asks for a WebSocket.
async fn open(client: &mut H2Client, path: &str) -> (ResponseFuture, SendStream<Bytes>) {
    let mut request = Request::builder()
        .method("CONNECT")
        .uri(format!("http://web{path}"))
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "chat")
        // Not a client's to say in HTTP/2.
        .header("sec-websocket-key", "mine")
        .body(())
        .unwrap();
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    client.sender = client.sender.clone().ready().await.unwrap();
    client.sender.send_request(request, false).unwrap()
}

async fn next(body: &mut h2::RecvStream) -> Option<Bytes> {
    let data = tokio::time::timeout(PATIENCE, body.data()).await.unwrap()?.unwrap();
    body.flow_control().release_capacity(data.len()).unwrap();
    Some(data)
}

async fn lab(endpoint: std::net::SocketAddr, policy: RequestPolicy) -> Routed {
    let setup = Setup::default().service("a", &[endpoint]).rules(vec![governed("/", "a", policy)]);
    Routed::start(&setup).await
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_offer_extended_connect() {
    let (addr, _seen, _ended) = endpoint().await;
    let lab = lab(addr, RequestPolicy::default()).await;
    let settings = Raw::connect(lab.addr).await.next_of(SETTINGS).await;
    // SETTINGS_ENABLE_CONNECT_PROTOCOL (RFC 8441 §3)
    assert!(settings.payload.chunks(6).any(|setting| setting == [0, 8, 0, 0, 0, 1]), "{settings:?}");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_a_tunnel_with_half_close_beside_other_requests() {
    let (addr, mut seen, mut ended) = endpoint().await;
    // Limits on bodies are none on tunnels.
    let lab = lab(addr, RequestPolicy { max_body_bytes: Some(10), ..RequestPolicy::default() }).await;
    let mut client = H2Client::connect_extended(lab.addr).await;
    let (response, mut sink) = open(&mut client, "/echo").await;
    let response = tokio::time::timeout(PATIENCE, response).await.unwrap().unwrap();
    assert_eq!(
        (response.status().as_u16(), response.headers()["sec-websocket-protocol"].as_bytes()),
        (200, &b"chat"[..])
    );
    for name in ["sec-websocket-accept", "upgrade", "connection", "transfer-encoding", "content-length"] {
        assert!(!response.headers().contains_key(name), "{name}");
    }
    let head = seen.recv().await.unwrap();
    assert!(head.starts_with("GET /echo HTTP/1.1\r\nhost: web\r\n"), "{head}");
    for line in ["upgrade: websocket\r\n", "connection: upgrade\r\n", "sec-websocket-version: 13\r\n"] {
        assert!(head.contains(line), "{line} in {head}");
    }
    assert_eq!(head.matches("sec-websocket-key: ").count(), 1, "{head}");
    assert!(!head.contains("mine") && !head.contains("content-length") && !head.contains("chunked"), "{head}");
    let mut body = response.into_body();
    assert_eq!(next(&mut body).await.unwrap(), "!");
    for turn in 0..50 {
        let message = Bytes::from(format!("message {turn}"));
        write(&mut sink, message.clone(), false).await.unwrap();
        assert_eq!(next(&mut body).await.unwrap(), message);
    }
    assert_eq!(client.get("/no").await.status, 403, "other streams go on");
    let large: Bytes = (0..1_000_000u32).map(|i| i as u8).collect::<Vec<_>>().into();
    let expected = large.clone();
    let writer = tokio::spawn(async move {
        write(&mut sink, large, true).await.unwrap();
        sink
    });
    let mut echoed = Vec::new();
    while let Some(data) = next(&mut body).await {
        echoed.extend_from_slice(&data);
    }
    assert!(echoed == expected, "{} bytes came back", echoed.len());
    drop(writer.await.unwrap());
    // Both directions ended in order, at the endpoint, too (the first to end is that of `/no`).
    for _ in 0..2 {
        tokio::time::timeout(PATIENCE, ended.recv()).await.unwrap().unwrap().unwrap();
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_ends_the_tunnel_at_the_endpoint() {
    let (addr, _seen, mut ended) = endpoint().await;
    let lab = lab(addr, RequestPolicy::default()).await;
    let mut client = H2Client::connect_extended(lab.addr).await;
    let (response, mut sink) = open(&mut client, "/quiet").await;
    let response = tokio::time::timeout(PATIENCE, response).await.unwrap().unwrap();
    assert_eq!(response.status(), 200);
    sink.send_reset(Reason::CANCEL);
    let _ = tokio::time::timeout(PATIENCE, ended.recv()).await.expect("the endpoint's connection is closed");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_ends_a_tunnel_where_a_policy_says_so() {
    let (addr, _seen, mut ended) = endpoint().await;
    let policy = RequestPolicy { idle_timeout: Some(Duration::from_millis(200)), ..RequestPolicy::default() };
    let lab = lab(addr, policy).await;
    let mut client = H2Client::connect_extended(lab.addr).await;
    let (response, _sink) = open(&mut client, "/quiet").await;
    let mut body = tokio::time::timeout(PATIENCE, response).await.unwrap().unwrap().into_body();
    let error = tokio::time::timeout(PATIENCE, body.data()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    let _ = tokio::time::timeout(PATIENCE, ended.recv()).await.expect("the endpoint's connection is closed");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_of_http2_open_tunnels_for_clients_of_both_versions() {
    let mut builder = h2::server::Builder::new();
    builder.enable_connect_protocol();
    let endpoint = H2Endpoint::with("h2", builder).await;
    let setup = Setup::default().service("a", &[endpoint.addr]).h2c("a").rules(vec![rule("/", "a")]);
    let lab = Routed::start(&setup).await;
    let large: Vec<u8> = (0..1_000_000u32).map(|i| i as u8).collect();
    let mut client = H2Client::connect_extended(lab.addr).await;
    let (response, mut sink) = open(&mut client, "/echo").await;
    let response = tokio::time::timeout(PATIENCE, response).await.unwrap().unwrap();
    assert_eq!(response.status(), 200);
    let (mut body, sent) = (response.into_body(), Bytes::from(large.clone()));
    let writer = tokio::spawn(async move {
        write(&mut sink, sent, true).await.unwrap();
        sink
    });
    let mut echoed = Vec::new();
    while let Some(data) = next(&mut body).await {
        echoed.extend_from_slice(&data);
    }
    assert!(echoed == large, "{} bytes came back", echoed.len());
    drop(writer.await.unwrap());
    let mut stream = TcpStream::connect(lab.addr).await.unwrap();
    let upgrade = "GET /echo HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                   sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(upgrade.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await.to_lowercase();
    assert!(head.starts_with("http/1.1 101 ") && head.contains("upgrade: websocket\r\n"), "{head}");
    // The example of RFC 6455 §1.3.
    assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"), "{head}");
    let (mut read, mut half) = stream.into_split();
    let sent = large.clone();
    let writer = tokio::spawn(async move {
        half.write_all(&sent).await.unwrap();
        half.shutdown().await.unwrap();
        half
    });
    let mut echoed = Vec::new();
    tokio::time::timeout(PATIENCE, read.read_to_end(&mut echoed)).await.unwrap().unwrap();
    assert!(echoed == large, "{} bytes came back", echoed.len());
    drop(writer.await.unwrap());
    // Nor does a plain body reach the endpoint in crumbs, which it would refuse.
    let mut stream = TcpStream::connect(lab.addr).await.unwrap();
    let head =
        format!("POST /echo HTTP/1.1\r\nhost: web\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", large.len());
    let (mut read, mut half) = stream.split();
    let (written, got) = tokio::join!(
        async {
            half.write_all(head.as_bytes()).await?;
            half.write_all(&large).await
        },
        async {
            let mut got = Vec::new();
            read.read_to_end(&mut got).await.map(|_| got)
        }
    );
    written.unwrap();
    let got = got.unwrap();
    assert!(got.starts_with(b"HTTP/1.1 200 ") && got.len() > large.len(), "{} bytes came back", got.len());
    // A tunnel whose client goes away is cancelled at the endpoint.
    let (response, mut sink) = open(&mut client, "/never").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    sink.send_reset(Reason::CANCEL);
    assert!(tokio::time::timeout(PATIENCE, response).await.unwrap().is_err());
    endpoint.until_cancelled(1).await;
    // Each of two threads has one.
    assert!(endpoint.connections.load(std::sync::atomic::Ordering::Relaxed) <= 2, "tunnels share a connection");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_endpoint_that_switches_opens_a_tunnel() {
    let (addr, _seen, _ended) = endpoint().await;
    let modern = H2Endpoint::start("h2").await;
    let setup = Setup::default()
        .service("a", &[addr])
        .service("modern", &[modern.addr])
        .h2c("modern")
        .rules(vec![rule("/", "a"), rule("/modern", "modern")]);
    let lab = Routed::start(&setup).await;
    let mut client = H2Client::connect_extended(lab.addr).await;
    // What the endpoint says against it is passed on; what it says instead of it is not.
    for (path, status) in [("/no", 403), ("/plain", 502), ("/wrong", 502), ("/modern", 501)] {
        let (response, _sink) = open(&mut client, path).await;
        let answer = tokio::time::timeout(PATIENCE, response).await.unwrap().unwrap();
        assert_eq!(answer.status(), status, "{path}");
        Whole::read(answer).await.unwrap();
    }
    assert_eq!(client.get("/no").await.status, 403, "the connection goes on");
    lab.stop().await;
}
