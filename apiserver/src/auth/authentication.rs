//! Who asks: roles in this process, client certificates, bearer tokens; then impersonation.
//!
//! The first credential that is there decides: a bad one is 401, never a fall-back to a weaker identity. No credential at
//! all is `system:anonymous`, whom RBAC lets see health and version only. Nothing here decides what a user may do.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::header::{AUTHORIZATION, HeaderMap};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::impersonation;
use super::pki::now_s;
use super::rbac::Authorizer;
use super::tokens::{TokenError, TokenIssuer, Verified, live};
use crate::cache::Reader;
use crate::error::ApiError;
use crate::user::UserInfo;

/// Groups (O) read from one certificate; one with more is refused.
const MAX_GROUPS: usize = 64;

/// Request extension of a role in the same process; nothing from the network can insert it.
#[derive(Clone)]
pub struct InProcessUser(pub Arc<UserInfo>);

/// A verified client certificate, parsed once per connection. Cheap to clone; put it into the connection's extensions.
#[derive(Clone, Debug)]
pub struct PeerCertificate {
    user: Arc<UserInfo>,
    not_after_s: i64,
}

impl PeerCertificate {
    /// Parses the leaf that rustls has verified (`peer_certificates()[0]`): CN is the user, O are the groups. 401 if it
    /// names nobody.
    pub fn from_der(der: &[u8]) -> Result<Self, ApiError> {
        let (_, cert) = X509Certificate::from_der(der).map_err(|_| ApiError::unauthorized())?;
        let subject = cert.subject();
        let name = subject.iter_common_name().next().and_then(|cn| cn.as_str().ok()).unwrap_or_default();
        let groups: Result<Vec<String>, _> =
            subject.iter_organization().take(MAX_GROUPS + 1).map(|o| o.as_str().map(str::to_owned)).collect();
        let mut groups = groups.map_err(|_| ApiError::unauthorized())?;
        if name.is_empty() || groups.len() > MAX_GROUPS {
            return Err(ApiError::unauthorized());
        }
        groups.push("system:authenticated".into());
        let fingerprint: String = Sha256::digest(der).iter().map(|b| format!("{b:02x}")).collect();
        let id = ("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("X509SHA256={fingerprint}")]);
        let user = UserInfo { name: name.into(), uid: String::new(), groups, extra: BTreeMap::from([id]) };
        Ok(Self { user: Arc::new(user), not_after_s: cert.validity().not_after.timestamp() })
    }

    /// The user it names.
    pub fn user(&self) -> &Arc<UserInfo> {
        &self.user
    }
}

/// Finds the user of a request.
pub struct Authenticator {
    caches: Arc<dyn Reader>,
    authorizer: Arc<Authorizer>,
    tokens: Arc<TokenIssuer>,
}

impl Authenticator {
    /// Over the cache (live checks of token subjects) and the authorizer (impersonation).
    pub fn new(caches: Arc<dyn Reader>, authorizer: Arc<Authorizer>, tokens: Arc<TokenIssuer>) -> Self {
        Self { caches, authorizer, tokens }
    }

    /// The user on whose behalf the request acts: no credentials is anonymous, bad ones are 401, impersonation that RBAC
    /// does not allow is 403.
    pub fn authenticate(
        &self,
        parts: &http::request::Parts,
        peer: Option<&PeerCertificate>,
    ) -> Result<Arc<UserInfo>, ApiError> {
        let user = match parts.extensions.get::<InProcessUser>() {
            Some(user) => user.0.clone(),
            None => self.network_user(&parts.headers, peer)?,
        };
        impersonation::apply(&self.authorizer, user, &parts.headers)
    }

    fn network_user(&self, headers: &HeaderMap, peer: Option<&PeerCertificate>) -> Result<Arc<UserInfo>, ApiError> {
        if let Some(peer) = peer {
            // The handshake checked it, but connections live long.
            return if now_s() <= peer.not_after_s { Ok(peer.user.clone()) } else { Err(ApiError::unauthorized()) };
        }
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let (Some(value), more) = (values.next(), values.next()) else {
            return Ok(Arc::new(UserInfo::anonymous()));
        };
        let token = value.to_str().ok().and_then(bearer).filter(|_| more.is_none());
        let verified = token.ok_or_else(ApiError::unauthorized).and_then(|t| {
            self.verify(t, self.tokens.api_audiences()).map_err(|error| {
                tracing::debug!(error = &error as &dyn std::error::Error, "bearer token refused");
                ApiError::unauthorized()
            })
        })?;
        Ok(verified.user.clone())
    }

    /// Signature, times, audience (one of `audiences`) and that what the token is bound to still exists.
    pub fn verify(&self, token: &str, audiences: &[String]) -> Result<Arc<Verified>, TokenError> {
        let verified = self.tokens.verify(token)?;
        if !audiences.iter().any(|a| verified.audiences.contains(a)) {
            return Err(TokenError::Audience);
        }
        live::check(&verified, &*self.caches, now_s())?;
        Ok(verified)
    }
}

/// The token of `Bearer <token>`; the scheme is case-insensitive (RFC 7235 §2.1).
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.trim().split_once(' ')?;
    let token = token.trim_start();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && !token.contains(' ')).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::pki::Ca;
    use crate::auth::testing::MapReader;
    use crate::auth::tokens::tests::{issuer, subject};
    use http::Request;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    use serde_json::json;

    fn account(uid: &str) -> serde_json::Value {
        json!({"metadata": {"namespace": "web", "name": "default", "uid": uid}})
    }

    fn pod(uid: &str, deletion: Option<i64>) -> serde_json::Value {
        let mut pod = json!({"metadata": {"namespace": "web", "name": "p", "uid": uid}});
        if let Some(at) = deletion {
            pod["metadata"]["deletionTimestamp"] = json!(crate::auth::pki::timestamp(at).to_string());
        }
        pod
    }

    struct Rig {
        authenticator: Authenticator,
        reader: Arc<MapReader>,
        tokens: Arc<TokenIssuer>,
        dir: std::path::PathBuf,
    }

    fn rig() -> Rig {
        let (tokens, dir) = issuer();
        let tokens = Arc::new(tokens);
        let reader = MapReader::new(&[("", "serviceaccounts", account("sa-uid")), ("", "pods", pod("pod-uid", None))]);
        let authorizer = Arc::new(Authorizer::new(reader.clone()));
        Rig { authenticator: Authenticator::new(reader.clone(), authorizer, tokens.clone()), reader, tokens, dir }
    }

    impl Drop for Rig {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }

    impl Rig {
        fn ask(&self, headers: &[(&str, &str)], peer: Option<&PeerCertificate>) -> Result<Arc<UserInfo>, ApiError> {
            let mut request = Request::builder();
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            self.authenticator.authenticate(&request.body(()).unwrap().into_parts().0, peer)
        }
        fn token(&self) -> String {
            format!("Bearer {}", self.tokens.issue(subject(), self.tokens.api_audiences(), 600).unwrap().0)
        }
    }

    #[test]
    fn no_credentials_is_anonymous_and_bad_ones_are_refused() {
        let rig = rig();
        assert_eq!(*rig.ask(&[], None).unwrap(), UserInfo::anonymous());
        let token = rig.token();
        for bad in [
            "",
            "Bearer",
            "Bearer ",
            "Basic dXNlcjpwYXNz",
            "Bearer a b",
            "Bearer garbage",
            &token[7..],
            &format!("{token}x"),
            "Bearer \u{e9}",
        ] {
            let error = rig.ask(&[("authorization", bad)], None).unwrap_err();
            assert_eq!((error.code.as_u16(), error.reason), (401, "Unauthorized"), "{bad:?}");
        }
        let error = rig.ask(&[("authorization", &token), ("authorization", &token)], None).unwrap_err();
        assert_eq!(error.code.as_u16(), 401, "two credentials");
        let user = rig.ask(&[("authorization", &token.replace("Bearer", "bEARER"))], None).unwrap();
        assert_eq!(user.name, "system:serviceaccount:web:default");
    }

    #[test]
    fn tokens_die_with_what_they_are_bound_to() {
        let now = now_s();
        let check = |what: &str, change: &dyn Fn(&MapReader), ok: bool| {
            let rig = rig();
            let token = rig.token();
            assert!(rig.ask(&[("authorization", &token)], None).is_ok());
            change(&rig.reader);
            assert_eq!(rig.ask(&[("authorization", &token)], None).is_ok(), ok, "{what}");
        };
        check("account deleted", &|r| r.remove("", "serviceaccounts", "web", "default"), false);
        check("account made again", &|r| r.put("", "serviceaccounts", account("other")), false);
        check("account changed", &|r| r.put("", "serviceaccounts", account("sa-uid")), true);
        check("pod deleted", &|r| r.remove("", "pods", "web", "p"), false);
        check("pod made again", &|r| r.put("", "pods", pod("other", None)), false);
        check("pod terminating", &|r| r.put("", "pods", pod("pod-uid", Some(now + 30))), true);
        check("pod past its grace", &|r| r.put("", "pods", pod("pod-uid", Some(now - 60))), false);
    }

    #[test]
    fn audience_of_another_service_is_refused() {
        let rig = rig();
        let (token, _) = rig.tokens.issue(subject(), &["vault".into()], 600).unwrap();
        let error = rig.ask(&[("authorization", &format!("Bearer {token}"))], None).unwrap_err();
        assert_eq!(error.code.as_u16(), 401);
        assert!(rig.authenticator.verify(&token, &["vault".into()]).is_ok());
    }

    #[test]
    fn certificates_name_users_until_they_end() {
        let rig = rig();
        let ca = Ca::load_or_create(&rig.dir).unwrap();
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
        let peer = PeerCertificate::from_der(&der(&ca.issue_client("alice", &["devs"]).unwrap().cert_pem)).unwrap();
        let user = rig.ask(&[], Some(&peer)).unwrap();
        assert_eq!(
            (user.name.as_str(), user.groups.as_slice()),
            ("alice", &["devs".into(), "system:authenticated".into()][..])
        );
        let ended = PeerCertificate { not_after_s: now_s() - 1, ..peer };
        assert_eq!(rig.ask(&[], Some(&ended)).unwrap_err().code.as_u16(), 401);
        let nobody = ca.issue_client("", &["system:masters"]).unwrap();
        assert!(PeerCertificate::from_der(&der(&nobody.cert_pem)).is_err());
        assert!(PeerCertificate::from_der(b"\x30\x03\x02\x01\x01").is_err());
    }

    #[test]
    fn roles_in_this_process_need_no_credentials() {
        let rig = rig();
        let mut parts = Request::new(()).into_parts().0;
        parts.extensions.insert(InProcessUser(Arc::new(UserInfo::system("system:kube-scheduler", &[]))));
        assert_eq!(rig.authenticator.authenticate(&parts, None).unwrap().name, "system:kube-scheduler");
    }
}
