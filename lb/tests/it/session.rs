//! Sessions of a rule: clients come back to their endpoint, in HTTP/1.1 and HTTP/2, and are given another when it is gone.

use std::sync::Arc;
use std::time::Duration;

use scaleup_lb::policy::{RequestPolicy, SessionCarrier, SessionPolicy};
use scaleup_lb::snapshot::routes::RulePlan;

use crate::h2_support::H2Client;
use crate::routed::*;

fn keeping(carrier: SessionCarrier, timed: bool) -> RequestPolicy {
    let hour = timed.then_some(Duration::from_secs(3_600));
    let session = SessionPolicy { name: "x-sid".into(), carrier, absolute: hour, idle: hour };
    RequestPolicy { session: Some(Arc::new(session)), ..RequestPolicy::default() }
}

fn cookie(permanent: bool) -> SessionCarrier {
    SessionCarrier::Cookie { path: "/".into(), permanent }
}

/// Two Services of two endpoints each; all requests go to the first unless a session says otherwise.
async fn world(policy: RequestPolicy) -> (Vec<Scripted>, Setup) {
    let mut endpoints = Vec::new();
    for name in ["a1", "a2", "b1", "b2"] {
        endpoints.push(Scripted::named(name).await);
    }
    let setup = Setup::default()
        .service("a", &[endpoints[0].addr, endpoints[1].addr])
        .service("b", &[endpoints[2].addr, endpoints[3].addr])
        .rules(weighted(policy, 1, 0));
    (endpoints, setup)
}

fn weighted(policy: RequestPolicy, a: u32, b: u32) -> Vec<RulePlan> {
    vec![RulePlan { backends: vec![share("a", a), share("b", b)], ..governed("/", "a", policy) }]
}

async fn with(lab: &Routed, field: &str) -> Answer {
    lab.send(&format!("GET / HTTP/1.1\r\nhost: a.example\r\n{field}\r\nconnection: close\r\n\r\n")).await
}

/// `name=value` of the cookie that an answer sets.
fn given(answer: &Answer) -> &str {
    let field = answer.header("set-cookie").unwrap_or_else(|| panic!("no cookie: {answer:?}"));
    field.split(';').next().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_leads_back_whatever_the_weights_say() {
    let (endpoints, setup) = world(keeping(cookie(false), false)).await;
    let lab = Routed::start(&setup).await;
    let first = lab.get("/").await;
    let held = given(&first).to_owned();
    let field = first.header("set-cookie").unwrap();
    assert!(field.ends_with("; path=/; httponly; samesite=lax"), "{field}");
    let port = endpoints[0].addr.port().to_string();
    assert!(held.starts_with("x-sid=") && !held.contains("127.0.0.1") && !held.contains(&port), "{held}");
    for _ in 0..6 {
        let again = with(&lab, &format!("cookie: theme=dark; {held}")).await;
        assert_eq!((again.body.as_str(), again.header("set-cookie")), (first.body.as_str(), None));
    }
    // Without it the turn goes on, and each endpoint has a name of its own.
    let other = lab.get("/").await;
    assert_ne!((other.body.as_str(), given(&other)), (first.body.as_str(), held.as_str()));
    // Weights are for new sessions: this one stays although its Service gets none any more.
    lab.publish(&setup.clone().rules(weighted(keeping(cookie(false), false), 0, 1)));
    let stays = with(&lab, &format!("cookie: {held}")).await;
    assert_eq!((stays.body.as_str(), stays.header("set-cookie")), (first.body.as_str(), None));
    assert!(lab.get("/").await.body.starts_with('b'));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_endpoint_is_gone_another_takes_over() {
    let (endpoints, setup) = world(keeping(cookie(false), false)).await;
    let lab = Routed::start(&setup).await;
    let first = lab.get("/").await;
    let held = given(&first).to_owned();
    let left = if first.body == "a1" { 1 } else { 0 };
    lab.publish(&setup.clone().service("a", &[endpoints[left].addr]));
    let moved = with(&lab, &format!("cookie: {held}")).await;
    assert_ne!(moved.body, first.body);
    let new = given(&moved).to_owned();
    assert_ne!(new, held);
    assert_eq!(with(&lab, &format!("cookie: {new}")).await.header("set-cookie"), None);
    // One that refuses connections is passed over within the request.
    let nobody = crate::support::dead();
    lab.publish(&setup.clone().service("a", &[nobody]));
    lab.publish(&setup.service("a", &[endpoints[left].addr, nobody]));
    let still = with(&lab, &format!("cookie: {new}")).await;
    assert_eq!((still.body.as_str(), still.header("set-cookie")), (moved.body.as_str(), None));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_tokens_are_as_good_as_none() {
    let (_endpoints, setup) = world(keeping(cookie(true), true)).await;
    let lab = Routed::start(&setup).await;
    let first = lab.get("/").await;
    let held = given(&first).to_owned();
    let field = first.header("set-cookie").unwrap();
    assert!(field.contains("; max-age=3600; "), "permanent: {field}");
    assert_eq!(with(&lab, &format!("cookie: {held}")).await.header("set-cookie"), None);
    let long = "f".repeat(4_000);
    // The time of the beginning, changed.
    let (start, end) = held.split_at("x-sid=".len() + 32);
    let forged = format!("{start}ffffffff{}", &end[8..]);
    for value in [&*forged, "x-sid=", "x-sid=127.0.0.1:80", "x-sid=%00", &format!("x-sid={long}"), start] {
        let answer = with(&lab, &format!("cookie: {value}")).await;
        assert_eq!(answer.status, 200);
        assert!(given(&answer).len() == held.len(), "a new session for {value}");
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_leads_back_and_so_it_does_in_http2() {
    let (_endpoints, setup) = world(keeping(SessionCarrier::Header, false)).await;
    let lab = Routed::start(&setup).await;
    let first = lab.get("/").await;
    let token = first.header("x-sid").expect("a token").to_owned();
    assert_eq!(first.header("set-cookie"), None);
    for _ in 0..4 {
        let again = with(&lab, &format!("X-Sid: {token}")).await;
        assert_eq!((again.body.as_str(), again.header("x-sid")), (first.body.as_str(), None));
    }
    let mut client = H2Client::connect(lab.addr).await;
    let fresh = client.get("/").await;
    assert_eq!(fresh.field("x-sid").len(), token.len());
    for _ in 0..4 {
        let again = client.try_send("GET", "/", &[("x-sid", &token)], b"").await.unwrap();
        assert_eq!((again.text(), again.fields.get("x-sid")), (first.body.clone(), None));
    }
    // With cookies, which HTTP/2 clients may send in parts (RFC 9113 §8.2.3).
    lab.publish(&setup.clone().rules(weighted(keeping(cookie(false), false), 1, 0)));
    let fresh = client.get("/").await;
    let held = fresh.field("set-cookie").split(';').next().unwrap().to_owned();
    for _ in 0..4 {
        let fields = [("cookie", "theme=dark"), ("cookie", &held)];
        let again = client.try_send("GET", "/", &fields, b"").await.unwrap();
        assert_eq!((again.text(), again.fields.get("set-cookie")), (fresh.text(), None));
    }
    lab.stop().await;
}
