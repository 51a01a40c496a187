//! Namespace.

use crate::registry::{Rules, SelectableField};
use k8s_openapi::api::core::v1::Namespace;

/// Rules of Namespaces.
pub struct NamespaceRules;

impl Rules for NamespaceRules {
    type Object = Namespace;
}

/// What field selectors may name.
pub const SELECTABLE: &[SelectableField] = &[];
