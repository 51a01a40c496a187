//! The Gateway API: defaults and validation as the schemas and rules of its CRDs (v1.4) have them.
//!
//! Texts that go into requests, responses or the load balancer's tables are checked a little further than upstream does: header
//! values and new paths have no control characters, and a header filter names a header once.

mod class;
mod filters;
mod grpc;
mod http;
mod l4;
mod policy;
mod refs;
mod route;
#[cfg(test)]
mod tests;
pub(super) mod text;

pub(super) use policy::validate_targets;
