//! HTTP/1.1 proxying: distribution, pooling, failures, drain, streaming.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn requests_reach_endpoints_exactly_in_turn() {
    let endpoints = endpoints::<3>().await;
    let lab = Lab::http(&addresses(&endpoints)).await;
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..10 {
        // Connections land on any thread; the turn is common to all.
        let mut client = Client::connect(lab.addr).await;
        for _ in 0..30 {
            *seen.entry(client.get("/").await.1).or_default() += 1;
        }
    }
    assert_eq!(seen.into_values().collect::<Vec<_>>(), [100, 100, 100]);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_connections_are_reused() {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        let addr = lab.addr;
        clients.push(tokio::spawn(async move {
            let mut client = Client::connect(addr).await;
            for _ in 0..250 {
                assert_eq!(client.get("/").await.0, StatusCode::OK);
            }
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
    let opened = endpoint.connections.load(Relaxed);
    assert!(opened <= 20, "{opened} upstream connections for 2,000 requests");
    lab.until("all are counted", |t| t.codes[1] == 2_000).await;
    assert!(lab.totals().upstream_reused >= 1_980);
    let usage = lab.lb.usage();
    assert_eq!(usage[0].1.requests, 2_000);
    assert_eq!(usage[0].1.bytes_out, 4_000);
    lab.stop().await;
}

/// `count` clients that send GETs until told to stop; failures and requests so far.
struct Load {
    stop: Arc<AtomicBool>,
    failures: Arc<AtomicU64>,
    requests: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(lab: &Lab, count: usize) -> Self {
        let (stop, failures, requests): (Arc<AtomicBool>, Arc<AtomicU64>, Arc<AtomicU64>) = Default::default();
        let tasks = (0..count).map(|_| {
            let (stop, failures, requests, addr) = (stop.clone(), failures.clone(), requests.clone(), lab.addr);
            tokio::spawn(async move {
                let mut client = Client::connect(addr).await;
                while !stop.load(Relaxed) {
                    match tokio::time::timeout(PATIENCE, client.try_get("/")).await {
                        Ok(Ok((StatusCode::OK, _))) => {}
                        _ => {
                            failures.fetch_add(1, Relaxed);
                            client = Client::connect(addr).await;
                        }
                    }
                    requests.fetch_add(1, Relaxed);
                }
            })
        });
        let tasks = tasks.collect();
        Self { stop, failures, requests, tasks }
    }

    async fn more(&self, count: u64) {
        let goal = self.requests.load(Relaxed) + count;
        let wait = async {
            while self.requests.load(Relaxed) < goal {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap();
    }

    async fn finish(self) -> u64 {
        self.stop.store(true, Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        self.failures.load(Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_endpoint_costs_no_get() {
    let endpoints = endpoints::<3>().await;
    let lab = Lab::http(&addresses(&endpoints)).await;
    let load = Load::start(&lab, 8);
    load.more(300).await;
    endpoints[1].kill();
    load.more(300).await;
    endpoints[2].kill();
    load.more(300).await;
    assert_eq!(load.finish().await, 0);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_changes_under_load_cost_no_request() {
    let endpoints = endpoints::<4>().await;
    let all = addresses(&endpoints);
    let lab = Lab::http(&all).await;
    let load = Load::start(&lab, 8);
    for round in 0..100 {
        let (a, b) = (round % 4, (round + 1) % 4);
        lab.set(&[all[a], all[b]]);
        load.more(5).await;
    }
    assert_eq!(load.finish().await, 0);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_reaches_the_next_request() {
    let [first, second] = endpoints::<2>().await;
    let lab = Lab::http(&[first.addr]).await;
    let mut client = Client::connect(lab.addr).await;
    for _ in 0..20 {
        lab.set(&[second.addr]);
        assert_eq!(client.get("/").await.1, "e1");
        lab.set(&[first.addr]);
        assert_eq!(client.get("/").await.1, "e0");
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_endpoint_finishes_what_it_serves_and_gets_nothing_new() {
    let [old, new] = endpoints::<2>().await;
    let lab = Lab::http(&[old.addr]).await;
    let addr = lab.addr;
    let slow = tokio::spawn(async move { Client::connect(addr).await.get("/slow").await });
    let wait = async {
        while old.served() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap();
    lab.set(&[new.addr]);
    let mut client = Client::connect(lab.addr).await;
    for _ in 0..10 {
        assert_eq!(client.get("/").await.1, "e1");
    }
    assert_eq!(slow.await.unwrap(), (StatusCode::OK, "e0".to_owned()));
    assert_eq!(old.served(), 1);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_endpoints_the_answer_says_why() {
    let lab = Lab::http(&[]).await;
    let mut client = Client::connect(lab.addr).await;
    let (status, text) = client.get("/").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(text, "503: service shop/web has no ready endpoints\n");
    // The connection stays usable.
    let endpoint = Endpoint::start("late").await;
    lab.set(&[endpoint.addr]);
    assert_eq!(client.get("/").await, (StatusCode::OK, "late".to_owned()));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_endpoints_are_passed_over_and_reported_when_alone() {
    let [good] = endpoints::<1>().await;
    let dead = dead();
    let lab = Lab::http(&[dead, good.addr]).await;
    let mut client = Client::connect(lab.addr).await;
    for _ in 0..10 {
        assert_eq!(client.get("/").await.0, StatusCode::OK);
    }
    assert!(lab.totals().connect_failures >= 1);
    lab.set(&[dead]);
    assert_eq!(client.get("/").await.0, StatusCode::BAD_GATEWAY);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_was_sent_is_never_sent_twice() {
    // Accepts a request, then closes without a response.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let received = Arc::new(AtomicU64::new(0));
    let counter = received.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 1024];
            if stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                counter.fetch_add(1, Relaxed);
            }
        }
    });
    let lab = Lab::http(&[addr, addr]).await;
    let mut client = Client::connect(lab.addr).await;
    let response = client.post("/", text_body("pay")).await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(received.load(Relaxed), 1);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_is_too_late_is_a_504() {
    let [endpoint] = endpoints::<1>().await;
    let configure = |config: &mut scaleup_lb::Config| {
        config.proxy.response_header_timeout = Some(Duration::from_millis(50));
    };
    let lab = Lab::start("http", &[endpoint.addr], configure).await;
    let mut client = Client::connect(lab.addr).await;
    assert_eq!(client.get("/slow").await.0, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(client.get("/").await.0, StatusCode::OK);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_that_are_not_http_are_a_502() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"220 mail.example.com ESMTP\r\n\r\n").await;
        }
    });
    let lab = Lab::http(&[addr]).await;
    assert_eq!(Client::connect(lab.addr).await.get("/").await.0, StatusCode::BAD_GATEWAY);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_pass_both_ways_chunked_and_sized() {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    let mut client = Client::connect(lab.addr).await;
    for body in [text_body("hello"), chunked_body(3, Bytes::from_static(b"hello")), text_body("")] {
        let response = client.post("/echo", body).await;
        let echoed = response.into_body().collect().await.unwrap().to_bytes();
        assert!(["hello", "hellohellohello", ""].contains(&std::str::from_utf8(&echoed).unwrap()));
    }
    let response = client.post("/length", chunked_body(64, Bytes::from(vec![7; MIB]))).await;
    let length = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(length, (64 * MIB).to_string());
    lab.until("bytes are counted", |t| t.bytes_in >= 64 * MIB as u64).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_response_is_streamed_at_the_clients_pace() {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    let mut stream = TcpStream::connect(lab.addr).await.unwrap();
    stream.write_all(b"GET /stream/64 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    read_head(&mut stream).await;
    // Nobody reads for a while: what the endpoint offers must wait in socket buffers, not in our memory.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let sent = lab.totals().bytes_out;
    assert!(sent < 24 * MIB as u64, "{sent} bytes were taken from the endpoint although nobody read them");
    let mut total = 0;
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap().unwrap() {
            0 => break,
            read => total += read,
        }
    }
    assert!(total > 64 * MIB, "{total} bytes with chunk framing");
    lab.until("the response is counted", |t| t.bytes_out == 64 * MIB as u64 && t.codes[1] == 1).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_without_a_body_leave_the_connection_usable() {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    let mut client = Client::connect(lab.addr).await;
    for _ in 0..3 {
        let response = client.send("HEAD", "/", text_body("")).await.unwrap();
        assert_eq!(response.headers()["content-length"], "2");
        assert_eq!(client.get("/empty").await, (StatusCode::NO_CONTENT, String::new()));
        assert_eq!(client.get("/").await, (StatusCode::OK, "e0".to_owned()));
    }
    assert_eq!(endpoint.connections.load(Relaxed), 1);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn early_answers_do_not_wait_for_the_body() {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    let mut stream = TcpStream::connect(lab.addr).await.unwrap();
    stream.write_all(b"POST /early HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\nxxx").await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 403 "));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expect_continue_is_answered_when_the_body_is_wanted() {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    let mut stream = TcpStream::connect(lab.addr).await.unwrap();
    let head = b"POST /length HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
    stream.write_all(head).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 100 "));
    stream.write_all(b"hello").await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(stream.read_u8().await.unwrap(), b'5');
    // With nobody to take the body it is not asked for.
    lab.set(&[]);
    let mut stream = TcpStream::connect(lab.addr).await.unwrap();
    stream.write_all(head).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 503 "));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_see_the_client_and_no_hop_by_hop_headers() {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    let request = b"GET http://shop.example:81/headers?q=1 HTTP/1.1\r\nhost: other\r\nconnection: close, x-hop\r\n\
        x-hop: 1\r\nx-forwarded-for: 203.0.113.9\r\nx-keep: yes\r\n\r\n";
    let reply = String::from_utf8(raw(lab.addr, request).await).unwrap();
    let body = reply.split("\r\n\r\n").nth(1).unwrap();
    let mut lines: Vec<&str> = body.lines().collect();
    lines[1..].sort_unstable();
    assert_eq!(
        lines,
        [
            "GET /headers?q=1",
            "host: shop.example:81",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-host: shop.example:81",
            "x-forwarded-proto: http",
            "x-keep: yes",
        ]
    );
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_clients_get_answers_they_understand() {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    let reply = String::from_utf8(raw(lab.addr, b"GET /headers HTTP/1.0\r\n\r\n").await).unwrap();
    assert!(reply.starts_with("HTTP/1.0 200 "), "{reply}");
    assert!(reply.contains("host: web.shop"), "{reply}");
    let reply = raw(lab.addr, b"GET /stream/1 HTTP/1.0\r\n\r\n").await;
    let text = String::from_utf8_lossy(&reply[..reply.len().min(1000)]).into_owned();
    assert!(!text.contains("chunked"), "{text}");
    assert!(reply.len() > MIB);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_order() {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    let requests = "GET /headers?n=1 HTTP/1.1\r\nhost: a\r\n\r\nPOST /length HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc\
        GET /headers?n=3 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let reply = String::from_utf8(raw(lab.addr, requests.as_bytes()).await).unwrap();
    let first = reply.find("n=1").unwrap();
    let third = reply.find("n=3").unwrap();
    assert!(first < third && reply.matches("HTTP/1.1 200").count() == 3, "{reply}");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_closed_after_its_share_of_requests() {
    let [endpoint] = endpoints::<1>().await;
    let configure = |config: &mut scaleup_lb::Config| config.proxy.max_requests_per_connection = 2;
    let lab = Lab::start("http", &[endpoint.addr], configure).await;
    let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(3);
    let reply = String::from_utf8(raw(lab.addr, request.as_bytes()).await).unwrap();
    assert_eq!(reply.matches("HTTP/1.1 200").count(), 2, "{reply}");
    assert!(reply.contains("connection: close"), "{reply}");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_headers_are_cut_off() {
    let [endpoint] = endpoints::<1>().await;
    let configure = |config: &mut scaleup_lb::Config| config.proxy.header_read_timeout = Duration::from_millis(200);
    let lab = Lab::start("http", &[endpoint.addr], configure).await;
    // `raw` returns when the connection is closed, which only the timeout does here.
    let reply = raw(lab.addr, b"GET / HTTP/1.1\r\nhost: ").await;
    assert!(reply.is_empty() || reply.starts_with(b"HTTP/1.1 4"), "{reply:?}");
    assert_eq!(endpoint.served(), 0);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_lets_requests_finish() {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    let addr = lab.addr;
    let slow = tokio::spawn(async move { Client::connect(addr).await.get("/slow").await });
    let wait = async {
        while endpoint.served() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap();
    lab.stop().await;
    assert_eq!(slow.await.unwrap().0, StatusCode::OK);
    assert!(TcpStream::connect(addr).await.is_err(), "the port is closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn client_ip_affinity_keeps_a_client_on_one_endpoint() {
    let endpoints = endpoints::<3>().await;
    let lab = Lab::http(&addresses(&endpoints)).await;
    let affinity = serde_json::json!({"sessionAffinity": "ClientIP"});
    lab.lb.publish(snapshot("http", &addresses(&endpoints), affinity));
    let mut names = std::collections::BTreeSet::new();
    for _ in 0..10 {
        names.insert(Client::connect(lab.addr).await.get("/").await.1);
    }
    assert_eq!(names.len(), 1);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_follow_the_snapshot() {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    lab.lb.publish(scaleup_lb::snapshot::Snapshot::default());
    let wait = async {
        while TcpStream::connect(lab.addr).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the listener is closed");
    lab.set(&[endpoint.addr]);
    let wait = async {
        while TcpStream::connect(lab.addr).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the listener is open again");
    assert_eq!(Client::connect(lab.addr).await.get("/").await.0, StatusCode::OK);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_it_waits_lets_go_of_the_endpoint() {
    // Accepts a request and never answers; sees when its connection is closed.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (closed_tx, closed) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = Vec::new();
        let _ = stream.read_to_end(&mut buffer).await;
        let _ = closed_tx.send(buffer.len());
    });
    let lab = Lab::http(&[addr]).await;
    let mut stream = TcpStream::connect(lab.addr).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc").await.unwrap();
    lab.until("the body is on its way", |t| t.bytes_in == 3).await;
    drop(stream);
    let received = tokio::time::timeout(PATIENCE, closed).await.expect("the connection is closed").unwrap();
    assert!(received > 3);
    lab.until("the request is counted", |t| t.codes[5] == 1).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_breaks_off_is_not_passed_off_as_whole() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for head in ["content-length: 100000", "transfer-encoding: chunked"] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            let reply = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n3\r\nabc\r\n");
            stream.write_all(reply.as_bytes()).await.unwrap();
        }
    });
    let lab = Lab::http(&[addr]).await;
    for _ in 0..2 {
        let mut client = Client::connect(lab.addr).await;
        assert!(client.try_get("/").await.is_err());
    }
    lab.stop().await;
}

/// An endpoint that is killed while it answers: short responses are whole or come from another endpoint.
#[tokio::test(flavor = "multi_thread")]
async fn a_short_response_that_breaks_off_is_asked_for_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicU64::new(0));
    let counter = asked.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            counter.fetch_add(1, Relaxed);
            let _ = stream.read(&mut [0; 1024]).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc").await.unwrap();
        }
    });
    let [good] = endpoints::<1>().await;
    let lab = Lab::http(&[addr, good.addr]).await;
    let mut client = Client::connect(lab.addr).await;
    for _ in 0..6 {
        assert_eq!(client.get("/").await.0, StatusCode::OK);
    }
    // What may have had an effect is not asked for twice. (The good endpoint is liked better by now, so it must go for this.)
    lab.set(&[addr]);
    let before = asked.load(Relaxed);
    let response = Client::connect(lab.addr).await.post("/", text_body("x")).await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(asked.load(Relaxed), before + 1);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_close_when_their_listener_does() {
    let [endpoint] = endpoints::<1>().await;
    let lab = Lab::http(&[endpoint.addr]).await;
    let mut stream = TcpStream::connect(lab.addr).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    read_head(&mut stream).await;
    lab.lb.publish(scaleup_lb::snapshot::Snapshot::default());
    let mut rest = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("it is closed").unwrap();
    assert_eq!(rest, b"e0");
    lab.stop().await;
}
