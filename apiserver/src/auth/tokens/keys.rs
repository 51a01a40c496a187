//! Token signing keys: files `sa-<created>.key` in the PKI directory, rotated with an overlap.
//!
//! The newest key signs once it is older than [`OVERLAP_S`], so that whoever caches the JWKS has seen it by then; older
//! keys verify until the last token they signed has expired, then their files go.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{DecodingKey, EncodingKey};
use rcgen::{KeyPair, PublicKeyData};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::MAX_LIFETIME_S;
use crate::auth::pki::{PkiError, io, lock, private_dir, read, write};

/// A new key is made when the newest is this old.
pub(crate) const ROTATE_EVERY_S: i64 = 90 * 24 * 3600;
/// A new key only verifies for this long before it signs (clients may cache the JWKS for an hour).
pub(crate) const OVERLAP_S: i64 = 3600;
/// More key files than rotation ever leaves: somebody else writes there.
const MAX_KEYS: usize = 64;
/// An uncompressed P-256 point: 0x04, x, y.
const POINT_BYTES: usize = 65;

/// One ES256 key.
pub(crate) struct Key {
    /// SHA-256 of the public key (SubjectPublicKeyInfo), base64url: upstream's key id.
    pub kid: String,
    /// Unix seconds, from the file name.
    pub created_s: i64,
    /// Signs.
    pub encoding: EncodingKey,
    /// Verifies.
    pub decoding: DecodingKey,
    x: String,
    y: String,
}

impl Key {
    fn parse(path: &Path, pem: &str, created_s: i64) -> Result<Self, PkiError> {
        let damaged = |detail: String| PkiError::Damaged { path: path.to_owned(), detail };
        let pair = KeyPair::from_pem(pem).map_err(|e| damaged(e.to_string()))?;
        let point = pair.public_key_raw();
        if !pair.is_compatible(&rcgen::PKCS_ECDSA_P256_SHA256) || point.len() != POINT_BYTES {
            return Err(damaged("it is not a P-256 key".into()));
        }
        Ok(Self {
            kid: URL_SAFE_NO_PAD.encode(Sha256::digest(pair.subject_public_key_info())),
            created_s,
            encoding: EncodingKey::from_ec_der(pair.serialized_der()),
            decoding: DecodingKey::from_ec_der(point),
            x: URL_SAFE_NO_PAD.encode(&point[1..33]),
            y: URL_SAFE_NO_PAD.encode(&point[33..]),
        })
    }

    fn jwk(&self) -> Value {
        json!({"use": "sig", "kty": "EC", "kid": self.kid, "crv": "P-256", "alg": "ES256", "x": self.x, "y": self.y})
    }
}

/// All keys, oldest first; never empty.
#[derive(Clone)]
pub(crate) struct KeySet {
    keys: Vec<Arc<Key>>,
}

impl KeySet {
    /// Loads the keys; makes the first one and, when due, the next one; forgets those that nothing is signed with any more.
    pub fn open(dir: &Path, now: i64) -> Result<Self, PkiError> {
        private_dir(dir)?;
        let _lock = lock(dir)?;
        let mut files = key_files(dir)?;
        if files.last().is_none_or(|(created, _)| now - created >= ROTATE_EVERY_S) {
            let path = dir.join(format!("sa-{now}.key"));
            write(&path, &KeyPair::generate()?.serialize_pem())?;
            files.push((now, path));
        }
        for path in retired(&files, now) {
            std::fs::remove_file(&path).map_err(io("remove", &path))?;
            files.retain(|(_, p)| *p != path);
        }
        let mut keys = Vec::new();
        for (created, path) in files {
            let pem = read(&path, true)?.unwrap_or_default();
            keys.push(Arc::new(Key::parse(&path, &pem, created)?));
        }
        Ok(Self { keys })
    }

    /// The key that signs at `now`.
    pub fn signer(&self, now: i64) -> Option<&Arc<Key>> {
        self.keys.iter().rev().find(|k| k.created_s + OVERLAP_S <= now).or_else(|| self.keys.first())
    }

    /// The key of that id.
    pub fn find(&self, kid: &str) -> Option<&Arc<Key>> {
        self.keys.iter().find(|k| k.kid == kid)
    }

    /// RFC 7517 key set, newest first.
    pub fn jwks(&self) -> Value {
        json!({"keys": self.keys.iter().rev().map(|k| k.jwk()).collect::<Vec<_>>()})
    }

    /// Whether the newest key is due for a successor.
    pub fn rotation_due(&self, now: i64) -> bool {
        self.keys.last().is_none_or(|k| now - k.created_s >= ROTATE_EVERY_S)
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.keys.len()
    }
}

/// `sa-<unix seconds>.key` files, oldest first.
fn key_files(dir: &Path) -> Result<Vec<(i64, PathBuf)>, PkiError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io("list", dir))? {
        let path = entry.map_err(io("list", dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let created = name.strip_prefix("sa-").and_then(|n| n.strip_suffix(".key")).and_then(|n| n.parse().ok());
        if let Some(created) = created {
            files.push((created, path));
        }
        if files.len() > MAX_KEYS {
            let detail = format!("it holds more than {MAX_KEYS} token keys (sa-*.key)");
            return Err(PkiError::Damaged { path: dir.to_owned(), detail });
        }
    }
    files.sort();
    Ok(files)
}

/// Keys whose successor has been signing for longer than any token lives.
fn retired(files: &[(i64, PathBuf)], now: i64) -> Vec<PathBuf> {
    files
        .windows(2)
        .filter(|pair| now > pair[1].0 + OVERLAP_S + MAX_LIFETIME_S + super::LEEWAY_S)
        .map(|pair| pair[0].1.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_rotate_with_an_overlap() {
        let dir = std::env::temp_dir().join(format!("sa-keys-{}", uuid::Uuid::new_v4()));
        let start = 1_800_000_000;
        let first = KeySet::open(&dir, start).unwrap();
        let old = first.signer(start).unwrap().kid.clone();
        assert_eq!(
            KeySet::open(&dir, start + 1).unwrap().signer(start + 1).unwrap().kid,
            old,
            "loaded, not made again"
        );
        assert!(!first.rotation_due(start + ROTATE_EVERY_S - 1) && first.rotation_due(start + ROTATE_EVERY_S));
        let turn = start + ROTATE_EVERY_S;
        let both = KeySet::open(&dir, turn).unwrap();
        assert_eq!(both.len(), 2);
        assert_eq!(both.signer(turn + OVERLAP_S - 1).unwrap().kid, old, "the new key is published before it signs");
        let new = both.signer(turn + OVERLAP_S).unwrap().kid.clone();
        assert_ne!(new, old);
        assert_eq!(both.jwks()["keys"].as_array().unwrap().len(), 2);
        assert!(both.find(&old).is_some(), "old tokens verify");
        let end = turn + OVERLAP_S + MAX_LIFETIME_S + 3600;
        let late = KeySet::open(&dir, end).unwrap();
        assert!(late.find(&old).is_none() && late.find(&new).is_some());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn damaged_keys_are_reported() {
        let dir = std::env::temp_dir().join(format!("sa-keys-{}", uuid::Uuid::new_v4()));
        KeySet::open(&dir, 1_800_000_000).unwrap();
        std::fs::write(dir.join("sa-1800000001.key"), "nothing").unwrap();
        let error = KeySet::open(&dir, 1_800_000_002).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("sa-1800000001.key is damaged"), "{error}");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
