//! ClusterIPs in the kernel: two network namespaces, a "pod" and the node, with the real `nft` inside the node's.
//! Needs root; says so and passes otherwise.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use scaleup_lb::serviceproxy::{RenderConfig, render, render_change, render_removal};
use scaleup_lb::snapshot::{Compiler, PlanConfig, Snapshot};
use serde_json::{Value, json};

/// Namespaces and a pair of interfaces between them, removed at the end.
struct Net {
    node: String,
    pod: String,
    children: Vec<std::process::Child>,
}

const NODE_IP: &str = "10.99.0.1";
const POD_IP: &str = "10.99.0.2";
/// More addresses of the node's side, as endpoints.
const ENDPOINTS: [&str; 2] = ["10.99.1.1", "10.99.1.2"];

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Net {
    fn new() -> Option<Self> {
        if !is_root() {
            println!("not root: the nftables test needs network namespaces and was not run");
            return None;
        }
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let net = Self { node: format!("lbn{id}"), pod: format!("lbp{id}"), children: Vec::new() };
        run("ip", &["netns", "add", &net.node]);
        run("ip", &["netns", "add", &net.pod]);
        let (a, b) = (format!("va{id}"), format!("vb{id}"));
        run("ip", &["link", "add", &a, "netns", &net.node, "type", "veth", "peer", "name", &b, "netns", &net.pod]);
        net.on(&net.node, &["ip", "link", "set", "lo", "up"]);
        net.on(&net.pod, &["ip", "link", "set", "lo", "up"]);
        net.on(&net.node, &["ip", "addr", "add", &format!("{NODE_IP}/24"), "dev", &a]);
        net.on(&net.node, &["ip", "link", "set", &a, "up"]);
        net.on(&net.pod, &["ip", "addr", "add", &format!("{POD_IP}/24"), "dev", &b]);
        net.on(&net.pod, &["ip", "link", "set", &b, "up"]);
        net.on(&net.pod, &["ip", "route", "add", "default", "via", NODE_IP]);
        net.on(&net.node, &["ip", "route", "add", "default", "via", POD_IP]);
        net.on(&net.node, &["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
        for endpoint in ENDPOINTS {
            net.on(&net.node, &["ip", "addr", "add", &format!("{endpoint}/32"), "dev", "lo"]);
        }
        Some(net)
    }

    fn on(&self, namespace: &str, command: &[&str]) -> String {
        run("ip", &[&["netns", "exec", namespace], command].concat())
    }

    /// A server in the node's namespace that answers every connection with its own address.
    fn serve(&mut self, addr: &str, port: u16) {
        let script = format!(
            "import socket\ns=socket.create_server(('{addr}',{port}))\nprint('up',flush=True)\n\
             while True:\n c,_=s.accept()\n c.sendall(b'{addr}')\n c.close()\n"
        );
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.node, "python3", "-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        self.children.push(child);
    }

    /// What a connection from `namespace` to `target` reads, or the error's name.
    fn connect(&self, namespace: &str, ip: &str, port: u16) -> String {
        self.connect_often(namespace, ip, port, 1).pop_first().unwrap_or_default()
    }

    /// All different outcomes of `count` connections.
    fn connect_often(&self, namespace: &str, ip: &str, port: u16, count: usize) -> BTreeSet<String> {
        let script = format!(
            "import socket\nfor _ in range({count}):\n try:\n  c=socket.create_connection(('{ip}',{port}),3)\n  \
             print(c.recv(100).decode())\n except Exception as e:\n  print(type(e).__name__)"
        );
        self.on(namespace, &["python3", "-c", &script]).lines().map(str::to_owned).collect()
    }

    /// Applies the script in the node's namespace.
    fn apply(&self, script: &str) {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.node, "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), script.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}\n{script}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for namespace in [&self.node, &self.pod] {
            let _ = Command::new("ip").args(["netns", "delete", namespace]).status();
        }
    }
}

fn config(table: &str, bridge_netfilter: bool) -> RenderConfig {
    RenderConfig { table: table.to_owned(), bridge_netfilter }
}

fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status")
        .unwrap()
        .lines()
        .any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
}

fn snapshot(endpoints: &[&str], extra: Value) -> Snapshot {
    let mut compiler = Compiler::new(PlanConfig::default());
    let mut spec = json!({"type": "NodePort", "clusterIP": "10.96.0.10", "externalIPs": ["192.0.2.50"],
        "ports": [{"name": "db", "port": 5432, "nodePort": 30123}]});
    spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let service = |name: &str, spec: Value| {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec})).unwrap()
    };
    compiler.apply_service(service("db", spec));
    compiler.apply_service(service("empty", json!({"clusterIP": "10.96.0.11", "ports": [{"port": 80}]})));
    compiler.apply_service(service("headless", json!({"clusterIP": "None", "ports": [{"port": 80}]})));
    let slice = json!({
        "metadata": {"name": "db-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4", "ports": [{"name": "db", "port": 7000}],
        "endpoints": endpoints.iter().map(|e| json!({"addresses": [e]})).collect::<Vec<_>>(),
    });
    compiler.apply_slice(serde_json::from_value(slice).unwrap());
    let node = json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "10.99.0.0/24"}});
    compiler.apply_node(&serde_json::from_value(node).unwrap());
    compiler.snapshot()
}

#[test]
fn cluster_ips_reach_endpoints_and_nothing_refuses() {
    let Some(mut net) = Net::new() else { return };
    ENDPOINTS.iter().for_each(|endpoint| net.serve(endpoint, 7000));
    check_table(&mut net, &config("scaleup-test 1", false));
    check_table(&mut net, &config("scaleup-test 1", true));
}

fn check_table(net: &mut Net, config: &RenderConfig) {
    let rules = |snapshot: &Snapshot| render(snapshot, config);
    let both = snapshot(&ENDPOINTS, json!({}));
    net.apply(&rules(&both));
    // Twice in place of an earlier table is as good as once.
    net.apply(&rules(&both));

    let (node, pod) = (net.node.clone(), net.pod.clone());
    for namespace in [&node, &pod] {
        let seen = net.connect_often(namespace, "10.96.0.10", 5432, 30);
        assert_eq!(seen, ENDPOINTS.map(str::to_owned).into(), "from {namespace}");
        assert_eq!(net.connect(namespace, "10.96.0.11", 80), "ConnectionRefusedError", "without endpoints");
    }
    assert!(ENDPOINTS.contains(&net.connect(&pod, "192.0.2.50", 5432).as_str()), "an external IP");
    assert!(ENDPOINTS.contains(&net.connect(&pod, NODE_IP, 30123).as_str()), "a node port");

    // One endpoint fewer, by the difference only.
    let one = snapshot(&ENDPOINTS[..1], json!({}));
    let difference = render_change(&both, &one, config);
    assert!(!difference.contains("table ip"), "only what changed is sent:\n{difference}");
    net.apply(&difference);
    assert_eq!(net.connect_often(&pod, "10.96.0.10", 5432, 10), [ENDPOINTS[0].to_owned()].into());

    // None, and back, with affinity.
    let none = snapshot(&[], json!({}));
    net.apply(&render_change(&one, &none, config));
    assert_eq!(net.connect(&pod, "10.96.0.10", 5432), "ConnectionRefusedError");
    let sticky = snapshot(&ENDPOINTS, json!({"sessionAffinity": "ClientIP"}));
    net.apply(&render_change(&none, &sticky, config));
    assert_eq!(net.connect_often(&pod, "10.96.0.10", 5432, 10).len(), 1);

    // A client stays where it is when others come and go, and the timeout is the Service's.
    let at = net.connect(&pod, "10.96.0.10", 5432);
    let more = snapshot(&[ENDPOINTS[0], ENDPOINTS[1], "10.99.1.3"], json!({"sessionAffinity": "ClientIP"}));
    net.apply(&render_change(&sticky, &more, config));
    assert_eq!(net.connect_often(&pod, "10.96.0.10", 5432, 20), [at].into());
    let listed = net.on(&node, &["nft", "list", "ruleset"]);
    assert!(listed.contains("timeout 3h") && listed.contains(&format!("{POD_IP} expires")), "{listed}");
    let brief = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 1}}});
    let short = snapshot(&ENDPOINTS, brief);
    net.apply(&render_change(&more, &short, config));
    // Once the timeout is over a client may be sent elsewhere.
    let mut seen = BTreeSet::new();
    for _ in 0..12 {
        seen.insert(net.connect(&pod, "10.96.0.10", 5432));
        if seen.len() == 2 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1_200));
    }
    assert_eq!(seen, ENDPOINTS.map(str::to_owned).into());
    let sticky = short;

    assert_eq!(render_change(&sticky, &sticky, config), "");
    net.apply(&render_removal("scaleup-test 1"));
    assert_eq!(net.on(&node, &["nft", "list", "tables"]), "");
}

/// Services of [`many_services`].
const MANY: u32 = 10_000;

/// A cluster of [`MANY`] Services with one to four endpoints each; `endpoints` of the first one.
fn many_services(endpoints: u32) -> Compiler {
    let mut compiler = Compiler::new(PlanConfig::default());
    for i in 0..MANY {
        let ip = Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 96, 0, 0)) + i);
        let service = json!({"metadata": {"name": format!("s{i}"), "namespace": "d"},
            "spec": {"clusterIP": ip.to_string(), "ports": [{"port": 80}]}});
        compiler.apply_service(serde_json::from_value(service).unwrap());
        compiler.apply_slice(slice(i, if i == 0 { endpoints } else { i % 4 + 1 }));
    }
    compiler
}

fn slice(service: u32, endpoints: u32) -> EndpointSlice {
    let address = |e: u32| Ipv4Addr::from_bits(0x0af4_0000 + service * 4 + e).to_string();
    let slice = json!({"metadata": {"name": format!("s{service}"), "namespace": "d",
        "labels": {"kubernetes.io/service-name": format!("s{service}")}}, "addressType": "IPv4",
        "ports": [{"port": 80}],
        "endpoints": (0..endpoints).map(|e| json!({"addresses": [address(e)]})).collect::<Vec<_>>()});
    serde_json::from_value(slice).unwrap()
}

#[test]
fn among_ten_thousand_services_a_change_is_a_few_elements() {
    let mut compiler = many_services(1);
    let before = compiler.snapshot();
    let script = render(&before, &config("t", false));
    assert_eq!(script.matches(" . tcp . 80 . 0 : ").count(), MANY as usize);
    assert!(script.matches("chain ").count() < 20, "chains do not grow with Services");
    compiler.delete_service(&serde_json::from_value(json!({"metadata": {"name": "s8", "namespace": "d"}})).unwrap());
    let change = render_change(&before, &compiler.snapshot(), &config("t", false));
    assert_eq!(change, "delete element ip t services-1 { 10.96.0.8 . tcp . 80 . 0 }\n");
}

/// Changes of the test below.
const CHANGES: usize = 30;

#[test]
fn among_ten_thousand_services_a_change_is_quick() {
    let Some(net) = Net::new() else { return };
    let config = config("many", false);
    let mut compiler = many_services(1);
    let mut now = compiler.snapshot();
    let whole = render(&now, &config);
    let start = Instant::now();
    net.apply(&whole);
    let scratch = start.elapsed();
    // What starting the program costs on this machine now: no transaction can be quicker.
    let mut times = [Vec::new(), Vec::new()];
    for i in 0..CHANGES {
        let start = Instant::now();
        net.apply("");
        times[0].push(start.elapsed());
        compiler.apply_slice(slice(0, 1 + (i as u32 + 1) % 4));
        let next = compiler.snapshot();
        let change = render_change(&now, &next, &config);
        let start = Instant::now();
        net.apply(&change);
        times[1].push(start.elapsed());
        now = next;
    }
    let [nothing, change] = times.map(|mut t| {
        t.sort_unstable();
        t[CHANGES / 2]
    });
    println!(
        "among {MANY} Services: from scratch {scratch:?}; one Service's change {change:?}, nothing {nothing:?} (p50)"
    );
    assert!(change < scratch / 4, "a change costs what changed: {change:?} beside {scratch:?}");
}
