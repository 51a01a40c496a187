//! Which EndpointSlices a Service needs (upstream's `k8s.io/endpointslice` reconciler). Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use scaleup_api::well_known::{LABEL_MANAGED_BY_SLICE, LABEL_SERVICE_NAME, LABEL_ZONE};
use scaleup_api::{owner, pods};

use super::pods as podinfo;
use crate::base::names;

/// Value of the managed-by label.
pub const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Most endpoints in a slice (upstream's `--max-endpoints-per-slice`).
pub const MAX_ENDPOINTS_PER_SLICE: usize = 100;
const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const LAST_CHANGE: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Everything that is known.
pub struct Observed<'a> {
    /// The Service; it has a selector.
    pub service: &'a Service,
    /// Pods that the selector matches.
    pub pods: &'a [Arc<Pod>],
    /// Nodes by name, for zones.
    pub nodes: &'a HashMap<String, Arc<Node>>,
    /// Slices of the Service that are ours.
    pub slices: &'a [Arc<EndpointSlice>],
}

/// One API call.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Create a slice; its name is set.
    Create(Box<EndpointSlice>),
    /// Replace a slice that is still as observed.
    Replace(Box<EndpointSlice>),
    /// Delete a slice.
    Delete(Arc<EndpointSlice>),
}

/// Ports of a slice, in the Service's order; serialized so that they can be compared and hashed.
type PortKey = String;

/// Address family of slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn address_type(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }
}

/// Endpoints that share family and ports.
#[derive(Default)]
struct Group {
    ports: Vec<EndpointPort>,
    /// By pod UID and address.
    endpoints: BTreeMap<(String, String), Endpoint>,
}

/// What to do for a Service.
pub fn plan(observed: &Observed<'_>) -> Vec<Op> {
    let families = families(observed.service);
    let mut groups: BTreeMap<(Family, PortKey), Group> = BTreeMap::new();
    for family in &families {
        for pod in observed.pods.iter().filter(|p| podinfo::is_candidate(p, true)) {
            let Some(address) = podinfo::address(pod, *family == Family::V6) else { continue };
            let ports = ports(observed.service, pod);
            let group = groups.entry((*family, port_key(&ports))).or_default();
            group.ports = ports;
            let key = (pod.uid().unwrap_or_default(), address.to_owned());
            group.endpoints.insert(key, endpoint(observed, pod, address));
        }
    }
    let mut ops = Vec::new();
    let mut kept = Vec::new();
    let (mut existing, unusable) = sorted_slices(observed, &families);
    for (group_key, group) in groups {
        let slices = existing.remove(&group_key).unwrap_or_default();
        kept.push(group_key.0);
        place(observed, group_key.0, group, slices, &mut ops);
    }
    // Slices of port sets that nobody has any more; the first of a family without endpoints stays, emptied.
    for ((family, _), slices) in existing {
        for slice in slices {
            if kept.contains(&family) {
                ops.push(Op::Delete(slice));
            } else {
                kept.push(family);
                ops.extend(replace(observed, &slice, Vec::new(), Vec::new()));
            }
        }
    }
    for family in families.iter().filter(|f| !kept.contains(f)) {
        ops.push(Op::Create(Box::new(new_slice(observed.service, *family, Vec::new(), Vec::new()))));
    }
    ops.extend(unusable.into_iter().map(Op::Delete));
    // What takes endpoints away or brings them comes before tidying up.
    ops.sort_by_key(|op| matches!(op, Op::Delete(_)));
    ops
}

type Sorted = BTreeMap<(Family, PortKey), Vec<Arc<EndpointSlice>>>;

/// Existing slices by family and ports, and those of families that the Service has not.
fn sorted_slices(observed: &Observed<'_>, families: &[Family]) -> (Sorted, Vec<Arc<EndpointSlice>>) {
    let (mut sorted, mut unusable) = (Sorted::new(), Vec::new());
    for slice in observed.slices {
        if slice.metadata.deletion_timestamp.is_some() {
            continue;
        }
        match families.iter().find(|f| f.address_type() == slice.address_type) {
            Some(family) => {
                let key = (*family, port_key(slice.ports.as_deref().unwrap_or_default()));
                sorted.entry(key).or_default().push(slice.clone());
            }
            None => unusable.push(slice.clone()),
        }
    }
    for slices in sorted.values_mut() {
        slices.sort_by_key(|s| s.name_any());
    }
    (sorted, unusable)
}

/// Puts the endpoints of a group into its slices: each stays where it is, new ones fill gaps, the rest makes new
/// slices.
fn place(
    observed: &Observed<'_>,
    family: Family,
    mut group: Group,
    slices: Vec<Arc<EndpointSlice>>,
    ops: &mut Vec<Op>,
) {
    let mut contents: Vec<(Arc<EndpointSlice>, Vec<Endpoint>)> = Vec::new();
    for slice in slices {
        let stay = slice.endpoints.iter().filter_map(|e| group.endpoints.remove(&endpoint_key(e)));
        let stay: Vec<Endpoint> = stay.take(MAX_ENDPOINTS_PER_SLICE).collect();
        contents.push((slice, stay));
    }
    let mut rest = group.endpoints.into_values();
    for (_, content) in &mut contents {
        let room = MAX_ENDPOINTS_PER_SLICE - content.len();
        content.extend(rest.by_ref().take(room));
    }
    let rest: Vec<Endpoint> = rest.collect();
    for chunk in rest.chunks(MAX_ENDPOINTS_PER_SLICE) {
        let slice = new_slice(observed.service, family, group.ports.clone(), chunk.to_vec());
        ops.push(Op::Create(Box::new(slice)));
    }
    for (slice, content) in contents {
        if content.is_empty() {
            ops.push(Op::Delete(slice));
        } else {
            ops.extend(replace(observed, &slice, group.ports.clone(), content));
        }
    }
}

/// The replacement of a slice, if it differs.
fn replace(
    observed: &Observed<'_>,
    slice: &Arc<EndpointSlice>,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
) -> Option<Op> {
    let metadata = metadata(observed.service, slice.metadata.clone());
    let same_ports = port_key(&ports) == port_key(slice.ports.as_deref().unwrap_or_default());
    let same_meta = metadata.labels == slice.metadata.labels
        && metadata.annotations.clone().unwrap_or_default() == slice.metadata.annotations.clone().unwrap_or_default()
        && metadata.owner_references == slice.metadata.owner_references;
    if same_ports && same_meta && endpoints == slice.endpoints {
        return None;
    }
    let replaced = EndpointSlice { metadata, address_type: slice.address_type.clone(), endpoints, ports: Some(ports) };
    Some(Op::Replace(Box::new(replaced)))
}

fn endpoint_key(endpoint: &Endpoint) -> (String, String) {
    let uid = endpoint.target_ref.as_ref().and_then(|r| r.uid.clone()).unwrap_or_default();
    (uid, endpoint.addresses.first().cloned().unwrap_or_default())
}

fn port_key(ports: &[EndpointPort]) -> PortKey {
    let named = |p: &EndpointPort| {
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        (text(&p.name), p.port, text(&p.protocol), text(&p.app_protocol))
    };
    let mut ports: Vec<_> = ports.iter().map(named).collect();
    ports.sort();
    format!("{ports:?}")
}

/// `spec.ipFamilies`; IPv4 if unset.
fn families(service: &Service) -> Vec<Family> {
    let spec = service.spec.as_ref().and_then(|s| s.ip_families.as_deref()).unwrap_or_default();
    let mut families: Vec<Family> = spec.iter().map(|f| if f == "IPv6" { Family::V6 } else { Family::V4 }).collect();
    if families.is_empty() {
        families.push(Family::V4);
    }
    families.sort();
    families.dedup();
    families
}

/// The Service's ports as this pod serves them; those that it does not have are left out.
fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
    let resolve = |p: &k8s_openapi::api::core::v1::ServicePort| {
        Some(EndpointPort {
            name: Some(p.name.clone().unwrap_or_default()),
            protocol: Some(p.protocol.clone().unwrap_or_else(|| "TCP".into())),
            port: Some(podinfo::target_port(pod, p)?),
            app_protocol: p.app_protocol.clone(),
        })
    };
    ports.iter().filter_map(resolve).collect()
}

fn endpoint(observed: &Observed<'_>, pod: &Pod, address: &str) -> Endpoint {
    let spec = observed.service.spec.as_ref();
    let publish = spec.and_then(|s| s.publish_not_ready_addresses).unwrap_or(false);
    let serving = pods::is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let node_name = pod.spec.as_ref().and_then(|s| s.node_name.clone()).filter(|n| !n.is_empty());
    let node = node_name.as_ref().and_then(|n| observed.nodes.get(n));
    let zone = node.and_then(|n| n.labels().get(LABEL_ZONE).cloned());
    let ready = publish || (serving && !terminating);
    let distribution = spec.and_then(|s| s.traffic_distribution.as_deref()).filter(|_| ready);
    Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: podinfo::hostname(pod, observed.service),
        hints: distribution.and_then(|d| hints(d, zone.as_deref(), node_name.as_deref())),
        zone,
        node_name,
        target_ref: Some(pod_reference(pod)),
        ..Endpoint::default()
    }
}

/// By whom an endpoint that is ready should be used, by `spec.trafficDistribution` (upstream's `trafficdist`).
fn hints(distribution: &str, zone: Option<&str>, node: Option<&str>) -> Option<EndpointHints> {
    let node = node.filter(|_| distribution == "PreferSameNode");
    let zone = zone.filter(|_| matches!(distribution, "PreferClose" | "PreferSameZone" | "PreferSameNode"));
    let hints = EndpointHints {
        for_nodes: node.map(|name| vec![ForNode { name: name.into() }]),
        for_zones: zone.map(|name| vec![ForZone { name: name.into() }]),
    };
    (hints.for_nodes.is_some() || hints.for_zones.is_some()).then_some(hints)
}

/// A reference to a pod as endpoints carry it.
pub fn pod_reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.namespace(),
        name: Some(pod.name_any()),
        uid: pod.uid(),
        ..ObjectReference::default()
    }
}

/// Whether the Service has no cluster IP by choice.
pub fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

/// Labels and annotations follow the Service; identity stays.
fn metadata(service: &Service, mut meta: ObjectMeta) -> ObjectMeta {
    let reserved = [LABEL_SERVICE_NAME, LABEL_MANAGED_BY_SLICE, LABEL_HEADLESS];
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.retain(|k, _| !reserved.contains(&k.as_str()));
    labels.insert(LABEL_SERVICE_NAME.into(), service.name_any());
    labels.insert(LABEL_MANAGED_BY_SLICE.into(), MANAGER.into());
    if is_headless(service) {
        labels.insert(LABEL_HEADLESS.into(), String::new());
    }
    let mut annotations = service.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|k, _| k != LAST_APPLIED && k != LAST_CHANGE);
    meta.labels = Some(labels);
    meta.annotations = Some(annotations).filter(|a| !a.is_empty());
    meta
}

fn new_slice(service: &Service, family: Family, ports: Vec<EndpointPort>, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let base = format!("{}-", service.name_any());
    let meta = ObjectMeta {
        name: Some(names::generate(&base)),
        generate_name: Some(base),
        namespace: service.namespace(),
        owner_references: Some(vec![owner::controller_ref::<Service>(&service.metadata)]),
        ..ObjectMeta::default()
    };
    EndpointSlice {
        metadata: metadata(service, meta),
        address_type: family.address_type().into(),
        endpoints,
        ports: Some(ports),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(spec: Value) -> Service {
        let mut value = json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "s", "labels": {"team": "a"},
                         "annotations": {LAST_APPLIED: "{}", "note": "n"}},
            "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.9",
                     "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]},
        });
        for (k, v) in spec.as_object().unwrap() {
            value["spec"][k] = v.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    fn pod(n: usize, ready: bool, port: i32) -> Arc<Pod> {
        let value = json!({
            "metadata": {"name": format!("p{n}"), "namespace": "shop", "uid": format!("u{n:04}")},
            "spec": {"nodeName": "n1", "containers": [
                {"name": "c", "ports": [{"name": "http", "containerPort": port}]}
            ]},
            "status": {"phase": "Running", "podIP": format!("10.0.{}.{}", n / 250, n % 250),
                       "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn terminating(pod: &Arc<Pod>) -> Arc<Pod> {
        let mut pod = (**pod).clone();
        pod.metadata.deletion_timestamp = Some(scaleup_api::time::now());
        Arc::new(pod)
    }

    fn nodes() -> HashMap<String, Arc<Node>> {
        let node = json!({"metadata": {"name": "n1", "labels": {LABEL_ZONE: "z1"}}});
        [("n1".to_owned(), Arc::new(serde_json::from_value(node).unwrap()))].into()
    }

    fn run(service: &Service, pods: &[Arc<Pod>], slices: &[Arc<EndpointSlice>]) -> Vec<Op> {
        plan(&Observed { service, pods, nodes: &nodes(), slices })
    }

    /// What the cluster looks like after the operations.
    fn apply(mut slices: Vec<Arc<EndpointSlice>>, ops: Vec<Op>) -> Vec<Arc<EndpointSlice>> {
        for op in ops {
            match op {
                Op::Create(s) => slices.push(Arc::new(*s)),
                Op::Replace(s) => {
                    slices.retain(|old| old.name_any() != s.name_any());
                    slices.push(Arc::new(*s));
                }
                Op::Delete(s) => slices.retain(|old| old.name_any() != s.name_any()),
            }
        }
        slices
    }

    /// `ready serving terminating` of each endpoint.
    fn conditions(slice: &EndpointSlice) -> Vec<(bool, bool, bool)> {
        let of = |e: &Endpoint| {
            let c = e.conditions.clone().unwrap();
            (c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap())
        };
        slice.endpoints.iter().map(of).collect()
    }

    #[test]
    fn slices_look_like_upstreams() {
        let svc = service(json!({}));
        let slices = apply(vec![], run(&svc, &[pod(1, true, 8080)], &[]));
        assert_eq!(slices.len(), 1);
        let slice = &slices[0];
        assert!(slice.name_any().starts_with("web-"));
        assert_eq!(slice.labels()[LABEL_SERVICE_NAME], "web");
        assert_eq!(slice.labels()[LABEL_MANAGED_BY_SLICE], MANAGER);
        assert_eq!(slice.labels()["team"], "a");
        assert_eq!(slice.annotations().keys().collect::<Vec<_>>(), ["note"]);
        assert_eq!(slice.owner_references()[0].kind, "Service");
        let port = &slice.ports.as_ref().unwrap()[0];
        assert_eq!(
            (port.name.as_deref(), port.port, port.protocol.as_deref()),
            (Some("http"), Some(8080), Some("TCP"))
        );
        let e = &slice.endpoints[0];
        assert_eq!((e.node_name.as_deref(), e.zone.as_deref()), (Some("n1"), Some("z1")));
        assert_eq!(e.target_ref.as_ref().unwrap().name.as_deref(), Some("p1"));
        assert!(run(&svc, &[pod(1, true, 8080)], &slices).is_empty(), "settled");
    }

    #[test]
    fn conditions_follow_the_pod() {
        let svc = service(json!({}));
        let up = pod(1, true, 80);
        let pods = [up.clone(), pod(2, false, 80), terminating(&pod(3, true, 80)), terminating(&pod(4, false, 80))];
        let slices = apply(vec![], run(&svc, &pods, &[]));
        let want = [(true, true, false), (false, false, false), (false, true, true), (false, false, true)];
        assert_eq!(conditions(&slices[0]), want);
        let publish = service(json!({"publishNotReadyAddresses": true}));
        let slices = apply(slices, run(&publish, &pods, &[]));
        assert!(conditions(slices.last().unwrap()).iter().all(|c| c.0));
        // A deletion is one replacement of one slice.
        let before = apply(vec![], run(&svc, std::slice::from_ref(&up), &[]));
        let ops = run(&svc, &[terminating(&up)], &before);
        assert!(matches!(ops.as_slice(), [Op::Replace(s)] if conditions(s) == [(false, true, true)]), "{ops:?}");
    }

    #[test]
    fn an_empty_service_has_one_empty_slice() {
        let svc = service(json!({}));
        let slices = apply(vec![], run(&svc, &[], &[]));
        assert_eq!((slices.len(), slices[0].endpoints.len()), (1, 0));
        assert!(run(&svc, &[], &slices).is_empty());
        let filled = apply(slices, run(&svc, &[pod(1, true, 80)], &[]));
        let emptied = apply(filled.clone(), run(&svc, &[], &filled));
        assert_eq!((emptied.len(), emptied[0].endpoints.len()), (1, 0));
        assert!(run(&svc, &[], &emptied).is_empty());
    }

    #[test]
    fn slices_hold_a_hundred_and_are_refilled() {
        let svc = service(json!({}));
        let pods: Vec<_> = (0..250).map(|n| pod(n, true, 80)).collect();
        let slices = apply(vec![], run(&svc, &pods, &[]));
        let sizes = |s: &[Arc<EndpointSlice>]| {
            let mut sizes: Vec<_> = s.iter().map(|s| s.endpoints.len()).collect();
            sizes.sort();
            sizes
        };
        assert_eq!(sizes(&slices), [50, 100, 100]);
        // 30 go, 60 come: no new slice is needed, and nothing is there twice.
        let mut changed: Vec<_> = pods[30..].to_vec();
        changed.extend((300..360).map(|n| pod(n, true, 80)));
        let slices = apply(slices.clone(), run(&svc, &changed, &slices));
        assert_eq!(sizes(&slices), [80, 100, 100]);
        let mut uids: Vec<_> = slices.iter().flat_map(|s| s.endpoints.iter().map(endpoint_key)).collect();
        uids.sort();
        uids.dedup();
        assert_eq!(uids.len(), 280);
        assert!(run(&svc, &changed, &slices).is_empty());
    }

    #[test]
    fn pods_with_other_ports_get_slices_of_their_own() {
        let svc = service(json!({}));
        let slices = apply(vec![], run(&svc, &[pod(1, true, 80), pod(2, true, 81)], &[]));
        assert_eq!(slices.len(), 2);
        let slices = apply(slices.clone(), run(&svc, &[pod(1, true, 80)], &slices));
        assert_eq!(slices.len(), 1);
    }

    #[test]
    fn headless_services_are_labelled_and_need_no_ports() {
        let svc = service(json!({"clusterIP": "None", "ports": null}));
        let mut named = (*pod(1, true, 80)).clone();
        named.spec.as_mut().unwrap().hostname = Some("db-0".into());
        named.spec.as_mut().unwrap().subdomain = Some("web".into());
        let slices = apply(vec![], run(&svc, &[Arc::new(named)], &[]));
        assert!(slices[0].labels().contains_key(LABEL_HEADLESS));
        assert_eq!(slices[0].ports.as_deref(), Some([].as_slice()));
        assert_eq!(slices[0].endpoints[0].hostname.as_deref(), Some("db-0"));
    }

    #[test]
    fn hints_follow_the_traffic_distribution() {
        let check = |spec: Value, pod: Arc<Pod>, want: Value| {
            let slices = apply(vec![], run(&service(spec), &[pod], &[]));
            assert_eq!(serde_json::to_value(&slices[0].endpoints[0].hints).unwrap(), want);
        };
        let zones = json!({"forZones": [{"name": "z1"}]});
        let both = json!({"forNodes": [{"name": "n1"}], "forZones": [{"name": "z1"}]});
        check(json!({}), pod(1, true, 80), Value::Null);
        check(json!({"trafficDistribution": "PreferClose"}), pod(1, true, 80), zones.clone());
        check(json!({"trafficDistribution": "PreferSameZone"}), pod(1, true, 80), zones.clone());
        check(json!({"trafficDistribution": "PreferSameNode"}), pod(1, true, 80), both);
        // What takes no traffic needs no hint.
        check(json!({"trafficDistribution": "PreferClose"}), pod(1, false, 80), Value::Null);
        check(json!({"trafficDistribution": "PreferClose"}), terminating(&pod(1, true, 80)), Value::Null);
        let early = json!({"trafficDistribution": "PreferClose", "publishNotReadyAddresses": true});
        check(early, pod(1, false, 80), zones);
        // Nobody knows the zone of a node without the label.
        let mut elsewhere = (*pod(1, true, 80)).clone();
        elsewhere.spec.as_mut().unwrap().node_name = Some("n2".into());
        check(json!({"trafficDistribution": "PreferClose"}), Arc::new(elsewhere), Value::Null);
    }

    #[test]
    fn both_families_have_slices() {
        let svc = service(json!({"ipFamilies": ["IPv4", "IPv6"]}));
        let mut both = (*pod(1, true, 80)).clone();
        both.status.as_mut().unwrap().pod_ips =
            serde_json::from_value(json!([{"ip": "10.0.0.1"}, {"ip": "fd00::1"}])).unwrap();
        let slices = apply(vec![], run(&svc, &[Arc::new(both)], &[]));
        let types: Vec<_> = slices.iter().map(|s| s.address_type.as_str()).collect();
        assert_eq!(types, ["IPv4", "IPv6"]);
        let single = apply(slices.clone(), run(&service(json!({})), &[pod(1, true, 80)], &slices));
        assert_eq!(single.len(), 1);
    }
}
