//! The cluster's certificate authority: `ca.crt` and `ca.key` in the data directory, and what it issues.
//!
//! Leaf certificates live in memory and are renewed while running ([`tls::Rotating`]); only the authority itself, the
//! token keys and kubeconfigs are files. There is no revocation: access ends with the certificate or with the RBAC binding.

mod files;
mod kubeconfig;
mod tls;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

pub(crate) use files::{io, lock, private_dir, read, write};
pub use kubeconfig::Kubeconfig;
pub use tls::{KubeletClient, Rotating, Serving, keep_fresh};

const DAY_S: i64 = 24 * 3600;
/// Validity of the authority.
const CA_LIFETIME_S: i64 = 3650 * DAY_S;
/// Validity of everything it issues.
const LEAF_LIFETIME_S: i64 = 365 * DAY_S;
/// A leaf with less than this left is issued again.
pub const RENEW_BEFORE_S: i64 = 30 * DAY_S;
/// Certificates start a little in the past, for machines whose clocks differ.
const BACKDATE_S: i64 = 5 * 60;
/// No correct clock shows an earlier time (2025-01-01): this program did not exist.
const EARLIEST_PLAUSIBLE_S: i64 = 1_735_689_600;

/// Why keys or certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The file system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A file is there but of no use.
    #[error(
        "{} is damaged: {detail}; restore it from a backup, or move it away to have a new one made \
         (a new authority or token key makes every kubeconfig or token issued so far useless)", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The clock and the certificate disagree.
    #[error("{} is valid from {from} to {to}, but this machine's clock says {now}: set the clock, or renew the certificate",
        path.display())]
    Clock {
        /// The file.
        path: PathBuf,
        /// Start of validity.
        from: Timestamp,
        /// End of validity.
        to: Timestamp,
        /// The clock.
        now: Timestamp,
    },
    /// The clock cannot be right.
    #[error("this machine's clock says {0}, which cannot be: set the clock before certificates are made")]
    ImplausibleClock(Timestamp),
    /// A name that cannot be in a certificate.
    #[error("{0:?} cannot be a name in a certificate")]
    Name(String),
    /// More groups than a certificate of ours can carry.
    #[error("a certificate can carry one group, not several ({0}): bind the user itself instead")]
    Groups(String),
    /// The certificate library refused.
    #[error("certificate cannot be made")]
    Issue(#[from] rcgen::Error),
    /// The TLS library refused.
    #[error("TLS cannot be configured")]
    Tls(#[from] rustls::Error),
    /// The TLS library refused our authority as root for client certificates.
    #[error("client certificates cannot be verified")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// A token key cannot be used.
    #[error("token key cannot be used")]
    TokenKey(#[source] jsonwebtoken::errors::Error),
}

pub(crate) fn now_s() -> i64 {
    scaleup_api::time::now().0.as_second()
}

pub(crate) fn timestamp(unix_s: i64) -> Timestamp {
    Timestamp::from_second(unix_s).unwrap_or(Timestamp::MAX)
}

/// A certificate and its key.
#[derive(Clone)]
pub struct Identity {
    /// Certificate, PEM.
    pub cert_pem: String,
    /// Key (PKCS #8), PEM.
    pub key_pem: String,
    /// End of validity, Unix seconds.
    pub not_after_s: i64,
}

/// What a leaf certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Subject CN: the user name of a client.
    pub common_name: String,
    /// Subject O: the groups of a client.
    pub organizations: Vec<String>,
    /// DNS names and addresses of a server.
    pub names: Vec<String>,
    /// Whether it is for a server; otherwise for a client.
    pub server: bool,
}

/// The certificate authority.
pub struct Ca {
    cert_pem: String,
    cert_der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    not_before_s: i64,
    not_after_s: i64,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").field("not_after_s", &self.not_after_s).finish_non_exhaustive()
    }
}

impl Ca {
    /// Loads `ca.crt` and `ca.key` in `dir`, or makes them. Several processes may do this at once: one makes, all load.
    pub fn load_or_create(dir: &Path) -> Result<Arc<Self>, PkiError> {
        Self::load_or_create_at(dir, now_s()).map(Arc::new)
    }

    fn load_or_create_at(dir: &Path, now: i64) -> Result<Self, PkiError> {
        private_dir(dir)?;
        let _lock = lock(dir)?;
        let (cert_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        let key = match read(&key_path, true)? {
            Some(pem) => KeyPair::from_pem(&pem).map_err(|e| damaged(&key_path, e))?,
            None if cert_path.exists() => {
                return Err(damaged(&key_path, format!("it is missing, but {} exists", cert_path.display())));
            }
            None => {
                let key = plausible(now).and_then(|()| Ok(KeyPair::generate()?))?;
                write(&key_path, &key.serialize_pem())?;
                key
            }
        };
        // The key is written first: a crash between the two leaves a key without certificate, which is made up for here.
        let cert_pem = match read(&cert_path, false)? {
            Some(pem) => pem,
            None => {
                plausible(now)?;
                let pem = ca_params(now)?.self_signed(&key)?.pem();
                write(&cert_path, &pem)?;
                pem
            }
        };
        Self::assemble(&cert_path, cert_pem, key, now)
    }

    fn assemble(cert_path: &Path, cert_pem: String, key: KeyPair, now: i64) -> Result<Self, PkiError> {
        let cert_der =
            CertificateDer::from_pem_slice(cert_pem.as_bytes()).map_err(|e| damaged(cert_path, e))?.into_owned();
        let (not_before_s, not_after_s) = {
            let (_, cert) = X509Certificate::from_der(&cert_der).map_err(|e| damaged(cert_path, e))?;
            if cert.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
                return Err(damaged(cert_path, "it does not belong to ca.key"));
            }
            (cert.validity().not_before.timestamp(), cert.validity().not_after.timestamp())
        };
        if now < not_before_s || now > not_after_s {
            let (from, to, now) = (timestamp(not_before_s), timestamp(not_after_s), timestamp(now));
            return Err(PkiError::Clock { path: cert_path.to_owned(), from, to, now });
        }
        let issuer = Issuer::from_ca_cert_der(&cert_der, key)?;
        Ok(Self { cert_pem, cert_der, issuer, not_before_s, not_after_s })
    }

    /// The authority's certificate, PEM; what `kube-root-ca.crt` holds.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// Issues `leaf`, valid for a year from `now` (but not beyond the authority).
    pub fn issue(&self, leaf: &Leaf) -> Result<Identity, PkiError> {
        self.issue_at(leaf, now_s())
    }

    fn issue_at(&self, leaf: &Leaf, now: i64) -> Result<Identity, PkiError> {
        let not_after_s = (now + LEAF_LIFETIME_S).min(self.not_after_s);
        let mut params = CertificateParams::default();
        set_validity(&mut params, (now - BACKDATE_S).max(self.not_before_s), not_after_s);
        params.distinguished_name = subject(&leaf.common_name, &leaf.organizations)?;
        params.subject_alt_names = leaf.names.iter().map(|n| alt_name(n)).collect::<Result<_, _>>()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![if leaf.server { ExtendedKeyUsagePurpose::ServerAuth } else { ExtendedKeyUsagePurpose::ClientAuth }];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Identity { cert_pem: cert.pem(), key_pem: key.serialize_pem(), not_after_s })
    }

    /// A client certificate: CN is the user, O the groups.
    pub fn issue_client(&self, user: &str, groups: &[&str]) -> Result<Identity, PkiError> {
        self.issue(&client_leaf(user, groups))
    }

    /// The serving certificate of a node's agent: its names and addresses as in `Node.status.addresses`.
    pub fn issue_node_serving(&self, node: &str, names: &[String]) -> Result<Identity, PkiError> {
        let mut all = names.to_vec();
        all.push(node.to_owned());
        all.sort();
        all.dedup();
        self.issue(&Leaf {
            common_name: format!("system:node:{node}"),
            organizations: vec!["system:nodes".into()],
            names: all,
            server: true,
        })
    }
}

/// A client's leaf.
pub(crate) fn client_leaf(user: &str, groups: &[&str]) -> Leaf {
    let organizations = groups.iter().map(|g| (*g).to_owned()).collect();
    Leaf { common_name: user.into(), organizations, names: Vec::new(), server: false }
}

/// Names of the API server's certificate: the in-cluster ones, this host's, and what is configured.
pub fn apiserver_names(hostname: &str, advertise: IpAddr, first_service_ip: IpAddr, extra: &[String]) -> Vec<String> {
    let mut names: Vec<String> = [
        "localhost",
        "127.0.0.1",
        "::1",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ]
    .map(str::to_owned)
    .into();
    names.extend([advertise.to_string(), first_service_ip.to_string()]);
    names.extend(extra.iter().cloned());
    if scaleup_api::names::dns1123_subdomain(hostname).is_ok() {
        names.push(hostname.to_owned());
    }
    names.sort();
    names.dedup();
    names
}

/// This machine's host name.
pub fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().to_lowercase()
}

fn damaged(path: &Path, detail: impl std::fmt::Display) -> PkiError {
    PkiError::Damaged { path: path.to_owned(), detail: detail.to_string() }
}

fn plausible(now: i64) -> Result<(), PkiError> {
    if now < EARLIEST_PLAUSIBLE_S { Err(PkiError::ImplausibleClock(timestamp(now))) } else { Ok(()) }
}

fn ca_params(now: i64) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    set_validity(&mut params, now - BACKDATE_S, now + CA_LIFETIME_S);
    params.distinguished_name = subject("scaleup-ca", &[])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    Ok(params)
}

fn set_validity(params: &mut CertificateParams, from_s: i64, to_s: i64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(from_s.max(0).unsigned_abs());
    params.not_after = epoch + Duration::from_secs(to_s.max(0).unsigned_abs());
}

fn subject(common_name: &str, organizations: &[String]) -> Result<DistinguishedName, PkiError> {
    let mut name = DistinguishedName::new();
    match organizations {
        [] => {}
        [one] => name.push(DnType::OrganizationName, one.as_str()),
        // rcgen keeps one value per attribute type; dropping groups silently would be worse than refusing.
        many => return Err(PkiError::Groups(many.join(", "))),
    }
    name.push(DnType::CommonName, common_name);
    Ok(name)
}

fn alt_name(name: &str) -> Result<SanType, PkiError> {
    match name.parse::<IpAddr>() {
        Ok(ip) => Ok(SanType::IpAddress(ip)),
        Err(_) => name.try_into().map(SanType::DnsName).map_err(|_| PkiError::Name(name.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn temp_dir() -> PathBuf {
        std::env::temp_dir().join(format!("pki-{}", uuid::Uuid::new_v4()))
    }

    #[test]
    fn authority_is_made_once_and_loaded_again() {
        let dir = temp_dir();
        let first = Ca::load_or_create(&dir).unwrap();
        let second = Ca::load_or_create(&dir).unwrap();
        assert_eq!(first.cert_pem(), second.cert_pem());
        use std::os::unix::fs::PermissionsExt;
        for file in ["ca.crt", "ca.key"] {
            assert_eq!(std::fs::metadata(dir.join(file)).unwrap().permissions().mode() & 0o777, 0o600, "{file}");
        }
        assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn many_processes_agree_on_one_authority() {
        let dir = temp_dir();
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let dir = dir.clone();
                std::thread::spawn(move || Ca::load_or_create(&dir).unwrap().cert_pem().to_owned())
            })
            .collect();
        let all: std::collections::HashSet<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        assert_eq!(all.len(), 1);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_crash_between_key_and_certificate_is_made_up_for() {
        let dir = temp_dir();
        drop(Ca::load_or_create(&dir).unwrap());
        std::fs::remove_file(dir.join("ca.crt")).unwrap();
        assert!(Ca::load_or_create(&dir).is_ok());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn damage_is_reported_with_what_to_do() {
        fn check(file: &str, text: Option<&str>, expected: &str) {
            let dir = temp_dir();
            drop(Ca::load_or_create(&dir).unwrap());
            match text {
                Some(text) => std::fs::write(dir.join(file), text).unwrap(),
                None => std::fs::remove_file(dir.join(file)).unwrap(),
            }
            let error = Ca::load_or_create(&dir).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("restore it from a backup"), "{error}");
            std::fs::remove_dir_all(dir).unwrap();
        }
        check("ca.key", Some("garbage"), "ca.key is damaged");
        check("ca.key", Some(""), "ca.key is damaged");
        check("ca.key", None, "ca.key is damaged: it is missing");
        check("ca.crt", Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "ca.crt is damaged");
        let other = KeyPair::generate().unwrap().serialize_pem();
        check("ca.key", Some(&other), "does not belong to ca.key");
    }

    #[test]
    fn a_wrong_clock_is_named() {
        let dir = temp_dir();
        let error = Ca::load_or_create_at(&dir, 1000).unwrap_err();
        assert!(matches!(error, PkiError::ImplausibleClock(_)), "{error}");
        assert!(!dir.join("ca.key").exists(), "nothing is made under a wrong clock");
        let now = now_s();
        drop(Ca::load_or_create_at(&dir, now).unwrap());
        for wrong in [now - 10 * DAY_S, now + CA_LIFETIME_S + DAY_S] {
            let error = Ca::load_or_create_at(&dir, wrong).unwrap_err().to_string();
            assert!(error.contains("this machine's clock says"), "{error}");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn leaves_end_with_the_authority() {
        let dir = temp_dir();
        let ca = Ca::load_or_create(&dir).unwrap();
        let leaf = client_leaf("alice", &["devs"]);
        let now = now_s();
        assert_eq!(ca.issue_at(&leaf, now).unwrap().not_after_s, now + LEAF_LIFETIME_S);
        let late = ca.not_after_s - DAY_S;
        assert_eq!(ca.issue_at(&leaf, late).unwrap().not_after_s, ca.not_after_s);
        assert!(matches!(ca.issue_client("a", &["x", "y"]), Err(PkiError::Groups(_))));
        assert!(matches!(ca.issue_node_serving("n1", &["bad\u{e9}name".into()]), Err(PkiError::Name(_))));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn serving_names_cover_the_cluster_and_the_host() {
        let names =
            apiserver_names("Host_bad", [10, 0, 0, 1].into(), [10, 96, 0, 1].into(), &["api.example.com".into()]);
        for expected in ["localhost", "::1", "10.96.0.1", "10.0.0.1", "api.example.com", "kubernetes.default.svc"] {
            assert!(names.iter().any(|n| n == expected), "{expected}");
        }
        assert!(!names.iter().any(|n| n.contains("bad")));
    }
}
