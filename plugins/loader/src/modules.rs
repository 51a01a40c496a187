//! Modules by digest, from the API.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use kube::Client;
use scaleup_api::plugin::{GROUP, MAX_MODULE_BYTES, module_name};
use scaleup_plugins::Digest;

/// Longest wait for a module.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Why there are no bytes.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The API has none, or not yet.
    #[error("the module sha256:{digest} is not stored in namespace {namespace}: {why}")]
    Absent { digest: String, namespace: String, why: String },
    /// The API does not answer.
    #[error("the module cannot be read: {0}")]
    Api(String),
    /// What came is something else.
    #[error("the stored module is damaged: its SHA-256 is {found}, not {digest}")]
    Damaged { digest: String, found: String },
}

/// The bytes with this SHA-256.
pub async fn fetch(client: &Client, namespace: &str, digest: &str) -> Result<Bytes, ModuleError> {
    let fetched = tokio::time::timeout(TIMEOUT, content(client, namespace, digest)).await;
    let bytes = fetched.unwrap_or_else(|_| Err(ModuleError::Api("it does not arrive in time".into())))?;
    let hashed = bytes.clone();
    let found = tokio::task::spawn_blocking(move || Digest::of(&hashed).to_string()).await;
    let found = found.map_err(|error| ModuleError::Api(error.to_string()))?;
    if found == digest { Ok(bytes) } else { Err(ModuleError::Damaged { digest: digest.into(), found }) }
}

async fn content(client: &Client, namespace: &str, digest: &str) -> Result<Bytes, ModuleError> {
    let api = |error: &dyn std::fmt::Display| ModuleError::Api(error.to_string());
    let path = format!("/apis/{GROUP}/v1/namespaces/{namespace}/wasmmodules/{}/content", module_name(digest));
    let request = http::Request::get(path).body(kube::client::Body::empty()).map_err(|error| api(&error))?;
    let response = client.send(request).await.map_err(|error| api(&error))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_MODULE_BYTES).collect().await;
    let bytes = body.map_err(|error| ModuleError::Api(error.to_string()))?.to_bytes();
    if status.is_success() {
        return Ok(bytes);
    }
    let said: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let why = said["message"].as_str().unwrap_or(status.as_str()).to_owned();
    match status {
        http::StatusCode::NOT_FOUND => {
            Err(ModuleError::Absent { digest: digest.into(), namespace: namespace.into(), why })
        }
        _ => Err(ModuleError::Api(why)),
    }
}
