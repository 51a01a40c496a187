//! Tells users by Events on their Service which endpoints are left out and which are back. Never says anything about an endpoint that
//! only refused a connection a moment ago, and never more than one round per Service in [`QUIET`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio_util::sync::CancellationToken;

use crate::backend::Health;
use crate::hub::Hub;
use crate::snapshot::ServiceKey;

/// `reportingController` of our Events.
const REPORTER: &str = "service-lb-controller";
/// Pause between looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A Service's endpoints are told of at most once in this time.
const QUIET: Duration = Duration::from_secs(10);
/// Events written per look.
const MAX_NOTICES: usize = 20;
/// Endpoints that an Event names.
const MAX_NAMED: usize = 8;
/// Longest wait for one API call.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Endpoints that are left out, by Service.
type Out = BTreeMap<ServiceKey, BTreeMap<SocketAddr, Health>>;

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Notice {
    service: ServiceKey,
    warning: bool,
    message: String,
}

/// What has been told and when.
#[derive(Debug, Default)]
struct Told {
    out: Out,
    at: BTreeMap<ServiceKey, Instant>,
}

impl Told {
    /// What is new in `out`. Pure but for what it remembers.
    fn plan(&mut self, out: &Out, now: Instant) -> Vec<Notice> {
        self.at.retain(|_, at| now.saturating_duration_since(*at) < QUIET);
        let services: BTreeSet<ServiceKey> = out.keys().chain(self.out.keys()).cloned().collect();
        let (none, mut notices) = (BTreeMap::new(), Vec::new());
        for service in services {
            let (now_out, known) = (out.get(&service).unwrap_or(&none), self.out.get(&service).unwrap_or(&none));
            if now_out == known || self.at.contains_key(&service) || notices.len() >= MAX_NOTICES {
                continue;
            }
            let left = now_out.iter().filter(|(addr, health)| known.get(addr) != Some(health));
            let left: Vec<String> = left.map(|(addr, health)| format!("{addr} ({})", reason(*health))).collect();
            let back: Vec<String> =
                known.keys().filter(|addr| !now_out.contains_key(addr)).map(ToString::to_string).collect();
            let mut tell = |warning, what: &str, names: Vec<String>| {
                if !names.is_empty() {
                    let message = format!("{what}: {}.", list(&names));
                    notices.push(Notice { service: service.clone(), warning, message });
                }
            };
            tell(true, "Endpoints get no traffic", left);
            tell(false, "Endpoints get traffic again", back);
            if now_out.is_empty() {
                self.out.remove(&service)
            } else {
                self.out.insert(service.clone(), now_out.clone())
            };
            self.at.insert(service, now);
        }
        notices
    }
}

fn reason(health: Health) -> &'static str {
    match health {
        Health::Healthy => "healthy",
        Health::Suspect => "refused a connection",
        Health::Ejected => "failed too many requests",
        Health::Failing => "fails its health check",
    }
}

fn list(names: &[String]) -> String {
    let more = names.len().saturating_sub(MAX_NAMED);
    let mut text = names[..names.len() - more].join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// Endpoints that are left out now.
fn look(hub: &Hub, now: Instant) -> Out {
    let mut out = Out::new();
    for (key, backend) in hub.backends() {
        for (endpoint, health) in backend.health(now) {
            if matches!(health, Health::Ejected | Health::Failing) {
                out.entry(key.service.clone()).or_default().insert(endpoint.addr, health);
            }
        }
    }
    out
}

/// Tells until `shutdown`. What could not be written is not tried again: the next change is told anyway.
pub(crate) async fn run(client: Client, hub: Arc<Hub>, shutdown: CancellationToken) {
    let recorder = Recorder::new(client, Reporter { controller: REPORTER.to_owned(), instance: None });
    let mut told = Told::default();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = shutdown.cancelled() => return,
        }
        let now = Instant::now();
        for notice in told.plan(&look(&hub, now), now) {
            let Some(uid) = hub.snapshot().services.get(&notice.service).map(|plan| plan.uid.clone()) else { continue };
            let (event, reference) = (event(&notice), reference(&notice.service, uid));
            let write = tokio::time::timeout(CALL_TIMEOUT, recorder.publish(&event, &reference));
            if !matches!(write.await, Ok(Ok(()))) {
                tracing::debug!(service = %notice.service, message = notice.message, "an Event about endpoints was not written");
            }
        }
    }
}

fn event(notice: &Notice) -> Event {
    Event {
        type_: if notice.warning { EventType::Warning } else { EventType::Normal },
        reason: if notice.warning { "EndpointsLeftOut" } else { "EndpointsBack" }.to_owned(),
        note: Some(notice.message.clone()),
        action: "Balance".to_owned(),
        secondary: None,
    }
}

fn reference(service: &ServiceKey, uid: String) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Service".to_owned()),
        namespace: Some(service.namespace.to_string()),
        name: Some(service.name.to_string()),
        uid: Some(uid),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out(endpoints: &[(u8, Health)]) -> Out {
        let endpoints: BTreeMap<_, _> =
            endpoints.iter().map(|(octet, health)| (SocketAddr::from(([10, 0, 0, *octet], 80)), *health)).collect();
        if endpoints.is_empty() { Out::new() } else { [(ServiceKey::new("d", "web"), endpoints)].into() }
    }

    fn messages(told: &mut Told, out: &Out, at: Instant) -> Vec<String> {
        told.plan(out, at).into_iter().map(|notice| notice.message).collect()
    }

    #[test]
    fn changes_are_told_once_and_not_too_often() {
        let (mut told, start) = (Told::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let two = out(&[(1, Health::Ejected), (2, Health::Failing)]);
        let first =
            "Endpoints get no traffic: 10.0.0.1:80 (failed too many requests), 10.0.0.2:80 (fails its health check).";
        assert_eq!(messages(&mut told, &two, at(0)), [first]);
        assert!(messages(&mut told, &two, at(20)).is_empty());
        let other = out(&[(3, Health::Ejected)]);
        let expected = [
            "Endpoints get no traffic: 10.0.0.3:80 (failed too many requests).",
            "Endpoints get traffic again: 10.0.0.1:80, 10.0.0.2:80.",
        ];
        assert_eq!(messages(&mut told, &other, at(21)), expected);
        assert!(messages(&mut told, &two, at(25)).is_empty(), "flapping is not told");
        assert!(messages(&mut told, &other, at(40)).is_empty(), "and over");
        assert_eq!(messages(&mut told, &out(&[]), at(60)), ["Endpoints get traffic again: 10.0.0.3:80."]);
    }

    #[test]
    fn long_lists_are_cut() {
        let many: Vec<_> = (0..20).map(|octet| (octet, Health::Failing)).collect();
        let told = messages(&mut Told::default(), &out(&many), Instant::now());
        assert!(told[0].ends_with("10.0.0.7:80 (fails its health check) and 12 more."), "{told:?}");
    }
}
