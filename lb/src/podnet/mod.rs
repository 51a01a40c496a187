//! Pods on different nodes reach each other: routes to other nodes' pod subnets by their `InternalIP`, a way past Docker's
//! packet filter, and no translation of pods' addresses on the way.
//!
//! Works where nodes share a subnet; an Event of the own Node names those that do not, and those whose pod subnet
//! overlaps another. [`plan`] decides, purely; this loop runs `ip`, `iptables` and `nft`, again every
//! [`CHECK`], as Docker may have been restarted. Routes and rules stay on shutdown, so that running pods keep their way.

mod plan;

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::watcher::{self, watcher};
use kube::runtime::{WatchStreamExt, reflector};
use kube::{Api, Client};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use plan::{PodNet, Way};

/// The kernel's state is looked at this often.
const CHECK: Duration = Duration::from_secs(30);
/// Events of Nodes that are already waiting are folded into one round.
const MAX_BATCH: usize = 1_000;
/// Longest run of a program.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a program's error text that are kept.
const MAX_ERROR_TEXT: usize = 300;

/// Keeps the pod network of the node `own` until `shutdown`. `table` names what belongs to this instance.
pub(crate) async fn run(client: Client, own: &str, table: &str, shutdown: CancellationToken) {
    let (nodes, writer) = reflector::store();
    let api: Api<Node> = Api::all(client.clone());
    let mut events = watcher(api, watcher::Config::default()).default_backoff().reflect(writer).boxed();
    let reporter = Reporter { controller: "pod-network".to_owned(), instance: Some(own.to_owned()) };
    let recorder = Recorder::new(client, reporter);
    let (mut in_force, mut told): (Option<PodNet>, Option<String>) = (None, None);
    let mut check = tokio::time::interval(CHECK);
    loop {
        let due = tokio::select! {
            event = events.next() => {
                if event.is_none() {
                    return;
                }
                for _ in 1..MAX_BATCH {
                    if events.next().now_or_never().is_none() {
                        break;
                    }
                }
                false
            }
            _ = check.tick() => true,
            () = shutdown.cancelled() => return,
        };
        let state = nodes.state();
        let Some(wanted) = plan::pod_net(state.iter().map(|node| &**node), own) else { continue };
        // A heartbeat of a Node changes nothing here.
        let alone = wanted.peers.is_empty() && in_force.as_ref().is_none_or(|net| net.peers.is_empty());
        if !due && in_force.as_ref() == Some(&wanted) || alone && wanted.conflicts.is_empty() {
            continue;
        }
        let problem = match apply(&wanted, table).await {
            Ok(far) => problem(&wanted, &far),
            Err(error) => Some(format!("Pods of other nodes are not reachable from here: {error}")),
        };
        if told != problem {
            if let Some(note) = &problem {
                tracing::warn!("{note}");
                tell(&recorder, own, note).await;
            }
            told = problem;
        }
        in_force = Some(wanted);
    }
}

/// What a user should know.
fn problem(net: &PodNet, far: &[String]) -> Option<String> {
    let mut notes = Vec::new();
    if !far.is_empty() {
        let list = far.join(", ");
        notes.push(format!(
            "Pods behind {list} are not reachable from here: that address is not in a subnet of this machine. Put the \
             nodes into one network or route the pod subnets between them."
        ));
    }
    if !net.conflicts.is_empty() {
        let list: Vec<&str> = net.conflicts.iter().map(String::as_str).collect();
        notes.push(format!(
            "The pod subnets of nodes {} overlap others: drain these nodes, delete their Node objects and restart their agents.",
            list.join(", ")
        ));
    }
    (!notes.is_empty()).then(|| notes.join(" "))
}

async fn tell(recorder: &Recorder, own: &str, note: &str) {
    let about = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(own.to_owned()),
        // As upstream: a Node's events name it as its own UID.
        uid: Some(own.to_owned()),
        ..ObjectReference::default()
    };
    let event = Event {
        type_: EventType::Warning,
        reason: "PodNetworkIncomplete".to_owned(),
        note: Some(note.to_owned()),
        action: "Route".to_owned(),
        secondary: None,
    };
    if let Err(error) = recorder.publish(&event, &about).await {
        tracing::debug!(%error, "telling about the pod network failed");
    }
}

/// A program failed.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error("the program `{0}` could not be run")]
    Start(&'static str, #[source] std::io::Error),
    #[error("`{0}` did not finish in time")]
    Timeout(&'static str),
    #[error("`{0}` failed: {1}")]
    Failed(&'static str, String),
}

/// Makes the kernel know `net`; the addresses of nodes that cannot be reached directly.
async fn apply(net: &PodNet, table: &str) -> Result<Vec<String>, CommandError> {
    let (mut routes, mut far) = (BTreeMap::new(), Vec::new());
    for (cidr, via) in &net.peers {
        let shown = command("ip", &["-j", "-4", "route", "get", &via.to_string()], "").await;
        match shown.ok().as_deref().and_then(plan::way) {
            Some(Way::Direct) => drop(routes.insert(*cidr, *via)),
            Some(Way::Local) => {}
            Some(Way::Routed) | None => far.push(via.to_string()),
        }
    }
    let metric = plan::metric(table);
    let shown = command("ip", &["-j", "-4", "route", "show", "proto", plan::ROUTE_PROTOCOL], "").await?;
    for arguments in plan::route_commands(&routes, &plan::installed(&shown, metric), metric) {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        command("ip", &arguments, "").await?;
    }
    command("iptables-restore", &["--noflush", "--wait"], &plan::filter_script(net, table)).await?;
    jump(&plan::chain_name(table)).await?;
    command("nft", &["-f", "-"], &plan::nat_script(net, table)).await?;
    Ok(far)
}

/// Leads forwarded packets into our chain: by `DOCKER-USER`, which Docker leaves alone, or directly without Docker.
async fn jump(chain: &str) -> Result<(), CommandError> {
    for parent in ["DOCKER-USER", "FORWARD"] {
        if command("iptables", &["--wait", "-C", parent, "-j", chain], "").await.is_ok() {
            return Ok(());
        }
        if command("iptables", &["--wait", "-I", parent, "1", "-j", chain], "").await.is_ok() {
            return Ok(());
        }
    }
    Err(CommandError::Failed("iptables", format!("neither DOCKER-USER nor FORWARD leads to {chain}")))
}

/// The one door to the programs above: what it prints.
async fn command(program: &'static str, arguments: &[&str], input: &str) -> Result<String, CommandError> {
    let run = async {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that fails early closes the pipe; its error text says more than the pipe's.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(TIMEOUT, run).await.map_err(|_| CommandError::Timeout(program))?;
    let output = output.map_err(|error| CommandError::Start(program, error))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(CommandError::Failed(program, text.trim().chars().take(MAX_ERROR_TEXT).collect()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests;
