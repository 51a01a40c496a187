//! TrafficPolicies and BackendTLSPolicies by target: which of them say something about a Service port, a route's rule, a listener. Pure;
//! what each field means is in [`crate::policy::convert`].

use std::collections::BTreeMap;
use std::sync::Arc;

use scaleup_api::gateway::{BackendTLSPolicy, GROUP, SubjectAltName};
use scaleup_api::traffic::{TargetRef, TrafficPolicy};
use scaleup_plugins::PluginKey;

use super::certificates::is_bundle;
use super::objects::{ObjectKey, Objects, created};
use super::references::Fault;
use crate::policy::convert::{Parsed, parse};
use crate::policy::parts::{RequestPart, ServicePart};
use crate::policy::{AltName, PluginRef, UpstreamTls};

/// Targets of a policy that are read (the API's limit).
pub(crate) const MAX_TARGETS: usize = 16;
/// Names that a BackendTLSPolicy lists (the API's limit), and the longest, in bytes.
const MAX_ALT_NAMES: usize = 5;
const MAX_ALT_NAME_BYTES: usize = 253;

/// Kinds that policies may target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each is the kind of its name")]
pub(crate) enum TargetKind {
    Service,
    Gateway,
    Ingress,
    HTTPRoute,
    GRPCRoute,
    TLSRoute,
    TCPRoute,
    UDPRoute,
}

impl TargetKind {
    /// From a reference's group and kind.
    pub fn of(target: &TargetRef) -> Option<Self> {
        Some(match (target.group.as_str(), target.kind.as_str()) {
            ("", "Service") => Self::Service,
            ("networking.k8s.io", "Ingress") => Self::Ingress,
            (GROUP, "Gateway") => Self::Gateway,
            (GROUP, "HTTPRoute") => Self::HTTPRoute,
            (GROUP, "GRPCRoute") => Self::GRPCRoute,
            (GROUP, "TLSRoute") => Self::TLSRoute,
            (GROUP, "TCPRoute") => Self::TCPRoute,
            (GROUP, "UDPRoute") => Self::UDPRoute,
            _ => return None,
        })
    }
}

impl From<super::objects::RouteKind> for TargetKind {
    fn from(kind: super::objects::RouteKind) -> Self {
        use super::objects::RouteKind;
        match kind {
            RouteKind::Ingress => Self::Ingress,
            RouteKind::HTTPRoute => Self::HTTPRoute,
            RouteKind::GRPCRoute => Self::GRPCRoute,
            RouteKind::TLSRoute => Self::TLSRoute,
            RouteKind::TCPRoute => Self::TCPRoute,
            RouteKind::UDPRoute => Self::UDPRoute,
        }
    }
}

/// An object that policies target.
pub(crate) type Target = (TargetKind, ObjectKey);

/// A policy at one target.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Attached {
    /// Listener, rule or port; all if absent.
    pub section: Option<Arc<str>>,
    pub request: Arc<RequestPart>,
    pub service: Arc<ServicePart>,
    /// `proxyProtocol.accept` with its trusted sources.
    pub accept_proxy: Option<Arc<[String]>>,
}

impl Attached {
    /// Names of the fields that are set.
    fn said(&self) -> Vec<&'static str> {
        let mut said = self.request.said();
        said.extend(self.service.said());
        said.extend(self.accept_proxy.as_ref().map(|_| "proxyProtocol.accept"));
        said
    }
}

/// What became of a policy at one of its targets.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TargetOutcome {
    pub target: TargetRef,
    pub refused: Option<Fault>,
    /// The plugin that it asks for.
    pub plugin: Option<PluginKey>,
}

/// All policies by target.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Policies {
    /// The oldest first; those for a section before the others.
    by_target: BTreeMap<Target, Arc<[Attached]>>,
    /// TLS to the endpoints of Services, by BackendTLSPolicies: section (port name) and what it says, the oldest first.
    tls: BTreeMap<ObjectKey, TlsByPort>,
    /// What to tell each TrafficPolicy about its targets.
    pub outcomes: BTreeMap<ObjectKey, Arc<[TargetOutcome]>>,
    /// What is wrong with BackendTLSPolicies.
    pub tls_outcomes: BTreeMap<ObjectKey, Option<Fault>>,
}

/// A port's name (all ports if absent) and TLS to its endpoints.
type TlsOfPort = (Option<Arc<str>>, Arc<UpstreamTls>);
type TlsByPort = Arc<[TlsOfPort]>;

impl Policies {
    /// From the objects. Pure.
    pub fn compile(objects: &Objects) -> Self {
        let mut all = Self::default();
        let mut by_age: Vec<(&ObjectKey, &TrafficPolicy)> =
            objects.policies.iter().map(|(key, policy)| (key, &**policy)).collect();
        by_age.sort_by_key(|(key, policy)| (created(&policy.metadata), *key));
        let mut by_target: BTreeMap<Target, Vec<Attached>> = BTreeMap::new();
        for (key, policy) in by_age {
            let outcomes = attach(objects, key, policy, &mut by_target);
            all.outcomes.insert(key.clone(), outcomes.into());
        }
        for (target, mut attached) in by_target {
            attached.sort_by_key(|attached| attached.section.is_none());
            all.by_target.insert(target, attached.into());
        }
        all.backend_tls(objects);
        all
    }

    fn backend_tls(&mut self, objects: &Objects) {
        let mut by_age: Vec<(&ObjectKey, &BackendTLSPolicy)> =
            objects.tls_policies.iter().map(|(key, policy)| (key, &**policy)).collect();
        by_age.sort_by_key(|(key, policy)| (created(&policy.metadata), *key));
        let mut tls: BTreeMap<ObjectKey, Vec<TlsOfPort>> = BTreeMap::new();
        for (key, policy) in by_age {
            let (plan, fault) = backend_tls(objects, key, policy);
            let plan = Arc::new(plan);
            let mut outcome = fault;
            for target in policy.spec.target_refs.iter().take(MAX_TARGETS) {
                if !target.group.is_empty() || target.kind != "Service" {
                    outcome = Some(Fault::new("Invalid", format!("{:?} is not a Service", target.name)));
                    continue;
                }
                let section = target.section_name.as_deref().map(Arc::from);
                let known = tls.entry(ObjectKey::new(&key.namespace, &target.name)).or_default();
                if known.iter().any(|(other, _)| *other == section) {
                    let message = format!("an older BackendTLSPolicy speaks about Service {:?}", target.name);
                    outcome = Some(Fault::new("Conflicted", message));
                }
                known.push((section, plan.clone()));
            }
            self.tls_outcomes.insert(key.clone(), outcome);
        }
        for (service, mut policies) in tls {
            policies.sort_by_key(|(section, _)| section.is_none());
            self.tls.insert(service, policies.into());
        }
    }

    /// What is attached to a target, for a section of it: most specific first, then oldest.
    pub fn of<'p>(
        &'p self,
        kind: TargetKind,
        key: &ObjectKey,
        section: Option<&'p str>,
    ) -> impl Iterator<Item = &'p Attached> {
        let attached = self.by_target.get(&(kind, key.clone())).map(|all| &**all).unwrap_or_default();
        attached.iter().filter(move |attached| attached.section.is_none() || attached.section.as_deref() == section)
    }

    /// What BackendTLSPolicies say about a Service's port.
    pub fn tls_of(&self, service: &ObjectKey, port: &str) -> Option<Arc<UpstreamTls>> {
        let policies = self.tls.get(service)?;
        let speaks = |section: &Option<Arc<str>>| section.as_deref().is_none_or(|section| section == port);
        policies.iter().find(|(section, _)| speaks(section)).map(|(_, tls)| tls.clone())
    }

    /// Why a policy has no say at a target where it was filed: older ones of the same section say everything that it says.
    pub fn overridden(
        &self,
        policy: &ObjectKey,
        kind: TargetKind,
        target: &ObjectKey,
        section: Option<&str>,
    ) -> Option<Fault> {
        let attached = self.by_target.get(&(kind, target.clone()))?;
        let source = policy.to_string();
        let same: Vec<&Attached> = attached.iter().filter(|other| other.section.as_deref() == section).collect();
        let at = same.iter().position(|other| other.request.source.as_deref() == Some(&source))?;
        let (older, own) = (&same[..at], same[at].said());
        let taken = |field: &&str| older.iter().any(|older| older.said().contains(field));
        if own.is_empty() || !own.iter().all(taken) {
            return None;
        }
        let first = older.first()?.request.source.as_deref().unwrap_or_default();
        Some(Fault::new(
            "Conflicted",
            format!("older policies, the first {first}, set {} here already", own.join(", ")),
        ))
    }

    /// Targets about which `self` and `other` say different things.
    pub fn differing(&self, other: &Self) -> Vec<Target> {
        let changed = |a: &Self, b: &Self| -> Vec<Target> {
            a.by_target
                .iter()
                .filter(|(target, attached)| b.by_target.get(target) != Some(attached))
                .map(|(target, _)| target.clone())
                .chain(
                    a.tls
                        .iter()
                        .filter(|(service, tls)| b.tls.get(service) != Some(tls))
                        .map(|(service, _)| (TargetKind::Service, service.clone())),
                )
                .collect()
        };
        let mut targets = changed(self, other);
        targets.extend(changed(other, self));
        targets.sort();
        targets.dedup();
        targets
    }
}

/// Files a policy with its targets and says what became of it there.
fn attach(
    objects: &Objects,
    key: &ObjectKey,
    policy: &TrafficPolicy,
    by_target: &mut BTreeMap<Target, Vec<Attached>>,
) -> Vec<TargetOutcome> {
    let parsed = parse(key, &policy.spec);
    let mut outcomes = Vec::new();
    for target in policy.spec.target_refs.iter().take(MAX_TARGETS) {
        let refused = match (&parsed, TargetKind::of(target)) {
            (_, None) => {
                let message = format!("{}/{} cannot be targeted by a TrafficPolicy", target.group, target.kind);
                Some(Fault::new("Invalid", message))
            }
            (Err(message), _) => Some(Fault::new("Invalid", message.clone())),
            (Ok(parsed), Some(kind)) => at_target(objects, key, parsed, kind, target, by_target).err(),
        };
        let plugin = parsed.as_ref().ok().and_then(|parsed| Some(parsed.plugin.as_ref()?.key.clone()));
        outcomes.push(TargetOutcome { target: target.clone(), refused, plugin });
    }
    outcomes
}

fn at_target(
    objects: &Objects,
    key: &ObjectKey,
    parsed: &Parsed,
    kind: TargetKind,
    target: &TargetRef,
    by_target: &mut BTreeMap<Target, Vec<Attached>>,
) -> Result<(), Fault> {
    if kind != TargetKind::Service && !parsed.endpoint_fields.is_empty() {
        let message = format!(
            "{} are about a Service's endpoints: target the Service instead",
            parsed.endpoint_fields.join(", ")
        );
        return Err(Fault::new("Invalid", message));
    }
    if parsed.accept_proxy.is_some() && !matches!(kind, TargetKind::Service | TargetKind::Gateway) {
        return Err(Fault::new("Invalid", "proxyProtocol.accept is for Gateways and Services"));
    }
    let l4 = matches!(kind, TargetKind::TLSRoute | TargetKind::TCPRoute | TargetKind::UDPRoute);
    if parsed.plugin.is_some() && l4 {
        let message = format!("policyRef: plugins choose endpoints for HTTP; a {} passes bytes on", target.kind);
        return Err(Fault::new("Invalid", message));
    }
    let (mut service, mut request) = (parsed.service.clone(), None);
    match &parsed.plugin {
        Some(plugin) if kind == TargetKind::Service => service.plugin = Some(plugin.clone()),
        Some(plugin) => {
            let whole_rule = kind != TargetKind::Gateway;
            request = Some(Arc::new(PluginRef { whole_rule, ..PluginRef::clone(plugin) }));
        }
        None => {}
    }
    let mut broken = None;
    if let Some(tls) = &parsed.upstream_tls {
        let (plan, fault) = upstream_tls(objects, key, tls);
        service.upstream_tls = Some(Arc::new(plan));
        broken = fault;
    }
    let place = format!("{}/{}/{}", target.kind, target.name, target.section_name.as_deref().unwrap_or_default());
    by_target.entry((kind, ObjectKey::new(&key.namespace, &target.name))).or_default().push(Attached {
        section: target.section_name.as_deref().map(Arc::from),
        request: Arc::new(RequestPart { plugin: request, ..parsed.request_at(&place) }),
        service: Arc::new(service),
        accept_proxy: parsed.accept_proxy.clone(),
    });
    broken.map_or(Ok(()), Err)
}

/// Roots that trust nobody: what was asked for is not there, and connecting without it would not be what was asked for.
fn nobody() -> Option<Vec<u8>> {
    Some(Vec::new())
}

fn upstream_tls(
    objects: &Objects,
    policy: &ObjectKey,
    tls: &scaleup_api::traffic::UpstreamTls,
) -> (UpstreamTls, Option<Fault>) {
    let mut plan = UpstreamTls {
        hostname: tls.hostname.as_str().into(),
        insecure: tls.insecure_skip_verify,
        ..UpstreamTls::default()
    };
    let mut fault = None;
    if let Some(name) = &tls.ca_config_map {
        match bundle(objects, &policy.namespace, name) {
            Ok(pem) => plan.ca_pem = Some(pem),
            Err(message) => {
                (plan.ca_pem, plan.insecure) = (nobody(), false);
                fault = Some(Fault::new("Invalid", message));
            }
        }
    }
    if let Some(name) = &tls.client_certificate_secret {
        let secret = objects.secrets.get(&ObjectKey::new(&policy.namespace, name));
        plan.client = secret.and_then(|secret| secret.good.clone());
        let problem = secret.map_or(Some("it does not exist"), |secret| secret.problem.as_deref());
        if let Some(problem) = problem {
            fault =
                Some(Fault::new("Invalid", format!("Secret {name:?} (kubernetes.io/tls) cannot be used: {problem}")));
        }
        if plan.client.is_none() {
            (plan.ca_pem, plan.insecure) = (nobody(), false);
        }
    }
    (plan, fault)
}

fn bundle(objects: &Objects, namespace: &str, name: &str) -> Result<Vec<u8>, String> {
    match objects.bundles.get(&ObjectKey::new(namespace, name)) {
        Some(pem) if is_bundle(pem) => Ok(pem.to_vec()),
        Some(_) => Err(format!("ca.crt of ConfigMap {name:?} does not hold certificates in PEM")),
        None => Err(format!("ConfigMap {name:?} with ca.crt does not exist")),
    }
}

/// A name that a certificate may have.
fn alt_name(name: &SubjectAltName) -> Result<AltName, String> {
    let refused = |what: &str, value: &Option<String>| {
        let value = value.as_deref().unwrap_or_default();
        format!("validation.subjectAltNames: {value:?} is not a {what}")
    };
    match name.r#type.as_str() {
        "Hostname" => {
            let host = name.hostname.as_deref().unwrap_or_default().to_ascii_lowercase();
            let plain = host.strip_prefix("*.").unwrap_or(&host);
            let valid = scaleup_api::names::dns1123_subdomain(plain).is_ok();
            valid.then(|| AltName::Hostname(host.as_str().into())).ok_or_else(|| refused("host name", &name.hostname))
        }
        "URI" => {
            let uri = name.uri.as_deref().filter(|uri| !uri.is_empty() && uri.len() <= MAX_ALT_NAME_BYTES);
            uri.map(|uri| AltName::Uri(uri.into())).ok_or_else(|| refused("URI", &name.uri))
        }
        other => Err(format!("validation.subjectAltNames: type {other:?} is not supported")),
    }
}

fn backend_tls(objects: &Objects, key: &ObjectKey, policy: &BackendTLSPolicy) -> (UpstreamTls, Option<Fault>) {
    let validation = &policy.spec.validation;
    let mut plan = UpstreamTls {
        hostname: validation.hostname.to_ascii_lowercase().into(),
        ca_pem: nobody(),
        http_only: true,
        ..UpstreamTls::default()
    };
    let invalid = |message: String| Some(Fault::new("Invalid", message));
    if scaleup_api::names::dns1123_subdomain(&plan.hostname).is_err() {
        let message = format!("validation.hostname {:?} is not a host name", validation.hostname);
        plan.hostname = "invalid".into();
        return (plan, invalid(message));
    }
    match validation.subject_alt_names.iter().take(MAX_ALT_NAMES).map(alt_name).collect() {
        Ok(names) => plan.alt_names = names,
        Err(message) => return (plan, invalid(message)),
    }
    match (validation.well_known_ca_certificates.as_deref(), &validation.ca_certificate_refs[..]) {
        (Some("System"), []) => plan.ca_pem = None,
        (None, references) if !references.is_empty() => {
            let mut pem = Vec::new();
            for reference in references.iter().take(8) {
                if !reference.group.is_empty() || reference.kind != "ConfigMap" {
                    let message = format!("{:?} is not a ConfigMap", reference.name);
                    return (plan, Some(Fault::new("InvalidKind", message)));
                }
                match bundle(objects, &key.namespace, &reference.name) {
                    Ok(more) => {
                        pem.extend(more);
                        pem.push(b'\n');
                    }
                    Err(message) => return (plan, Some(Fault::new("InvalidCACertificateRef", message))),
                }
            }
            plan.ca_pem = Some(pem);
        }
        _ => {
            let message = "exactly one of caCertificateRefs and wellKnownCACertificates: System must be set";
            return (plan, invalid(message.to_owned()));
        }
    }
    (plan, None)
}
