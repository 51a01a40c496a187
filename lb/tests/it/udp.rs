//! UDP: clients keep their endpoint while it is there, answers come back, errors move a client on.

use std::net::SocketAddr;
use std::time::Duration;

use scaleup_lb::Config;
use serde_json::json;
use tokio::net::UdpSocket;

use crate::support::*;

/// Answers every datagram with its name and the datagram.
async fn echo(name: &'static str) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = socket.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut buffer = vec![0; 65_535];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&[name.as_bytes(), &buffer[..length]].concat(), peer).await;
        }
    });
    (addr, task)
}

async fn client(lab: &Lab) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(lab.addr).await.unwrap();
    socket
}

/// Sends `text` until it is answered: datagrams may be lost while an endpoint goes.
async fn ask(socket: &UdpSocket, text: &str) -> String {
    let exchange = async {
        let mut buffer = vec![0; 65_535];
        loop {
            socket.send(text.as_bytes()).await.unwrap();
            let answer = tokio::time::timeout(Duration::from_millis(200), socket.recv(&mut buffer)).await;
            if let Ok(Ok(length)) = answer {
                let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if answer.ends_with(text) {
                    return answer[..2].to_owned();
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, exchange).await.expect("an answer")
}

async fn start(endpoints: &[SocketAddr], configure: impl FnOnce(&mut Config)) -> Lab {
    Lab::start_with("dns", endpoints, udp_port(), configure).await
}

fn udp_port() -> serde_json::Value {
    json!({"ports": [{"name": "dns", "port": SERVICE_PORT, "protocol": "UDP"}]})
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_keep_their_endpoint_and_all_get_answers() {
    let endpoints = [echo("u0").await, echo("u1").await];
    let lab = start(&[endpoints[0].0, endpoints[1].0], |_| {}).await;
    let mut names = std::collections::BTreeMap::<String, usize>::new();
    for _ in 0..8 {
        let socket = client(&lab).await;
        let first = ask(&socket, "hello").await;
        assert_eq!(ask(&socket, "again").await, first, "a client keeps its endpoint");
        *names.entry(first).or_default() += 1;
    }
    assert_eq!(names.len(), 2, "clients spread over the endpoints: {names:?}");
    let large = "x".repeat(20_000);
    assert_eq!(ask(&client(&lab).await, &large).await.len(), 2);
    let bytes = 8 * 10 + 20_000;
    lab.until("bytes are counted", |totals| totals.bytes_in >= bytes && totals.bytes_out > totals.bytes_in).await;
    assert!(lab.totals().active_connections >= 9);
    let usage = lab.lb.usage();
    assert!(usage.iter().map(|(_, usage)| usage.requests).sum::<u64>() >= 17, "{usage:?}");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_outlive_snapshots_but_not_their_endpoint() {
    let [a, b] = [echo("u0").await, echo("u1").await];
    let lab = start(&[a.0], |_| {}).await;
    let socket = client(&lab).await;
    assert_eq!(ask(&socket, "one").await, "u0");
    lab.set_with(&[a.0, b.0], udp_port());
    for i in 0..10 {
        assert_eq!(ask(&socket, &format!("two {i}")).await, "u0", "a new snapshot moves nobody");
    }
    lab.set_with(&[b.0], udp_port());
    assert_eq!(ask(&socket, "three").await, "u1");
    // The endpoint's process ends: its machine says so, and the next datagram goes elsewhere.
    let c = echo("u2").await;
    lab.set_with(&[b.0, c.0], udp_port());
    assert_eq!(ask(&socket, "four").await, "u1");
    b.1.abort();
    let _ = b.1.await;
    assert_eq!(ask(&socket, "five").await, "u2");
    assert!(lab.totals().connect_failures > 0);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_on_all_addresses_answers_from_the_one_asked() {
    let endpoint = echo("u0").await;
    let port = crate::claims::free_port().unwrap();
    let spec = json!({"ports": [{"name": "dns", "port": port, "protocol": "UDP"}]});
    let everywhere = |config: &mut Config| config.bind_address = std::net::Ipv4Addr::UNSPECIFIED.into();
    let lab = Lab::start_with("dns", &[endpoint.0], spec, everywhere).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect((own_ip(), port)).await.unwrap();
    // Connected sockets take answers from this address only.
    assert_eq!(ask(&socket, "hello").await, "u0");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_endpoints_nothing_is_kept() {
    let lab = start(&[], |_| {}).await;
    let socket = client(&lab).await;
    socket.send(b"x").await.unwrap();
    let mut buffer = [0; 16];
    assert!(tokio::time::timeout(Duration::from_millis(100), socket.recv(&mut buffer)).await.is_err());
    assert_eq!(lab.totals().active_connections, 0);
    let endpoint = echo("u0").await;
    lab.set_with(&[endpoint.0], udp_port());
    assert_eq!(ask(&socket, "now").await, "u0");
    lab.stop().await;
}
