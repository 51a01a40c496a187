//! Ingresses: which are ours, and what each asks for. Pure.
//!
//! Rules without host and default backends serve every name. On the HTTPS port an Ingress is served under the names of its `tls` only, each
//! with the certificate of its own Secret. A name that a Gateway's listener claims belongs to that listener.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::networking::v1::{HTTPIngressPath, Ingress, IngressBackend, IngressClass, IngressSpec};

use super::assemble::{Content, Place};
use super::gateways::{Gateways, broken, valid_host};
use super::objects::{ObjectKey, Objects, RouteKey};
use super::references::{Fault, port};
use super::routes::{
    BackendRef, CertificatePlan, Filter, HostPattern, HostPort, PathMatch, RedirectPlan, RuleId, RulePlan,
    WeightedBackend,
};
use super::rules::path_match;
use super::{PlanConfig, Protocol};

/// `controller` of the IngressClasses that are ours.
pub const INGRESS_CONTROLLER: &str = "scaleup.dev/ingress";
/// The way of saying the class before `ingressClassName`.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
/// The class of Ingresses that say none.
const DEFAULT_CLASS_ANNOTATION: &str = "ingressclass.kubernetes.io/is-default-class";
/// With one of these at `"true"` plain HTTP to the names in `tls` is redirected to HTTPS. ingress-nginx's are honoured, so that Ingresses written
/// for it keep their meaning; unlike there, nothing is redirected without being asked for.
const REDIRECT_ANNOTATIONS: &[&str] = &[
    "scaleup.dev/ssl-redirect",
    "nginx.ingress.kubernetes.io/ssl-redirect",
    "nginx.ingress.kubernetes.io/force-ssl-redirect",
];
/// Rules, paths of a rule, and names in `tls` that are read.
const MAX_RULES: usize = 256;
const MAX_PATHS: usize = 256;
const MAX_TLS_HOSTS: usize = 256;
/// Status of the redirect to HTTPS: method and body are kept.
const REDIRECT_STATUS: u16 = 308;

/// What an Ingress asks for.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub places: Vec<Place>,
    pub backends: BTreeSet<BackendRef>,
    pub mentions: BTreeSet<ObjectKey>,
    /// What its author must know.
    pub problems: Vec<Fault>,
}

/// Whether an Ingress is ours.
pub(super) fn is_ours(objects: &Objects, ingress: &Ingress) -> bool {
    let annotation = |name: &str| ingress.metadata.annotations.as_ref().and_then(|all| all.get(name));
    let named = ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_ref());
    let ours = |class: &IngressClass| {
        class.spec.as_ref().and_then(|spec| spec.controller.as_deref()) == Some(INGRESS_CONTROLLER)
    };
    match named.or_else(|| annotation(CLASS_ANNOTATION)) {
        Some(name) => objects.ingress_classes.get(&ObjectKey::new("", name)).is_some_and(|class| ours(class)),
        None => objects.ingress_classes.values().any(|class| {
            let all = class.metadata.annotations.as_ref();
            ours(class) && all.and_then(|all| all.get(DEFAULT_CLASS_ANNOTATION)).is_some_and(|value| value == "true")
        }),
    }
}

/// Whether it is served on the HTTPS port.
pub(super) fn has_tls(ingress: &Ingress) -> bool {
    ingress.spec.as_ref().and_then(|spec| spec.tls.as_ref()).is_some_and(|tls| !tls.is_empty())
}

/// Services whose policies count for a rule, and makes the rule's plan final.
pub(super) type Finish<'a> = dyn FnMut(RulePlan, &[BackendRef]) -> Arc<RulePlan> + 'a;

struct Work<'a, 'f> {
    objects: &'a Objects,
    key: &'a RouteKey,
    finish: &'f mut Finish<'f>,
    asked: Asked,
}

/// Rules of one name.
type Named = (HostPattern, Vec<Arc<RulePlan>>);

/// What `ingress` asks for.
pub(super) fn asked<'f>(
    objects: &Objects,
    gateways: &Gateways,
    config: &PlanConfig,
    key: &RouteKey,
    ingress: &Ingress,
    finish: &'f mut Finish<'f>,
) -> Asked {
    let empty = IngressSpec::default();
    let spec = ingress.spec.as_ref().unwrap_or(&empty);
    let mut work = Work { objects, key, finish, asked: Asked::default() };
    let named = work.rules(spec);
    let sites = work.sites(spec);
    let redirect =
        ingress.metadata.annotations.as_ref().is_some_and(|all| {
            REDIRECT_ANNOTATIONS.iter().any(|name| all.get(*name).is_some_and(|value| value == "true"))
        });
    let port = |number| HostPort { port: number, protocol: Protocol::Tcp };
    let (http, https) = (port(config.http_port), port(config.https_port));
    let secured = |host: &HostPattern| sites.iter().any(|(site, _)| covers(site, host));
    for (host, rules) in &named {
        let plain = if redirect && secured(host) {
            rules.iter().map(|rule| Arc::new(redirected(rule, config.https_port))).collect()
        } else {
            rules.clone()
        };
        work.place(gateways, http, host, plain);
        if secured(host) {
            work.place(gateways, https, host, rules.clone());
            continue;
        }
        // Rules of every name are served under the names that have a certificate.
        for (site, _) in sites.iter().filter(|(site, _)| covers(host, site)) {
            work.place(gateways, https, site, rules.clone());
        }
    }
    if !sites.is_empty() {
        let sites = sites.into_iter().filter(|(host, _)| claimed(gateways, https, host).is_none()).collect();
        let content = Content::Sites(sites);
        work.asked.places.push(Place { port: https, listener: None, hosts: Box::default(), content });
    }
    work.asked
}

/// Whether every name of `narrow` is one of `wide`.
fn covers(wide: &HostPattern, narrow: &HostPattern) -> bool {
    match (wide, narrow) {
        (HostPattern::Any, _) => true,
        (wide, HostPattern::Exact(name)) => wide.matches(name),
        (wide, narrow) => wide == narrow,
    }
}

fn redirected(rule: &RulePlan, https_port: u16) -> RulePlan {
    let redirect = RedirectPlan {
        scheme: Some("https".into()),
        hostname: None,
        port: Some(https_port).filter(|port| *port != 443),
        path: None,
        status: REDIRECT_STATUS,
    };
    RulePlan { filters: vec![Filter::Redirect(redirect)], backends: Vec::new(), ..rule.clone() }
}

/// The Gateway whose listener claims a name on a port.
fn claimed<'g>(gateways: &'g Gateways, port: HostPort, host: &HostPattern) -> Option<&'g ObjectKey> {
    let owners = gateways.on_port(port).filter(|(_, listener)| listener.host != HostPattern::Any);
    owners.filter(|(_, listener)| covers(&listener.host, host)).map(|(key, _)| key).next()
}

impl Work<'_, '_> {
    fn problem(&mut self, reason: &'static str, message: String) {
        self.asked.problems.push(Fault::new(reason, message));
    }

    fn place(&mut self, gateways: &Gateways, port: HostPort, host: &HostPattern, rules: Vec<Arc<RulePlan>>) {
        if let Some(owner) = claimed(gateways, port, host) {
            let message =
                format!("host {host} on port {} belongs to Gateway {owner}; it is not served here", port.port);
            self.problem("HostConflict", message);
            return;
        }
        let content = Content::Http(rules.into());
        self.asked.places.push(Place { port, listener: None, hosts: Box::new([host.clone()]), content });
    }

    fn rules(&mut self, spec: &IngressSpec) -> Vec<Named> {
        let default = spec.default_backend.as_ref().map(|backend| {
            let path = PathMatch::Prefix("/".into());
            // Numbered after the others.
            self.rule(spec.rules.as_ref().map_or(0, Vec::len), 0, path, backend)
        });
        let mut named: Vec<Named> = Vec::new();
        for (index, rule) in spec.rules.iter().flatten().take(MAX_RULES).enumerate() {
            let host = rule.host.as_deref().unwrap_or_default();
            let Some(host) = valid_host(host) else {
                self.problem("InvalidHost", format!("rule {index}: {host:?} is not a host name"));
                continue;
            };
            let paths = rule.http.iter().flat_map(|http| &http.paths).take(MAX_PATHS).enumerate();
            let rules: Vec<Arc<RulePlan>> =
                paths.filter_map(|(matched, path)| self.path(index, matched, path)).collect();
            match named.iter_mut().find(|(known, _)| *known == host) {
                Some((_, known)) => known.extend(rules),
                None => named.push((host, rules)),
            }
        }
        // What no rule of this Ingress matches, under its own names and all others.
        if let Some(default) = default {
            named.iter_mut().for_each(|(_, rules)| rules.push(default.clone()));
            if !named.iter().any(|(host, _)| *host == HostPattern::Any) {
                named.push((HostPattern::Any, vec![default]));
            }
        }
        named
    }

    fn path(&mut self, index: usize, matched: usize, path: &HTTPIngressPath) -> Option<Arc<RulePlan>> {
        let kind = if path.path_type == "Exact" { "Exact" } else { "PathPrefix" };
        match path_match(kind, path.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/")) {
            Ok(condition) => Some(self.rule(index, matched, condition, &path.backend)),
            Err(fault) => {
                self.problem("InvalidPath", format!("rule {index}: {}", fault.message));
                None
            }
        }
    }

    fn rule(&mut self, rule: usize, matched: usize, path: PathMatch, backend: &IngressBackend) -> Arc<RulePlan> {
        let backend = self.backend(backend);
        let id = RuleId {
            kind: self.key.kind.as_str(),
            namespace: self.key.key.namespace.clone(),
            name: self.key.key.name.clone(),
            rule,
            matched,
        };
        let backends: Vec<BackendRef> = backend.iter().cloned().collect();
        let share = WeightedBackend { backend, weight: 1, filters: Vec::new() };
        let plan = RulePlan {
            id,
            path,
            method: None,
            headers: Vec::new(),
            query: Vec::new(),
            filters: Vec::new(),
            backends: vec![share],
            policy: Arc::default(),
        };
        (self.finish)(plan, &backends)
    }

    fn backend(&mut self, backend: &IngressBackend) -> Option<BackendRef> {
        let Some(service) = &backend.service else {
            self.problem("InvalidBackend", "only Services can be backends".to_owned());
            return None;
        };
        let key = self.objects.service_key(&self.key.key.namespace, &service.name);
        self.asked.mentions.insert(key.clone());
        let (name, number) = service.port.as_ref().map_or((None, None), |port| (port.name.as_deref(), port.number));
        let wanted = |port: &k8s_openapi::api::core::v1::ServicePort| match name.filter(|name| !name.is_empty()) {
            Some(name) => port.name.as_deref() == Some(name),
            None => Some(port.port) == number,
        };
        let told = || name.map_or_else(|| number.unwrap_or_default().to_string(), |name| format!("{name:?}"));
        match port(self.objects, &key, Protocol::Tcp, wanted, told) {
            Ok(backend) => {
                self.asked.backends.insert(backend.clone());
                Some(backend)
            }
            Err(fault) => {
                self.asked.problems.push(fault);
                None
            }
        }
    }

    /// Names that are served with TLS and their certificates; none if the Secret is not good.
    fn sites(&mut self, spec: &IngressSpec) -> Vec<(HostPattern, Option<Arc<CertificatePlan>>)> {
        let mut sites = Vec::new();
        for tls in spec.tls.iter().flatten().take(MAX_TLS_HOSTS) {
            let certificate = self.certificate(tls.secret_name.as_deref());
            let hosts = tls.hosts.as_deref().unwrap_or_default();
            let all = [String::new()];
            for host in if hosts.is_empty() { &all[..] } else { hosts } {
                match valid_host(host) {
                    Some(host) if sites.len() < MAX_TLS_HOSTS => sites.push((host, certificate.clone())),
                    Some(_) => {}
                    None => self.problem("InvalidHost", format!("tls: {host:?} is not a host name")),
                }
            }
        }
        sites
    }

    fn certificate(&mut self, secret: Option<&str>) -> Option<Arc<CertificatePlan>> {
        let Some(name) = secret else {
            self.problem("InvalidCertificateRef", "tls: secretName is missing".to_owned());
            return None;
        };
        let key = ObjectKey::new(&self.key.key.namespace, name);
        let Some(secret) = self.objects.secrets.get(&key) else {
            let message =
                format!("Secret {key} of type kubernetes.io/tls does not exist; its names have no certificate");
            self.problem("InvalidCertificateRef", message);
            return None;
        };
        if let Some(problem) = &secret.problem {
            self.problem("InvalidCertificateRef", broken(&key, problem, secret.good.is_some()));
        }
        secret.good.clone()
    }
}
