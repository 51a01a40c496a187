//! ServiceAccount.

use crate::registry::Rules;
use k8s_openapi::api::core::v1::ServiceAccount;

/// Rules of ServiceAccounts.
pub struct ServiceAccountRules;

impl Rules for ServiceAccountRules {
    type Object = ServiceAccount;
}
