//! `wasmmodules/content`: the bytes of a module, put once and read by every process that runs it.
//!
//! They are kept in pieces below the store's limit, outside of what the watch cache follows, under the object's UID: those of an object that
//! is gone are never taken for those of a later one of its name. An object's status has a size from when all of them are there.

use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use axum::body::Body;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Request, Response};
use scaleup_api::plugin::{GROUP, MAX_MODULE_BYTES, module_digest};
use scaleup_store::{Error, ListRequest, Store};
use serde_json::{Value, json};
use sha2::Digest;
use tokio::sync::Semaphore;

use crate::Server;
use crate::cache::Cached;
use crate::error::{ApiError, GroupResource};
use crate::handler::storage::store_error;
use crate::handler::{Resolved, SubresourceHandler, WriteHooks};
use crate::kinds::field;
use crate::registry::Verb;

const PLURAL: &str = "wasmmodules";
/// Not below the cache's root.
const ROOT: &str = "/content/wasmmodules/";
/// Well below the store's largest entry.
const PIECE_BYTES: usize = 1 << 20;
/// Modules that are received at a time: each is in memory until it is checked.
const MAX_RECEIVED: usize = 4;
/// Attempts at a piece that somebody else writes, too.
const MAX_ATTEMPTS: usize = 5;

/// `GET|PUT wasmmodules/{name}/content`
pub struct ContentHandler;

/// Removes the bytes with the object.
pub struct ContentHooks;

fn piece_key(uid: &str, number: usize) -> String {
    format!("{ROOT}{uid}/{number:04}")
}

fn group_resource() -> GroupResource {
    GroupResource { group: GROUP.into(), resource: PLURAL.into() }
}

#[async_trait]
impl SubresourceHandler for ContentHandler {
    async fn handle(
        &self,
        server: &Arc<Server>,
        resolved: Resolved,
        request: Request<Body>,
    ) -> Result<Response<Body>, ApiError> {
        let (namespace, name) = (&resolved.namespace, &resolved.name);
        let stored = server.get_stored(GROUP, PLURAL, namespace, name).await?;
        let module = stored.ok_or_else(|| ApiError::not_found(&group_resource(), name))?;
        match resolved.verb {
            Verb::Get => get(server, &module),
            _ => put(server, &module, request).await,
        }
    }
}

/// The size, once the content is there.
fn size(module: &Value) -> Option<usize> {
    module.pointer("/status/size")?.as_u64().and_then(|size| usize::try_from(size).ok())
}

fn get(server: &Arc<Server>, module: &Cached) -> Result<Response<Body>, ApiError> {
    let Some(size) = size(&module.value()) else {
        let mut error = ApiError::not_found(&group_resource(), &module.name);
        error.message = format!("the content of {PLURAL}.{GROUP} {:?} has not been put yet", module.name);
        return Err(error);
    };
    let (store, uid) = (server.store.clone(), module.uid.to_string());
    let pieces = stream::iter(0..size.div_ceil(PIECE_BYTES)).then(move |number| {
        let (store, key) = (store.clone(), piece_key(&uid, number));
        async move {
            let (piece, _) = store.get(&key).await.map_err(std::io::Error::other)?;
            piece.map(|piece| piece.value).ok_or_else(|| std::io::Error::other("a piece of the module is missing"))
        }
    });
    let mut response = Response::new(Body::from_stream(pieces.into_stream()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/wasm"));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(size));
    Ok(response)
}

async fn put(server: &Arc<Server>, module: &Cached, request: Request<Body>) -> Result<Response<Body>, ApiError> {
    static RECEIVED: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(MAX_RECEIVED));
    let _place = RECEIVED.acquire().await.map_err(|_| ApiError::internal("the server is stopping"))?;
    let bytes = server.read_body_of(request, MAX_MODULE_BYTES).await?;
    if bytes.is_empty() {
        return Err(ApiError::bad_request("the body is empty: send the module's bytes"));
    }
    let sum = {
        let bytes = bytes.clone();
        tokio::task::spawn_blocking(move || hexadecimal(&sha2::Sha256::digest(&bytes)))
    };
    let sum = sum.await.map_err(ApiError::internal)?;
    if module_digest(&module.name) != Some(&sum) {
        let text = format!("the content's SHA-256 is {sum}, which is not that of the name {:?}", module.name);
        return Err(ApiError::bad_request(text));
    }
    if size(&module.value()).is_none() {
        for (number, at) in (0..bytes.len()).step_by(PIECE_BYTES).enumerate() {
            let piece = bytes.slice(at..bytes.len().min(at + PIECE_BYTES));
            let written = write(&*server.store, &piece_key(&module.uid, number), piece).await;
            written.map_err(|cause| store_error(&group_resource(), &module.name, cause))?;
        }
    }
    let (uid, size) = (module.uid.to_string(), bytes.len());
    let done = server.update_stored(GROUP, PLURAL, &module.namespace, &module.name, |mut object| {
        if field::text_at(&object, "/metadata/uid") != uid {
            return Err(ApiError::conflict(&group_resource(), &module.name, "the object was replaced meanwhile"));
        }
        object["status"] = json!({"size": size});
        Ok(object)
    });
    let done = done.await?;
    let mut response = Response::new(Body::from(done.json.clone()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a piece, whatever an attempt that was not finished has left there.
async fn write(store: &dyn Store, key: &str, piece: Bytes) -> Result<(), Error> {
    for _ in 0..MAX_ATTEMPTS {
        match store.create(key, piece.clone()).await {
            Err(Error::Exists) => {}
            other => return other.map(drop),
        }
        match store.get(key).await? {
            (Some(there), _) if there.value == piece => return Ok(()),
            (Some(there), _) => match store.update(key, piece.clone(), there.mod_revision).await {
                Err(Error::Conflict(_)) => {}
                other => return other.map(drop),
            },
            (None, _) => {}
        }
    }
    Err(Error::Unavailable("the module is written by several clients at once: try again".into()))
}

#[async_trait]
impl WriteHooks for ContentHooks {
    async fn before_write(&self, _: &Arc<Server>, _: &mut Value, _: Option<&Value>, _: bool) -> Result<(), ApiError> {
        Ok(())
    }

    async fn after_write(
        &self,
        server: &Arc<Server>,
        attempted: Option<&Value>,
        old: Option<&Value>,
        new: Option<&Value>,
    ) {
        let (None, Some(old), None) = (attempted, old, new) else { return };
        let uid = field::text_at(old, "/metadata/uid");
        if uid.is_empty() {
            return;
        }
        let prefix = format!("{ROOT}{uid}/");
        let listed = server.store.list(ListRequest { prefix: &prefix, limit: 0, ..ListRequest::default() }).await;
        let pieces = match listed {
            Ok(page) => page.items,
            Err(error) => return tracing::warn!(%error, uid, "the content of a deleted module stays in the store"),
        };
        for piece in pieces {
            if let Err(error) = server.store.delete(&piece.key, piece.mod_revision).await {
                tracing::warn!(%error, key = piece.key, "a piece of a deleted module stays in the store");
            }
        }
    }
}
