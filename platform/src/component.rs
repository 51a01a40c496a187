//! Platform components as ordinary objects: each role keeps an EndpointSlice in `kube-system` that says where it is, which
//! version, since when and whether it is well, so that
//! `kubectl -n kube-system get endpointslices -l app.kubernetes.io/part-of=scaleup -w` shows them live.
//!
//! A component renews its slice and marks those that stopped renewing as not ready; one that ends marks its own.
//! Agents that run alone are seen as Nodes instead: a node may not write EndpointSlices.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Where the slices are.
const NAMESPACE: &str = "kube-system";
/// Pause between renewals.
const RENEWAL: Duration = Duration::from_secs(10);
/// A slice that was not renewed for so long is not ready.
const STALE_SECONDS: i64 = 40;
/// Longest wait for one call, also at the end.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Slices looked at for staleness.
const MAX_SLICES: u32 = 500;
/// Longest name of an object that is also a DNS label.
const MAX_NAME: usize = 63;

const PART_OF: &str = "app.kubernetes.io/part-of";
const PART_OF_VALUE: &str = "scaleup";
const VERSION: &str = "scaleup.dev/version";
const STARTED_AT: &str = "scaleup.dev/started-at";
const RENEWED_AT: &str = "scaleup.dev/renewed-at";

/// One running role.
#[derive(Clone, Debug)]
pub struct Component {
    /// `apiserver`, `controllers`, `scheduler`, `agent` or `lb`.
    pub role: &'static str,
    /// Tells instances of a role apart: the node's name.
    pub instance: String,
    /// Where it is reached.
    pub address: IpAddr,
    /// Its main port, when it has one.
    pub port: Option<u16>,
}

impl Component {
    /// The slice's name: a DNS label.
    fn name(&self) -> String {
        let plain = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' };
        let name = format!("{PART_OF_VALUE}-{}-{}", self.role, self.instance.to_ascii_lowercase());
        let name: String = name.chars().map(plain).take(MAX_NAME).collect();
        name.trim_end_matches('-').to_owned()
    }

    /// The slice as a merge patch; `ready` is whether the component serves.
    fn slice(&self, started: Timestamp, now: Timestamp, ready: bool) -> Value {
        let ports: Vec<Value> = self.port.into_iter().map(|port| json!({"name": self.role, "port": port})).collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": self.name(),
                "namespace": NAMESPACE,
                "labels": {
                    PART_OF: PART_OF_VALUE,
                    "app.kubernetes.io/component": self.role,
                    "kubernetes.io/service-name": format!("{PART_OF_VALUE}-{}", self.role),
                    "endpointslice.kubernetes.io/managed-by": "platform.scaleup.dev",
                },
                "annotations": {
                    VERSION: env!("CARGO_PKG_VERSION"),
                    STARTED_AT: started.to_string(),
                    RENEWED_AT: now.to_string(),
                },
            },
            "addressType": if self.address.is_ipv4() { "IPv4" } else { "IPv6" },
            "endpoints": [{
                "addresses": [self.address.to_string()],
                "conditions": {"ready": ready, "serving": ready, "terminating": !ready},
            }],
            "ports": ports,
        })
    }
}

/// Keeps the slices of `components` until `shutdown`, then marks them as gone. Never fails: a component works without.
pub async fn keep(client: kube::Client, components: Vec<Component>, shutdown: CancellationToken) {
    let api: Api<EndpointSlice> = Api::namespaced(client, NAMESPACE);
    let started = Timestamp::now();
    let mut ticks = tokio::time::interval(RENEWAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        for component in &components {
            write(&api, component, started, true).await;
        }
        mark_stale(&api).await;
    }
    for component in &components {
        write(&api, component, started, false).await;
    }
}

async fn write(api: &Api<EndpointSlice>, component: &Component, started: Timestamp, ready: bool) {
    let slice = component.slice(started, Timestamp::now(), ready);
    let put = async {
        match api.patch(&component.name(), &PatchParams::default(), &Patch::Merge(&slice)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let slice = serde_json::from_value(slice).map_err(kube::Error::SerdeError)?;
                api.create(&PostParams::default(), &slice).await.map(drop)
            }
            other => other.map(drop),
        }
    };
    match tokio::time::timeout(CALL_TIMEOUT, put).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, role = component.role, "component not registered yet"),
        Err(_) => tracing::debug!(role = component.role, "component not registered yet: no answer"),
    }
}

/// Marks what stopped renewing. Everybody does so: whoever comes first writes, the others find it done.
async fn mark_stale(api: &Api<EndpointSlice>) {
    let of_ours = ListParams::default().labels(&format!("{PART_OF}={PART_OF_VALUE}")).limit(MAX_SLICES);
    let Ok(Ok(slices)) = tokio::time::timeout(CALL_TIMEOUT, api.list(&of_ours)).await else { return };
    for slice in slices.items.iter().filter(|slice| is_stale(slice, Timestamp::now())) {
        let Some(name) = &slice.metadata.name else { continue };
        let mut endpoints = slice.endpoints.clone();
        for endpoint in &mut endpoints {
            let conditions = endpoint.conditions.get_or_insert_default();
            (conditions.ready, conditions.serving) = (Some(false), Some(false));
        }
        // Its own renewal wins: the write is about what was seen.
        let seen = json!({"resourceVersion": slice.metadata.resource_version});
        let patch = Patch::Merge(json!({"metadata": seen, "endpoints": endpoints}));
        let patched = tokio::time::timeout(CALL_TIMEOUT, api.patch(name, &PatchParams::default(), &patch)).await;
        if let Ok(Ok(_)) = patched {
            tracing::warn!(name, "a component of the platform stopped renewing");
        }
    }
}

/// Whether a slice says ready and was not renewed for too long.
fn is_stale(slice: &EndpointSlice, now: Timestamp) -> bool {
    let renewed = slice.metadata.annotations.as_ref().and_then(|all| all.get(RENEWED_AT)?.parse::<Timestamp>().ok());
    let old = renewed.is_none_or(|at| now.as_second() - at.as_second() > STALE_SECONDS);
    let ready = |conditions: Option<bool>| conditions.unwrap_or(true);
    old && slice.endpoints.iter().any(|e| ready(e.conditions.as_ref().and_then(|conditions| conditions.ready)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(instance: &str) -> Component {
        let address = "192.0.2.1".parse().expect("an address");
        Component { role: "lb", instance: instance.to_owned(), address, port: Some(80) }
    }

    #[test]
    fn a_component_is_a_valid_slice() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let slice = component("Node_1.example").slice(at(1_000), at(1_030), true);
        let slice: EndpointSlice = serde_json::from_value(slice).expect("an EndpointSlice");
        assert_eq!(slice.metadata.name.as_deref(), Some("scaleup-lb-node-1-example"));
        let annotations = slice.metadata.annotations.clone().expect("annotations");
        assert_eq!(annotations[STARTED_AT], "1970-01-01T00:16:40Z");
        assert_eq!(annotations[VERSION], env!("CARGO_PKG_VERSION"));
        assert_eq!(slice.endpoints[0].addresses, ["192.0.2.1"]);
        assert!(!is_stale(&slice, at(1_030 + STALE_SECONDS)));
        assert!(is_stale(&slice, at(1_031 + STALE_SECONDS)));
        let gone = component("n").slice(at(0), at(0), false);
        assert!(!is_stale(&serde_json::from_value(gone).expect("an EndpointSlice"), at(1_000)), "said so itself");
    }

    #[test]
    fn names_are_labels() {
        let name = component(&"x-".repeat(100)).name();
        assert!(name.len() <= MAX_NAME && !name.ends_with('-'), "{name}");
    }
}
