//! Who gets which cluster IP and node port: the hook around Service writes, and the repair of its bookkeeping.
//!
//! Before a write, what the Service lacks is claimed ([`super::service_claims`]) and filled in, and what the user chose is
//! claimed or refused. After it, whatever neither the stored Service nor a failed attempt needs any more is released. A
//! crash in between leaves a claim without a Service, which [`repair`] finds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use scaleup_store::{ListRequest, Store};
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::field;
use super::service_claims::{self as claims, ClaimError, Claims, Owner, Pool};
use super::service_prepare::{self, is_headless, needs_cluster_ip, needs_health_check_port, needs_node_ports};
use crate::error::{ApiError, FieldError};
use crate::handler::WriteHooks;
use crate::server::ServerConfig;

/// Services read at a time.
const PAGE: usize = 500;
/// Where Services are stored.
const SERVICES: &str = "/registry/core/services/";
/// Time between repairs, as upstream's.
const REPAIR_INTERVAL: Duration = Duration::from_secs(180);

/// Allocates cluster IPs and node ports around writes of Services.
pub struct ServiceHooks;

#[async_trait]
impl WriteHooks for ServiceHooks {
    async fn before_write(
        &self,
        server: &Arc<crate::Server>,
        object: &mut Value,
        old: Option<&Value>,
        dry_run: bool,
    ) -> Result<(), ApiError> {
        before_write(&claims_of(&server.store, &server.config)?, object, old, dry_run).await
    }

    async fn after_write(
        &self,
        server: &Arc<crate::Server>,
        attempted: Option<&Value>,
        old: Option<&Value>,
        new: Option<&Value>,
    ) {
        // Refused at start-up; a server without a service range has claimed nothing.
        if let Ok(claims) = claims_of(&server.store, &server.config) {
            after_write(&claims, attempted, old, new).await;
        }
    }
}

fn claims_of(store: &Arc<dyn Store>, config: &ServerConfig) -> Result<Claims, ApiError> {
    Claims::new(Arc::clone(store), config).ok_or_else(|| {
        let cidr = &config.service_cidr;
        ApiError::internal(format!("the service range {cidr:?} is no IPv4 range with room for Services"))
    })
}

async fn before_write(claims: &Claims, object: &mut Value, old: Option<&Value>, dry_run: bool) -> Result<(), ApiError> {
    let mut service = decode(object)?;
    let old = old.map(decode).transpose()?;
    service_prepare::prepare(&mut service, old.as_ref());
    let mut allocation = Allocation { claims, owner: owner_of(&service), dry_run, made: Vec::new() };
    if let Err(refusal) = allocation.fill(&mut service, old.as_ref()).await {
        allocation.undo().await;
        return Err(match refusal {
            Refusal::Field(error) => ApiError::invalid("", "Service", field::text(&service.metadata.name), &[error]),
            Refusal::Api(error) => error,
        });
    }
    *object = serde_json::to_value(&service).map_err(ApiError::internal)?;
    Ok(())
}

async fn after_write(claims: &Claims, attempted: Option<&Value>, old: Option<&Value>, new: Option<&Value>) {
    let kept = new.map(held).unwrap_or_default();
    for service in [attempted, old].into_iter().flatten() {
        let Ok(decoded) = decode(service) else { continue };
        let owner = owner_of(&decoded);
        for (pool, number) in held(service).difference(&kept) {
            claims.release(*pool, *number, &owner).await;
        }
    }
}

fn decode(object: &Value) -> Result<Service, ApiError> {
    Service::deserialize(object).map_err(|e| ApiError::bad_request(format!("Service does not decode: {e}")))
}

fn owner_of(service: &Service) -> Owner {
    let metadata = &service.metadata;
    Owner {
        namespace: field::text(&metadata.namespace).to_owned(),
        name: field::text(&metadata.name).to_owned(),
        uid: field::text(&metadata.uid).to_owned(),
    }
}

/// What a stored Service has claimed.
fn held(service: &Value) -> BTreeSet<(Pool, u32)> {
    let Ok(Service { spec: Some(spec), .. }) = decode(service) else { return BTreeSet::new() };
    let mut out = BTreeSet::new();
    if let Ok(ip) = field::text(&spec.cluster_ip).parse::<Ipv4Addr>() {
        out.insert((Pool::Ips, u32::from(ip)));
    }
    let health_check = spec.health_check_node_port.filter(|p| *p != 0);
    let ports = service_prepare::node_ports(&spec).into_iter().chain(health_check);
    out.extend(ports.filter_map(|p| Some((Pool::Ports, u32::try_from(p).ok()?))));
    out
}

/// Why nothing was allocated.
enum Refusal {
    /// The user's choice cannot be had.
    Field(FieldError),
    /// Anything else.
    Api(ApiError),
}

/// The claims of one write.
struct Allocation<'a> {
    claims: &'a Claims,
    owner: Owner,
    dry_run: bool,
    made: Vec<(Pool, u32)>,
}

impl Allocation<'_> {
    async fn undo(&self) {
        for (pool, number) in &self.made {
            self.claims.release(*pool, *number, &self.owner).await;
        }
    }

    async fn fill(&mut self, service: &mut Service, old: Option<&Service>) -> Result<(), Refusal> {
        let empty = ServiceSpec::default();
        let old = old.map(|old| old.spec.as_ref().unwrap_or(&empty));
        let Some(spec) = &mut service.spec else { return Ok(()) };
        self.fill_cluster_ip(spec, old).await?;
        self.fill_node_ports(spec, old).await?;
        self.fill_health_check_port(spec, old).await
    }

    async fn fill_cluster_ip(&mut self, spec: &mut ServiceSpec, old: Option<&ServiceSpec>) -> Result<(), Refusal> {
        // Once there, the address does not change: validation sees to that.
        let has_one = old.is_some_and(needs_cluster_ip);
        let families = field::list(&spec.ip_families);
        if !needs_cluster_ip(spec) || is_headless(spec) || has_one || families.iter().any(|f| f != "IPv4") {
            return Ok(());
        }
        let wanted = field::text(&spec.cluster_ip);
        if wanted.is_empty() {
            let number = self.any(Pool::Ips, "serviceIP").await?;
            let ip = Ipv4Addr::from(number).to_string();
            spec.cluster_ips = Some(vec![ip.clone()]);
            spec.cluster_ip = Some(ip);
            return Ok(());
        }
        let refuse = |why: &str| {
            let why = format!("failed to allocate IP {wanted}: {why}");
            Refusal::Field(FieldError::invalid("spec.clusterIPs", json!(field::list(&spec.cluster_ips)), why))
        };
        // Not an address: validation says so better.
        let Ok(ip) = wanted.parse::<Ipv4Addr>() else { return Ok(()) };
        let number = u32::from(ip);
        let is_kubernetes = self.owner.namespace == "default" && self.owner.name == "kubernetes";
        let taken = "provided IP is already allocated";
        if number == self.claims.kubernetes_ip && !is_kubernetes {
            return Err(refuse(taken));
        }
        if number != self.claims.kubernetes_ip && !self.claims.ips.contains(number) {
            let range = self.claims.ips;
            let (first, last) = (Ipv4Addr::from(range.first), Ipv4Addr::from(range.last));
            let why = format!(
                "the provided IP ({wanted}) is not in the valid range. The range of valid IPs is {first}-{last}"
            );
            return Err(refuse(&why));
        }
        if !self.this(Pool::Ips, number).await? {
            return Err(refuse(taken));
        }
        Ok(())
    }

    async fn fill_node_ports(&mut self, spec: &mut ServiceSpec, old: Option<&ServiceSpec>) -> Result<(), Refusal> {
        if !matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer")) {
            return Ok(());
        }
        let mut mine = old.map(service_prepare::node_ports).unwrap_or_default();
        let chosen: Vec<(usize, i32)> = field::list(&spec.ports)
            .iter()
            .enumerate()
            .filter_map(|(i, p)| Some((i, p.node_port.filter(|n| *n != 0)?)))
            .collect();
        for (i, number) in chosen {
            if mine.insert(number) {
                self.this_port(&format!("spec.ports[{i}].nodePort"), number).await?;
            }
        }
        if !needs_node_ports(spec) {
            return Ok(());
        }
        // One port number under two protocols has one node port.
        let mut by_port: BTreeMap<i32, i32> =
            field::list(&spec.ports).iter().filter_map(|p| Some((p.port, p.node_port.filter(|n| *n != 0)?))).collect();
        let taken: BTreeSet<(Option<String>, i32)> = field::list(&spec.ports)
            .iter()
            .filter_map(|p| Some((p.protocol.clone(), p.node_port.filter(|n| *n != 0)?)))
            .collect();
        for port in spec.ports.iter_mut().flatten().filter(|p| p.node_port.unwrap_or(0) == 0) {
            let shared = by_port.get(&port.port).copied();
            let shared = shared.filter(|number| !taken.contains(&(port.protocol.clone(), *number)));
            let number = match shared {
                Some(number) => number,
                None => {
                    let number = self.any(Pool::Ports, "nodePort").await?;
                    i32::try_from(number).map_err(|e| Refusal::Api(ApiError::internal(e)))?
                }
            };
            by_port.insert(port.port, number);
            port.node_port = Some(number);
        }
        Ok(())
    }

    async fn fill_health_check_port(
        &mut self,
        spec: &mut ServiceSpec,
        old: Option<&ServiceSpec>,
    ) -> Result<(), Refusal> {
        if !needs_health_check_port(spec) || old.is_some_and(needs_health_check_port) {
            return Ok(());
        }
        match spec.health_check_node_port.filter(|p| *p != 0) {
            Some(number) => self.this_port("spec.healthCheckNodePort", number).await,
            None => {
                let number = self.any(Pool::Ports, "HealthCheck NodePort").await?;
                spec.health_check_node_port = i32::try_from(number).ok();
                Ok(())
            }
        }
    }

    /// Any number; `what` names it in the error.
    async fn any(&mut self, pool: Pool, what: &str) -> Result<u32, Refusal> {
        let number = self.claims.claim_any(pool, &self.owner, self.dry_run).await.map_err(|e| match e {
            ClaimError::Store(_) => unavailable(&e),
            full => Refusal::Api(ApiError::internal(format!("failed to allocate a {what}: {full}"))),
        })?;
        self.made.push((pool, number));
        Ok(number)
    }

    /// This very number; `false` if somebody has it.
    async fn this(&mut self, pool: Pool, number: u32) -> Result<bool, Refusal> {
        if self.dry_run {
            return self.claims.is_free(pool, number).await.map_err(|e| unavailable(&e));
        }
        match self.claims.claim(pool, number, &self.owner).await {
            Ok(()) => {
                self.made.push((pool, number));
                Ok(true)
            }
            Err(ClaimError::Taken | ClaimError::Full) => Ok(false),
            Err(e) => Err(unavailable(&e)),
        }
    }

    async fn this_port(&mut self, path: &str, number: i32) -> Result<(), Refusal> {
        let refuse = |why: String| Refusal::Field(FieldError::invalid(path, number, why));
        let range = self.claims.ports;
        let Some(wanted) = u32::try_from(number).ok().filter(|n| range.contains(*n)) else {
            let (first, last) = (range.first, range.last);
            let why = format!("provided port is not in the valid range. The range of valid ports is {first}-{last}");
            return Err(refuse(why));
        };
        if self.this(Pool::Ports, wanted).await? {
            Ok(())
        } else {
            Err(refuse("provided port is already allocated".into()))
        }
    }
}

fn unavailable(error: &ClaimError) -> Refusal {
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    tracing::warn!(%error, cause, "no address allocated");
    Refusal::Api(ApiError::unavailable("addresses cannot be allocated now; try again"))
}

/// Drops claims without a Service, adds those that Services lack. Safe beside other API servers and writes in flight.
pub async fn repair(server: &Arc<crate::Server>) -> Result<(), ApiError> {
    let claims = claims_of(&server.store, &server.config)?;
    let failed = |e: ClaimError| {
        let cause = std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default();
        ApiError::unavailable(format!("service addresses not repaired: {e}: {cause}"))
    };
    let snapshot = claims.snapshot().await.map_err(failed)?;
    let services = stored_services(&server.store).await?;
    let fixes = claims::plan(&snapshot, &holders(&services));
    for fix in &fixes {
        tracing::info!(?fix, "service address repaired");
    }
    claims.apply(&fixes).await.map_err(failed)
}

/// [`repair`] now and every three minutes until `shutdown`; failures are logged and tried again.
pub async fn run_repairs(server: Arc<crate::Server>, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(REPAIR_INTERVAL);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        if let Err(error) = repair(&server).await {
            tracing::warn!(%error, "service addresses not repaired; trying again later");
        }
    }
}

/// The claims that the Services ought to hold; of two with one number, the first keeps it.
fn holders(services: &[Value]) -> BTreeMap<(Pool, u32), Owner> {
    let mut out = BTreeMap::new();
    for service in services {
        let Ok(decoded) = decode(service) else { continue };
        let owner = owner_of(&decoded);
        for number in held(service) {
            let first: &mut Owner = out.entry(number).or_insert_with(|| owner.clone());
            if *first != owner {
                tracing::error!(?number, first = ?first, second = ?owner, "two Services hold one address");
            }
        }
    }
    out
}

async fn stored_services(store: &Arc<dyn Store>) -> Result<Vec<Value>, ApiError> {
    let mut out = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let request = ListRequest { prefix: SERVICES, start_after: after.as_deref(), limit: PAGE, at: None };
        let page = store.list(request).await.map_err(|e| ApiError::unavailable(e.to_string()))?;
        let last = page.items.last().map(|kv| kv.key.clone());
        out.extend(page.items.iter().filter_map(|kv| serde_json::from_slice(&kv.value).ok()));
        match last {
            Some(last) if page.remaining > 0 => after = Some(last),
            _ => return Ok(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use scaleup_store::memory::MemoryStore;

    use super::super::field::test::{contains, yaml};
    use super::*;

    fn claims() -> Claims {
        let config = ServerConfig {
            service_cidr: "10.96.0.0/24".into(),
            node_port_range: (30_000, 30_099),
            ..ServerConfig::default()
        };
        Claims::new(Arc::new(MemoryStore::new()), &config).expect("ranges are good")
    }

    fn service(name: &str, spec: &str) -> Value {
        yaml(&format!("{{metadata: {{name: {name}, namespace: default, uid: {name}}}, spec: {spec}}}"))
    }

    async fn write(claims: &Claims, mut object: Value, old: Option<&Value>) -> Result<Value, String> {
        before_write(claims, &mut object, old, false).await.map_err(|e| e.to_string())?;
        Ok(object)
    }

    fn port(service: &Value, index: usize) -> u32 {
        let number = service["spec"]["ports"][index]["nodePort"].as_u64().expect("a node port");
        u32::try_from(number).expect("small")
    }

    #[tokio::test]
    async fn what_is_missing_is_allocated() {
        let claims = claims();
        let spec = "{type: LoadBalancer, externalTrafficPolicy: Local, ports: [{name: a, port: 53, protocol: TCP}, {name: b, port: 53, protocol: UDP}, {name: c, port: 80, protocol: TCP}]}";
        let got = write(&claims, service("a", spec), None).await.expect("room");
        contains(&got, &json!({"spec": {"ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"}}));
        assert_eq!(got["spec"]["clusterIPs"], json!([got["spec"]["clusterIP"]]));
        assert_eq!(port(&got, 0), port(&got, 1), "one port under two protocols");
        assert_ne!(port(&got, 0), port(&got, 2));
        let health = got["spec"]["healthCheckNodePort"].as_u64();
        assert!(health.is_some_and(|p| (30_000..=30_099).contains(&p)));
        assert_eq!(held(&got).len(), 4);

        after_write(&claims, Some(&got), None, None).await;
        for (pool, number) in held(&got) {
            assert!(claims.is_free(pool, number).await.expect("store works"), "a failed create releases {number}");
        }
    }

    #[tokio::test]
    async fn choices_are_claimed_or_refused() {
        let claims = claims();
        let check = async |name: &str, spec: &str, expected: &str| {
            let result = write(&claims, service(name, spec), None).await;
            assert_eq!(result.err().unwrap_or_default(), expected, "{spec}");
        };
        check("a", "{clusterIP: 10.96.0.9}", "").await;
        let refused = |ip: &str, why: &str| {
            format!(
                "Service \"b\" is invalid: spec.clusterIPs: Invalid value: [\"{ip}\"]: failed to allocate IP {ip}: {why}"
            )
        };
        let taken = "provided IP is already allocated";
        check("b", "{clusterIP: 10.96.0.9}", &refused("10.96.0.9", taken)).await;
        check("b", "{clusterIP: 10.96.0.1}", &refused("10.96.0.1", taken)).await;
        let outside =
            "the provided IP (10.97.0.1) is not in the valid range. The range of valid IPs is 10.96.0.2-10.96.0.254";
        check("b", "{clusterIP: 10.97.0.1}", &refused("10.97.0.1", outside)).await;
        check("kubernetes", "{clusterIP: 10.96.0.1}", "").await;
        check("c", "{type: NodePort, ports: [{port: 80, nodePort: 30010}]}", "").await;
        check(
            "d",
            "{type: NodePort, ports: [{port: 80}, {port: 81, nodePort: 30010}]}",
            "Service \"d\" is invalid: spec.ports[1].nodePort: Invalid value: 30010: provided port is already allocated",
        )
        .await;
        check(
            "d",
            "{type: NodePort, ports: [{port: 81, nodePort: 80}]}",
            "Service \"d\" is invalid: spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-30099",
        )
        .await;
        let snapshot = claims.snapshot().await.expect("store works");
        let owners = ["a", "kubernetes", "c"].map(|name| service(name, "{}"));
        let orphans = claims::plan(&snapshot, &holders(&owners));
        assert_eq!(orphans, [], "young claims are never dropped");
    }

    #[tokio::test]
    async fn updates_keep_claim_and_release() {
        let claims = claims();
        let spec = "{type: NodePort, ports: [{name: a, port: 80}, {name: b, port: 81}]}";
        let old = write(&claims, service("a", spec), None).await.expect("room");
        // A PUT without the allocated values keeps them, one more port gets one more number.
        let spec = "{type: NodePort, ports: [{name: a, port: 80}, {name: c, port: 82, nodePort: 30007}]}";
        let spec = if port(&old, 1) == 30_007 || port(&old, 0) == 30_007 {
            spec.replace("30007", "30008")
        } else {
            spec.into()
        };
        let new = write(&claims, service("a", &spec), Some(&old)).await.expect("room");
        assert_eq!(new["spec"]["clusterIP"], old["spec"]["clusterIP"]);
        assert_eq!(port(&new, 0), port(&old, 0));
        after_write(&claims, Some(&new), Some(&old), Some(&new)).await;
        assert!(claims.is_free(Pool::Ports, port(&old, 1)).await.expect("store works"), "the removed port is free");
        assert!(!claims.is_free(Pool::Ports, port(&new, 0)).await.expect("store works"));

        // An update that fails releases what it claimed and nothing else.
        let more = "{type: NodePort, ports: [{name: a, port: 80}, {name: d, port: 83}]}";
        let failed = write(&claims, service("a", more), Some(&new)).await.expect("room");
        after_write(&claims, Some(&failed), Some(&new), Some(&new)).await;
        assert!(!claims.is_free(Pool::Ports, port(&new, 0)).await.expect("store works"));
        assert!(!claims.is_free(Pool::Ports, port(&new, 1)).await.expect("store works"));
        assert!(claims.is_free(Pool::Ports, port(&failed, 1)).await.expect("store works"));

        let named = "{type: ExternalName, externalName: a.b}";
        let external = write(&claims, service("a", named), Some(&new)).await.expect("nothing to allocate");
        assert!(external["spec"].get("clusterIP").is_none());
        after_write(&claims, Some(&external), Some(&new), Some(&external)).await;
        for (pool, number) in held(&new) {
            assert!(claims.is_free(pool, number).await.expect("store works"), "{number}");
        }
    }

    #[tokio::test]
    async fn deletes_and_dry_runs_leave_nothing() {
        let claims = claims();
        let stored = write(&claims, service("a", "{ports: [{port: 80}]}"), None).await.expect("room");
        after_write(&claims, None, Some(&stored), None).await;
        let mut dry = service("a", "{type: NodePort, ports: [{port: 80}, {name: b, port: 81, nodePort: 30001}]}");
        before_write(&claims, &mut dry, None, true).await.expect("room");
        assert!(port(&dry, 0) > 0 && dry["spec"]["clusterIP"].is_string());
        let snapshot = claims.snapshot().await.expect("store works");
        let added = claims::plan(&snapshot, &holders(std::slice::from_ref(&dry)));
        assert_eq!(added.len(), 3, "nothing is claimed: {added:?}");
        claims.apply(&added).await.expect("store works");
        assert!(!claims.is_free(Pool::Ports, 30_001).await.expect("store works"));
    }

    #[tokio::test]
    async fn headless_and_external_names_get_nothing() {
        let claims = claims();
        for spec in ["{clusterIP: None, ports: [{port: 80}]}", "{type: ExternalName, externalName: a.b}"] {
            let got = write(&claims, service("a", spec), None).await.expect("nothing to allocate");
            assert_eq!(held(&got), BTreeSet::new(), "{spec}");
        }
        let v6 = write(&claims, service("a", "{ipFamilies: [IPv6]}"), None).await.expect("validation refuses it");
        assert!(v6["spec"].get("clusterIP").is_none());
    }
}
