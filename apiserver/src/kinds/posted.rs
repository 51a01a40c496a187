//! What subresources that are posted to (`binding`, `eviction`) share: reading the body, its name, the Success answer.

use std::sync::Arc;

use axum::body::Body;
use http::{HeaderMap, Request, Response, StatusCode};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::field;
use crate::error::ApiError;
use crate::handler::{Context, Resolved, body, served};
use crate::negotiate;
use crate::request::{Query, WriteOptions};

/// A decoded body and how to answer.
pub(super) struct Posted<T> {
    /// The body.
    pub object: T,
    /// `dryRun=All` in the query.
    pub dry_run: bool,
    headers: HeaderMap,
    query: Query,
}

/// Reads a body of kind `T`; another kind or version is 400, and so is another name than the path's.
pub(super) async fn read<T: k8s_openapi::Metadata<Ty = ObjectMeta> + DeserializeOwned>(
    server: &Arc<crate::Server>,
    resolved: &Resolved,
    request: Request<Body>,
) -> Result<Posted<T>, ApiError> {
    let query = Query::parse(request.uri().query())?;
    let dry_run = WriteOptions::parse(&query, "CreateOptions")?.dry_run;
    let headers = request.headers().clone();
    let bytes = server.read_body(request).await?;
    let value = body::parse(&headers, &bytes, T::KIND)?.value;
    for (name, expected) in [("kind", T::KIND), ("apiVersion", T::API_VERSION)] {
        let given = field::text_at(&value, &format!("/{name}"));
        if !given.is_empty() && given != expected {
            let message = format!("the {name} in the data ({given}) does not match the expected {name} ({expected})");
            return Err(ApiError::bad_request(message));
        }
    }
    let object: T = serde_json::from_value(value).map_err(|e| {
        ApiError::bad_request(format!("{} in version {:?} cannot be handled: {e}", T::KIND, T::API_VERSION))
    })?;
    check_name(T::KIND, object.metadata(), resolved)?;
    Ok(Posted { object, dry_run, headers, query })
}

/// The body names the object of the path, if it names one.
fn check_name(kind: &str, metadata: &ObjectMeta, resolved: &Resolved) -> Result<(), ApiError> {
    let (name, namespace) = (field::text(&metadata.name), field::text(&metadata.namespace));
    if !name.is_empty() && name != resolved.name {
        return Err(ApiError::bad_request(format!("name in URL does not match name in {kind} object")));
    }
    if !namespace.is_empty() && namespace != resolved.namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

impl<T> Posted<T> {
    /// A Status of Success.
    pub fn answer(
        &self,
        server: &Arc<crate::Server>,
        resolved: Resolved,
        code: StatusCode,
    ) -> Result<Response<Body>, ApiError> {
        let mut cx = Context::internal(server, resolved);
        cx.accepted = negotiate::accept(&self.headers, self.query.flag("pretty"))?;
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code.as_u16(),
        });
        served::other(&cx, code, &status)
    }
}
