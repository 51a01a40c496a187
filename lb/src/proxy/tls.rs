//! TLS settings: of sites, by their certificates, and towards endpoints, by their policies.
//!
//! TLS 1.2 and 1.3 with the provider's safe suites. Sessions are resumed by tickets under keys that this process makes and rotates, and
//! that all sites share, so a new certificate or route costs no resumption. Nothing here does I/O but the handshake with an endpoint and
//! reading the system's roots, once.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, NoServerSessionStorage, ParsedCertificate, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, ClientConfig, ConfigBuilder, RootCertStore, ServerConfig, WantsVerifier};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::io::{Link, Shared};
use super::pool::ConnectError;
use super::verifier::{Believed, Verifier};
use crate::policy::UpstreamTls;
use crate::snapshot::routes::CertificatePlan;

/// What HTTP sites offer, best first.
pub(crate) const ALPN_HTTP: &[&[u8]] = &[ALPN_HTTP2, ALPN_HTTP1];
/// HTTP/2 alone.
pub(crate) const ALPN_HTTP2: &[u8] = b"h2";
/// HTTP/1.1 alone.
pub(crate) const ALPN_HTTP1: &[u8] = b"http/1.1";
/// TLS settings towards endpoints that a thread remembers; beyond, the oldest are made anew when needed.
const MAX_CONNECTORS: usize = 1024;
/// Where systems keep the certificates they trust.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];

fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(aws_lc_rs::default_provider()))
}

/// The process's ticket keys; `None` if there is no randomness to make them from.
fn ticketer() -> Option<Arc<dyn ProducesTickets>> {
    static TICKETER: OnceLock<Option<Arc<dyn ProducesTickets>>> = OnceLock::new();
    TICKETER.get_or_init(|| aws_lc_rs::Ticketer::new().ok()).clone()
}

/// Settings of a site. Certificates that cannot be used are left out; without any, handshakes fail with an alert. `None` if the provider
/// has no usable suites.
pub(crate) fn server_config(certificates: &[Arc<CertificatePlan>], alpn: &[&[u8]]) -> Option<Arc<ServerConfig>> {
    let keys = certificates.iter().filter_map(|plan| {
        let key = certified(plan);
        if key.is_none() {
            tracing::warn!(secret = plan.secret, "the certificate cannot be used");
        }
        key
    });
    let resolver = Arc::new(Certificates(keys.collect()));
    let builder = ServerConfig::builder_with_provider(provider().clone()).with_safe_default_protocol_versions().ok()?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(resolver);
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    if let Some(ticketer) = ticketer() {
        config.ticketer = ticketer;
    }
    Some(Arc::new(config))
}

/// A usable certificate. One that another site (or this one, in the snapshot before) uses is not parsed again: a listener is compiled on
/// every change of its routes, and may have thousands.
fn certified(plan: &Arc<CertificatePlan>) -> Option<Arc<CertifiedKey>> {
    static KNOWN: OnceLock<Mutex<Known>> = OnceLock::new();
    let hash = Known::hash(plan);
    let known = KNOWN.get_or_init(Mutex::default);
    let found = known.lock().get(hash, plan);
    let key = match found {
        Some(key) => key,
        None => parse(plan)?,
    };
    // Also when it was there: whose plan it was may soon be gone.
    known.lock().insert(hash, plan, &key);
    Some(key)
}

fn parse(plan: &CertificatePlan) -> Option<Arc<CertifiedKey>> {
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(&plan.chain_pem).collect::<Result<_, _>>().ok()?;
    let key = PrivateKeyDer::from_pem_slice(&plan.key_pem).ok()?;
    CertifiedKey::from_der(chain, key, provider()).ok().map(Arc::new)
}

/// Certificates that were parsed, as long as somebody has their plans.
#[derive(Default)]
struct Known {
    keys: HashMap<u64, (Weak<CertificatePlan>, Arc<CertifiedKey>)>,
    /// Entries at which those that nobody has any more are dropped.
    sweep_at: usize,
}

impl Known {
    fn hash(plan: &CertificatePlan) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        (&plan.chain_pem, &plan.key_pem).hash(&mut hasher);
        hasher.finish()
    }

    fn get(&self, hash: u64, plan: &CertificatePlan) -> Option<Arc<CertifiedKey>> {
        let (known, key) = self.keys.get(&hash)?;
        let known = known.upgrade()?;
        (known.chain_pem == plan.chain_pem && known.key_pem == plan.key_pem).then(|| key.clone())
    }

    fn insert(&mut self, hash: u64, plan: &Arc<CertificatePlan>, key: &Arc<CertifiedKey>) {
        if self.keys.len() >= self.sweep_at {
            self.keys.retain(|_, (plan, _)| plan.strong_count() > 0);
            self.sweep_at = (self.keys.len() * 2).max(64);
        }
        self.keys.insert(hash, (Arc::downgrade(plan), key.clone()));
    }
}

/// The certificates of a site, in order of preference.
#[derive(Debug)]
struct Certificates(Vec<Arc<CertifiedKey>>);

/// How well a certificate fits a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    No,
    Wildcard,
    Exact,
}

impl Certificates {
    /// The best for `name`: one that has it, then one that covers it by a wildcard, then the first; of equals the first.
    fn best(&self, name: Option<&str>, usable: impl Fn(&CertifiedKey) -> bool) -> Option<Arc<CertifiedKey>> {
        let mut best: Option<(Fit, &Arc<CertifiedKey>)> = None;
        for key in self.0.iter().filter(|key| usable(key)) {
            let fit = name.map_or(Fit::No, |name| fit(key, name));
            if best.is_none_or(|(known, _)| fit > known) {
                best = Some((fit, key));
            }
        }
        best.map(|(_, key)| key.clone())
    }
}

fn fit(key: &CertifiedKey, name: &str) -> Fit {
    let Some(parsed) = key.cert.first().and_then(|leaf| ParsedCertificate::try_from(leaf).ok()) else { return Fit::No };
    let covers = |name: &str| {
        ServerName::try_from(name).is_ok_and(|name| rustls::client::verify_server_name(&parsed, &name).is_ok())
    };
    if !covers(name) {
        return Fit::No;
    }
    // Only a wildcard also covers a name that nobody has.
    match name.split_once('.') {
        Some((_, parent)) if covers(&format!("not-a-name-of-anybody.{parent}")) => Fit::Wildcard,
        _ => Fit::Exact,
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if let [only] = &*self.0 {
            return Some(only.clone());
        }
        let schemes = hello.signature_schemes();
        let known = self.best(hello.server_name(), |key| key.key.choose_scheme(schemes).is_some());
        known.or_else(|| self.best(hello.server_name(), |_| true))
    }
}

/// TLS settings towards endpoints.
pub(crate) struct Connector {
    /// Unique in its thread, not 0: connections opened with other settings are not used.
    pub id: u64,
    /// For bytes of any protocol: without ALPN.
    bytes: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Connector {
    fn new(id: u64, policy: &UpstreamTls) -> Option<Self> {
        let bytes = client_config(policy, &[])?;
        let speaking = |protocol: &[u8]| {
            let mut config = (*bytes).clone();
            config.alpn_protocols = vec![protocol.to_vec()];
            Arc::new(config)
        };
        let (http1, http2) = (speaking(ALPN_HTTP1), speaking(ALPN_HTTP2));
        let name = ServerName::try_from(policy.hostname.to_string()).ok()?;
        Some(Self { id, bytes, http1, http2, name })
    }

    /// The handshake over a new connection, for HTTP/1.1.
    pub async fn secure(&self, stream: TcpStream) -> std::io::Result<Link> {
        self.link(&self.http1, stream).await
    }

    /// Likewise for bytes of any protocol.
    pub async fn secure_bytes(&self, stream: TcpStream) -> std::io::Result<Link> {
        self.link(&self.bytes, stream).await
    }

    async fn link(&self, config: &Arc<ClientConfig>, stream: TcpStream) -> std::io::Result<Link> {
        let stream = TlsConnector::from(config.clone()).connect(self.name.clone(), stream).await?;
        Ok(Link::Tls(Box::new(Shared::new(stream))))
    }

    /// Likewise for HTTP/2, which the endpoint must agree to (RFC 9113 §3.2).
    pub async fn secure_http2(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, ConnectError> {
        let connecting = TlsConnector::from(self.http2.clone()).connect(self.name.clone(), stream);
        let stream = connecting.await.map_err(|error| {
            let tls = error.get_ref().and_then(|error| error.downcast_ref());
            match tls {
                Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => ConnectError::Alpn,
                _ => ConnectError::Tls(error),
            }
        })?;
        let agreed = stream.get_ref().1.alpn_protocol() == Some(ALPN_HTTP2);
        if agreed { Ok(stream) } else { Err(ConnectError::Alpn) }
    }
}

/// What became of a policy.
type Made = (Arc<UpstreamTls>, Option<Rc<Connector>>);

/// A thread's [`Connector`]s by policy.
#[derive(Default)]
pub(crate) struct Connectors {
    known: RefCell<Vec<Made>>,
    next_id: std::cell::Cell<u64>,
}

impl Connectors {
    /// The connector for endpoints under a policy; `None` if its certificates or name cannot be used.
    pub fn get(&self, policy: &Arc<UpstreamTls>) -> Option<Rc<Connector>> {
        let mut known = self.known.borrow_mut();
        // The same policy is usually the same object, too.
        let found = known.iter().find(|(key, _)| Arc::ptr_eq(key, policy));
        if let Some((_, connector)) = found.or_else(|| known.iter().find(|(key, _)| key == policy)) {
            return connector.clone();
        }
        self.next_id.set(self.next_id.get() + 1);
        let made = Connector::new(self.next_id.get(), policy).map(Rc::new);
        if known.len() >= MAX_CONNECTORS {
            known.remove(0);
        }
        known.push((policy.clone(), made.clone()));
        made
    }
}

/// Settings towards the endpoints of a policy that offer `alpn`; `None` if they cannot be used.
pub(crate) fn client_config(policy: &UpstreamTls, alpn: &[&[u8]]) -> Option<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(provider().clone()).with_safe_default_protocol_versions().ok()?;
    let believing = |builder: ConfigBuilder<ClientConfig, WantsVerifier>, believed| {
        let verifier = Verifier { believed, provider: provider().clone() };
        builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
    };
    let builder = if policy.insecure {
        believing(builder, Believed::Anybody)
    } else if policy.alt_names.is_empty() {
        builder.with_root_certificates(roots(policy.ca_pem.as_deref())?)
    } else {
        let (names, roots) = (policy.alt_names.clone(), roots(policy.ca_pem.as_deref())?);
        believing(builder, Believed::AnyOf { names, roots })
    };
    let mut config = match &policy.client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            let chain = CertificateDer::pem_slice_iter(&client.chain_pem).collect::<Result<_, _>>().ok()?;
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(&client.key_pem).ok()?).ok()?
        }
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Some(Arc::new(config))
}

fn roots(ca_pem: Option<&[u8]>) -> Option<Arc<RootCertStore>> {
    static SYSTEM: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let read = |pem: &[u8]| {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).filter_map(Result::ok));
        (!store.is_empty()).then(|| Arc::new(store))
    };
    match ca_pem {
        Some(pem) => read(pem),
        None => Some(SYSTEM.get_or_init(|| {
            let found = SYSTEM_ROOTS.iter().filter_map(|path| std::fs::read(path).ok()).find_map(|pem| read(&pem));
            found.unwrap_or_else(|| Arc::new(RootCertStore::empty()))
        }))
        .cloned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(names: &[&str]) -> Arc<CertificatePlan> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        Arc::new(CertificatePlan {
            secret: "d/s".to_owned(),
            chain_pem: made.cert.pem().into_bytes(),
            key_pem: made.signing_key.serialize_pem().into_bytes(),
        })
    }

    #[test]
    fn the_best_certificate_is_chosen() {
        let plans = [plan(&["first.example"]), plan(&["*.w.example"]), plan(&["a.example", "b.example"])];
        let keys = Certificates(plans.iter().filter_map(certified).collect());
        for (name, expected) in [
            (Some("a.example"), 2),
            (Some("c.w.example"), 1),
            (Some("other"), 0),
            (None, 0),
            (Some("first.example"), 0),
        ] {
            let best = keys.best(name, |_| true).expect("a certificate");
            assert!(Arc::ptr_eq(&best, &keys.0[expected]), "{name:?}");
        }
    }

    #[test]
    fn broken_certificates_are_left_out() {
        let mut broken = (*plan(&["a"])).clone();
        broken.key_pem = b"nonsense".to_vec();
        assert!(certified(&Arc::new(broken)).is_none());
        // The key of another certificate.
        let mixed = CertificatePlan { key_pem: plan(&["b"]).key_pem.clone(), ..(*plan(&["a"])).clone() };
        assert!(certified(&Arc::new(mixed)).is_none());
    }

    #[test]
    fn a_certificate_is_parsed_once_while_it_is_in_use() {
        let first = plan(&["a.example"]);
        let key = certified(&first).expect("a certificate");
        let same = Arc::new((*first).clone());
        assert!(Arc::ptr_eq(&key, &certified(&same).expect("a certificate")));
        let mut known = Known::default();
        known.insert(1, &first, &key);
        assert!(known.get(1, &first).is_some() && known.get(1, &plan(&["a.example"])).is_none());
        drop((first, same));
        assert!(known.get(1, &plan(&["a.example"])).is_none());
        known.sweep_at = 0;
        known.insert(2, &plan(&["b"]), &key);
        assert_eq!(known.keys.len(), 1, "what nobody has is forgotten");
    }

    #[test]
    fn connectors_are_kept_per_policy() {
        let policy = |name: &str, insecure| {
            Arc::new(UpstreamTls {
                hostname: name.into(),
                ca_pem: Some(plan(&["ca"]).chain_pem.clone()),
                insecure,
                ..UpstreamTls::default()
            })
        };
        let connectors = Connectors::default();
        let first = policy("a", false);
        let id = |policy: &Arc<UpstreamTls>| connectors.get(policy).map(|connector| connector.id);
        assert_eq!(id(&first), Some(1));
        assert_eq!(id(&Arc::new((*first).clone())), Some(1), "the same by value");
        assert_eq!(id(&policy("a", true)), Some(2));
        assert_eq!(id(&policy("not a name", true)), None);
        let no_roots = UpstreamTls { ca_pem: Some(b"nonsense".to_vec()), ..(*first).clone() };
        assert_eq!(id(&Arc::new(no_roots)), None);
    }
}
