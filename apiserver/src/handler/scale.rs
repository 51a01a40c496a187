//! The `scale` subresource: `autoscaling/v1` Scale over `spec.replicas`.

use axum::body::Body;
use http::{Request, Response, StatusCode};
use scaleup_api::selector::LabelSelector;
use serde::Deserialize;
use serde_json::{Value, json};

use super::patch::{Kind, kind};
use super::storage::cache_error;
use super::write::{Part, Source, update};
use super::{Context, body, not_allowed, read, served, write};
use crate::error::{ApiError, FieldError};
use crate::registry::Verb;
use crate::request::WriteOptions;

/// GET, PUT and PATCH.
pub async fn handle(cx: &mut Context, request: Request<Body>) -> Result<Response<Body>, ApiError> {
    let scale = match cx.resolved.verb {
        Verb::Get => {
            cx.server.caches.catch_up().await.map_err(cache_error)?;
            current(cx)?
        }
        Verb::Update => {
            let options = WriteOptions::parse(&cx.query, "UpdateOptions")?;
            let bytes = cx.server.read_body(request).await?;
            let wanted = body::parse(&cx.headers, &bytes, "Scale")?.value;
            check_kind(&wanted)?;
            write::check_identity(cx, &wanted)?;
            store(cx, &options, &wanted).await?
        }
        Verb::Patch => {
            let options = WriteOptions::parse(&cx.query, "PatchOptions")?;
            let kind = kind(&cx.headers)?;
            let bytes = cx.server.read_body(request).await?;
            cx.server.caches.catch_up().await.map_err(cache_error)?;
            let now = current(cx)?;
            // A Scale has no lists to merge: strategic merge is merge.
            let mut wanted = match kind {
                Kind::Json => crate::patch::json_patch(&now, &bytes)?,
                Kind::Merge | Kind::Strategic => crate::patch::merge_patch(&now, &bytes)?,
            };
            check_kind(&wanted)?;
            write::check_identity(cx, &wanted)?;
            let named = super::patch::Patch { kind, bytes }.names_version();
            if !named {
                super::metadata::of(&mut wanted).remove("resourceVersion");
            }
            store(cx, &options, &wanted).await?
        }
        _ => return Err(not_allowed(&cx.resolved)),
    };
    served::other(cx, StatusCode::OK, &scale)
}

fn current(cx: &Context) -> Result<Value, ApiError> {
    let row = &cx.resolved.resource;
    Ok(scale_of(&served::value(row, &*read::existing(cx, row)?)))
}

fn check_kind(scale: &Value) -> Result<(), ApiError> {
    let given = |field: &str, wanted: &str| scale[field].as_str().is_none_or(|text| text.is_empty() || text == wanted);
    if scale.is_object() && given("kind", "Scale") && given("apiVersion", "autoscaling/v1") {
        return Ok(());
    }
    Err(ApiError::bad_request("the object provided is unrecognized (must be of type Scale in autoscaling/v1)"))
}

async fn store(cx: &mut Context, options: &WriteOptions, wanted: &Value) -> Result<Value, ApiError> {
    let replicas = match &wanted["spec"]["replicas"] {
        Value::Null => 0,
        number => match number.as_i64().filter(|n| i32::try_from(*n).is_ok()) {
            Some(replicas) => replicas,
            None => return Err(ApiError::bad_request(format!("spec.replicas must be an integer, not {number}"))),
        },
    };
    if replicas < 0 {
        let error = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        return Err(ApiError::invalid("autoscaling", "Scale", &cx.resolved.name, &[error]));
    }
    let version = super::metadata::text(wanted, "resourceVersion");
    let version = (!version.is_empty()).then(|| version.to_owned());
    let written = update(cx, Part::Replicas, options, Source::Replicas(replicas, version)).await?;
    let stored: Value = serde_json::from_slice(&written.json).map_err(ApiError::internal)?;
    Ok(scale_of(&served::from_stored(&cx.resolved.resource, stored)))
}

/// The Scale of an object.
fn scale_of(object: &Value) -> Value {
    let mut metadata = serde_json::Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if !object["metadata"][field].is_null() {
            metadata.insert(field.to_owned(), object["metadata"][field].clone());
        }
    }
    let selector =
        k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector::deserialize(&object["spec"]["selector"])
            .ok()
            .and_then(|selector| LabelSelector::from_k8s(&selector).ok())
            .map(|selector| selector.to_string())
            .unwrap_or_default();
    let mut status = json!({"replicas": object["status"]["replicas"].as_i64().unwrap_or(0)});
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": object["spec"]["replicas"].as_i64().unwrap_or(1)}, "status": status,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_has_replicas_and_the_selector_as_text() {
        let deployment = json!({"metadata": {"name": "web", "namespace": "ns", "labels": {"x": "y"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}}, "status": {"replicas": 2}});
        assert_eq!(
            scale_of(&deployment),
            json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {"name": "web", "namespace": "ns"},
                "spec": {"replicas": 3}, "status": {"replicas": 2, "selector": "app=web"}})
        );
    }
}
