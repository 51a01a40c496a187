//! Kubeconfig files: how users and roles on other machines get their identity.
//!
//! A file holds the authority's certificate, a client certificate and its key, inline. It is written for its owner only.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Ca, PkiError, RENEW_BEFORE_S, now_s, read, write};

/// Who connects where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubeconfig<'a> {
    /// Name of the cluster in the file.
    pub cluster: &'a str,
    /// e.g. `https://10.0.0.1:6443`
    pub server: &'a str,
    /// User (CN), e.g. `kubernetes-admin`, `system:node:n1`.
    pub user: &'a str,
    /// Groups (O), e.g. `system:masters`, `system:nodes`; at most one.
    pub groups: &'a [&'a str],
}

impl Ca {
    /// The file's text, with a fresh client certificate.
    pub fn kubeconfig(&self, spec: &Kubeconfig<'_>) -> Result<String, PkiError> {
        let identity = self.issue_client(spec.user, spec.groups)?;
        let quoted = |text: &str| Value::from(text).to_string();
        Ok(format!(
            "apiVersion: v1\nkind: Config\n\
             clusters:\n- name: {cluster}\n  cluster:\n    certificate-authority-data: {ca}\n    server: {server}\n\
             contexts:\n- name: {context}\n  context:\n    cluster: {cluster}\n    user: {user}\n\
             current-context: {context}\n\
             users:\n- name: {user}\n  user:\n    client-certificate-data: {cert}\n    client-key-data: {key}\n",
            cluster = quoted(spec.cluster),
            server = quoted(spec.server),
            user = quoted(spec.user),
            context = quoted(&format!("{}@{}", spec.user, spec.cluster)),
            ca = STANDARD.encode(self.cert_pem()),
            cert = STANDARD.encode(&identity.cert_pem),
            key = STANDARD.encode(&identity.key_pem),
        ))
    }

    /// Writes the file (0600). The way a role joins from another machine: write it where the authority is, copy it there.
    pub fn write_kubeconfig(&self, path: &Path, spec: &Kubeconfig<'_>) -> Result<(), PkiError> {
        write(path, &self.kubeconfig(spec)?)
    }

    /// Writes the file unless the one that is there still serves: same server and authority, and enough validity left.
    /// Whether it wrote.
    pub fn ensure_kubeconfig(&self, path: &Path, spec: &Kubeconfig<'_>) -> Result<bool, PkiError> {
        let usable = read(path, true)?.is_some_and(|text| self.still_serves(&text, spec, now_s()));
        if !usable {
            self.write_kubeconfig(path, spec)?;
        }
        Ok(!usable)
    }

    fn still_serves(&self, text: &str, spec: &Kubeconfig<'_>, now: i64) -> bool {
        let Ok(config) = serde_saphyr::from_str::<Value>(text) else { return false };
        let decoded = |pointer: &str| {
            config
                .pointer(pointer)
                .and_then(Value::as_str)
                .and_then(|data| STANDARD.decode(data).ok())
                .unwrap_or_default()
        };
        let names = config.pointer("/clusters/0/cluster/server").and_then(Value::as_str) == Some(spec.server)
            && config.pointer("/users/0/name").and_then(Value::as_str) == Some(spec.user)
            && decoded("/clusters/0/cluster/certificate-authority-data") == self.cert_pem().as_bytes()
            && !decoded("/users/0/user/client-key-data").is_empty();
        names && end_of(&decoded("/users/0/user/client-certificate-data")).is_some_and(|end| end - now > RENEW_BEFORE_S)
    }
}

fn end_of(cert_pem: &[u8]) -> Option<i64> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(cert_pem).ok()?;
    let (_, cert) = X509Certificate::from_der(&pem.contents).ok()?;
    Some(cert.validity().not_after.timestamp())
}

#[cfg(test)]
mod tests {
    use super::super::tests::temp_dir;
    use super::*;

    #[test]
    fn kubeconfig_is_private_and_kept_while_it_serves() {
        use std::os::unix::fs::PermissionsExt;
        let dir = temp_dir();
        let ca = Ca::load_or_create(&dir).unwrap();
        let path = dir.join("admin.conf");
        let spec = Kubeconfig {
            cluster: "scaleup",
            server: "https://127.0.0.1:6443",
            user: "kubernetes-admin",
            groups: &["system:masters"],
        };
        assert!(ca.ensure_kubeconfig(&path, &spec).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!ca.ensure_kubeconfig(&path, &spec).unwrap());
        let moved = Kubeconfig { server: "https://127.0.0.1:7443", ..spec.clone() };
        assert!(ca.ensure_kubeconfig(&path, &moved).unwrap(), "another server");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!ca.still_serves(&text, &spec, now_s()));
        assert!(ca.still_serves(&text, &moved, now_s()));
        assert!(!ca.still_serves(&text, &moved, now_s() + 340 * 24 * 3600), "ends soon");
        for garbage in ["", "{", "a: 1", "users: [{name: kubernetes-admin}]"] {
            std::fs::write(&path, garbage).unwrap();
            assert!(ca.ensure_kubeconfig(&path, &spec).unwrap(), "{garbage:?}");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }
}
