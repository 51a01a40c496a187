//! Certificates of `kubernetes.io/tls` Secrets and bundles of authorities, checked before anything serves them: they parse, and the key is
//! the leaf's. Whether clients will trust them is not asked.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::routes::CertificatePlan;

/// Type of the Secrets that are read.
pub(crate) const TLS_SECRET_TYPE: &str = "kubernetes.io/tls";
/// Certificates in a chain.
const MAX_CHAIN: usize = 16;
/// Certificates in a bundle of authorities.
const MAX_BUNDLE: usize = 1024;

/// What is kept of a Secret.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StoredSecret {
    /// The newest certificate that was good.
    pub good: Option<Arc<CertificatePlan>>,
    /// What is wrong with the Secret as it is now.
    pub problem: Option<String>,
}

/// Takes over a Secret. A broken one keeps the certificate that it had before: a failed rotation must not take a site down.
pub(crate) fn store(secret: &Secret, before: Option<&StoredSecret>) -> StoredSecret {
    match check(secret) {
        Ok(plan) => {
            let known = before.and_then(|before| before.good.as_ref()).filter(|known| ***known == plan).cloned();
            StoredSecret { good: Some(known.unwrap_or_else(|| Arc::new(plan))), problem: None }
        }
        Err(problem) => {
            StoredSecret { good: before.and_then(|before| before.good.clone()), problem: Some(problem.to_owned()) }
        }
    }
}

fn check(secret: &Secret) -> Result<CertificatePlan, &'static str> {
    if secret.type_.as_deref() != Some(TLS_SECRET_TYPE) {
        return Err("it is not of type kubernetes.io/tls");
    }
    let field = |name: &str| secret.data.as_ref().and_then(|data| data.get(name)).map(|bytes| bytes.0.as_slice());
    let chain_pem = field("tls.crt").ok_or("it has no tls.crt")?;
    let key_pem = field("tls.key").ok_or("it has no tls.key")?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain_pem)
        .take(MAX_CHAIN + 1)
        .collect::<Result<_, _>>()
        .map_err(|_| "its tls.crt is not PEM")?;
    if chain.is_empty() || chain.len() > MAX_CHAIN {
        return Err("its tls.crt does not hold between 1 and 16 certificates");
    }
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|_| "its tls.key is not a private key in PEM")?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    rustls::sign::CertifiedKey::from_der(chain, key, &provider)
        .map_err(|_| "its tls.crt is not a certificate of its tls.key")?;
    let metadata = &secret.metadata;
    let name = format!(
        "{}/{}",
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default()
    );
    Ok(CertificatePlan { secret: name, chain_pem: chain_pem.to_vec(), key_pem: key_pem.to_vec() })
}

/// `ca.crt` of a ConfigMap, if it has one.
pub(crate) fn bundle(map: &ConfigMap) -> Option<Arc<[u8]>> {
    map.data.as_ref()?.get("ca.crt").map(|text| text.as_bytes().into())
}

/// Whether a bundle holds certificates, and nothing that is not one.
pub(crate) fn is_bundle(pem: &[u8]) -> bool {
    let mut count = 0;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem).take(MAX_BUNDLE + 1) {
        count += 1;
        if !certificate.is_ok_and(|certificate| roots.add(certificate).is_ok()) {
            return false;
        }
    }
    (1..=MAX_BUNDLE).contains(&count)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    /// A Secret with a certificate of its own for `host`.
    pub(crate) fn secret(namespace: &str, name: &str, host: &str) -> Secret {
        let made = rcgen::generate_simple_self_signed([host.to_owned()]).expect("a certificate");
        pair(namespace, name, made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn pair(namespace: &str, name: &str, crt: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Secret {
        let mut secret = Secret { type_: Some(TLS_SECRET_TYPE.to_owned()), ..Secret::default() };
        secret.metadata.namespace = Some(namespace.to_owned());
        secret.metadata.name = Some(name.to_owned());
        let data = [("tls.crt".to_owned(), ByteString(crt.into())), ("tls.key".to_owned(), ByteString(key.into()))];
        secret.data = Some(data.into());
        secret
    }

    fn bytes(secret: &Secret, field: &str) -> Vec<u8> {
        secret.data.as_ref().expect("data")[field].0.clone()
    }

    #[test]
    fn certificates_are_checked_against_their_key() {
        let (a, b) = (secret("d", "a", "a.example"), secret("d", "b", "b.example"));
        assert!(check(&a).is_ok());
        #[track_caller]
        fn refused(secret: &Secret, expected: &str) {
            assert_eq!(check(secret).expect_err("refused"), expected);
        }
        refused(
            &pair("d", "x", bytes(&a, "tls.crt"), bytes(&b, "tls.key")),
            "its tls.crt is not a certificate of its tls.key",
        );
        refused(&pair("d", "x", "", bytes(&a, "tls.key")), "its tls.crt does not hold between 1 and 16 certificates");
        refused(&pair("d", "x", bytes(&a, "tls.crt"), "hello"), "its tls.key is not a private key in PEM");
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        refused(&pair("d", "x", garbage, bytes(&a, "tls.key")), "its tls.crt is not a certificate of its tls.key");
        let mut opaque = a.clone();
        opaque.type_ = Some("Opaque".to_owned());
        refused(&opaque, "it is not of type kubernetes.io/tls");
    }

    #[test]
    fn a_failed_rotation_keeps_the_old_certificate() {
        let first = store(&secret("d", "a", "a.example"), None);
        assert!(first.problem.is_none());
        let broken = store(&pair("d", "a", "x", "y"), Some(&first));
        assert_eq!(broken.good, first.good);
        assert!(broken.problem.is_some());
        let next = secret("d", "a", "a.example");
        let renewed = store(&next, Some(&broken));
        assert_eq!(renewed.good.expect("good").chain_pem, bytes(&next, "tls.crt"));
        assert!(store(&pair("d", "a", "x", "y"), None).good.is_none());
    }

    #[test]
    fn bundles_hold_certificates_only() {
        let pem = bytes(&secret("d", "a", "a.example"), "tls.crt");
        assert!(is_bundle(&pem));
        assert!(!is_bundle(b""));
        assert!(!is_bundle(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"));
    }
}
