//! Identity: who asks, and what they may do.

pub mod authentication;
pub mod node;
pub mod pki;
pub mod policy;
pub mod rbac;
pub mod reviews;
pub mod token_request;
pub mod tokens;

pub use authentication::{Authenticator, InProcessUser, PeerCertificate};

/// Value of the `WWW-Authenticate` header that goes with every 401.
pub const WWW_AUTHENTICATE: &str = "Bearer realm=\"scaleup\"";
