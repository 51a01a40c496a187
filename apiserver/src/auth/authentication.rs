//! Who asks: client certificates, bearer tokens, in-process roles, impersonation.

use std::sync::Arc;

use crate::cache::Reader;
use crate::error::ApiError;
use crate::user::UserInfo;

use super::rbac::Authorizer;
use super::tokens::TokenIssuer;

/// Request extension of a role in the same process; it cannot come from the network.
#[derive(Clone)]
pub struct InProcessUser(pub Arc<UserInfo>);

/// A verified client certificate, parsed once per connection. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PeerCertificate {
    user: Arc<UserInfo>,
}

impl PeerCertificate {
    /// Parses the leaf that rustls has verified (`peer_certificates()[0]`).
    pub fn from_der(der: &[u8]) -> Result<Self, ApiError> {
        let _ = der;
        Err(ApiError::unauthorized())
    }
}

/// Finds the user of a request.
pub struct Authenticator {
    _authorizer: Arc<Authorizer>,
    _tokens: Arc<TokenIssuer>,
    _caches: Arc<dyn Reader>,
}

impl Authenticator {
    /// Over the cache (live checks of token subjects) and the authorizer (impersonation).
    pub fn new(caches: Arc<dyn Reader>, authorizer: Arc<Authorizer>, tokens: Arc<TokenIssuer>) -> Self {
        Self { _authorizer: authorizer, _tokens: tokens, _caches: caches }
    }
    /// The user: no credentials is anonymous, bad ones are 401.
    pub fn authenticate(
        &self,
        parts: &http::request::Parts,
        peer: Option<&PeerCertificate>,
    ) -> Result<Arc<UserInfo>, ApiError> {
        if let Some(user) = parts.extensions.get::<InProcessUser>() {
            return Ok(user.0.clone());
        }
        Ok(peer.map_or_else(|| Arc::new(UserInfo::anonymous()), |p| p.user.clone()))
    }
}
