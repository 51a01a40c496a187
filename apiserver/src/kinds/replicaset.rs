//! ReplicaSet.

use crate::registry::{Rules, SelectableField};
use k8s_openapi::api::apps::v1::ReplicaSet;

/// Rules of ReplicaSets.
pub struct ReplicaSetRules;

impl Rules for ReplicaSetRules {
    type Object = ReplicaSet;
}

/// What field selectors may name.
pub const SELECTABLE: &[SelectableField] = &[];
