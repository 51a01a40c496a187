//! Requests of HTTP/2 clients: routed to endpoints of both versions, retried, streamed, cancelled, drained.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use scaleup_lb::snapshot::routes::{HttpPlan, Mode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::h2_support::*;
use crate::routed::{PORT, Routed, Setup, http, rule};
use crate::support::*;

async fn h2_lab(endpoints: &[&H2Endpoint]) -> Lab {
    let addresses: Vec<_> = endpoints.iter().map(|endpoint| endpoint.addr).collect();
    Lab::start("h2c", &addresses, |_| {}).await
}

#[tokio::test(flavor = "multi_thread")]
async fn http1_endpoints_serve_http2_clients() {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    let mut client = H2Client::connect(lab.addr).await;
    for _ in 0..50 {
        let answer = client.get("/").await;
        assert_eq!((answer.status, answer.text().as_str(), answer.field("content-length")), (200, "e0", "2"));
        assert!(!answer.field("date").is_empty());
    }
    assert_eq!(endpoint.connections.load(std::sync::atomic::Ordering::Relaxed), 1, "they share a connection");
    let fields = [("cookie", "a=1"), ("cookie", "b=2"), ("x-forwarded-for", "6.6.6.6"), ("te", "trailers")];
    let seen = client.try_send("GET", "/headers?q=1", &fields, b"").await.unwrap().text();
    for line in
        ["GET /headers?q=1\n", "host: web\n", "cookie: a=1; b=2\n", "x-forwarded-for: 127.0.0.1\n", "te: trailers\n"]
    {
        assert!(seen.contains(line), "{line:?} in {seen}");
    }
    let (head, empty) = (client.try_send("HEAD", "/", &[], b"").await.unwrap(), client.get("/empty").await);
    assert_eq!((head.status, head.body.len(), empty.status, empty.body.len()), (200, 0, 204, 0));
    let sized = client.try_send("POST", "/length", &[("content-length", "5")], b"hello").await.unwrap();
    let unsized_body = client.try_send("POST", "/length", &[], b"hello").await.unwrap();
    assert_eq!((sized.text(), unsized_body.text()), ("5".to_owned(), "5".to_owned()));
    lab.until("all are counted", |totals| totals.codes[1] == 55).await;
    assert_eq!(lab.totals().bytes_in, 10);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn challenges_of_a_ca_are_answered_whatever_the_client_speaks() {
    let endpoint = H2Endpoint::start("h0").await;
    let mut plan = HttpPlan::clone(&http(vec![("", vec![rule("/", "a")])]));
    plan.challenges = Arc::new([("token".into(), "token.thumbprint".into())].into());
    let setup = Setup::default().service("a", &[endpoint.addr]).h2c("a").listener(PORT, Mode::Http(Arc::new(plan)));
    let lab = Routed::start(&setup).await;
    let mut client = H2Client::connect(lab.addr).await;
    let answer = client.get("/.well-known/acme-challenge/token").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "token.thumbprint"));
    let plain = lab.get("/.well-known/acme-challenge/token").await;
    assert_eq!((plain.status, plain.body.as_str()), (200, "token.thumbprint"));
    assert_eq!(client.get("/.well-known/acme-challenge/").await.text(), "h0", "others are the route's");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_endpoints_serve_http2_clients() {
    let endpoint = H2Endpoint::start("h0").await;
    let lab = h2_lab(&[&endpoint]).await;
    let mut client = H2Client::connect(lab.addr).await;
    for _ in 0..50 {
        let answer = client.get("/").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "h0"));
    }
    assert_eq!(endpoint.connections.load(std::sync::atomic::Ordering::Relaxed), 1, "streams share a connection");
    let seen = client.try_send("GET", "/headers", &[("cookie", "a=1"), ("cookie", "b=2")], b"").await.unwrap().text();
    for line in ["GET http://web/headers\n", "cookie: a=1; b=2\n", "x-forwarded-for: 127.0.0.1\n"] {
        assert!(seen.contains(line), "{line:?} in {seen}");
    }
    let body: Vec<u8> = (0..3 * MIB).map(|i| i as u8).collect();
    let (response, mut sink) = client.open("POST", "/echo", &[], false).await;
    let upload = tokio::spawn({
        let body = body.clone();
        async move { write(&mut sink, body.into(), true).await }
    });
    let echo = Whole::read(response.await.unwrap()).await.unwrap();
    upload.await.unwrap().unwrap();
    assert!(echo.body == body, "3 MiB both ways at once");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_stream_both_ways_with_http1_endpoints() {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    let mut client = H2Client::connect(lab.addr).await;
    let (response, mut sink) = client.open("POST", "/echo", &[], false).await;
    write(&mut sink, Bytes::from_static(b"first"), false).await.unwrap();
    // The echo of the first piece comes before the second is sent.
    let mut body = tokio::time::timeout(PATIENCE, response).await.unwrap().unwrap().into_body();
    let piece = tokio::time::timeout(PATIENCE, body.data()).await.unwrap().unwrap().unwrap();
    assert_eq!(piece, "first");
    write(&mut sink, Bytes::from_static(b"second"), true).await.unwrap();
    let piece = tokio::time::timeout(PATIENCE, body.data()).await.unwrap().unwrap().unwrap();
    assert_eq!(piece, "second");
    let large = client.get("/stream/8").await;
    assert_eq!(large.body.len(), 8 * MIB);
    let body = vec![b'x'; 5 * MIB];
    assert_eq!(client.try_send("POST", "/length", &[], &body).await.unwrap().text(), (5 * MIB).to_string());
    lab.stop().await;
}

/// An answer that comes before the body was sent ends the stream without an error.
#[tokio::test(flavor = "multi_thread")]
async fn early_answers_arrive() {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    let mut client = H2Client::connect(lab.addr).await;
    let (response, mut sink) = client.open("POST", "/early", &[], false).await;
    write(&mut sink, Bytes::from_static(b"begun"), false).await.unwrap();
    let answer = Whole::read(tokio::time::timeout(PATIENCE, response).await.unwrap().unwrap()).await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (403, "no"));
    assert_eq!(client.get("/").await.text(), "e0", "the connection goes on");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_that_are_down_are_replaced_and_missing_ones_reported() {
    let dead = dead();
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[dead, endpoint.addr]).await;
    let mut client = H2Client::connect(lab.addr).await;
    for _ in 0..10 {
        assert_eq!(client.get("/").await.text(), "e0");
    }
    // What was not seen by anybody is sent again with its body.
    for _ in 0..10 {
        assert_eq!(client.try_send("POST", "/length", &[], b"hello").await.unwrap().text(), "5");
    }
    lab.set(&[dead]);
    assert_eq!(client.get("/").await.status, 502);
    lab.set(&[]);
    let none = client.get("/").await;
    assert_eq!((none.status, none.field("content-type")), (503, "text/plain; charset=utf-8"));
    assert!(none.text().contains("shop/web has no ready endpoints"), "{}", none.text());
    let grpc = client.try_send("POST", "/s/m", &[("content-type", "application/grpc")], b"").await.unwrap();
    assert_eq!((grpc.status, grpc.field("grpc-status"), grpc.body.len()), (200, "14", 0));
    assert!(grpc.field("grpc-message").contains("no ready endpoints"));
    lab.stop().await;
}

/// HTTP/2 endpoints that go away in an orderly way lose nothing, and killed ones no request that may be repeated.
#[tokio::test(flavor = "multi_thread")]
async fn http2_endpoints_may_leave() {
    let (first, second) = (H2Endpoint::start("h0").await, H2Endpoint::start("h1").await);
    let lab = h2_lab(&[&first, &second]).await;
    let mut client = H2Client::connect(lab.addr).await;
    let load = tokio::spawn(async move {
        for _ in 0..600 {
            let answer = client.get("/").await;
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    first.goodbye();
    tokio::time::sleep(Duration::from_millis(20)).await;
    first.kill();
    load.await.unwrap();
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_endpoints_are_limited_and_further_connections_opened() {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(4);
    let endpoint = H2Endpoint::with("h0", builder).await;
    let lab = Lab::start("h2c", &[endpoint.addr], |config| config.threads = Some(1)).await;
    let mut client = H2Client::connect(lab.addr).await;
    // So that the limit is known.
    client.get("/").await;
    let mut waiting = Vec::new();
    for _ in 0..20 {
        waiting.push(client.open("GET", "/never", &[], true).await);
    }
    let all_there = async {
        while endpoint.served() < 21 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all_there).await.expect("all streams reach the endpoint");
    let connections = endpoint.connections.load(std::sync::atomic::Ordering::Relaxed);
    assert!((5..=8).contains(&connections), "{connections} connections for 20 streams of 4");
    drop(waiting);
    endpoint.until_cancelled(20).await;
    lab.stop().await;
}

/// Whatever the endpoint speaks, it learns that a client cancelled.
#[tokio::test(flavor = "multi_thread")]
async fn cancelling_reaches_the_endpoint() {
    let endpoint = H2Endpoint::start("h0").await;
    let lab = h2_lab(&[&endpoint]).await;
    let mut client = H2Client::connect(lab.addr).await;
    let (response, mut sink) = client.open("POST", "/never", &[], false).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    sink.send_reset(h2::Reason::CANCEL);
    drop(response);
    endpoint.until_cancelled(1).await;
    assert_eq!(client.get("/").await.text(), "h0");
    lab.stop().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let lab = Lab::http(&[listener.local_addr().unwrap()]).await;
    let mut client = H2Client::connect(lab.addr).await;
    let waiting = client.open("GET", "/", &[], true).await;
    let mut stream = listener.accept().await.unwrap().0;
    read_head(&mut stream).await;
    drop(waiting);
    let closed = tokio::time::timeout(PATIENCE, stream.read_u8()).await.expect("the connection is closed");
    assert!(closed.is_err());
    lab.stop().await;
}

/// A response that breaks off must not look complete.
#[tokio::test(flavor = "multi_thread")]
async fn broken_responses_are_reset() {
    let endpoint = H2Endpoint::start("h0").await;
    let lab = h2_lab(&[&endpoint]).await;
    let mut client = H2Client::connect(lab.addr).await;
    let error = client.try_send("GET", "/cut", &[], b"").await.unwrap_err();
    assert!(error.is_reset(), "{error}");
    lab.stop().await;
    for (response, status) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\nabc", None),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", None),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", None),
        ("HTTP/1.1 200 OK\r\n\r\nabc", Some(200)),
        ("HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n", Some(502)),
        ("SSH-2.0-OpenSSH\r\n\r\n", Some(502)),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let lab = Lab::http(&[listener.local_addr().unwrap()]).await;
        let serve = tokio::spawn(async move {
            let mut stream = listener.accept().await.unwrap().0;
            read_head(&mut stream).await;
            stream.write_all(response.as_bytes()).await.unwrap();
        });
        let mut client = H2Client::connect(lab.addr).await;
        let answer = client.try_send("GET", "/", &[], b"").await;
        match (&answer, status) {
            (Ok(answer), Some(status)) => assert_eq!(answer.status, status, "{response:?}"),
            (Err(error), None) => assert!(error.is_reset(), "{response:?}: {error}"),
            _ => panic!("{response:?}: {answer:?}"),
        }
        serve.await.unwrap();
        lab.stop().await;
    }
}

/// GOAWAY, then what is in flight finishes (RFC 9113 §6.8).
#[tokio::test(flavor = "multi_thread")]
async fn connections_drain() {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    let (mut busy, mut idle) = (H2Client::connect(lab.addr).await, H2Client::connect(lab.addr).await);
    assert_eq!(idle.get("/").await.status, 200);
    let (response, _) = busy.open("GET", "/slow", &[], true).await;
    let mut raw = Raw::connect(lab.addr).await;
    raw.write(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &request("GET", "/slow", &[]))).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let stop = tokio::spawn(lab.stop());
    assert_eq!(Whole::read(response.await.unwrap()).await.unwrap().text(), "e0");
    let (mut goodbyes, mut answered) = (Vec::new(), false);
    while let Some(got) = raw.next().await {
        match got.kind {
            GOAWAY => goodbyes.push(got.payload),
            PING if got.flags & ACK == 0 => drop(raw.write(&frame(PING, ACK, 0, &got.payload)).await),
            HEADERS => answered = true,
            _ => {}
        }
    }
    // First: no new streams, please; then: this was the last one.
    assert_eq!(goodbyes, [[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0, 0]]);
    assert!(answered, "what is in flight finishes");
    for client in [busy, idle] {
        tokio::time::timeout(PATIENCE, client.connection).await.expect("it is closed").unwrap().unwrap();
    }
    tokio::time::timeout(PATIENCE, stop).await.expect("nothing holds up the end").unwrap();
}
