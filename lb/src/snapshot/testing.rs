//! Snapshots from objects written as JSON, for tests and benchmarks, also of other crates. Goes the same way as objects from the API.

use std::sync::Arc;

use serde_json::Value;

use super::routes::{CertificatePlan, HttpPlan, Mode, PathMatch, TlsAction, ValueMatch, WeightedBackend};
use super::{Compiler, Object, PlanConfig, Snapshot};

/// Why an object cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Its `kind` is not one that steers traffic.
    #[error("the kind {0:?} does not steer traffic")]
    Kind(String),
    /// It is not what its `kind` says.
    #[error("not a valid object")]
    Decode(#[source] serde_json::Error),
}

/// An object from JSON with `kind`. A `List` has to be taken apart before.
pub fn object(value: Value) -> Result<Object, DecodeError> {
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    match Object::from_value(value) {
        Some(decoded) => decoded.map_err(DecodeError::Decode),
        None => Err(DecodeError::Kind(kind)),
    }
}

/// A compiler that has been given `objects`.
pub fn compiler(config: PlanConfig, objects: &[Value]) -> Result<Compiler, DecodeError> {
    let mut compiler = Compiler::new(config);
    for value in objects {
        compiler.apply(object(value.clone())?);
    }
    Ok(compiler)
}

/// The snapshot of `objects`.
pub fn snapshot(config: PlanConfig, objects: &[Value]) -> Result<Snapshot, DecodeError> {
    Ok(compiler(config, objects)?.snapshot())
}

/// What the compiler keeps of `objects`.
#[cfg(test)]
pub(crate) fn objects(all: &[Value]) -> super::objects::Objects {
    compiler(PlanConfig::default(), all).expect("valid objects").into_objects()
}

/// What is served, one line per rule or site, for comparing by value:
/// `80 http LISTENER HOST PATH [method] [conditions] [filters] -> namespace/service:port*weight`.
pub fn describe(snapshot: &Snapshot) -> Vec<String> {
    let mut lines = Vec::new();
    for (port, plan) in &snapshot.listeners {
        let number = port.port;
        match &plan.mode {
            Mode::Http(http) => describe_http(&format!("{number} http"), http, &mut lines),
            Mode::Tcp(l4) => lines.push(format!("{number} tcp -> {}", describe_shares(&l4.backends))),
            Mode::Udp(l4) => lines.push(format!("{number} udp -> {}", describe_shares(&l4.backends))),
            Mode::Tls(sites) => {
                let mut http = None;
                for site in sites {
                    let names = |certificates: &[Arc<CertificatePlan>]| {
                        certificates.iter().map(|one| one.secret.clone()).collect::<Vec<_>>().join(",")
                    };
                    let text = match &site.action {
                        TlsAction::Http { certificates, http: plan } => {
                            http = Some(plan);
                            format!("http [{}]", names(certificates))
                        }
                        TlsAction::Terminate { certificates, to } => {
                            format!("terminate [{}] -> {}", names(certificates), describe_shares(&to.backends))
                        }
                        TlsAction::Passthrough(to) => format!("passthrough -> {}", describe_shares(&to.backends)),
                    };
                    lines.push(format!("{number} site {} {text}", site.host));
                }
                if let Some(http) = http {
                    describe_http(&format!("{number} https"), http, &mut lines);
                }
            }
        }
    }
    lines
}

fn describe_http(place: &str, plan: &HttpPlan, lines: &mut Vec<String>) {
    for (listener, hosts) in &plan.listeners {
        for (host, rules) in &hosts.hosts {
            for rule in rules {
                let path = match &rule.path {
                    PathMatch::Exact(path) => format!("={path}"),
                    PathMatch::Prefix(path) => path.to_string(),
                    PathMatch::Regex(path) | PathMatch::AnyService(path) => format!("~{path}"),
                };
                let mut conditions = String::new();
                conditions.extend(rule.method.iter().map(|method| format!(" {method}")));
                let fields = rule.headers.iter().chain(&rule.query);
                conditions.extend(fields.map(|field| match &field.value {
                    ValueMatch::Exact(value) => format!(" {}={value}", field.name),
                    ValueMatch::Regex(value) => format!(" {}~{value}", field.name),
                }));
                if !rule.filters.is_empty() {
                    conditions.push_str(&format!(" {} filters", rule.filters.len()));
                }
                let to = describe_shares(&rule.backends);
                lines.push(format!("{place} {listener} {host} {path}{conditions} -> {to}"));
            }
        }
    }
}

fn describe_shares(shares: &[WeightedBackend]) -> String {
    let texts = shares.iter().map(|share| {
        let to = share.backend.as_ref().map_or_else(|| "500".to_owned(), |b| format!("{}:{}", b.service, b.port));
        if share.weight == 1 { to } else { format!("{to}*{}", share.weight) }
    });
    texts.collect::<Vec<_>>().join(" ")
}
