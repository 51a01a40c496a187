//! BackendTLSPolicy.

use scaleup_api::gateway::{BackendTLSPolicySpec, BackendTLSPolicyValidation, SubjectAltName};
use scaleup_api::names;

use super::super::custom::{SpecRules, count};
use super::super::field::{self, Errors, Path};
use super::class::{MAX_OPTIONS, validate_options};
use super::refs;
use super::text::{self, MAX_NAME};
use crate::error::FieldError;

const MAX_TARGETS: usize = 16;
const MAX_AUTHORITIES: usize = 8;
const MAX_ALT_NAMES: usize = 5;

impl SpecRules for BackendTLSPolicySpec {
    fn validate(&self, _: &str, at: &Path<'_>, errors: &mut Errors) {
        let targets =
            self.target_refs.iter().map(|t| (t.group.as_str(), t.kind.as_str(), t.name.as_str(), &t.section_name));
        validate_targets(errors, &at.child("targetRefs"), targets.collect());
        validate_validation(errors, &at.child("validation"), &self.validation);
        validate_options(errors, &at.child("options"), &self.options, MAX_OPTIONS);
    }
}

/// A target's group, kind, name and section.
pub type Target<'a> = (&'a str, &'a str, &'a str, &'a Option<String>);

/// 1 to 16 targets; those that name one object tell its sections apart.
pub fn validate_targets(errors: &mut Errors, at: &Path<'_>, targets: Vec<Target<'_>>) {
    if count(errors, at, targets.len(), 1, MAX_TARGETS) {
        return;
    }
    for (i, (group, kind, name, section)) in targets.iter().enumerate() {
        let item = at.index(i);
        refs::target(errors, &item, group, kind, name);
        text::optional(errors, &item.child("sectionName"), section, MAX_NAME, names::dns1123_subdomain);
        let mut same = targets[..i].iter().filter(|other| (other.0, other.1, other.2) == (*group, *kind, *name));
        let why = match same.next() {
            None => continue,
            Some(first) if section.is_none() != first.3.is_none() => "must be specified",
            Some(first) if first.3 == *section || same.any(|other| other.3 == *section) => "must be unique",
            Some(_) => continue,
        };
        let why = format!("sectionName {why} when targetRefs includes 2 or more references to the same target");
        errors.push(FieldError::invalid(item, *name, why));
    }
}

fn validate_validation(errors: &mut Errors, at: &Path<'_>, validation: &BackendTLSPolicyValidation) {
    text::required(errors, &at.child("hostname"), &validation.hostname, MAX_NAME, text::precise_hostname);
    let list = at.child("caCertificateRefs");
    if !count(errors, &list, validation.ca_certificate_refs.len(), 0, MAX_AUTHORITIES) {
        validation.ca_certificate_refs.iter().enumerate().for_each(|(i, r)| refs::local(errors, &list.index(i), r));
    }
    let known = &validation.well_known_ca_certificates;
    field::optional_one_of(errors, &at.child("wellKnownCACertificates"), known, &["System"]);
    let why = "exactly one of caCertificateRefs and wellKnownCACertificates must be specified";
    match (validation.ca_certificate_refs.is_empty(), field::text(known).is_empty()) {
        (true, true) => errors.push(FieldError::required(list, why)),
        (false, false) => errors.push(FieldError::forbidden(at.child("wellKnownCACertificates"), why)),
        _ => {}
    }
    let list = at.child("subjectAltNames");
    if !count(errors, &list, validation.subject_alt_names.len(), 0, MAX_ALT_NAMES) {
        validation.subject_alt_names.iter().enumerate().for_each(|(i, n)| validate_alt_name(errors, &list.index(i), n));
    }
}

fn validate_alt_name(errors: &mut Errors, at: &Path<'_>, name: &SubjectAltName) {
    field::one_of(errors, &at.child("type"), &name.r#type, &["Hostname", "URI"]);
    text::optional(errors, &at.child("hostname"), &name.hostname, MAX_NAME, text::hostname);
    text::optional(errors, &at.child("uri"), &name.uri, MAX_NAME, text::uri);
    for (member, value, kind) in [("hostname", &name.hostname, "Hostname"), ("uri", &name.uri, "URI")] {
        if name.r#type == kind && value.is_none() {
            errors.push(FieldError::required(at.child(member), format!("must be specified for type {kind}")));
        } else if name.r#type != kind && value.is_some() {
            errors.push(FieldError::forbidden(at.child(member), format!("may only be specified for type {kind}")));
        }
    }
}
