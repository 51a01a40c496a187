//! Modules in the API: put once, by digest.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client};
use scaleup_api::plugin::{GROUP, MAX_MODULE_BYTES, WasmModule, WasmModuleSpec, module_name};

use crate::base::calls::{self, Error};

/// Longest time for one module.
const TIMEOUT: Duration = Duration::from_secs(60);

fn path(namespace: &str, digest: &str) -> String {
    format!("/apis/{GROUP}/v1/namespaces/{namespace}/wasmmodules/{}/content", module_name(digest))
}

async fn send(client: &Client, request: http::Request<kube::client::Body>) -> kube::Result<Bytes> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| kube::Error::Service(error);
    let response = client.send(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_MODULE_BYTES).collect().await.map_err(failed)?.to_bytes();
    if status.is_success() {
        return Ok(body);
    }
    let said = serde_json::from_slice::<kube::core::Status>(&body);
    Err(kube::Error::Api(Box::new(said.map_err(kube::Error::SerdeError)?)))
}

/// The bytes with this digest.
pub async fn get(client: &Client, namespace: &str, digest: &str) -> Result<Bytes, Error> {
    let request = http::Request::get(path(namespace, digest)).body(kube::client::Body::empty());
    let call = async { send(client, request.map_err(kube::Error::HttpError)?).await };
    match tokio::time::timeout(TIMEOUT, call).await {
        Ok(done) => done.map_err(|e| Error::Api { what: "get module", object: digest.into(), source: Box::new(e) }),
        Err(_) => Err(Error::Timeout { what: "get module", object: digest.into() }),
    }
}

/// Stores a module, if it is not stored already.
pub async fn put(client: &Client, namespace: &str, digest: &str, bytes: Bytes) -> Result<(), Error> {
    let (api, name): (Api<WasmModule>, _) = (Api::namespaced(client.clone(), namespace), module_name(digest));
    let known = calls::call("get WasmModule", &name, api.get_opt(&name)).await?;
    if known.as_ref().is_some_and(|known| known.status.as_ref().is_some_and(|status| status.size.is_some())) {
        return Ok(());
    }
    if known.is_none() {
        let module = WasmModule {
            metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
            spec: WasmModuleSpec { origin: Some("Fetch".into()) },
            ..WasmModule::default()
        };
        match calls::create("create WasmModule", &api, &name, &module).await {
            Err(error) if !error.is_already_exists() => return Err(error),
            _ => {}
        }
    }
    let request = http::Request::put(path(namespace, digest)).body(kube::client::Body::from(bytes.to_vec()));
    let call = async { send(client, request.map_err(kube::Error::HttpError)?).await };
    match tokio::time::timeout(TIMEOUT, call).await {
        Ok(done) => done.map(drop).map_err(|e| Error::Api { what: "put module", object: name, source: Box::new(e) }),
        Err(_) => Err(Error::Timeout { what: "put module", object: name }),
    }
}
