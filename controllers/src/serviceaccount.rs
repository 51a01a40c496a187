//! A ServiceAccount named `default` in every active namespace (upstream's `pkg/controller/serviceaccount`).

use async_trait::async_trait;
use futures::future::{BoxFuture, join};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, ResourceExt};

use crate::base::calls::{self, Error};
use crate::base::key::Key;
use crate::base::worker::{Outcome, Reconcile};
use crate::context::Context;

const NAME: &str = "default";

/// Subscribes and works until shutdown.
pub fn start(cx: Context) -> BoxFuture<'static, ()> {
    let queue = cx.queue("serviceaccount");
    cx.informers.namespaces.feed(&queue, |change| change.new);
    let q = queue.clone();
    cx.informers.service_accounts.subscribe(move |change| {
        if let (Some(gone), None) = (change.old, change.new)
            && gone.name_any() == NAME
        {
            q.add(Key::new("", gone.namespace().unwrap_or_default()));
        }
    });
    let controller = Controller { cx: cx.clone() };
    let i = cx.informers.clone();
    let caches = join(i.namespaces.synced(), i.service_accounts.synced());
    cx.work("serviceaccount", queue, controller, &i.namespaces, caches)
}

/// Whether objects may be created in the namespace.
pub fn is_active(namespace: &Namespace) -> bool {
    let phase = namespace.status.as_ref().and_then(|s| s.phase.as_deref());
    namespace.metadata.deletion_timestamp.is_none() && phase.unwrap_or("Active") == "Active"
}

struct Controller {
    cx: Context,
}

#[async_trait]
impl Reconcile for Controller {
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let informers = &self.cx.informers;
        if !informers.namespaces.get(key).is_some_and(|n| is_active(&n)) {
            return Ok(Outcome::Done);
        }
        let account_key = Key::new(key.name.clone(), NAME);
        if informers.service_accounts.get(&account_key).is_some() {
            return Ok(Outcome::Done);
        }
        let metadata = ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() };
        let account = ServiceAccount { metadata, ..ServiceAccount::default() };
        let api: Api<ServiceAccount> = Api::namespaced(self.cx.client.clone(), &key.name);
        match calls::create("create ServiceAccount", &api, NAME, &account).await {
            Err(e) if !e.is_already_exists() && !e.is_namespace_terminating() => Err(e),
            _ => Ok(Outcome::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_active_namespaces_count() {
        let namespace = |value| serde_json::from_value::<Namespace>(value).unwrap();
        assert!(is_active(&namespace(json!({}))));
        assert!(is_active(&namespace(json!({"status": {"phase": "Active"}}))));
        assert!(!is_active(&namespace(json!({"status": {"phase": "Terminating"}}))));
        assert!(!is_active(&namespace(json!({"metadata": {"deletionTimestamp": "2024-01-01T00:00:00Z"}}))));
    }
}
