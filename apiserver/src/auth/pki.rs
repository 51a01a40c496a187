//! The cluster's certificate authority.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

/// Why keys or certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Certificate library.
    #[error("certificate could not be made")]
    Rcgen(#[from] rcgen::Error),
}

/// The certificate authority.
pub struct Ca {}

/// Certificate chain and key as PEM.
pub struct Identity {
    /// Certificate, PEM.
    pub cert_pem: String,
    /// Key (PKCS#8), PEM.
    pub key_pem: String,
}

/// Serving TLS that can be renewed while running.
pub struct Serving {
    /// For the acceptor; ALPN h2 and http/1.1, client certificates optional.
    pub config: Arc<rustls::ServerConfig>,
}

impl Ca {
    /// Loads `ca.crt` and `ca.key` in `dir` or creates them.
    pub fn load_or_create(dir: &Path) -> Result<Self, PkiError> {
        let _ = dir;
        Ok(Self {})
    }
    /// The CA certificate, PEM.
    pub fn cert_pem(&self) -> &str {
        ""
    }
    /// Server configuration for the API.
    pub fn serving(&self, names: &[String], ips: &[IpAddr]) -> Result<Serving, PkiError> {
        let _ = (names, ips);
        Err(PkiError::Rcgen(rcgen::Error::CouldNotParseCertificate))
    }
    /// A client certificate: CN `user`, O `groups`.
    pub fn issue_client(&self, user: &str, groups: &[&str]) -> Result<Identity, PkiError> {
        let _ = (user, groups);
        Err(PkiError::Rcgen(rcgen::Error::CouldNotParseCertificate))
    }
}
