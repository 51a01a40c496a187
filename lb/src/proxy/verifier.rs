//! Which certificates of endpoints are believed where a policy says something else than "one for the name that is asked for": one for any
//! name of a list (BackendTLSPolicy `subjectAltNames`), or anybody's.
//!
//! That the endpoint has its certificate's key is checked in either case, and for the list its chain and its validity, too.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::policy::AltName;

/// See the module.
#[derive(Debug)]
pub(super) struct Verifier {
    pub believed: Believed,
    pub provider: Arc<CryptoProvider>,
}

/// Whose certificates are believed.
#[derive(Debug)]
pub(super) enum Believed {
    /// Anybody's.
    Anybody,
    /// Those of `roots` that have one of `names`.
    AnyOf { names: Arc<[AltName]>, roots: Arc<RootCertStore> },
}

fn has_any(names: &[AltName], der: &CertificateDer<'_>, parsed: &ParsedCertificate<'_>) -> bool {
    let Ok(leaf) = webpki::EndEntityCert::try_from(der) else { return false };
    names.iter().any(|name| match name {
        AltName::Hostname(name) => match name.strip_prefix("*.") {
            None => ServerName::try_from(&**name).is_ok_and(|name| verify_server_name(parsed, &name).is_ok()),
            Some(domain) => leaf.valid_dns_names().any(|has| is_under(has, domain)),
        },
        AltName::Uri(uri) => leaf.valid_uri_names().any(|has| *has == **uri),
    })
}

/// Whether a name (or wildcard) of a certificate is one label below `domain`.
fn is_under(name: &str, domain: &str) -> bool {
    name.split_once('.').is_some_and(|(_, parent)| parent.eq_ignore_ascii_case(domain))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Believed::AnyOf { names, roots } = &self.believed else { return Ok(ServerCertVerified::assertion()) };
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)?;
        if !has_any(names, end_entity, &parsed) {
            return Err(Error::InvalidCertificate(CertificateError::NotValidForName));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, SanType};
    use rustls::crypto::aws_lc_rs;

    /// A certificate with these names that signs itself.
    fn certificate(dns: &[&str], uri: Option<&str>) -> CertificateDer<'static> {
        let names: Vec<String> = dns.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        if let Some(uri) = uri {
            params.subject_alt_names.push(SanType::URI(uri.try_into().expect("a URI")));
        }
        params.self_signed(&rcgen::KeyPair::generate().expect("a key")).expect("a certificate").der().clone()
    }

    fn is_believed(certificate: &CertificateDer<'_>, trusted: &CertificateDer<'_>, names: &[AltName]) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.clone().into_owned()).expect("a root");
        let provider = Arc::new(aws_lc_rs::default_provider());
        let believed = Believed::AnyOf { names: names.into(), roots: Arc::new(roots) };
        let verifier = Verifier { believed, provider };
        let asked = ServerName::try_from("asked.example").expect("a name");
        verifier.verify_server_cert(certificate, &[], &asked, &[], UnixTime::now()).is_ok()
    }

    fn host(name: &str) -> AltName {
        AltName::Hostname(name.into())
    }

    fn uri(name: &str) -> AltName {
        AltName::Uri(name.into())
    }

    #[test]
    fn any_of_the_names_will_do_and_the_name_asked_for_does_not_count() {
        let known = certificate(&["a.example", "*.w.example"], Some("spiffe://cluster/ns/shop/sa/web"));
        let check =
            |names: &[AltName], expected: bool| assert_eq!(is_believed(&known, &known, names), expected, "{names:?}");
        check(&[host("a.example")], true);
        check(&[host("b.example"), host("A.Example")], true);
        check(&[host("asked.example")], false);
        check(&[host("x.w.example")], true);
        check(&[host("x.y.w.example")], false);
        check(&[host("*.w.example")], true);
        check(&[host("*.example")], true);
        check(&[host("*.a.example")], false);
        check(&[uri("spiffe://cluster/ns/shop/sa/web")], true);
        check(&[uri("spiffe://cluster/ns/shop/sa/other"), uri("spiffe://cluster/ns/shop/sa/we")], false);
        check(&[host("spiffe://cluster/ns/shop/sa/web"), uri("a.example")], false);
        let named = certificate(&["asked.example"], None);
        assert!(!is_believed(&named, &named, &[host("other.example")]), "the name asked for is none of the list");
    }

    #[test]
    fn the_chain_is_checked_all_the_same() {
        let (known, other) = (certificate(&["a.example"], None), certificate(&["a.example"], None));
        assert!(!is_believed(&known, &other, &[host("a.example")]));
    }
}
