//! Pod.

use crate::registry::{Rules, SelectableField};
use k8s_openapi::api::core::v1::Pod;

/// Rules of Pods.
pub struct PodRules;

impl Rules for PodRules {
    type Object = Pod;
}

/// What field selectors may name.
pub const SELECTABLE: &[SelectableField] = &[];
