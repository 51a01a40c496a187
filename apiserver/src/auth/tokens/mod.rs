//! Service account tokens (JWT, ES256): issue and verify.
//!
//! A verified token says who signed it and for whom; whether its subjects still exist is [`live`]'s question and asked on
//! every request. Nothing here reads `jwk`, `jku`, `x5c` or any other key a token brings along, and `alg` is pinned.

mod keys;
pub mod live;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use arc_swap::ArcSwap;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Header, Validation};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use self::keys::KeySet;
use super::pki::{PkiError, now_s};
use crate::user::UserInfo;

/// Default issuer and audience, as upstream's installers choose it.
pub const DEFAULT_ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Shortest lifetime that may be asked for (`TokenRequestSpec.expirationSeconds`).
pub const MIN_LIFETIME_S: i64 = 600;
/// Lifetime if none is asked for.
pub const DEFAULT_LIFETIME_S: i64 = 3600;
/// Longest lifetime that is granted; longer requests are shortened, as with `--service-account-max-token-expiration`.
pub const MAX_LIFETIME_S: i64 = 365 * 24 * 3600;
/// Clocks may differ by this much.
pub(crate) const LEEWAY_S: i64 = 10;
/// No token of ours is larger.
const MAX_TOKEN_BYTES: usize = 8 << 10;
/// Verified tokens that are remembered.
const MAX_VERIFIED: usize = 4096;
/// An unknown key id makes the key files be read again at most this often.
const RELOAD_EVERY_S: i64 = 10;

/// Why a token was refused; for the log, the client only learns that it is unauthorized.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Larger than any of ours.
    #[error("token is too large")]
    TooLarge,
    /// Not a JWT, or not one that we would sign.
    #[error("token is malformed: {0}")]
    Malformed(String),
    /// Signed with a key that is not (or no longer) ours.
    #[error("token key is unknown")]
    UnknownKey,
    /// Tampered with.
    #[error("token signature does not match")]
    Signature,
    /// From another issuer.
    #[error("token is from another issuer")]
    Issuer,
    /// Over.
    #[error("token has expired")]
    Expired,
    /// Not yet valid.
    #[error("token is not valid yet")]
    NotYet,
    /// Meant for somebody else.
    #[error("token is not meant for this audience")]
    Audience,
    /// Account, pod, secret or node is gone or another one by now.
    #[error("{0} of the token is gone")]
    Gone(&'static str),
}

/// Name and UID of what a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// `metadata.name`
    pub name: String,
    /// `metadata.uid`; may be empty in a request.
    #[serde(default)]
    pub uid: String,
}

/// The private claims, `kubernetes.io`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// Namespace of account, pod and secret.
    pub namespace: String,
    /// Node of the pod, or the node that the token is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Bound>,
    /// Pod that the token is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Bound>,
    /// Secret that the token is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Bound>,
    /// The account.
    pub serviceaccount: Bound,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

#[derive(Serialize, Deserialize)]
struct Claims {
    aud: Audiences,
    exp: i64,
    iat: i64,
    iss: String,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Subject,
    nbf: i64,
    sub: String,
}

/// A token whose signature and times are right.
#[derive(Debug)]
pub struct Verified {
    /// Name, groups and extra as upstream's `ServiceAccountInfo` makes them.
    pub user: Arc<UserInfo>,
    /// What it is bound to.
    pub subject: Subject,
    /// For whom it is.
    pub audiences: Vec<String>,
    /// Unix seconds.
    pub expires_s: i64,
    pub(crate) pod_seen: parking_lot::Mutex<live::PodSeen>,
}

impl Verified {
    /// Those of `wanted` that the token is for.
    pub fn matching_audiences(&self, wanted: &[String]) -> Vec<String> {
        wanted.iter().filter(|w| self.audiences.contains(w)).cloned().collect()
    }
}

/// Signs and verifies service account tokens. Shared by all requests.
pub struct TokenIssuer {
    dir: PathBuf,
    issuer: String,
    audiences: Vec<String>,
    keys: ArcSwap<KeySet>,
    validation: Validation,
    verified: RwLock<HashMap<[u8; 32], Arc<Verified>>>,
    reloaded_s: AtomicI64,
}

impl TokenIssuer {
    /// Loads `sa-*.key` in `pki_dir` or makes the first one. `issuer` is also the audience of the API itself.
    pub fn open(pki_dir: &Path, issuer: &str) -> Result<Self, PkiError> {
        let keys = KeySet::open(pki_dir, now_s())?;
        let mut validation = Validation::new(Algorithm::ES256);
        validation.leeway = LEEWAY_S.unsigned_abs();
        validation.validate_nbf = true;
        // Audiences are compared after the cache, because a TokenReview may ask for others than ours.
        validation.validate_aud = false;
        validation.set_issuer(&[issuer]);
        validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud", "sub"]);
        Ok(Self {
            dir: pki_dir.to_owned(),
            issuer: issuer.to_owned(),
            audiences: vec![issuer.to_owned()],
            keys: ArcSwap::from_pointee(keys),
            validation,
            verified: RwLock::default(),
            reloaded_s: AtomicI64::new(0),
        })
    }

    /// Audiences under which the API itself is addressed.
    pub fn api_audiences(&self) -> &[String] {
        &self.audiences
    }

    /// Signs a token for `subject`; the token and its end in Unix seconds. `lifetime_s` is cut to [`MAX_LIFETIME_S`].
    pub fn issue(&self, subject: Subject, audiences: &[String], lifetime_s: i64) -> Result<(String, i64), PkiError> {
        self.issue_at(subject, audiences, lifetime_s, now_s())
    }

    fn issue_at(
        &self,
        subject: Subject,
        audiences: &[String],
        lifetime_s: i64,
        now: i64,
    ) -> Result<(String, i64), PkiError> {
        let keys = self.keys.load();
        let Some(key) = keys.signer(now) else {
            return Err(PkiError::Damaged { path: self.dir.clone(), detail: "it holds no token key".into() });
        };
        let exp = now.saturating_add(lifetime_s.min(MAX_LIFETIME_S));
        let claims = Claims {
            aud: Audiences::Many(audiences.to_vec()),
            exp,
            iat: now,
            iss: self.issuer.clone(),
            jti: uuid::Uuid::new_v4().to_string(),
            sub: format!("system:serviceaccount:{}:{}", subject.namespace, subject.serviceaccount.name),
            kubernetes: subject,
            nbf: now,
        };
        let mut header = Header::new(Algorithm::ES256);
        header.typ = None;
        header.kid = Some(key.kid.clone());
        let token = jsonwebtoken::encode(&header, &claims, &key.encoding).map_err(PkiError::TokenKey)?;
        Ok((token, exp))
    }

    /// Checks signature, issuer and times. Verified tokens are remembered until they expire.
    pub fn verify(&self, token: &str) -> Result<Arc<Verified>, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLarge);
        }
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let now = now_s();
        let known = self.verified.read().get(&hash).cloned();
        match known {
            Some(v) if v.expires_s + LEEWAY_S >= now => Ok(v),
            Some(_) => Err(TokenError::Expired),
            None => {
                let verified = Arc::new(self.check(token, now)?);
                self.remember(hash, verified.clone(), now);
                Ok(verified)
            }
        }
    }

    fn check(&self, token: &str, now: i64) -> Result<Verified, TokenError> {
        let malformed = |e: jsonwebtoken::errors::Error| TokenError::Malformed(e.to_string());
        let header = jsonwebtoken::decode_header(token).map_err(malformed)?;
        if header.alg != Algorithm::ES256 {
            return Err(TokenError::Malformed("its algorithm is not ES256".into()));
        }
        // RFC 7515 §4.1.11: critical extensions that are not understood must be refused; none is understood.
        if header.crit.is_some() {
            return Err(TokenError::Malformed("it has critical extensions".into()));
        }
        let kid = header.kid.ok_or_else(|| TokenError::Malformed("it has no key id".into()))?;
        let key = match self.keys.load().find(&kid).cloned() {
            Some(key) => key,
            None => self.reload(now).and_then(|keys| keys.find(&kid).cloned()).ok_or(TokenError::UnknownKey)?,
        };
        let claims = jsonwebtoken::decode::<Claims>(token, &key.decoding, &self.validation)
            .map_err(|e| match e.kind() {
                ErrorKind::ExpiredSignature => TokenError::Expired,
                ErrorKind::ImmatureSignature => TokenError::NotYet,
                ErrorKind::InvalidSignature => TokenError::Signature,
                ErrorKind::InvalidIssuer => TokenError::Issuer,
                _ => malformed(e),
            })?
            .claims;
        verified(claims)
    }

    /// Another process that shares the directory may have made a key; hostile key ids must not make us read files all day.
    fn reload(&self, now: i64) -> Option<Arc<KeySet>> {
        let last = self.reloaded_s.load(Ordering::Relaxed);
        if now - last < RELOAD_EVERY_S
            || self.reloaded_s.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_err()
        {
            return None;
        }
        match KeySet::open(&self.dir, now) {
            Ok(keys) => {
                let keys = Arc::new(keys);
                self.keys.store(keys.clone());
                Some(keys)
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "token keys cannot be read again");
                None
            }
        }
    }

    fn remember(&self, hash: [u8; 32], verified: Arc<Verified>, now: i64) {
        let mut all = self.verified.write();
        if all.len() >= MAX_VERIFIED {
            all.retain(|_, v| v.expires_s + LEEWAY_S >= now);
        }
        if all.len() >= MAX_VERIFIED {
            // Which ones go does not matter: a forgotten token is merely verified again.
            let mut n = 0;
            all.retain(|_, _| {
                n += 1;
                n % 2 == 0
            });
        }
        all.insert(hash, verified);
    }

    /// Makes the next key if it is due (see [`keys`]).
    pub fn rotate_if_due(&self, now: i64) -> Result<(), PkiError> {
        if self.keys.load().rotation_due(now) {
            self.keys.store(Arc::new(KeySet::open(&self.dir, now)?));
            tracing::info!("a new token key was made");
        }
        Ok(())
    }

    /// `/openid/v1/jwks`
    pub fn jwks(&self) -> Value {
        self.keys.load().jwks()
    }

    /// `/.well-known/openid-configuration`; `server_url` is where clients reach the API, e.g. `https://10.0.0.1:6443`.
    pub fn openid_configuration(&self, server_url: &str) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("{}/openid/v1/jwks", server_url.trim_end_matches('/')),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }
}

fn verified(claims: Claims) -> Result<Verified, TokenError> {
    let subject = claims.kubernetes;
    let name = format!("system:serviceaccount:{}:{}", subject.namespace, subject.serviceaccount.name);
    if claims.sub != name {
        return Err(TokenError::Malformed("its subject is not its service account".into()));
    }
    let mut extra = BTreeMap::new();
    let mut add = |key: &str, value: &str| {
        extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
    };
    add("credential-id", &format!("JTI={}", claims.jti));
    if let Some(pod) = &subject.pod {
        add("pod-name", &pod.name);
        add("pod-uid", &pod.uid);
    }
    if let Some(node) = &subject.node {
        add("node-name", &node.name);
        if !node.uid.is_empty() {
            add("node-uid", &node.uid);
        }
    }
    let user = UserInfo {
        name,
        uid: subject.serviceaccount.uid.clone(),
        groups: vec![
            "system:serviceaccounts".into(),
            format!("system:serviceaccounts:{}", subject.namespace),
            "system:authenticated".into(),
        ],
        extra,
    };
    let audiences = match claims.aud {
        Audiences::One(one) => vec![one],
        Audiences::Many(many) => many,
    };
    let pod_seen = parking_lot::Mutex::default();
    Ok(Verified { user: Arc::new(user), subject, audiences, expires_s: claims.exp, pod_seen })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use jsonwebtoken::EncodingKey;

    pub(crate) fn issuer() -> (TokenIssuer, PathBuf) {
        let dir = std::env::temp_dir().join(format!("tokens-{}", uuid::Uuid::new_v4()));
        (TokenIssuer::open(&dir, DEFAULT_ISSUER).unwrap(), dir)
    }

    pub(crate) fn subject() -> Subject {
        Subject {
            namespace: "web".into(),
            node: None,
            pod: Some(Bound { name: "p".into(), uid: "pod-uid".into() }),
            secret: None,
            serviceaccount: Bound { name: "default".into(), uid: "sa-uid".into() },
        }
    }

    fn aud() -> Vec<String> {
        vec![DEFAULT_ISSUER.into()]
    }

    fn b64(value: &Value) -> String {
        URL_SAFE_NO_PAD.encode(value.to_string())
    }

    fn good_claims(now: i64) -> Value {
        json!({
            "aud": [DEFAULT_ISSUER], "exp": now + 600, "iat": now, "nbf": now, "iss": DEFAULT_ISSUER, "jti": "j",
            "sub": "system:serviceaccount:web:default",
            "kubernetes.io": {"namespace": "web", "serviceaccount": {"name": "default", "uid": "u"}},
        })
    }

    fn sign(header: &Header, claims: &Value, key: &EncodingKey) -> String {
        jsonwebtoken::encode(header, claims, key).unwrap()
    }

    #[test]
    fn issued_tokens_verify_and_name_the_account() {
        let (tokens, dir) = issuer();
        let (token, expires) = tokens.issue(subject(), &aud(), 600).unwrap();
        for _ in 0..2 {
            let verified = tokens.verify(&token).unwrap();
            assert_eq!(verified.user.name, "system:serviceaccount:web:default");
            assert_eq!(verified.user.uid, "sa-uid");
            assert_eq!(
                verified.user.groups,
                ["system:serviceaccounts", "system:serviceaccounts:web", "system:authenticated"]
            );
            assert_eq!(verified.user.extra["authentication.kubernetes.io/pod-name"], ["p"]);
            assert_eq!(verified.expires_s, expires);
            assert_eq!(verified.matching_audiences(&["x".into()]), Vec::<String>::new());
        }
        assert!(Arc::ptr_eq(&tokens.verify(&token).unwrap(), &tokens.verify(&token).unwrap()), "remembered");
        let long = tokens.issue(subject(), &aud(), i64::MAX).unwrap();
        assert!(long.1 <= now_s() + MAX_LIFETIME_S);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn forged_and_stale_tokens_are_refused() {
        let (tokens, dir) = issuer();
        let now = now_s();
        let keys = tokens.keys.load_full();
        let key = keys.signer(now).unwrap();
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(key.kid.clone());
        let good = sign(&header, &good_claims(now), &key.encoding);
        assert!(tokens.verify(&good).is_ok());
        let with = |field: &str, value: Value| {
            let mut claims = good_claims(now);
            claims[field] = value;
            sign(&header, &claims, &key.encoding)
        };
        let without = |field: &str| {
            let mut claims = good_claims(now);
            claims.as_object_mut().unwrap().remove(field);
            sign(&header, &claims, &key.encoding)
        };
        let check = |what: &str, token: &str, expected: fn(&TokenError) -> bool| {
            let error = tokens.verify(token).map(|_| ()).unwrap_err();
            assert!(expected(&error), "{what}: {error:?}");
        };
        let malformed: fn(&TokenError) -> bool = |e| matches!(e, TokenError::Malformed(_));

        for garbage in ["", "a", "a.b", "a.b.c", "....", "\u{0}", "e30.e30.e30", "eyJhbGciOiJFUzI1NiJ9.e30."] {
            check(garbage, garbage, malformed);
        }
        check("oversized", &"a".repeat(MAX_TOKEN_BYTES + 1), |e| *e == TokenError::TooLarge);
        check("expired", &with("exp", json!(now - 3600)), |e| *e == TokenError::Expired);
        check("not yet", &with("nbf", json!(now + 3600)), |e| *e == TokenError::NotYet);
        check("string exp", &with("exp", json!("9999999999")), malformed);
        check("other issuer", &with("iss", json!("https://evil.example")), |e| *e == TokenError::Issuer);
        check("other subject", &with("sub", json!("system:serviceaccount:kube-system:admin")), malformed);
        for field in ["exp", "nbf", "iss", "aud", "sub", "kubernetes.io"] {
            check(field, &without(field), malformed);
        }

        let parts: Vec<&str> = good.split('.').collect();
        let mut other = good_claims(now);
        other["kubernetes.io"]["namespace"] = json!("kube-system");
        other["sub"] = json!("system:serviceaccount:kube-system:default");
        check("tampered", &format!("{}.{}.{}", parts[0], b64(&other), parts[2]), |e| *e == TokenError::Signature);
        check("stripped", &format!("{}.{}.", parts[0], parts[1]), |e| *e == TokenError::Signature);
        let none = json!({"alg": "none", "kid": key.kid});
        check("alg none", &format!("{}.{}.", b64(&none), parts[1]), malformed);
        let mut hs = Header::new(Algorithm::HS256);
        hs.kid = Some(key.kid.clone());
        let public_pem = {
            let file = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).find(|p| p.extension().is_some());
            rcgen::KeyPair::from_pem(&std::fs::read_to_string(file.unwrap()).unwrap()).unwrap().public_key_pem()
        };
        let confused = sign(&hs, &good_claims(now), &EncodingKey::from_secret(public_pem.as_bytes()));
        check("HS256 with the public key", &confused, malformed);

        let foreign = rcgen::KeyPair::generate().unwrap();
        let foreign_key = EncodingKey::from_ec_der(foreign.serialized_der());
        check("foreign key, our kid", &sign(&header, &good_claims(now), &foreign_key), |e| *e == TokenError::Signature);
        let mut unknown = header.clone();
        unknown.kid = Some("nobody".into());
        check("unknown kid", &sign(&unknown, &good_claims(now), &key.encoding), |e| *e == TokenError::UnknownKey);
        unknown.kid = None;
        check("no kid", &sign(&unknown, &good_claims(now), &key.encoding), malformed);
        let mut crit = header.clone();
        crit.crit = Some(vec!["b64".into()]);
        check("critical extension", &sign(&crit, &good_claims(now), &key.encoding), malformed);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_remembered_token_still_expires() {
        let (tokens, dir) = issuer();
        let (token, _) = tokens.issue_at(subject(), &aud(), 600, now_s() - 600).unwrap();
        let verified = tokens.verify(&token).unwrap();
        let old = Verified {
            user: verified.user.clone(),
            subject: subject(),
            audiences: aud(),
            expires_s: now_s() - LEEWAY_S - 1,
            pod_seen: parking_lot::Mutex::default(),
        };
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        tokens.verified.write().insert(hash, Arc::new(old));
        assert_eq!(tokens.verify(&token).map(|_| ()), Err(TokenError::Expired));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn memory_of_verified_tokens_is_bounded() {
        let (tokens, dir) = issuer();
        let (token, _) = tokens.issue(subject(), &aud(), 600).unwrap();
        let verified = tokens.verify(&token).unwrap();
        for i in 0..(3 * MAX_VERIFIED as u64) {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&i.to_le_bytes());
            tokens.remember(hash, verified.clone(), now_s());
        }
        assert!(tokens.verified.read().len() <= MAX_VERIFIED);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn another_processes_key_is_picked_up() {
        let (tokens, dir) = issuer();
        let later = now_s() + keys::ROTATE_EVERY_S;
        let other = TokenIssuer::open(&dir, DEFAULT_ISSUER).unwrap();
        other.rotate_if_due(later).unwrap();
        assert_eq!(other.jwks()["keys"].as_array().unwrap().len(), 2);
        let (token, _) = other.issue_at(subject(), &aud(), 600, later + keys::OVERLAP_S).unwrap();
        // Signed in the future: unknown key would be the answer without the reload.
        assert_eq!(tokens.verify(&token).map(|_| ()), Err(TokenError::NotYet));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn discovery_documents_are_complete() {
        let (tokens, dir) = issuer();
        let jwks = tokens.jwks();
        assert_eq!(jwks["keys"][0]["alg"], "ES256");
        assert_eq!(jwks["keys"][0]["x"].as_str().unwrap().len(), 43);
        let config = tokens.openid_configuration("https://10.0.0.1:6443/");
        assert_eq!(config["jwks_uri"], "https://10.0.0.1:6443/openid/v1/jwks");
        assert_eq!(config["issuer"], DEFAULT_ISSUER);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
