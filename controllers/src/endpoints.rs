//! The older `core/v1` Endpoints of Services with a selector (upstream's `pkg/controller/endpoint`).
//!
//! Endpoints that this controller did not make are left alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::{BoxFuture, join3};
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, ResourceExt};
use scaleup_api::pods;

use crate::base::calls::{self, Error, call};
use crate::base::events::{Recorder, Severity};
use crate::base::key::Key;
use crate::base::worker::{Outcome, Reconcile};
use crate::context::Context;
use crate::endpointslice::plan::{is_headless, pod_reference};
use crate::endpointslice::{pods as podinfo, selector, wake_services};

/// Most addresses in one Endpoints object (upstream's `maxCapacity`).
const MAX_ADDRESSES: usize = 1_000;
/// Says that addresses were left out.
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const TRUNCATED: &str = "truncated";
const LABEL_MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";
const LAST_CHANGE: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Subscribes and works until shutdown.
pub fn start(cx: Context) -> BoxFuture<'static, ()> {
    let queue = cx.queue("endpoint");
    cx.informers.services.feed(&queue, |change| change.latest());
    let (q, informers) = (queue.clone(), cx.informers.clone());
    cx.informers.pods.subscribe(move |change| wake_services(change, &informers, &q));
    cx.informers.endpoints.feed(&queue, |change| change.latest().filter(|e| is_ours(e)));
    let controller = Controller { recorder: cx.recorder.for_component("endpoint-controller"), cx: cx.clone() };
    let i = cx.informers.clone();
    let caches = join3(i.services.synced(), i.pods.synced(), i.endpoints.synced());
    cx.work("endpoints", queue, controller, &i.services, caches)
}

fn is_ours(endpoints: &Endpoints) -> bool {
    endpoints.labels().get(LABEL_MANAGED_BY).is_some_and(|m| m == MANAGER)
}

/// What the Endpoints of a Service should be; identity is that of `existing`. Pure.
fn desired(service: &Service, pods: &[Arc<Pod>], existing: Option<&Endpoints>) -> Endpoints {
    let publish = service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses).unwrap_or(false);
    // Ports → (ready, not ready), so that equal port sets share a subset.
    let mut subsets: BTreeMap<Vec<PortKey>, [Vec<EndpointAddress>; 2]> = BTreeMap::new();
    let ipv6 =
        service.spec.as_ref().and_then(|s| s.ip_families.as_ref()).and_then(|f| f.first()).is_some_and(|f| f == "IPv6");
    let mut candidates: Vec<(&Arc<Pod>, &str)> = pods
        .iter()
        .filter(|p| podinfo::is_candidate(p, publish))
        .filter_map(|p| Some((p, podinfo::address(p, ipv6)?)))
        .collect();
    let serves = |p: &Pod| publish || pods::is_ready(p);
    // Ready ones first, so that truncation spares them.
    candidates.sort_by_key(|(p, ip)| (!serves(p), ip.to_string(), p.uid()));
    let truncated = candidates.len() > MAX_ADDRESSES;
    for (pod, ip) in candidates.into_iter().take(MAX_ADDRESSES) {
        let Some(ports) = ports(service, pod) else { continue };
        let address = EndpointAddress {
            ip: ip.to_owned(),
            hostname: podinfo::hostname(pod, service),
            node_name: pod.spec.as_ref().and_then(|s| s.node_name.clone()).filter(|n| !n.is_empty()),
            target_ref: Some(pod_reference(pod)),
        };
        subsets.entry(ports).or_default()[usize::from(!serves(pod))].push(address);
    }
    let subsets: Vec<EndpointSubset> =
        subsets.into_iter().map(|(ports, [ready, not_ready])| subset(ports, ready, not_ready)).collect();
    Endpoints { metadata: metadata(service, existing, truncated), subsets: Some(subsets).filter(|s| !s.is_empty()) }
}

/// Name, number, protocol, application protocol.
type PortKey = (String, i32, String, Option<String>);

/// The ports of a pod; `None` if it serves none of the Service's and the Service has some.
fn ports(service: &Service, pod: &Pod) -> Option<Vec<PortKey>> {
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
    let resolve = |p: &k8s_openapi::api::core::v1::ServicePort| {
        let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".into());
        Some((p.name.clone().unwrap_or_default(), podinfo::target_port(pod, p)?, protocol, p.app_protocol.clone()))
    };
    let found: Vec<PortKey> = ports.iter().filter_map(resolve).collect();
    if found.is_empty() && !ports.is_empty() { None } else { Some(found) }
}

fn subset(ports: Vec<PortKey>, ready: Vec<EndpointAddress>, not_ready: Vec<EndpointAddress>) -> EndpointSubset {
    let some = |a: Vec<EndpointAddress>| Some(a).filter(|a| !a.is_empty());
    let port = |(name, port, protocol, app_protocol): PortKey| EndpointPort {
        name: Some(name).filter(|n| !n.is_empty()),
        port,
        protocol: Some(protocol),
        app_protocol,
    };
    EndpointSubset {
        addresses: some(ready),
        not_ready_addresses: some(not_ready),
        ports: Some(ports.into_iter().map(port).collect::<Vec<_>>()).filter(|p| !p.is_empty()),
    }
}

fn metadata(service: &Service, existing: Option<&Endpoints>, truncated: bool) -> ObjectMeta {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(LABEL_MANAGED_BY.into(), MANAGER.into());
    labels.remove(LABEL_HEADLESS);
    if is_headless(service) {
        labels.insert(LABEL_HEADLESS.into(), String::new());
    }
    let mut meta = existing.map(|e| e.metadata.clone()).unwrap_or_else(|| ObjectMeta {
        name: service.metadata.name.clone(),
        namespace: service.metadata.namespace.clone(),
        ..ObjectMeta::default()
    });
    let mut annotations = meta.annotations.take().unwrap_or_default();
    annotations.remove(LAST_CHANGE);
    annotations.remove(OVER_CAPACITY);
    if truncated {
        annotations.insert(OVER_CAPACITY.into(), TRUNCATED.into());
    }
    meta.annotations = Some(annotations).filter(|a| !a.is_empty());
    meta.labels = Some(labels);
    meta
}

/// Whether writing `new` over `old` would change anything.
fn same(old: &Endpoints, new: &Endpoints) -> bool {
    let subsets = |e: &Endpoints| e.subsets.clone().unwrap_or_default();
    let annotations = |e: &Endpoints| e.metadata.annotations.clone().unwrap_or_default();
    subsets(old) == subsets(new) && old.metadata.labels == new.metadata.labels && annotations(old) == annotations(new)
}

struct Controller {
    cx: Context,
    recorder: Recorder,
}

#[async_trait]
impl Reconcile for Controller {
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let informers = &self.cx.informers;
        let existing = informers.endpoints.get(key);
        let api: Api<Endpoints> = Api::namespaced(self.cx.client.clone(), &key.namespace);
        let Some(service) = informers.services.get(key) else {
            return self.orphaned(key, &api, existing.as_deref()).await.map(|()| Outcome::Done);
        };
        let Some(selector) = selector(&service) else { return Ok(Outcome::Done) };
        let mut pods = informers.pods.list_in(&key.namespace);
        pods.retain(|p| selector.matches(p.labels()));
        let wanted = desired(&service, &pods, existing.as_deref());
        let written = match &existing {
            Some(old) if same(old, &wanted) => Ok(()),
            Some(_) => calls::replace("update Endpoints", &api, &key.name, &wanted).await.map(|_| ()),
            None => match calls::create("create Endpoints", &api, &key.name, &wanted).await {
                Err(e) if e.is_namespace_terminating() => Ok(()),
                Err(e) if e.is_already_exists() => Err(Error::Stale { object: key.to_string() }),
                other => other.map(|_| ()),
            },
        };
        if let Err(e) = &written
            && e.is_refusal()
            && !e.is_conflict()
        {
            let (reason, verb) = if existing.is_some() {
                ("FailedToUpdateEndpoint", "update endpoint")
            } else {
                ("FailedToCreateEndpoint", "create endpoint for service")
            };
            let text = format!("Failed to {verb} {key}: {}", e.user_message());
            self.recorder.event(service.as_ref(), Severity::Warning, reason, text);
        }
        written.map(|()| Outcome::Done)
    }
}

impl Controller {
    /// Deletes the Endpoints of a Service that is gone, if we made them and a live look confirms it.
    async fn orphaned(&self, key: &Key, api: &Api<Endpoints>, existing: Option<&Endpoints>) -> Result<(), Error> {
        let Some(existing) = existing.filter(|e| is_ours(e)) else { return Ok(()) };
        let services: Api<Service> = Api::namespaced(self.cx.client.clone(), &key.namespace);
        if call("get Service", key, services.get_metadata_opt(&key.name)).await?.is_some() {
            return Err(Error::Stale { object: key.to_string() });
        }
        let params = calls::delete_uid(&existing.uid().unwrap_or_default());
        calls::gone_is_fine(call("delete Endpoints", key, api.delete(&key.name, &params)).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(spec: Value) -> Service {
        let mut value = json!({
            "metadata": {"name": "web", "namespace": "shop", "labels": {"team": "a"}},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
        });
        for (k, v) in spec.as_object().unwrap() {
            value["spec"][k] = v.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    fn pod(n: usize, ready: bool, port: i32) -> Arc<Pod> {
        let value = json!({
            "metadata": {"name": format!("p{n}"), "namespace": "shop", "uid": format!("u{n}")},
            "spec": {"nodeName": "n1", "containers": [
                {"name": "c", "ports": [{"name": "http", "containerPort": port}]}
            ]},
            "status": {"podIP": format!("10.0.{}.{}", n / 250, n % 250),
                       "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        Arc::new(serde_json::from_value(value).unwrap())
    }

    /// `ready/not ready` addresses of each subset, with its port.
    fn shape(e: &Endpoints) -> Vec<(i32, usize, usize)> {
        let count = |a: &Option<Vec<EndpointAddress>>| a.as_ref().map_or(0, Vec::len);
        let subsets = e.subsets.as_deref().unwrap_or_default().iter();
        subsets
            .map(|s| (s.ports.as_ref().unwrap()[0].port, count(&s.addresses), count(&s.not_ready_addresses)))
            .collect()
    }

    #[test]
    fn pods_with_equal_ports_share_a_subset() {
        let pods = [pod(1, true, 80), pod(2, false, 80), pod(3, true, 81)];
        let e = desired(&service(json!({})), &pods, None);
        assert_eq!(shape(&e), [(80, 1, 1), (81, 1, 0)]);
        assert_eq!((e.labels()["team"].as_str(), e.labels()[LABEL_MANAGED_BY].as_str()), ("a", MANAGER));
        assert!(same(&e, &desired(&service(json!({})), &pods, Some(&e))));
        let published = desired(&service(json!({"publishNotReadyAddresses": true})), &pods, None);
        assert_eq!(shape(&published), [(80, 2, 0), (81, 1, 0)]);
    }

    #[test]
    fn terminating_pods_and_unserved_ports_are_left_out() {
        let mut gone = (*pod(1, true, 80)).clone();
        gone.metadata.deletion_timestamp = Some(scaleup_api::time::now());
        let e = desired(&service(json!({})), &[Arc::new(gone)], None);
        assert_eq!(e.subsets, None);
        let other = service(json!({"ports": [{"port": 80, "targetPort": "nope"}]}));
        assert_eq!(desired(&other, &[pod(1, true, 80)], None).subsets, None);
    }

    #[test]
    fn addresses_are_bounded_and_ready_ones_are_spared() {
        let mut pods: Vec<_> = (0..600).map(|n| pod(n, false, 80)).collect();
        pods.extend((600..1500).map(|n| pod(n, true, 80)));
        let e = desired(&service(json!({})), &pods, None);
        assert_eq!(shape(&e), [(80, 900, 100)]);
        assert_eq!(e.annotations()[OVER_CAPACITY], TRUNCATED);
        let fewer = desired(&service(json!({})), &pods[..10], Some(&e));
        assert!(fewer.annotations().is_empty());
    }
}
