//! What files a volume shows, from the API's objects. The selection is pure; fetching is a GET per object, by name, since a
//! node may read no more than what its pods refer to.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, ServiceAccount, ServiceAccountTokenProjection, Volume,
    VolumeProjection,
};
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use scaleup_api::Quantity;

use super::atomic::{File, Files, valid_path};
use crate::clock::{Clock, after, between};
use crate::pod::env::{self, Context};
use crate::pod::view;

/// Mode of files unless told otherwise.
const DEFAULT_MODE: i32 = 0o644;
/// Life of a token unless told otherwise.
const DEFAULT_TOKEN_SECONDS: i64 = 3600;
/// A token is replaced at this part of its life, in percent.
const TOKEN_REFRESH_PERCENT: u32 = 80;

/// What volumes are made from beside the API.
pub struct World<'a> {
    /// The pod, newest version.
    pub pod: &'a Pod,
    /// The node's address.
    pub host_ip: &'a str,
    /// The pod's address.
    pub pod_ip: &'a str,
    /// The node's allocatable amounts.
    pub allocatable: &'a BTreeMap<String, Quantity>,
}

struct Token {
    text: String,
    refresh_at: Timestamp,
}

/// Reads objects and asks for tokens.
pub struct Fetcher {
    client: kube::Client,
    clock: Clock,
    /// Tokens by pod UID, account, audience and life. Entries of a pod go with it.
    tokens: Mutex<BTreeMap<(String, String, String, i64), Token>>,
}

impl Fetcher {
    /// Over a client.
    pub fn new(client: kube::Client, clock: Clock) -> Self {
        Self { client, clock, tokens: Mutex::default() }
    }

    /// Forgets a pod's tokens.
    pub fn forget(&self, uid: &str) {
        self.tokens.lock().retain(|(owner, ..), _| owner != uid);
    }

    /// When the pod's first token is due for replacement.
    pub fn refresh_at(&self, uid: &str) -> Option<Timestamp> {
        let tokens = self.tokens.lock();
        tokens.iter().filter(|((owner, ..), _)| owner == uid).map(|(_, token)| token.refresh_at).min()
    }

    /// ConfigMap by name; `None` if it does not exist.
    pub async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<ConfigMap>, kube::Error> {
        Api::<ConfigMap>::namespaced(self.client.clone(), namespace).get_opt(name).await
    }

    /// Secret by name; `None` if it does not exist.
    pub async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, kube::Error> {
        Api::<Secret>::namespaced(self.client.clone(), namespace).get_opt(name).await
    }

    /// Files of a volume; `None` if the volume is not made of files.
    pub async fn files(&self, volume: &Volume, world: &World<'_>) -> Result<Option<Files>, String> {
        let namespace = view::namespace(world.pod);
        if let Some(source) = &volume.config_map {
            let found = self.config_map(namespace, &source.name).await.map_err(|e| e.to_string())?;
            let mode = source.default_mode;
            return config_map(found, &source.name, source.items.as_deref(), mode, source.optional).map(Some);
        }
        if let Some(source) = &volume.secret {
            let name = source.secret_name.as_deref().unwrap_or_default();
            let found = self.secret(namespace, name).await.map_err(|e| e.to_string())?;
            return secret(found, name, source.items.as_deref(), source.default_mode, source.optional).map(Some);
        }
        if let Some(source) = &volume.downward_api {
            let items = source.items.as_deref().unwrap_or_default();
            return downward(items, source.default_mode, world).map(Some);
        }
        if let Some(source) = &volume.projected {
            let mut all = Files::new();
            for projection in source.sources.as_deref().unwrap_or_default() {
                all.extend(self.projection(projection, source.default_mode, world).await?);
            }
            return Ok(Some(all));
        }
        Ok(None)
    }

    async fn projection(
        &self,
        projection: &VolumeProjection,
        mode: Option<i32>,
        world: &World<'_>,
    ) -> Result<Files, String> {
        let namespace = view::namespace(world.pod);
        if let Some(source) = &projection.config_map {
            let found = self.config_map(namespace, &source.name).await.map_err(|e| e.to_string())?;
            return config_map(found, &source.name, source.items.as_deref(), mode, source.optional);
        }
        if let Some(source) = &projection.secret {
            let found = self.secret(namespace, &source.name).await.map_err(|e| e.to_string())?;
            return secret(found, &source.name, source.items.as_deref(), mode, source.optional);
        }
        if let Some(source) = &projection.downward_api {
            return downward(source.items.as_deref().unwrap_or_default(), mode, world);
        }
        if let Some(source) = &projection.service_account_token {
            let token = self.token(source, world.pod).await?;
            let file = File { data: token.into_bytes(), mode: bits(mode) };
            return insert(Files::new(), &source.path, file);
        }
        Err("this kind of projection is not supported".into())
    }

    /// A token bound to the pod, from the cache while it is young.
    async fn token(&self, source: &ServiceAccountTokenProjection, pod: &Pod) -> Result<String, String> {
        let account = view::spec(pod).service_account_name.as_deref().filter(|n| !n.is_empty()).unwrap_or("default");
        let audience = source.audience.clone().unwrap_or_default();
        let seconds = source.expiration_seconds.unwrap_or(DEFAULT_TOKEN_SECONDS);
        let key = (view::uid(pod).to_owned(), account.to_owned(), audience.clone(), seconds);
        let now = self.clock.now();
        if let Some(token) = self.tokens.lock().get(&key).filter(|t| now < t.refresh_at) {
            return Ok(token.text.clone());
        }
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: if audience.is_empty() { Vec::new() } else { vec![audience] },
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(view::name(pod).into()),
                    uid: Some(view::uid(pod).into()),
                }),
            },
            ..TokenRequest::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), view::namespace(pod));
        let answer: TokenRequest = api
            .create_subresource("token", account, &PostParams::default(), &request)
            .await
            .map_err(|e| format!("failed to fetch token: {e}"))?;
        let status = answer.status.ok_or("failed to fetch token: the API sent none")?;
        let life = between(now, status.expiration_timestamp.0);
        let refresh_at = after(now, life * TOKEN_REFRESH_PERCENT / 100).max(after(now, Duration::from_secs(1)));
        self.tokens.lock().insert(key, Token { text: status.token.clone(), refresh_at });
        Ok(status.token)
    }
}

fn bits(mode: Option<i32>) -> u32 {
    u32::try_from(mode.unwrap_or(DEFAULT_MODE)).unwrap_or(0) & 0o777
}

fn insert(mut files: Files, path: &str, file: File) -> Result<Files, String> {
    if !valid_path(path) {
        return Err(format!("{path:?} cannot be a path in a volume"));
    }
    files.insert(path.to_owned(), file);
    Ok(files)
}

/// The chosen keys (all, without `items`) as files.
fn select(
    data: BTreeMap<String, Vec<u8>>,
    what: &str,
    items: Option<&[KeyToPath]>,
    mode: Option<i32>,
    optional: bool,
) -> Result<Files, String> {
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        return data
            .into_iter()
            .try_fold(Files::new(), |files, (key, data)| insert(files, &key, File { data, mode: bits(mode) }));
    };
    items.iter().try_fold(Files::new(), |files, item| match data.get(&item.key) {
        Some(data) => insert(files, &item.path, File { data: data.clone(), mode: bits(item.mode.or(mode)) }),
        None if optional => Ok(files),
        None => Err(format!("{what} references non-existent {what} key: {}", item.key)),
    })
}

fn config_map(
    found: Option<ConfigMap>,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: Option<i32>,
    optional: Option<bool>,
) -> Result<Files, String> {
    let optional = optional == Some(true);
    let Some(found) = found else {
        return if optional { Ok(Files::new()) } else { Err(env::not_found("configmap", name).0) };
    };
    let text = found.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.into_bytes()));
    let binary = found.binary_data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0));
    select(text.chain(binary).collect(), "configmap", items, mode, optional)
        .map_err(|e| e.replace("non-existent configmap key", "non-existent config key"))
}

fn secret(
    found: Option<Secret>,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: Option<i32>,
    optional: Option<bool>,
) -> Result<Files, String> {
    let optional = optional == Some(true);
    let Some(found) = found else {
        return if optional { Ok(Files::new()) } else { Err(env::not_found("secret", name).0) };
    };
    let data = found.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0));
    select(data.collect(), "secret", items, mode, optional)
}

fn downward(items: &[DownwardAPIVolumeFile], mode: Option<i32>, world: &World<'_>) -> Result<Files, String> {
    let none = BTreeMap::new();
    let context = Context {
        pod: world.pod,
        pod_ip: world.pod_ip,
        host_ip: world.host_ip,
        allocatable: world.allocatable,
        services: &none,
    };
    items.iter().try_fold(Files::new(), |files, item| {
        let text = if let Some(field) = &item.field_ref {
            env::field_value(&context, &field.field_path).map_err(|e| e.0)?
        } else if let Some(resource) = &item.resource_field_ref {
            let name = resource.container_name.as_deref().unwrap_or_default();
            let container = view::container(world.pod, name).ok_or_else(|| format!("container {name} not found"))?;
            env::resource_value(container, resource, world.allocatable).map_err(|e| e.0)?
        } else {
            String::new()
        };
        insert(files, &item.path, File { data: text.into_bytes(), mode: bits(item.mode.or(mode)) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(data: serde_json::Value) -> Option<ConfigMap> {
        Some(serde_json::from_value(json!({ "data": data, "binaryData": {"bin": "/w=="} })).unwrap())
    }

    fn items(list: serde_json::Value) -> Vec<KeyToPath> {
        serde_json::from_value(list).unwrap()
    }

    #[test]
    fn all_keys_or_the_chosen_ones() {
        let all = config_map(map(json!({"a": "1"})), "m", None, None, None).unwrap();
        assert_eq!(all["a"], File { data: b"1".to_vec(), mode: 0o644 });
        assert_eq!(all["bin"].data, [0xff]);
        let chosen = items(json!([{"key": "a", "path": "d/x", "mode": 0o400}]));
        let some = config_map(map(json!({"a": "1", "b": "2"})), "m", Some(&chosen), Some(0o600), None).unwrap();
        assert_eq!(some.keys().collect::<Vec<_>>(), ["d/x"]);
        assert_eq!(some["d/x"].mode, 0o400);
    }

    #[test]
    fn what_is_missing_is_named() {
        let none = items(json!([{"key": "z", "path": "z"}]));
        assert_eq!(config_map(None, "m", None, None, None).unwrap_err(), "configmap \"m\" not found");
        assert_eq!(secret(None, "s", None, None, None).unwrap_err(), "secret \"s\" not found");
        assert_eq!(
            config_map(map(json!({})), "m", Some(&none), None, None).unwrap_err(),
            "configmap references non-existent config key: z"
        );
        assert_eq!(
            secret(Some(Secret::default()), "s", Some(&none), None, None).unwrap_err(),
            "secret references non-existent secret key: z"
        );
        assert_eq!(config_map(None, "m", None, None, Some(true)).unwrap(), Files::new());
    }

    #[test]
    fn paths_out_of_the_volume_are_refused() {
        let bad = items(json!([{"key": "a", "path": "../../etc/x"}]));
        assert!(config_map(map(json!({"a": "1"})), "m", Some(&bad), None, None).is_err());
    }
}
