//! Endpoints.

use crate::registry::Rules;
use k8s_openapi::api::core::v1::Endpoints;

/// Rules of Endpoints.
pub struct EndpointsRules;

impl Rules for EndpointsRules {
    type Object = Endpoints;
}
