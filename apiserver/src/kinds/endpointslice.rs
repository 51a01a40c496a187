//! EndpointSlice.

use crate::registry::Rules;
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// Rules of EndpointSlices.
pub struct EndpointSliceRules;

impl Rules for EndpointSliceRules {
    type Object = EndpointSlice;
}
