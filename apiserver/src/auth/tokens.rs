//! Service account tokens: keys, issue, verify.

use std::path::Path;

use serde_json::{Value, json};

use super::pki::PkiError;

/// Signs and verifies service account tokens.
pub struct TokenIssuer {}

impl TokenIssuer {
    /// Loads `sa-*.key` in `pki_dir` or makes the first one. `issuer` is also the default audience.
    pub fn open(pki_dir: &Path, issuer: &str) -> Result<Self, PkiError> {
        let _ = (pki_dir, issuer);
        Ok(Self {})
    }
    /// `/openid/v1/jwks`
    pub fn jwks(&self) -> Value {
        json!({"keys": []})
    }
    /// `/.well-known/openid-configuration`
    pub fn openid_configuration(&self) -> Value {
        json!({})
    }
}
