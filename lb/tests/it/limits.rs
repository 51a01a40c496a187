//! Limits through real sockets: circuit breaker, queue, rate limits, alone and shared by Redis.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hyper::StatusCode;
use scaleup_lb::policy::*;

use crate::scripted::*;
use crate::support::*;

fn limited(queue: Option<Queue>) -> ServicePolicy {
    let limits = InFlightLimits { requests: Some(1), ..InFlightLimits::default() };
    ServicePolicy { limits, queue, ..ServicePolicy::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_the_limit_is_refused_or_waits() {
    let endpoints = Scripted::several::<1>().await;
    let lab = lab(&endpoints, limited(None), RequestPolicy::default()).await;
    let addr = lab.addr;
    let get = || tokio::spawn(async move { Client::connect(addr).await.get("/").await.0 });
    let hold = &endpoints[0].script.hold;
    hold.store(true, Relaxed);
    let first = get();
    until("the first is in flight", async || endpoints[0].served() == 1).await;
    let (status, headers, _) = get_from(&lab, HERE, &[]).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(headers["retry-after"], "1");
    hold.store(false, Relaxed);
    assert_eq!(first.await.unwrap(), StatusCode::OK);
    // With a queue for one: of two more one waits and one is refused at once.
    let queue = Queue { max_depth: 1, timeout: PATIENCE, classes: vec![] };
    lab.lb.publish(with(&addrs(&endpoints), limited(Some(queue)), RequestPolicy::default()));
    hold.store(true, Relaxed);
    let first = get();
    until("the first is in flight", async || endpoints[0].served() == 2).await;
    let (refused, waiting) = match futures::future::select(get(), get()).await {
        futures::future::Either::Left(done) | futures::future::Either::Right(done) => done,
    };
    assert_eq!(refused.unwrap(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(endpoints[0].served(), 2);
    hold.store(false, Relaxed);
    assert_eq!((first.await.unwrap(), waiting.await.unwrap()), (StatusCode::OK, StatusCode::OK));
    lab.stop().await;
}

fn rate_limit(id: &str, per: RatePer, requests: u32, shared: bool) -> RequestPolicy {
    let limit = RateLimit {
        id: id.into(),
        name: "few".into(),
        per,
        requests,
        interval: Duration::from_secs(3_600),
        burst: requests,
        shared,
    };
    RequestPolicy { rate_limits: vec![limit], ..RequestPolicy::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_ask_too_often_are_told_to_wait() {
    let endpoints = Scripted::several::<1>().await;
    let requests = rate_limit("d/p/0/s", RatePer::ClientIp, 3, false);
    let lab = lab(&endpoints, ServicePolicy::default(), requests.clone()).await;
    for _ in 0..3 {
        assert_eq!(get_from(&lab, HERE, &[]).await.0, StatusCode::OK);
    }
    let (status, headers, text) = get_from(&lab, HERE, &[]).await;
    assert_eq!((status, &*text), (StatusCode::TOO_MANY_REQUESTS, "429: too many requests (limit few)\n"));
    let wait: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=1_200).contains(&wait), "{wait}");
    assert_eq!(get_from(&lab, Ipv4Addr::new(127, 0, 0, 2), &[]).await.0, StatusCode::OK, "others may");
    // A change elsewhere does not refill the bucket.
    lab.lb.publish(with(
        &addrs(&endpoints),
        ServicePolicy { client_ip_affinity: Some(PATIENCE), ..ServicePolicy::default() },
        requests,
    ));
    assert_eq!(get_from(&lab, HERE, &[]).await.0, StatusCode::TOO_MANY_REQUESTS);
    lab.stop().await;
}

/// Debian's redis-server on a port of its own.
struct Redis {
    process: std::process::Child,
    url: String,
}

impl Redis {
    async fn start() -> Self {
        let port = crate::claims::free_port().unwrap();
        let process = std::process::Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("redis-server is installed (scripts/setup test)");
        until("Redis listens", async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()).await;
        Self { process, url: format!("redis://127.0.0.1:{port}/") }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_load_balancers_share_a_bucket_and_count_alone_when_redis_is_away() {
    let mut redis = Redis::start().await;
    let endpoints = Scripted::several::<1>().await;
    let addrs = addrs(&endpoints);
    let mut labs = Vec::new();
    for _ in 0..2 {
        let url = redis.url.clone();
        labs.push(Lab::start("http", &addrs, |config| config.redis_url = Some(url.into())).await);
    }
    let publish = |id: &str| {
        for lab in &labs {
            lab.lb.publish(with(&addrs, ServicePolicy::default(), rate_limit(id, RatePer::Target, 40, true)));
        }
    };
    let passed = async || {
        let mut passed = [0; 2];
        for _ in 0..60 {
            for (lab, passed) in labs.iter().zip(&mut passed) {
                *passed += u32::from(get_from(lab, HERE, &[]).await.0 == StatusCode::OK);
            }
        }
        passed
    };
    // Once both are connected a bucket of 40 lets 40 through, together. Until then, and when Redis was too slow for a moment, each counts
    // for itself; so more than one bucket may be needed to see it.
    let round = AtomicU64::new(0);
    until("they share", async || {
        publish(&format!("d/p/{}/s", round.fetch_add(1, Relaxed)));
        let passed = passed().await;
        passed.iter().sum::<u32>() == 40 && passed.iter().all(|passed| *passed >= 10)
    })
    .await;
    redis.process.kill().unwrap();
    redis.process.wait().unwrap();
    publish("d/p/away/s");
    assert_eq!(passed().await, [40, 40]);
    for lab in labs {
        lab.stop().await;
    }
}
