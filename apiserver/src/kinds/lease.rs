//! Lease.

use crate::registry::Rules;
use k8s_openapi::api::coordination::v1::Lease;

/// Rules of Leases.
pub struct LeaseRules;

impl Rules for LeaseRules {
    type Object = Lease;
}
