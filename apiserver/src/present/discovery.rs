//! Discovery: which groups, versions and resources there are, classic and aggregated.
//!
//! Order and names follow upstream (`k8s.io/kube-aggregator`, `apidiscovery.k8s.io`): clients resolve short names that two
//! groups share (`events`) by the order of groups, and versions by the order within a group.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::registry::{Registry, Resource, Scope, Storage, Subresource, Verb};

/// Upstream's group priorities; groups that are not listed come last, by name.
const GROUP_PRIORITIES: &[(&str, u32)] = &[
    ("apiregistration.k8s.io", 18_000),
    ("apps", 17_800),
    ("events.k8s.io", 17_750),
    ("authentication.k8s.io", 17_700),
    ("authorization.k8s.io", 17_600),
    ("autoscaling", 17_500),
    ("batch", 17_400),
    ("certificates.k8s.io", 17_300),
    ("networking.k8s.io", 17_200),
    ("policy", 17_100),
    ("rbac.authorization.k8s.io", 17_000),
    ("storage.k8s.io", 16_800),
    ("admissionregistration.k8s.io", 16_700),
    ("apiextensions.k8s.io", 16_700),
    ("scheduling.k8s.io", 16_600),
    ("coordination.k8s.io", 16_500),
    ("node.k8s.io", 16_300),
    ("discovery.k8s.io", 16_200),
];

/// How a request at `/api` or `/apis` wants its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscoveryFormat {
    /// `APIVersions` or `APIGroupList`.
    Classic,
    /// `APIGroupDiscoveryList` of `apidiscovery.k8s.io/v2`.
    AggregatedV2,
    /// The same of `v2beta1` (kubectl 1.26 to 1.29).
    AggregatedV2Beta1,
}

impl DiscoveryFormat {
    /// The first media range of the Accept header that is served. Quality values are not weighed: clients list what they
    /// like best first.
    pub fn from_accept(accept: &str) -> Self {
        accept.split(',').find_map(Self::from_media_range).unwrap_or(Self::Classic)
    }

    fn from_media_range(range: &str) -> Option<Self> {
        let mut parts = range.split(';').map(str::trim);
        if !matches!(parts.next(), Some("application/json" | "*/*" | "application/*")) {
            return None;
        }
        let (mut group, mut version, mut kind) = ("", "", "");
        for (key, value) in parts.filter_map(|p| p.split_once('=')) {
            match key.trim() {
                "g" => group = value.trim(),
                "v" => version = value.trim(),
                "as" => kind = value.trim(),
                _ => {}
            }
        }
        match (group, version, kind) {
            ("", "", "") => Some(Self::Classic),
            ("apidiscovery.k8s.io", "v2", "APIGroupDiscoveryList") => Some(Self::AggregatedV2),
            ("apidiscovery.k8s.io", "v2beta1", "APIGroupDiscoveryList") => Some(Self::AggregatedV2Beta1),
            _ => None,
        }
    }

    /// `Content-Type` of the answer.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "application/json",
            Self::AggregatedV2 => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            Self::AggregatedV2Beta1 => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
        }
    }
}

/// The answer at `/api` (`core`) or `/apis` in the format asked for.
pub fn root(registry: &Registry, core: bool, format: DiscoveryFormat) -> Value {
    let mut list = match (format, core) {
        (DiscoveryFormat::Classic, true) => return api(registry),
        (DiscoveryFormat::Classic, false) => return apis(registry),
        (_, true) => aggregated_core(registry),
        (_, false) => aggregated(registry),
    };
    if format == DiscoveryFormat::AggregatedV2Beta1 {
        list["apiVersion"] = "apidiscovery.k8s.io/v2beta1".into();
    }
    list
}

/// `/api`: `APIVersions`. Server addresses are left out: nobody has used them since the days of federation.
pub fn api(registry: &Registry) -> Value {
    let versions: Vec<&str> = versions(registry, "");
    json!({"kind": "APIVersions", "versions": versions, "serverAddressByClientCIDRs": []})
}

/// `/apis`: `APIGroupList`.
pub fn apis(registry: &Registry) -> Value {
    let groups: Vec<Value> = groups(registry).into_iter().map(|name| group_entry(registry, name)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/{group}`: `APIGroup`.
pub fn group(registry: &Registry, group: &str) -> Option<Value> {
    let name = groups(registry).into_iter().find(|name| *name == group)?;
    let mut out = group_entry(registry, name);
    out["kind"] = "APIGroup".into();
    out["apiVersion"] = "v1".into();
    Some(out)
}

/// `/api/v1` and `/apis/{group}/{version}`: `APIResourceList`.
pub fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let rows = rows_of(registry, group, version);
    if rows.is_empty() {
        return None;
    }
    let mut out = json!({
        "kind": "APIResourceList", "groupVersion": group_version(group, version),
        "resources": rows.iter().flat_map(|row| resource_entries(row)).collect::<Value>(),
    });
    if !group.is_empty() {
        out["apiVersion"] = "v1".into();
    }
    Some(out)
}

/// `/api` aggregated, in `v2`.
pub fn aggregated_core(registry: &Registry) -> Value {
    discovery_list(vec![aggregated_group(registry, "")])
}

/// `/apis` aggregated, in `v2`.
pub fn aggregated(registry: &Registry) -> Value {
    discovery_list(groups(registry).into_iter().map(|name| aggregated_group(registry, name)).collect())
}

// ---- order ----

/// Named groups, in upstream's order.
pub(super) fn groups(registry: &Registry) -> Vec<&str> {
    let priority = |name: &str| GROUP_PRIORITIES.iter().find(|(g, _)| *g == name).map_or(0, |(_, p)| *p);
    let mut names: Vec<&str> = registry.rows().iter().map(|r| r.group.as_ref()).filter(|g| !g.is_empty()).collect();
    names.sort_by_key(|name| (std::cmp::Reverse(priority(name)), *name));
    names.dedup();
    names
}

/// Versions of a group, the preferred one first.
pub(super) fn versions<'a>(registry: &'a Registry, group: &str) -> Vec<&'a str> {
    let mut all: Vec<&str> = registry.rows().iter().filter(|r| r.group == group).map(|r| r.version.as_ref()).collect();
    all.sort_by_key(|version| version_rank(version));
    all.dedup();
    all
}

/// Sort key of `k8s.io/apimachinery/pkg/version.CompareKubeAwareVersionStrings`, best first: `v2`, `v1`, `v1beta2`, `v1beta1`,
/// `v1alpha1`, then anything else by name.
fn version_rank(version: &str) -> (u8, std::cmp::Reverse<(u32, u32)>, String) {
    let parse = || {
        let rest = version.strip_prefix('v')?;
        let (major, stability) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
        let major: u32 = major.parse().ok()?;
        let (class, minor) = match stability {
            "" => (0, 0),
            s if s.starts_with("beta") => (1, s["beta".len()..].parse().ok()?),
            s if s.starts_with("alpha") => (2, s["alpha".len()..].parse().ok()?),
            _ => return None,
        };
        Some((class, std::cmp::Reverse((major, minor)), String::new()))
    };
    parse().unwrap_or_else(|| (3, std::cmp::Reverse((0, 0)), version.to_owned()))
}

/// Rows of a group version, by plural.
pub(super) fn rows_of<'a>(registry: &'a Registry, group: &str, version: &str) -> Vec<&'a Resource> {
    let mut rows: Vec<&Resource> =
        registry.rows().iter().map(AsRef::as_ref).filter(|row| row.group == group && row.version == version).collect();
    rows.sort_by(|a, b| a.plural.cmp(&b.plural));
    rows
}

fn sorted_subresources(row: &Resource) -> Vec<&Subresource> {
    let mut all: Vec<&Subresource> = row.subresources.iter().collect();
    all.sort_by_key(|s| s.name);
    all
}

// ---- classic ----

/// `v1` or `apps/v1`.
pub(super) fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

fn group_entry(registry: &Registry, group: &str) -> Value {
    let version = |v: &&str| json!({"groupVersion": group_version(group, v), "version": v});
    let all: Vec<Value> = versions(registry, group).iter().map(version).collect();
    json!({"name": group, "preferredVersion": all.first(), "versions": all})
}

fn verbs(verbs: &[Verb]) -> Value {
    let mut names: Vec<&str> = verbs.iter().map(|v| v.as_str()).collect();
    names.sort_unstable();
    names.into()
}

fn resource_entries(row: &Resource) -> Vec<Value> {
    let mut main = Map::new();
    main.insert("name".into(), row.plural.as_ref().into());
    main.insert("singularName".into(), row.singular.as_ref().into());
    main.insert("namespaced".into(), row.namespaced().into());
    main.insert("kind".into(), row.kind.as_ref().into());
    main.insert("verbs".into(), verbs(row.verbs));
    insert_names(&mut main, "shortNames", &row.short_names);
    insert_names(&mut main, "categories", &row.categories);
    if !matches!(row.storage, Storage::Virtual(_)) {
        main.insert("storageVersionHash".into(), storage_version_hash(row).into());
    }
    let subresource = |s: &&Subresource| {
        let (group, version, kind) = response_kind(row, s);
        let mut entry = json!({
            "name": format!("{}/{}", row.plural, s.name), "singularName": "", "namespaced": row.namespaced(),
            "kind": kind, "verbs": verbs(s.verbs),
        });
        if (group, version) != (row.group.as_ref(), row.version.as_ref()) {
            entry["group"] = group.into();
            entry["version"] = version.into();
        }
        entry
    };
    std::iter::once(Value::Object(main)).chain(sorted_subresources(row).iter().map(subresource)).collect()
}

fn insert_names(into: &mut Map<String, Value>, key: &str, names: &[crate::registry::Text]) {
    if !names.is_empty() {
        into.insert(key.into(), names.iter().map(|n| Value::from(n.as_ref())).collect());
    }
}

/// Group, version and kind that a subresource answers with.
pub(super) fn response_kind<'a>(row: &'a Resource, subresource: &Subresource) -> (&'a str, &'a str, &'a str) {
    subresource.gvk.unwrap_or((&row.group, &row.version, &row.kind))
}

/// Upstream's `discovery.StorageVersionHash`: 8 bytes of a SHA-256 over `group/version/kind` as stored.
fn storage_version_hash(row: &Resource) -> String {
    let (group, _) = row.stored_as();
    let digest = Sha256::digest(format!("{group}/{}/{}", row.version, row.kind));
    BASE64_STANDARD.encode(digest.iter().take(8).copied().collect::<Vec<u8>>())
}

// ---- aggregated ----

fn discovery_list(items: Vec<Value>) -> Value {
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_group(registry: &Registry, group: &str) -> Value {
    let version = |version: &&str| {
        let resources = rows_of(registry, group, version).into_iter().map(aggregated_resource).collect::<Value>();
        json!({"version": version, "resources": resources, "freshness": "Current"})
    };
    let mut metadata = json!({"creationTimestamp": null});
    if !group.is_empty() {
        metadata["name"] = group.into();
    }
    json!({"metadata": metadata, "versions": versions(registry, group).iter().map(version).collect::<Value>()})
}

fn aggregated_resource(row: &Resource) -> Value {
    let kind = |(group, version, kind): (&str, &str, &str)| json!({"group": group, "version": version, "kind": kind});
    let scope = match row.scope {
        Scope::Namespaced => "Namespaced",
        Scope::Cluster => "Cluster",
    };
    let mut out = Map::new();
    out.insert("resource".into(), row.plural.as_ref().into());
    out.insert("responseKind".into(), kind((&row.group, &row.version, &row.kind)));
    out.insert("scope".into(), scope.into());
    out.insert("singularResource".into(), row.singular.as_ref().into());
    out.insert("verbs".into(), verbs(row.verbs));
    insert_names(&mut out, "shortNames", &row.short_names);
    insert_names(&mut out, "categories", &row.categories);
    if !row.subresources.is_empty() {
        let subresource = |s: &&Subresource| json!({"subresource": s.name, "responseKind": kind(response_kind(row, s)), "verbs": verbs(s.verbs)});
        out.insert("subresources".into(), sorted_subresources(row).iter().map(subresource).collect());
    }
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::present::fixtures::{registry, resource};

    #[test]
    fn accept_picks_the_format() {
        let check = |accept: &str, want| assert_eq!(DiscoveryFormat::from_accept(accept), want, "{accept}");
        let v2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        let beta = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";
        check("", DiscoveryFormat::Classic);
        check("application/json", DiscoveryFormat::Classic);
        check("*/*", DiscoveryFormat::Classic);
        check(&format!("{v2},{beta},application/json"), DiscoveryFormat::AggregatedV2);
        check(&format!("{beta},application/json"), DiscoveryFormat::AggregatedV2Beta1);
        check(&v2.replace(';', "; "), DiscoveryFormat::AggregatedV2);
        check(&format!("{},application/json", v2.replace("v2", "v3")), DiscoveryFormat::Classic);
        check(&format!("application/json, {v2}"), DiscoveryFormat::Classic);
        check(&v2.replace("json", "vnd.kubernetes.protobuf"), DiscoveryFormat::Classic);
        assert_eq!(DiscoveryFormat::from_accept(v2).content_type(), v2);
    }

    #[test]
    fn groups_and_versions_are_ordered_as_upstream() {
        let all = apis(&registry());
        let names: Vec<&str> = all["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["apps", "authorization.k8s.io", "example.com"]);
        let example = group(&registry(), "example.com").unwrap();
        assert_eq!(example["kind"], "APIGroup");
        assert_eq!(example["preferredVersion"]["groupVersion"], "example.com/v1");
        assert_eq!(example["versions"][1]["version"], "v1beta1");
        assert!(group(&registry(), "").is_none());
        assert!(group(&registry(), "nope").is_none());
        let mut versions = ["v1alpha1", "foo", "v1", "v1beta2", "v10", "v2", "v1beta10", "v2alpha1"];
        versions.sort_by_key(|v| version_rank(v));
        assert_eq!(versions, ["v10", "v2", "v1", "v1beta10", "v1beta2", "v2alpha1", "v1alpha1", "foo"]);
    }

    #[test]
    fn resource_lists_have_subresources() {
        let core = resources(&registry(), "", "v1").unwrap();
        assert_eq!(core["groupVersion"], "v1");
        assert!(core.get("apiVersion").is_none());
        let names: Vec<&str> =
            core["resources"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["configmaps", "nodes", "pods", "pods/status"]);
        let pods = &core["resources"][2];
        assert_eq!(pods["storageVersionHash"], "xPOwRZ+Yhw8=");
        assert_eq!(pods["shortNames"], json!(["po"]));
        let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
        assert_eq!(pods["verbs"], json!(verbs));
        let apps = resources(&registry(), "apps", "v1").unwrap();
        assert_eq!(
            apps["resources"][1],
            json!({"name": "deployments/scale", "singularName": "", "namespaced": true,
            "group": "autoscaling", "version": "v1", "kind": "Scale", "verbs": ["get", "patch", "update"]})
        );
        assert!(resources(&registry(), "apps", "v2").is_none());
    }

    #[test]
    fn aggregated_lists_have_everything() {
        let list = root(&registry(), false, DiscoveryFormat::AggregatedV2Beta1);
        assert_eq!(list["apiVersion"], "apidiscovery.k8s.io/v2beta1");
        let apps = &list["items"][0];
        assert_eq!(apps["metadata"]["name"], "apps");
        let deployments = &apps["versions"][0]["resources"][0];
        assert_eq!(deployments["subresources"][0]["responseKind"]["kind"], "Scale");
        assert_eq!(deployments["scope"], "Namespaced");
        let core = root(&registry(), true, DiscoveryFormat::AggregatedV2);
        assert_eq!(
            core["items"][0]["versions"][0]["resources"][1]["responseKind"],
            json!({"group": "", "version": "v1", "kind": "Node"})
        );
        assert!(core["items"][0]["metadata"].get("name").is_none());
        assert_eq!(root(&registry(), true, DiscoveryFormat::Classic)["versions"], json!(["v1"]));
    }

    #[test]
    fn storage_hashes_match_upstream() {
        let check = |group, kind, plural, want: &str| {
            assert_eq!(storage_version_hash(&resource(group, "v1", kind, plural)), want, "{plural}");
        };
        check("", "ConfigMap", "configmaps", "qFsyl6wFWjQ=");
        check("", "Secret", "secrets", "S6u1pOWzb84=");
        check("apps", "Deployment", "deployments", "8aSe+NMegvE=");
        check("rbac.authorization.k8s.io", "Role", "roles", "7FuwZcIIItM=");
    }
}
