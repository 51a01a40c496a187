//! OpenAPI v2 and v3 of whatever is registered: what `kubectl explain`, `create`, `apply` and `edit` read.
//!
//! [`paths`] lists the operations of registry rows, `schema` knows the types; [`v3`] and [`v2`] write both down, [`proto`] encodes v2
//! the way client-go reads it (it accepts no JSON there). Documents are made on demand and not kept (a few milliseconds
//! each; clients cache them by hash); only their hashes are.

mod paths;
mod proto;
mod serve;
mod v2;
mod v3;

use std::collections::HashMap;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

pub use serve::serve;

use super::discovery;
use crate::registry::{Registry, Resource, Scope};

/// `info.title` and `info.version` of every document: the Kubernetes release whose API this is.
const TITLE: &str = "Kubernetes";
const VERSION: &str = "v1.33.0";
/// Hashes that are remembered; a registry has a dozen group versions, each change of a CRD makes one more.
const MAX_HASHES: usize = 256;

/// `/openapi/v2` as JSON.
pub fn v2(registry: &Registry) -> Bytes {
    to_bytes(&v2::document(registry))
}

/// `/openapi/v2` as `gnostic`'s `openapi.v2.Document` protobuf message.
pub fn v2_protobuf(registry: &Registry) -> Bytes {
    proto::encode(&v2::document(registry))
}

/// `/openapi/v3`: where the documents are, with a hash of each so that clients can keep them for good.
pub fn v3_index(registry: &Registry) -> Value {
    let entry = |path: String| {
        let hash = v3_hash(registry, &path)?;
        Some((path.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")})))
    };
    let paths: Map<String, Value> = group_versions(registry).filter_map(|(g, v)| entry(base_path(g, v))).collect();
    json!({"paths": paths})
}

/// `/openapi/v3/{path}`, e.g. `api/v1` or `apis/apps/v1`.
pub fn v3_group(registry: &Registry, path: &str) -> Option<Bytes> {
    let rows = rows_at(registry, path)?;
    Some(to_bytes(&v3::document(path, &rows)))
}

/// Hash of [`v3_group`]'s bytes, in upper case hexadecimal.
pub fn v3_hash(registry: &Registry, path: &str) -> Option<String> {
    let rows = rows_at(registry, path)?;
    Some(remembered_hash(fingerprint(path, rows.iter().copied()), || to_bytes(&v3::document(path, &rows))))
}

/// Hash of [`v2`]'s bytes.
pub fn v2_hash(registry: &Registry) -> String {
    remembered_hash(fingerprint("v2", registry.rows().iter().map(AsRef::as_ref)), || v2(registry))
}

/// Calls `change` for each schema directly below a schema.
fn each_below(schema: &mut Map<String, Value>, change: impl Fn(&mut Value)) {
    for key in ["items", "additionalProperties"] {
        if let Some(below) = schema.get_mut(key) {
            change(below);
        }
    }
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(change);
    }
}

fn to_bytes(document: &Value) -> Bytes {
    Bytes::from(document.to_string())
}

/// `api/v1` or `apis/apps/v1`.
fn base_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

fn group_versions(registry: &Registry) -> impl Iterator<Item = (&str, &str)> {
    let groups = std::iter::once("").chain(discovery::groups(registry));
    groups.flat_map(|group| discovery::versions(registry, group).into_iter().map(move |version| (group, version)))
}

fn rows_at<'a>(registry: &'a Registry, path: &str) -> Option<Vec<&'a Resource>> {
    let (group, version) = group_versions(registry).find(|(group, version)| base_path(group, version) == path)?;
    Some(discovery::rows_of(registry, group, version))
}

type Fingerprint = [u8; 32];

/// What a document of these rows depends on. (The types behind the rows are part of the program.)
fn fingerprint<'a>(document: &str, rows: impl Iterator<Item = &'a Resource>) -> Fingerprint {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update(text);
        hash.update([0]);
    };
    add(document);
    for row in rows {
        for text in [&row.group, &row.version, &row.kind, &row.plural] {
            add(text);
        }
        add(if row.scope == Scope::Cluster { "cluster" } else { "namespaced" });
        row.verbs.iter().for_each(|v| add(v.as_str()));
        for subresource in &row.subresources {
            add(subresource.name);
            subresource.verbs.iter().for_each(|v| add(v.as_str()));
            let (group, version, kind) = discovery::response_kind(row, subresource);
            [group, version, kind].into_iter().for_each(&mut add);
        }
    }
    hash.finalize().into()
}

fn remembered_hash(key: Fingerprint, document: impl FnOnce() -> Bytes) -> String {
    static HASHES: Mutex<Option<HashMap<Fingerprint, String>>> = Mutex::new(None);
    if let Some(known) = HASHES.lock().as_ref().and_then(|known| known.get(&key)) {
        return known.clone();
    }
    let hash: String = Sha256::digest(document()).iter().map(|byte| format!("{byte:02X}")).collect();
    let mut hashes = HASHES.lock();
    let known = hashes.get_or_insert_default();
    if known.len() >= MAX_HASHES {
        known.clear();
    }
    known.insert(key, hash.clone());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::present::fixtures::{registry, resource};

    #[test]
    fn the_index_leads_to_documents() {
        let index = v3_index(&registry());
        let paths = index["paths"].as_object().unwrap();
        let names: Vec<&String> = paths.keys().collect();
        let want = [
            "api/v1",
            "apis/apps/v1",
            "apis/authorization.k8s.io/v1",
            "apis/example.com/v1",
            "apis/example.com/v1beta1",
        ];
        assert_eq!(names, want);
        for (path, entry) in paths {
            let url = entry["serverRelativeURL"].as_str().unwrap();
            let (base, hash) = url.split_once("?hash=").unwrap();
            assert_eq!(base, format!("/openapi/v3/{path}"));
            assert_eq!(hash.len(), 64);
            let document: Value = serde_json::from_slice(&v3_group(&registry(), path).unwrap()).unwrap();
            assert_eq!(document["openapi"], "3.0.0");
        }
        assert!(v3_group(&registry(), "apis/apps/v2").is_none());
        assert!(v3_group(&registry(), "").is_none());
    }

    #[test]
    fn every_built_in_kind_is_documented() {
        let registry = crate::registry::table::builtin();
        let v2 = v2::document(&registry);
        for row in registry.rows() {
            let root = crate::schema::roots::find_any(&row.group, &row.version, &row.kind);
            let root = root.unwrap_or_else(|| panic!("{} has no schema", row.plural));
            assert_eq!(root.listed, row.verbs.contains(&crate::registry::Verb::List), "{}", row.plural);
            let definition = &v2["definitions"][root.type_name()];
            let kind = json!({"group": row.group, "version": row.version, "kind": row.kind});
            assert_eq!(definition["x-kubernetes-group-version-kind"], json!([kind]), "{}", row.plural);
        }
        let exec = &v2["paths"]["/api/v1/namespaces/{namespace}/pods/{name}/exec"]["post"];
        assert_eq!(exec["x-kubernetes-action"], "connect");
        assert_eq!(exec["parameters"], json!([]));
        let token = &v2["paths"]["/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"]["post"];
        assert_eq!(token["parameters"][0]["schema"]["$ref"], "#/definitions/io.k8s.api.authentication.v1.TokenRequest");
    }

    #[test]
    fn a_hash_changes_with_the_rows_only() {
        let first = v3_hash(&registry(), "apis/apps/v1").unwrap();
        assert_eq!(first, v3_hash(&registry(), "apis/apps/v1").unwrap());
        let mut rows: Vec<Resource> = registry().rows().iter().map(|r| Resource::clone(r)).collect();
        rows.push(resource("apps", "v1", "ReplicaSet", "replicasets"));
        let changed = Registry::new(rows);
        assert_ne!(first, v3_hash(&changed, "apis/apps/v1").unwrap());
        assert_eq!(v3_hash(&registry(), "api/v1"), v3_hash(&changed, "api/v1"));
        assert_ne!(v2_hash(&registry()), v2_hash(&changed));
    }
}
