//! `ServiceAccount`: every pod runs as an account of its namespace and gets a token for it mounted, unless it says no.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rand::RngExt;
use serde_json::{Value, json};

use super::{Attributes, Plugin, list, push, text};
use crate::cache::Reader;
use crate::error::ApiError;

/// Where containers find their token.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// Upstream's odd number: an hour, and enough to be told from one that was asked for.
const TOKEN_SECONDS: i64 = 3607;
/// Marks pods that an agent made from a file.
pub(super) const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// The `default` account of a new namespace appears a moment after it.
const ATTEMPTS: u32 = 10;
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// As upstream's `rand.String`: no vowels, nothing that looks alike.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;

pub(super) struct ServiceAccount;

#[async_trait]
impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    async fn mutate(&self, server: &Arc<crate::Server>, attributes: &mut Attributes<'_>) -> Result<(), ApiError> {
        if !attributes.is("", "pods") || !attributes.creates() || !attributes.object["spec"].is_object() {
            return Ok(());
        }
        if is_mirror(attributes.object) {
            return check_mirror(attributes);
        }
        let name = choose(&mut attributes.object["spec"]);
        let Some(account) = find(&*server.caches, attributes.namespace, &name).await else {
            let namespace = attributes.namespace;
            return Err(attributes.forbidden(format_args!(
                "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
            )));
        };
        apply(&mut attributes.object["spec"], &account, &suffix());
        Ok(())
    }
}

pub(super) fn is_mirror(pod: &Value) -> bool {
    pod.pointer("/metadata/annotations").is_some_and(|a| a.get(MIRROR_ANNOTATION).is_some_and(|m| !m.is_null()))
}

fn check_mirror(attributes: &Attributes<'_>) -> Result<(), ApiError> {
    let spec = &attributes.object["spec"];
    if !text(spec, &["serviceAccountName"]).is_empty() {
        return Err(attributes.forbidden("a mirror pod may not reference service accounts"));
    }
    let token = |v: &Value| list(v, &["projected", "sources"]).iter().any(|s| !s["serviceAccountToken"].is_null());
    if list(spec, &["volumes"]).iter().any(token) {
        return Err(attributes.forbidden("a mirror pod may not use ServiceAccountToken volume projections"));
    }
    Ok(())
}

/// Settles the pod's account name.
fn choose(spec: &mut Value) -> String {
    let named = ["serviceAccountName", "serviceAccount"].map(|f| text(spec, &[f]).to_owned());
    let name = named.into_iter().find(|n| !n.is_empty()).unwrap_or_else(|| "default".into());
    spec["serviceAccountName"] = name.as_str().into();
    // The deprecated alias is kept equal.
    spec["serviceAccount"] = name.as_str().into();
    name
}

async fn find(caches: &dyn Reader, namespace: &str, name: &str) -> Option<Value> {
    let attempts = if name == "default" { ATTEMPTS } else { 2 };
    for attempt in 0..attempts {
        if attempt > 0 {
            tokio::time::sleep(RETRY_AFTER).await;
        }
        if let Some(account) = caches.get("", "serviceaccounts", namespace, name) {
            return Some(account.value());
        }
    }
    None
}

fn suffix() -> String {
    let mut rng = rand::rng();
    (0..SUFFIX_LENGTH).map(|_| char::from(SUFFIX_ALPHABET[rng.random_range(0..SUFFIX_ALPHABET.len())])).collect()
}

/// Mounts the token and copies image pull secrets.
fn apply(spec: &mut Value, account: &Value, suffix: &str) {
    let says = |object: &Value| object["automountServiceAccountToken"].as_bool();
    if says(spec).or_else(|| says(account)).unwrap_or(true) {
        mount(spec, suffix);
    }
    let secrets = list(account, &["imagePullSecrets"]);
    if list(spec, &["imagePullSecrets"]).is_empty() && !secrets.is_empty() {
        spec["imagePullSecrets"] = secrets.into();
    }
}

fn mount(spec: &mut Value, suffix: &str) {
    let existing = list(spec, &["volumes"]).iter().map(|v| text(v, &["name"])).find(|n| n.starts_with(VOLUME_PREFIX));
    let has_volume = existing.is_some();
    let volume = existing.map_or_else(|| format!("{VOLUME_PREFIX}{suffix}"), str::to_owned);
    let mut needed = false;
    for kind in ["initContainers", "containers"] {
        for container in spec[kind].as_array_mut().into_iter().flatten() {
            let mounted = list(container, &["volumeMounts"]).iter().any(|m| text(m, &["mountPath"]) == MOUNT_PATH);
            if !mounted && container.is_object() {
                push(container, "volumeMounts", json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
                needed = true;
            }
        }
    }
    if needed && !has_volume {
        push(spec, "volumes", token_volume(&volume));
    }
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": TOKEN_SECONDS}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}})
}

#[cfg(test)]
mod tests {
    use super::super::testing::Write;
    use super::*;
    use crate::auth::testing::MapReader;

    #[test]
    fn every_container_gets_the_token_once() {
        let mut spec = json!({
            "initContainers": [{"name": "i"}],
            "containers": [{"name": "a", "volumeMounts": [{"name": "x", "mountPath": "/x"}]},
                           {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]}],
        });
        apply(&mut spec, &json!({"imagePullSecrets": [{"name": "reg"}]}), "abcde");
        let mounts = |kind: &str, i: usize| spec[kind][i]["volumeMounts"].as_array().unwrap().clone();
        assert_eq!(mounts("initContainers", 0)[0]["name"], "kube-api-access-abcde");
        assert_eq!(mounts("containers", 0).len(), 2);
        assert_eq!(mounts("containers", 1).len(), 1, "an own mount there wins");
        assert_eq!(spec["volumes"].as_array().unwrap().len(), 1);
        assert_eq!(spec["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"], 3607);
        assert_eq!(spec["imagePullSecrets"], json!([{"name": "reg"}]));
        let once = spec.clone();
        apply(&mut spec, &json!({}), "fghij");
        assert_eq!(spec, once);
    }

    #[test]
    fn pod_and_account_can_say_no() {
        let check = |pod: Option<bool>, account: Option<bool>, mounts: bool| {
            let mut spec = json!({"containers": [{"name": "a"}], "automountServiceAccountToken": pod});
            apply(&mut spec, &json!({"automountServiceAccountToken": account}), "x");
            assert_eq!(!spec["volumes"].is_null(), mounts, "{pod:?} {account:?}");
        };
        check(None, None, true);
        check(None, Some(false), false);
        check(Some(true), Some(false), true);
        check(Some(false), Some(true), false);
    }

    #[test]
    fn the_accounts_name_is_settled() {
        for (spec, expected) in [
            (json!({}), "default"),
            (json!({"serviceAccountName": "robot"}), "robot"),
            (json!({"serviceAccount": "old"}), "old"),
        ] {
            let mut spec = spec;
            assert_eq!(choose(&mut spec), expected);
            assert_eq!((text(&spec, &["serviceAccountName"]), text(&spec, &["serviceAccount"])), (expected, expected));
        }
    }

    #[test]
    fn mirror_pods_have_no_account() {
        let check = |spec: Value, ok: bool| {
            let object = json!({"metadata": {"name": "m", "annotations": {MIRROR_ANNOTATION: "x"}}, "spec": spec});
            assert!(is_mirror(&object));
            assert_eq!(Write::create("", "Pod", "pods", object).with(|a| check_mirror(a)).is_ok(), ok);
        };
        check(json!({}), true);
        check(json!({"serviceAccountName": "default"}), false);
        check(json!({"volumes": [{"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}), false);
    }

    #[tokio::test]
    async fn a_new_namespaces_default_account_is_waited_for() {
        let reader = MapReader::new(&[]);
        assert!(find(&*reader, "web", "robot").await.is_none());
        let late = reader.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(350)).await;
            late.put("", "serviceaccounts", json!({"metadata": {"namespace": "web", "name": "default"}}));
        });
        assert!(find(&*reader, "web", "default").await.is_some());
    }
}
