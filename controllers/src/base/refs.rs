//! Adoption and release by selector and controller reference (upstream's `ControllerRefManager`).

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Api, Resource, ResourceExt};
use scaleup_api::LabelSelector;
use scaleup_api::owner::controller_of;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::calls::{self, Error};

/// What to do with the objects that a controller could own.
#[derive(Debug)]
pub struct Claims<K> {
    /// Owned and matching.
    pub keep: Vec<Arc<K>>,
    /// Orphans that match.
    pub adopt: Vec<Arc<K>>,
    /// Owned, but no longer matching.
    pub release: Vec<Arc<K>>,
}

/// How calls are named in errors.
#[derive(Clone, Copy)]
pub struct What {
    /// E.g. `adopt Pod`.
    pub adopt: &'static str,
    /// E.g. `release Pod`.
    pub release: &'static str,
}

impl<K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug> Claims<K> {
    /// Adopts for `owner` and releases; what it owns then. `still_alive` is a live look at the owner, taken only before
    /// anything is adopted: what is cached may be deleted, or another of the same name.
    pub async fn carry_out(
        self,
        what: What,
        api: &Api<K>,
        owner: &OwnerReference,
        still_alive: impl Future<Output = Result<bool, Error>>,
    ) -> Result<Vec<Arc<K>>, Error> {
        let mut owned = self.keep;
        if !self.adopt.is_empty() && still_alive.await? {
            for object in self.adopt {
                let patch = adopt_patch(object.meta(), owner.clone());
                match calls::merge(what.adopt, api, &object.name_any(), &patch).await {
                    Ok(adopted) => owned.push(Arc::new(adopted)),
                    Err(e) if e.is_not_found() => {}
                    Err(e) => return Err(e),
                }
            }
        }
        for object in self.release {
            let patch = release_patch(object.meta(), &[&owner.uid]);
            calls::gone_is_fine(calls::merge(what.release, api, &object.name_any(), &patch).await)?;
        }
        Ok(owned)
    }
}

/// Sorts `candidates` for the owner of `owner_uid`. An owner that is being deleted neither adopts nor releases.
pub fn plan<K: ResourceExt>(
    owner: &ObjectMeta,
    selector: &LabelSelector,
    candidates: impl IntoIterator<Item = Arc<K>>,
) -> Claims<K> {
    let uid = owner.uid.as_deref().unwrap_or_default();
    let deleting = owner.deletion_timestamp.is_some();
    let mut claims = Claims { keep: Vec::new(), adopt: Vec::new(), release: Vec::new() };
    let none = BTreeMap::new();
    for object in candidates {
        let matches = selector.matches(object.meta().labels.as_ref().unwrap_or(&none));
        match controller_of(object.meta()) {
            Some(r) if r.uid != uid => {}
            Some(_) if matches => claims.keep.push(object),
            Some(_) if deleting => {}
            Some(_) => claims.release.push(object),
            None if !matches || deleting || object.meta().deletion_timestamp.is_some() => {}
            None => claims.adopt.push(object),
        }
    }
    claims
}

/// A merge patch that makes `owner` the controller of `object`; fails with a conflict if the object has changed since.
pub fn adopt_patch(object: &ObjectMeta, owner: OwnerReference) -> Value {
    let mut references = object.owner_references.clone().unwrap_or_default();
    references.push(owner);
    owner_references_patch(object, &references)
}

/// A merge patch that takes the references to `owner_uids` out of `object`; fails with a conflict if the object has
/// changed.
pub fn release_patch(object: &ObjectMeta, owner_uids: &[&str]) -> Value {
    let mut references = object.owner_references.clone().unwrap_or_default();
    references.retain(|r| !owner_uids.contains(&r.uid.as_str()));
    owner_references_patch(object, &references)
}

/// A merge patch that replaces the owner references.
pub fn owner_references_patch(object: &ObjectMeta, references: &[OwnerReference]) -> Value {
    json!({"metadata": {
        "uid": object.uid,
        "resourceVersion": object.resource_version,
        "ownerReferences": references,
    }})
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;

    fn pod(name: &str, label: &str, owner: Option<&str>, deleting: bool) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.uid = Some(format!("uid-{name}"));
        pod.metadata.resource_version = Some("7".into());
        pod.metadata.labels = Some([("app".to_owned(), label.to_owned())].into());
        pod.metadata.owner_references = owner
            .map(|uid| vec![OwnerReference { uid: uid.into(), controller: Some(true), ..OwnerReference::default() }]);
        pod.metadata.deletion_timestamp = deleting.then(scaleup_api::time::now);
        Arc::new(pod)
    }

    fn check(owner_deleting: bool, want: [&str; 3]) {
        let mut owner = ObjectMeta { uid: Some("me".into()), ..ObjectMeta::default() };
        owner.deletion_timestamp = owner_deleting.then(scaleup_api::time::now);
        let pods = [
            pod("mine", "web", Some("me"), false),
            pod("mine-other-label", "db", Some("me"), false),
            pod("orphan", "web", None, false),
            pod("orphan-other-label", "db", None, false),
            pod("orphan-deleting", "web", None, true),
            pod("foreign", "web", Some("you"), false),
        ];
        let claims = plan(&owner, &LabelSelector::parse("app=web").unwrap(), pods);
        let names = |l: &[Arc<Pod>]| l.iter().map(|p| p.name_any()).collect::<Vec<_>>().join(" ");
        assert_eq!([names(&claims.keep), names(&claims.adopt), names(&claims.release)], want.map(str::to_owned));
    }

    #[test]
    fn objects_are_claimed_by_selector_and_reference() {
        check(false, ["mine", "orphan", "mine-other-label"]);
        check(true, ["mine", "", ""]);
    }

    #[test]
    fn patches_carry_preconditions() {
        let pod = pod("a", "web", Some("me"), false);
        let patch = release_patch(&pod.metadata, &["me"]);
        assert_eq!(patch, json!({"metadata": {"uid": "uid-a", "resourceVersion": "7", "ownerReferences": []}}));
        let patch = adopt_patch(&pod.metadata, OwnerReference { uid: "x".into(), ..OwnerReference::default() });
        assert_eq!(patch["metadata"]["ownerReferences"].as_array().unwrap().len(), 2);
    }
}
