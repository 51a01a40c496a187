//! Service.

use crate::registry::{Rules, SelectableField};
use k8s_openapi::api::core::v1::Service;

/// Rules of Services.
pub struct ServiceRules;

impl Rules for ServiceRules {
    type Object = Service;
}

/// What field selectors may name.
pub const SELECTABLE: &[SelectableField] = &[];

pub use super::service_alloc::ServiceHooks;
