//! `GET /plugins/records?plugin=[NAMESPACE/]NAME`: decisions of a plugin that were recorded in this process, one JSON object per line.
//!
//! The pipeline has authorised the caller for the path (nonResourceURL `/plugins/records`). What is kept has no personal data any more; nothing is
//! recorded here, and plugins of other processes are not known.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use scaleup_plugins::PluginKey;

use super::Server;
use super::pipeline::Scope;
use crate::error::ApiError;

/// Content type of JSON lines.
const JSON_LINES: &str = "application/jsonl";

/// The plugin that a query names.
fn key(name: &str) -> Result<PluginKey, ApiError> {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    if name.is_empty() || name.contains('/') {
        return Err(ApiError::bad_request("say which plugin: /plugins/records?plugin=NAMESPACE/NAME, or plugin=NAME"));
    }
    Ok(PluginKey::namespaced(namespace, name))
}

/// See the module.
pub(super) async fn records(
    State(server): State<Arc<Server>>,
    Extension(scope): Extension<Scope>,
) -> Result<Response<Body>, ApiError> {
    let key = key(scope.query.get("plugin"))?;
    let mut slots = server.config.plugins.slots();
    slots.retain(|(known, _)| *known == key);
    if slots.is_empty() {
        let mut error = ApiError::no_such_path();
        error.message = format!("no plugin {:?} decides in this process", key.to_string());
        return Err(error);
    }
    // Up to ten thousand decisions become text.
    let lines = tokio::task::spawn_blocking(move || {
        let records = slots.iter().flat_map(|(_, slot)| slot.records());
        records.filter_map(|record| record.line().ok()).fold(String::new(), |text, line| text + &line + "\n")
    });
    let mut response = Response::new(Body::from(lines.await.map_err(ApiError::internal)?));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON_LINES));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_named_with_or_without_namespace() {
        let check = |name: &str, expected: Option<&str>| {
            assert_eq!(key(name).ok().map(|key| key.to_string()).as_deref(), expected, "{name}");
        };
        check("shop/guard", Some("shop/guard"));
        check("guard", Some("guard"));
        check("", None);
        check("shop/", None);
        check("a/b/c", None);
    }
}
