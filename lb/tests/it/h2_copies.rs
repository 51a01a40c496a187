//! Copies and rivals of HTTP/2 clients' requests: mirrors and hedging.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use scaleup_lb::policy::RequestPolicy;

use crate::h2_support::*;
use crate::routed::*;
use crate::support::PATIENCE;

const GRPC: &[(&str, &str)] = &[("content-type", "application/grpc"), ("te", "trailers")];

#[tokio::test(flavor = "multi_thread")]
async fn copies_are_sent_and_never_waited_for() {
    let (main, copies) = (Scripted::named("main").await, Scripted::start(|_, _| Act::Hang).await);
    let lab = Routed::start(&mirrored(&main, &copies)).await;
    let mut client = H2Client::connect(lab.addr).await;
    for _ in 0..5 {
        assert_eq!(client.get("/get").await.text(), "main");
    }
    let sized = client.try_send("POST", "/p", &[("content-length", "5")], b"hello").await.unwrap();
    let open_ended = client.try_send("POST", "/p", &[], b"abc").await.unwrap();
    // Too large for a copy.
    let large = client.try_send("POST", "/p", &[("content-length", "100000")], &[b'x'; 100_000]).await.unwrap();
    assert_eq!([sized, open_ended, large].map(|answer| answer.text()), ["main"; 3]);
    assert_eq!(client.get("/last").await.text(), "main");
    let seen = copies.until_seen(8).await;
    assert_eq!(seen.iter().filter(|text| text.starts_with("GET /get ")).count(), 5);
    assert!(seen.iter().any(|text| text.starts_with("POST ") && text.ends_with("\r\n\r\nhello")), "{seen:?}");
    assert!(seen.iter().any(|text| text.ends_with("3\r\nabc\r\n0\r\n\r\n")), "{seen:?}");
    assert!(seen.iter().any(|text| text.starts_with("GET /last ")), "{seen:?}");
    assert!(seen.iter().all(|text| text.contains("\r\nx-forwarded-for: 127.")), "{seen:?}");
    assert_eq!(seen.len(), 8, "{seen:?}");
    lab.stop().await;
}

/// A mirror of a GRPCRoute is asked over HTTP/2, whatever its port says.
#[tokio::test(flavor = "multi_thread")]
async fn calls_of_grpc_are_mirrored() {
    let (main, copies) = (H2Endpoint::start("main").await, H2Endpoint::start("copies").await);
    let mut rule = filtered("/", "main", vec![mirror("copies")]);
    rule.id.kind = "GRPCRoute";
    let setup = Setup::default().service("main", &[main.addr]).service("copies", &[copies.addr]).rules(vec![rule]);
    let lab = Routed::start(&setup).await;
    let mut client = H2Client::connect(lab.addr).await;
    for _ in 0..3 {
        let answer = client.try_send("POST", "/echo", GRPC, b"\0\0\0\0\0").await.unwrap();
        assert_eq!(answer.body, b"\0\0\0\0\0");
    }
    let copied = async {
        while copies.served() < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, copied).await.expect("the mirror sees the calls");
    assert_eq!((main.served(), copies.served()), (3, 3));
    lab.stop().await;
}

fn hedged() -> RequestPolicy {
    RequestPolicy { hedging: Some((Duration::from_millis(20), 1)), ..RequestPolicy::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rival_answers_for_a_slow_endpoint() {
    let (silent, quick) = (Scripted::start(|_, _| Act::Hang).await, Scripted::named("quick").await);
    let setup = Setup::default()
        .service("a", &[silent.addr, quick.addr])
        .service("quick", &[quick.addr])
        .rules(vec![governed("/", "a", hedged()), governed("/one", "quick", hedged())]);
    let lab = Routed::start(&setup).await;
    let mut client = H2Client::connect(lab.addr).await;
    for _ in 0..6 {
        assert_eq!(client.get("/").await.text(), "quick");
    }
    assert!(!silent.seen().is_empty());
    let (asked, opened) = (quick.seen().len(), quick.connections());
    for _ in 0..3 {
        assert_eq!(client.get("/one").await.text(), "quick");
    }
    assert_eq!(quick.seen().len(), asked + 3, "who answers in time has no rival");
    assert!(quick.connections() <= opened + 1, "connections are used again");
    // What is not idempotent is asked once, so it waits.
    let (mut answered, before) = (0, silent.seen().len() + quick.seen().len());
    for _ in 0..2 {
        let post = client.try_send("POST", "/", &[], b"");
        let waited = tokio::time::timeout(Duration::from_millis(300), post).await;
        answered += u32::from(waited.is_ok());
    }
    assert_eq!((answered, silent.seen().len() + quick.seen().len()), (1, before + 2));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_loses_a_race_over_http2_is_cancelled() {
    let (slow, quick) = (H2Endpoint::start("slow").await, H2Endpoint::start("quick").await);
    // `/never` is never answered: whoever is asked first loses to nobody, so the client's time runs out and both are cancelled.
    let policy = RequestPolicy { response_timeout: Some(Duration::from_millis(300)), ..hedged() };
    let setup =
        Setup::default().service("a", &[slow.addr, quick.addr]).h2c("a").rules(vec![governed("/", "a", policy)]);
    let lab = Routed::start(&setup).await;
    let mut client = H2Client::connect(lab.addr).await;
    assert_eq!(client.get("/never").await.status, 504);
    slow.until_cancelled(1).await;
    quick.until_cancelled(1).await;
    assert_eq!(slow.requests.load(Relaxed) + quick.requests.load(Relaxed), 2, "one rival");
    let whole = client.get("/big").await;
    assert_eq!((whole.status, whole.body.len()), (200, 1024 * 1024));
    lab.stop().await;
}
