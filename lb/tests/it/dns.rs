//! Cluster DNS over UDP and TCP: every kind of record, negative answers, forwarding, hostile packets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use scaleup_lb::snapshot::{PlanConfig, Snapshot, plan};
use scaleup_lb::{Config, Lb};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

use crate::support::{PATIENCE, own_ip};

struct Dns {
    addr: SocketAddr,
    lb: Lb,
    shutdown: CancellationToken,
    _resolv: tempfile::NamedTempFile,
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn objects() -> Snapshot {
    let service = |name: &str, spec: Value| -> k8s_openapi::api::core::v1::Service {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec})).unwrap()
    };
    let slice = json!({
        "metadata": {"name": "db-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4", "ports": [{"name": "sql", "port": 5432}],
        "endpoints": [{"addresses": ["10.244.0.5"], "hostname": "db-0"}, {"addresses": ["10.244.0.6"]},
                      {"addresses": ["10.244.0.7"], "conditions": {"ready": false}}],
    });
    let many: Vec<Value> = (1..=200).map(|i| json!({"addresses": [format!("10.244.1.{i}")]})).collect();
    let many = json!({
        "metadata": {"name": "many-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "many"}},
        "addressType": "IPv4", "ports": [], "endpoints": many,
    });
    let services = [
        service(
            "web",
            json!({"clusterIPs": ["10.96.0.10", "fd00::10"],
            "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}),
        ),
        service("db", json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]})),
        service("many", json!({"clusterIP": "None"})),
        service("out", json!({"type": "ExternalName", "externalName": "www.example.com"})),
        service("in", json!({"type": "ExternalName", "externalName": "web.shop.svc.cluster.local"})),
        service("twice", json!({"type": "ExternalName", "externalName": "in.shop.svc.cluster.local."})),
        service("lost", json!({"type": "ExternalName", "externalName": "nope.shop.svc.cluster.local"})),
        service("round", json!({"type": "ExternalName", "externalName": "round.shop.svc.cluster.local"})),
    ];
    let slices = [serde_json::from_value(slice).unwrap(), serde_json::from_value(many).unwrap()];
    plan(&services, &slices, &PlanConfig::default())
}

async fn start(resolvers: &str) -> Dns {
    let ip = own_ip();
    let addr = SocketAddr::new(ip.into(), 5300);
    let resolv = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(resolv.path(), resolvers.replace("SELF", &addr.to_string())).unwrap();
    let mut config = Config::new("n1");
    config.enable_proxy = false;
    config.enable_nftables = false;
    config.dns_listen = vec![addr];
    config.resolv_conf = resolv.path().to_owned();
    let lb = scaleup_lb::build(config, &mut prometheus_client::registry::Registry::default());
    lb.publish(objects());
    let shutdown = CancellationToken::new();
    let (run, token) = (lb.clone(), shutdown.clone());
    tokio::spawn(async move { run.run_standalone(token).await.unwrap() });
    let dns = Dns { addr, lb, shutdown, _resolv: resolv };
    let ready = async {
        while TcpStream::connect(addr).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ready).await.unwrap();
    // TCP is bound before UDP.
    tokio::time::sleep(Duration::from_millis(20)).await;
    dns
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

async fn udp(addr: SocketAddr, packet: &[u8]) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(packet, addr).await.unwrap();
    let mut reply = vec![0; 65_535];
    let received = tokio::time::timeout(Duration::from_secs(6), socket.recv_from(&mut reply)).await.ok()?;
    reply.truncate(received.unwrap().0);
    Some(reply)
}

async fn ask(dns: &Dns, message: &Message) -> Message {
    let reply = udp(dns.addr, &message.to_vec().unwrap()).await.expect("an answer");
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!(reply.metadata.id, message.metadata.id);
    assert_eq!(reply.metadata.message_type, MessageType::Response);
    reply
}

/// Code and sorted answers as `TYPE value`.
async fn lookup(dns: &Dns, name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
    let reply = ask(dns, &question(name, kind)).await;
    let mut answers: Vec<String> =
        reply.answers.iter().map(|record| format!("{} {}", record.record_type(), record.data)).collect();
    answers.sort();
    let nothing = reply.answers.iter().all(|record| record.record_type() != kind);
    let negative = nothing && name.contains("cluster.local") && reply.metadata.response_code != ResponseCode::ServFail;
    assert_eq!(reply.authorities.iter().any(|r| r.record_type() == RecordType::SOA), negative, "SOA for {name}");
    if let Some(record) = reply.answers.first().filter(|_| name.contains("cluster.local")) {
        assert_eq!(record.ttl, 5);
    }
    (reply.metadata.response_code, answers)
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_services_and_pods_are_answered() {
    let dns = start("").await;
    let cases: &[(&str, RecordType, ResponseCode, &[&str])] = {
        use RecordType::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
        use ResponseCode::{NXDomain, NoError};
        &[
            ("web.shop.svc.cluster.local.", A, NoError, &["A 10.96.0.10"]),
            ("WEB.Shop.svc.Cluster.local.", A, NoError, &["A 10.96.0.10"]),
            ("web.shop.svc.cluster.local.", AAAA, NoError, &["AAAA fd00::10"]),
            ("web.shop.svc.cluster.local.", TXT, NoError, &[]),
            ("db.shop.svc.cluster.local.", A, NoError, &["A 10.244.0.5", "A 10.244.0.6"]),
            ("db-0.db.shop.svc.cluster.local.", A, NoError, &["A 10.244.0.5"]),
            ("10-244-0-6.db.shop.svc.cluster.local.", A, NoError, &["A 10.244.0.6"]),
            ("10-244-0-7.db.shop.svc.cluster.local.", A, NXDomain, &[]),
            ("_http._tcp.web.shop.svc.cluster.local.", SRV, NoError, &["SRV 0 100 80 web.shop.svc.cluster.local."]),
            ("_dns._udp.web.shop.svc.cluster.local.", SRV, NoError, &["SRV 0 100 53 web.shop.svc.cluster.local."]),
            ("_dns._tcp.web.shop.svc.cluster.local.", SRV, NXDomain, &[]),
            ("_tcp.web.shop.svc.cluster.local.", SRV, NoError, &[]),
            (
                "_sql._tcp.db.shop.svc.cluster.local.",
                SRV,
                NoError,
                &[
                    "SRV 0 100 5432 10-244-0-6.db.shop.svc.cluster.local.",
                    "SRV 0 100 5432 db-0.db.shop.svc.cluster.local.",
                ],
            ),
            ("10-0-0-9.shop.pod.cluster.local.", A, NoError, &["A 10.0.0.9"]),
            ("x.shop.pod.cluster.local.", A, NXDomain, &[]),
            ("10.0.96.10.in-addr.arpa.", PTR, NXDomain, &[]),
            ("in.shop.svc.cluster.local.", CNAME, NoError, &["CNAME web.shop.svc.cluster.local."]),
            ("in.shop.svc.cluster.local.", A, NoError, &["A 10.96.0.10", "CNAME web.shop.svc.cluster.local."]),
            (
                "twice.shop.svc.cluster.local.",
                A,
                NoError,
                &["A 10.96.0.10", "CNAME in.shop.svc.cluster.local.", "CNAME web.shop.svc.cluster.local."],
            ),
            ("lost.shop.svc.cluster.local.", A, NXDomain, &["CNAME nope.shop.svc.cluster.local."]),
            ("in.shop.svc.cluster.local.", TXT, NoError, &["CNAME web.shop.svc.cluster.local."]),
            ("db-0.db.shop.svc.cluster.local.", AAAA, NoError, &[]),
            ("10-244-0-5.db.shop.svc.cluster.local.", A, NXDomain, &[]),
            ("db-0.web.shop.svc.cluster.local.", A, NXDomain, &[]),
            ("2001-db8--1.shop.pod.cluster.local.", AAAA, NoError, &["AAAA 2001:db8::1"]),
            ("10-0-0-9.nope.pod.cluster.local.", A, NXDomain, &[]),
            // What the search list makes of a name with few dots (ndots:5), until the name itself is tried.
            ("web.shop.svc.cluster.local.other.svc.cluster.local.", A, NXDomain, &[]),
            ("web.shop.svc.svc.cluster.local.", A, NXDomain, &[]),
            ("web.shop.shop.svc.cluster.local.", A, NXDomain, &[]),
            ("web.shop.svc.cluster.local.cluster.local.", A, NXDomain, &[]),
            ("nope.shop.svc.cluster.local.", A, NXDomain, &[]),
            ("web.nope.svc.cluster.local.", A, NXDomain, &[]),
            ("shop.svc.cluster.local.", A, NoError, &[]),
            ("nope.svc.cluster.local.", A, NXDomain, &[]),
            ("a.b.c.web.shop.svc.cluster.local.", A, NXDomain, &[]),
            ("www.example.com.cluster.local.", A, NXDomain, &[]),
            ("svc.cluster.local.", A, NoError, &[]),
            ("cluster.local.", A, NoError, &[]),
            ("cluster.local.", NS, NoError, &["NS ns.dns.cluster.local."]),
            ("dns-version.cluster.local.", TXT, NoError, &["TXT 1.1.0"]),
            (
                "cluster.local.",
                SOA,
                NoError,
                &["SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"],
            ),
        ]
    };
    for (name, kind, code, expected) in cases.iter().filter(|case| !case.0.ends_with("arpa.")) {
        assert_eq!(
            lookup(&dns, name, *kind).await,
            (*code, expected.iter().map(|s| (*s).to_owned()).collect()),
            "{name} {kind}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_named() {
    let dns = start("").await;
    let cases = [
        ("10.0.96.10.in-addr.arpa.", ResponseCode::NoError, vec!["PTR web.shop.svc.cluster.local."]),
        ("5.0.244.10.in-addr.arpa.", ResponseCode::NoError, vec!["PTR db-0.db.shop.svc.cluster.local."]),
        // In the service range, but nobody's.
        ("77.0.96.10.in-addr.arpa.", ResponseCode::NXDomain, vec![]),
        // Not ours, and no other resolver.
        ("1.2.0.192.in-addr.arpa.", ResponseCode::ServFail, vec![]),
    ];
    for (name, code, expected) in cases {
        // The reversed notation of the table above: a.b.c.d in-addr.arpa is d.c.b.a.
        let reply = ask(&dns, &question(name, RecordType::PTR)).await;
        let answers: Vec<String> = reply.answers.iter().map(|r| format!("{} {}", r.record_type(), r.data)).collect();
        assert_eq!(
            (reply.metadata.response_code, answers),
            (code, expected.into_iter().map(String::from).collect()),
            "{name}"
        );
    }
}

/// A resolver that knows `www.example.com` and `alias.example.com`, and is asked over both transports.
async fn upstream() -> SocketAddr {
    let addr = SocketAddr::new(own_ip().into(), 5301);
    let udp = Arc::new(UdpSocket::bind(addr).await.unwrap());
    let tcp = tokio::net::TcpListener::bind(addr).await.unwrap();
    fn answer(packet: &[u8]) -> Vec<u8> {
        let request = Message::from_vec(packet).unwrap();
        let mut reply = Message::response(request.metadata.id, OpCode::Query);
        let query = request.queries[0].clone();
        let name = query.name().clone();
        reply.add_query(query);
        if name.to_string().starts_with("www.") {
            reply.add_answer(Record::from_rdata(
                name.clone(),
                60,
                RData::CNAME(CNAME(Name::from_ascii("cdn.example.net.").unwrap())),
            ));
            reply.add_answer(Record::from_rdata(
                Name::from_ascii("cdn.example.net.").unwrap(),
                60,
                RData::A(A::new(192, 0, 2, 80)),
            ));
        } else {
            reply.metadata.response_code = ResponseCode::NXDomain;
        }
        reply.to_vec().unwrap()
    }
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (length, peer) = udp.recv_from(&mut buffer).await.unwrap();
            // A forger is faster: wrong id.
            let mut forged = answer(&buffer[..length]);
            forged[0] ^= 0xff;
            udp.send_to(&forged, peer).await.unwrap();
            udp.send_to(&answer(&buffer[..length]), peer).await.unwrap();
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let length = stream.read_u16().await.unwrap();
            let mut packet = vec![0; usize::from(length)];
            stream.read_exact(&mut packet).await.unwrap();
            let reply = answer(&packet);
            stream.write_all(&[&(reply.len() as u16).to_be_bytes(), &reply[..]].concat()).await.unwrap();
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread")]
async fn other_names_are_forwarded_and_aliases_resolved() {
    let resolver = upstream().await;
    // The first entry is ourselves: it must be skipped, or the question would go round.
    let dns = start(&format!("nameserver SELF\nnameserver {resolver}\n")).await;
    let www = (ResponseCode::NoError, vec!["A 192.0.2.80".to_owned(), "CNAME cdn.example.net.".to_owned()]);
    assert_eq!(lookup(&dns, "www.example.com.", RecordType::A).await, www);
    assert_eq!(lookup(&dns, "nope.example.com.", RecordType::A).await, (ResponseCode::NXDomain, vec![]));
    let (code, answers) = lookup(&dns, "out.shop.svc.cluster.local.", RecordType::A).await;
    assert_eq!(code, ResponseCode::NoError);
    assert_eq!(answers, ["A 192.0.2.80", "CNAME cdn.example.net.", "CNAME www.example.com."]);
}

/// A resolver that answers every question with `code` after a while, and counts them.
async fn slow_upstream(port: u16, code: ResponseCode) -> (SocketAddr, Arc<std::sync::atomic::AtomicUsize>) {
    let addr = SocketAddr::new(own_ip().into(), port);
    let socket = Arc::new(UdpSocket::bind(addr).await.unwrap());
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (length, peer) = socket.recv_from(&mut buffer).await.unwrap();
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let request = Message::from_vec(&buffer[..length]).unwrap();
            let mut reply = Message::response(request.metadata.id, OpCode::Query);
            reply.metadata.response_code = code;
            reply.add_query(request.queries[0].clone());
            if code == ResponseCode::NoError {
                let name = request.queries[0].name().clone();
                reply.add_answer(Record::from_rdata(name, 300, RData::A(A::new(192, 0, 2, 81))));
            }
            let socket = socket.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                socket.send_to(&reply.to_vec().unwrap(), peer).await.unwrap();
            });
        }
    });
    (addr, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_question_is_asked_once_and_a_refusing_resolver_is_passed_over() {
    let (refusing, refused) = slow_upstream(5302, ResponseCode::Refused).await;
    let (knowing, asked) = slow_upstream(5303, ResponseCode::NoError).await;
    let dns = start(&format!("nameserver {refusing}\nnameserver {knowing}\n")).await;
    let expected = (ResponseCode::NoError, vec!["A 192.0.2.81".to_owned()]);
    let spellings = ["a.example.com.", "A.example.com.", "a.EXAMPLE.com."];
    let all = spellings.iter().cycle().take(12).map(|name| lookup(&dns, name, RecordType::A));
    for got in futures::future::join_all(all).await {
        assert_eq!(got, expected);
    }
    assert_eq!(lookup(&dns, "a.example.com.", RecordType::A).await, expected);
    let counts = [&refused, &asked].map(|count| count.load(std::sync::atomic::Ordering::Relaxed));
    assert_eq!(counts, [1, 1], "asked once, whoever waits and whatever comes later");
    let reply = ask(&dns, &question("A.Example.Com.", RecordType::A)).await;
    assert_eq!(reply.queries[0].name().to_string(), "A.Example.Com.", "the client's spelling");
    assert!(reply.answers[0].ttl <= 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_circle_of_aliases_is_an_error() {
    let dns = start("").await;
    let (code, answers) = lookup(&dns, "round.shop.svc.cluster.local.", RecordType::A).await;
    assert_eq!(code, ResponseCode::ServFail);
    assert!(answers.len() < 20, "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_resolvers_other_names_fail_at_once() {
    let dns = start("nameserver SELF\n").await;
    assert_eq!(lookup(&dns, "www.example.com.", RecordType::A).await.0, ResponseCode::ServFail);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_answers_are_cut_over_udp_and_whole_over_tcp() {
    let dns = start("").await;
    let mut query = question("many.shop.svc.cluster.local.", RecordType::A);
    let reply = ask(&dns, &query).await;
    assert!(reply.metadata.truncation && reply.answers.is_empty());
    let mut edns = Edns::new();
    edns.set_max_payload(65_000).set_version(0);
    query.set_edns(edns);
    let packet = query.to_vec().unwrap();
    let reply = udp(dns.addr, &packet).await.unwrap();
    assert!(reply.len() <= 1232, "{} bytes", reply.len());
    let reply = Message::from_vec(&reply).unwrap();
    assert!(reply.metadata.truncation);
    assert_eq!(reply.edns.as_ref().map(|e| (e.version(), e.max_payload())), Some((0, 1232)));
    let mut stream = TcpStream::connect(dns.addr).await.unwrap();
    for _ in 0..2 {
        stream.write_all(&[&(packet.len() as u16).to_be_bytes(), &packet[..]].concat()).await.unwrap();
        let length = tokio::time::timeout(PATIENCE, stream.read_u16()).await.unwrap().unwrap();
        let mut reply = vec![0; usize::from(length)];
        stream.read_exact(&mut reply).await.unwrap();
        assert_eq!(Message::from_vec(&reply).unwrap().answers.len(), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_snapshot_is_answered_from_at_once() {
    let dns = start("").await;
    for _ in 0..20 {
        dns.lb.publish(Snapshot::default());
        assert_eq!(lookup(&dns, "web.shop.svc.cluster.local.", RecordType::A).await.0, ResponseCode::NXDomain);
        dns.lb.publish(objects());
        assert_eq!(lookup(&dns, "web.shop.svc.cluster.local.", RecordType::A).await.0, ResponseCode::NoError);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_packets_are_survived() {
    let dns = start("").await;
    let good = question("web.shop.svc.cluster.local.", RecordType::A).to_vec().unwrap();
    let mut packets: Vec<Vec<u8>> = vec![vec![], vec![0], vec![0; 11], vec![0xff; 512], vec![0; 4096]];
    // A name that points to itself, and two that point to each other.
    let header = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    packets.push([&header[..], &[0xc0, 12, 0, 1, 0, 1]].concat());
    packets.push([&header[..], &[0xc0, 14, 0xc0, 12, 0, 1, 0, 1]].concat());
    packets.push([&header[..], &[63; 64], &[0xc0, 12], &[0, 1, 0, 1]].concat());
    // Counts that promise more than there is.
    packets.push([&[0x12, 0x34, 1, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &good[12..]].concat());
    let mut seed = 1u64;
    let mut random = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as u8
    };
    for _ in 0..500 {
        let length = usize::from(random()) * 2;
        packets.push((0..length).map(|_| random()).collect());
    }
    for cut in 0..good.len() {
        packets.push(good[..cut].to_vec());
        let mut flipped = good.clone();
        flipped[cut] ^= random() | 1;
        packets.push(flipped);
    }
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for packet in &packets {
        socket.send_to(packet, dns.addr).await.unwrap();
        let mut stream = TcpStream::connect(dns.addr).await.unwrap();
        let _ = stream.write_all(&[&(packet.len() as u16).to_be_bytes(), &packet[..]].concat()).await;
    }
    assert_eq!(lookup(&dns, "web.shop.svc.cluster.local.", RecordType::A).await.1, ["A 10.96.0.10"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_queries_get_their_code_and_answers_get_silence() {
    let dns = start("").await;
    let code = async |packet: Vec<u8>| {
        Message::from_vec(&udp(dns.addr, &packet).await.unwrap()).unwrap().metadata.response_code
    };
    let good = question("web.shop.svc.cluster.local.", RecordType::A);
    let mut two = good.clone();
    two.add_query(two.queries[0].clone());
    assert_eq!(code(two.to_vec().unwrap()).await, ResponseCode::FormErr);
    let mut update = good.clone();
    update.metadata.op_code = OpCode::Status;
    assert_eq!(code(update.to_vec().unwrap()).await, ResponseCode::NotImp);
    let mut cut = good.to_vec().unwrap();
    cut.truncate(20);
    assert_eq!(code(cut).await, ResponseCode::FormErr);
    let mut edns = Edns::new();
    edns.set_version(1);
    let mut future = good.clone();
    future.set_edns(edns);
    // BADVERS; the library calls 16 by its other name, BADSIG.
    assert_eq!(u16::from(code(future.to_vec().unwrap()).await), 16);
    // Whoever sends answers gets none: else two servers could be set on each other.
    let mut response = good.clone();
    response.metadata.message_type = MessageType::Response;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&response.to_vec().unwrap(), dns.addr).await.unwrap();
    socket.send_to(&good.to_vec().unwrap(), dns.addr).await.unwrap();
    let mut buffer = [0; 512];
    let (length, _) = tokio::time::timeout(PATIENCE, socket.recv_from(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(Message::from_vec(&buffer[..length]).unwrap().metadata.response_code, ResponseCode::NoError);
    assert!(tokio::time::timeout(Duration::from_millis(100), socket.recv_from(&mut buffer)).await.is_err());
}
