//! Node.

use crate::registry::{Rules, SelectableField};
use k8s_openapi::api::core::v1::Node;

/// Rules of Nodes.
pub struct NodeRules;

impl Rules for NodeRules {
    type Object = Node;
}

/// What field selectors may name.
pub const SELECTABLE: &[SelectableField] = &[];
