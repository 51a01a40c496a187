//! What a cluster has before anybody asks: system namespaces, the `kubernetes` Service, priority classes, classes of Ingresses and
//! Gateways, RBAC policy.
//!
//! Everything is created through the generic handler, so that it is defaulted and validated like anybody's. What is
//! there already is left alone, except RBAC policy, which gets what it lacks when the server starts ([`defaults`]). Also the sweeper of old events.

mod defaults;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tracing::{debug, info, warn};

use crate::Server;
use crate::auth::policy;
use crate::cache::{Cached, Reader};
use crate::error::ApiError;
use crate::handler::{Context, Resolved, storage, write};
use crate::kinds;
use crate::registry::Verb;
use crate::request::{FieldValidation, WriteOptions};
use crate::user::UserInfo;

/// Namespaces that always exist.
pub const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// Pause between attempts while the store is away.
const RETRY: Duration = Duration::from_millis(500);
/// The server itself. No policy is asked about what it writes.
pub const OWN_USER: &str = "system:apiserver";
/// How often old events are looked for.
const SWEEP_PERIOD: Duration = Duration::from_secs(60);
/// How often the `kubernetes` Service and the namespaces are looked after, as upstream's controllers do.
const UPKEEP_PERIOD: Duration = Duration::from_secs(60);

/// Creates what is missing, and keeps looking after it until the server stops.
pub async fn run(server: Arc<Server>) {
    let stopping = server.stopping.clone();
    let work = async {
        loop {
            // Policy is completed at the start only: until the next one an administrator's changes hold.
            let started = server.bootstrapped.load(Ordering::Acquire);
            match if started { upkeep(&server).await } else { run_once(&server).await } {
                Ok(()) => {
                    if !server.bootstrapped.swap(true, Ordering::AcqRel) {
                        info!("the cluster's own objects are in place");
                    }
                    tokio::time::sleep(UPKEEP_PERIOD).await;
                }
                Err(error) => {
                    warn!(%error, "the cluster's own objects cannot be created yet");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    };
    stopping.run_until_cancelled(work).await;
}

/// The first round: everything.
pub async fn run_once(server: &Arc<Server>) -> Result<(), ApiError> {
    upkeep(server).await?;
    for object in policy::bootstrap_objects() {
        defaults::ensure(server, object).await?;
    }
    Ok(())
}

/// Each round: creates what is missing, repairs what is wrong.
async fn upkeep(server: &Arc<Server>) -> Result<(), ApiError> {
    server.caches.catch_up().await.map_err(storage::cache_error)?;
    for name in NAMESPACES {
        ensure_object(server, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})).await?;
    }
    for object in priority_classes().into_iter().chain(traffic_classes()) {
        ensure_object(server, object).await?;
    }
    for object in kubernetes_service(server)? {
        ensure_same(server, object).await?;
    }
    Ok(())
}

fn priority_classes() -> [Value; 2] {
    let class = |name: &str, value: i64, description: &str| {
        json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "description": description, "preemptionPolicy": "PreemptLowerPriority"})
    };
    [
        class(
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        class(
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ]
}

/// The classes of Ingresses and Gateways that our load balancer serves. Ingresses without a class are its, until an administrator says otherwise.
fn traffic_classes() -> [Value; 2] {
    let default = kinds::ingress::DEFAULT_CLASS_ANNOTATION;
    [
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
            "metadata": {"name": "scaleup", "annotations": {default: "true"}},
            "spec": {"controller": "scaleup.dev/ingress"}}),
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "scaleup"},
            "spec": {"controllerName": "scaleup.dev/gateway", "description": "The platform's own load balancer"}}),
    ]
}

/// The Service by which pods reach this server, and where it leads.
fn kubernetes_service(server: &Server) -> Result<Vec<Value>, ApiError> {
    let address = server.config.advertise_address;
    let port = server.config.advertise_port;
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let mut out = vec![json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "spec": {"type": "ClusterIP", "clusterIP": server.first_service_ip.to_string(), "sessionAffinity": "None",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": port}]}})];
    // Endpoints must not lead to loopback: upstream refuses them, and pods would reach themselves.
    if !address.is_loopback() && !address.is_unspecified() {
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        out.push(json!({"apiVersion": "v1", "kind": "Endpoints",
            "metadata": {"name": "kubernetes", "namespace": "default",
                "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
            "subsets": [{"addresses": [{"ip": address.to_string()}],
                "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}]}));
        out.push(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"name": "kubernetes", "namespace": "default",
                "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "endpoints": [{"addresses": [address.to_string()], "conditions": {"ready": true}}],
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}));
    }
    Ok(out)
}

/// The request that a bootstrap object's creation or update is.
fn context(server: &Arc<Server>, object: &Value, verb: Verb) -> Result<Context, ApiError> {
    let (api_version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let registry = server.registry.load();
    let row = registry.by_kind(group, version, kind).cloned();
    let resource = row.ok_or_else(|| ApiError::internal(format!("{api_version} {kind} is not a known kind")))?;
    let resolved = Resolved {
        resource,
        verb,
        namespace: text(&object["metadata"]["namespace"]).to_owned(),
        name: text(&object["metadata"]["name"]).to_owned(),
        subresource: None,
        user: Arc::new(UserInfo::system(OWN_USER, &["system:masters"])),
        notes: Arc::default(),
    };
    Ok(Context::internal(server, resolved))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn existing(server: &Server, cx: &Context) -> Option<Arc<Cached>> {
    let (group, plural) = cx.resolved.resource.stored_as();
    server.caches.get(group, plural, &cx.resolved.namespace, &cx.resolved.name)
}

async fn ensure_object(server: &Arc<Server>, object: Value) -> Result<Option<Arc<Cached>>, ApiError> {
    let mut cx = context(server, &object, Verb::Create)?;
    if let Some(there) = existing(server, &cx) {
        return Ok(Some(there));
    }
    let parsed = crate::handler::body::Parsed { value: object, duplicates: Vec::new() };
    let row = cx.resolved.resource.clone();
    let object = crate::handler::body::decode(&row, parsed, FieldValidation::Strict, &mut Vec::new())?;
    match write::create(&mut cx, object, &WriteOptions::default()).await {
        Ok(created) => {
            debug!(kind = %row.kind, name = %cx.resolved.name, "created");
            // The next objects may need this one (a namespace) in the cache.
            server.caches.wait_for(created.revision).await.map_err(storage::cache_error)?;
            Ok(None)
        }
        Err(error) if error.reason == "AlreadyExists" => Ok(None),
        Err(error) => Err(error),
    }
}

async fn replace(server: &Arc<Server>, object: Value) -> Result<(), ApiError> {
    let mut cx = context(server, &object, Verb::Update)?;
    let parsed = crate::handler::body::Parsed { value: object, duplicates: Vec::new() };
    let row = cx.resolved.resource.clone();
    let object = crate::handler::body::decode(&row, parsed, FieldValidation::Strict, &mut Vec::new())?;
    let source = write::Source::Object(object);
    write::update(&mut cx, write::Part::Whole, &WriteOptions::default(), source).await.map(|_| ())
}

/// Creates an object, or sets what is wrong with it (the server's address may have changed since the last start).
async fn ensure_same(server: &Arc<Server>, wanted: Value) -> Result<(), ApiError> {
    let Some(there) = ensure_object(server, wanted.clone()).await? else { return Ok(()) };
    let present = there.value();
    let mut merged = present.clone();
    for field in ["subsets", "endpoints", "ports"] {
        if !wanted[field].is_null() {
            merged[field] = wanted[field].clone();
        }
    }
    if !wanted["spec"].is_null()
        && present["spec"]["ports"][0]["targetPort"] != wanted["spec"]["ports"][0]["targetPort"]
    {
        merged["spec"]["ports"] = wanted["spec"]["ports"].clone();
    }
    if merged == present { Ok(()) } else { replace(server, merged).await }
}

/// First usable address of a CIDR; for the `kubernetes` Service.
pub fn first_address(cidr: &str) -> Option<IpAddr> {
    let (base, bits) = cidr.split_once('/')?;
    let bits: u32 = bits.parse().ok()?;
    match base.parse().ok()? {
        IpAddr::V4(base) if bits <= 30 => {
            let mask = if bits == 0 { 0 } else { u32::MAX << (32 - bits) };
            Some(IpAddr::from(((u32::from(base) & mask) + 1).to_be_bytes()))
        }
        IpAddr::V6(base) if bits <= 126 => {
            let mask = if bits == 0 { 0 } else { u128::MAX << (128 - bits) };
            Some(IpAddr::from(((u128::from(base) & mask) + 1).to_be_bytes()))
        }
        _ => None,
    }
}

/// Deletes events that nothing was added to for the configured time, until the server stops.
pub async fn sweep_events(server: Arc<Server>) {
    let stopping = server.stopping.clone();
    let work = async {
        loop {
            tokio::time::sleep(SWEEP_PERIOD).await;
            let ttl_s = i64::try_from(server.config.event_ttl.as_secs()).unwrap_or(i64::MAX);
            let oldest_s = scaleup_api::time::now().0.as_second().saturating_sub(ttl_s);
            for event in server.caches.list("", "events", None).iter().filter(|e| last_seen_s(&e.value()) < oldest_s) {
                let key = storage::store_key("", "events", &event.namespace, &event.name);
                match server.store.delete(&key, event.revision).await {
                    Ok(revision) => server.caches.note_written(revision),
                    // It was just updated or deleted; the next sweep sees.
                    Err(scaleup_store::Error::Conflict(_)) => {}
                    Err(cause) => {
                        warn!(%cause, "old events cannot be deleted");
                        break;
                    }
                }
            }
        }
    };
    stopping.run_until_cancelled(work).await;
}

/// When the event happened last, Unix seconds; an event without any time is new.
fn last_seen_s(event: &Value) -> i64 {
    let times = [
        &event["lastTimestamp"],
        &event["eventTime"],
        &event["series"]["lastObservedTime"],
        &event["metadata"]["creationTimestamp"],
    ];
    let seconds = times.iter().filter_map(|t| text(t).parse::<Timestamp>().ok()).map(Timestamp::as_second);
    seconds.max().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_addresses() {
        let check = |cidr: &str, expected: Option<&str>| {
            assert_eq!(first_address(cidr).map(|a| a.to_string()).as_deref(), expected, "{cidr}");
        };
        check("10.96.0.0/16", Some("10.96.0.1"));
        check("10.96.3.9/12", Some("10.96.0.1"));
        check("fd00::/108", Some("fd00::1"));
        check("10.96.0.0/32", None);
        check("10.96.0.0", None);
        check("x/8", None);
    }

    #[test]
    fn the_last_time_of_an_event_counts() {
        let event = json!({"metadata": {"creationTimestamp": "1970-01-01T00:00:10Z"}, "lastTimestamp": "1970-01-01T00:01:00Z",
            "eventTime": null});
        assert_eq!(last_seen_s(&event), 60);
        assert_eq!(last_seen_s(&json!({})), i64::MAX);
    }
}
