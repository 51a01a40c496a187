//! What a plugin says is what happens.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use hyper::StatusCode;
use libtest_mimic::Trial;
use prometheus_client::registry::Registry as Metrics;
use scaleup_lb::AccessTarget;
use scaleup_lb::policy::{Algorithm, PluginRef, RequestPolicy, ServicePolicy};
use scaleup_plugins::Registry;
use serde_json::Value;

use crate::guests::*;
use crate::h2_support::H2Client;
use crate::routed::{Routed, Setup, governed, share};
use crate::scripted::{Scripted, addrs, with};
use crate::support::*;
use crate::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("a_pick_is_where_a_request_goes", a_pick_is_where_a_request_goes),
        trial("a_new_generation_decides_at_once", a_new_generation_decides_at_once),
        trial("default_is_the_built_in_policy", default_is_the_built_in_policy),
        trial("a_rejection_is_the_answer_in_both_versions", a_rejection_is_the_answer_in_both_versions),
        trial("headers_are_seen_that_were_selected", headers_are_seen_that_were_selected),
        trial("a_plugin_of_a_route_chooses_among_all_backends", a_plugin_of_a_route_chooses_among_all_backends),
        trial(
            "an_endpoint_that_is_not_well_is_not_used_for_a_pick",
            an_endpoint_that_is_not_well_is_not_used_for_a_pick,
        ),
        trial("a_decision_is_told_in_log_metrics_and_explanation", a_decision_is_told_in_log_metrics_and_explanation),
    ]
}

/// Endpoints whose names are in the order in which plugins see them: that of their addresses.
pub async fn in_order<const N: usize>() -> [Scripted; N] {
    loop {
        let endpoints = Scripted::several::<N>().await;
        if endpoints.is_sorted_by_key(|endpoint| endpoint.addr) {
            return endpoints;
        }
    }
}

/// Endpoints in turn, unless the plugin says otherwise.
pub fn bound(plugin: &Arc<PluginRef>) -> ServicePolicy {
    let algorithm = Some(Algorithm::RoundRobin);
    ServicePolicy { algorithm, plugin: Some(plugin.clone()), ..ServicePolicy::default() }
}

/// A load balancer before a Service with the plugin `p`.
pub async fn lab(endpoints: &[Scripted], registry: &Arc<Registry>, headers: &[&str]) -> Lab {
    let addrs = addrs(endpoints);
    let lab = Lab::start("http", &[], |config| config.plugins = registry.clone()).await;
    lab.lb.publish(with(&addrs, bound(&wanted("p", headers)), RequestPolicy::default()));
    lab
}

pub fn served(endpoints: &[Scripted]) -> Vec<u64> {
    endpoints.iter().map(Scripted::served).collect()
}

async fn a_pick_is_where_a_request_goes() {
    let (endpoints, registry) = (in_order::<3>().await, Arc::new(Registry::default()));
    publish(&registry, "p", 1, &picks(1), None).await;
    let lab = lab(&endpoints, &registry, &[]).await;
    let mut client = Client::connect(lab.addr).await;
    for _ in 0..20 {
        assert_eq!(client.get("/").await, (StatusCode::OK, "e1".to_owned()));
    }
    let mut client = H2Client::connect(lab.addr).await;
    for _ in 0..20 {
        assert_eq!(client.get("/").await.text(), "e1");
    }
    assert_eq!(served(&endpoints), [0, 40, 0]);
    lab.stop().await;
}

async fn a_new_generation_decides_at_once() {
    let (endpoints, registry) = (in_order::<3>().await, Arc::new(Registry::default()));
    let slot = publish(&registry, "p", 1, &picks(0), None).await;
    let lab = lab(&endpoints, &registry, &[]).await;
    let mut client = Client::connect(lab.addr).await;
    assert_eq!(client.get("/").await.1, "e0");
    publish(&registry, "p", 2, &picks(2), None).await;
    assert_eq!(client.get("/").await.1, "e2");
    assert_eq!(slot.policy.roll_back(), Some(1));
    assert_eq!(client.get("/").await.1, "e0");
    lab.stop().await;
}

async fn default_is_the_built_in_policy() {
    let (endpoints, registry) = (in_order::<3>().await, Arc::new(Registry::default()));
    publish(&registry, "p", 1, &says_default(), None).await;
    let lab = lab(&endpoints, &registry, &[]).await;
    let mut client = Client::connect(lab.addr).await;
    for _ in 0..12 {
        client.get("/").await;
    }
    assert_eq!(served(&endpoints), [4, 4, 4]);
    lab.stop().await;
}

async fn a_rejection_is_the_answer_in_both_versions() {
    let (endpoints, registry) = (in_order::<1>().await, Arc::new(Registry::default()));
    publish(&registry, "p", 1, &rejects(429, "x-why", "too much"), None).await;
    let lab = lab(&endpoints, &registry, &[]).await;
    let mut client = Client::connect(lab.addr).await;
    for _ in 0..2 {
        let response = client.send("GET", "/", text_body("")).await.unwrap();
        assert_eq!(
            (response.status(), response.headers()["x-why"].to_str().unwrap()),
            (StatusCode::TOO_MANY_REQUESTS, "too much")
        );
        http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
    }
    // A body that nobody takes ends the connection.
    let answer = raw(lab.addr, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc").await;
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 429 ") && answer.contains("connection: close\r\n"), "{answer}");
    let answer = H2Client::connect(lab.addr).await.get("/").await;
    assert_eq!((answer.status, answer.field("x-why")), (429, "too much"));
    assert_eq!(served(&endpoints), [0]);
    lab.until("they are counted for the Service", |totals| totals.codes[3] == 4).await;
    lab.stop().await;
}

async fn headers_are_seen_that_were_selected() {
    let (endpoints, registry) = (in_order::<3>().await, Arc::new(Registry::default()));
    publish(&registry, "p", 1, &counts_headers(), None).await;
    let lab = lab(&endpoints, &registry, &["x-a", "x-b"]).await;
    let ask = async |headers: &[(&str, &str)]| crate::scripted::get_from(&lab, crate::scripted::HERE, headers).await.2;
    assert_eq!(ask(&[("x-c", "1")]).await, "e0");
    assert_eq!(ask(&[("X-B", "1"), ("x-c", "1")]).await, "e1");
    assert_eq!(ask(&[("x-a", "1"), ("x-b", "1"), ("x-b", "2")]).await, "e2");
    lab.stop().await;
}

async fn a_plugin_of_a_route_chooses_among_all_backends() {
    let (endpoints, registry) = (in_order::<3>().await, Arc::new(Registry::default()));
    publish(&registry, "p", 1, &picks(2), None).await;
    let plugin = |whole_rule| Arc::new(PluginRef { whole_rule, ..PluginRef::clone(&wanted("p", &[])) });
    let setup = |whole_rule| {
        let policy = RequestPolicy { plugin: Some(plugin(whole_rule)), ..RequestPolicy::default() };
        let mut rule = governed("/", "main", policy);
        // The second backend gets nothing by its weight.
        rule.backends.push(share("canary", 0));
        let [a, b, canary] = [endpoints[0].addr, endpoints[1].addr, endpoints[2].addr];
        Setup::default().service("main", &[a, b]).service("canary", &[canary]).rules(vec![rule])
    };
    let lab = Routed::configured(&setup(true), |config| config.plugins = registry.clone()).await;
    for _ in 0..10 {
        assert_eq!(lab.get("/").await.body, "e2");
    }
    publish(&registry, "p", 2, &says_default(), None).await;
    for _ in 0..10 {
        assert_ne!(lab.get("/").await.body, "e2", "weights decide where the plugin does not");
    }
    // One on the Gateway chooses among the endpoints of the backend that weights chose.
    publish(&registry, "p", 3, &picks(1), None).await;
    lab.publish(&setup(false));
    for _ in 0..10 {
        assert_eq!(lab.get("/").await.body, "e1");
    }
    lab.stop().await;
}

async fn an_endpoint_that_is_not_well_is_not_used_for_a_pick() {
    let (endpoints, registry) = (in_order::<3>().await, Arc::new(Registry::default()));
    publish(&registry, "p", 1, &picks(0), None).await;
    let lab = lab(&endpoints, &registry, &[]).await;
    let mut client = Client::connect(lab.addr).await;
    assert_eq!(client.get("/").await.1, "e0");
    endpoints[0].kill.cancel();
    for _ in 0..30 {
        let (status, name) = client.get("/").await;
        assert!(status == StatusCode::OK && name != "e0", "{status} {name}");
    }
    // Refused at first, then avoided: not one attempt per request.
    assert!(lab.totals().connect_failures <= 4, "{:?}", lab.totals());
    lab.stop().await;
}

async fn a_decision_is_told_in_log_metrics_and_explanation() {
    let (endpoints, registry) = (in_order::<2>().await, Arc::new(Registry::default()));
    publish(&registry, "p", 7, &picks(1), None).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let ip = own_ip();
    let mut metrics = Metrics::default();
    let (lb, shutdown, run) = launch_registered(ip, &mut metrics, |config| {
        config.plugins = registry.clone();
        config.observe.access_log = Some(AccessTarget::File(path.clone()));
    });
    lb.publish(with(&addrs(&endpoints), bound(&wanted("p", &[])), RequestPolicy::default()));
    assert!(tokio::time::timeout(PATIENCE, lb.wait_bound(&crate::support::key())).await.unwrap());
    let addr = (ip, SERVICE_PORT).into();
    Client::connect(addr).await.get("/picked").await;
    publish(&registry, "p", 8, &rejects(403, "x-why", "no"), None).await;
    H2Client::connect(addr).await.get("/rejected").await;

    let said = lb.view("explain", &format!("url=http://a:{SERVICE_PORT}/")).unwrap();
    assert_eq!((&said["plugin"]["generation"], &said["plugin"]["decision"]), (&8.into(), &"reject".into()), "{said:#}");
    assert_eq!(said["verdict"], "The plugin shop/p (generation 8) refuses it: the answer is 403.");
    publish(&registry, "p", 9, &picks(0), None).await;
    let said = lb.view("explain", &format!("url=http://a:{SERVICE_PORT}/")).unwrap();
    assert_eq!(said["verdict"], format!("It would be sent to {}.", endpoints[0].addr));

    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &metrics).unwrap();
    for line in [
        r#"lb_plugin_decisions_total{plugin="shop/p",generation="7",decision="pick"} 1"#,
        r#"lb_plugin_decisions_total{plugin="shop/p",generation="8",decision="reject"} 1"#,
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(!text.contains(r#"generation="9""#), "explanations are not counted here");
    shutdown.cancel();
    tokio::time::timeout(PATIENCE, run).await.unwrap().unwrap().unwrap();
    let lines = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let line = |path: &str| lines.iter().find(|line| line["path"] == path).unwrap_or_else(|| panic!("{lines:#?}"));
    let told = |line: &Value| {
        let text = |field: &str| line[field].to_string();
        format!("{} {} {} {}", text("plugin"), text("plugin_generation"), text("plugin_decision"), text("flags"))
    };
    assert_eq!(told(line("/picked")), r#""shop/p" 7 "pick" []"#);
    assert_eq!(told(line("/rejected")), r#""shop/p" 8 "reject" ["plugin_refused"]"#);
    assert_eq!((endpoints[0].served(), endpoints[1].script.served.load(Relaxed)), (0, 1));
}
