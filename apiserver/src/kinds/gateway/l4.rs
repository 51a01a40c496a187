//! TLSRoute, TCPRoute and UDPRoute.

use scaleup_api::gateway::{BackendRef, ParentReference, TCPRouteSpec, TLSRouteSpec, UDPRouteSpec};

use super::super::custom::{SpecRules, count};
use super::super::field::{Errors, Path};
use super::refs;
use super::route::{MAX_RULES, rule_names};

fn default_parts<'a>(parents: &mut [ParentReference], backends: impl Iterator<Item = &'a mut BackendRef>) {
    parents.iter_mut().for_each(refs::default_parent);
    backends.for_each(|b| refs::default_backend(&mut b.group, &mut b.kind, Some(&mut b.weight)));
}

/// Rules, given as their names and backends.
fn validate_rules(errors: &mut Errors, at: &Path<'_>, rules: &[(&Option<String>, &[BackendRef])], max: usize) {
    if count(errors, at, rules.len(), 1, max) {
        return;
    }
    rule_names(errors, at, rules.iter().map(|(name, _)| *name));
    for (i, (_, backends)) in rules.iter().enumerate() {
        let at = at.index(i);
        let list = at.child("backendRefs");
        if !count(errors, &list, backends.len(), 1, refs::MAX_BACKENDS) {
            backends.iter().enumerate().for_each(|(i, b)| refs::backend(errors, &list.index(i), b));
        }
    }
}

impl SpecRules for TLSRouteSpec {
    fn fill(&mut self) {
        default_parts(&mut self.parent_refs, self.rules.iter_mut().flat_map(|r| &mut r.backend_refs));
    }
    fn validate(&self, version: &str, at: &Path<'_>, errors: &mut Errors) {
        // Since v1 a route has host names, and one rule.
        let (min_hostnames, max_rules) = if version.contains("alpha") { (0, MAX_RULES) } else { (1, 1) };
        refs::parents(errors, &at.child("parentRefs"), &self.parent_refs);
        refs::hostnames(errors, &at.child("hostnames"), &self.hostnames, min_hostnames);
        let rules: Vec<_> = self.rules.iter().map(|r| (&r.name, r.backend_refs.as_slice())).collect();
        validate_rules(errors, &at.child("rules"), &rules, max_rules);
    }
}

impl SpecRules for TCPRouteSpec {
    fn fill(&mut self) {
        default_parts(&mut self.parent_refs, self.rules.iter_mut().flat_map(|r| &mut r.backend_refs));
    }
    fn validate(&self, _: &str, at: &Path<'_>, errors: &mut Errors) {
        refs::parents(errors, &at.child("parentRefs"), &self.parent_refs);
        let rules: Vec<_> = self.rules.iter().map(|r| (&r.name, r.backend_refs.as_slice())).collect();
        validate_rules(errors, &at.child("rules"), &rules, MAX_RULES);
    }
}

impl SpecRules for UDPRouteSpec {
    fn fill(&mut self) {
        default_parts(&mut self.parent_refs, self.rules.iter_mut().flat_map(|r| &mut r.backend_refs));
    }
    fn validate(&self, _: &str, at: &Path<'_>, errors: &mut Errors) {
        refs::parents(errors, &at.child("parentRefs"), &self.parent_refs);
        let rules: Vec<_> = self.rules.iter().map(|r| (&r.name, r.backend_refs.as_slice())).collect();
        validate_rules(errors, &at.child("rules"), &rules, MAX_RULES);
    }
}
