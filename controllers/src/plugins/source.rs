//! The module's bytes from wherever `spec.source` says.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};
use scaleup_api::plugin::{MAX_MODULE_BYTES, ObjectKeyRef, ObjectRef, parse_limits};

use super::{Plugin, remote, store};
use crate::base::calls;

/// Why there are no bytes. Worth another try, always: what is missing may come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// An object that it is in, or that is needed to get at it.
    #[error("{kind} {namespace}/{name}: {why}")]
    Object { kind: &'static str, namespace: String, name: String, why: String },
    /// The store of modules.
    #[error("the module cannot be read: {0}; upload it with: scaleup plugin push FILE")]
    Blob(String),
    /// In the specification itself.
    #[error("spec.source: {0}")]
    Spec(String),
    /// Another machine.
    #[error("{0}")]
    Remote(String),
}

/// The largest module that the plugin may be.
fn most(plugin: &Plugin) -> usize {
    let asked = plugin.spec.limits.as_ref().and_then(|limits| parse_limits(limits).ok()?.module_bytes);
    asked.and_then(|most| usize::try_from(most).ok()).unwrap_or(MAX_MODULE_BYTES).min(MAX_MODULE_BYTES)
}

/// Fetches the module.
pub async fn fetch(client: &Client, plugin: &Plugin) -> Result<Bytes, FetchError> {
    let (source, most) = (&plugin.spec.source, most(plugin));
    let bytes = if let Some(inline) = &source.inline {
        STANDARD.decode(inline).map_err(|error| FetchError::Spec(error.to_string()))?.into()
    } else if let Some(key) = &source.config_map_ref {
        config_map(client, plugin, key).await?
    } else if let Some(key) = &source.secret_ref {
        secret(client, plugin.namespace_of(&key.namespace), &key.name, &key.key).await?
    } else if let Some(digest) = &source.blob {
        let got = store::get(client, plugin.modules(), digest).await;
        got.map_err(|error| FetchError::Blob(error.user_message()))?
    } else if let Some(https) = &source.https {
        let token = match &https.token_secret {
            Some(ObjectRef { namespace, name }) => {
                Some(secret(client, plugin.namespace_of(namespace), name, "token").await?)
            }
            None => None,
        };
        remote::https(https, token.as_deref(), most).await?
    } else if let Some(oci) = &source.oci {
        let login = match &oci.pull_secret {
            Some(ObjectRef { namespace, name }) => {
                Some(secret(client, plugin.namespace_of(namespace), name, ".dockerconfigjson").await?)
            }
            None => None,
        };
        remote::oci(oci, login.as_deref(), plugin.spec.sha256.as_deref(), most).await?
    } else {
        return Err(FetchError::Spec("none is given".into()));
    };
    if bytes.len() > most {
        return Err(FetchError::Spec(format!("the module has {} bytes, at most {most} are allowed", bytes.len())));
    }
    Ok(bytes)
}

fn missing(kind: &'static str, namespace: &str, name: &str, why: String) -> FetchError {
    FetchError::Object { kind, namespace: namespace.into(), name: name.into(), why }
}

async fn config_map(client: &Client, plugin: &Plugin, at: &ObjectKeyRef) -> Result<Bytes, FetchError> {
    let (namespace, kind) = (plugin.namespace_of(&at.namespace), "ConfigMap");
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let found = calls::call("get ConfigMap", &at.name, api.get(&at.name)).await;
    let found = found.map_err(|error| missing(kind, namespace, &at.name, error.user_message()))?;
    let binary = found.binary_data.and_then(|mut data| data.remove(&at.key)).map(|value| value.0);
    let bytes = binary.or_else(|| found.data.and_then(|mut data| data.remove(&at.key)).map(String::into_bytes));
    bytes.map(Bytes::from).ok_or_else(|| missing(kind, namespace, &at.name, format!("it has no key {:?}", at.key)))
}

async fn secret(client: &Client, namespace: &str, name: &str, key: &str) -> Result<Bytes, FetchError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let found = calls::call("get Secret", name, api.get(name)).await;
    let found = found.map_err(|error| missing("Secret", namespace, name, error.user_message()))?;
    let bytes = found.data.and_then(|mut data| data.remove(key)).map(|value| Bytes::from(value.0));
    bytes.ok_or_else(|| missing("Secret", namespace, name, format!("it has no key {key:?}")))
}
