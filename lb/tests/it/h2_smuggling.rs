//! HTTP/2 requests that would become two in HTTP/1.1, or another one: refused, or forwarded in a form that cannot be misread. The endpoint
//! records every byte; whatever the client says, it must see whole requests of ours and nothing that the client hid in them.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::h2_support::Outcome::{GoAway, Reset, Status};
use crate::h2_support::*;
use crate::support::*;

/// Answers each request head with 200 and records all bytes.
async fn recorder() -> (std::net::SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let seen: Arc<Mutex<Vec<u8>>> = Arc::default();
    tokio::spawn({
        let seen = seen.clone();
        async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let seen = seen.clone();
                tokio::spawn(async move {
                    let mut bytes = vec![0; 65_536];
                    while let Ok(read @ 1..) = stream.read(&mut bytes).await {
                        seen.lock().extend_from_slice(&bytes[..read]);
                        let response = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                        if stream.write_all(response).await.is_err() {
                            return;
                        }
                    }
                });
            }
        }
    });
    (addr, seen)
}

const HIDDEN: &str = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";

/// What it is, fields, body.
type Row = (&'static str, &'static [(&'static str, &'static str)], &'static str);

/// Name, fields beside the usual pseudo-header fields, body. `:`-names replace the usual ones.
const CASES: &[Row] = &[
    ("length 0 before a body", &[("content-length", "0")], HIDDEN),
    ("length shorter than the body", &[("content-length", "3")], HIDDEN),
    ("length longer than the body", &[("content-length", "300")], HIDDEN),
    ("two lengths", &[("content-length", "3"), ("content-length", "36")], HIDDEN),
    ("two equal lengths", &[("content-length", "36"), ("content-length", "36")], HIDDEN),
    ("a list of lengths", &[("content-length", "36, 36")], HIDDEN),
    ("a signed length", &[("content-length", "+36")], HIDDEN),
    ("a negative length", &[("content-length", "-1")], HIDDEN),
    ("a hexadecimal length", &[("content-length", "0x24")], HIDDEN),
    ("an empty length", &[("content-length", "")], HIDDEN),
    ("an endless length", &[("content-length", "99999999999999999999999")], HIDDEN),
    ("a length behind a space", &[("content-length", " 36")], HIDDEN),
    ("a length before a space", &[("content-length", "36 ")], HIDDEN),
    ("transfer-encoding", &[("transfer-encoding", "chunked")], "0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"),
    ("transfer-encoding beside a length", &[("content-length", "5"), ("transfer-encoding", "chunked")], "0\r\n\r\nX"),
    ("transfer-encoding: identity", &[("transfer-encoding", "identity")], HIDDEN),
    ("line end in a value", &[("x", "a\r\ntransfer-encoding: chunked")], "0\r\n\r\nX"),
    ("a whole request in a value", &[("x", "a\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a")], ""),
    ("bare line feed in a value", &[("x", "a\ncontent-length: 300")], ""),
    ("bare carriage return in a value", &[("x", "a\rcontent-length: 300")], ""),
    ("NUL in a value", &[("x", "a\0b")], ""),
    ("line end in a name", &[("x: y\r\ntransfer-encoding", "chunked")], "0\r\n\r\nX"),
    ("colon in a name", &[("transfer-encoding: chunked\r\nx", "y")], ""),
    ("a name that is a line", &[("content-length: 300", "")], ""),
    ("space behind a name", &[("transfer-encoding ", "chunked")], "0\r\n\r\n"),
    ("upper case name", &[("Transfer-Encoding", "chunked")], "0\r\n\r\n"),
    ("NUL in a name", &[("x\0y", "z")], ""),
    ("space in the path", &[(":path", "/ HTTP/1.1\r\nx: y")], ""),
    ("a request in the path", &[(":path", "/ HTTP/1.1\r\nhost: a\r\n\r\nGET /smuggled")], ""),
    ("a path of two words", &[(":path", "/a /smuggled")], ""),
    ("tab in the path", &[(":path", "/a\t/smuggled")], ""),
    ("path without a slash", &[(":path", "smuggled")], ""),
    ("an absolute URL as path", &[(":path", "http://internal/smuggled")], ""),
    ("an authority as path", &[(":path", "internal:80")], ""),
    ("an asterisk for POST", &[(":path", "*")], ""),
    ("line end in the method", &[(":method", "GET /smuggled HTTP/1.1\r\nx: y\r\n\r\nGET")], ""),
    ("space in the method", &[(":method", "GET /smuggled")], ""),
    ("empty method", &[(":method", "")], ""),
    ("line end in the authority", &[(":authority", "a\r\nx: y")], ""),
    ("space in the authority", &[(":authority", "a b")], ""),
    ("user information in the authority", &[(":authority", "a@b")], ""),
    ("a path in the authority", &[(":authority", "a/smuggled")], ""),
    ("a list as authority", &[(":authority", "a,b")], ""),
    ("line end in the scheme", &[(":scheme", "http\r\nx: y")], ""),
    ("a scheme with a URL", &[(":scheme", "http://a/smuggled?")], ""),
    ("another scheme", &[(":scheme", "ftp")], ""),
    ("Host beside another authority", &[("host", "internal")], ""),
    ("two hosts", &[("host", "a"), ("host", "internal")], ""),
    ("line end in Host", &[("host", "a\r\nx: y")], ""),
    ("connection names the length", &[("connection", "content-length"), ("content-length", "36")], HIDDEN),
    ("connection: upgrade", &[("connection", "upgrade"), ("upgrade", "h2c")], ""),
    ("upgrade alone", &[("upgrade", "websocket")], ""),
    ("a second path", &[("x", "y"), (":path", "/smuggled")], ""),
    ("line end in a cookie crumb", &[("cookie", "a=1"), ("cookie", "b\r\n\r\nGET /smuggled HTTP/1.1")], ""),
    ("te with more than trailers", &[("te", "trailers, chunked")], ""),
];

fn head_of(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut all: Vec<(&str, &str)> = Vec::new();
    // The case "a second path" wants its pseudo-header field where it stands.
    let replaces = |name: &str| fields.first().is_some_and(|(first, _)| *first == name);
    for usual in [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a")] {
        if !replaces(usual.0) {
            all.push(usual);
        }
    }
    let at = if fields[0].0.starts_with(':') { 0 } else { all.len() };
    for (index, field) in fields.iter().enumerate() {
        all.insert(at + index, *field);
    }
    block(&all)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_hides_in_a_request() {
    let (endpoint, seen) = recorder().await;
    let lab = Lab::http(&[endpoint]).await;
    for (name, fields, body) in CASES {
        seen.lock().clear();
        let mut raw = Raw::connect(lab.addr).await;
        let ended = if body.is_empty() { END_STREAM } else { 0 };
        let mut bytes = frame(HEADERS, END_HEADERS | ended, 1, &head_of(fields));
        if !body.is_empty() {
            bytes.extend(frame(DATA, END_STREAM, 1, body.as_bytes()));
        }
        raw.write(&bytes).await;
        let got = raw.outcome(1).await;
        let refused = match got {
            Status(status) => (400..500).contains(&status),
            Reset(_) | GoAway(_) => true,
            Outcome::Closed => false,
        };
        assert!(refused, "{name}: {got:?}");
        let seen = String::from_utf8_lossy(&seen.lock()).into_owned();
        assert!(!seen.contains("smuggled"), "{name}: {seen:?}");
    }
    // The endpoint's connections are clean.
    let mut raw = Raw::connect(lab.addr).await;
    raw.write(&get(1)).await;
    assert_eq!(raw.outcome(1).await, Status(200));
    lab.stop().await;
}

/// What may look like HTTP/1.1 in a body stays payload: chunks are ours.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_stay_bodies() {
    let (endpoint, seen) = recorder().await;
    let lab = Lab::http(&[endpoint]).await;
    for body in [HIDDEN, "0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n", "\r\n0\r\n\r\n"] {
        seen.lock().clear();
        let mut raw = Raw::connect(lab.addr).await;
        let head = frame(HEADERS, END_HEADERS, 1, &request("POST", "/", &[]));
        raw.write(&[head, frame(DATA, END_STREAM, 1, body.as_bytes())].concat()).await;
        assert_eq!(raw.outcome(1).await, Status(200));
        let seen = String::from_utf8_lossy(&seen.lock()).into_owned();
        let (head, sent) = seen.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("transfer-encoding: chunked") && !head.contains("content-length"), "{head:?}");
        assert_eq!(sent, format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()));
    }
    lab.stop().await;
}

/// Trailers cannot frame, route or hide.
#[tokio::test(flavor = "multi_thread")]
async fn trailers_are_harmless() {
    let (endpoint, seen) = recorder().await;
    let lab = Lab::http(&[endpoint]).await;
    let mut raw = Raw::connect(lab.addr).await;
    let head = frame(HEADERS, END_HEADERS, 1, &request("POST", "/", &[("te", "trailers")]));
    let trailers = block(&[("content-length", "300"), ("host", "internal"), ("x-sum", "1")]);
    let bytes = [head, frame(DATA, 0, 1, b"abc"), frame(HEADERS, END_STREAM | END_HEADERS, 1, &trailers)].concat();
    raw.write(&bytes).await;
    assert_eq!(raw.outcome(1).await, Status(200));
    let ended = async {
        while !String::from_utf8_lossy(&seen.lock()).ends_with("0\r\nx-sum: 1\r\n\r\n") {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("only the harmless trailer arrives");
    let seen = String::from_utf8_lossy(&seen.lock()).into_owned();
    assert!(!seen.contains("300") && !seen.contains("internal"), "{seen:?}");
    lab.stop().await;
}
