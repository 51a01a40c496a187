//! PriorityClass.

use crate::registry::Rules;
use k8s_openapi::api::scheduling::v1::PriorityClass;

/// Rules of PriorityClasses.
pub struct PriorityClassRules;

impl Rules for PriorityClassRules {
    type Object = PriorityClass;
}
