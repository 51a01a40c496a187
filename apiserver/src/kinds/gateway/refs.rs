//! References and route status: what several kinds of the group share.

use scaleup_api::gateway::{
    BackendObjectReference, BackendRef, GROUP, LocalObjectReference, ParametersReference, ParentReference,
    PolicyAncestorStatus, PolicyStatus, ReferenceGrantSpec, RouteParentStatus, RouteStatus, SecretObjectReference,
};
use scaleup_api::names;

use super::super::custom::{SpecRules, StatusRules, conditions, count, or_default, range};
use super::super::field::{self, Errors, Path};
use super::text::{self, MAX_NAME};
use crate::error::FieldError;

/// Most parents of a route.
const MAX_PARENTS: usize = 32;
/// Most ancestors of a policy.
const MAX_ANCESTORS: usize = 16;
/// Most entries of either list of a grant.
const MAX_GRANTS: usize = 16;
/// Most backends of a rule.
pub const MAX_BACKENDS: usize = 16;
/// Largest weight of a backend.
const MAX_WEIGHT: i64 = 1_000_000;
/// Most host names of a route.
const MAX_HOSTNAMES: usize = 16;

/// Fields of a reference; `None` is a field that it does not have or that is absent.
struct Reference<'a> {
    group: Option<&'a str>,
    kind: Option<&'a str>,
    name: &'a str,
    namespace: Option<&'a str>,
}

fn reference(errors: &mut Errors, at: &Path<'_>, r: &Reference<'_>) {
    if let Some(group) = r.group {
        field::format(errors, &at.child("group"), group, text::group);
    }
    if let Some(kind) = r.kind {
        field::required_format(errors, &at.child("kind"), kind, text::kind);
    }
    text::required(errors, &at.child("name"), r.name, MAX_NAME, plain_name);
    if let Some(namespace) = r.namespace {
        field::required_format(errors, &at.child("namespace"), namespace, names::dns1123_label);
    }
}

/// Names of objects are not restricted further by the group, but none has a slash or a control character.
fn plain_name(name: &str) -> Result<(), String> {
    names::path_segment(name)?;
    if name.bytes().any(|b| b.is_ascii_control()) { Err("must not contain control characters".into()) } else { Ok(()) }
}

pub fn default_parent(parent: &mut ParentReference) {
    or_default(&mut parent.group, GROUP);
    or_default(&mut parent.kind, "Gateway");
}

fn parent(errors: &mut Errors, at: &Path<'_>, parent: &ParentReference) {
    let named = Reference {
        group: parent.group.as_deref(),
        kind: parent.kind.as_deref(),
        name: &parent.name,
        namespace: parent.namespace.as_deref(),
    };
    reference(errors, at, &named);
    text::optional(errors, &at.child("sectionName"), &parent.section_name, MAX_NAME, names::dns1123_subdomain);
    range(errors, &at.child("port"), parent.port, 1, 65535);
}

/// Parents, and that references to one parent tell its sections apart.
pub fn parents(errors: &mut Errors, at: &Path<'_>, parents: &[ParentReference]) {
    if count(errors, at, parents.len(), 0, MAX_PARENTS) {
        return;
    }
    for (i, one) in parents.iter().enumerate() {
        parent(errors, &at.index(i), one);
    }
    let key = |p: &ParentReference| (p.group.clone(), p.kind.clone(), p.name.clone(), p.namespace.clone());
    for (i, a) in parents.iter().enumerate() {
        let (mut mixed, mut twice) = (false, false);
        for b in parents[..i].iter().filter(|b| key(b) == key(a)) {
            mixed |= a.section_name.is_some() != b.section_name.is_some() || a.port.is_some() != b.port.is_some();
            twice |= a.section_name == b.section_name && a.port == b.port;
        }
        if !mixed && !twice {
            continue;
        }
        let why = if mixed { "must be specified" } else { "must be unique" };
        let why = format!("sectionName or port {why} when parentRefs includes 2 or more references to the same parent");
        errors.push(FieldError::invalid(at.index(i), a.name.as_str(), why));
    }
}

/// Host names of a route.
pub fn hostnames(errors: &mut Errors, at: &Path<'_>, hostnames: &[String], min: usize) {
    if !count(errors, at, hostnames.len(), min, MAX_HOSTNAMES) {
        for (i, name) in hostnames.iter().enumerate() {
            text::required(errors, &at.index(i), name, MAX_NAME, text::hostname);
        }
    }
}

/// `group`, `kind` and `weight` of a backend.
pub fn default_backend(group: &mut Option<String>, kind: &mut Option<String>, weight: Option<&mut Option<i32>>) {
    or_default(group, "");
    or_default(kind, "Service");
    if let Some(weight) = weight {
        weight.get_or_insert(1);
    }
}

/// A backend without its filters.
pub fn backend(errors: &mut Errors, at: &Path<'_>, backend: &BackendRef) {
    let named = Reference {
        group: backend.group.as_deref(),
        kind: backend.kind.as_deref(),
        name: &backend.name,
        namespace: backend.namespace.as_deref(),
    };
    reference(errors, at, &named);
    range(errors, &at.child("port"), backend.port, 1, 65535);
    range(errors, &at.child("weight"), backend.weight, 0, MAX_WEIGHT);
    let service = field::text(&backend.group).is_empty() && backend.kind.as_deref().unwrap_or("Service") == "Service";
    if service && backend.port.is_none() {
        errors.push(FieldError::required(at.child("port"), "a reference to a Service must have a port"));
    }
}

/// Where a mirror sends copies.
pub fn backend_object(errors: &mut Errors, at: &Path<'_>, r: &BackendObjectReference) {
    let BackendObjectReference { name, group, kind, namespace, port } = r.clone();
    backend(errors, at, &BackendRef { name, group, kind, namespace, port, weight: None });
}

/// An object of the same namespace.
pub fn local(errors: &mut Errors, at: &Path<'_>, r: &LocalObjectReference) {
    let named = Reference { group: Some(&r.group), kind: Some(&r.kind), name: &r.name, namespace: None };
    reference(errors, at, &named);
}

/// A controller's parameters.
pub fn parameters(errors: &mut Errors, at: &Path<'_>, r: &ParametersReference) {
    let named =
        Reference { group: Some(&r.group), kind: Some(&r.kind), name: &r.name, namespace: r.namespace.as_deref() };
    reference(errors, at, &named);
}

/// A certificate.
pub fn secret(errors: &mut Errors, at: &Path<'_>, r: &SecretObjectReference) {
    let named = Reference {
        group: r.group.as_deref(),
        kind: r.kind.as_deref(),
        name: &r.name,
        namespace: r.namespace.as_deref(),
    };
    reference(errors, at, &named);
}

/// Group, kind and name of a policy's target.
pub fn target(errors: &mut Errors, at: &Path<'_>, group: &str, kind: &str, name: &str) {
    reference(errors, at, &Reference { group: Some(group), kind: Some(kind), name, namespace: None });
}

impl StatusRules for RouteStatus {
    fn fill(&mut self) {
        self.parents.iter_mut().for_each(|p| default_parent(&mut p.parent_ref));
    }
    fn validate(&self, at: &Path<'_>, errors: &mut Errors) {
        let at = at.child("parents");
        if count(errors, &at, self.parents.len(), 0, MAX_PARENTS) {
            return;
        }
        for (i, RouteParentStatus { parent_ref, controller_name, conditions: all }) in self.parents.iter().enumerate() {
            let at = at.index(i);
            parent(errors, &at.child("parentRef"), parent_ref);
            text::required(errors, &at.child("controllerName"), controller_name, MAX_NAME, text::controller);
            conditions(errors, &at.child("conditions"), all, 1);
        }
    }
}

impl StatusRules for PolicyStatus {
    fn fill(&mut self) {
        self.ancestors.iter_mut().for_each(|a| default_parent(&mut a.ancestor_ref));
    }
    fn validate(&self, at: &Path<'_>, errors: &mut Errors) {
        let at = at.child("ancestors");
        if count(errors, &at, self.ancestors.len(), 0, MAX_ANCESTORS) {
            return;
        }
        for (i, ancestor) in self.ancestors.iter().enumerate() {
            let PolicyAncestorStatus { ancestor_ref, controller_name, conditions: all } = ancestor;
            let at = at.index(i);
            parent(errors, &at.child("ancestorRef"), ancestor_ref);
            text::required(errors, &at.child("controllerName"), controller_name, MAX_NAME, text::controller);
            conditions(errors, &at.child("conditions"), all, 1);
        }
    }
}

impl SpecRules for ReferenceGrantSpec {
    fn validate(&self, _: &str, at: &Path<'_>, errors: &mut Errors) {
        let list = at.child("from");
        if !count(errors, &list, self.from.len(), 1, MAX_GRANTS) {
            for (i, from) in self.from.iter().enumerate() {
                let at = list.index(i);
                field::format(errors, &at.child("group"), &from.group, text::group);
                field::required_format(errors, &at.child("kind"), &from.kind, text::kind);
                field::required_format(errors, &at.child("namespace"), &from.namespace, names::dns1123_label);
            }
        }
        let list = at.child("to");
        if !count(errors, &list, self.to.len(), 1, MAX_GRANTS) {
            for (i, to) in self.to.iter().enumerate() {
                let at = list.index(i);
                field::format(errors, &at.child("group"), &to.group, text::group);
                field::required_format(errors, &at.child("kind"), &to.kind, text::kind);
                text::optional(errors, &at.child("name"), &to.name, MAX_NAME, plain_name);
            }
        }
    }
}
