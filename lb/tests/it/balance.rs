//! Choosing endpoints through real sockets: slow and failing ones, health, affinity, slow start, locality.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use hyper::{HeaderMap, StatusCode};
use scaleup_lb::policy::*;
use scaleup_lb::snapshot::{NodePlan, Snapshot};
use tokio::net::TcpListener;

use crate::mmdb;
use crate::scripted::*;
use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_endpoint_gets_little_traffic() {
    let endpoints = Scripted::several::<3>().await;
    endpoints[1].script.delay_ms.store(200, Relaxed);
    let lab = lab(&endpoints, ServicePolicy::default(), RequestPolicy::default()).await;
    load(&lab, 8, 100).await;
    let slow = endpoints[1].served();
    assert!(slow <= 80, "{slow} of 800 requests went to the slow endpoint");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_fails_fast_gets_little_traffic() {
    let endpoints = Scripted::several::<3>().await;
    endpoints.iter().for_each(|endpoint| endpoint.script.delay_ms.store(5, Relaxed));
    endpoints[1].script.delay_ms.store(0, Relaxed);
    endpoints[1].set(503);
    let lab = lab(&endpoints, ServicePolicy::default(), RequestPolicy::default()).await;
    load(&lab, 8, 100).await;
    let failing = endpoints[1].served();
    assert!(failing <= 80, "{failing} of 800 requests went to the failing endpoint");
    lab.stop().await;
}

fn outlier() -> Outlier {
    Outlier {
        consecutive_errors: 3,
        failure_percent: None,
        minimum_requests: 10,
        interval: Duration::from_secs(10),
        base_ejection: Duration::from_secs(1),
        max_ejection: Duration::from_secs(10),
        max_ejected_percent: 50,
        panic_percent: 0,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_fails_is_ejected_and_returns() {
    let endpoints = Scripted::several::<3>().await;
    let policy =
        ServicePolicy { algorithm: Some(Algorithm::RoundRobin), outlier: Some(outlier()), ..ServicePolicy::default() };
    let lab = lab(&endpoints, policy, RequestPolicy::default()).await;
    endpoints[0].set(500);
    let mut client = Client::connect(lab.addr).await;
    let started = Instant::now();
    for _ in 0..60 {
        client.get("/").await;
    }
    // On a very slow machine the second ejection may have begun.
    let turns = 1 + started.elapsed().as_secs();
    assert!(endpoints[0].served() <= 3 * turns, "{} requests to an endpoint that fails", endpoints[0].served());
    endpoints[0].set(200);
    let before = endpoints[0].served();
    until("it gets traffic again", async || {
        Client::connect(lab.addr).await.get("/").await;
        endpoints[0].served() >= before + 5
    })
    .await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_active_check_takes_an_endpoint_out_and_in() {
    let endpoints = Scripted::several::<2>().await;
    let check = HealthCheck {
        probe: Probe::Http { path: "/healthz".into(), host: None, statuses: vec![(200, 299)] },
        port: None,
        interval: Duration::from_millis(100),
        timeout: Duration::from_secs(5),
        healthy_threshold: 2,
        unhealthy_threshold: 2,
    };
    let lab = lab(
        &endpoints,
        ServicePolicy { health_check: Some(check), ..ServicePolicy::default() },
        RequestPolicy::default(),
    )
    .await;
    until("both are checked", async || endpoints.iter().all(|e| e.script.checks.load(Relaxed) >= 2)).await;
    load(&lab, 1, 10).await;
    assert!(endpoints.iter().all(|endpoint| endpoint.served() >= 3));
    endpoints[0].script.health.store(503, Relaxed);
    until("it gets nothing any more", async || {
        let before = endpoints[0].served();
        load(&lab, 1, 20).await;
        endpoints[0].served() == before
    })
    .await;
    endpoints[0].script.health.store(204, Relaxed);
    until("it is used again", async || {
        let before = endpoints[0].served();
        load(&lab, 1, 4).await;
        endpoints[0].served() > before
    })
    .await;
    // A check that is no longer wanted leaves nothing behind.
    endpoints[1].script.health.store(500, Relaxed);
    until("it is out", async || {
        let before = endpoints[1].served();
        load(&lab, 1, 20).await;
        endpoints[1].served() == before
    })
    .await;
    lab.lb.publish(with(&addrs(&endpoints), ServicePolicy::default(), RequestPolicy::default()));
    until("it is back", async || {
        let before = endpoints[1].served();
        load(&lab, 1, 4).await;
        endpoints[1].served() > before
    })
    .await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_and_tcp_checks_ask_what_they_should() {
    // Two endpoints at two addresses, whose health is asked for on another port.
    let endpoints = [Scripted::start_at("e0", HERE).await, Scripted::start_at("e1", Ipv4Addr::new(127, 0, 0, 2)).await];
    let port = crate::claims::free_port().unwrap();
    let first = TcpListener::bind((HERE, port)).await.unwrap();
    let second = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), port)).await.unwrap();
    let serving = grpc_health(first);
    let _other = grpc_health(second);
    serving.store(2, Relaxed);
    let check = HealthCheck {
        probe: Probe::Grpc { service: "shop".into(), host: None },
        port: Some(port),
        interval: Duration::from_millis(100),
        timeout: Duration::from_secs(5),
        healthy_threshold: 1,
        unhealthy_threshold: 1,
    };
    let policy = |check: &HealthCheck| ServicePolicy { health_check: Some(check.clone()), ..ServicePolicy::default() };
    let lab = lab(&endpoints, policy(&check), RequestPolicy::default()).await;
    until("one that is not serving is out", async || {
        let before = endpoints[0].served();
        load(&lab, 1, 20).await;
        endpoints[0].served() == before
    })
    .await;
    serving.store(1, Relaxed);
    until("it is back", async || {
        let before = endpoints[0].served();
        load(&lab, 1, 4).await;
        endpoints[0].served() > before
    })
    .await;
    // A port that nobody listens on fails.
    let closed = dead();
    let tcp = HealthCheck { probe: Probe::Tcp, port: None, ..check };
    lab.lb.publish(with(&[endpoints[0].addr, closed], policy(&tcp), RequestPolicy::default()));
    until("connect failures end", async || {
        let before = lab.totals().connect_failures;
        load(&lab, 1, 10).await;
        // Longer than an endpoint that refused a connection is avoided without checks.
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        load(&lab, 1, 10).await;
        lab.totals().connect_failures == before
    })
    .await;
    lab.stop().await;
}

/// A server of `grpc.health.v1` that answers with the status that is returned; 1 is serving.
fn grpc_health(listener: TcpListener) -> Arc<AtomicU16> {
    let status = Arc::new(AtomicU16::new(1));
    let shared = status.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let status = shared.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let mut body = request.into_body();
                    let asked = body.data().await.unwrap().unwrap();
                    assert_eq!(&asked[..], b"\0\0\0\0\x06\x0a\x04shop");
                    let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                    let mut send = respond.send_response(head, false).unwrap();
                    let status = status.load(Relaxed) as u8;
                    send.send_data(Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, status]), false).unwrap();
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", "0".parse().unwrap());
                    send.send_trailers(trailers).unwrap();
                }
            });
        }
    });
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_keeps_a_client_on_its_endpoint() {
    let endpoints = Scripted::several::<4>().await;
    let policy = ServicePolicy {
        algorithm: Some(Algorithm::Maglev),
        hash_on: vec![HashSource::Cookie("lb".into(), "/".into(), None)],
        ..ServicePolicy::default()
    };
    let lab = lab(&endpoints, policy, RequestPolicy::default()).await;
    let mut used = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let (_, headers, first) = get_from(&lab, HERE, &[]).await;
        let cookie = headers["set-cookie"].to_str().unwrap().split(';').next().unwrap();
        assert!(cookie.starts_with("lb="), "{cookie}");
        for _ in 0..3 {
            let (_, headers, again) = get_from(&lab, HERE, &[("cookie", cookie)]).await;
            assert_eq!(again, first);
            assert!(!headers.contains_key("set-cookie"), "it is made once");
        }
        used.insert(first);
    }
    assert!(used.len() >= 3, "clients spread: {used:?}");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_endpoint_starts_slowly() {
    let endpoints = Scripted::several::<3>().await;
    let window = Duration::from_secs(8);
    let policy = || ServicePolicy {
        algorithm: Some(Algorithm::RoundRobin),
        slow_start: Some((window, 5)),
        ..ServicePolicy::default()
    };
    let lab = lab(&endpoints[..2], policy(), RequestPolicy::default()).await;
    tokio::time::sleep(window).await;
    lab.lb.publish(with(&addrs(&endpoints), policy(), RequestPolicy::default()));
    let started = Instant::now();
    let mut client = Client::connect(lab.addr).await;
    let mut total = 0;
    while started.elapsed() < window / 8 {
        client.get("/").await;
        total += 1;
    }
    let new = endpoints[2].served();
    assert!(new * 5 <= total, "{new} of {total} requests went to the new endpoint");
    tokio::time::sleep(window).await;
    let before = endpoints[2].served();
    load(&lab, 1, 30).await;
    assert_eq!(endpoints[2].served() - before, 10, "grown up");
    lab.stop().await;
}

/// A snapshot with endpoints in these zones and regions, and us in the first.
fn place(endpoints: &[Scripted], policy: ServicePolicy, places: &[(&str, &str)]) -> Snapshot {
    let mut snapshot = with(&addrs(endpoints), policy, RequestPolicy::default());
    let plan = Arc::make_mut(snapshot.services.get_mut(&key()).unwrap());
    let mut plans = plan.ports[0].external.to_vec();
    for (endpoint, (zone, region)) in endpoints.iter().zip(places) {
        let plan = plans.iter_mut().find(|plan| plan.addr == endpoint.addr).unwrap();
        (plan.zone, plan.region) = (Some((*zone).into()), Some((*region).into()));
    }
    plan.ports[0].external = plans.into();
    let (zone, region) = places[0];
    snapshot.node = NodePlan { zone: Some(zone.into()), region: Some(region.into()), ..NodePlan::default() };
    snapshot
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_stays_in_the_zone_until_it_fails() {
    let endpoints = Scripted::several::<3>().await;
    let lab = Lab::http(&addrs(&endpoints)).await;
    let locality = Locality { prefer: Prefer::Zone, ..Locality::default() };
    let policy = ServicePolicy { locality, ..ServicePolicy::default() };
    lab.lb.publish(place(&endpoints, policy, &[("a", "x"), ("a", "x"), ("b", "x")]));
    load(&lab, 1, 30).await;
    assert_eq!(endpoints[2].served(), 0);
    assert!(endpoints[0].served() > 0 && endpoints[1].served() > 0);
    endpoints[0].kill.cancel();
    endpoints[1].kill.cancel();
    let mut client = Client::connect(lab.addr).await;
    for _ in 0..30 {
        assert_eq!(client.get("/").await, (StatusCode::OK, "e2".to_owned()));
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_go_to_the_region_nearest_to_them_as_the_database_says_now() {
    let endpoints = Scripted::several::<2>().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("city.mmdb");
    let (paris, tokyo) = (Ipv4Addr::new(127, 0, 0, 11), Ipv4Addr::new(127, 0, 0, 12));
    std::fs::write(&path, mmdb::database(&[(paris, 48.9, 2.3), (tokyo, 35.7, 139.7)])).unwrap();
    let database = path.clone();
    let lab = Lab::start("http", &addrs(&endpoints), |config| config.geo_database = Some(database)).await;
    // Nobody is in Paris itself.
    let regions = [("paris".into(), 48.9, 2.3), ("frankfurt".into(), 50.1, 8.7), ("osaka".into(), 34.7, 135.5)];
    let regions: Arc<[_]> = regions.into();
    let locality = Locality { prefer: Prefer::Nearest(regions), ..Locality::default() };
    let policy = ServicePolicy { locality, ..ServicePolicy::default() };
    lab.lb.publish(place(&endpoints, policy, &[("a", "frankfurt"), ("b", "osaka")]));
    until("the database is loaded", async || get_from(&lab, tokyo, &[]).await.2 == "e1").await;
    for _ in 0..5 {
        assert_eq!(get_from(&lab, paris, &[]).await.2, "e0");
        assert_eq!(get_from(&lab, tokyo, &[]).await.2, "e1");
        assert_eq!(get_from(&lab, HERE, &[]).await.2, "e0", "of unknown place: where we are");
    }
    // The client moves; a broken file before that changes nothing.
    std::fs::write(&path, b"not a database").unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(get_from(&lab, paris, &[]).await.2, "e0");
    std::fs::write(&path, mmdb::database(&[(paris, 34.0, 135.0)])).unwrap();
    until("the new database is loaded", async || get_from(&lab, paris, &[]).await.2 == "e1").await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_addresses_stick_to_an_endpoint() {
    let endpoints = Scripted::several::<4>().await;
    let policy = ServicePolicy { client_ip_affinity: Some(Duration::from_secs(60)), ..ServicePolicy::default() };
    let lab = lab(&endpoints, policy, RequestPolicy::default()).await;
    let mut used = std::collections::BTreeSet::new();
    for last in 1..=20 {
        let client = Ipv4Addr::new(127, 0, 0, last);
        assert!(IpAddr::from(client).is_loopback());
        let first = get_from(&lab, client, &[]).await.2;
        assert_eq!(get_from(&lab, client, &[]).await.2, first);
        used.insert(first);
    }
    assert!(used.len() >= 3, "{used:?}");
    lab.stop().await;
}
