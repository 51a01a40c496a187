//! Secret.

use crate::registry::{Rules, SelectableField};
use k8s_openapi::api::core::v1::Secret;

/// Rules of Secrets.
pub struct SecretRules;

impl Rules for SecretRules {
    type Object = Secret;
}

/// What field selectors may name.
pub const SELECTABLE: &[SelectableField] = &[];
