//! GRPCRoute.

use scaleup_api::gateway::{GRPCBackendRef, GRPCRouteFilter, GRPCRouteMatch, GRPCRouteRule, GRPCRouteSpec};

use super::super::custom::{SpecRules, length, or_default};
use super::super::field::{self, Errors, Path};
use super::route::{self, COMPARISONS, Match};
use super::text::{self, MAX_HEADER_VALUE};
use crate::error::FieldError;

const MAX_METHOD: usize = 1024;

impl SpecRules for GRPCRouteSpec {
    fn fill(&mut self) {
        route::fill(&mut self.parent_refs, &mut self.rules);
    }

    fn validate(&self, _: &str, at: &Path<'_>, errors: &mut Errors) {
        route::validate(errors, at, (&self.parent_refs, &self.hostnames), &self.rules);
    }
}

route::rule!(GRPCRouteRule, GRPCRouteMatch, GRPCRouteFilter, GRPCBackendRef;);

impl Match for GRPCRouteMatch {
    fn fill(&mut self) {
        if let Some(method) = &mut self.method {
            or_default(&mut method.r#type, "Exact");
        }
        self.headers.iter_mut().for_each(|h| or_default(&mut h.r#type, "Exact"));
    }

    fn validate(&self, errors: &mut Errors, at: &Path<'_>) {
        let headers = self.headers.iter().map(|h| (h.name.as_str(), h.value.as_str(), &h.r#type));
        route::conditions(errors, &at.child("headers"), headers, MAX_HEADER_VALUE, true);
        let Some(method) = &self.method else { return };
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
}
