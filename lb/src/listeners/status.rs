//! Tells users what became of their Services: `status.loadBalancer.ingress` and Events.
//!
//! Each node's load balancer adds and removes only its own address; writes carry the resourceVersion they are based on,
//! so that nodes do not undo each other. Never touches spec.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, ObjectReference, Service};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Problem, Report};
use crate::hub::Hub;
use crate::snapshot::{ServiceKey, ServicePlan, ServiceType, Snapshot};

/// `reportingController` of our Events.
const REPORTER: &str = "service-lb-controller";
/// First and longest pause before a failed write is tried again.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Longest wait for one API call.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A change to be made through the API.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Op {
    /// Add (or remove) our address in the Service's status.
    Ingress { key: ServiceKey, present: bool },
    /// Tell about a problem that was not told before.
    Event { key: ServiceKey, uid: String, problem: Problem },
}

/// What is wrong in `snapshot`'s statuses given the listeners' `report`. Pure.
fn plan_ops(snapshot: &Snapshot, report: &Report, ip: &str, told: &BTreeMap<ServiceKey, BTreeSet<Problem>>) -> Vec<Op> {
    let mut ops = Vec::new();
    for (key, plan) in &snapshot.services {
        let service = report.services.get(key);
        let bound = plan.kind == ServiceType::LoadBalancer && service.is_some_and(|s| s.bound > 0 && s.unbound == 0);
        let present = plan.ingress.iter().any(|known| known == ip);
        if bound != present && (present || bound) {
            ops.push(Op::Ingress { key: key.clone(), present: bound });
        }
        let known = told.get(key);
        for problem in problems_of(plan, report) {
            if known.is_none_or(|known| !known.contains(&problem)) {
                ops.push(Op::Event { key: key.clone(), uid: plan.uid.clone(), problem });
            }
        }
    }
    ops
}

/// What a user should know about a Service's listeners.
fn problems_of(plan: &ServicePlan, report: &Report) -> Vec<Problem> {
    let listeners = report.services.get(&plan.key).into_iter().flat_map(|service| &service.problems);
    listeners.cloned().collect()
}

/// Keeps statuses right until `shutdown`.
pub(crate) async fn run(
    client: Client,
    hub: Arc<Hub>,
    mut reports: watch::Receiver<Report>,
    ip: String,
    shutdown: CancellationToken,
) {
    let recorder = Recorder::new(client.clone(), Reporter { controller: REPORTER.to_owned(), instance: None });
    let mut snapshots = hub.subscribe();
    let mut told: BTreeMap<ServiceKey, BTreeSet<Problem>> = BTreeMap::new();
    let mut pause = RETRY_MIN;
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let report = reports.borrow_and_update().clone();
        forget_solved(&mut told, &snapshot, &report);
        // Before the first round nothing is bound yet: that must not take addresses away.
        let ops = if report.settled { plan_ops(&snapshot, &report, &ip, &told) } else { Vec::new() };
        let mut failed = false;
        for op in ops {
            match tokio::time::timeout(CALL_TIMEOUT, apply(&client, &recorder, &op, &ip)).await {
                Ok(Ok(())) => {
                    if let Op::Event { key, problem, .. } = op {
                        told.entry(key).or_default().insert(problem);
                    }
                }
                Ok(Err(error)) => {
                    tracing::debug!(?op, %error, "telling users about a Service failed, will retry");
                    failed = true;
                }
                Err(_) => failed = true,
            }
        }
        pause = if failed { (pause * 2).min(RETRY_MAX) } else { RETRY_MIN };
        let retry = async { if failed { tokio::time::sleep(pause).await } else { std::future::pending().await } };
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            changed = reports.changed() => if changed.is_err() { return },
            () = retry => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// A problem that is gone and comes back is told again.
fn forget_solved(told: &mut BTreeMap<ServiceKey, BTreeSet<Problem>>, snapshot: &Snapshot, report: &Report) {
    told.retain(|key, problems| {
        let current = snapshot.services.get(key).map(|plan| problems_of(plan, report)).unwrap_or_default();
        problems.retain(|problem| current.contains(problem));
        !problems.is_empty()
    });
}

async fn apply(client: &Client, recorder: &Recorder, op: &Op, ip: &str) -> kube::Result<()> {
    match op {
        Op::Ingress { key, present } => patch_ingress(client, key, ip, *present).await,
        Op::Event { key, uid, problem } => {
            let reference = ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Service".to_owned()),
                namespace: Some(key.namespace.to_string()),
                name: Some(key.name.to_string()),
                uid: Some(uid.clone()),
                ..ObjectReference::default()
            };
            let event = Event {
                type_: EventType::Warning,
                reason: problem.reason.to_owned(),
                note: Some(problem.message.clone()),
                action: "Listen".to_owned(),
                secondary: None,
            };
            recorder.publish(&event, &reference).await
        }
    }
}

async fn patch_ingress(client: &Client, key: &ServiceKey, ip: &str, present: bool) -> kube::Result<()> {
    let api: Api<Service> = Api::namespaced(client.clone(), &key.namespace);
    let Some(service) = api.get_opt(&key.name).await? else { return Ok(()) };
    let current = service.status.and_then(|s| s.load_balancer).and_then(|lb| lb.ingress).unwrap_or_default();
    let mut wanted: Vec<LoadBalancerIngress> =
        current.iter().filter(|entry| entry.ip.as_deref() != Some(ip)).cloned().collect();
    if present {
        wanted.push(LoadBalancerIngress { ip: Some(ip.to_owned()), ..LoadBalancerIngress::default() });
    }
    if wanted == current {
        return Ok(());
    }
    let patch = json!({
        "metadata": {"resourceVersion": service.metadata.resource_version},
        "status": {"loadBalancer": {"ingress": wanted}},
    });
    api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listeners::ServiceReport;
    use crate::snapshot::{PlanConfig, plan};
    use serde_json::Value;

    const IP: &str = "192.0.2.10";

    fn snapshot(kind: &str, ingress: Value) -> Snapshot {
        let service = json!({
            "metadata": {"name": "web", "namespace": "d", "uid": "u"},
            "spec": {"type": kind, "ports": [{"port": 80}]},
            "status": {"loadBalancer": {"ingress": ingress}},
        });
        plan(&[serde_json::from_value(service).expect("a Service")], &[], &PlanConfig::default())
    }

    fn report(bound: usize, unbound: usize, problems: Vec<Problem>) -> Report {
        let service = ServiceReport { bound, unbound, problems };
        Report { services: [(ServiceKey::new("d", "web"), service)].into(), settled: true, ..Report::default() }
    }

    #[track_caller]
    fn check(kind: &str, ingress: Value, bound: usize, unbound: usize, expected: Option<bool>) {
        let ops = plan_ops(&snapshot(kind, ingress), &report(bound, unbound, vec![]), IP, &BTreeMap::new());
        let expected: Vec<Op> =
            expected.into_iter().map(|present| Op::Ingress { key: ServiceKey::new("d", "web"), present }).collect();
        assert_eq!(ops, expected);
    }

    #[test]
    fn the_address_is_there_exactly_while_all_ports_are_bound() {
        let (none, ours, theirs) = (json!([]), json!([{"ip": IP}]), json!([{"ip": "198.51.100.1"}]));
        check("LoadBalancer", none.clone(), 1, 0, Some(true));
        check("LoadBalancer", theirs.clone(), 1, 0, Some(true));
        check("LoadBalancer", ours.clone(), 1, 0, None);
        check("LoadBalancer", ours.clone(), 1, 1, Some(false));
        check("LoadBalancer", none, 0, 1, None);
        check("NodePort", ours, 0, 0, Some(false));
        check("NodePort", theirs, 0, 0, None);
    }

    #[test]
    fn a_problem_is_told_once_until_it_was_solved() {
        let problem = Problem { reason: "PortConflict", message: "x".to_owned() };
        let snapshot = snapshot("LoadBalancer", json!([]));
        let with_problem = report(0, 1, vec![problem.clone()]);
        let mut told = BTreeMap::new();
        assert_eq!(plan_ops(&snapshot, &with_problem, IP, &told).len(), 1);
        told.insert(ServiceKey::new("d", "web"), BTreeSet::from([problem]));
        assert!(plan_ops(&snapshot, &with_problem, IP, &told).is_empty());
        forget_solved(&mut told, &snapshot, &report(1, 0, vec![]));
        assert!(told.is_empty());
    }
}
