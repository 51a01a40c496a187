//! The kinds: what each one defaults, refuses and lets field selectors name.
//!
//! One file per kind (or family), each a unit struct implementing [`crate::registry::Rules`]. The specification is
//! upstream Kubernetes 1.33: `pkg/apis/*/v1/defaults.go` and `pkg/apis/*/validation/validation.go`, and for the Gateway API the
//! schemas and rules of its CRDs. Rules are pure.
//! What needs the store (address allocation, binding, eviction) is a hook or a subresource handler in a file of its own.
//! No HTTP routing, no authorization and no `metadata` bookkeeping is here: the generic handler does those.

pub mod binding;
pub mod configmap;
pub mod custom;
pub mod deployment;
pub mod endpoints;
pub mod endpointslice;
pub mod event;
pub mod eviction;
mod field;
mod gateway;
#[cfg(test)]
mod http_tests;
pub mod ingress;
pub mod lease;
pub mod namespace;
pub mod node;
pub mod plugin;
pub mod pod;
mod pod_gates;
mod pod_status;
pub mod pod_template;
mod posted;
pub mod priorityclass;
pub mod rbac;
pub mod replicaset;
pub mod review;
pub mod secret;
pub mod service;
mod service_alloc;
mod service_claims;
mod service_prepare;
pub mod serviceaccount;
mod traffic;
mod workload;
