//! The one place where a new [`Snapshot`] takes effect.
//!
//! [`Hub::publish`] first replaces the backends that listeners read (so a change reaches traffic within the call), then
//! wakes DNS, nftables and the listener manager. It does no I/O and is called by the watch loop, or by hand in tests
//! and benchmarks.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::backend::{Backend, BackendCell, EndpointState};
use crate::snapshot::{EndpointPlan, PortPlan, Protocol, ServiceKey, ServicePlan, Snapshot};
use crate::stats::{PodTotals, PodUsage, ServiceStats, ServiceTotals};

/// A Pod's usage is kept this long after its last endpoint went, so that a billing reader does not miss its end.
const USAGE_KEPT_SECONDS: i64 = 3_600;
/// Pause between searches for usage that may be forgotten.
const CLEANUP_SECONDS: i64 = 60;
/// Beyond this many usage entries those of Pods that are gone are dropped at once.
const MAX_USAGE_ENTRIES: usize = 100_000;

/// A TCP port of a Service, the unit a listener serves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PortKey {
    pub service: ServiceKey,
    pub port: u16,
}

/// Current snapshot, run-time state of what it names, and whom to tell about the next one.
#[derive(Debug)]
pub(crate) struct Hub {
    threads: usize,
    current: ArcSwap<Snapshot>,
    changed: watch::Sender<Arc<Snapshot>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    ports: BTreeMap<PortKey, Port>,
    endpoints: HashMap<(SocketAddr, Option<Arc<str>>), Interned>,
    services: BTreeMap<ServiceKey, Arc<ServiceStats>>,
    usage: BTreeMap<Arc<str>, Arc<PodUsage>>,
    next_endpoint_id: u64,
    /// Unix seconds of the next search for usage to forget.
    next_cleanup: i64,
}

#[derive(Debug)]
struct Port {
    cell: Arc<BackendCell>,
    turn: Arc<AtomicUsize>,
}

/// An endpoint's state and how many backends hold it.
#[derive(Debug)]
struct Interned {
    state: Arc<EndpointState>,
    users: usize,
}

impl Hub {
    pub fn new(threads: usize) -> Self {
        let empty = Arc::new(Snapshot::default());
        Self {
            threads,
            current: ArcSwap::new(empty.clone()),
            changed: watch::channel(empty).0,
            state: Mutex::default(),
        }
    }

    /// The snapshot in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Wakes on every new snapshot (several may be seen as one).
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.changed.subscribe()
    }

    /// The cell of a TCP Service port that the snapshot has.
    pub fn cell(&self, key: &PortKey) -> Option<Arc<BackendCell>> {
        self.state.lock().ports.get(key).map(|port| port.cell.clone())
    }

    /// Makes `snapshot` the one in force.
    pub fn publish(&self, snapshot: Snapshot) {
        let snapshot = Arc::new(snapshot);
        {
            let mut state = self.state.lock();
            let old = self.current.swap(snapshot.clone());
            for (key, plan) in &snapshot.services {
                let before = old.services.get(key);
                if before.is_none_or(|before| !Arc::ptr_eq(before, plan)) {
                    state.update(plan, before.map(|plan| &**plan), self.threads);
                }
            }
            for (key, plan) in &old.services {
                if !snapshot.services.contains_key(key) {
                    state.remove(plan);
                }
            }
            state.forget_old_usage(now_seconds());
        }
        self.changed.send_replace(snapshot);
    }

    /// Usage per Pod UID since the process started.
    pub fn usage(&self) -> Vec<(Arc<str>, PodTotals)> {
        self.state.lock().usage.iter().map(|(uid, usage)| (uid.clone(), usage.totals())).collect()
    }

    /// Counters per Service.
    pub fn totals(&self) -> Vec<(ServiceKey, ServiceTotals)> {
        self.state.lock().services.iter().map(|(key, stats)| (key.clone(), stats.totals())).collect()
    }

    /// Endpoints known and what they are doing: address and requests in flight.
    pub fn endpoints(&self) -> Vec<(SocketAddr, u64)> {
        self.state.lock().endpoints.values().map(|e| (e.state.addr, e.state.in_flight())).collect()
    }
}

/// Ports the user-space proxy may have to serve: TCP ports reachable from outside.
pub(crate) fn proxied_ports(plan: &ServicePlan) -> impl Iterator<Item = &PortPlan> {
    use crate::snapshot::ServiceType::{LoadBalancer, NodePort};
    let outside = matches!(plan.kind, LoadBalancer | NodePort);
    plan.ports.iter().filter(move |port| outside && port.protocol == Protocol::Tcp)
}

impl State {
    fn update(&mut self, plan: &ServicePlan, before: Option<&ServicePlan>, threads: usize) {
        for port in proxied_ports(plan) {
            let key = PortKey { service: plan.key.clone(), port: port.port };
            // New endpoints are taken before old ones are released, so that a shared one is never marked removed.
            let backend = self.backend(plan, port, threads);
            match self.ports.get(&key) {
                Some(known) => {
                    let old = known.cell.swap(Arc::new(backend));
                    self.release(&old);
                }
                None => {
                    let turn = backend.turn.clone();
                    self.ports.insert(key, Port { cell: Arc::new(ArcSwap::from_pointee(backend)), turn });
                }
            }
        }
        let kept = |port: u16| proxied_ports(plan).any(|kept| kept.port == port);
        let gone: Vec<u16> = before.into_iter().flat_map(proxied_ports).map(|p| p.port).filter(|p| !kept(*p)).collect();
        gone.into_iter().for_each(|port| self.remove_port(&plan.key, port));
    }

    fn remove(&mut self, plan: &ServicePlan) {
        proxied_ports(plan).for_each(|port| self.remove_port(&plan.key, port.port));
        self.services.remove(&plan.key);
    }

    fn remove_port(&mut self, service: &ServiceKey, port: u16) {
        let Some(port) = self.ports.remove(&PortKey { service: service.clone(), port }) else { return };
        let old = port.cell.load_full();
        // Connections that outlive the Service find nobody to ask.
        port.cell.store(Arc::new(Backend {
            service: old.service.clone(),
            port: old.port,
            app: old.app,
            endpoints: Box::default(),
            client_ip_affinity: false,
            turn: old.turn.clone(),
            stats: old.stats.clone(),
        }));
        self.release(&old);
    }

    fn backend(&mut self, plan: &ServicePlan, port: &PortPlan, threads: usize) -> Backend {
        let key = PortKey { service: plan.key.clone(), port: port.port };
        let stats = self.services.entry(plan.key.clone()).or_insert_with(|| Arc::new(ServiceStats::new(threads)));
        Backend {
            service: plan.key.clone(),
            port: port.port,
            app: port.app,
            client_ip_affinity: plan.client_ip_affinity,
            turn: self.ports.get(&key).map(|port| port.turn.clone()).unwrap_or_default(),
            stats: stats.clone(),
            endpoints: port.external.iter().map(|endpoint| self.acquire(endpoint, threads)).collect(),
        }
    }

    fn acquire(&mut self, plan: &EndpointPlan, threads: usize) -> Arc<EndpointState> {
        let pod = plan.pod_uid.as_ref().map(|uid| {
            let usage = self.usage.entry(uid.clone()).or_insert_with(|| Arc::new(PodUsage::new(threads)));
            usage.gone_since.store(0, Relaxed);
            (uid.clone(), usage.clone())
        });
        let id = &mut self.next_endpoint_id;
        let interned = self.endpoints.entry((plan.addr, plan.pod_uid.clone())).or_insert_with(|| {
            *id += 1;
            Interned { state: Arc::new(EndpointState::new(*id, plan.addr, pod, threads)), users: 0 }
        });
        interned.users += 1;
        interned.state.clone()
    }

    fn release(&mut self, backend: &Backend) {
        for endpoint in &backend.endpoints {
            let key = (endpoint.addr, endpoint.pod.as_ref().map(|(uid, _)| uid.clone()));
            let Some(interned) = self.endpoints.get_mut(&key) else { continue };
            interned.users -= 1;
            if interned.users == 0 {
                endpoint.set_removed(true);
                if let Some(usage) = endpoint.usage() {
                    usage.gone_since.store(now_seconds(), Relaxed);
                }
                self.endpoints.remove(&key);
            }
        }
    }

    fn forget_old_usage(&mut self, now: i64) {
        let excess = self.usage.len() > MAX_USAGE_ENTRIES;
        if now < self.next_cleanup && !excess {
            return;
        }
        self.next_cleanup = now + CLEANUP_SECONDS;
        self.usage.retain(|_, usage| {
            let in_use = Arc::strong_count(usage) > 1;
            in_use || (!excess && now - usage.gone_since.load(Relaxed) < USAGE_KEPT_SECONDS)
        });
    }
}

fn now_seconds() -> i64 {
    k8s_openapi::jiff::Timestamp::now().as_second()
}

#[cfg(test)]
mod tests {
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
        hub.cell(&PortKey { service: ServiceKey::new("d", name), port: 80 }).expect("a cell")
    }

    #[test]
    fn states_outlive_snapshots_and_end_with_their_last_service() {
        let hub = Hub::new(1);
        hub.publish(snapshot(&[("a", &[(1, "p1"), (2, "p2")]), ("b", &[(1, "p1")])]));
        let (a, b) = (cell(&hub, "a"), cell(&hub, "b"));
        let backend = a.load_full();
        let (first, second) = (&backend.endpoints[0], &backend.endpoints[1]);
        assert!(Arc::ptr_eq(first, &b.load().endpoints[0]), "one address has one state");
        hub.publish(snapshot(&[("a", &[(3, "p3")]), ("b", &[(1, "p1")])]));
        assert!(!first.is_removed() && second.is_removed());
        hub.publish(snapshot(&[("a", &[(3, "p3")])]));
        assert!(first.is_removed());
        assert!(b.load().endpoints.is_empty(), "connections of a Service that is gone find nobody");
        assert!(Arc::ptr_eq(&a, &cell(&hub, "a")));
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
}
