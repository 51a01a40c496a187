//! Active health checks: requests of our own that find out whether endpoints work, and Events about endpoints that do not.
//!
//! One task per load balancer makes all checks: staggered, with jitter, a bounded number at a time, each on a connection of its own. An
//! endpoint begins as healthy, because the kubelet's readiness probe has vouched for it; but the first check decides alone, so one that
//! does not work for us gets no more traffic than what comes before that. Never touches users' connections.

pub(crate) mod events;
mod probe;
mod schedule;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::backend::{Backend, EndpointState};
use crate::hub::Hub;
use crate::policy::HealthCheck;
use crate::snapshot::{AppProtocol, ServiceKey};
use probe::{Ask, Asked};
use schedule::{Schedule, Streak};

/// Checks under way at a time.
const MAX_CONCURRENT: usize = 64;
/// Endpoints that are checked; those of the Services that come last are not.
const MAX_TARGETS: usize = 20_000;

/// An endpoint of a Service port.
type Key = (ServiceKey, u16, u64);

/// An endpoint to be checked, and what checks have said so far.
struct Target {
    endpoint: Arc<EndpointState>,
    check: HealthCheck,
    ask: Arc<Ask>,
    addr: SocketAddr,
    streak: Streak,
    /// Tells results of a check that has been replaced apart.
    generation: u64,
}

/// Checks until `shutdown`.
pub(crate) async fn run(hub: Arc<Hub>, shutdown: CancellationToken) {
    let mut snapshots = hub.subscribe();
    let mut checker = Checker::default();
    let mut running: JoinSet<(Key, u64, Result<(), probe::Failed>)> = JoinSet::new();
    loop {
        let now = Instant::now();
        while running.len() < MAX_CONCURRENT {
            let Some(key) = checker.schedule.due(now) else { break };
            let Some(target) = checker.targets.get(&key) else { continue };
            let (ask, addr, generation, timeout) =
                (target.ask.clone(), target.addr, target.generation, target.check.timeout);
            running.spawn(async move { (key, generation, probe::check(&ask, addr, timeout).await) });
        }
        let next = checker.schedule.next().filter(|_| running.len() < MAX_CONCURRENT);
        let sleep = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = snapshots.changed() => {
                if changed.is_err() {
                    return;
                }
                snapshots.borrow_and_update();
                checker.follow(&hub.backends(), Instant::now());
            }
            Some(done) = running.join_next() => {
                if let Ok((key, generation, result)) = done {
                    checker.learn(key, generation, result, Instant::now());
                }
            }
            () = sleep => {}
            () = shutdown.cancelled() => return,
        }
    }
}

#[derive(Default)]
struct Checker {
    targets: BTreeMap<Key, Target>,
    schedule: Schedule<Key>,
    generation: u64,
}

impl Checker {
    /// Takes over which endpoints there are.
    fn follow(&mut self, backends: &[(crate::hub::PortKey, Arc<Backend>)], now: Instant) {
        let mut wanted: BTreeMap<Key, (&Arc<Backend>, &Arc<EndpointState>, &HealthCheck)> = BTreeMap::new();
        for (_, backend) in backends {
            let Some(check) = &backend.policy.health_check else { continue };
            for endpoint in &backend.endpoints {
                let key = (backend.service.clone(), backend.port, endpoint.id);
                if wanted.len() < MAX_TARGETS {
                    wanted.insert(key, (backend, endpoint, check));
                }
            }
        }
        self.targets.retain(|key, target| {
            let keep = wanted.get(key).is_some_and(|(backend, _, check)| {
                target.check == **check && *target.ask.asked() == asked(backend, check)
            });
            if !keep {
                self.schedule.remove(key);
                if target.streak.is_failing() {
                    target.endpoint.set_check_failing(false, now);
                }
            }
            keep
        });
        // Endpoints of a backend follow each other, and are asked the same.
        let mut last: Option<Arc<Ask>> = None;
        for (key, (backend, endpoint, check)) in wanted {
            if self.targets.contains_key(&key) {
                continue;
            }
            self.generation += 1;
            let mut addr = endpoint.addr;
            addr.set_port(check.port.unwrap_or(addr.port()));
            self.schedule.first(key.clone(), check.interval, now);
            let asked = asked(backend, check);
            let ask = last.take().filter(|last| *last.asked() == asked).unwrap_or_else(|| Arc::new(Ask::new(asked)));
            last = Some(ask.clone());
            let target = Target {
                endpoint: endpoint.clone(),
                check: check.clone(),
                ask,
                addr,
                streak: Streak::default(),
                generation: self.generation,
            };
            self.targets.insert(key, target);
        }
    }

    /// A check has ended.
    fn learn(&mut self, key: Key, generation: u64, result: Result<(), probe::Failed>, now: Instant) {
        let Some(target) = self.targets.get_mut(&key).filter(|target| target.generation == generation) else { return };
        self.schedule.again(key.clone(), target.check.interval, now);
        let Some(failing) = target.streak.record(result.is_ok(), &target.check) else { return };
        target.endpoint.set_check_failing(failing, now);
        let (service, endpoint) = (&key.0, target.addr);
        match result {
            Err(error) => {
                tracing::info!(%service, %endpoint, error = &error as &dyn std::error::Error, "an endpoint fails its health check");
            }
            Ok(()) => tracing::info!(%service, %endpoint, "an endpoint passes its health check again"),
        }
    }
}

/// What is asked, and how: as users' requests go, unless the check has a port of its own, which is asked in clear text.
fn asked(backend: &Backend, check: &HealthCheck) -> Asked {
    let own_port = check.port.is_some();
    Asked {
        probe: check.probe.clone(),
        http2: backend.app == AppProtocol::H2c && !own_port,
        proxy: backend.policy.send_proxy.filter(|_| !own_port),
        tls: backend.policy.upstream_tls.clone().filter(|_| !own_port),
    }
}
