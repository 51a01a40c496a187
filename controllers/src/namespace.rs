//! Empties namespaces that are being deleted, then lets go of them (upstream's namespaced resources deleter).
//!
//! Works on whatever discovery lists, so that CRDs count too. While discovery is incomplete a namespace is never
//! released.

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, DynamicObject, ListParams, PartialObjectMeta, PostParams};
use kube::{Api, Client};
use scaleup_api::well_known::FINALIZER_KUBERNETES;

use crate::base::calls::{self, Error, call};
use crate::base::discovery::{Kind, discover};
use crate::base::key::Key;
use crate::base::worker::{Outcome, Reconcile};
use crate::context::Context;

/// Objects looked at per list call; more are counted by the server.
const PAGE_SIZE: u32 = 500;
const CONTENT_REMAINS: &str = "NamespaceContentRemaining";

/// Subscribes and works until shutdown.
pub fn start(cx: Context) -> BoxFuture<'static, ()> {
    let queue = cx.queue("namespace");
    cx.informers.namespaces.feed(&queue, |change| change.new.filter(|n| n.metadata.deletion_timestamp.is_some()));
    let controller = Controller { client: cx.client.clone() };
    let namespaces = cx.informers.namespaces.clone();
    cx.work("namespace", queue, controller, &namespaces, namespaces.synced())
}

/// What one pass over a namespace found.
#[derive(Debug, Default, PartialEq)]
struct Findings {
    /// `pods.` → how many are left.
    remaining: BTreeMap<String, usize>,
    /// Finalizer → on how many objects.
    finalizers: BTreeMap<String, usize>,
    /// What could not be deleted or listed.
    failures: Vec<String>,
    /// What could not be discovered.
    undiscovered: Vec<String>,
    /// Whether all kinds were looked at; not while pods are left, which go first.
    complete: bool,
}

impl Findings {
    fn is_empty(&self) -> bool {
        self.complete && self.remaining.is_empty() && self.failures.is_empty() && self.undiscovered.is_empty()
    }

    /// The conditions that these findings make (upstream's `namespaceConditionUpdater`).
    fn conditions(&self) -> Vec<(&'static str, bool, &'static str, String)> {
        let list = |map: &BTreeMap<String, usize>, verb: &str| {
            let entries: Vec<String> = map.iter().map(|(k, n)| format!("{k} {verb} {n} resource instances")).collect();
            entries.join(", ")
        };
        vec![
            if self.undiscovered.is_empty() {
                let text = "All resources successfully discovered".to_owned();
                ("NamespaceDeletionDiscoveryFailure", false, "ResourcesDiscovered", text)
            } else {
                let (n, all) = (self.undiscovered.len(), self.undiscovered.join(", "));
                let text = format!("Discovery failed for some groups, {n} failing: {all}");
                ("NamespaceDeletionDiscoveryFailure", true, "DiscoveryFailed", text)
            },
            (
                "NamespaceDeletionGroupVersionParsingFailure",
                false,
                "ParsedGroupVersions",
                "All legacy kube types successfully parsed".to_owned(),
            ),
            if self.failures.is_empty() {
                let text = "All content successfully deleted, may be waiting on finalization".to_owned();
                ("NamespaceDeletionContentFailure", false, "ContentDeleted", text)
            } else {
                let (n, all) = (self.failures.len(), self.failures.join(", "));
                let text = format!("Failed to delete all resource types, {n} remaining: {all}");
                ("NamespaceDeletionContentFailure", true, "ContentDeletionFailed", text)
            },
            if self.remaining.is_empty() {
                (CONTENT_REMAINS, false, "ContentRemoved", "All content successfully removed".to_owned())
            } else {
                let text = format!("Some resources are remaining: {}", list(&self.remaining, "has"));
                (CONTENT_REMAINS, true, "SomeResourcesRemain", text)
            },
            if self.finalizers.is_empty() {
                let text = "All content-preserving finalizers finished".to_owned();
                ("NamespaceFinalizersRemaining", false, "ContentHasNoFinalizers", text)
            } else {
                let text =
                    format!("Some content in the namespace has finalizers remaining: {}", list(&self.finalizers, "in"));
                ("NamespaceFinalizersRemaining", true, "SomeFinalizersRemain", text)
            },
        ]
    }

    fn note(&mut self, kind: &Kind, total: usize, items: &[PartialObjectMeta<DynamicObject>]) {
        if total == 0 {
            return;
        }
        *self.remaining.entry(format!("{}.{}", kind.resource.plural, kind.resource.group)).or_default() += total;
        for finalizer in items.iter().flat_map(|i| i.metadata.finalizers.iter().flatten()) {
            *self.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
    }
}

/// The status with these findings; `None` if it says so already. Pure.
fn status_with(old: &NamespaceStatus, findings: &Findings, now: Time) -> Option<NamespaceStatus> {
    let mut status = old.clone();
    status.phase = Some("Terminating".into());
    let conditions = status.conditions.get_or_insert_default();
    for (kind, failed, reason, message) in findings.conditions() {
        let value = if failed { "True" } else { "False" };
        match conditions.iter_mut().find(|c| c.type_ == kind) {
            Some(c) => {
                if c.status != value {
                    c.last_transition_time = Some(now.clone());
                }
                (c.status, c.reason, c.message) = (value.into(), Some(reason.into()), Some(message));
            }
            None => conditions.push(NamespaceCondition {
                type_: kind.into(),
                status: value.into(),
                reason: Some(reason.into()),
                message: Some(message),
                last_transition_time: Some(now.clone()),
            }),
        }
    }
    (status != *old).then_some(status)
}

/// Without the finalizer that is ours.
fn finalized(mut namespace: Namespace) -> Namespace {
    if let Some(finalizers) = namespace.spec.as_mut().and_then(|s| s.finalizers.as_mut()) {
        finalizers.retain(|f| f != FINALIZER_KUBERNETES);
    }
    namespace
}

fn has_our_finalizer(namespace: &Namespace) -> bool {
    let finalizers = namespace.spec.as_ref().and_then(|s| s.finalizers.as_deref()).unwrap_or_default();
    finalizers.iter().any(|f| f == FINALIZER_KUBERNETES)
}

struct Controller {
    client: Client,
}

#[async_trait]
impl Reconcile for Controller {
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let Some(namespace) = call("get Namespace", key, api.get_opt(&key.name)).await? else {
            return Ok(Outcome::Done);
        };
        if namespace.metadata.deletion_timestamp.is_none() || !has_our_finalizer(&namespace) {
            return Ok(Outcome::Done);
        }
        let findings = self.empty(&key.name).await?;
        let old = namespace.status.clone().unwrap_or_default();
        let mut current = namespace;
        if let Some(status) = status_with(&old, &findings, scaleup_api::time::now()) {
            current.status = Some(status);
            match calls::replace_status("update Namespace status", &api, &key.name, &current).await {
                Err(e) if e.is_not_found() => return Ok(Outcome::Done),
                written => current = written?,
            }
        }
        if !findings.is_empty() {
            tracing::debug!(namespace = %key, ?findings, "not empty yet");
            return Ok(Outcome::Backoff);
        }
        let finalized = serde_json::to_vec(&finalized(current)).unwrap_or_default();
        let request = kube::api::Request::new("/api/v1/namespaces")
            .replace_subresource("finalize", &key.name, &PostParams::default(), finalized)
            .map_err(kube::Error::BuildRequest);
        let done = async { self.client.request::<Namespace>(request?).await };
        match call("finalize Namespace", key, done).await {
            Err(e) if !e.is_not_found() => Err(e),
            _ => Ok(Outcome::Done),
        }
    }
}

impl Controller {
    /// Deletes everything in the namespace and says what is left. Pods go first: they may need what else there is.
    async fn empty(&self, namespace: &str) -> Result<Findings, Error> {
        let found = discover(&self.client).await?;
        let mut findings = Findings::default();
        findings.undiscovered.extend(found.failed.iter().map(|(group, why)| format!("{group}: {why}")));
        let (pods, others): (Vec<Kind>, Vec<Kind>) = found
            .kinds
            .into_iter()
            .filter(|k| k.namespaced)
            .partition(|k| k.resource.group.is_empty() && k.resource.plural == "pods");
        for kind in &pods {
            self.empty_kind(namespace, kind, &mut findings).await;
        }
        if !findings.remaining.is_empty() || !findings.failures.is_empty() {
            return Ok(findings);
        }
        for kind in &others {
            self.empty_kind(namespace, kind, &mut findings).await;
        }
        findings.complete = true;
        Ok(findings)
    }

    async fn empty_kind(&self, namespace: &str, kind: &Kind, findings: &mut Findings) {
        let result = self.delete_and_list(namespace, kind, findings).await;
        match result {
            // Gone from discovery in between, or only pretending to be deletable.
            Err(e) if e.status().is_some_and(|s| s.code == 404 || s.code == 405) => {}
            Err(e) => findings.failures.push(format!("{}: {}", kind.resource.plural, e.user_message())),
            Ok(()) => {}
        }
    }

    async fn delete_and_list(&self, namespace: &str, kind: &Kind, findings: &mut Findings) -> Result<(), Error> {
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &kind.resource);
        let page = ListParams { limit: Some(PAGE_SIZE), ..ListParams::default() };
        let what = &kind.resource.plural;
        if kind.has("deletecollection") {
            let (params, everything) = (DeleteParams::background(), ListParams::default());
            call("delete all", what, api.delete_collection(&params, &everything)).await?;
        } else {
            for item in call("list", what, api.list_metadata(&page)).await?.items {
                let name = item.metadata.name.unwrap_or_default();
                calls::gone_is_fine(call("delete", &name, api.delete(&name, &DeleteParams::background())).await)?;
            }
        }
        let left = call("list", what, api.list_metadata(&page)).await?;
        let more = left.metadata.remaining_item_count.and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        findings.note(kind, left.items.len() + more, &left.items);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::api::ApiResource;
    use serde_json::json;

    fn kind(plural: &str, group: &str) -> Kind {
        let resource = ApiResource {
            group: group.into(),
            version: "v1".into(),
            api_version: "v1".into(),
            kind: plural.into(),
            plural: plural.into(),
        };
        Kind { resource, namespaced: true, verbs: vec![] }
    }

    fn item(finalizers: &[&str]) -> PartialObjectMeta<DynamicObject> {
        serde_json::from_value(json!({"metadata": {"finalizers": finalizers}})).unwrap()
    }

    #[test]
    fn what_is_left_shows_in_conditions() {
        let mut findings = Findings { complete: true, ..Findings::default() };
        assert!(findings.is_empty());
        findings.note(&kind("pods", ""), 2, &[item(&["a/b"]), item(&["a/b", "c"])]);
        findings.note(&kind("deployments", "apps"), 1, &[item(&[])]);
        findings.note(&kind("secrets", ""), 0, &[]);
        assert!(!findings.is_empty());
        let status = status_with(&NamespaceStatus::default(), &findings, scaleup_api::time::now()).unwrap();
        assert_eq!(status.phase.as_deref(), Some("Terminating"));
        let text = |kind: &str| {
            let c = status.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap();
            format!("{} {} {}", c.status, c.reason.clone().unwrap(), c.message.clone().unwrap())
        };
        assert_eq!(
            text("NamespaceContentRemaining"),
            "True SomeResourcesRemain Some resources are remaining: deployments.apps has 1 resource instances, \
             pods. has 2 resource instances"
        );
        assert_eq!(
            text("NamespaceFinalizersRemaining"),
            "True SomeFinalizersRemain Some content in the namespace has finalizers remaining: \
             a/b in 2 resource instances, c in 1 resource instances"
        );
        assert!(text("NamespaceDeletionDiscoveryFailure").starts_with("False ResourcesDiscovered"));
        assert_eq!(status_with(&status, &findings, scaleup_api::time::now()), None, "said already");
    }

    #[test]
    fn failures_keep_the_namespace() {
        let base = || Findings { complete: true, ..Findings::default() };
        assert!(!Findings { failures: vec!["pods: no".into()], ..base() }.is_empty());
        assert!(!Findings { undiscovered: vec!["a.io/v1: down".into()], ..base() }.is_empty());
        assert!(!Findings::default().is_empty(), "only pods were looked at");
        let failed = Findings { undiscovered: vec!["a.io/v1: down".into()], ..base() };
        let (_, set, reason, message) = failed.conditions().remove(0);
        assert_eq!((set, reason), (true, "DiscoveryFailed"));
        assert_eq!(message, "Discovery failed for some groups, 1 failing: a.io/v1: down");
    }

    #[test]
    fn only_our_finalizer_is_removed() {
        let namespace = |f: &[&str]| -> Namespace {
            serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": {"finalizers": f}})).unwrap()
        };
        assert_eq!(finalized(namespace(&["kubernetes", "mine/x"])), namespace(&["mine/x"]));
        assert!(has_our_finalizer(&namespace(&["kubernetes"])) && !has_our_finalizer(&namespace(&["mine/x"])));
    }
}
