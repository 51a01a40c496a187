//! Requests that two parsers could read differently: refused with 400 (or a close relative), connection closed, and
//! nothing of it reaches an endpoint.

use crate::support::*;

/// One hostile request per row; each is followed by a second request that must never be answered.
const CASES: &[(&str, &str)] = &[
    (
        "length beside chunked",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunked beside length",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunked beside length 0",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 0\r\n\r\n0\r\n\r\n",
    ),
    ("differing lengths", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nabcde"),
    ("equal lengths twice", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ncontent-length: 4\r\n\r\nabcd"),
    ("a list of lengths", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4, 4\r\n\r\nabcd"),
    ("a signed length", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +4\r\n\r\nabcd"),
    ("a negative length", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n"),
    ("a hexadecimal length", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0x4\r\n\r\nabcd"),
    ("an endless length", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999999\r\n\r\n"),
    ("an empty length", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length:\r\n\r\n"),
    ("a length with a space inside", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4 4\r\n\r\nabcd"),
    ("space before the colon", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n"),
    ("length with a space before the colon", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length : 4\r\n\r\nabcd"),
    ("unknown coding", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n"),
    ("identity", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: identity\r\n\r\n"),
    ("coding before chunked", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("chunked not last", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
    (
        "chunked twice",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    ("chunked in two values", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    ("quoted chunked", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \"chunked\"\r\n\r\n0\r\n\r\n"),
    ("vertical tab before chunked", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    ("empty coding", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding:\r\n\r\n0\r\n\r\n"),
    ("chunked in HTTP/1.0", "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("folded header", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    ("line that starts with a space", "GET / HTTP/1.1\r\n host: b\r\nhost: a\r\n\r\n"),
    ("bare line feeds", "GET / HTTP/1.1\nhost: a\n\n"),
    ("one bare line feed", "POST / HTTP/1.1\r\nhost: a\r\nx: y\ncontent-length: 4\r\n\r\nabcd"),
    ("bare carriage return", "GET / HTTP/1.1\r\nhost: a\rx: y\r\n\r\n"),
    ("NUL in a value", "GET / HTTP/1.1\r\nhost: a\r\nx: a\0b\r\n\r\n"),
    ("NUL in a name", "GET / HTTP/1.1\r\nhost: a\r\nx\0: b\r\n\r\n"),
    ("no name", "GET / HTTP/1.1\r\nhost: a\r\n: b\r\n\r\n"),
    ("no colon", "GET / HTTP/1.1\r\nhost: a\r\nabc\r\n\r\n"),
    ("no host", "GET / HTTP/1.1\r\n\r\n"),
    ("two hosts", "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"),
    ("empty host", "GET / HTTP/1.1\r\nhost:\r\n\r\n"),
    ("host with a path", "GET / HTTP/1.1\r\nhost: a/b\r\n\r\n"),
    ("host with user information", "GET / HTTP/1.1\r\nhost: u@a\r\n\r\n"),
    ("host list", "GET / HTTP/1.1\r\nhost: a, b\r\n\r\n"),
    ("two spaces in the request line", "GET  / HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("space in the target", "GET /a b HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("tab in the request line", "GET\t/ HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("version that does not exist", "GET / HTTP/1.2\r\nhost: a\r\n\r\n"),
    ("version without a slash", "GET / HTTP\r\nhost: a\r\n\r\n"),
    ("HTTP/0.9", "GET /\r\n\r\n"),
    ("method with a bracket", "GE(T / HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("target without a slash", "GET a HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("other scheme", "GET file:///etc/passwd HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("asterisk", "GET * HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("tunnel to elsewhere", "CONNECT 127.0.0.1:22 HTTP/1.1\r\nhost: a\r\n\r\n"),
    (
        "Connection names the length",
        "POST / HTTP/1.1\r\nhost: a\r\nconnection: content-length\r\ncontent-length: 4\r\n\r\nabcd",
    ),
    ("Connection names the host", "GET / HTTP/1.1\r\nhost: a\r\nconnection: x, Host\r\n\r\n"),
];

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_requests_are_refused_and_the_connection_is_closed() {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    for (name, request) in CASES {
        let stream = format!("{request}GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n");
        let reply = raw(lab.addr, stream.as_bytes()).await;
        let reply = String::from_utf8_lossy(&reply);
        assert!(reply.starts_with("HTTP/1.1 4") || reply.starts_with("HTTP/1.0 4"), "{name}: {reply:?}");
        assert_eq!(reply.matches("HTTP/1.").count(), 1, "{name}: a second answer in {reply:?}");
        assert_eq!(endpoint.served(), 0, "{name}: it reached the endpoint");
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_http2_behind_its_preface_is_closed() {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    let reply = raw(lab.addr, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(!String::from_utf8_lossy(&reply).contains("HTTP/1.1"), "{:?}", String::from_utf8_lossy(&reply));
    assert_eq!(endpoint.served(), 0);
    lab.stop().await;
}

/// Bodies that break after a good head: the request may start, but it never completes and nothing follows it.
const BROKEN_BODIES: &[(&str, &str)] = &[
    ("no chunk size", "\r\nabc\r\n0\r\n\r\n"),
    ("chunk size that is no number", "zz\r\nabc\r\n0\r\n\r\n"),
    ("chunk size that overflows", "fffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
    ("negative chunk size", "-1\r\nabc\r\n0\r\n\r\n"),
    ("chunk longer than its size", "2\r\nabc\r\n0\r\n\r\n"),
    ("chunk without its line end", "3\r\nabc0\r\n\r\n"),
    ("chunk size with 0x", "0x3\r\nabc\r\n0\r\n\r\n"),
];

#[tokio::test(flavor = "multi_thread")]
async fn broken_bodies_end_the_connection() {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    for (name, body) in BROKEN_BODIES {
        let head = "POST /length HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        let stream = format!("{head}{body}GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n");
        let reply = raw(lab.addr, stream.as_bytes()).await;
        let reply = String::from_utf8_lossy(&reply);
        assert!(!reply.contains("HTTP/1.1 2"), "{name}: {reply:?}");
        assert!(reply.matches("HTTP/1.").count() <= 1, "{name}: a second answer in {reply:?}");
    }
    // The endpoint's connections are clean: what is sent next is understood.
    assert_eq!(Client::connect(lab.addr).await.get("/").await.1, "e0");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_are_limited() {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    let long = |n: usize| "x".repeat(n);
    let many: String = (0..200).map(|i| format!("x-{i}: y\r\n")).collect();
    let cases = [
        (format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", long(9_000)), "414"),
        (format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", long(40_000)), "431"),
        (format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n"), "431"),
        (format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}", long(300_000)), "431"),
    ];
    for (request, status) in cases {
        let reply = raw(lab.addr, request.as_bytes()).await;
        let reply = String::from_utf8_lossy(&reply);
        assert!(reply.starts_with(&format!("HTTP/1.1 {status}")), "{status}: {reply:?}");
    }
    assert_eq!(endpoint.served(), 0);
    lab.stop().await;
}
