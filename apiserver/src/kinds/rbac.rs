//! RBAC.

use crate::registry::Rules;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};

/// Rules of Roles.
pub struct RoleRules;

impl Rules for RoleRules {
    type Object = Role;
}
/// Rules of ClusterRoles.
pub struct ClusterRoleRules;

impl Rules for ClusterRoleRules {
    type Object = ClusterRole;
}
/// Rules of RoleBindings.
pub struct RoleBindingRules;

impl Rules for RoleBindingRules {
    type Object = RoleBinding;
}
/// Rules of ClusterRoleBindings.
pub struct ClusterRoleBindingRules;

impl Rules for ClusterRoleBindingRules {
    type Object = ClusterRoleBinding;
}
