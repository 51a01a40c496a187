//! Identity: who asks ([`authentication`]), and what they may do ([`rbac`], [`node`], [`lb`]).
//!
//! Certificates and keys are made in [`pki`] and [`tokens`]; the default roles are rows of [`policy`]. Nothing here writes
//! to the store, except [`rbac::aggregation`], and nothing here is asked twice for one request.

pub mod authentication;
pub mod impersonation;
pub mod lb;
pub mod node;
pub mod pki;
pub mod policy;
pub mod rbac;
pub mod reviews;
#[cfg(test)]
mod server_tests;
#[cfg(test)]
pub(crate) mod testing;
pub mod token_request;
pub mod tokens;

pub use authentication::{Authenticator, InProcessUser, PeerCertificate};

/// Value of the `WWW-Authenticate` header that goes with every 401 (RFC 6750 §3).
pub const WWW_AUTHENTICATE: &str = "Bearer realm=\"scaleup\"";
