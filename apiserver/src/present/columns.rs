//! Printer columns of the built-in kinds.

use crate::registry::Column;

pub const DEFAULT: &[Column] = &[];
pub const PODS: &[Column] = &[];
pub const DEPLOYMENTS: &[Column] = &[];
pub const REPLICASETS: &[Column] = &[];
pub const SERVICES: &[Column] = &[];
pub const ENDPOINTS: &[Column] = &[];
pub const ENDPOINTSLICES: &[Column] = &[];
pub const CONFIGMAPS: &[Column] = &[];
pub const SECRETS: &[Column] = &[];
pub const SERVICEACCOUNTS: &[Column] = &[];
pub const EVENTS: &[Column] = &[];
pub const NAMESPACES: &[Column] = &[];
pub const NODES: &[Column] = &[];
pub const LEASES: &[Column] = &[];
pub const PRIORITYCLASSES: &[Column] = &[];
pub const ROLES: &[Column] = &[];
pub const CLUSTERROLES: &[Column] = &[];
pub const ROLEBINDINGS: &[Column] = &[];
pub const CLUSTERROLEBINDINGS: &[Column] = &[];
