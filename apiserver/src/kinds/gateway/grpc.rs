//! GRPCRoute.

use scaleup_api::gateway::{BackendRef, GRPCBackendRef, GRPCRouteMatch, GRPCRouteRule, GRPCRouteSpec};

use super::super::custom::{SpecRules, count, length, or_default};
use super::super::field::{self, Errors, Path};
use super::http::{
    COMPARISONS, MAX_MATCHES, MAX_RULES, all_matches, default_session, rule_names, validate_conditions,
    validate_session,
};
use super::text::{self, MAX_HEADER_VALUE};
use super::{filters, refs};
use crate::error::FieldError;

const MAX_METHOD: usize = 1024;

impl SpecRules for GRPCRouteSpec {
    fn fill(&mut self) {
        self.parent_refs.iter_mut().for_each(refs::default_parent);
        for rule in &mut self.rules {
            for one in &mut rule.matches {
                if let Some(method) = &mut one.method {
                    or_default(&mut method.r#type, "Exact");
                }
                one.headers.iter_mut().for_each(|h| or_default(&mut h.r#type, "Exact"));
            }
            filters::default_grpc(&mut rule.filters);
            for backend in &mut rule.backend_refs {
                refs::default_backend(&mut backend.group, &mut backend.kind, Some(&mut backend.weight));
                filters::default_grpc(&mut backend.filters);
            }
            if let Some(session) = &mut rule.session_persistence {
                default_session(session);
            }
        }
    }

    fn validate(&self, _: &str, at: &Path<'_>, errors: &mut Errors) {
        refs::parents(errors, &at.child("parentRefs"), &self.parent_refs);
        refs::hostnames(errors, &at.child("hostnames"), &self.hostnames, 0);
        let list = at.child("rules");
        if count(errors, &list, self.rules.len(), 0, MAX_RULES) {
            return;
        }
        self.rules.iter().enumerate().for_each(|(i, rule)| validate_rule(errors, &list.index(i), rule));
        rule_names(errors, &list, self.rules.iter().map(|r| &r.name));
        all_matches(errors, &list, self.rules.iter().map(|r| r.matches.len()).sum());
    }
}

fn validate_rule(errors: &mut Errors, at: &Path<'_>, rule: &GRPCRouteRule) {
    let list = at.child("matches");
    if !count(errors, &list, rule.matches.len(), 0, MAX_MATCHES) {
        rule.matches.iter().enumerate().for_each(|(i, one)| validate_match(errors, &list.index(i), one));
    }
    filters::validate_grpc(errors, &at.child("filters"), &rule.filters);
    let list = at.child("backendRefs");
    if !count(errors, &list, rule.backend_refs.len(), 0, refs::MAX_BACKENDS) {
        for (i, backend) in rule.backend_refs.iter().enumerate() {
            let GRPCBackendRef { name, group, kind, namespace, port, weight, filters: of_backend } = backend.clone();
            refs::backend(errors, &list.index(i), &BackendRef { name, group, kind, namespace, port, weight });
            filters::validate_grpc(errors, &list.index(i).child("filters"), &of_backend);
        }
    }
    validate_session(errors, &at.child("sessionPersistence"), rule.session_persistence.as_ref());
}

fn validate_match(errors: &mut Errors, at: &Path<'_>, one: &GRPCRouteMatch) {
    let headers = one.headers.iter().map(|h| (h.name.as_str(), h.value.as_str(), &h.r#type));
    validate_conditions(errors, &at.child("headers"), headers, MAX_HEADER_VALUE, true);
    let Some(method) = &one.method else { return };
    let at = at.child("method");
    field::optional_one_of(errors, &at.child("type"), &method.r#type, COMPARISONS);
    if method.service.is_none() && method.method.is_none() {
        errors.push(FieldError::required(at, "one or both of 'service' and 'method' must be specified"));
    }
    let exact = method.r#type.as_deref().is_none_or(|t| t == "Exact");
    let parts: [(&str, &Option<String>, text::Check); 2] =
        [("service", &method.service, text::grpc_service), ("method", &method.method, text::grpc_method)];
    for (member, value, check) in parts {
        let Some(value) = value else { continue };
        length(errors, &at.child(member), value, MAX_METHOD);
        if exact && value.len() <= MAX_METHOD {
            field::format(errors, &at.child(member), value, check);
        }
    }
}
