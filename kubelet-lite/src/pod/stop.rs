//! Stopping containers: `preStop`, stop signal, grace, kill; and the end of a pod (`killContainer`, `SyncTerminatingPod`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{LifecycleHandler, Pod};
use tokio::time::Instant;

use super::facts::StopReason;
use super::handler::{Action, Target};
use super::{start, view};
use crate::agent::Agent;
use crate::events::Kind;
use crate::runtime::{Container, RuntimeError};

/// What a stop gets at least after a hook has used up the grace period (`minimumGracePeriodInSeconds`).
const MIN_GRACE: Duration = Duration::from_secs(2);
/// Between attempts while the runtime is away.
const RETRY: Duration = Duration::from_secs(1);

/// The action of a lifecycle handler.
pub fn action(handler: &LifecycleHandler) -> Option<Action> {
    if let Some(exec) = &handler.exec {
        Some(Action::Exec(exec.clone()))
    } else if let Some(http) = &handler.http_get {
        Some(Action::Http(http.clone()))
    } else {
        let seconds = handler.sleep.as_ref()?.seconds;
        Some(Action::Sleep(Duration::from_secs(u64::try_from(seconds).unwrap_or(0))))
    }
}

/// The target of a container's probes and hooks.
pub fn target(agent: &Agent, pod: &Pod, container: &Container, sandbox: Option<&Container>) -> Option<Target> {
    let spec = view::container(pod, &container.name)?.clone();
    Some(Target {
        runtime: agent.runtime.clone(),
        pod: view::pod_ref(pod),
        id: container.id.clone(),
        address: sandbox.map_or(agent.config.node_ip, |s| start::address(agent, pod, s)),
        spec: Arc::new(spec),
    })
}

/// Upstream's message of the `Killing` event.
fn killing_text(name: &str, why: &StopReason) -> String {
    match why {
        StopReason::Liveness => format!("Container {name} failed liveness probe, will be restarted"),
        StopReason::Startup => format!("Container {name} failed startup probe, will be restarted"),
        StopReason::Changed => format!("Container {name} definition changed, will be restarted"),
        StopReason::PostStart => "FailedPostStartHook".into(),
        StopReason::SandboxGone | StopReason::PodEnded => format!("Stopping container {name}"),
    }
}

/// Stops one container and returns when it has stopped. Waits for the runtime as long as it takes.
pub async fn container(
    agent: &Agent,
    pod: &Pod,
    target: Option<Target>,
    container: &Container,
    why: &StopReason,
    grace: Duration,
) {
    agent.events.pod(pod, Some(&container.name), Kind::Normal, "Killing", killing_text(&container.name, why));
    let began = Instant::now();
    let hook = view::container(pod, &container.name)
        .and_then(|c| c.lifecycle.as_ref()?.pre_stop.as_ref())
        .and_then(action)
        .filter(|_| !grace.is_zero());
    if let (Some(hook), Some(target)) = (hook, target) {
        let outcome = tokio::time::timeout(grace, target.run(&hook, grace)).await;
        if let Ok(Err(failed)) = outcome {
            agent.events.pod(
                pod,
                Some(&container.name),
                Kind::Warning,
                "FailedPreStopHook",
                format!("PreStopHook failed: {failed}"),
            );
        }
    }
    let left = if grace.is_zero() { grace } else { grace.saturating_sub(began.elapsed()).max(MIN_GRACE) };
    until_done(|| agent.runtime.stop(&container.id, left)).await;
}

/// Repeats a call while the runtime is away; any other refusal is logged and ends it.
pub async fn until_done<F, Fut>(mut call: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<(), RuntimeError>>,
{
    loop {
        match call().await {
            Ok(()) => return,
            Err(error) if error.is_unavailable() => tokio::time::sleep(RETRY).await,
            Err(error) => return tracing::warn!(%error, "the runtime refused"),
        }
    }
}

/// Stops all running containers of a pod: the ordinary ones together, then the sidecars, last started first.
pub async fn all(agent: &Agent, pod: &Pod, running: &[Container], sandbox: Option<&Container>, grace: Duration) {
    let began = Instant::now();
    let sidecars: Vec<&str> =
        view::init_containers(pod).iter().filter(|c| view::is_sidecar(c)).map(|c| c.name.as_str()).collect();
    let is_sidecar = |c: &&Container| sidecars.contains(&c.name.as_str());
    let why = StopReason::PodEnded;
    let first = running.iter().filter(|c| !is_sidecar(c)).map(|c| {
        let target = target(agent, pod, c, sandbox);
        container(agent, pod, target, c, &why, grace)
    });
    futures::future::join_all(first).await;
    let mut last: Vec<&Container> = running.iter().filter(is_sidecar).collect();
    last.sort_by_key(|c| std::cmp::Reverse(sidecars.iter().position(|name| *name == c.name)));
    for sidecar in last {
        let left = if grace.is_zero() { grace } else { grace.saturating_sub(began.elapsed()).max(MIN_GRACE) };
        container(agent, pod, target(agent, pod, sidecar, sandbox), sidecar, &why, left).await;
    }
}

/// Kills without asking, whatever is named; for a grace period that was shortened after the fact.
pub async fn kill(agent: &Agent, running: &[Container]) {
    let ids: BTreeSet<&str> = running.iter().map(|c| c.id.as_str()).collect();
    futures::future::join_all(ids.into_iter().map(|id| until_done(move || agent.runtime.stop(id, Duration::ZERO))))
        .await;
}
