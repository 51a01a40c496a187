//! Ingress and IngressClass (networking.k8s.io).

use k8s_openapi::api::core::v1::TypedLocalObjectReference;
use k8s_openapi::api::networking::v1::{
    HTTPIngressPath, Ingress, IngressBackend, IngressClass, IngressClassParametersReference, IngressClassSpec,
    IngressRule, IngressServiceBackend, IngressSpec, IngressTLS,
};
use scaleup_api::names;

use super::custom::length;
use super::field::{self, Errors, Path};
use super::gateway::text;
use crate::error::FieldError;
use crate::registry::{RuleContext, Rules};

/// What named the class before there was a field.
pub const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
/// On an IngressClass: Ingresses without a class get this one.
pub const DEFAULT_CLASS_ANNOTATION: &str = "ingressclass.kubernetes.io/is-default-class";

const MAX_CONTROLLER: usize = 250;
const PATH_TYPES: &[&str] = &["Exact", "ImplementationSpecific", "Prefix"];

/// Rules of Ingresses.
pub struct IngressRules;

impl Rules for IngressRules {
    type Object = Ingress;

    fn prepare_create(&self, object: &mut Ingress, _: &RuleContext<'_>) {
        object.status = None;
    }

    fn validate(&self, object: &Ingress, cx: &RuleContext<'_>, errors: &mut Errors) {
        if cx.subresource == Some("status") {
            validate_status(object, errors);
            return;
        }
        let empty = IngressSpec::default();
        validate_spec(&Path::new("spec"), object.spec.as_ref().unwrap_or(&empty), errors);
    }

    fn validate_create(&self, object: &Ingress, _: &RuleContext<'_>, errors: &mut Errors) {
        let annotation = object.metadata.annotations.as_ref().and_then(|a| a.get(CLASS_ANNOTATION));
        let class = object.spec.as_ref().and_then(|s| s.ingress_class_name.as_ref());
        if let (Some(annotation), Some(class)) = (annotation, class)
            && annotation != class
        {
            let at = Path::new("metadata.annotations");
            let why = "must match `ingressClassName` when both are specified";
            errors.push(FieldError::invalid(at.key(CLASS_ANNOTATION), annotation.as_str(), why));
        }
    }

    fn warnings(&self, object: &Ingress) -> Vec<String> {
        let annotated = object.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(CLASS_ANNOTATION));
        let text = format!("annotation {CLASS_ANNOTATION:?} is deprecated, please use 'spec.ingressClassName' instead");
        annotated.then_some(text).into_iter().collect()
    }
}

fn validate_spec(path: &Path<'_>, spec: &IngressSpec, errors: &mut Errors) {
    let rules = field::list(&spec.rules);
    if rules.is_empty() && spec.default_backend.is_none() {
        errors.push(FieldError::invalid(path, "", "either `defaultBackend` or `rules` must be specified"));
    }
    if let Some(backend) = &spec.default_backend {
        validate_backend(&path.child("defaultBackend"), backend, errors);
    }
    let at = path.child("rules");
    rules.iter().enumerate().for_each(|(i, rule)| validate_rule(&at.index(i), rule, errors));
    let at = path.child("tls");
    field::list(&spec.tls).iter().enumerate().for_each(|(i, tls)| validate_tls(&at.index(i), tls, errors));
    if let Some(class) = &spec.ingress_class_name {
        field::format(errors, &path.child("ingressClassName"), class, names::dns1123_subdomain);
    }
}

/// A host name, perhaps with `*` for its first label.
fn host(text: &str) -> Result<(), String> {
    match text.strip_prefix("*.") {
        Some(rest) => names::dns1123_subdomain(rest).map_err(|_| wildcard_error()),
        None if text.contains('*') => Err(wildcard_error()),
        None => names::dns1123_subdomain(text),
    }
}

fn wildcard_error() -> String {
    "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain (e.g. '*.example.com')"
        .into()
}

fn validate_rule(at: &Path<'_>, rule: &IngressRule, errors: &mut Errors) {
    let name = field::text(&rule.host);
    if !name.is_empty() {
        let at = at.child("host");
        if name.parse::<std::net::IpAddr>().is_ok() {
            errors.push(FieldError::invalid(at, name, "must be a DNS name, not an IP address"));
        }
        field::format(errors, &at, name, host);
    }
    let Some(http) = &rule.http else { return };
    let at = at.child("http");
    let at = at.child("paths");
    if http.paths.is_empty() {
        errors.push(FieldError::required(at, ""));
    }
    http.paths.iter().enumerate().for_each(|(i, path)| validate_path(&at.index(i), path, errors));
}

fn validate_path(at: &Path<'_>, path: &HTTPIngressPath, errors: &mut Errors) {
    let (kind, value, value_at) = (path.path_type.as_str(), field::text(&path.path), at.child("path"));
    let mut refuse = |why: &str| errors.push(FieldError::invalid(value_at, value, why));
    let needed = matches!(kind, "Exact" | "Prefix");
    if (needed || !value.is_empty()) && !value.starts_with('/') {
        refuse("must be an absolute path");
    }
    if needed {
        for part in ["//", "/./", "/../", "%2f", "%2F"].into_iter().filter(|part| value.contains(part)) {
            refuse(&format!("must not contain '{part}'"));
        }
        for end in ["/..", "/."].into_iter().filter(|end| value.ends_with(end)) {
            refuse(&format!("cannot end with '{end}'"));
        }
    }
    // Upstream lets these through to whoever serves the Ingress.
    if value.bytes().any(|b| b.is_ascii_control()) {
        refuse("must not contain control characters");
    }
    if kind.is_empty() {
        errors.push(FieldError::required(at.child("pathType"), "pathType must be specified"));
    } else {
        field::one_of(errors, &at.child("pathType"), kind, PATH_TYPES);
    }
    validate_backend(&at.child("backend"), &path.backend, errors);
}

fn validate_backend(at: &Path<'_>, backend: &IngressBackend, errors: &mut Errors) {
    match (&backend.resource, &backend.service) {
        (Some(_), Some(_)) => errors.push(FieldError::invalid(at, "", "cannot set both resource and service backends")),
        (Some(resource), None) => {
            let TypedLocalObjectReference { api_group, kind, name } = resource;
            validate_object(&at.child("resource"), api_group.as_deref(), kind, name, errors);
        }
        (None, Some(service)) => validate_service(&at.child("service"), service, errors),
        (None, None) => {
            errors.push(FieldError::required(at, "a backend must have a service or a resource"));
        }
    }
}

fn validate_service(at: &Path<'_>, service: &IngressServiceBackend, errors: &mut Errors) {
    field::required_format(errors, &at.child("name"), &service.name, names::dns1035_label);
    let port = service.port.clone().unwrap_or_default();
    let (name, number, at) = (field::text(&port.name), port.number.unwrap_or(0), at.child("port"));
    match (name, number) {
        ("", 0) => errors.push(FieldError::required(at, "port name or number is required")),
        ("", number) => field::port(errors, &at.child("number"), number),
        (name, 0) => field::format(errors, &at.child("name"), name, names::port_name),
        _ => errors.push(FieldError::invalid(at, "", "cannot set both port name & port number")),
    }
}

fn validate_object(at: &Path<'_>, group: Option<&str>, kind: &str, name: &str, errors: &mut Errors) {
    if let Some(group) = group {
        field::format(errors, &at.child("apiGroup"), group, names::dns1123_subdomain);
    }
    field::required_format(errors, &at.child("kind"), kind, names::path_segment);
    field::required_format(errors, &at.child("name"), name, names::path_segment);
}

fn validate_tls(at: &Path<'_>, tls: &IngressTLS, errors: &mut Errors) {
    let hosts_at = at.child("hosts");
    for (i, name) in field::list(&tls.hosts).iter().enumerate() {
        field::format(errors, &hosts_at.index(i), name, host);
    }
    // Without a Secret, TLS is terminated with whatever certificate fits.
    if let Some(secret) = tls.secret_name.as_ref().filter(|s| !s.is_empty()) {
        field::format(errors, &at.child("secretName"), secret, names::dns1123_subdomain);
    }
}

fn validate_status(object: &Ingress, errors: &mut Errors) {
    let balancer = object.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    let at = Path::new("status.loadBalancer.ingress");
    for (i, point) in balancer.and_then(|b| b.ingress.as_ref()).into_iter().flatten().enumerate() {
        let at = at.index(i);
        if let Some(ip) = point.ip.as_ref().filter(|ip| !ip.is_empty()) {
            field::format(errors, &at.child("ip"), ip, names::ip);
        }
        if let Some(name) = point.hostname.as_ref().filter(|name| !name.is_empty()) {
            field::format(errors, &at.child("hostname"), name, names::dns1123_subdomain);
            if name.parse::<std::net::IpAddr>().is_ok() {
                let why = "must be a DNS name, not an IP address";
                errors.push(FieldError::invalid(at.child("hostname"), name.as_str(), why));
            }
        }
        let ports_at = at.child("ports");
        for (i, port) in field::list(&point.ports).iter().enumerate() {
            field::port(errors, &ports_at.index(i).child("port"), port.port);
            field::one_of(errors, &ports_at.index(i).child("protocol"), &port.protocol, field::PROTOCOLS);
        }
    }
}

/// Rules of IngressClasses.
pub struct IngressClassRules;

impl Rules for IngressClassRules {
    type Object = IngressClass;

    fn default(&self, object: &mut IngressClass) {
        let parameters: Option<&mut IngressClassParametersReference> =
            object.spec.as_mut().and_then(|s| s.parameters.as_mut());
        if let Some(parameters) = parameters {
            parameters.scope.get_or_insert_with(|| "Cluster".into());
        }
    }

    fn validate(&self, object: &IngressClass, _: &RuleContext<'_>, errors: &mut Errors) {
        let empty = IngressClassSpec::default();
        let (spec, path) = (object.spec.as_ref().unwrap_or(&empty), Path::new("spec"));
        let controller = field::text(&spec.controller);
        length(errors, &path.child("controller"), controller, MAX_CONTROLLER);
        field::required_format(errors, &path.child("controller"), controller, text::controller);
        let Some(parameters) = &spec.parameters else { return };
        let at = path.child("parameters");
        validate_object(&at, parameters.api_group.as_deref(), &parameters.kind, &parameters.name, errors);
        field::one_of(errors, &at.child("scope"), field::text(&parameters.scope), &["Cluster", "Namespace"]);
        match (field::text(&parameters.scope), &parameters.namespace) {
            ("Namespace", None) => {
                let why = "`parameters.scope` is set to 'Namespace'";
                errors.push(FieldError::required(at.child("namespace"), why));
            }
            ("Namespace", Some(namespace)) => {
                field::format(errors, &at.child("namespace"), namespace, names::dns1123_label);
            }
            ("Cluster", Some(_)) => {
                let why = "`parameters.scope` is set to 'Cluster'";
                errors.push(FieldError::forbidden(at.child("namespace"), why));
            }
            _ => {}
        }
    }

    fn validate_update(&self, object: &IngressClass, old: &IngressClass, _: &RuleContext<'_>, errors: &mut Errors) {
        let controller = |class: &IngressClass| class.spec.as_ref().and_then(|s| s.controller.clone());
        field::immutable(errors, &Path::new("spec.controller"), &controller(object), &controller(old));
    }
}

#[cfg(test)]
#[path = "ingress_tests.rs"]
mod tests;
