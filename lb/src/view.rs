//! What people and billing look at, as JSON: counters per Service and route, usage per Pod, explanations. Read-only.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde::Serialize;
use serde_json::{Value, json};

use crate::Lb;
use crate::backend::Health;
use crate::explain::{self, Request, RequestError};
use crate::hub::View;
use crate::stats::{DURATION_BUCKETS, RequestTotals, ServiceTotals};

/// Services and rules listed at most; bodies stay below some ten megabytes.
const MAX_ROWS: usize = 10_000;

/// Why there is no view.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// No such view.
    #[error("the views are top, usage and explain")]
    Unknown,
    /// The question makes no sense.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// It cannot be written as JSON.
    #[error("the view cannot be written as JSON")]
    Json(#[from] serde_json::Error),
}

#[derive(Serialize)]
struct ServiceRow<'a> {
    namespace: &'a str,
    name: &'a str,
    /// Endpoints, and those of them that are avoided now.
    endpoints: usize,
    ejected: usize,
    in_flight: u64,
    #[serde(flatten)]
    totals: &'a ServiceTotals,
}

#[derive(Serialize)]
struct RouteRow<'a> {
    kind: &'a str,
    namespace: &'a str,
    name: &'a str,
    rule: usize,
    #[serde(flatten)]
    totals: &'a RequestTotals,
}

impl Lb {
    /// The view `name` (`top`, `usage` or `explain`) for a URL query.
    pub fn view(&self, name: &str, query: &str) -> Result<Value, ViewError> {
        match name {
            "top" => self.top(),
            "usage" => Ok(self.usage_view()),
            "explain" => Ok(serde_json::to_value(explain::explain(&self.hub, &Request::from_query(query)?))?),
            _ => Err(ViewError::Unknown),
        }
    }

    /// Counters since the start, to be compared with those a moment later.
    fn top(&self) -> Result<Value, ViewError> {
        let backends = self.hub.backends();
        let mut services = Vec::new();
        for (key, totals) in self.hub.totals().into_iter().take(MAX_ROWS) {
            let first = crate::hub::PortKey {
                service: key.clone(),
                port: 0,
                protocol: crate::snapshot::Protocol::Tcp,
                view: View::Outside,
            };
            let from = backends.partition_point(|(port, _)| *port < first);
            let own = backends[from..].iter().take_while(|(port, _)| port.service == key);
            let mut endpoints: Vec<_> = own.flat_map(|(_, backend)| &backend.endpoints).collect();
            endpoints.sort_by_key(|endpoint| (endpoint.addr, endpoint.id));
            endpoints.dedup_by_key(|endpoint| endpoint.id);
            // Several ports of a Service may lead to one address.
            let addresses = |all: &mut dyn Iterator<Item = SocketAddr>| all.collect::<BTreeSet<_>>().len();
            let ejected = endpoints.iter().filter(|endpoint| endpoint.health() != Health::Healthy);
            services.push(serde_json::to_value(ServiceRow {
                namespace: &key.namespace,
                name: &key.name,
                endpoints: addresses(&mut endpoints.iter().map(|endpoint| endpoint.addr)),
                ejected: addresses(&mut ejected.map(|endpoint| endpoint.addr)),
                in_flight: endpoints.iter().map(|endpoint| endpoint.in_flight()).fold(0, u64::wrapping_add),
                totals: &totals,
            })?);
        }
        let mut routes = Vec::new();
        for (id, totals) in self.hub.routes().into_iter().take(MAX_ROWS) {
            let row =
                RouteRow { kind: id.kind, namespace: &id.namespace, name: &id.name, rule: id.rule, totals: &totals };
            routes.push(serde_json::to_value(row)?);
        }
        let time = k8s_openapi::jiff::Timestamp::now().as_millisecond();
        Ok(json!({"time_ms": time, "bucket_bounds": DURATION_BUCKETS, "services": services, "routes": routes}))
    }

    /// Cumulative usage per Pod; bounded by what the hub keeps.
    fn usage_view(&self) -> Value {
        let pods = self.usage().into_iter().map(|(uid, totals)| {
            json!({"pod_uid": uid, "requests": totals.requests, "bytes_in": totals.bytes_in, "bytes_out": totals.bytes_out})
        });
        json!({"since_ms": self.since_ms, "pods": pods.collect::<Vec<_>>()})
    }
}
