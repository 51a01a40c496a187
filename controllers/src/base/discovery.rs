//! Which kinds the API serves right now, through classic discovery. Never cached here: a CRD may land at any time.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResourceList;
use kube::Client;
use kube::api::ApiResource;

use super::calls::{self, Error};

/// A kind that can be listed and deleted, in its preferred version.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kind {
    /// Group, version, kind, plural.
    pub resource: ApiResource,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Verbs as discovery spells them.
    pub verbs: Vec<String>,
}

impl Kind {
    /// Whether discovery lists the verb.
    pub fn has(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
}

/// What discovery found.
#[derive(Clone, Debug, Default)]
pub struct Discovered {
    /// Kinds with the verb `delete`, each in one version.
    pub kinds: Vec<Kind>,
    /// Every `group/version` that is served (`v1` for core).
    pub versions: Vec<String>,
    /// Groups (`group/version`) that did not answer, and why. While there are any, a missing kind means nothing.
    pub failed: Vec<(String, String)>,
}

/// Asks the API. An error means that not even the list of groups could be had.
pub async fn discover(client: &Client) -> Result<Discovered, Error> {
    let mut found = Discovered::default();
    let core = calls::call("discover", "/api", client.list_core_api_versions()).await?;
    if let Some(version) = core.versions.first() {
        found.versions.push(version.clone());
        match calls::call("discover", format!("/api/{version}"), client.list_core_api_resources(version)).await {
            Ok(list) => found.kinds.extend(deletable(&list)),
            Err(e) => found.failed.push((version.clone(), e.user_message())),
        }
    }
    let groups = calls::call("discover", "/apis", client.list_api_groups()).await?;
    for group in groups.groups {
        let preferred = group.preferred_version.as_ref().map(|v| v.group_version.clone());
        // The preferred version first: a kind counts in the first version that has it.
        let mut versions: Vec<String> = group.versions.into_iter().map(|v| v.group_version).collect();
        versions.sort_by_key(|v| Some(v) != preferred.as_ref());
        for version in versions {
            found.versions.push(version.clone());
            match calls::call("discover", format!("/apis/{version}"), client.list_api_group_resources(&version)).await {
                Ok(list) => merge(&mut found.kinds, deletable(&list)),
                Err(e) => found.failed.push((version, e.user_message())),
            }
        }
    }
    Ok(found)
}

fn merge(kinds: &mut Vec<Kind>, more: Vec<Kind>) {
    for kind in more {
        let known =
            kinds.iter().any(|k| k.resource.group == kind.resource.group && k.resource.kind == kind.resource.kind);
        if !known {
            kinds.push(kind);
        }
    }
}

fn deletable(list: &APIResourceList) -> Vec<Kind> {
    let (group, version) = list.group_version.split_once('/').unwrap_or(("", &list.group_version));
    let of = |r: &k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource| Kind {
        resource: ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: list.group_version.clone(),
            kind: r.kind.clone(),
            plural: r.name.clone(),
        },
        namespaced: r.namespaced,
        verbs: r.verbs.clone(),
    };
    let main = list.resources.iter().filter(|r| !r.name.contains('/'));
    main.map(of).filter(|k| k.has("delete") && k.has("list")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource;

    fn list(group_version: &str, resources: &[(&str, &str, &[&str])]) -> APIResourceList {
        let resources = resources.iter().map(|(name, kind, verbs)| APIResource {
            name: (*name).into(),
            kind: (*kind).into(),
            namespaced: true,
            verbs: verbs.iter().map(|v| (*v).to_owned()).collect(),
            ..APIResource::default()
        });
        APIResourceList { group_version: group_version.into(), resources: resources.collect() }
    }

    #[test]
    fn subresources_and_virtual_kinds_are_left_out() {
        let all: &[&str] = &["delete", "list"];
        let found = deletable(&list(
            "apps/v1",
            &[
                ("deployments", "Deployment", all),
                ("deployments/scale", "Scale", &["get"]),
                ("reviews", "Review", &["create"]),
            ],
        ));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].resource.group.as_str(), found[0].resource.version.as_str()), ("apps", "v1"));
        assert_eq!(deletable(&list("v1", &[("pods", "Pod", all)]))[0].resource.group, "");
    }

    #[test]
    fn a_kind_counts_in_its_first_version() {
        let all: &[&str] = &["delete", "list"];
        let mut kinds = deletable(&list("a.io/v2", &[("things", "Thing", all)]));
        merge(&mut kinds, deletable(&list("a.io/v1", &[("things", "Thing", all), ("olds", "Old", all)])));
        let versions: Vec<_> = kinds.iter().map(|k| (k.resource.kind.as_str(), k.resource.version.as_str())).collect();
        assert_eq!(versions, [("Thing", "v2"), ("Old", "v1")]);
    }
}
