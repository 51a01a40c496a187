//! TLS of the API server: what it serves, whom it believes, and how it talks to nodes' agents.
//!
//! Certificates are renewed while running: a [`Rotating`] is asked at every handshake, so no listener restarts.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureScheme};
use tokio_util::sync::CancellationToken;

use super::{Ca, Identity, Leaf, PkiError, RENEW_BEFORE_S, client_leaf, now_s};

/// How often [`keep_fresh`] looks.
const CHECK_EVERY: Duration = Duration::from_secs(3600);

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

#[derive(Debug)]
struct Current {
    key: Arc<CertifiedKey>,
    not_after_s: i64,
}

/// A leaf certificate that is issued again before it ends. Both sides of TLS take it as their certificate.
#[derive(Debug)]
pub struct Rotating {
    ca: Arc<Ca>,
    leaf: Leaf,
    current: ArcSwap<Current>,
}

impl Rotating {
    /// Issues the first certificate.
    pub fn new(ca: &Arc<Ca>, leaf: Leaf) -> Result<Arc<Self>, PkiError> {
        let current = ArcSwap::from_pointee(certified(&ca.issue(&leaf)?)?);
        Ok(Arc::new(Self { ca: ca.clone(), leaf, current }))
    }

    /// Issues anew if less than [`RENEW_BEFORE_S`] is left at `now` (Unix seconds); whether it did.
    pub fn renew_if_due(&self, now: i64) -> Result<bool, PkiError> {
        if self.current.load().not_after_s - now > RENEW_BEFORE_S {
            return Ok(false);
        }
        let next = certified(&self.ca.issue_at(&self.leaf, now)?)?;
        self.current.store(Arc::new(next));
        Ok(true)
    }

    /// End of the certificate now in use, Unix seconds (for `apiserver_certificate_expiration_seconds` and the like).
    pub fn not_after_s(&self) -> i64 {
        self.current.load().not_after_s
    }
}

fn certified(identity: &Identity) -> Result<Current, PkiError> {
    let unreadable = |_| PkiError::Issue(rcgen::Error::CouldNotParseCertificate);
    let cert = CertificateDer::from_pem_slice(identity.cert_pem.as_bytes()).map_err(unreadable)?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).map_err(unreadable)?;
    let key = provider().key_provider.load_private_key(key)?;
    Ok(Current { key: Arc::new(CertifiedKey::new(vec![cert], key)), not_after_s: identity.not_after_s })
}

impl ResolvesServerCert for Rotating {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load().key.clone())
    }
}

impl ResolvesClientCert for Rotating {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load().key.clone())
    }
    fn has_certs(&self) -> bool {
        true
    }
}

/// The API server's side of TLS.
pub struct Serving {
    /// For the acceptor: TLS 1.2 and 1.3, ALPN `h2` and `http/1.1`, a client certificate is optional but must be ours.
    pub config: Arc<ServerConfig>,
    /// For [`keep_fresh`].
    pub certificate: Arc<Rotating>,
}

/// The API server's side of connections to nodes' agents.
pub struct KubeletClient {
    /// Presents `kube-apiserver-kubelet-client` in `system:masters`; believes certificates of our authority only.
    pub config: Arc<ClientConfig>,
    /// For [`keep_fresh`].
    pub certificate: Arc<Rotating>,
}

impl Ca {
    fn roots(&self) -> Result<Arc<RootCertStore>, PkiError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.cert_der.clone())?;
        Ok(Arc::new(roots))
    }

    /// TLS of a server with these DNS names and addresses (see [`super::apiserver_names`]).
    pub fn serving(self: &Arc<Self>, names: Vec<String>) -> Result<Serving, PkiError> {
        let leaf = Leaf { common_name: "kube-apiserver".into(), organizations: Vec::new(), names, server: true };
        let certificate = Rotating::new(self, leaf)?;
        let verifier =
            WebPkiClientVerifier::builder_with_provider(self.roots()?, provider()).allow_unauthenticated().build()?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(certificate.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Serving { config: Arc::new(config), certificate })
    }

    /// TLS towards nodes' agents (`pods/log`, `exec`, `attach`, `portforward`).
    pub fn kubelet_client(self: &Arc<Self>) -> Result<KubeletClient, PkiError> {
        let certificate = Rotating::new(self, client_leaf("kube-apiserver-kubelet-client", &["system:masters"]))?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots()?)
            .with_client_cert_resolver(certificate.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(KubeletClient { config: Arc::new(config), certificate })
    }
}

/// Renews certificates and token keys when they are due, until `shutdown`. A failure is logged and tried again next time.
pub async fn keep_fresh(
    certificates: Vec<Arc<Rotating>>,
    tokens: Arc<crate::auth::tokens::TokenIssuer>,
    shutdown: CancellationToken,
) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(CHECK_EVERY) => {}
        }
        let now = now_s();
        for certificate in &certificates {
            match certificate.renew_if_due(now) {
                Ok(false) => {}
                Ok(true) => tracing::info!(name = certificate.leaf.common_name, "certificate renewed"),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, name = certificate.leaf.common_name, "certificate cannot be renewed");
                }
            }
        }
        if let Err(error) = tokens.rotate_if_due(now) {
            tracing::error!(error = &error as &dyn std::error::Error, "token keys cannot be rotated");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::temp_dir;
    use super::*;
    use crate::auth::PeerCertificate;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConnection, ServerConnection};

    /// One handshake in memory; the server's view of the client's certificate.
    fn handshake(server: &Arc<ServerConfig>, client: Arc<ClientConfig>, name: &str) -> Result<Option<Vec<u8>>, String> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(client, name).unwrap();
        let mut server = ServerConnection::new(server.clone()).unwrap();
        for _ in 0..10 {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            let mut read = wire.as_slice();
            while !read.is_empty() {
                server.read_tls(&mut read).unwrap();
                server.process_new_packets().map_err(|e| format!("server: {e}"))?;
            }
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            let mut read = wire.as_slice();
            while !read.is_empty() {
                client.read_tls(&mut read).unwrap();
                client.process_new_packets().map_err(|e| format!("client: {e}"))?;
            }
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        Ok(server.peer_certificates().map(|c| c[0].to_vec()))
    }

    fn client(trust: &Arc<Ca>, identity: Option<Arc<Rotating>>) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(trust.roots().unwrap());
        Arc::new(match identity {
            Some(identity) => builder.with_client_cert_resolver(identity),
            None => builder.with_no_client_auth(),
        })
    }

    #[test]
    fn client_certificates_are_optional_but_must_be_ours() {
        let (dir, other_dir) = (temp_dir(), temp_dir());
        let (ca, other) = (Ca::load_or_create(&dir).unwrap(), Ca::load_or_create(&other_dir).unwrap());
        let serving = ca.serving(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
        assert_eq!(handshake(&serving.config, client(&ca, None), "localhost").unwrap(), None);
        let ours = Rotating::new(&ca, client_leaf("alice", &["devs"])).unwrap();
        let der = handshake(&serving.config, client(&ca, Some(ours)), "127.0.0.1").unwrap().unwrap();
        let peer = PeerCertificate::from_der(&der).unwrap();
        assert_eq!(peer.user().name, "alice");
        assert_eq!(peer.user().groups, ["devs", "system:authenticated"]);
        let foreign = Rotating::new(&other, client_leaf("kubernetes-admin", &["system:masters"])).unwrap();
        assert!(handshake(&serving.config, client(&ca, Some(foreign)), "localhost").unwrap_err().starts_with("server"));
        let server_cert = Leaf {
            common_name: "kubernetes-admin".into(),
            organizations: vec!["system:masters".into()],
            names: vec!["localhost".into()],
            server: true,
        };
        let server_cert = Rotating::new(&ca, server_cert).unwrap();
        assert!(handshake(&serving.config, client(&ca, Some(server_cert)), "localhost").is_err(), "wrong key usage");
        assert!(handshake(&serving.config, client(&ca, None), "elsewhere").unwrap_err().starts_with("client"));
        assert!(handshake(&serving.config, client(&other, None), "localhost").is_err());
        for d in [dir, other_dir] {
            std::fs::remove_dir_all(d).unwrap();
        }
    }

    #[test]
    fn certificates_are_renewed_while_serving() {
        let dir = temp_dir();
        let ca = Ca::load_or_create(&dir).unwrap();
        let serving = ca.serving(vec!["localhost".into()]).unwrap();
        let before = serving.certificate.current.load_full();
        let now = now_s();
        assert!(!serving.certificate.renew_if_due(now).unwrap());
        let due = before.not_after_s - RENEW_BEFORE_S;
        assert!(serving.certificate.renew_if_due(due).unwrap());
        assert!(serving.certificate.not_after_s() > before.not_after_s);
        assert_ne!(serving.certificate.current.load().key.cert, before.key.cert);
        assert!(!serving.certificate.renew_if_due(due).unwrap());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_agents_certificate_is_good_for_the_api_servers_client() {
        let dir = temp_dir();
        let ca = Ca::load_or_create(&dir).unwrap();
        let agent = ca.issue_node_serving("n1", &["192.0.2.7".into()]).unwrap();
        let key = certified(&agent).unwrap().key;
        let verifier = WebPkiClientVerifier::builder_with_provider(ca.roots().unwrap(), provider()).build().unwrap();
        let server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)));
        let der = handshake(&Arc::new(server), ca.kubelet_client().unwrap().config, "192.0.2.7").unwrap().unwrap();
        assert!(PeerCertificate::from_der(&der).unwrap().user().in_group("system:masters"));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
