//! What policies say about requests, on the wire.

use std::time::{Duration, Instant};

use scaleup_lb::policy::{Algorithm, HashSource, RequestPolicy, Retries, ServicePolicy};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::routed::*;

/// Short for waiting, long for anything that must not take it.
const A_WHILE: Duration = Duration::from_millis(300);

fn retries(statuses: &[u16], attempts: u32) -> RequestPolicy {
    let retries = Retries { attempts, statuses: statuses.to_vec(), ..Retries::default() };
    RequestPolicy { retries, ..RequestPolicy::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_may_be_asked_for_again_elsewhere() {
    let bad = Scripted::start(|_, _| Act::reply(503, "bad")).await;
    let chunked = Scripted::start(|_, _| {
        Act::Say(b"HTTP/1.1 502 X\r\ntransfer-encoding: chunked\r\n\r\n3\r\nbad\r\n0\r\n\r\n".to_vec())
    })
    .await;
    let good = Scripted::named("good").await;
    let setup = Setup::default()
        .service("a", &[bad.addr, chunked.addr, good.addr])
        .rules(vec![governed("/", "a", retries(&[502, 503], 2)), governed("/none", "a", retries(&[], 2))]);
    let lab = Routed::start(&setup).await;
    for _ in 0..40 {
        let answer = lab.get("/").await;
        assert_eq!((answer.status, &*answer.body), (200, "good"));
    }
    for endpoint in [&bad, &chunked] {
        let (connections, requests) = (endpoint.connections(), endpoint.seen().len() as u64);
        assert!(
            connections * 2 <= requests,
            "{connections} connections for {requests} requests whose answer was dropped"
        );
    }
    // With a body, a request is sent once.
    let before = bad.seen().len() + chunked.seen().len() + good.seen().len();
    for _ in 0..3 {
        lab.send("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\nconnection: close\r\n\r\nx").await;
    }
    assert_eq!(bad.seen().len() + chunked.seen().len() + good.seen().len(), before + 3);
    // And without a policy an answer is an answer.
    let mut statuses = Vec::new();
    for _ in 0..9 {
        statuses.push(lab.get("/none").await.status);
    }
    assert!(statuses.contains(&503) && statuses.contains(&502), "{statuses:?}");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_answer_counts_whatever_it_is() {
    let endpoint = Scripted::start(|_, before| Act::reply(if before < 9 { 503 } else { 200 }, "x")).await;
    let mut policy = retries(&[503], 3);
    policy.retries.backoff = Some(Duration::from_millis(1));
    let setup = Setup::default().service("a", &[endpoint.addr]).rules(vec![governed("/", "a", policy)]);
    let lab = Routed::start(&setup).await;
    for (status, asked) in [(503, 4), (503, 8), (200, 10)] {
        let answer = lab.get("/").await;
        assert_eq!((answer.status, endpoint.seen().len()), (status, asked));
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_endpoint_is_a_504_in_time_or_another_is_asked() {
    let (silent, good) = (Scripted::start(|_, _| Act::Hang).await, Scripted::named("good").await);
    let once = RequestPolicy { response_timeout: Some(A_WHILE), ..RequestPolicy::default() };
    let total = RequestPolicy { request_timeout: Some(A_WHILE), ..RequestPolicy::default() };
    let mut again = once.clone();
    again.retries.on_timeout = true;
    let setup =
        Setup::default().service("silent", &[silent.addr]).service("mixed", &[silent.addr, good.addr]).rules(vec![
            governed("/once", "silent", once),
            governed("/total", "silent", total),
            governed("/again", "mixed", again),
        ]);
    let lab = Routed::start(&setup).await;
    for path in ["/once", "/total"] {
        let started = Instant::now();
        assert_eq!(lab.get(path).await.status, 504, "{path}");
        assert!(started.elapsed() >= A_WHILE, "{path}");
    }
    for _ in 0..4 {
        assert_eq!(lab.get("/again").await.body, "good");
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_takes_too_long_in_its_body_is_cut_off() {
    let endpoint = Scripted::start(|_, _| {
        // More is announced than ever comes.
        Act::Say([b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n".to_vec(), vec![b'x'; 50_000]].concat())
    })
    .await;
    let policy = RequestPolicy { request_timeout: Some(A_WHILE), ..RequestPolicy::default() };
    let setup = Setup::default().service("a", &[endpoint.addr]).rules(vec![governed("/", "a", policy)]);
    let lab = Routed::start(&setup).await;
    let answer = lab.get("/").await;
    assert!(answer.status == 200 && answer.body.len() <= 50_000);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rival_answers_for_a_slow_endpoint() {
    let (silent, quick) = (Scripted::start(|_, _| Act::Hang).await, Scripted::named("quick").await);
    let policy = RequestPolicy { hedging: Some((Duration::from_millis(20), 1)), ..RequestPolicy::default() };
    let setup = Setup::default()
        .service("a", &[silent.addr, quick.addr])
        .service("quick", &[quick.addr])
        .rules(vec![governed("/", "a", policy.clone()), governed("/one", "quick", policy)]);
    let lab = Routed::start(&setup).await;
    for _ in 0..6 {
        assert_eq!(lab.get("/").await.body, "quick");
    }
    assert!(!silent.seen().is_empty());
    let asked = quick.seen().len();
    for _ in 0..3 {
        assert_eq!(lab.get("/one").await.body, "quick");
    }
    assert_eq!(quick.seen().len(), asked + 3, "who answers in time has no rival");
    // What is not idempotent is asked once, so it waits.
    let post = "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let (mut both, before) = (0, silent.seen().len() + quick.seen().len());
    for _ in 0..2 {
        let waited = tokio::time::timeout(A_WHILE, lab.send(post)).await;
        both += u32::from(waited.is_ok());
    }
    assert_eq!((both, silent.seen().len() + quick.seen().len()), (1, before + 2));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_have_a_largest_size() {
    let endpoint = Scripted::named("ok").await;
    let policy = RequestPolicy { max_body_bytes: Some(10), ..RequestPolicy::default() };
    let setup = Setup::default().service("a", &[endpoint.addr]).rules(vec![governed("/", "a", policy)]);
    let lab = Routed::start(&setup).await;
    let post = |framing: &str, body: &str| {
        format!("POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{framing}\r\n\r\n{body}")
    };
    for (framing, body, status) in [
        ("content-length: 10", "0123456789", 200),
        ("content-length: 11", "0123456789x", 413),
        ("transfer-encoding: chunked", "a\r\n0123456789\r\n0\r\n\r\n", 200),
        ("transfer-encoding: chunked", "a\r\n0123456789\r\n1\r\nx\r\n0\r\n\r\n", 413),
    ] {
        assert_eq!(lab.send(&post(framing, body)).await.status, status, "{framing} {body}");
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_the_affinity_cookie_gets_one() {
    let endpoint = Scripted::named("ok").await;
    let policy = ServicePolicy {
        algorithm: Some(Algorithm::Maglev),
        hash_on: vec![HashSource::Cookie("lb".into(), "/".into(), None)],
        ..ServicePolicy::default()
    };
    let setup = Setup::default().service_with("a", &[endpoint.addr], policy).rules(vec![rule("/", "a")]);
    let lab = Routed::start(&setup).await;
    let answer = lab.get("/").await;
    let cookie = answer.header("set-cookie").unwrap();
    assert!(cookie.starts_with("lb=") && cookie.contains("; path=/"), "{cookie}");
    let with = "GET / HTTP/1.1\r\nhost: a\r\ncookie: x=1; lb=2\r\nconnection: close\r\n\r\n";
    assert_eq!(lab.send(with).await.header("set-cookie"), None);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stops_coming_closes_the_connection() {
    let endpoint = Scripted::named("ok").await;
    let setup = Setup::default().service("a", &[endpoint.addr]).rules(vec![rule("/", "a")]);
    let lab = Routed::configured(&setup, |config| {
        config.proxy.body_idle_timeout = A_WHILE;
        config.proxy.header_read_timeout = A_WHILE;
    })
    .await;
    let mut stream = TcpStream::connect(lab.addr).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhalf").await.unwrap();
    let mut rest = Vec::new();
    let closed = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest);
    let _ = tokio::time::timeout(crate::support::PATIENCE, closed).await.expect("the connection is closed");
    assert!(rest.is_empty());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgraded_connection_ends_after_its_longest_silence() {
    let endpoint = Scripted::start(|_, before| match before {
        0 => Act::Say(b"HTTP/1.1 101 X\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n".to_vec()),
        _ => Act::Say(b"pong".to_vec()),
    })
    .await;
    let policy = RequestPolicy { idle_timeout: Some(A_WHILE), ..RequestPolicy::default() };
    let setup = Setup::default().service("a", &[endpoint.addr]).rules(vec![governed("/", "a", policy)]);
    let lab = Routed::start(&setup).await;
    let mut stream = TcpStream::connect(lab.addr).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n").await.unwrap();
    assert!(crate::support::read_head(&mut stream).await.starts_with("HTTP/1.1 101 "));
    let started = Instant::now();
    stream.write_all(b"ping\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let closed = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest);
    let _ = tokio::time::timeout(crate::support::PATIENCE, closed).await.expect("the connection is closed");
    assert_eq!(rest, b"pong");
    assert!(started.elapsed() >= A_WHILE);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_are_bounded_on_routes_too() {
    let endpoint = Scripted::named("ok").await;
    let setup = Setup::default().service("a", &[endpoint.addr]).rules(vec![rule("/", "a")]);
    let lab = Routed::start(&setup).await;
    let long = "x".repeat(9_000);
    assert_eq!(lab.get(&format!("/{long}")).await.status, 414);
    let many = "x-a: 1\r\n".repeat(101);
    assert_eq!(lab.send(&format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n")).await.status, 431);
    let large = format!("x-a: {long}\r\n").repeat(4);
    assert_eq!(lab.send(&format!("GET / HTTP/1.1\r\nhost: a\r\n{large}\r\n")).await.status, 431);
    let smuggled = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_eq!(lab.send(smuggled).await.status, 400);
    assert!(endpoint.seen().is_empty());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_is_tried_elsewhere_unless_the_policy_says_no() {
    let (closing, good) = (Scripted::start(|_, _| Act::Close).await, Scripted::named("good").await);
    let mut never = RequestPolicy::default();
    never.retries.on_reset = false;
    let setup = Setup::default()
        .service("a", &[closing.addr, good.addr])
        .rules(vec![rule("/", "a"), governed("/never", "a", never)]);
    let lab = Routed::start(&setup).await;
    let mut statuses = Vec::new();
    for _ in 0..8 {
        assert_eq!(lab.get("/").await.body, "good");
        statuses.push(lab.get("/never").await.status);
    }
    assert!(!closing.seen().is_empty());
    // What is not idempotent is sent once, whatever it meets.
    for _ in 0..8 {
        statuses.push(lab.send("POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.status);
    }
    assert!(statuses[..8].contains(&502) && statuses[8..].contains(&502), "{statuses:?}");
    lab.stop().await;
}
