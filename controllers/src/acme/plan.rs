//! Which certificates are wanted, and whether the ones there will do. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ObjectReference, Secret};
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use scaleup_api::gateway::Gateway;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{ANNOTATION, MANAGED_LABEL};
use crate::base::key::Key;

/// Names in one certificate, as Let's Encrypt allows.
const MAX_HOSTS: usize = 100;
/// Looked at again at least this often.
const MAX_WAIT: Duration = Duration::from_secs(24 * 3600);
/// Looked at again at most this often while a certificate is good.
const MIN_WAIT: Duration = Duration::from_secs(60);

/// What a Secret should hold a certificate for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Wanted {
    /// Names, lower case.
    pub hosts: BTreeSet<String>,
    /// Who wants it; told of progress.
    pub owners: Vec<ObjectReference>,
}

impl Wanted {
    /// Adds what one object wants.
    pub fn add(&mut self, owner: ObjectReference, hosts: Vec<String>) {
        if !hosts.is_empty() {
            self.hosts.extend(hosts.into_iter().map(|host| host.to_ascii_lowercase()));
            self.owners.push(owner);
        }
    }
}

/// What to do about a Secret.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It is good for a while.
    Keep {
        /// When to look again.
        renew_in: Duration,
    },
    /// Order a certificate.
    Order,
    /// Somebody else made it.
    NotOurs,
    /// It cannot be had this way.
    Refuse(String),
}

fn asks(meta: &ObjectMeta) -> bool {
    let annotation = meta.annotations.as_ref().and_then(|all| all.get(ANNOTATION));
    annotation.is_some_and(|value| value == "true") && meta.deletion_timestamp.is_none()
}

/// The names that an Ingress wants in a Secret.
pub(super) fn hosts_of_ingress(ingress: &Ingress, secret: &str) -> Vec<String> {
    let sections = ingress.spec.iter().filter(|_| asks(&ingress.metadata)).flat_map(|spec| spec.tls.iter().flatten());
    let ours = sections.filter(|tls| tls.secret_name.as_deref() == Some(secret));
    ours.flat_map(|tls| tls.hosts.iter().flatten().cloned()).collect()
}

/// The Secrets that an Ingress may want certificates in.
pub(super) fn secrets_of_ingress(ingress: &Ingress) -> BTreeSet<Key> {
    let namespace = ingress.namespace().unwrap_or_default();
    let sections = ingress.spec.iter().filter(|_| asks(&ingress.metadata)).flat_map(|spec| spec.tls.iter().flatten());
    sections.filter_map(|tls| Some(Key::new(namespace.clone(), tls.secret_name.clone()?))).collect()
}

/// Listeners' names with the Secrets (of the Gateway's namespace) that they take certificates from.
fn listeners(gateway: &Gateway) -> impl Iterator<Item = (&str, &str)> {
    let namespace = gateway.metadata.namespace.as_deref();
    let listeners = gateway.spec.listeners.iter().filter(move |_| asks(&gateway.metadata));
    listeners.flat_map(move |listener| {
        let refs = listener.tls.iter().flat_map(|tls| &tls.certificate_refs).filter(move |secret| {
            let is_secret = secret.group.as_deref().unwrap_or_default().is_empty()
                && secret.kind.as_deref().is_none_or(|kind| kind == "Secret");
            is_secret && secret.namespace.as_deref().is_none_or(|other| Some(other) == namespace)
        });
        refs.filter_map(move |secret| Some((listener.hostname.as_deref()?, secret.name.as_str())))
    })
}

/// The names that a Gateway wants in a Secret.
pub(super) fn hosts_of_gateway(gateway: &Gateway, secret: &str) -> Vec<String> {
    listeners(gateway).filter(|(_, name)| *name == secret).map(|(host, _)| host.to_owned()).collect()
}

/// The Secrets that a Gateway may want certificates in.
pub(super) fn secrets_of_gateway(gateway: &Gateway) -> BTreeSet<Key> {
    let namespace = gateway.namespace().unwrap_or_default();
    listeners(gateway).map(|(_, secret)| Key::new(namespace.clone(), secret)).collect()
}

/// What to do about a Secret at `now`.
pub(super) fn decide(wanted: &Wanted, existing: Option<&Secret>, now: Timestamp) -> Decision {
    if let Some(wildcard) = wanted.hosts.iter().find(|host| host.starts_with('*')) {
        return Decision::Refuse(format!(
            "{wildcard}: HTTP-01 cannot prove wildcard names; list the names themselves."
        ));
    }
    if wanted.hosts.len() > MAX_HOSTS {
        return Decision::Refuse(format!(
            "{} names are more than the {MAX_HOSTS} that one certificate may have; use several Secrets.",
            wanted.hosts.len()
        ));
    }
    let Some(existing) = existing else { return Decision::Order };
    if !existing.labels().contains_key(MANAGED_LABEL) {
        return Decision::NotOurs;
    }
    let Some((names, not_before, not_after)) = certificate(existing) else { return Decision::Order };
    let missing = wanted.hosts.iter().any(|host| !names.contains(host));
    // A third of the lifetime is left for trouble.
    let renew_at = not_after - (not_after - not_before) / 3;
    if missing || now.as_second() >= renew_at {
        return Decision::Order;
    }
    let left = u64::try_from(renew_at - now.as_second()).unwrap_or(0);
    Decision::Keep { renew_in: Duration::from_secs(left).clamp(MIN_WAIT, MAX_WAIT) }
}

/// Names and validity (Unix seconds) of the certificate in a Secret; `None` if there is none that can be read.
fn certificate(secret: &Secret) -> Option<(BTreeSet<String>, i64, i64)> {
    let pem = &secret.data.as_ref()?.get("tls.crt")?.0;
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem).ok()?;
    let (_, certificate) = X509Certificate::from_der(&pem.contents).ok()?;
    let names = certificate.subject_alternative_name().ok()??.value.general_names.iter();
    let names = names.filter_map(|name| if let GeneralName::DNSName(name) = name { Some(*name) } else { None });
    let validity = certificate.validity();
    let names = names.map(str::to_ascii_lowercase).collect();
    Some((names, validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// The Secret with a new certificate, over the one there.
pub(super) fn secret(key: &Key, wanted: &Wanted, existing: Option<&Secret>, chain_pem: &str, key_pem: &str) -> Secret {
    let mut secret = existing.cloned().unwrap_or_else(|| Secret {
        metadata: ObjectMeta {
            name: Some(key.name.clone()),
            namespace: Some(key.namespace.clone()),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".into()),
        ..Secret::default()
    });
    secret.metadata.labels.get_or_insert_default().insert(MANAGED_LABEL.into(), "managed".into());
    let names: Vec<&str> = wanted.hosts.iter().map(String::as_str).collect();
    secret.metadata.annotations.get_or_insert_default().insert("scaleup.dev/acme-names".into(), names.join(","));
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    secret.data = Some(BTreeMap::from([("tls.crt".into(), bytes(chain_pem)), ("tls.key".into(), bytes(key_pem))]));
    secret
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ingress(acme: &str) -> Ingress {
        serde_json::from_value(json!({
            "metadata": {"name": "i", "namespace": "web", "annotations": {ANNOTATION: acme}},
            "spec": {"tls": [
                {"secretName": "a", "hosts": ["A.example", "b.example"]}, {"hosts": ["c.example"]},
                {"secretName": "z", "hosts": ["z.example"]},
            ]},
        }))
        .unwrap()
    }

    #[test]
    fn only_those_who_ask_get_certificates() {
        assert_eq!(hosts_of_ingress(&ingress("true"), "a"), ["A.example", "b.example"]);
        assert_eq!(secrets_of_ingress(&ingress("true")).len(), 2);
        assert!(hosts_of_ingress(&ingress("false"), "a").is_empty() && secrets_of_ingress(&ingress("")).is_empty());
        let gateway: Gateway = serde_json::from_value(json!({
            "metadata": {"name": "g", "namespace": "web", "annotations": {ANNOTATION: "true"}},
            "spec": {"gatewayClassName": "scaleup", "listeners": [
                {"name": "1", "port": 443, "protocol": "HTTPS", "hostname": "g.example",
                 "tls": {"certificateRefs": [{"name": "a"}, {"name": "b", "namespace": "elsewhere"}]}},
                {"name": "2", "port": 444, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": "a"}]}},
            ]},
        }))
        .unwrap();
        assert_eq!(hosts_of_gateway(&gateway, "a"), ["g.example"]);
        assert!(hosts_of_gateway(&gateway, "b").is_empty(), "other namespaces are not written to");
        assert_eq!(secrets_of_gateway(&gateway), BTreeSet::from([Key::new("web", "a")]));
    }

    fn wanted(hosts: &[&str]) -> Wanted {
        Wanted { hosts: hosts.iter().map(|host| (*host).to_owned()).collect(), owners: vec![] }
    }

    /// A Secret with a certificate for `hosts`, valid from 2026-01-01 to 2026-04-01 (90 days).
    fn issued(hosts: &[&str]) -> Secret {
        let mut params =
            rcgen::CertificateParams::new(hosts.iter().map(|h| (*h).to_owned()).collect::<Vec<_>>()).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 4, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        secret(&Key::new("web", "a"), &wanted(hosts), None, &pem, &key.serialize_pem())
    }

    #[test]
    fn a_certificate_is_kept_until_a_third_of_its_life_is_left() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let (want, secret) = (wanted(&["a.example"]), issued(&["a.example", "b.example"]));
        assert_eq!(decide(&want, None, at("2026-01-01T00:00:00Z")), Decision::Order);
        assert_eq!(
            decide(&want, Some(&secret), at("2026-02-01T00:00:00Z")),
            Decision::Keep { renew_in: MAX_WAIT },
            "looked at daily"
        );
        let just_before = decide(&want, Some(&secret), at("2026-03-01T23:00:00Z"));
        assert_eq!(just_before, Decision::Keep { renew_in: Duration::from_secs(3600) });
        assert_eq!(decide(&want, Some(&secret), at("2026-03-02T00:00:00Z")), Decision::Order);
        assert_eq!(decide(&wanted(&["c.example"]), Some(&secret), at("2026-02-01T00:00:00Z")), Decision::Order);
    }

    #[test]
    fn what_others_made_and_what_cannot_be_had_is_left_alone() {
        let now = "2026-02-01T00:00:00Z".parse().unwrap();
        let mut foreign = issued(&["a.example"]);
        foreign.metadata.labels = None;
        assert_eq!(decide(&wanted(&["a.example"]), Some(&foreign), now), Decision::NotOurs);
        assert!(matches!(decide(&wanted(&["*.example"]), None, now), Decision::Refuse(_)));
        let many: Vec<String> = (0..=MAX_HOSTS).map(|i| format!("h{i}.example")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(matches!(decide(&wanted(&many), None, now), Decision::Refuse(_)));
        let mut garbage = issued(&["a.example"]);
        garbage.data.as_mut().unwrap().insert("tls.crt".into(), ByteString(b"nonsense".to_vec()));
        assert_eq!(decide(&wanted(&["a.example"]), Some(&garbage), now), Decision::Order);
    }
}
