//! `scaleup kubeconfig`: identities for roles, nodes and users, signed by the CA in the data directory.
//!
//! A node's file carries a second user, [`SERVING_USER`]: the certificate that the agent's own API serves with. One file is then
//! all that a node needs.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use scaleup_apiserver::auth::pki::{Ca, Identity, Kubeconfig};
use serde_json::Value;

use crate::cli::{KubeconfigArgs, Subject};

/// Name of the user entry that holds a node's serving certificate.
const SERVING_USER: &str = "kubelet-serving";
/// Name of the cluster in the files.
pub const CLUSTER: &str = "scaleup";

/// Folder of keys and certificates in a data directory.
pub fn pki_dir(data_dir: &Path) -> std::path::PathBuf {
    data_dir.join("pki")
}

/// Prints a kubeconfig.
pub fn kubeconfig(args: &KubeconfigArgs) -> Result<()> {
    let dir = pki_dir(&args.data.data_dir);
    if !dir.join("ca.crt").is_file() {
        bail!("{} holds no CA; run this where the API server runs, with its --data-dir", dir.display());
    }
    if !args.server.starts_with("https://") {
        bail!("--server {}: expected https://HOST:PORT", args.server);
    }
    let ca = Ca::load_or_create(&dir)?;
    println!("{}", text(&ca, &args.server, &args.subject)?.trim_end());
    Ok(())
}

fn text(ca: &Arc<Ca>, server: &str, subject: &Subject) -> Result<String> {
    let (user, groups): (String, Vec<&str>) = match subject {
        Subject::Controllers => ("system:kube-controller-manager".into(), Vec::new()),
        Subject::Scheduler => ("system:kube-scheduler".into(), Vec::new()),
        Subject::Lb => ("system:kube-proxy".into(), Vec::new()),
        Subject::Node { name, .. } => (format!("system:node:{name}"), vec!["system:nodes"]),
        Subject::User { name, group } => (name.clone(), group.iter().map(String::as_str).collect()),
    };
    let mut text = ca.kubeconfig(&Kubeconfig { cluster: CLUSTER, server, user: &user, groups: &groups })?;
    if let Subject::Node { name, address } = subject {
        let names: Vec<String> = address.iter().map(ToString::to_string).collect();
        let Identity { cert_pem, key_pem, .. } = ca.issue_node_serving(name, &names)?;
        text.push_str(&format!(
            "- name: {SERVING_USER}\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
            STANDARD.encode(cert_pem),
            STANDARD.encode(key_pem)
        ));
    }
    Ok(text)
}

/// What a node's agent reads from its file beside the client configuration.
pub struct Serving {
    /// Certificate of the cluster's CA.
    pub ca_pem: String,
    /// Serving certificate.
    pub cert_pem: String,
    /// Its key.
    pub key_pem: String,
}

/// Reads the serving certificate out of a node's kubeconfig.
pub fn serving(path: &Path) -> Result<Serving> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the kubeconfig {shown}"))?;
    let config: Value = serde_saphyr::from_str(&text).with_context(|| format!("the kubeconfig {shown} is damaged"))?;
    let pem = |value: &Value| -> Option<String> { String::from_utf8(STANDARD.decode(value.as_str()?).ok()?).ok() };
    let user = config["users"].as_array().and_then(|users| users.iter().find(|u| u["name"] == SERVING_USER));
    let user = user.with_context(|| {
        format!("the kubeconfig {shown} holds no serving certificate; make one with: scaleup kubeconfig --server URL node NAME --address IP")
    })?;
    let parts = (
        pem(&config["clusters"][0]["cluster"]["certificate-authority-data"]),
        pem(&user["user"]["client-certificate-data"]),
        pem(&user["user"]["client-key-data"]),
    );
    match parts {
        (Some(ca_pem), Some(cert_pem), Some(key_pem)) => Ok(Serving { ca_pem, cert_pem, key_pem }),
        _ => bail!("the kubeconfig {shown} is damaged: its certificates cannot be read"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_file_holds_both_certificates() {
        let dir = std::env::temp_dir().join(format!("scaleup-issue-{}", std::process::id()));
        let ca = Ca::load_or_create(&dir).unwrap();
        let subject = Subject::Node { name: "n1".into(), address: vec!["10.0.0.1".parse().unwrap()] };
        let path = dir.join("n1");
        std::fs::write(&path, text(&ca, "https://10.0.0.9:6443", &subject).unwrap()).unwrap();
        let serving = serving(&path).unwrap();
        assert!(serving.ca_pem == ca.cert_pem() && serving.key_pem.contains("PRIVATE KEY"));
        std::fs::write(&path, text(&ca, "https://10.0.0.9:6443", &Subject::Scheduler).unwrap()).unwrap();
        assert!(super::serving(&path).err().unwrap().to_string().contains("no serving certificate"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
