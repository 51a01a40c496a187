//! The cluster CA as ConfigMap `kube-root-ca.crt` in every active namespace (upstream's root CA publisher).

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures::future::{BoxFuture, join};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, ResourceExt};

use crate::base::calls::{self, Error};
use crate::base::key::Key;
use crate::base::worker::{Outcome, Reconcile};
use crate::context::Context;
use crate::serviceaccount::is_active;

/// Name of the ConfigMap.
pub const CONFIG_MAP_NAME: &str = "kube-root-ca.crt";
const FILE: &str = "ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const DESCRIPTION_TEXT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
    endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across \
    distributions of Kubernetes clusters.";

/// Subscribes and works until shutdown.
pub fn start(cx: Context) -> BoxFuture<'static, ()> {
    let queue = cx.queue("root_ca_cert_publisher");
    cx.informers.namespaces.feed(&queue, |change| change.new);
    let q = queue.clone();
    cx.informers.root_cas.subscribe(move |change| {
        if let Some(map) = change.latest() {
            q.add(Key::new("", map.namespace().unwrap_or_default()));
        }
    });
    let controller = Controller { cx: cx.clone() };
    let i = cx.informers.clone();
    let caches = join(i.namespaces.synced(), i.root_cas.synced());
    cx.work("root-ca-certificate-publisher", queue, controller, &i.namespaces, caches)
}

/// The ConfigMap as it should be, over `existing`; `None` if it is so already. Pure.
fn plan(existing: Option<&ConfigMap>, ca_pem: &str) -> Option<ConfigMap> {
    let data = BTreeMap::from([(FILE.to_owned(), ca_pem.to_owned())]);
    let described = |m: &ConfigMap| m.annotations().get(DESCRIPTION).is_some_and(|d| d == DESCRIPTION_TEXT);
    if existing.is_some_and(|m| m.data.as_ref() == Some(&data) && described(m)) {
        return None;
    }
    let mut map = existing.cloned().unwrap_or_else(|| ConfigMap {
        metadata: ObjectMeta { name: Some(CONFIG_MAP_NAME.into()), ..ObjectMeta::default() },
        ..ConfigMap::default()
    });
    map.data = Some(data);
    map.metadata.annotations.get_or_insert_default().insert(DESCRIPTION.into(), DESCRIPTION_TEXT.into());
    Some(map)
}

struct Controller {
    cx: Context,
}

#[async_trait]
impl Reconcile for Controller {
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let informers = &self.cx.informers;
        let active = informers.namespaces.get(key).is_some_and(|n| is_active(&n));
        if !active || self.cx.config.ca_pem.is_empty() {
            return Ok(Outcome::Done);
        }
        let map_key = Key::new(key.name.clone(), CONFIG_MAP_NAME);
        let existing = informers.root_cas.get(&map_key);
        let Some(map) = plan(existing.as_deref(), &self.cx.config.ca_pem) else { return Ok(Outcome::Done) };
        let api: Api<ConfigMap> = Api::namespaced(self.cx.client.clone(), &key.name);
        let written = if existing.is_some() {
            calls::gone_is_fine(calls::replace("update ConfigMap", &api, CONFIG_MAP_NAME, &map).await)
        } else {
            calls::create("create ConfigMap", &api, CONFIG_MAP_NAME, &map).await.map(|_| ())
        };
        match written {
            Err(e) if e.is_namespace_terminating() => Ok(Outcome::Done),
            other => other.map(|()| Outcome::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ca_is_kept_as_configured() {
        let created = plan(None, "PEM").unwrap();
        assert_eq!(created.metadata.name.as_deref(), Some("kube-root-ca.crt"));
        assert_eq!(plan(Some(&created), "PEM"), None);
        let mut changed = created.clone();
        changed.data.as_mut().unwrap().insert("x".into(), "y".into());
        changed.metadata.resource_version = Some("3".into());
        let fixed = plan(Some(&changed), "PEM").unwrap();
        assert_eq!((fixed.data, fixed.metadata.resource_version), (created.data.clone(), Some("3".into())));
        assert!(plan(Some(&created), "NEW").is_some());
    }
}
