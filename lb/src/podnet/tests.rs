//! Two machines in network namespaces, each with a pod behind a packet filter as Docker sets it up: the loop's own
//! routes and rules, with the real programs. Needs root; says so and passes otherwise.

use std::process::{Command, Stdio};

use super::plan;
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

struct Net {
    id: u32,
}

fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a program");
    std::io::Write::write_all(child.stdin.as_mut().expect("a pipe"), input.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("an end");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(text) } else { Err(format!("{program} {arguments:?}: {error}")) }
}

impl Net {
    fn name(&self, what: &str) -> String {
        format!("{what}{}", self.id)
    }

    fn on(&self, place: &str, command: &str, input: &str) -> Result<String, String> {
        let name = self.name(place);
        let arguments: Vec<&str> = ["netns", "exec", &name].into_iter().chain(command.split(' ')).collect();
        run("ip", &arguments, input)
    }

    fn must(&self, place: &str, command: &str) -> String {
        self.on(place, command, "").expect("it works")
    }

    /// Two machines on one wire, each with a pod on a subnet of its own; forwarding closed and addresses translated
    /// as Docker does.
    fn new() -> Self {
        let net = Self { id: std::process::id() };
        let link = |a: &str, a_device: &str, b: &str, b_device: &str| {
            let (a, b) = (net.name(a), net.name(b));
            let text = format!("link add {a_device} netns {a} type veth peer name {b_device} netns {b}");
            run("ip", &text.split(' ').collect::<Vec<_>>(), "").expect("a wire");
        };
        for place in ["pma", "pmb", "ppa", "ppb"] {
            run("ip", &["netns", "add", &net.name(place)], "").expect("a namespace");
            net.must(place, "ip link set lo up");
        }
        link("pma", "wire", "pmb", "wire");
        for (number, machine, pod) in [(1, "pma", "ppa"), (2, "pmb", "ppb")] {
            link(machine, "pods", pod, "eth0");
            let pool = 240 + number;
            for command in [
                format!("ip addr add 192.0.2.{number}/24 dev wire"),
                format!("ip addr add 10.{pool}.0.1/24 dev pods"),
                "ip link set wire up".to_owned(),
                "ip link set pods up".to_owned(),
                "sysctl -qw net.ipv4.ip_forward=1".to_owned(),
                "iptables -P FORWARD DROP".to_owned(),
                "iptables -N DOCKER-USER".to_owned(),
                "iptables -A DOCKER-USER -j RETURN".to_owned(),
                "iptables -A FORWARD -j DOCKER-USER".to_owned(),
                "iptables -A FORWARD -o pods -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".to_owned(),
                "iptables -A FORWARD -i pods ! -o pods -j ACCEPT".to_owned(),
                format!("iptables -t nat -A POSTROUTING -s 10.{pool}.0.0/24 ! -o pods -j MASQUERADE"),
            ] {
                net.must(machine, &command);
            }
            net.must(pod, &format!("ip addr add 10.{pool}.0.2/24 dev eth0"));
            net.must(pod, "ip link set eth0 up");
            net.must(pod, &format!("ip route add default via 10.{pool}.0.1"));
        }
        net
    }

    /// What one round of the loop does on a machine.
    fn apply(&self, machine: &str, nodes: &[Node], own: &str, table: &str) {
        let wanted = plan::pod_net(nodes.iter(), own).expect("a subnet");
        for via in wanted.peers.values() {
            let shown = self.must(machine, &format!("ip -j -4 route get {via}"));
            assert_eq!(plan::way(&shown), Some(plan::Way::Direct));
        }
        let metric = plan::metric(table);
        let shown = self.must(machine, &format!("ip -j -4 route show proto {}", plan::ROUTE_PROTOCOL));
        for command in plan::route_commands(&wanted.peers, &plan::installed(&shown, metric), metric) {
            self.must(machine, &format!("ip {}", command.join(" ")));
        }
        let shown = self.must(machine, &format!("ip -j -4 route show proto {}", plan::ROUTE_PROTOCOL));
        assert_eq!(plan::installed(&shown, metric), wanted.peers, "the kernel has what was asked for");
        self.on(machine, "iptables-restore --noflush --wait", &plan::filter_script(&wanted, table)).expect("rules");
        let chain = plan::chain_name(table);
        if self.on(machine, &format!("iptables --wait -C DOCKER-USER -j {chain}"), "").is_err() {
            self.must(machine, &format!("iptables --wait -I DOCKER-USER 1 -j {chain}"));
        }
        self.on(machine, "nft -f -", &plan::nat_script(&wanted, table)).expect("a table");
    }

    /// The address under which the other pod sees the one in `from`; `None` when it cannot be reached.
    fn seen(&self, from: &str, to: &str, address: &str) -> Option<String> {
        let server = "import socket\ns=socket.create_server(('',7000))\nprint('up',flush=True)\ns.settimeout(20)\n\
                      c,a=s.accept()\nc.sendall(a[0].encode())\nc.close()";
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.name(to), "python3", "-c", server])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a server");
        std::io::Read::read_exact(child.stdout.as_mut().expect("a pipe"), &mut [0; 3]).expect("it is up");
        let client =
            format!("import socket\nc=socket.create_connection(('{address}',7000),2)\nprint(c.recv(100).decode())");
        let got = run("ip", &["netns", "exec", &self.name(from), "python3", "-c", &client], "");
        let _ = child.kill();
        let _ = child.wait();
        got.ok().map(|text| text.trim().to_owned())
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for place in ["pma", "pmb", "ppa", "ppb"] {
            let _ = run("ip", &["netns", "delete", &self.name(place)], "");
        }
    }
}

fn node(name: &str, cidr: &str, ip: &str) -> Node {
    serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"podCIDR": cidr},
        "status": {"addresses": [{"type": "InternalIP", "address": ip}]}}))
    .expect("a Node")
}

#[test]
fn pods_of_two_machines_reach_each_other_under_their_own_addresses() {
    let status = std::fs::read_to_string("/proc/self/status").expect("a process");
    if !status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0")) {
        println!("not root: the pod network test needs network namespaces and was not run");
        return;
    }
    let net = Net::new();
    let nodes = [node("a", "10.241.0.0/24", "192.0.2.1"), node("b", "10.242.0.0/24", "192.0.2.2")];
    assert_eq!(net.seen("ppa", "ppb", "10.242.0.2"), None, "nothing is routed yet");
    // Twice is as good as once.
    for _ in 0..2 {
        net.apply("pma", &nodes, "a", "t");
        net.apply("pmb", &nodes, "b", "t");
    }
    assert_eq!(net.seen("ppa", "ppb", "10.242.0.2").as_deref(), Some("10.241.0.2"));
    assert_eq!(net.seen("ppb", "ppa", "10.241.0.2").as_deref(), Some("10.242.0.2"));
    // A node reaches pods of the other one: its load balancer.
    assert_eq!(net.seen("pma", "ppb", "10.242.0.2").as_deref(), Some("192.0.2.1"));
    // Docker starts again: it flushes its own chains and leads to DOCKER-USER first. Ours is still there.
    net.must("pmb", "iptables -F FORWARD");
    net.must("pmb", "iptables -A FORWARD -j DOCKER-USER");
    net.must("pmb", "iptables -t nat -I POSTROUTING -s 10.242.0.0/24 ! -o pods -j MASQUERADE");
    assert_eq!(net.seen("ppb", "ppa", "10.241.0.2").as_deref(), Some("10.242.0.2"));
    // The other node goes.
    net.apply("pma", &nodes[..1], "a", "t");
    assert_eq!(net.must("pma", &format!("ip -4 route show proto {}", plan::ROUTE_PROTOCOL)), "");
    assert_eq!(net.seen("ppa", "ppb", "10.242.0.2"), None);
}
