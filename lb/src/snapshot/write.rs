//! Writes the statuses that [`super::statuses`] plans and tells authors of Ingresses what is wrong, as events. Never touches spec.
//!
//! A write carries the resourceVersion that its decision was made on: of several load balancers one wins, and the others see that nothing is
//! left to do. A write that fails is tried again with growing pauses, until a newer plan replaces it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Service};
use k8s_openapi::api::networking::v1::Ingress;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use scaleup_api::gateway::{
    BackendTLSPolicy, GRPCRoute, Gateway, GatewayClass, HTTPRoute, TCPRoute, TLSRoute, UDPRoute,
};
use scaleup_api::traffic::TrafficPolicy;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::objects::{Kind, RouteKey};
use super::references::Fault;
use super::statuses::{Plan, StatusPatch};

/// `reportingController` of our Events.
const REPORTER: &str = "ingress-lb-controller";
/// First and longest pause before failed writes are tried again.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Longest wait for one API call.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Ingresses whose told problems are remembered.
const MAX_TOLD: usize = 10_000;

/// Problems that were told, by Ingress and UID.
type Told = BTreeMap<(RouteKey, String), BTreeSet<String>>;

/// Writes what `plans` ask for until `shutdown`.
pub(crate) async fn run(client: Client, mut plans: watch::Receiver<Plan>, shutdown: CancellationToken) {
    let recorder = Recorder::new(client.clone(), Reporter { controller: REPORTER.to_owned(), instance: None });
    let mut told = Told::new();
    let mut pause = RETRY_MIN;
    loop {
        let plan = plans.borrow_and_update().clone();
        let mut failed = false;
        for patch in &plan.patches {
            // A newer plan knows better.
            if plans.has_changed().unwrap_or(true) || shutdown.is_cancelled() {
                break;
            }
            failed |= !write(&client, patch).await;
        }
        failed |= !tell(&recorder, &plan, &mut told).await;
        pause = if failed { (pause * 2).min(RETRY_MAX) } else { RETRY_MIN };
        let retry = async { if failed { tokio::time::sleep(pause).await } else { std::future::pending().await } };
        tokio::select! {
            changed = plans.changed() => if changed.is_err() { return },
            () = retry => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Kinds whose status is written.
fn resource(kind: Kind) -> Option<(ApiResource, bool)> {
    Some(match kind {
        Kind::GatewayClass => (ApiResource::erase::<GatewayClass>(&()), false),
        Kind::Gateway => (ApiResource::erase::<Gateway>(&()), true),
        Kind::HTTPRoute => (ApiResource::erase::<HTTPRoute>(&()), true),
        Kind::GRPCRoute => (ApiResource::erase::<GRPCRoute>(&()), true),
        Kind::TLSRoute => (ApiResource::erase::<TLSRoute>(&()), true),
        Kind::TCPRoute => (ApiResource::erase::<TCPRoute>(&()), true),
        Kind::UDPRoute => (ApiResource::erase::<UDPRoute>(&()), true),
        Kind::BackendTLSPolicy => (ApiResource::erase::<BackendTLSPolicy>(&()), true),
        Kind::TrafficPolicy => (ApiResource::erase::<TrafficPolicy>(&()), true),
        Kind::Ingress => (ApiResource::erase::<Ingress>(&()), true),
        Kind::Service => (ApiResource::erase::<Service>(&()), true),
        _ => return None,
    })
}

/// Writes one status; false if it must be tried again.
async fn write(client: &Client, patch: &StatusPatch) -> bool {
    let Some((resource, namespaced)) = resource(patch.kind) else { return true };
    let api: Api<DynamicObject> = if namespaced {
        Api::namespaced_with(client.clone(), &patch.key.namespace, &resource)
    } else {
        Api::all_with(client.clone(), &resource)
    };
    let body = json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"resourceVersion": patch.resource_version},
        "status": patch.status,
    });
    let params = PatchParams::default();
    let body = Patch::Merge(body);
    let call = api.patch_status(&patch.key.name, &params, &body);
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(_)) => true,
        // Somebody was faster, or the object is gone: the watch brings what is to be done now.
        Ok(Err(kube::Error::Api(status))) if status.code == 409 || status.code == 404 => true,
        Ok(Err(error)) => {
            tracing::debug!(kind = patch.kind.as_str(), key = %patch.key, %error, "writing a status failed, will retry");
            false
        }
        Err(_) => false,
    }
}

/// Tells each problem once, until it was solved; false if some must be tried again.
async fn tell(recorder: &Recorder, plan: &Plan, told: &mut Told) -> bool {
    forget_solved(told, &plan.problems);
    let mut all = true;
    for (object, problems) in &plan.problems {
        for problem in problems {
            if told.get(object).is_some_and(|known| known.contains(&problem.message)) || told.len() > MAX_TOLD {
                continue;
            }
            let (event, reference) = (event(problem), reference(object));
            let publish = recorder.publish(&event, &reference);
            match tokio::time::timeout(CALL_TIMEOUT, publish).await {
                Ok(Ok(())) => _ = told.entry(object.clone()).or_default().insert(problem.message.clone()),
                _ => all = false,
            }
        }
    }
    all
}

/// A problem that is gone and comes back is told again.
fn forget_solved(told: &mut Told, problems: &BTreeMap<(RouteKey, String), Vec<Fault>>) {
    told.retain(|object, known| {
        let current = problems.get(object).map(Vec::as_slice).unwrap_or_default();
        known.retain(|message| current.iter().any(|problem| problem.message == *message));
        !known.is_empty()
    });
}

fn event(problem: &Fault) -> Event {
    Event {
        type_: EventType::Warning,
        reason: problem.reason.to_owned(),
        note: Some(problem.message.clone()),
        action: "Route".to_owned(),
        secondary: None,
    }
}

fn reference((route, uid): &(RouteKey, String)) -> ObjectReference {
    ObjectReference {
        api_version: Some("networking.k8s.io/v1".to_owned()),
        kind: Some(route.kind.as_str().to_owned()),
        namespace: Some(route.key.namespace.to_string()),
        name: Some(route.key.name.to_string()),
        uid: Some(uid.clone()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{ObjectKey, RouteKind};

    #[test]
    fn a_problem_that_comes_back_is_told_again() {
        let object = (RouteKey { kind: RouteKind::Ingress, key: ObjectKey::new("d", "a") }, "u".to_owned());
        let mut told = Told::from([(object.clone(), BTreeSet::from(["x".to_owned(), "y".to_owned()]))]);
        forget_solved(&mut told, &BTreeMap::from([(object.clone(), vec![Fault::new("R", "y")])]));
        assert_eq!(told[&object], BTreeSet::from(["y".to_owned()]));
        forget_solved(&mut told, &BTreeMap::new());
        assert!(told.is_empty());
    }

    #[test]
    fn every_kind_with_a_status_of_ours_can_be_written() {
        let written = Kind::ALL.iter().filter(|kind| resource(**kind).is_some()).count();
        assert_eq!(written, 11);
        let (class, namespaced) = resource(Kind::GatewayClass).expect("written");
        assert_eq!((class.plural.as_str(), namespaced), ("gatewayclasses", false));
    }
}
