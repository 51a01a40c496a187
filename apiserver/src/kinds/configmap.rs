//! ConfigMap.

use crate::registry::Rules;
use k8s_openapi::api::core::v1::ConfigMap;

/// Rules of ConfigMaps.
pub struct ConfigMapRules;

impl Rules for ConfigMapRules {
    type Object = ConfigMap;
}
