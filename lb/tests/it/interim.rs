//! Responses of class 1xx on their way from endpoints to clients of either version (RFC 9110 §15.2, RFC 8297).

use scaleup_lb::snapshot::routes::{Filter, HeaderEdits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::h2_support::*;
use crate::routed::*;
use crate::support::{PATIENCE, read_head};

const HINTS: &str =
    "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: x-hop\r\nX-Hop: 1\r\nX-Gone: 1\r\n\r\n";

/// An HTTP/1.1 endpoint. Paths: `/hints` a 103, a 102, a 100, and the response; `/floods` more than anybody wants.
async fn scripted() -> Scripted {
    Scripted::start(|request, _| {
        let before = match request.split(' ').nth(1) {
            Some("/hints") => {
                format!("{HINTS}HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 100 Continue\r\nx-not: 1\r\n\r\n")
            }
            Some("/floods") => HINTS.repeat(100),
            _ => String::new(),
        };
        Act::Say((before + "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").into_bytes())
    })
    .await
}

/// Both endpoints behind a filter that takes `x-gone` away and adds `x-added`.
async fn lab(scripted: &Scripted, modern: &H2Endpoint) -> Routed {
    let edits = || {
        let (set, remove) = (vec![("x-added".into(), "1".into())], vec!["x-gone".into()]);
        vec![Filter::ResponseHeaders(HeaderEdits { set, add: vec![], remove })]
    };
    let mut rules = vec![filtered("/", "a", edits())];
    let mut over_h2 = filtered("/", "modern", edits());
    over_h2.headers = vec![scaleup_lb::snapshot::routes::FieldMatch {
        name: "x-to".into(),
        value: scaleup_lb::snapshot::routes::ValueMatch::Exact("h2".into()),
    }];
    rules.insert(0, over_h2);
    let setup =
        Setup::default().service("a", &[scripted.addr]).service("modern", &[modern.addr]).h2c("modern").rules(rules);
    Routed::start(&setup).await
}

#[tokio::test(flavor = "multi_thread")]
async fn early_hints_reach_clients_of_http1() {
    let (scripted, modern) = (scripted().await, H2Endpoint::start("h0").await);
    let lab = lab(&scripted, &modern).await;
    for to in ["h1", "h2"] {
        let mut stream = TcpStream::connect(lab.addr).await.unwrap();
        // Two on one connection: it stays in step.
        for _ in 0..2 {
            let request = format!("GET /hints HTTP/1.1\r\nhost: a\r\nx-to: {to}\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let hints = read_head(&mut stream).await.to_lowercase();
            assert_eq!(hints, "http/1.1 103 early hints\r\nlink: </a.css>; rel=preload\r\n\r\n", "{to}");
            let mut head = read_head(&mut stream).await.to_lowercase();
            if to == "h1" {
                assert_eq!(head, "http/1.1 102 processing\r\n\r\n");
                head = read_head(&mut stream).await.to_lowercase();
            }
            assert!(
                head.starts_with("http/1.1 200 ") && head.contains("x-added: 1") && !head.contains("x-gone"),
                "{head}"
            );
            let mut body = [0; 2];
            if head.contains("content-length: 2") {
                stream.read_exact(&mut body).await.unwrap();
            } else {
                // `2`, the name, the last chunk.
                stream.read_exact(&mut [0; 3]).await.unwrap();
                stream.read_exact(&mut body).await.unwrap();
                stream.read_exact(&mut [0; 7]).await.unwrap();
            }
            assert!([*b"ok", *b"h0"].contains(&body), "{body:?}");
        }
        // Clients of HTTP/1.0 know none.
        let old = lab.send(&format!("GET /hints HTTP/1.0\r\nhost: a\r\nx-to: {to}\r\n\r\n")).await;
        assert_eq!(old.status, 200, "{old:?}");
        let flood =
            lab.send(&format!("GET /floods HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-to: {to}\r\n\r\n")).await;
        assert_eq!(flood.body.matches("HTTP/1.1 103").count() + 1, 8, "{flood:?}");
        assert!(flood.body.contains("HTTP/1.1 502"), "{flood:?}");
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn early_hints_reach_clients_of_http2() {
    let (scripted, modern) = (scripted().await, H2Endpoint::start("h0").await);
    let lab = lab(&scripted, &modern).await;
    let mut client = H2Client::connect(lab.addr).await;
    for (to, statuses) in [("h1", &[103, 102][..]), ("h2", &[103])] {
        for (path, end) in [("/hints", 200), ("/floods", 502)] {
            let (mut response, _) = client.open("GET", path, &[("x-to", to)], true).await;
            let mut interims = Vec::new();
            let wait = async {
                while let Some(interim) = std::future::poll_fn(|cx| response.poll_informational(cx)).await {
                    interims.push(interim.unwrap());
                }
            };
            tokio::time::timeout(PATIENCE, wait).await.unwrap();
            let fields = interims[0].headers();
            assert_eq!((fields.len(), fields["link"].as_bytes()), (1, &b"</a.css>; rel=preload"[..]), "{fields:?}");
            let seen: Vec<u16> = interims.iter().map(|interim| interim.status().as_u16()).collect();
            if path == "/hints" {
                assert_eq!(seen, statuses, "{to}");
            } else {
                assert_eq!(seen, [103; 8], "{to}");
            }
            let answer = Whole::read(response.await.unwrap()).await.unwrap();
            assert_eq!((answer.status, answer.field("x-gone")), (end, ""), "{to} {path}");
        }
    }
    lab.stop().await;
}
