//! Lease (coordination.k8s.io).

use k8s_openapi::api::coordination::v1::Lease;

use super::field::{self, Errors, Path};
use crate::error::FieldError;
use crate::registry::{RuleContext, Rules};

/// Rules of Leases.
pub struct LeaseRules;

impl Rules for LeaseRules {
    type Object = Lease;

    fn validate(&self, object: &Lease, _: &RuleContext<'_>, errors: &mut Errors) {
        let Some(spec) = &object.spec else { return };
        let at = Path::new("spec");
        if let Some(seconds) = spec.lease_duration_seconds
            && seconds <= 0
        {
            errors.push(FieldError::invalid(at.child("leaseDurationSeconds"), seconds, "must be greater than 0"));
        }
        field::non_negative(errors, &at.child("leaseTransitions"), spec.lease_transitions);
        // Coordinated leader election has no controller here; upstream drops the fields while its gate is off.
        for (name, set) in [("strategy", &spec.strategy), ("preferredHolder", &spec.preferred_holder)] {
            if set.is_some() {
                let why = "coordinated leader election is not supported yet; remove the field";
                errors.push(FieldError::forbidden(at.child(name), why));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::field::test::*;
    use super::*;

    #[test]
    fn durations() {
        assert!(create(LeaseRules, "{metadata: {name: a}}").is_ok());
        let good = "{metadata: {name: a}, spec: {leaseDurationSeconds: 40, renewTime: '2024-01-01T00:00:00.000000Z'}}";
        assert!(create(LeaseRules, good).is_ok());
        assert!(create(LeaseRules, "{metadata: {name: a}, spec: {renewTime: yesterday}}").is_err());
        refused(
            LeaseRules,
            "{metadata: {name: a}, spec: {leaseDurationSeconds: 0, leaseTransitions: -1, strategy: OldestEmulationVersion}}",
            &[
                "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
                "spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0",
                "spec.strategy: Forbidden: coordinated leader election is not supported yet; remove the field",
            ],
        );
    }
}
