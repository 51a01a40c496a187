//! Listeners on the host, opened and closed as Services come and go.
//!
//! [`desired`] says, purely, which port serves which Service port and who else claims it; [`manager`] makes it so with
//! the proxy threads; [`status`] tells users: `Service.status.loadBalancer` and Events. Nothing here touches traffic.

pub(crate) mod bind;
pub(crate) mod health;
pub(crate) mod manager;
mod sockets;
pub(crate) mod status;

use std::collections::BTreeMap;

pub(crate) use sockets::Sockets;

use crate::hub::{PortKey, SiteKey, proxied_ports};
use crate::snapshot::routes::HostPort;
use crate::snapshot::{ServiceKey, ServiceType, Snapshot};

/// Why a Service wants a port of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// A port of a Service of type LoadBalancer.
    LoadBalancer,
    /// A node port.
    NodePort,
    /// A port of Gateways or Ingresses.
    Route,
}

/// Something that wants to be served on a port of the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Claim {
    /// Creation time of the object: the oldest claim wins.
    pub created: i64,
    pub target: SiteKey,
    /// Whom it serves, e.g. `Service d/web`, for messages.
    pub owner: String,
    /// The Service whose status tells of it.
    pub service: Option<ServiceKey>,
    pub role: Role,
}

/// A host port: its winner first, then those who lost it, oldest first.
pub(crate) type Claims = BTreeMap<HostPort, Vec<Claim>>;

/// What must be listened on for `snapshot`. Pure.
pub(crate) fn desired(snapshot: &Snapshot) -> Claims {
    let mut claims = Claims::new();
    for plan in snapshot.services.values() {
        for port in proxied_ports(plan) {
            let mut claim = |host_port: u16, role| {
                let host_port = HostPort { port: host_port, protocol: port.protocol };
                claims.entry(host_port).or_default().push(Claim {
                    created: plan.created,
                    target: SiteKey::Service(PortKey::outside(plan, port)),
                    owner: format!("Service {}", plan.key),
                    service: Some(plan.key.clone()),
                    role,
                });
            };
            if plan.kind == ServiceType::LoadBalancer {
                claim(port.port, Role::LoadBalancer);
            }
            if let Some(node_port) = port.node_port {
                claim(node_port, Role::NodePort);
            }
        }
    }
    for (port, plan) in &snapshot.listeners {
        claims.entry(*port).or_default().push(Claim {
            created: plan.created,
            target: SiteKey::Listener(*port),
            owner: plan.owners.join(", "),
            service: None,
            role: Role::Route,
        });
    }
    claims.values_mut().for_each(|claims| claims.sort());
    claims
}

/// Something a user must do before a Service is served.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Problem {
    /// Event reason.
    pub reason: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

/// What became of the listeners, per Service that wants any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// By Service.
    pub services: BTreeMap<ServiceKey, ServiceReport>,
    /// By port that routes are served on: what stands in the way; `None` when it is bound.
    pub listeners: BTreeMap<HostPort, Option<Problem>>,
    /// The manager has tried everything that the current snapshot asks for, and that one is complete.
    pub settled: bool,
}

/// One Service's listeners.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServiceReport {
    /// Load balancer ports that are bound.
    pub bound: usize,
    /// Load balancer ports that are not.
    pub unbound: usize,
    /// What stands in the way.
    pub problems: Vec<Problem>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{PlanConfig, plan};
    use serde_json::{Value, json};

    fn winners(services: &[Value]) -> Vec<(u16, Vec<String>)> {
        let services: Vec<_> = services.iter().map(|s| serde_json::from_value(s.clone()).expect("a Service")).collect();
        let claims = desired(&plan(&services, &[], &PlanConfig::default()));
        claims.into_iter().map(|(port, claims)| (port.port, claims.iter().map(|c| c.owner.clone()).collect())).collect()
    }

    fn service(name: &str, created: &str, kind: &str, ports: Value) -> Value {
        json!({"metadata": {"name": name, "namespace": "d", "creationTimestamp": created},
               "spec": {"type": kind, "ports": ports}})
    }

    #[test]
    fn load_balancer_ports_and_node_ports_are_listened_on() {
        let ports = json!([{"port": 80, "nodePort": 30080}, {"port": 53, "protocol": "UDP", "nodePort": 30053}]);
        let got = winners(&[service("a", "2026-01-01T00:00:00Z", "LoadBalancer", ports.clone())]);
        let owner = || vec!["Service d/a".to_owned()];
        assert_eq!(got, [(53, owner()), (80, owner()), (30053, owner()), (30080, owner())]);
        assert_eq!(winners(&[service("a", "2026-01-01T00:00:00Z", "NodePort", ports.clone())]).len(), 2);
        assert!(winners(&[service("a", "2026-01-01T00:00:00Z", "ClusterIP", ports)]).is_empty());
    }

    #[test]
    fn the_older_service_keeps_a_port() {
        let ports = json!([{"port": 80}]);
        let got = winners(&[
            service("a", "2026-01-02T00:00:00Z", "LoadBalancer", ports.clone()),
            service("b", "2026-01-01T00:00:00Z", "LoadBalancer", ports),
        ]);
        assert_eq!(got, [(80, vec!["Service d/b".to_owned(), "Service d/a".to_owned()])]);
    }

    #[test]
    fn node_ports_and_listeners_of_routes_do_not_share_a_port() {
        use crate::snapshot::Protocol;
        use crate::snapshot::routes::{HttpPlan, ListenerPlan, Mode};
        use std::sync::Arc;
        let ports = json!([{"port": 80, "nodePort": 30080}]);
        let service = service("a", "2026-01-02T00:00:00Z", "NodePort", ports);
        let mut snapshot = plan(&[serde_json::from_value(service).expect("a Service")], &[], &PlanConfig::default());
        let listener = |created: &str| ListenerPlan {
            created: created.parse::<k8s_openapi::jiff::Timestamp>().expect("a time").as_second(),
            owners: vec!["Gateway d/edge".to_owned()],
            accept_proxy: None,
            mode: Mode::Http(Arc::new(HttpPlan::default())),
        };
        let port = |protocol| HostPort { port: 30080, protocol };
        let mut check = |created: &str, protocol: Protocol, expected: &[&str]| {
            snapshot.listeners = [(port(protocol), Arc::new(listener(created)))].into();
            let claims = desired(&snapshot);
            let owners: Vec<&str> = claims[&port(Protocol::Tcp)].iter().map(|claim| claim.owner.as_str()).collect();
            assert_eq!(owners, expected, "{created}");
        };
        // The older one has it, the other one is told; another protocol is another port.
        check("2026-01-01T00:00:00Z", Protocol::Tcp, &["Gateway d/edge", "Service d/a"]);
        check("2026-01-03T00:00:00Z", Protocol::Tcp, &["Service d/a", "Gateway d/edge"]);
        check("2026-01-01T00:00:00Z", Protocol::Udp, &["Service d/a"]);
        // With its Service the port is free again.
        snapshot.services.clear();
        snapshot.listeners.clear();
        assert!(desired(&snapshot).is_empty());
    }
}
