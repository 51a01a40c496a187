//! GatewayClass and Gateway.

use std::collections::BTreeMap;

use scaleup_api::gateway::{
    AllowedRoutes, GROUP, GatewayClassSpec, GatewayClassStatus, GatewayInfrastructure, GatewaySpec, GatewaySpecAddress,
    GatewayStatus, Listener, ListenerTLSConfig, RouteGroupKind,
};
use scaleup_api::names;

use super::super::custom::{SpecRules, StatusRules, conditions, count, length, or_default, pending, range};
use super::super::field::{self, Errors, Path};
use super::refs;
use super::text::{self, MAX_NAME};
use crate::error::FieldError;

const MAX_DESCRIPTION: usize = 64;
const MAX_FEATURES: usize = 64;
const MAX_LISTENERS: usize = 64;
const MAX_ADDRESSES: usize = 16;
const MAX_CERTIFICATES: usize = 64;
const MAX_KINDS: usize = 8;
const MAX_PROTOCOL: usize = 255;
const MAX_INFRASTRUCTURE: usize = 8;
/// Most options of a TLS configuration.
pub const MAX_OPTIONS: usize = 16;
/// Longest annotation or option.
const MAX_OPTION_BYTES: usize = 4096;

impl SpecRules for GatewayClassSpec {
    fn validate(&self, _: &str, at: &Path<'_>, errors: &mut Errors) {
        text::required(errors, &at.child("controllerName"), &self.controller_name, MAX_NAME, text::controller);
        if let Some(parameters) = &self.parameters_ref {
            refs::parameters(errors, &at.child("parametersRef"), parameters);
        }
        length(errors, &at.child("description"), field::text(&self.description), MAX_DESCRIPTION);
    }

    fn validate_update(&self, old: &Self, at: &Path<'_>, errors: &mut Errors) {
        field::immutable(errors, &at.child("controllerName"), &self.controller_name, &old.controller_name);
    }
}

impl StatusRules for GatewayClassStatus {
    fn initial() -> Option<Self> {
        Some(Self { conditions: vec![pending("Accepted")], ..Self::default() })
    }
    fn validate(&self, at: &Path<'_>, errors: &mut Errors) {
        conditions(errors, &at.child("conditions"), &self.conditions, 0);
        let list = at.child("supportedFeatures");
        if !count(errors, &list, self.supported_features.len(), 0, MAX_FEATURES) {
            for (i, feature) in self.supported_features.iter().enumerate() {
                text::required(errors, &list.index(i).child("name"), &feature.name, MAX_NAME, text::any);
                if self.supported_features[..i].contains(feature) {
                    errors.push(FieldError::duplicate(list.index(i), feature.name.as_str()));
                }
            }
        }
    }
}

impl SpecRules for GatewaySpec {
    fn fill(&mut self) {
        self.listeners.iter_mut().for_each(default_listener);
        self.addresses.iter_mut().for_each(|a| or_default(&mut a.r#type, "IPAddress"));
    }

    fn validate(&self, _: &str, at: &Path<'_>, errors: &mut Errors) {
        text::required(errors, &at.child("gatewayClassName"), &self.gateway_class_name, MAX_NAME, names::path_segment);
        let list = at.child("listeners");
        if !count(errors, &list, self.listeners.len(), 1, MAX_LISTENERS) {
            for (i, listener) in self.listeners.iter().enumerate() {
                validate_listener(errors, &list.index(i), listener);
            }
            validate_unique(errors, &list, &self.listeners);
        }
        validate_addresses(errors, &at.child("addresses"), &self.addresses);
        if let Some(infrastructure) = &self.infrastructure {
            validate_infrastructure(errors, &at.child("infrastructure"), infrastructure);
        }
    }
}

fn default_listener(listener: &mut Listener) {
    let allowed: &mut AllowedRoutes = listener.allowed_routes.get_or_insert_default();
    or_default(&mut allowed.namespaces.get_or_insert_default().from, "Same");
    allowed.kinds.iter_mut().for_each(default_kind);
    if let Some(tls) = &mut listener.tls {
        or_default(&mut tls.mode, "Terminate");
        for certificate in &mut tls.certificate_refs {
            or_default(&mut certificate.group, "");
            or_default(&mut certificate.kind, "Secret");
        }
    }
}

fn default_kind(kind: &mut RouteGroupKind) {
    or_default(&mut kind.group, GROUP);
}

fn validate_listener(errors: &mut Errors, at: &Path<'_>, listener: &Listener) {
    text::required(errors, &at.child("name"), &listener.name, MAX_NAME, names::dns1123_subdomain);
    range(errors, &at.child("port"), Some(listener.port), 1, 65535);
    text::required(errors, &at.child("protocol"), &listener.protocol, MAX_PROTOCOL, text::protocol);
    text::optional(errors, &at.child("hostname"), &listener.hostname, MAX_NAME, text::hostname);
    let protocol = listener.protocol.as_str();
    if matches!(protocol, "TCP" | "UDP") && listener.hostname.is_some() {
        errors.push(FieldError::forbidden(at.child("hostname"), "must not be specified for protocols TCP and UDP"));
    }
    if let Some(tls) = &listener.tls {
        let at = at.child("tls");
        if matches!(protocol, "HTTP" | "TCP" | "UDP") {
            errors.push(FieldError::forbidden(at, "must not be specified for protocols HTTP, TCP and UDP"));
        }
        if protocol == "HTTPS" && tls.mode.as_deref() == Some("Passthrough") {
            errors.push(FieldError::invalid(at.child("mode"), "Passthrough", "must be Terminate for protocol HTTPS"));
        }
        validate_tls(errors, &at, tls);
    }
    if let Some(allowed) = &listener.allowed_routes {
        let at = at.child("allowedRoutes");
        validate_kinds(errors, &at.child("kinds"), &allowed.kinds);
        if let Some(namespaces) = &allowed.namespaces {
            let at = at.child("namespaces");
            let from = &["All", "Selector", "Same"];
            field::optional_one_of(errors, &at.child("from"), &namespaces.from, from);
            field::label_selector(errors, &at.child("selector"), namespaces.selector.as_ref());
        }
    }
}

fn validate_kinds(errors: &mut Errors, at: &Path<'_>, kinds: &[RouteGroupKind]) {
    if !count(errors, at, kinds.len(), 0, MAX_KINDS) {
        for (i, kind) in kinds.iter().enumerate() {
            field::format(errors, &at.index(i).child("group"), field::text(&kind.group), text::group);
            field::required_format(errors, &at.index(i).child("kind"), &kind.kind, text::kind);
        }
    }
}

fn validate_tls(errors: &mut Errors, at: &Path<'_>, tls: &ListenerTLSConfig) {
    field::optional_one_of(errors, &at.child("mode"), &tls.mode, &["Terminate", "Passthrough"]);
    let list = at.child("certificateRefs");
    if !count(errors, &list, tls.certificate_refs.len(), 0, MAX_CERTIFICATES) {
        tls.certificate_refs.iter().enumerate().for_each(|(i, r)| refs::secret(errors, &list.index(i), r));
    }
    validate_options(errors, &at.child("options"), &tls.options, MAX_OPTIONS);
    let terminates = tls.mode.as_deref().unwrap_or("Terminate") == "Terminate";
    if terminates && tls.certificate_refs.is_empty() && tls.options.is_empty() {
        let why = "certificateRefs or options must be specified when mode is Terminate";
        errors.push(FieldError::required(list, why));
    }
}

/// Keys as annotations have them, values of at most 4096 bytes.
pub fn validate_options(errors: &mut Errors, at: &Path<'_>, options: &BTreeMap<String, String>, max: usize) {
    if !count(errors, at, options.len(), 0, max) {
        for (key, value) in options {
            field::format(errors, &at.key(key), key, names::qualified_name);
            length(errors, &at.key(key), value, MAX_OPTION_BYTES);
        }
    }
}

/// Names are unique, and so is each combination of port, protocol and host name.
fn validate_unique(errors: &mut Errors, at: &Path<'_>, listeners: &[Listener]) {
    for (i, a) in listeners.iter().enumerate() {
        let before = &listeners[..i];
        if before.iter().any(|b| a.name == b.name) {
            errors.push(FieldError::duplicate(at.index(i).child("name"), a.name.as_str()));
        }
        let same = |b: &Listener| a.port == b.port && a.protocol == b.protocol && a.hostname == b.hostname;
        if before.iter().any(same) {
            let why = "the combination of port, protocol and hostname must be unique for each listener";
            errors.push(FieldError::invalid(at.index(i), a.name.as_str(), why));
        }
    }
}

fn validate_addresses(errors: &mut Errors, at: &Path<'_>, addresses: &[GatewaySpecAddress]) {
    if count(errors, at, addresses.len(), 0, MAX_ADDRESSES) {
        return;
    }
    for (i, address) in addresses.iter().enumerate() {
        validate_address(errors, &at.index(i), &address.r#type, field::text(&address.value));
        if address.value.is_some() && addresses[..i].contains(address) {
            errors.push(FieldError::duplicate(at.index(i), field::text(&address.value)));
        }
    }
}

fn validate_address(errors: &mut Errors, at: &Path<'_>, kind: &Option<String>, value: &str) {
    text::optional(errors, &at.child("type"), kind, MAX_NAME, text::address_type);
    let at = at.child("value");
    length(errors, &at, value, MAX_NAME);
    match kind.as_deref() {
        _ if value.is_empty() => {}
        Some("Hostname") => field::format(errors, &at, value, text::hostname),
        None | Some("IPAddress") => field::format(errors, &at, value, names::ip),
        Some(_) => {}
    }
}

fn validate_infrastructure(errors: &mut Errors, at: &Path<'_>, infrastructure: &GatewayInfrastructure) {
    let labels = at.child("labels");
    if !count(errors, &labels, infrastructure.labels.len(), 0, MAX_INFRASTRUCTURE) {
        field::labels(errors, &labels, Some(&infrastructure.labels));
    }
    validate_options(errors, &at.child("annotations"), &infrastructure.annotations, MAX_INFRASTRUCTURE);
    if let Some(parameters) = &infrastructure.parameters_ref {
        refs::local(errors, &at.child("parametersRef"), parameters);
    }
}

impl StatusRules for GatewayStatus {
    fn initial() -> Option<Self> {
        Some(Self { conditions: vec![pending("Accepted"), pending("Programmed")], ..Self::default() })
    }

    fn fill(&mut self) {
        self.addresses.iter_mut().for_each(|a| or_default(&mut a.r#type, "IPAddress"));
        self.listeners.iter_mut().flat_map(|l| &mut l.supported_kinds).for_each(default_kind);
    }

    fn validate(&self, at: &Path<'_>, errors: &mut Errors) {
        conditions(errors, &at.child("conditions"), &self.conditions, 0);
        let list = at.child("addresses");
        if !count(errors, &list, self.addresses.len(), 0, MAX_ADDRESSES) {
            for (i, address) in self.addresses.iter().enumerate() {
                field::required(errors, &list.index(i).child("value"), &address.value);
                validate_address(errors, &list.index(i), &address.r#type, &address.value);
            }
        }
        let list = at.child("listeners");
        if count(errors, &list, self.listeners.len(), 0, MAX_LISTENERS) {
            return;
        }
        for (i, listener) in self.listeners.iter().enumerate() {
            let at = list.index(i);
            text::required(errors, &at.child("name"), &listener.name, MAX_NAME, names::dns1123_subdomain);
            if self.listeners[..i].iter().any(|other| other.name == listener.name) {
                errors.push(FieldError::duplicate(at.child("name"), listener.name.as_str()));
            }
            validate_kinds(errors, &at.child("supportedKinds"), &listener.supported_kinds);
            conditions(errors, &at.child("conditions"), &listener.conditions, 0);
        }
    }
}
