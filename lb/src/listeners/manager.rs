//! Keeps the open listeners equal to [`super::desired`].

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::bind::{self, BindError};
use super::health::HealthPorts;
use super::{Claim, Claims, Problem, Report, Role, Sockets, desired};
use crate::hub::{Hub, SiteKey};
use crate::proxy::Proxy;
use crate::proxy::site::SiteCell;
use crate::snapshot::Snapshot;
use crate::snapshot::routes::HostPort;

/// First and longest pause before a port that could not be bound is tried again.
const RETRY_MIN: Duration = Duration::from_millis(500);
/// How long idle connections may ask for something when a successor serves the listeners.
const LEAVE_TIME: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Host ports by state.
pub(crate) struct Manager {
    hub: Arc<Hub>,
    proxy: Proxy,
    bind_address: IpAddr,
    report: Arc<watch::Sender<Report>>,
    ports: BTreeMap<HostPort, Port>,
    /// Copies of what is open. They keep a port open, so they are closed first.
    sockets: Arc<Sockets>,
    health: HealthPorts,
    next_id: u64,
}

/// What became of a host port we want.
enum Port {
    /// Served by our listener `id`.
    Open { id: u64, target: SiteKey, site: Arc<SiteCell> },
    /// Could not be bound; tried again at `retry_at`.
    Failed { error: BindError, retry_at: Instant, pause: Duration },
}

impl Manager {
    pub fn new(
        hub: Arc<Hub>,
        proxy: Proxy,
        bind_address: IpAddr,
        report: Arc<watch::Sender<Report>>,
        sockets: Arc<Sockets>,
    ) -> Self {
        let health = HealthPorts::new(hub.clone(), bind_address);
        Self { hub, proxy, bind_address, report, ports: BTreeMap::new(), sockets, health, next_id: 0 }
    }

    /// Follows the snapshots until `shutdown`, then drains for at most `grace`.
    pub async fn run(mut self, shutdown: CancellationToken, grace: Duration) {
        let mut snapshots = self.hub.subscribe();
        loop {
            let snapshot: Arc<Snapshot> = snapshots.borrow_and_update().clone();
            let claims = desired(&snapshot);
            self.proxy.endpoints_changed();
            self.apply(&claims).await;
            self.health.apply(&snapshot);
            let report = Report { settled: self.hub.is_published(), ..self.summarize(&snapshot, &claims) };
            self.report.send_if_modified(|old| {
                let changed = *old != report;
                *old = report;
                changed
            });
            let retry_at = self.next_retry();
            tokio::select! {
                changed = snapshots.changed() => if changed.is_err() { break },
                () = sleep_until(retry_at) => {}
                () = shutdown.cancelled() => break,
            }
        }
        self.sockets.close_all();
        let leave = if self.sockets.are_handed_over() { LEAVE_TIME.min(grace) } else { Duration::ZERO };
        self.proxy.stop(grace, leave).await;
    }

    fn next_retry(&self) -> Option<Instant> {
        let retries = self.ports.values().filter_map(|port| match port {
            Port::Failed { retry_at, .. } => Some(*retry_at),
            Port::Open { .. } => None,
        });
        retries.chain(self.health.next_retry()).min()
    }

    /// Closes what is not wanted any more, then opens what is missing.
    async fn apply(&mut self, claims: &Claims) {
        let wanted = |port: &HostPort, target: &SiteKey| {
            claims.get(port).and_then(|claims| claims.first()).is_some_and(|winner| winner.target == *target)
        };
        let close: Vec<(HostPort, u64)> = self
            .ports
            .iter()
            .filter_map(|(port, state)| match state {
                Port::Open { id, target, site } if !wanted(port, target) || !self.is_current(target, site) => {
                    Some((*port, *id))
                }
                _ => None,
            })
            .collect();
        for (port, id) in close {
            tracing::info!(port = port.port, "closing listener");
            self.sockets.closed(port);
            self.proxy.close(id).await;
            self.ports.remove(&port);
        }
        self.ports.retain(|port, state| matches!(state, Port::Open { .. }) || claims.contains_key(port));
        for (port, claims) in claims {
            if let Some(winner) = claims.first() {
                self.open(*port, winner).await;
            }
        }
    }

    /// Whether a listener's site is still the one that snapshots update: a Service that was deleted and created again
    /// between two rounds has a new one.
    fn is_current(&self, target: &SiteKey, site: &Arc<SiteCell>) -> bool {
        self.hub.site(target).is_some_and(|current| Arc::ptr_eq(&current, site))
    }

    async fn open(&mut self, port: HostPort, winner: &Claim) {
        let pause = match self.ports.get(&port) {
            Some(Port::Open { .. }) => return,
            Some(Port::Failed { retry_at, .. }) if *retry_at > Instant::now() => return,
            Some(Port::Failed { pause, .. }) => (*pause * 2).min(RETRY_MAX),
            _ => RETRY_MIN,
        };
        // The snapshot may have moved on since the claims were made; the next round sees that.
        let Some(site) = self.hub.site(&winner.target) else { return };
        let addr = SocketAddr::new(self.bind_address, port.port);
        let bound = match self.sockets.take_adopted(port) {
            Some(adopted) => bind::adopt(addr, port.protocol, self.proxy.threads(), adopted),
            None => bind::bind(addr, port.protocol, self.proxy.threads()),
        };
        let state = match bound.and_then(|sockets| self.sockets.opened_all(port, sockets)) {
            Ok(sockets) => {
                self.next_id += 1;
                tracing::info!(port = port.port, owner = winner.owner, "listening");
                self.proxy.open(self.next_id, sockets, &site).await;
                Port::Open { id: self.next_id, target: winner.target.clone(), site }
            }
            Err(error) => {
                tracing::debug!(port = port.port, %error, "port cannot be listened on, will retry");
                Port::Failed { error, retry_at: Instant::now() + pause, pause }
            }
        };
        self.ports.insert(port, state);
    }

    fn summarize(&self, snapshot: &Snapshot, claims: &Claims) -> Report {
        let mut report = Report::default();
        for (port, claims) in claims {
            for (rank, claim) in claims.iter().enumerate() {
                let problem = match (rank, self.ports.get(port)) {
                    (0, Some(Port::Open { .. })) => None,
                    (0, Some(Port::Failed { error, .. })) => Some(bind_problem(port.port, self.bind_address, error)),
                    (0, None) => None,
                    _ => Some(claim_problem(port.port, &claims[0])),
                };
                let Some(service) = &claim.service else {
                    report.listeners.insert(*port, problem);
                    continue;
                };
                let entry = report.services.entry(service.clone()).or_default();
                if claim.role == Role::LoadBalancer {
                    let bound = rank == 0 && matches!(self.ports.get(port), Some(Port::Open { .. }));
                    *(if bound { &mut entry.bound } else { &mut entry.unbound }) += 1;
                }
                entry.problems.extend(problem);
            }
        }
        for (service, port, error) in self.health.problems() {
            let problem = bind_problem(port, self.bind_address, error);
            report.services.entry(service.clone()).or_default().problems.push(problem);
        }
        report.services.retain(|key, _| snapshot.services.contains_key(key));
        report
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn bind_problem(port: u16, address: IpAddr, error: &BindError) -> Problem {
    match error {
        BindError::InUse => Problem {
            reason: "PortConflict",
            message: format!(
                "Port {port} on {address} is in use by another program. Stop that program (`ss -lntup 'sport = :{port}'` \
                 shows it) or give the Service another port; it is tried again automatically."
            ),
        },
        BindError::Denied => Problem {
            reason: "PortDenied",
            message: format!(
                "Port {port} needs privileges this process does not have. Run it as root or with CAP_NET_BIND_SERVICE, \
                 or lower net.ipv4.ip_unprivileged_port_start, or give the Service a port from 1024 up."
            ),
        },
        BindError::NoAddress => Problem {
            reason: "BindAddressMissing",
            message: format!(
                "The load balancer's bind address {address} does not exist on this machine. Add it to an interface or \
                 change the bind address in the configuration; it is tried again automatically."
            ),
        },
        BindError::Other(source) => Problem {
            reason: "ListenFailed",
            message: format!(
                "Listening on port {port} of {address} failed: {source}. It is tried again automatically."
            ),
        },
    }
}

fn claim_problem(port: u16, winner: &Claim) -> Problem {
    Problem {
        reason: "PortConflict",
        message: format!(
            "Port {port} is already served for {}, which is older. Give one of the two another port.",
            winner.owner
        ),
    }
}
