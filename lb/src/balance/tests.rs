//! Decisions by value: algorithms, health, limits, with endpoints that nobody serves and a clock that is only counted.

use std::borrow::Cow;
use std::sync::atomic::Ordering::Relaxed;

use super::*;
use crate::backend::tests::{of_plans, with_policy};
use crate::backend::{EndpointState, Health, Tried};
use crate::policy::{Algorithm, InFlightLimits, Locality, Outlier, Prefer, Queue, Retries, ServicePolicy};
use crate::snapshot::{EndpointPlan, NodePlan};

/// A request's head.
#[derive(Clone)]
pub(crate) struct Request {
    pub path: &'static str,
    pub query: Option<&'static str>,
    pub headers: Vec<(&'static str, &'static str)>,
    pub client: IpAddr,
}

impl Default for Request {
    fn default() -> Self {
        Self { path: "/", query: None, headers: vec![], client: IpAddr::from([192, 0, 2, 1]) }
    }
}

impl Head for Request {
    fn method(&self) -> &str {
        "GET"
    }
    fn host(&self) -> &str {
        "web"
    }
    fn path(&self) -> &str {
        self.path
    }
    fn query(&self) -> Option<&str> {
        self.query
    }
    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        self.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| Cow::Borrowed(*value))
    }
    fn client(&self) -> IpAddr {
        self.client
    }
}

const THREE: [&str; 3] = ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"];
const MS: Duration = Duration::from_millis(1);

fn policy(algorithm: Algorithm) -> ServicePolicy {
    ServicePolicy { algorithm: Some(algorithm), ..ServicePolicy::default() }
}

/// Simulated clients and endpoints: time passes only here.
struct Sim {
    backend: Backend,
    now: Instant,
    counts: Vec<u32>,
}

impl Sim {
    fn new(backend: Backend) -> Self {
        Self { counts: vec![0; backend.endpoints.len()], backend, now: Instant::now() + Duration::from_secs(1) }
    }

    fn choice(&self) -> Choice {
        Choice { client: IpAddr::from([192, 0, 2, 1]), hash: None, pinned: None, thread: 0, now: self.now }
    }

    fn pick(&mut self) -> usize {
        let index = self.backend.choose(&self.choice(), Tried::default()).expect("an endpoint").0;
        self.counts[index] += 1;
        index
    }

    fn picks(&mut self, count: usize) {
        for _ in 0..count {
            self.pick();
        }
    }

    /// One request after the other; `answer` gives an endpoint's status and time.
    fn one_by_one(&mut self, count: usize, answer: impl Fn(usize) -> (u16, Duration)) {
        for _ in 0..count {
            let index = self.pick();
            let (status, time) = answer(index);
            self.now += time;
            self.backend.endpoints[index].report_at(&self.backend.policy, Outcome::Status(status, time), self.now);
        }
    }

    /// `clients` that always have one request in flight.
    fn at_once(&mut self, clients: usize, count: usize, answer: impl Fn(usize) -> (u16, Duration)) {
        let mut busy: Vec<(Instant, usize, u16, Duration)> = Vec::new();
        for _ in 0..count {
            if busy.len() == clients {
                let first = (0..busy.len()).min_by_key(|at| busy[*at].0).expect("one is in flight");
                let (ends, index, status, time) = busy.swap_remove(first);
                self.now = ends;
                let endpoint = &self.backend.endpoints[index];
                endpoint.report_at(&self.backend.policy, Outcome::Status(status, time), ends);
                endpoint.end(0);
            }
            let index = self.pick();
            self.backend.endpoints[index].begin(0);
            let (status, time) = answer(index);
            busy.push((self.now + time, index, status, time));
        }
        busy.into_iter().for_each(|(_, index, ..)| self.backend.endpoints[index].end(0));
    }

    fn shares(&mut self) -> Vec<u32> {
        let total: u32 = self.counts.iter().sum();
        let shares = self.counts.iter().map(|count| (count * 100 + total / 2) / total).collect();
        self.counts.fill(0);
        shares
    }
}

fn fast(_: usize) -> (u16, Duration) {
    (200, MS)
}

#[test]
fn by_default_equal_endpoints_are_served_exactly_in_turn() {
    let mut sim = Sim::new(with_policy(&THREE, ServicePolicy::default(), |_| {}));
    // Latencies differ as they do on a busy machine.
    sim.one_by_one(3_000, |index| (200, MS * (1 + index as u32 * 5)));
    assert_eq!(sim.counts, [1_000; 3]);
}

#[test]
fn by_default_a_slow_endpoint_gets_little_and_its_share_back_when_it_recovers() {
    let mut sim = Sim::new(with_policy(&THREE, ServicePolicy::default(), |_| {}));
    let one_slow = |index| (200, if index == 1 { MS * 300 } else { MS });
    sim.one_by_one(3_000, one_slow);
    assert!(sim.counts[1] <= 10, "{:?}", sim.counts);
    sim.counts.fill(0);
    sim.at_once(16, 10_000, one_slow);
    assert!(sim.shares()[1] <= 2);
    sim.now += Duration::from_secs(60);
    sim.at_once(16, 30_000, fast);
    sim.counts.fill(0);
    sim.at_once(16, 3_000, fast);
    assert!(sim.shares().iter().all(|share| (25..=40).contains(share)));
}

#[test]
fn by_default_fast_failures_attract_nobody() {
    for clients in [1, 16] {
        let mut sim = Sim::new(with_policy(&THREE, ServicePolicy::default(), |_| {}));
        sim.at_once(clients, 10_000, |index| if index == 2 { (503, MS / 4) } else { (200, MS * 10) });
        assert!(sim.shares()[2] <= 3);
    }
    // The old rule would have liked it best.
    let mut sim = Sim::new(with_policy(&THREE, policy(Algorithm::LeastRequest), |_| {}));
    sim.at_once(16, 10_000, |index| if index == 2 { (503, MS / 4) } else { (200, MS * 10) });
    assert!(sim.shares()[2] > 50);
}

#[test]
fn an_error_now_and_then_changes_little() {
    let mut sim = Sim::new(with_policy(&THREE, ServicePolicy::default(), |_| {}));
    let n = std::cell::Cell::new(0);
    sim.at_once(16, 30_000, |_| {
        n.set(n.get() + 1);
        (if n.get() % 100 == 0 { 500 } else { 200 }, MS * 5)
    });
    assert!(sim.shares().iter().all(|share| (20..=47).contains(share)));
}

#[test]
fn weights_hold_for_every_algorithm() {
    use Algorithm::*;
    for algorithm in [RoundRobin, Random, LeastConnections, LeastRequest, PeakEwma] {
        let weigh =
            |plan: &mut EndpointPlan| plan.weight = if plan.addr.ip().to_string() == "10.0.0.1" { 200 } else { 100 };
        let mut sim = Sim::new(with_policy(&THREE, policy(algorithm), weigh));
        sim.at_once(40, 20_000, |_| (200, MS * 5));
        let shares = sim.shares();
        assert!((45..=55).contains(&shares[0]) && (20..=30).contains(&shares[1]), "{algorithm:?}: {shares:?}");
    }
}

#[test]
fn round_robin_by_weight_is_exact() {
    let weigh =
        |plan: &mut EndpointPlan| plan.weight = if plan.addr.ip().to_string() == "10.0.0.2" { 300 } else { 100 };
    let mut sim = Sim::new(with_policy(&THREE, policy(Algorithm::RoundRobin), weigh));
    sim.one_by_one(500, fast);
    assert_eq!(sim.counts, [100, 300, 100]);
}

#[test]
fn weight_zero_is_a_last_resort() {
    let weigh = |plan: &mut EndpointPlan| plan.weight = if plan.addr.ip().to_string() == "10.0.0.1" { 0 } else { 100 };
    for algorithm in [Algorithm::RoundRobin, Algorithm::PeakEwma, Algorithm::Maglev, Algorithm::LeastConnections] {
        let mut sim = Sim::new(with_policy(&THREE, policy(algorithm), weigh));
        sim.picks(100);
        assert_eq!(sim.counts[0], 0);
        let mut tried = Tried::default();
        tried.insert(1);
        tried.insert(2);
        assert_eq!(sim.backend.choose(&sim.choice(), tried).expect("the last").0, 0);
        sim.backend.endpoints[1].report_at(&sim.backend.policy, Outcome::ConnectFailed, sim.now);
        sim.backend.endpoints[2].report_at(&sim.backend.policy, Outcome::ConnectFailed, sim.now);
        assert_eq!(sim.pick(), 0, "the others refuse connections");
    }
}

#[test]
fn least_connections_and_least_request_follow_what_is_in_flight() {
    for (algorithm, most) in [(Algorithm::LeastConnections, 8), (Algorithm::LeastRequest, 20)] {
        let mut sim = Sim::new(with_policy(&THREE, policy(algorithm), |_| {}));
        sim.at_once(30, 20_000, |index| (200, if index == 0 { MS * 100 } else { MS * 5 }));
        assert!(sim.shares()[0] <= most, "{algorithm:?}");
    }
}

#[test]
fn hashing_sticks_and_bounded_load_spills() {
    for algorithm in [Algorithm::RingHash, Algorithm::Maglev] {
        let sim = Sim::new(with_policy(&THREE, policy(algorithm), |_| {}));
        let pick = |backend: &Backend, hash| {
            backend.choose(&Choice { hash: Some(hash), ..sim.choice() }, Tried::default()).expect("one").0
        };
        let first = pick(&sim.backend, 42);
        assert!((0..50).all(|_| pick(&sim.backend, 42) == first));
        let used: std::collections::BTreeSet<usize> = (0..100).map(|hash| pick(&sim.backend, hash)).collect();
        assert_eq!(used.len(), 3);
        // All clients want the same one: nobody gets more than 1.25 times the mean.
        let bounded = ServicePolicy { bounded_load_percent: Some(125), ..policy(algorithm) };
        let mut sim = Sim::new(with_policy(&THREE, bounded, |_| {}));
        for _ in 0..300 {
            let index = sim.pick();
            sim.backend.endpoints[index].begin(0);
        }
        assert!(sim.counts.iter().all(|count| *count <= 126), "{:?}", sim.counts);
        assert_eq!(sim.counts.iter().max(), Some(&125));
    }
}

#[test]
fn random_spreads_evenly_and_passes_over_what_is_not_well() {
    let mut sim = Sim::new(with_policy(&THREE, policy(Algorithm::Random), |_| {}));
    sim.picks(9_000);
    assert!(sim.counts.iter().all(|count| (2_700..3_300).contains(count)), "{:?}", sim.counts);
    sim.backend.endpoints[1].report_at(&sim.backend.policy, Outcome::ConnectFailed, sim.now);
    sim.counts.fill(0);
    sim.picks(100);
    assert_eq!(sim.counts[1], 0);
}

#[test]
fn a_new_endpoint_grows_into_its_share() {
    let slow = ServicePolicy { slow_start: Some((Duration::from_secs(100), 10)), ..policy(Algorithm::RoundRobin) };
    let mut sim = Sim::new(with_policy(&THREE, slow, |_| {}));
    sim.now += Duration::from_secs(1_000);
    // It comes back from an ejection just now.
    sim.backend.endpoints[2].set_check_failing(true, sim.now);
    sim.backend.endpoints[2].set_check_failing(false, sim.now);
    let mut share = |after: u64| {
        sim.now += Duration::from_secs(after);
        sim.picks(9_000);
        sim.shares()[2]
    };
    let shares = [share(0), share(50), share(50)];
    assert!((1..=6).contains(&shares[0]) && (13..=21).contains(&shares[1]) && shares[2] == 33, "{shares:?}");
}

fn outlier() -> Outlier {
    Outlier {
        consecutive_errors: 2,
        failure_percent: None,
        minimum_requests: 10,
        interval: Duration::from_secs(10),
        base_ejection: Duration::from_secs(30),
        max_ejection: Duration::from_secs(300),
        max_ejected_percent: 50,
        panic_percent: 0,
    }
}

fn fail(sim: &Sim, index: usize) {
    let endpoint = &sim.backend.endpoints[index];
    (0..2).for_each(|_| endpoint.report_at(&sim.backend.policy, Outcome::Status(500, MS), sim.now));
}

fn health(sim: &Sim) -> Vec<Health> {
    sim.backend.health(sim.now).map(|(_, health)| health).collect()
}

#[test]
fn ejections_are_honoured_up_to_their_share_oldest_first_and_end() {
    use Health::{Ejected, Healthy};
    let addresses = ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1"];
    let policy = ServicePolicy { outlier: Some(outlier()), ..policy(Algorithm::RoundRobin) };
    let mut sim = Sim::new(with_policy(&addresses, policy, |_| {}));
    for index in [2, 0, 1] {
        sim.now += MS;
        fail(&sim, index);
    }
    assert_eq!(health(&sim), [Ejected, Healthy, Ejected, Healthy], "half of them at most");
    sim.picks(100);
    assert!(sim.counts[0] == 0 && sim.counts[2] == 0 && sim.counts[1] > 30, "{:?}", sim.counts);
    // The first ejection ends, and another one is honoured in its place.
    sim.now += Duration::from_secs(30) - MS * 2;
    assert_eq!(health(&sim), [Ejected, Ejected, Healthy, Healthy]);
    sim.now += MS * 2;
    assert_eq!(health(&sim), [Healthy; 4]);
    assert_eq!(sim.backend.endpoints[0].health_at(clock::ms(sim.now)).0, Healthy);
}

#[test]
fn when_too_few_are_well_health_is_ignored() {
    let panicky = Outlier { max_ejected_percent: 100, panic_percent: 50, ..outlier() };
    let policy = ServicePolicy { outlier: Some(panicky), ..policy(Algorithm::RoundRobin) };
    let mut sim = Sim::new(with_policy(&THREE, policy, |_| {}));
    fail(&sim, 0);
    sim.picks(90);
    assert!(sim.counts[0] == 0 && (30..=60).contains(&sim.counts[1]), "{:?}", sim.counts);
    fail(&sim, 1);
    sim.counts.fill(0);
    sim.picks(90);
    assert_eq!(sim.counts, [30, 30, 30], "one of three is below half");
}

#[test]
fn failing_checks_count_until_all_are_over() {
    let sim = Sim::new(with_policy(&THREE, ServicePolicy::default(), |_| {}));
    let endpoint: &EndpointState = &sim.backend.endpoints[0];
    endpoint.set_check_failing(true, sim.now);
    endpoint.set_check_failing(true, sim.now);
    endpoint.set_check_failing(false, sim.now);
    assert_eq!(endpoint.health(), Health::Failing);
    endpoint.set_check_failing(false, sim.now);
    assert_eq!(endpoint.health(), Health::Healthy);
}

#[test]
fn connections_that_break_are_failures_although_they_could_be_made() {
    let policy = ServicePolicy { outlier: Some(outlier()), ..policy(Algorithm::RoundRobin) };
    let sim = Sim::new(with_policy(&THREE, policy, |_| {}));
    for _ in 0..2 {
        for outcome in [Outcome::Connected(MS), Outcome::Reset] {
            sim.backend.endpoints[0].report_at(&sim.backend.policy, outcome, sim.now);
        }
    }
    assert_eq!(health(&sim)[0], Health::Ejected);
}

fn zones(prefer: Prefer, places: &[(&str, &str)]) -> Sim {
    let plans: Vec<EndpointPlan> = (1..)
        .zip(places)
        .map(|(octet, (zone, region))| EndpointPlan {
            addr: ([10, 0, 0, octet], 1).into(),
            pod_uid: None,
            node: None,
            zone: Some((*zone).into()),
            region: Some((*region).into()),
            weight: 100,
        })
        .collect();
    let locality = Locality { prefer, spillover_percent: 70 };
    let policy = ServicePolicy { locality, ..policy(Algorithm::RoundRobin) };
    let node = NodePlan { zone: Some("a".into()), region: Some("x".into()), ..NodePlan::default() };
    Sim::new(of_plans(&plans, policy, &node, &Arc::default()))
}

#[test]
fn near_endpoints_are_preferred_and_traffic_spills_when_they_fail() {
    let mut sim = zones(Prefer::Zone, &[("a", "x"), ("a", "x"), ("b", "x"), ("c", "y")]);
    sim.picks(100);
    assert_eq!(sim.counts, [50, 50, 0, 0]);
    sim.counts.fill(0);
    // Half of the zone is left, which takes 50/70 of the traffic.
    sim.backend.endpoints[0].set_check_failing(true, sim.now);
    sim.picks(10_000);
    let shares = sim.shares();
    assert!((69..=74).contains(&shares[1]) && (26..=31).contains(&shares[2]) && shares[3] == 0, "{shares:?}");
    sim.backend.endpoints[1].set_check_failing(true, sim.now);
    sim.backend.endpoints[2].set_check_failing(true, sim.now);
    sim.picks(100);
    assert_eq!(sim.shares(), [0, 0, 0, 100]);
}

#[test]
fn clients_of_unknown_place_go_to_the_own_region_first() {
    let regions = [("y".into(), 10.0, 10.0), ("x".into(), 50.0, 8.0)];
    let mut sim = zones(Prefer::Nearest(regions.into()), &[("a", "x"), ("c", "y"), ("d", "z")]);
    sim.picks(100);
    assert_eq!(sim.counts, [100, 0, 0]);
    sim.backend.endpoints[0].set_check_failing(true, sim.now);
    sim.backend.endpoints[1].set_check_failing(true, sim.now);
    assert_eq!(sim.pick(), 2, "a region that the policy does not name comes last");
}

#[test]
fn endpoints_at_their_own_limit_are_passed_over() {
    let limits = InFlightLimits { per_endpoint: Some(2), ..InFlightLimits::default() };
    for algorithm in [Algorithm::RoundRobin, Algorithm::Maglev, Algorithm::Random] {
        let mut sim =
            Sim::new(with_policy(&THREE, ServicePolicy { limits: limits.clone(), ..policy(algorithm) }, |_| {}));
        for _ in 0..6 {
            let index = sim.pick();
            sim.backend.endpoints[index].begin(0);
        }
        assert_eq!(sim.counts, [2, 2, 2], "{algorithm:?}");
    }
}

fn rule(policy: RequestPolicy) -> Rule {
    let nobody = with_policy(&[], ServicePolicy::default(), |_| {});
    let cell = Arc::new(arc_swap::ArcSwap::from_pointee(nobody));
    Rule::of_service(Default::default(), cell, Arc::new(policy), Arc::new(crate::stats::RouteStats::new(1)))
}

#[tokio::test]
async fn what_is_over_the_limit_waits_by_class_or_is_refused() {
    let limits = InFlightLimits { requests: Some(1), ..InFlightLimits::default() };
    let vip = QueueClass { name: "vip".into(), header: Some(("x-class".into(), "vip".into())), path_prefix: None };
    let queue = Queue { max_depth: 2, timeout: Duration::from_millis(1_200), classes: vec![vip] };
    let policy = ServicePolicy { limits, queue: Some(queue), ..ServicePolicy::default() };
    let backend = Arc::new(with_policy(&THREE, policy, |_| {}));
    let rule = rule(RequestPolicy::default());
    let plain = Request::default();
    let vip = Request { headers: vec![("x-class", "vip")], ..Request::default() };
    let held = enter(&rule, &backend, &plain).await.expect("the first");
    let mut low = Box::pin(enter(&rule, &backend, &plain));
    let mut high = Box::pin(enter(&rule, &backend, &vip));
    assert!(futures::poll!(&mut low).is_pending() && futures::poll!(&mut high).is_pending());
    let full = enter(&rule, &backend, &plain).await.expect_err("the queue is full");
    assert_eq!(full, Refusal::Overloaded { retry_after: MS * 1_200 });
    assert_eq!(full.answer(), (503, 2));
    drop(held);
    assert!(futures::poll!(&mut low).is_pending());
    let first = high.await.expect("its turn");
    assert!(low.await.is_err(), "it waited for too long");
    drop(first);
    assert!(enter(&rule, &backend, &plain).await.is_ok());
    assert_eq!(backend.state.totals.refused.load(Relaxed), 2);
}

#[tokio::test]
async fn without_limits_nothing_is_counted() {
    let backend = Arc::new(with_policy(&THREE, ServicePolicy::default(), |_| {}));
    let permit = enter(&rule(RequestPolicy::default()), &backend, &Request::default()).await.expect("let through");
    assert_eq!(backend.state.in_flight(), (0, 0, 0));
    assert!(permit.begin_retry(None));
    assert!(enter_connection(&backend).is_ok());
}

#[tokio::test]
async fn limits_per_endpoint_bound_the_whole_by_what_is_well() {
    let limits = InFlightLimits { per_endpoint: Some(1), ..InFlightLimits::default() };
    let backend = Arc::new(with_policy(&THREE, ServicePolicy { limits, ..ServicePolicy::default() }, |_| {}));
    backend.endpoints[0].set_check_failing(true, Instant::now());
    backend.choose(&Choice::of_client(IpAddr::from([192, 0, 2, 1]), 0), Tried::default()).expect("one");
    let held: Vec<_> = (0..3).map(|_| enter_connection(&backend)).collect();
    assert_eq!(held.iter().filter(|permit| permit.is_ok()).count(), 2);
}

#[test]
fn retries_need_a_reason_and_a_budget() {
    let retries =
        Retries { statuses: vec![502, 503], budget_percent: Some(50), min_per_second: 1, ..Retries::default() };
    let policy = RequestPolicy { retries, hedging: Some((MS, 2)), ..RequestPolicy::default() };
    let rule = rule(policy);
    let retry = |outcome, idempotent| may_retry(&rule, outcome, idempotent, 0);
    assert!(!retry(Outcome::Status(500, MS), true) && !retry(Outcome::Status(503, MS), false));
    assert!(!retry(Outcome::TimedOut, true) && !retry(Outcome::Reset, false));
    assert!(!may_retry(&rule, Outcome::ConnectFailed, true, 7));
    assert!(!may_hedge(&rule, 2));
    // Nothing was taken from the budget so far: the one per second is left.
    assert!(retry(Outcome::Status(503, MS), true));
    let granted = (0..20).filter(|_| retry(Outcome::ConnectFailed, false)).count();
    assert!(granted <= 1, "a second may have passed");
    let budget = rule.control.budget.as_ref().expect("a budget");
    (0..20).for_each(|_| budget.request(clock::ms(Instant::now())));
    let granted = (0..20).filter(|_| may_hedge(&rule, 1)).count();
    assert!((7..=10).contains(&granted), "{granted}");
}

#[tokio::test]
async fn a_request_needs_a_token_of_every_limit_and_loses_none_when_refused() {
    let limit = |id: &str, per, requests| crate::policy::RateLimit {
        id: id.into(),
        name: id.into(),
        per,
        requests,
        interval: Duration::from_secs(3_600),
        burst: requests,
        shared: false,
    };
    use crate::policy::RatePer::{ClientIp, Header, Target};
    let rate_limits = vec![limit("all", Target, 3), limit("x", Header("x".into()), 3), limit("client", ClientIp, 1)];
    let rule = rule(RequestPolicy { rate_limits, ..RequestPolicy::default() });
    let backend = Arc::new(with_policy(&THREE, ServicePolicy::default(), |_| {}));
    let from = |last| Request { client: IpAddr::from([192, 0, 2, last]), ..Request::default() };
    assert!(enter(&rule, &backend, &from(1)).await.is_ok());
    for _ in 0..5 {
        let refused = enter(&rule, &backend, &from(1)).await.expect_err("its own limit");
        assert!(matches!(refused, Refusal::RateLimited { limit, .. } if &*limit == "client"));
    }
    assert!(enter(&rule, &backend, &from(2)).await.is_ok() && enter(&rule, &backend, &from(3)).await.is_ok());
    let refused = enter(&rule, &backend, &from(4)).await.expect_err("the limit of all");
    assert!(matches!(refused, Refusal::RateLimited { limit, .. } if &*limit == "all"));
}

#[test]
fn retry_after_is_whole_seconds_and_never_none() {
    let limit = |retry_after| Refusal::RateLimited { limit: "l".into(), retry_after }.answer();
    assert_eq!(limit(Duration::ZERO), (429, 1));
    assert_eq!(limit(MS), (429, 1));
    assert_eq!(limit(Duration::from_secs(2)), (429, 2));
    assert_eq!(limit(MS * 2_001), (429, 3));
}
