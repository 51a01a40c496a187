//! What plugins are shown, by value.

use std::sync::Arc;

use scaleup_plugins::routing::{MAX_ENDPOINTS, Proximity};

use super::view::View;
use crate::backend::tests::{backend, of_plans};
use crate::backend::{Backend, Places, Tried};
use crate::balance::Outcome;
use crate::policy::{Locality, Prefer, ServicePolicy};
use crate::snapshot::{EndpointPlan, NodePlan};

fn shown(view: &View, backends: &[Option<Arc<Backend>>], tried: Tried, random: u64) -> Vec<(u64, (usize, usize))> {
    let offer = view.offer(0..backends.len(), random).expect("there are endpoints");
    let mut out = Vec::new();
    view.fill(backends, offer, tried, 1, &mut out);
    out.iter().enumerate().map(|(at, endpoint)| (endpoint.key, view.place(offer, at))).collect()
}

#[test]
fn endpoints_of_all_backends_are_shown_and_found_again() {
    let (a, b) = (backend(&["10.0.0.1:1", "10.0.0.2:1"], false), backend(&["10.0.0.1:1"], false));
    let backends = [Some(Arc::new(a)), None, Some(Arc::new(b))];
    let view = View::new(&backends);
    let shown = shown(&view, &backends, Tried::default(), 7);
    assert_eq!(shown.iter().map(|(_, place)| *place).collect::<Vec<_>>(), [(0, 0), (0, 1), (2, 0)]);
    assert!(shown[0].0 == shown[2].0 && shown[0].0 != shown[1].0, "a key is the address's, whoever has it");
    assert_eq!(view.topology.backends, ["d/web:80", "", "d/web:80"]);
    assert!(view.offer(1..2, 0).is_none(), "a reference that is not valid has no endpoints");
    assert!(view.is_of(&backends));
    let again = [backends[0].clone(), None, Some(Arc::new(backend(&["10.0.0.1:1"], false)))];
    assert!(!view.is_of(&again) && !view.is_of(&backends[..2]));
    assert!(View::new(&again).version > view.version);
}

#[test]
fn of_a_large_service_a_part_is_shown_that_changes() {
    let addresses: Vec<String> = (0..MAX_ENDPOINTS + 10).map(|i| format!("10.1.{}.{}:1", i / 250, i % 250)).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let backends = [Some(Arc::new(backend(&addresses, false)))];
    let view = View::new(&backends);
    let shown = shown(&view, &backends, Tried::default(), 1_030);
    assert_eq!(shown.len(), MAX_ENDPOINTS);
    assert_eq!((shown[0].1, shown[4].1, shown[MAX_ENDPOINTS - 1].1), ((0, 1_030), (0, 0), (0, 1_019)));
}

#[test]
fn places_health_and_load_are_told() {
    let plan = |addr: &str, node: &str, zone: &str, region: &str| {
        let some = |text: &str| (!text.is_empty()).then(|| Arc::from(text));
        EndpointPlan {
            addr: addr.parse().expect("an address"),
            pod_uid: None,
            node: some(node),
            zone: some(zone),
            region: some(region),
            weight: 7,
        }
    };
    let plans: Arc<[EndpointPlan]> = Arc::new([
        plan("10.0.0.1:1", "n1", "a", "r"),
        plan("10.0.0.2:1", "n2", "a", "r"),
        plan("10.0.0.3:1", "n3", "b", "r"),
        plan("10.0.0.4:1", "", "", ""),
    ]);
    let node =
        NodePlan { name: Some("n1".into()), zone: Some("a".into()), region: Some("r".into()), ..NodePlan::default() };
    let prefer = Prefer::Nearest([("r".into(), 50.0, 8.5)].into());
    let policy = ServicePolicy { locality: Locality { prefer, ..Locality::default() }, ..ServicePolicy::default() };
    let backend = of_plans(&plans, policy, &node, &Arc::default());
    let backend = Arc::new(backend.with_plugin(Places { plans, node: Arc::new(node) }, None));
    let backends = [Some(backend.clone())];
    let view = View::new(&backends);
    let topology = &view.topology;
    assert_eq!(topology.zones.iter().map(|zone| zone.name.as_str()).collect::<Vec<_>>(), ["a", "b", ""]);
    assert_eq!((topology.here, topology.zones[0].place.map(|place| place.latitude)), (Some(0), Some(50.0)));
    assert_eq!(topology.zones[2].place, None);

    backend.endpoints[1].begin(0);
    backend.endpoints[2].report(&backend.policy, Outcome::ConnectFailed, 0);
    let mut tried = Tried::default();
    tried.insert(3);
    let mut out = Vec::new();
    let now_ms = crate::balance::clock::ms(std::time::Instant::now());
    backend.refresh(now_ms);
    view.fill(&backends, view.offer(0..1, 0).expect("endpoints"), tried, now_ms, &mut out);
    let proximity: Vec<_> = out.iter().map(|endpoint| endpoint.proximity).collect();
    assert_eq!(proximity, [Proximity::Node, Proximity::Zone, Proximity::Region, Proximity::Elsewhere]);
    assert_eq!(out.iter().map(|endpoint| endpoint.zone).collect::<Vec<_>>(), [0, 0, 1, 2]);
    assert_eq!(out.iter().map(|endpoint| endpoint.in_flight).collect::<Vec<_>>(), [0, 1, 0, 0]);
    assert_eq!(out.iter().map(|endpoint| endpoint.tried).collect::<Vec<_>>(), [false, false, false, true]);
    assert_eq!(out[2].health, scaleup_plugins::routing::Health::Suspect);
    assert!(out[2].failures > 0.0 && out[0].failures == 0.0 && out[0].weight == 7);
}
