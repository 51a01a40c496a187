//! What survives a snapshot, and what ends with it.

use std::collections::BTreeSet;

use super::state::USAGE_KEPT_SECONDS;
use super::*;
use crate::snapshot::{PlanConfig, plan};
use serde_json::json;

/// Services by name, each with the endpoints given as `(last octet, Pod UID)`.
fn snapshot(services: &[(&str, &[(u8, &str)])]) -> Snapshot {
    let mut objects = Vec::new();
    let mut slices = Vec::new();
    for (name, endpoints) in services {
        let service = json!({"metadata": {"name": name, "namespace": "d"},
            "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        objects.push(serde_json::from_value(service).expect("a Service"));
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|(octet, uid)| {
                json!({"addresses": [format!("10.0.0.{octet}")], "targetRef": {"kind": "Pod", "uid": uid}})
            })
            .collect();
        let slice = json!({"metadata": {"name": name, "namespace": "d",
            "labels": {"kubernetes.io/service-name": name}}, "addressType": "IPv4",
            "ports": [{"port": 8080}], "endpoints": endpoints});
        slices.push(serde_json::from_value(slice).expect("an EndpointSlice"));
    }
    plan(&objects, &slices, &PlanConfig::default())
}

fn cell(hub: &Hub, name: &str) -> Arc<BackendCell> {
    let service = ServiceKey::new("d", name);
    hub.cell(&PortKey { service, port: 80, protocol: Protocol::Tcp, view: View::Outside }).expect("a cell")
}

#[test]
fn states_outlive_snapshots_and_end_with_their_service() {
    let hub = Hub::new(1);
    hub.publish(snapshot(&[("a", &[(1, "p1"), (2, "p2")]), ("b", &[(1, "p1")])]));
    let (a, b) = (cell(&hub, "a"), cell(&hub, "b"));
    let backend = a.load_full();
    let (first, second, of_b) = (&backend.endpoints[0], &backend.endpoints[1], b.load().endpoints[0].clone());
    hub.publish(snapshot(&[("a", &[(1, "p1")]), ("b", &[(1, "p1")])]));
    assert!(!first.is_removed() && second.is_removed());
    assert!(Arc::ptr_eq(first, &a.load().endpoints[0]) && Arc::ptr_eq(&of_b, &b.load().endpoints[0]));
    hub.publish(snapshot(&[("a", &[(3, "p3")])]));
    assert!(first.is_removed() && of_b.is_removed());
    assert!(b.load().endpoints.is_empty(), "connections of a Service that is gone find nobody");
    assert!(Arc::ptr_eq(&a, &cell(&hub, "a")));
}

#[test]
fn what_one_service_finds_wrong_with_an_address_is_nothing_to_another() {
    use crate::backend::Health;
    use crate::balance::Outcome;
    use crate::policy::{Outlier, ServicePolicy};
    let hub = Hub::new(1);
    let mut all = snapshot(&[("a", &[(1, "p1")]), ("b", &[(1, "p1")])]);
    let routed = BackendRef { service: ServiceKey::new("d", "a"), port: 80, protocol: Protocol::Tcp };
    all.routed = Arc::new(BTreeSet::from([routed.clone()]));
    hub.publish(all);
    let own = cell(&hub, "a").load().endpoints[0].clone();
    let other = cell(&hub, "b").load().endpoints[0].clone();
    let of_routes = hub.cell(&PortKey::routed(&routed)).expect("a cell").load().endpoints[0].clone();
    let outlier = Outlier {
        consecutive_errors: 1,
        failure_percent: None,
        minimum_requests: 1,
        interval: std::time::Duration::from_secs(10),
        base_ejection: std::time::Duration::from_secs(60),
        max_ejection: std::time::Duration::from_secs(60),
        max_ejected_percent: 100,
        panic_percent: 0,
    };
    let policy = ServicePolicy { outlier: Some(outlier), ..ServicePolicy::default() };
    own.report(&policy, Outcome::Status(500, std::time::Duration::ZERO), 0);
    assert_eq!((own.health(), other.health()), (Health::Ejected, Health::Healthy));
    other.set_check_failing(true, Instant::now());
    assert_eq!((own.health(), other.health()), (Health::Ejected, Health::Failing));
    assert!(Arc::ptr_eq(&own, &of_routes), "the Service's own traffic and routes learn from each other");
    assert!(Arc::ptr_eq(&own.pod.as_ref().expect("a Pod").1, &other.pod.as_ref().expect("a Pod").1), "one bill");
}

#[test]
fn a_request_finds_the_endpoints_of_a_backend_that_its_route_has_just_lost() {
    let hub = Hub::new(1);
    let published = |routed: &[BackendRef]| {
        let mut snapshot = snapshot(&[("a", &[(1, "p1")])]);
        snapshot.routed = Arc::new(routed.iter().cloned().collect());
        hub.publish(snapshot);
    };
    let backend = BackendRef { service: ServiceKey::new("d", "a"), port: 80, protocol: Protocol::Tcp };
    published(std::slice::from_ref(&backend));
    let found = hub.cell(&PortKey::routed(&backend)).expect("a cell");
    published(&[]);
    assert!(hub.cell(&PortKey::routed(&backend)).is_none());
    assert_eq!(found.load().endpoints.len(), 1);
}

#[test]
fn an_address_taken_over_by_another_pod_starts_afresh() {
    let hub = Hub::new(1);
    hub.publish(snapshot(&[("a", &[(1, "old")])]));
    let old = cell(&hub, "a").load().endpoints[0].clone();
    hub.publish(snapshot(&[("a", &[(1, "new")])]));
    let new = cell(&hub, "a").load().endpoints[0].clone();
    assert!(old.is_removed() && !new.is_removed() && old.id != new.id);
}

#[test]
fn usage_is_kept_for_a_while_after_the_pod_and_then_forgotten() {
    let hub = Hub::new(1);
    hub.publish(snapshot(&[("a", &[(1, "p1")])]));
    cell(&hub, "a").load().endpoints[0].usage().expect("usage").request(0);
    hub.publish(snapshot(&[]));
    assert_eq!(hub.usage()[0].1.requests, 1);
    hub.state.lock().forget_old_usage(now_seconds() + USAGE_KEPT_SECONDS + 1);
    assert!(hub.usage().is_empty());
}

#[test]
fn listeners_share_rules_until_their_backend_is_forgotten() {
    use crate::proxy::held::Unseen;
    use crate::proxy::site::SiteMode;
    use crate::snapshot::routes::*;
    let hub = Hub::new(1);
    let backend = BackendRef { service: ServiceKey::new("d", "a"), port: 80, protocol: Protocol::Tcp };
    let share = WeightedBackend { backend: Some(backend.clone()), weight: 1, filters: vec![] };
    let rule = Arc::new(RulePlan {
        id: RuleId::default(),
        path: PathMatch::Prefix("/".into()),
        method: None,
        headers: vec![],
        query: vec![],
        filters: vec![],
        backends: vec![share],
        policy: Arc::default(),
    });
    let at = |port: u16| HostPort { port, protocol: Protocol::Tcp };
    let published = |routed: bool| {
        let mut snapshot = snapshot(&[("a", &[(1, "p1")])]);
        for port in [80, 81].into_iter().filter(|_| routed) {
            snapshot.routed = Arc::new(BTreeSet::from([backend.clone()]));
            let hosts = Arc::new(HostsPlan { hosts: [(HostPattern::Any, vec![rule.clone()])].into() });
            let http = HttpPlan { listeners: [(HostPattern::Any, hosts)].into(), ..HttpPlan::default() };
            let mode = Mode::Http(Arc::new(http));
            let listener = ListenerPlan { created: 0, owners: vec![], accept_proxy: None, mode };
            snapshot.listeners.insert(at(port), Arc::new(listener));
        }
        hub.publish(snapshot);
    };
    let found = |port| {
        let site = hub.site(&SiteKey::Listener(at(port))).expect("a site").load_full();
        let SiteMode::Http(table) = &site.mode else { panic!("no HTTP") };
        table.find(&Unseen([192, 0, 2, 1].into())).expect("a rule").clone()
    };
    published(true);
    let before = found(80);
    assert!(Arc::ptr_eq(&before, &found(81)));
    published(true);
    assert!(Arc::ptr_eq(&before, &found(80)), "the plan is the same");
    published(false);
    published(true);
    let after = found(80);
    let cell = hub.cell(&PortKey::routed(&backend)).expect("a cell");
    assert!(after.backends[0].cell.as_ref().is_some_and(|own| Arc::ptr_eq(own, &cell)), "endpoints are followed again");
}
